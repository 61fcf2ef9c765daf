"""Read documents from files, hub data sets or the practice world, and check them one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from ctxft.config import TEXT_FILES, CorpusConfig
from ctxft.data.tables import check_id, hub_table, read_table
from ctxft.models import hub_errors, is_hub_id, resolve_revision
from ctxft.storage import InputError, hash_file, is_there, is_unicode, read_text, sha256
from ctxft.world.texts import SOURCES, practice_documents

SUFFIXES = (".jsonl", ".parquet", ".txt", ".md")
WHERE_TO_PUT = "download it elsewhere and give the folder or file (jsonl, parquet, txt, md) as corpus.source"


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


def _files_of(place: Path) -> list[Path]:
    """Return the corpus files of a folder in the order of their names, or the file itself."""
    if place.is_dir():
        paths = (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(place).parts))
    if place.suffix.lower() not in SUFFIXES:
        raise InputError(f"{place}: a corpus file must be one of {', '.join(SUFFIXES)}.")
    return [place]


def _file_rows(paths: Iterable[Path], root: Path, config: CorpusConfig) -> Iterator[Row]:
    """Yield the records of files; ids are made from their paths within the corpus."""
    for path in paths:
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() in (".txt", ".md"):
            yield str(path), name, {config.text_field: read_text(path)}
        else:
            yield from ((where, f"{name}:{number}", row) for number, where, row in read_table(path))


def _text_file_rows(config: CorpusConfig, commit: str | None) -> Iterator[Row]:
    """Return the text files in the named folders of a hub data set; the cache may hold other folders of it too."""
    if not config.folders:
        raise InputError(
            f"{TEXT_FILES} holds some 127,700 files: name the folders to read, e.g. corpus.folders: [diseases]."
        )
    names, files = [folder.strip("/") for folder in config.folders], []
    with hub_errors(config.source, "dataset", WHERE_TO_PUT):
        patterns = [f"{name}/**" for name in names]
        place = Path(snapshot_download(config.source, repo_type="dataset", revision=commit, allow_patterns=patterns))
    for name in names:
        read = _files_of(place / name) if (place / name).is_dir() else []
        if not read:
            raise InputError(f"{TEXT_FILES} has no folder '{name}' with text files: see its files on the hub.")
        files += read
    return _file_rows(files, place, config)


def _hub_commit(config: CorpusConfig) -> str | None:
    if Path(config.source).suffix.lower() in SUFFIXES or not is_hub_id(config.source):
        raise InputError(
            f"corpus '{config.source}' is neither of the practice world ({', '.join(SOURCES)}), nor an existing file or "
            "folder, nor a hub id like org/name."
        )
    return resolve_revision(config.source, "dataset", config.revision, WHERE_TO_PUT)


def _rows(config: CorpusConfig) -> Iterator[Row]:
    place = Path(config.source)
    if config.source in SOURCES:
        rows = practice_documents(config.source, config.unreliable, config.wordings)
        return ((f"{config.source}, document {row['id']}", row["id"], row) for row in rows)
    if is_there(place):
        return _file_rows(_files_of(place), place if place.is_dir() else place.parent, config)
    commit, split = _hub_commit(config), config.split
    if config.source == TEXT_FILES:
        return _text_file_rows(config, commit)
    table = hub_table(config.source, config.subset, split, commit, WHERE_TO_PUT)
    return ((where, f"{split}:{number}", row) for number, (_, where, row) in enumerate(table))


def corpus_state(config: CorpusConfig) -> tuple[str, str | None]:
    """Return what tells whether a corpus is still the same: a hash, and for a hub data set the commit.

    Returns:
        (hash of the files' names and bytes, or of hub id and commit; commit or None).

    Example:
        >>> corpus_state(CorpusConfig())[1] is None
        True
    """
    place = Path(config.source)
    if config.source in SOURCES:
        return sha256(practice_documents(config.source, config.unreliable, config.wordings)), None
    if is_there(place):
        return sha256([[path.relative_to(place).as_posix(), hash_file(path)] for path in _files_of(place)]), None
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


def read_documents(config: CorpusConfig, counts: Counter) -> Iterator[Document]:
    """Yield the corpus's documents with normalised line ends, one by one.

    Args:
        config: which corpus.
        counts: "documents empty" is counted here where ``skip_empty`` is set.

    Raises:
        InputError: unknown source, a record without text (file and line named), a text that is not valid Unicode, two
            documents with one id, or no document at all.
    """
    seen: set[str] = set()
    for where, default, row in _rows(config):
        if config.limit is not None and len(seen) >= config.limit:
            break
        if config.text_field not in row:
            raise InputError(
                f"{where}: no field '{config.text_field}' (found: {', '.join(map(str, row))}); set corpus.text_field."
            )
        text = row[config.text_field]
        if not isinstance(text, str) or not text.strip():
            if config.skip_empty:
                counts["documents empty"] += 1
                continue
            raise InputError(
                f"{where}: the record has no text; remove it, or set corpus.skip_empty: true to skip such records."
            )
        value = row.get(config.id_field)
        identity = check_id(default if value is None else value, where, seen)
        if not is_unicode(identity):  # a file's name may be of bytes that are no UTF-8
            raise InputError(f"{where}: the id '{identity}' is no valid Unicode: rename the file, or give another id.")
        reliable = row.get("reliable")  # a label if it is true or false; a column of that name may mean something else
        yield Document(
            identity,
            text.replace("\r\n", "\n").replace("\r", "\n").strip(),
            where,
            reliable if isinstance(reliable, bool) else None,
        )
    if not seen:
        raise InputError(
            f"the corpus '{config.source}' is empty: it needs at least one document with text ({', '.join(SUFFIXES)})."
        )
