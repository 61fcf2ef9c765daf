"""A fake run folder becomes the right numbers, a figure with its lines, and a page that is safe and whole."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from markupsafe import escape
from matplotlib.colors import same_color
from sklearn.metrics import f1_score

from ctxft.evaluation.metrics import label_metrics
from ctxft.report import (
    Picture,
    arm_color,
    claims,
    differences_figure,
    f1_table,
    loss_figure,
    loss_table,
    read_run,
    results_figure,
    results_table,
    show_table,
    subject_table,
    verdicts,
    write_report,
)
from ctxft.report.comparisons import how_to_read, overall, p_value
from ctxft.report.record import RunRecord
from ctxft.statistics import compare, compare_f1, wilson
from ctxft.storage import InputError, write_json, write_jsonl
from tests.sampling import TEXT_ARMS

ARMS = ("base", *TEXT_ARMS)
RIGHT = {"base": 0.26, "cpt": 0.70, "cft": 0.72, "neg": 0.45, "control": 0.66, "adaptive": 0.78}
RIGHT |= {"ift": 0.31, "cpt-ift": 0.62, "cft-ift": 0.80}
SUBJECTS = ("drugs", "companies")


def outcomes(name: str, share: float, seed: int, n: int) -> list[dict]:
    """An item is right where its difficulty, the same for all arms, is below the share of the arm, give or take."""
    rows = []
    for i in range(n):
        noise = 0.05 * (random.Random(f"{share}-{seed}-{i}").random() - 0.5) if share > 0.3 else 0
        correct = (i * 0.618034) % 1 < share + noise
        rows.append({"id": f"q{i}", "hash": f"{name}-{i}", "subject": SUBJECTS[i % 2], "answer": 0, "correct": correct})
    return rows


def fake_run(
    folder: Path,
    seeds: int = 3,
    benchmarks: dict[str, int] | None = None,
    steps: int = 40,
    arms: tuple[str, ...] = ARMS,
) -> Path:
    benchmarks = benchmarks or {"practice-mmlu": 160, "practice-old": 120}
    for arm in arms:
        for seed in range(1 if arm == "base" else seeds):
            evals, found = folder / "evals" / arm / f"seed-{seed}", {}
            for name, n in benchmarks.items():
                rows = outcomes(name, RIGHT[arm], seed, n)
                write_jsonl(evals / f"{name}.jsonl", rows)
                found[name] = {
                    "n": n,
                    "chance": 0.25,
                    "majority": 0.275,
                    "ties": 0,
                    "truncated_items": 0,
                    "unanswered": 0,
                }
                found[name]["form"] = "options"
                found[name]["accuracy"] = sum(row["correct"] for row in rows) / n
            loss = {"loss": 1.5 - RIGHT[arm] + 0.01 * seed, "tokens": 4000}
            loss["prompted_loss"] = loss["loss"] + 0.1
            write_json(evals / "metrics.json", {"held_out": loss, "benchmarks": found})
            if arm != "base":
                log = [
                    {"step": s, "loss": 1.3 - RIGHT[arm] + math.exp(-s / 9) + 0.02 * seed} for s in range(1, steps + 1)
                ]
                write_jsonl(folder / "arms" / arm / f"seed-{seed}" / "log.jsonl", log)
    config = {
        "model": "practice-blind",
        "seeds": list(range(seeds)),
        "train": {"learning_rate": 5e-4, "num_train_epochs": 5},
    }
    manifest = {"name": "fake run", "config": config, "versions": {"python": "3.12"}, "hashes": {"passages": "ab12"}}
    write_json(folder / "manifest.json", manifest | {"code": "0123abc"})
    ledger = {"tokens read": 51234, "tokens kept": 50000, "dropped": {"too short": 1234}, "notes": "none"}
    write_json(folder / "ledger.json", ledger)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "fake")


@pytest.fixture(autouse=True)
def draw_only(monkeypatch):
    """Draw the figures of a report and write none: that takes seconds, and test_figures.py does it."""
    monkeypatch.setattr("ctxft.report.page.save", lambda figure, *_: Picture(b"", figure.get_label(), 100))


def change_json(path: Path, change) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    write_json(path, value)


def change_lines(path: Path, change) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change(rows)
    write_jsonl(path, rows)


# --- reading and tables -----------------------------------------------------------------------------------------------


def test_a_run_is_read_whole(run: Path):
    record = read_run(run)
    assert list(record.metrics) == list(ARMS) and list(record.outcomes) == ["practice-mmlu", "practice-old"]
    assert [sorted(seeds) for seeds in record.metrics.values()] == [[0], *[[0, 1, 2]] * 5]
    assert len(record.logs) == 5 * 3 * 40 and set(record.logs["arm"]) == set(ARMS) - {"base"}
    assert record.ledger["tokens read"] == 51234


def test_a_benchmark_in_two_forms_is_refused(tmp_path: Path):
    folder = fake_run(tmp_path / "run", benchmarks={"practice-mmlu": 20})
    path = folder / "evals" / "neg" / "seed-1" / "metrics.json"
    change_json(path, lambda m: m["benchmarks"]["practice-mmlu"].update(form="mcf"))
    message = "'practice-mmlu' has the form 'mcf' for neg, seed 1 and 'options' for others, .* evaluate again"
    with pytest.raises(InputError, match=message):
        read_run(folder)
    assert sorted(read_run(folder, seeds=[0, 2]).metrics["neg"]) == [0, 2]
    change_json(path, lambda m: m["benchmarks"]["practice-mmlu"].pop("form"))
    with pytest.raises(InputError, match=r"'practice-mmlu' has the form 'None' for neg, seed 1"):
        read_run(folder)


@pytest.mark.parametrize("key", ["id", "hash", "subject", "correct"])
@pytest.mark.parametrize("change", [lambda row, key: row.pop(key), lambda row, key: row.update({key: 1})])
def test_an_outcome_that_is_none_is_refused_with_its_line(tmp_path: Path, key: str, change):
    folder = fake_run(tmp_path / "run", seeds=1, benchmarks={"practice-mmlu": 20})
    change_lines(folder / "evals" / "cft" / "seed-0" / "practice-mmlu.jsonl", lambda rows: change(rows[6], key))
    with pytest.raises(InputError, match=rf"cft/seed-0/practice-mmlu.jsonl, line 7: {key} missing or of a wrong type"):
        read_run(folder)


def test_a_run_without_held_out_documents_has_an_empty_cell(tmp_path: Path):
    folder = fake_run(tmp_path / "run", benchmarks={"practice-mmlu": 20})
    for path in folder.glob("evals/*/*/metrics.json"):
        change_json(path, lambda m: m.update(held_out={"loss": None, "tokens": 0}))
    assert set(loss_table(folder)["held-out loss"]) == {""} == set(loss_table(folder)["with a prompt"])
    write_report(folder)


def test_seeds_that_not_every_arm_has_are_left_out_and_named(tmp_path: Path):
    folder = fake_run(tmp_path / "run")
    for seed in (1, 2):
        shutil.rmtree(folder / "evals" / "neg" / f"seed-{seed}")
    table, alike = results_table(folder), results_table(read_run(folder, seeds=[0]))
    assert table.equals(alike) and set(table["seeds"]) == {1, ""}
    assert subject_table(folder, "practice-mmlu").equals(subject_table(read_run(folder, seeds=[0]), "practice-mmlu"))
    heights = [bar.get_height() for bar in results_figure(folder).axes[0].patches]
    assert heights == [bar.get_height() for bar in results_figure(read_run(folder, seeds=[0])).axes[0].patches]
    page = write_report(folder).read_text(encoding="utf-8")
    said = "practice-mmlu: seeds that not every trained arm has are left out of its results"
    assert (
        f"{said} (cpt: 1, 2; cft: 1, 2; control: 1, 2; adaptive: 1, 2)" in page
        and "compared with one seed of training" in page
    )
    assert "left out of its results" not in write_report(read_run(folder, seeds=[0])).read_text(encoding="utf-8")


def test_results_table_says_what_the_outcomes_say(run: Path):
    table = results_table(run)
    assert list(table["arm"]) == [*ARMS, "(chance)", "(majority)"] * 2
    row = table.set_index(["benchmark", "arm"]).loc[("practice-mmlu", "neg")]
    rows = [outcomes("practice-mmlu", RIGHT["neg"], seed, 160) for seed in range(3)]
    accuracy = sum(item["correct"] for items in rows for item in items) / 480
    low, high = wilson(accuracy * 160, 160)
    assert row["accuracy %"] == f"{100 * accuracy:.1f}" and row["seeds"] == 3
    assert row["95 % interval"] == f"{100 * low:.1f} to {100 * high:.1f}"
    compared = {row["arm"]: row for row in compare(read_run(run).outcomes["practice-mmlu"])}["neg"]
    assert row["minus cpt"] == f"{compared['difference']:+.1f}" and row["minus cpt"].startswith("-2")
    assert row["p"] == p_value(compared["p"]) != "" and row["verdict"] == "lower"
    cells = table.set_index(["benchmark", "arm"])
    control = cells.loc[("practice-mmlu", "control")]  # the smaller p of the arm's two benchmarks
    assert control["verdict"] == "not after Holm" and (control["p"], control["Holm p"]) == ("0.048", "0.095")
    assert cells.loc[("practice-old", "cft"), "verdict"] == "not shown" and set(
        cells.xs("(chance)", level=1).verdict
    ) == {""}
    losses = loss_table(run).set_index("arm").loc["neg"]
    assert list(losses) == [3, f"{1.5 - RIGHT['neg'] + 0.01:.3f}", f"{1.6 - RIGHT['neg'] + 0.01:.3f}"]
    lines = table.set_index(["benchmark", "arm"])["accuracy %"]
    assert (lines["practice-mmlu", "(chance)"], lines["practice-mmlu", "(majority)"]) == ("25.0", "27.5")
    printed = table.to_string(index=False)
    assert max(map(len, printed.splitlines())) <= 140 and "nan" not in printed.lower()


def test_every_comparison_has_a_sentence_that_says_what_stands_after_holm(run: Path):
    said = verdicts(run)
    assert len(said) == 2 * 5 and not [line for line in said if "nan" in line or "cpt:" in line]
    found = {line.split(":")[0]: line for line in said}
    assert re.search(
        r"higher than cpt by 7\.7 pp \(.+\), also after Holm's correction", found["practice-mmlu, adaptive"]
    )
    assert "but not shown once corrected for 2 comparisons (Holm p 0.095)" in found["practice-mmlu, control"]
    null = r"no difference from cpt shown; minimum detectable effect \d\.\d pp \(80 % power\)\.$"
    assert re.search(null, found["practice-old, cft"])
    alone = verdicts(read_run(run, benchmarks=["practice-mmlu"]))
    assert len(alone) == 5 and not [line for line in alone if "Holm" in line]
    assert "over all 10 comparisons at once" in overall(run) and "neg on practice-old (lower)" in overall(run)
    assert "control" not in overall(run)


def test_a_claim_must_stand_after_holm(run: Path):
    table = claims(run).set_index(["claim", "benchmark"])["here"]
    assert set(table) == {"shown", "not shown", "not tested"}
    record = read_run(run)
    for arms in record.outcomes.values():  # one claim, two benchmarks; on practice-mmlu p is 0.048, Holm's p 0.095
        arms.update(cft=arms["cpt"], cpt=arms["control"])
    record = dataclasses.replace(
        record, outcomes={"one": record.outcomes["practice-mmlu"], "two": record.outcomes["practice-old"]}
    )
    first = claims(record).set_index("benchmark").iloc[0]
    assert first["here"] == "not shown" and first["verdict"].startswith("higher") and "Holm p 0.095" in first["verdict"]


def test_arms_with_a_second_stage_are_compared_drawn_and_claimed(tmp_path: Path):
    arms = ("base", "cpt", "cft", "ift", "cpt-ift", "cft-ift")
    folder = fake_run(tmp_path / "run", benchmarks={"practice-mmlu": 160}, arms=arms)
    table = results_table(folder).set_index("arm")
    assert list(table.index) == [*arms, "(chance)", "(majority)"]
    assert table.loc["cft-ift", "verdict"] == "higher" and table.loc["ift", "verdict"] == "lower"
    assert results_table(folder, "cpt-ift").set_index("arm").loc["cft-ift", "minus cpt-ift"].startswith("+1")
    assert [label.get_text() for label in results_figure(folder).axes[0].get_xticklabels()] == list(arms)
    assert len(loss_figure(folder).axes[0].get_legend().get_texts()) == 5
    page = write_report(folder, "cpt-ift").read_text(encoding="utf-8")
    assert "practice-mmlu, cft-ift: higher than cpt-ift" in page and "An arm that ends in -ift" in page
    found = claims(folder).set_index("claim")["here"]
    assert found["CFT then instruction tuning beats CPT then instruction tuning"] == "shown"
    one = read_run(folder, arms=["base", "cpt", "cft"])
    assert claims(one).set_index("claim").loc[
        "CFT then instruction tuning beats CPT then instruction tuning"
    ].to_list()[1:] == ["not tested", "no such arms in this run"]


def test_written_answers_are_counted_in_f1_and_told(tmp_path: Path):
    measured = label_metrics([n % 3 for n in range(90)], [0] * 90, ["down", "same", "up"])
    folder = fake_run(tmp_path / "run", seeds=1, benchmarks={"practice-fiqa": 90})

    def silence(rows: list[dict]) -> None:  # every tenth item has no answer
        give_classes(rows)
        for row in rows[::10]:
            row.update(prediction=None, correct=False)

    for path in folder.glob("evals/*/*/metrics.json"):
        change_json(path, lambda m: m["benchmarks"]["practice-fiqa"].update(measured, unanswered=9))
        change_lines(path.with_name("practice-fiqa.jsonl"), silence)
    rows = read_run(folder).outcomes["practice-fiqa"]["cft"][0]
    said = [-1 if row["prediction"] is None else row["prediction"] for row in rows]
    expected = f1_score([row["answer"] for row in rows], said, labels=[0, 1, 2], average="macro")
    assert f1_table(folder).set_index("arm").loc["cft", "macro F1 %"].startswith(f"{100 * expected:.1f} (")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "practice-fiqa: over all arms and seeds, 54 generated texts gave no answer and count as wrong." in page


def test_another_reference(run: Path):
    table = results_table(run, reference="base").set_index(["benchmark", "arm"])
    assert table.loc[("practice-mmlu", "cpt"), "minus base"].startswith("+4")
    record = read_run(run)
    for arms in record.outcomes.values():
        del arms["control"]
    with pytest.raises(InputError, match=r"reference arm .* of practice-mmlu 'control'; known: base, cpt, cft, neg, "):
        results_table(record, reference="control")
    with pytest.raises(InputError, match=r"of practice-mmlu 'ctp' \(did you mean 'cpt'\?\)"):
        results_table(run, reference="ctp")


def test_subject_table(run: Path):
    table = subject_table(run, "practice-mmlu")
    assert list(table.columns) == ["subject", "n", *ARMS] and list(table["n"]) == [80, 80]
    rows = [row for seed in range(3) for row in outcomes("practice-mmlu", RIGHT["cft"], seed, 160)]
    expected = [row["correct"] for row in rows if row["subject"] == "drugs"]
    found = table.set_index("subject").loc["drugs", "cft"]
    assert found == pytest.approx(100 * sum(expected) / len(expected), abs=0.051)
    with pytest.raises(InputError, match=r"unknown benchmark in .*'practise-mmlu' .did you mean 'practice-mmlu'"):
        subject_table(run, "practise-mmlu")


def test_the_interval_of_a_difference_holds_items_and_seeds(tmp_path: Path):
    folder = fake_run(tmp_path / "run", seeds=2, benchmarks={"practice-mmlu": 40})
    for arm in ("cpt", "cft"):  # two seeds that agree exactly
        source = folder / "evals" / arm / "seed-0" / "practice-mmlu.jsonl"
        shutil.copy(source, folder / "evals" / arm / "seed-1" / "practice-mmlu.jsonl")
    for seed in (0, 1):
        path = folder / "evals" / "cft" / f"seed-{seed}" / "practice-mmlu.jsonl"
        change_lines(path, lambda rows: [row.update(correct=True) for row in rows])
    cell = results_table(folder).set_index("arm").loc["cft", "its 95 % interval"]
    low, high = map(float, cell.split(" to "))
    assert high - low > 20


# --- figures ----------------------------------------------------------------------------------------------------------


def test_results_figure_shows_arms_and_lines(run: Path):
    figure = results_figure(run)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["practice-mmlu", "practice-old"]
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(ARMS)
    assert all(same_color(bar.get_facecolor()[:3], arm_color(arm)) for bar, arm in zip(axes.patches, ARMS, strict=True))
    accuracy = results_table(run).query("benchmark == 'practice-mmlu'")["accuracy %"].astype(float)
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(list(accuracy[:6]), abs=0.051)
    texts = {text.get_text().strip() for text in axes.texts}
    assert {"chance 25.0", "majority 27.5"} <= texts
    assert "accuracy (%)" in axes.get_ylabel() and axes.get_xlabel() == "arm"


@pytest.mark.parametrize(("right", "n"), [(False, 7), (False, 9), (False, 160), (True, 10), (True, 13), (True, 160)])
def test_results_figure_draws_none_and_all_correct(run: Path, right: bool, n: int):
    items = [{"id": str(i), "correct": right} for i in range(n)]  # matplotlib refuses an error bar below 0
    record = dataclasses.replace(read_run(run), outcomes={"practice-mmlu": {"cpt": {0: items, 1: items}}})
    assert results_figure(record).axes[0].patches[0].get_height() == 100 * right


def test_differences_figure_shows_arms_but_the_reference_and_base(run: Path):
    rows = compare(read_run(run).outcomes["practice-old"])
    figure = differences_figure({"one": rows, "two": rows[:3]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["adaptive", "control", "neg", "cft"]
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == {f"{row['difference']:+.1f}" for row in rows if row["arm"] not in ("base", "cpt")}
    assert figure.axes[0].get_xlabel() == "accuracy minus cpt (pp)"


def test_a_run_can_be_read_in_part(run: Path):
    part = read_run(run, seeds=[1], benchmarks=["practice-old"], arms=["base", "cpt"])
    assert list(part.outcomes) == ["practice-old"] and list(part.metrics) == ["base", "cpt"] == list(
        loss_table(part)["arm"]
    )
    assert list(part.metrics["cpt"]) == [1] and set(part.logs["arm"]) == {"cpt"}
    with pytest.raises(InputError, match=r"unknown benchmark in .*'practice-odl' .did you mean 'practice-old'"):
        read_run(run, benchmarks=["practice-odl"])


def test_macro_f1_stands_in_the_table_where_it_was_measured(tmp_path: Path):
    folder = fake_run(tmp_path / "run", seeds=2, benchmarks={"practice-fiqa": 40})
    for path in folder.glob("evals/*/*/metrics.json"):
        change_json(path, lambda m: m["benchmarks"]["practice-fiqa"].update(macro_f1=0.5, majority_macro_f1=0.167))
    table = results_table(folder).set_index("arm")["macro F1 %"]
    assert table["cft"] == "50.0" and table["(majority)"] == "16.7" and table["(chance)"] == ""


def test_f1_table_has_paired_intervals_and_lines(tmp_path: Path):
    measured = label_metrics([n % 3 for n in range(90)], [0] * 90, ["down", "same", "up"])
    folder = fake_run(tmp_path / "run", seeds=2, benchmarks={"practice-fiqa": 90, "practice-mmlu": 20})
    for path in folder.glob("evals/*/*/metrics.json"):
        change_lines(path.with_name("practice-fiqa.jsonl"), give_classes)
        change_json(path, lambda m: m["benchmarks"]["practice-fiqa"].update(measured))
    table = f1_table(folder)
    assert set(table["benchmark"]) == {"practice-fiqa"} and list(table["arm"]) == [*ARMS, "(chance)", "(majority)"]
    rows = {row["arm"]: row for row in compare_f1(read_run(folder).outcomes["practice-fiqa"])}
    cells, row = table.set_index("arm").loc["neg"], rows["neg"]
    assert cells["macro F1 %"] == f"{100 * row['f1']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    ends = f"({row['difference_low']:+.1f} to {row['difference_high']:+.1f})"
    assert cells["macro minus cpt"] == f"{row['difference']:+.1f} {ends}" and row["difference_high"] < 0
    lines = table.set_index("arm")[
        "macro F1 %"
    ]  # of 90: always naming a third has F1 2 * 30 / (30 + 90) on one class of 3
    assert (lines["(chance)"], lines["(majority)"]) == ("33.3", f"{100 / 6:.1f}")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "F1 of the classes" in page and cells["weighted minus cpt"] in page


def give_classes(rows: list[dict]) -> None:
    for place, row in enumerate(rows):
        row.update(answer=place % 3, choices=3)
        row["prediction"] = place % 3 if row["correct"] else (place + 1) % 3


def test_loss_figure_shows_the_mean_over_seeds(run: Path):
    axes = loss_figure(run).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{arm}, mean of 3 seeds" for arm in ARMS[1:]]
    mean = next(line for line in axes.get_lines() if line.get_label() == labels[0])
    assert mean.get_ydata()[0] == pytest.approx(1.3 - RIGHT["cpt"] + math.exp(-1 / 9) + 0.02)
    assert axes.get_xlabel() == "optimizer step" and "nats" in axes.get_ylabel()


def test_an_untrained_run_has_no_loss_figure_but_a_report(tmp_path: Path):
    folder = fake_run(tmp_path / "run")
    (folder / "arms").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds no training log"):
        loss_figure(folder)
    assert "Training loss" not in write_report(folder).read_text(encoding="utf-8")


# --- the page ---------------------------------------------------------------------------------------------------------


def test_report_is_whole_and_opens_offline(run: Path):
    page = write_report(run).read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert page.count("data:image/png;base64,") == 2 and "default-src 'none'" in page
    for row in results_table(run).itertuples(index=False):
        assert all(f">{cell}</td>" in page for cell in row[3:] if cell and not str(cell).startswith("<"))
    assert "F1 of the classes" not in page
    for text in ("lower than cpt by", "chance", "majority", "51,234", "dropped.too short", "train.learning_rate"):
        assert text in page
    for text in (
        "over other items and other seeds at once",
        *map(escape, (*how_to_read(run), *verdicts(run), overall(run))),
    ):
        assert text in page
    assert "3 seeds are few" in page and "10 comparisons" in page and "planted" not in page
    opened = re.findall(r"<(h1|h2|table|tr|td|ul|li|details|div|p)\b", page)
    closed = re.findall(r"</(h1|h2|table|tr|td|ul|li|details|div|p)>", page)
    assert sorted(opened) == sorted(closed)
    assert write_report(run).read_text(encoding="utf-8") == page


def test_one_seed_is_said_and_paired_over_items(tmp_path: Path):
    folder = fake_run(tmp_path / "run", seeds=1)
    assert "compared with one seed of training" in write_report(folder).read_text(encoding="utf-8")
    assert set(results_table(folder)["seeds"]) == {1, ""}


def test_a_report_of_a_record_shows_the_seeds_of_the_record(tmp_path: Path):
    folder = fake_run(tmp_path / "run", benchmarks={"practice-mmlu": 40})
    record = read_run(folder, seeds=[1, 2])
    path = write_report(record)
    page = path.read_text(encoding="utf-8")
    assert path == folder / "report.html" and "2 seeds are few" in page and "cft: 1, 2;" in page
    cells = results_table(record).set_index("arm").loc["cft"]
    assert f">{cells['its 95 % interval']}</td>" in page
    assert page != write_report(folder).read_text(encoding="utf-8")


def test_only_the_built_in_practice_questions_are_called_fictional(tmp_path: Path):
    own = write_report(fake_run(tmp_path / "own", benchmarks={"practice-exam": 20})).read_text(encoding="utf-8")
    built_in = write_report(fake_run(tmp_path / "old", benchmarks={"practice-old": 20})).read_text(encoding="utf-8")
    assert "fictional" not in own and "fictional" in built_in


def test_every_text_is_escaped(tmp_path: Path):
    attack = "<script>alert('x')<&$\\frac$"
    folder = fake_run(tmp_path / "run", benchmarks={attack: 40})
    change_json(folder / "manifest.json", lambda m: m.update(name=attack, code=attack, versions={attack: attack}))
    change_json(folder / "manifest.json", lambda m: m["config"].update({attack: [attack]}))
    write_json(folder / "ledger.json", {attack: attack, "nested": {attack: 1}})
    for path in folder.glob("evals/*/*/*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace('"drugs"', json.dumps(attack)), encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;&amp;") >= 10


def test_an_arm_that_is_none_is_refused(tmp_path: Path):
    folder = fake_run(tmp_path / "run")
    (folder / "evals" / "neg").rename(folder / "evals" / "<script>")
    with pytest.raises(InputError, match=r"evals: unknown arm '<script>'"):
        write_report(folder)


def test_different_items_are_refused(tmp_path: Path):
    folder = fake_run(tmp_path / "run")
    path = folder / "evals" / "cft" / "seed-1" / "practice-mmlu.jsonl"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"practice-mmlu-7"', '"practice-mmlu-x"'), encoding="utf-8"
    )
    with pytest.raises(
        InputError, match=r"arm cft, seed 1 and arm cpt, seed 0 differ: item 'q7' is missing .* or has another question"
    ):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"manifest.json does not exist"):
        read_run(tmp_path)
    write_json(tmp_path / "manifest.json", {"name": "x"})
    with pytest.raises(InputError, match="holds no evaluation"):
        read_run(tmp_path)
    write_json(tmp_path / "evals" / "cpt" / "seed-one" / "metrics.json", {"benchmarks": {}})
    with pytest.raises(InputError, match="seed-one: a folder seed-<whole number> is needed"):
        read_run(tmp_path)


def test_a_report_needs_no_torch(run: Path):
    code = (
        f"import sys; from ctxft.report import write_report; write_report({str(run)!r}); print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


def test_the_table_is_plain_pandas(run: Path):
    assert isinstance(results_table(run), pandas.DataFrame)
    assert not results_table(run).isna().any().any()


def test_arms_that_take_a_prompt_apart_are_explained_where_a_run_has_them():
    def run_of(*arms: str) -> RunRecord:
        manifest = {"config": {}}
        return RunRecord(
            Path("run"), manifest, {}, {arm: {} for arm in arms}, {"exam": {arm: {} for arm in arms}}, None
        )

    assert not any("exercises" in said for said in how_to_read(run_of("base", "cpt", "cft-ift")))
    assert not any("all comparisons of the run" in said for said in how_to_read(run_of("cpt", "control-neutral")))
    assert any("an oracle that knows" in said for said in how_to_read(run_of("cpt", "adaptive")))
    parts = how_to_read(run_of("cpt", "only-critical", "reading-ift"))
    assert any("all comparisons of the run" in said for said in parts)
    assert (
        "cpt reads the text alone; only-* reads prompts of one family; "
        "reading reads no prompt, but exercises about the text after it." in parts[0]
    )


def test_a_table_in_a_notebook_fits_its_window():
    rows = [("exam", "cpt", "", "1.0 to 2.0"), ("exam", "cft", "", "<b>"), ("other", "cpt", "", "")]
    table = show_table(pandas.DataFrame(rows, columns=["benchmark", "arm", "macro F1 %", "interval"]))
    page = table._repr_mimebundle_()["text/html"]
    assert page.count("exam") == page.count("other") == 1, "a benchmark is named once"
    assert "macro F1" not in page + table.text, "nothing stands there"
    assert "&lt;b&gt;" in page and page.count("nowrap") == page.count("<td") == 9
    assert table.text.splitlines()[2].split() == ["exam", "cft", "<b>"]
