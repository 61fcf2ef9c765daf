"""What dirty input is made of: texts, values and bytes that nobody should write, and the one way to refuse them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from ctxft.storage import InputError

WORST = [
    "", " ", "\x00", "\x1b[2J", "\ud800", "\udfff tail", "a\ud83d", "\u202edesrever\u202c", "\u2066x\u2069", "\u200b", "\ufeff",
    "\u2028\u2029", "\x0b\x0c\x85", "\r\n\r", "a" * 3000, "word " * 1500, "../../etc/passwd", "..", "/absolute", "C:\\x", "con",
    "<s>", "</s>", "<|im_end|>", "<script>alert(1)</script>", "NaN", "Infinity", "1e999", "0x10", "9" * 5000, "null", "true",
    "{{ 7 * 7 }}", "%s%n", "\U0010ffff", "e\u0301" * 40, "\N{ZERO WIDTH JOINER}\N{WOMAN}", "=1+1", "-", "#", "a: b", "&a [*a]",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), -0.0, True, False, None]

texts = st.one_of(st.sampled_from(WORST), st.text(st.characters(codec=None), max_size=40))
leaves = st.one_of(texts, st.sampled_from(NUMBERS), st.integers(), st.floats())
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)


def nested(depth: int, kind: str = "[") -> str:
    """Return JSON that is nested so deeply."""
    return "[" * depth + "]" * depth if kind == "[" else '{"a":' * depth + "1" + "}" * depth


@st.composite
def changed(draw: Callable, good: dict) -> dict:
    """Return a record like a good one with up to two of its values replaced, removed or added, at any depth."""
    record = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(0, 2))):
        place = record
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            deeper = key is not None and isinstance(place[key], (dict, list)) and draw(st.booleans())
            if not deeper:
                break
            place = place[key]
        if key is None:
            break
        what = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        if what == "replace":
            place[key] = draw(values)
        elif what == "remove":
            del place[key]
        elif isinstance(place, dict):
            place[draw(texts)] = draw(values)
    return record


@st.composite
def broken(draw: Callable, good: bytes) -> bytes:
    """Return good bytes with a few flipped, cut off, doubled or put in."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        what = draw(st.sampled_from(("flip", "cut", "put in", "double")))
        if what == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del content[place:]
        elif what == "put in":
            piece = draw(
                st.sampled_from(["\x00", "\r", '"', "\\", "{", "]", "\u202e", "\ufeff", "NaN", "\t", "9" * 5000])
            )
            content[place:place] = piece.encode()
        else:
            content[place:place] = content[place : place + 200]
    return bytes(content)


def refused(call: Callable[[], object], *names: str) -> str | None:
    """Return why bad input was refused, or None where it was taken; any other error, or a careless sentence, fails the test.

    Args:
        call: reads the input.
        names: one of them must stand in the sentence: a file, a line, an id.
    """
    try:
        call()
    except InputError as error:
        said = str(error)
        lines = said.split("\n")  # one for each mistake, whatever it quotes
        assert len(lines) <= 21 and all(line.isprintable() and len(line) < 5000 for line in lines), said
        assert any(name in said for name in names), said
        return said
    return None


def dump(path: Path, value: object) -> Path:
    """Write JSON as a careless program does: halves of characters, NaN and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def dump_lines(path: Path, rows: list) -> Path:
    """Write JSON Lines as a careless program does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
