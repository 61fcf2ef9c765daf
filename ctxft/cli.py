"""Run the ``ctxft`` command: each function is a verb, and its annotated parameters are its arguments and options.

Modules that load torch or pandas are imported inside the functions, so that ``ctxft --help`` stays quick.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from ctxft import __version__
from ctxft.extras.commands import extras, write_adaptive
from ctxft.options import (
    MANY,
    PLAIN,
    Config,
    Data,
    Out,
    Settings,
    Workers,
    print_left_out,
    print_notes,
    read_settings,
    run_of,
)
from ctxft.run.processes import die_with_parent
from ctxft.storage import KEPT, FailedError, InputError, explain, is_there, read_text, runs_root, write_json, write_text

RunName = Annotated[str, Argument(metavar="RUN", help="name of a run below the run root, or its folder")]
SetName = Annotated[str, Argument(metavar="SET", help="a prompt set of the kit, or a YAML file")]
Tasks = Annotated[list[str], Option("--task", metavar="ARM:SEED|K", help="only this task, in this process", **MANY)]


class Commands(TyperGroup):
    """Turn what a command raises into one sentence and an exit code: 2 bad input, 1 failed, 128 + N stopped by signal N."""

    def invoke(self, ctx: typer.Context) -> None:
        """Run a command."""
        try:
            raise typer.Exit(super().invoke(ctx) or 0)
        except typer.Exit:
            raise
        except BrokenPipeError:  # whoever read the output has enough, as in `ctxft compare run | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except InputError as error:
            code, message = 2, str(error)
        except FailedError as error:
            code, message = 1, str(error)
        except KeyboardInterrupt as stop:
            code = 128 + (stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT)
            message = f"stopped. {KEPT}"
        except Exception as error:
            if (sentence := explain(error)) is None:
                raise  # a defect of the kit: its traceback is needed
            code, message = 1, sentence
        print(f"ctxft: {message}", file=sys.stderr)
        raise typer.Exit(code)


app = typer.Typer(cls=Commands, context_settings={"max_content_width": 120}, **PLAIN)
prompts = typer.Typer(help="List, show, check and write prompt sets.", **PLAIN)
app.add_typer(extras)
app.add_typer(prompts, name="prompts")
prompts.command("adapt")(write_adaptive)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Example:
        >>> main(["--version"])
        ctxft 0.1.0
        0
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        _stop_on_signals()
    die_with_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        typer.main.get_command(app)(arguments, prog_name="ctxft", obj=arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _stop_on_signals() -> None:
    """Take a scheduler's stop or a closed terminal as Ctrl-C: workers end, too, and finished work is kept."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ctxft {__version__}")
        raise typer.Exit


@app.callback()
def _ctxft(version: Annotated[bool, Option("--version", is_eager=True, callback=_print_version)] = False) -> None:
    """Contextual fine-tuning of language models: matched arms, trained, evaluated and compared.

    \b
    ctxft run                                             the whole course on the practice world, offline, on a CPU
    ctxft train mini --set name=first --set seeds=[0]     train the arms of an experiment
    ctxft evaluate mini --set name=first --set seeds=[0]  evaluate them
    ctxft compare first                                   the paired table, and what the tests show
    ctxft prompts show strategies                         the prompts, by family, each with its idea
    """


def _folder(name: str) -> Path:
    """Return the folder of a run that exists, by its path or its name below the run root."""
    for folder in (Path(name), runs_root() / name):
        if is_there(folder / "manifest.json"):
            return folder
    raise InputError(f"no run '{name}': neither {Path(name).resolve()} nor {runs_root() / name} holds a manifest.json.")


# --- course -----------------------------------------------------------------------------------------------------------


@app.command("run")
def _run(
    *,
    profile: Annotated[str, Option(help="a profile of the kit, or the path of a YAML file")] = "mini",
    name: Annotated[str | None, Option(help="name of the run folder (default: the profile's)")] = None,
    notebook: Annotated[list[str], Option(metavar="NN_NAME", help="only this notebook; repeatable", **MANY)],
    parameter: Annotated[list[str], Option("-p", "--parameter", metavar="KEY=VALUE", help="of a notebook", **MANY)],
    settings: Settings,
    data: Data = None,
) -> None:
    """Run the notebooks in order and print the results table."""
    from ctxft.course import run_notebooks

    overrides = read_settings(settings) | ({"evaluation.data": data} if data else {})
    folder = run_notebooks(profile, name, notebook, read_settings(parameter), overrides)
    if any((folder / "evals").glob("*/*/metrics.json")):
        _compare(str(folder), out=folder / "report.html")
    else:
        print(f"these notebooks evaluated no arm, so there is no table; they are in {folder / 'notebooks'}")
    print(f"all pages: {folder / 'index.html'}")


@app.command("course")
def _course(folder: Annotated[Path, Argument(help="a new or empty folder")]) -> None:
    """Copy the notebooks into a folder."""
    from ctxft.course import copy_course

    print(f"the course is in {copy_course(folder)}; open it with: jupyter lab {folder}")


# --- experiments ------------------------------------------------------------------------------------------------------


@app.command("cut", hidden=True)
def _cut(config: str, source: str, folder: Path, number: int, processes: int) -> None:
    """Write every N-th part of a corpus: what each process of a preparation does."""
    from ctxft.data.corpus import write_parts
    from ctxft.run.prepare import corpus_of
    from ctxft.run.run import Run

    run = Run(config)
    corpus = corpus_of(run, source)
    assert corpus is not None
    list(write_parts(corpus, run.tokenizer, run.budget, folder, share=(number, processes)))


@app.command("train")
def _train(config: Config, *, task: Tasks, workers: Workers = None, settings: Settings, data: Data = None) -> None:
    """Train the arms of an experiment."""
    from ctxft.run.tasks import parse_task, require_written

    run = run_of(config, settings, data)
    if not task and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        print(f"trained: {run.train(workers).folder}")
        print_left_out(run)
        return
    tasks = [parse_task(name, run.train_tasks) for name in task]
    print_left_out(run.prepare())
    if not tasks:  # the processes that accelerate launched train each task together
        require_written(run)
    for arm, seed in tasks or run.train_tasks:
        done = run.train_task(arm, seed, quiet=not sys.stderr.isatty())
        steps = f"{done['optimizer_steps']} optimizer steps, {done['target_tokens']} target tokens"
        print(f"{arm}, seed {seed}: {steps}, {run.folder}")


@app.command("evaluate")
def _evaluate(config: Config, *, task: Tasks, workers: Workers = None, settings: Settings, data: Data = None) -> None:
    """Evaluate the trained arms on the benchmarks and on held-out text."""
    from ctxft.run.tasks import parse_task

    run = run_of(config, settings, data)
    if not task:
        print(f"evaluated: {run.evaluate(workers).folder}")
        print_notes(run)
    for arm, seed in [parse_task(name, run.evaluate_tasks) for name in task]:
        for benchmark, values in run.evaluate_task(arm, seed)["benchmarks"].items():
            items = f"{values['n']} items" + (f" ({values['note']})" if values["note"] else "")
            silent = f", {values['unanswered']} without an answer" if values["unanswered"] else ""
            print(f"{arm}, seed {seed}, {benchmark}: accuracy {values['accuracy']:.3f} of {items}{silent}")


@app.command("estimate")
def _estimate(
    config: Config,
    *,
    processes: Annotated[int, Option(min=1, help="GPUs that train one task together")] = 1,
    device: Annotated[Literal["cpu", "cuda"] | None, Option(help="default: the recipe's, on this machine")] = None,
    rate: Annotated[float | None, Option(min=1e-3, help="measured tokens per second: gives the time")] = None,
    settings: Settings,
    data: Data = None,
) -> None:
    """Report what training takes: memory, tokens, steps; no weights are read."""
    from ctxft.run.estimate import estimate_lines

    print("\n".join(estimate_lines(run_of(config, settings, data), processes, device, rate)))


@app.command("compare")
def _compare(
    run: RunName,
    reference: Annotated[str, Option(metavar="ARM", help="the arm that others are compared with")] = "cpt",
    out: Annotated[Path | None, Option(metavar="FILE", help="write the report, an HTML file")] = None,
) -> None:
    """Print a run's paired table and what its tests show."""
    from ctxft.report import f1_table, loss_table, read_run, results_table, verdicts, write_report
    from ctxft.report.comparisons import how_to_read, overall

    record = read_run(_folder(run))
    print(results_table(record, reference).to_string(index=False), "\n\nHow to read it")
    for note in (*how_to_read(record, reference), *record.notes()):
        print(textwrap.fill(note, 118, initial_indent="  ", subsequent_indent="  "))
    print("\nWhat the tests show\n" + "\n".join(f"  {verdict}" for verdict in verdicts(record, reference)))
    print("\n" + textwrap.fill(overall(record, reference), 120))
    if len(table := f1_table(record, reference)):
        print(f"\nF1 of the classes, with 95 % intervals\n{table.to_string(index=False)}")
    print(f"\nLoss on held-out text, nats per token\n{loss_table(record).to_string(index=False)}")
    if out:
        print(f"\nreport: {write_report(record, reference, out)}")


@app.command("leaks")
def _leaks(config: Config, *, workers: Workers = None, settings: Settings, data: Data = None, out: Out = None) -> None:
    """Look for benchmark items in the training texts and prompts of a run."""
    from ctxft.leakage import leaks_text, look_for_leaks

    result = look_for_leaks(run_of(config, settings, data), workers)
    print(leaks_text(result))
    if out:
        print(f"\nitem by item: {write_json(out, result)}")


@app.command("leaks-in", hidden=True)
def _leaks_in(config: str, folder: Path, worker: int, workers: int, shares: int) -> None:
    """Look for benchmark items in a fraction of the texts: what each process of a search does."""
    from ctxft.leakage import write_share

    write_share(run_of(config, [], None), folder, worker, workers, shares)


@app.command("verify")
def _verify(run: RunName, data: Data = None) -> int:
    """Check for each result of a run whether it still follows from its inputs."""
    from ctxft.run.verify import verify

    findings = verify(_folder(run), data)
    for finding in findings:
        print(f"{'ok' if finding.follows else 'BAD':4}{finding.what}: {finding.message}")
    bad = sum(not finding.follows for finding in findings)
    print(f"\n{bad} of {len(findings)} do not follow from their inputs" if bad else f"\nall {len(findings)} follow")
    return 1 if bad else 0


# --- prompts ----------------------------------------------------------------------------------------------------------


@prompts.command("list")
def _list() -> None:
    """List the prompt sets of the kit."""
    from ctxft.prompts import PROMPT_SETS, load_prompt_set

    print(f"{'prompt set':<22}{'kind':<10}families prompts version hash")
    for prompt_set in map(load_prompt_set, PROMPT_SETS):
        sizes = f"{len(prompt_set.families):>8} {len(prompt_set.prompts):>7} {prompt_set.version:>7}"
        print(f"{prompt_set.name:<22}{prompt_set.kind:<10}{sizes} {prompt_set.hash[:12]}")


@prompts.command("show")
def _show(name: SetName) -> None:
    """Show a prompt set's families, the ideas behind them, and their prompts."""
    from ctxft.prompts import load_prompt_set

    prompt_set = load_prompt_set(name)
    head = f"{prompt_set.name}: kind {prompt_set.kind}, version {prompt_set.version}"
    print(f"{head}, placement {prompt_set.placement}, hash {prompt_set.hash[:12]}")
    for family in prompt_set.families:
        print(f"\n{family}" + (f" (weight {prompt_set.weights[family]:g})" if family in prompt_set.weights else ""))
        for note in filter(None, (prompt_set.ideas.get(family), prompt_set.references.get(family))):
            print(textwrap.fill(note, 118, initial_indent="  ", subsequent_indent="  "))
        for prompt in prompt_set.members[family]:
            line = f"{prompt.id}: {prompt.text}"
            print(textwrap.fill(line, 118, initial_indent="  - ", subsequent_indent="    "))


@prompts.command("validate")
def _validate(name: SetName) -> None:
    """Check a custom prompt set; what is wrong is reported with file and line."""
    from ctxft.prompts import load_prompt_set

    prompt_set = load_prompt_set(name)
    sizes = f"{len(prompt_set.prompts)} prompts in {len(prompt_set.families)} families"
    notes = [f"{sizes}, kind {prompt_set.kind}, hash {prompt_set.hash[:12]}"]
    if bare := [family for family in prompt_set.families if family not in prompt_set.ideas]:
        notes.append(f"no idea is given for {', '.join(bare)}")
    print(f"{name}: a valid prompt set: {'; '.join(notes)}")


@prompts.command("write")
def _write(
    file: Annotated[Path, Argument(help="the YAML file to write; it must not exist")],
    start: Annotated[str, Option("--from", metavar="SET", help="a prompt set to start from")] = "strategies",
) -> None:
    """Start a custom prompt set from one of the kit."""
    from ctxft.prompts.sets import prompt_set_path

    if file.exists():
        raise InputError(f"{file} exists already: choose another name, or remove it.")
    if file.suffix not in (".yaml", ".yml"):
        raise InputError(f"{file}: a prompt set is a YAML file: give it a name that ends in .yaml.")
    body = re.sub(r"\A(#[^\n]*\n)+", "", read_text(prompt_set_path(start)))
    name = re.sub(r"[^\w.-]+", "-", file.stem)
    head = f"# Started from the prompt set '{start}' of ctxft. Edit it, then: ctxft prompts validate FILE\n"
    print(f"written: {write_text(file, head + re.sub(r'(?m)^name: .*$', f'name: {name}', body, count=1))}")
