"""The target tokens of every passage flow in; which passages make each optimizer step flows out, the same in every arm.

A step is a set of passages, fixed by the seed before anything is packed: prompts take room, so an order that followed the
packing would differ between arms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ctxft.storage import seeded
from ctxft.training.config import TrainConfig


def _epoch(passages: int, replayed: int, share: float, seed: int, epoch: int) -> list[int]:
    """Return one epoch's order: every passage once, and as many passages of general text as the share asks for.

    General text is drawn without replacement while it lasts; its indices follow those of the passages.
    """
    random = seeded("order", seed, epoch)
    indices = list(range(passages))
    random.shuffle(indices)
    wanted = round(share / (1 - share) * passages) if replayed else 0
    if wanted:
        drawn = seeded("replay", seed, epoch)
        pool: list[int] = []
        while len(pool) < wanted:
            pool += drawn.sample(range(passages, passages + replayed), min(replayed, wanted - len(pool)))
        for index in pool:
            indices.insert(drawn.randrange(len(indices) + 1), index)
    return indices


def _stream(passages: int, replayed: int, share: float, seed: int) -> Iterator[tuple[int, int]]:
    """Yield (epoch, index of a passage) without end."""
    epoch = 0
    while True:
        for index in _epoch(passages, replayed, share, seed, epoch):
            yield epoch, index
        epoch += 1


def passage_order(
    targets: Sequence[int], config: TrainConfig, seed: int, replay: Sequence[int] = (), share: float = 0.0
) -> list[list[int]]:
    """Choose which passages make each optimizer step, from the seed and the target counts alone: the same in every arm.

    With ``batch_tokens`` a step takes passages while their target tokens fit the budget, one at least; with
    ``batch_passages`` it takes that many. Each epoch has an order of its own. Where ``epochs`` decides the length, the last
    step is filled from a further epoch.

    Args:
        targets: target tokens of each passage.
        config: epochs or steps, and the size of a step.
        seed: of the experiment.
        replay: target tokens of each passage of general text, which may be mixed in; their indices follow the passages'.
        share: of general text among the passages of an epoch, from 0 to below 1.

    Returns:
        For each optimizer step the indices of its passages.

    Example:
        >>> order = passage_order([30, 30, 30], TrainConfig(epochs=2, batch_passages=2), seed=0)
        >>> len(order), sorted(order[0] + order[1][:1])
        (3, [0, 1, 2])
    """
    counts = [*targets, *replay]
    steps: list[list[int]] = []
    step: list[int] = []
    held = 0
    for epoch, index in _stream(len(targets), len(replay), share, seed):
        full = len(step) >= config.batch_passages
        if config.batch_tokens is not None:
            full = bool(step) and held + counts[index] > config.batch_tokens
        if full:
            steps.append(step)
            step, held = [], 0
            if len(steps) == config.steps or (config.steps is None and epoch >= config.epochs):
                return steps
        step.append(index)
        held += counts[index]
    raise AssertionError("the stream of passages has no end")
