"""Draw the figures of a run, in which an arm has one color everywhere, and show them in a notebook, in a page and on disk.

All figures are plain ``Figure`` objects without pyplot's state. Each carries its numbers in words (``figure.get_label()``) for
readers who cannot see it.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from ctxft.prompts import get_arm, sort_arms
from ctxft.report.comparisons import ablation_rows
from ctxft.report.record import Source, as_record
from ctxft.statistics import Outcomes, common_seeds, wilson
from ctxft.storage import InputError, atomic_file, write_text

INK = "#333333"
MARKERS = "osD^vP*X<>"  # in addition to the colors, for those who cannot tell these apart
SHEET = matplotlib.rc_params_from_file(
    Path(__file__).with_name("ctxft.mplstyle"), fail_on_error=True, use_default_template=False
)
styled = matplotlib.rc_context(
    SHEET
)  # decorates what draws in the kit's style; the session's own settings stay as they are
DPI = 100  # of the picture in a notebook, which git keeps; the file on disk has twice as many
Look = tuple[str, str, str]  # color, marker, and the words of the legend: shapes tell apart what colors may not


def arm_color(arm: str) -> str:
    """Return an arm's color: with a second stage that of the first.

    Example:
        >>> arm_color("cft-ift") == arm_color("cft")
        True
    """
    return get_arm(arm).color


def interval_text(low: float | None, high: float | None, form: str = "+.1f") -> str:
    """Return the ends of an interval in parentheses, or "" where there are none."""
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"


def _differences_text(rows: Iterable[Mapping]) -> str:
    return ", ".join(
        f"{row['arm']} {row['difference']:+.1f}{interval_text(row['difference_low'], row['difference_high'])}"
        for row in rows
    )


# --- accuracy and loss ------------------------------------------------------------------------------------------------


@styled
def results_figure(run: Source) -> Figure:
    """Return a figure of accuracy (%) per arm with 95 % intervals, a panel per benchmark, chance and majority lines."""
    run, words = as_record(run), []
    columns = min(3, len(run.outcomes))
    rows = math.ceil(len(run.outcomes) / columns)
    figure = Figure(figsize=(1.2 + 3.5 * columns, 3.5 * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (name, arms) in zip(panels, run.outcomes.items(), strict=False):
        words.append(f"{name}: {_accuracy_panel(axes, common_seeds(arms), run.baselines(name))}.")
        axes.set_title(name)
    for axes in panels[len(run.outcomes) :]:
        axes.set_visible(False)
    panels[0].set_ylim(0, 1.06 * panels[0].get_ylim()[1])  # room for the number above the tallest bar; shared by all
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy (%), 95 % interval over items")
    figure.set_label(f"Bars of accuracy in percent, with 95 % intervals over items. {' '.join(words)}")
    return figure


def _accuracy_panel(axes: Axes, arms: Outcomes, baselines: dict[str, float]) -> str:
    """Draw the bars of a benchmark, and return them in words."""
    words = []
    for x, (arm, seeds) in enumerate(arms.items()):
        values = [100 * sum(item["correct"] for item in items) / len(items) for items in seeds.values()]
        n, mean = len(next(iter(seeds.values()))), math.fsum(values) / len(values)
        low, high = (100 * end for end in wilson(mean / 100 * n, n))
        words.append(f"{arm} {mean:.1f}{interval_text(low, high, '.1f')}")
        axes.bar(x, mean, width=0.66, color=arm_color(arm), alpha=0.85)
        axes.errorbar(x, mean, yerr=[[mean - low], [high - mean]], color=INK, capsize=4, linewidth=1.2)
        if len(values) > 1:
            axes.plot([x] * len(values), values, "o", color="white", mec=INK, ms=4, zorder=3)
        axes.annotate(f"{mean:.1f}", (x, high), (0, 3), textcoords="offset points", ha="center")
    for (name, share), side in zip(sorted(baselines.items(), key=lambda line: line[1]), ("top", "bottom"), strict=True):
        axes.axhline(100 * share, color=INK, linewidth=1, linestyle={"chance": "--", "majority": ":"}[name])
        place = {"xy": (1, 100 * share), "xycoords": ("axes fraction", "data"), "annotation_clip": False}
        axes.annotate(f" {name} {100 * share:.1f}", va=side, fontsize=8, **place)
    axes.set_xticks(range(len(arms)), arms)
    if len(arms) > 5:  # level names would touch
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("arm")
    axes.set_xlim(-0.6, len(arms) - 0.4)
    return ", ".join(words + [f"{name} {100 * share:.1f}" for name, share in baselines.items()])


@styled
def loss_figure(run: Source | pandas.DataFrame) -> Figure:
    """Return a figure of training loss over optimizer steps: the mean over seeds per arm, thin lines for the seeds.

    A mean is drawn where all seeds of the arm have come.

    Args:
        run: a run folder, a Run, a run that is read already, or its ``logs``: arm, seed, step and loss (nats per target
            token) of optimizer steps.

    Raises:
        InputError: no arm of the run has a training log.
    """
    logs = run if isinstance(run, pandas.DataFrame) else as_record(run).logs
    if logs.empty:
        raise InputError("the run holds no training log (arms/<arm>/seed-<n>/log.jsonl): train an arm first.")
    figure, words = Figure(figsize=(7.6, 3.8)), []
    axes = figure.subplots()
    arms = sort_arms(set(logs["arm"]))
    for place, arm in enumerate(arms):
        log, color = logs[logs["arm"] == arm], arm_color(arm)
        seeds = len(set(log["seed"]))
        for _, one in log.groupby("seed"):
            axes.plot(one["step"], one["loss"], color=color, linewidth=0.7, alpha=0.3 if seeds > 1 else 0)
        mean = log.pivot_table(index="step", columns="seed", values="loss").dropna().mean(axis="columns")
        label = f"{arm}, mean of {seeds} seeds" if seeds > 1 else f"{arm}, 1 seed"
        width = 1.2 + 1.4 * (len(arms) - 1 - place)  # curves of arms often coincide: the first shows as a rim
        shape = {"marker": MARKERS[place % len(MARKERS)], "markevery": max(1, len(mean) // 8), "mec": INK, "ms": 5}
        axes.plot(mean.index, mean, color=color, linewidth=width, label=label, mew=0.6, **shape)
        if len(mean):
            first, last = (f"{mean.iloc[end]:.3f} at step {mean.index[end]}" for end in (0, -1))
            words.append(f"{label}: {first}, {last}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats per target token)")
    axes.legend()
    figure.set_label(f"Training loss in nats per target token over optimizer steps. {'; '.join(words)}.")
    return figure


# --- forest plots: values with their intervals ------------------------------------------------------------------------


def mark(
    axes: Axes, y: float, values: tuple[float, float | None, float | None], look: Look, filled: bool = True
) -> None:
    """Draw a value and its interval (None where it has none) at height ``y``, with a full marker or an open one."""
    (value, low, high), (color, marker, _) = values, look
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=color, linewidth=1.5, solid_capstyle="butt")
    face = color if filled else "white"
    axes.plot([value], [y], marker, color=color, markerfacecolor=face, markersize=6, markeredgewidth=1.5, zorder=3)


def finish(axes: Axes, places: Sequence[float], labels: Sequence[str], top: float) -> None:
    """Draw the line of no difference and name the others, from y = 0 upwards to ``top``."""
    axes.axvline(0, color=INK, linewidth=1, linestyle="--", zorder=0.5)
    axes.set_yticks(places, labels)
    axes.set_ylim(-0.6, top - 0.4)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def legend(figure: Figure, looks: Sequence[Look], open_words: str = "") -> None:
    """Put a legend below a figure; ``open_words`` say what an open marker means, where there are any."""
    marks = [Line2D([], [], color=color, marker=marker, markersize=6, label=words) for color, marker, words in looks]
    if open_words:
        marks.append(Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor="white", label=open_words))
    figure.legend(handles=marks, loc="outside lower center", ncols=min(4, len(marks)))


def _values(row: Mapping) -> tuple[float, float, float]:
    return row["difference"], row["difference_low"], row["difference_high"]


@styled
def differences_figure(panels: Mapping[str, Iterable[Mapping]], reference: str = "cpt") -> Figure:
    """Return a figure of differences from the reference arm in percentage points, with 95 % intervals, a panel per title.

    Args:
        panels: title -> rows as from ``statistics.compare`` (arm, difference, difference_low, difference_high); rows
            without a difference, such as the reference itself, and the base model are left out.
        reference: the arm that is subtracted.
    """
    figure, words = Figure(figsize=(1.4 + 3.1 * len(panels), 3.0)), []
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        shown = [row for row in rows if get_arm(row["arm"]).stages and not math.isnan(row.get("difference", math.nan))]
        for y, row in enumerate(reversed(shown)):
            mark(axes, y, _values(row), (arm_color(row["arm"]), "o", ""))
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            place = {"xy": (row["difference"], y), "xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{row['difference']:+.1f}", fontsize=9, bbox=box, **place)
        finish(axes, range(len(shown)), [row["arm"] for row in reversed(shown)], len(shown) + 0.1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"accuracy minus {reference} (pp)")
        words.append(f"{title}: {_differences_text(shown)}.")
    figure.set_label(f"Accuracy minus {reference} in percentage points, with 95 % intervals. {' '.join(words)}")
    return figure


SIDES = {"only": 0.16, "without": -0.16}  # above and below the line of their family
LOOKS = {
    "only": (arm_color("only-any"), "o", "this family only"),
    "without": (arm_color("without-any"), "s", "all families but this"),
}


def ablation_figure(run: Source, reference: str = "cft", benchmark: str | None = None) -> Figure:
    """Return a forest plot of which family of prompts matters: each arm of an ablation minus the reference.

    A family has one line with two markers: trained with it alone, and with all but it. The most helpful family is on top,
    other arms are at the bottom. A marker is filled if the difference stands after Holm's correction.

    Args:
        run: a run folder, a Run, or a run that is read already.
        reference: the arm that is subtracted.
        benchmark: one of the run's; None takes the only one.

    Raises:
        InputError: as ``ablation_rows``, or there are such arms on no benchmark, or on several.
    """
    tables = ablation_rows(run, reference, benchmark)
    if len(tables) != 1:
        raise InputError(
            "the figure shows one benchmark with arms such as only-<family>, without-<family> or count-<n>, found "
            f"{', '.join(tables) or 'none'}: {'name one' if tables else 'train and evaluate some arms'}."
        )
    ((name, rows),) = tables.items()
    return families_figure(rows, f"{name}: which family matters?", reference)


@styled
def families_figure(rows: Sequence[dict], title: str, reference: str = "cft") -> Figure:
    """Return the forest plot of ``ablation_figure`` for given rows, such as those of a committed study.

    Args:
        rows: of one benchmark, as from ``ablation_rows``.
        title: of the figure.
        reference: the arm that was subtracted.
    """
    shown = [row for row in rows if row["arm"] != reference]
    lines = _family_lines(shown)
    figure = Figure(figsize=(7.3, 1.5 + 0.36 * len(lines)))
    axes = figure.subplots()
    for y, line in enumerate(reversed(lines.values())):
        for row in line:
            look = LOOKS.get(row["kind"]) or (arm_color(row["arm"]), "D", "")
            shift = SIDES[row["kind"]] if len(line) > 1 else 0.0
            mark(axes, y + shift, _values(row), look, filled=row["word"] in ("higher", "lower"))
    whole = sum(row["kind"] not in SIDES for row in shown)
    if 0 < whole < len(lines):
        axes.axhline(whole - 0.5, color=INK, linewidth=0.6)
    finish(axes, range(len(lines)), list(reversed(lines)), len(lines))
    axes.set_xlabel(f"accuracy minus {reference} (pp), with 95 % intervals")
    axes.set_title(title)
    about = f"Accuracy minus {reference} in percentage points, with 95 % intervals"
    figure.set_label(f"{title} {about}: {_differences_text(shown)}.")
    kinds = {row["kind"] for row in shown}
    legend(figure, [LOOKS[kind] for kind in SIDES if kind in kinds], "open: not shown after Holm")
    return figure


def _family_lines(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Return label -> rows of each line of the plot, from the top."""
    of_family = [row for row in rows if row["kind"] in SIDES]
    # what a family brings alone, or, where that was not tried, what is lost without it
    gains = {row["part"]: -row["difference"] for row in of_family if row["kind"] == "without"}
    gains |= {row["part"]: row["difference"] for row in of_family if row["kind"] == "only"}
    ranked = sorted(gains, key=lambda family: -gains[family])
    lines = {family: [row for row in of_family if row["part"] == family] for family in ranked}
    return lines | {row["arm"]: [row] for row in rows if row["kind"] not in SIDES}


# --- labeled texts ----------------------------------------------------------------------------------------------------


@styled
def confusion_figure(tables: Mapping[str, Sequence[Sequence[int]]], labels: Sequence[str]) -> Figure:
    """Return a figure of confusion matrices, a panel per title: rows are true labels, columns predictions, cells counts.

    Args:
        tables: title -> matrix as in ``metrics(...)["confusion"]``; those of several seeds may be summed.
        labels: in the order of the matrices.
    """
    size, words = 1.4 + 0.5 * len(labels), []
    figure = Figure(figsize=(1.6 + size * len(tables), size))
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
        axes.set_xlabel("predicted")
        right = int(numpy.trace(counts))
        words.append(f"{title}: {right} of {int(counts.sum())} on the diagonal, rows {counts.tolist()}.")
    grid[0].set_ylabel("true")
    figure.set_label(
        f"Items by true label (rows) and predicted label (columns): {', '.join(labels)}. {' '.join(words)}"
    )
    return figure


@styled
def reliability_figure(calibrations: Mapping[str, dict]) -> Figure:
    """Return a figure of accuracy over confidence, a panel per arm; on the diagonal a model is as often right as it is sure.

    Args:
        calibrations: arm -> what ``ctxft.evaluation.metrics.calibration`` returns.
    """
    figure, words = Figure(figsize=(1.0 + 2.9 * len(calibrations), 3.1)), []
    grid = figure.subplots(1, len(calibrations), squeeze=False, sharey=True)[0]
    for axes, (arm, values) in zip(grid, calibrations.items(), strict=True):
        confidence, accuracy, sizes = ([bin[key] for bin in values["bins"]] for key in ("confidence", "accuracy", "n"))
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
        areas = [20 + 180 * n / max(sizes) for n in sizes]
        axes.scatter(confidence, accuracy, s=areas, color=arm_color(arm), alpha=0.8)
        axes.set_title(f"{arm}, ECE {values['ece']:.3f}")
        dots = ", ".join(f"{c:.2f}/{a:.2f}" for c, a in zip(confidence, accuracy, strict=True))
        words.append(f"{arm}: {dots}; expected calibration error {values['ece']:.3f}.")
        axes.set_xlabel("confidence")
        axes.set_xlim(0, 1.05)
        axes.set_ylim(-0.05, 1.1)
    grid[0].set_ylabel("accuracy")
    figure.set_label(f"Accuracy over confidence, a dot a bin (confidence/accuracy). {' '.join(words)}")
    return figure


# --- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it: a PNG, and its words where pictures are not seen.

    Attributes:
        png: the picture.
        alt: what it shows, in words.
        width: in CSS pixels.
    """

    png: bytes
    alt: str
    width: int

    @property
    def data(self) -> str:
        """The picture in base64."""
        return base64.b64encode(self.png).decode()

    def _repr_mimebundle_(self, **_options: object) -> tuple[dict, dict]:
        data = {"image/png": self.data, "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt, "width": self.width}}


@styled
def picture(figure: Figure, dpi: int = DPI, colors: int | None = None) -> Picture:
    """Return a figure as a picture, the same bytes in every run; fewer ``colors`` make fewer bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    if colors is not None:
        image, file = Image.open(file).convert("RGB").quantize(colors), io.BytesIO()
        image.save(file, format="png", optimize=True)
    return Picture(file.getvalue(), str(figure.get_label()), round(figure.get_figwidth() * 96))


@styled
def save(figure: Figure, name: str, folder: str | os.PathLike) -> Picture:
    """Write ``figures/<name>.png`` and ``.svg``, whose words a screen reader finds, below a run folder; returns the picture."""
    png, place, svg = picture(figure, 2 * DPI), Path(folder) / "figures", io.StringIO()
    with atomic_file(place / f"{name}.png", binary=True) as file:
        file.write(png.png)
    about = {"Date": None, "Creator": None, "Title": name, "Description": figure.get_label()}
    figure.savefig(svg, format="svg", metadata=about)
    write_text(place / f"{name}.svg", svg.getvalue())
    return png


def show(figure: Figure, name: str, folder: str | os.PathLike, alt: str = "") -> Picture:
    """Show a figure in a notebook, and write it to disk as PNG and SVG.

    Args:
        figure: from ``ctxft.report``, or your own.
        name: of the files, as in "04-losses".
        folder: the run folder, or a Run; the files go into its ``figures/``.
        alt: what the figure shows, in words; figures of ``ctxft.report`` bring theirs along (``figure.get_label()``).

    Returns:
        The picture, to be the last line of a cell.

    Raises:
        InputError: the figure has no words.
    """
    figure.set_label(alt or figure.get_label())
    if not figure.get_label():
        raise InputError(f"figure '{name}' has no words for those who cannot see it: give alt.")
    save(figure, name, folder)
    return picture(figure, colors=128)  # git keeps notebooks: a third of the bytes, and no eye sees it
