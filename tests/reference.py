"""The tables of docs/reference.md, from the pydantic models of the configuration and the typer commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import typer
from pydantic import BaseModel

from ctxft.cli import app
from ctxft.config import ExperimentConfig
from ctxft.synthetic.config import SyntheticConfig


def cell(text: str) -> str:
    """Return a text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def allowed(schema: dict, definitions: dict) -> str:
    """Return in words what a field takes, from its JSON schema: type, choices, range."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(allowed(part, definitions) for part in schema["anyOf"]))
    if "$ref" in schema:
        return allowed(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = {"array": "list", "integer": "whole number", "string": "text", "boolean": "true or false", "null": "null"}
    words = [kind.get(schema.get("type", ""), schema.get("type", ""))]
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    words += [f"{word} {schema[key]:g}" for key, word in bounds.items() if key in schema]
    return " ".join(filter(None, words))


def rows_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Yield (key, what it takes, default, meaning) of every field, those of sections after their section."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        inner = next(
            (part for part in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_model(part)), None
        )
        if inner is not None:
            yield f"**`{prefix}{name}`**", "section", "", field.description or ""
            yield from rows_of(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
        takes = allowed(schema["properties"][name], schema.get("$defs", {}))
        yield f"`{prefix}{name}`", takes, default, field.description or ""


def is_model(kind: object) -> bool:
    """Return whether an annotation is a section, a model of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def configuration_block() -> str:
    """Return the tables of all keys of an experiment and of a synthetic study."""
    columns = ("key", "takes", "default", "meaning")
    experiment, study = (table(columns, rows_of(model)) for model in (ExperimentConfig, SyntheticConfig))
    return f"{experiment}\n\n### Synthetic study\n\nFor `ctxft synthetic --set KEY=VALUE`.\n\n{study}"


def commands_of(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (words, command) of every command that does something, but for those that the kit alone gives."""
    if hasattr(command, "commands"):
        for verb, part in command.commands.items():
            yield from commands_of(part, f"{name} {verb}")
    elif not command.hidden:
        yield name, command


def commands_block() -> str:
    """Return every command with its arguments and options."""
    parts = []
    for name, command in commands_of(typer.main.get_command(app), "ctxft"):
        rows = []
        for parameter in command.params:
            if parameter.name == "help":
                continue
            names = (*parameter.opts, *parameter.secondary_opts)
            label = (
                (parameter.metavar or parameter.name.upper())
                if parameter.param_type_name == "argument"
                else ", ".join(names)
            )
            default = parameter.default
            shown = (
                "" if default in (None, False) or callable(default) or parameter.required else f" (default: {default})"
            )
            rows.append((f"`{label}`", f"{getattr(parameter, 'help', '') or ''}{shown}"))
        about = re.sub(r"\s+", " ", (command.help or "").split("\f")[0]).strip()
        parts.append(
            "\n\n".join(
                filter(None, (f"### {name}", about, table(("argument", "meaning"), iter(rows)) if rows else ""))
            )
        )
    return "\n\n".join(parts)
