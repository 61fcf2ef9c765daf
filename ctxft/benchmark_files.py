"""A folder or a hub repository goes in; raw benchmark records come out, each with the place where it stands.

The published sets lie about in several layouts: MMLU as CSV with or without a header, or as the hub's parquet; MedQA as
JSON Lines. Columns are checked here, the records themselves in ``ctxft.benchmarks``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ctxft.hub import hub_errors
from ctxft.runtime import InputError, read_text

MMLU_ID, MEDQA_ID = "cais/mmlu", "GBaker/MedQA-USMLE-4-options"
MMLU_COLUMNS, MEDQA_COLUMNS = ("question", "choices", "answer"), ("question", "options", "answer_idx")
CSV_COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
Rows = Iterator[tuple[str, dict]]  # (where it stands, the record as found)


def hub_rows(repo_id: str, config: str | None, revision: str | None, put: str) -> Rows:
    """Fetch the test split of MMLU or MedQA; ``put`` is the advice of a hub error."""
    from datasets import load_dataset  # seconds to import, and only the hub needs it

    with hub_errors(repo_id, "dataset", put):
        table = load_dataset(repo_id, config, split="test", revision=revision)
    wanted = MMLU_COLUMNS if repo_id == MMLU_ID else MEDQA_COLUMNS
    where = f"{repo_id} ({config})" if config else repo_id
    check_columns(table.column_names, wanted, where)
    return ((f"{where}, row {n}", row) for n, row in enumerate(table, start=1))


def is_mmlu(subject: str, path: Path) -> bool:
    """Return whether a path is that of a subject's test questions, as CSV or as the hub's parquet."""
    if path.suffix == ".csv":
        return path.name == f"{subject}_test.csv"
    named = path.name.startswith(subject) or path.parent.name == subject  # the hub keeps a folder for each subject
    return path.suffix == ".parquet" and named and "test" in path.name


def is_medqa(data: Path, path: Path) -> bool:
    """Return whether a path under ``data`` is a JSON Lines file of MedQA's test split, by its name or its folders'."""
    named = "medqa" in "/".join((data.resolve().name, *path.relative_to(data).parts)).lower()
    return path.suffix == ".jsonl" and "test" in path.name and named


def find_one(data: Path, fits: Callable[[Path], bool], what: str, put: str) -> Path:
    """Return the one file under a folder that fits; none and several are errors."""
    data = Path(data)
    if not data.is_dir():
        raise InputError(f"{data} is not a folder: --data needs the folder that holds the benchmark files.")
    found = sorted(path for path in data.rglob("*test*") if path.is_file() and fits(path))
    if not found:
        raise InputError(f"{what} were not found under {data}: {put}.")
    if len(found) > 1:
        raise InputError(f"{what} were found more than once under {data}: keep one of {', '.join(map(str, found))}.")
    return found[0]


def check_columns(found: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Raise an InputError with the columns found and wanted if one is missing."""
    if missing := [column for column in wanted if column not in found]:
        raise InputError(
            f"{where} lacks {', '.join(missing)}: columns found {', '.join(found)}, wanted {', '.join(wanted)}."
        )


def csv_rows(path: Path) -> Rows:
    """Yield MMLU records of a CSV file: with a header and answers 0-3, or in the original layout, headless and A-D."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    lines = [(reader.line_num, line) for line in reader if line]
    header = lines[0][1] if lines else []
    original = len(header) == len(CSV_COLUMNS) and header[-1] in tuple("ABCD")
    if not original:
        check_columns(header, CSV_COLUMNS, str(path))
    names = CSV_COLUMNS if original else header
    for number, line in lines if original else lines[1:]:
        where = f"{path}, line {number}"
        if len(line) != len(names):
            raise InputError(f"{where}: {len(names)} columns are needed, found {len(line)}: check the quotes.")
        row = dict(zip(names, line, strict=True))
        answers = "ABCD" if original else "0123"
        if len(row["answer"]) != 1 or row["answer"] not in answers:
            raise InputError(f"{where}: the answer {row['answer']!r} is none of {', '.join(answers)}.")
        choices = [row[f"choice{n}"] for n in range(4)]
        yield where, {"question": row["question"], "choices": choices, "answer": answers.index(row["answer"])}


def parquet_rows(path: Path) -> Rows:
    """Yield MMLU records of the hub's parquet file."""
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is not a parquet file that can be read ({error}): fetch it again.") from None
    check_columns(table.column_names, MMLU_COLUMNS, str(path))
    return ((f"{path}, row {n}", row) for n, row in enumerate(table.to_pylist(), start=1))


def medqa_record(row: dict, number: int, where: str) -> dict:
    """Turn a MedQA row, with lettered options, into a record with a list of choices and the index of the answer."""
    check_columns(row, MEDQA_COLUMNS, where)
    options, letter = row["options"], row["answer_idx"]
    if not isinstance(options, dict) or letter not in list(options):
        raise InputError(f"{where}: answer_idx {letter!r} is none of the options' letters: mend the record.")
    letters = sorted(options)
    record = {"id": f"medqa-{number:04d}", "subject": "medqa", "answer": letters.index(letter)}
    return {**record, "question": row["question"], "choices": [options[key] for key in letters]}
