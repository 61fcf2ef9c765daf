"""Statistics of outcomes per item, of several arms and seeds: intervals, paired tests and verdicts in words."""

from ctxft.statistics.comparison import AVERAGES, Outcomes, common_seeds, compare, compare_f1, f1_lines
from ctxft.statistics.intervals import VarianceComponents, item_interval, seed_interval, wilson
from ctxft.statistics.paired import (
    corrected,
    detectable_before,
    holm,
    mcnemar,
    mcnemar_power,
    minimum_detectable_effect,
)

__all__ = [
    "AVERAGES",
    "Outcomes",
    "VarianceComponents",
    "common_seeds",
    "compare",
    "compare_f1",
    "corrected",
    "detectable_before",
    "f1_lines",
    "holm",
    "item_interval",
    "mcnemar",
    "mcnemar_power",
    "minimum_detectable_effect",
    "seed_interval",
    "wilson",
]
