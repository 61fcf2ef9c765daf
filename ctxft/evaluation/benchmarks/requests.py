"""Write questions as the prompts that a model reads and the continuations that are scored.

The prompts of multiple choice and of PubMedQA are word for word those of lm-evaluation-harness, with few-shot examples
too, so that results can be compared with published ones.

    [description]\n\n  [example]\n\n [example]\n\n  [question]     the description: MMLU's line on the subject, or the labels
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctxft.config import EvaluationConfig
from ctxft.data.chat import guarded, rendered
from ctxft.evaluation.benchmarks.records import DATA_ERRORS, JINJA, LETTERS, Benchmark, Question, Wording
from ctxft.storage import InputError, check_known, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ABSTRACT = "{% if context %}Abstract: {{ context }}\n{% endif %}"
FORMS = {  # form -> the question up to "Answer:"
    "mcf": ABSTRACT + "Question: {{ question }}\n{{ lettered }}Answer:",
    "cloze": ABSTRACT + "Question: {{ question | trim }}\nAnswer:",
    "labels": ABSTRACT + "{{ 'Question' if context else 'Text' }}: {{ question }}\nAnswer:",
}
DESCRIPTION = {  # a question about a text, such as PubMedQA's, says itself what is wanted
    "labels": "{% if not context %}{{ task }}. Answer with {{ choices[:-1] | join(', ') }} or {{ choices[-1] }}.\n\n{% endif %}"
}


def style_of(benchmark: Benchmark, options: EvaluationConfig) -> str:
    """Return in words how a benchmark's questions are put; scores of two styles cannot be compared.

    Example:
        >>> style_of(Benchmark("own", (), "a file"), EvaluationConfig(form="mcf", num_fewshot=5))
        'mcf, 5-shot'
    """
    parts = {
        f"{options.num_fewshot}-shot": options.num_fewshot,
        "chat template": options.apply_chat_template,
        "written answers": options.output_type == "generate_until",
    }
    return ", ".join([benchmark.form or options.form, *(part for part, holds in parts.items() if holds)])


def render(
    question: Question,
    form: str,
    wording: Wording | None = None,
    examples: Sequence[Question] = (),
    generated: bool = False,
) -> tuple[str, list[str]]:
    """Write a question as a context and the continuations to score.

    Args:
        question: the record.
        form: "mcf" shows the choices and scores their letters; "cloze" hides them and scores their texts; "labels"
            names the labels first, then gives the text, and scores the labels.
        wording: of the benchmark, None for the default one; MMLU's has a line about the subject before the question.
        examples: solved ones that are shown before the question.
        generated: a line before the question lists the possible answers, for a model that generates its own.

    Returns:
        (context, continuations), each continuation with the space before it.

    Raises:
        InputError: the form is unknown.

    Source:
        lm-evaluation-harness 0.4.13, tasks ``mmlu_<subject>``, ``mmlu_<subject>_continuation``, ``medqa_4options``,
        ``medmcqa`` and ``pubmedqa``, word for word; the "cloze" form of MedQA and MedMCQA is that of MMLU without the
        subject line. The instructions of the "labels" form are our own, so scores need not equal those made with others.

    Example:
        >>> render(Question("1", "Which?", ("this", "that"), 0, "all"), "cloze")
        ('Question: Which?\\nAnswer:', [' this', ' that'])
    """
    check_known(form, FORMS, "form")
    wording = wording or Wording()
    choices = _choices(question, form)
    parts = [_filled((DESCRIPTION | wording.description).get(form, ""), question, wording)]
    template = (FORMS | wording.question)[form]
    parts += [f"{_filled(template, e, wording)} {_choices(e, form)[e.answer]}\n\n" for e in examples]
    if generated:
        parts.append(f"Answer with exactly one of these and nothing else: {'; '.join(choices)}\n\n")
    return "".join([*parts, _filled(template, question, wording)]), [f" {choice}" for choice in choices]


def examples_for(benchmark: Benchmark, question: Question, num_fewshot: int) -> Sequence[Question]:
    """Return the solved examples that are shown before a question; raises InputError where there are fewer."""
    own = benchmark.wording.fewshot_by_subject
    examples = [example for example in benchmark.dev if not own or example.subject == question.subject]
    if len(examples) < num_fewshot:
        raise InputError(
            f"benchmark '{benchmark.name}' has {len(examples)} solved examples to show, but {num_fewshot} are wanted: set"
            f" evaluation.num_fewshot to at most {len(examples)} for it."
        )
    return examples[:num_fewshot]


def requests_of(
    benchmark: Benchmark, options: EvaluationConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[tuple[str, list[str]]]:
    """Write all questions of a benchmark as a model reads them.

    Args:
        benchmark: the questions, with at least ``num_fewshot`` solved examples in ``dev`` for each.
        options: form (a benchmark with one of its own keeps that), num_fewshot, apply_chat_template and output_type.
        tokenizer: has the chat template that makes everything one turn of the user; None leaves the text plain.

    Returns:
        (context, continuations) for each question. After a chat template continuations have no space before them, as in
        lm-evaluation-harness; unlike there, MMLU's line about the subject stays in the user's turn, since not every
        template has a system turn; and where a question spells a control token it is guarded (``ctxft.data.chat``).

    Raises:
        InputError: the form is unknown, solved examples are missing, or the tokenizer has no chat template.

    Example:
        >>> own = Benchmark("own", (Question("1", "Which?", ("this", "that"), 0, "all"),), "a file")
        >>> requests_of(own, EvaluationConfig(form="cloze"))
        [('Question: Which?\\nAnswer:', [' this', ' that'])]
    """
    if not options.apply_chat_template:
        tokenizer = None
    if tokenizer is not None:
        require_chat_template(tokenizer)
    form, generated, requests = benchmark.form or options.form, options.output_type == "generate_until", []
    for question in benchmark.questions:
        examples = examples_for(benchmark, question, options.num_fewshot)
        context, continuations = render(question, form, benchmark.wording, examples, generated)
        if tokenizer is not None:
            context = rendered(tokenizer, [{"role": "user", "content": context}], answer=True)
            continuations = [guarded(tokenizer, text.removeprefix(" ")) for text in continuations]
        requests.append((context, continuations))
    return requests


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if a tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise InputError("the model's tokenizer has no chat template: set evaluation.apply_chat_template to false.")


def _choices(question: Question, form: str) -> list[str]:
    return list(LETTERS[: len(question.choices)]) if form == "mcf" else list(question.choices)


_compiled = functools.lru_cache(maxsize=256)(JINJA.from_string)


def _filled(template: str, question: Question, wording: Wording) -> str:
    lettered = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False))
    values = {**vars(question), "lettered": lettered, "task": wording.task}
    try:
        return _compiled(template).render(values)
    except DATA_ERRORS as error:
        raise InputError(
            f"question '{question.id}': the wording {shown(template)} cannot be filled in ({error}): correct it in the "
            "benchmark's YAML file."
        ) from None
