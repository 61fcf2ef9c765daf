"""Every widget shows what the library holds, follows its controls without a front end, and escapes what it shows."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import json
import sys
import time

import pytest

from ctxft.evaluation.benchmarks import Question
from ctxft.report import loss_figure, read_run, results_table
from ctxft.run.run import Run
from ctxft.storage import FailedError, InputError, write_jsonl, write_text
from ctxft.widgets import (
    PAGE,
    CorpusBrowser,
    PromptExplorer,
    QuestionBrowser,
    ResultsExplorer,
    RowPart,
    RowViewer,
    TrainingMonitor,
    answers_of,
    count_parts,
    disagreements,
    pieces_of,
    plain_text,
    read_log,
    show_item,
)
from tests.test_report import fake_run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & more of it."


def tags_in(shown: str) -> list[str]:
    """Return the tags of HTML that a text must not bring in."""
    return [tag for tag in ("<script", "<img", "onerror=alert(2)>") if tag in shown]


# --- questions --------------------------------------------------------------------------------------------------------

QUESTIONS = [
    Question(f"q{i}", f"Is {i} < 2?", ("yes", "perhaps", "no"), 0 if i < 2 else 2, "numbers") for i in range(4)
]
CHOSEN = {"base": [1, 1, 1, 1], "cpt": [0, 0, 1, 2], "cft": [0, 1, 1, 2]}  # by question


def outcome(question: Question, prediction: int) -> dict:
    values = [-3.25, -2.5, -4.0]
    values[prediction] = -0.5
    right = prediction == question.answer
    same = {"id": question.id, "hash": question.hash, "answer": question.answer, "log_likelihoods": values}
    return {**same, "prediction": prediction, "correct": right}


def arms() -> dict:
    """Return the outcomes of seeds 1 and 2; in the second cft answers as cpt does."""
    rows = {arm: [outcome(q, p) for q, p in zip(QUESTIONS, chosen, strict=True)] for arm, chosen in CHOSEN.items()}
    return {
        "base": {0: rows["base"]},
        "cpt": dict.fromkeys((1, 2), rows["cpt"]),
        "cft": {1: rows["cft"], 2: rows["cpt"]},
    }


def test_one_item_is_shown_with_what_each_arm_answered():
    lines = show_item(QUESTIONS[1], answers_of(arms(), 1)["q1"]).text.splitlines()
    assert lines[:2] == ["[q1] numbers", "Is 1 < 2?"]
    assert lines[2].split() == ["nats", "base", "cpt", "cft"]
    assert lines[3].split() == [">", "yes", "-3.25", "-0.50*", "-3.25"]
    assert lines[4].split() == ["perhaps", "-0.50*", "-2.50", "-0.50*"]
    assert lines[-1] == "The arms disagree. base, cft: perhaps; cpt: yes. Right: yes."
    assert show_item(QUESTIONS[2], answers_of(arms(), 1)["q2"]).text.endswith(
        "All arms answer perhaps, which is wrong."
    )


def test_generated_answers_are_below_the_choices():
    answers = answers_of(arms(), 1)["q1"]
    answers = {arm: row | {"log_likelihoods": []} for arm, row in answers.items()}
    answers["base"] |= {"prediction": None, "written": "yes or <b>no"}
    answers["cpt"] |= {"written": "Yes."}
    lines = show_item(QUESTIONS[1], answers).text.splitlines()
    assert [lines[3].split(), lines[4].split()] == [[">", "yes", "*"], ["perhaps", "*"]]
    assert lines[6:] == [
        "base wrote: yes or <b>no",
        "cpt wrote: Yes.",
        "The arms disagree. base: no answer; cpt: yes; cft: perhaps. Right: yes.",
    ]
    assert disagreements({"q1": answers}) == ["q1"]


def test_disagreements_are_of_the_trained_arms():
    assert disagreements(answers_of(arms(), 1)) == ["q1"] and disagreements(answers_of(arms(), 2)) == []


def test_other_questions_and_seeds_are_refused():
    with pytest.raises(InputError, match="arm base: the outcome 'q1' is not of question 'q0'"):
        show_item(QUESTIONS[0], answers_of(arms(), 1)["q1"])
    with pytest.raises(InputError, match="unknown seed of arm cpt: '7'"):
        answers_of(arms(), 7)
    with pytest.raises(InputError, match="at least one seed"):
        QuestionBrowser(QUESTIONS, arms(), [])


def test_the_question_browser_follows_its_controls():
    browser = QuestionBrowser(QUESTIONS, arms(), [1, 2])
    assert browser._repr_mimebundle_()["text/html"] == browser.view.value  # what a page without a kernel shows
    assert browser.text.startswith("1 of 4\n[q0]")
    browser.number.value = 3
    assert "[q2]" in browser.text and browser.view.value == browser.html
    browser.filter.value = "arms disagree"
    assert browser.text.startswith("1 of 1\n[q1]") and "Is 1 &lt; 2?" in browser.view.value
    browser.seed.value = 2
    assert browser.text == "No such question." and "No such question." in browser.view.value
    browser.filter.value = "all trained arms wrong"
    assert [question.id for question in browser.chosen] == ["q2"]


# --- prompts and rows -------------------------------------------------------------------------------------------------


@pytest.fixture
def run_of(experiment, tmp_path, text_of):
    """The function that makes a run whose corpus has two documents, the second hostile; keys replace those of the config."""
    texts = {"good": text_of(3, 12), "bad <b>": f"{HOSTILE} {text_of(4, 3)}"}
    rows = [{"id": name, "text": text, "reliable": name == "good"} for name, text in texts.items()]
    corpus = {"source": str(write_jsonl(tmp_path / "two.jsonl", rows)), "held_out": 0.0}
    return lambda train=None, **values: Run(experiment(train, corpus=corpus, **values))


@pytest.fixture
def explorer(run_of) -> PromptExplorer:
    return PromptExplorer(run_of(), seed=1)


def counts(explorer: PromptExplorer) -> dict:
    return count_parts(explorer.row[1])


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_pieces_of_tokens_join_to_the_text(kind, tokenizers, text_of):
    tokenizer, text = tokenizers[kind], text_of(5, 6)
    assert "".join(pieces_of(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer)) == text
    letters = pieces_of(tokenizer("é€", add_special_tokens=False)["input_ids"], tokenizer)
    assert len(letters) > 2 and "\ufffd" not in "".join(letters)


def test_a_row_is_taken_apart_and_shows_without_color_what_is_learned(explorer):
    explorer.number.value = len(explorer.passages)  # the end of a document
    prompt, parts = explorer.row
    names = [(part.name, part.learned) for part in parts]
    assert names == [("start", False), ("prompt", False), ("text", True), ("end", True)]
    size, text = len(parts[1].tokens), len(explorer.passage.ids)
    assert counts(explorer) == {"read": size + text + 2, "learned": text + 1, "prompt": size}
    assert f"the prompt takes {size}, {size / (size + text + 2):.0%} of what is read." in explorer.text
    lines = explorer.text.splitlines()
    assert f"prompt: {size} tokens, read" in lines and f"text: {text} tokens, learned" in lines
    assert prompt["text"].replace(" ", "·") in lines[lines.index(f"prompt: {size} tokens, read") + 1].replace("|", "")
    assert '<div class="tokens read">' in explorer.html and '<div class="tokens learned">' in explorer.html
    assert "6px dotted" in explorer.html and "6px solid" in explorer.html
    explorer.arm.value = "cpt"
    assert [part.name for part in explorer.row[1]] == [
        "start",
        "text",
        "end",
    ] and "there is no prompt." in explorer.text


def test_a_typed_prompt_is_checked(run_of):
    explorer = PromptExplorer(run_of({"max_length": 300, "min_text_tokens": 16}))

    def check(text: str) -> str:
        explorer.own.value = text
        shown = 'role="alert"' in explorer.view.value and "tokens are read" not in explorer.text
        assert shown == bool(explorer.problems)
        return " ".join(explorer.problems)

    assert check("") == check("Ask why.") == ""
    assert check(" \n ") == "your prompt: text: is empty: write it."
    assert check("\ud800").startswith("your prompt: text: holds a lone surrogate")
    assert "a prompt has 121 words, at most 120 are read" in check("a " * 121)
    assert "of 300 tokens and leaves " in check("zqj " * 100) and "train.min_text_tokens is 16" in explorer.problems[0]
    assert "With this prompt the passage takes" in check("zqj " * 50)


def test_the_prompt_explorer_follows_its_controls(explorer):
    first, last = explorer.passages[0], explorer.passages[-1]
    assert explorer.arm.value == "cft" and explorer.family.disabled
    assert explorer.text.startswith(f"cft, passage {first.id} (1 of {len(explorer.passages)})\nPrompt ")
    explorer.arm.value = "only-FAMILY"
    assert not explorer.family.disabled and explorer.row[0]["family"] == explorer.family.options[0]
    explorer.family.value = "critical"
    assert explorer.text.startswith("only-critical,") and explorer.row[0]["family"] == "critical"
    assert "The idea: Critical reading" in explorer.text
    explorer.arm.value = "without-FAMILY"
    assert explorer.row[0]["family"] != "critical"
    explorer.arm.value = "cpt"
    assert explorer.row[0] is None and "No prompt." in explorer.text
    explorer.arm.value = "cft-learned"
    assert counts(explorer)["learned"] == counts(explorer)["read"] - 1
    explorer.arm.value = "neg"
    explorer.number.value = len(explorer.passages)
    assert "The idea" not in explorer.text and explorer.passage == last
    assert html.escape(explorer.row[0]["text"]) in explorer.view.value


def test_the_prompt_explorer_shows_what_training_reads(run_of):
    run = run_of(arms=["cpt", "count-2"])
    explorer = PromptExplorer(run, seed=1)
    shown = [arm for arm in explorer.arm.options if "FAMILY" not in arm]
    assert {"adaptive", "reading", "control-shuffled", "control-adaptive", "count-2"} <= set(shown)
    for arm in set(shown) - {"control-adaptive"}:  # which needs a model that writes prompts
        rows, _ = run.rows(arm, 1)
        explorer.arm.value = arm
        for number in (1, len(run.passages)):
            explorer.number.value = number
            row = rows[number - 1]
            learned = sum(label != -100 for label in row["labels"])
            assert (counts(explorer)["read"], counts(explorer)["learned"]) == (len(row["input_ids"]), learned), arm


def test_a_typed_prompt_replaces_the_sampled_one(explorer):
    explorer.own.value = "Think of <b>why</b>.\nThen read."
    assert (
        explorer.row[0]["text"] == explorer.own.value and explorer.problems == [] and "tokens are read" in explorer.text
    )
    assert "<b>why" not in explorer.view.value and "&lt;b&gt;why" in explorer.view.value
    explorer.own.value = ""
    assert explorer.row[0]["prompt"] != "your own" and 'role="alert"' not in explorer.view.value


def test_hostile_passages_are_escaped(explorer):
    places = [n for n, passage in enumerate(explorer.passages, start=1) if passage.document != "good"]
    explorer.number.value = places[0]
    assert explorer.passage.text.startswith("<script>")
    assert tags_in(explorer.view.value) == [] and "bad &lt;b&gt;" in explorer.view.value
    explorer.own.value = HOSTILE
    assert tags_in(explorer.view.value) == [] and "&lt;script&gt;" in explorer.view.value


def test_what_cannot_be_shown_is_reported(experiment, tmp_path):
    entry = "{id: w, family: context, text: Think}"
    prompts = write_text(tmp_path / "one.yaml", f"name: one\nkind: strategy\nprompts:\n  - {entry}\n")
    explorer = PromptExplorer(experiment(prompts={"strategies": str(prompts)}))  # its corpus has no labels
    for arm, sentence in {
        "adaptive": "arm adaptive chooses the prompt by a truth label",
        "control-adaptive": "reads prompts that a model wrote: name one",
        "without-FAMILY": "has no other prompt to read",
    }.items():
        explorer.arm.value = arm
        assert "Not possible:" in explorer.view.value and sentence in explorer.view.value
    explorer.arm.value = "control-shuffled"
    assert explorer.view.value.startswith('<p role="alert"><b>Not possible:</b> prompt &#x27;w&#x27; has no two')
    explorer.arm.value = "cft"
    assert "Think" in explorer.view.value


# --- packed rows ------------------------------------------------------------------------------------------------------


@pytest.fixture
def viewer(run_of) -> RowViewer:
    return RowViewer(run_of({"train_batch_size": 4, "max_steps": 2, "micro_batch_tokens": 200}), "cft")


def test_the_row_viewer_shows_the_rows_of_each_micro_batch(viewer):
    for layout in viewer.layout_of.options:
        viewer.layout_of.value = layout
        shown: dict[str, list[RowPart]] = {}
        for number in range(1, len(viewer.batches) + 1):
            viewer.number.value = number
            for line in viewer.lines:
                shown |= {passage: parts for passage, parts in line if passage}
        step = [viewer.rows[index] for index in viewer.order[0]]
        ids = [viewer.rows.passages[index].id for index in viewer.order[0]]
        assert set(shown) == set(ids)
        for name, row in zip(ids, step, strict=True):  # what is in the tensors is what the row says
            learned = sum(label != -100 for label in row["labels"])
            sizes = count_parts(shown[name])
            assert (sizes["read"], sizes["learned"]) == (len(row["input_ids"]), learned), layout
            assert [part.name for part in shown[name]][:3] == ["start", "prompt", "text"]


def test_padding_is_there_where_rows_are_padded(viewer):
    assert "padding" not in viewer.text and "100% filled" in viewer.text
    viewer.layout_of.value = "a line each, padded"
    batch = viewer.batches[viewer.number.value - 1]
    missing = batch.input_ids.numel() - batch.tokens
    assert missing > 0 == count_parts([RowPart("padding", False, ("",))])["read"]
    assert sum(len(parts[0].tokens) for line in viewer.lines for passage, parts in line if not passage) == missing
    assert "tokens of padding, not read" in viewer.text and '<div class="tokens padding">' in viewer.view.value


def test_the_number_of_the_micro_batch_stays_inside_the_step(viewer):
    viewer.number.value = viewer.number.max
    assert viewer.number.max > 1
    viewer.layout_of.value = "side by side in one line"
    viewer.step.value = 2
    assert viewer.number.value <= len(viewer.batches) == viewer.number.max
    assert viewer.text.startswith("Step 2, micro-batch ")
    assert viewer.view.value.count("<details") == len(viewer.batches[viewer.number.value - 1].rows)


def test_hostile_rows_are_escaped(viewer):
    seen = ""
    for step in (1, 2):
        viewer.step.value = step
        for number in range(1, viewer.number.max + 1):
            viewer.number.value = number
            seen += viewer.view.value
    assert "bad &lt;b&gt;" in seen and "&lt;" in seen and tags_in(seen) == []


# --- the corpus -------------------------------------------------------------------------------------------------------


def test_documents_are_found_by_words_and_kind(run_of):
    passages = run_of().passages
    browser = CorpusBrowser(passages, [dataclasses.replace(passages[0], document="kept back", reliable=None)])

    def found(words: str = "", kind: str = "all documents") -> list[str]:
        browser.words.value, browser.which.value = words, kind
        return [one.id for one in browser.matches]

    assert [(one.fate, one.label) for one in browser.matches] == [
        ("kept", "reliable"),
        ("kept", "not reliable"),
        ("held out", "without a label"),
    ]
    assert found() == ["good", "bad <b>", "kept back"]
    assert found("SCRIPT>alert(1)") == ["bad <b>"] and found("Good") == ["good"] and found(".*") == []
    assert found("", "held out") == ["kept back"] and found("", "not reliable") == ["bad <b>"]


def test_the_corpus_browser_follows_its_controls(run_of):
    passages = run_of().passages
    browser = CorpusBrowser(passages, counts={"documents read": 3, "documents kept": 2, "documents duplicate": 1})
    assert browser.text.startswith(
        "1 of 2 documents found (documents: 3 read, 2 kept, 1 duplicate)\ngood: kept, reliable"
    )
    assert "tokens, ends at a paragraph" in browser.text
    assert browser.first.max == len(browser.matches[0].passages) - 1 > 0
    browser.first.value = 1
    assert "passage 0:" not in browser.text and "passage 1:" in browser.text
    browser.number.value = 2
    assert browser.first.value == 0 and "bad <b>: kept, not reliable" in browser.text
    assert tags_in(browser.view.value) == [] and "bad &lt;b&gt;" in browser.view.value
    browser.words.value = "<SCRIPT>"
    assert browser.number.value == 1 and "1 of 1 documents found" in browser.text
    assert "<mark><b>&lt;script&gt;</b></mark>" in browser.view.value and tags_in(browser.view.value) == []
    browser.which.value = "held out"
    assert "No such document." in browser.text and "No such document." in browser.view.value
    with pytest.raises(InputError, match="at least one passage"):
        CorpusBrowser([])


def test_a_long_document_is_shown_piece_by_piece(run_of):
    passage = run_of().passages[0]
    browser = CorpusBrowser([dataclasses.replace(passage, index=n, text=f"piece {n} ") for n in range(PAGE + 5)])
    assert f"piece {PAGE - 1} " in browser.html and f"piece {PAGE} " not in browser.html
    browser.first.value = PAGE + 4
    assert browser.text.count("piece") == 1 and f"piece {PAGE + 4} " in browser.view.value


def test_a_corpus_can_be_browsed_before_and_after_it_is_prepared(experiment, runs, tmp_path, text_of):
    rows = [{"id": f"d{n}", "text": text_of(n % 7, 20)} for n in range(9)]
    config = experiment(corpus={"source": str(write_jsonl(tmp_path / "own.jsonl", rows)), "held_out": 0.4})
    before = CorpusBrowser.of(config)
    assert not runs.exists()
    after = CorpusBrowser.of(Run(config).prepare())
    assert before.text == after.text and "2 duplicate" in before.text
    assert before.documents == after.documents and {one.fate for one in before.documents} == {"kept", "held out"}


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return read_run(fake_run(tmp_path_factory.mktemp("results") / "fake", seeds=2))


def test_the_results_explorer_follows_its_controls(results):
    explorer = ResultsExplorer(results)
    assert explorer.reference.options[0] == "cpt" and explorer.benchmark.options[-1] == "all benchmarks"
    assert "practice-mmlu" in explorer.text and "practice-old  base" not in explorer.text
    assert explorer.view.value.count("<img ") == 1 and "minus cpt" in explorer.view.value
    explorer.boxes["neg"].value = False
    assert "neg" not in set(explorer.rows["arm"]) and ">neg<" not in explorer.view.value
    explorer.benchmark.value = "all benchmarks"
    assert explorer.view.value.count("<img ") == 2 and "practice-old  base" in explorer.text
    explorer.reference.value = "cft"
    assert "minus cft" in explorer.text
    for box in explorer.boxes.values():
        box.value = False
    assert set(explorer.rows["arm"]) == {"cft", "(chance)", "(majority)"}
    assert "No arm is chosen" in explorer.view.value and "<img " not in explorer.view.value


def test_a_choice_changes_no_number(results):
    explorer, whole = ResultsExplorer(results), results_table(results)
    explorer.benchmark.value = "practice-old"
    for arm in ("base", "cft", "control", "adaptive"):
        explorer.boxes[arm].value = False
    assert list(explorer.rows["arm"]) == ["cpt", "neg", "(chance)", "(majority)"]
    for _, row in explorer.rows.iterrows():
        same = whole[(whole["benchmark"] == "practice-old") & (whole["arm"] == row["arm"])]
        assert same.iloc[0].to_dict() == row.to_dict()


def test_names_of_benchmarks_are_escaped_and_a_reference_is_needed(tmp_path):
    folder = fake_run(tmp_path / "hostile", seeds=1, benchmarks={"<b>own": 20})
    explorer = ResultsExplorer(folder)
    assert "<b>own" not in explorer.view.value and "&lt;b&gt;own" in explorer.view.value
    broken = dataclasses.replace(explorer.run, outcomes={"a": {"cpt": {}}, "b": {"cft": {}}})
    with pytest.raises(InputError, match="no arm was evaluated on all benchmarks"):
        ResultsExplorer(broken)


# --- training ---------------------------------------------------------------------------------------------------------


def wait_for(condition, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_a_log_is_followed_while_it_grows_and_when_it_is_cut_back(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    lines = [json.dumps({"step": n, "loss": 1 / n, "tokens": 10, "passages": [n]}) + "\n" for n in range(1, 7)]
    path.write_text("".join(lines[:2]) + lines[2][:9])
    assert [row["step"] for row in read_log(path)] == [1, 2]
    path.write_text("".join(lines[:4]))
    assert [row["step"] for row in read_log(path)] == [1, 2, 3, 4]
    write_text(path, "".join(lines[:2] + lines[2:3] * 2))  # a file of the same size, as after a resume
    assert [row["step"] for row in read_log(path)] == [1, 2, 3, 3]


def test_every_stage_is_followed_to_the_steps_that_training_takes(experiment):
    general = {"source": "practice-old", "share": 0.2, "limit": 20}
    epoch = {"max_steps": None, "num_train_epochs": 1}
    run = Run(experiment(epoch, arms=["cpt", "cft-ift"], general=general, ift={"limit": 24}))
    monitor = TrainingMonitor(run)
    assert monitor.progress()["steps"].isna().all()
    run.prepare()
    counted = list(monitor.progress()["steps"])
    for task in run.train_tasks:
        run.train_task(*task)
    tasks = monitor.progress()
    assert list(tasks["arm"]) == ["cpt", "cft", "cft-ift"] and tasks["done"].all()
    assert list(tasks["step"]) == counted == list(tasks["steps"]) and counted[0] == counted[1] != counted[2]
    assert "cft-ift, 1 seed" in monitor.text


def test_speed_is_measured_from_the_first_step(run_of, monkeypatch):
    monitor = TrainingMonitor(run_of(arms=["cpt"]).prepare())
    tasks, clock = monitor.progress(), iter([10.0, 12.0, 22.0, 22.0, 23.0, 33.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))

    def speed(step: int, tokens: int, steps: int = 100) -> str:
        return monitor.speed(tasks.assign(step=step, tokens=tokens, steps=steps))

    assert speed(10, 1000) == speed(10, 1000) == "its speed is not known yet"
    assert speed(30, 3000) == "200 tokens per second, about 35 s left"
    assert speed(30, 3000, 7430) == "200 tokens per second, about 1 h 2 min left"
    assert speed(5, 500) == "its speed is not known yet", "a resumed training went back"
    assert speed(55, 1500) == "100 tokens per second, about 9 s left"


def test_curves_are_thinned_alike(run_of, monkeypatch):
    monitor, drawn = TrainingMonitor(run_of(arms=["cpt", "cft"])), []
    for path, steps in zip(monitor.paths.values(), (3000, 1000), strict=True):
        write_jsonl(path, ({"step": n, "loss": 1.0, "tokens": 9} for n in range(1, steps + 1)))
    monkeypatch.setattr("ctxft.widgets.loss_figure", lambda logs: drawn.append(logs) or loss_figure(logs))
    assert "0 of 2 trained" in monitor.text
    steps = {arm: set(rows["step"]) for arm, rows in drawn[0].groupby("arm")}
    assert len(drawn[0]) < 1000 and steps["cft"] < steps["cpt"]


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_monitor_starts_stops_and_resumes(experiment):
    run = Run(experiment({"max_steps": 250, "save_steps": 5}, arms=["cpt", "cft"]))
    monitor = TrainingMonitor(run, workers=2)
    assert monitor.text.startswith("Not running: 0 of 2 trained.") and monitor.halt.disabled
    with pytest.raises(InputError, match="not started"):
        asyncio.run(monitor.finish())
    monitor.go.click()
    assert monitor.go.disabled and not monitor.halt.disabled and "Training: 0 of 2" in monitor.text
    wait_for(lambda: len({path.parent for path in run.folder.glob("arms/*/seed-0/checkpoint-*0")}) == 2)
    monitor.halt.click()
    with pytest.raises(FailedError, match="the training was stopped; what was finished is kept"):
        asyncio.run(monitor.finish())
    assert monitor.view.value.count("<img ") == 1 and "Stopped: 0 of 2 trained. A new start" in monitor.view.value
    started = monitor.progress()
    assert started["step"].between(1, 249).all() and all(started["checkpoint"]) and not monitor.go.disabled
    monitor.start()
    monitor.start()  # it runs already
    assert asyncio.run(monitor.finish()) == run.folder and monitor.halt.disabled
    assert list(monitor.progress()["step"]) == [250, 250]
    assert "Not running: 2 of 2 trained." in monitor.view.value


@pytest.mark.process
def test_the_monitor_shows_why_a_training_failed(experiment):
    config = experiment(arms=["cpt"], train={"method": "lora", "lora": {"target_modules": ["<b>no_such_layer"]}})
    monitor = TrainingMonitor(config, workers=1)
    monitor.start()
    with pytest.raises(InputError, match=r"^train\.lora\.target_modules: .*no_such_layer"):
        asyncio.run(monitor.finish())
    assert "Failed: 0 of 1 trained. train.lora.target_modules" in monitor.text and not monitor.go.disabled
    assert "&lt;b&gt;no_such_layer" in monitor.view.value and "<b>no_such_layer" not in monitor.view.value


def test_a_view_as_text():
    assert plain_text("<style>p {}</style><p>1 &lt; <b>2</b></p>\n\n<pre>a\nb</pre>") == "1 < 2\na\nb"
    assert plain_text('<img alt="a &gt; b" src="x">') == "a > b"
