"""Build the rows that an arm is trained on, and account for every token in them.

passages.jsonl + the prompt sampled for each passage -> input_ids, labels -> ledger.json
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ctxft.config import ExperimentConfig
from ctxft.data.documents import describe
from ctxft.data.passages import Passage
from ctxft.data.rows import (
    Rows,
    arm_tokens,
    fitting_pieces,
    prompt_ids,
    special_tokens,
)
from ctxft.prompts import PromptSet, PromptSources, get_arm, load_prompt_set
from ctxft.storage import InputError, sha256

if TYPE_CHECKING:
    from ctxft.run.run import Run

FATES = ("duplicate", "held out", "kept")  # what becomes of a document


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


def build_rows(
    run: Run, arm: str, seed: int, passages: Sequence[Passage], general: Sequence[Passage] = ()
) -> tuple[Rows, list[dict]]:
    """Build an arm's training rows and record which prompt was sampled for each passage.

    Args:
        run: the run.
        arm: one with a single stage of text.
        seed: of the prompts.
        passages: of the domain.
        general: passages of general text, whose rows follow; they have no prompt in any arm.

    Returns:
        (rows with ``input_ids`` and ``labels``, records with passage id, prompt id, prompt text and its tokens).
    """
    spec, special = get_arm(arm), special_tokens(run.tokenizer)
    texts, none = [*passages, *general], [array("i")] * len(general)
    if spec.after is not None:
        after, records = _texts_after(run, arm, passages, spec.after(passages, seed))
        return Rows(texts, [array("i")] * len(texts), special, after=after + none), records
    max_length, prompts, records = run.config.train.max_length, [], []
    sources = PromptSources(
        seed, *run.prompt_sets, run.tokenizer, spec.written(run.config, seed) if spec.written else None
    )
    known: dict[str, array] = {"": array("i")}  # a prompt set has few prompts, a corpus many passages
    for passage in passages:
        prompt = spec.prompt_of(sources, passage)
        if prompt is None:
            prompts.append(known[""])
            continue
        if prompt.text not in known:
            known[prompt.text] = array("i", prompt_ids(run.tokenizer, prompt, run.template))
        prompts.append(known[prompt.text])
        record = {"passage": passage.id, "prompt": prompt.id, "family": prompt.family, "text": prompt.text}
        records.append(record | {"tokens": len(prompts[-1])})
    rows = Rows(texts, prompts + none, special, learned=spec.learn_prompt)
    if rows.longest > max_length:  # only a prompt of no prompt set can be longer than what passages leave
        raise InputError(
            f"a row of arm '{arm}' takes {rows.longest} tokens, more than train.max_length ({max_length}): its prompts are "
            "longer than those of the prompt sets; raise train.max_length under another name, or leave the arm out."
        )
    return rows, records


def _texts_after(
    run: Run, arm: str, passages: Sequence[Passage], texts: Iterable[Sequence[str]]
) -> tuple[list[array], list[dict]]:
    """Return the ids of what an arm reads after each passage, as many pieces as max_length has room for, and records."""
    after, records = [], []
    for passage, pieces in zip(passages, texts, strict=True):
        kept, ids = fitting_pieces(run.tokenizer, pieces, run.config.train.max_length - 1 - passage.targets)
        after.append(array("i", ids))
        text = "".join(kept)
        record = {"passage": passage.id, "prompt": f"exercises-{sha256(text)[:12]}", "family": arm, "text": text}
        counts = {"tokens": len(ids), "exercises": len(kept), "dropped": len(pieces) - len(kept)}
        records.append(record | counts)
    return after, records


# --- ledger -----------------------------------------------------------------------------------------------------------


def corpus_ledger(run: Run) -> dict:
    """Account for every document and token of the corpus: read = duplicate + held out + kept, and nothing else."""
    passages, held_out, counts = run.cut("corpus")
    counted = {
        f"{what} {fate}": counts[f"{what} {fate}"] for what in ("documents", "tokens") for fate in ("read", *FATES)
    }
    notes = special_tokens(run.tokenizer).notes
    return {
        "corpus": describe(run.config.corpus),
        **counts,
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
    rows, records = run.rows(arm, seed)
    counts: dict[str, int | str] = {**arm_tokens(islice(rows, number))}
    if spec.after:
        counts["exercises"] = sum(record["exercises"] for record in records)
        counts["exercises that the window had no room for"] = sum(record["dropped"] for record in records)
    if spec.control:  # matched to the token, or as near as its kind of prompt comes
        prompts = (rows.prompts[:number], run.rows("cft", seed)[0].prompts[:number])
        off = [len(own) - len(cft) for own, cft in zip(*prompts, strict=True)]
        counts["prompts of another length than cft's"] = sum(map(bool, off))
        counts["prompt tokens more than cft's"] = sum(off)
    if state and spec.written:  # passages without a written prompt read cft's
        written = spec.written(run.config, seed) or {}
        counts["passages without a written prompt"] = sum(prompt is None for prompt in written.values())
        counts["prompts of"] = state
    return {f"{arm}: {name}": value for name, value in counts.items()}
