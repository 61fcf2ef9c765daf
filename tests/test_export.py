"""What an arm trains on is exported in the shapes of tuning libraries, and never with a benchmark item in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ctxft.cli import main
from ctxft.config import to_mapping
from ctxft.evaluation.benchmarks import load_benchmark
from ctxft.extras.export import FORMS, export_pairs
from ctxft.run.run import Run
from ctxft.storage import InputError, hash_file, read_json, write_jsonl
from tests.runs import rows_of


@pytest.fixture
def prepared(experiment, tmp_path, text_of) -> Callable:
    """The function that prepares a run of 24 documents, more texts added, and returns it."""

    def make(texts: tuple[str, ...] = (), **values):
        rows = [{"id": f"d{n}", "text": text_of(300 + n, 9), "reliable": n % 3 > 0} for n in range(24)]
        rows += [{"id": f"more{n}", "text": text, "reliable": True} for n, text in enumerate(texts)]
        corpus = {"source": str(write_jsonl(tmp_path / "texts.jsonl", rows)), "held_out": 0.0}
        return Run(experiment(corpus=corpus, **values)).prepare()

    return make


def pairs_in(path: Path, form: str) -> list[tuple[str, str]]:
    """Read a file of pairs back."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    if form == "prompt-completion":
        assert all(list(row) == ["prompt", "completion"] for row in rows)
        return [tuple(row.values()) for row in rows]
    assert all([turn["role"] for turn in row["contents"]] == ["user", "model"] for row in rows)
    return [tuple(part["text"] for turn in row["contents"] for part in turn["parts"]) for row in rows]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arm", ["cft", "neg", "control-shuffled", "adaptive", "only-critical"])
def test_pairs_are_those_that_the_arm_trains_on(prepared, tmp_path, form, arm):
    run = prepared()
    path = tmp_path / "out" / f"pairs-{form}"
    record = export_pairs(run, arm, 3, form, path)
    sampled = rows_of(run.config, arm, 3, run.passages, run.tokenizer)[1]
    assert pairs_in(path, form) == [(row["text"], p.text) for row, p in zip(sampled, run.passages, strict=True)]
    assert read_json(tmp_path / "out" / f"pairs-{form}.manifest.json") == json.loads(json.dumps(record))
    assert (record["run"], record["arm"], record["seed"], record["form"]) == ("tiny", arm, 3, form)
    assert record["pairs"] == len(run.passages) and record["documents"] == 24
    assert record["hashes"]["file"] == hash_file(path)
    assert str(tmp_path) not in path.read_text() + json.dumps(record), "a file for others holds no path of this machine"
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.manifest.json"]


def test_another_seed_samples_other_prompts_before_the_same_passages(prepared, tmp_path):
    run = prepared()
    first, second = (export_pairs(run, "cft", seed, "vertex", tmp_path / str(seed)) for seed in (0, 1))
    assert first["hashes"]["corpus"] == second["hashes"]["corpus"]
    assert first["hashes"]["sampled prompts"] != second["hashes"]["sampled prompts"]


def test_an_arm_without_prompts_goes_only_where_an_empty_turn_may(prepared, tmp_path):
    run = prepared()
    export_pairs(run, "cpt", 0, "prompt-completion", tmp_path / "pairs")
    assert {prompt for prompt, _ in pairs_in(tmp_path / "pairs", "prompt-completion")} == {""}
    with pytest.raises(InputError, match="arm 'cpt' has no prompts, and Vertex AI takes no empty turn"):
        export_pairs(run, "cpt", 0, "vertex", tmp_path / "vertex")
    assert not (tmp_path / "vertex").exists()
    with pytest.raises(InputError, match=r"unknown form 'jsonl'.*known: prompt-completion, vertex"):
        export_pairs(run, "cft", 0, "jsonl", tmp_path / "pairs")


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
        export_pairs(Run(experiment()), arm, 0, "vertex", tmp_path / "pairs")


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
    run = prepared(texts, evaluation=exam)
    with pytest.raises(InputError) as told:
        export_pairs(run, "cft", 0, "vertex", tmp_path / "pairs")
    assert "benchmark items, 2 in all (item 'q-long' of exam in document more0" in str(told.value)
    assert "item 'q-short' of exam in document more1" in str(told.value)
    assert "q-bare" not in str(told.value) and "q-part" not in str(told.value)
    assert not list(tmp_path.glob("pairs*")), "nothing is written"
    run = prepared(texts[2:], name="fewer", evaluation=exam)
    found = export_pairs(run, "cft", 0, "vertex", tmp_path / "pairs")["leaks"]["exam"]
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
    run = prepared((asked,), evaluation=exam, prompts={"strategies": str(book)})
    assert not any(asked in passage.text for passage in run.passages), "the question must be cut"
    with pytest.raises(InputError, match=r"item 'q0' of exam in document more0; item 'q1' of exam in prompt p1"):
        export_pairs(run, "cft", 0, "vertex", tmp_path / "pairs")
    with pytest.raises(InputError, match=r"benchmark items, 1 in all \(item 'q0'"):
        export_pairs(run, "neg", 0, "vertex", tmp_path / "pairs")


def test_more_items_than_a_line_holds_are_counted(prepared, tmp_path):
    rows = [{"id": f"q{n}", "question": f"Number {n}?", "choices": ["it is so", "no"], "answer": 0} for n in range(13)]
    exam = {"benchmarks": [str(write_jsonl(tmp_path / "exam.jsonl", rows))]}
    run = prepared(tuple(f"Number {n}? It is so." for n in range(13)), evaluation=exam)
    for limit in (None, 1):  # of what is examined now; the rest may be examined later
        run.wanted.evaluation.limit = limit
        with pytest.raises(InputError) as told:
            export_pairs(run, "cft", 0, "vertex", tmp_path / "pairs")
        assert "13 in all" in str(told.value) and str(told.value).count("item 'q") == 10


@pytest.mark.skipif("CTXFT_REAL_DATA" not in os.environ, reason="CTXFT_REAL_DATA names no folder of real data")
def test_the_questions_of_a_real_exam_are_refused_as_a_corpus(experiment, tmp_path):
    """As the authors' script had it: MedQA's test questions with their answers are the texts, and MedQA is the exam."""
    data = os.environ["CTXFT_REAL_DATA"]
    asked = load_benchmark("medqa", Path(data)).questions[:40]
    rows = [{"id": q.id, "text": f"Question: {q.question}\nAnswer: {q.choices[q.answer]}"} for q in asked]
    corpus = {"source": str(write_jsonl(tmp_path / "texts.jsonl", rows)), "held_out": 0.0}
    exam = {"benchmarks": ["medqa"], "data": data, "limit": 5}
    run = Run(experiment(corpus=corpus, evaluation=exam)).prepare()
    with pytest.raises(InputError, match=r"contain benchmark items, 40 in all \(item '.*' of medqa in document "):
        export_pairs(run, "cft", 0, "vertex", tmp_path / "pairs")


def test_command_line(prepared, tmp_path, capsys, monkeypatch):
    run = prepared()
    source = tmp_path / "own.yaml"
    monkeypatch.chdir(tmp_path)
    source.write_text(yaml.safe_dump(to_mapping(run.wanted)))
    assert main(["export", str(source), "--form", "vertex", "--out", "pairs.jsonl"]) == 0
    said = capsys.readouterr().out
    assert f"{len(run.passages)} pairs of 24 documents" in said and "own-questions: no item" in said
    assert main(["export", str(source), "--arm", "cff", "--out", "x"]) == 2
    assert "did you mean 'cft'?" in capsys.readouterr().err
    assert main(["export", str(source), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["export", "mini", "--set", "name=fresh", "--out", "x"]) == 2
    assert "is not a run yet" in capsys.readouterr().err and not (tmp_path / "x").exists()
