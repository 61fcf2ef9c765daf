"""Sample contextual prompts: prompt sets, controls, and the table of arms that says what each arm reads."""

from ctxft.prompts.arms import (
    Arm,
    PromptSources,
    add_plugins,
    check_subsets,
    get_arm,
    sort_arms,
    text_stages,
)
from ctxft.prompts.controls import COMMON_WORDS, control_prompt, count_tokens
from ctxft.prompts.sets import FAMILIES, PROMPT_SETS, SEPARATOR, ContextualPrompt, PromptSet, load_prompt_set
