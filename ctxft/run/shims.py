"""The functions of a config that ``Run`` replaces, until the last of their callers uses it."""

from __future__ import annotations

from pathlib import Path

from ctxft.run.leaks import leaks_in
from ctxft.run.rows import build_rows
from ctxft.run.run import Run
from ctxft.storage import write_json


def prepare(config):
    return Run(config).prepare().folder


def manifest_of(config):
    manifest = Run(config).manifest
    return manifest and vars(manifest)


def require_same(config):
    run = Run(config)
    run.require_prepared()
    return run.config


def inputs_of(config):
    from ctxft.run import prepare as module

    return {name: state for name, (state, _) in module.run_inputs(Run(config)).items()}


def prompt_sets_of(config):
    return Run(config).prompt_sets


def longest_of(config, tokenizer):
    return Run(config).longest_prompt


def rows_of(config, arm, seed, passages, tokenizer, general=()):
    return build_rows(Run(config), arm, seed, passages, general)


def read_passages(folder, which="passages"):
    run = Run(Path(folder)) if (Path(folder) / "manifest.json").exists() else Run("mini", name=Path(folder).name)
    run.require_prepared()
    return getattr(run, which)


def read_instruction_rows(folder, which="instructions"):
    return getattr(Run(Path(folder)), which)


def has_instructions(arms):
    return Run("mini", arms=arms).has_instructions


def load_benchmarks(config, local=False):
    return Run(config).benchmarks


def train_tasks(config):
    return Run(config).train_tasks


def evaluate_tasks(config):
    return Run(config).evaluate_tasks


def arm_folder(config, arm, seed):
    return Run(config).arm_folder(arm, seed)


def eval_folder(config, arm, seed):
    return Run(config).eval_folder(arm, seed)


def is_trained(config, arm, seed):
    return Run(config).is_trained(arm, seed)


def is_examined(config, arm, seed, benchmarks=None):
    return Run(config).is_evaluated(arm, seed)


def require_trained(config, arm, seed):
    from ctxft.run.tasks import require_training

    require_training(Run(config), arm, seed)


def trained_model(config, arm, seed):
    return Run(config).model(arm, seed)


def lesson_of(config, arm, seed, passages=None, tokenizer=None):
    return Run(config).training_data(arm, seed)


def train_task(config, arm, seed, quiet=True, wait=False):
    return Run(config).train_task(arm, seed, quiet)


def evaluate_task(config, arm, seed):
    return Run(config).evaluate_task(arm, seed)


def train_all(config, workers=None, tick=None):
    return Run(config).train(workers, tick).folder


def evaluate_all(config, workers=None):
    return Run(config).evaluate(workers).folder


def ensure_run(config, workers=None):
    run = Run(config)
    run.benchmarks
    return run.train(workers).evaluate(workers).folder


def look_for_leaks(config):
    return leaks_in(Run(config))


def check_leaks(config):
    leaks = look_for_leaks(config)
    write_json(config.folder / "leaks.json", leaks)
    return leaks


def texts_of(config):
    from ctxft.run.leaks import texts_read

    return texts_read(Run(config))


def config_of_run(folder, data=None):
    return Run(Path(folder), data=data).wanted
