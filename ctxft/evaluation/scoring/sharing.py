"""Token ids of contexts and choices go in; what they have in common comes out, in batches that are read together.

Equal contexts become one ``Prompt``, behind which all its choices stand. Prompts that begin with the same ids (an
instruction, solved examples) become one ``Group``, whose common beginning, the header, is read once for all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

MIN_HEADER = 32  # ids; a shorter common beginning is not worth a pass of its own
MIN_SAVING = 256  # ids that need not be read again; the pass for the header has to pay


@dataclasses.dataclass(frozen=True)
class Choice:
    """The ids of one choice, and where its score belongs."""

    request: int
    number: int
    ids: tuple[int, ...]


@dataclasses.dataclass
class Prompt:
    """A context that is read once, and the choices that follow it."""

    context: tuple[int, ...]
    choices: list[Choice]

    @property
    def span(self) -> int:
        """Positions that the longest text takes: the context and the longest choice without its last id."""
        return len(self.context) + max(len(choice.ids) for choice in self.choices) - 1

    @property
    def tail(self) -> int:
        """Ids of all choices that have to be read: of each all but the last."""
        return sum(len(choice.ids) - 1 for choice in self.choices)


@dataclasses.dataclass
class Group:
    """Prompts that share their first ``header`` ids (0: nothing)."""

    header: int
    prompts: list[Prompt]


def share_headers(prompts: Sequence[Prompt]) -> list[Group]:
    """Group prompts by common beginnings so that reading each beginning once saves the most ids.

    Every prompt keeps at least one id of its own behind the header: the one from which its choices are predicted.

    Args:
        prompts: with contexts that all differ.

    Returns:
        Groups that hold each prompt once; those that share too little stand in one group with header 0.
    """
    ordered = sorted(prompts, key=lambda prompt: prompt.context)
    contexts = [prompt.context for prompt in ordered]
    common = [_common(a, b) for a, b in itertools.pairwise(contexts)]
    found: list[Group] = []
    alone: list[Prompt] = []
    for start, end, header in _split(common, 0, len(ordered), 0)[1]:
        found.append(Group(header, ordered[start:end]))
    taken = {id(prompt) for group in found for prompt in group.prompts}
    alone = [prompt for prompt in prompts if id(prompt) not in taken]
    return found + ([Group(0, alone)] if alone else [])


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many first ids two sequences share, one less than the shorter has at most."""
    size = min(len(a), len(b)) - 1
    return next((n for n in range(size) if a[n] != b[n]), size)


def _split(common: Sequence[int], start: int, end: int, least: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Return the most ids that headers can save in ordered contexts start to end, and those headers' (start, end, length).

    Either all share one header, or the row is cut where neighbours share little, and each part has its own.
    """
    if end - start < 2:
        return 0, []
    shared = min(common[start : end - 1])
    saved = (end - start - 1) * shared
    whole = (saved, [(start, end, shared)]) if shared >= MIN_HEADER and saved >= MIN_SAVING else (0, [])
    least = max(least, shared) + MIN_HEADER
    cuts = [n + 1 for n in range(start, end - 1) if common[n] < least]
    parts = [_split(common, a, b, least) for a, b in zip([start, *cuts], [*cuts, end], strict=True)]
    apart = (sum(saved for saved, _ in parts), [header for _, headers in parts for header in headers])
    return max(whole, apart, key=lambda found: found[0])


def batches(group: Group, token_budget: int) -> Iterator[list[Prompt]]:
    """Yield a group's prompts, longest first; the padded ids of a batch, header included, keep to the budget, or it is one."""
    batch: list[Prompt] = []
    width = tail = 0
    for prompt in sorted(group.prompts, key=lambda prompt: (-len(prompt.context), -prompt.tail)):
        new = max(width, len(prompt.context)), max(tail, prompt.tail)
        if batch and sum(new) * (len(batch) + 1) > token_budget:
            yield batch
            batch, new = [], (len(prompt.context), prompt.tail)
        batch.append(prompt)
        width, tail = new
    if batch:
        yield batch
