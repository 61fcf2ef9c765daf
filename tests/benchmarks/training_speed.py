"""Time the training of one arm against transformers' Trainer and TRL's SFTTrainer, end to end, on the same documents.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/training_speed.py [--data DIR] [--rounds 3] [--documents 400]

Each round runs every variant once, one after another, each in a process of its own with one thread. What is timed starts
with rows in memory and a model folder on disk and ends with a trained model folder: loading, preparing, one pass over the
documents, saving. All have the same rows, weights, AdamW (fused), learning rate, clipping and about the same target tokens
in a step. The rivals run with what suits a CPU: no workers, no pinned memory, no reports, no checkpoints, no bfloat16, no
gradient checkpointing, labels made beforehand.

    ours             train_arm with its defaults
    trainer          Trainer, batches of 8 in random order, padded to the longest
    trainer grouped  the same with train_sampling_strategy="group_by_length", lengths given beforehand
    trl packed       SFTTrainer, packing "bfd" into rows of --packed tokens, which holds about 8 documents

First each takes one step over the same 8 documents; its loss and its gradient, caught as the optimizer is about to use it,
are compared with those of the documents read one at a time in float64.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch
import transformers
import workload
from torch.nn.functional import cross_entropy

BATCH = 8  # documents in a step
RATE = 1e-4
CLIP = 1.0
BETAS = (0.9, 0.999)
EXACT = 8  # documents of the step whose gradient is compared
NAMES = {"ours": "ours", "trainer": "trainer", "grouped": "trainer grouped", "trl": "trl packed"}


def prepare_ours(rows: list, place: Path, clip: float, packed: int) -> Callable[[], float]:
    """Return a call that trains with the library's default path and returns the last step's loss per target."""
    from ctxft.models import load_tokenizer
    from ctxft.training.arm import train_arm
    from ctxft.training.config import TrainConfig

    config = TrainConfig(
        window=workload.PROMPT + workload.LONGEST,
        epochs=1,
        batch_passages=BATCH,
        learning_rate=RATE,
        warmup=0.0,
        betas=list(BETAS),
        clip=clip,
        device="cpu",
    )
    tokenizer = load_tokenizer(str(place / "model"))

    def run() -> float:
        train_arm(rows, str(place / "model"), tokenizer, config, seed=0, folder=place / "out")
        log = (place / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(log[-1])["loss"]

    return run


def common_arguments(place: Path, clip: float) -> dict:
    """Return the settings that Trainer and SFTTrainer share."""
    return {
        "output_dir": str(place / "out"),
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "max_grad_norm": clip,
        "optim": "adamw_torch_fused",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def load_float32(place: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32)


def prepare_trainer(rows: list, place: Path, clip: float, packed: int, grouped: bool = False) -> Callable[[], float]:
    """Return a call that trains with Trainer and returns the mean loss of its steps."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    lengths = [len(row["input_ids"]) for row in rows]
    masks = [[1] * length for length in lengths]
    columns = {key: [row[key] for row in rows] for key in ("input_ids", "labels")}
    dataset = Dataset.from_dict(columns | {"attention_mask": masks, "length": lengths})
    strategy = {"train_sampling_strategy": "group_by_length" if grouped else "random"}
    arguments = common_arguments(place, clip) | strategy | {"per_device_train_batch_size": BATCH}

    def run() -> float:
        collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=workload.IGNORE_INDEX)
        trainer = Trainer(load_float32(place), TrainingArguments(**arguments), collator, dataset)
        loss = trainer.train().training_loss
        trainer.save_model(str(place / "out" / "model"))
        return loss

    return run


def prepare_grouped(rows: list, place: Path, clip: float, packed: int) -> Callable[[], float]:
    """Return the same with batches of like lengths."""
    return prepare_trainer(rows, place, clip, packed, grouped=True)


def prepare_trl(rows: list, place: Path, clip: float, packed: int) -> Callable[[], float]:
    """Return a call that trains with SFTTrainer on packed rows and returns the mean loss of its steps."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    dataset = Dataset.from_dict({key: [row[key] for row in rows] for key in ("input_ids", "labels")})
    packing = {"packing": True, "packing_strategy": "bfd", "max_length": packed, "per_device_train_batch_size": 1}

    def run() -> float:
        arguments = SFTConfig(**common_arguments(place, clip) | packing)
        trainer = SFTTrainer(load_float32(place), arguments, train_dataset=dataset, processing_class=tokenizer)
        loss = trainer.train().training_loss
        trainer.save_model(str(place / "out" / "model"))
        return loss

    return run


PREPARE = {"ours": prepare_ours, "trainer": prepare_trainer, "grouped": prepare_grouped, "trl": prepare_trl}


def silence() -> None:
    """Keep libraries from writing bars and notes, which would cost time too."""
    import datasets

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def one_at_a_time(rows: list, place: Path) -> tuple[float, list[torch.Tensor]]:
    """Return loss per target and gradient of rows read one at a time in float64, matrices first as optimizers hold them."""
    model = load_float32(place).double()
    count = sum(label != workload.IGNORE_INDEX for row in rows for label in row["labels"][1:])
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        loss = cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum") / count
        loss.backward()
        total += loss.item()
    parameters = list(model.parameters())
    return total, [p.grad for p in parameters if p.ndim > 1] + [p.grad for p in parameters if p.ndim < 2]


def compare(variant: str, rows: list, place: Path) -> dict:
    """Take one step and return relative errors of loss and gradient against the documents one at a time."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    caught = []

    def catch(optimizer, args, options) -> None:
        caught.append([p.grad.double().clone() for group in optimizer.param_groups for p in group["params"]])

    register_optimizer_step_pre_hook(catch)
    packed = sum(len(row["input_ids"]) for row in rows)  # all in one row
    loss = PREPARE[variant](rows, place, 0.0, packed)()
    wanted_loss, wanted = one_at_a_time(rows, place)
    if len(caught) != 1 or [g.shape for g in caught[0]] != [g.shape for g in wanted]:
        raise SystemExit(f"{variant}: {len(caught)} steps, or other parameters than the model has")
    off = sum((a - b).square().sum() for a, b in zip(caught[0], wanted, strict=True)).sqrt()
    size = sum(b.square().sum() for b in wanted).sqrt()
    return {"loss_error": abs(loss - wanted_loss) / wanted_loss, "gradient_error": (off / size).item()}


def measure(variant: str, rows: list, place: Path, packed: int) -> dict:
    """Train once and return text tokens per CPU second and per second, and the memory it took."""
    text = sum(label != workload.IGNORE_INDEX for row in rows for label in row["labels"])
    run = PREPARE[variant](rows, place, CLIP, packed)
    with workload.PeakMemory() as memory, workload.Seconds() as seconds:
        run()
    return {"cpu": text / seconds.cpu, "wall": text / seconds.wall, "megabytes": memory.above}


def worker(options: argparse.Namespace) -> None:
    """Run one variant in this process and print what was found as the last line."""
    torch.set_num_threads(1)
    silence()
    source = Path(options.folder)
    rows = json.loads((source / "rows.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "model").symlink_to(source / "model")
        if options.exact:
            found = compare(options.worker, rows[:EXACT], Path(place))
        else:
            found = measure(options.worker, rows, Path(place), options.packed)
    print(json.dumps(found))


def in_new_process(variant: str, folder: Path, options: argparse.Namespace, *extra: str) -> dict:
    """Run one variant in a process of its own."""
    command = [sys.executable, __file__, "--worker", variant, "--folder", str(folder), "--packed", str(options.packed)]
    done = subprocess.run([*command, *extra], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_inputs(folder: Path, options: argparse.Namespace) -> str:
    """Write rows, model and tokenizer, and return a line that says what they are."""
    texts = workload.read_texts(options.data)
    tokenizer = workload.train_tokenizer(texts)
    rows = workload.make_rows(workload.token_stream(texts, tokenizer), workload.draw_lengths(options.documents))
    model = workload.new_llama()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    tokens = sum(len(row["input_ids"]) for row in rows)
    return (
        f"{len(rows)} documents, {tokens - workload.PROMPT * len(rows)} text tokens, {tokens} with prompts; "
        f"model of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
    )


def show(found: dict[str, list[dict]], exact: dict[str, dict]) -> None:
    """Print the table: medians over rounds with lowest and highest, and each round's ratio to ours."""
    heads = ("", "text tokens/CPU s", "text tokens/s", "ours is faster by", "peak memory, MB", "loss error", "gradient")
    widths = (16, 22, 22, 22, 20, 11, 9)
    print("  ".join(f"{head:<{width}}" for head, width in zip(heads, widths, strict=True)))
    for variant, runs in found.items():
        ratios = [mine["cpu"] / run["cpu"] for mine, run in zip(found["ours"], runs, strict=True)]
        cells = [workload.spread([run[key] for run in runs], 0) for key in ("cpu", "wall")]
        cells += [workload.spread(ratios), workload.spread([run["megabytes"] for run in runs], 0)]
        cells += [f"{exact[variant][key]:.1e}" for key in ("loss_error", "gradient_error")]
        print("  ".join(f"{cell:<{width}}" for cell, width in zip([NAMES[variant], *cells], widths, strict=True)))


def main() -> None:
    """Parse the options, prepare, compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with corpora/*.jsonl (default: the practice world's texts)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant (default: 3)")
    parser.add_argument("--documents", type=int, default=400, help="below 400, grouping cannot sort (default: 400)")
    parser.add_argument("--packed", type=int, default=1600, help="tokens of TRL's packed rows (default: 1600)")
    parser.add_argument("--worker", choices=PREPARE, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    with tempfile.TemporaryDirectory() as place:
        print(write_inputs(Path(place), options), flush=True)
        exact = {variant: in_new_process(variant, Path(place), options, "--exact") for variant in PREPARE}
        found: dict[str, list[dict]] = {variant: [] for variant in PREPARE}
        for number in range(options.rounds):
            for variant in PREPARE:
                found[variant].append(in_new_process(variant, Path(place), options))
                run = found[variant][-1]
                print(f"round {number + 1} {NAMES[variant]}: {run['cpu']:.0f} text tokens/CPU s", flush=True)
    print(workload.versions_line("torch", "transformers", "trl", "accelerate"))
    print(f"one thread; medians of {options.rounds} rounds [lowest to highest], {time.strftime('%Y-%m-%d')}\n")
    show(found, exact)
    return None


if __name__ == "__main__":
    main()
