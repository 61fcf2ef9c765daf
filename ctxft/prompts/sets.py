r"""A seed, a passage id and a prompt set go in; the contextual prompt that stands before the passage comes out.

A prompt set holds short prompts in families. Each family is one way of learning (Choi et al., *Teaching LLMs How to Learn
with Contextual Fine-Tuning*, ICLR 2025, arXiv 2503.09032, names ten); the wording is ours. The draw takes a family
uniformly, or by the weights that the prompt set gives, then a prompt of that family uniformly, so that a family with many
prompts is not drawn more often.
The prompt sets themselves are YAML files in ``ctxft/prompt sets``; a user's own file replaces or extends one:

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

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from ctxft.storage import seeded, sha256

PROMPT_SETS = tuple(
    "strategies negative strategies-reworded negative-reworded strategies-wide negative-wide strategies-medical "
    "strategies-financial neutral".split()
)
KINDS = ("strategy", "negative", "neutral")
FAMILIES = tuple(
    "application exploration reflection creative synthesis key-concepts context critical questions comparison".split()
)
FAMILY_NAME = r"[A-Za-z0-9][\w.-]*"  # stands in names of arms, so of folders
PLACEMENTS = ("before", "user", "system")
SEPARATOR = "\n\n"
MANY = 1000  # draws until an allowed prompt must have come
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
        references: family -> a publication about that idea; no part of ``to_dict`` and ``hash``, since it changes no draw.
        placement: "before" the text, or in the "user" or "system" turn of the tokenizer's chat template, with the text as the
            assistant's turn.
        separator: between prompt and text, for placement "before".
        weights: family -> how often it is drawn, where not all are drawn equally often.

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
        """What is tokenised together with a prompt, behind it: the separator, or nothing within a turn."""
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
        families = {family: {"idea": idea} for family, idea in self.ideas.items()}
        for family, weight in self.weights.items():
            families.setdefault(family, {})["weight"] = weight
        usual = {"placement": "before", "separator": SEPARATOR}  # named only where they differ, as in a file
        options = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        head = {"name": self.name, "kind": self.kind, "version": self.version, **options}
        return {**head, "families": families, "prompts": prompts}

    def sample(
        self, seed: int, passage_id: str, allowed: Collection[ContextualPrompt] | None = None
    ) -> ContextualPrompt:
        """Return the prompt of a passage: a family drawn uniformly (or by weight), then a prompt of it drawn uniformly.

        The draw depends on the seed, the passage id and this prompt set alone, not on the order or number of draws. Where only
        some prompts are allowed it is repeated until one of them comes, so that a draw that was allowed anyway stays.

        Args:
            seed: of the run.
            passage_id: of the passage that the prompt stands before.
            allowed: prompts of this prompt set; None allows all.
        """
        if allowed is not None and not set(self.prompts) & set(allowed):
            raise ValueError("no prompt of the prompt set is allowed")
        random = seeded(seed, passage_id, self.hash)
        weights = [self.weights.get(family, 1.0) for family in self.families]
        for _ in range(1 if allowed is None else MANY):
            family = random.choices(self.families, weights)[0] if self.weights else random.choice(self.families)
            prompt = random.choice(self.members[family])
            if allowed is None or prompt in allowed:
                return prompt
        # what is allowed has hardly any weight: the same odds, without the wait
        left = [prompt for prompt in self.prompts if prompt in allowed]
        odds = [self.weights.get(prompt.family, 1.0) / len(self.members[prompt.family]) for prompt in left]
        return random.choices(left, odds)[0]
