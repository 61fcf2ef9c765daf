"""Report what an experiment's training takes, as lines of text: memory on each device, tokens, steps, time."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

from ctxft.config import CorpusConfig, TrainConfig
from ctxft.data.documents import read_documents
from ctxft.models import model_config, pick_device
from ctxft.prompts import check_subsets, get_arm, text_stages
from ctxft.run.prepare import corpus_of
from ctxft.run.run import Run
from ctxft.storage import write_jsonl
from ctxft.training.estimate import estimate_memory

SAMPLED = 1 << 23  # characters of a text beyond twice which a sample is counted
ENOUGH = 50  # documents that a sample has at least
SIZES = ("weights", "gradients", "optimizer", "activations", "logits", "total")


def sample_of(run: Run, folder: Path) -> tuple[Run, float]:
    """Return a run on a sample of each text that is large, and how many times as large the corpus is.

    Args:
        run: one that is not prepared.
        folder: where the samples go.
    """
    changes, times = {}, 1.0
    for name in ("corpus", "general") if run.config.general else ("corpus",):
        sizes, config = run.measured(name).sizes, corpus_of(run, name)
        every = min(sum(sizes) // SAMPLED, len(sizes) // ENOUGH)
        if every > 1 and config:
            documents = islice(read_documents(config, Counter()), 0, None, every)
            rows = ({"id": one.id, "text": one.text, "reliable": one.reliable} for one in documents)
            defaults = CorpusConfig(source=str(write_jsonl(folder / f"{name}.jsonl", rows)), held_out=config.held_out)
            changes |= {f"{name}.{key}": value for key, value in defaults.model_dump().items()}
            times = sum(sizes) / sum(sizes[::every]) if name == "corpus" else times
    return Run(run.wanted, overrides=changes) if changes else run, times


def count_tokens_and_steps(run: Run) -> dict:
    """Return optimizer steps and target tokens of one text arm and seed, and the tokens that each text arm reads.

    They are those that the training takes: a prepared run's passages where there are some, else the corpus is cut as
    ``ctxft train`` would cut it, and nothing is written. Of a large corpus that is not prepared, a sample is cut.

    Returns:
        steps, targets (tokens learned in all steps), reads (arm -> tokens read in all steps), times (how many times as large
        as the sample the corpus is; 1 where all of it was counted).

    Example:
        >>> from ctxft.run.run import Run
        >>> count_tokens_and_steps(Run("mini", name="not-prepared"))["steps"]
        121
    """
    if not run.is_prepared:
        with tempfile.TemporaryDirectory() as folder:
            sample, times = sample_of(run, Path(folder))
            counted = _count(sample)
        scale = times if run.config.train.max_steps is None else 1
        reads = {arm: round(tokens * scale) for arm, tokens in counted["reads"].items()}
        sums = {name: round(counted[name] * scale) for name in ("steps", "targets")}
        return {**sums, "reads": reads, "times": times}
    return {**_count(run), "times": 1}


def _count(run: Run) -> dict:
    seed = run.config.seeds[0]
    order, targets, reads = run.order("cpt", seed), run.rows("cpt", seed)[0].text_targets, {}
    check_subsets(run.config.arms, run.prompt_sets.strategies)
    for arm in text_stages(run.config.arms):
        state_of = get_arm(arm).written_state
        if state_of and state_of(run.config) is None:
            continue  # nobody knows yet how long its prompts will be
        rows, _ = run.rows(arm, seed)
        lengths = rows.lengths
        reads[arm] = sum(lengths[index] for step in order for index in step)
    return {"steps": len(order), "targets": sum(targets[index] for step in order for index in step), "reads": reads}


def _line(name: str, values: dict[str, int]) -> str:
    return f"{name:<34}" + "".join(f"{values[size] / 2**30:>13.3f}" for size in SIZES)


def estimate_lines(
    run: Run,
    processes: int = 1,
    device: str | None = None,
    rate: float | None = None,
) -> list[str]:
    """Say what an experiment's training takes, before any weights are read.

    Args:
        run: the run; it need not be prepared.
        processes: GPUs (or processes) that train one task together.
        device: "cpu" or "cuda"; None takes the recipe's, here.
        rate: tokens read in a second, as measured; gives the time.

    Returns:
        Lines of text.

    Raises:
        InputError: the model's config cannot be used, or a bad corpus.

    Example:
        >>> from ctxft.run.run import Run
        >>> estimate_lines(Run("mini"))[0].startswith("parameters: 600,672")
        True
    """
    config = run.config
    device = device or pick_device(config.train.device)
    architecture, recipe = model_config(config.model, config.revision), config.train
    estimates = {
        "one process" if processes == 1 else f"each of {processes}, DDP": estimate_memory(architecture, recipe, device)
    }
    if processes > 1 and device != "cpu":
        estimates[f"each of {processes}, FSDP"] = estimate_memory(architecture, recipe, device, processes)
    first = next(iter(estimates.values()))
    lines = [
        f"parameters: {first['parameters']:,}, trained: {first['trained']:,}",
        "memory, GiB (" + _computes(recipe, device) + ")",
        " " * 34 + "".join(f"{size:>13}" for size in SIZES),
        *(_line(name, values) for name, values in estimates.items()),
    ]
    counted = count_tokens_and_steps(run)
    if counted["times"] > 1:
        lines.append(
            f"counted on a sample of 1 / {counted['times']:.0f} of the corpus, since the run is not prepared yet:"
        )
    lines.append(f"one arm, one seed: {counted['steps']} optimizer steps, {counted['targets']} target tokens")
    reads = counted["reads"]
    lines.append("tokens read: " + ", ".join(f"{arm} {tokens}" for arm, tokens in reads.items()))
    if rate:
        tasks = [get_arm(arm).stages[0] for arm, _ in run.train_tasks]
        seconds = sum(reads.get(stage, 0) for stage in tasks) / rate
        lines.append(
            f"time at {rate:g} tokens a second: {seconds / 3600:.2f} hours for all {len(tasks)} tasks, one after "
            "another, without their stage of instructions"
        )
    return lines


def _computes(recipe: TrainConfig, device: str) -> str:
    kind = "float32" if device == "cpu" else "bfloat16 over float32 weights"
    again = ", activations computed again" if recipe.gradient_checkpointing else ""
    return f"{recipe.method}, {kind}, {recipe.micro_batch_tokens} tokens in a micro-batch{again}"
