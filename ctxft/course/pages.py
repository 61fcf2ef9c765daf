"""Executed notebooks go in; web pages that open from disk without a network come out: one for each, and an index of them all."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from nbconvert import HTMLExporter
from nbformat import NotebookNode

from ctxft.course.notebooks import title_and_promise
from ctxft.storage import versions, write_text

# nbconvert's own template, but for pictures: theirs leaves out the words that a picture brings along.
TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{% block data_png scoped %}
<div class="jp-RenderedImage jp-OutputArea-output" tabindex="0">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
{%- set words = output | get_metadata('alt', 'image/png') -%}
{%- if words is not none %} alt="{{ words | escape_html }}"{% endif %}
{%- set width = output | get_metadata('width', 'image/png') -%}
{%- if width is not none %} width="{{ width | escape_html }}"{% endif %}>
</div>
{% endblock data_png %}
"""
STATES = {"done": "done", "skipped": "nothing changed", "failed": "failed", "running": "running", "": "not run"}
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top; padding: .5rem .8rem .5rem 0; }
tr + tr td, thead + tbody td { border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
td:nth-child(2), td:nth-child(3) { white-space: nowrap; } small, .promise { opacity: .8; display: block; }
.failed { font-weight: bold; } .failed::before { content: "\\2717 "; } .done::before { content: "\\2713 "; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
figure img { width: 100%; max-height: 16rem; object-fit: contain; background: white; border: 1px solid #8884; }
figcaption { font-size: .85rem; }
"""
POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"


@dataclass
class Line:
    """What the index page says of a notebook.

    Attributes:
        path: the notebook of the course.
        state: of STATES.
        seconds: that its last run took; None where it has not run.
    """

    path: Path
    state: str = ""
    seconds: float | None = None


def to_html(notebook: NotebookNode, path: Path) -> Path:
    """Write an executed notebook as one HTML file that opens without a network; pictures have their words."""
    exporter = HTMLExporter(
        raw_template=TEMPLATE,
        require_js_url="",
        mathjax_url="",
        mermaid_js_url="",
        jquery_url="",
        exclude_input_prompt=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    return write_text(path, body)


def duration(seconds: float) -> str:
    """Return a time in words, as coarse as it is known: "40 s", "3 min", "1 h 20 min".

    Example:
        >>> duration(42), duration(200), duration(4800)
        ('42 s', '3 min', '1 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def write_index(folder: Path, profile: str, lines: Iterable[Line]) -> Path:
    """Write ``index.html`` of a run: every notebook with its state and pages, the report, the figures.

    Args:
        folder: the run folder.
        profile: as it was given.
        lines: of all notebooks, in order.
    """
    name = html.escape(folder.name)
    rows = "\n".join(_row(folder, line) for line in lines)
    about = ", ".join(f"{key} {value}" for key, value in versions().items() if value)
    report = '<p><a href="report.html">The report</a>: tables, tests and caveats of the whole run.</p>'
    pictures = sorted((folder / "figures").glob("*.png"))
    body = [
        f"<h1>Run {name}</h1>",
        f"<p>Profile {html.escape(Path(profile).name)}. {html.escape(about)}.</p>",
        report if (folder / "report.html").exists() else "",
        "<table><thead><tr><th>notebook</th><th>state</th><th>time</th><th>files</th></tr></thead>",
        f"<tbody>\n{rows}\n</tbody></table>",
        "<h2>Figures</h2>" if pictures else "",
        f'<div class="figures">{"".join(map(_thumbnail, pictures))}</div>' if pictures else "",
    ]
    head = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Run {name}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n'
    )
    return write_text(folder / "index.html", head + "\n".join(filter(None, body)) + "\n</body></html>\n")


def _row(folder: Path, line: Line) -> str:
    title, promise = (html.escape(part) for part in title_and_promise(line.path))
    place = folder / "notebooks"
    files = {"page": f"{line.path.stem}.html", "notebook": line.path.name, "log": f"{line.path.stem}.log"}
    files |= {"what failed": f"{line.path.stem}.failed.ipynb"}
    links = " · ".join(
        f'<a href="notebooks/{html.escape(file)}">{words}</a>'
        for words, file in files.items()
        if (place / file).exists()
    )
    if (place / files["page"]).exists():
        title = f'<a href="notebooks/{html.escape(files["page"])}">{title}</a>'
    took = "" if line.seconds is None else duration(line.seconds)
    state = f'<span class="{line.state}">{STATES[line.state]}</span>'
    return f'<tr><td>{title}<span class="promise">{promise}</span></td><td>{state}</td><td>{took}</td><td>{links}</td></tr>'


def _thumbnail(path: Path) -> str:
    words, file = html.escape(_words_of(path)), html.escape(path.name)
    vector = html.escape(path.with_suffix(".svg").name)
    return (
        f'<figure><a href="figures/{vector}"><img src="figures/{file}" alt="{words}" loading="lazy"></a>'
        f"<figcaption>{html.escape(path.stem)}</figcaption></figure>"
    )


def _words_of(picture: Path) -> str:
    """Return the words of a figure, which its SVG holds."""
    found = ElementTree.parse(picture.with_suffix(".svg")).find(".//{http://purl.org/dc/elements/1.1/}description")
    return "" if found is None else found.text or ""
