"""Measured values go in; ``notebooks/results/speed.json`` has them under a key, from where ``tests/refresh.py`` takes them."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

SPEED = Path(__file__).resolve().parents[2] / "notebooks" / "results" / "speed.json"


def spread(values: Sequence[float]) -> list[float]:
    """Return median, lowest and highest."""
    return [statistics.median(values), min(values), max(values)]


def record(key: str, found: dict, *packages: str) -> None:
    """Write the values of one benchmark, with the command that gave them and the versions of the packages named."""
    kept = json.loads(SPEED.read_text(encoding="utf-8")) if SPEED.exists() else {}
    command = " ".join(
        ["python", f"tests/benchmarks/{Path(sys.argv[0]).name}", *(a for a in sys.argv[1:] if a != "--record")]
    )
    versions = {name: importlib.metadata.version(name) for name in packages}
    kept[key] = {"command": command, "versions": versions, **found}
    SPEED.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"recorded in {SPEED.name}: run `python tests/refresh.py --readme` to show it", file=sys.stderr)
