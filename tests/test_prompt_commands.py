"""`ctxft prompts`: books are listed, shown, checked with file and line, and started from one of the kit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctxft.cli import main
from ctxft.prompts import PROMPT_SETS, load_prompt_set
from ctxft.storage import write_text


def test_list_names_every_book_with_its_size(capsys):
    assert main(["prompts", "list"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(rows) == set(PROMPT_SETS)
    for name, row in rows.items():
        book = load_prompt_set(name)
        assert row[1:4] == [book.kind, str(len(book.families)), str(len(book.prompts))] and row[-1] == book.hash[:12]


def test_show_prints_every_prompt_and_the_idea_behind_it(capsys):
    assert main(["prompts", "show", "strategies", "--model", "practice-aware"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    book = load_prompt_set("strategies")
    assert all(f"{prompt.id}, " in shown and prompt.text in shown for prompt in book.prompts)
    assert all(idea in shown for idea in book.ideas.values())
    assert all(publication in shown for publication in book.references.values())
    assert main(["prompts", "show", "strategies", "--family", "critical"]) == 0
    shown = capsys.readouterr().out
    assert "critical-1:" in shown and "context-1" not in shown
    assert main(["prompts", "show", "strategies", "--family", "critcal"]) == 2
    assert "has no family 'critcal'" in capsys.readouterr().err


def test_a_book_of_ones_own_is_started_checked_and_refused_with_file_and_line(tmp_path: Path, capsys):
    path = tmp_path / "own.yaml"
    assert main(["prompts", "write", str(path)]) == 0
    book = load_prompt_set(path)
    assert book.name == "own" and book.prompts == load_prompt_set("strategies").prompts
    assert (book.ideas, book.references) == (
        load_prompt_set("strategies").ideas,
        load_prompt_set("strategies").references,
    )
    assert main(["prompts", "write", str(path)]) == 2  # never over a file
    capsys.readouterr()
    given = ["prompts", "validate", str(path), "--model", "practice-aware", "--window"]
    assert main([*given, "96"]) == 0
    assert re.search(
        r"a valid prompt set: 20 prompts in 10 families, .* leaves \d+ of 96 for text", capsys.readouterr().out
    )
    assert main([*given, "50"]) == 2
    found = re.search(r"own\.yaml, line (\d+): prompt '(\S+)' takes \d+ tokens", capsys.readouterr().err)
    line = path.read_text(encoding="utf-8").splitlines()[int(found[1]) - 1]
    assert next(p.text for p in book.prompts if p.id == found[2]) in line
    write_text(path, path.read_text(encoding="utf-8").replace("critical-1", "critical-2"))
    assert main(["prompts", "validate", str(path)]) == 2
    assert re.search(r"own\.yaml, line \d+: the id 'critical-2' is used twice", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["validate", "strategie"], "unknown prompt set 'strategie' (did you mean 'strategies'?)"),
        (["validate", "none.yaml"], "none.yaml does not exist"),
        (["write", "book.txt"], "give it a name that ends in .yaml"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], said: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prompts", *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_window_without_a_model_is_refused(capsys):
    assert main(["prompts", "validate", "strategies", "--window", "20"]) == 2
    assert "--window counts in a model's tokens: add --model" in capsys.readouterr().err
