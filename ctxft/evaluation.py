"""A model and a benchmark go in; one outcome for each question comes out, and from the outcomes the metrics.

Outcomes carry the log-likelihoods themselves and a hash of the item, so that any later test can be made from the files
alone, and paired by item.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctxft.benchmarks import Benchmark, Question, render
from ctxft.runtime import InputError, read_jsonl, write_jsonl
from ctxft.scoring import ChoiceScores, Progress, score_choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEYS = (
    "id",
    "hash",
    "subject",
    "answer",
    "prediction",
    "correct",
    "log_likelihoods",
    "prediction_per_character",
    "correct_per_character",
    "truncated",
)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    form: str = "options",
    token_budget: int = 4096,
    progress: Progress | None = None,
) -> list[dict]:
    """Let a model answer every question, zero-shot, by the log-likelihood of the choices.

    Two rules are recorded side by side: the highest sum of log-probabilities, and the highest sum per character of
    the choice (without the space before it), which does not favour short choices. A tie goes to the first choice.

    Args:
        model: a causal language model, plain or with a LoRA adapter.
        tokenizer: its tokenizer.
        benchmark: the questions.
        form: "options" scores the texts of the choices, "lettered" shows them and scores their letters.
        token_budget: padded tokens in one batch; the result does not depend on it.
        progress: called with (rows done, all rows).

    Returns:
        For each question, in order: id, hash, subject, answer, prediction, correct, log_likelihoods (nats),
        prediction_per_character, correct_per_character, truncated (tokens cut from the left of the context).

    Raises:
        InputError: a choice cannot be scored, or the model's log-likelihoods are not numbers; the question is named.

    Source:
        lm-evaluation-harness 0.4, metrics ``acc`` and ``acc_norm``.

    Example:
        >>> evaluate(model, tokenizer, load_benchmark("practice-mmlu"))[0]["correct"]  # doctest: +SKIP
        True
    """
    requests = [render(question, form, benchmark.name) for question in benchmark.questions]
    names = [f"{benchmark.name}, question '{question.id}'" for question in benchmark.questions]
    scores = score_choices(model, tokenizer, requests, token_budget=token_budget, progress=progress, names=names)
    triples = zip(benchmark.questions, requests, scores, strict=True)
    return [_outcome(question, texts, score) for question, (_, texts), score in triples]


def _outcome(question: Question, continuations: Sequence[str], score: ChoiceScores) -> dict:
    found = score.log_likelihoods
    if any(math.isnan(value) for value in found):
        raise InputError(f"question '{question.id}': a log-likelihood is NaN, so the weights are broken: train anew.")
    prediction = _first_best(found)
    per_character = _first_best([value / len(text[1:]) for value, text in zip(found, continuations, strict=True)])
    return {
        "id": question.id,
        "hash": question.hash,
        "subject": question.subject,
        "answer": question.answer,
        "prediction": prediction,
        "correct": prediction == question.answer,
        "log_likelihoods": found,
        "prediction_per_character": per_character,
        "correct_per_character": per_character == question.answer,
        "truncated": score.truncated,
    }


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


def metrics(outcomes: Sequence[dict], benchmark: Benchmark) -> dict:
    """Summarise the outcomes of one model on one benchmark.

    Args:
        outcomes: from ``evaluate`` or ``read_outcomes``.
        benchmark: the questions they answer.

    Returns:
        n; accuracy and accuracy_per_character (shares from 0 to 1); chance and majority, the lines to beat; ties (items
        whose two best log-likelihoods are exactly equal); truncated_items; by_subject, {"n", "accuracy"} for each; where
        all questions share their choices, also macro_f1 (the mean of the classes' F1, a share) and majority_macro_f1.

    Raises:
        InputError: the outcomes are not those of exactly these questions.
    """
    expected = [(question.id, question.hash) for question in benchmark.questions]
    if [(outcome["id"], outcome["hash"]) for outcome in outcomes] != expected:
        raise InputError(
            f"the {len(outcomes)} outcomes are not those of the {len(expected)} questions of '{benchmark.name}':"
            " evaluate again."
        )
    subjects = dict.fromkeys(outcome["subject"] for outcome in outcomes)
    by_subject = {subject: [o for o in outcomes if o["subject"] == subject] for subject in subjects}
    return {
        **_f1(outcomes, benchmark),
        "n": len(outcomes),
        "accuracy": _share(outcomes, "correct"),
        "accuracy_per_character": _share(outcomes, "correct_per_character"),
        "chance": benchmark.chance,
        "majority": benchmark.majority,
        "ties": sum(_tied(outcome["log_likelihoods"]) for outcome in outcomes),
        "truncated_items": sum(outcome["truncated"] > 0 for outcome in outcomes),
        "by_subject": {s: {"n": len(part), "accuracy": _share(part, "correct")} for s, part in by_subject.items()},
    }


def _f1(outcomes: Sequence[dict], benchmark: Benchmark) -> dict[str, float]:
    """Return the macro F1 of the predictions, and of always naming the commonest class; a class never named has F1 0."""
    if benchmark.labels is None:
        return {}
    from sklearn.metrics import f1_score  # a second to import, and few benchmarks need it

    right, classes = [outcome["answer"] for outcome in outcomes], list(range(len(benchmark.labels)))
    options = {"labels": classes, "average": "macro", "zero_division": 0.0}
    commonest = [max(classes, key=right.count)] * len(right)
    found = f1_score(right, [outcome["prediction"] for outcome in outcomes], **options)
    return {"macro_f1": float(found), "majority_macro_f1": float(f1_score(right, commonest, **options))}


def _share(outcomes: Sequence[dict], key: str) -> float:
    return sum(outcome[key] for outcome in outcomes) / len(outcomes)


def _tied(values: Sequence[float]) -> bool:
    best, second = sorted(values, reverse=True)[:2]
    return best == second


def write_outcomes(path: Path, outcomes: Iterable[dict]) -> Path:
    """Write one outcome a line, whole or not at all; returns the path."""
    return write_jsonl(path, outcomes)


def read_outcomes(path: Path) -> list[dict]:
    """Read outcomes that ``write_outcomes`` wrote.

    Raises:
        InputError: the file is missing or broken, or a line lacks a key; file and line are named.
    """
    outcomes = []
    for number, row in read_jsonl(path):
        if missing := [key for key in KEYS if key not in row]:
            raise InputError(f"{path}, line {number}: an outcome lacks {', '.join(missing)}: evaluate again.")
        outcomes.append(row)
    return outcomes
