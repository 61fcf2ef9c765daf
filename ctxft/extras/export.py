"""Write what an arm trains on as (prompt, passage) pairs for a tuning library or service, once no benchmark item is in it.

    prompt-completion   {"prompt": "...", "completion": "..."}: TRL, axolotl, tinker and most others
    vertex              {"contents": [{"role": "user", ...}, {"role": "model", ...}]}: supervised tuning on Vertex AI

What a hosted model is tuned on cannot be taken back, and nobody can inspect it afterwards: texts that contain a question of
the experiment's benchmarks are refused, all of them at once.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

from ctxft.leakage import documents_of, find_leaks
from ctxft.prompts import check_subsets, get_arm
from ctxft.run.run import Run
from ctxft.storage import InputError, atomic_file, check_known, code_revision, hash_file, sha256, write_json

SHOWN = 10  # items that a refusal names


def _prompt_completion(prompt: str, text: str) -> dict:
    return {"prompt": prompt, "completion": text}


def _vertex(prompt: str, text: str) -> dict:
    return {"contents": [{"role": role, "parts": [{"text": t}]} for role, t in (("user", prompt), ("model", text))]}


FORMS = {"prompt-completion": _prompt_completion, "vertex": _vertex}


def export_pairs(run: Run, arm: str, seed: int, form: str, path: Path) -> dict:
    """Write what one arm reads as training examples: the prompt in, the passage out.

    Prompts are sampled as in training, so a tuned model and a local arm of the same seed read the same pairs. Where a prompt
    set places its prompts, and by what separator, is for local models: others have their own templates. Held-out documents
    and general text are left out.

    Args:
        run: a prepared run.
        arm: one of a single stage of text, such as "cft", "neg", "control" or "only-critical"; "cpt", which has no prompt,
            only in the form "prompt-completion".
        seed: samples the prompts; need not be among the experiment's.
        form: a key of ``FORMS``.
        path: the file.

    Returns:
        The content of ``<file>.manifest.json``: run, arm, seed, form; pairs, documents, prompts (different ones),
        general_passages_left_out; hashes; leaks: for each benchmark how many items have which verdict, and the ids of those
        partly found.

    Raises:
        InputError: an arm without such pairs, an unknown form, a run that is not prepared or of another config, a blank
            passage, or a benchmark item in the texts (items and places are named).

    Example:
        >>> export_pairs(Run("mini"), "cft", 0, "prompt-completion", Path("pairs.jsonl"))["pairs"]  # doctest: +SKIP
        1200
    """
    _require_pairs(run, arm)
    shape = FORMS[check_known(form, FORMS, "form")]
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: --out needs the name of a file.")
    hashes, passages = run.require_prepared().hashes, run.passages
    sampled = list(run.rows(arm, seed)[1].records())
    prompts = {row["passage"]: row["text"] for row in sampled}
    for passage in passages:
        if not passage.text.strip():
            raise InputError(f"passage '{passage.id}' is blank, and nothing is learned from an empty turn: remove it.")
        if form == "vertex" and not prompts.get(passage.id):
            raise InputError(f"arm '{arm}' has no prompts, and Vertex AI takes no empty turn: use prompt-completion.")
    leaks = _require_clean(run, sampled)
    with atomic_file(path) as file:
        for passage in passages:
            pair = shape(prompts.get(passage.id, ""), passage.text)
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
    record = {
        "run": run.config.name,
        "arm": arm,
        "seed": seed,
        "form": form,
        "pairs": len(passages),
        "documents": len({passage.document for passage in passages}),
        "prompts": len({row["text"] for row in sampled}),
        "general_passages_left_out": len(run.text("general")),
        "hashes": {"file": hash_file(path), "sampled prompts": sha256(prompts), **hashes},
        "leaks": leaks,
        "code": code_revision(),
    }
    write_json(path.with_name(f"{path.name}.manifest.json"), record)
    return record


def _require_pairs(run: Run, arm: str) -> None:
    """Refuse an arm that gives no pairs of a prompt and a passage."""
    known = get_arm(arm)
    reasons = {
        "it is trained on no text": not known.reads_text,
        "it has a second stage; export its first, and tune on instructions separately": known.start,
        "its prompts are learned too, and a completion is learned alone": known.learn_prompt,
        "it reads exercises after each text": known.after,
    }
    for why in (why for why, holds in reasons.items() if holds):
        raise InputError(f"arm '{arm}' gives no pairs of a prompt and a passage: {why}.")
    check_subsets([arm], run.prompt_sets.strategies)


def _require_clean(run: Run, sampled: list[dict]) -> dict:
    """Return what was found of each benchmark, all of its items, or refuse texts that contain one."""
    # all items, also those that a limit leaves out now: the rest may be evaluated another time
    benchmarks = Run(run.wanted, overrides={"evaluation.limit": None}).benchmarks
    texts = [(f"prompt {row['prompt']}", text) for text, row in {row["text"]: row for row in sampled}.items()]
    documents = ((f"document {name}", text) for name, text in documents_of(run.passages))
    leaks, held = find_leaks(benchmarks, chain(texts, documents))["benchmarks"], []
    for name, result in leaks.items():
        for item in result["items"]:  # most of one, or a short question with its answer after it
            if item["verdict"] == "leaked" or (item["verdict"] == "short" and item["answered"]):
                held.append(f"item '{item['id']}' of {name} in {', '.join(item['places'])}")
    if held:
        raise InputError(
            f"nothing was exported, because the texts contain benchmark items, {len(held)} in all "
            f"({'; '.join(held[:SHOWN])}): a model tuned on them cannot be evaluated on them; take these texts out of the "
            "corpus or the prompt set."
        )
    partial = {name: sorted(i["id"] for i in leaks[name]["items"] if i["verdict"] == "partial") for name in leaks}
    return {name: {**result["counts"], "partial_ids": partial[name]} for name, result in leaks.items()}
