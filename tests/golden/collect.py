"""Run a golden experiment and return what it made, in plain JSON types: the one file of the golden test that knows ctxft.

When the library changes, this file follows it, and so do the keys of the YAML files beside it; the recordings never do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from ctxft.cli import main
from ctxft.config import ExperimentConfig, load_experiment
from ctxft.evaluation.outcomes import read_outcomes
from ctxft.models import shared_tokenizer
from ctxft.prompts import get_arm
from ctxft.report import f1_table, loss_table, read_run, results_table
from ctxft.run.run import Run
from ctxft.storage import hash_file, read_json, read_jsonl
from ctxft.synthetic.figures import read_result, study_table
from tests.golden.model import build_model
from tests.runs import (
    arm_folder,
    eval_folder,
    evaluate_task,
    evaluate_tasks,
    lesson_of,
    prepare,
    read_passages,
    train_task,
    train_tasks,
)

GOLDEN = Path(__file__).resolve().parent
TEXTS = ("passages", "held_out", "general", "general_held_out")
FATES = ("read", "duplicate", "held out", "kept")
ARM_COUNTS = ("rows", "tokens read", "prompt tokens", "target tokens")
STEP = ("step", "loss", "learning_rate", "grad_norm", "tokens", "target_tokens")
ITEM = ("id", "prompt_hash", "subject", "choices", "answer")
OUTCOME = ("prediction", "correct", "log_likelihoods", "tokens", "prediction_per_character", "prediction_per_token")
OUTCOME += ("written", "truncated")
HELD_OUT = (
    "loss",
    "prompted_loss",
    "tokens",
    "general_loss",
    "general_tokens",
    "eos_rate",
    "answers_in_form",
    "answers",
)


def collect(config_path: Path, folder: Path, mode: str = "straight", only: Sequence[str] = ()) -> dict:
    """Run the experiment of a golden YAML file and return what it made.

    Args:
        config_path: the YAML file; ``$GOLDEN`` in it is this folder, ``$MODELS`` that of the models built here.
        folder: where models and runs go; a fresh one for each ``mode``.
        mode: "straight", "by task" (the command line, one task at a time), or "resumed" (each training is cut back to its
            first checkpoint, as a kill leaves it, and run again).
        only: tasks such as "cft:0"; none runs all.

    Returns:
        passages, ledger, prompts, order, rows, log, items, outcomes, held_out, weights (hashes) and, for all tasks, tables.
    """
    if not (folder / "models").exists():
        build_model(folder / "models" / "bytes")
    text = config_path.read_text(encoding="utf-8")
    path = folder / config_path.name
    path.write_text(text.replace("$GOLDEN", str(GOLDEN)).replace("$MODELS", str(folder / "models")), encoding="utf-8")
    with mock.patch.dict(os.environ, CTXFT_RUNS=str(folder / "runs")):
        config = load_experiment(path)
        tasks = [task for task in train_tasks(config) if not only or f"{task[0]}:{task[1]}" in only]
        evaluated = [task for task in evaluate_tasks(config) if not only or f"{task[0]}:{task[1]}" in only]
        if mode == "by task":
            for verb in ("train", "evaluate"):
                words = [word for arm, seed in tasks for word in ("--task", f"{arm}:{seed}")]
                assert main([verb, str(path), *words]) == 0
        else:
            prepare(config)
            for task in tasks:
                train_task(config, *task)
                if mode == "resumed":
                    _cut_and_resume(config, *task)
            for task in evaluated:
                evaluate_task(config, *task)
        return _read(config, tasks, evaluated) | ({} if only else {"tables": _tables(config.folder)})


def _cut_and_resume(config: ExperimentConfig, arm: str, seed: int) -> None:
    """Leave of a finished training what a kill in the next but one step would, and resume from its first checkpoint."""
    folder = arm_folder(config, arm, seed)
    first, *later = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in (*later, folder / "model"):
        shutil.rmtree(path)
    (folder / "done.json").unlink()
    lines = (folder / "log.jsonl").read_text(encoding="utf-8")
    (folder / "log.jsonl").write_text(lines[:-20], encoding="utf-8")  # the last line is cut off
    inode = first.stat().st_ino
    train_task(config, arm, seed)
    assert first.stat().st_ino == inode, "the training started from scratch"


def _read(config: ExperimentConfig, tasks: Sequence[tuple], evaluated: Sequence[tuple]) -> dict:
    """Read what is on disk, and build the rows of each training again."""
    texts = {name: list(read_passages(config.folder, name)) for name in TEXTS}
    texts = {name: passages for name, passages in texts.items() if passages}
    made: dict = {name: {} for name in ("prompts", "order", "rows", "log", "outcomes", "held_out", "weights")}
    for arm, seed in tasks:
        name, folder = f"{arm}:{seed}", arm_folder(config, arm, seed)
        tokenizer = shared_tokenizer(config.model, config.revision)
        rows = list(lesson_of(config, arm, seed, texts["passages"], tokenizer).rows)
        ids = [row["id"] for row in rows] if "id" in rows[0] else _ids(texts)
        steps = [row for _, row in read_jsonl(folder / "log.jsonl")]
        made["prompts"][name] = [
            [row["passage"], row["prompt"], row["family"], row["text"]] for row in _prompts(config, arm, seed, folder)
        ]
        made["order"][name] = [" ".join(ids[place] for place in step["passages"]) for step in steps]
        made["rows"][name] = _rows(rows)
        made["log"][name] = [{key: step[key] for key in STEP} for step in steps]
        made["weights"][name] = [hash_file(path) for path in sorted((folder / "model").glob("*.safetensors"))]
    for arm, seed in evaluated:
        folder = eval_folder(config, arm, seed)
        metrics = read_json(folder / "metrics.json")
        outcomes = {name: read_outcomes(folder / f"{name}.jsonl") for name in metrics["benchmarks"]}
        items = {name: [{key: row[key] for key in ITEM} for row in rows] for name, rows in outcomes.items()}
        assert made.setdefault("items", items) == items, (
            f"{arm}:{seed} was evaluated on other items than {evaluated[0]}"
        )
        made["outcomes"][f"{arm}:{seed}"] = {
            name: {key: [_rounded(row[key]) for row in rows] for key in OUTCOME} for name, rows in outcomes.items()
        }
        made["held_out"][f"{arm}:{seed}"] = {key: metrics["held_out"].get(key) for key in HELD_OUT}
    return {"passages": _passages(texts), "ledger": _ledger(config)} | made


def _prompts(config: ExperimentConfig, arm: str, seed: int, folder: Path) -> list[dict]:
    """Return the prompts of all passages; those that the steps read are on disk."""
    written = [row for _, row in read_jsonl(folder / "prompts.jsonl")]
    records = [] if get_arm(arm).instructed else list(Run(config).rows(arm, seed)[1].records())
    assert [row for row in records if row in written] == written
    return records


def _rounded(value: object) -> object:
    """Return numbers with as many places as are compared, and one more."""
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


def _ids(texts: dict) -> list[str]:
    return [passage.id for name in ("passages", "general") for passage in texts.get(name, ())]


def _passages(texts: dict) -> dict:
    return {
        name: [
            {
                "id": passage.id,
                "document": passage.document,
                "ids": " ".join(map(str, passage.ids)),
                "text": passage.text,
                "ends document": passage.last,
                "reliable": passage.reliable,
            }
            for passage in passages
        ]
        for name, passages in texts.items()
    }


def _rows(rows: Sequence[dict]) -> dict:
    """Return a SHA-256 of each row's ids and labels, and some rows in full."""
    plain = [[list(row["input_ids"]), list(row["labels"])] for row in rows]
    in_full = {str(n): [" ".join(map(str, part)) for part in plain[n]] for n in sorted({0, 1, len(plain) - 1})}
    return {"sha256": [hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in plain], "in full": in_full}


def _ledger(config: ExperimentConfig) -> dict:
    ledger = read_json(config.folder / "ledger.json")
    names = [f"{what} {fate}" for what in ("documents", "tokens") for fate in FATES]
    arms = sorted({key.split(": ")[0] for key in ledger if key.endswith(": rows")})
    return {name: ledger[name] for name in names} | {
        f"{arm}: {name}": ledger[f"{arm}: {name}"] for arm in arms for name in ARM_COUNTS
    }


def _tables(folder: Path) -> dict:
    """Return the cells of the tables, as printed; their titles are words, and words may change."""
    run = read_run(folder)
    tables = {"results": results_table(run), "losses": loss_table(run), "f1": f1_table(run)}
    return {name: [[str(cell) for cell in row] for row in table.to_numpy()] for name, table in tables.items()}


def load_result(path: Path) -> dict:
    """Read a file of notebooks/results with what reads it in the library; what it says of a config must be a config."""
    if path.stem.startswith("synthetic_"):
        result = read_result(path)
        assert len(study_table(result)) == len(result["arms"])
        return result
    result = read_json(path)
    for condition in result.get("conditions", {}).values() if path.stem == "practice_study" else ():
        load_experiment("mini", {key: value for key, value in condition["values"].items() if value != "trusting"})
    return result
