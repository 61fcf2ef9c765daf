"""Outcomes per item of several arms and seeds flow in; a row per arm, with its difference to a reference, flows out.

Two sources of chance are kept apart: other items, and other seeds. Five seeds on 100 items are not 500 items, so seeds
never make an interval narrower than the average over seeds allows on these items.
"""

from __future__ import annotations

import math

from ctxft.prompts import get_arm, sort_arms
from ctxft.statistics.intervals import Spread, adjusted_mean, item_interval, wilson
from ctxft.statistics.paired import mcnemar, smallest_difference
from ctxft.storage import InputError, check_known

Outcomes = dict[str, dict[int, list[dict]]]  # arm -> seed -> an outcome per item


def compare(outcomes: Outcomes, reference: str = "cpt", level: float = 0.95) -> list[dict]:
    """Compare every arm with a reference arm on the same items, seed by seed.

    Only the seeds that all trained arms share count (``common_seeds``), for accuracies and differences alike. A seed of
    an arm is paired with the same seed of the reference; the base model, evaluated once, with every seed of the other.
    Accuracies have Wilson's interval; of several seeds it is that of the mean accuracy on n items, since seeds are not
    items.

    With one seed a difference has the interval over items and McNemar's exact p, and is shown when both say so; what
    could have been seen is ``smallest_difference``. With several seeds interval, p and what could have been seen come from
    one ``Spread``, over items and over seeds, and a difference is shown when its interval leaves out 0. What could have
    been seen is always the smallest true difference that this very comparison, with its items and its seeds, would show
    in four of five repetitions.

    Args:
        outcomes: arm -> seed -> outcomes, each with "id", "hash" and "correct"; the order of items does not matter.
        reference: the arm that the others are compared with.
        level: of all intervals; 1 - level is the size of the tests, which are not corrected here (see ``corrected``).

    Returns:
        A row per arm, in the order of ``sort_arms``: arm, n (items), seeds (how many count), accuracy, low, high (shares);
        difference, difference_low, difference_high, detectable (points; infinite if nothing could be seen), p (all nan
        for the reference itself), shown, mcnemar (the exact p of each seed) and verdict (in words).

    Raises:
        InputError: an unknown arm, trained arms without a seed in common, a base arm with several seeds, or other items
            in one arm than in another; the first differing item is named.
    """
    for arm in outcomes:
        get_arm(arm)
    check_known(reference, outcomes, "reference arm")
    correct = {
        arm: {seed: [bool(row["correct"]) for row in rows] for seed, rows in seeds.items()}
        for arm, seeds in aligned(common_seeds(outcomes), reference).items()
    }
    return [_row(arm, correct, reference, level) for arm in sort_arms(correct)]


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


def aligned(outcomes: Outcomes, reference: str) -> Outcomes:
    """Bring the outcomes of every arm and seed into the item order of the reference's first seed.

    Raises:
        InputError: there is no outcome, or an item that is not the same everywhere; the first is named.
    """
    first = min(outcomes[reference])
    expected = _by_id(outcomes[reference][first], f"arm {reference}, seed {first}")
    if not expected:
        raise InputError(f"arm {reference}, seed {first} has no outcomes: evaluate it first.")
    joined: Outcomes = {}
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
            joined.setdefault(arm, {})[seed] = [found[item] for item in expected]
    return joined


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
        nothing = dict.fromkeys(("difference", "difference_low", "difference_high", "detectable", "p"), math.nan)
        return row | nothing | {"shown": False, "mcnemar": [], "verdict": "the reference"}
    return row | _difference(_pairs(arm, correct, reference), reference, level)


def _difference(pairs: list[tuple[list[bool], list[bool]]], reference: str, level: float) -> dict:
    signs = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
    per_seed = [sum(row) / len(row) for row in signs]
    tests = [mcnemar(row.count(1), row.count(-1)) for row in signs]
    if len(signs) == 1:
        low, high = item_interval(signs[0], level)
        p, detectable = tests[0], smallest_difference(len(signs[0]), sum(map(abs, signs[0])) / len(signs[0]), level)
        shown = (low > 0 or high < 0) and p < 1 - level
    else:
        mean, spread = seeds_spread(signs)
        low, high = max(-1.0, mean - spread.half(level)), min(1.0, mean + spread.half(level))
        p, detectable = spread.p_value(mean), spread.detectable(level)
        shown = low > 0 or high < 0
    value = math.fsum(per_seed) / len(per_seed)
    points = {"difference": value, "difference_low": low, "difference_high": high, "detectable": detectable}
    row = {name: 100 * number for name, number in points.items()} | {"p": p, "shown": shown, "mcnemar": tests}
    row["detectable"] = row["detectable"] if detectable <= 1 else math.inf
    return row | {"verdict": _verdict(row, reference, level)}


def seeds_spread(signs: list[list[float]]) -> tuple[float, Spread]:
    """Return the mean difference over items and seeds, adjusted as in ``item_interval``, and its spread.

    Args:
        signs: for each of two or more seeds, the difference on each item: -1, 0 or 1.
    """
    k, n = len(signs), len(signs[0])
    per_item = [sum(column) / k for column in zip(*signs, strict=True)]
    per_seed = [sum(row) / n for row in signs]
    mean, items = adjusted_mean(per_item)
    alone = math.fsum(adjusted_mean(row)[1] for row in signs) / k
    return mean, Spread.of(items, per_seed, alone)


def _verdict(row: dict, reference: str, level: float) -> str:
    if row["shown"]:
        side = "higher" if row["difference"] > 0 else "lower"
        span = f"{100 * level:g} % interval {row['difference_low']:+.1f} to {row['difference_high']:+.1f}"
        return f"{side} than {reference} by {abs(row['difference']):.1f} points ({span})"
    seen = math.isfinite(row["detectable"])
    size = f"could have seen {row['detectable']:.1f} points" if seen else "could not have seen any"
    return f"no difference to {reference} shown; {size}"
