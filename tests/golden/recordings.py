"""Read and write the recordings, and say where something differs from them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent
RESULTS = GOLDEN.parents[1] / "notebooks" / "results"
STUDIES = ("ablations", "mini", "practice_study", "synthetic_polynomial", "synthetic_relu", "synthetic_sumdot")
NOT_RESULTS = ("versions", "command", "code", "columns", "seconds", "values", "config", "network")
HERE, ELSEWHERE = 1e-5, 1e-4  # tolerance of losses and log-likelihoods (nats): on the recorded processor, and on others


def config_paths() -> list[Path]:
    """Return the YAML files of the golden experiments."""
    return sorted(GOLDEN.glob("*.yaml"))


def recording_of(config_path: Path) -> Path:
    """Return the file that holds what an experiment made."""
    return config_path.with_suffix(".json")


def read_recording(config_path: Path) -> dict:
    """Return what an experiment made when it was recorded."""
    return json.loads(recording_of(config_path).read_text(encoding="utf-8"))


def write_recording(path: Path, value: object) -> None:
    """Write JSON whose lists and objects of plain values take a line each."""
    path.write_text(_lines(value) + "\n", encoding="utf-8")


def _lines(value: object, indent: str = "") -> str:
    if not isinstance(value, (dict, list)) or not any(isinstance(inner, (dict, list)) for inner in _values(value)):
        return json.dumps(value, ensure_ascii=False)
    inside = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inside + _lines(inner, inside) for inner in value) + f"\n{indent}]"
    rows = [f"{inside}{json.dumps(key, ensure_ascii=False)}: {_lines(inner, inside)}" for key, inner in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def _values(value: dict | list) -> list:
    return list(value.values()) if isinstance(value, dict) else value


def differences(recorded: object, actual: object, tolerance: float = HERE, where: str = "") -> list[str]:
    """Return where two JSON values differ: floats by more than the tolerance (relative for the norm
    of a gradient), learning rates and anything else at all.

    Example:
        >>> differences({"loss": [2.0, 1.0], "id": "a"}, {"loss": [2.000001, 1.1], "id": "a"})
        ['/loss/1: recorded 1.0, found 1.1']
    """
    if isinstance(recorded, float) and isinstance(actual, float):
        relative = {"learning_rate": 1e-12, "grad_norm": tolerance}.get(where.rsplit("/", 1)[-1], 0)
        same = math.isclose(recorded, actual, rel_tol=relative, abs_tol=0 if relative else tolerance)
        return [] if same else [f"{where}: recorded {recorded!r}, found {actual!r}"]
    if isinstance(recorded, dict) and isinstance(actual, dict):
        keys = [*recorded, *(key for key in actual if key not in recorded)]
        pairs = [(key, recorded.get(key, "nothing"), actual.get(key, "nothing")) for key in keys]
    elif isinstance(recorded, list) and isinstance(actual, list) and len(recorded) == len(actual):
        pairs = [(number, *pair) for number, pair in enumerate(zip(recorded, actual, strict=True))]
    else:
        same = type(recorded) is type(actual) and recorded == actual
        return [] if same else [f"{where}: recorded {_short(recorded)}, found {_short(actual)}"]
    return [line for key, one, other in pairs for line in differences(one, other, tolerance, f"{where}/{key}")]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def numbers_of(result: object) -> list[str]:
    """Return every number of a results file, in a table's cells too, sorted: what a change of names must leave as it is."""
    if isinstance(result, dict):
        return sorted(n for key, inner in result.items() if key not in NOT_RESULTS for n in numbers_of(inner))
    if isinstance(result, list):
        return sorted(number for inner in result for number in numbers_of(inner))
    if isinstance(result, str):
        return re.findall(r"[-+]?\d+\.\d+", result)  # in words, which may change
    return [] if isinstance(result, bool) or result is None else [repr(result)]
