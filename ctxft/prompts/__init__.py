"""Prompts: prompt sets of contextual prompts, the names of the arms, and the prompt that each reads before a passage."""

from ctxft.prompts.arms import TEXT_STAGES, check_arm, check_subsets, in_order, prompt_for, require_label, stages_of
from ctxft.prompts.controls import COMMON_WORDS, control_prompt, count_tokens
from ctxft.prompts.files import load_prompt_set
from ctxft.prompts.sets import FAMILIES, PROMPT_SETS, SEPARATOR, ContextualPrompt, PromptSet

# fmt: off
__all__ = [
    "COMMON_WORDS",
    "FAMILIES",
    "PROMPT_SETS",
    "SEPARATOR",
    "TEXT_STAGES",
    "ContextualPrompt",
    "PromptSet",
    "check_arm",
    "check_subsets",
    "control_prompt",
    "count_tokens",
    "in_order",
    "load_prompt_set",
    "prompt_for",
    "require_label",
    "stages_of",
]
