"""Outcomes go in; the numbers that sum them up come out, each beside the lines that need no model.

For sets of labelled texts accuracy is not enough: where one label is rare, always naming the other one looks good. *Macro*
F1 is the mean over the classes, so a class that is never found pulls it down; *weighted* F1 counts each class by its
items, and hardly notices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from ctxft.benchmarks.records import Benchmark
from ctxft.runtime import InputError

BINS = 10  # of the reliability diagram


def metrics(outcomes: Sequence[dict], benchmark: Benchmark) -> dict:
    """Summarise the outcomes of one model on one benchmark.

    Args:
        outcomes: one for each question, in order, as ``ctxft.evaluation`` makes and reads them.
        benchmark: the questions they answer.

    Returns:
        n; accuracy and accuracy_per_character (shares from 0 to 1); chance and majority, the lines to beat; ties (items
        whose two best log-likelihoods are exactly equal); truncated_items; by_subject, {"n", "accuracy"} for each;
        calibration (see there). Where all questions share their choices, also what ``label_metrics`` returns.

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
    subjects = dict.fromkeys(outcome["subject"] for outcome in outcomes)
    by_subject = {subject: [o for o in outcomes if o["subject"] == subject] for subject in subjects}
    right, said = ([outcome[key] for outcome in outcomes] for key in ("answer", "prediction"))
    return {
        **(label_metrics(right, said, benchmark.labels) if benchmark.labels else {}),
        "n": len(outcomes),
        "accuracy": _share(outcomes, "correct"),
        "accuracy_per_character": _share(outcomes, "correct_per_character"),
        "chance": benchmark.chance,
        "majority": benchmark.majority,
        "ties": sum(_tied(outcome["log_likelihoods"]) for outcome in outcomes),
        "truncated_items": sum(outcome["truncated"] > 0 for outcome in outcomes),
        "by_subject": {s: {"n": len(part), "accuracy": _share(part, "correct")} for s, part in by_subject.items()},
        "calibration": calibration(outcomes),
    }


def label_metrics(right: Sequence[int], said: Sequence[int], labels: Sequence[str]) -> dict:
    """Summarise predicted classes, with the same numbers for always naming the commonest class, and for guessing.

    A class that is never named has F1 0. The lines of chance are those of the table that uniform guessing has on average.

    Args:
        right, said: class numbers from 0, one for each item.
        labels: the classes' names.

    Returns:
        macro_f1, weighted_f1 (shares); per_class_f1, {label: share}; mcc (Matthews correlation, -1 to 1; 0 where only one
        class is named); majority_macro_f1, majority_weighted_f1, chance_macro_f1, chance_weighted_f1; confusion, a list
        of rows: [i][j] counts items of class i that were named j.

    Source:
        scikit-learn, ``f1_score``, ``matthews_corrcoef``, ``confusion_matrix``.

    Example:
        >>> found = label_metrics([0, 0, 0, 1], [0, 0, 0, 0], ["noise", "causal"])
        >>> round(found["macro_f1"], 3), round(found["weighted_f1"], 3), found["mcc"]
        (0.429, 0.643, 0.0)
    """
    classes = list(range(len(labels)))
    right, said = numpy.asarray(right), numpy.asarray(said)
    commonest = numpy.full_like(right, numpy.bincount(right).argmax())
    # Every item once with every class, each for 1/K: the average table of guessing, without a draw.
    guessed = (numpy.repeat(right, len(classes)), numpy.tile(classes, len(right)))
    found = {}
    for line, (truth, named) in {"": (right, said), "majority_": (right, commonest), "chance_": guessed}.items():
        for average in ("macro", "weighted"):
            value = f1_score(truth, named, labels=classes, average=average, zero_division=0.0)
            found[f"{line}{average}_f1"] = float(value)
    each = f1_score(right, said, labels=classes, average=None, zero_division=0.0)
    return {
        **found,
        "per_class_f1": dict(zip(labels, map(float, each), strict=True)),
        "mcc": float(matthews_corrcoef(right, said)),
        "confusion": confusion_matrix(right, said, labels=classes).tolist(),
    }


def calibration(outcomes: Sequence[dict], bins: int = BINS) -> dict:
    """Compare how sure a model is with how often it is right.

    Its probability of a choice is the softmax over the choices' summed log-likelihoods; its confidence that of the choice
    it takes. Items are put in bins of equal width by confidence.

    Args:
        outcomes: with log_likelihoods (nats), prediction and correct.
        bins: number of bins from 0 to 1.

    Returns:
        ece, the expected calibration error: the mean over items of |confidence - accuracy| of their bin; bins, a list of
        {"from", "n", "confidence", "accuracy"} for those that hold items.

    Source:
        Guo et al., *On Calibration of Modern Neural Networks*, arXiv 1706.04599, section 2.

    Example:
        >>> calibration([{"log_likelihoods": [0.0, 0.0], "prediction": 0, "correct": True}])["ece"]
        0.5
    """
    confidence = numpy.array([softmax(o["log_likelihoods"])[o["prediction"]] for o in outcomes])
    correct = numpy.array([o["correct"] for o in outcomes], dtype=float)
    places = numpy.minimum((confidence * bins).astype(int), bins - 1)
    found, error = [], 0.0
    for place in sorted(set(places.tolist())):
        inside = places == place
        sure, share = float(confidence[inside].mean()), float(correct[inside].mean())
        found.append({"from": place / bins, "n": int(inside.sum()), "confidence": sure, "accuracy": share})
        error += inside.sum() / len(outcomes) * abs(sure - share)
    return {"ece": float(error), "bins": found}


def _share(outcomes: Sequence[dict], key: str) -> float:
    return sum(outcome[key] for outcome in outcomes) / len(outcomes)


def _tied(values: Sequence[float]) -> bool:
    best, second = sorted(values, reverse=True)[:2]
    return best == second
