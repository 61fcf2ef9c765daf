"""Plain values come out of JSON and YAML, and one line that can be shown comes out of anything else."""

from __future__ import annotations

import math

import pytest

from ctxft.parsing import LONGEST, InputError, is_unicode, one_line, parse_json, parse_yaml, shown


def test_values_come_out_as_they_are():
    assert parse_json('{"a": [1, 2.5, null, "\\ud83d\\ude00"]}', "x") == {"a": [1, 2.5, None, "\U0001f600"]}
    assert math.isnan(parse_json("NaN", "x"))  # a log of a training that went wrong holds it
    assert parse_json('{"text": "\\ud83d"}', "x", halves=True) == {"text": "\ud83d"}
    shared = "base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  b: 3\nagain: *base\n"
    assert parse_yaml(shared, "x") == {"base": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}, "again": {"a": 1, "b": 2}}
    assert parse_yaml("", "x") is None


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"b": {"a": 1, "c": 2, "a": 3}}', '[{"a": [], "a": null}]'])
def test_a_key_that_stands_twice_is_told(text):
    with pytest.raises(InputError, match=r"^x, line 1: the key 'a' stands twice in one object: remove one\.$"):
        parse_json(text, "x, line 1")


def test_errors_are_one_line_that_commands_no_terminal():
    error = InputError("no 'a\n\x1b[2Jb\u202ec\ud800\x00' here: " + "x" * 10 * LONGEST)
    assert str(error).isprintable() and len(str(error)) < LONGEST + 100 and is_unicode(str(error))
    assert str(error).startswith(r"no 'a\n\x1b[2Jb\u202ec\ud800\x00' here: xxx") and str(error).endswith("xxx")
    assert one_line("Grüße, 東京 🎉") == "Grüße, 東京 🎉"


def test_values_are_shown_short():
    assert shown(10**5000).startswith("a whole number of ") and len(shown(["a" * 999] * 99)) < 900
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert len(shown(deep)) < 100 and shown({"a": 1}) == "{'a': 1}"
