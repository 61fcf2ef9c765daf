"""Compare texts by their n-grams: runs of eight words, as long as case, punctuation and spacing are forgotten.

    text -> words (NFKC, no case, no punctuation) -> a 64-bit hash of each n-gram

Scripts that put no spaces between words (Chinese, Japanese, Thai, ...) are taken apart into characters, each of which counts
half a word: in the same pages in several languages, sixteen characters of Chinese or Japanese met in two pages no more often
than eight words of English, but eight characters of Japanese nine times as often.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

NGRAM = 8
PIECE = 1 << 20  # characters normalized at a time
KNOWN = 1 << 20  # words whose hashes are kept
# Thai, Lao, Myanmar, Khmer, kana, and the characters that Chinese and Japanese share
UNSPACED = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
UNSPACED += "\U00020000-\U0003ffff"
WORD = re.compile(rf"(?=[^\W_])[{UNSPACED}]|[^\W_{UNSPACED}]+")
APART = {code: " " for code in range(128) if not chr(code).isalnum()}  # of ASCII, what is in no word
ANY_UNSPACED, SPACED_WORD = re.compile(f"[{UNSPACED}]"), re.compile(r"[^\W_]+")
SPACE = re.compile(r"\s")
INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff]")  # soft hyphens, joiners of no width
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))


def word_pieces(text: str) -> Iterator[list[str]]:
    """Yield a text's words, as ``words_of`` returns them, those of about a million characters at a time."""
    start = 0
    while start < len(text):
        space = SPACE.search(text, start + PIECE)
        end = space.start() if space else len(text)
        piece = text[start:end]
        if piece.isascii():  # much faster
            yield piece.lower().translate(APART).split()
        else:
            piece = unicodedata.normalize("NFKC", INVISIBLE.sub("", piece)).casefold()
            yield (WORD if ANY_UNSPACED.search(piece) else SPACED_WORD).findall(piece)
        start = end


def words_of(text: str) -> list[str]:
    """Return a text's words for comparison: NFKC, without case, punctuation, spacing and invisible characters.

    Example:
        >>> words_of("Which  drug—«Sivvexane»—helps?") == words_of("which DRUG, sivvexane, helps")
        True
        >>> words_of("この薬 ABC")
        ['こ', 'の', '薬', 'abc']
    """
    return [word for piece in word_pieces(text) for word in piece]


class _Hashes(dict[str, int]):
    """The hash of each word, equal in every process; its last bit says whether the word counts half."""

    def __missing__(self, word: str) -> int:
        if len(self) >= KNOWN:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        half = re.match(f"[{UNSPACED}]", word) is not None
        self[word] = value = int.from_bytes(digest) & ~1 | half
        return value


HASHES = _Hashes()


def word_hashes(words: Sequence[str]) -> np.ndarray:
    """Return a 64-bit hash of each word."""
    return np.fromiter(map(HASHES.__getitem__, words), np.uint64, len(words))


def ngram_ends(hashes: np.ndarray, n: int = NGRAM) -> np.ndarray:
    """Return where the n-gram ends that starts at each word, from the first word to the last that has a whole one.

    Args:
        hashes: of the words.
        n: words; a character of a script without spaces counts half.
    """
    halves = np.concatenate([[0], np.cumsum(2 - (hashes & np.uint64(1)).astype(np.int64))])
    ends = np.searchsorted(halves, halves[:-1] + 2 * n)
    return ends[: np.searchsorted(ends, len(halves))]


@functools.cache
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers of the base, and of its inverse, to a number that is a power of two."""
    powers, inverses = (np.full(size, base).cumprod() for base in (BASE, INVERSE))
    return powers, inverses


def run_hashes(hashes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each run of words: run k goes from word k to where ``ends[k]`` says."""
    powers, inverses = _powers(1 << len(hashes).bit_length())
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes * powers[: len(hashes)])])
    return (sums[ends] - sums[: len(ends)]) * inverses[: len(ends)]


def ngram_hashes(words: Sequence[str], n: int = NGRAM) -> np.ndarray:
    """Return a 64-bit hash of each n-gram of a text, in their order, equal in every process.

    Args:
        words: as from ``words_of``.
        n: words; a character of a script without spaces counts half.

    Example:
        >>> one, other = (ngram_hashes(text.split(), 3) for text in ("a b c d", "x b c d"))
        >>> (one == other).tolist()
        [False, True]
    """
    hashes = word_hashes(words)
    return run_hashes(hashes, ngram_ends(hashes, n))


def grams_of(words: Sequence[str], n: int = NGRAM) -> Iterator[tuple[str, ...]]:
    """Yield the n-grams of a list of words."""
    for start, end in enumerate(ngram_ends(word_hashes(words), n)):
        yield tuple(words[start:end])
