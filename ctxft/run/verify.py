"""Check that each result of a run still follows from what it was made from.

Every stage that needs no model is run again, by the functions that made it, into a temporary folder, and the files are
compared: texts, ledger, sampled prompts, the order of steps, outcomes (from the log-likelihoods or the text in them) and their
metrics. What a model gave (weights, losses, log-likelihoods, written prompts) cannot be made again without it; those files
are checked by the SHA-256 or checksum that was recorded when they were written. The run folder is never written to.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ctxft.config import FREE
from ctxft.evaluation.benchmarks import benchmark_names, requests_of
from ctxft.evaluation.metrics import metrics
from ctxft.evaluation.outcomes import generated_outcome, read_outcomes, scored_outcome
from ctxft.evaluation.scoring import ChoiceScores
from ctxft.models import model_hash
from ctxft.prompts import get_arm, text_stages
from ctxft.run.prepare import CORPUS, GENERAL, INSTRUCTIONS, inputs_of, ledger_of, write_texts
from ctxft.run.run import Run
from ctxft.run.tasks import Evaluation, asked_as, prompt_set_files, read_done
from ctxft.storage import InputError, hash_file, read_checked, read_json, read_jsonl, read_text, write_json, write_jsonl

# What damaged files raise beside InputError: a key that is gone, a list where an object was, half of a UTF-8 character.
DAMAGE = (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError)
KNOWN = {"arms", "evals", "attribution", "manifest.json", "ledger.json", "adaptive.json", "adaptive.jsonl"}
KNOWN |= {f"{name}.jsonl" for name in (*CORPUS, *GENERAL, *INSTRUCTIONS)}
Check = tuple[str, Callable[[], str]]  # what is looked at, and what says how it follows, or raises


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: a file of the run or an input, whether it follows, and in words how or why not."""

    what: str
    follows: bool
    message: str


def verify(source: Run | Path, data: str | None = None) -> list[Finding]:
    """Look at everything in a run folder that follows from something else.

    Args:
        source: a Run, or a run folder below the run root.
        data: folder with benchmark files in place of the one that the run names.

    Returns:
        A finding for each file or input; of those that do not follow, ``message`` names what is wrong and where. The last
        lists what is not covered.

    Example:
        >>> [finding.what for finding in verify(runs_root() / "mini") if not finding.follows]  # doctest: +SKIP
        ['evals/cft/seed-0/practice-mmlu.jsonl']
    """
    try:
        run = Run(Path(source), data=data)
    except DAMAGE as error:
        return [Finding("manifest.json", False, in_words(error))]
    with tempfile.TemporaryDirectory() as place:
        return [_finding(*check) for check in _checks(run, Path(place))]


def _finding(what: str, check: Callable[[], str]) -> Finding:
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


def compare(path: Path, rebuilt: Path, origin: str) -> str:
    """Compare a file with what was rebuilt.

    Raises:
        InputError: they differ; the first line or key that does is named.
    """
    if not path.exists():
        raise InputError(f"{path} is missing.")
    if path.read_bytes() == rebuilt.read_bytes():
        return f"as {origin} gives it"
    if path.suffix == ".json":
        found, wanted = read_json(path), read_json(rebuilt)
        for key in sorted({*found, *wanted}):
            if found.get(key) != wanted.get(key):
                raise InputError(f"{path}: '{key}' is {found.get(key)!r}, but {origin} gives {wanted.get(key)!r}.")
    found, wanted = ([row for _, row in read_jsonl(file)] for file in (path, rebuilt))
    if len(found) != len(wanted):
        raise InputError(f"{path} holds {len(found)} lines where {origin} gives {len(wanted)}.")
    for number, (one, other) in enumerate(zip(found, wanted, strict=True), start=1):
        if one != other:
            raise InputError(f"{path}, line {number} is not what {origin} gives.")
    raise InputError(f"{path} holds the values that {origin} gives, but not byte for byte: it was edited.")


def _checks(run: Run, place: Path) -> Iterator[Check]:
    yield "manifest.json", lambda: f"experiment '{run.manifest.name}', code {run.manifest.code[:12]}"
    for name, recorded in run.manifest.hashes.items():
        yield f"input: {name}", lambda name=name, recorded=recorded: _input(run, name, recorded)
    for file in run.manifest.files:
        yield file, lambda file=file: _text(run, file, place)
    yield "ledger.json", lambda: _ledger(run, place)
    for arm in filter(lambda arm: arm.written, map(get_arm, text_stages(run.config.arms))):
        if run.config.prompts.writer and any(run.folder.glob("adaptive.json*")):
            yield (
                "adaptive.jsonl",
                lambda arm=arm: f"{len(arm.written(run.config, 0))} passages, with the recorded hash",
            )
            break
    for folder in sorted(run.folder.glob("arms/*/seed-*")):
        task, where = (folder.parent.name, int(folder.name.removeprefix("seed-"))), folder.relative_to(run.folder)
        for name, check in (("done.json", _done), ("prompts.jsonl", _prompts), ("log.jsonl", _log), ("model", _model)):
            yield f"{where / name}", lambda check=check, task=task, folder=folder: check(run, *task, folder, place)
    for folder in sorted(run.folder.glob("evals/*/seed-*")):
        yield from _checks_of_evaluation(run, folder, place)
    for path in sorted(run.folder.glob("attribution/*.json")):
        yield f"{path.relative_to(run.folder)}", lambda path=path: _attribution(run, path)
    yield "not covered", lambda: _not_covered(run.folder)


def _not_covered(folder: Path) -> str:
    left = [path.name for path in folder.iterdir() if path.name not in KNOWN and not path.name.startswith(".")]
    left += [str(path.relative_to(folder)) for path in folder.rglob("*.damaged")]
    return (
        "whether a model would give these losses, log-likelihoods, weights and written prompts again (their hashes are "
        f"checked); other files: {', '.join(sorted(left)) or 'none'}"
    )


def _input(run: Run, name: str, recorded: str) -> str:
    if inputs_of(run)[name][0] != recorded:
        raise InputError(f"the {name} is another one than when the run was made: its hash is not manifest.json's.")
    return "has the hash that manifest.json holds"


def _text(run: Run, file: str, place: Path) -> str:
    write_texts(run, (Path(file).stem,), place)
    follows = compare(run.folder / file, place / file, "its source")
    if hash_file(place / file) != run.manifest.files[file]:
        raise InputError(f"{run.folder / file} is not the file whose hash manifest.json holds.")
    return follows


def _ledger(run: Run, place: Path) -> str:
    path = run.folder / "ledger.json"
    found = read_json(path)
    wanted = ledger_of(run, found["seed of the prompts counted here"])
    stages = text_stages(run.config.arms)
    late = [arm for arm in stages if get_arm(arm).written and f"{arm}: rows" not in found]
    wanted = {name: value for name, value in wanted.items() if name.split(":")[0] not in late}  # not written by then
    write_json(place / "ledger.json", wanted)
    return compare(path, place / "ledger.json", "the run's texts")


# --- training ---------------------------------------------------------------------------------------------------------


def _done(run: Run, arm: str, seed: int, folder: Path, _place: Path) -> str:
    done, data = read_done(run, arm, seed), run.training_data(arm, seed)
    recipe = {key: value for key, value in vars(data.recipe).items() if key not in (*FREE, "lora")}
    changed = [key for key, value in recipe.items() if done["train"].get(key) != value]
    if changed or done["seed"] != seed:
        raise InputError(f"{folder / 'done.json'}: {', '.join(changed) or 'the seed'} is not that of the run.")
    if (done["optimizer_steps"], done["passages"]) != (len(data.order), len(data.rows)):
        raise InputError(f"{folder / 'done.json'} counts other steps or passages than the run's texts give.")
    first = get_arm(arm).start
    if first and read_done(run, first, seed)["model_hash"] != done["start"]:
        raise InputError(f"{folder} resumed from another model than that of {first}: train it again.")
    return f"{done['optimizer_steps']} steps of the run's recipe"


def _prompts(run: Run, arm: str, seed: int, folder: Path, place: Path) -> str:
    rebuilt = write_jsonl(place / "prompts.jsonl", run.training_data(arm, seed).sampled)
    return compare(folder / "prompts.jsonl", rebuilt, "sampling")


def _log(run: Run, arm: str, seed: int, folder: Path, _place: Path) -> str:
    path, order = folder / "log.jsonl", run.order(arm, seed)
    if [row["passages"] for _, row in read_jsonl(path)] != order:
        raise InputError(f"{path} has not the steps that the seed's order gives.")
    if hash_file(path) != read_done(run, arm, seed)["log"]:
        raise InputError(f"{path} was changed after the training: its hash is not the one in done.json.")
    return f"{len(order)} steps in the order of the seed, with the hash that done.json holds"


def _model(run: Run, arm: str, seed: int, folder: Path, _place: Path) -> str:
    if not (folder / "model").is_dir():
        raise InputError(f"{folder / 'model'} is missing: train it again.")
    if model_hash(str(folder / "model")) != read_done(run, arm, seed)["model_hash"]:
        raise InputError(
            f"{folder / 'model'} was cut off or changed after training: remove {folder} and train it again."
        )
    for name, text in prompt_set_files(run, arm).items():
        if read_text(folder / "model" / name) != text:
            raise InputError(f"{folder / 'model' / name} is not the prompt set that the run names.")
    return "has the hash that done.json holds"


# --- evaluation -------------------------------------------------------------------------------------------------------


def _checks_of_evaluation(run: Run, folder: Path, place: Path) -> Iterator[Check]:
    arm, seed, where = folder.parent.name, int(folder.name.removeprefix("seed-")), folder.relative_to(run.folder)
    yield f"{where / 'metrics.json'}", lambda: _held_out(run, folder, arm, seed)
    names = {path.stem for path in folder.glob("*.jsonl")}
    try:
        names |= set(read_json(folder / "metrics.json")["benchmarks"])
    except DAMAGE:
        pass  # which the check of metrics.json reports
    for name in sorted(names):
        yield f"{where / name}.jsonl", lambda name=name: _outcomes(run, folder, arm, seed, name, place)


def _held_out(run: Run, folder: Path, arm: str, seed: int) -> str:
    held = read_checked(folder / "metrics.json")["held_out"]
    if held["key"] != Evaluation(run, arm, seed).held_out_key:
        raise InputError(
            f"{folder / 'metrics.json'}: the loss is of another model or of other held-out text: evaluate again."
        )
    return f"checksum holds; loss of this model on {held['tokens']} held-out tokens"


def _outcomes(run: Run, folder: Path, arm: str, seed: int, name: str, place: Path) -> str:
    path, records = folder / f"{name}.jsonl", read_checked(folder / "metrics.json")["benchmarks"]
    if name not in records:
        raise InputError(f"{path}: metrics.json knows no such benchmark: evaluate again, or remove the file.")
    record, outcomes, options = records[name], read_outcomes(path), run.config.evaluation
    files = [source for source in options.benchmarks if source not in benchmark_names() and Path(source).stem == name]
    benchmark = run.benchmark(
        name if name in benchmark_names() else (files or [record["source"]])[0], record["revision"]
    )
    if record["form"] != (style := asked_as(run.config, benchmark)):
        raise InputError(
            f"{path} was formatted as '{record['form']}', but manifest.json says '{style}': evaluate again."
        )
    if record["key"] != Evaluation(run, arm, seed).key(benchmark):
        raise InputError(f"{path} is of another model or of other items than there are now: evaluate again.")
    chat = run.tokenizer if options.apply_chat_template else None
    requests = requests_of(benchmark, options.form, options.num_fewshot, chat, record["rule"] == "generate_until")
    known = {outcome["id"]: outcome for outcome in outcomes}
    again = [
        _outcome(known[question.id], question, *request)
        for question, request in zip(benchmark.questions, requests, strict=True)
        if question.id in known
    ]
    missing = len(benchmark.questions) - len(again)
    if missing:
        raise InputError(f"{path} lacks {missing} of the benchmark's {len(benchmark.questions)} items.")
    compare(path, write_jsonl(place / "outcomes.jsonl", again), "their own scores and the benchmark's item")
    if hash_file(path) != record["outcomes"]:
        raise InputError(f"{path} is not the file whose hash metrics.json holds: it was cut off or changed.")
    for key, value in _plain(metrics(outcomes, benchmark)).items():
        if _plain(record.get(key)) != value:
            raise InputError(
                f"{folder / 'metrics.json'}: {key} of {name} is {record.get(key)!r}, but {path.name} gives {value!r}."
            )
    return f"{len(outcomes)} answers to the benchmark's items, and the metrics that they give"


def _outcome(outcome: dict, question: object, context: str, continuations: list[str]) -> dict:
    if outcome["written"] is not None:
        return generated_outcome(question, context, continuations, outcome["written"], outcome["truncated"])
    score = ChoiceScores(outcome["log_likelihoods"], outcome["tokens"], outcome["truncated"])
    return scored_outcome(question, context, continuations, score)


def _plain(value: object) -> object:
    """Return a value as JSON gives it back, numbers to nine places: another version of a library may add otherwise."""
    return json.loads(json.dumps(value), parse_float=lambda number: float(f"{float(number):.9g}"))


def _attribution(run: Run, path: Path) -> str:
    found, (strategies, negative) = read_checked(path), run.prompt_sets
    wanted = {"model_hash": run.model_hash(found["arm"], found["seed"])}
    wanted["hashes"] = {name: run.manifest.hashes.get(name) for name in found["hashes"]}
    wanted["prompt_sets"] = {"strategies": strategies.hash, "negative": negative.hash}
    if path.name != f"{found['arm']}-seed-{found['seed']}.json":
        raise InputError(f"{path} is the attribution of {found['arm']}, seed {found['seed']}: its name says otherwise.")
    if changed := [key for key, value in wanted.items() if found[key] != value]:
        raise InputError(f"{path}: {', '.join(changed)} are not those of the run now: run `ctxft attribute` again.")
    return "checksum holds; of this model and these prompt sets"
