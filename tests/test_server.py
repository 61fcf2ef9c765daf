"""A server on this machine that answers well and badly: what is tried again, what ends the work, what is counted."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from ctxft.config import ServerConfig
from ctxft.extras.server import Reply, Server, ServerError
from ctxft.storage import InputError
from tests.stub_server import StubServer, good_text

KEY = "sk-test-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "What helps?"}]


class Time:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)


def server_of(stub: StubServer, time: Time | None = None, **values) -> Server:
    time = time or Time()
    return Server(ServerConfig(url=stub.url, model="stub", **values), time.sleep, time.clock)


def then_good(*behaviours: str):
    return lambda number, body: behaviours[number] if number < len(behaviours) else "good"


def test_a_good_reply_and_what_was_sent(key):
    with StubServer(then_good()) as stub:
        server = server_of(stub, key_variable="STUB_KEY", price_in=2.0, price_out=10.0)
        reply = server.chat(MESSAGES, max_tokens=32)
        path, headers, body = stub.requests[0]
    assert reply == Reply(good_text(body), 100, 20)
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "stub",
        "messages": MESSAGES,
        "max_tokens": 32,
        "temperature": 0,
        "seed": 0,
        "stream": False,
    }
    assert server.cost() == pytest.approx((100 * 2 + 20 * 10) / 1e6)
    assert server.record()["requests"] == 1 and server.record()["errors"] == {}


def test_the_users_token_of_the_hub_is_not_sent(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    with StubServer(then_good()) as stub:
        server_of(stub).chat(MESSAGES, 8)
        sent = stub.requests[0][1]
    assert "hf_abcdefghijklmnop" not in str(sent)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ("nonsense", "protocol"),
        ("html", "protocol"),
        ("empty", "protocol"),
        ("shape", "protocol"),
        ("nothing", "protocol"),
        ("listed", "protocol"),
        ("rate", "rate limit"),
        ("broken", "server"),
        ("gateway", "protocol"),
        ("close", "connection"),
        ("hang", "timeout"),
    ],
)
def test_what_may_pass_is_tried_again(behaviour, kind):
    time = Time()
    with StubServer(then_good(behaviour, behaviour)) as stub:
        server = server_of(stub, time, timeout=0.3)
        assert server.chat(MESSAGES, 8).text
        assert len(stub.requests) == 3
    record = server.record()
    assert (record["requests"], record["retries"], record["errors"]) == (3, 2, {kind: 2})
    assert time.waits == [1.0, 2.0]


def test_retries_run_out():
    time = Time()
    with StubServer(lambda number, body: "broken") as stub:
        server = server_of(stub, time, retries=7)
        with pytest.raises(
            ServerError, match=r"gives no reply; run again later \(try 8: HTTP 500, out of memory\)"
        ) as caught:
            server.chat(MESSAGES, 8)
    assert caught.value.kind == "server" and len(stub.requests) == 8
    assert time.waits == [1, 2, 4, 8, 16, 32, 60] and server.counts.replies == 0


def test_no_server_at_all():
    with StubServer(then_good()) as stub:
        pass
    with pytest.raises(ServerError, match="the connection failed, ConnectError"):
        server_of(stub, retries=1).chat(MESSAGES, 8)


@pytest.mark.parametrize(("retry_after", "waits"), [("7", [7.0]), ("0.5", [0.5]), ("soon", [1.0]), (None, [1.0])])
def test_retry_after_is_kept(retry_after, waits):
    time = Time()
    with StubServer(then_good("rate"), retry_after) as stub:
        server_of(stub, time).chat(MESSAGES, 8)
    assert time.waits == waits


def test_retry_after_may_be_a_date():
    time = Time()
    with StubServer(
        then_good("rate"), format_datetime(datetime.now(UTC) + timedelta(seconds=200), usegmt=True)
    ) as stub:
        server_of(stub, time).chat(MESSAGES, 8)
    assert len(time.waits) == 1 and 100 < time.waits[0] <= 200


def test_a_server_that_asks_for_hours_fails_the_request():
    time = Time()
    with StubServer(lambda number, body: "rate", "86400") as stub:
        with pytest.raises(ServerError, match=r"try 1: HTTP 429, .*slow down"):
            server_of(stub, time).chat(MESSAGES, 8)
    assert time.waits == [] and len(stub.requests) == 1


def test_a_request_that_is_refused_is_not_repeated():
    with StubServer(then_good("refuse_request")) as stub:
        server = server_of(stub)
        with pytest.raises(ServerError, match=r"refuses this request .*the context is too long"):
            server.chat(MESSAGES, 8)
        assert len(stub.requests) == 1
        assert server.chat(MESSAGES, 8).text  # the next one may pass


def test_a_wrong_key_and_an_unknown_model_end_the_work(key):
    with StubServer(lambda number, body: ("refused", "unknown")[number]) as stub:
        server = server_of(stub, key_variable="STUB_KEY")
        with pytest.raises(InputError, match=r"refuses access .*: check the key in STUB_KEY"):
            server.chat(MESSAGES, 8)
        with pytest.raises(InputError, match=r"has no model 'stub' .*no such model"):
            server.chat(MESSAGES, 8)
        assert len(stub.requests) == 2


def test_the_key_is_shown_nowhere(key):
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    shown = []
    try:
        with StubServer(lambda number, body: ("refused", "rate", "hang", "html", "echo")[number]) as stub:
            server = server_of(stub, key_variable="STUB_KEY", retries=0, timeout=0.3)
            for _ in range(5):
                with pytest.raises((InputError, ServerError)) as caught:
                    server.chat(MESSAGES, 8)
                error = caught.value
                assert error.__context__ is None and error.__cause__ is None  # those hold the request
                shown += ["".join(traceback.format_exception(error)), repr(error)]
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    shown += [repr(server), str(server.record()), repr(server.config), log.getvalue()]
    assert log.getvalue() and "bad key Bearer ..." in shown[0]
    assert "not of the protocol, it holds the key" in shown[8] and server.counts.errors["protocol"] == 2
    assert not [text for text in shown if KEY in text]


@pytest.mark.parametrize("dummy", ["x", "none", "EMPTY"])
def test_a_dummy_key_changes_no_text(monkeypatch, dummy):
    monkeypatch.setenv("STUB_KEY", dummy)
    with StubServer(lambda number, body: ("text:next EMPTY box, none taken", "refused")[number]) as stub:
        server = server_of(stub, key_variable="STUB_KEY")
        assert server.chat(MESSAGES, 8).text == "next EMPTY box, none taken" and not server.counts.errors
        with pytest.raises(InputError, match=f"bad key Bearer {dummy}"):
            server.chat(MESSAGES, 8)
        assert stub.requests[0][1]["authorization"] == f"Bearer {dummy}"


def test_the_rate_limit_spreads_requests():
    time = Time()
    with StubServer(then_good()) as stub:
        server = server_of(stub, time, requests_per_minute=30)
        for _ in range(4):
            server.chat(MESSAGES, 8)
        time.now += 100  # a pause of our own earns no burst
        server.chat(MESSAGES, 8)
        server.chat(MESSAGES, 8)
    assert time.waits == [2.0] * 4


def test_a_reply_without_usage_leaves_the_cost_unknown():
    with StubServer(then_good(), usage=False) as stub:
        server = server_of(stub, price_in=1.0, price_out=1.0)
        assert server.chat(MESSAGES, 8).tokens_in is None
    assert server.cost() is None and server.counts.unmetered == 1


def test_an_unknown_price_leaves_the_cost_unknown():
    with StubServer(then_good()) as stub:
        server = server_of(stub, price_in=1.0)
        server.chat(MESSAGES, 8)
    assert server.cost() is None and server.counts.tokens_out == 20


def test_no_content_is_an_empty_text_and_a_cut_one_says_so():
    with StubServer(then_good("silent", "cut")) as stub:
        server = server_of(stub)
        assert server.chat(MESSAGES, 8) == Reply("", 100, 20)
        assert server.chat(MESSAGES, 8).cut


def test_offline_mode_is_told():
    code = (
        "from ctxft.config import ServerConfig\n"
        "from ctxft.extras.server import Server\n"
        "server = Server(ServerConfig(url='http://127.0.0.1:9/v1', model='m'))\n"
        "try:\n    server.chat([{'role': 'user', 'content': 'x'}], 4)\n"
        "except ValueError as error:\n    print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ['HF_HUB_OFFLINE'] = '1'\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "the server at http://127.0.0.1:9/v1 cannot be asked while HF_HUB_OFFLINE is set: unset it.\n"


@pytest.mark.parametrize(("value", "said"), [(None, "is not set"), ("  ", "is not set"), ("two words", "no key has")])
def test_a_variable_without_a_key(monkeypatch, value, said):
    monkeypatch.delenv("STUB_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("STUB_KEY", value)
    with pytest.raises(InputError, match=f"STUB_KEY .*{said}") as caught:
        Server(ServerConfig(url="http://host/v1", model="m", key_variable="STUB_KEY"))
    assert "two words" not in str(caught.value)
