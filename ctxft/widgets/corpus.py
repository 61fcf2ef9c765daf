"""A corpus that is cut into passages flows in; a view of one document flows out, with its cuts, its label and its fate."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import ipywidgets

from ctxft.data.passages import passages_of
from ctxft.data.rows import text_budget
from ctxft.models import shared_tokenizer
from ctxft.report.corpus import WHICH, Sliced, document_html, document_text, documents_of, find_documents
from ctxft.run.prepare import manifest_of
from ctxft.run.rows import longest_of, read_passages
from ctxft.storage import InputError, read_json
from ctxft.widgets.base import Explorer, framed, labelled

if TYPE_CHECKING:
    from ctxft.config import ExperimentConfig
    from ctxft.data.passages import Passage

FATES = ("read", "kept", "held out", "duplicate", "empty")


class CorpusBrowser(Explorer):
    """Find documents by their words, and see where each was cut, whether it is said to be reliable, and what became of it.

    Args:
        kept, held_out: passages in the order of the corpus.
        counts: what became of all documents, as a ledger or ``passages_of`` counts them ("documents read", ...).

    Raises:
        InputError: there is no passage.

    Example:
        >>> CorpusBrowser.of(load_experiment("mini"))  # doctest: +SKIP
    """

    def __init__(
        self, kept: Iterable[Passage], held_out: Iterable[Passage] = (), counts: Mapping[str, int] | None = None
    ) -> None:
        self.documents = documents_of(kept, held_out)
        if not self.documents:
            raise InputError("a corpus browser needs at least one passage.")
        told = {fate: (counts or {}).get(f"documents {fate}", 0) for fate in FATES}
        self.ledger = "documents: " + ", ".join(f"{n} {fate}" for fate, n in told.items() if n) if counts else ""
        self.words = labelled(ipywidgets.Text, "find", "18em", placeholder="words in a text or an id")
        self.which = labelled(ipywidgets.Dropdown, "of", options=WHICH)
        self.number = labelled(ipywidgets.BoundedIntText, "document", "12em", value=1, min=1, max=len(self.documents))
        self.first = labelled(ipywidgets.BoundedIntText, "from passage", "12em", value=0, min=0, max=0)
        for control in (self.words, self.which, self.number):  # before the view follows
            control.observe(self._limit, names="value")
        self._limit()
        super().__init__([self.words, self.which, self.number, self.first])

    @classmethod
    def of(cls, config: ExperimentConfig) -> CorpusBrowser:
        """Browse a prepared run; where it is not prepared, the corpus cut as it would be, and nothing is written.

        Raises:
            InputError: a bad corpus, or prompts that leave no room for text.
        """
        if manifest_of(config) is not None:
            passages = (read_passages(config.folder, which) for which in ("passages", "held_out"))
            return cls(*passages, read_json(config.folder / "ledger.json"))
        tokenizer = shared_tokenizer(config.model, config.revision)
        budget = text_budget(config.train.max_length, longest_of(config, tokenizer), config.train.min_text_tokens)
        return cls(*passages_of(config.corpus, tokenizer, budget))

    @property
    def found(self) -> list[Sliced]:
        """The documents that the controls leave, in order."""
        return find_documents(self.documents, self.words.value, self.which.value)

    def _limit(self, change: dict | None = None) -> None:
        """Keep the numbers inside what is found; another document is shown from its first passage."""
        found = self.found
        if change is None or change["owner"] is not self.number:
            self.number.max = max(1, len(found))
        self.first.max = len(found[self.number.value - 1].passages) - 1 if found else 0
        if change is not None:
            self.first.value = 0

    @property
    def text(self) -> str:
        """The document that is shown, as text."""
        found, place = self.found, self.number.value
        shown = document_text(found[place - 1], self.first.value) if found else "No such document."
        return f"{self._head(found)}\n\n{shown}"

    @property
    def html(self) -> str:
        """The document that is shown, as HTML."""
        found, place = self.found, self.number.value
        first = self.first.value
        shown = document_html(found[place - 1], self.words.value, first) if found else "<p>No such document.</p>"
        return framed(f"<p>{html.escape(self._head(found))}</p>", shown)

    def _head(self, found: list[Sliced]) -> str:
        place = f"{self.number.value} of {len(found)} documents found" if found else "no document found"
        return f"{place} ({self.ledger})" if self.ledger else place
