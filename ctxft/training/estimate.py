"""Estimate the memory of a training from its recipe and the model's config, before any weights are read.

Parameters are counted on the real architecture, and so is what its layers keep for the backward pass: the model is built without
memory (torch's meta device), reads one micro-batch, and the tensors that autograd saves are summed up.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from peft import PeftModel
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ctxft.config import TrainConfig
from ctxft.training.loss import LOGITS_AT_ONCE
from ctxft.training.model import add_adapters


def _estimate_attention(module, query, key, value, attention_mask, **_):
    """Attend with the kernel that attention inside one row has on a CPU; those of GPUs keep the same tensors."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, 0.0, True)[0].transpose(1, 2), None


AttentionInterface.register("ctxft_estimate", _estimate_attention)


def empty_model(config: PreTrainedConfig, recipe: TrainConfig, dtype=torch.float32) -> torch.nn.Module:
    """Build a model without memory, with adapters where the recipe has them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation="ctxft_estimate"
        )
        if recipe.method == "lora":
            model = add_adapters(model, recipe.lora, low_cpu_mem_usage=True)
    return model.train()


def kept_bytes(model: torch.nn.Module, tokens: int) -> int:
    """Return the bytes that autograd keeps of one pass over ``tokens`` tokens, up to the hidden states; no parameters.

    Args:
        model: on the meta device, with the attention "ctxft_estimate".
        tokens: of the micro-batch.
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # kept alive: a storage that is freed might lend its address to another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    inner = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        output = inner.get_decoder()(input_ids=ids, position_ids=ids, use_cache=False)
    del output
    return sum(storage.nbytes() for storage in saved.values())


def activation_bytes(model: torch.nn.Module, text: PreTrainedConfig, recipe: TrainConfig, size: int) -> int:
    """Return the bytes that one micro-batch keeps for its backward pass.

    With checkpointing each layer keeps its input alone, and one layer at a time is computed again.

    Args:
        model: as for ``kept_bytes``.
        text: the config of its text part.
        recipe: how it is trained.
        size: bytes of a number.
    """
    tokens, layers = recipe.micro_batch_tokens, text.num_hidden_layers
    kept = kept_bytes(model, tokens)
    if recipe.gradient_checkpointing:
        kept = kept // layers + layers * tokens * text.hidden_size * size
    # the widest gradients while a layer is left: of the feed-forward part's three products
    return kept + 3 * tokens * (getattr(text, "intermediate_size", None) or 4 * text.hidden_size) * size


def estimate_memory(
    config: PreTrainedConfig, recipe: TrainConfig, device: str = "cpu", shards: int = 1
) -> dict[str, int]:
    """Estimate what training takes from the config alone.

    Args:
        config: the model's config.
        recipe: how it is trained.
        device: "cpu" (computes in float32) or "cuda" (bfloat16 over float32 weights).
        shards: GPUs over which FSDP shards weights, gradients and optimizer state; 1 where each process holds everything.

    Returns:
        parameters and trained: how many there are. Bytes on each device: weights, gradients and optimizer, which stay;
        activations, kept for the backward pass of one micro-batch; logits, those in memory at once and the output layer's
        gradient while it is summed; total, at the fullest moment (later micro-batches of a step meet the gradients of the
        first).

    Example:
        >>> from ctxft.config import TrainConfig
        >>> from ctxft.models import model_config
        >>> estimate_memory(model_config("practice-blind"), TrainConfig())["parameters"] > 100_000
        True
    """
    compute = torch.float32 if device == "cpu" else torch.bfloat16
    model, text = empty_model(config, recipe, compute), config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = text.vocab_size * text.hidden_size
    weights = 4 * parameters // shards
    if device != "cpu":  # copies of the weights in bfloat16: of all, or of the layers at work
        at_work = 2 * head + 2 * (parameters - 2 * head) // text.num_hidden_layers
        weights += 2 * (parameters if shards == 1 else at_work)
    rows = min(recipe.micro_batch_tokens, max(1, LOGITS_AT_ONCE // text.vocab_size))
    sizes = {
        "weights": weights,
        "gradients": 4 * trained // shards,
        "optimizer": 8 * trained // shards,
        "activations": activation_bytes(model, text, recipe, compute.itemsize),
        "logits": 4 * rows * text.vocab_size + (4 * head if trained == parameters else 0),
    }
    return {"parameters": parameters, "trained": trained} | sizes | {"total": sum(sizes.values())}
