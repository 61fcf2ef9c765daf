"""kill -9 at random moments: nothing that was finished is lost or done twice, and the end is bit for bit the uninterrupted one.

Reduced by default; the full number of kills: ``CTXFT_KILLS=20 python -m pytest tests/test_kills.py -s``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from ctxft.config import to_mapping
from ctxft.storage import REPO_ROOT, FailedError, hash_file, read_json, read_jsonl
from tests.runs import (
    arm_folder,
    eval_folder,
    evaluate_all,
    is_examined,
    is_trained,
    load_benchmarks,
    prepare,
    train_all,
    train_task,
    train_tasks,
)

KILLS = int(os.environ.get("CTXFT_KILLS", "3"))
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def start(verb: str, config, *words: str) -> subprocess.Popen:
    path = config.folder.parent / f"{config.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(to_mapping(config)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO_ROOT)}
    command = [sys.executable, "-m", "ctxft", verb, str(path), *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, **quiet)


def moment_of(config, process: subprocess.Popen, kind: str, rng: random.Random) -> None:
    """Wait for a random moment of the wanted kind."""
    folder, exam = arm_folder(config, "cft", 0), eval_folder(config, "cft", 0)
    lines = rng.randint(1, 40)
    begun = len((folder / "log.jsonl").read_text().splitlines()) if (folder / "log.jsonl").exists() else 0
    seen = {
        "step": lambda: (
            (folder / "log.jsonl").exists()
            and abs(len((folder / "log.jsonl").read_text().splitlines()) - begun) >= lines
        ),
        "checkpoint": lambda: any(folder.glob(".checkpoint-*.part")),
        "model": lambda: any(folder.glob(".model*.part")),
        "evaluation": lambda: exam.exists() and rng.random() < 0.05,
        "start": lambda: rng.random() < 0.002,
    }[kind]
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not seen():
        time.sleep(0.0005)


def test_killed_at_random_moments_the_end_is_the_same(experiment):
    recipe = {"max_steps": 120, "save_steps": 7, "train_batch_size": 4}
    straight, killed = (experiment(recipe, name=name, arms=["cft"]) for name in ("straight", "killed"))
    train_all(straight, workers=1)
    evaluate_all(straight, workers=1)
    ours, theirs = (arm_folder(config, "cft", 0) for config in (killed, straight))
    rng, moments, compared = random.Random(os.environ.get("CTXFT_KILL_SEED", "1")), [], 0

    def same_training() -> None:
        done = [read_json(folder / "done.json")["model_hash"] for folder in (ours, theirs)]
        logs = [(folder / "log.jsonl").read_bytes() for folder in (ours, theirs)]
        assert done[0] == done[1] and logs[0] == logs[1]
        assert (ours / "prompts.jsonl").read_bytes() == (theirs / "prompts.jsonl").read_bytes()

    prepare(killed)
    while len(moments) < KILLS:
        verb = "evaluate" if is_trained(killed, "cft", 0) else "train"
        if verb == "evaluate" and moments.count("evaluation") >= (len(moments) + 2) / 3:  # train once more
            same_training()
            shutil.rmtree(ours)
            shutil.rmtree(eval_folder(killed, "cft", 0), ignore_errors=True)
            compared, verb = compared + 1, "train"
        kind = (
            "evaluation"
            if verb == "evaluate"
            else rng.choice(["start", "step", "step", "checkpoint", "checkpoint", "model"])
        )
        process = start(verb, killed, "--task", "cft:0")
        moment_of(killed, process, kind, rng)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            moments.append(kind)
        process.wait()
        if verb == "evaluate" and process.returncode == 0:  # it was faster than the kill
            shutil.rmtree(eval_folder(killed, "cft", 0))
    train_all(killed, workers=1)
    evaluate_all(killed, workers=1)
    same_training()
    counts = {kind: moments.count(kind) for kind in sorted(set(moments))}
    print(f"\n{len(moments)} kills {counts}; {compared + 1} trainings compared, bit for bit")
    results = [path.name for path in eval_folder(straight, "cft", 0).glob("*.json*")]
    assert results and all(
        hash_file(eval_folder(killed, "cft", 0) / name) == hash_file(eval_folder(straight, "cft", 0) / name)
        for name in results
    )


def test_a_sweep_of_eight_tasks_one_worker_killed(experiment):
    arms, seeds = ["cpt", "cft", "neg", "control"], [0, 1]
    config = experiment({"max_steps": 12, "save_steps": 4}, arms=arms, seeds=seeds)
    prepare(config)
    tasks = train_tasks(config)
    assert len(tasks) == 8
    process = start("train", config, "--workers", "2")
    while sum(is_trained(config, *task) for task in tasks) < 3 and process.poll() is None:
        time.sleep(0.02)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    victims = [int(number) for number in workers.stdout.split()]
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    assert process.wait(timeout=60) == 1  # says that a worker stopped
    done = {task: arm_folder(config, *task) / "done.json" for task in tasks if is_trained(config, *task)}
    assert 3 <= len(done) < 8
    before = {task: path.stat().st_mtime_ns for task, path in done.items()}
    train_all(config, workers=2)
    assert all(is_trained(config, *task) for task in tasks)
    assert {task: path.stat().st_mtime_ns for task, path in done.items()} == before
    for arm, seed in tasks:
        log = [row["step"] for _, row in read_jsonl(arm_folder(config, arm, seed) / "log.jsonl")]
        assert log == list(range(1, 13))


def test_a_worker_that_dies_is_told(experiment, monkeypatch):
    config = experiment(arms=["cpt"])
    monkeypatch.setattr("ctxft.run.processes.sys.executable", "/bin/false")
    with pytest.raises(FailedError, match="`ctxft train` stopped"):
        train_all(config, workers=1)


def test_every_task_can_be_run_by_its_number(experiment):
    config = experiment(arms=["base", "cpt", "cft-ift"], seeds=[0, 3])
    prepare(config)
    for number in range(len(train_tasks(config))):
        assert start("train", config, "--task", str(number)).wait() == 0
    assert all(is_trained(config, *task) for task in [*train_tasks(config), ("cft", 3)])
    evaluate_all(config, workers=1)
    assert is_examined(config, "cft-ift", 3, load_benchmarks(config))
    train_task(config, "cft-ift", 0)  # harmless
