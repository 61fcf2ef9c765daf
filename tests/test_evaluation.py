"""Outcomes and metrics: predictions by both rules, ties, cut items, files, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ctxft import evaluation
from ctxft.benchmarks import FORMS, Benchmark, Question, render
from ctxft.evaluation import KEYS, evaluate, metrics, read_outcomes, write_outcomes
from ctxft.outcomes import Journal
from ctxft.runtime import InputError, sha256
from ctxft.scoring import ChoiceScores
from ctxft.world.facts import model_folder

torch.set_num_threads(1)
QUESTIONS = (
    Question("a", "Which is long?", ("short", "a much longer choice"), 1, "length"),
    Question("b", "Which is first?", ("one", "two", "six"), 0, "order"),
    Question("c", "Which is right?", ("yes", "no"), 1, "order"),
)
BENCHMARK = Benchmark("mine", QUESTIONS, "a test")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder("practice-blind"))


def make_model(tokenizer, window: int = 256) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=window, initializer_range=0.3, **sizes)
    )


def score_as(monkeypatch: pytest.MonkeyPatch, *rows: list[float], cut: int = 0) -> list[dict]:
    """Evaluate with the given log-likelihoods in place of a model's."""
    scores = [ChoiceScores(list(row), [1] * len(row), cut if number == 0 else 0) for number, row in enumerate(rows)]
    monkeypatch.setattr(
        evaluation, "score_choices", lambda *a, scored, **k: [scored(*pair) for pair in enumerate(scores)]
    )
    return evaluate(None, None, BENCHMARK)


def test_predictions_by_sum_and_per_character(monkeypatch: pytest.MonkeyPatch) -> None:
    # "short" has 5 characters and "a much longer choice" 20: -3/5 < -8/20, so the two rules part on the first question.
    first, second, third = score_as(monkeypatch, [-3.0, -8.0], [-1.0, -1.0, -2.0], [-4.0, -3.0])
    assert list(first) == list(KEYS)
    assert (first["prediction"], first["correct"]) == (0, False)
    assert (first["prediction_per_character"], first["correct_per_character"]) == (1, True)
    assert (second["prediction"], second["correct"]) == (0, True)  # a tie goes to the first
    assert (third["prediction"], third["prediction_per_character"]) == (1, 0)  # -3/2 < -4/3
    assert first["hash"] == QUESTIONS[0].hash


def test_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = score_as(monkeypatch, [-3.0, -8.0], [-1.0, -1.0, -2.0], [-4.0, -3.0], cut=5)
    found = metrics(outcomes, BENCHMARK)
    assert found == {
        "n": 3,
        "accuracy": pytest.approx(2 / 3),
        "accuracy_per_character": pytest.approx(2 / 3),
        "accuracy_per_token": pytest.approx(2 / 3),
        "unanswered": 0,
        "chance": pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3),
        "majority": pytest.approx(2 / 3),
        "ties": 1,
        "truncated_items": 1,
        "by_subject": {"length": {"n": 1, "accuracy": 0.0}, "order": {"n": 2, "accuracy": 1.0}},
    }


def test_macro_f1_where_all_questions_have_the_same_choices() -> None:
    """By hand: classes a, b, c; right a a b c, said a b b a. F1: a 2/(2+1+1), b 2/(2+1), c 0."""
    right, said = (0, 0, 1, 2), (0, 1, 1, 0)
    questions = tuple(Question(str(n), "Which?", ("a", "b", "c"), answer, "all") for n, answer in enumerate(right))
    benchmark = Benchmark("labels", questions, "a test")
    outcomes = [
        {"id": q.id, "hash": q.hash, "subject": "all", "answer": q.answer, "prediction": p, "correct": p == q.answer}
        | dict.fromkeys(("correct_per_character", "correct_per_token"), False)
        | {"log_likelihoods": [0.0, -1.0], "truncated": 0}
        for q, p in zip(questions, said, strict=True)
    ]
    found = metrics(outcomes, benchmark)
    assert benchmark.labels == ("a", "b", "c") and found["accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert found["majority_macro_f1"] == pytest.approx((2 * 2 / (2 * 2 + 2) + 0 + 0) / 3)  # always a: F1 of a is 2/3


def test_metrics_refuse_the_outcomes_of_other_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = score_as(monkeypatch, [-3.0, -8.0], [-1.0, -1.0, -2.0], [-4.0, -3.0])
    changed = Benchmark("mine", (*QUESTIONS[:2], Question("c", "Which is wrong?", ("yes", "no"), 1, "order")), "a test")
    for questions in (changed, Benchmark("mine", QUESTIONS[:2], "a test")):
        with pytest.raises(InputError, match=r"the 3 outcomes are not those of the . questions of 'mine'"):
            metrics(outcomes, questions)


def test_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="question 'b': a log-likelihood is NaN"):
        score_as(monkeypatch, [-3.0, -8.0], [-1.0, math.nan, -2.0], [-4.0, -3.0])


@pytest.mark.parametrize("form", FORMS)
def test_a_model_answers_and_the_files_keep_its_outcomes(tokenizer, tmp_path: Path, form: str) -> None:
    model = make_model(tokenizer)
    outcomes = evaluate(model, tokenizer, BENCHMARK, form)
    assert [len(o["log_likelihoods"]) for o in outcomes] == [2, 3, 2]
    assert all(value < 0 for o in outcomes for value in o["log_likelihoods"])
    assert read_outcomes(write_outcomes(tmp_path / "mine.jsonl", outcomes)) == outcomes
    assert metrics(outcomes, BENCHMARK)["truncated_items"] == 0
    if form == "lettered":  # letters have one character each, so both rules agree
        assert all(o["prediction"] == o["prediction_per_character"] for o in outcomes)


def test_cut_items_are_counted(tokenizer) -> None:
    outcomes = evaluate(make_model(tokenizer, window=16), tokenizer, BENCHMARK, "options")
    assert metrics(outcomes, BENCHMARK)["truncated_items"] > 0


def test_a_choice_that_cannot_be_scored_names_its_question(tokenizer) -> None:
    with pytest.raises(InputError, match="mine, question 'a': a choice has"):
        evaluate(make_model(tokenizer, window=4), tokenizer, BENCHMARK, "options")


def test_broken_outcome_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a"}\n')
    with pytest.raises(InputError, match=r"mine.jsonl, line 1: an outcome lacks hash, prompt_hash, subject"):
        read_outcomes(path)


def test_a_prediction_per_token_and_the_hash_of_the_prompt(tokenizer) -> None:
    for question, outcome in zip(QUESTIONS, evaluate(make_model(tokenizer), tokenizer, BENCHMARK), strict=True):
        means = [value / count for value, count in zip(outcome["log_likelihoods"], outcome["tokens"], strict=True)]
        assert outcome["prediction_per_token"] == means.index(max(means))
        assert outcome["correct_per_token"] == (outcome["prediction_per_token"] == question.answer)
        assert outcome["prompt_hash"] == sha256(render(question, "options", "mine")[0]) and outcome["written"] is None


def test_written_answers_are_parsed_and_none_counts_as_wrong(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def say(model, tokenizer, prompts, max_new_tokens, answered, **options) -> None:
        read.extend([*prompts, options["chat"]])
        for number, text in enumerate((" B", "A or B", "A. yes")):
            answered(number, text, number)

    monkeypatch.setattr(evaluation, "generate_answers", say)
    outcomes = evaluate(make_model(tokenizer), tokenizer, BENCHMARK, "lettered", rule="generate")
    assert [(o["prediction"], o["correct"], o["truncated"]) for o in outcomes] == [
        (1, True, 0),
        (None, False, 1),
        (0, False, 2),
    ]
    assert outcomes[1]["written"] == "A or B" and outcomes[1]["log_likelihoods"] == []
    assert read[1].startswith("Answer with exactly one of these and nothing else: A; B; C\n\n") and read[3] is False
    assert [sha256(prompt) for prompt in read[:3]] == [o["prompt_hash"] for o in outcomes]
    found = metrics(outcomes, BENCHMARK)
    assert found["accuracy"] == pytest.approx(1 / 3) and found["unanswered"] == 1 and "accuracy_per_token" not in found


@pytest.mark.parametrize("form", FORMS)
def test_a_model_writes_its_answers(tokenizer, tmp_path: Path, form: str) -> None:
    outcomes = evaluate(make_model(tokenizer), tokenizer, BENCHMARK, form, rule="generate")
    assert all(isinstance(outcome["written"], str) for outcome in outcomes)
    assert read_outcomes(write_outcomes(tmp_path / "mine.jsonl", outcomes)) == outcomes
    with pytest.raises(InputError, match="unknown rule 'generated'"):
        evaluate(make_model(tokenizer), tokenizer, BENCHMARK, rule="generated")


@pytest.mark.parametrize("rule", ["likelihood", "generate"])
def test_a_killed_evaluation_goes_on_from_what_is_on_disk(tokenizer, tmp_path: Path, rule: str) -> None:
    model, path = make_model(tokenizer), tmp_path / "mine.partial"
    expected = evaluate(model, tokenizer, BENCHMARK, rule=rule)

    def stop(done: int, of: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):  # budget 1: a batch for each question
        evaluate(model, tokenizer, BENCHMARK, token_budget=1, progress=stop, rule=rule, journal=Journal(path, "k"))
    with path.open("a") as file:
        file.write('{"id": "c", "answer": ')  # half a line, as a kill leaves it
    journal = Journal(path, "k")
    (first,) = journal.outcomes
    journal.outcomes[first]["mark"] = True
    again = evaluate(model, tokenizer, BENCHMARK, rule=rule, journal=journal)
    assert [outcome["id"] for outcome in again if "mark" in outcome] == [first]  # taken from disk, not made again
    for a, b in zip(again, expected, strict=True):
        assert a["prediction"] == b["prediction"] and a["written"] == b["written"]
        assert a["log_likelihoods"] == pytest.approx(b["log_likelihoods"], abs=1e-5)
    assert len(Journal(path, "k").outcomes) == 3 and Journal(path, "another key").outcomes == {}
    Journal(path, "k").finish()
    assert not path.exists()
