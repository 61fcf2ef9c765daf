"""Two processes train as one: under accelerate launch (DDP), and with weights sharded by torch's fully_shard (FSDP2)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ctxft.config import to_mapping
from ctxft.storage import REPO_ROOT, read_json, read_jsonl
from ctxft.training.checkpoint import checkpoints
from tests.runs import arm_folder, prepare, train_task

SHARDED = Path(__file__).parent / "sharded.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(command: list[str], **variables: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO_ROOT), **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def launch(config, *words: str) -> str:
    path = config.folder.parent / f"{config.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(to_mapping(config)))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return run([*accelerate, "--main_process_port", str(free_port()), "-m", "ctxft", "train", str(path), *words])


def losses(config) -> list[float]:
    return [row["loss"] for _, row in read_jsonl(arm_folder(config, "cft", 0) / "log.jsonl")]


def test_two_processes_reproduce_one_and_one_goes_on_from_their_checkpoint(experiment):
    recipe = {"max_steps": 7, "train_batch_size": 5, "save_steps": 2, "micro_batch_tokens": 128}
    one, two = (experiment(recipe, name=name, arms=["base", "cpt", "cft"]) for name in ("one", "two"))
    prepare(one)
    train_task(one, "cft", 0)
    launch(two)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    done = read_json(arm_folder(two, "cpt", 0) / "done.json")  # without --task all arms were trained, one after another
    assert done["optimizer_steps"] == 7
    folder = arm_folder(two, "cft", 0)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-4", "checkpoint-6"]
    for path in (folder / "done.json", folder / "checkpoint-6" / "weights.safetensors"):
        path.unlink()
    (folder / "checkpoint-6").rename(folder / ".checkpoint-6.part")
    train_task(two, "cft", 0)  # in one process, from what two saved
    assert len(losses(two)) == 7 and losses(two) == pytest.approx(losses(one), abs=1e-4)


def test_lora_in_two_processes(experiment):
    recipe = {
        "method": "lora",
        "max_steps": 4,
        "train_batch_size": 5,
        "lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0},
    }
    one, two = (experiment(recipe, name=name, arms=["cft"]) for name in ("one", "two"))
    prepare(one)
    train_task(one, "cft", 0)
    launch(two, "--task", "cft:0")
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)


@pytest.mark.parametrize("mode", ["full", "lora", "accelerate"])
def test_sharded_weights_give_the_same_loss_gradients_and_checkpoint(tmp_path, mode):
    """The work is done in tests/sharded.py, by two processes over gloo."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    assert "sharded equals whole" in run([*torchrun, str(SHARDED), mode, str(tmp_path)])
