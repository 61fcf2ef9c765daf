"""Train random-weight Llamas on one GPU: speed, use of the chip, peak memory against the estimate, exactness in bfloat16.

    python tests/benchmarks/gpu_training.py [--cases 1b-full,1b-lora,7b-lora,7b-full] [--steps 8] [--micro 8192]
    python tests/benchmarks/gpu_training.py --tiny      # the same on a CPU, small, to see that it works

1b has the shape of Llama 3.2 1B, 7b that of Llama 2 7B. Rows have a masked prompt of 30 tokens and text that fills windows of
4096 tokens or, for every second row, a part of one. Weights are float32 and computed with in bfloat16, as in any training of
the kit, so 7b-full wants about 110 GB before its activations; a case that does not fit is reported as such. Each case is a
process of its own and prints one line of JSON:

    tokens_per_s, text_tokens_per_s   of optimizer steps, after --warm steps
    utilisation    floating-point operations of the model over those that a large product of matrices did in the same process;
                   what checkpointing computes again is not counted, and frozen weights count no gradient of their own
    peak_gb, estimated_gb             of device memory (resident size on a CPU), and what ctxft.training.estimate foretold
    leak           change of the second passage's loss when the first passage's tokens change, packed; must be 0
    leak_control   the same where both are told to be one passage: what a leak would look like
    packed_error   loss of packed passages against the same passages one at a time, relative, both in the same precision
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import workload
from transformers import LlamaConfig, LlamaForCausalLM

from ctxft.config import TrainConfig
from ctxft.data.rows import IGNORE_INDEX
from ctxft.models import model_config
from ctxft.training.distributed import distribute
from ctxft.training.estimate import estimate_memory
from ctxft.training.loop import Training
from ctxft.training.loss import patch_loss_forward
from ctxft.training.model import add_adapters
from ctxft.training.packing import choose_attention, micro_batches, set_attention

SHAPES = {
    "tiny": (64, 2, 4, 2, 128, 512, True),
    "1b": (2048, 16, 32, 8, 8192, 128256, True),
    "7b": (4096, 32, 32, 32, 11008, 32000, False),
}
FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
CHECKPOINTED = ("7b",)  # sizes whose activations are computed again
PAD = 0


def make_config(size: str, method: str, options: argparse.Namespace) -> TrainConfig:
    """Return the recipe of a case."""
    return TrainConfig(
        method=method,
        max_length=options.window,
        train_batch_size=options.passages,
        micro_batch_tokens=max(options.micro, options.window),
        learning_rate=1e-5,
        gradient_checkpointing=size in CHECKPOINTED,
        device="cpu" if options.tiny else "cuda",
    )


def make_network(size: str, config: TrainConfig, attention: str, folder: Path) -> torch.nn.Module:
    """Return a network of random weights, made on its device and readied as a training readies what it loads."""
    shape = LlamaConfig(**dict(zip(FIELDS, SHAPES[size], strict=True)), max_position_embeddings=config.max_length)
    shape.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(config.device):
        model = LlamaForCausalLM(shape)
    set_attention(model, attention)
    if config.gradient_checkpointing:
        switch = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        switch({"use_reentrant": False})
    patch_loss_forward(model, config.loss)
    return add_adapters(model, config.lora) if config.method == "lora" else model


def make_rows(number: int, config: TrainConfig, vocabulary: int, seed: int) -> list[workload.Row]:
    """Return rows of random tokens after a masked prompt; every second one fills the window, the others a part of it."""
    rng, rows = random.Random(seed), []
    most = config.max_length - workload.PROMPT
    for index in range(number):
        text = [rng.randrange(3, vocabulary) for _ in range(most if index % 2 == 0 else rng.randint(most // 16, most))]
        prompt = [rng.randrange(3, vocabulary) for _ in range(workload.PROMPT)]
        rows.append({"input_ids": prompt + text, "labels": [IGNORE_INDEX] * len(prompt) + text})
    return rows


# --- speed ------------------------------------------------------------------------------------------------------------


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str, size: int, repeats: int = 10) -> float:
    """Return operations a second of a square product of matrices, median, in the precision that training computes in."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        wait(device)
        began = time.perf_counter()
        left @ right
        wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[3:])


def operations(model: torch.nn.Module, rows: list[workload.Row], lora: bool) -> float:
    """Return floating-point operations that an optimizer step over these rows needs, without any that are done again.

    A product with n weights is 2n for each token forward, 2n for the gradient of its input and 2n for that of the weights,
    which frozen ones have not; attention is causal; the output layer reads only what predicts a target. The inputs of the first
    layer want no gradient where its weights are frozen, which is left out.
    """
    plain = model.get_base_model() if lora else model
    sizes = {n: m.weight.numel() for n, m in plain.model.named_modules() if isinstance(m, torch.nn.Linear)}
    adapters = sum(size for name, size in sizes.items() if "lora_" in name)
    body = sum(sizes.values()) - adapters
    head, shape = plain.get_output_embeddings().weight.numel(), plain.config
    times = 4 if lora else 6
    lengths = [len(row["input_ids"]) for row in rows]
    targets = sum(label != IGNORE_INDEX for row in rows for label in row["labels"][1:])
    width = shape.num_attention_heads * (shape.hidden_size // shape.num_attention_heads)
    attention = 3 * sum(2 * length**2 * width * shape.num_hidden_layers for length in lengths)
    return times * (body * sum(lengths) + head * targets) + 6 * adapters * sum(lengths) + attention


# --- exactness --------------------------------------------------------------------------------------------------------


def loss_of(model: torch.nn.Module, rows: list[workload.Row], config: TrainConfig, attention: str) -> float:
    """Return the summed loss of rows laid out together, in the precision of training."""
    precise = torch.autocast("cuda", torch.bfloat16) if config.device == "cuda" else contextlib.nullcontext()
    with torch.no_grad(), precise:
        return sum(
            model(**b.inputs(config.device)).loss.item()
            for b in micro_batches(rows, attention, 2 * config.max_length, PAD)
        )


def exactness(model: torch.nn.Module, config: TrainConfig, attention: str, vocabulary: int) -> dict:
    """Return leak, its control, and the error of packing; see the top of this file."""
    model.eval()
    length = config.max_length // 2
    first, other, second = (
        [random.Random(seed).randrange(3, vocabulary) for _ in range(length)] for seed in ("first", "other", "second")
    )
    silent = [IGNORE_INDEX] * length
    packed, as_one = [], []
    for before in (first, other):
        rows = [{"input_ids": before, "labels": silent}, {"input_ids": second, "labels": second}]
        packed.append(loss_of(model, rows, config, attention))
        one = {"input_ids": before + second, "labels": [*silent, IGNORE_INDEX, *second[1:]]}
        as_one.append(loss_of(model, [one], config, attention))
    rows = [{"input_ids": ids, "labels": ids} for ids in (first, other, second)]
    together = loss_of(model, rows, config, attention)
    alone = sum(loss_of(model, [row], config, attention) for row in rows)
    model.train()
    return {
        "leak": abs(packed[0] - packed[1]),
        "leak_control": abs(as_one[0] - as_one[1]),
        "packed_error": abs(together - alone) / alone,
    }


# --- a case -----------------------------------------------------------------------------------------------------------


def run_case(size: str, method: str, options: argparse.Namespace, folder: Path) -> dict:
    """Measure one case in this process."""
    config = make_config(size, method, options)
    attention = choose_attention("auto", True, config.device)
    rate = matmul_rate(config.device, 256 if options.tiny else 8192)
    if config.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with workload.PeakMemory() as memory:
        network = make_network(size, config, attention, folder)
        vocabulary = SHAPES[size][5]
        found = exactness(network, config, attention, vocabulary)
        steps = [make_rows(options.passages, config, vocabulary, seed) for seed in range(options.warm + options.steps)]
        needed = [operations(network, rows, method == "lora") for rows in steps]
        accelerator, network, optimizer = distribute(network, config, config.device)
        rows = [row for step in steps for row in step]
        order = [list(range(begin, begin + options.passages)) for begin in range(0, len(rows), options.passages)]
        training = Training(network, optimizer, accelerator, config, rows, order, attention, PAD, seed=0)
        seconds = []
        for number in range(1, len(steps) + 1):
            wait(config.device)
            began = time.perf_counter()
            training.step(number)
            wait(config.device)
            seconds.append(time.perf_counter() - began)
    timed = slice(options.warm, None)
    tokens = sum(len(row["input_ids"]) for rows in steps[timed] for row in rows)
    spent = sum(seconds[timed])
    peak = torch.cuda.max_memory_allocated() / 1e9 if config.device == "cuda" else memory.above * 2**20 / 1e9
    return {
        "case": f"{size}-{method}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "attention": attention,
        "tokens_per_s": round(tokens / spent),
        "text_tokens_per_s": round((tokens - workload.PROMPT * options.passages * options.steps) / spent),
        "matmul_tflops": rate / 1e12,
        "utilisation": sum(needed[timed]) / spent / rate,
        "slowest_step_over_median": max(seconds[timed]) / statistics.median(seconds[timed]),
        "peak_gb": peak,
        "estimated_gb": estimate_memory(model_config(str(folder)), config, config.device)["total"] / 1e9,
        **found,
    }


def main() -> None:
    """Parse the options and run each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="1b-full,1b-lora,7b-lora,7b-full", help="size-method, separated by commas")
    parser.add_argument("--steps", type=int, default=8, help="timed optimizer steps (default: 8)")
    parser.add_argument("--warm", type=int, default=2, help="steps before them (default: 2)")
    parser.add_argument("--passages", type=int, default=16, help="in a step (default: 16)")
    parser.add_argument("--window", type=int, default=4096, help="tokens of a row (default: 4096)")
    parser.add_argument("--micro", type=int, default=8192, help="tokens of a forward pass (default: 8192)")
    parser.add_argument("--tiny", action="store_true", help="on a CPU: tiny models, windows of 128 tokens")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.window, options.micro = 128, 256
        options.cases = options.cases if options.one else "tiny-full,tiny-lora"
    elif not torch.cuda.is_available():
        raise SystemExit("no GPU is here: --tiny runs a small version on the CPU.")
    if options.one:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run_case(*options.cases.split("-"), options, Path(folder))))
        return
    print(workload.versions_line("torch", "transformers", "accelerate", "peft"))
    if not options.tiny:
        print(torch.cuda.get_device_name())
    for case in options.cases.split(","):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--cases", case, "--one"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            print(done.stdout.splitlines()[-1], flush=True)
        elif "OutOfMemoryError" in done.stderr:
            print(json.dumps({"case": case, "does_not_fit": done.stderr.strip().splitlines()[-1]}), flush=True)
        else:
            raise SystemExit(f"{case} failed:\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
