"""Controls flow in; a view that follows them flows out: what all widgets of the kit share.

A widget keeps no text of its own: ``text`` and ``html`` are made from the controls by functions of the library, so every view
can be had, and tested, without a browser. Where no front end runs a kernel (GitHub, a page), the cell shows the view as it
was when the cell ran.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets

from ctxft.report.page import PAGES
from ctxft.storage import InputError

WIDE = {"description_width": "initial"}  # a label is as wide as its words
CSS = PAGES.get_template("style.css").render()
STYLE = f"<style>{CSS}.widget-html-content:has(.ctxft) {{ min-width: 0; }}</style>"  # a wide table scrolls by itself
LINE = ipywidgets.Layout(flex_flow="row wrap", align_items="center")


def labelled(
    kind: type[ipywidgets.DOMWidget], label: str, width: str = "auto", **values: object
) -> ipywidgets.DOMWidget:
    """Return a control whose label stands before it in full."""
    if issubclass(kind, ipywidgets.Dropdown):  # JupyterLab takes bare arrow keys for itself
        values["tooltip"] = "the space bar opens the list, arrows and Enter choose"
    layout = ipywidgets.Layout(width=width, margin="2px 1.2em 2px 2px")
    return kind(description=label, style=WIDE, layout=layout, **values)


def framed(*parts: str) -> str:
    """Return pieces of HTML as one, in the look that all views share."""
    return f'<div class="ctxft">{STYLE}{"".join(parts)}</div>'


class Explorer(ipywidgets.VBox):
    """Controls above a view; each kind of it has a property ``text``, and its own ``html`` where that is not enough.

    Args:
        controls: rows of controls; a change of any changes the view.

    Raises:
        InputError: what the controls ask for at first is not there.
    """

    def __init__(self, *controls: Sequence[ipywidgets.DOMWidget]) -> None:
        self.view = ipywidgets.HTML(layout=ipywidgets.Layout(width="100%"))
        super().__init__([*(ipywidgets.HBox(list(row), layout=LINE) for row in controls), self.view])
        for control in (control for row in controls for control in row):
            control.observe(self._refresh, names="value")
        self.view.value = self.html

    text: str  # what is shown, as text

    @property
    def html(self) -> str:
        """What is shown, as HTML."""
        return f"<pre>{html.escape(self.text)}</pre>"

    def _refresh(self, _change: dict | None = None) -> None:
        try:
            self.view.value = self.html
        except InputError as error:  # in a browser nobody would see it raised
            self.view.value = f'<p role="alert"><b>Not possible:</b> {html.escape(str(error))}</p>'

    def _repr_mimebundle_(self, **options: object) -> dict:
        """Return the live widget, and beside it the view as it is now for readers without a kernel."""
        return {**super()._repr_mimebundle_(**options), "text/html": self.view.value, "text/plain": self.text}
