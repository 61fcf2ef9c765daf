"""Read a run folder into one record, from which every table, figure and page is made; no model is loaded.

It holds manifest.json, ledger.json, arms/<arm>/seed-<n>/log.jsonl, and evals/<arm>/seed-<n>/ with metrics.json and one
<benchmark>.jsonl of outcomes per benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas

from ctxft.prompts import get_arm, sort_arms
from ctxft.statistics import Outcomes, common_seeds
from ctxft.storage import InputError, check_known, hash_file, is_there, read_checked, read_json, read_jsonl

NEEDED = {"id": str, "hash": str, "subject": str, "correct": bool}  # what the report takes from an outcome


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds.

    Args:
        folder: the run folder.
        manifest: name, config, versions, hashes and code revision of the run.
        ledger: names to counts of tokens and passages; empty for a run without training.
        metrics: arm -> seed -> the evaluation's metrics.json.
        outcomes: benchmark -> arm -> seed -> an outcome per item.
        logs: a row per optimizer step with arm, seed, step, loss (nats per target token), ...; empty without training.
    """

    folder: Path
    manifest: dict
    ledger: dict
    metrics: dict[str, dict[int, dict]]
    outcomes: Mapping[str, Outcomes]
    logs: pandas.DataFrame

    def metrics_of(self, benchmark: str, arm: str | None = None) -> list[dict]:
        """Return a benchmark's metrics of every arm and seed, or of one arm in the seeds that all trained arms have."""
        if arm is not None:
            common = common_seeds(self.outcomes[benchmark])[arm]
            return [self.metrics[arm][seed]["benchmarks"][benchmark] for seed in common]
        every = [metrics["benchmarks"] for seeds in self.metrics.values() for metrics in seeds.values()]
        return [metrics[benchmark] for metrics in every if benchmark in metrics]

    def notes(self) -> list[str]:
        """Return what to know about the questions of each benchmark, such as that they are fewer than published."""
        notes = {name: {one.get("note") for one in self.metrics_of(name)} for name in self.outcomes}
        return [f"{name}: {note}" for name, texts in notes.items() for note in sorted(filter(None, texts))]

    def baselines(self, benchmark: str) -> dict[str, float]:
        """Return the accuracy (0 to 1) of guessing, and of always giving the most common answer."""
        return {name: self.metrics_of(benchmark)[0][name] for name in ("chance", "majority")}


Source = RunRecord | str | os.PathLike  # a run that is read already, a run folder, or a Run


def as_record(run: Source) -> RunRecord:
    """Return a run that is read already as it is, and read a folder or a Run."""
    return run if isinstance(run, RunRecord) else read_run(run)


def read_run(
    folder: str | os.PathLike,
    seeds: Collection[int] | None = None,
    benchmarks: Collection[str] | None = None,
    arms: Collection[str] | None = None,
) -> RunRecord:
    """Read all that a report needs from a run folder.

    Args:
        folder: the run folder, or a Run.
        seeds: only these seeds of the trained arms (base is evaluated once and always read); None reads all.
        benchmarks: only the outcomes of these, in this order; None reads all.
        arms: only these arms; None reads all.

    Raises:
        InputError: the folder has no manifest or no evaluation, an unknown arm or benchmark, a benchmark that has another
            form for one arm or seed than for another, or a file that cannot be read or lacks something.
    """
    folder = Path(folder)
    manifest = read_checked(folder / "manifest.json")
    metrics: dict[str, dict[int, dict]] = {}
    outcomes: dict[str, dict[str, dict[int, list[dict]]]] = {}
    forms: dict[str, str] = {}  # of each benchmark, in the first task that was evaluated on it
    for arm, seed, path in _seed_folders(folder / "evals", "metrics.json", seeds, arms):
        metrics.setdefault(arm, {})[seed] = read_checked(path / "metrics.json")
        for name, values in metrics[arm][seed]["benchmarks"].items():
            outcomes.setdefault(name, {}).setdefault(arm, {})
            if benchmarks is None or name in benchmarks:
                form = values.get("form")
                if form != forms.setdefault(name, form):
                    raise InputError(
                        f"benchmark '{name}' has the form '{form}' for {arm}, seed {seed} and '{forms[name]}' for others, and "
                        "these accuracies cannot be compared: evaluate again."
                    )
                outcomes[name][arm][seed] = _read_outcomes(path / f"{name}.jsonl", values)
    if not metrics:
        raise InputError(
            f"{folder} holds no evaluation (evals/<arm>/seed-<n>/metrics.json): run `ctxft evaluate` first."
        )
    if benchmarks is not None:
        outcomes = {check_known(name, outcomes, f"benchmark in {folder}:"): outcomes[name] for name in benchmarks}
    logs = [
        {"arm": arm, "seed": seed, **row}
        for arm, seed, path in _seed_folders(folder / "arms", "log.jsonl", seeds, arms)
        for _, row in read_jsonl(path / "log.jsonl")
    ]
    ledger = read_json(folder / "ledger.json") if (folder / "ledger.json").exists() else {}
    return RunRecord(folder, manifest, ledger, metrics, outcomes, pandas.DataFrame(logs))


def _read_outcomes(path: Path, metrics: dict) -> list[dict]:
    rows = []
    if is_there(path) and metrics.get("outcomes", hash_file(path)) != hash_file(path):
        raise InputError(f"{path} was cut off or changed after it was written: evaluate again.")
    for number, row in read_jsonl(path):
        if wrong := [key for key, kind in NEEDED.items() if not isinstance(row.get(key), kind)]:
            raise InputError(f"{path}, line {number}: {', '.join(wrong)} missing or of a wrong type: evaluate again.")
        rows.append(row)
    return rows


def _seed_folders(
    parent: Path, file: str, seeds: Collection[int] | None, arms: Collection[str] | None
) -> Iterator[tuple[str, int, Path]]:
    """Yield (arm, seed, folder) of the folders that hold the file, arms in the order of all tables."""
    folders: dict[str, dict[int, Path]] = {}
    for path in parent.glob(f"*/seed-*/{file}"):
        arm, seed = path.parts[-3], path.parts[-2].removeprefix("seed-")
        get_arm(arm, f"{parent}: ")
        if not seed.isdecimal():
            raise InputError(f"{path.parent}: a folder seed-<whole number> is needed here; rename or remove it.")
        if (seeds is None or not get_arm(arm).stages or int(seed) in seeds) and (arms is None or arm in arms):
            folders.setdefault(arm, {})[int(seed)] = path.parent
    for arm in sort_arms(folders):
        for seed in sorted(folders[arm]):
            yield arm, seed, folders[arm][seed]
