"""Words: the field's terms in names and prose; each list ends with the exceptions and their reasons."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator

from ctxft.storage import PACKAGE_ROOT, REPO_ROOT

# Names of things that the field calls otherwise.
NAMES = (
    "examine examined examination mend anew set_aside share_out let_learn read_for_loss in_order whole whole_file whole_folder "
    "sealed seal damagederror only_process run_together end_with_parent leash lesson purse follower pace diet book books "
    "schooling shots spread drawn frame tail window epochs token_budget clip betas"
).split()
LOCAL = {"said", "told", "asked", "found", "how"}
PHRASES = (
    r"examine[ds]?|examining|examination|vouches|anew|mend(?:ed|s)?|set aside|made again|flows in|flows out|goes in;|comes out|"
    r"meaningless words|could have seen|stands? beside|(?:is|are) told|was asked as|goes on from|of one's own|"
    r"points of accuracy|difference to|behind (?:a|each) prompt|behind each|in front of it|kit's promises|a sound book"
)
ALLOWED_NAMES: dict[str, str] = {}  # "module.name" -> reason
ALLOWED_PROSE: dict[str, str] = {}  # "file: phrase" -> reason

LIBRARY = sorted(path for path in PACKAGE_ROOT.rglob("*.py") if "notebooks" not in path.parts)
TREES = {path.relative_to(PACKAGE_ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in LIBRARY}


def public_names(tree: ast.Module) -> Iterator[str]:
    """Yield the public names of a module: of functions, classes, constants, arguments and fields."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.FunctionDef):
            yield from (argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
        if isinstance(node, ast.ClassDef):
            yield from (part.target.id for part in node.body if isinstance(part, ast.AnnAssign))
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_public_names_are_the_terms_of_the_field():
    offenders = {
        f"{file}: {name}"
        for file, tree in TREES.items()
        for name in public_names(tree)
        if not name.startswith("_") and name.lower() in NAMES and f"{file}: {name}" not in ALLOWED_NAMES
    }
    assert not offenders, sorted(offenders)


def test_local_variables_have_names_of_things():
    offenders = [
        f"{file}:{node.lineno}: {node.id}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in LOCAL
    ]
    assert not offenders, f"{len(offenders)}: {offenders[:20]}"


def texts() -> Iterator[tuple[str, str]]:
    """Yield (file, prose): docstrings, messages and comments of the library, notebooks, README and docs."""
    for path in LIBRARY:
        yield path.relative_to(REPO_ROOT).as_posix(), path.read_text(encoding="utf-8")
    folder = REPO_ROOT / "notebooks"
    for path in sorted((*folder.glob("*.ipynb"), *(folder / "solutions").glob("*.ipynb"))):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.relative_to(REPO_ROOT).as_posix(), "\n".join("".join(cell["source"]) for cell in cells)
    pages = [REPO_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for path in (*pages, folder / "glossary.md", *sorted((REPO_ROOT / "docs").glob("*.md"))):
        yield path.relative_to(REPO_ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_prose_is_plain():
    pattern = re.compile(rf"\b(?:{PHRASES})", re.IGNORECASE)
    offenders = []
    for file, text in texts():
        for number, line in enumerate(text.splitlines(), start=1):
            for match in pattern.finditer(line):
                if f"{file}: {match.group().lower()}" not in ALLOWED_PROSE:
                    offenders.append(f"{file}:{number}: {match.group()}")
    assert not offenders, f"{len(offenders)}: {offenders[:40]}"


def test_one_name_is_one_thing():
    """No two modules define the same public name; a package's ``__init__`` passes names on and defines none."""
    homes = defaultdict(set)
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                homes[node.name].add(file)
    assert not {name: sorted(files) for name, files in homes.items() if len(files) > 1}


def test_exceptions_are_still_needed():
    prose = dict(texts())
    assert all(phrase in prose[file].lower() for file, phrase in (key.split(": ") for key in ALLOWED_PROSE))
    assert all(name in set(public_names(TREES[file])) for file, name in (key.split(": ") for key in ALLOWED_NAMES))
