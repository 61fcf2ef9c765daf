"""What ``ctxft`` does about models that others host: pairs to tune one, questions for one."""

from __future__ import annotations

import argparse
import sys

from ctxft.commands.experiments import agreed, experiment_of


def export(options: argparse.Namespace) -> None:
    """Write what an arm reads as examples for a tuning service."""
    from ctxft.extras.export import export_pairs

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

    from ctxft.extras.hosted import ask_all, hosted_table, plan_of
    from ctxft.extras.server import Server, ServerConfig

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
    if due and not agreed(options):
        return
    with tqdm(total=due, unit="item", disable=not sys.stderr.isatty()) as bar:
        record = ask_all(plan, server, options.parallel, bar.update)
    print(hosted_table(record).to_string(index=False))
    spent = record["requests"]
    print(
        f"\n{spent['requests']} requests, {spent['tokens_in']} tokens in, {spent['tokens_out']} out; in {plan.folder}"
    )
