"""Time the training of one arm against the rivals of training_speed.py and two that suit a CPU better, on real texts too.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/training_rivals.py [--data DIR] [--rounds 3] [--documents 400]

Each round runs every variant once, each in a process of its own with one thread. What is timed starts
with rows in memory and a model folder on disk and ends with a trained model folder: loading, preparing, one pass over the
documents, saving. All have the same rows, weights, AdamW (fused), learning rate, clipping and about the same target tokens
in a step. The rivals run with what suits a CPU: no workers, no pinned memory, no reports, no checkpoints, no bfloat16, no
gradient checkpointing, labels made beforehand.

    ours             train_arm with its defaults
    trainer          Trainer, batches of 8 in random order, padded to the longest
    trainer grouped  the same with train_sampling_strategy="group_by_length", lengths given beforehand
    trainer single   the same with batches of one document and 8 of them accumulated: no padding, no packing
    trl packed       SFTTrainer, packing "bfd" into one row of 1600 tokens, which holds about 8 documents
    trl short rows   the same with rows of 640 tokens, which hold the longest document, and 3 of them accumulated: attention
                     of a packed row is masked and grows with its square, so this suits a CPU better

First each takes one step over the same 8 documents; its loss and its gradient, caught as the optimizer is about to use it,
are compared with those of the documents read one at a time in float64.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch
import transformers
import workload

from tests.benchmarks.record import record
from tests.benchmarks.record import spread as three

BATCH = 8  # documents in a step
RATE = 1e-4
CLIP = 1.0
BETAS = (0.9, 0.999)
EXACT = 8  # documents of the step whose gradient is compared
NAMES = {
    "ours": "ours",
    "trainer": "trainer",
    "grouped": "trainer grouped",
    "single": "trainer single",
    "trl": "trl packed",
    "short": "trl short rows",
}


def prepare_ours(rows: list, place: Path, clip: float, together: bool) -> Callable[[], float]:
    """Return a call that trains with the library's default path and returns the last step's loss per target.

    As in all of these, the rows make one step where they are to be taken together.
    """
    from ctxft.config import TrainConfig
    from ctxft.models import load_tokenizer
    from ctxft.training.loop import train_arm

    config = TrainConfig(
        max_length=workload.PROMPT + workload.LONGEST,
        num_train_epochs=1,
        train_batch_size=BATCH,
        learning_rate=RATE,
        warmup_steps=0.0,
        betas=list(BETAS),
        max_grad_norm=clip,
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


def prepare_trainer(rows: list, place: Path, clip: float, together: bool, **settings) -> Callable[[], float]:
    """Return a call that trains with Trainer and returns the mean loss of its steps."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    lengths = [len(row["input_ids"]) for row in rows]
    masks = [[1] * length for length in lengths]
    columns = {key: [row[key] for row in rows] for key in ("input_ids", "labels")}
    dataset = Dataset.from_dict(columns | {"attention_mask": masks, "length": lengths})
    settings = {"train_sampling_strategy": "random", "per_device_train_batch_size": BATCH} | settings
    arguments = common_arguments(place, clip) | settings

    def run() -> float:
        collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=workload.IGNORE_INDEX)
        trainer = Trainer(load_float32(place), TrainingArguments(**arguments), collator, dataset)
        loss = trainer.train().training_loss
        trainer.save_model(str(place / "out" / "model"))
        return loss

    return run


def prepare_trl(
    rows: list, place: Path, clip: float, together: bool, packed: int = 1600, accumulated: int = 1
) -> Callable[[], float]:
    """Return a call that trains with SFTTrainer on packed rows and returns the mean loss of its steps."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    if together:
        packed, accumulated = sum(len(row["input_ids"]) for row in rows), 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    dataset = Dataset.from_dict({key: [row[key] for row in rows] for key in ("input_ids", "labels")})
    packing = {"packing": True, "packing_strategy": "bfd", "max_length": packed}
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulated}

    def run() -> float:
        arguments = SFTConfig(**common_arguments(place, clip) | packing | batch)
        trainer = SFTTrainer(load_float32(place), arguments, train_dataset=dataset, processing_class=tokenizer)
        loss = trainer.train().training_loss
        trainer.save_model(str(place / "out" / "model"))
        return loss

    return run


PREPARE = {
    "ours": prepare_ours,
    "trainer": prepare_trainer,
    "grouped": functools.partial(prepare_trainer, train_sampling_strategy="group_by_length"),
    "single": functools.partial(prepare_trainer, per_device_train_batch_size=1, gradient_accumulation_steps=BATCH),
    "trl": prepare_trl,
    "short": functools.partial(prepare_trl, packed=640, accumulated=3),
}


def silence() -> None:
    """Keep libraries from writing bars and notes, which would cost time too."""
    import datasets

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def compare(variant: str, rows: list, place: Path) -> dict:
    """Take one step and return relative errors of loss and gradient against the documents one at a time."""
    run = PREPARE[variant](rows, place, 0.0, True)
    with workload.gradients() as caught:
        loss = run()
    wanted, gradient = workload.one_at_a_time(load_float32(place), rows)
    if len(caught) != 1:
        raise SystemExit(f"{variant}: {len(caught)} steps in place of one")
    return {"loss_error": abs(loss - wanted) / wanted, "gradient_error": workload.relative_error(caught[0], gradient)}


def measure(variant: str, rows: list, place: Path) -> dict:
    """Train once and return text tokens per CPU second and per second, and the memory it took."""
    text = sum(label != workload.IGNORE_INDEX for row in rows for label in row["labels"])
    run = PREPARE[variant](rows, place, CLIP, False)
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
            found = measure(options.worker, rows, Path(place))
    print(json.dumps(found))


def in_new_process(variant: str, folder: Path, *extra: str) -> dict:
    """Run one variant in a process of its own."""
    command = [sys.executable, __file__, "--worker", variant, "--folder", str(folder), *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
    shares = []
    for number in (options.documents, 4000):
        lengths = [workload.PROMPT + length for length in workload.draw_lengths(number)]
        shares.append(f"{workload.real_share(lengths, True):.2f} of {number} documents")
    return (
        f"{len(rows)} documents, {tokens - workload.PROMPT * len(rows)} text tokens, {tokens} with prompts; "
        f"model of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters\n"
        f"no padding are in random batches {workload.real_share(lengths, False):.2f}, in grouped ones {', '.join(shares)}"
    )


def show(found: dict[str, list[dict]], exact: dict[str, dict]) -> None:
    """Print the table: medians over rounds with lowest and highest, and each round's ratio to ours."""
    heads = ("", "text tokens/CPU s", "text tokens/s", "ours is faster by", "peak memory, MB", "loss error", "gradient")
    widths = (16, 22, 22, 22, 20, 11, 9)
    print("  ".join(f"{head:<{width}}" for head, width in zip(heads, widths, strict=True)))
    for variant, runs in found.items():
        ratios = [mine["cpu"] / run["cpu"] for mine, run in zip(found.get("ours", runs), runs, strict=True)]
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
    parser.add_argument("--only", default=",".join(PREPARE), help="variants, separated by commas (default: all)")
    parser.add_argument("--record", action="store_true", help="write the medians into notebooks/results/speed.json")
    parser.add_argument("--worker", choices=PREPARE, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    with tempfile.TemporaryDirectory() as place:
        print(write_inputs(Path(place), options), flush=True)
        variants = options.only.split(",")
        exact = {variant: in_new_process(variant, Path(place), "--exact") for variant in variants}
        found: dict[str, list[dict]] = {variant: [] for variant in variants}
        for number in range(options.rounds):
            for variant in variants:
                found[variant].append(in_new_process(variant, Path(place)))
                run = found[variant][-1]
                print(f"round {number + 1} {NAMES[variant]}: {run['cpu']:.0f} text tokens/CPU s", flush=True)
    print(workload.versions_line("torch", "transformers", "trl", "accelerate"))
    print(f"one thread; medians of {options.rounds} rounds [lowest to highest], {time.strftime('%Y-%m-%d')}\n")
    show(found, exact)
    if options.record:
        about = {"rounds": options.rounds, "documents": options.documents}
        values = {name: numbers(found, name) for name in variants}
        record("rivals", {**about, "variants": values}, "torch", "transformers", "trl", "accelerate")
    return None


def numbers(found: dict[str, list[dict]], name: str) -> dict:
    """Return the factor by which ours is faster (median, lowest, highest) and the median peak of memory in MB."""
    runs, ours = found[name], found.get("ours", found[name])
    faster = None if name == "ours" else three([a["cpu"] / b["cpu"] for a, b in zip(ours, runs, strict=True)])
    return {"faster": faster, "peak": statistics.median(run["megabytes"] for run in runs)}


if __name__ == "__main__":
    main()
