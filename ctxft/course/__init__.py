"""Pipeline: from a profile to executed notebooks, their pages and an index page; a notebook is done again only if it must be."""

from ctxft.course.execute import execute
from ctxft.course.normal import normalize, write_notebook
from ctxft.course.notebooks import copy_course, list_notebooks, notebooks_folder
from ctxft.course.pages import to_html
from ctxft.course.run import run_notebooks

# fmt: off
__all__ = [
    "copy_course", "execute", "list_notebooks", "normalize", "notebooks_folder", "run_notebooks", "to_html", "write_notebook",
]
