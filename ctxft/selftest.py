"""The kit's promises flow in as small experiments on the practice model; a table of what held on this machine flows out.

Each check is a function that returns one sentence on what it saw, or raises ``CheckFailed`` with what went wrong.
``ctxft check`` runs them all, in about a minute on a CPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, logging

from ctxft.data.documents import Document
from ctxft.data.passages import Passage, cut
from ctxft.data.rows import (
    IGNORE_INDEX,
    build_row,
    longest_prompt,
    prompt_ids,
    special_tokens,
    text_budget,
)
from ctxft.evaluation.benchmarks import load_benchmark, render
from ctxft.evaluation.scoring import score_choices
from ctxft.models import encode_text, load_model, load_tokenizer
from ctxft.prompts import TEXT_STAGES, load_prompt_set, prompt_for
from ctxft.storage import seeded, versions
from ctxft.training.attention import set_attention
from ctxft.training.config import TrainConfig
from ctxft.training.loop import Training, train_arm
from ctxft.training.loss import read_for_loss
from ctxft.training.packing import micro_batches
from ctxft.world.texts import practice_documents

WINDOW = 128
LAYOUTS = ("segments", "sdpa", "eager", "padded sdpa", "padded eager")
TRAINED = TEXT_STAGES
DOCUMENTS = practice_documents(unreliable=0.5)[:12]


class CheckFailed(Exception):
    """A promise of the kit does not hold on this machine."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:  # not an assert statement: those vanish under python -O
        raise CheckFailed(otherwise)


def _passages() -> list[Passage]:
    tokenizer = load_tokenizer("practice-blind")
    budget = text_budget(
        WINDOW, longest_prompt(tokenizer, (load_prompt_set("strategies"), load_prompt_set("negative"))), 16
    )
    documents = [Document(row["id"], row["text"], row["id"], row["reliable"]) for row in DOCUMENTS]
    return [passage for document in documents for passage in cut(document, tokenizer, budget)]


def _rows(arm: str, seed: int = 0) -> list[dict]:
    tokenizer, strategies, negative = (
        load_tokenizer("practice-blind"),
        load_prompt_set("strategies"),
        load_prompt_set("negative"),
    )
    special = special_tokens(tokenizer)
    prompts = [prompt_for(arm, p.id, seed, strategies, negative, tokenizer, p.reliable) for p in _passages()]
    return [build_row(p, prompt_ids(tokenizer, c), special) for p, c in zip(_passages(), prompts, strict=True)]


def check_text_is_whole() -> str:
    """Passages joined are the document, token for token."""
    tokenizer = load_tokenizer("practice-blind")
    for row in DOCUMENTS:
        pieces = [p for p in _passages() if p.document == row["id"]]
        same = [i for p in pieces for i in p.ids] == encode_text(tokenizer, row["text"])[0]
        _require(same, f"document {row['id']} lost or gained tokens")
    return f"{len(_passages())} passages hold every token of {len(DOCUMENTS)} documents"


def check_same_targets() -> str:
    """All arms learn the same ids in the same rows."""
    targets = {arm: [[i for i in row["labels"] if i != IGNORE_INDEX] for row in _rows(arm)] for arm in TRAINED}
    different = [arm for arm in TRAINED if targets[arm] != targets["cpt"]]
    _require(not different, f"the targets of {', '.join(different)} are not those of cpt")
    return f"{', '.join(TRAINED)}: {sum(map(len, targets['cpt']))} equal targets"


def check_prompt_on_every_passage() -> str:
    """Every row starts with one BOS and, but in CPT, carries a prompt of which nothing is a target."""
    special = special_tokens(load_tokenizer("practice-blind"))
    for arm in TRAINED:
        for row in _rows(arm):
            before = row["labels"].count(IGNORE_INDEX)
            one_start = row["input_ids"][0] == special.start and row["input_ids"].count(special.start) == 1
            masked = (before == 1) == (arm == "cpt") and row["labels"][:before] == [IGNORE_INDEX] * before
            _require(one_start and masked, f"a row of {arm} has another start, no prompt, or a prompt that is learned")
    return f"{len(_rows('cft'))} rows an arm, one BOS each, a prompt on every one but in cpt"


def check_control_length() -> str:
    """A control prompt has as many tokens as the prompt it stands for."""
    lengths = [[len(row["input_ids"]) for row in _rows(arm)] for arm in ("cft", "control")]
    _require(lengths[0] == lengths[1], "a control row has another length than the row it stands for")
    return f"equal in {len(lengths[0])} rows, to the token"


def _one_by_one(model: PreTrainedModel, rows: list[dict]) -> tuple[float, list[torch.Tensor]]:
    """Return loss and gradients of rows that the model's own forward pass reads one at a time."""
    model.zero_grad()
    total = 0.0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        loss = model(input_ids=ids, labels=labels, use_cache=False, num_items_in_batch=1).loss
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in model.parameters()]


def _laid_out(model: PreTrainedModel, rows: list[dict], attention: str) -> tuple[float, list[torch.Tensor]]:
    """Return loss and gradients of rows that are laid out side by side."""
    model.zero_grad()
    total = 0.0
    for batch in micro_batches(rows, _layout_of(attention), attention.removeprefix("padded "), pad=0):
        loss = model(**batch.inputs("cpu")).loss
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in model.parameters()]


def _layout_of(attention: str) -> TrainConfig:
    return TrainConfig(window=WINDOW, micro_batch_tokens=4 * WINDOW, pack=not attention.startswith("padded"))


def _network(attention: str) -> PreTrainedModel:
    model = load_model("practice-blind")
    set_attention(model, attention.removeprefix("padded "), WINDOW)
    return read_for_loss(model)


def check_packing() -> str:
    """Loss and gradients of packed passages are those of the passages one at a time."""
    rows, worst = _rows("cft"), 0.0
    reference = load_model("practice-blind")
    for number in range(5):
        chosen = seeded("packing", number).sample(rows, 8)
        loss, gradients = _one_by_one(reference, chosen)
        size = sum(g.square().sum() for g in gradients).sqrt()
        for attention in LAYOUTS:
            found, others = _laid_out(_network(attention), chosen, attention)
            off = sum((a - b).square().sum() for a, b in zip(gradients, others, strict=True)).sqrt() / size
            worst = max(worst, abs(found - loss) / loss, off.item())
            _require(worst <= 1e-5, f"{attention}: loss {found} for {loss}, gradients differ by {off:.1e}")
    return f"5 batches, {', '.join(LAYOUTS)}: loss and gradients within {worst:.1e}"


def check_no_leak() -> str:
    """No gradient flows from one passage's loss to another's embeddings."""
    rows = seeded("leak").sample(_rows("cft"), 4)
    for attention in LAYOUTS[:3]:
        model, seen = _network(attention), []
        model.get_input_embeddings().register_forward_hook(lambda module, given, out, to=seen: to.append(out))
        for target in range(len(rows)):
            labels = [
                row["labels"] if n == target else [IGNORE_INDEX] * len(row["labels"]) for n, row in enumerate(rows)
            ]
            changed = [{"input_ids": row["input_ids"], "labels": each} for row, each in zip(rows, labels, strict=True)]
            for batch in micro_batches(changed, _layout_of(attention), attention, pad=0):
                loss = model(**batch.inputs("cpu")).loss
                (gradient,) = torch.autograd.grad(loss, seen.pop())
                size = gradient.abs().sum(-1).flatten()
                if target in batch.rows:
                    before = labels[target].count(IGNORE_INDEX)
                    begin = int(batch.target_positions[0]) - (before - 1)
                    _require(size[begin : begin + before].min() > 0, f"{attention}: a passage does not read its prompt")
                    size[begin : begin + len(labels[target])] = 0
                _require(not size.any(), f"{attention}: a gradient of {size.max():.1e} reaches another passage")
    return f"{', '.join(LAYOUTS[:3])}: exactly 0 outside the passage"


def check_scores_ignore_batching() -> str:
    """Log-likelihoods do not depend on the batch size."""
    model, tokenizer = load_model("practice-blind"), load_tokenizer("practice-blind")
    requests = [render(q, "options", "practice-mmlu") for q in load_benchmark("practice-mmlu", limit=24).questions]
    small, large = (score_choices(model, tokenizer, requests, token_budget=budget) for budget in (64, 4096))
    pairs = [
        (a, b)
        for s, g in zip(small, large, strict=True)
        for a, b in zip(s.log_likelihoods, g.log_likelihoods, strict=True)
    ]
    worst = max(abs(a - b) for a, b in pairs)
    _require(worst <= 1e-4, f"log-likelihoods differ by up to {worst:.1e}")
    return f"{len(pairs)} log-likelihoods, largest difference {worst:.1e}"


@contextmanager
def _stop_after(step: int) -> Iterator[None]:
    """Make the next training stop after an optimizer step, as a kill would, by way of an exception."""
    original = Training.step

    def stopping(self, number, rows):
        if number > step:
            raise InterruptedError
        return original(self, number, rows)

    Training.step = stopping
    try:
        yield
    except InterruptedError:
        pass
    finally:
        Training.step = original


def check_resume() -> str:
    """A training that was interrupted and went on ends with the weights of one that was not, bit for bit on a CPU."""
    config = TrainConfig(steps=6, batch_passages=8, micro_batch_tokens=512, save_every=2, device="cpu")
    tokenizer, rows = load_tokenizer("practice-blind"), _rows("cft")
    with tempfile.TemporaryDirectory() as place:
        straight = train_arm(rows, "practice-blind", tokenizer, config, 0, Path(place) / "straight")
        with _stop_after(5):
            train_arm(rows, "practice-blind", tokenizer, config, 0, Path(place) / "resumed")
        resumed = train_arm(rows, "practice-blind", tokenizer, config, 0, Path(place) / "resumed")
        logs = [(Path(place) / name / "log.jsonl").read_text() for name in ("straight", "resumed")]
    _require(straight["model_hash"] == resumed["model_hash"] and logs[0] == logs[1], "weights or logs differ")
    return "6 optimizer steps, stopped after 5, resumed from 4: equal weights and log"


CHECKS: dict[str, Callable[[], str]] = {
    "no text is lost": check_text_is_whole,
    "all arms learn the same targets": check_same_targets,
    "the prompt is on every passage": check_prompt_on_every_passage,
    "control prompts match in length": check_control_length,
    "packed equals one at a time": check_packing,
    "no passage sees another": check_no_leak,
    "scores do not depend on batch size": check_scores_ignore_batching,
    "resumed equals straight": check_resume,
}


def describe_machine() -> list[tuple[str, str]]:
    """Return the versions of the libraries and the devices that torch sees, as pairs of text."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [*versions().items(), ("device", ", ".join(gpus) or "cpu"), ("torch threads", str(torch.get_num_threads()))]


def run_checks() -> int:
    """Print versions, device and a table of the self-tests; returns 0 if all held, else 1.

    Example:
        >>> run_checks()  # doctest: +SKIP
        0
    """
    for name, value in describe_machine():
        print(f"{name:<14} {value}")
    print()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    failed = 0
    for name, check in CHECKS.items():
        started = time.perf_counter()
        try:
            result, seen = "holds", check()
        except Exception as error:  # any failure of one check is a line of the table; the others go on
            result, seen, failed = "FAILS", f"{type(error).__name__}: {error}", failed + 1
        print(f"{result:<6} {name:<36} {seen} ({time.perf_counter() - started:.1f} s)", flush=True)
    return 1 if failed else 0
