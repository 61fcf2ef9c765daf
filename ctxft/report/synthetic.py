"""Results of a synthetic study flow in (a JSON value, see ``ctxft.synthetic.study``); tables and figures flow out.

No torch is imported: a committed result file is enough.
"""

from __future__ import annotations

import math
import statistics as plain
from pathlib import Path

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctxft.report.figures import ARM_COLORS, INK
from ctxft.runtime import InputError, read_json

# cpt, cft and neg as everywhere; the rest of Okabe and Ito's palette for our own arms.
COLORS = {name: ARM_COLORS[name] for name in ("cft", "cpt", "neg")} | {
    "fresh": "#009E73",
    "no-query": "#56B4E9",
    "cpt-long": "#E69F00",
    "neg-scaled": "#000000",
    "shuffled": "#8C6D31",
}
STYLES = {"neg-scaled": "--", "shuffled": ":", "cpt-long": "-.", "no-query": (0, (5, 1))}
READS = {"own": "error", "fresh": "with fresh context", "none": "without context"}
WINDOW = 3  # log rows that a curve is averaged over, so that it can be read


def read_result(path: Path | str) -> dict:
    """Return the results in a file of `ctxft synthetic --out`; raises InputError where it is another kind of file."""
    study = read_json(Path(path))
    if not isinstance(study, dict) or not {"target", "runs", "baselines", "config"} <= study.keys():
        raise InputError(f"{path} is not a result of `ctxft synthetic --out`: choose another file.")
    return study


def mean_error(run: dict, context: str = "own") -> float:
    """Return the squared error of one run, mean over points, with its own context, a fresh one or none."""
    return plain.fmean(run["errors"][context]["mean"])


def _spread(values: list[float], digits: int = 2) -> str:
    sd = f" ± {plain.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{plain.fmean(values):.{digits}f}{sd}"


def study_table(study: dict) -> pandas.DataFrame:
    """Return a row an arm: squared errors (mean ± standard deviation over seeds), ratio to cpt, alignment.

    Args:
        study: from ``run_study``, ``read_study`` or ``read_result``.

    Returns:
        Columns: arm; seeds; error with the arm's own context; that over cpt's, seed by seed, lowest to highest; over
        the best constant's; errors of the same network that reads a fresh context, or none; cosine of the partial and
        of the total derivative with the true gradient.
    """
    constant = plain.fmean(study["baselines"]["constant"])
    rows = []
    for arm, seeds in study["runs"].items():
        errors = {context: [mean_error(run, context) for run in seeds.values()] for context in READS}
        row = {"arm": arm, "seeds": len(seeds), "error": _spread(errors["own"]), "over cpt": ""}
        if cpt := study["runs"].get("cpt"):
            ratios = [error / mean_error(cpt[seed]) for seed, error in zip(seeds, errors["own"], strict=True)]
            row["over cpt"] = " to ".join(sorted({f"{min(ratios):.3f}", f"{max(ratios):.3f}"}))
        row["over constant"] = f"{plain.fmean(errors['own']) / constant:.3f}"
        row |= {READS[context]: _spread(errors[context]) for context in ("fresh", "none")}
        for name in ("partial", "total"):
            row[f"cosine, {name}"] = _spread([run["alignment"][name] for run in seeds.values()])
        rows.append(row)
    return pandas.DataFrame(rows)
