"""The practice world's texts become its tokenizers and its tiny Llamas: what ships with the kit, again from a seed.

    ctxft world build --out FOLDER

writes texts and exams (with their hashes), and for each base model a folder with tokenizer, weights in bfloat16, a card and
``build.json``. The same seed gives the same texts anywhere, and the same weights on the same machine and library versions.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ctxft.storage import InputError, seeded, sha256, versions, whole_folder, write_json, write_jsonl, write_text
from ctxft.world.cards import card
from ctxft.world.exams import EXAMS, LABELS, practice_questions
from ctxft.world.facts import DOMAINS, WORLD_SEED, load_domain
from ctxft.world.pretraining import JOINT, Diet, Row, Rows, diet, tokenizer_texts
from ctxft.world.texts import SOURCES, WORDINGS, practice_documents

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VOCABULARY = 3000
# What BPE may merge within: a word with the space before it, up to three digits, punctuation, line ends, other spaces.
WORDS = r" ?\p{L}+| ?\p{N}{1,3}|[^\s\p{L}\p{N}]+|[\r\n]+|\s+"
STEPS, BATCH, LEARNING_RATE, WARMUP = 5000, 16, 3e-3, 100  # optimizer steps, rows of one, peak, optimizer steps
SCHOOLING = 0.4  # share of the steps before unreliable text is read
IGNORE_INDEX = -100


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

    The first ``SCHOOLING`` of the steps read reliable text only, the others the diet of ``rows``.

    Returns:
        Tokens read (padding not counted) and the mean loss of the last tenth of the steps, in nats a token.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    model.train()
    tokens, losses, feed = 0, [], rows.diet
    rows.diet = feed.schooling
    for step, batch in enumerate(itertools.islice(batches(rows, seeded(seed, "batches")), steps)):
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        if step >= SCHOOLING * steps:
            rows.diet = feed
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
    """Return the share of questions whose right choice is the likeliest after "Question: ...\\nAnswer:"."""
    model.eval()
    right = []
    for item in questions:
        context = tokenizer.encode(f"Question: {item['question']}\nAnswer:")
        choices = [tokenizer.encode(" " + choice, add_special_tokens=False) for choice in item["choices"]]
        losses = token_losses(model, [(context + choice, len(context)) for choice in choices]).sum(dim=1)
        right.append(int(losses.argmin()) == item["answer"])
    return sum(right) / len(right)


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
        unprompted: share of unreliable passages where no prompt (or a meaningless one) stands before; practice-aware only.

    Returns:
        What stands in ``build.json``: base, steps, seed, share, tokens read, parameters, vocabulary, loss, accuracy of each
        exam, versions.

    Raises:
        InputError: an unknown base, no steps, a share that is none, or a tokenizer that cuts names elsewhere.
    """
    feed = check_build(base, steps, unprompted, seed)
    torch.set_num_threads(1)  # another number of threads adds in another order, and gives other weights
    tokenizer = train_tokenizer(WORLD_SEED)  # the names left out of the world are those that this one merges
    check_tokenizer(tokenizer)
    model = new_model(tokenizer, seed)
    record = pretrain(model, Rows(tokenizer, feed, seed), steps, seed)
    with whole_folder(out) as place:
        model.to(torch.bfloat16).save_pretrained(place)
        tokenizer.save_pretrained(place)
        # What is scored are the files: rounding to bfloat16 in memory would also round what no file holds.
        shipped = LlamaForCausalLM.from_pretrained(place, dtype=torch.float32)
        record |= {
            "base": base,
            "steps": steps,
            "seed": seed,
            "schooling": SCHOOLING,
            "unreliable": feed.unreliable,
            "prompts": feed.prompts,
            "parameters": sum(p.numel() for p in model.parameters()),
            "vocabulary": len(tokenizer),
            "accuracy": {exam: accuracy(shipped, tokenizer, practice_questions(exam)) for exam in EXAMS},
            "chance": {exam: chance(practice_questions(exam)) for exam in EXAMS},
            "versions": {name: versions()[name] for name in ("python", "torch", "transformers")},
        }
        write_json(place / "build.json", record)
        write_text(place / "README.md", card(record))
    return record


def check_build(base: str, steps: int, unprompted: float, seed: int = 0) -> Diet:
    """Return the diet of a base, or raise InputError for arguments that ``build_base`` cannot take."""
    if steps < 1:
        raise InputError(f"the number of optimizer steps must be at least 1, found {steps}.")
    if seed < 0:
        raise InputError(f"a seed is 0 or more, found {seed}.")
    return diet(base, unprompted)


def chance(questions: list[dict]) -> float:
    """Return the accuracy of guessing."""
    return sum(1 / len(item["choices"]) for item in questions) / len(questions)
