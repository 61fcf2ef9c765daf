"""A model's name and a recipe flow in; a network that is ready to train flows out: adapters, attention, loss, each checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ctxft.data.rows import IGNORE_INDEX
from ctxft.models import load_model, resolve_model, window_of
from ctxft.storage import InputError
from ctxft.training.attention import set_attention
from ctxft.training.config import LoraSettings, TrainConfig
from ctxft.training.loss import read_for_loss
from ctxft.training.packing import Row, micro_batches

PROBE_TOKENS = 12  # of each of the two rows that are read to try out packing and loss


def wrap_lora(model: PreTrainedModel, settings: LoraSettings, base: str, revision: str | None) -> PeftModel:
    """Put trainable low-rank adapters on a model and freeze the rest.

    Args:
        model: the base model.
        settings: rank, alpha, dropout, targets.
        base: the base model's name.
        revision: the base model's commit on the hub.

    Raises:
        InputError: no layer has one of the target names.
    """
    targets = "all-linear" if settings.targets == ["all-linear"] else settings.targets
    adapter = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    adapter.revision = revision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to be replaced
            wrapped = get_peft_model(model, adapter)
    except ValueError as error:
        raise InputError(f"train.lora.targets: {error}") from None
    # where the files are: peft looks up the base model's config each time it saves, on the hub if it is not here
    wrapped.peft_config["default"].base_model_name_or_path = resolve_model(base, revision)[0]
    return wrapped


def build_network(
    base: str, revision: str | None, config: TrainConfig, attention: str, start: Path | None = None
) -> torch.nn.Module:
    """Load a model in float32 and make it ready to train.

    Args:
        base: the base model: a practice model, a folder or a hub id.
        revision: its hub revision.
        config: the recipe.
        attention: "segments", "varlen", "sdpa" or "eager".
        start: model folder of an earlier stage, whose weights or adapter are trained on; None starts from the base model.

    Raises:
        InputError: the model or its adapter cannot be used so.
    """
    lora = config.method == "lora"
    model = load_model(str(start) if start and not lora else base, revision if lora or not start else None)
    set_attention(model, attention, config.window)
    if config.gradient_checkpointing:
        # transformers renamed it in 5.24
        switch = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        switch({"use_reentrant": False})
    read_for_loss(model, config.loss)
    if not lora:
        return model.requires_grad_(True)
    if start is None:
        return wrap_lora(model, config.lora, base, revision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = PeftModel.from_pretrained(model, start, is_trainable=True)
    adapted.peft_config["default"].base_model_name_or_path = resolve_model(base, revision)[0]  # as in wrap_lora
    return adapted


def check_rows(rows: Sequence[Row], model: torch.nn.Module, config: TrainConfig) -> None:
    """Raise InputError if a row is longer than the recipe's window or the model's limit."""
    longest = getattr(rows, "longest", None) or max(len(row["input_ids"]) for row in rows)
    limit = window_of(model)
    if longest > min(config.window, limit or longest):
        raise InputError(
            f"a row has {longest} tokens, but train.window is {config.window} and the model's limit {limit}."
        )


def probe(model: torch.nn.Module, row: Row, config: TrainConfig, attention: str, pad: int, device: str) -> None:
    """Read two short rows in one micro-batch and make sure that the loss is that of the model's own forward pass.

    Whatever a kind of model does to its attention, positions or logits shows here, before any step is taken.

    Args:
        model: wrapped or not; every process must call this.
        row: a row of the training; its first tokens are used.
        config: the recipe.
        attention: see ``build_network``.
        pad: token id that fills lines.
        device: of the model.

    Raises:
        InputError: the first row can be seen from the second, or the loss is another.
    """
    ids = (row["input_ids"] * PROBE_TOKENS)[:PROBE_TOKENS]
    second = {"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]]}
    found = []
    model.eval()
    with torch.no_grad():
        for first in (ids, ids[::-1]):
            silent = {"input_ids": first, "labels": [IGNORE_INDEX] * PROBE_TOKENS}
            batch = micro_batches([silent, second], config, attention, pad)[0]
            found.append(model(**batch.inputs(device)).loss.item())
        logits = model(input_ids=torch.tensor([ids], device=device), **_alone(attention)).logits[0, :-1]
        alone = cross_entropy(logits.float(), torch.tensor(ids[1:], device=device), reduction="sum").item()
    model.train()
    if abs(found[0] - found[1]) > 1e-5 * abs(alone):
        raise InputError(
            f"this kind of model lets one passage see another when they are packed (train.attention {attention}): set "
            "train.attention to sdpa, or train.pack to false."
        )
    if abs(found[0] - alone) > (1e-4 if device == "cpu" else 3e-2) * abs(alone):
        raise InputError(
            f"the loss of two packed passages is {found[0]:.4f}, that of the model alone {alone:.4f}: this kind of model "
            "changes its logits after the output layer (set train.loss to full) or its positions (train.pack to false)."
        )


def _alone(attention: str) -> dict:
    """Return what the model's own forward pass needs to read one row of the probe."""
    bounds = torch.tensor([0, PROBE_TOKENS], dtype=torch.int32, device="cuda" if attention == "varlen" else "cpu")
    extra = {
        "segments": {"segments": [PROBE_TOKENS]},
        "varlen": {"segment_bounds": bounds, "longest_segment": PROBE_TOKENS},
    }
    return {"use_cache": False, **extra.get(attention, {})}
