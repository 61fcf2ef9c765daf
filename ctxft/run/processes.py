"""Run commands side by side until all have ended or one has failed, and pass on why it failed.

The tasks of an experiment run in processes of their own: on a CPU one a core, each with ``train.threads`` threads; on a GPU
one at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from ctxft.storage import KEPT, FailedError, InputError

if TYPE_CHECKING:
    from ctxft.run.run import Run
    from ctxft.run.tasks import Task

DIES_WITH_STDIN = "CTXFT_ENDS_WITH_STDIN"  # set for workers, whose stdin is a pipe that only their parent holds open


def die_with_parent() -> None:
    """In a process that ``run_parallel`` started: take the end of its parent, even by kill -9, as SIGTERM.

    A worker that went on alone would hold the locks of its tasks, and the same command would be refused until it ends.
    """
    if os.environ.pop(DIES_WITH_STDIN, None):  # popped, since processes that this one starts do not end with its stdin
        threading.Thread(target=_wait_for_end, name="end-with-parent", daemon=True).start()


def _wait_for_end() -> None:
    while os.read(0, 1):  # returns when the system closes the parent's end of the pipe
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def count_workers(wanted: int | None, threads: int, device: str) -> int:
    """Return how many processes run at a time.

    Args:
        wanted: what the user asked for; None takes one a core on a CPU, and one on a GPU.
        threads: CPU threads of a process.
        device: "cpu", or a GPU.

    Raises:
        InputError: fewer than one was asked for.

    Example:
        >>> count_workers(None, threads=1, device="cuda")
        1
    """
    if wanted is not None and wanted < 1:
        raise InputError(f"workers must be at least 1 process, found {wanted}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return wanted or (max(1, cores // threads) if device == "cpu" else 1)


def run_parallel(
    verb: str, commands: list[list[str]], variables: dict[str, str], tick: Callable[[], object], every: float = 0.2
) -> None:
    """Run commands at the same time; when one fails, or this process is interrupted or killed, the others are stopped too.

    Args:
        verb: the word of `ctxft <verb>`, for messages.
        commands: each a list of words, of programs that call ``die_with_parent``.
        variables: environment variables, beside those of this process.
        tick: called again and again while commands run, for a progress bar.
        every: seconds between two calls.

    Raises:
        InputError: a command met bad input (exit code 2); its sentence is passed on.
        FailedError: a command failed otherwise; the end of its output is shown.
    """
    running: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in commands]
        failed: list[int] = []
        try:
            for command, file in zip(commands, errors, strict=True):
                streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": file}
                environment = {**os.environ, **variables, DIES_WITH_STDIN: "1"}
                running.append(stack.enter_context(subprocess.Popen(command, env=environment, **streams)))
            while any(process.poll() is None for process in running):
                if failed := [place for place, process in enumerate(running) if process.poll()]:
                    break
                time.sleep(every)
                tick()
        finally:
            for process in running:
                process.terminate()
            codes = [process.wait() for process in running]
        lines = []
        for file in errors:
            file.seek(0)
            lines.append(file.read().strip().splitlines())
        for place in failed or [place for place, code in enumerate(codes) if code]:
            _raise_failure(verb, commands[place], codes[place], lines[place])
        for note in (line for one in lines for line in one if line.startswith("note: ")):
            print(note, file=sys.stderr)  # such as a damaged file that was quarantined


def _raise_failure(verb: str, command: list[str], code: int, lines: list[str]) -> NoReturn:
    """Pass on why a worker stopped: its one sentence, the signal that killed it, or the end of its output."""
    sentence = next((line.removeprefix("ctxft: ") for line in lines if line.startswith("ctxft: ")), None)
    if code == 2:
        raise InputError(sentence or (lines or ["no message"])[-1])
    if code < 0:
        tasks = [word for before, word in itertools.pairwise(command) if before == "--task"]
        at = f" ({', '.join(tasks)})" if tasks else ""
        raise FailedError(
            f"a process of `ctxft {verb}`{at} was killed by {signal.Signals(-code).name}: by hand, by a scheduler, or because "
            f"the machine ran out of memory (then try --workers 1). {KEPT}"
        )
    if sentence:
        raise FailedError(sentence)
    raise FailedError(f"`ctxft {verb}` stopped:\n" + "\n".join((lines or ["no message"])[-20:]))


def run_parts(run: Run, source: str, folder: Path, parts: int, workers: int) -> None:
    """Cut the parts of a corpus in as many processes, `python -m ctxft cut`, and show how many are written."""
    command = [sys.executable, "-m", "ctxft", "cut", run.config.model_dump_json(), source, str(folder)]
    variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CTXFT_RUNS": str(run.folder.parent)}
    with progress_bar(parts, source, "part") as bar:
        written = folder.glob
        commands = [[*command, str(number), str(workers)] for number in range(workers)]
        run_parallel("train", commands, variables, lambda: bar.update(len([*written("documents-*.arrow")]) - bar.n))


def progress_bar(total: int, title: str, unit: str, hidden: bool = False) -> tqdm:
    """Return a progress bar on stderr; in a log file and in the notebooks of the course there is less of it, or none."""
    # seconds: a notebook keeps every state of a bar when nobody looks on, and a log file needs fewer lines still
    often = 0.1 if sys.stderr.isatty() else 1 if "ipykernel" in sys.modules else 10
    hidden = hidden or not total or "TQDM_DISABLE" in os.environ  # as in the notebooks of the course
    return tqdm(total=total, desc=title, unit=unit, leave=False, mininterval=often, disable=hidden)


def run_tasks(
    verb: str,
    run: Run,
    tasks: list[Task],
    workers: int,
    done: Callable[[Task], bool],
    tick: Callable[[], object] | None = None,
) -> None:
    """Run tasks in as many processes, and show how many are done, or call ``tick`` again and again.

    A worker is `python -m ctxft <verb> '{...}' --task ...`: it gets the config itself, not a file that another command in
    the same run folder may write meanwhile.
    """
    variables = {"OMP_NUM_THREADS": str(run.config.train.threads), "TOKENIZERS_PARALLELISM": "false"}
    variables["CTXFT_RUNS"] = str(run.folder.parent)
    shares = [tasks[number::workers] for number in range(min(workers, len(tasks)))]
    words = [[word for arm, seed in share for word in ("--task", f"{arm}:{seed}")] for share in shares]
    command = [sys.executable, "-m", "ctxft", verb, run.wanted.model_dump_json()]
    with progress_bar(len(tasks), verb, "task", hidden=tick is not None) as bar:
        show = tick or (lambda: bar.update(max(0, sum(map(done, tasks)) - bar.n)))
        run_parallel(verb, [command + each for each in words], variables, show)
