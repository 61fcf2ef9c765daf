"""Cut documents into passages.

    Document -> token ids of the whole document
             -> Passage(document, index, ids[start:end]) that ends at a paragraph or sentence wherever one is near

A document is tokenized once and sliced, so a passage's ids never depend on a prompt: all arms train on the same ones.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ctxft.data.documents import Document

PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
ENDS = ("at a document", "at a paragraph", "at a sentence", "inside a sentence")
SENTENCE_END = re.compile(r"[.!?][\"')\]\u201d\u2019]*(?=\s)")


@dataclass(frozen=True)
class Passage:
    """A slice of one document's token ids: what one training row learns.

    Args:
        id: of the passage: the document's id, "#", and the index.
        document: id of the document.
        index: counts the document's passages from 0.
        start: place of the first id among the document's token ids.
        last: whether the document really ends here; only then is EOS a target.
        ids: token ids.
        text: what they spell.
        reliable: whether the text is true; None where the corpus does not say.
        ends: where the passage ends: "at a document", "at a paragraph", "at a sentence" or "inside a sentence".
    """

    id: str
    document: str
    index: int
    start: int
    last: bool
    ids: array
    text: str
    reliable: bool | None = None
    ends: str = ""

    @property
    def targets(self) -> int:
        """Target tokens: the text's, and EOS where the document ends; the same in every arm."""
        return len(self.ids) + self.last


def cut_points(text: str, span_of: Callable[[int], Any], tokens: int, budget: int) -> list[tuple[int, str]]:
    """Choose where a tokenized document is cut, so that no piece exceeds the budget and pieces end at natural places.

    Args:
        text: the document.
        span_of: gives the character positions at which a token starts and ends; asked only where a cut may be.
        tokens: that the document has.
        budget: tokens a passage may have at most.

    Returns:
        (end of the passage as a token index, where that is) for each passage: "at a paragraph", "at a sentence", "inside
        a sentence" and, for the last, "at a document". A paragraph end in the second half of the budget is taken before
        a sentence end there, and that before a cut inside a sentence.

    Example:
        >>> cut_points("Ab. Cd.", lambda token: (2 * token, 2 * token + 2), tokens=4, budget=3)
        [(2, 'at a sentence'), (4, 'at a document')]
    """
    paragraphs = [match.start() for match in PARAGRAPH_END.finditer(text)]
    sentences = [match.end() for match in SENTENCE_END.finditer(text)]
    points, begin = [], 0
    while tokens - begin > budget:
        least, most = begin + budget // 2, begin + budget
        first, last = span_of(least)[0], span_of(most)[0]
        for kind, ends in (("at a paragraph", paragraphs), ("at a sentence", sentences)):
            place = bisect_right(ends, last) - 1
            if place >= 0 and ends[place] > first:
                # a span is less than the tuple of a position, which has no end, where it starts before it
                points.append((bisect_left(range(most), (ends[place],), least + 1, key=span_of), kind))
                break
        else:
            points.append((most, "inside a sentence"))
        begin = points[-1][0]
    return [*points, (tokens, "at a document")]


def cut(document: Document, tokenizer: PreTrainedTokenizerBase, budget: int) -> list[Passage]:
    """Tokenize a document once, without special tokens, and slice it into passages of at most ``budget`` tokens.

    Args:
        document: the document.
        tokenizer: of the model that will be trained.
        budget: text tokens a passage may have: the window less what surrounds the text.

    Returns:
        The passages in order; their ids joined are the document's ids.
    """
    return next(cut_each([document], tokenizer, budget))[0]


def cut_each(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, budget: int
) -> Iterator[tuple[list[Passage], int]]:
    """Yield the passages of each of several documents, which are tokenized together, and its tokens: faster than ``cut``."""
    texts = [document.text for document in documents]
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    for document, tokens in zip(documents, encoded.encodings or (), strict=True):
        yield _pieces(document, tokens.ids, tokens.token_to_chars, budget), len(tokens)


def _pieces(document: Document, ids: list[int], span_of: Callable[[int], Any], budget: int) -> list[Passage]:
    begin, start, passages = 0, span_of(0)[0] if ids else 0, []
    for index, (end, ends) in enumerate(cut_points(document.text, span_of, len(ids), budget)):
        stop = span_of(end)[0] if end < len(ids) else len(document.text)
        text, part = document.text[start:stop], array("i", ids[begin:end])
        where = (f"{document.id}#{index}", document.id, index, begin)
        passages.append(Passage(*where, end == len(ids), part, text, document.reliable, ends))
        begin, start = end, stop
    return passages
