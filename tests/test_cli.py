"""`ctxft prompts`: books are listed, shown, checked with file and line, and started from one of the kit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from ctxft.cli import main
from ctxft.prompts import PROMPT_SETS, load_prompt_set
from ctxft.storage import KEPT, write_text


def test_list_names_every_book_with_its_size(capsys):
    assert main(["prompts", "list"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(rows) == set(PROMPT_SETS)
    for name, row in rows.items():
        book = load_prompt_set(name)
        assert row[1:4] == [book.kind, str(len(book.families)), str(len(book.prompts))] and row[-1] == book.hash[:12]


def test_show_prints_every_prompt_and_the_idea_behind_it(capsys):
    assert main(["prompts", "show", "strategies"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    book = load_prompt_set("strategies")
    assert all(f"- {prompt.id}: " in shown and prompt.text in shown for prompt in book.prompts)
    assert all(idea in shown for idea in book.ideas.values())
    assert all(publication in shown for publication in book.references.values())


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
    assert main(["prompts", "validate", str(path)]) == 0
    assert "a valid prompt set: 20 prompts in 10 families, kind strategy" in capsys.readouterr().out
    write_text(path, path.read_text(encoding="utf-8").replace("critical-1", "critical-2"))
    assert main(["prompts", "validate", str(path)]) == 2
    assert re.search(r"own\.yaml, line \d+: the id 'critical-2' is used twice", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validate", "strategie"], "unknown prompt set 'strategie' (did you mean 'strategies'?)"),
        (["validate", "none.yaml"], "none.yaml does not exist"),
        (["write", "book.txt"], "give it a name that ends in .yaml"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], message: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prompts", *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


VERBS = ["run", "course", "train", "evaluate", "estimate", "compare", "leaks", "verify"]
VERBS += ["attribute", "synthetic", "export", "hosted", "check", "prompts"]


def test_help_names_every_command_and_loads_no_torch():
    code = "import sys; from ctxft.cli import main; code = main(sys.argv[1:]); "
    code += "print(code, [name for name in ('torch', 'transformers', 'pandas', 'papermill') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code, "--help"], check=True, capture_output=True, text=True).stdout
    assert re.findall(r"^  (\w+)  ", shown.split("Commands:")[1], flags=re.M) == VERBS
    assert shown.endswith("0 []\n")


@pytest.mark.parametrize("words", [[verb] for verb in VERBS[:-1]] + [["prompts", verb] for verb in ("list", "adapt")])
def test_every_command_explains_itself(words, capsys):
    assert main([*words, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: ctxft {' '.join(words)} ")


def test_a_bare_command_prints_the_help(capsys):
    assert main([]) == 2 and "Commands:" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "words", [["trane"], ["train"], ["train", "mini", "--sett", "a=1"], ["estimate", "mini", "--rate", "0"]]
)
def test_a_command_that_is_not_understood_has_the_exit_code_of_bad_input(words, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Try 'ctxft" in err and "Traceback" not in err


def test_an_interrupt_ends_in_one_sentence_with_the_code_of_its_signal(monkeypatch, capsys):
    for stop, code in ((KeyboardInterrupt(), 130), (KeyboardInterrupt(15), 143)):
        monkeypatch.setattr("ctxft.prompts.load_prompt_set", Mock(side_effect=stop))
        assert main(["prompts", "show", "strategies"]) == code
        assert capsys.readouterr().err == f"ctxft: stopped. {KEPT}\n"


def test_a_pipe_that_closes_early_is_no_failure():
    command = f"{sys.executable} -m ctxft prompts show strategies | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("strategies: kind strategy")


@pytest.mark.process
def test_check_shows_versions_and_that_the_guarantees_hold(capfd):
    assert main(["check"]) == 0
    out, err = capfd.readouterr()
    holding = re.findall(r"^holds  (.+) \(", out, flags=re.M)
    assert holding == ["packed equals one at a time", "resumed equals straight", "scores do not depend on the batch"]
    assert "FAILS" not in out and err == "" and {"torch", "device"} <= {line.split()[0] for line in out.splitlines()}


def test_check_fails_where_a_guarantee_does_not_hold(monkeypatch, capsys):
    monkeypatch.setattr("ctxft.extras.check.check_training", lambda folder: {"resumed equals straight": (1e-9, 0.0)})
    monkeypatch.setattr("ctxft.extras.check.check_scores", lambda: 0.1)
    assert main(["check"]) == 1
    failing = re.findall(r"^FAILS  (.+) \(", capsys.readouterr().out, flags=re.M)
    assert failing == ["resumed equals straight", "scores do not depend on the batch"]
