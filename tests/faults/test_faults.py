"""Signals, memory, disk, rights, a second process, damaged files: nothing finished is lost, and the user reads one sentence.

One try of each by default. In full, with a table of what was tried and what was read:

    CTXFT_FAULTS=20 CTXFT_FAULT_TABLE=faults.md python -m pytest -n 0 tests/faults/test_faults.py
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from ctxft.config import ExperimentConfig, from_mapping, to_mapping
from ctxft.storage import REPO_ROOT, hash_file, read_json, write_jsonl
from tests.conftest import make_text
from tests.runs import arm_folder, eval_folder, evaluate_task, prepare, train_task

TRIES = int(os.environ.get("CTXFT_FAULTS", "1"))
FEWER = -(-TRIES // 4)  # of what no chance decides
RECIPE = {"max_steps": 120, "save_steps": 7, "train_batch_size": 4}
TOLD: dict[str, list[dict]] = {}  # fault -> a try each: what was said, and whether its end was compared
OPEN: list[dict] = []  # tries since an end was compared; a run that is begun anew was not
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, mounts and limits of Linux")


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Write what was tried and read as a table, if it is asked for."""
    yield
    if path := os.environ.get("CTXFT_FAULT_TABLE"):
        lines = ["| fault | tried | ends compared, equal bit for bit | what the user read |", "|---|---|---|---|"]
        for fault, tries in TOLD.items():
            sentences = "<br>".join(dict.fromkeys(one["said"] for one in tries if one["said"]))
            lines.append(f"| {fault} | {len(tries)} | {sum(one['compared'] for one in tries)} | {sentences} |")
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def tell(fault: str, said: str, config: ExperimentConfig) -> None:
    """Keep the last sentence that a user read, without what differs from try to try."""
    sentence = said.strip().splitlines()[-1].split("ctxft: ")[-1] if said.strip() else ""
    one = {"said": sentence.replace(str(config.folder.parent), "runs"), "compared": False}
    TOLD.setdefault(fault, []).append(one)
    OPEN.append(one)


def command_of(config: ExperimentConfig, verb: str, *words: str) -> list[str]:
    path = Path(config.evaluation.benchmarks[0]).with_name(f"{config.name}.yaml")
    path.write_text(yaml.safe_dump(to_mapping(config)))
    return [sys.executable, "-m", "ctxft", verb, str(path), *words]


def start(config: ExperimentConfig, verb: str, *words: str, **options: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO_ROOT), "TQDM_DISABLE": "1"}

    def default_signals() -> None:  # a shell that runs tests in the background may have them ignored
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": default_signals}
    return subprocess.Popen(command_of(config, verb, *words), env=environment, **streams | options)


def run(config: ExperimentConfig, verb: str, *words: str) -> tuple[int, str]:
    """Give a command as a user would, and return its exit code and what it said on stderr."""
    process = start(config, verb, *words)
    said = process.communicate(timeout=300)[1]
    assert "Traceback" not in said, said
    return process.returncode, said


def steps_of(config: ExperimentConfig) -> int:
    log = arm_folder(config, "cft", 0) / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for(seen: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline and not seen():
        time.sleep(0.002)


def same_end(ours: ExperimentConfig, straight: ExperimentConfig) -> None:
    """The training and the answers are bit for bit those of the undisturbed run, and no half file lies about."""
    mine, theirs = (arm_folder(config, "cft", 0) for config in (ours, straight))
    assert read_json(mine / "done.json")["model_hash"] == read_json(theirs / "done.json")["model_hash"]
    for name in ("log.jsonl", "prompts.jsonl"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    answers = [sorted(eval_folder(config, "cft", 0).glob("*.jsonl")) for config in (ours, straight)]
    assert [hash_file(path) for path in answers[0]] == [hash_file(path) for path in answers[1]]
    assert answers[0] and not [path for path in ours.folder.rglob("*") if path.name.endswith(".part")]
    while OPEN:
        OPEN.pop()["compared"] = True


@pytest.fixture(scope="module")
def straight(tmp_path_factory, model_folders) -> ExperimentConfig:
    """An undisturbed run, trained and examined."""
    place = tmp_path_factory.mktemp("faults")
    rows = [{"id": f"d{n}", "text": make_text(100 + n, 5 + 2 * n)} for n in range(8)]
    asked = [
        {"id": f"q{n}", "question": f"What is {n}?", "choices": ["a", "b", "c"], "answer": n % 3} for n in range(40)
    ]
    values = {
        "name": "straight",
        "model": str(model_folders["byte"]),
        "arms": ["base", "cft"],
        "corpus": {"source": str(write_jsonl(place / "corpus.jsonl", rows)), "held_out": 0.3},
        "train": {"max_length": 128, "min_text_tokens": 16, "micro_batch_tokens": 1024, "device": "cpu", **RECIPE},
        "evaluation": {"benchmarks": [str(write_jsonl(place / "asked.jsonl", asked))]},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTXFT_RUNS", str(place / "runs"))
        config = from_mapping(ExperimentConfig, values, "test")
        go_on(config)
    return config


@pytest.fixture
def pair(straight, monkeypatch, tmp_path) -> tuple[ExperimentConfig, ExperimentConfig]:
    """The same experiment under another name, not begun, and the undisturbed one."""
    runs = tmp_path / "runs"
    shutil.copytree(Path(straight.evaluation.benchmarks[0]).parent / "runs", runs)
    monkeypatch.setenv("CTXFT_RUNS", str(runs))
    return straight.replace(name="ours"), straight


def go_on(config: ExperimentConfig) -> None:
    prepare(config)
    train_task(config, "cft", 0)
    for arm in config.arms:
        evaluate_task(config, arm, 0)


def finish(ours: ExperimentConfig, straight: ExperimentConfig) -> None:
    """Go on as the sentence said, and compare the end."""
    go_on(ours)
    same_end(ours, straight)


def forget(config: ExperimentConfig) -> None:
    OPEN.clear()
    for folder in (arm_folder(config, "cft", 0), eval_folder(config, "cft", 0)):
        shutil.rmtree(folder, ignore_errors=True)


PARENT = "kill -9 of the process that waits for workers"
SIGNALS = {"kill -9": signal.SIGKILL, PARENT: signal.SIGKILL}
SIGNALS |= {"SIGTERM": signal.SIGTERM, "Ctrl-C (SIGINT)": signal.SIGINT}


@pytest.mark.parametrize("name", SIGNALS if TRIES > 1 else list(SIGNALS)[1:])  # test_kills.py has the first
def test_stopped_at_a_random_moment_of_training_and_examination(pair, name):
    ours, straight = pair
    rng, number = random.Random(name), SIGNALS[name]
    # the first hits the process that works, the others the one that the user started
    words = ("--task", "cft:0") if name == "kill -9" else ()
    tried = 0
    while tried < TRIES:
        verb = "evaluate" if (arm_folder(ours, "cft", 0) / "done.json").exists() else "train"
        before, more = steps_of(ours), rng.randint(1, 50)
        process = start(ours, verb, *words)
        moment = rng.random() * 3
        begun = time.monotonic()
        wait_for(
            lambda verb=verb, before=before, more=more, begun=begun, moment=moment: (
                steps_of(ours) >= before + more if verb == "train" else time.monotonic() - begun > 3 + moment
            ),
            process,
        )
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert "Traceback" not in said, said
        if process.returncode not in (0, 1):  # it was not quicker than the signal
            tried += 1
            tell(f"{name} at a random moment", said, ours)
            assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert not psutil.wait_procs(workers, timeout=20)[1], "a worker lives on"
        if verb == "evaluate":
            finish(ours, straight)
            forget(ours)
    finish(ours, straight)


def test_a_worker_killed_as_the_system_does_without_memory(pair):
    ours, straight = pair
    for tried in range(TRIES):
        forget(ours)
        process = start(ours, "train", "--workers", "1")
        wait_for(lambda tried=tried: steps_of(ours) > 3 + tried, process)
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert (
            "a process of `ctxft train` (cft:0) was killed by SIGKILL: by hand, by a scheduler, or because the" in said
        )
        tell("a worker killed (out-of-memory killer)", said, ours)
        finish(ours, straight)


LIMITED = """
import resource, sys
import ctxft.run.tasks, ctxft.training.loop
from ctxft.cli import main
from ctxft.models import load_model
load_model({model!r})  # what is imported at the first use of a model counts before the limit
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + {megabytes} * 2**20, resource.RLIM_INFINITY))
code = main(sys.argv[1:])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)  # torch imports more when Python ends
sys.exit(code)
"""


def test_out_of_memory_is_told_and_the_run_goes_on_with_more(pair):
    ours, straight = pair
    words = command_of(ours, "train", "--task", "cft:0")[3:]
    refused = 0
    for tried in range(FEWER):
        forget(ours)
        command = [sys.executable, "-c", LIMITED.format(model=ours.model, megabytes=tried % 2), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO_ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode == 0:  # the arenas that it had were enough
            continue
        refused += 1
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "there is not enough memory: take a smaller train.micro_batch_tokens" in done.stderr
        tell("out of memory (address space limited)", done.stderr, ours)
        finish(ours, straight)
    assert refused


@pytest.fixture
def mounted(tmp_path) -> Iterator[Callable[[str], Path]]:
    """The function that mounts a small file system in memory; a machine that does not allow it skips the test."""
    places: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk-{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_no_half_file_and_a_larger_one_goes_on(pair, mounted, monkeypatch):
    ours, straight = pair
    straight_runs = straight.folder.parent
    for tried in range(FEWER):
        disk = mounted(f"{700 + 60 * (tried % 12)}k")
        monkeypatch.setenv("CTXFT_RUNS", str(disk / "runs"))
        code, said = run(ours, "train")
        code, said = run(ours, "evaluate") if code == 0 else (code, said)
        assert code == 1 and "no space is left on the disk" in said, said
        tell("a full disk (tmpfs)", said, ours)
        assert not [path for path in disk.rglob("*") if path.name.endswith(".part")]
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        go_on(ours)
        monkeypatch.setenv("CTXFT_RUNS", str(straight_runs))
        shutil.rmtree(ours.folder, ignore_errors=True)
        shutil.copytree(disk / "runs" / ours.name, ours.folder)
        same_end(ours, straight)


def test_a_folder_that_cannot_be_written_is_named(pair, mounted, monkeypatch):
    ours, straight = pair
    disk = mounted("200m")
    straight_runs = straight.folder.parent
    monkeypatch.setenv("CTXFT_RUNS", str(disk / "runs"))
    prepare(ours)
    train_task(ours, "cft", 0)
    for _ in range(FEWER):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, said = run(ours, "evaluate")
        assert code == 1 and "the file system is read-only, at " in said and "set CTXFT_RUNS to a folder" in said
        tell("a read-only file system", said, ours)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    go_on(ours)
    monkeypatch.setenv("CTXFT_RUNS", str(straight_runs))
    shutil.copytree(disk / "runs" / ours.name, ours.folder)
    same_end(ours, straight)


def test_a_second_process_is_told_who_is_at_it(pair):
    ours, straight = pair
    for _ in range(FEWER):
        forget(ours)
        first = start(ours, "train", "--task", "cft:0")
        wait_for(lambda: steps_of(ours) > 2, first)
        first.send_signal(signal.SIGSTOP)  # it stands still, and holds its lock
        code, said = run(ours, "train", "--task", "cft:0")
        first.send_signal(signal.SIGCONT)
        assert code == 2 and f"another process trains cft:0 in {ours.folder}: wait for it" in said
        tell("a second process in the same run folder", said, ours)
        assert first.wait(120) == 0
        finish(ours, straight)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut] if TRIES > 1 else [flip])
def test_damaged_files_are_seen_named_and_made_again(pair, damage):
    ours, straight = pair
    rng = random.Random(damage.__name__)
    for tried in range(FEWER):
        forget(ours)
        process = start(ours, "train", "--task", "cft:0")
        wait_for(lambda: any(arm_folder(ours, "cft", 0).glob("checkpoint-*")) and steps_of(ours) < 110, process)
        process.kill()
        process.wait()
        files = sorted(path for path in arm_folder(ours, "cft", 0).glob("checkpoint-*/*") if path.stat().st_size)
        if files:  # else it was at its first checkpoint
            damaged = rng.choice(files)
            damage(damaged)
            code, said = run(ours, "train")
            assert code == 0 and damaged.parent.name in said, said
            tell(f"a checkpoint file ({damage.__doc__.rstrip('.').lower()})", said, ours)
        finish(ours, straight)
        results = eval_folder(ours, "cft", 0)
        damaged = rng.choice([results / "metrics.json", *sorted(results.glob("*.jsonl"))])
        damage(damaged)
        code, said = run(ours, "evaluate")
        assert code == 0 and damaged.name in said, (tried, said)
        tell(f"a result file ({damage.__doc__.rstrip('.').lower()})", said, ours)
        same_end(ours, straight)
        model = next((arm_folder(ours, "cft", 0) / "model").glob("*.safetensors"))
        kept = model.read_bytes()
        damage(model)
        shutil.rmtree(results)
        code, said = run(ours, "evaluate")
        assert code == 2 and str(model.parent) in said, said
        tell(f"a model file ({damage.__doc__.rstrip('.').lower()})", said, ours)
        model.write_bytes(kept)
        finish(ours, straight)


def test_too_many_open_files_is_one_sentence(pair):
    ours, straight = pair
    prepare(ours)
    train_task(ours, "cft", 0)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))

    process = start(ours, "evaluate", preexec_fn=limit)
    said = process.communicate(timeout=120)[1]
    if process.returncode == 0:
        pytest.skip("24 files were enough here")
    assert process.returncode == 1 and ("too many files are open" in said or "Too many open files" in said), said
    finish(ours, straight)
