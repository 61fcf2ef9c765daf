"""Make the tables of a run, as plain data frames of text and numbers, with chance and majority among the arms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy
import pandas

from ctxft.report.comparisons import ablation_rows, compared, p_value
from ctxft.report.record import Source, as_record
from ctxft.statistics import AVERAGES, common_seeds, compare_f1
from ctxft.storage import check_known


def results_table(run: Source, reference: str = "cpt") -> pandas.DataFrame:
    """Return one row per benchmark and arm, and below the arms a row for chance and one for majority.

    Args:
        run: a run folder, a Run, or a run that is read already.
        reference: the arm that is subtracted.

    Returns:
        Columns benchmark, arm, seeds, accuracy %, 95 % interval, difference from the reference in percentage points with its
        interval (over items and, with several seeds, over seeds too), p, Holm p (each arm's benchmarks are one family),
        macro F1 (mean over seeds; only where all questions have the same choices) and verdict: "higher", "lower", "not
        after Holm" or "not shown"; "" where there is nothing. Seeds that not every trained arm has are left out.

    Raises:
        InputError: the reference was not evaluated, two arms have different items, or no seed is common to all.
    """
    run, rows = as_record(run), []
    for name, arms in compared(run, reference).items():
        for row in arms:
            f1 = _mean(100 * one.get("macro_f1", math.nan) for one in run.metrics_of(name, row["arm"]))
            cells = _measured(row, reference) | {"macro F1 %": f1, "verdict": row["word"]}
            rows.append({"benchmark": name, "arm": row["arm"], **cells})
        majority_f1 = _mean([100 * run.metrics_of(name)[0].get("majority_macro_f1", math.nan)])
        for line, share in run.baselines(name).items():
            f1 = majority_f1 if line == "majority" else ""
            values = {"arm": f"({line})", "accuracy %": f"{100 * share:.1f}", "macro F1 %": f1}
            rows.append(dict.fromkeys(rows[-1], "") | {"benchmark": name} | values)
    return pandas.DataFrame(rows)


def _measured(row: dict, reference: str) -> dict:
    """Return the cells of a row of ``statistics.compare`` with Holm's p; "" where there is no difference."""
    known = not math.isnan(row["difference"])
    return {
        "seeds": row["seeds"],
        "accuracy %": f"{100 * row['accuracy']:.1f}",
        "95 % interval": f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
        f"minus {reference}": f"{row['difference']:+.1f}" if known else "",
        "its 95 % interval": f"{row['difference_low']:+.1f} to {row['difference_high']:+.1f}" if known else "",
        "p": p_value(row["p"]),
        "Holm p": p_value(row["holm"]),
    }


def ablation_table(run: Source, reference: str = "cft", benchmark: str | None = None) -> pandas.DataFrame:
    """Return a row for each arm of an ablation: its accuracy and its paired difference from the reference.

    Args:
        run, reference, benchmark: as for ``ablation_rows``.

    Returns:
        Columns benchmark, arm, kind, family (or number of prompts), and as in ``results_table``, but Holm p counts all
        comparisons of this table as one family. "" where there is nothing.

    Raises:
        InputError: as ``ablation_rows``.

    Example:
        >>> ablation_table("runs/families", "cft")  # doctest: +SKIP
    """
    rows = [
        {"benchmark": name, "arm": row["arm"], "kind": row["kind"].replace("arm", ""), "family": row["part"]}
        | _measured(row, reference)
        | {"verdict": row["word"]}
        for name, compared_arms in ablation_rows(run, reference, benchmark).items()
        for row in compared_arms
    ]
    return pandas.DataFrame(rows)


def f1_table(run: Source, reference: str = "cpt") -> pandas.DataFrame:
    """Return macro and weighted F1 of every arm on the benchmarks whose questions share their choices.

    Args:
        run: a run folder, a Run, or a run that is read already.
        reference: the arm that is subtracted.

    Returns:
        Columns benchmark, arm and, for either average, F1 in % and its difference from the reference in percentage points;
        both with 95 % intervals in parentheses (``statistics.compare_f1``). Chance and majority are rows below the arms.
        No rows where the run has no such benchmark.
    """
    run, rows = as_record(run), []
    for name in [name for name in run.outcomes if "macro_f1" in run.metrics_of(name)[0]]:
        averages = {average: compare_f1(run.outcomes[name], reference, average) for average in AVERAGES}
        for place, row in enumerate(averages["macro"]):
            cells = {key: cell for a in AVERAGES for key, cell in _f1_cells(averages[a][place], a, reference).items()}
            rows.append({"benchmark": name, "arm": row["arm"], **cells})
        measured = run.metrics_of(name)[0]
        for line in run.baselines(name):
            values = {f"{average} F1 %": f"{100 * measured[f'{line}_{average}_f1']:.1f}" for average in AVERAGES}
            rows.append(dict.fromkeys(rows[-1], "") | {"benchmark": name, "arm": f"({line})", **values})
    return pandas.DataFrame(rows)


def _f1_cells(row: dict, average: str, reference: str) -> dict[str, str]:
    value, difference = f"{100 * row['f1']:.1f}", f"{row['difference']:+.1f}"
    if not math.isnan(row["low"]):
        value += f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    if not math.isnan(row["difference_low"]):
        difference += f" ({row['difference_low']:+.1f} to {row['difference_high']:+.1f})"
    shown = "" if math.isnan(row["difference"]) else difference
    return {f"{average} F1 %": value, f"{average} minus {reference}": shown}


HELD_OUT = {  # column -> (key of the metrics, factor, digits); the last three only where they were measured
    "held-out loss": ("loss", 1, 3),
    "with a prompt": ("prompted_loss", 1, 3),
    "general loss": ("general_loss", 1, 3),
    "ends %": ("eos_rate", 100, 0),
    "in form %": ("answers_in_form", 100, 0),
}


def loss_table(run: Source) -> pandas.DataFrame:
    """Return how well each arm predicts the held-out texts, without a prompt and after those of arm cft.

    Args:
        run: a run folder, a Run, or a run that is read already.

    Returns:
        Columns arm, seeds, held-out loss and "with a prompt": nats per token, means over the seeds that all trained arms
        have; "" where no documents were held out. Where it was measured also what shows forgetting: general loss, "ends %"
        (beginnings of texts that the model completes and ends) and "in form %" (answers to instructions that hold something
        and end).
    """
    run, rows = as_record(run), []
    for arm, seeds in common_seeds({arm: {seed: [] for seed in seeds} for arm, seeds in run.metrics.items()}).items():
        held_out = [run.metrics[arm][seed].get("held_out", {}) for seed in seeds]
        rows.append({"arm": arm, "seeds": len(seeds)})
        for name, (key, factor, digits) in HELD_OUT.items():
            rows[-1][name] = _mean([factor * one[key] for one in held_out if one.get(key) is not None], digits)
    table = pandas.DataFrame(rows)
    return table.drop(columns=[name for name in list(HELD_OUT)[2:] if not any(table[name])])


def _mean(values: Iterable[float], digits: int = 1) -> str:
    values = list(values)
    return f"{math.fsum(values) / len(values):.{digits}f}" if values and not any(map(math.isnan, values)) else ""


def subject_table(run: Source, benchmark: str) -> pandas.DataFrame:
    """Return accuracy (%, mean over the common seeds) per subject and arm, with the number of items of each subject.

    Raises:
        InputError: the run has no such benchmark.
    """
    run = as_record(run)
    arms = common_seeds(run.outcomes[check_known(benchmark, run.outcomes, f"benchmark in {run.folder}:")])
    rows = [
        {"arm": arm, "subject": item["subject"], "correct": 100.0 * item["correct"]}
        for arm, seeds in arms.items()
        for items in seeds.values()
        for item in items
    ]
    accuracy = pandas.DataFrame(rows).pivot_table(index="subject", columns="arm", values="correct")[list(arms)].round(1)
    sizes = Counter(item["subject"] for item in next(iter(next(iter(arms.values())).values())))
    accuracy.insert(0, "n", accuracy.index.map(sizes))
    return accuracy.reset_index().rename_axis(None, axis="columns")


def label_table(run: Source, benchmarks: Sequence[str]) -> pandas.DataFrame:
    """Return, for each benchmark of labeled texts, majority and chance and a row for each arm, the mean over its seeds.

    Columns: benchmark, "who", seeds (0 for the lines), accuracy, macro F1 and weighted F1 in percent, mcc (-1 to
    1; 0 is no better than a guess).
    """
    run, rows = as_record(run), []
    columns = {"accuracy %": "accuracy", "macro F1 %": "macro_f1", "weighted F1 %": "weighted_f1"}
    for name in benchmarks:
        values = run.metrics_of(name)[0]
        for line in ("majority", "chance"):
            shares = [values[line], values[f"{line}_macro_f1"], values[f"{line}_weighted_f1"]]
            rows.append([name, line, 0, *(100 * share for share in shares), 0.0])
        for arm in run.outcomes[name]:
            seeds = run.metrics_of(name, arm)
            means = [numpy.mean([one[key] for one in seeds]) for key in (*columns.values(), "mcc")]
            rows.append([name, arm, len(seeds), *(100 * mean for mean in means[:3]), means[3]])
    table = pandas.DataFrame(rows, columns=["benchmark", "who", "seeds", *columns, "mcc"])
    return table.round({**dict.fromkeys(columns, 1), "mcc": 3})
