"""Choose the sizes of a synthetic study: one ``SyntheticConfig`` for all its targets, arms and seeds.

``mini`` shows the order of the errors on a laptop in minutes. ``full`` is the recipe that the authors released
(Choi et al., ICLR 2025, arXiv 2503.09032, with their code): for a GPU.
"""

from __future__ import annotations

from ctxft.config import SyntheticConfig, from_mapping
from ctxft.storage import InputError, check_known

TARGETS = ("linear", "polynomial", "sumdot", "relu", "sigmoid", "tanh", "product")
ARMS = ("cft", "cpt", "neg", "fresh", "neg-scaled", "shuffled", "cpt-long", "no-query")
PAPER_ARMS = ARMS[:3]


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
