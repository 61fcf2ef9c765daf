"""Rows of one arm flow in; a fine-tuned model folder flows out, with a log line for every optimizer step.

    rows -> passage_order(seed): which passages make each optimizer step, the same in every arm
         -> transformers Trainer (full fine-tuning or LoRA) -> checkpoint-*/ -> model/ (safetensors), log.jsonl, done.json

The Trainer weights the loss by target tokens over the whole accumulated batch. A killed training goes on from its last
complete checkpoint, on a CPU bit for bit as if it had not been interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ctxft.examples import IGNORE_INDEX, PaddedCollator, special_tokens
from ctxft.models import load_model, model_hash, pick_device, resolve_model, window_of
from ctxft.runtime import InputError, read_json, whole_folder, write_json, write_text
from ctxft.training.config import LoraSettings, TrainConfig, passage_order

COMPLETE = "complete.json"  # stands in a checkpoint only after all of it was written


class _OrderedRows(torch.utils.data.Dataset):
    """The rows in the order in which the Trainer shall read them, one after the other."""

    def __init__(self, rows: list[dict], order: list[list[int]]) -> None:
        self.rows, self.order = rows, [index for step in order for index in step]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict:
        return self.rows[self.order[place]]


class _StepLog(TrainerCallback):
    """Writes log.jsonl, a line an optimizer step, and marks checkpoints that are complete."""

    def __init__(self, path: Path, order: list[list[int]], targets: list[int]) -> None:
        self.path, self.order, self.targets = path, order, targets

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:  # a resumed training repeats the steps after its checkpoint: forget their lines
            lines = [self._line(entry) for entry in state.log_history if "loss" in entry]
            write_text(self.path, "".join(lines))

    def on_log(self, args, state, control, logs=None, **_):
        if state.is_world_process_zero and "loss" in (logs or {}):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._line({**logs, "step": state.global_step}))

    def on_save(self, args, state, control, **_):
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero:
            write_json(folder / COMPLETE, {"step": state.global_step})

    def _line(self, entry: dict) -> str:
        step = entry["step"]
        passages = self.order[step - 1]
        kept = {name: entry[name] for name in ("step", "loss", "learning_rate", "grad_norm") if name in entry}
        kept |= {"target_tokens": sum(self.targets[i] for i in passages), "passages": passages}
        return json.dumps(kept) + "\n"


def wrap_lora(model: PreTrainedModel, settings: LoraSettings, base: str, revision: str | None) -> PreTrainedModel:
    """Put trainable low-rank adapters on a model and freeze the rest.

    Args:
        model: the base model.
        settings: rank, alpha, dropout, targets.
        base: the base model's name.
        revision: the base model's commit on the hub.

    Raises:
        InputError: no layer has one of the target names.
    """
    targets = "all-linear" if settings.targets == ["all-linear"] else settings.targets
    adapter = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    adapter.revision = revision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to be replaced
            wrapped = get_peft_model(model, adapter)
    except ValueError as error:
        raise InputError(f"train.lora.targets: {error}") from None
    # where the files are: peft looks up the base model's config each time it saves, on the hub if it is not here
    wrapped.peft_config["default"].base_model_name_or_path = resolve_model(base, revision)[0]
    return wrapped


def _arguments(folder: Path, config: TrainConfig, steps: int, seed: int, quiet: bool) -> TrainingArguments:
    device = pick_device(config.device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_passages % (config.micro_batch_passages * world):
        raise InputError(
            f"train.batch_passages ({config.batch_passages}) must be a multiple of micro_batch_passages x processes "
            f"({config.micro_batch_passages} x {world})."
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch_passages,
        gradient_accumulation_steps=config.batch_passages // (config.micro_batch_passages * world),
        train_sampling_strategy="sequential",  # the order is in the data set
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule
        if config.warmup == 0 or config.schedule != "constant"
        else "constant_with_warmup",
        warmup_steps=round(config.warmup * steps),
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_epsilon=config.epsilon,
        max_grad_norm=config.clip,
        bf16=device != "cpu",
        use_cpu=device == "cpu",
        seed=seed,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 1,
        save_total_limit=2,  # the one before the last is still whole when a kill hits the writing of the last
        logging_steps=1,
        logging_first_step=True,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=quiet,
        logging_nan_inf_filter=False,  # a loss that is not a number must stand in the log as such
        **({"gradient_checkpointing": True} if config.gradient_checkpointing else {}),
    )
    # Several GPUs by `accelerate launch` only: left alone, the Trainer would take DataParallel and a larger batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _complete_model(folder: Path, tokenizer: PreTrainedTokenizerBase, base: str | None, files: dict[str, str]) -> None:
    """Put tokenizer and texts beside saved weights; ``base`` is the base model's name where they are an adapter."""
    tokenizer.save_pretrained(folder)
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
    if base is not None:  # its name, and not the folder that it was loaded from on this machine
        path = folder / "adapter_config.json"
        write_json(path, read_json(path) | {"base_model_name_or_path": base})
    for name, text in files.items():
        write_text(folder / name, text)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, or None; half-written ones are passed over."""
    found = [path.parent for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return max(found, key=lambda path: read_json(path / COMPLETE)["step"], default=None)


def train_arm(
    rows: list[dict[str, list[int]]],
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    seed: int,
    folder: Path,
    revision: str | None = None,
    files: dict[str, str] | None = None,
    quiet: bool = True,
) -> dict:
    """Fine-tune a model on one arm's rows, or go on where a killed training stopped.

    Args:
        rows: a row per passage, with ``input_ids`` and ``labels`` (see ``examples.build_row``).
        model: the base model: a practice model, a folder or a hub id.
        tokenizer: saved beside the model.
        config: the recipe.
        seed: of order, LoRA initialisation and dropout.
        folder: where log.jsonl, checkpoints, model/ and done.json go.
        revision: the base model's hub revision.
        files: further text files for the model folder (name -> text): prompt book, model card.
        quiet: show no progress bar.

    Returns:
        What done.json holds: optimizer steps, passages, target tokens, seconds, hash of the model folder.

    Raises:
        InputError: a row is longer than the model's or the config's window, or the device is not there.
    """
    set_seed(seed)
    pick_device(config.device)  # told before any weights are read
    network = load_model(model, revision, dtype=torch.float32)  # the Trainer moves it to this process's device
    longest, limit = max(len(row["input_ids"]) for row in rows), window_of(network)
    if longest > min(config.window, limit or longest):
        raise InputError(
            f"a row has {longest} tokens, but train.window is {config.window} and the model's limit {limit}."
        )
    if config.method == "lora":
        network = wrap_lora(network, config.lora, model, revision)
    order = passage_order(len(rows), config, seed)
    targets = [sum(label != IGNORE_INDEX for label in row["labels"]) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model=network,
        args=_arguments(folder, config, len(order), seed, quiet),
        train_dataset=_OrderedRows(rows, order),
        data_collator=PaddedCollator(special_tokens(tokenizer).pad),
        callbacks=[_StepLog(folder / "log.jsonl", order, targets)],
    )
    if quiet:
        trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(last_checkpoint(folder) or "") or None)
    seconds = time.perf_counter() - started
    first = trainer.is_world_process_zero()
    # Sharded weights are gathered by all processes together, but only the first one's folder is kept.
    with whole_folder(folder / "model") if first else tempfile.TemporaryDirectory() as place:
        trainer.save_model(str(place))
        if first:
            _complete_model(place, tokenizer, model if config.method == "lora" else None, files or {})
    done = {
        "optimizer_steps": len(order),
        "passages": len(rows),
        "target_tokens": sum(targets[i] for step in order for i in step),
        "seconds": round(seconds, 2),
        "model_hash": model_hash(str(folder / "model")) if first else None,
        "train": dataclasses.asdict(config),
        "seed": seed,
    }
    if first:
        write_json(folder / "done.json", done)
    trainer.accelerator.wait_for_everyone()
    return read_json(folder / "done.json")
