"""Counts of items on which two arms differ flow in; McNemar's p, its power and the smallest difference to see flow out."""

from __future__ import annotations

import math

import numpy
import scipy.optimize
import scipy.stats

from ctxft.storage import InputError


def mcnemar(only_a: int, only_b: int, mid_p: bool = False) -> float:
    """Return the two-sided p value of McNemar's test: a sign test on the items that one arm alone gets right.

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
    """Return the chance that McNemar's exact test on n items shows a true difference.

    Args:
        n: items.
        discordant: share of items on which the two arms differ, in either direction; not below the difference.
        difference: the true difference of the accuracies, a share (0.01 is one point).
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
    share = min(1.0, (1 + difference / discordant) / 2)
    low = scipy.stats.binom.cdf(most, counts, share)
    high = scipy.stats.binom.sf(counts - most - 1, counts, share)
    return float(chances @ numpy.where(most < 0, 0.0, low + high))


def smallest_difference(n: int, discordant: float, level: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest true difference that McNemar's exact test on n items shows with a given chance.

    It has a floor that no agreement of the arms removes: p falls below 0.05 only if six items change, all in one
    direction, so about eight must be expected to change.

    Args:
        n: items.
        discordant: share of items on which the two arms differ; where the difference is larger, it is raised to that.
        level: 1 - level is the size of the two-sided test.
        power: the chance to see a true difference of that size.

    Returns:
        A share (0.01 is one point); infinite if n items are too few for any.

    Example:
        >>> round(smallest_difference(1000, 0.2), 3)
        0.04
    """

    def missing(difference: float) -> float:
        return mcnemar_power(n, max(discordant, difference), difference, level) - power

    if missing(1.0) < 0:
        return math.inf
    return float(scipy.optimize.brentq(missing, 0.0, 1.0, xtol=1e-6))


def detectable_before(
    n: int,
    accuracy: float | None = None,
    discordant: float | None = None,
    level: float = 0.95,
    power: float = 0.8,
) -> float:
    """Return the smallest difference that one training of each arm will show, before anything is run.

    Args:
        n: items of the benchmark.
        accuracy: expected accuracy of both arms. Arms that err independently differ on 2 * accuracy * (1 - accuracy) of
            the items; arms of one base model err alike and differ on fewer, so this is the cautious answer.
        discordant: instead of accuracy, the expected share of items on which the arms differ, say from a pilot.
        level: 1 - level is the size of the two-sided test.
        power: the chance to see a true difference of that size.

    Returns:
        A share (0.01 is one point); infinite if n items are too few for any.

    Raises:
        InputError: not exactly one of accuracy and discordant is given, one is no share, or there is no item.

    Example:
        >>> round(detectable_before(1273, accuracy=0.5), 3)
        0.056
    """
    given = [share for share in (accuracy, discordant) if share is not None]
    if len(given) != 1:
        raise InputError("detectable_before needs either the expected accuracy or the discordant share: give one.")
    if n < 1 or not 0 <= given[0] <= 1:
        raise InputError(f"n must be 1 or more and the share from 0 to 1, found n {n} and {given[0]}.")
    return smallest_difference(n, 2 * given[0] * (1 - given[0]) if discordant is None else discordant, level, power)
