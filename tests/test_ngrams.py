"""Words and n-grams for comparison are the same for texts that differ in case, punctuation and spacing, in any script."""

from __future__ import annotations

import subprocess
import sys

import numpy
import pytest

from ctxft.data.ngrams import KNOWN, grams_of, ngram_hashes, words_of


def test_words_forget_case_punctuation_and_what_unicode_writes_twice():
    assert words_of("The ﬁrst—“X-ray”,\n\tdone?") == ["the", "first", "x", "ray", "done"]
    assert words_of("so\u00adft STRASSE ２") == words_of("soft Straße 2")
    assert words_of("?! ...") == [] == words_of("")
    long = "wordä " * 400_000  # longer than one piece
    assert len(words_of(long)) == 400_000 and set(words_of(long)) == {"wordä"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("这种药物 ABC，有效吗？", [*"这种药物", "abc", *"有效吗"]),
        ("このﾃﾞｰﾀは2つ。", [*"このデータは", "2", "つ"]),
        ("ยานี้ใช้ได้", list("ยานใชได")),
        ("이 약은 무엇인가?", ["이", "약은", "무엇인가"]),
    ],
)
def test_scripts_without_spaces_are_taken_apart_into_characters(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize(("words", "size"), [([str(n) for n in range(30)], 8), (list("的一是了不我" * 6), 16)])
def test_an_ngram_is_eight_words_or_sixteen_characters_wherever_it_stands(words, size):
    grams = list(grams_of(words))
    assert grams == list(zip(*(words[k:] for k in range(size)), strict=False))
    hashes = ngram_hashes(words)
    assert len(set(hashes.tolist())) == len(set(grams)) and len(hashes) == len(grams)
    assert numpy.isin(hashes[3:], ngram_hashes(["other", "words", *words[3:]])).all()
    assert len(ngram_hashes(words[: size - 1])) == 0 == len(ngram_hashes([]))


def test_hashes_are_equal_in_every_process_and_after_many_words():
    words = "one text of ten words 薬 is hashed again and again".split()
    before = ngram_hashes(words, 3).tolist()
    ngram_hashes([str(n) for n in range(KNOWN + 1)])
    assert ngram_hashes(words, 3).tolist() == before
    code = f"from ctxft.data.ngrams import ngram_hashes; print(ngram_hashes({words!r}, 3).tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(before)
