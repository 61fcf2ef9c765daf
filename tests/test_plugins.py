"""Arms and prompt sets from outside the package: from a folder that a config names, and from an installed package."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctxft.prompts import add_plugins, arms, get_arm, sort_arms
from ctxft.run.run import Run
from ctxft.storage import InputError, read_json, read_jsonl

ARM = """from ctxft.prompts import Arm


def last_family(sources, passage):
    family = sources.strategies.families[-1]
    return sources.strategies.members[family][0]


ARMS = [Arm("last-family", "the first prompt of the last family", "#123456", last_family)]
"""
PROMPT_SET = """name: short
kind: strategy
prompts:
  - {id: context-1, family: context, text: Think of where this belongs.}
  - {id: critical-1, family: critical, text: Ask whether this is so.}
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an arm and a prompt set; the table of arms forgets it after the test."""
    for text in (ARM, PROMPT_SET):
        assert text.count("\n") <= 15
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "last_family.py").write_text(ARM)
    (folder / "short.yaml").write_text(PROMPT_SET)
    known = dict(arms.table())
    monkeypatch.setattr(arms, "table", lambda: known)
    return folder


def test_an_arm_and_a_prompt_set_of_a_folder_are_trained_and_evaluated(plugins, experiment, runs) -> None:
    config = experiment(
        arms=["base", "cft", "last-family", "last-family-ift"],
        plugins=[str(plugins)],
        prompts={"strategies": "short"},
        train={"max_steps": 2, "train_batch_size": 4},
        ift={"max_steps": 1, "train_batch_size": 4},
        evaluation={"benchmarks": ["practice-mmlu"], "limit": 4},
    )
    run = Run(config).prepare()
    for arm, seed in run.train_tasks:
        run.train_task(arm, seed)
    for arm, seed in run.evaluate_tasks:
        run.evaluate_task(arm, seed)
    rows = [row for _, row in read_jsonl(run.arm_folder("last-family") / "prompts.jsonl")]
    assert {row["prompt"] for row in rows} == {"critical-1"} and len(rows) > 1
    assert read_json(run.eval_folder("last-family-ift") / "metrics.json")["benchmarks"]["practice-mmlu"]
    assert sort_arms(["last-family", "cft", "only-critical", "base"]) == ["base", "cft", "last-family", "only-critical"]
    assert get_arm("last-family-ift").color == "#123456"


def test_arms_of_a_folder_in_the_environment_are_known(plugins) -> None:
    code = "from ctxft.prompts import get_arm; print(get_arm('last-family').reads)"
    environment = {**os.environ, "CTXFT_PLUGINS": str(plugins)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "the first prompt of the last family\n"


def test_to_read_a_run_runs_no_code_that_only_the_run_names(plugins, experiment, runs, monkeypatch) -> None:
    run = Run(experiment(arms=["cpt", "last-family"], plugins=[str(plugins)])).prepare()
    monkeypatch.setattr(arms, "NAMED", set())
    with pytest.raises(InputError, match=f"if you trust them, set CTXFT_PLUGINS={plugins}"):
        Run(run.folder)
    add_plugins([plugins])
    assert Run(run.folder).config.arms == ["cpt", "last-family"]


def test_arms_of_an_installed_package_are_known() -> None:
    entries = importlib.metadata.entry_points(group="ctxft.arms")
    names = [arm.name for entry in entries for arm in entry.load()]
    assert {"adaptive", "control-adaptive", "reading"} <= set(names) and all(get_arm(name) for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", r"bad\.py cannot be used as a plugin: ZeroDivisionError"),
        ("ARMS = ['cft']", r"bad\.py: ARMS must be a list of Arm"),
        ("from ctxft.prompts import Arm\nARMS = [Arm('a/b', '')]", r"bad\.py: ARMS must be a list of Arm"),
        ("from ctxft.prompts import Arm\nARMS = [Arm('cft', '')]", "there is another arm 'cft': choose another name"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_with_its_file(plugins, text: str, message: str) -> None:
    (plugins / "bad.py").write_text(text)
    with pytest.raises(InputError, match=message):
        add_plugins([plugins])
    with pytest.raises(InputError, match="nowhere does not exist"):
        add_plugins([plugins / "nowhere"])
