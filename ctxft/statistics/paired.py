"""Test paired differences: McNemar's test, its power and minimum detectable effect, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy
import scipy.optimize
import scipy.stats

from ctxft.storage import InputError, check_known

FAMILIES = ("benchmarks", "arms", "all")


def mcnemar(only_a: int, only_b: int, mid_p: bool = False) -> float:
    """Return the two-sided p value of McNemar's test: a sign test on the items that one arm alone gets right.

    The same as ``statsmodels.stats.contingency_tables.mcnemar([[0, only_a], [only_b, 0]], exact=True)``.

    The exact test rejects at most as often as its level says, and with few differing items clearly less. The mid-p form
    counts half of the probability of what was observed; it comes close to the level, on either side.

    Args:
        only_a: items that the first arm alone answers correctly.
        only_b: items that the second arm alone answers correctly.
        mid_p: take the mid-p form.

    Source:
        Fagerland, Lydersen and Laake, *BMC Medical Research Methodology* 13:91, 2013.

    Example:
        >>> mcnemar(0, 6), round(mcnemar(0, 6, mid_p=True), 6)
        (0.03125, 0.015625)
    """
    n = only_a + only_b
    if n == 0:
        return 1.0
    if mid_p:
        fewer = min(only_a, only_b)
        return float(2 * scipy.stats.binom.cdf(fewer - 1, n, 0.5) + scipy.stats.binom.pmf(fewer, n, 0.5))
    return float(scipy.stats.binomtest(only_a, n, 0.5).pvalue)


def mcnemar_power(n: int, discordant: float, difference: float, level: float = 0.95) -> float:
    """Return the probability that McNemar's exact test on n items shows a true difference.

    Args:
        n: items.
        discordant: fraction of items on which the two arms differ, in either direction; not below the difference.
        difference: the true difference of the accuracies, a fraction (0.01 is one percentage point).
        level: 1 - level is the size of the test.

    Example:
        >>> round(mcnemar_power(1000, 0.2, 0.04), 2)
        0.79
    """
    if discordant == 0:
        return 0.0
    counts = numpy.arange(n + 1)
    chances = scipy.stats.binom.pmf(counts, n, min(1.0, discordant))
    counts, chances = counts[chances > 1e-12], chances[chances > 1e-12]
    # The largest count on the smaller side that is still significant; -1 where none is.
    most = scipy.stats.binom.ppf((1 - level) / 2, counts, 0.5)
    most = most - (2 * scipy.stats.binom.cdf(most, counts, 0.5) >= 1 - level)
    p = min(1.0, (1 + difference / discordant) / 2)
    low = scipy.stats.binom.cdf(most, counts, p)
    high = scipy.stats.binom.sf(counts - most - 1, counts, p)
    return float(chances @ numpy.where(most < 0, 0.0, low + high))


def minimum_detectable_effect(n: int, discordant: float, level: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest true difference that McNemar's exact test on n items shows with a given power.

    It has a floor that no agreement of the arms removes: p falls below 0.05 only if six items change, all in one
    direction, so about eight must be expected to change.

    Args:
        n: items.
        discordant: fraction of items on which the two arms differ; where the difference is larger, it is raised to that.
        level: 1 - level is the size of the two-sided test.
        power: the probability that a true difference of that size is shown.

    Returns:
        A fraction (0.01 is one percentage point); infinite if n items are too few for any.

    Example:
        >>> round(minimum_detectable_effect(1000, 0.2), 3)
        0.04
    """

    def missing(difference: float) -> float:
        return mcnemar_power(n, max(discordant, difference), difference, level) - power

    if missing(1.0) < 0:
        return math.inf
    return float(scipy.optimize.root_scalar(missing, bracket=(0.0, 1.0), method="brentq", xtol=1e-6).root)


def detectable_before(
    n: int,
    accuracy: float | None = None,
    discordant: float | None = None,
    level: float = 0.95,
    power: float = 0.8,
) -> float:
    """Return the minimum detectable effect of one training of each arm, before anything is run.

    Args:
        n: items of the benchmark.
        accuracy: expected accuracy of both arms. Arms that err independently differ on 2 * accuracy * (1 - accuracy) of
            the items; arms of one base model err alike and differ on fewer, so this is the cautious estimate.
        discordant: instead of accuracy, the expected fraction of items on which the arms differ, say from a pilot.
        level: 1 - level is the size of the two-sided test.
        power: the probability that a true difference of that size is shown.

    Returns:
        A fraction (0.01 is one percentage point); infinite if n items are too few for any.

    Raises:
        InputError: not exactly one of accuracy and discordant is given, one is no fraction, or there is no item.

    Example:
        >>> round(detectable_before(1273, accuracy=0.5), 3)
        0.056
    """
    expected = [value for value in (accuracy, discordant) if value is not None]
    if len(expected) != 1:
        raise InputError("detectable_before needs either the expected accuracy or the discordant fraction: give one.")
    if n < 1 or not 0 <= expected[0] <= 1:
        raise InputError(f"n must be 1 or more and the fraction from 0 to 1, found n {n} and {expected[0]}.")
    fraction = 2 * expected[0] * (1 - expected[0]) if discordant is None else expected[0]
    return minimum_detectable_effect(n, fraction, level, power)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number: without any effect, a family has one below 0.05 once in 20 times at most.

    The same as ``statsmodels.stats.multitest.multipletests(p_values, method="holm")``.

    Args:
        p_values: of all tests in the family; they may depend on each other in any way.

    Source:
        S. Holm, *Scandinavian Journal of Statistics* 6, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected_values, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - place) * p_values[index])
        corrected_values[index] = min(1.0, highest)
    return corrected_values


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
    copies = {name: [dict(row) for row in rows] for name, rows in tables.items()}
    for name, rows in copies.items():
        for row in rows:
            if math.isnan(row["p"]):  # the reference
                row.update(holm=row["p"], family=0, word="")
            else:
                families.setdefault({"benchmarks": row["arm"], "arms": name, "all": ""}[family], []).append(row)
    for rows in families.values():
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row.update(holm=p, family=len(rows), word=_word(row, p < 1 - level))
    return copies


def _word(row: dict, survives: bool) -> str:
    if not row["shown"]:
        return "not shown"
    if not survives:
        return "not after Holm"
    return "higher" if row["difference"] > 0 else "lower"
