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

from ctxft.evaluation.benchmarks.records import Benchmark
from ctxft.storage import InputError

BINS = 10  # of the reliability diagram
NO_CLASS = -1  # stands for no answer where scikit-learn wants numbers


def metrics(outcomes: Sequence[dict], benchmark: Benchmark) -> dict:
    """Summarise the outcomes of one model on one benchmark.

    Args:
        outcomes: one for each question, in order, as ``ctxft.evaluation.evaluate`` makes them.
        benchmark: the questions they answer.

    Returns:
        n; accuracy (a share from 0 to 1); chance and majority, the lines to beat; ties (items whose two best
        log-likelihoods are exactly equal); unanswered (items with no answer, counted as wrong); truncated_items;
        by_subject, {"n", "accuracy"} for each. Of log-likelihoods, which written answers lack, also
        accuracy_per_character, accuracy_per_token and calibration (see there). Where all questions share their choices,
        also what ``label_metrics`` returns.

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
        **_of_log_likelihoods(outcomes),
        "chance": benchmark.chance,
        "majority": benchmark.majority,
        "ties": sum(_tied(outcome["log_likelihoods"]) for outcome in outcomes),
        "unanswered": sum(outcome["prediction"] is None for outcome in outcomes),
        "truncated_items": sum(outcome["truncated"] > 0 for outcome in outcomes),
        "by_subject": {s: {"n": len(part), "accuracy": _share(part, "correct")} for s, part in by_subject.items()},
    }


def _of_log_likelihoods(outcomes: Sequence[dict]) -> dict:
    if not all(outcome["log_likelihoods"] for outcome in outcomes):
        return {}
    shares = {f"accuracy_{rule}": _share(outcomes, f"correct_{rule}") for rule in ("per_character", "per_token")}
    return shares | {"calibration": calibration(outcomes)}


def label_metrics(right: Sequence[int], said: Sequence[int | None], labels: Sequence[str]) -> dict:
    """Summarise predicted classes, with the same numbers for always naming the commonest class, and for guessing.

    A class that is never named has F1 0. The lines of chance are those of the table that uniform guessing has on average.

    Args:
        right: class numbers from 0, one for each item.
        said: likewise; None is no answer, which is missing from its class and counts against no other.
        labels: the classes' names.

    Returns:
        macro_f1, weighted_f1 (shares); per_class_f1, {label: share}; mcc (Matthews correlation, -1 to 1; 0 where only one
        class is named; no answer counts as one more class); majority_macro_f1, majority_weighted_f1, chance_macro_f1,
        chance_weighted_f1; confusion, a list of rows: [i][j] counts items of class i that were named j (items without an
        answer stand in no column).

    Source:
        scikit-learn, ``f1_score``, ``matthews_corrcoef``, ``confusion_matrix``.

    Example:
        >>> found = label_metrics([0, 0, 0, 1], [0, 0, 0, 0], ["noise", "causal"])
        >>> round(found["macro_f1"], 3), round(found["weighted_f1"], 3), found["mcc"]
        (0.429, 0.643, 0.0)
    """
    classes = list(range(len(labels)))
    right, said = numpy.asarray(right), numpy.asarray([NO_CLASS if number is None else number for number in said])
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

    Raises:
        InputError: an outcome has no log-likelihoods: a written answer does not say how sure the model is.

    Source:
        Guo et al., *On Calibration of Modern Neural Networks*, arXiv 1706.04599, section 2.

    Example:
        >>> calibration([{"log_likelihoods": [0.0, 0.0], "prediction": 0, "correct": True}])["ece"]
        0.5
    """
    if any(not o["log_likelihoods"] for o in outcomes):
        raise InputError(
            "calibration needs log-likelihoods, which written answers lack: evaluate with rule likelihood."
        )
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
    best = sorted(values, reverse=True)[:2]
    return len(best) == 2 and best[0] == best[1]
