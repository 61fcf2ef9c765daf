"""Passages go in; the documents they were cut from come out, found by their words, as text and as HTML with every cut shown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ctxft.storage import check_known

if TYPE_CHECKING:
    from ctxft.data.passages import Passage

KEPT, HELD_OUT = "kept", "held out"
WHICH = ("all documents", KEPT, HELD_OUT, "reliable", "not reliable", "without a label")
SHOWN = 40  # passages of a document on one view
BOX = "border-left:4px solid #0072B2;padding:.1em .7em;margin:.4em 0;white-space:pre-wrap;overflow-wrap:anywhere"


@dataclass(frozen=True)
class Sliced:
    """A document as the passages that it was cut into, and what became of it: ``KEPT`` or ``HELD_OUT``."""

    id: str
    fate: str
    passages: tuple[Passage, ...]

    @property
    def text(self) -> str:
        """The whole text: passages are slices that touch."""
        return "".join(passage.text for passage in self.passages)

    @property
    def label(self) -> str:
        """ "reliable", "not reliable", or "without a label"."""
        return {True: "reliable", False: "not reliable", None: "without a label"}[self.passages[0].reliable]

    @property
    def title(self) -> str:
        """What it is, in words."""
        tokens, size = sum(len(passage.ids) for passage in self.passages), len(self.passages)
        return f"{self.id}: {self.fate}, {self.label}, {size} passage{'s' * (size > 1)}, {tokens} tokens"


def documents_of(kept: Iterable[Passage], held_out: Iterable[Passage] = ()) -> list[Sliced]:
    """Return the documents of a corpus, those that are kept first; the passages of each stand together, in order."""
    found = []
    for fate, passages in ((KEPT, kept), (HELD_OUT, held_out)):
        for name, own in groupby(passages, key=lambda passage: passage.document):
            found.append(Sliced(name, fate, tuple(own)))
    return found


def find_documents(documents: Sequence[Sliced], words: str = "", which: str = WHICH[0]) -> list[Sliced]:
    """Return the documents whose text or id holds some words as they stand (case aside), of one kind.

    Args:
        documents: from ``documents_of``.
        words: "" finds all.
        which: one of ``WHICH``.
    """
    check_known(which, WHICH, "kind of document")
    pattern = re.compile(re.escape(words), re.IGNORECASE)
    of_kind = (one for one in documents if which in (WHICH[0], one.fate, one.label))
    return [one for one in of_kind if pattern.search(one.text) or pattern.search(one.id)]


def passage_titles(document: Sliced) -> list[str]:
    """Return a line about each passage of a document: its number, tokens and how it ends."""
    return [f"passage {passage.index}: {len(passage.ids)} tokens, ends {passage.ends}" for passage in document.passages]


def document_text(document: Sliced, first: int = 0) -> str:
    """Return a document as text, its passages apart; at most ``SHOWN`` of them, from number ``first`` on (the first is 0)."""
    lines = [document.title]
    for title, passage in _shown(document, first):
        lines += ["", f"[{title}]", passage.text]
    return "\n".join(lines)


def document_html(document: Sliced, words: str = "", first: int = 0) -> str:
    """Return a document as HTML, a box for each passage, with the words that were looked for marked."""
    boxes = [
        f'<div><b>{html.escape(title)}</b><div style="{BOX}">{_marked(passage.text, words)}</div></div>'
        for title, passage in _shown(document, first)
    ]
    return f"<h4>{html.escape(document.title)}</h4>{''.join(boxes)}"


def _shown(document: Sliced, first: int) -> list[tuple[str, Passage]]:
    pairs = list(zip(passage_titles(document), document.passages, strict=True))
    return pairs[first : first + SHOWN]


def _marked(text: str, words: str) -> str:
    if not words:
        return html.escape(text)
    parts = re.split(f"({re.escape(words)})", text, flags=re.IGNORECASE)  # every second part is what was looked for
    return "".join(f"<mark><b>{html.escape(p)}</b></mark>" if n % 2 else html.escape(p) for n, p in enumerate(parts))
