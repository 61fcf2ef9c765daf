"""Evaluate a model behind a server on an experiment's benchmarks, once its cost is known; every reply is kept on disk.

    benchmarks -> Plan (queries, what they will cost) -> server -> <run>/hosted/<model>-<hash>/answers.log
                                                                -> <benchmark>.jsonl metrics.json

Questions have the same words as for arms that generate their answers, and are read by the same strict rule. A hosted model is
no arm: it was not trained on the run's passages, so its outcomes are stored apart from those of the arms and are not compared
with them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas

from ctxft.config import EvaluationConfig, ServerConfig
from ctxft.evaluation.benchmarks import Benchmark, requests_of, style_of
from ctxft.evaluation.evaluate import answer_tokens
from ctxft.evaluation.metrics import metrics
from ctxft.evaluation.outcomes import outcome_of, write_outcomes
from ctxft.evaluation.scoring import Generated
from ctxft.extras.server import Query, Server, ServerError, ask_all, estimate
from ctxft.run.run import Run
from ctxft.statistics import wilson
from ctxft.storage import FailedError, InputError, RecordLog, read_records, sha256, write_json


@dataclass(frozen=True)
class Plan:
    """All that one server will be asked.

    Attributes:
        run: of the experiment.
        server: where.
        completions: ask for the continuation of a plain text instead of a reply in a chat.
        folder: of answers and outcomes; its name says the model, and a hash of URL and model makes it unique.
        queries: name of each benchmark -> a query for each question.
    """

    run: Run
    server: ServerConfig
    completions: bool
    folder: Path
    queries: dict[str, list[Query]]

    @property
    def log(self) -> Path:
        """The file of the answers."""
        return self.folder / "answers.log"

    def due(self) -> list[Query]:
        """Return the queries that have no answer on disk yet; equal ones are sent once."""
        answered = read_records(self.log)[1]
        every = {query.key: query for queries in self.queries.values() for query in queries}
        return [query for key, query in every.items() if key not in answered]

    def cost(self) -> dict:
        """Return what is still to ask, and what it costs at most: items, to ask, and what ``estimate`` returns."""
        due = self.due()
        counts = {"items": sum(map(len, self.queries.values())), "to ask": len(due)}
        return counts | estimate(due, self.server, self.run.tokenizer)


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
    if completions and run.wanted.evaluation.apply_chat_template:
        raise InputError(
            "--completions sends plain text, and evaluation.apply_chat_template wants a chat: set one or the other."
        )
    queries = {}
    for benchmark in run.benchmarks:
        requests = requests_of(benchmark, _options(run, completions))
        room = answer_tokens(run.tokenizer, requests)
        queries[benchmark.name] = [Query(sha256([room, text]), text, room, completions) for text, _ in requests]
    name = re.sub(r"[^\w.-]+", "-", server.model).strip("-.") + f"-{sha256([server.url, server.model])[:8]}"
    return Plan(run, server, completions, run.folder / "hosted" / (name + "-completions" * completions), queries)


def _options(run: Run, completions: bool) -> EvaluationConfig:
    """Return how a server is asked: it writes its answers, and applies its own chat template."""
    return run.wanted.evaluation.replace(output_type="generate_until", apply_chat_template=not completions)


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
        to end), form, source, revision and note.

    Raises:
        InputError: the key is refused, the model is unknown, or another process asks this server for this run.
        FailedError: ten requests in a row got no reply (the answers so far are kept), or a benchmark got none at all.
    """
    where = {"server": plan.server.url, "model": plan.server.model}
    where["endpoint"] = "completions" if plan.completions else "chat"
    with RecordLog(plan.log, header=where) as log:
        failed = ask_all(server, plan.due(), log, parallel, progress)
        for name, queries in plan.queries.items():
            if not any(query.key in log.records for query in queries):
                raise FailedError(
                    f"no question of {name} was answered: {failed[queries[-1].key]} Leave it out of evaluation.benchmarks "
                    "to see the others."
                )
        (plan.folder / "metrics.json").unlink(missing_ok=True)  # a kill must not leave old metrics beside new outcomes
        results = {one.name: _evaluated(plan, one, log.records, failed) for one in plan.run.benchmarks}
        requests = server.usage.to_json() | {"cost": server.usage.cost(plan.server)}
        write_json(plan.folder / "metrics.json", record := {**where, "requests": requests, "benchmarks": results})
    return record


def _evaluated(plan: Plan, benchmark: Benchmark, replies: dict[str, dict], failed: dict[str, ServerError]) -> dict:
    """Write the outcomes of a benchmark and return its metrics."""
    keys, options = [query.key for query in plan.queries[benchmark.name]], _options(plan.run, plan.completions)
    outcomes = []
    for key, question, request in zip(keys, benchmark.questions, requests_of(benchmark, options), strict=True):
        # JSON can hold half of a character that takes two, UTF-8 cannot.
        text = replies.get(key, {"text": ""})["text"].encode("utf-8", "replace").decode()
        outcomes.append(outcome_of(question, *request, Generated(text)))
    write_outcomes(plan.folder / f"{benchmark.name}.jsonl", outcomes)
    return {
        **metrics(outcomes, benchmark),
        "interval": wilson(sum(outcome["correct"] for outcome in outcomes), len(outcomes)),
        "errors": dict(Counter(failed[key].kind for key in keys if key in failed)),
        "cut": sum(replies[key]["cut"] for key in keys if key in replies),
        "source": benchmark.source,
        "revision": benchmark.revision,
        "note": benchmark.note,
        "form": style_of(benchmark, options),
        "rule": options.output_type,
    }


def hosted_table(record: dict) -> pandas.DataFrame:
    """Return a row for each benchmark, from the content of metrics.json; accuracy, interval and F1 in per cent."""
    return pandas.DataFrame(
        {
            "benchmark": name,
            "items": result["n"],
            "accuracy %": round(100 * result["accuracy"], 1),
            "95 % interval": " to ".join(f"{100 * end:.1f}" for end in result["interval"]),
            "macro F1 %": round(100 * result["macro_f1"], 1) if "macro_f1" in result else "-",
            "chance %": round(100 * result["chance"], 1),
            "unanswered": result["unanswered"],
            "of these errors": sum(result["errors"].values()),
        }
        for name, result in record["benchmarks"].items()
    )
