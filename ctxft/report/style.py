"""A function that draws goes in; one that draws in the kit's style comes out, and the session's own settings stay as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import matplotlib
from matplotlib.figure import Figure

Given = ParamSpec("Given")
SHEET = matplotlib.rc_params_from_file(
    Path(__file__).with_name("ctxft.mplstyle"), fail_on_error=True, use_default_template=False
)


def styled(draw: Callable[Given, Figure]) -> Callable[Given, Figure]:
    """Let a function draw its figure in the kit's style sheet (``ctxft/report/ctxft.mplstyle``).

    Example:
        >>> @styled
        ... def empty() -> Figure:
        ...     return Figure()
    """

    @functools.wraps(draw)
    def in_style(*args: Given.args, **kwargs: Given.kwargs) -> Figure:
        with matplotlib.rc_context(SHEET):
            return draw(*args, **kwargs)

    return in_style


def interval(low: float | None, high: float | None, form: str = "+.1f") -> str:
    """Return the ends of an interval in brackets, or nothing where there are none."""
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
