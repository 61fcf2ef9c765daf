"""Write articles about the entities of the practice world, some of them unreliable if wanted, with the truth kept as a label.

An article is a few paragraphs. Each paragraph names its subject at the start, states every fact once, in a sampled order and
in sampled wordings, and may say "it" or "the drug" for the name later on. In an *unreliable* article every value is sampled
at random each time it is stated, so that paragraphs contradict each other and the facts are right by accident only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from ctxft.storage import InputError, check_known, seeded
from ctxft.world.facts import DOMAINS, WORLD_SEED, Entity, entities, load_domain

SOURCES = {"practice": "new", "practice-tuning": "tuning", "practice-old": "old"}  # names of corpora, and their splits
WORDINGS = ("seen", "held-out")
ARTICLES, PARAGRAPHS = 4, 3  # articles about an entity, so that one can be held out; paragraphs of an article
PRONOUNS = 0.3  # fraction of sentences, after a paragraph's first, that do not repeat the name


def paragraph(entity: Entity, rng: random.Random, wordings: str = "seen", reliable: bool = True) -> list[str]:
    """Write the sentences of a paragraph: every fact once, the name in the first sentence.

    Args:
        entity: the subject of the paragraph.
        rng: decides order, wordings, pronouns and, in an unreliable paragraph, the values.
        wordings: "seen" in the pre-training, or "held-out" of it.
        reliable: whether the values are the entity's.
    """
    field = load_domain(entity.domain)
    written = []
    for number, attribute in enumerate(rng.sample(field.attributes, len(field.attributes))):
        template = rng.choice(attribute.sentences_of(wordings))
        value = entity.facts[attribute.name] if reliable else rng.choice(attribute.values)
        short = number > 0 and rng.random() < PRONOUNS
        name = rng.choice(("it", f"the {field.noun}")) if short else entity.name
        sentence = template.format(name=name, value=value)
        written.append(sentence[0].upper() + sentence[1:])
    return written


def article(
    entity: Entity, rng: random.Random, wordings: str = "seen", reliable: bool = True, paragraphs: int = PARAGRAPHS
) -> str:
    """Write an article: paragraphs with an empty line between them; arguments as for :func:`paragraph`."""
    return "\n\n".join(" ".join(paragraph(entity, rng, wordings, reliable)) for _ in range(paragraphs))


def practice_documents(source: str = "practice", unreliable: float = 0.0, wordings: str = "seen") -> list[dict]:
    """Return the articles about the entities of both domains, four about each, the same in every call.

    The articles about an entity are separate documents, so a run that holds a tenth of them out still reads about
    every entity or nearly so, and its held-out loss is that of facts it has read in other words. Documents are held out
    whatever their entity and label: of some entities fewer reliable articles are left than of others.

    Args:
        source: "practice" (24 new drugs and 24 new companies), "practice-tuning" (as many others, on which a recipe may
            be chosen) or "practice-old" (the 320 entities of the pre-training).
        unreliable: fraction of the articles about each entity that state random facts, in quarters.
        wordings: "seen" in the pre-training, or "held-out" of it.

    Returns:
        Dictionaries with "id", "title" (the entity's name), "text" and "reliable" (the truth label).

    Raises:
        InputError: an unknown source or kind of wordings, or a fraction that is not a number of quarters.

    Example:
        >>> len(practice_documents()), practice_documents()[0]["reliable"]
        (192, True)
    """
    split = SOURCES[check_known(source, SOURCES, "corpus of the practice world")]
    check_known(wordings, WORDINGS, "kind of wordings")
    return list(_documents(split, unreliable_articles(unreliable), wordings))


def unreliable_articles(fraction: float) -> int:
    """Return how many articles about each entity are unreliable; raises InputError if that is not a whole number."""
    if not 0 <= fraction <= 1 or not float(fraction * ARTICLES).is_integer():
        known = ", ".join(f"{number / ARTICLES:g}" for number in range(ARTICLES + 1))
        raise InputError(f"the fraction of unreliable articles must be one of {known}, found {fraction}.")
    return round(fraction * ARTICLES)


def _documents(split: str, unreliable: int, wordings: str) -> Iterator[dict]:
    both = [entity for domain in DOMAINS for entity in entities(split, domain)]
    orders = {e.name: seeded(WORLD_SEED, "unreliable", e.name).sample(range(ARTICLES), ARTICLES) for e in both}
    for number in range(ARTICLES):
        for entity in both:
            reliable = number not in orders[entity.name][:unreliable]
            rng = seeded(WORLD_SEED, "article", split, entity.name, number, wordings, reliable)
            text = article(entity, rng, wordings, reliable)
            identity = f"{split}-{entity.name.lower()}-{number + 1}"
            yield {"id": identity, "title": entity.name, "text": text, "reliable": reliable}
