"""A network and test tasks flow in; errors by number of examples with bands, baselines and gradient alignment flow out."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy
import torch
from torch import Tensor, nn

from ctxft.synthetic.arms import context_of, predict, squared_errors
from ctxft.synthetic.config import SyntheticConfig
from ctxft.synthetic.tasks import TARGET_FUNCTIONS, Draws, Tasks, draw_chance, draw_tasks, make_generator, moved_to

TEST_BATCH = 160  # test sequences at a time
TRIALS = 1000  # resamplings of a bootstrap band
QUADRATURE = 64  # nodes of the normal distribution
CONTEXTS = {"own": None, "fresh": "fresh", "none": "cpt"}  # what the trained network reads at the test


def exam_batches(config: SyntheticConfig, target: str, device: str = "cpu") -> list[tuple[Tasks, Draws]]:
    """Return the test tasks, the same for all arms and seeds of a study, drawn on the CPU whatever the device."""
    sizes = [min(TEST_BATCH, config.test_prompts - start) for start in range(0, config.test_prompts, TEST_BATCH)]
    batches = []
    for number, size in enumerate(sizes):
        tasks = draw_tasks(make_generator("cpu", "test", number), target, size, config.points, config.dims)
        draws = draw_chance(make_generator("cpu", "test context", number), tasks)
        batches.append((moved_to(tasks, device), moved_to(draws, device)))
    return batches


def derivatives(network: nn.Module, arm: str, tasks: Tasks, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Return how the last prediction and the true function move with the last x; one pass back through the network.

    Args:
        network: as in ``predict``.
        arm: whose context is read.
        tasks: the batch.
        draws: the chance drawn for it.

    Returns:
        Three times (batch, dims). *partial*: every copy of x moves and the context's y stay, as the authors measured.
        *total*: the context's y move with x, as they do in the experiment. *true*: the gradient of the target function.
    """
    x = tasks.x.detach().requires_grad_()
    moved = tasks.at(x)
    true = torch.autograd.grad(moved.values(x).sum(), x)[0][:, -1]
    context = context_of(arm, moved, draws)
    if context is None or not context[1].requires_grad:
        partial = torch.autograd.grad(predict(network, moved, context)[:, -1].sum(), x)[0][:, -1]
        return partial, partial, true
    held = context[1].detach().requires_grad_()
    last = predict(network, moved, (context[0], held))[:, -1].sum()
    by_x, by_y = torch.autograd.grad(last, (x, held), retain_graph=True)
    through_y = torch.autograd.grad(context[1], x, by_y)[0]
    return by_x[:, -1], (by_x + through_y)[:, -1], true


def alignment(network: nn.Module, arm: str, tasks: Tasks, draws: Draws) -> dict[str, Tensor]:
    """Return the mean cosine of the partial and of the total derivative with the true gradient, as two numbers.

    Sequences whose true gradient is zero (relu left of its kink) have no direction and are left out.
    """
    partial, total, true = derivatives(network, arm, tasks, draws)
    defined = true.norm(dim=1) > 0
    cosines = {
        name: nn.functional.cosine_similarity(found, true, dim=1)
        for name, found in (("partial", partial), ("total", total))
    }
    return {name: torch.where(defined, value, math.nan).nanmean() for name, value in cosines.items()}


def bootstrap_band(errors: Tensor, seed: int = 0) -> dict[str, list[float]]:
    """Return mean and 95 % bootstrap band of errors (prompts, points), resampled by prompt, as lists over points."""
    errors = errors.double().cpu()
    count = len(errors)
    drawn = torch.randint(count, (TRIALS, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(TRIALS, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(1).double().expand_as(drawn)
    )
    low, high = (weights @ errors / count).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return {"mean": errors.mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}


def examine(network: nn.Module, arm: str, config: SyntheticConfig, target: str, device: str = "cpu") -> dict:
    """Return how a trained network does on the test tasks.

    Args:
        network: trained.
        arm: what it was trained with.
        config: sizes.
        target: name of the target function.
        device: where the network is.

    Returns:
        ``errors``: for its own context, a fresh one and none, mean and band by number of target pairs read before;
        ``alignment``: partial and total, on the test tasks with its own context.
    """
    batches = exam_batches(config, target, device)
    with torch.no_grad():
        errors = {
            name: bootstrap_band(torch.cat([squared_errors(network, other or arm, *batch) for batch in batches]))
            for name, other in CONTEXTS.items()
        }
    found = [alignment(network, arm, *batch) for batch in batches]
    means = {name: torch.stack([row[name] for row in found]).nanmean().item() for name in ("partial", "total")}
    return {"errors": errors, "alignment": means}


def least_squares_errors(x: Tensor, y: Tensor) -> Tensor:
    """Return squared errors of the least-squares line of smallest norm through the pairs before each point.

    Args:
        x: (batch, points, dims).
        y: (batch, points).

    Returns:
        (batch, points). For noiseless linear functions with normal weights no predictor has a smaller expected error.

    Example:
        >>> least_squares_errors(torch.ones(1, 2, 1), torch.tensor([[3.0, 3.0]])).round().tolist()
        [[9.0, 0.0]]
    """
    errors = [y[:, 0].square()]
    for seen in range(1, x.shape[1]):
        weights = torch.linalg.pinv(x[:, :seen].double()) @ y[:, :seen, None].double()
        guess = (x[:, seen, None].double() @ weights)[:, 0, 0]
        errors.append((guess - y[:, seen].double()).square())
    return torch.stack([error.double() for error in errors], 1)


def _mean_given_scale(target: str, scale: Tensor, scale2: Tensor) -> Tensor:
    """Return E[f(scale z, scale2 z2)] over standard normal z, z2, for scales of shape (batch,)."""
    nodes, weights = (torch.from_numpy(part) for part in numpy.polynomial.hermite_e.hermegauss(QUADRATURE))
    s, s2 = (size.double().view(-1, 1, 1) * nodes.view(shape) for size, shape in ((scale, (-1, 1)), (scale2, (1, -1))))
    values = TARGET_FUNCTIONS[target](*torch.broadcast_tensors(s, s2))
    return torch.einsum("bij,i,j->b", values, weights, weights) / weights.sum() ** 2


def baselines(config: SyntheticConfig, target: str) -> dict[str, list[float]]:
    """Return the mean squared errors, by number of pairs seen, of predictors that no network should lose to.

    Returns:
        ``constant``: the best constant; ``scale``: the best guess from the lengths of w and w2 alone. For linear
        functions also ``least_squares``: the line through the pairs before, the optimum without a context; and for
        sumdot ``given_w``: the same for what is left when w is known. Lists over points, measured on the test tasks.
    """
    lines: dict[str, list[Tensor]] = defaultdict(list)
    large = draw_tasks(make_generator("cpu", "constant"), target, 100_000, 1, config.dims)
    constant = large.values(large.x).double().mean()
    for tasks, _ in exam_batches(config, target):
        y = tasks.values(tasks.x)
        known = _mean_given_scale(target, tasks.w.norm(dim=1), tasks.w2.norm(dim=1))
        lines["constant"].append((y - constant).square())
        lines["scale"].append((y - known[:, None]).square())
        if target in ("linear", "sumdot"):  # of a bent function a line is no bound, and at points == dims it is wild
            lines["least_squares"].append(least_squares_errors(tasks.x, y))
        if target == "sumdot":
            lines["given_w"].append(least_squares_errors(tasks.x, y - tasks.linear(tasks.x)))
    return {name: torch.cat(parts).mean(0).tolist() for name, parts in lines.items()}
