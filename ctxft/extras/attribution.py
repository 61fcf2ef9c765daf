"""Measure what each prompt does to a model's loss and gradient: one table of losses, prompt by passage, then ``groupby``.

    held-out passages      without a prompt, after every prompt of the run's sets, after as many random words
    training passages      after the very prompt that each was read with
    gradients              of the same passages after each family's prompts: do the families teach different things?

attribute(run, arm, seed) -> attribution/<arm>-seed-<n>.json, and the tables and the figure of such a file
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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

REVISION = 1  # raised when the same model and passages would get other numbers
TEXTS = ("held_out", "passages", "general_held_out")
CONTROL_SEED = 0  # samples the random words, the same for every arm and seed
GIB = 2**30
LOOKS = {
    "strategy": (arm_color("cft"), "o", "strategy prompt"),
    "negative": (arm_color("neg"), "s", "negative prompt"),
    "control": (arm_color("control"), "D", "random words"),
}
CHANGES = ("minus no prompt", "95 % interval", "minus as many words", "95 % interval of that")
GAP = 0.8  # lines between two families in the figure


# --- losses -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A model of a run that reads passages after any prompts, in the template of the run's prompt sets."""

    run: Run
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

    def losses(
        self, passages: Sequence[Passage], prompts: Sequence[Sequence[Sequence[int]]]
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return the losses of passages after prompts, in one pass over all rows.

        Args:
            passages: the passages.
            prompts: for each way of prompting them, the prompt ids of each passage.

        Returns:
            (losses in nats, summed over targets, ways x passages; targets of each passage, the same in every way).
        """
        rows = self.rows([*passages] * len(prompts), [ids for way in prompts for ids in way])
        pairs = [(row["input_ids"], row["labels"]) for row in rows]
        results = text_losses(self.model, pairs, self.run.config.evaluation.max_batch_tokens)
        sums = numpy.array([loss for loss, _ in results]).reshape(len(prompts), len(passages))
        return sums, numpy.array([count for _, count in results[: len(passages)]])


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
    return Reader(run, run.model(arm, seed))


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


def _mean(name: str, sums: Sequence[float], frame: pandas.DataFrame) -> dict:
    """Return a mean over tokens with its interval over documents; ends are None where there is one document only."""
    value, *ends = cluster_interval(list(sums), list(frame["targets"]), list(frame["document"]))
    low, high = (None if math.isnan(end) else end for end in ends)
    return {name: value, "low": low, "high": high}


def _frame_of(passages: Sequence[Passage], targets: Sequence[int]) -> pandas.DataFrame:
    documents = [passage.document for passage in passages]
    return pandas.DataFrame({"passage": range(len(passages)), "document": documents, "targets": targets})


def _size(frame: pandas.DataFrame) -> dict:
    tokens = int(frame["targets"].sum())
    return {"passages": len(frame), "documents": int(frame["document"].nunique()), "tokens": tokens}


def _named(prompt: ContextualPrompt) -> dict:
    return {"prompt": prompt.id, "family": prompt.family, "kind": prompt.kind, "text": prompt.text}


def prompt_losses(
    run: Run,
    arm: str,
    seed: int,
    prompts: Sequence[ContextualPrompt] | None = None,
    which: str = "held_out",
    limit: int | None = None,
    reader: Reader | None = None,
) -> dict:
    """Measure what each prompt changes in the loss of the passages that follow it.

    All is paired by passage. The intervals (95 %) are over documents, whose passages are kept together. A prompt has two
    differences: to no prompt at all, and to as many tokens of random words, sampled for each passage. The first may come
    from any words in front; the second comes from what the prompt says.

    Args:
        run: a prepared run.
        arm, seed: of the model, see ``open_reader``.
        prompts: what to try; None takes all of the run's strategy set and negative set.
        which: "held_out", "general_held_out", or "passages", those of training.
        limit: at most this many passages, evenly spaced; None takes all.
        reader: a model that is open already.

    Returns:
        which, passages, documents, tokens (targets), available (passages there are), loss (nats a token without a prompt);
        kinds, families and prompts: for all prompts of a kind together, for those of a family, and for each one, then for
        the random words of each length, a record of what it is about (prompt: id, family, kind, text, tokens with the
        template; text is "" for random words), loss, and to_none and to_control, each a dict of difference, low and high
        in nats a token (to_control is None for random words; ends are None for one document).

    Raises:
        InputError: as ``open_reader``; no such passages; or a prompt with its passage is longer than the model reads.

    Example:
        >>> prompt_losses(run, "cft", 0)["prompts"][0]["to_none"]  # doctest: +SKIP
        {'difference': -0.031, 'low': -0.042, 'high': -0.02}
    """
    reader = reader or open_reader(run, arm, seed)
    available: list[Passage] = getattr(run, check_known(which, TEXTS, "kind of passages"))
    if not available:
        raise InputError(f"{run.folder / which}.jsonl holds no passage: raise corpus.held_out, or read others.")
    passages = spread_out(available, limit)
    tried = prompts or [prompt for prompt_set in run.prompt_sets for prompt in prompt_set.prompts]
    ids = [reader.ids(prompt) for prompt in tried]
    lengths = sorted({len(one) for one in ids})
    ways = [[one] * len(passages) for one in ([], *ids)]
    ways += [reader.random_words(passages, [length] * len(passages)) for length in lengths]
    (none, *losses), targets = reader.losses(passages, ways)
    words = dict(zip(lengths, losses[len(ids) :], strict=True))
    controls = [ContextualPrompt(f"control-{length}", "control", "", "control") for length in lengths]
    base, parts = _frame_of(passages, targets).assign(none=none), []
    for number, (prompt, loss) in enumerate(zip([*tried, *controls], losses, strict=True)):
        control = words[len(ids[number])] if number < len(ids) else math.nan
        names = {"number": number, "family": prompt.family, "kind": prompt.kind}
        parts.append(base.assign(loss=loss, control=control, **names))
    frame = pandas.concat(parts)
    tokens = [*map(len, ids), *lengths]
    return {
        "which": which,
        **_size(base),
        "available": len(available),
        "loss": float(none.sum() / targets.sum()),
        "kinds": [{"kind": kind, **_changes(part)} for kind, part in frame.groupby("kind", sort=False)],
        "families": [
            {"family": family, "kind": kind, **_changes(part)}
            for (family, kind), part in frame.groupby(["family", "kind"], sort=False)
        ],
        "prompts": [
            {**_named(prompt), "tokens": tokens[number], **_changes(frame[frame["number"] == number])}
            for number, prompt in enumerate([*tried, *controls])
        ],
    }


def _changes(part: pandas.DataFrame) -> dict:
    """Return what some prompts change in the loss of a passage: the mean over them, passage by passage, then over tokens."""
    means = part.groupby("passage").agg(
        {"loss": "mean", "none": "first", "control": "mean", "targets": "first", "document": "first"}
    )
    result = {"prompts": int(part["number"].nunique()), "loss": float(means["loss"].sum() / means["targets"].sum())}
    result["to_none"] = _mean("difference", means["loss"] - means["none"], means)
    paired = not means["control"].isna().any()
    result["to_control"] = _mean("difference", means["loss"] - means["control"], means) if paired else None
    return result


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


def training_losses(run: Run, arm: str, seed: int, limit: int | None = None, reader: Reader | None = None) -> dict:
    """Measure how well a trained model knows the passages that it read, each after the very prompt that it read there.

    Different prompts precede different passages here, so only what is larger than the intervals (95 %, over documents) is
    evidence about a prompt. Of an arm with a second stage it is the text stage whose passages and prompts are taken.

    Args:
        run, arm, seed, limit, reader: as for ``prompt_losses``; an arm that reads no text (base, ift) has nothing to measure.

    Returns:
        passages, documents, tokens, available (passages that were read), loss, low and high (nats a token), and families and
        prompts: records of family, kind, (prompt, text), passages, documents, tokens, loss, low and high. Passages without
        a prompt have the family and kind "none". Prompts of one passage only have no record; read_once counts them.

    Raises:
        InputError: as ``open_reader``, or the arm reads no text.

    Example:
        >>> training_losses(run, "cft", 0)["families"][0]["loss"]  # doctest: +SKIP
        1.47
    """
    reader = reader or open_reader(run, arm, seed)
    available = read_in_training(run, arm, seed)
    passages, prompts = zip(*spread_out(available, limit), strict=True)
    known = {prompt: reader.ids(prompt) for prompt in set(prompts)}
    (losses,), targets = reader.losses(passages, [[known[prompt] for prompt in prompts]])
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    frame = _frame_of(passages, targets).assign(loss=losses, number=[numbers[prompt] for prompt in prompts])
    frame["family"], frame["kind"] = zip(*((p.family, p.kind) if p else ("none", "none") for p in prompts), strict=True)

    def record(part: pandas.DataFrame) -> dict:
        return _size(part) | _mean("loss", part["loss"], part)

    each = [(prompt, frame[frame["number"] == number]) for prompt, number in numbers.items() if prompt]
    return {
        **record(frame),
        "available": len(available),
        "families": [
            {"family": family, "kind": kind, **record(part)}
            for (family, kind), part in frame.groupby(["family", "kind"], sort=False)
        ],
        "prompts": [_named(prompt) | record(part) for prompt, part in each if len(part) > 1],
        "read_once": sum(len(part) == 1 for _, part in each),
    }


# --- gradients --------------------------------------------------------------------------------------------------------


def enable_grad(model: PreTrainedModel | PeftModel, loss: str = "chunked") -> int:
    """Make the weights that its training updates require a gradient, and no other; returns how many these are.

    Args:
        model: as from ``ctxft.models.load_model``, in evaluation mode; it is changed.
        loss: as for ``ctxft.training.loss.patch_loss_forward``.
    """
    if isinstance(model, PeftModel):
        model.set_requires_grad(model.active_adapters)
        patch_loss_forward(model.get_base_model(), loss)
    else:
        patch_loss_forward(model.requires_grad_(True), loss)
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
    model: PreTrainedModel | PeftModel, rows: Sequence[Row], token_budget: int | None = None
) -> torch.Tensor:
    """Return the gradient of the mean loss of all targets of the rows, flattened, on the CPU.

    Rows are sorted by falling length, so the same rows in any order give the same vector bit for bit.

    Args:
        model: prepared by ``enable_grad``.
        rows: ``input_ids`` and ``labels`` each.
        token_budget: padded tokens in one batch, as for ``ctxft.evaluation.scoring.text_losses``.

    Returns:
        (weights,) in float32, in the order of the model's parameters.

    Example:
        >>> mean_gradient(model, [{"input_ids": [1, 5, 9], "labels": [-100, 5, 9]}]).shape  # doctest: +SKIP
        torch.Size([60528])
    """
    ordered = sorted(rows, key=lambda row: (-len(row["input_ids"]), row["input_ids"]))
    targets = sum(label != IGNORE_INDEX for row in ordered for label in row["labels"][1:])
    model.zero_grad(set_to_none=True)
    for numbers in batch_by_length([len(row["input_ids"]) for row in ordered], batch_tokens(model, token_budget)):
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


def gradient_similarity(
    run: Run, arm: str, seed: int, passages: int = 64, memory: float = 4.0, reader: Reader | None = None
) -> dict:
    """Compare the gradients of the same passages after different prompts: a cosine of 1 teaches the same thing.

    The gradient is that of the mean target loss, of all weights that training updates (a LoRA arm's adapter, else all), in
    float32 and without dropout. The passages are those of training, evenly spaced; passage n follows prompt n of a family,
    modulo their number. Random words have the tokens of a prompt of the strategy set, taken in turn. In memory are the
    model, its gradient, and a vector of 4 bytes a weight for each condition (the families, none, negative, control).

    Args:
        run, arm, seed, reader: as for ``prompt_losses``.
        passages: how many.
        memory: GiB that the vectors may take.

    Returns:
        passages, documents, tokens, weights (how many), conditions (records of family and kind), cosine (a list of rows,
        in their order) and norms.

    Raises:
        InputError: as ``open_reader``; the vectors would take more than ``memory``; or a gradient is 0 everywhere.

    Example:
        >>> gradient_similarity(run, "cft", 0)["cosine"][0][:2]  # doctest: +SKIP
        [1.0, 0.993]
    """
    reader = reader or open_reader(run, arm, seed)
    chosen = spread_out(run.passages, passages)

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
    vectors, budget = [], run.config.evaluation.max_batch_tokens
    for prompts in conditions.values():
        rows = reader.rows(chosen, prompts)
        vectors.append(mean_gradient(reader.model, list(rows), budget))
    matrix, norms = cosines(vectors)
    names = [{"family": family, "kind": kind} for family, kind in conditions]
    return _size(_frame_of(chosen, rows.targets)) | {
        "conditions": names,
        "weights": weights,
        "cosine": matrix,
        "norms": norms,
    }


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
        arm, seed, model_hash, books (hashes of the prompt sets) and hashes (of what was read), key; prompts, see
        ``prompt_losses``; training, see ``training_losses`` (None for arms that read no text); gradients, see
        ``gradient_similarity`` (or None).

    Raises:
        InputError: as these.

    Example:
        >>> attribute(run, "cft", 0)["prompts"]["passages"]  # doctest: +SKIP
        256
    """
    _require_task(run, arm, seed)
    path, hashes = attribution_file(run, arm, seed), run.require_prepared().hashes
    books = {name: prompt_set.hash for name, prompt_set in run.prompt_sets._asdict().items()}
    origin = {"arm": arm, "seed": seed, "model_hash": run.model_hash(arm, seed), "books": books, "hashes": hashes}
    key = sha256([REVISION, origin, limit, passages, run.config.train.loss])
    if (there := read_or_quarantine(path)) and there.get("key") == key:
        return there
    reader = open_reader(run, arm, seed)
    results = {  # gradients first: what does not fit in memory is reported before hours of reading
        "gradients": gradient_similarity(run, arm, seed, passages, reader=reader) if passages else None,
        "prompts": prompt_losses(run, arm, seed, limit=limit, reader=reader),
        "training": training_losses(run, arm, seed, limit, reader) if text_stage(arm) else None,
    }
    write_json(path, with_checksum(origin | {"key": key} | results))
    return read_json(path)


# --- tables and the figure --------------------------------------------------------------------------------------------


def prompt_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for each prompt: what it changes in the loss of the passages after it.

    Args:
        attribution: from ``attribute``.

    Returns:
        Columns prompt, family, kind, tokens, "minus no prompt" and "minus as many words" (random ones), both in nats a
        token with a 95 % interval over documents; below 0 the prompt helps. "" where there is nothing.
    """
    rows = [
        (row["prompt"], row["family"], row["kind"], row["tokens"], *_cells(row["to_none"]), *_cells(row["to_control"]))
        for row in attribution["prompts"]["prompts"]
    ]
    return pandas.DataFrame(rows, columns=["prompt", "family", "kind", "tokens", *CHANGES])


def family_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for all prompts of a kind, then for each family: columns as in ``prompt_table``, and prompts, their number.

    The mean over prompts is taken passage by passage, before the interval over documents.
    """
    losses = attribution["prompts"]
    rows = [
        (row.get("family", "(all)"), row["kind"], row["prompts"], *_cells(row["to_none"]), *_cells(row["to_control"]))
        for row in (*losses["kinds"], *(row for row in losses["families"] if row["kind"] != "control"))
    ]
    return pandas.DataFrame(rows, columns=["family", "kind", "prompts", *CHANGES])


def _cells(change: dict | None) -> tuple[str, str]:
    if change is None:
        return "", ""
    ends = "" if change["low"] is None else f"{change['low']:+.4f} to {change['high']:+.4f}"
    return f"{change['difference']:+.4f}", ends


def training_table(attribution: dict) -> pandas.DataFrame:
    """Return a row for each family: the loss of the passages of training, after the prompts that they were read with.

    Columns: family, kind, passages, documents, tokens, loss (nats a token) and its 95 % interval.
    """
    rows = [
        [row[key] for key in ("family", "kind", "passages", "documents", "tokens")]
        + [f"{row['loss']:.4f}", "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"]
        for row in attribution["training"]["families"]
    ]
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
    families: dict[str, list[dict]] = {}
    for row in attribution["prompts"]["prompts"]:
        families.setdefault(row["family"], []).append(row)
    lines = len(attribution["prompts"]["prompts"]) + GAP * (len(families) - 1)
    figure = Figure(figsize=(7.3, 1.3 + 0.15 * lines))
    panels = figure.subplots(1, 2, sharey=True)
    places = _draw(panels, families, lines)
    for axes, title in zip(panels, ("minus no prompt", "minus as many random words"), strict=True):
        finish(axes, list(places.values()), list(places), lines)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("nats a token, 95 % intervals")
    kinds = {row["kind"] for rows in families.values() for row in rows}
    legend(figure, [look for kind, look in LOOKS.items() if kind in kinds])
    changes = (
        f"{row['family']} ({row['kind']}) {row['to_none']['difference']:+.3f}"
        for row in attribution["prompts"]["families"]
    )
    figure.set_label(
        f"What prompts change in the loss of held-out passages, nats a token minus no prompt, by family: {', '.join(changes)}."
    )
    return figure


def _draw(panels: Sequence[Axes], families: dict[str, list[dict]], lines: float) -> dict[str, float]:
    """Draw the families from the top, with a band over every second; returns where each one's name belongs."""
    places, y = {}, lines - 1
    for number, (family, rows) in enumerate(families.items()):
        places[family] = y - (len(rows) - 1) / 2
        for axes, key in zip(panels, ("to_none", "to_control"), strict=True):
            if number % 2:
                axes.axhspan(y - len(rows) + 1 - GAP / 2 - 0.5, y + GAP / 2 + 0.5, color="#f3f3f3", zorder=0)
            for line, row in enumerate(rows):
                if change := row[key]:
                    values = (change["difference"], change["low"], change["high"])
                    mark(axes, y - line, values, LOOKS[row["kind"]])
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
    losses, training = attribution["prompts"], attribution["training"]
    size = "{passages} of {available} {which} passages, {documents} documents, {tokens} tokens"
    words = (
        f"{attribution['arm']}, seed {attribution['seed']}: {size.format(**losses | {'which': 'held-out'})}. Without a prompt "
        f"the loss is {losses['loss']:.4f} nats a token; below 0 a prompt helps. Intervals are over documents and not "
        f"corrected for their number."
    )
    parts = [textwrap.fill(words, 118)]
    parts += [table(attribution).to_string(index=False) for table in (family_table, prompt_table)]
    if training:
        words = f"After the prompts of training: {size.format(**training | {'which': 'training'})}"
        parts += [words, training_table(attribution).to_string(index=False)]
    if attribution["gradients"]:
        words = "Gradients of {passages} training passages ({weights} weights): norm and cosines"
        parts += [words.format(**attribution["gradients"]), gradient_table(attribution).to_string(index=False)]
    return "\n\n".join(parts)
