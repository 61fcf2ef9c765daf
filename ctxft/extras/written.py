"""A run folder flows in; the prompts that a model wrote for its passages flow out (``ctxft.extras.adaptive`` writes them)."""

from __future__ import annotations

from collections.abc import Mapping

from ctxft.config import ExperimentConfig, WriterConfig
from ctxft.prompts import ContextualPrompt
from ctxft.storage import InputError, read_json, read_jsonl, seeded, sha256

RUN_FIRST = "run `ctxft prompts adapt CONFIG` first"


def writer_of(config: ExperimentConfig) -> WriterConfig:
    """Return the experiment's writer; raises InputError if it has none."""
    if config.prompts.writer is None:
        raise InputError("no model that writes prompts is named: set prompts.writer (model, and perhaps server).")
    return config.prompts.writer


def _is_there(config: ExperimentConfig) -> bool:
    return all((config.folder / f"adaptive.{kind}").exists() for kind in ("jsonl", "json"))


def is_written(config: ExperimentConfig) -> bool:
    """Return whether a model wrote prompts for this run, and failed for no passage."""
    return _is_there(config) and failure_of(config) is None


def written_state(config: ExperimentConfig) -> str:
    """Return a hash of the prompts that a model wrote for this run."""
    return read_json(config.folder / "adaptive.json")["rows"]


def failure_of(config: ExperimentConfig) -> str | None:
    """Return why the first of the prompts that the writer failed to give is missing, or None if it gave all."""
    reasons = (row.get("reason", "") for _, row in read_jsonl(config.folder / "adaptive.jsonl"))
    return next((reason.removeprefix("failed: ") for reason in reasons if reason.startswith("failed: ")), None)


def written_prompts(config: ExperimentConfig) -> dict[str, ContextualPrompt | None]:
    """Read back what ``adapt`` wrote.

    Returns:
        Passage id -> its prompt; None where the drawn prompt stands.

    Raises:
        InputError: nothing was written yet, or for another writer, the writer failed for some passages, or the files do not
            belong together.
    """
    path = config.folder / "adaptive.jsonl"
    if not _is_there(config):
        raise InputError(f"{config.folder} has no written prompts yet: {RUN_FIRST}.")
    record, rows = read_json(path.with_suffix(".json")), [row for _, row in read_jsonl(path)]
    if record["rows"] != sha256(rows):
        raise InputError(f"{path} was changed, or its writing was stopped: {RUN_FIRST}.")
    if record["writer"] != writer_of(config).describe():
        raise InputError(f"{path} was written by another writer, or with another instruction: {RUN_FIRST}.")
    if failure := failure_of(config):
        raise InputError(
            f"{path} lacks prompts that the writer failed to give ({failure}): run `ctxft prompts adapt CONFIG` again."
        )
    return {row["passage"]: _prompt(row) for row in rows}


def _prompt(row: dict) -> ContextualPrompt | None:
    return row["prompt"] and ContextualPrompt(row["prompt"], row["family"], row["text"], "strategy")


def exchanged(written: Mapping[str, ContextualPrompt | None], seed: int) -> dict[str, ContextualPrompt | None]:
    """Give each passage the prompt that was written for another one, in a single cycle that the seed chooses.

    Passages whose prompt was rejected stay without: they read cft's in both arms.

    Raises:
        InputError: fewer than two passages have a written prompt.

    Example:
        >>> a, b = (ContextualPrompt(name, "context", name, "strategy") for name in "ab")
        >>> exchanged({"p": a, "q": b, "r": None}, seed=0) == {"p": b, "q": a, "r": None}
        True
    """
    passages = sorted(passage for passage, prompt in written.items() if prompt)
    if len(passages) < 2:
        raise InputError(
            f"arm control-adaptive exchanges written prompts, but only {len(passages)} passages have one: leave it out."
        )
    seeded(seed, "exchanged").shuffle(passages)
    others = passages[1:] + passages[:1]
    return {**written, **{passage: written[other] for passage, other in zip(passages, others, strict=True)}}
