"""Training speed and memory of ctxft, transformers' Trainer and TRL on the same documents and model, interleaved, one thread.

    python tests/benchmarks/training_speed.py [--rounds 3] [--documents 240] [--only ours,grouped]

Needs the extra ``bench`` (TRL). Each run is a process of its own that goes from a model folder to a saved model: text tokens a
second of CPU time and of wall time, and the peak of its resident size over what it held before the model was read. Documents
are random token ids, 20 to 600 tokens of text (log-uniform) behind a masked prompt of 30: time does not depend on which ids.

    ours      ctxft's default path: rows packed side by side, loss in chunks on targets only
    padded    Trainer, batches of 8 in random order, padded to the longest
    grouped   Trainer, the same with train_sampling_strategy="group_by_length"
    trl       SFTTrainer with packing (best-fit decreasing) into windows of 1,600 tokens, batches of one window

The exactness of each is that of one batch of documents against the documents one at a time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import psutil
import torch

from tests.benchmarks.record import record
from tests.benchmarks.record import spread as three

VARIANTS = ("ours", "padded", "grouped", "trl")
BATCH, PROMPT, TRL_WINDOW, VOCABULARY = 8, 30, 1600, 8192
IGNORE = -100


def make_rows(documents: int, seed: int = 3) -> list[dict]:
    """Return rows of random ids with a masked prompt, as lists ``input_ids`` and ``labels``."""
    rng = random.Random(seed)
    rows = []
    for _ in range(documents):
        length = round(math.exp(rng.uniform(math.log(20), math.log(600))))
        ids = [rng.randrange(5, VOCABULARY) for _ in range(PROMPT + length)]
        rows.append({"input_ids": ids, "labels": [IGNORE] * PROMPT + ids[PROMPT:]})
    return rows


def make_model(folder: Path) -> None:
    """Save a random Llama: hidden size 256, 6 layers, 8,192 tokens; with a tokenizer that only gives special tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ctxft.models import load_tokenizer

    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, **shape, max_position_embeddings=2048, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer("practice-blind").save_pretrained(folder)


class Peak:
    """The peak of this process's resident size, looked at every 5 ms, over what it was at the start."""

    def __enter__(self) -> Peak:
        self.process, self.on = psutil.Process(), True
        self.before = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while self.on:
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.on = False
        self.thread.join()
        self.megabytes = (self.most - self.before) / 2**20


# --- variants ---------------------------------------------------------------------------------------------------------


def run_ours(folder: Path, rows: list[dict], out: Path) -> None:
    from ctxft.config import TrainConfig
    from ctxft.models import load_tokenizer
    from ctxft.training.loop import train_arm

    recipe = TrainConfig(
        max_length=1024,
        num_train_epochs=1,
        train_batch_size=BATCH,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        warmup_steps=0.0,
        device="cpu",
    )
    train_arm(rows, str(folder), load_tokenizer(str(folder)), recipe, 0, out)


def _arguments(kind, out: Path, batch: int, **options):
    return kind(
        output_dir=str(out),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )


def pad(rows: list[dict]) -> dict:
    """Stack rows, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": 0, "labels": IGNORE, "attention_mask": 0}
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {k: torch.tensor([r[k] + [fill] * (longest - len(r[k])) for r in rows]) for k, fill in fills.items()}


def run_trainer(folder: Path, rows: list[dict], out: Path, sampling: str) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(folder)
    arguments = _arguments(TrainingArguments, out, BATCH, train_sampling_strategy=sampling)
    trainer = Trainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), data_collator=pad)
    trainer.train()
    trainer.save_model(str(out / "model"))


def _trl(folder: Path, rows: list[dict], out: Path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    options = {"packing": True, "packing_strategy": "bfd", "max_length": TRL_WINDOW}
    arguments = _arguments(SFTConfig, out, 1, bf16=False, gradient_checkpointing=False, **options)
    return SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def run_trl(folder: Path, rows: list[dict], out: Path) -> None:
    trainer = _trl(folder, rows, out)
    trainer.train()
    trainer.save_model(str(out / "model"))


RUNS = {
    "ours": run_ours,
    "padded": lambda *given: run_trainer(*given, "random"),
    "grouped": lambda *given: run_trainer(*given, "group_by_length"),
    "trl": run_trl,
}


def work(variant: str, folder: Path, documents: int) -> None:
    """Run one variant in this process and print its numbers."""
    import transformers  # what is loaded before must not count as the variant's memory
    from peft import PeftModel  # noqa: F401

    import ctxft.training.loop  # noqa: F401

    if variant == "trl":
        import trl  # noqa: F401
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    rows = make_rows(documents)
    with tempfile.TemporaryDirectory() as out, Peak() as peak:
        cpu, wall = time.process_time(), time.perf_counter()
        RUNS[variant](folder, rows, Path(out))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    tokens = sum(len(row["labels"]) - PROMPT for row in rows)
    print("RESULT " + json.dumps({"cpu": tokens / cpu, "wall": tokens / wall, "peak": peak.megabytes}))


# --- exactness --------------------------------------------------------------------------------------------------------


def exactness(folder: Path) -> dict[str, str]:
    """Return for our layout and for padding how far loss and gradients of a batch are from the rows one at a time."""
    from ctxft.models import load_model
    from ctxft.training.loss import patch_loss_forward
    from ctxft.training.packing import micro_batches, set_attention

    rows, plain, ours = make_rows(BATCH, seed=9), load_model(str(folder)), load_model(str(folder))

    def gradient(model) -> torch.Tensor:
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        model.zero_grad()
        return flat

    total = sum(_backward(plain(**pad([row]), num_items_in_batch=1).loss) for row in rows)
    reference = gradient(plain)
    padded = _backward(plain(**pad(rows), num_items_in_batch=1).loss), gradient(plain)
    set_attention(ours, "segments")
    patch_loss_forward(ours)
    batches = micro_batches(rows, "segments", 4096, 0)
    packed = sum(_backward(ours(**batch.inputs("cpu")).loss) for batch in batches), gradient(ours)
    found = {"ours": packed, "padded": padded, "grouped": padded}
    with tempfile.TemporaryDirectory() as out:
        trainer = _trl(folder, rows, Path(out))
        one = torch.tensor(1.0)
        losses = (
            trainer.compute_loss(trainer.model, b, num_items_in_batch=one) for b in trainer.get_train_dataloader()
        )
        found["trl"] = sum(_backward(loss) for loss in losses), gradient(trainer.model)
    return {
        name: f"loss {abs(loss - total) / total:.0e}, gradient {((g - reference).norm() / reference.norm()).item():.0e}"
        for name, (loss, g) in found.items()
    }


def _backward(loss: torch.Tensor) -> float:
    loss.backward()
    return loss.item()


# --- table ------------------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def padding(rows: list[dict]) -> str:
    """Return the share of real tokens in random and in length-grouped batches of 8."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = [len(row["input_ids"]) for row in rows]
    grouped = list(LengthGroupedSampler(BATCH, lengths=lengths, generator=torch.Generator().manual_seed(0)))
    shuffled = random.Random(0).sample(range(len(rows)), len(rows))
    shares = []
    for order in (shuffled, grouped):
        parts = [[lengths[i] for i in order[b : b + BATCH]] for b in range(0, len(order), BATCH)]
        shares.append(sum(lengths) / sum(max(part) * len(part) for part in parts))
    return f"real tokens in a batch: random {shares[0]:.2f}, grouped {shares[1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=240)
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--record", action="store_true", help="write the medians into notebooks/results/speed.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.folder, options.documents)
        return
    variants = options.only.split(",")
    found: dict[str, list[dict]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder)
        for number in range(options.rounds):
            for name in variants:
                command = [sys.executable, __file__, "--work", name, "--folder", place]
                command += ["--documents", str(options.documents)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
                found[name].append(json.loads(lines[0].removeprefix("RESULT ")))
                print(f"round {number + 1}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
        exact = exactness(folder)
    rows = make_rows(options.documents)
    packages = ("torch", "transformers", "trl", "accelerate")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    text = sum(len(row["labels"]) - PROMPT for row in rows)
    print(f"{options.documents} documents, {text} text tokens, {options.rounds} rounds; {padding(rows)}\n")
    print("| | text tokens/s, CPU time | ours faster by (per round) | wall time | peak memory, MB | exactness |")
    print("|---|---|---|---|---|---|")
    for name in variants:
        runs = found[name]
        ratio = spread([a["cpu"] / b["cpu"] for a, b in zip(found.get("ours", runs), runs, strict=True)], 2)
        columns = [spread([run[key] for run in runs]) for key in ("cpu", "wall", "peak")]
        print(f"| {name} | {columns[0]} | {ratio} | {columns[1]} | {columns[2]} | {exact.get(name, '')} |")
    if options.record:
        real = [round(100 * float(share)) for share in re.findall(r"0\.\d+", padding(rows))]
        about = {"rounds": options.rounds, "documents": options.documents, "real_tokens": real}
        record("training", {**about, "variants": {name: numbers(found, name) for name in variants}}, *packages)


def numbers(found: dict[str, list[dict]], name: str) -> dict:
    """Return tokens a second, the factor by which ours is faster, and the peak of memory: median, lowest, highest."""
    runs, ours = found[name], found.get("ours", found[name])
    faster = None if name == "ours" else three([a["cpu"] / b["cpu"] for a, b in zip(ours, runs, strict=True)])
    return {"cpu": three([run["cpu"] for run in runs]), "faster": faster, "peak": three([run["peak"] for run in runs])}


if __name__ == "__main__":
    main()
