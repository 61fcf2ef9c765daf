"""A corpus on disk: the same bytes whatever wrote it, nothing lost by a kill, passages read when they are asked for."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ctxft.config import CorpusConfig
from ctxft.data import corpus as module
from ctxft.data.corpus import count_near_duplicates, measure, plan_parts, read_corpus, write_parts
from ctxft.data.documents import read_documents
from ctxft.data.passages import cut
from ctxft.extras.reading import exercises_of, mine_exercises
from ctxft.leakage import documents_of
from ctxft.run.run import Run
from ctxft.storage import REPO_ROOT, hash_file, write_jsonl
from tests.runs import passages_of, plain


@pytest.fixture
def config(tmp_path, text_of) -> CorpusConfig:
    """Sixty documents, and one of them again."""
    rows = [{"id": f"d{n}", "text": text_of(n, 2 + n % 7)} for n in range(60)]
    rows.append({"id": "twice", "text": rows[7]["text"]})
    return CorpusConfig(source=str(write_jsonl(tmp_path / "texts.jsonl", rows)), held_out=0.2)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of about 2,000 characters, batches of 8 and 3 passages."""
    for name, value in (("PART", 2000), ("BATCH", 8), ("TEXT_BATCH", 3)):
        monkeypatch.setattr(module, name, value)


def plan(config: CorpusConfig, folder: Path, key: str = "") -> int:
    counts: Counter = Counter()
    return plan_parts(measure(read_documents(config, counts), counts), folder, key)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in folder.iterdir()}


def test_passages_on_disk_are_those_that_were_cut(config, tokenizers, small_parts, tmp_path):
    tokenizer, folder = tokenizers["byte"], tmp_path / "corpus"
    parts = plan(config, folder)
    assert list(write_parts(config, tokenizer, 40, folder)) == list(range(parts)) and parts > 3
    kept, held, counts = read_corpus(config, folder)
    expected = {p.id: p for document in read_documents(config, Counter()) for p in cut(document, tokenizer, 40)}
    found = [plain(passage) for passages in (kept, held) for passage in passages]
    assert all(passage == expected[passage.id] for passage in found)
    assert set(expected) - {passage.id for passage in found} == {id for id in expected if id.startswith("twice#")}
    assert counts["documents duplicate"] == 1 and counts["documents read"] == 61
    assert list(kept.targets) == [passage.targets for passage in kept]
    assert [passage.id for passage in kept[3:9:2]] == [kept[n].id for n in (3, 5, 7)] and kept[-1] == kept[
        len(kept) - 1
    ]
    both = kept + held
    assert [passage.id for passage in both] == [passage.id for passage in found]
    assert list(both.targets) == [*kept.targets, *held.targets]
    with pytest.raises(IndexError):
        kept[len(kept)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_writes_the_same_bytes(config, tokenizers, small_parts, tmp_path, processes):
    for name, shares in (("one", [(0, 1)]), ("many", [(n, processes) for n in reversed(range(processes))])):
        plan(config, tmp_path / name)
        for share in shares:
            list(write_parts(config, tokenizers["metaspace"], 40, tmp_path / name, share=share))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "many") != {}


def test_a_killed_preparation_goes_on_after_its_last_whole_part(config, tokenizers, small_parts, tmp_path):
    for name in ("whole", "killed"):
        plan(config, tmp_path / name)
    list(write_parts(config, tokenizers["byte"], 40, tmp_path / "whole"))
    writer = write_parts(config, tokenizers["byte"], 40, tmp_path / "killed")
    assert [next(writer), next(writer)] == [0, 1]
    writer.close()
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*-00001.arrow")}
    (tmp_path / "killed" / "passages-00002.arrow").write_bytes(b"half")  # its documents are not there yet
    (tmp_path / "killed" / ".text-00002.arrow.x.part").write_bytes(b"half")
    plan(config, tmp_path / "killed")
    written = list(write_parts(config, tokenizers["byte"], 40, tmp_path / "killed"))
    assert written[0] == 2 and not list((tmp_path / "killed").glob(".*"))
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    plan(config, tmp_path / "killed", key="another tokenizer")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["parts.json"]


@pytest.mark.process
def test_kill_9_in_the_middle_of_several_processes_loses_no_part(experiment, runs, text_of, tmp_path, monkeypatch):
    """The run that is prepared after it is that of a straight preparation, byte for byte."""
    rows = [{"id": f"d{n}", "text": " ".join(text_of(m, 60) for m in range(n, n + 4))} for n in range(120)]
    source = str(write_jsonl(tmp_path / "texts.jsonl", rows))
    code = f"""
from ctxft.data import corpus
from ctxft.run import prepare
from ctxft.extras.reading import exercises_of, mine_exercises
from ctxft.leakage import documents_of
from ctxft.run.run import Run
corpus.PART = {sum(len(row["text"]) for row in rows) // 16}
import sys
Run({{"name": sys.argv[1], "model": {experiment().model!r}, "corpus": {{"source": {source!r}}}}}).prepare(2)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT), "CTXFT_RUNS": str(runs)}
    started = subprocess.Popen([sys.executable, "-c", code, "killed"], env=environment)
    workshop = runs / ".killed.texts" / "corpus"
    while not list(workshop.glob("documents-*.arrow")) and started.poll() is None:
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL and not (runs / "killed").exists()
    left = {path.name: path.stat().st_mtime_ns for path in workshop.glob("*.arrow")}
    subprocess.run([sys.executable, "-c", code, "killed"], env=environment, check=True)
    monkeypatch.setattr(module, "PART", sum(len(row["text"]) for row in rows) // 16)
    Run({"name": "straight", "model": experiment().model, "corpus": {"source": source}}).prepare(1)
    killed, straight = (runs / name / "corpus" for name in ("killed", "straight"))
    assert hashes(killed) == hashes(straight) and len(hashes(killed)) > 40
    done = {name for name in left if name.startswith("documents")}
    assert done and {name: (killed / name).stat().st_mtime_ns for name in done} == {name: left[name] for name in done}
    assert [passage.id for passage in Run(runs / "killed").passages] == [p.id for p in Run(runs / "straight").passages]


# --- held out ---------------------------------------------------------------------------------------------------------


def test_copies_that_differ_in_case_and_punctuation_are_on_the_same_side(tokenizers, text_of, tmp_path):
    texts = [text_of(n, 3) for n in range(60)]
    changed = [
        lambda text: text.upper(),
        lambda text: f"({text})",
        lambda text: text.replace(" ", " \u2014 "),
    ]
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    rows += [{"id": f"copy-{n}", "text": changed[n % 3](text)} for n, text in enumerate(texts)]
    rows += [{"id": "marks", "text": "?!"}, {"id": "others", "text": "..."}]
    config = CorpusConfig(source=str(write_jsonl(tmp_path / "twins.jsonl", rows)), held_out=0.3)
    kept, held, counts = passages_of(config, tokenizers["byte"], 50)
    sides = {passage.document: side for side, passages in (("kept", kept), ("held", held)) for passage in passages}
    assert all(sides[f"d{n}"] == sides[f"copy-{n}"] for n in range(60)) and len(set(sides.values())) == 2
    assert counts["documents duplicate"] == 0 and len(sides) == 122


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_of_a_long_document_a_share_of_passages_is_held_out(tokenizers, text_of, tmp_path, share):
    """A single text, and one long text among short ones: the share of tokens is near what was asked for."""
    long = " ".join(text_of(n, 40) for n in range(8))
    alone = [{"id": "book", "text": long}]
    for rows in (alone, [*alone, *({"id": f"d{n}", "text": text_of(100 + n, 3)} for n in range(200))]):
        config = CorpusConfig(source=str(write_jsonl(tmp_path / "texts.jsonl", rows)), held_out=share)
        kept, held, counts = passages_of(config, tokenizers["byte"], 50)
        assert abs(counts["tokens held out"] / counts["tokens read"] - share) < 0.25 * share
        assert counts["tokens read"] == counts["tokens kept"] + counts["tokens held out"]
        assert counts["documents read"] == counts["documents kept"] + counts["documents held out"] == len(rows)
        assert counts["documents kept, but for some passages"] == 1
        of_book = [passage.index for passage in held if passage.document == "book"]
        steps = {later - one for one, later in itertools.pairwise(of_book)}
        assert steps <= {round(1 / share) - 1, round(1 / share), round(1 / share) + 1} and len(of_book) > 5
        trained = [passage.index for passage in kept if passage.document == "book"]
        assert sorted(of_book + trained) == list(range(len(of_book) + len(trained)))
        short = {passage.document for passage in held} - {"book"}
        assert not short & {passage.document for passage in kept}


def test_neighbors_of_a_passage_that_was_held_out_are_not_read_with_it(tokenizers, text_of, tmp_path):
    rows = [{"id": "book", "text": " ".join(text_of(n, 40) for n in range(4))}]
    config = CorpusConfig(source=str(write_jsonl(tmp_path / "texts.jsonl", rows)), held_out=0.2)
    kept, held, _ = passages_of(config, tokenizers["byte"], 50)
    texts = [text for _, text in documents_of(kept)]
    assert "".join(passage.text for passage in kept) == "".join(texts) and len(texts) > len(held) / 2 > 1
    place = next(n for n, (one, later) in enumerate(itertools.pairwise(kept)) if later.index > one.index + 1)
    assert exercises_of(kept, place, 0) == mine_exercises(kept[place].text, 0, kept[place].id, kept[place - 1].text, "")


def test_held_out_documents_that_are_nearly_those_trained_on_are_counted(tokenizers, text_of, tmp_path):
    """Every text comes twice, the second time with another first sentence; what is held out alone has no twin left."""
    rows = [{"id": f"d{n}", "text": text_of(n, 40)} for n in range(60)]
    near = [{"id": f"near-{n}", "text": f"Another beginning. {row['text']}"} for n, row in enumerate(rows)]
    counted = {}
    for name, chosen in (("apart", rows), ("near", [*rows, *near])):
        config = CorpusConfig(source=str(write_jsonl(tmp_path / f"{name}.jsonl", chosen)), held_out=0.1)
        plan(config, tmp_path / name)
        list(write_parts(config, tokenizers["byte"], 400, tmp_path / name))
        kept, held, _ = read_corpus(config, tmp_path / name)
        counted[name] = count_near_duplicates(kept, held)
        documents = {passage.document for passage in held}
    alone = [one for one in documents if _twin(one) not in documents]
    assert counted == {"apart": 0, "near": len(alone)} and len(alone) > 3


def _twin(name: str) -> str:
    return name.replace("near-", "d") if name.startswith("near") else name.replace("d", "near-")


def test_among_many_long_documents_whole_ones_are_held_out(tokenizers, text_of, tmp_path):
    rows = [{"id": f"d{n}", "text": text_of(n, 60)} for n in range(80)]
    config = CorpusConfig(source=str(write_jsonl(tmp_path / "texts.jsonl", rows)), held_out=0.2)
    kept, held, counts = passages_of(config, tokenizers["byte"], 40)
    assert len(kept) + len(held) > 80 / 0.2 and counts["documents held out"] > 4
    assert not {passage.document for passage in kept} & {passage.document for passage in held}
