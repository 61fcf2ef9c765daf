"""Batches of prompts with their choices go in; log-likelihoods come out of a model's own forward pass.

Three ways to read give the same numbers to float tolerance; ``reading_way`` tries them on a small example, for no list of
architectures could say what a model does with a mask.

- tree: a row per prompt, ``context | choice 1 | choice 2 ...``. A 4D mask lets each choice see the context and itself,
  and its positions go on from the context's, so that one pass scores all choices. What several prompts begin with, the
  header, is read once before and enters as a cache.
- cache: the contexts first, then all choices behind copies of their keys and values.
- rows: every choice behind a context of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ctxft.data.rows import IGNORE_INDEX
from ctxft.evaluation.scoring.sharing import Choice, Prompt
from ctxft.evaluation.scoring.texts import gather, pad, reading, text_losses
from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAYS = ("tree", "cache", "rows")
PAD, CONTEXT = -1, 0  # segments of a row; choice n is segment n + 1
TOLERANCE = 1e-3  # nats between two ways of reading one choice in float32; a wrong mask differs by far more
SHARE = 0.25  # in coarser floats: a way must come so much nearer than a reading in which one choice sees another


def sliding_window(model: PreTrainedModel) -> int | None:
    """Return how many positions back the model's layers can look at least; None if all see everything.

    The one mask of a tree stands for all layers, so texts longer than this are read another way.
    """
    config = model.config.get_text_config()
    widths = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    widths = [width for width in widths if width]
    return min(widths) if widths and getattr(config, "use_sliding_window", True) is not False else None


def reading_way(model: PreTrainedModel) -> str:
    """Return the quickest way of reading that a model does right: "tree", "cache" or "rows".

    A tree with a header, and a batch of prompts behind a cache, are read with fixed ids and compared with the same texts
    row by row. A model that ignores or refuses the mask, the positions or the cache fails and gets the next way.

    Args:
        model: a causal language model, plain or with an adapter.

    Returns:
        One of ``WAYS``.

    Example:
        >>> reading_way(load_model("practice-blind"))  # doctest: +SKIP
        'tree'
    """
    example, leaking = _example(model.config.get_text_config().vocab_size)
    with reading(model):
        expected = score_rows(model, example)
        limit = TOLERANCE
        if model.dtype not in (torch.float32, torch.float64):
            # Coarse numbers differ by rounding alone, so the measure is what a choice read through another one gets.
            limit = SHARE * abs(score_rows(model, leaking)[0] - expected[1])
        trials = (("tree", lambda: score_tree(model, example, read_header(model, example[0].context[:4]))),)
        for way, trial in (*trials, ("cache", lambda: score_cache(model, example))):
            try:
                found = trial()
            except Exception:  # whatever a model raises at an input that it was not made for
                continue
            if max(abs(a - b) for a, b in zip(found, expected, strict=True)) < limit:
                return way
    return "rows"


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


def score(model: PreTrainedModel, prompts: Sequence[Prompt], way: str, header: DynamicCache | None) -> list[float]:
    """Return the log-likelihoods of all choices of prompts, in order; ``header`` is a cache of what all begin with."""
    if way == "tree":
        return score_tree(model, prompts, header)
    return score_cache(model, prompts) if way == "cache" else score_rows(model, prompts)


# --- tree -------------------------------------------------------------------------------------------------------------


def read_header(model: PreTrainedModel, ids: Sequence[int]) -> DynamicCache:
    """Return the keys and values of a header, read once."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([ids], device=model.device), use_cache=True, logits_to_keep=1, **_cached(model, cache))
    return cache


def _cached(model: PreTrainedModel, cache: DynamicCache) -> dict[str, DynamicCache]:
    """Return the cache under the name that the model's forward pass has for it: transformers is changing it."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"cache" if "cache" in inspect.signature(plain.forward).parameters else "past_key_values": cache}


def _behind(header: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache for a batch that reads behind the header, whose keys and values stay as they are."""
    cache = DynamicCache()
    for layer in header.layers:
        if type(layer) is not DynamicLayer:
            raise InputError(f"a cache layer of the kind {type(layer).__name__} cannot be shared among prompts.")
        copy = DynamicLayer()
        copy.lazy_initialization(layer.keys, layer.values)
        copy.keys = layer.keys.expand(rows, -1, -1, -1)
        copy.values = layer.values.expand(rows, -1, -1, -1)
        cache.layers.append(copy)
    return cache


def score_tree(model: PreTrainedModel, prompts: Sequence[Prompt], header: DynamicCache | None = None) -> list[float]:
    """Read each prompt and its choices as one row: contexts end in the same column, so the last columns hold all scores."""
    start = header.get_seq_length() if header else 0
    width, tail = max(len(p.context) for p in prompts) - start, max(p.tail for p in prompts)
    rows = [_row(prompt, start, width, tail) for prompt in prompts]
    ids, positions, segments = (torch.tensor(part, device=model.device) for part in zip(*rows, strict=True))
    options: dict = {"use_cache": False}
    if header or tail or bool((segments == PAD).any()):
        options |= {"position_ids": positions, "attention_mask": _mask(segments, start, model)}
    if header:
        options |= {"use_cache": True, **_cached(model, _behind(header, len(prompts)))}
    # What some architectures do to their logits (scaling, caps) stays theirs: the model itself keeps the last columns.
    logits = model(input_ids=ids, logits_to_keep=tail + 1, **options).logits[:, -(tail + 1) :]
    return _sums(logits, prompts)


def _row(prompt: Prompt, start: int, width: int, tail: int) -> tuple[list[int], list[int], list[int]]:
    """Return (ids, positions, segments) of a prompt's row: filling, the context from ``start`` on, choices, filling."""
    own = prompt.context[start:]
    before, after = width - len(own), tail - prompt.tail
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
    seen = causal & ((of == CONTEXT) | (of == by))  # filling sees filling, or it would have nothing to attend to
    seen = torch.cat([seen.new_ones(rows, width, start), seen], dim=-1)[:, None]
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return seen
    # Other implementations add the mask to the scores: a bool one would add 1 to what is to be seen, without an error.
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill_(
        ~seen, torch.finfo(model.dtype).min
    )


def _sums(logits: torch.Tensor, prompts: Sequence[Prompt]) -> list[float]:
    """Return each choice's log-likelihood from logits [rows, 1 + tail, vocabulary]; column 0 predicts all first ids."""
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


# --- cache, rows ------------------------------------------------------------------------------------------------------


def score_cache(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[float]:
    """Read contexts, then all choices behind copies of their cache; contexts of equal length are read together, unpadded."""
    found: dict[int, list[float]] = {}
    for length in {len(prompt.context) for prompt in prompts}:
        numbers = [n for n, prompt in enumerate(prompts) if len(prompt.context) == length]
        values = iter(_score_equal(model, [prompts[n] for n in numbers]))
        found |= {n: [next(values) for _ in prompts[n].choices] for n in numbers}
    return [value for n in range(len(prompts)) for value in found[n]]


def _score_equal(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[float]:
    choices = [choice.ids for prompt in prompts for choice in prompt.choices]
    owner = torch.tensor([n for n, prompt in enumerate(prompts) for _ in prompt.choices], device=model.device)
    longer = [n for n, ids in enumerate(choices) if len(ids) > 1]
    contexts = torch.tensor([prompt.context for prompt in prompts], device=model.device)
    output = model(input_ids=contexts, use_cache=bool(longer), logits_to_keep=1)
    first = torch.tensor([ids[0] for ids in choices], device=model.device)
    found = gather(output.logits[:, -1], first, owner).tolist()
    if longer:
        (name,) = _cached(model, None)
        cache = getattr(output, name)
        cache.batch_select_indices(owner[longer])
        rows = pad([choices[n][:-1] for n in longer], 0, model.device)
        logits = model(input_ids=rows, use_cache=True, **{name: cache}).logits
        for number, row in zip(longer, logits, strict=True):
            rest = torch.tensor(choices[number][1:], device=model.device)
            found[number] += gather(row[: len(rest)], rest).double().sum().item()
    return found


def score_rows(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[float]:
    """Read every choice behind a context of its own."""
    rows = []
    for prompt in prompts:
        for choice in prompt.choices:
            labels = [IGNORE_INDEX] * len(prompt.context) + list(choice.ids)
            rows.append(([*prompt.context, *choice.ids], labels))
    size = max(len(ids) for ids, _ in rows)
    return [-loss for loss, _ in text_losses(model, rows, token_budget=len(prompts) * size)]
