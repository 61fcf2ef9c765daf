"""The soak of tests/soak.py, in a few cycles; in full: ``python tests/soak.py --minutes 30``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ctxft import models
from tests import soak
from tests.runs import evaluate_task, prepare, train_task


def test_a_few_cycles_give_the_same_result_with_the_same_handles():
    script = "from tests.soak import soak; found = soak(0, least=3); print(found['hashes'], len(found['handles']))"
    root = Path(soak.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["1", "1"]


def test_growth_handles_and_other_results_are_problems():
    fine = {"growth": 0.001, "handles": [12], "hashes": 1}
    assert soak.problems(fine) == []
    assert len(soak.problems({"growth": 0.03, "handles": [12, 13], "hashes": 2})) == 3


def test_a_process_reads_the_tokenizer_once(experiment, monkeypatch):
    config = experiment()
    prepare(config)
    # where every way of loading ends, whatever name a module imported
    refuse = lambda *_, **__: pytest.fail("each one read keeps its memory")  # noqa: E731
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", refuse)
    prepare(config)
    train_task(config, "cft", 0)
    evaluate_task(config, "cft", 0)
