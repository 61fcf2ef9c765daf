"""Train and evaluate one arm with one seed, each on its own and only once.

    train_task     arms/<arm>/seed-<n>/   config.yaml prompts.jsonl log.jsonl model/ done.json
    evaluate_task  evals/<arm>/seed-<n>/  <benchmark>.jsonl metrics.json

An arm of two stages, such as ``cft-ift``, resumes from the model of the first, which is trained before where it is not there.
``base`` is not trained; it is evaluated once, as seed 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from transformers import PreTrainedModel

from ctxft.config import to_mapping
from ctxft.evaluation.benchmarks import Benchmark, style_of
from ctxft.evaluation.evaluate import evaluate
from ctxft.evaluation.metrics import metrics
from ctxft.evaluation.outcomes import write_outcomes
from ctxft.evaluation.probe import forgetting, mean_loss, probe_state
from ctxft.models import model_hash
from ctxft.prompts import get_arm, text_stages
from ctxft.run.prepare import INSTRUCTIONS, has_instructions
from ctxft.storage import (
    InputError,
    RecordLog,
    check_known,
    exclusive_lock,
    hash_file,
    quarantine,
    read_checked,
    read_or_quarantine,
    sha256,
    with_checksum,
    write_json,
    write_jsonl,
    write_text,
)
from ctxft.training.loop import train_arm

if TYPE_CHECKING:
    from ctxft.run.run import Run

Task = tuple[str, int]  # (arm, seed)
SCORING_REVISION = 3  # raised when the same model and items would get other scores


def parse_task(text: str, tasks: Iterable[Task]) -> Task:
    """Return the task that "cft:0" names (arm and seed), or a number from 0 among all tasks.

    Raises:
        InputError: the experiment has no such task.

    Example:
        >>> parse_task("1", [("cpt", 0), ("cft", 0)])
        ('cft', 0)
    """
    names = {f"{arm}:{seed}": (arm, seed) for arm, seed in tasks}
    if text.isdecimal():
        if len(text) > 9 or int(text) >= len(names):
            raise InputError(f"task {text} is not there: the tasks are 0 to {len(names) - 1} ({', '.join(names)}).")
        return list(names.values())[int(text)]
    if ":" not in text:
        raise InputError(f"a task is ARM:SEED, such as {next(iter(names))}, or a number from 0; found '{text}'.")
    return names[check_known(text, names, "task")]


# --- training ---------------------------------------------------------------------------------------------------------


def require_written(run: Run) -> None:
    """Raise InputError if an arm reads prompts that no model has written yet: before the other arms are trained."""
    for arm in map(get_arm, text_stages(run.config.arms)):
        if arm.written:
            arm.written(run.config, run.config.seeds[0])


def require_trained(run: Run, arm: str, seed: int) -> None:
    """Raise InputError if an arm has to be trained before it can be evaluated."""
    if not run.is_trained(arm, seed):
        raise InputError(f"arm '{arm}', seed {seed} of {run.folder} is not trained yet: run `ctxft train` first.")


def train_task(run: Run, arm: str, seed: int, quiet: bool = True, wait: bool = False) -> dict:
    """Do what ``Run.train_task`` says; ``wait`` for another process that trains the same task."""
    run.require_prepared()
    if done := _finished(run, arm, seed):
        return done
    if first := get_arm(arm).start:
        train_task(run, first, seed, quiet, wait=True)
    if os.environ.get("RANK", "0") != "0":  # the processes of one distributed training count as one
        return _train(run, arm, seed, quiet)
    lock = run.arm_folder(arm, seed).parent / f".seed-{seed}.lock"
    with exclusive_lock(lock, f"trains {arm}:{seed} in {run.folder}", wait):
        return _finished(run, arm, seed) or _train(run, arm, seed, quiet)  # perhaps by the process that was waited for


def _finished(run: Run, arm: str, seed: int) -> dict | None:
    """Return a finished training's record, or None; where it is damaged the training resumes from what is left."""
    done, start = read_or_quarantine(run.arm_folder(arm, seed) / "done.json"), get_arm(arm).start
    if done and start and run.is_trained(start, seed) and run.model_hash(start, seed) != done["start"]:
        raise InputError(
            f"{run.arm_folder(start, seed)} was trained again since {run.arm_folder(arm, seed)} resumed from it: remove "
            "the latter."
        )
    return done


def _train(run: Run, arm: str, seed: int, quiet: bool) -> dict:
    folder, config, start = run.arm_folder(arm, seed), run.config, None
    torch.set_num_threads(config.train.threads)
    data = run.training_data(arm, seed)
    if first := get_arm(arm).start:
        start = run.arm_folder(first, seed) / "model"
        if model_hash(str(start)) != run.model_hash(first, seed):
            raise InputError(f"{start} was changed after training: remove {start.parent} and train it again.")
    write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
    write_jsonl(folder / "prompts.jsonl", data.sampled)
    recipe = (data.recipe, seed, folder, config.revision, quiet)
    train_arm(data.rows, config.model, run.tokenizer, *recipe, start=start, order=data.order)
    return run.done(arm, seed)


# --- evaluation -------------------------------------------------------------------------------------------------------


def benchmark_key(run: Run, arm: str, seed: int, benchmark: Benchmark) -> str:
    """Return what changes whenever another model, other items or another format would give other outcomes."""
    items = [question.hash for question in (*benchmark.questions, *benchmark.dev)]
    model, form = run.model_hash(arm, seed), style_of(benchmark, run.config.evaluation)
    return sha256([SCORING_REVISION, model, benchmark.name, items, form, benchmark.wording.model_dump()])


def held_out_key(run: Run, arm: str, seed: int) -> str:
    """Return what changes whenever another model or other texts would give other losses."""
    manifest = run.recorded()
    names = ("corpus/", "general/", *(INSTRUCTIONS[1:] if has_instructions(run) else ()))
    texts = [digest for name, digest in sorted(manifest.files.items()) if name.startswith(names)]
    return sha256([SCORING_REVISION, run.model_hash(arm, seed), texts, manifest.hashes["prompts"], probe_state()])


def results_and_due(run: Run, arm: str, seed: int) -> tuple[dict, list[Benchmark]]:
    """Return what metrics.json holds, and the benchmarks whose outcomes are not of this model, these items and this format.

    Losses of another model or of other texts are left out; a damaged file is quarantined.
    """
    folder = run.eval_folder(arm, seed)
    results = read_or_quarantine(folder / "metrics.json") or {"benchmarks": {}, "held_out": {}}
    if results["held_out"].get("key") != held_out_key(run, arm, seed):
        results["held_out"] = {}
    due = []
    for benchmark in run.benchmarks:
        record, path = results["benchmarks"].get(benchmark.name, {}), folder / f"{benchmark.name}.jsonl"
        valid = record.get("key") == benchmark_key(run, arm, seed, benchmark) and path.exists()
        if valid and record["outcomes"] != hash_file(path):
            quarantine(path, f"{path} was cut off or changed after it was written.")
            valid = False
        if not valid:
            due.append(benchmark)
    return results, due


def evaluate_task(run: Run, arm: str, seed: int) -> dict:
    """Do what ``Run.evaluate_task`` says."""
    folder = run.eval_folder(arm, seed)
    path = folder / "metrics.json"
    run.benchmarks  # noqa: B018  bad questions are reported before anything is written
    run.require_prepared()
    require_trained(run, arm, seed)
    with exclusive_lock(folder.parent / f".seed-{seed}.lock", f"evaluates {arm}:{seed} in {run.folder}"):
        results, due = results_and_due(run, arm, seed)
        if not due and results["held_out"]:
            return results
        torch.set_num_threads(run.config.train.threads)
        model = run.model(arm, seed)
        if not results["held_out"]:
            results["held_out"] = _held_out(run, model) | {"key": held_out_key(run, arm, seed)}
        for benchmark in due:
            results["benchmarks"].pop(benchmark.name, None)  # a kill must not leave metrics of other outcomes
            write_json(path, with_checksum(results))
            key = benchmark_key(run, arm, seed, benchmark)
            results["benchmarks"][benchmark.name] = _evaluate(run, benchmark, model, folder, key)
        return read_checked(write_json(path, with_checksum(results)))


def _evaluate(run: Run, benchmark: Benchmark, model: PreTrainedModel, folder: Path, key: str) -> dict:
    """Write a model's outcomes on a benchmark, from where a killed process was; returns their record in metrics.json."""
    options, path = run.config.evaluation, folder / f"{benchmark.name}.jsonl"
    with RecordLog(path.with_suffix(".partial"), header=key, fsync=False) as log:
        outcomes = evaluate(model, run.tokenizer, benchmark, options, log)
    write_outcomes(path, outcomes)
    log.path.unlink()
    origin = {name: getattr(benchmark, name) for name in ("source", "revision", "note")}
    origin |= {"form": style_of(benchmark, run.config.evaluation), "rule": options.output_type}
    return metrics(outcomes, benchmark) | origin | {"key": key, "outcomes": hash_file(path)}


def _held_out(run: Run, model: PreTrainedModel) -> dict:
    """Measure the losses on held-out text, in nats a token, and what the model may have forgotten."""
    results: dict = {"loss": None, "prompted_loss": None, "tokens": 0}
    for name, rows in run.held_out_rows.items():
        results[f"{name}loss"], tokens = mean_loss(model, rows, run.config.evaluation.max_batch_tokens)
        results["general_tokens" if name == "general_" else "tokens"] = tokens
    documents = run.text("general_held_out" if run.config.general else "held_out")
    return results | forgetting(
        model, run.tokenizer, run.config.train.max_length, documents, run.text("instructions_held_out")
    )
