"""What an arm reads goes to a tuning service in its own form and within its limits, and never with a benchmark item in it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ctxft.cli import main
from ctxft.config import to_mapping
from ctxft.evaluation.benchmarks import load_benchmark
from ctxft.extras.export import export_pairs
from ctxft.extras.tuning import FORMS, Pair, check_limits, lines_of
from ctxft.models import load_tokenizer
from ctxft.run.run import Run
from ctxft.storage import InputError, hash_file, read_json, write_jsonl
from tests.runs import prepare, read_passages, rows_of

GOOD = [Pair(f"d-{n}", "Read, then doubt.", f'Passage {n}, with a "mark",\nand ünïcödé 🙂.') for n in range(20)]


@pytest.fixture
def prepared(experiment, tmp_path, text_of) -> Callable:
    """The function that prepares a run of 24 documents, more texts added, and gives its config."""

    def make(texts: tuple[str, ...] = (), **values):
        rows = [{"id": f"d{n}", "text": text_of(300 + n, 9), "reliable": n % 3 > 0} for n in range(24)]
        rows += [{"id": f"more{n}", "text": text, "reliable": True} for n, text in enumerate(texts)]
        corpus = {"source": str(write_jsonl(tmp_path / "texts.jsonl", rows)), "held_out": 0.0}
        config = experiment(corpus=corpus, **values)
        prepare(config)
        return config

    return make


def pairs_in(path: Path, form: str) -> list[tuple[str, str]]:
    """Read a file of pairs back with what a service would use: a JSON or a CSV reader."""
    if form == "csv":
        with open(path, encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["input", "output"]
        return [tuple(row) for row in rows]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    if form == "chat":
        assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows)
        return [tuple(turn["content"] for turn in row["messages"]) for row in rows]
    assert all([turn["role"] for turn in row["contents"]] == ["user", "model"] for row in rows)
    return [tuple(part["text"] for turn in row["contents"] for part in turn["parts"]) for row in rows]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arm", ["cft", "neg", "control-shuffled", "adaptive", "only-critical"])
def test_pairs_are_those_that_the_arm_trains_on(prepared, tmp_path, form, arm):
    config = prepared()
    path = tmp_path / "out" / f"pairs-{form}"
    record = export_pairs(Run(config), arm, 3, form, path)
    passages = read_passages(config.folder)
    drawn = rows_of(config, arm, 3, passages, load_tokenizer(config.model))[1]
    assert pairs_in(path, form) == [(row["text"], p.text) for row, p in zip(drawn, passages, strict=True)]
    assert read_json(tmp_path / "out" / f"pairs-{form}.manifest.json") == json.loads(json.dumps(record))
    assert (record["run"], record["arm"], record["seed"], record["form"]) == ("tiny", arm, 3, form)
    assert record["pairs"] == len(passages) and record["documents"] == 24
    assert record["hashes"]["file"] == hash_file(path)
    assert record["limits"]["bytes of the file"]["found"] == path.stat().st_size
    assert str(tmp_path) not in path.read_text() + json.dumps(record), "a file for others tells no path of this machine"
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.manifest.json"]


def test_another_seed_draws_other_prompts_before_the_same_passages(prepared, tmp_path):
    config = prepared()
    first, second = (export_pairs(Run(config), "cft", seed, "chat", tmp_path / str(seed)) for seed in (0, 1))
    assert first["hashes"]["passages"] == second["hashes"]["passages"]
    assert first["hashes"]["drawn prompts"] != second["hashes"]["drawn prompts"]


def test_an_arm_without_prompts_goes_only_where_an_empty_turn_may(prepared, tmp_path):
    config = prepared()
    export_pairs(Run(config), "cpt", 0, "chat", tmp_path / "pairs")
    assert {prompt for prompt, _ in pairs_in(tmp_path / "pairs", "chat")} == {""}
    for form in ("gemini", "csv"):
        with pytest.raises(InputError, match=r"passage 'd0:?.*' has no prompt.*choose an arm"):
            export_pairs(Run(config), "cpt", 0, form, tmp_path / form)
        assert not (tmp_path / form).exists()


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("base", "trained on no text"),
        ("ift", "trained on no text"),
        ("cft-ift", "has a second stage"),
        ("cft-learned", "prompts are learned too"),
        ("reading", "exercises after each text"),
        ("only-critcal", "family in arm 'only-critcal'"),
        ("count-99", "more prompts than"),
        ("cff", "unknown arm 'cff' .did you mean 'cft'"),
    ],
)
def test_an_arm_without_such_pairs_is_refused(experiment, tmp_path, arm, said):
    with pytest.raises(InputError, match=said):
        export_pairs(Run(experiment()), arm, 0, "chat", tmp_path / "pairs")


def test_texts_that_hold_an_item_are_refused_whole_and_the_places_told(prepared, tmp_path, capsys):
    asked = "Which of the nine lamps beside the old barn was lit on the second evening of winter?"
    short, part = (
        "Who paints sheep?",
        "Where did the grey goose by the lake hide the seven plums it stole from us at noon?",
    )
    questions = {"q-long": asked, "q-short": short, "q-bare": "Who sells rain?", "q-part": part, "q-none": "Is it so?"}
    rows = [{"id": id, "question": text, "choices": ["Anna", "Bo"], "answer": 0} for id, text in questions.items()]
    exam = {"benchmarks": [str(write_jsonl(tmp_path / "exam.jsonl", rows))]}
    half = "The grey goose by the lake hide the seven, so they say, is made of stone."
    texts = (f"They asked him: {asked} He said Anna.", f"{short} Anna does.", "Who sells rain? Nobody knows.", half)
    config = prepared(texts, evaluation=exam)
    with pytest.raises(InputError) as told:
        export_pairs(Run(config), "cft", 0, "chat", tmp_path / "pairs")
    ids = {p.document: p.id for p in read_passages(config.folder)}
    assert f"2 benchmark items (item 'q-long' of exam in passage {ids['more0']}" in str(told.value)
    assert f"item 'q-short' of exam in passage {ids['more1']}" in str(told.value)
    assert "q-bare" not in str(told.value) and "q-part" not in str(told.value)
    assert not list(tmp_path.glob("pairs*")), "nothing is written"
    config = prepared(texts[2:], name="fewer", evaluation=exam)
    found = export_pairs(Run(config), "cft", 0, "chat", tmp_path / "pairs")["leaks"]["exam"]
    assert found["partial_ids"] == ["q-part"] and (found["partial"], found["short"], found["leaked"]) == (1, 1, 0)


def test_an_item_in_a_prompt_or_cut_between_passages_is_found_too(prepared, tmp_path, text_of):
    asked = f"Which of these {text_of(9, 14).replace('.', '').replace('?', '').replace('!', '')} is the last one"
    told = "Which small duck carries the salt across the bridge today?"
    rows = [
        {"id": f"q{n}", "question": text, "choices": ["a", "b"], "answer": 0} for n, text in enumerate((asked, told))
    ]
    book = tmp_path / "book.yaml"
    head = "name: own\nkind: strategy\nfamilies: {f: {idea: Ask.}}\n"
    book.write_text(f"{head}prompts: [{{id: p1, family: f, text: 'Ask yourself: {told}'}}]\n")
    exam = {"benchmarks": [str(write_jsonl(tmp_path / "exam.jsonl", rows))]}
    config = prepared((asked,), evaluation=exam, prompts={"strategies": str(book)})
    assert not any(asked in passage.text for passage in read_passages(config.folder)), "the question must be cut"
    with pytest.raises(InputError, match=r"item 'q0' of exam in passage .*; item 'q1' of exam in prompt p1"):
        export_pairs(Run(config), "cft", 0, "chat", tmp_path / "pairs")
    with pytest.raises(InputError, match=r"1 benchmark item \(item 'q0'"):
        export_pairs(Run(config), "neg", 0, "chat", tmp_path / "pairs")


def test_more_items_than_a_line_holds_are_counted(prepared, tmp_path):
    rows = [{"id": f"q{n}", "question": f"Number {n}?", "choices": ["it is so", "no"], "answer": 0} for n in range(13)]
    exam = {"benchmarks": [str(write_jsonl(tmp_path / "exam.jsonl", rows))]}
    config = prepared(tuple(f"Number {n}? It is so." for n in range(13)), evaluation=exam)
    for limit in (None, 1):  # of what is examined now; the rest may be examined later
        config.evaluation.limit = limit
        with pytest.raises(InputError) as told:
            export_pairs(Run(config), "cft", 0, "chat", tmp_path / "pairs")
        assert "13 benchmark items" in str(told.value) and "; and 3 more)" in str(told.value)


@pytest.mark.skipif("CTXFT_REAL_DATA" not in os.environ, reason="CTXFT_REAL_DATA names no folder of real data")
def test_the_questions_of_a_real_exam_are_refused_as_a_corpus(experiment, tmp_path):
    """As the authors' script had it: MedQA's test questions with their answers are the texts, and MedQA is the exam."""
    data = os.environ["CTXFT_REAL_DATA"]
    asked = load_benchmark("medqa", Path(data)).questions[:40]
    rows = [{"id": q.id, "text": f"Question: {q.question}\nAnswer: {q.choices[q.answer]}"} for q in asked]
    corpus = {"source": str(write_jsonl(tmp_path / "texts.jsonl", rows)), "held_out": 0.0}
    exam = {"benchmarks": ["medqa"], "data": data, "limit": 5}
    config = experiment(corpus=corpus, evaluation=exam)
    prepare(config)
    with pytest.raises(InputError, match=r"hold 40 benchmark items \(item '.*' of medqa in passage .*; and 30 more\)"):
        export_pairs(Run(config), "cft", 0, "csv", tmp_path / "pairs")


@pytest.mark.parametrize(
    ("form", "pairs", "message"),
    [
        ("chat", GOOD[:9], "takes at least 10 examples, and this run has 9 passages"),
        ("csv", GOOD[:19], "takes at least 20 examples, and this run has 19"),
        (
            "chat",
            [*GOOD, Pair("long", "Read.", "€" * 21_840)],
            r"passage 'long' has 65541 tokens of an example by the bound",
        ),
        (
            "gemini",
            [*GOOD, Pair("long", "Read.", "x" * 131_072)],
            r"passage 'long' has 131093 tokens.*\(1 of 21 passages",
        ),
        (
            "csv",
            [*GOOD, Pair("long", "Read.", "x" * 5_001)],
            "passage 'long' has 5001 characters of a passage.*takes 5000",
        ),
        ("csv", [*GOOD, Pair("long", "x" * 40_001, "Text.")], "passage 'long' has 40001 characters of a prompt"),
        ("csv", [Pair(str(n), "Read.", "x" * 5_000) for n in range(900)], "files of at most 4000000 bytes.* have 450"),
        ("chat", [*GOOD, Pair("void", "Read.", " \n")], "passage 'void' is blank"),
        ("gemini", [*GOOD, Pair("bare", "", "Text.")], "passage 'bare' has no prompt"),
        ("jsonl", GOOD, "unknown form 'jsonl'.*known: chat, gemini, csv"),
    ],
)
def test_a_broken_limit_is_told_with_the_passage(form, pairs, message):
    with pytest.raises(InputError, match=message):
        check_limits(pairs, form)


def test_what_is_just_within_the_limits_passes_and_is_told():
    within = [*GOOD, Pair("long", "x" * 40_000, "x" * 5_000)]
    found = check_limits(within, "csv")
    assert found["characters of a prompt"] == {"found": 40_000, "most": 40_000}
    assert found["characters of a passage"] == {"found": 5_000, "most": 5_000}
    assert found["bytes of the file"]["found"] == len("".join(lines_of(within, "csv")).encode())
    assert (
        check_limits([*GOOD, Pair("long", "", "x" * 65_520)], "chat")["tokens of an example, at most"]["found"]
        == 65_536
    )
    assert all(how.source and how.looked_up and how.file_bytes for how in FORMS.values())


def test_the_bound_of_tokens_holds_for_real_tokenizers(tokenizers):
    for tokenizer in tokenizers.values():
        for pair in GOOD:
            assert len(tokenizer(pair.text)["input_ids"]) <= len(pair.text.encode()) + 2  # its special tokens


def test_command_line(prepared, tmp_path, capsys, monkeypatch):
    config = prepared()
    source = tmp_path / "own.yaml"
    monkeypatch.chdir(tmp_path)
    source.write_text(yaml.safe_dump(to_mapping(config)))
    assert main(["export", str(source), "--form", "gemini", "--out", "pairs.jsonl"]) == 0
    said = capsys.readouterr().out
    assert f"{len(read_passages(config.folder))} pairs of 24 documents" in said and "own-questions: no item" in said
    assert main(["export", str(source), "--arm", "cff", "--out", "x"]) == 2
    assert "did you mean 'cft'?" in capsys.readouterr().err
    assert main(["export", str(source), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["export", "mini", "--set", "name=fresh", "--out", "x"]) == 2
    assert "is not a run yet" in capsys.readouterr().err and not (tmp_path / "x").exists()
