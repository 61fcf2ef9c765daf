"""A YAML file goes in; a prompt set with every value checked comes out, or one sentence with the file and the line."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import yaml

from ctxft.prompts.sets import (
    FAMILIES,
    FAMILY_NAME,
    KINDS,
    LONGEST,
    PLACEMENTS,
    PROMPT_KEYS,
    PROMPT_SET_KEYS,
    PROMPT_SETS,
    ContextualPrompt,
    PromptSet,
)
from ctxft.storage import PACKAGE_ROOT, InputError, is_there, nearest, parse_yaml, read_text


def load_prompt_set(source: str | Path) -> PromptSet:
    """Return a prompt set of the package, or a user's own.

    Args:
        source: "strategies", "negative", another of ``PROMPT_SETS``, or the path of a YAML file in the shape that
            ``ctxft.prompts.sets`` shows.

    Raises:
        InputError: no such prompt set, or a key that is missing, unknown, repeated, empty or of the wrong type, a prompt without
            a known family or of more than ``LONGEST`` words; the message names the file and the line.

    Example:
        >>> len(load_prompt_set("strategies").families)
        10
    """
    path = prompt_set_path(source)
    return _parse(read_text(path), path)


@functools.lru_cache(maxsize=32)
def _parse(text: str, path: Path) -> PromptSet:
    parse_yaml(text, str(path))  # the one place that words a syntax error; the nodes below know their lines
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    entries = _mapping(root, path, PROMPT_SET_KEYS, required=("name", "kind", "prompts"))
    kind = _one_of(entries["kind"], path, KINDS, "kind")
    base = _base(entries, path, kind)
    prompts = {prompt.id: prompt for prompt in (*base.prompts, *_prompts(entries, path, base))}
    families = {prompt.family for prompt in prompts.values()}
    told = _families(entries.get("families"), path, families, base)
    # a publication belongs to the idea it was given with: an idea in other words drops the base's
    references = {family: text for family, text in base.references.items() if family not in told["idea"]}

    def kept(values: dict) -> dict:  # what an extended prompt set says of a family whose prompts are all replaced
        return {family: value for family, value in values.items() if family in families}

    return PromptSet(
        name=_text(entries["name"], path, "name"),
        kind=kind,
        prompts=tuple(prompts.values()),
        ideas=kept(base.ideas | told["idea"]),
        version=_whole_number(entries["version"], path, "version") if "version" in entries else 1,
        references=kept(references | told["reference"]),
        placement=_one_of(entries["placement"], path, PLACEMENTS, "placement")
        if "placement" in entries
        else base.placement,
        separator=_separator(entries["separator"], path) if "separator" in entries else base.separator,
        weights=kept(base.weights | told["weight"]),
    )


def prompt_set_path(source: str | Path) -> Path:
    """Return the file of a prompt set, of the package or a user's own; raises InputError for a name that is neither."""
    path = Path(source)
    if str(source) in PROMPT_SETS:
        return PACKAGE_ROOT / "prompts" / "sets" / f"{source}.yaml"
    if not path.suffix and not is_there(path):
        known = f"{nearest(str(source), PROMPT_SETS)}; give one of {', '.join(PROMPT_SETS)} or a YAML file"
        raise InputError(f"unknown prompt set '{source}'{known}.")
    return path


def prompt_lines(path: Path) -> dict[str, int]:
    """Return the line of each prompt's text in a prompt set's file, for errors that need a tokenizer to be found."""
    root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    entries = _mapping(root, Path(path), PROMPT_SET_KEYS)
    items = [_mapping(item, Path(path), PROMPT_KEYS) for item in entries["prompts"].value]
    return {item["id"].value: item["text"].start_mark.line + 1 for item in items}


def _base(entries: dict[str, yaml.Node], path: Path, kind: str) -> PromptSet:
    if "extends" not in entries:
        return PromptSet(name="empty", kind=kind, prompts=())
    base = load_prompt_set(_one_of(entries["extends"], path, PROMPT_SETS, "prompt set to extend"))
    if base.kind != kind:
        raise _error(path, entries["kind"], f"a prompt set of kind '{kind}' cannot extend one of kind '{base.kind}'")
    return base


def _prompts(root: dict[str, yaml.Node], path: Path, base: PromptSet) -> list[ContextualPrompt]:
    node, declared = root["prompts"], root.get("families")
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise _error(path, node, "'prompts' must be a list with at least one prompt")
    known = [*FAMILIES, *base.families, *(_mapping(declared, path) if declared else ())]
    prompts: dict[str, ContextualPrompt] = {}
    for item in node.value:
        entries = _mapping(item, path, PROMPT_KEYS, PROMPT_KEYS)
        values = {key: _text(entries[key], path, key) for key in PROMPT_KEYS}
        if values["id"] in prompts:
            raise _error(path, entries["id"], f"the id '{values['id']}' is used twice: give each prompt its own")
        if values["family"] not in known:
            told = f"unknown family '{values['family']}'{nearest(values['family'], known)}"
            raise _error(path, entries["family"], f"{told}: name it under 'families' with the idea behind it")
        if not re.fullmatch(FAMILY_NAME, values["family"]) or values["family"].endswith("-ift"):
            rule = "letters, digits, '-', '_' or '.', since arms such as only-FAMILY are named after it"
            raise _error(path, entries["family"], f"the family '{values['family']}' needs a name of {rule}")
        if len(values["text"].split()) > LONGEST:
            words = len(values["text"].split())
            raise _error(
                path, entries["text"], f"prompt '{values['id']}' has {words} words, at most {LONGEST} are read"
            )
        prompts[values["id"]] = ContextualPrompt(**values, kind=_text(root["kind"], path, "kind"))
    return list(prompts.values())


def _families(node: yaml.Node | None, path: Path, known: set[str], base: PromptSet) -> dict[str, dict]:
    """Return what a file tells of its families: {"idea": {family: text}, "reference": ..., "weight": ...}."""
    told: dict[str, dict] = {"idea": {}, "reference": {}, "weight": {}}
    for family, value in _mapping(node, path).items() if node else ():
        if family not in known:
            raise _error(path, value, f"the family '{family}' has no prompt{nearest(family, known)}: write one")
        required = () if family in (*FAMILIES, *base.ideas) else ("idea",)
        for key, entry in _mapping(value, path, tuple(told), required).items():
            told[key][family] = _weight(entry, path) if key == "weight" else _text(entry, path, key)
    return told


def _weight(node: yaml.Node, path: Path) -> float:
    try:
        weight = float(node.value)
    except (TypeError, ValueError):
        weight = 0.0
    if not 0 < weight < math.inf:
        raise _error(path, node, "'weight' must be a number above 0: leave a family out by leaving out its prompts")
    return weight


def _separator(node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.value.endswith("\n") or node.value.strip():
        raise _error(path, node, "'separator' must be white space that ends in a newline, such as \"\\n\\n\"")
    return node.value


def _error(path: Path, node: yaml.Node | None, message: str) -> InputError:
    line = node.start_mark.line + 1 if node is not None else 1
    return InputError(f"{path}, line {line}: {message}.")


def _mapping(node: yaml.Node | None, path: Path, known: tuple = (), required: tuple = ()) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise _error(path, node, f"a mapping is needed here ({', '.join(known) or 'family: {idea: ...}'})")
    entries: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = key_node.value
        if not isinstance(key, str):
            raise _error(path, key_node, "a key must be a word")
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
