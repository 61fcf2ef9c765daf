"""Query a language model behind an OpenAI-compatible server (vLLM, llama.cpp, Ollama, TGI and the paid services have it alike).

``openai``'s client speaks the protocol and retries what may pass: 408, 409, 429, 5xx, a timeout, a broken connection. This
module adds a rate limit, the bill, and an end: a key that is refused, or a model that nobody knows, ends the work at once, and
so do ten requests in a row without a reply. The key is read from the environment and shown nowhere: errors are raised outside
the block that caught the library's own, since that holds the request with its headers; an error's text has the key masked, and
a reply that holds it counts as none.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from ctxft.config import RequestConfig, ServerConfig
from ctxft.prompts import count_tokens
from ctxft.storage import FailedError, InputError, RecordLog, one_line

SEED = 0  # servers that sample in spite of temperature 0 take a seed
PATIENCE = 10  # requests in a row without any reply: the server is gone, or nothing that is sent suits it
SECRET = 8  # characters of a key at least; a shorter one ("none", "EMPTY") is a dummy for a server that needs none
NO_KEY = "none"  # sent where no key is needed; without one the client would send the user's key of OpenAI
KINDS = {408: "timeout", 429: "rate limit"}


class ServerError(FailedError):
    """One request got no reply, after all retries; ``kind`` is the last trouble ("timeout", "rate limit", ...)."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Query:
    """What a model is to answer.

    Attributes:
        key: of its reply in a log.
        text: one turn of the user, or, where ``plain``, what the model continues without a chat template.
        max_tokens: of the reply at most, in the model's own tokens.
        plain: whether the text is no turn of a chat.
    """

    key: str
    text: str
    max_tokens: int
    plain: bool = False

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation."""
        return [{"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Reply:
    """What a model wrote.

    Attributes:
        text: as it arrived; "" where the server reports that the model wrote nothing.
        tokens_in, tokens_out: as the server counts them; None where it does not report them.
        cut: whether it was stopped at ``max_tokens``.
    """

    text: str
    tokens_in: int | None
    tokens_out: int | None
    cut: bool = False


@dataclass
class Usage:
    """What was sent to a model and what it cost: requests (retries among them), replies, failures by kind, tokens."""

    requests: int = 0
    replies: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0  # replies whose tokens the server did not report

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        self.replies += 1
        self.unmetered += reply.tokens_in is None or reply.tokens_out is None
        self.tokens_in += reply.tokens_in or 0
        self.tokens_out += reply.tokens_out or 0

    def cost(self, prices: RequestConfig) -> float | None:
        """Return what the replies cost, in the currency of the prices; None if a price or a count of tokens is unknown."""
        return None if self.unmetered else prices.cost(self.tokens_in, self.tokens_out)

    def to_json(self) -> dict:
        """Return the counts as plain values."""
        retries = self.requests - self.replies - self.errors.total()
        return {**vars(self), "retries": retries, "errors": dict(sorted(self.errors.items()))}


def estimate(queries: Iterable[Query], prices: RequestConfig, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Estimate what queries would take, before anything is sent.

    Args:
        queries: that have no reply yet.
        prices: of the server.
        tokenizer: measures what will be sent, roughly: the server has its own.

    Returns:
        {"tokens in", "tokens out at most", "cost at most" (None where a price is unknown), "approximate": True}. Retries are
        not in it.
    """
    queries = list(queries)
    tokens_in = sum(count_tokens(tokenizer, query.text) for query in queries)
    tokens_out = sum(query.max_tokens for query in queries)
    sizes = {"tokens in": tokens_in, "tokens out at most": tokens_out}
    return sizes | {"cost at most": prices.cost(tokens_in, tokens_out), "approximate": True}


class Server:
    """A language model behind an OpenAI-compatible server, at temperature 0 with a fixed seed. May be shared by threads.

    Args:
        config: where and how.

    Attributes:
        usage: what was sent so far.

    Raises:
        InputError: openai's client is not installed, or the key's variable is not set.

    Example:
        >>> server = Server(ServerConfig(url="http://localhost:8000/v1", model="my-model"))  # doctest: +SKIP
        >>> server.reply(Query("", "Answer yes.", max_tokens=4)).text  # doctest: +SKIP
        'Yes.'
    """

    def __init__(self, config: ServerConfig) -> None:
        try:
            import openai
        except ImportError:
            raise InputError("a model behind a server needs openai's client: pip install 'ctxft[hosted]'.") from None
        self.config, self.usage, self._openai = config, Usage(), openai
        self._key, self._lock, self._free = config.key() or NO_KEY, threading.Lock(), time.monotonic()
        self._client = openai.OpenAI(
            base_url=config.url,
            api_key=self._key,
            timeout=config.timeout,
            max_retries=config.retries,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self._before_sending]}),
        )

    def __repr__(self) -> str:
        """Return server and model; the key is not shown."""
        return f"Server({self.config.url!r}, {self.config.model!r})"

    def reply(self, query: Query) -> Reply:
        """Return the model's reply.

        Raises:
            ServerError: no reply after all retries, or the server refuses this very request (it may be too long).
            InputError: the key is refused, the model or address is unknown, or HF_HUB_OFFLINE forbids the network.
        """
        if constants.HF_HUB_OFFLINE:
            raise InputError(
                f"the server at {self.config.url} cannot be queried while HF_HUB_OFFLINE is set: unset it."
            )
        options: dict[str, Any] = {"model": self.config.model, "max_tokens": query.max_tokens}
        options |= {"temperature": 0, "seed": SEED}
        try:
            if query.plain:
                output = self._client.completions.create(**options, prompt=query.text)
            else:
                options["messages"] = query.turns
                output = self._client.chat.completions.create(**options)
            reply = self._read(output, query.plain)
        # the client's own errors; no JSON, JSON of another shape, a reply that holds the key
        except (self._openai.APIError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            failure = self._failure(error)
        else:
            with self._lock:
                self.usage.add(reply)
            return reply
        if isinstance(failure, ServerError):
            with self._lock:
                self.usage.errors[failure.kind] += 1
        raise failure

    def _before_sending(self, request: Any) -> None:
        """Count a request or retry, and hold it back until the rate limit lets it go."""
        for header in ("OpenAI-Organization", "OpenAI-Project"):  # from the environment, and nobody else's business
            request.headers.pop(header, None)
        with self._lock:
            self.usage.requests += 1
            now = time.monotonic()
            start = max(now, self._free)
            self._free = start + 60 / (self.config.requests_per_minute or float("inf"))
        time.sleep(start - now)

    def _read(self, output: Any, plain: bool) -> Reply:
        """Read the first choice; raises what a reply of another shape leads to."""
        choice, usage = output.choices[0], output.usage
        text = choice.text if plain else choice.message.content
        if not isinstance(text, str | None) or self._masked(text or "") != (text or ""):
            raise TypeError
        sizes = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        tokens_in, tokens_out = (size if type(size) is int and size >= 0 else None for size in sizes)
        return Reply(text or "", tokens_in, tokens_out, cut=choice.finish_reason == "length")

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "...") if len(self._key) >= SECRET else text

    def _failure(self, error: Any) -> Exception:
        """Return InputError for what no retry and no other request can fix, else ServerError; the key is in neither."""
        at, variable = f"the server at {self.config.url}", self.config.key_variable
        status = getattr(error, "status_code", 0)
        if isinstance(error, self._openai.APITimeoutError):
            kind, why = "timeout", f"silent for {self.config.timeout:g} seconds"
        elif isinstance(error, self._openai.APIConnectionError):
            kind, why = "connection", f"the connection failed, {type(error.__cause__).__name__}"
        elif not status:
            kind, why = "protocol", f"a reply that does not follow the protocol, {type(error).__name__}"
        else:
            kind = KINDS.get(status, "server" if status >= 500 else "request")
            message = error.body.get("message") if isinstance(error.body, dict) else error.body
            message = self._masked(one_line(" ".join(str(message or "").split())))[:200]
            why = f"HTTP {status}, {message}" if message else f"HTTP {status}"
        if status in (401, 403):
            fix = f"check the key in {variable}" if variable else "name its key's environment variable in key_variable"
            return InputError(f"{at} refuses access ({why}): {fix}.")
        if status == 404:
            return InputError(f"{at} has no model '{self.config.model}' ({why}): check the model's name and the URL.")
        what = "refuses this request" if kind == "request" else "gives no reply; run again later"
        return ServerError(f"{at} {what} ({why}).", kind)


def ask_all(
    server: Server,
    queries: Iterable[Query],
    log: RecordLog,
    parallel: int = 1,
    progress: Callable[[], object] | None = None,
) -> dict[str, ServerError]:
    """Query a server for what the log lacks; each reply is on the disk before another request is sent in its place.

    Args:
        server: the server.
        queries: taken one by one.
        log: takes key -> the fields of a ``Reply``.
        parallel: requests under way at a time.
        progress: called after each answer.

    Returns:
        Key -> error of each query without a reply; it is sent again next time.

    Raises:
        InputError: the key is refused, or the model is unknown.
        FailedError: ten requests in a row got no reply. Replies so far are kept.
    """
    done: queue.SimpleQueue[tuple[Query, Reply | Exception]] = queue.SimpleQueue()

    def work(query: Query) -> None:
        try:
            done.put((query, server.reply(query)))
        except Exception as error:  # counted or raised by the thread that waits for all
            done.put((query, error))

    missing = (query for query in queries if query.key not in log.records)
    failed: dict[str, ServerError] = {}
    running = in_a_row = 0
    end: Exception | None = None
    while True:
        while running < parallel and not end and (query := next(missing, None)):
            # A daemon, so that Ctrl-C does not wait for a slow server. One that outlives the call writes nothing.
            threading.Thread(target=work, args=(query,), daemon=True).start()
            running += 1
        if not running:
            break
        query, answer = done.get()
        running -= 1
        if isinstance(answer, Reply):
            log.add(query.key, vars(answer))
            in_a_row = 0
        elif isinstance(answer, ServerError):
            failed[query.key] = answer
            # A request that is refused, being too long perhaps, concerns only itself, once another got a reply.
            in_a_row += answer.kind != "request" or not log.records
        end = end or _end_after(answer, in_a_row, len(log.records))
        if progress:
            progress()
    if end:
        raise end
    return failed


def _end_after(answer: Reply | Exception, in_a_row: int, kept: int) -> Exception | None:
    """Return the error that ends the work after an answer, if any."""
    if not isinstance(answer, Reply | ServerError):
        return answer
    if in_a_row < PATIENCE:
        return None
    return FailedError(
        f"{PATIENCE} requests in a row got no reply, so no more are sent; {kept} replies are kept, and the same command "
        f"resumes from there: {answer}"
    )
