"""The paper's claims and a run flow in; which of them this run shows, does not show, or does not test flows out."""

from __future__ import annotations

from pathlib import Path

import pandas

from ctxft.report.record import RunRecord, as_record
from ctxft.report.verdicts import p_value
from ctxft.statistics import Outcomes, compare, corrected
from ctxft.world.exams import EXAMS

# Choi et al., ICLR 2025, abstract: in the medical and in the financial domain.
CLAIMS = (
    ("contextual prompts beat plain text (CFT above CPT)", "cft", "cpt"),
    ("negative prompts end below contextual ones (NEG-CFT below CFT)", "neg", "cft"),
    ("precondition: training teaches the text (CPT above the base model)", "cpt", "base"),
)
# Made where a run has the arms with a second stage.
TUNED_CLAIM = ("CFT then instruction tuning beats CPT then instruction tuning", "cft-ift", "cpt-ift")
# Practice exams about what the base model could do before training; no claim of the paper is about them.
FORGETTING = tuple(
    name for name, exam in EXAMS.items() if exam.split not in ("new", "tuning") or exam.kind == "two-hop"
)
UNTESTED = ("it holds in the medical and in the financial domain, each on its own", "one corpus in this run")


def _rows(learned: dict[str, Outcomes], arm: str, reference: str) -> dict[str, dict]:
    """Return benchmark -> the row of the arm, corrected over the benchmarks that both arms have."""
    both = {name: arms for name, arms in learned.items() if arm in arms and reference in arms}
    tables = corrected(
        {name: compare({a: arms[a] for a in (arm, reference)}, reference) for name, arms in both.items()}
    )
    return {name: next(row for row in rows if row["arm"] == arm) for name, rows in tables.items()}


def claims(run: RunRecord | str | Path) -> pandas.DataFrame:
    """Hold the paper's claims against a run.

    Args:
        run: a run folder, or a run that is read already.

    Returns:
        Columns claim, benchmark, here ("shown", "not shown", "the contrary" or "not tested") and verdict. What is
        called shown stands in ``statistics.compare``; here it must also stand after Holm's correction over the benchmarks.

    Example:
        >>> claims("runs/mini")  # doctest: +SKIP
    """
    rows = []
    learned = {name: arms for name, arms in as_record(run).outcomes.items() if name not in FORGETTING}
    tuned = any({"cft-ift", "cpt-ift"} <= set(arms) for arms in learned.values())
    untested = [UNTESTED] if tuned else [(TUNED_CLAIM[0], "no such arms in this run"), UNTESTED]
    for claim, arm, reference in (*CLAIMS, TUNED_CLAIM) if tuned else CLAIMS:
        expected = "lower" if arm == "neg" else "higher"
        found = _rows(learned, arm, reference)
        for name in learned:
            if name not in found:
                rows.append((claim, name, "not tested", f"arm {arm} or {reference} is missing"))
                continue
            word = found[name]["word"]
            here = "shown" if word == expected else "not shown" if word.startswith("not") else "the contrary"
            holm = f", Holm p {p_value(found[name]['holm'])}" if found[name]["shown"] else ""
            rows.append((claim, name, here, found[name]["verdict"] + holm))
    rows += [(claim, "", "not tested", why) for claim, why in untested]
    return pandas.DataFrame(rows, columns=["claim", "benchmark", "here", "verdict"])
