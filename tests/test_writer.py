"""Written prompts: what is asked, what is refused, what is kept; nothing is asked twice, through kills and rivals."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ctxft.config import CorpusConfig, WriterConfig
from ctxft.data.chat import rendered
from ctxft.evaluation.benchmarks import Benchmark, Question
from ctxft.extras.adaptive import (
    adapt,
    clean,
    estimate_cost,
    forbids,
    jobs_of,
    log_path,
    reject_reason,
    write_prompts,
)
from ctxft.extras.arms import written_prompts
from ctxft.extras.server import PATIENCE
from ctxft.models import load_tokenizer
from ctxft.prompts import load_prompt_set
from ctxft.run.run import Run
from ctxft.storage import (
    REPO_ROOT,
    FailedError,
    InputError,
    read_json,
    read_records,
    sha256,
    write_jsonl,
)
from ctxft.world.facts import model_folder
from tests.runs import passages_of, prepare, read_passages
from tests.stub_server import StubServer, good_text, passage_of

PROMPTS = load_prompt_set("strategies")
KEY = "sk-stub-0123456789abcdef"
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


def nothing(text: str) -> None:
    return None


def writer_of(stub: StubServer, **values) -> WriterConfig:
    return WriterConfig(**{"model": "stub", "server": stub.url, "retries": 0, "timeout": 5.0} | values)


@pytest.fixture
def passages(tokenizers, runs):
    """Twelve passages of the practice world."""
    return practice(tokenizers["byte"], 12)


def practice(tokenizer, number: int) -> list:
    found, _, _ = passages_of(CorpusConfig(source="practice", held_out=0.0), tokenizer, 96)
    return found[:number]


def textbook(tokenizer, number: int) -> list:
    if not os.environ.get("CTXFT_REAL_DATA"):
        pytest.skip("CTXFT_REAL_DATA is not set: it names a folder with a real textbook")
    source = Path(os.environ["CTXFT_REAL_DATA"]) / "corpora" / "openstax_anatomy_physiology.jsonl"
    found, _, _ = passages_of(CorpusConfig(source=str(source), held_out=0.0, limit=30), tokenizer, 200)
    return found[:number]


def write(passages, config, tokenizers, forbidden=nothing, **options):
    return write_prompts(passages, config, PROMPTS, tokenizers["byte"], forbidden, **options)


def counts(record: dict) -> tuple[int, int, int]:
    return record["written"], record["cached"], record["failed"]


def reasons(record: dict) -> list[str]:
    return [row["reason"] for row in record["rows"] if not row["prompt"]]


def written_in(config: WriterConfig) -> dict[str, dict]:
    return read_records(log_path(config))[1]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  Ask why\n\neach step\tholds. ", "Ask why each step holds."),
        ('"Ask why."', "Ask why."),
        ("“Ask why.”", "Ask why."),
        ("Prompt: Ask why.", "Ask why."),
        ('**Study Prompt:** "Ask why."', "Ask why."),
        ('"Prompt: Ask why."', "Ask why."),
        ('"Ask" why "it holds"', '"Ask" why "it holds"'),
        ("Ask the prompt: why?", "Ask the prompt: why?"),
        ("'", "'"),
        ("", ""),
    ],
)
def test_clean_up_is_light(text, cleaned):
    assert clean(text) == cleaned


def test_reasons_to_reject(tokenizers):
    passage = "The river runs past the old house, and over the rock by the bridge to the sea."

    def reason(text: str, most: int = 64, forbidden=nothing) -> str | None:
        return reject_reason(text, passage, tokenizers["byte"], most, forbidden)

    assert reason("Ask where the river runs, and why.") is None
    assert reason(" ... ") == "empty"
    assert reason("Ask why\x00 it runs.") == reason("Ask why \ud800 it runs.") == "broken characters"
    assert reason("Ask: the OLD house -- and over the rock by!") == "copies the passage"  # eight words
    assert reason("Ask: the old house and over the rock.") is None  # seven
    assert reason("Ask why it runs.", forbidden=lambda text: "medqa/7") == "gives away medqa/7"
    length = len(tokenizers["byte"]("Ask why it runs.\n\n", add_special_tokens=False)["input_ids"])
    assert reason("Ask why it runs.", length) is None
    assert reason("Ask why it runs.", length - 1) == "too long"  # the separator counts


def test_what_gives_an_item_away():
    def question(number: str, text: str, answer: str, context: str = "") -> Question:
        return Question(number, text, (answer, "another thing"), 0, "all", context)

    wording = "Which of the following is true of"
    asked = [
        question("gout", f"{wording} swollen joints after rich meals?", "uric acid"),
        question("scurvy", f"{wording} bleeding gums of sailors?", "vitamin C"),
        question("rickets", f"{wording} bowed legs?", "vitamin D"),
        question(
            "goitre", f"{wording} swollen necks?", "iodine", "Twenty valleys were visited by two doctors with a mule."
        ),
    ]
    forbidden = forbids([Benchmark("own", tuple(asked), "")])
    assert forbidden("Link uric acid to meals that are rich and to joints.") == "own/gout"  # 3 of its 5 own words
    assert forbidden("Link uric acid to joints that are rich.") is None  # 2 of 5: no more than half
    assert forbidden("Which joints are swollen after rich meals?") is None  # the answer is not there
    assert forbidden("Which of the following is true of uric acid?") is None  # the wording of the exam is nobody's own
    assert forbidden("Ask: following is true of BLEEDING gums, of sailors!") == "own/scurvy"  # eight words in a row
    assert forbidden("Twenty valleys were visited by two doctors with mules; why?") == "own/goitre"
    drugs = [
        question(f"{n}-{m}", f"What does Drug{n} {verb}?", f"thing{n}{m}")
        for n in range(40)
        for m, verb in enumerate("treat block cause bring need".split())
    ]
    large = forbids([Benchmark("drugs", tuple(drugs), "")])  # five questions about each drug, 200 in all
    assert large("Remember that Drug7 may cause thing72, and why.") == "drugs/7-2"
    assert large("Remember what Drug7 may cause, and why.") is None and large("Think of thing72.") is None
    assert forbids([])("Twenty valleys were visited by two doctors with mules; why?") is None


# --- what is asked, and kept ------------------------------------------------------------------------------------------


def test_every_passage_gets_a_prompt_of_its_family(passages, tokenizers):
    seen = []
    with StubServer(lambda number, body: "good") as stub:
        config = writer_of(stub, price_in=1.0, price_out=2.0)
        record = write(passages, config, tokenizers, progress=lambda: seen.append(len(written_in(config))))
        asked = stub.asked()
        again = write(passages, config, tokenizers)
        assert len(stub.requests) == len(passages) == 12
    for passage, row, job in zip(passages, record["rows"], jobs_of(passages, config, PROMPTS), strict=True):
        (message,) = [message for message in asked if message == job[1].text]
        assert message.endswith(f"\n\nText:\n{passage.text.strip()}")
        family = PROMPTS.sample(0, passage.id).family
        assert message.startswith(config.instruction) and f"Strategy: {family}. {PROMPTS.ideas[family]}" in message
        assert (row["passage"], row["family"]) == (passage.id, family) and row["prompt"].startswith("adaptive-")
        assert row["text"] == good_text({"messages": job[1].turns})
    assert {body["max_tokens"] for _, _, body in stub.requests} == {128}
    assert seen == list(range(1, 13)), "each is on the disk by then"
    assert counts(record) == (12, 0, 0)
    assert record["cost"] == record["paid"]["cost"] == pytest.approx(12 * (100 + 2 * 20) / 1e6)
    assert counts(again) == (0, 12, 0) and (again["requests"], again["cost"]) == (0, 0)
    assert again["rows"] == record["rows"] and again["paid"] == record["paid"]


def test_equal_passages_are_written_once(passages, tokenizers):
    with StubServer(lambda number, body: "good") as stub:
        record = write([passages[0]] * 3, writer_of(stub), tokenizers)
        assert len(stub.requests) == 1
    assert counts(record) == (1, 2, 0) and record["passages"] == 3


def test_bad_texts_are_rejected_and_not_paid_for_twice(passages, tokenizers):
    def behave(number: int, body: dict) -> str:
        place = next(n for n, passage in enumerate(passages) if passage.text.strip() in passage_of(body))
        copied = "text:Prompt: " + " ".join(passages[place].text.split()[:9])
        return {0: copied, 1: "long", 2: "cut", 3: "silent"}.get(place, "good")

    with StubServer(behave) as stub:
        record = write(passages, writer_of(stub), tokenizers)
        again = write(passages, writer_of(stub), tokenizers)
        assert len(stub.requests) == 12
    rejected = {"copies the passage": 1, "too long": 1, "cut off": 1, "empty": 1}
    assert record["rejected"] == rejected == again["rejected"]
    wanted = ["rejected: copies the passage", "rejected: too long", "rejected: cut off", "rejected: empty"]
    assert [row["reason"] for row in record["rows"][:4]] == wanted == reasons(record)
    assert len(written_in(writer_of(stub))) == 12


def test_other_benchmarks_are_judged_without_asking_again(passages, tokenizers):
    with StubServer(lambda number, body: "good") as stub:
        first = write(passages, writer_of(stub), tokenizers)
        text = first["rows"][5]["text"]
        record = write(passages, writer_of(stub), tokenizers, lambda said: "own/3" if said == text else None)
        assert len(stub.requests) == 12
    assert record["rejected"]["gives away an item"] >= 1
    assert record["rows"][5]["reason"] == "rejected: gives away own/3"


def test_what_failed_is_counted_and_asked_next_time(passages, tokenizers):
    with StubServer(lambda number, body: "broken" if number in (2, 7) else "good") as stub:
        record = write(passages, writer_of(stub, batch=1), tokenizers)
        assert counts(record) == (10, 0, 2) and record["prompts"] == 10
        assert record["errors"] == {"server": 2} and len(stub.requests) == 12
        said = f"failed: the server at {stub.url} gives no reply; run again later (HTTP 500, out of memory)."
        assert [record["rows"][place]["reason"] for place in (2, 7)] == [said] * 2 == reasons(record)
        assert f"failed: {record['failure']}" == said
        again = write(passages, writer_of(stub), tokenizers)
        assert len(stub.requests) == 14
    assert counts(again) == (2, 10, 0) and again["prompts"] == 12 and again["failure"] is None


def test_a_writer_that_never_answers_is_given_up(tokenizers, runs):
    many = practice(tokenizers["byte"], 40)
    with StubServer(lambda number, body: "good" if number < 3 else "broken") as stub:
        config = writer_of(stub, batch=1)
        with pytest.raises(FailedError, match=f"{PATIENCE} requests in a row got no reply"):
            write(many, config, tokenizers)
        assert len(stub.requests) == 3 + PATIENCE
    assert len(written_in(config)) == 3


def test_access_refused_midway_keeps_what_was_written(passages, tokenizers):
    with StubServer(lambda number, body: "refused" if number == 5 else "good") as stub:
        with pytest.raises(InputError, match="refuses access"):
            write(passages, writer_of(stub, batch=3), tokenizers)
        sent = len(stub.requests)
        assert 5 <= len(written_in(writer_of(stub))) == sent - 1 < 12  # those that were under way beside it are kept
        assert write(passages, writer_of(stub), tokenizers)["prompts"] == 12
        assert len(stub.requests) == 13


def test_the_limit_of_cost_is_kept_over_runs(passages, tokenizers):
    with StubServer(lambda number, body: "good") as stub:
        price = {"price_in": 0.0, "price_out": 10.0, "batch": 1}
        config = writer_of(stub, **price, limit_cost=0.002)  # 20 tokens cost 0.0002; the next may cost 0.00128
        for _ in range(2):
            with pytest.raises(
                FailedError, match=r"cost 0\.0008 so far, .* bring it over limit_cost 0\.002: .*raise the limit"
            ):
                write(passages, config, tokenizers)
            assert len(stub.requests) == 4
        assert estimate_cost(passages, config, PROMPTS, tokenizers["byte"])["to write"] == 8
        record = write(passages, writer_of(stub, **price, limit_cost=1.0), tokenizers)
    assert record["paid"]["cost"] == pytest.approx(12 * 0.0002) and record["cost"] == pytest.approx(8 * 0.0002)


def test_what_the_estimate_says_is_a_limit_that_suffices(passages, tokenizers):
    with StubServer(lambda number, body: "good") as stub:
        price = {"price_in": 0.0, "price_out": 10.0, "batch": 4}
        most = estimate_cost(passages[:3], writer_of(stub, **price), PROMPTS, tokenizers["byte"])["cost at most"]
        write(passages[:3], writer_of(stub, **price, limit_cost=most), tokenizers)
        assert len(stub.requests) == 3


def test_a_limit_needs_a_server_that_counts(passages, tokenizers):
    with StubServer(lambda number, body: "good", usage=False) as stub:
        config = writer_of(stub, price_in=1.0, price_out=1.0, limit_cost=1.0, batch=2)
        with pytest.raises(FailedError, match="does not report how many tokens"):
            write(passages, config, tokenizers)
        assert len(stub.requests) == 2
        record = write(passages, writer_of(stub, price_in=1.0, price_out=1.0), tokenizers)
    assert record["cost"] is None and record["paid"]["cost"] is None and record["unmetered"] == 10


def test_estimate_before_anything_is_sent(passages, tokenizers):
    with StubServer(lambda number, body: "good") as stub:
        config = writer_of(stub, price_in=1.0, price_out=2.0)
        found = estimate_cost(passages, config, PROMPTS, tokenizers["byte"])
        assert stub.requests == [] and not log_path(config).exists()
    asked = [query.text for _, query in jobs_of(passages, config, PROMPTS)]
    tokens = sum(map(len, tokenizers["byte"](asked, add_special_tokens=False)["input_ids"]))
    sizes = {"passages": 12, "to write": 12, "tokens in": tokens, "tokens out at most": 12 * 128, "approximate": True}
    assert found == sizes | {"cost at most": pytest.approx((tokens + 2 * 12 * 128) / 1e6)}


@pytest.mark.parametrize("what", ["instruction", "max_tokens", "model"])
def test_another_writer_has_another_file(what):
    values = {"model": "m", "server": "http://host/v1"}
    other = values | {what: {"instruction": "Write.", "max_tokens": 32, "model": "n"}[what]}
    assert log_path(WriterConfig(**values)) != log_path(WriterConfig(**other))
    assert log_path(WriterConfig(**values)) == log_path(WriterConfig(**values, timeout=3.0, retries=1))


def test_half_a_line_is_cut_off_and_written_again(passages, tokenizers):
    with StubServer(lambda number, body: "good") as stub:
        config = writer_of(stub)
        first = write(passages, config, tokenizers)
        path = log_path(config)
        whole = path.read_bytes()
        path.write_bytes(whole[:-30])
        assert estimate_cost(passages, config, PROMPTS, tokenizers["byte"])["to write"] == 1
        assert path.read_bytes() == whole[:-30]  # a look changes nothing
        again = write(passages, config, tokenizers)
        assert len(stub.requests) == 13 and again["written"] == 1 and again["rows"] == first["rows"]
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
        path.write_bytes(whole.replace(b"a", b"\xff", 1))  # a damaged line is written again
        assert write(passages, config, tokenizers)["rows"] == first["rows"]


# --- a model on this machine ------------------------------------------------------------------------------------------


@pytest.fixture
def local_folder(tmp_path) -> str:
    """A practice model with a chat template; it follows no instruction, but writes sentences."""
    folder = shutil.copytree(model_folder("practice-aware"), tmp_path / "writer")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_here_writes_too(passages, tokenizers, local_folder):
    config = WriterConfig(model=local_folder, max_tokens=80, batch=5)
    estimate = estimate_cost(passages, config, PROMPTS, tokenizers["byte"])
    record = write(passages, config, tokenizers)
    alone = write(passages[:1], WriterConfig(model=local_folder, max_tokens=80, batch=1), tokenizers)
    assert counts(record) == (12, 0, 0) and counts(alone) == (0, 1, 0)
    texts = [
        rendered(load_tokenizer(local_folder), query.turns, answer=True)
        for _, query in jobs_of(passages, config, PROMPTS)
    ]
    assert record["tokens_in"] == sum(map(len, load_tokenizer(local_folder)(texts)["input_ids"]))
    assert 0 < record["tokens_out"] < 12 * 160 == estimate["tokens out at most"]
    assert record["prompts"] and record["prompts"] + sum(record["rejected"].values()) == 12 and record["cost"] is None
    assert len(written_in(config)) == 12
    own = [row for row in record["rows"] if row["prompt"]]
    assert {row["prompt"] for row in own} == {f"adaptive-{sha256(row['text'])[:12]}" for row in own}


def test_what_a_model_here_did_not_end_is_cut_off(passages, tokenizers, model_folders, tmp_path):
    """Random ids, read again as a text, are another number of tokens: only the end token tells."""
    folder = Path(shutil.copytree(model_folders["metaspace"], tmp_path / "random"))
    (folder / "chat_template.jinja").write_text(CHAT)
    config = WriterConfig(model=str(folder), max_tokens=8, instruction="Read.")
    record = write(passages, config, tokenizers)
    rows = list(written_in(config).values())
    assert len(rows) == 12 and all(row["cut"] == (row["tokens_out"] == config.room) for row in rows)
    tokens = [len(tokenizers["metaspace"](row["text"])["input_ids"]) for row in rows if row["cut"]]
    assert min(tokens) < config.room < max(tokens) and record["rejected"]["cut off"] == len(tokens)


def test_a_passage_too_long_for_the_model_here_is_reported(passages, tokenizers, local_folder):
    config = WriterConfig(model=local_folder, max_tokens=8, instruction="Read. " * 800)
    record = write(passages[:4], config, tokenizers)
    assert record["failed"] == 4 and set(reasons(record)) == {"failed: too long for the writer"}
    assert not written_in(config)


def test_a_model_without_a_chat_template_is_refused(passages, tokenizers, model_folders):
    with pytest.raises(InputError, match="has no chat template, so it follows no instruction"):
        write(passages, WriterConfig(model=str(model_folders["byte"])), tokenizers)


# --- kills and rivals -------------------------------------------------------------------------------------------------

PROCESS = """
import json, pickle, sys
from ctxft.models import load_tokenizer
from ctxft.prompts import load_prompt_set
from ctxft.extras.adaptive import write_prompts
from ctxft.config import WriterConfig

file, folder, values = sys.argv[1:]
passages = pickle.load(open(file, "rb"))
config = WriterConfig(**json.loads(values))
record = write_prompts(passages, config, load_prompt_set("strategies"), load_tokenizer(folder), lambda text: None)
print(json.dumps(record))
"""


def start(passages, config: WriterConfig, folder: Path, place: Path) -> subprocess.Popen:
    file = place / "passages.pickle"
    file.write_bytes(pickle.dumps(passages))
    environment = {**os.environ, "STUB_KEY": KEY, "PYTHONPATH": str(REPO_ROOT), "HF_DEBUG": "1"}
    command = [sys.executable, "-c", PROCESS, str(file), str(folder), json.dumps(config.model_dump())]
    with open(place / "said.txt", "a") as said:  # of a pipe that nobody reads the end comes soon
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=said)


def busy(passages):
    """Return a server's behaviour, and the messages that it replied to: some copied, some refused at first."""
    replied: list[str] = []

    def behave(number: int, body: dict) -> str:
        time.sleep(0.02)  # so that some are always in flight
        if number % 17 == 5:
            return "rate"
        replied.append(passage_of(body))
        if replied[-1].endswith(tuple("aeiou.")) and len(replied) % 9 == 4:
            return "text:" + " ".join(replied[-1].split("Text:\n")[1].split()[:12])
        return "good"

    return behave, replied


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("source", [practice, textbook])
def test_killed_three_times_nothing_is_asked_twice(source, tokenizers, model_folders, runs, tmp_path, monkeypatch):
    passages = source(tokenizers["byte"], 200)
    assert len(passages) == 200
    behave, replied = busy(passages)
    rng, said = random.Random(7), tmp_path / "said.txt"
    with StubServer(behave, "0.01") as stub:
        config = writer_of(stub, key_variable="STUB_KEY", retries=3, batch=4)
        path, messages = log_path(config), {}
        for _, query in jobs_of(passages, config, PROMPTS):
            messages[query.text] = query.key
        for _ in range(3):
            stored = set(read_records(path)[1])
            before = len(replied)
            target = before + rng.randint(5, 55)
            process = start(passages, config, model_folders["byte"], tmp_path)
            while process.poll() is None and len(replied) < target:
                time.sleep(rng.random() * 0.01)
            assert process.poll() is None, said.read_text()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            time.sleep(0.1)  # requests that were under way when it died
            assert not {messages[text] for text in replied[before:]} & stored  # what is stored is never asked again
            now = set(read_records(path)[1])
            assert stored < now and len(replied) - before - len(now - stored) <= config.batch  # those in flight
        stored, before = set(read_records(path)[1]), len(replied)
        monkeypatch.setenv("STUB_KEY", KEY)
        record = write(passages, config, tokenizers)
        assert not {messages[text] for text in replied[before:]} & stored
    assert sorted(read_records(path)[1]) == sorted(messages.values())
    assert len(path.read_bytes().splitlines()) == 1 + len(messages)  # every one, and none twice
    assert len(replied) <= len(messages) + 3 * config.batch
    assert record["failed"] == 0 and record["prompts"] + sum(record["rejected"].values()) == 200
    assert record["rejected"]["copies the passage"] > 0 and record["written"] == len(messages) - len(stored)
    headers = {head["authorization"] for _, head, _ in stub.requests}
    assert headers == {f"Bearer {KEY}"} and KEY not in said.read_text() + str(record)
    files = [file for file in runs.rglob("*") if file.is_file()]
    assert path in files and not [file for file in files if KEY.encode() in file.read_bytes()]


def test_two_processes_share_the_work(tokenizers, model_folders, runs, tmp_path, monkeypatch):
    passages = practice(tokenizers["byte"], 60)
    behave, replied = busy(passages)
    with StubServer(behave, "0.01") as stub:
        config = writer_of(stub, key_variable="STUB_KEY", retries=3)
        rival = start(passages, config, model_folders["byte"], tmp_path)
        while rival.poll() is None and not replied:
            time.sleep(0.01)
        monkeypatch.setenv("STUB_KEY", KEY)
        ours = write(passages, config, tokenizers)
        theirs = json.loads(rival.communicate(timeout=60)[0])
    assert max(Counter(replied).values()) == 1 and len(replied) == len(written_in(config))
    assert (theirs["written"], ours["written"]) == (len(replied), 0)
    assert theirs["prompts"] == ours["prompts"] > 50


# --- an experiment ----------------------------------------------------------------------------------------------------


def test_an_experiment_is_adapted(experiment):
    with StubServer(lambda number, body: "long" if number == 0 else "good") as stub:
        writer = {"model": "stub", "server": stub.url, "batch": 1, "price_in": 1.0, "price_out": 1.0}
        config = experiment(prompts={"writer": writer})
        with pytest.raises(InputError, match="not a run yet"):
            adapt(Run(config))
        prepare(config)
        with pytest.raises(InputError, match="no written prompts yet: run `ctxft prompts adapt CONFIG` first"):
            written_prompts(config)
        found = adapt(Run(config))
        asked = len(stub.requests)
        again = adapt(Run(config))
        assert len(stub.requests) == asked and again["rows"] == found["rows"]
    passages = read_passages(config.folder)
    assert asked == found["passages"] == len(passages) and again["cached"] == asked and again["paid"] == found["paid"]
    assert found["rejected"] == {"too long": 1} and found["prompts"] == asked - 1 and found["writer"]["model"] == "stub"
    assert read_json(config.folder / "adaptive.json") == again
    rows, prompts = again["rows"], written_prompts(config)
    assert list(prompts) == [row["passage"] for row in rows] == [passage.id for passage in passages]
    assert rows[0] == {"passage": passages[0].id, "prompt": None, "reason": "rejected: too long"}
    assert prompts[passages[0].id] is None
    assert prompts[passages[1].id].family == PROMPTS.sample(0, passages[1].id).family


def test_written_prompts_of_another_writer_are_refused(experiment):
    with StubServer(lambda number, body: "good") as stub:
        config = experiment(prompts={"writer": {"model": "stub", "server": stub.url}})
        prepare(config)
        adapt(Run(config))
    path = config.folder / "adaptive.json"
    path.write_text(path.read_text().replace("adaptive-", "adaptiv3-", 1))
    with pytest.raises(InputError, match="was changed"):
        written_prompts(config)
    prepare(config)  # so that it can be written again
    with StubServer(lambda number, body: "good"):
        adapt(Run(config))
    config.prompts.writer.instruction = "Write."
    with pytest.raises(InputError, match="by another writer"):
        written_prompts(config)


def test_an_item_of_a_benchmark_is_refused(experiment, tmp_path):
    question = {"id": "q", "question": "Why does it run so very far away?", "choices": ["wind", "sand"], "answer": 0}
    benchmark = write_jsonl(tmp_path / "leaky.jsonl", [question])
    with StubServer(lambda number, body: "text:Ask: why does it run so very far away?") as stub:
        config = experiment(
            prompts={"writer": {"model": "stub", "server": stub.url}}, evaluation={"benchmarks": [str(benchmark)]}
        )
        prepare(config)
        found = adapt(Run(config))
    assert found["prompts"] == 0 and found["rejected"] == {"gives away an item": found["passages"]}
    assert set(reasons(found)) == {"rejected: gives away leaky/q"}


def test_an_experiment_without_a_writer(experiment):
    with pytest.raises(InputError, match=r"set prompts\.writer"):
        adapt(Run(experiment()))
