"""An arm, a passage and the prompt books go in; the contextual prompt that stands before the passage comes out.

    cft       a strategy prompt                       neg       a negative prompt
    control   as many tokens of meaningless words     adaptive  the prompt that suits this very passage

Arms ``base`` and ``cpt`` read none. An arm may have a second stage, ``ift`` (instruction fine-tuning): ``cft-ift`` goes on from
the model of ``cft``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctxft.prompts.books import ContextualPrompt, PromptBook
from ctxft.runtime import InputError, check_known, seeded, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"
TEXT_STAGES = ("cpt", "cft", "neg", "control", "adaptive")
ARMS = ("base", *TEXT_STAGES, "ift", *(f"{stage}-ift" for stage in TEXT_STAGES))

# Everyday words without a subject of their own: none asks for anything, denies anything, or speaks of reading,
# learning, medicine or money, so that a row of them is as meaningless as words can be.
COMMON_WORDS = tuple(
    """the a of and to in on at by for with from or as it that this these those some many few every other each one two
    three four five six seven eight nine ten day night week year hour morning summer winter hill river lake sea rock
    sand snow rain wind cloud sun moon star tree leaf root flower grass field garden farm barn house room door window
    wall floor roof stair table chair bed lamp cup plate spoon bowl box bag coat hat shoe glove button rope wheel cart
    road bridge street corner town village city park bench gate fence horse dog cat bird fish cow sheep goat duck bee
    apple pear plum bread milk salt sugar soup egg cake red blue green yellow brown white black grey big small long
    short tall wide thin round flat soft warm cold dry wet near far high low left right under over behind beside
    between around across along again often once soon later here there walk run jump sit stand carry push pull throw
    catch wash paint sing""".split()
)


def stages_of(arm: str) -> list[str]:
    """Return the stages of an arm, in order; "base" has none.

    Raises:
        InputError: the arm is unknown.

    Example:
        >>> stages_of("cft-ift")
        ['cft', 'ift']
    """
    return [] if check_known(arm, ARMS, "arm") == "base" else arm.split("-")


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the number of tokens of a text, without special tokens."""
    return len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def control_prompt(
    tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int, passage_id: str, separator: str = SEPARATOR
) -> ContextualPrompt:
    """Return meaningless common words that take, with the separator, exactly the asked number of tokens.

    Words are drawn without replacement until the row has the right length. The row is tokenised as a whole each time,
    so merges are counted as they are. A row that steps over the number is dropped for the next one, 200 at most.

    Args:
        tokenizer: a transformers tokenizer, of any family.
        tokens: tokens of prompt and separator together, special tokens not counted.
        seed: the run's seed.
        passage_id: the passage that the prompt stands before.
        separator: what stands between prompt and passage.

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


def require_label(passage_id: str, reliable: bool | None) -> None:
    """Raise InputError if a passage has no truth label, by which arm adaptive chooses its prompt."""
    if reliable is None:
        raise InputError(
            f"arm adaptive chooses the prompt by a truth label, but passage '{passage_id}' has none: give every document "
            "of the corpus a field 'reliable' (true or false), or leave the arm out."
        )


def prompt_for(
    arm: str,
    passage_id: str,
    seed: int,
    strategies: PromptBook,
    negative: PromptBook,
    tokenizer: PreTrainedTokenizerBase,
    reliable: bool | None = None,
) -> ContextualPrompt | None:
    """Return the prompt that an arm reads before a passage; None for the arms that read none (base, cpt).

    The control prompt has, with the separator, as many tokens as the prompt that arm cft reads before the same passage.
    The adaptive prompt is cft's before a reliable passage and neg's before an unreliable one: the choice of an oracle that
    knows the truth label, not of a model that reads the passage.

    Args:
        arm: "base", or one of ``TEXT_STAGES``.
        passage_id: decides the draw, together with the seed.
        seed: of the run.
        strategies, negative: the run's books.
        tokenizer: counts the tokens of a control prompt.
        reliable: the passage's truth label; arm adaptive alone needs it.

    Raises:
        InputError: the arm is unknown, or it is adaptive and the passage has no truth label.
    """
    check_known(arm, ("base", *TEXT_STAGES), "arm with prompts")
    if arm == "adaptive":
        require_label(passage_id, reliable)
    if arm == "cft" or (arm == "adaptive" and reliable):
        return strategies.draw(seed, passage_id)
    if arm in ("neg", "adaptive"):
        return negative.draw(seed, passage_id)
    if arm == "control":
        tokens = count_tokens(tokenizer, strategies.draw(seed, passage_id).text + SEPARATOR)
        return control_prompt(tokenizer, tokens, seed, passage_id)
    return None
