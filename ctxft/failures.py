"""An exception of the machine's own (no space, no memory, no right to write) goes in; one sentence for the user comes out."""

from __future__ import annotations

import errno

KEPT = "What was finished is kept, and the same command goes on from there."
SYSTEM = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no right to write or read",
    errno.EPERM: "there is no right to write or read",
    errno.EMFILE: "too many files are open",
    errno.EIO: "the disk reports an error",
}
ADVICE = {
    errno.ENOSPC: "free some, or set CTXFT_RUNS to a larger disk",
    errno.EDQUOT: "free some, or set CTXFT_RUNS to another disk",
    errno.EROFS: "set CTXFT_RUNS to a folder that you can write to",
    errno.EACCES: "change the rights, or set CTXFT_RUNS to a folder of yours",
    errno.EPERM: "change the rights, or set CTXFT_RUNS to a folder of yours",
}
MEMORY = (
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "unable to allocate",
    "bad_alloc",
    "can't start new thread",
    "can't allocate",
)


def explain(error: BaseException) -> str | None:
    """Return what the machine refused, in one sentence with advice; None for an error of another kind.

    Args:
        error: what was raised; libraries that write in another language (safetensors, Arrow) bring the system's number in
            their text.

    Example:
        >>> explain(OSError(errno.ENOSPC, "No space left on device", "runs/mini/ledger.json"))[:61]
        'no space is left on the disk, at runs/mini/ledger.json: free '
    """
    seen: BaseException | None = error
    while seen is not None:
        number = _number(seen)
        if number in SYSTEM:
            name = getattr(seen, "filename", None)
            where = f", at {name}" if name else ""
            advice = ADVICE.get(number, "see to it")
            return f"{SYSTEM[number]}{where}: {advice}. {KEPT}"
        if isinstance(seen, MemoryError) or any(words in str(seen).lower() for words in MEMORY):
            return (
                "there is not enough memory: take a smaller train.micro_batch_tokens (or evaluation.token_budget), or fewer "
                f"processes at a time (--workers). {KEPT}"
            )
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return next((number for number in SYSTEM if f"os error {number})" in str(error)), None)
