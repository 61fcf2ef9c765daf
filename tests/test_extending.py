"""docs/extending.md, tried: its arm, its benchmark and its prompt set work from a folder, without touching the package."""

from __future__ import annotations

import json
import re

import ctxft
from ctxft.config import load_experiment
from ctxft.storage import REPO_ROOT

PAGE = (REPO_ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_an_arm_a_benchmark_and_a_prompt_set_from_outside(runs, tmp_path, monkeypatch):
    experiment, benchmark, prompt_set = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.M | re.S)
    (arm,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
    assert max(len(text.strip().splitlines()) for text in (arm, benchmark, prompt_set)) <= 15
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my-plugins"
    folder.mkdir()
    (folder / "arms.py").write_text(arm)
    (folder / "quiz.yaml").write_text(benchmark)
    (folder / "plain.yaml").write_text(prompt_set)
    row = {"stem": " Which is wet? ", "options": "rain|sand|salt", "key": 0}
    (folder / "quiz-1.jsonl").write_text("".join(json.dumps(row | {"key": key}) + "\n" for key in (0, "sand")))
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nmodel: practice-blind\ncorpus: {{source: practice, limit: 4}}\n{experiment}")
    run = ctxft.Run(load_experiment(path, {"train.max_steps": 1, "train.max_length": 96, "train.device": "cpu"}))
    run.train()
    run.evaluate()
    table = ctxft.results_table(run)
    assert set(table["benchmark"]) == {"quiz"} and {"cft", "title"} <= set(table["arm"])
    prompts = [json.loads(line)["text"] for line in open(run.arm_folder("title", 0) / "prompts.jsonl")]
    assert all(text.startswith("From the document ") for text in prompts)
    texts = {json.loads(line)["text"] for line in open(run.arm_folder("cft", 0) / "prompts.jsonl")}
    assert texts <= set(re.findall(r'text: "(.*)"', prompt_set))
