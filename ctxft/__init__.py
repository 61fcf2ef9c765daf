"""Contextual fine-tuning of language models, from a prompt before each passage to a tested difference.

Example:
    >>> import ctxft
    >>> run = ctxft.Run("mini", seeds=[0]).train().evaluate()  # doctest: +SKIP
    >>> ctxft.results_table(run)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxft.config import WriterConfig, load_experiment, to_mapping
    from ctxft.leakage import clean_table, find_leaks, leaks_table, look_for_leaks
    from ctxft.models import encode_text, load_model, load_tokenizer
    from ctxft.report import read_run, results_table, verdicts, write_report
    from ctxft.run.estimate import estimate_lines
    from ctxft.run.run import Run
    from ctxft.storage import InputError, read_json, read_jsonl, runs_root, seeded, versions, write_jsonl

__version__ = "0.1.0"

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the hub's client is imported, which reads it once

# fmt: off
__all__ = [
    "InputError", "Run", "WriterConfig", "clean_table", "encode_text", "estimate_lines", "find_leaks", "leaks_table",
    "load_experiment", "load_model", "load_tokenizer", "look_for_leaks", "read_json", "read_jsonl", "read_run",
    "results_table", "runs_root", "seeded", "to_mapping", "verdicts", "versions", "write_jsonl", "write_report",
]
# fmt: on


def lazy(package: str, modules: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``, which import a name's module when the name is first used.

    Args:
        package: the package's name.
        modules: module below the package -> the names that it offers, separated by spaces.

    Example:
        >>> getattr_, dir_ = lazy("ctxft", {"storage": "seeded sha256"})
        >>> getattr_("sha256").__module__
        'ctxft.storage'
    """
    homes = {name: f"{package}.{module}" for module, names in modules.items() for name in names.split()}

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return getattr_, lambda: sorted({*vars(sys.modules[package]), *homes})


__getattr__, __dir__ = lazy(  # so that `import ctxft` loads neither torch nor pandas
    __name__,
    {
        "config": "WriterConfig load_experiment to_mapping",
        "leakage": "clean_table find_leaks leaks_table look_for_leaks",
        "models": "encode_text load_model load_tokenizer",
        "report": "read_run results_table verdicts write_report",
        "run.estimate": "estimate_lines",
        "run.run": "Run",
        "storage": "InputError read_json read_jsonl runs_root seeded versions write_jsonl",
    },
)
