"""A run and one of its models flow in; passages behind any prompts flow through it; losses and their intervals flow out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctxft.data.passages import Passage
from ctxft.data.rows import PromptTemplate, Rows, prompt_ids, special_tokens
from ctxft.evaluation.scoring import text_losses
from ctxft.models import window_of
from ctxft.prompts import ContextualPrompt, control_prompt, get_arm
from ctxft.run.run import Run
from ctxft.run.tasks import parse_task, require_trained
from ctxft.statistics.intervals import cluster_interval
from ctxft.storage import InputError, read_jsonl

CONTROL_SEED = 0  # draws the meaningless words, the same for every arm and seed


@dataclass(frozen=True)
class Reader:
    """A model of a run with what is needed to read passages behind prompts, framed as the run's prompt sets say."""

    run: Run
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate

    def ids(self, prompt: ContextualPrompt | None) -> list[int]:
        """Return the token ids of a prompt in its template; none for no prompt."""
        return prompt_ids(self.tokenizer, prompt, self.template)

    def rows(self, passages: Sequence[Passage], prompts: Sequence[Sequence[int]]) -> Rows:
        """Return the passages' rows behind these prompts, built when asked for; refuses one that the model cannot read."""
        rows = Rows(passages, prompts, special_tokens(self.tokenizer))
        limit = window_of(self.model)
        if limit is not None and rows.longest > limit:
            raise InputError(
                f"a passage takes {rows.longest} tokens behind its prompt, but the model reads at most {limit}: take shorter "
                "prompts."
            )
        return rows

    def control(self, passages: Sequence[Passage], tokens: Sequence[int]) -> list[list[int]]:
        """Return for each passage the ids of meaningless words that take so many tokens, their template included."""
        framed = len(self.template.before) + len(self.template.after)
        return [
            self.ids(control_prompt(self.tokenizer, count - framed, CONTROL_SEED, passage.id, self.template.separator))
            for passage, count in zip(passages, tokens, strict=True)
        ]

    def losses(
        self, passages: Sequence[Passage], before: Sequence[Sequence[Sequence[int]]]
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return the losses of passages behind prompts, in one pass over all rows.

        Args:
            passages: the passages.
            before: for each way of putting prompts before them, the prompt ids of each passage.

        Returns:
            (losses in nats, summed over targets, ways x passages; targets of each passage, the same behind every prompt).
        """
        rows = self.rows([*passages] * len(before), [ids for way in before for ids in way])
        pairs = text_losses(self.model, _Pairs(rows), self.run.config.evaluation.max_batch_tokens)
        sums = numpy.array([loss for loss, _ in pairs]).reshape(len(before), len(passages))
        return sums, numpy.array([count for _, count in pairs[: len(passages)]])


class _Pairs(Sequence):
    """Rows as pairs of ids and labels: the passages behind all prompts at once would not fit in memory."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[list[int], list[int]]:
        row = self.rows[number]
        return row["input_ids"], row["labels"]


@dataclass(frozen=True)
class Paired:
    """Losses of the same passages with and without prompts, in nats, summed over each passage's targets.

    Args:
        passages: the passages.
        counts: (passages,) targets.
        none: (passages,) losses without a prompt.
        behind: for each prompt (passages,) losses behind it.
        words: for the first of these prompts (passages,) losses behind as many meaningless words; the rest are such words.
    """

    passages: Sequence[Passage]
    counts: numpy.ndarray
    none: numpy.ndarray
    behind: Sequence[numpy.ndarray]
    words: Sequence[numpy.ndarray]

    def record(self, chosen: Sequence[int]) -> dict:
        """Return what prompts change in the loss of a passage, the mean over the chosen ones, which are of one sort."""
        own = numpy.mean([self.behind[n] for n in chosen], axis=0)
        found = {"loss": float(own.sum() / self.counts.sum()), "to_control": None}
        found["to_none"] = mean_over("difference", own - self.none, self.counts, self.passages)
        if max(chosen) < len(self.words):
            words = numpy.mean([self.words[n] for n in chosen], axis=0)
            found["to_control"] = mean_over("difference", own - words, self.counts, self.passages)
        return found


def open_reader(run: Run, arm: str, seed: int) -> Reader:
    """Load a model of a prepared run in float32.

    Args:
        run: a prepared run.
        arm: "base" (seed 0), or a trained arm.
        seed: of the training.

    Raises:
        InputError: the run is not prepared or of another config, has no such arm and seed, or the arm is not trained yet.
    """
    run.require_prepared()
    require_task(run, arm, seed)
    torch.set_num_threads(run.config.train.threads)
    return Reader(run, run.model(arm, seed), run.tokenizer, run.template)


def require_task(run: Run, arm: str, seed: int) -> None:
    """Raise InputError if the experiment has no such arm and seed, or it is not trained yet."""
    parse_task(f"{arm}:{seed}", [("base", 0), *run.train_tasks])
    require_trained(run, arm, seed)


def spread_out(passages: Sequence, limit: int | None) -> list:
    """Return at most ``limit`` passages, evenly spread over the corpus: the first ones would be of a few documents only."""
    if limit is None or limit >= len(passages):
        return list(passages)
    if limit < 1:
        raise InputError(f"at least 1 passage is needed, found {limit}.")
    return [passages[place * len(passages) // limit] for place in range(limit)]


def mean_over(name: str, sums: Sequence[float], counts: Sequence[int], passages: Sequence[Passage]) -> dict:
    """Return a mean over tokens with its interval over documents; ends are None where one document knows none."""
    value, *ends = cluster_interval(sums, counts, [passage.document for passage in passages])
    low, high = (None if math.isnan(end) else end for end in ends)
    return {name: value, "low": low, "high": high}


def size_of(passages: Sequence[Passage], counts: Sequence[int]) -> dict:
    """Return how many passages, documents and target tokens these are."""
    documents = len({passage.document for passage in passages})
    return {"passages": len(passages), "documents": documents, "tokens": int(sum(counts))}


# --- what a training read ---------------------------------------------------------------------------------------------


def text_stage(arm: str) -> str | None:
    """Return the stage in which an arm reads passages, itself an arm; None for arms that read none.

    Example:
        >>> text_stage("cft-ift"), text_stage("ift"), text_stage("base")
        ('cft', None, None)
    """
    found = get_arm(arm)
    return found.stages[0] if found.reads_text else None


def read_in_training(run: Run, arm: str, seed: int) -> list[tuple[Passage, ContextualPrompt | None]]:
    """Return the run's passages that a training came to (few steps do not reach all), each with the prompt it was read behind.

    A prompt's kind is that of the set that holds its text; else it is "control" in a control arm, and "written" in another.
    Arm reading has no prompts, and its exercises stand behind the passage.

    Raises:
        InputError: the arm reads no text.
    """
    stage = text_stage(arm)
    if stage is None:
        raise InputError(f"arm '{arm}' reads no text in training: choose an arm that does, such as cft.")
    folder = run.arm_folder(stage, seed)
    kinds = {prompt.text: prompt.kind for prompt_set in run.prompt_sets for prompt in prompt_set.prompts}
    other = "control" if get_arm(stage).control else "written"
    rows = [] if get_arm(stage).after else [row for _, row in read_jsonl(folder / "prompts.jsonl")]
    drawn = {
        row["passage"]: ContextualPrompt(row["prompt"], row["family"], row["text"], kinds.get(row["text"], other))
        for row in rows
    }
    read = {place for _, step in read_jsonl(folder / "log.jsonl") for place in step["passages"]}
    passages = enumerate(run.passages)
    return [(passage, drawn.get(passage.id)) for place, passage in passages if place in read]
