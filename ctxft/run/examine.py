"""Trained arms flow in; their outcomes on every benchmark and their loss on held-out text flow out.

evaluate_task(arm, seed) -> evals/<arm>/seed-<n>/ <benchmark>.jsonl metrics.json
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig
from ctxft.data.passages import passages_hash
from ctxft.evaluation.benchmarks import Benchmark, load_benchmark, style_of
from ctxft.evaluation.evaluate import evaluate
from ctxft.evaluation.metrics import metrics
from ctxft.evaluation.outcomes import Journal, write_outcomes
from ctxft.evaluation.probe import forgetting, probe_state
from ctxft.evaluation.scoring import text_losses
from ctxft.models import load_model, model_hash, pick_device, shared_tokenizer
from ctxft.prompts import get_arm
from ctxft.run.prepare import require_same
from ctxft.run.rows import read_passages, rows_of
from ctxft.run.tasks import arm_folder, eval_folder, require_trained
from ctxft.storage import (
    InputError,
    exclusive_lock,
    hash_file,
    quarantine,
    read_checked,
    read_json,
    read_or_quarantine,
    sha256,
    with_checksum,
    write_json,
)
from ctxft.world.exams import EXAMS

SCORING_REVISION = 3  # raised when the same model and items would get other scores
HELD_OUT_SEED = 0  # draws the prompts before held-out passages, the same for every arm and seed


def held_out_loss(config: ExperimentConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Return the mean loss on the held-out passages, in nats a token, without a prompt and behind those of arm cft.

    Every arm reads the same prompts, drawn for each passage with one seed.
    """
    passages = read_passages(config.folder, "held_out")
    if passages_hash(passages) != read_json(config.folder / "manifest.json")["hashes"]["held_out"]:
        raise InputError(f"{config.folder / 'held_out.jsonl'} was changed after it was made: run `ctxft verify`.")
    if not passages:
        return {"loss": None, "prompted_loss": None, "tokens": 0}
    found = {}
    for name, arm in (("loss", "cpt"), ("prompted_loss", "cft")):
        rows, _ = rows_of(config, arm, HELD_OUT_SEED, passages, tokenizer)
        pairs = text_losses(model, [(row["input_ids"], row["labels"]) for row in rows], config.evaluation.token_budget)
        found["tokens"] = sum(count for _, count in pairs)
        found[name] = sum(loss for loss, _ in pairs) / found["tokens"]
    return found


def load_benchmarks(config: ExperimentConfig, local: bool = False) -> list[Benchmark]:
    """Load the experiment's benchmarks from the hub, the ``data`` folder or the practice world.

    Args:
        config: the experiment.
        local: leave out those that only the hub has: a machine that trains need not reach it.
    """
    options = config.evaluation
    data = Path(options.data) if options.data else None
    here = [n for n in options.benchmarks if not local or data or n in EXAMS or Path(n).suffix in (".jsonl", ".yaml")]
    how = {"data": data, "limit": options.limit, "num_fewshot": options.shots}
    return [load_benchmark(name, revision=options.revision_of(name), **how) for name in here]


def asked_as(config: ExperimentConfig, benchmark: Benchmark) -> str:
    """Return in words how the experiment asks a benchmark."""
    options = config.evaluation
    return style_of(benchmark, options.form, options.shots, options.chat_template, options.rule == "generate")


def model_of(config: ExperimentConfig, arm: str, seed: int) -> str:
    """Return the hash of the model that a task examines; raises InputError if it is not trained yet."""
    require_trained(config, arm, seed)
    if not get_arm(arm).stages:
        return read_json(config.folder / "manifest.json")["hashes"]["model"]
    return read_checked(arm_folder(config, arm, seed) / "done.json")["model_hash"]


def benchmark_key(config: ExperimentConfig, model: str, benchmark: Benchmark) -> str:
    """Return what changes whenever another model, other items or another way to ask would give other outcomes."""
    items = [question.hash for question in (*benchmark.questions, *benchmark.dev)]
    return sha256([SCORING_REVISION, model, benchmark.name, items, asked_as(config, benchmark)])


def held_out_key(config: ExperimentConfig, model: str) -> str:
    """Return what changes whenever another model or other texts would give another loss."""
    hashes = read_json(config.folder / "manifest.json")["hashes"]
    return sha256([SCORING_REVISION, model, hashes["held_out"], hashes["prompts"], probe_state(config, hashes)])


def _due(
    config: ExperimentConfig, arm: str, seed: int, benchmarks: list[Benchmark]
) -> tuple[dict, dict[str, str], str, list[Benchmark]]:
    """Return the metrics found on disk, the key that each benchmark's must have, that of held-out text, and what is due."""
    model, folder = model_of(config, arm, seed), eval_folder(config, arm, seed)
    found = read_or_quarantine(folder / "metrics.json") or {"benchmarks": {}, "held_out": {}}
    keys = {benchmark.name: benchmark_key(config, model, benchmark) for benchmark in benchmarks}
    due = []
    for benchmark in benchmarks:
        record = found["benchmarks"].get(benchmark.name, {})
        if record.get("key") != keys[benchmark.name] or not _stands(folder / f"{benchmark.name}.jsonl", record):
            due.append(benchmark)
    return found, keys, held_out_key(config, model), due


def _stands(path: Path, record: dict) -> bool:
    """Return whether outcomes are those that the metrics were computed from; a file that was changed is quarantined."""
    if not path.exists() or record.get("outcomes", hash_file(path)) == hash_file(path):
        return path.exists()
    quarantine(path, f"{path} was cut off or changed after it was written.")
    return False


def is_examined(config: ExperimentConfig, arm: str, seed: int, benchmarks: list[Benchmark]) -> bool:
    """Return whether all scores of a task are on disk and belong to this model and these benchmarks' items."""
    found, _, held_key, due = _due(config, arm, seed, benchmarks)
    return not due and found["held_out"].get("key") == held_key


def evaluate_task(config: ExperimentConfig, arm: str, seed: int) -> dict:
    """Examine one trained arm (or base) on every benchmark and on the held-out text; valid results are kept.

    Returns:
        The content of metrics.json: held-out loss, and the metrics of each benchmark.

    Raises:
        InputError: the run is of another config, the arm is not trained yet, its model was changed since, or another
            process examines it now.
    """
    benchmarks = load_benchmarks(config)
    config = require_same(config)
    lock = eval_folder(config, arm, seed).parent / f".seed-{seed}.lock"
    with exclusive_lock(lock, f"examines {arm}:{seed} in {config.folder}"):
        return _evaluate(config, arm, seed, benchmarks)


def _evaluate(config: ExperimentConfig, arm: str, seed: int, benchmarks: list[Benchmark]) -> dict:
    found, keys, held_key, due = _due(config, arm, seed, benchmarks)
    if not due and found["held_out"].get("key") == held_key:
        return found
    torch.set_num_threads(config.train.threads)
    tokenizer, model = shared_tokenizer(config.model, config.revision), trained_model(config, arm, seed)
    folder, options = eval_folder(config, arm, seed), config.evaluation
    measured = held_out_loss(config, model, tokenizer) | forgetting(config, model, tokenizer)
    found["held_out"] = measured | {"key": held_key}
    for benchmark in due:
        found["benchmarks"].pop(benchmark.name, None)  # a kill must not leave old metrics beside new outcomes
        write_json(folder / "metrics.json", with_checksum(found))
        journal = Journal(folder / f"{benchmark.name}.partial", keys[benchmark.name])
        how = {"shots": options.shots, "chat_template": options.chat_template, "rule": options.rule}
        how |= {"token_budget": options.token_budget, "journal": journal}
        outcomes = evaluate(model, tokenizer, benchmark, options.form, **how)
        write_outcomes(folder / f"{benchmark.name}.jsonl", outcomes)
        journal.finish()
        origin = {"source": benchmark.source, "revision": benchmark.revision, "note": benchmark.note}
        record = metrics(outcomes, benchmark) | origin
        record |= {"key": keys[benchmark.name], "form": asked_as(config, benchmark), "rule": options.rule}
        record["outcomes"] = hash_file(folder / f"{benchmark.name}.jsonl")
        found["benchmarks"][benchmark.name] = record
        write_json(folder / "metrics.json", with_checksum(found))
    write_json(folder / "metrics.json", with_checksum(found))
    return with_checksum(found)


def trained_model(config: ExperimentConfig, arm: str, seed: int) -> PreTrainedModel:
    """Load the model of a trained arm, or the base model, on the device of the recipe.

    Raises:
        InputError: the model was changed after its training.
    """
    device = pick_device(config.train.device)
    if not get_arm(arm).stages:
        return load_model(config.model, config.revision, device)
    folder = arm_folder(config, arm, seed)
    if model_hash(str(folder / "model")) != read_checked(folder / "done.json")["model_hash"]:
        raise InputError(f"{folder / 'model'} was changed after training: remove {folder} and train it again.")
    return load_model(str(folder / "model"), device=device)
