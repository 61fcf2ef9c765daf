"""Questions and what the arms answered flow in; one question as text, and the questions that tell arms apart, flow out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ctxft.prompts import get_arm
from ctxft.statistics import Outcomes
from ctxft.storage import InputError, check_known

if TYPE_CHECKING:
    from ctxft.evaluation.benchmarks import Question

NO_ANSWER = -1  # sorts before the choices
Answers = dict[str, dict[str, dict]]  # item id -> arm -> outcome


def answers_of(arms: Outcomes, seed: int) -> Answers:
    """Return what every arm answered in one seed; the base model, which has one, stands beside any seed.

    Args:
        arms: arm -> seed -> outcomes, as in ``RunRecord.outcomes[benchmark]``.
        seed: of the trained arms.

    Raises:
        InputError: an arm was not evaluated with this seed.

    Example:
        >>> answers_of({"base": {0: [{"id": "q1"}]}, "cpt": {3: [{"id": "q1"}]}}, 3)
        {'q1': {'base': {'id': 'q1'}, 'cpt': {'id': 'q1'}}}
    """
    found: Answers = {}
    for arm, seeds in arms.items():
        if get_arm(arm).stages:
            check_known(str(seed), map(str, seeds), f"seed of arm {arm}:")
        for row in next(iter(seeds.values())) if not get_arm(arm).stages else seeds[seed]:
            found.setdefault(row["id"], {})[arm] = row
    return found


def disagreements(answers: Answers, arms: Iterable[str] | None = None) -> list[str]:
    """Return the ids of the items that the arms do not all answer alike, in order.

    Args:
        answers: from ``answers_of``.
        arms: the arms that count; None counts all but base.
    """
    wanted = None if arms is None else set(arms)
    found = []
    for item, by_arm in answers.items():
        counted = [row for arm, row in by_arm.items() if (get_arm(arm).stages if wanted is None else arm in wanted)]
        if len({row["prediction"] for row in counted}) > 1:
            found.append(item)
    return found


def item_text(question: Question, by_arm: Mapping[str, dict]) -> str:
    """Return one question as text: its choices, the log-likelihood of each by arm, and who answers what.

    Args:
        question: from the benchmark.
        by_arm: arm -> its outcome on this question, from ``answers_of``.

    Returns:
        Lines: id and subject; the question; a row per choice with nats by arm, > before the right choice and * behind
        what an arm chose (an arm that wrote its answer has no nats: what it wrote stands below); whether the arms agree.

    Raises:
        InputError: an outcome belongs to another question, or to another form of this one.

    Example:
        >>> print(item_text(question, answers[question.id]))  # doctest: +SKIP
    """
    for arm, row in by_arm.items():
        if (row["id"], row["hash"]) != (question.id, question.hash):
            raise InputError(
                f"arm {arm}: the outcome '{row['id']}' is not of question '{question.id}': evaluate again."
            )
    width = max(map(len, question.choices))
    lines = [f"[{question.id}] {question.subject}", question.question, ""]
    lines.append(f"  {'nats':<{width}}" + "".join(f"{arm:>11}" for arm in by_arm))
    for index, choice in enumerate(question.choices):
        cells = (_cell(row, index) for row in by_arm.values())
        lines.append(f"{'>' if index == question.answer else ' '} {choice:<{width}}" + "".join(cells).rstrip())
    wrote = [f"{arm} wrote: {row['written']!r}" for arm, row in by_arm.items() if row.get("written") is not None]
    return "\n".join([*lines, "", *wrote, _agreement(question, by_arm)])


def _cell(row: dict, index: int) -> str:
    nats = f"{row['log_likelihoods'][index]:.2f}" if row["log_likelihoods"] else ""
    return f"{nats:>10}{'*' if row['prediction'] == index else ' '}"


def _agreement(question: Question, by_arm: Mapping[str, dict]) -> str:
    said: dict[int, list[str]] = {}
    for arm, row in by_arm.items():
        said.setdefault(NO_ANSWER if row["prediction"] is None else row["prediction"], []).append(arm)
    words = dict(enumerate(question.choices)) | {NO_ANSWER: "no answer"}
    if len(said) == 1:
        right = "right" if question.answer in said else "wrong"
        return f"All arms say {words[next(iter(said))]}, which is {right}."
    parts = [f"{', '.join(arms)}: {words[index]}" for index, arms in sorted(said.items())]
    return f"The arms disagree. {'; '.join(parts)}. Right: {question.choices[question.answer]}."
