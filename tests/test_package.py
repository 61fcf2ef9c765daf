"""Packaging and README: pins inside ranges, notebooks inside the wheel, and a README that says what is true."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from ctxft.config import load_experiment
from ctxft.course import list_notebooks
from tests import refresh, speed
from tests.refresh import BLOCKS, marked, time_line

ROOT = Path(__file__).resolve().parents[1]
KIT = ["jupyterlab", "torch", "transformers", "datasets", "peft", "ipywidgets", "matplotlib", "papermill", "nbval"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = TOML["project"]


def ranges() -> dict[str, Requirement]:
    extras = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [text for name in ("notebooks", "hosted", "test") for text in extras[name]]
    return {requirement.name: requirement for requirement in map(Requirement, texts) if requirement.name != "ctxft"}


def pins() -> dict[str, str]:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    *names, project = conda[-1]["pip"]
    assert project == "-e ."
    return dict(name.split("==") for name in names)


def test_environment_pins_every_direct_dependency_inside_its_range() -> None:
    assert pins().keys() == ranges().keys()
    for name, version in pins().items():
        assert ranges()[name].specifier.contains(version), name


def test_kit_packages_come_first() -> None:
    assert list(pins())[: len(KIT)] == KIT


def test_every_range_has_an_upper_bound() -> None:
    for name, requirement in ranges().items():
        assert "<" in {part.operator for part in requirement.specifier}, name
    assert "<" in PROJECT["requires-python"]


@pytest.mark.skipif("CTXFT_CI" not in os.environ, reason="pins are compared with what is installed in CI only")
def test_pins_are_not_newer_than_what_is_installed() -> None:
    """A clean install takes the newest versions: older ones than the pins were never tested, newer ones are said."""
    installed = {name: Version(importlib.metadata.version(name).split("+")[0]) for name in pins()}
    assert not {name: found for name, found in installed.items() if found < Version(pins()[name])}
    if newer := {name: str(found) for name, found in installed.items() if found > Version(pins()[name])}:
        warnings.warn(f"tested with newer versions than environment.yml pins, change the pins: {newer}", stacklevel=1)


def test_wheel_holds_the_notebooks_the_model_and_the_books(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [f"ctxft/notebooks/{path.name}" for path in list_notebooks()]
    wanted += [
        "ctxft/prompts/sets/strategies.yaml",
        "ctxft/profiles/mini.yaml",
        "ctxft/world/models/blind/model.safetensors",
    ]
    assert not set(wanted) - names
    assert not [name for name in names if name.startswith(("tests/", "runs/"))]
    assert wheel.stat().st_size < 6_000_000


def blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", README, flags=re.M | re.S)


def moved(value: object) -> object:
    """Return results with every measured number in them moved, so that none is shown as before."""
    if isinstance(value, dict):
        return {key: moved(one) if key not in ("versions", "seeds", "cpus") else one for key, one in value.items()}
    if isinstance(value, list):
        return [moved(one) for one in value]
    if isinstance(value, str):  # a table keeps its cells, and a verdict its numbers, as text
        return re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]) + 3.3:.1f}", value)
    if isinstance(value, float):
        return value * 0.9
    return value + 7 if isinstance(value, int) and not isinstance(value, bool) else value


MEASURED = {name: block for (_, name), block in BLOCKS.items() if name not in ("configuration", "commands")}


@pytest.mark.parametrize("name", MEASURED)
def test_numbers_of_the_docs_follow_the_result_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name) -> None:
    block = MEASURED[name]
    before = block()
    for module, results in ((refresh, "RESULTS"), (refresh, "STUDY"), (refresh, "COURSE"), (speed, "SPEED")):
        path = getattr(module, results)
        (tmp_path / path.name).write_text(
            json.dumps(moved(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8"
        )
        monkeypatch.setattr(module, results, tmp_path / path.name)
    kept, now = (re.findall(r"\d+\.\d+(?: \[|%|\b)", text) for text in (before, block()))
    assert block() != before
    if name != "course":
        same = sum(a == b for a, b in zip(kept, now, strict=False))
        assert same < len(kept) / 4, f"{same} of {len(kept)} numbers did not follow"


def test_stated_times_are_those_that_were_measured() -> None:
    for path in list_notebooks():
        opening = nbformat.read(path, as_version=4).cells[0].source
        assert opening.endswith(time_line(path)), f"{path.name}: run `python tests/refresh.py --docs`"


def test_readme_has_the_two_commands_and_ci_runs_them() -> None:
    first, second = blocks()
    assert first.splitlines()[-1] == ".venv/bin/ctxft run"
    assert second.splitlines()[-1] == '.venv/bin/python -m pytest -n 2 -m ""'
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "command_of" in ci and [line for line in ci.splitlines() if line.startswith("run ")] == [
        "run README.md 1",
        "run CONTRIBUTING.md 1 # development tools: lint and types",
        "run README.md 2",
    ]
    assert not re.search(r"pip install|pytest|ctxft run", ci), "CI must take its commands from the two files"


def test_constraints_are_the_versions_of_the_environment() -> None:
    """conda and pip install the same versions; constraints.txt holds those of the development tools, too."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    held = dict(line.split("==") for line in lines if not line.startswith("#"))
    development = {Requirement(text).name for text in PROJECT["optional-dependencies"]["dev"]} - {"ctxft"}
    assert {name: version for name, version in held.items() if name not in development} == pins()
    assert held.keys() >= development


def test_the_library_alone_needs_no_jupyterlab() -> None:
    plain = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert not plain & {"jupyterlab", "ipywidgets", "papermill", "nbconvert", "openai"}


def test_plain_pytest_runs_the_unit_tier() -> None:
    options = TOML["tool"]["pytest"]["ini_options"]
    tiers = [line.split(":")[0] for line in options["markers"]]
    assert tiers[:5] == ["notebook", "process", "browser", "fuzz", "data"]
    assert options["addopts"][-1] == " and ".join(f"not {tier}" for tier in tiers[:4])
    assert {"--doctest-modules", "--nbval-lax"} <= set(options["addopts"])


def test_readme_lists_the_notebooks() -> None:
    assert re.findall(r"^\| \[(\w+)\]\(notebooks/\w+\.ipynb\)", README, flags=re.M) == [
        p.stem for p in list_notebooks()
    ]


@pytest.mark.parametrize(("file", "name"), BLOCKS)
def test_docs_are_filled_in(file: str, name: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert marked(name, BLOCKS[file, name]()) in text, f"run `python tests/refresh.py --docs`: {name} has changed"


def test_readme_is_a_screen_and_a_half_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 150
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_experiment_of_the_guide_is_a_valid_one(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    text = re.findall(r"^```yaml\n(.*?)^```$", guide, flags=re.M | re.S)[0]
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    config = load_experiment(tmp_path / "my.yaml")
    assert config.name == "mine" and config.train.method == "lora"


def test_readme_figure_exists() -> None:
    assert all((ROOT / path).exists() for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README))


def test_top_level_is_what_the_ecosystem_asks_for() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    wanted = {"notebooks", "ctxft", "tests", "docs", "environment.yml", "constraints.txt", "pyproject.toml", "LICENSE"}
    wanted |= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"}
    wanted |= {".gitignore", ".ci", ".pre-commit-config.yaml"}
    assert top == wanted
