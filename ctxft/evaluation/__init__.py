"""Benchmarks, scoring and metrics: from a model and questions to outcomes."""

from ctxft import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "benchmarks": "Benchmark Question load_benchmark render wording_of",
        "metrics": "calibration label_metrics",
        "scoring": "encode_pair score_choices",
    },
)
