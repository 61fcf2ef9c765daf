"""Run, copy and check the notebooks of the course.

    notebooks/NN_name.ipynb + parameters -> papermill -> runs/<name>/notebooks/NN_name.ipynb (in normal form), .html, .log
                                                      -> runs/<name>/index.html

The notebooks themselves import ``check`` and ``score`` from here, so papermill and nbconvert are loaded only where they are used.
"""

from __future__ import annotations

import copy
import math
import numbers
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

from ctxft.config import notebook_parameters, to_mapping
from ctxft.report.page import render_html
from ctxft.run.prepare import inputs_of
from ctxft.run.run import Run
from ctxft.storage import (
    PACKAGE_ROOT,
    REPO_ROOT,
    FailedError,
    InputError,
    atomic_dir,
    check_known,
    exclusive_lock,
    hash_file,
    nearest,
    read_done,
    sha256,
    step,
    versions,
    write_text,
)

try:
    import nbformat
    from nbformat import NotebookNode
except ImportError:
    raise InputError("the notebooks need packages that are not installed: pip install 'ctxft[notebooks]'.") from None

COMMON = ("profile", "run_name", "overrides")  # parameters that come from the run, for the notebooks that declare them
# Of nbconvert, with the alternative text of pictures.
TEMPLATE = PACKAGE_ROOT / "report" / "templates" / "notebook.html"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CHECKED: dict[str, bool] = {}  # what was checked in this kernel -> whether the last try was right


# --- the self-checks of the exercises ---------------------------------------------------------------------------------


def check(what: str, yours: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Print your value next to the expected one, and whether they agree.

    Args:
        what: names the value, as in "passages of document 5".
        yours: your value; ``...`` or None, as the empty lines of an exercise leave it, is not an answer yet.
        expected: the right value: a number, a text, or a list or dictionary of these.
        tolerance: how far a number may be from the expected one, in its own unit.

    Returns:
        Whether your value is right.

    Example:
        >>> check("half of 42", 21, 42 / 2)
        half of 42: yours 21, expected 21.0 - right
        True
        >>> check("half of 42", 20, 42 / 2)
        half of 42: yours 20, expected 21.0 - not yet
        False
        >>> check("half of 42", ..., 42 / 2)
        half of 42: not answered yet
        False
    """
    CHECKED[what] = False
    if yours is ... or yours is None:
        print(f"{what}: not answered yet")
        return False
    CHECKED[what] = right = _agree(yours, expected, tolerance)
    near = f" (to {tolerance:g})" if tolerance else ""
    print(f"{what}: yours {_shown(yours)}, expected {_shown(expected)}{near} - {'right' if right else 'not yet'}")
    return right


def _agree(yours: Any, expected: Any, tolerance: float) -> bool:
    """Return whether two values are equal, numbers within a tolerance, lists and dictionaries item by item."""
    if isinstance(expected, Mapping):
        same = isinstance(yours, Mapping) and yours.keys() == expected.keys()
        return same and all(_agree(yours[key], expected[key], tolerance) for key in expected)
    if isinstance(expected, bool) or isinstance(yours, bool):
        return type(yours) is type(expected) and yours == expected
    if isinstance(expected, numbers.Real):
        return isinstance(yours, numbers.Real) and math.isclose(yours, expected, rel_tol=1e-9, abs_tol=tolerance)
    if isinstance(expected, Iterable) and not isinstance(expected, str):
        if isinstance(yours, str | Mapping) or not isinstance(yours, Iterable):
            return False
        ours, theirs = list(yours), list(expected)
        return len(ours) == len(theirs) and all(_agree(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    return yours == expected


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) and not value.is_integer() else repr(value)
    return text if len(text) <= 60 else text[:56] + " ..."


def score() -> float:
    """Print how many checks are right so far, each counted by its last try, and return their fraction."""
    right = sum(CHECKED.values())
    print(f"{right} of {len(CHECKED)} checks right")
    return right / len(CHECKED) if CHECKED else 0.0


# --- the notebooks ----------------------------------------------------------------------------------------------------


def notebooks_folder() -> Path:
    """Return the folder of the course: ``CTXFT_NOTEBOOKS``, else that of the installed package or of the repository."""
    inside = PACKAGE_ROOT / "notebooks"
    folder = Path(os.environ.get("CTXFT_NOTEBOOKS") or (inside if inside.is_dir() else REPO_ROOT / "notebooks"))
    if not folder.is_dir():
        raise InputError(f"there are no notebooks in {folder}: install ctxft again, or correct CTXFT_NOTEBOOKS.")
    return folder


def list_notebooks() -> list[Path]:
    """Return the notebooks of the course in order."""
    return sorted(notebooks_folder().glob("[0-9][0-9]_*.ipynb"))


def copy_course(target: str | Path) -> Path:
    """Copy the notebooks, their solutions, figures, results and glossary into a folder that is new or empty.

    Returns:
        The folder.

    Raises:
        InputError: there is something in the folder already.

    Example:
        >>> copy_course("my-course")  # doctest: +SKIP
        PosixPath('my-course')
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder: choose another, so that nothing is replaced.")
    with atomic_dir(target) as place:
        hidden = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(notebooks_folder(), place, dirs_exist_ok=True, ignore=hidden)
    return target


def normalize(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of an executed notebook without what differs between two equal runs.

    Times, run ids and widget views are removed; cells are counted from 1; the kernel is called python3.

    Args:
        notebook: as read by nbformat, version 4.

    Raises:
        nbformat.ValidationError: the notebook breaks the format.
    """
    notebook = copy.deepcopy(notebook)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell["execution_count"], cell["outputs"] = count, _normal_outputs(cell, count)
    nbformat.validate(notebook)
    return notebook


def _normal_outputs(cell: NotebookNode, count: int) -> list[NotebookNode]:
    merged: list[NotebookNode] = []
    for output in cell.outputs:
        if "execution_count" in output:
            output["execution_count"] = count
        if "metadata" in output:  # of which the alternative text of a picture stays
            output["metadata"] = {mime: about for mime, about in output["metadata"].items() if mime == "image/png"}
        output.get("data", {}).pop(WIDGET_VIEW, None)
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.get("name"):
            merged[-1]["text"] += output["text"]  # where a stream is cut depends on timing
        else:
            merged.append(output)
    return merged


def write_notebook(path: Path, notebook: NotebookNode) -> Path:
    """Write a notebook atomically, with the indentation that JupyterLab uses."""
    return write_text(path, nbformat.writes(notebook) + "\n")


def to_html(notebook: NotebookNode, path: Path) -> Path:
    """Write an executed notebook as one HTML file that opens without a network; pictures have alternative texts."""
    from nbconvert import HTMLExporter

    urls = dict.fromkeys(("require_js_url", "mathjax_url", "mermaid_js_url", "jquery_url"), "")
    exporter = HTMLExporter(raw_template=TEMPLATE.read_text(encoding="utf-8"), exclude_input_prompt=True, **urls)
    body, _ = exporter.from_notebook_node(notebook)
    return write_text(path, body)


# --- execution --------------------------------------------------------------------------------------------------------


def execute(path: Path, target: Path, parameters: dict) -> NotebookNode:
    """Run one notebook by papermill, and write its normal form, its HTML page and its log.

    Args:
        path: the notebook.
        target: where the executed notebook goes; page and log are next to it.
        parameters: values for its parameters cell.

    Raises:
        InputError: a cell met bad input.
        FailedError: a cell failed, or its kernel died; the message names notebook, cell and error, and the notebook up to
            that cell is kept next to ``target`` as NN_name.failed.ipynb.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    target.parent.mkdir(parents=True, exist_ok=True)
    working, failed = target.with_name(f".running-{target.name}"), target.with_name(f"{target.stem}.failed.ipynb")
    options = {"kernel_name": "python3", "progress_bar": sys.stderr.isatty()}
    options["extra_arguments"] = ["--log-level=CRITICAL"]  # that a kernel on loopback is not encrypted is no news
    log = open(target.with_suffix(".log"), "w", encoding="utf-8", errors="backslashreplace")
    with log, mock.patch.dict(os.environ, TQDM_DISABLE="1"):  # whose bars would differ from run to run
        try:
            streams = {"stdout_file": log, "stderr_file": log}
            papermill.execute_notebook(str(path), str(working), parameters, **streams, **options)
        except (DeadKernelError, papermill.PapermillExecutionError) as error:
            log.write(str(error))
            os.replace(working, failed)  # a good one from before stays
            raise _failure(path.name, failed, error) from error
    notebook = normalize(nbformat.read(working, as_version=4))
    to_html(notebook, target.with_suffix(".html"))
    write_notebook(target, notebook)
    working.unlink()
    failed.unlink(missing_ok=True)
    return notebook


def _failure(name: str, failed: Path, error: Exception) -> InputError | FailedError:
    """Return what to raise for a notebook that stopped: one sentence, and where the notebook is."""
    import papermill

    if isinstance(error, papermill.PapermillExecutionError):
        where = f"notebook {name} failed in code cell {error.exec_count}"
        if error.ename == InputError.__name__:
            return InputError(f"{where}: {error.evalue}")
        return FailedError(f"{where}: {error.ename}: {error.evalue}\n(see {failed})")
    cells = [cell for cell in nbformat.read(failed, as_version=4).cells if cell.cell_type == "code"]
    place = sum(bool(cell.metadata.get("papermill", {}).get("start_time")) for cell in cells)
    return FailedError(
        f"notebook {name}: its kernel died in code cell {place}: it was killed, or the machine ran out of memory. What it "
        f"had computed is kept: start again.\n(see {failed})"
    )


# --- a run of the course ----------------------------------------------------------------------------------------------


def run_notebooks(
    profile: str = "mini",
    name: str | None = None,
    notebooks: list[str] | None = None,
    parameters: dict | None = None,
    overrides: dict | None = None,
) -> Path:
    """Run the course's notebooks in order into one run folder; a notebook runs again only if something changed.

    Args:
        profile: an experiment profile of the kit, or the path of a YAML file.
        name: of the run folder; None takes the profile's.
        notebooks: names such as "03_fine_tuning"; None or empty runs all.
        parameters: values for notebook parameters; each goes to the notebooks that declare it, and takes precedence over
            the profile's ``notebooks``.
        overrides: dotted config keys and values that replace the profile's, in every notebook.

    Returns:
        The run folder.

    Raises:
        InputError: unknown profile, notebook, parameter or config key, or another process runs these notebooks now.
        FailedError: a notebook failed; the message names it, its cell and the error.
    """
    import papermill

    run = Run(profile, name=name, overrides=overrides)
    if missing := [arm for arm in ("base", "cpt", "cft") if arm not in run.config.arms]:
        raise InputError(f"the notebooks compare base, cpt and cft: add {', '.join(missing)} to arms.")
    known = {path.stem: path for path in list_notebooks()}
    paths = [known[check_known(Path(name).stem, known, "notebook")] for name in notebooks or known]
    declared = {path: set(papermill.inspect_notebook(str(path))) for path in known.values()}
    source = profile if not Path(profile).suffix else str(Path(profile).resolve())
    of_profile, parameters = notebook_parameters(profile), parameters or {}
    _check_parameters(parameters, [declared[path] for path in paths], "")
    _check_parameters(of_profile, declared.values(), f"{source}: notebooks: ")
    settings = {key: value for key, value in (overrides or {}).items() if key != "name"}
    common = {"profile": source, "run_name": run.wanted.name, "overrides": settings}
    values = common | of_profile | parameters
    inputs = sha256(_inputs(run))  # bad input is reported before any notebook runs
    if run.is_prepared:
        run.require_prepared()
    folder = run.folder / "notebooks"
    with exclusive_lock(folder / ".run.lock", f"runs the notebooks of {run.folder}"):
        states = {path: "done" if (folder / path.name).exists() else "" for path in known.values()}
        for number, path in enumerate(paths, start=1):
            given = {key: value for key, value in values.items() if key in declared[path]}
            print(f"{path.stem} ({number} of {len(paths)})", end=": ", flush=True)
            _run_notebook(run, path, given, inputs, states)
    return run.folder


def _check_parameters(parameters: dict, declared: Iterable[set[str]], where: str) -> None:
    known = set().union(*declared) - set(COMMON)
    for name in parameters:
        if name not in known:
            hint = f"known: {', '.join(sorted(known))}" if name not in COMMON else "use --profile, --name or --set"
            raise InputError(f"{where}no notebook takes the parameter '{name}'{nearest(name, known)}; {hint}.")


def _inputs(run: Run) -> list:
    """Return what all notebooks of a run depend on: config, contents that it names, code, committed results, libraries."""
    files = [path for path in sorted(PACKAGE_ROOT.rglob("*")) if path.suffix in (".py", ".yaml", ".txt")]
    code = {path.relative_to(PACKAGE_ROOT).as_posix(): hash_file(path) for path in files}
    results = {path.name: hash_file(path) for path in sorted((notebooks_folder() / "results").glob("*.json"))}
    items = [[question.hash for question in benchmark.questions] for benchmark in run.benchmarks]
    return [to_mapping(run.wanted), inputs_of(run), items, code, results, versions()]


def _run_notebook(run: Run, path: Path, given: dict, inputs: str, states: dict[Path, str]) -> None:
    target = run.folder / "notebooks" / path.name
    cells = [[cell.cell_type, cell.source] for cell in nbformat.read(path, as_version=4).cells]

    def show(state: str) -> None:
        states[path] = state
        write_index(run.folder, states)

    with step(_record(target), inputs={"cells": sha256(cells), "parameters": given, "run": inputs}) as stage:
        if stage.done and target.exists() and all((run.folder / name).exists() for name in stage.result["results"]):
            print("nothing changed since the last run, skipped", flush=True)
            show("nothing changed")
            return
        print("running ...", end=" ", flush=True)
        show("running")
        started = time.perf_counter()
        try:
            execute(path, target, given)
        except BaseException:
            show("failed")
            raise
        results = [path.relative_to(run.folder).as_posix() for path in run.folder.glob("evals/*/*/metrics.json")]
        stage.result = {"seconds": time.perf_counter() - started, "results": results}
        print(f"done in {duration(stage.result['seconds'])}: {target}", flush=True)
    show("done")


def _record(target: Path) -> Path:
    return target.parent / ".done" / target.stem  # where the step of a notebook keeps that it is done


def duration(seconds: float) -> str:
    """Return a time in words, rounded to what matters: "40 s", "3 min", "1 h 20 min".

    Example:
        >>> duration(42), duration(200), duration(4800)
        ('42 s', '3 min', '1 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def write_index(folder: Path, states: dict[Path, str]) -> Path:
    """Write ``index.html`` of a run: every notebook with its state and pages, the report, the figures."""
    rows = []
    for path, state in states.items():
        opening = nbformat.read(path, as_version=4).cells[0].source
        title = re.match(r"# (.+)\n\n\*\*(.+)\*\*", opening)
        done = read_done(_record(folder / "notebooks" / path.name))
        kinds = {"page": ".html", "notebook": ".ipynb", "log": ".log", "what failed": ".failed.ipynb"}
        files = {words: f"notebooks/{path.stem}{end}" for words, end in kinds.items()}
        row = {"title": title[1], "promise": title[2]} if title else {"title": path.stem, "promise": ""}
        row |= {"state": state, "time": duration(done["result"]["seconds"]) if done else ""}
        rows.append(row | {"files": {words: file for words, file in files.items() if (folder / file).exists()}})
    figures = {path.stem: _words_of(path) for path in sorted((folder / "figures").glob("*.svg"))}
    values = {"rows": rows, "figures": figures, "report": (folder / "report.html").exists(), "versions": versions()}
    page = render_html("index.html", title=f"Run {folder.name}", **values)
    return write_text(folder / "index.html", str(page))


def _words_of(figure: Path) -> str:
    """Return the alternative text of a figure, which its SVG holds."""
    return ElementTree.parse(figure).findtext(".//{http://purl.org/dc/elements/1.1/}description") or ""
