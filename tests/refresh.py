"""Run the notebooks at their defaults and write their outputs, the README's figure and its results back into the repository.

    python tests/refresh.py            run everything in a fresh run root, then write
    python tests/refresh.py --readme   only write the README's figure and table again, from notebooks/results/mini.json

Use it after a change that alters what notebooks print. The figures in the README come from here, never from typing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "notebooks" / "results" / "mini.json"
FIGURE = ROOT / "notebooks" / "figures" / "results.png"
START, END = "<!-- results: filled in by tests/refresh.py -->", "<!-- end of results -->"


def run_notebooks(runs: str) -> Path:
    """Execute every notebook with its defaults and write the outputs in normal form over the committed ones."""
    os.environ.update(CTXFT_RUNS=runs, TQDM_DISABLE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    from ctxft.pipeline import execute, list_notebooks, write_notebook

    for path in list_notebooks():
        print(path.name, flush=True)
        write_notebook(path, execute(path, Path(runs) / "executed" / path.name, {}))
    return Path(runs) / "mini"


def write_results(folder: Path) -> None:
    """Write the results of a run and its figure into notebooks/."""
    from ctxft.report import read_run, results_figure, results_table
    from ctxft.runtime import write_json

    run = read_run(folder)
    versions = {name: run.manifest["versions"][name] for name in ("python", "ctxft", "torch", "transformers")}
    frame = results_table(run)
    table = {"columns": list(frame.columns), "rows": frame.to_numpy().tolist()}
    seeds = run.manifest["config"]["seeds"]
    write_json(RESULTS, {"command": "ctxft run", "seeds": seeds, "versions": versions, "table": table})
    FIGURE.parent.mkdir(exist_ok=True)
    results_figure(run).savefig(FIGURE, dpi=100, metadata={"Software": None})


def results_block() -> str:
    """Return the README's results section as Markdown, from the committed results."""
    from ctxft.runtime import read_json

    found = read_json(RESULTS)
    table = found["table"]
    lines = ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(table["columns"])]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table["rows"]]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    how = (
        f"Obtained by `{found['command']}` (profile mini, seeds {', '.join(map(str, found['seeds']))}, "
        f"one CPU thread a process; {versions}). `practice` asks about the texts that were trained on, `practice-old` about "
        "what the base model knew before (forgetting). `minus cpt` is in points of accuracy, paired by question and seed; its "
        "interval covers other questions and other seeds. Accuracy in per cent, held-out loss in nats a token. The practice "
        "world is fictional and its model small: nothing here is evidence about large models."
    )
    return "\n".join([START, "", *lines, "", how, "", END])


def write_readme() -> None:
    """Put the results section into the README."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    readme.write_text(before + results_block() + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    if "--readme" not in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as runs:
            write_results(run_notebooks(runs))
    write_readme()
