"""The course as it ships: where its notebooks are, what they promise, and a copy of them for a folder of one's own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat

from ctxft.storage import PACKAGE_ROOT, REPO_ROOT, InputError, atomic_dir

HIDDEN = shutil.ignore_patterns(".*", "__pycache__")


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


def title_and_promise(path: Path) -> tuple[str, str]:
    """Return the first two lines of a notebook: "04 · Fine-tuning" and the sentence below it; the file's name if it has none."""
    cells = nbformat.read(path, as_version=4).cells
    found = re.match(r"# (.+)\n\n\*\*(.+)\*\*", cells[0].source) if cells else None
    return found.groups() if found else (path.stem, "")


def copy_course(target: str | Path) -> Path:
    """Copy the notebooks, their solutions, figures, results and glossary into a folder of one's own.

    Args:
        target: a folder that does not exist yet, or is empty.

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
        raise InputError(
            f"{target} exists and is not an empty folder: name another, so that nothing of yours is replaced."
        )
    with atomic_dir(target) as place:
        shutil.copytree(notebooks_folder(), place, dirs_exist_ok=True, ignore=HIDDEN)
    return target
