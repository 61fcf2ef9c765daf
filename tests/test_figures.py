"""Figures: in the kit's style, with words for those who cannot see them, the same in every run, on disk as PNG and SVG."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from ctxft.course import notebooks_folder
from ctxft.evaluation.metrics import calibration
from ctxft.report import differences_figure, loss_figure, results_figure, show
from ctxft.report.figures import SHEET, confusion_figure, families_figure, picture, reliability_figure, save
from ctxft.storage import InputError, read_json
from ctxft.synthetic.figures import alignment_figure, copying_figure, curves_figure, errors_figure
from tests.test_report import fake_run

RESULTS = notebooks_folder() / "results"
DIFFERENCE = {"arm": "neg", "difference": -2.0, "difference_low": -3.0, "difference_high": -1.0}
SURE = [{"log_likelihoods": [-0.1, -2.0], "prediction": 0, "correct": n % 3 > 0, "gold": 0} for n in range(30)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("fake") / "run")


def study(target: str) -> dict:
    return read_json(RESULTS / f"synthetic_{target}.json")


FIGURES: dict[str, tuple[Callable[[Path], Figure], str]] = {
    "results": (results_figure, "practice-mmlu: base "),
    "losses": (loss_figure, "cpt, mean of 3 seeds: "),
    "differences": (
        lambda _: differences_figure({"one": [DIFFERENCE]}),
        "one: neg -2.0 (-3.0 to -1.0).",
    ),
    "families": (lambda _: families_figure(read_json(RESULTS / "ablations.json")["rows"], "Families"), "neg -"),
    "confusion": (lambda _: confusion_figure({"cpt": [[3, 1], [0, 2]]}, ["yes", "no"]), "cpt: 5 of 6 on the diagonal"),
    "reliability": (lambda _: reliability_figure({"cpt": calibration(SURE)}), "expected calibration error"),
    "curves": (lambda _: curves_figure(study("sumdot")), "best constant"),
    "errors": (lambda _: errors_figure(study("sumdot")), "with a fresh one: "),
    "alignment": (lambda _: alignment_figure(study("polynomial")), "Partial derivative: "),
    "copying": (lambda _: copying_figure([study("sumdot"), study("relu")]), "relu, a fresh one: "),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_words_with_its_numbers_and_is_the_same_in_every_run(run: Path, tmp_path: Path, name: str) -> None:
    draw, said = FIGURES[name]
    before = copy.deepcopy(dict(matplotlib.rcParams))
    figures = [draw(run), draw(run)]
    words = figures[0].get_label()
    assert said in words and words.endswith(".") and "nan" not in words
    files = []
    for number, figure in enumerate(figures):
        save(figure, name, tmp_path / str(number))
        files.append([(tmp_path / str(number) / "figures" / f"{name}.{end}").read_bytes() for end in ("png", "svg")])
    assert files[0] == files[1] and picture(figures[0]) == picture(figures[1])
    assert dict(matplotlib.rcParams) == before, "the settings of the session have changed"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_in_the_style_sheet(run: Path, name: str) -> None:
    figure = FIGURES[name][0](run)
    assert figure.get_layout_engine() is not None
    for axes in figure.axes:
        assert not axes.spines["top"].get_visible() and not axes.spines["right"].get_visible()
        assert axes.xaxis.label.get_color() == SHEET["axes.labelcolor"]
        assert not axes.get_visible() or axes.get_xlabel() or axes.get_ylabel() or axes.get_title(loc="left")


def test_shown_it_is_a_picture_with_words_and_two_files(run: Path, tmp_path: Path) -> None:
    figure = results_figure(run)
    data, about = show(figure, "08-results", tmp_path)._repr_mimebundle_()
    assert data["text/plain"] == figure.get_label() == about["image/png"]["alt"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["08-results.png", "08-results.svg"]
    svg = (tmp_path / "figures" / "08-results.svg").read_text(encoding="utf-8")
    assert figure.get_label() in svg and ">accuracy (%), 95 % interval over items<" in svg, "text stays text"
    with pytest.raises(InputError, match="figure 'bare' has no words for those who cannot see it: give alt"):
        show(Figure(), "bare", tmp_path)
