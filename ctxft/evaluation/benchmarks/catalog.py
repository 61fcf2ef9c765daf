"""A name or a path goes in; the benchmark of that name comes out, whichever loader knows it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ctxft.evaluation.benchmarks.financial import (
    CAUSAL20,
    MULTIFIN,
    PHRASEBANK,
    load_causal20,
    load_fiqa,
    load_fiqa_absa,
    load_multifin,
    load_phrasebank,
)
from ctxft.evaluation.benchmarks.medical import MMLU_NAMES, load_medmcqa, load_medqa, load_mmlu, load_pubmedqa
from ctxft.evaluation.benchmarks.records import Benchmark, evenly, in_turn, questions_of
from ctxft.evaluation.benchmarks.requests import examples_for
from ctxft.storage import InputError, nearest, read_jsonl
from ctxft.world.exams import EXAMS, practice_questions

LOADERS = {  # name -> function (name, data, revision, dev) -> Benchmark
    **dict.fromkeys(MMLU_NAMES, load_mmlu),
    "medqa": load_medqa,
    "medmcqa": load_medmcqa,
    "pubmedqa": load_pubmedqa,
    "pubmedqa-labelled": load_pubmedqa,
    "fiqa": load_fiqa,
    "fiqa-absa": load_fiqa_absa,
    **dict.fromkeys(CAUSAL20, load_causal20),
    **dict.fromkeys(MULTIFIN, load_multifin),
    **dict.fromkeys(PHRASEBANK, load_phrasebank),
}
NAMES = (*EXAMS, *LOADERS)


def load_benchmark(
    name: str, data: Path | None = None, revision: str | None = None, limit: int | None = None, shots: int = 0
) -> Benchmark:
    """Load a benchmark by name, or a user's own questions by path.

    Args:
        name: one of ``NAMES``, or the path of a .jsonl file with id, question, choices, answer (an index from 0, or the
            text of a choice) and optionally subject and context on each line.
        data: a folder that holds benchmark files, in the layouts of their authors or of the hub; None fetches them from
            the Hugging Face hub.
        revision: a commit or tag of the hub data set; None takes its main branch.
        limit: at most so many questions, taken in turn from each subject, or evenly spaced from sets of labelled texts;
            None takes all.
        shots: solved questions to be shown before each; MMLU has five a subject, one's own file x.jsonl those of
            x.dev.jsonl beside it; the other sets have none.

    Returns:
        The benchmark. Its ``note`` is not empty if the source does not hold the published number of items.

    Raises:
        InputError: unknown name, file missing or ambiguous, hub out of reach or gated, columns missing, a record that is
            no question, more shots than there are solved questions.

    Example:
        >>> load_benchmark("practice-mmlu", limit=3).chance
        0.25
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, found {limit}.")
    data = Path(data) if data is not None else None
    if name in EXAMS:
        rows = ((f"practice world, record {n}", row) for n, row in enumerate(practice_questions(name), start=1))
        benchmark = Benchmark(name, questions_of(rows, "practice world"), "practice world")
    elif name in LOADERS:
        benchmark = LOADERS[name](name, data, revision, shots > 0)
    else:
        benchmark = _load_own(name, shots > 0)
    choose = evenly if benchmark.form == "labels" else in_turn
    benchmark = dataclasses.replace(benchmark, questions=choose(benchmark.questions, limit))
    _check_shots(benchmark, shots)
    return benchmark


def _load_own(name: str, dev: bool) -> Benchmark:
    path = Path(name)
    if path.suffix != ".jsonl":
        known = ", ".join(NAMES)
        raise InputError(
            f"unknown benchmark '{name}'{nearest(name, NAMES)}; known: {known}, or the path of a .jsonl file."
        )
    if path.stem in NAMES:
        raise InputError(f"{path}: '{path.stem}' is the name of a built-in benchmark: rename the file.")
    questions = questions_of(((f"{path}, line {n}", row) for n, row in read_jsonl(path)), str(path))
    if not dev:
        return Benchmark(path.stem, questions, str(path))
    beside = path.with_suffix(".dev.jsonl")
    if not beside.exists():
        raise InputError(f"{beside} does not exist: put solved questions there, or set evaluation.shots to 0.")
    examples = questions_of(((f"{beside}, line {n}", row) for n, row in read_jsonl(beside)), str(beside))
    asked = {question.hash: question.id for question in questions}
    if shown := [example.id for example in examples if example.hash in asked]:
        raise InputError(
            f"{beside}: '{shown[0]}' is also a question of {path}: a question that is asked must not be shown."
        )
    return Benchmark(path.stem, questions, str(path), dev=examples)


def _check_shots(benchmark: Benchmark, shots: int) -> None:
    if shots < 0:
        raise InputError(f"shots must be 0 or more, found {shots}.")
    if not shots:
        return
    if not benchmark.dev:
        why = "MedQA publishes training questions only" if benchmark.name == "medqa" else "it has no such split here"
        raise InputError(
            f"benchmark '{benchmark.name}' has no solved questions to show ({why}): set evaluation.shots to 0 for it."
        )
    fewest = min(len(examples_for(benchmark, question)) for question in benchmark.questions)
    if fewest < shots:
        raise InputError(
            f"benchmark '{benchmark.name}' has {fewest} solved questions to show, but {shots} are asked for: lower"
            " evaluation.shots."
        )
