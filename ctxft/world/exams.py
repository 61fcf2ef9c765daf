"""Write exams about the practice world in the shape of the published benchmarks, and instructions about its old half.

Exams about *knowledge* ask for a fact that the question does not state; exams about *reading* give a sentence and ask for
its label, so nothing has to be known, and their scores show what training made of that skill. The sentences are those of
the pre-training, with names that occur nowhere else. Wrong choices are sampled from the values of the same attribute, and
every answer position (or label) is correct equally often, so the choices alone reveal nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ctxft.storage import check_known, read_yaml, seeded
from ctxft.world.facts import ASKED, DOMAINS, HERE, SPLITS, WORLD_SEED, Attribute, Entity, entities, load_domain

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
    """An exam of the practice world; exams.yaml says what the values mean."""

    kind: str
    split: str
    wordings: str
    about: str


EXAMS = {name: Exam(**values) for name, values in read_yaml(HERE / "exams.yaml").items()}


# --- sentences of questions -------------------------------------------------------------------------------------------


def vignette(entity: Entity, attribute: Attribute, rng: random.Random, wordings: str = "seen") -> str:
    """Return a scene with a patient and a question about "the drug" in it."""
    raw = load_domain(entity.domain).raw
    scene, age = rng.choice(raw["scenes" if wordings == "seen" else "held_out_scenes"]), rng.randint(21, 79)
    person, month, weeks = rng.choice(raw["persons"]), rng.choice(raw["months"]), rng.randint(2, 20)
    scene = scene.format(name=entity.name, age=age, person=person, month=month, weeks=weeks)
    question = rng.choice(attribute.questions_of(wordings)).format(name="the drug")
    return f"{scene} {question[0].upper()}{question[1:]}"


def sentiment_of(outlook: str) -> str:
    """Return what an outlook means for an investor: positive, neutral or negative."""
    return next(label for label, values in load_domain("finance").raw["sentiments"].items() if outlook in values)


def reading(task: str, label: str, company: str, rng: random.Random) -> str:
    """Return a question that gives a sentence about a company with the wanted label; its facts are sampled."""
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
    spec = EXAMS[check_known(exam, EXAMS, "exam of the practice world")]
    if spec.kind in TASKS:
        return list(_reading_items(exam, spec.kind))
    if spec.kind == "two-hop":
        return list(_two_hop_items())
    domains = DOMAINS if spec.kind == "facts" else ("medicine",)
    pairs = [(e, a) for d in domains for e in subjects_of(spec.split, d) for a in load_domain(d).attributes]
    positions = [i % CHOICES for i in range(len(pairs))]
    seeded(WORLD_SEED, "positions", _original(exam)).shuffle(positions)
    return [_knowledge_item(exam, *pair, position) for pair, position in zip(pairs, positions, strict=True)]


def subjects_of(split: str, domain: str) -> Sequence[Entity]:
    """Return the entities that an exam asks about: as many as are new; of the old ones, some that were never asked about."""
    start = ASKED if split == "old" else 0
    return entities(split, domain)[start : start + SPLITS["new"]]


def _original(exam: str) -> str:
    """Return the exam whose items, choices and positions a reworded one shares."""
    return exam.removesuffix("-reworded")


def _knowledge_item(exam: str, entity: Entity, attribute: Attribute, position: int) -> dict:
    spec = EXAMS[exam]
    rng = seeded(WORLD_SEED, "question", _original(exam), entity.name, attribute.name)
    right = entity.facts[attribute.name]
    choices = rng.sample([value for value in attribute.values if value != right], CHOICES - 1)
    choices.insert(position, right)
    if spec.kind == "facts":
        question = rng.choice(attribute.questions_of(spec.wordings)).format(name=entity.name)
    else:
        question = vignette(entity, attribute, rng, spec.wordings)
    identity = f"{spec.split}-{entity.name.lower()}-{attribute.name.replace(' ', '-')}"
    return _item(identity, question, choices, position, attribute.name)


def _reading_items(exam: str, task: str) -> Iterator[dict]:
    labels, companies = LABELS[task], entities(EXAMS[exam].split, "finance")
    for number in range(READING_ITEMS[task]):
        correct = number % len(labels)
        rng = seeded(WORLD_SEED, "reading", exam, number)
        question = reading(task, labels[correct], companies[number].name, rng)
        yield _item(f"{task}-{number:03d}", question, labels, correct, task)


def _two_hop_items() -> Iterator[dict]:
    """Yield questions about the new companies, and about all old ones that were never asked about; the subject is the split."""
    for split, companies in (("new", entities("new", "finance")), ("old", entities("old", "finance")[ASKED:])):
        for entity in companies:
            (question, label), labels = two_hop(entity), LABELS["sentiment"]
            yield _item(f"{split}-{entity.name.lower()}-sentiment", question, labels, labels.index(label), split)


def _item(identity: str, question: str, choices: Sequence[str], answer: int, subject: str) -> dict:
    return {"id": identity, "question": question, "choices": list(choices), "answer": answer, "subject": subject}


# --- instructions -----------------------------------------------------------------------------------------------------


def practice_instructions() -> list[dict]:
    """Return questions about old drugs and companies with their answers, the same in every call.

    They are of the kind that the practice models read in pre-training: what a model learns from them is to answer, not new
    facts. They repeat old facts, so the exam ``practice-old`` shows nothing about forgetting after training on them.

    Returns:
        Dictionaries with "id", "prompt" and "response".

    Example:
        >>> sorted(practice_instructions()[0])
        ['id', 'prompt', 'response']
    """
    pairs = [(e, a) for d in DOMAINS for e in entities("old", d)[:ASKED] for a in load_domain(d).attributes]
    return [_instruction(entity, attribute) for entity, attribute in pairs]


def _instruction(entity: Entity, attribute: Attribute) -> dict:
    rng = seeded(WORLD_SEED, "instruction", entity.name, attribute.name)
    prompt = rng.choice(attribute.questions).format(name=entity.name)
    identity = f"{entity.name.lower()}-{attribute.name}"
    return {"id": identity, "prompt": prompt, "response": entity.facts[attribute.name]}
