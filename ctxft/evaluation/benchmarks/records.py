"""Define questions and benchmarks, and check records one by one, so that no bad item is ever scored."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
import string
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator, Field

from ctxft.config import Config
from ctxft.data.tables import check_id
from ctxft.storage import InputError, check_known, sha256, shown

LETTERS = string.ascii_uppercase
JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
# What a template raises for values that it cannot use.
DATA_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
WORDING_NAMES = ("question", "context", "choices", "lettered", "subject", "task")  # that a wording's template may use
Form = Literal["mcf", "cloze", "labels"]


# --- templates --------------------------------------------------------------------------------------------------------


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


def _parsed(template: str) -> str:
    try:
        JINJA.from_string(template)
    except jinja2.TemplateError as error:
        raise ValueError(f"is no Jinja template ({str(error).rstrip('.')}).") from None
    return template


def _wording(template: str) -> str:
    for name in sorted(jinja2.meta.find_undeclared_variables(JINJA.parse(_parsed(template)))):
        check_known(name, WORDING_NAMES, "name in a template of wording:")
    return template


Template = Annotated[str, AfterValidator(_parsed)]
WordingTemplate = Annotated[str, AfterValidator(_wording)]


class Wording(Config):
    """How the questions of a benchmark read, where that differs from the default (see ``requests.FORMS``).

    Templates know question, context, choices, lettered (a line for each choice, "A. heart"), subject and task.

    Attributes:
        task: what the labels say, a clause before "Answer with ...".
        description: form -> Jinja template of what is written once before all examples and the question.
        question: form -> Jinja template of the question up to "Answer:".
        fewshot_by_subject: show examples of the question's own subject only.
    """

    task: str = "Tell which label fits a text"
    description: dict[Form, WordingTemplate] = Field(default_factory=dict)
    question: dict[Form, WordingTemplate] = Field(default_factory=dict)
    fewshot_by_subject: bool = False


# --- questions --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Question:
    """One question with its choices; ``answer`` is the index of the right one, ``context`` a text that it is about.

    For sets of labelled texts (sentiment, topic) ``question`` is the text and ``choices`` are the labels.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    context: str = dataclasses.field(default="", repr=False)  # an abstract is too long to print

    @property
    def hash(self) -> str:
        """SHA-256 of question, choices, answer and context: two runs compare an item only if it is the same text."""
        return sha256([self.question, list(self.choices), self.answer, *([self.context] if self.context else [])])


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Questions under one name, where they came from, and a note on what a reader of their numbers should know.

    Attributes:
        name: as in a config.
        questions: the items that are scored.
        source: file or hub id.
        revision: the hub commit; None for files.
        note: where they are not the published items (both numbers), or hold choices that repeat; else "".
        form: the form that these questions always have; None leaves it to the experiment.
        dev: solved examples that may be shown before a question (few-shot); empty unless wanted.
        wording: how the questions read.
    """

    name: str
    questions: tuple[Question, ...]
    source: str
    revision: str | None = None
    note: str = ""
    form: str | None = None
    dev: tuple[Question, ...] = ()
    wording: Wording = dataclasses.field(default_factory=Wording)

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
        choices = {question.choices for question in self.questions}
        return choices.pop() if len(choices) == 1 and len(self.questions) > 1 else None

    @property
    def repeated(self) -> int:
        """The number of questions whose right choice is there twice, so that one of its two places counts as wrong."""
        texts = [[choice.strip() for choice in question.choices] for question in self.questions]
        return sum(own.count(own[q.answer]) > 1 for own, q in zip(texts, self.questions, strict=True))

    def only(self, ids: Collection[str]) -> Benchmark:
        """Return the benchmark with only the questions of these ids, in their old order."""
        return dataclasses.replace(self, questions=tuple(q for q in self.questions if q.id in ids))

    def first(self, limit: int | None) -> Benchmark:
        """Return the benchmark with ``limit`` questions, in their old order.

        The first of each subject are taken before the second of any; of labeled texts, which some files sort by label, evenly
        spaced ones.
        """
        count = len(self.questions)
        seen: dict[str, Any] = collections.defaultdict(itertools.count)
        if self.form == "labels" and limit is not None and limit < count:
            chosen = [number * count // limit for number in range(limit)]
        else:
            ranks = [next(seen[question.subject]) for question in self.questions]
            chosen = sorted(sorted(range(count), key=ranks.__getitem__)[:limit])
        return dataclasses.replace(self, questions=tuple(self.questions[number] for number in chosen))


def questions_of(rows: Iterable[tuple[str, dict]], source: str, blank: bool = False) -> tuple[Question, ...]:
    """Check records one by one.

    Args:
        rows: (where it is, {"id", "question", "choices", "answer" and perhaps "subject", "context"}).
        source: named in the error if there is no record.
        blank: accept a question without text, for published sets that hold some.

    Raises:
        InputError: a record that is no question, two records with one id, or no record at all.
    """
    seen: set[str] = set()
    questions = tuple(_question(row, where, check_id(row.get("id"), where, seen), blank) for where, row in rows)
    if not questions:
        raise InputError(f"{source} holds no question: give one with at least one.")
    return questions


def _question(row: dict, where: str, id_: str, blank: bool) -> Question:
    text, choices, answer = (row.get(key) for key in ("question", "choices", "answer"))
    where = f"{where} (id '{id_}')"
    if not isinstance(text, str) or not (blank or text.strip()):
        raise InputError(f"{where}: the record has no 'question': add its text.")
    choices = list(choices) if isinstance(choices, (list, tuple)) else []
    texts = all(isinstance(choice, str) and choice.strip() for choice in choices)
    if not texts or not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"{where}: 'choices' must be a list of 2 to {len(LETTERS)} texts that are not empty.")
    if isinstance(answer, str):
        if choices.count(answer) != 1:
            raise InputError(
                f"{where}: the answer {shown(answer)} must be the text of exactly one choice, or an index from 0."
            )
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise InputError(f"{where}: the answer {shown(answer)} is outside the choices 0 to {len(choices) - 1}.")
    context = row.get("context") or ""
    if not isinstance(context, str):
        raise InputError(f"{where}: 'context' must be a text, found {type(context).__name__}.")
    return Question(id_, text, tuple(choices), answer, str(row.get("subject") or "all"), context)
