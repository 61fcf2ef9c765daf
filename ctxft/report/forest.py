"""The parts of a forest plot: values with their intervals go in, marks on the lines of an axes come out."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ctxft.report.figures import INK

Look = tuple[str, str, str]  # colour, marker, and the words of the legend: shapes tell apart what colours may not


def mark(
    axes: Axes, y: float, values: tuple[float, float | None, float | None], look: Look, filled: bool = True
) -> None:
    """Draw a value with its interval on a line.

    Args:
        axes: where.
        y: the line.
        values: the value and the ends of its interval, None where it has none.
        look: colour and marker.
        filled: draw a full mark, or an open one.
    """
    (value, *ends), (color, marker, _) = values, look
    if None not in ends:
        axes.plot(ends, [y, y], color=color, linewidth=1.5, solid_capstyle="butt")
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
    """Put a legend below a figure; ``open_words`` say what an open mark means, where there are any."""
    marks = [Line2D([], [], color=color, marker=marker, markersize=6, label=words) for color, marker, words in looks]
    if open_words:
        plain = {"linestyle": "", "marker": "o", "color": INK, "markerfacecolor": "white"}
        marks.append(Line2D([], [], label=open_words, **plain))
    figure.legend(handles=marks, loc="outside lower center", ncols=min(4, len(marks)))
