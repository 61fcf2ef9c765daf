"""Make a model ready for training (attention, loss, adapters), and check on it that packing changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import peft
import torch
from peft import PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ctxft.config import LoraConfig, TrainConfig
from ctxft.data.rows import IGNORE_INDEX
from ctxft.models import load_model, resolve_model, window_of
from ctxft.storage import InputError
from ctxft.training.loss import patch_loss_forward
from ctxft.training.packing import Row, micro_batches, set_attention

PROBE_TOKENS = 12  # of each of the two rows that are read to try out packing and loss


def add_adapters(model: PreTrainedModel, settings: LoraConfig, **kwargs) -> PeftModel:
    """Put trainable low-rank adapters on a model and freeze the rest.

    Args:
        model: the base model.
        settings: rank, alpha, dropout, targets.
        kwargs: of peft's ``get_peft_model``.

    Raises:
        InputError: no layer has one of the target names.
    """
    adapter = peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if settings.target_modules == ["all-linear"] else settings.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks transformers by an old name
            return get_peft_model(model, adapter, **kwargs)
    except ValueError as error:
        raise InputError(f"train.lora.target_modules: {error}") from None


def trainable_model(
    base: str, revision: str | None, config: TrainConfig, attention: str, start: Path | None = None
) -> torch.nn.Module:
    """Load a model in float32 and make it ready for training.

    Args:
        base: the base model: a practice model, a folder or a hub id.
        revision: its hub revision.
        config: the recipe.
        attention: "segments", "varlen", "sdpa" or "eager".
        start: model folder of an earlier stage, whose weights or adapter are trained further; None starts from the base model.

    Raises:
        InputError: the model or its adapter cannot be used so.
    """
    lora = config.method == "lora"
    model = load_model(str(start) if start and not lora else base, revision if lora or not start else None)
    set_attention(model, attention)
    if config.gradient_checkpointing:
        # transformers renamed it in 5.24
        switch = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        switch({"use_reentrant": False})
    patch_loss_forward(model, config.loss)
    if not lora:
        return model.requires_grad_(True)
    if start is None:
        adapted = add_adapters(model, config.lora)
        adapted.peft_config["default"].revision = revision
    else:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            adapted = PeftModel.from_pretrained(model, start, is_trainable=True)
    # where the files are: peft looks up the base model's config each time it saves, on the hub if it is not here
    adapted.peft_config["default"].base_model_name_or_path = resolve_model(base, revision)[0]
    return adapted


def check_row_lengths(rows: Iterable[Row], model: torch.nn.Module, config: TrainConfig) -> None:
    """Raise InputError if a row is longer than max_length or the model's limit."""
    longest = max(len(row["input_ids"]) for row in rows)
    limit = window_of(cast(PreTrainedModel, model))
    if longest > min(config.max_length, limit or longest):
        raise InputError(
            f"a row has {longest} tokens, but train.max_length is {config.max_length} and the model's limit {limit}."
        )


def check_packed_loss(model: torch.nn.Module, row: Row, attention: str, pad: int, device: str) -> None:
    """Read two short rows in one micro-batch and check that the loss is that of the model's own forward pass.

    Whatever a kind of model does to its attention, positions or logits shows here, before any step is taken.

    Args:
        model: wrapped or not; every process must call this.
        row: a row of the training; its first tokens are used.
        attention: as for ``trainable_model``.
        pad: token id that fills lines.
        device: of the model.

    Raises:
        InputError: the first row can be seen from the second, or the loss is another.
    """
    ids = (row["input_ids"] * PROBE_TOKENS)[:PROBE_TOKENS]
    second = {"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]]}
    losses = []
    model.eval()
    with torch.no_grad():
        for first in (ids, ids[::-1]):
            silent = {"input_ids": first, "labels": [IGNORE_INDEX] * PROBE_TOKENS}
            (batch,) = micro_batches([silent, second], attention, 2 * PROBE_TOKENS, pad)
            losses.append(model(**batch.inputs(device)).loss.item())
        (alone,) = micro_batches([second], attention, PROBE_TOKENS, pad)
        own = {name: value for name, value in alone.inputs(device).items() if "target" not in name}
        logits = model(**own, use_cache=False).logits[0, :-1]
        reference = cross_entropy(logits.float(), torch.tensor(ids[1:], device=device), reduction="sum").item()
    model.train()
    if abs(losses[0] - losses[1]) > 1e-5 * abs(reference):
        raise InputError(
            f"this kind of model lets one passage see another when they are packed (train.attn_implementation {attention}): set "
            "train.pack to false."
        )
    if abs(losses[0] - reference) > (1e-4 if device == "cpu" else 3e-2) * abs(reference):
        raise InputError(
            f"the loss of two packed passages is {losses[0]:.4f}, that of the model alone {reference:.4f}: this kind of model "
            "changes its logits after the output layer (set train.loss to full) or its positions (train.pack to false)."
        )
