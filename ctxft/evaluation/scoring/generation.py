"""Prompts go in; the text that a model writes behind them comes out, and from the text, strictly, one answer or none."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ctxft.evaluation.scoring.encoding import Progress, encode_prompts
from ctxft.evaluation.scoring.texts import budget_of, reading
from ctxft.models import window_of
from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPENING, CLOSING = " \t\"'`*([{", " \t\"'`*)]}.,:;!?"  # marks that may stand around a label


def parse_answer(text: str, labels: Sequence[str], choices: Sequence[str] | None = None) -> int | None:
    """Return which label a text gives as its answer, or None where it gives none, or more than one.

    Only the first line that is not empty counts. It must begin with a label as a whole word (marks such as quotes,
    brackets and asterisks may stand before it), and the line must end there or go on with a mark: "B", "(B)", "B. heart",
    but not "B is wrong". "not causal" is no answer "causal". Another label anywhere in the line makes it no answer,
    unless what follows is the text of the choice itself. Letters are told by their case, longer labels not.

    Args:
        text: what the model wrote.
        labels: the answers, such as ("A", "B") or ("noise", "causal").
        choices: the texts behind the labels, where labels are letters.

    Returns:
        The index of the label, or None.

    Example:
        >>> parse_answer(" B. Vitamin A", ("A", "B"), ("Vitamin C", "Vitamin A")), parse_answer("A or B", ("A", "B"))
        (1, None)
    """
    line = next((line for line in text.splitlines() if line.strip()), "").lstrip(OPENING)
    # The longest first: of the labels "causal" and "causal chain" the second begins with the first.
    for index in sorted(range(len(labels)), key=lambda n: -len(labels[n])):
        found = _pattern(labels[index]).match(line)
        if not found:
            continue
        rest = line[found.end() :].lstrip(" \t")
        if rest and rest[0] not in CLOSING:
            return None
        said = rest.strip(OPENING + CLOSING).casefold()
        if choices and said == choices[index].strip(OPENING + CLOSING).casefold():
            return index
        others = [label for n, label in enumerate(labels) if n != index]
        return None if any(_pattern(label).search(rest) for label in others) else index
    return None


def _pattern(label: str) -> re.Pattern[str]:
    """Return a pattern of the label as a whole word; "non-causal" holds no word "causal"."""
    flags = 0 if len(label) == 1 else re.IGNORECASE
    return re.compile(rf"(?<![\w-]){re.escape(label)}(?![\w-])", flags)


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    window: int | None = None,
    token_budget: int | None = None,
    progress: Progress | None = None,
    answered: Callable[[int, str, int], None] | None = None,
    chat: bool = False,
    stopped: Callable[[int, int, bool], None] | None = None,
) -> list[tuple[str, int]]:
    """Let a model write on behind each prompt, always with the likeliest token, until it ends or has written enough.

    Of the model's own settings only its end tokens count: sampling or a penalty on repetition would not be greedy.

    Args:
        model: a causal language model, plain or with a LoRA adapter; its training mode is restored afterwards.
        tokenizer: its tokenizer.
        prompts: the texts to write on, in the tokenizer's chat template where they should be.
        max_new_tokens: tokens written at most.
        window: tokens the model can read; None takes ``max_position_embeddings`` of its config. A longer prompt loses
            tokens on the left, so that the answer still fits.
        token_budget: tokens of prompts and answers, padded, in one batch; a longer prompt runs alone. None takes what
            suits the device.
        progress: called with (prompts done, all prompts) after each batch.
        answered: called with (number of the prompt, its text, tokens cut) after its batch.
        chat: the prompts were written by ``ctxft.data.chat``, so their control tokens are read as such.
        stopped: called with (number of the prompt, tokens written, whether the last is an end token) after its batch; a text
            without an end token was cut off.

    Returns:
        For each prompt (what was written, without special tokens; the tokens cut from its left).

    Raises:
        InputError: no room for a prompt is left in the window, or a prompt is empty.

    Source:
        lm-evaluation-harness 0.4, ``HFLM.generate_until`` (same cut on the left); ``GenerationMixin.generate``.

    Example:
        >>> generate_answers(model, tokenizer, ["2 + 2 ="], max_new_tokens=2)  # doctest: +SKIP
        [(' 4', 0)]
    """
    rows, cuts = _cut(model, encode_prompts(tokenizer, prompts, chat), max_new_tokens, window)
    found, budget = [("", 0)] * len(rows), budget_of(model, token_budget)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    done = 0
    with reading(model), _greedy(model, tokenizer, max_new_tokens) as plain:
        while order:
            size = max(1, budget // (len(rows[order[0]]) + max_new_tokens))
            batch, order = order[:size], order[size:]
            for number, (ids, ended) in zip(batch, _write(plain, [rows[n] for n in batch]), strict=True):
                found[number] = (tokenizer.decode(ids, skip_special_tokens=True), cuts[number])
                if answered:
                    answered(number, *found[number])
                if stopped:
                    stopped(number, len(ids), ended)
            done += len(batch)
            if progress:
                progress(done, len(rows))
    return found


def _cut(
    model: PreTrainedModel, rows: list[list[int]], max_new_tokens: int, window: int | None
) -> tuple[list[list[int]], list[int]]:
    """Return the ids of each prompt, cut on the left to what leaves room for the answer, and how many were cut."""
    window = window or window_of(model)
    if window is not None and window <= max_new_tokens:
        raise InputError(f"the model reads {window} tokens, so {max_new_tokens} new ones leave no room for a prompt.")
    if empty := [number for number, row in enumerate(rows) if not row]:
        raise InputError(f"prompt {empty[0]} has no token, so nothing can be written behind it: give it a text.")
    room = window - max_new_tokens if window else None
    return [row[-room:] if room else row for row in rows], [max(0, len(row) - room) if room else 0 for row in rows]


@contextlib.contextmanager
def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> Iterator[PreTrainedModel]:
    """Give the model itself, below an adapter's wrapper, with settings that are greedy and nothing else."""
    from transformers import GenerationConfig

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = plain.generation_config
    ends = before.eos_token_id if before.eos_token_id is not None else tokenizer.eos_token_id
    filling = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    plain.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=filling
    )
    try:
        yield plain
    finally:
        plain.generation_config = before


def _write(model: PreTrainedModel, rows: Sequence[list[int]]) -> Iterator[tuple[list[int], bool]]:
    """Yield the ids that the model writes behind each row, up to its end token, and whether there is one.

    The rows are filled up on the left, so that all end in the same column.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    for written in model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist():
        size = next((place for place, token in enumerate(written, start=1) if token in ends), None)
        yield written[:size], size is not None
