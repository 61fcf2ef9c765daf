"""Rows of comparisons flow in; the same rows with Holm's p, for the family that each belongs to, flow out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ctxft.storage import check_known

FAMILIES = ("benchmarks", "arms", "all")


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number: none true, a family has one below 0.05 at most once in 20 times.

    Args:
        p_values: of all tests in the family; they may depend on each other in any way.

    Source:
        S. Holm, *Scandinavian Journal of Statistics* 6, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    found, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - place) * p_values[index])
        found[index] = min(1.0, highest)
    return found


def corrected(
    tables: Mapping[str, Sequence[dict]], family: str = "benchmarks", level: float = 0.95
) -> dict[str, list[dict]]:
    """Correct the comparisons of a run for their number.

    Args:
        tables: benchmark -> rows as from ``compare``.
        family: what is one family: "benchmarks", the benchmarks of one arm (is this arm different anywhere?); "arms", the
            arms on one benchmark (is any arm different here?); "all", everything.
        level: 1 - level is the size of the tests.

    Returns:
        The tables with three more values in each row: holm (p; nan for the reference), family (number of tests) and
        word: "higher", "lower", "not shown", "not after Holm" (shown alone, but not in its family), or "".

    Raises:
        InputError: an unknown family.
    """
    check_known(family, FAMILIES, "family")
    families: dict[str, list[dict]] = {}
    found = {name: [dict(row) for row in rows] for name, rows in tables.items()}
    for name, rows in found.items():
        for row in rows:
            if row["p"] == row["p"]:  # the reference has none
                families.setdefault({"benchmarks": row["arm"], "arms": name, "all": ""}[family], []).append(row)
            else:
                row.update(holm=row["p"], family=0, word="")
    for rows in families.values():
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row.update(holm=p, family=len(rows), word=_word(row, p < 1 - level))
    return found


def _word(row: dict, survives: bool) -> str:
    if not row["shown"]:
        return "not shown"
    if not survives:
        return "not after Holm"
    return "higher" if row["difference"] > 0 else "lower"
