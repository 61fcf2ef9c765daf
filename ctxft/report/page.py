"""Fill in the HTML templates: the report of a run, and tables as a notebook shows them.

Jinja2 escapes every text, a page's content policy forbids the browser to fetch anything, and styles and figures are inside it,
so that no text from a run folder can spell a script.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas
from markupsafe import Markup
from matplotlib.figure import Figure

from ctxft.report.comparisons import ablation_rows, how_to_read, overall, searched, verdicts
from ctxft.report.figures import Picture, ablation_figure, arm_color, loss_figure, results_figure, save
from ctxft.report.record import RunRecord, Source, as_record
from ctxft.report.tables import ablation_table, f1_table, loss_table, results_table, subject_table
from ctxft.statistics import common_seeds
from ctxft.storage import write_text
from ctxft.world.exams import EXAMS


def compact(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return a table without the columns in which nothing stands."""
    return table.loc[:, (table.astype(str) != "").any()]


PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("ctxft.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# what a template may call
PAGES.globals |= {function.__name__: function for function in (
    ablation_figure, ablation_rows, ablation_table, arm_color, compact, f1_table, how_to_read, loss_figure, loss_table, overall,
    results_figure, results_table, searched, subject_table, verdicts,
)}  # fmt: skip


def render_html(template: str, **values: object) -> Markup:
    """Fill in a template of ``ctxft/report/templates``, every text escaped.

    Args:
        template: its file name; a page extends ``base.html``, which wants a ``title``.
        values: what the template names.

    Returns:
        HTML, which is not escaped again as a value of another template.

    Example:
        >>> str(render_html("table.html", table=pandas.DataFrame({"a": ["<b>"]}))).count("&lt;b&gt;")
        1
    """
    return Markup(PAGES.get_template(template).render(values))


@dataclass(frozen=True)
class Table:
    """A table as a notebook shows it: HTML, which fits a narrow window, and lines of text where only text is seen."""

    html: str
    text: str

    def _repr_mimebundle_(self, **_options: object) -> dict:
        return {"text/html": self.html, "text/plain": self.text}


def show_table(table: pandas.DataFrame) -> Table:
    """Show a table in a notebook: without its index, and without columns in which nothing stands.

    Args:
        table: from ``ctxft.report``, or your own.

    Returns:
        The table, to be the last line of a cell; its HTML names each benchmark once.

    Example:
        >>> print(show_table(pandas.DataFrame({"arm": ["cpt"], "seeds": [3], "p": [""]})).text)
        arm  seeds
        cpt      3
    """
    return Table(render_html("table.html", table=table), compact(table).to_string(index=False))


def write_report(run: Source, reference: str = "cpt", out: str | os.PathLike | None = None) -> Path:
    """Write the report of a run: tables, figures, verdicts and caveats, in one file that opens offline.

    Its figures are also in ``figures/`` next to it, each as PNG and SVG.

    Args:
        run: a run folder, a Run, or a run that is read already; of a run read with some seeds the page shows these.
        reference: the arm that is subtracted.
        out: the file to write; None takes report.html in the run's folder.

    Returns:
        The path of the file.

    Raises:
        InputError: the folder is no evaluated run, the reference was not evaluated, or arms have different items.
    """
    run = as_record(run)
    path = Path(out or run.folder / "report.html")

    def draw(figure: Figure, name: str) -> Picture:  # in the page, and next to it
        return save(figure, f"report-{name}", path.parent)

    seeds = min(max(map(len, common_seeds(arms).values())) for arms in run.outcomes.values())
    practice = any(name in EXAMS for name in run.outcomes)
    facts = {"seeds": seeds, "practice": practice, "incomplete": _incomplete(run), "origin": _origin(run)}
    page = render_html("report.html", run=run, reference=reference, draw=draw, **facts)
    return write_text(path, page)


def _incomplete(run: RunRecord) -> dict[str, str]:
    """Return benchmark -> the seeds that are left out, since not every trained arm has them; only where there are any."""
    texts = {}
    for name, arms in run.outcomes.items():
        common = common_seeds(arms)
        left_out = {arm: sorted(set(seeds) - set(common[arm])) for arm, seeds in arms.items()}
        texts[name] = "; ".join(f"{arm}: {', '.join(map(str, seeds))}" for arm, seeds in left_out.items() if seeds)
    return {name: text for name, text in texts.items() if text}


def _origin(run: RunRecord) -> dict[str, pandas.DataFrame]:
    """Return title -> names and values: what the results were made from."""
    seeds = "; ".join(f"{arm}: {', '.join(map(str, sorted(metrics)))}" for arm, metrics in run.metrics.items())
    values = {
        "Run": {"code revision": run.manifest["code"], "seeds evaluated": seeds},
        "Ledger of texts and tokens": dict(sorted(run.ledger.items(), key=lambda pair: (":" in pair[0], pair[0]))),
        "Configuration": run.manifest["config"],
        "Versions": run.manifest["versions"],
        "Hashes": run.manifest["hashes"],
    }
    tables = {}
    for title, value in values.items():
        if value:
            pairs = pandas.json_normalize(value).to_dict("records")[0].items()
            tables[title] = pandas.DataFrame([(name, _readable(v)) for name, v in pairs], columns=["name", "value"])
    return tables


def _readable(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
