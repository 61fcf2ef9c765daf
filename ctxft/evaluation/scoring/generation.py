"""Generate text greedily: always the likeliest token, whatever settings a model brings along."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ctxft.evaluation.scoring.encoding import Progress, encode_prompts
from ctxft.evaluation.scoring.texts import base_model, batch_tokens, inference
from ctxft.models import window_of
from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Generated:
    """A text that a model generated.

    Attributes:
        text: without special tokens.
        truncated: tokens cut from the left of its prompt.
        tokens: how many were generated, an end token included.
        ended: whether the last is an end token; a text without one was cut off.
    """

    text: str
    truncated: int
    tokens: int
    ended: bool


def generate_greedily(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    ends: Collection[int],
    max_new_tokens: int,
    pad: int = 0,
    max_batch_tokens: int | None = None,
) -> Generator[tuple[int, list[int]], None, None]:
    """Continue rows of token ids, always with the likeliest token, until an end token or ``max_new_tokens``.

    Of the model's own settings none counts: sampling or a penalty on repetition would not be greedy.

    Args:
        model: a causal language model, plain or with a LoRA adapter; its training mode is restored afterwards.
        rows: token ids, one or more each.
        ends: token ids that end a text.
        max_new_tokens: tokens generated at most.
        pad: token id that fills rows on the left, so that all of a batch end in the same column.
        max_batch_tokens: tokens of rows and answers, padded, in one batch; None takes what suits the device.

    Yields:
        (number of the row, the new ids up to and with the first end token), the longest rows first.

    Source:
        ``transformers.GenerationMixin.generate``.
    """
    budget = batch_tokens(model, max_batch_tokens)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    with inference(model), _greedy(model, ends, max_new_tokens, pad) as plain:
        while order:
            width = len(rows[order[0]])
            size = max(1, budget // (width + max_new_tokens))
            batch, order = order[:size], order[size:]
            padding = [width - len(rows[n]) for n in batch]
            ids = torch.tensor(
                [[pad] * k + [*rows[n]] for n, k in zip(batch, padding, strict=True)], device=model.device
            )
            mask = torch.tensor([[0] * k + [1] * (width - k) for k in padding], device=model.device)
            new = plain.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()  # pyright: ignore
            for number, written in zip(batch, new, strict=True):
                size = next((place for place, token in enumerate(written, start=1) if token in ends), None)
                yield number, written[:size]


@contextlib.contextmanager
def _greedy(model: PreTrainedModel, ends: Collection[int], max_new_tokens: int, pad: int) -> Iterator[PreTrainedModel]:
    """Give the model itself, below an adapter's wrapper, with settings that are greedy and nothing else."""
    from transformers import GenerationConfig

    plain = base_model(model)
    before = plain.generation_config
    plain.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends) or None, pad_token_id=pad
    )
    try:
        yield plain
    finally:
        plain.generation_config = before


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    max_length: int | None = None,
    max_batch_tokens: int | None = None,
    progress: Progress | None = None,
    answered: Callable[[int, Generated], None] | None = None,
    chat: bool = False,
) -> list[Generated]:
    """Let a model continue each prompt greedily until it ends, by its own end tokens, or has generated enough.

    Args:
        model, max_new_tokens, max_batch_tokens: as for ``generate_greedily``.
        tokenizer: its tokenizer.
        prompts: the texts to continue, in the tokenizer's chat template where they should be.
        max_length: tokens the model can read; None takes ``max_position_embeddings`` of its config. A longer prompt loses
            tokens on the left, so that the answer still fits.
        progress: called with (prompts done, all prompts).
        answered: called with (number of the prompt, its text) as soon as it is there.
        chat: the prompts were written by ``ctxft.data.chat``, so their control tokens are read as such.

    Raises:
        InputError: no room for a prompt is left in ``max_length``, or a prompt is empty.

    Source:
        lm-evaluation-harness 0.4, ``HFLM.generate_until`` (same cut on the left).

    Example:
        >>> generate_answers(model, tokenizer, ["2 + 2 ="], max_new_tokens=2)[0].text  # doctest: +SKIP
        ' 4'
    """
    rows, max_length = encode_prompts(tokenizer, prompts, chat), max_length or window_of(model)
    if max_length is not None and max_length <= max_new_tokens:
        raise InputError(
            f"the model reads {max_length} tokens, so {max_new_tokens} new ones leave no room for a prompt."
        )
    if empty := [number for number, row in enumerate(rows) if not row]:
        raise InputError(f"prompt {empty[0]} has no token, so there is nothing to continue: give it a text.")
    room = max_length - max_new_tokens if max_length else max(map(len, rows), default=0)
    answers: dict[int, Generated] = {}
    ends, kept = _end_tokens(model, tokenizer), [row[-room:] for row in rows]
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with contextlib.closing(generate_greedily(model, kept, ends, max_new_tokens, pad, max_batch_tokens)) as generated:
        for number, ids in generated:
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            answers[number] = Generated(text, max(0, len(rows[number]) - room), len(ids), bool(ids) and ids[-1] in ends)
            if answered:
                answered(number, answers[number])
            if progress:
                progress(len(answers), len(rows))
    return [answers[number] for number in range(len(rows))]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ends: Any = base_model(model).generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return {ends} if isinstance(ends, int) else set(ends or ())
