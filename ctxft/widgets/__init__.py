"""Widgets: thin ipywidgets over pure functions of the library. Only notebooks import them."""

from ctxft.widgets.prompts import PromptExplorer
from ctxft.widgets.questions import QuestionBrowser

__all__ = ["PromptExplorer", "QuestionBrowser"]
