"""Evaluate a model on a benchmark: one outcome for each question.

A log of outcomes makes an evaluation resumable: a killed one continues with the first question that it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ctxft.config import EvaluationConfig
from ctxft.evaluation.benchmarks import Benchmark, requests_of
from ctxft.evaluation.outcomes import Outcome, outcome_of
from ctxft.evaluation.scoring import encode_texts, generate_answers, score_choices
from ctxft.storage import InputError, RecordLog

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXTRA_TOKENS = 8  # that a generated answer may have beyond its longest label: marks, a line end


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    options: EvaluationConfig | None = None,
    log: RecordLog | None = None,
) -> list[Outcome]:
    """Let a model answer every question, by the log-likelihood of the choices or in its own words.

    Args:
        model: a causal language model, plain or with a LoRA adapter.
        tokenizer: its tokenizer.
        benchmark: the questions.
        options: how they are put (see ``requests_of``) and answered: output_type "loglikelihood" takes the choice with the
            highest log-likelihood; "generate_until", for models that follow instructions, lists the possible answers,
            lets the model generate one and reads it with ``parse_answer``; no answer is a wrong one. The result does not
            depend on max_batch_tokens. None takes the defaults.
        log: takes each outcome at once, and those that it holds are kept.

    Returns:
        An ``Outcome`` for each question, in order.

    Raises:
        InputError: a choice cannot be scored, or the model's log-likelihoods are not numbers (the question is named);
            solved examples or a chat template are missing.

    Source:
        lm-evaluation-harness 0.4, metrics ``acc`` and ``acc_norm``.

    Example:
        >>> evaluate(model, tokenizer, load_benchmark("practice-mmlu"))[0]["correct"]  # doctest: +SKIP
        True
    """
    options = options or EvaluationConfig()
    requests = requests_of(benchmark, options, tokenizer)
    outcomes: dict[str, Any] = dict(log.records) if log else {}
    pairs = zip(benchmark.questions, requests, strict=True)
    due = [(question, *request) for question, request in pairs if question.id not in outcomes]

    def keep(number: int, result: Any) -> None:
        outcome = outcomes[due[number][0].id] = outcome_of(*due[number], result)
        if log:
            log.add(outcome["id"], outcome)

    chosen: dict[str, Any] = {"max_batch_tokens": options.max_batch_tokens, "chat": options.apply_chat_template}
    if options.output_type == "generate_until":
        room, contexts = answer_tokens(tokenizer, requests), [context for _, context, _ in due]
        try:
            generate_answers(model, tokenizer, contexts, room, done=keep, **chosen)
        except InputError as error:
            raise InputError(f"{benchmark.name}: {error}") from None
    else:
        names = [f"{benchmark.name}, question '{question.id}'" for question, _, _ in due]
        pairs = [(context, texts) for _, context, texts in due]
        score_choices(model, tokenizer, pairs, names=names, done=keep, **chosen)
    return [outcomes[question.id] for question in benchmark.questions]


def answer_tokens(tokenizer: PreTrainedTokenizerBase, requests: Sequence[tuple[str, list[str]]]) -> int:
    """Return how many tokens a generated answer may have: those of the longest label of all questions, and a few more.

    Args:
        tokenizer: counts them.
        requests: from ``requests_of``, of the whole benchmark: resuming a part of it must change no answer.
    """
    texts = [text for _, continuations in requests for text in continuations]
    return max(map(len, encode_texts(tokenizer, texts))) + EXTRA_TOKENS
