"""Queries, keys and values of a packed line flow in; attention that stays inside each row flows out.

    segments   CPU: one causal scaled-dot-product call for each row of the line; no mask, no work between rows
    varlen     GPU: torch's variable-length flash attention over the bounds of the rows (bfloat16)
    sdpa       a boolean mask over lines of ``window`` tokens
    eager      the same as numbers that are added to the scores

Transformers can guess rows from position ids, but only as long as neither a mask nor a cache is there, and is silent when
it does not; so the rows are always told, and a kernel that is not told refuses.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from ctxft.storage import InputError

UNKNOWN = (
    "softcap",
    "s_aux",
    "position_bias",
    "head_mask",
)  # what some models add to attention, and these kernels do not


def _require(kind: str, told: object, extra: dict) -> None:
    found = [name for name in UNKNOWN if extra.get(name) is not None]
    if told is None:
        raise InputError(
            "this kind of model does not tell its attention where rows begin: set train.attention to sdpa or eager."
        )
    if found:
        raise InputError(
            f"this kind of model needs {', '.join(found)} in its attention, which '{kind}' does not have: set "
            "train.attention to eager."
        )


def _by_segment(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, segments=None, sliding_window=None, **extra
):
    """Attend inside each row of one line; query, key and value are (1, heads, tokens, head size)."""
    _require("segments", segments, extra)
    grouped = query.shape[1] != key.shape[1]
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": grouped}
    found = []
    for q, k, v in zip(query.split(segments, 2), key.split(segments, 2), value.split(segments, 2), strict=True):
        length = q.shape[2]
        if sliding_window is None or length <= sliding_window:
            found.append(scaled_dot_product_attention(q, k, v, is_causal=True, **options))
            continue
        allowed = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        near = allowed & ~torch.ones_like(allowed).tril(-sliding_window)
        found.append(scaled_dot_product_attention(q, k, v, attn_mask=near, **options))
    return torch.cat(found, 2).transpose(1, 2), None


def _by_bounds(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    segment_bounds=None,
    longest_segment=None,
    sliding_window=None,
    **extra,
):
    """Attend inside each row of one line by torch's variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    _require("varlen", segment_bounds, extra)
    if dropout:
        raise InputError("attention dropout does not go with train.attention varlen: set it to sdpa.")
    flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]  # (tokens, heads, head size)
    if flat[0].dtype == torch.float32:  # rotary embedding may have left bfloat16
        flat = [tensor.to(torch.bfloat16) for tensor in flat]
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    bounds = (segment_bounds, segment_bounds, longest_segment, longest_segment)
    grouped = query.shape[1] != key.shape[1]
    return varlen_attn(*flat, *bounds, scale=scaling, window_size=window, enable_gqa=grouped)[None], None


AttentionInterface.register("ctxft_segments", _by_segment)
AttentionInterface.register("ctxft_varlen", _by_bounds)


def choose_attention(wanted: str, pack: bool, device: str) -> str:
    """Return the attention that "auto" stands for.

    Segments on a CPU, varlen on a GPU that has flash attention, sdpa where rows are padded.

    Raises:
        InputError: the wanted one needs packing, or a GPU.

    Example:
        >>> choose_attention("auto", pack=True, device="cpu")
        'segments'
    """
    if wanted == "auto":
        flash = device != "cpu" and torch.cuda.get_device_capability() >= (8, 0)  # flash attention needs an Ampere GPU
        return "sdpa" if not pack else ("varlen" if flash else "segments")
    if wanted in ("segments", "varlen") and not pack:
        raise InputError(f"train.attention {wanted} lays rows in one line: set train.pack to true, or take sdpa.")
    if wanted == "varlen" and device == "cpu":
        raise InputError("train.attention varlen needs a GPU: take auto, segments, sdpa or eager.")
    return wanted


def set_attention(model: PreTrainedModel, attention: str, window: int) -> None:
    """Let a model use one of the attentions above.

    Args:
        model: a causal language model, not wrapped yet.
        attention: "segments", "varlen", "sdpa" or "eager".
        window: tokens of the longest row.

    Raises:
        InputError: the model's code cannot use it, or a mask would overrule its sliding window.
    """
    name = f"ctxft_{attention}" if attention in ("segments", "varlen") else attention
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise InputError(f"train.attention {attention}: {str(error).splitlines()[0]}") from None
    text = model.config.get_text_config()
    reach = getattr(text, "sliding_window", None)
    slides = reach is not None and getattr(text, "use_sliding_window", True)
    if slides and attention in ("sdpa", "eager") and reach < window:
        raise InputError(
            f"the model attends to {reach} tokens at most, which a mask for rows of {window} tokens would overrule: set "
            f"train.attention to auto, or train.window to {reach}."
        )
