"""Files appear whole or not at all, errors name the place, seeds and hashes are the same everywhere, configs are strict."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest

from ctxft import storage
from ctxft.storage import LONGEST, InputError, is_unicode, one_line, parse_json, parse_yaml, shown

# --- seeds and hashes -------------------------------------------------------------------------------------------------


def test_hash_ignores_the_order_of_keys_and_nothing_else():
    assert storage.sha256({"a": 1, "b": [1, 2]}) == storage.sha256({"b": [1, 2], "a": 1})
    values = [{"a": 1}, {"a": "1"}, {"a": 1.5}, ["a", 1], "a", b"b", {"a": [1, 2]}, {"a": [2, 1]}]
    assert len({storage.sha256(value) for value in values}) == len(values)


def test_draws_are_the_same_in_another_process_with_another_hash_seed():
    code = "from ctxft.storage import seeded; print(seeded(0, 'passage-7').random(), seeded('0', 'passage-7').random())"
    found = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(storage.REPO_ROOT)},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {f"{storage.seeded(0, 'passage-7').random()} {storage.seeded(0, 'passage-7').random()}\n"}
    assert storage.seeded(0, "passage-7").random() != storage.seeded(0, "passage-8").random()


# --- files ------------------------------------------------------------------------------------------------------------


def rows_that_fail():
    yield {"a": 1}
    raise KeyError("stop")


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = storage.write_jsonl(tmp_path / "rows.jsonl", [{"old": "é"}])
    with pytest.raises(KeyError):
        storage.write_jsonl(path, rows_that_fail())
    with pytest.raises(KeyError):
        storage.write_jsonl(tmp_path / "new.jsonl", rows_that_fail())
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    assert path.read_bytes() == '{"old": "é"}\n'.encode()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with storage.atomic_dir(folder) as place:
        (place / "a").write_text("1")
    with pytest.raises(KeyError), storage.atomic_dir(folder) as place:
        (place / "b").write_text("2")
        raise KeyError
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "a"]
    with storage.atomic_dir(folder) as place:
        (place / "b").write_text("2")
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "b"]


def test_text_is_utf8_with_or_without_a_mark(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe")
    assert storage.read_text(path) == "Grüße"
    path.write_bytes(b"Gr\xfc\xdfe")
    with pytest.raises(InputError, match=re.escape(f"{path} is not UTF-8 (byte 2)")):
        storage.read_text(path)


@pytest.mark.parametrize(("name", "said"), [("missing.txt", "does not exist"), (".", "cannot be read")])
def test_a_path_that_is_no_file_is_named(tmp_path, name, said):
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / name))}.* {said}"):
        storage.read_text(tmp_path / name)


def test_json_lines_name_the_line_of_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\r\n{"a": "2"}\r\n')
    assert list(storage.read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": "2"})]
    for line, said in (('{"a": 1', "invalid JSON"), ("[1]", "an? JSON object is needed, found list")):
        path.write_text(f'{{"a": 1}}\n\n{line}\n')
        with pytest.raises(InputError, match=f"{re.escape(str(path))}, line 3: .*{said}"):
            list(storage.read_jsonl(path))


def test_yaml_runs_no_code_and_names_the_line(tmp_path):
    path = tmp_path / "config.yaml"
    for text, line in (("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2), ("a: 1\nb: [\n", 3)):
        path.write_text(text)
        with pytest.raises(InputError, match=f"{re.escape(str(path))}, line {line}: invalid YAML"):
            storage.read_yaml(path)


# --- text that anybody may have written --------------------------------------------------------------------------------


def test_values_come_out_as_they_are():
    assert parse_json('{"a": [1, 2.5, null, "\\ud83d\\ude00"]}', "x") == {"a": [1, 2.5, None, "\U0001f600"]}
    assert math.isnan(parse_json("NaN", "x"))  # a log of a training that went wrong holds it
    assert parse_json('{"text": "\\ud83d"}', "x", halves=True) == {"text": "\ud83d"}
    shared = "base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  b: 3\nagain: *base\n"
    assert parse_yaml(shared, "x") == {"base": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}, "again": {"a": 1, "b": 2}}
    assert parse_yaml("", "x") is None


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"b": {"a": 1, "c": 2, "a": 3}}', '[{"a": [], "a": null}]'])
def test_a_key_that_stands_twice_is_told(text):
    with pytest.raises(InputError, match=r"^x, line 1: the key 'a' is there twice in one object: remove one\.$"):
        parse_json(text, "x, line 1")


def test_errors_are_one_line_that_commands_no_terminal():
    error = InputError("no 'a\n\x1b[2Jb\u202ec\ud800\x00' here: " + "x" * 10 * LONGEST)
    assert str(error).isprintable() and len(str(error)) < LONGEST + 100 and is_unicode(str(error))
    assert str(error).startswith(r"no 'a\n\x1b[2Jb\u202ec\ud800\x00' here: xxx") and str(error).endswith("xxx")
    assert one_line("Grüße, 東京 🎉") == "Grüße, 東京 🎉"


def test_values_are_shown_short():
    assert shown(10**5000).startswith("a whole number of ") and len(shown(["a" * 999] * 99)) < 900
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert len(shown(deep)) < 100 and shown({"a": 1}) == "{'a': 1}"


# --- records and stages -----------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    """A closed log of four records, the last with half a character."""
    with storage.RecordLog(tmp_path / "x.log", {"model": "A"}) as log:
        for number in range(3):
            assert log.add(f"q{number}", {"n": number, "text": "ü"})
        log.add("q3", "\ud83d")
    assert not log.add("q4", "too late")
    return log.path


def test_records_survive_a_kill_in_the_middle_of_a_line(log):
    before = log.read_bytes()
    log.write_bytes(before + b"deadbeef {half")
    assert len(storage.read_records(log)[1]) == 4 and log.read_bytes() != before  # a look changes nothing
    with storage.RecordLog(log, {"model": "A"}) as again:
        assert list(again.records) == ["q0", "q1", "q2", "q3"] and again.records["q3"] == "\ud83d"
    assert log.read_bytes() == before


def test_a_flipped_bit_costs_one_record_which_can_be_added_again(log):
    log.write_bytes(log.read_bytes().replace(b'"q1"', b'"qX"'))
    with storage.RecordLog(log, {"model": "A"}) as again:
        assert list(again.records) == ["q0", "q2", "q3"]
        again.add("q1", 1)
    assert storage.read_records(log)[1]["q1"] == 1


@pytest.mark.parametrize("change", [lambda text: text.replace(b'"A"', b'"B"'), lambda text: text])
def test_a_log_with_another_or_a_damaged_header_is_quarantined(log, change, capsys):
    log.write_bytes(change(log.read_bytes()))
    with storage.RecordLog(log, {"model": "B"}) as again:
        assert not again.records
        again.add("q0", 0)
    assert storage.read_records(log) == ({"model": "B"}, {"q0": 0})
    assert len(storage.read_records(log.with_name("x.log.damaged"))[1]) == 4
    assert "written with other settings" in capsys.readouterr().err


def test_a_second_writer_is_refused(log):
    with storage.RecordLog(log, {"model": "A"}):
        with pytest.raises(InputError, match=r"another process writes .*x\.log: wait for it"):
            storage.RecordLog(log, {"model": "A"})
        assert len(storage.read_records(log)[1]) == 4


def test_records_survive_kill_9(tmp_path):
    path = tmp_path / "x.log"
    code = f"from ctxft.storage import RecordLog\nfrom itertools import count\nlog = RecordLog({str(path)!r}, 'A')\n"
    code += "for n in count(len(log.records)): log.add(str(n), n); print(n, flush=True)"
    seen = -1
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
            for _ in range(20):
                seen = int(child.stdout.readline())
            child.kill()
        records = storage.read_records(path)[1]
        assert list(records.values()) == list(range(len(records))) and len(records) > seen


def run_step(folder, calls, inputs=None, **kwargs):
    with storage.step(folder, inputs or {"n": (1, 2)}, **kwargs) as stage:
        if not stage.done:
            calls.append(sorted(path.name for path in stage.folder.iterdir()))
            storage.write_text(stage.folder / "a.txt", "a")
            if "stop" in calls[0:1]:
                raise KeyError("stop")
            storage.write_text(stage.folder / "below" / "b.txt", "b")
            stage.result = {"calls": len(calls)}
    return stage


def test_a_step_runs_again_only_when_something_changed(tmp_path, capsys):
    calls, folder = [], tmp_path / "stage"
    for expected, inputs in ((1, None), (1, None), (2, {"n": 2}), (2, {"n": 2})):
        stage = run_step(folder, calls, inputs)
        assert len(calls) == expected and stage.result == {"calls": expected}
    assert stage.done and storage.read_done(folder)["files"].keys() == {"a.txt", "below/b.txt"}
    for damage in (lambda path: path.write_text("c"), lambda path: path.unlink()):
        damage(folder / "below" / "b.txt")
        stage = run_step(folder, calls, {"n": 2})
        assert not stage.done and (folder / "below" / "b.txt").read_text() == "b"
    assert len(calls) == 4 and "b.txt is not what was written" in capsys.readouterr().err
    assert (folder / "below" / "b.txt.damaged").read_text() == "c"
    done = folder / "done.json"
    done.write_text(done.read_text().replace('"calls": 4', '"calls": 5'))
    assert storage.read_done(folder) is None and run_step(folder, calls, {"n": 2}).result == {"calls": 5}


def test_a_step_that_was_stopped_goes_on_with_what_it_had(tmp_path):
    folder, calls = tmp_path / "stage", ["stop"]
    with pytest.raises(KeyError):
        run_step(folder, calls)
    assert not (folder / "done.json").exists()
    calls.clear()
    assert run_step(folder, calls).result == {"calls": 1} and calls == [["a.txt"]]


def test_a_step_is_run_by_one_process_at_a_time(tmp_path):
    with storage.step(tmp_path / "stage", {}):
        with pytest.raises(InputError, match=r"another process trains cft:0: wait for it"):
            with storage.step(tmp_path / "stage", {}, doing="trains cft:0"):
                pass


# --- strict configs ---------------------------------------------------------------------------------------------------


def test_an_unknown_word_brings_the_nearest_and_all_known():
    with pytest.raises(InputError, match=r"unknown arm 'cftt' \(did you mean 'cft'\?\); known: cpt, cft\."):
        storage.check_known("cftt", ("cpt", "cft"), "arm")
    assert storage.nearest("zzz", ("cpt", "cft")) == ""


# --- where runs live --------------------------------------------------------------------------------------------------


def test_runs_root_follows_the_variable_and_never_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTXFT_RUNS", "here")
    assert storage.runs_root() == tmp_path / "here"
    monkeypatch.delenv("CTXFT_RUNS")
    assert storage.runs_root() == storage.REPO_ROOT / "runs"


def test_versions_and_revision_are_told():
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", storage.code_revision())
    assert storage.versions()["torch"].startswith("2.") and json.dumps(storage.versions())
