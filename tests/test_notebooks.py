"""The course: every notebook is committed executed and in normal form, opens alike, and runs with other parameters."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

from ctxft import pipeline
from ctxft.cli import main
from ctxft.experiment.config import load_experiment
from ctxft.pipeline import execute, list_notebooks, normalize, run_notebooks
from ctxft.runtime import FailedError, InputError

NOTEBOOKS = list_notebooks()
MACHINE_PATH = re.compile(r"/(home|root|tmp|work|Users|mnt|opt)/|[A-Z]:\\\\")
STUDY = {"pretrain_steps": 20, "finetune_steps": 20, "test_prompts": 32}
PARAMETERS = {"document_number": 2, "question_number": 1, "arm": "neg", "lora_steps": 2, "settings": STUDY}
PARAMETERS |= {"passage_number": 1, "own_prompt": "", "families": ["creative"], "ablation_seeds": [2], "left_out": True}
PARAMETERS |= {"own_seeds": [3], "recipe": {"window": 96, "steps": 3, "batch_passages": 8, "device": "cpu"}}
SMALL = {"train.steps": 3, "corpus.limit": 12, "evaluation.limit": 8, "seeds": [4]}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEveryNotebook:
    def test_is_executed_and_in_normal_form(self, path: Path) -> None:
        assert normalize(read(path)) == read(path)
        assert [cell.execution_count for cell in code_cells(path)] == list(range(1, len(code_cells(path)) + 1))
        outputs = [output for cell in code_cells(path) for output in cell.outputs]
        assert outputs and all(output.output_type != "error" for output in outputs)
        assert not [output for output in outputs if output.get("name") == "stderr"]

    def test_is_small_and_names_no_machine(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert len(text) < 500_000
        assert not MACHINE_PATH.search(re.sub(r'"image/png": "[^"]*"', "", text))

    def test_opens_like_the_others(self, path: Path) -> None:
        first, versions = read(path).cells[:2]
        assert re.match(
            rf"# {path.stem[:2]} · .+\n\n\*\*.+\*\*\n\nAfter this notebook you can\n\n(- .+\n)+", first.source
        )
        assert re.search(r"\*Time: .+ Reading: \d+ minutes\.\*$", first.source)
        assert "versions()" in versions.source

    def test_has_one_cell_of_annotated_literal_parameters(self, path: Path) -> None:
        tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1
        for statement, line in zip(ast.parse(tagged[0].source).body, tagged[0].source.splitlines(), strict=True):
            assert isinstance(statement, ast.AnnAssign) and "  # " in line, line
            ast.literal_eval(statement.value)

    def test_defines_no_long_function(self, path: Path) -> None:
        for cell in code_cells(path):
            source = re.sub(r"^%.*$", "", cell.source, flags=re.M)
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 15, node.name

    def test_links_to_notebooks_that_exist(self, path: Path) -> None:
        links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", read(path).cells[-1].source)
        assert links and all((path.parent / link).exists() for link in links)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All notebooks, run by papermill with parameters that are not the defaults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTXFT_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield run_notebooks("mini", "small", parameters=PARAMETERS, overrides=SMALL)


def test_papermill_runs_every_notebook_with_other_parameters(small_run: Path) -> None:
    for path in NOTEBOOKS:
        executed = read(small_run / "notebooks" / path.name)
        assert normalize(executed) == executed
        assert 'run_name = "small"' in next(c.source for c in executed.cells if c["id"] == "injected-parameters")
    assert (small_run / "report.html").stat().st_size > 10_000
    assert {p.name for p in (small_run / "evals").iterdir()} == {"base", "cpt", "cft", "neg", "control", "adaptive"}


def test_html_pages_open_without_a_network(small_run: Path) -> None:
    for page in (*(small_run / "notebooks").glob("*.html"), small_run / "report.html"):
        loads = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?!data:|#)([^\"']+)", page.read_text("utf-8")
        )
        assert not loads, (page.name, loads)


def test_second_run_skips_what_is_valid(small_run: Path, capsys: pytest.CaptureFixture) -> None:
    run_notebooks("mini", "small", parameters=PARAMETERS, overrides=SMALL)
    assert capsys.readouterr().out.count("skipped") == len(NOTEBOOKS)


def test_what_a_profile_names_is_part_of_the_stamp(small_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    stamps = []
    for questions in ("practice-mmlu", "practice-old"):
        path.write_text(f"name: small\nevaluation: {{benchmarks: [{questions}], limit: 4}}\n")
        stamps.append(pipeline._stamp(NOTEBOOKS[0], {}, pipeline._inputs(load_experiment(path))))
    assert stamps[0] != stamps[1]


def test_failure_names_notebook_cell_and_error(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in ("1", "1 / 0")])
    nbformat.write(notebook, tmp_path / "99_broken.ipynb")
    with pytest.raises(
        FailedError, match=r"99_broken\.ipynb failed in code cell 2: ZeroDivisionError: division by zero"
    ):
        execute(tmp_path / "99_broken.ipynb", tmp_path / "out" / "99_broken.ipynb", {})
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["99_broken.failed.ipynb"]


def test_unknown_parameter_and_notebook_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTXFT_RUNS", str(tmp_path))
    with pytest.raises(
        InputError, match=r"no notebook takes the parameter 'question_numbr' \(did you mean 'question_number'\?\)"
    ):
        run_notebooks(parameters={"question_numbr": 1})
    with pytest.raises(InputError, match=r"unknown notebook '04_fine_tunin' \(did you mean '04_fine_tuning'\?\)"):
        run_notebooks(notebooks=["04_fine_tunin"])
    with pytest.raises(InputError, match="use --profile, --name or --set"):
        run_notebooks(parameters={"run_name": "x"})
    assert not list(tmp_path.iterdir())


def test_bad_input_inside_a_notebook_is_bad_input(tmp_path: Path) -> None:
    source = "from ctxft.runtime import InputError\nraise InputError('line 3 of x.jsonl has no text.')"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path / "99_bad.ipynb")
    with pytest.raises(
        InputError, match=r"^notebook 99_bad\.ipynb failed in code cell 1: line 3 of x\.jsonl has no text\.$"
    ):
        execute(tmp_path / "99_bad.ipynb", tmp_path / "out" / "99_bad.ipynb", {})


def test_one_notebook_alone_ends_well_without_a_table(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CTXFT_RUNS", str(tmp_path))
    assert main(["run", "--name", "alone", "--notebook", "03_domain_text", "--set", "corpus.limit=6"]) == 0
    assert "no arm was examined by these notebooks" in capsys.readouterr().out


def test_command_line_refuses_an_unknown_parameter(capsys: pytest.CaptureFixture) -> None:
    assert main(["run", "-p", "question_numbr=1"]) == 2
    assert capsys.readouterr().err.startswith("ctxft: no notebook takes the parameter 'question_numbr'")
