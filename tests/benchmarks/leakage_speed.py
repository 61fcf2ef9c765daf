"""Measure the leak check: megabytes a second and peak memory, of as much text as is wanted, in one process.

    python tests/benchmarks/leakage_speed.py --data DIR [--megabytes 100] [--corpus FILE.jsonl ...]

Texts are documents of 2000 random common words, or those of the files (field "text") with the words of each in another order,
again and again. A megabyte is a million characters.
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
    """Yield the documents of JSON Lines files over and over, each time with their words in another order."""
    rng = random.Random(0)
    while True:
        for path in paths:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    words = json.loads(line)["text"].split(" ")
                    yield " ".join(rng.sample(words, len(words)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--corpus", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    started = time.process_time()
    benchmarks = [load_benchmark(name, options.data) for name in BENCHMARKS]
    loaded = time.process_time()
    index = LeakIndex(benchmarks)
    ready = time.process_time()
    characters, seconds = 0, 0.0
    for text in read_texts(options.corpus) if options.corpus else made_texts():
        begun = time.process_time()
        index.read("text", text)
        seconds += time.process_time() - begun
        characters += len(text)
        if characters >= 1e6 * options.megabytes:
            break
    megabytes, peak = characters / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{sum(len(b.questions) for b in benchmarks)} items loaded in {loaded - started:.1f} CPU s")
    print(f"index in {ready - loaded:.1f} CPU s; {megabytes:.0f} MB ({index.words} words) in {seconds:.1f} CPU s")
    print(f"{megabytes / seconds:.1f} MB a second; peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
