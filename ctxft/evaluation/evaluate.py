"""A model and a benchmark go in; one outcome for each question comes out.

Outcomes carry the log-likelihoods themselves and a hash of the item, so that any later test can be made from the files
alone, and paired by item.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ctxft.data.chat import unguarded
from ctxft.evaluation.benchmarks import Benchmark, Question, requests_of
from ctxft.evaluation.outcomes import KEYS, RULES, Journal
from ctxft.evaluation.scoring import ChoiceScores, Progress, generate_answers, parse_answer, score_choices
from ctxft.evaluation.scoring.encoding import encode_texts
from ctxft.storage import InputError, check_known, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOM = 8  # tokens that a written answer may have beyond its longest label: marks, a line end
Asked = tuple[Question, str, list[str]]  # a question, the text before the answer, what is scored or told as an answer
Keep = Callable[[dict], None]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    form: str = "cloze",
    token_budget: int | None = None,
    progress: Progress | None = None,
    shots: int = 0,
    chat_template: bool = False,
    rule: str = "loglikelihood",
    journal: Journal | None = None,
) -> list[dict]:
    """Let a model answer every question, by the log-likelihood of the choices or in its own words.

    "loglikelihood" records three predictions side by side: the highest sum of log-probabilities; the highest sum per
    character of the choice (without the space before it), and the highest sum per token, which do not favour short
    choices. A tie goes to the first choice. "generate_until", for models made to follow instructions, tells which answers there
    are, lets the model write one and reads it with ``parse_answer``; no answer is a wrong one.

    Args:
        model: a causal language model, plain or with a LoRA adapter.
        tokenizer: its tokenizer.
        benchmark: the questions.
        form: "cloze" scores the texts of the choices, "mcf" shows them and scores their letters, "labels" names
            the labels and scores them; a benchmark with a form of its own keeps that.
        token_budget: padded tokens in one batch, None takes what suits the device; the result does not depend on it.
        progress: called with (contexts done, all contexts).
        shots, chat_template: solved questions shown before each, and whether all stands in the tokenizer's chat template;
            they mean the same by both rules.
        rule: "loglikelihood" or "generate_until".
        journal: takes up each outcome at once, and those it already holds are not made again.

    Returns:
        For each question, in order: id, hash, prompt_hash (SHA-256 of the text before the answer), subject, choices (how
        many), answer, prediction (None if a written text gives no answer), correct, log_likelihoods (nats) and tokens of
        the choices (both empty if the answer is written), prediction_per_character, correct_per_character,
        prediction_per_token, correct_per_token (None if written), written (the text, or None), truncated (tokens cut from
        the left).

    Raises:
        InputError: a choice cannot be scored, or the model's log-likelihoods are not numbers (the question is named);
            solved questions or a chat template are lacking.

    Source:
        lm-evaluation-harness 0.4, metrics ``acc`` and ``acc_norm``.

    Example:
        >>> evaluate(model, tokenizer, load_benchmark("practice-mmlu"))[0]["correct"]  # doctest: +SKIP
        True
    """
    written = check_known(rule, RULES, "rule") == "generate_until"
    requests = requests_of(benchmark, form, shots, tokenizer if chat_template else None, written)
    found = dict(journal.outcomes) if journal else {}
    pairs = zip(benchmark.questions, requests, strict=True)
    asked = [(question, *request) for question, request in pairs if question.id not in found]

    def keep(outcome: dict) -> None:
        found[outcome["id"]] = outcome
        if journal:
            journal.add(outcome)

    options = {"token_budget": token_budget, "progress": progress, "chat": chat_template}
    if written:
        options["max_new_tokens"] = answer_room(tokenizer, requests)
        _by_writing(functools.partial(generate_answers, model, tokenizer, **options), benchmark.name, asked, keep)
    else:
        _by_likelihood(functools.partial(score_choices, model, tokenizer, **options), benchmark.name, asked, keep)
    return [found[question.id] for question in benchmark.questions]


def _by_likelihood(score_all: Callable, name: str, asked: Sequence[Asked], keep: Keep) -> None:
    def scored(number: int, score: ChoiceScores) -> None:
        keep(scored_outcome(*asked[number], score))

    names = [f"{name}, question '{question.id}'" for question, _, _ in asked]
    requests = [(context, continuations) for _, context, continuations in asked]
    score_all(requests, names=names, scored=scored)


def _by_writing(write_all: Callable, name: str, asked: Sequence[Asked], keep: Keep) -> None:
    def answered(number: int, text: str, cut: int) -> None:
        keep(written_outcome(*asked[number], text, cut))

    prompts = [context for _, context, _ in asked]
    try:
        write_all(prompts, answered=answered)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def answer_room(tokenizer: PreTrainedTokenizerBase, requests: Sequence[tuple[str, list[str]]]) -> int:
    """Return the tokens that a written answer may have: those of the longest label of all questions, and ``ROOM``.

    Args:
        tokenizer: counts them.
        requests: from ``requests_of``, of the whole benchmark: going on with a part of it must change no answer.
    """
    return max(map(len, encode_texts(tokenizer, [text for _, texts in requests for text in texts]))) + ROOM


def written_outcome(question: Question, context: str, continuations: Sequence[str], text: str, cut: int = 0) -> dict:
    """Return the outcome of a question that a model answered in its own words.

    Args:
        question: the record.
        context, continuations: its request, from ``requests_of``.
        text: what the model wrote; "" where nothing came.
        cut: tokens cut from the left of the context.

    Returns:
        As ``evaluate`` with rule "generate_until".
    """
    prediction = parse_answer(text, [unguarded(label).removeprefix(" ") for label in continuations], question.choices)
    return _outcome(question, context, prediction, written=text, truncated=cut)


def scored_outcome(question: Question, context: str, continuations: Sequence[str], score: ChoiceScores) -> dict:
    """Return the outcome of a question whose choices were scored; arguments as ``written_outcome``, result as ``evaluate``.

    Raises:
        InputError: a log-likelihood is not a number.
    """
    found = score.log_likelihoods
    if any(math.isnan(value) for value in found):
        raise InputError(f"question '{question.id}': a log-likelihood is NaN, so the weights are broken: train anew.")
    characters = [len(unguarded(text).removeprefix(" ")) for text in continuations]
    others = {
        rule: _first_best([value / size for value, size in zip(found, sizes, strict=True)])
        for rule, sizes in {"per_character": characters, "per_token": score.tokens}.items()
    }
    scores = {"log_likelihoods": found, "tokens": score.tokens, "truncated": score.truncated}
    return _outcome(question, context, _first_best(found), others, **scores)


def _outcome(
    question: Question, context: str, prediction: int | None, others: dict[str, int] | None = None, **values: object
) -> dict:
    row = dict.fromkeys(KEYS) | {"log_likelihoods": [], "tokens": []}
    row |= {"id": question.id, "hash": question.hash, "prompt_hash": sha256(context), "subject": question.subject}
    row |= {"choices": len(question.choices), "answer": question.answer}
    row |= {"prediction": prediction, "correct": prediction == question.answer}
    for rule, choice in (others or {}).items():
        row |= {f"prediction_{rule}": choice, f"correct_{rule}": choice == question.answer}
    return row | values


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])
