"""An experiment flows in; all its tasks, run in processes of their own, flow out as a finished run folder.

On a CPU one process a core, each with ``train.threads`` threads; on a GPU one process at a time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from tqdm import tqdm

from ctxft.config import ExperimentConfig, to_mapping
from ctxft.models import pick_device
from ctxft.run.examine import is_examined, load_benchmarks
from ctxft.run.prepare import prepare
from ctxft.run.processes import count_workers, run_parallel
from ctxft.run.tasks import (
    Task,
    eval_folder,
    evaluate_tasks,
    is_trained,
    require_trained,
    require_written,
    train_tasks,
)
from ctxft.storage import write_text


def _run_workers(
    verb: str,
    config: ExperimentConfig,
    tasks: list[Task],
    workers: int,
    done: Callable[[Task], bool],
    tick: Callable[[], object] | None = None,
) -> None:
    """Run tasks in ``workers`` processes (`python -m ctxft <verb> config.yaml --task ...`) and show how many are done."""
    variables = {"OMP_NUM_THREADS": str(config.train.threads), "TOKENIZERS_PARALLELISM": "false"}
    variables["CTXFT_RUNS"] = str(config.folder.parent)
    path = write_text(config.folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False))
    commands = []
    for number in range(min(workers, len(tasks))):
        words = [word for arm, seed in tasks[number::workers] for word in ("--task", f"{arm}:{seed}")]
        commands.append([sys.executable, "-m", "ctxft", verb, str(path), *words])
    if tick is not None:
        run_parallel(verb, commands, variables, tick)
        return
    # seconds: a notebook keeps every state of a bar when nobody looks on, and a log file needs fewer lines still
    often = 0.1 if sys.stderr.isatty() else 1 if "ipykernel" in sys.modules else 10
    with tqdm(total=len(tasks), desc=verb, unit="task", leave=False, mininterval=often) as bar:
        run_parallel(verb, commands, variables, lambda: bar.update(max(0, sum(map(done, tasks)) - bar.n)))


def _workers(config: ExperimentConfig, wanted: int | None) -> int:
    return count_workers(wanted, config.train.threads, pick_device(config.train.device))


def train_all(config: ExperimentConfig, workers: int | None = None, tick: Callable[[], object] | None = None) -> Path:
    """Prepare an experiment and train what is not trained yet; arguments and errors as for ``ensure_run``.

    Args:
        config, workers: as for ``ensure_run``.
        tick: called again and again while arms are trained, in place of a progress bar; what it raises stops the training
            as Ctrl-C does, and checkpoints stay.
    """
    workers = _workers(config, workers)
    load_benchmarks(config, local=True)  # bad questions are told before hours of training
    folder = prepare(config)
    require_written(config)
    waiting = [task for task in train_tasks(config) if not is_trained(config, *task)]
    if waiting:
        _run_workers("train", config, waiting, workers, lambda task: is_trained(config, *task), tick)
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
        >>> from ctxft.config import load_experiment
        >>> ensure_run(load_experiment("mini", {"seeds": [0]}))  # doctest: +SKIP
        PosixPath('runs/mini')
    """
    load_benchmarks(config)  # bad or missing benchmark files are told before any training, not after
    train_all(config, workers)
    return evaluate_all(config, workers)
