"""A whole run in processes of its own: computed once, and a worker's trouble reaches the caller."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import yaml
from filelock import FileLock

from ctxft import cli
from ctxft.cli import main
from ctxft.config import to_mapping
from ctxft.run import prepare as preparation
from ctxft.storage import InputError, read_json, read_jsonl, write_text
from tests.runs import ensure_run, prepare, train_all, train_task


def files_of(folder) -> dict[str, int]:
    """Return when each file of a folder was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_two_workers_do_the_whole_run_and_a_second_call_nothing(experiment, runs, capsys):
    config = experiment()
    folder = ensure_run(config, workers=2)
    assert folder == runs / "tiny"
    for arm in ("cpt", "cft"):
        assert read_json(folder / "arms" / arm / "seed-0" / "done.json")["optimizer_steps"] == 3
    for arm in ("base", "cpt", "cft"):
        assert read_json(folder / "evals" / arm / "seed-0" / "metrics.json")["benchmarks"]["own-questions"]["n"] == 6
    logs = [[row for _, row in read_jsonl(folder / "arms" / arm / "seed-0" / "log.jsonl")] for arm in ("cpt", "cft")]
    assert [row["passages"] for row in logs[0]] == [row["passages"] for row in logs[1]]
    before = files_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
        patch.setattr(preparation, "code_revision", lambda: pytest.fail("prepared again"))
        ensure_run(config)
    assert files_of(folder) == before
    assert main(["compare", "tiny", "--out", str(runs / "page" / "own.html")]) == 0
    printed = capsys.readouterr().out
    for text in ("own-questions", "How to read it", "What the tests show", "Loss on held-out text", "report: "):
        assert text in printed
    assert (runs / "page" / "own.html").exists() and (runs / "page" / "figures" / "report-accuracy.png").exists()
    assert main(["compare", "tiny"]) == 0 and files_of(folder) == before  # it only looks


def test_the_sentence_of_a_worker_reaches_the_caller(experiment):
    config = experiment(arms=["cpt"], train={"method": "lora", "lora": {"target_modules": ["no_such_layer"]}})
    with pytest.raises(InputError, match=r"^train\.lora\.target_modules: .*no_such_layer"):
        train_all(config, workers=1)
    assert not (config.folder / "arms" / "cpt" / "seed-0" / "done.json").exists()


def test_a_worker_that_breaks_shows_the_end_of_its_output(experiment, monkeypatch, tmp_path):
    broken = write_text(tmp_path / "python", "#!/bin/sh\necho out of memory >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match=r"^`ctxft train` stopped:\nout of memory$"):
        train_all(experiment(arms=["cpt"]), workers=1)


def test_two_processes_do_not_train_one_task(experiment):
    config = experiment(arms=["cpt"])
    prepare(config)
    lock = config.folder / "arms" / "cpt" / ".seed-0.lock"
    lock.parent.mkdir(parents=True)
    with (
        FileLock(lock),
        pytest.raises(InputError, match=r"another process trains cpt:0 in .*: wait for it to end"),
    ):
        train_task(config, "cpt", 0)
    assert train_task(config, "cpt", 0)["optimizer_steps"] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_stopped_train_stops_its_workers_and_goes_on_later(experiment, tmp_path):
    config = experiment(arms=["cpt"], train={"max_steps": 100_000, "save_steps": 50})
    path = write_text(tmp_path / "long.yaml", yaml.safe_dump(to_mapping(config)))
    parent = subprocess.Popen([sys.executable, "-m", "ctxft", "train", str(path)], stderr=subprocess.PIPE, text=True)
    log = config.folder / "arms" / "cpt" / "seed-0" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 143 and "the same command continues from there" in parent.stderr.read()
    with FileLock(log.parent.parent / ".seed-0.lock", timeout=30):  # the worker is gone, or it would hold the lock
        lines = log.read_text()
        time.sleep(0.5)
        assert lines and log.read_text() == lines


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_nohup_stays_nohup():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        main(["compare", "no-such-run"])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is cli._stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
