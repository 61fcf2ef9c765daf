"""A figure goes in; a picture in the notebook comes out, a PNG and an SVG on disk, and words for those who cannot see it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from ctxft.report.style import SHEET
from ctxft.storage import InputError, atomic_file, write_text

DPI = 100  # of the picture in a notebook, which git keeps; the file on disk has more


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it: a PNG, and its words where pictures are not seen.

    Attributes:
        png: the picture.
        alt: what it shows, in words.
        width: in CSS pixels.
    """

    png: bytes
    alt: str
    width: int

    def _repr_mimebundle_(self, **_options: object) -> tuple[dict, dict]:
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt, "width": self.width}}


def png_of(figure: Figure, dpi: int) -> bytes:
    """Return a figure as a PNG that is the same in every run."""
    file = io.BytesIO()
    with matplotlib.rc_context(SHEET):
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def smaller(png: bytes) -> bytes:
    """Return a PNG of 128 colours, for notebooks, which git keeps: a third of the bytes, and no eye sees it."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(file, format="png", optimize=True)
    return file.getvalue()


def svg_of(figure: Figure, title: str, words: str) -> str:
    """Return a figure as an SVG whose title and words a screen reader finds."""
    file = io.StringIO()
    about = {"Date": None, "Creator": None, "Title": title, "Description": words}
    with matplotlib.rc_context(SHEET):
        figure.savefig(file, format="svg", metadata=about)
    return file.getvalue()


def save(figure: Figure, name: str, folder: str | Path) -> None:
    """Write a figure below a run folder: ``figures/<name>.png`` and ``.svg``."""
    place = Path(folder) / "figures"
    with atomic_file(place / f"{name}.png", binary=True) as file:
        file.write(png_of(figure, 2 * DPI))
    write_text(place / f"{name}.svg", svg_of(figure, name, figure.get_label()))


def show(figure: Figure, name: str, folder: str | Path, alt: str = "") -> Picture:
    """Show a figure in a notebook, and write it to disk as PNG and SVG.

    Args:
        figure: from ``ctxft.report``, or your own.
        name: of the files, as in "04-losses".
        folder: the run folder; the files stand in its ``figures/``.
        alt: what the figure shows, in words; figures of ``ctxft.report`` bring theirs along (``figure.get_label()``).

    Returns:
        The picture, to be the last line of a cell.

    Raises:
        InputError: the figure has no words.
    """
    alt = alt or figure.get_label()
    if not alt:
        raise InputError(f"figure '{name}' has no words for those who cannot see it: give alt.")
    figure.set_label(alt)
    save(figure, name, folder)
    return Picture(smaller(png_of(figure, DPI)), alt, round(figure.get_figwidth() * 96))
