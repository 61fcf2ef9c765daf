"""A prepared experiment flows in; trained models and their outcomes flow out, each task on its own and only once.

    train_task(arm, seed)    -> arms/<arm>/seed-<n>/  config.yaml prompts.jsonl log.jsonl model/ done.json
    evaluate_task(arm, seed) -> evals/<arm>/seed-<n>/ <benchmark>.jsonl metrics.json
    ensure_run               -> all of them, in processes of their own

``base`` is not trained; it is examined once, as seed 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import torch
import yaml
from tqdm import tqdm

from ctxft.benchmarks import Benchmark, load_benchmark
from ctxft.corpora.passages import passages_hash
from ctxft.evaluation import evaluate, metrics, write_outcomes
from ctxft.examples import build_row, special_tokens
from ctxft.experiment.config import ExperimentConfig, to_mapping
from ctxft.experiment.prepare import books_of, prepare, read_passages, rows_of
from ctxft.models import load_model, load_tokenizer, pick_device
from ctxft.runtime import InputError, check_known, read_json, sha256, write_json, write_jsonl, write_text
from ctxft.scoring import text_losses
from ctxft.training.arm import train_arm

SCORING_REVISION = 1  # raised when the same model and items would get other scores
Task = tuple[str, int]  # (arm, seed)


def train_tasks(config: ExperimentConfig) -> list[Task]:
    """Return the (arm, seed) pairs that are trained."""
    return [(arm, seed) for arm in config.arms if arm != "base" for seed in config.seeds]


def evaluate_tasks(config: ExperimentConfig) -> list[Task]:
    """Return the (arm, seed) pairs that are examined: those trained, and base once."""
    return [("base", 0)] * ("base" in config.arms) + train_tasks(config)


def parse_task(text: str, tasks: Iterable[Task]) -> Task:
    """Return the task that "cft:0" names (arm and seed).

    Raises:
        InputError: the experiment has no such task.
    """
    names = {f"{arm}:{seed}": (arm, seed) for arm, seed in tasks}
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


def _require_trained(config: ExperimentConfig, arm: str, seed: int) -> None:
    if arm != "base" and not is_trained(config, arm, seed):
        raise InputError(f"arm '{arm}', seed {seed} of {config.folder} is not trained yet: run `ctxft train` first.")


# --- training ---------------------------------------------------------------------------------------------------------


def model_card(config: ExperimentConfig, arm: str, seed: int) -> str:
    """Write the card that stands beside a trained model: what it is, how it was made, and what it is not."""
    return (
        f"# {config.name}: {arm}, seed {seed}\n\n"
        f"Base model: `{config.model}`. Corpus: `{config.corpus.source}`. Method: {config.train.method}.\n\n"
        "The arm decides what stood before every training passage: nothing (`cpt`), a contextual prompt (`cft`), a negative "
        "prompt (`neg`) or meaningless words (`control`); `prompt_book.yaml` holds the prompts. Contextual fine-tuning: "
        "Choi et al., ICLR 2025, arXiv 2503.09032.\n\n"
        "Compare it only with the other arms of the same run, which read the same passages in the same order.\n"
    )


def train_task(config: ExperimentConfig, arm: str, seed: int, quiet: bool = True) -> dict:
    """Train one arm with one seed, or go on with it; what is done already is not done again.

    Returns:
        The content of done.json: optimizer steps, passages, target tokens, seconds, model hash.

    Raises:
        InputError: the run is not prepared, or its passages are no longer those that its other arms read.
    """
    folder = arm_folder(config, arm, seed)
    if is_trained(config, arm, seed):
        return read_json(folder / "done.json")
    torch.set_num_threads(config.train.threads)
    tokenizer = load_tokenizer(config.model, config.revision)
    passages = read_passages(config.folder)
    if passages_hash(passages) != read_json(config.folder / "manifest.json")["hashes"]["passages"]:
        raise InputError(
            f"{config.folder / 'passages.jsonl'} was changed after it was made: remove the folder and start anew."
        )
    rows, drawn = rows_of(config, arm, seed, passages, tokenizer)
    write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
    write_jsonl(folder / "prompts.jsonl", drawn)
    books = yaml.safe_dump([book.to_dict() for book in books_of(config)], sort_keys=False, allow_unicode=True)
    files = {"prompt_book.yaml": books, "README.md": model_card(config, arm, seed)}
    return train_arm(rows, config.model, tokenizer, config.train, seed, folder, config.revision, files, quiet)


# --- examination ------------------------------------------------------------------------------------------------------


def held_out_loss(config: ExperimentConfig, model: torch.nn.Module, tokenizer: object) -> dict:
    """Return the mean loss on the held-out passages without any prompt, in nats a token, and the number of tokens."""
    special = special_tokens(tokenizer)
    rows = [build_row(passage, [], special) for passage in read_passages(config.folder, "held_out")]
    if not rows:
        return {"loss": None, "tokens": 0}
    pairs = text_losses(model, [(row["input_ids"], row["labels"]) for row in rows], config.evaluation.token_budget)
    tokens = sum(count for _, count in pairs)
    return {"loss": sum(loss for loss, _ in pairs) / tokens, "tokens": tokens}


def load_benchmarks(config: ExperimentConfig) -> list[Benchmark]:
    """Load the experiment's benchmarks from the hub, the ``data`` folder or the practice world."""
    data = Path(config.evaluation.data) if config.evaluation.data else None
    return [load_benchmark(name, data=data, limit=config.evaluation.limit) for name in config.evaluation.benchmarks]


def _due(config: ExperimentConfig, arm: str, seed: int) -> tuple[dict, dict[str, str], str, list[Benchmark]]:
    """Return the metrics found on disk, the key that each benchmark's must have, that of held-out text, and what is due."""
    benchmarks = load_benchmarks(config)
    if not (config.folder / "manifest.json").exists():
        raise InputError(f"{config.folder} is not a run yet: run `ctxft train` first.")
    hashes = read_json(config.folder / "manifest.json")["hashes"]
    done = arm_folder(config, arm, seed) / "done.json"
    _require_trained(config, arm, seed)
    model = hashes["model"] if arm == "base" else read_json(done)["model_hash"]
    path = eval_folder(config, arm, seed) / "metrics.json"
    found = read_json(path) if path.exists() else {"benchmarks": {}, "held_out": {}}
    keys, due = {}, []
    for benchmark in benchmarks:
        items = [question.hash for question in benchmark.questions]
        keys[benchmark.name] = sha256([SCORING_REVISION, model, benchmark.name, items, config.evaluation.form])
        if found["benchmarks"].get(benchmark.name, {}).get("key") != keys[benchmark.name]:
            due.append(benchmark)
    return found, keys, sha256([SCORING_REVISION, model, hashes["held_out"]]), due


def is_examined(config: ExperimentConfig, arm: str, seed: int) -> bool:
    """Return whether all scores of a task are on disk and belong to this model and these items."""
    found, _, held_key, due = _due(config, arm, seed)
    return not due and found["held_out"].get("key") == held_key


def evaluate_task(config: ExperimentConfig, arm: str, seed: int) -> dict:
    """Examine one trained arm (or base) on every benchmark and on the held-out text; valid results are kept.

    Returns:
        The content of metrics.json: held-out loss, and the metrics of each benchmark.

    Raises:
        InputError: the arm is not trained yet.
    """
    found, keys, held_key, due = _due(config, arm, seed)
    if not due and found["held_out"].get("key") == held_key:
        return found
    torch.set_num_threads(config.train.threads)
    source = config.model if arm == "base" else str(arm_folder(config, arm, seed) / "model")
    tokenizer = load_tokenizer(config.model, config.revision)
    model = load_model(source, config.revision if arm == "base" else None, device=pick_device(config.train.device))
    folder, options = eval_folder(config, arm, seed), config.evaluation
    found["held_out"] = held_out_loss(config, model, tokenizer) | {"key": held_key}
    for benchmark in due:
        outcomes = evaluate(model, tokenizer, benchmark, options.form, options.token_budget)
        write_outcomes(folder / f"{benchmark.name}.jsonl", outcomes)
        origin = {"source": benchmark.source, "revision": benchmark.revision, "note": benchmark.note}
        record = metrics(outcomes, benchmark) | {"key": keys[benchmark.name], "form": options.form, **origin}
        found["benchmarks"][benchmark.name] = record
    write_json(folder / "metrics.json", found)
    return found


# --- many tasks -------------------------------------------------------------------------------------------------------


def _run_workers(
    verb: str, config: ExperimentConfig, tasks: list[Task], workers: int, done: Callable[[Task], bool]
) -> None:
    """Run tasks in ``workers`` processes (`python -m ctxft <verb> config.yaml --task ...`) and show how many are done."""
    threads = {"OMP_NUM_THREADS": str(config.train.threads), "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **threads, "CTXFT_RUNS": str(config.folder.parent)}
    path = write_text(config.folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False))
    running = []
    with tempfile.TemporaryFile("w+") as errors, tqdm(total=len(tasks), desc=verb, unit="task", leave=False) as bar:
        for number in range(min(workers, len(tasks))):
            words = [word for arm, seed in tasks[number::workers] for word in ("--task", f"{arm}:{seed}")]
            command = [sys.executable, "-m", "ctxft", verb, str(path), *words]
            running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors))
        try:
            while any(process.poll() is None for process in running) and not any(p.poll() for p in running):
                time.sleep(0.2)
                if (new := sum(map(done, tasks)) - bar.n) > 0:
                    bar.update(new)
        finally:
            for process in running:
                process.terminate()
            codes = [process.wait() for process in running]
        if any(codes):
            errors.seek(0)
            _raise_failure(verb, errors.read().strip().splitlines() or ["no message"], 2 in codes)


def _raise_failure(verb: str, lines: list[str], bad_input: bool) -> NoReturn:
    """Pass on why a worker stopped: its one sentence for bad input, the end of its output for anything else."""
    if bad_input:
        raise InputError(
            next((line for line in lines if line.startswith("ctxft: ")), lines[-1]).removeprefix("ctxft: ")
        )
    raise RuntimeError(f"`ctxft {verb}` stopped:\n" + "\n".join(lines[-20:]))


def _workers(config: ExperimentConfig, wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise InputError(f"workers must be at least 1 process, found {wanted}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = max(1, cores // config.train.threads) if pick_device(config.train.device) == "cpu" else 1
    return wanted or default


def train_all(config: ExperimentConfig, workers: int | None = None) -> Path:
    """Prepare an experiment and train what is not trained yet; arguments and errors as for ``ensure_run``."""
    workers = _workers(config, workers)
    folder = prepare(config)
    waiting = [task for task in train_tasks(config) if not is_trained(config, *task)]
    if waiting:
        _run_workers("train", config, waiting, workers, lambda task: is_trained(config, *task))
    return folder


def evaluate_all(config: ExperimentConfig, workers: int | None = None) -> Path:
    """Examine what is not examined yet; arguments and errors as for ``ensure_run``."""
    workers = _workers(config, workers)
    load_benchmarks(config)
    for arm, seed in train_tasks(config):  # before prepare writes anything
        _require_trained(config, arm, seed)
    folder = prepare(config)
    waiting = [task for task in evaluate_tasks(config) if not is_examined(config, *task)]
    started = time.time()

    def written(task: Task) -> bool:  # cheap, since it is asked many times a second
        path = eval_folder(config, *task) / "metrics.json"
        return path.exists() and path.stat().st_mtime >= started

    if waiting:
        _run_workers("evaluate", config, waiting, workers, written)
    return folder


def ensure_run(config: ExperimentConfig, workers: int | None = None) -> Path:
    """Prepare, train and examine an experiment, and compute only what is not there yet.

    Args:
        config: the experiment.
        workers: processes at a time; None takes one a core on a CPU, and one on a GPU.

    Returns:
        The run folder.

    Raises:
        InputError: bad input, with the sentence of the task that met it.
        RuntimeError: a task stopped for another reason; the end of its output is shown.

    Example:
        >>> from ctxft.experiment.config import load_experiment
        >>> ensure_run(load_experiment("mini", {"seeds": [0]}))  # doctest: +SKIP
        PosixPath('runs/mini')
    """
    load_benchmarks(config)  # bad or missing benchmark files are told before any training, not after
    train_all(config, workers)
    return evaluate_all(config, workers)
