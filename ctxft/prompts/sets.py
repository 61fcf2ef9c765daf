r"""Read prompt sets, and sample the prompt of a passage.

A set holds short prompts in families. Each family is one way of learning (Choi et al., *Teaching LLMs How to Learn with
Contextual Fine-Tuning*, ICLR 2025, arXiv 2503.09032, names ten); the wording is ours. A family is sampled uniformly, or by the
weights of the set, then a prompt of that family uniformly, so that a family with many prompts does not come more often.
The sets are YAML files in ``ctxft/prompts/sets``; a custom file replaces or extends one:

    name: my-strategies
    kind: strategy            # or negative, or neutral (sentences that ask for nothing)
    extends: strategies       # optional: start from this prompt set; a prompt with the same id is replaced
    placement: before         # before the text; or in a turn of the model's chat template: "user" or "system"
    separator: "\n\n"         # between prompt and text; ends in a newline, and serves placement "before" alone
    families:                 # a family beyond the ten needs its idea; publication and weight (default 1) are optional
      drawing: {idea: "Sketching a process makes its steps explicit.", reference: "Author & Author (year), Journal", weight: 2}
    prompts:
      - id: drawing-1
        family: drawing
        text: "Sketch in your mind the process that the text below describes."
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ctxft.config import Config, Count, Loc, Positive, Text, input_error, load_yaml
from ctxft.storage import PACKAGE_ROOT, InputError, check_known, is_there, nearest, read_text, seeded, sha256

PROMPT_SETS = tuple(
    "strategies negative strategies-reworded negative-reworded strategies-wide negative-wide strategies-medical "
    "strategies-financial neutral".split()
)
FAMILIES = tuple(
    "application exploration reflection creative synthesis key-concepts context critical questions comparison".split()
)
FAMILY_NAME = r"[A-Za-z0-9][\w.-]*"  # is in names of arms, so of folders
SEPARATOR = "\n\n"
MANY = 1000  # samples until an allowed prompt must have come
LONGEST = 120  # words: a prompt is read before every passage of a corpus


@dataclass(frozen=True)
class ContextualPrompt:
    """A text that the model reads before a passage, without learning it.

    Args:
        id: unique in its prompt set, for example "application-1".
        family: the way of learning it belongs to ("control" for control prompts).
        text: what the model reads, without the separator.
        kind: "strategy", "negative", "neutral" or "control".
    """

    id: str
    family: str
    text: str
    kind: str


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one kind, in families.

    Args:
        name: the prompt set's name, as a run records it.
        kind: "strategy", "negative" or "neutral"; every prompt of the prompt set has it.
        prompts: in the order of the file.
        ideas: family -> the idea from learning science behind it, in one line.
        version: the author's number for the wording.
        references: family -> a publication about that idea; no part of ``to_dict`` and ``hash``, since it changes no sample.
        placement: "before" the text, or in the "user" or "system" turn of the tokenizer's chat template, with the text as the
            assistant's turn.
        separator: between prompt and text, for placement "before".
        weights: family -> how often it is sampled, where not all are sampled equally often.

    Example:
        >>> from ctxft.prompts import load_prompt_set
        >>> load_prompt_set("strategies").sample(seed=0, passage_id="p1").kind
        'strategy'
    """

    name: str
    kind: str
    prompts: tuple[ContextualPrompt, ...]
    ideas: dict[str, str] = field(default_factory=dict, hash=False)
    version: int = 1
    references: dict[str, str] = field(default_factory=dict, compare=False)
    placement: str = "before"
    separator: str = SEPARATOR
    weights: dict[str, float] = field(default_factory=dict, hash=False)

    @cached_property
    def families(self) -> tuple[str, ...]:
        """The families, in the order in which the prompts name them first."""
        return tuple(dict.fromkeys(prompt.family for prompt in self.prompts))

    @property
    def suffix(self) -> str:
        """What is tokenized together with a prompt, behind it: the separator, or nothing within a turn."""
        return self.separator if self.placement == "before" else ""

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of ``to_dict()``: another wording, order or name is another set."""
        return sha256(self.to_dict())

    @cached_property
    def members(self) -> dict[str, list[ContextualPrompt]]:
        """The prompts of each family."""
        return {family: [p for p in self.prompts if p.family == family] for family in self.families}

    def to_dict(self) -> dict:
        """Return the prompt set in the shape of its file, so that a dump of it can be loaded again."""
        prompts = [{"id": prompt.id, "family": prompt.family, "text": prompt.text} for prompt in self.prompts]
        families: dict[str, dict[str, object]] = {family: {"idea": idea} for family, idea in self.ideas.items()}
        for family, weight in self.weights.items():
            families.setdefault(family, {})["weight"] = weight
        usual = {"placement": "before", "separator": SEPARATOR}  # named only where they differ, as in a file
        options = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        head = {"name": self.name, "kind": self.kind, "version": self.version, **options}
        return {**head, "families": families, "prompts": prompts}

    @cached_property
    def _odds(self) -> list[float]:
        return [self.weights.get(family, 1.0) for family in self.families]

    def sample(
        self, seed: int, passage_id: str, allowed: Collection[ContextualPrompt] | None = None
    ) -> ContextualPrompt:
        """Return the prompt of a passage: of a family sampled uniformly (or by weight), a prompt sampled uniformly.

        The sample depends on the seed, the passage id and this prompt set alone, not on their order or number. Where only some
        prompts are allowed it is repeated until one of them comes, so that a sample that was allowed anyway stays.

        Args:
            seed: of the run.
            passage_id: of the passage that the prompt is prepended to.
            allowed: prompts of this prompt set; None allows all.
        """
        if allowed is not None and not set(self.prompts) & set(allowed):
            raise ValueError("no prompt of the prompt set is allowed")
        random = seeded(seed, passage_id, self.hash)
        for _ in range(MANY):
            family = random.choices(self.families, self._odds)[0] if self.weights else random.choice(self.families)
            prompt = random.choice(self.members[family])
            if allowed is None or prompt in allowed:
                return prompt
        # what is allowed has hardly any weight: the same odds, without the wait
        left = [prompt for prompt in self.prompts if prompt in (allowed or ())]
        odds = [self.weights.get(prompt.family, 1.0) / len(self.members[prompt.family]) for prompt in left]
        return random.choices(left, odds)[0]


# --- files ------------------------------------------------------------------------------------------------------------


def _extended(name: str) -> str:
    return check_known(name, PROMPT_SETS, "prompt set to extend")


def _family(name: str) -> str:
    if not re.fullmatch(FAMILY_NAME, name) or name.endswith("-ift"):
        rule = "letters, digits, '-', '_' or '.', since arms such as only-FAMILY are named after it"
        raise InputError(f"the family '{name}' needs a name of {rule}.")
    return name


def _short(text: str) -> str:
    if (words := len(text.split())) > LONGEST:
        raise InputError(f"a prompt has {words} words, at most {LONGEST} are read: shorten it.")
    return text


def _separator(text: str) -> str:
    if not text.endswith("\n") or text.strip():
        raise InputError('must be white space that ends in a newline, such as "\\n\\n".')
    return text


Line = Annotated[Text, AfterValidator(str.strip)]


class FamilyEntry(Config):
    """A family of prompts: the idea from learning science that it follows, a publication, how often it is sampled."""

    idea: Line | None = None
    reference: Line | None = None
    weight: Positive | None = None


class PromptEntry(Config):
    """A prompt."""

    id: Line
    family: Annotated[Line, AfterValidator(_family)]
    text: Annotated[Line, AfterValidator(_short)]


class PromptSetFile(Config):
    """The YAML file of a prompt set, in the shape that ``ctxft.prompts.sets`` shows."""

    name: Line
    kind: Literal["strategy", "negative", "neutral"]
    prompts: list[PromptEntry] = Field(min_length=1)
    version: Count = 1
    extends: Annotated[str, AfterValidator(_extended)] | None = None
    placement: Literal["before", "user", "system"] | None = None
    separator: Annotated[str, AfterValidator(_separator)] | None = None
    families: dict[str, FamilyEntry] = Field(default_factory=dict)


def load_prompt_set(source: str | Path) -> PromptSet:
    """Return a prompt set of the package, or a custom one.

    Args:
        source: "strategies", "negative", another of ``PROMPT_SETS``, or the path of a YAML file in the shape that
            ``ctxft.prompts.sets`` shows.

    Raises:
        InputError: no such prompt set; or all mistakes of the file, each with its line.

    Example:
        >>> len(load_prompt_set("strategies").families)
        10
    """
    path = prompt_set_path(source)
    return _parse(read_text(path), path)


@functools.lru_cache(maxsize=32)
def _parse(text: str, path: Path) -> PromptSet:
    file = load_yaml(PromptSetFile, path, text)
    base = load_prompt_set(file.extends) if file.extends else PromptSet(name="empty", kind=file.kind, prompts=())
    if mistakes := list(_mistakes(file, base)):
        raise input_error(mistakes, str(path), text)
    prompts = {prompt.id: prompt for prompt in base.prompts}
    prompts |= {entry.id: ContextualPrompt(**entry.model_dump(), kind=file.kind) for entry in file.prompts}
    families = {prompt.family for prompt in prompts.values()}

    def of_families(key: str, inherited: dict) -> dict:
        """Return what base and file say of the families; those whose prompts are all replaced drop out."""
        own = {name: value for name, entry in file.families.items() if (value := getattr(entry, key)) is not None}
        return {name: value for name, value in (inherited | own).items() if name in families}

    # a publication belongs to the idea that it was named for: an idea in other words drops the base's
    reworded = {name for name, entry in file.families.items() if entry.idea is not None}
    references = {name: value for name, value in base.references.items() if name not in reworded}
    return PromptSet(
        name=file.name,
        kind=file.kind,
        prompts=tuple(prompts.values()),
        ideas=of_families("idea", base.ideas),
        version=file.version,
        references=of_families("reference", references),
        placement=file.placement or base.placement,
        separator=file.separator or base.separator,
        weights=of_families("weight", base.weights),
    )


def _mistakes(file: PromptSetFile, base: PromptSet) -> Iterator[tuple[Loc, str]]:
    """Yield what is wrong between the parts of a file."""
    if base.kind != file.kind:
        yield ("kind",), f"a prompt set of kind '{file.kind}' cannot extend one of kind '{base.kind}'."
    known, ids = [*FAMILIES, *base.families, *file.families], set()
    for place, prompt in enumerate(file.prompts):
        if prompt.id in ids:
            yield ("prompts", place, "id"), f"the id '{prompt.id}' is used twice: give each prompt its own."
        ids.add(prompt.id)
        if prompt.family not in known:
            hint = f"{nearest(prompt.family, known)}: name it under 'families' with the idea that it follows."
            yield ("prompts", place, "family"), f"unknown family '{prompt.family}'{hint}"
    used = {prompt.family for prompt in file.prompts} | {*base.families}
    for family, entry in file.families.items():
        if family not in used:
            yield ("families", family), f"the family '{family}' has no prompt{nearest(family, used)}: write one."
        elif entry.idea is None and family not in (*FAMILIES, *base.ideas):
            yield ("families", family), f"the key 'families.{family}.idea' is missing."


def prompt_set_path(source: str | Path) -> Path:
    """Return the file of a prompt set, of the package or a custom one; raises InputError for a name that is neither."""
    path = Path(source)
    if str(source) in PROMPT_SETS:
        return PACKAGE_ROOT / "prompts" / "sets" / f"{source}.yaml"
    if not path.suffix and not is_there(path):
        known = f"{nearest(str(source), PROMPT_SETS)}; give one of {', '.join(PROMPT_SETS)} or a YAML file"
        raise InputError(f"unknown prompt set '{source}'{known}.")
    return path
