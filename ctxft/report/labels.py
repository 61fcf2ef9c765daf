"""Outcomes on labelled texts go in; a table with every line that needs no model, and two figures, come out.

label_table   accuracy, macro F1, weighted F1 and MCC of each arm, below the lines of majority and chance
confusion_figure, reliability_figure   which labels are taken for which; how sure a model is, and how often right
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy
import pandas
from matplotlib.figure import Figure

from ctxft.evaluation.benchmarks import Benchmark
from ctxft.evaluation.metrics import metrics
from ctxft.report.figures import INK, arm_color
from ctxft.report.record import RunRecord
from ctxft.report.style import styled
from ctxft.statistics import common_seeds

SHARES = ("accuracy", "macro_f1", "weighted_f1")


def label_metrics_of(run: RunRecord, benchmark: Benchmark) -> dict[str, list[dict]]:
    """Return arm -> the metrics of each of its seeds, computed anew from the outcomes on disk.

    Args:
        run: a run whose outcomes are those of ``benchmark``.
        benchmark: labelled texts.
    """
    arms = common_seeds(run.outcomes[benchmark.name])
    return {arm: [metrics(items, benchmark) for items in seeds.values()] for arm, seeds in arms.items()}


def label_table(run: RunRecord, benchmarks: Sequence[Benchmark]) -> pandas.DataFrame:
    """Return, for each benchmark, the lines of majority and chance and a row for each arm, the mean over its seeds.

    Columns: benchmark, "who", seeds (0 for the lines), accuracy, macro F1 and weighted F1 in per cent, mcc (-1 to
    1; 0 is no better than a guess).
    """
    rows = []
    for benchmark in benchmarks:
        every = label_metrics_of(run, benchmark)
        one = next(iter(every.values()))[0]
        for line in ("majority", "chance"):
            shares = [one[line], *(one[f"{line}_{name}"] for name in SHARES[1:])]
            rows.append([benchmark.name, line, 0, *(100 * share for share in shares), 0.0])
        for arm, found in every.items():
            shares = [100 * numpy.mean([values[name] for values in found]) for name in SHARES]
            rows.append([benchmark.name, arm, len(found), *shares, numpy.mean([values["mcc"] for values in found])])
    columns = ["benchmark", "who", "seeds", "accuracy %", "macro F1 %", "weighted F1 %", "mcc"]
    return pandas.DataFrame(rows, columns=columns).round(
        {"accuracy %": 1, "macro F1 %": 1, "weighted F1 %": 1, "mcc": 3}
    )


@styled
def confusion_figure(tables: Mapping[str, Sequence[Sequence[int]]], labels: Sequence[str]) -> Figure:
    """Return a figure of confusion tables, a panel per title: rows are right labels, columns what was named, cells counts.

    Args:
        tables: title -> table as in ``metrics(...)["confusion"]``; tables of several seeds may be summed.
        labels: in the order of the tables.
    """
    size = 1.4 + 0.5 * len(labels)
    figure = Figure(figsize=(1.6 + size * len(tables), size))
    told = []
    grid = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axes, (title, table) in zip(grid, tables.items(), strict=True):
        counts = numpy.asarray(table)
        shares = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in numpy.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.6 else INK
            axes.annotate(str(count), (column, row), ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_title(title)
        axes.set_xlabel("named")
        right = int(numpy.trace(counts))
        told.append(f"{title}: {right} of {int(counts.sum())} on the diagonal, rows {counts.tolist()}.")
    grid[0].set_ylabel("right")
    figure.set_label(f"Items by right label (rows) and named label (columns): {', '.join(labels)}. {' '.join(told)}")
    return figure


@styled
def reliability_figure(found: Mapping[str, dict]) -> Figure:
    """Return a figure of accuracy over confidence, a panel per arm; on the line a model is as often right as it is sure.

    Args:
        found: arm -> what ``ctxft.evaluation.metrics.calibration`` returns.
    """
    figure, told = Figure(figsize=(1.0 + 2.9 * len(found), 3.1)), []
    grid = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (arm, values) in zip(grid, found.items(), strict=True):
        bins, most = values["bins"], max(one["n"] for one in values["bins"])
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
        confidence, accuracy = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
        areas = [20 + 180 * one["n"] / most for one in bins]
        axes.scatter(confidence, accuracy, s=areas, color=arm_color(arm), alpha=0.8)
        axes.set_title(f"{arm}, error {values['ece']:.3f}")
        dots = ", ".join(f"{c:.2f}/{a:.2f}" for c, a in zip(confidence, accuracy, strict=True))
        told.append(f"{arm}: {dots}; expected calibration error {values['ece']:.3f}.")
        axes.set_xlabel("confidence")
        axes.set_xlim(0, 1.05)
        axes.set_ylim(-0.05, 1.1)
    grid[0].set_ylabel("accuracy")
    figure.set_label(f"Accuracy over confidence, a dot a bin (confidence/accuracy). {' '.join(told)}")
    return figure
