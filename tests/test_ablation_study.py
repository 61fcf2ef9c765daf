"""The committed ablation study is of the arms that its script names, and its experiment is valid."""

from __future__ import annotations

from ctxft.prompts import sort_arms
from ctxft.storage import read_json
from tests.ablation_study import KEPT, REFERENCE, RESULTS, SEEDS, study_config


def test_the_committed_study_is_of_the_arms_in_the_script(runs):
    config, study = study_config(), read_json(RESULTS)
    assert sort_arms(row["arm"] for row in study["rows"]) == sort_arms({*config.arms} - {"base", REFERENCE})
    assert study["seeds"] == SEEDS == config.seeds and [study["benchmark"]] == config.evaluation.benchmarks
    for row in study["rows"]:
        assert set(row) == set(KEPT) and row["seeds"] == len(SEEDS) and row["n"] == study["questions"]
        assert row["difference_low"] < row["difference"] < row["difference_high"]
