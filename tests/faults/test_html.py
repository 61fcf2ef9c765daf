"""Whatever a text, an id, a family, a label or a path holds: on a page it is text, and no browser would run or follow it."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas
import pytest
import yaml
from IPython.core.formatters import DisplayFormatter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ctxft.course import normalize, to_html
from ctxft.extras.attribution import attribute, family_table, prompt_table
from ctxft.report import loss_table, read_run, results_table, show_table, subject_table, write_report
from ctxft.run.run import Run
from ctxft.storage import write_jsonl
from ctxft.widgets import CorpusBrowser, PromptExplorer, QuestionBrowser, ResultsExplorer, RowViewer

RUN = "alert(1)"
PROBE = (
    f"<script>{RUN}</script><img src=x onerror={RUN}> \"><svg onload={RUN}> ' onmouseover='{RUN}' x=' "
    f"[go](javascript:{RUN}) </pre></td></style></title></textarea><!-- &lt;b&gt; &#60;b&#62; `b` $\\frac$ {{{{ 7 * 7 }}}}"
)
NAME = PROBE.replace("/", "|")  # where a path must be one
HARMLESS = ("alt", "class", "title", "style")


class Page(HTMLParser):
    """A page as a browser takes it apart: what it would run or follow of the probe, and how often the probe is mere text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.bad: list[str] = []
        self.inside = ""
        self.said = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Look at a tag's attributes; a probe that opened one is bad itself."""
        self.inside = tag if tag in ("script", "style") else ""
        for name, given in attributes:
            value = given or ""
            mine = RUN in value or RUN in name
            if (mine and name not in HARMLESS) or value.startswith("javascript:") or (name, value) == ("src", "x"):
                self.bad.append(f"<{tag} {name}={value[:60]}>")
            if name.startswith("on") and RUN in value:
                self.bad.append(f"<{tag} {name}>")

    def handle_endtag(self, tag: str) -> None:
        """Leave a script or a style."""
        self.inside = ""

    def handle_data(self, data: str) -> None:
        """Count the probe as text, or find it in a script."""
        if self.inside and RUN in data:
            self.bad.append(f"{self.inside}: {data[:60]}")
        self.said += 0 if self.inside else data.count(f"<script>{RUN}")

    def handle_comment(self, data: str) -> None:
        """A comment of the probe's would hide what follows."""
        if "&lt;b&gt;" in data:
            self.bad.append(f"<!--{data[:40]}")


def clean(page: str) -> int:
    """Check a page, and return how often the probe stands there as text."""
    found = Page(page)
    assert found.bad == []
    return found.said


def test_the_check_sees_what_it_looks_for():
    for piece in ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<p class='' onmouseover='alert(1)'>",
                  "<a href='javascript:alert(1)'>x</a>", "<style>alert(1)</style>", "<!-- &lt;b&gt; -->"):  # fmt: skip
        assert Page(f"<p>{piece}</p>").bad, piece
    with pytest.raises(AssertionError):
        clean(f"<p>{PROBE}</p>")
    assert clean("<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>") == 1


@pytest.fixture
def run(experiment, runs, model_folders, text_of, tmp_path):
    """A real run in which every text that a user may write is the probe, or holds it."""
    place = tmp_path / NAME[:90]
    place.mkdir()
    corpus = [{"id": f"{PROBE} {n}", "text": f"{PROBE}\n\n{text_of(100 + n, 5 + 2 * n)}"} for n in range(6)]
    asked = [
        {"id": f"{PROBE} {n}", "question": f"{PROBE} {n}?", "choices": [f"{PROBE} a", f"{PROBE} b"], "answer": n % 2,
         "subject": f"{PROBE} {n % 2}"}
        for n in range(4)
    ]  # fmt: skip
    book = {
        "name": PROBE, "kind": "strategy", "families": {"probing": {"idea": PROBE, "reference": PROBE}, "other": {"idea": "x"}},
        "prompts": [{"id": PROBE, "family": "probing", "text": PROBE}, {"id": "o", "family": "other", "text": f"See {PROBE}"}],
    }  # fmt: skip
    (place / "book.yaml").write_text(yaml.safe_dump(book))
    config = experiment(
        {"max_steps": 2, "max_length": 256},
        model=str(shutil.copytree(model_folders["byte"], place / "model")),
        corpus={"source": str(write_jsonl(place / "corpus.jsonl", corpus)), "held_out": 0.3},
        prompts={"strategies": str(place / "book.yaml")},
        evaluation={"benchmarks": [str(write_jsonl(place / f"{NAME[:60]}.jsonl", asked))]},
    )
    run = Run(config).prepare()
    for task in run.train_tasks:
        run.train_task(*task)
    for task in run.evaluate_tasks:
        run.evaluate_task(*task)
    return config


def explorers(config) -> list:
    """Return every widget of the kit, showing the probe, with its controls moved."""
    run = Run(config)
    read, (benchmark,) = read_run(run), run.benchmarks
    corpus, prompts, own = CorpusBrowser.of(run), PromptExplorer(run), PromptExplorer(run)
    corpus.words.value, own.own.value = "script", PROBE
    questions = QuestionBrowser(benchmark.questions, read.outcomes[benchmark.name], [0])
    return [corpus, prompts, own, questions, ResultsExplorer(read), RowViewer(run, "cft")]


def cell_of(shown: object):
    """Return a cell with what a front end gets of a value, as a kernel sends it."""
    data, _ = DisplayFormatter().format(shown)
    return new_code_cell("show(value)", outputs=[new_output("display_data", data)])


def test_pages_and_widgets_show_the_probe_as_text(run, tmp_path):
    found = attribute(Run(run), "cft", 0, limit=4, passages=2)
    page = write_report(read_run(run.folder)).read_text(encoding="utf-8")
    assert clean(page) > 10

    widgets = explorers(run)
    for widget in widgets:
        bundle = widget._repr_mimebundle_()
        assert clean(bundle["text/html"]) + clean(widget.view.value) > 0, type(widget)
        for control in (child for row in widget.children[:-1] for child in row.children):
            assert not getattr(control, "description_allow_html", False), "a label is text"
    read = read_run(run.folder)
    (name,) = read.outcomes
    tables = [
        results_table(read),
        loss_table(read),
        subject_table(read, name),
        family_table(found),
        prompt_table(found),
    ]
    tables.append(pandas.DataFrame({PROBE: [PROBE]}, index=[PROBE]))
    cells = [
        cell_of(shown) for shown in (*tables, *map(show_table, tables), *widgets, PROBE, {PROBE: [PROBE]}, Path(NAME))
    ]
    cells.append(
        new_code_cell(
            f"run = {PROBE!r}", outputs=[new_output("stream", name="stdout", text=f"\x1b[31m{PROBE}\x1b[0m\n")]
        )
    )
    error = new_output("error", ename="InputError", evalue=PROBE, traceback=[f"\x1b[31mInputError\x1b[0m: {PROBE}"])
    cells.append(new_code_cell("fail()", outputs=[error]))
    cells.append(new_markdown_cell("A text of the course."))
    notebook = nbformat.from_dict(new_notebook(cells=cells))
    shown = to_html(normalize(notebook), tmp_path / "page.html").read_text(encoding="utf-8")
    assert clean(shown) > 20
