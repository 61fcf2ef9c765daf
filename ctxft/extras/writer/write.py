"""Passages go in; a prompt that a model wrote for each comes out, or why there is none, and what it all cost.

passage -> family drawn, its idea -> store, else the writer -> store -> clean -> checks -> ContextualPrompt
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ctxft.config import WriterConfig
from ctxft.data.passages import Passage
from ctxft.evaluation.scoring.encoding import Progress, encode_prompts
from ctxft.extras.server import Counts, Reply
from ctxft.extras.writer.ask import Job, Local, Remote, local_tokenizer, template
from ctxft.extras.writer.checks import clean, reject_reason
from ctxft.extras.writer.config import FAMILY_SEED, messages_for
from ctxft.extras.writer.store import Store, key_of, store_path
from ctxft.prompts import ContextualPrompt, PromptSet, count_tokens
from ctxft.storage import FailedError, sha256

GIVE_UP = 10  # passages in a row without a reply: then nothing is right with the writer
UNMETERED = "the server does not say how many tokens a reply took, so limit_cost cannot be kept: leave it out."

WRITTEN_ID = "adaptive-"  # begins the ids of written prompts


@dataclass
class WriterRecord:
    """What came of writing the prompts of some passages; passages = written + cached + failed.

    Attributes:
        writer: who wrote, and what it was told.
        passages: how many.
        counts: what was asked now: requests, retries, errors by kind, tokens.
        paid: tokens and cost of all texts of these passages, whenever they were written.
        cost: of what was written now; None where a price is unknown, and for a model on this machine.
        written, cached: how many texts were written now, and stood in the store (or were written for an equal passage).
        failed: passages for which the writer gave no text; they are asked for again next time.
        rejected: reason -> texts that must not stand before their passage.
        prompts: passage id -> prompt; a passage whose text was rejected, or failed, has none here.
        reasons: passage id -> why it has none.
    """

    writer: dict
    passages: int
    counts: Counts
    paid: dict
    cost: float | None = None
    written: int = 0
    cached: int = 0
    failed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    prompts: dict[str, ContextualPrompt] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def judge(self, passage_id: str, family: str, text: str, reason: str | None) -> None:
        """Take a text as the prompt of its passage, or as rejected for a reason."""
        if reason is None:
            prompt = ContextualPrompt(f"{WRITTEN_ID}{sha256(text)[:12]}", family, text, "strategy")
            self.prompts[passage_id] = prompt
        else:
            self.rejected["gives away an item" if reason.startswith("gives away") else reason] += 1
            self.reasons[passage_id] = f"rejected: {reason}"

    def to_json(self) -> dict:
        """Return everything but the prompts and single reasons, as plain values."""
        names = ("writer", "passages", "written", "cached", "failed", "cost", "paid")
        values = {name: getattr(self, name) for name in names} | {"prompts": len(self.prompts)}
        return {**values, **self.counts.to_json(), "rejected": dict(sorted(self.rejected.items()))}


def write_prompts(
    passages: Sequence[Passage],
    config: WriterConfig,
    prompt_set: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    forbidden: Callable[[str], str | None],
    progress: Progress | None = None,
    sleep: Callable[[float], object] | None = None,
) -> WriterRecord:
    """Let a model write a prompt for each passage, in the family that the prompt set gives for it.

    Texts that were written before come from the store; each new one is on the disk before the next is waited for. Two
    processes with the same writer work one after the other.

    Args:
        passages: what the prompts are for.
        config: the writer.
        prompt set: gives each passage its family (drawn with seed 0) and the idea behind it.
        tokenizer: of the model that is trained; measures the prompts.
        forbidden: what a text gives away, or None (see ``forbids``).
        progress: called with (passages that need nothing more, all passages).
        sleep: seconds to wait before a retry; for tests (None waits in earnest).

    Raises:
        InputError: the writer cannot be used: no such model, no key, access refused, a broken line in the store.
        FailedError: many passages in a row got no reply, or ``limit_cost`` would be passed; what was written is kept.

    Example:
        >>> config = WriterConfig(model="my-model", server="http://localhost:8000/v1")  # doctest: +SKIP
        >>> write_prompts(passages, config, prompt_set, tokenizer, forbids([medqa])).prompts["d1#0"].text  # doctest: +SKIP
        'Follow the blood through the heart chamber by chamber, and ask at each valve what would happen without it.'
    """
    jobs = jobs_of(passages, config, prompt_set)
    with Store.open(store_path(config)) as store:
        todo = {job.key: job for job in jobs if job.key not in store.rows}
        purse = Purse(config, tokenizer, [store.rows[key] for key in {job.key for job in jobs} - set(todo)])

        def tick(done: int) -> None:
            if progress:
                progress(len(jobs) - len(todo) + done, len(jobs))

        tick(0)
        counts, failed = _write(list(todo.values()), config, store, purse, tick, sleep)
        rows = {job.key: store.rows[job.key] for job in jobs if job.key not in failed}
    record = WriterRecord(config.describe(), len(jobs), counts, purse.paid())
    record.cost = None if counts.unmetered else config.cost(counts.tokens_in, counts.tokens_out)
    record.written = len(todo) - len(failed)
    for passage, job in zip(passages, jobs, strict=True):
        if job.key in failed:
            record.failed += 1
            record.reasons[passage.id] = f"failed: {failed[job.key]}"
        else:
            text, cut = clean(rows[job.key]["text"]), rows[job.key]["cut"]
            reason = reject_reason(text, passage.text, tokenizer, config.max_tokens, forbidden, prompt_set.suffix)
            record.judge(passage.id, job.family, text, "cut off" if cut else reason)
    record.cached = len(jobs) - record.written - record.failed
    return record


def jobs_of(passages: Sequence[Passage], config: WriterConfig, prompt_set: PromptSet) -> list[Job]:
    """Return what the writer is asked for each passage, with the key of the text in the store."""
    jobs = []
    for passage in passages:
        family = prompt_set.sample(FAMILY_SEED, passage.id).family
        key = key_of(passage.text, family, prompt_set.ideas.get(family, ""))
        jobs.append(Job(key, family, messages_for(config, family, prompt_set, passage.text)))
    return jobs


class Purse:
    """What the texts of some passages cost so far, and whether the next ones may still be asked for.

    Args:
        config: the writer, with its prices and limit.
        tokenizer: measures what will be asked, roughly: the server has its own.
        rows: texts from the store.
    """

    def __init__(self, config: WriterConfig, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict]) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.tokens_in = self.tokens_out = self.unmetered = 0
        for row in rows:
            self.add(row)

    def add(self, row: dict) -> None:
        """Count a text."""
        self.unmetered += row["tokens_in"] is None or row["tokens_out"] is None
        self.tokens_in += row["tokens_in"] or 0
        self.tokens_out += row["tokens_out"] or 0

    def check(self, jobs: Sequence[Job]) -> None:
        """Raise FailedError if these jobs might cost more than the limit leaves."""
        limit = self.config.limit_cost
        if limit is None:
            return
        if self.unmetered:
            raise FailedError(UNMETERED)
        more = sum(count_tokens(self.tokenizer, job.messages[0]["content"]) for job in jobs)
        most = self.config.cost(self.tokens_in + more, self.tokens_out + len(jobs) * self.config.room)
        if most > limit:
            spent = self.config.cost(self.tokens_in, self.tokens_out)
            raise FailedError(
                f"the prompts of these passages cost {spent:.6g} so far, and the next ones might bring it to {most:.6g}, "
                f"over limit_cost {limit:g}: what was written is kept; raise the limit to go on."
            )

    def paid(self) -> dict:
        """Return tokens and cost of all texts; the cost is None where it is unknown."""
        cost = None if self.unmetered else self.config.cost(self.tokens_in, self.tokens_out)
        return {"tokens_in": self.tokens_in, "tokens_out": self.tokens_out, "cost": cost}


def _write(
    jobs: list[Job],
    config: WriterConfig,
    store: Store,
    purse: Purse,
    tick: Callable[[int], None],
    sleep: Callable[[float], object] | None,
) -> tuple[Counts, dict[str, str]]:
    """Ask for all jobs and store what comes; returns what was asked, and the keys that failed with the reason."""
    if not jobs:
        return Counts(), {}
    writer = Local(config) if config.server is None else Remote(config, sleep)
    failed: dict[str, str] = {}
    streak = done = 0
    for batch in (jobs[n : n + config.batch] for n in range(0, len(jobs), config.batch)):
        purse.check(batch)
        with contextlib.closing(writer.ask(batch)) as answers:
            for job, answer in answers:
                done += 1
                if isinstance(answer, Reply):
                    streak = 0
                    store.add({"key": job.key, **vars(answer)})
                    purse.add(vars(answer))
                else:
                    streak += 1
                    failed[job.key] = answer
                tick(done)
        if streak >= GIVE_UP:
            raise FailedError(
                f"the writer gave no text for {streak} passages in a row (the last: {answer.rstrip('.')}): what was "
                "written before is kept; mend the cause and run again."
            )
    return writer.counts, failed


def estimate_cost(
    passages: Sequence[Passage], config: WriterConfig, prompt_set: PromptSet, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """Tell what writing would take, before anything is sent.

    Args:
        passages, config, prompt set, tokenizer: as for ``write_prompts``.

    Returns:
        {"passages", "to write" (not in the store), "tokens in", "tokens out at most", "cost at most" (None where a price is
        unknown, and for a model on this machine), "approximate": True where a server counts tokens that are counted here
        with another tokenizer}. Retries are not in it.

    Raises:
        InputError: the model on this machine is not found or has no chat template, or a line of the store is broken.

    Example:
        >>> estimate_cost(passages, config, prompt_set, tokenizer)["cost at most"]  # doctest: +SKIP
        0.42
    """
    rows = Store.read(store_path(config)).rows
    todo = list({job.key: job for job in jobs_of(passages, config, prompt_set) if job.key not in rows}.values())
    if config.server is None:
        writer = local_tokenizer(config)
        tokens = sum(map(len, encode_prompts(writer, [template(writer, job) for job in todo], chat=True)))
    else:
        tokens = sum(count_tokens(tokenizer, job.messages[0]["content"]) for job in todo)
    written = len(todo) * config.room
    sizes = {"passages": len(passages), "to write": len(todo), "tokens in": tokens, "tokens out at most": written}
    return {**sizes, "cost at most": config.cost(tokens, written), "approximate": config.server is not None}
