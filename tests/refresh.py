"""Run the notebooks at their defaults and write their outputs, figures and results back into the repository.

    python tests/refresh.py          run everything in a fresh run root, the solutions as well, then write
    python tests/refresh.py --docs   only fill in README.md and docs/ again, from the files in notebooks/results

Use it after a change that alters what notebooks print. The numbers of README.md and docs/ come from here, never from typing.
"""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import reference, speed  # noqa: E402

RESULTS = ROOT / "notebooks" / "results" / "mini.json"
STUDY = ROOT / "notebooks" / "results" / "practice_study.json"  # written by tests/practice_study.py
EXAMS = ("practice-mmlu", "practice-old")  # of the mini run, in the README
PANELS = {  # of the study, in the README
    "practice-blind, true texts": "blind-truthful",
    "practice-aware, true texts": "aware-truthful",
    "practice-aware, half of the texts wrong": "aware-half",
    "practice-aware, true texts, reworded prompts": "aware-truthful-reworded-prompts",
    "practice-aware, half wrong, reworded prompts": "aware-half-reworded-prompts",
    "practice-blind, true texts in unread wordings": "blind-held-out-texts",
    "practice-aware, true texts in unread wordings": "aware-held-out-texts",
    "practice-aware, half wrong, 12 epochs instead of 4": "aware-half-12-epochs",
}
FIGURE = ROOT / "notebooks" / "figures" / "results.png"
COURSE = ROOT / "notebooks" / "results" / "course.json"
LEARNED = {
    "00_quickstart": "the whole story in a minute: prompt, train, evaluate, compare",
    "01_contextual_prompts": "prompt sets, how prompts are sampled, what each control takes away, custom prompts, prompts that a model writes",
    "02_domain_text": "documents, passages, masks, and a ledger of every token",
    "03_fine_tuning": "matched arms and seeds, packing, a true effect and a true null, when to stop, LoRA, instructions as a second stage",
    "06_medical_benchmarks": "how a benchmark is scored, a paired test by hand, many comparisons, forgetting, other wordings; a question browser",
    "07_financial_benchmarks": "labels, macro and weighted F1, confusion, calibration, leak check",
    "08_ablations": "which prompts matter: family by family, controls, loss and gradient; the sweep over all families and seeds",
    "09_why_context_helps": "the paper's synthetic experiment, with the control that tells learning from copying",
    "12_your_own_domain": "your texts and questions as files, the cost, the leak check, the comparison",
    "13_report": "everything in one table; the paper's claims: shown, not shown, not tested",
}
AFTER_TRAINING = (
    "06_medical_benchmarks",
    "07_financial_benchmarks",
    "13_report",
)  # they show arms that 03_fine_tuning has trained


def run_notebooks(runs: str) -> Path:
    """Execute every notebook with its defaults and write the outputs in normal form over the committed ones."""
    os.environ.update(CTXFT_RUNS=runs, TQDM_DISABLE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    from ctxft.course import execute, list_notebooks, write_notebook
    from ctxft.storage import write_json

    seconds = {}
    for path in (*list_notebooks(), *sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))):
        print(path.relative_to(ROOT), flush=True)
        started = time.perf_counter()
        write_notebook(path, execute(path, Path(runs) / "executed" / path.parent.name / path.name, {}))
        if path.parent.name != "solutions":
            seconds[path.stem] = round(time.perf_counter() - started)
    write_json(COURSE, {"command": "python tests/refresh.py", "cpus": os.cpu_count(), "seconds": seconds})
    return Path(runs) / "mini"


def reading_minutes(path: Path) -> int:
    """Return how long a notebook takes to read: 200 words of prose a minute, 15 lines of code a minute."""
    cells = nbformat.read(path, as_version=4).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = sum(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code")
    return max(1, round(words / 200 + lines / 15))


def time_line(path: Path) -> str:
    """Return the line in a notebook's opening that tells how long it runs and how long it takes to read."""
    from ctxft.storage import read_json

    course = read_json(COURSE)
    halves = max(1, math.ceil(course["seconds"][path.stem] / 30))
    runs = {1: "half a minute", 2: "a minute"}.get(halves, f"{halves / 2:g} minutes")
    after = " after notebook 03" if path.stem in AFTER_TRAINING else ""
    return f"*Time: {runs} on {course['cpus']} CPU cores{after}, no network. Reading: {reading_minutes(path)} minutes.*"


def write_times() -> None:
    """Put the times into the opening cell of every notebook; outputs stay as they are."""
    from ctxft.course import list_notebooks, write_notebook

    for path in list_notebooks():
        notebook = nbformat.read(path, as_version=4)
        first = notebook.cells[0]
        first.source = re.sub(r"^\*Time: .*\*$", lambda _, path=path: time_line(path), first.source, flags=re.M)
        write_notebook(path, notebook)


def course_block() -> str:
    """Return the README's table of notebooks: what each teaches, how long it runs and how long it takes to read."""
    from ctxft.course import duration, list_notebooks
    from ctxft.storage import read_json

    course = read_json(COURSE)
    rows = [
        [
            f"[{path.stem}](notebooks/{path.name})",
            LEARNED[path.stem],
            duration(course["seconds"][path.stem]),
            f"{reading_minutes(path)} min",
        ]
        for path in list_notebooks()
    ]
    whole = sum(course["seconds"].values())
    said = (
        f"Run times are those of `{course['command']}` on {course['cpus']} CPU cores, one after the other in a fresh run folder: "
        f"{duration(whole)} in all. Reading times count the words and the lines of code. Every notebook ends with exercises in three "
        "levels that check themselves; [their solutions](notebooks/solutions) are notebooks too, and a [glossary](notebooks/glossary.md) "
        "explains the words."
    )
    return "\n".join([*markdown(["notebook", "you learn", "runs", "reading"], rows), "", said])


def write_results(folder: Path) -> None:
    """Write the results of a run into notebooks/."""
    from ctxft.report import loss_table, read_run, results_table
    from ctxft.storage import write_json

    run = read_run(folder)
    versions = {name: run.manifest["versions"][name] for name in ("python", "ctxft", "torch", "transformers")}
    tables = {
        name: {"columns": list(frame.columns), "rows": frame.to_numpy().tolist()}
        for name, frame in (("table", results_table(run)), ("losses", loss_table(run)))
    }
    seeds = run.manifest["config"]["seeds"]
    write_json(RESULTS, {"command": "ctxft run", "seeds": seeds, "versions": versions, **tables})


def study_rows(condition: str, exam: str = "practice-mmlu") -> list[dict]:
    """Return the rows of a condition of the study: an arm each, with its difference to cpt."""
    from ctxft.prompts import sort_arms
    from ctxft.storage import read_json

    arms = read_json(STUDY)["conditions"][condition]["exams"][exam]
    return [{"arm": arm, **arms[arm]} for arm in sort_arms(arms.keys() - {"lines"})]


def write_figure() -> None:
    """Draw the README's figure: the differences of the study that was made with the prompts' own wordings."""
    from ctxft.report import differences_figure

    FIGURE.parent.mkdir(exist_ok=True)
    panels = {title: study_rows(condition) for title, condition in list(PANELS.items())[:3]}
    differences_figure(panels).savefig(FIGURE, dpi=100, metadata={"Software": None})


def markdown(columns: list[str], rows: list[list]) -> list[str]:
    """Return a table in Markdown."""
    return ["| " + " | ".join(map(str, row)) + " |" for row in (columns, ["---"] * len(columns), *rows)]


def study_table() -> list[str]:
    """Return the study's differences to cpt as a table in Markdown."""
    rows = []
    for title, condition in PANELS.items():
        for row in study_rows(condition):
            cells = [title, row["arm"], row["seeds"], f"{100 * row['accuracy']:.1f}", "", ""]
            if row["arm"] != "cpt":
                cells[4] = f"{row['difference']:+.1f}"
                cells[5] = f"{row['difference_low']:+.1f} to {row['difference_high']:+.1f}"
            rows.append(cells)
    return markdown(["model and texts", "arm", "seeds", "accuracy %", "minus cpt", "its 95 % interval"], rows)


def caption_block() -> str:
    """Return the caption of the README's figure, with the numbers of the study."""
    null = [row for row in study_rows("blind-truthful") if row["arm"] not in ("base", "cpt")]
    widest = max(abs(row[end]) for row in null for end in ("difference_low", "difference_high"))
    shown = [row["arm"] for row in null if not row["verdict"].startswith("no difference")]
    blind = "no arm is shown to differ" if not shown else f"a difference is shown for {' and '.join(shown)}"
    planted = {row["arm"]: row for row in study_rows("aware-half") if row["arm"] in ("neg", "adaptive")}
    effects = ", ".join(
        f"{arm} {row['difference']:+.1f} ({row['difference_low']:+.1f} to {row['difference_high']:+.1f})"
        for arm, row in planted.items()
    )
    said = (
        f"*Made by the kit on its practice world, {null[0]['seeds']} seeds, accuracy minus plain training "
        f"(`cpt`) in percentage points, with 95 % intervals. To the first model prompts mean nothing: {blind}, and all intervals lie within "
        f"{widest:.1f} pp. The second had learned that prompts indicate whether a text can be trusted. The effect is planted, and "
        f"the kit sees it, on texts of which half are wrong: {effects}. `control` reads random words: what it loses was not "
        "planted. At another length of training the ranking is another (see docs/results.md).*"
    )
    return said


def results_block() -> str:
    """Return the README's results section as Markdown, from the committed results."""
    from ctxft.storage import read_json

    found, study = read_json(RESULTS), read_json(STUDY)
    table = [row for row in found["table"]["rows"] if row[0] in EXAMS]
    versions, tested = (
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()) for record in (found, study)
    )
    how = (
        f"Obtained by `{found['command']}` (profile mini: practice-aware on texts of which half are wrong; seeds "
        f"{', '.join(map(str, found['seeds']))}; one CPU thread a process; {versions}). `practice-mmlu` asks about the texts "
        "that were trained on, `practice-old` about what the base model knew before (forgetting). `minus cpt` is in percentage "
        "points, paired by question and seed; its interval and p cover other questions and other seeds; Holm p is corrected "
        "for the number of benchmarks of the run."
    )
    held_out = (
        "Loss on documents that no arm was trained on, in nats a token, without a prompt and after strategy prompts; half of "
        "these texts are random, too. *Ends %*: beginnings of such documents that the model continues to an end."
    )
    about = (
        f"Obtained by `{study['command']}` ({tested}), on `practice-mmlu`. Recipe and models were chosen on other seeds, drugs "
        "and companies; these seeds were run once. *Reworded* prompts are sentences that the model never read in its "
        "pre-training. The table makes many comparisons and corrects for none; all conditions and exams, also those where "
        "cft stands above or below cpt, are in `notebooks/results/practice_study.json`. The world is fictional, the models are "
        "small, and what prompts mean to them was planted: nothing here is evidence about large models."
    )
    kept = [place for place, name in enumerate(found["table"]["columns"]) if name != "verdict"]  # told by its numbers
    columns, *table = ([row[place] for place in kept] for row in (found["table"]["columns"], *table))
    first = markdown(columns, table)
    losses = markdown(found["losses"]["columns"], found["losses"]["rows"])
    return "\n".join([*first, "", how, "", *losses, "", held_out, "", *study_table(), "", about])


def one_result_block() -> str:
    """Return the README's table: one benchmark of the default run, one row an arm."""
    from ctxft.storage import read_json

    found = read_json(RESULTS)
    wanted = ("arm", "seeds", "accuracy %", "95 % interval", "minus cpt", "its 95 % interval", "Holm p")
    places = [found["table"]["columns"].index(name) for name in wanted]
    rows = [[row[place] for place in places] for row in found["table"]["rows"] if row[0] == EXAMS[0]]
    how = (
        f"Obtained by `{found['command']}` on `{EXAMS[0]}`, questions about the texts that the arms read, half of which are wrong "
        f"(seeds {', '.join(map(str, found['seeds']))}, on a CPU). `minus cpt` is in percentage points, paired by question and seed."
    )
    return "\n".join([*markdown(list(wanted), rows), "", how])


BLOCKS = {  # (file, name of the block) -> what fills it
    ("README.md", "caption"): caption_block,
    ("README.md", "course"): course_block,
    ("README.md", "one result"): one_result_block,
    ("docs/results.md", "results"): results_block,
    ("docs/speed.md", "speed"): speed.speed_block,
    ("docs/reference.md", "configuration"): reference.configuration_block,
    ("docs/reference.md", "commands"): reference.commands_block,
}


def marked(name: str, content: str) -> str:
    """Return a block with the two comments that mark it in its file."""
    return f"<!-- {name}: filled in by tests/refresh.py -->\n{content}\n<!-- end of {name} -->"


def write_docs() -> None:
    """Fill in every block of README.md and docs/."""
    for (file, name), block in BLOCKS.items():
        path = ROOT / file
        start, end = marked(name, "").splitlines()[0], f"<!-- end of {name} -->"
        before, rest = path.read_text(encoding="utf-8").split(start)
        path.write_text(before + marked(name, block()) + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    if "--docs" not in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as runs:
            write_results(run_notebooks(runs))
    write_figure()
    write_times()
    write_docs()
