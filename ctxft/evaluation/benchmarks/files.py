"""A folder or a hub repository goes in; raw benchmark records come out, each with the place where it stands.

The published sets lie about in several layouts: as the hub's parquet or JSON Lines, or as their authors' own files.
Columns are checked here; the loaders of ``medical`` and ``financial`` know what they mean.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ctxft.evaluation.benchmarks.records import Rows
from ctxft.hub import hub_errors, resolve_revision
from ctxft.storage import InputError, read_jsonl, read_text, shown

MMLU_CSV = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
Layout = tuple[Callable[[Path], bool], Callable[[Path], Rows]]  # (does this path fit, below the folder; its records)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a set of questions comes from.

    Attributes:
        what: the set in words, for errors.
        put: what to put where instead of the hub, a clause for errors.
        repo: hub id; None for a set that the hub does not hold as a table.
        config, split: of the hub's table.
        columns: that the table must have.
    """

    what: str
    put: str
    repo: str | None = None
    config: str | None = None
    split: str = "test"
    columns: tuple[str, ...] = ()


def pin(origin: Origin, data: Path | None, revision: str | None) -> str | None:
    """Return the hub commit that will be read, or None where files are read."""
    if data is not None:
        return None
    if origin.repo is None:
        raise InputError(f"{origin.what} are not on the hub as a table: {origin.put}.")
    return resolve_revision(origin.repo, "dataset", revision, origin.put)


def open_rows(origin: Origin, data: Path | None, revision: str | None, *own: Layout) -> tuple[Rows, str]:
    """Return the records of a set and their source: from a folder, or from the hub where ``data`` is None.

    Args:
        origin: the set.
        data: a folder; the one file that fits a layout is taken.
        revision: from ``pin``.
        own: layouts besides the hub's own, which is always known.

    Raises:
        InputError: no file or several, columns missing, the hub out of reach.
    """
    if data is None:
        return hub_rows(origin, revision), origin.repo
    layouts = [*own, (lambda path: is_hub_file(origin, path), lambda path: table_rows(path, origin.columns))]
    fitting = {path: read for path in walk(data) for fits, read in layouts if fits(path.relative_to(data))}
    path = one(list(fitting), data, origin)
    return fitting[path](path), str(path)


def hub_rows(origin: Origin, revision: str | None) -> Rows:
    """Yield the records of a hub table."""
    from datasets import load_dataset  # seconds to import, and only the hub needs it

    with hub_errors(origin.repo, "dataset", origin.put):
        table = load_dataset(origin.repo, origin.config, split=origin.split, revision=revision)
    where = f"{origin.repo} ({origin.config})" if origin.config else origin.repo
    check_columns(table.column_names, origin.columns, where)
    return ((f"{where}, row {n}", row) for n, row in enumerate(table, start=1))


def is_hub_file(origin: Origin, path: Path) -> bool:
    """Return whether a path has the name that a file of the hub's table has: set, config and split stand in it."""
    if origin.repo is None or path.suffix not in (".parquet", ".jsonl"):
        return False
    words = (origin.repo.split("/")[1], origin.config or "")
    return all(word.lower() in path.as_posix().lower() for word in words) and origin.split in path.name


def walk(data: Path) -> list[Path]:
    """Return the files below a folder, in order."""
    if not os.path.isdir(data):
        raise InputError(f"{data} is not a folder: --data needs the folder that holds the benchmark files.")
    return sorted(path for path in Path(data).rglob("*") if path.is_file())


def one(found: list[Path], data: Path, origin: Origin) -> Path:
    """Return the only file found; none and several are errors."""
    if not found:
        raise InputError(f"{origin.what} were not found under {data}: {origin.put}.")
    if len(found) > 1:
        several = ", ".join(map(str, found))
        raise InputError(f"{origin.what} were found more than once under {data}: keep one of {several}.")
    return found[0]


def check_columns(found: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Raise an InputError with the columns found and wanted if one is missing, or if a record is none."""
    if not isinstance(found, (dict, list, tuple)):
        raise InputError(f"{where}: a record with {', '.join(wanted)} is needed, found {shown(found)}.")
    if missing := [column for column in wanted if column not in found]:
        raise InputError(
            f"{where} lacks {', '.join(missing)}: columns found {', '.join(map(str, found))}, wanted {', '.join(wanted)}."
        )


def table_rows(path: Path, columns: tuple[str, ...]) -> Rows:
    """Yield the records of a parquet or JSON Lines file that must have these columns."""
    if path.suffix != ".parquet":
        for number, row in read_jsonl(path):
            check_columns(row, columns, f"{path}, line {number}")
            yield f"{path}, line {number}", row
        return
    try:
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a parquet file that can be read ({error}): fetch it again.") from None
    check_columns(table.column_names, columns, str(path))
    yield from ((f"{path}, row {n}", row) for n, row in enumerate(rows, start=1))


def mmlu_csv_rows(path: Path) -> Rows:
    """Yield MMLU records of a CSV file: with a header and answers 0-3, or in the original layout, headless and A-D."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        lines = [(reader.line_num, line) for line in reader if line]
    except csv.Error as error:  # a field without end, for example
        raise InputError(f"{path}, line {reader.line_num}: not a CSV file ({error}): check the quotes.") from None
    header = lines[0][1] if lines else []
    original = len(header) == len(MMLU_CSV) and header[-1] in tuple("ABCD")
    if not original:
        check_columns(header, MMLU_CSV, str(path))
    names = MMLU_CSV if original else header
    for number, line in lines if original else lines[1:]:
        where = f"{path}, line {number}"
        if len(line) != len(names):
            raise InputError(f"{where}: {len(names)} columns are needed, found {len(line)}: check the quotes.")
        row = dict(zip(names, line, strict=True))
        answers = "ABCD" if original else "0123"
        if len(row["answer"]) != 1 or row["answer"] not in answers:
            raise InputError(f"{where}: the answer {shown(row['answer'])} is none of {', '.join(answers)}.")
        choices = [row[f"choice{n}"] for n in range(4)]
        yield where, {"question": row["question"], "choices": choices, "answer": answers.index(row["answer"])}
