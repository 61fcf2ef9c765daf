"""Rows of one arm flow in; a fine-tuned model folder flows out, with a log line for every optimizer step.

    rows -> passage_order(seed): which passages make each optimizer step, the same in every arm
         -> micro_batches: a step's rows laid out side by side -> loss over all target tokens of the step, on all processes
         -> AdamW -> checkpoint-*/ -> model/ (safetensors), log.jsonl, done.json

A killed training goes on from its last checkpoint, on a CPU bit for bit as if it had not been interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ctxft.data.rows import IGNORE_INDEX, special_tokens
from ctxft.models import model_hash
from ctxft.storage import (
    InputError,
    atomic_dir,
    hash_file,
    quarantine,
    read_json,
    read_jsonl,
    sha256,
    with_checksum,
    write_json,
    write_text,
)
from ctxft.training.attention import choose_attention
from ctxft.training.checkpoint import load_checkpoint, resume_point, save_checkpoint, trained, whole
from ctxft.training.config import FREE, TrainConfig, learning_rate
from ctxft.training.distributed import device_of, start_training
from ctxft.training.network import build_network, check_rows, probe
from ctxft.training.order import passage_order
from ctxft.training.packing import MicroBatch, Row, micro_batches, share_out


@dataclass
class Training:
    """What the optimizer steps of one training share."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    config: TrainConfig
    attention: str
    pad: int
    steps: int
    seed: int

    def step(self, number: int, rows: Sequence[Row]) -> dict:
        """Take one optimizer step and return what the log says of it."""
        batches = micro_batches(rows, self.config, self.attention, self.pad)
        targets = sum(len(batch.targets) for batch in batches)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = share_out(batches, rank, processes)
        # Dropout must not depend on what was drawn before, or a resumed training would have to know it.
        torch.manual_seed(int(sha256([self.seed, number, rank])[:15], 16))
        rate = learning_rate(self.config, number, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for place, batch in enumerate(mine):
            last = place == len(mine) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                total += self._backward(batch, targets)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "step": number,
            "loss": self.accelerator.reduce(total, "sum").item(),
            "learning_rate": rate,
            "grad_norm": norm,
            "target_tokens": targets,
            "tokens": sum(batch.tokens for batch in batches),
            "fill": round(
                sum(batch.tokens for batch in batches) / sum(batch.input_ids.numel() for batch in batches), 4
            ),
        }

    def _backward(self, batch: MicroBatch, targets: int) -> torch.Tensor:
        """Add a micro-batch's share of the step's gradient; gradients are averaged over processes, so each weighs more."""
        loss = self.network(**batch.inputs(self.accelerator.device)).loss * (batch.weight / max(1, targets))
        self.accelerator.backward(loss * self.accelerator.num_processes)
        return loss.detach().double()

    def _clip(self) -> float:
        parameters = trained(self.network).values()
        return whole(self.accelerator.clip_grad_norm_(list(parameters), self.config.clip or math.inf)).item()


def _recipe(config: TrainConfig, seed: int, rows: int, start: Path | None) -> dict:
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE}
    return {**values, "seed": seed, "rows": rows, "start": model_hash(str(start)) if start else None}


def _keep_lines(path: Path, steps: int) -> None:
    """Forget log lines of steps after a checkpoint, which are taken again, and what a kill left half-written."""
    for left in path.parent.glob(".*.part"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    lines = path.read_bytes().split(b"\n")[:steps] if path.exists() else []
    write_text(path, "".join(line.decode("utf-8", "replace") + "\n" for line in lines))
    taken = [row.get("step") for _, row in read_jsonl(path)]
    if taken != list(range(1, steps + 1)):  # a kill can take what is behind a checkpoint only
        raise InputError(
            f"{path} lacks steps of 1 to {steps}, or was changed: remove {path.parent} and train it again."
        )


@contextlib.contextmanager
def _log(folder: Path, tensorboard: bool, first: bool) -> Iterator:
    """Give a function that writes a line of log.jsonl (and TensorBoard events where they are wanted)."""
    if not first:
        yield lambda entry: None
        return
    events = None
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("train.tensorboard needs the package tensorboard: pip install tensorboard.") from None
        events = SummaryWriter(str(folder / "tensorboard"))

    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:

        def write(entry: dict) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            for name in ("loss", "learning_rate", "grad_norm") if events else ():
                events.add_scalar(name, entry[name], entry["step"])

        try:
            yield write
        finally:
            if events:
                events.close()


def targets_of(rows: Sequence[Row]) -> list[int]:
    """Return the target tokens of each row.

    Example:
        >>> targets_of([{"input_ids": [1, 5, 6], "labels": [-100, 5, 6]}])
        [2]
    """
    known = getattr(rows, "targets", None)
    if known is not None:
        return known
    return [sum(label != IGNORE_INDEX for label in row["labels"][1:]) for row in rows]


def save_model(network: torch.nn.Module, accelerator: Accelerator, folder: Path) -> None:
    """Write a trained network as safetensors, gathered from all processes; only the first process's folder is kept."""
    state = {}
    for name, value in trained(network).items():
        gathered = whole(value)
        if accelerator.is_main_process:
            state[name] = gathered
    model = accelerator.unwrap_model(network)
    if not isinstance(model, PeftModel):  # buffers that belong to the weights, of some kinds of models
        kept = model.state_dict().keys()
        state |= {name: whole(value) for name, value in model.named_buffers() if name in kept}
    if accelerator.is_main_process:
        model.save_pretrained(folder, state_dict=state)


def _complete_model(folder: Path, tokenizer: PreTrainedTokenizerBase, base: str | None, files: dict[str, str]) -> None:
    """Put tokenizer and texts beside saved weights; ``base`` is the base model's name where they are an adapter."""
    tokenizer.save_pretrained(folder)
    if base is not None:  # its name, and not the folder that it was loaded from on this machine
        path = folder / "adapter_config.json"
        write_json(path, read_json(path) | {"base_model_name_or_path": base})
    for name, text in files.items():
        write_text(folder / name, text)


def train_arm(
    rows: Sequence[Row],
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    seed: int,
    folder: Path,
    revision: str | None = None,
    files: dict[str, str] | None = None,
    quiet: bool = True,
    start: Path | None = None,
    order: list[list[int]] | None = None,
) -> dict:
    """Fine-tune a model on one arm's rows, or go on where a killed training stopped.

    Args:
        rows: a row per passage, with ``input_ids`` and ``labels`` (see ``examples.build_row``); read step by step.
        model: the base model: a practice model, a folder or a hub id.
        tokenizer: saved beside the model.
        config: the recipe.
        seed: of order, LoRA initialisation and dropout.
        folder: where log.jsonl, checkpoints, model/ and done.json go.
        revision: the base model's hub revision.
        files: further text files for the model folder (name -> text): prompt set, model card.
        quiet: show no progress bar.
        start: model folder of an earlier stage that is trained on.
        order: for each optimizer step the indices of its rows; None takes ``passage_order``'s.

    Returns:
        What done.json holds: optimizer steps, passages, target tokens, seconds, hash of the model folder.

    Raises:
        InputError: a row is longer than the model's or the config's window, the device is not there, the model cannot be
            packed, or a checkpoint is of another recipe.
    """
    set_seed(seed)
    device = device_of(config)  # told before any weights are read
    attention = choose_attention(config.attention, config.pack, device)
    order = passage_order(targets_of(rows), config, seed) if order is None else order
    network = build_network(model, revision, config, attention, start)
    check_rows(rows, network, config)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = _recipe(config, seed, len(rows), start)
    checkpoint, damaged = resume_point(folder, recipe)
    accelerator, network, optimizer = start_training(network, config, device)
    pad = special_tokens(tokenizer).pad
    probe(network, rows[order[0][0]], config, attention, pad, accelerator.device.type)
    training = Training(network, optimizer, accelerator, config, attention, pad, len(order), seed)
    if checkpoint:
        load_checkpoint(checkpoint, network, optimizer)
    accelerator.wait_for_everyone()  # no process may look at a checkpoint while it is quarantined
    for path, why in damaged.items() if accelerator.is_main_process else ():
        quarantine(path, why)
    seconds = _take_steps(training, rows, order, folder, recipe, checkpoint, quiet)
    # Sharded weights are gathered by all processes together, but only the first one's folder is kept.
    first = accelerator.is_main_process
    with atomic_dir(folder / "model") if first else tempfile.TemporaryDirectory() as place:
        save_model(network, accelerator, Path(place))
        if first:
            _complete_model(Path(place), tokenizer, model if config.method == "lora" else None, files or {})
    if first:
        targets = targets_of(rows)
        done = {
            "optimizer_steps": len(order),
            "passages": len(rows),
            "target_tokens": sum(targets[i] for step in order for i in step),
            "seconds": round(seconds, 2),
            "model_hash": model_hash(str(folder / "model")),
            "train": dataclasses.asdict(config),
            "seed": seed,
            "start": recipe["start"],
        }
        write_json(folder / "done.json", with_checksum(done | {"log": hash_file(folder / "log.jsonl")}))
    accelerator.wait_for_everyone()
    return read_json(folder / "done.json")


def _take_steps(
    training: Training,
    rows: Sequence[Row],
    order: list[list[int]],
    folder: Path,
    recipe: dict,
    checkpoint: Path | None,
    quiet: bool,
) -> float:
    """Take all optimizer steps that a checkpoint has not seen; log and save them; returns the seconds they took."""
    config, first = training.config, training.accelerator.is_main_process
    done = read_json(checkpoint / "state.json")["step"] if checkpoint else 0
    if first:
        _keep_lines(folder / "log.jsonl", done)
    started, read = time.perf_counter(), 0
    bar = tqdm(total=len(order), initial=done, disable=quiet or not first, unit="step", desc=folder.parent.name)
    with _log(folder, config.tensorboard, first) as write, bar:
        for number in range(done + 1, len(order) + 1):
            entry = training.step(number, [rows[index] for index in order[number - 1]])
            write(entry | {"passages": order[number - 1]})
            read += entry["tokens"]
            bar.set_postfix(loss=f"{entry['loss']:.3f}", tokens_per_s=round(read / (time.perf_counter() - started)))
            bar.update()
            if config.save_every and number % config.save_every == 0 and number < len(order):
                state = {"step": number, "recipe": recipe}
                save_checkpoint(folder, training.network, training.optimizer, state, first)
    return time.perf_counter() - started
