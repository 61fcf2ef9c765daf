"""An experiment's instructions flow in; the rows of its second stage flow out, the same for every arm.

ift.source -> instructions.jsonl, instructions_held_out.jsonl, instructions.json (counts and hashes) in the run folder
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig
from ctxft.data.instructions import PRACTICE, WHERE_TO_PUT, instruction_rows, read_instructions
from ctxft.hub import resolve_revision
from ctxft.models import model_hash
from ctxft.prompts import get_arm
from ctxft.storage import InputError, hash_file, read_json, read_jsonl, seeded, sha256, write_json, write_jsonl
from ctxft.world.exams import practice_instructions


def has_instructions(arms: list[str]) -> bool:
    """Return whether an arm has the stage ``ift``.

    Example:
        >>> has_instructions(["cpt", "cft-ift"])
        True
    """
    return any(get_arm(arm).instructed for arm in arms)


def _source_state(config: ExperimentConfig, commit: str | None) -> str:
    """Return a hash of the source's content: of the file, of the practice world's records, or the hub's commit."""
    source = config.ift.source
    if source == PRACTICE:
        return sha256(practice_instructions())
    return hash_file(Path(source)) if Path(source).is_file() else sha256([source, commit])


def prepare_instructions(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> dict | None:
    """Write the rows of the second stage into the run folder, once; an arm without it needs none.

    Which instructions are held out depends on their ids alone.

    Returns:
        What the ledger says of them, or None.

    Raises:
        InputError: a bad record, nothing left to train on, or a source that was changed since.
    """
    if not has_instructions(config.arms):
        return None
    path = config.folder / "instructions.json"
    known = read_json(path) if path.exists() else None
    commit, options = known["commit"] if known else None, config.ift
    if not known and options.source != PRACTICE and not Path(options.source).is_file():
        commit = resolve_revision(options.source, "dataset", options.revision, WHERE_TO_PUT)
    state = _source_state(config, commit)
    made_for = sha256([dataclasses.asdict(options), config.train.window, model_hash(config.model, config.revision)])
    if known and known["made for"] != made_for:  # by a preparation that did not come to its end
        path.unlink()
        return prepare_instructions(config, tokenizer)
    if known and known["source"] != state:
        raise InputError(f"{options.source} was changed after {path} was made: choose another name, or remove the run.")
    if known:
        return known["counts"]
    kept, held, counts = make_rows(config, tokenizer, commit)
    write_jsonl(config.folder / "instructions.jsonl", kept)
    write_jsonl(config.folder / "instructions_held_out.jsonl", held)
    hashes = {"source": state, "made for": made_for, "rows": sha256([kept, held]), "commit": commit}
    write_json(path, {**hashes, "counts": counts})
    return counts


def make_rows(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, commit: str | None
) -> tuple[list[dict], list[dict], dict]:
    """Read the instructions and lay them out.

    Args:
        config: the experiment.
        tokenizer: of its model.
        commit: of a hub data set.

    Returns:
        (rows to train on, rows held out, counts).

    Raises:
        InputError: a bad record, or nothing left to train on.
    """
    counts: Counter = Counter()
    kept: list[dict] = []
    held: list[dict] = []
    options = config.ift
    records = read_instructions(options.source, options.split, commit, options.limit)
    for row in instruction_rows(records, tokenizer, config.train.window, counts):
        place = held if seeded("held out", row["id"]).random() < options.held_out else kept
        place.append(row)
    if not kept:
        raise InputError(
            f"no instruction of '{options.source}' is left to train on: raise train.window or lower ift.held_out."
        )
    counts["instructions held out"] = len(held)
    return kept, held, dict(sorted(counts.items()))


def read_instruction_rows(folder: Path, which: str = "instructions") -> list[dict]:
    """Read a run's instruction rows ("instructions" or "instructions_held_out"), each with id, input_ids, labels and text.

    Raises:
        InputError: they were not made yet, or changed since.
    """
    if not (folder / "instructions.json").exists():
        raise InputError(f"{folder} has no instructions yet: run `ctxft train` with an arm such as cft-ift.")
    files = [folder / f"{name}.jsonl" for name in ("instructions", "instructions_held_out")]
    rows = [[row for _, row in read_jsonl(path)] for path in files]
    if sha256(rows) != read_json(folder / "instructions.json")["rows"]:
        raise InputError(
            f"{files[0]} or {files[1].name} was changed after it was made: remove the folder and start anew."
        )
    return rows[which == "instructions_held_out"]
