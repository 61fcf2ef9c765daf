"""The guard that refuses connections holds in kernels, too; tests/test_notebooks.py runs the whole course under it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ctxft.storage import REPO_ROOT
from tests.offline import guarded

KERNEL = """
import socket, urllib.request
for ask in (
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=2),
    lambda: socket.getaddrinfo("huggingface.co", 443),
    lambda: urllib.request.urlopen("http://example.com", timeout=2),
):
    try:
        ask()
    except OSError as error:
        print("refused:", error)
"""
EXECUTE = """
import sys, nbformat
from pathlib import Path
from ctxft.course import execute
place = Path(sys.argv[1])
cell = nbformat.v4.new_code_cell(sys.argv[2])
nbformat.write(nbformat.v4.new_notebook(cells=[cell]), place / "99_asks.ipynb")
print(execute(place / "99_asks.ipynb", place / "out.ipynb", {}).cells[0].outputs[0].text)
"""


@pytest.mark.process
def test_the_guard_refuses_and_writes_down_what_a_kernel_asks(tmp_path):
    done, refused = guarded([sys.executable, "-c", EXECUTE, str(tmp_path), KERNEL], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: ") == 3
    assert (
        len(refused) == 3
        and "192.0.2.1" in refused[0]
        and "huggingface.co" in refused[1]
        and "example.com" in refused[2]
    )


@pytest.mark.process
def test_the_client_of_the_hub_sends_no_telemetry():
    asked = "import ctxft.models; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", asked], env=kept, cwd=REPO_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
