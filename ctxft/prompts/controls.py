"""Make control prompts: as many tokens of random words, or the words of a prompt in another order."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ctxft.prompts.sets import SEPARATOR, ContextualPrompt
from ctxft.storage import PACKAGE_ROOT, InputError, read_text, seeded, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOL = 1000  # rows of one length, and orders of one prompt: a large corpus costs as many, a small one what it uses
TRIES = 200  # rows composed until one must have the right length
SHUFFLES = 50
KEPT = 50 * POOL  # rows, and orders, that a process keeps: those of some fifty lengths, and of as many prompts

# Everyday words without a subject of their own: none asks for anything, denies anything, or speaks of reading,
# learning, medicine or money, so that a row of them says as little as words can.
COMMON_WORDS = tuple(read_text(PACKAGE_ROOT / "prompts" / "common_words.txt").split())


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the number of tokens of a text, without special tokens."""
    return len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


prompt_tokens = functools.lru_cache(maxsize=1024)(count_tokens)  # for prompts, which stand before many passages


def control_prompt(
    tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int, passage_id: str, separator: str = SEPARATOR
) -> ContextualPrompt:
    """Return random common words that take, with the separator, exactly N tokens: one of ``POOL`` rows of that length.

    The passage decides which of the rows it reads, seed and length decide the words of each.

    Args:
        tokenizer: a transformers tokenizer, of any family.
        tokens: tokens of prompt and separator together, special tokens not counted.
        seed: the run's seed.
        passage_id: the passage that the prompt is prepended to.
        separator: what is between prompt and passage.

    Raises:
        InputError: no row of words has that length, for example because it is shorter than the separator.
    """
    slot = seeded(seed, passage_id, "control").randrange(POOL)
    if (prompt := _row(tokenizer, tokens, seed, slot, separator)) is None:
        raise InputError(
            f"no row of common words takes exactly {tokens} tokens before passage '{passage_id}' (the separator alone "
            f"takes {count_tokens(tokenizer, separator)}): use a longer prompt or another tokenizer."
        )
    return prompt


@functools.lru_cache(maxsize=KEPT)
def _row(
    tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int, slot: int, separator: str
) -> ContextualPrompt | None:
    """Return row number ``slot`` of a length, without a word twice where there are enough; None where none has the length.

    Words are taken by the tokens that each has behind a space. Pieces may merge across them, so the row is counted as a
    whole, and composed again with what that count differs by, until it is exact.
    """
    sizes, beside = _word_sizes(tokenizer, separator)
    random, words = seeded(seed, "control", tokens, slot), COMMON_WORDS * (1 + max(tokens, 0) // len(COMMON_WORDS))
    for _ in range(TRIES if tokens > 0 else 0):
        row, left = [], max(tokens - beside, 1)
        for word in random.sample(words, len(words)):
            if sizes[word] <= left:
                row.append(word)
                left -= sizes[word]
        text = " ".join(row)
        length = count_tokens(tokenizer, text + separator)
        if row and length == tokens:
            return ContextualPrompt(f"control-{sha256(text)[:12]}", "control", text, "control")
        beside = length - sum(sizes[word] for word in row)
    return None


@functools.lru_cache(maxsize=8)
def _word_sizes(tokenizer: PreTrainedTokenizerBase, separator: str) -> tuple[dict[str, int], int]:
    """Return the tokens of each common word behind a space, and what a row with its separator takes beside them."""
    alone, few = count_tokens(tokenizer, "the"), COMMON_WORDS[:8]
    sizes = {word: max(count_tokens(tokenizer, f"the {word}") - alone, 1) for word in COMMON_WORDS}
    return sizes, count_tokens(tokenizer, " ".join(few) + separator) - sum(sizes[word] for word in few)


def shuffled_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: ContextualPrompt, seed: int, passage_id: str, separator: str = SEPARATOR
) -> ContextualPrompt:
    """Return the words of a prompt in another order, as near to its number of tokens as one comes: one of ``POOL`` orders.

    Punctuation stays with its word, the first word has the capital. Of up to 50 orders the first with exactly as many
    tokens is taken; else the nearest below, else the nearest above: where words are cut into pieces depends on what stands
    before them.

    Args:
        tokenizer: counts the tokens.
        prompt: whose words.
        seed, passage_id: decide the order.
        separator: what is between prompt and passage.

    Raises:
        InputError: the prompt has a single word.
    """
    return _order(tokenizer, prompt, seed, seeded(seed, passage_id, "shuffled").randrange(POOL), separator)


@functools.lru_cache(maxsize=KEPT)
def _order(
    tokenizer: PreTrainedTokenizerBase, prompt: ContextualPrompt, seed: int, slot: int, separator: str
) -> ContextualPrompt:
    """Return order number ``slot`` of a prompt."""
    random, words = seeded(seed, "shuffled", prompt.text, slot), prompt.text.split()
    words[0] = words[0][:1].lower() + words[0][1:]
    if len(set(words)) < 2:
        raise InputError(f"prompt '{prompt.id}' has no two different words, so arm control-shuffled cannot shuffle it.")
    wanted = prompt_tokens(tokenizer, prompt.text + separator)
    best: tuple[tuple[bool, int], str] | None = None
    for _ in range(SHUFFLES):
        order = random.sample(words, len(words))
        text = " ".join(order)
        text = text[:1].upper() + text[1:]
        difference = count_tokens(tokenizer, text + separator) - wanted
        if order != words and (best is None or (difference > 0, abs(difference)) < best[0]):
            best = (difference > 0, abs(difference)), text
        if best and best[0][1] == 0:
            break
    assert best is not None  # fifty orders of two different words are not all the same
    return ContextualPrompt(f"shuffled-{sha256(best[1])[:12]}", prompt.family, best[1], "control")
