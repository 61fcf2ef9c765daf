"""A config, a target, arms and seeds flow in; a finished study flows out, computed by as many processes as there are cores.

    run_study -> manifest.json -> workers (python -m ctxft.synthetic) -> read_study: one JSON value with all results

Each worker walks the whole list of trainings and takes those that are neither done nor in another's hands. On a GPU
there is one worker.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from ctxft.run.processes import count_workers, run_parallel
from ctxft.storage import (
    InputError,
    code_revision,
    read_json,
    read_jsonl,
    versions,
    write_json,
    write_text,
)
from ctxft.synthetic.config import SyntheticConfig, check_study
from ctxft.synthetic.metrics import baselines
from ctxft.synthetic.training import (
    DONE,
    LOG,
    device_of,
    finetune,
    finetune_folder,
    is_done,
    pretrain,
    pretrain_folder,
)

MANIFEST = "manifest.json"
WATCH_EVERY = 5.0  # seconds between two calls of a watcher


def prepare(config: SyntheticConfig) -> Path:
    """Make the study's folder and write its manifest, or check that the one there holds the same config.

    Raises:
        InputError: the folder holds another config; the first value that differs is named.
    """
    path = config.folder / MANIFEST
    if not path.exists():
        return write_json(path, {"config": config.what(), "versions": versions(), "code": code_revision()}).parent
    there = read_json(path)["config"]
    for name, value in config.what().items():
        if there.get(name) != value:
            raise InputError(
                f"{config.folder} holds a study with {name} {there.get(name)}, not {value}: "
                "choose another name (--name), or remove the folder."
            )
    return config.folder


def _lock(folder: Path, timeout: float) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock", timeout=timeout)


def run_tasks(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> None:
    """Train in this process what is neither done nor being trained by another process.

    Args:
        config: the study.
        target: name of the target function.
        arms: names of ARMS.
        seeds: each pre-trained once, for all arms.
    """
    for wait in (0, -1):  # first the seeds that nobody has begun, then wait for those that others work on
        for seed in seeds:
            try:
                with _lock(pretrain_folder(config, seed), wait):
                    if not is_done(pretrain_folder(config, seed)):
                        pretrain(config, seed)
            except Timeout:
                continue
    for seed in seeds:
        for arm in reversed(arms):  # the dearest arms stand last in ARMS; begun first, they do not keep a core waiting
            folder = finetune_folder(config, target, arm, seed)
            try:
                with _lock(folder, 0):
                    if not is_done(folder):
                        finetune(config, target, arm, seed)
            except Timeout:
                continue


def _steps_done(config: SyntheticConfig, folders: dict[Path, int]) -> int:
    done = 0
    for folder, steps in folders.items():
        if (folder / DONE).exists():
            done += steps
        elif (folder / LOG).exists():
            lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
            done += json.loads(lines[-1])["step"] if lines else 0
    return done


def _folders(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> dict[Path, int]:
    """Return the folders of all trainings, and the optimizer steps of each."""
    before = {pretrain_folder(config, seed): config.pretrain_steps for seed in seeds}
    after = {finetune_folder(config, target, arm, seed): config.finetune_steps for seed in seeds for arm in arms}
    return before | after


def run_study(
    config: SyntheticConfig,
    target: str,
    arms: list[str],
    seeds: list[int],
    workers: int | None = None,
    watch: Callable[[dict], object] | None = None,
) -> dict:
    """Pre-train, fine-tune and examine what is not done yet, and return all results.

    Args:
        config: sizes, steps and rates.
        target: name of the target function.
        arms: names of ARMS.
        seeds: whole numbers from 0.
        workers: processes at a time; None takes one a core on a CPU, and one on a GPU.
        watch: called every few seconds with ``read_progress``, for curves that grow.

    Returns:
        As ``read_study``.

    Raises:
        InputError: unknown names, another study in the folder, or a task that another command works on.
        FailedError: a worker stopped; the end of its output is shown.

    Example:
        >>> from ctxft.synthetic.config import load_config
        >>> run_study(load_config("mini"), "polynomial", ["cft", "cpt"], [0])  # doctest: +SKIP
    """
    check_study(target, arms, seeds)
    workers = count_workers(workers, config.threads, device_of(config))
    prepare(config)
    folders = _folders(config, target, arms, seeds)
    missing = [folder for folder in folders if not is_done(folder)]
    for folder in missing:  # results without their network, or of another one, are made again
        (folder / DONE).unlink(missing_ok=True)
    if missing:
        _run_workers(config, target, arms, seeds, min(workers, len(missing)), watch)
    if busy := [folder for folder in folders if not is_done(folder)]:
        raise InputError(f"another process works in {busy[0]}: wait for it, then give the command again.")
    return read_study(config, target, arms, seeds)


def _run_workers(
    config: SyntheticConfig,
    target: str,
    arms: list[str],
    seeds: list[int],
    workers: int,
    watch: Callable[[dict], object] | None,
) -> None:
    variables = {"OMP_NUM_THREADS": str(config.threads), "CTXFT_RUNS": str(config.folder.parent)}
    task = json.dumps({"config": vars(config), "target": target, "arms": list(arms), "seeds": list(seeds)})
    folders = _folders(config, target, arms, seeds)
    shown = time.monotonic()

    def tick() -> None:
        nonlocal shown
        bar.update(max(0, _steps_done(config, folders) - bar.n))
        if watch and time.monotonic() > shown + WATCH_EVERY:
            shown = time.monotonic()
            watch(read_progress(config, target, arms, seeds))

    with tqdm(total=sum(folders.values()), desc=f"synthetic {target}", unit="step", leave=False) as bar:
        command = [sys.executable, "-m", "ctxft.synthetic", task]
        run_parallel("synthetic", [command] * workers, variables, tick, every=0.5)


def read_study(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> dict:
    """Return the results of finished trainings as one JSON value, numbers rounded to six digits.

    Returns:
        ``target``, ``config``, ``arms``, ``seeds``, ``versions``, ``code``, ``baselines``, ``pretrain`` (seed -> loss
        ...) and ``runs`` (arm -> seed -> errors, alignment, seconds, device, log as a list for each column).

    Raises:
        InputError: a training is not finished.
    """
    manifest = read_json(config.folder / MANIFEST)
    for folder in _folders(config, target, arms, seeds):
        if not is_done(folder):
            raise InputError(f"{folder} is not finished: give the same `ctxft synthetic` command again.")
    runs = {arm: {str(seed): _read_run(finetune_folder(config, target, arm, seed)) for seed in seeds} for arm in arms}
    before = {str(seed): read_json(pretrain_folder(config, seed) / DONE) for seed in seeds}
    found = {"target": target, "arms": list(arms), "seeds": list(seeds), **manifest}
    return _rounded(found | {"baselines": baselines(config, target), "pretrain": before, "runs": runs})


def read_progress(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> dict:
    """Return the logs so far in the form of ``read_study``, for a figure of curves; arms without a log are left out."""
    runs = {}
    for arm in arms:
        folders = {str(seed): finetune_folder(config, target, arm, seed) for seed in seeds}
        runs[arm] = {seed: {"log": _read_log(folder)} for seed, folder in folders.items() if (folder / LOG).exists()}
    runs = {arm: found for arm, found in runs.items() if found}
    return {"target": target, "seeds": list(seeds), "baselines": baselines(config, target), "runs": runs}


def _read_log(folder: Path) -> dict[str, list]:
    rows = [row for _, row in read_jsonl(folder / LOG)]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {"step": [], "loss": []}


def _read_run(folder: Path) -> dict:
    return read_json(folder / DONE) | {"log": _read_log(folder)}


def write_study(path: Path, study: dict, command: str) -> Path:
    """Write results as a small JSON file, a line for each arm and seed, with the command that made them."""
    runs = [
        f"{json.dumps(arm)}: {{\n" + ",\n".join(f'"{seed}": {json.dumps(run)}' for seed, run in seeds.items()) + "\n}"
        for arm, seeds in study["runs"].items()
    ]
    rest = json.dumps({"command": command, **{key: value for key, value in study.items() if key != "runs"}}, indent=1)
    return write_text(path, rest[:-2] + ',\n "runs": {\n' + ",\n".join(runs) + "\n}\n}\n")


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
