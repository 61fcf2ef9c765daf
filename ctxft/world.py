"""A seed becomes a small fictional world: drugs and their facts, articles about them, and multiple-choice questions.

The practice world is the kit's offline default. A tiny Llama (:func:`model_folder`) was pre-trained on articles about
the *old* drugs and on questions about some of them. The *new* drugs are unknown to it: their articles are the text to
learn from, their questions test what was learned, and questions about old drugs show what was forgotten.
``ctxft.world_build`` makes the model again.

Names are a prefix and a suffix, and wordings are templates, all in ``practice/medicine.yaml``. To test facts about
invented beings that are told in many wordings is the idea of Allen-Zhu and Li, *Physics of Language Models: Part 3.1*
(arXiv 2309.14316).
"""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path

from ctxft.runtime import PACKAGE_ROOT, check_known, read_yaml, seeded

PRACTICE = PACKAGE_ROOT / "practice"
WORLD_SEED = 0
OLD, OLD_ASKED, NEW = 240, 160, 40  # drugs of the pre-training, those of them with questions in it, new drugs
QUESTIONED_DRUGS = 40  # drugs behind each split of the test questions
ARTICLES, PARAGRAPHS = 3, 8  # articles about a drug, so that one can be held out; their paragraphs, each with all facts
CHOICES = 4


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A kind of fact: its values, templates of sentences with {name} and {value}, and of questions with {name}."""

    name: str
    values: tuple[str, ...]
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Domain:
    """A field of the world: the parts that names are made of, and the attributes of its entities."""

    name: str
    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]
    attributes: tuple[Attribute, ...]


@dataclasses.dataclass(frozen=True)
class Entity:
    """A thing with a name and one value for each attribute."""

    name: str
    facts: dict[str, str]


def model_folder() -> Path:
    """Return the folder of the pre-trained practice model and its tokenizer, for ``from_pretrained``.

    Example:
        >>> (model_folder() / "config.json").exists()
        True
    """
    return PRACTICE / "model"


@functools.cache
def load_domain(name: str = "medicine") -> Domain:
    """Read a domain of the world from the package."""
    raw = read_yaml(PRACTICE / f"{name}.yaml")
    attributes = tuple(
        Attribute(key, tuple(value["values"]), tuple(value["sentences"]), tuple(value["questions"]))
        for key, value in raw["attributes"].items()
    )
    return Domain(raw["name"], tuple(raw["prefixes"]), tuple(raw["suffixes"]), attributes)


def draw_facts(domain: Domain, rng: random.Random) -> dict[str, str]:
    """Draw one value for each attribute of a domain, each value equally likely."""
    return {attribute.name: rng.choice(attribute.values) for attribute in domain.attributes}


@functools.cache
def entities(split: str) -> tuple[Entity, ...]:
    """Return the drugs of a split: "old" (in the pre-training texts) or "new" (combinations of name parts never seen).

    Example:
        >>> {e.name for e in entities("old")} & {e.name for e in entities("new")}
        set()
    """
    check_known(split, ("old", "new"), "split of the practice world")
    domain = load_domain()
    names = [prefix + suffix for prefix in domain.prefixes for suffix in domain.suffixes]
    seeded(WORLD_SEED, "names").shuffle(names)
    chosen = names[:OLD] if split == "old" else names[OLD : OLD + NEW]
    return tuple(Entity(name, draw_facts(domain, seeded(WORLD_SEED, "facts", name))) for name in chosen)


def article(entity: Entity, rng: random.Random, paragraphs: int = PARAGRAPHS) -> list[list[str]]:
    """Write an article about an entity: every paragraph states all facts, in an order drawn anew.

    Args:
        entity: whom the article is about.
        rng: decides order and wordings; with up to 8 paragraphs no wording comes twice.
        paragraphs: number of paragraphs.

    Returns:
        The sentences of each paragraph; :func:`article_text` joins them.
    """
    attributes = load_domain().attributes
    wordings = {a.name: rng.sample(a.sentences, len(a.sentences)) for a in attributes}
    written = []
    for number in range(paragraphs):
        order = rng.sample(attributes, len(attributes))
        templates = [(a, wordings[a.name][number % len(a.sentences)]) for a in order]
        written.append([template.format(name=entity.name, value=entity.facts[a.name]) for a, template in templates])
    return written


def article_text(paragraphs: list[list[str]]) -> str:
    """Join sentences with a space and paragraphs with an empty line."""
    return "\n\n".join(" ".join(sentences) for sentences in paragraphs)


def practice_documents(split: str = "new") -> list[dict]:
    """Return the articles of a split, three about each drug, the same in every call.

    The articles about a drug state the same facts, in wordings drawn apart. So a run that holds a tenth of the
    documents out still reads about every drug (all but one in a thousand), and its held-out loss is that of facts it
    has read in other words.

    Args:
        split: "new": text to learn from (40 drugs, 120 articles of about 300 tokens of the practice tokenizer);
            "old": articles about the 240 drugs of the pre-training.

    Returns:
        Dictionaries with "id", "title" (the drug's name) and "text".

    Raises:
        InputError: an unknown split.

    Example:
        >>> len(practice_documents("new"))
        120
    """
    return [
        {
            "id": f"{split}-{entity.name.lower()}-{number}",
            "title": entity.name,
            "text": article_text(article(entity, seeded(WORLD_SEED, "article", split, entity.name, number))),
        }
        for number in range(1, ARTICLES + 1)
        for entity in entities(split)
    ]


def practice_questions(split: str = "new") -> list[dict]:
    """Return 160 questions with four choices: every attribute of 40 drugs, in one wording, the same in every call.

    Wrong choices come from the same attribute, and each answer position is right equally often.

    Args:
        split: "new": the drugs of the articles to learn from; "old": drugs that the base model read about in its
            pre-training, but was never asked about.

    Returns:
        Dictionaries with "id", "question", "choices" (4 texts), "answer" (from 0) and "subject" (the attribute).

    Raises:
        InputError: an unknown split.

    Example:
        >>> len(practice_questions("old"))
        160
    """
    check_known(split, ("new", "old"), "split of the practice questions")
    start = OLD_ASKED if split == "old" else 0
    subjects = entities(split)[start : start + QUESTIONED_DRUGS]
    pairs = [(entity, attribute) for entity in subjects for attribute in load_domain().attributes]
    positions = [i % CHOICES for i in range(len(pairs))]
    seeded(WORLD_SEED, "positions", split).shuffle(positions)
    return [_question(split, *pair, position) for pair, position in zip(pairs, positions, strict=True)]


def _question(split: str, entity: Entity, attribute: Attribute, position: int) -> dict:
    rng = seeded(WORLD_SEED, "question", entity.name, attribute.name)
    right = entity.facts[attribute.name]
    choices = rng.sample([value for value in attribute.values if value != right], CHOICES - 1)
    choices.insert(position, right)
    return {
        "id": f"{split}-{entity.name.lower()}-{attribute.name.replace(' ', '-')}",
        "question": rng.choice(attribute.questions).format(name=entity.name),
        "choices": choices,
        "answer": position,
        "subject": attribute.name,
    }
