"""Tokenise contexts and continuations by the rule of lm-evaluation-harness, so that scores can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ctxft.data.chat import encode_rendered
from ctxft.storage import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
Pair = tuple[list[int], list[int]]  # ids of a context, ids of its continuation


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True, chat: bool = False
) -> list[list[int]]:
    """Tokenise many texts in one call of the tokenizer.

    Args:
        tokenizer: of the model that will read the ids.
        texts: the texts.
        special: add the special tokens that the tokenizer adds by itself.
        chat: the texts were written by ``ctxft.data.chat``, whose control tokens are read; else "</s>" and the like are text.
    """
    if chat:
        return [ids for ids, _ in encode_rendered(tokenizer, texts, special)]
    options: dict[str, Any] = {"add_special_tokens": special, "split_special_tokens": True, "verbose": False}
    return tokenizer(list(texts), **options)["input_ids"] if texts else []


def _prefix(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the id of BOS, else of EOS, else None."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def adds_special(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], chat: bool) -> list[bool]:
    """Return for each text whether the tokenizer's special tokens go before it: not where it begins with that of BOS.

    A text in a chat template may bring its own, and a second BOS would be no text that a model was trained on.
    """
    if not chat:
        return [True] * len(texts)
    prefix = _prefix(tokenizer)
    start = None if prefix is None else str(tokenizer.decode(prefix))
    return [not (start and text.startswith(start)) for text in texts]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], chat: bool = False) -> list[list[int]]:
    """Tokenise texts that a model writes on, by the same rule as the contexts of ``encode_requests``."""
    kinds = adds_special(tokenizer, prompts, chat)
    ids = {
        kind: iter(encode_texts(tokenizer, [p for p, k in zip(prompts, kinds, strict=True) if k is kind], kind, chat))
        for kind in (True, False)
    }
    return [next(ids[kind]) for kind in kinds]


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """Tokenise a context and its continuation by the rule of lm-evaluation-harness.

    White space at the end of the context moves to the continuation. Both are then encoded as one text, and the
    continuation is what follows as many ids as the context alone has: encoded apart it would begin with other tokens in
    some tokenizers. Special tokens are those the tokenizer adds by itself; an empty context becomes BOS (else EOS).
    Unlike there, a text that spells a special token out ("</s>") stays text.

    Args:
        tokenizer: of the model that will read the ids.
        context: the text before, such as "Question: ...\\nAnswer:".
        continuation: the text to score, such as " B".

    Returns:
        (ids of the context, ids of the continuation).

    Raises:
        InputError: the tokenizer merges the whole continuation into the context's last token: nothing is left.

    Source:
        lm-evaluation-harness 0.4, ``TemplateLM._encode_pair`` and ``TemplateLM.loglikelihood``.

    Example:
        >>> encode_pair(tokenizer, "Answer:", " yes")  # doctest: +SKIP
        ([1, 673, 29], [4874])
    """
    pair = encode_requests(tokenizer, [(context, [continuation])])[0][0]
    check_pair(pair, context, continuation)
    return pair


def encode_requests(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[tuple[str, Sequence[str]]], chat: bool = False
) -> list[list[Pair]]:
    """Tokenise the continuations of many contexts as ``encode_pair`` does, each text once and all in two calls.

    Args:
        tokenizer: of the model that will read the ids.
        requests: (context, its continuations).
        chat: they were written by ``ctxft.data.chat``.

    Returns:
        For each request a pair of ids for each continuation; a pair may be empty on one side (see ``check_pair``).
    """
    prefix = _prefix(tokenizer)
    moved = [_move_space(context, continuations) for context, continuations in requests]
    contexts = [context for context, _ in moved]
    # What follows an empty context has no special tokens.
    special = [bool(c) and kind for c, kind in zip(contexts, adds_special(tokenizer, contexts, chat), strict=True)]
    wanted: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for (context, continuations), kind in zip(moved, special, strict=True):
        wanted[kind].update(dict.fromkeys([context, *(context + text for text in continuations)]))
    ids = {
        kind: dict(zip(texts, encode_texts(tokenizer, list(texts), kind, chat), strict=True))
        for kind, texts in wanted.items()
    }
    pairs = []
    for (context, continuations), kind in zip(moved, special, strict=True):
        before = ids[kind][context] if context else [prefix] if prefix is not None else []
        wholes = [ids[kind][context + text] for text in continuations]
        # After an empty context nothing is cut off, except a BOS that the continuation brings along.
        cuts = [len(before) if context else int(whole[:1] == before) for whole in wholes]
        pairs.append([(before, whole[cut:]) for whole, cut in zip(wholes, cuts, strict=True)])
    return pairs


def _move_space(context: str, continuations: Sequence[str]) -> tuple[str, list[str]]:
    kept = context.rstrip()
    return kept, [context[len(kept) :] + text for text in continuations]


def check_pair(pair: Pair, context: str, continuation: str) -> None:
    """Raise InputError if a continuation has no token of its own, or no token is before it."""
    if not all(pair):
        raise InputError(
            f"nothing is left to score of {continuation!r} after {context.rstrip()[-40:]!r}: the tokenizer merges the"
            " two; begin the choice with a space or another word."
        )
