"""A run with arms of one family each flows in; a table and a forest plot flow out: which family of prompts matters?

only-<family>     trained behind this family's prompts only      count-<n>   behind n prompts only
without-<family>  trained behind all prompts but this family's   cpt, cft, cft-learned, neg, control... stand beside them
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas
from matplotlib.figure import Figure

from ctxft.prompts.arms import IFT, subset_of
from ctxft.report.figures import INK, arm_color
from ctxft.report.forest import finish, legend, mark
from ctxft.report.record import RunRecord
from ctxft.report.style import interval, styled
from ctxft.report.tables import measured_cells, measured_columns
from ctxft.statistics import Outcomes, compare, corrected
from ctxft.storage import InputError, check_known

KINDS = ("only", "without", "count", "arm")
SIDES = {"only": 0.16, "without": -0.16}  # above and below the line of their family
LOOKS = {
    "only": (arm_color("only-any"), "o", "this family only"),
    "without": (arm_color("without-any"), "s", "all families but this"),
}


def part_of(arm: str) -> tuple[str, str] | None:
    """Return the kind of an arm among ablations and its family or number; None for an arm that is none of them.

    Example:
        >>> part_of("only-key-concepts-ift"), part_of("count-3"), part_of("neg"), part_of("base")
        (('only', 'key-concepts'), ('count', '3'), ('arm', ''), None)
    """
    stage = arm.removesuffix(IFT)
    whole = stage in ("cpt", "cft", "neg", "cft-learned") or stage.startswith("control")
    return subset_of(stage) or (("arm", "") if whole else None)


def _chosen(arms: Iterable[str], reference: str) -> list[str]:
    """Return the arms that are compared with a reference, or none where no part of the prompts was tried."""
    chosen = [arm for arm in arms if part_of(arm) and arm.endswith(IFT) == reference.endswith(IFT)]
    return chosen if any(part_of(arm)[0] != "arm" for arm in chosen) else []


def ablated(run: RunRecord, reference: str) -> list[str]:
    """Return the benchmarks on which arms of a part of the prompts were examined, of the reference's last stage."""
    return [name for name, arms in run.outcomes.items() if _chosen(arms, reference)]


def ablation_rows(run: RunRecord, reference: str, benchmark: str | None = None) -> dict[str, list[dict]]:
    """Compare the arms of an ablation with a reference; all comparisons together are one family for Holm's correction.

    Compared are the arms with the reference's last stage: with ``cft-ift`` those that end in ``-ift``, else the others. Arms
    of other questions (base, adaptive, ...) are left out, so that they cost no power.

    Args:
        run: a run that is read.
        reference: the arm that differences are taken to, such as cft.
        benchmark: one, or None for all of the run.

    Returns:
        Benchmark -> rows as from ``statistics.compare`` and ``corrected``, with kind ("only", "without", "count", "arm") and
        part (family or number). The reference is among them if it is such an arm.

    Raises:
        InputError: the benchmark or the reference was not evaluated, there is no arm of a part, or as ``compare``.
    """
    names = [check_known(benchmark, run.outcomes, f"benchmark in {run.folder}:")] if benchmark else list(run.outcomes)
    names = [name for name in names if name in ablated(run, reference)]
    if not names:
        raise InputError(
            f"{run.folder} has no arm to compare with {reference} such as only-<family>, without-<family> or count-<n>"
            f"{f' on {benchmark}' if benchmark else ''}: train and examine some."
        )
    return corrected({name: _compared(name, run.outcomes[name], reference) for name in names}, "all")


def _compared(name: str, arms: Outcomes, reference: str) -> list[dict]:
    check_known(reference, arms, f"reference arm for {name}:")
    chosen = _chosen(arms, reference)
    rows = compare({arm: arms[arm] for arm in {*chosen, reference}}, reference)
    named = [
        row | dict(zip(("kind", "part"), part_of(row["arm"]), strict=True)) for row in rows if row["arm"] in chosen
    ]
    return sorted(named, key=lambda row: KINDS.index(row["kind"]))


def ablation_table(run: RunRecord, reference: str = "cft", benchmark: str | None = None) -> pandas.DataFrame:
    """Return a row for each arm of an ablation: its accuracy and its paired difference to the reference.

    Args:
        run, reference, benchmark: as for ``ablation_rows``.

    Returns:
        Columns benchmark, arm, kind, family (or number of prompts), and as in ``results_table``, but Holm p counts all
        comparisons of this table as one family. "" where there is nothing.

    Raises:
        InputError: as ``ablation_rows``.

    Example:
        >>> ablation_table(read_run("runs/families"), "cft")  # doctest: +SKIP
    """
    rows = [
        (name, row["arm"], row["kind"] if row["kind"] != "arm" else "", row["part"], *measured_cells(row), row["word"])
        for name, found in ablation_rows(run, reference, benchmark).items()
        for row in found
    ]
    columns = ["benchmark", "arm", "kind", "family", *measured_columns(reference), "verdict"]
    return pandas.DataFrame(rows, columns=columns)


def ablation_figure(run: RunRecord, reference: str = "cft", benchmark: str | None = None) -> Figure:
    """Return a forest plot of which family matters: how far each arm of an ablation is from the reference, in points.

    A family has one line with two marks: trained with it alone, and with all but it. Families stand in the order of the
    first, the most helpful on top; other arms stand below. A mark is filled if the difference stands after Holm's
    correction.

    Args:
        run, reference: as for ``ablation_rows``.
        benchmark: one of the run's; None takes the only one.

    Raises:
        InputError: as ``ablation_rows``, or no benchmark is named and several have such arms.
    """
    (name, rows), *more = ablation_rows(run, reference, benchmark).items()
    if more:
        raise InputError(f"the figure shows one benchmark: name one of {', '.join(run.outcomes)}.")
    return families_figure(rows, f"{name}: which family matters?", reference)


@styled
def families_figure(rows: Sequence[dict], title: str, reference: str = "cft") -> Figure:
    """Return the forest plot of ``ablation_figure`` for rows that are there already, such as those of a committed study.

    Args:
        rows: of one benchmark, as from ``ablation_rows``.
        title: stands above.
        reference: the arm that differences were taken to.
    """
    shown = [row for row in rows if row["arm"] != reference]
    lines = _lines(shown)
    figure = Figure(figsize=(7.3, 1.5 + 0.36 * len(lines)))
    axes = figure.subplots()
    for place, found in enumerate(reversed(lines.values())):
        for row in found:
            shift = SIDES[row["kind"]] if len(found) > 1 else 0.0
            values = (row["difference"], row["difference_low"], row["difference_high"])
            look = LOOKS.get(row["kind"]) or (arm_color(row["arm"]), "D", "")
            mark(axes, place + shift, values, look, filled=row["word"] in ("higher", "lower"))
    whole = sum(row["kind"] not in SIDES for row in shown)
    if 0 < whole < len(lines):
        axes.axhline(whole - 0.5, color=INK, linewidth=0.6)
    finish(axes, range(len(lines)), list(reversed(lines)), len(lines))
    axes.set_xlabel(f"points of accuracy minus {reference}, with 95 % intervals")
    axes.set_title(title)
    values = (
        f"{row['arm']} {row['difference']:+.1f}{interval(row['difference_low'], row['difference_high'])}"
        for row in shown
    )
    figure.set_label(f"{title} Points of accuracy minus {reference}, with 95 % intervals: {', '.join(values)}.")
    kinds = {row["kind"] for row in shown}
    legend(figure, [LOOKS[kind] for kind in SIDES if kind in kinds], "open: not shown after Holm")
    return figure


def _lines(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Return label -> rows of each line of the plot, from the top."""
    families: dict[str, list[dict]] = {}
    for row in rows:
        if row["kind"] in SIDES:
            families.setdefault(row["part"], []).append(row)
    ranked = sorted(families.items(), key=lambda line: -_help(line[1]))
    return dict(ranked) | {row["arm"]: [row] for row in rows if row["kind"] not in SIDES}


def _help(rows: Sequence[dict]) -> float:
    """Return what a family alone gains, or, where that was not tried, what is lost without it."""
    gains = {row["kind"]: row["difference"] for row in rows}
    return gains.get("only", -gains.get("without", 0.0))
