"""Run the ``ctxft`` command: each function is a verb, and its annotated parameters are its arguments and options.

Modules that load torch or pandas are imported inside the functions, so that ``ctxft --help`` stays quick.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from ctxft import __version__
from ctxft.run.processes import die_with_parent
from ctxft.storage import (
    KEPT,
    FailedError,
    InputError,
    explain,
    is_there,
    parse_yaml,
    read_jsonl,
    read_text,
    runs_root,
    versions,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from ctxft.prompts import PromptSet
    from ctxft.run.run import Run

MANY: dict[str, Any] = {"default_factory": list, "show_default": False}  # an option that may be repeated

Config = Annotated[str, Argument(metavar="CONFIG", help="a profile (mini), an experiment's YAML file, or a run")]
RunName = Annotated[str, Argument(metavar="RUN", help="name of a run below the run root, or its folder")]
SetName = Annotated[str, Argument(metavar="SET", help="a prompt set of the kit, or a YAML file")]
Settings = Annotated[list[str], Option("--set", metavar="KEY=VALUE", help="set a config value; repeatable", **MANY)]
Data = Annotated[str | None, Option(metavar="DIR", help="folder with local benchmark files, instead of the hub")]
Tasks = Annotated[list[str], Option("--task", metavar="ARM:SEED|K", help="only this task, in this process", **MANY)]
Workers = Annotated[int | None, Option(help="processes at a time (default: one per CPU core; one on a GPU)")]
Arm = Annotated[str, Option(help="a trained arm, or base")]
Seed = Annotated[int, Option(help="seed of the training")]
Reference = Annotated[str, Option(metavar="ARM", help="the arm that others are compared with")]
Out = Annotated[Path | None, Option(metavar="FILE", help="write the full result, a JSON file")]
Report = Annotated[Path | None, Option("--out", metavar="FILE", help="write the report, an HTML file")]
Model = Annotated[str | None, Option(help="count tokens with this model's tokenizer")]
Family = Annotated[str | None, Option(help="this family alone")]
Yes = Annotated[bool, Option("--yes", help="continue without a question after the cost is shown")]


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


PLAIN: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
app = typer.Typer(cls=Commands, context_settings={"max_content_width": 120}, **PLAIN)
prompts = typer.Typer(help="List, show, check and write prompt sets.", **PLAIN)
app.add_typer(prompts, name="prompts")


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
    ctxft prompts show strategies                         the prompts, by family, with the idea behind each
    """


# --- the experiment of a command --------------------------------------------------------------------------------------


def read_settings(pairs: list[str]) -> dict:
    """Turn ["train.max_steps=3"] into {"train.max_steps": 3}; values are read as YAML."""
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


def _run(config: str, settings: list[str], data: str | None) -> Run:
    from ctxft.run.run import Run

    return Run(config, data=data, overrides=read_settings(settings))


def _folder(name: str) -> Path:
    """Return the folder of a run that exists, by its path or its name below the run root."""
    for folder in (Path(name), runs_root() / name):
        if is_there(folder / "manifest.json"):
            return folder
    raise InputError(f"no run '{name}': neither {Path(name).resolve()} nor {runs_root() / name} holds a manifest.json.")


def _agreed(yes: bool) -> bool:
    """Return whether the user agrees to requests that may cost money, by --yes or at the terminal."""
    if not yes and not sys.stdin.isatty():
        raise InputError("nothing was asked: this may cost money, so add --yes to continue.")
    agreed = yes or input("continue? [y/N] ").strip().lower() in ("y", "yes")
    if not agreed:
        print("nothing was asked")
    return agreed


# --- course -----------------------------------------------------------------------------------------------------------


@app.command()
def run(
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
        compare(str(folder), out=folder / "report.html")
    else:
        print(f"these notebooks evaluated no arm, so there is no table; they are in {folder / 'notebooks'}")
    print(f"all pages: {folder / 'index.html'}")


@app.command()
def course(folder: Annotated[Path, Argument(help="a new or empty folder")]) -> None:
    """Copy the notebooks into a folder."""
    from ctxft.course import copy_course

    print(f"the course is in {copy_course(folder)}; open it with: jupyter lab {folder}")


# --- experiments ------------------------------------------------------------------------------------------------------


@app.command()
def train(config: Config, *, task: Tasks, workers: Workers = None, settings: Settings, data: Data = None) -> None:
    """Train the arms of an experiment."""
    from ctxft.run.tasks import parse_task, require_written

    run = _run(config, settings, data)
    if not task and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        print(f"trained: {run.train(workers).folder}")
        return
    tasks = [parse_task(name, run.train_tasks) for name in task]
    run.prepare()
    if not tasks:  # the processes that accelerate launched train each task together
        require_written(run)
    for arm, seed in tasks or run.train_tasks:
        done = run.train_task(arm, seed, quiet=not sys.stderr.isatty())
        steps = f"{done['optimizer_steps']} optimizer steps, {done['target_tokens']} target tokens"
        print(f"{arm}, seed {seed}: {steps}, {run.folder}")


@app.command()
def evaluate(config: Config, *, task: Tasks, workers: Workers = None, settings: Settings, data: Data = None) -> None:
    """Evaluate the trained arms on the benchmarks and on held-out text."""
    from ctxft.run.tasks import parse_task

    run = _run(config, settings, data)
    if not task:
        print(f"evaluated: {run.evaluate(workers).folder}")
    for arm, seed in [parse_task(name, run.evaluate_tasks) for name in task]:
        for benchmark, values in run.evaluate_task(arm, seed)["benchmarks"].items():
            items = f"{values['n']} items" + (f" ({values['note']})" if values["note"] else "")
            silent = f", {values['unanswered']} without an answer" if values["unanswered"] else ""
            print(f"{arm}, seed {seed}, {benchmark}: accuracy {values['accuracy']:.3f} of {items}{silent}")


@app.command()
def estimate(
    config: Config,
    *,
    processes: Annotated[int, Option(min=1, help="GPUs that train one task together")] = 1,
    device: Annotated[Literal["cpu", "cuda"] | None, Option(help="default: the recipe's, on this machine")] = None,
    rate: Annotated[float | None, Option(min=1e-3, help="measured tokens per second: gives the time")] = None,
    memory: Annotated[float | None, Option(min=1e-3, help="GiB of a device: names what makes it fit")] = None,
    settings: Settings,
    data: Data = None,
) -> None:
    """Report what training takes: memory, tokens, steps; no weights are read."""
    from ctxft.run.estimate import estimate_lines

    print("\n".join(estimate_lines(_run(config, settings, data), processes, device, rate, memory)))


@app.command()
def compare(run: RunName, reference: Reference = "cpt", out: Report = None) -> None:
    """Print a run's paired table and what its tests show."""
    from ctxft.extras.attribution import report_sections
    from ctxft.report import f1_table, loss_table, read_run, results_table, verdicts, write_report
    from ctxft.report.verdicts import how_to_read, overall

    record = read_run(_folder(run))
    print(results_table(record, reference).to_string(index=False), "\n\nHow to read it")
    for note in how_to_read(record, reference):
        print(textwrap.fill(note, 118, initial_indent="  ", subsequent_indent="  "))
    print("\nWhat the tests show\n" + "\n".join(f"  {verdict}" for verdict in verdicts(record, reference)))
    print("\n" + textwrap.fill(overall(record, reference), 120))
    if len(table := f1_table(record, reference)):
        print(f"\nF1 of the classes, with 95 % intervals\n{table.to_string(index=False)}")
    print(f"\nLoss on held-out text, nats per token\n{loss_table(record).to_string(index=False)}")
    if out:
        print(f"\nreport: {write_report(record, reference, report_sections(record.folder), out)}")


@app.command()
def leaks(config: Config, *, settings: Settings, data: Data = None, out: Out = None) -> None:
    """Look for benchmark items in the training texts and prompts of a run."""
    from ctxft.run.leaks import leaks_text, look_for_leaks

    result = look_for_leaks(_run(config, settings, data))
    print(leaks_text(result))
    if out:
        print(f"\nitem by item: {write_json(out, result)}")


@app.command()
def verify(run: RunName, data: Data = None) -> int:
    """Check for each result of a run whether it still follows from its inputs."""
    from ctxft.run.verify import verify as findings_of

    findings = findings_of(_folder(run), data)
    for finding in findings:
        print(f"{'ok' if finding.follows else 'BAD':4}{finding.what}: {finding.message}")
    bad = sum(not finding.follows for finding in findings)
    print(f"\n{bad} of {len(findings)} do not follow from their inputs" if bad else f"\nall {len(findings)} follow")
    return 1 if bad else 0


@app.command()
def attribute(
    config: Config,
    *,
    arm: Arm = "cft",
    seed: Seed = 0,
    limit: Annotated[int, Option(help="passages whose losses are taken")] = 256,
    passages: Annotated[int, Option(help="passages whose gradients are compared, 0 for none")] = 64,
    settings: Settings,
    data: Data = None,
) -> None:
    """Measure what each prompt does to a model's loss and gradient."""
    from ctxft.extras.attribution import attribute, attribution_file, attribution_text

    run = _run(config, settings, data).prepare()
    print(attribution_text(attribute(run, arm, seed, limit, passages)))
    print(f"\nin full: {attribution_file(run, arm, seed)}")


@app.command()
def synthetic(
    ctx: typer.Context,
    *,
    size: Annotated[str, Option(help="mini, for a laptop, or full, the paper's")] = "mini",
    target: Annotated[str, Option(help="the function to learn")] = "polynomial",
    arms: Annotated[list[str], Option(metavar="ARM", help="repeatable (default: all eight)", **MANY)],
    seeds: Annotated[list[int], Option(metavar="SEED", help="repeatable (default: 0, 1, 2)", **MANY)],
    name: Annotated[str | None, Option(help="name of the folder below the run root")] = None,
    workers: Workers = None,
    settings: Settings,
    out: Out = None,
) -> None:
    """Run the synthetic experiment: in-context regression, arm by arm."""
    from ctxft.synthetic.config import ARMS, load_config
    from ctxft.synthetic.figures import study_table
    from ctxft.synthetic.study import run_study, write_study

    config = load_config(size, read_settings(settings) | ({"name": name} if name else {}))
    study = run_study(config, target, arms or list(ARMS), seeds or [0, 1, 2], workers)
    print(study_table(study).to_string(index=False))
    print(f"\nruns: {config.folder / target}")
    if out:
        print(f"results: {write_study(out, study, shlex.join(['ctxft', *ctx.obj]))}")


# --- models of others -------------------------------------------------------------------------------------------------


@app.command()
def export(
    config: Config,
    *,
    arm: Arm = "cft",
    seed: Seed = 0,
    form: Annotated[str, Option(help="prompt-completion (TRL, axolotl, tinker) or vertex")] = "prompt-completion",
    out: Annotated[Path, Option(metavar="FILE", help="the file; its manifest is next to it")],
    settings: Settings,
    data: Data = None,
) -> None:
    """Write what an arm reads as (prompt, passage) pairs for a tuning service or library."""
    from ctxft.extras.export import export_pairs

    record = export_pairs(_run(config, settings, data), arm, seed, form, out)
    print(f"{record['pairs']} pairs of {record['documents']} documents, {record['prompts']} prompts")
    for name, counts in record["leaks"].items():
        parts = f"{counts['partial']} in part, {counts['short']} short ones without an answer"
        print(f"  {name}: no item occurs in the texts; {parts}")
    if left := record["general_passages_left_out"]:
        print(f"  left out: {left} passages of general text")
    print(f"in {out}, with {out.name}.manifest.json next to it")


@app.command()
def hosted(
    config: Config,
    *,
    server: Annotated[str, Option(metavar="URL", help="base URL, such as http://localhost:8000/v1")],
    model: Annotated[str, Option(help="the model's name on that server")],
    completions: Annotated[bool, Option("--completions", help="plain text instead of a chat")] = False,
    key_variable: Annotated[str | None, Option(help="environment variable with the server's key")] = None,
    price_in: Annotated[float | None, Option(help="price of a million input tokens")] = None,
    price_out: Annotated[float | None, Option(help="price of a million output tokens")] = None,
    parallel: Annotated[int, Option(help="requests at a time")] = 1,
    yes: Yes = False,
    settings: Settings,
    data: Data = None,
) -> None:
    """Evaluate a model behind an OpenAI-compatible server on an experiment's benchmarks."""
    from tqdm import tqdm

    from ctxft.config import ServerConfig
    from ctxft.extras.hosted import evaluate_hosted, hosted_table, plan_of
    from ctxft.extras.server import Server

    where = ServerConfig(url=server, model=model, key_variable=key_variable, price_in=price_in, price_out=price_out)
    client, plan = Server(where), plan_of(_run(config, settings, data), where, completions)
    cost = plan.cost()
    price = "unknown without --price-in and --price-out" if cost["price"] is None else f"{cost['price']:.4f}"
    print(f"{cost['items']} items, {cost['answered']} of them answered already, {cost['due']} requests to {where.url}")
    tokens = f"about {cost['tokens_in']} (estimated: a token for 4 characters); out: {cost['tokens_out']} at most"
    print(f"  tokens in: {tokens}")
    print(f"  price: {price}")
    if cost["due"] and not _agreed(yes):
        return
    with tqdm(total=cost["due"], unit="item", disable=not sys.stderr.isatty()) as bar:
        record = evaluate_hosted(plan, client, parallel, bar.update)
    spent = record["requests"]
    print(hosted_table(record).to_string(index=False))
    print(
        f"\n{spent['requests']} requests, {spent['tokens_in']} tokens in, {spent['tokens_out']} out; in {plan.folder}"
    )


# --- prompts ----------------------------------------------------------------------------------------------------------


@prompts.command("list")
def list_prompt_sets() -> None:
    """List the prompt sets of the kit."""
    from ctxft.prompts import PROMPT_SETS, load_prompt_set

    print(f"{'prompt set':<22}{'kind':<10}families prompts version hash")
    for prompt_set in map(load_prompt_set, PROMPT_SETS):
        sizes = f"{len(prompt_set.families):>8} {len(prompt_set.prompts):>7} {prompt_set.version:>7}"
        print(f"{prompt_set.name:<22}{prompt_set.kind:<10}{sizes} {prompt_set.hash[:12]}")


@prompts.command()
def show(name: SetName, family: Family = None, model: Model = None) -> None:
    """Show a prompt set's families, the ideas behind them, and their prompts."""
    from ctxft.prompts import load_prompt_set

    prompt_set = load_prompt_set(name)
    if family and family not in prompt_set.families:
        known = ", ".join(prompt_set.families)
        raise InputError(f"the prompt set '{prompt_set.name}' has no family '{family}'; it has: {known}.")
    tokens = _tokens(prompt_set, model)
    head = f"{prompt_set.name}: kind {prompt_set.kind}, version {prompt_set.version}"
    print(f"{head}, placement {prompt_set.placement}, hash {prompt_set.hash[:12]}")
    for each in [family] if family else prompt_set.families:
        print(f"\n{each}" + (f" (weight {prompt_set.weights[each]:g})" if each in prompt_set.weights else ""))
        for note in filter(None, (prompt_set.ideas.get(each), prompt_set.references.get(each))):
            print(textwrap.fill(note, 118, initial_indent="  ", subsequent_indent="  "))
        for prompt in prompt_set.members[each]:
            line = f"{prompt.id}{f', {tokens[prompt.id]} tokens' if tokens else ''}: {prompt.text}"
            print(textwrap.fill(line, 118, initial_indent="  - ", subsequent_indent="    "))


def _tokens(prompt_set: PromptSet, model: str | None) -> dict[str, int]:
    """Return the tokens of each prompt, with what its placement puts around it; none without a model."""
    if model is None:
        return {}
    from ctxft.data.rows import prompt_ids, prompt_template
    from ctxft.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    template = prompt_template(tokenizer, prompt_set)
    return {prompt.id: len(prompt_ids(tokenizer, prompt, template)) for prompt in prompt_set.prompts}


@prompts.command()
def validate(name: SetName, model: Model = None) -> None:
    """Check a custom prompt set; what is wrong is reported with file and line."""
    from ctxft.prompts import load_prompt_set

    prompt_set = load_prompt_set(name)
    sizes = f"{len(prompt_set.prompts)} prompts in {len(prompt_set.families)} families"
    notes = [f"{sizes}, kind {prompt_set.kind}, hash {prompt_set.hash[:12]}"]
    if tokens := _tokens(prompt_set, model):
        notes.append(f"{min(tokens.values())} to {max(tokens.values())} tokens each for the tokenizer of {model}")
    if bare := [family for family in prompt_set.families if family not in prompt_set.ideas]:
        notes.append(f"no idea is given for {', '.join(bare)}")
    print(f"{name}: a valid prompt set: {'; '.join(notes)}")


@prompts.command()
def write(
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


@prompts.command()
def adapt(
    config: Config,
    *,
    estimate: Annotated[bool, Option("--estimate", help="print the cost, and stop")] = False,
    yes: Yes = False,
    settings: Settings,
    data: Data = None,
) -> None:
    """Let a model write the prompt of each passage, for arm adaptive."""
    from ctxft.extras.adaptive import adapt, estimate_adapt, failure_of

    run = _run(config, settings, data).prepare()
    due = estimate_adapt(run)
    for name, value in due.items():
        print(f"{name}: {'unknown without price_in and price_out' if value is None else value}")
    writer = run.config.prompts.writer
    if estimate or (writer and writer.server and due["to write"] and not _agreed(yes)):
        return
    record = adapt(run)
    passages, failed = record["passages"], record["failed"]
    written = f"{record['prompts']} with a written prompt ({record['cached']} texts from before)"
    print(f"{passages} passages: {written}, {sum(record['rejected'].values())} refused, {failed} failed")
    for reason, number in record["rejected"].items():
        print(f"  refused, {reason}: {number}")
    cost = "unknown" if record["cost"] is None else f"{record['cost']:.4f}"
    print(f"cost now: {cost}; in {run.folder / 'adaptive.jsonl'}")
    if failed:
        raise FailedError(
            f"{failed} of {passages} prompts were not written ({failure_of(run.wanted)}): fix that and run the same "
            "command again; only what is missing is requested."
        )


# --- this machine -----------------------------------------------------------------------------------------------------


class _Interrupted(list):
    """Rows whose reading fails after a number of them, as if the training were killed in the middle."""

    left = 20

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return super().__getitem__(index)


@app.command()
def check() -> int:
    """Print versions and device, and check the kit's guarantees on this machine."""
    import torch
    from transformers import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    for name, value in {**versions(), "device": ", ".join(gpus) or "cpu"}.items():
        print(f"{name:<14} {value}")
    with tempfile.TemporaryDirectory() as place:
        checks = {**_check_training(Path(place)), "scores do not depend on the batch": (_check_scores(), 1e-4)}
    for name, (difference, limit) in checks.items():
        print(f"{'holds' if difference <= limit else 'FAILS'}  {name} (largest difference {difference:.0e})")
    return int(any(difference > limit for difference, limit in checks.values()))


def _check_training(folder: Path) -> dict[str, tuple[float, float]]:
    """Train three times for a few steps; return how far losses and gradient norms differ, and how far they may."""
    from ctxft.config import TrainConfig
    from ctxft.models import encode_text, load_tokenizer
    from ctxft.prompts import load_prompt_set
    from ctxft.training.loop import train_arm
    from ctxft.world.texts import practice_documents

    tokenizer, rows = load_tokenizer("practice-aware"), []
    for prompt, document in zip(load_prompt_set("strategies").prompts, practice_documents(), strict=False):
        masked = [tokenizer.bos_token_id, *encode_text(tokenizer, prompt.text)[0]]
        text = encode_text(tokenizer, document["text"])[0][:64]
        rows.append({"input_ids": masked + text, "labels": [-100] * len(masked) + text})

    def log(name: str, rows: list, **changes: Any) -> list[float]:
        values = {"max_steps": 6, "train_batch_size": 4, "micro_batch_tokens": 512, "save_steps": 2, "device": "cpu"}
        train_arm(rows, "practice-aware", tokenizer, TrainConfig(**values | changes), 0, folder / name)
        return [row[key] for _, row in read_jsonl(folder / name / "log.jsonl") for key in ("loss", "grad_norm")]

    straight, alone = log("straight", rows), log("alone", rows, pack=False, micro_batch_tokens=128)
    with contextlib.suppress(InterruptedError):
        log("resumed", _Interrupted(rows))
        raise FailedError("the training was not interrupted, so nothing was resumed.")
    resumed = log("resumed", rows)

    def furthest(other: list[float]) -> float:
        return max(abs(a - b) / abs(a) for a, b in zip(straight, other, strict=True))

    return {"packed equals one at a time": (furthest(alone), 1e-4), "resumed equals straight": (furthest(resumed), 0.0)}


def _check_scores() -> float:
    """Return how far log-likelihoods differ between small and large batches."""
    from ctxft.evaluation.benchmarks import load_benchmark, render
    from ctxft.evaluation.scoring import score_choices
    from ctxft.models import load_model, load_tokenizer

    model, tokenizer = load_model("practice-aware"), load_tokenizer("practice-aware")
    questions = load_benchmark("practice-mmlu", limit=24).questions
    requests = [render(question, "cloze") for question in questions]

    def likelihoods(budget: int) -> list[float]:
        scores = score_choices(model, tokenizer, requests, max_batch_tokens=budget)
        return [value for score in scores for value in score.log_likelihoods]

    return max(abs(a - b) for a, b in zip(likelihoods(64), likelihoods(4096), strict=True))
