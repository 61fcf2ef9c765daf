"""An evaluated run flows in; a view of its results flows out, for the benchmarks, the arms and the reference one chooses."""

from __future__ import annotations

import functools
import html
from pathlib import Path

import ipywidgets

from ctxft.prompts import get_arm
from ctxft.report.choice import Comparison, references_of
from ctxft.report.figures import picture
from ctxft.report.page import MACROS
from ctxft.report.record import RunRecord, as_record
from ctxft.storage import InputError
from ctxft.widgets.base import Explorer, framed, labelled

EVERY = "all benchmarks"
NOTE = "Every number is that of the whole run, whatever is shown: Holm's p counts all benchmarks."


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
        self._compared_with = functools.cache(functools.partial(Comparison, self.run))
        self.benchmark = labelled(ipywidgets.Dropdown, "benchmark", options=[*self.run.outcomes, EVERY])
        self.reference = labelled(ipywidgets.Dropdown, "minus", options=references)
        self.boxes = {arm: labelled(ipywidgets.Checkbox, arm, value=True, indent=False) for arm in self.run.metrics}
        super().__init__([self.benchmark, self.reference], [*self.boxes.values()])

    @property
    def comparison(self) -> Comparison:
        """The run compared with the chosen reference."""
        return self._compared_with(self.reference.value)

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
        table = MACROS.frame(self.comparison.rows(*self.chosen))
        said = "".join(f"<p>{html.escape(line)}</p>" for line in (NOTE, self.comparison.said))
        return framed(table, self._figures(*self.chosen), said)

    def _figures(self, benchmarks: list[str], arms: list[str]) -> str:
        reference = self.reference.value
        if not any(get_arm(arm).stages for arm in set(arms) - {reference}):
            return "<p>No arm is chosen whose difference could be drawn.</p>"
        figures = (self.comparison.figure([name], arms) for name in benchmarks)
        return "".join(MACROS.image(picture(figure, dpi=110)) for figure in figures)
