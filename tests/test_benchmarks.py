"""Benchmarks load from every published layout and refuse bad records."""

from __future__ import annotations

import collections
import csv
import json
import os
import types
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi

from ctxft.evaluation.benchmarks import Question, benchmark_names, load_benchmark
from ctxft.evaluation.evaluate import evaluate
from ctxft.models import load_model, load_tokenizer
from ctxft.storage import InputError, sha256

ITEMS = [
    ("Which vessel carries blood away from the heart?", ["vein", "artery", "nerve", "duct"], 1),
    ('A "dished face", it is said,\nis a sign of', ["age", "it's, rare", "acromegaly", "10\\4"], 2),
    ("Stem with spaces? ", ["1", "2", "3", "4"], 3),
]
SUBJECTS = [
    name.removeprefix("mmlu-") for name in benchmark_names() if name.startswith("mmlu-") and "medical" != name[5:]
]
MEDQA_ROW = {
    "question": "A man falls.",
    "options": {"A": "rest", "B": "x-ray", "C": "cast", "D": "ice"},
    "answer_idx": "B",
}


def write_csv(path: Path, header: bool = True, letters: bool = False, items: list = ITEMS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
        for question, choices, answer in items:
            writer.writerow([question, *choices, "ABCD"[answer] if letters else answer])
    return path


def write_lines(path: Path, *rows: dict | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def own(**changes: object) -> dict:
    return {"id": "q1", "question": "Which?", "choices": ["this", "that"], "answer": 0, **changes}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return a function that puts a table (or an error) on the hub, and returns the list of what is then loaded."""
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: types.SimpleNamespace(sha="c0ffee"))

    def put(table: datasets.Dataset | Exception) -> list:
        calls = []

        def load(*names: object, **options: object) -> datasets.Dataset:
            calls.append((names, options))
            if isinstance(table, Exception):
                raise table
            return table

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return put


def hub_table() -> datasets.Dataset:
    rows = [{"question": q, "subject": "anatomy", "choices": c, "answer": a} for q, c, a in ITEMS]
    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize("layout", ["header", "original", "parquet", "hub folder"])
def test_mmlu_loads_alike_from_every_layout(tmp_path: Path, layout: str) -> None:
    if layout == "header":
        write_csv(tmp_path / "mmlu" / "test" / "anatomy_test.csv")
    elif layout == "original":
        write_csv(tmp_path / "anatomy_test.csv", header=False, letters=True)
    elif layout == "parquet":
        hub_table().to_parquet(tmp_path / "anatomy-test.parquet")
    else:
        hub_table().to_parquet(tmp_path / "anatomy" / "test-00000-of-00001.parquet")
    write_csv(tmp_path / "mmlu" / "dev" / "anatomy_dev.csv", items=ITEMS[:1])
    benchmark = load_benchmark("mmlu-anatomy", tmp_path)
    assert [(q.question, list(q.choices), q.answer) for q in benchmark.questions] == ITEMS
    assert [q.id for q in benchmark.questions] == ["anatomy-000", "anatomy-001", "anatomy-002"]
    assert benchmark.note == "135 items expected, 3 found"
    assert benchmark.chance == 0.25 and benchmark.majority == pytest.approx(1 / 3)


def test_mmlu_medical_joins_its_subjects_and_a_limit_touches_each(tmp_path: Path) -> None:
    for subject in SUBJECTS:
        write_csv(tmp_path / f"{subject}_test.csv")
    benchmark = load_benchmark("mmlu-medical", tmp_path)
    assert len(benchmark.questions) == 18 and benchmark.note == "1089 items expected, 18 found"
    few = load_benchmark("mmlu-medical", tmp_path, limit=7).questions
    assert {q.subject for q in few} == set(SUBJECTS) and len(few) == 7
    assert [q for q in benchmark.questions if q in few] == list(few)


def test_the_published_number_of_items_needs_no_note(tmp_path: Path) -> None:
    write_csv(tmp_path / "medical_genetics_test.csv", items=[ITEMS[0]] * 100)
    assert load_benchmark("mmlu-medical_genetics", tmp_path).note == ""


def test_medqa_loads_from_its_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "MedQA" / "phrases_no_exclude_test.jsonl", MEDQA_ROW)
    write_lines(tmp_path / "MedQA" / "phrases_no_exclude_train.jsonl", MEDQA_ROW)
    for folder in (tmp_path, tmp_path / "MedQA"):
        (question,) = load_benchmark("medqa", folder).questions
        assert question == Question("medqa-0000", "A man falls.", ("rest", "x-ray", "cast", "ice"), 1, "medqa")


def test_the_hub_gives_the_same_questions(tmp_path: Path, hub: Callable) -> None:
    calls = hub(hub_table())
    write_csv(tmp_path / "anatomy_test.csv")
    benchmark, local = load_benchmark("mmlu-anatomy"), load_benchmark("mmlu-anatomy", tmp_path)
    assert calls == [(("cais/mmlu", "anatomy"), {"split": "test", "revision": "c0ffee"})]
    assert (benchmark.source, benchmark.revision) == ("cais/mmlu", "c0ffee")
    assert [q.hash for q in benchmark.questions] == [q.hash for q in local.questions]


def test_medqa_from_the_hub_and_a_set_with_other_columns(hub: Callable) -> None:
    table = datasets.Dataset.from_list([MEDQA_ROW])
    hub(table)
    assert load_benchmark("medqa").questions[0].choices[1] == "x-ray"
    hub(table.rename_column("answer_idx", "label"))
    with pytest.raises(
        InputError, match=r"row 1: no 'answer' .*'answer_idx' is undefined.*, which holds key, question, options, label"
    ):
        load_benchmark("medqa")


@pytest.mark.parametrize("name", ["practice-mmlu", "practice-old"])
def test_the_practice_benchmarks(name: str) -> None:
    benchmark = load_benchmark(name, limit=20)
    assert len(benchmark.questions) == 20 and benchmark.source == "practice world"
    assert len({q.hash for q in benchmark.questions}) == 20


def test_own_questions(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "mine.jsonl", own(), "", own(id=2, answer="that", choices=["this", "that", "none"], subject="s")
    )
    benchmark = load_benchmark(str(path))
    assert benchmark.name == "mine"
    assert benchmark.questions[1] == Question("2", "Which?", ("this", "that", "none"), 1, "s")
    assert benchmark.chance == pytest.approx((1 / 2 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 2}, r"mine.jsonl, line 1 \(id 'q1'\): the answer 2 is outside the choices 0 to 1"),
        ({"answer": -1}, "the answer -1 is outside the choices"),
        ({"answer": True}, "the answer True is outside the choices"),
        ({"answer": None}, "the answer None is outside the choices"),
        ({"answer": "neither"}, "the answer 'neither' must be the text of exactly one choice"),
        ({"choices": ["x", "x"], "answer": "x"}, "the answer 'x' must be the text of exactly one choice"),
        ({"question": None}, r"line 1 \(id 'q1'\): the record has no 'question'"),
        ({"question": "  "}, "the record has no 'question'"),
        ({"choices": ["one"]}, "'choices' must be a list of 2 to 26 texts"),
        ({"choices": "ab"}, "'choices' must be a list"),
        ({"choices": ["a", ""]}, "'choices' must be a list"),
        ({"id": None}, "line 1: the id must be a text or a whole number, found None"),
    ],
)
def test_a_bad_record_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_lines(tmp_path / "mine.jsonl", own(**changes))
    with pytest.raises(InputError, match=message):
        load_benchmark(str(path))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mine.jsonl", own(), own())
    with pytest.raises(InputError, match=r"line 2: the id 'q1' is used twice"):
        load_benchmark(str(path))
    write_lines(path, own(), "{oops")
    with pytest.raises(InputError, match=r"mine.jsonl, line 2: invalid JSON"):
        load_benchmark(str(path))
    path.write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"mine.jsonl is not UTF-8"):
        load_benchmark(str(path))
    path.write_text("\n")
    with pytest.raises(InputError, match=r"mine.jsonl holds no question"):
        load_benchmark(str(path))
    with pytest.raises(InputError, match=r"nothing.jsonl does not exist"):
        load_benchmark(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(InputError, match="'medqa' is the name of a built-in benchmark: rename"):
        load_benchmark(str(write_lines(tmp_path / "medqa.jsonl", own())))


def test_an_unknown_name_and_a_bad_limit_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown benchmark 'mmlu-anatomi' \(did you mean 'mmlu-anatomy'\?\)"):
        load_benchmark("mmlu-anatomi")
    with pytest.raises(InputError, match="limit must be 1 or more, found 0"):
        load_benchmark("practice-mmlu", limit=0)


def test_missing_and_ambiguous_local_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"anatomy were not found under .*: put anatomy_test.csv .* --data DIR"):
        load_benchmark("mmlu-anatomy", tmp_path)
    with pytest.raises(InputError, match=r"MedQA test questions were not found .* DIR/medqa/ and pass --data DIR"):
        load_benchmark("medqa", tmp_path)
    with pytest.raises(InputError, match=r"were not found under .*absent: put .* and pass --data DIR"):
        load_benchmark("medqa", tmp_path / "absent")
    write_csv(tmp_path / "a" / "anatomy_test.csv")
    write_csv(tmp_path / "b" / "anatomy_test.csv")
    with pytest.raises(InputError, match=r"more than once .*a/anatomy_test.csv, .*b/anatomy_test.csv"):
        load_benchmark("mmlu-anatomy", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "question,a,b,answer\nx,1,2,0\n",
            "line 1: the fields question, choice0, .*, answer are needed: check the quotes",
        ),
        ("", "holds no question"),
        (
            "question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,4\n",
            "line 2: no 'answer' can be made of the record .'4' is not in list",
        ),
        (
            "question,choice0,choice1,choice2,choice3,answer\nq,a,b\n",
            "line 2: the fields question, choice0, .* are needed",
        ),
        ("q,a,b,c,d,A\nq,a,b,c,d,E\n", "line 2: no 'answer' can be made of the record .'E' is not in list"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "anatomy_test.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        load_benchmark("mmlu-anatomy", tmp_path)


def test_bad_parquet_and_bad_medqa_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "anatomy-test.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"anatomy-test.parquet is not a parquet file"):
        load_benchmark("mmlu-anatomy", tmp_path)
    hub_table().remove_columns("answer").to_parquet(path)
    with pytest.raises(InputError, match=r"'answer' is undefined.*, which holds .*question, subject, choices"):
        load_benchmark("mmlu-anatomy", tmp_path)
    write_lines(tmp_path / "medqa_test.jsonl", {**MEDQA_ROW, "answer_idx": "E"})
    with pytest.raises(
        InputError,
        match=r"medqa_test.jsonl, line 1: no 'answer' can be made of the record \('E' is not in list\), which holds",
    ):
        load_benchmark("medqa", tmp_path)


@pytest.mark.parametrize("name", ["mmlu-anatomy", "medqa"])
def test_a_hub_out_of_reach_says_which_file_to_put_where(name: str, hub: Callable) -> None:
    hub(ConnectionError("Couldn't reach it on the Hub"))
    file = "anatomy_test.csv" if name == "mmlu-anatomy" else "phrases_no_exclude_test.jsonl"
    with pytest.raises(InputError, match=rf"no connection.*put {file} .* --data DIR"):
        load_benchmark(name)


MEDMCQA_ROW = {
    "question": "Which?",
    "opa": "w",
    "opb": "x",
    "opc": "y",
    "opd": "z",
    "cop": 2,
    "subject_name": "Anatomy",
}
PUBMEDQA_ROW = {
    "pubid": 11,
    "question": "Does rest help?",
    "context": {"contexts": ["We asked.", "Some rested."], "labels": ["AIMS", "METHODS"]},
    "long_answer": "It may.",
    "final_decision": "maybe",
}


def test_medmcqa_loads_from_the_hubs_file_and_from_the_hub(tmp_path: Path, hub: Callable) -> None:
    table = datasets.Dataset.from_list([MEDMCQA_ROW, {**MEDMCQA_ROW, "cop": 0}])
    table.to_parquet(tmp_path / "medmcqa" / "data" / "validation-00000-of-00001.parquet")
    table.to_parquet(tmp_path / "medmcqa" / "data" / "train-00000-of-00001.parquet")
    calls = hub(table)
    local, remote = load_benchmark("medmcqa", tmp_path), load_benchmark("medmcqa")
    assert local.questions[0] == Question("medmcqa-0000", "Which?", ("w", "x", "y", "z"), 2, "Anatomy")
    assert local.questions == remote.questions and local.note == "4183 items expected, 2 found"
    assert calls == [(("openlifescienceai/medmcqa", None), {"split": "validation", "revision": "c0ffee"})]


def write_pubmedqa(folder: Path) -> dict:
    rows = {
        key: {"QUESTION": f"Does {key} help?", "CONTEXTS": ["One.", "Two."], "final_decision": label}
        for key, label in (("11", "yes"), ("12", "no"), ("13", "maybe"))
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ori_pqal.json").write_text(json.dumps(rows))
    return rows


def test_pubmedqa_is_its_test_half_where_that_is_known(tmp_path: Path) -> None:
    write_pubmedqa(tmp_path / "pubmedqa")
    benchmark = load_benchmark("pubmedqa", tmp_path)
    assert benchmark.note == (
        "500 items expected, 3 found; the file that names the test items is missing, so all labeled questions are used"
    )
    truth = tmp_path / "pubmedqa" / "test_ground_truth.json"
    truth.write_text(json.dumps({"12": "no", "13": "maybe"}))
    benchmark = load_benchmark("pubmedqa", tmp_path)
    assert [q.id for q in benchmark.questions] == ["12", "13"] and "test_ground_truth.json" in benchmark.source
    assert benchmark.questions[0] == Question(
        "12", "Does 12 help?", ("yes", "no", "maybe"), 1, "pubmedqa", "One.\nTwo."
    )
    assert len(load_benchmark("pubmedqa-labelled", tmp_path).questions) == 3 and benchmark.form == "labels"
    truth.write_text("7")
    with pytest.raises(InputError, match=r"ori_pqal.json, id 11: no 'keep' can be made of the record"):
        load_benchmark("pubmedqa", tmp_path)


def test_pubmedqa_in_the_hubs_shape(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([PUBMEDQA_ROW])
    table.to_parquet(tmp_path / "PubMedQA" / "pqa_labeled" / "train-00000-of-00001.parquet")
    table.to_parquet(tmp_path / "PubMedQA" / "pqa_artificial" / "train-00000-of-00001.parquet")
    (question,) = load_benchmark("pubmedqa", tmp_path).questions
    assert (question.id, question.answer, question.context) == ("11", 2, "We asked.\nSome rested.")
    table.rename_column("final_decision", "label").to_parquet(
        tmp_path / "PubMedQA" / "pqa_labeled" / "train-00000-of-00001.parquet"
    )
    with pytest.raises(InputError, match=r"'final_decision' is undefined.*, which holds .*pubid, question"):
        load_benchmark("pubmedqa", tmp_path)


def test_examples_come_from_the_dev_split(tmp_path: Path) -> None:
    write_csv(tmp_path / "anatomy_test.csv")
    write_csv(tmp_path / "dev" / "anatomy_dev.csv", items=ITEMS[:2])
    assert load_benchmark("mmlu-anatomy", tmp_path).dev == ()
    dev = load_benchmark("mmlu-anatomy", tmp_path, num_fewshot=2).dev
    assert [q.id for q in dev] == ["anatomy-dev-000", "anatomy-dev-001"]
    with pytest.raises(InputError, match="'mmlu-anatomy' has 2 solved examples to show, but 3 are wanted"):
        load_benchmark("mmlu-anatomy", tmp_path, num_fewshot=3)
    write_lines(tmp_path / "medqa_test.jsonl", MEDQA_ROW)
    with pytest.raises(InputError, match=r"'medqa' has 0 solved examples to show, but 1 are wanted: set evaluation"):
        load_benchmark("medqa", tmp_path, num_fewshot=1)
    path = write_lines(tmp_path / "mine.jsonl", own())
    with pytest.raises(InputError, match=r"mine.dev.jsonl does not exist: put solved questions there"):
        load_benchmark(str(path), num_fewshot=1)
    write_lines(tmp_path / "mine.dev.jsonl", own(id="d1", question="What?"))
    assert load_benchmark(str(path), num_fewshot=1).dev[0].question == "What?"
    write_lines(tmp_path / "mine.dev.jsonl", own(id="d1"))
    with pytest.raises(
        InputError, match=r"'d1' is also a question of .*mine.jsonl: a question that is scored must not"
    ):
        load_benchmark(str(path), num_fewshot=1)


QUIZ = """
about: A quiz whose choices are in one string
question: "{{ stem | trim }}"
choices: "{{ options.split('|') }}"
answer: "{{ key }}"
subject: "{{ topic | default('all') }}"
sources:
  - {pattern: 'quiz[^/]*\\.jsonl$'}
"""


def test_a_benchmark_from_outside_is_a_short_file(tmp_path: Path) -> None:
    assert len(QUIZ.strip().splitlines()) <= 15
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    row = {"stem": " Which is wet? ", "options": "rain|sand|salt", "key": 0}
    write_lines(
        tmp_path / "data" / "quiz-1.jsonl", row, {**row, "stem": "Which is dry?", "key": "sand", "topic": "dry"}
    )
    by_path = load_benchmark(str(tmp_path / "quiz.yaml"))
    assert by_path.name == "quiz" and by_path.note == ""
    assert by_path.questions[0] == Question("quiz-00000", "Which is wet?", ("rain", "sand", "salt"), 0, "all")
    assert (by_path.questions[1].answer, by_path.questions[1].subject) == (1, "dry")
    outcomes = evaluate(load_model("practice-blind"), load_tokenizer("practice-blind"), by_path)
    assert [outcome["choices"] for outcome in outcomes] == [3, 3]
    write_lines(tmp_path / "data" / "quiz-1.jsonl", {**row, "key": 7})
    with pytest.raises(
        InputError, match=r"quiz-1.jsonl, line 1 \(id 'quiz-00000'\): the answer 7 is outside the choices"
    ):
        load_benchmark(str(tmp_path / "quiz.yaml"), tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "quesion: x\nanswer: 3",
            r"line 1: unknown key 'quesion' \(did you mean 'question'(.|\n)*bad.yaml, line 2: answer must be a valid string",
        ),
        ("question: '{{ a }}'\nsources: [{pattern: x}]", "has no template for 'answer'"),
        (
            "question: '{{ a '\nanswer: '{{ a }}'\nsources: [{pattern: 'x'}]",
            "bad.yaml, line 1: question: is no Jinja template",
        ),
        (
            "question: '{{ a }}'\nanswer: '{{ b }}'\nsources: [{pattern: '('}]",
            "the pattern '[(]' .* is no regular expression",
        ),
        (
            "question: q\nanswer: '{{ a.__class__ }}'\nsources: [{pattern: 'x'}]",
            "access to attribute '__class__' .* unsafe",
        ),
        (
            "question: x\nanswer: y\nwording: {question: {cloze: '{{ question }}{% if context %}{{ contxt }}{% endif %}'}}",
            "line 3: wording.question.cloze: unknown name in a template of wording: 'contxt' .did you mean 'context'",
        ),
        ("question: x\nanswer: y\nwording: {question: {mfc: '{{ question }}'}}", "line 3: wording.question.mfc"),
        ("benchmarks: {one: {}, two: {}}\nquestion: x\nanswer: y", "declares one, two: keep one in a file"),
        ("benchmarks: {medqa: {}}\nquestion: x\nanswer: y", "'medqa' is the name of a built-in benchmark"),
    ],
)
def test_a_bad_benchmark_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    write_lines(tmp_path / "x.jsonl", {"a": "text", "choices": ["x", "y"]})
    with pytest.raises(InputError, match=message):
        load_benchmark(str(tmp_path / "bad.yaml"))


def test_hashes_of_questions_stay() -> None:
    question = Question("1", "Which?", ("this", "that"), 0, "all")
    assert question.hash == sha256(["Which?", ["this", "that"], 0])  # outcomes on disk carry it
    assert Question("1", "Which?", ("this", "that"), 0, "all", "A text.").hash != question.hash


PUBLISHED = {  # counted in the published files: items of each answer position, or of each label
    "medqa": (353, 309, 346, 265),
    "pubmedqa": {"yes": 276, "no": 169, "maybe": 55},
    "pubmedqa-labelled": {"yes": 552, "no": 338, "maybe": 110},
    "fiqa": {"positive": 141, "neutral": 18, "negative": 76},
    "fiqa-absa": None,
    "causal20": {"causal": 569, "noise": 8011},
    "causal20-practice": {"causal": 1010, "noise": 12468},
    "multifin": (123, 111, 34, 90, 117, 71),
    "multifin-train": None,
    "multifin-validation": None,
    **dict.fromkeys(name for name in benchmark_names() if name.startswith("mmlu-")),
}


@pytest.mark.skipif("CTXFT_REAL_DATA" not in os.environ, reason="CTXFT_REAL_DATA names no folder of real data")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_hold_the_published_items(name: str) -> None:
    benchmark = load_benchmark(name, Path(os.environ["CTXFT_REAL_DATA"]))
    assert "expected" not in benchmark.note
    wanted, choices = PUBLISHED[name], benchmark.questions[0].choices
    counts = collections.Counter(question.answer for question in benchmark.questions)
    if isinstance(wanted, dict):
        assert {choices[answer]: n for answer, n in counts.items()} == wanted
    elif wanted:
        assert tuple(counts[n] for n in range(len(wanted))) == wanted
    if name in ("mmlu-medical", "mmlu-anatomy"):
        assert len(load_benchmark(name, Path(os.environ["CTXFT_REAL_DATA"]), num_fewshot=5).dev) in (5, 30)
