"""The leak check finds what was planted item by item, and tells wording, chance and leaks apart."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ctxft.cli import main
from ctxft.config import to_mapping
from ctxft.evaluation.benchmarks import Benchmark, Question, load_benchmark
from ctxft.leakage import BATCH, COMMON, LeakIndex, clean_table, documents_of, find_leaks, look_for_leaks
from ctxft.run.run import Run
from ctxft.storage import read_jsonl, write_jsonl, write_text
from tests.runs import check_leaks, evaluate_task, prepare, read_passages, texts_of

RANDOM = random.Random(5)
WORDS = [
    a + b + c
    for a in ("ka", "lo", "mi", "su", "te", "vo")
    for b in ("ra", "ne", "pi", "du")
    for c in ("n", "s", "ta", "x")
]


def sentence(words: int = 20) -> str:
    return " ".join(RANDOM.choices(WORDS, k=words))


def exam(items: int = 100) -> Benchmark:
    """Return questions of 20 random words, all of which end with the same nine."""
    end = "which of the following is the most likely cause?"
    questions = [
        Question(
            f"q{n}",
            f"{sentence().capitalize()} no{n}; {end}",
            (sentence(2), sentence(2), sentence(2), "none"),
            n % 3,
            "all",
        )
        for n in range(items)
    ]
    return Benchmark("exam", tuple(questions), "a test")


def verdicts(leaks: dict, name: str = "exam") -> dict[str, str]:
    return {item["id"]: item["verdict"] for item in leaks["benchmarks"][name]["items"]}


def test_thirty_planted_items_are_found_one_by_one() -> None:
    benchmark = exam()
    planted = random.Random(0).sample(benchmark.questions, 30)
    answered = {q.id for q in planted[:20]}
    texts = []
    for number, question in enumerate(planted):
        text = question.question
        if number in (0, 10, 25):  # other case and punctuation
            text = text.upper().replace(" ", " - ").replace("?", "!!")
        answer = question.choices[question.answer] if question.id in answered else "nobody knows"
        texts.append((f"doc {number}", f"{sentence(300)} {text} {answer} {sentence(300)}"))
    texts += [(f"honest {n}", sentence(600)) for n in range(30)]
    leaks = find_leaks([benchmark], texts)
    found = verdicts(leaks)
    assert {key for key, verdict in found.items() if verdict == "leaked"} == {q.id for q in planted}
    items = {item["id"]: item for item in leaks["benchmarks"]["exam"]["items"]}
    assert all(items[q.id]["places"] == [f"doc {n}"] and items[q.id]["share"] == 1 for n, q in enumerate(planted))
    assert {q.id for q in planted if items[q.id]["answered"]} == answered
    # The wording that all questions share was found too: said of every item, and held against none.
    assert sorted(set(found.values())) == ["common", "leaked"] and len(found) == 100
    assert leaks["benchmarks"]["exam"]["counts"]["common"] == 70 and leaks["texts"] == 60


def test_an_answer_without_its_question_says_nothing() -> None:
    benchmark = exam(10)
    text = " ".join(q.choices[q.answer] for q in benchmark.questions)
    assert verdicts(find_leaks([benchmark], [("doc", text)])) == {}


def test_short_questions_are_found_whole_and_counted_apart() -> None:
    questions = tuple(
        Question(str(n), text, ("up", "down"), 0, "all") for n, text in enumerate(("Shares rise again", "?!", "Cut"))
    )
    headlines = Benchmark("headlines", questions, "a test")
    leaks = find_leaks([headlines], [("doc", "all shares rise; again, a cut.")])
    assert verdicts(leaks, "headlines") == {"0": "short", "1": "unchecked", "2": "short"}
    assert verdicts(find_leaks([headlines], [("doc", "shares rise")]), "headlines") == {"1": "unchecked"}


def test_part_of_a_question_and_a_text_that_it_is_about() -> None:
    context = sentence(40)
    question = Question("1", sentence(12), ("yes", "no"), 0, "all", context)
    benchmark = Benchmark("abstracts", (question,), "a test")
    eight = " ".join(context.split()[10:18])
    assert [verdicts(find_leaks([benchmark], [("doc", text)]), "abstracts") for text in (eight, context)] == [
        {"1": "partial"},
        {"1": "leaked"},
    ]
    assert not find_leaks([benchmark], [("doc", " ".join(context.split()[10:17]))])["benchmarks"]["abstracts"]["items"]
    few = [Question(str(n), f"{eight} {sentence(3)}", ("yes", "no"), 0, "all") for n in range(COMMON)]
    for number, verdict in ((COMMON - 1, "partial"), (COMMON, "common")):
        leaks = find_leaks([Benchmark("few", tuple(few[:number]), "a test")], [("doc", eight)])
        assert set(verdicts(leaks, "few").values()) == {verdict}


@pytest.mark.parametrize(
    ("question", "answer", "before", "after"),
    [
        ("哪一种维生素缺乏会使伤口愈合得比平常慢得多？", "维生素丙", "大家都知道，", "。这是很久以前的说法"),
        ("古い橋のそばの湖に住んでいる魚の名前は何ですか", "コイ", "町の人はよく聞く。", "。と書いてある"),
        ("ปลาที่อาศัยอยู่ในทะเลสาบข้างสะพานเก่าชื่อว่าอะไร", "ปลาไน", "คนในเมืองมักถามว่า", "แล้วก็ไป"),
        ("오래된 다리 옆의 호수에 사는 물고기의 이름은 정말 무엇인가?", "잉어", "사람들이 묻는다. ", ". 끝"),
    ],
)
def test_questions_of_any_script_are_found_inside_running_text(question, answer, before, after) -> None:
    asked = Benchmark("own", (Question("1", question, (answer, "x"), 0, "all"),), "a test")
    (item,) = find_leaks([asked], [("doc", f"{before}{question}{answer}{after}")])["benchmarks"]["own"]["items"]
    assert (item["verdict"], item["answered"], item["share"]) == ("leaked", True, 1)
    half = question[: len(question) // 2]
    found = [verdicts(find_leaks([asked], [("doc", text)]), "own") for text in (before + after, before + half + after)]
    assert found[0] == {} and found[1] in ({}, {"1": "partial"})
    few = Benchmark("few", (Question("1", question[:6], (answer, "x"), 0, "all"),), "a test")
    assert verdicts(find_leaks([few], [("doc", f"{before}{question}{after}")]), "few") == {"1": "short"}


def test_several_indexes_find_what_one_finds() -> None:
    benchmarks = [exam(), exam(20)]
    benchmarks[1] = Benchmark("other", benchmarks[1].questions, "a test")
    asked = [q.question for benchmark in benchmarks for q in benchmark.questions]
    texts = [
        (f"doc {n}", " ".join([sentence(40), *RANDOM.sample(asked, n % 3), *asked[n : n + 1], sentence(n % 7)]))
        for n in range(200)
    ]
    texts += [("long", " ".join(text for _, text in texts * 20)), ("empty", ""), ("", asked[0]), ("last", asked[0])]
    whole, merged, part = find_leaks(benchmarks, texts), LeakIndex(benchmarks), LeakIndex(benchmarks)
    assert len(texts[200][1].split()) > BATCH
    for begin, end in ((0, 1), (1, 90), (90, 90), (90, 202), (202, len(texts))):
        for where, text in texts[begin:end]:
            part.read(where, text)
        merged.add(json.loads(json.dumps(part.take())))
    assert merged.result() == whole and whole["benchmarks"]["exam"]["counts"]["leaked"] > 50


def test_a_document_is_cut_where_passages_are_missing() -> None:
    passages = [
        SimpleNamespace(document=document, index=index, text=f"{document}{index} ")
        for document, index in (("a", 0), ("a", 1), ("b", 0), ("b", 2), ("b", 3), ("c", 1), ("d", 2))
    ]
    whole = [("a", "a0 a1 "), ("b", "b0 "), ("b", "b2 b3 "), ("c", "c1 "), ("d", "d2 ")]
    assert list(documents_of(passages)) == whole
    for cuts in itertools.combinations(range(1, 7), 2):
        parts = [documents_of(passages, *pair) for pair in itertools.pairwise((0, *cuts, 7))]
        assert [text for part in parts for text in part] == whole


def test_scores_on_the_clean_items_beside_those_on_all(experiment, questions_file) -> None:
    asked = [row["question"] for _, row in read_jsonl(questions_file)]
    corpus = write_jsonl(
        questions_file.with_name("leaked.jsonl"), [{"id": "d", "text": " ".join([sentence(), *asked[:4]])}]
    )
    config = experiment(corpus={"source": str(corpus), "held_out": 0.0})
    prepare(config)
    evaluate_task(config, "base", 0)
    leaks, outcomes = check_leaks(config), Run(config).outcomes("own-questions", "base")
    dirty = {item["id"] for item in leaks["benchmarks"]["own-questions"]["items"] if item["verdict"] == "short"}
    kept = [outcome["correct"] for outcome in outcomes if outcome["id"] not in dirty]
    assert len(dirty) == 4 and len(kept) == len(outcomes) - 4
    row = clean_table(leaks).to_dict("records")
    accuracies = [round(100 * sum(part) / len(part), 1) for part in ([o["correct"] for o in outcomes], kept)]
    assert [row[0][f"accuracy % {which}"] for which in ("all", "clean")] == accuracies and row[0]["clean"] == len(kept)


def test_a_run_is_checked_across_its_passages_and_in_its_prompts(experiment, tmp_path: Path, capsys) -> None:
    """One item stands where two passages of a document meet, one in a prompt of one's own book."""
    asked = f"which of these roads leads to the old house, {sentence(60)}?"  # longer than any passage, so it is cut
    prompted, absent = "how many lamps did the tall woman carry away?", "is there nothing like this anywhere at all?"
    rows = [
        {"id": str(n), "question": text, "choices": ["the first", "a second"], "answer": 0}
        for n, text in enumerate((asked, prompted, absent))
    ]
    exam_file = write_jsonl(tmp_path / "own.jsonl", rows)
    filler = "A plain row of words stands here for no reason. " * 4
    corpus = write_jsonl(tmp_path / "texts.jsonl", [{"id": "d", "text": f"{filler}{asked} The first. {filler}"}])
    book = tmp_path / "book.yaml"
    book.write_text(
        f"name: mine\nkind: strategy\nprompts:\n  - {{id: p1, family: context, text: 'Think: {prompted}'}}\n"
    )
    config = experiment(
        corpus={"source": str(corpus), "held_out": 0.0},
        prompts={"strategies": str(book)},
        evaluation={"benchmarks": [str(exam_file)]},
    )
    assert main(["leaks", str(write_text(tmp_path / "run.yaml", yaml.safe_dump(to_mapping(config))))]) == 0
    assert re.search(r"^ +own +3 +2 ", capsys.readouterr().out, flags=re.M) and not config.folder.exists()
    prepare(config)
    passages = read_passages(config.folder)
    assert len(passages) > 1 and not any(asked in passage.text for passage in passages), "the question must be cut"
    leaks = check_leaks(config)
    items = {item["id"]: item for item in leaks["benchmarks"]["own"]["items"]}
    assert (items["0"]["verdict"], items["0"]["places"], items["0"]["answered"]) == ("leaked", ["document d"], True)
    assert (items["1"]["verdict"], items["1"]["places"]) == ("leaked", ["prompt p1"]) and "2" not in items
    assert [where for where, _ in texts_of(config)][:2] == ["document d", "prompt p1"]
    before = sorted(config.folder.rglob("*"))
    assert main(["leaks", config.name, "--out", str(tmp_path / "leaks.json")]) == 0
    assert "leaks.json" in capsys.readouterr().out and json.loads((tmp_path / "leaks.json").read_text()) == leaks
    assert sorted(config.folder.rglob("*")) == before


def test_instructions_and_general_text_are_read_too(experiment, tmp_path: Path) -> None:
    own = exam(6)  # enough for the end that all share to count as common
    rows = [
        {"id": q.id, "question": q.question, "choices": list(q.choices), "answer": q.answer, "subject": q.subject}
        for q in own.questions
    ]
    asked, told = (question.question for question in own.questions[:2])
    pairs = [{"prompt": asked if n == 7 else sentence(), "response": "yes"} for n in range(30)]
    texts = [{"id": f"g{n}", "text": told if n == 3 else sentence(40)} for n in range(30)]
    values = {
        "ift": {"source": str(write_jsonl(tmp_path / "pairs.jsonl", pairs)), "max_steps": 1, "held_out": 0.0},
        "general": {"source": str(write_jsonl(tmp_path / "general.jsonl", texts)), "share": 0.1, "held_out": 0.0},
        "evaluation": {"benchmarks": [str(write_jsonl(tmp_path / "own.jsonl", rows))]},
    }

    def found(name: str, arms: list[str], share: float) -> dict:
        general = values["general"] | {"share": share}
        config = experiment({"max_length": 256}, name=name, arms=arms, **values | {"general": general})
        prepare(config)
        items = check_leaks(config)["benchmarks"]["own"]["items"]
        return {item["id"]: item["places"] for item in items if item["verdict"] == "leaked"}

    places = {own.questions[0].id: ["instruction 8"], own.questions[1].id: ["general text g3"]}
    assert found("both", ["cpt", "cpt-ift"], 0.1) == places
    assert found("neither", ["cpt"], 0.0) == {}  # what no arm reads is no leak


@pytest.mark.process
def test_several_processes_find_what_one_finds(experiment, questions_file, tmp_path: Path) -> None:
    asked = [row["question"] for _, row in read_jsonl(questions_file)]
    rows = [
        {"id": f"d{n}", "text": " ".join([sentence(60), *asked[n % 7 : n % 7 + 1], sentence(60)])} for n in range(40)
    ]
    source = str(write_jsonl(tmp_path / "leaked.jsonl", rows))
    pairs = str(write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": text, "response": "yes"} for text in asked * 3]))
    texts = {"corpus": {"source": source, "held_out": 0.1}, "general": {"source": source, "share": 0.1}}
    config = experiment(arms=["cpt", "cpt-ift"], ift={"source": pairs, "max_steps": 1}, **texts)
    prepare(config)
    before = sorted(config.folder.rglob("*"))
    found = look_for_leaks(Run(config))
    assert found["benchmarks"]["own-questions"]["counts"]["short"] == 6 and found["texts"] > 80
    assert look_for_leaks(Run(config), workers=2) == found
    assert sorted(config.folder.rglob("*")) == before


@pytest.mark.skipif("CTXFT_REAL_DATA" not in os.environ, reason="CTXFT_REAL_DATA names no folder of real data")
def test_honest_texts_of_more_than_a_million_words_leak_nothing() -> None:
    data = Path(os.environ["CTXFT_REAL_DATA"])
    names = ("mmlu-medical", "medqa", "pubmedqa-labelled", "fiqa", "causal20", "multifin")
    benchmarks = [load_benchmark(name, data) for name in names]
    texts = [
        (row["id"], row["text"])
        for path in sorted((data / "corpora").glob("*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]
    leaks = find_leaks(benchmarks, texts)
    assert leaks["words"] > 1_000_000
    assert [found["counts"]["leaked"] for found in leaks["benchmarks"].values()] == [0] * len(names)
    partial = sum(found["counts"]["partial"] for found in leaks["benchmarks"].values())
    assert 0 < partial < 0.01 * sum(len(benchmark.questions) for benchmark in benchmarks)
