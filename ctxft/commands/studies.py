"""What ``ctxft`` looks into: leaks, what each prompt does, the synthetic experiment, the kit itself."""

from __future__ import annotations

import argparse
import shlex

from ctxft.commands.experiments import prepared, read_settings, run_folder


def leaks(options: argparse.Namespace) -> None:
    """Look for benchmark items in what the arms of a run read."""
    from ctxft.run.leaks import check_leaks, leaks_text

    config = prepared(options)
    print(leaks_text(check_leaks(config)))
    print(f"\nitem by item: {config.folder / 'leaks.json'}")


def verify(options: argparse.Namespace) -> int:
    """Say of each result of a run whether it still follows from its inputs; returns the exit code."""
    from ctxft.run.verify import verify as look

    findings = look(run_folder(options.run), options.data)
    for finding in findings:
        print(f"{'ok' if finding.follows else 'BAD':4}{finding.what}: {finding.said}")
    bad = sum(not finding.follows for finding in findings)
    print(f"\n{bad} of {len(findings)} do not follow from their inputs" if bad else f"\nall {len(findings)} follow")
    return 1 if bad else 0


def attribute(options: argparse.Namespace) -> None:
    """Measure what each prompt does to a model's loss and gradient, and print the tables."""
    from ctxft.extras.attribution import attribute, attribution_file
    from ctxft.report.attribution import attribution_text

    config = prepared(options)
    found = attribute(config, options.arm, options.seed, options.limit, options.passages)
    print(attribution_text(found))
    print(f"\nin full: {attribution_file(config, options.arm, options.seed)}")


def synthetic(options: argparse.Namespace) -> None:
    """Run the synthetic experiment and print its table."""
    from ctxft.synthetic.config import load_config
    from ctxft.synthetic.figures import study_table
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
