"""A prepared run flows in; adaptive.jsonl flows out: the prompt that a model wrote for each passage, or why there is none.

    passages.jsonl + prompts.writer + benchmarks -> adaptive.jsonl (a line a passage), adaptive.json (counts, cost)

The texts themselves stay in the store of the writer (``ctxft.extras.writer.store``), so that another run, or this one with other
benchmarks, need not pay for them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ctxft.data.passages import Passage
from ctxft.evaluation.scoring.encoding import Progress
from ctxft.extras.writer import WriterRecord, estimate_cost, forbids, write_prompts
from ctxft.extras.writer.write import WRITTEN_ID
from ctxft.extras.written import writer_of
from ctxft.run.run import Run
from ctxft.storage import InputError, read_jsonl, sha256, write_json, write_jsonl


def estimate_adapt(run: Run) -> dict:
    """Tell what ``adapt`` would take, before anything is sent: as ``ctxft.extras.writer.estimate_cost``."""
    writer = writer_of(run.config)
    run.require_prepared()
    return estimate_cost(run.passages, writer, run.prompt_sets.strategies, run.tokenizer)


def adapt(run: Run, progress: Progress | None = None) -> dict:
    """Let the experiment's writer write a prompt for every passage of a prepared run.

    A prompt that holds an item of the experiment's benchmarks is refused. Where there is none, because the text was
    refused or the writer gave none, the drawn prompt stands: adaptive.jsonl says why.

    Args:
        run: a prepared run, with ``prompts.writer``.
        progress: called with (passages that need nothing more, all passages).

    Returns:
        The content of adaptive.json: counts, cost, the writer (without a key).

    Raises:
        InputError: no writer is named, the run is not prepared, a benchmark cannot be loaded, the writer cannot be used, or
            other prompts would take the place of those that an arm was trained with.
        FailedError: the writer fails again and again, or the limit of cost is reached; what was written is kept.

    Example:
        >>> adapt(Run("my.yaml"))["prompts"]  # doctest: +SKIP
        1184
    """
    writer, benchmarks = writer_of(run.config), run.whole_benchmarks
    run.require_prepared()
    forbidden = forbids(benchmarks)
    record = write_prompts(run.passages, writer, run.prompt_sets.strategies, run.tokenizer, forbidden, progress)
    rows = list(_rows(run.passages, record))
    require_untrained(run, rows)
    found = record.to_json() | {"benchmarks": [benchmark.name for benchmark in benchmarks], "rows": sha256(rows)}
    write_jsonl(run.folder / "adaptive.jsonl", rows)
    write_json(run.folder / "adaptive.json", found)
    return found


def require_untrained(run: Run, rows: Sequence[dict]) -> None:
    """Refuse to change the prompts of a run after an arm was trained with them: its seeds would differ in more than the seed."""
    now = Counter(row["prompt"] for row in rows if row["prompt"])
    for path in run.folder.glob("arms/*adaptive*/seed-*/prompts.jsonl"):
        told = [row["prompt"] for _, row in read_jsonl(path)]
        if Counter(prompt for prompt in told if prompt.startswith(WRITTEN_ID)) != now:
            raise InputError(
                f"{path.parent} was trained with other written prompts than there are now: what was written is kept, but "
                "to use it remove that folder, or run under another name."
            )


def _rows(passages: Sequence[Passage], record: WriterRecord) -> Iterator[dict]:
    for passage in passages:
        prompt = record.prompts.get(passage.id)
        if prompt is None:
            yield {"passage": passage.id, "prompt": None, "reason": record.reasons[passage.id]}
        else:
            yield {"passage": passage.id, "prompt": prompt.id, "family": prompt.family, "text": prompt.text}
