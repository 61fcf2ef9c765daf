"""A run, from corpus to metrics: computed once, extended by arms and seeds, refused where its inputs changed; the facade."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import yaml
from peft import PeftModel

import ctxft
from ctxft.config import PROFILES, ExperimentConfig, from_mapping, load_experiment, to_mapping
from ctxft.data import documents
from ctxft.data.rows import IGNORE_INDEX
from ctxft.evaluation.benchmarks.loading import read_declaration
from ctxft.evaluation.outcomes import read_outcomes
from ctxft.models import load_model, load_tokenizer, model_hash
from ctxft.options import print_left_out
from ctxft.run import prepare as preparation
from ctxft.run import run as run_module
from ctxft.run import tasks
from ctxft.run.run import Run
from ctxft.run.tasks import parse_task
from ctxft.storage import (
    PACKAGE_ROOT,
    InputError,
    RecordLog,
    hash_file,
    read_json,
    read_jsonl,
    with_checksum,
    write_json,
    write_jsonl,
    write_text,
)
from tests.runs import (
    evaluate_all,
    evaluate_task,
    evaluate_tasks,
    is_examined,
    load_benchmarks,
    prepare,
    read_passages,
    rows_of,
    train_all,
    train_task,
    train_tasks,
)


def files_of(folder) -> dict[str, int]:
    """Return when each file of a folder was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


NEG = "  - {id: no-1, family: context, text: Do not place it anywhere.}\n"


# --- config -----------------------------------------------------------------------------------------------------------


def test_the_default_profile_tells_what_a_corpus_of_ones_own_needs(tmp_path):
    (tmp_path / "own.txt").write_text("A text.")
    own = {"corpus.source": str(tmp_path / "own.txt")}
    with pytest.raises(
        InputError, match=r"for the practice world.*: set corpus.unreliable=0.0, and leave arm adaptive out"
    ):
        load_experiment("mini", own)
    config = load_experiment("mini", {**own, "corpus.unreliable": 0.0, "arms": ["base", "cpt", "cft"]})
    assert config.corpus.source == own["corpus.source"]


def test_profiles_and_overrides(tmp_path):
    config = load_experiment("mini", {"train.learning_rate": 1e-3, "seeds": [7], "name": "other"})
    assert (config.train.learning_rate, config.seeds, config.name) == (1e-3, [7], "other")
    with pytest.raises(InputError, match=r"unknown profile 'minni' \(did you mean 'mini'\?\)"):
        load_experiment("minni")
    with pytest.raises(InputError, match=r"mini\.yaml: unknown key 'train\.epoch'"):
        load_experiment("mini", {"train.epoch": 1})
    with pytest.raises(InputError, match="'name' is a single value"):
        load_experiment("mini", {"name.first": 1})
    path = write_text(tmp_path / "own.yaml", yaml.safe_dump(to_mapping(config)))
    assert load_experiment(path) == config


def test_every_profile_is_an_experiment_and_the_papers_has_the_authors_values():
    profiles = {path.stem: load_experiment(path.stem) for path in PROFILES.glob("*.yaml")}
    assert set(profiles) == {"mini", "small", "paper"} and all(name == c.name for name, c in profiles.items())
    train = profiles["paper"].train
    sizes = (train.max_length, train.num_train_epochs, train.train_batch_size, train.learning_rate)
    assert sizes == (4096, 1, 128, 2e-5)
    assert (train.adam_beta1, train.adam_beta2, train.adam_epsilon) == (0.9, 0.95, 1e-5)
    assert (train.weight_decay, train.max_grad_norm) == (0.1, 1.0)
    assert (train.lr_scheduler_type, train.warmup_steps, train.gradient_checkpointing) == ("cosine", 0.05, True)
    assert (train.lora.r, train.lora.lora_alpha, train.lora.lora_dropout) == (8, 32, 0.1)
    assert profiles["small"].train.method == "lora" and profiles["small"].general.source == "Salesforce/wikitext"


def test_what_changes_speed_only_may_change_in_a_run(experiment):
    prepare(experiment())
    prepare(experiment({"micro_batch_tokens": 512, "save_steps": 5, "gradient_checkpointing": True}))
    with pytest.raises(InputError, match=r"train\.train_batch_size was 4, is 2"):
        prepare(experiment({"train_batch_size": 2}))


def test_two_processes_prepare_one_run_one_after_the_other(experiment, monkeypatch):
    config, inside, most, written = experiment(), [], [], []
    write = preparation.write_source

    def slow(run, source, *more):
        inside.append(1)
        most.append(len(inside))
        written.append(source)
        time.sleep(0.5)
        inside.pop()
        return write(run, source, *more)

    monkeypatch.setattr(preparation, "write_source", slow)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(prepare, [config, experiment()]))
    assert folders == [config.folder] * 2 and most == [1]
    assert written == ["corpus"]  # the second found the first one's work
    assert [path.name for path in config.folder.parent.glob("[!.]*")] == [config.name]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "texts.txt", "Text.")
    config = from_mapping(ExperimentConfig, {"name": "x", "corpus": {"source": "texts.txt"}}, "here")
    assert config.corpus.source == str(tmp_path / "texts.txt") and config.model == "practice-blind"


# --- preparation ------------------------------------------------------------------------------------------------------


def test_the_ledger_and_the_terminal_account_for_every_file(experiment, corpus_file, capsys):
    for name, rows in (("a", 5), ("b", 3)):
        lines = corpus_file.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        write_text(corpus_file.parent / "texts" / f"{name}.jsonl", "".join(lines))
    write_text(corpus_file.parent / "texts" / "LICENSE", "MIT")
    write_text(corpus_file.parent / "texts" / "paper.pdf", "%PDF")
    run = Run(experiment(corpus={"source": str(corpus_file.parent / "texts")})).prepare()
    files = {"files read": 2, "files not read (.pdf)": 1, "files skipped (hidden or packaging)": 1}
    ledger = read_json(run.folder / "ledger.json")
    assert ledger | files | {"documents whose id was used twice": 3, "documents duplicate": 3} == ledger
    print_left_out(run)
    out = capsys.readouterr().out
    assert all(f"{name}: {number}" in out for name, number in files.items())
    assert out.splitlines()[1:] == [
        "held out: 0.0% of the tokens, where 10.0% was asked for (most documents are held out as a whole)"
    ]


def test_the_ledger_accounts_for_every_token(experiment, model_folders):
    config = experiment(arms=["base", "cpt", "cft", "neg", "control"])
    folder = prepare(config)
    ledger, kept, held = read_json(folder / "ledger.json"), read_passages(folder), read_passages(folder, "held_out")
    assert ledger["tokens unaccounted"] == 0
    assert ledger["tokens read"] == ledger["tokens kept"] + ledger["tokens held out"] + ledger["tokens duplicate"]
    assert ledger["tokens kept"] == sum(len(p.ids) for p in kept) and ledger["tokens held out"] == sum(
        len(p.ids) for p in held
    )
    assert ledger["passages"] == len(kept) and ledger["passages held out"] == len(held) > 0
    targets = {ledger[f"{arm}: target tokens"] for arm in ("cpt", "cft", "neg", "control")}
    assert targets == {ledger["tokens kept"] + ledger["documents kept"]}  # every token, and an EOS a document
    assert ledger["cpt: prompt tokens"] == 0 < ledger["cft: prompt tokens"] == ledger["control: prompt tokens"]
    tokenizer = load_tokenizer(str(model_folders["byte"]))
    for arm in ("cpt", "cft", "neg", "control"):
        rows, drawn = rows_of(config, arm, 0, kept, tokenizer)
        assert [row["passage"] for row in drawn] == ([] if arm == "cpt" else [passage.id for passage in kept])
        learned = [[i for i in row["labels"] if i != IGNORE_INDEX] for row in rows]
        assert learned == [p.ids.tolist() + [2] * p.last for p in kept]


def test_a_manifest_says_what_was_run_with_what(experiment, model_folders):
    config = experiment()
    folder = prepare(config)
    manifest = read_json(folder / "manifest.json")
    assert manifest["name"] == "tiny" and manifest["config"] == json.loads(json.dumps(to_mapping(config)))
    assert manifest["hashes"]["model"] == model_hash(str(model_folders["byte"]))
    assert set(manifest["hashes"]) == {"model", "corpus", "prompts"}
    names = [f"corpus/{name}-00000.arrow" for name in ("documents", "passages", "text")] + ["corpus/parts.json"]
    assert manifest["files"] == {name: hash_file(folder / name) for name in names}
    assert manifest["versions"]["torch"] and manifest["code"] and manifest["commits"]["model"] is None


def test_the_commit_of_a_hub_corpus_is_recorded_and_read(experiment, monkeypatch):
    asked = []

    def load(name, subset, split, revision):
        asked.append(revision)
        return [{"text": f"News about {n}. It is long enough."} for n in range(5)]

    monkeypatch.setattr(documents, "resolve_revision", lambda name, kind, revision, put: revision or "c0ffee")
    monkeypatch.setattr("datasets.load_dataset", load)
    manifest = read_json(prepare(experiment(corpus={"source": "org/news"})) / "manifest.json")
    assert manifest["commits"]["corpus"] == "c0ffee" and asked == ["c0ffee"] * 2  # looked through, then cut


def test_a_benchmark_is_loaded_at_the_revision_that_is_asked_for(experiment, monkeypatch):
    asked = {}
    monkeypatch.setattr(run_module, "load_benchmark", lambda name, revision, **_options: asked.update({name: revision}))
    benchmarks = ["medqa", "mmlu-anatomy", "practice-mmlu"]
    load_benchmarks(experiment(evaluation={"benchmarks": benchmarks, "revisions": ["mmlu-anatomy@refs/pr/1"]}))
    assert asked == {"medqa": None, "mmlu-anatomy": "refs/pr/1", "practice-mmlu": None}


def test_a_prepared_run_is_not_prepared_again(experiment, monkeypatch):
    folder = prepare(experiment())
    before = files_of(folder)
    monkeypatch.setattr(preparation, "cut_corpus", lambda *_: pytest.fail("cut again"))
    prepare(experiment())
    assert files_of(folder) == before


def test_added_arms_and_seeds_extend_manifest_and_ledger(experiment):
    folder = prepare(experiment())
    ledger = read_json(folder / "ledger.json")
    prepare(experiment(arms=["neg"], seeds=[2]))
    manifest = read_json(folder / "manifest.json")["config"]
    assert manifest["arms"] == ["base", "cpt", "cft", "neg"] and manifest["seeds"] == [0, 2]
    added = read_json(folder / "ledger.json")
    assert {name: added[name] for name in ledger} == ledger
    assert added.keys() - ledger.keys() == {
        f"neg: {what}" for what in ("rows", "tokens read", "prompt tokens", "target tokens")
    }


def test_another_config_in_the_same_folder_is_refused_with_what_changed(
    experiment, corpus_file, tmp_path, model_folders
):
    folder = prepare(experiment())
    before = files_of(folder)
    for values, said in (
        ({"train": {"learning_rate": 0.5}}, r"train.learning_rate was 0.0005, is 0.5"),
        ({"corpus": {"source": str(corpus_file), "held_out": 0.2}}, "corpus.held_out was 0.3, is 0.2"),
        ({"model": str(model_folders["metaspace"])}, "the model changed"),
    ):
        with pytest.raises(
            InputError, match=f"{re.escape(str(folder))} holds another run .*{said}.*choose another name"
        ):
            prepare(experiment(**values))
    corpus_file.write_text(corpus_file.read_text() + '{"id": "new", "text": "One more."}\n')
    with pytest.raises(InputError, match=r"holds another run \(the corpus changed\)"):
        prepare(experiment())
    assert files_of(folder) == before


def test_a_model_that_changed_on_disk_is_noticed_but_not_its_card_or_place(experiment, model_folders, tmp_path):
    copy = shutil.copytree(model_folders["byte"], tmp_path / "model")
    prepare(experiment(model=str(copy)))
    (copy / "README.md").write_text("A card.")
    prepare(experiment(model=str(shutil.copytree(copy, tmp_path / "moved"))))
    config = read_json(copy / "config.json")
    write_json(copy / "config.json", config | {"rms_norm_eps": 1e-3})
    with pytest.raises(InputError, match=r"holds another run \(the model changed\)"):
        prepare(experiment(model=str(copy)))


def test_a_hub_revision_stays_the_one_that_the_run_recorded(experiment, monkeypatch):
    commits = {None: "c0ffee", "c0ffee": "c0ffee"}
    rows = [{"text": f"Text number {n} has one sentence. And another one."} for n in range(6)]
    monkeypatch.setattr(documents, "resolve_revision", lambda name, kind, revision, put: commits[revision])
    monkeypatch.setattr("datasets.load_dataset", lambda name, subset, split, revision: rows)
    config = experiment(corpus={"source": "org/set", "held_out": 0.3})
    prepare(config)
    commits[None] = "beef"  # the hub moves on
    prepare(config)
    commits[None] = None  # the hub is out of reach, and its cache has the recorded commit
    prepare(config)


def test_examining_with_another_model_than_the_run_has_is_refused(experiment, model_folders):
    prepare(experiment())
    with pytest.raises(InputError, match="the model changed"):
        evaluate_task(experiment(model=str(model_folders["metaspace"])), "base", 0)


def test_a_killed_examination_leaves_no_metrics_of_other_outcomes(experiment, monkeypatch):
    config = experiment()
    prepare(config)
    first = evaluate_task(config, "base", 0)
    lettered = experiment(evaluation={**to_mapping(config)["evaluation"], "form": "mcf"})
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "metrics", lambda *_: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            evaluate_task(lettered, "base", 0)
    assert not is_examined(config, "base", 0, load_benchmarks(config))
    again = evaluate_task(config, "base", 0)
    outcomes = read_outcomes(config.folder / "evals" / "base" / "seed-0" / "own-questions.jsonl")
    name = "own-questions"
    assert again == first and again["benchmarks"][name]["accuracy"] == sum(o["correct"] for o in outcomes) / len(
        outcomes
    )


def test_a_killed_examination_goes_on_within_a_benchmark(experiment, monkeypatch):
    config = experiment(evaluation={**to_mapping(experiment())["evaluation"], "max_batch_tokens": 1})
    prepare(config)
    first = evaluate_task(config, "base", 0)
    folder = config.folder / "evals" / "base" / "seed-0"
    expected = read_outcomes(folder / "own-questions.jsonl")
    shutil.rmtree(folder)
    add, made = RecordLog.add, []

    def killed_after_two(self, key, outcome):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(key)
        add(self, key, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(RecordLog, "add", killed_after_two)
        with pytest.raises(KeyboardInterrupt):
            evaluate_task(config, "base", 0)
    assert (folder / "own-questions.partial").exists() and not (folder / "own-questions.jsonl").exists()
    monkeypatch.setattr(RecordLog, "add", lambda self, key, outcome: (made.append(key), add(self, key, outcome)))
    assert evaluate_task(config, "base", 0) == first
    assert sorted(made) == sorted(o["id"] for o in expected)  # each question was scored once, before or after
    again = read_outcomes(folder / "own-questions.jsonl")
    assert [(o["id"], o["prediction"]) for o in again] == [(o["id"], o["prediction"]) for o in expected]
    assert not (folder / "own-questions.partial").exists()


def test_a_model_that_was_changed_after_training_is_not_examined(experiment):
    config = experiment(arms=["cpt"])
    folder = prepare(config)
    train_task(config, "cpt", 0)
    weights = folder / "arms" / "cpt" / "seed-0" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="was changed after training"):
        evaluate_task(config, "cpt", 0)


def test_what_a_killed_preparation_left_is_written_anew(experiment):
    folder = prepare(experiment())
    path = folder / "corpus" / "passages-00000.arrow"
    expected = path.read_bytes()
    (folder / "manifest.json").unlink()
    path.write_text("half")
    (folder / ".manifest.json.x.part").write_text("{")
    prepare(experiment())
    assert path.read_bytes() == expected and (folder / "manifest.json").exists()


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_the_tasks_of_an_experiment(experiment):
    config = experiment(seeds=[0, 3])
    assert train_tasks(config) == [("cpt", 0), ("cpt", 3), ("cft", 0), ("cft", 3)]
    assert evaluate_tasks(config) == [("base", 0), *train_tasks(config)]
    assert parse_task("cft:3", train_tasks(config)) == ("cft", 3)
    with pytest.raises(InputError, match=r"unknown task 'cft:1' .*known: cpt:0, cpt:3, cft:0, cft:3"):
        parse_task("cft:1", train_tasks(config))


def test_train_and_evaluate_once_and_only_what_is_due(experiment, questions_file, tmp_path):
    config = experiment()
    folder = prepare(config)
    done = train_task(config, "cft", 0)
    place = folder / "arms" / "cft" / "seed-0"
    assert {path.name for path in place.iterdir()} == {
        "config.yaml",
        "prompts.jsonl",
        "log.jsonl",
        "model",
        "done.json",
    }
    assert {"tokenizer.json", "model.safetensors"} <= {path.name for path in (place / "model").iterdir()}
    assert load_experiment(place / "config.yaml") == config
    read = {index for _, row in read_jsonl(place / "log.jsonl") for index in row["passages"]}
    ids = [passage.id for number, passage in enumerate(read_passages(folder)) if number in read]
    assert [row["passage"] for _, row in read_jsonl(place / "prompts.jsonl")] == ids
    scores = {arm: evaluate_task(config, arm, 0) for arm in ("base", "cft")}
    outcomes = read_outcomes(folder / "evals" / "cft" / "seed-0" / "own-questions.jsonl")
    assert len(outcomes) == 6 and scores["cft"]["benchmarks"]["own-questions"]["n"] == 6
    held = read_passages(folder, "held_out")
    assert scores["cft"]["held_out"]["tokens"] == sum(p.targets for p in held)
    assert scores["cft"]["held_out"]["loss"] < scores["base"]["held_out"]["loss"]
    held_out, base = scores["cft"]["held_out"], scores["base"]["held_out"]
    assert held_out["prompted_loss"] != held_out["loss"] and held_out["prompted_loss"] < base["prompted_loss"]
    assert is_examined(config, "cft", 0, load_benchmarks(config))

    before = files_of(folder)
    assert train_task(config, "cft", 0) == done and evaluate_task(config, "cft", 0) == scores["cft"]
    assert files_of(folder) == before
    # other questions: only they are asked again
    write_jsonl(questions_file, [{**row, "question": row["question"] + "!"} for _, row in read_jsonl(questions_file)])
    assert not is_examined(config, "cft", 0, load_benchmarks(config))
    again = evaluate_task(config, "cft", 0)
    assert again["held_out"] == scores["cft"]["held_out"] and again["benchmarks"] != scores["cft"]["benchmarks"]
    assert train_task(config, "cft", 0) == done


def test_the_adaptive_arm_reads_what_the_label_says_and_needs_one(experiment, corpus_file):
    config = experiment(arms=["cpt", "cft", "neg", "adaptive"])
    with pytest.raises(InputError, match=r"arm adaptive .* '.*' has none: give every document"):
        prepare(config)
    assert not config.folder.exists()
    rows = [{**row, "reliable": number % 2 == 0} for number, row in read_jsonl(corpus_file)]
    write_jsonl(corpus_file, rows)
    passages = read_passages(prepare(config))
    assert {passage.reliable for passage in passages} == {True, False}
    tokenizer = load_tokenizer(config.model)
    drawn = {arm: rows_of(config, arm, 0, passages, tokenizer)[1] for arm in ("cft", "neg", "adaptive")}
    for number, passage in enumerate(passages):
        assert drawn["adaptive"][number] == drawn["cft" if passage.reliable else "neg"][number]


PARTS = ["only-critical", "without-critical", "count-2", "control-shuffled", "control-neutral", "control-family"]


def test_arms_that_take_a_prompt_apart_share_passages_steps_and_targets_with_the_others(experiment):
    config = experiment(
        arms=["cpt", "cft", *PARTS, "cft-learned", "reading"], train={"max_steps": 2, "train_batch_size": 4}
    )
    folder = train_all(config, 1)
    rows = {arm: dict(read_json(folder / "arms" / arm / "seed-0" / "done.json")) for arm in config.arms}
    logs = {arm: [row for _, row in read_jsonl(folder / "arms" / arm / "seed-0" / "log.jsonl")] for arm in config.arms}
    tokenizer, passages = load_tokenizer(config.model), read_passages(folder)
    for arm in config.arms:
        assert [step["passages"] for step in logs[arm]] == [step["passages"] for step in logs["cpt"]]
        read, _ = rows_of(config, arm, 0, passages, tokenizer)
        for number, (row, passage) in enumerate(zip(read, passages, strict=True)):
            prompt, after = (part[number] if len(part) else () for part in (read.prompts, read.after))
            end = [tokenizer.eos_token_id] * passage.last
            learned = [*(prompt if arm == "cft-learned" else ()), *passage.ids, *after, *end]
            assert [label for label in row["labels"] if label != IGNORE_INDEX] == learned
            assert row["input_ids"][1:] == [*prompt, *passage.ids, *after, *end]
            assert bool(len(prompt)) == (arm not in ("cpt", "reading")) and (arm == "reading" or not len(after))
        if arm not in ("cft-learned", "reading"):
            assert [step["target_tokens"] for step in logs[arm]] == [step["target_tokens"] for step in logs["cpt"]]
            assert rows[arm]["target_tokens"] == rows["cpt"]["target_tokens"]
    assert all(rows[arm]["target_tokens"] > rows["cpt"]["target_tokens"] for arm in ("cft-learned", "reading"))
    drawn = {
        arm: {r["passage"]: r for _, r in read_jsonl(folder / "arms" / arm / "seed-0" / "prompts.jsonl")}
        for arm in config.arms
    }
    assert {row["family"] for row in drawn["only-critical"].values()} == {"critical"}
    assert "critical" not in {row["family"] for row in drawn["without-critical"].values()}
    ledger = read_json(folder / "ledger.json")
    asked = list(run_module.Run(config).rows("reading", 0)[1].records())
    assert drawn["reading"].items() <= {row["passage"]: row for row in asked}.items()
    assert sum(row["exercises"] for row in asked) == ledger["reading: exercises"] > 0
    assert sum(row["dropped"] for row in asked) == ledger["reading: exercises that the window had no room for"]
    assert ledger["control-shuffled: prompts of another length than cft's"] == 0
    assert ledger["control-neutral: prompts of another length than cft's"] > 0
    run = run_module.Run(config)
    neutral, cft = (sum(row["tokens"] for row in run.rows(arm, 0)[1].records()) for arm in ("control-neutral", "cft"))
    off = neutral - cft
    assert ledger["control-neutral: prompt tokens more than cft's"] == off


def test_families_that_no_book_has_are_refused_before_anything_is_written(experiment, runs):
    with pytest.raises(InputError, match=r"unknown family in arm 'only-critcal' .*did you mean 'critical'"):
        prepare(experiment(arms=["cpt", "only-critcal"]))
    assert not runs.exists()


@pytest.mark.parametrize("books", [{"strategies": "negative"}, {"negative": "neutral"}])
def test_books_of_another_kind_are_refused(experiment, runs, books):
    (place, name), *_ = books.items()
    with pytest.raises(InputError, match=rf"prompts\.{place}: the prompt set '{name}' is of kind '{name}', but "):
        prepare(experiment(prompts=books))
    assert not runs.exists()


def test_books_that_stand_before_a_text_in_different_ways_are_refused(experiment, tmp_path, runs):
    book = write_text(
        tmp_path / "b.yaml", 'name: b\nkind: negative\nextends: negative\nseparator: "\\n"\nprompts:\n' + NEG
    )
    with pytest.raises(
        InputError, match=r"'strategies' and 'b' have different values of separator .* give both the same"
    ):
        prepare(experiment(prompts={"negative": str(book)}))
    assert not runs.exists()


def test_a_lora_run_is_trained_and_examined(experiment):
    config = experiment(train={"method": "lora", "learning_rate": 0.05})
    folder = prepare(config)
    train_task(config, "cpt", 0)
    scores = {arm: evaluate_task(config, arm, 0)["held_out"] for arm in ("base", "cpt")}
    assert isinstance(load_model(str(folder / "arms" / "cpt" / "seed-0" / "model")), PeftModel)
    assert (
        scores["cpt"]["tokens"] == scores["base"]["tokens"]
        and abs(scores["cpt"]["loss"] - scores["base"]["loss"]) > 1e-4
    )


def test_nothing_is_held_out_where_nothing_was_asked_to_be(experiment, corpus_file):
    config = experiment(corpus={"source": str(corpus_file), "held_out": 0.0})
    prepare(config)
    assert evaluate_task(config, "base", 0)["held_out"]["loss"] is None


def test_passages_that_were_edited_are_not_trained_on(experiment):
    config = experiment()
    path = prepare(config) / "corpus" / "passages-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{re.escape(str(path))} was changed after it was made"):
        train_task(config, "cpt", 0)


def test_tasks_need_what_comes_before_them(experiment, runs):
    config = experiment()
    for call, said in (
        (lambda: train_task(config, "cpt", 0), "is not a run yet"),
        (lambda: evaluate_task(config, "base", 0), "is not a run yet: run `ctxft train` first"),
        (lambda: evaluate_all(config), "arm 'cpt', seed 0 of .* is not trained yet: run `ctxft train` first"),
        (lambda: train_all(config, workers=0), "workers must be at least 1 process, found 0"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    assert not runs.exists()
    prepare(config)
    with pytest.raises(InputError, match=r"arm 'cpt', seed 0 of .* is not trained yet"):
        evaluate_task(config, "cpt", 0)


def test_a_run_sees_what_another_process_prepared(experiment):
    run = ctxft.Run(experiment())
    with pytest.raises(InputError, match="is not a run yet: run `ctxft train` first"):
        run.is_evaluated("base")
    prepare(run.wanted)
    assert not run.is_evaluated("base")


def test_another_wording_is_evaluated_again(experiment, tmp_path):
    path = tmp_path / "worded.yaml"
    row = {"question": "Which?", "choices": ["x", "y"], "answer": 0}
    write_jsonl(tmp_path / "items.jsonl", [row])
    text = {"question": "{{ question }}", "choices": "{{ choices }}", "answer": "{{ answer }}"}
    source = {"pattern": "items[.]jsonl$"}
    hashes = []
    for task in ("Choose", "Decide"):
        wording = {"task": task, "description": {"cloze": "{{ task }}.\n\n"}}
        path.write_text(yaml.safe_dump({**text, "sources": [source], "wording": wording}))
        read_declaration.cache_clear()
        config = experiment(arms=["base"], evaluation={"benchmarks": [str(path)]})
        prepare(config)
        evaluate_task(config, "base", 0)
        found = read_outcomes(config.folder / "evals" / "base" / "seed-0" / "worded.jsonl")
        hashes.append(found[0]["prompt_hash"])
    assert hashes[0] != hashes[1]


# --- the facade -------------------------------------------------------------------------------------------------------


def test_from_the_package_to_a_table(experiment):
    run = ctxft.Run(experiment(), arms=["base", "cpt", "cft"], seeds=[0])
    assert run.train(workers=1) is run
    run.evaluate(workers=1)
    table = ctxft.results_table(run)
    assert list(table["arm"])[:3] == ["base", "cpt", "cft"]
    again = ctxft.Run(run.folder)
    assert list(again.passages) == list(run.passages) and again.is_trained("cft") and again.is_evaluated("cft")
    assert ctxft.Run("tiny", seeds=[0, 1]).train_tasks == [("cpt", 0), ("cpt", 1), ("cft", 0), ("cft", 1)]
    assert len(again.outcomes("own-questions", "cft")) == 6


def test_a_name_that_leads_nowhere_names_what_there_is(runs):
    with pytest.raises(
        InputError, match=r"unknown profile 'minni' \(did you mean 'mini'\?\); known: mini, .*, or a run"
    ):
        ctxft.Run("minni")
    with pytest.raises(InputError, match="unknown arm 'ctf'"):
        ctxft.Run("mini", arms=["ctf"])


def test_settings_replace_single_values_of_any_source(experiment):
    config = experiment()
    run = ctxft.Run(config, overrides={"evaluation.limit": 2, "general.source": "practice-old"})
    assert run.config.evaluation.limit == 2 and run.config.general.source == "practice-old"
    assert len(run.benchmarks[0].questions) == 2
    assert config.evaluation.limit is None and config.general is None, "the config stays as it is"


def test_a_run_folder_of_another_version_is_refused(experiment):
    path = prepare(experiment()) / "manifest.json"
    write_json(path, with_checksum(read_json(path) | {"layout": 1}))
    with pytest.raises(InputError, match=r"was made by another version of ctxft, .*: choose another name for the run"):
        prepare(experiment())


def test_an_experiment_may_be_a_mapping(runs):
    values = {"name": "own", "model": "practice-blind", "arms": ["cpt", "cft"], "train": {"max_length": 96}}
    run = ctxft.Run(values, overrides={"train.max_length": 64, "evaluation.benchmarks": ["practice-old"]})
    assert run.config.train.max_length == 64 and [one.name for one in run.benchmarks] == ["practice-old"]
    assert values["train"] == {"max_length": 96}, "the mapping stays as it is"
    with pytest.raises(InputError, match=r"unknown key 'train\.max_lenght' \(did you mean 'max_length'\?\)"):
        ctxft.Run({**values, "train": {"max_lenght": 96}})


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, ctxft; print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert set(ctxft.__all__) <= set(dir(ctxft)) and all(getattr(ctxft, name) for name in ctxft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ctxft.nothing  # noqa: B018


def test_two_commands_at_once_keep_their_own_settings(experiment, tmp_path):
    """Each worker gets the config of its own command, also where another one works in the same run folder."""
    run = ctxft.Run(experiment(arms=["base", "cpt"])).prepare()
    limits = {"4": "tiny-4", "6": "tiny-6"}
    path = write_text(tmp_path / "tiny.yaml", yaml.safe_dump(to_mapping(run.wanted)))
    command = [sys.executable, "-m", "ctxft"]
    train = [*command, "train", str(path), "--workers", "1"]
    evaluate = [[*command, "evaluate", str(path), "--task", "base:0", "--set", f"evaluation.limit={n}"] for n in limits]
    assert [process.wait() for process in map(subprocess.Popen, [train, evaluate[0]])] == [0, 0]
    assert ctxft.Run(path).is_trained("cpt")

    def size(arm: str) -> int:
        return len(run.outcomes("own-questions", arm))

    four, six = (ctxft.Run(path, overrides={"evaluation.limit": n}) for n in (4, 6))
    with ThreadPoolExecutor(2) as pool:  # base by one command, cpt by the other
        done = [
            pool.submit(ctxft.Run(one.wanted, arms=[arm]).evaluate, 1) for one, arm in ((four, "base"), (six, "cpt"))
        ]
        assert all(future.result() for future in done)
    assert (size("base"), size("cpt")) == (4, 6)


def test_inputs_are_read_once_and_rows_are_built_once(experiment, questions_file, tmp_path):
    """Three trainings and four evaluations in one process: each prompt set, benchmark and passage file is read once."""
    sets = [
        shutil.copy(PACKAGE_ROOT / "prompts" / "sets" / f"{name}.yaml", tmp_path) for name in ("strategies", "negative")
    ]
    config = experiment(
        arms=["base", "cpt", "cft", "control"], prompts={"strategies": str(sets[0]), "negative": str(sets[1])}
    )
    opened: Counter = Counter()
    sys.addaudithook(lambda event, details: event == "open" and opened.update([str(details[0])]))
    with mock.patch.object(run_module, "build_rows", wraps=run_module.build_rows) as build:
        run = ctxft.Run(config).prepare()
        for task in run.train_tasks:
            run.train_task(*task)
        for task in run.evaluate_tasks:
            run.evaluate_task(*task)
    read = {str(path): opened[str(path)] for path in (*sets, questions_file)}
    assert set(read.values()) == {1}, read
    arms = Counter((call.args[1], len(call.args[3])) for call in build.call_args_list)
    assert set(arms.values()) == {1} and len(arms) == 3 + 2, arms  # rows of three arms, and held-out text in two ways
