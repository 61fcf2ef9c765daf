"""Try the oldest supported versions of the libraries that change most: a new environment with them, and the tests that use them.

    python tests/oldest.py [--keep DIR]

The versions are the lower bounds in pyproject.toml; everything else is as new as pip finds it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TRIED = ("transformers", "datasets", "peft", "papermill")
TESTS = ("examples", "models", "training", "packing", "corpora", "evaluation", "scoring", "chat", "instructions", "hub")


def oldest() -> dict[str, str]:
    """Return the lower bound of each library tried."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    found = {}
    for need in map(Requirement, lines):
        if need.name in TRIED:
            found[need.name] = next(one.version for one in need.specifier if one.operator == ">=")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="make the environment here, and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.keep or Path(place) / "venv"
        venv.create(folder, with_pip=True)
        python = str(folder / "bin" / "python")
        pins = [f"{name}=={version}" for name, version in oldest().items()]
        print("oldest supported:", ", ".join(pins), flush=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[test]", *pins], check=True)
        files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        tests = [python, "-m", "pytest", "-q", "-o", "addopts=", *files]
        done = subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode
        environment |= {"CTXFT_RUNS": str(Path(place) / "runs"), "TQDM_DISABLE": "1"}
        run = [python, "-m", "ctxft", "run", "--notebook", "00_quickstart", "--notebook", "02_domain_text"]
        run += [
            "--set",
            "train.max_steps=3",
            "--set",
            "corpus.limit=12",
            "--set",
            "evaluation.limit=8",
            "--set",
            "seeds=[4]",
        ]
        return done or subprocess.run(run, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
