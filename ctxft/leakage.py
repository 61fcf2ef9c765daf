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
text that a question is about (PubMedQA's abstract) is looked for like the question, separately. In scripts without spaces
between words a character counts half a word (``ctxft.data.ngrams``).
"""

from __future__ import annotations

import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import pandas
from tqdm import tqdm

from ctxft.data.ngrams import NGRAM, ngram_ends, run_hashes, word_hashes, word_pieces, words_of
from ctxft.evaluation.benchmarks.records import Benchmark
from ctxft.run.processes import count_workers, progress_bar, run_parallel
from ctxft.storage import read_json, read_jsonl, write_json

if TYPE_CHECKING:
    from ctxft.data.passages import Passage
    from ctxft.run.run import Run

HALF = 0.5  # of its n-grams: an item of which more were found is leaked
COMMON = 4  # an n-gram that N questions of a benchmark share is the benchmark's wording
NEAR = 100  # words after a question in which its answer is looked for: other choices may come first
PLACES = 3  # places kept for each item
BATCH = 1 << 17  # words that are looked at together
TABLE = 24  # bits of a hash by which most n-grams of a text are passed over
SHARE = 4000  # passages, instructions: what a process looks at before the progress bar moves
MANY = 50  # shares, some 200 MB, for which several processes are worth their start

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
        short: it has no whole n-gram, so it is looked for as it is.
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
    short: bool = False
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
        if self.short:
            return "short"
        return "leaked" if len(self.matched) > HALF * self.ngrams else "partial"

    def to_json(self) -> dict:
        """Return the record as plain values, with one of the n-grams found as an example."""
        values = {key: getattr(self, key) for key in ("id", "hash", "kind", "verdict", "answered", "places")}
        counts = {"words": len(self.words), "ngrams_found": len(self.matched), "common_found": len(self.common)}
        share = len(self.matched) / self.ngrams if self.ngrams else 0.0
        return {**values, **counts, "share": share, "example": " ".join(min(self.matched or self.common, default=()))}

    def found(self, where: str, at: tuple[int, int], gram: Gram, common: bool, after: Sequence[str]) -> None:
        """Note that one of its n-grams stands in a text.

        Args:
            where: the text.
            at: number of the text, and of the n-gram's first word in it.
            gram: the n-gram, or the whole question.
            common: whether it is the benchmark's wording.
            after: the words that follow it.
        """
        if common:
            self.common.add(gram)
        else:
            self.matched.add(gram)
            self.last = at
            if where not in self.places and len(self.places) < PLACES:
                self.places.append(where)
        # The end of a question is often the benchmark's wording, which also ends others: its own words must come before.
        ends = self.kind == "question" and self.words[-len(gram) :] == gram
        if (
            ends
            and not self.answered
            and self.answer
            and self.last[0] == at[0]
            and at[1] - self.last[1] <= len(self.words)
        ):
            self.answered = f" {' '.join(self.answer)} " in f" {' '.join(after)} "


class LeakIndex:
    """The n-grams of benchmarks' questions, to be looked for in texts.

    Args:
        benchmarks: the benchmarks.

    Example:
        >>> from ctxft.evaluation.benchmarks import Benchmark, Question
        >>> index = LeakIndex([Benchmark("own", (Question("1", "Which vessel is it?", ("vein", "duct"), 0, "all"),), "")])
        >>> index.read("a text", "Which vessel is it? A vein.")
        >>> [(part.verdict, part.answered) for part in index.found()]
        [('short', True)]
    """

    def __init__(self, benchmarks: Iterable[Benchmark]) -> None:
        self.texts = self.words = 0
        self._parts: list[ItemText] = []
        self._waiting: list[str] = []  # words that were not looked at yet
        self._begun: list[tuple[int, int, str]] = []  # of each text that they are of: its first word, number and name
        columns: list[tuple[numpy.ndarray, numpy.ndarray]] = []
        for benchmark in benchmarks:
            for question in benchmark.questions:
                answer = tuple(words_of(question.choices[question.answer]))
                for kind, text in (("question", question.question), ("context", question.context)):
                    if kind == "question" or text:
                        words = tuple(map(sys.intern, words_of(text)))
                        part = ItemText(benchmark.name, question.id, question.hash, kind, words, answer)
                        columns.append(self._add(part))
        hashes = numpy.concatenate([numpy.zeros(0, numpy.uint64), *(own for own, _ in columns)])
        starts = numpy.concatenate([numpy.zeros(0, int), *(first for _, first in columns)])
        parts = numpy.repeat(numpy.arange(len(columns)), [len(first) for _, first in columns])
        sizes = numpy.array([len(part.words) * part.short for part in self._parts], int)[parts]
        names = pandas.Series([part.benchmark for part in self._parts], dtype="category").cat.codes.to_numpy()[parts]
        grams = pandas.DataFrame({"hash": hashes, "part": parts, "start": starts, "size": sizes, "benchmark": names})
        sharing = grams.groupby(["size", "hash", "benchmark"])["part"].transform("size").to_numpy()
        grams["common"] = (sharing >= COMMON) & (sizes == 0)
        for part, count in zip(
            self._parts, numpy.bincount(parts[~grams["common"]], minlength=len(sizes)), strict=False
        ):
            part.ngrams = int(count)
        grams, self._grams = grams.sort_values("hash"), {}
        for size in numpy.unique(sizes).tolist():  # words of questions that are looked for whole; 0: n-grams
            table = grams.loc[grams["size"] == size]
            self._grams[size] = [table[name].to_numpy() for name in ("hash", "part", "start", "common")]
        self._possible = numpy.zeros(1 << TABLE, bool)  # by the first bits of a hash: whether a question has it
        self._possible[hashes >> numpy.uint64(64 - TABLE)] = True

    def _add(self, part: ItemText) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return the hash of each n-gram of a part, or of all of its words, and where it starts."""
        self._parts.append(part)
        hashes = word_hashes(part.words)
        ends = ngram_ends(hashes)
        part.short = not len(ends)
        if part.short:
            ends = numpy.array([len(hashes)] * (len(hashes) > 0), int)
        return numpy.unique(run_hashes(hashes, ends), return_index=True)

    def read(self, where: str, text: str) -> None:
        """Look for all questions in one whole text (not in passages, so that no n-gram is lost at a cut)."""
        self.texts += 1
        self._begun.append((len(self._waiting), self.texts, where))
        for words in word_pieces(text):
            self.words += len(words)
            self._waiting += words
            if len(self._waiting) >= BATCH:
                self._look(NEAR + 2 * NGRAM)

    def found(self) -> list[ItemText]:
        """Return what was found of each question, and of the text that it is about."""
        self._look(0)
        return self._parts

    def _look(self, keep: int) -> None:
        """Look for n-grams that begin in the waiting words, but for some of the last, whose text may continue."""
        words, until = self._waiting, max(len(self._waiting) - keep, 0)
        hashes, begins = word_hashes(words), [begin for begin, _, _ in self._begun]
        for size, (known, parts, starts, common) in self._grams.items():
            ends = numpy.arange(size, len(words) + 1) if size else ngram_ends(hashes)
            runs = run_hashes(hashes, ends[:until])
            places = numpy.flatnonzero(self._possible[runs >> numpy.uint64(64 - TABLE)])
            first, last = (numpy.searchsorted(known, runs[places], side) for side in ("left", "right"))
            hits = numpy.flatnonzero(first < last)
            hits = zip(*(column[hits].tolist() for column in (places, ends[places], first, last)), strict=True)
            for place, end, low, high in hits:
                text = bisect_right(begins, place)
                stop = begins[text] if text < len(begins) else len(words)
                begin, number, where = self._begun[text - 1]
                gram, after = tuple(words[place:end]), words[end : min(end + NEAR, stop)]
                for row in range(low, high) if end <= stop else ():
                    part = self._parts[parts[row]]
                    if part.words[starts[row] : starts[row] + len(gram)] == gram:
                        part.found(where, (number, place - begin), gram, bool(common[row]), after)
        text = bisect_right(begins, until) - 1 if until < len(words) else len(begins)
        self._begun = [(begin - until, number, where) for begin, number, where in self._begun[max(text, 0) :]]
        self._waiting = words[until:]

    def take(self) -> dict:
        """Return what was found as plain values, for ``add``, and forget it."""
        parts = [
            [number, sorted(part.matched), sorted(part.common), part.answered, part.places]
            for number, part in enumerate(self.found())
            if part.matched or part.common
        ]
        taken = {"texts": self.texts, "words": self.words, "parts": parts}
        self.texts = self.words = 0
        for number, *_ in parts:
            part = self._parts[number]
            part.matched, part.common, part.answered, part.places, part.last = set(), set(), False, [], (-1, 0)
        return taken

    def add(self, taken: dict) -> None:
        """Add what another index of the same benchmarks found in the texts that follow."""
        self.texts += taken["texts"]
        self.words += taken["words"]
        for number, matched, common, answered, places in taken["parts"]:
            part = self._parts[number]
            part.matched.update(map(tuple, matched))
            part.common.update(map(tuple, common))
            part.answered |= answered
            part.places = list(dict.fromkeys([*part.places, *places]))[:PLACES]

    def result(self) -> dict:
        """Return what ``find_leaks`` says."""
        results = {}
        for part in self.found():
            results.setdefault(part.benchmark, []).append(part)
        sizes = {"ngram": NGRAM, "common_from": COMMON, "texts": self.texts, "words": self.words}
        return {**sizes, "benchmarks": {name: _summary(parts) for name, parts in results.items()}}


def _summary(parts: list[ItemText]) -> dict:
    worst_last = sorted(parts, key=lambda part: -VERDICTS.index(part.verdict))
    counts = Counter({part.id: part.verdict for part in worst_last}.values())
    return {
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "answered": sum(part.answered for part in parts if part.verdict in ("leaked", "short")),
        "items": [part.to_json() for part in parts if part.verdict != "clean"],
    }


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
    return index.result()


# --- a run ------------------------------------------------------------------------------------------------------------


def documents_of(passages: Sequence[Passage], begin: int = 0, end: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of the documents that begin among some passages; a document is cut where passages are missing.

    Args:
        passages: slices of the documents, in order; consecutive ones touch.
        begin, end: numbers of the passages among which a document begins.
    """
    end = len(passages) if end is None else end
    before, parts = passages[begin - 1] if begin else None, []
    for place in range(begin, len(passages)) if begin < end else ():
        passage = passages[place]
        if before is None or (before.document, before.index + 1) != (passage.document, passage.index):
            if parts:
                yield parts[0].document, "".join(part.text for part in parts)
            if place >= end:
                return
            parts = [passage]
        elif parts:
            parts.append(passage)
        before = passage
    if parts:
        yield parts[0].document, "".join(part.text for part in parts)


def texts_read(run: Run, share: int = 0, shares: int = 1) -> Iterator[tuple[str, str]]:
    """Yield what the arms of a run read or will read: whole documents, put together from their passages, instructions, prompts.

    General text is read where a fraction of it is mixed in, instructions where an arm has that stage. Of the prompts all of
    the two prompt sets are yielded, sampled or not, and those that the trained arms recorded (control prompts are made for
    each passage).

    Args:
        run: the run.
        share, shares: which of N shares; all of them, one after another, are the whole in its order.
    """
    sources = {"document": run.passages, "general text": run.mixed, "instruction": run.text("instructions")}
    total, before = sum(map(len, sources.values())), 0
    for kind, rows in sources.items():
        begin, end = (min(max(total * k // shares - before, 0), len(rows)) for k in (share, share + 1))
        texts = ((row["id"], row["text"]) for row in rows[begin:end]) if kind == "instruction" else None
        for name, text in texts or documents_of(rows, begin, end):
            yield f"{kind} {name}", text
        before += len(rows)
    if share == shares - 1:
        yield from _prompts_read(run)


def _prompts_read(run: Run) -> Iterator[tuple[str, str]]:
    prompts = {prompt.text: prompt.id for prompt_set in run.prompt_sets for prompt in prompt_set.prompts}
    for text, name in prompts.items():
        yield f"prompt {name}", text
    for file in sorted(run.folder.glob("arms/*/seed-*/prompts.jsonl")):
        arm, seed = file.parts[-3:-1]
        for _, row in read_jsonl(file):
            if row["text"] not in prompts:
                yield f"prompt {row['prompt']} ({arm}, {seed})", row["text"]


def write_share(run: Run, folder: Path, worker: int, workers: int, shares: int) -> None:
    """Look for a run's benchmark items in some shares of its texts, and write what is found of each into a folder."""
    index = LeakIndex(run.benchmarks)
    for share in range(worker, shares, workers):
        for where, text in texts_read(run, share, shares):
            index.read(where, text)
        write_json(folder / f"{share}.json", index.take())


def _look_in_parallel(run: Run, folder: Path, workers: int, shares: int, bar: tqdm) -> None:
    command = [sys.executable, "-m", "ctxft", "leaks-in", run.wanted.model_dump_json(), str(folder)]
    variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CTXFT_RUNS": str(run.folder.parent)}
    commands = [[*command, str(worker), str(workers), str(shares)] for worker in range(workers)]
    run_parallel("leaks", commands, variables, lambda: bar.update(len([*folder.glob("*.json")]) - bar.n))


def look_for_leaks(run: Run, workers: int | None = None) -> dict:
    """Look for a run's benchmark items in what its arms read; nothing is written.

    Args:
        run: the run.
        workers: processes (None: one a core for a large corpus, else this one).

    Returns:
        As ``find_leaks``, with "scores": for each benchmark, arm and seed that is evaluated the items and the accuracy of all
        of them, and of the clean ones (None if none is left).

    Raises:
        InputError: the run is of another config, or a benchmark cannot be loaded.
    """
    if run.is_prepared:
        run.require_prepared()
    index, rows = LeakIndex(run.benchmarks), len(run.passages) + len(run.mixed) + len(run.text("instructions"))
    shares = max(1 + rows // SHARE, workers or 1)
    processes = count_workers(workers, 1, "cpu") if workers or shares >= MANY else 1
    with progress_bar(shares, "leaks", "share", hidden=shares == 1) as bar, tempfile.TemporaryDirectory() as folder:
        if run.is_prepared and processes > 1:
            _look_in_parallel(run, Path(folder), processes, shares, bar)
        for share in range(shares):
            if (path := Path(folder) / f"{share}.json").exists():
                index.add(read_json(path))
                continue
            for where, text in texts_read(run, share, shares):
                index.read(where, text)
            bar.update()
    leaks = index.result()
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
