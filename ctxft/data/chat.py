"""Render conversations by a tokenizer's chat template, and tokenize them so that no text can pose as a control token.

A template spells control tokens out ("</s>", "<|im_end|>"), and the tokenizer reads them. A text may spell the same: there it is
ordinary text, or whoever writes a question could end the user's turn and begin another. So a ``MARK`` is put inside each such
spelling before the template sees it, and the mark's tokens are taken out again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\U0010fffe"  # Unicode promises that this is never a character
END = "\U0010ffff"  # so is this one: it stands where a message ends
NOT_FOUND = (
    "the answers cannot be found in what the model's chat template writes, since it leaves out, repeats or moves messages: "
    "take a tokenizer with another template, or make each question with its answer a record."
)


def _spellings(tokenizer: PreTrainedTokenizerBase, mark: str = "") -> re.Pattern[str] | None:
    """Return a pattern of all control tokens as text, with a mark after the first letter, or None if there is none."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted(added | set(tokenizer.all_special_tokens), key=lambda name: (-len(name), name))
    return re.compile("|".join(re.escape(name[0] + mark + name[1:]) for name in names)) if names else None


def _guard(spellings: re.Pattern[str] | None, text: str) -> str:
    return spellings.sub(lambda match: match[0][0] + MARK + match[0][1:], text) if spellings else text


def guarded(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text in which no spelling of a control token is left whole; most texts stay as they are.

    Example:
        >>> from ctxft.models import load_tokenizer
        >>> guarded(load_tokenizer("practice-blind"), "plain text")
        'plain text'
    """
    return _guard(_spellings(tokenizer), text)


def unguarded(text: str) -> str:
    """Return a text without the marks of ``guarded``.

    Example:
        >>> unguarded("<" + MARK + "/s>")
        '</s>'
    """
    return text.replace(MARK, "")


def rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], answer: bool) -> str:
    """Return turns as the chat template writes them, each guarded.

    Args:
        tokenizer: with a chat template.
        turns: {"role", "content"}, the oldest first.
        answer: open the assistant's turn after them.

    Raises:
        InputError: the template refuses the turns.
    """
    spellings = _spellings(tokenizer)
    safe = [{key: _guard(spellings, text) for key, text in turn.items()} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=answer))
    except TemplateError as error:
        raise InputError(
            f"the model's chat template refuses the turns {', '.join(turn['role'] for turn in turns)} ({error}): put a "
            "system text into the first question, and let user and assistant take turns."
        ) from None


def _past(text: str, at: int, pieces: Sequence[str]) -> tuple[int, bool]:
    """Return where the pieces that a text has from a position on end, white space before them skipped, and whether it has all."""
    start = len(text) - len(text[at:].lstrip()) if "".join(pieces).strip() else at
    for piece in pieces:
        if not text.startswith(piece, start):
            return at, False
        at = start = start + len(piece)
    return at, True


def _marked(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], answer: bool) -> str:
    """Return turns as ``rendered`` does, with a mark where messages end; templates move those of the system elsewhere."""
    ended = []
    for turn in turns:
        content = turn["content"].rstrip()
        mark = "" if turn["role"] == "system" else END
        ended.append(turn | {"content": content + mark + turn["content"][len(content) :]})
    return rendered(tokenizer, ended, answer)


def rendered_answers(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], answers: Sequence[int]
) -> tuple[str, list[tuple[int, int]]]:
    """Return a conversation as the chat template writes it, and where answers are in it.

    An answer begins after what opens the assistant's turn, and ends after what closes it. Templates may write a message
    differently before others (without its reasoning, for example), so all are rendered at once, and a second time with a
    mark at the end of each message.

    Args:
        tokenizer: with a chat template.
        turns: {"role", "content"}, the oldest first; the last is the assistant's.
        answers: their numbers from 0; each comes after another turn.

    Returns:
        The text, as from ``rendered``; (begin, end) of each answer, in characters.

    Raises:
        InputError: the template refuses the turns, or leaves out, repeats or moves some, so that answers cannot be found.
    """
    text = rendered(tokenizer, turns, answer=False)
    if not answers:
        return text, []
    marked, spoken = _marked(tokenizer, turns, False), [n for n, turn in enumerate(turns) if turn["role"] != "system"]
    places = [match.start() - before for before, match in enumerate(re.finditer(END, marked))]
    if marked.replace(END, "") != text or len(places) != len(spoken):
        raise InputError(NOT_FOUND)
    ends = dict(zip(spoken, places, strict=True))
    before = [turn | {"content": turn["content"].rstrip()} for turn in turns[: answers[0]]]
    opening = _marked(tokenizer, before, True).rpartition(END)[2]
    closing = text[places[-1] :]
    closing, spellings, spans = closing.lstrip() or closing, _spellings(tokenizer), []
    pieces = re.split(f"({spellings.pattern})", closing) if spellings else [closing]
    for number in answers:
        question_end, end = ends[max(other for other in spoken if other < number)], ends[number]
        begin, whole = _past(text, question_end, [opening.lstrip() or opening])
        if not whole:  # a generation may begin with words that no answer has, "<think>" for example
            answer = _guard(spellings, turns[number]["content"].rstrip())
            backward = zip(reversed(text[question_end:end]), reversed(answer), strict=False)
            begin = end - sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], backward))
            if begin == end:
                raise InputError(NOT_FOUND)
        spans.append((begin, len(text) if number == len(turns) - 1 else _past(text, end, pieces)[0]))
    return text, spans


def encode_rendered(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Tokenize texts of ``rendered``: the template's control tokens are control tokens, those of a turn are text.

    Args:
        tokenizer: of the template.
        texts: the texts.
        special: add the special tokens that the tokenizer adds by itself.

    Returns:
        For each text (token ids, character position at which each token starts).

    Raises:
        InputError: the tokenizer merges a mark with its neighbor, so that it cannot be taken out.
    """
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    pattern = _spellings(tokenizer, MARK)
    results = []
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        marks = {match.start() + 1 for match in pattern.finditer(text)} if pattern and MARK in text else set()
        for start, end in offsets if marks else ():
            if end - start > 1 and marks & set(range(start, end)):
                raise InputError(f"the tokenizer reads {text[start - 8 : end + 8]!r} as a control token: change it.")
        kept = [
            (i, start) for i, (start, end) in zip(ids, offsets, strict=True) if not (end > start and start in marks)
        ]
        results.append(([i for i, _ in kept], [start for _, start in kept]))
    return results
