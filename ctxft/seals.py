"""Results flow out with a checksum inside and flow back in only if it still holds; what does not is set aside.

A bit that flipped on a disk, or an edit by hand, leaves JSON that parses. The checksum tells both from what was written; it
is no signature, and whoever wants to deceive can make a new one.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from ctxft.storage import InputError, is_there, read_json, sha256

SEAL = "checksum"


class DamagedError(InputError):
    """A file of the kit's own that was cut off or changed since it was written."""


def sealed(values: dict) -> dict:
    """Return values with their checksum; one that they have already is replaced.

    Example:
        >>> sealed(sealed({"n": 1})) == sealed({"n": 1})
        True
    """
    kept = {key: value for key, value in values.items() if key != SEAL}
    return kept | {SEAL: sha256(json.loads(json.dumps(kept)))}  # as it will be read back: lists for tuples


def holds(values: object) -> bool:
    """Return whether an object's checksum is that of its values; one without a checksum is taken as it is."""
    return isinstance(values, dict) and (SEAL not in values or values == sealed(values))


def read_sealed(path: Path) -> dict:
    """Return the object of a JSON file that ``sealed`` made.

    Raises:
        DamagedError: the file cannot be read, holds no object, or another one than was written; the file is named.
    """
    try:
        values = read_json(path)
    except InputError as error:
        if not is_there(path):
            raise
        raise DamagedError(str(error)) from None
    if not holds(values):
        raise DamagedError(f"{path} was changed after it was written (its checksum differs): make it again.")
    return values


def set_aside(path: Path, why: str) -> Path:
    """Rename a damaged file or folder, so that it can be made again, and say so; returns its new path."""
    number, target = 1, path.with_name(f"{path.name}.damaged")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}-{number}.damaged")
    with contextlib.suppress(FileNotFoundError):  # another process of the same training was quicker
        path.rename(target)
    print(f"note: set aside as {target.name}, to be made again: {why}", file=sys.stderr)
    return target


def read_or_set_aside(path: Path) -> dict | None:
    """Return what ``sealed`` wrote; None where nothing stands, or where it was damaged and is set aside now."""
    if not path.exists():
        return None
    try:
        return read_sealed(path)
    except DamagedError as error:
        set_aside(path, str(error))
        return None
