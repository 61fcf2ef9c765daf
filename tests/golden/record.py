"""Record the golden experiments: run only when what the library computes is meant to change.

python -m tests.golden.record           write the recordings that are missing
python -m tests.golden.record --force   write all of them again
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import tempfile
from pathlib import Path

import tokenizers
import torch
import transformers

from tests.golden.collect import collect, load_result
from tests.golden.recordings import GOLDEN, RESULTS, STUDIES, config_paths, numbers_of, recording_of, write_recording

NUMBERS = GOLDEN / "results.json"


def machine() -> dict[str, str]:
    """Return what exact equality depends on beside the code: libraries and processor."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "cpu": cpu[0] if cpu else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def digest(result: dict) -> dict:
    """Return how many numbers a results file holds, and a SHA-256 of them."""
    numbers = numbers_of(result)
    return {"numbers": len(numbers), "sha256": hashlib.sha256(json.dumps(numbers).encode()).hexdigest()}


def main(arguments: list[str] | None = None) -> None:
    """Write the recordings; those that are there stay, unless --force is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="write recordings that are there already")
    force = parser.parse_args(arguments).force
    there = [path.name for path in (*map(recording_of, config_paths()), NUMBERS) if path.exists()]
    if there and not force:
        parser.error(
            f"{', '.join(there)} exist: a changed result needs a reason; with one, remove the file or add --force."
        )
    torch.set_num_threads(1)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=GOLDEN)
    setting = {"commit": revision.stdout.strip(), **machine()}
    for config_path in config_paths():
        with tempfile.TemporaryDirectory() as folder:
            made = collect(config_path, Path(folder))
        del made["weights"]  # exact on one machine only
        write_recording(recording_of(config_path), {"made with": setting, **made})
        print(recording_of(config_path))
    write_recording(NUMBERS, {name: digest(load_result(RESULTS / f"{name}.json")) for name in STUDIES})
    print(NUMBERS)


if __name__ == "__main__":
    main()
