"""An experiment's benchmarks and a model behind a server flow in; its written answers, and what they are worth, flow out.

    benchmarks -> requests -> Plan (what it will cost) -> server -> <run>/hosted/<model>-<hash>/answers.jsonl
                                                                 -> <benchmark>.jsonl metrics.json

Questions are asked in the same words as arms that write their answers (``output_type: generate_until``), and read by the same
strict rule. A hosted model is no arm: it was not trained on the run's passages, so its outcomes lie apart from those of the
arms and are not compared with them.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
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
from ctxft.extras.server import Reply, Server, ServerError
from ctxft.extras.server.answers import Answers
from ctxft.run.run import Run
from ctxft.statistics import wilson
from ctxft.storage import FailedError, InputError, exclusive_lock, sha256, write_json

CHARACTERS = 4  # of English text in a token, roughly; only the estimate before the first request rests on it
TURN = 16  # tokens for the marks of a turn, likewise
PATIENCE = 10  # requests in a row without any reply: the server is gone, or nothing that is sent suits it


@dataclass(frozen=True)
class Request:
    """One question as a server is asked it; ``id`` is the benchmark's name and the question's id."""

    id: str
    benchmark: str
    question: Question
    context: str
    continuations: list[str]
    max_tokens: int
    key: str


@dataclass(frozen=True)
class Plan:
    """All that will be asked of one server.

    Attributes:
        server: where.
        completions: ask for plain text to be written on, in place of a reply in a chat.
        folder: where answers and outcomes go; its name tells the model, and a hash of URL and model sets it apart.
        benchmarks, styles: the benchmarks, and the name of each -> how it is asked, in words.
        requests: one for each question.
    """

    server: ServerConfig
    completions: bool
    folder: Path
    benchmarks: list[Benchmark]
    styles: dict[str, str]
    requests: list[Request]

    def due(self) -> list[Request]:
        """Return the requests that have no answer on disk yet."""
        answers = Answers(self.folder / "answers.jsonl")
        return [request for request in self.requests if answers.get(request.id, request.key) is None]

    def cost(self) -> dict:
        """Return what is still to ask, and what it costs at most.

        Returns:
            items; answered (of them, on disk already); tokens_in (an estimate: a token for four characters, and a few for
            the turn); tokens_out (at most); price (None without prices), in their currency.
        """
        due = self.due()
        marks = 0 if self.completions else TURN
        read = sum(math.ceil(len(request.context) / CHARACTERS) + marks for request in due)
        written = sum(request.max_tokens for request in due)
        counts = {"items": len(self.requests), "answered": len(self.requests) - len(due)}
        return counts | {"tokens_in": read, "tokens_out": written, "price": self.server.cost(read, written)}


def plan_of(run: Run, server: ServerConfig, completions: bool = False) -> Plan:
    """Write out what a server would be asked of an experiment's benchmarks; nothing is asked yet.

    Args:
        run: the run; it need not be prepared. Its model's tokenizer counts how many tokens an answer may
            have, as it does for the arms.
        server: where and which model.
        completions: the text goes to ``/v1/completions`` as it is, for a base model; else it is one turn of the user in a
            chat, and the server applies its own template.

    Raises:
        InputError: a benchmark cannot be loaded, two questions of one have the same id, or ``evaluation.apply_chat_template`` is
            set and plain text is asked for.
    """
    options = run.config.evaluation
    if completions and options.apply_chat_template:
        raise InputError(
            "--completions sends plain text, and evaluation.apply_chat_template asks for a chat: set the one or the other."
        )
    benchmarks, styles, requests = run.benchmarks, {}, []
    for benchmark in benchmarks:
        written = requests_of(benchmark, options.form, options.num_fewshot, generated=True)
        room = answer_tokens(run.tokenizer, written)
        styles[benchmark.name] = style_of(benchmark, options.form, options.num_fewshot, not completions, generated=True)
        for question, (context, continuations) in zip(benchmark.questions, written, strict=True):
            key = sha256([server.url, server.model, completions, room, context])
            id = f"{benchmark.name}/{question.id}"
            requests.append(Request(id, benchmark.name, question, context, continuations, room, key))
    if twice := [id for id, count in Counter(request.id for request in requests).items() if count > 1]:
        raise InputError(f"two questions have the id '{twice[0]}', so their answers cannot be told apart: rename one.")
    name = re.sub(r"[^\w.-]+", "-", server.model).strip("-.") + f"-{sha256([server.url, server.model])[:8]}"
    name += "-completions" if completions else ""
    return Plan(server, completions, run.folder / "hosted" / name, benchmarks, styles, requests)


def ask_all(plan: Plan, server: Server, parallel: int = 1, progress: Callable[[], object] | None = None) -> dict:
    """Ask what is due, and write outcomes and metrics; every answer is on the disk as soon as it is there.

    Args:
        plan: from ``plan_of``.
        server: of the plan's config.
        parallel: requests under way at a time.
        progress: called after each request.

    Returns:
        The content of metrics.json: server, model, endpoint; requests (what this call sent, see ``Server.record``); for each
        benchmark what ``ctxft.evaluation.metrics.metrics`` returns with interval (Wilson, 95 %), errors (items without any
        reply, by kind; they count as unanswered, and are asked again next time), cut (answers that had no room to end),
        form, source, revision and note. A benchmark none of whose items got a reply has no accuracy, no interval and no outcomes.

    Raises:
        InputError: the key is refused, the model is unknown, or another process asks this server for this run.
        FailedError: the server was silent for ten requests in a row (the answers so far are kept), or refused the first ten,
            or answered nothing at all.
    """
    if parallel < 1:
        raise InputError(f"--parallel must be at least 1 request at a time, found {parallel}.")
    with _only_process(plan.folder):
        with Answers(plan.folder / "answers.jsonl") as answers:
            failed = _Asking(plan, server, answers, progress).run(parallel)
        replies = {request.id: answers.get(request.id, request.key) for request in plan.requests}
        where = {"server": plan.server.url, "model": plan.server.model}
        where["endpoint"] = "completions" if plan.completions else "chat"
        (plan.folder / "metrics.json").unlink(missing_ok=True)  # a kill must not leave old metrics beside new outcomes
        found = {b.name: _examined(plan, b, replies, failed) for b in plan.benchmarks}
        record = {**where, "requests": server.record(), "benchmarks": found}
        write_json(plan.folder / "metrics.json", record)
    return record


class _Asking:
    """What the threads that ask share: what is due, the answers, and what failed."""

    def __init__(self, plan: Plan, server: Server, answers: Answers, progress: Callable[[], object] | None) -> None:
        self.plan, self.server, self.answers, self.progress = plan, server, answers, progress
        self.waiting = iter(plan.due())
        self.failed: dict[str, str] = {}  # id -> kind of trouble
        self.said = ""  # of the last one that failed
        self.silent = self.refused = 0  # requests in a row without a reply, or refused
        self.end: Exception | None = None  # why no thread need go on
        self.lock = threading.Lock()

    def run(self, parallel: int) -> dict[str, str]:
        """Ask all that is due; returns what failed."""
        # Daemons: Ctrl-C does not wait for a server that is slow, or asks for minutes of patience. One that outlives the
        # call, as in a notebook, finds the answers closed.
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(parallel)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.waiting = iter(())
        if self.end:
            raise self.end
        if self.failed and not len(self.answers):
            raise FailedError(f"nothing was answered, so there is no accuracy: {self.said}")
        return self.failed

    def _work(self) -> None:
        while not self.end:
            with self.lock:
                request = next(self.waiting, None)
            if request is None:
                return
            try:
                self._ask(request)
            except Exception as error:  # raised again by the thread that waits for all
                self.end = error
            if self.progress:
                self.progress()

    def _ask(self, request: Request) -> None:
        """Ask one question, and keep its answer before another is asked."""
        try:
            reply = self._reply(request)
        except ServerError as error:
            self._count(request, error)
        else:
            self.silent = self.refused = 0
            self.answers.add(request.id, request.key, reply)

    def _count(self, request: Request, error: ServerError) -> None:
        """Note a request without a reply; raises FailedError where the next would hardly get one."""
        with self.lock:
            self.failed[request.id] = error.kind
            # A request that is refused, being too long perhaps, tells only of itself, once the server has answered another.
            self.refused += error.kind == "request"
            self.silent += error.kind != "request"
            self.said = str(error)
        if self.refused >= PATIENCE and not len(self.answers):
            raise FailedError(
                f"{PATIENCE} requests were refused before any reply, so no more are sent: {error}"
            ) from None
        if self.silent >= PATIENCE:
            raise FailedError(
                f"the server at {self.plan.server.url} gave no reply to {PATIENCE} requests in a row ({error.kind}): "
                f"{len(self.answers)} answers are kept, and the same command goes on from there."
            ) from None

    def _reply(self, request: Request) -> Reply:
        if self.plan.completions:
            return self.server.complete(request.context, request.max_tokens)
        return self.server.chat([{"role": "user", "content": request.context}], request.max_tokens)


def _examined(plan: Plan, benchmark: Benchmark, replies: dict[str, Reply | None], failed: dict[str, str]) -> dict:
    """Write the outcomes of a benchmark and return its metrics; without any reply there are neither."""
    requests = [request for request in plan.requests if request.benchmark == benchmark.name]
    errors = Counter(failed[request.id] for request in requests if request.id in failed)
    given = [reply for request in requests if (reply := replies[request.id])]
    if given:
        found = _measured(plan, benchmark, requests, replies)
    else:
        (plan.folder / f"{benchmark.name}.jsonl").unlink(missing_ok=True)
        found = {"n": len(requests), "chance": benchmark.chance, "unanswered": len(requests)}
    found |= {"errors": dict(errors), "cut": sum(reply.cut for reply in given)}
    found |= {"source": benchmark.source, "revision": benchmark.revision, "note": benchmark.note}
    return found | {"form": plan.styles[benchmark.name], "rule": "generate_until"}


def _measured(plan: Plan, benchmark: Benchmark, requests: list[Request], replies: dict[str, Reply | None]) -> dict:
    outcomes = []
    for request in requests:
        reply = replies[request.id]
        # JSON can hold half of a character that takes two, UTF-8 cannot.
        text = "" if reply is None else reply.text.encode("utf-8", "replace").decode()
        outcomes.append(generated_outcome(request.question, request.context, request.continuations, text))
    write_outcomes(plan.folder / f"{benchmark.name}.jsonl", outcomes)
    right = sum(outcome["correct"] for outcome in outcomes)
    return metrics(outcomes, benchmark) | {"interval": wilson(right, len(outcomes))}


def hosted_table(record: dict) -> pandas.DataFrame:
    """Return a row for each benchmark, from the content of metrics.json; accuracy, interval and F1 in per cent, or "-"."""
    rows = []
    for name, found in record["benchmarks"].items():
        interval = " to ".join(f"{100 * end:.1f}" for end in found.get("interval", ()))
        rows.append(
            {
                **{"benchmark": name, "items": found["n"]},
                "accuracy %": round(100 * found["accuracy"], 1) if "accuracy" in found else "-",
                "95 % interval": interval or "-",
                "macro F1 %": round(100 * found["macro_f1"], 1) if "macro_f1" in found else "-",
                "chance %": round(100 * found["chance"], 1),
                **{"unanswered": found["unanswered"], "of these errors": sum(found["errors"].values())},
            }
        )
    return pandas.DataFrame(rows)


def _only_process(folder: Path) -> contextlib.AbstractContextManager:
    """Let one process at a time ask for a folder, so that nothing is paid for twice."""
    return exclusive_lock(folder / ".lock", f"asks for {folder} now")
