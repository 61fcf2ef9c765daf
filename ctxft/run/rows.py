"""A prepared run and an arm flow in; the rows that the arm is trained on flow out, and an account of every token in them.

passages.jsonl + the prompt drawn for each passage -> input_ids, labels -> ledger.json
"""

from __future__ import annotations

import functools
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig
from ctxft.data.documents import describe
from ctxft.data.passages import Passage
from ctxft.data.rows import (
    Rows,
    arm_tokens,
    fitting_pieces,
    longest_prompt,
    prompt_ids,
    prompt_template,
    special_tokens,
    text_budget,
)
from ctxft.prompts import Arm, PromptSet, PromptSources, get_arm, load_prompt_set, text_stages
from ctxft.storage import InputError, read_jsonl, sha256

FATES = ("duplicate", "held out", "kept")  # what becomes of a document


def prompt_sets_of(config: ExperimentConfig) -> tuple[PromptSet, PromptSet]:
    """Load the experiment's strategy set and negative set.

    Raises:
        InputError: a prompt set is broken or of another kind, or the two would stand before the text in different ways.
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
    return strategies, negative


def longest_of(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens that every passage of an experiment leaves for what any arm puts beside it."""
    longest = max(longest_prompt(tokenizer, prompt_sets_of(config)), config.prompts.exercise_tokens)
    if config.prompts.writer is None:
        return longest
    template = prompt_template(tokenizer, prompt_sets_of(config)[0])
    written = config.prompts.writer.max_tokens + len(template.before) + len(template.after)
    most = config.train.window - 2 - config.train.min_text_tokens
    if written > max(most, longest):
        raise InputError(
            f"prompts.writer.max_tokens lets written prompts take {written} tokens, which leaves "
            f"{max(0, config.train.window - 2 - written)} of train.window ({config.train.window}) for text, fewer than "
            f"train.min_text_tokens ({config.train.min_text_tokens}): lower max_tokens, or raise the window."
        )
    return max(longest, written)


def rows_of(
    config: ExperimentConfig,
    arm: str,
    seed: int,
    passages: list[Passage],
    tokenizer: PreTrainedTokenizerBase,
    general: Sequence[Passage] = (),
) -> tuple[Rows, list[dict]]:
    """Build an arm's training rows and say which prompt was drawn for each passage.

    Args:
        config: the experiment.
        arm: one with a single stage of text.
        seed: draws the prompts.
        passages: of the domain.
        tokenizer: of the model.
        general: passages of general text, whose rows follow; they have no prompt in any arm.

    Returns:
        (rows with ``input_ids`` and ``labels``, records with passage id, prompt id, prompt text and its tokens).
    """
    found = get_arm(arm)
    if found.after is not None:
        return _rows_with_text_after(config, found, seed, passages, tokenizer, general)
    strategies, negative = prompt_sets_of(config)
    template = prompt_template(tokenizer, strategies)
    written = found.written(config, seed) if found.written else None
    sources = PromptSources(seed, strategies, negative, tokenizer, written)
    prompts, drawn = [], []
    known: dict[str, array] = {}  # a prompt set has few prompts, a corpus many passages
    for passage in passages:
        prompt = found.prompt_of(sources, passage)
        text = "" if prompt is None else prompt.text
        if text not in known:
            known[text] = array("i", prompt_ids(tokenizer, prompt, template))
        ids = known[text]
        prompts.append(ids)
        if prompt is not None:
            drawn.append(
                {
                    "passage": passage.id,
                    "prompt": prompt.id,
                    "family": prompt.family,
                    "text": prompt.text,
                    "tokens": len(ids),
                }
            )
    prompts += [array("i")] * len(general)
    rows = Rows([*passages, *general], prompts, special_tokens(tokenizer), learned=found.learn_prompt)
    if (
        rows.longest > config.train.window
    ):  # only prompts that stand in no prompt set can be longer than what passages leave room for
        raise InputError(
            f"a row of arm '{arm}' takes {rows.longest} tokens, more than train.window ({config.train.window}): its prompts are "
            "longer than those of the prompt sets; raise train.window under another name, or leave the arm out."
        )
    return rows, drawn


def _rows_with_text_after(
    config: ExperimentConfig,
    arm: Arm,
    seed: int,
    passages: list[Passage],
    tokenizer: PreTrainedTokenizerBase,
    general: Sequence[Passage],
) -> tuple[Rows, list[dict]]:
    """Build the rows of an arm that reads text after each passage, as many of its pieces as the window has room for."""
    after, records = [], []
    for passage, pieces in zip(passages, arm.after(passages, seed), strict=True):
        kept, ids = fitting_pieces(tokenizer, pieces, config.train.window - 1 - len(passage.ids) - passage.last)
        after.append(array("i", ids))
        text = "".join(kept)
        record = {"passage": passage.id, "prompt": f"exercises-{sha256(text)[:12]}", "family": arm.name, "text": text}
        counts = {"tokens": len(ids), "exercises": len(kept), "dropped": len(pieces) - len(kept)}
        records.append(record | counts)
    after += [array("i")] * len(general)
    every = [*passages, *general]
    return Rows(every, [array("i")] * len(every), special_tokens(tokenizer), after=after), records


def corpus_ledger(config: ExperimentConfig, counts: Counter, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Account for every document and token of the corpus: read = duplicate + held out + kept, and nothing else."""
    longest = longest_of(config, tokenizer)
    counted = {
        f"{what} {fate}": counts[f"{what} {fate}"] for what in ("documents", "tokens") for fate in ("read", *FATES)
    }
    return {
        "corpus": describe(config.corpus),
        **counted,
        "tokens unaccounted": counts["tokens read"] - sum(counts[f"tokens {fate}"] for fate in FATES),
        **{name: value for name, value in sorted(counts.items()) if name not in counted},
        "window (tokens)": config.train.window,
        "longest prompt (tokens)": longest,
        "text budget (tokens)": text_budget(config.train.window, longest, config.train.min_text_tokens),
        "special tokens": "; ".join(special_tokens(tokenizer).notes)
        or "BOS, EOS and padding as the tokenizer has them",
    }


def add_arms(config: ExperimentConfig, ledger: dict, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Add to a ledger what each trained arm reads and learns in one pass over the passages, with the first seed's prompts."""
    passages = read_passages(config.folder)
    for arm in text_stages(config.arms):
        state_of = get_arm(arm).written_state
        state = state_of(config) if state_of else ""
        if state is None:
            continue  # its prompts are written for passages that this very preparation lays down
        if f"{arm}: rows" not in ledger or (state and ledger.get(f"{arm}: prompts of") != state):
            ledger |= _arm_ledger(config, arm, passages, tokenizer)
            ledger |= {f"{arm}: prompts of": state} if state else {}
    return ledger


def _arm_ledger(
    config: ExperimentConfig, arm: str, passages: list[Passage], tokenizer: PreTrainedTokenizerBase
) -> dict:
    """Return what one arm reads and learns, and how far its prompts are from cft's in length where they should be near."""
    rows, records = rows_of(config, arm, config.seeds[0], passages, tokenizer)
    found = {f"{arm}: {name}": value for name, value in arm_tokens(rows).items()}
    if get_arm(arm).after:
        found[f"{arm}: exercises"] = sum(record["exercises"] for record in records)
        found[f"{arm}: exercises that the window had no room for"] = sum(record["dropped"] for record in records)
    if get_arm(arm).control:  # matched to the token, or as near as its kind of prompt comes
        read, _ = rows_of(config, "cft", config.seeds[0], passages, tokenizer)
        off = [len(own) - len(cft) for own, cft in zip(rows.prompts, read.prompts, strict=True)]
        found[f"{arm}: prompts of another length than cft's"] = sum(map(bool, off))
        found[f"{arm}: prompt tokens more than cft's"] = sum(off)
    written = get_arm(arm).written
    if prompts := written and written(config, config.seeds[0]):
        bare = sum(prompt is None for prompt in prompts.values())
        found[f"{arm}: passages without a written prompt"] = bare  # they read cft's
    return found


@functools.lru_cache(maxsize=8)
def _passages(path: Path, modified: int) -> tuple[Passage, ...]:
    found = []
    for number, row in read_jsonl(path):
        try:
            found.append(Passage.from_json(row))
        except (TypeError, KeyError, OverflowError):
            raise InputError(
                f"{path}, line {number}: no passage stands here: the file was changed after it was made."
            ) from None
    return tuple(found)


def read_passages(folder: Path, which: str = "passages") -> list[Passage]:
    """Read a run's passages ("passages" or "held_out") back from disk."""
    path = Path(folder) / f"{which}.jsonl"
    if not path.exists():
        raise InputError(
            f"{folder} is not a run yet ({path.name} is missing): prepare it first, e.g. by `ctxft train`."
        )
    return list(_passages(path, path.stat().st_mtime_ns))
