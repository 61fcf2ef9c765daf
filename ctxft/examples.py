"""A passage and its prompt flow in; token ids, labels and a count of every token flow out.

    row:      [start] prompt + separator   text of the passage          [EOS]
    labels:   -100    -100 ... -100        the same ids, in every arm    EOS only where the document really ends

An arm with exercises reads no prompt but questions about the text, behind it; they are learned like the text:

    row:      [start] text of the passage   exercises   [EOS]

Prompt and separator are tokenised together and apart from the text, whose ids were fixed when the document was cut.
The prompt stands before every passage of a document (the authors' release carries it on the first window only), is read,
and is never learned: L = - 1/n sum_k log p(x_k | c, x_<k) over the n text tokens (Choi et al., arXiv 2503.09032).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ctxft.corpora.exercises import Exercise, exercises_text
from ctxft.corpora.passages import Passage
from ctxft.models import encode_text
from ctxft.prompts import SEPARATOR, ContextualPrompt, PromptBook
from ctxft.runtime import InputError

IGNORE_INDEX = -100  # the label that torch's cross-entropy leaves out


@dataclass(frozen=True)
class SpecialTokens:
    """The token ids that frame a row: ``start`` at its beginning, ``eos`` at a document's end, ``pad`` behind the row.

    ``notes`` says in words what had to be replaced; the ledger prints it.
    """

    start: int
    eos: int
    pad: int
    notes: tuple[str, ...]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Read a tokenizer's special tokens, with the stated replacement for a missing BOS or pad token.

    Without BOS, EOS starts every row of every arm: otherwise the first text token would be a target in CFT and not in
    CPT. Without a pad token EOS fills the space; padding is told by length, never by id, so no EOS is lost.

    Example:
        >>> from ctxft.models import load_tokenizer
        >>> special_tokens(load_tokenizer("practice-blind")).notes
        ()
    """
    eos, start, pad = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    notes = []
    if start is None:
        notes.append("the tokenizer has no BOS token: EOS starts every row")
    if pad is None:
        notes.append("the tokenizer has no pad token: EOS fills rows, masked by length")
    return SpecialTokens(eos if start is None else start, eos, eos if pad is None else pad, tuple(notes))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: ContextualPrompt | None) -> list[int]:
    """Return the token ids of a prompt and its separator; an empty list for no prompt."""
    return [] if prompt is None else encode_text(tokenizer, prompt.text + SEPARATOR)[0]


def longest_prompt(tokenizer: PreTrainedTokenizerBase, books: Iterable[PromptBook]) -> int:
    """Return the tokens (separator included) of the longest prompt in any of the books."""
    return max(len(prompt_ids(tokenizer, prompt)) for book in books for prompt in book.prompts)


def text_budget(window: int, longest: int, least: int) -> int:
    """Return how many text tokens a passage may have: the window less start token, longest prompt and EOS.

    The budget is the same in all arms, so that all arms read the same passages.

    Args:
        window: tokens a row may have.
        longest: tokens of the longest prompt of all arms, separator included.
        least: text tokens that must be left.

    Raises:
        InputError: fewer than ``least`` tokens are left.

    Example:
        >>> text_budget(window=128, longest=30, least=32)
        96
    """
    budget = window - 2 - longest
    if budget < least:
        raise InputError(
            f"a window of {window} tokens leaves {max(budget, 0)} for text after the longest prompt ({longest} tokens), "
            f"but train.min_text_tokens is {least}: raise train.window or shorten the prompts."
        )
    return budget


def exercise_ids(tokenizer: PreTrainedTokenizerBase, exercises: Sequence[Exercise], room: int) -> tuple[list[int], int]:
    """Return the token ids of the exercises that stand behind a passage, as many from the first as there is room for.

    They are tokenised apart from the text, like a prompt.

    Args:
        tokenizer: of the model.
        exercises: from ``ctxft.corpora.exercises``.
        room: tokens they may take: the window less start token, text, and EOS if the document ends.

    Returns:
        (token ids, how many exercises were dropped).
    """
    text, dropped = exercises_text(exercises, lambda text: len(encode_text(tokenizer, text)[0]) <= room)
    return encode_text(tokenizer, text)[0] if text else [], dropped


def build_row(
    passage: Passage, prompt: Sequence[int], special: SpecialTokens, after: Sequence[int] = ()
) -> dict[str, list[int]]:
    """Lay one passage out as a training row.

    Args:
        passage: the passage.
        prompt: ids of prompt and separator; empty for CPT.
        special: the tokenizer's special tokens.
        after: ids of exercises behind the text, learned like the text; EOS, where the document ends, stands behind them.

    Returns:
        ``input_ids`` and ``labels``, lists of equal length; labels are ``IGNORE_INDEX`` before the text.
    """
    text = [*passage.ids, *after] + ([special.eos] if passage.last else [])
    before = [special.start, *prompt]
    return {"input_ids": before + text, "labels": [IGNORE_INDEX] * len(before) + text}


class Rows(Sequence):
    """The rows of one arm, each built when it is asked for: a large corpus needs no second copy in memory.

    Args:
        passages: the passages, in order.
        prompts: for each passage the ids of its prompt and separator.
        special: the tokenizer's special tokens.
        after: for each passage the ids of exercises behind it; None for an arm without exercises.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        prompts: Sequence[Sequence[int]],
        special: SpecialTokens,
        after: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.passages, self.prompts, self.special = passages, prompts, special
        self.after = [()] * len(passages) if after is None else after

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        return build_row(self.passages[number], self.prompts[number], self.special, self.after[number])

    @property
    def targets(self) -> list[int]:
        """Target tokens of each row: the same in every arm without exercises."""
        pairs = zip(self.passages, self.after, strict=True)
        return [len(passage.ids) + len(after) + passage.last for passage, after in pairs]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        pairs = zip(self.prompts, self.targets, strict=True)
        return max(1 + len(prompt) + targets for prompt, targets in pairs)


def arm_tokens(rows: Iterable[dict[str, list[int]]]) -> dict[str, int]:
    """Count one arm's rows, the tokens it reads, those that are prompt (separator included), and its targets.

    Example:
        >>> arm_tokens([{"input_ids": [1, 5, 6, 7, 2], "labels": [-100, -100, 6, 7, 2]}])
        {'rows': 1, 'tokens read': 5, 'prompt tokens': 1, 'target tokens': 3}
    """
    number = read = targets = 0
    for row in rows:
        number += 1
        read += len(row["input_ids"])
        targets += sum(label != IGNORE_INDEX for label in row["labels"])
    return {
        "rows": number,
        "tokens read": read,
        "prompt tokens": read - targets - number,
        "target tokens": targets,
    }
