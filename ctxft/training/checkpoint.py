"""Save the state of a training in a folder that appears whole or not at all, and load it, also into another number of processes.

    checkpoint-<step>/  weights.safetensors    what is trained, in float32, gathered from all processes
                        optimizer.safetensors  AdamW's state of each of these parameters
                        state.json             step, recipe and seed, hashes of these files

No random state is stored: dropout of a step depends on seed, step and process alone.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ctxft.storage import InputError, atomic_dir, hash_file, read_checked, with_checksum, write_json

FILES = ("weights", "optimizer")
WRAPPERS = re.compile(r"(module|_orig_mod|_checkpoint_wrapped_module)\.")
KEPT = 2  # checkpoints that stay
GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on the first process; the others get nothing


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers put into it."""
    return WRAPPERS.sub("", name)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def gather_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what is trained, with the buffers that are saved, on the first process; every process must call it.

    A weight with two names, as tied ones have, is returned once.
    """
    every = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    others = every - trainable_parameters(model).keys()
    state = cast(dict[str, torch.Tensor], get_model_state_dict(model, options=GATHERED))
    return {name: value.contiguous() for name, value in state.items() if name not in others}


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
    moments = cast(Any, get_optimizer_state_dict(model, optimizer, options=GATHERED)).get("state", {})
    tensors = {
        "weights": gather_weights(model),
        "optimizer": {f"{name}|{key}": value for name, held in moments.items() for key, value in held.items()},
    }
    if not first:
        return
    with atomic_dir(folder / f"checkpoint-{state['step']}") as place:
        for name in FILES:
            save_file(tensors[name], place / f"{name}.safetensors")
        hashes = {name: hash_file(place / f"{name}.safetensors") for name in FILES}
        write_json(place / "state.json", with_checksum({**state, "hashes": hashes}))
    for path in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """Return a training's checkpoints, oldest first; a folder that is still being written has another name."""
    paths = [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's values into a model and its optimizer, which may be sharded otherwise than they were.

    Raises:
        InputError: the checkpoint holds other parameters than are trained now.
    """
    weights, moments = (load_file(path / f"{name}.safetensors") for name in FILES)
    state: dict[str, dict] = {}
    for place, value in moments.items():
        name, key = place.rsplit("|", 1)
        state.setdefault(name, {})[key] = value
    if other := set(state) ^ set(trainable_parameters(model)):
        raise InputError(f"{path} does not fit this model ({min(other)} is only in one of them): remove its folder.")
    full = StateDictOptions(full_state_dict=True, strict=False)  # every process reads all, and keeps its shard
    optimizer.zero_grad()  # torch only makes room for the state of an optimizer without gradients
    groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
    set_model_state_dict(model, cast(dict, weights), options=full)
    set_optimizer_state_dict(model, optimizer, cast(dict, {"state": state, "param_groups": groups}), options=full)


def verify_checkpoint(path: Path) -> dict:
    """Return the state of a checkpoint; raises InputError if one of its files is missing, cut off or changed."""
    state = read_checked(path / "state.json")
    for name, expected in state["hashes"].items():
        file = path / f"{name}.safetensors"
        if not file.is_file() or hash_file(file) != expected:
            raise InputError(f"{file} is not what was written: it was cut off, changed or removed.")
    return state


def latest_checkpoint(folder: Path, recipe: dict) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest valid checkpoint of a training, or None, and the damaged ones that are newer with the reason.

    Args:
        folder: of the training.
        recipe: plain values that must be those of the checkpoint.

    Raises:
        InputError: the checkpoint is of another recipe; what differs is named.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        try:
            then = verify_checkpoint(path)["recipe"]
        except InputError as error:
            damaged[path] = str(error)
            continue
        changed = [f"{key} was {then.get(key)!r}, is {now!r}" for key, now in recipe.items() if then.get(key) != now]
        if changed:
            raise InputError(
                f"{path} is of another training ({'; '.join(changed)}): remove {path.parent}, or take the old values."
            )
        return path, damaged
    return None, damaged
