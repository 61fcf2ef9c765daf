"""Read prompts with their choices as trees: what texts have in common is computed once, and the numbers stay the same.

A row of a tree is ``context | choice 1 | choice 2 ...``. A 4D mask lets each choice see the context and itself, and its
positions continue the context's, so that one pass scores all choices. Prompts that begin with the same ids (a
description, solved examples) share this header: it is read once and enters as a cache. Models that cannot read a tree
read each choice after a context of its own; which ones these are, a trial decides, for no list of architectures could
know what a model does with a mask.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ctxft.data.rows import IGNORE_INDEX
from ctxft.evaluation.scoring.texts import base_model, gather, inference, text_losses
from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD, CONTEXT = -1, 0  # segments of a row; choice n is segment n + 1
TOLERANCE = 1e-3  # nats between two ways to read one choice in float32; a wrong mask differs by far more
FRACTION = 0.25  # in coarser floats: a tree must come so much nearer than a reading in which one choice sees another
MIN_HEADER = 32  # ids; a shorter common beginning is not worth a pass of its own
MIN_SAVING = 256  # ids that need not be read again; the pass for the header has to pay


@dataclasses.dataclass(frozen=True)
class Choice:
    """The ids of one choice, and where its score belongs."""

    request: int
    number: int
    ids: tuple[int, ...]


@dataclasses.dataclass
class Prompt:
    """A context that is read once, and the choices that follow it."""

    context: tuple[int, ...]
    choices: list[Choice]

    @property
    def span(self) -> int:
        """Positions that the longest text takes: the context and the longest choice without its last id."""
        return len(self.context) + max(len(choice.ids) for choice in self.choices) - 1

    @property
    def suffix(self) -> int:
        """Ids of all choices that have to be read: of each all but the last."""
        return sum(len(choice.ids) - 1 for choice in self.choices)


@dataclasses.dataclass
class Group:
    """Prompts that share their first ``header`` ids (0: nothing)."""

    header: int
    prompts: list[Prompt]


# --- grouping ---------------------------------------------------------------------------------------------------------


def share_headers(prompts: Sequence[Prompt]) -> list[Group]:
    """Group prompts by common beginnings so that reading each beginning once saves the most ids.

    Every prompt keeps at least one id of its own after the header: the one from which its choices are predicted.

    Args:
        prompts: with contexts that all differ.

    Returns:
        Groups that hold each prompt once; those that share too little are one group with header 0.
    """
    ordered = sorted(prompts, key=lambda prompt: prompt.context)
    common = [_common(a.context, b.context) for a, b in itertools.pairwise(ordered)]
    groups = [Group(header, ordered[start:end]) for start, end, header in _split(common, 0, len(ordered), 0)[1]]
    grouped = {id(prompt) for group in groups for prompt in group.prompts}
    alone = [prompt for prompt in prompts if id(prompt) not in grouped]
    return groups + ([Group(0, alone)] if alone else [])


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many first ids two sequences share, one less than the shorter has at most."""
    size = min(len(a), len(b)) - 1
    return next((n for n in range(size) if a[n] != b[n]), size)


def _split(common: Sequence[int], start: int, end: int, least: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Return the most ids that headers can save in ordered contexts start to end, and those headers' (start, end, length).

    Either all share one header, or the row is cut where neighbours share little, and each part has its own.
    """
    if end - start < 2:
        return 0, []
    shared = min(common[start : end - 1])
    saved = (end - start - 1) * shared
    whole = (saved, [(start, end, shared)]) if shared >= MIN_HEADER and saved >= MIN_SAVING else (0, [])
    least = max(least, shared) + MIN_HEADER
    cuts = [n + 1 for n in range(start, end - 1) if common[n] < least]
    parts = [_split(common, a, b, least) for a, b in zip([start, *cuts], [*cuts, end], strict=True)]
    apart = (sum(saved for saved, _ in parts), [header for _, headers in parts for header in headers])
    return max(whole, apart, key=lambda option: option[0])


def batches(group: Group, max_batch_tokens: int) -> Iterator[list[Prompt]]:
    """Yield a group's prompts, longest first; the padded ids of a batch, header included, keep to the budget, or it is one."""
    batch: list[Prompt] = []
    width = suffix = 0
    for prompt in sorted(group.prompts, key=lambda prompt: (-len(prompt.context), -prompt.suffix)):
        new = max(width, len(prompt.context)), max(suffix, prompt.suffix)
        if batch and sum(new) * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch, new = [], (len(prompt.context), prompt.suffix)
        batch.append(prompt)
        width, suffix = new
    if batch:
        yield batch


# --- which models read trees ------------------------------------------------------------------------------------------


def sliding_window(model: PreTrainedModel) -> int | None:
    """Return how many positions back the model's layers can look at least; None if all see everything.

    The one mask of a tree stands for all layers, so longer texts are read row by row.
    """
    config = model.config.get_text_config()
    widths = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    widths = [width for width in widths if width]
    return min(widths) if widths and getattr(config, "use_sliding_window", True) is not False else None


def reads_trees(model: PreTrainedModel) -> bool:
    """Return whether a model reads trees right; else it reads each choice after a context of its own.

    A tree with a header is read with fixed ids and compared with the same texts row by row. A model that ignores or
    refuses the mask, the positions or the cache fails.

    Args:
        model: a causal language model, plain or with an adapter.

    Example:
        >>> reads_trees(load_model("practice-blind"))  # doctest: +SKIP
        True
    """
    example, leaking = _example(model.config.get_text_config().vocab_size)
    with inference(model):
        expected = score_rows(model, example)
        limit = TOLERANCE
        if model.dtype not in (torch.float32, torch.float64):
            # Coarse numbers differ by rounding alone, so the measure is what a choice read through another one gets.
            limit = FRACTION * abs(score_rows(model, leaking)[0] - expected[1])
        try:
            values = score_tree(model, example, read_header(model, example[0].context[:4]))
        except Exception:  # whatever a model raises at an input that it was not made for
            return False
    return max(abs(a - b) for a, b in zip(values, expected, strict=True)) < limit


def _example(vocabulary: int) -> tuple[list[Prompt], list[Prompt]]:
    """Return two prompts that begin alike, and the first one's second choice behind its first, as a bad mask reads it."""
    ids = [(37 * n * n + 11 * n + 5) % vocabulary for n in range(40)]
    first, second = (Choice(0, number, tuple(part)) for number, part in enumerate((ids[12:19], ids[19:25])))
    prompts = [
        Prompt(tuple(ids[:9]), [first, second]),
        Prompt(tuple(ids[:4] + ids[30:33]), [Choice(1, 0, tuple(ids[25:28])), Choice(1, 1, (ids[28],))]),
    ]
    leaking = Prompt((*prompts[0].context, *first.ids[:-1]), [second])
    return prompts, [leaking]


# --- forward passes ---------------------------------------------------------------------------------------------------


def read_header(model: PreTrainedModel, ids: Sequence[int]) -> DynamicCache:
    """Return the keys and values of a header."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([ids], device=model.device), use_cache=True, logits_to_keep=1, **_cached(model, cache))
    return cache


def _cached(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """Return the cache under the name that the model's forward pass has for it: transformers is changing it."""
    return {"cache" if "cache" in inspect.signature(base_model(model).forward).parameters else "past_key_values": cache}


def _copies(header: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache for a batch that continues the header, whose keys and values stay as they are."""
    cache = DynamicCache()
    for layer in header.layers:
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            raise InputError(f"a cache layer of the kind {type(layer).__name__} cannot be shared among prompts.")
        copy = DynamicLayer()
        copy.lazy_initialization(layer.keys, layer.values)
        copy.keys = layer.keys.expand(rows, -1, -1, -1)
        copy.values = layer.values.expand(rows, -1, -1, -1)
        cache.layers.append(copy)
    return cache


def score_tree(model: PreTrainedModel, prompts: Sequence[Prompt], header: DynamicCache | None = None) -> list[float]:
    """Return the log-likelihoods of all choices of prompts, each prompt read as one row.

    Contexts end in the same column, so the last columns hold all scores; ``header`` is a cache of what all begin with.
    """
    start = header.get_seq_length() if header else 0
    width, suffix = max(len(p.context) for p in prompts) - start, max(p.suffix for p in prompts)
    rows = [_row(prompt, start, width, suffix) for prompt in prompts]
    ids, positions, segments = (torch.tensor(part, device=model.device) for part in zip(*rows, strict=True))
    options: dict[str, Any] = {"use_cache": False}
    if header or suffix or bool((segments == PAD).any()):
        options |= {"position_ids": positions, "attention_mask": _mask(segments, start, model)}
    if header:
        options |= {"use_cache": True, **_cached(model, _copies(header, len(prompts)))}
    # What some architectures do to their logits (scaling, caps) stays theirs: the model itself keeps the last columns.
    logits = model(input_ids=ids, logits_to_keep=suffix + 1, **options).logits[:, -(suffix + 1) :]
    return _sums(logits, prompts)


def _row(prompt: Prompt, start: int, width: int, suffix: int) -> tuple[list[int], list[int], list[int]]:
    """Return (ids, positions, segments) of a prompt's row: padding, the context from ``start`` on, choices, padding."""
    own = prompt.context[start:]
    before, after = width - len(own), suffix - prompt.suffix
    ids = [*[0] * before, *own]
    positions = [*[0] * before, *range(start, len(prompt.context))]
    segments = [*[PAD] * before, *[CONTEXT] * len(own)]
    for segment, choice in enumerate(prompt.choices, start=1):
        count = len(choice.ids) - 1  # nothing is predicted from the last id
        ids += choice.ids[:-1]
        positions += range(len(prompt.context), len(prompt.context) + count)
        segments += [segment] * count
    return ids + [0] * after, positions + [0] * after, segments + [PAD] * after


def _mask(segments: torch.Tensor, start: int, model: PreTrainedModel) -> torch.Tensor:
    """Return the mask [rows, 1, width, start + width] under which an id sees the header, its context, and its own choice."""
    rows, width = segments.shape
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    of, by = segments[:, None, :], segments[:, :, None]
    seen = causal & ((of == CONTEXT) | (of == by))  # padding sees padding, or it would have nothing to attend to
    seen = torch.cat([seen.new_ones(rows, width, start), seen], dim=-1)[:, None]
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return seen
    # Other implementations add the mask to the scores: a bool one would add 1 where it should hide, without an error.
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill_(
        ~seen, torch.finfo(model.dtype).min
    )


def _sums(logits: torch.Tensor, prompts: Sequence[Prompt]) -> list[float]:
    """Return each choice's log-likelihood from logits [rows, 1 + suffix, vocabulary]; column 0 predicts all first ids."""
    columns = logits.shape[1]
    places, targets, sizes = [], [], []
    for number, prompt in enumerate(prompts):
        column = 1
        for choice in prompt.choices:
            rest = len(choice.ids) - 1
            places += [number * columns, *range(number * columns + column, number * columns + column + rest)]
            targets += choice.ids
            sizes.append(len(choice.ids))
            column += rest
    used, places = torch.tensor(places, device=logits.device).unique(return_inverse=True)
    values = gather(logits.flatten(0, 1)[used], torch.tensor(targets, device=logits.device), places).double()
    return [part.sum().item() for part in values.cpu().split(sizes)]


def score_rows(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[float]:
    """Return the log-likelihoods of all choices of prompts, each read after a context of its own."""
    rows = []
    for prompt in prompts:
        for choice in prompt.choices:
            labels = [IGNORE_INDEX] * len(prompt.context) + list(choice.ids)
            rows.append(([*prompt.context, *choice.ids], labels))
    size = max(len(ids) for ids, _ in rows)
    return [-loss for loss, _ in text_losses(model, rows, max_batch_tokens=len(prompts) * size)]
