"""Score the choices of questions: a log-likelihood in nats for each, as lm-evaluation-harness computes it.

The same token ids, the same cut of texts that are too long, the sum of the log-probabilities of the choice's tokens.
What is shared is computed once: the beginning that many contexts have in common, the context that a question's choices
have in common (with letters, that pass is all), and of the output layer only the positions that are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from ctxft.evaluation.scoring.encoding import Pair, Progress, check_pair, encode_requests
from ctxft.evaluation.scoring.texts import batch_tokens, inference
from ctxft.evaluation.scoring.tree import (
    Choice,
    Group,
    Prompt,
    batches,
    read_header,
    reads_trees,
    score_rows,
    score_tree,
    share_headers,
    sliding_window,
)
from ctxft.models import window_of
from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    max_length: int | None = None,
    max_batch_tokens: int | None = None,
    progress: Progress | None = None,
    names: Sequence[str] | None = None,
    scored: Callable[[int, ChoiceScores], None] | None = None,
    chat: bool = False,
) -> list[ChoiceScores]:
    """Return the log-likelihood of every choice of every question.

    A context with its choice that is longer than ``max_length`` loses tokens on the left: the last ``max_length`` + 1 are kept,
    of which the model reads all but the last.

    Args:
        model: a causal language model, plain or with a LoRA adapter, in any float type; log-probabilities are computed
            in float32 (of a float64 model in float64) and summed in float64. Its training mode is restored afterwards.
        tokenizer: its tokenizer.
        requests: (context, continuations) for each question.
        max_length: tokens the model can read; None takes ``max_position_embeddings`` of its config.
        max_batch_tokens: tokens of contexts with their choices, padded, in one batch; a larger question runs alone. None
            takes what suits the device.
        progress: called with (contexts done, all contexts) after each batch.
        names: a name for each request, used in errors.
        scored: called with (number of the request, its scores) as soon as all its choices are done.
        chat: contexts and continuations were written by ``ctxft.data.chat``, so their control tokens are read as such.

    Returns:
        One ``ChoiceScores`` for each request, in order.

    Raises:
        InputError: a choice leaves nothing to score, or is longer than ``max_length``; the request is named.

    Source:
        lm-evaluation-harness 0.4, ``HFLM._loglikelihood_tokens`` (same ids, same truncation).

    Example:
        >>> score_choices(model, tokenizer, [("2 + 2 =", [" 4", " 5"])])[0].log_likelihoods  # doctest: +SKIP
        [-1.3, -4.2]
    """
    max_length = max_length or window_of(model) or sys.maxsize
    pairs = encode_requests(tokenizer, requests, chat)
    scores = []
    for number, ((context, texts), encoded) in enumerate(zip(requests, pairs, strict=True)):
        scores.append(_unscored(context, texts, encoded, max_length, names[number] if names else f"request {number}"))
    prompts = _prompts(pairs, max_length)
    missing = [len(encoded) for encoded in pairs]
    done = 0
    with contextlib.closing(_read(model, prompts, batch_tokens(model, max_batch_tokens))) as batches_read:
        for batch, values in batches_read:
            for choice, value in zip((choice for prompt in batch for choice in prompt.choices), values, strict=True):
                scores[choice.request].log_likelihoods[choice.number] = value
                missing[choice.request] -= 1
                if scored and not missing[choice.request]:
                    scored(choice.request, scores[choice.request])
            done += len(batch)
            if progress:
                progress(done, len(prompts))
    return scores


def _unscored(context: str, texts: Sequence[str], encoded: Sequence[Pair], max_length: int, name: str) -> ChoiceScores:
    """Return what is known of a request before it is read; raises InputError if a choice cannot be scored."""
    for text, pair in zip(texts, encoded, strict=True):
        try:
            check_pair(pair, context, text)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        if len(pair[1]) > max_length:
            raise InputError(
                f"{name}: a choice has {len(pair[1])} tokens, but the model reads {max_length}: shorten {text[:40]!r}."
            )
    cut = max((len(context_ids) + len(ids) - max_length - 1 for context_ids, ids in encoded), default=0)
    return ChoiceScores([0.0] * len(encoded), [len(ids) for _, ids in encoded], max(0, cut))


def _prompts(pairs: Sequence[Sequence[Pair]], max_length: int) -> list[Prompt]:
    """Return the contexts that are left of at most ``max_length`` tokens, each with all of its choices.

    Choices of unequal length cut unequally much of their context; those that leave the same of it share a prompt.
    """
    prompts: dict[tuple[int, ...], Prompt] = {}
    for request, encoded in enumerate(pairs):
        for number, (context, ids) in enumerate(encoded):
            cut = max(0, len(context) + len(ids) - (max_length + 1))
            kept = tuple(context[cut:])
            prompts.setdefault(kept, Prompt(kept, [])).choices.append(Choice(request, number, tuple(ids)))
    return list(prompts.values())


def _read(
    model: PreTrainedModel, prompts: Sequence[Prompt], max_batch_tokens: int
) -> Generator[tuple[list[Prompt], list[float]], None, None]:
    """Yield batches with the log-likelihoods of all their choices, the longest prompts first.

    The one mask of a tree stands for all layers, so a prompt that is longer than a sliding window is read row by row.
    """
    if not prompts:
        return
    reach = (sliding_window(model) or sys.maxsize) if reads_trees(model) else 0
    rows, trees = ([p for p in prompts if (p.span <= reach) is tree] for tree in (False, True))
    copies = max(len(prompt.choices) for prompt in prompts)  # of a context, where each choice has one of its own
    with inference(model):
        for batch in batches(Group(0, rows), max_batch_tokens // copies):
            yield batch, score_rows(model, batch)
        for group in share_headers(trees):
            header = read_header(model, group.prompts[0].context[: group.header]) if group.header else None
            for batch in batches(group, max_batch_tokens):
                yield batch, score_tree(model, batch, header)
