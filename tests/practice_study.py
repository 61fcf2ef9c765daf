"""Run the practice world's study, many seeds of every condition, and write what it found as a small file for the notebooks.

    python tests/practice_study.py                      all conditions (an hour on two cores), then the file
    python tests/practice_study.py blind-truthful       only this one; what is done already is not done again
    python tests/practice_study.py --only-write         only the file, from the runs that are there

Recipe and base models were chosen on seeds 100 and 101 and on entities of their own (``practice-tuning``); the
seeds reported here were run once, afterwards. Runs go to ``$CTXFT_RUNS/study-<condition>``. The reworded prompts are a token
shorter, so passages are cut a little later in those two conditions; each has its own arm cpt.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tools.practice_models import build_base

from ctxft.config import ExperimentConfig, load_experiment
from ctxft.report import read_run
from ctxft.statistics import common_seeds, compare
from ctxft.storage import InputError, write_json
from ctxft.world.exams import EXAMS as EXAMS_OF_WORLD
from tests.runs import ensure_run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "notebooks" / "results" / "practice_study.json"
EXAMS = ["mmlu", "mmlu-reworded", "medqa", "medqa-reworded", "fiqa", "causal20", "multifin", "old", "two-hop"]
DIFFERENCE = ("difference", "difference_low", "difference_high", "verdict")
KEPT = ("seeds", "accuracy", "low", "high", "per seed", "macro F1", "by subject", *DIFFERENCE)
TEN, FIVE, THREE = list(range(10)), list(range(5)), [0, 1, 2]
ALL = ["base", "cpt", "cft", "neg", "control"]
REWORDED = {"prompts.strategies": "strategies-reworded", "prompts.negative": "negative-reworded"}
TRUTHFUL, HALF = {"corpus.unreliable": 0.0}, {"corpus.unreliable": 0.5}
AWARE, BLIND, TRUSTING = {"model": "practice-aware"}, {"model": "practice-blind"}, {"model": "trusting"}
CONDITIONS: dict[str, dict] = {
    "blind-truthful": {**BLIND, **TRUTHFUL, "arms": ALL, "seeds": TEN},
    "aware-truthful": {**AWARE, **TRUTHFUL, "arms": ALL, "seeds": TEN},
    "aware-half": {**AWARE, **HALF, "arms": [*ALL, "adaptive"], "seeds": TEN},
    "aware-truthful-reworded-prompts": {**AWARE, **TRUTHFUL, **REWORDED, "arms": ["base", "cpt", "neg"], "seeds": TEN},
    "aware-half-reworded-prompts": {**AWARE, **HALF, **REWORDED, "arms": ["base", "cpt", "adaptive"], "seeds": TEN},
    "blind-half": {**BLIND, **HALF, "arms": [*ALL, "adaptive"], "seeds": FIVE},
    "blind-held-out-texts": {**BLIND, **TRUTHFUL, "corpus.wordings": "held-out", "arms": ALL[:3], "seeds": FIVE},
    "aware-held-out-texts": {**AWARE, **TRUTHFUL, "corpus.wordings": "held-out", "arms": ALL[:3], "seeds": FIVE},
    "trusting-truthful": {**TRUSTING, **TRUTHFUL, "arms": ["base", "cpt", "cft", "neg"], "seeds": FIVE},
    "trusting-half": {**TRUSTING, **HALF, "arms": ["base", "cpt", "cft", "adaptive"], "seeds": FIVE},
    "aware-half-12-epochs": {**AWARE, **HALF, "train.num_train_epochs": 12, "arms": [*ALL, "adaptive"], "seeds": THREE},
}


def config_of(condition: str, trusting: Path | None) -> ExperimentConfig:
    """Return the experiment of a condition: profile mini with some values changed.

    Args:
        condition: a name of ``CONDITIONS``.
        trusting: folder of a prompt-aware model whose unprompted pre-training text was always reliable.
    """
    values = {"name": f"study-{condition}", "evaluation.benchmarks": [f"practice-{exam}" for exam in EXAMS]}
    values |= CONDITIONS[condition]
    if values["model"] == "trusting":
        values["model"] = str(trusting)
    return load_experiment("mini", values)


def found(condition: str, folder: Path) -> dict:
    """Return what a condition showed: per exam and arm the comparison with cpt, accuracy by seed and macro F1; and losses."""
    run = read_run(folder)
    exams = {}
    for name, outcomes in run.outcomes.items():
        kept = common_seeds(outcomes)
        exams[name] = {}
        for row in compare(outcomes):
            seeds = kept[row["arm"]]
            if name == "practice-mmlu":
                row["per seed"] = [sum(item["correct"] for item in items) / len(items) for items in seeds.values()]
            measured = [run.metrics[row["arm"]][seed]["benchmarks"][name] for seed in seeds]
            if "macro_f1" in measured[0]:
                row["macro F1"] = sum(one["macro_f1"] for one in measured) / len(measured)
            if EXAMS_OF_WORLD[name].kind == "two-hop":
                row["by subject"] = by_subject(measured)
            exams[name][row["arm"]] = {key: row[key] for key in KEPT if key in row and row[key] == row[key]}
        for row in compare(outcomes, "control") if "control" in outcomes else []:
            exams[name][row["arm"]]["minus control"] = {key: row[key] for key in DIFFERENCE if row[key] == row[key]}
        exams[name]["lines"] = {
            key: measured[0][key] for key in ("chance", "majority", "majority_macro_f1") if key in measured[0]
        }
    losses = {
        arm: {
            key: sum(one["held_out"][key] for one in seeds.values()) / len(seeds) for key in ("loss", "prompted_loss")
        }
        for arm, seeds in run.metrics.items()
    }
    changed = {key: value for key, value in CONDITIONS[condition].items() if key not in ("arms", "seeds")}
    made = {"values": changed, "seeds": run.manifest["config"]["seeds"], "passages": run.ledger["passages"]}
    return {**made, "exams": exams, "losses": losses, "versions": run.manifest["versions"]}


def rounded(value):
    """Return a JSON value with its numbers rounded to five places, for a file that stays small."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 5) if isinstance(value, float) else value


def by_subject(measured: list[dict]) -> dict[str, float]:
    """Return the accuracy of each subject, the mean over seeds."""
    return {
        subject: sum(one["by_subject"][subject]["accuracy"] for one in measured) / len(measured)
        for subject in measured[0]["by_subject"]
    }


def main() -> None:
    """Run the conditions that were asked for, then write the file from those that are there."""
    parser = argparse.ArgumentParser(description="Run the study of the practice world.")
    parser.add_argument("conditions", nargs="*", default=list(CONDITIONS), metavar="CONDITION")
    parser.add_argument("--trusting", type=Path, help="folder of the model of conditions trusting-*; else it is built")
    parser.add_argument("--only-write", action="store_true", help="write the file from the runs that are there")
    options = parser.parse_args()
    if unknown := [name for name in options.conditions if name not in CONDITIONS]:
        raise InputError(f"unknown condition '{unknown[0]}'; known: {', '.join(CONDITIONS)}.")
    with tempfile.TemporaryDirectory() as place:
        trusting = options.trusting or Path(place) / "trusting"
        for name in [] if options.only_write else options.conditions:
            if name.startswith("trusting") and not trusting.exists():
                print("building the trusting model (some minutes)", flush=True)
                build_base(trusting, "practice-aware", unprompted=0.0)
            print(name, ensure_run(config_of(name, trusting)), flush=True)
        folders = {name: config_of(name, trusting).folder for name in CONDITIONS}
        done = {name: found(name, folder) for name, folder in folders.items() if (folder / "evals").exists()}
    versions = next(iter(done.values()))["versions"]
    for record in done.values():
        if record.pop("versions") != versions:
            raise InputError("the conditions were run with different versions: run all again.")
    kept = {name: versions[name] for name in ("python", "ctxft", "torch", "transformers")}
    write_json(RESULTS, {"command": "python tests/practice_study.py", "versions": kept, "conditions": rounded(done)})
    print(RESULTS)


if __name__ == "__main__":
    main()
