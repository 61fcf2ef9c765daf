"""Run the tasks of an experiment in processes of their own.

On a CPU one process a core, each with ``train.threads`` threads; on a GPU one process at a time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tqdm import tqdm

from ctxft.config import to_mapping
from ctxft.models import pick_device
from ctxft.run.processes import count_workers, run_parallel
from ctxft.run.tasks import Task, require_trained, require_written
from ctxft.world.exams import EXAMS

if TYPE_CHECKING:
    from ctxft.run.run import Run


def _run_workers(
    verb: str,
    run: Run,
    tasks: list[Task],
    workers: int,
    done: Callable[[Task], bool],
    tick: Callable[[], object] | None = None,
) -> None:
    """Run tasks in ``workers`` processes and show how many are done.

    A worker is `python -m ctxft <verb> '{...}' --task ...`: it gets the config itself, not a file that another command in
    the same run folder may write meanwhile.
    """
    variables = {"OMP_NUM_THREADS": str(run.config.train.threads), "TOKENIZERS_PARALLELISM": "false"}
    variables["CTXFT_RUNS"] = str(run.folder.parent)
    config = json.dumps(to_mapping(run.wanted))
    commands = []
    for number in range(min(workers, len(tasks))):
        words = [word for arm, seed in tasks[number::workers] for word in ("--task", f"{arm}:{seed}")]
        commands.append([sys.executable, "-m", "ctxft", verb, config, *words])
    if tick is not None:
        run_parallel(verb, commands, variables, tick)
        return
    # seconds: a notebook keeps every state of a bar when nobody looks on, and a log file needs fewer lines still
    often = 0.1 if sys.stderr.isatty() else 1 if "ipykernel" in sys.modules else 10
    with tqdm(total=len(tasks), desc=verb, unit="task", leave=False, mininterval=often) as bar:
        run_parallel(verb, commands, variables, lambda: bar.update(max(0, sum(map(done, tasks)) - bar.n)))


def _workers(run: Run, wanted: int | None) -> int:
    return count_workers(wanted, run.config.train.threads, pick_device(run.config.train.device))


def train_all(run: Run, workers: int | None = None, tick: Callable[[], object] | None = None) -> None:
    """Do what ``Run.train`` says."""
    workers = _workers(run, workers)
    for source in run.config.evaluation.benchmarks:  # bad questions are reported before hours of training
        if (
            run.config.evaluation.data or source in EXAMS or source.endswith(".jsonl")
        ):  # not the hub's: it may be out of reach
            run.benchmark(source)
    run.prepare()
    require_written(run)
    waiting = [task for task in run.train_tasks if not run.is_trained(*task)]
    if waiting:
        _run_workers("train", run, waiting, workers, lambda task: run.is_trained(*task), tick)


def evaluate_all(run: Run, workers: int | None = None) -> None:
    """Do what ``Run.evaluate`` says."""
    workers = _workers(run, workers)
    run.benchmarks  # noqa: B018  bad questions are reported before anything is written
    for arm, seed in run.train_tasks:
        require_trained(run, arm, seed)
    run.prepare()
    waiting = [task for task in run.evaluate_tasks if not run.is_evaluated(*task)]
    started = time.time()

    def written(task: Task) -> bool:  # cheap, since it is asked many times a second
        path = run.eval_folder(*task) / "metrics.json"
        return path.exists() and path.stat().st_mtime >= started

    if waiting:
        _run_workers("evaluate", run, waiting, workers, written)
