"""Measure the leak check: seconds and peak memory for ten million tokens of text against the benchmarks of a folder.

    python tests/benchmarks/leakage_speed.py --data DIR [--tokens 10000000] [--corpus FILE.jsonl ...]

Without --corpus the texts are made of random common words, as many documents of 2000 words as are needed; with it, the
documents of the files (field "text") are read again and again. Tokens are counted as characters / 4.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from ctxft.evaluation.benchmarks import load_benchmark
from ctxft.leakage import LeakIndex
from ctxft.prompts import COMMON_WORDS

BENCHMARKS = ("mmlu-medical", "medqa", "pubmedqa", "fiqa", "causal20", "multifin")


def made_texts() -> Iterator[str]:
    """Yield documents of random words without end."""
    rng = random.Random(0)
    while True:
        yield " ".join(rng.choices(COMMON_WORDS, k=2000))


def read_texts(paths: list[Path]) -> Iterator[str]:
    """Yield the documents of JSON Lines files, over and over."""
    while True:
        for path in paths:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)["text"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--corpus", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    started = time.perf_counter()
    benchmarks = [load_benchmark(name, options.data) for name in BENCHMARKS]
    loaded = time.perf_counter()
    index = LeakIndex(benchmarks)
    ready = time.perf_counter()
    characters = 0
    for text in read_texts(options.corpus) if options.corpus else made_texts():
        index.read("text", text)
        characters += len(text)
        if characters >= 4 * options.tokens:
            break
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{sum(len(b.questions) for b in benchmarks)} items loaded in {loaded - started:.1f} s")
    print(f"index in {ready - loaded:.1f} s; {characters // 4} tokens ({index.words} words) in {done - ready:.1f} s")
    print(f"peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
