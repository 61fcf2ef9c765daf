"""A synthetic study from the command: repeatable bit for bit, also after a kill, skipped when done, refused when bad."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ctxft.cli import main
from ctxft.storage import FailedError, InputError, exclusive_lock, read_json, write_text
from ctxft.synthetic.config import SyntheticConfig
from ctxft.synthetic.figures import curves_figure
from ctxft.synthetic.study import SyntheticTraining, prepare_study, run_study, run_study_tasks

TINY = {"dims": 2, "points": 4, "layers": 1, "width": 8, "heads": 2, "batch": 8, "start_points": 2, "test_prompts": 16}
TINY |= {"pretrain_steps": 6, "finetune_steps": 6, "log_every": 2, "points_every": 2}
SETTINGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


def tiny(name: str, **values) -> SyntheticConfig:
    return SyntheticConfig(name=name, **TINY | values)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of weights and log, and the results without the time that they took."""
    done = {key: value for key, value in read_json(folder / "done.json")["result"].items() if key != "seconds"}
    found = {name: (folder / name).read_bytes() for name in ("network.safetensors", "log.jsonl")}
    return found | {"done": json.dumps(done).encode()}


def test_command_runs_prints_writes_and_skips(runs, tmp_path, capsys) -> None:
    out = tmp_path / "result.json"
    command = [
        "synthetic",
        "--target",
        "sumdot",
        *("--arms", "cft", "--arms", "cpt", "--arms", "no-query"),
        *("--seeds", "0", "--seeds", "3", "--name", "t"),
    ]
    command += ["--out", str(out), *SETTINGS]
    assert main([*command, "--workers", "2"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["cft", "cpt", "no-query"] and str(out) in shown
    result = read_json(out)
    assert result["command"].startswith("ctxft synthetic --target sumdot") and result["seeds"] == [0, 3]
    assert {"torch", "transformers", "python"} <= result["versions"].keys() and result["config"]["dims"] == 2
    assert result["runs"]["cft"]["3"]["log"]["step"] == [2, 4, 6]
    assert len(result["runs"]["cpt"]["0"]["errors"]["own"]["mean"]) == 4
    logs = {path: path.stat().st_mtime_ns for path in (runs / "t").rglob("log.jsonl")}
    assert main(command) == 0 and capsys.readouterr().out == shown
    assert {path: path.stat().st_mtime_ns for path in (runs / "t").rglob("log.jsonl")} == logs and len(logs) == 8
    assert not list((runs / "t").rglob("*.part"))
    stale = SyntheticTraining(tiny("t"), 3, "sumdot", "cft")
    other = runs / "t" / "sumdot" / "cft" / "seed-0" / "network.safetensors"
    (stale.folder / other.name).write_bytes(other.read_bytes())
    assert main(command) == 0
    again = [line for line in capsys.readouterr().out.splitlines() if line]
    assert again == [line for line in shown.splitlines() if line]
    assert (stale.folder / other.name).read_bytes() != other.read_bytes(), "results of another network are not valid"


def test_a_watcher_sees_the_curves_grow(runs) -> None:
    config, seen = tiny("t", finetune_steps=600, log_every=20), []
    result = run_study(config, "relu", ["cpt", "cft"], [0], workers=1, watch=seen.append, every=0.1)
    lengths = [len(found["runs"].get("cft", {}).get("0", {"log": {"step": []}})["log"]["step"]) for found in seen]
    assert lengths == sorted(lengths) and any(0 < length < 30 for length in lengths)
    assert len(result["runs"]["cft"]["0"]["log"]["step"]) == 30
    assert all(curves_figure(found).axes for found in (seen[0], seen[-1], result))


def test_two_runs_of_a_seed_are_equal_and_seeds_differ(runs) -> None:
    for name in ("one", "two"):
        run_study_tasks(tiny(name), "polynomial", ["cft"], [0, 1])
    one, two, other = (
        SyntheticTraining(tiny(name), seed, "polynomial", "cft") for name, seed in (("one", 0), ("two", 0), ("one", 1))
    )
    assert contents(one.folder) == contents(two.folder) != contents(other.folder)
    before = SyntheticTraining(tiny("one"), 0).network().named_parameters()
    pairs = zip(before, one.network().parameters(), strict=True)
    assert [name for (name, old), new in pairs if (old == new).all()] == [], "every weight is trained"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_run_goes_on_as_if_it_had_not_been(runs) -> None:
    steps = {"pretrain_steps": 300, "finetune_steps": 300}
    straight, killed = tiny("straight", **steps), tiny("killed", **steps)
    run_study_tasks(straight, "polynomial", ["cft"], [0])
    task = json.dumps({"config": vars(killed), "target": "polynomial", "arms": ["cft"], "seeds": [0]})
    for training in (SyntheticTraining(killed, 0), SyntheticTraining(killed, 0, "polynomial", "cft")):  # killed twice
        process = subprocess.Popen([sys.executable, "-m", "ctxft.synthetic", task])
        deadline = time.monotonic() + 120
        while not training.log["step"] and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert training.log["step"] and not (training.folder / "done.json").exists()
    begun = (SyntheticTraining(killed, 0).folder / "network.safetensors").stat().st_mtime_ns
    run_study_tasks(killed, "polynomial", ["cft"], [0])
    assert (SyntheticTraining(killed, 0).folder / "network.safetensors").stat().st_mtime_ns == begun, (
        "what was finished stays"
    )
    for stage in ("pretrain", "polynomial/cft"):
        assert contents(runs / "killed" / stage / "seed-0") == contents(runs / "straight" / stage / "seed-0")
    assert training.log["step"] == list(range(2, 301, 2))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_stopped_command_stops_its_workers(runs) -> None:
    command = [sys.executable, "-m", "ctxft", "synthetic", "--arms", "cft", "--seeds", "0", "--name", "t", *SETTINGS]
    parent = subprocess.Popen([*command, "--set", "pretrain_steps=100000"], stderr=subprocess.PIPE, text=True)
    log, deadline = SyntheticTraining(tiny("t"), 0).folder / "log.jsonl", time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 143 and "the same command continues from there" in parent.stderr.read()
    lines = log.read_text()
    time.sleep(0.3)
    assert lines and log.read_text() == lines


def test_a_second_process_waits_for_the_arm_that_another_trains(runs) -> None:
    config = tiny("t")
    run_study_tasks(config, "relu", ["cft"], [0])
    training = SyntheticTraining(config, 0, "relu", "cpt")
    second = threading.Thread(target=run_study_tasks, args=(config, "relu", ["cft", "cpt"], [0]))
    with exclusive_lock(training.folder.with_name(".seed-0.lock"), "trains cpt"):
        second.start()
        time.sleep(0.5)
        assert second.is_alive() and not training.folder.exists()
    second.join(60)
    assert (training.folder / "done.json").exists()


def test_a_worker_that_breaks_shows_the_end_of_its_output(runs, monkeypatch, tmp_path) -> None:
    broken = write_text(tmp_path / "python", "#!/bin/sh\necho out of memory >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(FailedError, match=r"^`ctxft synthetic` stopped:\nout of memory$"):
        run_study(tiny("t"), "relu", ["cft"], [0], workers=1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--target", "polynom"], "unknown target 'polynom' (did you mean 'polynomial'?)"),
        (["--arms", "cft", "--arms", "ctp"], "unknown arm 'ctp'"),
        (["--arms", "cft", "--arms", "cft"], "give at least one arm, and each once, found ['cft', 'cft']."),
        (["--seeds", "-1"], "a seed is 0 or more, found -1."),
        (["--size", "large"], "unknown size 'large'"),
        (["--workers", "0"], "workers must be at least 1 process, found 0."),
        (["--set", "layer=2"], "synthetic: unknown key 'layer' (did you mean 'layers'?)"),
        (["--set", "device=cuda"], "torch sees no CUDA device, but the device is 'cuda'"),
    ],
)
def test_bad_input_is_one_sentence(runs, capsys, words: list[str], sentence: str) -> None:
    assert main(["synthetic", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ctxft: {sentence}") and error.count("\n") == 1
    assert not list(runs.glob("*/*/*")), "nothing was begun"


def test_a_folder_takes_one_config_only(runs) -> None:
    prepare_study(tiny("t"))
    prepare_study(tiny("t", threads=2))  # where it runs is not what it computes
    with pytest.raises(InputError, match=r"holds a study with width 8, not 16: choose another name"):
        prepare_study(tiny("t", width=16))
