"""A run flows in; what its tests say, in words, and how to read its tables flow out, the same for page and terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ctxft.prompts import check_arm
from ctxft.prompts.arms import SUBSETS, kind_of
from ctxft.report.record import RunRecord, as_record
from ctxft.statistics import compare, corrected
from ctxft.storage import InputError


def compared(run: RunRecord, reference: str) -> dict[str, list[dict]]:
    """Return for each benchmark the rows of ``compare`` with Holm's p, each arm's benchmarks being one family.

    Where a run tries parts of the prompts (only-FAMILY ...), all of its comparisons are one family.

    Raises:
        InputError: the reference was not evaluated, or the arms were asked different items.
    """
    check_arm(reference, "the reference: ")
    for name, arms in run.outcomes.items():
        if reference not in arms:
            raise InputError(
                f"benchmark '{name}' was not evaluated for the reference arm '{reference}' (only for "
                f"{', '.join(arms)}): evaluate it, or choose another with --reference ARM."
            )
    tables = {name: compare(arms, reference) for name, arms in run.outcomes.items()}
    return corrected(tables, "all" if searched(run) else "benchmarks")


def searched(run: RunRecord) -> bool:
    """Return whether a run tries parts of the prompts: then whoever looks for the best has to pay for all that were tried."""
    return any(kind_of(arm) in SUBSETS for arms in run.outcomes.values() for arm in arms)


def verdicts(run: RunRecord | str | Path, reference: str = "cpt") -> list[str]:
    """Return one sentence for each benchmark and arm: what is shown, and whether it stands after Holm's correction.

    Args:
        run: a run folder, or a run that is read already.
        reference: the arm that differences are taken to.

    Raises:
        InputError: as ``results_table``.

    Example:
        >>> verdicts("runs/mini")[0]  # doctest: +SKIP
        'practice-mmlu, base: lower than cpt by 40.1 points (95 % interval -46.7 to -32.7), ...'
    """
    rows = [(name, row) for name, found in compared(as_record(run), reference).items() for row in found]
    return [f"{name}, {row['arm']}: {_sentence(row)}." for name, row in rows if row["arm"] != reference]


def _sentence(row: dict) -> str:
    if not row["shown"] or row["family"] == 1:
        return row["verdict"]
    if row["word"] == "not after Holm":
        corrected_p = f"{row['family']} comparisons (Holm p {p_value(row['holm'])})"
        return f"{row['verdict']}, but not shown once corrected for {corrected_p}"
    return f"{row['verdict']}, also after Holm's correction (p {p_value(row['holm'])})"


def p_value(p: float) -> str:
    """Return a p value as tables show it; "" for nan."""
    if p != p:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def overall(run: RunRecord | str | Path, reference: str = "cpt") -> str:
    """Return a sentence about all comparisons of a run as one family: which arms differ even then."""
    run = as_record(run)
    tables = corrected(compared(run, reference), "all")
    found = [(name, row) for name, rows in tables.items() for row in rows if row["arm"] != reference]
    kept = [f"{row['arm']} on {name} ({row['word']})" for name, row in found if row["word"] in ("higher", "lower")]
    listed = ", ".join(kept) if kept else "none"
    return f"Corrected by Holm over all {len(found)} comparisons at once, these differences to {reference} stand: {listed}."


PARTS = {
    "control-shuffled": "control-shuffled the words of cft's prompt in another order",
    "control-neutral": "control-neutral a sentence about the text that asks for nothing",
    "control-family": "control-family a prompt of another family than cft's",
    "control-adaptive": "control-adaptive the prompt that a model wrote for another passage",
    "cft-learned": "cft-learned cft's prompt, which it learns too",
    "reading": "reading no prompt, but exercises about the text behind it",
    "only": "only-FAMILY prompts of one family",
    "without": "without-FAMILY those of all families but one",
    "count": "count-N some N prompts of the prompt set",
}


def _parts_told(arms: Iterable[str]) -> list[str]:
    """Return a sentence about those of an experiment's arms that take a prompt apart."""
    kinds = {kind_of(arm) for arm in arms}
    told = [words for kind, words in PARTS.items() if kind in kinds]
    return [f"Further arms read: {'; '.join(told)}."] if told else []


ORACLE = "the prompt of cft or of neg, as an oracle that knows which texts are true chooses"
WRITER = "a prompt that a language model wrote for that text, once for all seeds (cft's, where it wrote none that could be taken)"
BY_ARM = "Holm p corrects p for the number of benchmarks on which this arm was compared."
BY_ALL = "Holm p corrects p for all comparisons of the run at once, since it looks for the best of many prompts."


def how_to_read(reference: str = "cpt", run: RunRecord | None = None) -> list[str]:
    """Return sentences that explain the columns and verdicts of ``results_table``.

    Args:
        reference: the arm that differences are taken to.
        run: whose arms are explained; None explains those that every run may have.
    """
    arms = list(run.metrics) if run else []
    written = bool(run and run.manifest["config"].get("prompts", {}).get("writer"))
    return [
        "An arm is one way of training, a seed one training of it. base is not trained; cpt reads the text alone; before "
        "each text cft reads a prompt that names a way of learning, neg one that says not to learn, control meaningless "
        f"words, and adaptive {WRITER if written else ORACLE}. An arm that ends in -ift was trained further on instructions, "
        "the arm ift on these alone.",
        *_parts_told(arms),
        "Accuracy is the mean over seeds, with Wilson's 95 % interval over items. Chance is guessing; majority is always "
        "giving the commonest answer position, or label.",
        f"minus {reference} is the difference to {reference} in points of accuracy, on the same items and the same seeds. "
        "With one seed its interval is over items (Agresti and Min) and p is McNemar's exact test; with several, interval "
        "and p are over other items and other seeds at once, and a few seeds make them wide.",
        f"{BY_ALL if run and searched(run) else BY_ARM} Verdict: higher or lower is shown "
        'after that; "not after Holm" is shown by this comparison alone; "not shown" is not a proof of equality.',
        '"Could have seen" is the smallest true difference that this comparison, with its items and its seeds, would show '
        "(before Holm) in four of five repetitions.",
    ]
