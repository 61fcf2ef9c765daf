"""A model flows in; what it may have forgotten flows out: loss on general text, whether it stops, whether it answers in form.

Measured on the base model and on every arm in the same way, so that before and after stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig
from ctxft.data.rows import IGNORE_INDEX, special_tokens
from ctxft.evaluation.scoring import text_losses
from ctxft.models import window_of
from ctxft.run.instruct import has_instructions, read_instruction_rows
from ctxft.run.rows import read_passages, rows_of
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


def _general_loss(config: ExperimentConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    passages = read_passages(config.folder, "general_held_out") if config.general else []
    if not passages:
        return {}
    rows, _ = rows_of(config, "cpt", 0, passages, tokenizer)
    pairs = text_losses(model, [(row["input_ids"], row["labels"]) for row in rows], config.evaluation.token_budget)
    count = sum(tokens for _, tokens in pairs)
    return {"general_loss": sum(loss for loss, _ in pairs) / count, "general_tokens": count}


def _eos_rate(config: ExperimentConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Write on from the beginnings of held-out documents and count those that come to an end."""
    which = "general_held_out" if config.general else "held_out"
    first = [passage for passage in read_passages(config.folder, which) if passage.index == 0][:PROMPTS]
    if not first:
        return {}
    special = special_tokens(tokenizer)
    prompts = [[special.start, *passage.ids[:BEGINNING].tolist()] for passage in first]
    tokens = min(config.train.window * 2, (window_of(model) or config.train.window * 2)) - BEGINNING - 1
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


def _answers(config: ExperimentConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Answer held-out instructions and count the answers that have the form of one; whether they are right is not asked."""
    if not has_instructions(config.arms):
        return {}
    rows = read_instruction_rows(config.folder, "instructions_held_out")[:PROMPTS]
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


def probe_state(config: ExperimentConfig, hashes: dict) -> str:
    """Return a hash of what the probe reads beside the model."""
    instructions = (
        read_instruction_rows(config.folder, "instructions_held_out") if has_instructions(config.arms) else []
    )
    return sha256([hashes.get("general"), instructions, PROMPTS, BEGINNING, ANSWER])


def forgetting(config: ExperimentConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Measure what a model may have forgotten.

    Args:
        config: the experiment; its run is prepared.
        model: the base model or a trained arm.
        tokenizer: its tokenizer.

    Returns:
        general_loss (nats a token on held-out general text, where the experiment names general text); eos_rate (share of
        held-out documents' beginnings whose greedy continuation ends within two windows); answers_in_form (share of
        held-out instructions whose greedy answer is not empty and ends, where an arm has the stage ift); and how many
        tokens, documents and answers were counted.

    Example:
        >>> forgetting(config, model, tokenizer)["eos_rate"]  # doctest: +SKIP
        0.97
    """
    given = (config, model, tokenizer)
    return _general_loss(*given) | _eos_rate(*given) | _answers(*given)
