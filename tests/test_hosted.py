"""A model behind a server is asked what the arms are asked, answers as it does here, and nothing is paid for twice."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from ctxft.cli import main
from ctxft.config import ExperimentConfig, ServerConfig, load_experiment, to_mapping
from ctxft.evaluation.evaluate import evaluate
from ctxft.evaluation.outcomes import read_outcomes
from ctxft.evaluation.scoring import generate_answers
from ctxft.extras.hosted import PATIENCE, ask_all, hosted_table, plan_of
from ctxft.extras.server import Reply, Server, ServerError
from ctxft.extras.server.answers import Answers
from ctxft.models import load_model, load_tokenizer
from ctxft.run.run import Run
from ctxft.statistics import wilson
from ctxft.storage import FailedError, InputError, read_json
from ctxft.world.facts import model_folder
from tests.runs import load_benchmarks, prepare

MODEL = "practice-aware"
BENCHMARKS = ["practice-fiqa", "practice-causal20", "practice-multifin", "practice-mmlu"]
SERVING = [name for name in ("fastapi", "openai", "pydantic", "uvicorn") if importlib.util.find_spec(name) is None]


class TextServer:
    """An OpenAI-compatible server, up while the block runs, that writes what a function says.

    Args:
        write: (number of the request from 0, text that was sent, tokens at most) -> what is written, or an HTTP status.
    """

    def __init__(self, write: Callable[[int, str, int], str | int]) -> None:
        self.write, self.lock = write, threading.Lock()
        self.asked: list[tuple[str, dict]] = []
        handler = type("Handler", (_Handler,), {"texts": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> TextServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    texts: TextServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.texts.lock:
            number = len(self.texts.asked)
            self.texts.asked.append((self.path, body | {"authorization": self.headers["Authorization"]}))
        sent = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        found = self.texts.write(number, sent, body["max_tokens"])
        text = found if isinstance(found, str) else ""
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        value = {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}
        content = json.dumps(value if isinstance(found, str) else {"error": "no"}).encode()
        self.send_response(200 if isinstance(found, str) else found)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""


def exam(limit: int = 25, **evaluation) -> ExperimentConfig:
    options = {"benchmarks": BENCHMARKS, "limit": limit, "output_type": "generate_until"} | evaluation
    return load_experiment("mini", {"name": "exam", "model": MODEL, "evaluation": options})


def patient(config: ServerConfig) -> Server:
    """A server that is asked again at once."""
    return Server(config, sleep=lambda seconds: None)


def first_choice(number: int, sent: str, most: int) -> str:
    """Answer with the first of the labels that the request names."""
    return sent.split("nothing else: ")[1].split(";")[0].split("\n")[0]


@pytest.fixture(scope="module")
def local() -> dict[str, list[dict]]:
    """What the model answers on this machine, by the path that the arms take: benchmark -> outcomes of 25 items."""
    model, tokenizer, config = load_model(MODEL), load_tokenizer(MODEL), exam()
    return {
        benchmark.name: evaluate(model, tokenizer, benchmark, config.evaluation.form, output_type="generate_until")
        for benchmark in load_benchmarks(config)
    }


def same_as_local(folder: Path, record: dict, local: dict[str, list[dict]]) -> None:
    """Every outcome is the local one, in all its fields; and the answers differ enough for that to say something."""
    found = {name: read_outcomes(folder / f"{name}.jsonl") for name in BENCHMARKS}
    assert found == local
    assert sum(map(len, found.values())) == 100
    said = [(name, outcome["prediction"]) for name, outcomes in found.items() for outcome in outcomes]
    assert len(set(said)) > 12 and sum(prediction is not None for _, prediction in said) > 70
    for name, measured in record["benchmarks"].items():
        right = sum(outcome["correct"] for outcome in local[name])
        assert measured["accuracy"] == right / 25 and measured["interval"] == wilson(right, 25)
        assert measured["unanswered"] == sum(outcome["prediction"] is None for outcome in local[name])


# --- the same answers as on this machine ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> tuple[str, str]:
    """``transformers serve`` on this machine, offline: its base URL, and the model's name, a copy of the practice model.

    The copy has a chat template that is nothing but the text of the message, so a chat reads the plain text.
    """
    folder = Path(shutil.copytree(model_folder(MODEL), tmp_path_factory.mktemp("served") / "model"))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(folder.parent / "log.txt", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder.parent / "log.txt").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(bool(SERVING), reason=f"transformers serve needs {', '.join(SERVING)}")
@pytest.mark.parametrize("completions", [True, False])
def test_transformers_serve_predicts_what_the_local_path_does(served, runs, local, completions):
    url, name = served
    config = ServerConfig(url=url, model=name, retries=0)
    plan = plan_of(Run(exam()), config, completions)
    record = ask_all(plan, Server(config))
    same_as_local(plan.folder, record, local)
    assert record["endpoint"] == ("completions" if completions else "chat")
    assert (record["requests"]["requests"], record["requests"]["replies"]) == (100, 100)
    assert record["requests"]["tokens_in"] > 100 and record["requests"]["unmetered"] == 0


@pytest.mark.parametrize("completions", [True, False])
def test_a_server_of_the_same_model_predicts_what_the_local_path_does(runs, local, completions):
    model, tokenizer, turn = load_model(MODEL), load_tokenizer(MODEL), threading.Lock()

    def write(number: int, sent: str, most: int) -> str:
        with turn:
            return generate_answers(model, tokenizer, [sent], most)[0].text

    with TextServer(write) as stub:
        config = ServerConfig(url=stub.url, model="served/aware:1", retries=0)
        plan = plan_of(Run(exam()), config, completions)
        record = ask_all(plan, Server(config), parallel=4)
    same_as_local(plan.folder, record, local)
    assert {path for path, _ in stub.asked} == {"/v1/completions" if completions else "/v1/chat/completions"}
    assert all(body["temperature"] == 0 and body["model"] == "served/aware:1" for _, body in stub.asked)
    assert re.fullmatch("served-aware-1-[0-9a-f]{8}" + "-completions" * completions, plan.folder.name)


# --- what was asked is not asked again --------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_and_asks_nothing_twice(runs):
    with TextServer(lambda number, *sent: first_choice(number, *sent) if number != 30 else 401) as stub:
        config = ServerConfig(url=stub.url, model="m")
        plan = plan_of(Run(exam()), config)
        with pytest.raises(InputError, match="refuses access"):
            ask_all(plan, patient(config))
        assert len(stub.asked) == 31 and not (plan.folder / "metrics.json").exists()
        path = plan.folder / "answers.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole + whole.split(b"\n")[0][:40])  # a kill while a line was written
        assert plan.cost()["answered"] == 30
        record = ask_all(plan, patient(config))
        assert len(stub.asked) == 101 and record["requests"]["requests"] == 70
        assert path.read_bytes().startswith(whole) and len(path.read_text().splitlines()) == 100
        sent = [json.dumps(body["messages"]) for number, (_, body) in enumerate(stub.asked) if number != 30]
        assert len(sent) == 100 and len(set(sent)) == len({request.context for request in plan.requests})
        again = ask_all(plan, patient(config))
    assert len(stub.asked) == 101 and again["benchmarks"] == record["benchmarks"]
    assert again["requests"]["requests"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_process_asks_only_what_was_under_way_again(command, runs):
    def write(number: int, sent: str, most: int) -> str:
        if number == 12:
            process.kill()
        return first_choice(number, sent, most)

    with TextServer(write) as stub:
        words = [sys.executable, "-m", "ctxft", *command(stub.url, "--yes")]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert process.wait(120) == -signal.SIGKILL
        assert main(command(stub.url, "--yes")) == 0
        asked = [json.dumps(body["messages"]) for _, body in stub.asked]
    assert asked[12] == asked[13] and len(asked) == 21 and len(set(asked)) == 20


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_does_not_wait_for_a_slow_server(command, runs):
    closing = threading.Event()

    def write(number: int, sent: str, most: int) -> str:
        if number == 5:
            process.send_signal(signal.SIGINT)
            closing.wait(60)
        return first_choice(number, sent, most)

    with TextServer(write) as stub:
        words = [sys.executable, "-m", "ctxft", *command(stub.url, "--yes")]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = process.communicate(timeout=50)[1]
        closing.set()
    assert process.returncode == 130 and "goes on from there" in said and "Traceback" not in said
    (path,) = runs.glob("exam/hosted/m-*/answers.jsonl")
    assert len(path.read_text().splitlines()) == 5


def test_another_server_or_wording_is_asked_anew_and_old_answers_stay(runs):
    with TextServer(first_choice) as one, TextServer(first_choice) as two:
        for stub in (one, two):
            config = ServerConfig(url=stub.url, model="m")
            ask_all(plan_of(Run(exam(2)), config), patient(config))
            assert len(stub.asked) == 8
        config = ServerConfig(url=one.url, model="m")
        shots = plan_of(Run(exam(2, benchmarks=["practice-mmlu"], form="mcf")), config)
        assert len(shots.due()) == 2 and not plan_of(Run(exam(2)), config).due()


def test_each_server_and_model_has_a_folder_of_its_own(runs):
    asked = [(url, model) for url in ("http://one/v1", "http://two/v1") for model in ("org/m", "org-m")]
    folders = {plan_of(Run(exam(1)), ServerConfig(*where), way).folder for where in asked for way in (False, True)}
    assert len(folders) == 8
    assert all(folder.name.startswith("org-m-") for folder in folders)


def test_outcomes_are_by_id_whatever_the_order_of_the_replies(runs):
    waits = random.Random(0)

    def write(number: int, sent: str, most: int) -> str:
        time.sleep(waits.random() / 20)
        return first_choice(number, sent, most)

    found = []
    for parallel in (1, 8):
        with TextServer(write) as stub:
            config = ServerConfig(url=stub.url, model=f"m{parallel}")
            plan = plan_of(Run(exam(5)), config)
            found.append(ask_all(plan, patient(config), parallel)["benchmarks"])
            rows = [read_outcomes(plan.folder / f"{name}.jsonl") for name in BENCHMARKS]
            assert [row["id"] for outcomes in rows for row in outcomes] == [r.question.id for r in plan.requests]
            assert all(outcome["prediction"] == 0 for outcomes in rows[:3] for outcome in outcomes)
    assert found[0] == found[1]


def test_answers_survive_and_bad_lines_are_told(tmp_path):
    half = json.loads('"\\ud83d"')  # half of a character that takes two
    with Answers(tmp_path / "a" / "answers.jsonl") as answers:
        answers.add("one", "k", Reply(half, None, 3, True))
        answers.add("two", "k", Reply("B", 5, 1))
    again = Answers(answers.path)
    assert again.get("one", "k") == Reply(half, None, 3, True) and again.get("one", "other") is None and len(again) == 2
    for line, said in (("{}", "line 3: not a reply"), ("[1]", "line 3: not a reply"), ("{", "line 3: invalid JSON")):
        other = tmp_path / "other.jsonl"
        other.write_bytes(answers.path.read_bytes() + line.encode() + b"\n")
        with pytest.raises(InputError, match=said):
            Answers(other)


def test_no_handle_cuts_what_another_wrote_and_a_closed_one_writes_nothing(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "half')
    assert len(Answers(path)) == 0 and path.read_text()  # who only reads changes nothing
    with Answers(path) as first, Answers(path) as second:
        second.add("one", "k", Reply("A", 5, 1))
        first.add("two", "k", Reply("B", 5, 1))
    first.add("three", "k", Reply("C", 5, 1))
    again = Answers(path)
    assert [again.get(id, "k") for id in ("one", "two", "three")] == [Reply("A", 5, 1), Reply("B", 5, 1), None]
    assert first.late == 1 and len(first) == 1 and second.late == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_thread_that_outlives_an_interrupt_loses_no_answer(runs):
    closing = threading.Event()

    def write(number: int, sent: str, most: int) -> str:
        if number == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            closing.wait(60)
        return first_choice(number, sent, most)

    with TextServer(write) as stub:
        config = ServerConfig(url=stub.url, model="m")
        plan, before = plan_of(Run(exam(5)), config), set(threading.enumerate())
        with pytest.raises(KeyboardInterrupt):
            ask_all(plan, patient(config))
        # The server's own thread is among these, and ends with its reply.
        late = set(threading.enumerate()) - before
        assert len(plan.due()) == 15 and late
        ask_all(plan, patient(config))
        content = (plan.folder / "answers.jsonl").read_bytes()
        closing.set()
        for thread in late:
            thread.join(60)
        assert not any(thread.is_alive() for thread in late) and len(stub.asked) == 21
    assert (plan.folder / "answers.jsonl").read_bytes() == content and content.count(b"\n") == 20


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_errors_stay_in_the_denominator_are_counted_and_asked_again(runs):
    troubles = {3: 400, 4: 500, 9: 400}

    def write(number: int, sent: str, most: int) -> str | int:
        return troubles.get(number) or ("I cannot say" if number == 1 else first_choice(number, sent, most))

    with TextServer(write) as stub:
        config = ServerConfig(url=stub.url, model="m", retries=0)
        plan = plan_of(Run(exam(10, benchmarks=["practice-fiqa"])), config)
        record = ask_all(plan, patient(config))
        found = record["benchmarks"]["practice-fiqa"]
        assert found["n"] == 10 and found["unanswered"] == 4 and found["errors"] == {"request": 2, "server": 1}
        rows = read_outcomes(plan.folder / "practice-fiqa.jsonl")
        assert [row["written"] for row in rows if row["prediction"] is None] == ["I cannot say", "", "", ""]
        assert found["accuracy"] == sum(row["correct"] for row in rows) / 10 and "macro_f1" in found
        table = hosted_table(record).iloc[0]
        assert (table["items"], table["unanswered"], table["of these errors"]) == (10, 4, 3)
        found = ask_all(plan, patient(config))["benchmarks"]["practice-fiqa"]
        assert len(stub.asked) == 13 and (found["unanswered"], found["errors"]) == (1, {})


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_server_that_is_gone_ends_the_work_and_what_it_said_is_kept(runs, parallel):
    with TextServer(lambda number, *sent: first_choice(number, *sent) if number < 7 else 503) as stub:
        config = ServerConfig(url=stub.url, model="m", retries=0)
        plan = plan_of(Run(exam()), config)
        with pytest.raises(
            FailedError, match=rf"no reply to {PATIENCE} requests in a row \(server\): 7 answers are kept"
        ):
            ask_all(plan, patient(config), parallel)
        assert 7 + PATIENCE <= len(stub.asked) < 7 + PATIENCE + parallel  # those under way end
    assert len(plan.due()) == 93 and not (plan.folder / "metrics.json").exists()


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_server_that_refuses_everything_ends_the_work_and_is_no_accuracy(runs, parallel):
    with TextServer(lambda number, sent, most: 400) as stub:
        config = ServerConfig(url=stub.url, model="m")
        plan = plan_of(Run(exam(4)), config)
        with pytest.raises(FailedError, match=rf"{PATIENCE} requests were refused before any reply.*HTTP 400, no\b"):
            ask_all(plan, patient(config), parallel)
        assert PATIENCE <= len(stub.asked) < PATIENCE + parallel
        few = plan_of(Run(exam(2, benchmarks=["practice-fiqa"])), config)
        with pytest.raises(FailedError, match=r"nothing was answered, so there is no accuracy: .*HTTP 400, no\b"):
            ask_all(few, patient(config))
    assert not list(plan.folder.glob("*.json*"))


def test_after_a_reply_requests_may_be_refused_one_by_one_and_what_had_none_has_no_accuracy(runs):
    with TextServer(lambda number, *sent: first_choice(number, *sent) if number == 0 else 400) as stub:
        config = ServerConfig(url=stub.url, model="m")
        plan = plan_of(Run(exam(4)), config)
        record = ask_all(plan, patient(config))
        assert len(stub.asked) == 16
    first, *others = record["benchmarks"].values()
    assert first["errors"] == {"request": 3} and first["unanswered"] == 3 and "accuracy" in first
    for found in others:
        assert found["errors"] == {"request": 4} and found["n"] == found["unanswered"] == 4
        assert not {"accuracy", "interval", "macro_f1"} & set(found)
    assert [path.stem for path in plan.folder.glob("practice-*.jsonl")] == [BENCHMARKS[0]]
    table = hosted_table(record)
    assert (
        list(table["accuracy %"][1:]) == list(table["95 % interval"][1:]) == ["-"] * 3 and table["accuracy %"][0] != "-"
    )


def test_what_is_refused_before_anything_is_asked(runs):
    with TextServer(first_choice) as stub:
        config = ServerConfig(url=stub.url, model="m")
        with pytest.raises(InputError, match="--completions sends plain text"):
            plan_of(Run(exam(chat_template=True)), config, completions=True)
        plan = plan_of(Run(exam()), config)
        with pytest.raises(InputError, match="--parallel must be at least 1"):
            ask_all(plan, patient(config), parallel=0)
        plan.folder.mkdir(parents=True)
        with FileLock(plan.folder / ".lock"), pytest.raises(InputError, match="another process asks for"):
            ask_all(plan, patient(config))
        assert stub.asked == []


# --- completions of a plain text --------------------------------------------------------------------------------------


def test_what_a_completion_sends_and_returns(monkeypatch):
    monkeypatch.setenv("STUB_KEY", "sk-0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    with TextServer(lambda number, sent, most: f"{sent}!") as stub:
        server = Server(
            ServerConfig(url=stub.url + "/", model="m", key_variable="STUB_KEY", price_in=1.0, price_out=2.0)
        )
        assert server.complete("Go", 5, stop=["\n"]) == Reply("Go!", 10, 2)
        Server(ServerConfig(url=stub.url, model="m")).complete("Go", 5)
    body = {"model": "m", "prompt": "Go", "max_tokens": 5, "temperature": 0, "seed": 0}
    assert stub.asked == [
        ("/v1/completions", body | {"stop": ["\n"], "authorization": "Bearer sk-0123456789abcdef"}),
        ("/v1/completions", body | {"authorization": "Bearer none"}),
    ]
    assert server.cost() == pytest.approx(14e-6)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"[1]", "protocol"),
        (b"{}", "protocol"),
        (b'{"choices": []}', "protocol"),
        (b'{"choices": ["B"]}', "protocol"),
        (b'{"choices": [{"text": 7}]}', "protocol"),
        (b'{"choices": [{"text": "B"}], "usage": 7}', "protocol"),
        (b'{"choi', "protocol"),
        (None, "timeout"),
    ],
)
def test_a_completion_of_another_shape_is_a_trouble_of_the_server(content, kind):
    closing = threading.Event()

    class Odd(_Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if content is None:
                closing.wait(20)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with TextServer(first_choice) as stub:
        stub.server.RequestHandlerClass = Odd
        server = Server(ServerConfig(url=stub.url, model="m", timeout=0.3, retries=1), sleep=lambda seconds: None)
        with pytest.raises(ServerError) as caught:
            server.complete("Go", 5)
        closing.set()
    assert caught.value.kind == kind and server.counts.errors == {kind: 2}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(runs, tmp_path) -> Callable[..., list[str]]:
    path = tmp_path / "exam.yaml"
    path.write_text(yaml.safe_dump(to_mapping(exam(5))))
    return lambda url, *words: ["hosted", str(path), "--server", url, "--model", "m", *words]


def test_the_command_tells_the_cost_first_and_asks_only_when_told_to(command, runs, capsys, monkeypatch):
    plan = plan_of(Run(exam(5)), ServerConfig(url="http://localhost/v1", model="m"))
    read = sum(-(-len(request.context) // 4) + 16 for request in plan.requests)
    written = sum(request.max_tokens for request in plan.requests)
    prices = ("--price-in", "150", "--price-out", "600")
    with TextServer(first_choice) as stub:
        assert main(command(stub.url, *prices)) == 2
        said = capsys.readouterr()
        assert "nothing was asked: this may cost money, so add --yes" in said.err and stub.asked == []
        assert f"20 items, 0 of them answered already, 20 to ask of {stub.url}" in said.out
        assert f"tokens in: about {read} (estimated: a token for 4 characters); out: {written} at most" in said.out
        assert f"price: {(read * 150 + written * 600) / 1e6:.4f}" in said.out
        with monkeypatch.context() as terminal:
            terminal.setattr("sys.stdin", Terminal("n\ny\n"))
            assert main(command(stub.url)) == 0 and stub.asked == []
            said = capsys.readouterr().out
            assert "price: unknown" in said and said.endswith("nothing was asked\n")
            assert main(command(stub.url)) == 0 and len(stub.asked) == 20
        assert main(command(stub.url, "--completions", "--yes")) == 0 and len(stub.asked) == 40
        capsys.readouterr()
        # Nothing is left to agree to.
        assert main([*command(stub.url), "--parallel", "2"]) == 0 and len(stub.asked) == 40
    said = capsys.readouterr().out
    assert "0 requests, 0 tokens in" in said
    rows = [line.split()[:2] for line in said.splitlines()]
    assert [row for row in rows if row and row[0] in BENCHMARKS] == [[name, "5"] for name in BENCHMARKS]


class Terminal:
    """A terminal at which lines are typed."""

    def __init__(self, typed: str) -> None:
        self.lines = typed.splitlines(keepends=True)

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.lines.pop(0)


def test_the_key_reaches_no_file_and_an_unset_one_is_told(command, runs, capsys, monkeypatch):
    with TextServer(first_choice) as stub:
        assert main(command(stub.url, "--yes", "--key-variable", "STUB_KEY")) == 2
        assert "STUB_KEY is not set" in capsys.readouterr().err and not runs.exists()
        monkeypatch.setenv("STUB_KEY", "sk-0123456789abcdef")
        assert main(command(stub.url, "--yes", "--key-variable", "STUB_KEY")) == 0
        assert stub.asked[0][1]["authorization"] == "Bearer sk-0123456789abcdef"
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"answers.jsonl", "metrics.json", "practice-mmlu.jsonl"}
    assert not [path for path in files if b"sk-0123456789abcdef" in path.read_bytes()]


def test_a_run_may_be_prepared_after_a_hosted_model_was_asked(experiment, runs):
    config = experiment()
    with TextServer(first_choice) as stub:
        where = ServerConfig(url=stub.url, model="m")
        ask_all(plan_of(Run(config), where), patient(where))
    prepare(config)
    (path,) = config.folder.glob("hosted/m-*/metrics.json")
    assert read_json(path)["benchmarks"]["own-questions"]["n"] == 6
