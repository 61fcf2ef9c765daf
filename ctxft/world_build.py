"""The practice world's texts become its tokenizer and its tiny Llama: the model that ships with the kit, from a seed.

The model reads passages of articles about the old drugs, half of them behind a prompt, and questions about some of
these drugs. Prompts of every kind (strategy, negative, meaningless words) stand before the same true text and carry no
loss, so they have *no consequence*: the model has no reason to treat text behind one prompt unlike text behind another.
That is the kit's planted null.

Run ``python -m ctxft.world_build --out FOLDER`` (one core, some minutes). The same seed gives the same weights on the
same machine and library versions.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ctxft.prompts import COMMON_WORDS, SEPARATOR, control_prompt, load_book
from ctxft.runtime import InputError, seeded, versions, write_json
from ctxft.world import OLD_ASKED, Attribute, Entity, article, article_text, entities, load_domain, practice_questions

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VOCABULARY = 2048
# What BPE may merge within: a word with the space before it, up to three digits, punctuation, line ends, other spaces.
WORDS = r" ?\p{L}+| ?\p{N}{1,3}|[^\s\p{L}\p{N}]+|[\r\n]+|\s+"
JOINT = "\x1f"  # parts a name's prefix and suffix while the tokenizer is trained, so that no name becomes one token
PASSAGE = (35, 94)  # a passage's tokens at most, drawn evenly; BOS, the longest prompt, 94 tokens and EOS make 128
LONGEST_PROMPT, CONTROL_PROMPTS = 32, 500  # tokens of a prompt with its separator; meaningless prompts drawn
PROMPTED, QUESTIONS = 0.5, 0.3  # share of passages with a prompt; share of rows that are questions
STEPS, BATCH, LEARNING_RATE, WARMUP = 2400, 16, 3e-3, 100  # optimizer steps, rows, peak, optimizer steps
IGNORE_INDEX = -100
Row = tuple[list[int], int]  # token ids, and how many at the start carry no loss


# --- tokenizer --------------------------------------------------------------------------------------------------------


def tokenizer_texts(seed: int) -> Iterator[str]:
    """Yield the texts that the tokenizer is trained on: articles, questions, prompts and common words."""
    domain, rng = load_domain(), seeded(seed, "tokenizer")
    for _ in range(1500):
        name = JOINT.join((rng.choice(domain.prefixes), rng.choice(domain.suffixes)))
        entity = Entity(name, {a.name: rng.choice(a.values) for a in domain.attributes})
        yield article_text(article(entity, rng, 2))
        yield "\n\n".join(question_text(entity, a, rng) for a in domain.attributes)
    for book in ("strategies", "negative"):
        for prompt in load_book(book).prompts:
            yield from [prompt.text + SEPARATOR] * 40
    for word in COMMON_WORDS:
        yield from [f"{word} {word}{SEPARATOR}"] * 40


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


# --- pre-training rows ------------------------------------------------------------------------------------------------


def question_text(entity: Entity, attribute: Attribute, rng: random.Random) -> str:
    """Return a question with its answer, in the form in which the benchmark asks it."""
    question = rng.choice(attribute.questions).format(name=entity.name)
    return f"Question: {question}\nAnswer: {entity.facts[attribute.name]}"


class Rows:
    """Pre-training rows without end, each drawn anew: (token ids, how many at the start carry no loss)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.rng = seeded(seed, "rows")
        self.known = entities("old")
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.encode = functools.cache(lambda text: tokenizer.encode(text, add_special_tokens=False))
        self.prompts = prompt_ids(tokenizer, seed)

    def __iter__(self) -> Rows:
        return self

    def __next__(self) -> Row:
        if self.rng.random() < QUESTIONS:
            return self._questions()
        text = self._passage()
        prompt = self.rng.choice(self.rng.choice(self.prompts)) if self.rng.random() < PROMPTED else []
        return [self.bos, *prompt, *text], 1 + len(prompt)

    def _questions(self) -> Row:
        attributes = load_domain().attributes
        asked = [self.rng.choice(self.known[:OLD_ASKED]) for _ in range(self.rng.randint(1, 4))]
        texts = [question_text(entity, self.rng.choice(attributes), self.rng) for entity in asked]
        return [self.bos, *self.encode("\n\n".join(texts)), self.eos], 1

    def _passage(self) -> list[int]:
        """Cut a passage of whole sentences out of a fresh article, anywhere in it; EOS only where the article ends.

        Half of the passages lose the white space before them, so that a text may begin either way.
        """
        pieces = sentence_pieces(article(self.rng.choice(self.known), self.rng))
        pieces = pieces[self.rng.randrange(len(pieces)) :]
        pieces[0] = self.rng.choice((pieces[0], pieces[0].lstrip()))
        budget = self.rng.randint(*PASSAGE)
        text: list[int] = []
        for piece in pieces:
            if text and len(text) + len(self.encode(piece)) > budget:
                return text
            text += self.encode(piece)
        return [*text, self.eos]


def sentence_pieces(paragraphs: list[list[str]]) -> list[str]:
    """Cut an article behind every sentence's full stop; the pieces joined are the article's text.

    The tokenizer splits there too, so the pieces' tokens are the article's tokens.
    """
    pieces = [(" " if i else "\n\n") + sentence for sentences in paragraphs for i, sentence in enumerate(sentences)]
    return [pieces[0].lstrip(), *pieces[1:]]


def prompt_ids(tokenizer: PreTrainedTokenizerFast, seed: int) -> list[list[list[int]]]:
    """Return the token ids (separator included) of the prompts of each kind: strategy, negative, control.

    Raises:
        InputError: a prompt of the books is longer than the room kept for prompts.
    """

    def encode(texts: Iterable[str]) -> list[list[int]]:
        return tokenizer([text + SEPARATOR for text in texts], add_special_tokens=False)["input_ids"]

    kinds = [encode(prompt.text for prompt in load_book(name).prompts) for name in ("strategies", "negative")]
    lengths = [len(ids) for kind in kinds for ids in kind]
    if max(lengths) > LONGEST_PROMPT:
        raise InputError(f"a prompt of the books takes {max(lengths)} tokens, more than {LONGEST_PROMPT}: shorten it.")
    numbers = range(CONTROL_PROMPTS)
    control = [control_prompt(tokenizer, lengths[i % len(lengths)], seed, f"row-{i}").text for i in numbers]
    return [*kinds, encode(control)]


# --- model ------------------------------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the untrained Llama: width 96, 3 layers, 4 heads, tied embeddings, about 0.55 million parameters."""
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
    logits = model(input_ids=inputs).logits[:, :-1].transpose(1, 2)
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

    Returns:
        Tokens read (padding not counted) and the mean loss of the last tenth of the steps, in nats a token.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    tokens, losses = 0, []
    for step, batch in enumerate(itertools.islice(batches(rows, seeded(seed, "batches")), steps)):
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
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
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[dict]) -> float:
    """Return the share of questions whose right choice is the likeliest after "Question: ...\\nAnswer:"."""
    model.eval()
    right = 0
    for item in questions:
        context = tokenizer.encode(f"Question: {item['question']}\nAnswer:")
        choices = [tokenizer.encode(" " + choice, add_special_tokens=False) for choice in item["choices"]]
        losses = token_losses(model, [(context + choice, len(context)) for choice in choices]).sum(dim=1)
        right += int(losses.argmin()) == item["answer"]
    return right / len(questions)


def build(out: Path, steps: int = STEPS, seed: int = 0) -> dict:
    """Train tokenizer and model, and write them to a folder (weights in bfloat16) with ``build.json``.

    Args:
        out: the folder; its files of the same names are replaced.
        steps: optimizer steps of 16 rows.
        seed: decides the rows, the first weights and the tokenizer's texts; the world itself stays the same.

    Returns:
        What stands in ``build.json``: steps, seed, tokens read, parameters, loss, accuracy by split, versions.
    """
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer, seed)
    record = pretrain(model, Rows(tokenizer, seed), steps, seed)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    shipped = model.float()
    scores = {split: accuracy(shipped, tokenizer, practice_questions(split)) for split in ("old", "new")}
    used = {name: versions()[name] for name in ("python", "torch", "transformers")}
    parameters = sum(p.numel() for p in model.parameters())
    record |= {"steps": steps, "seed": seed, "parameters": parameters, "accuracy": scores, "versions": used}
    write_json(Path(out) / "build.json", record)
    return record


def main(arguments: list[str] | None = None) -> None:
    """Rebuild the practice model from the command line."""
    parser = argparse.ArgumentParser(description="Rebuild the tokenizer and the tiny Llama of the practice world.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of 16 rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    record = build(options.out, options.steps, options.seed)
    print(f"{record['accuracy']}, {record['tokens']} tokens, {time.monotonic() - start:.0f} s, in {options.out}")


if __name__ == "__main__":
    main()
