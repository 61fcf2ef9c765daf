"""A prepared run flows in; leaks.json flows out: which benchmark items stand in what its arms read, prompts included.

passages.jsonl, general.jsonl, instructions.jsonl, prompt sets, arms/*/seed-*/prompts.jsonl + benchmarks -> leaks.json
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pandas

from ctxft.config import ExperimentConfig
from ctxft.evaluation.benchmarks import Benchmark
from ctxft.evaluation.outcomes import read_outcomes
from ctxft.leakage import VERDICTS, find_leaks, metrics_with_clean
from ctxft.run.examine import load_benchmarks
from ctxft.run.instruct import has_instructions, read_instruction_rows
from ctxft.run.rows import prompt_sets_of
from ctxft.run.tasks import eval_folder, evaluate_tasks
from ctxft.storage import InputError, from_mapping, parse_json, read_checked, write_json


def texts_of(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Yield what the arms of a prepared run read: whole documents, put together from their passages, instructions, prompts.

    General text is read where a share of it is mixed in, instructions where an arm has that stage. Of the prompts all of the
    two prompt sets are yielded, drawn or not, and those that the trained arms recorded (control prompts are made for each
    passage).

    Raises:
        InputError: the run is not prepared.
    """
    path = config.folder / "passages.jsonl"
    if not path.exists():
        raise InputError(f"{config.folder} is not a run yet (passages.jsonl is missing): run `ctxft train` first.")
    read = [("document", path)]
    if config.general and config.general.share:
        read.append(("general text", config.folder / "general.jsonl"))
    for kind, file in read:
        for document, rows in groupby(_lines(file), key=lambda row: row["document"]):
            yield f"{kind} {document}", "".join(row["text"] for row in rows)  # passages are slices that touch
    if has_instructions(config.arms):
        for row in read_instruction_rows(config.folder):
            yield f"instruction {row['id']}", row["text"]
    told = set()
    for prompt_set in prompt_sets_of(config):
        for prompt in prompt_set.prompts:
            told.add(prompt.text)
            yield f"prompt {prompt.id}", prompt.text
    for file in sorted(config.folder.glob("arms/*/seed-*/prompts.jsonl")):
        arm, seed = file.parts[-3:-1]
        for row in _lines(file):
            if row["text"] not in told:
                yield f"prompt {row['prompt']} ({arm}, {seed})", row["text"]


def _lines(path: Path) -> Iterator[dict]:
    """Yield the objects of a JSON Lines file line by line: a corpus need not fit in memory."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError:
                raise InputError(f"{path}, line {number} is not UTF-8: it was changed after it was made.") from None
            yield parse_json(text, f"{path}, line {number}")


def check_leaks(config: ExperimentConfig) -> dict:
    """Look for the experiment's benchmark items in what its arms read, and write leaks.json into the run folder.

    Returns:
        As ``ctxft.leakage.find_leaks``, with "scores": a row for each benchmark, arm and seed that is examined.

    Raises:
        InputError: the run is not prepared, or a benchmark cannot be loaded.
    """
    leaks = look_for_leaks(config)
    write_json(config.folder / "leaks.json", leaks)
    return leaks


def look_for_leaks(config: ExperimentConfig) -> dict:
    """Return what ``check_leaks`` writes, and write nothing."""
    benchmarks = load_benchmarks(config)
    leaks = find_leaks(benchmarks, texts_of(config))
    leaks["scores"] = [row for benchmark in benchmarks for row in _scores(config, benchmark, leaks)]
    return leaks


def _scores(config: ExperimentConfig, benchmark: Benchmark, leaks: dict) -> Iterator[dict]:
    for arm, seed in evaluate_tasks(config):
        path = eval_folder(config, arm, seed) / f"{benchmark.name}.jsonl"
        if not path.exists():
            continue
        found = metrics_with_clean(read_outcomes(path), benchmark, leaks)
        row = {"benchmark": benchmark.name, "arm": arm, "seed": seed}
        for which, values in found.items():
            row |= {f"{which}_{key}": (values or {}).get(key) for key in ("n", "accuracy", "macro_f1")}
        yield row


def config_of_run(folder: Path, data: str | None = None) -> ExperimentConfig:
    """Return the experiment that a run folder holds.

    Args:
        folder: the run folder; it must lie below the run root.
        data: folder with benchmark files in place of the one that the run names.
    """
    config = from_mapping(
        ExperimentConfig, read_checked(folder / "manifest.json")["config"], str(folder / "manifest.json")
    )
    config.name = folder.resolve().name
    config.evaluation.data = data or config.evaluation.data
    if folder.resolve() != config.folder.resolve():
        raise InputError(
            f"{folder} is not below the run root {config.folder.parent}: set CTXFT_RUNS to {folder.parent}."
        )
    return config


def leaks_text(leaks: dict) -> str:
    """Return both tables as text; the second is missing where nothing is examined yet."""
    read = f"{leaks['texts']} documents, instructions and prompts, {leaks['words']} words"
    tables = [leaks_table(leaks), *([clean_table(leaks)] if leaks["scores"] else [])]
    return "\n\n".join([read, *(table.to_string(index=False) for table in tables)])


def leaks_table(leaks: dict) -> pandas.DataFrame:
    """Return a row for each benchmark: items of each verdict, and found items whose answer stands behind them."""
    rows = []
    for name, found in leaks["benchmarks"].items():
        counts = {verdict: found["counts"][verdict] for verdict in VERDICTS}
        rows.append({"benchmark": name, "items": sum(counts.values()), **counts, "with answer": found["answered"]})
    return pandas.DataFrame(rows)


def clean_table(leaks: dict) -> pandas.DataFrame:
    """Return the accuracy of each arm on all items and on the clean ones, in per cent, the mean over its seeds."""
    table = pandas.DataFrame(leaks["scores"])
    groups = table.groupby(["benchmark", "arm"], sort=False)
    rows = groups.agg(seeds=("seed", "size"), items=("all_n", "first"), clean=("clean_n", "first"))
    for which in ("all", "clean"):
        rows[f"accuracy % {which}"] = (100 * groups[f"{which}_accuracy"].mean()).round(1)
    return rows.reset_index()
