"""Metrics against numbers worked out by hand, and the published label counts of Causal20."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from ctxft.evaluation.benchmarks import Benchmark, Question, load_benchmark
from ctxft.evaluation.metrics import calibration, label_metrics, metrics
from ctxft.storage import InputError


def make(
    right: list[int], said: list[int], choices: tuple[str, ...], subjects: str | None = None
) -> tuple[list, Benchmark]:
    """Return outcomes of a model that is sure of what it said, and their benchmark."""
    questions = tuple(
        Question(str(n), "Which?", choices, answer, subjects[n] if subjects else "all")
        for n, answer in enumerate(right)
    )
    outcomes = [
        {
            "id": q.id,
            "hash": q.hash,
            "subject": q.subject,
            "answer": q.answer,
            "prediction": p,
            "correct": p == q.answer,
        }
        | {"correct_per_character": False, "correct_per_token": False, "truncated": 0}
        | {"log_likelihoods": [0.0 if c == p else -9.0 for c in range(len(choices))]}
        for q, p in zip(questions, said, strict=True)
    ]
    return outcomes, Benchmark("labels", questions, "a test")


def test_the_numbers_of_a_multiple_choice_exam() -> None:
    outcomes, benchmark = make([1, 0, 1], [0, 0, 1], ("a", "b"), "xyy")
    questions = (*benchmark.questions[:2], Question("2", "Which?", ("c", "d", "e"), 1, "y"))
    benchmark = Benchmark("mixed", questions, "a test")
    outcomes[1] |= {"log_likelihoods": [-1.0, -1.0], "truncated": 3}
    outcomes[2] |= {"hash": questions[2].hash, "correct_per_character": True}
    for outcome in outcomes[:2]:
        outcome["correct_per_token"] = True
    found = metrics(outcomes, benchmark)
    calibrated = found.pop("calibration")
    assert found == {
        "n": 3,
        "accuracy": pytest.approx(2 / 3),
        "accuracy_per_character": pytest.approx(1 / 3),
        "accuracy_per_token": pytest.approx(2 / 3),
        "chance": pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3),
        "majority": pytest.approx(2 / 3),
        "ties": 1,
        "unanswered": 0,
        "truncated_items": 1,
        "repeated_items": 0,
        "by_subject": {"x": {"n": 1, "accuracy": 0.0}, "y": {"n": 2, "accuracy": 1.0}},
    }
    assert [b["n"] for b in calibrated["bins"]] == [1, 2]


def test_the_classes_of_labelled_texts() -> None:
    """By hand: classes a, b, c; right a a b c, said a b b a. F1: a 2/(2+1+1), b 2/(2+1), c 0."""
    outcomes, benchmark = make([0, 0, 1, 2], [0, 1, 1, 0], ("a", "b", "c"))
    found = metrics(outcomes, benchmark)
    assert benchmark.labels == ("a", "b", "c") and found["accuracy"] == 0.5
    assert found["per_class_f1"] == {"a": pytest.approx(1 / 2), "b": pytest.approx(2 / 3), "c": 0.0}
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert found["weighted_f1"] == pytest.approx((2 * 1 / 2 + 2 / 3 + 0) / 4)
    assert found["majority_macro_f1"] == pytest.approx((2 * 2 / (2 * 2 + 2) + 0 + 0) / 3)  # always a: F1 of a is 2/3
    assert found["majority_weighted_f1"] == pytest.approx(2 / 4 * 2 / 3)
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    # Guessing names each class 4/3 times: F1 of a class with n items is 2 (n/3) / (n + 4/3).
    assert found["chance_macro_f1"] == pytest.approx((2 * (2 / 3) / (2 + 4 / 3) + 2 * 2 * (1 / 3) / (1 + 4 / 3)) / 3)
    # Correlation by hand from the table: (right - sum of products) over the root of both spreads.
    assert found["mcc"] == pytest.approx((2 * 4 - (2 * 2 + 1 * 2)) / math.sqrt((16 - 8) * (16 - 6)))


def test_no_answer_is_missing_from_its_class_and_counts_against_no_other() -> None:
    """By hand: right a a a b b, said a - - b a. F1: a 2/(3+2), b 2/(2+1)."""
    found = label_metrics([0, 0, 0, 1, 1], [0, None, None, 1, 0], ("a", "b"))
    assert found["per_class_f1"] == {"a": pytest.approx(2 / 5), "b": pytest.approx(2 / 3)}
    assert found["macro_f1"] == pytest.approx((2 / 5 + 2 / 3) / 2)
    assert found["weighted_f1"] == pytest.approx((3 * 2 / 5 + 2 * 2 / 3) / 5)
    assert found["confusion"] == [[1, 0], [1, 1]]
    # Three classes named, "none" among them: right 2 of 5; (2 * 5 - (3 * 2 + 2 * 1)) over the root of both spreads.
    assert found["mcc"] == pytest.approx((2 * 5 - (3 * 2 + 2 * 1)) / math.sqrt((25 - 13) * (25 - 9)))
    silent = label_metrics([0, 1], [None, None], ("a", "b"))
    assert (silent["macro_f1"], silent["mcc"], silent["confusion"]) == (0.0, 0.0, [[0, 0], [0, 0]])


def test_written_answers_have_no_calibration() -> None:
    outcomes, benchmark = make([0, 1], [0, 1], ("a", "b"))
    for outcome, prediction in zip(outcomes, (0, None), strict=True):
        outcome |= {"log_likelihoods": [], "prediction": prediction, "correct": prediction == outcome["answer"]}
    found = metrics(outcomes, benchmark)
    assert (found["accuracy"], found["unanswered"], found["macro_f1"]) == (0.5, 1, 0.5)
    assert "calibration" not in found and "accuracy_per_token" not in found
    with pytest.raises(InputError, match="calibration needs log-likelihoods, which generated answers lack"):
        calibration(outcomes)


def test_a_class_that_nobody_asks_for_keeps_its_name() -> None:
    found = label_metrics([0, 0], [0, 2], ("a", "b", "c"))
    assert list(found["per_class_f1"]) == ["a", "b", "c"] and found["confusion"] == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_weighted_f1_is_blind_on_causal20() -> None:
    """Always "noise", on the label counts of FinCausal 2020, task 1, trial: 8011 noise, 569 causal."""
    outcomes, benchmark = make([1] * 8011 + [0] * 569, [1] * 8580, ("causal", "noise"))
    found = metrics(outcomes, benchmark)
    assert [round(found[key], 3) for key in ("accuracy", "weighted_f1", "macro_f1")] == [0.934, 0.902, 0.483]
    assert (found["majority"], found["majority_weighted_f1"], found["majority_macro_f1"]) == (
        found["accuracy"],
        found["weighted_f1"],
        found["macro_f1"],
    )
    assert found["mcc"] == 0.0 and found["per_class_f1"]["causal"] == 0.0


@pytest.mark.skipif("CTXFT_REAL_DATA" not in os.environ, reason="CTXFT_REAL_DATA names no folder of real data")
def test_weighted_f1_is_blind_on_the_published_file() -> None:
    benchmark = load_benchmark("causal20", Path(os.environ["CTXFT_REAL_DATA"]))
    said = benchmark.labels.index("noise")
    outcomes = [
        {
            "id": q.id,
            "hash": q.hash,
            "subject": "all",
            "answer": q.answer,
            "prediction": said,
            "correct": q.answer == said,
        }
        | dict.fromkeys(("correct_per_character", "correct_per_token"), q.answer == said)
        | {"truncated": 0, "log_likelihoods": [-1.0, 0.0]}
        for q in benchmark.questions
    ]
    found = metrics(outcomes, benchmark)
    for key, line, value in (
        ("accuracy", "majority", 0.934),
        ("weighted_f1", "majority_weighted_f1", 0.902),
        ("macro_f1", "majority_macro_f1", 0.483),
    ):
        assert found[key] == found[line] and round(found[key], 3) == value


def test_calibration_by_hand() -> None:
    def item(odds: float, correct: bool) -> dict:
        return {"log_likelihoods": [math.log(odds), 0.0], "prediction": 0, "correct": correct}

    # Three items at 0.75, of which two are right, and one at 0.96 that is wrong.
    found = calibration([item(3, True), item(3, True), item(3, False), item(24, False)])
    assert [(b["from"], b["n"]) for b in found["bins"]] == [(0.7, 3), (0.9, 1)]
    assert found["bins"][0]["confidence"] == pytest.approx(0.75)
    assert found["ece"] == pytest.approx(3 / 4 * abs(0.75 - 2 / 3) + 1 / 4 * 0.96)
    sure = calibration([{"log_likelihoods": [0.0, -800.0], "prediction": 0, "correct": True}])
    assert sure == {"ece": 0.0, "bins": [{"from": 0.9, "n": 1, "confidence": 1.0, "accuracy": 1.0}]}


def test_the_outcomes_of_other_questions_are_refused() -> None:
    outcomes, benchmark = make([0, 1, 1], [0, 1, 1], ("yes", "no"))
    changed = Benchmark(
        "labels", (*benchmark.questions[:2], Question("2", "Other?", ("yes", "no"), 1, "all")), "a test"
    )
    for questions in (changed, benchmark.only({"0", "1"})):
        with pytest.raises(InputError, match=r"the 3 outcomes are not those of the . questions of 'labels'"):
            metrics(outcomes, questions)
