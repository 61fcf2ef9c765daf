"""The prompt of one arm before one passage, for tests that need no run."""

from types import SimpleNamespace

from ctxft.prompts import ContextualPrompt, PromptSources, get_arm

TEXT_ARMS = ("cpt", "cft", "neg", "control", "adaptive")


def prompt_for(
    arm, passage_id, seed, strategies, negative, tokenizer, reliable=None, written=None
) -> ContextualPrompt | None:
    """Return the prompt that an arm reads before a passage of this id."""
    sources = PromptSources(seed, strategies, negative, tokenizer, written)
    return get_arm(arm).prompt_of(sources, SimpleNamespace(id=passage_id, reliable=reliable))
