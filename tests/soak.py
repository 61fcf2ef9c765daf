"""Train, stop, resume, examine, again and again in one process: memory and file handles stay flat, results stay the same.

    python tests/soak.py --minutes 30 [--out FILE]

A cycle is a run folder of its own: the practice model learns for some steps, stops half way, goes on from its checkpoint in a
new call, and is examined. After cycles that warm up (allocators and caches fill), resident memory is compared between the first
and the last third of the rest.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")

import psutil  # noqa: E402

from ctxft.config import load_experiment  # noqa: E402
from ctxft.storage import hash_file, read_json, sha256  # noqa: E402
from tests.runs import (  # noqa: E402
    arm_folder,
    eval_folder,
    evaluate_task,
    prepare,
    train_task,
)

GROWTH = 0.02  # of resident memory, from the first third to the last
WARM_UP = 5  # cycles
VALUES = {"arms": ["base", "cft"], "seeds": [0], "train.max_steps": 24, "train.save_steps": 6, "evaluation.limit": 24}
VALUES |= {"evaluation.benchmarks": ["practice-mmlu", "practice-old"], "corpus.limit": 60}


def cycle(number: int) -> str:
    """Train with a stop half way, go on, examine; returns one hash of the model and of all answers."""
    config = load_experiment("mini", {**VALUES, "name": f"cycle-{number}"})
    prepare(config)
    os.environ["CTXFT_CRASH_AFTER"] = "step:14"
    try:
        train_task(config, "cft", 0)
        raise AssertionError("the training was not stopped")
    except RuntimeError:
        pass
    finally:
        del os.environ["CTXFT_CRASH_AFTER"]
    train_task(config, "cft", 0)
    evaluate_task(config, "cft", 0)
    done = read_json(arm_folder(config, "cft", 0) / "done.json")
    answers = [hash_file(path) for path in sorted(eval_folder(config, "cft", 0).glob("*.jsonl"))]
    log = hash_file(arm_folder(config, "cft", 0) / "log.jsonl")
    shutil.rmtree(config.folder)
    return sha256([done["model_hash"], log, answers])


def measured(process: psutil.Process) -> dict[str, int]:
    """Return resident memory (bytes), file handles and threads, after what is free was given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return {"rss": process.memory_info().rss, "handles": process.num_fds(), "threads": threading.active_count()}


def soak(minutes: float, least: int = 12) -> dict:
    """Run cycles for so many minutes, and at least ``least``; returns what was measured."""
    process, rows, started = psutil.Process(), [], time.monotonic()
    with tempfile.TemporaryDirectory() as runs:
        os.environ["CTXFT_RUNS"] = runs
        while len(rows) < WARM_UP + least or time.monotonic() - started < 60 * minutes:
            begun = time.monotonic()
            found = cycle(len(rows))
            rows.append({"hash": found, **measured(process), "seconds": round(time.monotonic() - begun, 2)})
    warm = rows[WARM_UP:]
    third = max(1, len(warm) // 3)
    first, last = (statistics.median(row["rss"] for row in part) for part in (warm[:third], warm[-third:]))
    return {
        "cycles": len(rows),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "rss_mb": [round(first / 2**20, 1), round(last / 2**20, 1)],
        "growth": last / first - 1,
        "handles": sorted({row["handles"] for row in warm}),
        "threads": sorted({row["threads"] for row in warm}),
        "hashes": len({row["hash"] for row in rows}),
        "rows": rows,
    }


def problems(found: dict) -> list[str]:
    """Return what is not as it must be."""
    said = []
    if found["growth"] >= GROWTH:
        said.append(f"memory grew by {found['growth']:.1%}")
    if len(found["handles"]) > 1:
        said.append(f"file handles changed: {found['handles']}")
    if found["hashes"] != 1:
        said.append(f"{found['hashes']} different results")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, help="write all that was measured as JSON")
    options = parser.parse_args()
    found = soak(options.minutes)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    shown = {key: value for key, value in found.items() if key != "rows"}
    print(
        "\n".join(f"{key:<9} {value:.4f}" if key == "growth" else f"{key:<9} {value}" for key, value in shown.items())
    )
    print("\n".join(problems(found)) or "memory and file handles are flat, and every cycle gave the same result")
    return 1 if problems(found) else 0


if __name__ == "__main__":
    sys.exit(main())
