"""What a prompt costs: optimizer steps of cft against cpt, interleaved, one thread, beside the ratio of their tokens.

    OMP_NUM_THREADS=1 python tests/benchmarks/prompt_cost.py [--rounds 7]

A random Llama (hidden size 256, 6 layers, 8,192 tokens); a step learns 6,144 text tokens in passages of 128, 512 or 2,048, cft
behind a prompt of 30 tokens on each. CPU time of a whole step, medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from training_speed import IGNORE, PROMPT, VOCABULARY, make_model

from ctxft.config import TrainConfig
from ctxft.training.distributed import distribute
from ctxft.training.loop import Training
from ctxft.training.model import trainable_model
from tests.benchmarks.record import record

TEXT = 6144  # tokens of text in a step


def make_rows(length: int, prompt: int, seed: int) -> list[dict]:
    """Return a step's rows: random text of ``length`` tokens each, behind BOS and ``prompt`` tokens."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(TEXT // length):
        ids = torch.randint(5, VOCABULARY, (1 + prompt + length,), generator=random).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE] * (1 + prompt) + ids[1 + prompt :]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write the medians into notebooks/results/speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainConfig(max_length=2100, micro_batch_tokens=4096, device="cpu", warmup_steps=0.0)
    with tempfile.TemporaryDirectory() as place:
        make_model(Path(place))
        network = trainable_model(place, None, config, "segments")
    accelerator, network, optimizer = distribute(network, config, "cpu")
    training = Training(network, optimizer, accelerator, config, [], [], "segments", pad=0, seed=0)
    print(
        "| text tokens a passage | cft / cpt, tokens | cft / cpt, CPU time (rounds) | difference, points |\n|---|---|---|---|"
    )
    number, kept = 0, []
    for length in (128, 512, 2048):
        seconds: dict[str, list[float]] = {"cpt": [], "cft": []}
        for turn in range(options.rounds + 1):
            for arm, prompt in (("cpt", 0), ("cft", PROMPT)):
                number += 1
                training.rows = make_rows(length, prompt, turn)
                training.order = [list(range(len(training.rows)))] * 10_000
                began = time.process_time()
                training.step(number)
                seconds[arm].append(time.process_time() - began)
        pairs = [b / a for a, b in list(zip(seconds["cpt"], seconds["cft"], strict=True))[1:]]  # the first warms up
        tokens, middle = (1 + PROMPT + length) / (1 + length), statistics.median(pairs)
        shown = f"{middle:.3f} [{min(pairs):.3f}-{max(pairs):.3f}]"
        kept.append((length, tokens, middle))
        print(f"| {length} | {tokens:.3f} | {shown} | {100 * (middle - tokens):+.1f} |", flush=True)
    if options.record:
        values = dict(zip(("lengths", "tokens", "time"), map(list, zip(*kept, strict=True)), strict=True))
        record("prompts", {"rounds": options.rounds, **values}, "torch", "transformers")


if __name__ == "__main__":
    main()
