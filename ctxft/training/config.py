"""A recipe flows in from YAML; its values, each checked, flow out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ctxft.storage import InputError, check_known

METHODS = ("full", "lora")
SCHEDULES = ("linear", "cosine", "constant")
DEVICES = ("auto", "cpu", "cuda")
ATTENTIONS = ("auto", "segments", "varlen", "sdpa", "eager")
LOSSES = ("chunked", "full")
# What may change between a stop and a resume: speed and memory, and no result but by rounding (and, with dropout, by other
# draws, where micro-batches change).
FREE = ("micro_batch_tokens", "save_every", "gradient_checkpointing", "tensorboard", "threads", "attention")


@dataclass
class LoraSettings:
    """Low-rank adapters (peft). The paper's code offers rank 8, alpha 32, dropout 0.1.

    Attributes:
        rank: rank of the two factors.
        alpha: scale; the update is multiplied by alpha / rank.
        dropout: on the adapter's input, during training.
        targets: names of the layers, or ["all-linear"].
    """

    rank: int = 8
    alpha: int = 32
    dropout: float = 0.1
    targets: list[str] = field(default_factory=lambda: ["all-linear"])

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1 or not self.targets:
            raise InputError(
                "train.lora: rank and alpha must be at least 1, dropout a share from 0 to below 1, targets not empty; "
                f"found rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}, targets {self.targets}."
            )


@dataclass
class TrainConfig:
    """How every arm of an experiment is trained; the arms differ in the prompt and in nothing else.

    Attributes:
        method: "full" or "lora".
        window: tokens a row may have, prompt and special tokens included.
        min_text_tokens: text tokens that the window must leave after the longest prompt.
        epochs: passes over the passages; the last optimizer step is filled from a further pass.
        steps: optimizer steps; where given, it replaces epochs.
        batch_passages: passages in an optimizer step, over all devices.
        batch_tokens: target tokens that an optimizer step may have, over all devices; where given, it replaces
            batch_passages.
        micro_batch_tokens: tokens in one forward pass on one device, prompts and padding included; changes speed and
            memory only.
        pack: lay the rows of a step out side by side, none seeing another; false pads each to the longest beside it.
        attention: "auto" (segments on a CPU, varlen on a GPU, sdpa without packing), or one of them, or "eager".
        loss: "chunked" (logits of some targets at a time) or "full", for a model that changes its logits after the output
            layer.
        learning_rate: peak, after warm-up.
        schedule: "linear" or "cosine" decay to zero, or "constant".
        warmup: share of the optimizer steps.
        weight_decay: of AdamW.
        betas: of AdamW.
        epsilon: of AdamW.
        clip: largest norm of the gradient; 0 turns clipping off.
        gradient_checkpointing: recompute activations instead of storing them.
        save_every: optimizer steps between checkpoints; 0 writes none.
        tensorboard: write TensorBoard events beside log.jsonl (needs the package tensorboard).
        device: "auto" (a GPU where there is one), "cpu" or "cuda". A GPU computes in bfloat16 over float32 weights.
        threads: CPU threads of a training or evaluation process; results are bit-identical for the same number only.
        lora: settings of the adapters, with method "lora".
    """

    method: str = "full"
    window: int = 128
    min_text_tokens: int = 32
    epochs: int = 5
    steps: int | None = None
    batch_passages: int = 16
    batch_tokens: int | None = None
    micro_batch_tokens: int = 4096
    pack: bool = True
    attention: str = "auto"
    loss: str = "chunked"
    learning_rate: float = 5e-4
    schedule: str = "linear"
    warmup: float = 0.05
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    epsilon: float = 1e-8
    clip: float = 1.0
    gradient_checkpointing: bool = False
    save_every: int = 0
    tensorboard: bool = False
    device: str = "auto"
    threads: int = 1
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        check_known(self.method, METHODS, "train.method")
        check_known(self.schedule, SCHEDULES, "train.schedule")
        check_known(self.device, DEVICES, "train.device")
        check_known(self.attention, ATTENTIONS, "train.attention")
        check_known(self.loss, LOSSES, "train.loss")
        positive = (
            "window",
            "min_text_tokens",
            "epochs",
            "batch_passages",
            "micro_batch_tokens",
            "learning_rate",
            "epsilon",
            "threads",
        )
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:  # also refuses NaN
                raise InputError(f"train.{name} must be above 0, found {getattr(self, name)}.")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"train.steps must be at least 1 optimizer step, found {self.steps}.")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise InputError(f"train.batch_tokens must be at least 1 target token, found {self.batch_tokens}.")
        for name in ("save_every", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"train.{name} must be 0 or more, found {getattr(self, name)}.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"train.warmup must be a share from 0 to below 1, found {self.warmup}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"train.betas must be two numbers from 0 to below 1, found {self.betas}.")
        if self.micro_batch_tokens < self.window:
            raise InputError(
                f"train.micro_batch_tokens ({self.micro_batch_tokens}) must hold at least one row: train.window is "
                f"{self.window} tokens."
            )
