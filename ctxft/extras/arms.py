"""The arms of the extras, which the table of arms knows by the package's entry points: nothing else imports this module.

adaptive           the prompt that suits the passage: one that a model wrote for it, else the choice of an oracle
control-adaptive   the prompt that a model wrote for another passage: does it matter that a prompt suits its text?
reading            no prompt, but exercises after the text: AdaptLLM (Cheng et al., ICLR 2024, arXiv 2309.09530)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ctxft.extras.reading import exercise_text, exercises_of
from ctxft.prompts.arms import Arm, PromptSources, negative_prompt, require_label, strategy_prompt
from ctxft.prompts.sets import ContextualPrompt
from ctxft.storage import InputError, checksum_holds, read_checked, read_json, seeded, sha256

if TYPE_CHECKING:
    from ctxft.config import ExperimentConfig
    from ctxft.data.passages import Passage


def _adaptive(sources: PromptSources, passage: Passage) -> ContextualPrompt:
    """Return the written prompt (cft's where it was rejected), or what an oracle that knows the truth label chooses."""
    if sources.written is not None:
        return sources.written[passage.id] or strategy_prompt(sources, passage)
    require_label(passage.id, passage.reliable)
    return strategy_prompt(sources, passage) if passage.reliable else negative_prompt(sources, passage)


def written_state(config: ExperimentConfig) -> str | None:
    """Return a hash of the prompts that a model wrote for this run; "" without a writer, None while some are missing."""
    if config.prompts.writer is None:
        return ""
    path = config.folder / "adaptive.json"
    record = read_json(path) if path.exists() else None
    if record is None or not checksum_holds(record) or record["failed"]:  # it is written again
        return None
    return sha256(record["rows"])


def written_prompts(config: ExperimentConfig, seed: int = 0) -> dict[str, ContextualPrompt | None] | None:
    """Read back what ``ctxft.extras.adaptive.adapt`` wrote.

    Returns:
        Passage id -> its prompt; None where cft's prompt is used. None where the config names no writer.

    Raises:
        InputError: nothing was written yet, or for another writer, the writer failed for some passages, or the file was
            changed.
    """
    path, writer = config.folder / "adaptive.json", config.prompts.writer
    if writer is None:
        return None
    if not path.exists():
        raise InputError(f"{config.folder} has no written prompts yet: run `ctxft prompts adapt CONFIG` first.")
    record = read_checked(path)
    if record["writer"] != writer.describe():
        raise InputError(
            f"{path} was written by another writer, or with another instruction: run `ctxft prompts adapt CONFIG` first."
        )
    if record["failed"]:
        raise InputError(
            f"{path} lacks prompts that the writer failed to give ({record['failure']}): run `ctxft prompts adapt CONFIG` "
            "again."
        )
    return {
        row["passage"]: row["prompt"] and ContextualPrompt(row["prompt"], row["family"], row["text"], "strategy")
        for row in record["rows"]
    }


def exchanged_prompts(config: ExperimentConfig, seed: int) -> dict[str, ContextualPrompt | None] | None:
    """Return ``written_prompts``, each of another passage."""
    written = written_prompts(config)
    return None if written is None else exchanged(written, seed)


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


def _exercises(passages: Sequence[Passage], number: int, seed: int) -> list[str]:
    return [exercise_text(exercise) for exercise in exercises_of(passages, number, seed)]


ARMS = [
    Arm(
        "adaptive",
        "the prompt that suits the text: a language model wrote it, or an oracle that knows which texts are true chose it",
        "#E69F00",
        _adaptive,
        compared=False,
        needs=("label",),
        written=written_prompts,
        written_state=written_state,
        rank=50,
    ),
    Arm(
        "control-adaptive",
        "the prompt that a model wrote for another passage",
        "#8F6700",
        _adaptive,
        control=True,
        needs=("writer",),
        written=exchanged_prompts,
        written_state=written_state,
        rank=90,
    ),
    Arm(
        "reading",
        "no prompt, but exercises about the text after it",
        "#004A73",
        after=_exercises,
        compared=False,
        rank=110,
    ),
]
