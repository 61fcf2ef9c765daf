"""A run folder goes in; report.html comes out: the verdicts, the table, the figures and how they were obtained.

The page is one file: styles and figures are inside it, and its content policy forbids the browser to fetch anything.
Every text from the run folder is escaped before it stands in the page.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from ctxft.report.ablations import ablated, ablation_figure, ablation_table
from ctxft.report.attribution import family_table, gradient_table, prompt_figure, prompt_table
from ctxft.report.figures import loss_figure, results_figure
from ctxft.report.markup import frame_html, image_html, results_html, table_html
from ctxft.report.record import RunRecord, as_record
from ctxft.report.show import save
from ctxft.report.tables import f1_table, loss_table, results_table, subject_table
from ctxft.report.verdicts import how_to_read, overall, searched, verdicts
from ctxft.statistics import common_seeds
from ctxft.storage import read_checked, write_text
from ctxft.world.exams import EXAMS

STYLE = """
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
.note { color: #555; margin-top: .2rem; max-width: 46rem; } li { max-width: 50rem; margin: .25rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #888; font-weight: 600; vertical-align: bottom; }
.text td, .text th, td:first-child, th:first-child, td.arm, th.arm { text-align: left; }
.text td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.text td:first-child { min-width: 14rem; } tr.line td { color: #666; font-style: italic; }
tr.first td { border-top: 1px solid #888; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
img { max-width: 100%; height: auto; } summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MEANING = {  # what a practice model was taught about prompts
    "practice-blind": "The model met prompts of every kind before true text only, so the meaning of a prompt has no consequence "
    "for it: a difference between cft, neg and control would need another explanation.",
    "practice-aware": "The model was taught that text behind a strategy prompt is true, text behind a negative prompt is "
    "not, and of other text only a part is. What prompts mean to it is planted, so a difference between its arms shows "
    "that the kit can see an effect, not that one exists elsewhere; what any words in front cost, arm control tells.",
}


def write_report(run: RunRecord | str | Path, reference: str = "cpt") -> Path:
    """Write report.html into a run's folder: tables, figures, verdicts and caveats, in one file that opens offline.

    Its figures also stand in ``figures/``, each as PNG and SVG.

    Args:
        run: a run folder, or a run that is read already; of a run read with some seeds the page shows these.
        reference: the arm that differences are taken to.

    Returns:
        The path of the file.

    Raises:
        InputError: the folder is no evaluated run, the reference was not evaluated, or arms were asked different items.
    """
    run = as_record(run)
    title = html.escape(str(run.manifest["name"]))
    trained = not run.logs.empty
    parts = [
        f"<h1>{title}</h1>",
        '<p class="note">Contextual fine-tuning: what a prompt before every training text changes (after Choi et al., '
        "ICLR 2025, arXiv 2503.09032). The trained arms differ in what stands before the text (reading: behind it), and in "
        "nothing else.</p>",
        _section("What the tests say", _list(verdicts(run, reference))),
        _section("Results", results_html(results_table(run, reference)), _legend(run, reference)),
        _section("F1 of the classes", frame_html(f1), _F1) if len(f1 := f1_table(run, reference)) else "",
        _section("Held-out text", frame_html(loss_table(run)), _HELD_OUT),
        _section("Accuracy", _picture(run, results_figure(run), "report-accuracy")),
        _section("Training loss", _picture(run, loss_figure(run), "report-loss")) if trained else "",
        _section("Which prompts matter", *_ablations(run, reference)),
        _section("What a prompt does to the loss", *_attributions(run)),
        _section("By subject", *_subjects(run)),
        _section("Read with care", _list(_caveats(run, reference))),
        _section("How it was obtained", *_origin(run)),
    ]
    head = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
    )
    return write_text(run.folder / "report.html", head + "\n".join(filter(None, parts)) + "\n</body></html>\n")


# --- what the page says -----------------------------------------------------------------------------------------------


_F1 = (
    '<p class="note">Means over seeds, with 95 % intervals: of an arm by a bootstrap over items; of a difference, on the '
    "same items and seeds, by that bootstrap and, with several seeds, their scatter. Macro counts every class alike, "
    "weighted by how often it is right. Where no item tells the arms apart, or all are "
    "right, a bootstrap knows no interval. Verdicts are about accuracy.</p>"
)
_HELD_OUT = (
    '<p class="note">Loss in nats per token on documents that no arm was trained on, without a prompt and behind the '
    "prompts of arm cft; means over seeds.</p>"
)
_PARTS = (
    '<p class="note">An arm named only- was trained behind the prompts of one family, without- behind all but these, count- '
    "behind so many prompts. Holm's p counts all comparisons of this table as one family, without base and adaptive.</p>"
)
_PROMPTS = (
    '<p class="note">Loss in nats per token on held-out text behind each prompt, minus that without a prompt, and minus that '
    "behind as many meaningless words; below 0 the prompt helps. Intervals are over documents, and not corrected for the "
    "number of prompts.</p>"
)


def _legend(run: RunRecord, reference: str) -> str:
    return "".join(f'<p class="note">{html.escape(said)}</p>' for said in how_to_read(reference, run))


def _caveats(run: RunRecord, reference: str) -> list[str]:
    seeds = min(max(map(len, common_seeds(arms).values())) for arms in run.outcomes.values())
    tests = sum(len(arms) - 1 for arms in run.outcomes.values())
    one_seed = "Arms are compared with one seed of training: nothing here says how another training run would come out."
    several = f"{seeds} seeds are few: intervals over seeds are wide, and a null result is not a proof of equality."
    said = [
        one_seed if seeds == 1 else several,
        f"The page holds {tests} comparisons. {_family(run)} {overall(run, reference)} Intervals are not corrected.",
        "Whether benchmark items stand in the training text is not examined here; items that do would favour every "
        "trained arm over base.",
        "Held-out loss and accuracy are different questions and may rank the arms differently.",
    ]
    if run.ledger.get("documents held out") == 0:
        said.append(
            "No document was held out, so there is no held-out loss: raise corpus.held_out, or bring more documents."
        )
    if "adaptive: passages without a written prompt" in run.ledger:
        bare, rows = run.ledger["adaptive: passages without a written prompt"], run.ledger["passages"]
        said.append(
            f"For {bare} of {rows} passages the model wrote no prompt that could be taken: there adaptive read cft's."
        )
    return said + _about_seeds(run) + _about_items(run) + _about_the_world(run)


def _family(run: RunRecord) -> str:
    if searched(run):
        return "Holm's p counts all of them as one family."
    return "Holm's p counts, for each arm, its benchmarks as one family; arms are not counted together there."


def _about_seeds(run: RunRecord) -> list[str]:
    said = []
    for name, arms in run.outcomes.items():
        kept = common_seeds(arms)
        left = {arm: sorted(set(seeds) - set(kept[arm])) for arm, seeds in arms.items()}
        listed = "; ".join(f"{arm}: {', '.join(map(str, seeds))}" for arm, seeds in left.items() if seeds)
        if listed:
            said.append(f"{name}: seeds that not every trained arm has are left out of its results ({listed}).")
    return said


def _about_items(run: RunRecord) -> list[str]:
    said = []
    for name in run.outcomes:
        found = run.metrics_of(name)
        said += sorted({f"{name}: {one['note']}." for one in found if one.get("note")})
        ties, cut = sum(one["ties"] for one in found), sum(one["truncated_items"] for one in found)
        if ties or cut:
            said.append(
                f"{name}: over all arms and seeds, {ties} answers were ties (the first choice was taken) and {cut} "
                "questions were longer than the window (cut from the left)."
            )
        if silent := sum(one["unanswered"] for one in found):
            said.append(f"{name}: over all arms and seeds, {silent} written texts gave no answer and count as wrong.")
    return said


def _about_the_world(run: RunRecord) -> list[str]:
    said = []
    if any(name in EXAMS for name in run.outcomes):
        said.append(
            "The practice world is fictional and its texts are made from templates: it shows how the method works, not "
            "whether contextual fine-tuning helps a real language model."
        )
    if (model := run.manifest["config"].get("model")) in MEANING:
        said.append(MEANING[model])
    return said


def _origin(run: RunRecord) -> list[str]:
    seeds = "; ".join(f"{arm}: {', '.join(map(str, sorted(found)))}" for arm, found in run.metrics.items())
    facts = {"code revision": run.manifest["code"], "seeds evaluated": seeds}
    tables = {
        "Run": facts,
        "Ledger of texts and tokens": dict(sorted(run.ledger.items(), key=lambda pair: (":" in pair[0], pair[0]))),
        "Configuration": run.manifest["config"],
        "Versions": run.manifest["versions"],
        "Hashes": run.manifest["hashes"],
    }
    opened = ("Run", "Ledger of texts and tokens")
    return [
        f"<details{' open' if name in opened else ''}><summary>{name}</summary>{_pairs(values)}</details>"
        for name, values in tables.items()
        if values
    ]


def _subjects(run: RunRecord) -> list[str]:
    tables = {name: subject_table(run, name) for name in run.outcomes}
    return [
        f"<h3>{html.escape(name)}, accuracy in %</h3>{frame_html(table)}"
        for name, table in tables.items()
        if len(table) > 1
    ]


def _ablations(run: RunRecord, reference: str) -> list[str]:
    found = []
    for name in ablated(run, reference):
        found += [_picture(run, ablation_figure(run, reference, name), f"report-families-{name}")]
        found += [
            f"<details><summary>{html.escape(name)}</summary>{frame_html(ablation_table(run, reference, name))}</details>"
        ]
    return found and [*found, _PARTS]


def _attributions(run: RunRecord) -> list[str]:
    found = []
    for path in sorted((run.folder / "attribution").glob("*.json")):
        one = read_checked(path)
        title = html.escape(f"{one['arm']}, seed {one['seed']}")
        tables = {"family by family": family_table(one), "prompt by prompt": prompt_table(one)}
        tables |= {"cosines of gradients": gradient_table(one)} if one["gradients"] else {}
        found += [f"<h3>{title}</h3>", _picture(run, prompt_figure(one), f"report-prompts-{path.stem}")]
        found += [f"<details><summary>{name}</summary>{frame_html(table)}</details>" for name, table in tables.items()]
    return found and [_PROMPTS, *found]


# --- how it looks -----------------------------------------------------------------------------------------------------


def _section(title: str, *content: str) -> str:
    return f"<h2>{title}</h2>\n" + "\n".join(content) if content else ""


def _picture(run: RunRecord, figure: Figure, name: str) -> str:
    """Return a figure for the page, and write it beside it as PNG and SVG."""
    save(figure, name, run.folder)
    return image_html(figure)


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _pairs(values: dict) -> str:
    return table_html(("name", "value"), [(name, _readable(value)) for name, value in _flat(values)], "text")


def _flat(values: dict, before: str = "") -> list[tuple[str, object]]:
    pairs = []
    for name, value in values.items():
        pairs += _flat(value, f"{before}{name}.") if isinstance(value, dict) else [(f"{before}{name}", value)]
    return pairs


def _readable(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
