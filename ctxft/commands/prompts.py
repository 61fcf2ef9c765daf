"""What ``ctxft prompts`` does: list the prompt sets, show one, check a file, start a file of one's own, write prompts."""

from __future__ import annotations

import argparse
import re
import textwrap

from ctxft.commands.experiments import agreed, experiment_of
from ctxft.prompts.files import load_prompt_set, prompt_lines, prompt_set_path
from ctxft.prompts.sets import PROMPT_SETS, PromptSet
from ctxft.storage import FailedError, InputError, read_text, write_text


def list_prompt_sets(options: argparse.Namespace) -> None:
    """Print a row for each prompt set of the package."""
    import pandas

    rows = []
    for name in PROMPT_SETS:
        prompt_set = load_prompt_set(name)
        words = [len(prompt.text.split()) for prompt in prompt_set.prompts]
        sizes = {
            "families": len(prompt_set.families),
            "prompts": len(prompt_set.prompts),
            "words": f"{min(words)} to {max(words)}",
        }
        rows.append(
            {
                "prompt set": name,
                "kind": prompt_set.kind,
                **sizes,
                "version": prompt_set.version,
                "hash": prompt_set.hash[:12],
            }
        )
    print(pandas.DataFrame(rows).to_string(index=False))


def show(options: argparse.Namespace) -> None:
    """Print a prompt set: its options, and each family with its idea, its publication and its prompts."""
    prompt_set = load_prompt_set(options.prompt_set)
    if options.family and options.family not in prompt_set.families:
        raise InputError(
            f"the prompt set '{prompt_set.name}' has no family '{options.family}'; it has: {', '.join(prompt_set.families)}."
        )
    tokens = _tokens(prompt_set, options.model) if options.model else {}
    head = f"{prompt_set.name}: kind {prompt_set.kind}, version {prompt_set.version}"
    print(f"{head}, placement {prompt_set.placement}, hash {prompt_set.hash[:12]}")
    for family in [options.family] if options.family else prompt_set.families:
        weight = f" (weight {prompt_set.weights[family]:g})" if family in prompt_set.weights else ""
        print(f"\n{family}{weight}")
        for told in (prompt_set.ideas.get(family), prompt_set.references.get(family)):
            if told:
                print(textwrap.fill(told, 118, initial_indent="  ", subsequent_indent="  "))
        for prompt in prompt_set.members[family]:
            size = f", {tokens[prompt.id]} tokens" if tokens else ""
            print(
                textwrap.fill(f"{prompt.id}{size}: {prompt.text}", 118, initial_indent="  - ", subsequent_indent="    ")
            )


def _tokens(prompt_set: PromptSet, model: str) -> dict[str, int]:
    """Return the tokens of each prompt, with what its placement puts around it."""
    from ctxft.data.rows import prompt_ids, prompt_template
    from ctxft.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    template = prompt_template(tokenizer, prompt_set)
    return {prompt.id: len(prompt_ids(tokenizer, prompt, template)) for prompt in prompt_set.prompts}


def validate(options: argparse.Namespace) -> None:
    """Check a prompt set's file, and with a model that its prompts leave room for text in the window."""
    if options.window is not None and not options.model:
        raise InputError("--window counts in a model's tokens: add --model, or leave --window out.")
    prompt_set = load_prompt_set(options.prompt_set)
    told = f"{len(prompt_set.prompts)} prompts in {len(prompt_set.families)} families, kind {prompt_set.kind}"
    told += f", hash {prompt_set.hash[:12]}"
    if options.model:
        tokens = _tokens(prompt_set, options.model)
        least, most = min(tokens.values()), max(tokens.values())
        _require_room(options, tokens)
        told += f"; {least} to {most} tokens each for the tokenizer of {options.model}"
        if options.window:
            told += f", which leaves {options.window - 2 - most} of {options.window} for text"
    bare = [family for family in prompt_set.families if family not in prompt_set.ideas]
    if bare:
        told += f"; no idea is told for {', '.join(bare)}"
    print(f"{options.prompt_set}: a valid prompt set: {told}")


def _require_room(options: argparse.Namespace, tokens: dict[str, int]) -> None:
    """Refuse, with its line, the first prompt that leaves fewer text tokens than a recipe asks for by default."""
    from ctxft.training.config import TrainConfig

    least = TrainConfig().min_text_tokens
    for name, count in tokens.items() if options.window else ():
        if options.window - 2 - count < least:
            path = prompt_set_path(options.prompt_set)
            line = prompt_lines(path).get(name)
            where = f"{path}, line {line}" if line else f"{path} (in the prompt set that it extends)"
            raise InputError(
                f"{where}: prompt '{name}' takes {count} tokens, which leaves {max(0, options.window - 2 - count)} of a "
                f"window of {options.window} for text, fewer than {least}: shorten it, or raise the window."
            )


def write(options: argparse.Namespace) -> None:
    """Write a prompt set of the package to a file, to be changed there."""
    if options.file.exists():
        raise InputError(f"{options.file} exists already: choose another name, or remove it.")
    if options.file.suffix not in (".yaml", ".yml"):
        raise InputError(f"{options.file}: a prompt set is a YAML file: give it a name that ends in .yaml.")
    text = read_text(prompt_set_path(options.prompt_set))
    name = re.sub(r"[^\w.-]+", "-", options.file.stem)
    head = f"# Started from the prompt set '{options.prompt_set}' of ctxft. Edit, then: ctxft prompts validate FILE\n"
    body = re.sub(r"\A(#[^\n]*\n)+", "", text)
    print(f"written: {write_text(options.file, head + re.sub(r'(?m)^name: .*$', f'name: {name}', body, count=1))}")


def adapt(options: argparse.Namespace) -> None:
    """Let the experiment's model write a prompt for each passage, once its cost is told and agreed to."""
    from ctxft.extras.adaptive import adapt as write_all
    from ctxft.extras.adaptive import estimate_adapt
    from ctxft.extras.written import failure_of
    from ctxft.run.prepare import prepare

    config = experiment_of(options)
    prepare(config)
    due = estimate_adapt(config)
    for name, value in due.items():
        print(f"{name}: {'unknown without price_in and price_out' if value is None else value}")
    if options.estimate or (config.prompts.writer.server and due["to write"] and not agreed(options)):
        return
    record = write_all(config)
    refused, failed = sum(record["rejected"].values()), record["failed"]
    print(
        f"{record['passages']} passages: {record['prompts']} with a written prompt ({record['cached']} texts from before), "
        f"{refused} refused, {failed} failed"
    )
    for reason, number in record["rejected"].items():
        print(f"  refused, {reason}: {number}")
    told = "unknown" if record["cost"] is None else f"{record['cost']:.4f}"
    print(f"cost now: {told}; in {config.folder / 'adaptive.jsonl'}")
    if failed:
        raise FailedError(f"{failed} of {record['passages']} prompts were not written ({failure_of(config)}): {AGAIN}")


AGAIN = "mend that and run the same command again; only what is missing is asked for."
