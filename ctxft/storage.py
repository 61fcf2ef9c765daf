"""Read and write the files of a run so that they are whole, checked, and owned by one process.

Every format of the kit is read here, strictly: a mistake in a file is one sentence (``InputError``) with file and line.
Nothing in this module imports torch or transformers, so that ``ctxft --help`` and reading a run folder stay quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import random
import re
import reprlib
import shutil
import subprocess
import sys
import tempfile
import threading
import typing
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

PACKAGE_ROOT = Path(__file__).resolve().parent
REPO_ROOT = PACKAGE_ROOT.parent
LIBRARIES = "ctxft torch transformers datasets peft accelerate jupyterlab papermill nbval ipywidgets matplotlib".split()
LONGEST = 4000  # characters of an error: it may quote a text of any length
MOST_NODES = 1_000_000  # that aliases of a YAML file may write out
SURROGATE = re.compile(r"[\ud800-\udfff]")
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON spells half of a character that takes two
# What PyYAML raises for a tag whose value is none of its kind, a date that is no day, or a number without digits.
NO_VALUE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
KEPT = "What was finished is kept, and the same command continues from there."
REFUSED = {  # number of the system -> what it refuses, {} for the place, and advice
    errno.ENOSPC: "no space is left on the disk{}: free some, or set CTXFT_RUNS to a larger disk",
    errno.EDQUOT: "the disk quota is used up{}: free some, or set CTXFT_RUNS to another disk",
    errno.EFBIG: "the file would be larger than the system allows{}: set CTXFT_RUNS to another disk",
    errno.EROFS: "the file system is read-only{}: set CTXFT_RUNS to a folder that you can write to",
    errno.EACCES: "there is no right to write or read{}: change the rights, or set CTXFT_RUNS to a folder of yours",
    errno.EPERM: "there is no right to write or read{}: change the rights, or set CTXFT_RUNS to a folder of yours",
    errno.EMFILE: "too many files are open{}: raise the limit (ulimit -n)",
    errno.EIO: "the disk reports an error{}: check it, or set CTXFT_RUNS to another disk",
}
MEMORY = re.compile(
    "not enough memory|out of memory|(cannot|can't|unable to) allocate|bad_alloc|can't start new thread", re.IGNORECASE
)


# --- errors: one sentence each ----------------------------------------------------------------------------------------


class InputError(ValueError):
    """Bad input from a user: a sentence for each mistake, with where it is and what to do; the command line exits with 2."""

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(map(one_line, messages)))


def one_line(text: str) -> str:
    """Return a text without what would break a line, command a terminal or turn the order of writing; a long one is cut.

    Example:
        >>> one_line("no file 'a\\nb'")
        "no file 'a\\\\nb'"
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class BusyError(InputError):
    """Another process does that work at this moment."""


class FailedError(RuntimeError):
    """A task or a notebook stopped for a reason of its own; the message ends with its output; the command line exits with 1."""


def explain(error: BaseException | None) -> str | None:
    """Return what the machine refused, in one sentence with advice; None for an error of another kind.

    Args:
        error: what was raised; libraries that write in another language (safetensors, Arrow) bring the system's number in
            their text.

    Example:
        >>> explain(OSError(errno.ENOSPC, "No space left on device", "runs/mini/ledger.json"))[:61]
        'no space is left on the disk, at runs/mini/ledger.json: free '
    """
    if error is None:
        return None
    in_words = next((number for number in REFUSED if f"os error {number})" in str(error)), 0)
    if (number := getattr(error, "errno", None) or in_words) in REFUSED:
        name = getattr(error, "filename", None)
        return f"{REFUSED[number].format(f', at {name}' if name else '')}. {KEPT}"
    if isinstance(error, MemoryError) or MEMORY.search(str(error)):
        return (
            "there is not enough memory: take a smaller train.micro_batch_tokens (or evaluation.max_batch_tokens), or fewer "
            f"processes at a time (--workers). {KEPT}"
        )
    return explain(error.__cause__ or (None if error.__suppress_context__ else error.__context__))


# --- JSON and YAML that anybody may have written ----------------------------------------------------------------------


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it holds no lone surrogate, half of a character that takes two.

    Example:
        >>> is_unicode("\\ud83d\\ude00"), is_unicode("\\U0001f600")
        (False, True)
    """
    return not SURROGATE.search(text)


class _Short(reprlib.Repr):
    """The usual way to write a value, with an end to its length and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        """Write a number; Python itself refuses to write one of thousands of digits."""
        return repr(x) if x.bit_length() < 256 else f"a whole number of {x.bit_length()} bits"


def shown(value: object) -> str:
    """Return a value as an error shows it: as Python writes it, but short.

    Example:
        >>> shown("fast"), shown(10**9999)
        ("'fast'", 'a whole number of 33216 bits')
    """
    return _Short().repr(value)


def parse_json(text: str, where: str, halves: bool = False) -> typing.Any:
    """Parse JSON text; ``where`` (a file, or a file and line) is named in the error.

    Args:
        text: the text.
        where: the start of each error.
        halves: let lone surrogates pass, as a server may send them; UTF-8 cannot hold them.

    Raises:
        InputError: the text is not valid JSON, a key is there twice in one object, or a text holds a lone surrogate.

    Example:
        >>> parse_json('{"id": "a"}', "corpus.jsonl, line 1")
        {'id': 'a'}
    """

    def once(pairs: list[tuple[str, typing.Any]]) -> dict:
        values = dict(pairs)
        if len(values) < len(pairs):  # json would keep the last one, and say nothing
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{where}: the key {shown(twice)} is there twice in one object: remove one.")
        return values

    try:
        value = json.loads(text, object_pairs_hook=once)
        whole = halves or not HALF.search(text) or is_unicode(json.dumps(value, ensure_ascii=False))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # Python reads no number of more than 4300 digits
        known = isinstance(error, json.JSONDecodeError)
        why = (
            f"{error.msg}, {f'line {error.lineno}, ' if error.lineno > 1 else ''}column {error.colno}"
            if known
            else "nested too deeply, or a number with thousands of digits"
        )
        raise InputError(f"{where}: invalid JSON ({why}): correct or remove it.") from None
    if not whole:
        raise InputError(f"{where}: a text holds a lone surrogate, half of a character: correct or remove it.")
    return value


class YamlLoader(yaml.SafeLoader):
    """The safe loader, in which 1e-4 is a number, as in YAML 1.2; it runs no code."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> typing.Any:
    """Parse one YAML document with the safe loader, which runs no code.

    Args:
        text: the text.
        where: the start of each error; the line follows where it is known.

    Raises:
        InputError: the text is not valid YAML, is nested too deeply, or its aliases contain themselves or too much.

    Example:
        >>> parse_yaml("epochs: 3", "my.yaml")
        {'epochs': 3}
    """
    try:
        loader = YamlLoader(text)
        if (node := loader.get_single_node()) is None:
            return None
        _weigh(node, where, {})
        return loader.construct_document(node)
    except InputError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{where}{line}: invalid YAML ({getattr(error, 'problem', None) or error}).") from None
    except (RecursionError, *NO_VALUE) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else f"a value that is none of its kind: {error}"
        raise InputError(f"{where}: invalid YAML ({why}).") from None


def _weigh(node: yaml.Node, where: str, known: dict[int, int]) -> int:
    """Return how many nodes a node has with its aliases written out; refuse too many, a circle, a key that is there twice."""
    line = f"{where}, line {node.start_mark.line + 1}"
    if known.setdefault(id(node), 0):
        return known[id(node)]
    parts = list(node.value) if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        parts, keys = [part for pair in node.value for part in pair], set()
        for key, _ in node.value:
            if (
                isinstance(key, yaml.ScalarNode) and key.value in keys
            ):  # the loader would keep the last one, and say nothing
                raise InputError(
                    f"{where}, line {key.start_mark.line + 1}: the key '{key.value}' is there twice: remove one."
                )
            keys.add(str(key.value))
    elif isinstance(node, yaml.ScalarNode) and not is_unicode(node.value):
        raise InputError(f"{line}: a text holds a lone surrogate: correct or remove it.")
    for part in parts:
        if known.get(id(part)) == 0:
            raise InputError(f"{line}: invalid YAML (an alias within its own anchor).")
    size = known[id(node)] = 1 + sum(_weigh(part, where, known) for part in parts)
    if size > MOST_NODES:
        raise InputError(f"{where}: invalid YAML (aliases that write out more than {MOST_NODES} values): write less.")
    return size


# --- seeds and hashes -------------------------------------------------------------------------------------------------


_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode


def sha256(value: object) -> str:
    """Return the SHA-256 of a JSON value (keys sorted), of a string, or of bytes, as 64 hexadecimal digits.

    Example:
        >>> sha256({"b": 1, "a": 2}) == sha256({"a": 2, "b": 1})
        True
    """
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    elif not isinstance(value, bytes):
        value = _canonical(value).encode()
    return hashlib.sha256(value).hexdigest()


@functools.lru_cache(maxsize=1024)
def _hash_file(path: Path, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
def atomic_file(path: Path, binary: bool = False) -> Iterator[typing.IO]:
    """Give a file (UTF-8 text, or bytes) that takes its place at ``path`` when the block ends, and vanishes if it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(handle, "wb") if binary else open(handle, "w", encoding="utf-8", newline="\n") as file:
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
    with atomic_file(path) as file:
        file.write(text)
    return Path(path)


def write_json(path: Path, value: object) -> Path:
    """Write a JSON file, indented and with sorted keys, whole or not at all."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> Path:
    """Write one JSON object a line, whole or not at all; rows are taken one by one."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Path(path)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Give a temporary folder next to ``path`` that takes its place when the block ends, and vanishes if it fails.

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


def _utf16(head: bytes) -> str | None:
    """Return which UTF-16 the first bytes of a file look like, in which every other byte of Latin text is zero; else None."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even + odd < max(2, len(head) / 20):
        return None
    return "UTF-16LE" if odd > 9 * even else "UTF-16BE" if even > 9 * odd else None


def _first_bad_byte(stream: typing.BinaryIO) -> int:
    """Return where a file stops being UTF-8, whose characters never reach across a line end."""
    offset = 0
    for line in stream:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return offset + error.start
        offset += len(line)
    return offset


@contextlib.contextmanager
def _open_bytes(path: Path) -> Iterator[typing.Any]:
    """Open a file as bytes, decompressed where its name ends in .gz or .zst."""
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    with open(path, "rb") as file:
        if compression:
            import pyarrow  # takes a moment to import, and only compressed files need it

            yield io.BufferedReader(pyarrow.input_stream(file, compression=compression))
        else:
            yield file


@contextlib.contextmanager
def open_text(path: Path, newline: str = "\n", encoding: str = "utf-8-sig") -> Iterator[typing.TextIO]:
    """Open a text file, plain or compressed (.gz, .zst), to be read piece by piece.

    Args:
        path: the file.
        newline: what ends a line, as for Python's ``open``.
        encoding: other than UTF-8.

    Raises:
        InputError: the file is missing, cannot be read, or is not UTF-8 (the byte position is named).
    """
    path = Path(path)
    try:
        with _open_bytes(path) as stream:
            if guess := _utf16(stream.peek(4096)[:4096]):
                advice = f"save it as UTF-8, for example with `iconv -f {guess} -t UTF-8`"
                raise InputError(f"{path} is not UTF-8 (it looks like {guess}): {advice}.")
            yield io.TextIOWrapper(stream, encoding, newline=newline)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path.") from None
    except UnicodeDecodeError:
        with _open_bytes(path) as stream:
            place = _first_bad_byte(stream)
        raise InputError(f"{path} is not UTF-8 (byte {place}): save it as UTF-8, for example with iconv.") from None
    except (OSError, ValueError) as error:  # a folder, no right to read it, a name of thousands of letters or with NUL
        raise InputError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): check the path."
        ) from None


def read_text(path: Path) -> str:
    """Return a file's UTF-8 text; raises InputError as ``open_text`` does."""
    with open_text(path) as file:
        return file.read()


def read_json(path: Path) -> typing.Any:
    """Return a JSON file's value; raises InputError that names the file."""
    return parse_json(read_text(path), str(path))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) for each non-empty line of a JSON Lines file, read line by line.

    Raises:
        InputError: a line is not valid JSON, or not an object; file and line are named.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
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


# --- checksums inside JSON files --------------------------------------------------------------------------------------


CHECKSUM = "checksum"
DONE = "done.json"


def with_checksum(values: dict) -> dict:
    """Return values with their checksum; one that they have already is replaced.

    Example:
        >>> with_checksum(with_checksum({"n": 1})) == with_checksum({"n": 1})
        True
    """
    kept = {key: value for key, value in values.items() if key != CHECKSUM}
    return kept | {CHECKSUM: sha256(json.loads(json.dumps(kept)))}  # as it will be read back: lists for tuples


def checksum_holds(values: object) -> bool:
    """Return whether an object's checksum is that of its values; one without a checksum is taken as it is."""
    return isinstance(values, dict) and (CHECKSUM not in values or values == with_checksum(values))


def read_checked(path: Path) -> dict:
    """Return the object of a JSON file that ``with_checksum`` made.

    Raises:
        InputError: the file cannot be read, holds no object, or another one than was written; the file is named.
    """
    values = read_json(path)
    if not checksum_holds(values):
        raise InputError(f"{path} was changed after it was written (its checksum differs): regenerate it.")
    return values


def quarantine(path: Path, why: str) -> Path:
    """Rename a damaged file or folder, so that it can be regenerated, and print a note; returns its new path."""
    number, target = 1, path.with_name(f"{path.name}.damaged")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}-{number}.damaged")
    with contextlib.suppress(FileNotFoundError):  # another process of the same training was quicker
        path.rename(target)
    print(f"note: quarantined as {target.name}, to be regenerated: {why}", file=sys.stderr)
    return target


def read_or_quarantine(path: Path) -> dict | None:
    """Return what ``with_checksum`` wrote; None where there is nothing, or where it was damaged and is quarantined now."""
    if not path.exists():
        return None
    try:
        return read_checked(path)
    except InputError as error:
        quarantine(path, str(error))
        return None


# --- one process at a time --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exclusive_lock(lock: Path, doing: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock while the block runs; the system frees it when the process ends, however it ends.

    Args:
        lock: the lock file.
        doing: what the holder does, as in "trains cft:0 in runs/mini".
        wait: wait for the other process instead of refusing.

    Raises:
        BusyError: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=-1 if wait else 0):
            yield
    except Timeout:
        raise BusyError(f"another process {doing}: wait for it to end.") from None


# --- records and stages -----------------------------------------------------------------------------------------------


def read_records(path: Path) -> tuple[object, dict[str, typing.Any]]:
    """Return the header and the records of a ``RecordLog``, without touching the file; damaged lines are left out.

    The header is None where there is none, or where it is damaged.
    """
    header, records = None, {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else (), start=1):
        checksum, _, body = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(body):
            value = parse_json(body.decode(), f"{path}, line {number}", halves=True)
            if number == 1:
                header = value
            else:
                records[value[0]] = value[1]
    return header, records


class RecordLog:
    """An append-only file of JSON values by key, for work that is paid for: what was added outlives any kill.

    Every line has a CRC-32. Half a line at the end (a kill) is cut off, a damaged line is skipped, so that its record can be
    added again; a file with another header is quarantined, and a new one begun. May be shared by threads, not by processes.

    Args:
        path: the file; its folder is made.
        header: a JSON value on which the records depend, such as a hash of the model and the settings.
        fsync: have each record on the disk when ``add`` returns; without it a power cut may take the last ones.
        wait: wait for another process that has the file open, instead of refusing.

    Attributes:
        records: key -> value, those found on disk and those added since; the last one of a key counts.

    Raises:
        InputError: another process has the file open.

    Example:
        >>> with RecordLog(Path(tempfile.mkdtemp()) / "answers.log", header="model A") as log:
        ...     log.add("q1", {"answer": "B"})
        ...     log.records
        True
        {'q1': {'answer': 'B'}}
    """

    def __init__(self, path: Path, header: object = "", fsync: bool = True, wait: bool = False) -> None:
        self.path, self._fsync = Path(path), fsync
        self._guard, self._stack = threading.Lock(), contextlib.ExitStack()
        lock = self.path.with_name(f".{self.path.name}.lock")
        self._stack.enter_context(exclusive_lock(lock, f"writes {self.path}", wait))
        recorded, self.records = read_records(self.path)
        header = json.loads(json.dumps(header))
        if self.path.exists() and self.path.stat().st_size and recorded != header:
            quarantine(self.path, f"{self.path} was damaged in its first line, or written with other settings.")
            self.records = {}
        self._file = self._stack.enter_context(open(self.path, "ab"))
        self._file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
        if not self.path.stat().st_size:
            self._write(header)

    def __enter__(self) -> RecordLog:
        """Return the log, which is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def _write(self, value: object) -> None:
        body = json.dumps(value).encode()  # ASCII: a server may send half a character, which UTF-8 cannot hold
        self._file.write(b"%08x %s\n" % (zlib.crc32(body), body))
        self._file.flush()
        if self._fsync:
            os.fsync(self._file.fileno())

    def add(self, key: str, value: object) -> bool:
        """Append a record; returns False, and keeps nothing, after ``close``, as in a thread that outlives the block."""
        with self._guard:
            if self._file.closed:
                return False
            self._write([key, value])
            self.records[key] = value
            return True

    def close(self) -> None:
        """Close the file, and let other processes open it."""
        with self._guard:
            self._stack.close()


@dataclasses.dataclass
class Step:
    """A stage that runs, or was finished before.

    Attributes:
        folder: write the files of the stage here.
        done: they are there already, whole, and follow from the same inputs.
        result: a JSON object to store in done.json; found there when ``done``.
    """

    folder: Path
    done: bool
    result: dict = dataclasses.field(default_factory=dict)


def read_done(folder: Path) -> dict | None:
    """Return what done.json holds: inputs, files (path -> SHA-256) and result; None for an unfinished stage."""
    return read_or_quarantine(Path(folder) / DONE)


@contextlib.contextmanager
def step(folder: Path, inputs: dict, doing: str = "", wait: bool = False) -> Iterator[Step]:
    """Run a stage once for the same inputs: lock its folder, and write done.json last, with the SHA-256 of every file.

    A stage that was killed, whose inputs changed, or one of whose files was changed, runs again, in the folder as it is.

    Args:
        folder: of the stage.
        inputs: JSON values that decide what the stage writes: settings, hashes of what it reads.
        doing: what the stage does, for a second process, as in "trains cft:0 in runs/mini".
        wait: wait for a process that runs the same stage, instead of refusing.

    Raises:
        BusyError: another process runs the stage.

    Example:
        >>> folder = Path(tempfile.mkdtemp()) / "squares"
        >>> for _ in range(2):
        ...     with step(folder, inputs={"n": 3}) as stage:
        ...         if not stage.done:
        ...             _ = write_json(stage.folder / "squares.json", [n * n for n in range(3)])
        ...             stage.result = {"count": 3}
        ...     print(stage.done, stage.result)
        False {'count': 3}
        True {'count': 3}
    """
    folder, inputs = Path(folder), json.loads(json.dumps(inputs))
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), doing or f"works in {folder}", wait):
        done = read_done(folder)
        if done and done["inputs"] == inputs and _is_whole(folder, done["files"]):
            yield Step(folder, True, done["result"])
            return
        folder.mkdir(parents=True, exist_ok=True)
        for left in (folder / DONE, *folder.rglob(".*.part")):  # what a killed process left
            left.unlink(missing_ok=True)
        yield (stage := Step(folder, False))
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".damaged"]
        files = {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}
        write_json(folder / DONE, with_checksum({"inputs": inputs, "files": files, "result": stage.result}))


def is_whole(folder: Path) -> bool:
    """Return whether a stage is finished and its files are those that it wrote; a changed one is quarantined."""
    done = read_done(folder)
    return bool(done) and _is_whole(folder, done["files"])


def _is_whole(folder: Path, files: dict[str, str]) -> bool:
    """Return whether the files of a stage are those that it wrote; a changed one is quarantined."""
    for path, digest in ((folder / name, digest) for name, digest in files.items()):
        if not path.is_file():
            return False
        if hash_file(path) != digest:
            quarantine(path, f"{path} is not what was written: it was cut off or changed.")
            return False
    return True


# --- words -------------------------------------------------------------------------------------------------------------


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


# --- where runs live, and what they ran on ----------------------------------------------------------------------------


def runs_root() -> Path:
    """Return the folder of all runs: ``CTXFT_RUNS``, else ``runs/`` in the repository, else (installed) ~/ctxft-runs."""
    if os.environ.get("CTXFT_RUNS"):
        return Path(os.environ["CTXFT_RUNS"]).expanduser().resolve()
    return REPO_ROOT / "runs" if (REPO_ROOT / "pyproject.toml").exists() else Path.home() / "ctxft-runs"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide a result; "not installed" where one is missing."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def code_revision() -> str:
    """Return the git revision of the code ("+changes" if tracked files differ), or "unknown" outside a repository."""
    if not (REPO_ROOT / ".git").exists() or not shutil.which("git"):
        return "unknown"
    git = ["git", "-C", str(REPO_ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
