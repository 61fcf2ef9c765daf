"""Shorthands of the tests: each stage of a run called with a config, by a ``Run`` of its own, as by a process of its own."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import fields
from pathlib import Path

from ctxft import leakage
from ctxft.config import CorpusConfig, ExperimentConfig
from ctxft.data.corpus import measure, plan_parts, read_corpus, write_parts
from ctxft.data.documents import read_documents
from ctxft.data.passages import Passage
from ctxft.run.rows import PromptSets, build_rows
from ctxft.run.run import Run, TrainingData
from ctxft.run.tasks import Task


def prepare(config: ExperimentConfig) -> Path:
    """Prepare a run and return its folder."""
    return Run(config).prepare().folder


def prompt_sets_of(config: ExperimentConfig) -> PromptSets:
    """Return the experiment's prompt sets."""
    return Run(config).prompt_sets


def rows_of(config: ExperimentConfig, arm: str, seed: int, passages, tokenizer=None, general=()):
    """Return an arm's rows for some passages, and the prompts sampled for them."""
    rows, texts = build_rows(Run(config), arm, seed, passages, general)
    return rows, list(texts.records())


def passages_of(config: CorpusConfig, tokenizer, budget: int) -> tuple[list, list, Counter]:
    """Return the passages of a corpus: those to train on, those held out, and what was counted."""
    with tempfile.TemporaryDirectory() as place:
        counts: Counter = Counter()
        plan_parts(measure(read_documents(config, counts), counts), Path(place), "")
        list(write_parts(config, tokenizer, budget, Path(place)))
        kept, held_out, counts = read_corpus(config, Path(place))
        return [plain(passage) for passage in kept], [plain(passage) for passage in held_out], counts


def plain(passage: Passage) -> Passage:
    """Return a passage with its token ids and text read."""
    return Passage(**{field.name: getattr(passage, field.name) for field in fields(Passage)})


def read_passages(folder: Path, which: str = "passages") -> list:
    """Return the passages of a run folder."""
    return Run(folder).text(which)


def read_instruction_rows(folder: Path, which: str = "instructions") -> list[dict]:
    """Return the instruction rows of a run folder."""
    return Run(folder).text(which)


def load_benchmarks(config: ExperimentConfig) -> list:
    """Return the experiment's benchmarks."""
    return Run(config).benchmarks


def train_tasks(config: ExperimentConfig) -> list[Task]:
    """Return what is trained."""
    return Run(config).train_tasks


def evaluate_tasks(config: ExperimentConfig) -> list[Task]:
    """Return what is evaluated."""
    return Run(config).evaluate_tasks


def arm_folder(config: ExperimentConfig, arm: str, seed: int) -> Path:
    """Return the folder of a training."""
    return Run(config).arm_folder(arm, seed)


def eval_folder(config: ExperimentConfig, arm: str, seed: int) -> Path:
    """Return the folder of an evaluation."""
    return Run(config).eval_folder(arm, seed)


def is_trained(config: ExperimentConfig, arm: str, seed: int) -> bool:
    """Return whether a training is finished."""
    return Run(config).is_trained(arm, seed)


def is_examined(config: ExperimentConfig, arm: str, seed: int, benchmarks=None) -> bool:
    """Return whether an evaluation is finished."""
    return Run(config).is_evaluated(arm, seed)


def lesson_of(config: ExperimentConfig, arm: str, seed: int, passages=None, tokenizer=None) -> TrainingData:
    """Return what an arm trains on."""
    return Run(config).training_data(arm, seed)


def train_task(config: ExperimentConfig, arm: str, seed: int, quiet: bool = True) -> dict:
    """Train one arm with one seed."""
    return Run(config).train_task(arm, seed, quiet)


def evaluate_task(config: ExperimentConfig, arm: str, seed: int) -> dict:
    """Evaluate one arm of one seed."""
    return Run(config).evaluate_task(arm, seed)


def train_all(config: ExperimentConfig, workers: int | None = None, tick=None) -> Path:
    """Train all arms and return the run folder."""
    return Run(config).train(workers, tick).folder


def evaluate_all(config: ExperimentConfig, workers: int | None = None) -> Path:
    """Evaluate all arms and return the run folder."""
    return Run(config).evaluate(workers).folder


def ensure_run(config: ExperimentConfig, workers: int | None = None) -> Path:
    """Train and evaluate all arms and return the run folder."""
    return Run(config).train(workers).evaluate(workers).folder


def check_leaks(config: ExperimentConfig) -> dict:
    """Look for benchmark items in what the arms read."""
    return leakage.look_for_leaks(Run(config))


def texts_of(config: ExperimentConfig):
    """Yield what the arms read."""
    return leakage.texts_read(Run(config))
