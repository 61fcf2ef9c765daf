"""Time our training steps against a faithful eager reference, interleaved, one thread, and print a table of medians.

    OMP_NUM_THREADS=1 python tests/benchmarks/synthetic_speed.py [--rounds 5] [--size full] [--batch 64]

The reference is written from the description of the experiment (Choi et al., ICLR 2025, arXiv 2503.09032), not from its
code: transformers' GPT2Model with eager attention, the full sequence of context and target in every arm, the context of
cpt zeroed and masked, Adam without fusion, and at a logging step one Jacobian a sequence. Both sides get the same weights
and tasks, and the script first checks that they give the same loss and the same derivative.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from ctxft.synthetic.config import ARMS, SyntheticConfig, load_config
from ctxft.synthetic.regression import (
    Draws,
    Regressor,
    Tasks,
    context_of,
    draw_chance,
    draw_tasks,
    make_generator,
    make_network,
    squared_errors,
)
from ctxft.synthetic.study import derivatives

PAPER_ARMS = ARMS[:3]


class Reference(nn.Module):
    """GPT-2 of transformers with eager attention over context and target, as the description has it."""

    def __init__(self, ours: Regressor, config: SyntheticConfig) -> None:
        super().__init__()
        self.read_in, self.read_out = copy.deepcopy(ours.read_in), copy.deepcopy(ours.read_out)
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        shape = {"n_positions": 4 * config.points, "n_embd": config.width, "n_layer": config.layers}
        tokens = {"vocab_size": 2, "bos_token_id": 0, "eos_token_id": 0}
        settings = shape | dropout | tokens | {"n_head": config.heads, "use_cache": False}
        self.trunk = GPT2Model(GPT2Config(**settings, attn_implementation="eager"))
        with torch.no_grad():
            self.trunk.wpe.weight.copy_(ours.positions.weight)
            for theirs, block in zip(self.trunk.h, ours.blocks, strict=True):
                layers = [(theirs.attn.c_attn, block.attend), (theirs.attn.c_proj, block.mix)]
                for layer, linear in [*layers, (theirs.mlp.c_fc, block.widen), (theirs.mlp.c_proj, block.narrow)]:
                    layer.weight.copy_(linear.weight.T)
                    layer.bias.copy_(linear.bias)

    def forward(self, context: tuple[Tensor, Tensor] | None, x: Tensor, y: Tensor) -> Tensor:
        """Return the predictions of the target, (batch, points); a context of None is zeroed and masked."""
        points = x.shape[1]
        mask = torch.ones(len(x), 4 * points)
        if context is None:
            mask[:, : 2 * points] = 0
            context = (torch.zeros_like(x), torch.zeros_like(y))
        all_x, all_y = torch.cat((context[0], x), 1), torch.cat((context[1], y), 1)
        wide_y = torch.cat((all_y[..., None], torch.zeros_like(all_x[..., 1:])), -1)
        tokens = self.read_in(torch.stack((all_x, wide_y), 2).flatten(1, 2))
        hidden = self.trunk(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        return self.read_out(hidden[:, 2 * points :: 2]).squeeze(-1)


def reference_derivatives(network: Reference, arm: str, tasks: Tasks, draws: Draws) -> Tensor:
    """Return d(last prediction)/d(last x), context values held, sequence by sequence, (batch, dims)."""
    context, y, rows = context_of(arm, tasks, draws), tasks.values(tasks.x), []
    for number in range(len(tasks.x)):
        one = slice(number, number + 1)

        def last(x: Tensor, one: slice = one) -> Tensor:
            before = None if context is None else (x, context[1][one])
            return network(before, x, y[one])[0, -1]

        rows.append(torch.autograd.functional.jacobian(last, tasks.x[one])[0, -1])
    return torch.stack(rows)


def reference_step(network: Reference, arm: str, tasks: Tasks, draws: Draws, log: bool) -> float:
    """Return the loss of one step as the reference does it, gradients left in the network."""
    y = tasks.values(tasks.x)
    loss = (network(context_of(arm, tasks, draws), tasks.x, y) - y).square().mean()
    network.optimizer.zero_grad()
    loss.backward()
    network.optimizer.step()
    if log:
        nn.functional.cosine_similarity(reference_derivatives(network, arm, tasks, draws), tasks.w).mean().item()
    return loss.item()  # the reference logs every step's loss on the host


def our_step(network: Regressor, arm: str, tasks: Tasks, draws: Draws, log: bool) -> float:
    """Return the loss of one step as the library does it."""
    loss = squared_errors(network, arm, tasks, draws).mean()
    network.optimizer.zero_grad()
    loss.backward()
    network.optimizer.step()
    if log:
        nn.functional.cosine_similarity(derivatives(network, arm, tasks, draws)[0], tasks.w).mean().item()
    return loss.item()


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call in this one thread, which other work on the machine disturbs less than its wall time."""
    started = time.process_time()
    call()
    return time.process_time() - started


def check_equal(ours: Regressor, theirs: Reference, batch: Callable[[int], tuple[Tasks, Draws]]) -> None:
    """Stop unless both sides compute the same predictions and derivatives in every arm of the paper."""
    tasks, draws = batch(0)
    few = Tasks(tasks.x[:2], tasks.w[:2], tasks.w2[:2], tasks.target)
    draws = Draws(draws.x[:2], draws.noise[:2], draws.order[:2])
    for arm in PAPER_ARMS:
        y = few.values(few.x)
        mine = squared_errors(ours, arm, few, draws)
        other = (theirs(context_of(arm, few, draws), few.x, y) - y).square()
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        slopes = derivatives(ours, arm, few, draws)[0], reference_derivatives(theirs, arm, few, draws)
        torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)
    print("both sides agree in loss and derivative, in every arm")


def measure(ours: Regressor, theirs: Reference, batch: Callable, rounds: int) -> dict[tuple[str, bool], list]:
    """Return pairs (reference, ours) of seconds for each arm, with and without logging, a pair a round."""
    times: dict[tuple[str, bool], list] = {}
    for number in range(rounds + 1):
        for arm in PAPER_ARMS:
            for log in (False, True):
                tasks, draws = batch(number)
                pair = [
                    seconds(lambda f=step, n=network, a=arm, t=tasks, d=draws, g=log: f(n, a, t, d, g))
                    for step, network in ((reference_step, theirs), (our_step, ours))
                ]
                if number:  # the first round warms up
                    times.setdefault((arm, log), []).append(pair)
                    print(
                        f"round {number} {arm} {'logging' if log else 'step'}: {pair[0]:.2f} s, {pair[1]:.2f} s",
                        flush=True,
                    )
    return times


def show(name: str, pairs: list[list[float]]) -> None:
    """Print a row: medians with lowest and highest, and the ratio of each round."""
    cells = []
    for values in (*zip(*pairs, strict=True), [a / b for a, b in pairs]):
        cells.append(f"{statistics.median(values):7.3f} [{min(values):.3f} to {max(values):.3f}]")
    print(f"{name:<22} " + "   ".join(f"{cell:<28}" for cell in cells))


def main() -> None:
    """Parse the options, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that warms up (default: 5)")
    parser.add_argument("--size", default="full", help="mini or full, the paper's (default: full)")
    parser.add_argument("--batch", type=int, default=64, help="sequences a step (default: 64, the paper's)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(options.size, {"batch": options.batch, "device": "cpu"})
    ours = make_network(config, 0)
    theirs = Reference(ours, config)
    ours.optimizer = torch.optim.Adam(ours.parameters(), lr=1e-4, fused=True)
    theirs.optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4)

    def batch(number: int) -> tuple[Tasks, Draws]:
        generator = make_generator("cpu", "speed", number)
        tasks = draw_tasks(generator, "polynomial", config.batch, config.points, config.dims)
        return tasks, draw_chance(generator, tasks)

    check_equal(ours, theirs, batch)
    times = measure(ours, theirs, batch, options.rounds)
    print(f"\nCPU seconds, median [range] of {options.rounds} rounds; one thread, torch {torch.__version__},")
    print(f"size {options.size}, batch {options.batch}")
    print(f"{'':<22} {'reference':<28}   {'ours':<28}   reference / ours")
    for arm in PAPER_ARMS:
        show(f"{arm}, step", times[arm, False])
        show(f"{arm}, logging step", times[arm, True])
    rounds = zip(*(times[arm, False] for arm in PAPER_ARMS), strict=True)
    together = [[sum(pair[side] for pair in pairs) for side in (0, 1)] for pairs in rounds]
    show("three arms, a step each", together)


if __name__ == "__main__":
    main()
