"""The exercises: every stub fails its self-check, every solution in the twin passes it; prose follows the result files."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from ctxft import course
from ctxft.course import check, list_notebooks, normalize, notebooks_folder, score

NOTEBOOKS = list_notebooks()
GLOSSARY = notebooks_folder() / "glossary.md"
LEVELS = ["easy", "medium", "hard"]


def cells_of(path: Path, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if tag in cell.metadata.get("tags", [])]


def said(cell: nbformat.NotebookNode) -> list[str]:
    """Return the lines that a cell printed."""
    return [line for output in cell.outputs for line in output.get("text", "").splitlines()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestExercises:
    def test_three_levels_and_a_twin_with_the_same_questions_and_checks(self, path: Path) -> None:
        twin = path.parent / "solutions" / path.name
        for tag in ("exercise", "self-check"):
            ours, theirs = ([cell.source for cell in cells_of(one, tag)] for one in (path, twin))
            assert ours == theirs and len(ours) >= 3
        found = [
            re.match(r"\*\*Exercise (\d) \((\w+)\)\.\*\*", cell.source).groups() for cell in cells_of(path, "exercise")
        ]
        assert [number for number, _ in found] == [str(n + 1) for n in range(len(found))]
        levels = [level for _, level in found]
        assert sorted(set(levels), key=LEVELS.index) == LEVELS == sorted(LEVELS, key=levels.index)
        assert len(cells_of(path, "stub")) == len(cells_of(twin, "solution")) == len(found)

    def test_each_stub_fails_and_each_solution_passes(self, path: Path) -> None:
        for cell in cells_of(path, "self-check"):
            assert said(cell) and all(line.endswith(("not answered yet", "- not yet")) for line in said(cell))
        for cell in cells_of(path.parent / "solutions" / path.name, "self-check"):
            assert said(cell) and all(line.endswith("- right") for line in said(cell))

    def test_the_twin_is_executed_in_normal_form_and_counts_its_checks(self, path: Path) -> None:
        twin = nbformat.read(path.parent / "solutions" / path.name, as_version=4)
        assert normalize(twin) == twin
        assert not [
            output for cell in twin.cells for output in cell.get("outputs", []) if output.output_type == "error"
        ]
        last = [cell for cell in twin.cells if cell.cell_type == "code"][-1]
        assert "assert score() == 1" in last.source  # a solution that has become wrong fails its notebook

    def test_it_closes_like_the_others(self, path: Path) -> None:
        last = nbformat.read(path, as_version=4).cells[-1].source
        assert last.startswith("## Go further\n")
        assert f"\n[Solutions](solutions/{path.name}) · [Glossary](glossary.md)\n" in last
        assert re.search(r"^(Next|Back to the start): \[", last, flags=re.M)


def test_the_glossary_is_in_order_and_its_links_lead_somewhere() -> None:
    text = GLOSSARY.read_text(encoding="utf-8")
    terms = re.findall(r"^\*\*(.+?)\*\*", text, flags=re.M)
    assert len(terms) > 30 and terms == sorted(terms, key=str.casefold) and len(set(terms)) == len(terms)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (GLOSSARY.parent / link).exists(), link


# Numbers that prose may hold: levels of tests, examples, and what follows from the published size of a data set. All that
# was measured comes from a cell that computes it.
CONSTANTS = {"0.05", "5 %", "80 %", "95 %", "0.6", "25 %", "100 %", "7 %", "0.90"}
NUMBER = re.compile(r"(?<![\w.])(\d+\.\d+|\d+ ?%|[+-]\d[\d.]*)(?![\w.]*\d)")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_measured_number_is_typed_into_prose(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and "exercise" not in cell.metadata.get("tags", []):
            prose = re.sub(
                r"```.*?```|`[^`]*`|\]\([^)]*\)|^    .*?$|^\*Time: .*?\*$", "", cell.source, flags=re.S | re.M
            )
            typed = {found.strip() for found in NUMBER.findall(prose)} - CONSTANTS - {"2503.09032"}
            assert not typed, f"{typed} in: {cell.source[:200]}"


class TestCheck:
    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(course, "CHECKED", {})

    @pytest.mark.parametrize(
        ("yours", "expected", "tolerance", "right"),
        [
            (3, 3.0, 0, True),
            (3.01, 3, 0.02, True),
            (3.01, 3, 0, False),
            ("a", "a", 0, True),
            ("3", 3, 0, False),
            (True, 1, 0, False),
            ([1, 2], (1, 2), 0, True),
            ([1, 2, 3], [1, 2], 0, False),
            ("ab", ["a", "b"], 0, False),
            ({"a": 1.001}, {"a": 1}, 0.01, True),
            ({"b": 1}, {"a": 1}, 0, False),
            (float("nan"), 1, 0, False),
        ],
    )
    def test_values_are_compared_by_kind_and_to_the_tolerance(self, yours, expected, tolerance, right) -> None:
        assert check("it", yours, expected, tolerance) is right

    def test_what_is_empty_is_no_answer_and_gives_nothing_away(self, capsys) -> None:
        assert not check("it", ..., "secret") and not check("it", None, "secret")
        assert capsys.readouterr().out == "it: not answered yet\n" * 2

    def test_the_last_try_counts(self, capsys) -> None:
        check("a", 1, 2), check("a", 2, 2), check("b", 1, 2)
        assert score() == 0.5
        assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 checks right"


def shifted(value: object) -> object:
    """Return a result with every measured number in it moved, the large below the small."""
    if isinstance(value, dict):
        return {key: shifted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shifted(one) for one in value]
    if isinstance(value, str):  # a verdict is a sentence with numbers
        return re.sub(r"\d+\.\d+", lambda found: f"{0.9 * float(found[0]) + 1.23:.2f}", value)
    return 5 / (1 + abs(value)) if isinstance(value, float) else value


def outputs_from_results(path: Path, folder: Path) -> list[str]:
    """Run the cells of a notebook that need nothing but result files, those of a folder, and return what each shows."""
    shell, shown = InteractiveShell(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTXFT_NOTEBOOKS", str(folder))
        for cell in cells_of(path, "from-results"):
            with capture_output() as captured, contextlib.redirect_stderr(io.StringIO()):
                result = shell.run_cell(cell.source)
            result.raise_error()
            printed = re.sub(r"^Out\[\d*\]: .*\n?", "", captured.stdout, flags=re.M)
            shown.append(printed + getattr(result.result, "data", ""))
    return shown


WITH_RESULTS = [path for path in NOTEBOOKS if cells_of(path, "from-results")]


@pytest.fixture(scope="module")
def shifted_course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the course in which every measured number of the result files is another one."""
    folder = shutil.copytree(notebooks_folder() / "results", tmp_path_factory.mktemp("course") / "results").parent
    for file in (folder / "results").glob("*.json"):
        file.write_text(json.dumps(shifted(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
    return folder


@pytest.mark.parametrize("path", WITH_RESULTS, ids=lambda path: path.stem)
def test_what_prose_states_about_results_follows_their_files(path: Path, shifted_course: Path) -> None:
    before, after = (outputs_from_results(path, folder) for folder in (notebooks_folder(), shifted_course))
    for cell, ours, theirs in zip(cells_of(path, "from-results"), before, after, strict=True):
        if ours:
            assert ours != theirs, f"this cell shows the same whatever the results are:\n{cell.source}"
    assert any(before)
