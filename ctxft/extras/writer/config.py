"""Say what a writer of prompts reads for one passage, and what decides every text that it writes."""

from __future__ import annotations

from ctxft.config import WriterConfig
from ctxft.models import model_hash
from ctxft.prompts import PromptSet

FAMILY_SEED = 0  # draws the family of a passage, the same for every seed of a run: a prompt is written once


def identity_of(config: WriterConfig) -> list:
    """Return what decides every output, as plain values; a model on this machine counts with its weights.

    Raises:
        InputError: the model is not found.
    """
    who = model_hash(config.model) if config.server is None else [config.server.rstrip("/"), config.model]
    return [who, config.instruction, config.room]


def messages_for(config: WriterConfig, family: str, prompt_set: PromptSet, passage_text: str) -> list[dict[str, str]]:
    """Return what the writer is asked for one passage; all in one turn, since not every chat template has a system's."""
    idea = prompt_set.ideas.get(family, "")
    strategy = f"Strategy: {family}. {idea}".strip()
    return [{"role": "user", "content": f"{config.instruction}\n\n{strategy}\n\nText:\n{passage_text.strip()}"}]
