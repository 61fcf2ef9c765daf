"""Read tables record by record, from files and from the hub, each record with where it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ctxft.models import hub_errors
from ctxft.storage import InputError, read_json, read_jsonl, read_text, shown

Row = tuple[int | str, str, dict]  # (line, row or key; where it is, for messages; the record)


def read_table(
    path: Path, format: str | None = None, columns: Sequence[str] | None = None, encoding: str = "utf-8"
) -> Iterator[Row]:
    """Yield the records of a file.

    Args:
        path: the file.
        format: jsonl, json (an object of records by key, or a list), csv, parquet, or text (records of one ``line``); None
            takes it from the ending.
        columns: of a csv file whose first line does not name them.
        encoding: of text.

    Yields:
        (number of the line or row, or the key; where it is, for messages; the record).

    Raises:
        InputError: the file cannot be read, or holds something else; file and line are named.

    Example:
        >>> next(read_table(Path("notes.txt"), "text"))  # doctest: +SKIP
        (1, 'notes.txt, line 1', {'line': 'Bring an umbrella.'})
    """
    format = format or path.suffix.lower().removeprefix(".")
    if format == "jsonl":
        return ((number, f"{path}, line {number}", row) for number, row in read_jsonl(path))
    if format == "text":
        text = path.read_bytes().decode("latin-1") if encoding == "latin-1" else read_text(path)
        lines = enumerate(text.split("\n"), start=1)
        return ((number, f"{path}, line {number}", {"line": line}) for number, line in lines if line.strip())
    if format == "parquet":
        return _parquet_rows(path)
    return _csv_rows(path, columns) if format == "csv" else _json_rows(path)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield number, f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a parquet file that can be read ({error}): fetch it again.") from None


def _csv_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), columns)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():  # where DictReader puts what is too much, and what is missing
                raise InputError(
                    f"{where}: the fields {', '.join(reader.fieldnames or ())} are needed: check the quotes."
                )
            yield reader.line_num, where, row
    except csv.Error as error:  # a field without end, for example
        raise InputError(f"{path}, line {reader.line_num}: not a CSV file ({error}): check the quotes.") from None


def _json_rows(path: Path) -> Iterator[Row]:
    table = read_json(path)
    if not isinstance(table, (dict, list)):
        raise InputError(f"{path}: records in an object or a list are needed, found {type(table).__name__}.")
    for key, row in table.items() if isinstance(table, dict) else enumerate(table):
        if not isinstance(row, dict):
            raise InputError(f"{path}, id {key}: a record is needed, found {shown(row)}.")
        yield key, f"{path}, id {key}", row


def check_id(value: object, where: str, seen: set[str]) -> str:
    """Return a record's id as text, and remember it.

    Raises:
        InputError: it is no text and no whole number, or was seen before.

    Example:
        >>> check_id(7, "notes.jsonl, line 2", {"6"})
        '7'
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise InputError(f"{where}: the id must be a text or a whole number, found {shown(value)}: correct it.")
    if str(value) in seen:
        raise InputError(f"{where}: the id '{value}' is used twice: give every record its own.")
    seen.add(str(value))
    return str(value)


def hub_table(source: str, subset: str | None, split: str, revision: str | None, instead: str) -> Iterator[Row]:
    """Yield the records of a hub data set, with their numbers from 1 and where they are.

    Args:
        source, instead: as for ``hub_errors``.
        subset: its name; None takes the default one.
        split: such as "train".
        revision: the commit, from ``resolve_revision``.

    Raises:
        InputError: the hub cannot be reached or refuses, or it has no such subset or split.

    Example:
        >>> next(hub_table("cais/mmlu", "anatomy", "test", None, "pass --data DIR"))[1]  # doctest: +SKIP
        'cais/mmlu (anatomy), row 1'
    """
    from datasets import load_dataset  # seconds to import, and only the hub needs it

    with hub_errors(source, "dataset", instead):
        table = load_dataset(source, subset, split=split, revision=revision)
    place = f"{source} ({subset})" if subset else source
    return ((number, f"{place}, row {number}", dict(row)) for number, row in enumerate(table, start=1))
