"""Simulate exams whose truth is known, and print how often the kit's intervals hold it and its tests reject.

    python tests/benchmarks/coverage.py [--repetitions 2000] [--f1-repetitions 500]

An interval of 95 % should hold the truth in 95 % of repetitions, and a test at 5 % should reject a true null in at most
5 %. Wilson's coverage is summed exactly; the other numbers are simulated, with a standard error of 0.5 points at 2000
repetitions and of 1 point at 500. ``tests/test_statistics.py`` asserts a part of this table.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy
import scipy.special
import scipy.stats

from ctxft.statistics import compare_f1, mcnemar, variance_over_seeds, wilson

ITEM_EFFECT, DIFFICULTY = 1.0, 2.0  # standard deviations, in logits
CLASS_TASKS = {  # items, share of each class, how often each arm names the right class
    "3 classes, 235 items": (235, (0.58, 0.30, 0.12), 0.75, 0.70),
    "2 classes, 500 items, 7 % rare": (500, (0.93, 0.07), 0.90, 0.86),
    "6 classes, 546 items": (546, (0.35, 0.25, 0.15, 0.12, 0.08, 0.05), 0.70, 0.65),
    "6 classes, 96 items": (96, (0.35, 0.25, 0.15, 0.12, 0.08, 0.05), 0.70, 0.65),
}


def wilson_coverage(n: int, share: float) -> float:
    """Return exactly how often Wilson's interval holds the true share."""
    ends = numpy.array([wilson(correct, n) for correct in range(n + 1)])
    holds = (ends[:, 0] <= share) & (share <= ends[:, 1])
    return float(scipy.stats.binom.pmf(numpy.arange(n + 1), n, share) @ holds)


def mcnemar_rejections(repetitions: int, n: int = 240, share: float = 0.5, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean number of discordant items, and how often the exact test and its mid-p form reject a true null."""
    generator = numpy.random.default_rng(seed)
    first, second = (generator.random((repetitions, n)) < share for _ in "ab")
    pairs = list(zip((first & ~second).sum(1).tolist(), (second & ~first).sum(1).tolist(), strict=True))
    p_of = functools.cache(mcnemar)
    exact, mid = (numpy.mean([p_of(*pair, mid_p) < 0.05 for pair in pairs]) for mid_p in (False, True))
    return float(numpy.mean([sum(pair) for pair in pairs])), float(exact), float(mid)


def mean_logistic(shift: float, deviation: float) -> float:
    """Return the mean of the logistic function of a normal variable."""
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(80)
    return float(weights @ scipy.special.expit(shift + deviation * nodes) / weights.sum())


def seeds_result(
    seeds: int, between: float, repetitions: int, n: int = 200, shift: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """Simulate two arms with several seeds; items, seeds and answers are drawn anew in every repetition.

    Args:
        seeds: trainings of each arm.
        between: standard deviation of a training's effect on all items, in logits; 0 for none.
        repetitions: how many exams.
        n: items.
        shift: of the arm against the reference, in logits; 0 for no true difference.
        seed: of the simulation.

    Returns:
        Shares: covered, rejected (p below 0.05), t_covered (Student's t over seeds alone), items_covered (the interval
        over items alone); and the median width in points, the same of the two sources (item_sd, seed_sd, in points).
    """
    generator = numpy.random.default_rng(seed)
    arm_sd = (DIFFICULTY**2 + ITEM_EFFECT**2 + between**2) ** 0.5
    truth = mean_logistic(shift, arm_sd) - mean_logistic(0.0, (DIFFICULTY**2 + between**2) ** 0.5)
    rows = []
    for _ in range(repetitions):
        difficulty = generator.normal(0, DIFFICULTY, n)
        effect = generator.normal(shift, ITEM_EFFECT, n)
        ours, theirs = generator.normal(0, between, (2, seeds, 1))
        arm = generator.random((seeds, n)) < scipy.special.expit(difficulty + effect + ours)
        reference = generator.random((seeds, n)) < scipy.special.expit(difficulty + theirs)
        signs = arm.astype(int) - reference.astype(int)
        mean, spread = variance_over_seeds(signs.tolist())
        half = spread.half()
        raw, t_half = signs.mean(), scipy.stats.t.isf(0.025, seeds - 1) * signs.mean(1).std(ddof=1) / seeds**0.5
        item_half = 1.96 * signs.mean(0).std(ddof=1) / n**0.5
        found = abs(mean - truth) <= half, abs(mean) > half, abs(raw - truth) <= t_half, abs(raw - truth) <= item_half
        rows.append((*found, 200 * half, spread.p_value(mean) < 0.05))
    table = numpy.array(rows, float)
    assert (table[:, 1] == table[:, 5]).all(), "an interval leaves out 0 exactly if its p is below 0.05"
    names = ("covered", "rejected", "t_covered", "items_covered")
    return dict(zip(names, table[:, :4].mean(0).tolist(), strict=True)) | {"width": float(numpy.median(table[:, 4]))}


def _named(right: numpy.ndarray, share: float, classes: int, generator: numpy.random.Generator) -> numpy.ndarray:
    other = (right + generator.integers(1, classes, right.shape)) % classes
    return numpy.where(generator.random(right.shape) < share, right, other)


def f1_coverage(task: str, repetitions: int, draws: int, average: str = "macro", seed: int = 0) -> dict[str, float]:
    """Return how often the bootstrap holds the true F1 of an arm (its own) and the true difference of two (difference)."""
    n, shares, *hits = CLASS_TASKS[task]
    classes, generator = len(shares), numpy.random.default_rng(seed)
    truth = [true_f1(shares, hit, average) for hit in hits]
    own, difference = [], []
    for repetition in range(repetitions):
        right = generator.choice(classes, n, p=shares)
        named = [_named(right, hit, classes, generator) for hit in hits]
        outcomes = {
            arm: {
                0: [item(i, *pair, classes) for i, pair in enumerate(zip(right.tolist(), ours.tolist(), strict=True))]
            }
            for arm, ours in zip(("cft", "cpt"), named, strict=True)
        }
        row = compare_f1(outcomes, "cpt", average, draws=draws, seed=repetition)[0]
        own.append(row["low"] <= truth[0] <= row["high"])
        difference.append(row["difference_low"] <= 100 * (truth[0] - truth[1]) <= row["difference_high"])
    return {"own": float(numpy.mean(own)), "difference": float(numpy.mean(difference))}


def true_f1(shares: tuple[float, ...], hit: float, average: str) -> float:
    """Return the F1 of an arm that names the right class with chance ``hit`` and else any other, on endless items."""
    from ctxft.statistics import f1_scores

    classes = len(shares)
    table = numpy.array(shares)[:, None] * ((1 - hit) / (classes - 1) + numpy.eye(classes) * 0)
    numpy.fill_diagonal(table, numpy.array(shares) * hit)
    return float(f1_scores(table, average))


def item(number: int, answer: int, prediction: int, classes: int) -> dict:
    """Return an outcome with what ``compare_f1`` reads."""
    same = {"id": f"q{number}", "hash": "h", "choices": classes}
    return {**same, "answer": answer, "prediction": prediction, "correct": answer == prediction}


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description="Coverage of the kit's intervals, size of its tests.")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--f1-repetitions", type=int, default=500)
    options = parser.parse_args()
    print("Wilson, exact coverage in %; n:", "".join(f"{n:>8}" for n in (100, 235, 500, 1089, 1273)))
    for share in (0.25, 0.4, 0.5, 0.6, 0.75, 0.9):
        cells = "".join(f"{100 * wilson_coverage(n, share):8.1f}" for n in (100, 235, 500, 1089, 1273))
        print(f"    true share {share:<17}{cells}")
    print("\nMcNemar, no true difference, 240 items: discordant items, exact and mid-p rejections in %")
    for share in (0.5, 0.8, 0.9):
        discordant, exact, mid = mcnemar_rejections(options.repetitions, share=share)
        print(f"    accuracy {share}: {discordant:6.1f} {100 * exact:6.1f} {100 * mid:6.1f}")
    print(
        "\nSeveral seeds, 200 items: in %, covered, rejected; covered by Student's t alone, by items alone; width (points)"
    )
    for shift in (0.0, 0.5):
        for between in (0.0, 0.1, 0.25, 0.6):
            for seeds in (2, 3, 5, 10):
                found = seeds_result(seeds, between, options.repetitions, shift=shift)
                names = ("covered", "rejected", "t_covered", "items_covered")
                cells = "".join(f"{100 * found[name]:8.1f}" for name in names)
                print(f"    shift {shift}, sd {between:<5} seeds {seeds:<4}{cells}{found['width']:8.1f}", flush=True)
    print("\nBootstrap for F1, 1000 draws, one seed: in %, an arm's own F1 held; the difference of two held")
    for task in CLASS_TASKS:
        for average in ("macro", "weighted"):
            found = f1_coverage(task, options.f1_repetitions, 1000, average)
            print(f"    {task:<33}{average:<10}{100 * found['own']:8.1f}{100 * found['difference']:8.1f}", flush=True)


if __name__ == "__main__":
    main()
