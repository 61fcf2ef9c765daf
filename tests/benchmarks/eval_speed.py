"""Time our scorer against lm-evaluation-harness, interleaved, one thread, and print medians, exactness and peak memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/eval_speed.py [--data DIR] [--rounds 3] [--items 48]

The model is a random Llama of about 7 million parameters (hidden 256, 4 layers, vocabulary 8192), its tokenizer trained
on DIR/corpora/*.jsonl, or on generated texts. Prompts have 60 to 250 tokens. Three conditions: "options" scores four full
texts, "letters" four letters, "five-shot" letters behind five solved questions that all prompts share. The harness runs
with batches of 1, 8 and 16, and its best median counts. Both sides tokenise inside the measurement. Peak memory is the
growth of a fresh process while it scores, after a warm-up on two items.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ctxft.evaluation.scoring import score_choices
from tests.benchmarks.record import record
from tests.benchmarks.record import spread as three

CONDITIONS = ("options", "letters", "five-shot")
SIDES = ("ours", 1, 8, 16)  # the harness by its batch size
SHOTS = 5
Requests = list[tuple[str, list[str]]]


def read_texts(data: str | None) -> list[str]:
    """Return the paragraphs of a folder's corpora, or generated ones of made-up words."""
    if data:
        lines = [line for path in sorted(Path(data, "corpora").glob("*.jsonl")) for line in path.open(encoding="utf-8")]
        parts = [" ".join(part.split()) for line in lines for part in json.loads(line)["text"].split("\n\n")]
        return [part for part in parts if len(part) >= 80]
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "on", "ul")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return [" ".join(rng.choices(words, weights, k=rng.randint(40, 120))) for _ in range(6000)]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer of 8192 tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=8192, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def make_model() -> LlamaForCausalLM:
    """Make the random model; wide initial weights keep its predictions from being all alike."""
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=8192, max_position_embeddings=4096, initializer_range=0.05, **shape)
    return LlamaForCausalLM(config).eval()


def make_requests(tokenizer: PreTrainedTokenizerFast, texts: list[str], condition: str, count: int) -> Requests:
    """Draw questions of 60 to 250 tokens from the texts, with options of 3 to 15 tokens."""
    rng = random.Random(condition)
    words = " ".join(rng.sample(texts, 800)).split()
    lettered = condition != "options"

    def question() -> tuple[str, list[str]]:
        options: list[str] = []
        while len(options) < 4:
            start = rng.randrange(len(words) - 10)
            option = " ".join(words[start : start + rng.randint(2, 10)])
            if 3 <= len(tokenizer.tokenize(f" {option}")) <= 15:
                options.append(option)
        listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
        room = rng.randint(60, 250) - 5 - (len(tokenizer.tokenize(listed)) if lettered else 0)
        start = rng.randrange(len(words) - 250)
        ids = tokenizer(" ".join(words[start : start + 250]), add_special_tokens=False)["input_ids"]
        text = f"Question: {tokenizer.decode(ids[: max(10, room)]).strip()}{listed if lettered else ''}\nAnswer:"
        return text, [f" {letter}" for letter in "ABCD"] if lettered else [f" {option}" for option in options]

    header = ""
    if condition == "five-shot":
        header = "".join(
            f"{text}{choices[n % 4]}\n\n" for n, (text, choices) in enumerate(question() for _ in range(SHOTS))
        )
    return [(header + text, choices) for text, choices in (question() for _ in range(count))]


def run(
    side: str | int, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, requests: Requests
) -> list[float]:
    """Score all choices with our scorer, or with the harness at a batch size."""
    if side == "ours":
        return [value for score in score_choices(model, tokenizer, requests) for value in score.log_likelihoods]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=side, device="cpu")
    pairs = [(context, text) for context, texts in requests for text in texts]
    instances = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return [value for value, _ in harness.loglikelihood(instances, disable_tqdm=True)]


def clock(call: Callable[[], list[float]]) -> tuple[list[float], float, float]:
    """Return a call's result, its CPU seconds and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = call()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def resident() -> float:
    """Return the memory that this process holds now, in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_growth(call: Callable[[], object]) -> float:
    """Return by how many MB the process grew at most during a call."""
    before, seen, over = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    over.set()
    watcher.join()
    return max(seen) - before


def measure_memory(options: argparse.Namespace) -> dict[str, dict[str | int, float]]:
    """Return the peak growth of each condition and side, each in a fresh process."""
    found: dict = {}
    for condition in CONDITIONS:
        for side in SIDES:
            command = [sys.executable, __file__, "--memory-of", condition, str(side), "--items", str(options.items)]
            command += ["--data", options.data] if options.data else []
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.setdefault(condition, {})[side] = float(output.split()[-1])
    return found


def span(values: list[float], digits: int = 2) -> str:
    """Write a median with the lowest and highest value."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} to {max(values):.{digits}f}]"


def main() -> None:
    """Parse the options, measure in rounds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with corpora/*.jsonl (default: generated texts)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one that warms up (default: 3)")
    parser.add_argument("--items", type=int, default=48, help="questions a condition (default: 48)")
    parser.add_argument("--record", action="store_true", help="write the medians into notebooks/results/speed.json")
    parser.add_argument("--memory-of", nargs=2, metavar=("CONDITION", "SIDE"), help="only print one peak growth in MB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    texts = read_texts(options.data)
    tokenizer, model = make_tokenizer(texts), make_model()
    if options.memory_of:
        condition, side = options.memory_of
        side = side if side == "ours" else int(side)
        requests = make_requests(tokenizer, texts, condition, options.items)
        run(side, model, tokenizer, requests[:2])
        print(peak_growth(lambda: run(side, model, tokenizer, requests)))
        return
    sizes = sum(p.numel() for p in model.parameters())
    print(
        f"{sizes / 1e6:.1f} M parameters, {options.items} items, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}"
    )
    requests = {name: make_requests(tokenizer, texts, name, options.items) for name in CONDITIONS}
    times: dict = {name: {side: [] for side in SIDES} for name in CONDITIONS}
    for name in CONDITIONS:
        for number in range(options.rounds + 1):
            found = {side: clock(lambda s=side, n=name: run(s, model, tokenizer, requests[n])) for side in SIDES}
            if number:
                for side in SIDES:
                    times[name][side].append(found[side][1:])
        values = {side: found[side][0] for side in SIDES}
        report(name, requests[name], tokenizer, times[name], values)
    print("\npeak growth of memory in MB, a fresh process each")
    memory = measure_memory(options)
    for name, sides in memory.items():
        print(f"{name:<10} " + ", ".join(f"{side}: {value:.0f}" for side, value in sides.items()))
    if options.record:
        about = {"rounds": options.rounds, "items": options.items, "memory_items": options.items}
        values = {name: numbers(times[name], memory[name]) for name in CONDITIONS}
        about["best_batch"] = best_of(times["options"])
        record("evaluation", {**about, "conditions": values}, "lm-eval", "torch", "transformers")


def best_of(times: dict) -> int:
    """Return the batch size at which the harness took the least CPU time."""
    return min(SIDES[1:], key=lambda side: statistics.median(cpu for cpu, _ in times[side]))


def numbers(times: dict, memory: dict) -> dict:
    """Return median CPU seconds of both at their best, the factor (median, lowest, highest), and memory in MB."""
    ours, theirs = ([cpu for cpu, _ in times[side]] for side in ("ours", best_of(times)))
    values = {"ours": statistics.median(ours), "harness": statistics.median(theirs)}
    values["faster"] = three([b / a for a, b in zip(ours, theirs, strict=True)])
    return {**values, "memory": [memory["ours"], memory[1], memory[16]]}


def report(name: str, requests: Requests, tokenizer: PreTrainedTokenizerFast, times: dict, values: dict) -> None:
    """Print one condition: seconds of every side, the ratio to the harness at its best, and how exact we are."""
    lengths = [len(tokenizer.tokenize(context)) for context, _ in requests]
    print(f"\n{name}: prompts of {min(lengths)} to {max(lengths)} tokens, mean {statistics.mean(lengths):.0f}")
    best = best_of(times)
    for side in SIDES:
        cpu, wall = zip(*times[side], strict=True)
        each = span([len(requests) / seconds for seconds in cpu], 1)
        print(
            f"  {side if side == 'ours' else f'harness {side}':<11} CPU s {span(cpu)}, wall s {span(wall)}, items/s {each}"
        )
    for what, place in (("CPU", 0), ("wall", 1)):
        ratios = [theirs[place] / ours[place] for theirs, ours in zip(times[best], times["ours"], strict=True)]
        print(f"  ratio to batch {best}, its best ({what}): {span(ratios)}")
    errors = [abs(a - b) for a, b in zip(values["ours"], values[best], strict=True)]
    count = len(requests[0][1])
    picks = [
        [max(range(count), key=lambda k: v[n * count + k]) for n in range(len(requests))]
        for v in (values["ours"], values[best])
    ]
    same = sum(a == b for a, b in zip(*picks, strict=True))
    print(f"  largest difference {max(errors):.1e} nats; predictions equal {same}/{len(requests)}", flush=True)


if __name__ == "__main__":
    main()
