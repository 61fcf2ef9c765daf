"""A model flows in; what it may have forgotten flows out: loss on general text, whether it stops, whether it answers in form.

Measured on the base model and on every arm in the same way, so that before and after stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ctxft.data.passages import Passage
from ctxft.data.rows import IGNORE_INDEX, special_tokens
from ctxft.evaluation.scoring import text_losses
from ctxft.models import window_of
from ctxft.storage import sha256

PROMPTS = 64  # beginnings and questions that are written on, at most
BEGINNING, ANSWER = 16, 48  # tokens of a document's beginning; tokens an answer may have
ROWS = 16  # rows written on at once


def write_on(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], ends: Sequence[int], pad: int, tokens: int
) -> list[list[int]]:
    """Return what a model writes behind prompts, always the likeliest token, up to and with the first end token.

    Args:
        model: a causal language model.
        prompts: token ids of each prompt.
        ends: token ids that end a text.
        pad: token id that fills rows on the left.
        tokens: tokens written at most.
    """
    found = []
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=list(ends), pad_token_id=pad)
    for begin in range(0, len(prompts), ROWS):
        rows = [list(row) for row in prompts[begin : begin + ROWS]]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        with torch.inference_mode():
            written = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()
        for row in written:
            stops = [place for place, token in enumerate(row) if token in ends]
            found.append(row[: stops[0] + 1] if stops else row)
    return found


def mean_loss(
    model: PreTrainedModel, rows: Sequence[dict[str, list[int]]], token_budget: int | None
) -> tuple[float, int]:
    """Return the mean loss on rows, in nats a target token, and how many targets they have."""
    pairs = text_losses(model, [(row["input_ids"], row["labels"]) for row in rows], token_budget)
    count = sum(tokens for _, tokens in pairs)
    return sum(loss for loss, _ in pairs) / count, count


def _eos_rate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, window: int, passages: Sequence[Passage]
) -> dict:
    """Write on from the beginnings of held-out documents and count those that come to an end."""
    first = [passage for passage in passages if passage.index == 0][:PROMPTS]
    if not first:
        return {}
    special = special_tokens(tokenizer)
    prompts = [[special.start, *passage.ids[:BEGINNING].tolist()] for passage in first]
    tokens = min(window * 2, (window_of(model) or window * 2)) - BEGINNING - 1
    written = write_on(model, prompts, [special.eos], special.pad, tokens)
    return {"eos_rate": sum(special.eos in row for row in written) / len(written), "eos_documents": len(written)}


def in_form(written: Sequence[int], ends: Sequence[int], special: Sequence[int]) -> bool:
    """Return whether an answer holds something, comes to an end, and has no control token before it.

    Example:
        >>> in_form([7, 8, 2], ends=[2], special=[1, 2]), in_form([7, 1, 2], [2], [1, 2]), in_form([2], [2], [1, 2])
        (True, False, False)
    """
    *before, last = written
    return bool(before) and last in ends and not set(before) & set(special)


def _answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict]) -> dict:
    """Answer held-out instructions and count the answers that have the form of one; whether they are right is not asked."""
    rows = rows[:PROMPTS]
    if not rows:
        return {}
    special, control = special_tokens(tokenizer), set(tokenizer.all_special_ids)
    # what ends an answer in the chat template, beside EOS: the first control token among the targets
    closing = {label for row in rows for label in row["labels"] if label in control} | {special.eos}
    prompts = []
    for row in rows:
        before = next(place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
        prompts.append(row["input_ids"][:before])
    written = write_on(model, prompts, sorted(closing), special.pad, ANSWER)
    good = sum(in_form(row, sorted(closing), sorted(control)) for row in written)
    return {"answers_in_form": good / len(written), "answers": len(written)}


def probe_state() -> str:
    """Return a hash of how the probe asks: what it reads beside the model and the texts."""
    return sha256([PROMPTS, BEGINNING, ANSWER])


def forgetting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    passages: Sequence[Passage],
    instructions: Sequence[dict],
) -> dict:
    """Measure what a model may have forgotten.

    Args:
        model: the base model or a trained arm.
        tokenizer: its tokenizer.
        window: tokens of a training row.
        passages: held-out passages, of general text where there is some.
        instructions: held-out rows of the stage ift.

    Returns:
        eos_rate (share of the documents' beginnings whose greedy continuation ends within two windows); answers_in_form
        (share of the instructions whose greedy answer is not empty and ends); and how many documents and answers were
        counted. What there is nothing of is left out.

    Example:
        >>> forgetting(model, tokenizer, 128, passages, [])["eos_rate"]  # doctest: +SKIP
        0.97
    """
    return _eos_rate(model, tokenizer, window, passages) | _answers(model, tokenizer, instructions)
