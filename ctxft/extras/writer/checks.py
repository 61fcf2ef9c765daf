"""What a model wrote goes in; a clean prompt comes out, or why it must not stand before its passage.

A prompt is context: it is read and never learned. What it says of the passage, or of an exam, the trained model would read
for nothing, and an arm would differ from the others in more than how it is told to learn. So a prompt is refused that copies
the passage, or that holds a question of a benchmark or its answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ctxft.evaluation.benchmarks.records import Benchmark
from ctxft.leakage import COMMON, HALF, grams_of, words_of
from ctxft.prompts import SEPARATOR, count_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RARE = 0.05  # of a benchmark's questions
LABEL = re.compile(r"^\**(?:study |contextual |reading )?prompt\s*:\**\s*", re.IGNORECASE)
QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}


def clean(text: str) -> str:
    """Return what a model wrote, without what is no part of the prompt.

    Runs of white space become one space, a label such as "Prompt:" at the start goes (bold or not), and so does a pair of
    quotation marks around the whole; nothing else is changed.

    Example:
        >>> clean('**Prompt:** "Ask why\\n each step holds."')
        'Ask why each step holds.'
    """
    text = " ".join(text.split())
    while True:
        inner = LABEL.sub("", text)
        if len(inner) > 1 and QUOTES.get(inner[0]) == inner[-1] and inner[-1] not in inner[1:-1]:
            inner = inner[1:-1]
        if inner.strip() == text:
            return text
        text = inner.strip()


def reject_reason(
    text: str,
    passage_text: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    forbidden: Callable[[str], str | None],
    separator: str = SEPARATOR,
) -> str | None:
    """Return why a prompt must not stand before its passage, or None if it may.

    Args:
        text: the prompt, after ``clean``.
        passage_text: the passage it was written for.
        tokenizer: of the model that is trained.
        max_tokens: tokens of the prompt and the separator behind it, at most.
        forbidden: returns what a text gives away, or None (see ``forbids``).
        separator: what the prompt set puts between prompt and passage.

    Returns:
        "empty", "broken characters" (control characters, halves of a surrogate pair), "too long", "copies the passage"
        (eight words in a row) or "gives away ..."; the first that holds.

    Example:
        >>> reject_reason("", "A text.", tokenizer, 64, lambda text: None)  # doctest: +SKIP
        'empty'
    """
    words = words_of(text)
    if not words:
        return "empty"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return "broken characters"
    if count_tokens(tokenizer, text + separator) > max_tokens:
        return "too long"
    if not set(grams_of(words)).isdisjoint(grams_of(words_of(passage_text))):
        return "copies the passage"
    given = forbidden(text)
    return f"gives away {given}" if given else None


def forbids(benchmarks: Sequence[Benchmark]) -> Callable[[str], str | None]:
    """Return the function that tells which benchmark item a text gives away, as "benchmark/id", or None.

    An item is given away by eight words in a row of its question (or of the text that it is about), or by all words of
    its right answer together with more than half of the question's own words. Own are the words that fewer than
    ``ctxft.leakage.COMMON`` questions of the benchmark share, or, in a large one, fewer than 5 % of them, since an exam may
    ask several things about one drug; "which of the following" is nobody's own.

    Args:
        benchmarks: what will be asked.

    Example:
        >>> from ctxft.evaluation.benchmarks import Benchmark, Question
        >>> asked = Benchmark("own", (Question("1", "Which vessel drains the liver?", ("a vein", "a duct"), 0, "all"),), "")
        >>> forbids([asked])("Think of the vein, the vessel that drains a liver.")
        'own/1'
    """
    return _Items(benchmarks).given_by


class _Items:
    """Benchmark items, found by eight words in a row or by their own words and their answer."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self.grams: dict[tuple[str, ...], str] = {}
        self.owners: dict[str, list[int]] = {}  # word -> numbers of the items that have it as their own
        self.items: list[tuple[str, int, frozenset[str]]] = []  # name, how many own words, words of the right answer
        for benchmark in benchmarks:
            self._add(benchmark)

    def _add(self, benchmark: Benchmark) -> None:
        words_of_each = [frozenset(words_of(question.question)) for question in benchmark.questions]
        shared = Counter(word for words in words_of_each for word in words)
        for question, words in zip(benchmark.questions, words_of_each, strict=True):
            name = f"{benchmark.name}/{question.id}"
            for text in (question.question, question.context):
                self.grams.update((gram, name) for gram in grams_of(words_of(text)))
            own = [word for word in words if shared[word] < max(COMMON, RARE * len(words_of_each))]
            for word in own:
                self.owners.setdefault(word, []).append(len(self.items))
            self.items.append((name, len(own), frozenset(words_of(question.choices[question.answer]))))

    def given_by(self, text: str) -> str | None:
        """Return the name of an item that a text gives away, or None."""
        words = words_of(text)
        for gram in grams_of(words):
            if gram in self.grams:
                return self.grams[gram]
        known = set(words)
        hits = Counter(number for word in sorted(known) for number in self.owners.get(word, ()))
        for number, count in hits.items():
            name, size, answer = self.items[number]
            if count > HALF * size and answer <= known:
                return name
        return None
