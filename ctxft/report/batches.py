"""A packed micro-batch goes in; its lines come out, a segment for each row that was laid there, as text and as HTML.

What is shown is read from the tensors that the model reads, not from the rows: a wrong layout would show.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxft.report.rows import STYLE, Part, count_parts, parts_html, row_parts, row_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ctxft.data.rows import Rows
    from ctxft.training.packing import MicroBatch

OPEN = 4  # segments whose tokens a page shows at first; the others open at a click
SEGMENT = "border:2px solid currentColor;border-radius:6px;padding:.3em .6em;margin:.4em 0"


@dataclass(frozen=True)
class Segment:
    """A row in its line: its number in the micro-batch from 1, what it is, and its parts; padding has number 0."""

    number: int
    name: str
    parts: tuple[Part, ...]

    @property
    def title(self) -> str:
        """What stands above it, in words."""
        if not self.number:
            return f"padding: {len(self.parts[0].tokens)} tokens that nobody reads"
        counts = count_parts(self.parts)
        return f"segment {self.number}, {self.name}: {counts['read']} tokens, {counts['learned']} learned"


def batch_lines(
    batch: MicroBatch, rows: Rows, step: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[list[Segment]]:
    """Read from a micro-batch's tensors which rows lie in its lines, and what is learned of them.

    Args:
        batch: from ``training.packing.micro_batches``.
        rows: all rows of the arm.
        step: for each row of the optimizer step its index among these.
        tokenizer: of the model.

    Returns:
        For each line its segments in order, the padding last.
    """
    width = batch.input_ids.shape[1]
    targets = {place + 1 for place in batch.target_positions.tolist()}
    numbers, lines, count = iter(batch.rows), [], 0
    for line, (ids, places) in enumerate(zip(batch.input_ids.tolist(), batch.position_ids.tolist(), strict=True)):
        learned = [line * width + place in targets for place in range(width)]
        lines.append([])
        for begin, end in _bounds(places):
            index, count = step[next(numbers)], count + 1
            labels = [
                token if is_one else None for token, is_one in zip(ids[begin:end], learned[begin:end], strict=True)
            ]
            row = {"input_ids": ids[begin:end], "labels": labels}
            beside = len(rows.prompts[index]), len(rows.after[index])
            parts = row_parts(row, tokenizer, rows.special.eos, *beside)
            lines[-1].append(Segment(count, f"passage {rows.passages[index].id}", tuple(parts)))
        used = sum(count_parts(segment.parts)["read"] for segment in lines[-1])
        if used < width:
            lines[-1].append(Segment(0, "padding", (Part("padding", False, ("",) * (width - used)),)))
    return lines


def _bounds(places: Sequence[int]) -> list[tuple[int, int]]:
    """Return (begin, end) of the rows in a line of positions: a row counts 0, 1, 2, ..., padding stays at 0."""
    zeros = [place for place, position in enumerate(places) if position == 0] + [len(places)]
    return [(begin, end) for begin, end in itertools.pairwise(zeros) if end > begin + 1]


def fill_text(batch: MicroBatch) -> str:
    """Return in a sentence how many rows and tokens a micro-batch holds, and how full it is."""
    lines, width = batch.input_ids.shape
    filled = batch.tokens / (lines * width)
    layout = f"one line of {width} tokens" if lines == 1 else f"{lines} lines of {width} tokens"
    return f"{len(batch.rows)} rows with {batch.tokens} tokens in {layout}: {filled:.0%} filled."


def batch_text(lines: Sequence[Sequence[Segment]]) -> str:
    """Return a micro-batch as text: line by line, segment by segment."""
    said = []
    for number, line in enumerate(lines, start=1):
        said.append(f"line {number}")
        for segment in line:
            said += ["", segment.title] + ([row_text(segment.parts)] if segment.number else [])
        said.append("")
    return "\n".join(said).rstrip()


def batch_html(lines: Sequence[Sequence[Segment]]) -> str:
    """Return a micro-batch as HTML: a framed, numbered box for each segment, hatched space for padding."""
    shown = []
    for number, line in enumerate(lines, start=1):
        boxes = "".join(map(_segment_html, line))
        shown.append(f"<section><h5>line {number} of {len(lines)}</h5>{boxes}</section>")
    return STYLE + "".join(shown)


def _segment_html(segment: Segment) -> str:
    if not segment.number:
        return parts_html(segment.parts)
    opened = " open" if segment.number <= OPEN else ""
    title = f"<summary>{html.escape(segment.title)}</summary>"
    return f'<details style="{SEGMENT}"{opened}>{title}{parts_html(segment.parts)}</details>'
