"""Measure what each prompt does to a model's loss and gradient: one table of losses, a row for each prompt and passage.

    held-out passages      without a prompt, after every prompt of the run's sets, after as many random words
    training passages      after the very prompt that each was read with
    gradients              of the same passages after each family's prompts: do the families teach different things?

attribute(run, arm, seed) -> attribution/<arm>-seed-<n>.json; the tables and the figure group the rows of such a file
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy
import pandas
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peft import PeftModel
from transformers import PreTrainedModel

from ctxft.data.passages import Passage
from ctxft.data.rows import IGNORE_INDEX, Rows, prompt_ids, special_tokens
from ctxft.evaluation.scoring import batch_tokens, pad, text_losses
from ctxft.models import window_of
from ctxft.prompts import ContextualPrompt, control_prompt, get_arm
from ctxft.report.figures import arm_color, finish, legend, mark, save, styled
from ctxft.report.page import render_html
from ctxft.run.run import Run
from ctxft.run.tasks import parse_task
from ctxft.statistics import cluster_interval
from ctxft.storage import (
    InputError,
    check_known,
    read_checked,
    read_json,
    read_jsonl,
    read_or_quarantine,
    sha256,
    with_checksum,
    write_json,
)
from ctxft.training.checkpoint import trainable_parameters
from ctxft.training.loss import patch_loss_forward
from ctxft.training.packing import Row, batch_by_length

REVISION = 2  # raised when the same model and passages would get other numbers
TEXTS = ("held_out", "passages", "general_held_out")
CONTROL_SEED = 0  # samples the random words, the same for every arm and seed
GIB = 2**30
LOOKS = {
    "strategy": (arm_color("cft"), "o", "strategy prompt"),
    "negative": (arm_color("neg"), "s", "negative prompt"),
    "control": (arm_color("control"), "D", "random words"),
}
PROMPT = ["prompt", "family", "kind", "tokens"]  # columns that identify a prompt
GAP = 0.8  # lines between two families in the figure


# --- losses -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A model of a run that reads passages after any prompts, in the template of the run's prompt sets."""

    run: Run
    arm: str
    seed: int
    model: PreTrainedModel

    def ids(self, prompt: ContextualPrompt | None) -> list[int]:
        """Return the token ids of a prompt in its template; none for no prompt."""
        return prompt_ids(self.run.tokenizer, prompt, self.run.template)

    def rows(self, passages: Sequence[Passage], prompts: Sequence[Sequence[int]]) -> Rows:
        """Return the passages' rows after these prompts, built when needed; refuses one that the model cannot read."""
        rows = Rows(passages, prompts, special_tokens(self.run.tokenizer))
        limit = window_of(self.model)
        if limit is not None and rows.longest > limit:
            raise InputError(
                f"a passage takes {rows.longest} tokens after its prompt, but the model reads at most {limit}: take "
                "shorter prompts."
            )
        return rows

    def random_words(self, passages: Sequence[Passage], tokens: Sequence[int]) -> list[list[int]]:
        """Return for each passage the ids of random words that take that many tokens, their template included."""
        template = self.run.template
        around = len(template.before) + len(template.after)
        return [
            self.ids(control_prompt(self.run.tokenizer, n - around, CONTROL_SEED, passage.id, template.separator))
            for passage, n in zip(passages, tokens, strict=True)
        ]

    def losses(self, passages: Sequence[Passage], prompts: Sequence[Sequence[Sequence[int]]]) -> numpy.ndarray:
        """Return the losses of passages after prompts, in one pass over all rows.

        Args:
            passages: the passages.
            prompts: for each way of prompting them, the prompt ids of each passage.

        Returns:
            Nats, summed over a passage's targets: (ways, passages).
        """
        rows = self.rows([*passages] * len(prompts), [ids for way in prompts for ids in way])
        pairs = [(row["input_ids"], row["labels"]) for row in rows]
        results = text_losses(self.model, pairs, self.run.config.evaluation.max_batch_tokens)
        return numpy.array([loss for loss, _ in results]).reshape(len(prompts), len(passages))


def open_reader(run: Run, arm: str, seed: int) -> Reader:
    """Load a model of a prepared run in float32.

    Args:
        run: the run.
        arm: "base" (seed 0), or a trained arm.
        seed: of the training.

    Raises:
        InputError: the run is not prepared or of another config, has no such arm and seed, or the arm is not trained yet.
    """
    _require_task(run, arm, seed)
    torch.set_num_threads(run.config.train.threads)
    return Reader(run, arm, seed, run.model(arm, seed))


def _require_task(run: Run, arm: str, seed: int) -> None:
    run.require_prepared()
    parse_task(f"{arm}:{seed}", [("base", 0), *run.train_tasks])


def spread_out(passages: Sequence, limit: int | None) -> list:
    """Return at most ``limit`` passages, evenly spaced over the corpus: the first ones would be of a few documents only."""
    if limit is None or limit >= len(passages):
        return list(passages)
    if limit < 1:
        raise InputError(f"at least 1 passage is needed, found {limit}.")
    return [passages[place * len(passages) // limit] for place in range(limit)]


def _texts(passages: Sequence[Passage]) -> pandas.DataFrame:
    rows = [(number, passage.document, passage.targets) for number, passage in enumerate(passages)]
    return pandas.DataFrame(rows, columns=["passage", "document", "targets"])


def prompt_losses(
    reader: Reader, prompts: Sequence[ContextualPrompt] | None = None, which: str = "held_out", limit: int | None = None
) -> pandas.DataFrame:
    """Measure the loss of passages after each prompt, without one, and after as many random words.

    Args:
        reader: the model.
        prompts: what to try; None takes all of the run's strategy set and negative set.
        which: "held_out", "general_held_out", or "passages", those of training.
        limit: at most this many passages, evenly spaced; None takes all.

    Returns:
        A row for each prompt and passage, then for random words of each length (kind "control") and passage: prompt,
        family, kind, tokens (with the template); passage (a number), document, targets (tokens); loss, none (without a
        prompt) and control (after as many random words, sampled for each passage; NaN for random words), in nats summed
        over targets.

    Raises:
        InputError: no such passages, or a prompt with its passage is longer than the model reads.

    Example:
        >>> prompt_changes(prompt_losses(open_reader(run, "cft", 0)), ["kind"])  # doctest: +SKIP
    """
    run = reader.run
    available: list[Passage] = run.text(check_known(which, TEXTS, "kind of passages"))
    if not available:
        raise InputError(f"{run.folder / which}.jsonl holds no passage: raise corpus.held_out, or read others.")
    passages = spread_out(available, limit)
    tried = list(prompts or [prompt for prompt_set in run.prompt_sets for prompt in prompt_set.prompts])
    ids = [reader.ids(prompt) for prompt in tried]
    lengths = sorted({len(one) for one in ids})
    ways = [[one] * len(passages) for one in ([], *ids)]
    ways += [reader.random_words(passages, [length] * len(passages)) for length in lengths]
    none, *losses = reader.losses(passages, ways)
    words = dict(zip(lengths, losses[len(ids) :], strict=True))
    controls = [ContextualPrompt(f"control-{length}", "control", "", "control") for length in lengths]
    parts = []
    for prompt, size, loss in zip([*tried, *controls], [*map(len, ids), *lengths], losses, strict=True):
        names = dict(zip(PROMPT, (prompt.id, prompt.family, prompt.kind, size), strict=True))
        control = math.nan if prompt.kind == "control" else words[size]
        parts.append(_texts(passages).assign(loss=loss, none=none, control=control, **names))
    return pandas.concat(parts, ignore_index=True)


def text_stage(arm: str) -> str | None:
    """Return the stage in which an arm reads passages, itself an arm; None for arms that read none.

    Example:
        >>> text_stage("cft-ift"), text_stage("ift"), text_stage("base")
        ('cft', None, None)
    """
    return get_arm(arm).stages[0] if get_arm(arm).reads_text else None


def read_in_training(run: Run, arm: str, seed: int) -> list[tuple[Passage, ContextualPrompt | None]]:
    """Return the passages that a training reached (few steps do not reach all), each with the prompt prepended there.

    A prompt's kind is that of the set with its text; else it is "control" in a control arm, and "written" in another. Text
    that follows a passage, as in arm reading, is no prompt.

    Raises:
        InputError: the arm reads no text.
    """
    stage = text_stage(arm)
    if stage is None:
        raise InputError(f"arm '{arm}' reads no text in training: choose an arm that does, such as cft.")
    folder = run.arm_folder(stage, seed)
    kinds = {prompt.text: prompt.kind for prompt_set in run.prompt_sets for prompt in prompt_set.prompts}
    other = "control" if get_arm(stage).control else "written"
    rows = [] if get_arm(stage).after else [row for _, row in read_jsonl(folder / "prompts.jsonl")]
    prompts = {
        row["passage"]: ContextualPrompt(row["prompt"], row["family"], row["text"], kinds.get(row["text"], other))
        for row in rows
    }
    reached = {place for _, step in read_jsonl(folder / "log.jsonl") for place in step["passages"]}
    return [(one, prompts.get(one.id)) for place, one in enumerate(run.passages) if place in reached]


def training_losses(reader: Reader, limit: int | None = None) -> pandas.DataFrame:
    """Measure how well a trained model knows the passages that it read, each after the very prompt that it read there.

    Different prompts precede different passages here, so only what is larger than the intervals (95 %, over documents) is
    evidence about a prompt. Of an arm with a second stage it is the text stage whose passages and prompts are taken.

    Args:
        reader: the model; of an arm that reads no text (base, ift) there is nothing to measure.
        limit: at most this many passages, evenly spaced; None takes all.

    Returns:
        A row for each passage: prompt, family, kind ("none" where a passage was read without a prompt); passage, document,
        targets; loss.

    Raises:
        InputError: the arm reads no text.

    Example:
        >>> training_losses(open_reader(run, "cft", 0)).groupby("family")["loss"].sum()  # doctest: +SKIP
    """
    pairs = spread_out(read_in_training(reader.run, reader.arm, reader.seed), limit)
    passages, prompts = [passage for passage, _ in pairs], [prompt for _, prompt in pairs]
    known = {prompt: reader.ids(prompt) for prompt in set(prompts)}
    (losses,) = reader.losses(passages, [[known[prompt] for prompt in prompts]])
    names = [(prompt.id, prompt.family, prompt.kind) if prompt else ("none",) * 3 for prompt in prompts]
    return pandas.concat([pandas.DataFrame(names, columns=PROMPT[:3]), _texts(passages).assign(loss=losses)], axis=1)


def prompt_changes(losses: pandas.DataFrame, by: Sequence[str]) -> pandas.DataFrame:
    """Return what prompts change in the loss, group by group: the mean over prompts, passage by passage, then over tokens.

    A prompt has two differences: to no prompt at all, and to as many tokens of random words. The first may come from any
    words in front; the second comes from the meaning of the prompt.

    Args:
        losses: from ``prompt_losses``.
        by: columns of it, such as ["family", "kind"].

    Returns:
        The columns ``by``; prompts (how many); loss (nats a token); to_none and to_control: (difference, low, high) in nats a
        token, with a 95 % interval over documents, whose passages are kept together; NaN where there is nothing.
    """
    rows = []
    for names, part in losses.groupby(list(by), sort=False):
        means = part.groupby("passage").agg({name: "mean" for name in ("loss", "none", "control")})
        means = means.assign(**part.groupby("passage")[["targets", "document"]].first())
        rows.append(
            dict(zip(by, cast(tuple, names), strict=True))
            | {"prompts": part["prompt"].nunique(), "loss": _mean(means)[0]}
            | {f"to_{name}": _mean(means, name) for name in ("none", "control")}
        )
    return pandas.DataFrame(rows)


def _mean(passages: pandas.DataFrame, minus: str | None = None) -> tuple[float, float, float]:
    """Return the mean loss over tokens, or that minus another column, with the interval over documents."""
    sums = list(passages["loss"] - (passages[minus] if minus else 0))
    if any(map(math.isnan, sums)):
        return math.nan, math.nan, math.nan
    return cluster_interval(sums, list(passages["targets"]), list(passages["document"]))


# --- gradients --------------------------------------------------------------------------------------------------------


def enable_grad(model: PreTrainedModel | PeftModel, loss: str = "chunked") -> int:
    """Make the weights that its training updates require a gradient, and no other; returns how many these are.

    Args:
        model: as from ``ctxft.models.load_model``, in evaluation mode; it is changed.
        loss: as for ``ctxft.training.loss.patch_loss_forward``.
    """
    if isinstance(model, PeftModel):
        model.set_requires_grad(model.active_adapters)
    else:
        model.requires_grad_(True)
    patch_loss_forward(cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model), loss)
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


def require_memory(vectors: int, weights: int, memory: float) -> None:
    """Raise InputError if gradients of these weights (4 bytes each) would take more than ``memory`` GiB."""
    needed = 4 * vectors * weights / GIB
    if needed > memory:
        raise InputError(
            f"{vectors} gradients of {weights:,} weights take {needed:.1f} GiB, more than the {memory:g} GiB allowed: allow "
            "more, take an arm trained with LoRA, or leave the gradients out (0 passages)."
        )


def mean_gradient(
    model: PreTrainedModel | PeftModel, rows: Sequence[Row], max_batch_tokens: int | None = None
) -> torch.Tensor:
    """Return the gradient of the mean loss of all targets of the rows, flattened, on the CPU.

    Rows are sorted by falling length, so the same rows in any order give the same vector bit for bit.

    Args:
        model: prepared by ``enable_grad``.
        rows: ``input_ids`` and ``labels`` each.
        max_batch_tokens: padded tokens in one batch, as for ``ctxft.evaluation.scoring.text_losses``.

    Returns:
        (weights,) in float32, in the order of the model's parameters.

    Example:
        >>> mean_gradient(model, [{"input_ids": [1, 5, 9], "labels": [-100, 5, 9]}]).shape  # doctest: +SKIP
        torch.Size([60528])
    """
    ordered = sorted(rows, key=lambda row: (-len(row["input_ids"]), row["input_ids"]))
    targets = sum(label != IGNORE_INDEX for row in ordered for label in row["labels"][1:])
    model.zero_grad(set_to_none=True)
    limit = batch_tokens(cast(PreTrainedModel, model), max_batch_tokens)
    for numbers in batch_by_length([len(row["input_ids"]) for row in ordered], limit):
        batch = [ordered[number] for number in numbers]
        ids = pad([row["input_ids"] for row in batch], 0, model.device)
        mask = pad([[1] * len(row["input_ids"]) for row in batch], 0, model.device)
        # the hidden state at t predicts the label at t + 1, so nothing is predicted in the last column
        labels = pad([[*row["labels"][1:], IGNORE_INDEX] for row in batch], IGNORE_INDEX, model.device).flatten()
        places = (labels != IGNORE_INDEX).nonzero()[:, 0]
        options = {"target_positions": places, "targets": labels[places]}
        (model(input_ids=ids, attention_mask=mask, **options).loss / targets).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable_parameters(model).values()]
    gradient = torch.cat([grad.flatten().float().cpu() for grad in grads])
    model.zero_grad(set_to_none=True)
    return gradient


def cosines(vectors: Iterable[torch.Tensor]) -> tuple[list[list[float]], list[float]]:
    """Return the cosine between every two vectors, and their norms.

    Args:
        vectors: (weights,) each.

    Raises:
        InputError: a vector is 0 everywhere, and so has no direction.

    Example:
        >>> cosines([torch.tensor([3.0, 4.0]), torch.tensor([4.0, -3.0])])
        ([[1.0, 0.0], [0.0, 1.0]], [5.0, 5.0])
    """
    vectors = list(vectors)
    products = torch.tensor([[torch.dot(a, b).item() for b in vectors] for a in vectors], dtype=torch.float64)
    norms = products.diagonal().sqrt()
    if not norms.all():
        raise InputError(
            f"gradient {int((norms == 0).nonzero()[0, 0])} is 0 everywhere: the model cannot learn from these rows."
        )
    return (products / (norms[:, None] * norms)).clamp(-1, 1).tolist(), norms.tolist()


def gradient_similarity(reader: Reader, passages: int = 64, memory: float = 4.0) -> dict:
    """Compare the gradients of the same passages after different prompts: a cosine of 1 teaches the same thing.

    The gradient is that of the mean target loss, of all weights that training updates (a LoRA arm's adapter, else all), in
    float32 and without dropout. The passages are those of training, evenly spaced; passage n follows prompt n of a family,
    modulo their number. Random words have the tokens of a prompt of the strategy set, taken in turn. In memory are the
    model, its gradient, and a vector of 4 bytes a weight for each condition (the families, none, negative, control).

    Args:
        reader: the model.
        passages: how many.
        memory: GiB that the vectors may take.

    Returns:
        passages, documents, tokens, weights (how many), conditions (records of family and kind), cosine (a list of rows,
        in their order) and norms.

    Raises:
        InputError: the vectors would take more than ``memory``, or a gradient is 0 everywhere.

    Example:
        >>> gradient_similarity(open_reader(run, "cft", 0))["cosine"][0][:2]  # doctest: +SKIP
        [1.0, 0.993]
    """
    run, chosen = reader.run, spread_out(reader.run.passages, passages)

    def in_turn(prompts: Sequence[ContextualPrompt]) -> list[list[int]]:
        ids = [reader.ids(prompt) for prompt in prompts]
        return [ids[place % len(ids)] for place in range(len(chosen))]

    strategies, negative = run.prompt_sets
    conditions = {("none", "none"): [[]] * len(chosen)}
    for family in strategies.families:
        conditions[family, "strategy"] = in_turn([p for p in strategies.prompts if p.family == family])
    conditions["negative", "negative"] = in_turn(negative.prompts)
    lengths = [len(ids) for ids in in_turn(strategies.prompts)]
    conditions["control", "control"] = reader.random_words(chosen, lengths)
    weights = enable_grad(reader.model, run.config.train.loss)
    require_memory(len(conditions), weights, memory)
    rows = [list(reader.rows(chosen, prompts)) for prompts in conditions.values()]
    matrix, norms = cosines([mean_gradient(reader.model, x, run.config.evaluation.max_batch_tokens) for x in rows])
    names = [{"family": family, "kind": kind} for family, kind in conditions]
    return _size(_texts(chosen)) | {"conditions": names, "weights": weights, "cosine": matrix, "norms": norms}


def _size(losses: pandas.DataFrame) -> dict:
    texts = losses.drop_duplicates("passage")
    sizes = (len(texts), texts["document"].nunique(), sum(texts["targets"].tolist()))
    return dict(zip(("passages", "documents", "tokens"), sizes, strict=True))


# --- all of it --------------------------------------------------------------------------------------------------------


def attribution_file(run: Run, arm: str, seed: int) -> Path:
    """Return the file of a model's attribution."""
    return run.folder / "attribution" / f"{arm}-seed-{seed}.json"


def attribute(run: Run, arm: str, seed: int, limit: int | None = 256, passages: int = 64) -> dict:
    """Measure what prompts do to a model, once, and write it to attribution/<arm>-seed-<n>.json of the run.

    What is there is kept while model, prompt sets, passages and the two numbers are the same.

    Args:
        run: a prepared run.
        arm, seed: of the model, see ``open_reader``.
        limit: passages whose losses are taken, of the held-out ones and of those of training; None takes all.
        passages: passages whose gradients are compared; 0 leaves gradients out.

    Returns:
        arm, seed, model_hash, prompt_sets (their hashes), hashes (of what was read), key; available (passages there are, held
        out and read in training); losses, the rows of ``prompt_losses``, and training, those of ``training_losses`` (None
        for arms that read no text), both as ``pandas.DataFrame(**rows)`` takes them; gradients, see ``gradient_similarity``
        (or None).

    Raises:
        InputError: as these.

    Example:
        >>> family_table(attribute(run, "cft", 0))  # doctest: +SKIP
    """
    _require_task(run, arm, seed)
    path, hashes = attribution_file(run, arm, seed), run.require_prepared().hashes
    sets = {name: prompt_set.hash for name, prompt_set in run.prompt_sets._asdict().items()}
    origin = {"arm": arm, "seed": seed, "model_hash": run.model_hash(arm, seed), "prompt_sets": sets, "hashes": hashes}
    key = sha256([REVISION, origin, limit, passages, run.config.train.loss])
    if (there := read_or_quarantine(path)) and there.get("key") == key:
        return there
    reader, learned = open_reader(run, arm, seed), text_stage(arm)
    results = {  # gradients first: what does not fit in memory is reported before hours of reading
        "gradients": gradient_similarity(reader, passages) if passages else None,
        "losses": _records(prompt_losses(reader, limit=limit)),
        "training": _records(training_losses(reader, limit)) if learned else None,
        "available": {
            "held-out": len(run.text("held_out")),
            "training": len(read_in_training(run, arm, seed)) if learned else 0,
        },
    }
    write_json(path, with_checksum(origin | {"key": key} | results))
    return read_json(path)


def _records(losses: pandas.DataFrame) -> dict:
    values = losses.astype(object).where(losses.notna(), None)  # JSON has no NaN
    return {"columns": list(losses.columns), "data": values.to_numpy().tolist()}


# --- tables and the figure --------------------------------------------------------------------------------------------


def _with_cells(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the differences of ``prompt_changes`` the form of cells: the value, then its interval, "" where there is nothing."""
    names = {"to_none": ("minus no prompt", "95 % interval")}
    names["to_control"] = ("minus as many words", "95 % interval of that")
    cells = {
        column: [cell[place] for cell in map(_cells, table[change])]
        for change, columns in names.items()
        for place, column in enumerate(columns)
    }
    return table.drop(columns=["loss", *names]).assign(**cells)


def _cells(values: tuple[float, float, float], form: str = "+.4f") -> tuple[str, str]:
    value, low, high = ("" if math.isnan(one) else format(one, form) for one in values)
    return value, f"{low} to {high}" if low else ""


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
    losses = pandas.DataFrame(**attribution["losses"])
    kinds, families = (
        prompt_changes(losses.assign(family="(all)"), ["family", "kind"]),
        prompt_changes(losses, ["family", "kind"]),
    )
    return _with_cells(pandas.concat([kinds, families.query("kind != 'control'")], ignore_index=True))


def training_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for each family: the loss of the passages of training, after the prompts that they were read with.

    Columns: family, kind, passages, documents, tokens, loss (nats a token) and its 95 % interval.
    """
    losses, rows = pandas.DataFrame(**attribution["training"]), []
    for names, part in losses.groupby(["family", "kind"], sort=False):
        cells = _cells(_mean(part), ".4f")
        rows.append((*cast(tuple, names), *_size(part).values(), *cells))
    columns = ["family", "kind", "passages", "documents", "tokens", "loss", "its 95 % interval"]
    return pandas.DataFrame(rows, columns=columns)


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
    panels = figure.subplots(1, 2, sharey=True)
    places = _draw(panels, families, lines)
    for axes, title in zip(panels, ("minus no prompt", "minus as many random words"), strict=True):
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


def _draw(panels: Sequence[Axes], families: dict, lines: float) -> dict[str, float]:
    """Draw the families from the top, with a band over every second; returns where each one's name belongs."""
    places, y = {}, lines - 1
    for number, (family, rows) in enumerate(families.items()):
        places[family] = y - (len(rows) - 1) / 2
        for axes, key in zip(panels, ("to_none", "to_control"), strict=True):
            if number % 2:
                axes.axhspan(y - len(rows) + 1 - GAP / 2 - 0.5, y + GAP / 2 + 0.5, color="#f3f3f3", zorder=0)
            for line, row in enumerate(rows):
                if not math.isnan(row[key][0]):
                    mark(axes, y - line, row[key], LOOKS[row["kind"]])
        y -= len(rows) + GAP
    return places


def report_sections(folder: str | os.PathLike) -> list[Markup]:
    """Return the section of the report (``write_report(..., more=...)``) that shows a run's attributions; none where it has none.

    Its figures are also written into the run folder.
    """
    parts = []
    for path in sorted((Path(folder) / "attribution").glob("*.json")):
        attribution, figure = read_checked(path), f"report-prompts-{path.stem}"
        tables = {"family by family": family_table(attribution), "prompt by prompt": prompt_table(attribution)}
        tables |= {"cosines of gradients": gradient_table(attribution)} if attribution["gradients"] else {}
        title = f"{attribution['arm']}, seed {attribution['seed']}"
        parts.append((title, save(prompt_figure(attribution), figure, folder), tables))
    return [render_html("attribution.html", parts=parts)] if parts else []


def attribution_text(attribution: dict) -> str:
    """Return the tables of an attribution as text, with what they are about."""
    losses, training = pandas.DataFrame(**attribution["losses"]), attribution["training"]
    none = losses["none"].sum() / losses["targets"].sum()

    def size(rows: pandas.DataFrame, which: str) -> str:
        words = "{passages} of {available} {which} passages, {documents} documents, {tokens} tokens"
        return words.format(**_size(rows), which=which, available=attribution["available"][which])

    words = (
        f"{attribution['arm']}, seed {attribution['seed']}: {size(losses, 'held-out')}. Without a prompt the loss is "
        f"{none:.4f} nats a token; below 0 a prompt helps. Intervals are over documents and not corrected for their number."
    )
    parts = [textwrap.fill(words, 118)]
    parts += [table(attribution).to_string(index=False) for table in (family_table, prompt_table)]
    if training:
        parts.append(f"After the prompts of training: {size(pandas.DataFrame(**training), 'training')}")
        parts.append(training_table(attribution).to_string(index=False))
    if attribution["gradients"]:
        words = "Gradients of {passages} training passages ({weights} weights): norm and cosines"
        parts += [words.format(**attribution["gradients"]), gradient_table(attribution).to_string(index=False)]
    return "\n\n".join(parts)
