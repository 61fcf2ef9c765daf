"""Keep a corpus as passages on disk: Arrow files that are written part by part, and read memory-mapped.

    parts.json              what the files were made from, the documents of each part, counts of what was read
    documents-00000.arrow   id, truth label, digest, draw for the held-out text, passages of each document, and the hashes
                            of some of its n-grams
    passages-00000.arrow    document, index, start, how it ends, and token ids of each passage: uncompressed, so that
                            processes share one copy in memory
    text-00000.arrow        the passages' text, compressed: training does not read it

A part holds whole documents, and is written by one process; the bytes do not depend on how many processes there are. Its
file of documents takes its place last, so a part that has one is whole, and a killed preparation resumes after it.
"""

from __future__ import annotations

import contextlib
import gc
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas
import pyarrow
from transformers import PreTrainedTokenizerBase

from ctxft.config import CorpusConfig
from ctxft.data.documents import Document, read_documents
from ctxft.data.ngrams import ngram_hashes, words_of
from ctxft.data.passages import ENDS, Passage, cut_each
from ctxft.storage import InputError, atomic_file, hash_file, read_json, seeded, sha256, write_json

PART = 1 << 25  # characters in a part, at least
MOST_PARTS = 128  # a process opens three files for each
TOGETHER, TOGETHER_CHARACTERS = 64, 1 << 20  # documents that are tokenized together, and their characters at most
SKETCHED = 16  # one n-gram in N is kept to compare documents by
SHORT = 128  # n-grams of a text of which all are kept
NEAR = 0.5  # of a held-out document's n-grams: one of which more are in training text is a near-duplicate of it
BATCH = 1 << 14  # passages in a batch of token ids
TEXT_BATCH = 1 << 8  # passages in a batch of text, which is decompressed as a whole
FATES = ("kept", "held out", "duplicate")  # what becomes of a document
DOCUMENTS = pyarrow.schema(
    {
        "id": pyarrow.string(),
        "reliable": pyarrow.bool_(),
        "digest": pyarrow.binary(16),
        "draw": pyarrow.float64(),
        "passages": pyarrow.int32(),
        "tokens": pyarrow.int64(),
        "sketch": pyarrow.list_(pyarrow.uint64()),
    }
)
TEXT = pyarrow.schema({"text": pyarrow.string()})


def _passage_schema(tokenizer: PreTrainedTokenizerBase) -> pyarrow.Schema:
    numbers = dict.fromkeys(("document", "index", "start"), pyarrow.int32())
    ids = pyarrow.uint16() if len(tokenizer) <= 1 << 16 else pyarrow.uint32()
    return pyarrow.schema({**numbers, "ends": pyarrow.int8(), "ids": pyarrow.list_(ids)})


# --- writing ----------------------------------------------------------------------------------------------------------


class _Table:
    """An Arrow file that takes its rows one by one, and its place when it is whole."""

    def __init__(self, file: contextlib.ExitStack, path: Path, schema: pyarrow.Schema, batch: int, **options: str):
        self.schema, self.batch, self.rows = schema, batch, []
        sink = file.enter_context(atomic_file(path, binary=True))
        options = pyarrow.ipc.IpcWriteOptions(**options)
        self.writer = file.enter_context(pyarrow.ipc.new_file(sink, schema, options=options))

    def add(self, *row: object) -> None:
        self.rows.append(row)
        if len(self.rows) == self.batch:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            columns = zip(zip(*self.rows, strict=True), self.schema.types, strict=True)
            arrays = [_column(values, kind) for values, kind in columns]
            self.writer.write_batch(pyarrow.record_batch(arrays, schema=self.schema))
            self.rows = []


def _column(values: tuple, kind: pyarrow.DataType) -> pyarrow.Array:
    if not pyarrow.types.is_list(kind):
        return pyarrow.array(values, type=kind)
    # much faster than element by element
    numbers = numpy.concatenate([numpy.asarray(one) for one in values]).astype(kind.value_type.to_pandas_dtype())
    offsets = numpy.cumsum([0, *map(len, values)], dtype=numpy.int32)
    return pyarrow.ListArray.from_arrays(offsets, pyarrow.array(numbers))


def _part_file(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:05d}.arrow"


class Measured(NamedTuple):
    """What one look through a corpus shows: the characters of each document, and what was counted."""

    sizes: array
    counts: Counter[str]


def measure(documents: Iterable[Document], counts: Counter[str]) -> Measured:
    """Read documents from the first to the last, so that bad records are found before anything is written.

    Args:
        documents: as from ``read_documents``.
        counts: what was counted when the last document was read.
    """
    return Measured(array("q", (len(document.text) for document in documents)), counts)


def plan_parts(measured: Measured, folder: Path, key: str) -> int:
    """Decide which documents make a part, and return how many parts there are.

    Args:
        measured: what ``measure`` found.
        folder: where parts.json goes; what was made from something else is removed from it.
        key: of what the passages are made from: corpus, tokenizer, budget.
    """
    path, (sizes, counts) = folder / "parts.json", measured
    for left in folder.glob(".*.part"):  # what a killed process was writing
        left.unlink()
    if path.exists() and read_json(path)["key"] == key:
        return len(read_json(path)["documents"])
    for left in folder.glob("*.arrow"):
        left.unlink()
    most, parts, characters = max(PART, sum(sizes) // MOST_PARTS), [0], 0
    for size in sizes:
        if characters >= most:
            parts.append(0)
            characters = 0
        parts[-1] += 1
        characters += size
    write_json(path, {"key": key, "documents": parts, "counts": dict(counts)})
    return len(parts)


def write_parts(
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    budget: int,
    folder: Path,
    share: tuple[int, int] = (0, 1),
) -> Iterator[int]:
    """Write the parts of a corpus that are not there yet.

    Args:
        config: the corpus.
        tokenizer: of the model to be trained.
        budget: text tokens a passage may have.
        folder: with parts.json.
        share: (k, n): only the parts k, k + n, k + 2n ...

    Yields:
        The number of each part, when it is written.
    """
    sizes = read_json(folder / "parts.json")["documents"]
    missing = [n for n in range(share[0], len(sizes), share[1]) if not _part_file(folder, "documents", n).exists()]
    documents, read = read_documents(config, Counter()), 0
    gc.freeze()  # or the collector goes through all objects of the libraries again and again: a sixth of the time
    try:
        for number in missing:
            begin = sum(sizes[:number])
            part = islice(documents, begin - read, begin - read + sizes[number])
            _write_part(folder, number, part, sizes[number], tokenizer, budget)
            read = begin + sizes[number]
            yield number
    finally:
        gc.unfreeze()


def _sketch(words: list[str]) -> numpy.ndarray:
    """Return the hashes of some of a text's n-grams, chosen by hash, or of all of a short text."""
    hashes = ngram_hashes(words)
    chosen = hashes < numpy.uint64((1 << 64) // SKETCHED)
    return numpy.unique(hashes if len(hashes) < SHORT else hashes[chosen])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in groups that are tokenized together: a tokenizer keeps some 100 bytes for each of their tokens."""
    batch, characters = [], 0
    for document in documents:
        if len(batch) == TOGETHER or (batch and characters + len(document.text) > TOGETHER_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
    if batch:
        yield batch


def _write_part(
    folder: Path,
    number: int,
    documents: Iterable[Document],
    planned: int,
    tokenizer: PreTrainedTokenizerBase,
    budget: int,
) -> None:
    with contextlib.ExitStack() as files:  # they take their places in the opposite order
        about = _Table(files, _part_file(folder, "documents", number), DOCUMENTS, BATCH)
        passages = _Table(files, _part_file(folder, "passages", number), _passage_schema(tokenizer), BATCH)
        text = _Table(files, _part_file(folder, "text", number), TEXT, TEXT_BATCH, compression="zstd")
        place = 0
        for batch in _batches(documents):
            for document, (pieces, tokens) in zip(batch, cut_each(batch, tokenizer, budget), strict=True):
                for piece in pieces:
                    passages.add(place, piece.index, piece.start, ENDS.index(piece.ends), piece.ids)
                    text.add(piece.text)
                digest, words = sha256(" ".join(document.text.split())), words_of(document.text)
                draw = seeded("held out", 0, sha256(" ".join(words)) if words else digest).random()
                about.add(
                    document.id,
                    document.reliable,
                    bytes.fromhex(digest[:32]),
                    draw,
                    len(pieces),
                    tokens,
                    _sketch(words),
                )
                place += 1
        if place != planned:
            raise InputError("the corpus changed while it was read: run the command again.")
        for table in (about, passages, text):
            table.flush()


def same_content(one: Path, other: Path) -> bool:
    """Return whether two files of corpora hold the same, even if another version of Arrow compressed one of them."""
    if hash_file(one) == hash_file(other) or one.suffix != ".arrow":
        return hash_file(one) == hash_file(other)
    return pyarrow.ipc.open_file(str(one)).read_all().equals(pyarrow.ipc.open_file(str(other)).read_all())


# --- reading ----------------------------------------------------------------------------------------------------------


class _Part:
    """The passages of one part, memory-mapped."""

    def __init__(self, folder: Path, number: int) -> None:
        about, passages, text = (
            pyarrow.ipc.open_file(opened(str(_part_file(folder, kind, number))))
            for kind, opened in (
                ("documents", pyarrow.memory_map),
                ("passages", pyarrow.memory_map),
                ("text", pyarrow.OSFile),  # compressed: mapped, what was read would stay in memory
            )
        )
        self.documents = about.read_all()
        self.names, self.labels = (self.documents[name].combine_chunks() for name in ("id", "reliable"))
        self.document, self.texts = (-1, "", None), (-1, [])  # those read last: the next one is often of the same
        self.batches = [passages.get_batch(place) for place in range(passages.num_record_batches)]
        self.columns = [
            [batch.column(name).to_numpy() for name in ("document", "index", "start", "ends")] for batch in self.batches
        ]
        lists = [batch.column("ids") for batch in self.batches]
        self.ids = [(ids.offsets.to_numpy(), ids.values.to_numpy()) for ids in lists]
        self.text = text
        self.batch, self.text_batch = (
            self.batches[0].num_rows,
            text.get_batch(0).num_rows,
        )  # of all batches but the last

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def ends(self) -> numpy.ndarray:
        return numpy.concatenate([numpy.zeros(0, numpy.int8), *(columns[3] for columns in self.columns)])

    def lengths(self) -> numpy.ndarray:
        return numpy.concatenate([numpy.zeros(0, numpy.int32), *(numpy.diff(offsets) for offsets, _ in self.ids)])

    def passage(self, row: int) -> Passage:
        batch, place = divmod(row, self.batch)
        number, index, start, ends = (int(column[place]) for column in self.columns[batch])
        if self.document[0] != number:
            self.document = number, self.names[number].as_py(), self.labels[number].as_py()
        _, name, reliable = self.document
        passage, load = object.__new__(_Stored), {"ids": self.token_ids, "text": self.text_of}
        known = {"id": f"{name}#{index}", "document": name, "index": index, "start": start, "reliable": reliable}
        passage.__dict__.update(known, last=ends == 0, ends=ENDS[ends], _load=load, _row=row)
        return passage

    def token_ids(self, row: int) -> array:
        batch, place = divmod(row, self.batch)
        offsets, values = self.ids[batch]
        return array("i", values[offsets[place] : offsets[place + 1]].astype(numpy.int32).tobytes())

    def text_of(self, row: int) -> str:
        batch, place = divmod(row, self.text_batch)
        if self.texts[0] != batch:
            self.texts = batch, self.text.get_batch(batch).column("text").to_pylist()
        return self.texts[1][place]


class _Stored(Passage):
    """A passage whose token ids and text are read when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("ids", "text"):
            raise AttributeError(name)
        self.__dict__[name] = self.__dict__["_load"][name](self.__dict__["_row"])
        return self.__dict__[name]


class Passages(Sequence[Passage]):
    """Passages of a corpus on disk, each read when it is asked for: memory does not grow with the text.

    Args:
        parts: the files.
        rows: which of their passages, by number.
    """

    def __init__(self, parts: list[_Part], rows: numpy.ndarray) -> None:
        self.parts, self.rows = parts, rows
        self.firsts = numpy.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):  # type: ignore[override]
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        row = self.rows[place]
        part = int(numpy.searchsorted(self.firsts, row, "right")) - 1
        return self.parts[part].passage(int(row - self.firsts[part]))

    def __add__(self, other: Passages) -> Passages:
        """Return these passages, then those of another corpus."""
        return Passages([*self.parts, *other.parts], numpy.concatenate([self.rows, other.rows + self.firsts[-1]]))

    @property
    def documents(self) -> numpy.ndarray:
        """The number of the document that each passage is of."""
        firsts = numpy.cumsum([0, *(len(part.documents) for part in self.parts)])
        numbers = [
            first + column[0] for part, first in zip(self.parts, firsts, strict=False) for column in part.columns
        ]
        return numpy.concatenate(numbers)[self.rows]

    @property
    def targets(self) -> array:
        """The target tokens of each passage, as ``Passage.targets``."""
        counts = [part.lengths() + (part.ends() == 0) for part in self.parts]
        return array("i", numpy.concatenate(counts)[self.rows].astype(numpy.int32).tobytes())


def targets_of_passages(passages: Sequence[Passage]) -> array:
    """Return the target tokens of each passage."""
    return passages.targets if isinstance(passages, Passages) else array("i", (p.targets for p in passages))


def _held_out(draws: numpy.ndarray, sizes: numpy.ndarray, share: float, undivided: numpy.ndarray) -> numpy.ndarray:
    """Return for each passage whether it is held out.

    A document is held out as a whole, with probability ``share``. Of one so long that this would leave the share to chance, that
    share of passages is held out instead, evenly spaced from a random start on: one of more than 1 / ``share`` passages,
    and more than a fourth of all that are to be held out.

    Args:
        draws: of each document, from 0 to below 1.
        sizes: passages of each document.
        share: of the tokens that are to be held out.
        undivided: of each document, whether it is held out as a whole, however long it is.
    """
    undivided = undivided | (sizes * share <= 1) | (sizes <= share * sizes.sum() / 4)
    draw, size = numpy.repeat(draws, sizes), numpy.repeat(sizes, sizes)
    index = numpy.arange(len(size)) - numpy.repeat(numpy.cumsum(sizes) - sizes, sizes)
    spaced = numpy.floor((index + 1) * share + draw) > numpy.floor(index * share + draw)
    return numpy.where(numpy.repeat(undivided, sizes), draw < share, spaced)


def read_corpus(config: CorpusConfig, folder: Path) -> tuple[Passages, Passages, Counter]:
    """Open a corpus that was written as a whole, and tell training and held-out text apart.

    Exact duplicates (same text but for white space) are dropped and counted. Which documents are held out depends on
    each document's words alone, so neither ids nor their order nor copies can move one, and copies that differ in
    case, punctuation and spacing are on the same side, each as a whole. Of one that is a large part of the corpus, passages
    are held out.

    Args:
        config: the corpus.
        folder: where its files are.

    Returns:
        (training passages, held-out passages, counts of documents and tokens: read = duplicate + held out + kept).

    Raises:
        InputError: nothing is left to train on.
    """
    record = read_json(folder / "parts.json")
    parts = [_Part(folder, number) for number in range(len(record["documents"]))]
    about = pyarrow.concat_tables([part.documents for part in parts])
    sizes, counts = about["passages"].to_numpy(), Counter(record["counts"])
    digests = numpy.frombuffer(about["digest"].combine_chunks().buffers()[1], numpy.uint64).reshape(-1, 2)
    again, draws = pandas.DataFrame(digests).duplicated().to_numpy(), about["draw"].to_numpy()
    twins = pandas.Series(draws).isin(draws[~again][pandas.Series(draws[~again]).duplicated()]).to_numpy()
    fates = _held_out(draws, sizes, config.held_out, twins).astype(numpy.int8)
    fates[numpy.repeat(again, sizes)] = FATES.index("duplicate")
    tokens = numpy.concatenate([part.lengths() for part in parts])
    documents = numpy.repeat(numpy.arange(len(sizes)), sizes)
    passages = {name: numpy.flatnonzero(fates == number) for number, name in enumerate(FATES)}
    inside = {name: numpy.unique(documents[rows]) for name, rows in passages.items()}
    both = numpy.intersect1d(inside["kept"], inside["held out"])
    inside["held out"] = numpy.setdiff1d(inside["held out"], both)
    counts.update({"documents read": sum(record["documents"]), "tokens read": int(about["tokens"].to_numpy().sum())})
    for name, rows in passages.items():
        if len(rows):
            counts.update({f"documents {name}": len(inside[name]), f"tokens {name}": int(tokens[rows].sum())})
    if len(both):
        counts["documents kept, but for some passages"] = len(both)
    kept, held = (Passages(parts, passages[name].astype(numpy.int32)) for name in FATES[:2])
    if not kept:
        raise InputError(
            f"no document of '{config.source}' is left to train on: lower corpus.held_out ({config.held_out})."
        )
    ends = numpy.bincount(numpy.concatenate([part.ends() for part in parts])[kept.rows], minlength=len(ENDS))
    counts.update({f"passages ending {ENDS[kind]}": int(number) for kind, number in enumerate(ends) if number})
    return kept, held, counts


def count_near_duplicates(kept: Passages, held_out: Passages) -> int:
    """Count the documents held out of whose n-grams more than ``NEAR`` are in documents that are trained on.

    Args:
        kept: passages that are trained on, first those of the corpus that the others are of.
        held_out: passages that are held out.
    """
    parts, trained = kept.parts, numpy.unique(kept.documents)
    apart = numpy.setdiff1d(held_out.documents, trained)
    if not len(apart):
        return 0
    firsts = numpy.cumsum([0, *(len(part.documents) for part in parts)])

    def hashes_of(chosen: numpy.ndarray) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        """Yield for each part the hashes of its chosen documents, and the document of each."""
        for part, first in zip(parts, firsts, strict=False):
            inside = chosen[(chosen >= first) & (chosen < first + len(part.documents))]
            lists = part.documents["sketch"].take(inside - first).combine_chunks()
            yield lists.values.to_numpy(), numpy.repeat(inside, numpy.diff(lists.offsets.to_numpy()))

    hashes, documents = map(numpy.concatenate, zip(*hashes_of(apart), strict=True))
    if not len(hashes):
        return 0
    known = numpy.unique(hashes)
    matched = numpy.zeros(len(known), bool)
    for seen, _ in hashes_of(trained):
        places = numpy.minimum(numpy.searchsorted(known, seen), len(known) - 1)
        matched[places[known[places] == seen]] = True
    _, owners = numpy.unique(documents, return_inverse=True)
    shares = numpy.bincount(owners, matched[numpy.searchsorted(known, hashes)]) / numpy.bincount(owners)
    return int((shares > NEAR).sum())
