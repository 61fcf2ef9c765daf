"""A seed, a passage id and a prompt book go in; the contextual prompt that stands before the passage comes out.

A book holds short prompts in families. Each family is one way of learning (Choi et al., *Teaching LLMs How to Learn
with Contextual Fine-Tuning*, ICLR 2025, arXiv 2503.09032, names ten); the wording is ours. The draw takes a family
uniformly, then a prompt of that family uniformly, so that a family with many prompts is not drawn more often.
The books themselves are YAML files in ``ctxft/books``; a user's own file replaces or extends one:

    name: my-strategies
    kind: strategy            # or negative
    extends: strategies       # optional: start from this book; a prompt with the same id is replaced
    families:                 # optional: the idea behind each family, and a publication about it
      drawing: {idea: "Sketching a process makes its steps explicit.", reference: "Author & Author (year), Journal"}
    prompts:
      - id: drawing-1
        family: drawing
        text: "Sketch in your mind the process that the text below describes."
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml

from ctxft.runtime import PACKAGE_ROOT, InputError, nearest, read_text, read_yaml, seeded, sha256

BOOKS = ("strategies", "negative", "strategies-reworded", "negative-reworded")
KINDS = ("strategy", "negative")
PROMPT_KEYS = ("id", "family", "text")
BOOK_KEYS = ("name", "kind", "version", "extends", "families", "prompts")


@dataclass(frozen=True)
class ContextualPrompt:
    """A text that the model reads before a passage, without learning it.

    Args:
        id: unique in its book, for example "application-1".
        family: the way of learning it belongs to ("control" for control prompts).
        text: what the model reads, without the separator.
        kind: "strategy", "negative" or "control".
    """

    id: str
    family: str
    text: str
    kind: str


@dataclass(frozen=True)
class PromptBook:
    """Prompts of one kind, in families.

    Args:
        name: the book's name, as a run records it.
        kind: "strategy" or "negative"; every prompt of the book has it.
        prompts: in the order of the file.
        ideas: family -> the idea from learning science behind it, in one line.
        version: the author's number for the wording.
        references: family -> a publication about that idea; no part of ``to_dict`` and ``hash``, since it changes no draw.

    Example:
        >>> load_book("strategies").draw(seed=0, passage_id="p1").kind
        'strategy'
    """

    name: str
    kind: str
    prompts: tuple[ContextualPrompt, ...]
    ideas: dict[str, str] = field(default_factory=dict, hash=False)
    version: int = 1
    references: dict[str, str] = field(default_factory=dict, compare=False)

    @cached_property
    def families(self) -> tuple[str, ...]:
        """The families, in the order in which the prompts name them first."""
        return tuple(dict.fromkeys(prompt.family for prompt in self.prompts))

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of ``to_dict()``: another wording, order or name is another book."""
        return sha256(self.to_dict())

    def to_dict(self) -> dict:
        """Return the book in the shape of its file, so that a dump of it can be loaded again."""
        prompts = [{"id": prompt.id, "family": prompt.family, "text": prompt.text} for prompt in self.prompts]
        families = {family: {"idea": idea} for family, idea in self.ideas.items()}
        return {"name": self.name, "kind": self.kind, "version": self.version, "families": families, "prompts": prompts}

    def draw(self, seed: int, passage_id: str) -> ContextualPrompt:
        """Return the prompt of a passage: a family drawn uniformly, then a prompt of it drawn uniformly.

        The draw depends on the seed, the passage id and this book alone, not on the order or number of draws.
        """
        random = seeded(seed, passage_id, self.hash)
        family = random.choice(self.families)
        return random.choice([prompt for prompt in self.prompts if prompt.family == family])


# --- reading a book ---------------------------------------------------------------------------------------------------


def load_book(source: str | Path) -> PromptBook:
    """Return a prompt book of the package, or a user's own.

    Args:
        source: "strategies", "negative", or the path of a YAML file in the shape shown at the top of this module.

    Raises:
        InputError: no such book, or a key that is missing, unknown, repeated, empty or of the wrong type; the message
            names the file and the line.
    """
    path = Path(source)
    if str(source) in BOOKS:
        path = PACKAGE_ROOT / "books" / f"{source}.yaml"
    elif not path.suffix and not path.exists():
        known = f"{nearest(str(source), BOOKS)}; give one of {', '.join(BOOKS)} or a YAML file"
        raise InputError(f"unknown prompt book '{source}'{known}.")
    read_yaml(path)  # the one place that words a syntax error; the nodes below know their lines
    root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    entries = _mapping(root, path, BOOK_KEYS, required=("name", "kind", "prompts"))
    kind = _one_of(entries["kind"], path, KINDS, "kind")
    base = _base(entries, path, kind)
    prompts = {prompt.id: prompt for prompt in (*base.prompts, *_prompts(entries["prompts"], path, kind))}
    families = {prompt.family for prompt in prompts.values()}
    ideas, references = _families(entries.get("families"), path, families)
    # a publication belongs to the idea it was given with: an idea in other words drops the base's
    references = {family: text for family, text in base.references.items() if family not in ideas} | references
    ideas = base.ideas | ideas
    return PromptBook(
        name=_text(entries["name"], path, "name"),
        kind=kind,
        prompts=tuple(prompts.values()),
        ideas={family: idea for family, idea in ideas.items() if family in families},
        version=_whole_number(entries["version"], path, "version") if "version" in entries else 1,
        references={family: text for family, text in references.items() if family in families},
    )


def _base(entries: dict[str, yaml.Node], path: Path, kind: str) -> PromptBook:
    if "extends" not in entries:
        return PromptBook(name="empty", kind=kind, prompts=())
    base = load_book(_one_of(entries["extends"], path, BOOKS, "book to extend"))
    if base.kind != kind:
        raise _error(path, entries["kind"], f"a book of kind '{kind}' cannot extend one of kind '{base.kind}'")
    return base


def _prompts(node: yaml.Node, path: Path, kind: str) -> list[ContextualPrompt]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise _error(path, node, "'prompts' must be a list with at least one prompt")
    prompts: dict[str, ContextualPrompt] = {}
    for item in node.value:
        entries = _mapping(item, path, PROMPT_KEYS, PROMPT_KEYS)
        values = {key: _text(entries[key], path, key) for key in PROMPT_KEYS}
        if values["id"] in prompts:
            raise _error(path, entries["id"], f"the id '{values['id']}' is used twice: give each prompt its own")
        prompts[values["id"]] = ContextualPrompt(**values, kind=kind)
    return list(prompts.values())


def _families(node: yaml.Node | None, path: Path, known: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    ideas: dict[str, str] = {}
    references: dict[str, str] = {}
    for family, value in _mapping(node, path).items() if node else ():
        if family not in known:
            raise _error(path, value, f"the family '{family}' has no prompt{nearest(family, known)}: write one")
        entries = _mapping(value, path, ("idea", "reference"), ("idea",))
        ideas[family] = _text(entries["idea"], path, "idea")
        if "reference" in entries:
            references[family] = _text(entries["reference"], path, "reference")
    return ideas, references


def _error(path: Path, node: yaml.Node | None, message: str) -> InputError:
    line = node.start_mark.line + 1 if node is not None else 1
    return InputError(f"{path}, line {line}: {message}.")


def _mapping(node: yaml.Node | None, path: Path, known: tuple = (), required: tuple = ()) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise _error(path, node, f"a mapping is needed here ({', '.join(known) or 'family: {idea: ...}'})")
    entries: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = key_node.value
        if known and key not in known:
            raise _error(path, key_node, f"unknown key '{key}'{nearest(str(key), known)}; known: {', '.join(known)}")
        if key in entries:
            raise _error(path, key_node, f"the key '{key}' stands twice: remove one")
        entries[key] = value
    for key in required:
        if key not in entries:
            raise _error(path, node, f"the key '{key}' is missing")
    return entries


def _text(node: yaml.Node, path: Path, key: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:null"):
        raise _error(path, node, f"'{key}' must be text: put it in quotes")
    text = "" if node.tag.endswith("null") else node.value.strip()
    if not text:
        raise _error(path, node, f"'{key}' is empty: write it or remove the entry")
    return text


def _whole_number(node: yaml.Node, path: Path, key: str) -> int:
    if node.tag != "tag:yaml.org,2002:int" or not node.value.isdecimal():
        raise _error(path, node, f"'{key}' must be a whole number such as 1")
    return int(node.value)


def _one_of(node: yaml.Node, path: Path, known: tuple[str, ...], what: str) -> str:
    word = _text(node, path, what)
    if word not in known:
        raise _error(path, node, f"unknown {what} '{word}'{nearest(word, known)}; known: {', '.join(known)}")
    return word
