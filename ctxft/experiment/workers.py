"""An experiment flows in; all its tasks, run in processes of their own, flow out as a finished run folder.

On a CPU one process a core, each with ``train.threads`` threads; on a GPU one process at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import yaml
from tqdm import tqdm

from ctxft.experiment.config import ExperimentConfig, to_mapping
from ctxft.experiment.prepare import prepare
from ctxft.experiment.tasks import (
    Task,
    eval_folder,
    evaluate_tasks,
    is_examined,
    is_trained,
    load_benchmarks,
    require_trained,
    train_tasks,
)
from ctxft.models import pick_device
from ctxft.runtime import FailedError, InputError, write_text


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
    raise FailedError(f"`ctxft {verb}` stopped:\n" + "\n".join(lines[-20:]))


def _workers(config: ExperimentConfig, wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise InputError(f"workers must be at least 1 process, found {wanted}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = max(1, cores // config.train.threads) if pick_device(config.train.device) == "cpu" else 1
    return wanted or default


def train_all(config: ExperimentConfig, workers: int | None = None) -> Path:
    """Prepare an experiment and train what is not trained yet; arguments and errors as for ``ensure_run``."""
    workers = _workers(config, workers)
    load_benchmarks(config, local=True)  # bad questions are told before hours of training
    folder = prepare(config)
    waiting = [task for task in train_tasks(config) if not is_trained(config, *task)]
    if waiting:
        _run_workers("train", config, waiting, workers, lambda task: is_trained(config, *task))
    return folder


def evaluate_all(config: ExperimentConfig, workers: int | None = None) -> Path:
    """Examine what is not examined yet; arguments and errors as for ``ensure_run``."""
    workers = _workers(config, workers)
    benchmarks = load_benchmarks(config)
    for arm, seed in train_tasks(config):  # before prepare writes anything
        require_trained(config, arm, seed)
    folder = prepare(config)
    waiting = [task for task in evaluate_tasks(config) if not is_examined(config, *task, benchmarks)]
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
        FailedError: a task stopped for another reason; the end of its output is shown.

    Example:
        >>> from ctxft.experiment.config import load_experiment
        >>> ensure_run(load_experiment("mini", {"seeds": [0]}))  # doctest: +SKIP
        PosixPath('runs/mini')
    """
    load_benchmarks(config)  # bad or missing benchmark files are told before any training, not after
    train_all(config, workers)
    return evaluate_all(config, workers)
