"""A training's state flows to a folder that appears whole or not at all, and back, also into another number of processes.

    checkpoint-<step>/  weights.safetensors       what is trained, in float32, gathered from all processes
                        first_moment.safetensors  second_moment.safetensors   of AdamW
                        state.json                step, recipe and seed, hashes of these files

No random state is stored: dropout of a step depends on seed, step and process alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from ctxft.storage import (
    ChecksumError,
    InputError,
    atomic_dir,
    hash_file,
    read_checked,
    read_json,
    with_checksum,
    write_json,
)

MOMENTS = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}
KEPT = 2  # checkpoints that stay


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor gathered from all processes, on the CPU; every process must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous()


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers put before it."""
    for word in ("module.", "_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(word, "")
    return name


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by plain name."""
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    value = value.to(parameter.device, torch.float32)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict, first: bool
) -> None:
    """Write the state after an optimizer step, and drop checkpoints that are too old.

    Args:
        folder: of the training.
        model: wrapped or not; sharded weights are gathered, so every process must call this.
        optimizer: an AdamW over the model's trained parameters.
        state: plain values, "step" among them.
        first: whether this process writes.
    """
    parameters = trained(model)
    parts: dict[str, dict] = {part: {} for part in ("weights", *MOMENTS)}
    for name, parameter in parameters.items():
        held = {"weights": parameter} | {part: optimizer.state[parameter][key] for part, key in MOMENTS.items()}
        for part, tensor in held.items():
            gathered = whole(tensor)
            if first:  # the others need not hold what they do not write
                parts[part][name] = gathered
    if not first:
        return
    with atomic_dir(folder / f"checkpoint-{state['step']}") as place:
        for part, tensors in parts.items():
            save_file(tensors, place / f"{part}.safetensors")
        hashes = {part: hash_file(place / f"{part}.safetensors") for part in parts}
        write_json(place / "state.json", with_checksum({**state, "hashes": hashes}))
    for path in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """Return a training's checkpoints, oldest first; a folder that is still being written has another name."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's values into a model and its optimizer, which may be sharded otherwise than they were.

    Raises:
        InputError: the checkpoint holds other parameters than are trained now.
    """
    parameters = trained(model)
    numbers = {p: number for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    step = float(read_json(path / "state.json")["step"])
    moments: dict[int, dict] = {number: {"step": torch.tensor(step)} for number in numbers.values()}
    for part in ("weights", *MOMENTS):
        with safe_open(path / f"{part}.safetensors", framework="pt") as file:
            if other := set(parameters) ^ set(file.keys()):
                raise InputError(
                    f"{path} does not fit this model ({min(other)} is only in one of them): remove its folder."
                )
            for name, parameter in parameters.items():
                value = _like(file.get_tensor(name), parameter)
                if part == "weights":
                    with torch.no_grad():
                        parameter.copy_(value)
                else:
                    moments[numbers[parameter]][MOMENTS[part]] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def check_whole(path: Path) -> dict:
    """Return the state of a checkpoint; raises ChecksumError if one of its files is missing, cut off or changed."""
    try:
        state = read_checked(path / "state.json")
        for part, expected in state["hashes"].items():
            if hash_file(path / f"{part}.safetensors") != expected:
                raise ChecksumError(f"{path / part}.safetensors is not what was written: it was cut off or changed.")
    except FileNotFoundError as error:
        raise ChecksumError(f"{error.filename} is missing.") from None
    return state


def resume_point(folder: Path, recipe: dict) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest checkpoint of a training that is whole, or None, and the damaged ones behind it with the reason.

    Args:
        folder: of the training.
        recipe: plain values that must be those of the checkpoint.

    Raises:
        InputError: the checkpoint is of another recipe; what differs is named.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        try:
            then = check_whole(path)["recipe"]
        except InputError as error:
            damaged[path] = str(error)
            continue
        _require_recipe(path, then, recipe)
        return path, damaged
    return None, damaged


def _require_recipe(path: Path, then: dict, recipe: dict) -> None:
    changed = [f"{key} was {then.get(key)!r}, is {recipe.get(key)!r}" for key in recipe if then.get(key) != recipe[key]]
    if changed:
        raise InputError(
            f"{path} is of another training ({'; '.join(changed)}): remove {path.parent}, or take the old values."
        )
