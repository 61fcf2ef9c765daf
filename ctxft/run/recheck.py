"""The results of a run flow in; for each one, a check that makes it again from what it was made from flows out.

arms/<arm>/seed-<n>    prompts drawn again, the order of steps again, the model's hash, the stage that it went on from
evals/<arm>/seed-<n>   answers told again from the log-likelihoods or the text, metrics computed again, items hashed again
adaptive.jsonl         passages, families and ids of the prompts    leaks.json    looked for again
attribution/*.json     the model, prompt sets and texts that it names
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from ctxft.config import load_experiment
from ctxft.evaluation.benchmarks import requests_of
from ctxft.evaluation.evaluate import scored_outcome, written_outcome
from ctxft.evaluation.metrics import metrics
from ctxft.evaluation.outcomes import read_outcomes
from ctxft.evaluation.scoring import ChoiceScores
from ctxft.extras.writer.config import FAMILY_SEED
from ctxft.extras.written import written_prompts
from ctxft.models import model_hash
from ctxft.prompts import get_arm
from ctxft.run.examine import asked_as, benchmark_key, held_out_key, model_of
from ctxft.run.leaks import look_for_leaks
from ctxft.run.origin import Check, Run, must_equal
from ctxft.run.prepare import check_same
from ctxft.run.rows import prompt_sets_of, read_passages
from ctxft.run.tasks import arm_folder, prompt_set_files
from ctxft.storage import InputError, hash_file, read_checked, read_json, read_jsonl, read_text, sha256
from ctxft.training.config import FREE

KNOWN = {"arms", "evals", "attribution", "manifest.json", "ledger.json", "leaks.json", "config.yaml"}
KNOWN |= {f"adaptive.{kind}" for kind in ("json", "jsonl")} | {"instructions.json"}
KNOWN |= {f"{name}.jsonl" for name in ("passages", "held_out", "general", "general_held_out", "instructions")}
KNOWN |= {"instructions_held_out.jsonl"}


def checks_of_results(run: Run) -> Iterator[Check]:
    """Yield (what, check) for everything that was trained, examined or measured, and one for what is not looked at."""
    if run.config.prompts.writer and any(run.folder.glob("adaptive.json*")):
        yield "adaptive.jsonl", lambda: _written(run)
    for path in sorted(run.folder.glob("arms/*/seed-*")):
        arm, seed, where = path.parent.name, path.name.removeprefix("seed-"), path.relative_to(run.folder)
        for name, check in (
            ("done.json", _done),
            ("config.yaml", _config),
            ("prompts.jsonl", _prompts),
            ("log.jsonl", _log),
        ):
            yield f"{where / name}", lambda check=check, task=(arm, seed): check(run, task[0], int(task[1]))
        yield f"{where / 'model'}", lambda task=(arm, seed): _model(run, task[0], int(task[1]))
    for path in sorted(run.folder.glob("evals/*/seed-*")):
        yield from _checks_of_evaluation(run, path)
    if (run.folder / "leaks.json").exists():
        yield "leaks.json", lambda: _leaks(run)
    for path in sorted(run.folder.glob("attribution/*.json")):
        yield f"{path.relative_to(run.folder)}", lambda path=path: _attribution(run, path)
    left = sorted(
        path.name for path in run.folder.iterdir() if path.name not in KNOWN and not path.name.startswith(".")
    )
    aside = sorted(f"{path.relative_to(run.folder)}" for path in run.folder.rglob("*.damaged"))
    yield "other files", lambda: f"not looked at: {', '.join([*left, *aside]) or 'none'}"


# --- training ---------------------------------------------------------------------------------------------------------


def _done(run: Run, arm: str, seed: int) -> str:
    folder = arm_folder(run.config, arm, seed)
    done, lesson = read_checked(folder / "done.json"), run.lesson(arm, seed)
    recipe = {key: value for key, value in vars(lesson.recipe).items() if key not in (*FREE, "lora")}
    changed = [key for key, value in recipe.items() if done["train"].get(key) != value]
    if changed or done["seed"] != seed:
        raise InputError(f"{folder / 'done.json'}: {', '.join(changed) or 'the seed'} is not that of the run.")
    if (done["optimizer_steps"], done["passages"]) != (len(lesson.order), len(lesson.rows)):
        raise InputError(f"{folder / 'done.json'} counts other steps or passages than the run's texts give.")
    before = get_arm(arm).start
    if before and read_checked(arm_folder(run.config, before, seed) / "done.json")["model_hash"] != done["start"]:
        raise InputError(f"{folder} went on from another model than that of {before}: train it again.")
    return f"{done['optimizer_steps']} steps of the run's recipe"


def _config(run: Run, arm: str, seed: int) -> str:
    path = arm_folder(run.config, arm, seed) / "config.yaml"
    check_same(load_experiment(path), run.manifest, {})
    return "the experiment that manifest.json holds"


def _prompts(run: Run, arm: str, seed: int) -> str:
    path = arm_folder(run.config, arm, seed) / "prompts.jsonl"
    drawn = run.lesson(arm, seed).drawn
    must_equal([row for _, row in read_jsonl(path)], drawn, path, "drawing again")
    return f"{len(drawn)} prompts, as they are drawn again"


def _log(run: Run, arm: str, seed: int) -> str:
    folder = arm_folder(run.config, arm, seed)
    path, done = folder / "log.jsonl", read_checked(folder / "done.json")
    rows, order = [row for _, row in read_jsonl(path)], run.lesson(arm, seed).order
    must_equal(
        [(row["step"], row["passages"]) for row in rows], list(enumerate(order, start=1)), path, "the seed's order"
    )
    if sum(row["target_tokens"] for row in rows) != done["target_tokens"] or hash_file(path) != done.get(
        "log", hash_file(path)
    ):
        raise InputError(
            f"{path} was changed after the training: its numbers are not those that done.json vouches for."
        )
    return f"{len(rows)} steps in the order of the seed"


def _model(run: Run, arm: str, seed: int) -> str:
    folder = arm_folder(run.config, arm, seed)
    if not (folder / "model").is_dir():
        raise InputError(f"{folder / 'model'} is missing: train it again.")
    if model_hash(str(folder / "model")) != read_checked(folder / "done.json")["model_hash"]:
        raise InputError(
            f"{folder / 'model'} was cut off or changed after training: remove {folder} and train it again."
        )
    for name, text in prompt_set_files(run.config, arm).items():
        if read_text(folder / "model" / name) != text:
            raise InputError(f"{folder / 'model' / name} is not the prompt set that the run names.")
    return "has the hash that done.json holds"


# --- examination ------------------------------------------------------------------------------------------------------


def _checks_of_evaluation(run: Run, folder: Path) -> Iterator[Check]:
    arm, seed, where = folder.parent.name, folder.name.removeprefix("seed-"), folder.relative_to(run.folder)
    yield f"{where / 'metrics.json'}", lambda: _held_out(run, folder, arm, int(seed))
    for name in sorted(_examined(folder)):
        yield f"{where / name}.jsonl", lambda name=name: _outcomes(run, folder, arm, int(seed), name)


def _examined(folder: Path) -> set[str]:
    """Return the benchmarks that have outcomes or metrics here; of damaged metrics the check of metrics.json tells."""
    names = {path.stem for path in folder.glob("*.jsonl")}
    with contextlib.suppress(InputError, KeyError, TypeError):
        names |= set(read_json(folder / "metrics.json")["benchmarks"])
    return names


def _held_out(run: Run, folder: Path, arm: str, seed: int) -> str:
    held = read_checked(folder / "metrics.json")["held_out"]
    tokens = sum(len(passage.ids) + passage.last for passage in read_passages(run.folder, "held_out"))
    if held["key"] != held_out_key(run.config, model_of(run.config, arm, seed)) or held["tokens"] != tokens:
        raise InputError(
            f"{folder / 'metrics.json'}: the loss is of another model or of other held-out text: evaluate again."
        )
    return f"checksum holds; loss of this model on {tokens} held-out tokens"


def _outcomes(run: Run, folder: Path, arm: str, seed: int, name: str) -> str:
    path, records = folder / f"{name}.jsonl", read_checked(folder / "metrics.json")["benchmarks"]
    if name not in records:
        raise InputError(f"{path}: metrics.json knows no such benchmark: evaluate again, or remove the file.")
    record, outcomes = records[name], read_outcomes(path)
    benchmark = run.benchmark(name, record)
    if record["form"] != (style := asked_as(run.config, benchmark)):
        raise InputError(f"{path} was asked as '{record['form']}', but manifest.json says '{style}': evaluate again.")
    if record["key"] != benchmark_key(run.config, model_of(run.config, arm, seed), benchmark):
        raise InputError(f"{path} is of another model or of other items than there are now: evaluate again.")
    options = run.config.evaluation
    chat = run.tokenizer if options.chat_template else None
    asked = requests_of(benchmark, options.form, options.shots, chat, record["rule"] == "generate")
    must_equal([o["id"] for o in outcomes], [question.id for question in benchmark.questions], path, "the benchmark")
    again = [_told_again(o, q, *request) for o, q, request in zip(outcomes, benchmark.questions, asked, strict=True)]
    must_equal(outcomes, again, path, "its own scores and the benchmark's item")
    if hash_file(path) != record.get("outcomes", hash_file(path)):
        raise InputError(f"{path} is not the file whose hash metrics.json holds: it was cut off or changed.")
    for key, value in json.loads(json.dumps(metrics(outcomes, benchmark))).items():
        if not _close(record.get(key), value):
            raise InputError(
                f"{folder / 'metrics.json'}: {key} of {name} is {record.get(key)!r}, but {path.name} gives {value!r}."
            )
    return f"{len(outcomes)} answers to the benchmark's items, and the metrics that they give"


def _told_again(outcome: dict, question: object, context: str, continuations: list[str]) -> dict:
    if outcome["written"] is not None:
        return written_outcome(question, context, continuations, outcome["written"], outcome["truncated"])
    score = ChoiceScores(outcome["log_likelihoods"], outcome["tokens"], outcome["truncated"])
    return scored_outcome(question, context, continuations, score)


def _close(found: object, wanted: object) -> bool:
    """Return whether two JSON values are equal, floats but for rounding: another version of a library may add otherwise."""
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(_close(found[k], wanted[k]) for k in wanted)
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_close, found, wanted))
    if isinstance(wanted, float):
        return isinstance(found, (int, float)) and math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12)
    return found == wanted


# --- prompts, leaks, attribution --------------------------------------------------------------------------------------


def _written(run: Run) -> str:
    path, prompt_set = run.folder / "adaptive.jsonl", prompt_sets_of(run.config)[0]
    prompts, ids = written_prompts(run.config), [passage.id for passage in read_passages(run.folder)]
    must_equal(list(prompts), ids, path, "passages.jsonl")
    for passage, prompt in prompts.items():
        family = prompt_set.sample(FAMILY_SEED, passage).family
        if prompt and (prompt.family, prompt.id) != (family, f"adaptive-{sha256(prompt.text)[:12]}"):
            raise InputError(f"{path}: the prompt of passage '{passage}' has another family or id than its text gives.")
    return f"{sum(map(bool, prompts.values()))} prompts for {len(ids)} passages"


def _leaks(run: Run) -> str:
    path = run.folder / "leaks.json"
    found, again = read_json(path), json.loads(json.dumps(look_for_leaks(run.config)))
    if changed := [key for key in {**again, **found} if not _close(found.get(key), again.get(key))]:
        raise InputError(f"{path}: {', '.join(changed)} differ from what the texts give now: run `ctxft leaks` again.")
    return f"{again['texts']} texts looked through again"


def _attribution(run: Run, path: Path) -> str:
    found = read_checked(path)
    prompt_sets = dict(
        zip(("strategies", "negative"), (prompt_set.hash for prompt_set in prompt_sets_of(run.config)), strict=True)
    )
    wanted = {
        "model_hash": model_of(run.config, found["arm"], found["seed"]),
        "books": prompt_sets,
        "hashes": run.hashes,
    }
    if path.name != f"{found['arm']}-seed-{found['seed']}.json":
        raise InputError(f"{path} is the attribution of {found['arm']}, seed {found['seed']}: its name says otherwise.")
    if changed := [key for key, value in wanted.items() if found[key] != value]:
        raise InputError(f"{path}: {', '.join(changed)} are not those of the run now: run `ctxft attribute` again.")
    return "checksum holds; of this model, these prompt sets and texts"
