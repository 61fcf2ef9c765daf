"""No text is lost or told twice: every format is read, documents are cut once at natural places, every token is counted."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from ctxft.config import CorpusConfig, load_experiment
from ctxft.data import documents as module
from ctxft.data.documents import Document, corpus_state, read_documents
from ctxft.data.passages import cut, cut_points
from ctxft.models import encode_text
from ctxft.storage import InputError, write_jsonl, write_text
from tests.runs import passages_of

ROWS = [{"id": "a", "text": "First text."}, {"id": "b", "text": "Second text."}]


def read(source, **settings):
    counts = Counter()
    found = list(read_documents(CorpusConfig(source=str(source), **settings), counts))
    return [(document.id, document.text) for document in found], counts


# --- formats ----------------------------------------------------------------------------------------------------------


def test_jsonl_and_parquet_and_a_column_of_another_name(tmp_path):
    expected = [("a", "First text."), ("b", "Second text.")]
    assert read(write_jsonl(tmp_path / "c.jsonl", ROWS))[0] == expected
    table = pyarrow.Table.from_pylist([{"key": row["id"], "body": row["text"]} for row in ROWS])
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet", text_field="body", id_field="key")[0] == expected


@pytest.mark.parametrize("name", ["one.txt", "one.md", "ONE.TXT"])
def test_a_text_file_is_one_document(tmp_path, name):
    assert read(write_text(tmp_path / name, "All of it.\n"))[0] == [(name, "All of it.")]


def test_a_mixed_folder_is_read_in_the_order_of_names_with_ids_of_file_and_line(tmp_path):
    write_text(tmp_path / "b" / "x.md", "In md.")
    write_text(tmp_path / "a.TXT", "In txt.")
    write_text(tmp_path / "c.jsonl", '\n{"text": "In jsonl."}\n{"id": null, "text": "Again."}\n')
    write_text(tmp_path / "d" / "c.jsonl", '{"text": "Elsewhere."}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["In parquet."]}), tmp_path / "e.parquet")
    write_text(tmp_path / "notes.log", "Not a corpus file.")
    expected = {"a.TXT": "In txt.", "b/x.md": "In md.", "c.jsonl:2": "In jsonl.", "c.jsonl:3": "Again."}
    assert read(tmp_path)[0] == list((expected | {"d/c.jsonl:1": "Elsewhere.", "e.parquet:1": "In parquet."}).items())


def test_line_ends_are_normalised(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes(b"One.\r\n\r\nTwo.\rThree.\r\n")
    assert read(path)[0] == [("dos.txt", "One.\n\nTwo.\nThree.")]


def test_limit_and_practice():
    found, _ = read("practice", limit=3)
    assert len(found) == 3 and all(text for _, text in found)


def test_truth_labels_reach_the_passages(tmp_path, tokenizers):
    rows = [
        {"id": "a", "text": "True.", "reliable": True},
        {"id": "b", "text": "False.", "reliable": False},
        {"id": "c", "text": "Who knows.", "reliable": "yes"},
    ]
    config = CorpusConfig(source=str(write_jsonl(tmp_path / "c.jsonl", rows)), held_out=0.0)
    passages, _, _ = passages_of(config, tokenizers["byte"], 50)
    assert [passage.reliable for passage in passages] == [True, False, None]
    mixed, _, _ = passages_of(CorpusConfig(unreliable=0.5), tokenizers["byte"], 200)
    assert {passage.reliable for passage in mixed} == {True, False}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "c"}', r"line 3: no field 'text' \(found: id\); set corpus.text_field"),
        ('{"id": "c", "text": " "}', "line 3: the record has no text"),
        ('{"id": "c", "text": 7}', "line 3: field 'text' is of type int, not text"),
        ('{"id": "c", "text": "A\\u0000."}', "line 3: the text holds a NUL character"),
        ('{"id": "c", "text": null}', "line 3: the record has no text"),
        ('{"id": [], "text": "Again."}', "line 3: the id must be a text .* or set corpus.id_field=null"),
        ('{"id": "c", "text": "\\ud800"}', "line 3: a text holds a lone surrogate"),
        ('{"id": "c", ', "line 3: invalid JSON"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, line, said):
    path = write_jsonl(tmp_path / "bad.jsonl", ROWS)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=f"{re.escape(str(path))}, {said}"):
        read(path)


def test_empty_records_are_skipped_and_counted_where_asked(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", [*ROWS, {"id": "c", "text": ""}])
    found, counts = read(path, skip_empty=True)
    assert len(found) == 2 and counts == {"documents empty": 1}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("empty.jsonl", "is empty: it needs at least one document"),
        ("folder", "is empty: it needs at least one document"),
        ("table.xls", "a file to be read must be one of"),
        ("broken.parquet", "is not a parquet file"),
        ("texts/missing.jsonl", "nor an existing file or folder"),
        ("nothing", r"neither of the practice world \(practice, .*\), nor an existing file or folder, nor a hub id"),
    ],
)
def test_a_source_that_holds_no_corpus_is_named(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("empty.jsonl", "table.xls", "broken.parquet"):
        write_text(tmp_path / name, "" if name.startswith("empty") else "no table")
    with pytest.raises(InputError, match=f"{source}.*{said}"):
        read(source)


@pytest.mark.parametrize(
    "settings",
    [
        {"held_out": 1.0},
        {"held_out": -0.1},
        {"held_out": float("nan")},
        {"limit": 0},
        {"folders": ["diseases"]},
        {"wordings": "new"},
        {"unreliable": 0.5, "source": "texts.jsonl"},
        {"text_field": "{title}{"},
        {"text_field": "{title:>9}"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=f"corpus.*{next(iter(settings))}"):
        load_experiment("mini", {f"corpus.{key}": value for key, value in settings.items()})


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def commit(monkeypatch):
    """A hub whose revisions all point to one commit; returns what was asked for."""
    asked = []

    def resolve(name, kind, revision, put):
        asked.append((name, kind, revision))
        return "c0ffee"

    monkeypatch.setattr(module, "resolve_revision", resolve)
    return asked


def test_a_hub_data_set_of_text_files_is_read_by_folder(tmp_path, monkeypatch, commit):
    for name in ("diseases/flu.txt", "diseases/old/pox.txt", "vaccines/flu.txt", "README.md"):
        write_text(tmp_path / name, f"About {name}.")
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)  # the cache of a snapshot: other folders were fetched before

    monkeypatch.setattr(module, "snapshot_download", download)
    found, _ = read(module.TEXT_FILES, folders=["vaccines/", "diseases"], revision="v2")
    assert [name for name, _ in found] == ["vaccines/flu.txt", "diseases/flu.txt", "diseases/old/pox.txt"]
    assert found[0][1] == "About vaccines/flu.txt."
    assert asked["repo_type"] == "dataset" and asked["revision"] == "c0ffee"
    assert asked["allow_patterns"] == ["vaccines/**", "diseases/**"]
    assert commit == [(module.TEXT_FILES, "dataset", "v2")]
    with pytest.raises(InputError, match="has no folder 'disease' with text files"):
        read(module.TEXT_FILES, folders=["disease"])
    with pytest.raises(InputError, match="name the folders to read"):
        read(module.TEXT_FILES)


def test_a_hub_table_needs_no_id(monkeypatch, commit):
    rows = [{"title": "t", "text": f"News {n}.", "url": "u"} for n in range(2)]
    asked = []

    def load(name, subset, **options):
        asked.append((name, options))
        return rows

    monkeypatch.setattr("datasets.load_dataset", load)
    found, _ = read("ashraq/financial-news-articles", split="train")
    assert found == [("train:0", "News 0."), ("train:1", "News 1.")]
    assert asked == [("ashraq/financial-news-articles", {"split": "train", "revision": "c0ffee"})]
    rows[1]["text"] = ""
    with pytest.raises(InputError, match="ashraq/financial-news-articles, row 2: the record has no text"):
        read("ashraq/financial-news-articles")


def test_an_unknown_split_is_told(monkeypatch, commit):
    def load(name, subset, **options):
        raise ValueError(f"Unknown split \"{options['split']}\". Should be one of ['train'].\nmore")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(
        InputError, match=r"org/set' cannot be used: Unknown split \"tarin\". Should be one of \['train'\]\.$"
    ):
        read("org/set", split="tarin")


def test_the_state_of_a_corpus_follows_its_texts_or_its_commit(tmp_path, commit, monkeypatch):
    path = write_jsonl(tmp_path / "c" / "c.jsonl", ROWS)
    before = [corpus_state(CorpusConfig(source=str(place)))[0] for place in (path, path.parent)]
    write_text(tmp_path / "c" / "notes.log", "no corpus file")
    assert before == [corpus_state(CorpusConfig(source=str(place)))[0] for place in (path, path.parent)]
    write_jsonl(path, ROWS[::-1])
    assert not set(before) & {corpus_state(CorpusConfig(source=str(place)))[0] for place in (path, path.parent)}
    hub = corpus_state(CorpusConfig(source="org/set"))
    assert hub[1] == "c0ffee" and commit == [("org/set", "dataset", None)]
    monkeypatch.setattr(module, "resolve_revision", lambda *_: "beef")
    assert corpus_state(CorpusConfig(source="org/set")) != hub


# --- cutting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_passages_joined_are_the_document_within_the_budget(tokenizers, text_of, kind):
    tokenizer = tokenizers[kind]
    for seed, sentences, budget in ((0, 60, 40), (1, 3, 40), (2, 30, 7), (3, 2, 1)):
        text = text_of(seed, sentences)
        passages = cut(Document("d", text, "here"), tokenizer, budget)
        ids, starts = encode_text(tokenizer, text)
        assert [i for passage in passages for i in passage.ids] == ids
        assert "".join(passage.text for passage in passages) == text
        assert all(1 <= len(passage.ids) <= budget for passage in passages)
        assert [passage.last for passage in passages] == [False] * (len(passages) - 1) + [True]
        assert [passage.index for passage in passages] == list(range(len(passages)))
        assert all(text[starts[p.start] :].startswith(p.text) for p in passages)
        assert len({passage.id for passage in passages}) == len(passages)


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_passages_end_at_paragraphs_and_else_at_sentences(tokenizers, text_of, kind):
    text = text_of(4, 80)
    for budget, common in ((90, "at a paragraph"), (30, "at a sentence")):
        passages = cut(Document("d", text, "here"), tokenizers[kind], budget)
        counts = Counter(passage.ends for passage in passages)
        assert len(passages) > 8 and all(re.search(r"[.!?]\s*$", passage.text) for passage in passages)
        assert counts[common] > len(passages) / 2
        assert counts["at a document"] == 1 and counts["inside a sentence"] == 0
        starts = encode_text(tokenizers[kind], text)[1]
        for one, other in itertools.pairwise(passages):
            late = text[starts[min(one.start + budget // 2 + 1, other.start)] : starts[other.start]]
            at_paragraph = other.text.startswith("\n") or one.text.endswith("\n")
            assert at_paragraph or "\n\n" not in late  # a paragraph end in the second half of the budget was taken


def test_where_no_sentence_ends_the_cut_is_counted_as_such(tokenizers):
    passages = cut(Document("d", "word " * 100, "here"), tokenizers["byte"], 10)
    assert [passage.ends for passage in passages].count("inside a sentence") == len(passages) - 1 > 5
    assert all(len(passage.ids) == 10 for passage in passages[:-1])


def letter(token: int) -> tuple[int, int]:
    """Return where a token is that is one character."""
    return token, token + 1


def test_cut_points_prefer_paragraph_then_sentence_then_the_limit():
    text = "A b. C d.\n\nE f. G h. I"
    assert cut_points(text, letter, len(text), 12)[0] == (9, "at a paragraph")
    assert cut_points(text, letter, len(text), 8)[0] == (
        8,
        "inside a sentence",
    )  # the sentence end at 4 is in the first half
    assert cut_points("Ab cd. Ef gh", letter, 12, 8)[0] == (6, "at a sentence")
    assert cut_points("3.5 is no end", letter, 13, 4)[0] == (4, "inside a sentence")
    assert cut_points("short", letter, 1, 4) == [(1, "at a document")]


# --- the account of tokens --------------------------------------------------------------------------------------------


def test_tokens_read_are_duplicate_or_held_out_or_kept(tokenizers, text_of, tmp_path):
    texts = [text_of(n, 6) for n in range(30)]
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    rows += [{"id": "twice", "text": "  " + texts[0].replace(" ", "  ")}, {"id": "thrice", "text": texts[0]}]
    config = CorpusConfig(source=str(write_jsonl(tmp_path / "c.jsonl", rows)), held_out=0.3)
    kept, held, counts = passages_of(config, tokenizers["byte"], 50)
    lengths = {row["id"]: len(encode_text(tokenizers["byte"], row["text"].strip())[0]) for row in rows}
    assert counts["documents duplicate"] == 2 and counts["documents read"] == 32
    assert counts["tokens duplicate"] == lengths["twice"] + lengths["thrice"]
    assert counts["tokens read"] == sum(lengths.values())
    assert counts["tokens kept"] == sum(len(p.ids) for p in kept) > 0
    assert counts["tokens held out"] == sum(len(p.ids) for p in held) > 0
    assert counts["tokens read"] == sum(counts[f"tokens {fate}"] for fate in ("duplicate", "held out", "kept"))
    assert {p.document for p in kept} & {p.document for p in held} == set()
    assert sum(n for name, n in counts.items() if name.startswith("passages")) == len(kept)


def test_held_out_documents_do_not_depend_on_order(tokenizers, text_of, tmp_path):
    rows = [{"id": f"d{n}", "text": text_of(n, 3)} for n in range(40)]

    def held(rows):
        config = CorpusConfig(source=str(write_jsonl(tmp_path / "c.jsonl", rows)), held_out=0.3)
        return {passage.document for passage in passages_of(config, tokenizers["byte"], 50)[1]}

    assert 4 <= len(held(rows)) <= 20
    assert held(rows) == held(rows[::-1]) and held(rows[:20]) == held(rows) & {row["id"] for row in rows[:20]}


def test_nothing_left_to_train_on_is_told(tokenizers, tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no document of .* is left to train on: lower corpus.held_out \(0.999\)"):
        passages_of(CorpusConfig(source=str(path), held_out=0.999), tokenizers["byte"], 50)


def test_the_ledger_tells_folders_and_licence_of_the_text_files(tmp_path):
    config = CorpusConfig(source=module.TEXT_FILES, folders=["diseases", "vaccines"])
    assert "folders diseases, vaccines (parts carry non-commercial licences" in module.describe(config)
    assert module.describe(CorpusConfig(source=str(tmp_path / "texts.jsonl"))) == "texts.jsonl"


# --- folders, and texts in other fields -------------------------------------------------------------------------------


def test_what_a_folder_holds_beside_texts_is_counted(tmp_path):
    folder = tmp_path / "texts"
    for name in ("a.txt", "b/c.text", "._a.txt", ".ipynb_checkpoints/a.txt", "__MACOSX/a.txt", "LICENSE.md", "log.txt"):
        write_text(folder / name, f"In {name}.")
    (folder / "paper.PDF").write_bytes(b"%PDF")
    write_text(folder / "notes", "No suffix.")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(
        InputError, match=r"files read: 2; .*pdf\): 1; .* devices\): 1; .*no known suffix\): 1.* without"
    ):
        read(folder)
    (folder / "gone.txt").unlink()
    write_text(tmp_path / "elsewhere" / "d.txt", "In d.")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "circle").symlink_to(folder)
    found, counts = read(folder)
    assert [name for name, _ in found] == ["a.txt", "b/c.text", "link/d.txt"]
    assert counts == {
        "files read": 3,
        "files skipped (hidden or packaging)": 5,
        "files not read (.pdf)": 1,
        "files not read (no known suffix)": 1,
    }


@pytest.mark.parametrize("linked", [False, True])
def test_a_copy_of_a_data_set_is_read_by_split(tmp_path, linked):
    if linked:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        tmp_path = tmp_path / "link"
    write_text(tmp_path / "README.md", "---\nlicense: mit\n---\n# Texts")
    for split in ("train", "test"):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", [{"text": f"For {split}."}])
    for split in ("train", "test"):
        found, counts = read(tmp_path, split=split)
        assert found == [(f"data/{split}.jsonl:1", f"For {split}.")]
        assert counts["files read"] == counts["files of other splits or subsets"] == 1
    states = {corpus_state(CorpusConfig(source=str(tmp_path), split=split)) for split in ("train", "test")}
    assert len(states) == 2
    with pytest.raises(InputError, match="has no split 'dev': choose one of train, test"):
        read(tmp_path, split="dev")


@pytest.mark.parametrize(
    ("record", "field", "text"),
    [
        ({"doc": {"text": "Inside."}}, "doc.text", "Inside."),
        ({"doc.text": "Outside."}, "doc.text", "Outside."),
        ({"title": "A", "n": 2.0, "doc": {"text": "B."}}, "{title} {n}\n\n{doc.text}", "A 2\n\nB."),
        ({"title": None, "abstract": "B."}, "{title}\n\n{abstract}", "B."),
    ],
)
def test_a_text_may_be_inside_another_field_or_made_of_several(tmp_path, record, field, text):
    path = write_jsonl(tmp_path / "c.jsonl", [{"id": "a", **record}])
    assert read(path, text_field=field)[0] == [("a", text)]


def test_what_is_no_text_is_named_by_its_type_even_where_empty_records_are_skipped(tmp_path):
    for value, kind in ((b"A text.", "bytes"), (["A text."], "list"), ({"en": "A text."}, "dict")):
        pyarrow.parquet.write_table(pyarrow.table({"text": [value]}), tmp_path / "c.parquet")
        with pytest.raises(InputError, match=f"row 1: field 'text' is of type {kind}, not text"):
            read(tmp_path / "c.parquet", skip_empty=True)
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": []}])
    with pytest.raises(InputError, match=r"conversations \('messages'\) belong in ift.source"):
        read(path)


def test_ids_that_repeat_give_way_to_file_and_line(tmp_path):
    for name in ("a", "b"):
        rows = [{"id": n, "text": f"{name}{n}"} for n in (0.0, 1)]
        write_jsonl(tmp_path / f"{name}.jsonl", [*rows, {"id": "b.jsonl:1", "text": "x"}])
    found, counts = read(tmp_path)
    assert [name for name, _ in found] == ["0", "1", "b.jsonl:1", "b.jsonl:1~2", "b.jsonl:2", "b.jsonl:3"]
    assert counts["documents whose id was used twice"] == 3
    assert [name for name, _ in read(tmp_path / "a.jsonl", id_field=None)[0]] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    nested = write_jsonl(tmp_path / "n.jsonl", [{"meta": {"id": "m"}, "text": "t"}])
    assert read(nested, id_field="meta.id")[0] == [("m", "t")]


def test_mistakes_are_told_together_and_no_document_after_the_first(tmp_path):
    rows = [{"text": "Good."}, *({"text": ""} for _ in range(15)), {"body": "x"}, {"text": "Not yielded."}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    for number in range(30):
        (tmp_path / f"n{number:02}.txt").write_bytes(b"Gr\xfc\xdfe")
    found = []
    with pytest.raises(InputError) as error:
        found.extend(document.text for document in read_documents(CorpusConfig(source=str(tmp_path)), Counter()))
    said = str(error.value).splitlines()
    assert len(said) == 21 and said[-1] == "There are 12 other mistakes."
    assert "a.jsonl, line 2: the record has no text" in said[0] and said[0].endswith("line 11, 5 more.")
    assert "a.jsonl, line 17: no field 'text' (found: body)" in said[1]
    assert "n00.txt is not UTF-8 (byte 2)" in said[2]
    assert found == ["Good."]
