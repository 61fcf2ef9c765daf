"""How many examples the tests of dirty input try, and what they tried in the end.

``CTXFT_EXAMPLES=2000 python -m pytest tests/faults`` tries 2,000 examples a test, other ones in every run.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

EXAMPLES = int(os.environ.get("CTXFT_EXAMPLES", "150"))
TRIED: Counter[str] = Counter()  # test -> examples

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "ctxft-hypothesis")  # no folder of its own in the repository
settings.register_profile(
    "dirty",
    max_examples=EXAMPLES,
    derandomize="CTXFT_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("dirty")


@pytest.fixture
def tried(request):
    """The function that counts an example of this test."""

    def count() -> None:
        TRIED[request.node.name] += 1

    return count


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how many examples ran."""
    if TRIED:
        terminalreporter.write_line(f"dirty input: {sum(TRIED.values())} examples in {len(TRIED)} tests")
