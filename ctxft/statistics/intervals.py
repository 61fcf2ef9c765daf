"""Compute intervals: over items, over seeds, over both at once, and over documents.

The items are a sample of all questions, the seeds a sample of training runs. ``wilson`` and ``item_interval`` are about
other items, ``seed_interval`` about other seeds, ``VarianceComponents`` about both; ``cluster_interval`` is about other
documents, whose passages resemble each other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy
import scipy.optimize
import scipy.stats

from ctxft.storage import InputError


def wilson(correct: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927).

    The same as ``statsmodels.stats.proportion.proportion_confint(correct, n, method="wilson")``.

    Args:
        correct: items answered correctly; a mean over seeds need not be whole.
        n: items.
        level: fraction of intervals that hold the true proportion.

    Returns:
        The lower and the upper end, between 0 and 1; exactly 0 if nothing is correct, exactly 1 if all is.

    Raises:
        InputError: there are no items, or more correct ones than items.

    Example:
        >>> [round(end, 4) for end in wilson(8, 10)]
        [0.4902, 0.9433]
    """
    if n < 1 or not 0 <= correct <= n:
        raise InputError(f"a proportion needs at least one item and 0 to n correct ones, found {correct} of {n}.")
    z = float(scipy.stats.norm.ppf((1 + level) / 2))
    p = correct / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # In exact arithmetic the interval holds p and ends at 0 or 1 for none or all; rounding can miss both.
    return 0.0 if correct == 0 else min(p, center - half), 1.0 if correct == n else max(p, center + half)


def seed_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean over seeds and its Student t interval; one seed has no interval, so its ends are nan.

    Raises:
        InputError: there is no value.

    Example:
        >>> [round(x, 3) for x in seed_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    if not values:
        raise InputError("an interval over seeds needs at least one seed.")
    k, mean = len(values), math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return _t_interval(mean, math.sqrt(squares / (k - 1) / k) if k > 1 else math.nan, k, level)


def _t_interval(mean: float, error: float, count: int, level: float) -> tuple[float, float, float]:
    """Return a mean with Student's t interval at count - 1 degrees of freedom; its ends are nan where error is."""
    half = float(scipy.stats.t.ppf((1 + level) / 2, count - 1)) * error if count > 1 else math.nan
    return mean, mean - half, mean + half


def cluster_interval(
    sums: Sequence[float], counts: Sequence[int], groups: Sequence[str], level: float = 0.95
) -> tuple[float, float, float]:
    """Return a mean over tokens and its interval over groups: passages of one document are not independent of each other.

    The mean is a ratio, all sums over all counts. Its interval is the cluster-robust one: Student's t with one degree of
    freedom less than there are groups, on what each group adds to the ratio's error. Groups of equal counts give the t
    interval of the groups' own means.

    Args:
        sums: for each passage, what is summed over its tokens, such as a loss or a difference of losses.
        counts: for each passage its tokens.
        groups: for each passage its document.
        level: fraction of intervals that hold the true mean.

    Returns:
        (mean, lower end, upper end); one group has no interval, so its ends are nan.

    Raises:
        InputError: there is no token, or the three lists differ in length.

    Source:
        W. G. Cochran, *Sampling Techniques*, 1977, chapter 6 (the variance of a ratio).

    Example:
        >>> [round(x, 3) for x in cluster_interval([10, 10, 60, 60, 90], [10, 20, 20, 10, 30], ["a", "a", "b", "b", "c"])]
        [2.556, -1.694, 6.805]
    """
    if not len(sums) == len(counts) == len(groups) or sum(counts) < 1:
        raise InputError(
            f"an interval over groups needs tokens and lists of one length, found {len(sums)} sums, {len(counts)} counts "
            f"with {sum(counts)} tokens, and {len(groups)} groups."
        )
    _, owner = numpy.unique(numpy.asarray(groups), return_inverse=True)
    total, size = (numpy.bincount(owner, weights=numpy.asarray(part, float)) for part in (sums, counts))
    k, mean = len(total), float(total.sum() / size.sum())
    squares = float(((total - mean * size) ** 2).sum())
    return _t_interval(mean, math.sqrt(k / (k - 1) * squares) / float(size.sum()) if k > 1 else math.nan, k, level)


def item_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a paired difference of two accuracies over items.

    The adjusted Wald interval of Agresti and Min (*Statistics in Medicine* 24, 2005): half an invented item is added to
    each cell of the 2 x 2 table, which keeps the coverage when few items differ, or none. Written with one
    difference per item it holds for means over seeds too.

    Args:
        differences: per item, correct in the arm less correct in the reference: -1, 0, 1, or a mean over seeds.
        level: fraction of intervals that hold the true difference.

    Returns:
        The lower and the upper end, as fractions (0.01 is one percentage point).
    """
    mean, variance = adjusted_mean(differences)
    half = float(scipy.stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return max(-1.0, mean - half), min(1.0, mean + half)


def adjusted_mean(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and its variance, as Agresti and Min adjust them (see ``item_interval``)."""
    n = len(differences) + 2
    mean = math.fsum(differences) / n
    return mean, ((math.fsum(d * d for d in differences) + 1) / n - mean * mean) / n


@dataclasses.dataclass(frozen=True)
class VarianceComponents:
    """The variance of a mean difference over other items and over other seeds.

    Half the width of its interval is sqrt(z^2 * items + max(t^2 * seeds, z^2 * shared)), with the quantile t of Student
    at count - 1 degrees of freedom: few seeds widen the part that only they estimate, and no other, and seeds that are
    close by luck never make it narrower than the interval over items. Such sums of squared half-widths are known as the
    modified large-sample method; ``tests/benchmarks/coverage.py`` measures its coverage.

    Args:
        items: variance of the mean that other items would bring, whatever the seed.
        seeds: variance of the mean that other seeds would bring; 0 for one seed, which cannot show it.
        count: number of seeds.
        shared: of the interaction of item and seed (an item that one training happens to learn and another does not); it
            makes the seeds vary too, so it is part of ``seeds`` and its lower bound.

    Source:
        F. A. Graybill and C.-M. Wang, JASA 75, 1980; R. K. Burdick and F. A. Graybill, *Confidence Intervals on Variance
        Components*, 1992.

    Example:
        >>> round(VarianceComponents(items=0.0001, seeds=0.0, count=1).half(), 4)
        0.0196
    """

    items: float
    seeds: float = 0.0
    count: int = 1
    shared: float = 0.0

    @classmethod
    def of(cls, items: float, per_seed: Sequence[float], alone: float) -> VarianceComponents:
        """Split the variance of a mean over seeds.

        Args:
            items: variance over items of the mean over seeds.
            per_seed: the value of each seed.
            alone: mean over seeds of the variance over items of one seed's value.
        """
        k = len(per_seed)
        if k == 1:
            return cls(items)
        mean = math.fsum(per_seed) / k
        seeds = math.fsum((value - mean) ** 2 for value in per_seed) / (k - 1) / k
        shared = min(items, max(0.0, alone - items) / (k - 1))
        return cls(items - shared, seeds, k, shared)

    def half(self, level: float = 0.95) -> float:
        """Return half the width of the interval of that level."""
        return self._half((1 - level) / 2)

    def _half(self, p: float) -> float:
        t = scipy.stats.t.isf(p, self.count - 1) if self.count > 1 else 0.0
        z = scipy.stats.norm.isf(p)
        return math.sqrt(z * z * self.items + max(t * t * self.seeds, z * z * self.shared))

    def p_value(self, mean: float) -> float:
        """Return the two-sided p value of no difference: 1 less the level at which the interval just reaches 0."""
        smallest = 1e-12  # a smaller p is reported as this
        if mean == 0:
            return 1.0
        if self._half(smallest / 2) < abs(mean):
            return smallest
        root = scipy.optimize.root_scalar(
            lambda p: self._half(p / 2) - abs(mean), bracket=(smallest, 1.0), method="brentq", xtol=1e-13
        )
        return float(root.root)

    def detectable(self, level: float = 0.95, power: float = 0.8) -> float:
        """Return the smallest true difference whose interval excludes 0 in a fraction ``power`` of repetitions."""
        return self.half(level) + self.half(2 * power - 1)
