"""Ground that every stage stands on: errors of tasks, seeds, hashes, files that appear whole, strict configs.

Nothing in this module imports torch or transformers, so that ``ctxft --help`` and reading a run folder stay quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import subprocess
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from ctxft.parsing import InputError, is_unicode, parse_json, parse_yaml, shown

PACKAGE_ROOT = Path(__file__).resolve().parent
REPO_ROOT = PACKAGE_ROOT.parent
MOST = 10**300  # of a number in a config; there is no reason to come near what a float holds
LIBRARIES = tuple(
    "ctxft torch transformers datasets peft accelerate jupyterlab papermill nbval ipywidgets matplotlib".split()
)


class FailedError(RuntimeError):
    """A task or a notebook stopped for a reason of its own; the message ends with its output; the command line exits with 1."""


# --- seeds and hashes -------------------------------------------------------------------------------------------------


def sha256(value: object) -> str:
    """Return the SHA-256 of a JSON value (keys sorted), of a string, or of bytes, as 64 hexadecimal digits.

    Example:
        >>> sha256({"b": 1, "a": 2}) == sha256({"a": 2, "b": 1})
        True
    """
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    elif not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
    return hashlib.sha256(value).hexdigest()


@functools.lru_cache(maxsize=1024)
def _hash_file(path: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; read once in a process unless its size or time changes."""
    stat = Path(path).stat()
    return _hash_file(Path(path), stat.st_size, stat.st_mtime_ns)


def seeded(*keys: object) -> random.Random:
    """Return a random generator that depends on the keys alone (seed, passage id, ...), equal in every process.

    Example:
        >>> seeded(0, "passage-7").random() == seeded(0, "passage-7").random()
        True
    """
    return random.Random(int(sha256(list(map(str, keys)))[:16], 16))


# --- files ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path, binary: bool = False) -> Iterator[typing.IO]:
    """Give a file (UTF-8 text, or bytes) that takes its place at ``path`` when the block ends, and vanishes if it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        kind = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8", "newline": "\n"}
        with os.fdopen(handle, **kind) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text so that the file appears whole or not at all; returns the path."""
    with whole_file(path) as file:
        file.write(text)
    return Path(path)


def write_json(path: Path, value: object) -> Path:
    """Write a JSON file, indented and with sorted keys, whole or not at all."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> Path:
    """Write one JSON object a line, whole or not at all; rows are taken one by one."""
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Path(path)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` that takes its place when the block ends, and vanishes if it fails.

    A folder that was already at ``path`` is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_text(path: Path) -> str:
    """Return a file's UTF-8 text.

    Raises:
        InputError: the file is missing, cannot be read, or is not UTF-8 (the byte position is named).
    """
    path = Path(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, but a file is needed here.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8, for example with iconv."
        ) from None
    except (OSError, ValueError) as error:  # no right to read it, a name of thousands of letters, a name with NUL
        raise InputError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): check the path."
        ) from None


def read_json(path: Path) -> typing.Any:
    """Return a JSON file's value; raises InputError that names the file."""
    return parse_json(read_text(path), str(path))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) for each non-empty line of a JSON Lines file.

    Raises:
        InputError: a line is not valid JSON, or not an object; file and line are named.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = parse_json(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: a JSON object is needed, found {type(row).__name__}.")
            yield number, row


def read_yaml(path: Path) -> typing.Any:
    """Return a YAML file's value (safe loader: no code); raises InputError with file and line."""
    return parse_yaml(read_text(path), str(path))


def is_there(path: str | Path) -> bool:
    """Return whether a path leads to something; a name that no system can have (too long, with NUL) does not."""
    return os.path.exists(path)


# --- strict configs ---------------------------------------------------------------------------------------------------


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, else ""."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""


def check_known(word: str, known: Iterable[str], what: str) -> str:
    """Return ``word`` if it is one of ``known``; else raise InputError that names the nearest one and all of them."""
    known = list(known)
    if word not in known:
        raise InputError(f"unknown {what} '{word}'{nearest(str(word), known)}; known: {', '.join(known)}.")
    return word


def _check_type(value: object, kind: object, where: str) -> object:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        kind = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, where)
    if typing.get_origin(kind) in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} must be a list, found {shown(value)}.")
        inner = typing.get_args(kind)[0]
        return [_check_type(item, inner, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not -MOST <= value <= MOST:  # not a number is no less and no more than any
            raise InputError(f"{where} must be a number between -1e300 and 1e300, found {shown(value)}.")
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        hint = " (YAML reads 1e-4 as text; write 1.0e-4)" if kind is float and isinstance(value, str) else ""
        raise InputError(f"{where} must be {kind.__name__}, found {shown(value)}{hint}.")
    if isinstance(value, str) and not is_unicode(value):  # a command line may bring one
        raise InputError(f"{where} holds a lone surrogate, half of a character: mend it.")
    return value


def from_mapping(kind: type, values: object, where: str) -> typing.Any:
    """Build a dataclass from a mapping, strictly: unknown keys and wrong types are refused, nothing is converted silently.

    Args:
        kind: the dataclass; its fields may be dataclasses, lists and optional values.
        values: the mapping, as read from YAML; missing keys take the field's default.
        where: stands at the start of each error, e.g. "config.yaml" or "config.yaml: train".

    Raises:
        InputError: an unknown key (the nearest right one is named), a missing required key, or a wrong type.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping of keys to values, found {values!r}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            raise InputError(f"{where}: unknown key '{key}'{nearest(str(key), fields)}; known: {', '.join(fields)}.")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"{where}: the key '{name}' is missing.")
    checked = {key: _check_type(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    try:
        return kind(**checked)
    except InputError as error:  # what the dataclass itself finds wrong, which does not know where it was read
        raise InputError(f"{where}: {error}") from None


# --- where runs live, and what they ran on ----------------------------------------------------------------------------


def runs_root() -> Path:
    """Return the folder of all runs: ``CTXFT_RUNS``, else ``runs/`` in the repository, else (installed) ~/ctxft-runs."""
    if os.environ.get("CTXFT_RUNS"):
        return Path(os.environ["CTXFT_RUNS"]).expanduser().resolve()
    return REPO_ROOT / "runs" if (REPO_ROOT / "pyproject.toml").exists() else Path.home() / "ctxft-runs"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide a result; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_revision() -> str:
    """Return the git revision of the code ("+changes" if the working tree differs), or "unknown" outside a repository."""
    if not (REPO_ROOT / ".git").exists() or not shutil.which("git"):
        return "unknown"
    git = ["git", "-C", str(REPO_ROOT)]
    head = subprocess.run([*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    status = subprocess.run([*git, "status", "--porcelain", "--", "ctxft"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
