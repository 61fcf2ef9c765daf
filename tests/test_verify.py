"""A fresh run follows from its inputs; whatever is damaged, edited, swapped or missing is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ctxft.cli import main
from ctxft.config import ExperimentConfig, from_mapping
from ctxft.extras.adaptive import adapt
from ctxft.run.run import Run
from ctxft.run.verify import verify
from ctxft.storage import with_checksum, write_jsonl
from tests.conftest import make_text
from tests.runs import evaluate_task, evaluate_tasks, prepare, train_task, train_tasks
from tests.stub_server import StubServer

ARMS = ["base", "cpt", "cft", "control", "adaptive", "cft-ift"]
HERE = "arms/cft/seed-0"
EXAM = "evals/cft/seed-0"


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folders):
    """A run with everything in it: written prompts, two stages, general text."""
    place = tmp_path_factory.mktemp("made")
    rows = [{"id": f"d{n}", "text": make_text(100 + n, 5 + 2 * n)} for n in range(8)]
    write_jsonl(place / "corpus.jsonl", rows)
    write_jsonl(place / "general.jsonl", [{"id": f"g{n}", "text": make_text(300 + n, 12)} for n in range(4)])
    asked = [{"prompt": f"Where is stone {n}?", "response": f"By the river {n}."} for n in range(12)]
    write_jsonl(place / "asked.jsonl", asked)
    questions = [
        {
            "id": f"q{n}",
            "question": f"What stands at place {n}?",
            "choices": ["the house", "a road", "water"],
            "answer": n % 3,
        }
        for n in range(6)
    ]
    write_jsonl(place / "own.jsonl", questions)
    shutil.copytree(model_folders["byte"], place / "model")
    with pytest.MonkeyPatch.context() as patch, StubServer(lambda number, body: "good") as stub:
        patch.setenv("CTXFT_RUNS", str(place / "runs"))
        values = {
            "name": "whole",
            "model": str(place / "model"),
            "arms": ARMS,
            "seeds": [0],
            "corpus": {"source": str(place / "corpus.jsonl"), "held_out": 0.3},
            "general": {"source": str(place / "general.jsonl"), "held_out": 0.3, "share": 0.2},
            "prompts": {"writer": {"model": "stub", "server": stub.url}},
            "ift": {"source": str(place / "asked.jsonl"), "held_out": 0.2},
            "train": {"max_length": 128, "min_text_tokens": 16, "max_steps": 3, "train_batch_size": 4, "device": "cpu"},
            "evaluation": {"benchmarks": [str(place / "own.jsonl"), "practice-mmlu"], "limit": 6},
        }
        config = from_mapping(ExperimentConfig, values, "test")
        prepare(config)
        adapt(Run(config))
        for task in train_tasks(config):
            train_task(config, *task)
        for task in evaluate_tasks(config):
            evaluate_task(config, *task)
    return place


@pytest.fixture
def run(made, monkeypatch, tmp_path) -> Path:
    """A copy of that run, to be damaged; inputs lie where they lay, and are copied too where a test changes them."""
    shutil.copytree(made / "runs" / "whole", tmp_path / "runs" / "whole")
    monkeypatch.setenv("CTXFT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs" / "whole"


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def edit_json(path: Path, change: Callable[[dict], object], seal: bool = False) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(with_checksum(value) if seal else value))


def edit_lines(path: Path, change: Callable[[list], object]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def bad(run: Path) -> dict[str, str]:
    """Return what does not follow, with the sentence that says why."""
    found = {finding.what: finding.message for finding in verify(run) if not finding.follows}
    assert all(said.isprintable() and said.endswith(".") for said in found.values()), found
    return found


def test_a_fresh_run_follows_and_is_left_as_it_is(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert bad(run) == {}
    assert main(["verify", "whole"]) == 0
    said = capsys.readouterr().out
    assert "BAD" not in said and "ok  arms/cft-ift/seed-0: 3 steps of the run's recipe" in said
    assert (
        "ok  evals/base/seed-0: the loss is of this model; answers to the items of own, practice-mmlu" in said
        and said.splitlines()[-1].startswith("all ")
    )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def nudge(rows: list, number: int, key: str, by: float) -> None:
    rows[number][key] += by


def worse(rows: list) -> None:
    rows[2]["log_likelihoods"][0] -= 1e-6


IDS, TEXT, GENERAL = "corpus/passages-00000.arrow", "corpus/text-00000.arrow", "general/text-00000.arrow"
DAMAGE = {  # name -> (what is done to the run folder, what must be named, and what the sentence must say)
    "a bit of the passages": (lambda r: flip(r / IDS), IDS, "was cut off or changed"),
    "cut text": (lambda r: cut(r / TEXT), TEXT, "was cut off or changed"),
    "general text in place of the corpus": (lambda r: swap(r / GENERAL, r / TEXT), GENERAL, "was cut off or changed"),
    "a missing text": (lambda r: (r / TEXT).unlink(), TEXT, "was removed"),
    "other counts": (
        lambda r: edit_json(r / "corpus/parts.json", lambda v: v["counts"].update({"documents empty": 3})),
        "corpus/parts.json", "was cut off or changed",
    ),
    "an instruction": (
        lambda r: edit_lines(r / "instructions.jsonl", lambda rows: rows[0]["labels"].reverse()),
        "instructions.jsonl", "line 1 is not what its source gives",
    ),
    "a number of the ledger": (
        lambda r: (r / "ledger.json").write_text((r / "ledger.json").read_text().replace('tokens read": ', 'tokens read": 1', 1)),
        "ledger.json", 'tokens read": 1',
    ),
    "a hash in the manifest": (
        lambda r: edit_json(r / "manifest.json", lambda v: v["files"].update({IDS: "0" * 64})),
        "manifest.json", "checksum",
    ),
    "a hash in the manifest, sealed again": (
        lambda r: edit_json(r / "manifest.json", lambda v: v["files"].update({TEXT: "0" * 64}), seal=True),
        TEXT, "not the one that manifest.json holds",
    ),
    "a rate in the manifest, sealed again": (
        lambda r: edit_json(r / "manifest.json", lambda v: v["config"]["train"].update(learning_rate=0.5), seal=True),
        HERE, "learning_rate is not that of the run",
    ),
    "a cut manifest": (lambda r: cut(r / "manifest.json"), "manifest.json", "invalid JSON"),
    "a drawn prompt": (
        lambda r: edit_lines(r / HERE / "prompts.jsonl", lambda rows: rows[3].update(text="Think.")),
        HERE, "line 4 is not what sampling gives",
    ),
    "prompts of two arms": (
        lambda r: swap(r / HERE / "prompts.jsonl", r / "arms/control/seed-0/prompts.jsonl"),
        "arms/control/seed-0", "line 1 is not what sampling gives",
    ),
    "a missing log": (lambda r: (r / HERE / "log.jsonl").unlink(), HERE, "log.jsonl does not exist"),
    "a loss in the log": (
        lambda r: edit_lines(r / HERE / "log.jsonl", lambda rows: nudge(rows, 1, "loss", 0.01)),
        HERE, "was cut off or changed",
    ),
    "a bit of the weights": (
        lambda r: flip(r / HERE / "model/model.safetensors"), HERE, "was cut off or changed",
    ),
    "cut weights": (lambda r: cut(r / HERE / "model/model.safetensors"), HERE, "was cut off or changed"),
    "models of two arms": (
        lambda r: swap(r / HERE / "model/model.safetensors", r / "arms/cpt/seed-0/model/model.safetensors"),
        "arms/cpt/seed-0", "was cut off or changed",
    ),
    "the first stage trained anew": (
        lambda r: edit_json(r / HERE / "done.json", lambda v: v.update(model_hash="0" * 64), seal=True),
        "arms/cft-ift/seed-0", "start is not that of the run",
    ),
    "a bit of done.json": (lambda r: flip(r / HERE / "done.json"), HERE, "done.json"),
    "a missing done.json": (lambda r: (r / HERE / "done.json").unlink(), HERE, "done.json does not exist"),
    "a log-likelihood": (
        lambda r: edit_lines(r / EXAM / "own.jsonl", worse), EXAM, "not the one that metrics.json holds",
    ),
    "a wrong answer made right": (
        lambda r: edit_lines(r / EXAM / "own.jsonl", lambda rows: [row.update(correct=True) for row in rows]),
        EXAM, "is not what their own scores and the benchmark's item gives",
    ),
    "a cut file of outcomes": (lambda r: cut(r / EXAM / "own.jsonl"), EXAM, "own.jsonl, line"),
    "a question left out": (
        lambda r: edit_lines(r / EXAM / "own.jsonl", lambda rows: rows.pop()),
        EXAM, "does not hold each of the benchmark's 6 items once",
    ),
    "outcomes of two arms": (
        lambda r: swap(r / EXAM / "own.jsonl", r / "evals/cpt/seed-0/own.jsonl"),
        EXAM, "not the one that metrics.json holds",
    ),
    "a missing file of outcomes": (lambda r: (r / EXAM / "own.jsonl").unlink(), EXAM, "does not exist"),
    "an accuracy": (
        lambda r: edit_json(r / EXAM / "metrics.json", lambda v: v["benchmarks"]["own"].update(accuracy=0.99), True),
        EXAM, "accuracy of own is 0.99 in metrics.json",
    ),
    "a held-out loss": (
        lambda r: edit_json(r / EXAM / "metrics.json", lambda v: v["held_out"].update(loss=0.1)),
        EXAM, "checksum",
    ),
    "metrics of another model": (
        lambda r: shutil.copytree(r / "evals/cpt/seed-0", r / EXAM, dirs_exist_ok=True),
        EXAM, "of another model",
    ),
    "a written prompt": (
        lambda r: edit_json(r / "adaptive.json", lambda v: v["rows"][0].update(reason="none")), "adaptive.json", "was changed",
    ),
    "a missing record of written prompts": (
        lambda r: (r / "adaptive.json").unlink(), "arms/adaptive/seed-0", "no written prompts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(run, name):
    damage, what, said = DAMAGE[name]
    damage(run)
    found = bad(run)
    assert what in found and said in found[what], found


def test_the_command_lists_what_is_bad(run, capsys):
    flip(run / HERE / "model/model.safetensors")
    cut(run / EXAM / "own.jsonl")
    assert main(["verify", "whole"]) == 1
    out = capsys.readouterr().out
    named = [line.split(":")[0] for line in out.splitlines() if line.startswith("BAD")]
    assert named == [f"BAD {HERE}", f"BAD {EXAM}"]
    assert "2 of " in out and "do not follow from their inputs" in out
    assert main(["verify", "nothing"]) == 2


@pytest.mark.parametrize(
    ("file", "what", "said"),
    [
        ("corpus.jsonl", "input: corpus", "the corpus is another one than when the run was made"),
        ("model/config.json", "input: model", "the model is another one than when the run was made"),
        ("own.jsonl", EXAM, "of another model, of other items or in another form"),
        ("asked.jsonl", "instructions.jsonl", "is not what its source gives"),
    ],
)
def test_an_input_that_changed_since_is_named(made, run, file, what, said):
    content = (made / file).read_bytes()
    try:
        (made / file).write_bytes(content.replace(b"river 1", b"river 7").replace(b"place 1", b"place 7") + b"\n ")
        if file == "corpus.jsonl":
            (made / file).write_bytes(content + b'{"id": "new", "text": "A new text."}\n')
        found = bad(run)
    finally:
        (made / file).write_bytes(content)
    assert what in found and said in found[what], found


@pytest.mark.parametrize("words", [["verify", "whole"], ["leaks", "whole"], ["estimate", "whole"]])
def test_commands_that_only_look_write_nothing(run, capsys, words):
    """A run folder that nobody may write to gives the same output, and none of its files changes."""

    def outcome() -> tuple[int, str]:
        return main(words), capsys.readouterr().out

    def state() -> dict[Path, tuple]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}

    before, first = state(), outcome()
    assert first[0] == 0 and state() == before
    for path in (run, *run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert outcome() == first and state() == before
    finally:
        for path in (run, *run.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
