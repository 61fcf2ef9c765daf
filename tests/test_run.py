"""The one object of a run, and the facade: from the names of the package to a table."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ctxft
from ctxft.storage import InputError


def test_from_the_package_to_a_table(experiment):
    run = ctxft.Run(experiment(), arms=["base", "cpt", "cft"], seeds=[0])
    assert run.train(workers=1) is run
    run.evaluate(workers=1)
    table = ctxft.results_table(run)
    assert list(table["arm"])[:3] == ["base", "cpt", "cft"]
    again = ctxft.Run(run.folder)
    assert again.passages == run.passages and again.is_trained("cft") and again.is_evaluated("cft")
    assert ctxft.Run("tiny", seeds=[0, 1]).train_tasks == [("cpt", 0), ("cpt", 1), ("cft", 0), ("cft", 1)]
    assert len(again.outcomes("own-questions", "cft")) == 6


def test_a_name_that_leads_nowhere_names_what_there_is(runs):
    with pytest.raises(InputError, match=r"unknown profile 'minni' \(did you mean 'mini'\?\), and no run"):
        ctxft.Run("minni")
    with pytest.raises(InputError, match="unknown arm 'ctf'"):
        ctxft.Run("mini", arms=["ctf"])


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, ctxft; print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert set(ctxft.__all__) <= set(dir(ctxft)) and all(getattr(ctxft, name) for name in ctxft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ctxft.nothing  # noqa: B018
