"""Bad input at the command line: one sentence that names the culprit, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import httpx
import pytest
import yaml
from huggingface_hub.errors import GatedRepoError

from ctxft import models
from ctxft.cli import main
from ctxft.config import to_mapping
from ctxft.options import read_settings
from ctxft.storage import read_jsonl, write_jsonl, write_text


@pytest.fixture
def refuse(runs, capfd):
    """The function that runs ``ctxft`` with bad input and returns its one sentence; checks all that is the same for all."""

    def run(*arguments: object) -> str:
        before = sorted(str(path) for path in runs.rglob("*")) if runs.exists() else None
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert code == 2, (out, err)
        assert out == "" and err.startswith("ctxft: ") and err.endswith(".\n") and err.count("\n") == 1, err
        after = sorted(str(path) for path in runs.rglob("*")) if runs.exists() else None
        assert after == before  # neither a run folder nor half a file
        return err

    return run


@pytest.fixture
def config_file(experiment, tmp_path):
    """The function that writes a tiny experiment as YAML."""
    return lambda **values: write_text(tmp_path / "config.yaml", yaml.safe_dump(to_mapping(experiment(**values))))


# --- corpus -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b'{"id": "a", "text": "Good."}\n{"id": "b", "text": ""}\n', "line 2: the record has no text"),
        (b'{"id": "a", "text": "Good."}\n{"id": "b"}\n', "line 2: no field 'text'"),
        (b'{"id": "a", "text": "Good."}\n\n{"id": "b", "text"\n', "line 3: invalid JSON"),
        (b'{"id": "a", "text": "Gr\xfc\xdfe."}\n', "is not UTF-8 (byte 23)"),
        (b'{"id": "a", "text": "Good."}\n{"id": 0.5, "text": "Too."}\n', "line 2: the id must be"),
    ],
)
def test_a_bad_corpus(refuse, config_file, tmp_path, content, said):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    sentence = refuse("train", config_file(corpus={"source": str(path)}))
    assert str(path) in sentence and said in sentence


def test_a_bad_record_behind_good_ones_leaves_nothing(refuse, config_file, corpus_file):
    corpus_file.write_text(corpus_file.read_text() + '{"id": "last", "text": "\\ud800"}\n')
    assert f"{corpus_file}, line 9" in refuse("train", config_file())


def test_a_corpus_that_is_not_there(refuse, config_file, tmp_path):
    assert "'missing.jsonl' is neither of the practice world" in refuse(
        "train", config_file(corpus={"source": "missing.jsonl"})
    )
    assert "nowhere" in refuse("train", config_file(corpus={"source": "nowhere"}))
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refuse("train", config_file(corpus={"source": str(tmp_path / "empty")}))


# --- model and window -------------------------------------------------------------------------------------------------


def test_a_window_without_room_for_text(refuse, config_file):
    sentence = refuse("train", config_file(train={"max_length": 40}))
    assert "a row of 40 tokens leaves" in sentence and "raise train.max_length" in sentence
    assert "train.max_length is 512 tokens" in refuse("train", config_file(train={"max_length": 512}))


def test_a_model_without_what_it_needs(refuse, config_file, model_folders, save_tokenizer, tmp_path):
    folder = shutil.copytree(model_folders["byte"], tmp_path / "model")
    config = config_file(model=str(folder))
    save_tokenizer("byte", folder, eos_token=None)
    sentence = refuse("train", config)
    assert str(folder) in sentence and "has no EOS token" in sentence
    (folder / "model.safetensors").unlink()
    sentence = refuse("train", config)
    assert str(folder) in sentence and "holds no weights" in sentence
    shutil.rmtree(folder)
    assert str(folder) in refuse("train", config)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "minni"], "unknown profile 'minni' (did you mean 'mini'?)"),
        (["train", "missing.yaml"], "missing.yaml does not exist"),
        (["train", "mini", "--set", "arms=[cpt, ctf]"], "unknown arm 'ctf'"),
        (["train", "mini", "--set", "train.epoch=3"], "unknown key 'train.epoch'"),
        (["train", "mini", "--set", "train.num_train_epochs=1e-4"], "num_train_epochs must be a valid integer, found 0.0001"),
        (["train", "mini", "--set", "train.learning_rate=fast"], "train.learning_rate must be a valid number, found 'fast'"),
        (["train", "mini", "--set", "train.num_train_epochs"], "--set train.num_train_epochs: write KEY=VALUE"),
        (["train", "mini", "--set", "seeds=[0"], "'[0' is not a YAML value"),
        (["train", "mini", "--task", "cftt:0"], "unknown task 'cftt:0' (did you mean 'cft:0'?)"),
        (["train", "mini", "--task", "base:0"], "unknown task 'base:0'"),
        (["train", "mini", "--workers", "0"], "workers must be at least 1"),
        (["evaluate", "mini", "--task", "cpt:9"], "unknown task 'cpt:9'"),
        (["evaluate", "mini", "--set", "evaluation.benchmarks=[medqua]"], "unknown benchmark 'medqua' (did you mean 'medqa'?)"),
        (["evaluate", "mini", "--data", "no-such-folder"], "'no-such-folder'"),
        (["evaluate", "mini"], "is not trained yet"),
        (["evaluate", "mini", "--task", "base:0"], "is not a run yet"),
        (["run", "--profile", "minni"], "unknown profile 'minni'"),
        (["run", "--set", "evaluation.benchmarks=[practise-old]"], "'practise-old' (did you mean 'practice-old'?)"),
        (["run", "--set", "evaluation.benchmarks=[missing.jsonl]"], "missing.jsonl does not exist"),
        (["compare", "nothing"], "no run 'nothing'"),
    ],
)  # fmt: skip
def test_a_name_or_value_that_is_wrong(refuse, arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert said in refuse(*arguments)


def test_a_misspelt_key_in_a_file(refuse, experiment, tmp_path):
    values = to_mapping(experiment())
    values["train"]["lerning_rate"] = 0.1
    path = write_text(tmp_path / "own.yaml", yaml.safe_dump(values))
    assert "unknown key 'train.lerning_rate' (did you mean 'learning_rate'?)" in refuse("train", path)
    write_text(path, "name: [\n")
    assert "own.yaml, line 2: invalid YAML" in refuse("train", path)


def test_values_are_read_as_yaml_and_exponents_as_numbers():
    pairs = ["a=1e-4", "b=-2.5E+3", "c=[0, 1]", "d=12e", "e=true", "f=", "g=1e-4x", "h=a=b"]
    expected = {"a": 1e-4, "b": -2500.0, "c": [0, 1], "d": "12e", "e": True, "f": None, "g": "1e-4x", "h": "a=b"}
    assert read_settings(pairs) == expected


# --- benchmarks -------------------------------------------------------------------------------------------------------


def test_questions_that_are_none_are_told_before_anything_runs(refuse, config_file, questions_file):
    rows = [row for _, row in read_jsonl(questions_file)]
    config = config_file()
    for bad, said in (
        ({**rows[2], "answer": 3}, "line 3 (id 'q2'): the answer 3 is outside the choices 0 to 2"),
        ({**rows[2], "id": "q0"}, "line 3: the id 'q0' is used twice"),
        ({**rows[2], "choices": ["one"]}, "line 3 (id 'q2'): 'choices' must be"),
    ):
        write_jsonl(questions_file, [*rows[:2], bad])
        for arguments in (
            ["train", config],
            ["evaluate", config],
            ["evaluate", config, "--task", "base:0"],
            ["run", "--profile", config],
        ):
            sentence = refuse(*arguments)
            assert str(questions_file) in sentence and said in sentence


def test_ensure_run_reads_the_questions_before_it_trains(experiment, questions_file, runs):
    from ctxft.storage import InputError
    from tests.runs import ensure_run

    questions_file.write_text("{}\n")
    with pytest.raises(InputError, match=r"own-questions\.jsonl, line 1"):
        ensure_run(experiment())
    assert not runs.exists()


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_a_run(refuse, config_file, runs):
    write_text(runs / "tiny" / "thesis.txt", "precious")
    sentence = refuse("train", config_file())
    assert str(runs / "tiny") in sentence and "is not empty and not a run" in sentence
    assert (runs / "tiny" / "thesis.txt").read_text() == "precious"


def test_a_run_folder_with_another_config(refuse, experiment, config_file):
    from tests.runs import prepare

    prepare(experiment())
    assert "train.num_train_epochs was 5, is 7" in refuse("train", config_file(), "--set", "train.num_train_epochs=7")


# --- the hub ----------------------------------------------------------------------------------------------------------

OFFLINE = """
import json, sys
from ctxft.cli import main
print([main(arguments) for arguments in json.loads(sys.argv[1])])
"""


def test_a_hub_out_of_reach_says_what_to_put_where(config_file, runs, tmp_path):
    config = str(config_file())
    commands = [
        ["train", config, "--set", "model=org/model"],
        ["train", config, "--set", "corpus.source=org/texts"],
        ["train", config, "--set", "corpus.source=ywchoi/OpenMedText", "--set", "corpus.folders=[diseases]"],
        ["evaluate", config, "--set", "evaluation.benchmarks=[medqa]"],
        ["evaluate", config, "--set", "evaluation.benchmarks=[mmlu-anatomy]"],
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", OFFLINE, json.dumps(commands)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.stdout == "[2, 2, 2, 2, 2]\n", found.stderr
    lines = found.stderr.splitlines()
    assert len(lines) == 5 and all(line.startswith("ctxft: ") and "HF_HUB_OFFLINE" in line for line in lines), (
        found.stderr
    )
    for line, parts in zip(
        lines,
        [
            ("'org/model'", "config.json, *.safetensors, tokenizer files", "in a folder"),
            ("'org/texts'", "the folder or file as corpus.source"),
            ("'ywchoi/OpenMedText'", "as corpus.source"),
            ("MedQA", "phrases_no_exclude_test.jsonl", "--data DIR"),
            ("cais/mmlu", "anatomy_test.csv", "--data DIR"),
        ],
        strict=True,
    ):
        assert all(part in line for part in parts) and "or or" not in line, line
    assert not runs.exists()


def test_a_gated_model_or_data_set_says_where_to_accept_its_terms(refuse, config_file, monkeypatch):
    def gated(self, name, **options):
        response = httpx.Response(403, request=httpx.Request("GET", f"https://huggingface.co/{name}"))
        raise GatedRepoError("Access to this repository is restricted.", response=response)

    monkeypatch.setattr(models.HfApi, "repo_info", gated)
    config = config_file()
    for arguments, address in (
        (["train", config, "--set", "model=org/model"], "https://huggingface.co/org/model"),
        (["train", config, "--set", "corpus.source=org/texts"], "https://huggingface.co/datasets/org/texts"),
        (["evaluate", config, "--set", "evaluation.benchmarks=[medqa]"], "https://huggingface.co/datasets/"),
    ):
        sentence = refuse(*arguments)
        assert "is gated" in sentence and f"accept its terms at {address}" in sentence and "`hf auth login`" in sentence


def test_gated_weights_behind_an_open_page(refuse, config_file, monkeypatch):
    """The hub answers questions about a gated model, and refuses only its files."""
    from ctxft.data import documents

    def gated(name, *_, **__):
        response = httpx.Response(403, request=httpx.Request("GET", f"https://huggingface.co/{name}"))
        raise OSError(
            f"You are trying to access a gated repo.\nMake sure to have access to {name}."
        ) from GatedRepoError("Access to this repository is restricted.", response=response)

    for module in (models, documents):
        monkeypatch.setattr(module, "resolve_revision", lambda *_: "c0ffee")
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", gated)
    monkeypatch.setattr("datasets.load_dataset", gated)
    config = config_file()
    sentence = refuse("train", config, "--set", "model=org/model")
    assert "'org/model'" in sentence and "it is gated" in sentence
    monkeypatch.undo()
    monkeypatch.setenv("CTXFT_RUNS", str(config.parent / "runs"))
    monkeypatch.setattr(documents, "resolve_revision", lambda *_: "c0ffee")
    monkeypatch.setattr("datasets.load_dataset", gated)
    sentence = refuse("train", config, "--set", "corpus.source=org/texts")
    assert "'org/texts'" in sentence and "it is gated" in sentence
