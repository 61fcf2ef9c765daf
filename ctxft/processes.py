"""Commands flow in; they run side by side until all have ended or one has failed, whose own words are then passed on."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import NoReturn

from ctxft.runtime import FailedError, InputError


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


def run_together(
    verb: str, commands: list[list[str]], variables: dict[str, str], tick: Callable[[], object], every: float = 0.2
) -> None:
    """Run commands at the same time; when one fails, or this process is interrupted, the others are stopped too.

    Args:
        verb: the word of `ctxft <verb>`, for messages.
        commands: each a list of words.
        variables: environment variables, beside those of this process.
        tick: called again and again while commands run, for a progress bar.
        every: seconds between two calls.

    Raises:
        InputError: a command met bad input (exit code 2); its sentence is passed on.
        FailedError: a command failed otherwise; the end of its output is shown.
    """
    running: list[subprocess.Popen] = []
    with tempfile.TemporaryFile("w+") as errors:
        try:
            for command in commands:
                environment = {**os.environ, **variables}
                running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors))
            while any(process.poll() is None for process in running) and not any(p.poll() for p in running):
                time.sleep(every)
                tick()
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
        sentence = next((line for line in lines if line.startswith("ctxft: ")), lines[-1])
        raise InputError(sentence.removeprefix("ctxft: "))
    raise FailedError(f"`ctxft {verb}` stopped:\n" + "\n".join(lines[-20:]))
