"""Draw the entities of the practice world and the facts about them, in splits that share no name.

A name is a prefix and a suffix; each is one token of the practice tokenizers, so that no new name looks unlike an old one.
Facts are sampled at random, so nothing about a new entity can be guessed. (Outlooks are sampled so
that each of the three sentiments has equally many companies.)
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path

from ctxft.storage import check_known, read_yaml, seeded

HERE = Path(__file__).resolve().parent
WORLD_SEED = 0
DOMAINS = ("medicine", "finance")
# Entities of each domain: in the pre-training; to learn about, in reported runs and while a recipe is chosen; and names of
# companies that occur only in sentences of exercises, in the pre-training and in exams.
SPLITS = {"old": 160, "new": 24, "tuning": 24, "exercise": 200, "exam": 140}
ASKED = 112  # old entities of each domain with questions in the pre-training; the others occur in texts only
BASES = {"practice-aware": "aware", "practice-blind": "blind"}  # names of the models, and their folders


@dataclass(frozen=True)
class Attribute:
    """A kind of fact: its values, sentences with {name} and {value}, and questions with {name}; some of both held out."""

    name: str
    values: tuple[str, ...]
    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_sentences: tuple[str, ...]
    held_out_questions: tuple[str, ...]

    def sentences_of(self, wordings: str) -> tuple[str, ...]:
        """Return the sentences of the pre-training ("seen") or those held out of it ("held-out")."""
        return self.sentences if wordings == "seen" else self.held_out_sentences

    def questions_of(self, wordings: str) -> tuple[str, ...]:
        """Return the questions of the pre-training ("seen") or those held out of it ("held-out")."""
        return self.questions if wordings == "seen" else self.held_out_questions


@dataclass(frozen=True)
class Domain:
    """A field of the world: what its entities are called, how names are made, its attributes, and the whole YAML file."""

    name: str
    noun: str
    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    raw: dict


@dataclass(frozen=True)
class Entity:
    """A drug or a company: its name, its domain, and one value for each attribute."""

    name: str
    domain: str
    facts: dict[str, str]


def model_folder(base: str) -> Path:
    """Return the folder of a pre-trained practice model and its tokenizer, for ``from_pretrained``.

    Args:
        base: "practice-aware" or "practice-blind".

    Raises:
        InputError: there is no such model.

    Example:
        >>> (model_folder("practice-blind") / "config.json").exists()
        True
    """
    return HERE / "models" / BASES[check_known(base, BASES, "practice model")]


@functools.cache
def load_domain(name: str) -> Domain:
    """Read a domain of the world, "medicine" or "finance", from the package."""
    raw = read_yaml(HERE / f"{check_known(name, DOMAINS, 'domain of the practice world')}.yaml")
    keys = ("values", "sentences", "questions", "held_out_sentences", "held_out_questions")
    attributes = tuple(Attribute(key, *(tuple(value[k]) for k in keys)) for key, value in raw["attributes"].items())
    return Domain(raw["name"], raw["noun"], tuple(raw["prefixes"]), tuple(raw["suffixes"]), attributes, raw)


def draw_facts(domain: Domain, rng: random.Random) -> dict[str, str]:
    """Draw one value for each attribute of a domain, each value equally likely."""
    return {attribute.name: rng.choice(attribute.values) for attribute in domain.attributes}


@functools.cache
def entities(split: str, domain: str) -> tuple[Entity, ...]:
    """Return the entities of a split and domain, the same in every call.

    Args:
        split: "old" (in the pre-training), "new" (to learn about), "tuning" (like new; recipes are chosen
            on them), "exercise" and "exam" (named in sentences of exercises only).
        domain: "medicine" or "finance".

    Raises:
        InputError: an unknown split or domain.

    Example:
        >>> {e.name for e in entities("old", "finance")} & {e.name for e in entities("new", "finance")}
        set()
    """
    check_known(split, SPLITS, "split of the practice world")
    field = load_domain(domain)
    names = [p + s for p in field.prefixes for s in field.suffixes if p + s not in field.raw["left_out"]]
    seeded(WORLD_SEED, "names", domain).shuffle(names)
    start = sum(list(SPLITS.values())[: list(SPLITS).index(split)])
    sampled = []
    for number, name in enumerate(names[start : start + SPLITS[split]]):
        rng = seeded(WORLD_SEED, "facts", domain, name)
        facts = draw_facts(field, rng)
        if "sentiments" in field.raw:  # equally many companies of each sentiment, so that exams can be balanced
            groups = list(field.raw["sentiments"].values())
            facts["outlook"] = rng.choice(groups[number % len(groups)])
        sampled.append(Entity(name, domain, facts))
    return tuple(sampled)
