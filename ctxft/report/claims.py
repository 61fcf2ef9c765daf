"""The paper's claims and a run flow in; which of them this run shows, does not show, or does not test flows out."""

from __future__ import annotations

from pathlib import Path

import pandas

from ctxft.report.record import RunRecord, as_record
from ctxft.statistics import Outcomes, compare
from ctxft.world.exams import EXAMS

# Choi et al., ICLR 2025, abstract: in the medical and in the financial domain.
CLAIMS = (
    ("contextual prompts beat plain text (CFT above CPT)", "cft", "cpt"),
    ("negative prompts end below contextual ones (NEG-CFT below CFT)", "neg", "cft"),
    ("precondition: training teaches the text (CPT above the base model)", "cpt", "base"),
)
# Practice exams about what the base model could do before training; no claim of the paper is about them.
FORGETTING = tuple(
    name for name, exam in EXAMS.items() if exam.split not in ("new", "tuning") or exam.kind == "two-hop"
)
UNTESTED = (
    ("CFT then instruction tuning beats CPT then instruction tuning", "no such arms in this run"),
    ("it holds in the medical and in the financial domain, each on its own", "one corpus in this run"),
)


def _verdict(arms: Outcomes, arm: str, reference: str) -> str | None:
    if arm not in arms or reference not in arms:
        return None
    return next(row["verdict"] for row in compare(arms, reference) if row["arm"] == arm)


def claims(run: RunRecord | str | Path) -> pandas.DataFrame:
    """Hold the paper's claims against a run.

    Args:
        run: a run folder, or a run that is read already.

    Returns:
        Columns claim, benchmark, here ("shown", "not shown", "the contrary" or "not tested") and verdict. What is
        called shown stands in ``statistics.compare``.

    Example:
        >>> claims("runs/mini")  # doctest: +SKIP
    """
    rows = []
    learned = {name: arms for name, arms in as_record(run).outcomes.items() if name not in FORGETTING}
    for claim, arm, reference in CLAIMS:
        expected = "lower" if arm == "neg" else "higher"
        for name, arms in learned.items():
            verdict = _verdict(arms, arm, reference)
            if verdict is None:
                rows.append((claim, name, "not tested", f"arm {arm} or {reference} is missing"))
                continue
            here = "shown" if verdict.startswith(expected) else "not shown"
            here = here if verdict.startswith(("no difference", expected)) else "the contrary"
            rows.append((claim, name, here, verdict))
    rows += [(claim, "", "not tested", why) for claim, why in UNTESTED]
    return pandas.DataFrame(rows, columns=["claim", "benchmark", "here", "verdict"])
