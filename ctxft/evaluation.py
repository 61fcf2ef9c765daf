"""A model and a benchmark go in; one outcome for each question comes out, and from the outcomes the metrics.

Outcomes carry the log-likelihoods themselves and a hash of the item, so that any later test can be made from the files
alone, and paired by item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ctxft.benchmarks import LETTERS, Benchmark, Question, render
from ctxft.outcomes import KEYS, RULES, Journal, read_outcomes, write_outcomes
from ctxft.runtime import InputError, check_known, sha256
from ctxft.scoring import ChoiceScores, Progress, generate_answers, parse_answer, score_choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["KEYS", "RULES", "Journal", "evaluate", "metrics", "read_outcomes", "write_outcomes"]

ROOM = 8  # tokens that a written answer may have beyond its longest label: marks, a line end


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    form: str = "options",
    token_budget: int | None = None,
    progress: Progress | None = None,
    rule: str = "likelihood",
    journal: Journal | None = None,
) -> list[dict]:
    """Let a model answer every question, by the log-likelihood of the choices or in its own words.

    "likelihood" records three predictions side by side: the highest sum of log-probabilities; the highest sum per
    character of the choice (without the space before it), and the highest sum per token, which do not favour short
    choices. A tie goes to the first choice. "generate", for models made to follow instructions, lets the model write its
    answer after it was told which answers there are, and reads it with ``parse_answer``; no answer is a wrong one.

    Args:
        model: a causal language model, plain or with a LoRA adapter.
        tokenizer: its tokenizer; with rule "generate" its chat template is used where it has one.
        benchmark: the questions.
        form: "options" scores the texts of the choices, "lettered" shows them and scores their letters.
        token_budget: padded tokens in one batch, None takes what suits the device; the result does not depend on it.
        progress: called with (contexts done, all contexts).
        rule: "likelihood" or "generate".
        journal: takes up each outcome at once, and those it already holds are not made again.

    Returns:
        For each question, in order: id, hash, prompt_hash (SHA-256 of the text before the answer), subject, answer,
        prediction (None if a written text gives no answer), correct, log_likelihoods (nats) and tokens of the choices
        (both empty if the answer is written), prediction_per_character, correct_per_character, prediction_per_token,
        correct_per_token (None if written), written (the text, or None), truncated (tokens cut from the left).

    Raises:
        InputError: a choice cannot be scored, or the model's log-likelihoods are not numbers; the question is named.

    Source:
        lm-evaluation-harness 0.4, metrics ``acc`` and ``acc_norm``.

    Example:
        >>> evaluate(model, tokenizer, load_benchmark("practice-mmlu"))[0]["correct"]  # doctest: +SKIP
        True
    """
    check_known(rule, RULES, "rule")
    found = dict(journal.outcomes) if journal else {}
    questions = [question for question in benchmark.questions if question.id not in found]
    requests = [render(question, form, benchmark.name) for question in questions]

    def keep(outcome: dict) -> None:
        found[outcome["id"]] = outcome
        if journal:
            journal.add(outcome)

    answer = _by_likelihood if rule == "likelihood" else _by_writing
    answer(model, tokenizer, benchmark, questions, requests, form, token_budget, progress, keep)
    return [found[question.id] for question in benchmark.questions]


Keep = Callable[[dict], None]


def _by_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    questions: Sequence[Question],
    requests: Sequence[tuple[str, list[str]]],
    form: str,
    token_budget: int | None,
    progress: Progress | None,
    keep: Keep,
) -> None:
    def scored(number: int, score: ChoiceScores) -> None:
        keep(_scored(questions[number], *requests[number], score))

    names = [f"{benchmark.name}, question '{question.id}'" for question in questions]
    options = {"token_budget": token_budget, "progress": progress, "names": names, "scored": scored}
    score_choices(model, tokenizer, requests, **options)


def _by_writing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    questions: Sequence[Question],
    requests: Sequence[tuple[str, list[str]]],
    form: str,
    token_budget: int | None,
    progress: Progress | None,
    keep: Keep,
) -> None:
    if not questions:
        return
    labels = [_labels(question, form) for question in questions]
    prompts = [_instruction(own) + context for own, (context, _) in zip(labels, requests, strict=True)]

    def answered(number: int, text: str, cut: int) -> None:
        question = questions[number]
        prediction = parse_answer(text, labels[number], question.choices)
        keep(_outcome(question, prompts[number], prediction, written=text, truncated=cut))

    # Of all questions, not of those that are left: going on must not change how much a model may write.
    every = {label for question in benchmark.questions for label in _labels(question, form)}
    longest = max(len(ids) for ids in tokenizer(sorted(every))["input_ids"])
    options = {"token_budget": token_budget, "progress": progress, "answered": answered}
    chat = bool(tokenizer.chat_template)
    generate_answers(model, tokenizer, prompts, max_new_tokens=longest + ROOM, chat=chat, **options)


def _labels(question: Question, form: str) -> Sequence[str]:
    return question.choices if form == "options" else LETTERS[: len(question.choices)]


def _instruction(labels: Sequence[str]) -> str:
    """Return the line that says which answers there are, which the question alone may not show."""
    return f"Answer with exactly one of these and nothing else: {'; '.join(labels)}\n\n"


def _scored(question: Question, context: str, continuations: Sequence[str], score: ChoiceScores) -> dict:
    found = score.log_likelihoods
    if any(math.isnan(value) for value in found):
        raise InputError(f"question '{question.id}': a log-likelihood is NaN, so the weights are broken: train anew.")
    others = {
        "per_character": _first_best([value / len(text[1:]) for value, text in zip(found, continuations, strict=True)]),
        "per_token": _first_best([value / count for value, count in zip(found, score.tokens, strict=True)]),
    }
    scores = {"log_likelihoods": found, "tokens": score.tokens, "truncated": score.truncated}
    return _outcome(question, context, _first_best(found), others, **scores)


def _outcome(
    question: Question, prompt: str, prediction: int | None, others: dict[str, int] | None = None, **values: object
) -> dict:
    row = dict.fromkeys(KEYS) | {"log_likelihoods": [], "tokens": []}
    row |= {"id": question.id, "hash": question.hash, "prompt_hash": sha256(prompt), "subject": question.subject}
    row |= {"answer": question.answer, "prediction": prediction, "correct": prediction == question.answer}
    for rule, choice in (others or {}).items():
        row |= {f"prediction_{rule}": choice, f"correct_{rule}": choice == question.answer}
    return row | values


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


def metrics(outcomes: Sequence[dict], benchmark: Benchmark) -> dict:
    """Summarise the outcomes of one model on one benchmark.

    Args:
        outcomes: from ``evaluate`` or ``read_outcomes``.
        benchmark: the questions they answer.

    Returns:
        n; accuracy (a share from 0 to 1), and of log-likelihoods accuracy_per_character and accuracy_per_token; chance and
        majority, the lines to beat; ties (items whose two best log-likelihoods are exactly equal); unanswered (items with
        no answer, counted as wrong); truncated_items; by_subject, {"n", "accuracy"} for each; where
        all questions share their choices, also macro_f1 (the mean of the classes' F1, a share) and majority_macro_f1.

    Raises:
        InputError: the outcomes are not those of exactly these questions.
    """
    expected = [(question.id, question.hash) for question in benchmark.questions]
    if [(outcome["id"], outcome["hash"]) for outcome in outcomes] != expected:
        raise InputError(
            f"the {len(outcomes)} outcomes are not those of the {len(expected)} questions of '{benchmark.name}':"
            " evaluate again."
        )
    subjects = dict.fromkeys(outcome["subject"] for outcome in outcomes)
    by_subject = {subject: [o for o in outcomes if o["subject"] == subject] for subject in subjects}
    return {
        **_f1(outcomes, benchmark),
        "n": len(outcomes),
        "accuracy": _share(outcomes, "correct"),
        **_other_rules(outcomes),
        "chance": benchmark.chance,
        "majority": benchmark.majority,
        "ties": sum(_tied(outcome["log_likelihoods"]) for outcome in outcomes),
        "unanswered": sum(outcome["prediction"] is None for outcome in outcomes),
        "truncated_items": sum(outcome["truncated"] > 0 for outcome in outcomes),
        "by_subject": {s: {"n": len(part), "accuracy": _share(part, "correct")} for s, part in by_subject.items()},
    }


def _f1(outcomes: Sequence[dict], benchmark: Benchmark) -> dict[str, float]:
    """Return the macro F1 of the predictions, and of always naming the commonest class; a class never named has F1 0."""
    if benchmark.labels is None:
        return {}
    from sklearn.metrics import f1_score  # a second to import, and few benchmarks need it

    right, classes = [outcome["answer"] for outcome in outcomes], list(range(len(benchmark.labels)))
    options = {"labels": classes, "average": "macro", "zero_division": 0.0}
    commonest = [max(classes, key=right.count)] * len(right)
    said = [-1 if outcome["prediction"] is None else outcome["prediction"] for outcome in outcomes]
    found = f1_score(right, said, **options)
    return {"macro_f1": float(found), "majority_macro_f1": float(f1_score(right, commonest, **options))}


def _other_rules(outcomes: Sequence[dict]) -> dict[str, float]:
    """Return the accuracies of the rules that count length; a written answer has none."""
    if not all(outcome["log_likelihoods"] for outcome in outcomes):
        return {}
    return {f"accuracy_{rule}": _share(outcomes, f"correct_{rule}") for rule in ("per_character", "per_token")}


def _share(outcomes: Sequence[dict], key: str) -> float:
    return sum(outcome[key] for outcome in outcomes) / len(outcomes)


def _tied(values: Sequence[float]) -> bool:
    best = sorted(values, reverse=True)[:2]
    return len(best) == 2 and best[0] == best[1]
