"""Distribute a model over the processes that accelerate launched: one, DDP, or FSDP of version 2."""

from __future__ import annotations

import ctypes
import os
import sys
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch.distributed.fsdp import MixedPrecisionPolicy

from ctxft.config import TrainConfig
from ctxft.models import pick_device
from ctxft.storage import InputError

LARGE = 20_000_000  # parameters from which the memory of freed tensors is given back at once
M_MMAP_THRESHOLD, BLOCK = -3, 4 * 2**20


def training_device(config: TrainConfig) -> str:
    """Return "cpu" or "cuda": what the recipe says, or the CPU under `accelerate launch --cpu`, though a GPU is there.

    Raises:
        InputError: the recipe asks for a GPU, and there is none.
    """
    device = pick_device(config.device)
    return "cpu" if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") else device


def distribute(
    model: torch.nn.Module, config: TrainConfig, device: str, **kwargs
) -> tuple[Accelerator, torch.nn.Module, torch.optim.Optimizer]:
    """Distribute a model over the processes that were launched together, with an AdamW over what is trained.

    Args:
        model: with adapters or not.
        config: the recipe.
        device: "cpu" (float32) or "cuda" (bfloat16 over float32 weights).
        kwargs: further arguments of accelerate's ``Accelerator``.

    Returns:
        (accelerator, wrapped model, its AdamW itself: accelerate's wrapper would only skip steps for loss scaling).

    Raises:
        InputError: they were launched in a way that is not supported.
    """
    if device == "cpu":
        _return_freed_memory(model)
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier training here may have used another device
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=4))  # others wait while one writes a checkpoint
    precision = "no" if device == "cpu" else "bf16"
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[patience], **kwargs)
    _check_strategy(accelerator)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},  # norms and biases
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
    model, wrapped = accelerator.prepare(model, optimizer)
    return accelerator, model, wrapped.optimizer


def _check_strategy(accelerator: Accelerator) -> None:
    """Refuse strategies that are not supported, and let FSDP add gradients up in float32."""
    kind = accelerator.distributed_type
    plugin = accelerator.state.fsdp_plugin if kind == DistributedType.FSDP else None
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    if kind not in known or (plugin and plugin.fsdp_version != 2):
        raise InputError(
            f"training cannot be distributed by {kind.value}{' version 1' if plugin else ''}: use "
            "`accelerate launch --use_fsdp --fsdp_version 2`, or plain `accelerate launch` for DDP."
        )
    if plugin and accelerator.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )


def _return_freed_memory(model: torch.nn.Module) -> None:
    """Let glibc return large freed blocks to the system, instead of keeping holes that a third of the memory may lie in.

    Left alone it learns to keep blocks of up to 32 MB. Small models are faster so, and need little.
    """
    if sys.platform == "linux" and sum(p.numel() for p in model.parameters()) >= LARGE:
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version"):
            library.mallopt(M_MMAP_THRESHOLD, BLOCK)
