"""The one object of a run, and the facade: from the names of the package to a table."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import yaml

import ctxft
from ctxft.config import to_mapping
from ctxft.run import run as run_module
from ctxft.storage import PACKAGE_ROOT, InputError, write_text


def test_from_the_package_to_a_table(experiment):
    run = ctxft.Run(experiment(), arms=["base", "cpt", "cft"], seeds=[0])
    assert run.train(workers=1) is run
    run.evaluate(workers=1)
    table = ctxft.results_table(run)
    assert list(table["arm"])[:3] == ["base", "cpt", "cft"]
    again = ctxft.Run(run.folder)
    assert again.passages == run.passages and again.is_trained("cft") and again.is_evaluated("cft")
    assert ctxft.Run("tiny", seeds=[0, 1]).train_tasks == [("cpt", 0), ("cpt", 1), ("cft", 0), ("cft", 1)]
    assert len(again.outcomes("own-questions", "cft")) == 6


def test_a_name_that_leads_nowhere_names_what_there_is(runs):
    with pytest.raises(
        InputError, match=r"unknown profile 'minni' \(did you mean 'mini'\?\); known: mini, .*, or a run"
    ):
        ctxft.Run("minni")
    with pytest.raises(InputError, match="unknown arm 'ctf'"):
        ctxft.Run("mini", arms=["ctf"])


def test_settings_replace_single_values_of_any_source(experiment):
    run = ctxft.Run(experiment(), overrides={"evaluation.limit": 2, "general.source": "practice-old"})
    assert run.config.evaluation.limit == 2 and run.config.general.source == "practice-old"
    assert len(run.benchmarks[0].questions) == 2


def test_an_experiment_may_be_a_mapping(runs):
    values = {"name": "own", "model": "practice-blind", "arms": ["cpt", "cft"], "train": {"max_length": 96}}
    run = ctxft.Run(values, overrides={"train.max_length": 64, "evaluation.benchmarks": ["practice-old"]})
    assert run.config.train.max_length == 64 and [one.name for one in run.benchmarks] == ["practice-old"]
    assert values["train"] == {"max_length": 96}, "the mapping stays as it is"
    with pytest.raises(InputError, match=r"unknown key 'train\.max_lenght' \(did you mean 'max_length'\?\)"):
        ctxft.Run({**values, "train": {"max_lenght": 96}})


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, ctxft; print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert set(ctxft.__all__) <= set(dir(ctxft)) and all(getattr(ctxft, name) for name in ctxft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ctxft.nothing  # noqa: B018


def test_two_commands_at_once_keep_their_own_settings(experiment, tmp_path):
    """Each worker gets the config of its own command, also where another one works in the same run folder."""
    run = ctxft.Run(experiment(arms=["base", "cpt"])).prepare()
    limits = {"4": "tiny-4", "6": "tiny-6"}
    path = write_text(tmp_path / "tiny.yaml", yaml.safe_dump(to_mapping(run.wanted)))
    command = [sys.executable, "-m", "ctxft"]
    train = [*command, "train", str(path), "--workers", "1"]
    evaluate = [[*command, "evaluate", str(path), "--task", "base:0", "--set", f"evaluation.limit={n}"] for n in limits]
    assert [process.wait() for process in map(subprocess.Popen, [train, evaluate[0]])] == [0, 0]
    assert ctxft.Run(path).is_trained("cpt")

    def size(arm: str) -> int:
        return len(run.outcomes("own-questions", arm))

    four, six = (ctxft.Run(path, overrides={"evaluation.limit": n}) for n in (4, 6))
    with ThreadPoolExecutor(2) as pool:  # base by one command, cpt by the other
        done = [
            pool.submit(ctxft.Run(one.wanted, arms=[arm]).evaluate, 1) for one, arm in ((four, "base"), (six, "cpt"))
        ]
        assert all(future.result() for future in done)
    assert (size("base"), size("cpt")) == (4, 6)


def test_inputs_are_read_once_and_rows_are_built_once(experiment, questions_file, tmp_path):
    """Three trainings and four evaluations in one process: each prompt set, benchmark and passage file is read once."""
    sets = [
        shutil.copy(PACKAGE_ROOT / "prompts" / "sets" / f"{name}.yaml", tmp_path) for name in ("strategies", "negative")
    ]
    config = experiment(
        arms=["base", "cpt", "cft", "control"], prompts={"strategies": str(sets[0]), "negative": str(sets[1])}
    )
    opened: Counter = Counter()
    sys.addaudithook(lambda event, details: event == "open" and opened.update([str(details[0])]))
    with mock.patch.object(run_module, "build_rows", wraps=run_module.build_rows) as build:
        run = ctxft.Run(config).prepare()
        for task in run.train_tasks:
            run.train_task(*task)
        for task in run.evaluate_tasks:
            run.evaluate_task(*task)
    read = {str(path): opened[str(path)] for path in (*sets, questions_file)}
    assert set(read.values()) == {1}, read
    arms = Counter((call.args[1], len(call.args[3])) for call in build.call_args_list)
    assert set(arms.values()) == {1} and len(arms) == 3 + 2, arms  # rows of three arms, and held-out text in two ways


def test_overrides_of_a_config_reach_its_sections():
    config = ctxft.load_experiment("mini")
    run = ctxft.Run(config, overrides={"evaluation.limit": 3, "train.learning_rate": 0.5})
    assert (run.config.evaluation.limit, run.config.train.learning_rate) == (3, 0.5)
    assert run.config.evaluation.benchmarks == config.evaluation.benchmarks and config.evaluation.limit != 3
