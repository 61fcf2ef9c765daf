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

from ctxft.config import ServerConfig
from ctxft.storage import FailedError, InputError, RecordLog, one_line

SEED = 0  # servers that sample in spite of temperature 0 take a seed
PATIENCE = 10  # requests in a row without any reply: the server is gone, or nothing that is sent suits it
SECRET = 8  # characters of a key at least; a shorter one ("none", "EMPTY") is a dummy for a server that needs none
NO_KEY = "none"  # sent where no key is needed; without one the client would send the user's key of OpenAI
KINDS = {401: "refused", 403: "refused", 404: "unknown", 408: "timeout", 429: "rate limit"}


class ServerError(FailedError):
    """One request got no reply, after all retries; ``kind`` is the last trouble ("timeout", "rate limit", ...)."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Query:
    """What a server is to answer.

    Attributes:
        key: of its reply in a log.
        prompt: a conversation ({"role": ..., "content": ...}, the oldest first), or a plain text to continue.
        max_tokens: of the reply at most, in the model's own tokens.
    """

    key: str
    prompt: str | list[dict[str, str]]
    max_tokens: int

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation; a plain text is one turn of the user."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt


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

    def cost(self, prices: ServerConfig | None) -> float | None:
        """Return what the replies cost, in the currency of the prices; None if a price or a count of tokens is unknown."""
        return None if self.unmetered or prices is None else prices.cost(self.tokens_in, self.tokens_out)

    def to_json(self) -> dict:
        """Return the counts as plain values."""
        retries = self.requests - self.replies - self.errors.total()
        return {**vars(self), "retries": retries, "errors": dict(sorted(self.errors.items()))}


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
        >>> server.chat([{"role": "user", "content": "Answer yes."}], max_tokens=4).text  # doctest: +SKIP
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

    def chat(self, messages: list[dict[str, str]], max_tokens: int) -> Reply:
        """Return the model's reply to a conversation; errors as for ``reply``."""
        return self.reply(Query("", messages, max_tokens))

    def complete(self, prompt: str, max_tokens: int) -> Reply:
        """Return what the model writes after a plain text, without a chat template; errors as for ``reply``."""
        return self.reply(Query("", prompt, max_tokens))

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
        try:
            reply = self._read(self._send(query), chat=isinstance(query.prompt, list))
        except self._openai.APIError as error:
            kind, message = self._trouble(error)
        # no JSON, JSON of another shape, a reply that holds the key
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            kind, message = "protocol", f"a reply that does not follow the protocol, {type(error).__name__}"
        else:
            with self._lock:
                self.usage.add(reply)
            return reply
        with self._lock:
            self.usage.errors[kind] += 1
        raise self._error(kind, message)

    def _send(self, query: Query) -> Any:
        options: dict[str, Any] = {"model": self.config.model, "max_tokens": query.max_tokens}
        options |= {"temperature": 0, "seed": SEED}
        if isinstance(query.prompt, str):
            return self._client.completions.create(**options, prompt=query.prompt)
        options["messages"] = query.prompt
        return self._client.chat.completions.create(**options)

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

    def _read(self, output: Any, chat: bool) -> Reply:
        """Read the first choice; raises what a reply of another shape leads to."""
        choice, usage = output.choices[0], output.usage
        text = choice.message.content if chat else choice.text
        if not isinstance(text, str | None) or self._masked(text or "") != (text or ""):
            raise TypeError
        sizes = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        tokens_in, tokens_out = (size if type(size) is int and size >= 0 else None for size in sizes)
        return Reply(text or "", tokens_in, tokens_out, cut=choice.finish_reason == "length")

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "...") if len(self._key) >= SECRET else text

    def _trouble(self, error: Any) -> tuple[str, str]:
        """Return the kind of an error of openai's client, and what is behind it, without the key."""
        if isinstance(error, self._openai.APITimeoutError):
            return "timeout", f"silent for {self.config.timeout:g} seconds"
        if isinstance(error, self._openai.APIConnectionError):
            return "connection", f"the connection failed, {type(error.__cause__).__name__}"
        if not isinstance(error, self._openai.APIStatusError):
            return "protocol", f"a reply that does not follow the protocol, {type(error).__name__}"
        body, status = error.body, error.status_code
        message = body.get("message") if isinstance(body, dict) else body
        message = self._masked(one_line(" ".join(str(message or "").split())))[:200]
        kind = KINDS.get(status, "server" if status >= 500 else "request")
        return kind, f"HTTP {status}, {message}" if message else f"HTTP {status}"

    def _error(self, kind: str, message: str) -> Exception:
        """Return InputError for what no retry and no other request can fix, else ServerError."""
        at, variable = f"the server at {self.config.url}", self.config.key_variable
        if kind == "refused":
            fix = f"check the key in {variable}" if variable else "name its key's environment variable in key_variable"
            return InputError(f"{at} refuses access ({message}): {fix}.")
        if kind == "unknown":
            return InputError(
                f"{at} has no model '{self.config.model}' ({message}): check the model's name and the URL."
            )
        what = "refuses this request" if kind == "request" else "gives no reply; run again later"
        return ServerError(f"{at} {what} ({message}).", kind)


def ask_all(
    server: Server,
    queries: Iterable[Query],
    log: RecordLog,
    parallel: int = 1,
    progress: Callable[[Query, Reply | Exception], object] | None = None,
) -> dict[str, ServerError]:
    """Query a server for what the log lacks; each reply is on the disk before its thread sends another request.

    Args:
        server: the server.
        queries: taken one by one.
        log: takes key -> the fields of a ``Reply``.
        parallel: requests under way at a time.
        progress: called with each query and its answer.

    Returns:
        Key -> error of each query without a reply; it is sent again next time.

    Raises:
        InputError: the key is refused, or the model is unknown.
        FailedError: ten requests in a row got no reply, or the first ten were refused. Replies so far are kept.
    """
    todo, done = queue.SimpleQueue(), queue.SimpleQueue()

    def work() -> None:
        while (query := todo.get()) is not None:
            try:
                done.put((query, server.reply(query)))
            except Exception as error:  # counted or raised by the thread that waits for all
                done.put((query, error))

    # Daemons, so that Ctrl-C does not wait for a slow server. One that outlives the call, as in a notebook, writes nothing.
    for _ in range(parallel):
        threading.Thread(target=work, daemon=True).start()
    missing = (query for query in queries if query.key not in log.records)
    patience, end, running = Patience(server, log), None, 0
    try:
        while True:
            while running < parallel and not end and (query := next(missing, None)):
                todo.put(query)
                running += 1
            if not running:
                break
            query, answer = done.get()
            running -= 1
            if isinstance(answer, Reply):
                log.add(query.key, vars(answer))
            end = end or patience.end_after(query.key, answer)
            if progress:
                progress(query, answer)
    finally:
        for _ in range(parallel):
            todo.put(None)
    if end:
        raise end
    return patience.failed


class Patience:
    """When to stop sending requests: PATIENCE of them in a row got no reply, or were refused before any reply."""

    def __init__(self, server: Server, log: RecordLog) -> None:
        self.server, self.log = server, log
        self.failed: dict[str, ServerError] = {}
        self.silent = self.refused = 0  # in a row

    def end_after(self, key: str, answer: Reply | Exception) -> Exception | None:
        """Take note of an answer; returns the error that ends the work, if any."""
        if isinstance(answer, Reply):
            self.silent = self.refused = 0
            return None
        if not isinstance(answer, ServerError):
            return answer
        self.failed[key] = answer
        # A request that is refused, being too long perhaps, concerns only itself, once the server has answered another.
        self.refused += answer.kind == "request"
        self.silent += answer.kind != "request"
        kept = len(self.log.records)
        if self.refused >= PATIENCE and not kept:
            return FailedError(f"{PATIENCE} requests were refused before any reply, so no more are sent: {answer}")
        if self.silent >= PATIENCE:
            return FailedError(
                f"the server at {self.server.config.url} gave no reply to {PATIENCE} requests in a row ({answer.kind}): "
                f"{kept} answers are kept, and the same command resumes from there."
            )
        return None
