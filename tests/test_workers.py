"""A whole run in processes of its own: computed once, and a worker's trouble reaches the caller."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ctxft.cli import main
from ctxft.experiment import prepare as preparation
from ctxft.experiment.workers import ensure_run, train_all
from ctxft.runtime import InputError, read_json, read_jsonl, write_text


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
    assert main(["compare", "tiny"]) == 0 and "own-questions" in capsys.readouterr().out
    assert (folder / "report.html").exists()


def test_the_sentence_of_a_worker_reaches_the_caller(experiment):
    config = experiment(arms=["cpt"], train={"method": "lora", "lora": {"targets": ["no_such_layer"]}})
    with pytest.raises(InputError, match=r"^train\.lora\.targets: .*no_such_layer"):
        train_all(config, workers=1)
    assert not (config.folder / "arms" / "cpt" / "seed-0" / "done.json").exists()


def test_a_worker_that_breaks_shows_the_end_of_its_output(experiment, monkeypatch, tmp_path):
    broken = write_text(tmp_path / "python", "#!/bin/sh\necho out of memory >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match=r"^`ctxft train` stopped:\nout of memory$"):
        train_all(experiment(arms=["cpt"]), workers=1)
