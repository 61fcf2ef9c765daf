"""The verbs of what most users never need: attribution, the synthetic experiment, other people's models, the self-check."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ctxft.options import (
    MANY,
    PLAIN,
    Config,
    Data,
    Out,
    Seed,
    Settings,
    TrainedArm,
    Workers,
    Yes,
    confirm_cost,
    print_notes,
    read_settings,
    run_of,
)
from ctxft.storage import FailedError, versions, write_text

extras = typer.Typer(**PLAIN)


@extras.command("attribute")
def _attribute(
    config: Config,
    *,
    arm: TrainedArm = "cft",
    seed: Seed = 0,
    limit: Annotated[int, Option(min=1, help="passages whose losses are taken")] = 256,
    passages: Annotated[int, Option(min=0, help="passages whose gradients are compared, 0 for none")] = 64,
    settings: Settings,
    data: Data = None,
) -> None:
    """Measure what each prompt does to a model's loss and gradient."""
    from ctxft.extras.attribution import attribute, family_table, gradient_table, prompt_table

    run = run_of(config, settings, data).prepare()
    attribution = attribute(run, arm, seed, limit, passages)
    print(f"{arm}, seed {seed}, on held-out text: nats a token, with intervals over documents; below 0 a prompt helps")
    for table in (family_table, prompt_table) + (gradient_table,) * bool(passages):
        print(f"\n{table(attribution).to_string(index=False)}")
    print(f"\nin full: {run.folder / 'attribution'}")


@extras.command("synthetic")
def _synthetic(
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
    from ctxft.synthetic.study import run_study

    config = load_config(size, read_settings(settings) | ({"name": name} if name else {}))
    study = run_study(config, target, arms or list(ARMS), seeds or [0, 1, 2], workers)
    print(study_table(study).to_string(index=False))
    print(f"\nruns: {config.folder / target}")
    if out:
        command = shlex.join(["ctxft", *ctx.obj])
        print(f"results: {write_text(out, json.dumps({'command': command, **study}))}")


@extras.command("export")
def _export(
    config: Config,
    *,
    arm: TrainedArm = "cft",
    seed: Seed = 0,
    form: Annotated[str, Option(help="prompt-completion (TRL, axolotl, tinker) or vertex")] = "prompt-completion",
    out: Annotated[Path, Option(metavar="FILE", help="the file; its manifest is next to it")],
    settings: Settings,
    data: Data = None,
) -> None:
    """Write what an arm reads as (prompt, passage) pairs for a tuning service or library."""
    from ctxft.extras.export import export_pairs

    record = export_pairs(run_of(config, settings, data), arm, seed, form, out)
    print(f"{record['pairs']} pairs of {record['documents']} documents, {record['prompts']} prompts")
    for name, counts in record["leaks"].items():
        print(f"  {name}: no item occurs in the texts, {counts['partial']} in part")
    print(f"  left out: {record['general_passages_left_out']} passages of general text")
    print(f"in {out}, with {out.name}.manifest.json next to it")


@extras.command("hosted")
def _hosted(
    config: Config,
    *,
    server: Annotated[str, Option(metavar="URL", help="base URL, such as http://localhost:8000/v1")],
    model: Annotated[str, Option(help="the model's name on that server")],
    completions: Annotated[bool, Option("--completions", help="plain text instead of a chat")] = False,
    key_variable: Annotated[str | None, Option(help="environment variable with the server's key")] = None,
    price_in: Annotated[float | None, Option(help="price of a million input tokens")] = None,
    price_out: Annotated[float | None, Option(help="price of a million output tokens")] = None,
    parallel: Annotated[int, Option(min=1, help="requests at a time")] = 1,
    yes: Yes = False,
    settings: Settings,
    data: Data = None,
) -> None:
    """Evaluate a model behind an OpenAI-compatible server on an experiment's benchmarks."""
    from tqdm import tqdm

    from ctxft.config import ServerConfig, from_mapping
    from ctxft.extras.hosted import evaluate_hosted, hosted_table, plan_of
    from ctxft.extras.server import Server

    options = {
        "url": server,
        "model": model,
        "key_variable": key_variable,
        "price_in": price_in,
        "price_out": price_out,
    }
    where = from_mapping(ServerConfig, options, "options")
    client, plan = Server(where), plan_of(run_of(config, settings, data), where, completions)
    cost = plan.cost()
    _print_cost(cost)
    if cost["to ask"] and not confirm_cost(yes):
        return
    with tqdm(total=cost["to ask"], unit="item", disable=not sys.stderr.isatty()) as bar:
        record = evaluate_hosted(plan, client, parallel, bar.update)
    spent = record["requests"]
    print(hosted_table(record).to_string(index=False))
    print_notes(plan.run)
    print(
        f"\n{spent['requests']} requests, {spent['tokens_in']} tokens in, {spent['tokens_out']} out; in {plan.folder}"
    )


def _print_cost(cost: dict) -> None:
    for name, value in cost.items():
        print(f"{name}: {'unknown without the prices of a server' if value is None else value}")


def write_adaptive(
    config: Config,
    *,
    estimate: Annotated[bool, Option("--estimate", help="print the cost, and stop")] = False,
    yes: Yes = False,
    settings: Settings,
    data: Data = None,
) -> None:
    """Let a model write the prompt of each passage, for arm adaptive."""
    from tqdm import tqdm

    from ctxft.extras.adaptive import adapt, estimate_cost, writer_of

    run = run_of(config, settings, data).prepare()
    writer = writer_of(run.config)
    due = estimate_cost(run.passages, writer, run.prompt_sets.strategies, run.tokenizer)
    _print_cost(due)
    if estimate or (writer.server and due["to write"] and not confirm_cost(yes)):
        return
    with tqdm(total=due["to write"], unit="prompt", disable=not sys.stderr.isatty()) as bar:
        record = adapt(run, bar.update)
    for name in ("passages", "prompts", "cached", "rejected", "failed", "cost"):
        print(f"{name}: {record[name]}")
    print(f"in {run.folder / 'adaptive.json'}")
    if record["failed"]:
        raise FailedError(
            f"{record['failed']} of {record['passages']} prompts were not written ({record['failure']}): fix that and run "
            "the same command again; only what is missing is requested."
        )


@extras.command("check")
def _check() -> int:
    """Print versions and device, and check the kit's guarantees on this machine."""
    import torch
    from transformers import logging

    from ctxft.extras.check import check_scores, check_training

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    for name, value in {**versions(), "device": ", ".join(gpus) or "cpu"}.items():
        print(f"{name:<14} {value}")
    with tempfile.TemporaryDirectory() as place:
        checks = {**check_training(Path(place)), "scores do not depend on the batch": (check_scores(), 1e-4)}
    for name, (difference, limit) in checks.items():
        print(f"{'holds' if difference <= limit else 'FAILS'}  {name} (largest difference {difference:.0e})")
    return int(any(difference > limit for difference, limit in checks.values()))
