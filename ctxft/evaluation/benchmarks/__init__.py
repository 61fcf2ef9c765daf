"""Benchmarks: published and custom question sets as checked questions, and the prompts in which a model reads them."""

from ctxft.evaluation.benchmarks.loading import benchmark_name, benchmark_names, is_own, load_benchmark, wording_of
from ctxft.evaluation.benchmarks.records import Benchmark, Question, Wording
from ctxft.evaluation.benchmarks.requests import FORMS, render, requests_of, style_of
