"""Texts that a writer wrote go to disk one by one, and come back: none is asked for, or paid for, twice.

<run root>/written/<hash of what decides an output>.jsonl, a line for each passage and family. The text stands there as it
came: what is wrong with it is told anew by each run, whose tokenizer and benchmarks may be others. A line is on the disk
when ``add`` returns; half a line, left by a killed process, is cut off. While a store is open a lock keeps others out.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from ctxft.config import WriterConfig
from ctxft.extras.writer.config import identity_of
from ctxft.storage import InputError, checksum_holds, parse_json, runs_root, sha256, with_checksum

FOLDER = "written"
KEYS = ("key", "text", "cut", "tokens_in", "tokens_out")


def store_path(config: WriterConfig) -> Path:
    """Return the file of a writer's texts, below the run root; raises InputError if a local model is not found."""
    return runs_root() / FOLDER / f"{sha256(identity_of(config))[:16]}.jsonl"


def key_of(passage_text: str, family: str, idea: str) -> str:
    """Return the key of a text: it changes with the passage, the family and the idea behind that."""
    return sha256([passage_text, family, idea])


class Store:
    """What a writer wrote: key -> {"key", "text", "cut", "tokens_in", "tokens_out"}; made by ``read`` or ``open``."""

    def __init__(self, path: Path, rows: dict[str, dict]) -> None:
        self.path, self.rows = path, rows

    @classmethod
    def read(cls, path: Path) -> Store:
        """Read a store that need not exist; half a line at its end does not count.

        Raises:
            InputError: a line is broken, lacks a key or was changed; file and line are named.
        """
        rows = {}
        for number, line in enumerate(_whole_part(path).split(b"\n")[:-1], start=1):
            # Every line was written in ASCII; another byte is no JSON either, so that it is told and not read over.
            row = parse_json(line.decode("ascii", "backslashreplace"), f"{path}, line {number}", halves=True)
            if not isinstance(row, dict) or [key for key in KEYS if key not in row]:
                raise InputError(f"{path}, line {number}: no text of a writer stands here: remove the line.")
            if not checksum_holds(row):
                raise InputError(f"{path}, line {number}: the text was changed after it was written: remove the line.")
            rows[row["key"]] = {key: row[key] for key in KEYS}
        return cls(path, rows)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Store]:
        """Give a store to write to, once no other process has it open; half a line at its end is cut off."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.exists():
                os.truncate(path, len(_whole_part(path)))
            yield cls.read(path)

    def add(self, row: dict) -> None:
        """Append one text; it outlives the process, and the machine, from here on."""
        line = json.dumps(with_checksum({key: row[key] for key in KEYS})) + "\n"
        with open(self.path, "ab", buffering=max(1 << 16, 2 * len(line))) as file:  # one write, however long the line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows[row["key"]] = row


def _whole_part(path: Path) -> bytes:
    """Return a file's bytes up to its last line end."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]
