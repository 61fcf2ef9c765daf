"""Write what all arms of a run share: the passages, the account of every token, and what it was all made from.

    corpus, general text, instructions -> passages.jsonl, held_out.jsonl, ... , ledger.json, manifest.json

All arms read the same passages in the same order with the same targets; only what is prepended to the text differs. The
manifest is written last, with a SHA-256 of each text, so a folder that has one is whole.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ctxft.config import FREE, ExperimentConfig, from_mapping, to_mapping
from ctxft.data.documents import corpus_state
from ctxft.data.instructions import PRACTICE, WHERE_TO_PUT, instruction_rows, read_instructions
from ctxft.evaluation.benchmarks.requests import require_chat_template
from ctxft.models import check_model, model_hash, resolve_model, resolve_revision
from ctxft.prompts import check_labels, check_subsets, sort_arms, text_stages
from ctxft.prompts.arms import require_named
from ctxft.run.rows import arm_ledger, corpus_ledger
from ctxft.storage import (
    InputError,
    code_revision,
    hash_file,
    read_checked,
    read_json,
    seeded,
    sha256,
    versions,
    with_checksum,
    write_json,
    write_jsonl,
)
from ctxft.world.exams import practice_instructions

if TYPE_CHECKING:
    from ctxft.run.run import Run

LAYOUT = 2  # of a run folder; raised when an older folder cannot be used any more
# Inputs that may be elsewhere than when the run was made: their content is compared, not their place.
BY_HASH = ("model", "corpus.source", "prompts.strategies", "prompts.negative", "general.source", "ift.source")
WRITER = "prompts.writer"
HOW_TO_ASK = tuple("key_variable batch timeout retries requests_per_minute price_in price_out limit_cost".split())
TEXTS = {  # file of a run folder, without .jsonl -> what of a ``Run`` it is made from, and which part of that
    "passages": ("corpus", 0),
    "held_out": ("corpus", 1),
    "general": ("general_text", 0),
    "general_held_out": ("general_text", 1),
    "instructions": ("instruction_text", 0),
    "instructions_held_out": ("instruction_text", 1),
}
# What a run folder may hold without a manifest: executed notebooks, answers of hosted models, and what a killed
# preparation left behind.
UNPREPARED = {"notebooks", "hosted", "index.html", "ledger.json", *(f"{name}.jsonl" for name in TEXTS)}


@dataclass
class Manifest:
    """What a run was made from, and with.

    Attributes:
        name: of the run.
        config: of the experiment, as plain values; arms and seeds that were added later are in it too.
        hashes: of the inputs (model, corpus, prompts, general, instructions).
        commits: of the inputs from the hub, by the same names; None for others.
        files: file name -> SHA-256 of each text of the run folder.
        versions, code: of the libraries and of this package, when the run was made.
        layout: of the run folder.
    """

    name: str
    config: dict
    hashes: dict[str, str]
    commits: dict[str, str | None]
    files: dict[str, str]
    versions: dict[str, str] = field(default_factory=versions)
    code: str = field(default_factory=code_revision)
    layout: int = LAYOUT

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Read a folder's manifest; None where there is none.

        Raises:
            InputError: it is damaged, or of an older version of this package.
        """
        path = folder / "manifest.json"
        if not path.exists():
            return None
        values = {key: value for key, value in read_checked(path).items() if key != "checksum"}
        if values.get("layout") != LAYOUT:
            raise InputError(
                f"{folder} was made by another version of ctxft, which alone can use it: choose another name for the run."
            )
        return cls(**values)

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        write_json(folder / "manifest.json", with_checksum(asdict(self)))

    def experiment(self, folder: Path) -> ExperimentConfig:
        """Return the experiment of the run folder that the manifest was read from, under the folder's name.

        Raises:
            InputError: the folder is not below the run root.
        """
        place = folder.resolve()
        require_named(self.config.get("plugins", ()))
        config = from_mapping(ExperimentConfig, self.config | {"name": place.name}, str(folder / "manifest.json"))
        if place != config.folder.resolve():
            raise InputError(
                f"{folder} is not below the run root {config.folder.parent}: set CTXFT_RUNS to {place.parent}."
            )
        return config


# --- inputs -----------------------------------------------------------------------------------------------------------


def pinned(config: ExperimentConfig, commits: dict[str, str | None]) -> ExperimentConfig:
    """Fix hub revisions to the commits that a run recorded, so that a change on the hub, or its absence, cannot touch it.

    A revision that the config names itself stays.
    """
    config = copy.deepcopy(config)
    parts = {"model": config, "corpus": config.corpus, "general": config.general, "instructions": config.ift}
    for name, part in parts.items():
        if part is not None:
            part.revision = part.revision or commits.get(name)
    return config


def inputs_of(run: Run) -> dict[str, tuple[str, str | None]]:
    """Return what an experiment reads: name -> (hash of its content, commit on the hub or None)."""
    config = run.config
    strategies, negative = run.prompt_sets
    inputs = {
        "model": (
            model_hash(config.model, config.revision),
            resolve_model(config.model, config.revision)[1],
        ),
        "corpus": corpus_state(config.corpus),
        "prompts": (sha256([strategies.hash, negative.hash]), None),
    }
    if config.general:
        inputs["general"] = corpus_state(config.general)
    if run.has_instructions:
        inputs["instructions"] = _instructions_state(config)
    return inputs


def _instructions_state(config: ExperimentConfig) -> tuple[str, str | None]:
    source = config.ift.source
    if source == PRACTICE:
        return sha256(practice_instructions()), None
    if Path(source).is_file():
        return hash_file(Path(source)), None
    commit = resolve_revision(source, "dataset", config.ift.revision, WHERE_TO_PUT)
    return sha256([source, commit]), commit


def split_instructions(run: Run) -> tuple[list[dict], list[dict], Counter]:
    """Lay the instructions out as rows; which are held out depends on their ids alone.

    Returns:
        (rows to train on, rows held out, counts).

    Raises:
        InputError: a bad record, or nothing left to train on.
    """
    options, counts = run.config.ift, Counter()
    rows: tuple[list[dict], list[dict]] = ([], [])
    records = read_instructions(options.source, options.split, options.revision, options.limit)
    for row in instruction_rows(records, run.tokenizer, run.config.train.max_length, counts):
        rows[seeded("held out", row["id"]).random() < options.held_out].append(row)
    if not rows[0]:
        raise InputError(
            f"no instruction of '{options.source}' is left to train on: raise train.max_length or lower ift.held_out."
        )
    counts["instructions held out"] = len(rows[1])
    return *rows, counts


def check_same(run: Run, manifest: Manifest) -> None:
    """Raise InputError if an experiment is not the one of a manifest, or its inputs changed; what differs is named."""

    def flat(values: dict, before: str = "") -> dict:
        pairs = [flat(v, f"{before}{k}.") if isinstance(v, dict) else {f"{before}{k}": v} for k, v in values.items()]
        return {key: value for pair in pairs for key, value in pair.items()}

    then, now = flat(manifest.config), flat(run.wanted.identity())
    free = () if "instructions" in manifest.hashes else ("ift.",)  # no arm has that stage yet
    now = {key: value for key, value in now.items() if key not in BY_HASH and not key.startswith(free)}
    now = {key: value for key, value in now.items() if key.removeprefix("train.") not in FREE}
    now = {key: value for key, value in now.items() if key.removeprefix(f"{WRITER}.") not in HOW_TO_ASK}
    now |= {key: None for key in then if WRITER in now and key.startswith(f"{WRITER}.") and key.endswith(".model")}
    changed = [f"{key} was {then.get(key)!r}, is {value!r}" for key, value in now.items() if then.get(key) != value]
    for name, (state, _) in inputs_of(run).items():
        if state != manifest.hashes.get(name, state if name == "instructions" else None):
            changed.append(f"the {name} changed")
    if changed:
        raise InputError(
            f"{run.folder} holds another run ({'; '.join(changed)}): choose another name, or remove that folder."
        )


# --- texts ------------------------------------------------------------------------------------------------------------


def build_text(run: Run, name: str) -> list:
    """Build the passages or instruction rows of one file of a run folder from the run's inputs."""
    source, part = TEXTS[name]
    return getattr(run, source)[part]


def write_texts(run: Run, names: Iterable[str], folder: Path) -> dict[str, str]:
    """Write texts into a folder; returns the SHA-256 of each file by its name."""
    for name in names:
        rows = build_text(run, name)
        write_jsonl(folder / f"{name}.jsonl", (row if isinstance(row, dict) else row.to_json() for row in rows))
    return {f"{name}.jsonl": hash_file(folder / f"{name}.jsonl") for name in names}


def ledger_of(run: Run, seed: int) -> dict:
    """Account for every document and token of a run; an arm's prompts are those of the given seed."""
    passages, held_out, counts = run.corpus
    ledger = corpus_ledger(run, counts) | {"passages": len(passages), "passages held out": len(held_out)}
    if run.config.general:
        passages, held_out, counts = run.general_text
        counts = counts | {"passages": len(passages), "passages held out": len(held_out)}
        ledger |= {f"general text: {name}": value for name, value in sorted(counts.items()) if value}
    return _with_arms(run, ledger | {"seed of the prompts counted here": seed})


def _with_arms(run: Run, ledger: dict) -> dict:
    """Return a ledger with the instructions and with the arms that it lacks."""
    if run.has_instructions and "instructions read" not in ledger:
        ledger = ledger | dict(sorted(run.instruction_text[2].items()))
    for stage in text_stages(run.config.arms):
        ledger = ledger | arm_ledger(run, stage, ledger)
    return ledger


# --- the stage --------------------------------------------------------------------------------------------------------


def prepare(run: Run) -> None:
    """Do what ``Run.prepare`` says."""
    root = run.folder.parent
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{run.folder.name}.lock")
    try:
        with lock:
            try:
                _prepare(run)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        if made:  # bad input leaves nothing behind
            with contextlib.suppress(OSError):
                root.rmdir()


def _prepare(run: Run) -> None:
    manifest, config = run.reload(), run.config
    check_model(config.model, config.revision, config.train.max_length)
    if config.evaluation.apply_chat_template:
        require_chat_template(run.tokenizer)  # reported before hours of training
    check_subsets(config.arms, run.prompt_sets.strategies)
    if manifest is not None:
        _extend(run, run.require_prepared())
        return
    if run.folder.exists() and any(p.name not in UNPREPARED and p.suffix != ".part" for p in run.folder.iterdir()):
        raise InputError(
            f"{run.folder} is not empty and not a run (no manifest.json): choose another name, or empty it."
        )
    inputs = inputs_of(run)
    hashes = {name: content for name, (content, _) in inputs.items()}
    commits = {name: commit for name, (_, commit) in inputs.items()}
    run.pin(commits)
    check_labels(config.arms, run.passages, config.prompts.writer is not None)  # before anything is written
    files = write_texts(run, run.text_names, run.folder)
    write_json(run.folder / "ledger.json", ledger_of(run, config.seeds[0]))
    Manifest(config.name, to_mapping(run.wanted), hashes, commits, files).write(run.folder)


def _extend(run: Run, manifest: Manifest) -> None:
    """Write arms and seeds that were added to a run into its manifest and ledger."""
    wanted, then = to_mapping(run.wanted), manifest.config
    now = then | {"arms": sort_arms([*then["arms"], *run.config.arms])}
    now |= {"seeds": sorted({*then["seeds"], *run.config.seeds}), "evaluation": wanted["evaluation"]}
    if run.has_instructions and "instructions" not in manifest.hashes:
        manifest.hashes["instructions"], manifest.commits["instructions"] = inputs_of(run)["instructions"]
        names = [name for name in run.text_names if f"{name}.jsonl" not in manifest.files]
        manifest.files |= write_texts(run, names, run.folder)
        now["ift"] = wanted["ift"]
        manifest.write(run.folder)  # before the ledger reads them back
    ledger = read_json(run.folder / "ledger.json")
    if (extended := _with_arms(run, ledger)) != ledger:  # also where a model has written its prompts since
        write_json(run.folder / "ledger.json", extended)
    if now != then:
        manifest.config = now
        manifest.write(run.folder)
