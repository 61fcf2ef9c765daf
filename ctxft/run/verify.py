"""Check that each result of a run still follows from what it was made from.

Every stage that needs no model runs again, by the functions that made it, into a temporary folder, and the files are
compared: texts, ledger, sampled prompts, the order of steps, outcomes (from the log-likelihoods or the text in them) and their
metrics. What a model gave (weights, losses, log-likelihoods, written prompts) cannot be computed without it; those files are
checked by the SHA-256 or checksum that was recorded when they were written. The run folder is never written to.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

from ctxft.config import FREE
from ctxft.data.corpus import same_content
from ctxft.evaluation.benchmarks import Question, benchmark_name, benchmark_names, requests_of
from ctxft.evaluation.metrics import metrics
from ctxft.evaluation.outcomes import Outcome, outcome_of, read_outcomes
from ctxft.evaluation.scoring import ChoiceScores, Generated
from ctxft.models import model_hash
from ctxft.prompts import get_arm, text_stages
from ctxft.run.prepare import INSTRUCTIONS, SOURCES, inputs_of, ledger_of, write_source
from ctxft.run.run import Run
from ctxft.run.tasks import benchmark_key, held_out_key
from ctxft.storage import (
    InputError,
    hash_file,
    read_checked,
    read_json,
    read_jsonl,
    read_text,
    shown,
    write_json,
    write_jsonl,
)

# What damaged files raise beside InputError: a key that is gone, a list where an object was, half of a UTF-8 character.
DAMAGE = (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError)
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
        return [_failed("manifest.json", error)]
    with tempfile.TemporaryDirectory() as place:
        return [_finding(*check) for check in _checks(run, Path(place))]


def _finding(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except DAMAGE as error:
        return _failed(what, error)


def _failed(what: str, error: Exception) -> Finding:
    if not isinstance(error, InputError):  # whatever a damaged file raised
        error = InputError(f"it does not hold what it should ({type(error).__name__}: {error}).")
    return Finding(what, False, str(error))


def _checks(run: Run, place: Path) -> Iterator[Check]:
    folder, manifest = run.folder, run.manifest
    yield "manifest.json", lambda: f"experiment '{manifest.name}', code {manifest.code[:12]}"
    for name in manifest.hashes:
        yield f"input: {name}", partial(_input, run, name)
    for file in manifest.files:
        yield file, partial(_text, run, file, place)
    yield "ledger.json", partial(_ledger, run, place)
    written = [arm.written for arm in map(get_arm, text_stages(run.config.arms)) if arm.written]
    if written and run.config.prompts.writer and (folder / "adaptive.json").exists():
        yield "adaptive.json", lambda: f"{len(written[0](run.config, 0) or ())} passages; checksum holds"
    for pattern, check in (("arms/*/seed-*", _training), ("evals/*/seed-*", _evaluation)):
        for task in sorted(folder.glob(pattern)):
            arm, seed = task.parent.name, int(task.name.removeprefix("seed-"))
            yield str(task.relative_to(folder)), partial(check, run, arm, seed, place)
    known = {
        "arms",
        "evals",
        "manifest.json",
        "ledger.json",
        "adaptive.json",
        *(name.split("/")[0] for name in manifest.files),
    }
    left = [path.name for path in folder.iterdir() if path.name not in known and not path.name.startswith(".")]
    left += [str(path.relative_to(folder)) for path in folder.rglob("*.damaged")]
    yield (
        "not covered",
        lambda: (
            "whether a model would give these losses, log-likelihoods, weights and written prompts again (their hashes "
            f"are checked); other files: {', '.join(sorted(left)) or 'none'}"
        ),
    )


def _require_same(path: Path, rebuilt: Path, origin: str) -> str:
    """Compare a file with what was rebuilt; the first line that differs is named."""
    lines = zip_longest(read_text(path).split("\n"), read_text(rebuilt).split("\n"))
    for number, (line, expected) in enumerate(lines, start=1):
        if line != expected:
            raise InputError(
                f"{path}, line {number} is not what {origin} gives: found {shown(line)}, expected {shown(expected)}."
            )
    return f"as {origin} gives it"


def _require_hash(path: Path, found: str, recorded: str, record: str) -> None:
    if found != recorded:
        raise InputError(f"{path} was cut off or changed: its hash is not the one that {record} holds.")


def _input(run: Run, name: str) -> str:
    if inputs_of(run)[name][0] != run.manifest.hashes[name]:
        raise InputError(f"the {name} is another one than when the run was made: its hash is not manifest.json's.")
    return "has the hash that manifest.json holds"


def _text(run: Run, file: str, place: Path) -> str:
    source, path = "instructions" if file in INSTRUCTIONS else file.split("/")[0], run.folder / file
    if not (place / file).exists() and source in SOURCES:
        write_source(run, source, place)
    if file in INSTRUCTIONS:
        _require_same(path, place / file, "its source")
    elif not path.exists():
        raise InputError(f"{path} was removed: remove the folder and start from scratch.")
    _require_hash(path, hash_file(path), run.manifest.files[file], "manifest.json")
    if file not in INSTRUCTIONS and not ((place / file).exists() and same_content(path, place / file)):
        raise InputError(f"{path} is not what its source gives.")
    return "as its source gives it"


def _ledger(run: Run, place: Path) -> str:
    path = run.folder / "ledger.json"
    recorded = read_json(path)
    expected = ledger_of(run, recorded["seed of the prompts counted here"])
    stages = text_stages(run.config.arms)
    late = [arm for arm in stages if get_arm(arm).written and f"{arm}: rows" not in recorded]  # not written by then
    expected = {name: value for name, value in expected.items() if name.split(":")[0] not in late}
    return _require_same(path, write_json(place / "ledger.json", expected), "the run's texts")


def _training(run: Run, arm: str, seed: int, place: Path) -> str:
    folder, data, done = run.arm_folder(arm, seed), run.training_data(arm, seed), run.done(arm, seed)
    expected = data.recipe.model_dump(exclude={*FREE, "lora"})
    expected |= {"seed": seed, "optimizer_steps": len(data.order), "passages": len(data.rows)}
    expected["start"] = (first := get_arm(arm).start) and run.model_hash(first, seed)
    recorded = done["train"] | done
    if changed := [key for key, value in expected.items() if recorded.get(key) != value]:
        raise InputError(f"{folder / 'done.json'}: {', '.join(changed)} is not that of the run: train it again.")
    _require_same(folder / "prompts.jsonl", write_jsonl(place / "prompts.jsonl", data.sampled), "sampling")
    if [row["passages"] for _, row in read_jsonl(folder / "log.jsonl")] != data.order:
        raise InputError(f"{folder / 'log.jsonl'} has not the steps that the seed's order gives.")
    _require_hash(folder / "log.jsonl", hash_file(folder / "log.jsonl"), done["log"], "done.json")
    _require_hash(folder / "model", model_hash(str(folder / "model")), done["model_hash"], "done.json")
    return f"{len(data.order)} steps of the run's recipe, in the seed's order; log and model have the recorded hashes"


def _evaluation(run: Run, arm: str, seed: int, place: Path) -> str:
    folder = run.eval_folder(arm, seed)
    results = read_checked(folder / "metrics.json")
    if results["held_out"]["key"] != held_out_key(run, arm, seed):
        raise InputError(
            f"{folder / 'metrics.json'}: the loss is of another model or other held-out text: evaluate again."
        )
    names = {path.stem for path in folder.glob("*.jsonl")} | set(results["benchmarks"])
    for name in sorted(names):
        _outcomes(run, arm, seed, folder / f"{name}.jsonl", results["benchmarks"].get(name), place)
    return (
        f"the loss is of this model; answers to the items of {', '.join(sorted(names))}, and the metrics that they give"
    )


def _outcomes(run: Run, arm: str, seed: int, path: Path, record: dict | None, place: Path) -> None:
    options, outcomes = run.config.evaluation, read_outcomes(path)
    if record is None:
        raise InputError(f"{path}: metrics.json knows no such benchmark: evaluate again, or remove the file.")
    sources = (source for source in (*options.benchmarks, *benchmark_names()) if benchmark_name(source) == path.stem)
    benchmark = run.benchmark(next(sources, record["source"]), record["revision"])
    if record["key"] != benchmark_key(run, arm, seed, benchmark):
        raise InputError(f"{path} is of another model, of other items or in another form than now: evaluate again.")
    if [outcome["id"] for outcome in outcomes] != [question.id for question in benchmark.questions]:
        raise InputError(f"{path} does not hold each of the benchmark's {len(benchmark.questions)} items once.")
    requests = requests_of(benchmark, options.replace(output_type=record["rule"]), run.tokenizer)
    rebuilt = map(_rebuild_outcome, outcomes, benchmark.questions, requests)
    _require_same(path, write_jsonl(place / path.name, map(dict, rebuilt)), "their own scores and the benchmark's item")
    _require_hash(path, hash_file(path), record["outcomes"], "metrics.json")
    for key, value in metrics(outcomes, benchmark).items():
        if _plain(record.get(key)) != _plain(value):
            raise InputError(
                f"{path}: {key} of {path.stem} is {record.get(key)!r} in metrics.json, but should be {value!r}."
            )


def _rebuild_outcome(outcome: Outcome, question: Question, request: tuple[str, list[str]]) -> Outcome:
    if outcome["written"] is not None:
        return outcome_of(question, *request, Generated(outcome["written"], outcome["truncated"]))
    scores = ChoiceScores(outcome["log_likelihoods"], outcome["tokens"], outcome["truncated"])
    return outcome_of(question, *request, scores)


def _plain(value: object) -> object:
    """Return a value as JSON gives it back, numbers to nine places: another version of a library may add otherwise."""
    return json.loads(json.dumps(value), parse_float=lambda number: float(f"{float(number):.9g}"))
