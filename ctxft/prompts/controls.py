"""Make control prompts: as many tokens of random words, or the words of a prompt in another order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctxft.prompts.sets import SEPARATOR, ContextualPrompt
from ctxft.storage import PACKAGE_ROOT, InputError, read_text, seeded, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHUFFLES = 50

# Everyday words without a subject of their own: none asks for anything, denies anything, or speaks of reading,
# learning, medicine or money, so that a row of them says as little as words can.
COMMON_WORDS = tuple(read_text(PACKAGE_ROOT / "prompts" / "common_words.txt").split())


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the number of tokens of a text, without special tokens."""
    return len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def control_prompt(
    tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int, passage_id: str, separator: str = SEPARATOR
) -> ContextualPrompt:
    """Return random common words that take, with the separator, exactly N tokens.

    Words are sampled without replacement until the row has the right length. The row is tokenized as a whole each time,
    so merges are counted as they are. A row that steps over the number is dropped for the next one, 200 at most.

    Args:
        tokenizer: a transformers tokenizer, of any family.
        tokens: tokens of prompt and separator together, special tokens not counted.
        seed: the run's seed.
        passage_id: the passage that the prompt is prepended to.
        separator: what is between prompt and passage.

    Raises:
        InputError: no row of words has that length, for example because it is shorter than the separator.
    """
    random = seeded(seed, passage_id, "control")
    words = COMMON_WORDS * (1 + max(tokens, 0) // len(COMMON_WORDS))
    for _ in range(200 if tokens > 0 else 0):
        text = ""
        for word in random.sample(words, tokens):
            text = f"{text} {word}".strip()
            length = count_tokens(tokenizer, text + separator)
            if length == tokens:
                return ContextualPrompt(f"control-{sha256(text)[:12]}", "control", text, "control")
            if length > tokens:
                break
    alone = count_tokens(tokenizer, separator)
    raise InputError(
        f"no row of common words takes exactly {tokens} tokens before passage '{passage_id}' "
        f"(the separator alone takes {alone}): use a longer prompt or another tokenizer."
    )


def shuffled_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: ContextualPrompt, seed: int, passage_id: str, separator: str = SEPARATOR
) -> ContextualPrompt:
    """Return the words of a prompt in another order, as near to its number of tokens as an order of them comes.

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
    random, words = seeded(seed, passage_id, "shuffled"), prompt.text.split()
    words[0] = words[0][:1].lower() + words[0][1:]
    if len(set(words)) < 2:
        raise InputError(f"prompt '{prompt.id}' has no two different words, so arm control-shuffled cannot shuffle it.")
    wanted = count_tokens(tokenizer, prompt.text + separator)
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
