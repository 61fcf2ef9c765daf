"""A run folder flows in; what its results were made from flows out, each made again at its first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig
from ctxft.data.passages import Passage, passages_of
from ctxft.data.rows import text_budget
from ctxft.evaluation.benchmarks import Benchmark, benchmark_names, load_benchmark
from ctxft.models import shared_tokenizer
from ctxft.run.leaks import config_of_run
from ctxft.run.prepare import pinned
from ctxft.run.rows import longest_of, read_passages
from ctxft.run.tasks import Lesson, lesson_of
from ctxft.storage import InputError, read_checked

Check = tuple[str, Callable[[], str]]  # what is looked at, and what says that it follows, or raises


class Run:
    """A run folder with what is made again from its inputs, each at its first use.

    Args:
        folder: the run folder, below the run root.
        data: folder with benchmark files in place of the one that the run names.

    Raises:
        InputError: the manifest is damaged, or the folder does not lie below the run root.
    """

    def __init__(self, folder: Path, data: str | None = None) -> None:
        self.folder, self.manifest = folder, read_checked(folder / "manifest.json")
        self.config: ExperimentConfig = pinned(config_of_run(folder, data), self.manifest)
        self.hashes: dict[str, str] = self.manifest["hashes"]
        self._benchmarks: dict[str, Benchmark] = {}
        self._lessons: dict[tuple[str, int], Lesson] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return shared_tokenizer(self.config.model, self.config.revision)

    @cached_property
    def budget(self) -> int:
        """Text tokens that a passage may have."""
        train = self.config.train
        return text_budget(train.window, longest_of(self.config, self.tokenizer), train.min_text_tokens)

    @cached_property
    def cut(self) -> tuple[list[Passage], list[Passage], dict]:
        """The corpus, cut again: passages, those held out, counts."""
        return passages_of(self.config.corpus, self.tokenizer, self.budget)

    def lesson(self, arm: str, seed: int) -> Lesson:
        """What an arm's last stage reads, laid out again from the passages of the folder."""
        if (arm, seed) not in self._lessons:
            self._lessons[arm, seed] = lesson_of(self.config, arm, seed, read_passages(self.folder), self.tokenizer)
        return self._lessons[arm, seed]

    @cached_property
    def general(self) -> tuple[list[Passage], list[Passage], dict]:
        """The general text, cut again."""
        return passages_of(self.config.general, self.tokenizer, self.budget)

    def benchmark(self, name: str, record: dict) -> Benchmark:
        """Load a benchmark that was examined, in the revision and from the file that its record names."""
        if name not in self._benchmarks:
            options = self.config.evaluation
            own = [path for path in options.benchmarks if path not in benchmark_names() and Path(path).stem == name]
            source = name if name in benchmark_names() else (own or [record["source"]])[0]
            how = {"data": options.data, "limit": options.limit, "num_fewshot": options.shots}
            self._benchmarks[name] = load_benchmark(source, revision=record["revision"], **how)
        return self._benchmarks[name]


def must_equal(found: Sequence, wanted: Sequence, where: object, why: str) -> None:
    """Raise InputError that names the first of two rows of things which differ; ``why`` says what it should follow from."""
    if len(found) != len(wanted):
        raise InputError(f"{where} holds {len(found)} lines where {why} gives {len(wanted)}.")
    for number, (one, other) in enumerate(zip(found, wanted, strict=True), start=1):
        if one != other:
            raise InputError(f"{where}, line {number} is not what {why} gives.")
