"""An evaluated run flows in; a view of its results flows out, for the benchmarks, the arms and the reference one chooses."""

from __future__ import annotations

import functools
import html
from pathlib import Path

import ipywidgets

from ctxft.report.choice import Comparison, references_of
from ctxft.report.markup import image_html, results_html
from ctxft.report.record import RunRecord, as_record
from ctxft.runtime import InputError
from ctxft.widgets.base import Explorer, labelled

EVERY = "all benchmarks"
NOTE = "Every number is that of the whole run, whatever is shown: Holm's p counts all benchmarks."
STYLE = (
    "<style>.ctxft-results table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    ".ctxft-results th,.ctxft-results td{padding:.2em .5em;text-align:right;white-space:nowrap;border-bottom:1px solid #8885}"
    ".ctxft-results td:first-child,.ctxft-results th:first-child,.ctxft-results .arm{text-align:left}"
    ".ctxft-results .line{font-style:italic} .ctxft-results .first td{border-top:1px solid #888}"
    ".ctxft-results .dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.4em}"
    ".ctxft-results .wide{overflow-x:auto} .ctxft-results img{background:#fff;max-width:100%}</style>"
)


class ResultsExplorer(Explorer):
    """Choose a benchmark, a reference arm and the arms to show, and see their rows of the results table and their differences.

    Args:
        run: a run folder, or a run that is read already.

    Raises:
        InputError: the folder is no evaluated run, or no arm was evaluated on all its benchmarks.

    Example:
        >>> ResultsExplorer("runs/mini")  # doctest: +SKIP
    """

    def __init__(self, run: RunRecord | str | Path) -> None:
        self.run = as_record(run)
        references = references_of(self.run)
        if not references:
            raise InputError(f"{self.run.folder}: no arm was evaluated on all benchmarks: evaluate one on all.")
        self._comparison_of = functools.cache(functools.partial(Comparison, self.run))
        self.benchmark = labelled(ipywidgets.Dropdown, "benchmark", options=[*self.run.outcomes, EVERY])
        self.reference = labelled(ipywidgets.Dropdown, "minus", options=references)
        self.boxes = {arm: ipywidgets.Checkbox(value=True, description=arm, indent=False) for arm in self.run.metrics}
        for box in self.boxes.values():
            box.layout.width = "auto"
        super().__init__([self.benchmark, self.reference], [*self.boxes.values()])

    @property
    def comparison(self) -> Comparison:
        """The run compared with the chosen reference."""
        return self._comparison_of(self.reference.value)

    @property
    def chosen(self) -> tuple[list[str], list[str]]:
        """The benchmarks and the arms that are shown."""
        every = self.benchmark.value == EVERY
        arms = [arm for arm, box in self.boxes.items() if box.value]
        return list(self.run.outcomes) if every else [self.benchmark.value], arms

    @property
    def text(self) -> str:
        """The rows that are shown, as text."""
        return "\n\n".join([self.comparison.rows(*self.chosen).to_string(index=False), NOTE, self.comparison.said])

    @property
    def html(self) -> str:
        """The rows and the differences that are shown, as HTML."""
        table = results_html(self.comparison.rows(*self.chosen))
        said = "".join(f"<p>{html.escape(line)}</p>" for line in (NOTE, self.comparison.said))
        return f'<div class="ctxft-results">{STYLE}{table}{self._figures(*self.chosen)}{said}</div>'

    def _figures(self, benchmarks: list[str], arms: list[str]) -> str:
        reference = self.reference.value
        if not set(arms) - {reference, "base"}:
            return "<p>No arm is chosen whose difference could be drawn.</p>"
        described = f"differences to {reference} in points of accuracy, with intervals: the table above has the numbers"
        figures = (self.comparison.figure([name], arms) for name in benchmarks)
        return "".join(image_html(figure, html.escape(described), dpi=110) for figure in figures)
