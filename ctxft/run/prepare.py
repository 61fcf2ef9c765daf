"""Write what all arms of a run share: the passages, the account of every token, and what it was all made from.

    corpus, general text, instructions -> corpus/, general/, instructions.jsonl, ... , ledger.json, manifest.json

All arms read the same passages in the same order with the same targets; only what is prepended to the text differs. The
manifest is written last, with a SHA-256 of each text, so a folder that has one is whole.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxft.config import FREE, CorpusConfig, ExperimentConfig, InstructionConfig, from_mapping, to_mapping
from ctxft.data.corpus import Measured, measure, plan_parts, read_corpus, write_parts
from ctxft.data.documents import corpus_state, read_documents
from ctxft.data.instructions import PRACTICE, WHERE_TO_PUT, instruction_rows, read_instructions
from ctxft.data.tables import TABLES, Files, files_of, hash_files, hub_commit
from ctxft.evaluation.benchmarks.requests import require_chat_template
from ctxft.models import check_model, model_hash, resolve_model
from ctxft.prompts import check_subsets, get_arm, sort_arms, text_stages
from ctxft.prompts.arms import require_named, with_labels
from ctxft.run.processes import count_workers, run_parts
from ctxft.run.rows import arm_ledger, corpus_ledger
from ctxft.storage import (
    InputError,
    code_revision,
    exclusive_lock,
    hash_file,
    is_there,
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

LAYOUT = 3  # of a run folder; raised when an older folder cannot be used any more
CUT_REVISION = 1  # raised when the same text would be cut into other passages
FEW = 2  # parts of a corpus for which a process of its own is worth its start
# Inputs may be elsewhere than when the run was made: their content is compared, not their place.
MAY_CHANGE = {"model", "corpus.source", "prompts.strategies", "prompts.negative", "general.source", "ift.source"}
MAY_CHANGE |= {f"train.{key}" for key in FREE}  # what changes speed only
HOW_TO_ASK = "key_variable batch timeout retries requests_per_minute price_in price_out limit_cost".split()
MAY_CHANGE |= {f"prompts.writer.{key}" for key in HOW_TO_ASK}
SOURCES = ("corpus", "general", "instructions")
INSTRUCTIONS = ("instructions.jsonl", "instructions_held_out.jsonl")  # rows to train on, rows held out
TEXTS = {  # name of a text -> its source, and whether it is held out
    "passages": ("corpus", False),
    "held_out": ("corpus", True),
    "general": ("general", False),
    "general_held_out": ("general", True),
    "instructions": ("instructions", False),
    "instructions_held_out": ("instructions", True),
}
Cut = tuple[Sequence, Sequence, Counter]  # rows to train on, rows held out, counts
# What a run folder may hold without a manifest: executed notebooks, answers of hosted models, and what a killed
# preparation left behind.
UNPREPARED = {"notebooks", "hosted", "index.html", "ledger.json", "corpus", "general", *INSTRUCTIONS}


@dataclass
class Manifest:
    """What a run was made from, and with.

    Attributes:
        name: of the run.
        config: of the experiment, as plain values; arms and seeds that were added later are in it too.
        hashes: of the inputs (model, corpus, prompts, general, instructions).
        commits: of the inputs from the hub, by the same names; None for others.
        files: path -> SHA-256 of each file of the texts of the run folder.
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


def _instruction_files(options: InstructionConfig) -> Files | None:
    """Return the files of instructions, where there are any."""
    place = Path(options.source)
    return files_of(place, TABLES, options.split, options.subset) if is_there(place) else None


def _instructions_state(config: ExperimentConfig) -> tuple[str, str | None]:
    source = config.ift.source
    if source == PRACTICE:
        return sha256(practice_instructions()), None
    if files := _instruction_files(config.ift):
        return hash_files(files), None
    commit = hub_commit(source, config.ift.revision, WHERE_TO_PUT)
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


def corpus_of(run: Run, source: str) -> CorpusConfig | None:
    """Return the config of the corpus or of the general text; None where the run has none."""
    return run.config.general if source == "general" else run.config.corpus


def cut_text(run: Run, source: str) -> Cut:
    """Return a source of a run as rows: passages of corpus or general text, or instructions; none where the run has none.

    Passages are those of the run folder; where they are not there yet, they are cut into the run's workshop.
    """
    if source == "instructions":
        return _read_instructions(run) if has_instructions(run) else ([], [], Counter())
    config = corpus_of(run, source)
    if config is None:
        return [], [], Counter()
    files = [name for name in run.manifest.files if name.startswith(f"{source}/")]
    for name in files:
        _require_unchanged(run, name)
    return read_corpus(config, run.folder / source if files else cut_corpus(run, source, run.workshop / source))


def measure_text(run: Run, source: str) -> Measured:
    """Look through the corpus or the general text, and check that the arms find what they need in the corpus."""
    config, counts = corpus_of(run, source), Counter[str]()
    assert config is not None
    documents = read_documents(config, counts)
    if source == "corpus":
        documents = with_labels(run.config.arms, documents, run.config.prompts.writer is not None)
    return measure(documents, counts)


def _require_unchanged(run: Run, name: str) -> None:
    path = run.folder / name
    if not path.exists() or hash_file(path) != run.manifest.files[name]:
        raise InputError(f"{path} was changed after it was made, or removed: remove the folder and start from scratch.")


def cut_corpus(run: Run, source: str, folder: Path, workers: int | None = None) -> Path:
    """Write the passages of the corpus or of the general text into a folder, in as many processes as it is worth.

    What a killed process has finished there is kept.
    """
    config = corpus_of(run, source)
    assert config is not None
    options = config.model_dump(exclude={"source", "revision", "held_out"})
    state = corpus_state(config)
    made_from = [state[0], options, model_hash(run.config.model, run.config.revision), run.budget, CUT_REVISION]
    parts = plan_parts(run.measured(source), folder, sha256(made_from))
    workers = min(workers or count_workers(None, 1, "cpu"), parts // FEW)
    if workers > 1:
        run_parts(run, source, folder, parts, workers)
    for _ in write_parts(config, run.tokenizer, run.budget, folder):
        pass
    if corpus_state(config) != state:
        raise InputError(f"'{config.source}' changed while it was read: run the command again.")
    return folder


def split_instructions(run: Run) -> Cut:
    """Lay the instructions out as rows; which are held out depends on their ids alone.

    Returns:
        (rows to train on, rows held out, counts).

    Raises:
        InputError: a bad record, or nothing left to train on.
    """
    options, counts = run.config.ift, Counter[str]()
    if options.source != PRACTICE and (files := _instruction_files(options)):
        counts.update({f"instruction {fate}": number for fate, number in files.counts.items()})
    rows: tuple[list[dict], list[dict]] = ([], [])
    records = read_instructions(options.source, options.split, options.revision, options.limit, options.subset)
    for row in instruction_rows(records, run.tokenizer, run.config.train.max_length, counts):
        rows[seeded("held out", row["id"]).random() < options.held_out].append(row)
    if not rows[0]:
        raise InputError(
            f"no instruction of '{options.source}' is left to train on (read: {counts['instructions read']}, longer than the "
            f"window: {counts['instructions longer than the window']}, without an answer to learn: "
            f"{counts['instructions without an answer to learn']}): raise train.max_length or lower ift.held_out."
        )
    counts["instructions held out"] = len(rows[1])
    return *rows, counts


def _read_instructions(run: Run) -> Cut:
    """Return the instruction rows of the run folder, or from their source, whose counts are not kept."""
    if any(name not in run.manifest.files for name in INSTRUCTIONS):
        return split_instructions(run)
    for name in INSTRUCTIONS:
        _require_unchanged(run, name)
    kept, held_out = ([row for _, row in read_jsonl(run.folder / name)] for name in INSTRUCTIONS)
    return kept, held_out, Counter()


def write_source(run: Run, source: str, folder: Path, workers: int | None = None) -> dict[str, str]:
    """Write the texts of a source, made from what they are made from, into a folder.

    Returns:
        The SHA-256 of each file by its path in the folder.
    """
    if source == "instructions":
        parts = (run.cut(source) if INSTRUCTIONS[0] not in run.manifest.files else split_instructions(run))[:2]
        paths = [write_jsonl(folder / name, rows) for name, rows in zip(INSTRUCTIONS, parts, strict=True)]
    else:
        paths = sorted(cut_corpus(run, source, folder / source, workers).iterdir())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


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
        ledger = ledger | (run.cut("instructions")[2] or split_instructions(run)[2])
    for stage in text_stages(run.config.arms):
        ledger = ledger | arm_ledger(run, stage, ledger)
    return ledger


# --- the stage --------------------------------------------------------------------------------------------------------


def prepare(run: Run, workers: int | None = None) -> None:
    """Do what ``Run.prepare`` says."""
    run.adopt(Manifest.read(run.folder))
    config = run.config
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
        for source in SOURCES[: 2 if config.general else 1]:
            run.measured(source)  # bad input is reported before anything is written
        assert run.budget
    with exclusive_lock(run.folder.parent / f".{run.folder.name}.lock", f"prepares {run.folder}", wait=True):
        there = Manifest.read(run.folder)
        run.adopt(there)
        if there.files:
            check_same(run)
        run.adopt(_extended(run))
        run.use_workshop(run.folder.parent / f".{run.folder.name}.texts")  # what is finished there survives a stop
        try:
            _write(run, there, workers)
        finally:
            run.use_workshop(None)


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


def _write(run: Run, there: Manifest, workers: int | None) -> None:
    """Write what is not there yet: texts, ledger, and the manifest last."""
    files, workshop = dict[str, str](), run.workshop
    for source in SOURCES:
        wanted = has_instructions(run) if source == "instructions" else corpus_of(run, source)
        if wanted and not any(name.startswith(source) for name in run.manifest.files):
            files |= write_source(run, source, workshop, workers)
    path = run.folder / "ledger.json"
    if there.files:
        recorded = read_json(path)
        if "instructions" not in there.hashes:  # a kill may have left counts of others
            recorded = {name: value for name, value in recorded.items() if not name.startswith("instruction")}
        ledger = _with_arms(run, recorded)
    else:
        ledger = ledger_of(run, run.config.seeds[0])
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(name.split("/")[0] for name in files):
        if (run.folder / name).is_dir():
            shutil.rmtree(run.folder / name)  # a kill left it behind, without a manifest
        os.replace(workshop / name, run.folder / name)
    run.manifest.files = run.manifest.files | files
    if not path.exists() or read_json(path) != ledger:
        write_json(path, ledger)
    if run.manifest != there:
        write_json(run.folder / "manifest.json", with_checksum(asdict(run.manifest)))
    shutil.rmtree(workshop, ignore_errors=True)
