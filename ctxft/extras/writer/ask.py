"""Jobs (a passage, a family) go in; what the writer says to each comes out as soon as it is there, or why it says nothing.

Both ways of asking have ``ask(jobs)`` and ``counts``: ``Remote`` asks a server many things at once, ``Local`` runs the model
here, all jobs in one forward pass after another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ctxft.config import WriterConfig
from ctxft.data.chat import rendered
from ctxft.evaluation.scoring.encoding import encode_prompts
from ctxft.evaluation.scoring.generation import Generated, generate_answers
from ctxft.extras.server import Counts, Reply, Server, ServerError
from ctxft.models import load_model, pick_device, shared_tokenizer, window_of
from ctxft.storage import InputError

ALL = 1 << 60  # tokens in a forward pass: the jobs are few enough already


@dataclass(frozen=True)
class Job:
    """One prompt to write: the key of its text in the store, for which family, and what the writer is asked."""

    key: str
    family: str
    messages: list[dict[str, str]]


Answer = tuple[Job, Reply | str]  # a reply, or why there is none


class Remote:
    """A writer behind a server; jobs that are asked together run side by side.

    Args:
        config: the writer.
        sleep: seconds to wait; for tests. None waits in earnest, but no longer than anybody listens.

    Raises:
        InputError: the key's variable is not set.
    """

    def __init__(self, config: WriterConfig, sleep: Callable[[float], object] | None) -> None:
        self.server, self.room = Server(config.server_config(), sleep or self._wait), config.room
        self._stopped = threading.Event()

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise ServerError("stopped while waiting for the server.", "stopped")

    @property
    def counts(self) -> Counts:
        """What was asked so far."""
        return self.server.counts

    def ask(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """Yield each job with its reply, in the order of the replies.

        Raises:
            InputError: the server refuses everything (see ``Server.chat``); what the others got is yielded first.
        """
        fatal: BaseException | None = None
        with ThreadPoolExecutor(len(jobs)) as pool:
            asked = {pool.submit(self.server.chat, job.messages, self.room): job for job in jobs}
            try:
                for future in as_completed(asked):
                    error = future.exception()
                    if error is None:
                        yield asked[future], future.result()
                    elif isinstance(error, ServerError):
                        yield asked[future], str(error)
                    else:
                        fatal = error
            except BaseException:  # Ctrl-C, a full disk: the tries under way end, but none is made again
                self._stopped.set()
                raise
        if fatal:
            raise fatal


class Local:
    """A writer on this machine, greedy.

    Args:
        config: the writer.

    Raises:
        InputError: the model cannot be loaded, or its tokenizer has no chat template.
    """

    def __init__(self, config: WriterConfig) -> None:
        self.tokenizer, self.room, self.counts = local_tokenizer(config), config.room, Counts()
        device = pick_device()
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.model = load_model(config.model, device=device, dtype=dtype)

    def ask(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """Yield each job with its reply; a passage that leaves no room in the model's window gets none."""
        window = window_of(self.model)
        prompts = [template(self.tokenizer, job) for job in jobs]
        sizes = [len(row) for row in encode_prompts(self.tokenizer, prompts, chat=True)]
        fits = [window is None or size + self.room <= window for size in sizes]
        short = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        texts = iter(generate_answers(self.model, self.tokenizer, short, self.room, max_batch_tokens=ALL, chat=True))
        for job, size, fit in zip(jobs, sizes, fits, strict=True):
            yield job, self._reply(size, next(texts)) if fit else "too long for the writer"

    def _reply(self, size: int, answer: Generated) -> Reply:
        self.counts.requests += 1
        self.counts.replies += 1
        self.counts.tokens_in += size
        self.counts.tokens_out += answer.tokens
        return Reply(answer.text, size, answer.tokens, cut=not answer.ended)


def local_tokenizer(config: WriterConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a writer on this machine; raises InputError if it has no chat template."""
    tokenizer = shared_tokenizer(config.model)
    if not tokenizer.chat_template:
        raise InputError(
            f"the writer '{config.model}' has no chat template, so it follows no instruction: choose a model that does."
        )
    return tokenizer


def template(tokenizer: PreTrainedTokenizerBase, job: Job) -> str:
    """Return what a writer on this machine reads."""
    return rendered(tokenizer, job.messages, answer=True)
