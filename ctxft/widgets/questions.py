"""A benchmark's questions and what the arms answered flow in; one question at a time, as text, flows out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets

from ctxft.prompts import get_arm
from ctxft.report.items import answers_of, disagreements, item_text
from ctxft.statistics import Outcomes
from ctxft.storage import InputError
from ctxft.widgets.base import Explorer, labelled

if TYPE_CHECKING:
    from ctxft.evaluation.benchmarks import Question

SHOWN = ("all questions", "arms disagree", "all trained arms wrong")


class QuestionBrowser(Explorer):
    """Turn over a benchmark's questions and see what each arm answered; ``text`` is what it shows.

    Args:
        questions: of the benchmark.
        arms: arm -> seed -> outcomes, as in ``RunRecord.outcomes[benchmark]``.
        seeds: those that can be chosen.

    Raises:
        InputError: there is no seed, or an arm lacks one.

    Example:
        >>> QuestionBrowser(benchmark.questions, run.outcomes[benchmark.name], config.seeds)  # doctest: +SKIP
    """

    def __init__(self, questions: Sequence[Question], arms: Outcomes, seeds: Sequence[int]) -> None:
        if not seeds:
            raise InputError("a question browser needs at least one seed.")
        self.questions = list(questions)
        self.answers = {seed: answers_of(arms, seed) for seed in seeds}
        self.shown = labelled(ipywidgets.Dropdown, "show", options=SHOWN)
        self.seed = labelled(ipywidgets.Dropdown, "seed", options=list(seeds))
        label = f"number, 1 to {len(self.questions)}"
        self.number = labelled(ipywidgets.BoundedIntText, label, "15em", value=1, min=1, max=len(self.questions))
        super().__init__([self.shown, self.seed, self.number])

    @property
    def chosen(self) -> list[Question]:
        """The questions that the chosen filter leaves, in order."""
        answers = self.answers[self.seed.value]
        if self.shown.value == "arms disagree":
            kept = set(disagreements(answers))
        elif self.shown.value == "all trained arms wrong":
            kept = {
                i for i, rows in answers.items() if not any(r["correct"] for a, r in rows.items() if get_arm(a).stages)
            }
        else:
            kept = set(answers)
        return [question for question in self.questions if question.id in kept]

    @property
    def text(self) -> str:
        """The question shown, as text."""
        chosen = self.chosen
        if not chosen:
            return "No such question."
        place = min(self.number.value, len(chosen))
        question = chosen[place - 1]
        return f"{place} of {len(chosen)}\n\n{item_text(question, self.answers[self.seed.value][question.id])}"
