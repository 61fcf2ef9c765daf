"""A model behind a server is asked what the arms are asked, answers as it does here, and nothing is paid for twice."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
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

from ctxft.cli import main
from ctxft.config import ExperimentConfig, ServerConfig, load_experiment, to_mapping
from ctxft.evaluation.evaluate import evaluate
from ctxft.evaluation.outcomes import read_outcomes
from ctxft.evaluation.scoring import generate_answers
from ctxft.extras.hosted import evaluate_hosted, hosted_table, plan_of
from ctxft.extras.server import PATIENCE, Server
from ctxft.models import load_model, load_tokenizer
from ctxft.run.run import Run
from ctxft.statistics import wilson
from ctxft.storage import FailedError, InputError, RecordLog, read_json, read_records
from ctxft.world.facts import model_folder

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


def where(stub: TextServer, model: str = "m", **values) -> ServerConfig:
    """A server that fails a request at once."""
    return ServerConfig(url=stub.url, model=model, **{"retries": 0} | values)


def ask(plan, parallel: int = 1) -> dict:
    return evaluate_hosted(plan, Server(plan.server), parallel)


def first_choice(number: int, sent: str, most: int) -> str:
    """Answer with the first of the labels that the request names."""
    return sent.split("nothing else: ")[1].split(";")[0].split("\n")[0]


@pytest.fixture(scope="module")
def local() -> dict[str, list[dict]]:
    """What the model answers on this machine, by the path that the arms take: benchmark -> outcomes of 25 items."""
    model, tokenizer, config = load_model(MODEL), load_tokenizer(MODEL), exam()
    return {
        benchmark.name: evaluate(model, tokenizer, benchmark, config.evaluation.replace(output_type="generate_until"))
        for benchmark in Run(config).benchmarks
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
    plan = plan_of(Run(exam()), ServerConfig(url=url, model=name, retries=0), completions)
    record = ask(plan)
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
        plan = plan_of(Run(exam()), where(stub, "served/aware:1"), completions)
        record = ask(plan, parallel=4)
    same_as_local(plan.folder, record, local)
    assert {path for path, _ in stub.asked} == {"/v1/completions" if completions else "/v1/chat/completions"}
    assert all(body["temperature"] == 0 and body["model"] == "served/aware:1" for _, body in stub.asked)
    assert re.fullmatch("served-aware-1-[0-9a-f]{8}" + "-completions" * completions, plan.folder.name)


# --- what was asked is not asked again --------------------------------------------------------------------------------


def test_a_stopped_run_resumes_and_asks_nothing_twice(runs):
    with TextServer(lambda number, *sent: first_choice(number, *sent) if number != 30 else 401) as stub:
        plan = plan_of(Run(exam()), where(stub))
        due = len(plan.due())
        with pytest.raises(InputError, match="refuses access"):
            ask(plan)
        assert len(stub.asked) == 31 and not (plan.folder / "metrics.json").exists()
        whole = plan.log.read_bytes()
        plan.log.write_bytes(whole + whole.split(b"\n")[1][:40])  # a kill while a line was written
        assert plan.cost()["to ask"] == due - 30
        record = ask(plan)
        assert len(stub.asked) == due + 1 and record["requests"]["requests"] == due - 30
        assert plan.log.read_bytes().startswith(whole) and len(plan.log.read_bytes().splitlines()) == 1 + due
        sent = [json.dumps(body["messages"]) for number, (_, body) in enumerate(stub.asked) if number != 30]
        assert (
            len(sent)
            == len(set(sent))
            == due
            == len({query.text for queries in plan.queries.values() for query in queries})
        )
        again = ask(plan)
    assert len(stub.asked) == due + 1 and again["benchmarks"] == record["benchmarks"]
    assert again["requests"]["requests"] == 0


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_process_asks_only_what_was_under_way_again(command, runs):
    def write(number: int, sent: str, most: int) -> str:
        if number == 12:
            process.kill()
        return first_choice(number, sent, most)

    with TextServer(write) as stub:
        words = [sys.executable, "-m", "ctxft", *command(stub.url, "--yes")]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert process.wait(300) == -signal.SIGKILL
        assert main(command(stub.url, "--yes")) == 0
        asked = [json.dumps(body["messages"]) for _, body in stub.asked]
    assert asked[12] == asked[13] and len(asked) == len(set(asked)) + 1


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_stopped_process_does_not_wait_for_a_server_that_is_silent(command, runs):
    ended = threading.Event()

    def write(number: int, sent: str, most: int) -> str:
        if number == 5:
            process.send_signal(signal.SIGTERM)
            ended.wait()  # replies only after the process has ended
        return first_choice(number, sent, most)

    with TextServer(write) as stub:
        words = [sys.executable, "-m", "ctxft", *command(stub.url, "--yes")]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, **streams)
        message = process.communicate()[1]
        ended.set()
    assert process.returncode == 143 and "Traceback" not in message
    (path,) = runs.glob("exam/hosted/m-*/answers.log")
    assert len(read_records(path)[1]) == 5


def test_another_server_or_wording_is_asked_again_and_old_answers_stay(runs):
    with TextServer(first_choice) as one, TextServer(first_choice) as two:
        for stub in (one, two):
            ask(plan_of(Run(exam(2)), where(stub)))
            assert len(stub.asked) == 8
        lettered = plan_of(Run(exam(2, benchmarks=["practice-mmlu"], form="mcf")), where(one))
        assert len(lettered.due()) == 2 and not plan_of(Run(exam(2)), where(one)).due()


def test_each_server_and_model_has_its_own_folder(runs):
    configs = [
        ServerConfig(url=url, model=model) for url in ("http://one/v1", "http://two/v1") for model in ("org/m", "org-m")
    ]
    folders = {plan_of(Run(exam(1)), config, way).folder for config in configs for way in (False, True)}
    assert len(folders) == 8
    assert all(folder.name.startswith("org-m-") for folder in folders)


def test_outcomes_are_by_id_whatever_the_order_of_the_replies(runs):
    """The first reply of eight arrives last."""
    others = threading.Semaphore(0)

    def write(number: int, sent: str, most: int) -> str:
        if model == "m8" and number == 0:
            for _ in range(7):
                others.acquire()
        others.release()
        return first_choice(number, sent, most)

    results = []
    for parallel in (1, 8):
        model = f"m{parallel}"
        with TextServer(write) as stub:
            plan = plan_of(Run(exam(5)), where(stub, model))
            results.append(ask(plan, parallel)["benchmarks"])
            rows = [read_outcomes(plan.folder / f"{name}.jsonl") for name in BENCHMARKS]
            ids = [question.id for benchmark in plan.run.benchmarks for question in benchmark.questions]
            assert [row["id"] for outcomes in rows for row in outcomes] == ids
            assert all(outcome["prediction"] == 0 for outcomes in rows[:3] for outcome in outcomes)
    assert results[0] == results[1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_thread_that_outlives_an_interrupt_writes_nothing(runs):
    late, replied = threading.Event(), threading.Event()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it

    def write(number: int, sent: str, most: int) -> str:
        if number == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            late.wait()
            replied.set()
        return first_choice(number, sent, most)

    with TextServer(write) as stub:
        plan, before = plan_of(Run(exam(5)), where(stub, timeout=600.0)), set(threading.enumerate())
        due = len(plan.due())
        with pytest.raises(KeyboardInterrupt):
            ask(plan)
        threads = set(threading.enumerate()) - before  # the server's own thread is among these, and ends with its reply
        assert len(plan.due()) == due - 5 and threads
        ask(plan)
        content = plan.log.read_bytes()
        late.set()
        for thread in threads:
            thread.join()
        assert replied.is_set() and len(stub.asked) == due + 1
    assert plan.log.read_bytes() == content and content.count(b"\n") == 1 + due


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_errors_stay_in_the_denominator_are_counted_and_asked_again(runs):
    troubles = {3: 400, 4: 500, 9: 400}

    def write(number: int, sent: str, most: int) -> str | int:
        return troubles.get(number) or ("I cannot say" if number == 1 else first_choice(number, sent, most))

    with TextServer(write) as stub:
        plan = plan_of(Run(exam(10, benchmarks=["practice-fiqa"])), where(stub))
        record = ask(plan)
        found = record["benchmarks"]["practice-fiqa"]
        assert found["n"] == 10 and found["unanswered"] == 4 and found["errors"] == {"request": 2, "server": 1}
        rows = read_outcomes(plan.folder / "practice-fiqa.jsonl")
        assert [row["written"] for row in rows if row["prediction"] is None] == ["I cannot say", "", "", ""]
        assert found["accuracy"] == sum(row["correct"] for row in rows) / 10 and "macro_f1" in found
        table = hosted_table(record).iloc[0]
        assert (table["items"], table["unanswered"], table["of these errors"]) == (10, 4, 3)
        found = ask(plan)["benchmarks"]["practice-fiqa"]
        assert len(stub.asked) == 13 and (found["unanswered"], found["errors"]) == (1, {})


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_server_that_is_gone_ends_the_work_and_what_it_replied_is_kept(runs, parallel):
    def write(number: int, *sent) -> str | int:
        if number < 7:
            return first_choice(number, *sent)
        while len(read_records(plan.log)[1]) < 7:
            time.sleep(0.01)
        return 503

    with TextServer(write) as stub:
        plan = plan_of(Run(exam()), where(stub))
        due = len(plan.due())
        with pytest.raises(
            FailedError, match=rf"{PATIENCE} requests in a row got no reply, .*7 replies are kept.*HTTP 503"
        ):
            ask(plan, parallel)
        assert 7 + PATIENCE <= len(stub.asked) < 7 + PATIENCE + parallel  # those under way end
    assert len(plan.due()) == due - 7 and not (plan.folder / "metrics.json").exists()


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_server_that_refuses_everything_ends_the_work_and_is_no_accuracy(runs, parallel):
    with TextServer(lambda number, sent, most: 400) as stub:
        plan = plan_of(Run(exam(4)), where(stub))
        with pytest.raises(
            FailedError, match=rf"{PATIENCE} requests in a row got no reply, .*0 replies are kept.*HTTP 400, no\b"
        ):
            ask(plan, parallel)
        assert PATIENCE <= len(stub.asked) < PATIENCE + parallel
        few = plan_of(Run(exam(2, benchmarks=["practice-fiqa"])), where(stub))
        with pytest.raises(FailedError, match=r"no question of practice-fiqa was answered: .*HTTP 400, no\b"):
            ask(few)
    assert not list(plan.folder.glob("*.json*"))


def test_after_a_reply_requests_may_be_refused_one_by_one_and_what_had_none_has_no_accuracy(runs):
    with TextServer(lambda number, *sent: first_choice(number, *sent) if number == 0 else 400) as stub:
        plan = plan_of(Run(exam(4)), where(stub))
        with pytest.raises(FailedError, match=f"no question of {BENCHMARKS[1]} was answered: .*HTTP 400"):
            ask(plan)
        assert len(stub.asked) == 16 and len(plan.due()) == 15
        alone = ask(plan_of(Run(exam(4, benchmarks=BENCHMARKS[:1])), where(stub)))["benchmarks"][BENCHMARKS[0]]
    assert alone["errors"] == {"request": 3} and alone["unanswered"] == 3 and "accuracy" in alone
    assert [path.stem for path in plan.folder.glob("practice-*.jsonl")] == [BENCHMARKS[0]]


def test_what_is_refused_before_anything_is_asked(runs):
    with TextServer(first_choice) as stub:
        with pytest.raises(InputError, match="--completions sends plain text"):
            plan_of(Run(exam(apply_chat_template=True)), where(stub), completions=True)
        plan = plan_of(Run(exam()), where(stub))
        with RecordLog(plan.log), pytest.raises(InputError, match=r"another process writes .*answers\.log"):
            ask(plan)
        assert stub.asked == []


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(runs, tmp_path) -> Callable[..., list[str]]:
    path = tmp_path / "exam.yaml"
    path.write_text(yaml.safe_dump(to_mapping(exam(5))))
    return lambda url, *words: ["hosted", str(path), "--server", url, "--model", "m", *words]


def test_the_command_tells_the_cost_first_and_asks_only_when_told_to(command, runs, capsys, monkeypatch):
    plan = plan_of(Run(exam(5)), ServerConfig(url="http://localhost/v1", model="m"))
    texts = [query.text for query in plan.due()]
    read = sum(len(ids) for ids in plan.run.tokenizer(texts, add_special_tokens=False)["input_ids"])
    written = sum(query.max_tokens for query in plan.due())
    prices = ("--price-in", "150", "--price-out", "600")
    with TextServer(first_choice) as stub:
        assert main(command(stub.url, *prices)) == 2
        said = capsys.readouterr()
        assert "nothing was requested: this may cost money, so add --yes" in said.err and stub.asked == []
        assert "items: 20\nto ask: 20\n" in said.out
        assert f"tokens in: {read}\ntokens out at most: {written}\n" in said.out
        assert f"cost at most: {(read * 150 + written * 600) / 1e6}\n" in said.out
        with monkeypatch.context() as terminal:
            terminal.setattr("sys.stdin", Terminal("n\ny\n"))
            assert main(command(stub.url)) == 0 and stub.asked == []
            said = capsys.readouterr().out
            assert "cost at most: unknown" in said and said.endswith("nothing was requested\n")
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
    assert {path.name for path in files} >= {"answers.log", "metrics.json", "practice-mmlu.jsonl"}
    assert not [path for path in files if b"sk-0123456789abcdef" in path.read_bytes()]


def test_a_run_may_be_prepared_after_a_hosted_model_was_asked(experiment, runs):
    config = experiment()
    with TextServer(first_choice) as stub:
        ask(plan_of(Run(config), where(stub)))
    Run(config).prepare()
    (path,) = config.folder.glob("hosted/m-*/metrics.json")
    assert read_json(path)["benchmarks"]["own-questions"]["n"] == 6
