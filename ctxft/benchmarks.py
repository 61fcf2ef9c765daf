"""Questions from the hub, a folder, a file or the practice world go in; ``Benchmark`` objects of one shape come out.

Every loader turns its source into ``Question`` records, checked one by one, and ``render`` writes a record as the text
that a model reads: word for word that of lm-evaluation-harness, so that results can be set beside published ones.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import string
from collections.abc import Iterable
from pathlib import Path

from ctxft.benchmark_files import (
    MEDQA_ID,
    MMLU_ID,
    csv_rows,
    find_one,
    hub_rows,
    is_medqa,
    is_mmlu,
    medqa_record,
    parquet_rows,
)
from ctxft.hub import resolve_revision
from ctxft.runtime import InputError, check_known, nearest, read_jsonl, sha256
from ctxft.world.exams import EXAMS, practice_questions

SUBJECTS = {  # items of the published test split
    "anatomy": 135,
    "clinical_knowledge": 265,
    "college_biology": 144,
    "college_medicine": 173,
    "medical_genetics": 100,
    "professional_medicine": 272,
}
MEDQA_ITEMS = 1273
NAMES = (*EXAMS, "mmlu-medical", *(f"mmlu-{subject}" for subject in SUBJECTS), "medqa")
FORMS = ("lettered", "options")
LETTERS = string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class Question:
    """One multiple-choice question; ``answer`` is the index of the right choice."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str

    @property
    def hash(self) -> str:
        """SHA-256 of question, choices and answer: two runs compare an item only if it is the same text."""
        return sha256([self.question, list(self.choices), self.answer])


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Questions under one name, where they came from, and a note where their number is not the published one."""

    name: str
    questions: tuple[Question, ...]
    source: str
    revision: str | None = None
    note: str = ""

    @property
    def chance(self) -> float:
        """The accuracy of guessing: the mean of one over the number of choices."""
        return sum(1 / len(q.choices) for q in self.questions) / len(self.questions)

    @property
    def majority(self) -> float:
        """The accuracy of always naming the commonest answer position."""
        return max(collections.Counter(q.answer for q in self.questions).values()) / len(self.questions)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes, where every question has the same choices in the same order; None where each has its own."""
        found = {question.choices for question in self.questions}
        return found.pop() if len(found) == 1 and len(self.questions) > 1 else None


# --- loading ----------------------------------------------------------------------------------------------------------


def load_benchmark(
    name: str, data: Path | None = None, revision: str | None = None, limit: int | None = None
) -> Benchmark:
    """Load a benchmark by name, or a user's own questions by path.

    Args:
        name: one of ``NAMES``, or the path of a .jsonl file with id, question, choices, answer (an index from 0, or the
            text of a choice) and optionally subject on each line.
        data: a folder that holds MMLU and MedQA files; None fetches them from the Hugging Face hub.
        revision: a commit or tag of the hub data set; None takes its main branch.
        limit: at most so many questions, taken in turn from each subject; None takes all.

    Returns:
        The benchmark. Its ``note`` is not empty if the source does not hold the published number of items.

    Raises:
        InputError: unknown name, file missing or ambiguous, hub out of reach or gated, a record that is no question.

    Source:
        MMLU (Hendrycks et al., arXiv 2009.03300), test split, six medical subjects; MedQA (Jin et al., arXiv
        2009.13081), USMLE questions with four options, test split.

    Example:
        >>> load_benchmark("practice-mmlu", limit=3).chance
        0.25
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, found {limit}.")
    if name in EXAMS:
        rows = ((f"practice world, record {n}", row) for n, row in enumerate(practice_questions(name), start=1))
        benchmark = Benchmark(name, _questions(rows, "practice world"), "practice world")
    elif name.startswith("mmlu-") and name in NAMES:
        benchmark = _load_mmlu(name, data, revision)
    elif name == "medqa":
        benchmark = _load_medqa(data, revision)
    else:
        benchmark = _load_own(name)
    return dataclasses.replace(benchmark, questions=_in_turn(benchmark.questions, limit))


def _load_mmlu(name: str, data: Path | None, revision: str | None) -> Benchmark:
    subjects = list(SUBJECTS) if name == "mmlu-medical" else [name.removeprefix("mmlu-")]
    files = ", ".join(f"{subject}_test.csv" for subject in subjects)
    put = f"put {files} (or the hub's parquet files of the test split) into DIR and pass --data DIR"
    if data is None:
        revision = resolve_revision(MMLU_ID, "dataset", revision, put)
    questions: list[Question] = []
    sources = []
    for subject in subjects:
        if data is None:
            rows, source = hub_rows(MMLU_ID, subject, revision, put), MMLU_ID
        else:
            path = find_one(data, functools.partial(is_mmlu, subject), f"the MMLU test questions of {subject}", put)
            rows, source = (csv_rows(path) if path.suffix == ".csv" else parquet_rows(path)), str(path)
        named = (
            (where, {**row, "id": f"{subject}-{n:03d}", "subject": subject}) for n, (where, row) in enumerate(rows)
        )
        questions += _questions(named, source)
        sources.append(source)
    note = _note(sum(SUBJECTS[subject] for subject in subjects), len(questions))
    return Benchmark(name, tuple(questions), ", ".join(dict.fromkeys(sources)), None if data else revision, note)


def _load_medqa(data: Path | None, revision: str | None) -> Benchmark:
    put = "put phrases_no_exclude_test.jsonl of the four-option MedQA into DIR/medqa/ and pass --data DIR"
    if data is None:
        revision = resolve_revision(MEDQA_ID, "dataset", revision, put)
        rows, source = hub_rows(MEDQA_ID, None, revision, put), MEDQA_ID
    else:
        path = find_one(data, functools.partial(is_medqa, Path(data)), "the MedQA test questions", put)
        rows, source = ((f"{path}, line {n}", row) for n, row in read_jsonl(path)), str(path)
    records = ((where, medqa_record(row, n, where)) for n, (where, row) in enumerate(rows))
    questions = _questions(records, source)
    return Benchmark("medqa", questions, source, None if data else revision, _note(MEDQA_ITEMS, len(questions)))


def _load_own(name: str) -> Benchmark:
    path = Path(name)
    if path.suffix != ".jsonl":
        known = ", ".join(NAMES)
        raise InputError(
            f"unknown benchmark '{name}'{nearest(name, NAMES)}; known: {known}, or the path of a .jsonl file."
        )
    if path.stem in NAMES:
        raise InputError(f"{path}: '{path.stem}' is the name of a built-in benchmark: rename the file.")
    rows = ((f"{path}, line {n}", row) for n, row in read_jsonl(path))
    return Benchmark(path.stem, _questions(rows, str(path)), str(path))


def _note(expected: int, found: int) -> str:
    return "" if found == expected else f"{expected} items expected, {found} found"


def _in_turn(questions: tuple[Question, ...], limit: int | None) -> tuple[Question, ...]:
    """Keep ``limit`` questions, the first of each subject before the second of any, in their old order."""
    seen: collections.Counter[str] = collections.Counter()
    ranks = []
    for number, question in enumerate(questions):
        ranks.append((seen[question.subject], number))
        seen[question.subject] += 1
    return tuple(questions[number] for number in sorted(number for _, number in sorted(ranks)[:limit]))


# --- records ----------------------------------------------------------------------------------------------------------


def _questions(rows: Iterable[tuple[str, dict]], source: str) -> tuple[Question, ...]:
    """Check records one by one; duplicate ids and an empty source are errors too."""
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        question = _question(row, where)
        if question.id in seen:
            raise InputError(f"{where}: the id '{question.id}' is also at {seen[question.id]}: ids must be unique.")
        seen[question.id] = where
        questions.append(question)
    if not questions:
        raise InputError(f"{source} holds no question: give one with at least one.")
    return tuple(questions)


def _question(row: dict, where: str) -> Question:
    id_, text, choices, answer = (row.get(key) for key in ("id", "question", "choices", "answer"))
    if isinstance(id_, bool) or not isinstance(id_, (str, int)) or id_ == "":
        raise InputError(f"{where}: the record has no 'id' (a text or a whole number): add one.")
    where = f"{where} (id '{id_}')"
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: the record has no 'question': add its text.")
    good = isinstance(choices, (list, tuple)) and all(isinstance(c, str) and c.strip() for c in choices)
    if not good or not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"{where}: 'choices' must be a list of 2 to {len(LETTERS)} texts that are not empty.")
    if isinstance(answer, str):
        if list(choices).count(answer) != 1:
            raise InputError(
                f"{where}: the answer {answer!r} must be the text of exactly one choice, or an index from 0."
            )
        answer = list(choices).index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise InputError(f"{where}: the answer {answer!r} is outside the choices 0 to {len(choices) - 1}.")
    return Question(str(id_), text, tuple(choices), answer, str(row.get("subject") or "all"))


# --- texts ------------------------------------------------------------------------------------------------------------


def render(question: Question, form: str, benchmark_name: str) -> tuple[str, list[str]]:
    """Write a question as a context and the continuations to score, word for word as lm-evaluation-harness does.

    Args:
        question: the record.
        form: "lettered" shows the options and scores their letters; "options" hides them and scores their texts.
        benchmark_name: MMLU has a line about its subject before the question; all others have MedQA's form.

    Returns:
        (context, continuations), each continuation with the space that stands before it.

    Raises:
        InputError: the form is unknown.

    Source:
        lm-evaluation-harness 0.4.13, tasks ``mmlu_<subject>``, ``mmlu_<subject>_continuation`` and ``medqa_4options``;
        the "options" form of MedQA is that of MMLU without the subject line.

    Example:
        >>> render(Question("1", "Which?", ("this", "that"), 0, "all"), "options", "own")
        ('Question: Which?\\nAnswer:', [' this', ' that'])
    """
    check_known(form, FORMS, "form")
    mmlu = benchmark_name in NAMES and benchmark_name.startswith("mmlu-")
    kind = "multiple choice questions" if form == "lettered" else "questions"
    about = f"The following are {kind} (with answers) about {question.subject.replace('_', ' ')}.\n\n" if mmlu else ""
    if form == "options":
        return f"{about}Question: {question.question.strip()}\nAnswer:", [f" {choice}" for choice in question.choices]
    stem = question.question.strip() if mmlu else f"Question: {question.question}"
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"{about}{stem}\n{listed}Answer:", [f" {letter}" for letter in LETTERS[: len(question.choices)]]
