"""The course: every notebook is committed executed and in normal form, opens alike, and runs with other parameters."""

from __future__ import annotations

import ast
import html
import json
import os
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import psutil
import pytest

from ctxft.cli import main
from ctxft.course import copy_course, execute, list_notebooks, normalize, notebooks_folder, run_notebooks, to_html
from ctxft.storage import REPO_ROOT, FailedError, InputError, exclusive_lock
from tests.golden.notebooks import GOLDEN, WORDS, differ, run_small, texts_of
from tests.offline import PLANTED, guarded

NOTEBOOKS = list_notebooks()
MACHINE_PATH = re.compile(r"/(home|root|tmp|work|Users|mnt|opt)/|[A-Z]:\\\\")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def words_of(page: str) -> list[str]:
    """Return the words of every picture of a page."""
    found = []
    parser = HTMLParser()
    parser.handle_startendtag = lambda tag, given: found.append(dict(given).get("alt")) if tag == "img" else None
    parser.handle_starttag = parser.handle_startendtag
    parser.feed(page)
    return found


SOLUTIONS = sorted((notebooks_folder() / "solutions").glob("*.ipynb"))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: f"solutions/{path.stem}")
def test_solutions_have_the_form_of_the_course(path: Path) -> None:
    form = TestEveryNotebook()
    form.test_is_executed_and_in_normal_form(path)
    form.test_is_small_and_names_no_machine(path)
    form.test_has_one_cell_of_annotated_literal_parameters(path)
    form.test_defines_no_long_function(path)


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


# --- all notebooks, run by papermill with parameters that are not the defaults, in a process that gets no connection -----


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """The run folder, what the command printed, and the connections that were refused."""
    return run_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small_run(small: tuple) -> Path:
    return small[0]


@pytest.mark.notebook
def test_papermill_runs_every_notebook_with_other_parameters(small_run: Path) -> None:
    for path in NOTEBOOKS:
        executed = read(small_run / "notebooks" / path.name)
        assert normalize(executed) == executed
        assert 'run_name = "small"' in next(c.source for c in executed.cells if c["id"] == "injected-parameters")
    assert (small_run / "report.html").stat().st_size > 10_000
    assert {p.name for p in (small_run / "evals").iterdir()} == {"base", "cpt", "cft", "neg", "control", "adaptive"}


@pytest.mark.notebook
def test_the_course_asks_nothing_of_another_machine(small: tuple, tmp_path: Path) -> None:
    folder, printed, refused = small
    assert refused == [], "a library asked something of another machine"
    written = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert len(written) > 50
    for secret in PLANTED.values():
        assert not [path for path in written if secret.encode() in path.read_bytes()], "a key was written down"
        assert secret not in printed
    for verb in ("verify", "compare"):
        done, refused = guarded([sys.executable, "-m", "ctxft", verb, "small"], folder.parents[1], network=False)
        assert done.returncode == 0 and refused == [], done.stderr[-3000:]


@pytest.mark.notebook
def test_the_notebooks_print_what_was_recorded(small_run: Path) -> None:
    """Every text of every cell, as `python tests/golden/notebooks.py` recorded it: two runs of the course agree."""
    golden, texts = json.loads(GOLDEN.read_text(encoding="utf-8")), texts_of(small_run)
    assert golden.keys() == texts.keys()
    changed = [
        f"{name}, code cell {number}: recorded\n{theirs}\nnow\n{ours}"
        for name in golden
        for number, (theirs, ours) in enumerate(zip(golden[name], texts[name], strict=True), start=1)
        if differ(theirs, ours)
    ]
    assert not changed, "\n\n".join(changed)


@pytest.mark.notebook
def test_html_pages_open_without_a_network(small_run: Path) -> None:
    for page in (*(small_run / "notebooks").glob("*.html"), small_run / "report.html", small_run / "index.html"):
        loads = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?!data:|#|figures/)([^\"']+)", page.read_text("utf-8")
        )
        assert not loads, (page.name, loads)
        assert "No description has been provided" not in page.read_text("utf-8"), (
            f"{page.name}: a picture without words"
        )


@pytest.mark.notebook
def test_every_picture_stands_on_disk_with_its_words(small_run: Path) -> None:
    shown = 0
    for path in NOTEBOOKS:
        for cell in read(small_run / "notebooks" / path.name).cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    shown += 1
                    words = output.metadata["image/png"]["alt"]
                    assert words == output.data["text/plain"] and words.endswith(".")
                    assert words in words_of((small_run / "notebooks" / f"{path.stem}.html").read_text("utf-8"))
    kept = {kind: {p.stem for p in (small_run / "figures").glob(f"*.{kind}")} for kind in ("png", "svg")}
    assert kept["png"] == kept["svg"] and len(kept["png"]) >= shown > 10


@pytest.mark.notebook
def test_the_index_leads_to_every_page_and_log(small_run: Path) -> None:
    page = (small_run / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]+)"', page)
    assert links and all((small_run / link).exists() for link in links)
    for path in NOTEBOOKS:
        assert {f"notebooks/{path.stem}.html", f"notebooks/{path.stem}.log"} <= set(links)
        title = read(path).cells[0].source.splitlines()[0].removeprefix("# ")
        assert html.escape(title) in page
    assert "report.html" in links and page.count("<img ") == page.count('" alt="') > 10
    log = (small_run / "notebooks" / "02_domain_text.log").read_text(encoding="utf-8")
    assert log.startswith("python 3") and "12 documents" in log


@pytest.mark.notebook
def test_a_second_run_skips_what_is_valid(small_run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CTXFT_RUNS", str(small_run.parent))
    assert main(WORDS) == 0
    printed = capsys.readouterr().out
    assert printed.count("nothing changed since the last run, skipped") == len(NOTEBOOKS)
    assert "practice-mmlu" in printed and f"report: {small_run / 'report.html'}" in printed


# --- a course of two notebooks that only print ------------------------------------------------------------------------


def write_course(folder: Path, *sources: str) -> None:
    for number, source in enumerate(sources):
        cells = [
            nbformat.v4.new_markdown_cell(f"# 0{number} · Tiny <{number}>\n\n**It prints.**"),
            nbformat.v4.new_code_cell("size: int = 1  # of it", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(source),
        ]
        nbformat.write(normalize(nbformat.v4.new_notebook(cells=cells)), folder / f"0{number}_tiny.ipynb")


@pytest.fixture
def tiny(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a course of two tiny notebooks."""
    folder = tmp_path / "course"
    (folder / "results").mkdir(parents=True)
    write_course(folder, "print('size', size)", "print('second')")
    monkeypatch.setenv("CTXFT_NOTEBOOKS", str(folder))
    return folder


@pytest.mark.process
def test_only_what_changed_runs_again(tiny: Path, runs: Path, capsys: pytest.CaptureFixture) -> None:
    def states(*words: str) -> list[str]:
        assert main(["run", "--name", "tiny", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2].startswith("these notebooks evaluated no arm, so there is no table")
        return ["ran" if "done in" in line else "skipped" for line in lines[:-2]]

    assert states() == ["ran", "ran"]
    assert states() == ["skipped", "skipped"]
    assert states("-p", "size=2") == ["ran", "ran"]  # each declares it
    assert "size 2" in (runs / "tiny" / "notebooks" / "00_tiny.log").read_text(encoding="utf-8")
    assert states("--notebook", "01_tiny", "-p", "size=2") == ["skipped"]
    write_course(tiny, "print('size', size)", "print('other')")
    assert states("-p", "size=2") == ["skipped", "ran"]
    (runs / "tiny" / "notebooks" / "00_tiny.ipynb").unlink()
    assert states("-p", "size=2") == ["ran", "skipped"]
    (tiny / "results" / "new.json").write_text("{}")
    assert states("-p", "size=2") == ["ran", "ran"]
    own = tiny / "own.yaml"
    own.write_text("name: tiny\nevaluation: {benchmarks: [practice-old]}\n")
    assert states("--profile", str(own), "-p", "size=2") == ["ran", "ran"]  # other questions


@pytest.mark.process
def test_a_notebook_that_fails_ends_the_run_and_the_index_shows_it(tiny: Path, runs: Path, capsys) -> None:
    assert main(["run", "--name", "tiny", "--notebook", "00_tiny"]) == 0
    write_course(tiny, "print('size', size)", "1 / 0")
    assert main(["run", "--name", "tiny"]) == 1
    assert "ctxft: notebook 01_tiny.ipynb failed in code cell 2: ZeroDivisionError" in capsys.readouterr().err
    page = (runs / "tiny" / "index.html").read_text(encoding="utf-8")
    assert "00 · Tiny &lt;0&gt;" in page and 'class="nothing changed"' in page and 'class="failed"' in page
    links = re.findall(r'href="([^"]+)"', page)
    assert links and all((runs / "tiny" / link).exists() for link in links)
    assert "notebooks/01_tiny.failed.ipynb" in links and "notebooks/01_tiny.html" not in links


@pytest.mark.process
def test_parameters_of_a_profile_reach_the_notebooks(tiny: Path, runs: Path, capsys) -> None:
    path = tiny / "own.yaml"
    path.write_text("name: own\nnotebooks: {size: 7}\n")
    assert main(["run", "--profile", str(path), "--notebook", "00_tiny"]) == 0
    assert "size 7" in (runs / "own" / "notebooks" / "00_tiny.log").read_text(encoding="utf-8")
    path.write_text("name: own\nnotebooks: {sise: 7}\n")
    assert main(["run", "--profile", str(path)]) == 2
    message = "own.yaml: notebooks: no notebook takes the parameter 'sise' (did you mean 'size'?)"
    assert message in capsys.readouterr().err
    path.write_text("name: own\nnotebooks: [1]\n")
    with pytest.raises(InputError, match=r"own\.yaml: notebooks must be a mapping of parameters to values"):
        run_notebooks(str(path))


def test_unknown_parameters_and_notebooks_are_refused(tiny: Path, runs: Path, capsys) -> None:
    for words, message in (
        (["-p", "sise=1"], "no notebook takes the parameter 'sise' (did you mean 'size'?); known: size."),
        (["--notebook", "01_tni"], "unknown notebook '01_tni' (did you mean '01_tiny'?)"),
        (["-p", "run_name=x"], "use --profile, --name or --set"),
        (["--set", "arms=[base,cpt]"], "the notebooks compare base, cpt and cft: add cft to arms."),
    ):
        assert main(["run", *words]) == 2
        assert message in capsys.readouterr().err
    assert not runs.exists()


def test_a_second_run_of_the_same_notebooks_names_the_first(tiny: Path, runs: Path, capsys) -> None:
    with exclusive_lock(runs / "mini" / "notebooks" / ".run.lock", "tests"):
        assert main(["run"]) == 2
    message = capsys.readouterr().err
    assert f"another process runs the notebooks of {runs / 'mini'}: wait for it" in message


def test_the_course_is_copied_whole_and_never_over_something(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["course", str(tmp_path / "mine")]) == 0
    assert f"open it with: jupyter lab {tmp_path / 'mine'}" in capsys.readouterr().out
    theirs = {
        p.relative_to(notebooks_folder()) for p in notebooks_folder().rglob("*") if ".ipynb_checkpoints" not in p.parts
    }
    assert {p.relative_to(tmp_path / "mine") for p in (tmp_path / "mine").rglob("*")} == theirs
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="exists and is not an empty folder: choose another"):
        copy_course(tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep me"


@pytest.mark.process
def test_a_kernel_that_dies_ends_in_one_sentence_and_the_next_run_succeeds(tmp_path: Path) -> None:
    path, target = tmp_path / "99_dies.ipynb", tmp_path / "out" / "99_dies.ipynb"
    source = f"import os, pathlib, signal\nflag = pathlib.Path({str(tmp_path / 'flag')!r})\nif not flag.exists():\n"
    source += "    flag.touch()\n    os.kill(os.getpid(), signal.SIGKILL)\nprint('alive')"
    cells = [
        nbformat.v4.new_markdown_cell("# 99 · Dies\n\n**It does.**"),
        *map(nbformat.v4.new_code_cell, ("1", source)),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(
        FailedError, match=r"^notebook 99_dies\.ipynb: its kernel died in code cell 2: it was killed, or the"
    ):
        execute(path, target, {})
    assert sorted(p.name for p in target.parent.iterdir()) == ["99_dies.failed.ipynb", "99_dies.log"]
    execute(path, target, {})
    assert "alive" in target.with_suffix(".log").read_text(encoding="utf-8")
    assert not target.with_name("99_dies.failed.ipynb").exists()


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_kernel_and_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "99_waits.ipynb"
    worker = "from ctxft.run.processes import die_with_parent; import time; die_with_parent(); time.sleep(600)"
    source = "import sys\nfrom ctxft.run.processes import run_parallel\n"
    source += f"run_parallel('train', [[sys.executable, '-c', {worker!r}]] * 2, {{}}, lambda: None)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    script = (
        "import sys; from pathlib import Path; from ctxft.course import execute; execute(*map(Path, sys.argv[1:]), {})"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "out" / path.name)]
    process = psutil.Popen(command, env={**os.environ, "PYTHONPATH": str(REPO_ROOT)})
    deadline = time.monotonic() + 120
    while len(begun := process.children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert len(begun) == 3, "a kernel and two workers"
    assert not psutil.wait_procs(begun, timeout=30)[1], "somebody lives on"


def test_a_picture_keeps_its_words_on_the_page(tmp_path: Path) -> None:
    about = {"image/png": {"alt": 'bars & "ends"', "width": 300}}
    output = nbformat.v4.new_output("display_data", {"image/png": "AAAA"}, metadata=about)
    cell = nbformat.v4.new_code_cell("1", outputs=[output])
    page = to_html(normalize(nbformat.v4.new_notebook(cells=[cell])), tmp_path / "x.html").read_text(encoding="utf-8")
    assert words_of(page) == ['bars & "ends"'] and 'width="300"' in page


@pytest.mark.process
def test_failure_names_notebook_cell_and_error(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in ("1", "1 / 0")])
    nbformat.write(notebook, tmp_path / "99_broken.ipynb")
    with pytest.raises(
        FailedError, match=r"99_broken\.ipynb failed in code cell 2: ZeroDivisionError: division by zero"
    ):
        execute(tmp_path / "99_broken.ipynb", tmp_path / "out" / "99_broken.ipynb", {})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["99_broken.failed.ipynb", "99_broken.log"]
    assert "ZeroDivisionError: division by zero" in (tmp_path / "out" / "99_broken.log").read_text(encoding="utf-8")


@pytest.mark.process
def test_bad_input_inside_a_notebook_is_bad_input(tmp_path: Path) -> None:
    source = "from ctxft.storage import InputError\nraise InputError('line 3 of x.jsonl has no text.')"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path / "99_bad.ipynb")
    with pytest.raises(
        InputError, match=r"^notebook 99_bad\.ipynb failed in code cell 1: line 3 of x\.jsonl has no text\.$"
    ):
        execute(tmp_path / "99_bad.ipynb", tmp_path / "out" / "99_bad.ipynb", {})
