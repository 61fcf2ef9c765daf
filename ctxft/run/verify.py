"""A run folder flows in; for each of its results, whether it still follows from what it was made from, flows out.

    manifest.json                    model, corpus, prompt sets: are they what they were?
    corpus -> cut again ->           passages, held-out and general text, instructions, ledger
    written prompts, leaks           read back, looked for again
    arms/*, evals/*, attribution/*   see ``ctxft.run.recheck``

No model is run, and nothing in the folder is changed. A loss cannot be computed again without the model: files that hold one
carry a checksum. What a check meets, whatever it is, ends that check alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ctxft.data.documents import corpus_state
from ctxft.data.passages import Passage, passages_hash
from ctxft.models import model_hash
from ctxft.prompts import get_arm
from ctxft.run.instruct import has_instructions, make_rows, read_instruction_rows
from ctxft.run.origin import Check, Run, must_equal
from ctxft.run.recheck import checks_of_results
from ctxft.run.rows import add_arms, corpus_ledger, prompt_sets_of, read_passages
from ctxft.storage import InputError, read_json, sha256

# What damaged files raise beside InputError: a key that is gone, a list where an object was, half of a UTF-8 character.
DAMAGE = (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: a file of the run or an input, whether it follows, and in words how or why not."""

    what: str
    follows: bool
    said: str


def verify(folder: Path, data: str | None = None) -> list[Finding]:
    """Look at everything in a run folder that follows from something else.

    Args:
        folder: the run folder, below the run root.
        data: folder with benchmark files in place of the one that the run names.

    Returns:
        A finding for each file or input; of those that do not follow, ``said`` names what is wrong and where.

    Example:
        >>> [finding.what for finding in verify(runs_root() / "mini") if not finding.follows]  # doctest: +SKIP
        ['evals/cft/seed-0/practice-mmlu.jsonl']
    """
    try:
        run = Run(folder, data)
    except DAMAGE as error:
        return [Finding("manifest.json", False, in_words(error))]
    checks = [*_checks_of_inputs(run), *_checks_of_texts(run), *checks_of_results(run)]
    return [_find(what, check) for what, check in checks]


def _find(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except DAMAGE as error:
        return Finding(what, False, in_words(error))


def in_words(error: Exception) -> str:
    """Return one sentence for whatever a damaged file raised."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is missing."
    return str(InputError(f"it does not hold what it should ({type(error).__name__}: {error})."))


# --- inputs -----------------------------------------------------------------------------------------------------------


def _checks_of_inputs(run: Run) -> Iterator[Check]:
    config = run.config

    def prompt_sets() -> str:
        strategies, negative = prompt_sets_of(config)
        return sha256([strategies.hash, negative.hash])

    ways = {
        "model": lambda: model_hash(config.model, config.revision),
        "corpus": lambda: corpus_state(config.corpus)[0],
    }
    ways |= {"prompts": prompt_sets} | ({"general": lambda: corpus_state(config.general)[0]} if config.general else {})

    def same(name: str) -> str:
        if ways[name]() != run.hashes[name]:
            raise InputError(f"the {name} is another one than when the run was made: its hash is not manifest.json's.")
        return "has the hash that manifest.json holds"

    yield "manifest.json", lambda: f"experiment '{run.manifest['name']}', code {run.manifest['code'][:12]}"
    for name in ways:
        yield f"input: {name}", lambda name=name: same(name)


# --- texts ------------------------------------------------------------------------------------------------------------


def _checks_of_texts(run: Run) -> Iterator[Check]:
    texts = {"passages": lambda: run.cut[0], "held_out": lambda: run.cut[1]}
    if run.config.general:
        texts |= {"general": lambda: run.general[0], "general_held_out": lambda: run.general[1]}
    for which, again in texts.items():
        yield f"{which}.jsonl", lambda which=which, again=again: _passages(run, which, again)
    if has_instructions(run.config.arms):
        yield "instructions.jsonl", lambda: _instructions(run)
    yield "ledger.json", lambda: _ledger(run)


def _passages(run: Run, which: str, again: Callable[[], list[Passage]]) -> str:
    found, path = read_passages(run.folder, which), run.folder / f"{which}.jsonl"
    if which in ("passages", "held_out") and passages_hash(found) != run.hashes[which]:
        raise InputError(f"{path} does not hold the passages whose hash manifest.json holds.")
    must_equal([p.to_json() for p in found], [p.to_json() for p in again()], path, "the corpus")
    return f"{len(found)} passages, as the corpus gives them"


def _instructions(run: Run) -> str:
    record = read_json(run.folder / "instructions.json")
    kept, held, counts = make_rows(run.config, run.tokenizer, record["commit"])
    for which, wanted in (("instructions", kept), ("instructions_held_out", held)):
        must_equal(read_instruction_rows(run.folder, which), wanted, run.folder / f"{which}.jsonl", "their source")
    if record["counts"] != counts:
        raise InputError(f"{run.folder / 'instructions.json'} counts otherwise than their source gives.")
    return f"{len(kept)} rows and {len(held)} held out, as their source gives them"


def _ledger(run: Run) -> str:
    """Compare each number; those of an arm may be of any seed of the run, since seeds are added later."""
    passages, held, counts = run.cut
    wanted = corpus_ledger(run.config, counts, run.tokenizer)
    wanted |= {"passages": len(passages), "passages held out": len(held)}
    if run.config.general:
        passages, held, counts = run.general
        counts = {**counts, "passages": len(passages), "passages held out": len(held)}
        wanted |= {f"general text: {name}": value for name, value in counts.items() if value}
    if has_instructions(run.config.arms):
        wanted |= read_json(run.folder / "instructions.json")["counts"]
    seeds = [add_arms(replace(run.config, seeds=[seed]), {}, run.tokenizer) for seed in run.config.seeds]
    found = read_json(run.folder / "ledger.json")
    for name in {**wanted, **seeds[0]}:
        if name not in found and ": " in name and get_arm(name.split(":")[0]).written:
            continue  # its prompts were written after the run was prepared
        right = [wanted[name]] if name in wanted else [values.get(name) for values in seeds]
        if found.get(name) not in right:
            raise InputError(
                f"{run.folder / 'ledger.json'}: '{name}' is {found.get(name)!r}, but the texts give {right[0]!r}."
            )
    if unknown := found.keys() - wanted.keys() - seeds[0].keys():
        raise InputError(f"{run.folder / 'ledger.json'}: nothing gives '{min(unknown)}'.")
    return f"{len(found)} numbers, as the texts give them"
