"""Very long lines and very many empty records: read in bounded memory, every one accounted for.

Smaller by default; in full (50 MB in one line, a million records):

    CTXFT_LARGE=1 python -m pytest -n 0 tests/faults/test_large.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from ctxft.config import CorpusConfig
from ctxft.data.documents import read_documents
from ctxft.storage import REPO_ROOT, InputError

WHOLE = bool(os.environ.get("CTXFT_LARGE"))
MEGABYTES, RECORDS = (50, 1_000_000) if WHOLE else (4, 60_000)
CUT = """
import resource, sys, time
from collections import Counter
from ctxft.data.documents import CorpusConfig, read_documents
from ctxft.data.passages import cut
from ctxft.models import encode_text, load_tokenizer
tokenizer = load_tokenizer("practice-blind")
(document,) = read_documents(CorpusConfig(source=sys.argv[1]), Counter())
passages = cut(document, tokenizer, 64)
tokens, peak = sum(len(passage.ids) for passage in passages), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(len(document.text), tokens, peak)
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_one_very_long_line_is_cut_without_a_loss(tmp_path, suffix):
    text = "the drug was given to the house and the road. " * (MEGABYTES * 2**20 // 46)
    path = tmp_path / f"long{suffix}"
    path.write_text(json.dumps({"id": "one", "text": text}) + "\n" if suffix == ".jsonl" else text)
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    characters, tokens, megabytes = map(int, done.stdout.split())
    assert characters == len(text.strip()) and tokens > characters / 10
    assert megabytes < 1500 + 150 * MEGABYTES, f"{megabytes} MB for a line of {MEGABYTES} MB"


def test_empty_records_are_counted_and_a_corpus_of_nothing_else_is_refused(tmp_path):
    path = tmp_path / "empty.jsonl"
    with open(path, "w") as file:
        file.writelines(f'{{"id": "e{n}", "text": ""}}\n' for n in range(RECORDS))
        file.write('{"id": "last", "text": "One text at the end."}\n')
    counts: Counter = Counter()
    documents = list(read_documents(CorpusConfig(source=str(path), skip_empty=True), counts))
    assert [document.id for document in documents] == ["last"]
    assert RECORDS in counts.values(), counts
    with pytest.raises(InputError, match=r"empty\.jsonl, line 1"):
        list(read_documents(CorpusConfig(source=str(path)), Counter()))
