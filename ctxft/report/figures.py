"""A run folder goes in; figures come out, in which an arm has the same colour everywhere.

They are plain ``Figure`` objects without pyplot's state; a notebook shows them after ``%matplotlib inline``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctxft.prompts import in_order
from ctxft.prompts.arms import kind_of
from ctxft.report.record import RunRecord, as_record
from ctxft.report.style import interval, styled
from ctxft.report.tables import lines_of
from ctxft.statistics import Outcomes, common_seeds, wilson
from ctxft.storage import InputError

# Okabe and Ito's palette, which colour-blind readers can tell apart; further arms have darker or lighter shades of their kin.
ARM_COLORS = {
    "base": "#999999",
    "cpt": "#0072B2",
    "cft": "#D55E00",
    "neg": "#CC79A7",
    "control": "#009E73",
    "adaptive": "#E69F00",
    "ift": "#56B4E9",
    "control-shuffled": "#005C44",
    "control-neutral": "#73C7AE",
    "control-family": "#3B9A84",
    "control-adaptive": "#8F6700",
    "cft-learned": "#7A3600",
    "reading": "#004A73",
    "only": "#D55E00",
    "without": "#E9A37A",
    "count": "#A34800",
}
INK = "#333333"
MARKERS = "osD^vP*X<>"  # beside the colours, for those who cannot tell these apart
LABEL = {"fontsize": 9, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}}


def arm_color(arm: str) -> str:
    """Return an arm's colour: with a second stage that of the first, for a part of the prompt set that of its kind of part.

    Example:
        >>> arm_color("cft-ift") == arm_color("cft"), arm_color("only-critical") == ARM_COLORS["only"]
        (True, True)
    """
    return ARM_COLORS[kind_of(arm)]


@styled
def results_figure(run: RunRecord | str | Path) -> Figure:
    """Return a figure of accuracy (%) per arm with 95 % intervals, a panel per benchmark, chance and majority lines."""
    run = as_record(run)
    columns = min(3, len(run.outcomes))
    rows = math.ceil(len(run.outcomes) / columns)
    figure = Figure(figsize=(1.2 + 3.5 * columns, 3.5 * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    told = []
    for axes, (name, arms) in zip(panels, run.outcomes.items(), strict=False):
        bars = _accuracy_panel(axes, common_seeds(arms), lines_of(run, name))
        axes.set_title(name)
        told.append(f"{name}: {bars}.")
    for axes in panels[len(run.outcomes) :]:
        axes.set_visible(False)
    panels[0].set_ylim(0, 1.06 * panels[0].get_ylim()[1])  # room for the number above the tallest bar; shared by all
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy (%), 95 % interval over items")
    figure.set_label(f"Bars of accuracy in per cent, with 95 % intervals over items. {' '.join(told)}")
    return figure


def _accuracy_panel(axes: Axes, arms: Outcomes, lines: dict[str, float]) -> str:
    """Draw the bars of a benchmark, and return them in words."""
    told = []
    for position, (arm, seeds) in enumerate(arms.items()):
        values = [sum(item["correct"] for item in items) / len(items) for items in seeds.values()]
        n, mean = len(next(iter(seeds.values()))), math.fsum(values) / len(values)
        low, high = wilson(mean * n, n)
        told.append(f"{arm} {100 * mean:.1f}{interval(100 * low, 100 * high, '.1f')}")
        axes.bar(position, 100 * mean, width=0.66, color=arm_color(arm), alpha=0.85)
        bars = [[100 * (mean - low)], [100 * (high - mean)]]
        axes.errorbar(position, 100 * mean, yerr=bars, color=INK, capsize=4, linewidth=1.2)
        if len(values) > 1:
            axes.plot([position] * len(values), [100 * v for v in values], "o", color="white", mec=INK, ms=4, zorder=3)
        axes.annotate(f"{100 * mean:.1f}", (position, 100 * high), (0, 3), textcoords="offset points", ha="center")
    for (label, share), side in zip(sorted(lines.items(), key=lambda line: line[1]), ("top", "bottom"), strict=True):
        axes.axhline(100 * share, color=INK, linewidth=1, linestyle={"chance": "--", "majority": ":"}[label])
        text = f" {label} {100 * share:.1f}"
        axes.annotate(
            text, (1, 100 * share), xycoords=("axes fraction", "data"), va=side, fontsize=8, annotation_clip=False
        )
    axes.set_xticks(range(len(arms)), arms)
    if len(arms) > 5:  # level names would touch
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("arm")
    axes.set_xlim(-0.6, len(arms) - 0.4)
    return ", ".join(told + [f"{label} {100 * share:.1f}" for label, share in lines.items()])


@styled
def differences_figure(panels: Mapping[str, Iterable[Mapping]], reference: str = "cpt") -> Figure:
    """Return a figure of differences to the reference arm in points of accuracy, with 95 % intervals, a panel per title.

    Args:
        panels: title -> rows as from ``statistics.compare`` (arm, difference, difference_low, difference_high); rows
            without a difference, such as the reference itself, and the base model are left out.
        reference: the arm that the differences are taken to.
    """
    figure, told = Figure(figsize=(1.4 + 3.1 * len(panels), 3.0)), []
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        shown = [row for row in rows if row["arm"] != "base" and not math.isnan(row.get("difference", math.nan))]
        for place, row in enumerate(reversed(shown)):
            value, color = row["difference"], arm_color(row["arm"])
            ends = [[value - row["difference_low"]], [row["difference_high"] - value]]
            axes.errorbar(value, place, xerr=ends, fmt="o", color=color, capsize=4, linewidth=1.8, markersize=7)
            axes.annotate(f"{value:+.1f}", (value, place), (0, 8), textcoords="offset points", ha="center", **LABEL)
        axes.axvline(0, color=INK, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(shown)), [row["arm"] for row in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.3)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"points of accuracy minus {reference}")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        values = (
            f"{r['arm']} {r['difference']:+.1f}{interval(r['difference_low'], r['difference_high'])}" for r in shown
        )
        told.append(f"{title}: {', '.join(values)}.")
    figure.set_label(f"Points of accuracy minus {reference}, with 95 % intervals. {' '.join(told)}")
    return figure


def loss_figure(run: RunRecord | str | Path) -> Figure:
    """Return a figure of training loss over optimizer steps: the mean over seeds per arm, thin lines for the seeds.

    Raises:
        InputError: no arm of the run has a training log.
    """
    run = as_record(run)
    if run.logs.empty:
        raise InputError(f"{run.folder} holds no training log (arms/<arm>/seed-<n>/log.jsonl): train an arm first.")
    return loss_curves(run.logs)


@styled
def loss_curves(logs: pandas.DataFrame) -> Figure:
    """Return the figure of ``loss_figure`` for some steps; a mean is drawn where all seeds of the arm have come.

    Args:
        logs: arm, seed, step and loss (nats per target token) of optimizer steps.
    """
    figure, told = Figure(figsize=(7.6, 3.8)), []
    axes = figure.subplots()
    arms = in_order(set(logs["arm"]))
    for place, arm in enumerate(arms):
        log = logs[logs["arm"] == arm]
        seeds = log["seed"].nunique()
        for _, one in log.groupby("seed"):
            axes.plot(one["step"], one["loss"], color=arm_color(arm), linewidth=0.7, alpha=0.3 if seeds > 1 else 0)
        steps = log.groupby("step")["loss"]
        mean = steps.mean()[steps.count() == seeds]
        label = f"{arm}, mean of {seeds} seeds" if seeds > 1 else f"{arm}, 1 seed"
        width = 1.2 + 1.4 * (len(arms) - 1 - place)  # curves of arms often lie on each other: the first shows as a rim
        shape = {"marker": MARKERS[place % len(MARKERS)], "markevery": max(1, len(mean) // 8), "mec": INK, "ms": 5}
        axes.plot(mean.index, mean, color=arm_color(arm), linewidth=width, label=label, mew=0.6, **shape)
        if len(mean):
            told.append(
                f"{label}: {mean.iloc[0]:.3f} at step {mean.index[0]}, {mean.iloc[-1]:.3f} at step {mean.index[-1]}"
            )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats per target token)")
    if arms:
        axes.legend()
    figure.set_label(f"Training loss in nats per target token over optimizer steps. {'; '.join(told)}.")
    return figure
