"""A run folder goes in; tables of results come out, with chance and majority lines among the arms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pandas

from ctxft.report.record import RunRecord, as_record
from ctxft.report.verdicts import compared, p_value
from ctxft.statistics import common_seeds, compare_f1
from ctxft.statistics.f1 import AVERAGES, f1_lines
from ctxft.storage import check_known


def results_table(run: RunRecord | str | Path, reference: str = "cpt") -> pandas.DataFrame:
    """Return one row per benchmark and arm, with the chance and majority lines as rows of their own below.

    Args:
        run: a run folder, or a run that is read already.
        reference: the arm that differences are taken to.

    Returns:
        Columns benchmark, arm, seeds, accuracy %, 95 % interval, difference to the reference in points with its
        interval (over items and, with several seeds, over seeds too), p, Holm p (each arm's benchmarks are one family),
        macro F1 (mean over seeds; only where all questions have the same choices) and verdict: "higher", "lower", "not
        after Holm" or "not shown"; "" where there is nothing. Seeds that not every trained arm has are left out.

    Raises:
        InputError: the reference was not evaluated, two arms were asked different items, or no seed is common to all.
    """
    run, rows = as_record(run), []
    for name, arms in compared(run, reference).items():
        for row in arms:
            cells = (
                *(name, row["arm"], *measured_cells(row)),
                _mean(
                    100 * one["benchmarks"][name].get("macro_f1", math.nan) for one in _metrics(run, name, row["arm"])
                ),
                row["word"],
            )
            rows.append(cells)
        for line, share in lines_of(run, name).items():
            f1 = run.metrics_of(name)[0].get("majority_macro_f1", math.nan) if line == "majority" else math.nan
            rows.append((name, f"({line})", "", f"{100 * share:.1f}", *[""] * 5, _mean([100 * f1]), ""))
    columns = ["benchmark", "arm", *measured_columns(reference), "macro F1 %", "verdict"]
    return pandas.DataFrame(rows, columns=columns)


def measured_columns(reference: str) -> list[str]:
    """Return the names of what ``measured_cells`` returns."""
    return ["seeds", "accuracy %", "95 % interval", f"minus {reference}", "its 95 % interval", "p", "Holm p"]


def measured_cells(row: dict) -> tuple:
    """Return a row of ``statistics.compare`` with Holm's p as a table shows it; "" where there is no difference."""
    known = not math.isnan(row["difference"])
    return (
        *(row["seeds"], f"{100 * row['accuracy']:.1f}"),
        f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
        f"{row['difference']:+.1f}" if known else "",
        f"{row['difference_low']:+.1f} to {row['difference_high']:+.1f}" if known else "",
        p_value(row["p"]),
        p_value(row["holm"]),
    )


def f1_table(run: RunRecord | str | Path, reference: str = "cpt") -> pandas.DataFrame:
    """Return macro and weighted F1 of every arm on the benchmarks whose questions share their choices.

    Args:
        run: a run folder, or a run that is read already.
        reference: the arm that differences are taken to.

    Returns:
        Columns benchmark, arm and, for either average, F1 in % and its difference to the reference in points; both with
        95 % intervals in brackets (``statistics.compare_f1``). The chance and majority lines stand below, as rows of
        their own. No rows where the run has no such benchmark.
    """
    run, rows = as_record(run), []
    for name in [name for name in run.outcomes if "macro_f1" in run.metrics_of(name)[0]]:
        found = [compare_f1(run.outcomes[name], reference, average) for average in AVERAGES]
        for pair in zip(*found, strict=True):
            rows.append((name, pair[0]["arm"], *[cell for row in pair for cell in _f1_cells(row)]))
        items = next(iter(run.outcomes[name][reference].values()))
        lines = [f1_lines(items, average) for average in AVERAGES]
        rows += [
            (name, f"({line})", *[c for one in lines for c in (f"{100 * one[line]:.1f}", "")]) for line in lines[0]
        ]
    columns = [title for average in AVERAGES for title in (f"{average} F1 %", f"{average} minus {reference}")]
    return pandas.DataFrame(rows, columns=["benchmark", "arm", *columns])


def _f1_cells(row: dict) -> tuple[str, str]:
    own, value = f"{100 * row['f1']:.1f}", f"{row['difference']:+.1f}"
    if not math.isnan(row["low"]):
        own += f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    if not math.isnan(row["difference_low"]):
        value += f" ({row['difference_low']:+.1f} to {row['difference_high']:+.1f})"
    return own, "" if math.isnan(row["difference"]) else value


def lines_of(run: RunRecord, name: str) -> dict[str, float]:
    """Return what guessing and always giving the commonest answer would score, as shares."""
    return {line: run.metrics_of(name)[0][line] for line in ("chance", "majority")}


HELD_OUT = {  # column -> (key of the metrics, factor, digits); the last three only where they were measured
    "held-out loss": ("loss", 1, 3),
    "behind a prompt": ("prompted_loss", 1, 3),
    "general loss": ("general_loss", 1, 3),
    "ends %": ("eos_rate", 100, 0),
    "in form %": ("answers_in_form", 100, 0),
}


def loss_table(run: RunRecord | str | Path) -> pandas.DataFrame:
    """Return how well each arm predicts the held-out texts, without a prompt and behind those of arm cft.

    Args:
        run: a run folder, or a run that is read already.

    Returns:
        Columns arm, seeds, held-out loss and "behind a prompt": nats per token, means over the seeds that all trained arms
        have; "" where no documents were held out. Where it was measured also what shows forgetting: general loss, "ends %"
        (beginnings of texts that the model writes to an end) and "in form %" (answers to instructions that hold something
        and end).
    """
    run = as_record(run)
    seeds = common_seeds({arm: {seed: [] for seed in found} for arm, found in run.metrics.items()})
    rows = []
    for arm, common in seeds.items():
        held = [run.metrics[arm][seed].get("held_out", {}) for seed in common]
        row = {"arm": arm, "seeds": len(common)}
        for name, (key, factor, digits) in HELD_OUT.items():
            row[name] = _mean([factor * one[key] for one in held if one.get(key) is not None], digits)
        rows.append(row)
    table = pandas.DataFrame(rows, columns=["arm", "seeds", *HELD_OUT])
    return table.drop(columns=[name for name in list(HELD_OUT)[2:] if not any(table[name])])


def _metrics(run: RunRecord, benchmark: str, arm: str) -> list[dict]:
    """Return the metrics of an arm in the seeds that count for a benchmark."""
    return [run.metrics[arm][seed] for seed in common_seeds(run.outcomes[benchmark])[arm]]


def _mean(values: Iterable[float], digits: int = 1) -> str:
    values = list(values)
    return f"{math.fsum(values) / len(values):.{digits}f}" if values and not any(map(math.isnan, values)) else ""


def subject_table(run: RunRecord | str | Path, benchmark: str) -> pandas.DataFrame:
    """Return accuracy (%, mean over the common seeds) per subject and arm, with the number of items of each subject.

    Raises:
        InputError: the benchmark was not evaluated in this run.
    """
    run = as_record(run)
    arms = common_seeds(run.outcomes[check_known(benchmark, run.outcomes, f"benchmark in {run.folder}:")])
    rows = [
        {"arm": arm, "seed": seed, "subject": item["subject"], "correct": 100.0 * item["correct"]}
        for arm, seeds in arms.items()
        for seed, items in seeds.items()
        for item in items
    ]
    frame = pandas.DataFrame(rows)
    accuracy = frame.pivot_table(index="subject", columns="arm", values="correct", aggfunc="mean").round(1)
    per_seed = frame.groupby(["subject", "arm", "seed"]).size()
    accuracy.insert(0, "n", per_seed.groupby("subject").first())
    return accuracy[["n", *arms]].reset_index().rename_axis(None, axis="columns")
