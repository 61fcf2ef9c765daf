"""What the libraries really raise, at a hub of our own on this machine, becomes a sentence that says what to do."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxft.models import hub_errors
from ctxft.storage import InputError

ANSWERS = {  # repository name: (HTTP status, the hub's error code, its message)
    "gated": (403, "GatedRepo", "Access is restricted"),
    "gated-anonymous": (401, "GatedRepo", "Access is restricted"),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "refused": (403, None, "Forbidden"),
    "broken": (400, None, "Bad request"),
    "revision": (404, "RevisionNotFound", "Invalid rev id"),
}
BUSY = {"limited": (429, None, "Too many requests"), "down": (503, None, "Unavailable"), "slow": (200, None, "")}
ASK = """
import json, sys
import datasets, huggingface_hub, transformers
from ctxft.models import hub_errors, resolve_revision
from ctxft.storage import InputError

loaders = {
    ("dataset", "datasets"): datasets.load_dataset,
    ("model", "transformers"): transformers.AutoModelForCausalLM.from_pretrained,
    ("model", "tokenizer"): transformers.AutoTokenizer.from_pretrained,
    ("model", "snapshot"): huggingface_hub.snapshot_download,
    ("model", "revision"): lambda name: resolve_revision(name, "model", None, "pass a local folder"),
}
found = {}
chosen, *names = sys.argv[1:]
for name in names:
    for (kind, library), load in loaders.items():
        if library not in chosen.split(","):
            continue
        try:
            with hub_errors(f"org/{name}", kind, "pass a local folder"):
                load(f"org/{name}")
        except InputError as error:
            found[f"{name} {library}"] = str(error)
print(json.dumps(found))
"""
LIBRARIES = ("datasets", "transformers", "tokenizer", "snapshot")


OTHER: list[str] = []  # what was asked for beside the repositories


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = ANSWERS | BUSY
        name = next((name for name in sorted(answers, key=len, reverse=True) if f"org/{name}" in self.path), None)
        if name is None:
            OTHER.append(self.path)
            name = "broken"
        status, code, message = answers[name]
        if name == "slow":  # longer than anybody waits
            time.sleep(20)
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(names: list[str], home: Path, libraries: tuple[str, ...] = (), **environment: str) -> dict[str, str]:
    """Load each repository with each library, or those named, in a fresh process; returns the sentences by "name library"."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    environment = {**kept, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", ASK, ",".join(libraries or LIBRARIES), *names]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sentences(hub: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return ask(list(ANSWERS), tmp_path_factory.mktemp("hub"), HF_ENDPOINT=hub)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["gated", "gated-anonymous"])
def test_a_gated_repository_says_where_to_accept_and_how_to_log_in(sentences: dict, name: str, library: str) -> None:
    what = "data set" if library == "datasets" else "model"
    address = "https://huggingface.co/" + ("datasets/" if library == "datasets" else "")
    assert sentences[f"{name} {library}"] == (
        f"the {what} 'org/{name}' cannot be loaded from the Hugging Face hub (it is gated): accept its terms "
        f"at {address}org/{name} and log in with `hf auth login`, or pass a local folder."
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_other_answers_of_the_hub(sentences: dict, library: str) -> None:
    assert "from the Hugging Face hub (it was not found): check the name" in sentences[f"missing {library}"]
    assert "(HTTP 403): try again later, or log in" in sentences[f"refused {library}"]
    assert "(HTTP 400)" in sentences[f"broken {library}"]
    assert "(it has no such revision): choose one of https://huggingface.co/" in sentences[f"revision {library}"]


def test_a_busy_and_a_silent_hub_are_told_apart_from_a_wrong_name(hub: str, tmp_path: Path) -> None:
    limits = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    found = {
        name.split()[0]: said
        for name, said in ask(list(BUSY), tmp_path, ("revision",), HF_ENDPOINT=hub, **limits).items()
    }
    assert (
        "the model 'org/limited' cannot be loaded from the Hugging Face hub (HTTP 429): try again later"
        in found["limited"]
    )
    assert "(HTTP 503): try again later, or log in with `hf auth login`, or pass a local folder" in found["down"]
    assert "(no connection): check the connection, or pass a local" in found["slow"]


def test_offline_mode_is_named(tmp_path: Path) -> None:
    found = ask(["any"], tmp_path, HF_HUB_OFFLINE="1")
    for library in LIBRARIES:
        assert "(it is not in the local cache and HF_HUB_OFFLINE is set): unset it, or pass" in found[f"any {library}"]


def test_no_connection_and_other_troubles_are_told_apart() -> None:
    with pytest.raises(InputError) as caught, hub_errors("a/b", "dataset", "pass --data DIR"):
        raise ConnectionError("Couldn't reach 'a/b' on the Hub")
    assert str(caught.value) == (
        "the data set 'a/b' cannot be loaded from the Hugging Face hub (no connection): check the connection, or pass "
        "--data DIR."
    )
    said = (
        r"'a/b' cannot be loaded from the Hugging Face hub \(OSError: disk {full}\): correct that, or pass a folder\."
    )
    with pytest.raises(InputError, match=said), hub_errors("a/b", "model", "pass a folder"):
        raise OSError("disk {full}\nmore")


def test_errors_that_are_not_of_the_hub_pass_through() -> None:
    with pytest.raises(KeyError), hub_errors("a/b", "model", "pass a folder"):
        raise KeyError("a bug")
    with pytest.raises(InputError), hub_errors("a/b", "model", "pass a folder"):
        raise OSError("gone")
