"""An experiment flows in; its training starts and stops at a button, and loss, speed and time left flow out while it runs."""

from __future__ import annotations

import asyncio
import atexit
import html
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets
import pandas

from ctxft.report.figures import loss_curves, picture
from ctxft.report.page import MACROS
from ctxft.run.progress import Follower, Pace, Progress
from ctxft.run.run import Run
from ctxft.run.workers import train_all
from ctxft.storage import FailedError, InputError
from ctxft.widgets.base import Explorer, framed

if TYPE_CHECKING:
    from ctxft.config import ExperimentConfig

EVERY = 2.0  # seconds between two views
STOPPED = "the training was stopped; what was finished is kept, and a new start goes on from there."
COLUMNS = ("arm", "seed", "state", "step", "loss", "checkpoint")


class Stopped(FailedError):
    """The training was stopped at the button, or by an interrupt of the kernel."""


class TrainingMonitor(Explorer):
    """Train the arms of an experiment in processes of their own, watch their losses, and stop and go on at a button.

    A stop ends the processes as Ctrl-C does: finished arms and checkpoints stay, and a new start goes on from there. The
    buttons work while the kernel is idle or awaits ``finish``; what is in ``wait`` can be interrupted, which stops the
    training as well.

    Args:
        config: the experiment.
        workers: processes at a time, as for ``ensure_run``.

    Example:
        >>> monitor = TrainingMonitor(config)  # doctest: +SKIP
        >>> monitor.start()  # doctest: +SKIP
        >>> await monitor.finish()  # doctest: +SKIP
        PosixPath('runs/mini')
    """

    def __init__(self, config: ExperimentConfig, workers: int | None = None) -> None:
        self.config, self.workers, self.follower = config, workers, Follower(Run(config))
        self.future: Future[Path] | None = None
        self._thread: threading.Thread | None = None
        self._stop, self._seen = threading.Event(), 0.0
        self.go = ipywidgets.Button(description="start training", icon="play")
        self.halt = ipywidgets.Button(description="stop training", icon="stop", disabled=True)
        self.go.on_click(lambda _button: self.start())
        self.halt.on_click(lambda _button: self.stop())
        super().__init__([self.go, self.halt])

    # --- what it does -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the training, or go on with it, and return at once; does nothing while it runs."""
        if self.runs:
            return
        self._stop.clear()
        self.follower.samples.clear()
        self.future = Future()
        self._switch()
        self._thread = threading.Thread(target=self._train, args=(self.future,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the training to stop; its processes end as at Ctrl-C, within some seconds."""
        self._stop.set()
        self.halt.disabled = True

    def wait(self, seconds: float | None = None) -> Path:
        """Wait until the training has ended, and return the run folder; an interrupt stops the training.

        Args:
            seconds: at most so long; None waits for the end.

        Raises:
            InputError: the training was not started, or met bad input.
            FailedError: it was stopped, or failed; the end of its output is shown.
            TimeoutError: it still runs after so many seconds.
        """
        if self.future is None or self._thread is None:
            raise InputError("the training was not started: call start first, or press the button.")
        try:
            self._thread.join(seconds)
        except KeyboardInterrupt:
            self.stop()
            raise
        if self.runs:
            raise TimeoutError(f"the training still runs after {seconds} seconds.")
        return self.future.result()

    async def finish(self) -> Path:
        """Wait as ``wait`` does, but let the buttons work meanwhile: for a cell that says ``await monitor.finish()``."""
        try:
            while self.runs:
                await asyncio.sleep(0.2)
        except asyncio.CancelledError:  # the kernel was interrupted
            self.stop()
            raise
        return self.wait()

    @property
    def runs(self) -> bool:
        """Whether the training runs."""
        return self.future is not None and not self.future.done()

    def _train(self, future: Future[Path]) -> None:
        atexit.register(self.stop)
        try:
            result = train_all(self.config, self.workers, self._tick)
        except BaseException as error:  # whoever waits for it hears of it
            # an interrupt of the kernel reaches the workers too, and they may end before they are told to
            future.set_exception(Stopped(STOPPED) if self._stop.is_set() and isinstance(error, FailedError) else error)
        else:
            future.set_result(result)
        finally:
            atexit.unregister(self.stop)
            self._refresh()
            self._switch()

    def _tick(self) -> None:
        if self._stop.is_set():
            raise Stopped(STOPPED)
        if time.monotonic() - self._seen >= EVERY:
            self._refresh()
            self._seen = time.monotonic()

    def _switch(self) -> None:
        self.go.disabled, self.halt.disabled = self.runs, not self.runs

    # --- what it shows ------------------------------------------------------------------------------------------------

    def _state(self, found: list[Progress]) -> str:
        """Say whether it runs, how fast, and how long it will take."""
        done = f"{sum(one.done for one in found)} of {len(found)} trained"
        if self.runs:
            return f"Training: {done}; {_speed(self.follower.pace(found))}."
        error = self.future.exception() if self.future else None
        if isinstance(error, Stopped):
            return f"Stopped: {done}. {self._kept()}"
        return f"Failed: {done}. {error}" if error else f"Not running: {done}."

    def _kept(self) -> str:
        if self.config.train.save_steps:
            return "A new start goes on from the checkpoints."
        return "train.save_steps is 0, so there are no checkpoints: an arm that is not finished starts anew."

    @property
    def text(self) -> str:
        """State and progress of every task, as text."""
        found = self.follower.read()
        rows = [COLUMNS, *map(_cells, found)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join([self._state(found), "", *lines])

    @property
    def html(self) -> str:
        """State, progress of every task and the curves of their losses, as HTML."""
        found = self.follower.read()
        state = f'<p role="status"><b>{html.escape(self._state(found))}</b></p>'
        table, logs = MACROS.frame(pandas.DataFrame(map(_cells, found), columns=COLUMNS)), self.follower.curves()
        figure = "" if logs.empty else MACROS.image(picture(loss_curves(logs), dpi=96))
        return framed(state, table, figure)


def _speed(pace: Pace) -> str:
    if pace.tokens is None or pace.left is None:
        return "its speed is not known yet"
    minutes, seconds = divmod(round(pace.left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"{pace.tokens:,.0f} tokens a second, about {left} left"


def _cells(one: Progress) -> tuple[str, ...]:
    state = "trained" if one.done else "begun" if one.step else "waiting"
    steps = f"{one.step} of {one.steps}" if one.steps is not None else str(one.step)
    loss = f"{one.loss:.3f}" if one.loss is not None else ""
    checkpoint = f"at step {one.checkpoint}" if one.checkpoint is not None else ""
    return one.arm, str(one.seed), state, steps, loss, checkpoint
