"""Arguments and options that several commands share, and the run that they name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ctxft.storage import InputError, parse_yaml, read_json

if TYPE_CHECKING:
    from ctxft.run.run import Run

MANY: dict[str, Any] = {"default_factory": list, "show_default": False}  # an option that may be repeated
PLAIN: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}

Config = Annotated[str, Argument(metavar="CONFIG", help="a profile (mini), an experiment's YAML file, or a run")]
Settings = Annotated[list[str], Option("--set", metavar="KEY=VALUE", help="set a config value; repeatable", **MANY)]
Data = Annotated[str | None, Option(metavar="DIR", help="folder with local benchmark files, instead of the hub")]
Workers = Annotated[int | None, Option(help="processes at a time (default: one per CPU core; one on a GPU)")]
TrainedArm = Annotated[str, Option(help="a trained arm, or base")]
Seed = Annotated[int, Option(help="seed of the training")]
Out = Annotated[Path | None, Option(metavar="FILE", help="write the full result, a JSON file")]
Yes = Annotated[bool, Option("--yes", help="continue without a question after the cost is shown")]


def read_settings(pairs: list[str]) -> dict:
    """Turn ["train.max_steps=3"] into {"train.max_steps": 3}; values are read as YAML.

    Raises:
        InputError: a pair without a key or an equals sign, or a value that is not YAML.
    """
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set {pair}: write KEY=VALUE, for example --set train.max_steps=3.")
        try:
            values[key] = parse_yaml(value, "")
        except InputError:
            raise InputError(f"--set {pair}: '{value}' is not a YAML value; quote it or fix it.") from None
    return values


def run_of(config: str, settings: list[str], data: str | None) -> Run:
    """Return the run of a profile, a YAML file or a run folder, with the settings of the command line."""
    from ctxft.run.run import Run

    return Run(config, data=data, overrides=read_settings(settings))


def print_notes(run: Run) -> None:
    """Print what to know about the questions of a run's benchmarks, such as that they are fewer than published."""
    for benchmark in run.benchmarks:
        if benchmark.note:
            print(f"{benchmark.name}: {benchmark.note}")


def print_left_out(run: Run) -> None:
    """Print which of a run's texts and instructions were left out or held out, and how many ids were replaced."""
    ledger = read_json(run.folder / "ledger.json")
    documents = ("files", "documents empty", "documents whose", "documents held out that are", "documents kept, but")
    kinds = (*documents, "instruction files", "instructions longer", "instructions without")
    if counts := [
        f"{name}: {n}" for name, n in ledger.items() if n and name.removeprefix("general text: ").startswith(kinds)
    ]:
        print("; ".join(counts))
    share, wanted = ledger["tokens held out"] / ledger["tokens read"], run.config.corpus.held_out
    if abs(share - wanted) > wanted / 4:
        print(
            f"held out: {share:.1%} of the tokens, where {wanted:.1%} was asked for (most documents are held out as a whole)"
        )


def confirm_cost(yes: bool) -> bool:
    """Return whether the user agrees to requests that may cost money, by --yes or at the terminal."""
    if not yes and not sys.stdin.isatty():
        raise InputError("nothing was requested: this may cost money, so add --yes to continue.")
    agreed = yes or input("continue? [y/N] ").strip().lower() in ("y", "yes")
    if not agreed:
        print("nothing was requested")
    return agreed
