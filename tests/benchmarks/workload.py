"""What the training benchmarks have in common: documents, a random-weight Llama, peak memory, medians with their range.

texts -> a tokenizer of 8192 tokens -> rows of 20 to 600 text tokens after a masked prompt of 30
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LengthGroupedSampler

from ctxft.data.rows import IGNORE_INDEX
from ctxft.storage import InputError
from ctxft.world.texts import practice_documents

VOCABULARY = 8192
PROMPT = 30  # tokens, masked
PROMPTS = 10  # different ones, in turn
SHORTEST, LONGEST = 20, 600  # text tokens of a document

Row = dict[str, list[int]]


def read_texts(data: Path | None) -> list[str]:
    """Return the texts of ``data``/corpora/*.jsonl, or the practice world's articles where no folder is given."""
    if data is None:
        return [document["text"] for document in practice_documents()]
    files = sorted((data / "corpora").glob("*.jsonl"))
    if not files:
        raise InputError(f"{data} has no corpora/*.jsonl: give a folder that has, or leave --data out.")
    return [json.loads(line)["text"] for path in files for line in path.read_text(encoding="utf-8").splitlines()]


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most 8192 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = dict(zip(("bos_token", "eos_token", "pad_token"), names, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def token_stream(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> list[int]:
    """Return all texts in an order drawn from the seed, one after another, each closed by EOS, as token ids."""
    texts = list(texts)
    random.Random(seed).shuffle(texts)
    return [token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]


def draw_lengths(number: int, seed: int = 0) -> list[int]:
    """Return text tokens of documents, log-uniform from 20 to 600."""
    rng = random.Random(seed)
    return [round(math.exp(rng.uniform(math.log(SHORTEST), math.log(LONGEST)))) for _ in range(number)]


def make_rows(stream: Sequence[int], lengths: Sequence[int], prompt: int = PROMPT) -> list[Row]:
    """Cut a stream of tokens into rows: a masked prompt and then so many text tokens, all of them targets."""
    prompts = [list(stream[i * PROMPT : i * PROMPT + prompt]) for i in range(PROMPTS)]
    place, rows = PROMPT * PROMPTS, []
    for number, length in enumerate(lengths):
        if place + length > len(stream):
            place = PROMPT * PROMPTS
        text, before = list(stream[place : place + length]), prompts[number % PROMPTS]
        rows.append({"input_ids": before + text, "labels": [IGNORE_INDEX] * len(before) + text})
        place += length
    return rows


def real_share(lengths: list[int], grouped: bool, batch: int = 8) -> float:
    """Return the share of tokens that are no padding in batches, in random order or in that of length grouping."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    if grouped:
        order = list(LengthGroupedSampler(batch, lengths=lengths, generator=generator))
    batches = [[lengths[i] for i in order[begin : begin + batch]] for begin in range(0, len(order), batch)]
    return sum(lengths) / sum(max(part) * len(part) for part in batches)


def new_llama(
    hidden: int = 256, layers: int = 6, heads: int = 4, vocabulary: int = VOCABULARY, seed: int = 0, **options
) -> LlamaForCausalLM:
    """Return a Llama with random weights and an output layer of its own; options go to its config."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": hidden * 8 // 3 // 64 * 64,
        "max_position_embeddings": 4096,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(**shape | ids | options))


@contextlib.contextmanager
def gradients() -> Iterator[list[list[torch.Tensor]]]:
    """Give a list to which every optimizer step in the block adds the gradients that it is about to use."""
    caught: list[list[torch.Tensor]] = []

    def catch(optimizer: torch.optim.Optimizer, args: tuple, options: dict) -> None:
        caught.append([p.grad.double().clone() for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_pre_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


def one_at_a_time(model: torch.nn.Module, rows: list[Row]) -> tuple[float, list[torch.Tensor]]:
    """Return loss per target and gradient of rows read one at a time in float64, matrices first as optimizers hold them."""
    model = model.double()
    count = sum(label != IGNORE_INDEX for row in rows for label in row["labels"][1:])
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        loss = cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum") / count
        loss.backward()
        total += loss.item()
    parameters = list(model.parameters())
    return total, [p.grad for p in parameters if p.ndim > 1] + [p.grad for p in parameters if p.ndim < 2]


def relative_error(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return the norm of the difference over the norm of what was wanted, over all parameters together."""
    if [a.shape for a in found] != [b.shape for b in wanted]:
        raise SystemExit("the optimizer holds other parameters than the model has")
    off = sum((a - b).square().sum() for a, b in zip(found, wanted, strict=True)).sqrt()
    return (off / sum(b.square().sum() for b in wanted).sqrt()).item()


class PeakMemory:
    """Resident size of this process while a block runs, looked at every 10 ms by a thread; ``above`` is in MB over the start."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self.process, self.over = psutil.Process(), threading.Event()
        self.start = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.over.wait(0.01):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()
        self.above = (self.peak - self.start) / 2**20


class Seconds:
    """CPU seconds and wall seconds of a block; other work on the machine disturbs the first less."""

    def __enter__(self) -> Seconds:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median with the lowest and the highest.

    Example:
        >>> spread([1.0, 4.0, 2.0])
        '2.00 [1.00 to 4.00]'
    """
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} to {max(values):.{digits}f}]"


def versions_line(*packages: str) -> str:
    """Return the versions of Python and of packages, and how busy the machine is."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    load = os.getloadavg()[0]
    return f"Python {platform.python_version()}, {', '.join(found)}; {os.cpu_count()} cores, load average {load:.1f}"
