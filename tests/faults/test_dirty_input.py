"""Whatever stands in a file, a config or a reply: it is taken, or refused in one sentence that says where; nothing else happens.

Each test tries ``CTXFT_EXAMPLES`` examples (150 by default); the summary says how many ran in all.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ctxft.config import CorpusConfig, EvaluationConfig, ExperimentConfig, ServerConfig, from_mapping, load_experiment
from ctxft.data.documents import Document, read_documents
from ctxft.data.instructions import instruction_rows, read_instructions
from ctxft.data.ngrams import grams_of, words_of
from ctxft.data.passages import cut
from ctxft.data.rows import IGNORE_INDEX, build_row, prompt_ids, special_tokens
from ctxft.evaluation.benchmarks import Benchmark, Question, load_benchmark, requests_of
from ctxft.evaluation.outcomes import parse_answer
from ctxft.evaluation.scoring import encode_pair
from ctxft.extras.server import Query, Reply, Server, ServerError
from ctxft.leakage import find_leaks
from ctxft.models import encode_text, load_tokenizer
from ctxft.options import read_settings
from ctxft.prompts import ContextualPrompt, load_prompt_set
from ctxft.storage import RecordLog, read_records, write_jsonl
from tests.faults.dirt import broken, changed, dump, dump_lines, nested, refused, texts, values
from tests.stub_server import StubServer


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder for the files of all examples, each written over the one before."""
    return tmp_path_factory.mktemp("dirty")


@pytest.fixture(scope="module")
def every_tokenizer(tokenizers) -> dict:
    return {**tokenizers, "practice": load_tokenizer("practice-blind")}


# --- corpora ----------------------------------------------------------------------------------------------------------

DOCUMENT = {
    "id": "d1",
    "text": "The heart pumps blood. It has four chambers.",
    "reliable": True,
    "more": {"year": [2020]},
}


def documents(path: Path) -> list[Document]:
    return list(read_documents(CorpusConfig(source=str(path)), Counter()))


@given(rows=st.lists(changed(DOCUMENT), min_size=1, max_size=3))
def test_records_of_a_corpus(place, tried, rows):
    tried()
    path = dump_lines(place / "corpus.jsonl", rows)
    if refused(lambda: documents(path), str(path)) is None:
        found = documents(path)
        assert len(found) == len(rows) == len({document.id for document in found})
        write_jsonl(place / "again.jsonl", (vars(document) for document in found))  # UTF-8 can hold it all


@given(
    content=broken(json.dumps(DOCUMENT).encode() + b"\n"), suffix=st.sampled_from((".jsonl", ".json", ".csv", ".md"))
)
def test_bytes_of_a_corpus(place, tried, content, suffix):
    tried()
    path = place / f"bytes{suffix}"
    path.write_bytes(content)
    refused(lambda: documents(path), str(path))


@pytest.fixture(scope="module")
def tables(place) -> dict[str, bytes]:
    """A small table in each format of bytes."""
    table = pyarrow.table({"id": ["a", "b", "c"], "text": ["One text.", "Another text.", "A third."]})
    pyarrow.parquet.write_table(table, place / "good.parquet")
    lines = dump_lines(place / "good.jsonl", table.to_pylist()).read_bytes()
    files = {".parquet": (place / "good.parquet").read_bytes(), ".jsonl.gz": gzip.compress(lines)}
    files[".jsonl.zst"] = pyarrow.compress(lines, codec="zstd", asbytes=True)
    for name, new in (("file.arrow", pyarrow.ipc.new_file), ("stream.arrow", pyarrow.ipc.new_stream)):
        with new(place / name, table.schema) as writer:
            writer.write_table(table)
        files[f".{name}"] = (place / name).read_bytes()
    return files


@given(data=st.data(), suffix=st.sampled_from((".parquet", ".jsonl.gz", ".jsonl.zst", ".file.arrow", ".stream.arrow")))
def test_bytes_of_a_table(place, tables, tried, data, suffix):
    tried()
    path = place / f"bad{suffix}"
    path.write_bytes(data.draw(broken(tables[suffix])))
    refused(lambda: documents(path), str(path))


@given(text=texts.filter(lambda text: text.strip() and "\ud800" not in text), budget=st.integers(1, 60))
def test_any_text_is_cut_and_laid_out_without_a_loss(every_tokenizer, tried, text, budget):
    tried()
    text = text.encode("utf-8", "replace").decode()
    for tokenizer in every_tokenizer.values():
        passages = cut(Document("d", text, "here"), tokenizer, budget)
        ids, starts = encode_text(tokenizer, text)
        assert [i for passage in passages for i in passage.ids] == ids
        assert "".join(passage.text for passage in passages) == text[starts[0] if starts else 0 :]
        assert all(len(passage.ids) <= budget for passage in passages)
        assert [passage.last for passage in passages] == [False] * (len(passages) - 1) + [True]
        special = special_tokens(tokenizer)
        for passage in passages:
            row = build_row(passage, prompt_ids(tokenizer, ContextualPrompt("p", "f", text, "strategy")), special)
            learned = [label for label in row["labels"] if label != IGNORE_INDEX]
            assert learned == [*passage.ids, *([special.eos] if passage.last else [])]
            assert len(row["input_ids"]) == len(row["labels"])


# --- benchmarks -------------------------------------------------------------------------------------------------------

OWN = {"id": "q1", "question": "Which?", "choices": ["this", "that"], "answer": 1, "subject": "s", "context": "A text."}
CHOICES = ["positive", "neutral", "negative"]
HUB = {"id": "x", "query": "q", "text": "Shares rose.", "choices": CHOICES, "gold": 0}
ABSA = {"7": {"sentence": "Shares rose.", "info": [{"target": "Shares", "sentiment_score": "0.5", "snippets": "x"}]}}
PQAL = {"11": {"QUESTION": "Does it?", "CONTEXTS": ["One.", "Two."], "final_decision": "yes"}}
MULTIFIN = {"id": "m1", "text": "Taxes go up", "label": "Tax & Accounting", "lang": "English"}
MEDQA = {"question": "Which?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer_idx": "B", "answer": "b"}
MEDMCQA = {"question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2, "subject_name": "Anatomy"}
FIQA = {"context": "What is it?\nInput: Shares rose.\nAnswer: ", "target": "positive"}
LAYOUTS = {  # name -> (file below the data folder, a good record, whether the file holds many)
    "medqa": ("medqa/phrases_no_exclude_test.jsonl", MEDQA, True),
    "medmcqa": ("openlifescienceai-medmcqa/validation.jsonl", MEDMCQA, True),
    "pubmedqa": ("ori_pqal.json", PQAL, False),
    "fiqa": ("fiqa/test.jsonl", FIQA, True),
    "fiqa-absa": ("task1_headline_ABSA_train.json", ABSA, False),
    "causal20": ("flare-causal20-sc/test.jsonl", HUB | {"choices": ["noise", "causal"]}, True),
    "multifin": ("multifin/test.json", MULTIFIN, True),
}


def ask_all(benchmark: Benchmark) -> None:
    """Write a benchmark out as a model would be asked it, and as its outcomes would be filed."""
    for question in benchmark.questions:
        json.dumps([question.id, question.subject, question.hash], ensure_ascii=False).encode()
    for context, continuations in requests_of(benchmark, EvaluationConfig(form="mcf")):
        "".join([context, *continuations]).encode()


@given(rows=st.lists(changed(OWN), min_size=1, max_size=3))
def test_questions_of_ones_own(place, tried, rows):
    tried()
    path = dump_lines(place / "own.jsonl", rows)
    refused(lambda: ask_all(load_benchmark(str(path))), str(path))


@given(data=st.data(), name=st.sampled_from(sorted(LAYOUTS)))
def test_questions_of_published_layouts(place, tried, data, name):
    tried()
    file, good, many = LAYOUTS[name]
    bad = data.draw(changed(good) if data.draw(st.integers(0, 4)) else values)
    path = place / name / file
    dump_lines(path, [good | {"id": "m2"}, bad]) if many else dump(path, bad)
    refused(lambda: ask_all(load_benchmark(name, place / name)), str(place / name))


def mmlu(question: str, *choices: str) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerow([question, *choices])
    return file.getvalue().encode()


TABLES = {
    "mmlu-anatomy": ("anatomy_test.csv", mmlu("Which, of these?", "a", 'b "quoted"', "c", "d", "B")),
    "causal20": ("trial/fnp2020-task1.csv", b"Index; Text; Gold\n1.0; Profits fell because of rain.; 1\n2.0; It rained.; 0\n"),
    "phrasebank-allagree": ("Sentences_AllAgree.txt", b"Profit rose to 5 mln .@positive\nIt did not .@neutral\n"),
    "medqa": ("medqa/phrases_no_exclude_test.jsonl", json.dumps(MEDQA).encode() + b"\n"),
    "pubmedqa": ("ori_pqal.json", json.dumps(PQAL).encode()),
}  # fmt: skip


@given(data=st.data(), name=st.sampled_from(sorted(TABLES)))
def test_bytes_of_published_layouts(place, tried, data, name):
    tried()
    file, good = TABLES[name]
    path = place / f"bytes-{name}" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(broken(good)))
    refused(lambda: ask_all(load_benchmark(name, place / f"bytes-{name}")), str(path))


# --- instructions, prompt books ---------------------------------------------------------------------------------------

INSTRUCTIONS = [
    {"id": "i1", "prompt": "Why?", "response": "Because."},
    {"id": "i2", "instruction": "Sum up.", "input": "A text.", "output": "Text."},
    {"id": "i3", "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
]


@given(rows=st.lists(st.sampled_from(INSTRUCTIONS).flatmap(changed), min_size=1, max_size=2))
def test_instructions(place, tried, every_tokenizer, rows):
    tried()
    path = dump_lines(place / "instructions.jsonl", rows)
    for tokenizer in every_tokenizer.values():
        made = []

        def make(tokenizer=tokenizer, made=made):
            made.extend(instruction_rows(read_instructions(str(path)), tokenizer, 4096, Counter()))

        if refused(make, str(path)) is None:
            assert all(len(row["input_ids"]) == len(row["labels"]) for row in made)
            write_jsonl(place / "again.jsonl", made)


BOOK = {
    "name": "mine", "kind": "strategy", "version": 2, "separator": "\n\n", "placement": "before",
    "families": {"drawing": {"idea": "Sketch it.", "weight": 2}},
    "prompts": [{"id": "d-1", "family": "drawing", "text": "Sketch what follows."}],
}  # fmt: skip


@given(book=changed(BOOK))
def test_prompt_books(place, tried, book):
    tried()
    path = place / "book.yaml"
    # JSON is YAML, and json writes halves of characters and odd keys that a dumper of YAML would not
    path.write_text(json.dumps(book), encoding="utf-8")
    if refused(lambda: load_prompt_set(path), str(path)) is None:
        found = load_prompt_set(path)
        assert found.prompts and found.sample(0, "p") in found.prompts
        json.dumps(found.to_dict(), ensure_ascii=False).encode()


@given(content=broken(yaml.safe_dump(BOOK).encode()))
def test_bytes_of_a_prompt_book(place, tried, content):
    tried()
    path = place / "bytes.yaml"
    path.write_bytes(content)
    refused(lambda: load_prompt_set(path), str(path))


# --- configs ----------------------------------------------------------------------------------------------------------

CONFIG = {
    "name": "mine", "model": "practice-blind", "arms": ["base", "cpt", "cft"], "seeds": [0], "revision": None,
    "corpus": {"source": "practice", "held_out": 0.1, "limit": 5, "unreliable": 0.0, "wordings": "seen"},
    "prompts": {"strategies": "strategies", "writer": {"model": "m", "server": "http://localhost:1/v1", "timeout": 3.0}},
    "train": {"max_length": 128, "learning_rate": 1e-4, "max_steps": 1, "lora": {"r": 8, "target_modules": ["all-linear"]}},
    "evaluation": {"benchmarks": ["practice-mmlu"], "form": "cloze", "num_fewshot": 0, "revisions": []},
    "general": {"source": "practice-old", "share": 0.2}, "ift": {"source": "practice", "limit": 3},
}  # fmt: skip


@given(mapping=changed(CONFIG))
def test_configs(runs, tried, mapping):
    tried()

    def check() -> None:
        config = from_mapping(ExperimentConfig, mapping, "my.yaml")
        assert config.folder.parent == runs and config.folder.name == config.name  # no name leads elsewhere
        json.dumps(config.identity(), ensure_ascii=False).encode()

    refused(check, "my.yaml")


@given(
    key=st.sampled_from(("name", "train.max_length", "train.lora.r", "corpus.source", "a..b", "arms", ".")), value=texts
)
def test_settings_of_a_command_line(runs, tried, key, value):
    tried()

    def check() -> None:
        config = load_experiment("mini", read_settings([f"{key}={value}"]))
        assert config.folder.parent == runs

    refused(check, "--set", "mini.yaml", key)


BOMB = "c0: &c0 [x, x]\n" + "".join(f"c{n}: &c{n} [*c{n - 1}{f', *c{n - 1}' * 8}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "write out more than"),
        ("a: &a\n  <<: [*a]\n", "an alias within its own anchor"),
        ("name: &n [*n]\n", "an alias within its own anchor"),
        (f"name: {nested(3000)}\n", "nested too deeply"),
        ("name: 2001-99-99\n", "none of its kind"),
        ("name: !!int ''\n", "none of its kind"),
        ("name: !!timestamp x\n", "none of its kind"),
        ("name: !!bool x\n", "none of its kind"),
        ("seeds: [" + "9" * 5000 + "]\n", "none of its kind"),
        ('name: "\\ud800"\n', "line 1: a text holds a lone surrogate"),
        ('name: "\\UFFFFFFFF"\n', "none of its kind"),
        ("name: !!python/object/apply:os.system ['true']\n", "invalid YAML"),
        ("{[a]: b}\n", "invalid YAML"),
        ("name: x\n--- \nname: y\n", "invalid YAML"),
        ("name: \x00\n", "invalid YAML"),
    ],
)  # fmt: skip
def test_yaml_that_would_never_end(runs, tmp_path, text, said):
    for file, read in (("my.yaml", load_experiment), ("book.yaml", load_prompt_set)):
        path = tmp_path / file
        path.write_text(text, encoding="utf-8")
        assert said in refused(lambda read=read, path=path: read(path), str(path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (nested(100_000), "nested too deeply"),
        (nested(100_000, "{"), "nested too deeply"),
        ('{"id": ' + "9" * 5000 + ', "text": "A text."}', "thousands of digits"),
        ('{"id": "a", "id": "b", "text": "A text."}', "the key 'id' is there twice"),
        ('{"id": "\\udc00", "text": "A text."}', "lone surrogate"),
        ('{"id": NaN, "text": "A text."}', "the id must be"),
        ('{"id": ["a"], "text": "A text."}', "the id must be"),
        ('{"id": true, "text": "A text."}', "the id must be"),
        ('{"id": "", "text": "A text."}', "the id must be"),
    ],
)
def test_a_line_of_a_corpus_that_no_program_should_write(place, line, said):
    path = place / "line.jsonl"
    path.write_text('{"id": "ok", "text": "A text."}\n' + line + "\n", encoding="utf-8")
    told = refused(lambda: documents(path), f"{path}, line 2")
    assert told is not None and said in told


@pytest.mark.parametrize(
    "name",
    [
        "../up",
        "a/b",
        "a\\b",
        "/tmp",
        "..",
        ".",
        ".hidden",
        "",
        " a",
        "a ",
        "a\n",
        "a\x00",
        "a\u202eb",
        "n" * 300,
        "C:x",
    ],
)
def test_names_of_runs_that_lead_elsewhere_or_hide(runs, name):
    assert "name: must be a plain folder name" in refused(lambda: load_experiment("mini", {"name": name}), "name")
    assert not runs.exists()


# --- answers, replies, leaks ------------------------------------------------------------------------------------------


@given(text=texts, labels=st.lists(texts.filter(str.strip), min_size=2, max_size=5, unique=True))
def test_answers_that_models_write(tried, text, labels):
    tried()
    found = parse_answer(text, labels)
    assert found is None or found in range(len(labels))
    assert parse_answer(f" {text}", "ABCDE"[: len(labels)], labels) in (None, *range(len(labels)))


@given(context=texts, choice=texts.filter(str.strip))
def test_texts_that_are_scored(every_tokenizer, tried, context, choice):
    tried()
    context, choice = (text.encode("utf-8", "replace").decode() for text in (context, choice))
    for tokenizer in every_tokenizer.values():
        pair: list = []
        if (
            refused(
                lambda t=tokenizer, p=pair: p.extend(encode_pair(t, context, f" {choice}")), "nothing is left to score"
            )
            is None
        ):
            assert all(pair)


COMPLETION = {
    "choices": [{"index": 0, "text": "B", "message": {"role": "assistant", "content": "B"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1}, "model": "m", "object": "chat.completion",
}  # fmt: skip


@pytest.fixture(scope="module")
def said() -> dict:
    return {}


@pytest.fixture(scope="module")
def server(said):
    """A server that replies with whatever bytes and status stand in ``said``."""

    def behave(number: int, body: dict) -> str:
        return "raw"

    with StubServer(behave) as stub:
        stub.server.RequestHandlerClass.raw = lambda handler, body: handler.send(said["status"], said["content"])
        yield Server(ServerConfig(url=stub.url, model="m", retries=0, timeout=20.0))


@given(data=st.data(), status=st.sampled_from((200, 200, 200, 400, 401, 404, 418, 500)), chat=st.booleans())
def test_replies_of_a_server(place, server, said, tried, data, status, chat):
    tried()
    good = json.dumps(COMPLETION).encode()
    kinds = (
        changed(COMPLETION).map(lambda value: json.dumps(value).encode()),
        texts.map(lambda text: json.dumps(COMPLETION).replace('"B"', json.dumps(text)).encode()),
        broken(good),
        st.just(nested(50_000).encode()),
    )
    said |= {"status": status, "content": data.draw(st.one_of(*kinds))}
    try:
        reply = server.reply(Query("q", "q", 9, plain=not chat))
    except ServerError as error:
        assert server.config.url in str(error) and str(error).isprintable()
        return
    except ValueError as error:
        assert status in (401, 404) and str(error).isprintable() and server.config.url in str(error)
        return
    assert isinstance(reply, Reply) and isinstance(reply.text, str)
    path = place / "answers.log"
    path.unlink(missing_ok=True)
    with RecordLog(path) as log:
        log.add("key", vars(reply))
    assert Reply(**read_records(path)[1]["key"]) == reply  # half a character comes back too


@given(question=texts, text=texts, before=texts)
def test_leaks_are_looked_for_in_any_text(tried, question, text, before):
    tried()
    asked = Benchmark("own", (Question("1", question, ("a", "b"), 0, "all"),), "here")
    found = find_leaks([asked], [("doc", f"{before} {question} {text}"), ("other", text)])["benchmarks"]["own"]
    words = words_of(question)
    wanted = "unchecked" if not words else "leaked" if any(grams_of(words)) else "short"
    assert sum(found["counts"].values()) == 1 == found["counts"][wanted]
