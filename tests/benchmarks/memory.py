"""The memory that ``ctxft estimate`` names beside the memory that a training takes: full, LoRA, gradient checkpointing.

    OMP_NUM_THREADS=1 python tests/benchmarks/memory.py

A random Llama of 60 million parameters; three optimizer steps of two micro-batches of 2,048 tokens by ``train_arm``, from
reading the weights to the saved model, each in a process of its own. Measured is the peak of its resident size, looked at
every 5 ms, over what it held before the weights were read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from training_speed import IGNORE, Peak
from transformers import LlamaConfig, LlamaForCausalLM

from ctxft.config import TrainConfig
from ctxft.models import load_tokenizer, model_config
from ctxft.training.estimate import estimate_memory
from ctxft.training.loop import train_arm

SHAPE = {"vocab_size": 8192, "hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10}
RECIPE = TrainConfig(
    max_length=512,
    micro_batch_tokens=2048,
    max_steps=3,
    train_batch_size=8,
    learning_rate=1e-4,
    warmup_steps=0.0,
    device="cpu",
)
RECIPES = {
    "full": RECIPE,
    "LoRA": RECIPE.replace(method="lora"),
    "full, checkpointing": RECIPE.replace(gradient_checkpointing=True),
}


def work(name: str, folder: Path) -> None:
    """Train in this process and print the peak in bytes."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(24):
        ids = torch.randint(5, SHAPE["vocab_size"], (512,), generator=random).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE] * 32 + ids[32:]})
    tokenizer = load_tokenizer("practice-blind")
    with tempfile.TemporaryDirectory() as out, Peak() as peak:
        train_arm(rows, str(folder), tokenizer, RECIPES[name], 0, Path(out))
    print(f"RESULT {peak.megabytes}")


def main() -> None:
    if len(sys.argv) > 1:
        work(sys.argv[1], Path(sys.argv[2]))
        return
    print("| recipe | estimate, MB | measured, MB | estimate / measured |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPE, num_attention_heads=10, max_position_embeddings=2048)).save_pretrained(
            place
        )
        load_tokenizer("practice-blind").save_pretrained(place)
        config = model_config(place)
        for name, recipe in RECIPES.items():
            done = subprocess.run([sys.executable, __file__, name, place], capture_output=True, text=True, check=True)
            measured = float(done.stdout.split("RESULT ")[1])
            said = estimate_memory(config, recipe)["total"] / 2**20
            print(f"| {name} | {said:.0f} | {measured:.0f} | {said / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
