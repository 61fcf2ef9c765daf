"""Compare arms on the same items, seed by seed: accuracy and F1, each with its difference from a reference arm.

Two sources of chance are kept apart: other items, and other seeds. Five seeds on 100 items are not 500 items, so seeds
never make an interval narrower than the average over seeds allows on these items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from ctxft.statistics.intervals import VarianceComponents, adjusted_mean, item_interval, wilson
from ctxft.statistics.paired import mcnemar, minimum_detectable_effect
from ctxft.storage import InputError, check_known

Outcomes = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]  # arm -> seed -> an outcome per item
AVERAGES = ("macro", "weighted")


def compare(
    outcomes: Outcomes, reference: str = "cpt", level: float = 0.95, untrained: str = "base"
) -> list[dict[str, Any]]:
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
        level: of all intervals; 1 - level is the size of the tests, which are not corrected here (see ``corrected``).
        untrained: the arm without training, which has one seed.

    Returns:
        A row per arm, in the order of ``outcomes``: arm, n (items), seeds (how many count), accuracy, low, high (from 0 to
        1); difference, difference_low, difference_high, detectable (percentage points; infinite if no effect is
        detectable), p (all nan for the reference itself), shown, mcnemar (the exact p of each seed) and verdict (in words).

    Raises:
        InputError: trained arms without a seed in common, an untrained arm with several seeds, or other items in one arm
            than in another; the first differing item is named.
    """
    check_known(reference, outcomes, "reference arm")
    correct = {
        arm: {seed: [bool(row["correct"]) for row in rows] for seed, rows in seeds.items()}
        for arm, seeds in aligned(common_seeds(outcomes, untrained), reference).items()
    }
    return [_row(arm, correct, reference, level, untrained) for arm in correct]


def common_seeds(outcomes: Outcomes, untrained: str = "base") -> Outcomes:
    """Keep of each trained arm the seeds that all trained arms share; the untrained one, evaluated once, stays as it is.

    Raises:
        InputError: the trained arms share no seed, or the untrained one has several.

    Example:
        >>> common_seeds({"base": {0: []}, "cpt": {1: [], 2: []}, "cft": {2: []}})
        {'base': {0: []}, 'cpt': {2: []}, 'cft': {2: []}}
    """
    if len(outcomes.get(untrained, ())) > 1:
        seeds = ", ".join(map(str, sorted(outcomes[untrained])))
        raise InputError(f"arm {untrained} is not trained and has one seed, found {seeds}: remove all but one.")
    trained = {arm: set(seeds) for arm, seeds in outcomes.items() if arm != untrained}
    common = set.intersection(*trained.values()) if trained else set()
    if trained and not common:
        listed = "; ".join(f"{arm}: {', '.join(map(str, sorted(seeds)))}" for arm, seeds in trained.items())
        raise InputError(f"the trained arms have no seed in common ({listed}): run all with the same seeds.")
    return {
        arm: {seed: items for seed, items in seeds.items() if arm == untrained or seed in common}
        for arm, seeds in outcomes.items()
    }


def aligned(outcomes: Outcomes, reference: str) -> dict[str, dict[int, list[Mapping[str, Any]]]]:
    """Bring the outcomes of every arm and seed into the item order of the reference's first seed.

    Raises:
        InputError: there is no outcome, or an item that is not the same everywhere; the first is named.
    """
    first = min(outcomes[reference])
    expected = _by_id(outcomes[reference][first], f"arm {reference}, seed {first}")
    if not expected:
        raise InputError(f"arm {reference}, seed {first} has no outcomes: evaluate it first.")
    joined: dict[str, dict[int, list[Mapping[str, Any]]]] = {arm: {} for arm in outcomes}
    for arm, seed in ((arm, seed) for arm, seeds in outcomes.items() for seed in sorted(seeds)):
        where = f"arm {arm}, seed {seed}"
        items = _by_id(outcomes[arm][seed], where)
        for item in (*expected, *items):
            if item not in items or item not in expected:
                problem = f"item '{item}' is only in the {'first' if item in items else 'second'}"
            elif items[item]["hash"] != expected[item]["hash"]:
                problem = f"item '{item}' has another hash, so another question, choice or answer"
            else:
                continue
            raise InputError(f"{where} and arm {reference}, seed {first} differ: {problem}; evaluate both again.")
        joined[arm][seed] = [items[item] for item in expected]
    return joined


def _by_id(rows: Sequence[Mapping[str, Any]], where: str) -> dict[str, Mapping[str, Any]]:
    by_id: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["id"] in by_id:
            raise InputError(f"{where}: the item '{row['id']}' occurs twice: give each item its own id.")
        by_id[row["id"]] = row
    return by_id


def _pairs(arm: str, correct: dict, reference: str, untrained: str) -> list[tuple[list[bool], list[bool]]]:
    ours, theirs = correct[arm], correct[reference]
    if arm == untrained:
        ours = dict.fromkeys(theirs, next(iter(ours.values())))
    if reference == untrained:
        theirs = dict.fromkeys(ours, next(iter(theirs.values())))
    return [(ours[seed], theirs[seed]) for seed in sorted(ours)]


def _row(arm: str, correct: dict, reference: str, level: float, untrained: str) -> dict[str, Any]:
    seeds = correct[arm]
    n = len(next(iter(seeds.values())))
    accuracy = math.fsum(sum(items) for items in seeds.values()) / (n * len(seeds))
    low, high = wilson(accuracy * n, n, level)
    row = {"arm": arm, "n": n, "seeds": len(seeds), "accuracy": accuracy, "low": low, "high": high}
    if arm == reference:
        nothing = dict.fromkeys(("difference", "difference_low", "difference_high", "detectable", "p"), math.nan)
        return row | nothing | {"shown": False, "mcnemar": [], "verdict": "the reference"}
    return row | _difference(_pairs(arm, correct, reference, untrained), reference, level)


def _difference(pairs: list[tuple[list[bool], list[bool]]], reference: str, level: float) -> dict[str, Any]:
    signs = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
    per_seed = [sum(row) / len(row) for row in signs]
    tests = [mcnemar(row.count(1), row.count(-1)) for row in signs]
    if len(signs) == 1:
        low, high = item_interval(signs[0], level)
        p, detectable = (
            tests[0],
            minimum_detectable_effect(len(signs[0]), sum(map(abs, signs[0])) / len(signs[0]), level),
        )
        shown = (low > 0 or high < 0) and p < 1 - level
    else:
        mean, variance = variance_over_seeds(signs)
        low, high = max(-1.0, mean - variance.half(level)), min(1.0, mean + variance.half(level))
        p, detectable = variance.p_value(mean), variance.detectable(level)
        shown = low > 0 or high < 0
    value = math.fsum(per_seed) / len(per_seed)
    percent = {"difference": value, "difference_low": low, "difference_high": high, "detectable": detectable}
    row = {name: 100 * number for name, number in percent.items()} | {"p": p, "shown": shown, "mcnemar": tests}
    row["detectable"] = row["detectable"] if detectable <= 1 else math.inf
    return row | {"verdict": _verdict(row, reference, level)}


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


def _verdict(row: dict, reference: str, level: float) -> str:
    if row["shown"]:
        side = "higher" if row["difference"] > 0 else "lower"
        span = f"{100 * level:g} % interval {row['difference_low']:+.1f} to {row['difference_high']:+.1f}"
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
    outcomes: Outcomes,
    reference: str = "cpt",
    average: str = "macro",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    untrained: str = "base",
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
        level: fraction of intervals that hold the true value.
        draws: bootstrap draws.
        seed: of the draws; the same seed gives the same intervals.
        untrained: as for ``compare``.

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
    check_known(reference, outcomes, "reference arm")
    check_known(average, AVERAGES, "average")
    kept = aligned(common_seeds(outcomes, untrained), reference)
    first = next(iter(kept[reference].values()))
    n, classes = len(first), _classes(first)
    weights = numpy.random.default_rng(seed).multinomial(n, numpy.full(n, 1 / n), size=draws).astype(numpy.float32)
    weights = numpy.vstack([numpy.ones(n, numpy.float32), weights])  # the first row is the sample itself
    scores = {
        arm: numpy.stack([_scores(rows, classes, weights, average) for rows in seeds.values()])
        for arm, seeds in kept.items()
    }
    return [_f1_row(arm, scores, reference, n, level) for arm in scores]


def f1_lines(rows: Sequence[Mapping[str, Any]], average: str = "macro") -> dict[str, float]:
    """Return the F1 of guessing every class alike (chance) and of always predicting the commonest class (majority).

    Args:
        rows: outcomes with "answer" and "choices"; of chance this is the F1 of its expected confusion matrix.
        average: "macro" or "weighted".
    """
    classes = _classes(rows)
    right = numpy.bincount([row["answer"] for row in rows], minlength=classes).astype(float)
    commonest = numpy.outer(right, numpy.eye(classes)[right.argmax()])
    tables = {"chance": numpy.outer(right, numpy.full(classes, 1 / classes)), "majority": commonest}
    return {line: float(f1_scores(table, average)) for line, table in tables.items()}


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


def _f1_row(arm: str, scores: dict[str, numpy.ndarray], reference: str, n: int, level: float) -> dict[str, Any]:
    mean = scores[arm].mean(0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = map(float, numpy.quantile(mean[1:], tails)) if mean.std() > 0 else (math.nan, math.nan)
    row = {"arm": arm, "n": n, "seeds": len(scores[arm]), "f1": float(mean[0]), "low": low, "high": high}
    if arm == reference:
        return row | dict.fromkeys(("difference", "difference_low", "difference_high"), math.nan)
    value, variance = _variance_of_difference(scores[arm] - scores[reference])
    half = variance.half(level) or math.nan
    row |= {"difference": 100 * value, "difference_low": 100 * (value - half), "difference_high": 100 * (value + half)}
    return row


def _variance_of_difference(differences: numpy.ndarray) -> tuple[float, VarianceComponents]:
    """Return the mean difference over seeds and its variance.

    Args:
        differences: shape (seeds, draws + 1); the first column is the sample itself, the others are bootstrap draws.
    """
    items = float(differences[:, 1:].mean(0).var())
    alone = float(differences[:, 1:].var(1).mean())
    per_seed = differences[:, 0].tolist()
    return float(differences[:, 0].mean()), VarianceComponents.of(items, per_seed, alone)
