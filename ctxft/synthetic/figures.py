"""Draw tables and figures of a study's results (a JSON value, see ``ctxft.synthetic.study``) next to the authors' numbers.

No torch is imported: a committed result file is enough.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ctxft.report.figures import INK, arm_color, styled
from ctxft.storage import InputError, read_json, read_yaml

# cpt, cft and neg as everywhere; the rest of Okabe and Ito's palette for our own arms.
COLORS = {name: arm_color(name) for name in ("cft", "cpt", "neg")}
COLORS |= {"fresh": "#009E73", "no-query": "#56B4E9", "cpt-long": "#E69F00", "neg-scaled": "#000000"}
COLORS |= {"shuffled": "#8C6D31"}
STYLES = {"neg-scaled": "--", "shuffled": ":", "cpt-long": "-.", "no-query": (0, (5, 1))}
BASELINES = {
    "constant": ("best constant", (0, (1, 3))),
    "scale": ("best guess from |w|", (0, (5, 2))),
    "least_squares": ("least squares", (0, (5, 2))),
    "given_w": ("least squares, w known", (0, (3, 1, 1, 1))),
}
SMOOTHED = 3  # log rows that a curve is averaged over, so that it can be read

RECORDED = read_yaml(Path(__file__).with_name("recorded.yaml"))  # target -> what the authors recorded
RECORDED_PAIRS = [0, 10, 20, 40]  # target pairs read before the query


def read_result(path: Path | str) -> dict:
    """Return the results in a file of `ctxft synthetic --out`; raises InputError where it is another kind of file."""
    study = read_json(Path(path))
    if not isinstance(study, dict) or not {"target", "runs", "baselines", "config"} <= study.keys():
        raise InputError(f"{path} is not a result of `ctxft synthetic --out`: choose another file.")
    return study


def mean_error(run: dict, context: str = "own") -> float:
    """Return the squared error of one run, mean over points, with its own context, a fresh one or none."""
    return fmean(run["errors"][context]["mean"])


def _runs(study: dict, arms: list[str] | None = None) -> Any:
    """Return a row an arm and seed: the errors with its own context, a fresh one and none, and both cosines."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            **{context: mean_error(run, context) for context in run["errors"]},
            **run["alignment"],
        }
        for arm in arms or study["runs"]
        for seed, run in study["runs"][arm].items()
    ]
    return pandas.DataFrame(rows)


def study_table(study: dict) -> pandas.DataFrame:
    """Return a row an arm: squared errors (mean ± standard deviation over seeds), ratio to cpt, alignment.

    Args:
        study: from ``run_study`` or ``read_result``.

    Returns:
        Columns: arm; seeds; error with the arm's own context; that over cpt's, seed by seed, lowest to highest; over
        the best constant's; over that of the best guess from the lengths of w and w2 alone; errors of the same network
        that reads a fresh context, or none; cosine of the partial and of the total derivative with the true gradient.
    """
    runs, rows = _runs(study), []
    runs["ratio"] = runs["own"] / runs["seed"].map(runs[runs["arm"] == "cpt"].set_index("seed")["own"])
    for arm, seeds in runs.groupby("arm", sort=False):
        words = {name: _mean_and_sd(seeds[name]) for name in ("own", "fresh", "none", "partial", "total")}
        ends = [f"{ratio:.3f}" for ratio in (seeds["ratio"].min(), seeds["ratio"].max()) if ratio == ratio]
        over = {name: f"{seeds['own'].mean() / fmean(study['baselines'][name]):.3f}" for name in ("constant", "scale")}
        row = {"arm": arm, "seeds": len(seeds), "error": words["own"], "over cpt": " to ".join(dict.fromkeys(ends))}
        row |= {f"over {name}": ratio for name, ratio in over.items()}
        row |= {"with fresh context": words["fresh"], "without context": words["none"]}
        rows.append(row | {f"cosine, {name}": words[name] for name in ("partial", "total")})
    return pandas.DataFrame(rows)


def _mean_and_sd(values: Any) -> str:
    sd = f" ± {values.std():.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{sd}"


def _means(runs: Any, column: str) -> str:
    """Return the mean over seeds of each arm in words."""
    means = runs.groupby("arm", sort=False)[column].mean()
    return ", ".join(f"{arm} {mean:.3g}" for arm, mean in means.items())


# --- figures ----------------------------------------------------------------------------------------------------------


def _finish(figure: Figure, axes: Axes, words: str) -> Figure:
    """Add the legend of some axes below all of them, and the figure's numbers in words."""
    handles, labels = axes.get_legend_handles_labels()
    columns = math.ceil(len(labels) / math.ceil(len(labels) / 6))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.set_label(words)
    return figure


def _line(axes: Axes, arms: list[str], arm: str, x: Any, y: Any, **style: Any) -> None:
    """Draw an arm's line; lines of arms often coincide, so an earlier one is wider and shows as a rim."""
    width = 1.4 + 0.35 * (len(arms) - 1 - arms.index(arm))
    axes.plot(
        x, y, label=arm, color=COLORS[arm], linestyle=STYLES.get(arm, "-"), linewidth=width, ms=width + 2, **style
    )


def _log(axes: Axes, axis: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5 and their tens."""
    axes.set(**{f"{axis}scale": "log"})
    ticks = getattr(axes, f"{axis}axis")
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


@styled
def curves_figure(study: dict) -> Figure:
    """Return training loss over optimizer steps: the mean over seeds an arm, smoothed over three rows of the log.

    Args:
        study: the results, or ``read_progress`` of a study that still runs.
    """
    figure, last = Figure(figsize=(7.6, 3.9)), []
    axes, arms = figure.subplots(), list(study["runs"])
    for arm, runs in study["runs"].items():
        logs = {seed: run["log"] for seed, run in runs.items()}
        losses = pandas.DataFrame({seed: pandas.Series(log["loss"], log["step"]) for seed, log in logs.items()})
        curve: Any = losses.dropna().mean(axis=1).rolling(SMOOTHED, min_periods=1).mean()  # seeds may be unequally far
        _line(axes, arms, arm, curve.index, curve)
        last += [f"{arm} {loss:.3g}" for loss in curve[-1:]]
    constant = fmean(study["baselines"]["constant"])
    axes.axhline(constant, color=INK, linewidth=0.9, linestyle=(0, (1, 3)), label="best constant")
    _log(axes, "y")
    axes.set(xlabel="optimizer step", ylabel="training loss (squared error)")
    seeds = len(study["seeds"])
    axes.set_title(f"{study['target']}, {'1 seed' if seeds == 1 else f'mean of {seeds} seeds'}")
    end = f"At the end: {', '.join(last)}; best constant {constant:.3g}."
    return _finish(figure, axes, f"{study['target']}: training loss (squared error) over optimizer steps. {end}")


@styled
def errors_figure(study: dict, arms: list[str] | None = None) -> Figure:
    """Return squared error by number of target pairs read: own context, fresh context, and what the authors recorded.

    Args:
        study: the results.
        arms: which to draw; None draws all. The authors' numbers have axes of their own, since they are of another size.
    """
    recorded = RECORDED.get(study["target"], {}).get("errors", {})
    panels = 3 if recorded else 2
    figure, arms = Figure(figsize=(3.6 * panels, 3.9), dpi=85), arms or list(study["runs"])
    own, fresh, *theirs = figure.subplots(1, panels)
    fresh.sharey(own)
    for axes, context in ((own, "own"), (fresh, "fresh")):
        for arm in arms:
            _band(axes, arms, arm, [run["errors"][context] for run in study["runs"][arm].values()])
        for name, (label, style) in BASELINES.items():
            values = pandas.Series(study["baselines"].get(name, []), dtype=float)
            flat = name == "scale" and values.mean() > 0.99 * fmean(study["baselines"]["constant"])
            if len(values) and not flat:  # |w| says nothing of an odd function; exact zeros have no logarithm
                axes.plot(values.where(values > 1e-4), color=INK, linewidth=0.9, linestyle=style, label=label)
        _log(axes, "y")
        size = f"{study['config']['dims']} dims, {study['config']['points']} points"
        axes.set_title(f"{context} context ({size})")
    for axes in theirs:
        for arm, values in recorded.items():
            axes.plot(RECORDED_PAIRS, values, color=COLORS[arm], marker="s", markersize=5, mfc="white", linewidth=1.1)
        _log(axes, "y")
        if study["target"] == "relu":  # of which cft's errors are zeros
            axes.set_yscale("symlog", linthresh=0.1)
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title("the authors' (20 dims, 41 points)")
    own.set_ylabel("squared error")
    for axes in figure.axes:
        axes.set_xlabel("target pairs read before the query")
    runs = _runs(study, arms)
    words = f"with its own context: {_means(runs, 'own')}; with a fresh one: {_means(runs, 'fresh')}."
    about = "squared error over the number of target pairs read before the query, with 95 % bands"
    return _finish(figure, own, f"{study['target']}: {about}. Means over all points, {words}")


def _band(axes: Axes, arms: list[str], arm: str, seeds: list[dict]) -> None:
    """Draw an arm's errors by pairs read; the band spans the 95 % bootstrap bands of all seeds."""
    mean, low, high = (pandas.DataFrame([errors[name] for errors in seeds]) for name in ("mean", "low", "high"))
    axes.fill_between(mean.columns, low.min(), high.max(), color=COLORS[arm], alpha=0.12, linewidth=0)
    _line(axes, arms, arm, mean.columns, mean.mean(), marker="o")


def _dots(axes: Axes, runs: Any, full: tuple[str, str], hollow: tuple[str, str]) -> None:
    """Draw two columns of the runs, a dot a seed, in two lines an arm; each column with its words for the legend."""
    arms = list(runs["arm"].unique())
    for (column, label), shift, filled in ((full, -0.14, True), (hollow, 0.14, False)):
        for place, arm in enumerate(arms):
            values, color = runs.loc[runs["arm"] == arm, column], COLORS[arm]
            axes.plot(values, [place + shift] * len(values), "o", mec=color, mfc=color if filled else "white", ms=6)
        axes.plot([], [], "o", mec=INK, mfc=INK if filled else "white", label=label)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)


@styled
def alignment_figure(study: dict) -> Figure:
    """Return how well the prediction's derivative points along the true gradient: partial and total, a dot a seed."""
    figure, runs = Figure(figsize=(7.6, 3.9)), _runs(study)
    axes = figure.subplots()
    _dots(axes, runs, ("total", "total: context values move"), ("partial", "partial: context values held"))
    label = "the authors' (partial, their size)"
    for arm, cosine in RECORDED.get(study["target"], {}).get("partial", {}).items():
        place = list(study["runs"]).index(arm) if arm in study["runs"] else math.nan
        axes.plot([cosine] * 2, [place - 0.05, place + 0.33], color=INK, linewidth=1.6, label=label)
        label = ""
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.03)
    axes.set_xlabel("cosine with the true gradient")
    axes.set_title(study["target"])
    words = f"Partial derivative: {_means(runs, 'partial')}; total: {_means(runs, 'total')}."
    about = "cosine of the prediction's derivative with the true gradient, means over seeds"
    return _finish(figure, axes, f"{study['target']}: {about}. {words}")


@styled
def copying_figure(studies: list[dict]) -> Figure:
    """Return errors over cpt's, a panel a target: each network with the context that it was trained with, and a fresh one.

    Args:
        studies: results that hold cpt. A dot is a seed, divided by the mean of cpt.
    """
    figure, words = Figure(figsize=(3.9 * len(studies), 4.0)), []
    panels = figure.subplots(1, len(studies), squeeze=False, sharey=True)[0]
    for axes, study in zip(panels, studies, strict=True):
        runs = _runs(study)
        runs[["own", "fresh"]] /= runs.loc[runs["arm"] == "cpt", "own"].mean()
        _dots(axes, runs, ("own", "its own context"), ("fresh", "a fresh context at the test"))
        for column, reads in (("own", "its own context"), ("fresh", "a fresh one")):
            words.append(f"{study['target']}, {reads}: {_means(runs, column)}.")
        axes.axvline(1, color=INK, linewidth=0.9, linestyle=":")
        _log(axes, "x")
        axes.set_xlabel("squared error, in units of cpt's")
        axes.set_title(study["target"])
    about = "Squared error in units of cpt's mean, a dot a seed; means over seeds."
    return _finish(figure, panels[0], f"{about} {' '.join(words)}")
