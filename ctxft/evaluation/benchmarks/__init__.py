"""Benchmarks: from published files, the hub or the practice world to checked questions, and to the texts a model reads."""

from ctxft.evaluation.benchmarks.catalog import NAMES, load_benchmark
from ctxft.evaluation.benchmarks.medical import SUBJECTS
from ctxft.evaluation.benchmarks.records import Benchmark, Question
from ctxft.evaluation.benchmarks.requests import FORMS, form_of, render, requests_of, style_of

__all__ = [
    "FORMS",
    "NAMES",
    "SUBJECTS",
    "Benchmark",
    "Question",
    "form_of",
    "load_benchmark",
    "render",
    "requests_of",
    "style_of",
]
