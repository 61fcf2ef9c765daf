"""Shared ground of the tests: an environment that leaves the repository alone, tiny tokenizers and models, a tiny experiment."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER" not in os.environ:  # the processes of pytest-xdist share the folder of their parent
    os.environ["CTXFT_TESTS"] = tempfile.mkdtemp(prefix="ctxft-tests-")
    atexit.register(shutil.rmtree, os.environ["CTXFT_TESTS"], ignore_errors=True)
SESSION = Path(os.environ["CTXFT_TESTS"])
# Set before torch and tokenizers are imported; notebook kernels and worker processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CTXFT_RUNS"] = str(SESSION / "runs")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from ctxft.config import ExperimentConfig, TrainConfig, from_mapping  # noqa: E402
from ctxft.models import load_tokenizer  # noqa: E402
from ctxft.prompts import COMMON_WORDS, load_prompt_set  # noqa: E402
from ctxft.storage import write_jsonl  # noqa: E402

torch.set_num_threads(1)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
KINDS = ("byte", "metaspace")


collect_ignore = ["benchmarks"]  # scripts that need packages of the extra [bench]
TIERS = {  # beginnings of the ids of a tier's tests; other slow tests carry its marker themselves
    "notebook": ("notebooks/",),
    "process": (
        "tests/faults/test_faults.py",
        "tests/faults/test_large.py",
        "tests/test_adaptive.py::test_arms_read_what_was_written",
        "tests/test_adaptive.py::test_no_key_reaches_a_notebook",
        "tests/test_distributed.py",
        "tests/test_extending.py",
        "tests/test_kills.py",
        "tests/test_run.py::test_from_the_package_to_a_table",
        "tests/test_run.py::test_two_commands_at_once",
        "tests/test_soak.py",
        "tests/test_synthetic_study.py",
        "tests/test_workers.py",
        "tests/test_world.py::test_a_shortened_build",
        "tests/test_world.py::test_another_seed",
        "tests/test_world.py::test_the_command_writes",
        "tests/test_writer.py::test_killed",
        "tests/test_writer.py::test_two_processes",
    ),
    "browser": ("tests/test_browser.py",),
    "fuzz": ("tests/faults/test_dirty_input.py",),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its tier."""
    for item in items:
        for tier, places in TIERS.items():
            if item.nodeid.startswith(places):
                item.add_marker(tier)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a file in one process, since they share what a fixture made, and the course in one, since it shares runs.

    The marker xdist_group would do, but pytest-xdist 3.8 writes it into an attribute that pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return "course" if path.endswith(".ipynb") else path

    return ByFile(config, log)


def make_text(seed: int, sentences: int) -> str:
    """Return sentences of common words in paragraphs of four, the same for a seed."""
    rng = random.Random(seed)
    parts = []
    for number in range(sentences):
        words = rng.sample(COMMON_WORDS, rng.randint(5, 11))
        end = "\n\n" if number % 4 == 3 else " "
        parts.append(" ".join(words).capitalize() + rng.choice([".", ".", "?", "!"]) + end)
    return "".join(parts).strip()


def make_tokenizer(kind: str, folder: Path, **special: str | None) -> Path:
    """Train and save a BPE tokenizer, byte-level or in the manner of SentencePiece; ``bos_token=None`` leaves BOS out."""
    tokenizer = Tokenizer(
        models.BPE(byte_fallback=kind == "metaspace", unk_token="<unk>" if kind == "metaspace" else None)
    )
    if kind == "byte":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        newlines = pre_tokenizers.Split("\n", "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([newlines, pre_tokenizers.Metaspace(prepend_scheme="first")])
        tokenizer.decoder, alphabet = decoders.Metaspace(prepend_scheme="first"), ["\n"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)] if kind == "metaspace" else []
    texts = [make_text(seed, 40) for seed in range(10)]
    texts += [prompt.text for book in ("strategies", "negative") for prompt in load_prompt_set(book).prompts]
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL + bytes_, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"} | special
    names = {name: token for name, token in names.items() if token is not None}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def make_model(folder: Path, vocabulary: int, window: int = 256) -> Path:
    """Save a random Llama of some 60,000 parameters, in bfloat16 as models on the hub are."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=window,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    yield
    torch.set_num_threads(1)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The run root of one test: a folder that does not exist yet."""
    monkeypatch.setenv("CTXFT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def text_of() -> Callable[[int, int], str]:
    """The function (seed, sentences) -> text."""
    return make_text


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable:
    """The function (kind, folder, **special tokens) -> folder."""
    return make_tokenizer


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> dict[str, Path]:
    """A random model with a byte-level tokenizer, and one with a tokenizer in the manner of SentencePiece."""
    folders = {}
    for kind in KINDS:
        folder = make_tokenizer(kind, tmp_path_factory.mktemp(kind))
        folders[kind] = make_model(folder, len(load_tokenizer(str(folder))))
    return folders


@pytest.fixture(scope="session")
def tokenizers(model_folders) -> dict:
    """The tokenizers of ``model_folders``, loaded."""
    return {kind: load_tokenizer(str(folder)) for kind, folder in model_folders.items()}


@pytest.fixture
def corpus_file(tmp_path) -> Path:
    """Eight documents of one to three passages each."""
    rows = [{"id": f"d{n}", "text": make_text(100 + n, 5 + 2 * n)} for n in range(8)]
    return write_jsonl(tmp_path / "corpus.jsonl", rows)


@pytest.fixture
def questions_file(tmp_path) -> Path:
    """Six custom questions."""
    rows = [
        {
            "id": f"q{n}",
            "question": f"What stands at place {n}?",
            "choices": ["the house", "a road", "water"],
            "answer": n % 3,
        }
        for n in range(6)
    ]
    return write_jsonl(tmp_path / "own-questions.jsonl", rows)


@pytest.fixture
def experiment(runs, model_folders, corpus_file, questions_file) -> Callable[..., ExperimentConfig]:
    """The function that makes a tiny experiment; ``train`` and other keys replace the defaults."""

    def make(train: dict | None = None, **values) -> ExperimentConfig:
        recipe = {
            "max_length": 128,
            "min_text_tokens": 16,
            "max_steps": 3,
            "train_batch_size": 4,
            "micro_batch_tokens": 1024,
        }
        defaults = {
            "name": "tiny",
            "model": str(model_folders["byte"]),
            "arms": ["base", "cpt", "cft"],
            "seeds": [0],
            "corpus": {"source": str(corpus_file), "held_out": 0.3},
            "train": recipe | {"device": "cpu"} | (train or {}),
            "evaluation": {"benchmarks": [str(questions_file)]},
        }
        return from_mapping(ExperimentConfig, defaults | values, "test")

    return make


@pytest.fixture
def recipe() -> Callable[..., TrainConfig]:
    """The function that makes a training recipe of a few small optimizer steps on the CPU."""

    def make(**values) -> TrainConfig:
        defaults = {
            "max_steps": 6,
            "train_batch_size": 4,
            "max_length": 128,
            "micro_batch_tokens": 256,
            "device": "cpu",
            "learning_rate": 1e-2,
        }
        return TrainConfig(**defaults | values)

    return make
