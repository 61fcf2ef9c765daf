"""Run a command with every connection and name look-up beyond this machine refused and written down, workers included."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ctxft.storage import REPO_ROOT

GUARD = Path(__file__).parent / "faults" / "guard"
PLANTED = {  # keys that must not be written down anywhere
    "HF_TOKEN": "hf_plantedPlantedPlanted",
    "OPENAI_API_KEY": "sk-planted-planted",
    "CTXFT_KEY": "key-planted-planted",
}


def guarded(command: list[str], place: Path, network: bool = True) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run a command under the guard, and without a network where the system can do that; returns what was refused.

    Args:
        command: words of the command.
        place: working folder; runs, the cache of the hub and the guard's log are in it.
        network: False adds a network namespace with nothing but loopback, where there can be one.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    path, log = os.pathsep.join([str(GUARD), str(REPO_ROOT)]), place / "refused.log"
    environment = {**kept, **PLANTED, "PYTHONPATH": path, "CTXFT_GUARD_LOG": str(log), "TQDM_DISABLE": "1"}
    environment |= {"CTXFT_RUNS": str(place / "runs"), "HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1"}
    if not network and _has_namespaces():
        command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    done = subprocess.run(
        command, env=environment, cwd=place, capture_output=True, text=True, check=False, timeout=3000
    )
    return done, log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def _has_namespaces() -> bool:
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    probe = ["unshare", "-n", "ip", "link", "set", "lo", "up"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0
