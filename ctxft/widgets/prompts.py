"""A corpus and two prompt sets flow in; a view of one training row flows out: which prompt an arm reads there, and its cost."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets

from ctxft.data.rows import build_row, exercise_ids, prompt_ids, prompt_template, special_tokens
from ctxft.extras.exercises import exercises_of
from ctxft.extras.written import is_written, written_prompts
from ctxft.prompts import TEXT_STAGES, ContextualPrompt, PromptSet, check_subsets, prompt_for
from ctxft.prompts.arms import IFT, VARIANTS, WRITTEN, exchanged
from ctxft.report.rows import Part, check_prompt, cost_text, row_html, row_parts, row_text
from ctxft.storage import InputError
from ctxft.widgets.base import Explorer, framed, labelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ctxft.config import ExperimentConfig
    from ctxft.data.passages import Passage

FAMILY = "FAMILY"  # stands in the names of arms that the control "family" completes
PARTS = (f"only-{FAMILY}", f"without-{FAMILY}")


class PromptExplorer(Explorer):
    """Choose an arm, a family and a passage, and see the prompt, the row's tokens and what the prompt costs.

    A prompt that is typed into the last field stands in place of the arm's own and is checked as it is typed.

    Args:
        config: the experiment: its window, and where a model wrote prompts, those.
        passages: of the corpus, in order.
        tokenizer: of the model.
        strategies, negative: the prompt sets.
        seed: draws the prompts.

    Raises:
        InputError: there is no passage.

    Example:
        >>> PromptExplorer(config, passages, tokenizer, *prompt_sets_of(config))  # doctest: +SKIP
    """

    def __init__(
        self,
        config: ExperimentConfig,
        passages: Sequence[Passage],
        tokenizer: PreTrainedTokenizerBase,
        strategies: PromptSet,
        negative: PromptSet,
        seed: int = 0,
    ) -> None:
        if not passages:
            raise InputError("a prompt explorer needs at least one passage.")
        self.config, self.passages, self.tokenizer, self.seed = config, list(passages), tokenizer, seed
        self.strategies, self.negative = strategies, negative
        self.template, self.special = prompt_template(tokenizer, strategies), special_tokens(tokenizer)
        self.written = written_prompts(config) if config.prompts.writer and is_written(config) else None
        self.arm = labelled(ipywidgets.Dropdown, "arm", options=self._arms(), value="cft")
        self.family = labelled(ipywidgets.Dropdown, "family", options=strategies.families, disabled=True)
        label = f"passage, 1 to {len(self.passages)}"
        self.number = labelled(ipywidgets.BoundedIntText, label, "15em", value=1, min=1, max=len(self.passages))
        given = {"placeholder": "type a prompt, and it stands in place of the arm's", "rows": 2}
        self.own = labelled(ipywidgets.Textarea, "your own prompt", "100%", **given)
        self.arm.observe(self._enable, names="value")
        super().__init__([self.arm, self.family, self.number], [self.own])

    def _arms(self) -> list[str]:
        """Return the arms that can be shown: those that need a label or a written prompt only where there is one."""
        labelled_all = all(passage.reliable is not None for passage in self.passages)
        there = {"adaptive": self.written is not None or labelled_all, "control-adaptive": self.written is not None}
        parts = PARTS if len(self.strategies.families) > 1 else PARTS[:1]
        counts = [arm.removesuffix(IFT) for arm in self.config.arms if arm.startswith("count-")]
        check_subsets(counts, self.strategies)
        return [arm for arm in (*TEXT_STAGES, *VARIANTS, *parts, *dict.fromkeys(counts)) if there.get(arm, True)]

    def _enable(self, _change: dict) -> None:
        self.family.disabled = self.arm.value not in PARTS

    @property
    def stage(self) -> str:
        """The arm that is shown, its family filled in."""
        return self.arm.value.replace(FAMILY, self.family.value)

    @property
    def passage(self) -> Passage:
        """The passage that is shown."""
        return self.passages[self.number.value - 1]

    @property
    def prompt(self) -> ContextualPrompt | None:
        """The prompt that is shown: the typed one, else the arm's; None for an arm that reads none."""
        if self.own.value:
            return ContextualPrompt("your own", "your own", self.own.value.strip(), "strategy")
        written, passage = self.written if self.stage in WRITTEN else None, self.passage
        if written and self.stage == "control-adaptive":
            written = exchanged(written, self.seed)
        given = (self.seed, self.strategies, self.negative, self.tokenizer, passage.reliable, written)
        return prompt_for(self.stage, passage.id, *given)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the typed prompt; nothing where none is typed."""
        if not self.own.value:
            return []
        train = self.config.train
        return check_prompt(self.own.value, self.passage, self._count, train.window, train.min_text_tokens)

    @property
    def parts(self) -> list[Part]:
        """The row that is shown, taken apart."""
        before = prompt_ids(self.tokenizer, self.prompt, self.template)
        after = self._exercises() if self.stage == "reading" and not self.own.value else []
        learned = self.stage == "cft-learned"
        row = build_row(self.passage, before, self.special, learned, after)
        return row_parts(row, self.tokenizer, self.special.eos, len(before), len(after))

    @property
    def text(self) -> str:
        """The row that is shown, as text."""
        problems = self.problems
        said = [self._title(), *self._about(), *(f"! {problem}" for problem in problems)]
        if self._can_be_read():
            said += [cost_text(self.parts), "", row_text(self.parts)]
        return "\n".join(said)

    @property
    def html(self) -> str:
        """The row that is shown, as HTML."""
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self._about())
        problems = "".join(f"<li>{html.escape(problem)}</li>" for problem in self.problems)
        alert = f'<div role="alert"><b>Look at your prompt:</b><ul>{problems}</ul></div>' if problems else ""
        row = f"<p>{cost_text(self.parts)}</p>{row_html(self.parts)}" if self._can_be_read() else ""
        return framed(f"<h4>{html.escape(self._title())}</h4>", lines, alert, row)

    def _title(self) -> str:
        return f"{self.stage}, passage {self.passage.id} ({self.number.value} of {len(self.passages)})"

    def _about(self) -> list[str]:
        if not self._can_be_read():
            return []
        if self.prompt is None:
            return ["No prompt."]
        idea = self.strategies.ideas.get(self.prompt.family)
        known = [f"The idea: {idea}"] if idea and self.prompt.kind == "strategy" else []
        return [f"Prompt {self.prompt.id} (family {self.prompt.family}): {self.prompt.text}", *known]

    def _can_be_read(self) -> bool:
        """Return whether the tokenizer can take what is typed."""
        return not self.own.value or (bool(self.own.value.strip()) and self.own.value.isprintable())

    def _count(self, text: str) -> int:
        prompt = ContextualPrompt("your own", "your own", text.strip(), "strategy")
        return len(prompt_ids(self.tokenizer, prompt, self.template))

    def _exercises(self) -> list[int]:
        passage, place = self.passage, self.number.value - 1
        first = max(0, place - 1)
        exercises = list(exercises_of(self.passages[first : place + 2], self.seed))[place - first]
        room = self.config.train.window - 1 - len(passage.ids) - passage.last
        return exercise_ids(self.tokenizer, exercises, room)[0]
