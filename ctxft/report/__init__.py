"""Report: from a run folder to tables, figures and one HTML page; no model is loaded and torch is not imported."""

from ctxft import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "figures": "Picture ablation_figure arm_color confusion_figure differences_figure families_figure loss_figure "
        "reliability_figure results_figure show styled",
        "page": "Table render_html show_table write_report",
        "record": "RunRecord read_run",
        "tables": "ablation_table f1_table label_table loss_table results_table subject_table",
        "comparisons": "ablation_rows claims how_to_read overall verdicts",
    },
)
