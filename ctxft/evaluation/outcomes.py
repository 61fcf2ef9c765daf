"""Outcomes per question go to disk and come back; a killed evaluation finds those it already has.

A line of an outcome file is one question: what the model answered by each rule, and hashes of the question and of the
text the model read. While an evaluation runs, a journal beside the file grows line by line; at the end the file appears
whole and the journal goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ctxft.storage import CHECKSUM, InputError, checksum_holds, read_jsonl, with_checksum, write_jsonl

RULES = ("loglikelihood", "generate_until")
KEYS = (
    "id",
    "hash",
    "prompt_hash",
    "subject",
    "choices",
    "answer",
    "prediction",
    "correct",
    "log_likelihoods",
    "tokens",
    "prediction_per_character",
    "correct_per_character",
    "prediction_per_token",
    "correct_per_token",
    "written",
    "truncated",
)


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


class Journal:
    """The outcomes of an evaluation that is under way, in a file that a killed process leaves readable.

    The first line holds a key; a file with another key (another model, benchmark, form, ...) is begun anew. A last line
    that was cut off by a kill does not count, nor does one whose checksum does not hold: those questions are asked again.

    Args:
        path: the file; its folder is made.
        key: whatever decides the outcomes, as one text.

    Attributes:
        outcomes: id -> outcome, those found on disk and those added since.

    Example:
        >>> journal = Journal(folder / "medqa.partial", key)  # doctest: +SKIP
        >>> evaluate(model, tokenizer, benchmark, journal=journal)  # doctest: +SKIP
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = Path(path)
        self.outcomes = {row["id"]: row for row in _whole_lines(self.path, key)}
        # Written anew, so that nothing is appended to half a line.
        write_jsonl(self.path, [{"key": key}, *map(with_checksum, self.outcomes.values())])

    def add(self, outcome: dict) -> None:
        """Append one outcome; it outlives the process from here on."""
        self.outcomes[outcome["id"]] = outcome
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(with_checksum(outcome), ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Remove the file, once the outcomes stand in a whole one."""
        self.path.unlink()


def _whole_lines(path: Path, key: str) -> list[dict]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line end is empty, or half a line
        try:
            row = json.loads(line)
        except ValueError:  # after a power cut a block of the file may be missing; what stands before it is good
            break
        if not checksum_holds(row):  # a bit that flipped on the disk: what stands before and behind it is good
            continue
        rows.append({name: value for name, value in row.items() if name != CHECKSUM})
    return rows[1:] if rows and rows[0] == {"key": key} else []
