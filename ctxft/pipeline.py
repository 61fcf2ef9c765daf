"""A profile flows in; executed notebooks flow out, in order, each skipped where nothing that it depends on has changed.

    notebooks/NN_name.ipynb + parameters -> papermill -> runs/<name>/notebooks/NN_name.ipynb (in normal form) and .html

A notebook in normal form holds nothing that differs between two equal runs (times, ids of widgets), so that its outputs
can be committed, compared and tested.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tqdm import tqdm

from ctxft.experiment.config import ExperimentConfig, load_experiment, to_mapping
from ctxft.experiment.examine import load_benchmarks
from ctxft.experiment.prepare import inputs_of, manifest_of, pinned, require_same
from ctxft.experiment.tasks import eval_folder, evaluate_tasks
from ctxft.runtime import (
    PACKAGE_ROOT,
    REPO_ROOT,
    FailedError,
    InputError,
    check_known,
    hash_file,
    nearest,
    sha256,
    versions,
    write_json,
    write_text,
)
from ctxft.seals import read_or_set_aside, sealed

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
QUIET_KERNEL = ["--log-level=CRITICAL"]  # a kernel on loopback need not warn on every start that it is not encrypted
COMMON = ("profile", "run_name", "overrides")  # parameters that come from the run, to the notebooks that declare them


def notebooks_folder() -> Path:
    """Return the folder of the course: the repository's, or the one inside the installed package."""
    inside = PACKAGE_ROOT / "notebooks"
    folder = inside if inside.is_dir() else REPO_ROOT / "notebooks"
    if not folder.is_dir():
        raise InputError(f"the notebooks are neither in {inside} nor in {folder}: install ctxft again.")
    return folder


def list_notebooks() -> list[Path]:
    """Return the notebooks of the course in order."""
    return sorted(notebooks_folder().glob("[0-9][0-9]_*.ipynb"))


def normalize(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of an executed notebook without what differs between two equal runs.

    Times, run ids and widget views go; cells are counted from 1; the kernel is called python3.

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
    count = 0
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
        if cell.cell_type == "code":
            count += 1
            _normalize_outputs(cell, count)
    nbformat.validate(notebook)
    return notebook


def _normalize_outputs(cell: NotebookNode, count: int) -> None:
    cell["execution_count"] = count
    merged: list[NotebookNode] = []
    for output in cell.outputs:
        if "execution_count" in output:
            output["execution_count"] = count
        if "metadata" in output:  # of which the words of a picture stay
            kept = {mime: about for mime, about in output["metadata"].items() if mime == "image/png"}
            output["metadata"] = kept
        output.get("data", {}).pop(WIDGET_VIEW, None)
        same_stream = merged and output.output_type == "stream" and merged[-1].get("name") == output.get("name")
        if same_stream:  # how a stream is cut in pieces depends on timing
            merged[-1]["text"] += output["text"]
        else:
            merged.append(output)
    cell["outputs"] = merged


def write_notebook(path: Path, notebook: NotebookNode) -> Path:
    """Write a notebook whole, with the indentation that JupyterLab uses."""
    return write_text(path, nbformat.writes(notebook) + "\n")


def to_html(notebook: NotebookNode, path: Path) -> Path:
    """Write an executed notebook as one HTML file that opens without a network."""
    exporter = HTMLExporter(
        require_js_url="", mathjax_url="", mermaid_js_url="", jquery_url="", exclude_input_prompt=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    return write_text(path, body)


def _parameters_of(path: Path) -> set[str]:
    return set(papermill.inspect_notebook(str(path)))


def _inputs(config: ExperimentConfig) -> dict:
    """Return what all notebooks of a run depend on: config, contents that it names, code, committed results, libraries."""
    code = {p.relative_to(PACKAGE_ROOT).as_posix(): hash_file(p) for p in sorted(PACKAGE_ROOT.rglob("*.py"))}
    results = {path.name: hash_file(path) for path in sorted((notebooks_folder() / "results").glob("*.json"))}
    items = [[question.hash for question in benchmark.questions] for benchmark in load_benchmarks(config)]
    exact = pinned(config, manifest_of(config))
    return {
        "config": to_mapping(config),
        **inputs_of(exact),
        "items": sha256(items),
        "code": code,
        "results": results,
        "versions": versions(),
    }


def _stamp(path: Path, parameters: dict, inputs: dict) -> str:
    cells = [[cell.cell_type, cell.source] for cell in nbformat.read(path, as_version=4).cells]
    return sha256([cells, parameters, inputs])


def _is_complete(config: ExperimentConfig) -> bool:
    return all((eval_folder(config, *task) / "metrics.json").exists() for task in evaluate_tasks(config))


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def execute(path: Path, target: Path, parameters: dict) -> NotebookNode:
    """Run one notebook by papermill and write its normal form and its HTML page.

    Args:
        path: the notebook.
        target: where the executed notebook goes; the page stands beside it.
        parameters: values for its parameters cell.

    Raises:
        InputError: a cell met bad input.
        FailedError: a cell failed; notebook, cell and error are named, and the notebook up to there is kept
            beside ``target`` as NN_name.failed.ipynb.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    working = target.with_name(f".running-{target.name}")
    quiet = {"TQDM_DISABLE": "1"}  # nobody watches a bar here, and its text would differ from run to run
    try:
        with _environment(quiet):
            papermill.execute_notebook(
                str(path),
                str(working),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                extra_arguments=QUIET_KERNEL,
            )
    except papermill.PapermillExecutionError as error:
        failed = target.with_name(f"{target.stem}.failed.ipynb")  # a good one from before stays
        os.replace(working, failed)
        where = f"notebook {path.name} failed in code cell {error.exec_count}"
        if error.ename == InputError.__name__:
            raise InputError(f"{where}: {error.evalue}") from None
        raise FailedError(f"{where}: {error.ename}: {error.evalue}\n(see {failed})") from error
    notebook = normalize(nbformat.read(working, as_version=4))
    to_html(notebook, target.with_suffix(".html"))
    write_notebook(target, notebook)
    working.unlink()
    target.with_name(f"{target.stem}.failed.ipynb").unlink(missing_ok=True)
    return notebook


def _wanted(names: list[str]) -> list[Path]:
    known = {path.stem: path for path in list_notebooks()}
    return [known[check_known(Path(name).stem, known, "notebook")] for name in names] or list(known.values())


def _check_parameters(paths: list[Path], parameters: dict) -> dict[Path, set[str]]:
    declared = {path: _parameters_of(path) for path in paths}
    known = set().union(*declared.values())
    for name in parameters:
        if name not in known or name in COMMON:
            hint = (
                "use --profile, --name or --set"
                if name in COMMON
                else f"known: {', '.join(sorted(known - set(COMMON)))}"
            )
            raise InputError(f"no notebook takes the parameter '{name}'{nearest(name, known)}; {hint}.")
    return declared


def run_notebooks(
    profile: str = "mini",
    name: str | None = None,
    notebooks: list[str] | None = None,
    parameters: dict | None = None,
    overrides: dict | None = None,
) -> Path:
    """Run the course's notebooks in order into one run folder.

    Args:
        profile: an experiment profile of the kit, or the path of a YAML file.
        name: of the run folder; None takes the profile's.
        notebooks: names such as "04_fine_tuning"; None or empty runs all.
        parameters: values for notebook parameters; each goes to the notebooks that declare it.
        overrides: dotted config keys and values that replace the profile's, in every notebook.

    Returns:
        The run folder.

    Raises:
        InputError: unknown profile, notebook, parameter or config key.
        FailedError: a notebook failed (its name, cell and error are told).
    """
    parameters, overrides = parameters or {}, overrides or {}
    config = load_experiment(profile, overrides | ({"name": name} if name else {}))
    if missing := [arm for arm in ("base", "cpt", "cft") if arm not in config.arms]:
        raise InputError(f"the notebooks compare base, cpt and cft: add {', '.join(missing)} to arms.")
    source = profile if not Path(profile).suffix else str(Path(profile).resolve())
    common = {
        "profile": source,
        "run_name": config.name,
        "overrides": {k: v for k, v in overrides.items() if k != "name"},
    }
    paths = _wanted(notebooks or [])
    declared = _check_parameters(paths, parameters)
    inputs = _inputs(config)  # bad input is told before any notebook runs
    if manifest_of(config) is not None:
        require_same(config)
    folder = config.folder
    stamps_path = folder / "notebooks" / "stamps.json"
    stamps = read_or_set_aside(stamps_path) or {}
    for path in tqdm(paths, desc="ctxft run", unit="notebook", leave=False, disable=not sys.stderr.isatty()):
        given = {key: value for key, value in (common | parameters).items() if key in declared[path]}
        target, stamp = folder / "notebooks" / path.name, _stamp(path, given, inputs)
        if stamps.get(path.name) == stamp and target.exists() and _is_complete(config):
            print(f"{path.stem}: nothing changed since the last run, skipped", flush=True)
            continue
        print(f"{path.stem}: running ...", end=" ", flush=True)
        started = time.perf_counter()
        if stamps.pop(path.name, None):  # should it fail now, its output is not valid for any stamp
            write_json(stamps_path, sealed(stamps))
        execute(path, target, given)
        stamps[path.name] = stamp
        write_json(stamps_path, sealed(stamps))
        print(f"done in {time.perf_counter() - started:.0f} s: {target}", flush=True)
    return folder
