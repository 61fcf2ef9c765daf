"""Compare speed and memory of training between two checkouts of the kit, interleaved, one thread.

    python tests/benchmarks/two_checkouts.py OLD NEW [--rounds 5] [--documents 96]

Each run is a process of its own, forked from one that has its checkout first on PYTHONPATH and has imported what training needs;
it goes from a model folder to a saved model. Reported
are tokens read a second of CPU time, and the peak of resident memory over what the process held before the model was read:
median, lowest and highest, and the ratio of the medians. Both spellings of the config keys are understood.

    practice   practice-aware, rows of up to 96 tokens, eight times as many documents
    hidden 256 a random Llama of 6 layers and 8,192 tokens, rows of up to 630 tokens
    49,152     the same with 2 layers and a vocabulary of 49,152
    lora       the last one with adapters
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROMPT = 30
CASES = {  # layers, vocabulary, longest text, method
    "practice": (None, None, 66, "full"),
    "hidden 256": (6, 8192, 600, "full"),
    "49,152": (2, 49152, 600, "full"),
    "lora": (2, 49152, 600, "lora"),
}


def make_rows(documents: int, vocabulary: int, longest: int) -> list[dict]:
    """Return rows of random ids, text of log-uniform length after a masked prompt."""
    rng, rows = random.Random(3), []
    for _ in range(documents):
        length = PROMPT + round(math.exp(rng.uniform(math.log(20), math.log(longest))))
        ids = [rng.randrange(5, vocabulary) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [-100] * PROMPT + ids[PROMPT:]})
    return rows


def recipe(method: str, window: int):
    """Return the recipe in the spelling that this checkout knows."""
    place = "ctxft.training.config" if importlib.util.find_spec("ctxft.training.config") else "ctxft.config"
    kind = importlib.import_module(place).TrainConfig
    same = {"method": method, "learning_rate": 1e-4, "device": "cpu", "micro_batch_tokens": 2048}
    if "max_length" in getattr(kind, "model_fields", ()):
        names = ("max_length", "num_train_epochs", "train_batch_size", "lr_scheduler_type", "warmup_steps")
    else:
        names = ("window", "epochs", "batch_passages", "schedule", "warmup")
    return kind(**same, **dict(zip(names, (window, 1, 8, "constant", 0.0), strict=True)))


def work(folders: dict[str, str], documents: int) -> None:
    """Train once for each case, in a fork of this process, and print the numbers."""
    import torch
    import transformers

    importlib.import_module(f"ctxft.training.{'loop' if importlib.util.find_spec('ctxft.training.loop') else 'arm'}")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for case, folder in folders.items():
        child = os.fork()
        if not child:
            print("RESULT " + json.dumps({case: train(case, folder, documents)}), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


def train(case: str, folder: str, documents: int) -> dict:
    """Train once in this process and return its numbers."""
    import psutil
    import transformers

    from ctxft.models import load_tokenizer

    place = "loop" if importlib.util.find_spec("ctxft.training.loop") else "arm"
    train_arm = importlib.import_module(f"ctxft.training.{place}").train_arm
    _, _, longest, method = CASES[case]
    tokenizer, config = load_tokenizer(folder), transformers.AutoConfig.from_pretrained(folder)
    rows = make_rows(8 * documents if case == "practice" else documents, config.vocab_size, longest)
    process, state = psutil.Process(), {"on": True, "most": 0}

    def look() -> None:
        while state["on"]:
            state["most"] = max(state["most"], process.memory_info().rss)
            time.sleep(0.005)

    before, began = process.memory_info().rss, time.process_time()
    thread = threading.Thread(target=look)
    thread.start()
    with tempfile.TemporaryDirectory() as out:
        train_arm(rows, folder, tokenizer, recipe(method, PROMPT + longest), 0, Path(out))
    seconds = time.process_time() - began
    state["on"] = False
    thread.join()
    tokens = sum(len(row["input_ids"]) for row in rows)
    return {"speed": tokens / seconds, "peak": (state["most"] - before) / 2**20}


def make_model(case: str, folder: Path) -> str:
    """Return the folder of a case's model; a random one gets the practice tokenizer, which only gives special tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ctxft.models import load_tokenizer
    from ctxft.world.facts import model_folder

    layers, vocabulary, _, _ = CASES[case]
    if layers is None:
        return str(model_folder("practice-aware"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_hidden_layers": layers}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=vocabulary, max_position_embeddings=1024)).save_pretrained(folder)
    load_tokenizer("practice-aware").save_pretrained(folder)
    return str(folder)


def run(checkout: str, folders: dict[str, str], documents: int) -> dict[str, dict]:
    """Train each case once with a checkout."""
    environment = {**os.environ, "PYTHONPATH": checkout, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--work", json.dumps(folders), "--documents", str(documents)]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=False)
    results: dict[str, dict] = {}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            results |= json.loads(line.removeprefix("RESULT "))
    if missing := folders.keys() - results.keys():
        raise SystemExit(f"{', '.join(missing)} of {checkout} failed:\n{done.stderr[-3000:]}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="*", help="folders of the old and the new checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--cases", default=";".join(CASES), help="separated by semicolons")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work), options.documents)
        return
    old, new = (str(Path(checkout).resolve()) for checkout in options.checkouts)
    sys.path.insert(0, new)
    cases = options.cases.split(";")
    with tempfile.TemporaryDirectory() as place:
        folders = {case: make_model(case, Path(place) / str(number)) for number, case in enumerate(cases)}
        rounds = []
        for number in range(options.rounds):
            rounds.append([run(checkout, folders, options.documents) for checkout in (old, new)])
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
    print("| model | measure | old | new | new / old |\n|---|---|---|---|---|")
    for case in cases:
        for key, name in (("speed", "tokens a CPU second"), ("peak", "peak memory, MB")):
            columns = [[pair[side][case][key] for pair in rounds] for side in (0, 1)]
            shown = [f"{statistics.median(v):.0f} [{min(v):.0f}-{max(v):.0f}]" for v in columns]
            ratio = statistics.median(columns[1]) / statistics.median(columns[0])
            print(f"| {case} | {name} | {shown[0]} | {shown[1]} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
