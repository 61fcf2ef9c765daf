"""Draw tables and figures of a study's results (a JSON value, see ``ctxft.synthetic.study``) next to the authors' numbers.

No torch is imported: a committed result file is enough.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ctxft.report.figures import INK, arm_color, styled
from ctxft.storage import InputError, read_json

# cpt, cft and neg as everywhere; the rest of Okabe and Ito's palette for our own arms.
COLORS = {name: arm_color(name) for name in ("cft", "cpt", "neg")}
COLORS |= {"fresh": "#009E73", "no-query": "#56B4E9", "cpt-long": "#E69F00", "neg-scaled": "#000000"}
COLORS |= {"shuffled": "#8C6D31"}
STYLES = {"neg-scaled": "--", "shuffled": ":", "cpt-long": "-.", "no-query": (0, (5, 1))}
READS = {"own": "error", "fresh": "with fresh context", "none": "without context"}
BASELINES = {
    "constant": ("best constant", (0, (1, 3))),
    "scale": ("best guess from |w|", (0, (5, 2))),
    "least_squares": ("least squares", (0, (5, 2))),
    "given_w": ("least squares, w known", (0, (3, 1, 1, 1))),
}
SMOOTHED = 3  # log rows that a curve is averaged over, so that it can be read

# What the authors recorded with their code at its own size (20 dims, 41 points, 12 layers; Choi et al., ICLR 2025,
# arXiv 2503.09032): one run an arm. Squared errors after 0, 10, 20 and 40 pairs; the cosine is their partial derivative.
# Their formula of the true gradient holds for the polynomial only, so there is a cosine for it alone.
RECORDED_PAIRS = [0, 10, 20, 40]
RECORDED = {
    "polynomial": {
        "errors": {"cft": [0.33, 0.29, 0.32, 0.63], "cpt": [1110, 937, 858, 771], "neg": [898, 944, 906, 912]},
        "partial": {"cft": 0.984, "cpt": 0.322, "neg": 0.182},
    },
    "sumdot": {
        "excess": {"cft": 1.02, "cpt": 2.03, "neg": 2.12},  # training loss in units of pre-training's best error
        "errors": {
            "cft": [20.8, 11.1, 0.84, 0.029],
            "cpt": [40.8, 19.8, 0.79, 0.020],
            "neg": [40.8, 20.2, 3.05, 0.246],
        },
    },
    "relu": {
        "errors": {"cft": [0.0, 0.0, 0.0, 0.0], "cpt": [6.97, 4.99, 2.78, 0.302], "neg": [7.10, 4.75, 2.69, 0.219]},
    },
}


def read_result(path: Path | str) -> dict:
    """Return the results in a file of `ctxft synthetic --out`; raises InputError where it is another kind of file."""
    study = read_json(Path(path))
    if not isinstance(study, dict) or not {"target", "runs", "baselines", "config"} <= study.keys():
        raise InputError(f"{path} is not a result of `ctxft synthetic --out`: choose another file.")
    return study


def mean_error(run: dict, context: str = "own") -> float:
    """Return the squared error of one run, mean over points, with its own context, a fresh one or none."""
    return fmean(run["errors"][context]["mean"])


def study_table(study: dict) -> pandas.DataFrame:
    """Return a row an arm: squared errors (mean ± standard deviation over seeds), ratio to cpt, alignment.

    Args:
        study: from ``run_study``, ``read_study`` or ``read_result``.

    Returns:
        Columns: arm; seeds; error with the arm's own context; that over cpt's, seed by seed, lowest to highest; over
        the best constant's; over that of the best guess from the lengths of w and w2 alone; errors of the same network
        that reads a fresh context, or none; cosine of the partial and of the total derivative with the true gradient.
    """
    guesses = {name: fmean(study["baselines"][name]) for name in ("constant", "scale")}
    rows = []
    for arm, seeds in study["runs"].items():
        errors = {context: [mean_error(run, context) for run in seeds.values()] for context in READS}
        row = {"arm": arm, "seeds": len(seeds), "error": _mean_and_sd(errors["own"]), "over cpt": ""}
        if cpt := study["runs"].get("cpt"):
            ratios = [error / mean_error(cpt[seed]) for seed, error in zip(seeds, errors["own"], strict=True)]
            row["over cpt"] = " to ".join(sorted({f"{min(ratios):.3f}", f"{max(ratios):.3f}"}))
        row |= {f"over {name}": f"{fmean(errors['own']) / guess:.3f}" for name, guess in guesses.items()}
        row |= {READS[context]: _mean_and_sd(errors[context]) for context in ("fresh", "none")}
        for name in ("partial", "total"):
            row[f"cosine, {name}"] = _mean_and_sd([run["alignment"][name] for run in seeds.values()])
        rows.append(row)
    return pandas.DataFrame(rows)


def _mean_and_sd(values: list[float]) -> str:
    sd = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{sd}"


def _by_arm(study: dict, arms: list[str], value: Callable[[dict], float]) -> str:
    """Return the mean over seeds of a value of a run, for each arm, in words."""
    means = ((arm, fmean(value(run) for run in study["runs"][arm].values())) for arm in arms)
    return ", ".join(f"{arm} {mean:.3g}" for arm, mean in means)


# --- figures ----------------------------------------------------------------------------------------------------------


def _legend(figure: Figure, axes: Axes) -> None:
    count = len(axes.get_legend_handles_labels()[1])
    ncols = math.ceil(count / math.ceil(count / 6))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=ncols)


def _line(axes: Axes, arms: list[str], arm: str, x: list | range, y: list[float], points: bool = False) -> None:
    """Draw an arm's line; lines of arms often coincide, so an earlier one is wider and shows as a rim."""
    width = 1.4 + 0.35 * (len(arms) - 1 - arms.index(arm))
    markers = {"marker": "o", "markersize": width + 2} if points else {}
    axes.plot(x, y, linewidth=width, label=arm, color=COLORS[arm], linestyle=STYLES.get(arm, "-"), **markers)


def _log(axes: Axes, axis: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5 and their tens."""
    axes.set(**{f"{axis}scale": "log"})
    ticks = getattr(axes, f"{axis}axis")
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


def _smooth(values: list[float]) -> list[float]:
    return [fmean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]


@styled
def curves_figure(study: dict, arms: list[str] | None = None) -> Figure:
    """Return training loss over optimizer steps: the mean over seeds an arm, smoothed over three rows of the log.

    Args:
        study: the results, or ``read_progress`` of a study that still runs.
        arms: which to draw; None draws all.
    """
    figure = Figure(figsize=(7.6, 3.9))
    axes, arms = figure.subplots(), arms or list(study["runs"])
    for arm in arms:
        logs = [run["log"] for run in study["runs"][arm].values()]
        losses = [fmean(values) for values in zip(*(log["loss"] for log in logs), strict=False)]  # while it grows
        _line(axes, arms, arm, logs[0]["step"][: len(losses)], _smooth(losses))
    constant = fmean(study["baselines"]["constant"])
    axes.axhline(constant, color=INK, linewidth=0.9, linestyle=(0, (1, 3)), label="best constant")
    _log(axes, "y")
    axes.set(xlabel="optimizer step", ylabel="training loss (squared error)")
    seeds = len(study["seeds"])
    axes.set_title(f"{study['target']}, {'1 seed' if seeds == 1 else f'mean of {seeds} seeds'}", fontsize=10.5)
    _legend(figure, axes)
    last = _by_arm(study, arms, lambda run: _smooth(run["log"]["loss"])[-1] if run["log"]["loss"] else math.nan)
    words = f"At the end: {last}; best constant {constant:.3g}."
    figure.set_label(f"{study['target']}: training loss (squared error) over optimizer steps. {words}")
    return figure


@styled
def errors_figure(study: dict, arms: list[str] | None = None, recorded: bool = True) -> Figure:
    """Return squared error by number of target pairs read: own context, fresh context, and what the authors recorded.

    Args:
        study: the results.
        arms: which to draw; None draws all.
        recorded: add a panel with the authors' numbers, where there are any for the target. It has its own axes,
            since they are of another size.
    """
    panels = 3 if recorded and study["target"] in RECORDED else 2
    figure, arms = Figure(figsize=(3.6 * panels, 3.9), dpi=85), arms or list(study["runs"])
    own, fresh, *theirs = figure.subplots(1, panels)
    for axes, context, title in ((own, "own", "its own context"), (fresh, "fresh", "a fresh context")):
        _errors_panel(axes, study, arms, context)
        size = f"{study['config']['dims']} dims, {study['config']['points']} points"
        axes.set_title(f"read with {title} ({size})", fontsize=10.5)
    own.set_ylabel("squared error")
    fresh.sharey(own)
    for axes in theirs:
        _recorded_panel(axes, RECORDED[study["target"]]["errors"])
    _legend(figure, own)
    means = {name: _by_arm(study, arms, functools.partial(mean_error, context=name)) for name in ("own", "fresh")}
    figure.set_label(
        f"{study['target']}: squared error over the number of target pairs read before the query, with 95 % bands. "
        f"Means over all points, with its own context: {means['own']}; with a fresh one: {means['fresh']}."
    )
    return figure


def _errors_panel(axes: Axes, study: dict, arms: list[str], context: str) -> None:
    """Draw errors by pairs read; a band spans the 95 % bootstrap bands of all seeds."""
    for arm in arms:
        bands = [run["errors"][context] for run in study["runs"][arm].values()]
        pairs = range(len(bands[0]["mean"]))
        mean, low, high = (
            [reduce(values) for values in zip(*(band[name] for band in bands), strict=True)]
            for name, reduce in (("mean", fmean), ("low", min), ("high", max))
        )
        axes.fill_between(pairs, low, high, color=COLORS[arm], alpha=0.12, linewidth=0)
        _line(axes, arms, arm, pairs, mean, points=True)
    axes.set_xlabel("target pairs read before the query")
    _log(axes, "y")
    errors = study["baselines"]
    for name, (label, style) in BASELINES.items():
        values = errors.get(name, [])
        uninformative = name == "scale" and fmean(values) > 0.99 * fmean(
            errors["constant"]
        )  # |w| says nothing of an odd f
        if values and not uninformative:
            shown = [value if value > 1e-4 else math.nan for value in values]  # exact zeros have no logarithm
            axes.plot(range(len(shown)), shown, color=INK, linewidth=0.9, linestyle=style, label=label)


def _recorded_panel(axes: Axes, errors: dict[str, list[float]]) -> None:
    for arm, values in errors.items():
        axes.plot(RECORDED_PAIRS, values, color=COLORS[arm], marker="s", markersize=5, mfc="white", linewidth=1.1)
    if any(value == 0 for values in errors.values() for value in values):
        axes.set_yscale("symlog", linthresh=0.1)
    else:
        _log(axes, "y")
    axes.set_xlabel("target pairs read before the query")
    axes.set_title("the authors' record (20 dims, 41 points)", fontsize=10.5)


@styled
def alignment_figure(study: dict) -> Figure:
    """Return how well the prediction's derivative points along the true gradient: partial and total, a dot a seed."""
    figure, arms = Figure(figsize=(7.6, 3.3)), list(study["runs"])
    axes, theirs = figure.subplots(), RECORDED.get(study["target"], {}).get("partial", {})
    for place, arm in enumerate(arms):
        for shift, name, fill in ((-0.14, "partial", "white"), (0.14, "total", COLORS[arm])):
            values = [run["alignment"][name] for run in study["runs"][arm].values()]
            axes.plot([place + shift] * len(values), values, "o", mec=COLORS[arm], mfc=fill, markersize=7)
        if arm in theirs:
            axes.plot([place - 0.32, place + 0.04], [theirs[arm]] * 2, color=INK, linewidth=1.4)
    for label, fill in (("partial: context values held", "white"), ("total: context values move", INK)):
        axes.plot([], [], "o", color=INK, mfc=fill, label=label)
    if theirs:
        axes.plot([], [], color=INK, linewidth=1.4, label="the authors' (partial, their size)")
    axes.set_xticks(range(len(arms)), arms)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.03)
    axes.set_ylabel("cosine with the true gradient")
    axes.set_title(study["target"], fontsize=10.5)
    _legend(figure, axes)
    partial, total = (
        _by_arm(study, arms, lambda run, name=name: run["alignment"][name]) for name in ("partial", "total")
    )
    figure.set_label(
        f"{study['target']}: cosine of the prediction's derivative with the true gradient, means over seeds. "
        f"Partial derivative: {partial}; total: {total}."
    )
    return figure


@styled
def copying_figure(studies: list[dict]) -> Figure:
    """Return errors over cpt's, a panel a target: each network with the context that it was trained with, and a fresh one.

    Args:
        studies: results that hold cpt. A dot is a seed, divided by the mean of cpt.
    """
    figure, words = Figure(figsize=(3.9 * len(studies), 4.0)), []
    panels = figure.subplots(1, len(studies), squeeze=False, sharey=True)[0]
    for axes, study in zip(panels, studies, strict=True):
        unit = fmean(mean_error(run) for run in study["runs"]["cpt"].values())
        arms = list(study["runs"])[::-1]
        for shift, context, reads in ((0.14, "own", "its own context"), (-0.14, "fresh", "a fresh one")):
            for place, arm in enumerate(arms):
                fill = COLORS[arm] if context == "own" else "white"
                values = [mean_error(run, context) / unit for run in study["runs"][arm].values()]
                axes.plot(values, [place + shift] * len(values), "o", mec=COLORS[arm], mfc=fill, markersize=6)
            means = _by_arm(study, arms[::-1], lambda run, c=context, u=unit: mean_error(run, c) / u)
            words.append(f"{study['target']}, {reads}: {means}.")
        axes.axvline(1, color=INK, linewidth=0.9, linestyle=":")
        _log(axes, "x")
        axes.set_yticks(range(len(arms)), arms)
        axes.set_xlabel("squared error, in units of cpt's")
        axes.set_title(study["target"], fontsize=10.5)
    for label, fill in (("its own context", INK), ("a fresh context at the test", "white")):
        panels[0].plot([], [], "o", mec=INK, mfc=fill, label=label)
    _legend(figure, panels[0])
    figure.set_label(f"Squared error in units of cpt's mean, a dot a seed; means over seeds. {' '.join(words)}")
    return figure
