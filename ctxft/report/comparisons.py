"""Say in words what a run's paired tests show, the same for the page, the terminal and a notebook."""

from __future__ import annotations

import pandas

from ctxft.prompts import get_arm, sort_arms
from ctxft.report.record import RunRecord, Source, as_record
from ctxft.statistics import compare, corrected
from ctxft.storage import check_known
from ctxft.world.exams import EXAMS


def compared(run: RunRecord, reference: str) -> dict[str, list[dict]]:
    """Return for each benchmark the rows of ``compare`` with Holm's p, each arm's benchmarks being one family.

    Where a run tries parts of the prompts (only-FAMILY ...), all of its comparisons are one family.

    Raises:
        InputError: the reference was not evaluated, or the arms have different items.
    """
    for name, arms in run.outcomes.items():
        check_known(reference, arms, f"reference arm (--reference) of {name}")
    tables = {name: compare(arms, reference) for name, arms in run.outcomes.items()}
    return corrected(tables, "all" if searched(run) else "benchmarks")


def searched(run: RunRecord) -> bool:
    """Return whether a run tries parts of the prompts: then whoever looks for the best has to pay for all that were tried."""
    return any(get_arm(arm).argument for arms in run.outcomes.values() for arm in arms)


def verdicts(run: Source, reference: str = "cpt") -> list[str]:
    """Return one sentence for each benchmark and arm: what is shown, and whether it stands after Holm's correction.

    Args:
        run: a run folder, a Run, or a run that is read already.
        reference: the arm that is subtracted.

    Raises:
        InputError: as ``results_table``.

    Example:
        >>> verdicts("runs/mini")[0]  # doctest: +SKIP
        'practice-mmlu, base: lower than cpt by 40.1 pp (95 % interval -46.7 to -32.7), ...'
    """
    rows = [(name, row) for name, table in compared(as_record(run), reference).items() for row in table]
    return [f"{name}, {row['arm']}: {_sentence(row)}." for name, row in rows if row["arm"] != reference]


def _sentence(row: dict) -> str:
    if not row["shown"] or row["family"] == 1:
        return row["verdict"]
    if row["word"] == "not after Holm":
        comparisons = f"{row['family']} comparisons (Holm p {p_value(row['holm'])})"
        return f"{row['verdict']}, but not shown once corrected for {comparisons}"
    return f"{row['verdict']}, also after Holm's correction (p {p_value(row['holm'])})"


def p_value(p: float) -> str:
    """Return a p value as tables show it; "" for nan."""
    if p != p:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def overall(run: Source, reference: str = "cpt") -> str:
    """Return a sentence about all comparisons of a run as one family: which arms differ even then."""
    tables = corrected(compared(as_record(run), reference), "all")
    rows = [(name, row) for name, rows in tables.items() for row in rows if row["arm"] != reference]
    kept = [f"{row['arm']} on {name} ({row['word']})" for name, row in rows if row["word"] in ("higher", "lower")]
    return (
        f"Corrected by Holm over all {len(rows)} comparisons at once, these differences from {reference} remain: "
        f"{', '.join(kept) or 'none'}."
    )


BY_ARM = "Holm p corrects p for the number of benchmarks on which this arm was compared."
BY_ALL = "Holm p corrects p for all comparisons of the run at once, since it looks for the best of many prompts."


def how_to_read(run: Source, reference: str = "cpt") -> list[str]:
    """Return sentences that explain the columns and verdicts of ``results_table``.

    Args:
        run: a run folder, a Run, or a run that is read already.
        reference: the arm that is subtracted.
    """
    run = as_record(run)
    arms = [get_arm(arm) for arm in sort_arms(run.metrics)]
    reads = {arm.kind + "-*" * bool(arm.argument): arm.reads for arm in arms}
    return [
        f"An arm is one way of training, a seed one training of it. {'; '.join(f'{k} reads {v}' for k, v in reads.items())}. "
        "An arm that ends in -ift was trained further on instructions.",
        "Accuracy is the mean over seeds, with Wilson's 95 % interval over items. Chance is guessing; majority is always "
        "giving the most common answer position, or label.",
        f"minus {reference} is the difference from {reference} in percentage points (pp), on the same items and the same "
        "seeds. With one seed its interval is over items (Agresti and Min) and p is McNemar's exact test; with several, "
        "interval and p are over other items and other seeds at once, and a few seeds make them wide.",
        f"{BY_ALL if searched(run) else BY_ARM} Verdict: higher or lower is shown "
        'after that; "not after Holm" is shown by this comparison alone; "not shown" is not a proof of equality.',
        "The minimum detectable effect is the smallest true difference that this comparison, with its items and its seeds, "
        "would show (before Holm) with 80 % power.",
    ]


# --- ablations: which family of prompts matters? ----------------------------------------------------------------------


def ablation_rows(run: Source, reference: str, benchmark: str | None = None) -> dict[str, list[dict]]:
    """Compare the arms of an ablation with a reference; all comparisons together are one family for Holm's correction.

    Compared are the arms with the reference's last stage: with ``cft-ift`` those that end in ``-ift``, else the others. Arms
    of other questions (base, adaptive, ...) are left out, so that they cost no power.

    Args:
        run: a run folder, a Run, or a run that is read already.
        reference: the arm that is subtracted, such as cft.
        benchmark: one, or None for all.

    Returns:
        Benchmark, where parts of the prompts were tried -> rows as from ``statistics.compare`` and ``corrected``, with kind
        ("only", "without", "count", "arm") and part (family or number). The reference is among them if it is such an arm.

    Raises:
        InputError: the benchmark or the reference was not evaluated, or as ``compare``.
    """
    run, tables = as_record(run), {}
    if benchmark is not None:
        check_known(benchmark, run.outcomes, f"benchmark in {run.folder}:")
    for name in run.outcomes if benchmark is None else [benchmark]:
        outcomes, stage = run.outcomes[name], get_arm(reference).instructed
        tried = [arm for arm in map(get_arm, outcomes) if arm.compared and arm.instructed == stage]
        parts = {arm.name: {"kind": arm.kind if arm.argument else "arm", "part": arm.argument} for arm in tried}
        if any(arm.argument for arm in tried):
            arms = {arm: outcomes[arm] for arm in sort_arms({*parts, reference}) if arm in outcomes}
            rows = [row | parts[row["arm"]] for row in compare(arms, reference) if row["arm"] in parts]
            tables[name] = sorted(rows, key=lambda row: ("only", "without", "count", "arm").index(row["kind"]))
    return corrected(tables, "all")


# --- the paper's claims -----------------------------------------------------------------------------------------------

# Choi et al., ICLR 2025, abstract: in the medical and in the financial domain. The last needs arms with a second stage.
CLAIMS = (
    ("contextual prompts beat plain text (CFT above CPT)", "cft", "cpt", "higher"),
    ("negative prompts end below contextual ones (NEG-CFT below CFT)", "neg", "cft", "lower"),
    ("precondition: training teaches the text (CPT above the base model)", "cpt", "base", "higher"),
    ("CFT then instruction tuning beats CPT then instruction tuning", "cft-ift", "cpt-ift", "higher"),
)
UNTESTED = "it holds in the medical and in the financial domain, each on its own"
# Practice exams about what the base model could do before training; no claim of the paper is about them.
FORGETTING = tuple(
    name for name, exam in EXAMS.items() if exam.split not in ("new", "tuning") or exam.kind == "two-hop"
)


def claims(run: Source) -> pandas.DataFrame:
    """Compare the paper's claims with a run.

    Args:
        run: a run folder, a Run, or a run that is read already.

    Returns:
        Columns claim, benchmark, here ("shown", "not shown", "the contrary" or "not tested") and verdict. "Shown" is that
        of ``statistics.compare``, and must remain after Holm's correction over the benchmarks.

    Example:
        >>> claims("runs/mini")  # doctest: +SKIP
    """
    learned = {name: arms for name, arms in as_record(run).outcomes.items() if name not in FORGETTING}
    rows, untested = [], []
    for claim, arm, reference, expected in CLAIMS:
        both = {name: arms for name, arms in learned.items() if arm in arms and reference in arms}
        if not both and get_arm(arm).instructed:
            untested.append((claim, "", "not tested", "no such arms in this run"))
            continue
        pairs = {name: compare({a: arms[a] for a in (arm, reference)}, reference) for name, arms in both.items()}
        tables = corrected(pairs)
        for name in learned:
            if name not in tables:
                rows.append((claim, name, "not tested", f"arm {arm} or {reference} is missing"))
                continue
            row = next(row for row in tables[name] if row["arm"] == arm)
            words = {"higher": "the contrary", "lower": "the contrary", expected: "shown"}
            here = words.get(row["word"], "not shown")
            holm = f", Holm p {p_value(row['holm'])}" if row["shown"] else ""
            rows.append((claim, name, here, row["verdict"] + holm))
    rows += [*untested, (UNTESTED, "", "not tested", "one corpus in this run")]
    return pandas.DataFrame(rows, columns=["claim", "benchmark", "here", "verdict"])
