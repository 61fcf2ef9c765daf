"""An OpenAI-compatible server on this machine that answers well or badly, as configured, and remembers its requests."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable

from ctxft.storage import sha256

WORDS = "notice link name picture order weigh question compare recall explain connect sort mark trace".split()


def passage_of(body: dict) -> str:
    """Return what the last message of a request says."""
    return body["messages"][-1]["content"]


def good_text(body: dict) -> str:
    """Return two short sentences that differ from request to request, always the same for the same one."""
    digits = sha256(passage_of(body))
    first, second, third = (WORDS[int(digits[n], 16) % len(WORDS)] for n in range(3))
    return f"As you read, {first} and {second} each step. Then {third} what remains."


class StubServer:
    """The server, up while the block runs.

    Args:
        behave: (number of the request from 0, its body) -> what to do: one of the names in ``_Handler``, "text:..." to reply
            with that text, or "json:..." for a whole body.
        retry_after: header of a 429, if any.
        usage: whether replies say their tokens.

    Attributes:
        requests: (path, headers, body) of each request, in the order of their arrival.
    """

    def __init__(self, behave: Callable[[int, dict], str], retry_after: str | None = None, usage: bool = True) -> None:
        self.behave, self.retry_after, self.usage = behave, retry_after, usage
        self.requests: list[tuple[str, dict, dict]] = []
        self.lock, self.closing = threading.Lock(), threading.Event()
        handler = type("Handler", (_Handler,), {"stub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> StubServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def asked(self) -> list[str]:
        """Return the last message of each request."""
        return [passage_of(body) for _, _, body in self.requests]


class _Handler(http.server.BaseHTTPRequestHandler):
    stub: StubServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.stub.lock:
            number = len(self.stub.requests)
            self.stub.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        what = self.stub.behave(number, body)
        if what.startswith("text:"):
            self.chat(what.removeprefix("text:"))
        elif what.startswith("json:"):
            self.reply(200, what.removeprefix("json:"))
        else:
            getattr(self, what)(body)

    def chat(self, text: str | None, finish: str = "stop") -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        value = {"object": "chat.completion", "model": "stub", "choices": [choice]}
        if self.stub.usage:
            value["usage"] = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        self.reply(200, json.dumps(value))

    def reply(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
        self.send(status, text.encode(), kind, **headers)

    def send(self, status: int, content: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def completion(self, body: dict) -> None:
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        choice = {"index": 0, "text": f"{body['prompt']}!", "finish_reason": "stop"}
        self.reply(200, json.dumps({"choices": [choice], "usage": usage}))

    def number(self, body: dict) -> None:
        self.reply(200, '{"choices": [{"message": {"role": "assistant", "content": 7}, "finish_reason": "stop"}]}')

    def good(self, body: dict) -> None:
        self.chat(good_text(body))

    def echo(self, body: dict) -> None:
        self.chat(f"You said {self.headers.get('Authorization')}.")

    def long(self, body: dict) -> None:
        self.chat("Read each line again and say what it means to you. " * 40)

    def cut(self, body: dict) -> None:
        self.chat("Read each line again and say what", finish="length")

    def silent(self, body: dict) -> None:
        self.chat(None)

    def nonsense(self, body: dict) -> None:
        self.reply(200, '{"choices": [{"mess')

    def html(self, body: dict) -> None:
        self.reply(200, "<html><body>Welcome to the gateway</body></html>", "text/html")

    def empty(self, body: dict) -> None:
        self.reply(200, "")

    def shape(self, body: dict) -> None:
        self.reply(200, '{"choices": [{"message": "Read it again.", "finish_reason": "stop"}]}')

    def nothing(self, body: dict) -> None:
        self.reply(200, '{"choices": []}')

    def listed(self, body: dict) -> None:
        self.reply(200, "[1, 2]")

    def rate(self, body: dict) -> None:
        after = {"Retry_After": self.stub.retry_after} if self.stub.retry_after else {}
        self.reply(429, '{"error": {"message": "slow down"}}', **after)

    def broken(self, body: dict) -> None:
        self.reply(500, '{"error": "out of memory"}')

    def gateway(self, body: dict) -> None:
        self.reply(502, '["an error that is no object"]')

    def refused(self, body: dict) -> None:
        """Say the key back, as some servers do."""
        self.reply(401, json.dumps({"error": f"bad key {self.headers.get('Authorization')}"}))

    def unknown(self, body: dict) -> None:
        self.reply(404, '{"error": "no such model"}')

    def refuse_request(self, body: dict) -> None:
        self.reply(400, '{"error": {"message": "the context is too long"}}')

    def hang(self, body: dict) -> None:
        self.stub.closing.wait(60)

    def close(self, body: dict) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""
