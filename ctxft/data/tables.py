"""Read tables record by record, from files, folders and the hub, each record with where it is.

The formats are read by readers that keep values as they are: the builders of ``datasets`` turn dates of JSON lines into
timestamps, "NA" of a CSV file into nothing and ids like "007" into 7, and name rows of a block instead of lines.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml

from ctxft.models import hub_errors, is_hub_id, resolve_revision
from ctxft.storage import (
    NO_VALUE,
    InputError,
    hash_file,
    is_there,
    open_text,
    parse_json,
    read_json,
    read_jsonl,
    sha256,
    shown,
)

Row = tuple[int | str, str, dict]  # (line, row or key; where it is, for messages; the record)
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl"} | {
    f".{name}": name for name in ("json", "csv", "tsv", "parquet", "arrow")
}
COMPRESSIBLE = ("jsonl", "json", "csv", "tsv")  # parquet and arrow files hold compressed columns
TABLES, TEXTS = tuple(FORMATS), (".txt", ".text", ".md")
BATCH = 256  # rows of a parquet or arrow file that are in memory at a time
PACKAGING = re.compile(
    r"(readme|licen[cs]e([-_.]\w+)?|copying|notice|changelog|citation|contributing|log)(\.(md|txt|rst|cff))?"
    r"|(dataset_infos?|dataset_dict|state)\.json",
    re.IGNORECASE,
)
OTHER_SPLITS = "files of other splits or subsets"


# --- files and folders ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """The files of a source in the order they are read, the folder that they are in, and how many were left out, and why."""

    paths: list[Path]
    root: Path
    counts: Counter


def hash_files(files: Files) -> str:
    """Return a hash of the names of files and of their bytes, wherever they are."""
    return sha256([[path.relative_to(files.root).as_posix(), hash_file(path)] for path in files.paths])


def suffix_of(path: Path) -> str:
    """Return a file's suffix in lower case, without that of its compression.

    Example:
        >>> suffix_of(Path("c4-train.00000.JSON.gz")), suffix_of(Path("letters.tar.gz"))
        ('.json', '.gz')
    """
    inner = Path(path.stem).suffix.lower()
    packed = path.suffix.lower() in (".gz", ".zst") and (FORMATS.get(inner) in COMPRESSIBLE or inner in TEXTS)
    return inner if packed else path.suffix.lower()


def files_of(place: Path, suffixes: Sequence[str] = TABLES, split: str = "train", subset: str | None = None) -> Files:
    """List the files of a source: of a folder all that can be read, of a data set those of one split.

    Folders that links lead to are read too. Files whose names begin with a dot, and those that come with a data set (README,
    LICENSE, log, __MACOSX ...), are left out.

    Args:
        place: a file, a folder of files, a folder of ``save_to_disk``, or a local copy of a hub data set.
        suffixes: of files that can be read, as from ``suffix_of``.
        split, subset: of a data set.

    Raises:
        InputError: the file has another suffix, a folder has more files that cannot be read than files that can, or a data
            set has no such split.

    Example:
        >>> files_of(Path("texts"), (".txt", ".md")).counts  # doctest: +SKIP
        Counter({'files read': 12, 'files not read (.pdf)': 3})
    """
    if not place.is_dir():
        if suffix_of(place) not in suffixes:
            raise InputError(f"{place}: a file to be read must be one of {', '.join(suffixes)}.")
        return Files([place], place.parent, Counter())
    if (place / "dataset_dict.json").is_file():
        splits = sorted(state.parent.name for state in place.glob("*/state.json"))
        if split not in splits:
            raise InputError(f"{place} has no split '{split}': choose one of {', '.join(splits)}.")
        return files_of(place / split, suffixes)
    fates = {path: _fate(path, place, suffixes) for path in walk(place)}
    paths = sorted(path for path, fate in fates.items() if fate == "files read")
    if is_data_set(place) and any(suffix_of(path) in (*FORMATS, ".txt") for path in paths):
        chosen = _of_split(place, split, subset, suffixes)
        fates |= {path: OTHER_SPLITS for path in set(paths) - set(chosen)}
        return Files(chosen, place, Counter(fates.values()))
    counts = Counter(fates.values())
    unread = {fate: number for fate, number in sorted(counts.items()) if fate.startswith("files not read")}
    if sum(unread.values()) > len(paths):
        raise InputError(
            f"{place}: more files cannot be read than can (files read: {len(paths)}; "
            f"{'; '.join(f'{fate}: {number}' for fate, number in unread.items())}): convert them to one of "
            f"{', '.join(suffixes)}, or put the files that are to be read into a folder without the others."
        )
    return Files(paths, place, counts)


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, through links too; each folder is entered once, so that a circle of links ends."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}): change its rights, or move it elsewhere."
        )

    entered = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        yield from (Path(parent, name) for name in names)


def _fate(path: Path, root: Path, suffixes: Sequence[str]) -> str:
    """Return whether a file is read, in the words of the ledger."""
    parts = path.relative_to(root).parts
    if any(part.startswith(".") or part == "__MACOSX" for part in parts) or PACKAGING.fullmatch(path.name):
        return "files skipped (hidden or packaging)"
    if not path.is_file():
        return "files not read (links that lead nowhere, or devices)"
    suffix = suffix_of(path)
    if suffix in suffixes:
        return "files read"
    return f"files not read ({suffix if re.fullmatch(r'[.][a-z][a-z0-9]{0,9}', suffix) else 'no known suffix'})"


def is_data_set(place: Path) -> bool:
    """Return whether a folder is a copy of a hub data set: by its card, which begins with YAML, or by what `hf` left."""
    card = place / "README.md"
    return (place / ".cache" / "huggingface").is_dir() or (
        card.is_file() and card.read_bytes()[:4] in (b"---\n", b"---\r")
    )


def _of_split(place: Path, split: str, subset: str | None, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of one split of a data set, as ``datasets`` finds them by card and names."""
    from datasets import load_dataset_builder  # seconds to import, and only data sets need it

    try:
        files = load_dataset_builder(str(place), subset).config.data_files or {}
    except (OSError, yaml.YAMLError, *NO_VALUE) as error:
        raise InputError(
            f"{place} cannot be read as the data set that it is ({' '.join(str(error).split())}): name one of its subsets, "
            "or give the folder of its files instead."
        ) from None
    splits = {str(name): [Path(file) for file in paths] for name, paths in files.items()}
    if split not in splits:
        raise InputError(f"{place} has no split '{split}': choose one of {', '.join(splits)}.")
    root = place.resolve()  # as `datasets` does
    for path in splits[split]:
        if suffix_of(path) not in suffixes or not Path(os.path.normpath(path)).is_relative_to(root):
            raise InputError(
                f"{path} of {place} cannot be read: a data set's files are in its folder, and one of {', '.join(suffixes)}."
            )
    return [place / os.path.relpath(path, root) for path in splits[split]]


def records_of(
    source: str,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    instead: str = "download it elsewhere and give the folder or file",
) -> Iterator[Row]:
    """Yield the records of a source one by one, whatever holds them.

    Args:
        source: a file, a folder of files, a folder of ``save_to_disk``, a local copy of a hub data set, or a hub id.
        split, subset: of a data set.
        revision: of a hub data set: branch, tag or commit.
        instead: what works without the hub, as for ``hub_errors``.

    Yields:
        (number of the line or row, or the key; where it is, for messages; the record).

    Raises:
        InputError: there is no such source, or it cannot be read; file and line are named.

    Example:
        >>> next(records_of("questions.csv"))  # doctest: +SKIP
        (2, 'questions.csv, line 2', {'question': 'Which?', 'answer': 'that'})
    """
    place = Path(source)
    if is_there(place):
        paths = files_of(place, TABLES, split, subset).paths
        if not paths:
            raise InputError(f"{place} holds no file that can be read ({', '.join(TABLES)}): give another one.")
        return (row for path in paths for row in read_table(path))
    return hub_table(source, subset, split, hub_commit(source, revision, instead), instead)


def hub_commit(source: str, revision: str | None, instead: str) -> str | None:
    """Return the commit of a hub data set, as ``resolve_revision`` does, for a source that is no existing file or folder.

    Raises:
        InputError: it is no hub id either, or the hub cannot be reached or refuses.

    Example:
        >>> hub_commit("answers.json", None, "give a file")
        Traceback (most recent call last):
        ctxft.storage.InputError: 'answers.json' is neither an existing file or folder nor a hub id like org/name: check the path.
    """
    if suffix_of(Path(source)) in FORMATS or not is_hub_id(source):
        raise InputError(
            f"'{source}' is neither an existing file or folder nor a hub id like org/name: check the path."
        )
    return resolve_revision(source, "dataset", revision, instead)


# --- formats ----------------------------------------------------------------------------------------------------------


def read_table(path: Path, format: str | None = None, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the records of a file, which is read piece by piece; only JSON that is one value is read whole.

    Args:
        path: the file; text formats also with .gz or .zst.
        format: jsonl, json (an object of records by key, a list, or lines), csv, tsv, parquet, arrow, or text (records of
            one ``line``, in UTF-8 or, as older data sets are, latin-1); None takes it from the suffix.
        columns: of a csv file whose first line does not name them.

    Yields:
        (number of the line or row, or the key; where it is, for messages; the record).

    Raises:
        InputError: the file cannot be read, or holds something else; file and line are named.

    Example:
        >>> next(read_table(Path("notes.txt"), "text"))  # doctest: +SKIP
        (1, 'notes.txt, line 1', {'line': 'Bring an umbrella.'})
    """
    format = format or FORMATS.get(suffix_of(path), suffix_of(path))
    if format == "jsonl" or (format == "json" and _holds_lines(path)):
        return ((number, f"{path}, line {number}", row) for number, row in read_jsonl(path))
    if format == "text":
        return _text_rows(path)
    if format in ("parquet", "arrow"):
        return _arrow_rows(path, format)
    return _csv_rows(path, columns, "\t" if format == "tsv" else ",") if format in ("csv", "tsv") else _json_rows(path)


def _text_rows(path: Path) -> Iterator[Row]:
    with open_text(path, encoding="latin-1") as file:  # in which every byte is a character
        text = file.read()
    with contextlib.suppress(UnicodeDecodeError):
        text = text.encode("latin-1").decode("utf-8-sig")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, f"{path}, line {number}", {"line": line}


def _batches(path: Path, format: str) -> Iterator[pyarrow.RecordBatch]:
    """Yield the rows of a parquet or arrow file a few at a time; arrow files are of two kinds."""
    if format == "parquet":
        with pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table:
            yield from table.iter_batches(batch_size=BATCH)
        return
    with pyarrow.OSFile(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = pyarrow.ipc.open_stream(file)
        for batch in batches:
            batch.validate(full=True)  # Arrow trusts a file's offsets, and would read memory that is not the file's
            yield from (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))


def _arrow_rows(path: Path, format: str) -> Iterator[Row]:
    try:
        rows = (row for batch in _batches(path, format) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield number, f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        article = "an arrow" if format == "arrow" else "a parquet"
        raise InputError(f"{path} is not {article} file that can be read ({error}): fetch it again.") from None


def _csv_rows(path: Path, columns: Sequence[str] | None, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a field may be a whole book
    with open_text(path, newline="") as file:
        reader = csv.DictReader(file, columns, delimiter=delimiter, strict=True)
        try:
            names = reader.fieldnames or ()
            if len(set(names)) < len(names):
                raise InputError(f"{path}, line 1: a column is named twice ({', '.join(names)}): rename one.")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():  # where DictReader puts what is too much, and what is missing
                    raise InputError(f"{where}: the fields {', '.join(names)} are needed: check the quotes.")
                yield reader.line_num, where, row
        except csv.Error as error:  # a field without end, for example, in the record after the last good one
            raise InputError(
                f"{path}, line {reader.line_num + 1}: not a CSV file ({error}): check the quotes."
            ) from None


def _holds_lines(path: Path) -> bool:
    """Return whether a .json file holds a record a line: its first line is a whole object, and no table of records by key."""
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
        more = any(line.strip() for line in file)
    try:
        record = parse_json(first, str(path)) if first.lstrip().startswith("{") else None
    except InputError:
        return False
    return isinstance(record, dict) and (more or not all(isinstance(value, dict) for value in record.values()))


def _json_rows(path: Path) -> Iterator[Row]:
    table = read_json(path)
    if not isinstance(table, (dict, list)):
        raise InputError(f"{path}: records in an object or a list are needed, found {type(table).__name__}.")
    named = "id" if isinstance(table, dict) else "record"
    for key, row in table.items() if isinstance(table, dict) else enumerate(table, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, {named} {key}: a record is needed, found {shown(row)}.")
        yield key, f"{path}, {named} {key}", row


# --- ids and the hub --------------------------------------------------------------------------------------------------


def as_integer(value: object) -> object:
    """Return a number as a whole one where it is: tables with gaps hold 7 as 7.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def id_of(value: object, where: str, instead: str = "correct it") -> str:
    """Return a record's id as text.

    Raises:
        InputError: it is no text and no whole number; ``instead`` says what to do.

    Example:
        >>> id_of(7.0, "notes.jsonl, line 2")
        '7'
    """
    value = as_integer(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise InputError(f"{where}: the id must be a text or a whole number, found {shown(value)}: {instead}.")
    return str(value)


def check_id(value: object, where: str, seen: set[str]) -> str:
    """Return a record's id as text, and remember it.

    Raises:
        InputError: it is no text and no whole number, or was seen before.

    Example:
        >>> check_id(7, "notes.jsonl, line 2", {"6"})
        '7'
    """
    identity = id_of(value, where)
    if identity in seen:
        raise InputError(f"{where}: the id '{identity}' is used twice: give every record its own.")
    seen.add(identity)
    return identity


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
