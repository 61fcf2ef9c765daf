"""Texts and choices go in; log-likelihoods in nats come out, and they do not depend on batching or padding.

A choice is scored as lm-evaluation-harness scores it: the same token ids, the same cut of texts that are too long, the
sum of the log-probabilities of the choice's tokens. What is shared is computed once: the choices of a question read its
context from one pass (with letters, that pass is all), and only positions that are read pass the output layer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ctxft.examples import IGNORE_INDEX
from ctxft.models import window_of
from ctxft.runtime import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ChoiceScores:
    """The scores of one question: per choice its log-likelihood (nats, summed) and its tokens; and the tokens cut off.

    ``truncated`` counts the tokens cut from the left of the context, the most over the choices; 0 if the text fitted.
    """

    log_likelihoods: list[float]
    tokens: list[int]
    truncated: int


@dataclasses.dataclass
class _Prompt:
    """A context that is run once, and the choices that follow it: (request number, choice number, ids)."""

    context: tuple[int, ...]
    choices: list[tuple[int, int, list[int]]]

    @property
    def room(self) -> int:
        """Tokens that the prompt and its choices, padded, hold in memory."""
        return len(self.choices) * (len(self.context) + max(len(ids) for *_, ids in self.choices))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokenise a context and its continuation by the rule of lm-evaluation-harness.

    White space at the end of the context moves to the continuation. Both are then encoded as one text, and the
    continuation is what follows as many ids as the context alone has: encoded apart it would begin with other tokens in
    some tokenizers. Special tokens are those the tokenizer adds by itself; an empty context becomes BOS (else EOS).

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
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if context:
        special = prefix is None or not context.startswith(tokenizer.decode(prefix))
        context_ids = _encode(tokenizer, context, special)
        continuation_ids = _encode(tokenizer, context + continuation, special)[len(context_ids) :]
    else:
        continuation_ids = _encode(tokenizer, continuation, special=False)
        if continuation_ids[:1] == [prefix]:
            continuation_ids = continuation_ids[1:]
        context_ids = [prefix]
    if not context_ids or not continuation_ids or context_ids == [None]:
        raise InputError(
            f"nothing is left to score of {continuation!r} after {context[-40:]!r}: the tokenizer merges the two;"
            " begin the choice with a space or another word."
        )
    return context_ids, continuation_ids


@contextlib.contextmanager
def _reading(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout and gradients off, and restore the training mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _pad(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> torch.Tensor:
    """Return rows as one tensor, filled up on the right; no real token of a causal model can see the filling."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def _gather(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the float32 log-probabilities of targets [n], read from logits [n, vocabulary]."""
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


# --- choices ----------------------------------------------------------------------------------------------------------


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[tuple[str, Sequence[str]]],
    window: int | None = None,
    token_budget: int = 4096,
    progress: Progress | None = None,
    names: Sequence[str] | None = None,
) -> list[ChoiceScores]:
    """Return the log-likelihood of every choice of every question.

    A context with its choice that is longer than the window loses tokens on the left: the last ``window`` + 1 are kept,
    of which the model reads all but the last.

    Args:
        model: a causal language model, plain or with a LoRA adapter; its training mode is restored afterwards.
        tokenizer: its tokenizer.
        requests: (context, continuations) for each question.
        window: tokens the model can read; None takes ``max_position_embeddings`` of its config.
        token_budget: tokens of contexts with their choices in one batch; a larger question runs alone.
        progress: called with (contexts done, all contexts) after each batch.
        names: a name for each request, used in errors.

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
    window = window or window_of(model) or sys.maxsize
    scores = [ChoiceScores([0.0] * len(choices), [0] * len(choices), 0) for _, choices in requests]
    shared: dict[tuple[int, ...], _Prompt] = {}
    for number, (context, choices) in enumerate(requests):
        cut = 0
        for choice, text in enumerate(choices):
            ids, choice_ids = _fit(tokenizer, context, text, window, names[number] if names else f"request {number}")
            # Choices of unequal length cut unequally much of the context; those that leave the same share a prompt.
            kept = tuple(ids[-(window + 1) : len(ids) - len(choice_ids)])
            shared.setdefault(kept, _Prompt(kept, [])).choices.append((number, choice, choice_ids))
            scores[number].tokens[choice] = len(choice_ids)
            cut = max(cut, len(ids) - window - 1)
        scores[number] = dataclasses.replace(scores[number], truncated=cut)
    done = 0
    with _reading(model):
        for prompts in _batches(shared.values(), token_budget):
            readers = [reader for prompt in prompts for reader in prompt.choices]
            for value, (number, choice, _) in zip(_score_batch(model, prompts), readers, strict=True):
                scores[number].log_likelihoods[choice] = value
            done += len(prompts)
            if progress:
                progress(done, len(shared))
    return scores


def _fit(
    tokenizer: PreTrainedTokenizerBase, context: str, text: str, window: int, name: str
) -> tuple[list[int], list[int]]:
    """Return (all ids, the choice's ids), or an error that names the question."""
    try:
        context_ids, choice_ids = encode_pair(tokenizer, context, text)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if len(choice_ids) > window:
        raise InputError(
            f"{name}: a choice has {len(choice_ids)} tokens, but the model reads {window}: shorten {text[:40]!r}."
        )
    return context_ids + choice_ids, choice_ids


def _batches(prompts: Iterable[_Prompt], token_budget: int) -> Iterator[list[_Prompt]]:
    """Yield prompts with equally long contexts, longest first; their rooms sum to the budget at most, or it is one."""
    batch: list[_Prompt] = []
    room = 0
    for prompt in sorted(prompts, key=lambda p: -len(p.context)):
        if batch and (len(prompt.context) != len(batch[0].context) or room + prompt.room > token_budget):
            yield batch
            batch, room = [], 0
        batch.append(prompt)
        room += prompt.room
    if batch:
        yield batch


def _score_batch(model: PreTrainedModel, prompts: Sequence[_Prompt]) -> list[float]:
    """Return the log-likelihood of every choice of prompts with equally long contexts, so that none is padded."""
    choices = [ids for prompt in prompts for *_, ids in prompt.choices]
    owner = torch.tensor([n for n, prompt in enumerate(prompts) for _ in prompt.choices], device=model.device)
    longer = [n for n, ids in enumerate(choices) if len(ids) > 1]
    contexts = torch.tensor([prompt.context for prompt in prompts], device=model.device)
    # Asking the model for the last position, instead of applying the output layer by hand, keeps what some
    # architectures do to their logits (scaling, soft caps).
    output = model(input_ids=contexts, use_cache=bool(longer), logits_to_keep=1)
    first = torch.tensor([ids[0] for ids in choices], device=model.device)
    found = _gather(output.logits[:, -1][owner], first).tolist()
    if longer:
        cache = output.past_key_values
        cache.batch_select_indices(owner[longer])
        rows = _pad([choices[n][:-1] for n in longer], 0, model.device)
        logits = model(input_ids=rows, past_key_values=cache, use_cache=True).logits
        for number, row in zip(longer, logits, strict=True):
            rest = torch.tensor(choices[number][1:], device=model.device)
            found[number] += _gather(row[: len(rest)], rest).sum().item()
    return found


# --- texts ------------------------------------------------------------------------------------------------------------


def text_losses(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], token_budget: int = 4096
) -> list[tuple[float, int]]:
    """Return the loss of texts, summed over the tokens that are targets.

    Rows are sorted by length and padded on the right. ``token_budget`` x vocabulary logits are in memory at once.

    Args:
        model: a causal language model, plain or with a LoRA adapter; its training mode is restored afterwards.
        rows: (input ids, labels) of equal length; label i is predicted from the ids before it; ``IGNORE_INDEX`` is
            no target. The label of the first id has nothing before it and is never a target, as in ``transformers``.
        token_budget: padded tokens in one batch; a longer row runs alone.

    Returns:
        For each row (summed negative log-likelihood in nats, number of target tokens).

    Raises:
        InputError: a row is empty, or its ids and labels differ in length.

    Example:
        >>> text_losses(model, [([1, 5, 9], [-100, -100, 9])])  # doctest: +SKIP
        [(6.2, 1)]
    """
    for number, (ids, labels) in enumerate(rows):
        if not ids or len(ids) != len(labels):
            raise InputError(
                f"row {number} has {len(ids)} ids and {len(labels)} labels: they must be equally many, 1 or more."
            )
    found = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]))
    with _reading(model):
        while order:
            size = max(1, token_budget // len(rows[order[0]][0]))
            batch, order = order[:size], order[size:]
            ids = _pad([rows[n][0] for n in batch], 0, model.device)
            mask = _pad([[1] * len(rows[n][0]) for n in batch], 0, model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for number, row in zip(batch, logits, strict=True):
                labels = torch.tensor(rows[number][1][1:], dtype=torch.long, device=model.device)
                wanted = (labels != IGNORE_INDEX).nonzero()[:, 0]
                values = _gather(row[wanted], labels[wanted])
                found[number] = (-values.double().sum().item(), len(wanted))
    return found
