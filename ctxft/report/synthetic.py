"""Results of a synthetic study flow in (a JSON value, see ``ctxft.synthetic.study``); tables and figures flow out.

No torch is imported: a committed result file is enough.
"""

from __future__ import annotations

import functools
import math
import statistics as plain
from collections.abc import Callable
from pathlib import Path

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ctxft.report.figures import ARM_COLORS, INK
from ctxft.report.recorded import RECORDED, RECORDED_PAIRS
from ctxft.report.style import styled
from ctxft.storage import InputError, read_json

# cpt, cft and neg as everywhere; the rest of Okabe and Ito's palette for our own arms.
COLORS = {name: ARM_COLORS[name] for name in ("cft", "cpt", "neg")} | {
    "fresh": "#009E73",
    "no-query": "#56B4E9",
    "cpt-long": "#E69F00",
    "neg-scaled": "#000000",
    "shuffled": "#8C6D31",
}
KINDS = ("partial", "total")  # derivatives: context values held, or moving with x
STYLES = {"neg-scaled": "--", "shuffled": ":", "cpt-long": "-.", "no-query": (0, (5, 1))}
READS = {"own": "error", "fresh": "with fresh context", "none": "without context"}
BASELINES = {
    "constant": ("best constant", (0, (1, 3))),
    "scale": ("best guess from |w|", (0, (5, 2))),
    "least_squares": ("least squares", (0, (5, 2))),
    "given_w": ("least squares, w known", (0, (3, 1, 1, 1))),
}
WINDOW = 3  # log rows that a curve is averaged over, so that it can be read


def read_result(path: Path | str) -> dict:
    """Return the results in a file of `ctxft synthetic --out`; raises InputError where it is another kind of file."""
    study = read_json(Path(path))
    if not isinstance(study, dict) or not {"target", "runs", "baselines", "config"} <= study.keys():
        raise InputError(f"{path} is not a result of `ctxft synthetic --out`: choose another file.")
    return study


def mean_error(run: dict, context: str = "own") -> float:
    """Return the squared error of one run, mean over points, with its own context, a fresh one or none."""
    return plain.fmean(run["errors"][context]["mean"])


def _spread(values: list[float], digits: int = 2) -> str:
    sd = f" ± {plain.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{plain.fmean(values):.{digits}f}{sd}"


def study_table(study: dict) -> pandas.DataFrame:
    """Return a row an arm: squared errors (mean ± standard deviation over seeds), ratio to cpt, alignment.

    Args:
        study: from ``run_study``, ``read_study`` or ``read_result``.

    Returns:
        Columns: arm; seeds; error with the arm's own context; that over cpt's, seed by seed, lowest to highest; over
        the best constant's; over that of the best guess from the lengths of w and w2 alone; errors of the same network
        that reads a fresh context, or none; cosine of the partial and of the total derivative with the true gradient.
    """
    guesses = {name: plain.fmean(study["baselines"][name]) for name in ("constant", "scale")}
    rows = []
    for arm, seeds in study["runs"].items():
        errors = {context: [mean_error(run, context) for run in seeds.values()] for context in READS}
        row = {"arm": arm, "seeds": len(seeds), "error": _spread(errors["own"]), "over cpt": ""}
        if cpt := study["runs"].get("cpt"):
            ratios = [error / mean_error(cpt[seed]) for seed, error in zip(seeds, errors["own"], strict=True)]
            row["over cpt"] = " to ".join(sorted({f"{min(ratios):.3f}", f"{max(ratios):.3f}"}))
        row |= {f"over {name}": f"{plain.fmean(errors['own']) / guess:.3f}" for name, guess in guesses.items()}
        row |= {READS[context]: _spread(errors[context]) for context in ("fresh", "none")}
        for name in ("partial", "total"):
            row[f"cosine, {name}"] = _spread([run["alignment"][name] for run in seeds.values()])
        rows.append(row)
    return pandas.DataFrame(rows)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=math.ceil(len(labels) / math.ceil(len(labels) / 6)),
    )


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10.5)


def _by_arm(study: dict, arms: list[str], value: Callable[[dict], float]) -> str:
    """Return the mean over seeds of a value of a run, for each arm, in words."""
    means = ((arm, plain.fmean(value(run) for run in study["runs"][arm].values())) for arm in arms)
    return ", ".join(f"{arm} {mean:.3g}" for arm, mean in means)


def _look(arm: str) -> dict:
    return {"color": COLORS[arm], "linestyle": STYLES.get(arm, "-")}


def _log(axes: Axes, axis: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5 and their tens."""
    getattr(axes, f"set_{axis}scale")("log")
    ticks = getattr(axes, f"{axis}axis")
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


def _smooth(values: list[float]) -> list[float]:
    return [plain.fmean(values[max(0, end - WINDOW) : end]) for end in range(1, len(values) + 1)]


@styled
def curves_figure(study: dict, arms: list[str] | None = None) -> Figure:
    """Return training loss over optimizer steps: the mean over seeds an arm, smoothed over three rows of the log.

    Args:
        study: the results, or ``read_progress`` of a study that still runs.
        arms: which to draw; None draws all.
    """
    figure = Figure(figsize=(7.6, 3.9))
    axes = figure.subplots()
    arms = arms or list(study["runs"])
    for place, arm in enumerate(arms):
        logs = [run["log"] for run in study["runs"][arm].values()]
        losses = [plain.fmean(values) for values in zip(*(log["loss"] for log in logs), strict=False)]  # while it grows
        width = 1.4 + 0.35 * (len(arms) - 1 - place)  # curves of arms often lie on each other: the first shows as a rim
        axes.plot(logs[0]["step"][: len(losses)], _smooth(losses), linewidth=width, label=arm, **_look(arm))
    constant = plain.fmean(study["baselines"]["constant"])
    axes.axhline(constant, color=INK, linewidth=0.9, linestyle=(0, (1, 3)), label="best constant")
    _log(axes, "y")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (squared error)")
    seeds = len(study["seeds"])
    _style(axes, f"{study['target']}, {'1 seed' if seeds == 1 else f'mean of {seeds} seeds'}")
    _legend(figure, axes)
    last = _by_arm(study, arms, lambda run: _smooth(run["log"]["loss"])[-1] if run["log"]["loss"] else math.nan)
    said = f"At the end: {last}; best constant {constant:.3g}."
    figure.set_label(f"{study['target']}: training loss (squared error) over optimizer steps. {said}")
    return figure


def _draw_errors(axes: Axes, study: dict, arms: list[str], context: str) -> None:
    """Draw errors by pairs read; a band spans the 95 % bootstrap bands of all seeds."""
    for place, arm in enumerate(arms):
        bands = [run["errors"][context] for run in study["runs"][arm].values()]
        pairs = range(len(bands[0]["mean"]))
        mean, low, high = (
            [function(values) for values in zip(*(band[name] for band in bands), strict=True)]
            for name, function in (("mean", plain.fmean), ("low", min), ("high", max))
        )
        axes.fill_between(pairs, low, high, color=COLORS[arm], alpha=0.12, linewidth=0)
        width = 1.4 + 0.35 * (len(arms) - 1 - place)
        axes.plot(pairs, mean, marker="o", markersize=width + 2, linewidth=width, label=arm, **_look(arm))
    axes.set_xlabel("target pairs read before the query")
    _log(axes, "y")


@styled
def errors_figure(study: dict, arms: list[str] | None = None, recorded: bool = True) -> Figure:
    """Return squared error by number of target pairs read: own context, fresh context, and what the authors recorded.

    Args:
        study: the results.
        arms: which to draw; None draws all.
        recorded: add a panel with the authors' numbers, where there are any for the target. It has its own axes,
            since they are of another size.
    """
    theirs = RECORDED.get(study["target"]) if recorded else None
    figure = Figure(figsize=(3.6 * (3 if theirs else 2), 3.9), dpi=85)
    panels = figure.subplots(1, 3 if theirs else 2)
    arms = arms or list(study["runs"])
    size = f"{study['config']['dims']} dims, {study['config']['points']} points"
    for axes, context, title in zip(panels, ("own", "fresh"), ("its own context", "a fresh context"), strict=False):
        _draw_errors(axes, study, arms, context)
        _draw_baselines(axes, study["baselines"])
        _style(axes, f"read with {title} ({size})")
    panels[0].set_ylabel("squared error")
    panels[1].sharey(panels[0])
    if theirs:
        _recorded_panel(panels[2], theirs["errors"])
    _legend(figure, panels[0])
    means = {
        context: _by_arm(study, arms, functools.partial(mean_error, context=context)) for context in ("own", "fresh")
    }
    figure.set_label(
        f"{study['target']}: squared error over the number of target pairs read before the query, with 95 % bands. "
        f"Means over all points, with its own context: {means['own']}; with a fresh one: {means['fresh']}."
    )
    return figure


def _draw_baselines(axes: Axes, found: dict[str, list[float]]) -> None:
    for name, (label, style) in BASELINES.items():
        values = found.get(name, [])
        told = name == "scale" and plain.fmean(values) > 0.99 * plain.fmean(found["constant"])
        if values and not told:  # of an odd function the length of w tells nothing
            shown = [value if value > 1e-4 else math.nan for value in values]  # exact zeros have no logarithm
            axes.plot(range(len(shown)), shown, color=INK, linewidth=0.9, linestyle=style, label=label)


def _recorded_panel(axes: Axes, errors: dict[str, list[float]]) -> None:
    for arm, values in errors.items():
        axes.plot(RECORDED_PAIRS, values, marker="s", markersize=5, mfc="white", linewidth=1.1, **_look(arm))
    if any(value == 0 for values in errors.values() for value in values):
        axes.set_yscale("symlog", linthresh=0.1)
    else:
        _log(axes, "y")
    axes.set_xlabel("target pairs read before the query")
    _style(axes, "the authors' record (20 dims, 41 points)")


@styled
def alignment_figure(study: dict) -> Figure:
    """Return how well the prediction's derivative points along the true gradient: partial and total, a dot a seed."""
    figure = Figure(figsize=(7.6, 3.3))
    axes = figure.subplots()
    for place, (arm, seeds) in enumerate(study["runs"].items()):
        for shift, name, fill in ((-0.14, "partial", "white"), (0.14, "total", COLORS[arm])):
            values = [run["alignment"][name] for run in seeds.values()]
            axes.plot([place + shift] * len(values), values, "o", mec=COLORS[arm], mfc=fill, markersize=7)
        theirs = RECORDED.get(study["target"], {}).get("partial", {}).get(arm)
        if theirs is not None:
            axes.plot([place - 0.32, place + 0.04], [theirs] * 2, color=INK, linewidth=1.4)
    for label, look in (
        ("partial: context values held", {"marker": "o", "mfc": "white", "linestyle": ""}),
        ("total: context values move", {"marker": "o", "mfc": INK, "linestyle": ""}),
        ("the authors' (partial, their size)", {"linewidth": 1.4}),
    ):
        if look.get("marker") or (study["target"] in RECORDED and "partial" in RECORDED[study["target"]]):
            axes.plot([], [], color=INK, label=label, **look)
    axes.set_xticks(range(len(study["runs"])), list(study["runs"]))
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.03)
    axes.set_ylabel("cosine with the true gradient")
    _style(axes, study["target"])
    _legend(figure, axes)
    means = [_by_arm(study, list(study["runs"]), lambda run, name=name: run["alignment"][name]) for name in KINDS]
    figure.set_label(
        f"{study['target']}: cosine of the prediction's derivative with the true gradient, means over seeds. "
        f"Partial derivative: {means[0]}; total: {means[1]}."
    )
    return figure


@styled
def copying_figure(studies: list[dict]) -> Figure:
    """Return errors over cpt's, a panel a target: each network with the context that it was trained with, and a fresh one.

    Args:
        studies: results that hold cpt. A dot is a seed, divided by the mean of cpt.
    """
    figure, told = Figure(figsize=(3.9 * len(studies), 4.0)), []
    panels = figure.subplots(1, len(studies), squeeze=False, sharey=True)[0]
    for axes, study in zip(panels, studies, strict=True):
        unit = plain.fmean(mean_error(run) for run in study["runs"]["cpt"].values())
        arms = list(study["runs"])[::-1]
        for place, arm in enumerate(arms):
            for shift, context, fill in ((0.14, "own", COLORS[arm]), (-0.14, "fresh", "white")):
                values = [mean_error(run, context) / unit for run in study["runs"][arm].values()]
                axes.plot(values, [place + shift] * len(values), "o", mec=COLORS[arm], mfc=fill, markersize=6)
        axes.axvline(1, color=INK, linewidth=0.9, linestyle=":")
        _log(axes, "x")
        axes.set_yticks(range(len(arms)), arms)
        axes.set_xlabel("squared error, in units of cpt's")
        _style(axes, study["target"])
        for words, context in (("its own context", "own"), ("a fresh one", "fresh")):
            found = _by_arm(study, arms[::-1], lambda run, context=context, unit=unit: mean_error(run, context) / unit)
            told.append(f"{study['target']}, {words}: {found}.")
    for label, fill in (("its own context", INK), ("a fresh context at the test", "white")):
        panels[0].plot([], [], "o", mec=INK, mfc=fill, label=label)
    _legend(figure, panels[0])
    figure.set_label(f"Squared error in units of cpt's mean, a dot a seed; means over seeds. {' '.join(told)}")
    return figure
