"""The shape of the code: imports go one way, modules stay small, names have docstrings, no file holds a path of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from ctxft.storage import PACKAGE_ROOT, REPO_ROOT

FILES = sorted(path for path in PACKAGE_ROOT.rglob("*.py") if "notebooks" not in path.parts)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
IDS = [path.relative_to(PACKAGE_ROOT).as_posix() for path in FILES]


def test_storage_command_line_and_report_need_no_torch():
    code = "import sys, ctxft.storage, ctxft.cli, ctxft.report; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_public_names_have_docstrings(path):
    def missing(body: list[ast.stmt], before: str = "") -> list[str]:
        found = []
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith(
                "_"
            ):
                found += [] if ast.get_docstring(node) else [before + node.name]
                if isinstance(node, ast.ClassDef):
                    found += missing(node.body, f"{node.name}.")
        return found

    assert missing(TREES[path].body) == []


def tracked_texts() -> list:
    """Return the repository's files that are or may be committed; without git, those of the package."""
    if not (REPO_ROOT / ".git").exists():
        return FILES
    command = ["git", "-C", str(REPO_ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [REPO_ROOT / name for name in names if (REPO_ROOT / name).is_file()]


def test_no_file_holds_a_path_of_a_machine():
    pattern = re.compile(rb"(?<![\w.~:/-])/(?:home|root|tmp|Users)/\w")
    found = []
    for path in tracked_texts():
        content = path.read_bytes()
        if path.is_relative_to(REPO_ROOT / "tests") or b"\0" in content:
            continue
        found += [f"{path}: {match.group()!r}" for match in pattern.finditer(content)]
    assert found == []
