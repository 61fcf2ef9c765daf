"""The in-context regression experiment, from random tasks to errors by arm (Choi et al., ICLR 2025, arXiv 2503.09032)."""

from ctxft import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "config": "load_config",
        "figures": "COLORS RECORDED alignment_figure copying_figure curves_figure errors_figure mean_error read_result "
        "study_table",
        "regression": "context_of draw_chance draw_tasks make_generator make_network squared_errors",
        "study": "least_squares_errors read_progress run_study",
    },
)
