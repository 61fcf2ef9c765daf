"""Render conversations by a tokenizer's chat template, and tokenize them so that no text can pose as a control token.

A template spells control tokens out ("</s>", "<|im_end|>"), and the tokenizer reads them. A text may spell the same: there it is
ordinary text, or whoever writes a question could end the user's turn and begin another. So a ``MARK`` is put inside each such
spelling before the template sees it, and the mark's tokens are taken out again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\U0010fffe"  # Unicode promises that this is never a character


def _spellings(tokenizer: PreTrainedTokenizerBase, mark: str = "") -> re.Pattern[str] | None:
    """Return a pattern of all control tokens as text, with a mark after the first letter, or None if there is none."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted(added | set(tokenizer.all_special_tokens), key=lambda name: (-len(name), name))
    return re.compile("|".join(re.escape(name[0] + mark + name[1:]) for name in names)) if names else None


def guarded(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text in which no spelling of a control token is left whole; most texts stay as they are.

    Example:
        >>> from ctxft.models import load_tokenizer
        >>> guarded(load_tokenizer("practice-blind"), "plain text")
        'plain text'
    """
    spellings = _spellings(tokenizer)
    return spellings.sub(lambda match: match[0][0] + MARK + match[0][1:], text) if spellings else text


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
    """
    safe = [{key: guarded(tokenizer, text) for key, text in turn.items()} for turn in turns]
    return str(tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=answer))


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
