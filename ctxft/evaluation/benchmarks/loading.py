"""Load benchmarks: those that a YAML file declares, exams of the practice world, and a user's own JSON Lines file.

A YAML file declares one set, or its variants, in the spirit of lm-evaluation-harness's task files: a hub table, patterns
of local files with their format, and a Jinja template for each part of a question. Templates run in a sandbox.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta
import pyarrow
import pyarrow.parquet
from pydantic import Field

from ctxft.config import Config, load_yaml
from ctxft.evaluation.benchmarks.records import (
    JINJA,
    Benchmark,
    Question,
    Rows,
    Template,
    Wording,
    evenly,
    in_turn,
    questions_of,
)
from ctxft.evaluation.benchmarks.requests import examples_for
from ctxft.models import load_table, resolve_revision
from ctxft.storage import InputError, nearest, read_json, read_jsonl, read_text, shown
from ctxft.world.exams import EXAMS, practice_questions

FOLDER = Path(__file__).parent
FEWSHOT_KEY = "evaluation.num_fewshot"
DATA_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
DEFAULTS = {
    "keep": "{{ true }}",
    "id": "{{ benchmark }}-{{ '%05d' % number }}",
    "subject": "{{ benchmark }}",
    "choices": "{{ labels }}",
}


@functools.lru_cache(maxsize=1024)
def _compiled(template: str) -> Any:
    whole = re.fullmatch(r"\s*\{\{((?:(?!\}\}).)*)\}\}\s*", template, re.DOTALL)
    return JINJA.compile_expression(whole[1], undefined_to_none=False) if whole else JINJA.from_string(template).render


def value_of(template: str, values: Mapping[str, object]) -> Any:
    """Return a template's value: of ``{{ one expression }}`` whatever it is, else text.

    Raises:
        jinja2.TemplateError: the template is none, or a value that it names is not there.

    Example:
        >>> value_of("{{ options }}", {"options": ["a", "b"]}), value_of("{{ n }}-th", {"n": 5})
        (['a', 'b'], '5-th')
    """
    value = _compiled(template)(values)
    if isinstance(value, jinja2.Undefined):
        raise jinja2.UndefinedError(value._undefined_message)
    return value


class Templates(Config):
    """How a record becomes a question: Jinja templates over its columns.

    A template that is one expression (``{{ options }}``) gives its value, any other gives text. Beside the columns they
    know ``benchmark``, ``part``, ``split``, ``labels``, ``file`` (its name) and ``number`` (of the record, from 0).

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
        format: csv, json (an object of records by key, or a list), jsonl, parquet, or text (a column ``line``); None
            takes it from the ending.
        columns: of a csv file; a first line with these names is its header.
        delimiter, quoted: of a csv file.
        encoding: of a text file.
        explode: a column of a json file whose list members each make a record.
        several: read all files that match, not exactly one.
    """

    hub: str | None = None
    name: str = ""
    split: str = "test"
    items: int | None = None
    pattern: str | None = None
    format: Literal["csv", "json", "jsonl", "parquet", "text"] | None = None
    columns: list[str] = Field(default_factory=list)
    delimiter: str = ","
    quoted: bool = True
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    explode: str | None = None
    several: bool = False


class Variant(Config):
    """One benchmark of a file: its parts (tables that are joined) and the published number of items.

    ``subset`` is the pattern of a JSON file, answers by id, that says which items belong to it; ``hub`` is whether the hub
    has it.
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
    form: str | None = None
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


def load_benchmark(
    name: str,
    data: Path | None = None,
    revision: str | None = None,
    limit: int | None = None,
    num_fewshot: int = 0,
) -> Benchmark:
    """Load a benchmark by name, or custom questions by path.

    Args:
        name: one of ``benchmark_names``; the path of a .jsonl file with id, question, choices, answer (an index from 0, or
            the text of a choice) and optionally subject and context on each line; or the path of a YAML file that
            declares one benchmark (see ``BenchmarkFile``).
        data: a folder that holds benchmark files, in the layouts of their authors or of the hub; None reads the Hugging
            Face hub.
        revision: a commit or tag of the hub table; None takes its main branch.
        limit: at most N questions, taken in turn from each subject, or evenly spaced from sets of labeled texts; None
            takes all.
        num_fewshot: solved examples to be shown before each question; MMLU has five a subject, a custom file x.jsonl those
            of x.dev.jsonl next to it; the other sets have none.

    Returns:
        The benchmark. Its ``note`` is not empty if the source does not hold the published number of items.

    Raises:
        InputError: unknown name, file missing or ambiguous, hub out of reach or gated, columns missing, a record that is
            no question, more examples wanted than there are.

    Example:
        >>> load_benchmark("practice-mmlu", limit=3).chance
        0.25
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, found {limit}.")
    data, path, known = (Path(data) if data is not None else None), Path(name), declared_benchmarks()
    if name in EXAMS:
        rows = ((f"practice world, record {n}", row) for n, row in enumerate(practice_questions(name), start=1))
        benchmark = Benchmark(name, questions_of(rows, "practice world"), "practice world")
    elif name in known:
        benchmark = _load_declared(known[name], name, data, revision, num_fewshot > 0)
    elif path.suffix == ".yaml":
        names = list(read_declaration(path).benchmarks)
        if len(names) > 1:
            raise InputError(f"{path} declares {', '.join(names)}: keep one in a file.")
        _check_stem(path, names[0])
        benchmark = _load_declared(path, names[0], data, revision, num_fewshot > 0)
    elif path.suffix == ".jsonl":
        _check_stem(path, path.stem)
        benchmark = _load_own(path, num_fewshot > 0)
    else:
        names = benchmark_names()
        raise InputError(
            f"unknown benchmark '{name}'{nearest(name, names)}; known: {', '.join(names)}, or the path of a .jsonl or"
            " .yaml file."
        )
    choose = evenly if benchmark.form == "labels" else in_turn
    benchmark = dataclasses.replace(benchmark, questions=choose(benchmark.questions, limit))
    _check_fewshot(benchmark, num_fewshot)
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


def _load_own(path: Path, fewshot: bool) -> Benchmark:
    def read(path: Path) -> tuple[Question, ...]:
        return questions_of(((f"{path}, line {n}", row) for n, row in read_jsonl(path)), str(path))

    questions, dev = read(path), ()
    if fewshot:
        examples = path.with_suffix(".dev.jsonl")
        if not examples.exists():
            raise InputError(f"{examples} does not exist: put solved questions there, or set {FEWSHOT_KEY} to 0.")
        dev, scored = read(examples), {question.hash for question in questions}
        if shown_too := [example.id for example in dev if example.hash in scored]:
            raise InputError(
                f"{examples}: '{shown_too[0]}' is also a question of {path}: a question that is scored must not be shown."
            )
    return Benchmark(path.stem, questions, str(path), dev=dev)


def _check_fewshot(benchmark: Benchmark, num_fewshot: int) -> None:
    if num_fewshot < 0:
        raise InputError(f"{FEWSHOT_KEY} must be 0 or more, found {num_fewshot}.")
    if not num_fewshot:
        return
    fewest = min(len(examples_for(benchmark, question)) for question in benchmark.questions)
    if fewest < num_fewshot:
        raise InputError(
            f"benchmark '{benchmark.name}' has {fewest} solved examples to show, but {num_fewshot} are wanted: set"
            f" {FEWSHOT_KEY} to at most {fewest} for it."
        )


def _load_declared(path: Path, name: str, data: Path | None, revision: str | None, fewshot: bool) -> Benchmark:
    """Load a benchmark of a YAML file; one that names no hub table and is not the kit's is read beside its own files."""
    reader = _Reader(path, name, data, revision)
    file, more = reader.file, ""
    questions, source = reader.read("test")
    if reader.variant.subset:
        questions, source, more = reader.subset(questions, source)
    dev = reader.read(file.fewshot_split)[0] if fewshot and file.fewshot_split else ()
    notes = []
    if reader.items not in (None, len(questions)):
        notes.append(f"{reader.items} items expected, {len(questions)} found{more}")
    if empty := sum(not question.question for question in questions):
        notes.append(f"{empty} without text, as published")
    return Benchmark(name, questions, source, reader.revision, "; ".join(notes), file.form, dev, file.wording)


class _Reader:
    """Reads one benchmark from a data folder, or from the hub where there is none."""

    def __init__(self, path: Path, name: str, data: Path | None, revision: str | None) -> None:
        self.file = read_declaration(path)
        self.name, self.variant = name, self.file.benchmarks[name]
        self.items, self.revision = self.variant.items, None
        self.hub = next((source for source in self.file.sources if source.hub and self.variant.hub), None)
        self.data = path.parent if data is None and not self.hub and path.parent != FOLDER else data
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

    def read(self, split: str) -> tuple[tuple[Question, ...], str]:
        """Return the questions of all parts of a split, and where they came from."""
        questions: list[Question] = []
        places: list[str] = []
        for part in self.variant.parts:
            source, rows, place = self._hub_rows(part, split) if self.data is None else self._files(part, split)
            known = {"benchmark": self.name, "part": part, "split": split, "labels": self.file.labels}
            questions += questions_of(_records(self.file, source, rows, known), place, self.file.allow_empty)
            places.append(place)
            self.items = source.items or self.items
        return tuple(questions), ", ".join(dict.fromkeys(places))

    def _hub_rows(self, part: str, split: str) -> tuple[Source, Rows, str]:
        assert self.hub and self.hub.hub
        name = self.fill(self.hub.name, part, split) or None
        hub_split = self.hub.split if split == "test" else split
        table = load_table(self.hub.hub, name, hub_split, self.revision, self.advice(split))
        place = f"{self.hub.hub} ({name})" if name else self.hub.hub
        return self.hub, ((f"{place}, row {n}", dict(row)) for n, row in enumerate(table, start=1)), self.hub.hub

    def _files(self, part: str, split: str) -> tuple[Source, Rows, str]:
        sources = {}
        for source in self.file.sources:
            if source.pattern:
                sources |= dict.fromkeys(self._matching(self.fill(source.pattern, part, split)), source)
        title, paths = self.fill(self.file.title, part, split), sorted(sources)
        if not paths:
            raise InputError(f"{title} were not found under {self.data}: {self.advice(split)}.")
        source, place = sources[paths[0]], ", ".join(map(str, paths))
        if len(paths) > 1 and not source.several:
            raise InputError(f"{title} were found more than once under {self.data}: keep one of {place}.")
        return source, (row for path in paths for row in _file_rows(path, source)), place

    def _matching(self, pattern: str) -> list[Path]:
        """Return the files below the data folder that match a pattern."""
        data = self.data
        if data is None or not data.is_dir():
            raise InputError(f"{data} is not a folder: --data needs the folder that holds the benchmark files.")
        try:
            search = re.compile(pattern, re.IGNORECASE).search
        except re.error as error:
            raise InputError(
                f"the pattern {pattern!r} of a benchmark file is no regular expression ({error})."
            ) from None
        files = (path for path in data.rglob("*") if path.is_file())
        return [path for path in files if search(f"{data.resolve().name}/{path.relative_to(data).as_posix()}")]

    def subset(self, questions: tuple[Question, ...], source: str) -> tuple[tuple[Question, ...], str, str]:
        """Return the questions that a file of answers names (all where it is missing), their source, more for the note."""
        paths = self._matching(self.variant.subset or "") if self.data else []
        if not paths:
            return (
                questions,
                source,
                ": the file that names the test items is missing, so all labeled questions are used",
            )
        truth = read_json(paths[0])
        if not isinstance(truth, dict) or not truth:
            raise InputError(f"{paths[0]}: an object of answers by id is needed, found {shown(truth)}: fetch it again.")
        answers = {question.id: question.choices[question.answer] for question in questions}
        if wrong := [key for key, label in truth.items() if answers.get(key) != label]:
            raise InputError(f"{paths[0]} and {source} differ at id '{wrong[0]}': take both from one release.")
        half = tuple(question for question in questions if question.id in truth)
        return half, f"{source} (test half by {paths[0].name})", ""


def _records(file: BenchmarkFile, source: Source, rows: Rows, known: dict) -> Iterator[tuple[str, dict]]:
    """Yield records as ``questions_of`` wants them, each with where it is."""
    fields = set(Templates.model_fields)
    templates = DEFAULTS | file.model_dump(include=fields, exclude_none=True)
    templates |= source.model_dump(include=fields, exclude_none=True)
    if missing := [key for key in ("question", "answer") if key not in templates]:
        raise InputError(f"the file of benchmark '{known['benchmark']}' has no template for '{missing[0]}': add one.")
    number = 0
    for where, row in rows:
        values = {**known, "number": number, **row}
        record = {}
        for key, template in templates.items():  # `keep` is the first
            record[key] = _field(template, key, values, row, where)
            if not record["keep"]:
                break
        else:
            number += 1
            yield where, _labeled(record, file.labels, where) if file.labels else record


def _field(template: str, key: str, values: dict, row: dict, where: str) -> Any:
    try:
        return value_of(template, values)
    except DATA_ERRORS as error:
        wanted = jinja2.meta.find_undeclared_variables(JINJA.parse(template))
        if missing := sorted(wanted - set(values)):
            columns = ", ".join(map(str, row))
            raise InputError(f"{where} lacks {', '.join(missing)}: columns found: {columns}.") from None
        raise InputError(f"{where}: no '{key}' can be made of the record ({error}): fix the record.") from None


def _labeled(record: dict, labels: list[str], where: str) -> dict:
    """Return the record with its label as a choice, whatever the case; white space around the text goes."""
    answer, text = record["answer"], record["question"]
    if isinstance(answer, str):
        answer = {label.lower(): label for label in labels}.get(answer.lower())
        if answer is None:
            raise InputError(
                f"{where}: the label {shown(record['answer'])} is none of {', '.join(labels)}: fix the record."
            )
    return {**record, "answer": answer, "question": text.strip() if isinstance(text, str) else text}


def _file_rows(path: Path, source: Source) -> Rows:
    """Yield (where it is, record) of a file."""
    readers = {"csv": _csv_rows, "json": _json_rows, "jsonl": _jsonl_rows, "text": _text_rows}
    reader = readers.get(source.format or path.suffix.removeprefix("."), _parquet_rows)
    for where, row in reader(path, source):
        if not isinstance(row, dict):
            raise InputError(f"{where}: a record is needed, found {shown(row)}.")
        yield where, {"file": path.name, **row}


def _jsonl_rows(path: Path, _source: Source) -> Rows:
    return ((f"{path}, line {number}", row) for number, row in read_jsonl(path))


def _text_rows(path: Path, source: Source) -> Rows:
    text = path.read_bytes().decode("latin-1") if source.encoding == "latin-1" else read_text(path)
    return ((f"{path}, line {n}", {"line": line}) for n, line in enumerate(text.split("\n"), start=1) if line.strip())


def _json_rows(path: Path, source: Source) -> Rows:
    table = read_json(path)
    if isinstance(table, list):
        table = dict(enumerate(table))
    if not isinstance(table, dict):
        raise InputError(f"{path}: records in an object or a list are needed, found {type(table).__name__}.")
    for key, row in table.items():
        where = f"{path}, id {key}"
        record = {"key": key, **row} if isinstance(row, dict) else row
        if not source.explode:
            yield where, record
            continue
        members = record.get(source.explode) if isinstance(record, dict) else None
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise InputError(f"{where}: '{source.explode}' must be a list of records, found {shown(members)}.")
        yield from ((f"{where}, {source.explode} {n}", {**record, **one, "index": n}) for n, one in enumerate(members))


def _csv_rows(path: Path, source: Source) -> Rows:
    quoting = csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=source.delimiter, quoting=quoting)
    names = list(source.columns)
    try:
        for fields in reader:
            stripped = [field.strip() for field in fields]
            if not fields:
                continue
            if reader.line_num == 1 and (not names or set(names) <= set(stripped)):
                names = stripped
            elif len(fields) != len(names):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(names)} fields ({', '.join(names)}) are needed, found"
                    f" {len(fields)}: check the quotes."
                )
            else:
                yield f"{path}, line {reader.line_num}", dict(zip(names, fields, strict=True))
    except csv.Error as error:  # a field without end, for example
        raise InputError(f"{path}, line {reader.line_num}: not a CSV file ({error}): check the quotes.") from None


def _parquet_rows(path: Path, _source: Source) -> Rows:
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a parquet file that can be read ({error}): fetch it again.") from None
    return ((f"{path}, row {n}", row) for n, row in enumerate(rows, start=1))
