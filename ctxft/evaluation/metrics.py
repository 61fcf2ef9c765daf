"""Summarize outcomes: accuracy, F1 and calibration, each next to the lines that need no model.

For sets of labeled texts accuracy is not enough: where one label is rare, always naming the other one looks good. *Macro*
F1 is the mean over the classes, so a class that is never predicted pulls it down; *weighted* F1 counts each class by its
items, and hardly notices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from ctxft.evaluation.benchmarks.records import Benchmark
from ctxft.evaluation.outcomes import Outcome
from ctxft.storage import InputError

BINS = 10  # of the reliability diagram
NO_CLASS = -1  # no answer, where scikit-learn wants numbers


Metrics = dict[str, Any]  # what ``metrics`` returns


def metrics(outcomes: Sequence[Outcome], benchmark: Benchmark) -> Metrics:
    """Summarize the outcomes of one model on one benchmark.

    Args:
        outcomes: one for each question, in order, as ``ctxft.evaluation.evaluate`` makes them.
        benchmark: the questions they answer.

    Returns:
        n, the items; accuracy (0 to 1); chance and majority, the accuracy of guessing, and of always naming the commonest
        answer position; ties, items whose two best log-likelihoods are exactly equal; unanswered, items with no answer,
        counted as wrong; truncated_items, those whose prompt was cut; repeated_items, those whose right choice is there
        twice (they count as any other, as in lm-evaluation-harness); by_subject, subject -> {"n", "accuracy"}. Where there
        are log-likelihoods also accuracy_per_character, accuracy_per_token and ``calibration``, and where all questions
        share their choices what ``label_metrics`` returns. A run stores it for each benchmark, arm and seed.

    Raises:
        InputError: the outcomes are not those of exactly these questions.

    Example:
        >>> metrics(outcomes, benchmark)["accuracy"]  # doctest: +SKIP
        0.672
    """
    expected = [(question.id, question.hash) for question in benchmark.questions]
    if [(outcome["id"], outcome["hash"]) for outcome in outcomes] != expected:
        raise InputError(
            f"the {len(outcomes)} outcomes are not those of the {len(expected)} questions of '{benchmark.name}':"
            " evaluate again."
        )
    summary: Metrics = {
        "n": len(outcomes),
        "accuracy": _mean(outcomes, "correct"),
        "chance": benchmark.chance,
        "majority": benchmark.majority,
        "ties": sum(_is_tied(outcome["log_likelihoods"]) for outcome in outcomes),
        "unanswered": sum(outcome["prediction"] is None for outcome in outcomes),
        "truncated_items": sum(outcome["truncated"] > 0 for outcome in outcomes),
        "repeated_items": benchmark.repeated,
        "by_subject": {},
    }
    for subject in dict.fromkeys(outcome["subject"] for outcome in outcomes):
        part = [outcome for outcome in outcomes if outcome["subject"] == subject]
        summary["by_subject"][subject] = {"n": len(part), "accuracy": _mean(part, "correct")}
    if all(outcome["log_likelihoods"] for outcome in outcomes):
        for rule in ("per_character", "per_token"):
            summary[f"accuracy_{rule}"] = _mean(outcomes, f"correct_{rule}")
        summary["calibration"] = calibration(outcomes)
    if benchmark.labels:
        answers = [outcome["answer"] for outcome in outcomes]
        summary |= label_metrics(answers, [outcome["prediction"] for outcome in outcomes], benchmark.labels)
    return summary


def label_metrics(answers: Sequence[int], predictions: Sequence[int | None], labels: Sequence[str]) -> dict[str, Any]:
    """Summarize predicted classes, with the same numbers for always predicting the commonest class, and for guessing.

    A class that is never predicted has F1 0. The lines of chance are those of the table that uniform guessing has on
    average.

    Args:
        answers: the right class of each item, from 0.
        predictions: likewise; None is no answer, which is missing from its class and counts against no other.
        labels: the classes' names.

    Returns:
        macro_f1, weighted_f1 (from 0 to 1); per_class_f1, {label: F1}; mcc (Matthews correlation, -1 to 1; 0 where only
        one class is predicted; no answer counts as one more class); majority_macro_f1, majority_weighted_f1,
        chance_macro_f1, chance_weighted_f1; confusion, a list of rows: [i][j] counts items of class i that were predicted
        as j (items without an answer are in no column).

    Source:
        scikit-learn, ``f1_score``, ``matthews_corrcoef``, ``confusion_matrix``.

    Example:
        >>> values = label_metrics([0, 0, 0, 1], [0, 0, 0, 0], ["noise", "causal"])
        >>> round(values["macro_f1"], 3), round(values["weighted_f1"], 3), values["mcc"]
        (0.429, 0.643, 0.0)
    """
    classes = list(range(len(labels)))
    truth = numpy.asarray(answers)
    predicted = numpy.asarray([NO_CLASS if number is None else number for number in predictions])
    commonest = numpy.full_like(truth, numpy.bincount(truth).argmax())
    # Every item once with every class, each for 1/K: the average table of guessing, without a draw.
    guessed = (numpy.repeat(truth, len(classes)), numpy.tile(classes, len(truth)))

    def f1(truth: numpy.ndarray, predicted: numpy.ndarray, average: str | None) -> Any:
        return f1_score(truth, predicted, labels=classes, average=average, zero_division=0.0)  # pyright: ignore

    values: dict[str, Any] = {}
    for line, (right, guess) in {"": (truth, predicted), "majority_": (truth, commonest), "chance_": guessed}.items():
        for average in ("macro", "weighted"):
            values[f"{line}{average}_f1"] = float(f1(right, guess, average))
    return {
        **values,
        "per_class_f1": dict(zip(labels, map(float, f1(truth, predicted, None)), strict=True)),
        "mcc": float(matthews_corrcoef(truth, predicted)),
        "confusion": confusion_matrix(truth, predicted, labels=classes).tolist(),
    }


def calibration(outcomes: Sequence[Outcome], bins: int = BINS) -> dict[str, Any]:
    """Compare how sure a model is with how often it is right.

    Its probability of a choice is the softmax over the choices' summed log-likelihoods; its confidence that of the choice
    it takes. Items are put in bins of equal width by confidence.

    Args:
        outcomes: with log_likelihoods (nats), prediction and correct.
        bins: number of bins from 0 to 1.

    Returns:
        ece, the expected calibration error: the mean over items of |confidence - accuracy| of their bin; bins, a list of
        {"from", "n", "confidence", "accuracy"} for those that hold items.

    Raises:
        InputError: an outcome has no log-likelihoods: a generated answer does not show how sure the model is.

    Source:
        Guo et al., *On Calibration of Modern Neural Networks*, arXiv 1706.04599, section 2.

    Example:
        >>> calibration([{"log_likelihoods": [0.0, 0.0], "prediction": 0, "correct": True}])["ece"]
        0.5
    """
    if any(not o["log_likelihoods"] for o in outcomes):
        raise InputError(
            "calibration needs log-likelihoods, which generated answers lack: evaluate with output_type loglikelihood."
        )
    confidence = numpy.array([softmax(o["log_likelihoods"])[o["prediction"]] for o in outcomes])
    correct = numpy.array([o["correct"] for o in outcomes], dtype=float)
    places = numpy.minimum((confidence * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for place in sorted(set(places.tolist())):
        inside = places == place
        sure, accuracy = float(confidence[inside].mean()), float(correct[inside].mean())
        rows.append({"from": place / bins, "n": int(inside.sum()), "confidence": sure, "accuracy": accuracy})
        error += inside.sum() / len(outcomes) * abs(sure - accuracy)
    return {"ece": float(error), "bins": rows}


def _mean(outcomes: Sequence[Outcome], key: str) -> float:
    return sum(outcome[key] for outcome in outcomes) / len(outcomes)


def _is_tied(values: Sequence[float]) -> bool:
    best = sorted(values, reverse=True)[:2]
    return len(best) == 2 and best[0] == best[1]
