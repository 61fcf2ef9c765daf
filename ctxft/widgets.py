"""Look at a run in JupyterLab: its prompts, rows, texts, questions and results, and a training that starts and stops at a button.

A widget is some controls above a view. The view is HTML that a template makes from the controls' values, so it can be had, and
tested, without a browser; where no front end runs a kernel (GitHub, a page), a cell shows the view as it was when the cell ran.
All work by keyboard, and nothing is shown by color alone.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import html
import itertools
import json
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets
import pandas
from markupsafe import Markup
from transformers import PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig, from_mapping
from ctxft.course import duration
from ctxft.data.passages import Passage
from ctxft.data.rows import Rows, prompt_ids, special_tokens
from ctxft.evaluation.benchmarks import Question
from ctxft.prompts import ContextualPrompt, check_subsets, get_arm, text_stages
from ctxft.prompts.arms import table, with_labels
from ctxft.prompts.sets import PromptEntry
from ctxft.report import Table, differences_figure, loss_figure, overall, render_html, results_table
from ctxft.report.comparisons import compared
from ctxft.report.figures import picture
from ctxft.report.record import Source, as_record
from ctxft.run.rows import build_rows
from ctxft.run.run import Run
from ctxft.statistics import Outcomes
from ctxft.storage import FailedError, InputError, check_known, is_unicode, read_json
from ctxft.training.checkpoint import checkpoints
from ctxft.training.packing import MicroBatch, micro_batches


def labeled(kind: type[ipywidgets.DOMWidget], label: str, width: str = "auto", **values: object) -> Any:
    """Return a control whose label is shown in full."""
    if issubclass(kind, ipywidgets.Dropdown):  # JupyterLab takes bare arrow keys for itself
        values["tooltip"] = "the space bar opens the list, arrows and Enter choose"
    layout = ipywidgets.Layout(width=width, margin="2px 1.2em 2px 2px")
    return kind(description=label, style={"description_width": "initial"}, layout=layout, **values)


def counter(label: str, first: int = 1, last: int = 1) -> ipywidgets.BoundedIntText:
    """Return a control for a number from ``first``, which it has at first, to ``last``."""
    width = f"{8 + len(label) // 2}em"
    return labeled(ipywidgets.BoundedIntText, label, width, value=first, min=first, max=max(first, last))


def plain_text(page: str) -> str:
    """Return a view as lines of text.

    Example:
        >>> plain_text("<p>1 &lt; 2</p><table><tr><td>a</td><td>b</td></tr></table>")
        '1 < 2\\na  b'
    """
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    page = re.sub(r'<img alt="(.*?)"', r"\1<img", page)
    page = re.sub(r"</(p|h\d|li|tr|pre|div|summary)>", "\n", page.replace("<wbr>", "|"))
    page = re.sub(r"<[^>]*>", "", re.sub(r"</t[dh]>", "  ", page))  # a text of others has no tags: it is escaped
    return "\n".join(line.rstrip() for line in html.unescape(page).splitlines() if line.strip())


class Explorer(ipywidgets.VBox):
    """Controls above a view, which each kind of widget makes by ``shown``.

    Args:
        controls: rows of controls; a change of any changes the view.

    Raises:
        InputError: what the controls ask for at first is not there.
    """

    def __init__(self, *controls: Sequence[ipywidgets.DOMWidget]) -> None:
        self.view = ipywidgets.HTML(layout=ipywidgets.Layout(width="100%"))
        line = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        super().__init__([*(ipywidgets.HBox(list(row), layout=line) for row in controls), self.view])
        for control in itertools.chain(*controls):
            control.observe(self._refresh, names="value")
        self.adjust(None)
        self.view.value = self.html

    def shown(self) -> Markup:
        """Return what the controls ask for."""
        raise NotImplementedError

    @property
    def html(self) -> str:
        """What is shown, as HTML."""
        return str(self.shown())

    @property
    def text(self) -> str:
        """What is shown, as text."""
        return plain_text(self.html)

    def adjust(self, changed: object) -> None:
        """Fit the other controls to one that has changed, before the view follows."""

    def _refresh(self, change: Mapping | None = None) -> None:
        try:
            self.adjust(change and change["owner"])
            self.view.value = self.html
        except InputError as error:  # in a browser nobody would see it raised
            self.view.value = f'<p role="alert"><b>Not possible:</b> {html.escape(str(error))}</p>'

    def _repr_mimebundle_(self, **options: object) -> dict:
        """Return the live widget, and the view as it is now for readers without a kernel."""
        live = super()._repr_mimebundle_(**options) or {}
        return live | {"text/html": self.view.value, "text/plain": plain_text(self.view.value)}


# --- rows, token by token ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowPart:
    """Adjacent tokens of a row that are treated alike.

    Attributes:
        name: "start", "prompt", "text", "after" (text that follows the passage), "end" (EOS) or "padding".
        learned: whether they are targets.
        tokens: each token as text, spaces and line ends included.
    """

    name: str
    learned: bool
    tokens: tuple[str, ...]


def pieces_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return what each token adds to the text before it; a token with a part of a character keeps the tokenizer's name."""

    def decode(*some: int) -> str:
        return str(tokenizer.decode(list(some), clean_up_tokenization_spaces=False))

    pieces = []
    for place, token in enumerate(ids):
        before = decode(ids[place - 1]) if place else ""
        both = decode(ids[place - 1], token) if place else decode(token)  # alone, some tokens lose their space
        cut = "\N{REPLACEMENT CHARACTER}" in before + both or not both.startswith(before)
        pieces.append(str(tokenizer.convert_ids_to_tokens(token)) if cut else both[len(before) :])
    return tuple(pieces)


def row_parts(rows: Rows, number: int, tokenizer: PreTrainedTokenizerBase, row: Mapping | None = None) -> list[RowPart]:
    """Take a row apart.

    Args:
        rows: of an arm.
        number: of the row.
        tokenizer: of the model.
        row: its ``input_ids`` and ``labels`` (a learned token is its own label), if read from elsewhere than from ``rows``.
    """
    row = row or rows[number]
    ids = row["input_ids"]
    begin, size = 0, len(ids) - rows.passages[number].last
    bounds = {"start": 1, "prompt": 1 + rows.prompt_tokens[number], "text": size - rows.after_tokens[number]}
    pieces, parts = pieces_of(ids, tokenizer), []
    for name, end in (bounds | {"after": size, "end": len(ids)}).items():
        if end > begin:
            parts.append(RowPart(name, row["labels"][begin] == ids[begin], pieces[begin:end]))
        begin = max(begin, end)
    return parts


def count_parts(parts: Iterable[RowPart]) -> dict[str, int]:
    """Return how many tokens of a row are read, learned and prompt; padding is none of them.

    Example:
        >>> count_parts([RowPart("start", False, ("<s>",)), RowPart("text", True, ("Tea", " is"))])
        {'read': 3, 'learned': 2, 'prompt': 0}
    """
    counts = {"read": 0, "learned": 0, "prompt": 0}
    for part in (part for part in parts if part.name != "padding"):
        counts["read"] += len(part.tokens)
        counts["learned"] += len(part.tokens) * part.learned
        counts["prompt"] += len(part.tokens) * (part.name == "prompt")
    return counts


class PromptExplorer(Explorer):
    """Choose an arm, a family and a passage, and see the prompt, the row's tokens and what the prompt costs.

    A prompt that is typed into the last field replaces the arm's own and is checked as it is typed.

    Args:
        run: the run, or its config; it need not be prepared.
        seed: samples the prompts.

    Example:
        >>> PromptExplorer(Run("mini"))  # doctest: +SKIP
    """

    def __init__(self, run: Run | ExperimentConfig, seed: int = 0) -> None:
        self.run, self.seed = as_run(run), seed
        self.strategies, self.passages = self.run.prompt_sets.strategies, self.run.passages
        self.ideas = {prompt.text: self.strategies.ideas.get(prompt.family) for prompt in self.strategies.prompts}
        known = sorted(table().values(), key=lambda arm: arm.order)
        arms = [arm.name for arm in known if arm.reads_text and arm.parameter != "N"]
        arms += [arm for arm in text_stages(self.run.config.arms) if get_arm(arm).kind == "count"]
        self.arm = labeled(ipywidgets.Dropdown, "arm", options=arms, value="cft")
        self.family = labeled(ipywidgets.Dropdown, "family", options=self.strategies.families)
        self.number = counter(f"passage, 1 to {len(self.passages)}", last=len(self.passages))
        hint = "type a prompt, and it replaces the arm's"
        self.own = labeled(ipywidgets.Textarea, "your own prompt", "100%", placeholder=hint, rows=2)
        super().__init__([self.arm, self.family, self.number], [self.own])

    def adjust(self, changed: object) -> None:
        """Offer the families only where the arm reads one."""
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
    def problems(self) -> list[str]:
        """What is wrong with the typed prompt, a sentence each; nothing where all is well, or none is typed."""
        train, typed = self.run.config.train, self.own.value
        if not is_unicode(typed):
            return ["your prompt: text: holds a lone surrogate, which is no character: type it again."]
        if not typed:
            return []
        try:
            from_mapping(PromptEntry, {"id": "own", "family": "own", "text": typed}, "your prompt")
        except InputError as error:
            return [str(error)]
        tokens = len(self._typed_ids())
        room, row = max(0, train.max_length - 2 - tokens), 1 + tokens + self.passage.targets
        if room < train.min_text_tokens:
            return [
                f"The prompt takes {tokens} of {train.max_length} tokens and leaves {room} for text, but "
                f"train.min_text_tokens is {train.min_text_tokens}: shorten it, or raise train.max_length."
            ]
        too_long = f"With this prompt the passage takes {row} tokens, more than train.max_length, {train.max_length}"
        return [f"{too_long}: all passages would be cut shorter."] if row > train.max_length else []

    @property
    def row(self) -> tuple[dict | None, list[RowPart]]:
        """The prompt that is shown, with its id, family and text, and the row, taken apart.

        Raises:
            InputError: the run lacks what the arm needs, such as truth labels.
        """
        place, typed = self.number.value - 1, self.own.value
        first = max(0, place - 1)  # what follows a passage may be about its neighbors
        near = self.passages[first : place + 2]
        if typed:
            rows = Rows(near, [self._typed_ids()] * len(near), special_tokens(self.run.tokenizer))
            prompt = {"prompt": "your own", "family": "your own", "text": typed.strip()}
        else:
            check_subsets([self.stage], self.strategies)
            near = list(with_labels([self.stage], near, self.run.config.prompts.writer is not None))
            rows, texts = build_rows(self.run, self.stage, self.seed, near)
            prompt = next((one for one in texts.records() if one["passage"] == self.passage.id), None)
        return prompt, row_parts(rows, place - first, self.run.tokenizer)

    def _typed_ids(self) -> Sequence[int]:
        prompt = ContextualPrompt("your own", "your own", self.own.value.strip(), "strategy")
        return prompt_ids(self.run.tokenizer, prompt, self.run.template)

    def shown(self) -> Markup:
        """Return the row, or what is wrong with the typed prompt."""
        problems = self.problems
        prompt, parts = (None, []) if problems else self.row
        values = {"title": f"{self.stage}, passage {self.passage.id} ({self.number.value} of {len(self.passages)})"}
        idea = self.ideas.get(prompt["text"]) if prompt else None
        counts = count_parts(parts)
        return render_html(
            "prompt.html", problems=problems, prompt=prompt, parts=parts, idea=idea, counts=counts, **values
        )


def as_run(run: Run | ExperimentConfig) -> Run:
    """Return a run as it is, and that of an experiment."""
    return run if isinstance(run, Run) else Run(run)


# --- packed rows ------------------------------------------------------------------------------------------------------

LAYOUTS = {"side by side in one line": "segments", "a line each, padded": "sdpa"}  # what a reader chooses -> attention


class RowViewer(Explorer):
    """Look at the rows of an optimizer step as the model reads them: packed into micro-batches, prompt and targets marked.

    Args:
        run: the run, or its config; it need not be prepared.
        arm: one with a single stage of text.
        seed: of the order, and of the prompts.

    Example:
        >>> RowViewer(Run("mini"), "cft")  # doctest: +SKIP
    """

    def __init__(self, run: Run | ExperimentConfig, arm: str = "cft", seed: int = 0) -> None:
        self.run = as_run(run)
        self.rows, self.order = self.run.rows(arm, seed)[0], self.run.order(arm, seed)
        self.step = counter(f"optimizer step, 1 to {len(self.order)}", last=len(self.order))
        self.layout_of = labeled(ipywidgets.Dropdown, "layout", options=list(LAYOUTS))
        self.number = counter("micro-batch")
        super().__init__([self.step, self.layout_of, self.number])

    def adjust(self, changed: object) -> None:
        """Keep the number of the micro-batch inside the step."""
        self.number.max = len(self.batches)

    @property
    def batches(self) -> list[MicroBatch]:
        """The micro-batches of the chosen optimizer step."""
        step = [self.rows[index] for index in self.order[self.step.value - 1]]
        tokens = self.run.config.train.micro_batch_tokens
        return micro_batches(step, LAYOUTS[self.layout_of.value], tokens, self.rows.special.pad)

    @property
    def lines(self) -> list[list[tuple[str, list[RowPart]]]]:
        """The rows in each line of the micro-batch that is shown, read from its tensors, which the model reads.

        Each is (id of the passage, its row, taken apart); the padding, if there is any, has the id "".
        """
        batch, step = self.batches[self.number.value - 1], self.order[self.step.value - 1]
        width = batch.input_ids.shape[1]
        targets = {place + 1 for place in batch.target_positions.tolist()}
        numbers, lines = iter(batch.rows), []
        for line, (ids, positions) in enumerate(
            zip(batch.input_ids.tolist(), batch.position_ids.tolist(), strict=True)
        ):
            labels = [token if line * width + place in targets else None for place, token in enumerate(ids)]
            starts = [place for place, position in enumerate(positions) if position == 0] + [width]
            segments, used = [], 0
            for begin, end in itertools.pairwise(starts):
                if end > begin + 1:  # a row counts 0, 1, 2, ..., padding stays at 0
                    index, used = step[next(numbers)], end
                    row = {"input_ids": ids[begin:end], "labels": labels[begin:end]}
                    parts = row_parts(self.rows, index, self.run.tokenizer, row)
                    segments.append((self.rows.passages[index].id, parts))
            if used < width:
                segments.append(("", [RowPart("padding", False, ("",) * (width - used))]))
            lines.append(segments)
        return lines

    def shown(self) -> Markup:
        """Return the micro-batch."""
        batches, place = self.batches, self.number.value
        title = f"Step {self.step.value}, micro-batch {place} of {len(batches)}"
        values = {"batch": batches[place - 1], "lines": self.lines, "count_parts": count_parts}
        return render_html("batch.html", title=title, **values)


# --- the corpus -------------------------------------------------------------------------------------------------------

KINDS = ("all documents", "kept", "held out", "reliable", "not reliable", "without a label")
LABELS = {True: "reliable", False: "not reliable", None: "without a label"}
PAGE = 40  # passages of a document on one view


class CorpusBrowser(Explorer):
    """Find documents by their words, and see where each was cut, whether it is labeled reliable, and what became of it.

    Args:
        kept, held_out: passages in the order of the corpus.
        counts: what became of all documents, as in a ledger ("documents read", ...).

    Raises:
        InputError: there is no passage.

    Example:
        >>> CorpusBrowser.of(Run("mini"))  # doctest: +SKIP
    """

    def __init__(
        self, kept: Iterable[Passage], held_out: Iterable[Passage] = (), counts: Mapping[str, int] | None = None
    ) -> None:
        self.documents = []
        for fate, text in (("kept", kept), ("held out", held_out)):
            for name, group in itertools.groupby(text, key=lambda passage: passage.document):
                passages = list(group)
                whole, label = "".join(passage.text for passage in passages), LABELS[passages[0].reliable]
                self.documents.append(SimpleNamespace(id=name, fate=fate, label=label, text=whole, passages=passages))
        if not self.documents:
            raise InputError("a corpus browser needs at least one passage.")
        fates = ("read", "kept", "held out", "duplicate", "empty")
        numbers = [((counts or {}).get(f"documents {fate}"), fate) for fate in fates]
        self.ledger = ", ".join(f"{number} {fate}" for number, fate in numbers if number)
        self.words = labeled(ipywidgets.Text, "find", "18em", placeholder="words in a text or an id")
        self.which = labeled(ipywidgets.Dropdown, "of", options=KINDS)
        self.number, self.first = counter("document"), counter("from passage", 0, 0)
        super().__init__([self.words, self.which, self.number, self.first])

    @classmethod
    def of(cls, run: Run | ExperimentConfig) -> CorpusBrowser:
        """Browse the corpus of a run; where it is not prepared, cut as it would be, and nothing is written.

        Raises:
            InputError: a bad corpus, or prompts that leave no room for text.
        """
        run = as_run(run)
        counts = read_json(run.folder / "ledger.json") if run.is_prepared else run.cut("corpus")[2]
        return cls(run.passages, run.text("held_out"), counts)

    @property
    def matches(self) -> list[SimpleNamespace]:
        """The documents that the controls leave, in order: of a kind, and with the words in their text or id, case aside."""
        words, kind = self.words.value.casefold(), self.which.value
        of_kind = (one for one in self.documents if kind in (KINDS[0], one.fate, one.label))
        return [one for one in of_kind if words in one.text.casefold() or words in one.id.casefold()]

    def adjust(self, changed: object) -> None:
        """Keep the numbers inside what matches; another document is shown from its first passage."""
        matches = self.matches
        self.number.max = max(1, len(matches))
        self.first.max = len(matches[self.number.value - 1].passages) - 1 if matches else 0
        if changed is not self.first:
            self.first.value = 0

    def shown(self) -> Markup:
        """Return the document, with the words that were looked for marked."""
        matches, place, words = self.matches, self.number.value, self.words.value
        document = matches[place - 1] if matches else None
        passages = document.passages[self.first.value :][:PAGE] if document else ()
        pattern = re.compile(f"({re.escape(words)})" if words else "$^", re.IGNORECASE)
        texts = [(passage, pattern.split(passage.text)) for passage in passages]  # every second part is the words
        values = {"document": document, "texts": texts, "ledger": self.ledger}
        return render_html("document.html", place=place, of=len(matches), **values)


# --- questions and results --------------------------------------------------------------------------------------------

Answers = dict[str, dict[str, Mapping]]  # item id -> arm -> outcome
FILTERS = ("all questions", "arms disagree", "all trained arms wrong")


def answers_of(arms: Outcomes, seed: int) -> Answers:
    """Return what every arm answered in one seed; the base model, which has one, is with every seed.

    Args:
        arms: arm -> seed -> outcomes, as in ``RunRecord.outcomes[benchmark]``.
        seed: of the trained arms.

    Raises:
        InputError: an arm was not evaluated with this seed.

    Example:
        >>> answers_of({"base": {0: [{"id": "q1"}]}, "cpt": {3: [{"id": "q1"}]}}, 3)
        {'q1': {'base': {'id': 'q1'}, 'cpt': {'id': 'q1'}}}
    """
    answers: Answers = {}
    for arm, seeds in arms.items():
        if get_arm(arm).stages:
            check_known(str(seed), map(str, seeds), f"seed of arm {arm}:")
        for row in seeds[seed] if get_arm(arm).stages else next(iter(seeds.values())):
            answers.setdefault(row["id"], {})[arm] = row
    return answers


def disagreements(answers: Answers) -> list[str]:
    """Return the ids of the items, of ``answers_of``, that the trained arms do not all answer alike, in order."""
    return [
        item
        for item, by_arm in answers.items()
        if len({row["prediction"] for arm, row in by_arm.items() if get_arm(arm).stages}) > 1
    ]


def show_item(question: Question, by_arm: Mapping[str, Mapping]) -> Table:
    """Show one question: its choices, the log-likelihood of each by arm, and who answers what.

    Args:
        question: from the benchmark.
        by_arm: arm -> its outcome on this question, from ``answers_of``.

    Returns:
        A row per choice with nats by arm, > before the right choice and * after what an arm chose (an arm that generated its
        answer has no nats: its answer is below); whether the arms agree. To be the last line of a cell.

    Raises:
        InputError: an outcome belongs to another question, or to another form of this one.

    Example:
        >>> show_item(question, answers[question.id])  # doctest: +SKIP
    """
    answers: dict[int | None, list[str]] = {}
    for arm, row in by_arm.items():
        if (row["id"], row["hash"]) != (question.id, question.hash):
            raise InputError(
                f"arm {arm}: the outcome '{row['id']}' is not of question '{question.id}': evaluate again."
            )
        answers.setdefault(row["prediction"], []).append(arm)
    page = render_html("item.html", question=question, arms=by_arm, answers=answers)
    return Table(page, plain_text(page))


class QuestionBrowser(Explorer):
    """Turn over a benchmark's questions and see what each arm answered.

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
        self.filter = labeled(ipywidgets.Dropdown, "show", options=FILTERS)
        self.seed = labeled(ipywidgets.Dropdown, "seed", options=list(seeds))
        self.number = counter(f"number, 1 to {len(questions)}", last=len(questions))
        super().__init__([self.filter, self.seed, self.number])

    @property
    def chosen(self) -> list[Question]:
        """The questions that the chosen filter leaves, in order."""
        answers = self.answers[self.seed.value]
        kept = set(disagreements(answers) if self.filter.value == "arms disagree" else answers)
        if self.filter.value == "all trained arms wrong":
            trained = [arm for arm in next(iter(answers.values())) if get_arm(arm).stages]
            kept = {item for item in kept if not any(answers[item][arm]["correct"] for arm in trained)}
        return [question for question in self.questions if question.id in kept]

    def shown(self) -> Markup:
        """Return the question, and what the arms answered."""
        chosen, number = self.chosen, self.number.value
        question = chosen[min(number, len(chosen)) - 1] if chosen else None
        item = show_item(question, self.answers[self.seed.value][question.id]).html if question else None
        return render_html("question.html", number=min(number, len(chosen)), of=len(chosen), item=item)


class ResultsExplorer(Explorer):
    """Choose a benchmark, a reference arm and the arms to show, and see their rows of the results table and their differences.

    A choice changes what is shown and no number: seeds, intervals and Holm's correction are those of the whole run, so that
    nobody finds a difference by looking at one benchmark at a time.

    Args:
        run: a run folder, a Run, or a run that is read already.

    Raises:
        InputError: the folder is no evaluated run, or no arm was evaluated on all its benchmarks.

    Example:
        >>> ResultsExplorer("runs/mini")  # doctest: +SKIP
    """

    EVERY = "all benchmarks"

    def __init__(self, run: Source) -> None:
        self.run = record = as_record(run)
        arms = [arm for arm in record.metrics if all(arm in evaluated for evaluated in record.outcomes.values())]
        if not arms:
            raise InputError(f"{record.folder}: no arm was evaluated on all benchmarks: evaluate one on all.")
        self._compared = functools.cache(
            lambda minus: (results_table(record, minus), compared(record, minus), overall(record, minus))
        )
        self.benchmark = labeled(ipywidgets.Dropdown, "benchmark", options=[*record.outcomes, self.EVERY])
        self.reference = labeled(ipywidgets.Dropdown, "minus", options=sorted(arms, key=lambda arm: arm != "cpt"))
        self.boxes = {arm: labeled(ipywidgets.Checkbox, arm, value=True, indent=False) for arm in record.metrics}
        super().__init__([self.benchmark, self.reference], [*self.boxes.values()])

    @property
    def rows(self) -> pandas.DataFrame:
        """The rows of the results table that are shown; the reference and the lines of chance stay."""
        reference = self.reference.value
        table, shown = self._compared(reference)[0], (*self.chosen, reference, "(chance)", "(majority)")
        pairs = zip(table["benchmark"], table["arm"], strict=True)
        return table.loc[[name in self.benchmarks and arm in shown for name, arm in pairs]].reset_index(drop=True)

    @property
    def chosen(self) -> list[str]:
        """The arms that are chosen."""
        return [arm for arm, box in self.boxes.items() if box.value]

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks that are shown."""
        return list(self.run.outcomes) if self.benchmark.value == self.EVERY else [self.benchmark.value]

    def shown(self) -> Markup:
        """Return the rows and the differences."""
        _, differences, sentence = self._compared(self.reference.value)
        shown = [arm for arm in self.chosen if arm != self.reference.value and get_arm(arm).stages]
        panels = [{name: [row for row in differences[name] if row["arm"] in shown]} for name in self.benchmarks]
        pictures = [picture(differences_figure(panel, self.reference.value), dpi=110) for panel in panels if shown]
        return render_html("results.html", rows=self.rows, pictures=pictures, overall=sentence)


# --- training ---------------------------------------------------------------------------------------------------------

EVERY = 2.0  # seconds between two views
LAST = 10  # optimizer steps whose mean loss is shown
POINTS = 500  # optimizer steps of a task that a figure needs
STOPPED = "the training was stopped; what was finished is kept, and a new start resumes from there."


def read_log(path: Path) -> list[dict]:
    """Return step, loss and tokens of every whole line of a training log that may grow meanwhile; none before there is one."""
    text = path.read_bytes() if path.exists() else b""
    rows = map(json.loads, text[: text.rfind(b"\n") + 1].splitlines())  # the last line may be half-written
    return [{key: row[key] for key in ("step", "loss", "tokens")} for row in rows]


class TrainingMonitor(Explorer):
    """Train the arms of a run in processes of their own, watch their losses, and stop and resume at a button.

    A stop ends the processes as Ctrl-C does: finished arms and checkpoints stay, and a new start resumes from there. The
    buttons work while the kernel is idle or awaits ``finish``.

    Args:
        run: the run, or its config; it need not be prepared yet.
        workers: processes at a time, as for ``Run.train``.

    Example:
        >>> monitor = TrainingMonitor(run)  # doctest: +SKIP
        >>> monitor.start()  # doctest: +SKIP
        >>> await monitor.finish()  # doctest: +SKIP
        PosixPath('runs/mini')
    """

    def __init__(self, run: Run | ExperimentConfig, workers: int | None = None) -> None:
        self.run, self.workers = as_run(run), workers
        tasks = [(name, seed) for arm, seed in self.run.train_tasks for name in (get_arm(arm).start, arm) if name]
        self.paths = {task: self.run.arm_folder(*task) / "log.jsonl" for task in tasks}
        self.future: Future[Path] | None = None
        self._thread: threading.Thread | None = None
        self._stop, self._seen = threading.Event(), 0.0
        self._begun: tuple[float, int, int] | None = None  # seconds, steps and tokens before the first step
        self.go = ipywidgets.Button(description="start training", icon="play")
        self.halt = ipywidgets.Button(description="stop training", icon="stop", disabled=True)
        self.go.on_click(lambda _button: self.start())
        self.halt.on_click(lambda _button: self.stop())
        super().__init__([self.go, self.halt])

    def start(self) -> None:
        """Start the training, or resume it, and return at once; does nothing while it runs."""
        if self.runs:
            return
        self._stop.clear()
        self.future, self._begun = Future(), None
        self._switch()
        self._thread = threading.Thread(target=self._train, args=(self.future,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the training to stop; its processes end as at Ctrl-C, within some seconds."""
        self._stop.set()
        self.halt.disabled = True

    async def finish(self) -> Path:
        """Wait until the training has ended, and return the run folder; the buttons work meanwhile, an interrupt stops it.

        Raises:
            InputError: the training was not started, or met bad input.
            FailedError: it was stopped, or failed; the end of its output is shown.
        """
        if self.future is None or self._thread is None:
            raise InputError("the training was not started: call start first, or press the button.")
        try:
            while self._thread.is_alive():
                await asyncio.sleep(0.2)
        except asyncio.CancelledError:  # the kernel was interrupted
            self.stop()
            raise
        return self.future.result()

    @property
    def runs(self) -> bool:
        """Whether the training runs."""
        return self.future is not None and not self.future.done()

    def _train(self, future: Future[Path]) -> None:
        atexit.register(self.stop)
        try:
            self.run.train(self.workers, self._tick)
            future.set_result(self.run.folder)
        except BaseException as error:  # whoever waits for it hears of it
            # an interrupt of the kernel reaches the workers too, and they may end before they are asked to
            stopped = self._stop.is_set() and isinstance(error, FailedError)
            future.set_exception(FailedError(STOPPED) if stopped else error)
        finally:
            atexit.unregister(self.stop)
            self._refresh()
            self._switch()

    def _tick(self) -> None:
        if self._stop.is_set():
            raise FailedError(STOPPED)
        if time.monotonic() - self._seen >= EVERY:
            self._refresh()
            self._seen = time.monotonic()

    def _switch(self) -> None:
        self.go.disabled, self.halt.disabled = self.runs, not self.runs

    def progress(self) -> pandas.DataFrame:
        """Return how far every task is, by what the run folder holds.

        Columns: arm, seed, done, step and steps (optimizer steps taken, and all of them; None before the run is prepared),
        loss (mean of the last steps, nats per target token), tokens (read so far), checkpoint (name of the newest), log.
        """
        tasks = []
        for (arm, seed), path in self.paths.items():
            log, saved = read_log(path), checkpoints(path.parent)
            last = [row["loss"] for row in log[-LAST:]]
            task = {"arm": arm, "seed": seed, "done": self.run.is_trained(arm, seed), "step": len(log)}
            task |= {"steps": len(self.run.order(arm, seed)) if self.run.is_prepared else None}
            task |= {"loss": sum(last) / len(last) if last else None, "tokens": sum(row["tokens"] for row in log)}
            tasks.append(task | {"checkpoint": saved[-1].name if saved else "", "log": log})
        return pandas.DataFrame(tasks)

    def speed(self, tasks: Any) -> str:
        """Return how fast the tasks were since their first step, and how long those that are left will take at that speed."""
        now = (time.monotonic(), sum(tasks["step"]), sum(tasks["tokens"]))
        if self._begun is None or now[1] <= self._begun[1] or tasks["steps"].isna().any():
            self._begun = now
            return "its speed is not known yet"
        seconds, steps, tokens = (end - begin for end, begin in zip(now, self._begun, strict=True))
        left = sum(tasks["steps"] - tasks["step"])  # of those that are done, none
        return f"{tokens / seconds:,.0f} tokens per second, about {duration(left * seconds / steps)} left"

    def _state(self, tasks: pandas.DataFrame) -> str:
        """Return whether it runs, how fast, and how long it will take."""
        done = f"{tasks['done'].sum()} of {len(tasks)} trained"
        if self.runs:
            return f"Training: {done}; {self.speed(tasks)}."
        error = self.future.exception() if self.future else None
        if error and self._stop.is_set():
            kept = "A new start resumes from the checkpoints."
            lost = "train.save_steps is 0, so there are no checkpoints: an unfinished arm starts from scratch."
            return f"Stopped: {done}. {kept if self.run.config.train.save_steps else lost}"
        return f"Failed: {done}. {error}" if error else f"Not running: {done}."

    def shown(self) -> Markup:
        """Return state, progress of every task and the curves of their losses, thinned out alike."""
        tasks = self.progress()
        every = max(1, max(tasks["step"]) // POINTS)
        logs = [
            {"arm": arm, "seed": seed, **row}
            for arm, seed, log in zip(tasks["arm"], tasks["seed"], tasks["log"], strict=True)
            for row in log
            if row["step"] % every == 0 or row["step"] == 1
        ]
        curves = picture(loss_figure(pandas.DataFrame(logs)), dpi=96) if logs else None
        return render_html("training.html", state=self._state(tasks), tasks=tasks.to_dict("records"), curves=curves)
