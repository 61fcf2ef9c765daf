"""Load benchmarks: those that a YAML file declares, exams of the practice world, and a user's own JSON Lines file.

A YAML file declares one set, or its variants, in the spirit of lm-evaluation-harness's task files: a hub table, patterns
of local files with their format, and a Jinja template for each part of a question. Templates run in a sandbox.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ctxft.config import Config, load_yaml
from ctxft.data.tables import TABLES, files_of, hub_table, is_data_set, read_table, suffix_of, walk
from ctxft.evaluation.benchmarks.own import own_rows
from ctxft.evaluation.benchmarks.records import (
    DATA_ERRORS,
    Benchmark,
    Form,
    Question,
    Template,
    Wording,
    questions_of,
    value_of,
)
from ctxft.evaluation.benchmarks.requests import examples_for
from ctxft.models import resolve_revision
from ctxft.storage import InputError, nearest, read_json, shown
from ctxft.world.exams import EXAMS, practice_questions

FOLDER = Path(__file__).parent
DEFAULTS = {
    "keep": "{{ true }}",
    "id": "{{ benchmark }}-{{ '%05d' % number }}",
    "subject": "{{ benchmark }}",
    "choices": "{{ labels }}",
}
Rows = Iterable[tuple[str, dict]]  # (where it is, the record)


class Templates(Config):
    """How a record becomes a question: Jinja templates over its columns.

    A template that is one expression (``{{ options }}``) gives its value, any other gives text. Beside the columns they
    know ``benchmark``, ``part``, ``split``, ``labels``, ``file`` (its name), ``key`` (the record's, or its line or row),
    ``number`` (of the records kept before it) and ``subset`` (the file that a variant names, None where it is missing).

    Attributes:
        id, question, subject, context: texts.
        choices: a list of texts; by default the labels of the set.
        answer: an index from 0, or the text of a choice.
        keep: records for which this is false are left out.
    """

    id: Template | None = None
    question: Template | None = None
    choices: Template | None = None
    answer: Template | None = None
    subject: Template | None = None
    context: Template | None = None
    keep: Template | None = None


class Source(Templates):
    """Where records are: a hub table, local files that match a pattern, or either with the same columns.

    Attributes:
        hub, name, split: of the hub table; ``items`` where it publishes another number of them than the files.
        pattern: regular expression, in any case, searched in "data-folder/path/of/file"; knows part, parts and split.
        format, columns: of the files, as for ``read_table``.
        explode: a column of a json file whose list members each make a record, with their ``index``.
        prefer: of several files that match, the one that matches this pattern too is read, and the note says so.
        several: read all files that match, not exactly one.
    """

    hub: str | None = None
    name: str = ""
    split: str = "test"
    items: int | None = None
    pattern: str | None = None
    format: Literal["csv", "tsv", "json", "jsonl", "parquet", "arrow", "text"] | None = None
    columns: list[str] | None = None
    explode: str | None = None
    prefer: str | None = None
    several: bool = False


class Variant(Config):
    """One benchmark of a file: its parts (tables that are joined) and the published number of items.

    ``subset`` is the pattern of a JSON file that says which items belong to it; ``hub`` is whether the hub has it.
    """

    parts: list[str] = Field(default_factory=lambda: [""])
    items: int | None = None
    subset: str | None = None
    hub: bool = True


class BenchmarkFile(Templates):
    """What a benchmark YAML file may hold; its templates hold where a source gives none of its own.

    Attributes:
        about, citation: one line on the set, and its publication.
        title: the records in words, for messages; knows part, parts and split.
        advice: what to put where, if the hub cannot be used ("put x.jsonl into DIR").
        benchmarks: name -> variant; by default one, with the name of the file.
        labels: the choices of every question, for sets of labeled texts.
        form: the form in which the set is always asked; None leaves it to the experiment.
        options: the published number of choices of a question.
        allow_empty: accept questions without text, which a few published sets hold.
        fewshot_split: the split of solved examples.
        wording: how its questions read, where that differs from the default.
        sources: where the records are.
    """

    about: str = ""
    citation: str = ""
    title: str = "the questions"
    advice: str = "put its files into DIR"
    benchmarks: dict[str, Variant] = Field(default_factory=dict)
    labels: list[str] | None = None
    form: Form | None = None
    options: int | None = None
    allow_empty: bool = False
    fewshot_split: str | None = None
    wording: Wording = Wording()
    sources: list[Source] = Field(default_factory=list)


@functools.lru_cache(maxsize=256)
def read_declaration(path: Path) -> BenchmarkFile:
    """Read a benchmark YAML file; raises InputError with file and line for each of its mistakes."""
    file = load_yaml(BenchmarkFile, path)
    return file if file.benchmarks else file.replace(benchmarks={path.stem: Variant()})


@functools.cache
def declared_benchmarks() -> Mapping[str, Path]:
    """Return name -> YAML file of the kit's benchmarks."""
    return {name: path for path in sorted(FOLDER.glob("*.yaml")) for name in read_declaration(path).benchmarks}


def benchmark_names() -> tuple[str, ...]:
    """Return the names that ``load_benchmark`` knows: of the practice world and of the kit.

    Example:
        >>> "medqa" in benchmark_names()
        True
    """
    return (*EXAMS, *declared_benchmarks())


def is_own(source: str) -> bool:
    """Return whether a benchmark is a user's file of questions.

    Example:
        >>> is_own("quiz.csv"), is_own("medqa")
        (True, False)
    """
    return suffix_of(Path(source)) in TABLES


def benchmark_name(source: str) -> str:
    """Return what a benchmark is called in a run: its name, or the file's without the ending.

    Example:
        >>> benchmark_name("mmlu-medical"), benchmark_name("texts/quiz.jsonl.gz")
        ('mmlu-medical', 'quiz')
    """
    if source in benchmark_names():
        return source
    path = Path(source)
    packed = suffix_of(path) != path.suffix.lower()
    return Path(path.stem).stem if packed else path.stem


def load_benchmark(
    name: str,
    data: Path | None = None,
    revision: str | None = None,
    limit: int | None = None,
    num_fewshot: int = 0,
) -> Benchmark:
    """Load a benchmark by name, or custom questions by path.

    Args:
        name: one of ``benchmark_names``; the path of a file of questions (see ``read_table``), each with question, choices,
            answer and optionally id, subject and context (see ``own_rows``); or the path of a YAML file that declares one
            benchmark (see ``BenchmarkFile``).
        data: a folder that holds benchmark files, in the layouts of their authors or of the hub, or a copy of the set's
            repository; None reads the Hugging Face hub.
        revision: a commit or tag of the hub table; None takes its main branch.
        limit: at most N questions, taken in turn from each subject, or evenly spaced from sets of labeled texts; None
            takes all.
        num_fewshot: solved examples to be shown before each question; MMLU has five a subject, a custom file x.csv those
            of x.dev.csv next to it; the other sets have none.

    Returns:
        The benchmark. Its ``note`` is not empty if these are not the published items, or hold choices that repeat.

    Raises:
        InputError: unknown name, file missing or ambiguous, hub out of reach or gated, columns missing, a record that is
            no question, more examples wanted than there are.

    Example:
        >>> load_benchmark("practice-mmlu", limit=3).chance
        0.25
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, found {limit}.")
    path, known = Path(name), declared_benchmarks()
    if name in EXAMS:
        rows = ((f"practice world, record {n}", row) for n, row in enumerate(practice_questions(name), start=1))
        benchmark = Benchmark(name, questions_of(rows, "practice world"), "practice world")
    elif name in known:
        benchmark = _Reader(known[name], name, data, revision).benchmark(num_fewshot > 0)
    elif path.suffix == ".yaml":
        names = list(read_declaration(path).benchmarks)
        if len(names) > 1:
            raise InputError(f"{path} declares {', '.join(names)}: keep one in a file.")
        _check_stem(path, names[0])
        benchmark = _Reader(path, names[0], data, revision).benchmark(num_fewshot > 0)
    elif is_own(name):
        _check_stem(path, benchmark_name(name))
        benchmark = _load_own(path, num_fewshot > 0)
    else:
        names = benchmark_names()
        raise InputError(
            f"unknown benchmark '{name}'{nearest(name, names)}; known: {', '.join(names)}, or the path of a file"
            f" ({', '.join(TABLES)} or .yaml)."
        )
    benchmark = _with_repeats(benchmark.first(limit))
    for question in benchmark.questions:
        examples_for(benchmark, question, num_fewshot)  # that they are missing is said before anything is trained
    return benchmark


def wording_of(name: str) -> Wording:
    """Return how the questions of one of the kit's benchmarks read.

    Example:
        >>> wording_of("multifin").task
        'Tell the topic of a financial headline'
    """
    known = declared_benchmarks()
    return read_declaration(known[name]).wording if name in known else Wording()


def _check_stem(path: Path, name: str) -> None:
    if name in benchmark_names():
        raise InputError(f"{path}: '{name}' is the name of a built-in benchmark: rename the file.")


def _with_repeats(benchmark: Benchmark) -> Benchmark:
    """Return the benchmark with a note on questions in which a choice is there twice."""
    repeats = sum(
        len(set(map(str.strip, question.choices))) < len(question.choices) for question in benchmark.questions
    )
    if not repeats:
        return benchmark
    note = (
        f"{repeats} of {len(benchmark.questions)} items have a choice twice, {benchmark.repeated} of them the right one"
    )
    return dataclasses.replace(benchmark, note="; ".join(filter(None, [benchmark.note, note])))


def _load_own(path: Path, fewshot: bool) -> Benchmark:
    def read(path: Path) -> tuple[tuple[Question, ...], str]:
        rows, note = own_rows(read_table(path), path.name)
        return questions_of(rows, str(path)), note

    (questions, note), dev, name = read(path), (), benchmark_name(str(path))
    if fewshot:
        examples = path.with_name(f"{name}.dev{path.name.removeprefix(name)}")
        if not examples.exists():
            raise InputError(f"{examples} does not exist: put solved questions there, or show none (num_fewshot: 0).")
        dev, scored = read(examples)[0], {question.hash for question in questions}
        if shown_too := [example.id for example in dev if example.hash in scored]:
            raise InputError(
                f"{examples}: '{shown_too[0]}' is also a question of {path}: a question that is scored must not be shown."
            )
    return Benchmark(name, questions, str(path), note=note, dev=dev)


class _Reader:
    """Reads one declared benchmark from a data folder, or from the hub where there is none.

    A benchmark that names no hub table and is not the kit's is read beside its own YAML file.
    """

    def __init__(self, path: Path, name: str, data: Path | None, revision: str | None) -> None:
        self.file = read_declaration(path)
        self.name, self.variant = name, self.file.benchmarks[name]
        self.items, self.revision, self.notes = self.variant.items, None, []
        self.hub = next((source for source in self.file.sources if source.hub and self.variant.hub), None)
        beside = data is None and not self.hub and path.parent != FOLDER
        self.data = path.parent if beside else None if data is None else Path(data)
        if self.data is None:
            if self.hub is None or self.hub.hub is None:
                raise InputError(f"{self.fill(self.file.title)} are not on the hub as a table: {self.advice()}.")
            self.revision = resolve_revision(self.hub.hub, "dataset", revision, self.advice())

    def fill(self, template: str, part: str | None = None, split: str = "test") -> str:
        """Fill in a template of the file that is no part of a question."""
        parts = self.variant.parts
        return str(
            value_of(template, {"part": ", ".join(parts) if part is None else part, "parts": parts, "split": split})
        )

    def advice(self, split: str = "test") -> str:
        """Return what to do without the hub."""
        return f"{self.fill(self.file.advice, split=split)} and pass --data DIR"

    def benchmark(self, fewshot: bool) -> Benchmark:
        """Read the questions, and solved ones where they are wanted and the set has them."""
        file, pattern = self.file, self.variant.subset
        named = self._matching(pattern) if pattern and self.data else []
        questions, places = self._questions("test", read_json(named[0]) if named else None)
        dev = self._questions(file.fewshot_split)[0] if fewshot and file.fewshot_split else ()
        source = ", ".join(dict.fromkeys([*places, *map(str, named)]))
        benchmark = Benchmark(self.name, questions, source, self.revision, "", file.form, dev, file.wording)
        return dataclasses.replace(benchmark, note="; ".join(self._notes(benchmark, bool(named))))

    def _notes(self, benchmark: Benchmark, named: bool) -> list[str]:
        """Return in what the questions are not the published ones."""
        questions, notes, published = benchmark.questions, list(self.notes), self.file.options
        if self.items not in (None, len(questions)):
            notes.append(f"{self.items} items expected, {len(questions)} found")
            if self.variant.subset and not named:
                notes.append("the file that names the test items is missing, so all labeled questions are used")
        counts = [len(question.choices) for question in questions if len(question.choices) != published]
        if published and counts:
            sizes = " or ".join(map(str, sorted(set(counts))))
            notes.append(
                f"{len(counts)} items have {sizes} choices, not the published {published}: chance is {benchmark.chance:.3f}"
            )
        if empty := sum(not question.question for question in questions):
            notes.append(f"{empty} without text, as published")
        return notes

    def _questions(self, split: str, subset: Any = None) -> tuple[tuple[Question, ...], list[str]]:
        """Return the questions of all parts of a split, and where they came from."""
        questions: list[Question] = []
        places: list[str] = []
        known = {"benchmark": self.name, "split": split, "labels": self.file.labels, "subset": subset}
        for part in self.variant.parts:
            source, rows, place = self._hub_rows(part, split) if self.data is None else self._file_rows(part, split)
            records = _records(self.file, source, rows, known | {"part": part})
            questions += questions_of(records, place, self.file.allow_empty)
            places.append(place)
            self.items = source.items or self.items
        return tuple(questions), places

    def _table(self, part: str, split: str) -> tuple[str | None, str]:
        """Return the subset and the split of the hub table that hold a part."""
        assert self.hub
        return self.fill(self.hub.name, part, split) or None, self.hub.split if split == "test" else split

    def _hub_rows(self, part: str, split: str) -> tuple[Source, Rows, str]:
        assert self.hub and self.hub.hub
        rows = hub_table(self.hub.hub, *self._table(part, split), self.revision, self.advice(split))
        return self.hub, ((where, {"key": key, **row}) for key, where, row in rows), self.hub.hub

    def _file_rows(self, part: str, split: str) -> tuple[Source, Rows, str]:
        patterns = [(source, source.pattern) for source in self.file.sources if source.pattern]
        sources = {path: source for source, pattern in patterns for path in self._matching(pattern, part, split)}
        sources = sources or self._own_clone(part, split)
        paths = sorted(sources)
        better = {path for one, _ in patterns if one.prefer for path in self._matching(one.prefer, part, split)}
        if len(paths) > len(preferred := [path for path in paths if path in better]) == 1:
            self.notes.append(f"of {len(paths)} files that match, {preferred[0]} was taken")
            paths = preferred
        if not paths:
            raise self._not_found(part, split)
        source, place = sources[paths[0]], ", ".join(map(str, paths))
        if len(paths) > 1 and not source.several:
            title = self.fill(self.file.title, part, split)
            raise InputError(f"{title} were found more than once under {self.data}: keep one of {place}.")
        return source, (row for path in paths for row in _rows_of(path, source)), place

    def _own_clone(self, part: str, split: str) -> dict[Path, Source]:
        """Return the files of the hub table, where the data folder is a copy of its repository under any name."""
        assert self.data
        if not self.hub or not is_data_set(self.data):
            return {}
        subset, name = self._table(part, split)
        try:
            paths = files_of(self.data, TABLES, name, subset).paths
        except InputError as error:  # it is a copy of another data set
            raise self._not_found(part, split, f" ({str(error).rstrip('.')})") from None
        return dict.fromkeys(paths, self.hub.replace(several=True))

    def _not_found(self, part: str, split: str, why: str = "") -> InputError:
        title = self.fill(self.file.title, part, split)
        return InputError(f"{title} were not found under {self.data}{why}: {self.advice(split)}.")

    def _matching(self, pattern: str, part: str = "", split: str = "test") -> list[Path]:
        """Return the files below the data folder that match a pattern."""
        assert self.data
        pattern = self.fill(pattern, part, split)
        try:
            search = re.compile(pattern, re.IGNORECASE).search
        except re.error as error:
            raise InputError(
                f"the pattern {pattern!r} of a benchmark file is no regular expression ({error})."
            ) from None
        root, files = self.data.resolve().name, walk(self.data) if self.data.is_dir() else ()
        named = {path: f"{root}/{path.relative_to(self.data).as_posix()}" for path in files}
        return [path for path, name in named.items() if search(name) and path.is_file() and path.name[0] != "."]


def _rows_of(path: Path, source: Source) -> Iterator[tuple[str, dict]]:
    """Yield the records of a file, or those that the lists in a column of it hold."""
    for key, where, row in read_table(path, source.format, source.columns):
        record = {"file": path.name, "key": key, **row}
        if not source.explode:
            yield where, record
            continue
        members = row.get(source.explode)
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise InputError(f"{where}: '{source.explode}' must be a list of records, found {shown(members)}.")
        yield from ((f"{where}, {source.explode} {n}", {**record, **one, "index": n}) for n, one in enumerate(members))


def _records(file: BenchmarkFile, source: Source, rows: Rows, known: dict) -> Iterator[tuple[str, dict]]:
    """Yield records as ``questions_of`` wants them, each with where it is."""
    fields = set(Templates.model_fields)
    templates = DEFAULTS | file.model_dump(include=fields, exclude_none=True)
    templates |= source.model_dump(include=fields, exclude_none=True)
    if missing := [key for key in ("question", "answer") if key not in templates]:
        raise InputError(f"the file of benchmark '{known['benchmark']}' has no template for '{missing[0]}': add one.")
    number = 0
    for where, row in rows:
        record: dict[str, Any] = {}
        for key, template in templates.items():  # `keep` is the first
            try:
                record[key] = value_of(template, {**known, "number": number, **row})
            except DATA_ERRORS as error:
                columns = ", ".join(map(str, row))
                raise InputError(
                    f"{where}: no '{key}' can be made of the record ({error}), which holds {columns}: fix the record."
                ) from None
            if not record["keep"]:
                break
        else:
            number += 1
            yield where, record
