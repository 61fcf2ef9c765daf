"""Benchmarks, scoring and metrics: from a model and questions to outcomes."""
