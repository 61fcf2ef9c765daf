"""What ``ctxft`` does with an experiment: read its config, train, examine, compare, and run the notebooks.

Heavy modules are imported inside the functions, so that ``ctxft --help`` stays quick.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ctxft.storage import PACKAGE_ROOT, InputError, parse_yaml, runs_root

if TYPE_CHECKING:
    from ctxft.config import ExperimentConfig


# YAML reads 1e-4 as text; on the command line it is meant as a number.
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def read_settings(pairs: list[str]) -> dict:
    """Turn ["train.epochs=3"] into {"train.epochs": 3}; values are read as YAML."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set {pair}: write KEY=VALUE, for example --set train.epochs=3.")
        try:
            values[key] = float(value) if EXPONENT.fullmatch(value) else parse_yaml(value, "")
        except InputError:
            raise InputError(f"--set {pair}: '{value}' is not a YAML value; quote it or mend it.") from None
    return values


def experiment_of(options: argparse.Namespace) -> ExperimentConfig:
    """Return the experiment that a command line names, with --set and --data."""
    from ctxft.config import load_experiment

    settings = read_settings(options.set)
    if options.data:
        settings["evaluation.data"] = options.data
    return load_experiment(options.config, settings)


def prepared(options: argparse.Namespace) -> ExperimentConfig:
    """Return the experiment of a run, or of a profile or YAML file, which is prepared if it is not yet."""
    from ctxft.run.leaks import config_of_run
    from ctxft.run.prepare import prepare

    if options.config in (p.stem for p in (PACKAGE_ROOT / "profiles").glob("*.yaml")) or options.config.endswith(
        ".yaml"
    ):
        config = experiment_of(options)
        prepare(config)
        return config
    return config_of_run(run_folder(options.config), options.data)


def run_folder(name: str) -> Path:
    """Return the run folder for a name below the run root, or for a path."""
    folder = Path(name) if (Path(name) / "manifest.json").exists() else runs_root() / name
    if not (folder / "manifest.json").exists():
        raise InputError(f"no run '{name}': neither {folder} nor {Path(name).resolve()} holds a manifest.json.")
    return folder


def train(options: argparse.Namespace) -> None:
    """Train the arms of an experiment: all in parallel, or the tasks that are named here, one after the other."""
    from ctxft.extras.written import require_written
    from ctxft.run.prepare import prepare
    from ctxft.run.tasks import parse_task, train_task, train_tasks
    from ctxft.run.workers import train_all

    config = experiment_of(options)
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1  # launched by accelerate: all processes train each task
    if not options.task and not together:
        print(f"trained: {train_all(config, options.workers)}")
        return
    tasks = [parse_task(name, train_tasks(config)) for name in options.task] or train_tasks(config)
    folder = prepare(config)
    if not options.task:
        require_written(config)
    for arm, seed in tasks:
        done = train_task(config, arm, seed, quiet=not sys.stderr.isatty())
        print(
            f"{arm}, seed {seed}: {done['optimizer_steps']} optimizer steps, {done['target_tokens']} target tokens, {folder}"
        )


def estimate(options: argparse.Namespace) -> None:
    """Say what a training would take."""
    from ctxft.training.estimate_run import estimate_lines

    if options.processes < 1 or (options.memory or 1) <= 0 or (options.rate or 1) <= 0:
        raise InputError("--processes must be 1 or more, --memory and --rate above 0.")
    given = (options.processes, options.device, options.rate, options.memory)
    print("\n".join(estimate_lines(experiment_of(options), *given)))


def evaluate(options: argparse.Namespace) -> None:
    """Examine the trained arms, in parallel, or the tasks that are named."""
    from ctxft.run.examine import evaluate_task
    from ctxft.run.tasks import evaluate_tasks, parse_task
    from ctxft.run.workers import evaluate_all

    config = experiment_of(options)
    if not options.task:
        print(f"examined: {evaluate_all(config, options.workers)}")
        return
    for arm, seed in [parse_task(name, evaluate_tasks(config)) for name in options.task]:
        for benchmark, values in evaluate_task(config, arm, seed)["benchmarks"].items():
            note = f" ({values['note']})" if values["note"] else ""
            silent = f", {values['unanswered']} without an answer" if values["unanswered"] else ""
            items = f"{values['n']} items{silent}{note}"
            print(f"{arm}, seed {seed}, {benchmark}: accuracy {values['accuracy']:.3f} of {items}")


def compare(options: argparse.Namespace) -> None:
    """Print a run's tables and what its tests say, and write its report."""
    from ctxft.report import f1_table, loss_table, read_run, results_table, verdicts, write_report
    from ctxft.report.verdicts import how_to_read, overall

    run, reference = read_run(run_folder(options.run)), options.reference
    print(results_table(run, reference).to_string(index=False))
    print(
        "\nHow to read it\n"
        + "\n".join(
            textwrap.fill(said, 118, initial_indent="  ", subsequent_indent="  ")
            for said in how_to_read(reference, run)
        )
    )
    print("\nWhat the tests say\n" + "\n".join(f"  {said}" for said in verdicts(run, reference)))
    print("\n" + textwrap.fill(overall(run, reference), 120))
    if len(table := f1_table(run, reference)):
        print(f"\nF1 of the classes, with 95 % intervals\n{table.to_string(index=False)}")
    print(f"\nLoss on held-out text, nats per token\n{loss_table(run).to_string(index=False)}")
    print(f"\nreport: {write_report(run, reference)}")


def run(options: argparse.Namespace) -> None:
    """Run the notebooks, and compare the arms they examined."""
    from ctxft.course import run_notebooks

    parameters = read_settings(options.parameter)
    overrides = read_settings(options.set)
    if options.data:
        overrides["evaluation.data"] = options.data
    folder = run_notebooks(options.profile, options.name, options.notebook, parameters, overrides)
    if any((folder / "evals").glob("*/*/metrics.json")):
        compare(argparse.Namespace(run=str(folder), reference="cpt"))
    else:
        print(f"no arm was examined by these notebooks, so there is no table; they are in {folder / 'notebooks'}")
    print(f"all pages: {folder / 'index.html'}")


def course(options: argparse.Namespace) -> None:
    """Copy the notebooks into a folder of one's own."""
    from ctxft.course import copy_course

    print(f"the course is in {copy_course(options.folder)}; open it with: jupyter lab {options.folder}")


def agreed(options: argparse.Namespace) -> bool:
    """Return whether the user lets a server be asked, which may cost money: by --yes, or at the terminal.

    Raises:
        InputError: there is neither ``--yes`` nor a terminal.
    """
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise InputError("nothing was asked: this may cost money, so add --yes to go on.")
    if input("go on? [y/N] ").strip().lower() in ("y", "yes"):
        return True
    print("nothing was asked")
    return False
