"""Compute the losses of texts as the model reads them, and what all scoring shares: batches, padding, inference mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ctxft.data.rows import IGNORE_INDEX
from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CPU_BUDGET, GPU_BUDGET = 1024, 8192  # a CPU is quickest while a batch stays in its caches, a GPU while it is full


def batch_tokens(model: PreTrainedModel, max_batch_tokens: int | None) -> int:
    """Return the padded tokens of one batch: the limit that is set, or what suits the model's device."""
    return max_batch_tokens or (CPU_BUDGET if model.device.type == "cpu" else GPU_BUDGET)


@contextlib.contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout and gradients off, and restore the training mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def base_model(model: Any) -> PreTrainedModel:
    """Return the model itself, below an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def pad(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> torch.Tensor:
    """Return rows as one tensor, padded on the right; no real token of a causal model can see the padding."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities over the last dimension, in float32, or in float64 where the model computes in it."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def gather(logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Return the log-probabilities of targets [n], read from logits [n, vocabulary], or from the given rows of it."""
    rows = torch.arange(len(targets), device=targets.device) if rows is None else rows
    return log_softmax(logits)[rows, targets]


def text_losses(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], max_batch_tokens: int | None = None
) -> list[tuple[float, int]]:
    """Return the loss of texts, summed over the tokens that are targets.

    Rows are sorted by length and padded on the right. ``max_batch_tokens`` x vocabulary logits are in memory at once.

    Args:
        model: a causal language model, plain or with a LoRA adapter; its training mode is restored afterwards.
        rows: (input ids, labels) of equal length; label i is predicted from the ids before it; ``IGNORE_INDEX`` is
            no target. The label of the first id has nothing before it and is never a target, as in ``transformers``.
        max_batch_tokens: padded tokens in one batch; a longer row runs alone. None takes what suits the device.

    Returns:
        For each row (summed negative log-likelihood in nats, number of target tokens).

    Raises:
        InputError: a row is empty, or its ids and labels differ in length.

    Example:
        >>> text_losses(model, [([1, 5, 9], [-100, -100, 9])])  # doctest: +SKIP
        [(6.2, 1)]
    """
    for number, (ids, labels) in enumerate(rows):
        if not ids or len(ids) != len(labels):
            raise InputError(
                f"row {number} has {len(ids)} ids and {len(labels)} labels: they must be equally many, 1 or more."
            )
    losses, budget = [(0.0, 0)] * len(rows), batch_tokens(model, max_batch_tokens)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]))
    with inference(model):
        while order:
            size = max(1, budget // len(rows[order[0]][0]))
            batch, order = order[:size], order[size:]
            ids = pad([rows[n][0] for n in batch], 0, model.device)
            mask = pad([[1] * len(rows[n][0]) for n in batch], 0, model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for number, row in zip(batch, logits, strict=True):
                labels = torch.tensor(rows[number][1][1:], dtype=torch.long, device=model.device)
                targets = (labels != IGNORE_INDEX).nonzero()[:, 0]
                values = gather(row[targets], labels[targets])
                losses[number] = (-values.double().sum().item(), len(targets))
    return losses
