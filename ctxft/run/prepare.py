"""Write what all arms of a run share: the passages, the account of every token, and what it was all made from.

    corpus, general text, instructions -> passages.jsonl, held_out.jsonl, ... , ledger.json, manifest.json

All arms read the same passages in the same order with the same targets; only what is prepended to the text differs. The
manifest is written last, with a SHA-256 of each text, so a folder that has one is whole.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxft.config import FREE, ExperimentConfig, from_mapping, to_mapping
from ctxft.data.documents import corpus_state
from ctxft.data.instructions import PRACTICE, WHERE_TO_PUT, instruction_rows, read_instructions
from ctxft.data.passages import Passage, passages_of
from ctxft.evaluation.benchmarks.requests import require_chat_template
from ctxft.models import check_model, model_hash, resolve_model, resolve_revision
from ctxft.prompts import check_labels, check_subsets, get_arm, sort_arms, text_stages
from ctxft.prompts.arms import require_named
from ctxft.run.rows import arm_ledger, corpus_ledger
from ctxft.storage import (
    InputError,
    code_revision,
    exclusive_lock,
    hash_file,
    read_checked,
    read_json,
    read_jsonl,
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
# Inputs may be elsewhere than when the run was made: their content is compared, not their place.
MAY_CHANGE = {"model", "corpus.source", "prompts.strategies", "prompts.negative", "general.source", "ift.source"}
MAY_CHANGE |= {f"train.{key}" for key in FREE}  # what changes speed only
HOW_TO_ASK = "key_variable batch timeout retries requests_per_minute price_in price_out limit_cost".split()
MAY_CHANGE |= {f"prompts.writer.{key}" for key in HOW_TO_ASK}
TEXTS = {  # file of a run folder, without .jsonl -> its source
    "passages": "corpus",
    "held_out": "corpus",
    "general": "general",
    "general_held_out": "general",
    "instructions": "instructions",
    "instructions_held_out": "instructions",
}
Cut = tuple[list, list, Counter]  # rows to train on, rows held out, counts
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

    name: str = ""
    config: dict = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    commits: dict[str, str | None] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    layout: int = LAYOUT

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a folder's manifest; an empty one where there is none.

        Raises:
            InputError: it is damaged, or of an older version of this package.
        """
        path = folder / "manifest.json"
        values: dict[str, Any] = read_checked(path) if path.exists() else {"layout": LAYOUT}
        if values.get("layout") != LAYOUT:
            raise InputError(
                f"{folder} was made by another version of ctxft, which alone can use it: choose another name for the run."
            )
        return cls(**{key: value for key, value in values.items() if key != "checksum"})

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
    commit = resolve_model(config.model, config.revision)[1]
    inputs = {
        "model": (model_hash(config.model, config.revision), commit),
        "corpus": corpus_state(config.corpus),
        "prompts": (sha256([prompt_set.hash for prompt_set in run.prompt_sets]), None),
    }
    if config.general:
        inputs["general"] = corpus_state(config.general)
    if has_instructions(run):
        inputs["instructions"] = _instructions_state(config)
    return inputs


def has_instructions(run: Run) -> bool:
    """Return whether an arm of a run has the stage ift."""
    return any(get_arm(arm).instructed for arm in run.wanted.arms)


def _instructions_state(config: ExperimentConfig) -> tuple[str, str | None]:
    source = config.ift.source
    if source == PRACTICE:
        return sha256(practice_instructions()), None
    if Path(source).is_file():
        return hash_file(Path(source)), None
    commit = resolve_revision(source, "dataset", config.ift.revision, WHERE_TO_PUT)
    return sha256([source, commit]), commit


def check_same(run: Run) -> None:
    """Raise InputError if an experiment is not the one of its manifest, or its inputs changed; what differs is named."""
    hashes = run.manifest.hashes

    def flat(values: dict, before: str = "") -> dict:
        pairs = [flat(v, f"{before}{k}.") if isinstance(v, dict) else {f"{before}{k}": v} for k, v in values.items()]
        return {key: value for pair in pairs for key, value in pair.items()}

    identity, unused = run.wanted.identity(), () if "instructions" in hashes else ("ift.",)
    now, then = flat(identity), flat({key: run.manifest.config.get(key) for key in identity})
    keys = [key for key in now | then if key not in MAY_CHANGE and not key.startswith(unused)]
    changed = [f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in keys if now.get(key) != then.get(key)]
    for name, (state, _) in inputs_of(run).items():
        if state != hashes.get(name, state if name == "instructions" else None):
            changed.append(f"the {name} changed")
    if changed:
        raise InputError(
            f"{run.folder} holds another run ({'; '.join(changed)}): choose another name, or remove that folder."
        )


# --- texts ------------------------------------------------------------------------------------------------------------


def cut_text(run: Run, source: str) -> Cut:
    """Return a source of a run as rows: passages of corpus or general text, or instructions; none where the run has none."""
    config = run.config
    if source == "instructions":
        return split_instructions(run) if has_instructions(run) else ([], [], Counter())
    corpus = config.general if source == "general" else config.corpus
    return passages_of(corpus, run.tokenizer, run.budget) if corpus else ([], [], Counter())


def split_instructions(run: Run) -> Cut:
    """Lay the instructions out as rows; which are held out depends on their ids alone.

    Returns:
        (rows to train on, rows held out, counts).

    Raises:
        InputError: a bad record, or nothing left to train on.
    """
    options, counts = run.config.ift, Counter[str]()
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


def read_text_rows(run: Run, name: str) -> list:
    """Return the passages or instruction rows of one file of a run folder; where it is not written yet, from its source.

    Raises:
        InputError: the file is missing, or not the one that was written.
    """
    source, path = TEXTS[name], run.folder / f"{name}.jsonl"
    if path.name not in run.manifest.files or (source == "instructions" and not has_instructions(run)):
        return _build_text(run, name)
    if not path.exists() or hash_file(path) != run.manifest.files[path.name]:
        raise InputError(f"{path} was changed after it was made, or removed: remove the folder and start from scratch.")
    rows = [row for _, row in read_jsonl(path)]
    return rows if source == "instructions" else [Passage.from_json(row) for row in rows]


def _build_text(run: Run, name: str) -> list:
    kept, held_out, _ = run.cut(TEXTS[name])
    return held_out if name.endswith("held_out") else kept


def write_texts(run: Run, names: Iterable[str], folder: Path) -> dict[str, str]:
    """Write texts, cut from their sources, into a folder; returns the SHA-256 of each file by its name."""
    files = {}
    for name in names:
        rows = (row if isinstance(row, dict) else row.to_json() for row in _build_text(run, name))
        path = write_jsonl(folder / f"{name}.jsonl", rows)
        files[path.name] = hash_file(path)
    return files


def ledger_of(run: Run, seed: int) -> dict:
    """Account for every document and token of a run; an arm's prompts are those of the given seed."""
    ledger = corpus_ledger(run) | {"seed of the prompts counted here": seed}
    if run.config.general:
        passages, held_out, counts = run.cut("general")
        counts = counts | {"passages": len(passages), "passages held out": len(held_out)}
        ledger |= {f"general text: {name}": value for name, value in counts.items() if value}
    return _with_arms(run, ledger)


def _with_arms(run: Run, ledger: dict) -> dict:
    """Return a ledger with the instructions and with the arms that it lacks."""
    if has_instructions(run) and "instructions read" not in ledger:
        ledger = ledger | run.cut("instructions")[2]
    for stage in text_stages(run.config.arms):
        ledger = ledger | arm_ledger(run, stage, ledger)
    return ledger


# --- the stage --------------------------------------------------------------------------------------------------------


def prepare(run: Run) -> None:
    """Do what ``Run.prepare`` says."""
    run.adopt(Manifest.read(run.folder))
    config, ledger = run.config, {}
    check_model(config.model, config.revision, config.train.max_length)
    if config.evaluation.apply_chat_template:
        require_chat_template(run.tokenizer)  # reported before hours of training
    check_subsets(config.arms, run.prompt_sets.strategies)
    if not run.manifest.files:
        if run.folder.exists() and any(
            path.name not in UNPREPARED and not path.name.startswith(".") for path in run.folder.iterdir()
        ):
            raise InputError(
                f"{run.folder} is not empty and not a run (no manifest.json): choose another name, or empty it."
            )
        run.adopt(_extended(run))
        check_labels(config.arms, run.passages, config.prompts.writer is not None)
        ledger = ledger_of(run, config.seeds[0])  # bad input is reported before anything is written
    with exclusive_lock(run.folder.parent / f".{run.folder.name}.lock", f"prepares {run.folder}", wait=True):
        _write(run, ledger)


def _extended(run: Run) -> Manifest:
    """Return a run's manifest with the arms, seeds and inputs that its experiment has beside those recorded."""
    then, now = run.manifest, to_mapping(run.wanted)
    config = (then.config or now) | {"evaluation": now["evaluation"]}
    config["arms"] = sort_arms([*config["arms"], *now["arms"]])
    config["seeds"] = sorted({*config["seeds"], *now["seeds"]})
    hashes, commits = dict(then.hashes), dict(then.commits)
    for name, (content, commit) in inputs_of(run).items():
        if name not in hashes:
            hashes[name], commits[name] = content, commit
    if "instructions" not in then.hashes:
        config["ift"] = now["ift"]
    if not then.files:
        then = Manifest(now["name"], versions=versions(), code=code_revision())
    return replace(then, config=config, hashes=hashes, commits=commits)


def _write(run: Run, ledger: dict) -> None:
    """Write what is not there yet: texts, ledger, and the manifest last."""
    there, path = Manifest.read(run.folder), run.folder / "ledger.json"
    if there.files:
        run.adopt(there)
        check_same(run)
        run.adopt(_extended(run))
        ledger = _with_arms(run, read_json(path))
    manifest = run.manifest
    names = [name for name in TEXTS if f"{name}.jsonl" not in manifest.files and run.cut(TEXTS[name])[2]]
    manifest.files = manifest.files | write_texts(run, names, run.folder)
    if not path.exists() or read_json(path) != ledger:
        write_json(path, ledger)
    if manifest != there:
        write_json(run.folder / "manifest.json", with_checksum(asdict(manifest)))
