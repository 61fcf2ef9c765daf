"""A file of the kit's own that was cut off or changed is told when it is read, set aside, and made again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxft.report import read_run
from ctxft.storage import (
    InputError,
    checksum_holds,
    quarantine,
    read_checked,
    read_json,
    read_or_quarantine,
    with_checksum,
    write_json,
)
from ctxft.training.checkpoint import checkpoints
from tests.runs import (
    arm_folder,
    check_leaks,
    eval_folder,
    evaluate_task,
    is_examined,
    load_benchmarks,
    prepare,
    train_task,
)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_checksum_holds_until_something_changes(tmp_path, capsys):
    value = with_checksum({"a": (1, 2.5, None), "b": {"c": "ü"}, "d": math.nan})
    path = write_json(tmp_path / "x.json", value)
    again = read_checked(path)
    assert again["a"] == [1, 2.5, None] and again["checksum"] == value["checksum"]
    assert (
        not checksum_holds({**with_checksum({"n": 1}), "n": 2}) and not checksum_holds([1]) and checksum_holds({"n": 1})
    )  # none is asked for
    with pytest.raises(InputError, match=r"no\.json does not exist"):
        read_checked(tmp_path / "no.json")
    assert read_or_quarantine(tmp_path / "no.json") is None
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(InputError, match=r"x\.json was changed after it was written"):
        read_checked(path)
    assert read_or_quarantine(path) is None and not path.exists() and (tmp_path / "x.json.damaged").exists()
    assert "note: quarantined as x.json.damaged, to be regenerated: " in capsys.readouterr().err
    write_json(path, value)
    assert quarantine(path, "why.").name == "x.json-2.damaged"


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unseen(tmp_path_factory, place, bit):
    value = with_checksum({"loss": 1.25, "items": ["a", "b"], "deep": {"n": 3}})
    path = write_json(tmp_path_factory.mktemp("bits") / "x.json", value)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = read_checked(path)
    except InputError:
        return
    # what is left: white space between values, or the word "checksum" itself
    assert {k: v for k, v in found.items() if k in value and k != "checksum"} == {
        k: v for k, v in value.items() if k != "checksum"
    }


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def killed(experiment):
    """An experiment whose arm cpt stopped after its checkpoints, and what it comes to without a stop."""
    recipe = {"max_steps": 6, "save_steps": 2}
    config = experiment(recipe, arms=["base", "cpt"])
    prepare(config)
    done = train_task(config, "cpt", 0)
    folder = arm_folder(config, "cpt", 0)
    (folder / "done.json").unlink()
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
    return config, folder, done


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [cut, lambda path: flip(path, -30), lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(killed, capsys, file, damage):
    config, folder, done = killed
    damage(folder / "checkpoint-4" / file)
    assert train_task(config, "cpt", 0)["model_hash"] == done["model_hash"]
    assert (folder / "checkpoint-4.damaged").is_dir() and (folder / "checkpoint-4").is_dir()
    err = capsys.readouterr().err
    assert "quarantined as checkpoint-4.damaged" in err and file in err


def test_without_a_whole_checkpoint_a_training_begins_anew(killed):
    config, folder, done = killed
    for path in checkpoints(folder):
        cut(path / "weights.safetensors")
    assert train_task(config, "cpt", 0)["model_hash"] == done["model_hash"]
    assert len(list(folder.glob("*.damaged"))) == 2


def test_a_log_that_lacks_steps_before_the_checkpoint_is_told(killed):
    config, folder, _ = killed
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(InputError, match=r"log\.jsonl lacks steps of 1 to 4, or was changed: remove .*seed-0"):
        train_task(config, "cpt", 0)
    (folder / "log.jsonl").write_text(lines[0] + lines[1][: len(lines[1]) // 2] + "\n" + "".join(lines[2:]))
    with pytest.raises(InputError, match=r"log\.jsonl, line 2: invalid JSON"):
        train_task(config, "cpt", 0)


def test_a_damaged_record_of_a_training_is_made_again(killed):
    config, folder, done = killed
    write_json(folder / "done.json", done | {"optimizer_steps": 7})
    again = train_task(config, "cpt", 0)
    assert (folder / "done.json.damaged").exists() and again["optimizer_steps"] == 6
    assert again["model_hash"] == done["model_hash"] == read_json(folder / "done.json")["model_hash"]


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def examined(experiment):
    config = experiment(arms=["base"])
    prepare(config)
    return config, eval_folder(config, "base", 0), evaluate_task(config, "base", 0)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("metrics.json", cut),
        ("metrics.json", lambda path: path.write_text(path.read_text().replace('"loss": ', '"loss": 1'))),
        ("own-questions.jsonl", cut),
        ("own-questions.jsonl", lambda path: path.write_text(path.read_text().replace('likelihoods": [-', 'likelihoods": [-1'))),
    ],
)  # fmt: skip
def test_damaged_results_are_measured_again(examined, file, damage):
    config, folder, scores = examined
    damage(folder / file)
    with pytest.raises(InputError, match=str(file)):  # a report does not mend, it tells
        read_run(config.folder)
    assert not is_examined(config, "base", 0, load_benchmarks(config))
    assert (folder / f"{file}.damaged").exists()
    assert evaluate_task(config, "base", 0) == scores and is_examined(config, "base", 0, load_benchmarks(config))
    assert read_run(config.folder).metrics["base"][0]["held_out"]["loss"] == scores["held_out"]["loss"]


def test_held_out_text_that_was_changed_is_not_measured_on(examined):
    config, folder, _ = examined
    path = config.folder / "corpus" / "passages-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (folder / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"passages-00000\.arrow was changed after it was made"):
        evaluate_task(config, "base", 0)


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: data.replace(b"\0", b"\xff", 1)])
def test_passages_that_were_damaged_are_refused_by_their_hash(experiment, change):
    config = experiment()
    path = prepare(config) / "corpus" / "passages-00000.arrow"
    path.write_bytes(change(path.read_bytes()))
    for call in (lambda: train_task(config, "cpt", 0), lambda: check_leaks(config)):
        with pytest.raises(
            InputError, match=r"passages-00000\.arrow was changed after it was made, or removed: remove the folder"
        ):
            call()


def test_a_damaged_manifest_is_told_and_never_overwritten(experiment):
    config = experiment()
    path = prepare(config) / "manifest.json"
    path.write_text(path.read_text().replace('"max_length": ', '"max_length": 1'))
    for call in (lambda: prepare(config), lambda: train_task(config, "cpt", 0), lambda: read_run(config.folder)):
        with pytest.raises(InputError, match=r"manifest\.json was changed after it was written"):
            call()


# --- lines that are appended ------------------------------------------------------------------------------------------
