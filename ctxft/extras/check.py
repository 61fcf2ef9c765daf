"""Check the kit's guarantees on this machine, for ``ctxft check``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ctxft.config import TrainConfig
from ctxft.evaluation.benchmarks import load_benchmark, render
from ctxft.evaluation.scoring import score_choices
from ctxft.models import encode_text, load_model, load_tokenizer
from ctxft.prompts import load_prompt_set
from ctxft.storage import FailedError, read_jsonl
from ctxft.training.loop import train_arm
from ctxft.world.texts import practice_documents


class _Interrupted(list):
    """Rows whose reading fails after a number of them, as if the training were killed in the middle."""

    left = 20

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return super().__getitem__(index)


def check_training(folder: Path) -> dict[str, tuple[float, float]]:
    """Train three times for a few steps; return how far losses and gradient norms differ, and how far they may."""
    tokenizer, rows = load_tokenizer("practice-aware"), []
    for prompt, document in zip(load_prompt_set("strategies").prompts, practice_documents(), strict=False):
        masked = [tokenizer.bos_token_id, *encode_text(tokenizer, prompt.text)[0]]
        text = encode_text(tokenizer, document["text"])[0][:64]
        rows.append({"input_ids": masked + text, "labels": [-100] * len(masked) + text})

    def log(name: str, rows: list, **changes: Any) -> list[float]:
        values = {"max_steps": 6, "train_batch_size": 4, "micro_batch_tokens": 512, "save_steps": 2, "device": "cpu"}
        train_arm(rows, "practice-aware", tokenizer, TrainConfig(**values | changes), 0, folder / name)
        return [row[key] for _, row in read_jsonl(folder / name / "log.jsonl") for key in ("loss", "grad_norm")]

    straight, alone = log("straight", rows), log("alone", rows, pack=False, micro_batch_tokens=128)
    with contextlib.suppress(InterruptedError):
        log("resumed", _Interrupted(rows))
        raise FailedError("the training was not interrupted, so nothing was resumed.")
    resumed = log("resumed", rows)

    def furthest(other: list[float]) -> float:
        return max(abs(a - b) / abs(a) for a, b in zip(straight, other, strict=True))

    return {"packed equals one at a time": (furthest(alone), 1e-4), "resumed equals straight": (furthest(resumed), 0.0)}


def check_scores() -> float:
    """Return how far log-likelihoods differ between small and large batches."""
    model, tokenizer = load_model("practice-aware"), load_tokenizer("practice-aware")
    questions = load_benchmark("practice-mmlu", limit=24).questions
    requests = [render(question, "cloze") for question in questions]

    def likelihoods(budget: int) -> list[float]:
        scores = score_choices(model, tokenizer, requests, max_batch_tokens=budget)
        return [value for score in scores for value in score.log_likelihoods]

    return max(abs(a - b) for a, b in zip(likelihoods(64), likelihoods(4096), strict=True))
