"""Let a language model write the prompt of each passage, and give those prompts to arms adaptive and control-adaptive.

    passages + prompts.writer + benchmarks -> adaptive.json (a row for each passage, counts, cost)

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ctxft.config import ExperimentConfig, WriterConfig
from ctxft.data.chat import rendered
from ctxft.data.ngrams import grams_of, words_of
from ctxft.data.passages import Passage
from ctxft.evaluation.benchmarks.records import Benchmark
from ctxft.evaluation.scoring import encode_texts, generate_answers
from ctxft.extras.server import Query, Reply, Server, ServerError, Usage, ask_all, estimate
from ctxft.leakage import COMMON, HALF
from ctxft.models import load_model, model_hash, pick_device, shared_tokenizer, window_of
from ctxft.prompts import SEPARATOR, PromptSet, count_tokens
from ctxft.run.run import Run
from ctxft.storage import (
    FailedError,
    InputError,
    RecordLog,
    read_jsonl,
    read_records,
    runs_root,
    sha256,
    with_checksum,
    write_json,
)

WRITTEN_ID = "adaptive-"  # begins the ids of written prompts
FAMILY_SEED = 0  # samples the family of a passage, the same for every seed of a run: a prompt is written once
RARE = 0.05  # of a benchmark's questions
LABEL = re.compile(r"^\**(?:study |contextual |reading )?prompt\s*:\**\s*", re.IGNORECASE)
QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}


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
    items: list[tuple[str, set[str], frozenset[str]]] = []  # name, specific words, words of the right answer
    for benchmark in benchmarks:
        words_of_each = [frozenset(words_of(question.question)) for question in benchmark.questions]
        shared = Counter(word for words in words_of_each for word in words)
        rare = max(COMMON, RARE * len(words_of_each))
        for question, words in zip(benchmark.questions, words_of_each, strict=True):
            name = f"{benchmark.name}/{question.id}"
            for text in (question.question, question.context):
                grams.update((gram, name) for gram in grams_of(words_of(text)))
            answer = frozenset(words_of(question.choices[question.answer]))
            items.append((name, {word for word in words if shared[word] < rare}, answer))

    def given_away(text: str) -> str | None:
        words = words_of(text)
        known = set(words)
        for gram in grams_of(words):
            if gram in grams:
                return grams[gram]
        for name, specific, answer in items:
            if answer <= known and len(specific & known) > HALF * len(specific):
                return name
        return None

    return given_away


# --- writing ----------------------------------------------------------------------------------------------------------


def jobs_of(passages: Sequence[Passage], config: WriterConfig, prompt_set: PromptSet) -> list[tuple[str, Query]]:
    """Return for each passage the family of its prompt, and what the writer reads: equal texts have one key."""
    jobs = []
    for passage in passages:
        family = prompt_set.sample(FAMILY_SEED, passage.id).family
        key = sha256([passage.text, family, prompt_set.ideas.get(family, "")])
        jobs.append((family, Query(key, message_for(config, family, prompt_set, passage.text), config.room)))
    return jobs


def message_for(config: WriterConfig, family: str, prompt_set: PromptSet, passage_text: str) -> str:
    """Return what the writer reads for one passage: one turn of the user, since not every chat template has a system's."""
    strategy = f"Strategy: {family}. {prompt_set.ideas.get(family, '')}".strip()
    return f"{config.instruction}\n\n{strategy}\n\nText:\n{passage_text.strip()}"


def log_path(config: WriterConfig) -> Path:
    """Return the file of what a writer wrote, below the run root; raises InputError if a local model is not found."""
    return runs_root() / "written" / f"{sha256(_identity(config))[:16]}.log"


def _identity(config: WriterConfig) -> list:
    """Return what decides every output; a model on this machine counts with its weights."""
    who = model_hash(config.model) if config.server is None else [config.server.rstrip("/"), config.model]
    return [who, config.instruction, config.room]


def write_prompts(
    passages: Sequence[Passage],
    config: WriterConfig,
    prompt_set: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    forbidden: Callable[[str], str | None],
    progress: Callable[[], object] | None = None,
) -> dict:
    """Let a model write a prompt for each passage, in the family that the prompt set gives for it.

    Texts that were written before are in the log of the writer; each new one is on the disk before the next is requested in
    its place. Two processes with the same writer work one after the other.

    Args:
        passages: what the prompts are for.
        config: the writer.
        prompt_set: gives each passage its family (sampled with seed 0) and the idea behind it.
        tokenizer: of the model that is trained; measures the prompts.
        forbidden: what a text gives away, or None (see ``forbids``).
        progress: called after each text that is written now.

    Returns:
        rows, one for each passage: passage, prompt (its id), family, text; or passage, prompt (None) and the reason why there
        is none. passages, and of these: written (now), cached (before, or for an equal passage), failed (the writer gave no
        text; they are tried again next time), prompts; failure (why the first failed, or None); rejected (reason -> texts);
        what was sent now (see ``Usage``) and its cost; paid, tokens and cost of all texts of these passages, whenever they
        were written; writer, without a key.

    Raises:
        InputError: the writer cannot be used: no such model, no key, access refused.
        FailedError: ten requests in a row got no reply, or ``limit_cost`` would be exceeded; what was written is kept.

    Example:
        >>> config = WriterConfig(model="my-model", server="http://localhost:8000/v1")  # doctest: +SKIP
        >>> write_prompts(passages, config, prompt_set, tokenizer, forbids([medqa]))["rows"][0]["text"]  # doctest: +SKIP
        'Follow the blood through the heart chamber by chamber, and ask at each valve what would happen without it.'
    """
    jobs = jobs_of(passages, config, prompt_set)
    queries = {query.key: query for _, query in jobs}
    with RecordLog(log_path(config), header=_identity(config), wait=True) as log:
        todo = [query for key, query in queries.items() if key not in log.records]
        if config.server is None:
            failed, usage = _write_here(todo, config, log, progress)
        else:
            paid = _paid(Reply(**log.records[key]) for key in queries if key in log.records)
            server = Server(config.server_config())
            affordable = _affordable(todo, config, tokenizer, paid, server.usage)
            failed, usage = ask_all(server, affordable, log, config.batch, progress), server.usage
        replies = {key: Reply(**log.records[key]) for key in queries if key in log.records}
    paid = _paid(replies.values())
    if len(replies) + len(failed) < len(queries):
        raise FailedError(
            "the server does not report how many tokens a reply took, so limit_cost cannot be kept: leave it out."
            if paid.unmetered
            else f"the prompts of these passages cost {paid.cost(config):.6g} so far, and the next ones might bring it over "
            f"limit_cost {config.limit_cost:g}: what was written is kept; raise the limit to write more."
        )
    rows = []
    for passage, (family, query) in zip(passages, jobs, strict=True):
        text = clean(replies[query.key].text) if query.key in replies else ""
        if query.key in failed:
            reason = f"failed: {failed[query.key]}"
        elif replies[query.key].cut:
            reason = "rejected: cut off"
        else:
            reason = reject_reason(text, passage.text, tokenizer, config.max_tokens, forbidden, prompt_set.suffix)
            reason = reason and f"rejected: {reason}"
        prompt = {"prompt": f"{WRITTEN_ID}{sha256(text)[:12]}", "family": family, "text": text}
        rows.append({"passage": passage.id} | ({"prompt": None, "reason": reason} if reason else prompt))
    return _record(rows, config, len(todo) - len(failed), usage, paid)


def _record(rows: list[dict], config: WriterConfig, written: int, usage: Usage, paid: Usage) -> dict:
    reasons = [row["reason"].split(": ", 1) for row in rows if not row["prompt"]]
    failures = [why for what, why in reasons if what == "failed"]
    rejected = Counter(re.sub("^gives away .*", "gives away an item", why) for what, why in reasons if what != "failed")
    return {
        "writer": config.describe(),
        "passages": len(rows),
        "written": written,
        "cached": len(rows) - written - len(failures),
        "failed": len(failures),
        "failure": failures[0] if failures else None,
        "prompts": len(rows) - len(reasons),
        "rejected": dict(sorted(rejected.items())),
        **usage.to_json(),
        "cost": usage.cost(config),
        "paid": {"tokens_in": paid.tokens_in, "tokens_out": paid.tokens_out, "cost": paid.cost(config)},
        "rows": rows,
    }


def _paid(replies: Iterable[Reply]) -> Usage:
    usage = Usage()
    for reply in replies:
        usage.add(reply)
    return usage


def _affordable(
    queries: Sequence[Query], config: WriterConfig, tokenizer: PreTrainedTokenizerBase, before: Usage, now: Usage
) -> Iterator[Query]:
    """Yield queries as long as the most that is under way at a time cannot cost more than the limit leaves."""
    if config.limit_cost is None:
        yield from queries
        return
    longest = max((count_tokens(tokenizer, query.text) for query in queries), default=0)
    for number, query in enumerate(queries):
        together = min(config.batch, len(queries) - number)  # requests that may be under way with this one
        next_ones = config.cost(together * longest, together * config.room) or 0.0
        spent = [usage.cost(config) for usage in (before, now)]
        if None in spent or sum(filter(None, spent)) + next_ones > config.limit_cost:
            return
        yield query


def _tokenizer_of(config: WriterConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a writer on this machine; raises InputError where it has no chat template."""
    tokenizer = shared_tokenizer(config.model)
    if not tokenizer.chat_template:
        raise InputError(
            f"the writer '{config.model}' has no chat template, so it follows no instruction: choose a model that does."
        )
    return tokenizer


def _write_here(
    queries: Sequence[Query], config: WriterConfig, log: RecordLog, progress: Callable[[], object] | None
) -> tuple[dict[str, ServerError], Usage]:
    """Let a model on this machine write greedily, several texts in one forward pass after another."""
    usage = Usage()
    if not queries:
        return {}, usage
    tokenizer, device = _tokenizer_of(config), pick_device()
    model = load_model(config.model, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    texts = {query.key: rendered(tokenizer, query.turns, answer=True) for query in queries}
    sizes = dict(zip(texts, map(len, encode_texts(tokenizer, list(texts.values()), chat=True)), strict=True))
    window = window_of(model)
    fits = {key: window is None or size + config.room <= window for key, size in sizes.items()}
    short = [key for key in texts if fits[key]]
    for keys in (short[start : start + config.batch] for start in range(0, len(short), config.batch)):
        options = {"max_batch_tokens": 1 << 60, "chat": True}  # the batch is small enough already
        answers = generate_answers(model, tokenizer, [texts[key] for key in keys], config.room, **options)
        for key, answer in zip(keys, answers, strict=True):
            reply = Reply(answer.text, sizes[key], answer.tokens, cut=not answer.ended)
            usage.requests += 1
            usage.add(reply)
            log.add(key, vars(reply))
            if progress:
                progress()
    return {key: ServerError("too long for the writer", "request") for key in texts if not fits[key]}, usage


def estimate_cost(
    passages: Sequence[Passage], config: WriterConfig, prompt_set: PromptSet, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """Estimate what writing would take, before anything is sent.

    Args:
        passages, config, prompt_set, tokenizer: as for ``write_prompts``.

    Returns:
        {"passages", "to write" (not in the log), and what ``ctxft.extras.server.estimate`` returns}.

    Raises:
        InputError: the model on this machine is not found, or has no chat template.

    Example:
        >>> estimate_cost(passages, config, prompt_set, tokenizer)["cost at most"]  # doctest: +SKIP
        0.42
    """
    written = read_records(log_path(config))[1]
    queries = {query.key: query for _, query in jobs_of(passages, config, prompt_set)}
    todo = [query for key, query in queries.items() if key not in written]
    reader = tokenizer if config.server else _tokenizer_of(config)
    return {"passages": len(passages), "to write": len(todo), **estimate(todo, config, reader)}


# --- a run ------------------------------------------------------------------------------------------------------------


def writer_of(config: ExperimentConfig) -> WriterConfig:
    """Return the experiment's writer; raises InputError if it has none."""
    if config.prompts.writer is None:
        raise InputError("no model that writes prompts is named: set prompts.writer (model, and perhaps server).")
    return config.prompts.writer


def adapt(run: Run, progress: Callable[[], object] | None = None) -> dict:
    """Let the experiment's writer write a prompt for every passage of a prepared run.

    A prompt that contains an item of the experiment's benchmarks is rejected. Where there is none, because the text was
    rejected or the writer gave none, the sampled prompt is used: adaptive.json says why.

    Args:
        run: its config names ``prompts.writer``.
        progress: called after each text that is written now.

    Returns:
        The content of adaptive.json: what ``write_prompts`` returns, and the names of the benchmarks.

    Raises:
        InputError: no writer is named, the run is not prepared, a benchmark cannot be loaded, the writer cannot be used, or
            other prompts would replace those that an arm was trained with.
        FailedError: the writer fails again and again, or the limit of cost is reached; what was written is kept.

    Example:
        >>> adapt(Run("my.yaml"))["prompts"]  # doctest: +SKIP
        1184
    """
    writer = writer_of(run.wanted)
    # all items, also those that a limit leaves out now: the rest may be evaluated another time
    benchmarks = Run(run.wanted, overrides={"evaluation.limit": None}).benchmarks
    run.require_prepared()
    forbidden = forbids(benchmarks)
    record = write_prompts(run.passages, writer, run.prompt_sets.strategies, run.tokenizer, forbidden, progress)
    require_untrained(run.folder, record["rows"])
    record = with_checksum(record | {"benchmarks": [benchmark.name for benchmark in benchmarks]})
    write_json(run.folder / "adaptive.json", record)
    return record


def require_untrained(folder: Path, rows: Sequence[dict]) -> None:
    """Refuse to change the prompts of a run after an arm was trained with them: its seeds would differ in more than the seed."""
    now = Counter(row["prompt"] for row in rows if row["prompt"])
    for path in folder.glob("arms/*adaptive*/seed-*/prompts.jsonl"):
        read = Counter(row["prompt"] for _, row in read_jsonl(path) if row["prompt"].startswith(WRITTEN_ID))
        if read - now:
            raise InputError(
                f"{path.parent} was trained with other written prompts than there are now: what was written is kept, but "
                "to use it remove that folder, or run under another name."
            )
