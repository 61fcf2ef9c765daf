"""An experiment flows in; a run folder flows out that holds what all its arms share.

    ExperimentConfig -> passages.jsonl, held_out.jsonl, ledger.json, manifest.json

All arms read the same passages in the same order with the same targets; only what stands before the text differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig
from ctxft.data.documents import corpus_state
from ctxft.data.passages import passages_hash, passages_of
from ctxft.data.rows import text_budget
from ctxft.evaluation.benchmarks.requests import require_chat_template
from ctxft.models import check_model, model_hash, resolve_model, shared_tokenizer
from ctxft.prompts import check_labels, check_subsets, sort_arms
from ctxft.run.instruct import has_instructions, prepare_instructions
from ctxft.run.rows import add_arms, corpus_ledger, longest_of, prompt_sets_of
from ctxft.storage import (
    InputError,
    code_revision,
    read_checked,
    read_json,
    sha256,
    versions,
    with_checksum,
    write_json,
    write_jsonl,
)
from ctxft.training.config import FREE

# Inputs that may lie elsewhere than when the run was made: their content is compared, not their place.
BY_HASH = ("model", "corpus.source", "prompts.strategies", "prompts.negative", "general.source", "ift.source")
WRITER = "prompts.writer"
HOW_TO_ASK = tuple("key_variable batch timeout retries requests_per_minute price_in price_out limit_cost".split())
# What may stand in a run folder without a manifest: executed notebooks, answers of hosted models, and what a killed
# preparation left behind.
TEXTS = ("passages", "held_out", "general", "general_held_out", "instructions", "instructions_held_out")
PREPARED = (
    "notebooks",
    "hosted",
    "index.html",
    *(f"{name}.jsonl" for name in TEXTS),
    "instructions.json",
    "ledger.json",
)


def prepare(config: ExperimentConfig) -> Path:
    """Cut the corpus, count its tokens and write what all arms share; a folder that is prepared already is checked.

    Processes that prepare the same run at the same time do so one after another.

    Returns:
        The run folder.

    Raises:
        InputError: bad input, a folder that is not a run, or a run with another config (what differs is named).
    """
    root = config.folder.parent
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{config.name}.lock")
    try:
        with lock:
            try:
                return _prepare(config)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        if made:  # bad input leaves nothing behind
            with contextlib.suppress(OSError):
                root.rmdir()


def _prepare(config: ExperimentConfig) -> Path:
    folder, wanted, manifest = config.folder, config, manifest_of(config)
    config = pinned(config, manifest)
    check_model(config.model, config.revision, config.train.window)
    inputs = inputs_of(config)
    tokenizer = shared_tokenizer(config.model, config.revision)
    if config.evaluation.chat_template:
        require_chat_template(tokenizer)  # told before hours of training
    check_subsets(config.arms, prompt_sets_of(config)[0])
    if manifest is not None:
        check_same(wanted, manifest, inputs)
        _extend(config, manifest, tokenizer)
        return folder
    if folder.exists() and any(p.name not in PREPARED and p.suffix != ".part" for p in folder.iterdir()):
        raise InputError(f"{folder} is not empty and not a run (no manifest.json): choose another name, or empty it.")
    commits = {"model_commit": resolve_model(config.model, config.revision)[1]}
    commits["corpus_commit"] = corpus_state(config.corpus)[1]
    commits["general_commit"] = corpus_state(config.general)[1] if config.general else None
    config = pinned(config, commits)
    budget = text_budget(config.train.window, longest_of(config, tokenizer), config.train.min_text_tokens)
    passages, held_out, counts = passages_of(config.corpus, tokenizer, budget)
    check_labels(config.arms, passages, config.prompts.writer is not None)  # before anything is written
    inputs |= {"passages": passages_hash(passages), "held_out": passages_hash(held_out)}
    write_jsonl(folder / "passages.jsonl", (p.to_json() for p in passages))
    write_jsonl(folder / "held_out.jsonl", (p.to_json() for p in held_out))
    general = _prepare_general(config, tokenizer, budget)
    ledger = corpus_ledger(config, counts, tokenizer) | {"passages": len(passages), "passages held out": len(held_out)}
    ledger |= general | (prepare_instructions(config, tokenizer) or {})
    write_json(folder / "ledger.json", add_arms(config, ledger, tokenizer))
    manifest = {"name": config.name, "config": dataclasses.asdict(wanted), "hashes": inputs, **commits}
    write_json(folder / "manifest.json", with_checksum(manifest | {"versions": versions(), "code": code_revision()}))
    return folder


def _prepare_general(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, budget: int) -> dict:
    """Cut the general text, if there is any, and return what the ledger says of it."""
    if config.general is None:
        return {}
    passages, held_out, counts = passages_of(config.general, tokenizer, budget)
    write_jsonl(config.folder / "general.jsonl", (p.to_json() for p in passages))
    write_jsonl(config.folder / "general_held_out.jsonl", (p.to_json() for p in held_out))
    counts |= {"passages": len(passages), "passages held out": len(held_out)}
    return {f"general text: {name}": value for name, value in sorted(counts.items())}


def manifest_of(config: ExperimentConfig) -> dict | None:
    """Return the manifest of the experiment's run folder, or None if it is not prepared yet."""
    path = config.folder / "manifest.json"
    return read_checked(path) if path.exists() else None


def pinned(config: ExperimentConfig, manifest: dict | None) -> ExperimentConfig:
    """Fix hub revisions to the commits that a run recorded, so that a change on the hub, or its absence, cannot touch the run.

    A revision that the config names itself stays.
    """
    if manifest is None:
        return config
    corpus = dataclasses.replace(config.corpus, revision=config.corpus.revision or manifest["corpus_commit"])
    general = config.general
    if general is not None:
        general = dataclasses.replace(general, revision=general.revision or manifest["general_commit"])
    revision = config.revision or manifest["model_commit"]
    return dataclasses.replace(config, revision=revision, corpus=corpus, general=general)


def inputs_of(config: ExperimentConfig) -> dict[str, str]:
    """Return the hashes of what an experiment reads: model, corpus and prompt sets."""
    strategies, negative = prompt_sets_of(config)
    found = {
        "model": model_hash(config.model, config.revision),
        "corpus": corpus_state(config.corpus)[0],
        "prompts": sha256([strategies.hash, negative.hash]),
    }
    return found | ({"general": corpus_state(config.general)[0]} if config.general else {})


def require_same(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment pinned to its run's commits.

    Raises:
        InputError: the run is not prepared, or holds another experiment (what differs is named).
    """
    manifest = manifest_of(config)
    if manifest is None:
        raise InputError(f"{config.folder} is not a run yet: run `ctxft train` first.")
    exact = pinned(config, manifest)
    check_same(config, manifest, inputs_of(exact))
    return exact


def _extend(config: ExperimentConfig, manifest: dict, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write arms and seeds that were added to a run into its manifest and ledger."""
    then = manifest["config"]
    arms = sort_arms([*then["arms"], *config.arms])
    seeds = sorted({*then["seeds"], *config.seeds})
    evaluation = dataclasses.asdict(config.evaluation)
    now = {**then, "arms": arms, "seeds": seeds, "evaluation": evaluation}
    if has_instructions(config.arms):
        now["ift"] = dataclasses.asdict(config.ift)
    instructions = prepare_instructions(config, tokenizer)
    known = read_json(config.folder / "ledger.json")
    ledger = add_arms(config, known | (instructions or {}), tokenizer)
    if ledger != known:  # also where a model has written its prompts since
        write_json(config.folder / "ledger.json", ledger)
    if now != then:
        write_json(config.folder / "manifest.json", with_checksum({**manifest, "config": now}))


def check_same(config: ExperimentConfig, manifest: dict, inputs: dict) -> None:
    """Refuse an experiment that is not the one of a manifest, or inputs of other hashes; what differs is named."""

    def flat(values: dict, before: str = "") -> dict:
        pairs = [flat(v, f"{before}{k}.") if isinstance(v, dict) else {f"{before}{k}": v} for k, v in values.items()]
        return {key: value for pair in pairs for key, value in pair.items()}

    then, now = flat(manifest["config"]), flat(config.identity())
    free = "ift." if not has_instructions(manifest["config"]["arms"]) else None  # no arm has that stage yet
    now = {key: value for key, value in now.items() if key not in BY_HASH and not (free and key.startswith(free))}
    now = {key: value for key, value in now.items() if key.removeprefix("train.") not in FREE}
    now = {key: value for key, value in now.items() if key.removeprefix(f"{WRITER}.") not in HOW_TO_ASK}
    now |= {key: None for key in then if WRITER in now and key.startswith(f"{WRITER}.") and key.endswith(".model")}
    changed = [f"{key} was {then.get(key)!r}, is {value!r}" for key, value in now.items() if then.get(key) != value]
    changed += [f"the {key} changed" for key, value in inputs.items() if manifest["hashes"].get(key) != value]
    if changed:
        raise InputError(
            f"{config.folder} holds another run ({'; '.join(changed)}): choose another name, or remove that folder."
        )
