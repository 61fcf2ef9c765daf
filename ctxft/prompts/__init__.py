"""Prompts: books of contextual prompts, and the prompt that an arm reads before a passage."""

from ctxft.prompts.arms import ARMS, COMMON_WORDS, SEPARATOR, control_prompt, count_tokens, prompt_for, require_label
from ctxft.prompts.books import BOOKS, ContextualPrompt, PromptBook, load_book

__all__ = [
    "ARMS",
    "BOOKS",
    "COMMON_WORDS",
    "SEPARATOR",
    "ContextualPrompt",
    "PromptBook",
    "control_prompt",
    "count_tokens",
    "load_book",
    "prompt_for",
    "require_label",
]
