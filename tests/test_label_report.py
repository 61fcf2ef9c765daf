"""Table and figures of labelled texts: lines that need no model beside every arm, and counts where they belong."""

from __future__ import annotations

import numpy
import pytest

from ctxft.evaluation.benchmarks import Benchmark, Question
from ctxft.evaluation.metrics import calibration, metrics
from ctxft.report import confusion_figure, label_table, reliability_figure
from ctxft.report.record import RunRecord

LABELS = ("causal", "noise")
RIGHT = [0, 1, 1, 1]
BENCHMARK = Benchmark(
    "texts", tuple(Question(str(n), f"Text {n}", LABELS, a, "all") for n, a in enumerate(RIGHT)), "a test"
)


def outcomes(said: list[int]) -> list[dict]:
    return [
        {"id": q.id, "hash": q.hash, "subject": "all", "answer": q.answer, "prediction": p, "correct": p == q.answer}
        | dict.fromkeys(("correct_per_character", "correct_per_token"), p == q.answer)
        | {"truncated": 0, "log_likelihoods": [-3.0 * p, -3.0 * (1 - p)]}
        for q, p in zip(BENCHMARK.questions, said, strict=True)
    ]


@pytest.fixture
def run(tmp_path) -> RunRecord:
    arms = {"base": {0: outcomes([1, 1, 1, 1])}, "cft": {0: outcomes(RIGHT), 1: outcomes([1, 1, 1, 1])}}
    measured = {
        arm: {seed: {"benchmarks": {"texts": metrics(items, BENCHMARK)}} for seed, items in seeds.items()}
        for arm, seeds in arms.items()
    }
    return RunRecord(tmp_path, {}, {}, measured, {"texts": arms}, None)


def test_the_table_sets_the_lines_beside_the_arms(run: RunRecord) -> None:
    table = label_table(run, ["texts"]).set_index("who")
    assert list(table.index) == ["majority", "chance", "base", "cft"] and list(table["seeds"]) == [0, 0, 1, 2]
    # Always "noise": F1 of noise is 2 * 3 / (3 + 4), that of causal 0.
    for who in ("majority", "base"):
        assert list(table.loc[who][["accuracy %", "macro F1 %", "weighted F1 %", "mcc"]]) == [75.0, 42.9, 64.3, 0.0]
    assert table.loc["cft", "accuracy %"] == 87.5 and table.loc["cft", "mcc"] == 0.5
    assert table.loc["chance", "accuracy %"] == 50.0


def test_the_figures_show_the_counts_and_the_error(run: RunRecord) -> None:
    measured = run.metrics_of("texts", "cft")
    table = numpy.sum([one["confusion"] for one in measured], axis=0)
    figure = confusion_figure({"cft": table, "base": [[0, 1], [0, 3]]}, LABELS)
    cells = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert cells == [["1", "1", "0", "6"], ["0", "1", "0", "3"]]
    found = calibration(run.outcomes["texts"]["base"][0])
    (axes,) = reliability_figure({"base": found}).axes
    assert axes.get_title(loc="left") == f"base, ECE {found['ece']:.3f}"
    (x, y), *_ = axes.collections[0].get_offsets()
    assert (x, y) == (pytest.approx(1 / (1 + numpy.exp(-3))), 0.75)
