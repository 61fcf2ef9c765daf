"""Prompts: books of contextual prompts, the names of the arms, and the prompt that each reads before a passage."""

from ctxft.prompts.arms import TEXT_STAGES, check_arm, check_subsets, in_order, prompt_for, require_label, stages_of
from ctxft.prompts.controls import COMMON_WORDS, control_prompt, count_tokens
from ctxft.prompts.files import load_book
from ctxft.prompts.sets import BOOKS, FAMILIES, SEPARATOR, ContextualPrompt, PromptBook

# fmt: off
__all__ = [
    "BOOKS", "COMMON_WORDS", "FAMILIES", "SEPARATOR", "TEXT_STAGES", "ContextualPrompt", "PromptBook", "check_arm",
    "check_subsets", "control_prompt", "count_tokens", "in_order", "load_book", "prompt_for", "require_label", "stages_of",
]
