"""Report: from a run folder to tables, figures and one HTML file; no model is loaded and torch is not imported."""

from ctxft.report.ablations import ablation_figure, ablation_table
from ctxft.report.attribution import family_table, gradient_table, prompt_figure, prompt_table, training_table
from ctxft.report.claims import claims
from ctxft.report.figures import arm_color, differences_figure, loss_figure, results_figure
from ctxft.report.markup import Table, show_table
from ctxft.report.page import write_report
from ctxft.report.record import RunRecord, read_run
from ctxft.report.show import Picture, show
from ctxft.report.tables import f1_table, loss_table, results_table, subject_table
from ctxft.report.verdicts import verdicts

# fmt: off
__all__ = [
    "Picture", "RunRecord", "Table", "ablation_figure", "ablation_table", "arm_color", "claims", "differences_figure", "f1_table",
    "family_table", "gradient_table", "loss_figure", "loss_table", "prompt_figure", "prompt_table", "read_run", "results_figure",
    "results_table", "show", "show_table", "subject_table", "training_table", "verdicts", "write_report",
]
