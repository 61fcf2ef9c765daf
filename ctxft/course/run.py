"""A profile flows in; executed notebooks flow out, in order, each skipped where nothing that it depends on has changed.

notebooks/NN_name.ipynb + parameters -> papermill -> runs/<name>/notebooks/NN_name.ipynb (in normal form), .html and .log
                                                  -> runs/<name>/index.html
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
import papermill
from tqdm import tqdm

from ctxft.config import ExperimentConfig, load_experiment, to_mapping
from ctxft.course.execute import execute
from ctxft.course.notebooks import list_notebooks, notebooks_folder
from ctxft.course.pages import Line, duration, write_index
from ctxft.run.examine import load_benchmarks
from ctxft.run.prepare import inputs_of, manifest_of, pinned, require_same
from ctxft.run.profiles import notebook_parameters
from ctxft.run.tasks import eval_folder, evaluate_tasks
from ctxft.storage import (
    PACKAGE_ROOT,
    InputError,
    check_known,
    exclusive_lock,
    hash_file,
    nearest,
    read_or_quarantine,
    sha256,
    versions,
    with_checksum,
    write_json,
)

COMMON = ("profile", "run_name", "overrides")  # parameters that come from the run, to the notebooks that declare them


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


def _wanted(names: list[str]) -> list[Path]:
    known = {path.stem: path for path in list_notebooks()}
    return [known[check_known(Path(name).stem, known, "notebook")] for name in names] or list(known.values())


def _check_parameters(paths: list[Path], parameters: dict, where: str) -> dict[Path, set[str]]:
    declared = {path: _parameters_of(path) for path in paths}
    known = set().union(*declared.values())
    for name in parameters:
        if name not in known or name in COMMON:
            hint = (
                "use --profile, --name or --set"
                if name in COMMON
                else f"known: {', '.join(sorted(known - set(COMMON)))}"
            )
            raise InputError(f"{where}no notebook takes the parameter '{name}'{nearest(name, known)}; {hint}.")
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
        notebooks: names such as "03_fine_tuning"; None or empty runs all.
        parameters: values for notebook parameters; each goes to the notebooks that declare it, and goes before what the
            profile says under ``notebooks``.
        overrides: dotted config keys and values that replace the profile's, in every notebook.

    Returns:
        The run folder.

    Raises:
        InputError: unknown profile, notebook, parameter or config key, or another process runs these notebooks now.
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
    declared = _check_parameters(paths, parameters, "")
    of_profile = notebook_parameters(profile)
    _check_parameters(list_notebooks(), of_profile, f"{source}: notebooks: ")
    parameters = of_profile | parameters
    inputs = _inputs(config)  # bad input is told before any notebook runs
    if manifest_of(config) is not None:
        require_same(config)
    given = {p: {key: value for key, value in (common | parameters).items() if key in declared[p]} for p in paths}
    with exclusive_lock(config.folder / "notebooks" / ".run.lock", f"runs the notebooks of {config.folder}"):
        Course(config, source, paths, given, inputs).run()
    return config.folder


class Course:
    """The notebooks of one run: which are valid, which run now, how long it takes, and the index page of them all."""

    def __init__(self, config: ExperimentConfig, profile: str, paths: list[Path], given: dict, inputs: dict) -> None:
        self.config, self.profile, self.paths, self.given = config, profile, paths, given
        self.folder = config.folder / "notebooks"
        self.stamps = {path: _stamp(path, given[path], inputs) for path in paths}
        kept = read_or_quarantine(self.folder / "stamps.json") or {}
        self.kept = {name: found for name, found in kept.items() if isinstance(found, dict)}  # name -> stamp, seconds
        self.lines = [Line(path, "done" if self._stamp(path) else "", self._seconds(path)) for path in list_notebooks()]

    def _stamp(self, path: Path) -> str:
        return self.kept.get(path.name, {}).get("stamp", "")

    def _seconds(self, path: Path) -> float | None:
        return self.kept.get(path.name, {}).get("seconds")

    def _is_valid(self, path: Path) -> bool:
        same = self._stamp(path) == self.stamps[path]
        return same and (self.folder / path.name).exists() and _is_complete(self.config)

    def _keep(self, path: Path, stamp: str, seconds: float | None) -> None:
        self.kept[path.name] = {"stamp": stamp, "seconds": seconds}
        write_json(self.folder / "stamps.json", with_checksum(self.kept))

    def _say(self, path: Path, state: str) -> None:
        for line in self.lines:
            if line.path == path:
                line.state, line.seconds = state, self._seconds(path)
        write_index(self.config.folder, self.profile, self.lines)

    def _left(self, ahead: list[Path]) -> float | None:
        """Return the seconds that notebooks took when they last ran, or None where one of them never did."""
        times = [self._seconds(path) for path in ahead]
        return None if None in times else sum(times)

    def run(self) -> None:
        """Run what is not valid, in order; the first that fails ends it."""
        for place, path in enumerate(self.paths):
            if self._is_valid(path):
                print(f"{path.stem}: nothing changed since the last run, skipped", flush=True)
                self._say(path, "skipped")
                continue
            left = self._left([one for one in self.paths[place:] if not self._is_valid(one)])
            told = f", about {duration(left)} left" if left else ""
            print(f"{path.stem}: running ({place + 1} of {len(self.paths)}{told}) ...", end=" ", flush=True)
            self._run_one(path)
            print(f"done in {duration(self._seconds(path))}: {self.folder / path.name}", flush=True)

    def _run_one(self, path: Path) -> None:
        started, before = time.perf_counter(), self._seconds(path)
        if path.name in self.kept:  # should it fail now, its output is not valid for any stamp
            self._keep(path, "", before)
        self._say(path, "running")
        bar = tqdm(desc=path.stem, unit="cell", leave=False, file=sys.stderr, disable=not sys.stderr.isatty())

        def watch(cell: int, of: int) -> None:
            bar.total, bar.n = of, cell
            if before is not None:
                rest = max(0.0, before - (time.perf_counter() - started))
                bar.set_postfix_str(f"about {duration(rest)} left", refresh=False)
            bar.refresh()

        try:
            with bar:
                execute(path, self.folder / path.name, self.given[path], watch)
        except BaseException:
            self._say(path, "failed")
            raise
        self._keep(path, self.stamps[path], time.perf_counter() - started)
        self._say(path, "done")
