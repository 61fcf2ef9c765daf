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
from ctxft.report.verdicts import compared
from ctxft.runtime import InputError, check_known


def references_of(run: RunRecord) -> list[str]:
    """Return the arms that every benchmark of a run was evaluated for, in the order of all tables: cpt first, if it is there."""
    arms = [arm for arm in run.metrics if all(arm in found for found in run.outcomes.values())]
    return sorted(arms, key=lambda arm: arm != "cpt")


def chosen_table(
    run: RunRecord, benchmarks: Collection[str], arms: Collection[str], reference: str = "cpt"
) -> pandas.DataFrame:
    """Return the rows of ``results_table`` for some benchmarks and arms; the reference and the lines of chance stay.

    Args:
        run: the run.
        benchmarks: names of ``run.outcomes``.
        arms: which to show.
        reference: the arm that differences are taken to.

    Raises:
        InputError: an unknown benchmark, no benchmark, or as ``results_table``.
    """
    for name in benchmarks:
        check_known(name, run.outcomes, "benchmark")
    if not benchmarks:
        raise InputError("no benchmark is chosen: take at least one.")
    table = results_table(run, reference)
    shown = table["arm"].isin([*arms, reference]) | table["arm"].str.startswith("(")
    return table[table["benchmark"].isin(list(benchmarks)) & shown].reset_index(drop=True)


def chosen_figure(run: RunRecord, benchmarks: Collection[str], arms: Collection[str], reference: str = "cpt") -> Figure:
    """Return the differences of some arms to the reference, a panel for each benchmark; arguments as ``chosen_table``."""
    found = compared(run, reference)
    panels = {name: [row for row in found[name] if row["arm"] in arms] for name in benchmarks}
    return differences_figure(panels, reference)
