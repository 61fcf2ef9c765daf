"""The command line: ``ctxft run | train | evaluate | compare | leaks | synthetic | check | world``.

Bad input ends with one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
from pathlib import Path

import yaml

from ctxft import __version__
from ctxft.runtime import PACKAGE_ROOT, FailedError, InputError, runs_root
from ctxft.synthetic.config import ARMS as SYNTHETIC_ARMS

EXAMPLES = """examples:
  ctxft run                                            the whole course on the practice world, offline, on a CPU
  ctxft train mini --set name=first --set seeds=[0]    train the arms of an experiment (a profile or a YAML file)
  ctxft evaluate mini --set name=first --set seeds=[0] examine them
  ctxft compare first                                  the paired table, and a report that opens offline
  ctxft leaks first                                    which benchmark items stand in the training texts
  ctxft synthetic --target sumdot --seeds 0            the synthetic experiment: what a context teaches
  ctxft check                                          versions, device, and self-tests of the kit's promises
"""


# YAML reads 1e-4 as text; on the command line it is meant as a number.
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def _settings(pairs: list[str]) -> dict:
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


def _experiment(options: argparse.Namespace):
    from ctxft.experiment.config import load_experiment

    settings = _settings(options.set)
    if options.data:
        settings["evaluation.data"] = options.data
    return load_experiment(options.config, settings)


def _train(options: argparse.Namespace) -> None:
    from ctxft.experiment.prepare import prepare
    from ctxft.experiment.tasks import parse_task, train_task, train_tasks
    from ctxft.experiment.workers import train_all

    config = _experiment(options)
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1  # launched by accelerate: all processes train each task
    if not options.task and not together:
        print(f"trained: {train_all(config, options.workers)}")
        return
    tasks = [parse_task(name, train_tasks(config)) for name in options.task] or train_tasks(config)
    folder = prepare(config)
    for arm, seed in tasks:
        done = train_task(config, arm, seed, quiet=not sys.stderr.isatty())
        print(
            f"{arm}, seed {seed}: {done['optimizer_steps']} optimizer steps, {done['target_tokens']} target tokens, {folder}"
        )


def _evaluate(options: argparse.Namespace) -> None:
    from ctxft.experiment.examine import evaluate_task
    from ctxft.experiment.tasks import evaluate_tasks, parse_task
    from ctxft.experiment.workers import evaluate_all

    config = _experiment(options)
    if not options.task:
        print(f"examined: {evaluate_all(config, options.workers)}")
        return
    for arm, seed in [parse_task(name, evaluate_tasks(config)) for name in options.task]:
        for benchmark, values in evaluate_task(config, arm, seed)["benchmarks"].items():
            note = f" ({values['note']})" if values["note"] else ""
            print(f"{arm}, seed {seed}, {benchmark}: accuracy {values['accuracy']:.3f} of {values['n']} items{note}")


def _run_folder(name: str) -> Path:
    """Return the run folder for a name below the run root, or for a path."""
    folder = Path(name) if (Path(name) / "manifest.json").exists() else runs_root() / name
    if not (folder / "manifest.json").exists():
        raise InputError(f"no run '{name}': neither {folder} nor {Path(name).resolve()} holds a manifest.json.")
    return folder


def _compare(options: argparse.Namespace) -> None:
    from ctxft.report import f1_table, loss_table, read_run, results_table, verdicts, write_report
    from ctxft.report.verdicts import how_to_read, overall

    run, reference = read_run(_run_folder(options.run)), options.reference
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


def _leaks(options: argparse.Namespace) -> None:
    from ctxft.experiment.leaks import check_leaks, config_of_run, leaks_text
    from ctxft.experiment.prepare import prepare

    if options.config in (p.stem for p in (PACKAGE_ROOT / "profiles").glob("*.yaml")) or options.config.endswith(
        ".yaml"
    ):
        config = _experiment(options)
        prepare(config)
    else:
        config = config_of_run(_run_folder(options.config), options.data)
    print(leaks_text(check_leaks(config)))
    print(f"\nitem by item: {config.folder / 'leaks.json'}")


def _run(options: argparse.Namespace) -> None:
    from ctxft.pipeline import run_notebooks

    parameters = _settings(options.parameter)
    overrides = _settings(options.set)
    if options.data:
        overrides["evaluation.data"] = options.data
    folder = run_notebooks(options.profile, options.name, options.notebook, parameters, overrides)
    if any((folder / "evals").glob("*/*/metrics.json")):
        _compare(argparse.Namespace(run=str(folder), reference="cpt"))
    else:
        print(f"no arm was examined by these notebooks, so there is no table; they are in {folder / 'notebooks'}")


def _synthetic(options: argparse.Namespace) -> None:
    from ctxft.report.synthetic import study_table
    from ctxft.synthetic.config import load_config
    from ctxft.synthetic.study import run_study, write_study

    settings = _settings(options.set) | ({"name": options.name} if options.name else {})
    config = load_config(options.size, settings)
    study = run_study(config, options.target, options.arms, options.seeds, options.workers)
    print(study_table(study).to_string(index=False))
    print(f"\nruns: {config.folder / options.target}")
    if options.out:
        command = shlex.join(["ctxft", *options.words])
        print(f"results: {write_study(options.out, study, command)}")


def _check(options: argparse.Namespace) -> int:
    from ctxft.selftest import run_checks

    return run_checks()


def _world(options: argparse.Namespace) -> None:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctxft",
        description="Contextual fine-tuning of language models: matched arms, trained, examined and compared.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ctxft {__version__}")
    verbs = parser.add_subparsers(title="commands", dest="verb", required=True, metavar="COMMAND")

    run = verbs.add_parser("run", help="run the notebooks in order and print the results table")
    run.add_argument(
        "--profile", default="mini", help="profile of the kit, or the path of your own YAML (default: mini)"
    )
    run.add_argument("--name", help="name of the run folder (default: the profile's)")
    run.add_argument(
        "--notebook", action="append", default=[], metavar="NN_NAME", help="only this notebook; may be repeated"
    )
    run.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a notebook parameter; may be repeated",
    )
    run.set_defaults(call=_run)

    train = verbs.add_parser("train", help="train the arms of an experiment")
    evaluate = verbs.add_parser("evaluate", help="examine the trained arms on the benchmarks and held-out text")
    for verb, call in ((train, _train), (evaluate, _evaluate)):
        verb.add_argument("config", help="a profile of the kit (mini) or the path of an experiment's YAML file")
        verb.add_argument(
            "--task",
            action="append",
            default=[],
            metavar="ARM:SEED|K",
            help="only this task (or number), in this process",
        )
        verb.add_argument("--workers", type=int, help="processes at a time (default: one a CPU core; one on a GPU)")
        verb.set_defaults(call=call)
    leaks = verbs.add_parser("leaks", help="look for benchmark items in the training texts and prompts of a run")
    leaks.add_argument("config", help="a run; or a profile or YAML file, which is prepared if it is not yet")
    leaks.set_defaults(call=_leaks)
    for verb in (run, train, evaluate, leaks):
        verb.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="set a config value, e.g. train.epochs=3; may be repeated",
        )
        verb.add_argument("--data", metavar="DIR", help="folder with local benchmark files, instead of the hub")

    compare = verbs.add_parser("compare", help="print the paired table of a run and write its report")
    compare.add_argument("run", help="name of a run below the run root, or its folder")
    compare.add_argument(
        "--reference", default="cpt", metavar="ARM", help="the arm that others are compared with (default: cpt)"
    )
    compare.set_defaults(call=_compare)
    synthetic = verbs.add_parser("synthetic", help="run the synthetic experiment: in-context regression, arm by arm")
    synthetic.add_argument("--size", default="mini", help="mini, for a laptop, or full, the paper's (default: mini)")
    synthetic.add_argument("--target", default="polynomial", help="the function to learn (default: polynomial)")
    synthetic.add_argument("--arms", nargs="+", default=list(SYNTHETIC_ARMS), metavar="ARM", help="default: all eight")
    synthetic.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    synthetic.add_argument("--name", help="name of the folder below the run root (default: synthetic-<size>)")
    synthetic.add_argument("--workers", type=int, help="processes at a time (default: one a CPU core; one on a GPU)")
    synthetic.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a config value")
    synthetic.add_argument("--out", type=Path, metavar="FILE", help="write the results, a small JSON file")
    synthetic.set_defaults(call=_synthetic)
    check = verbs.add_parser("check", help="print versions and device, and run the self-tests")
    check.set_defaults(call=_check)
    world = verbs.add_parser("world", help="make the practice world again: texts, exams, tokenizers and models")
    world.add_argument("action", choices=["build"], help="build: write everything to a folder (some minutes a model)")
    world.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    world.add_argument(
        "--base", action="append", metavar="NAME", help="practice-aware or practice-blind (default: both)"
    )
    world.add_argument("--steps", type=int, help="optimizer steps of 16 rows (default: those of the models that ship)")
    world.add_argument("--seed", type=int, default=0, help="seed of the pre-training (default: %(default)s)")
    world.add_argument(
        "--unreliable",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of unreliable text without a prompt, for practice-aware (default: %(default)s)",
    )
    world.set_defaults(call=_world)
    return parser


def _stop_on_signals() -> None:
    """Take a scheduler's stop or a closed terminal as Ctrl-C: workers end too, and finished work is kept."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, signal.default_int_handler)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failed, 2 bad input)."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        return 2
    options = parser.parse_args(arguments)
    options.words = sys.argv[1:] if arguments is None else arguments
    _stop_on_signals()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return options.call(options) or 0
    except InputError as error:
        print(f"ctxft: {error}", file=sys.stderr)
        return 2
    except FailedError as error:
        print(f"ctxft: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ctxft: stopped; what was finished is kept, and the same command goes on from there.", file=sys.stderr)
        return 130
