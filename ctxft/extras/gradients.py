"""A model and rows flow in; the gradient of their mean loss flows out, one flat vector in float32, without dropout.

rows -> padded batches -> loss summed over targets, divided by all targets -> backward, batch by batch -> one vector
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ctxft.data.rows import IGNORE_INDEX
from ctxft.evaluation.scoring.texts import batch_tokens, pad
from ctxft.storage import InputError
from ctxft.training.checkpoint import trainable_parameters
from ctxft.training.loss import patch_loss_forward
from ctxft.training.packing import Row, batch_by_length

GIB = 2**30


def let_learn(model: PreTrainedModel | PeftModel, loss: str = "chunked") -> int:
    """Make a loaded model ready for ``mean_gradient``: the weights that its training moves want a gradient, and no other.

    Args:
        model: as from ``ctxft.models.load_model``, in evaluation mode; it is changed.
        loss: as for ``ctxft.training.loss.patch_loss_forward``.

    Returns:
        How many weights these are: the adapter's, or all of a model without one.
    """
    if isinstance(model, PeftModel):
        model.set_requires_grad(model.active_adapters)
        patch_loss_forward(model.get_base_model(), loss)
    else:
        patch_loss_forward(model.requires_grad_(True), loss)
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


def require_memory(vectors: int, weights: int, memory: float) -> None:
    """Raise InputError if gradients of so many weights (4 bytes each) would take more than ``memory`` GiB."""
    needed = 4 * vectors * weights / GIB
    if needed > memory:
        raise InputError(
            f"{vectors} gradients of {weights:,} weights take {needed:.1f} GiB, more than the {memory:g} GiB allowed: allow "
            "more, take an arm trained with LoRA, or leave the gradients out (0 passages)."
        )


def mean_gradient(
    model: PreTrainedModel | PeftModel, rows: Sequence[Row], token_budget: int | None = None
) -> torch.Tensor:
    """Return the gradient of the mean loss of all targets of the rows, flattened, on the CPU.

    Rows are read by falling length, so the same rows in any order give the same vector bit for bit.

    Args:
        model: prepared by ``let_learn``.
        rows: ``input_ids`` and ``labels`` each.
        token_budget: padded tokens in one batch, as for ``ctxft.evaluation.scoring.text_losses``.

    Returns:
        (weights,) in float32, in the order of the model's parameters.

    Example:
        >>> mean_gradient(model, [{"input_ids": [1, 5, 9], "labels": [-100, 5, 9]}]).shape  # doctest: +SKIP
        torch.Size([60528])
    """
    ordered = sorted(rows, key=lambda row: (-len(row["input_ids"]), row["input_ids"]))
    targets = sum(label != IGNORE_INDEX for row in ordered for label in row["labels"][1:])
    model.zero_grad(set_to_none=True)
    for batch in _batches(ordered, batch_tokens(model, token_budget)):
        (_summed_loss(model, batch) / targets).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable_parameters(model).values()]
    found = torch.cat([grad.flatten().float().cpu() for grad in grads])
    model.zero_grad(set_to_none=True)
    return found


def _batches(rows: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    for group in batch_by_length([len(row["input_ids"]) for row in rows], budget):
        yield [rows[number] for number in group]


def _summed_loss(model: PreTrainedModel | PeftModel, batch: Sequence[Row]) -> torch.Tensor:
    ids = pad([row["input_ids"] for row in batch], 0, model.device)
    mask = pad([[1] * len(row["input_ids"]) for row in batch], 0, model.device)
    # the hidden state at t predicts the label at t + 1, so nothing is predicted in the last column
    labels = pad([[*row["labels"][1:], IGNORE_INDEX] for row in batch], IGNORE_INDEX, model.device).flatten()
    places = (labels != IGNORE_INDEX).nonzero()[:, 0]
    given = {"target_positions": places, "targets": labels[places]}
    return model(input_ids=ids, attention_mask=mask, **given).loss


def cosines(vectors: Iterable[torch.Tensor]) -> tuple[list[list[float]], list[float]]:
    """Return the cosine between every two vectors, and their lengths.

    Args:
        vectors: (weights,) each.

    Returns:
        (rows of the matrix, 1 on its diagonal; the norms).

    Raises:
        InputError: a vector is 0 everywhere, and so has no direction.

    Example:
        >>> cosines([torch.tensor([3.0, 4.0]), torch.tensor([4.0, -3.0])])
        ([[1.0, 0.0], [0.0, 1.0]], [5.0, 5.0])
    """
    vectors = list(vectors)
    products = torch.tensor([[torch.dot(a, b).item() for b in vectors] for a in vectors], dtype=torch.float64)
    norms = products.diagonal().sqrt()
    if not norms.all():
        raise InputError(
            f"gradient {int((norms == 0).nonzero()[0, 0])} is 0 everywhere: the model cannot learn from these rows."
        )
    return (products / (norms[:, None] * norms)).clamp(-1, 1).tolist(), norms.tolist()
