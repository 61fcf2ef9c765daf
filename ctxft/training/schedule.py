"""Plan a training: which passages make each optimizer step, and at which learning rate.

A step is a set of passages, fixed by the seed before anything is packed: prompts take room, so an order that followed the
packing would differ between arms. The estimate of a training and the training itself use this plan.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Sequence

from ctxft.config import TrainConfig
from ctxft.storage import seeded


def _epoch(passages: int, general: int, fraction: float, seed: int, epoch: int) -> array:
    """Return one epoch's order: every passage once, and as many passages of general text as the fraction asks for.

    General text is sampled without replacement while it lasts; its indices follow those of the passages.
    """
    indices = array("i", range(passages))
    seeded("order", seed, epoch).shuffle(indices)
    wanted = round(fraction / (1 - fraction) * passages) if general else 0
    random, sample = seeded("replay", seed, epoch), []
    while len(sample) < wanted:
        sample += random.sample(range(passages, passages + general), min(general, wanted - len(sample)))
    for index in sample:
        indices.insert(random.randrange(len(indices) + 1), index)
    return indices


def passage_order(
    targets: Sequence[int], config: TrainConfig, seed: int, general: Sequence[int] = (), fraction: float = 0.0
) -> list[list[int]]:
    """Choose the passages of each optimizer step from the seed and the target counts alone: the same in every arm.

    With ``train_batch_tokens`` a step takes passages while their target tokens fit, one at least; with ``train_batch_size``
    it takes that many. Each epoch has an order of its own. Where ``num_train_epochs`` decides the length, the last step is
    filled from a further epoch.

    Args:
        targets: target tokens of each passage.
        config: the recipe; its epochs or steps, and the size of a step.
        seed: of the experiment.
        general: target tokens of each passage of general text, which may be mixed in; their indices follow the passages'.
        fraction: of general text among the passages of an epoch, from 0 to below 1.

    Returns:
        For each optimizer step the indices of its passages.

    Example:
        >>> order = passage_order([30, 30, 30], TrainConfig(num_train_epochs=2, train_batch_size=2), seed=0)
        >>> len(order), sorted(order[0] + order[1][:1])
        (3, [0, 1, 2])
    """
    counts = array("i", targets) + array("i", general)
    steps: list[list[int]] = []
    step: list[int] = []
    tokens = 0
    sizes = len(targets), len(general)
    stream = ((epoch, index) for epoch in itertools.count() for index in _epoch(*sizes, fraction, seed, epoch))
    for epoch, index in stream:
        full = len(step) >= config.train_batch_size
        if config.train_batch_tokens is not None:
            full = bool(step) and tokens + counts[index] > config.train_batch_tokens
        if full:
            steps.append(step)
            step, tokens = [], 0
            if len(steps) == config.max_steps or (config.max_steps is None and epoch >= config.num_train_epochs):
                break
        step.append(index)
        tokens += counts[index]
    return steps


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of an optimizer step: linear warm-up, then the schedule down to 0 (or constant).

    Args:
        config: the recipe.
        step: number of the optimizer step, from 1.
        steps: optimizer steps of the whole training.

    Source:
        the schedules "linear", "cosine" and "constant_with_warmup" of transformers.

    Example:
        >>> learning_rate(TrainConfig(learning_rate=1.0, warmup_steps=0.0), step=6, steps=10)
        0.5
    """
    done, warmup = step - 1, config.warmup_steps
    rise = round(warmup * steps) if warmup < 1 else warmup
    if done < rise:
        return config.learning_rate * done / rise
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    decayed = (done - rise) / max(1, steps - rise)
    return config.learning_rate * (
        0.5 * (1 + math.cos(math.pi * decayed)) if config.lr_scheduler_type == "cosine" else 1 - decayed
    )
