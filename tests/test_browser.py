"""The widgets in a real JupyterLab and a real browser: by keyboard and mouse, with hostile texts, nothing fetched from outside.

Needs Node with playwright-core (``npm install -g playwright-core``) and Chromium; without them these tests are skipped.
Pictures of every widget: ``CTXFT_PICTURES=folder python -m pytest tests/test_browser.py``; in the dark theme with CTXFT_DARK=1.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from ctxft.config import to_mapping
from ctxft.course import execute, list_notebooks, notebooks_folder
from ctxft.run.run import Run
from ctxft.storage import write_jsonl, write_text
from tests.faults.test_html import RUN
from tests.faults.test_html import run as hostile  # noqa: F401
from tests.test_report import fake_run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & more of it."
TOKEN = "probe"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCRIPT = Path(__file__).with_name("browser.js")


def modules() -> str | None:
    """Return where Node finds playwright-core, or None."""
    if not shutil.which("node") or not shutil.which("npm"):
        return None
    root = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=True).stdout.strip()
    return root if (Path(root) / "playwright-core").is_dir() else None


MODULES = modules()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(MODULES is None, reason="no playwright-core is installed: npm install -g playwright-core"),
]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab on loopback with a home of its own: its address and the folder it serves."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("lab")
    settings = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    write_text(home / ".jupyter" / "labconfig" / "page_config.json", json.dumps(settings))
    if os.environ.get("CTXFT_DARK"):
        themes = {"@jupyterlab/apputils-extension:themes": {"theme": "JupyterLab Dark"}}
        write_text(home / ".jupyter" / "labconfig" / "default_setting_overrides.json", json.dumps(themes))
    port = free_port()
    options = {"--ServerApp.port": port, "--ServerApp.port_retries": 0, "--IdentityProvider.token": TOKEN}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"{name}={value}" for name, value in options.items()]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JUPYTER")}
    environment |= {"HOME": str(home), "CTXFT_RUNS": str(folder / "runs"), "TQDM_DISABLE": "1"}
    with open(home / "lab.log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_answer(f"{address}/api?token={TOKEN}", process, home / "lab.log")
        yield address, folder
    finally:
        process.terminate()
        process.wait(30)


def wait_for_answer(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def work(lab: tuple[str, Path], tmp_path: Path, notebook: str, steps: list[list]) -> list:
    """Open a notebook, take the steps, and return what each saw; nothing may run or leave that should not."""
    address, _ = lab
    pictures = os.environ.get("CTXFT_PICTURES")
    plan = {"chromium": CHROMIUM, "profile": str(tmp_path / "profile"), "address": address, "token": TOKEN}
    plan |= {"notebook": notebook, "steps": steps, "pictures": pictures and str(Path(pictures).resolve())}
    environment = {**os.environ, "NODE_PATH": str(MODULES), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["node", str(SCRIPT)],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] is None, found["failed"]
    assert found["outside"] == [] and found["dialogs"] == []
    return found["seen"]


def write_cells(path: Path, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(notebook, path)


@pytest.fixture
def own(lab, experiment, tmp_path, text_of) -> str:
    """An experiment on hostile texts, as a YAML file that a notebook can load; returns its path."""
    texts = {"good": text_of(1, 20), "bad <b>": f"{HOSTILE} {text_of(2, 5)}"}
    rows = [{"id": name, "text": text, "reliable": name == "good"} for name, text in texts.items()]
    corpus = {"source": str(write_jsonl(tmp_path / "hostile.jsonl", rows)), "held_out": 0.0}
    recipe = {"max_steps": 2000, "save_steps": 5, "micro_batch_tokens": 300}
    config = experiment(recipe, corpus=corpus, arms=["base", "cpt", "cft"])
    path = tmp_path / "own.yaml"
    write_text(path, yaml.safe_dump(to_mapping(config)))
    return str(path)


SETUP = """
from ctxft.run.run import Run
from ctxft.widgets import *
run = Run({path!r}, name={name!r}).prepare()
"""


def pick(places: int) -> list[str]:
    """Return the keys that choose so many places below in a list: JupyterLab takes bare arrows for itself."""
    return ["Space", *["ArrowDown"] * places, "Enter"]


def test_explorers_by_keyboard_and_mouse(lab, own, tmp_path):
    fake_run(tmp_path / "fake", seeds=2)
    write_cells(
        lab[1] / "widgets.ipynb",
        SETUP.format(path=own, name="widgets"),
        "PromptExplorer(run)",
        "RowViewer(run, 'cft')",
        "CorpusBrowser.of(run)",
        f"ResultsExplorer({str(tmp_path / 'fake')!r})",
    )
    prompts, rows, corpus, results = 1, 2, 3, 4
    plan: dict[str, list] = {
        "run": ["run"],
        "errors": ["idle", 120],
        "prompt": ["show", prompts],
        "labels": ["labels", prompts],
        "by key: neg": ["keys", prompts, "arm", *pick(1)],
        "by mouse: only": ["choose", prompts, "arm", "only-FAMILY"],
        "family": ["choose", prompts, "family", "critical"],
        "picture 1": ["picture", prompts, "prompts"],
        "typed": ["type", prompts, "your own prompt", HOSTILE],
        "picture 2": ["picture", prompts, "prompts-typed"],
        "too long": ["type", prompts, "your own prompt", " word" * 70],
        "picture 3": ["picture", prompts, "prompts-too-long"],
        "cleared": ["clear", prompts, "your own prompt"],
        "passage by key": ["keys", prompts, "passage, 1 to {n}", "ArrowUp", "Enter"],
        "row": ["show", rows],
        "next step": ["keys", rows, "optimizer step, 1 to 2000", "ArrowUp", "Enter"],
        "padded": ["choose", rows, "layout", "a line each, padded"],
        "picture 4": ["picture", rows, "rows"],
        "documents": ["show", corpus],
        "found": ["type", corpus, "find", "<script>"],
        "html": ["html", corpus],
        "picture 5": ["picture", corpus, "corpus"],
        "held out": ["keys", corpus, "of", *pick(2)],
        "results": ["show", results],
        "picture 6": ["picture", results, "results"],
        "without neg": ["keys", results, "neg", "Space"],
        "with neg": ["click", results, "neg"],
        "other exam": ["choose", results, "benchmark", "practice-old"],
        "minus": ["keys", results, "minus", *pick(1)],
        "picture 7": ["picture", results, "results-2"],
    }
    count = len(Run(own).passages)
    plan["passage by key"][2] = f"passage, 1 to {count}"
    seen = dict(zip(plan, work(lab, tmp_path, "widgets.ipynb", list(plan.values())), strict=True))
    assert seen["errors"] == []
    assert seen["prompt"].startswith("cft, passage good#0") and "prompt: " in seen["prompt"]
    assert [label for label in seen["labels"] if label] == [
        "arm",
        "family",
        f"passage, 1 to {count}",
        "your own prompt",
    ]
    assert seen["by key: neg"].startswith("neg, passage good#0")
    assert seen["by mouse: only"].startswith("only-application") and "(family critical)" in seen["family"]
    assert HOSTILE in seen["typed"] and "Look at your prompt" not in seen["typed"]
    assert "Look at your prompt" in seen["too long"] and "shorten it" in seen["too long"]
    assert "only-critical, passage good#1" in seen["passage by key"]
    assert seen["row"].startswith("Step 1, micro-batch 1 of") and seen["next step"].startswith(
        "Step 2, micro-batch 1 of"
    )
    assert "tokens of padding" in seen["padded"] and "segment 1, passage " in seen["padded"]
    assert seen["documents"].startswith("1 of 2 documents") and "bad <b>: kept, not reliable" in seen["found"]
    assert "<script" not in seen["html"] and "<mark>" in seen["html"]
    assert "No such document." in seen["held out"]
    assert "neg" in seen["results"] and "\nneg" not in seen["without neg"] and "neg" in seen["with neg"]
    assert "practice-old" in seen["other exam"] and "minus cpt" not in seen["minus"]


OPEN = """
import os
os.environ["CTXFT_RUNS"] = {runs!r}
import pandas
from ctxft.config import load_experiment
from ctxft.report import read_run, results_table, subject_table, write_report
from tests.faults.test_html import NAME, PROBE, explorers
config = load_experiment({path!r})
read = read_run(config.folder)
corpus, prompts, own, questions, results, rows = explorers(config)
"""
SHOWN = ("corpus", "prompts", "own", "questions", "results", "rows")


def test_no_script_of_a_text_prompt_id_or_model_name_runs(lab, hostile, runs, tmp_path):  # noqa: F811
    path = tmp_path / "hostile.yaml"
    write_text(path, yaml.safe_dump(to_mapping(hostile)))
    tables = "from IPython.display import display\n(name,) = read.outcomes\n"
    tables += (
        "display(results_table(read), subject_table(read, name), pandas.DataFrame({PROBE: [PROBE]}, index=[PROBE]))\n"
    )
    tables += "print(PROBE)\nwrite_report(read);"
    setup = OPEN.format(runs=str(runs), path=str(path))
    place = lab[1] / "hostile.ipynb"
    write_cells(place, setup, *SHOWN, tables)
    live: list[list] = [["run"], ["idle", 120]]
    live += [
        step for cell, name in enumerate(SHOWN, 1) for step in (["show", cell], ["picture", cell, f"hostile-{name}"])
    ]
    seen = work(lab, tmp_path, place.name, [*live, ["output", len(SHOWN) + 1]])
    assert seen[1] == []
    assert all(f"<script>{RUN}" in said for said in (seen[2], seen[6], seen[8], seen[10], *seen[-1][-1:]))

    execute(place, lab[1] / "executed.ipynb", {})
    pages = [lab[1] / "executed.html", hostile.folder / "report.html"]
    seen = work(lab, tmp_path, "executed.ipynb", [["output", 1], *(["open", page.as_uri()] for page in pages)])
    assert all(f"<script>{RUN}" in "".join(said) for said in seen)


def test_training_is_stopped_at_the_button_while_a_cell_waits(lab, own, tmp_path):
    write_cells(
        lab[1] / "training.ipynb",
        SETUP.format(path=own, name="training"),
        "monitor = TrainingMonitor(run, workers=2)\nmonitor",
        "monitor.start()\ntry:\n    await monitor.finish()\nexcept Exception as error:\n    print('heard:', error)",
    )
    plan: dict[str, list] = {
        "run": ["run"],
        "begun": ["until", 1, "tokens per second", 120],
        "picture 1": ["picture", 1, "training"],
        "stop": ["press", 1, "stop training"],
        "stopped": ["until", 1, "Stopped: 0 of 2 trained", 60],
        "errors": ["idle", 60],
        "heard": ["output", 2],
        "go on": ["press", 1, "start training", "Enter"],
        "goes on": ["until", 1, "tokens per second", 120],
        "stop by key": ["press", 1, "stop training", "Space"],
        "stopped again": ["until", 1, "Stopped: ", 60],
        "picture 2": ["picture", 1, "training-stopped"],
    }
    seen = dict(zip(plan, work(lab, tmp_path, "training.ipynb", list(plan.values())), strict=True))
    assert seen["errors"] == [] and "heard: the training was stopped" in "".join(seen["heard"])
    assert "cpt" in seen["begun"] and "of 2000" in seen["begun"] and "A new start resumes" in seen["stopped"]
    assert "checkpoint-" in seen["stopped again"]


WORKED = {  # notebook -> (what its cell says, keys pressed there, what the view says then), for each widget of it
    "01_contextual_prompts": [("explorer = PromptExplorer(", ["arm", *pick(1)], "neg, passage ")],
    "02_domain_text": [
        ("CorpusBrowser.of(", ["document", "ArrowUp", "Enter"], "2 of 12 documents"),
        ("RowViewer(", ["layout", *pick(1)], "tokens of padding"),
    ],
    "03_fine_tuning": [("monitor = TrainingMonitor(", [], "Not running: 5 of 5 trained.")],
    "06_medical_benchmarks": [("browser = QuestionBrowser(", ["show", *pick(1)], "")],
    "13_report": [("ResultsExplorer(", ["minus", *pick(1)], "minus base")],
}
SMALL = {"train.max_steps": 3, "corpus.limit": 12, "evaluation.limit": 8, "seeds": [4]}


@pytest.mark.parametrize("name", WORKED)
def test_the_widgets_of_the_course(lab, tmp_path, name):
    notebook = load_notebook_node(str(notebooks_folder() / f"{name}.ipynb"))
    assert all("ctxft.widgets" not in nb.read_text("utf-8") for nb in list_notebooks() if nb.stem not in WORKED)
    given = {"run_name": "course", "overrides": SMALL, "ift_steps": 2, "lora_steps": 2}
    known = {key: value for key, value in given.items() if f"\n{key}: " in "\n".join(c.source for c in notebook.cells)}
    notebook = parameterize_notebook(notebook, known)
    nbformat.write(notebook, lab[1] / f"{name}.ipynb")
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    steps: list[list] = [["run"], ["idle", 400]]
    for source, keys, _ in WORKED[name]:
        place = next(n for n, code in enumerate(sources) if source in code)
        steps += [
            ["show", place],
            ["keys", place, *keys] if keys else ["show", place],
            ["picture", place, f"{name}-{place}"],
        ]
    seen = work(lab, tmp_path, f"{name}.ipynb", steps)
    assert seen[1] == []
    for place, (_, _, said) in enumerate(WORKED[name]):
        assert said in seen[2 + 3 * place + 1]
