"""Lay the passages of an optimizer step out as micro-batches in which none can see another.

    segments   CPU: rows end to end in one line, one causal scaled-dot-product call for each; no mask, no work between rows
    varlen     GPU: the same line under torch's variable-length flash attention (bfloat16)
    sdpa       rows padded to the longest of their micro-batch, under the model's own mask; so is "eager"

A row keeps its own positions from 0, attends to itself alone, and nothing predicts its first token, so that loss and gradients
are those of the rows one at a time. Transformers can guess rows from position ids, but only where neither a mask nor a cache
is there, and is silent when it does not: here the bounds of the rows are always passed, and a kernel that gets none refuses.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from ctxft.data.rows import IGNORE_INDEX
from ctxft.storage import InputError

Row = dict[str, list[int]]
PACKED = ("segments", "varlen")
UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask")  # what some models add to attention


@dataclass
class MicroBatch:
    """What one forward pass reads.

    Attributes:
        input_ids, position_ids: (lines, tokens).
        target_positions: (targets,), places in the flattened (lines x tokens) whose hidden state predicts a target.
        targets: (targets,) token ids.
        attention: keyword arguments of the model that confine attention to the row.
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


# --- which rows share a micro-batch -----------------------------------------------------------------------------------


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


def batch_by_length(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group items in their order while their number times the longest stays within the capacity: batches for padding.

    Example:
        >>> batch_by_length([3, 5, 4, 2], capacity=10)
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


def micro_batches(rows: Sequence[Row], attention: str, tokens: int, pad: int) -> list[MicroBatch]:
    """Lay the rows of one optimizer step out as micro-batches.

    Args:
        rows: the step's rows, ``input_ids`` and ``labels`` each.
        attention: "segments" or "varlen" (packed in one line, no padding), "sdpa" or "eager" (a line each, padded).
        tokens: most tokens of a micro-batch, padding included; no row is longer.
        pad: token id that fills lines.

    Returns:
        The micro-batches; each row is in exactly one.

    Example:
        >>> row = {"input_ids": [1, 5, 6], "labels": [-100, 5, 6]}
        >>> micro_batches([row, row], "segments", tokens=6, pad=0)[0].input_ids.tolist()
        [[1, 5, 6, 1, 5, 6]]
    """
    lengths = [len(row["input_ids"]) for row in rows]
    if attention in PACKED:
        layouts = [[numbers] for numbers in best_fit(lengths, tokens)]
    else:
        layouts = [[[number] for number in numbers] for numbers in batch_by_length(lengths, tokens)]
    return [_lay_out(rows, lines, attention, pad) for lines in layouts]


def _lay_out(rows: Sequence[Row], lines: list[list[int]], attention: str, pad: int) -> MicroBatch:
    """Lay rows out in lines, one after another, and fill the lines up on the right."""
    numbers = [number for line in lines for number in line]
    lengths = [len(rows[number]["input_ids"]) for number in numbers]
    width = max(sum(len(rows[number]["input_ids"]) for number in line) for line in lines)
    ids, positions, predicting, targets = [], [], [], []
    for place, line in enumerate(lines):
        for number in line:
            labels, begin = rows[number]["labels"], len(ids)
            ids += rows[number]["input_ids"]
            positions += range(len(labels))
            # a hidden state predicts the token after it in its own row, so a row's first label has no predictor
            predicting += [begin + t - 1 for t in range(1, len(labels)) if labels[t] != IGNORE_INDEX]
            targets += [label for label in labels[1:] if label != IGNORE_INDEX]
        missing = (place + 1) * width - len(ids)
        ids += [pad] * missing
        positions += [0] * missing
    return MicroBatch(
        torch.tensor(ids).view(len(lines), width),
        torch.tensor(positions).view(len(lines), width),
        torch.tensor(predicting, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        _attention_inputs(lengths, attention),
        numbers,
        sum(lengths),
    )


def _attention_inputs(lengths: Sequence[int], attention: str) -> dict:
    """Return the keyword arguments by which a model's attention learns where rows of these lengths begin and end."""
    if attention == "segments":
        return {"segments": list(lengths)}
    if attention == "varlen":
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return {"segment_bounds": bounds, "longest_segment": max(lengths)}
    # padding is masked by length, never by id: the pad token of some models is their EOS
    return {"attention_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()}


def shard_batches(batches: list[MicroBatch], rank: int, processes: int) -> list[MicroBatch]:
    """Return one process's part of a step; where parts are unequal, a batch of weight 0 keeps the processes in step.

    Each process must make as many forward and backward passes as the others, or their exchange of gradients would wait
    for ever.
    """
    shard = batches[rank::processes]
    if len(shard) < -(-len(batches) // processes):
        shard = [*shard, replace(batches[0], rows=[], tokens=0, weight=0.0)]
    return shard


# --- attention inside each row ----------------------------------------------------------------------------------------


def _row_bounds(attention: str, kwargs: dict, name: str):
    """Return what a kernel was passed as bounds of the rows, or refuse a model that it cannot serve."""
    unknown = [option for option in UNSUPPORTED if kwargs.get(option) is not None]
    if kwargs.get(name) is None:
        raise InputError(
            "this kind of model does not pass on to its attention where rows begin: set train.pack to false."
        )
    if unknown:
        raise InputError(
            f"this kind of model needs {', '.join(unknown)} in its attention, which '{attention}' does not have: set "
            "train.pack to false and train.attn_implementation to eager."
        )
    return kwargs[name]


def _segments_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **kwargs
):
    """Attend inside each row of one line; query, key and value are (1, heads, tokens, head size)."""
    lengths = _row_bounds("segments", kwargs, "segments")
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    outputs = []
    for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True):
        near = None
        if sliding_window is not None and q.shape[2] > sliding_window:
            causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
            near = causal & ~causal.tril(-sliding_window)
        outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=near, is_causal=near is None, **options))
    return torch.cat(outputs, 2).transpose(1, 2), None


def _varlen_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **kwargs
):
    """Attend inside each row of one line by torch's variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = _row_bounds("varlen", kwargs, "segment_bounds")
    if dropout:
        raise InputError(
            "attention dropout does not work with train.attn_implementation varlen: set train.pack to false."
        )
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # (tokens, heads, head size)
    if q.dtype == torch.float32:  # rotary embedding may have left bfloat16
        q, k, v = (tensor.to(torch.bfloat16) for tensor in (q, k, v))
    longest, grouped = kwargs["longest_segment"], query.shape[1] != key.shape[1]
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    options: dict[str, Any] = {"scale": scaling, "window_size": window, "enable_gqa": grouped}
    return cast(torch.Tensor, varlen_attn(q, k, v, bounds, bounds, longest, longest, **options))[None], None


AttentionInterface.register("ctxft_segments", _segments_attention)
AttentionInterface.register("ctxft_varlen", _varlen_attention)


def choose_attention(wanted: str, pack: bool, device: str) -> str:
    """Return the attention that "auto" means: segments on a CPU, varlen on a GPU with flash attention, sdpa without packing.

    Raises:
        InputError: the wanted one does not fit ``pack``, or needs a GPU.

    Example:
        >>> choose_attention("auto", pack=True, device="cpu")
        'segments'
    """
    if wanted == "auto":
        flash = device != "cpu" and torch.cuda.get_device_capability() >= (8, 0)  # flash attention needs an Ampere GPU
        return "sdpa" if not pack else ("varlen" if flash else "segments")
    if pack != (wanted in PACKED):
        raise InputError(
            f"train.attn_implementation {wanted} {'pads rows' if pack else 'packs rows'}: set train.pack to "
            f"{str(not pack).lower()}, or train.attn_implementation to auto."
        )
    if wanted == "varlen" and device == "cpu":
        raise InputError("train.attn_implementation varlen needs a GPU: set it to auto or segments.")
    return wanted


def set_attention(model: PreTrainedModel, attention: str) -> None:
    """Let a model, not wrapped yet, use "segments", "varlen", "sdpa" or "eager".

    Raises:
        InputError: the model's code cannot use it.
    """
    name = f"ctxft_{attention}" if attention in PACKED else attention
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise InputError(f"train.attn_implementation {attention}: {str(error).splitlines()[0]}") from None
