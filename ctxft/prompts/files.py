"""Read a prompt set from its YAML file, and report each of its mistakes with the line."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ctxft.config import Config, Count, Loc, Positive, Text, input_error, load_yaml
from ctxft.prompts.sets import FAMILIES, FAMILY_NAME, LONGEST, PROMPT_SETS, ContextualPrompt, PromptSet
from ctxft.storage import PACKAGE_ROOT, InputError, check_known, is_there, nearest, read_text


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
