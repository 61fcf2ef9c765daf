"""Measure what a model may have forgotten: loss on general text, whether it stops, whether it answers in form.

Measured on the base model and on every arm in the same way, so that before and after can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ctxft.data.passages import Passage
from ctxft.data.rows import IGNORE_INDEX, special_tokens
from ctxft.evaluation.scoring import generate_greedily, text_losses
from ctxft.models import window_of
from ctxft.storage import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = 64  # beginnings and questions that are continued, at most
BEGINNING, ANSWER = 16, 48  # tokens of a document's beginning; tokens that an answer may have


def mean_loss(
    model: PreTrainedModel, rows: Sequence[Mapping[str, Any]], max_batch_tokens: int | None = None
) -> tuple[float, int]:
    """Return the mean loss on rows, in nats a target token, and how many targets they have."""
    pairs = text_losses(model, [(row["input_ids"], row["labels"]) for row in rows], max_batch_tokens)
    count = sum(tokens for _, tokens in pairs)
    return sum(loss for loss, _ in pairs) / count, count


def probe_state() -> str:
    """Return a hash of the settings of ``forgetting``."""
    return sha256([PROMPTS, BEGINNING, ANSWER])


def forgetting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    passages: Sequence[Passage],
    instructions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Measure what a model may have forgotten.

    Args:
        model: the base model or a trained arm.
        tokenizer: its tokenizer.
        max_length: tokens of a training row.
        passages: held-out passages, of general text where there is some.
        instructions: held-out rows of the stage ift.

    Returns:
        eos_rate (fraction of the documents' beginnings whose greedy continuation ends within two rows); answers_in_form
        (fraction of the instructions whose greedy answer is not empty and ends); and how many documents and answers were
        counted. Without passages or instructions their values are left out.

    Example:
        >>> forgetting(model, tokenizer, 128, passages, [])["eos_rate"]  # doctest: +SKIP
        0.97
    """
    special = special_tokens(tokenizer)
    results: dict[str, float] = {}

    if first := [passage for passage in passages if passage.index == 0][:PROMPTS]:
        prompts = [[special.start, *passage.ids[:BEGINNING].tolist()] for passage in first]
        longest = min(2 * max_length, window_of(model) or 2 * max_length)
        texts = generate_greedily(model, prompts, [special.eos], longest - BEGINNING - 1, special.pad)
        results |= {"eos_rate": sum(special.eos in ids for ids in texts) / len(texts), "eos_documents": len(texts)}
    if rows := instructions[:PROMPTS]:
        control = set(tokenizer.all_special_ids)
        # What ends an answer in the chat template, beside EOS: the control tokens among the targets.
        ends = {label for row in rows for label in row["labels"] if label in control} | {special.eos}
        prompts = [row["input_ids"][: _answer_start(row["labels"])] for row in rows]
        texts = generate_greedily(model, prompts, ends, ANSWER, special.pad)
        good = [is_in_form(ids, ends, control) for ids in texts]
        results |= {"answers_in_form": sum(good) / len(good), "answers": len(good)}
    return results


def _answer_start(labels: Sequence[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != IGNORE_INDEX)


def is_in_form(ids: Sequence[int], ends: Collection[int], control: Collection[int]) -> bool:
    """Return whether an answer holds something, ends, and has no control token before its end.

    Example:
        >>> is_in_form([7, 8, 2], ends=[2], control=[1, 2]), is_in_form([7, 1, 2], [2], [1, 2]), is_in_form([2], [2], [1, 2])
        (True, False, False)
    """
    *before, last = ids
    return bool(before) and last in ends and not set(before) & set(control)
