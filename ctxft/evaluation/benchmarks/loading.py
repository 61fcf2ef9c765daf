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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import jinja2.meta
import pyarrow
import pyarrow.parquet
import pydantic
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ctxft.evaluation.benchmarks.records import Benchmark, Question, Rows, Wording, evenly, in_turn, questions_of
from ctxft.evaluation.benchmarks.requests import examples_for
from ctxft.models import hub_errors, resolve_revision
from ctxft.storage import InputError, nearest, read_json, read_jsonl, read_text, read_yaml, shown
from ctxft.world.exams import EXAMS, practice_questions

FOLDER = Path(__file__).parent
FEWSHOT_KEY = "evaluation.num_fewshot"
JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
DATA_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
DEFAULTS = {"id": "{{ benchmark }}-{{ '%05d' % number }}", "subject": "{{ benchmark }}", "choices": "{{ labels }}"}


@functools.lru_cache(maxsize=1024)
def _compiled(template: str) -> Any:
    whole = re.fullmatch(r"\s*\{\{((?:(?!\}\}).)*)\}\}\s*", template, re.DOTALL)
    return JINJA.compile_expression(whole[1], undefined_to_none=False) if whole else JINJA.from_string(template).render


def evaluate(template: str, values: Mapping[str, object]) -> Any:
    """Return a template's value: of ``{{ one expression }}`` whatever it is, else text.

    Raises:
        jinja2.TemplateError: the template is none, or a value that it names is not there.

    Example:
        >>> evaluate("{{ options }}", {"options": ["a", "b"]}), evaluate("{{ n }}-th", {"n": 5})
        (['a', 'b'], '5-th')
    """
    value = _compiled(template)(values)
    if isinstance(value, jinja2.Undefined):
        raise jinja2.UndefinedError(value._undefined_message)
    return value


def _is_template(text: str) -> str:
    try:
        _compiled(text)
    except jinja2.TemplateError as error:
        raise ValueError(f"is no Jinja template ({error})") from None
    return text


Template = Annotated[str, pydantic.AfterValidator(_is_template)]


class Templates(pydantic.BaseModel):
    """How a record becomes a question: Jinja templates over its columns.

    A template that is one expression (``{{ options }}``) gives its value, any other gives text. Beside the columns they
    know ``benchmark``, ``part``, ``split``, ``labels``, ``file`` (its name) and ``number`` (of the record, from 0).

    Attributes:
        id, question, subject, context: texts.
        choices: a list of texts; by default the labels of the set.
        answer: an index from 0, or the text of a choice.
        keep: records for which this is false are left out.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Template | None = None
    question: Template | None = None
    choices: Template | None = None
    answer: Template | None = None
    subject: Template | None = None
    context: Template | None = None
    keep: Template | None = None


class HubTable(Templates):
    """A table on the Hugging Face hub; ``items`` where it publishes another number of them than the files."""

    path: str
    name: str | None = None
    split: str = "test"
    items: int | None = None


class Files(Templates):
    """Local files and how to read them.

    Attributes:
        pattern: regular expression, in any case, searched in "data-folder/path/of/file"; knows part, parts and split.
        format: csv, json (an object of records by key, or a list), jsonl, parquet, or text (a column ``line``); None
            takes it from the ending.
        columns: of a csv file; a first line with these names is its header.
        delimiter, quoted: of a csv file.
        encoding: of a text file.
        explode: a column of a json file whose list members each make a record.
        several: read all files that match, not exactly one.
    """

    pattern: Template
    format: Literal["csv", "json", "jsonl", "parquet", "text"] | None = None
    columns: list[str] = []
    delimiter: str = ","
    quoted: bool = True
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    explode: str | None = None
    several: bool = False


class Variant(pydantic.BaseModel):
    """One benchmark of a file: its parts (tables that are joined) and the published number of items.

    ``subset`` is the pattern of a JSON file, answers by id, that says which items belong to it; ``hub`` is whether the hub
    has it.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    parts: list[str] = [""]
    items: int | None = None
    subset: str | None = None
    hub: bool = True


class BenchmarkFile(Templates):
    """What a benchmark YAML file may hold; its templates hold where a hub table or files give none of their own.

    Attributes:
        about, source: one line on the set, and its publication.
        title: the records in words, for messages; knows part, parts and split.
        advice: what to put where, if the hub cannot be used ("put x.jsonl into DIR").
        benchmarks: name -> variant; by default one, with the name of the file.
        labels: the choices of every question, for sets of labeled texts.
        form: the form in which the set is always asked; None leaves it to the experiment.
        allow_empty: accept questions without text, which a few published sets hold.
        fewshot_split: the split of solved examples.
        wording: how its questions read, where that differs from the default.
        hub, files: where the records are.
    """

    about: str = ""
    source: str = ""
    title: Template = "the questions"
    advice: Template = "put its files into DIR"
    benchmarks: dict[str, Variant] = {}
    labels: list[str] | None = None
    form: str | None = None
    allow_empty: bool = False
    fewshot_split: str | None = None
    wording: Wording = Wording()
    hub: HubTable | None = None
    files: list[Files] = []


@functools.lru_cache(maxsize=256)
def read_declaration(path: Path) -> BenchmarkFile:
    """Read a benchmark YAML file; raises InputError that names all mistakes."""
    try:
        declared = BenchmarkFile.model_validate(read_yaml(path))
    except pydantic.ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{path}: {mistakes}.") from None
    return declared if declared.benchmarks else declared.model_copy(update={"benchmarks": {path.stem: Variant()}})


@functools.lru_cache(maxsize=16)
def declared_benchmarks(folders: tuple[Path, ...] = ()) -> Mapping[str, Path]:
    """Return name -> YAML file of the benchmarks of the kit and of plugin folders; two of one name are an InputError."""
    paths: dict[str, Path] = {}
    for path in (path for folder in (FOLDER, *folders) for path in sorted(Path(folder).glob("*.yaml"))):
        for name in read_declaration(path).benchmarks:
            if name in paths:
                raise InputError(f"{path}: the benchmark '{name}' is also in {paths[name]}: rename one.")
            paths[name] = path
    return paths


def benchmark_names(plugins: tuple[Path, ...] = ()) -> tuple[str, ...]:
    """Return the names that ``load_benchmark`` knows: of the practice world, of the kit, of plugin folders.

    Example:
        >>> "medqa" in benchmark_names()
        True
    """
    return (*EXAMS, *declared_benchmarks(plugins))


def load_benchmark(
    name: str,
    data: Path | None = None,
    revision: str | None = None,
    limit: int | None = None,
    num_fewshot: int = 0,
    plugins: tuple[Path, ...] = (),
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
        plugins: folders with YAML files that declare more benchmarks.

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
    data, path, known = (Path(data) if data is not None else None), Path(name), declared_benchmarks(plugins)
    if name in EXAMS:
        rows = ((f"practice world, record {n}", row) for n, row in enumerate(practice_questions(name), start=1))
        benchmark = Benchmark(name, questions_of(rows, "practice world"), "practice world")
    elif name in known:
        benchmark = _load_declared(known[name], name, data, revision, num_fewshot > 0)
    elif path.suffix == ".yaml":
        names = list(read_declaration(path).benchmarks)
        if len(names) > 1:
            raise InputError(f"{path} declares {', '.join(names)}: put its folder into `plugins` and name one of them.")
        _check_stem(path, names[0], plugins)
        benchmark = _load_declared(path, names[0], data, revision, num_fewshot > 0)
    elif path.suffix == ".jsonl":
        _check_stem(path, path.stem, plugins)
        benchmark = _load_own(path, num_fewshot > 0)
    else:
        names = benchmark_names(plugins)
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


def _check_stem(path: Path, name: str, plugins: tuple[Path, ...]) -> None:
    if name in benchmark_names(plugins):
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
    declared = read_declaration(path)
    variant = declared.benchmarks[name]
    if data is None and declared.hub is None and path.parent != FOLDER:
        data = path.parent
    source = _Source(declared, variant, name, data)
    if data is None:
        source.revision = source.pin(revision)
    questions, sources = source.read("test")
    dev = source.read(declared.fewshot_split)[0] if fewshot and declared.fewshot_split else ()
    more = ""
    if variant.subset:
        questions, more = _subset(questions, variant.subset, data, sources)
    expected = source.items or len(questions)
    notes = [f"{expected} items expected, {len(questions)} found{more}" if expected != len(questions) else ""]
    if empty := sum(not question.question for question in questions):
        notes.append(f"{empty} without text, as published")
    note = "; ".join(filter(None, notes))
    return Benchmark(
        name, questions, ", ".join(sources), source.revision, note, declared.form, tuple(dev), declared.wording
    )


class _Source:
    """Where the records of one benchmark are: a data folder, or the hub where that is None."""

    def __init__(self, declared: BenchmarkFile, variant: Variant, name: str, data: Path | None) -> None:
        self.declared, self.variant, self.name, self.data = declared, variant, name, data
        self.revision: str | None = None
        self.items = variant.items

    def words(self, template: str, split: str, *parts: str) -> str:
        """Fill in a template of the file that is no part of a question."""
        return str(evaluate(template, {"part": ", ".join(parts), "parts": self.variant.parts, "split": split}))

    def advice(self, split: str) -> str:
        return f"{self.words(self.declared.advice, split, *self.variant.parts)} and pass --data DIR"

    def pin(self, revision: str | None) -> str | None:
        """Return the hub commit that will be read."""
        if self.declared.hub is None or not self.variant.hub:
            title = self.words(self.declared.title, "test", *self.variant.parts)
            raise InputError(f"{title} are not on the hub as a table: {self.advice('test')}.")
        return resolve_revision(self.declared.hub.path, "dataset", revision, self.advice("test"))

    def read(self, split: str) -> tuple[tuple[Question, ...], list[str]]:
        """Return the questions of all parts of a split, and where they came from."""
        questions: list[Question] = []
        sources: list[str] = []
        for part in self.variant.parts:
            layout, rows, where = self.open(part, split)
            if isinstance(layout, HubTable) and layout.items:
                self.items = layout.items
            known = {"benchmark": self.name, "part": part, "split": split, "labels": self.declared.labels}
            questions += questions_of(self.records(layout, rows, known), where, self.declared.allow_empty)
            sources += [where] if where not in sources else []
        return tuple(questions), sources

    def open(self, part: str, split: str) -> tuple[Templates, Rows, str]:
        """Return the layout, the records and the source of one part."""
        hub = self.declared.hub if self.variant.hub else None
        hub_name = self.words(hub.name, split, part) if hub and hub.name else None
        hub_split = hub.split if hub and split == "test" else split
        if self.data is None:
            assert hub is not None  # else pin has refused
            return hub, _hub_rows(hub.path, hub_name, hub_split, self.revision, self.advice(split)), hub.path
        patterns: list[tuple[str, Templates]] = [(self.words(f.pattern, split, part), f) for f in self.declared.files]
        if hub:
            words = (hub.path.split("/")[1], hub_name or "")
            ahead = "".join(f"(?=.*{re.escape(word)})" for word in words)
            patterns.append((rf"^{ahead}.*{hub_split}[^/]*\.(parquet|jsonl)$", hub))
        found = _matching(self.data, patterns)
        title = self.words(self.declared.title, split, part)
        if not found:
            raise InputError(f"{title} were not found under {self.data}: {self.advice(split)}.")
        layout, paths = next(iter(found.values())), list(found)
        if len(found) > 1 and not (isinstance(layout, Files) and layout.several):
            several = ", ".join(map(str, paths))
            raise InputError(f"{title} were found more than once under {self.data}: keep one of {several}.")
        return layout, (row for path in paths for row in _file_rows(path, layout)), ", ".join(map(str, paths))

    def records(self, layout: Templates, rows: Rows, known: dict) -> Iterator[tuple[str, dict]]:
        """Yield records as ``questions_of`` wants them, each with where it is."""
        templates = dict(DEFAULTS)
        for place in (self.declared, layout):
            templates |= {key: getattr(place, key) for key in Templates.model_fields if getattr(place, key) is not None}
        if missing := [key for key in ("question", "answer") if key not in templates]:
            raise InputError(f"the file of benchmark '{self.name}' has no template for '{missing[0]}': add one.")
        keep = templates.pop("keep", "{{ true }}")
        number = 0
        for where, row in rows:
            values = {**known, "number": number, **row}
            if not _field(keep, "keep", values, row, where):
                continue
            record = {key: _field(template, key, values, row, where) for key, template in templates.items()}
            yield where, _labeled(record, self.declared.labels, where) if self.declared.labels else record
            number += 1


def _field(template: str, key: str, values: dict, row: dict, where: str) -> Any:
    try:
        return evaluate(template, values)
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


def _matching(data: Path, patterns: Iterable[tuple[str, Templates]]) -> dict[Path, Templates]:
    """Return the files below a folder that match a pattern, in order, with the first layout that does."""
    if not data.is_dir():
        raise InputError(f"{data} is not a folder: --data needs the folder that holds the benchmark files.")
    try:
        compiled = [(re.compile(pattern, re.IGNORECASE), layout) for pattern, layout in patterns]
    except re.error as error:
        raise InputError(
            f"the pattern {error.pattern!r} of a benchmark file is no regular expression ({error})."
        ) from None
    found: dict[Path, Templates] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        below = f"{data.resolve().name}/{path.relative_to(data).as_posix()}"
        for pattern, layout in compiled:
            if pattern.search(below):
                found.setdefault(path, layout)
    return found


def _subset(
    questions: tuple[Question, ...], pattern: str, data: Path | None, sources: list[str]
) -> tuple[tuple[Question, ...], str]:
    """Return the questions that a file of answers names, all where there is none, and what to add to the note."""
    paths = list(_matching(data, [(pattern, Templates())])) if data is not None else []
    if not paths:
        return questions, ": the file that names the test items is missing, so all labeled questions are used"
    if len(paths) > 1:
        raise InputError(f"{', '.join(map(str, paths))} both name the test items: keep one.")
    truth = read_json(paths[0])
    if not isinstance(truth, dict) or not truth:
        raise InputError(f"{paths[0]}: an object of answers by id is needed, found {shown(truth)}: fetch it again.")
    answers = {question.id: question.choices[question.answer] for question in questions}
    if wrong := [key for key, label in truth.items() if answers.get(key) != label]:
        raise InputError(f"{paths[0]} and {', '.join(sources)} differ at id '{wrong[0]}': take both from one release.")
    sources[-1] += f" (test half by {paths[0].name})"
    return tuple(question for question in questions if question.id in truth), ""


# --- records ----------------------------------------------------------------------------------------------------------


def _hub_rows(path: str, name: str | None, split: str, revision: str | None, advice: str) -> Rows:
    from datasets import load_dataset  # seconds to import, and only the hub needs it

    with hub_errors(path, "dataset", advice):
        table = load_dataset(path, name, split=split, revision=revision)
    where = f"{path} ({name})" if name else path
    return ((f"{where}, row {n}", dict(row)) for n, row in enumerate(table, start=1))


def _file_rows(path: Path, layout: Templates) -> Rows:
    """Yield (where it is, record) of a file."""
    kind = (layout.format if isinstance(layout, Files) else None) or path.suffix.removeprefix(".")
    readers = {"csv": _csv_rows, "json": _json_rows, "jsonl": _jsonl_rows, "text": _text_rows}
    for where, row in readers.get(kind, _parquet_rows)(path, layout):
        if not isinstance(row, dict):
            raise InputError(f"{where}: a record is needed, found {shown(row)}.")
        yield where, {"file": path.name, **row}


def _jsonl_rows(path: Path, _layout: Templates) -> Rows:
    return ((f"{path}, line {number}", row) for number, row in read_jsonl(path))


def _text_rows(path: Path, layout: Files) -> Rows:
    text = path.read_bytes().decode("latin-1") if layout.encoding == "latin-1" else read_text(path)
    return ((f"{path}, line {n}", {"line": line}) for n, line in enumerate(text.split("\n"), start=1) if line.strip())


def _json_rows(path: Path, layout: Files) -> Rows:
    table = read_json(path)
    if isinstance(table, list):
        table = dict(enumerate(table))
    if not isinstance(table, dict):
        raise InputError(f"{path}: records in an object or a list are needed, found {type(table).__name__}.")
    for key, row in table.items():
        where = f"{path}, id {key}"
        record = {"key": key, **row} if isinstance(row, dict) else row
        if not layout.explode:
            yield where, record
            continue
        members = record.get(layout.explode) if isinstance(record, dict) else None
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise InputError(f"{where}: '{layout.explode}' must be a list of records, found {shown(members)}.")
        yield from ((f"{where}, {layout.explode} {n}", {**record, **one, "index": n}) for n, one in enumerate(members))


def _csv_rows(path: Path, layout: Files) -> Rows:
    quoting = csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=layout.delimiter, quoting=quoting)
    names = list(layout.columns)
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


def _parquet_rows(path: Path, _layout: Templates) -> Rows:
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a parquet file that can be read ({error}): fetch it again.") from None
    return ((f"{path}, row {n}", row) for n, row in enumerate(rows, start=1))
