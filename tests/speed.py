"""The tables of docs/speed.md, from what the scripts in tests/benchmarks recorded."""

from __future__ import annotations

from tests.benchmarks.record import SPEED

TRAINING = {
    "ours": "ctxft, default path",
    "padded": "transformers' Trainer, batches of 8, padded",
    "grouped": "the same, grouped by length",
    "trl": "TRL's SFTTrainer, packed (best fit)",
}
EVALUATION = {"options": "full options", "letters": "letters", "five-shot": "letters, five-shot"}


def span(values: list[float] | None, digits: int) -> str:
    """Return "median [lowest-highest]", or nothing."""
    return "" if values is None else f"{values[0]:.{digits}f} [{values[1]:.{digits}f}-{values[2]:.{digits}f}]"


def join(values: list[float], digits: int) -> str:
    """Return "a, b and c"."""
    *first, last = (f"{value:,.{digits}f}" for value in values)
    return f"{', '.join(first)} and {last}"


def training_lines(found: dict) -> list[str]:
    """Return the tables and sentences about training."""
    training, rivals, prompts = found["training"], found["rivals"], found["prompts"]
    rows = [
        f"| {label} | {span(one['cpu'], 0)} | {span(one['faster'], 2)} | {span(one['peak'], 0)} |"
        for name, label in TRAINING.items()
        for one in (training["variants"][name],)
    ]
    versions, others = training["versions"], rivals["variants"]
    tried = f"torch {versions['torch']}, transformers {versions['transformers']}, TRL {versions['trl']}"
    said = (
        f"Medians and extremes of {training['rounds']} interleaved rounds, one thread of a shared CPU, each run a process of its own; "
        f"a random Llama (hidden size 256, 6 layers, 8,192 tokens), {training['documents']} documents of 20 to 600 tokens after a "
        f"masked prompt of 30; {tried}. All four give the loss and gradient of the documents one at a time, which the script checks. "
        f"Of the tokens in random padded batches {training['real_tokens'][0]} % are real, in grouped ones "
        f"{training['real_tokens'][1]} % (with more documents the Trainer groups better: then the two are closer). Two settings suit "
        f"a CPU better than those of the table (`{rivals['command'].removeprefix('python ')}`, {rivals['documents']} real documents, "
        f"{rivals['rounds']} rounds): TRL with rows of 640 tokens, three accumulated (ctxft is "
        f"{span(others['short']['faster'], 2)} times as fast, with {others['ours']['peak']:.0f} MB against "
        f"{others['short']['peak']:.0f}), and the Trainer with single documents, eight accumulated "
        f"({span(others['single']['faster'], 2)} times, {others['ours']['peak']:.0f} MB against {others['single']['peak']:.0f}: a "
        f"smaller `micro_batch_tokens` takes less). On a GPU nothing was measured. CFT costs what its tokens cost: over CPT "
        f"{join(prompts['time'], 2)} times the CPU time at {join(prompts['lengths'], 0)} tokens a passage, where the ratio of "
        f"tokens is {join(prompts['tokens'], 2)} (`{prompts['command'].removeprefix('python ')}`)."
    )
    head = "Training, in text tokens a second of CPU time, from a model folder to a saved model "
    head += f'(`{training["command"]}`, which needs `pip install -e ".[bench]"`):'
    table = ["| | text tokens/s, CPU time | ours faster by | peak memory, MB |", "| --- | --- | --- | --- |", *rows]
    return [head, "", *table, "", said]


def evaluation_lines(found: dict) -> list[str]:
    """Return the table and sentences about evaluation."""
    evaluation, parity = found["evaluation"], found["parity"]
    rows = []
    for name, label in EVALUATION.items():
        one = evaluation["conditions"][name]
        memory = " / ".join(f"{value:.0f}" for value in one["memory"])
        rows.append(f"| {label} | {one['ours']:.2f} | {one['harness']:.2f} | {span(one['faster'], 2)} | {memory} |")
    head = (
        f"Evaluation, against lm-evaluation-harness {evaluation['versions']['lm-eval']} at its best batch size, which was "
        f"{evaluation['best_batch']} on this CPU (`{evaluation['command']}`):"
    )
    columns = "| | ours, CPU s | harness, CPU s | ours faster by | peak memory, MB: ours / harness at batch 1 / 16 |"
    far = parity["pairs"] - parity["within"]
    said = (
        f"{evaluation['rounds']} interleaved rounds over {evaluation['items']} items (memory: 1 round, "
        f"{evaluation['memory_items']} items), one thread, a Llama of 7 million parameters, prompts of 60 to 250 tokens. On the real "
        f"MMLU (six subjects) and MedQA files with a Llama of 260,000 parameters (`{parity['command'].removeprefix('python ')}`): "
        f"token ids equal {parity['equal_ids']:,} of {parity['pairs']:,}, predictions {parity['equal_predictions']:,} of "
        f"{parity['items']:,}, log-likelihoods within 1e-4 nats for {parity['within']:,}; of the other {far} none is more than "
        f"{parity['largest']:.1e} nats apart, in sums of hundreds of nats, and all are equal in float64."
    )
    return [head, "", columns, "| --- | --- | --- | --- | --- |", *rows, "", said]


def speed_block() -> str:
    """Return the README's section on speed as Markdown, from ``notebooks/results/speed.json``."""
    from ctxft.storage import read_json

    found = read_json(SPEED)
    return "\n".join([*training_lines(found), "", *evaluation_lines(found)])
