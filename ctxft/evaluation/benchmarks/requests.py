"""Questions go in; the texts that a model reads, and the continuations that are scored, come out.

The forms of multiple choice and of PubMedQA are word for word those of lm-evaluation-harness, with examples before the
question too, so that results can be set beside published ones.

    [about]\\n\\n  [example]\\n\\n [example]\\n\\n  [question]          about: MMLU's line on the subject, or what the labels are
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctxft.data.chat import guarded, rendered
from ctxft.evaluation.benchmarks.financial import CAUSAL20, MULTIFIN, PHRASEBANK
from ctxft.evaluation.benchmarks.medical import MMLU_NAMES
from ctxft.evaluation.benchmarks.records import LETTERS, Benchmark, Question
from ctxft.storage import InputError, check_known

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMS = ("lettered", "options", "labels")
SENTIMENT = "Tell the sentiment of a financial text towards what it speaks of"
TASKS = {  # what the labels of a set say; a set of one's own gets the last words of ``_about`` alone
    "fiqa": SENTIMENT,
    "fiqa-absa": "Tell the sentiment of a financial text towards the target named below it",
    **dict.fromkeys(
        CAUSAL20, "Tell whether a passage of a financial text states a cause and its effect (causal) or not (noise)"
    ),
    **dict.fromkeys(MULTIFIN, "Tell the topic of a financial headline"),
    **dict.fromkeys(PHRASEBANK, SENTIMENT),
}


def form_of(benchmark: Benchmark, form: str) -> str:
    """Return the form in which a benchmark is asked: its own, where it has one, else the experiment's."""
    return benchmark.form or check_known(form, FORMS, "form")


def style_of(
    benchmark: Benchmark, form: str, shots: int = 0, chat_template: bool = False, written: bool = False
) -> str:
    """Return in words how a benchmark is asked; scores of two styles cannot be compared.

    Example:
        >>> style_of(Benchmark("own", (), "a file"), "lettered", shots=5)
        'lettered, 5-shot'
    """
    parts = {f"{shots}-shot": shots, "chat template": chat_template, "written answers": written}
    return ", ".join([form_of(benchmark, form), *(part for part, holds in parts.items() if holds)])


def render(question: Question, form: str, benchmark_name: str) -> tuple[str, list[str]]:
    """Write a question as a context and the continuations to score.

    Args:
        question: the record.
        form: "lettered" shows the options and scores their letters; "options" hides them and scores their texts; "labels"
            names the labels first, then gives the text, and scores the labels.
        benchmark_name: MMLU has a line about its subject before the question; all others have MedQA's form.

    Returns:
        (context, continuations), each continuation with the space that stands before it.

    Raises:
        InputError: the form is unknown.

    Source:
        lm-evaluation-harness 0.4.13, tasks ``mmlu_<subject>``, ``mmlu_<subject>_continuation``, ``medqa_4options``,
        ``medmcqa`` and ``pubmedqa``, word for word; the "options" form of MedQA and MedMCQA is that of MMLU without the
        subject line. The instructions of the "labels" form are our own, so scores need not equal those made with others.

    Example:
        >>> render(Question("1", "Which?", ("this", "that"), 0, "all"), "options", "own")
        ('Question: Which?\\nAnswer:', [' this', ' that'])
    """
    check_known(form, FORMS, "form")
    about = _about(question, form, benchmark_name)
    return about + _body(question, form, benchmark_name), [f" {choice}" for choice in _choices(question, form)]


def examples_for(benchmark: Benchmark, question: Question) -> Sequence[Question]:
    """Return the solved questions that may be shown before a question: those of its subject for MMLU, else all."""
    if benchmark.name not in MMLU_NAMES:
        return benchmark.dev
    return [example for example in benchmark.dev if example.subject == question.subject]


def requests_of(
    benchmark: Benchmark,
    form: str,
    shots: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    written: bool = False,
) -> list[tuple[str, list[str]]]:
    """Write all questions of a benchmark as a model reads them.

    Args:
        benchmark: the questions, with at least ``shots`` solved ones in ``dev`` for each.
        form: as for ``render``; a benchmark with a form of its own keeps that.
        shots: the first so many solved questions are shown before each.
        tokenizer: writes everything as one turn of the user in its chat template; None leaves the text plain.
        written: a line before the question says which answers there are, for a model that writes its own.

    Returns:
        (context, continuations) for each question. Behind a chat template continuations have no space before them, as in
        lm-evaluation-harness; unlike there, MMLU's line about the subject stays in the user's turn, since not every
        template has a system turn; and where a question spells a control token it is guarded (``ctxft.data.chat``).

    Raises:
        InputError: the form is unknown, solved questions are lacking, or the tokenizer has no chat template.

    Example:
        >>> own = Benchmark("own", (Question("1", "Which?", ("this", "that"), 0, "all"),), "a file")
        >>> requests_of(own, "options")
        [('Question: Which?\\nAnswer:', [' this', ' that'])]
    """
    form = form_of(benchmark, form)
    if tokenizer is not None:
        require_chat_template(tokenizer)
    requests = []
    for question in benchmark.questions:
        examples = examples_for(benchmark, question)[:shots]
        if len(examples) < shots:
            raise InputError(
                f"question '{question.id}' has {len(examples)} examples to show, not {shots}: load with shots."
            )
        shown = "".join(_solved(example, form, benchmark.name) for example in examples)
        choices = _choices(question, form)
        told = f"Answer with exactly one of these and nothing else: {'; '.join(choices)}\n\n" if written else ""
        context = _about(question, form, benchmark.name) + shown + told + _body(question, form, benchmark.name)
        if tokenizer is None:
            requests.append((context, [f" {choice}" for choice in choices]))
        else:
            turn = [{"role": "user", "content": context}]
            context = rendered(tokenizer, turn, answer=True)
            requests.append((context, [guarded(tokenizer, choice) for choice in choices]))
    return requests


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if a tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise InputError("the model's tokenizer has no chat template: set evaluation.chat_template to false.")


def _solved(example: Question, form: str, name: str) -> str:
    return f"{_body(example, form, name)} {_choices(example, form)[example.answer]}\n\n"


def _choices(question: Question, form: str) -> list[str]:
    return list(LETTERS[: len(question.choices)]) if form == "lettered" else list(question.choices)


def _about(question: Question, form: str, name: str) -> str:
    """Return what stands once before all examples and the question."""
    if form == "labels":
        if question.context:  # a question about a text, such as PubMedQA's, says itself what it asks
            return ""
        words = f"{', '.join(question.choices[:-1])} or {question.choices[-1]}"
        return f"{TASKS.get(name, 'Tell which label fits a text')}. Answer with {words}.\n\n"
    if name not in MMLU_NAMES:
        return ""
    kind = "multiple choice questions" if form == "lettered" else "questions"
    return f"The following are {kind} (with answers) about {question.subject.replace('_', ' ')}.\n\n"


def _body(question: Question, form: str, name: str) -> str:
    """Return the question up to "Answer:"."""
    before = f"Abstract: {question.context}\n" if question.context else ""
    if form == "labels":
        kind = "Question" if question.context else "Text"
        return f"{before}{kind}: {question.question}\nAnswer:"
    if form == "options":
        return f"{before}Question: {question.question.strip()}\nAnswer:"
    stem = question.question.strip() if name in MMLU_NAMES else f"Question: {question.question}"
    head = "Choices:\n" if name == "medmcqa" else ""
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"{before}{stem}\n{head}{listed}Answer:"
