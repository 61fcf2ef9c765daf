"""Read documents from files, folders, data sets or the practice world, and check them one by one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from huggingface_hub import snapshot_download

from ctxft.config import TEXT_FILES, CorpusConfig, template_parts
from ctxft.data.tables import (
    TABLES,
    TEXTS,
    Files,
    as_integer,
    files_of,
    hash_files,
    hub_table,
    id_of,
    read_table,
    suffix_of,
)
from ctxft.models import hub_errors, is_hub_id, resolve_revision
from ctxft.storage import InputError, is_there, is_unicode, one_line, read_text, sha256
from ctxft.world.texts import SOURCES, practice_documents

SUFFIXES = (*TABLES, *TEXTS)
WHERE_TO_PUT = "download it elsewhere and give the folder or file as corpus.source"
NO_ID = "correct it, or set corpus.id_field=null so that files and lines serve as ids"
MOST_TOLD, MOST_PLACES = 20, 10  # mistakes, and places of each, in an error; the others are counted


@dataclass(frozen=True)
class Document:
    """One text with its id, unique in the corpus; ``where`` is the file and line, or the hub id and row, for messages.

    ``reliable`` says whether the text is true, where the record has a field of that name that is true or false; else None.
    """

    id: str
    text: str
    where: str
    reliable: bool | None = None


Row = tuple[str, str, dict]  # (where it is, the id it gets if it has none, the record)


class _Mistakes:
    """What is wrong with a corpus, reported together at its end: records with the same mistake in one sentence."""

    def __init__(self) -> None:
        self.numbers, self.places, self.untold = Counter[str](), dict[str, list[str]](), 0

    def add(self, error: InputError, where: str = "") -> None:
        what = str(error).removeprefix(f"{one_line(where)}: ")
        if what not in self.places and len(self.places) == MOST_TOLD:
            self.untold += 1
            return
        self.numbers[what] += 1
        if self.numbers[what] <= MOST_PLACES:
            self.places.setdefault(what, []).append(where)

    def tell(self) -> None:
        """Raise what was added."""
        sentences = []
        for what, (first, *others) in self.places.items():
            file, also = first.rpartition(", ")[0], ""
            if more := self.numbers[what] - 1 - len(others):
                others.append(f"{more} more")
            if others:
                also = f" The same holds for {', '.join(other.removeprefix(f'{file}, ') for other in others)}."
            sentences.append((f"{first}: " if first else "") + what + also)
        if self.untold:
            sentences.append(f"There are {self.untold} other mistakes.")
        if sentences:
            raise InputError(*sentences)


def _listed(config: CorpusConfig) -> Files:
    return files_of(Path(config.source), SUFFIXES, config.split, config.subset)


def _file_rows(files: Files, config: CorpusConfig, mistakes: _Mistakes) -> Iterator[Row]:
    """Yield the records of files; ids are made from their paths within the corpus. A file that ends too early is a mistake."""
    for path in files.paths:
        name = path.relative_to(files.root).as_posix()
        try:
            if suffix_of(path) in TEXTS:
                yield str(path), name, {config.text_field: read_text(path)}
            else:
                yield from ((where, f"{name}:{number}", row) for number, where, row in read_table(path))
        except InputError as error:
            mistakes.add(error)


def _text_files(config: CorpusConfig, commit: str | None) -> Files:
    """Return the text files in the named folders of a hub data set; the cache may hold other folders of it too."""
    if not config.folders:
        raise InputError(
            f"{TEXT_FILES} holds some 127,700 files: name the folders to read, e.g. corpus.folders: [diseases]."
        )
    names = [folder.strip("/") for folder in config.folders]
    with hub_errors(config.source, "dataset", WHERE_TO_PUT):
        patterns = [f"{name}/**" for name in names]
        place = Path(snapshot_download(config.source, repo_type="dataset", revision=commit, allow_patterns=patterns))
    texts = Files([], place, Counter())
    for name in names:
        files = files_of(place / name, SUFFIXES) if (place / name).is_dir() else Files([], place, Counter())
        if not files.paths:
            raise InputError(f"{TEXT_FILES} has no folder '{name}' with text files: see its files on the hub.")
        texts.paths.extend(files.paths)
        texts.counts.update(files.counts)
    return texts


def _hub_commit(config: CorpusConfig) -> str | None:
    if suffix_of(Path(config.source)) in SUFFIXES or not is_hub_id(config.source):
        raise InputError(
            f"corpus '{config.source}' is neither of the practice world ({', '.join(SOURCES)}), nor an existing file or "
            "folder, nor a hub id like org/name."
        )
    return resolve_revision(config.source, "dataset", config.revision, WHERE_TO_PUT)


def _rows(config: CorpusConfig, counts: Counter, mistakes: _Mistakes) -> Iterator[Row]:
    if config.source in SOURCES:
        rows = practice_documents(config.source, config.unreliable, config.wordings)
        return ((f"{config.source}, document {row['id']}", row["id"], row) for row in rows)
    commit, files = None, None
    if is_there(config.source):
        files = _listed(config)
    else:
        commit = _hub_commit(config)
    if config.source == TEXT_FILES:
        files = _text_files(config, commit)
    if files:
        counts.update(files.counts)
        return _file_rows(files, config, mistakes)
    table = hub_table(config.source, config.subset, config.split, commit, WHERE_TO_PUT)
    return ((where, f"{config.split}:{number}", row) for number, (_, where, row) in enumerate(table))


def corpus_state(config: CorpusConfig) -> tuple[str, str | None]:
    """Return what tells whether a corpus is still the same: a hash, and for a hub data set the commit.

    Returns:
        (hash of names and bytes of the files that are read, or of hub id and commit; commit or None).

    Example:
        >>> corpus_state(CorpusConfig())[1] is None
        True
    """
    if config.source in SOURCES:
        return sha256(practice_documents(config.source, config.unreliable, config.wordings)), None
    if is_there(config.source):
        return hash_files(_listed(config)), None
    commit = _hub_commit(config)
    return sha256([config.source, commit]), commit


def describe(config: CorpusConfig) -> str:
    """Return the corpus in words, for a ledger: source, folders, and what to know about its licence.

    Example:
        >>> describe(CorpusConfig(source="org/news"))
        'org/news'
    """
    name = Path(config.source).name if Path(config.source).is_absolute() else config.source
    if config.source != TEXT_FILES:
        return name
    return f"{name}, folders {', '.join(config.folders or [])} (parts carry non-commercial licences: see the data set's card)"


def _field(record: dict, name: str) -> object:
    """Return a field; in a name with dots, of the record inside the record. KeyError: there is none."""
    first, _, rest = name.partition(".")
    if name in record or not rest:
        return record[name]
    inner = record[first]
    if inner is None:
        return None
    if not isinstance(inner, dict):
        raise KeyError(name)
    return _field(inner, rest)


def _names(record: dict) -> str:
    """Return the names of a record's fields, with those inside of them, for a message."""
    inner = ((name, value if isinstance(value, dict) else {}) for name, value in record.items())
    return ", ".join(name for field, value in inner for name in ([f"{field}.{key}" for key in value] or [str(field)]))


def _part(record: dict, name: str, where: str, numbers: bool) -> str:
    """Return a field as text, or a number too where it is one part of several; what is not there is empty."""
    try:
        value = as_integer(_field(record, name))
    except KeyError:
        talk = next((key for key in ("messages", "conversations") if key in record), None)
        advice = f"conversations ('{talk}') belong in ift.source" if talk else "set corpus.text_field"
        raise InputError(f"{where}: no field '{name}' (found: {_names(record)}); {advice}.") from None
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int) if numbers else str):
        raise InputError(
            f"{where}: field '{name}' is of type {type(value).__name__}, not text: convert it, or set corpus.text_field to "
            f"another (found: {_names(record)})."
        )
    return str(value)


def _text(record: dict, config: CorpusConfig, where: str) -> str:
    """Return a document's text with normalized line ends; empty where the record has none."""
    name = config.text_field
    parts = [("", name)] if name in record else template_parts(name)
    values = [_part(record, name, where, len(parts) > 1) if name else "" for _, name in parts]
    if not any(value.strip() for value in values):
        return ""
    text = "".join(chain(*zip((words for words, _ in parts), values, strict=True)))
    if "\0" in text:
        raise InputError(
            f"{where}: the text holds a NUL character, as UTF-16 and binary data do: save it as UTF-8 text."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _id(record: dict, config: CorpusConfig, where: str, default: str, seen: set[bytes], counts: Counter) -> str:
    """Return a document's id, and remember a digest of it; an id that was there already gives way to file and line."""
    try:
        value = _field(record, config.id_field) if config.id_field else None
    except KeyError:
        value = None
    own = [] if value is None else [id_of(value, where, NO_ID)]
    for identity in chain(own, [default], (f"{default}~{n}" for n in count(2))):
        digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if digest not in seen:
            break
    seen.add(digest)
    if own and identity != own[0]:
        counts["documents whose id was used twice"] += 1
    if not is_unicode(identity):  # a file's name may be of bytes that are no UTF-8
        raise InputError(f"{where}: the id '{identity}' is no valid Unicode: rename the file, or give another id.")
    return identity


def read_documents(config: CorpusConfig, counts: Counter) -> Iterator[Document]:
    """Yield the corpus's documents with normalized line ends, one by one.

    After the first mistake no document is yielded: what is left is only checked, and all mistakes are reported together.

    Args:
        config: which corpus.
        counts: files read and left out, "documents whose id was used twice" and, where ``skip_empty`` is set, "documents
            empty" are counted here.

    Raises:
        InputError: unknown source, records without text (file and line named), a text that is not valid Unicode, or no
            document at all.
    """
    seen: set[bytes] = set()
    mistakes, number = _Mistakes(), 0
    for where, default, row in _rows(config, counts, mistakes):
        if number == config.limit:
            break
        try:
            text = _text(row, config, where)
            if not text and not config.skip_empty:
                raise InputError(
                    f"{where}: the record has no text; remove it, or set corpus.skip_empty: true to skip such records."
                )
            identity = _id(row, config, where, default, seen, counts) if text else ""
        except InputError as error:
            mistakes.add(error, where)
            continue
        if not text:
            counts["documents empty"] += 1
            continue
        number += 1
        reliable = row.get("reliable")  # a label if it is true or false; a column of that name may mean something else
        if not mistakes.numbers:
            yield Document(identity, text, where, reliable if isinstance(reliable, bool) else None)
    mistakes.tell()
    if not number:
        raise InputError(
            f"the corpus '{config.source}' is empty: it needs at least one document with text ({', '.join(SUFFIXES)})."
        )
