"""A server on this machine that answers well and badly: what is counted, what ends the work, and where no key is shown."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
import traceback
from itertools import pairwise

import pytest

from ctxft.config import ServerConfig
from ctxft.extras.server import Query, Reply, Server, ServerError, ask_all
from ctxft.storage import InputError, RecordLog
from tests.stub_server import StubServer, good_text

KEY = "sk-test-0123456789abcdef"
QUERY = Query("q", "What helps?", 8)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)


def server_of(stub: StubServer, **values) -> Server:
    return Server(ServerConfig(url=stub.url, model="stub", **{"retries": 0} | values))


def then_good(*behaviors: str):
    return lambda number, body: behaviors[number] if number < len(behaviors) else "good"


def test_a_good_reply_and_what_was_sent(key):
    with StubServer(then_good()) as stub:
        server = server_of(stub, key_variable="STUB_KEY", price_in=2.0, price_out=10.0)
        reply = server.reply(Query("q", "What helps?", 32))
        path, headers, body = stub.requests[0]
    assert reply == Reply(good_text(body), 100, 20)
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert body == {"model": "stub", "messages": QUERY.turns, "max_tokens": 32, "temperature": 0, "seed": 0}
    assert server.usage.cost(server.config) == pytest.approx((100 * 2 + 20 * 10) / 1e6)
    assert server.usage.to_json()["requests"] == 1 and server.usage.to_json()["errors"] == {}


def test_what_a_completion_sends_and_returns(key):
    with StubServer(then_good("completion")) as stub:
        server = server_of(stub, key_variable="STUB_KEY")
        assert server.reply(Query("q", "Go", 5, plain=True)) == Reply("Go!", 100, 20)
        path, headers, body = stub.requests[0]
    assert path == "/v1/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert body == {"model": "stub", "prompt": "Go", "max_tokens": 5, "temperature": 0, "seed": 0}


def test_secrets_of_the_user_that_are_not_named_are_not_sent(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "hf_abcdefghijklmnop")
    with StubServer(then_good()) as stub:
        server_of(stub).reply(QUERY)
        headers = stub.requests[0][1]
    assert headers["authorization"] == "Bearer none" and "hf_abcdefghijklmnop" not in str(headers)


@pytest.mark.parametrize(
    ("behavior", "kind"),
    [
        ("nonsense", "protocol"),
        ("html", "protocol"),
        ("empty", "protocol"),
        ("shape", "protocol"),
        ("nothing", "protocol"),
        ("listed", "protocol"),
        ("number", "protocol"),
        ("rate", "rate limit"),
        ("broken", "server"),
        ("gateway", "server"),
        ("close", "connection"),
        ("hang", "timeout"),
        ("refuse_request", "request"),
    ],
)
def test_a_request_without_a_reply_is_counted_and_the_next_may_have_one(behavior, kind):
    with StubServer(then_good(behavior)) as stub:
        server = server_of(stub, timeout=0.5 if behavior == "hang" else 20.0)
        with pytest.raises(ServerError) as caught:
            server.reply(QUERY)
        assert server.reply(QUERY).text and caught.value.kind == kind
    usage = server.usage.to_json()
    assert (usage["requests"], usage["replies"], usage["retries"], usage["errors"]) == (2, 1, 0, {kind: 1})


@pytest.mark.parametrize("content", ["[1]", "{}", '{"choices": ["B"]}', '{"choices": [{"text": 7}]}', '{"choi'])
def test_a_completion_of_another_shape_is_no_reply(content):
    with StubServer(then_good(f"json:{content}")) as stub, pytest.raises(ServerError) as caught:
        server_of(stub).reply(Query("q", "Go", 5, plain=True))
    assert caught.value.kind == "protocol"


def test_what_may_pass_is_tried_again_and_counted():
    with StubServer(then_good("broken", "rate"), retry_after="0.01") as stub:
        server = server_of(stub, retries=2)
        assert server.reply(QUERY).text and len(stub.requests) == 3
    usage = server.usage.to_json()
    assert (usage["requests"], usage["replies"], usage["retries"], usage["errors"]) == (3, 1, 2, {})


def test_no_server_at_all():
    with StubServer(then_good()) as stub:
        pass
    with pytest.raises(ServerError, match=r"gives no reply; run again later .the connection failed, ConnectError"):
        server_of(stub).reply(QUERY)


def test_a_wrong_key_and_an_unknown_model_end_the_work(key):
    with StubServer(lambda number, body: ("refused", "unknown")[number]) as stub:
        server = server_of(stub, key_variable="STUB_KEY", retries=5)
        with pytest.raises(InputError, match=r"refuses access .*: check the key in STUB_KEY"):
            server.reply(QUERY)
        with pytest.raises(InputError, match=r"has no model 'stub' .*no such model"):
            server.reply(QUERY)
        assert len(stub.requests) == 2


def test_the_key_is_shown_nowhere(key):
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    shown = []
    try:
        with StubServer(lambda number, body: ("refused", "rate", "close", "html", "echo")[number]) as stub:
            server = server_of(stub, key_variable="STUB_KEY")
            for _ in range(5):
                with pytest.raises((InputError, ServerError)) as caught:
                    server.reply(QUERY)
                error = caught.value
                assert error.__context__ is None and error.__cause__ is None  # those hold the request
                shown += ["".join(traceback.format_exception(error)), repr(error)]
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    shown += [repr(server), str(server.usage.to_json()), repr(server.config), log.getvalue()]
    assert log.getvalue() and "bad key Bearer ..." in shown[0] and server.usage.errors["protocol"] == 2
    assert not [text for text in shown if KEY in text]


@pytest.mark.parametrize("dummy", ["x", "none", "EMPTY"])
def test_a_dummy_key_changes_no_text(monkeypatch, dummy):
    monkeypatch.setenv("STUB_KEY", dummy)
    with StubServer(lambda number, body: ("text:next EMPTY box, none taken", "refused")[number]) as stub:
        server = server_of(stub, key_variable="STUB_KEY")
        assert server.reply(QUERY).text == "next EMPTY box, none taken" and not server.usage.errors
        with pytest.raises(InputError, match=f"bad key Bearer {dummy}"):
            server.reply(QUERY)


def test_the_rate_limit_spreads_requests():
    times = []

    def behave(number: int, body: dict) -> str:
        times.append(time.monotonic())
        return "good"

    with StubServer(behave) as stub:
        server = server_of(stub, requests_per_minute=200)
        for pause in (0, 0, 0, 0.5, 0):  # a pause of ours earns no burst
            time.sleep(pause)
            server.reply(QUERY)
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) > 0.1 and sum(gaps) > 1


def test_without_usage_or_a_price_the_cost_is_unknown():
    with StubServer(then_good(), usage=False) as stub:
        server = server_of(stub, price_in=1.0, price_out=1.0)
        assert server.reply(QUERY).tokens_in is None
    assert server.usage.cost(server.config) is None and server.usage.unmetered == 1
    with StubServer(then_good()) as stub:
        server = server_of(stub, price_in=1.0)
        server.reply(QUERY)
    assert server.usage.cost(server.config) is None and server.usage.tokens_out == 20


def test_no_content_is_an_empty_text_and_a_cut_one_is_marked():
    with StubServer(then_good("silent", "cut")) as stub:
        server = server_of(stub)
        assert server.reply(QUERY) == Reply("", 100, 20)
        assert server.reply(QUERY).cut


def test_offline_mode_and_a_missing_client_are_reported(monkeypatch):
    code = (
        "from ctxft.config import ServerConfig\nfrom ctxft.extras.server import Query, Server\n"
        "server = Server(ServerConfig(url='http://127.0.0.1:9/v1', model='m'))\n"
        "try:\n    server.reply(Query('q', 'x', 4))\n"
        "except ValueError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", f"import os; os.environ['HF_HUB_OFFLINE'] = '1'\n{code}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == "the server at http://127.0.0.1:9/v1 cannot be queried while HF_HUB_OFFLINE is set: unset it.\n"
    monkeypatch.setitem(sys.modules, "openai", None)  # as if it were not installed
    with pytest.raises(
        InputError, match=r"^a model behind a server needs openai's client: pip install 'ctxft\[hosted\]'"
    ):
        Server(ServerConfig(url="http://127.0.0.1:9/v1", model="m"))


@pytest.mark.parametrize(
    ("value", "message"), [(None, "is not set"), ("  ", "is not set"), ("two words", "no key has")]
)
def test_a_variable_without_a_key(monkeypatch, value, message):
    monkeypatch.delenv("STUB_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("STUB_KEY", value)
    with pytest.raises(InputError, match=f"STUB_KEY .*{message}") as caught:
        Server(ServerConfig(url="http://host/v1", model="m", key_variable="STUB_KEY"))
    assert "two words" not in str(caught.value)


def test_each_reply_is_kept_before_another_request_is_sent(tmp_path):
    path = tmp_path / "answers.log"

    def behave(number: int, body: dict) -> str:
        assert len(path.read_bytes().splitlines()) >= 1 + number - 2  # the header, and all but those under way
        return "good"

    queries = [Query(f"q{number}", str(number), 8) for number in range(20)]
    with StubServer(behave) as stub, RecordLog(path) as log:
        assert ask_all(server_of(stub), queries, log, parallel=3) == {} and len(stub.requests) == 20
        assert ask_all(server_of(stub), queries, log, parallel=3) == {} and len(stub.requests) == 20
        assert list(log.records) != [] and {query.key for query in queries} == set(log.records)
