"""What prompts do to a model's loss and gradient (``experiment.attribution``) flows in; tables and a forest plot flow out."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctxft.report.figures import arm_color, finish, legend, mark, save, styled
from ctxft.report.page import render
from ctxft.storage import InputError, read_checked

LOOKS = {
    "strategy": (arm_color("cft"), "o", "strategy prompt"),
    "negative": (arm_color("neg"), "s", "negative prompt"),
    "control": (arm_color("control"), "D", "random words"),
}
CHANGES = ("minus no prompt", "95 % interval", "minus as many words", "95 % interval of that")
BAND = "#f3f3f3"
GAP = 0.8  # lines between two families


def prompt_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for each prompt: what it changes in the loss of the passages after it.

    Args:
        attribution: from ``experiment.attribution.attribute``.

    Returns:
        Columns prompt, family, kind, tokens, "minus no prompt" and "minus as many words" (random ones), both in nats a
        token with a 95 % interval over documents; below 0 the prompt helps. "" where there is nothing.
    """
    rows = [
        (row["prompt"], row["family"], row["kind"], row["tokens"], *_cells(row["to_none"]), *_cells(row["to_control"]))
        for row in attribution["prompts"]["prompts"]
    ]
    return pandas.DataFrame(rows, columns=["prompt", "family", "kind", "tokens", *CHANGES])


def family_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for all prompts of a kind, then for each family: columns as in ``prompt_table``, and prompts, their number.

    The mean over prompts is taken passage by passage, before the interval over documents.
    """
    losses = attribution["prompts"]
    rows = [
        (row.get("family", "(all)"), row["kind"], row["prompts"], *_cells(row["to_none"]), *_cells(row["to_control"]))
        for row in (*losses["kinds"], *(row for row in losses["families"] if row["kind"] != "control"))
    ]
    return pandas.DataFrame(rows, columns=["family", "kind", "prompts", *CHANGES])


def _cells(change: dict | None) -> tuple[str, str]:
    if change is None:
        return "", ""
    ends = "" if change["low"] is None else f"{change['low']:+.4f} to {change['high']:+.4f}"
    return f"{change['difference']:+.4f}", ends


def training_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for each family: the loss of the passages of training, after the prompts that they were read with.

    Columns: family, kind, passages, documents, tokens, loss (nats a token) and its 95 % interval.
    """
    rows = [
        [row[key] for key in ("family", "kind", "passages", "documents", "tokens")]
        + [f"{row['loss']:.4f}", "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"]
        for row in attribution["training"]["families"]
    ]
    columns = ["family", "kind", "passages", "documents", "tokens", "loss", "its 95 % interval"]
    return pandas.DataFrame(rows, columns=columns)


def gradient_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for each condition: the norm of its gradient, and its cosine with that of every other condition.

    Raises:
        InputError: the attribution was made without gradients.
    """
    found = attribution["gradients"]
    if found is None:
        raise InputError("this attribution has no gradients: make it with 1 passage or more for them.")
    names = [condition["family"] for condition in found["conditions"]]
    table = pandas.DataFrame(found["cosine"], columns=names).round(3)
    table.insert(0, "norm", [float(f"{norm:.4g}") for norm in found["norms"]], allow_duplicates=True)
    table.insert(0, "cosine", names, allow_duplicates=True)
    return table


@styled
def prompt_figure(attribution: dict) -> Figure:
    """Return a forest plot of what each prompt changes in the loss of held-out passages: left of 0 it helps.

    The left panel compares with no prompt, the right one with as many random words. A line is a prompt; the lines of a
    family stand together, and their order is that of ``prompt_table``.

    Args:
        attribution: from ``experiment.attribution.attribute``.
    """
    families: dict[str, list[dict]] = {}
    for row in attribution["prompts"]["prompts"]:
        families.setdefault(row["family"], []).append(row)
    lines = len(attribution["prompts"]["prompts"]) + GAP * (len(families) - 1)
    figure = Figure(figsize=(7.3, 1.3 + 0.15 * lines))
    panels = figure.subplots(1, 2, sharey=True)
    places = _draw(panels, families, lines)
    for axes, title in zip(panels, ("minus no prompt", "minus as many random words"), strict=True):
        finish(axes, list(places.values()), list(places), lines)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("nats a token, 95 % intervals")
    kinds = {row["kind"] for rows in families.values() for row in rows}
    legend(figure, [look for kind, look in LOOKS.items() if kind in kinds])
    told = (
        f"{row['family']} ({row['kind']}) {row['to_none']['difference']:+.3f}"
        for row in attribution["prompts"]["families"]
    )
    figure.set_label(
        f"What prompts change in the loss of held-out passages, nats a token minus no prompt, by family: {', '.join(told)}."
    )
    return figure


def _draw(panels: Sequence[Axes], families: dict[str, list[dict]], lines: float) -> dict[str, float]:
    """Draw the families from the top, with a band over every second; returns where each one's name belongs."""
    places, y = {}, lines - 1
    for number, (family, rows) in enumerate(families.items()):
        places[family] = y - (len(rows) - 1) / 2
        for axes, key in zip(panels, ("to_none", "to_control"), strict=True):
            if number % 2:
                axes.axhspan(y - len(rows) + 1 - GAP / 2 - 0.5, y + GAP / 2 + 0.5, color=BAND, zorder=0)
            for line, row in enumerate(rows):
                if change := row[key]:
                    values = (change["difference"], change["low"], change["high"])
                    mark(axes, y - line, values, LOOKS[row["kind"]])
        y -= len(rows) + GAP
    return places


def report_sections(folder: str | os.PathLike) -> list[Markup]:
    """Return the section of the report (``write_report(..., more=...)``) that shows a run's attributions; none where it has none.

    Its figures are also written into the run folder.
    """
    parts = []
    for path in sorted((Path(folder) / "attribution").glob("*.json")):
        attribution, figure = read_checked(path), f"report-prompts-{path.stem}"
        tables = {"family by family": family_table(attribution), "prompt by prompt": prompt_table(attribution)}
        tables |= {"cosines of gradients": gradient_table(attribution)} if attribution["gradients"] else {}
        title = f"{attribution['arm']}, seed {attribution['seed']}"
        parts.append((title, save(prompt_figure(attribution), figure, folder), tables))
    return [render("attribution.html", parts=parts)] if parts else []


def attribution_text(attribution: dict) -> str:
    """Return the tables of an attribution as text, with what they are about."""
    losses, training = attribution["prompts"], attribution["training"]
    size = "{passages} of {available} {which} passages, {documents} documents, {tokens} tokens"
    said = (
        f"{attribution['arm']}, seed {attribution['seed']}: {size.format(**losses | {'which': 'held-out'})}. Without a prompt "
        f"the loss is {losses['loss']:.4f} nats a token; below 0 a prompt helps. Intervals are over documents and not "
        f"corrected for their number."
    )
    parts = [textwrap.fill(said, 118)]
    parts += [table(attribution).to_string(index=False) for table in (family_table, prompt_table)]
    if training:
        said = f"After the prompts of training: {size.format(**training | {'which': 'training'})}"
        parts += [said, training_table(attribution).to_string(index=False)]
    if attribution["gradients"]:
        said = "Gradients of {passages} training passages ({weights} weights): norm and cosines"
        parts += [said.format(**attribution["gradients"]), gradient_table(attribution).to_string(index=False)]
    return "\n\n".join(parts)
