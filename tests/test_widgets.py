"""Every widget shows what its pure functions say, follows its controls without a front end, and escapes what it shows."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import json
import sys
import time

import pytest

from ctxft.config import load_experiment
from ctxft.data.documents import Document
from ctxft.data.passages import Passage, cut, cut_points
from ctxft.data.rows import build_row, prompt_ids, special_tokens
from ctxft.evaluation.benchmarks import Question
from ctxft.models import encode_text
from ctxft.prompts import load_prompt_set
from ctxft.report import read_run, results_table
from ctxft.report.choice import Comparison
from ctxft.report.corpus import KEPT, SHOWN, document_text, documents_of, find_documents
from ctxft.report.figures import loss_curves
from ctxft.report.items import answers_of, disagreements, item_text
from ctxft.report.rows import Part, check_prompt, cost_text, count_parts, pieces_of, row_html, row_parts, row_text
from ctxft.run.prepare import prepare
from ctxft.run.progress import Follower, Pace, Progress, Tail, count_steps, followed_tasks
from ctxft.run.rows import prompt_sets_of, rows_of
from ctxft.run.tasks import train_task, train_tasks
from ctxft.storage import FailedError, InputError, write_jsonl, write_text
from ctxft.training.schedule import passage_order
from ctxft.widgets import CorpusBrowser, PromptExplorer, QuestionBrowser, ResultsExplorer, RowViewer, TrainingMonitor
from ctxft.widgets.training import _speed
from tests.test_report import fake_run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & more of it."

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


def arms(seeds: tuple[int, ...] = (1, 2)) -> dict:
    """Return the outcomes; in the second seed cft answers as cpt does."""
    rows = {arm: [outcome(q, p) for q, p in zip(QUESTIONS, chosen, strict=True)] for arm, chosen in CHOSEN.items()}
    return {
        "base": {0: rows["base"]},
        "cpt": dict.fromkeys(seeds, rows["cpt"]),
        "cft": {1: rows["cft"], 2: rows["cpt"]},
    }


def test_one_item_as_text():
    lines = item_text(QUESTIONS[1], answers_of(arms(), 1)["q1"]).splitlines()
    assert lines[:2] == ["[q1] numbers", "Is 1 < 2?"]
    assert lines[3].split() == ["nats", "base", "cpt", "cft"]
    assert lines[4].split() == [">", "yes", "-3.25", "-0.50*", "-3.25"]
    assert lines[5].split() == ["perhaps", "-0.50*", "-2.50", "-0.50*"]
    assert lines[-1] == "The arms disagree. cpt: yes; base, cft: perhaps. Right: yes."
    assert item_text(QUESTIONS[2], answers_of(arms(), 1)["q2"]).endswith("All arms say perhaps, which is wrong.")


def test_written_answers_stand_below_the_choices():
    answers = answers_of(arms(), 1)["q1"]
    answers = {arm: row | {"log_likelihoods": []} for arm, row in answers.items()}
    answers["base"] |= {"prediction": None, "written": "yes or no"}
    answers["cpt"] |= {"written": "Yes."}
    lines = item_text(QUESTIONS[1], answers).splitlines()
    assert [lines[4].split(), lines[5].split()] == [[">", "yes", "*"], ["perhaps", "*"]]
    assert lines[8:] == [
        "base wrote: 'yes or no'",
        "cpt wrote: 'Yes.'",
        "The arms disagree. base: no answer; cpt: yes; cft: perhaps. Right: yes.",
    ]
    assert disagreements({"q1": answers}, ["base", "cpt"]) == ["q1"]


def test_disagreements_are_of_the_trained_arms_or_of_those_asked_for():
    answers = answers_of(arms(), 1)
    assert disagreements(answers) == ["q1"] and disagreements(answers_of(arms(), 2)) == []
    assert disagreements(answers, ["base", "cpt"]) == ["q0", "q1", "q3"]


def test_other_questions_and_seeds_are_refused():
    with pytest.raises(InputError, match="arm base: the outcome 'q1' is not of question 'q0'"):
        item_text(QUESTIONS[0], answers_of(arms(), 1)["q1"])
    with pytest.raises(InputError, match="unknown seed of arm cpt: '7'"):
        answers_of(arms(), 7)
    with pytest.raises(InputError, match="at least one seed"):
        QuestionBrowser(QUESTIONS, arms(), [])


def test_the_browser_follows_its_controls():
    browser = QuestionBrowser(QUESTIONS, arms(), [1, 2])
    assert browser._repr_mimebundle_()["text/html"] == browser.view.value  # what a page without a kernel shows
    assert browser.text.startswith("1 of 4\n\n[q0]")
    browser.number.value = 3
    assert "[q2]" in browser.text and browser.view.value == f"<pre>{html.escape(browser.text)}</pre>"
    browser.shown.value = "arms disagree"
    assert browser.text.startswith("1 of 1\n\n[q1]") and "Is 1 &lt; 2?" in browser.view.value
    browser.seed.value = 2
    assert browser.text == "No such question." and "No such question." in browser.view.value
    browser.shown.value = "all trained arms wrong"
    assert [question.id for question in browser.chosen] == ["q2"]


# --- rows and prompts -------------------------------------------------------------------------------------------------


def tags_in(shown: str) -> list[str]:
    """Return the tags of HTML that a text must not bring in."""
    return [tag for tag in ("<script", "<img", "onerror=alert(2)>") if tag in shown]


@pytest.fixture(scope="module")
def passages(tokenizers, text_of) -> list[Passage]:
    """Passages of two documents, the second hostile."""
    texts = {"good": text_of(3, 12), "bad <b>": f"{HOSTILE} {text_of(4, 3)}"}
    documents = [Document(name, text, name, name == "good") for name, text in texts.items()]
    return [passage for document in documents for passage in cut(document, tokenizers["byte"], 60)]


@pytest.fixture
def explorer(experiment, passages, tokenizers) -> PromptExplorer:
    config = experiment()
    return PromptExplorer(config, passages, tokenizers["byte"], *prompt_sets_of(config), seed=1)


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_pieces_of_tokens_join_to_the_text(kind, tokenizers, text_of):
    tokenizer, text = tokenizers[kind], text_of(5, 6)
    assert "".join(pieces_of(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer)) == text
    letters = pieces_of(tokenizer("é€", add_special_tokens=False)["input_ids"], tokenizer)
    assert len(letters) > 2 and "\ufffd" not in "".join(letters)
    assert "||" not in row_text([Part("text", True, letters)])  # what adds nothing is shown as well


def test_a_row_is_taken_apart(tokenizers, passages):
    tokenizer, last = tokenizers["byte"], next(passage for passage in passages if passage.last)
    special = special_tokens(tokenizer)
    before = prompt_ids(tokenizer, load_prompt_set("strategies").prompts[0])
    parts = row_parts(build_row(last, before, special), tokenizer, special.eos)
    assert [(part.name, part.learned) for part in parts] == [
        ("start", False),
        ("prompt", False),
        ("text", True),
        ("end", True),
    ]
    size, text = len(before), len(last.ids)
    assert count_parts(parts) == {"read": size + text + 2, "learned": text + 1, "prompt": size}
    assert f"the prompt takes {size}, {size / (size + text + 2):.0%} of what is read." in cost_text(parts)
    learned = row_parts(build_row(last, before, special, True, [7, 8]), tokenizer, special.eos, size, 2)
    assert [part.name for part in learned] == ["start", "prompt", "text", "exercises", "end"]
    assert [part.learned for part in learned] == [False, True, True, True, True] and len(learned[3].tokens) == 2
    plain = row_parts(build_row(last, [], special), tokenizer, special.eos)
    assert [part.name for part in plain] == ["start", "text", "end"] and cost_text(plain).endswith(
        "there is no prompt."
    )


def test_views_of_a_row_tell_without_colour_what_is_learned():
    parts = [
        Part("prompt", False, ("Read", " it")),
        Part("text", True, ("a<b", "\n")),
        Part("padding", False, ("x",) * 3),
    ]
    assert row_text(parts).splitlines() == [
        "prompt          2 read     Read|·it",
        "text            2 learned  a<b|↵",
        "padding         3 not read",
    ]
    shown = row_html(parts)
    assert "<b>prompt</b>: 2 tokens, read" in shown and "<b>text</b>: 2 tokens, learned" in shown
    assert "6px dotted" in shown and "6px solid" in shown and "repeating-linear-gradient" in shown
    assert "a&lt;b" in shown and "a<b" not in shown


def test_a_prompt_of_ones_own_is_checked(passages):
    def check(text: str, window: int = 128, least: int = 16) -> list[str]:
        return check_prompt(text, passages[0], lambda prompt: len(prompt.split()), window, least)

    copied = " ".join(passages[0].text.split()[:8])
    assert check("Ask why.") == []
    assert check(" \n ")[0].startswith("The prompt is empty") and check("\ud800")[0].startswith(
        "The prompt holds a lone"
    )
    assert check("word " * 120, window=1000) == []
    assert "has 121 words, but at most 120" in check("word " * 121, window=1000)[0]
    assert "takes 100 of 128 tokens and leaves 26 for text" in check("word " * 100, least=27)[0]
    assert "Behind this prompt the passage takes" in check("word " * 100, least=26)[0]
    assert 'copies 8 words of the passage ("' in check(f"Think of {copied.upper()}!")[0]
    assert len(check(f"{copied} {'word ' * 120}")) == 3


def test_the_prompt_explorer_follows_its_controls(explorer, passages):
    assert explorer.arm.value == "cft" and explorer.family.disabled
    assert explorer.text.startswith(f"cft, passage {passages[0].id} (1 of {len(passages)})\nPrompt ")
    explorer.arm.value = "only-FAMILY"
    assert not explorer.family.disabled and explorer.prompt.family == explorer.strategies.families[0]
    explorer.family.value = "critical"
    assert explorer.text.startswith("only-critical,") and explorer.prompt.family == "critical"
    assert "The idea: Critical reading" in explorer.text
    explorer.arm.value = "without-FAMILY"
    assert explorer.prompt.family != "critical"
    explorer.arm.value = "cpt"
    assert explorer.prompt is None and "No prompt." in explorer.text
    explorer.arm.value = "cft-learned"
    assert count_parts(explorer.parts)["learned"] == count_parts(explorer.parts)["read"] - 1
    explorer.arm.value = "neg"
    explorer.number.value = len(passages)
    assert explorer.prompt.kind == "negative" and explorer.passage is passages[-1]
    assert html.escape(explorer.prompt.text) in explorer.view.value


def test_the_prompt_explorer_shows_what_training_reads(explorer, experiment, passages, tokenizers):
    config = experiment(arms=["cpt", "count-2"])
    explorer = PromptExplorer(config, passages, tokenizers["byte"], *prompt_sets_of(config), seed=1)
    arms = [arm for arm in explorer.arm.options if "FAMILY" not in arm]
    assert {"adaptive", "reading", "control-shuffled", "count-2"} <= set(arms) and "control-adaptive" not in arms
    for arm in arms:
        rows, _ = rows_of(config, arm, 1, passages, tokenizers["byte"])
        explorer.arm.value = arm
        for number in (1, len(passages)):
            explorer.number.value = number
            counts, row = count_parts(explorer.parts), rows[number - 1]
            learned = sum(label != -100 for label in row["labels"])
            assert (counts["read"], counts["learned"]) == (len(row["input_ids"]), learned), arm


def test_a_typed_prompt_is_shown_in_place_of_the_drawn_one(explorer, passages):
    explorer.own.value = "Think of <b>why</b>."
    assert explorer.prompt.text == "Think of <b>why</b>." and explorer.problems == []
    assert "<b>why" not in explorer.view.value and "&lt;b&gt;why" in explorer.view.value
    explorer.own.value = "word " * 200
    assert 'role="alert"' in explorer.view.value and len(explorer.problems) == 2
    for broken in ("  ", "\ud800"):
        explorer.own.value = broken
        assert len(explorer.problems) == 1 and "tokens are read" not in explorer.text
    explorer.own.value = ""
    assert explorer.prompt.id != "your own" and "alert" not in explorer.view.value


def test_hostile_passages_are_escaped(explorer, passages):
    explorer.number.value = next(n for n, passage in enumerate(passages, start=1) if passage.document != "good")
    assert explorer.passage.text.startswith("<script>")
    assert tags_in(explorer.view.value) == [] and "bad &lt;b&gt;" in explorer.view.value
    explorer.own.value = HOSTILE
    assert tags_in(explorer.view.value) == [] and "&lt;script&gt;" in explorer.view.value


def test_what_cannot_be_shown_is_said(experiment, passages, tokenizers, tmp_path):
    entry = "{id: w, family: context, text: Think}"
    book = write_text(tmp_path / "one.yaml", f"name: one\nkind: strategy\nprompts:\n  - {entry}\n")
    bare = [Passage(**{**passage.__dict__, "reliable": None}) for passage in passages]
    explorer = PromptExplorer(
        experiment(), bare, tokenizers["byte"], load_prompt_set(book), load_prompt_set("negative")
    )
    assert "adaptive" not in explorer.arm.options and "without-FAMILY" not in explorer.arm.options
    explorer.arm.value = "control-shuffled"
    assert explorer.view.value.startswith('<p role="alert"><b>Not possible:</b> prompt &#x27;w&#x27; has no two')
    explorer.arm.value = "cft"
    assert "Think" in explorer.view.value
    with pytest.raises(InputError, match="at least one passage"):
        PromptExplorer(experiment(), [], tokenizers["byte"], load_prompt_set(book), load_prompt_set("negative"))


# --- packed rows ------------------------------------------------------------------------------------------------------


@pytest.fixture
def viewer(experiment, passages, tokenizers) -> RowViewer:
    config = experiment({"train_batch_size": 4, "max_steps": 2, "micro_batch_tokens": 200})
    rows, _ = rows_of(config, "cft", 0, passages, tokenizers["byte"])
    return RowViewer(rows, passage_order(rows.text_targets, config.train, 0), config.train, tokenizers["byte"])


def test_the_row_viewer_shows_the_rows_of_each_micro_batch(viewer):
    for layout in viewer.layout_of.options:
        viewer.layout_of.value = layout
        shown = {}
        for number in range(1, len(viewer.batches) + 1):
            viewer.number.value = number
            _, lines = viewer._chosen()
            for segment in (segment for line in lines for segment in line if segment.number):
                shown[segment.name] = segment.parts
        step = [viewer.rows[index] for index in viewer.order[0]]
        names = [f"passage {viewer.rows.passages[index].id}" for index in viewer.order[0]]
        assert sorted(shown) == sorted(names)
        for name, row in zip(names, step, strict=True):  # what stands in the tensors is what the row says
            learned = sum(label != -100 for label in row["labels"])
            assert count_parts(shown[name])["read"] == len(row["input_ids"]), layout
            assert count_parts(shown[name])["learned"] == learned, layout
            assert [part.name for part in shown[name]][:3] == ["start", "prompt", "text"]


def test_padding_is_there_where_rows_are_padded(viewer):
    assert "padding" not in viewer.text and "100% filled" in viewer.text
    viewer.layout_of.value = "a line each, padded"
    batch = viewer.batches[viewer.number.value - 1]
    missing = batch.input_ids.numel() - batch.tokens
    assert missing > 0
    counts = [len(s.parts[0].tokens) for line in viewer._chosen()[1] for s in line if not s.number]
    assert sum(counts) == missing and "padding" in viewer.text
    assert "repeating-linear-gradient" in viewer.view.value and "not read" in viewer.view.value


def test_the_number_of_the_micro_batch_stays_inside_the_step(viewer):
    viewer.number.value = viewer.number.max
    assert viewer.number.max > 1
    viewer.layout_of.value = "side by side in one line"
    viewer.step.value = 2
    assert viewer.number.value <= len(viewer.batches) == viewer.number.max
    assert viewer.text.startswith("Step 2, micro-batch ") and viewer.view.value.count("<details") == len(
        viewer.batches[viewer.number.value - 1].rows
    )


def test_hostile_rows_are_escaped_and_no_step_is_refused(viewer):
    seen = ""
    for step in (1, 2):
        viewer.step.value = step
        for number in range(1, viewer.number.max + 1):
            viewer.number.value = number
            seen += viewer.view.value
    assert "bad &lt;b&gt;" in seen and "&lt;" in seen and tags_in(seen) == []
    with pytest.raises(InputError, match="at least one optimizer step"):
        RowViewer(viewer.rows, [], viewer.config, viewer.tokenizer)


# --- the corpus -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_ends_of_passages_are_told_as_they_were_cut(kind, tokenizers, text_of):
    text = f"{text_of(1, 9)} {'word ' * 90}. {text_of(2, 9)}"
    document = Document("one", text, "here")
    _, starts = encode_text(tokenizers[kind], text)
    kinds = [end for _, end in cut_points(text, starts, 30)]
    assert set(kinds) == {"at a document", "at a paragraph", "at a sentence", "inside a sentence"}
    passages = cut(document, tokenizers[kind], 30)
    assert [passage.ends for passage in passages] == kinds


def test_documents_are_found_by_words_and_kind(passages):
    held = [Passage(**{**passages[0].__dict__, "document": "kept back", "reliable": None})]
    documents = documents_of(passages, held)
    assert [(one.id, one.fate, one.label) for one in documents] == [
        ("good", KEPT, "reliable"),
        ("bad <b>", KEPT, "not reliable"),
        ("kept back", "held out", "without a label"),
    ]

    def names(*asked: str) -> list[str]:
        return [one.id for one in find_documents(documents, *asked)]

    assert names() == ["good", "bad <b>", "kept back"]
    assert names("SCRIPT>alert(1)") == ["bad <b>"] and names("Good") == ["good"] and names(".*") == []
    assert names("", "held out") == ["kept back"] and names("", "not reliable") == ["bad <b>"]
    with pytest.raises(InputError, match="did you mean 'kept'"):
        find_documents(documents, "", "kpt")


def test_the_corpus_browser_follows_its_controls(passages):
    browser = CorpusBrowser(passages, counts={"documents read": 3, "documents kept": 2, "documents duplicate": 1})
    assert browser.text.startswith(
        "1 of 2 documents found (documents: 3 read, 2 kept, 1 duplicate)\n\ngood: kept, reliable"
    )
    assert browser.first.max == len(browser.found[0].passages) - 1 > 0
    browser.first.value = 1
    assert "[passage 0:" not in browser.text and "[passage 1:" in browser.text
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


def test_a_long_document_is_shown_piece_by_piece(passages):
    many = [Passage(**{**passages[0].__dict__, "index": n, "text": f"piece {n} "}) for n in range(SHOWN + 5)]
    (document,) = documents_of(many)
    assert f"piece {SHOWN - 1} " in document_text(document) and f"piece {SHOWN} " not in document_text(document)
    browser = CorpusBrowser(many)
    browser.first.value = SHOWN + 4
    assert browser.text.count("piece") == 1 and f"piece {SHOWN + 4} " in browser.view.value


def test_a_corpus_can_be_browsed_before_and_after_it_is_prepared(experiment, runs, tmp_path, text_of):
    rows = [{"id": f"d{n}", "text": text_of(n % 7, 20)} for n in range(9)]
    config = experiment(corpus={"source": str(write_jsonl(tmp_path / "own.jsonl", rows)), "held_out": 0.4})
    before = CorpusBrowser.of(config)
    assert not runs.exists()
    prepare(config)
    after = CorpusBrowser.of(config)
    assert before.text == after.text and "2 duplicate" in before.text
    assert [one.title for one in before.documents] == [one.title for one in after.documents]
    assert {one.fate for one in before.documents} == {"kept", "held out"}


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(fake_run(tmp_path_factory.mktemp("results") / "fake", seeds=2))


def test_the_results_explorer_follows_its_controls(run):
    explorer = ResultsExplorer(run)
    assert explorer.reference.options[0] == "cpt" and explorer.benchmark.options[-1] == "all benchmarks"
    assert "practice-mmlu" in explorer.text and "practice-old" not in explorer.text
    assert explorer.view.value.count("<img ") == 1 and "minus cpt" in explorer.view.value
    explorer.boxes["neg"].value = False
    assert " neg " not in explorer.comparison.rows(*explorer.chosen).to_string() and ">neg<" not in explorer.view.value
    explorer.benchmark.value = "all benchmarks"
    assert explorer.view.value.count("<img ") == 2 and "practice-old" in explorer.text
    explorer.reference.value = "cft"
    assert "minus cft" in explorer.text
    for box in explorer.boxes.values():
        box.value = False
    assert set(explorer.comparison.rows(*explorer.chosen)["arm"]) == {"cft", "(chance)", "(majority)"}
    assert "No arm is chosen" in explorer.view.value and "<img " not in explorer.view.value


def test_a_choice_changes_no_number(run):
    comparison = Comparison(run)
    whole, some = results_table(run), comparison.rows(["practice-old"], ["neg"])
    assert list(some["arm"]) == ["cpt", "neg", "(chance)", "(majority)"]
    for _, row in some.iterrows():
        same = whole[(whole["benchmark"] == "practice-old") & (whole["arm"] == row["arm"])]
        assert same.iloc[0].to_dict() == row.to_dict()
    axes = comparison.figure(["practice-mmlu", "practice-old"], ["cft", "neg"]).axes
    assert [[label.get_text() for label in one.get_yticklabels()] for one in axes] == [["neg", "cft"]] * 2
    with pytest.raises(InputError, match="unknown benchmark 'practice-mlu'"):
        comparison.rows(["practice-mlu"], ["neg"])
    with pytest.raises(InputError, match="no benchmark is chosen"):
        comparison.figure([], ["neg"])


def test_names_of_benchmarks_are_escaped_and_a_reference_is_needed(tmp_path):
    folder = fake_run(tmp_path / "hostile", seeds=1, benchmarks={"<b>own": 20})
    explorer = ResultsExplorer(folder)
    assert "<b>own" not in explorer.view.value and "&lt;b&gt;own" in explorer.view.value
    broken = dataclasses.replace(explorer.run, outcomes={"a": {"cpt": {}}, "b": {"cft": {}}})
    with pytest.raises(InputError, match="no arm was evaluated on all benchmarks"):
        ResultsExplorer(broken)


# --- training ---------------------------------------------------------------------------------------------------------


def wait_for(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_a_log_is_followed_while_it_grows_and_when_it_is_cut_back(tmp_path):
    tail = Tail(tmp_path / "log.jsonl")
    assert tail.read() == []
    lines = [json.dumps({"step": n, "loss": 1 / n, "tokens": 10, "passages": [n]}) + "\n" for n in range(1, 7)]
    with open(tail.path, "w") as file:
        file.write("".join(lines[:2]) + lines[2][:9])
    assert [row["step"] for row in tail.read()] == [1, 2] and tail.tokens == 20
    with open(tail.path, "a") as file:
        file.write(lines[2][9:] + lines[3])
    assert [row["step"] for row in tail.read()] == [1, 2, 3, 4] and tail.tokens == 40
    write_text(tail.path, "".join(lines[:2] + lines[2:3] * 2))  # a file of the same size, as after a resume
    assert [row["step"] for row in tail.read()] == [1, 2, 3, 3] and tail.tokens == 40
    tail.path.unlink()
    assert tail.read() == [] and tail.tokens == 0


def test_steps_are_counted_as_training_takes_them(experiment):
    general = {"source": "practice-old", "share": 0.2, "limit": 20}
    config = experiment(
        {"max_steps": None, "num_train_epochs": 1}, arms=["cpt", "cft-ift"], general=general, ift={"limit": 12}
    )
    assert [one.steps for one in Follower(config).read()] == [None, None, None]
    prepare(config)
    assert followed_tasks(config) == [("cpt", 0), ("cft", 0), ("cft-ift", 0)]
    counted = [count_steps(config, *task) for task in followed_tasks(config)]
    for task in train_tasks(config):
        train_task(config, *task)
    assert [one.steps for one in Follower(config).read()] == counted
    found = Follower(config).read()
    assert all(one.done and one.step == one.steps for one in found) and counted[0] == counted[1] != counted[2]


def test_pace_is_measured_over_what_was_read():
    follower = Follower(load_experiment("mini", {"arms": ["cpt"], "seeds": [0]}))
    one = Progress("cpt", 0, False, 30, 100, 1.0, 3000, None)
    follower.samples.extend([(10.0, 10, 1000), (15.0, 20, 2000), (20.0, 30, 3000)])
    assert follower.pace([one]) == Pace(tokens=200.0, left=35.0)
    assert _speed(follower.pace([one])) == "200 tokens a second, about 35 s left"
    assert _speed(Pace(1234.5, 3700.0)) == "1,234 tokens a second, about 1 h 1 min left"
    follower.samples.append((21.0, 5, 500))  # a resumed training went back
    assert follower.pace([one]) == Pace(None, None) and "not known" in _speed(Pace(None, None))


def test_curves_are_thinned_alike(tmp_path):
    follower = Follower(load_experiment("mini", {"arms": ["cpt", "cft"], "seeds": [0]}))
    for tail, steps in zip(follower.logs.values(), (3000, 1000), strict=True):
        tail.rows = [{"step": n, "loss": 1.0} for n in range(1, steps + 1)]
    curves = follower.curves()
    assert len(curves) < 1000 and set(curves[curves["arm"] == "cft"]["step"]) < set(
        curves[curves["arm"] == "cpt"]["step"]
    )
    lines = loss_curves(curves).axes[0].get_lines()
    assert len({line.get_marker() for line in lines if line.get_label()[:2] in ("cp", "cf")}) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_monitor_starts_stops_and_goes_on(experiment):
    config = experiment({"max_steps": 250, "save_steps": 5}, arms=["cpt", "cft"])
    monitor = TrainingMonitor(config, workers=2)
    assert monitor.text.startswith("Not running: 0 of 2 trained.") and monitor.halt.disabled
    with pytest.raises(InputError, match="not started"):
        monitor.wait()
    monitor.go.click()
    assert monitor.go.disabled and not monitor.halt.disabled and "Training: 0 of 2" in monitor.text
    with pytest.raises(TimeoutError, match="still runs"):
        monitor.wait(0.1)
    wait_for(lambda: len({path.parent for path in config.folder.glob("arms/*/seed-0/checkpoint-*0")}) == 2)
    monitor.halt.click()
    with pytest.raises(FailedError, match="the training was stopped; what was finished is kept"):
        monitor.wait(60)
    assert monitor.view.value.count("<img ") == 1 and "Stopped: 0 of 2 trained. A new start" in monitor.view.value
    begun = monitor.follower.read()
    assert all(0 < one.step < 250 and one.checkpoint for one in begun) and not monitor.go.disabled
    monitor.start()
    monitor.start()  # it runs already
    assert asyncio.run(monitor.finish()) == config.folder and monitor.halt.disabled
    assert [(one.done, one.step) for one in monitor.follower.read()] == [(True, 250)] * 2
    assert "Not running: 2 of 2 trained." in monitor.view.value


def test_the_monitor_says_why_a_training_failed(experiment):
    config = experiment(arms=["cpt"], train={"method": "lora", "lora": {"target_modules": ["<b>no_such_layer"]}})
    monitor = TrainingMonitor(config, workers=1)
    monitor.start()
    with pytest.raises(InputError, match=r"^train\.lora\.targets: .*no_such_layer"):
        monitor.wait(120)
    assert "Failed: 0 of 1 trained. train.lora.target_modules" in monitor.text and not monitor.go.disabled
    assert "&lt;b&gt;no_such_layer" in monitor.view.value and "<b>no_such_layer" not in monitor.view.value
    assert "there are no checkpoints" in monitor._kept()
