"""Time, memory and disk from 10 MB of text to as much as is asked for: preparation, training, leak check, estimate.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py --data DIR [--sizes 27 100 300] [--only prepare,leaks] [--keep FOLDER]

A corpus of any size is made of DIR/corpora/*.jsonl. In every copy each word is replaced by another of about the same
frequency, of the same length and capitalization, so that a copy has as many tokens but shares next to no 8 words in a row
with another. Two models with random or tiny weights stand for two kinds of tokenizer: DIR/models/stories260K (in the manner
of SentencePiece, 512 tokens) and a byte-level BPE of 32,000 tokens that is trained on the same corpora; --model adds others.

Each measurement is a process of its own. "CPU s" is the time of the work and of the processes that it starts, without
imports; "peak RSS" is of the largest process, imports included, and holds the pages of mapped files that the system could
drop; "private" is the memory that it could not drop, of all processes together. Sizes are of the text in UTF-8, in 10^6 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, islice, pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy
import psutil

MB = 1e6
SAMPLE = 30  # MB at most that the tokenizer alone reads: its speed does not depend on the size
BAND = 4  # words of neighboring frequency that stand for one another
WORD = re.compile(r"\w+|\W+")
ARMS = ["base", "cpt", "cft", "neg"]
PARTS = ("corpus", "prepare", "arms", "train", "leaks", "estimate", "workers", "kill")
BENCHMARKS = ["mmlu-medical", "medqa"]


# --- corpus and models ------------------------------------------------------------------------------------------------


def read_documents(data: Path) -> list[str]:
    """Return the documents of a folder's corpora."""
    paths = sorted((data / "corpora").glob("*.jsonl"))
    return [json.loads(line)["text"] for path in paths for line in path.open(encoding="utf-8")]


class Copies:
    """Copies of documents without end, in which every word is replaced by another of its band; the first has none replaced."""

    def __init__(self, documents: list[str]) -> None:
        known: dict[str, int] = {}
        counts: Counter = Counter()
        self.documents = []
        for text in documents:
            pieces = [known.setdefault(piece, len(known)) for piece in WORD.findall(text)]
            counts.update(pieces)
            self.documents.append(numpy.array(pieces, dtype=numpy.int32))
        self.pieces = numpy.array([*known], dtype=object)
        groups: dict[tuple, list[int]] = {}
        for piece, number in known.items():
            if piece[0].isalnum():
                groups.setdefault(self._shape(piece), []).append(number)
        self.bands = []
        for group in groups.values():
            group.sort(key=lambda number: -counts[number])
            self.bands += numpy.array_split(numpy.array(group), max(1, len(group) // BAND))

    @staticmethod
    def _shape(word: str) -> tuple:
        kinds = (word.isdigit(), word.islower(), word.istitle(), word.isupper(), word.isascii())
        return (*kinds, min(len(word), 14))

    def copy(self, number: int) -> Iterator[str]:
        """Yield the documents of one copy."""
        random = numpy.random.default_rng(number)
        order = numpy.arange(len(self.pieces))
        for band in self.bands if number else ():
            order[band] = random.permutation(band)
        replaced = self.pieces[order]
        for pieces in self.documents:
            yield "".join(replaced[pieces].tolist())

    def write(self, path: Path, megabytes: float) -> Path:
        """Write as many documents as there is room for, as JSON lines; a file that is there stays."""
        if path.exists():
            return path
        size, part = 0, path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            for number in count():
                for place, text in enumerate(self.copy(number)):
                    size += len(text.encode())
                    if size > megabytes * MB:
                        part.rename(path)
                        return path
                    file.write(json.dumps({"id": f"{number}-{place}", "text": text}, ensure_ascii=False) + "\n")
        raise AssertionError("copies have no end")

    def check(self, models: dict[str, str], number: int = 6) -> list[str]:
        """Report how many 8 words in a row two copies share, and how far their tokens are from those of the first."""
        from ctxft.data.ngrams import ngram_hashes, words_of
        from ctxft.models import load_tokenizer

        def grams(copy: list[str]) -> numpy.ndarray:
            return numpy.unique(numpy.concatenate([ngram_hashes(words_of(text)) for text in copy]))

        copies = [[*islice(self.copy(k), 0, None, 4)] for k in range(number)]
        sets = [grams(copy) for copy in copies]
        shared = max(len(numpy.intersect1d(one, other)) / len(one) for one, other in pairwise([*sets, sets[0]]))
        lines = [f"8-grams that two copies share: at most {shared:.4%}"]
        for name, folder in models.items():
            tokenizer = load_tokenizer(folder)
            rates = [
                sum(len(ids) for ids in tokenizer(copy, add_special_tokens=False, verbose=False)["input_ids"])
                / sum(map(len, copy))
                for copy in copies
            ]
            off = max(abs(rate / rates[0] - 1) for rate in rates)
            lines.append(f"{name}: {rates[0]:.3f} tokens a character, in copies within {off:.1%}")
        return lines


def make_bpe(folder: str, documents: list[str]) -> None:
    """Save a byte-level BPE of 32,000 tokens, trained on the documents, and a random Llama of a million parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    names = dict(zip(("bos_token", "eos_token", "pad_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special_ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = LlamaConfig(vocab_size=32_000, **shape, **special_ids, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(folder)


# --- what is measured, in a process of its own ------------------------------------------------------------------------


def tokenize(corpus: str, model: str, batch: int) -> dict:
    """Tokenize the first documents, so many at a time; only the tokenizer is timed."""
    from ctxft.models import load_tokenizer

    tokenizer, cpu, tokens, size = load_tokenizer(model), 0.0, 0, 0
    with open(corpus, encoding="utf-8") as file:
        while size < SAMPLE * MB and (texts := [json.loads(line)["text"] for line in islice(file, batch)]):
            started = time.process_time()
            found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            cpu += time.process_time() - started
            tokens, size = tokens + sum(map(len, found)), size + sum(len(text.encode()) for text in texts)
    return {"cpu": cpu, "tokens": tokens, "megabytes": size / MB}


def on_run(verb: str, config: dict, *values: int) -> dict:
    """Do one stage of a run; the tokenizer and the libraries are loaded before."""
    import torch

    from ctxft.leakage import look_for_leaks
    from ctxft.run.estimate import estimate_lines
    from ctxft.run.run import Run
    from ctxft.training import loop  # noqa: F401

    torch.set_num_threads(1)
    run = Run(config)
    run.tokenizer  # noqa: B018
    if verb == "leaks":
        run.benchmarks  # noqa: B018
    stages: dict[str, Callable[[], object]] = {
        "prepare": lambda: run.prepare(*values),
        "train": lambda: run.train_task("cft"),
        "leaks": lambda: look_for_leaks(run),
        "estimate": lambda: "\n".join(estimate_lines(run)),
    }
    before = os.times()
    result = stages[verb]()
    after = os.times()
    if verb == "estimate":
        print(result, file=sys.stderr)
    return {"cpu": sum(after[:4]) - sum(before[:4]), "seconds": after.elapsed - before.elapsed}


def child(text: str) -> None:
    """Do what the words of the command line name, and print what was measured.

    The process that starts the others imports no torch: a process counts what its parent held as its own peak.
    """
    verb, *values = json.loads(text)
    found: object = None
    if verb == "bpe":
        make_bpe(values[0], read_documents(Path(values[1])))
    elif verb == "check":
        found = Copies(read_documents(Path(values[0]))).check(values[1])
    else:
        found = tokenize(*values) if verb == "tokenize" else on_run(verb, *values)
    print("RESULT " + json.dumps(found))


class Measured:
    """One process of this script, and its peak memory."""

    def __init__(self, *words: object, runs: Path, caches: Path) -> None:
        self.private, self.found = 0.0, {}
        variables = {"CTXFT_RUNS": str(runs), "HF_DATASETS_CACHE": str(caches), "TQDM_DISABLE": "1"}
        command = [sys.executable, __file__, "--child", json.dumps(words)]
        self.process = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        """Add up every 0.1 s what the process and those that it started hold for themselves."""
        parent = psutil.Process(self.process.pid)
        while self.process.returncode is None:
            total = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [parent, *parent.children(recursive=True)]:
                    with contextlib.suppress(OSError):  # it ended meanwhile
                        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
                        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.private = max(self.private, total / 1024)
            time.sleep(0.1)

    def runs(self) -> bool:
        """Return whether the process has not ended yet; it is left for ``wait``."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Measured:
        """Wait for the end of the process."""
        assert self.process.stdout
        out = self.process.stdout.read()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), f"ended with {code}"
        self.peak = usage.ru_maxrss / 1024  # MB, of the largest of it and the processes that it waited for
        self.all_cpu = usage.ru_utime + usage.ru_stime
        self.found = json.loads(out.split("RESULT ")[1]) if code == 0 else {}
        return self


def size_of(*folders: Path) -> int:
    """Return the bytes of all files in folders."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def state_of(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a run folder but locks."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): hashlib.file_digest(path.open("rb"), "sha256").hexdigest() for path in paths}


# --- tables -----------------------------------------------------------------------------------------------------------


class Bench:
    """The measurements of one corpus size and one model, each in a folder for runs and caches of its own."""

    def __init__(self, megabytes: float, corpus: Path, name: str, model: str, options: argparse.Namespace) -> None:
        self.megabytes, self.corpus, self.name, self.options = megabytes, corpus, name, options
        self.place = Path(tempfile.mkdtemp(dir=options.keep))
        self.where = {"runs": self.place / "runs", "caches": self.place / "caches"}
        self.config = {
            "name": "scale",
            "model": model,
            "arms": ARMS,
            "corpus": {"source": str(corpus)},
            "train": {"max_length": options.window, "max_steps": 20, "train_batch_size": 2, "device": "cpu"},
            "evaluation": {"benchmarks": BENCHMARKS, "data": str(options.data)},
        }

    def do(self, *words: object) -> Measured:
        """Measure one process."""
        return Measured(*words, **self.where).wait()

    def row(self, what: str, done: Measured, more: str = "") -> None:
        """Print a line of the table."""
        found = done.found
        size = found.get("megabytes", self.megabytes)
        wall = f"{found['seconds']:.1f}" if "seconds" in found else ""
        values = [f"{size:.0f}", self.name, what, f"{found['cpu']:.1f}", f"{size / found['cpu']:.2f}", wall]
        print("| " + " | ".join([*values, f"{done.peak:.0f}", f"{done.private:.0f}", more]) + " |", flush=True)

    def prepare(self) -> None:
        """The preparation in one process, between two rounds of the tokenizer alone."""
        model, corpus = self.config["model"], str(self.corpus)
        single = self.do("tokenize", corpus, model, 1)
        tokens = single.found["tokens"] / single.found["megabytes"]
        self.row("tokenizer alone, a document at a time", single, f"{tokens / 1000:.0f},000 tokens a MB")
        before = self.do("tokenize", corpus, model, 100)
        done = self.do("prepare", self.config, 1)
        after = self.do("tokenize", corpus, model, 100)
        for tokenizer in (before, after):
            self.row("tokenizer alone, 100 documents at a time", tokenizer)
        disk = size_of(*self.where.values()) / MB / self.megabytes
        alone = (before.found["cpu"] + after.found["cpu"]) / (before.found["megabytes"] + after.found["megabytes"])
        speed = alone * self.megabytes / done.found["cpu"]
        self.row("preparation", done, f"{speed:.0%} of the tokenizer's speed; disk {disk:.2f} times the text")

    def arms(self) -> None:
        """The preparation with arm control too."""
        config = self.config | {"name": "with-control", "arms": [*ARMS, "control"]}
        self.row("preparation with control", self.do("prepare", config, 1))

    def train(self) -> None:
        """A training of 20 steps."""
        done = self.do("train", self.config)
        self.row("training of 20 steps", done, f"{done.all_cpu:.1f} CPU s with imports")

    def leaks(self) -> None:
        """The leak check of a prepared run."""
        self.row("leak check", self.do("leaks", self.config))

    def estimate(self) -> None:
        """The estimate of a run that is prepared, and of one that is not."""
        self.row("estimate, prepared", self.do("estimate", self.config))
        self.row("estimate, not prepared", self.do("estimate", self.config | {"name": "unprepared"}))

    def workers(self) -> None:
        """The same files by one, two and four processes."""
        states = []
        for number in (1, 2, 4):
            runs = self.place / f"runs-{number}"
            done = Measured("prepare", self.config, number, runs=runs, caches=self.where["caches"]).wait()
            states.append(state_of(runs / "scale"))
            same = "same bytes" if states[-1] == states[0] else "OTHER BYTES"
            self.row(f"preparation by {number} processes", done, f"{len(states[-1])} files, {same}")
            shutil.rmtree(runs)

    def kill(self) -> None:
        """A preparation that is killed half-way, and goes on; a file that is kept may have moved."""
        folders = [self.place / f"runs-{name}" for name in ("whole", "killed")]
        whole, killed = (
            Measured("prepare", self.config, 1, runs=runs, caches=self.where["caches"]) for runs in folders
        )
        while size_of(folders[1]) < 0.6 * self.megabytes * MB and killed.runs():
            time.sleep(0.05)
        killed.process.kill()
        killed.wait()
        left = [path for path in folders[1].rglob("*.arrow") if path.is_file()]
        states = {(path.stat().st_ino, path.stat().st_mtime_ns) for path in left}
        done = Measured("prepare", self.config, 1, runs=folders[1], caches=self.where["caches"]).wait()
        whole.wait()
        now = {(path.stat().st_ino, path.stat().st_mtime_ns) for path in folders[1].rglob("*.arrow")}
        same = "same bytes" if len({str(state_of(runs / "scale")) for runs in folders}) == 1 else "OTHER BYTES"
        self.row("preparation after kill -9", done, f"{len(states & now)} of {len(left)} whole files kept, {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--sizes", type=float, nargs="+", default=[27, 100, 300], metavar="MB")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--models", nargs="+", default=["stories260K", "bpe"], help="of these two, or model folders")
    parser.add_argument("--window", type=int, default=512, help="train.max_length")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where corpora and runs stay")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep = options.keep or Path(temporary)
        place.mkdir(exist_ok=True, parents=True)
        known = {"stories260K": str(options.data / "models" / "stories260K"), "bpe": str(place / "bpe")}
        models = {Path(name).name: known.get(name, name) for name in options.models}
        where, wanted = {"runs": place, "caches": place}, options.only.split(",")
        if "bpe" in models and not (place / "bpe" / "config.json").exists():
            Measured("bpe", known["bpe"], str(options.data), **where).wait()
        if "corpus" in wanted:
            print("\n".join(Measured("check", str(options.data), models, **where).wait().found), flush=True)
        copies = Copies(read_documents(options.data))
        heads = ("text, MB", "tokenizer", "what", "CPU s", "MB a CPU s", "seconds", "peak RSS, MB", "private, MB", "")
        print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for size in options.sizes:
            corpus = copies.write(place / f"corpus-{size:g}.jsonl", size)
            for name, model in models.items():
                bench = Bench(size, corpus, name, model, options)
                for part in PARTS[1:]:
                    if part in wanted:
                        getattr(bench, part)()
                shutil.rmtree(bench.place)


if __name__ == "__main__":
    main()
