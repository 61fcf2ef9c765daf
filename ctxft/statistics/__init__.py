"""Statistics: from outcomes per item, of several arms and seeds, to intervals, paired tests and verdicts in words."""

from ctxft.statistics.comparison import Outcomes, common_seeds, compare
from ctxft.statistics.f1 import compare_f1
from ctxft.statistics.families import corrected, holm
from ctxft.statistics.intervals import Spread, item_interval, seed_interval, wilson
from ctxft.statistics.paired import detectable_before, mcnemar, mcnemar_power, smallest_difference

__all__ = [
    "Outcomes",
    "Spread",
    "common_seeds",
    "compare",
    "compare_f1",
    "corrected",
    "detectable_before",
    "holm",
    "item_interval",
    "mcnemar",
    "mcnemar_power",
    "seed_interval",
    "smallest_difference",
    "wilson",
]
