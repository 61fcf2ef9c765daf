"""What you found goes in; one line comes out that sets it beside what was expected: the self-checks of the notebooks."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping

LONGEST = 60  # characters of a value that are shown
CHECKED: dict[str, bool] = {}  # what was checked in this kernel -> whether the last try was right


def check(what: str, yours: object, expected: object, tolerance: float = 0.0) -> bool:
    """Print your value beside the expected one, and say whether they agree.

    Args:
        what: names the value, as in "passages of document 5".
        yours: your value; ``...`` or None, as the empty lines of an exercise leave it, is not an answer yet.
        expected: the right value: a number, a text, or a list or dictionary of these.
        tolerance: how far a number may be from the expected one, in its own unit.

    Returns:
        Whether your value is right.

    Example:
        >>> check("half of 42", 21, 42 / 2)
        half of 42: yours 21, expected 21.0 - right
        True
        >>> check("half of 42", 20, 42 / 2)
        half of 42: yours 20, expected 21.0 - not yet
        False
        >>> check("half of 42", ..., 42 / 2)
        half of 42: not answered yet
        False
    """
    CHECKED[what] = False
    if yours is ... or yours is None:
        print(f"{what}: not answered yet")
        return False
    CHECKED[what] = right = agree(yours, expected, tolerance)
    near = f" (to {tolerance:g})" if tolerance else ""
    print(f"{what}: yours {_shown(yours)}, expected {_shown(expected)}{near} - {'right' if right else 'not yet'}")
    return right


def agree(yours: object, expected: object, tolerance: float = 0.0) -> bool:
    """Tell whether two values are equal, numbers to a tolerance, lists and dictionaries part by part."""
    if isinstance(expected, Mapping):
        same = isinstance(yours, Mapping) and yours.keys() == expected.keys()
        return same and all(agree(yours[key], expected[key], tolerance) for key in expected)
    if isinstance(expected, bool) or isinstance(yours, bool):
        return type(yours) is type(expected) and yours == expected
    if isinstance(expected, numbers.Real):
        return isinstance(yours, numbers.Real) and math.isclose(yours, expected, rel_tol=1e-9, abs_tol=tolerance)
    if isinstance(expected, str):
        return isinstance(yours, str) and yours == expected
    if isinstance(expected, Iterable):
        if isinstance(yours, str | Mapping) or not isinstance(yours, Iterable):
            return False
        ours, theirs = list(yours), list(expected)
        return len(ours) == len(theirs) and all(agree(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    return yours == expected


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) and not value.is_integer() else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 4] + " ..."


def score() -> float:
    """Print how many checks are right so far, each counted by its last try, and return their share."""
    right = sum(CHECKED.values())
    print(f"{right} of {len(CHECKED)} checks right")
    return right / len(CHECKED) if CHECKED else 0.0
