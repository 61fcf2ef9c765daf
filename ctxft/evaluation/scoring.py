"""Score choices and texts in nats and generate answers, whatever the batching.

The log-likelihoods are those of lm-evaluation-harness: the same token ids, the same cut of texts that are too long, the sum of
the log-probabilities of a choice's tokens. What is shared is computed once: the beginning that many contexts have in common, the
context that a question's choices have in common (with letters, that pass is all), and of the output layer only the positions
that are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import DynamicCache, GenerationConfig

from ctxft.data.chat import encode_rendered
from ctxft.data.rows import IGNORE_INDEX
from ctxft.models import window_of
from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CPU_BUDGET, GPU_BUDGET = 1024, 8192  # a CPU is quickest while a batch stays in its caches, a GPU while it is full


def batch_tokens(model: PreTrainedModel, max_batch_tokens: int | None) -> int:
    """Return the padded tokens of one batch: the limit that is set, or what suits the model's device."""
    return max_batch_tokens or (CPU_BUDGET if model.device.type == "cpu" else GPU_BUDGET)


@contextlib.contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout and gradients off, and restore the training mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def base_model(model: Any) -> PreTrainedModel:
    """Return the model itself, below an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def pad(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> torch.Tensor:
    """Return rows as one tensor, padded on the right; no real token of a causal model can see the padding."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def gather(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of targets [n], each read from a row of logits [rows, vocabulary].

    They are computed in float32, or in float64 where the model computes in it.
    """
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))[rows, targets]


def text_losses(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], max_batch_tokens: int | None = None
) -> list[tuple[float, int]]:
    """Return the loss of texts, summed over the tokens that are targets.

    Rows are sorted by length and padded on the right. ``max_batch_tokens`` x vocabulary logits are in memory at once.

    Args:
        model: a causal language model, plain or with a LoRA adapter; its training mode is restored afterwards.
        rows: (input ids, labels) of equal length; label i is predicted from the ids before it; ``IGNORE_INDEX`` is
            no target. The label of the first id has nothing before it and is never a target, as in ``transformers``.
        max_batch_tokens: padded tokens in one batch; a longer row runs alone. None takes what suits the device.

    Returns:
        For each row (summed negative log-likelihood in nats, number of target tokens).

    Example:
        >>> text_losses(model, [([1, 5, 9], [-100, -100, 9])])  # doctest: +SKIP
        [(6.2, 1)]
    """
    losses, budget = [(0.0, 0)] * len(rows), batch_tokens(model, max_batch_tokens)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]))
    with inference(model):
        while order:
            size = max(1, budget // len(rows[order[0]][0]))
            batch, order = order[:size], order[size:]
            ids = pad([rows[n][0] for n in batch], 0, model.device)
            mask = pad([[1] * len(rows[n][0]) for n in batch], 0, model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for number, row in zip(batch, logits, strict=True):
                labels = torch.tensor(rows[number][1][1:], dtype=torch.long, device=model.device)
                targets = (labels != IGNORE_INDEX).nonzero()[:, 0]
                values = gather(row[targets], labels[targets], torch.arange(len(targets), device=model.device))
                losses[number] = (-values.double().sum().item(), len(targets))
    return losses


# --- token ids --------------------------------------------------------------------------------------------------------

Pair = tuple[list[int], list[int]]  # ids of a context, ids of its continuation


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], chat: bool = False) -> list[list[int]]:
    """Tokenize many texts, each once and all in two calls of the tokenizer, with the special tokens that it adds by itself.

    Args:
        tokenizer: of the model that will read the ids.
        texts: the texts.
        chat: the texts were written by ``ctxft.data.chat``, whose control tokens are read; else "</s>" and the like are text.
            Such a text may bring its own BOS, and gets no second one: that would be no text that a model was trained on.
    """
    bos = str(tokenizer.bos_token or "") if chat else ""
    kinds = {text: not (bos and text.startswith(bos)) for text in texts}  # whether special tokens are added
    ids: dict[str, list[int]] = {}
    for kind in (True, False):
        part = [text for text in kinds if kinds[text] is kind]
        if chat:
            ids |= zip(part, (row for row, _ in encode_rendered(tokenizer, part, kind)), strict=True)
        elif part:
            options: dict[str, Any] = {"add_special_tokens": kind, "split_special_tokens": True, "verbose": False}
            ids |= zip(part, tokenizer(part, **options)["input_ids"], strict=True)
    return [ids[text] for text in texts]


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """Tokenize a context and its continuation by the rule of lm-evaluation-harness.

    White space at the end of the context moves to the continuation. Both are then encoded as one text, and the
    continuation is what follows as many ids as the context alone has: encoded apart it would begin with other tokens in
    some tokenizers. Special tokens are those the tokenizer adds by itself; an empty context is its BOS.
    Unlike there, a text that spells a special token out ("</s>") stays text.

    Args:
        tokenizer: of the model that will read the ids.
        context: the text before, such as "Question: ...\\nAnswer:".
        continuation: the text to score, such as " B".

    Returns:
        (ids of the context, ids of the continuation).

    Raises:
        InputError: the tokenizer merges the whole continuation into the context's last token: nothing is left.

    Source:
        lm-evaluation-harness 0.4, ``TemplateLM._encode_pair`` and ``TemplateLM.loglikelihood``.

    Example:
        >>> encode_pair(tokenizer, "Answer:", " yes")  # doctest: +SKIP
        ([1, 673, 29], [4874])
    """
    pair = encode_requests(tokenizer, [(context, [continuation])])[0][0]
    _check_pair(pair, context, continuation)
    return pair


def encode_requests(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[tuple[str, Sequence[str]]], chat: bool = False
) -> list[list[Pair]]:
    """Tokenize the continuations of many contexts as ``encode_pair`` does.

    Args:
        tokenizer: of the model that will read the ids.
        requests: (context, its continuations).
        chat: they were written by ``ctxft.data.chat``.

    Returns:
        For each request a pair of ids for each continuation; a pair may be empty on one side.
    """
    moved = []
    for context, continuations in requests:
        kept = context.rstrip()
        moved.append((kept, [context[len(kept) :] + text for text in continuations]))
    texts = [context + text for context, continuations in moved for text in ("", *continuations)]
    ids = dict(zip(texts, encode_texts(tokenizer, texts, chat), strict=True))
    return [
        [(ids[context], ids[context + text][len(ids[context]) :]) for text in continuations]
        for context, continuations in moved
    ]


def _check_pair(pair: Pair, context: str, continuation: str, where: str = "") -> None:
    """Raise InputError if a continuation has no token of its own, or no token is before it."""
    if not all(pair):
        raise InputError(
            f"{where}nothing is left to score of {continuation!r} after {context.rstrip()[-40:]!r}: the tokenizer merges the"
            " two; begin the choice with a space or another word."
        )


# --- trees ------------------------------------------------------------------------------------------------------------

# Prompts with their choices are read as trees. A row is ``context | choice 1 | choice 2 ...``: a 4D mask lets each choice see
# the context and itself, and its positions continue the context's, so that one pass scores all choices. Prompts that begin with
# the same ids (a description, solved examples) share this header: it is read once and enters as a cache. Models that cannot read
# a tree read each choice after a context of its own; which ones these are, a trial decides, for no list of architectures could
# know what a model does with a mask.

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
    def suffix(self) -> int:
        """Ids of all choices that have to be read: of each all but the last."""
        return sum(len(choice.ids) - 1 for choice in self.choices)


class Group(NamedTuple):
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
    for prompt in sorted(group.prompts, key=lambda prompt: (-len(prompt.context), -prompt.suffix)):
        grown = [*batch, prompt]
        width = len(grown[0].context) + max(one.suffix for one in grown)
        if batch and width * len(grown) > max_batch_tokens:
            yield batch
            grown = [prompt]
        batch = grown
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
    layers: list[Any] = header.layers
    return DynamicCache(
        [(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in layers]
    )


def score_tree(model: PreTrainedModel, prompts: Sequence[Prompt], header: DynamicCache | None = None) -> list[float]:
    """Return the log-likelihoods of all choices of prompts, each prompt read as one row.

    Contexts end in the same column, so the last columns hold all scores; ``header`` is a cache of what all begin with.
    """
    start = header.get_seq_length() if header else 0
    width, suffix = max(len(p.context) for p in prompts) - start, max(p.suffix for p in prompts)
    cells = torch.tensor([_row(prompt, start, width, suffix) for prompt in prompts], device=model.device)
    ids, positions, segments = cells.movedim(-1, 0).contiguous()
    options: dict[str, Any] = {"use_cache": False}
    if header or suffix or bool((segments == PAD).any()):
        options |= {"position_ids": positions, "attention_mask": _mask(segments, start, model)}
    if header:
        options |= {"use_cache": True, **_cached(model, _copies(header, len(prompts)))}
    # What some architectures do to their logits (scaling, caps) stays theirs: the model itself keeps the last columns.
    logits = model(input_ids=ids, logits_to_keep=suffix + 1, **options).logits[:, -(suffix + 1) :]
    return _sums(logits, prompts)


def _row(prompt: Prompt, start: int, width: int, suffix: int) -> list[tuple[int, int, int]]:
    """Return (id, position, segment) of each place in a row: padding, the context from ``start`` on, choices, padding."""
    cells = [(0, 0, PAD)] * (width + start - len(prompt.context))
    cells += [(token, start + n, CONTEXT) for n, token in enumerate(prompt.context[start:])]
    for segment, choice in enumerate(prompt.choices, start=1):  # nothing is predicted from the last id of a choice
        cells += [(token, len(prompt.context) + n, segment) for n, token in enumerate(choice.ids[:-1])]
    return cells + [(0, 0, PAD)] * (width + suffix - len(cells))


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
    choices = [choice for prompt in prompts for choice in prompt.choices]
    places: list[int] = []
    for number, prompt in enumerate(prompts):
        first = number * logits.shape[1]
        column = first + 1
        for choice in prompt.choices:
            places += [first, *range(column, column + len(choice.ids) - 1)]
            column += len(choice.ids) - 1
    targets = torch.tensor([token for choice in choices for token in choice.ids], device=logits.device)
    used, rows = torch.tensor(places, device=logits.device).unique(return_inverse=True)
    values = gather(logits.flatten(0, 1)[used], targets, rows).double()
    return [part.sum().item() for part in values.cpu().split([len(choice.ids) for choice in choices])]


def score_rows(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[float]:
    """Return the log-likelihoods of all choices of prompts, each read after a context of its own."""
    rows = []
    for prompt in prompts:
        for choice in prompt.choices:
            labels = [IGNORE_INDEX] * len(prompt.context) + list(choice.ids)
            rows.append(([*prompt.context, *choice.ids], labels))
    size = max(len(ids) for ids, _ in rows)
    return [-loss for loss, _ in text_losses(model, rows, max_batch_tokens=len(prompts) * size)]


# --- choices ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ChoiceScores:
    """The scores of one question: per choice its log-likelihood (nats, summed) and its tokens; and the tokens cut off.

    ``truncated`` counts the tokens cut from the left of the context, the most over the choices; 0 if the text fitted.
    """

    log_likelihoods: list[float]
    tokens: list[int]
    truncated: int


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[tuple[str, Sequence[str]]],
    max_batch_tokens: int | None = None,
    names: Sequence[str] | None = None,
    done: Callable[[int, ChoiceScores], None] | None = None,
    chat: bool = False,
) -> list[ChoiceScores]:
    """Return the log-likelihood of every choice of every question.

    A context with its choice that is longer than the model's window (``max_position_embeddings``) loses tokens on the left: the
    last window + 1 are kept, of which the model reads all but the last.

    Args:
        model: a causal language model, plain or with a LoRA adapter, in any float type; log-probabilities are computed
            in float32 (of a float64 model in float64) and summed in float64. Its training mode is restored afterwards.
        tokenizer: its tokenizer.
        requests: (context, continuations) for each question.
        max_batch_tokens: tokens of contexts with their choices, padded, in one batch; a larger question runs alone. None
            takes what suits the device.
        names: a name for each request, used in errors.
        done: called with (number of the request, its scores) as soon as all its choices are done.
        chat: contexts and continuations were written by ``ctxft.data.chat``, so their control tokens are read as such.

    Returns:
        One ``ChoiceScores`` for each request, in order.

    Raises:
        InputError: a choice leaves nothing to score, or is longer than the window; the request is named.

    Source:
        lm-evaluation-harness 0.4, ``HFLM._loglikelihood_tokens`` (same ids, same truncation).

    Example:
        >>> score_choices(model, tokenizer, [("2 + 2 =", [" 4", " 5"])])[0].log_likelihoods  # doctest: +SKIP
        [-1.3, -4.2]
    """
    pairs = encode_requests(tokenizer, requests, chat)
    scores, prompts = _prompts(requests, pairs, window_of(model) or sys.maxsize, names)
    missing = [len(score.tokens) for score in scores]
    with inference(model):
        for batch, values in _read(model, prompts, batch_tokens(model, max_batch_tokens)):
            for choice, value in zip((choice for prompt in batch for choice in prompt.choices), values, strict=True):
                scores[choice.request].log_likelihoods[choice.number] = value
                missing[choice.request] -= 1
                if done and not missing[choice.request]:
                    done(choice.request, scores[choice.request])
    return scores


def _prompts(
    requests: Sequence[tuple[str, Sequence[str]]], pairs: list[list[Pair]], most: int, names: Sequence[str] | None
) -> tuple[list[ChoiceScores], list[Prompt]]:
    """Return what is known of each request before it is read, and the contexts that are left, each with all of its choices.

    Choices of unequal length cut unequally much of their context; those that leave the same of it share a prompt.
    """
    scores: list[ChoiceScores] = []
    prompts: dict[tuple[int, ...], Prompt] = {}
    for request, ((context, texts), encoded) in enumerate(zip(requests, pairs, strict=True)):
        name, cuts = names[request] if names else f"request {request}", [0]
        for number, (text, (before, ids)) in enumerate(zip(texts, encoded, strict=True)):
            _check_pair((before, ids), context, text, f"{name}: ")
            if len(ids) > most:
                raise InputError(
                    f"{name}: a choice has {len(ids)} tokens, but the model reads {most}: shorten {text[:40]!r}."
                )
            cuts.append(max(0, len(before) + len(ids) - most - 1))
            kept = tuple(before[cuts[-1] :])
            prompts.setdefault(kept, Prompt(kept, [])).choices.append(Choice(request, number, tuple(ids)))
        scores.append(ChoiceScores([0.0] * len(encoded), [len(ids) for _, ids in encoded], max(cuts)))
    return scores, list(prompts.values())


def _read(
    model: PreTrainedModel, prompts: Sequence[Prompt], max_batch_tokens: int
) -> Iterator[tuple[list[Prompt], list[float]]]:
    """Yield batches with the log-likelihoods of all their choices, the longest prompts first.

    The one mask of a tree stands for all layers, so a prompt that is longer than a sliding window is read row by row.
    """
    if not prompts:
        return
    reach = (sliding_window(model) or sys.maxsize) if reads_trees(model) else 0
    spans = [len(prompt.context) + max(len(choice.ids) for choice in prompt.choices) - 1 for prompt in prompts]
    rows, trees = ([p for p, n in zip(prompts, spans, strict=True) if (n <= reach) is tree] for tree in (False, True))
    copies = max(len(prompt.choices) for prompt in prompts)  # of a context, where each choice has one of its own
    for batch in batches(Group(0, rows), max_batch_tokens // copies):
        yield batch, score_rows(model, batch)
    for group in share_headers(trees):
        header = read_header(model, group.prompts[0].context[: group.header]) if group.header else None
        for batch in batches(group, max_batch_tokens):
            yield batch, score_tree(model, batch, header)


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Generated:
    """A text that a model generated.

    Attributes:
        text: without special tokens.
        truncated: tokens cut from the left of its prompt.
        tokens: how many were generated, an end token included.
        ended: whether the last is an end token; a text without one was cut off.
    """

    text: str
    truncated: int = 0
    tokens: int = 0
    ended: bool = True


def generate_greedily(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    ends: Collection[int],
    max_new_tokens: int,
    pad: int = 0,
    max_batch_tokens: int | None = None,
    done: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
    """Continue rows of token ids, always with the likeliest token, until an end token or ``max_new_tokens``.

    Of the model's own settings none counts: sampling or a penalty on repetition would not be greedy.

    Args:
        model: a causal language model, plain or with a LoRA adapter; its training mode is restored afterwards.
        rows: token ids, one or more each.
        ends: token ids that end a text.
        max_new_tokens: tokens generated at most.
        pad: token id that fills rows on the left, so that all of a batch end in the same column.
        max_batch_tokens: tokens of rows and answers, padded, in one batch; None takes what suits the device.
        done: called with (number of the row, its new ids) as soon as they are there; the longest rows come first.

    Returns:
        For each row the new ids, up to and with the first end token.

    Source:
        ``transformers.GenerationMixin.generate``.
    """
    plain, budget, texts = base_model(model), batch_tokens(model, max_batch_tokens), [[0]] * len(rows)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    before = plain.generation_config
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": pad}
    plain.generation_config = GenerationConfig(eos_token_id=sorted(ends) or None, **options)
    try:
        while order:
            width = len(rows[order[0]])
            size = max(1, budget // (width + max_new_tokens))
            batch, order = order[:size], order[size:]
            padding = [width - len(rows[n]) for n in batch]
            ids = [[pad] * k + [*rows[n]] for n, k in zip(batch, padding, strict=True)]
            mask = [[0] * k + [1] * (width - k) for k in padding]
            with inference(model):
                ids, mask = (torch.tensor(part, device=model.device) for part in (ids, mask))
                new = plain.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()  # pyright: ignore
            for number, written in zip(batch, new, strict=True):
                length = next((place for place, token in enumerate(written, start=1) if token in ends), None)
                texts[number] = written[:length]
                if done:
                    done(number, texts[number])
    finally:
        plain.generation_config = before
    return texts


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    max_batch_tokens: int | None = None,
    done: Callable[[int, Generated], None] | None = None,
    chat: bool = False,
) -> list[Generated]:
    """Let a model continue each prompt greedily until it ends, by its own end tokens, or has generated enough.

    A prompt that is too long for the model's window loses tokens on the left, so that the answer still fits.

    Args:
        model, max_new_tokens, max_batch_tokens: as for ``generate_greedily``.
        tokenizer: its tokenizer.
        prompts: the texts to continue, in the tokenizer's chat template where they should be.
        done: called with (number of the prompt, its text) as soon as it is there.
        chat: the prompts were written by ``ctxft.data.chat``, so their control tokens are read as such.

    Raises:
        InputError: no room for a prompt is left in the window, or a prompt is empty.

    Source:
        lm-evaluation-harness 0.4, ``HFLM.generate_until`` (same cut on the left).

    Example:
        >>> generate_answers(model, tokenizer, ["2 + 2 ="], max_new_tokens=2)[0].text  # doctest: +SKIP
        ' 4'
    """
    rows, window = encode_texts(tokenizer, prompts, chat), window_of(model) or sys.maxsize
    if window <= max_new_tokens:
        raise InputError(f"the model reads {window} tokens, so {max_new_tokens} new ones leave no room for a prompt.")
    if [] in rows:
        raise InputError(f"prompt {rows.index([])} has no token, so there is nothing to continue: give it a text.")
    room, answers, ends = window - max_new_tokens, {}, _end_tokens(model, tokenizer)

    def keep(number: int, ids: list[int]) -> None:
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        answers[number] = Generated(text, max(0, len(rows[number]) - room), len(ids), bool(ids) and ids[-1] in ends)
        if done:
            done(number, answers[number])

    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    generate_greedily(model, [row[-room:] for row in rows], ends, max_new_tokens, pad, max_batch_tokens, keep)
    return [answers[number] for number in range(len(rows))]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ends: Any = base_model(model).generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return {ends} if isinstance(ends, int) else set(ends or ())
