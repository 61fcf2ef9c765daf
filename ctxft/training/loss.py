"""Hidden states and targets flow in; the summed loss of the targets flows out, without the logits of a whole batch in memory.

Only hidden states that predict a target pass the output layer, some at a time: prompts and padding cost no logits, and a
vocabulary of 128,000 costs no more memory than a small one. Gradients are formed chunk by chunk in the forward pass.
"""

from __future__ import annotations

import types

import torch
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ctxft.storage import InputError

LOGITS_AT_ONCE = 2**23  # numbers in the logits of a chunk: 32 MB in float32


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy summed over targets; ``parameters`` are those of the head, so that their gradients flow as usual."""

    @staticmethod
    def forward(ctx, targets, chunk, hidden, *parameters):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        learned = [p for p, needed in zip(parameters, ctx.needs_input_grad[3:], strict=True) if needed]
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in learned]
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[2] else None
        for begin in range(0, len(targets), chunk):
            part = slice(begin, begin + chunk)
            piece = hidden[part].detach().requires_grad_(hidden_grad is not None)
            inputs = ([piece] if hidden_grad is not None else []) + learned
            with torch.set_grad_enabled(bool(inputs)):
                loss = cross_entropy(linear(piece, *parameters).float(), targets[part], reduction="sum")
            total += loss.detach()
            if not inputs:
                continue
            found = list(torch.autograd.grad(loss, inputs))
            if hidden_grad is not None:
                hidden_grad[part] = found.pop(0)
            for held, new in zip(sums, found, strict=True):
                held.add_(new)
        kinds = [p.dtype for p in parameters]
        ctx.needed, ctx.sums = list(zip(ctx.needs_input_grad[3:], kinds, strict=True)), sums
        ctx.hidden_grad = hidden_grad
        return total

    @staticmethod
    def backward(ctx, gradient):
        sums = iter(ctx.sums)
        return (
            None,
            None,
            None if ctx.hidden_grad is None else ctx.hidden_grad.mul_(gradient.to(ctx.hidden_grad.dtype)),
            *(next(sums).mul_(gradient).to(dtype) if needed else None for needed, dtype in ctx.needed),
        )


def chunked_loss(
    head: torch.nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """Return the cross-entropy of targets, summed, in nats.

    Args:
        head: the output layer, (n, hidden size) -> (n, vocabulary). Its weights are used and not its forward pass: hooks on it,
            such as those of FSDP, would meet each chunk's backward pass in the middle of the forward pass.
        hidden: (targets, hidden size).
        targets: (targets,) token ids.
        chunk: targets whose logits are in memory at once; None takes as many as make 32 MB.

    Example:
        >>> head = torch.nn.Linear(2, 4, bias=False)
        >>> round(chunked_loss(head, torch.zeros(3, 2), torch.tensor([0, 1, 2])).item(), 3)  # 3 ln 4
        4.159
    """
    if chunk is None:
        chunk = max(1, LOGITS_AT_ONCE // head.out_features)
    parameters = [head.weight] if head.bias is None else [head.weight, head.bias]
    if torch.is_grad_enabled():
        return _ChunkedLoss.apply(targets, chunk, hidden, *parameters)
    pairs = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return sum(cross_entropy(linear(piece, *parameters).float(), part, reduction="sum") for piece, part in pairs)


def read_for_loss(model: PreTrainedModel, loss: str = "chunked") -> PreTrainedModel:
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
    before = model.forward
    if loss == "chunked" and type(model.get_output_embeddings()) is not torch.nn.Linear:
        raise InputError("this kind of model has no plain output layer to use in chunks: set train.loss to full.")

    def forward(self, *args, target_positions=None, targets=None, **options):
        if targets is None:
            return before(*args, **options)
        options["use_cache"] = False
        if loss == "full":
            logits = before(*args, **options).logits.flatten(0, 1)[target_positions]
            return CausalLMOutput(loss=cross_entropy(logits.float(), targets, reduction="sum"))
        hidden = self.get_decoder()(*args, **options).last_hidden_state.flatten(0, 1)[target_positions]
        return CausalLMOutput(loss=chunked_loss(self.get_output_embeddings(), hidden, targets))

    model.forward = types.MethodType(forward, model)
    return model
