"""Build the rows that an arm is trained on, and account for every token in them.

passages + the prompt sampled for each passage -> input_ids, labels -> ledger.json
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy

from ctxft.config import ExperimentConfig
from ctxft.data.corpus import FATES, Passages, count_near_duplicates
from ctxft.data.documents import describe
from ctxft.data.passages import Passage
from ctxft.data.rows import (
    Rows,
    arm_tokens,
    fitting_pieces,
    prompt_ids,
    special_tokens,
)
from ctxft.prompts import ContextualPrompt, PromptSet, PromptSources, get_arm, load_prompt_set
from ctxft.storage import InputError, sha256

if TYPE_CHECKING:
    from ctxft.run.run import Run

KNOWN = 4096  # prompts whose token ids are kept: a prompt set has few, a corpus many passages


class PromptSets(NamedTuple):
    """The two prompt sets of an experiment: that of its contextual prompts, and that of arm neg."""

    strategies: PromptSet
    negative: PromptSet


def load_prompt_sets(config: ExperimentConfig) -> PromptSets:
    """Load the experiment's strategy set and negative set.

    Raises:
        InputError: a prompt set is broken or of another kind, or the two are prepended to the text in different ways.
    """
    strategies, negative = load_prompt_set(config.prompts.strategies), load_prompt_set(config.prompts.negative)
    for option in ("placement", "separator"):
        one, other = getattr(strategies, option), getattr(negative, option)
        if one != other:
            raise InputError(
                f"the prompt sets '{strategies.name}' and '{negative.name}' have different values of {option} ({one!r} and "
                f"{other!r}), so their arms would differ in more than the prompt: give both the same."
            )
    for prompt_set, kind, place in ((strategies, "strategy", "strategies"), (negative, "negative", "negative")):
        if prompt_set.kind != kind:
            raise InputError(
                f"prompts.{place}: the prompt set '{prompt_set.name}' is of kind '{prompt_set.kind}', but '{kind}' is needed."
            )
    return PromptSets(strategies, negative)


class ArmTexts(Sequence[array]):
    """What an arm adds to each passage, made when it is asked for: the token ids of a prompt, or of exercises.

    Args:
        run: the run.
        arm: one with a single stage of text.
        seed: of the prompts.
        passages: of the domain.
    """

    def __init__(self, run: Run, arm: str, seed: int, passages: Sequence[Passage]) -> None:
        self.run, self.spec, self.seed, self.passages = run, get_arm(arm), seed, passages
        written = self.spec.written(run.config, seed) if self.spec.written else None
        self.sources = PromptSources(seed, *run.prompt_sets, run.tokenizer, written)
        self._encode = lru_cache(KNOWN)(self._prompt_ids)

    def __len__(self) -> int:
        return len(self.passages) if self.spec.prompt or self.spec.after else 0

    def __getitem__(self, place):  # type: ignore[override]
        if self.spec.after:
            return self._exercises(place)[1]
        return self._encode(self.spec.prompt_of(self.sources, self.passages[place]))

    def _prompt_ids(self, prompt: ContextualPrompt | None) -> array:
        return array("i", prompt_ids(self.run.tokenizer, prompt, self.run.template))

    def _exercises(self, place: int) -> tuple[Sequence[str], array, int]:
        """Return the pieces of text for which max_length has room, their ids, and how many pieces it has no room for."""
        assert self.spec.after
        pieces = self.spec.after(self.passages, place, self.seed)
        room = self.run.config.train.max_length - 1 - self.passages[place].targets
        kept, ids = fitting_pieces(self.run.tokenizer, pieces, room)
        return kept, array("i", ids), len(pieces) - len(kept)

    def records(self, places: Iterable[int] | None = None) -> Iterator[dict]:
        """Yield what was added to each passage, or to some of them, by number: passage id, prompt id, text and its tokens."""
        for place in range(len(self)) if places is None else places:
            passage = self.passages[place]
            if self.spec.after:
                kept, ids, dropped = self._exercises(place)
                text = "".join(kept)
                record = {"prompt": f"exercises-{sha256(text)[:12]}", "family": self.spec.name, "text": text}
                counts = {"tokens": len(ids), "exercises": len(kept), "dropped": dropped}
                yield {"passage": passage.id, **record, **counts}
            elif prompt := self.spec.prompt_of(self.sources, passage):
                record = {"prompt": prompt.id, "family": prompt.family, "text": prompt.text}
                yield {"passage": passage.id, **record, "tokens": len(self._encode(prompt))}


def build_rows(
    run: Run, arm: str, seed: int, passages: Sequence[Passage], general: Sequence[Passage] = ()
) -> tuple[Rows, ArmTexts]:
    """Return an arm's training rows, and what it adds to each passage.

    Args:
        run: the run.
        arm: one with a single stage of text.
        seed: of the prompts.
        passages: of the domain.
        general: passages of general text, whose rows follow; they have no prompt in any arm.

    Returns:
        (rows with ``input_ids`` and ``labels``, prompts or exercises of the passages of the domain).
    """
    spec, special, texts = get_arm(arm), special_tokens(run.tokenizer), ArmTexts(run, arm, seed, passages)
    both: Sequence[Passage] = passages + general if general else passages  # type: ignore[operator]
    if spec.after:
        return Rows(both, (), special, after=texts), texts
    return Rows(both, texts, special, learned=spec.learn_prompt), texts


# --- ledger -----------------------------------------------------------------------------------------------------------


def corpus_ledger(run: Run) -> dict:
    """Account for every document and token of the corpus: read = duplicate + held out + kept, and nothing else."""
    passages, held_out, counts = run.cut("corpus")
    general = run.mixed
    assert isinstance(passages, Passages) and isinstance(held_out, Passages)
    read = passages + general if isinstance(general, Passages) else passages
    near = {"documents held out that are near-duplicates of text trained on": count_near_duplicates(read, held_out)}
    near = near if held_out else {}
    counted = {
        f"{what} {fate}": counts[f"{what} {fate}"]
        for what in ("documents", "tokens")
        for fate in ("read", *reversed(FATES))
    }
    notes = special_tokens(run.tokenizer).notes
    return {
        "corpus": describe(run.config.corpus),
        **counts,
        **near,
        **counted,
        "tokens unaccounted": counts["tokens read"] - sum(counts[f"tokens {fate}"] for fate in FATES),
        "passages": len(passages),
        "passages held out": len(held_out),
        "window (tokens)": run.config.train.max_length,
        "longest prompt (tokens)": run.longest_prompt,
        "text budget (tokens)": run.budget,
        "special tokens": "; ".join(notes) or "BOS, EOS and padding as the tokenizer has them",
    }


def arm_ledger(run: Run, arm: str, ledger: dict) -> dict:
    """Return what one arm reads and learns in one pass over the passages; nothing where the ledger has it already.

    Where its prompts should be as long as cft's, it is also counted how far they are from that.
    """
    spec = get_arm(arm)
    state = spec.written_state(run.config) if spec.written_state else ""
    if state is None:
        return {}  # its prompts are written for passages that this very preparation lays down
    if f"{arm}: rows" in ledger and (not state or ledger.get(f"{arm}: prompts of") == state):
        return {}
    seed, number = ledger["seed of the prompts counted here"], len(run.passages)
    rows, texts = run.rows(arm, seed)
    max_length, longest = run.config.train.max_length, max(rows.lengths)
    if longest > max_length:  # only a prompt of no prompt set can be longer than what passages leave
        raise InputError(
            f"a row of arm '{arm}' takes {longest} tokens, more than train.max_length ({max_length}): "
            "its prompts are longer than those of the prompt sets; raise train.max_length under another name, or leave the "
            "arm out."
        )
    counts: dict[str, int | str] = {**arm_tokens(rows, number)}
    if spec.after:
        exercises = [(record["exercises"], record["dropped"]) for record in texts.records()]
        counts["exercises"], counts["exercises that the window had no room for"] = map(
            sum, zip(*exercises, strict=True)
        )
    if spec.control:  # matched to the token, or as near as its kind of prompt comes
        off = numpy.subtract(rows.prompt_tokens, run.rows("cft", seed)[0].prompt_tokens)
        counts["prompts of another length than cft's"] = int((off != 0).sum())
        counts["prompt tokens more than cft's"] = int(off.sum())
    if state and spec.written:  # passages without a written prompt read cft's
        written = spec.written(run.config, seed) or {}
        counts["passages without a written prompt"] = sum(prompt is None for prompt in written.values())
        counts["prompts of"] = state
    return {f"{arm}: {name}": value for name, value in counts.items()}
