"""A generator flows in; a batch of regression tasks flows out, and the true function of each.

    x ~ N(0, 1)  (batch, points, dims)     w, w2 ~ N(0, 1)  (batch, dims)
      -> s = w.x, s2 = w2.x                (batch, points)
      -> y = f(s, s2), f one of TARGET_FUNCTIONS

Every step has a generator of its own, seeded by what it is for. So all arms of a seed read the same tasks at the same
step, and a resumed training goes on with the tasks that it would have read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ctxft.storage import sha256
from ctxft.synthetic.config import TARGETS

TARGET_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda s, s2: s,
    "polynomial": lambda s, s2: s + s * s,
    "sumdot": lambda s, s2: s + s2,
    "relu": lambda s, s2: s.relu(),
    "sigmoid": lambda s, s2: s.sigmoid(),
    "tanh": lambda s, s2: s.tanh(),
    "product": lambda s, s2: s * s2,
}
assert tuple(TARGET_FUNCTIONS) == TARGETS


def make_generator(device: str, *keys: object) -> torch.Generator:
    """Return a generator that depends on the keys alone (seed, purpose, step), equal in every process."""
    return torch.Generator(device).manual_seed(int(sha256(list(map(str, keys)))[:15], 16))


@dataclasses.dataclass
class Tasks:
    """A batch of functions, and the points at which they are seen.

    ``x`` (batch, points, dims), ``w`` and ``w2`` (batch, dims), ``target`` a name of TARGET_FUNCTIONS.
    """

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


@dataclasses.dataclass
class Draws:
    """Chance that contexts are made of, drawn alike for all arms.

    ``x`` (batch, points, dims): other points. ``noise`` (batch, points): N(0, 1). ``order`` (batch, points): a random
    cycle through the points, so that each is followed by another one.
    """

    x: Tensor
    noise: Tensor
    order: Tensor


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
    """Draw what the contexts of a batch need beside the tasks themselves."""
    batch, points, _ = tasks.x.shape
    x = torch.randn(tasks.x.shape, generator=generator, device=generator.device)
    noise = torch.randn(batch, points, generator=generator, device=generator.device)
    order = torch.rand(batch, points, generator=generator, device=generator.device).argsort(1)
    return Draws(x, noise, order)


def moved_to(values: Tasks | Draws, device: str) -> Tasks | Draws:
    """Return the same batch on a device."""
    parts = {name: value.to(device) for name, value in vars(values).items() if isinstance(value, Tensor)}
    return dataclasses.replace(values, **parts)
