"""An arm's rows and the order of its optimizer steps flow in; a view of one packed micro-batch flows out."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets

from ctxft.report.batches import Segment, batch_html, batch_lines, batch_text, fill_text
from ctxft.storage import InputError
from ctxft.training.packing import MicroBatch, micro_batches
from ctxft.widgets.base import Explorer, framed, labelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ctxft.config import TrainConfig
    from ctxft.data.rows import Rows

LAYOUTS = {"side by side in one line": "segments", "a line each, padded": "sdpa"}  # what a reader chooses -> attention


class RowViewer(Explorer):
    """Look at the rows of an optimizer step as the model reads them: packed into micro-batches, prompt and targets marked.

    Args:
        rows: of one arm, from ``experiment.rows.rows_of``.
        order: for each optimizer step the indices of its rows, from ``training.schedule.passage_order``.
        config: the recipe: window and tokens of a micro-batch.
        tokenizer: of the model.

    Raises:
        InputError: there is no optimizer step.

    Example:
        >>> rows, _ = rows_of(config, "cft", 0, passages, tokenizer)  # doctest: +SKIP
        >>> RowViewer(rows, passage_order(rows.text_targets, config.train, 0), config.train, tokenizer)  # doctest: +SKIP
    """

    def __init__(
        self, rows: Rows, order: Sequence[Sequence[int]], config: TrainConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        if not order:
            raise InputError("a row viewer needs at least one optimizer step.")
        self.rows, self.order, self.config, self.tokenizer = rows, order, config, tokenizer
        label = f"optimizer step, 1 to {len(order)}"
        self.step = labelled(ipywidgets.BoundedIntText, label, "17em", value=1, min=1, max=len(order))
        self.layout_of = labelled(ipywidgets.Dropdown, "layout", options=list(LAYOUTS))
        self.number = labelled(ipywidgets.BoundedIntText, "micro-batch", "11em", value=1, min=1, max=len(self.batches))
        for control in (self.step, self.layout_of):  # before the view follows: the number may be too high by then
            control.observe(self._limit, names="value")
        super().__init__([self.step, self.layout_of, self.number])

    def _limit(self, _change: dict) -> None:
        self.number.max = len(self.batches)

    @property
    def batches(self) -> list[MicroBatch]:
        """The micro-batches of the chosen optimizer step."""
        step = [self.rows[index] for index in self.order[self.step.value - 1]]
        attention, tokens = LAYOUTS[self.layout_of.value], self.config.micro_batch_tokens
        return micro_batches(step, attention, tokens, self.rows.special.pad)

    def _chosen(self) -> tuple[str, list[list[Segment]]]:
        batches, place = self.batches, self.number.value
        batch = batches[place - 1]
        title = f"Step {self.step.value}, micro-batch {place} of {len(batches)}: {fill_text(batch)}"
        return title, batch_lines(batch, self.rows, self.order[self.step.value - 1], self.tokenizer)

    @property
    def text(self) -> str:
        """The micro-batch that is shown, as text."""
        title, lines = self._chosen()
        return f"{title}\n\n{batch_text(lines)}"

    @property
    def html(self) -> str:
        """The micro-batch that is shown, as HTML."""
        title, lines = self._chosen()
        return framed(f"<h4>{html.escape(title)}</h4>", batch_html(lines))
