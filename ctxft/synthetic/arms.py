"""Tasks and an arm's name flow in; what that arm reads before the target, and its predictions, flow out.

Every arm predicts the same target pairs (x_i, y_i). What stands before them:

    cft         (x_i, w.x_i) at the same x_i: the paper's context
    cpt         nothing: the paper masks the context, which equals leaving it out, position numbers kept
    neg         (x_i, noise), the noise new each step and of sd 1: the paper's negative
    fresh       (x'_i, w.x'_i) at other points: w can be learned from it, no answer can be copied
    neg-scaled  neg with noise of the true sd, the root of dims
    shuffled    the true w.x_i, each at a wrong x
    cpt-long    pairs of the target function itself at other points: cpt with as many tokens as cft reads
    no-query    cft, but the query's own pair is replaced by one at another point

A context serves all queries of its sequence, so ``no-query`` takes two sequences: one without the pairs of the even
queries, one without those of the odd ones. Each query is answered in the one that never held its pair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctxft.storage import check_known
from ctxft.synthetic.config import ARMS
from ctxft.synthetic.tasks import Draws, Tasks

Context = tuple[Tensor, Tensor]


def context_of(arm: str, tasks: Tasks, draws: Draws) -> Context | None:
    """Return the pairs that an arm reads before the target, as a differentiable function of the tasks' x.

    Args:
        arm: one of ARMS.
        tasks: the batch.
        draws: the chance drawn for it.

    Returns:
        x (batch, points, dims) and y (batch, points); for no-query (2 batch, ...), even queries left out first; for
        cpt None.

    Raises:
        InputError: the arm is unknown.
    """
    check_known(arm, ARMS, "arm")
    if arm == "cpt":
        return None
    if arm == "neg":
        return tasks.x, draws.noise
    if arm == "neg-scaled":
        return tasks.x, draws.noise * tasks.x.shape[2] ** 0.5
    if arm == "fresh":
        return draws.x, tasks.linear(draws.x)
    if arm == "cpt-long":
        return draws.x, tasks.values(draws.x)
    true = tasks.linear(tasks.x)
    if arm == "cft":
        return tasks.x, true
    if arm == "shuffled":  # each point takes the value of the next one in the cycle
        moved = true.gather(1, draws.order.roll(-1, 1))
        return tasks.x, torch.zeros_like(moved).scatter(1, draws.order, moved)
    even = _even(tasks).view(1, -1, 1)
    x = torch.cat((torch.where(even, draws.x, tasks.x), torch.where(even, tasks.x, draws.x)))
    return x, torch.einsum("bnd,bd->bn", x, tasks.w.repeat(2, 1))


def _even(tasks: Tasks) -> Tensor:
    return torch.arange(tasks.x.shape[1], device=tasks.x.device) % 2 == 0


def predict(network: nn.Module, tasks: Tasks, context: Context | None) -> Tensor:
    """Return a network's predictions of the target values.

    Args:
        network: maps (x, y, start) to predictions, as ``Regressor``.
        tasks: the batch; the y of its pairs are read as they come, each after its prediction.
        context: from ``context_of``.

    Returns:
        (batch, points).
    """
    x, y, points = tasks.x, tasks.values(tasks.x), tasks.x.shape[1]
    if context is None:
        return network(x, y, start=2 * points)
    copies = len(context[0]) // len(x)
    x, y = x.repeat(copies, 1, 1), y.repeat(copies, 1)
    found = network(torch.cat((context[0], x), 1), torch.cat((context[1], y), 1))[:, points:]
    return found if copies == 1 else torch.where(_even(tasks), *found.chunk(2))


def squared_errors(network: nn.Module, arm: str, tasks: Tasks, draws: Draws) -> Tensor:
    """Return the squared error of every prediction, (batch, points), with the context of ``arm``."""
    return (predict(network, tasks, context_of(arm, tasks, draws)) - tasks.values(tasks.x)).square()
