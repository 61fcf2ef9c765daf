"""A run folder flows in while its arms are trained; how far each is, and how fast they go, flows out.

    arms/<arm>/seed-<n>/log.jsonl, done.json -> Progress of each task -> steps and tokens over time -> time left

Nothing but the folder is looked at, so the training may run in any process.
"""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas

from ctxft.prompts import get_arm
from ctxft.run.tasks import Task
from ctxft.training.checkpoint import checkpoints

if TYPE_CHECKING:
    from ctxft.run.run import Run

LAST = 10  # optimizer steps whose mean loss is told
MEMORY = 30.0  # seconds over which speed is measured
POINTS = 500  # optimizer steps of a task that a figure needs


@dataclass(frozen=True)
class Progress:
    """How far one task is.

    Attributes:
        arm, seed: the task.
        done: whether it is trained.
        step, steps: optimizer steps that were taken, and all of them; None before the run is prepared.
        loss: mean of the last steps, nats a target token; None before the first.
        tokens: read in the steps that were taken.
        checkpoint: optimizer step of the newest checkpoint; None where there is none.
    """

    arm: str
    seed: int
    done: bool
    step: int
    steps: int | None
    loss: float | None
    tokens: int
    checkpoint: int | None


@dataclass(frozen=True)
class Pace:
    """How fast all tasks go together: tokens and optimizer steps a second, and the seconds that are left; None if unknown."""

    tokens: float | None
    left: float | None


@dataclass
class Tail:
    """A log that grows; a read takes up the lines that are new, and all of them where a resumed training cut it back."""

    path: Path
    rows: list[dict] = field(default_factory=list)
    tokens: int = 0
    place: int = 0
    file: int = 0

    def read(self) -> list[dict]:
        """Return step and loss of every whole line, and count the tokens."""
        if not self.path.exists():
            self.rows, self.tokens, self.place = [], 0, 0
            return self.rows
        with open(self.path, "rb") as file:
            stat = self.path.stat()
            if stat.st_ino != self.file or stat.st_size < self.place:
                self.rows, self.tokens, self.place, self.file = [], 0, 0, stat.st_ino
            file.seek(self.place)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half-written
        self.place += len(whole)
        for row in map(json.loads, whole.splitlines()):
            self.rows.append({"step": row["step"], "loss": row["loss"]})
            self.tokens += row["tokens"]
        return self.rows


class Follower:
    """Follows the training of an experiment.

    Args:
        run: the run; it need not be prepared yet.

    Example:
        >>> from ctxft.run.run import Run
        >>> follower = Follower(Run("mini"))
        >>> follower.read()[0].arm
        'cpt'
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.logs = {task: Tail(run.arm_folder(*task) / "log.jsonl") for task in followed_tasks(run)}
        self.samples: deque[tuple[float, int, int]] = deque()  # (seconds, steps, tokens) of all tasks together

    def read(self) -> list[Progress]:
        """Return how far every task is, and remember when that was."""
        found = [self._progress(task, tail.read(), tail.tokens) for task, tail in self.logs.items()]
        now = time.monotonic()
        self.samples.append((now, sum(one.step for one in found), sum(one.tokens for one in found)))
        while len(self.samples) > 2 and now - self.samples[1][0] > MEMORY:
            self.samples.popleft()
        return found

    def pace(self, found: list[Progress]) -> Pace:
        """Return how fast the tasks went lately, and how long those that are left will take at that speed."""
        (begin, first, read), (end, last, now) = self.samples[0], self.samples[-1]
        if last <= first or end <= begin or any(one.steps is None for one in found):
            return Pace(None, None)
        left = sum(one.steps - one.step for one in found if not one.done)
        return Pace((now - read) / (end - begin), left * (end - begin) / (last - first))

    def curves(self) -> pandas.DataFrame:
        """Return arm, seed, step and loss of the steps taken, thinned out alike in all tasks."""
        most = max((len(tail.rows) for tail in self.logs.values()), default=0)
        every = max(1, most // POINTS)
        rows = [
            {"arm": arm, "seed": seed, "step": row["step"], "loss": row["loss"]}
            for (arm, seed), tail in self.logs.items()
            for row in tail.rows
            if row["step"] % every == 0 or row["step"] == 1
        ]
        return pandas.DataFrame(rows, columns=["arm", "seed", "step", "loss"])

    def _progress(self, task: Task, rows: list[dict], tokens: int) -> Progress:
        last, folder = rows[-LAST:], self.run.arm_folder(*task)
        saved = checkpoints(folder)
        return Progress(
            *task,
            done=self.run.is_trained(*task),
            step=len(rows),
            steps=len(self.run.order(*task)) if self.run.manifest else None,
            loss=sum(row["loss"] for row in last) / len(last) if last else None,
            tokens=tokens,
            checkpoint=int(saved[-1].name.removeprefix("checkpoint-")) if saved else None,
        )


def followed_tasks(run: Run) -> list[Task]:
    """Return the tasks of a run with those of earlier stages before them: cft-ift resumes from cft."""
    every = {}
    for arm, seed in run.train_tasks:
        stages = get_arm(arm).stages
        every |= {("-".join(stages[: n + 1]), seed): None for n in range(len(stages))}
    return list(every)
