"""Who writes the prompts, and how it is asked, flows in; it flows out checked, with the messages for one passage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxft.extras.server import ServerConfig
from ctxft.models import model_hash
from ctxft.prompts import PromptSet
from ctxft.storage import InputError

FAMILY_SEED = 0  # draws the family of a passage, the same for every seed of a run: a prompt is written once
ROOM = 2  # a writer may write so many times max_tokens: its tokens are not those of the trained model

INSTRUCTION = (
    "You write study prompts. A learner will read your prompt first and then the text below, in order to learn it. Tell "
    "this learner in one or two short sentences how to study this very text by the strategy named below: what to look "
    "for, to ask or to connect while reading. Speak to the learner. Name the subject of the text, but do not quote it, do "
    "not sum it up, state none of its facts, and answer no question. Reply with the prompt alone."
)


@dataclass
class WriterConfig:
    """A language model that writes prompts: on this machine, or behind an OpenAI-compatible server.

    Attributes:
        model: a folder or a hub id; with ``server``, the model's name there. It must know a chat template.
        server: base URL, such as "http://localhost:8000/v1"; None runs the model here.
        key_variable: NAME of the environment variable that holds the server's key, never the key.
        max_tokens: tokens of a prompt at most, in the tokens of the model that is trained, with the separator behind it.
        instruction: what the writer is told before the strategy and the passage.
        batch: passages at a time: in one forward pass, or asked of a server at once.
        timeout, retries, requests_per_minute, price_in, price_out: of a server, as for ``ServerConfig``.
        limit_cost: stop before the prompts of these passages cost more, in the currency of the prices.

    Raises:
        InputError: a value out of range, or one that suits a server alone without ``server``.

    Example:
        >>> WriterConfig("my-model", server="http://localhost:8000/v1").max_tokens
        64
    """

    model: str
    server: str | None = None
    key_variable: str | None = None
    max_tokens: int = 64
    instruction: str = INSTRUCTION
    batch: int = 4
    timeout: float = 60.0
    retries: int = 5
    requests_per_minute: int | None = None
    price_in: float | None = None
    price_out: float | None = None
    limit_cost: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"the writer's {name} must be at least 1, found {getattr(self, name)}.")
        for name in ("model", "instruction"):
            if not getattr(self, name).strip():
                raise InputError(f"the writer's {name} is empty: write it.")
        if self.server is not None:
            self.server_config()
        for name in ("key_variable", "requests_per_minute", "price_in", "price_out", "limit_cost"):
            if self.server is None and getattr(self, name) is not None:
                raise InputError(f"the writer's {name} is for a server, but none is named: name one, or leave it out.")
        if self.limit_cost is not None:
            if not 0 < self.limit_cost < math.inf:
                raise InputError(f"the writer's limit_cost must be more than 0, found {self.limit_cost}.")
            if self.price_in is None or self.price_out is None:
                raise InputError("the writer's limit_cost needs price_in and price_out (per million tokens): add them.")

    @property
    def room(self) -> int:
        """The tokens that the writer may write, in its own; a longer text counts as cut off."""
        return ROOM * self.max_tokens

    def server_config(self) -> ServerConfig:
        """Return what the client of the server takes; raises InputError where a value is bad."""
        names = ("key_variable", "timeout", "retries", "requests_per_minute", "price_in", "price_out")
        return ServerConfig(self.server, self.model, **{name: getattr(self, name) for name in names})

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Return what so many tokens cost; None where a price is unknown, and for a model on this machine."""
        return None if self.server is None else self.server_config().cost(tokens_in, tokens_out)

    def describe(self) -> dict:
        """Return who writes and what it is told, without what changes no prompt."""
        return {name: getattr(self, name) for name in ("model", "server", "max_tokens", "instruction")}

    def identity(self) -> list:
        """Return what decides every output, as plain values; a model on this machine counts with its weights.

        Raises:
            InputError: the model is not found.
        """
        who = model_hash(self.model) if self.server is None else [self.server.rstrip("/"), self.model]
        return [who, self.instruction, self.room]


def messages_for(config: WriterConfig, family: str, prompt_set: PromptSet, passage_text: str) -> list[dict[str, str]]:
    """Return what the writer is asked for one passage; all in one turn, since not every chat template has a system's."""
    idea = prompt_set.ideas.get(family, "")
    strategy = f"Strategy: {family}. {idea}".strip()
    return [{"role": "user", "content": f"{config.instruction}\n\n{strategy}\n\nText:\n{passage_text.strip()}"}]
