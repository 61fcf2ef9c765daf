"""A notebook and parameters go in; papermill runs it cell by cell, watched and logged; its normal form and page come out."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

from ctxft.course.normal import normalize, write_notebook
from ctxft.course.pages import to_html
from ctxft.storage import FailedError, InputError

QUIET_KERNEL = ["--log-level=CRITICAL"]  # a kernel on loopback need not warn on every start that it is not encrypted
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
Watch = Callable[[int, int], None]


class WatchedEngine(NBClientEngine):
    """papermill's engine, which tells after every cell where it is, and writes down what the cell printed."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: NotebookExecutionManager, kernel_name: str, watch: Watch, log: Path, place: list, **options: object
    ) -> None:
        """Run the cells as the parent does, with ``watch`` called, and ``log`` and ``place`` written, for each."""
        whole, start, complete = len(nb_man.nb.cells), nb_man.cell_start, nb_man.cell_complete
        begun = [time.perf_counter()]

        def started(cell: NotebookNode, cell_index: int | None = None, **more: object) -> None:
            place[0] += cell.cell_type == "code"
            start(cell, cell_index, **more)

        def completed(cell: NotebookNode, cell_index: int, **more: object) -> None:
            complete(cell, cell_index, **more)
            if cell.cell_type == "code":
                with open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(_entry(cell, cell_index + 1, time.perf_counter() - begun[0]))
            begun[0] = time.perf_counter()
            watch(cell_index + 1, whole)

        nb_man.cell_start, nb_man.cell_complete = started, completed
        super().execute_managed_notebook(nb_man, kernel_name, **options)


papermill_engines.register("ctxft", WatchedEngine)


def _entry(cell: NotebookNode, number: int, seconds: float) -> str:
    """Return what a log says of a cell: its number, its time, what it printed or why it failed."""
    lines = [f"{time.strftime('%H:%M:%S')} cell {number}, {seconds:.1f} s"]
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            said = "\n".join(output.traceback)
        else:
            said = output.get("text") or output.get("data", {}).get("text/plain", "")
        lines += [f"  {line}" for line in COLOUR.sub("", said).splitlines()]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _not_watched(_cell: int, _of: int) -> None:
    """Nobody asked where it is."""


def execute(path: Path, target: Path, parameters: dict, watch: Watch = _not_watched) -> NotebookNode:
    """Run one notebook by papermill and write its normal form and its HTML page.

    Args:
        path: the notebook.
        target: where the executed notebook goes; the page and the log stand beside it.
        parameters: values for its parameters cell.
        watch: called with (cells done, cells in all) after every cell.

    Raises:
        InputError: a cell met bad input.
        FailedError: a cell failed, or its kernel died; notebook, cell and error are named, and the notebook up to there is
            kept beside ``target`` as NN_name.failed.ipynb.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    working, log = target.with_name(f".running-{target.name}"), target.with_suffix(".log")
    failed = target.with_name(f"{target.stem}.failed.ipynb")  # a good one from before stays
    log.unlink(missing_ok=True)
    place = [0]  # the code cell that runs, counted from 1
    quiet = {"TQDM_DISABLE": "1"}  # nobody watches a bar here, and its text would differ from run to run
    options = {"kernel_name": "python3", "progress_bar": False, "extra_arguments": QUIET_KERNEL}
    try:
        with _environment(quiet):
            papermill.execute_notebook(
                str(path), str(working), parameters, engine_name="ctxft", watch=watch, log=log, place=place, **options
            )
    except DeadKernelError as error:
        os.replace(working, failed)
        raise FailedError(
            f"notebook {path.name}: its kernel died in code cell {place[0]}: it was killed, or the machine ran out of memory. "
            f"What it had computed is kept: start again.\n(see {failed})"
        ) from error
    except papermill.PapermillExecutionError as error:
        os.replace(working, failed)
        where = f"notebook {path.name} failed in code cell {error.exec_count}"
        if error.ename == InputError.__name__:
            raise InputError(f"{where}: {error.evalue}") from None
        raise FailedError(f"{where}: {error.ename}: {error.evalue}\n(see {failed})") from error
    notebook = normalize(nbformat.read(working, as_version=4))
    to_html(notebook, target.with_suffix(".html"))
    write_notebook(target, notebook)
    working.unlink()
    failed.unlink(missing_ok=True)
    return notebook
