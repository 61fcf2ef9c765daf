"""A config and a seed flow in; a pre-trained or fine-tuned network with its log flows out, resumable at any step.

    pretrain: in-context linear regression with a curriculum of points -> pretrain/seed-<n>/
    finetune: one arm from there on one target -> <target>/<arm>/seed-<n>/ {network.safetensors, log.jsonl, done.json}

One loop serves both. Tasks are drawn on the device, losses stay there until a line is logged, and every checkpoint
appears whole, so that a killed training goes on as if nothing had happened: bit for bit on a CPU.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctxft.storage import InputError, hash_file, quarantine, read_json, write_json, write_text
from ctxft.synthetic.arms import squared_errors
from ctxft.synthetic.config import SyntheticConfig
from ctxft.synthetic.metrics import alignment, examine
from ctxft.synthetic.network import Regressor, make_network
from ctxft.synthetic.tasks import draw_chance, draw_tasks, make_generator

WEIGHTS, LOG, DONE, CHECKPOINT = "network.safetensors", "log.jsonl", "done.json", "checkpoint.pt"
BETWEEN = 10_000_000  # keeps the steps of pre-training and of fine-tuning apart


def device_of(config: SyntheticConfig) -> str:
    """Return "cpu" or "cuda"; raises InputError where the device that was asked for is not there."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError(f"device '{config.device}' was asked for, but torch sees none: use cpu or auto.")
    return "cuda" if config.device == "auto" else config.device


def learning_rate(config: SyntheticConfig, step: int, steps: int) -> float:
    """Return the rate of an optimizer step, counted from 0: linear warm-up, constant, linear decay to a twentieth."""
    factor = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay = config.decay_share * steps
    if decay:
        factor *= min(1.0, max(0.05, (steps - step) / decay))
    return config.learning_rate * factor


def points_at(config: SyntheticConfig, step: int) -> int:
    """Return how many points a pre-training sequence has at a step: two more each ``points_every`` steps."""
    return min(config.points, config.start_points + 2 * (step // config.points_every))


def _load(path: Path) -> dict | None:
    """Return a checkpoint; one that cannot be read, or would run code, is quarantined, and None is returned."""
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch raises whatever its readers raise for a damaged file
        quarantine(path, f"{path} is no checkpoint that can be read ({type(error).__name__})")
        return None


def _save(path: Path, value: object) -> None:
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def _write_log(folder: Path, rows: list[dict]) -> None:
    write_text(folder / LOG, "".join(json.dumps(row) + "\n" for row in rows))


def run_steps(
    network: Regressor,
    config: SyntheticConfig,
    steps: int,
    folder: Path,
    loss_at: Callable[[nn.Module, int], Tensor],
    measure_at: Callable[[int], dict[str, Tensor]] = lambda step: {},
) -> list[dict]:
    """Train a network by Adam, from the folder's checkpoint if there is one.

    Args:
        network: changed in place.
        config: rates and intervals.
        steps: optimizer steps in all.
        folder: where checkpoint and log go.
        loss_at: the loss of (network, step), a scalar.
        measure_at: further values of a logged step, scalars on the device.

    Returns:
        The log: a row per ``log_every`` steps, with the mean loss since the row before.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
    # CUDA graphs take the launch of some hundred small kernels a step off the host; on a CPU there is nothing to win
    fast = torch.compile(network, mode="reduce-overhead") if next(network.parameters()).is_cuda else network
    rows, first, recent = [], 0, []
    if (folder / CHECKPOINT).exists():
        state = _load(folder / CHECKPOINT)
        if state is not None:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            rows, first = state["rows"], state["step"]
    for step in range(first, steps):
        optimizer.param_groups[0]["lr"] = learning_rate(config, step, steps)
        loss = loss_at(fast, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(loss.detach())
        if (step + 1) % config.log_every == 0 or step + 1 == steps:
            row = {"step": step + 1, "loss": torch.stack(recent).mean(), **measure_at(step)}
            rows.append({name: value.item() if isinstance(value, Tensor) else value for name, value in row.items()})
            recent.clear()
        if (step + 1) % config.save_every == 0 and step + 1 < steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
            _save(folder / CHECKPOINT, state | {"step": step + 1})
            _write_log(folder, rows)
    _write_log(folder, rows)
    return rows


def _finish(folder: Path, network: Regressor, done: dict) -> dict:
    part = folder / f"{WEIGHTS}.part"
    save_file({name: value.cpu() for name, value in network.state_dict().items()}, part)
    os.replace(part, folder / WEIGHTS)
    write_json(folder / DONE, done | {"network": hash_file(folder / WEIGHTS)})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return read_json(folder / DONE)


def pretrain_folder(config: SyntheticConfig, seed: int) -> Path:
    """Return where a seed's pre-trained network lies."""
    return config.folder / "pretrain" / f"seed-{seed}"


def finetune_folder(config: SyntheticConfig, target: str, arm: str, seed: int) -> Path:
    """Return where an arm's network and results lie."""
    return config.folder / target / arm / f"seed-{seed}"


def is_done(folder: Path) -> bool:
    """Return whether a training is finished and its network is the one that was examined."""
    if not (folder / DONE).exists() or not (folder / WEIGHTS).exists():
        return False
    return read_json(folder / DONE)["network"] == hash_file(folder / WEIGHTS)


def pretrain(config: SyntheticConfig, seed: int) -> dict:
    """Pre-train a seed's network on in-context linear regression; returns what done.json holds."""
    folder, device = pretrain_folder(config, seed), device_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    network = make_network(config, seed).to(device)

    def loss_at(network: nn.Module, step: int) -> Tensor:
        generator = make_generator(device, seed, "tasks", step)
        tasks = draw_tasks(generator, "linear", config.batch, points_at(config, step), config.dims)
        y = tasks.values(tasks.x)
        return (network(tasks.x, y) - y).square().mean()

    started = time.perf_counter()
    rows = run_steps(network, config, config.pretrain_steps, folder, loss_at)
    seconds = round(time.perf_counter() - started, 1)
    return _finish(folder, network, {"loss": rows[-1]["loss"], "device": device, "seconds": seconds})


def load_network(folder: Path, config: SyntheticConfig, device: str = "cpu") -> Regressor:
    """Return the network of a finished training.

    Raises:
        InputError: there is none in the folder.
    """
    if not (folder / WEIGHTS).exists():
        raise InputError(f"{folder} holds no trained network: run `ctxft synthetic` with this arm and seed first.")
    network = make_network(config, 0)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.to(device)


def finetune(config: SyntheticConfig, target: str, arm: str, seed: int) -> dict:
    """Fine-tune a seed's pre-trained network on a target with an arm's context, and examine it.

    Args:
        config: the study.
        target: name of the target function.
        arm: one of ARMS.
        seed: of the pre-training and of the tasks, which are the same in every arm.

    Returns:
        What done.json holds: errors by context, alignment, seconds, device, hash of the network.

    Raises:
        InputError: the seed's network is not pre-trained, or the device is not there.
    """
    folder, device = finetune_folder(config, target, arm, seed), device_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    network = load_network(pretrain_folder(config, seed), config, device)

    def batch_at(step: int) -> tuple:
        generator = make_generator(device, seed, "tasks", BETWEEN + step)
        tasks = draw_tasks(generator, target, config.batch, config.points, config.dims)
        return tasks, draw_chance(make_generator(device, seed, "context", step), tasks)

    started = time.perf_counter()
    run_steps(
        network,
        config,
        config.finetune_steps,
        folder,
        lambda network, step: squared_errors(network, arm, *batch_at(step)).mean(),
        lambda step: alignment(network, arm, *batch_at(step)),
    )
    seconds = round(time.perf_counter() - started, 1)
    done = examine(network, arm, config, target, device) | {"device": device, "seconds": seconds}
    return _finish(folder, network, done)
