"""The shape of the code: imports go one way, modules stay small, names have docstrings, no path of a machine is told."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from ctxft.runtime import PACKAGE_ROOT, REPO_ROOT

# A module imports only from rows above its own; names in one row may import each other within a stage only.
ORDER = [
    {"parsing"},
    {"runtime"},
    {"course"},
    {"seals", "failures"},
    {"locks"},
    {"processes"},
    {"tuning"},
    {"hub"},
    {"chat"},
    {"server"},
    {"prompts"},
    {"world"},
    {"models"},
    {"corpora"},
    {"examples"},
    {"instructions"},
    {"scoring"},
    {"training", "benchmarks", "outcomes"},
    {"metrics"},
    {"evaluation"},
    {"statistics"},
    {"leakage"},
    {"writer"},
    {"experiment"},
    {"synthetic"},
    {"report"},
    {"widgets"},
    {"pipeline"},
    {"selftest"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
TESTING = {"benchmarks", "outcomes", "metrics", "evaluation", "statistics", "leakage"}
FILES = sorted(path for path in PACKAGE_ROOT.rglob("*.py") if "notebooks" not in path.parts)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
IDS = [path.relative_to(PACKAGE_ROOT).as_posix() for path in FILES]


def stage(name: str) -> str:
    """Return the first-level name of a dotted one: ctxft.corpora.documents is of corpora."""
    return name.split(".")[1] if "." in name else ""


def module_name(path) -> str:
    parts = ["ctxft", *path.relative_to(PACKAGE_ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path) -> set[str]:
    """Return the dotted names of the package's modules that a file imports, anywhere in it."""
    known = {module_name(other) for other in FILES}
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "ctxft"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the order"
            if node.module.split(".")[0] == "ctxft":
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & known
                found |= inside or {node.module}
    return found


def rank(name: str) -> int:
    return next(number for number, names in enumerate(ORDER) if name in names)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_one_way(path):
    own = stage(module_name(path))
    others = {stage(name) for name in imports_of(path)} - {own, ""}
    assert "widgets" not in others, f"{path}: widgets are for notebooks"
    if own != "commands":
        assert "ctxft.world.build" not in imports_of(path), f"{path}: only the command line makes the practice models"
    if own == "":
        return
    assert {name for name in others if rank(name) >= rank(own)} == set()
    if own == "training":
        assert not others & TESTING
    if own in TESTING:
        assert "training" not in others
    if own == "synthetic":
        assert others <= {"parsing", "runtime", "seals", "processes"}, (
            "the synthetic experiment stands on the ground alone"
        )


def test_files_of_a_stage_do_not_import_in_a_circle():
    graph = {module_name(path): imports_of(path) for path in FILES}

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        for other in graph.get(name, ()):
            visit(other, (*way, name))

    for name in graph:
        visit(name, ())


def test_the_ground_and_the_report_need_no_torch():
    code = "import sys, ctxft.runtime, ctxft.cli, ctxft.report; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_modules_are_small_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(TREES[path]), "a module starts with what flows through it"
    if path.name == "__init__.py":
        kinds = {type(node) for node in TREES[path].body}
        assert len(text.splitlines()) <= 24 and not kinds & {ast.FunctionDef, ast.ClassDef}


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


def test_no_file_tells_a_path_of_a_machine():
    pattern = re.compile(rb"(?<![\w.~:/-])/(?:home|root|tmp|Users)/\w")
    found = []
    for path in tracked_texts():
        content = path.read_bytes()
        if path.is_relative_to(REPO_ROOT / "tests") or b"\0" in content:
            continue
        found += [f"{path}: {match.group()!r}" for match in pattern.finditer(content)]
    assert found == []
