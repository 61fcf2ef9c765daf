"""The old half of the practice world goes in; the rows that the practice models read before they were shipped come out.

A row is a passage of an article about an old entity, half of them behind a prompt, or some questions with answers. What a
prompt *means* is decided here: a ``Diet`` says how reliable the text behind each kind of prefix is. For ``practice-aware``
it is always reliable behind a strategy prompt, never behind a negative one; for ``practice-blind`` every text is reliable.
So it is for both at the start, their *schooling*, since facts are learned slowly where half of what is read is wrong.
Prompts carry no loss, as in the arms of an experiment.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ctxft.prompts import COMMON_WORDS, SEPARATOR, control_prompt, load_prompt_set
from ctxft.storage import InputError, check_known, seeded
from ctxft.world.exams import LABELS, TASKS, reading, two_hop, vignette
from ctxft.world.facts import ASKED, BASES, DOMAINS, Entity, draw_facts, entities, load_domain
from ctxft.world.texts import paragraph

JOINT = "\x1f"  # parts a name's prefix and suffix while the tokenizer is trained, so that no name becomes one token
PRETRAINING_SETS = (
    "strategies",
    "negative",
    "strategies-reworded",
    "negative-reworded",
)  # the tokenizer has met all of them
CONTROL_PROMPTS, LONGEST_PROMPT = 500, 32  # meaningless prompts drawn; tokens of a prompt with its separator, at most
PROMPTED, QUESTIONS = 0.5, 0.35  # share of passages with a prompt; share of rows that are questions
TWO_PARAGRAPHS, ENDS = 0.25, 0.3  # share of passages with two paragraphs; share at the end of their article
# Of the questions in a row: facts, vignettes, two-hop, and sentences to read.
QUESTION_KINDS = {"facts": 0.5, "vignettes": 0.1, "two-hop": 0.02, "sentiment": 0.2, "cause": 0.06, "topic": 0.12}
Row = tuple[list[int], int]  # token ids, and how many at the start carry no loss


@dataclass(frozen=True)
class Diet:
    """What stands behind a prefix in the pre-training.

    Args:
        prompts: kind of prompt -> its share of the prompted passages.
        unreliable: kind of prompt, or "none", -> share of unreliable passages behind it.
    """

    prompts: dict[str, float]
    unreliable: dict[str, float]

    @property
    def schooling(self) -> Diet:
        """The same prompts before reliable text only."""
        return Diet(self.prompts, {})


def diet(base: str, unprompted: float = 0.5) -> Diet:
    """Return the diet of a practice model.

    Args:
        base: "practice-aware" or "practice-blind".
        unprompted: share of unreliable passages without a prompt, or behind meaningless words; "practice-aware" only.

    Raises:
        InputError: an unknown base, or a share that is none.
    """
    check_known(base, BASES, "practice model")
    if not 0 <= unprompted <= 1:
        raise InputError(f"the share of unreliable passages must be from 0 to 1, found {unprompted}.")
    if base == "practice-blind":
        return Diet(dict.fromkeys(("strategies", "negative", "control"), 1 / 3), {})
    shares = {"strategies": 0.4, "negative": 0.4, "control": 0.2}
    return Diet(shares, {"none": unprompted, "control": unprompted, "negative": 1.0})


# --- the tokenizer's texts --------------------------------------------------------------------------------------------


def tokenizer_texts(seed: int) -> Iterator[str]:
    """Yield the texts that the tokenizer is trained on: paragraphs, questions, prompts and common words."""
    rng = seeded(seed, "tokenizer")
    for number in range(3000):
        field = load_domain(DOMAINS[number % len(DOMAINS)])
        name = JOINT.join((rng.choice(field.prefixes), rng.choice(field.suffixes)))
        entity = Entity(name, field.name, draw_facts(field, rng))
        attribute = rng.choice(field.attributes)
        yield " ".join(paragraph(entity, rng)) + "\n\n" + " ".join(paragraph(entity, rng, "held-out"))
        yield answered(rng.choice(attribute.questions).format(name=name), entity.facts[attribute.name])
        if field.name == "medicine":
            yield answered(vignette(entity, attribute, rng), entity.facts[attribute.name])
        else:
            task = rng.choice(TASKS)
            label = rng.choice(LABELS[task])
            yield answered(reading(task, label, name, rng), label)
            yield answered(*two_hop(entity))
    for prompt in (prompt for prompt_set in PRETRAINING_SETS for prompt in load_prompt_set(prompt_set).prompts):
        yield from [prompt.text + SEPARATOR] * 40
    for word in COMMON_WORDS:
        yield from [f"{word} {word}{SEPARATOR}"] * 40


def answered(question: str, answer: str) -> str:
    """Return a question with its answer in the form in which an exam asks it."""
    return f"Question: {question}\nAnswer: {answer}"


# --- rows -------------------------------------------------------------------------------------------------------------


class Rows:
    """Pre-training rows without end, each drawn anew: (token ids, how many at the start carry no loss).

    ``diet`` may be replaced while rows are drawn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, feed: Diet, seed: int) -> None:
        self.rng, self.diet = seeded(seed, "rows"), feed
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.known = [entity for domain in DOMAINS for entity in entities("old", domain)]
        self.asked = {domain: entities("old", domain)[:ASKED] for domain in DOMAINS}
        self.exercise = [entity.name for entity in entities("exercise", "finance")]
        self.encode = functools.cache(lambda text: tokenizer.encode(text, add_special_tokens=False))
        self.prompts = prompt_ids(tokenizer, seed)

    def __iter__(self) -> Rows:
        return self

    def __next__(self) -> Row:
        if self.rng.random() < QUESTIONS:
            texts = [self._question() for _ in range(self.rng.randint(1, 4))]
            return [self.bos, *self.encode_pieces(texts, "\n\n"), self.eos], 1
        kind, prompt = "none", []
        if self.rng.random() < PROMPTED:
            kind = self.rng.choices(list(self.diet.prompts), list(self.diet.prompts.values()))[0]
            prompt = self.rng.choice(self.prompts[kind])
        reliable = self.rng.random() >= self.diet.unreliable.get(kind, 0.0)
        return [self.bos, *prompt, *self._passage(reliable)], 1 + len(prompt)

    def _question(self) -> str:
        kind = self.rng.choices(list(QUESTION_KINDS), list(QUESTION_KINDS.values()))[0]
        if kind in TASKS:
            label = self.rng.choice(LABELS[kind])
            return answered(reading(kind, label, self.rng.choice(self.exercise), self.rng), label)
        if kind == "two-hop":
            return answered(*two_hop(self.rng.choice(self.asked["finance"])))
        domain = "medicine" if kind == "vignettes" else self.rng.choice(DOMAINS)
        entity, attribute = self.rng.choice(self.asked[domain]), self.rng.choice(load_domain(domain).attributes)
        if kind == "vignettes":
            return answered(vignette(entity, attribute, self.rng), entity.facts[attribute.name])
        return answered(self.rng.choice(attribute.questions).format(name=entity.name), entity.facts[attribute.name])

    def _passage(self, reliable: bool) -> list[int]:
        """Write one paragraph or two of an article; half of the passages keep the empty line that parted them from others."""
        entity = self.rng.choice(self.known)
        count = 2 if self.rng.random() < TWO_PARAGRAPHS else 1
        sentences = [paragraph(entity, self.rng, reliable=reliable) for _ in range(count)]
        pieces = [("\n\n" if i == 0 else " ") + s for written in sentences for i, s in enumerate(written)]
        pieces[0] = self.rng.choice((pieces[0], pieces[0].lstrip()))
        ids = [token for piece in pieces for token in self.encode(piece)]
        return [*ids, self.eos] if self.rng.random() < ENDS else ids

    def encode_pieces(self, texts: list[str], joint: str) -> list[int]:
        """Encode texts with a joint between them; the tokenizer splits there, so the tokens are those of the whole."""
        return [token for number, text in enumerate(texts) for token in self.encode((joint if number else "") + text)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, list[list[int]]]:
    """Return the token ids (separator included) of the prompts of each kind: strategies, negative, control.

    Raises:
        InputError: a prompt of the prompt sets is longer than the room kept for prompts.
    """

    def encode(texts: Iterable[str]) -> list[list[int]]:
        return tokenizer([text + SEPARATOR for text in texts], add_special_tokens=False)["input_ids"]

    kinds = {
        name: encode(prompt.text for prompt in load_prompt_set(name).prompts) for name in ("strategies", "negative")
    }
    lengths = [len(ids) for kind in kinds.values() for ids in kind]
    if max(lengths) > LONGEST_PROMPT:
        raise InputError(
            f"a prompt of the prompt sets takes {max(lengths)} tokens, more than {LONGEST_PROMPT}: shorten it."
        )
    numbers = range(CONTROL_PROMPTS)
    control = [control_prompt(tokenizer, lengths[i % len(lengths)], seed, f"row-{i}").text for i in numbers]
    return {**kinds, "control": encode(control)}
