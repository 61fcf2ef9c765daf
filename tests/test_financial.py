"""Financial sets load from their authors' files and from the hub's shape, and refuse what is not theirs."""

from __future__ import annotations

import json
import types
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi

from ctxft.evaluation.benchmarks import load_benchmark
from ctxft.storage import InputError


def hub_rows(choices: list[str], texts: list[str], golds: list[int]) -> datasets.Dataset:
    rows = [
        {"id": f"x{n}", "query": f"Q: {t}", "answer": choices[g], "text": t, "choices": choices, "gold": g}
        for n, (t, g) in enumerate(zip(texts, golds, strict=True))
    ]
    return datasets.Dataset.from_list(rows)


HUB = {
    "fiqa": ("TheFinAI/flare-fiqasa", ["negative", "positive", "neutral"], 235),
    "causal20": ("TheFinAI/flare-causal20-sc", ["noise", "causal"], 8628),
    "multifin": ("TheFinAI/flare-multifin-en", ["Finance", "Technology"], 546),
}


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_shape_loads_from_the_hub_and_from_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, choices, expected = HUB[name]
    table = hub_rows(choices, ["Shares rise.", "Shares fall."], [1, 0])
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: types.SimpleNamespace(sha="c0ffee"))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or table)
    hub = load_benchmark(name)
    assert asked == [((repo, None), {"split": "test", "revision": "c0ffee"})]
    assert (hub.revision, hub.form, hub.note) == ("c0ffee", "labels", f"{expected} items expected, 2 found")
    assert [q.choices[q.answer] for q in hub.questions] == [choices[1], choices[0]] and hub.questions[
        0
    ].question == "Shares rise."
    table.to_parquet(tmp_path / repo.split("/")[1] / "data" / "test-00000-of-00001.parquet")
    table.to_parquet(tmp_path / repo.split("/")[1] / "data" / "train-00000-of-00001.parquet")
    local = load_benchmark(name, tmp_path)
    assert local.questions == hub.questions and local.revision is None
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: table.rename_column("gold", "label"))
    with pytest.raises(InputError, match=f"{repo}, row 1: no 'answer' .*'gold' is undefined.*, which holds key, id, "):
        load_benchmark(name)
    strange = hub_rows(["up", "down"], ["Shares rise."], [0])
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: strange)
    with pytest.raises(InputError, match=f"{repo}, row 1 .*: the answer 'up' must be the text of exactly one choice"):
        load_benchmark(name)


def write_lines(path: Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_fiqa_in_the_form_of_instructions(tmp_path: Path) -> None:
    path = tmp_path / "fiqa" / "some_fiqa_test.jsonl"
    write_lines(path, {"context": "Instruction: Which?\nInput: $XY up,\nat last\nAnswer: ", "target": "positive"})
    (question,) = load_benchmark("fiqa", tmp_path).questions
    assert (question.question, question.choices[question.answer]) == ("$XY up,\nat last", "positive")
    write_lines(path, {"context": "Shares rise.", "target": "positive"})
    with pytest.raises(InputError, match=r"some_fiqa_test.jsonl, line 1 .*: the record has no 'question'"):
        load_benchmark("fiqa", tmp_path)


def test_fiqa_aspects_are_one_question_a_target(tmp_path: Path) -> None:
    info = [{"target": name, "sentiment_score": score} for name, score in (("A", "0.11"), ("B", "-0.4"), ("C", "0.1"))]
    (tmp_path / "task1_post_ABSA_test.json").write_text(json.dumps({"7": {"sentence": "A beats B.", "info": info}}))
    benchmark = load_benchmark("fiqa-absa", tmp_path)
    assert [q.choices[q.answer] for q in benchmark.questions] == ["positive", "negative", "neutral"]
    assert benchmark.questions[1].question == "A beats B.\nTarget: B"
    assert benchmark.note == "1173 items expected, 3 found"
    with pytest.raises(InputError, match=r"not on the hub as a table: put task1_headline_ABSA_train.json"):
        load_benchmark("fiqa-absa")


def test_causal20_keeps_trial_and_practice_apart(tmp_path: Path) -> None:
    for folder, text in (
        ("trial", "Index; Text; Gold\n1; It fell.; 0\n2; It fell, so we sold.; 1\n3; ; 0\n"),
        ("practice", ""),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a-task1.csv").write_text(text)
    benchmark = load_benchmark("causal20", tmp_path)
    assert [(q.id, q.question, q.choices[q.answer]) for q in benchmark.questions] == [
        ("1", "It fell.", "noise"),
        ("2", "It fell, so we sold.", "causal"),
        ("3", "", "noise"),
    ]
    assert benchmark.note == "8580 items expected, 3 found; 1 without text, as published"
    assert load_benchmark("causal20", tmp_path / "trial").questions == benchmark.questions
    with pytest.raises(InputError, match="holds no question"):
        load_benchmark("causal20-practice", tmp_path)
    for line, message in (
        ("1; a; b; 0", "line 2 .*: the answer ' b; 0' must be the text of exactly one choice"),
        ("1", "line 2: no 'question' can be made of the record"),
        ("1; a; 2", "line 2 .*: the answer ' 2' must be the text of exactly one choice"),
    ):
        (tmp_path / "practice" / "a-task1.csv").write_text(f"Index; Text; Gold\n{line}\n")
        with pytest.raises(InputError, match=message):
            load_benchmark("causal20-practice", tmp_path)


def test_multifin_takes_the_english_lines(tmp_path: Path) -> None:
    row = {"text": "Total tax", "label": "Tax & Accounting", "lang": "English", "id": "a-1"}
    path = tmp_path / "multifin" / "test.json"
    write_lines(path, row, {**row, "text": "Skat", "lang": "Danish", "id": "a-2"})
    (question,) = load_benchmark("multifin", tmp_path).questions
    assert question.id == "a-1" and len(question.choices) == 6
    assert load_benchmark("multifin", tmp_path / "multifin").questions == (question,)
    write_lines(path, {**row, "label": "Weather"})
    with pytest.raises(InputError, match=r"line 1 .*: the answer 'Weather' must be the text of exactly one choice"):
        load_benchmark("multifin", tmp_path)


def test_phrasebank_is_latin_1_and_split_at_the_last_at(tmp_path: Path) -> None:
    text = "Fiskars \xe5 wrote to ir@example.com .@neutral\r\nProfit rose .@positive\n"
    (tmp_path / "Sentences_AllAgree.txt").write_bytes(text.encode("latin-1"))
    benchmark = load_benchmark("phrasebank-allagree", tmp_path)
    assert [(q.question, q.choices[q.answer]) for q in benchmark.questions] == [
        ("Fiskars å wrote to ir@example.com .", "neutral"),
        ("Profit rose .", "positive"),
    ]
    assert benchmark.note == "2264 items expected, 2 found"
    (tmp_path / "Sentences_AllAgree.txt").write_text("Profit rose .@up\n")
    with pytest.raises(InputError, match=r"AllAgree.txt, line 1 .*: the answer 'up' must be the text of exactly one"):
        load_benchmark("phrasebank-allagree", tmp_path)
    with pytest.raises(InputError, match=r"not on the hub as a table: put Sentences_50Agree.txt into DIR"):
        load_benchmark("phrasebank-50agree")


def test_a_limit_keeps_the_labels_of_a_sorted_file(tmp_path: Path) -> None:
    lines = [f"Sentence {n} .@{label}" for label in ("positive", "neutral", "negative") for n in range(10)]
    (tmp_path / "Sentences_AllAgree.txt").write_text("\n".join(lines))
    few = load_benchmark("phrasebank-allagree", tmp_path, limit=6).questions
    assert [q.answer for q in few] == [0, 0, 1, 1, 2, 2] and len({q.id for q in few}) == 6
    assert len(load_benchmark("phrasebank-allagree", tmp_path, limit=100).questions) == 30
