"""Choose the sizes of a synthetic study: one ``SyntheticConfig`` for all its targets, arms and seeds.

``mini``, the defaults, shows the order of the errors on a laptop in minutes. ``full`` is the authors' recipe, for a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from ctxft.config import Config, Count, Device, FolderName, Natural, Positive, from_mapping
from ctxft.storage import InputError, check_known, read_yaml, runs_root

TARGETS = ("linear", "polynomial", "sumdot", "relu", "sigmoid", "tanh", "product")
ARMS = ("cft", "cpt", "neg", "fresh", "neg-scaled", "shuffled", "cpt-long", "no-query")


class SyntheticConfig(Config):
    """What all targets, arms and seeds of a synthetic study share; in brackets the values of the paper's code.

    Attributes:
        name: The folder below the run root.
        dims: Numbers in an x (20).
        points: Pairs (x, y) of the context, and again of the target (41).
        layers: Of the network (12).
        width: Numbers in a hidden state (256).
        heads: Attention heads (8).
        batch: Sequences in an optimizer step, each with a function of its own.
        pretrain_steps: Optimizer steps of in-context linear regression (50,001).
        finetune_steps: Optimizer steps of an arm (50,001).
        start_points: Points of the first pre-training sequences (11).
        points_every: Optimizer steps after which the curriculum adds two points (2000).
        learning_rate: Of Adam (1e-4).
        warmup_steps: Optimizer steps of linear warm-up (0).
        decay_share: Last fraction of the steps, in which the rate falls to a twentieth (0).
        log_every: Optimizer steps between two lines of the log.
        test_prompts: Sequences that errors are measured on (1280).
        device: "cpu", "cuda" or "auto".
        threads: CPU threads of a process.
    """

    name: FolderName = "synthetic-mini"
    dims: Count = 3
    points: int = Field(default=8, ge=2)
    layers: Count = 2
    width: Count = 48
    heads: Count = 4
    batch: Count = 64
    pretrain_steps: Count = 1000
    finetune_steps: Count = 800
    start_points: Count = 4
    points_every: Count = 200
    learning_rate: Positive = 2e-3
    warmup_steps: Natural = 100
    decay_share: float = Field(default=0.3, ge=0, le=1)
    log_every: Count = 20
    test_prompts: Count = 1280
    device: Device = "cpu"
    threads: Count = 1

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.width % self.heads:
            raise InputError(f"width ({self.width}) must be a multiple of heads ({self.heads}).")
        if self.start_points > self.points:
            raise InputError(f"start_points ({self.start_points}) must not exceed points ({self.points}).")
        return self

    @property
    def folder(self) -> Path:
        """The study's folder below the run root."""
        return runs_root() / self.name

    def what(self) -> dict:
        """Return the values that decide the result, without those that say where it is computed."""
        return self.model_dump(exclude={"name", "device", "threads"})


SIZES = {"mini": {}, "full": read_yaml(Path(__file__).with_name("full.yaml"))}


def load_config(size: str = "mini", settings: dict | None = None) -> SyntheticConfig:
    """Return the config of a size, with single values replaced.

    Args:
        size: "mini" or "full".
        settings: field names and values, such as ``{"finetune_steps": 10000}``.

    Raises:
        InputError: an unknown size or field (the nearest is named), or a value of a wrong type or range.
    """
    check_known(size, SIZES, "size")
    return from_mapping(SyntheticConfig, SIZES[size] | (settings or {}), "synthetic")


def check_study(target: str, arms: list[str], seeds: list[int]) -> None:
    """Raise InputError unless target, arms and seeds can be run: known names, no seed below 0, nothing empty or twice."""
    check_known(target, TARGETS, "target")
    for arm in arms:
        check_known(arm, ARMS, "arm")
    for what, values in (("arm", arms), ("seed", seeds)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"give at least one {what}, and each once, found {list(values)}.")
    if min(seeds) < 0:
        raise InputError(f"a seed is 0 or more, found {min(seeds)}.")
