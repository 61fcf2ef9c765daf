"""Train and examine one arm for every family of prompts, and one without each, on the practice world; write the results.

    python tests/ablation_study.py               in a run below the run root; what is there already is not computed again
    python tests/ablation_study.py --only-write  only write notebooks/results/ablations.json from that run

Takes some 19 minutes of CPU time for 81 trainings and their examination; notebook 08 draws the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "notebooks" / "results" / "ablations.json"
REFERENCE, SEEDS, BENCHMARK = "cpt", [0, 1, 2], "practice-mmlu"
KEPT = (
    "arm",
    "kind",
    "part",
    "seeds",
    "n",
    "accuracy",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "holm",
    "word",
)


def study_config():
    """Return the experiment: profile mini with an arm for each part of the strategy book."""
    from ctxft.config import load_experiment
    from ctxft.prompts import load_prompt_set

    families = load_prompt_set("strategies").families
    arms = ["base", "cpt", "cft", "neg", "control", "control-shuffled", "control-neutral", "control-family"]
    arms += [f"{kind}-{family}" for kind in ("only", "without") for family in families]
    settings = {"name": "ablations", "arms": arms, "seeds": SEEDS, "evaluation.benchmarks": [BENCHMARK]}
    return load_experiment("mini", settings)


def write_results(folder: Path) -> Path:
    """Write the differences of all arms to the reference, one family for Holm's correction."""
    from ctxft.report import ablation_rows, read_run
    from ctxft.storage import write_json

    run = read_run(folder)
    (rows,) = ablation_rows(run, REFERENCE, BENCHMARK).values()
    versions = {name: run.manifest["versions"][name] for name in ("python", "ctxft", "torch", "transformers")}
    about = {
        "command": "python tests/ablation_study.py",
        "benchmark": BENCHMARK,
        "reference": REFERENCE,
        "seeds": SEEDS,
    }
    about |= {"questions": rows[0]["n"], "versions": versions}
    return write_json(
        RESULTS, about | {"rows": [{key: row[key] for key in KEPT} for row in rows if row["arm"] != REFERENCE]}
    )


def main() -> None:
    """Run what is not there yet, and write the file."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    from tests.runs import ensure_run

    config = study_config()
    print(write_results(config.folder if "--only-write" in sys.argv else ensure_run(config)))


if __name__ == "__main__":
    main()
