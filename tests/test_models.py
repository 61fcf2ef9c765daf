"""A model comes from safetensors in the dtype asked for, its code is never run, and what it lacks is told."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, T5Config

from ctxft import models
from ctxft.storage import InputError, read_json, write_json
from ctxft.world.facts import model_folder


def copy(folder, target):
    return shutil.copytree(folder, target / "model")


def test_weights_are_float32_whatever_the_file_holds(model_folders):
    folder = model_folders["byte"]
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model = models.load_model(str(folder))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32} and not model.training
    assert all(torch.equal(model.state_dict()[name], tensor.float()) for name, tensor in stored.items())
    assert models.window_of(model) == 256


def test_the_practice_model_is_a_name():
    assert models.resolve_model("practice-aware") == (str(model_folder("practice-aware")), None)


def test_a_hub_model_is_pinned_to_its_commit(monkeypatch):
    monkeypatch.setattr(models, "resolve_revision", lambda name, kind, revision, put: f"commit of {name}@{revision}")
    assert models.resolve_model("org/name", "v1") == ("org/name", "commit of org/name@v1")
    assert models.model_hash("org/name", "v1") != models.model_hash("org/name", "v2")


def test_model_hash_follows_the_bytes_and_not_the_place(model_folders, tmp_path):
    folder = copy(model_folders["byte"], tmp_path)
    assert models.model_hash(str(folder)) == models.model_hash(str(model_folders["byte"]))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert models.model_hash(str(folder)) != models.model_hash(str(model_folders["byte"]))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "holds no weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: write_json(folder / "config.json", {"model_type": "no-such-type"}), "no-such-type"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: write_json(folder / "adapter_config.json", {}), "LoRA adapter"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_weights_are_read(model_folders, tmp_path, break_it, said):
    folder = copy(model_folders["byte"], tmp_path)
    break_it(folder)
    with pytest.raises(InputError, match=said) as caught:
        models.check_model(str(folder), None, 128)
    assert str(folder) in str(caught.value)


def test_a_window_above_the_models_limit_is_refused(model_folders):
    models.check_model(str(model_folders["byte"]), None, 256)
    with pytest.raises(InputError, match=r"train\.max_length is 257 tokens, but the model .* at most 256"):
        models.check_model(str(model_folders["byte"]), None, 257)


def test_half_a_weights_file_is_refused(model_folders, tmp_path):
    folder = copy(model_folders["byte"], tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match=str(folder)):
        models.load_model(str(folder))


def test_weights_that_are_missing_are_not_replaced_by_random_numbers(model_folders, tmp_path):
    folder = copy(model_folders["byte"], tmp_path)
    stored = load_file(folder / "model.safetensors")
    del stored["model.norm.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"{folder} are not complete: model.norm.weight"):
        models.load_model(str(folder))


def test_code_of_a_model_folder_is_not_run(model_folders, tmp_path):
    folder = copy(model_folders["byte"], tmp_path)
    (folder / "modeling.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
    )
    names = {
        "AutoModelForCausalLM": "modeling.Model",
        "AutoConfig": "modeling.Config",
        "AutoTokenizer": "modeling.Model",
    }
    write_json(folder / "config.json", read_json(folder / "config.json") | {"auto_map": names})
    models.check_model(str(folder), None, 128)
    models.load_tokenizer(str(folder))
    assert isinstance(models.load_model(str(folder)), LlamaForCausalLM)
    assert not (tmp_path / "ran").exists()


def test_an_unknown_model_is_neither_name_nor_folder_nor_hub_id(tmp_path):
    with pytest.raises(
        InputError, match=r"'nothing' is neither a practice model \(.*\), nor an existing folder, nor a hub"
    ):
        models.resolve_model("nothing")


def test_a_tokenizer_is_shared_until_its_files_change_and_never_with_the_user(model_folders, tmp_path):
    folder = copy(model_folders["byte"], tmp_path)
    kept = models.shared_tokenizer(str(folder))
    own = models.load_tokenizer(str(folder))
    own.add_tokens(["a token of the user's"])
    assert models.shared_tokenizer(str(folder)) is kept and len(own) == len(kept) + 1
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", settings | {"eos_token": settings["bos_token"]})
    assert models.shared_tokenizer(str(folder)).eos_token == settings["bos_token"] != kept.eos_token


def test_a_tokenizer_must_end_documents_and_give_offsets(save_tokenizer, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no EOS token.*set eos_token"):
        models.load_tokenizer(str(save_tokenizer("byte", tmp_path, eos_token=None)))
    with pytest.raises(InputError, match=r"has no tokenizer: add tokenizer.json"):
        models.load_tokenizer(str(tmp_path.parent))
    folder = save_tokenizer("byte", tmp_path)
    monkeypatch.setattr(type(models.load_tokenizer(str(folder))), "is_fast", False)
    with pytest.raises(InputError, match="no character offsets"):
        models.load_tokenizer(str(folder))


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_special_strings_in_text_stay_ordinary_text(tokenizers, kind):
    tokenizer = tokenizers[kind]
    ids, starts = models.encode_text(tokenizer, "The end</s> of <s> it <pad>, and <unk>.")
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert len(ids) == len(starts) and starts[0] == 0 and starts == sorted(starts)
    with_special = tokenizer("The end</s>", add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id in with_special  # so the test above could fail


def test_tokens_joined_are_the_text(tokenizers):
    text = "Naïve café — 東京.\n\n  Two  spaces\tand a tab."
    assert tokenizers["byte"].decode(models.encode_text(tokenizers["byte"], text)[0]) == text


def test_an_adapter_loads_on_its_base_at_its_revision(tmp_path, monkeypatch):
    asked, loaded = [], (torch.nn.Linear(1, 1), {"missing_keys": []})
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "org/base", "revision": "abc"})
    (tmp_path / "adapter_model.safetensors").touch()
    monkeypatch.setattr(models, "resolve_revision", lambda name, kind, revision, put: asked.append((name, revision)))
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: loaded)
    monkeypatch.setattr(models.PeftModel, "from_pretrained", lambda base, place: base)
    models.load_model(str(tmp_path))
    assert asked == [("org/base", "abc")]


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.pick_device("auto") == models.pick_device("cpu") == "cpu"
    with pytest.raises(InputError, match="torch sees no CUDA device, but the device is 'cuda'"):
        models.pick_device("cuda")


def test_loading_prints_nothing(model_folders, capfd):
    models.load_model(str(model_folders["byte"]))
    assert capfd.readouterr() == ("", "")
    assert json.loads((model_folders["byte"] / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_model_that_is_no_causal_language_model_is_refused(tmp_path):
    T5Config().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"of the kind .t5., which is no causal language model"):
        models.check_model(str(tmp_path), None, max_length=64)
