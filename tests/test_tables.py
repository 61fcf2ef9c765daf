"""Every format that people hold records in is read piece by piece, with nothing lost, and each record knows where it is."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from ctxft.data.tables import read_table, records_of
from ctxft.storage import InputError, write_jsonl, write_text

ROWS = [
    {"id": "007", "text": "A \u201cquoted\u201d text,\nof two lines", "day": "2020-01-01"},
    {"id": "8", "text": "NA", "day": ""},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table_text(delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue()


TEXTS = {  # name -> content
    "a.jsonl": LINES,
    "A.JSONL": LINES,
    "a.ndjson": LINES,
    "lines.json": "\n" + LINES,
    "array.json": json.dumps(ROWS, indent=1),
    "array-in-a-line.json": json.dumps(ROWS),
    "by-key.json": json.dumps({row["id"]: row for row in ROWS}),
    "a.csv": "\ufeff" + table_text(","),
    "a.tsv": table_text("\t"),
}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", TEXTS)
def test_text_formats_plain_and_compressed(tmp_path, name, packed):
    path, content = tmp_path / f"{name}{packed}", TEXTS[name].encode()
    if packed == ".gz":
        content = gzip.compress(content[:40]) + gzip.compress(content[40:])  # as shards that were joined
    if packed == ".zst":
        content = pyarrow.compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)
    assert [row for _, _, row in records_of(str(path))] == ROWS
    if packed:
        path.write_bytes(content[:-12])
        with pytest.raises(InputError, match=f"{name}{packed} cannot be read"):
            list(records_of(str(path)))


def test_tables_of_arrow(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "year=2020.parquet")
    for name, new in (("file.arrow", pyarrow.ipc.new_file), ("stream.arrow", pyarrow.ipc.new_stream)):
        with new(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    assert [row for _, _, row in records_of(str(tmp_path))] == ROWS * 3
    assert [where for _, where, _ in read_table(tmp_path / "file.arrow")][1] == f"{tmp_path / 'file.arrow'}, row 2"
    write_text(tmp_path / "stream.arrow", "no table")
    with pytest.raises(InputError, match="arrow is not an arrow file that can be read"):
        list(records_of(str(tmp_path)))


def test_folders_of_save_to_disk(tmp_path):
    one, other = Dataset.from_list(ROWS), Dataset.from_list([{"text": "other"}])
    one.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict(train=one, test=other).save_to_disk(tmp_path / "both")
    assert [row for _, _, row in records_of(str(tmp_path / "one"))] == ROWS
    assert [row for _, _, row in records_of(str(tmp_path / "both"))] == ROWS
    assert [row for _, _, row in records_of(str(tmp_path / "both"), "test")] == [{"text": "other"}]
    with pytest.raises(InputError, match="has no split 'dev': choose one of test, train"):
        records_of(str(tmp_path / "both"), "dev")


def test_subsets_of_a_copy_of_a_data_set(tmp_path):
    card = "---\nconfigs:\n- {config_name: a, data_files: a/*.csv}\n- {config_name: b, data_files: b/*.csv}\n---\n"
    write_text(tmp_path / "README.md", card)
    for name in ("a", "b"):
        write_text(tmp_path / name / "x.csv", f"id\n{name}\n")
    assert [row["id"] for _, _, row in records_of(str(tmp_path), subset="b")] == ["b"]
    with pytest.raises(InputError, match=r"available configs: \['a', 'b'\].*name one of its subsets"):
        records_of(str(tmp_path))
    write_text(tmp_path / "README.md", card.replace("b/*.csv", "../*.csv"))
    write_text(tmp_path.parent / "outside.csv", "id\n1\n")
    with pytest.raises(InputError, match=r"outside[.]csv of .* cannot be read: a data set's files are in its folder"):
        records_of(str(tmp_path), subset="b")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b'id,text\n1,"No end', "line 2: not a CSV file"),
        ("a.csv", b"id,text\n1,a,b\n", "line 2: the fields id, text are needed"),
        ("a.tsv", b"id\tid\n1\t2\n", r"a column is named twice \(id, id\)"),
        ("a.json", b'{"id": "a"}\n{"id": \n', "line 2: invalid JSON"),
        ("a.json", b'[{"id": "a"},\n{"id": ]', "invalid JSON .*line 2, column 8"),
        ("a.json", b'[{"id": "a"}, 7]', "record 2: a record is needed, found 7"),
        ("a.csv", "id\nGr\u00fc\u00dfe\n".encode("utf-16-le"), "is not UTF-8 .*iconv -f UTF-16LE"),
        ("a.jsonl", LINES.encode("utf-16-be"), "is not UTF-8 .*iconv -f UTF-16BE"),
        ("a.jsonl", b'{"id": "a"}\n' * 9000 + b"\xff", r"is not UTF-8 \(byte 108000\)"),
        ("a.parquet.gz", b"", "a file to be read must be one of"),
    ],
)
def test_a_broken_table_is_named_with_its_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*{said}"):
        list(records_of(str(tmp_path / name)))


def test_a_source_that_is_not_there(tmp_path):
    for source in ("missing.jsonl", "texts/missing.csv", "nothing"):
        with pytest.raises(InputError, match=f"'{source}' is neither an existing file or folder nor a hub id"):
            records_of(source)
    write_jsonl(tmp_path / ".hidden.jsonl", ROWS)
    with pytest.raises(InputError, match="holds no file that can be read"):
        records_of(str(tmp_path))
