"""Look for benchmark items in what the arms of a run read, prompts included; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import pandas

from ctxft.evaluation.benchmarks import Benchmark
from ctxft.leakage import VERDICTS, find_leaks, metrics_with_clean
from ctxft.storage import read_jsonl

if TYPE_CHECKING:
    from ctxft.run.run import Run


def texts_read(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what the arms of a run read or will read: whole documents, put together from their passages, instructions, prompts.

    General text is read where a fraction of it is mixed in, instructions where an arm has that stage. Of the prompts all of
    the two prompt sets are yielded, sampled or not, and those that the trained arms recorded (control prompts are made for
    each passage).
    """
    if run.manifest.files:
        run.require_prepared()
    texts = {"document": run.passages, "general text": run.mixed}
    for kind, passages in texts.items():
        for document, parts in groupby(passages, key=lambda passage: passage.document):
            yield f"{kind} {document}", "".join(part.text for part in parts)  # passages are slices that touch
    for row in run.text("instructions"):
        yield f"instruction {row['id']}", row["text"]
    seen = set()
    for prompt in (prompt for prompt_set in run.prompt_sets for prompt in prompt_set.prompts):
        seen.add(prompt.text)
        yield f"prompt {prompt.id}", prompt.text
    for file in sorted(run.folder.glob("arms/*/seed-*/prompts.jsonl")):
        arm, seed = file.parts[-3:-1]
        for _, row in read_jsonl(file):
            if row["text"] not in seen:
                yield f"prompt {row['prompt']} ({arm}, {seed})", row["text"]


def look_for_leaks(run: Run) -> dict:
    """Look for a run's benchmark items in what its arms read; nothing is written.

    Returns:
        As ``ctxft.leakage.find_leaks``, with "scores": a row for each benchmark, arm and seed that is evaluated.

    Raises:
        InputError: the run is of another config, or a benchmark cannot be loaded.
    """
    benchmarks = run.benchmarks
    leaks = find_leaks(benchmarks, texts_read(run))
    leaks["scores"] = [row for benchmark in benchmarks for row in _scores(run, benchmark, leaks)]
    return leaks


def _scores(run: Run, benchmark: Benchmark, leaks: dict) -> Iterator[dict]:
    for arm, seed in run.evaluate_tasks:
        if not (run.eval_folder(arm, seed) / f"{benchmark.name}.jsonl").exists():
            continue
        row = {"benchmark": benchmark.name, "arm": arm, "seed": seed}
        for which, values in metrics_with_clean(run.outcomes(benchmark.name, arm, seed), benchmark, leaks).items():
            row |= {f"{which}_{key}": (values or {}).get(key) for key in ("n", "accuracy", "macro_f1")}
        yield row


def leaks_text(leaks: dict) -> str:
    """Return both tables as text; the second is missing where nothing is evaluated yet."""
    read = f"{leaks['texts']} documents, instructions and prompts, {leaks['words']} words"
    tables = [leaks_table(leaks), *([clean_table(leaks)] if leaks["scores"] else [])]
    return "\n\n".join([read, *(table.to_string(index=False) for table in tables)])


def leaks_table(leaks: dict) -> pandas.DataFrame:
    """Return a row for each benchmark: items of each verdict, and found items whose answer follows them."""
    rows = []
    for name, result in leaks["benchmarks"].items():
        counts = {verdict: result["counts"][verdict] for verdict in VERDICTS}
        rows.append({"benchmark": name, "items": sum(counts.values()), **counts, "with answer": result["answered"]})
    return pandas.DataFrame(rows)


def clean_table(leaks: dict) -> pandas.DataFrame:
    """Return the accuracy of each arm on all items and on the clean ones, in per cent, the mean over its seeds."""
    table = pandas.DataFrame(leaks["scores"])
    groups = table.groupby(["benchmark", "arm"], sort=False)
    means = {f"accuracy % {which}": (f"{which}_accuracy", "mean") for which in ("all", "clean")}
    rows = groups.agg(seeds=("seed", "size"), items=("all_n", "first"), clean=("clean_n", "first"), **means)
    rows[[*means]] = (100 * rows[[*means]]).round(1)
    return rows.reset_index()
