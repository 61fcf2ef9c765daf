"""Compute the loss of the targets without holding the logits of a whole batch.

Only hidden states that predict a target pass the output layer, a chunk at a time: prompts and padding cost no logits, and a
vocabulary of 128,000 costs no more memory than a small one.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy, linear_cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ctxft.storage import InputError

LOGITS_AT_ONCE = 2**22  # numbers in the logits of a chunk: 16 MB in float32


def chunked_loss(
    head: torch.nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """Return the cross-entropy of targets, summed, in nats.

    Torch forms the gradients chunk by chunk in the forward pass. The chunk is given since the one that torch would choose
    is too small to be fast on a CPU; "compact" then is the fastest policy and as exact as the others in float32. In bfloat16
    torch would add the loss up in bfloat16, so hidden states and weights are float32 here, multiplied in TF32 on a GPU.

    Args:
        head: the output layer, (n, hidden size) -> (n, vocabulary). Its weights are used and not its forward pass: hooks on it,
            such as those of FSDP, would meet each chunk's backward pass in the middle of the forward pass.
        hidden: (targets, hidden size).
        targets: (targets,) token ids.
        chunk: targets whose logits are in memory at once; None takes as many as make 16 MB.

    Example:
        >>> head = torch.nn.Linear(2, 4, bias=False)
        >>> round(chunked_loss(head, torch.zeros(3, 2), torch.tensor([0, 1, 2])).item(), 3)  # 3 ln 4
        4.159
    """
    size = chunk or max(1, LOGITS_AT_ONCE // head.out_features)
    options = torch.nn.LinearCrossEntropyOptions(acc_policy="compact", batch_chunk_size=size)
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(hidden.device.type, enabled=False), _tf32(hidden.is_cuda):
        return linear_cross_entropy(
            hidden.float(), head.weight.float(), targets, linear_bias=bias, reduction="sum", options=options
        )


@contextlib.contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Let a GPU multiply float32 in TF32, which has more digits than bfloat16 and half its speed."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if wanted:
        matmul.fp32_precision = "tf32"
    yield
    if wanted:
        matmul.fp32_precision = before


def patch_loss_forward(model: PreTrainedModel, loss: str = "chunked") -> PreTrainedModel:
    """Give a causal language model a forward pass that takes ``target_positions`` and ``targets`` and returns their loss.

    It is the model's own forward that changes: what is wrapped around the model later (adapters, DDP, FSDP) calls it and
    runs all its hooks. Without ``targets`` it is the forward that it was.

    Args:
        model: the model; it is changed.
        loss: "chunked", or "full" for a model whose logits are more than its output layer makes of the hidden states.

    Returns:
        The same model.

    Raises:
        InputError: the model has no output layer of the usual kind.
    """
    original = model.forward
    if loss == "chunked" and type(model.get_output_embeddings()) is not torch.nn.Linear:
        raise InputError("this kind of model has no plain output layer to use in chunks: set train.loss to full.")

    def forward(self, *args, target_positions=None, targets=None, **kwargs):
        if targets is None:
            return original(*args, **kwargs)
        kwargs["use_cache"] = False
        if loss == "full":
            logits = original(*args, **kwargs).logits.flatten(0, 1)[target_positions]
            return CausalLMOutput(loss=cross_entropy(logits.float(), targets, reduction="sum"))
        hidden = self.get_decoder()(*args, **kwargs).last_hidden_state.flatten(0, 1)[target_positions]
        return CausalLMOutput(loss=chunked_loss(self.get_output_embeddings(), hidden, targets))

    model.forward = types.MethodType(forward, model)
    return model
