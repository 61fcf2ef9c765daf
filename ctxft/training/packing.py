"""The rows of one optimizer step flow in; micro-batches flow out, in which no row can see another.

    rows of a step -> best-fit bins of tokens -> MicroBatch(input ids, positions, targets, and who may attend to whom)

Packing only lays a step's rows out. A row keeps its own positions from 0, attends to itself alone, and its first token is
nobody's target, so that loss and gradients are those of the rows one at a time.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ctxft.data.rows import IGNORE_INDEX
from ctxft.training.config import TrainConfig

Row = dict[str, list[int]]


@dataclass
class MicroBatch:
    """What one forward pass reads.

    Attributes:
        input_ids, position_ids: (rows, tokens).
        target_positions: (targets,), places in the flattened (rows x tokens) whose hidden state predicts a target.
        targets: (targets,) token ids.
        attention: keyword arguments of the model that confine attention, see ``ctxft.training.attention``.
        rows: numbers of the rows that were laid out here.
        tokens: tokens of these rows; the rest is padding.
        weight: 1, or 0 for a stand-in that keeps processes in step and teaches nothing.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    target_positions: torch.Tensor
    targets: torch.Tensor
    attention: dict = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    tokens: int = 0
    weight: float = 1.0

    def inputs(self, device: torch.device | str) -> dict:
        """Return the keyword arguments of the forward pass, on a device."""
        names = ("input_ids", "position_ids", "target_positions", "targets")
        values = {name: getattr(self, name) for name in names} | self.attention
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into bins: the longest first, each into the fullest bin that still has room (best-fit decreasing).

    Args:
        lengths: tokens of each item, none above the capacity.
        capacity: tokens of a bin.

    Returns:
        For each bin the indices of its items. The same lengths give the same bins; time grows with n log n.

    Example:
        >>> best_fit([3, 5, 4, 2], capacity=7)
        [[1, 3], [2, 0]]
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, number of the bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(room, (lengths[index], -1))
        left, number = room.pop(place) if place < len(room) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(index)
        bisect.insort(room, (left - lengths[index], number))
    return bins


def in_order(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group items as they come while their number times the longest stays within the capacity: batches for padding.

    Example:
        >>> in_order([3, 5, 4, 2], capacity=10)
        [[0, 1], [2, 3]]
    """
    groups: list[list[int]] = []
    longest = 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if not groups or longest * (len(groups[-1]) + 1) > capacity:
            groups.append([])
            longest = length
        groups[-1].append(index)
    return groups


def _layout(lines: list[list[Row]], pad: int) -> MicroBatch:
    """Lay rows out in lines, one after another, and fill the lines up on the right."""
    width = max(sum(len(row["input_ids"]) for row in line) for line in lines)
    ids, places, where, targets = [], [], [], []
    for number, line in enumerate(lines):
        begin = number * width
        for row in line:
            labels = row["labels"]
            ids += row["input_ids"]
            places += range(len(labels))
            # a hidden state predicts the token after it in its own row, so a row's first label has no predictor
            where += [begin + t - 1 for t in range(1, len(labels)) if labels[t] != IGNORE_INDEX]
            targets += [label for label in labels[1:] if label != IGNORE_INDEX]
            begin += len(labels)
        missing = (number + 1) * width - len(ids)
        ids += [pad] * missing
        places += [0] * missing
    shape = (len(lines), width)
    return MicroBatch(
        torch.tensor(ids).view(shape), torch.tensor(places).view(shape), torch.tensor(where), torch.tensor(targets)
    )


def segment_mask(lines: list[list[Row]], width: int) -> torch.Tensor:
    """Return who may attend to whom as a boolean (lines, 1, width, width): earlier tokens of one's own row, and oneself."""
    owner = torch.full((len(lines), width), -1)
    for number, line in enumerate(lines):
        place = 0
        for segment, row in enumerate(line):
            owner[number, place : place + len(row["input_ids"])] = segment
            place += len(row["input_ids"])
    same = owner[:, :, None] == owner[:, None, :]  # padding sees padding: a line of the mask must not be empty
    return (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]


def _attention(lines: list[list[Row]], width: int, attention: str) -> dict:
    lengths = [len(row["input_ids"]) for line in lines for row in line]
    if attention == "segments":
        return {"segments": lengths}
    if attention == "varlen":
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return {"segment_bounds": bounds, "longest_segment": max(lengths)}
    allowed = segment_mask(lines, width)
    if attention == "eager":  # is added to the scores: True would be read as 1.0
        allowed = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    return {"attention_mask": allowed}


def micro_batches(rows: Sequence[Row], config: TrainConfig, attention: str, pad: int) -> list[MicroBatch]:
    """Lay the rows of one optimizer step out as micro-batches of at most ``config.micro_batch_tokens`` tokens.

    Args:
        rows: the step's rows, ``input_ids`` and ``labels`` each, none longer than ``config.window``.
        config: its ``pack``, ``window`` and ``micro_batch_tokens``.
        attention: "segments" or "varlen" (all rows in one line, no padding), "sdpa" or "eager" (lines of ``window`` tokens
            under a mask).
        pad: token id that fills lines.

    Returns:
        The micro-batches; each row is in exactly one.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    if not config.pack:
        groups = in_order(lengths, config.micro_batch_tokens)
        laid = [[[number] for number in group] for group in groups]
    elif attention in ("segments", "varlen"):
        laid = [[numbers] for numbers in best_fit(lengths, config.micro_batch_tokens)]
    else:
        bins = best_fit(lengths, config.window)
        many = config.micro_batch_tokens // config.window
        laid = [bins[begin : begin + many] for begin in range(0, len(bins), many)]
    found = []
    for lines in laid:
        texts = [[rows[number] for number in line] for line in lines]
        batch = _layout(texts, pad)
        batch.attention = _attention(texts, batch.input_ids.shape[1], attention)
        batch.rows = [number for line in lines for number in line]
        batch.tokens = sum(lengths[number] for number in batch.rows)
        found.append(batch)
    return found


def share_out(batches: list[MicroBatch], rank: int, processes: int) -> list[MicroBatch]:
    """Return one process's part of a step; where parts are unequal, a batch of weight 0 keeps the processes in step.

    Each process must make as many forward and backward passes as the others, or their exchange of gradients would wait
    for ever.
    """
    mine = batches[rank::processes]
    if len(mine) < -(-len(batches) // processes):
        mine = [*mine, _silent(batches[0])]
    return mine


def _silent(batch: MicroBatch) -> MicroBatch:
    return MicroBatch(
        batch.input_ids, batch.position_ids, batch.target_positions, batch.targets, batch.attention, [], 0, 0.0
    )
