"""Build training rows: token ids and labels of a passage and its prompt.

    row:      [start] prompt + separator   text of the passage          [EOS]
    labels:   -100    -100 ... -100        the same ids, in every arm    EOS only where the document really ends

An arm may read no prompt but exercises about the text, after it; they are targets like the text:

    row:      [start] text of the passage   exercises   [EOS]

Prompt and separator are tokenized together and apart from the text, whose ids were fixed when the document was cut. A prompt set
may put its prompts into a turn of the model's chat template instead; the text is then what the assistant says. The prompt is
prepended to every passage of a document (the authors' release does so on the first window only), and is no target:
L = - 1/n sum_k log p(x_k | c, x_<k) over the n text tokens (Choi et al., arXiv 2503.09032).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ctxft.data.corpus import targets_of_passages
from ctxft.data.passages import Passage
from ctxft.models import encode_text
from ctxft.prompts import SEPARATOR, ContextualPrompt, PromptSet
from ctxft.storage import InputError

IGNORE_INDEX = -100  # the label that torch's cross-entropy leaves out


@dataclass(frozen=True)
class SpecialTokens:
    """The special token ids of a row: ``start`` at its beginning, ``eos`` at a document's end, ``pad`` after the row.

    ``notes`` lists what had to be replaced; the ledger prints it.
    """

    start: int
    eos: int
    pad: int
    notes: tuple[str, ...]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Read a tokenizer's special tokens, and replace a missing BOS or pad token by EOS.

    Without BOS, EOS starts every row of every arm: otherwise the first text token would be a target in CFT and not in
    CPT. Without a pad token EOS fills the space; padding is masked by length, never by id, so no EOS is lost.

    Example:
        >>> from ctxft.models import load_tokenizer
        >>> special_tokens(load_tokenizer("practice-blind")).notes
        ()
    """
    ids: tuple[Any, ...] = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    eos, start, pad = ids
    notes = []
    if start is None:
        notes.append("the tokenizer has no BOS token: EOS starts every row")
    if pad is None:
        notes.append("the tokenizer has no pad token: EOS fills rows, masked by length")
    return SpecialTokens(eos if start is None else start, eos, eos if pad is None else pad, tuple(notes))


@dataclass(frozen=True)
class PromptTemplate:
    """What surrounds a prompt: ids before it, the separator that is tokenized with it, and ids between it and the text."""

    before: tuple[int, ...] = ()
    separator: str = SEPARATOR
    after: tuple[int, ...] = ()


def prompt_template(tokenizer: PreTrainedTokenizerBase, prompt_set: PromptSet) -> PromptTemplate:
    """Return what surrounds the prompts of a set: its separator, or the turns of the tokenizer's chat template.

    Placement "user" renders the prompt as the user's turn, "system" as the system's; in both the turn of the assistant is
    opened after it, and the text follows. The control tokens of the template are control tokens, those that a
    prompt spells out are not. A start token at the front is left out, since every row has one already.

    Raises:
        InputError: the tokenizer has no chat template, or its template has no such turn.

    Example:
        >>> from ctxft.models import load_tokenizer
        >>> from ctxft.prompts import load_prompt_set
        >>> prompt_template(load_tokenizer("practice-blind"), load_prompt_set("strategies")).before
        ()
    """
    if prompt_set.placement == "before":
        return PromptTemplate(separator=prompt_set.separator)
    where = f"prompt set '{prompt_set.name}' places prompts in the {prompt_set.placement} turn"
    if not tokenizer.chat_template:
        raise InputError(f"{where}, but the model's tokenizer has no chat template: set its placement to before.")
    mark = "\N{LATIN SMALL LETTER SCHWA}\N{LATIN SMALL LETTER EZH}"  # stands for the prompt; no template holds it
    try:
        turn = [{"role": prompt_set.placement, "content": mark}]
        rendered = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise InputError(f"{where}, but the model's chat template refuses it ({error}): choose another.") from None
    if rendered.count(mark) != 1:
        raise InputError(
            f"{where}, but the model's chat template does not write such a turn: choose another placement."
        )
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in rendered.split(mark))
    start = special_tokens(tokenizer).start
    return PromptTemplate(tuple(before[1:] if before[:1] == [start] else before), "", tuple(after))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: ContextualPrompt | None, template: PromptTemplate = PromptTemplate()
) -> list[int]:
    """Return the token ids of a prompt and what surrounds it; an empty list for no prompt."""
    if prompt is None:
        return []
    return [*template.before, *encode_text(tokenizer, prompt.text + template.separator)[0], *template.after]


def longest_prompt(tokenizer: PreTrainedTokenizerBase, prompt_sets: Iterable[PromptSet]) -> int:
    """Return the tokens (separator or turns included) of the longest prompt in any of the sets."""
    return max(
        len(prompt_ids(tokenizer, p, prompt_template(tokenizer, prompt_set)))
        for prompt_set in prompt_sets
        for p in prompt_set.prompts
    )


def text_budget(max_length: int, longest: int, least: int) -> int:
    """Return how many text tokens a passage may have: ``max_length`` less start token, longest prompt and EOS.

    The budget is the same in all arms, so that all arms read the same passages.

    Args:
        max_length: tokens a row may have.
        longest: tokens of the longest prompt of all arms, separator included.
        least: text tokens that must be left.

    Raises:
        InputError: fewer than ``least`` tokens are left.

    Example:
        >>> text_budget(max_length=128, longest=30, least=32)
        96
    """
    budget = max_length - 2 - longest
    if budget < least:
        raise InputError(
            f"a row of {max_length} tokens leaves {max(budget, 0)} for text after the longest prompt ({longest} tokens), "
            f"but train.min_text_tokens is {least}: raise train.max_length, shorten the prompts, or lower "
            "prompts.writer.max_tokens, if a model writes them."
        )
    return budget


def fitting_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], room: int
) -> tuple[Sequence[str], list[int]]:
    """Return as many pieces of text, from the first, as fit into a number of tokens, and their token ids.

    They are tokenized together and apart from the passage that they follow.

    Args:
        tokenizer: of the model.
        pieces: for example exercises about the passage, each with the white space before it.
        room: tokens they may take: max_length less start token, text, and EOS if the document ends.
    """
    for number in range(len(pieces), 0, -1):
        ids = encode_text(tokenizer, "".join(pieces[:number]))[0]
        if len(ids) <= room:
            return pieces[:number], ids
    return [], []


def build_row(
    passage: Passage, prompt: Sequence[int], special: SpecialTokens, learned: bool = False, after: Sequence[int] = ()
) -> dict[str, list[int]]:
    """Build the training row of one passage.

    Args:
        passage: the passage.
        prompt: ids of prompt and separator; empty for CPT.
        special: the tokenizer's special tokens.
        learned: the prompt is a target too (arm cft-learned), as in the authors' release where no separator is set.
        after: ids of exercises after the text, targets like it; EOS, where the document ends, follows them.

    Returns:
        ``input_ids`` and ``labels``, lists of equal length; labels are ``IGNORE_INDEX`` before the text.
    """
    text = [*passage.ids, *after] + ([special.eos] if passage.last else [])
    before = [special.start, *prompt]
    labels = [IGNORE_INDEX, *prompt] if learned else [IGNORE_INDEX] * len(before)
    return {"input_ids": before + text, "labels": labels + text}


class Rows(Sequence):
    """The rows of one arm, each built when it is read: a large corpus needs no second copy in memory.

    Args:
        passages: the passages, in order.
        prompts: for each passage, or for the first of them, the ids of its prompt and separator; none for an arm without.
        special: the tokenizer's special tokens.
        learned: prompts are targets too.
        after: for each passage, or for the first of them, the ids of exercises after it; none for an arm without.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        prompts: Sequence[Sequence[int]],
        special: SpecialTokens,
        learned: bool = False,
        after: Sequence[Sequence[int]] = (),
    ) -> None:
        self.passages, self.prompts, self.special, self.learned, self.after = passages, prompts, special, learned, after

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        prompt, after = (part[number] if number < len(part) else () for part in (self.prompts, self.after))
        return build_row(self.passages[number], prompt, self.special, self.learned, after)

    @cached_property
    def text_targets(self) -> array:
        """Targets of each row that are its text (and EOS): the same in every arm, so they fix the steps of all."""
        return targets_of_passages(self.passages)

    @cached_property
    def prompt_tokens(self) -> array:
        """Tokens of each row that are prompt and separator."""
        return self._lengths(self.prompts)

    @cached_property
    def after_tokens(self) -> array:
        """Tokens of each row that are exercises."""
        return self._lengths(self.after)

    def _lengths(self, parts: Sequence[Sequence[int]]) -> array:
        return array("i", (len(parts[number]) for number in range(len(parts)))) + array(
            "i", bytes(4 * (len(self) - len(parts)))
        )

    @property
    def targets(self) -> list[int]:
        """All target tokens of each row: those of the text in every arm that learns no prompt and no exercises."""
        learned = self.prompt_tokens if self.learned else [0] * len(self)
        return [sum(counts) for counts in zip(self.text_targets, learned, self.after_tokens, strict=True)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [
            1 + sum(counts) for counts in zip(self.text_targets, self.prompt_tokens, self.after_tokens, strict=True)
        ]


def arm_tokens(rows: Rows, number: int | None = None) -> dict[str, int]:
    """Count one arm's rows, the tokens it reads, those that are prompt (separator included), and its targets.

    Args:
        rows: of the arm.
        number: count the first N; None counts all.
    """
    number = len(rows) if number is None else number
    counts = (rows.text_targets, rows.prompt_tokens, rows.after_tokens)
    text, prompt, after = (sum(islice(tokens, number)) for tokens in counts)
    targets = text + after + (prompt if rows.learned else 0)
    return {
        "rows": number,
        "tokens read": number + prompt + text + after,
        "prompt tokens": 0 if rows.learned else prompt,
        "target tokens": targets,
    }
