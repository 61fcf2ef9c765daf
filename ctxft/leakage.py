"""Look for benchmark items in training text and prompts: an item that a model has read says little about what it learned.

    question -> words (NFKC, no case, no punctuation) -> its 8-grams, or the whole question if it has fewer words
    texts    -> words, streamed a text at a time; every 8-gram that some question has is a hit

What a hit means. A question that is in a text as it is, or changed in case, spacing and punctuation only, is always
found; a paraphrase is not. Each item gets the worst of these verdicts:

    leaked     more than half of its n-grams were found
    partial    fewer, often one: part of the question, or eight words that any text of the field may hold ("the aim of this
               study was to")
    short      a question of fewer than eight words was found whole; a headline of three words is weak evidence
    common     only n-grams that several questions of the benchmark share (``COMMON``) were found, the benchmark's wording:
               "which of the following is the most likely diagnosis"
    clean      nothing was found
    unchecked  it has no words

The clean subset leaves out the first three. An answer alone is no evidence; it is looked for after its question only. A
text that a question is about (PubMedQA's abstract) is looked for like the question, separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING

import pandas

from ctxft.data.ngrams import NGRAM, words_of
from ctxft.evaluation.benchmarks.records import Benchmark
from ctxft.storage import read_jsonl

if TYPE_CHECKING:
    from ctxft.run.run import Run

HALF = 0.5  # of its n-grams: an item of which more were found is leaked
COMMON = 4  # an n-gram that N questions of a benchmark share is the benchmark's wording
NEAR = 100  # words after a question in which its answer is looked for: other choices may come first
PLACES = 3  # places kept for each item

VERDICTS = ("leaked", "partial", "short", "common", "clean", "unchecked")
DIRTY = VERDICTS[:3]

Gram = tuple[str, ...]


@dataclass
class ItemText:
    """What was found of one question, or of the text that it is about.

    Attributes:
        benchmark, id, hash: which question.
        kind: "question" or "context".
        words, answer: the words of the text, and of the right answer.
        ngrams: how many different n-grams it has that fewer than ``COMMON`` questions share.
        matched, common: its own n-grams that were found, and those of the benchmark's wording.
        answered: whether its right answer came after it.
        places: the first texts that hold some of it.
        last: number of the text and place in it where an n-gram of its own was last found.
    """

    benchmark: str
    id: str
    hash: str
    kind: str
    words: Gram
    answer: Gram
    ngrams: int = 0
    matched: set[Gram] = field(default_factory=set)
    common: set[Gram] = field(default_factory=set)
    answered: bool = False
    places: list[str] = field(default_factory=list)
    last: tuple[int, int] = (-1, 0)

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``."""
        if not self.words:
            return "unchecked"
        if not self.matched:
            return "common" if self.common else "clean"
        if len(self.words) < NGRAM:
            return "short"
        return "leaked" if len(self.matched) > HALF * self.ngrams else "partial"

    def to_json(self) -> dict:
        """Return the record as plain values, with one of the n-grams found as an example."""
        values = {key: getattr(self, key) for key in ("id", "hash", "kind", "verdict", "answered", "places")}
        counts = {"words": len(self.words), "ngrams_found": len(self.matched), "common_found": len(self.common)}
        share = len(self.matched) / self.ngrams if self.ngrams else 0.0
        return {**values, **counts, "share": share, "example": " ".join(min(self.matched or self.common, default=()))}


def grams_of(words: Sequence[str], n: int = NGRAM) -> Iterator[Gram]:
    """Yield the n-grams of a list of words, without copying the list."""
    return zip(*(islice(words, k, None) for k in range(n)), strict=False)


class LeakIndex:
    """The n-grams of benchmarks' questions, to be looked for in texts.

    Args:
        benchmarks: the benchmarks.

    Example:
        >>> from ctxft.evaluation.benchmarks import Benchmark, Question
        >>> index = LeakIndex([Benchmark("own", (Question("1", "Which vessel is it?", ("vein", "duct"), 0, "all"),), "")])
        >>> index.read("a text", "Which vessel is it? A vein.")
        >>> [(part.verdict, part.answered) for part in index.parts]
        [('short', True)]
    """

    def __init__(self, benchmarks: Iterable[Benchmark]) -> None:
        self.parts: list[ItemText] = []
        self.texts = 0
        self.words = 0
        # by length: n-gram -> the texts of items that have it, and whether it is the wording of their benchmark
        self._owners: dict[int, dict[Gram, list[tuple[ItemText, bool]]]] = {n: {} for n in range(1, NGRAM + 1)}
        for benchmark in benchmarks:
            self._add(benchmark)

    def _add(self, benchmark: Benchmark) -> None:
        owners: dict[Gram, list[ItemText]] = {}
        for question in benchmark.questions:
            answer = tuple(words_of(question.choices[question.answer]))
            for kind, text in (("question", question.question), ("context", question.context)):
                if kind == "question" or text:
                    words = tuple(words_of(text))
                    part = ItemText(benchmark.name, question.id, question.hash, kind, words, answer)
                    self.parts.append(part)
                    for gram in set(grams_of(words)) if len(words) >= NGRAM else {words} - {()}:
                        owners.setdefault(gram, []).append(part)
        for gram, parts in owners.items():
            common = len(parts) >= COMMON and len(gram) == NGRAM
            self._owners[len(gram)].setdefault(gram, []).extend((part, common) for part in parts)
            for part in parts:
                part.ngrams += not common

    def read(self, where: str, text: str) -> None:
        """Look for all questions in one whole text (not in passages, so that no n-gram is lost at a cut)."""
        words = words_of(text)
        self.texts += 1
        self.words += len(words)
        for n, owners in self._owners.items():
            if owners:
                for place, gram in enumerate(grams_of(words, n)):
                    for part, common in owners.get(gram, ()):
                        self._hit(part, gram, common, where, place, words[place + n : place + n + NEAR])

    def _hit(self, part: ItemText, gram: Gram, common: bool, where: str, place: int, after: Sequence[str]) -> None:
        if common:
            part.common.add(gram)
        else:
            part.matched.add(gram)
            part.last = (self.texts, place)
            if where not in part.places and len(part.places) < PLACES:
                part.places.append(where)
        # The end of a question is often the benchmark's wording, which also ends others: its own words must come before.
        ends = part.kind == "question" and part.words[-len(gram) :] == gram
        if ends and part.last[0] == self.texts and place - part.last[1] <= len(part.words) and part.answer:
            part.answered = part.answered or part.answer in grams_of(after, len(part.answer))


def find_leaks(benchmarks: Sequence[Benchmark], texts: Iterable[tuple[str, str]]) -> dict:
    """Look for the questions of benchmarks in training texts and prompts.

    Time is linear in the texts, which are taken one by one.

    Args:
        benchmarks: what will be evaluated.
        texts: (where it is, whole text): documents, prompts.

    Returns:
        {"ngram", "common_from" (questions), "texts", "words", "benchmarks": {name: {"counts": items of each verdict,
        "answered": leaked or short items whose right answer comes after them, "items": records of what is not clean}}}.

    Example:
        >>> find_leaks([load_benchmark("medqa", data)], [("doc 1", text)])["benchmarks"]  # doctest: +SKIP
        {'medqa': {'counts': {'leaked': 3, 'clean': 1270}, ...}}
    """
    index = LeakIndex(benchmarks)
    for where, text in texts:
        index.read(where, text)
    results = {}
    for benchmark in benchmarks:
        parts = [part for part in index.parts if part.benchmark == benchmark.name]
        worst_last = sorted(parts, key=lambda part: -VERDICTS.index(part.verdict))
        counts = Counter({part.id: part.verdict for part in worst_last}.values())
        results[benchmark.name] = {
            "counts": {verdict: counts[verdict] for verdict in VERDICTS},
            "answered": sum(part.answered for part in parts if part.verdict in ("leaked", "short")),
            "items": [part.to_json() for part in parts if part.verdict != "clean"],
        }
    sizes = {"ngram": NGRAM, "common_from": COMMON, "texts": index.texts, "words": index.words}
    return {**sizes, "benchmarks": results}


# --- a run ------------------------------------------------------------------------------------------------------------


def texts_read(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what the arms of a run read or will read: whole documents, put together from their passages, instructions, prompts.

    General text is read where a fraction of it is mixed in, instructions where an arm has that stage. Of the prompts all of
    the two prompt sets are yielded, sampled or not, and those that the trained arms recorded (control prompts are made for
    each passage).
    """
    if run.is_prepared:
        run.require_prepared()
    for kind, passages in {"document": run.passages, "general text": run.mixed}.items():
        for document, parts in groupby(passages, key=lambda passage: passage.document):
            yield f"{kind} {document}", "".join(part.text for part in parts)  # passages are slices that touch
    for row in run.text("instructions"):
        yield f"instruction {row['id']}", row["text"]
    prompts = {prompt.text: prompt.id for prompt_set in run.prompt_sets for prompt in prompt_set.prompts}
    for text, name in prompts.items():
        yield f"prompt {name}", text
    for file in sorted(run.folder.glob("arms/*/seed-*/prompts.jsonl")):
        arm, seed = file.parts[-3:-1]
        for _, row in read_jsonl(file):
            if row["text"] not in prompts:
                yield f"prompt {row['prompt']} ({arm}, {seed})", row["text"]


def look_for_leaks(run: Run) -> dict:
    """Look for a run's benchmark items in what its arms read; nothing is written.

    Returns:
        As ``find_leaks``, with "scores": for each benchmark, arm and seed that is evaluated the items and the accuracy of all
        of them, and of the clean ones (None if none is left).

    Raises:
        InputError: the run is of another config, or a benchmark cannot be loaded.
    """
    leaks = find_leaks(run.benchmarks, texts_read(run))
    tasks = [(name, *task) for name in leaks["benchmarks"] for task in run.evaluate_tasks]
    evaluated = [task for task in tasks if (run.eval_folder(*task[1:]) / f"{task[0]}.jsonl").exists()]
    leaks["scores"] = [_scores(run, leaks, *task) for task in evaluated]
    return leaks


def _scores(run: Run, leaks: dict, benchmark: str, arm: str, seed: int) -> dict:
    dirty = {item["id"] for item in leaks["benchmarks"][benchmark]["items"] if item["verdict"] in DIRTY}
    outcomes, scores = run.outcomes(benchmark, arm, seed), {"benchmark": benchmark, "arm": arm, "seed": seed}
    for which, left_out in (("all", set()), ("clean", dirty)):
        correct = [outcome["correct"] for outcome in outcomes if outcome["id"] not in left_out]
        scores |= {f"{which}_n": len(correct), f"{which}_accuracy": sum(correct) / len(correct) if correct else None}
    return scores


def leaks_text(leaks: dict) -> str:
    """Return both tables as text; the second is missing where nothing is evaluated yet."""
    read = f"{leaks['texts']} documents, instructions and prompts, {leaks['words']} words"
    tables = [leaks_table(leaks), *([clean_table(leaks)] if leaks["scores"] else [])]
    return "\n\n".join([read, *(table.to_string(index=False) for table in tables)])


def leaks_table(leaks: dict) -> pandas.DataFrame:
    """Return a row for each benchmark: items of each verdict, and found items whose answer follows them."""
    rows = [
        {"benchmark": name, "items": sum(leak["counts"].values()), **leak["counts"], "with answer": leak["answered"]}
        for name, leak in leaks["benchmarks"].items()
    ]
    return pandas.DataFrame(rows)


def clean_table(leaks: dict) -> pandas.DataFrame:
    """Return the accuracy of each arm on all items and on the clean ones, in per cent, the mean over its seeds."""
    groups = pandas.DataFrame(leaks["scores"]).groupby(["benchmark", "arm"], sort=False)
    means = {f"accuracy % {which}": (f"{which}_accuracy", "mean") for which in ("all", "clean")}
    rows = groups.agg(seeds=("seed", "size"), items=("all_n", "first"), clean=("clean_n", "first"), **means)
    rows[[*means]] = (100 * rows[[*means]]).round(1)
    return rows.reset_index()
