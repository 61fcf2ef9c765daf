"""Tables and figures go in; pieces of HTML come out, every text in them escaped, for the report's page and for notebooks."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from dataclasses import dataclass

import pandas
from matplotlib.figure import Figure

from ctxft.report.figures import arm_color
from ctxft.report.show import png_of

NOWRAP = '<td style="white-space: nowrap; padding: 0.3em 0.4em">'


def table_html(columns: Iterable[str], rows: Iterable[Iterable[object]], kind: str = "") -> str:
    """Return a table; ``kind`` is its CSS class."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def frame_html(table: pandas.DataFrame) -> str:
    """Return a data frame as a table, without its index."""
    return table_html(table.columns, table.astype(str).values)


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
    table = table.loc[:, [bool((table[name].astype(str) != "").any()) for name in table.columns]]
    cells = table.astype(str)
    if "benchmark" in cells:
        cells["benchmark"] = cells["benchmark"].mask(cells["benchmark"].eq(cells["benchmark"].shift()), "")
    page = table_html(cells.columns, cells.values).replace("<td>", NOWRAP)  # a wide one is scrolled, no cell is broken
    return Table(page, table.to_string(index=False))


def results_html(table: pandas.DataFrame) -> str:
    """Return what ``results_table`` returns as a table, a dot of its colour before each arm and each benchmark named once."""
    head = "".join(f'<th class="{html.escape(name)}">{html.escape(name)}</th>' for name in table.columns)
    body, before = "", None
    for name, arm, *cells in table.itertuples(index=False):
        line = arm.startswith("(")  # (chance) and (majority) are no arms
        kind = ("line " if line else "") + ("first" if before not in (None, name) else "")
        dot = "" if line else f'<span class="dot" style="background:{arm_color(arm)}"></span>'
        body += f'<tr class="{kind}"><td>{html.escape(name) if name != before else ""}</td>'
        body += f'<td class="arm">{dot}{html.escape(arm)}</td>'
        body += "".join(f"<td>{html.escape(str(cell)).replace(' / ', '<br>')}</td>" for cell in cells) + "</tr>"
        before = name
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def image_html(figure: Figure, dpi: int = 160) -> str:
    """Return a figure as an image inside the page; its words (``figure.get_label()``) are what a screen reader says."""
    data = base64.b64encode(png_of(figure, dpi)).decode()
    width = round(figure.get_figwidth() * 96)
    return f'<img alt="{html.escape(figure.get_label())}" width="{width}" src="data:image/png;base64,{data}">'
