"""Text that anybody may have written goes in; plain JSON and YAML values come out, or one sentence that says what is wrong.

Nothing that a file holds may stop the kit in any other way: nesting without end, numbers of a million digits, aliases that
multiply, keys that stand twice, halves of characters. Errors are one line without control characters, whatever they quote.
"""

from __future__ import annotations

import json
import re
import reprlib
import typing

import yaml

LONGEST = 4000  # characters of an error: it may quote a text of any length
MOST_NODES = 1_000_000  # that aliases of a YAML file may stand for
SURROGATE = re.compile(r"[\ud800-\udfff]")
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON spells half of a character that takes two
# What PyYAML raises for a tag whose value is none of its kind, a date that is no day, or a number without digits.
NO_VALUE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


class InputError(ValueError):
    """Bad input from a user: one sentence that says what is wrong, where, and what to do; the command line exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Return a text without what would break a line, command a terminal or turn the order of writing; a long one is cut.

    Example:
        >>> one_line("no file 'a\\nb'")
        "no file 'a\\\\nb'"
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it holds no lone surrogate, half of a character that takes two.

    Example:
        >>> is_unicode("\\ud83d\\ude00"), is_unicode("\\U0001f600")
        (False, True)
    """
    return not SURROGATE.search(text)


class _Short(reprlib.Repr):
    """The usual way to write a value, with an end to its length and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        """Write a number; Python itself refuses to write one of thousands of digits."""
        return repr(x) if x.bit_length() < 256 else f"a whole number of {x.bit_length()} bits"


def shown(value: object) -> str:
    """Return a value as an error shows it: as Python writes it, but short.

    Example:
        >>> shown("fast"), shown(10**9999)
        ("'fast'", 'a whole number of 33216 bits')
    """
    return _Short().repr(value)


def parse_json(text: str, where: str, halves: bool = False) -> typing.Any:
    """Parse JSON text; ``where`` (a file, or a file and line) stands in the error.

    Args:
        text: the text.
        where: stands at the start of each error.
        halves: let lone surrogates pass, as a server may send them; UTF-8 cannot hold them.

    Raises:
        InputError: the text is not valid JSON, a key stands twice in one object, or a text holds a lone surrogate.

    Example:
        >>> parse_json('{"id": "a"}', "corpus.jsonl, line 1")
        {'id': 'a'}
    """

    def once(pairs: list[tuple[str, typing.Any]]) -> dict:
        values = dict(pairs)
        if len(values) < len(pairs):  # json would keep the last one, and say nothing
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{where}: the key {shown(twice)} stands twice in one object: remove one.")
        return values

    try:
        value = json.loads(text, object_pairs_hook=once)
        if not halves and HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: invalid JSON ({error.msg}, column {error.colno}): mend or remove it.") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: a text holds a lone surrogate, half of a character: mend or remove it.") from None
    except RecursionError:
        raise InputError(f"{where}: invalid JSON (nested too deeply): mend or remove it.") from None
    except InputError:
        raise
    except ValueError:  # Python reads no number of more than 4300 digits
        raise InputError(f"{where}: invalid JSON (a number with thousands of digits): mend or remove it.") from None
    return value


def parse_yaml(text: str, where: str) -> typing.Any:
    """Parse one YAML document with the safe loader, which runs no code.

    Args:
        text: the text.
        where: stands at the start of each error; the line follows where it is known.

    Raises:
        InputError: the text is not valid YAML, is nested too deeply, or its aliases stand for themselves or for too much.

    Example:
        >>> parse_yaml("epochs: 3", "my.yaml")
        {'epochs': 3}
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _weigh(node, where, {})
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{where}{line}: invalid YAML ({getattr(error, 'problem', None) or error}).") from None
    except RecursionError:
        raise InputError(f"{where}: invalid YAML (nested too deeply).") from None
    except InputError:
        raise
    except NO_VALUE as error:
        raise InputError(f"{where}: invalid YAML (a value that is none of its kind: {error}).") from None


def _weigh(node: yaml.Node | None, where: str, known: dict[int, int | None]) -> int:
    """Return for how many nodes a node stands with its aliases written out; refuse too many, a circle, half a character."""
    if id(node) in known:
        if (size := known[id(node)]) is None:
            raise InputError(
                f"{where}, line {node.start_mark.line + 1}: invalid YAML (an alias within its own anchor)."
            )
        return size
    known[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.ScalarNode) and not is_unicode(node.value):
        raise InputError(f"{where}, line {node.start_mark.line + 1}: a text holds a lone surrogate: mend or remove it.")
    size = known[id(node)] = 1 + sum(_weigh(part, where, known) for part in parts)
    if size > MOST_NODES:
        raise InputError(f"{where}: invalid YAML (aliases that stand for more than {MOST_NODES} values): write less.")
    return size
