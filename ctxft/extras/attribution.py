"""A run and one of its models flow in; what each prompt does to that model's loss and gradient flows out.

    held-out passages      without a prompt, behind every prompt of the run's sets, behind meaningless words of equal length
    passages of training   behind the very prompt that each was read with
    gradients              of the same passages behind each family's prompts: do the families teach different things?

attribute(arm, seed) -> attribution/<arm>-seed-<n>.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctxft.data.passages import Passage
from ctxft.extras.gradients import cosines, let_learn, mean_gradient, require_memory
from ctxft.extras.readers import (
    Paired,
    Reader,
    mean_over,
    open_reader,
    read_in_training,
    require_task,
    size_of,
    spread_out,
    text_stage,
)
from ctxft.prompts import ContextualPrompt
from ctxft.run.run import Run
from ctxft.storage import (
    InputError,
    check_known,
    read_json,
    read_or_quarantine,
    sha256,
    with_checksum,
    write_json,
)

REVISION = 1  # raised when the same model and passages would get other numbers
TEXTS = ("held_out", "passages", "general_held_out")


# --- held-out passages ------------------------------------------------------------------------------------------------


def prompt_losses(
    run: Run,
    arm: str,
    seed: int,
    prompts: Sequence[ContextualPrompt] | None = None,
    which: str = "held_out",
    limit: int | None = None,
    reader: Reader | None = None,
) -> dict:
    """Measure what each prompt changes in the loss of passages that stand behind it.

    All is paired by passage. The intervals (95 %) are over documents, whose passages are kept together. A prompt has two
    differences: to no prompt at all, and to a row of meaningless words with as many tokens, drawn for each passage. The
    first may come from any words in front; the second comes from what the prompt says.

    Args:
        run: a prepared run.
        arm, seed: of the model, see ``open_reader``.
        prompts: what to try; None takes all of the run's strategy set and negative set.
        which: "held_out", "general_held_out", or "passages", those of training.
        limit: at most so many passages, evenly spread; None takes all.
        reader: a model that is open already.

    Returns:
        which, passages, documents, tokens (targets), available (passages there are), loss (nats a token without a prompt);
        kinds, families and prompts: for all prompts of a kind together, for those of a family, and for each one, then for
        the meaningless words of each length, a record of what it is about (prompt: id, family, kind, text, tokens with the
        separator; text is "" for words drawn for each passage), loss, and to_none and to_control, each a dict of
        difference, low and high in nats a token (to_control is None for meaningless words; ends are None for one document).

    Raises:
        InputError: as ``open_reader``; no such passages; or a prompt with its passage is longer than the model reads.

    Example:
        >>> prompt_losses(run, "cft", 0)["prompts"][0]["to_none"]  # doctest: +SKIP
        {'difference': -0.031, 'low': -0.042, 'high': -0.02}
    """
    reader = reader or open_reader(run, arm, seed)
    every = getattr(reader.run, check_known(which, TEXTS, "kind of passages"))
    if not every:
        raise InputError(f"{reader.run.folder / which}.jsonl holds no passage: raise corpus.held_out, or read others.")
    passages = spread_out(every, limit)
    if prompts is None:
        prompts = [prompt for prompt_set in reader.run.prompt_sets for prompt in prompt_set.prompts]
    tried, paired = _try(reader, passages, prompts)
    kinds, families = _groups([prompt.kind for prompt, _ in tried]), _groups([(p.family, p.kind) for p, _ in tried])
    return {
        "which": which,
        **size_of(passages, paired.counts),
        "available": len(every),
        "loss": float(paired.none.sum() / paired.counts.sum()),
        "kinds": [{"kind": kind, "prompts": len(chosen)} | paired.record(chosen) for kind, chosen in kinds.items()],
        "families": [
            {"family": family, "kind": kind, "prompts": len(chosen)} | paired.record(chosen)
            for (family, kind), chosen in families.items()
        ],
        "prompts": [_name(prompt) | {"tokens": n} | paired.record([i]) for i, (prompt, n) in enumerate(tried)],
    }


def _try(
    reader: Reader, passages: Sequence[Passage], prompts: Sequence[ContextualPrompt]
) -> tuple[list[tuple[ContextualPrompt, int]], Paired]:
    """Return each prompt with its tokens, those of meaningless words behind the others, and the losses behind them."""
    ids = [reader.ids(prompt) for prompt in prompts]
    lengths = sorted({len(one) for one in ids})
    before = [[one] * len(passages) for one in ([], *ids)]
    before += [reader.control(passages, [length] * len(passages)) for length in lengths]
    (none, *behind), counts = reader.losses(passages, before)
    words = dict(zip(lengths, behind[len(ids) :], strict=True))
    tried = [(prompt, len(one)) for prompt, one in zip(prompts, ids, strict=True)]
    tried += [(ContextualPrompt(f"control-{length}", "control", "", "control"), length) for length in lengths]
    return tried, Paired(passages, counts, none, behind, [words[len(one)] for one in ids])


def _name(prompt: ContextualPrompt) -> dict:
    return {"prompt": prompt.id, "family": prompt.family, "kind": prompt.kind, "text": prompt.text}


# --- passages of training ---------------------------------------------------------------------------------------------


def training_losses(run: Run, arm: str, seed: int, limit: int | None = None, reader: Reader | None = None) -> dict:
    """Measure how well a trained model knows the passages that it read, each behind the very prompt that it read there.

    Different prompts stand before different passages here, so only what is larger than the intervals (95 %, over documents)
    says something about a prompt. Of an arm with a second stage it is the text stage whose passages and prompts are taken.

    Args:
        run: a prepared run.
        arm, seed: of the model; an arm that reads no text (base, ift) has nothing to measure.
        limit: at most so many passages, evenly spread; None takes all that were read.
        reader: a model that is open already.

    Returns:
        passages, documents, tokens, available (passages that were read), loss, low and high (nats a token), and families and
        prompts: records of family, kind, (prompt, text), passages, documents, tokens, loss, low and high. Passages without
        a prompt have the family and kind "none". Prompts that one passage alone read have no record; read_once counts them.

    Raises:
        InputError: as ``open_reader``, or the arm reads no text.

    Example:
        >>> training_losses(run, "cft", 0)["families"][0]["loss"]  # doctest: +SKIP
        1.47
    """
    reader = reader or open_reader(run, arm, seed)
    every = read_in_training(reader.run, arm, seed)
    passages, prompts = zip(*spread_out(every, limit), strict=True)
    known = {prompt: reader.ids(prompt) for prompt in set(prompts)}
    (losses,), counts = reader.losses(passages, [[known[prompt] for prompt in prompts]])

    def record(chosen: list[int]) -> dict:
        part = [passages[n] for n in chosen]
        return size_of(part, counts[chosen]) | mean_over("loss", losses[chosen], counts[chosen], part)

    families, single = (
        _groups([("none", "none") if p is None else (p.family, p.kind) for p in prompts]),
        _groups(prompts),
    )
    told = {prompt: chosen for prompt, chosen in single.items() if prompt is not None and len(chosen) > 1}
    return {
        **record(list(range(len(passages)))),
        "available": len(every),
        "families": [{"family": f, "kind": kind} | record(chosen) for (f, kind), chosen in families.items()],
        "prompts": [_name(prompt) | record(chosen) for prompt, chosen in told.items()],
        "read_once": sum(prompt is not None and len(chosen) == 1 for prompt, chosen in single.items()),
    }


def _groups(keys: Sequence) -> dict:
    """Return key -> places at which it stands, in the order in which the keys come first."""
    found: dict = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return found


# --- gradients --------------------------------------------------------------------------------------------------------


def gradient_similarity(
    run: Run,
    arm: str,
    seed: int,
    passages: int = 64,
    memory: float = 4.0,
    reader: Reader | None = None,
) -> dict:
    """Compare the gradients of the same passages behind different prompts: a cosine of 1 teaches the same thing.

    The gradient is that of the mean target loss, of all weights that training moves (a LoRA arm's adapter, else all), in
    float32 and without dropout. The passages are those of training, evenly spread; passage n stands behind prompt n of a
    family, counted round. Meaningless words have the tokens of a prompt of the strategy prompt set, taken in turn. In memory are
    the model, its gradient, and a vector of 4 bytes a weight for each condition (the families, none, negative, control).

    Args:
        run: a prepared run.
        arm, seed: of the model, see ``open_reader``.
        passages: how many.
        memory: GiB that the vectors may take.
        reader: a model that is open already.

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
    chosen = spread_out(reader.run.passages, passages)
    conditions = _conditions(reader, chosen)
    weights = let_learn(reader.model, reader.run.config.train.loss)
    require_memory(len(conditions), weights, memory)
    vectors, budget = [], reader.run.config.evaluation.max_batch_tokens
    for _, prompts in conditions:
        rows = reader.rows(chosen, prompts)
        vectors.append(mean_gradient(reader.model, list(rows), budget))
    matrix, norms = cosines(vectors)
    named = {"conditions": [names for names, _ in conditions], "weights": weights}
    return size_of(chosen, rows.targets) | named | {"cosine": matrix, "norms": norms}


def _conditions(reader: Reader, passages: Sequence[Passage]) -> list[tuple[dict, list[list[int]]]]:
    """Return (family and kind, prompt ids of each passage) for each condition."""
    strategies, negative = reader.run.prompt_sets

    def in_turn(prompts: Sequence[ContextualPrompt]) -> list[list[int]]:
        ids = [reader.ids(prompt) for prompt in prompts]
        return [ids[place % len(ids)] for place in range(len(passages))]

    found = [({"family": "none", "kind": "none"}, [[]] * len(passages))]
    for family in strategies.families:
        own = [prompt for prompt in strategies.prompts if prompt.family == family]
        found.append(({"family": family, "kind": "strategy"}, in_turn(own)))
    found.append(({"family": "negative", "kind": "negative"}, in_turn(negative.prompts)))
    lengths = [len(ids) for ids in in_turn(strategies.prompts)]
    return [*found, ({"family": "control", "kind": "control"}, reader.control(passages, lengths))]


# --- all of it --------------------------------------------------------------------------------------------------------


def attribution_file(run: Run, arm: str, seed: int) -> Path:
    """Return where the attribution of a model lives."""
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
        arm, seed, model_hash, prompt sets and hashes (of what was read), key; prompts, see ``prompt_losses``; training, see
        ``training_losses`` (None for arms that read no text); gradients, see ``gradient_similarity`` (or None).

    Raises:
        InputError: as these.

    Example:
        >>> attribute(run, "cft", 0)["prompts"]["passages"]  # doctest: +SKIP
        256
    """
    hashes = run.require_prepared().hashes
    require_task(run, arm, seed)
    path, model = attribution_file(run, arm, seed), run.model_hash(arm, seed)
    prompt_sets = {name: prompt_set.hash for name, prompt_set in run.prompt_sets._asdict().items()}
    origin = {"arm": arm, "seed": seed, "model_hash": model, "books": prompt_sets, "hashes": hashes}
    key = sha256([REVISION, origin, limit, passages, run.config.train.loss])
    if (found := read_or_quarantine(path)) and found.get("key") == key:
        return found
    reader = open_reader(run, arm, seed)
    given = (run, arm, seed)
    found = {  # gradients first: what does not fit in memory is told before hours of reading
        "gradients": gradient_similarity(*given, passages, reader=reader) if passages else None,
        "prompts": prompt_losses(*given, limit=limit, reader=reader),
        "training": training_losses(*given, limit, reader) if text_stage(arm) else None,
    }
    write_json(path, with_checksum(origin | {"key": key} | found))
    return read_json(path)
