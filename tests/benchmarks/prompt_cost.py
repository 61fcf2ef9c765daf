"""What a prompt costs: time of optimizer steps of cft over those of cpt, beside the ratio of their tokens.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/prompt_cost.py [--data DIR] [--rounds 9]

Both arms learn the same text in passages of 128, 512 or 2048 tokens, cft after a masked prompt of 30 tokens. Steps of the two
arms take turns, the first of a pair in turn too; time is that of the processor in one thread, whole optimizer steps, laying
out included. Prompts pass the layers but not the output layer, attention costs more than in proportion to a row's length.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import workload

from ctxft.training.arm import Training, _start
from ctxft.training.checkpoint import trained
from ctxft.training.config import TrainConfig
from ctxft.training.network import build_network

TEXT = 4096  # text tokens of a step
LENGTHS = (128, 512, 2048)  # text tokens of a passage


def make_training(place: str) -> Training:
    """Return a training of a random-weight Llama whose forward passes hold a whole step of either arm."""
    window = max(LENGTHS) + workload.PROMPT
    config = TrainConfig(window=window, micro_batch_tokens=2 * TEXT, learning_rate=1e-5, warmup=0.0, device="cpu")
    workload.new_llama().save_pretrained(place)
    network = build_network(place, None, config, "segments")
    accelerator, network, optimizer = _start(network, config, "cpu")
    training = Training(network, optimizer, accelerator, config, "segments", 2, 10**6, 0)
    training.parameters = list(trained(network).values())
    return training


def measure(training: Training, stream: list[int], length: int, rounds: int) -> list[float]:
    """Return cft's over cpt's CPU seconds of a step, a number for each round; a first round warms up."""
    ratios = []
    for number in range(rounds + 1):
        text = stream[number * TEXT :]
        arms = {"cpt": 0, "cft": workload.PROMPT}
        spent = {}
        for arm in sorted(arms, reverse=bool(number % 2)):
            rows = workload.make_rows(text, [length] * (TEXT // length), arms[arm])
            with workload.Seconds() as seconds:
                training.step(1 + number, rows)
            spent[arm] = seconds.cpu
        ratios.append(spent["cft"] / spent["cpt"])
    return ratios[1:]


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with corpora/*.jsonl (default: the practice world's texts)")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of steps at each length (default: 9)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = workload.read_texts(options.data)
    stream = workload.token_stream(texts, workload.train_tokenizer(texts))
    print(workload.versions_line("torch", "transformers", "accelerate"))
    print(f"{TEXT} text tokens a step, {options.rounds} rounds: median [lowest to highest], half of the rounds between")
    print(f"{'passage':<9}{'tokens':<9}{'CPU time':<26}{'half between':<18}points over the tokens")
    with tempfile.TemporaryDirectory() as place:
        training = make_training(place)
        for length in LENGTHS:
            ratios = measure(training, stream, length, options.rounds)
            tokens, low, high = (length + workload.PROMPT) / length, *statistics.quantiles(ratios, n=4)[::2]
            over = 100 * (statistics.median(ratios) - tokens)
            shown = f"{workload.spread(ratios, 3):<26}{f'{low:.3f} to {high:.3f}':<18}{over:+.1f}"
            print(f"{length:<9}{tokens:<9.3f}{shown}", flush=True)


if __name__ == "__main__":
    main()
