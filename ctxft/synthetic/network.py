"""Pairs (x, y) flow in as tokens; a prediction of y at every x flows out.

    x (batch, points, dims), y (batch, points) -> tokens x_1 y_1 x_2 y_2 ... (batch, 2 points, width)
      -> causal transformer of the GPT-2 kind -> prediction at every x token (batch, points)

A y is the token (y, 0, ..., 0) in x's space. The trunk computes what transformers' GPT2Model computes on the same
weights, with torch's own fused attention. Layout after Garg et al. 2022 (arXiv 2208.01066), on whose task the
experiment builds; the released code of Choi et al. lacks its model file, so its layout is not known.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctxft.synthetic.config import SyntheticConfig


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
        config: dims, points, layers, width and heads count here. There are positions for a context and a target of
            ``points`` pairs each: 4 points in all.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(config.dims, config.width), nn.Linear(config.width, 1)
        self.positions = nn.Embedding(4 * config.points, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        for block in self.blocks:
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
        """Return the last hidden states of tokens (batch, tokens, width) whose first stands at position ``start``."""
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
