"""The whole pipeline with every connection and name look-up beyond this machine refused, kernels and workers included.

Some notebooks, small, by default. The whole course at its defaults:

    CTXFT_OFFLINE=1 python -m pytest -n 0 tests/faults/test_offline.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctxft.course import list_notebooks
from ctxft.storage import REPO_ROOT

GUARD = Path(__file__).with_name("guard")
WHOLE = bool(os.environ.get("CTXFT_OFFLINE"))
SMALL = ["--set", "train.steps=3", "--set", "corpus.limit=12", "--set", "evaluation.limit=8", "--set", "seeds=[4]"]
SMALL += ["--set", "arms=[base,cpt,cft]"]
SOME = ["00_quickstart", "02_domain_text", "13_report"]
PLANTED = {
    "HF_TOKEN": "hf_plantedPlantedPlanted",
    "OPENAI_API_KEY": "sk-planted-planted",
    "CTXFT_KEY": "key-planted-planted",
}
KERNEL = """
import socket, urllib.request
for ask in (
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=2),
    lambda: socket.getaddrinfo("huggingface.co", 443),
    lambda: urllib.request.urlopen("http://example.com", timeout=2),
):
    try:
        ask()
    except OSError as error:
        print("refused:", error)
"""
EXECUTE = """
import sys, nbformat
from pathlib import Path
from ctxft.course import execute
place = Path(sys.argv[1])
cell = nbformat.v4.new_code_cell(sys.argv[2])
nbformat.write(nbformat.v4.new_notebook(cells=[cell]), place / "99_asks.ipynb")
print(execute(place / "99_asks.ipynb", place / "out.ipynb", {}).cells[0].outputs[0].text)
"""


def guarded(command: list[str], place: Path, wall: bool) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run a command below the guard, behind the system's own wall too if there is one; returns what was refused."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    path = os.pathsep.join([str(GUARD), str(REPO_ROOT)])
    environment = {**kept, "PYTHONPATH": path, "CTXFT_GUARD_LOG": str(place / "refused.log"), "TQDM_DISABLE": "1"}
    environment |= PLANTED
    environment |= {"CTXFT_RUNS": str(place / "runs"), "HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1"}
    if wall:
        command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    done = subprocess.run(
        command, env=environment, cwd=place, capture_output=True, text=True, check=False, timeout=3000
    )
    log = place / "refused.log"
    return done, log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def has_wall() -> bool:
    """Return whether a network of its own, with nothing but loopback, can be had for a process."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    probe = ["unshare", "-n", "ip", "link", "set", "lo", "up"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def test_the_guard_refuses_and_writes_down_what_a_kernel_asks(tmp_path):
    done, refused = guarded([sys.executable, "-c", EXECUTE, str(tmp_path), KERNEL], tmp_path, wall=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: ") == 3
    assert (
        len(refused) == 3
        and "192.0.2.1" in refused[0]
        and "huggingface.co" in refused[1]
        and "example.com" in refused[2]
    )


@pytest.mark.parametrize("wall", [False, True], ids=["guard", "guard and wall"])
def test_the_course_asks_nothing_of_another_machine(tmp_path, wall):
    if wall and not has_wall():
        pytest.skip("no network namespace can be made here (unshare -n, ip link)")
    if not wall and has_wall():
        pytest.skip("the run behind the wall has the guard too")
    words = [] if WHOLE else [*SMALL, *(word for name in SOME for word in ("--notebook", name))]
    done, refused = guarded([sys.executable, "-m", "ctxft", "run", "--name", "offline", *words], tmp_path, wall)
    assert done.returncode == 0, done.stderr[-3000:]
    assert refused == [], "a library asked something of another machine"
    names = {path.stem for path in list_notebooks()} if WHOLE else set(SOME)
    assert {path.stem for path in (tmp_path / "runs" / "offline" / "notebooks").glob("*.html")} == names
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(written) > 50
    for secret in PLANTED.values():
        assert not [path for path in written if secret.encode() in path.read_bytes()], "a key was written down"
        assert secret not in done.stdout + done.stderr
    for verb in ("verify", "compare"):
        done, refused = guarded([sys.executable, "-m", "ctxft", verb, "offline"], tmp_path, wall)
        assert done.returncode == 0 and refused == [], done.stderr[-3000:]


def test_the_client_of_the_hub_sends_no_telemetry():
    asked = "import ctxft.hub; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", asked], env=kept, cwd=REPO_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
