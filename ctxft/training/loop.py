"""Train one arm: for each optimizer step batch, loss, backward, step, and a line of the log.

    rows -> passage_order(seed): which passages make each optimizer step, the same in every arm
         -> micro_batches: a step's rows packed -> loss over all target tokens of the step, on all processes
         -> AdamW -> checkpoint-*/ -> model/ (safetensors), log.jsonl, done.json

A killed training resumes from its last checkpoint, on a CPU bit for bit as if it had not been interrupted: nothing random
outlives a step. ``CTXFT_CRASH_AFTER=step:5`` in the environment stops a training after its fifth step, to try that out.

A line of log.jsonl has step (from 1), loss (nats per target token, before the step), learning_rate, grad_norm (before it is
clipped), target_tokens (learned), tokens (read), fill (fraction of the micro-batches that is not padding) and passages (indices
of the rows). done.json has optimizer_steps, passages (given), target_tokens (learned in all steps), seconds (since the last
resume), model_hash (of model/), train and seed (the recipe), start (hash of the earlier stage's model, or null), log (SHA-256).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ctxft.config import FREE, TrainConfig
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
from ctxft.training.checkpoint import gather_weights, latest_checkpoint, load_checkpoint, save_checkpoint
from ctxft.training.distributed import distribute, training_device
from ctxft.training.model import check_packed_loss, check_row_lengths, trainable_model
from ctxft.training.packing import Row, choose_attention, micro_batches, shard_batches
from ctxft.training.schedule import learning_rate, passage_order


@dataclass
class Training:
    """What the optimizer steps of one training share."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    config: TrainConfig
    rows: Sequence[Row]
    order: list[list[int]]
    attention: str
    pad: int
    seed: int

    def step(self, number: int) -> dict:
        """Take one optimizer step, counted from 1; returns its line of log.jsonl."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        passages = self.order[number - 1]
        rows = [self.rows[index] for index in passages]
        batches = micro_batches(rows, self.attention, self.config.micro_batch_tokens, self.pad)
        targets = sum(len(batch.targets) for batch in batches)
        # Dropout must not depend on what was drawn before, or a resumed training would have to know it.
        torch.manual_seed(int(sha256([self.seed, number, rank])[:15], 16))
        rate = learning_rate(self.config, number, len(self.order))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        shard = shard_batches(batches, rank, processes)
        for batch in shard:
            last = batch is shard[-1]
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.model(**batch.inputs(self.accelerator.device)).loss * (batch.weight / max(1, targets))
                self.accelerator.backward(loss * processes)  # gradients are averaged over processes
                total += loss.detach()
        norm = self._clip_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = sum(batch.tokens for batch in batches)
        return {
            "step": number,
            "loss": cast(torch.Tensor, self.accelerator.reduce(total, "sum")).item(),
            "learning_rate": rate,
            "grad_norm": norm,
            "target_tokens": targets,
            "tokens": tokens,
            "fill": round(tokens / sum(batch.input_ids.numel() for batch in batches), 4),
            "passages": passages,
        }

    def _clip_gradients(self) -> float:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = cast(Any, self.accelerator.clip_grad_norm_(trained, self.config.max_grad_norm or math.inf))
        return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()


def train_arm(
    rows: Sequence[Row],
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    seed: int,
    folder: Path,
    revision: str | None = None,
    quiet: bool = True,
    start: Path | None = None,
    order: list[list[int]] | None = None,
) -> dict:
    """Fine-tune a model on one arm's rows, or resume a training that was killed.

    Args:
        rows: a row per passage, with ``input_ids`` and ``labels`` (see ``ctxft.data.rows.build_row``); read step by step.
        model: the base model: a practice model, a folder or a hub id.
        tokenizer: saved next to the model.
        config: the recipe.
        seed: of order, LoRA initialisation and dropout.
        folder: where log.jsonl, checkpoints, model/ and done.json go.
        revision: the base model's hub revision.
        quiet: show no progress bar.
        start: model folder of an earlier stage that is trained further.
        order: for each optimizer step the indices of its rows; None takes ``passage_order``'s.

    Returns:
        The content of done.json.

    Raises:
        InputError: a row is longer than max_length or the model's limit, the device is missing, the model cannot be
            packed, or a checkpoint is of another recipe.
    """
    set_seed(seed)
    device = training_device(config)  # reported before any weights are read
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"train.report_to: {name} needs the package {name}: pip install {name}.")
    attention = choose_attention(config.attn_implementation, config.pack, device)
    order = passage_order(targets_of(rows), config, seed) if order is None else order
    network = trainable_model(model, revision, config, attention, start)
    check_row_lengths((rows[index] for index in sorted({index for step in order for index in step})), network, config)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {key: value for key, value in config.model_dump().items() if key not in FREE}
    recipe |= {"seed": seed, "rows": len(rows), "start": model_hash(str(start)) if start else None}
    checkpoint, damaged = latest_checkpoint(folder, recipe)
    tracking = {"log_with": list(config.report_to), "project_dir": folder / "tensorboard"} if config.report_to else {}
    accelerator, network, optimizer = distribute(network, config, device, **tracking)
    pad, main = special_tokens(tokenizer).pad, accelerator.is_main_process
    check_packed_loss(network, rows[order[0][0]], attention, pad, accelerator.device.type)
    training = Training(network, optimizer, accelerator, config, rows, order, attention, pad, seed)
    if checkpoint:
        load_checkpoint(checkpoint, network, optimizer)
    accelerator.wait_for_everyone()  # no process may look at a checkpoint while it is renamed
    for path, why in damaged.items() if main else ():
        quarantine(path, why)
    seconds = _take_steps(training, folder, recipe, checkpoint, quiet)
    # Sharded weights are gathered by all processes together, but only the first one's folder is kept.
    with atomic_dir(folder / "model") if main else tempfile.TemporaryDirectory() as place:
        save_model(network, accelerator, Path(place), model)
        tokenizer.save_pretrained(place)
    if main:
        record = {
            "optimizer_steps": len(order),
            "passages": len(rows),
            "target_tokens": sum(row["target_tokens"] for _, row in read_jsonl(folder / "log.jsonl")),
            "seconds": round(seconds, 2),
            "model_hash": model_hash(str(folder / "model")),
            "train": config.model_dump(),
            "seed": seed,
            "start": recipe["start"],
            "log": hash_file(folder / "log.jsonl"),
        }
        write_json(folder / "done.json", with_checksum(record))
    accelerator.wait_for_everyone()
    return read_json(folder / "done.json")


def _take_steps(training: Training, folder: Path, recipe: dict, checkpoint: Path | None, quiet: bool) -> float:
    """Take all optimizer steps that a checkpoint has not seen; log and save them; returns the seconds they took."""
    config, accelerator, steps = training.config, training.accelerator, len(training.order)
    done = read_json(checkpoint / "state.json")["step"] if checkpoint else 0
    log, main = folder / "log.jsonl", accelerator.is_main_process
    if main:
        _truncate_log(log, done)
    started, tokens = time.perf_counter(), 0
    bar = tqdm(total=steps, initial=done, disable=quiet or not main, unit="step", desc=folder.parent.name)
    with bar, _tracked(accelerator, folder, done), open(log if main else os.devnull, "a", encoding="utf-8") as file:
        for number in range(done + 1, steps + 1):
            record = training.step(number)
            file.write(json.dumps(record) + "\n")
            file.flush()
            accelerator.log({name: record[name] for name in ("loss", "learning_rate", "grad_norm")}, step=number)
            tokens += record["tokens"]
            bar.set_postfix(loss=f"{record['loss']:.3f}", tokens_per_s=round(tokens / (time.perf_counter() - started)))
            bar.update()
            if config.save_steps and number % config.save_steps == 0 and number < steps:
                state = {"step": number, "recipe": recipe}
                save_checkpoint(folder, training.model, training.optimizer, state, main)
            if os.environ.get("CTXFT_CRASH_AFTER") == f"step:{number}":
                raise RuntimeError(f"stopped after optimizer step {number}, since CTXFT_CRASH_AFTER is step:{number}.")
    return time.perf_counter() - started


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


# --- log and trackers -------------------------------------------------------------------------------------------------


def _truncate_log(path: Path, steps: int) -> None:
    """Drop log lines of steps after a checkpoint, which are taken again, and what a kill left half-written."""
    for left in path.parent.glob(".*.part"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    lines = path.read_bytes().split(b"\n")[:steps] if path.exists() else []
    write_text(path, "".join(line.decode("utf-8", "replace") + "\n" for line in lines))
    taken = [row.get("step") for _, row in read_jsonl(path)]
    if taken != list(range(1, steps + 1)):  # a kill can only take what is after a checkpoint
        raise InputError(
            f"{path} lacks steps of 1 to {steps}, or was changed: remove {path.parent} and train it again."
        )


@contextlib.contextmanager
def _tracked(accelerator: Accelerator, folder: Path, done: int):
    """Start the trackers of a training, on the first process; a resumed training continues where it was."""
    run = "-".join(folder.parts[-4:])  # such as mini-arms-cft-seed-0
    known = {"id": sha256(str(folder.resolve()))[:16], "dir": str(folder)}
    kwargs = {
        "tensorboard": {"purge_step": done + 1},
        "wandb": {"name": run, "resume": "allow", **known},
        "trackio": {"name": run, "resume": "allow"},
        "mlflow": {"run_name": run},
    }
    accelerator.init_trackers("ctxft", init_kwargs=kwargs)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


# --- what is saved ----------------------------------------------------------------------------------------------------


def save_model(model: torch.nn.Module, accelerator: Accelerator, folder: Path, base: str) -> None:
    """Write a trained model as safetensors, gathered from all processes, which must all call it; the first one writes.

    An adapter gets the name of its base model, and not the folder that it was loaded from on this machine.
    """
    weights = gather_weights(model)
    if not accelerator.is_main_process:
        return
    accelerator.unwrap_model(model).save_pretrained(folder, state_dict=weights)
    if (adapter := folder / "adapter_config.json").exists():
        write_json(adapter, read_json(adapter) | {"base_model_name_or_path": base})
