"""Golden experiments: what tiny runs of every kind made when they were recorded, they make today, whatever became of the code.

Recordings are in ``tests/golden``; ``python -m tests.golden.record`` made them. Passages, prompts, order, rows, predictions and
the cells of the tables are equal; losses and log-likelihoods are within 1e-5 on the torch and processor of the recording, and
within 1e-4 elsewhere.
"""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from tests.golden import record
from tests.golden.collect import collect, load_result
from tests.golden.map_keys import RENAMED, map_keys
from tests.golden.recordings import (
    ELSEWHERE,
    HERE,
    RESULTS,
    STUDIES,
    config_paths,
    differences,
    numbers_of,
    read_recording,
)

CONFIGS = {path.stem: path for path in config_paths()}
PARTS = ("passages", "ledger", "prompts", "order", "rows", "log", "items", "outcomes", "held_out", "tables")
SHARED = ("passages", "ledger", "items")  # the same for all tasks of a run
ARMS = """base cpt cft neg control adaptive control-shuffled control-neutral control-family only-critical without-critical
    count-2 cft-learned reading ift cpt-ift cft-ift""".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The function that runs a golden experiment, each way once."""
    known: dict = {}

    def run(name: str, mode: str = "straight", only: tuple[str, ...] = ()) -> dict:
        if (name, mode, only) not in known:
            known[name, mode, only] = collect(CONFIGS[name], tmp_path_factory.mktemp(name), mode, only)
        return known[name, mode, only]

    return run


def check(name: str, recorded: object, actual: object) -> None:
    """Fail with the first differences between a part of a recording and what was found."""
    here = record.machine()
    same = all(read_recording(CONFIGS[name])["made with"][key] == here[key] for key in ("torch", "cpu", "instructions"))
    lines = differences(recorded, json.loads(json.dumps(actual)), HERE if same else ELSEWHERE)
    assert not lines, f"{len(lines)} differences to the recording of {name}.yaml:\n" + "\n".join(lines[:10])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_is_what_was_recorded(made, name, part):
    check(name, read_recording(CONFIGS[name])[part], made(name)[part])


@pytest.mark.parametrize(("mode", "task"), [("by task", "cft-ift:1"), ("resumed", "cft:0")])
def test_a_run_by_task_or_resumed_is_the_straight_one(made, mode, task):
    recorded, actual, straight = read_recording(CONFIGS["lora"]), made("lora", mode, (task,)), made("lora")
    assert actual["weights"] == {task: straight["weights"][task]}  # bit for bit
    for part in PARTS[:-1]:
        check("lora", recorded[part] if part in SHARED else {task: recorded[part][task]}, actual[part])


def test_the_recordings_cover_every_kind_of_arm_and_run():
    recorded = {name: read_recording(path) for name, path in CONFIGS.items()}
    assert set(ARMS) == {task.split(":")[0] for one in recorded.values() for task in one["outcomes"]}
    assert {task.split(":")[1] for task in recorded["lora"]["log"]} == {"0", "1"}
    assert all(set(PARTS) < set(one) for one in recorded.values())
    mixed = {document for step in recorded["stages"]["order"]["cft:1"] for document in step.split()}
    assert any(document.startswith("old-") for document in mixed) and any(d.startswith("new-") for d in mixed)
    answers = [one["written"] for task in recorded["stages"]["outcomes"].values() for one in task.values()]
    assert len({answer for written in answers for answer in written}) > 10
    first, *others = recorded["arms"]["order"].values()
    assert all(order == first for order in others)


def change(recorded: dict, part: str) -> None:
    """Change one value of a recording by a little."""
    if part == "prompts":
        recorded[part]["cft:0"][3][3] += "."
    elif part == "rows":
        recorded[part]["cft:0"]["in full"]["1"][1] = recorded[part]["cft:0"]["in full"]["1"][1].replace("-100 ", "", 1)
    elif part == "log":
        recorded[part]["cft:0"][2]["loss"] += 2e-5
    elif part == "outcomes":
        recorded[part]["cft:0"]["practice-mmlu"]["log_likelihoods"][1][0] += 2e-5
    elif part == "order":
        recorded[part]["cft:0"][0] = " ".join(reversed(recorded[part]["cft:0"][0].split()))
    else:
        recorded[part]["results"][0][3] = "99.9"


@pytest.mark.parametrize("part", ["prompts", "rows", "log", "outcomes", "order", "tables"])
def test_one_changed_value_is_found(part):
    recorded = read_recording(CONFIGS["arms"])
    actual = copy.deepcopy(recorded)
    assert differences(recorded, actual) == []
    change(actual, part)
    (line,) = differences(recorded, actual)
    assert line.startswith(f"/{part}/")


def test_a_recording_is_not_written_over_by_accident(capsys):
    with pytest.raises(SystemExit):
        record.main([])
    assert "arms.json" in capsys.readouterr().err


# --- the committed results, and new names of keys -----------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_can_be_read_and_their_numbers_are_those_recorded(path):
    result = load_result(path)
    assert numbers_of(result)
    if path.stem in STUDIES:
        assert record.digest(result) == json.loads(record.NUMBERS.read_text(encoding="utf-8"))[path.stem]


@pytest.mark.parametrize("path", [*CONFIGS.values(), *sorted(RESULTS.glob("*.json"))], ids=lambda path: path.name)
def test_new_names_of_keys_change_no_value_and_hold_still(path):
    text = path.read_text(encoding="utf-8")
    mapped = map_keys(text)
    assert map_keys(mapped) == mapped
    before, after = yaml.load(text, Loader=yaml.CSafeLoader), yaml.load(mapped, Loader=yaml.CSafeLoader)
    assert numbers(before) == numbers(after) != []
    assert not [key for key in dotted(after) if key in RENAMED]
    if path.stem == "practice_study":
        assert "train.num_train_epochs" in mapped
    if path.suffix == ".yaml":
        assert mapped.count("#") == text.count("#") and len(mapped.splitlines()) >= len(text.splitlines())


def numbers(values: object) -> list[float]:
    """Return all numbers of nested values, in their order."""
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return [values] if isinstance(values, (int, float)) else [number for one in inner for number in numbers(one)]


def dotted(values: object, section: str = "") -> list[str]:
    """Return the keys of nested mappings, each with its section."""
    if not isinstance(values, dict):
        return []
    return [key for name, inner in values.items() for key in (f"{section}{name}", *dotted(inner, f"{section}{name}."))]


def test_the_table_of_keys():
    old = """\
train:
  window: 96        # tokens
  "warmup": 0.05
  betas: [0.9, 0.95]
  tensorboard: true
  lora: {rank: 8, alpha: 32, dropout: 0.1, targets: [all-linear]}
ift: {steps: 2, held_out: 0.1}
evaluation: {form: options, rule: generate, shots: 5}
corpus: {source: "µg – rank"}
"""
    new = """\
train:
  max_length: 96        # tokens
  "warmup_steps": 0.05
  adam_beta1: 0.9
  adam_beta2: 0.95
  report_to: [tensorboard]
  lora: {r: 8, lora_alpha: 32, lora_dropout: 0.1, target_modules: [all-linear]}
ift: {max_steps: 2, held_out: 0.1}
evaluation: {form: cloze, output_type: generate_until, num_fewshot: 5}
corpus: {source: "µg – rank"}
"""
    assert map_keys(old) == new
    assert map_keys('{"a": {"values": {"train.num_train_epochs": 12, "epochs": 3}}}').count("num_train_epochs") == 1
