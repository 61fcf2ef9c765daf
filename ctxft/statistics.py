"""Outcomes per item go in, of several arms and seeds; intervals, paired tests and a verdict in words come out.

Two sources of chance are kept apart. The items are a sample of what could be asked: Wilson's interval, the paired
interval over items and McNemar's test speak of them. The seeds are a sample of training runs: Student's t over seeds
speaks of them. Five seeds on 100 items are not 500 items, so seeds never make an interval over items narrower than the
average over seeds allows. The interval of a difference holds both; ``compare`` says when a difference is called shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import scipy.stats

from ctxft.prompts import ARMS
from ctxft.runtime import InputError, check_known

Outcomes = dict[str, dict[int, list[dict]]]  # arm -> seed -> an outcome per item


# --- intervals and tests ----------------------------------------------------------------------------------------------


def wilson(correct: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927).

    Args:
        correct: items answered correctly; a mean over seeds need not be whole.
        n: items asked.
        level: share of intervals that hold the true proportion.

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
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # In exact arithmetic the interval holds the share and ends at 0 or 1 for none or all; rounding can miss both.
    return 0.0 if correct == 0 else min(share, centre - half), 1.0 if correct == n else max(share, centre + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p value of McNemar's test: a sign test on the items that one arm alone gets right.

    Args:
        only_a: items that the first arm alone answers correctly.
        only_b: items that the second arm alone answers correctly.

    Example:
        >>> mcnemar(0, 6)
        0.03125
    """
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


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
    if k == 1:
        return mean, math.nan, math.nan
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (k - 1) / k)
    half = float(scipy.stats.t.ppf((1 + level) / 2, k - 1)) * error
    return mean, mean - half, mean + half


def item_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a paired difference of two accuracies over items.

    The adjusted Wald interval of Agresti and Min (*Statistics in Medicine* 24, 2005): half a made-up item is added to
    each cell of the 2 x 2 table, which keeps the interval honest when few items differ, or none. Written with one
    difference per item it holds for means over seeds too.

    Args:
        differences: per item, correct in the arm less correct in the reference: -1, 0, 1, or a mean over seeds.
        level: share of intervals that hold the true difference.

    Returns:
        The lower and the upper end, as shares (0.01 is one point).
    """
    n = len(differences) + 2
    mean = math.fsum(differences) / n
    variance = (math.fsum(d * d for d in differences) + 1) / n - mean * mean
    half = float(scipy.stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance / n)
    return max(-1.0, mean - half), min(1.0, mean + half)


def smallest_difference(n: int, discordant: float, level: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest difference that a paired test on n items would show, as a share (0.01 is one point).

    The larger of two bounds. The normal one, (z_level + z_power) * sqrt(discordant / n), is Connor's formula
    (*Biometrics* 43, 1987) with the variance of no difference. The exact one: McNemar's p can fall below 1 - level only
    if enough items change in one direction (6 for a level of 0.95), whatever n is.

    Args:
        n: items.
        discordant: share of items on which the two arms differ, in either direction.
        level: 1 - level is the size of the two-sided test.
        power: the chance to see a true difference of that size.

    Example:
        >>> round(smallest_difference(1000, 0.2), 4)
        0.0396
    """
    z = scipy.stats.norm.ppf((1 + level) / 2) + scipy.stats.norm.ppf(power)
    fewest = math.ceil(math.log2(2 / (1 - level)))
    return min(1.0, max(float(z) * math.sqrt(discordant / n), fewest / n))


# --- arms side by side ------------------------------------------------------------------------------------------------


def compare(outcomes: Outcomes, reference: str = "cpt", level: float = 0.95) -> list[dict]:
    """Compare every arm with a reference arm on the same items, seed by seed.

    Only the seeds that all trained arms share count (``common_seeds``), for accuracies and differences alike. A seed of
    an arm is paired with the same seed of the reference; the base model, evaluated once, with every seed of the other.
    Accuracies have Wilson's interval; of several seeds it is that of the mean accuracy on n items, since seeds are not
    items. With one seed a difference has the interval over items; with several it has the smallest interval that holds
    both that of the mean difference over items and Student's t over seeds. A difference is shown when its interval
    leaves out 0 and, with one seed, McNemar's exact p is below 1 - level too; with several seeds the p values, one for
    each, have no say. What could have been seen, with a chance of 80 %, is ``smallest_difference`` over items and, with
    several seeds, the same sum of t quantiles times the standard error over seeds; the larger of the two.

    Args:
        outcomes: arm -> seed -> outcomes, each with "id", "hash" and "correct"; the order of items does not matter.
        reference: the arm that the others are compared with.
        level: of all intervals; 1 - level is the size of the tests, which are not corrected for the number of arms.

    Returns:
        A row per arm, in the order of ``ARMS``: arm, n (items), seeds (how many count), accuracy, low, high (shares);
        difference, difference_low, difference_high, detectable (points; nan for the reference itself), mcnemar (a p
        value per seed) and verdict (in words).

    Raises:
        InputError: an unknown arm, trained arms without a seed in common, a base arm with several seeds, or other items
            in one arm than in another; the first differing item is named.
    """
    for arm in outcomes:
        check_known(arm, ARMS, "arm")
    check_known(reference, outcomes, "reference arm")
    correct = _joined(common_seeds(outcomes), reference)
    return [_row(arm, correct, reference, level) for arm in ARMS if arm in correct]


def common_seeds(outcomes: Outcomes) -> Outcomes:
    """Keep of each trained arm the seeds that all trained arms share; the base arm, evaluated once, is kept as it is.

    Raises:
        InputError: the trained arms share no seed, or the base arm has several.

    Example:
        >>> common_seeds({"base": {0: []}, "cpt": {1: [], 2: []}, "cft": {2: []}})
        {'base': {0: []}, 'cpt': {2: []}, 'cft': {2: []}}
    """
    if len(outcomes.get("base", ())) > 1:
        found = ", ".join(map(str, sorted(outcomes["base"])))
        raise InputError(f"arm base is not trained and has one seed, found {found}: remove all but one.")
    trained = {arm: set(seeds) for arm, seeds in outcomes.items() if arm != "base"}
    common = set.intersection(*trained.values()) if trained else set()
    if trained and not common:
        found = "; ".join(f"{arm}: {', '.join(map(str, sorted(seeds)))}" for arm, seeds in trained.items())
        raise InputError(f"the trained arms have no seed in common ({found}): run all with the same seeds.")
    return {
        arm: {seed: items for seed, items in seeds.items() if arm == "base" or seed in common}
        for arm, seeds in outcomes.items()
    }


def _joined(outcomes: Outcomes, reference: str) -> dict[str, dict[int, list[bool]]]:
    """Bring the outcomes of every arm and seed into the item order of the reference's first seed, or refuse."""
    first = min(outcomes[reference])
    expected = _by_id(outcomes[reference][first], f"arm {reference}, seed {first}")
    if not expected:
        raise InputError(f"arm {reference}, seed {first} has no outcomes: evaluate it first.")
    correct: dict[str, dict[int, list[bool]]] = {}
    for arm, seeds in outcomes.items():
        for seed in sorted(seeds):
            where = f"arm {arm}, seed {seed}"
            found = _by_id(seeds[seed], where)
            for item in (*expected, *found):
                if item not in found or item not in expected or found[item]["hash"] != expected[item]["hash"]:
                    problem = _problem(item, found, expected)
                    raise InputError(
                        f"{where} and arm {reference}, seed {first} differ: {problem}; evaluate both anew."
                    )
            correct.setdefault(arm, {})[seed] = [bool(found[item]["correct"]) for item in expected]
    return correct


def _problem(item: str, found: dict[str, dict], expected: dict[str, dict]) -> str:
    if item in found and item in expected:
        return f"item '{item}' has another hash, so another question, choice or answer"
    return f"item '{item}' is only in the {'first' if item in found else 'second'}"


def _by_id(rows: list[dict], where: str) -> dict[str, dict]:
    by_id = {row["id"]: row for row in rows}
    if len(by_id) < len(rows):
        twice = next(row["id"] for i, row in enumerate(rows) if row["id"] in {other["id"] for other in rows[:i]})
        raise InputError(
            f"{where}: the item '{twice}' stands twice, so it cannot be paired; give each item its own id."
        )
    return by_id


def _pairs(arm: str, correct: dict, reference: str) -> list[tuple[list[bool], list[bool]]]:
    ours, theirs = correct[arm], correct[reference]
    if arm == "base":
        ours = dict.fromkeys(theirs, *ours.values())
    if reference == "base":
        theirs = dict.fromkeys(ours, *theirs.values())
    return [(ours[seed], theirs[seed]) for seed in sorted(ours)]


def _row(arm: str, correct: dict, reference: str, level: float) -> dict:
    seeds = correct[arm]
    n = len(next(iter(seeds.values())))
    accuracy = math.fsum(sum(items) for items in seeds.values()) / (n * len(seeds))
    low, high = wilson(accuracy * n, n, level)
    row = {"arm": arm, "n": n, "seeds": len(seeds), "accuracy": accuracy, "low": low, "high": high}
    if arm == reference:
        nothing = dict.fromkeys(("difference", "difference_low", "difference_high", "detectable"), math.nan)
        return row | nothing | {"mcnemar": [], "verdict": "the reference"}
    return row | _difference(_pairs(arm, correct, reference), n, reference, level)


def _difference(pairs: list[tuple[list[bool], list[bool]]], n: int, reference: str, level: float) -> dict:
    signs = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
    per_item = [math.fsum(column) / len(pairs) for column in zip(*signs, strict=True)]
    tests = [mcnemar(row.count(1), row.count(-1)) for row in signs]
    discordant = math.fsum(d * d for d in per_item) / n  # for one pair: the share of items that differ
    detectable = smallest_difference(n, discordant, level)
    items = item_interval(per_item, level)
    value, *over_seeds = seed_interval([sum(row) / n for row in signs], level)
    if len(pairs) == 1:
        low, high = items
    else:
        low, high = min(items[0], over_seeds[0]), max(items[1], over_seeds[1])
        t = scipy.stats.t.ppf([(1 + level) / 2, 0.8], len(pairs) - 1)
        detectable = max(detectable, float(t.sum() / t[0]) * (over_seeds[1] - over_seeds[0]) / 2)
    shown = (low > 0 or high < 0) and (len(pairs) > 1 or tests[0] < 1 - level)
    if shown:
        side = "higher" if value > 0 else "lower"
        span = f"{100 * level:g} % interval {100 * low:+.1f} to {100 * high:+.1f}"
        verdict = f"{side} than {reference} by {abs(100 * value):.1f} points ({span})"
    else:
        size = f"could have seen {100 * detectable:.1f} points" if detectable <= 1 else "could not have seen any"
        verdict = f"no difference to {reference} shown; {size}"
    numbers = {"difference": value, "difference_low": low, "difference_high": high, "detectable": detectable}
    return {name: 100 * number for name, number in numbers.items()} | {"mcnemar": tests, "verdict": verdict}
