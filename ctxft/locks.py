"""One process at a time where two would do the same work twice, or write over each other; the second is told who is at it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ctxft.storage import InputError, write_text


@contextlib.contextmanager
def only_process(lock: Path, doing: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock while the block runs; the system frees it when the process ends, however it ends.

    Args:
        lock: the lock file; who holds it stands in a file beside it.
        doing: what the holder does, as in "trains cft:0 in runs/mini".
        wait: wait for the other process instead of refusing.

    Raises:
        InputError: another process holds it; its number, machine and start are told.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = lock.with_suffix(".held")
    try:
        with FileLock(lock, timeout=-1 if wait else 0):
            here = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_text(held, json.dumps(here))
            try:
                yield
            finally:
                held.unlink(missing_ok=True)
    except Timeout:
        raise InputError(f"another process {doing}{_holder(held)}: wait for it, or stop it.") from None


def _holder(held: Path) -> str:
    """Return who holds a lock, in brackets; a holder that ends at this moment has taken its file along."""
    try:
        who = json.loads(held.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return ""
    return f" (process {who['process']} on {who['machine']}, since {who['since']})"
