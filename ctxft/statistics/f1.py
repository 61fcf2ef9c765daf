"""Predictions of several arms on one classification benchmark flow in; F1 per arm and its paired differences flow out.

F1 is no mean over items, so its intervals come from a bootstrap: the items are drawn again with replacement, the same
draw for every arm and seed, and F1 is computed anew.
"""

from __future__ import annotations

import math

import numpy

from ctxft.prompts import sort_arms
from ctxft.statistics.comparison import Outcomes, aligned, common_seeds
from ctxft.statistics.intervals import Spread
from ctxft.storage import InputError, check_known

AVERAGES = ("macro", "weighted")


def f1_scores(confusions: numpy.ndarray, average: str = "macro") -> numpy.ndarray:
    """Return F1 for a stack of confusion matrices; a class that is neither there nor named has F1 0.

    The values are those of scikit-learn's ``f1_score`` with ``zero_division=0``, for thousands of tables at a time.

    Args:
        confusions: counts, shape (..., classes, classes); rows are the right classes, columns the named ones. A last
            column more counts the items without an answer, which are missing from their class.
        average: "macro", every class alike, or "weighted", every class by how often it is right.

    Returns:
        Shape (...), shares from 0 to 1.

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
) -> list[dict]:
    """Compare the F1 of every arm with that of a reference arm on the same items.

    The difference is that of the mean F1 over seeds. Its interval is the point plus and minus the ``Spread`` of the
    bootstrap over items and, with several seeds, of the scatter over seeds; that of an arm's own F1 is the percentile
    interval of the bootstrap, over items alone, as Wilson's is for accuracy.

    Args:
        outcomes: arm -> seed -> outcomes, each with "id", "hash", "answer", "prediction" (None where a written text gives
            no answer) and "choices", the number of classes.
        reference: the arm that the others are compared with.
        average: "macro" or "weighted".
        level: share of intervals that hold the true value.
        draws: bootstrap draws.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        A row per arm, in the order of ``sort_arms``: arm, n, seeds, f1, low, high (shares); difference, difference_low and
        difference_high (points; nan for the reference). Ends are nan where no draw changes the value, as where all
        items are right: such a bootstrap knows nothing about other items.

    Raises:
        InputError: as in ``compare``, an unknown average, or an outcome without prediction or answer.

    Example:
        >>> compare_f1(run.outcomes["practice-fiqa"])[0]["f1"]  # doctest: +SKIP
        1.0
    """
    check_known(reference, outcomes, "reference arm")
    check_known(average, AVERAGES, "average")
    kept = aligned(common_seeds(outcomes), reference)
    first = next(iter(kept[reference].values()))
    n, classes = len(first), _classes(first)
    weights = numpy.random.default_rng(seed).multinomial(n, numpy.full(n, 1 / n), size=draws).astype(numpy.float32)
    weights = numpy.vstack([numpy.ones(n, numpy.float32), weights])  # the first row is the sample itself
    scores = {
        arm: numpy.stack([_scores(rows, classes, weights, average) for rows in seeds.values()])
        for arm, seeds in kept.items()
    }
    return [_row(arm, scores, reference, n, level) for arm in sort_arms(scores)]


def f1_lines(rows: list[dict], average: str = "macro") -> dict[str, float]:
    """Return the F1 of guessing every class alike (chance) and of always naming the commonest class (majority), as shares.

    Args:
        rows: outcomes with "answer" and "choices"; of chance this is the F1 of its expected confusion matrix.
        average: "macro" or "weighted".
    """
    classes = _classes(rows)
    right = numpy.bincount([row["answer"] for row in rows], minlength=classes).astype(float)
    commonest = numpy.outer(right, numpy.eye(classes)[right.argmax()])
    tables = {"chance": numpy.outer(right, numpy.full(classes, 1 / classes)), "majority": commonest}
    return {line: float(f1_scores(table, average)) for line, table in tables.items()}


def _classes(rows: list[dict]) -> int:
    counts = {row.get("choices", 0) for row in rows}
    if len(counts) != 1 or counts == {0}:
        raise InputError("F1 needs items that share their classes, and outcomes that say how many: evaluate again.")
    return counts.pop()


def _scores(rows: list[dict], classes: int, weights: numpy.ndarray, average: str) -> numpy.ndarray:
    """Return F1 of every weighting of the items; shape (draws + 1,)."""
    if lacking := [row["id"] for row in rows if "prediction" not in row or "answer" not in row]:
        raise InputError(f"item '{lacking[0]}' has no prediction or no answer, so it has no F1: evaluate again.")
    said = [classes if row["prediction"] is None else row["prediction"] for row in rows]
    cells = numpy.zeros((len(rows), classes, classes + 1), numpy.float32)
    cells[numpy.arange(len(rows)), [row["answer"] for row in rows], said] = 1
    tables = weights @ cells.reshape(len(rows), -1)
    return f1_scores(tables.reshape(-1, classes, classes + 1).astype(float), average)


def _row(arm: str, scores: dict[str, numpy.ndarray], reference: str, n: int, level: float) -> dict:
    own = scores[arm].mean(0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = map(float, numpy.quantile(own[1:], tails)) if own.std() > 0 else (math.nan, math.nan)
    row = {"arm": arm, "n": n, "seeds": len(scores[arm]), "f1": float(own[0]), "low": low, "high": high}
    if arm == reference:
        return row | dict.fromkeys(("difference", "difference_low", "difference_high"), math.nan)
    value, spread = difference_spread(scores[arm] - scores[reference])
    half = spread.half(level) or math.nan
    row |= {"difference": 100 * value, "difference_low": 100 * (value - half), "difference_high": 100 * (value + half)}
    return row


def difference_spread(differences: numpy.ndarray) -> tuple[float, Spread]:
    """Return the mean difference over seeds and its spread.

    Args:
        differences: shape (seeds, draws + 1); the first column is the sample itself, the others are bootstrap draws.
    """
    items = float(differences[:, 1:].mean(0).var())
    alone = float(differences[:, 1:].var(1).mean())
    per_seed = differences[:, 0].tolist()
    return float(differences[:, 0].mean()), Spread.of(items, per_seed, alone)
