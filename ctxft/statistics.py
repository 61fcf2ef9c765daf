"""Statistics of outcomes per item, of several arms and seeds: intervals, paired tests and comparisons with their verdicts.

Two sources of chance are kept apart: the items are a sample of all questions, the seeds a sample of training runs. Five seeds on
100 items are not 500 items, so seeds never make an interval narrower than the average over seeds allows on these items.
``wilson`` and ``item_interval`` are about other items, ``seed_interval`` about other seeds, ``VarianceComponents`` about both;
``cluster_interval`` is about other documents, whose passages resemble each other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import scipy.optimize
import scipy.stats

from ctxft.storage import InputError, check_known

Outcomes = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]  # arm -> seed -> an outcome per item
AVERAGES = ("macro", "weighted")
UNTRAINED = "base"  # evaluated once, and paired with every seed
LEVEL = 0.95  # fraction of intervals that hold the true value; 1 - LEVEL is the size of the tests
POWER = 0.8  # the probability that a true difference of the minimum detectable size is shown


# --- intervals --------------------------------------------------------------------------------------------------------


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927).

    The same as ``statsmodels.stats.proportion.proportion_confint(correct, n, method="wilson")``.

    Args:
        correct: items answered correctly; a mean over seeds need not be whole.
        n: items.

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
    z = float(scipy.stats.norm.ppf((1 + LEVEL) / 2))
    p = correct / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # In exact arithmetic the interval holds p and ends at 0 or 1 for none or all; rounding can miss both.
    return 0.0 if correct == 0 else min(p, center - half), 1.0 if correct == n else max(p, center + half)


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean over seeds and its Student t interval; one seed has no interval, so its ends are nan.

    Raises:
        InputError: there is no value.

    Example:
        >>> [round(x, 3) for x in seed_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    return cluster_interval(values, [1] * len(values), list(map(str, range(len(values)))))


def cluster_interval(sums: Sequence[float], counts: Sequence[int], groups: Sequence[str]) -> tuple[float, float, float]:
    """Return a mean over tokens and its interval over groups: passages of one document are not independent of each other.

    The mean is a ratio, all sums over all counts. Its interval is the cluster-robust one: Student's t with one degree of
    freedom less than there are groups, on what each group adds to the ratio's error. Groups of equal counts give the t
    interval of the groups' own means.

    Args:
        sums: for each passage, what is summed over its tokens, such as a loss or a difference of losses.
        counts: for each passage its tokens.
        groups: for each passage its document.

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
        raise InputError("an interval needs at least one token or seed, and as many sums as counts and groups.")
    _, owner = numpy.unique(numpy.asarray(groups), return_inverse=True)
    total, size = (numpy.bincount(owner, weights=numpy.asarray(part, float)) for part in (sums, counts))
    k, mean = len(total), float(total.sum() / size.sum())
    squares = float(((total - mean * size) ** 2).sum())
    if k == 1:
        return mean, math.nan, math.nan
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, k - 1)) * math.sqrt(k / (k - 1) * squares) / float(size.sum())
    return mean, mean - half, mean + half


def item_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the interval of a paired difference of two accuracies over items.

    The adjusted Wald interval of Agresti and Min (*Statistics in Medicine* 24, 2005): half an invented item is added to
    each cell of the 2 x 2 table, which keeps the coverage when few items differ, or none. Written with one
    difference per item it holds for means over seeds too.

    Args:
        differences: per item, correct in the arm less correct in the reference: -1, 0, 1, or a mean over seeds.

    Returns:
        The lower and the upper end, as fractions (0.01 is one percentage point).
    """
    mean, variance = adjusted_mean(differences)
    half = float(scipy.stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(variance)
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

    def half(self, alpha: float = 1 - LEVEL) -> float:
        """Return half the width of the interval that misses the true mean in a fraction ``alpha`` of repetitions."""
        t = scipy.stats.t.isf(alpha / 2, self.count - 1) if self.count > 1 else 0.0
        z = scipy.stats.norm.isf(alpha / 2)
        return math.sqrt(z * z * self.items + max(t * t * self.seeds, z * z * self.shared))

    def p_value(self, mean: float) -> float:
        """Return the two-sided p value of no difference: 1 less the level at which the interval just reaches 0."""
        smallest = 1e-12  # a smaller p is reported as this
        if mean == 0:
            return 1.0
        if self.half(smallest) < abs(mean):
            return smallest
        root = scipy.optimize.root_scalar(lambda p: self.half(p) - abs(mean), bracket=(smallest, 1.0), xtol=1e-13)
        return float(root.root)

    def detectable(self) -> float:
        """Return the smallest true difference whose interval excludes 0 in four of five repetitions."""
        return self.half() + self.half(2 - 2 * POWER)


# --- paired tests -----------------------------------------------------------------------------------------------------


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


def mcnemar_power(n: int, discordant: float, difference: float) -> float:
    """Return the probability that McNemar's exact test on n items shows a true difference.

    Args:
        n: items.
        discordant: fraction of items on which the two arms differ, in either direction; not below the difference.
        difference: the true difference of the accuracies, a fraction (0.01 is one percentage point).

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
    most = scipy.stats.binom.ppf((1 - LEVEL) / 2, counts, 0.5)
    most = most - (2 * scipy.stats.binom.cdf(most, counts, 0.5) >= 1 - LEVEL)
    p = min(1.0, (1 + difference / discordant) / 2)
    low = scipy.stats.binom.cdf(most, counts, p)
    high = scipy.stats.binom.sf(counts - most - 1, counts, p)
    return float(chances @ numpy.where(most < 0, 0.0, low + high))


def minimum_detectable_effect(n: int, discordant: float) -> float:
    """Return the smallest true difference that McNemar's exact test on n items shows with a given power.

    It has a floor that no agreement of the arms removes: p falls below 0.05 only if six items change, all in one
    direction, so about eight must be expected to change.

    Args:
        n: items.
        discordant: fraction of items on which the two arms differ; where the difference is larger, it is raised to that.

    Returns:
        A fraction (0.01 is one percentage point); infinite if n items are too few for any.

    Example:
        >>> round(minimum_detectable_effect(1000, 0.2), 3)
        0.04
    """

    def missing(difference: float) -> float:
        return mcnemar_power(n, max(discordant, difference), difference) - POWER

    if missing(1.0) < 0:
        return math.inf
    return float(scipy.optimize.root_scalar(missing, bracket=(0.0, 1.0), xtol=1e-6).root)


def detectable_before(n: int, accuracy: float | None = None, discordant: float | None = None) -> float:
    """Return the minimum detectable effect of one training of each arm, before anything is run.

    Args:
        n: items of the benchmark.
        accuracy: expected accuracy of both arms. Arms that err independently differ on 2 * accuracy * (1 - accuracy) of
            the items; arms of one base model err alike and differ on fewer, so this is the cautious estimate.
        discordant: instead of accuracy, the expected fraction of items on which the arms differ, say from a pilot.

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
    return minimum_detectable_effect(n, fraction)


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


def corrected(tables: Mapping[str, Sequence[dict]], family: str = "benchmarks") -> dict[str, list[dict]]:
    """Correct the comparisons of a run for their number.

    Args:
        tables: benchmark -> rows as from ``compare``.
        family: what is one family: "benchmarks", the benchmarks of one arm (is this arm different anywhere?), or "all".

    Returns:
        The tables with three more values in each row: holm (p; nan for the reference), family (number of tests) and
        word: "higher", "lower", "not shown", "not after Holm" (shown alone, but not in its family), or "".

    Raises:
        InputError: an unknown family.
    """
    check_known(family, ("benchmarks", "all"), "family")
    families: dict[str, list[dict]] = {}
    copies = {name: [dict(row) for row in rows] for name, rows in tables.items()}
    for rows in copies.values():
        for row in rows:
            if math.isnan(row["p"]):  # the reference
                row.update(holm=row["p"], family=0, word="")
            else:
                families.setdefault(row["arm"] if family == "benchmarks" else "", []).append(row)
    for rows in families.values():
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row.update(holm=p, family=len(rows), word=_word(row, p < 1 - LEVEL))
    return copies


def _word(row: dict, survives: bool) -> str:
    if not row["shown"]:
        return "not shown"
    if not survives:
        return "not after Holm"
    return "higher" if row["difference"] > 0 else "lower"


# --- comparisons of arms ----------------------------------------------------------------------------------------------


def compare(outcomes: Outcomes, reference: str = "cpt") -> list[dict[str, Any]]:
    """Compare every arm with a reference arm on the same items, seed by seed.

    Only the seeds that all trained arms share count (``common_seeds``), for accuracies and differences alike. A seed of
    an arm is paired with the same seed of the reference; the untrained model, evaluated once, with every seed.
    Accuracies have Wilson's interval; of several seeds it is that of the mean accuracy on n items, since seeds are not
    items.

    With one seed a difference has the interval over items and McNemar's exact p, and is shown when both agree; its
    minimum detectable effect is that of the test. With several seeds interval, p and minimum detectable effect come from
    ``VarianceComponents`` over items and seeds, and a difference is shown when its interval excludes 0. The minimum
    detectable effect is always the smallest true difference that this very comparison, with its items and its seeds,
    would show in four of five repetitions.

    Args:
        outcomes: arm -> seed -> outcomes, each with "id", "hash" and "correct"; the order of items does not matter.
        reference: the arm that the others are compared with.

    Returns:
        A row per arm, in the order of ``outcomes``: arm, n (items), seeds (how many count), accuracy, low, high (from 0 to
        1); difference, difference_low, difference_high, detectable (percentage points; infinite if no effect is
        detectable), p (all nan for the reference itself), shown, mcnemar (the exact p of each seed) and verdict (in words).

    Raises:
        InputError: trained arms without a seed in common, an untrained arm with several seeds, or other items in one arm
            than in another; the first differing item is named.
    """
    correct = {
        arm: {seed: [bool(row["correct"]) for row in rows] for seed, rows in seeds.items()}
        for arm, seeds in aligned(common_seeds(outcomes), reference).items()
    }
    return [_row(arm, correct, reference) for arm in correct]


def common_seeds(outcomes: Outcomes) -> Outcomes:
    """Keep of each trained arm the seeds that all trained arms share; the untrained one, evaluated once, stays as it is.

    Raises:
        InputError: the trained arms share no seed, or the untrained one has several.

    Example:
        >>> common_seeds({"base": {0: []}, "cpt": {1: [], 2: []}, "cft": {2: []}})
        {'base': {0: []}, 'cpt': {2: []}, 'cft': {2: []}}
    """
    if len(outcomes.get(UNTRAINED, ())) > 1:
        seeds = ", ".join(map(str, sorted(outcomes[UNTRAINED])))
        raise InputError(f"arm {UNTRAINED} is not trained and has one seed, found {seeds}: remove all but one.")
    trained = {arm: set(seeds) for arm, seeds in outcomes.items() if arm != UNTRAINED}
    common = set.intersection(*trained.values()) if trained else set()
    if trained and not common:
        listed = "; ".join(f"{arm}: {', '.join(map(str, sorted(seeds)))}" for arm, seeds in trained.items())
        raise InputError(f"the trained arms have no seed in common ({listed}): run all with the same seeds.")
    return {
        arm: {seed: items for seed, items in seeds.items() if arm == UNTRAINED or seed in common}
        for arm, seeds in outcomes.items()
    }


def aligned(outcomes: Outcomes, reference: str) -> dict[str, dict[int, list[Mapping[str, Any]]]]:
    """Bring the outcomes of every arm and seed into the item order of the reference's first seed.

    Raises:
        InputError: the reference or its outcomes are missing, or an item is not the same everywhere; the first is named.
    """
    check_known(reference, outcomes, "reference arm")
    first = min(outcomes[reference])
    expected = _by_id(outcomes[reference][first], f"arm {reference}, seed {first}")
    if not expected:
        raise InputError(f"arm {reference}, seed {first} has no outcomes: evaluate it first.")
    joined: dict[str, dict[int, list[Mapping[str, Any]]]] = {arm: {} for arm in outcomes}
    for arm, seed in ((arm, seed) for arm, seeds in outcomes.items() for seed in sorted(seeds)):
        items = _by_id(outcomes[arm][seed], f"arm {arm}, seed {seed}")
        for item in expected | items:
            if item not in items or item not in expected or items[item]["hash"] != expected[item]["hash"]:
                raise InputError(
                    f"arm {arm}, seed {seed} and arm {reference}, seed {first} differ: item '{item}' is missing in one of "
                    "them, or has another question, choice or answer (its hash differs); evaluate both again."
                )
        joined[arm][seed] = [items[item] for item in expected]
    return joined


def _by_id(rows: Sequence[Mapping[str, Any]], where: str) -> dict[str, Mapping[str, Any]]:
    by_id: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["id"] in by_id:
            raise InputError(f"{where}: the item '{row['id']}' occurs twice: give each item its own id.")
        by_id[row["id"]] = row
    return by_id


def _pairs(arm: str, correct: dict[str, dict[int, list[bool]]], reference: str) -> list[tuple[list[bool], ...]]:
    """Return the items of both arms for each seed; the untrained arm has the same with every seed."""
    ours, theirs = correct[arm], correct[reference]
    seeds = sorted(ours if reference == UNTRAINED else theirs)
    return [tuple(side.get(seed) or next(iter(side.values())) for side in (ours, theirs)) for seed in seeds]


def _row(arm: str, correct: dict, reference: str) -> dict[str, Any]:
    seeds = correct[arm]
    n = len(next(iter(seeds.values())))
    accuracy = math.fsum(sum(items) for items in seeds.values()) / (n * len(seeds))
    low, high = wilson(accuracy * n, n)
    row = {"arm": arm, "n": n, "seeds": len(seeds), "accuracy": accuracy, "low": low, "high": high}
    if arm == reference:
        nothing = dict.fromkeys(("difference", "difference_low", "difference_high", "detectable", "p"), math.nan)
        return row | nothing | {"shown": False, "mcnemar": [], "verdict": "the reference"}
    return row | _difference(_pairs(arm, correct, reference), reference)


def _difference(pairs: list[tuple[list[bool], ...]], reference: str) -> dict[str, Any]:
    signs = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
    per_seed = [sum(row) / len(row) for row in signs]
    tests = [mcnemar(row.count(1), row.count(-1)) for row in signs]
    if len(signs) == 1:
        low, high = item_interval(signs[0])
        p, n = tests[0], len(signs[0])
        detectable = minimum_detectable_effect(n, sum(map(abs, signs[0])) / n)
        shown = (low > 0 or high < 0) and p < 1 - LEVEL
    else:
        mean, variance = variance_over_seeds(signs)
        low, high = max(-1.0, mean - variance.half()), min(1.0, mean + variance.half())
        p, detectable = variance.p_value(mean), variance.detectable()
        shown = low > 0 or high < 0
    value = math.fsum(per_seed) / len(per_seed)
    percent = {"difference": value, "difference_low": low, "difference_high": high, "detectable": detectable}
    row = {name: 100 * number for name, number in percent.items()} | {"p": p, "shown": shown, "mcnemar": tests}
    row["detectable"] = row["detectable"] if detectable <= 1 else math.inf
    return row | {"verdict": _verdict(row, reference)}


def variance_over_seeds(signs: Sequence[Sequence[float]]) -> tuple[float, VarianceComponents]:
    """Return the mean difference over items and seeds, adjusted as in ``item_interval``, and its variance.

    Args:
        signs: for each of two or more seeds, the difference on each item: -1, 0 or 1.
    """
    k, n = len(signs), len(signs[0])
    per_item = [sum(column) / k for column in zip(*signs, strict=True)]
    per_seed = [sum(row) / n for row in signs]
    mean, items = adjusted_mean(per_item)
    alone = math.fsum(adjusted_mean(row)[1] for row in signs) / k
    return mean, VarianceComponents.of(items, per_seed, alone)


def _verdict(row: dict, reference: str) -> str:
    if row["shown"]:
        side = "higher" if row["difference"] > 0 else "lower"
        span = f"{100 * LEVEL:g} % interval {row['difference_low']:+.1f} to {row['difference_high']:+.1f}"
        return f"{side} than {reference} by {abs(row['difference']):.1f} pp ({span})"
    if not math.isfinite(row["detectable"]):
        return f"no difference from {reference} shown; no effect is detectable with these items and seeds"
    return f"no difference from {reference} shown; minimum detectable effect {row['detectable']:.1f} pp (80 % power)"


# --- F1: no mean over items, so its intervals come from a bootstrap: items are drawn again with replacement, the same draw
# for every arm and seed ------------------------------------------------------------------------------------------------


def f1_scores(confusions: numpy.ndarray, average: str = "macro") -> numpy.ndarray:
    """Return F1 for a stack of confusion matrices; a class that neither occurs nor is predicted has F1 0.

    The values are those of scikit-learn's ``f1_score`` with ``zero_division=0``, for thousands of tables at a time.

    Args:
        confusions: counts, shape (..., classes, classes); rows are the right classes, columns the predicted ones. A last
            column more counts the items without an answer, which are missing from their class.
        average: "macro", every class alike, or "weighted", every class by how often it occurs.

    Returns:
        Shape (...), from 0 to 1.

    Example:
        >>> f1_scores(numpy.array([[2, 0], [1, 1]])).round(4)
        np.float64(0.7333)
    """
    check_known(average, AVERAGES, "average")
    hits = numpy.diagonal(confusions, axis1=-2, axis2=-1)
    right = confusions.sum(-1)
    both = right + confusions.sum(-2)[..., : right.shape[-1]]
    each = numpy.divide(2 * hits, both, out=numpy.zeros(both.shape), where=both > 0)
    if average == "macro":
        return each.mean(-1)
    return (each * right).sum(-1) / right.sum(-1)


def compare_f1(
    outcomes: Outcomes, reference: str = "cpt", average: str = "macro", draws: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare the F1 of every arm with that of a reference arm on the same items.

    The difference is that of the mean F1 over seeds. Its interval is the point plus and minus the ``VarianceComponents``
    of the bootstrap over items and, with several seeds, over seeds; that of an arm's own F1 is the percentile
    interval of the bootstrap, over items alone, as Wilson's is for accuracy.

    Args:
        outcomes: arm -> seed -> outcomes, each with "id", "hash", "answer", "prediction" (None where a generated text
            gives no answer) and "choices", the number of classes.
        reference: the arm that the others are compared with.
        average: "macro" or "weighted".
        draws: bootstrap draws.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        A row per arm, in the order of ``outcomes``: arm, n, seeds, f1, low, high (from 0 to 1); difference,
        difference_low and difference_high (percentage points; nan for the reference). Ends are nan where no draw
        changes the value, as where all items are right: such a bootstrap knows nothing about other items.

    Raises:
        InputError: as in ``compare``, an unknown average, or an outcome without prediction or answer.

    Example:
        >>> compare_f1(run.outcomes["practice-fiqa"])[0]["f1"]  # doctest: +SKIP
        1.0
    """
    kept = aligned(common_seeds(outcomes), reference)
    first = next(iter(kept[reference].values()))
    n, classes = len(first), _classes(first)
    weights = numpy.random.default_rng(seed).multinomial(n, numpy.full(n, 1 / n), size=draws).astype(numpy.float32)
    weights = numpy.vstack([numpy.ones(n, numpy.float32), weights])  # the first row is the sample itself
    scores = {
        arm: numpy.stack([_scores(rows, classes, weights, average) for rows in seeds.values()])
        for arm, seeds in kept.items()
    }
    return [_f1_row(arm, scores, reference, n) for arm in scores]


def _classes(rows: Sequence[Mapping[str, Any]]) -> int:
    counts = {row.get("choices", 0) for row in rows}
    if len(counts) != 1 or counts == {0}:
        raise InputError("F1 needs items that share their classes, and outcomes that say how many: evaluate again.")
    return counts.pop()


def _scores(rows: Sequence[Mapping[str, Any]], classes: int, weights: numpy.ndarray, average: str) -> numpy.ndarray:
    """Return F1 of every weighting of the items; shape (draws + 1,)."""
    if lacking := [row["id"] for row in rows if "prediction" not in row or "answer" not in row]:
        raise InputError(f"item '{lacking[0]}' has no prediction or no answer, so it has no F1: evaluate again.")
    predicted = [classes if row["prediction"] is None else row["prediction"] for row in rows]
    cells = numpy.zeros((len(rows), classes, classes + 1), numpy.float32)
    cells[numpy.arange(len(rows)), [row["answer"] for row in rows], predicted] = 1
    tables = weights @ cells.reshape(len(rows), -1)
    return f1_scores(tables.reshape(-1, classes, classes + 1).astype(float), average)


def _f1_row(arm: str, scores: dict[str, numpy.ndarray], reference: str, n: int) -> dict[str, Any]:
    mean = scores[arm].mean(0)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = map(float, numpy.quantile(mean[1:], tails)) if mean.std() > 0 else (math.nan, math.nan)
    row = {"arm": arm, "n": n, "seeds": len(scores[arm]), "f1": float(mean[0]), "low": low, "high": high}
    if arm == reference:
        return row | dict.fromkeys(("difference", "difference_low", "difference_high"), math.nan)
    differences = scores[arm] - scores[reference]  # of each seed: of the sample itself, then of each draw
    value, items = float(differences[:, 0].mean()), float(differences[:, 1:].mean(0).var())
    variance = VarianceComponents.of(items, differences[:, 0].tolist(), float(differences[:, 1:].var(1).mean()))
    half = variance.half() or math.nan
    ends = {"difference": 100 * value, "difference_low": 100 * (value - half), "difference_high": 100 * (value + half)}
    return row | ends
