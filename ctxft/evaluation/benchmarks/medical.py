"""Medical questions: MMLU (six subjects), MedQA, PubMedQA and MedMCQA, from the hub or from files.

Sources: MMLU (Hendrycks et al., arXiv 2009.03300); MedQA (Jin et al., arXiv 2009.13081); PubMedQA (Jin et al., arXiv
1909.06146); MedMCQA (Pal et al., arXiv 2203.14371).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ctxft.evaluation.benchmarks.files import (
    Origin,
    check_columns,
    mmlu_csv_rows,
    one,
    open_rows,
    pin,
    table_rows,
    walk,
)
from ctxft.evaluation.benchmarks.records import Benchmark, Question, Rows, note_of, questions_of
from ctxft.storage import InputError, read_json, shown

SUBJECTS = {  # items of the published test split
    "anatomy": 135,
    "clinical_knowledge": 265,
    "college_biology": 144,
    "college_medicine": 173,
    "medical_genetics": 100,
    "professional_medicine": 272,
}
MMLU_NAMES = ("mmlu-medical", *(f"mmlu-{subject}" for subject in SUBJECTS))
MMLU_COLUMNS = ("question", "choices", "answer")
MEDQA = Origin(
    "the MedQA test questions",
    "put phrases_no_exclude_test.jsonl of the four-option MedQA into DIR/medqa/ and pass --data DIR",
    "GBaker/MedQA-USMLE-4-options",
    columns=("question", "options", "answer_idx"),
)
PUBMEDQA = Origin(
    "the labelled PubMedQA questions",
    "put ori_pqal.json, and test_ground_truth.json for the test half, into DIR and pass --data DIR",
    "qiaojin/PubMedQA",
    "pqa_labeled",
    "train",
    ("pubid", "question", "context", "final_decision"),
)
MEDMCQA = Origin(
    "the MedMCQA validation questions",
    "put the hub's parquet file of the validation split into DIR/medmcqa/ and pass --data DIR",
    "openlifescienceai/medmcqa",
    split="validation",
    columns=("question", "opa", "opb", "opc", "opd", "cop", "subject_name"),
)
MEDQA_ITEMS, PUBMEDQA_ITEMS, PUBMEDQA_TEST_ITEMS, MEDMCQA_ITEMS = 1273, 1000, 500, 4183
YES_NO_MAYBE = ("yes", "no", "maybe")


# --- MMLU -------------------------------------------------------------------------------------------------------------


def load_mmlu(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load the test questions of one subject or of all six; with ``dev`` also the five solved ones of each."""
    subjects = list(SUBJECTS) if name == "mmlu-medical" else [name.removeprefix("mmlu-")]
    revision = pin(_mmlu(subjects, "test"), data, revision)
    questions, sources = _mmlu_split(subjects, "test", data, revision)
    examples = _mmlu_split(subjects, "dev", data, revision)[0] if dev else ()
    note = note_of(sum(SUBJECTS[subject] for subject in subjects), len(questions))
    return Benchmark(name, questions, ", ".join(dict.fromkeys(sources)), revision, note, dev=examples)


def _mmlu(subjects: list[str], split: str) -> Origin:
    files = ", ".join(f"{subject}_{split}.csv" for subject in subjects)
    return Origin(
        f"the MMLU {split} questions of {', '.join(subjects)}",
        f"put {files} (or the hub's parquet files of the {split} split) into DIR and pass --data DIR",
        "cais/mmlu",
        subjects[0],
        split,
        MMLU_COLUMNS,
    )


def _mmlu_split(
    subjects: list[str], split: str, data: Path | None, revision: str | None
) -> tuple[tuple[Question, ...], list[str]]:
    questions: list[Question] = []
    sources = []
    for subject in subjects:
        # An advice about one file of six would be followed six times, so it always names all.
        origin = dataclasses.replace(_mmlu([subject], split), put=_mmlu(subjects, split).put)
        csv = (lambda path, wanted=f"{subject}_{split}.csv": path.name == wanted, mmlu_csv_rows)
        parquet = (lambda path, s=subject: _is_mmlu_table(s, split, path), lambda p: table_rows(p, MMLU_COLUMNS))
        rows, source = open_rows(origin, data, revision, csv, parquet)
        head = subject if split == "test" else f"{subject}-{split}"
        named = ((where, {**row, "id": f"{head}-{n:03d}", "subject": subject}) for n, (where, row) in enumerate(rows))
        questions += questions_of(named, source)
        sources.append(source)
    return tuple(questions), sources


def _is_mmlu_table(subject: str, split: str, path: Path) -> bool:
    named = path.name.startswith(subject) or path.parent.name == subject  # the hub keeps a folder for each subject
    return path.suffix == ".parquet" and named and split in path.name


# --- MedQA, MedMCQA ---------------------------------------------------------------------------------------------------


def load_medqa(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load the test questions of MedQA (USMLE, four options)."""
    revision = pin(MEDQA, data, revision)
    inside = Path(data).resolve().name if data is not None else ""  # the folder given may itself be called medqa

    def fits(path: Path) -> bool:
        return (
            path.suffix == ".jsonl"
            and "test" in path.name
            and "medqa" in f"{inside}/{path}".lower().replace("pubmedqa", "")
        )

    rows, source = open_rows(MEDQA, data, revision, (fits, lambda path: table_rows(path, ())))
    questions = questions_of(((where, _medqa(row, n, where)) for n, (where, row) in enumerate(rows)), source)
    return Benchmark(name, questions, source, revision, note_of(MEDQA_ITEMS, len(questions)))


def _medqa(row: dict, number: int, where: str) -> dict:
    check_columns(row, MEDQA.columns, where)
    options, letter = row["options"], row["answer_idx"]
    if not isinstance(options, dict) or letter not in list(options):
        raise InputError(f"{where}: answer_idx {shown(letter)} is none of the options' letters: mend the record.")
    letters = sorted(options)
    record = {"id": f"medqa-{number:04d}", "subject": "medqa", "answer": letters.index(letter)}
    return {**record, "question": row["question"], "choices": [options[key] for key in letters]}


def load_medmcqa(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load the validation questions of MedMCQA: the answers of its test split are not published."""
    revision = pin(MEDMCQA, data, revision)
    rows, source = open_rows(MEDMCQA, data, revision)
    questions = questions_of(((where, _medmcqa(row, n)) for n, (where, row) in enumerate(rows)), source)
    return Benchmark(name, questions, source, revision, note_of(MEDMCQA_ITEMS, len(questions)))


def _medmcqa(row: dict, number: int) -> dict:
    choices = [row[key] for key in ("opa", "opb", "opc", "opd")]
    record = {"id": f"medmcqa-{number:04d}", "question": row["question"], "choices": choices}
    return {**record, "answer": row["cop"], "subject": row["subject_name"]}


# --- PubMedQA ---------------------------------------------------------------------------------------------------------


def load_pubmedqa(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load PubMedQA: ``pubmedqa`` is the published test half, ``pubmedqa-labelled`` all labelled questions.

    Which half is test stands in a file of its own, test_ground_truth.json. Where it is not there (the hub's table tells
    nothing of it), ``pubmedqa`` holds all labelled questions, and its note says so.
    """
    revision = pin(PUBMEDQA, data, revision)
    own = (lambda path: path.name == "ori_pqal.json", _pqal_rows)
    rows, source = open_rows(PUBMEDQA, data, revision, own)
    questions = questions_of(((where, _pubmedqa(row, where)) for where, row in rows), source)
    if name == "pubmedqa-labelled":
        note = note_of(PUBMEDQA_ITEMS, len(questions))
        return Benchmark(name, questions, source, revision, note, form="labels")
    truth = _test_half(data)
    if truth is None:
        more = ": without test_ground_truth.json the test half is unknown, so all labelled questions are used"
        note = note_of(PUBMEDQA_TEST_ITEMS, len(questions), more)
        return Benchmark(name, questions, source, revision, note, form="labels")
    known = {question.id: question.choices[question.answer] for question in questions}
    if wrong := [key for key, label in truth.items() if known.get(key) != label]:
        raise InputError(
            f"test_ground_truth.json and {source} differ at id '{wrong[0]}': take both from one release of PubMedQA."
        )
    half = tuple(question for question in questions if question.id in truth)
    note = note_of(PUBMEDQA_TEST_ITEMS, len(half))
    return Benchmark(name, half, f"{source} (test half by test_ground_truth.json)", revision, note, form="labels")


def _pqal_rows(path: Path) -> Rows:
    return _pqal_records(path, read_json(path))


def _pqal_records(path: Path, table: object) -> Iterator[tuple[str, dict]]:
    if not isinstance(table, dict):
        raise InputError(f"{path}: an object of records by PubMed id is needed, found {type(table).__name__}.")
    for key, row in table.items():
        where = f"{path}, id {key}"
        check_columns(row, ("QUESTION", "CONTEXTS", "final_decision"), where)
        record = {"pubid": key, "question": row["QUESTION"], "context": {"contexts": row["CONTEXTS"]}}
        yield where, {**record, "final_decision": row["final_decision"]}


def _pubmedqa(row: dict, where: str) -> dict:
    if row["final_decision"] not in YES_NO_MAYBE:
        raise InputError(
            f"{where}: final_decision {shown(row['final_decision'])} is none of {', '.join(YES_NO_MAYBE)}."
        )
    record = {"id": str(row["pubid"]), "question": row["question"], "subject": "pubmedqa"}
    contexts = row["context"].get("contexts") if isinstance(row["context"], dict) else None
    if not isinstance(contexts, list) or not all(isinstance(text, str) for text in contexts):
        raise InputError(f"{where}: the context must hold a list of texts, found {shown(contexts)}: mend the record.")
    return {**record, "choices": YES_NO_MAYBE, "answer": row["final_decision"], "context": "\n".join(contexts)}


def _test_half(data: Path | None) -> dict | None:
    found = [path for path in walk(data) if path.name == "test_ground_truth.json"] if data is not None else []
    if not found:
        return None
    truth = read_json(path := one(found, data, PUBMEDQA))
    if not isinstance(truth, dict) or not truth:
        raise InputError(f"{path}: an object of answers by PubMed id is needed, found {shown(truth)}: fetch it again.")
    return truth
