"""Score real benchmarks here and with lm-evaluation-harness, compare every log-likelihood and prediction, and print counts.

    OMP_NUM_THREADS=1 python tests/benchmarks/eval_parity.py --data DIR [--limit N] [--batch 16]

DIR holds MMLU and MedQA files as ``ctxft run --data DIR`` reads them, and a small model in models/stories260K (a Llama of
260,000 parameters that reads 512 tokens, so that many questions are cut on the left). Both sides get the same texts. A
prediction has to agree where the two best scores differ by more than the tolerance; the others are listed. Where
float32 rounding adds up to more than the tolerance (long choices: hundreds of nats), the difference is listed, and both
sides score that question again in float64, where they have to agree to 1e-6 (Llama takes its norms in float32 even then).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from ctxft.evaluation.benchmarks import FORMS, load_benchmark, render
from ctxft.evaluation.scoring import encode_requests, reads_trees, score_choices
from ctxft.models import load_model, load_tokenizer, window_of
from tests.benchmarks.record import record

TOLERANCE, EXACT = 1e-4, 1e-6  # nats, in float32 and in float64


def best(values: list[float]) -> int:
    """Return the index of the first of the highest values."""
    return max(range(len(values)), key=lambda index: values[index])


def gap(values: list[float]) -> float:
    """Return by how much the highest value exceeds the second."""
    first, second = sorted(values, reverse=True)[:2]
    return first - second


def in_float64(harness: HFLM, model: torch.nn.Module, tokenizer: object, request: tuple[str, list[str]]) -> list[float]:
    """Return how far both sides are apart on each choice of a request when the model computes in float64."""
    context, texts = request
    model.double()
    instances = [Instance("loglikelihood", {}, (context, text), number) for number, text in enumerate(texts)]
    theirs = [value for value, _ in harness.loglikelihood(instances, disable_tqdm=True)]
    ours = score_choices(model, tokenizer, [request])[0].log_likelihoods
    model.float()
    return [abs(a - b) for a, b in zip(ours, theirs, strict=True)]


def compare(
    harness: HFLM, model: torch.nn.Module, tokenizer: object, name: str, form: str, options: object, counts: Counter
) -> bool:
    """Compare one benchmark in one form; print a line, and the predictions that rounding may turn; return whether all agree."""
    benchmark = load_benchmark(name, data=Path(options.data), limit=options.limit)
    requests = [render(question, form, benchmark.wording) for question in benchmark.questions]
    pairs = [(context, text) for context, texts in requests for text in texts]
    encoded = [pair for request in encode_requests(tokenizer, requests) for pair in request]
    ids = sum(tuple(harness._encode_pair(*pair)) == found for pair, found in zip(pairs, encoded, strict=True))
    started = time.process_time()
    scores = score_choices(model, tokenizer, requests)
    ours = time.process_time() - started
    instances = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    started = time.process_time()
    expected = iter([value for value, _ in harness.loglikelihood(instances, disable_tqdm=True)])
    theirs = time.process_time() - started
    values = [[next(expected) for _ in score.log_likelihoods] for score in scores]
    errors = [
        abs(a - b) for s, v in zip(scores, values, strict=True) for a, b in zip(s.log_likelihoods, v, strict=True)
    ]
    other = [n for n, (s, v) in enumerate(zip(scores, values, strict=True)) if best(s.log_likelihoods) != best(v)]
    close = [n for n, v in enumerate(values) if gap(v) <= TOLERANCE]
    print(
        f"{name:<13} {form:<9} {len(requests)} items, {sum(s.truncated > 0 for s in scores)} cut; token ids equal"
        f" {ids}/{len(pairs)}; log-likelihoods within {TOLERANCE:g}: {sum(e <= TOLERANCE for e in errors)}/{len(pairs)},"
        f" largest difference {max(errors):.1e}; predictions equal {len(requests) - len(other)}/{len(requests)};"
        f" CPU s {ours:.1f} and {theirs:.1f}",
        flush=True,
    )
    for n in close:
        question = benchmark.questions[n].id
        print(
            f"  two best within {TOLERANCE:g}: {question}, {gap(values[n]):.1e}{', predicted otherwise' * (n in other)}"
        )
    counts.update(pairs=len(pairs), equal_ids=ids, items=len(requests), equal_predictions=len(requests) - len(other))
    counts.update(within=sum(error <= TOLERANCE for error in errors))
    counts["largest"] = max(counts["largest"], *errors)
    far = [n for n, error in enumerate(errors) if error > TOLERANCE]
    places = [(n, k) for n, (_, texts) in enumerate(requests) for k in range(len(texts))]  # of a pair: request, choice
    exact = [in_float64(harness, model, tokenizer, requests[places[n][0]])[places[n][1]] for n in far]
    flat = [value for row in values for value in row]
    for n, error in zip(far, exact, strict=True):
        print(f"  beyond {TOLERANCE:g}: {flat[n]:.1f} nats in float32 {errors[n]:.1e} apart, in float64 {error:.1e}")
    return ids == len(pairs) and max(exact, default=0.0) <= EXACT and set(other) <= set(close)


def main() -> int:
    """Parse the options, compare all benchmarks in both forms; return 1 if anything disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with medical benchmarks and models/stories260K")
    parser.add_argument("--record", action="store_true", help="write the counts into notebooks/results/speed.json")
    parser.add_argument("--limit", type=int, help="at most so many items of each benchmark")
    parser.add_argument("--batch", type=int, default=16, help="batch size of lm-evaluation-harness (default: 16)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns once for every text that it cuts
    folder = str(Path(options.data) / "models" / "stories260K")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch, device="cpu")
    way = "trees" if reads_trees(model) else "rows"
    print(f"window {window_of(model)} and {harness.max_length} tokens; read as {way}", flush=True)
    names = ("mmlu-medical", "medqa")
    counts: Counter = Counter()
    agreed = [compare(harness, model, tokenizer, name, form, options, counts) for name in names for form in FORMS]
    if options.record:
        record("parity", dict(counts), "lm-eval", "torch", "transformers")
    print("everything agrees" if all(agreed) else "NOT everything agrees")
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
