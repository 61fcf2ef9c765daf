"""The committed study of the practice world is of the conditions that its script names, and these are valid experiments."""

from __future__ import annotations

import pytest

from ctxft.storage import read_json
from tests.practice_study import CONDITIONS, EXAMS, RESULTS, config_of


def test_the_committed_study_is_of_the_conditions_in_the_script():
    study = read_json(RESULTS)["conditions"]
    assert study.keys() == CONDITIONS.keys()
    for name, wanted in CONDITIONS.items():
        record = study[name]
        assert record["seeds"] == wanted["seeds"]
        assert record["values"] == {key: value for key, value in wanted.items() if key not in ("arms", "seeds")}
        assert record["exams"].keys() == {f"practice-{exam}" for exam in EXAMS}
        for arms in record["exams"].values():
            assert arms.keys() - {"lines"} == set(wanted["arms"])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_is_a_valid_experiment(condition, tmp_path):
    config = config_of(condition, tmp_path)
    assert config.name == f"study-{condition}" and config.seeds == CONDITIONS[condition]["seeds"]
    assert config.evaluation.benchmarks == [f"practice-{exam}" for exam in EXAMS]
