"""Outcomes and metrics: predictions by both rules, ties, cut items, files, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ctxft import evaluation
from ctxft.benchmarks import FORMS, Benchmark, Question
from ctxft.evaluation import KEYS, evaluate, read_outcomes, write_outcomes
from ctxft.metrics import metrics
from ctxft.runtime import InputError
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
    monkeypatch.setattr(evaluation, "score_choices", lambda *a, **k: scores)
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
    with pytest.raises(InputError, match=r"mine.jsonl, line 1: an outcome lacks hash, subject"):
        read_outcomes(path)
