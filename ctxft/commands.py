"""What each verb of the command line does: its options go in, text on the terminal and files of a run come out.

Heavy modules are imported inside the functions, so that ``ctxft --help`` stays quick.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ctxft.runtime import PACKAGE_ROOT, InputError, runs_root

if TYPE_CHECKING:
    from ctxft.experiment.config import ExperimentConfig

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
            values[key] = float(value) if EXPONENT.fullmatch(value) else yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {pair}: '{value}' is not a YAML value; quote it or mend it.") from None
    return values


def experiment_of(options: argparse.Namespace) -> ExperimentConfig:
    """Return the experiment that a command line names, with --set and --data."""
    from ctxft.experiment.config import load_experiment

    settings = read_settings(options.set)
    if options.data:
        settings["evaluation.data"] = options.data
    return load_experiment(options.config, settings)


def train(options: argparse.Namespace) -> None:
    """Train the arms of an experiment: all in parallel, or the tasks that are named here, one after the other."""
    from ctxft.experiment.prepare import prepare
    from ctxft.experiment.tasks import parse_task, train_task, train_tasks
    from ctxft.experiment.workers import train_all
    from ctxft.experiment.written import require_written

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
    from ctxft.experiment.estimate import estimate_lines

    if options.processes < 1 or (options.memory or 1) <= 0 or (options.rate or 1) <= 0:
        raise InputError("--processes must be 1 or more, --memory and --rate above 0.")
    given = (options.processes, options.device, options.rate, options.memory)
    print("\n".join(estimate_lines(experiment_of(options), *given)))


def evaluate(options: argparse.Namespace) -> None:
    """Examine the trained arms, in parallel, or the tasks that are named."""
    from ctxft.experiment.examine import evaluate_task
    from ctxft.experiment.tasks import evaluate_tasks, parse_task
    from ctxft.experiment.workers import evaluate_all

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


def run_folder(name: str) -> Path:
    """Return the run folder for a name below the run root, or for a path."""
    folder = Path(name) if (Path(name) / "manifest.json").exists() else runs_root() / name
    if not (folder / "manifest.json").exists():
        raise InputError(f"no run '{name}': neither {folder} nor {Path(name).resolve()} holds a manifest.json.")
    return folder


def compare(options: argparse.Namespace) -> None:
    """Print a run's tables and what its tests say, and write its report."""
    from ctxft.report import f1_table, loss_table, read_run, results_table, verdicts, write_report
    from ctxft.report.verdicts import how_to_read, overall

    run, reference = read_run(run_folder(options.run)), options.reference
    print(results_table(run, reference).to_string(index=False))
    print(
        "\nHow to read it\n"
        + "\n".join(
            textwrap.fill(said, 118, initial_indent="  ", subsequent_indent="  ") for said in how_to_read(reference)
        )
    )
    print("\nWhat the tests say\n" + "\n".join(f"  {said}" for said in verdicts(run, reference)))
    print("\n" + textwrap.fill(overall(run, reference), 120))
    if len(table := f1_table(run, reference)):
        print(f"\nF1 of the classes, with 95 % intervals\n{table.to_string(index=False)}")
    print(f"\nLoss on held-out text, nats per token\n{loss_table(run).to_string(index=False)}")
    print(f"\nreport: {write_report(run, reference)}")


def prepared(options: argparse.Namespace) -> ExperimentConfig:
    """Return the experiment of a run, or of a profile or YAML file, which is prepared if it is not yet."""
    from ctxft.experiment.leaks import config_of_run
    from ctxft.experiment.prepare import prepare

    if options.config in (p.stem for p in (PACKAGE_ROOT / "profiles").glob("*.yaml")) or options.config.endswith(
        ".yaml"
    ):
        config = experiment_of(options)
        prepare(config)
        return config
    return config_of_run(run_folder(options.config), options.data)


def leaks(options: argparse.Namespace) -> None:
    """Look for benchmark items in what the arms of a run read."""
    from ctxft.experiment.leaks import check_leaks, leaks_text

    config = prepared(options)
    print(leaks_text(check_leaks(config)))
    print(f"\nitem by item: {config.folder / 'leaks.json'}")


def attribute(options: argparse.Namespace) -> None:
    """Measure what each prompt does to a model's loss and gradient, and print the tables."""
    from ctxft.experiment.attribution import attribute, attribution_file
    from ctxft.report.attribution import attribution_text

    config = prepared(options)
    found = attribute(config, options.arm, options.seed, options.limit, options.passages)
    print(attribution_text(found))
    print(f"\nin full: {attribution_file(config, options.arm, options.seed)}")


def export(options: argparse.Namespace) -> None:
    """Write what an arm reads as examples for a tuning service."""
    from ctxft.experiment.export import export_pairs

    record = export_pairs(experiment_of(options), options.arm, options.seed, options.form, options.out)
    print(
        f"{record['pairs']} pairs of {record['documents']} documents, {record['prompts']} prompts, for {record['service']}"
    )
    for what, limit in record["limits"].items():
        if isinstance(limit, dict):
            print(f"  {what}: {', '.join(f'{key} {number}' for key, number in limit.items())}")
    for name, found in record["leaks"].items():
        print(
            f"  {name}: no item stands in the texts; {found['partial']} in part, {found['short']} short ones without an answer"
        )
    if left := record["general_passages_left_out"]:
        print(f"  left out: {left} passages of general text")
    print(f"in {options.out}, with {options.out.name}.manifest.json beside it")


def hosted(options: argparse.Namespace) -> None:
    """Ask a model behind a server an experiment's benchmarks, once its cost is agreed to."""
    from tqdm import tqdm

    from ctxft.experiment.hosted import ask_all, hosted_table, plan_of
    from ctxft.server import Server, ServerConfig

    prices = {"price_in": options.price_in, "price_out": options.price_out}
    where = ServerConfig(options.server, options.model, options.key_variable, **prices)
    server, plan = Server(where), plan_of(experiment_of(options), where, options.completions)
    cost = plan.cost()
    due = cost["items"] - cost["answered"]
    print(f"{cost['items']} items, {cost['answered']} of them answered already, {due} to ask of {where.url}")
    print(
        f"  tokens in: about {cost['tokens_in']} (estimated: a token for 4 characters); out: {cost['tokens_out']} at most"
    )
    print(
        "  price: unknown without --price-in and --price-out"
        if cost["price"] is None
        else f"  price: {cost['price']:.4f}"
    )
    if due and not options.yes and not _agreed():
        print("nothing was asked")
        return
    with tqdm(total=due, unit="item", disable=not sys.stderr.isatty()) as bar:
        record = ask_all(plan, server, options.parallel, bar.update)
    print(hosted_table(record).to_string(index=False))
    spent = record["requests"]
    print(
        f"\n{spent['requests']} requests, {spent['tokens_in']} tokens in, {spent['tokens_out']} out; in {plan.folder}"
    )


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise InputError("nothing was asked: this may cost money, so add --yes to go on.")
    return input("go on? [y/N] ").strip().lower() in ("y", "yes")


def run(options: argparse.Namespace) -> None:
    """Run the notebooks, and compare the arms they examined."""
    from ctxft.pipeline import run_notebooks

    parameters = read_settings(options.parameter)
    overrides = read_settings(options.set)
    if options.data:
        overrides["evaluation.data"] = options.data
    folder = run_notebooks(options.profile, options.name, options.notebook, parameters, overrides)
    if any((folder / "evals").glob("*/*/metrics.json")):
        compare(argparse.Namespace(run=str(folder), reference="cpt"))
    else:
        print(f"no arm was examined by these notebooks, so there is no table; they are in {folder / 'notebooks'}")


def synthetic(options: argparse.Namespace) -> None:
    """Run the synthetic experiment and print its table."""
    from ctxft.report.synthetic import study_table
    from ctxft.synthetic.config import load_config
    from ctxft.synthetic.study import run_study, write_study

    settings = read_settings(options.set) | ({"name": options.name} if options.name else {})
    config = load_config(options.size, settings)
    study = run_study(config, options.target, options.arms, options.seeds, options.workers)
    print(study_table(study).to_string(index=False))
    print(f"\nruns: {config.folder / options.target}")
    if options.out:
        command = shlex.join(["ctxft", *options.words])
        print(f"results: {write_study(options.out, study, command)}")


def check(options: argparse.Namespace) -> int:
    """Run the self-tests; returns the exit code."""
    from ctxft.selftest import run_checks

    return run_checks()


def world(options: argparse.Namespace) -> None:
    """Make the practice world again: texts, exams, tokenizers and models."""
    from ctxft.world.build import STEPS, build_base, check_build, write_texts
    from ctxft.world.facts import BASES

    steps = STEPS if options.steps is None else options.steps
    bases = options.base or list(BASES)
    for base in bases:  # bad input is told before anything is written
        check_build(base, steps, options.unreliable, options.seed)
    if options.out.is_file():
        raise InputError(f"{options.out} is a file: --out needs a folder.")
    write_texts(options.out)
    for base in bases:
        record = build_base(options.out / BASES[base], base, steps, options.seed, options.unreliable)
        shown = ", ".join(f"{exam} {100 * share:.1f}" for exam, share in record["accuracy"].items())
        print(f"{base}: {record['tokens']} tokens; accuracy % {shown}")
    print(f"in {options.out}")
