"""A corpus and two prompt sets flow in; a view of one training row flows out: which prompt an arm reads there, and its cost."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets

from ctxft.data.rows import build_row, fitting_pieces, prompt_ids, prompt_template, special_tokens
from ctxft.prompts import ContextualPrompt, PromptSet, PromptSources, check_subsets, get_arm, text_stages
from ctxft.prompts.arms import Arm, table
from ctxft.report.rows import Part, check_prompt, cost_text, row_html, row_parts, row_text
from ctxft.storage import InputError
from ctxft.widgets.base import Explorer, framed, labelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ctxft.config import ExperimentConfig
    from ctxft.data.passages import Passage


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
        writer = self.config.prompts.writer is not None
        lacking = {"label": not (writer or labelled_all), "writer": not writer}
        lacking["families"] = len(self.strategies.families) == 1
        counts = [arm for arm in text_stages(self.config.arms) if get_arm(arm).kind == "count"]
        check_subsets(counts, self.strategies)
        shown = [arm for arm in sorted(table().values(), key=lambda arm: arm.order) if arm.reads_text]
        shown = [arm for arm in shown if arm.parameter != "N" and not any(lacking.get(need) for need in arm.needs)]
        missing = [arm.name for arm in shown if arm.written_state and arm.written_state(self.config) is None]
        return [arm.name for arm in shown if arm.name not in missing] + counts

    def _enable(self, _change: dict) -> None:
        self.family.disabled = not self.arm.value.endswith("FAMILY")

    @property
    def stage(self) -> str:
        """The arm that is shown, its family filled in."""
        return self.arm.value.replace("FAMILY", self.family.value)

    @property
    def passage(self) -> Passage:
        """The passage that is shown."""
        return self.passages[self.number.value - 1]

    @property
    def prompt(self) -> ContextualPrompt | None:
        """The prompt that is shown: the typed one, else the arm's; None for an arm that reads none."""
        if self.own.value:
            return ContextualPrompt("your own", "your own", self.own.value.strip(), "strategy")
        arm = get_arm(self.stage)
        written = arm.written(self.config, self.seed) if arm.written else None
        sources = PromptSources(self.seed, self.strategies, self.negative, self.tokenizer, written)
        return arm.prompt_of(sources, self.passage)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the typed prompt; nothing where none is typed."""
        if not self.own.value:
            return []
        train = self.config.train
        return check_prompt(self.own.value, self.passage, self._count, train.max_length, train.min_text_tokens)

    @property
    def parts(self) -> list[Part]:
        """The row that is shown, taken apart."""
        before = prompt_ids(self.tokenizer, self.prompt, self.template)
        arm = get_arm(self.stage)
        after = self._after(arm) if arm.after and not self.own.value else []
        row = build_row(self.passage, before, self.special, arm.learn_prompt, after)
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

    def _after(self, arm: Arm) -> list[int]:
        """Return the ids of the text after the passage; an arm may need its neighbors for that."""
        passage, place = self.passage, self.number.value - 1
        first = max(0, place - 1)
        pieces = list(arm.after(self.passages[first : place + 2], self.seed))[place - first]
        room = self.config.train.max_length - 1 - passage.targets
        return fitting_pieces(self.tokenizer, pieces, room)[1]
