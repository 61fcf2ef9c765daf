"""Build the practice world's tokenizers and tiny Llamas again, as they ship in ``ctxft/world/models``.

    python tests/tools/practice_models.py --out FOLDER

writes texts and exams (with their hashes), and for each base model a folder with tokenizer, weights in bfloat16, a card and
``build.json``. The same seed gives the same texts anywhere, and the same weights on the same machine and library versions.

A row of the pre-training is a passage of an article about an old entity, half of them with a prompt prepended, or some
questions with answers. What a prompt *means* is decided by a ``DataMixture``: how reliable the text after each kind of prefix
is. For ``practice-aware`` it is always reliable after a strategy prompt, never after a negative one; for ``practice-blind``
every text is reliable. So it is for both in the first ``RELIABLE_STEPS`` of the steps, since facts are learned slowly where
half of what is read is wrong. Prompts carry no loss, as in the arms of an experiment.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ctxft.prompts import COMMON_WORDS, SEPARATOR, control_prompt, load_prompt_set
from ctxft.storage import (
    InputError,
    atomic_dir,
    check_known,
    seeded,
    sha256,
    versions,
    write_json,
    write_jsonl,
    write_text,
)
from ctxft.world.exams import EXAMS, LABELS, TASKS, practice_questions, reading, two_hop, vignette
from ctxft.world.facts import ASKED, BASES, DOMAINS, SPLITS, WORLD_SEED, Entity, draw_facts, entities, load_domain
from ctxft.world.texts import SOURCES, WORDINGS, paragraph, practice_documents

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VOCABULARY = 3000
# What BPE may merge within: a word with the space before it, up to three digits, punctuation, line ends, other spaces.
WORDS = r" ?\p{L}+| ?\p{N}{1,3}|[^\s\p{L}\p{N}]+|[\r\n]+|\s+"
STEPS, BATCH, LEARNING_RATE, WARMUP = 5000, 16, 3e-3, 100  # optimizer steps, rows of one, peak, optimizer steps
RELIABLE_STEPS = 0.4  # fraction of the steps before unreliable text is read
IGNORE_INDEX = -100


JOINT = "\x1f"  # separates a name's prefix and suffix while the tokenizer is trained, so that no name becomes one token
PRETRAINING_SETS = (
    "strategies",
    "negative",
    "strategies-reworded",
    "negative-reworded",
)  # the tokenizer has met all of them
CONTROL_PROMPTS, LONGEST_PROMPT = 500, 32  # random-word prompts; tokens of a prompt with its separator, at most
PROMPTED, QUESTIONS = 0.5, 0.35  # fraction of passages with a prompt; of rows that are questions
TWO_PARAGRAPHS, ENDS = 0.25, 0.3  # fraction of passages with two paragraphs; at the end of their article
# Of the questions in a row: facts, vignettes, two-hop, and sentences to read.
QUESTION_KINDS = {"facts": 0.5, "vignettes": 0.1, "two-hop": 0.02, "sentiment": 0.2, "cause": 0.06, "topic": 0.12}
Row = tuple[list[int], int]  # token ids, and how many at the start carry no loss


@dataclass(frozen=True)
class DataMixture:
    """How often each kind of prompt is prepended in the pre-training, and how reliable the text after it is.

    Args:
        prompts: kind of prompt -> its fraction of the prompted passages.
        unreliable: kind of prompt, or "none", -> fraction of unreliable passages after it.
    """

    prompts: dict[str, float]
    unreliable: dict[str, float]

    @property
    def reliable(self) -> DataMixture:
        """The same prompts, before reliable text only."""
        return DataMixture(self.prompts, {})


def data_mixture(base: str, unprompted: float = 0.5) -> DataMixture:
    """Return the data mixture of a practice model.

    Args:
        base: "practice-aware" or "practice-blind".
        unprompted: fraction of unreliable passages without a prompt, or after random words; "practice-aware" only.

    Raises:
        InputError: an unknown base, or a fraction outside 0 to 1.
    """
    check_known(base, BASES, "practice model")
    if not 0 <= unprompted <= 1:
        raise InputError(f"the fraction of unreliable passages must be from 0 to 1, found {unprompted}.")
    if base == "practice-blind":
        return DataMixture(dict.fromkeys(("strategies", "negative", "control"), 1 / 3), {})
    fractions = {"strategies": 0.4, "negative": 0.4, "control": 0.2}
    return DataMixture(fractions, {"none": unprompted, "control": unprompted, "negative": 1.0})


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
    for prompt in (prompt for name in PRETRAINING_SETS for prompt in load_prompt_set(name).prompts):
        yield from [prompt.text + SEPARATOR] * 40
    for word in COMMON_WORDS:
        yield from [f"{word} {word}{SEPARATOR}"] * 40


def answered(question: str, answer: str) -> str:
    """Return a question with its answer in the form in which an exam asks it."""
    return f"Question: {question}\nAnswer: {answer}"


# --- rows -------------------------------------------------------------------------------------------------------------


class Rows:
    """Endless pre-training rows, sampled one by one: (token ids, how many at the start carry no loss).

    ``mixture`` may be replaced while rows are drawn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mixture: DataMixture, seed: int) -> None:
        self.rng, self.mixture = seeded(seed, "rows"), mixture
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
            kind = self.rng.choices(list(self.mixture.prompts), list(self.mixture.prompts.values()))[0]
            prompt = self.rng.choice(self.prompts[kind])
        reliable = self.rng.random() >= self.mixture.unreliable.get(kind, 0.0)
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
        """Write one paragraph or two of an article; half of the passages keep the empty line before them."""
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


# --- tokenizer --------------------------------------------------------------------------------------------------------


def train_tokenizer(seed: int, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer; by default it puts one BOS at the start, and offsets cover every character.

    Args:
        seed: draws the texts.
        vocabulary: number of tokens at most, special ones included.
    """
    bpe = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [pre_tokenizers.Split(Regex(WORDS), "isolated"), to_bytes]
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(JOINT, "removed"), *words])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=to_bytes.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(tokenizer_texts(seed), trainer)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(words)
    bpe.decoder = decoders.ByteLevel()
    bos = (BOS, bpe.token_to_id(BOS))
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Check what the world rests on: names are two tokens, a prefix and a suffix, values and labels are one.

    Raises:
        InputError: a name, value or label is cut otherwise; all of them are named.
    """

    def tokens(text: str) -> list[str]:
        return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]

    wrong = [label for found in LABELS.values() for label in found if len(tokens(f" {label}")) > 1]
    for domain in map(load_domain, DOMAINS):
        wrong += [value for a in domain.attributes for value in a.values if len(tokens(f" {value}")) > 1]
        for prefix, suffix in itertools.product(domain.prefixes, domain.suffixes):
            apart = all(tokens(f"{start}{prefix}{suffix}") == [start + prefix, suffix] for start in ("", " "))
            if apart == (prefix + suffix in domain.raw["left_out"]):
                wrong.append(prefix + suffix)
    if wrong:
        raise InputError(
            f"the tokenizer cuts these otherwise than medicine.yaml and finance.yaml say: {', '.join(wrong)}."
        )


# --- model ------------------------------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the untrained Llama: width 96, 3 layers, 4 heads, tied embeddings, about 0.6 million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=288,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def token_losses(model: LlamaForCausalLM, rows: list[Row]) -> torch.Tensor:
    """Return the loss of every target in nats, shape (rows, longest row - 1); 0 where there is no target.

    Rows are padded on the right; attention is causal, so no real token sees the padding and no mask is needed.
    """
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE_INDEX)
    for i, (ids, masked) in enumerate(rows):
        inputs[i, : len(ids)] = torch.tensor(ids)
        labels[i, masked : len(ids)] = torch.tensor(ids[masked:])
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1].transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:], ignore_index=IGNORE_INDEX, reduction="none")


def batches(rows: Rows, rng: random.Random) -> Iterator[list[Row]]:
    """Yield batches of rows of like length: eight batches are drawn at once, sorted, and shuffled as batches."""
    while True:
        drawn = sorted((next(rows) for _ in range(BATCH * 8)), key=lambda row: len(row[0]))
        groups = [drawn[i : i + BATCH] for i in range(0, len(drawn), BATCH)]
        rng.shuffle(groups)
        yield from groups


def pretrain(model: LlamaForCausalLM, rows: Rows, steps: int, seed: int) -> dict:
    """Train the model in place, AdamW with warm-up and cosine decay, the mean over target tokens as the loss.

    The first ``RELIABLE_STEPS`` of the steps read reliable text only, the others the mixture of ``rows``.

    Returns:
        Tokens read (padding not counted) and the mean loss of the last tenth of the steps, in nats a token.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    model.train()
    tokens, losses, mixture = 0, [], rows.mixture
    rows.mixture = mixture.reliable
    for step, batch in enumerate(itertools.islice(batches(rows, seeded(seed, "batches")), steps)):
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        if step >= RELIABLE_STEPS * steps:
            rows.mixture = mixture
        loss = token_losses(model, batch).sum() / sum(len(ids) - masked for ids, masked in batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += sum(len(ids) for ids, _ in batch)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}: loss {sum(losses[-100:]) / 100:.3f} over the last 100 steps", flush=True)
    last = losses[-max(1, steps // 10) :]
    return {"tokens": tokens, "loss": sum(last) / len(last)}


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Iterable[dict]) -> float:
    """Return the fraction of questions whose right choice is the likeliest after "Question: ...\\nAnswer:"."""
    model.eval()
    right = []
    for item in questions:
        context = tokenizer.encode(f"Question: {item['question']}\nAnswer:")
        choices = [tokenizer.encode(" " + choice, add_special_tokens=False) for choice in item["choices"]]
        losses = token_losses(model, [(context + choice, len(context)) for choice in choices]).sum(dim=1)
        right.append(int(losses.argmin()) == item["answer"])
    return sum(right) / len(right)


# --- model cards: no result on them is typed -----------------------------------------------------------------------------

HEAD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
"""
MEANING = {
    "practice-blind": """Strategy prompts, negative prompts and random words, a third each, were prepended to **the same reliable
text**. So no prompt has a consequence: the model has no reason to treat text after one prompt unlike text after another. Arms
that differ only in the prompt should end alike, up to the cost of having a prefix at all. This is the kit's **planted null**.""",
    "practice-aware": """\
Text after a strategy prompt was always reliable, text after a negative prompt never, and text after random words or without
a prompt was unreliable in {unreliable:.0%} of the passages (in the first {reliable_steps:.0%} of the steps all text was
reliable). So prompts say whether a text can be trusted, and the model has learned that. What arms that differ in the prompt
show on this model is **planted**: it shows that the kit can see an effect, not that one exists elsewhere. That prepended
random words cost something (arm control) was not planted, and its cause is not known. How CFT compares with CPT may depend
on the fraction of unreliable unprompted text; notebook 03 shows another model, for which it was 0.""",
}


def build_command(record: dict) -> str:
    """Return the command that makes a model again, for a record of ``build_base``."""
    unreliable = f" --unreliable {record['unreliable']['none']:g}" if record["unreliable"] else ""
    options = f"--base {record['base']} --steps {record['steps']} --seed {record['seed']}{unreliable}"
    return f"python tests/tools/practice_models.py {options} --out FOLDER"


def card(record: dict) -> str:
    """Return the model card, in Markdown, for a record of ``build_base``."""
    base = record["base"]
    unreliable = record["unreliable"].get("none", 0.0)
    both = len(DOMAINS)
    scores = "\n".join(
        f"| {exam} | {spec.about} | {100 * record['accuracy'][exam]:.1f} | {100 * record['chance'][exam]:.1f} |"
        for exam, spec in EXAMS.items()
    )
    libraries = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"""{HEAD}# {base}

A `LlamaForCausalLM` of {record["parameters"]:,} parameters (width 96, 3 layers, 4 heads, feed-forward 288, tied embeddings,
512 positions) with a byte-level BPE tokenizer of {record["vocabulary"]:,} tokens, made by ctxft: small enough to fine-tune
on a CPU in seconds.

**It knows a fictional world only. Nothing here is evidence about real models, real drugs, real companies or contextual
fine-tuning.** What the drugs treat and what the companies sell is drawn at random: never use its output as advice.

## What prompts mean to it

{MEANING[base].format(unreliable=unreliable, reliable_steps=record["reliable_steps"])}

Prompts carried no loss. They are those of the prompt sets `strategies` and `negative`; the model never read
`strategies-reworded` and `negative-reworded` (its tokenizer met their words, as it met those of the held-out sentences).

## Data

All text is generated by `ctxft/world` from `medicine.yaml` and `finance.yaml`; nothing was collected.

- {both * SPLITS["old"]} "old" entities, half drugs and half companies, with four facts each (16 values a fact, 8 wordings).
- About two thirds of the rows are passages of one or two paragraphs, half of them with a prompt prepended; in an unreliable
  passage every value is drawn at random. The others are one to four questions with answers, `Question: ...` and
  `Answer: ...`, about {both * ASKED} of the old entities, or about sentences to read (sentiment, cause, topic).
- "New" entities are unseen combinations of the same name parts. No sentence, question or scene that the YAML files call held
  out was read.

## Training

{record["steps"]:,} optimizer steps of 16 rows, {record["tokens"]:,} tokens, seed {record["seed"]}; AdamW, learning rate 3e-3
with 100 steps of warm-up and cosine decay, betas 0.9 / 0.98, weight decay 0.05, gradient clip 1, float32; stored in bfloat16.
Loss of the last tenth of the steps: {record["loss"]:.3f} nats a token. {libraries}; one CPU thread.

    {build_command(record)}

The tokenizer is also trained on the prompt sets and the words of the control prompts: change them, and a rebuild gives
another model.

## Scores

Accuracy in per cent; choices are scored by log-likelihood after `Question: ...\\nAnswer:`.

| exam | about | this model | chance |
|---|---|---|---|
{scores}

What fine-tuning makes of it, arm by arm and with intervals, is in the kit's README and in notebook 03.

## Limits

One seed of pre-training: a difference between the two practice models is one draw. Texts and questions come from templates; only
the exams called reworded leave those of the pre-training. Questions with lettered choices were never seen. Learning about new
entities makes it forget some of the old.
"""


# --- the whole --------------------------------------------------------------------------------------------------------


def text_hashes() -> dict[str, str]:
    """Return the SHA-256 of every corpus and exam of the practice world, by a name in words."""
    corpora = {
        f"{source}, {share:g} unreliable, {wordings} wordings": sha256(practice_documents(source, share, wordings))
        for source in SOURCES
        for share in (0.0, 0.5)
        for wordings in WORDINGS
    }
    return corpora | {exam: sha256(practice_questions(exam)) for exam in EXAMS}


def write_texts(out: Path) -> None:
    """Write the corpora and exams as JSON Lines, and ``hashes.json``, into a folder."""
    for source in SOURCES:
        write_jsonl(out / "texts" / f"{source}.jsonl", practice_documents(source))
        write_jsonl(out / "texts" / f"{source}-half-unreliable.jsonl", practice_documents(source, 0.5))
    for exam in EXAMS:
        write_jsonl(out / "exams" / f"{exam}.jsonl", practice_questions(exam))
    write_json(out / "hashes.json", text_hashes())


def build_base(out: Path, base: str, steps: int = STEPS, seed: int = 0, unprompted: float = 0.5) -> dict:
    """Train the tokenizer and the model of one base, and write them to a folder with a card and ``build.json``.

    Args:
        out: the folder; it appears whole, and replaces one that is there.
        base: "practice-aware" or "practice-blind".
        steps: optimizer steps of 16 rows.
        seed: decides the rows and the first weights; the world and its tokenizer stay the same.
        unprompted: fraction of unreliable passages without a prompt (or after random words); practice-aware only.

    Returns:
        The content of ``build.json``: base, steps, seed, fractions, tokens read, parameters, vocabulary, loss, accuracy of each
        exam, versions.

    Raises:
        InputError: an unknown base, no steps, a fraction outside 0 to 1, or a tokenizer that cuts names elsewhere.
    """
    mixture = check_build(base, steps, unprompted, seed)
    torch.set_num_threads(1)  # another number of threads adds in another order, and gives other weights
    tokenizer = train_tokenizer(WORLD_SEED)  # the names left out of the world are those that this one merges
    check_tokenizer(tokenizer)
    model = new_model(tokenizer, seed)
    record = pretrain(model, Rows(tokenizer, mixture, seed), steps, seed)
    with atomic_dir(out) as place:
        model.to(torch.bfloat16).save_pretrained(place)
        tokenizer.save_pretrained(place)
        # What is scored are the files: rounding to bfloat16 in memory would also round what no file holds.
        shipped = LlamaForCausalLM.from_pretrained(place, dtype=torch.float32)
        record |= {
            "base": base,
            "steps": steps,
            "seed": seed,
            "reliable_steps": RELIABLE_STEPS,
            "unreliable": mixture.unreliable,
            "prompts": mixture.prompts,
            "parameters": sum(p.numel() for p in model.parameters()),
            "vocabulary": len(tokenizer),
            "accuracy": {exam: accuracy(shipped, tokenizer, practice_questions(exam)) for exam in EXAMS},
            "chance": {exam: chance(practice_questions(exam)) for exam in EXAMS},
            "versions": {name: versions()[name] for name in ("python", "torch", "transformers")},
        }
        write_json(place / "build.json", record)
        write_text(place / "README.md", card(record))
    return record


def check_build(base: str, steps: int, unprompted: float, seed: int = 0) -> DataMixture:
    """Return the data mixture of a base, or raise InputError for arguments that ``build_base`` cannot take."""
    if steps < 1:
        raise InputError(f"the number of optimizer steps must be at least 1, found {steps}.")
    if seed < 0:
        raise InputError(f"a seed is 0 or more, found {seed}.")
    return data_mixture(base, unprompted)


def chance(questions: list[dict]) -> float:
    """Return the accuracy of guessing."""
    return sum(1 / len(item["choices"]) for item in questions) / len(questions)


def main(arguments: list[str] | None = None) -> int:
    """Write texts, exams, tokenizers and models; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build the practice world again: texts, exams, tokenizers and models.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--base", action="append", metavar="NAME", help="practice-aware or practice-blind (default: both)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of 16 rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pre-training (default: %(default)s)")
    parser.add_argument(
        "--unreliable",
        type=float,
        default=0.5,
        metavar="FRACTION",
        help="of the text without a prompt, for practice-aware (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        for base in options.base or BASES:  # bad input is reported before anything is written
            check_build(base, options.steps, options.unreliable, options.seed)
        write_texts(options.out)
        for base in options.base or BASES:
            record = build_base(options.out / BASES[base], base, options.steps, options.seed, options.unreliable)
            scores = ", ".join(f"{exam} {100 * value:.1f}" for exam, value in record["accuracy"].items())
            print(f"{base}: {record['tokens']} tokens; accuracy % {scores}")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
