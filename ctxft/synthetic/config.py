"""A size and settings flow in; a checked ``SyntheticConfig`` flows out, the same for every target, arm and seed of a study.

``mini`` shows the order of the errors on a laptop in minutes. ``full`` is the recipe that the authors released
(Choi et al., ICLR 2025, arXiv 2503.09032, with their code): for a GPU.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ctxft.storage import InputError, check_known, from_mapping, runs_root

TARGETS = ("linear", "polynomial", "sumdot", "relu", "sigmoid", "tanh", "product")
ARMS = ("cft", "cpt", "neg", "fresh", "neg-scaled", "shuffled", "cpt-long", "no-query")
PAPER_ARMS = ARMS[:3]
WHERE_NOT_WHAT = ("name", "device", "threads", "save_every")  # where and how a study runs, not what it computes


@dataclasses.dataclass
class SyntheticConfig:
    """What all targets, arms and seeds of a study share.

    Example:
        >>> load_config("mini").points
        8
    """

    name: str = "synthetic-mini"  # the folder below the run root
    dims: int = 3  # numbers in an x; the paper: 20
    points: int = 8  # pairs (x, y) of the context, and again of the target; the paper: 41
    layers: int = 2  # the paper: 12
    width: int = 48  # numbers in a hidden state; the paper: 256
    heads: int = 4  # the paper: 8
    batch: int = 64  # sequences an optimizer step, each with a function of its own
    pretrain_steps: int = 1000  # optimizer steps of in-context linear regression; the paper: 50,001
    finetune_steps: int = 800  # optimizer steps an arm; the paper: 50,001
    start_points: int = 4  # points of the first pre-training sequences; the paper: 11
    points_every: int = 200  # optimizer steps after which the curriculum adds two points; the paper: 2000
    learning_rate: float = 2e-3  # of Adam; the paper: 1e-4
    warmup_steps: int = 100  # optimizer steps of linear warm-up; the paper: 0
    decay_share: float = 0.3  # last share of the steps, in which the rate falls to a twentieth; the paper: 0
    log_every: int = 20  # optimizer steps between two lines of the log
    save_every: int = 100  # optimizer steps between two checkpoints, a multiple of log_every
    test_prompts: int = 1280  # sequences that errors are measured on; the paper: 1280
    device: str = "cpu"  # cpu, cuda or auto
    threads: int = 1  # CPU threads of a process

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            low = 0 if field.name in ("warmup_steps", "decay_share") else 1
            value = getattr(self, field.name)
            if field.name == "learning_rate":
                low = 1e-12
            if not isinstance(value, str) and not value >= low:
                raise InputError(f"{field.name} must be at least {low}, found {value}.")
        if self.width % self.heads:
            raise InputError(f"width ({self.width}) must be a multiple of heads ({self.heads}).")
        if self.points < 2:
            raise InputError(f"points must be at least 2, found {self.points}.")
        if self.start_points > self.points:
            raise InputError(f"start_points ({self.start_points}) must not exceed points ({self.points}).")
        if self.save_every % self.log_every:
            raise InputError(f"save_every ({self.save_every}) must be a multiple of log_every ({self.log_every}).")
        if self.decay_share > 1:
            raise InputError(f"decay_share is a share from 0 to 1, found {self.decay_share}.")

    @property
    def folder(self) -> Path:
        """The study's folder below the run root."""
        return runs_root() / self.name

    def what(self) -> dict:
        """Return the values that decide the result, without those that say where it is computed."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in WHERE_NOT_WHAT}


FULL = {
    "name": "synthetic-full",
    "dims": 20,
    "points": 41,
    "layers": 12,
    "width": 256,
    "heads": 8,
    "pretrain_steps": 50_001,
    "finetune_steps": 50_001,
    "start_points": 11,
    "points_every": 2000,
    "learning_rate": 1e-4,
    "warmup_steps": 0,
    "decay_share": 0.0,
    "log_every": 100,
    "save_every": 1000,
    "device": "auto",
}
SIZES = {"mini": {}, "full": FULL}


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
