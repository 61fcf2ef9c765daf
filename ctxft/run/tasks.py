"""A prepared experiment flows in; trained models flow out, each task on its own and only once.

    train_task(arm, seed) -> arms/<arm>/seed-<n>/  config.yaml prompts.jsonl log.jsonl model/ done.json

An arm of two stages, such as ``cft-ift``, goes on from the model of the first, which is trained before where it is not there.

``base`` is not trained; it is examined once, as seed 0. ``ctxft.run.workers`` runs all tasks of an experiment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig, to_mapping
from ctxft.data.passages import Passage, passages_hash
from ctxft.models import model_hash, shared_tokenizer
from ctxft.prompts import get_arm, text_stages
from ctxft.run.instruct import read_instruction_rows
from ctxft.run.prepare import manifest_of, pinned
from ctxft.run.rows import prompt_sets_of, read_passages, rows_of
from ctxft.storage import (
    InputError,
    check_known,
    exclusive_lock,
    read_json,
    read_or_quarantine,
    write_jsonl,
    write_text,
)
from ctxft.training.config import TrainConfig
from ctxft.training.loop import targets_of, train_arm
from ctxft.training.schedule import passage_order

Task = tuple[str, int]  # (arm, seed)


def train_tasks(config: ExperimentConfig) -> list[Task]:
    """Return the (arm, seed) pairs that are trained, those of one stage first."""
    trained = [arm for arm in config.arms if get_arm(arm).stages]
    return [(arm, seed) for arm in sorted(trained, key=lambda arm: len(get_arm(arm).stages)) for seed in config.seeds]


def evaluate_tasks(config: ExperimentConfig) -> list[Task]:
    """Return the (arm, seed) pairs that are examined: those trained, and base once."""
    return [(arm, 0) for arm in config.arms if not get_arm(arm).stages] + train_tasks(config)


def parse_task(text: str, tasks: Iterable[Task]) -> Task:
    """Return the task that "cft:0" names (arm and seed), or a number from 0 among all tasks.

    Raises:
        InputError: the experiment has no such task.
    """
    names = {f"{arm}:{seed}": (arm, seed) for arm, seed in tasks}
    if text.isdecimal():
        if len(text) > 9 or int(text) >= len(names):
            raise InputError(f"task {text} is not there: the tasks are 0 to {len(names) - 1} ({', '.join(names)}).")
        return list(names.values())[int(text)]
    if ":" not in text:
        raise InputError(f"a task is ARM:SEED, such as {next(iter(names))}, or a number from 0; found '{text}'.")
    return names[check_known(text, names, "task")]


def arm_folder(config: ExperimentConfig, arm: str, seed: int) -> Path:
    """Return where an arm's training of one seed lives."""
    return config.folder / "arms" / arm / f"seed-{seed}"


def eval_folder(config: ExperimentConfig, arm: str, seed: int) -> Path:
    """Return where an arm's outcomes of one seed live."""
    return config.folder / "evals" / arm / f"seed-{seed}"


def is_trained(config: ExperimentConfig, arm: str, seed: int) -> bool:
    """Return whether a task's training is finished."""
    return (arm_folder(config, arm, seed) / "done.json").exists()


def require_trained(config: ExperimentConfig, arm: str, seed: int) -> None:
    """Raise InputError if an arm has to be trained before it can be examined."""
    if get_arm(arm).stages and not is_trained(config, arm, seed):
        raise InputError(f"arm '{arm}', seed {seed} of {config.folder} is not trained yet: run `ctxft train` first.")


def require_written(config: ExperimentConfig) -> None:
    """Raise InputError if an arm reads prompts that no model has written yet: before the other arms are trained."""
    for arm in map(get_arm, text_stages(config.arms)):
        if arm.written:
            arm.written(config, config.seeds[0])


# --- training ---------------------------------------------------------------------------------------------------------


def model_card(config: ExperimentConfig, arm: str, seed: int) -> str:
    """Write the card that stands beside a trained model: what it is, how it was made, and what it is not."""

    def name(source: str) -> str:  # a card is passed on: it need not tell where things lie on this machine
        return Path(source).name if Path(source).exists() else source

    return (
        f"# {config.name}: {arm}, seed {seed}\n\n"
        f"Base model: `{name(config.model)}`. Corpus: `{name(config.corpus.source)}`. Method: {config.train.method}.\n\n"
        f"The arm `{arm}` reads {get_arm(arm).reads}"
        f"{', and was then trained on instructions' if get_arm(arm).start else ''}. The prompt sets that it samples from, if "
        "any, are stored next to this card. Contextual fine-tuning: Choi et al., ICLR 2025, arXiv 2503.09032.\n\n"
        "Compare it only with the other arms of the same run, which read the same passages in the same order.\n"
    )


def train_task(config: ExperimentConfig, arm: str, seed: int, quiet: bool = True, wait: bool = False) -> dict:
    """Train one arm with one seed, or go on with it; what is done already is not done again.

    Returns:
        The content of done.json: optimizer steps, passages, target tokens, seconds, model hash.

    Raises:
        InputError: the run is not prepared, its passages are no longer those that its other arms read, or another process
            trains this task now.
    """
    if done := _done(config, arm, seed):
        return _require_lineage(config, arm, seed, done)
    read_passages(config.folder)  # refuses a folder that is not prepared, before anything is written there
    before = get_arm(arm).start
    if before:  # of an earlier stage
        train_task(config, before, seed, quiet, wait=True)
    with _only_process(config, arm, seed, wait):
        if done := _done(config, arm, seed):  # by the process that was waited for
            return done
        return _train(config, arm, seed, quiet)


def _done(config: ExperimentConfig, arm: str, seed: int) -> dict | None:
    """Return a finished training's record, or None; where it is damaged the training goes on from what is left."""
    return read_or_quarantine(arm_folder(config, arm, seed) / "done.json")


def _require_lineage(config: ExperimentConfig, arm: str, seed: int, done: dict) -> dict:
    """Return a finished training's record, or refuse it where the model of its earlier stage is another one now."""
    start = get_arm(arm).start
    if start is None:
        return done
    first = arm_folder(config, start, seed) / "done.json"
    if done.get("start") and first.exists() and read_json(first)["model_hash"] != done["start"]:
        raise InputError(
            f"{first.parent} was trained anew since {arm_folder(config, arm, seed)} went on from it: remove the latter."
        )
    return done


def _only_process(config: ExperimentConfig, arm: str, seed: int, wait: bool) -> contextlib.AbstractContextManager:
    """Let one process at a time train a task; the processes of one distributed training count as one."""
    if os.environ.get("RANK", "0") != "0":
        return contextlib.nullcontext()
    lock = arm_folder(config, arm, seed).parent / f".seed-{seed}.lock"
    return exclusive_lock(lock, f"trains {arm}:{seed} in {config.folder}", wait)


def _train(config: ExperimentConfig, arm: str, seed: int, quiet: bool) -> dict:
    folder = arm_folder(config, arm, seed)
    torch.set_num_threads(config.train.threads)
    config = pinned(config, manifest_of(config))
    passages = read_passages(config.folder)
    if passages_hash(passages) != read_json(config.folder / "manifest.json")["hashes"]["passages"]:
        raise InputError(
            f"{config.folder / 'passages.jsonl'} was changed after it was made: remove the folder and start anew."
        )
    before = get_arm(arm).start
    tokenizer = shared_tokenizer(config.model, config.revision)
    rows, drawn, recipe, order = lesson_of(config, arm, seed, passages, tokenizer)
    write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
    write_jsonl(folder / "prompts.jsonl", drawn)
    files = {"README.md": model_card(config, arm, seed)}
    files |= prompt_set_files(config, arm)
    start = arm_folder(config, before, seed) / "model" if before else None
    if start and model_hash(str(start)) != read_json(start.parent / "done.json")["model_hash"]:
        raise InputError(f"{start} was changed after training: remove {start.parent} and train it again.")
    given = (rows, config.model, tokenizer, recipe, seed, folder, config.revision, files, quiet)
    train_arm(*given, start=start, order=order)
    return read_json(folder / "done.json")


class Lesson(NamedTuple):
    """What one training reads: rows, which prompt was drawn for each passage, the recipe, and the rows of each step."""

    rows: Sequence[dict]
    drawn: list[dict]
    recipe: TrainConfig
    order: list[list[int]]


def lesson_of(
    config: ExperimentConfig, arm: str, seed: int, passages: list[Passage], tokenizer: PreTrainedTokenizerBase
) -> Lesson:
    """Return what the last stage of an arm reads; it follows from the run's passages, prompt sets and instructions alone."""
    if get_arm(arm).instructed:
        rows, recipe = read_instruction_rows(config.folder), config.ift.recipe(config.train)
        return Lesson(rows, [], recipe, passage_order(targets_of(rows), recipe, seed))
    general = read_passages(config.folder, "general") if config.general and config.general.share else []
    rows, drawn = rows_of(config, arm, seed, passages, tokenizer, general)
    targets = rows.text_targets  # not those of a prompt or exercises that are learned too: all arms have the same steps
    split, share = len(passages), config.general.share if general else 0.0
    return Lesson(rows, drawn, config.train, passage_order(targets[:split], config.train, seed, targets[split:], share))


def prompt_set_files(config: ExperimentConfig, arm: str) -> dict[str, str]:
    """Return the files that hold the prompt sets of an arm beside its model; none for an arm that reads no prompt."""
    found = get_arm(arm)
    if found.instructed or found.prompt is None:
        return {}
    sets = dict(zip(("strategies", "negative"), prompt_sets_of(config), strict=True))
    names = ("prompt_set", *(f"{name}_prompt_set" for name in found.sets[1:]))
    prompt_sets = dict(zip(names, (sets[name] for name in found.sets), strict=True))
    dumped = {
        name: yaml.safe_dump(prompt_set.to_dict(), sort_keys=False, allow_unicode=True)
        for name, prompt_set in prompt_sets.items()
    }
    return {f"{name}.yaml": text for name, text in dumped.items()}
