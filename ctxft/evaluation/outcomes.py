"""Define the outcome of a question, from which any later test can be made, and keep outcomes in files.

A line of an outcome file is one question: what the model answered by each rule, the log-likelihoods themselves, and hashes
of the question and of the text that the model read, so that two models are compared on the same items.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from ctxft.data.chat import unguarded
from ctxft.evaluation.benchmarks.records import Question
from ctxft.evaluation.scoring import ChoiceScores, Generated
from ctxft.storage import InputError, read_jsonl, sha256, write_jsonl

OPENING, CLOSING = " \t\"'`*([{", " \t\"'`*)]}.,:;!?"  # marks that may be around a label


class Outcome(TypedDict):
    """What a model answered to one question.

    Attributes:
        id, hash, subject, choices, answer: of the question; choices is their number, answer the index of the right one.
        prompt_hash: SHA-256 of the text before the answer.
        prediction, correct: by the highest log-likelihood (the first of equal ones), or as generated; prediction is None
            if a generated text gives no answer.
        log_likelihoods, tokens: of each choice, in nats, and its tokens; both empty if the answer was generated.
        prediction_per_character, correct_per_character: by the highest log-likelihood per character of the choice, which
            does not favor short ones; None if generated.
        prediction_per_token, correct_per_token: likewise per token.
        written: the generated text, or None.
        truncated: tokens cut from the left of the prompt.
    """

    id: str
    hash: str
    prompt_hash: str
    subject: str
    choices: int
    answer: int
    prediction: int | None
    correct: bool
    log_likelihoods: list[float]
    tokens: list[int]
    prediction_per_character: int | None
    correct_per_character: bool | None
    prediction_per_token: int | None
    correct_per_token: bool | None
    written: str | None
    truncated: int


KEYS = tuple(Outcome.__annotations__)


def parse_answer(text: str, labels: Sequence[str], choices: Sequence[str] | None = None) -> int | None:
    """Return which label a text gives as its answer, or None where it gives none, or more than one.

    Only the first line that is not empty counts. It must begin with a label as a whole word (marks such as quotes,
    brackets and asterisks may be before it), and the line must end there or continue with a mark: "B", "(B)", "B. heart",
    but not "B is wrong". "not causal" is no answer "causal". Another label anywhere in the line makes it no answer,
    unless what follows is the text of the choice itself. The case counts in letters, not in longer labels.

    Args:
        text: what the model wrote.
        labels: the answers, such as ("A", "B") or ("noise", "causal").
        choices: the texts behind the labels, where labels are letters.

    Returns:
        The index of the label, or None.

    Example:
        >>> parse_answer(" B. Vitamin A", ("A", "B"), ("Vitamin C", "Vitamin A")), parse_answer("A or B", ("A", "B"))
        (1, None)
    """
    line = next((line for line in text.splitlines() if line.strip()), "").lstrip(OPENING)
    # The longest first: of the labels "causal" and "causal chain" the second begins with the first.
    for index in sorted(range(len(labels)), key=lambda n: -len(labels[n])):
        match = _pattern(labels[index]).match(line)
        if not match:
            continue
        rest = line[match.end() :].lstrip(" \t")
        if rest and rest[0] not in CLOSING:
            return None
        text_after = rest.strip(OPENING + CLOSING).casefold()
        if choices and text_after == choices[index].strip(OPENING + CLOSING).casefold():
            return index
        others = [label for n, label in enumerate(labels) if n != index]
        return None if any(_pattern(label).search(rest) for label in others) else index
    return None


def _pattern(label: str) -> re.Pattern[str]:
    """Return a pattern of the label as a whole word; "non-causal" holds no word "causal"."""
    flags = 0 if len(label) == 1 else re.IGNORECASE
    return re.compile(rf"(?<![\w-]){re.escape(label)}(?![\w-])", flags)


def outcome_of(
    question: Question, context: str, continuations: Sequence[str], result: ChoiceScores | Generated
) -> Outcome:
    """Return the outcome of a question whose choices were scored, or whose answer was generated.

    Args:
        question: the question.
        context, continuations: its request, from ``requests_of``.
        result: the scores of the continuations, or what the model generated.

    Raises:
        InputError: a log-likelihood is not a number.
    """
    texts = [unguarded(text).removeprefix(" ") for text in continuations]
    outcome: dict[str, Any] = dict.fromkeys(KEYS) | {"id": question.id, "hash": question.hash}
    outcome |= {"prompt_hash": sha256(context), "subject": question.subject, "choices": len(question.choices)}
    outcome |= {"answer": question.answer, "truncated": result.truncated}
    if isinstance(result, Generated):
        prediction = parse_answer(result.text, texts, question.choices)
        outcome |= {"log_likelihoods": [], "tokens": [], "written": result.text}
    else:
        values = result.log_likelihoods
        if any(math.isnan(value) for value in values):
            raise InputError(
                f"question '{question.id}': a log-likelihood is NaN, so the weights are broken: train again."
            )
        prediction = _best(values)
        outcome |= {"log_likelihoods": values, "tokens": result.tokens}
        for rule, sizes in {"per_character": map(len, texts), "per_token": result.tokens}.items():
            choice = _best([value / size for value, size in zip(values, sizes, strict=True)])
            outcome |= {f"prediction_{rule}": choice, f"correct_{rule}": choice == question.answer}
    return cast(Outcome, outcome | {"prediction": prediction, "correct": prediction == question.answer})


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> Path:
    """Write one outcome a line, all or nothing; returns the path."""
    return write_jsonl(path, map(dict, outcomes))


def read_outcomes(path: Path) -> list[Outcome]:
    """Read outcomes that ``write_outcomes`` wrote.

    Raises:
        InputError: the file is missing or broken, or a line lacks a key; file and line are named.
    """
    outcomes = []
    for number, row in read_jsonl(path):
        if missing := [key for key in KEYS if key not in row]:
            raise InputError(f"{path}, line {number}: an outcome lacks {', '.join(missing)}: evaluate again.")
        outcomes.append(cast(Outcome, row))
    return outcomes
