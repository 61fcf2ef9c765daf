"""Messages go in; what a language model behind an OpenAI-compatible server replies comes out, with every try counted.

    ServerConfig -> Server.chat(messages, max_tokens), .complete(prompt, max_tokens) -> Reply(text, tokens_in, tokens_out)

``huggingface_hub.InferenceClient`` speaks the protocol (vLLM, llama.cpp, Ollama, TGI and the paid services have it alike), but
for the completions of a plain text, which go over the same library's own session.
This module adds patience, a rate limit and the bill. A request that may succeed later is asked again: 429, 408, 5xx, a timeout,
a broken connection, a reply that is not of the protocol. A key that is refused, or a model that nobody knows, ends the work at
once. The key is read from the environment and shown nowhere: errors are raised outside the block that saw the library's own,
since that holds the request with its headers; an error's text has the key masked, and a reply that holds it is no reply.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, hf_raise_for_status

from ctxft.config import ServerConfig
from ctxft.storage import FailedError, InputError, one_line

SEED = 0  # servers that sample in spite of temperature 0 take a seed
LONGEST = 600.0  # seconds: a server that asks for more patience than this has failed the request
SLOWEST = 60.0  # seconds: the waits of our own double up to here
AGAIN = ("rate limit", "server", "timeout", "connection", "protocol")  # troubles that may pass
SIZES = ("prompt_tokens", "completion_tokens")  # what a server says of its tokens
SECRET = 8  # characters of a key at least; a shorter one ("none", "EMPTY") is a dummy for a server that needs none
NO_KEY = "none"  # sent where no key is needed; without one the client would send the user's token of the hub


class ServerError(FailedError):
    """One request got no reply, after all retries; ``kind`` is the last trouble ("timeout", "rate limit", ...)."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    """What a model wrote.

    Attributes:
        text: as it came; "" where the server says that the model wrote nothing.
        tokens_in, tokens_out: as the server counts them; None where it does not say.
        cut: whether it was stopped at ``max_tokens``.
    """

    text: str
    tokens_in: int | None
    tokens_out: int | None
    cut: bool = False


@dataclass
class Counts:
    """What a server was asked and what it cost: requests sent (retries among them), replies, troubles by kind, tokens."""

    requests: int = 0
    replies: int = 0
    retries: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0  # replies whose tokens the server did not say

    def to_json(self) -> dict:
        """Return the counts as plain values."""
        return {**vars(self), "errors": dict(sorted(self.errors.items()))}


@dataclass(frozen=True)
class _Trouble:
    """Why a request got no reply, in words without the key; ``wait`` is what the server asked for, in seconds."""

    kind: str
    said: str
    wait: float | None = None


class Server:
    """A language model behind an OpenAI-compatible server, asked with temperature 0 and a fixed seed.

    May be shared by threads.

    Args:
        config: where and how.
        sleep, clock: seconds to wait, and the time in seconds; for tests.

    Attributes:
        counts: what was asked so far.

    Raises:
        InputError: the key's variable is not set.

    Example:
        >>> server = Server(ServerConfig(url="http://localhost:8000/v1", model="my-model"))  # doctest: +SKIP
        >>> server.chat([{"role": "user", "content": "Say yes."}], max_tokens=4).text  # doctest: +SKIP
        'Yes.'
    """

    def __init__(
        self,
        config: ServerConfig,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.counts = Counts()
        self._key = config.key()
        self._secret = self._key if self._key and len(self._key) >= SECRET else None
        self._client = InferenceClient(base_url=config.url, api_key=self._key or NO_KEY, timeout=config.timeout)
        self._sleep, self._clock = sleep, clock
        self._lock = threading.Lock()
        self._free = clock()  # when the rate limit lets the next request go

    def __repr__(self) -> str:
        """Return server and model; the key is not shown."""
        return f"Server({self.config.url!r}, {self.config.model!r})"

    def chat(self, messages: Sequence[dict[str, str]], max_tokens: int) -> Reply:
        """Return the model's reply to a conversation.

        Args:
            messages: {"role": "system", "user" or "assistant", "content": text}, the oldest first.
            max_tokens: of the reply at most, in the model's own tokens.

        Raises:
            ServerError: no reply after all retries, or the server refuses this very request (it may be too long).
            InputError: the key is refused, the model or address is unknown, or HF_HUB_OFFLINE forbids the network.
        """
        options = {"model": self.config.model, "max_tokens": max_tokens, "temperature": 0, "seed": SEED}
        return self._ask(lambda: self._client.chat_completion(list(messages), **options), _chat_reply)

    def complete(self, prompt: str, max_tokens: int, stop: Sequence[str] = ()) -> Reply:
        """Return what the model writes on behind a plain text, without a chat template (``/v1/completions``).

        Args:
            prompt: the text.
            max_tokens: written at most, in the model's own tokens.
            stop: texts at which the model stops; they are not part of the reply.

        Raises:
            ServerError, InputError: as ``chat``.

        Example:
            >>> server.complete("2 + 2 =", max_tokens=2).text  # doctest: +SKIP
            ' 4'
        """
        body = {"model": self.config.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "seed": SEED}
        body |= {"stop": list(stop)} if stop else {}
        return self._ask(lambda: self._post("completions", body), _completion_reply)

    def _post(self, path: str, body: dict) -> Any:
        headers = {"Authorization": f"Bearer {self._key or NO_KEY}"}
        url = f"{self.config.url.rstrip('/')}/{path}"
        answer = get_session().post(url, json=body, headers=headers, timeout=self.config.timeout)
        hf_raise_for_status(answer)
        return answer.json()

    def record(self) -> dict:
        """Return the counts, and the cost, as plain values."""
        return {**self.counts.to_json(), "cost": self.cost()}

    def cost(self) -> float | None:
        """Return what all replies cost, in the currency of the prices; None if a price or a count of tokens is unknown."""
        counts = self.counts
        return None if counts.unmetered else self.config.cost(counts.tokens_in, counts.tokens_out)

    # --- one request, tried until it is answered ------------------------------------------------------------------

    def _ask(self, send: Callable[[], Any], read: Callable[[Any], Reply]) -> Reply:
        for tried in range(self.config.retries + 1):
            self._pace()
            found = self._try(send, read)
            if isinstance(found, Reply):
                self._count(found)
                return found
            with self._lock:
                self.counts.errors[found.kind] += 1
            self._stop_for_good(found)
            wait = min(2.0**tried, SLOWEST) if found.wait is None else found.wait
            if found.kind not in AGAIN or wait > LONGEST or tried == self.config.retries:
                break
            with self._lock:
                self.counts.retries += 1
            self._sleep(wait)
        what = "refuses this request" if found.kind == "request" else "gives no reply; run again later"
        raise ServerError(f"the server at {self.config.url} {what} (try {tried + 1}: {found.said}).", found.kind)

    def _pace(self) -> None:
        """Wait until the rate limit lets a request go, and count it."""
        with self._lock:
            self.counts.requests += 1
            now = self._clock()
            start = max(now, self._free)
            self._free = start + 60 / (self.config.requests_per_minute or float("inf"))
        if start > now:
            self._sleep(start - now)

    def _try(self, send: Callable[[], Any], read: Callable[[Any], Reply]) -> Reply | _Trouble:
        try:
            reply = read(send())
        except OfflineModeIsEnabled:
            return _Trouble("offline", "")
        except HTTPError as error:
            return self._trouble(error)
        # No JSON, JSON of another shape; the client stumbles too over an error whose body is JSON but no object.
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            return _Trouble("protocol", f"a reply that is not of the protocol, {type(error).__name__}")
        if self._secret and self._secret in reply.text:
            return _Trouble("protocol", "a reply that is not of the protocol, it holds the key")
        return reply

    def _trouble(self, error: HTTPError) -> _Trouble:
        # The session's own timeouts (ReadTimeout, ConnectTimeout) are no TimeoutError, those of InferenceClient are.
        if isinstance(error, TimeoutError) or type(error).__name__.endswith("Timeout"):
            return _Trouble("timeout", f"silent for {self.config.timeout:g} seconds")
        if not isinstance(error, HfHubHTTPError):
            return _Trouble("connection", f"the connection failed, {type(error).__name__}")
        status = error.response.status_code
        kinds = {401: "refused", 403: "refused", 404: "unknown", 408: "timeout", 429: "rate limit"}
        kind = kinds.get(status, "server" if status >= 500 else "request")
        told = one_line(" ".join((error.server_message or "").split()))
        told = told.replace(self._secret, "...") if self._secret else told  # some servers say the key back
        said = f"HTTP {status}, {told[:200]}" if told else f"HTTP {status}"
        return _Trouble(kind, said, _seconds(error.response.headers.get("retry-after")))

    def _stop_for_good(self, trouble: _Trouble) -> None:
        """Raise InputError for what no retry and no other request can mend."""
        at, variable = f"the server at {self.config.url}", self.config.key_variable
        if trouble.kind == "refused":
            advice = (
                f"check the key in {variable}" if variable else "name its key's environment variable in key_variable"
            )
            raise InputError(f"{at} refuses access ({trouble.said}): {advice}.")
        if trouble.kind == "unknown":
            raise InputError(
                f"{at} has no model '{self.config.model}' ({trouble.said}): check the model's name and the URL."
            )
        if trouble.kind == "offline":
            raise InputError(f"{at} cannot be asked while HF_HUB_OFFLINE is set: unset it.")

    def _count(self, reply: Reply) -> None:
        with self._lock:
            self.counts.replies += 1
            self.counts.unmetered += reply.tokens_in is None or reply.tokens_out is None
            self.counts.tokens_in += reply.tokens_in or 0
            self.counts.tokens_out += reply.tokens_out or 0


def _chat_reply(output: Any) -> Reply:
    """Read the first choice; raises TypeError, AttributeError or ValueError where the shape is another."""
    if not isinstance(output.choices, list) or not output.choices:
        raise ValueError("no choice")
    choice, usage = output.choices[0], output.usage
    sizes = {name: getattr(usage, name, None) for name in SIZES}
    return _reply(choice.message.content, sizes, choice.finish_reason)


def _completion_reply(output: Any) -> Reply:
    """Read the first choice of a completion; raises AttributeError or ValueError where the shape is another."""
    if not isinstance(output.get("choices"), list) or not output["choices"]:
        raise ValueError("no choice")
    choice = output["choices"][0]
    return _reply(choice.get("text"), output.get("usage") or {}, choice.get("finish_reason"))


def _reply(text: Any, usage: dict, finish: Any) -> Reply:
    if not isinstance(text, str | None):
        raise TypeError("the content is no text")
    tokens = [size if type(size := usage.get(name)) is int and size >= 0 else None for name in SIZES]
    return Reply(text or "", *tokens, cut=finish == "length")


def _seconds(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, a number or a date; None where it is neither."""
    if header is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", header.strip()):
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
