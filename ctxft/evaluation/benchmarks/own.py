"""Bring a user's questions into the one shape that is checked.

Choices are a list, a mapping {A: .., B: ..} or {text: [..], label: [..]}, under ``choices`` or ``options``, or columns A, B,
...; an answer is the text of a choice, its letter, or its number from 0, the last two also under ``answer_idx``.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from typing import Any

from ctxft.data.tables import Row
from ctxft.evaluation.benchmarks.records import LETTERS
from ctxft.storage import InputError, shown

LABELED = ("answer_idx", "answerKey")  # columns that hold a letter or a number, never the text of a choice
COUNTED = "the answers are numbers and none is 0: they count from 0, not from 1"
Readings = dict[str, int]  # what an answer may be taken for (text, letter, number) -> the index of the choice


def own_rows(rows: Iterable[Row], file: str) -> tuple[list[tuple[str, dict]], str]:
    """Return records as ``questions_of`` wants them, and a note where their numbers may have been meant otherwise.

    An answer such as "B" or "2" may be the text of one choice and the letter or number of another: it is taken for what
    the answers of all records can be taken for, and refused if that leaves two choices.

    Args:
        rows: from ``read_table``.
        file: its name, from which a record without ``id`` gets one.

    Raises:
        InputError: a record has no choices, or an answer that is none of them, or not one alone.

    Example:
        >>> row = {"question": "Which?", "options": {"A": "this", "B": "that"}, "answer": "B"}
        >>> own_rows([(1, "quiz.csv, line 2", row)], "quiz.csv")[0][0][1]["answer"]
        1
    """
    records, every = [], []
    for number, where, row in rows:
        labels, choices = _choices_of(row, where)
        answer, readings = _answer_of(row, labels, choices, where)
        every.append(readings)
        identity = row["id"] if "id" in row else f"{file}:{number}"
        records.append((where, {**row, "id": identity, "choices": choices, "answer": answer}))
    common = set.intersection(*[set(readings) for readings in every if readings] or [set()])
    numbers = []
    for (where, record), readings in zip(records, every, strict=True):
        kept = {kind: index for kind, index in readings.items() if kind in common or not common}
        if len(set(kept.values())) > 1:
            meant = " or ".join(f"the {kind} of choice {LETTERS[index]}" for kind, index in kept.items())
            raise InputError(
                f"{where}: the answer {shown(record['answer'])} may be {meant}: give the letter as 'answer_idx' instead."
            )
        record["answer"] = next(iter(kept.values()), record["answer"])
        numbers += [index for kind, index in kept.items() if len(kept) == 1 and kind == "number"]
    return records, COUNTED if numbers and 0 not in numbers else ""


def _choices_of(row: dict, where: str) -> tuple[list[str], list]:
    """Return the labels and the texts of a record's choices; the last of a mapping may be empty."""
    value: Any = next((row[key] for key in ("choices", "options") if row.get(key) is not None), None)
    if value is None:
        value = {letter: row[letter] for letter in LETTERS if letter in row}
    if isinstance(value, str):  # in a table of text
        value = _parsed(value)
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        return [str(label) for label in value["label"]], value["text"]
    if isinstance(value, dict) and value:
        pairs = sorted(((str(label), text) for label, text in value.items()), key=lambda pair: (len(pair[0]), pair[0]))
        while pairs and pairs[-1][1] in (None, ""):  # where another record has one choice more
            pairs.pop()
        return [label for label, _ in pairs], [text for _, text in pairs]
    if not isinstance(value, list):
        raise InputError(
            f"{where}: 'choices' must be a list of texts (or 'options' a mapping {{A: .., B: ..}}, or there must be columns A, "
            f"B, ..), found {shown(value or list(row))}."
        )
    return list(LETTERS[: len(value)]), value


def _parsed(text: str) -> object:
    """Return the list or mapping that a cell spells, as JSON or as pandas writes it; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _answer_of(row: dict, labels: list[str], choices: list, where: str) -> tuple[object, Readings]:
    """Return a record's answer and how it can be read; none where ``questions_of`` says what is wrong with it."""
    key = next((key for key in LABELED if row.get(key) is not None), "answer")
    answer, readings = row.get(key), _readings(row.get(key), labels, choices)
    if key != "answer":
        readings.pop("text", None)
        other = _readings(row.get("answer"), labels, choices).values()
        if other and not set(other) & set(readings.values()):
            raise InputError(
                f"{where}: '{key}' {shown(answer)} and 'answer' {shown(row['answer'])} are different choices: correct one."
            )
    if isinstance(answer, str) and not readings:
        raise InputError(
            f"{where}: the answer {shown(answer)} must be the text of exactly one choice, its letter, or its number from 0."
        )
    return answer, readings


def _readings(answer: object, labels: list[str], choices: list) -> Readings:
    if isinstance(answer, bool) or not isinstance(answer, (str, int)):
        return {}
    text, readings = str(answer).strip(), {}
    if isinstance(answer, str) and choices.count(answer) == 1:
        readings["text"] = choices.index(answer)
    named = [number for number, label in enumerate(labels) if label.upper() == text.upper()]
    if len(named) == 1:
        readings["letter"] = named[0]
    elif text.isdecimal() and len(text) <= 2 and int(text) < len(choices):
        readings["number"] = int(text)
    return readings
