"""The question browser shows what its pure function says, and follows its controls without a front end."""

from __future__ import annotations

import html

import pytest

from ctxft.benchmarks import Question
from ctxft.report.items import answers_of, disagreements, item_text
from ctxft.runtime import InputError
from ctxft.widgets import QuestionBrowser

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
    assert browser.text.startswith("1 of 4\n\n[q0]")
    browser.number.value = 3
    assert "[q2]" in browser.text and browser.view.value == f"<pre>{html.escape(browser.text)}</pre>"
    browser.shown.value = "arms disagree"
    assert browser.text.startswith("1 of 1\n\n[q1]") and "Is 1 &lt; 2?" in browser.view.value
    browser.seed.value = 2
    assert browser.text == "No such question." and "No such question." in browser.view.value
    browser.shown.value = "all trained arms wrong"
    assert [question.id for question in browser.chosen] == ["q2"]
