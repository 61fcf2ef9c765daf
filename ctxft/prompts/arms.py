"""An arm, a passage and the prompt sets go in; the contextual prompt that stands before the passage comes out.

    cft       a strategy prompt                       neg       a negative prompt
    control   as many tokens of meaningless words     adaptive  the prompt that suits this very passage

Arms ``base`` and ``cpt`` read none. Further arms take one question each about what it is in a prompt that works:

    control-shuffled    the words of cft's prompt in another order: its words without its meaning
    control-neutral     a sentence about the text that asks for nothing: a prompt without a strategy
    control-family      a prompt of another family than cft's: cft again but for the draw, so what chance alone does
    control-adaptive    the prompt that a model wrote for another passage: whether it matters that it suits the text
    only-FAMILY         prompts of this family alone          without-FAMILY    all but those of this family
    count-N             N prompts of the prompt set alone, chosen by the seed; those of count-2 are among those of count-5
    cft-learned         cft's prompt, which is learned too    reading           no prompt; exercises behind the text

An arm may have a second stage, ``ift`` (instruction fine-tuning): ``cft-ift`` goes on from the model of ``cft``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ctxft.prompts.controls import control_prompt, count_tokens, shuffled_prompt
from ctxft.prompts.files import load_prompt_set
from ctxft.prompts.sets import FAMILY_NAME, ContextualPrompt, PromptSet
from ctxft.storage import InputError, check_known, nearest, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_STAGES = ("cpt", "cft", "neg", "control", "adaptive")
VARIANTS = ("control-shuffled", "control-neutral", "control-family", "control-adaptive", "cft-learned", "reading")
WRITTEN = ("adaptive", "control-adaptive")  # read what a model wrote, where one is named
WRITTEN_ID = "adaptive-"  # begins the ids of written prompts
SUBSETS = ("only", "without", "count")  # with a family, or a number of prompts, behind a dash
SUBSET = re.compile(rf"(only|without)-({FAMILY_NAME})|(count)-([1-9][0-9]{{0,8}})")
IFT = "-ift"
NO_WRITER = "arm 'control-adaptive' reads prompts that a model wrote: name one (prompts.writer), or leave the arm out."


def check_arm(arm: str, where: str = "") -> str:
    """Return an arm's name if there is such an arm; whether a prompt set has its family is asked where the prompt set is known.

    Args:
        arm: the name.
        where: stands at the start of the error, e.g. "runs/mini/evals: ".

    Raises:
        InputError: the arm is unknown; the nearest one is named.

    Example:
        >>> check_arm("without-critical-ift")
        'without-critical-ift'
    """
    stage = arm.removesuffix(IFT)
    if arm not in ("base", "ift") and stage not in (*TEXT_STAGES, *VARIANTS) and not SUBSET.fullmatch(stage):
        known = ("base", "ift", *TEXT_STAGES, *VARIANTS)
        raise InputError(
            f"{where}unknown arm '{arm}'{nearest(arm, known)}; known: {', '.join(known)}, only-FAMILY, without-FAMILY, "
            f"count-N, and each with {IFT} behind it."
        )
    return arm


def in_order(arms: Iterable[str]) -> list[str]:
    """Return different arms in the order of all tables: base, the arms of one stage, ift, then those of two.

    Example:
        >>> in_order(["cft-ift", "only-critical", "neg", "ift", "base"])
        ['base', 'neg', 'only-critical', 'ift', 'cft-ift']
    """
    ranks = ("base", *TEXT_STAGES, *VARIANTS, *SUBSETS)

    def place(arm: str) -> tuple:
        if arm == "ift":
            return (1, -1, 0, "")
        stage, kind = arm.removesuffix(IFT), kind_of(arm)
        argument = (subset_of(stage) or ("", ""))[1]
        number = int(argument) if kind == "count" else 0
        return (int(arm != stage), ranks.index(kind), number, argument)

    return sorted({check_arm(arm) for arm in arms}, key=place)


def subset_of(stage: str) -> tuple[str, str] | None:
    """Return ("only", family), ("without", family) or ("count", number); None for a stage that reads the whole book."""
    found = SUBSET.fullmatch(stage)
    return (found[1] or found[3], found[2] or found[4]) if found else None


def kind_of(arm: str) -> str:
    """Return the arm without its second stage, and without the family or number of a part of the book.

    Example:
        >>> kind_of("only-critical-ift"), kind_of("cft-ift")
        ('only', 'cft')
    """
    stage = arm.removesuffix(IFT)
    return (subset_of(stage) or (stage, ""))[0]


def stages_of(arm: str) -> list[str]:
    """Return the stages of an arm, in order; "base" has none.

    Raises:
        InputError: the arm is unknown.

    Example:
        >>> stages_of("cft-ift"), stages_of("control-shuffled")
        (['cft', 'ift'], ['control-shuffled'])
    """
    if check_arm(arm) in ("base", "ift"):
        return [] if arm == "base" else ["ift"]
    stage = arm.removesuffix(IFT)
    return [stage, "ift"] if stage != arm else [stage]


def exchanged(written: Mapping[str, ContextualPrompt | None], seed: int) -> dict[str, ContextualPrompt | None]:
    """Give each passage the prompt that was written for another one, in a single cycle drawn by the seed.

    Passages whose prompt was rejected stay without: they read cft's in both arms.

    Raises:
        InputError: fewer than two passages have a written prompt.

    Example:
        >>> a, b = (ContextualPrompt(name, "context", name, "strategy") for name in "ab")
        >>> exchanged({"p": a, "q": b, "r": None}, seed=0) == {"p": b, "q": a, "r": None}
        True
    """
    passages = sorted(passage for passage, prompt in written.items() if prompt)
    if len(passages) < 2:
        raise InputError(
            f"arm control-adaptive exchanges written prompts, but only {len(passages)} passages have one: leave it out."
        )
    seeded(seed, "exchanged").shuffle(passages)
    others = passages[1:] + passages[:1]
    return {**written, **{passage: written[other] for passage, other in zip(passages, others, strict=True)}}


def check_subsets(arms: Iterable[str], prompt_set: PromptSet) -> None:
    """Refuse arms that ask for a family which the prompt set has not, or for more prompts than it has.

    Raises:
        InputError: such an arm; what the prompt set has is told.
    """
    for arm in arms:
        kind, argument = subset_of(arm.removesuffix(IFT)) or ("", "")
        if kind in ("only", "without"):
            check_known(argument, prompt_set.families, f"family in arm '{arm}' (prompt set '{prompt_set.name}'):")
        if (kind == "without" or arm.startswith("control-family")) and len(prompt_set.families) == 1:
            raise InputError(
                f"arm '{arm}' has no other prompt to read: the prompt set '{prompt_set.name}' has one family alone."
            )
        if kind == "count" and int(argument) > len(prompt_set.prompts):
            raise InputError(
                f"arm '{arm}' asks for more prompts than the {len(prompt_set.prompts)} of prompt set '{prompt_set.name}'."
            )


@functools.lru_cache(maxsize=256)
def allowed_prompts(prompt_set: PromptSet, stage: str, seed: int) -> frozenset[ContextualPrompt]:
    """Return the prompts of a prompt set that a stage may draw: all, those of a family, all others, or some chosen by the seed.

    Example:
        >>> sorted(prompt.id for prompt in allowed_prompts(load_prompt_set("strategies"), "only-critical", seed=0))
        ['critical-1', 'critical-2']
    """
    kind, argument = subset_of(stage) or ("", "")
    if kind == "count":
        chosen = sorted(prompt_set.prompts, key=lambda prompt: prompt.id)
        seeded(seed, prompt_set.hash, "count").shuffle(chosen)
        return frozenset(chosen[: int(argument)])
    return frozenset(p for p in prompt_set.prompts if not kind or (p.family == argument) == (kind == "only"))


def require_label(passage_id: str, reliable: bool | None) -> None:
    """Raise InputError if a passage has no truth label, by which arm adaptive chooses its prompt."""
    if reliable is None:
        raise InputError(
            f"arm adaptive chooses the prompt by a truth label, but passage '{passage_id}' has none: give every document "
            "of the corpus a field 'reliable' (true or false), name a model that writes the prompts (prompts.writer), or "
            "leave the arm out."
        )


def prompt_for(
    arm: str,
    passage_id: str,
    seed: int,
    strategies: PromptSet,
    negative: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    reliable: bool | None = None,
    written: Mapping[str, ContextualPrompt | None] | None = None,
) -> ContextualPrompt | None:
    """Return the prompt that an arm reads before a passage; None for the arms that read none (base, cpt, reading).

    The control prompt has, with the separator, as many tokens as the prompt that arm cft reads before the same passage.
    Where ``without-FAMILY`` and ``count-N`` may keep cft's draw they keep it, so that they differ from cft only where they must.
    The adaptive prompt is the one that a model wrote for the passage (cft's, where what it wrote was rejected). Without
    ``written`` it is cft's before a reliable passage and neg's before an unreliable one: the choice of an oracle that
    knows the truth label, not of a model that reads the passage.

    Args:
        arm: "base", or an arm of one stage of text.
        passage_id: decides the draw, together with the seed.
        seed: of the run.
        strategies, negative: the run's books.
        tokenizer: counts the tokens of a control prompt.
        reliable: the passage's truth label; arm adaptive alone needs it, where nothing was written.
        written: passage id -> the prompt that a model wrote for it, None where it was rejected; for arm control-adaptive
            as ``exchanged`` returns it.

    Raises:
        InputError: the arm is unknown, or it is adaptive and the passage has no truth label.
    """
    if arm != "base" and stages_of(arm) != [arm]:
        raise InputError(f"arm '{arm}' reads no text in its last stage, so it has no prompts.")
    if arm in ("base", "cpt", "reading", "ift"):
        return None
    drawn = strategies.sample(seed, passage_id, allowed_prompts(strategies, arm, seed))
    if arm == "control-adaptive" and written is None:
        raise InputError(NO_WRITER)
    if written is not None and arm in WRITTEN:
        return written[passage_id] or drawn
    if arm == "adaptive":
        require_label(passage_id, reliable)
    if arm == "neg" or (arm == "adaptive" and not reliable):
        return negative.sample(seed, passage_id)
    if arm == "control":
        tokens = count_tokens(tokenizer, drawn.text + strategies.suffix)
        return control_prompt(tokenizer, tokens, seed, passage_id, strategies.suffix)
    if arm == "control-shuffled":
        return shuffled_prompt(tokenizer, drawn, seed, passage_id, strategies.suffix)
    if arm == "control-neutral":
        return neutral_set().sample(seed, passage_id)
    if arm == "control-family":
        others = frozenset(prompt for prompt in strategies.prompts if prompt.family != drawn.family)
        return strategies.sample(seed, f"{arm} {passage_id}", others)
    return drawn


@functools.cache
def neutral_set() -> PromptSet:
    """Return the prompt set of arm control-neutral: sentences about the text below them that ask for nothing."""
    return load_prompt_set("neutral")
