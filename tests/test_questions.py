"""Questions are read in the shapes in which people keep them, and what differs from the published set is said."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import datasets
import pytest

from ctxft.cli import main
from ctxft.config import EvaluationConfig
from ctxft.evaluation.benchmarks import load_benchmark
from ctxft.report import read_run, write_report
from ctxft.storage import InputError

REAL = pytest.mark.skipif("CTXFT_REAL_DATA" not in os.environ, reason="CTXFT_REAL_DATA names no folder of real data")
WANTED = [("Which is wet?", ("rain", "sand", "salt"), 0), ("Which is dry?", ("sea", "dew", "dust"), 2)]
LETTERED = [{"question": q, "options": dict(zip("ABC", c, strict=True)), "answer_idx": "ABC"[a]} for q, c, a in WANTED]


def write(path: Path, rows: list[dict]) -> str:
    """Write records in the format that the ending names; returns the path as a config holds it."""
    ending = path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0], delimiter="," if ending == ".csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    elif ending == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif ending == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def shaped(shape: str) -> list[dict]:
    rows = []
    for question, choices, answer in WANTED:
        letter, text = "ABC"[answer], choices[answer]
        options = dict(zip("ABC", choices, strict=True))
        row = {
            "options and answer_idx": {"options": options, "answer": text, "answer_idx": letter},
            "options and a letter": {"options": options, "answer": letter},
            "options and a number": {"options": options, "answer": answer},
            "options and a text": {"options": options, "answer": text},
            "a list and a letter": {"choices": list(choices), "answer": letter.lower()},
            "a list and digits": {"choices": list(choices), "answer": str(answer)},
            "labels": {"choices": {"text": list(choices), "label": ["1", "2", "3"]}, "answerKey": str(answer + 1)},
            "columns and a letter": {**options, "answer": letter},
            "columns and a number": {**options, "answer": answer},
            "a cell of JSON": {"choices": json.dumps(choices), "answer": text},
            "a cell of pandas": {"choices": str(list(choices)), "answer": answer},
        }[shape]
        rows.append({"question": question, **row})
    return rows


SHAPES = [
    "options and answer_idx",
    "options and a letter",
    "options and a number",
    "options and a text",
    "a list and a letter",
    "a list and digits",
    "labels",
]
FLAT = [
    "columns and a letter",
    "columns and a number",
    "a cell of JSON",
    "a cell of pandas",
]  # as a table of text has it


@pytest.mark.parametrize(
    ("shape", "ending"),
    [(shape, ending) for shape in (*SHAPES, *FLAT) for ending in ("jsonl", "json", "parquet")]
    + [(shape, ending) for shape in FLAT for ending in ("csv", "tsv")],
)
def test_custom_questions_in_every_shape_and_format(tmp_path: Path, shape: str, ending: str) -> None:
    benchmark = load_benchmark(write(tmp_path / f"quiz.{ending}", shaped(shape)))
    assert [(q.question, q.choices, q.answer) for q in benchmark.questions] == WANTED
    first = {"csv": 2, "tsv": 2}.get(ending, 1)  # lines of a table count its header
    assert [q.id for q in benchmark.questions] == [f"quiz.{ending}:{first}", f"quiz.{ending}:{first + 1}"]
    assert (benchmark.name, benchmark.note) == ("quiz", "")


def question(**changes: object) -> dict:
    return {"question": "Which?", "choices": ["O", "A", "B", "AB"], "answer": "O"} | changes


@pytest.mark.parametrize(
    ("rows", "answers"),
    [
        ([question(answer="B"), question(answer="O")], [2, 0]),  # texts: one of them is no letter
        ([question(answer="B"), question(answer="D")], [1, 3]),  # letters: one of them is no text
        ([question(choices=["2", "3", "1"], answer="2"), question(choices=["5", "6", "7"], answer="6")], [0, 1]),
        ([question(choices=["2", "3", "1"], answer=2), question(choices=["2", "3", "1"], answer=0)], [2, 0]),
        ([question(answer="AB"), question(answer=1), question(answer="A", answer_idx="B")], [3, 1, 1]),
    ],
)
def test_an_answer_is_taken_for_what_all_answers_can_be(tmp_path: Path, rows: list[dict], answers: list[int]) -> None:
    benchmark = load_benchmark(write(tmp_path / "quiz.jsonl", rows))
    assert [q.answer for q in benchmark.questions] == answers


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            question(answer="B"),
            r"quiz.jsonl, line 1: the answer 'B' may be the text of choice C or the letter of choice B",
        ),
        (question(choices=["3", "2", "1"], answer="2"), "may be the text of choice B or the number of choice C: give"),
        (
            question(answer="E"),
            "the answer 'E' must be the text of exactly one choice, its letter, or its number from 0",
        ),
        (
            question(answer="4"),
            "the answer '4' must be the text of exactly one choice, its letter, or its number from 0",
        ),
        (question(answer=4), "the answer 4 is outside the choices 0 to 3"),
        (question(answer="A", answer_idx="D"), "'answer_idx' 'D' and 'answer' 'A' are different choices: correct one"),
        (
            {"question": "Which?", "answer": 1},
            "'choices' must be a list of texts .*columns A, B, ..., found .'question', 'answer'",
        ),
        (question(choices="O or A"), "'choices' must be a list of texts .*found 'O or A'"),
        (question(choices="[" * 9999), "'choices' must be a list of texts"),
        (question(choices={"A": "x", "B": "", "C": "y"}, answer="A"), "'choices' must be a list of 2 to 26 texts"),
    ],
)
def test_an_answer_or_choices_that_are_unclear_are_refused(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_benchmark(write(tmp_path / "quiz.jsonl", [row]))


def test_numbers_count_from_0_and_a_file_in_which_they_may_not_is_named(tmp_path: Path) -> None:
    rows = [question(answer=number) for number in (1, 2, 3)]
    for path in ("quiz.jsonl", "quiz.parquet"):
        assert load_benchmark(write(tmp_path / path, rows)).note == (
            "the answers are numbers and none is 0: they count from 0, not from 1"
        )
    assert load_benchmark(write(tmp_path / "quiz.jsonl", [question(answer=0), *rows])).note == ""


def test_an_experiment_takes_files_of_every_format(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, LETTERED) for name in ("a.jsonl", "b.v2.JSON", "c.parquet")]
    assert EvaluationConfig(benchmarks=paths).benchmarks == paths
    assert [load_benchmark(path).name for path in paths] == ["a", "b.v2", "c"]
    with pytest.raises(ValueError, match="two benchmarks are called 'a'"):
        EvaluationConfig(benchmarks=[paths[0], str(tmp_path / "a.csv")])
    with pytest.raises(InputError, match=r"b.v2.dev.JSON does not exist: put solved questions there"):
        load_benchmark(paths[1], num_fewshot=1)
    write(tmp_path / "b.v2.dev.JSON", [question()])
    assert load_benchmark(paths[1], num_fewshot=1).dev[0].id == "b.v2.dev.JSON:1"


def test_a_note_is_on_the_terminal_in_the_metrics_and_in_the_report(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("CTXFT_RUNS", str(tmp_path / "runs"))
    path = write(tmp_path / "quiz.csv", [{"question": "Which?", "A": "x", "B": "y", "C": "y", "answer": "B"}])
    note = "1 of 1 items have a choice twice, 1 of them the right one"
    settings = ["--set", f"evaluation.benchmarks=[{path}]", "--set", "arms=[base]"]
    for command in (["train", "mini"], ["evaluate", "mini", "--task", "base:0"], ["evaluate", "mini"]):
        assert main([*command, *settings]) == 0
    out = capfd.readouterr().out
    assert f" of 1 items ({note})" in out and f"\nquiz: {note}\n" in out
    record = read_run(tmp_path / "runs" / "mini")
    (measured,) = record.metrics_of("quiz")
    assert (measured["note"], measured["repeated_items"]) == (note, 1)
    assert f"<li>quiz: {note}.</li>" in write_report(record, "base").read_text(encoding="utf-8")
    assert (
        main(["compare", str(record.folder), "--reference", "base"]) == 0
        and f"  quiz: {note}\n" in capfd.readouterr().out
    )


# --- published sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("letters", "chance"), [("ABCDE", "0.200"), ("ABC", "0.333")])
def test_another_number_of_choices_than_published_is_said(tmp_path: Path, letters: str, chance: str) -> None:
    row = {"question": "What now?", "options": {letter: f"do {letter}" for letter in letters}, "answer_idx": "B"}
    write(tmp_path / "medqa" / "test.jsonl", [row, row])
    assert load_benchmark("medqa", tmp_path).note == (
        f"1273 items expected, 2 found; 2 items have {len(letters)} choices, not the published 4: chance is {chance}"
    )


@pytest.mark.parametrize("folder", ["medqa/data_clean/questions", "questions"])
def test_of_the_archive_of_medqa_the_four_options_of_the_us_exam_are_taken(tmp_path: Path, folder: str) -> None:
    four = {"question": "Four?", "options": dict(zip("ABCD", "wxyz", strict=True)), "answer_idx": "C"}
    for path in ("US/test", "US/US_qbank", "Mainland/test", "Mainland/4_options/test", "Taiwan/test"):
        write(tmp_path / folder / f"{path}.jsonl", [{**four, "question": path}])
    wanted = write(tmp_path / folder / "US/4_options/phrases_no_exclude_test.jsonl", [four])
    (tmp_path / folder / "US/4_options/._phrases_no_exclude_test.jsonl").write_bytes(b"\0\5\26\7")  # as Macs pack it
    benchmark = load_benchmark("medqa", tmp_path)
    assert [q.question for q in benchmark.questions] == ["Four?"] and benchmark.source == wanted
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "archive").symlink_to(tmp_path / folder)
    assert load_benchmark("medqa", tmp_path / "links").questions == benchmark.questions
    if "medqa" in folder:
        assert benchmark.note.startswith(f"of 5 files that match, {wanted} was taken; 1273 items expected")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
def test_phrasebank_is_read_in_either_encoding(tmp_path: Path, encoding: str) -> None:
    lines = "Operating profit of Pöyry rose .@positive\nThe café in Malmö closed .@negative\n"
    (tmp_path / "Sentences_AllAgree.txt").write_bytes(lines.encode(encoding))
    texts = [q.question for q in load_benchmark("phrasebank-allagree", tmp_path).questions]
    assert texts == ["Operating profit of Pöyry rose .", "The café in Malmö closed ."]


def test_choices_that_repeat_are_noted_and_counted(tmp_path: Path) -> None:
    rows = [question(choices=["x", "y", "x "], answer=0), question(choices=["x", "y", "y"], answer="A"), question()]
    benchmark = load_benchmark(write(tmp_path / "quiz.jsonl", rows))
    assert (
        benchmark.note.endswith("2 of 3 items have a choice twice, 1 of them the right one") and benchmark.repeated == 1
    )
    medqa = {"question": "What?", "options": {"A": "rest", "B": "ice", "C": "rest", "D": "x"}, "answer_idx": "C"}
    write(tmp_path / "medqa_test.jsonl", [medqa])
    assert "1 of 1 items have a choice twice, 1 of them the right one" in load_benchmark("medqa", tmp_path).note
    assert dataclasses.replace(benchmark, questions=benchmark.questions[1:]).repeated == 0


CLONES = {  # benchmark -> the table in its repository, the name of its file, and a record
    "medmcqa": (
        "data/validation-00000-of-00001.parquet",
        {"question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 3, "subject_name": "Skin"},
        3,
    ),
    "pubmedqa-labelled": (
        "pqa_labeled/train-00000-of-00001.parquet",
        {"pubid": 7, "question": "Is it?", "context": {"contexts": ["Yes."]}, "final_decision": "no"},
        1,
    ),
    "fiqa": (
        "data/test-00000-of-00001-0a1b.parquet",
        {"text": "Shares fell.", "choices": ["negative", "positive", "neutral"], "gold": 0},
        2,
    ),
}
CONFIGS = "configs: [{config_name: pqa_labeled, data_files: [{split: train, path: pqa_labeled/train-*}]}]\n"


@pytest.mark.parametrize("name", CLONES)
def test_a_clone_of_the_data_sets_repository_is_read_under_any_name(tmp_path: Path, name: str) -> None:
    file, row, answer = CLONES[name]
    write(tmp_path / file, [row])
    write(tmp_path / file.replace("validation", "train").replace("test", "train").replace("labeled", "other"), [row])
    with pytest.raises(InputError, match=r"were not found under .*: put .* and pass --data DIR"):
        load_benchmark(name, tmp_path)
    (tmp_path / "README.md").write_text(f"---\n{CONFIGS if 'pubmedqa' in name else 'license: mit'}\n---\n# A card\n")
    benchmark = load_benchmark(name, tmp_path)
    assert [q.answer for q in benchmark.questions] == [answer] and benchmark.source == str(tmp_path / file)
    for other in set(CLONES) - {name}:
        with pytest.raises(InputError, match=rf"were not found under {tmp_path} \({tmp_path} .*\): put .* --data DIR"):
            load_benchmark(other, tmp_path)


# --- real data --------------------------------------------------------------------------------------------------------


@REAL
def test_real_medqa_with_another_choice_says_so_and_is_one_of_the_shapes(tmp_path: Path) -> None:
    folder = Path(os.environ["CTXFT_REAL_DATA"]) / "medical" / "medqa"
    path = folder / "phrases_no_exclude_test.jsonl"
    published = load_benchmark("medqa", folder)
    assert [q.answer for q in load_benchmark(str(path)).questions] == [q.answer for q in published.questions]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["options"]["E"] = "None of these"
    write(tmp_path / "medqa" / "test.jsonl", rows)
    five = load_benchmark("medqa", tmp_path)
    assert five.note == "1273 items have 5 choices, not the published 4: chance is 0.200"
    assert five.chance == pytest.approx(0.2) and published.note == ""


@REAL
def test_real_pubmedqa_from_a_clone_is_that_of_its_authors_file(tmp_path: Path) -> None:
    folder = Path(os.environ["CTXFT_REAL_DATA"]) / "medical" / "pubmedqa"
    published = json.loads((folder / "ori_pqal.json").read_text(encoding="utf-8"))
    rows = [
        {"pubid": int(key), "question": row["QUESTION"], "context": {"contexts": row["CONTEXTS"]}}
        | {"final_decision": row["final_decision"]}
        for key, row in published.items()
    ]
    write(tmp_path / "pqa_labeled" / "train-00000-of-00001.parquet", rows)
    (tmp_path / "README.md").write_text(f"---\n{CONFIGS}---\n")
    clone, own = load_benchmark("pubmedqa-labelled", tmp_path), load_benchmark("pubmedqa-labelled", folder)
    assert [q.hash for q in clone.questions] == [q.hash for q in own.questions] and clone.note == own.note == ""
