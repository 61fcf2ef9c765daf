"""Entities and sentences go in; exam questions in the shape of the published benchmarks come out, balanced and hashed.

Exams about *knowledge* ask for a fact that the question does not tell; exams about *reading* give a sentence and ask for
its label, so nothing has to be known, and their scores show what training made of that skill. The sentences are those that
the pre-training held, with names that stand nowhere else. Wrong choices are drawn from the values of the same attribute,
and every answer position (or label) is right equally often, so the choices alone tell nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ctxft.storage import check_known, seeded
from ctxft.world.facts import ASKED, DOMAINS, SPLITS, WORLD_SEED, Attribute, Entity, entities, load_domain

CHOICES = 4
LABELS = {
    "sentiment": ("positive", "neutral", "negative"),
    "cause": ("causal", "noise"),
    "topic": tuple(load_domain("finance").raw["headlines"]),
}
READING_ITEMS = {"sentiment": 90, "cause": 90, "topic": 96}
TASKS = tuple(READING_ITEMS)


@dataclass(frozen=True)
class Exam:
    """An exam of the practice world: what it asks, about which split, in which wordings, and a line about it."""

    kind: str  # "facts", "vignettes", "two-hop", or a reading task of LABELS
    split: str
    wordings: str
    about: str


EXAMS = {
    "practice-mmlu": Exam("facts", "new", "seen", "facts of the new drugs and companies; subjects are attributes"),
    "practice-mmlu-reworded": Exam("facts", "new", "held-out", "the same items in wordings that no pre-training held"),
    "practice-medqa": Exam("vignettes", "new", "seen", "a patient takes a new drug: which fact follows?"),
    "practice-medqa-reworded": Exam(
        "vignettes", "new", "held-out", "the same items in wordings that no pre-training held"
    ),
    "practice-fiqa": Exam("sentiment", "exam", "seen", "the sentiment of a given sentence"),
    "practice-causal20": Exam("cause", "exam", "seen", "whether a given sentence states a cause"),
    "practice-multifin": Exam("topic", "exam", "seen", "the topic of a given headline"),
    "practice-old": Exam("facts", "old", "seen", "facts of old entities that were told, but never asked for"),
    "practice-two-hop": Exam(
        "two-hop", "new", "seen", "the sentiment about new and old companies: two steps from the name"
    ),
    "practice-mmlu-tuning": Exam(
        "facts", "tuning", "seen", "as practice-mmlu, about the entities for choosing a recipe"
    ),
}


# --- sentences of questions -------------------------------------------------------------------------------------------


def vignette(entity: Entity, attribute: Attribute, rng: random.Random, wordings: str = "seen") -> str:
    """Return a scene with a patient and a question about "the drug" in it."""
    raw = load_domain(entity.domain).raw
    scene = rng.choice(raw["scenes" if wordings == "seen" else "held_out_scenes"]).format(
        name=entity.name,
        age=rng.randint(21, 79),
        person=rng.choice(raw["persons"]),
        month=rng.choice(raw["months"]),
        weeks=rng.randint(2, 20),
    )
    question = rng.choice(attribute.questions_of(wordings)).format(name="the drug")
    return f"{scene} {question[0].upper()}{question[1:]}"


def sentiment_of(outlook: str) -> str:
    """Return what an outlook means for an investor: positive, neutral or negative."""
    return next(label for label, values in load_domain("finance").raw["sentiments"].items() if outlook in values)


def reading(task: str, label: str, company: str, rng: random.Random) -> str:
    """Return a question that gives a sentence about a company with the wanted label; its facts are drawn at random."""
    raw, attributes = load_domain("finance").raw, {a.name: a for a in load_domain("finance").attributes}
    if task == "topic":
        sentence = rng.choice(raw["headlines"][label]).format(name=company)
    else:
        if task == "sentiment":
            kind, values = "outlook", raw["sentiments"][label]
        else:
            kind = "cause" if label == "causal" else rng.choice([name for name in attributes if name != "cause"])
            values = attributes[kind].values
        sentence = rng.choice(attributes[kind].sentences).format(name=company, value=rng.choice(values))
    return raw["exercises"][task].format(text=sentence)


def two_hop(entity: Entity) -> tuple[str, str]:
    """Return a question about a company that takes two steps (name to outlook, outlook to label), and its answer."""
    return load_domain("finance").raw["two_hop"].format(name=entity.name), sentiment_of(entity.facts["outlook"])


# --- exams ------------------------------------------------------------------------------------------------------------


def practice_questions(exam: str = "practice-mmlu") -> list[dict]:
    """Return the questions of an exam, the same in every call.

    Args:
        exam: a name of ``EXAMS``.

    Returns:
        Dictionaries with "id", "question", "choices" (texts), "answer" (from 0) and "subject".

    Raises:
        InputError: an unknown exam.

    Example:
        >>> len(practice_questions("practice-mmlu"))
        192
    """
    kind, split = EXAMS[check_known(exam, EXAMS, "exam of the practice world")].kind, EXAMS[exam].split
    if kind in TASKS:
        return list(_reading_items(exam, kind, split))
    if kind == "two-hop":
        return list(_two_hop_items())
    domains = DOMAINS if kind == "facts" else ("medicine",)
    pairs = [(e, a) for d in domains for e in examined(split, d) for a in load_domain(d).attributes]
    positions = [i % CHOICES for i in range(len(pairs))]
    seeded(WORLD_SEED, "positions", _original(exam)).shuffle(positions)
    ask: Callable = _fact if kind == "facts" else vignette
    return [_item(exam, *pair, position, ask) for pair, position in zip(pairs, positions, strict=True)]


def examined(split: str, domain: str) -> Sequence[Entity]:
    """Return the entities that an exam asks about: as many as are new; of the old ones, some that were never asked about."""
    start = ASKED if split == "old" else 0
    return entities(split, domain)[start : start + SPLITS["new"]]


def _original(exam: str) -> str:
    """Return the exam that a reworded one puts in other words: both have the same items, choices and positions."""
    return exam.removesuffix("-reworded")


def _fact(entity: Entity, attribute: Attribute, rng: random.Random, wordings: str) -> str:
    return rng.choice(attribute.questions_of(wordings)).format(name=entity.name)


def _item(exam: str, entity: Entity, attribute: Attribute, position: int, ask: Callable) -> dict:
    spec = EXAMS[exam]
    rng = seeded(WORLD_SEED, "question", _original(exam), entity.name, attribute.name)
    right = entity.facts[attribute.name]
    choices = rng.sample([value for value in attribute.values if value != right], CHOICES - 1)
    choices.insert(position, right)
    return {
        "id": f"{spec.split}-{entity.name.lower()}-{attribute.name.replace(' ', '-')}",
        "question": ask(entity, attribute, rng, spec.wordings),
        "choices": choices,
        "answer": position,
        "subject": attribute.name,
    }


def _reading_items(exam: str, task: str, split: str) -> Iterator[dict]:
    labels = LABELS[task]
    for number in range(READING_ITEMS[task]):
        rng = seeded(WORLD_SEED, "reading", exam, number)
        label = labels[number % len(labels)]
        company = entities(split, "finance")[number].name
        question = reading(task, label, company, rng)
        yield _labelled(f"{task}-{number:03d}", question, labels, label, task)


def _two_hop_items() -> Iterator[dict]:
    """Yield questions about the new companies, and about all old ones that were never asked about; the subject is the split."""
    for split, companies in (("new", entities("new", "finance")), ("old", entities("old", "finance")[ASKED:])):
        for entity in companies:
            question, answer = two_hop(entity)
            yield _labelled(f"{split}-{entity.name.lower()}-sentiment", question, LABELS["sentiment"], answer, split)


def _labelled(identity: str, question: str, labels: tuple[str, ...], label: str, subject: str) -> dict:
    base = {"id": identity, "question": question, "choices": list(labels)}
    return {**base, "answer": labels.index(label), "subject": subject}
