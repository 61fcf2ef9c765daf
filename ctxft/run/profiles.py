"""The name of a profile or the path of a YAML file goes in; the mapping that it holds comes out, unchecked."""

from __future__ import annotations

from pathlib import Path

from ctxft.storage import PACKAGE_ROOT, InputError, check_known, read_yaml

PROFILES = PACKAGE_ROOT / "profiles"


def path_of(source: str | Path) -> Path:
    """Return the YAML file of a profile's name ("mini") or of a path.

    Raises:
        InputError: no profile of that name (the nearest is named).
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return path
    return PROFILES / f"{check_known(str(source), sorted(p.stem for p in PROFILES.glob('*.yaml')), 'profile')}.yaml"


def values_of(path: Path) -> dict:
    """Read the mapping that a YAML file must hold.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of keys to values, such as `name: my-run`.")
    return values


def notebook_parameters(source: str | Path) -> dict:
    """Return what a profile or YAML file says under ``notebooks``: parameters of the course, which are no part of the experiment.

    Raises:
        InputError: unknown profile, or it is no mapping.
    """
    path = path_of(source)
    found = values_of(path).get("notebooks", {})
    if not isinstance(found, dict):
        raise InputError(f"{path.name}: notebooks must be a mapping of parameters to values, such as `seed_number: 1`.")
    return found
