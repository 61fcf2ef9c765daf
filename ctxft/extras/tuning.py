"""Pairs of a prompt and a passage go in; the lines that a tuning service takes come out, once its limits are kept.

    chat    {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": passage}]}
    gemini  {"contents": [{"role": "user", "parts": [{"text": prompt}]}, {"role": "model", "parts": [{"text": passage}]}]}
    csv     input,output

A service counts tokens with a tokenizer that is not here. A token stands for at least one byte of UTF-8, so an example has
at most as many tokens as bytes, and a few for its turns: this bound is checked in place of the tokens. It is two to five
times what English text takes; passages are far below the limits anyway.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ctxft.storage import InputError, check_known

TURNS = 16  # tokens for the marks of two turns, more than any chat form known takes


@dataclass(frozen=True)
class Pair:
    """One example: the id of a passage, the prompt before it ("" for none), the passage's text."""

    passage: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Form:
    """A form of file and the limits that its service documents; None where it documents none.

    Attributes:
        service: whose form it is.
        line: writes one pair, with its line end.
        head: the first line, or "".
        least, most: examples in a file.
        file_bytes: size of the file; a documented "MB" or "GB" is taken as the smaller, decimal one.
        tokens: of an example, prompt and passage together.
        prompt_characters, text_characters: of one prompt, of one passage.
        bare: whether a turn of the user may be empty.
        source: where the limits stand.
        looked_up: when they were read there.
    """

    service: str
    line: Callable[[Pair], str]
    least: int
    most: int | None
    file_bytes: int
    tokens: int | None
    prompt_characters: int | None
    text_characters: int | None
    bare: bool
    source: tuple[str, ...]
    looked_up: str
    head: str = ""


def _chat(pair: Pair) -> str:
    turns = [{"role": "user", "content": pair.prompt}, {"role": "assistant", "content": pair.text}]
    return json.dumps({"messages": turns}, ensure_ascii=False) + "\n"


def _gemini(pair: Pair) -> str:
    turns = [{"role": role, "parts": [{"text": text}]} for role, text in (("user", pair.prompt), ("model", pair.text))]
    return json.dumps({"contents": turns}, ensure_ascii=False) + "\n"


def _csv(pair: Pair) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([pair.prompt, pair.text])
    return line.getvalue()


FORMS = {
    "chat": Form(
        service="OpenAI supervised fine-tuning",
        line=_chat,
        least=10,
        most=None,
        file_bytes=512 * 10**6,
        tokens=65_536,  # of gpt-4.1, gpt-4o and their mini models; of gpt-3.5-turbo only 16,385
        prompt_characters=None,
        text_characters=None,
        bare=True,  # the schema of a user's message asks for a string, of any length
        source=(
            "https://developers.openai.com/api/docs/guides/supervised-fine-tuning",
            "https://platform.openai.com/docs/api-reference/files/create",
            "https://github.com/MicrosoftDocs/azure-ai-docs/blob/main/articles/ai-foundry/openai/includes/fine-tune-models.md",
        ),
        looked_up="2026-11-25",
    ),
    "gemini": Form(
        service="supervised tuning of Gemini on Vertex AI",
        line=_gemini,
        least=1,  # 100 are recommended to begin with; an earlier edition of the page asked for 16
        most=10_000_000,
        file_bytes=10**9,
        tokens=131_072,
        prompt_characters=None,
        text_characters=None,
        bare=False,
        source=("https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/gemini-supervised-tuning",),
        looked_up="2026-11-25",
    ),
    "csv": Form(
        service="tuning of Gemini 1.5 Flash in Google AI Studio (ended in 2025)",
        line=_csv,
        least=20,
        most=None,
        file_bytes=4 * 10**6,
        tokens=None,
        prompt_characters=40_000,
        text_characters=5_000,
        bare=False,
        source=(
            "https://ai.google.dev/gemini-api/docs/model-tuning",
            "https://ai.google.dev/gemini-api/docs/model-tuning/tutorial",
        ),
        looked_up="2026-11-25",
        head="input,output\n",
    ),
}


def form_named(name: str) -> Form:
    """Return a form by its name; raises InputError where there is none."""
    return FORMS[check_known(name, FORMS, "form")]


def lines_of(pairs: Iterable[Pair], form: str) -> Iterator[str]:
    """Yield the lines of a file in a service's form, each with its line end.

    Args:
        pairs: the examples, in the order in which they are written.
        form: a name of ``FORMS``.

    Raises:
        InputError: the form is unknown.

    Example:
        >>> list(lines_of([Pair("d-0", "Read, then doubt.", "Salt melts ice.")], "csv"))
        ['input,output\\n', '"Read, then doubt.",Salt melts ice.\\n']
    """
    how = form_named(form)
    if how.head:
        yield how.head
    yield from map(how.line, pairs)


def check_limits(pairs: Sequence[Pair], form: str) -> dict[str, dict]:
    """Hold examples against the documented limits of a service, before anything is written.

    Args:
        pairs: the examples.
        form: a name of ``FORMS``.

    Returns:
        For each limit that the service has, {"found", "least" or "most"}: "examples", "bytes of the file", "tokens of an
        example, at most" (the bound that stands at the top of this module), "characters of a prompt", "characters of a
        passage". What was found of an example is the largest.

    Raises:
        InputError: a limit is broken (the passage is named, with its length), a passage is empty, or a prompt is and the
            service wants one.

    Example:
        >>> check_limits([Pair(str(n), "Read.", "Salt melts ice.") for n in range(20)], "csv")["examples"]
        {'found': 20, 'least': 20}
    """
    how = form_named(form)
    _check_turns(pairs, how)
    found = {"examples": {"found": len(pairs), "least": how.least} | ({"most": how.most} if how.most else {})}
    if len(pairs) < how.least or (how.most and len(pairs) > how.most):
        wanted = f"at least {how.least}" + (f" and at most {how.most}" if how.most else "")
        raise InputError(f"{how.service} takes {wanted} examples, and this run has {len(pairs)} passages.")
    for what, most, size in (
        ("tokens of an example, at most", how.tokens, _bound),
        ("characters of a prompt", how.prompt_characters, lambda pair: len(pair.prompt)),
        ("characters of a passage", how.text_characters, lambda pair: len(pair.text)),
    ):
        if most:
            found[what] = {"found": _largest(pairs, how, what, most, size), "most": most}
    size = sum(len(line.encode()) for line in lines_of(pairs, form))
    if size > how.file_bytes:
        raise InputError(
            f"{how.service} takes files of at most {how.file_bytes} bytes, and this one would have {size}: "
            "export a smaller corpus."
        )
    return found | {"bytes of the file": {"found": size, "most": how.file_bytes}}


def _bound(pair: Pair) -> int:
    return len(pair.prompt.encode()) + len(pair.text.encode()) + TURNS


def _largest(pairs: Sequence[Pair], how: Form, what: str, most: int, size: Callable[[Pair], int]) -> int:
    """Return the largest size of an example, or refuse it by the name of its passage."""
    largest = max(pairs, key=size)
    if size(largest) > most:
        over = sum(size(pair) > most for pair in pairs)
        raise InputError(
            f"passage '{largest.passage}' has {size(largest)} {what.removesuffix(', at most')}"
            f"{' by the bound of one a byte' if what.startswith('tokens') else ''}, and {how.service} takes {most} "
            f"({over} of {len(pairs)} passages are over it): lower train.max_length, which cuts passages, in a new run."
        )
    return size(largest)


def _check_turns(pairs: Sequence[Pair], how: Form) -> None:
    for pair in pairs:
        if not pair.text.strip():
            raise InputError(
                f"passage '{pair.passage}' is blank, and {how.service} trains on no empty turn: remove it."
            )
        if not pair.prompt and not how.bare:
            raise InputError(
                f"passage '{pair.passage}' has no prompt, and {how.service} takes no empty turn of the user: choose an arm "
                "with prompts, or the form chat."
            )
