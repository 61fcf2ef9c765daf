"""Widgets: thin ipywidgets over pure functions of the library. Only notebooks import them."""

from ctxft.widgets.corpus import CorpusBrowser
from ctxft.widgets.prompts import PromptExplorer
from ctxft.widgets.questions import QuestionBrowser
from ctxft.widgets.results import ResultsExplorer
from ctxft.widgets.rows import RowViewer
from ctxft.widgets.training import TrainingMonitor

# fmt: off
__all__ = [
    "CorpusBrowser", "PromptExplorer", "QuestionBrowser", "ResultsExplorer", "RowViewer", "TrainingMonitor",
]
