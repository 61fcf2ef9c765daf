"""Benchmarks load from every published layout, refuse bad records, and read as in lm-evaluation-harness."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import datasets
import lm_eval
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.medqa.preprocess_medqa import doc_to_text

from ctxft.benchmarks import NAMES, SUBJECTS, Question, files, load_benchmark, render
from ctxft.runtime import InputError

ITEMS = [
    ("Which vessel carries blood away from the heart?", ["vein", "artery", "nerve", "duct"], 1),
    ('A "dished face", it is said,\nis a sign of', ["age", "it's, rare", "acromegaly", "10\\4"], 2),
    ("Stem with spaces? ", ["1", "2", "3", "4"], 3),
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


def test_the_hub_gives_the_same_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(files, "resolve_revision", lambda repo, kind, revision, instead: revision or "c0ffee")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or hub_table()
    )
    write_csv(tmp_path / "anatomy_test.csv")
    benchmark, local = load_benchmark("mmlu-anatomy"), load_benchmark("mmlu-anatomy", tmp_path)
    assert asked == [(("cais/mmlu", "anatomy"), {"split": "test", "revision": "c0ffee"})]
    assert (benchmark.source, benchmark.revision) == ("cais/mmlu", "c0ffee")
    assert [q.hash for q in benchmark.questions] == [q.hash for q in local.questions]


def test_medqa_from_the_hub_and_a_set_with_other_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "resolve_revision", lambda *names: "c0ffee")
    table = datasets.Dataset.from_list([MEDQA_ROW])
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: table)
    assert load_benchmark("medqa").questions[0].choices[1] == "x-ray"
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: table.rename_column("answer_idx", "label"))
    with pytest.raises(InputError, match="lacks answer_idx: columns found question, options, label, wanted question"):
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
        ({"id": None}, "line 1: the record has no 'id'"),
    ],
)
def test_a_bad_record_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_lines(tmp_path / "mine.jsonl", own(**changes))
    with pytest.raises(InputError, match=message):
        load_benchmark(str(path))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mine.jsonl", own(), own())
    with pytest.raises(InputError, match=r"line 2: the id 'q1' is also at .*mine.jsonl, line 1: ids must be unique"):
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
    with pytest.raises(InputError, match="is not a folder: --data needs the folder"):
        load_benchmark("medqa", tmp_path / "absent")
    write_csv(tmp_path / "a" / "anatomy_test.csv")
    write_csv(tmp_path / "b" / "anatomy_test.csv")
    with pytest.raises(InputError, match=r"more than once .*a/anatomy_test.csv, .*b/anatomy_test.csv"):
        load_benchmark("mmlu-anatomy", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,a,b,answer\nx,1,2,0\n", "lacks choice0, .*: columns found question, a, b, answer, wanted question"),
        ("", "lacks question"),
        (
            "question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,4\n",
            "line 2: the answer '4' is none of 0, 1, 2, 3",
        ),
        ("question,choice0,choice1,choice2,choice3,answer\nq,a,b\n", "line 2: 6 columns are needed, found 3"),
        ("q,a,b,c,d,A\nq,a,b,c,d,E\n", "line 2: the answer 'E' is none of A, B, C, D"),
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
    with pytest.raises(InputError, match="lacks answer: columns found question, subject, choices, wanted"):
        load_benchmark("mmlu-anatomy", tmp_path)
    write_lines(tmp_path / "medqa_test.jsonl", {**MEDQA_ROW, "answer_idx": "E"})
    with pytest.raises(InputError, match=r"medqa_test.jsonl, line 1: answer_idx 'E' is none of the options' letters"):
        load_benchmark("medqa", tmp_path)


@pytest.mark.parametrize("name", ["mmlu-anatomy", "medqa"])
def test_a_hub_out_of_reach_says_which_file_to_put_where(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*names: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach it on the Hub")

    monkeypatch.setattr(files, "resolve_revision", lambda *names: None)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    file = "anatomy_test.csv" if name == "mmlu-anatomy" else "phrases_no_exclude_test.jsonl"
    with pytest.raises(InputError, match=rf"cannot be reached .* put {file} .* --data DIR"):
        load_benchmark(name)


def harness_requests(folder: str, subject: str, path: Path) -> list[tuple[str, str]]:
    """Return the requests that lm-evaluation-harness's own MMLU task builds from a file in the hub's shape."""
    root = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / folder
    config = yaml.safe_load((root / f"mmlu_{subject}.yaml").read_text())
    config = {**yaml.safe_load((root / config.pop("include")).read_text()), **config}
    config.pop("tag")
    files = {"data_files": {"test": str(path), "dev": str(path)}, "cache_dir": str(path.parent / "cache")}
    task = ConfigurableTask(config={**config, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files})
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("form", ["lettered", "options"])
def test_mmlu_reads_as_in_lm_evaluation_harness(tmp_path: Path, subject: str, form: str) -> None:
    rows = [{"question": q, "choices": c, "answer": a, "subject": subject} for q, c, a in ITEMS]
    path = write_lines(tmp_path / "rows.jsonl", *rows)
    expected = harness_requests("default" if form == "lettered" else "continuation", subject, path)
    found = []
    for question, choices, answer in ITEMS:
        context, texts = render(Question("1", question, tuple(choices), answer, subject), form, f"mmlu-{subject}")
        found += [(context, text) for text in texts]
    assert found == expected


def test_medqa_reads_as_in_lm_evaluation_harness() -> None:
    question = Question("1", " A man\nfalls. ", ("rest", "x-ray", "cast", "ice"), 1, "medqa")
    context, texts = render(question, "lettered", "medqa")
    endings = {f"ending{n}": choice for n, choice in enumerate(question.choices)}
    assert context == doc_to_text({"sent1": question.question, **endings})
    assert texts == [" A", " B", " C", " D"]
    assert render(question, "options", "medqa") == (
        "Question: A man\nfalls.\nAnswer:",
        [" rest", " x-ray", " cast", " ice"],
    )


def test_own_questions_have_as_many_letters_as_choices() -> None:
    context, texts = render(Question("1", "Which?", ("x", "y", "z"), 0, "all"), "lettered", "mine")
    assert context == "Question: Which?\nA. x\nB. y\nC. z\nAnswer:" and texts == [" A", " B", " C"]
    assert render(Question("1", "Which?", ("x", "y", "z"), 0, "all"), "lettered", "mmlu-mine") == (context, texts)
    with pytest.raises(InputError, match=r"unknown form 'letter' \(did you mean 'lettered'\?\)"):
        render(Question("1", "Which?", ("x", "y"), 0, "all"), "letter", "mine")


@pytest.mark.skipif("CTXFT_REAL_DATA" not in os.environ, reason="CTXFT_REAL_DATA names no folder of real data")
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("practice")])
def test_the_published_files_hold_the_published_items(name: str) -> None:
    benchmark = load_benchmark(name, Path(os.environ["CTXFT_REAL_DATA"]))
    assert benchmark.note == ""
    if name == "medqa":
        assert benchmark.majority == pytest.approx(353 / 1273)
