"""Measure what each prompt does to a model's loss and gradient.

    held-out passages    loss without a prompt, after every prompt of the run's sets, after as many random words
    training passages    gradients after each family's prompts: do the families teach different things?

attribute(run, arm, seed) -> attribution/<arm>-seed-<n>/done.json; the tables and the figure group the rows of the losses
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import pandas
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peft import PeftModel
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from ctxft.data.passages import Passage
from ctxft.data.rows import IGNORE_INDEX, Rows, prompt_ids, special_tokens
from ctxft.evaluation.scoring import text_losses
from ctxft.prompts import control_prompt
from ctxft.report.figures import arm_color, finish, legend, mark, styled
from ctxft.run.run import Run
from ctxft.run.tasks import parse_task
from ctxft.statistics import cluster_interval
from ctxft.storage import InputError, step

REVISION = 3  # raised when the same model and passages would get other numbers
CONTROL_SEED = 0  # samples the random words, the same for every arm and seed
MEMORY = 4  # GiB that gradients may take
LOOKS = {
    "strategy": (arm_color("cft"), "o", "strategy prompt"),
    "negative": (arm_color("neg"), "s", "negative prompt"),
    "control": (arm_color("control"), "D", "random words"),
}
PROMPT = ["prompt", "family", "kind", "tokens"]  # columns that identify a prompt
GAP = 0.8  # lines between two families in the figure


def attribute(run: Run, arm: str, seed: int, limit: int | None = 256, passages: int = 64) -> dict:
    """Measure what prompts do to a model, and keep it below the run folder, as long as model, prompts and passages are the same.

    Args:
        run: a prepared run.
        arm, seed: of the model: "base" (seed 0), or a trained arm.
        limit: held-out passages whose losses are taken, evenly spaced; None takes all.
        passages: passages of training whose gradients are compared; 0 leaves gradients out.

    Returns:
        losses, as ``pandas.DataFrame(**losses)`` takes them: the rows of ``prompt_losses``; gradients, as from
        ``family_gradients``, or None.

    Raises:
        InputError: the run is not prepared or of another config, has no such arm and seed, the arm is not trained yet,
            nothing is held out, or the gradients would take too much memory.

    Example:
        >>> family_table(attribute(run, "cft", 0))  # doctest: +SKIP
    """
    manifest = run.require_prepared()
    parse_task(f"{arm}:{seed}", [("base", 0), *run.train_tasks])
    inputs = {"revision": REVISION, "model": run.model_hash(arm, seed), "hashes": manifest.hashes}
    inputs |= {"limit": limit, "passages": passages}
    with step(run.folder / "attribution" / f"{arm}-seed-{seed}", inputs) as stage:
        if not stage.done:
            torch.set_num_threads(run.config.train.threads)
            model = run.model(arm, seed)
            gradients = family_gradients(run, model, passages) if passages else None
            losses = prompt_losses(run, model, limit)
            rows = losses.astype(object).where(losses.notna(), None).to_dict("split", index=False)  # JSON has no NaN
            stage.result = {"losses": rows, "gradients": gradients}
    return stage.result


def _spread_out(passages: Sequence[Passage], limit: int | None) -> list[Passage]:
    """Return at most ``limit`` passages, evenly spaced over the corpus: the first ones would be of a few documents only."""
    limit = len(passages) if limit is None else min(limit, len(passages))
    return [passages[place * len(passages) // limit] for place in range(limit)]


def _random_words(run: Run, passage: Passage, tokens: int) -> list[int]:
    """Return the ids of random words that take the given number of tokens, their template included."""
    template = run.template
    inside = tokens - len(template.before) - len(template.after)
    prompt = control_prompt(run.tokenizer, inside, CONTROL_SEED, passage.id, template.separator)
    return prompt_ids(run.tokenizer, prompt, template)


# --- losses -----------------------------------------------------------------------------------------------------------


def prompt_losses(run: Run, model: PreTrainedModel, limit: int | None = None) -> pandas.DataFrame:
    """Measure the loss of held-out passages after each prompt of the run, without one, and after as many random words.

    Args:
        run: a prepared run.
        model: a model of it.
        limit: at most this many passages, evenly spaced; None takes all.

    Returns:
        A row for each prompt and passage, then for random words of each length (kind "control") and passage: prompt,
        family, kind, tokens (with the template); passage (a number), document, targets (tokens); loss, none (without a
        prompt) and control (after as many random words, sampled for each passage; NaN for random words), in nats summed
        over targets.

    Raises:
        InputError: the run has no held-out passage.

    Example:
        >>> prompt_changes(prompt_losses(run, run.model("cft")), ["kind"])  # doctest: +SKIP
    """
    passages = _spread_out(run.text("held_out"), limit)
    if not passages:
        raise InputError(f"{run.folder} holds no passage out: raise corpus.held_out.")
    texts = pandas.DataFrame(
        {
            "passage": range(len(passages)),
            "document": [passage.document for passage in passages],
            "targets": [passage.targets for passage in passages],
        }
    )

    def losses(prompts: Sequence[Sequence[int]]) -> list[float]:
        rows = Rows(passages, prompts, special_tokens(run.tokenizer))
        pairs = [(row["input_ids"], row["labels"]) for row in rows]
        return [loss for loss, _ in text_losses(model, pairs, run.config.evaluation.max_batch_tokens)]

    texts = texts.assign(none=losses([[]] * len(passages)))
    parts, words = [], {}
    for prompt in (prompt for prompt_set in run.prompt_sets for prompt in prompt_set.prompts):
        ids = prompt_ids(run.tokenizer, prompt, run.template)
        size = len(ids)
        if size not in words:
            words[size] = losses([_random_words(run, passage, size) for passage in passages])
        names = dict(zip(PROMPT, (prompt.id, prompt.family, prompt.kind, size), strict=True))
        parts.append(texts.assign(loss=losses([ids] * len(passages)), control=words[size], **names))
    for size, loss in sorted(words.items()):
        names = dict(zip(PROMPT, (f"control-{size}", "control", "control", size), strict=True))
        parts.append(texts.assign(loss=loss, control=math.nan, **names))
    return pandas.concat(parts, ignore_index=True)


def prompt_changes(losses: pandas.DataFrame, by: Sequence[str]) -> pandas.DataFrame:
    """Return what prompts change in the loss, group by group: the mean over prompts, passage by passage, then over tokens.

    A prompt has two differences: to no prompt at all, and to as many tokens of random words. The first may come from any
    words in front; the second comes from the meaning of the prompt.

    Args:
        losses: from ``prompt_losses``.
        by: columns of it, such as ["family", "kind"].

    Returns:
        The columns ``by``; prompts (how many); to_none and to_control: (difference, low, high) in nats a token, with a 95 %
        interval over documents, whose passages are kept together; NaN where there is nothing.
    """
    rows = []
    for names, part in losses.groupby(list(by), sort=False):
        means = part.groupby("passage").agg(
            {"targets": "first", "document": "first", "loss": "mean", "none": "mean", "control": "mean"}
        )
        row = dict(zip(by, cast(tuple, names), strict=True)) | {"prompts": part["prompt"].nunique()}
        for other in ("none", "control"):
            change = list(means["loss"] - means[other])
            known = not any(map(math.isnan, change))
            lists = change, list(means["targets"]), list(means["document"])
            row[f"to_{other}"] = cluster_interval(*lists) if known else (math.nan,) * 3
        rows.append(row)
    return pandas.DataFrame(rows)


# --- gradients --------------------------------------------------------------------------------------------------------


def mean_gradient(model: PreTrainedModel | PeftModel, rows: Sequence[dict[str, list[int]]]) -> torch.Tensor:
    """Return the gradient of the mean loss of all targets of the rows, flattened, on the CPU.

    Args:
        model: what requires a gradient in it counts.
        rows: ``input_ids`` and ``labels`` each.

    Returns:
        (weights,) in float32, in the order of the model's parameters.

    Example:
        >>> mean_gradient(model, [{"input_ids": [1, 5, 9], "labels": [-100, 5, 9]}]).shape  # doctest: +SKIP
        torch.Size([60528])
    """
    sizes = [sum(label != IGNORE_INDEX for label in row["labels"][1:]) for row in rows]
    model.zero_grad(set_to_none=True)
    for row, size in zip(rows, sizes, strict=True):
        ids, labels = (torch.tensor([row[name]], device=model.device) for name in ("input_ids", "labels"))
        (model(input_ids=ids, labels=labels).loss * (size / sum(sizes))).backward()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in learned]
    gradient = torch.cat([grad.flatten().float().cpu() for grad in grads])
    model.zero_grad(set_to_none=True)
    return gradient


def family_gradients(run: Run, model: PreTrainedModel | PeftModel, passages: int = 64) -> dict:
    """Compare the gradients of the same passages after different prompts: a cosine of 1 teaches the same thing.

    The gradient is that of the mean target loss, of all weights that training updates (a LoRA arm's adapter, else all),
    without dropout. The passages are those of training, evenly spaced; passage n follows prompt n of a family, modulo their
    number. Random words have the tokens of a prompt of the strategy set, taken in turn.

    Args:
        run: a prepared run.
        model: a model of it.
        passages: how many.

    Returns:
        passages and weights (how many); conditions (records of family and kind), cosine (a list of rows, in their order)
        and norms.

    Raises:
        InputError: the gradients, 4 bytes a weight for each condition, would take more than 4 GiB.

    Example:
        >>> family_gradients(run, run.model("cft"))["cosine"][0][:2]  # doctest: +SKIP
        [1.0, 0.993]
    """
    chosen, (strategies, negative) = _spread_out(run.passages, passages), run.prompt_sets
    sets = [(family, "strategy", strategies.members[family]) for family in strategies.families]
    conditions = [({"family": "none", "kind": "none"}, [[]] * len(chosen))]
    for family, kind, prompts in [*sets, ("negative", "negative", negative.prompts)]:
        ids = [prompt_ids(run.tokenizer, prompt, run.template) for prompt in prompts]
        conditions.append(({"family": family, "kind": kind}, [ids[n % len(ids)] for n in range(len(chosen))]))
    lengths = [len(prompt_ids(run.tokenizer, prompt, run.template)) for prompt in strategies.prompts]
    words = [_random_words(run, passage, lengths[n % len(lengths)]) for n, passage in enumerate(chosen)]
    conditions.append(({"family": "control", "kind": "control"}, words))
    if isinstance(model, PeftModel):
        model.set_requires_grad(model.active_adapters)
    else:
        model.requires_grad_(True)
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if (needed := 4 * weights * len(conditions) / 2**30) > MEMORY:
        raise InputError(
            f"{len(conditions)} gradients of {weights:,} weights take {needed:.1f} GiB, more than {MEMORY}: take an arm "
            "trained with LoRA, or leave the gradients out (0 passages)."
        )
    special = special_tokens(run.tokenizer)
    vectors = torch.stack([mean_gradient(model, Rows(chosen, prompts, special)) for _, prompts in conditions])
    units = normalize(vectors)
    return {
        "passages": len(chosen),
        "weights": weights,
        "conditions": [names for names, _ in conditions],
        "cosine": (units @ units.T).clamp(-1, 1).tolist(),
        "norms": vectors.norm(dim=1).tolist(),
    }


# --- tables and the figure --------------------------------------------------------------------------------------------


def _with_cells(changes: pandas.DataFrame) -> pandas.DataFrame:
    """Give the differences of ``prompt_changes`` the form of cells: the value, then its interval, "" where there is nothing."""
    table = changes.drop(columns=["to_none", "to_control"])
    for change, words, of in (("to_none", "no prompt", ""), ("to_control", "as many words", " of that")):
        cells = [["" if math.isnan(one) else f"{one:+.4f}" for one in values] for values in changes[change]]
        table[f"minus {words}"] = [value for value, _, _ in cells]
        table[f"95 % interval{of}"] = [f"{low} to {high}" if low else "" for _, low, high in cells]
    return table


def prompt_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for each prompt: what it changes in the loss of the passages after it.

    Args:
        attribution: from ``attribute``.

    Returns:
        Columns prompt, family, kind, tokens, "minus no prompt" and "minus as many words" (random ones), both in nats a
        token with a 95 % interval over documents; below 0 the prompt helps. "" where there is nothing.
    """
    return _with_cells(prompt_changes(pandas.DataFrame(**attribution["losses"]), PROMPT)).drop(columns="prompts")


def family_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for all prompts of a kind, then for each family: columns as in ``prompt_table``, and prompts, their number.

    The mean over prompts is taken passage by passage, before the interval over documents.
    """
    losses, by = pandas.DataFrame(**attribution["losses"]), ["family", "kind"]
    families = prompt_changes(losses.query("kind != 'control'"), by)
    return _with_cells(pandas.concat([prompt_changes(losses.assign(family="(all)"), by), families], ignore_index=True))


def gradient_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for each condition: the norm of its gradient, and its cosine with that of every other condition.

    Raises:
        InputError: the attribution was made without gradients.
    """
    gradients = attribution["gradients"]
    if gradients is None:
        raise InputError("this attribution has no gradients: make it with 1 passage or more for them.")
    names = [condition["family"] for condition in gradients["conditions"]]
    table = pandas.DataFrame(gradients["cosine"], columns=names).round(3)
    table.insert(0, "norm", [float(f"{norm:.4g}") for norm in gradients["norms"]], allow_duplicates=True)
    table.insert(0, "cosine", names, allow_duplicates=True)
    return table


@styled
def prompt_figure(attribution: dict) -> Figure:
    """Return a forest plot of what each prompt changes in the loss of held-out passages: left of 0 it helps.

    The left panel compares with no prompt, the right one with as many random words. A line is a prompt; the lines of a
    family are together, and their order is that of ``prompt_table``.

    Args:
        attribution: from ``attribute``.
    """
    losses = pandas.DataFrame(**attribution["losses"])
    families = {
        family: part.to_dict("records") for family, part in prompt_changes(losses, PROMPT).groupby("family", sort=False)
    }
    lines = sum(map(len, families.values())) + GAP * (len(families) - 1)
    figure = Figure(figsize=(7.3, 1.3 + 0.15 * lines))
    titles = {"to_none": "minus no prompt", "to_control": "minus as many random words"}
    for axes, (change, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        places = _draw(axes, families, change, lines)
        finish(axes, list(places.values()), list(places), lines)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("nats a token, 95 % intervals")
    legend(figure, [look for kind, look in LOOKS.items() if kind in set(losses["kind"])])
    means = prompt_changes(losses, ["family", "kind"]).to_dict("records")
    words = ", ".join(f"{row['family']} ({row['kind']}) {row['to_none'][0]:+.3f}" for row in means)
    figure.set_label(
        f"What prompts change in the loss of held-out passages, nats a token minus no prompt, by family: {words}."
    )
    return figure


def _draw(axes: Axes, families: dict, change: str, lines: float) -> dict[str, float]:
    """Draw the families from the top, with a band over every second; returns where each one's name belongs."""
    places, y = {}, lines - 1
    for number, (family, rows) in enumerate(families.items()):
        places[family] = y - (len(rows) - 1) / 2
        if number % 2:
            axes.axhspan(y - len(rows) + 1 - GAP / 2 - 0.5, y + GAP / 2 + 0.5, color="#f3f3f3", zorder=0)
        for line, row in enumerate(rows):
            if not math.isnan(row[change][0]):
                mark(axes, y - line, row[change], LOOKS[row["kind"]])
        y -= len(rows) + GAP
    return places
