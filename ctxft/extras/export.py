"""A prepared run flows in; a file of (prompt, passage) pairs for a tuning service flows out, with a manifest beside it.

    passages.jsonl + the prompts that an arm and a seed draw -> leak check, limits -> FILE, FILE.manifest.json

What a hosted model is tuned on cannot be taken back, and nobody can look into it afterwards: texts that hold a question of
the experiment's benchmarks are refused, all of them at once.
"""

from __future__ import annotations

from itertools import chain, groupby
from pathlib import Path

from ctxft.extras.tuning import Pair, check_limits, form_named, lines_of
from ctxft.leakage import find_leaks
from ctxft.prompts import check_subsets, get_arm
from ctxft.run.run import Run
from ctxft.storage import InputError, atomic_file, code_revision, hash_file, sha256, write_json

SHOWN = 10  # items that a refusal names


def export_pairs(run: Run, arm: str, seed: int, form: str, path: Path) -> dict:
    """Write what one arm reads as examples for a tuning service: the prompt in, the passage out.

    Prompts are drawn as in training, so a hosted model and a local arm of the same seed read the same pairs. Where a prompt set
    places its prompts, and by what separator, is for local models: a service has its own turns. Held-out documents and
    general text stay out.

    Args:
        run: a prepared run.
        arm: one of a single stage of text, such as "cft", "neg", "control" or "only-critical"; "cpt", which has no prompt,
            where the form takes an empty one.
        seed: draws the prompts; one that is not among the experiment's will do too.
        form: "chat", "gemini" or "csv" (see ``ctxft.extras.tuning.FORMS``).
        path: the file.

    Returns:
        The content of ``<file>.manifest.json``: run, arm, seed, form and service; pairs, documents, prompts (different
        ones), general_passages_left_out; hashes; limits as they were found, with source and date; leaks, the items of each
        verdict and the ids of those partly found, for each benchmark.

    Raises:
        InputError: an arm without such pairs (it trains on no text, learns prompts, reads exercises, or has two stages), an
            unknown form, a run that is not prepared or of another config, a benchmark item in the texts (items and places
            are named), or a limit of the service that is broken.

    Example:
        >>> export_pairs(Run("mini"), "cft", 0, "chat", Path("pairs.jsonl"))["pairs"]  # doctest: +SKIP
        1200
    """
    _require_pairs(run, arm)
    form_named(form)
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: --out needs the name of a file.")
    run.require_prepared()
    passages, (_, drawn) = run.passages, run.rows(arm, seed)
    prompts = {row["passage"]: row["text"] for row in drawn}
    pairs = [Pair(passage.id, prompts.get(passage.id, ""), passage.text) for passage in passages]
    limits = check_limits(pairs, form)
    leaks = _require_clean(run, drawn)
    with atomic_file(path) as file:
        file.writelines(lines_of(pairs, form))
    record = {"run": run.folder.name, "arm": arm, "seed": seed, **_counts(run, drawn)}
    record |= _limits(form, limits) | {"leaks": leaks, "hashes": _hashes(run, pairs, path)}
    record["code"] = code_revision()
    write_json(path.with_name(f"{path.name}.manifest.json"), record)
    return record


def _require_pairs(run: Run, arm: str) -> None:
    """Refuse an arm of which no pairs of a prompt and a passage can be told."""
    found = get_arm(arm)
    reasons = {
        "it is trained on no text": not found.reads_text,
        "it has a second stage; export its first, and tune on instructions apart": found.start,
        "its prompts are learned too, and a service learns the answer alone": found.learn_prompt,
        "it reads exercises after each text": found.after,
    }
    for why in (why for why, holds in reasons.items() if holds):
        raise InputError(f"arm '{arm}' gives no pairs of a prompt and a passage: {why}.")
    check_subsets([arm], run.prompt_sets.strategies)


def _counts(run: Run, drawn: list[dict]) -> dict[str, int]:
    return {
        "pairs": len(run.passages),
        "documents": len({passage.document for passage in run.passages}),
        "prompts": len({row["text"] for row in drawn}),
        "general_passages_left_out": len(run.general),
    }


def _limits(form: str, found: dict) -> dict:
    how = form_named(form)
    return {"form": form, "service": how.service, "limits": found | {"source": how.source, "looked_up": how.looked_up}}


def _hashes(run: Run, pairs: list[Pair], path: Path) -> dict[str, str]:
    manifest = run.require_prepared()
    passages, prompt_sets = manifest.files["passages.jsonl"], manifest.hashes["prompts"]
    drawn = sha256([[pair.passage, pair.prompt] for pair in pairs])
    return {"file": hash_file(path), "passages": passages, "books": prompt_sets, "drawn prompts": drawn}


# --- no benchmark item leaves the house -------------------------------------------------------------------------------


def _require_clean(run: Run, drawn: list[dict]) -> dict:
    """Return what was found of each benchmark, all of its items, or refuse texts that hold one."""
    benchmarks, passages = run.whole_benchmarks, run.passages
    prompts = {row["text"]: f"prompt {row['prompt']}" for row in drawn}
    told = [(where, text) for text, where in prompts.items()]
    documents = groupby(passages, key=lambda passage: passage.document)
    whole = ((f"document {name}", "".join(p.text for p in parts)) for name, parts in documents)  # slices that touch
    leaks = find_leaks(benchmarks, chain(whole, told))["benchmarks"]
    held = {(name, item["id"]): item["places"] for name in leaks for item in leaks[name]["items"] if _is_held(item)}
    if held:
        pieces = find_leaks(benchmarks, chain(((f"passage {p.id}", p.text) for p in passages), told))["benchmarks"]
        for name, found in pieces.items():
            closer = {(name, item["id"]): item["places"] for item in found["items"] if item["places"]}
            held |= {key: places for key, places in closer.items() if key in held}
        raise InputError(_refusal(held))
    return {name: _told(found) for name, found in leaks.items()}


def _is_held(item: dict) -> bool:
    """Say whether a text holds an item: most of it, or a short question with its answer behind it."""
    return item["verdict"] == "leaked" or (item["verdict"] == "short" and item["answered"])


def _refusal(held: dict[tuple[str, str], list[str]]) -> str:
    said = [f"item '{id}' of {name} in {', '.join(places)}" for (name, id), places in held.items()]
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return (
        f"nothing was exported, because the texts hold {len(said)} benchmark item{'s' * (len(said) > 1)} "
        f"({'; '.join(said[:SHOWN])}{more}): a model tuned on them cannot be examined on them; take these texts out of the "
        "corpus or the prompt set."
    )


def _told(found: dict) -> dict:
    return {**found["counts"], "partial_ids": sorted({i["id"] for i in found["items"] if i["verdict"] == "partial"})}
