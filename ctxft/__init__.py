"""Contextual fine-tuning of language models, from a prompt before each passage to a tested difference.

Example:
    >>> import ctxft
    >>> run = ctxft.Run("mini", seeds=[0]).train().evaluate()  # doctest: +SKIP
    >>> ctxft.results_table(run)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctxft.config import load_experiment
    from ctxft.report import read_run, results_table, verdicts, write_report
    from ctxft.run.run import Run

__version__ = "0.1.0"

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the hub's client is imported, which reads it once

_HOMES = {
    "Run": "ctxft.run.run",
    "load_experiment": "ctxft.config",
    "read_run": "ctxft.report",
    "results_table": "ctxft.report",
    "verdicts": "ctxft.report",
    "write_report": "ctxft.report",
}
__all__ = ["Run", "load_experiment", "read_run", "results_table", "verdicts", "write_report"]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `import ctxft` loads neither torch nor pandas."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ctxft' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
