"""A run and what a reader chooses of it go in; the rows and the figure of the chosen benchmarks and arms come out.

A choice changes what is shown and no number: seeds, intervals and Holm's correction are those of the whole run, so that nobody
finds a difference by looking at one benchmark at a time.
"""

from __future__ import annotations

from collections.abc import Collection

import pandas
from matplotlib.figure import Figure

from ctxft.report.figures import differences_figure
from ctxft.report.record import RunRecord
from ctxft.report.tables import results_table
from ctxft.report.verdicts import compared, overall
from ctxft.storage import InputError, check_known


def references_of(run: RunRecord) -> list[str]:
    """Return the arms that every benchmark of a run was evaluated for, in the order of all tables: cpt first, if it is there."""
    arms = [arm for arm in run.metrics if all(arm in found for found in run.outcomes.values())]
    return sorted(arms, key=lambda arm: arm != "cpt")


class Comparison:
    """A run compared with one reference arm, once; what is chosen of it is shown at once.

    Args:
        run: the run.
        reference: the arm that differences are taken to.

    Attributes:
        table: as ``results_table``.
        said: what stands after Holm's correction over all comparisons, in a sentence.

    Raises:
        InputError: as ``results_table``.

    Example:
        >>> Comparison(run, "cpt").rows(["practice-mmlu"], ["cft"])  # doctest: +SKIP
    """

    def __init__(self, run: RunRecord, reference: str = "cpt") -> None:
        self.reference = reference
        self.table, self.said = results_table(run, reference), overall(run, reference)
        self.differences = compared(run, reference)

    def rows(self, benchmarks: Collection[str], arms: Collection[str]) -> pandas.DataFrame:
        """Return the rows of the table for some benchmarks and arms; the reference and the lines of chance stay.

        Raises:
            InputError: an unknown benchmark, or none.
        """
        self._check(benchmarks)
        shown = self.table["arm"].isin([*arms, self.reference]) | self.table["arm"].str.startswith("(")
        return self.table[self.table["benchmark"].isin(list(benchmarks)) & shown].reset_index(drop=True)

    def figure(self, benchmarks: Collection[str], arms: Collection[str]) -> Figure:
        """Return the differences of some arms to the reference, a panel for each benchmark; raises as ``rows``."""
        self._check(benchmarks)
        panels = {name: [row for row in self.differences[name] if row["arm"] in arms] for name in benchmarks}
        return differences_figure(panels, self.reference)

    def _check(self, benchmarks: Collection[str]) -> None:
        for name in benchmarks:
            check_known(name, self.differences, "benchmark")
        if not benchmarks:
            raise InputError("no benchmark is chosen: take at least one.")
