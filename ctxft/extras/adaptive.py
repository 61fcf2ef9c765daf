"""Let a language model write the prompt of each passage, and give those prompts to arms adaptive and control-adaptive.

    passages + prompts.writer + benchmarks -> adaptive.jsonl (a line a passage), adaptive.json (counts, cost)

The writer reads a passage and a way of learning (the family sampled for the passage), on this machine or behind a server. What
it wrote stays in a log below the run root, so that another run, or this one with other benchmarks, need not pay for it again.
A prompt is context: it is read and never learned. What it reveals of the passage, or of a benchmark, the trained model would
read for nothing, and an arm would differ from the others in more than its prompts. So a prompt is rejected that copies the
passage, or that contains a question of a benchmark or its answer; there, arm adaptive reads cft's prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig, WriterConfig
from ctxft.data.chat import rendered
from ctxft.data.passages import Passage
from ctxft.evaluation.benchmarks.records import Benchmark
from ctxft.evaluation.scoring import Progress, encode_prompts, generate_answers
from ctxft.extras.server import Query, Reply, Server, ServerError, Usage, ask_all
from ctxft.leakage import COMMON, HALF, grams_of, words_of
from ctxft.models import load_model, model_hash, pick_device, shared_tokenizer, window_of
from ctxft.prompts import SEPARATOR, ContextualPrompt, PromptSet, count_tokens
from ctxft.run.run import Run
from ctxft.storage import (
    FailedError,
    InputError,
    RecordLog,
    read_json,
    read_jsonl,
    read_records,
    runs_root,
    seeded,
    sha256,
    write_json,
    write_jsonl,
)

WRITTEN_ID = "adaptive-"  # begins the ids of written prompts
FAMILY_SEED = 0  # samples the family of a passage, the same for every seed of a run: a prompt is written once
RARE = 0.05  # of a benchmark's questions
LABEL = re.compile(r"^\**(?:study |contextual |reading )?prompt\s*:\**\s*", re.IGNORECASE)
QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}
UNMETERED = "the server does not report how many tokens a reply took, so limit_cost cannot be kept: leave it out."
RUN_FIRST = "run `ctxft prompts adapt CONFIG` first"


# --- checks of a prompt -----------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Return what a model wrote, without what is no part of the prompt.

    Runs of white space become one space, a label such as "Prompt:" at the start goes (bold or not), and so does a pair of
    quotation marks around the whole; nothing else is changed.

    Example:
        >>> clean('**Prompt:** "Ask why\\n each step holds."')
        'Ask why each step holds.'
    """
    text = " ".join(text.split())
    while True:
        inner = LABEL.sub("", text)
        if len(inner) > 1 and QUOTES.get(inner[0]) == inner[-1] and inner[-1] not in inner[1:-1]:
            inner = inner[1:-1]
        if inner.strip() == text:
            return text
        text = inner.strip()


def reject_reason(
    text: str,
    passage_text: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    forbidden: Callable[[str], str | None],
    separator: str = SEPARATOR,
) -> str | None:
    """Return why a prompt must not be prepended to its passage, or None if it may.

    Args:
        text: the prompt, after ``clean``.
        passage_text: the passage it was written for.
        tokenizer: of the model that is trained.
        max_tokens: tokens of the prompt and its separator, at most.
        forbidden: returns what a text gives away, or None (see ``forbids``).
        separator: what the prompt set puts between prompt and passage.

    Returns:
        "empty", "broken characters" (control characters, halves of a surrogate pair), "too long", "copies the passage"
        (eight words in a row) or "gives away ..."; the first that holds.

    Example:
        >>> reject_reason("", "A text.", tokenizer, 64, lambda text: None)  # doctest: +SKIP
        'empty'
    """
    words = words_of(text)
    if not words:
        return "empty"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return "broken characters"
    if count_tokens(tokenizer, text + separator) > max_tokens:
        return "too long"
    if not set(grams_of(words)).isdisjoint(grams_of(words_of(passage_text))):
        return "copies the passage"
    item = forbidden(text)
    return f"gives away {item}" if item else None


def forbids(benchmarks: Sequence[Benchmark]) -> Callable[[str], str | None]:
    """Return the function that names the benchmark item which a text gives away, as "benchmark/id", or None.

    An item is given away by eight words in a row of its question (or of the text that it is about), or by all words of its
    right answer together with more than half of the question's specific words: those that fewer than
    ``ctxft.leakage.COMMON`` questions of the benchmark share, or, in a large one, fewer than 5 % of them, since a benchmark
    may ask several things about one drug; "which of the following" is specific to none.

    Args:
        benchmarks: what the arms are evaluated on.

    Example:
        >>> from ctxft.evaluation.benchmarks import Question
        >>> questions = (Question("1", "Which vessel drains the liver?", ("a vein", "a duct"), 0, "all"),)
        >>> forbids([Benchmark("mine", questions, "")])("Think of the vein, the vessel that drains a liver.")
        'mine/1'
    """
    grams: dict[tuple[str, ...], str] = {}
    items: list[tuple[str, int, frozenset[str]]] = []  # name, how many specific words, words of the right answer
    owners: dict[str, list[int]] = {}  # word -> numbers of the items to which it is specific
    for benchmark in benchmarks:
        words_of_each = [frozenset(words_of(question.question)) for question in benchmark.questions]
        shared = Counter(word for words in words_of_each for word in words)
        for question, words in zip(benchmark.questions, words_of_each, strict=True):
            name = f"{benchmark.name}/{question.id}"
            for text in (question.question, question.context):
                grams.update((gram, name) for gram in grams_of(words_of(text)))
            specific = [word for word in words if shared[word] < max(COMMON, RARE * len(words_of_each))]
            for word in specific:
                owners.setdefault(word, []).append(len(items))
            items.append((name, len(specific), frozenset(words_of(question.choices[question.answer]))))

    def given_away(text: str) -> str | None:
        words = words_of(text)
        for gram in grams_of(words):
            if gram in grams:
                return grams[gram]
        known = set(words)
        hits = Counter(number for word in sorted(known) for number in owners.get(word, ()))
        for number, count in hits.items():
            name, size, answer = items[number]
            if count > HALF * size and answer <= known:
                return name
        return None

    return given_away


# --- writing ----------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """One prompt to write: for which family, and what the writer reads."""

    family: str
    query: Query


def jobs_of(passages: Sequence[Passage], config: WriterConfig, prompt_set: PromptSet) -> list[Job]:
    """Return a job for each passage: one turn of the user, since not every chat template has a system's."""
    jobs = []
    for passage in passages:
        family = prompt_set.sample(FAMILY_SEED, passage.id).family
        key = sha256([passage.text, family, prompt_set.ideas.get(family, "")])
        content = message_for(config, family, prompt_set, passage.text)
        jobs.append(Job(family, Query(key, [{"role": "user", "content": content}], config.room)))
    return jobs


def message_for(config: WriterConfig, family: str, prompt_set: PromptSet, passage_text: str) -> str:
    """Return what the writer reads for one passage."""
    strategy = f"Strategy: {family}. {prompt_set.ideas.get(family, '')}".strip()
    return f"{config.instruction}\n\n{strategy}\n\nText:\n{passage_text.strip()}"


def log_path(config: WriterConfig) -> Path:
    """Return the file of what a writer wrote, below the run root; raises InputError if a local model is not found."""
    return runs_root() / "written" / f"{sha256(_identity(config))[:16]}.log"


def _identity(config: WriterConfig) -> list:
    """Return what decides every output; a model on this machine counts with its weights."""
    who = model_hash(config.model) if config.server is None else [config.server.rstrip("/"), config.model]
    return [who, config.instruction, config.room]


@dataclass
class WriterRecord:
    """What came of writing the prompts of some passages; passages = written + cached + failed.

    Attributes:
        writer: who wrote, and by what instruction.
        passages: how many.
        usage: what was sent now: requests, retries, errors by kind, tokens.
        paid: tokens and cost of all texts of these passages, whenever they were written.
        cost: of what was written now; None where a price is unknown, and for a model on this machine.
        written, cached: texts written now; found in the log (or written for an equal passage).
        failed: passages for which the writer gave no text; they are tried again next time.
        rejected: reason -> texts that must not be prepended to their passage.
        prompts: passage id -> prompt; a passage whose text was rejected, or failed, has none here.
        reasons: passage id -> why it has none.
    """

    writer: dict
    passages: int
    usage: Usage
    paid: dict
    cost: float | None
    written: int
    failed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    prompts: dict[str, ContextualPrompt] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def cached(self) -> int:
        """The passages whose text was there before."""
        return self.passages - self.written - self.failed

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
        return {**values, **self.usage.to_json(), "rejected": dict(sorted(self.rejected.items()))}


class Budget:
    """What the texts of some passages cost so far, and whether the next one may still be requested.

    Args:
        config: the writer, with its prices and limit.
        tokenizer: measures what will be sent, roughly: the server has its own.
        replies: of these passages, from the log.
    """

    def __init__(self, config: WriterConfig, tokenizer: PreTrainedTokenizerBase, replies: Sequence[Reply]) -> None:
        self.config, self.tokenizer, self.paid = config, tokenizer, Usage()
        self.under_way: dict[str, int] = {}  # key -> tokens of a query without an answer yet
        self.exceeded = ""  # why no more may be requested
        for reply in replies:
            self.paid.add(reply)

    def affordable(self, queries: Sequence[Query]) -> Iterator[Query]:
        """Yield queries as long as they, and those under way, cannot cost more than the limit leaves."""
        for query in queries:
            self.under_way[query.key] = count_tokens(self.tokenizer, query.turns[0]["content"])
            if self.config.limit_cost is not None and (exceeded := self._exceeded(self.config.limit_cost)):
                self.exceeded = exceeded
                return
            yield query

    def _exceeded(self, limit: float) -> str:
        if self.paid.unmetered:
            return UNMETERED
        spent = self.config.cost(self.paid.tokens_in, self.paid.tokens_out)
        most_in = self.paid.tokens_in + sum(self.under_way.values())
        most = self.config.cost(most_in, self.paid.tokens_out + len(self.under_way) * self.config.room)
        if most is None or most <= limit:
            return ""
        return (
            f"the prompts of these passages cost {spent:.6g} so far, and the next ones might bring it to {most:.6g}, "
            f"over limit_cost {limit:g}: what was written is kept; raise the limit to write more."
        )

    def settle(self, query: Query, answer: Reply | Exception) -> None:
        """Count an answer in place of the estimate."""
        self.under_way.pop(query.key, None)
        if isinstance(answer, Reply):
            self.paid.add(answer)

    def cost(self, usage: Usage) -> float | None:
        """Return what a usage cost; None where it is unknown."""
        return None if usage.unmetered else self.config.cost(usage.tokens_in, usage.tokens_out)


def write_prompts(
    passages: Sequence[Passage],
    config: WriterConfig,
    prompt_set: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    forbidden: Callable[[str], str | None],
    progress: Progress | None = None,
) -> WriterRecord:
    """Let a model write a prompt for each passage, in the family that the prompt set gives for it.

    Texts that were written before are in the log of the writer; each new one is on the disk before the next is requested in
    its place. Two processes with the same writer work one after the other.

    Args:
        passages: what the prompts are for.
        config: the writer.
        prompt_set: gives each passage its family (sampled with seed 0) and the idea behind it.
        tokenizer: of the model that is trained; measures the prompts.
        forbidden: what a text gives away, or None (see ``forbids``).
        progress: called with (passages that need nothing more, all passages).

    Raises:
        InputError: the writer cannot be used: no such model, no key, access refused.
        FailedError: ten requests in a row got no reply, or ``limit_cost`` would be exceeded; what was written is kept.

    Example:
        >>> config = WriterConfig(model="my-model", server="http://localhost:8000/v1")  # doctest: +SKIP
        >>> record = write_prompts(passages, config, prompt_set, tokenizer, forbids([medqa]))  # doctest: +SKIP
        >>> record.prompts["d1#0"].text  # doctest: +SKIP
        'Follow the blood through the heart chamber by chamber, and ask at each valve what would happen without it.'
    """
    jobs = jobs_of(passages, config, prompt_set)
    queries = {job.query.key: job.query for job in jobs}
    with RecordLog(log_path(config), header=_identity(config), wait=True) as log:
        todo = [query for key, query in queries.items() if key not in log.records]
        budget = Budget(config, tokenizer, [Reply(**log.records[key]) for key in queries if key in log.records])
        done = len(jobs) - len(todo)

        def tick(query: Query, answer: Reply | Exception) -> None:
            nonlocal done
            done += 1
            budget.settle(query, answer)
            if progress:
                progress(done, len(jobs))

        if progress:
            progress(done, len(jobs))
        if config.server is None:
            failed, usage = _write_here(todo, config, log, tick)
        else:
            server = Server(config.server_config())
            failed = ask_all(server, budget.affordable(todo), log, config.batch, tick)
            usage = server.usage
        replies = {key: Reply(**log.records[key]) for key in queries if key in log.records}
    if budget.exceeded:
        raise FailedError(budget.exceeded)
    paid = {"tokens_in": budget.paid.tokens_in, "tokens_out": budget.paid.tokens_out, "cost": budget.cost(budget.paid)}
    written = len(todo) - len(failed)
    record = WriterRecord(config.describe(), len(jobs), usage, paid, budget.cost(usage), written)
    for passage, (family, query) in zip(passages, jobs, strict=True):
        if reply := replies.get(query.key):
            text = clean(reply.text)
            reason = reject_reason(text, passage.text, tokenizer, config.max_tokens, forbidden, prompt_set.suffix)
            record.judge(passage.id, family, text, "cut off" if reply.cut else reason)
        else:
            record.failed += 1
            record.reasons[passage.id] = f"failed: {failed[query.key]}"
    return record


def _write_here(
    queries: Sequence[Query], config: WriterConfig, log: RecordLog, tick: Callable[[Query, Reply | Exception], None]
) -> tuple[dict[str, Exception], Usage]:
    """Let a model on this machine write greedily, several texts in one forward pass after another."""
    failed, usage = {}, Usage()
    if not queries:
        return failed, usage
    tokenizer, device = _writer_tokenizer(config), pick_device()
    model = load_model(config.model, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    window = window_of(model)
    sizes = _sizes(tokenizer, queries)
    short = [query for query in queries if window is None or sizes[query.key] + config.room <= window]
    for query in queries:
        if query not in short:
            failed[query.key] = ServerError("too long for the writer", "request")
            tick(query, failed[query.key])
    for batch in (short[start : start + config.batch] for start in range(0, len(short), config.batch)):
        texts = [rendered(tokenizer, query.turns, answer=True) for query in batch]
        options = {"max_batch_tokens": 1 << 60, "chat": True}  # the batch is small enough already
        answers = generate_answers(model, tokenizer, texts, config.room, **options)
        for query, answer in zip(batch, answers, strict=True):
            reply = Reply(answer.text, sizes[query.key], answer.tokens, cut=not answer.ended)
            usage.requests += 1
            usage.add(reply)
            log.add(query.key, vars(reply))
            tick(query, reply)
    return failed, usage


def _writer_tokenizer(config: WriterConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a writer on this machine; raises InputError if it has no chat template."""
    tokenizer = shared_tokenizer(config.model)
    if not tokenizer.chat_template:
        raise InputError(
            f"the writer '{config.model}' has no chat template, so it follows no instruction: choose a model that does."
        )
    return tokenizer


def _sizes(tokenizer: PreTrainedTokenizerBase, queries: Sequence[Query]) -> dict[str, int]:
    texts = [rendered(tokenizer, query.turns, answer=True) for query in queries]
    return {q.key: len(ids) for q, ids in zip(queries, encode_prompts(tokenizer, texts, chat=True), strict=True)}


def estimate_cost(
    passages: Sequence[Passage], config: WriterConfig, prompt_set: PromptSet, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """Estimate what writing would take, before anything is sent.

    Args:
        passages, config, prompt_set, tokenizer: as for ``write_prompts``.

    Returns:
        {"passages", "to write" (not in the log), "tokens in", "tokens out at most", "cost at most" (None where a price is
        unknown, and for a model on this machine), "approximate": True where a server counts tokens that are counted here
        with another tokenizer}. Retries are not in it.

    Raises:
        InputError: the model on this machine is not found or has no chat template.

    Example:
        >>> estimate_cost(passages, config, prompt_set, tokenizer)["cost at most"]  # doctest: +SKIP
        0.42
    """
    written = read_records(log_path(config))[1]
    queries = {job.query.key: job.query for job in jobs_of(passages, config, prompt_set)}
    todo = [query for key, query in queries.items() if key not in written]
    if config.server is None:
        tokens = sum(_sizes(_writer_tokenizer(config), todo).values())
    else:
        tokens = sum(count_tokens(tokenizer, query.turns[0]["content"]) for query in todo)
    out = len(todo) * config.room
    sizes = {"passages": len(passages), "to write": len(todo), "tokens in": tokens, "tokens out at most": out}
    return {**sizes, "cost at most": config.cost(tokens, out), "approximate": config.server is not None}


# --- a run ------------------------------------------------------------------------------------------------------------


def writer_of(config: ExperimentConfig) -> WriterConfig:
    """Return the experiment's writer; raises InputError if it has none."""
    if config.prompts.writer is None:
        raise InputError("no model that writes prompts is named: set prompts.writer (model, and perhaps server).")
    return config.prompts.writer


def estimate_adapt(run: Run) -> dict:
    """Estimate what ``adapt`` would take, before anything is sent: as ``estimate_cost``."""
    writer = writer_of(run.wanted)
    run.require_prepared()
    return estimate_cost(run.passages, writer, run.prompt_sets.strategies, run.tokenizer)


def adapt(run: Run, progress: Progress | None = None) -> dict:
    """Let the experiment's writer write a prompt for every passage of a prepared run.

    A prompt that contains an item of the experiment's benchmarks is rejected. Where there is none, because the text was
    rejected or the writer gave none, the sampled prompt is used: adaptive.jsonl says why.

    Args:
        run: its config names ``prompts.writer``.
        progress: called with (passages that need nothing more, all passages).

    Returns:
        The content of adaptive.json: counts, cost, the writer (without a key).

    Raises:
        InputError: no writer is named, the run is not prepared, a benchmark cannot be loaded, the writer cannot be used, or
            other prompts would replace those that an arm was trained with.
        FailedError: the writer fails again and again, or the limit of cost is reached; what was written is kept.

    Example:
        >>> adapt(Run("my.yaml"))["prompts"]  # doctest: +SKIP
        1184
    """
    writer = writer_of(run.wanted)
    # All items, also those that a limit leaves out now: the rest may be evaluated another time.
    benchmarks = Run(run.wanted, overrides={"evaluation.limit": None}).benchmarks
    run.require_prepared()
    passages, strategies = run.passages, run.prompt_sets.strategies
    record = write_prompts(passages, writer, strategies, run.tokenizer, forbids(benchmarks), progress)
    rows = [_row(passage, record) for passage in passages]
    require_untrained(run.folder, rows)
    values = record.to_json() | {"benchmarks": [benchmark.name for benchmark in benchmarks], "rows": sha256(rows)}
    write_jsonl(run.folder / "adaptive.jsonl", rows)
    write_json(run.folder / "adaptive.json", values)
    return values


def _row(passage: Passage, record: WriterRecord) -> dict:
    prompt = record.prompts.get(passage.id)
    if prompt is None:
        return {"passage": passage.id, "prompt": None, "reason": record.reasons[passage.id]}
    return {"passage": passage.id, "prompt": prompt.id, "family": prompt.family, "text": prompt.text}


def require_untrained(folder: Path, rows: Sequence[dict]) -> None:
    """Refuse to change the prompts of a run after an arm was trained with them: its seeds would differ in more than the seed."""
    now = Counter(row["prompt"] for row in rows if row["prompt"])
    for path in folder.glob("arms/*adaptive*/seed-*/prompts.jsonl"):
        read = Counter(row["prompt"] for _, row in read_jsonl(path) if row["prompt"].startswith(WRITTEN_ID))
        if read != now:
            raise InputError(
                f"{path.parent} was trained with other written prompts than there are now: what was written is kept, but "
                "to use it remove that folder, or run under another name."
            )


# --- what the arms read -----------------------------------------------------------------------------------------------


def _is_there(config: ExperimentConfig) -> bool:
    return all((config.folder / f"adaptive.{kind}").exists() for kind in ("jsonl", "json"))


def is_written(config: ExperimentConfig) -> bool:
    """Return whether a model wrote prompts for this run, and failed for no passage."""
    return _is_there(config) and failure_of(config) is None


def written_state(config: ExperimentConfig) -> str:
    """Return a hash of the prompts that a model wrote for this run."""
    return read_json(config.folder / "adaptive.json")["rows"]


def failure_of(config: ExperimentConfig) -> str | None:
    """Return why the first of the prompts that the writer failed to give is missing, or None if it gave all."""
    reasons = (row.get("reason", "") for _, row in read_jsonl(config.folder / "adaptive.jsonl"))
    return next((reason.removeprefix("failed: ") for reason in reasons if reason.startswith("failed: ")), None)


def written_prompts(config: ExperimentConfig) -> dict[str, ContextualPrompt | None]:
    """Read back what ``adapt`` wrote.

    Returns:
        Passage id -> its prompt; None where cft's prompt is used.

    Raises:
        InputError: nothing was written yet, or for another writer, the writer failed for some passages, or the files do not
            belong together.
    """
    path = config.folder / "adaptive.jsonl"
    if not _is_there(config):
        raise InputError(f"{config.folder} has no written prompts yet: {RUN_FIRST}.")
    record, rows = read_json(path.with_suffix(".json")), [row for _, row in read_jsonl(path)]
    if record["rows"] != sha256(rows):
        raise InputError(f"{path} was changed, or its writing was stopped: {RUN_FIRST}.")
    if record["writer"] != writer_of(config).describe():
        raise InputError(f"{path} was written by another writer, or with another instruction: {RUN_FIRST}.")
    if failure := failure_of(config):
        raise InputError(
            f"{path} lacks prompts that the writer failed to give ({failure}): run `ctxft prompts adapt CONFIG` again."
        )
    return {
        row["passage"]: row["prompt"] and ContextualPrompt(row["prompt"], row["family"], row["text"], "strategy")
        for row in rows
    }


def exchanged(written: Mapping[str, ContextualPrompt | None], seed: int) -> dict[str, ContextualPrompt | None]:
    """Give each passage the prompt that was written for another one, in a single cycle that the seed chooses.

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
