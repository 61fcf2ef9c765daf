"""An executed notebook goes in; the same without what differs between two equal runs comes out, to be committed and compared."""

from __future__ import annotations

import copy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ctxft.storage import write_text

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


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
