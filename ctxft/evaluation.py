"""A model and a benchmark go in; one outcome for each question comes out.

Outcomes carry the log-likelihoods themselves and a hash of the item, so that any later test can be made from the files
alone, and paired by item.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctxft.benchmarks import Benchmark, Question, requests_of
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
    shots: int = 0,
    chat_template: bool = False,
) -> list[dict]:
    """Let a model answer every question by the log-likelihood of the choices.

    Two rules are recorded side by side: the highest sum of log-probabilities, and the highest sum per character of
    the choice (without the space before it), which does not favour short choices. A tie goes to the first choice.

    Args:
        model: a causal language model, plain or with a LoRA adapter.
        tokenizer: its tokenizer.
        benchmark: the questions.
        form: "options" scores the texts of the choices, "lettered" shows them and scores their letters.
        token_budget: padded tokens in one batch; the result does not depend on it.
        progress: called with (rows done, all rows).
        shots, chat_template: solved questions shown before each, and whether all stands in the tokenizer's chat template.

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
    requests = requests_of(benchmark, form, shots, tokenizer if chat_template else None)
    names = [f"{benchmark.name}, question '{question.id}'" for question in benchmark.questions]
    scores = score_choices(model, tokenizer, requests, token_budget=token_budget, progress=progress, names=names)
    triples = zip(benchmark.questions, requests, scores, strict=True)
    return [_outcome(question, texts, score) for question, (_, texts), score in triples]


def _outcome(question: Question, continuations: Sequence[str], score: ChoiceScores) -> dict:
    found = score.log_likelihoods
    if any(math.isnan(value) for value in found):
        raise InputError(f"question '{question.id}': a log-likelihood is NaN, so the weights are broken: train anew.")
    prediction = _first_best(found)
    per_character = _first_best(
        [value / len(text.removeprefix(" ")) for value, text in zip(found, continuations, strict=True)]
    )
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
