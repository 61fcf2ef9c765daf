"""Every widget shows what its pure functions say, follows its controls without a front end, and escapes what it shows."""

from __future__ import annotations

import html

import pytest

from ctxft.benchmarks import Question
from ctxft.corpora.documents import Document
from ctxft.corpora.passages import Passage, cut
from ctxft.examples import build_row, prompt_ids, special_tokens
from ctxft.experiment.rows import books_of
from ctxft.prompts import load_book
from ctxft.report.items import answers_of, disagreements, item_text
from ctxft.report.rows import Part, check_prompt, cost_text, count_parts, pieces_of, row_html, row_parts, row_text
from ctxft.runtime import InputError, write_text
from ctxft.widgets import PromptExplorer, QuestionBrowser

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
    return PromptExplorer(config, passages, tokenizers["byte"], *books_of(config), seed=1)


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
    before = prompt_ids(tokenizer, load_book("strategies").prompts[0])
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
    assert "2px dotted" in shown and "2px solid" in shown and "repeating-linear-gradient" in shown
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
    from ctxft.experiment.rows import rows_of

    config = experiment(arms=["cpt", "count-2"])
    explorer = PromptExplorer(config, passages, tokenizers["byte"], *books_of(config), seed=1)
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
    explorer = PromptExplorer(experiment(), bare, tokenizers["byte"], load_book(book), load_book("negative"))
    assert "adaptive" not in explorer.arm.options and "without-FAMILY" not in explorer.arm.options
    explorer.arm.value = "control-shuffled"
    assert explorer.view.value.startswith('<p role="alert"><b>Not possible:</b> prompt &#x27;w&#x27; has no two')
    explorer.arm.value = "cft"
    assert "Think" in explorer.view.value
    with pytest.raises(InputError, match="at least one passage"):
        PromptExplorer(experiment(), [], tokenizers["byte"], load_book(book), load_book("negative"))
