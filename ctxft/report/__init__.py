"""Report: from a run folder to tables, figures and one HTML page; no model is loaded and torch is not imported."""

# fmt: off
from ctxft.report.figures import (
    Picture,
    ablation_figure,
    arm_color,
    confusion_figure,
    differences_figure,
    families_figure,
    loss_figure,
    reliability_figure,
    results_figure,
    show,
    styled,
)
from ctxft.report.page import Table, render_html, show_table, write_report
from ctxft.report.record import RunRecord, read_run
from ctxft.report.tables import ablation_table, f1_table, label_table, loss_table, results_table, subject_table
from ctxft.report.verdicts import ablation_rows, claims, how_to_read, overall, verdicts

__all__ = [
    "Picture", "RunRecord", "Table", "ablation_figure", "ablation_rows", "ablation_table", "arm_color", "claims",
    "confusion_figure", "differences_figure", "f1_table", "families_figure", "how_to_read", "label_table", "loss_figure",
    "loss_table", "overall", "read_run", "reliability_figure", "render_html", "results_figure", "results_table", "show",
    "show_table", "styled", "subject_table", "verdicts", "write_report",
]
