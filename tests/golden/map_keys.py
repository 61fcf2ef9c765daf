"""Give config keys the names of the field, in YAML experiments and in results files; everything else stays as it is.

python -m tests.golden.map_keys              the golden experiments and notebooks/results
python -m tests.golden.map_keys FILE ...     other experiments, such as ctxft/profiles/*.yaml

A second run changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from ctxft.config import RENAMED, RENAMED_VALUES
from tests.golden.recordings import RESULTS, config_paths

Edit = tuple[int, int, str]  # from, to, what stands there instead


def map_keys(text: str) -> str:
    """Return the text of a YAML or JSON file with new names of keys; comments, order and numbers stay.

    Keys are those of an experiment, or of a mapping anywhere that spells them with their section, as --set does.

    Example:
        >>> map_keys("train: {window: 96, betas: [0.9, 0.95]}  # small")
        'train: {max_length: 96, adam_beta1: 0.9, adam_beta2: 0.95}  # small'
        >>> map_keys('{"values": {"train.epochs": 12}}')
        '{"values": {"train.num_train_epochs": 12}}'
    """
    for begin, end, new in sorted(_edits(text, yaml.compose(text, Loader=yaml.CSafeLoader), ""), reverse=True):
        text = text[:begin] + new + text[end:]
    return text


def _edits(text: str, node: yaml.Node, section: str) -> Iterator[Edit]:
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            yield from _edits(text, inner, "-")
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{section}.{key.value}".removeprefix(".")
        name = key.value if "." in key.value else name
        new = RENAMED.get(name)
        if isinstance(new, list):
            yield _spread(text, node, (key, value), new)
            continue
        if new is not None:
            yield key.start_mark.index, key.end_mark.index, _named(text, key, new)
        if isinstance(value, yaml.ScalarNode) and value.value in RENAMED_VALUES.get(name, {}):
            place = value.start_mark.index, value.end_mark.index
            yield *place, text[slice(*place)].replace(value.value, RENAMED_VALUES[name][value.value])
        yield from _edits(text, value, name)


def _named(text: str, key: yaml.Node, new: str) -> str:
    """Return a key as the file writes it, quotes and section included, with another last name."""
    raw, old = text[key.start_mark.index : key.end_mark.index], key.value.rsplit(".", 1)[-1]
    before, after = raw.rsplit(old, 1)
    return before + new + after


def _spread(text: str, mapping: yaml.Node, pair: tuple[yaml.Node, yaml.Node], names: list[str]) -> Edit:
    """Return the edit that gives each item of a list a key of its own."""
    key, items = pair
    between = ", " if mapping.flow_style else "\n" + " " * key.start_mark.column
    values = [text[item.start_mark.index : item.end_mark.index] for item in items.value]
    lines = [f"{_named(text, key, name)}: {value}" for name, value in zip(names, values, strict=True)]
    return key.start_mark.index, items.end_mark.index, between.join(lines)


def main(files: list[str]) -> None:
    """Rewrite files in place, and name those that changed."""
    for path in map(Path, files) if files else (*config_paths(), *sorted(RESULTS.glob("*.json"))):
        text = path.read_text(encoding="utf-8")
        if (changed := map_keys(text)) != text:
            path.write_text(changed, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
