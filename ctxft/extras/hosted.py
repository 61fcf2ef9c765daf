"""Evaluate a model behind a server on an experiment's benchmarks, once its cost is known; every reply is kept on disk.

    benchmarks -> items -> Plan (what it will cost) -> server -> <run>/hosted/<model>-<hash>/answers.log
                                                              -> <benchmark>.jsonl metrics.json

Questions have the same words as for arms that generate their answers, and are read by the same strict rule. A hosted model is
no arm: it was not trained on the run's passages, so its outcomes are stored apart from those of the arms and are not compared
with them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas

from ctxft.config import ServerConfig
from ctxft.evaluation.benchmarks import Benchmark, Question, requests_of, style_of
from ctxft.evaluation.evaluate import answer_tokens
from ctxft.evaluation.metrics import metrics
from ctxft.evaluation.outcomes import generated_outcome, write_outcomes
from ctxft.extras.server import Query, Server, ServerError, ask_all
from ctxft.run.run import Run
from ctxft.statistics import wilson
from ctxft.storage import FailedError, InputError, RecordLog, read_records, sha256, write_json

CHARACTERS = 4  # of English text in a token, roughly; only the estimate before the first request rests on it
TURN = 16  # tokens for the marks of a turn, likewise


@dataclass(frozen=True)
class Item:
    """One question with what a server reads of it."""

    benchmark: str
    question: Question
    context: str
    continuations: list[str]
    query: Query


@dataclass(frozen=True)
class Plan:
    """All that one server will be asked.

    Attributes:
        server: where.
        completions: ask for the continuation of a plain text instead of a reply in a chat.
        folder: of answers and outcomes; its name says the model, and a hash of URL and model makes it unique.
        benchmarks, styles: the benchmarks, and the name of each -> how it is formatted, in words.
        items: one for each question.
    """

    server: ServerConfig
    completions: bool
    folder: Path
    benchmarks: list[Benchmark]
    styles: dict[str, str]
    items: list[Item]

    @property
    def log(self) -> Path:
        """The file of the answers."""
        return self.folder / "answers.log"

    def due(self) -> list[Query]:
        """Return the queries that have no answer on disk yet."""
        answered = read_records(self.log)[1]
        return list({item.query.key: item.query for item in self.items if item.query.key not in answered}.values())

    def cost(self) -> dict:
        """Return what is still to ask, and what it costs at most.

        Returns:
            items; answered (of them, on disk already); due (queries to send; equal ones are sent once); tokens_in (an
            estimate: a token for four characters, and a few for the turn); tokens_out (at most); price (None without
            prices), in their currency.
        """
        due, answered = self.due(), read_records(self.log)[1]
        contexts = {item.query.key: item.context for item in self.items}
        marks = 0 if self.completions else TURN
        read = sum(math.ceil(len(contexts[query.key]) / CHARACTERS) + marks for query in due)
        written = sum(query.max_tokens for query in due)
        counts = {"items": len(self.items), "answered": sum(item.query.key in answered for item in self.items)}
        counts |= {"due": len(due), "tokens_in": read, "tokens_out": written}
        return counts | {"price": self.server.cost(read, written)}


def plan_of(run: Run, server: ServerConfig, completions: bool = False) -> Plan:
    """Write out what a server would be asked about an experiment's benchmarks; nothing is sent yet.

    Args:
        run: of the experiment; it need not be prepared. Its model's tokenizer counts how many tokens an answer may
            have, as it does for the arms.
        server: where and which model.
        completions: the text goes to ``/v1/completions`` as it is, for a base model; else it is one turn of the user in a
            chat, and the server applies its own template.

    Raises:
        InputError: a benchmark cannot be loaded, or ``evaluation.apply_chat_template`` is set and plain text is wanted.
    """
    options = run.wanted.evaluation
    if completions and options.apply_chat_template:
        raise InputError(
            "--completions sends plain text, and evaluation.apply_chat_template wants a chat: set one or the other."
        )
    benchmarks, styles, items = run.benchmarks, {}, []
    for benchmark in benchmarks:
        requests = requests_of(benchmark, options.form, options.num_fewshot, generated=True)
        room = answer_tokens(run.tokenizer, requests)
        styles[benchmark.name] = style_of(benchmark, options.form, options.num_fewshot, not completions, generated=True)
        for question, (context, continuations) in zip(benchmark.questions, requests, strict=True):
            prompt = context if completions else [{"role": "user", "content": context}]
            query = Query(sha256([room, context]), prompt, room)
            items.append(Item(benchmark.name, question, context, continuations, query))
    name = re.sub(r"[^\w.-]+", "-", server.model).strip("-.") + f"-{sha256([server.url, server.model])[:8]}"
    folder = run.folder / "hosted" / (name + "-completions" * completions)
    return Plan(server, completions, folder, benchmarks, styles, items)


def evaluate_hosted(
    plan: Plan, server: Server, parallel: int = 1, progress: Callable[[], object] | None = None
) -> dict:
    """Ask what is due, and write outcomes and metrics; every answer is on the disk as soon as it arrives.

    Args:
        plan: from ``plan_of``.
        server: of the plan's config.
        parallel: requests under way at a time.
        progress: called after each request.

    Returns:
        The content of metrics.json: server, model, endpoint; requests (what this call sent, see ``Usage``, and its cost);
        for each benchmark what ``ctxft.evaluation.metrics.metrics`` returns with interval (Wilson, 95 %), errors (items
        without any reply, by kind; they count as unanswered, and are asked again next time), cut (answers that had no room
        to end), form, source, revision and note. A benchmark without any reply has no accuracy, no interval and no outcomes.

    Raises:
        InputError: the key is refused, the model is unknown, or another process asks this server for this run.
        FailedError: the server was silent for ten requests in a row (the answers so far are kept), or refused the first ten,
            or answered nothing at all.
    """
    if parallel < 1:
        raise InputError(f"--parallel must be at least 1 request at a time, found {parallel}.")
    where = {"server": plan.server.url, "model": plan.server.model}
    where["endpoint"] = "completions" if plan.completions else "chat"
    with RecordLog(plan.log, header=where) as log:
        failed = ask_all(server, plan.due(), log, parallel, progress and (lambda *_: progress()))
        if failed and not log.records:
            raise FailedError(f"nothing was answered, so there is no accuracy: {list(failed.values())[-1]}")
        (plan.folder / "metrics.json").unlink(missing_ok=True)  # a kill must not leave old metrics beside new outcomes
        results = {benchmark.name: _evaluated(plan, benchmark, log.records, failed) for benchmark in plan.benchmarks}
        requests = server.usage.to_json() | {"cost": server.usage.cost(plan.server)}
        write_json(plan.folder / "metrics.json", record := {**where, "requests": requests, "benchmarks": results})
    return record


def _evaluated(plan: Plan, benchmark: Benchmark, replies: dict[str, dict], failed: dict[str, ServerError]) -> dict:
    """Write the outcomes of a benchmark and return its metrics; without any reply there are neither."""
    items = [item for item in plan.items if item.benchmark == benchmark.name]
    keys = [item.query.key for item in items]
    if any(key in replies for key in keys):
        # JSON can hold half of a character that takes two, UTF-8 cannot.
        texts = [replies.get(key, {"text": ""})["text"].encode("utf-8", "replace").decode() for key in keys]
        outcomes = [
            generated_outcome(item.question, item.context, item.continuations, text)
            for item, text in zip(items, texts, strict=True)
        ]
        write_outcomes(plan.folder / f"{benchmark.name}.jsonl", outcomes)
        correct = sum(outcome["correct"] for outcome in outcomes)
        result = metrics(outcomes, benchmark) | {"interval": wilson(correct, len(outcomes))}
    else:
        (plan.folder / f"{benchmark.name}.jsonl").unlink(missing_ok=True)
        result = {"n": len(items), "chance": benchmark.chance, "unanswered": len(items)}
    result["errors"] = dict(Counter(failed[key].kind for key in keys if key in failed))
    result["cut"] = sum(replies[key]["cut"] for key in keys if key in replies)
    result |= {"source": benchmark.source, "revision": benchmark.revision, "note": benchmark.note}
    return result | {"form": plan.styles[benchmark.name], "rule": "generate_until"}


def hosted_table(record: dict) -> pandas.DataFrame:
    """Return a row for each benchmark, from the content of metrics.json; accuracy, interval and F1 in per cent, or "-"."""

    def percent(result: dict, name: str) -> float | str:
        return round(100 * result[name], 1) if name in result else "-"

    return pandas.DataFrame(
        {
            "benchmark": name,
            "items": result["n"],
            "accuracy %": percent(result, "accuracy"),
            "95 % interval": " to ".join(f"{100 * end:.1f}" for end in result.get("interval", ())) or "-",
            "macro F1 %": percent(result, "macro_f1"),
            "chance %": percent(result, "chance"),
            "unanswered": result["unanswered"],
            "of these errors": sum(result["errors"].values()),
        }
        for name, result in record["benchmarks"].items()
    )
