"""Prompts: books of contextual prompts, the stages of an arm, and the prompt that it reads before a passage."""

from ctxft.prompts.arms import (
    ARMS,
    COMMON_WORDS,
    SEPARATOR,
    TEXT_STAGES,
    control_prompt,
    count_tokens,
    prompt_for,
    require_label,
    stages_of,
)
from ctxft.prompts.books import BOOKS, ContextualPrompt, PromptBook, load_book

# fmt: off
__all__ = [
    "ARMS", "BOOKS", "COMMON_WORDS", "SEPARATOR", "TEXT_STAGES", "ContextualPrompt", "PromptBook", "control_prompt",
    "count_tokens", "load_book", "prompt_for", "require_label", "stages_of",
]
