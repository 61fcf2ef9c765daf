"""Tables and figures of synthetic studies, from the committed results: labels, colours, baselines, the authors' record."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ctxft.report.figures import arm_color
from ctxft.storage import REPO_ROOT, InputError
from ctxft.synthetic.config import ARMS, load_config
from ctxft.synthetic.figures import (
    COLORS,
    RECORDED,
    alignment_figure,
    copying_figure,
    curves_figure,
    errors_figure,
    mean_error,
    read_result,
    study_table,
)
from ctxft.synthetic.study import baselines

FILES = sorted((REPO_ROOT / "notebooks" / "results").glob("synthetic_*.json"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def study(request) -> dict:
    return read_result(request.param)


def test_there_are_results_to_draw() -> None:
    assert {path.stem for path in FILES} >= {"synthetic_polynomial", "synthetic_sumdot"}
    assert set(RECORDED) == {"polynomial", "sumdot", "relu"} and set(COLORS) == set(ARMS)


def test_committed_results_are_complete_and_of_the_present_size(study: dict) -> None:
    assert study["arms"] == list(ARMS) == list(study["runs"]) and study["seeds"] == [0, 1, 2]
    assert study["config"] == load_config("mini").what(), "run the command in the file again"
    assert study["command"].startswith("ctxft synthetic") and study["versions"]["torch"]
    for seeds in study["runs"].values():
        assert list(seeds) == ["0", "1", "2"]
        for run in seeds.values():
            assert all(
                low <= mean <= high
                for low, mean, high in zip(*(run["errors"]["own"][k] for k in ("low", "mean", "high")), strict=True)
            )
            assert run["log"]["step"][-1] == study["config"]["finetune_steps"] and -1 <= run["alignment"]["total"] <= 1
    for name, values in baselines(load_config("mini"), study["target"]).items():
        assert study["baselines"][name] == pytest.approx(values, rel=1e-4)


def test_table_says_what_the_runs_say(study: dict) -> None:
    table = study_table(study).set_index("arm")
    assert list(table.index) == list(ARMS)
    errors = {arm: [mean_error(run) for run in seeds.values()] for arm, seeds in study["runs"].items()}
    mean = sum(errors["fresh"]) / 3
    spread = math.sqrt(sum((value - mean) ** 2 for value in errors["fresh"]) / 2)
    assert table.loc["fresh", "error"] == f"{mean:.2f} ± {spread:.2f}"
    ratios = [cft / cpt for cft, cpt in zip(errors["cft"], errors["cpt"], strict=True)]
    assert table.loc["cft", "over cpt"] == f"{min(ratios):.3f} to {max(ratios):.3f}"
    guess = sum(study["baselines"]["scale"]) / len(study["baselines"]["scale"])
    assert table.loc["fresh", "over scale"] == f"{mean / guess:.3f}"
    assert table.loc["cpt", "over cpt"] == "1.000"
    assert table.loc["fresh", "error"] == table.loc["fresh", "with fresh context"], "its own context is a fresh one"
    assert table.loc["cpt", "error"] == table.loc["cpt", "without context"]


def test_figures_show_every_arm_in_its_colour(study: dict) -> None:
    assert all(COLORS[arm] == arm_color(arm) for arm in ("cft", "cpt", "neg"))
    curves = curves_figure(study).axes[0]
    lines = {line.get_label(): line for line in curves.lines}
    assert [*ARMS, "best constant"] == list(lines) and all(lines[arm].get_color() == COLORS[arm] for arm in ARMS)
    own, fresh, recorded = errors_figure(study, ["cft", "cpt"]).axes
    assert [line.get_label() for line in own.lines][:3] == ["cft", "cpt", "best constant"]
    assert ("best guess from |w|" in {line.get_label() for line in own.lines}) == (study["target"] != "sumdot")
    linear = {"least squares", "least squares, w known"} <= {line.get_label() for line in own.lines}
    assert linear == (study["target"] == "sumdot")
    assert list(own.lines[0].get_ydata()) != list(fresh.lines[0].get_ydata())
    assert "the authors'" in recorded.get_title(loc="left")
    assert list(recorded.lines[0].get_ydata()) == RECORDED[study["target"]]["errors"]["cft"]
    labels = [tick.get_text() for tick in alignment_figure(study).axes[0].get_yticklabels()]
    assert labels == list(ARMS)
    (panel,) = copying_figure([study]).axes
    assert [tick.get_text() for tick in panel.get_yticklabels()] == list(ARMS)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"table": []}))
    with pytest.raises(InputError, match=r"other\.json is not a result of `ctxft synthetic --out`"):
        read_result(path)
