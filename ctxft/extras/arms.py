"""The arms of the extras, which the table of arms knows by the package's entry points: nothing else imports this module.

adaptive           the prompt that suits the passage: one that a model wrote for it, else the choice of an oracle
control-adaptive   the prompt that a model wrote for another passage: does it matter that a prompt suits its text?
reading            no prompt, but exercises after the text: AdaptLLM (Cheng et al., ICLR 2024, arXiv 2309.09530)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ctxft.prompts.arms import Arm, PromptSources, negative_prompt, require_label, strategy_prompt

if TYPE_CHECKING:
    from ctxft.config import ExperimentConfig
    from ctxft.data.passages import Passage
    from ctxft.prompts import ContextualPrompt


def _adaptive(sources: PromptSources, passage: Passage) -> ContextualPrompt:
    """Return the written prompt (cft's where it was rejected), or what an oracle that knows the truth label chooses."""
    if sources.written is not None:
        return sources.written[passage.id] or strategy_prompt(sources, passage)
    require_label(passage.id, passage.reliable)
    return strategy_prompt(sources, passage) if passage.reliable else negative_prompt(sources, passage)


def _written(config: ExperimentConfig, seed: int) -> Mapping[str, ContextualPrompt | None] | None:
    from ctxft.extras.adaptive import written_prompts

    return written_prompts(config) if config.prompts.writer else None


def _exchanged(config: ExperimentConfig, seed: int) -> Mapping[str, ContextualPrompt | None] | None:
    from ctxft.extras.adaptive import exchanged

    written = _written(config, seed)
    return None if written is None else exchanged(written, seed)


def _state(config: ExperimentConfig) -> str | None:
    from ctxft.extras.adaptive import written_state

    return written_state(config)


def _exercises(passages: Sequence[Passage], seed: int) -> Iterator[Sequence[str]]:
    from ctxft.extras.reading import exercise_text, exercises_of

    for exercises in exercises_of(passages, seed):
        yield [exercise_text(exercise) for exercise in exercises]


ARMS = [
    Arm(
        "adaptive",
        "the prompt that suits the text: a language model wrote it, or an oracle that knows which texts are true chose it",
        "#E69F00",
        _adaptive,
        sets=("strategies", "negative"),
        compared=False,
        needs=("label",),
        written=_written,
        written_state=_state,
        rank=50,
    ),
    Arm(
        "control-adaptive",
        "the prompt that a model wrote for another passage",
        "#8F6700",
        _adaptive,
        control=True,
        needs=("writer",),
        written=_exchanged,
        written_state=_state,
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
