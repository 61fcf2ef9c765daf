"""Outcomes and metrics: predictions by both rules, ties, cut items, files, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ctxft.config import EvaluationConfig as Options
from ctxft.evaluation.benchmarks import FORMS, Benchmark, Question, render, requests_of
from ctxft.evaluation.evaluate import evaluate
from ctxft.evaluation.metrics import metrics
from ctxft.evaluation.outcomes import (
    KEYS,
    outcome_of,
    read_outcomes,
    write_outcomes,
)
from ctxft.evaluation.scoring import ChoiceScores, Generated
from ctxft.storage import InputError, RecordLog, sha256
from ctxft.world.facts import model_folder

torch.set_num_threads(1)
CHAT = "{{ bos_token }}{% for m in messages %}Someone asks: {{ m.content }}{% endfor %} You say:"
OUTPUT_TYPES = ("loglikelihood", "generate_until")
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


def score_as(*rows: list[float]) -> list[dict]:
    """Return the outcomes of the given log-likelihoods."""
    pairs = zip(QUESTIONS, requests_of(BENCHMARK, Options()), rows, strict=True)
    return [outcome_of(q, *request, ChoiceScores(row, [1] * len(row), 0)) for q, request, row in pairs]


def test_predictions_by_sum_and_per_character() -> None:
    # "short" has 5 characters and "a much longer choice" 20: -3/5 < -8/20, so the two rules part on the first question.
    first, second, third = score_as([-3.0, -8.0], [-1.0, -1.0, -2.0], [-4.0, -3.0])
    assert list(first) == list(KEYS)
    assert (first["prediction"], first["correct"]) == (0, False)
    assert (first["prediction_per_character"], first["correct_per_character"]) == (1, True)
    assert (second["prediction"], second["correct"]) == (0, True)  # a tie goes to the first
    assert (third["prediction"], third["prediction_per_character"]) == (1, 0)  # -3/2 < -4/3
    assert first["hash"] == QUESTIONS[0].hash and [row["choices"] for row in (first, second, third)] == [2, 3, 2]


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="question 'b': a log-likelihood is NaN"):
        score_as([-3.0, -8.0], [-1.0, math.nan, -2.0], [-4.0, -3.0])


@pytest.mark.parametrize("form", FORMS)
def test_a_model_answers_and_the_files_keep_its_outcomes(tokenizer, tmp_path: Path, form: str) -> None:
    model = make_model(tokenizer)
    outcomes = evaluate(model, tokenizer, BENCHMARK, Options(form=form))
    assert [len(o["log_likelihoods"]) for o in outcomes] == [2, 3, 2]
    assert all(value < 0 for o in outcomes for value in o["log_likelihoods"])
    assert read_outcomes(write_outcomes(tmp_path / "mine.jsonl", outcomes)) == outcomes
    assert metrics(outcomes, BENCHMARK)["truncated_items"] == 0
    if form == "mcf":  # letters have one character each, so both rules agree
        assert all(o["prediction"] == o["prediction_per_character"] for o in outcomes)


def test_cut_items_are_counted(tokenizer) -> None:
    outcomes = evaluate(make_model(tokenizer, window=16), tokenizer, BENCHMARK)
    assert metrics(outcomes, BENCHMARK)["truncated_items"] > 0


def test_a_choice_that_cannot_be_scored_names_its_question(tokenizer) -> None:
    with pytest.raises(InputError, match="mine, question 'a': a choice has"):
        evaluate(make_model(tokenizer, window=4), tokenizer, BENCHMARK)


def test_broken_outcome_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a"}\n')
    with pytest.raises(InputError, match=r"mine.jsonl, line 1: an outcome lacks hash, prompt_hash, subject"):
        read_outcomes(path)


def test_generated_answers_are_read_strictly() -> None:
    requests = requests_of(BENCHMARK, Options(output_type="generate_until"))
    answers = ["A much longer choice.", "one or two", " yes"]
    pairs = enumerate(zip(QUESTIONS, requests, answers, strict=True))
    first, second, third = outcomes = [outcome_of(q, *request, Generated(text, n)) for n, (q, request, text) in pairs]
    assert "these and nothing else: short; a much longer choice\n\nQuestion: Which is long?" in requests[0][0]
    assert (first["prediction"], first["correct"], first["written"]) == (1, True, "A much longer choice.")
    assert (second["prediction"], second["correct"]) == (None, False) and second["correct_per_token"] is None
    assert (third["prediction"], third["correct"]) == (0, False)
    assert [row["truncated"] for row in outcomes] == [0, 1, 2]
    assert [row["prompt_hash"] for row in outcomes] == [sha256(context) for context, _ in requests]
    assert list(first) == list(KEYS) and first["log_likelihoods"] == first["tokens"] == []
    summary = metrics(outcomes, BENCHMARK)
    assert (summary["accuracy"], summary["unanswered"], summary["ties"]) == (pytest.approx(1 / 3), 1, 0)
    assert not {"accuracy_per_character", "accuracy_per_token", "calibration"} & set(summary)
    lettered = requests_of(BENCHMARK, Options(form="mcf", output_type="generate_until"))
    pairs = zip(QUESTIONS, lettered, ["B", "(A)", "B. no"], strict=True)
    assert all(outcome_of(question, *request, Generated(text))["correct"] for question, request, text in pairs)
    assert "nothing else: A; B; C\n\nQuestion: Which is first?\nA. one" in lettered[1][0]


@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
def test_the_chat_template_is_used_where_it_is_asked_for_and_once(output_type: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder("practice-blind"))
    model, read = make_model(tokenizer), []
    model.register_forward_pre_hook(lambda _module, _args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True)
    with pytest.raises(InputError, match="no chat template"):
        evaluate(model, tokenizer, BENCHMARK, Options(output_type=output_type, apply_chat_template=True))
    tokenizer.chat_template = CHAT
    hashes = []
    for chat in (False, True):
        read.clear()
        asked = Options(output_type=output_type, apply_chat_template=chat)
        outcomes = evaluate(model, tokenizer, BENCHMARK.only({"a"}), asked)
        hashes.append(outcomes[0]["prompt_hash"])
        texts = [tokenizer.decode(ids[0]) for ids in read]
        text = next(text for text in texts if "Which is long?" in text)  # the scorer tries the model on other ids first
        assert text.count("Someone asks:") == text.count("You say:") == chat
        assert text.count("Which is long?") == 1 and text.count(tokenizer.bos_token) == 1
    assert hashes[0] != hashes[1]


def test_a_prediction_per_token_and_the_hash_of_the_prompt(tokenizer) -> None:
    for question, outcome in zip(QUESTIONS, evaluate(make_model(tokenizer), tokenizer, BENCHMARK), strict=True):
        means = [value / count for value, count in zip(outcome["log_likelihoods"], outcome["tokens"], strict=True)]
        assert outcome["prediction_per_token"] == means.index(max(means))
        assert outcome["correct_per_token"] == (outcome["prediction_per_token"] == question.answer)
        assert outcome["prompt_hash"] == sha256(render(question, "cloze")[0]) and outcome["written"] is None


@pytest.mark.parametrize("form", FORMS)
def test_a_model_writes_its_answers(tokenizer, tmp_path: Path, form: str) -> None:
    outcomes = evaluate(make_model(tokenizer), tokenizer, BENCHMARK, Options(form=form, output_type="generate_until"))
    assert all(isinstance(outcome["written"], str) for outcome in outcomes)
    assert read_outcomes(write_outcomes(tmp_path / "mine.jsonl", outcomes)) == outcomes


@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
def test_a_killed_evaluation_goes_on_from_what_is_on_disk(tokenizer, tmp_path: Path, output_type: str) -> None:
    model, path = make_model(tokenizer), tmp_path / "mine.partial"
    expected = evaluate(model, tokenizer, BENCHMARK, Options(output_type=output_type))

    class Killed(RecordLog):
        def add(self, key: str, value: object) -> bool:
            super().add(key, value)
            raise InterruptedError

    with pytest.raises(InterruptedError), Killed(path, "k") as log:  # a batch for each question
        evaluate(model, tokenizer, BENCHMARK, Options(max_batch_tokens=1, output_type=output_type), log)
    with path.open("a") as file:
        file.write('[{"id": "c", "answer": ')  # half a line, as a kill leaves it
    with RecordLog(path, "k") as log:
        (first,) = log.records
        log.records[first]["mark"] = True
        again = evaluate(model, tokenizer, BENCHMARK, Options(output_type=output_type), log)
    assert [outcome["id"] for outcome in again if "mark" in outcome] == [first]  # taken from disk, not made again
    for a, b in zip(again, expected, strict=True):
        assert a["prediction"] == b["prediction"] and a["written"] == b["written"]
        assert a["log_likelihoods"] == pytest.approx(b["log_likelihoods"], abs=1e-5)
    with RecordLog(path, "k") as log:
        assert len(log.records) == 3
