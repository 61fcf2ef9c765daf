"""A profile flows in; executed notebooks flow out, in order, each skipped where nothing that it depends on has changed.

    notebooks/NN_name.ipynb + parameters -> papermill -> runs/<name>/notebooks/NN_name.ipynb (in normal form) and .html

A notebook in normal form holds nothing that differs between two equal runs (times, ids of widgets), so that its outputs
can be committed, compared and tested.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tqdm import tqdm

from ctxft import __version__
from ctxft.experiment.config import load_experiment
from ctxft.runtime import (
    PACKAGE_ROOT,
    REPO_ROOT,
    InputError,
    check_known,
    hash_file,
    nearest,
    read_json,
    runs_root,
    sha256,
    versions,
    write_json,
    write_text,
)

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
QUIET_KERNEL = ["--log-level=CRITICAL"]  # a kernel on loopback need not warn on every start that it is not encrypted
COMMON = ("profile", "run_name", "overrides")  # parameters that every notebook has


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
        if "metadata" in output:
            output["metadata"] = {}
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
    exporter = HTMLExporter(require_js_url="", mathjax_url="", mermaid_js_url="", jquery_url="", exclude_input_prompt=True)
    body, _ = exporter.from_notebook_node(notebook)
    return write_text(path, body)


def _parameters_of(path: Path) -> set[str]:
    return set(papermill.inspect_notebook(str(path)))


def _stamp(path: Path, parameters: dict) -> str:
    """Hash what an executed notebook depends on: its source, its parameters, the kit's code and the libraries."""
    code = {p.relative_to(PACKAGE_ROOT).as_posix(): hash_file(p) for p in sorted(PACKAGE_ROOT.rglob("*.py"))}
    cells = [[cell.cell_type, cell.source] for cell in nbformat.read(path, as_version=4).cells]
    return sha256([cells, parameters, code, versions(), __version__])


def execute(path: Path, target: Path, parameters: dict) -> NotebookNode:
    """Run one notebook by papermill and write its normal form and its HTML page.

    Args:
        path: the notebook.
        target: where the executed notebook goes; the page stands beside it.
        parameters: values for its parameters cell.

    Raises:
        RuntimeError: a cell failed; notebook, cell and error are named, and the notebook up to there is kept at ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    working = target.with_name(f".running-{target.name}")
    try:
        papermill.execute_notebook(
            str(path), str(working), parameters, kernel_name="python3", progress_bar=False, extra_arguments=QUIET_KERNEL
        )
    except papermill.PapermillExecutionError as error:
        os.replace(working, target)
        raise RuntimeError(
            f"notebook {path.name} failed in code cell {error.exec_count}: {error.ename}: {error.evalue}\n(see {target})"
        ) from error
    notebook = normalize(nbformat.read(working, as_version=4))
    to_html(notebook, target.with_suffix(".html"))
    write_notebook(target, notebook)
    working.unlink()
    return notebook


def _wanted(names: list[str]) -> list[Path]:
    known = {path.stem: path for path in list_notebooks()}
    return [known[check_known(Path(name).stem, known, "notebook")] for name in names] or list(known.values())


def _check_parameters(paths: list[Path], parameters: dict) -> dict[Path, set[str]]:
    declared = {path: _parameters_of(path) for path in paths}
    known = set().union(*declared.values())
    for name in parameters:
        if name not in known or name in COMMON:
            hint = "use --profile, --name or --set" if name in COMMON else f"known: {', '.join(sorted(known - set(COMMON)))}"
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
        RuntimeError: a notebook failed (its name, cell and error are told).
    """
    parameters, overrides = parameters or {}, overrides or {}
    config = load_experiment(profile, overrides | ({"name": name} if name else {}))
    source = profile if not Path(profile).suffix else str(Path(profile).resolve())
    common = {"profile": source, "run_name": config.name, "overrides": {k: v for k, v in overrides.items() if k != "name"}}
    paths = _wanted(notebooks or [])
    declared = _check_parameters(paths, parameters)
    folder = runs_root() / config.name
    stamps_path = folder / "notebooks" / "stamps.json"
    stamps = read_json(stamps_path) if stamps_path.exists() else {}
    for path in tqdm(paths, desc="ctxft run", unit="notebook", leave=False, disable=not sys.stderr.isatty()):
        given = common | {key: value for key, value in parameters.items() if key in declared[path]}
        target, stamp = folder / "notebooks" / path.name, _stamp(path, given)
        if stamps.get(path.name) == stamp and target.exists() and (folder / "manifest.json").exists():
            print(f"{path.stem}: nothing changed since the last run, skipped", flush=True)
            continue
        print(f"{path.stem}: running", flush=True)
        execute(path, target, given)
        stamps[path.name] = stamp
        write_json(stamps_path, stamps)
    return folder
