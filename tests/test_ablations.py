"""Which family matters: arms of one family against a reference, tables by hand, and figures that show what the tables say."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pandas
import pytest
from matplotlib.colors import same_color

from ctxft.extras.attribution import (
    family_table,
    gradient_table,
    prompt_changes,
    prompt_figure,
    prompt_table,
)
from ctxft.prompts import load_prompt_set
from ctxft.report import RunRecord, ablation_figure, ablation_rows, ablation_table, arm_color, read_run, write_report
from ctxft.statistics import cluster_interval, compare, holm, mcnemar
from ctxft.storage import InputError
from tests.runs import evaluate_task, prepare, train_task


def outcomes(right: str) -> list[dict]:
    """An outcome per letter: x is right."""
    return [
        {"id": f"q{n}", "hash": f"h{n}", "subject": "all", "answer": 0, "correct": letter == "x"}
        for n, letter in enumerate(right)
    ]


def record(arms: dict[str, list[str]], **more: dict[str, list[str]]) -> RunRecord:
    """A run that is read, of arm -> the answers of each seed."""
    found = {
        name: {arm: dict(enumerate(map(outcomes, seeds))) for arm, seeds in given.items()}
        for name, given in {"exam": arms, **more}.items()
    }
    return RunRecord(Path("runs/parts"), {"name": "parts"}, {}, {}, found, pandas.DataFrame())


PARTS = {
    "base": ["----------"],
    "neg": ["x---------"],
    "cpt": ["xx-x-x----"],
    "adaptive": ["xxxxxxxxxx"],
    "cft": ["xxxxxx----"],
    "count-10": ["xxxxxx--x-"],
    "count-2": ["xxxxx-----"],
    "without-key-concepts": ["xxxxx--xxx"],
    "control-shuffled": ["xxx---xxx-"],
    "only-application": ["xxxxxxxxx-"],
    "only-key-concepts": ["xxxxxxx---"],
    "cpt-ift": ["xxxxxxxx--"],
    "cft-ift": ["xxxxxx----"],
    "only-application-ift": ["xxxxxxxx--"],
}


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_rows_stand_in_order_and_other_arms_cost_no_power():
    table = ablation_table(record(PARTS), "cft")
    assert list(table["arm"]) == [
        *("only-application", "only-key-concepts", "without-key-concepts"),
        *("count-2", "count-10", "cpt", "cft", "neg", "control-shuffled"),
    ]
    assert list(table["family"][:5]) == ["application", "key-concepts", "key-concepts", "2", "10"]
    assert list(table["kind"][:5]) == ["only", "only", "without", "count", "count"] and set(table["kind"][5:]) == {""}
    rows = ablation_rows(record(PARTS), "cft")["exam"]
    compared = [row for row in rows if row["arm"] != "cft"]
    assert [row["family"] for row in compared] == [8] * 8
    assert [row["holm"] for row in compared] == holm([row["p"] for row in compared])
    tuned = ablation_table(record(PARTS), "cft-ift")
    assert list(tuned["arm"]) == ["only-application-ift", "cpt-ift", "cft-ift"]
    assert tuned["minus cft-ift"][0] == "+20.0"


def test_a_row_by_hand():
    row = ablation_rows(record(PARTS), "cft")["exam"][2]
    assert row["arm"] == "without-key-concepts"  # right on three that cft has wrong, wrong on one that it has right
    mean, square = 2 / 12, (4 + 1) / 12
    half = 1.959964 * math.sqrt((square - mean**2) / 12)
    assert row["difference"] == pytest.approx(20)
    assert row["difference_low"] == pytest.approx(100 * (mean - half), abs=1e-4)
    assert row["difference_high"] == pytest.approx(100 * (mean + half), abs=1e-4)
    assert row["p"] == mcnemar(3, 1) == 0.625 and row["accuracy"] == 0.8


def test_rows_of_several_seeds_are_those_of_compare():
    seeds = {
        "cft": ["xxxxxx----", "xxxxx-----"],
        "neg": ["xxx-------", "x-x-x-x---"],
        "only-application": ["x" * 10] * 2,
    }
    rows = {row["arm"]: row for row in ablation_rows(record(seeds), "cft")["exam"]}
    expected = compare(record({"cft": seeds["cft"], "neg": seeds["neg"]}).outcomes["exam"], "cft")
    for row in expected:
        both = {key: (rows[row["arm"]][key], value) for key, value in row.items()}
        assert all(a == b or (a != a and b != b) for a, b in both.values()), both


def test_several_benchmarks_are_one_family_and_those_without_parts_are_left_out():
    run = record(PARTS, second=PARTS, plain={"cft": PARTS["cft"], "cpt": PARTS["cpt"]})
    assert list(ablation_rows(run, "cft")) == list(ablation_rows(run, "cft-ift")) == ["exam", "second"]
    table = ablation_table(run, "cft")
    assert set(table["benchmark"]) == {"exam", "second"}
    assert {row["family"] for rows in ablation_rows(run, "cft").values() for row in rows if row["arm"] != "cft"} == {16}
    assert len(ablation_table(run, "cft", "second")) == 9


def test_what_cannot_be_compared_is_refused():
    run = record(PARTS, second=PARTS, plain={"cft": PARTS["cft"], "cpt": PARTS["cpt"]})
    with pytest.raises(InputError, match=r"one benchmark with arms such as only-<family>.* found none: train"):
        ablation_figure(run, "cft", "plain")
    with pytest.raises(InputError, match=r"unknown benchmark in runs/parts: 'exams' \(did you mean 'exam'\?\)"):
        ablation_table(run, "cft", "exams")
    with pytest.raises(InputError, match=r"unknown reference arm .*'control'"):
        ablation_table(run, "control")
    with pytest.raises(InputError, match=r"the figure shows one benchmark .* found exam, second: name one"):
        ablation_figure(run, "cft")


def marks(axes) -> list:
    return [line for line in axes.lines if line.get_marker() not in ("None", "")]


def test_the_figure_shows_every_arm_where_the_table_has_it():
    run = record(PARTS)
    figure = ablation_figure(run, "cft", "exam")
    (axes,) = figure.axes
    rows = [row for row in ablation_rows(run, "cft")["exam"] if row["arm"] != "cft"]
    shown = [(line.get_xdata()[0], line.get_marker()) for line in marks(axes)]
    assert sorted(x for x, _ in shown) == pytest.approx(sorted(row["difference"] for row in rows))
    assert [marker for _, marker in shown].count("o") == 2 and [marker for _, marker in shown].count("s") == 1
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["control-shuffled", "neg", "cpt", "count-10", "count-2", "key-concepts", "application"]
    assert "accuracy minus cft (pp)" in axes.get_xlabel()
    neg = next(line for line in marks(axes) if line.get_xdata()[0] == pytest.approx(-50))
    assert same_color(neg.get_color(), arm_color("neg"))
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["this family only", "all families but this", "open: not shown after Holm"]


def test_marks_are_full_where_the_difference_stands_after_holm():
    arms = {
        "cft": ["x" * 20 + "-" * 40],
        "only-application": ["x" * 40 + "-" * 20],
        "only-context": ["x" * 21 + "-" * 39],
    }
    (axes,) = ablation_figure(record(arms), "cft").axes
    faces = {round(line.get_xdata()[0], 1): line.get_markerfacecolor() for line in marks(axes)}
    assert faces == {33.3: arm_color("only-context"), 1.7: "white"}


def test_marks_of_a_family_do_not_lie_on_each_other_and_the_legend_lies_below():
    arms = {"cft": ["xx--"]} | {f"{kind}-{name}": ["xx--"] for kind in ("only", "without") for name in "abcd"}
    figure = ablation_figure(record(arms), "cft")
    figure.draw_without_rendering()
    heights = sorted(line.get_ydata()[0] for line in marks(figure.axes[0]))
    assert min(b - a for a, b in pairwise(heights)) > 0.3
    plot, legend = figure.axes[0].get_tightbbox(), figure.legends[0].get_window_extent()
    assert legend.y1 <= plot.y0 + 1 and legend.x0 >= 0 and legend.x1 <= figure.bbox.width


# --- intervals over documents -----------------------------------------------------------------------------------------


def test_a_cluster_interval_by_hand():
    """Documents a, b, c add 20 of 30, 120 of 30 and 90 of 30 tokens: of equal size, so it is the t interval of 2/3, 4, 3."""
    found = cluster_interval([10, 10, 60, 60, 90], [10, 20, 20, 10, 30], ["a", "a", "b", "b", "c"])
    means = [20 / 30, 120 / 30, 90 / 30]
    mean = sum(means) / 3
    half = 4.302653 * math.sqrt(sum((x - mean) ** 2 for x in means) / 2 / 3)
    assert found == pytest.approx((mean, mean - half, mean + half), rel=1e-6)
    sums, sizes = [20, 150], [30, 60]  # of unequal size: what each adds to the error of the ratio
    found = cluster_interval([10, 10, 60, 90], [10, 20, 30, 30], ["a", "a", "b", "b"])
    ratio = 170 / 90
    error = math.sqrt(2 * sum((s - ratio * n) ** 2 for s, n in zip(sums, sizes, strict=True))) / 90
    assert found == pytest.approx((ratio, ratio - 12.7062 * error, ratio + 12.7062 * error), rel=1e-5)


def test_a_cluster_interval_does_not_narrow_when_a_passage_is_cut_in_two():
    whole = cluster_interval([3.0, 8.0, 4.0], [2, 4, 4], ["a", "b", "c"])
    parts = cluster_interval([1.0, 2.0, 5.0, 3.0, 4.0], [1, 1, 3, 1, 4], ["a", "a", "b", "b", "c"])
    assert parts == pytest.approx(whole)
    value, low, high = cluster_interval([1.0, 2.0], [1, 1], ["a", "a"])
    assert value == 1.5 and math.isnan(low) and math.isnan(high)
    for bad in (([], [], []), ([1.0], [0], ["a"]), ([1.0, 2.0], [1, 1], ["a"])):
        with pytest.raises(InputError, match="needs at least one token or seed, and as many sums as counts and groups"):
            cluster_interval(*bad)


# --- loss and gradient ------------------------------------------------------------------------------------------------


@pytest.fixture
def attribution() -> dict:
    """What ``attribute`` returns, with made-up numbers: two passages of one document each, and of 10 tokens."""
    rows = []
    for kind, change in (("strategy", -0.05), ("negative", 0.02)):
        for n, prompt in enumerate(load_prompt_set({"strategy": "strategies"}.get(kind, kind)).prompts):
            rows.append((prompt.id, prompt.family, kind, 20 + n % 2, change + 0.001 * n, 0.03))
    rows += [(f"control-{tokens}", "control", "control", tokens, 0.03, None) for tokens in (20, 21)]
    columns = ["prompt", "family", "kind", "tokens", "passage", "document", "targets", "loss", "none", "control"]
    losses = [
        (*names, n, f"d{n}", 10, 20 + 10 * change + bend, 20.0, None if control is None else 20 + 10 * control)
        for *names, change, control in rows
        for n, bend in enumerate((-0.01, 0.01))
    ]
    named = [{"family": name, "kind": "none"} for name in ("none", "context")]
    gradients = {"conditions": named, "cosine": [[1.0, 0.87654], [0.87654, 1.0]], "norms": [0.123456, 2.0]}
    return {"losses": {"columns": columns, "data": losses}, "gradients": gradients}


def test_tables_of_an_attribution(attribution):
    table = prompt_table(attribution)
    assert list(table.columns[4:]) == [
        "minus no prompt",
        "95 % interval",
        "minus as many words",
        "95 % interval of that",
    ]
    assert len(table) == 42 and tuple(table.iloc[0]) == (  # 0.001 nats a token from the mean, t = 12.706
        *("application-1", "application", "strategy", 20),
        *("-0.0500", "-0.0627 to -0.0373", "-0.0800", "-0.0927 to -0.0673"),
    )
    assert tuple(table.iloc[-1])[:5] == ("control-21", "control", "control", 21, "+0.0300")
    assert tuple(table.iloc[-1])[6:] == ("", "")
    families = family_table(attribution)
    assert list(families["family"][:4]) == ["(all)", "(all)", "(all)", "application"]
    assert (
        len(families)
        == 3 + len({(family, kind) for family, kind in zip(table["family"], table["kind"], strict=True)}) - 1
    )
    assert tuple(families.iloc[0])[1:4] == ("strategy", 20, "-0.0405")
    gradients = gradient_table(attribution)
    assert list(gradients.columns) == ["cosine", "norm", "none", "context"]
    assert list(gradients.iloc[0]) == ["none", 0.1235, 1.0, 0.877]
    with pytest.raises(InputError, match="has no gradients"):
        gradient_table(attribution | {"gradients": None})


def test_the_prompt_figure_shows_every_prompt_in_both_panels(attribution):
    figure = prompt_figure(attribution)
    left, right = figure.axes
    rows = prompt_changes(pandas.DataFrame(**attribution["losses"]), ["prompt", "kind"])
    assert sorted(line.get_xdata()[0] for line in marks(left)) == sorted(value for value, _, _ in rows["to_none"])
    assert len(marks(right)) == len(rows) - 2
    heights = sorted(line.get_ydata()[0] for line in marks(left))
    assert min(b - a for a, b in pairwise(heights)) == pytest.approx(1), "each has its own line"
    assert heights[0] == pytest.approx(0)
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert sorted(labels) == sorted([*load_prompt_set("strategies").families, "control"])
    figure.draw_without_rendering()
    plots, legend = [axes.get_tightbbox() for axes in figure.axes], figure.legends[0].get_window_extent()
    assert all(legend.y1 <= plot.y0 + 1 for plot in plots) and plots[0].x1 <= plots[1].x0


# --- in the report ----------------------------------------------------------------------------------------------------


def test_trained_arms_come_to_the_page(experiment):
    config = experiment(arms=["cft", "only-application", "without-application"])
    prepare(config)
    for arm in config.arms:
        train_task(config, arm, 0)
        evaluate_task(config, arm, 0)
    run = read_run(config.folder)
    (name,) = run.outcomes
    assert list(ablation_table(run, "cft")["arm"]) == ["only-application", "without-application", "cft"]
    page = write_report(run, "cft").read_text(encoding="utf-8")
    assert page.count(f'alt="{name}: which family matters?') == 1 and "Which prompts matter" in page
