"""Draw in-context regression tasks, write the context that an arm reads before them, and predict with a GPT-2-like network.

    x ~ N(0, 1)  (batch, points, dims)     w, w2 ~ N(0, 1)  (batch, dims)
      -> s = w.x, s2 = w2.x                (batch, points)
      -> y = f(s, s2), f one of TARGET_FUNCTIONS

Every step has its own generator, seeded by what it is for. So all arms of a seed read the same tasks at the same step, and a
resumed training reads the tasks that it would have read. Every arm predicts the same target pairs (x_i, y_i) after a context:

    cft         (x_i, w.x_i) at the same x_i: the paper's context
    cpt         nothing: the paper masks the context, which equals leaving it out, position numbers kept
    neg         (x_i, noise), new noise at each step, of sd 1: the paper's negative
    fresh       (x'_i, w.x'_i) at other points: w can be learned from it, no answer can be copied
    neg-scaled  neg with noise of the true sd, the root of dims
    shuffled    the true w.x_i, each at a wrong x
    cpt-long    pairs of the target function itself at other points: cpt with as many tokens as cft reads
    no-query    cft, but the query's own pair is replaced by one at another point

A context serves all queries of its sequence, so ``no-query`` takes two sequences: one without the pairs of the even
queries, one without those of the odd ones. Each query is answered in the one that never held its pair.

The network computes what transformers' GPT2Model computes on the same weights, with torch's fused attention. Layout after
Garg et al. 2022 (arXiv 2208.01066), on whose task the experiment builds; the released code of Choi et al. lacks its model
file, so its layout is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctxft.storage import check_known, sha256
from ctxft.synthetic.config import ARMS, SyntheticConfig

TARGET_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda s, s2: s,
    "polynomial": lambda s, s2: s + s * s,
    "sumdot": lambda s, s2: s + s2,
    "relu": lambda s, s2: s.relu(),
    "sigmoid": lambda s, s2: s.sigmoid(),
    "tanh": lambda s, s2: s.tanh(),
    "product": lambda s, s2: s * s2,
}
Context = tuple[Tensor, Tensor]
Batch = TypeVar("Batch", bound="Tasks | Draws")


def make_generator(device: str, *keys: object) -> torch.Generator:
    """Return a generator that depends on the keys alone (seed, purpose, step), equal in every process."""
    return torch.Generator(device).manual_seed(int(sha256(list(map(str, keys)))[:15], 16))


@dataclass
class Tasks:
    """A batch of functions and points: ``x`` (batch, points, dims), ``w`` and ``w2`` (batch, dims), ``target`` a name."""

    x: Tensor
    w: Tensor
    w2: Tensor
    target: str

    def linear(self, x: Tensor) -> Tensor:
        """Return w.x at any points of shape (batch, points, dims), as (batch, points): what pre-training taught."""
        return torch.einsum("bnd,bd->bn", x, self.w)

    def values(self, x: Tensor) -> Tensor:
        """Return the target function at any points of shape (batch, points, dims), as (batch, points)."""
        return TARGET_FUNCTIONS[self.target](self.linear(x), torch.einsum("bnd,bd->bn", x, self.w2))

    def at(self, x: Tensor) -> Tasks:
        """Return the same functions at other points."""
        return Tasks(x, self.w, self.w2, self.target)


@dataclass
class Draws:
    """What contexts need beyond the tasks, equal for all arms.

    ``x`` (batch, points, dims): other points. ``noise`` (batch, points): N(0, 1). ``order`` (batch, points): a random
    cycle through the points, so that each is followed by another one.
    """

    x: Tensor
    noise: Tensor
    order: Tensor


def to_device(batch: Batch, device: str) -> Batch:
    """Return the same tasks, or what their contexts need, on a device."""
    return replace(
        batch, **{name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    )


def draw_tasks(generator: torch.Generator, target: str, batch: int, points: int, dims: int) -> Tasks:
    """Draw a batch of tasks on the generator's device.

    Example:
        >>> draw_tasks(make_generator("cpu", 0), "relu", batch=2, points=8, dims=3).x.shape
        torch.Size([2, 8, 3])
    """
    x, w, w2 = (
        torch.randn(*shape, generator=generator, device=generator.device)
        for shape in ((batch, points, dims), (batch, dims), (batch, dims))
    )
    return Tasks(x, w, w2, target)


def draw_chance(generator: torch.Generator, tasks: Tasks) -> Draws:
    """Draw what the contexts of a batch need beyond the tasks themselves."""
    kwargs = {"generator": generator, "device": generator.device}
    x, noise = torch.randn(tasks.x.shape, **kwargs), torch.randn(tasks.x.shape[:2], **kwargs)
    return Draws(x, noise, order=torch.rand(tasks.x.shape[:2], **kwargs).argsort(1))


# --- arms -------------------------------------------------------------------------------------------------------------


def context_of(arm: str, tasks: Tasks, draws: Draws) -> Context | None:
    """Return the pairs that an arm reads before the target, as a differentiable function of the x of the tasks.

    Args:
        arm: one of ARMS.
        tasks: the batch.
        draws: what the contexts of this batch need.

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
        tasks: the batch; the y of its pairs are read in order, each after its prediction.
        context: from ``context_of``.

    Returns:
        (batch, points).
    """
    x, y, points = tasks.x, tasks.values(tasks.x), tasks.x.shape[1]
    if context is None:
        return network(x, y, start=2 * points)
    copies = len(context[0]) // len(x)
    x, y = x.repeat(copies, 1, 1), y.repeat(copies, 1)
    predictions = network(torch.cat((context[0], x), 1), torch.cat((context[1], y), 1))[:, points:]
    return predictions if copies == 1 else torch.where(_even(tasks), *predictions.chunk(2))


def squared_errors(network: nn.Module, arm: str, tasks: Tasks, draws: Draws) -> Tensor:
    """Return the squared error of every prediction, (batch, points), with the context of ``arm``."""
    return (predict(network, tasks, context_of(arm, tasks, draws)) - tasks.values(tasks.x)).square()


# --- network ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """One layer: causal self-attention and a two-layer perceptron, each after a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next hidden states, (batch, tokens, width) as given."""
        batch, tokens, width = hidden.shape
        parts = self.attend(self.norm_1(hidden)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.mix(seen.transpose(1, 2).reshape(batch, tokens, width))
        return hidden + self.narrow(functional.gelu(self.widen(self.norm_2(hidden)), approximate="tanh"))


class Regressor(nn.Module):
    """The in-context regression transformer.

    Args:
        config: its dims, points, layers, width and heads. There are positions for a context and a target of ``points``
            pairs each: 4 points in all.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(config.dims, config.width), nn.Linear(config.width, 1)
        self.positions = nn.Embedding(4 * config.points, config.width)
        blocks = [Block(config.width, config.heads) for _ in range(config.layers)]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(config.width)
        for block in blocks:
            for layer in (block.attend, block.mix, block.widen, block.narrow):
                residual = layer in (block.mix, block.narrow)  # GPT-2 shrinks what is added to the stream
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * config.layers) if residual else 0.02)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.positions.weight, std=0.02)

    def embed(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the tokens of pairs, x (batch, points, dims) and y (batch, points), as (batch, 2 points, width)."""
        y_tokens = y.unsqueeze(-1) * self.read_in.weight[:, 0] + self.read_in.bias
        return torch.stack((self.read_in(x), y_tokens), dim=2).flatten(1, 2)

    def trunk(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Return the last hidden states of tokens (batch, tokens, width) of which the first has position ``start``."""
        hidden = tokens + self.positions.weight[start : start + tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def forward(self, x: Tensor, y: Tensor, start: int = 0) -> Tensor:
        """Return a prediction of y at every x, from that x and the pairs before it.

        Args:
            x: (batch, points, dims).
            y: (batch, points).
            start: the position of the first token.

        Returns:
            (batch, points).
        """
        return self.read_out(self.trunk(self.embed(x, y), start)[:, ::2]).squeeze(-1)


def make_network(config: SyntheticConfig, seed: int) -> Regressor:
    """Return a network with weights that depend on config and seed alone, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Regressor(config)
