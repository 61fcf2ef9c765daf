"""A shared model, checkpoint or file that holds code: the code does not run, and the user is told what to do."""

from __future__ import annotations

import ast
import os
import pickle
import shutil

import pytest

from ctxft.models import load_model
from ctxft.prompts import load_prompt_set
from ctxft.storage import PACKAGE_ROOT, InputError, read_json, read_yaml, write_json


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ran(tmp_path):
    """Where a payload leaves its trace."""
    return tmp_path / "the-payload-ran"


def test_the_payload_would_run(tmp_path, ran):
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.is_dir()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00001.bin"])
def test_a_pickled_model_is_not_read(model_folders, tmp_path, ran, name):
    folder = shutil.copytree(model_folders["byte"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(ran)))
    with pytest.raises(InputError, match=r"model.*safetensors"):
        load_model(str(folder))
    assert not ran.exists()


def test_a_pickled_adapter_is_not_read(model_folders, tmp_path, ran):
    folder = tmp_path / "adapter"
    about = {
        "base_model_name_or_path": str(model_folders["byte"]),
        "peft_type": "LORA",
        "target_modules": ["q_proj"],
        "r": 2,
    }
    write_json(folder / "adapter_config.json", {**about, "task_type": "CAUSAL_LM"})
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(ran)))
    with pytest.raises(InputError, match=r"adapter_model\.safetensors file is needed \(other formats can run code"):
        load_model(str(folder))
    assert not ran.exists()


def test_code_that_comes_with_a_model_is_not_run(model_folders, tmp_path, ran):
    folder = shutil.copytree(model_folders["byte"], tmp_path / "model")
    config = read_json(folder / "config.json")
    config |= {"model_type": "own", "architectures": ["Own"]}
    config["auto_map"] = {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Own"}
    write_json(folder / "config.json", config)
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    with pytest.raises(InputError, match=r"cannot be used: .* custom code"):
        load_model(str(folder))
    assert not ran.exists()


TAGGED = ["!!python/object/apply:os.mkdir [{ran}]", "x: !!python/name:os.system", "name: !<tag:x,2000:y> 1"]


@pytest.mark.parametrize("text", TAGGED)
def test_yaml_makes_no_objects(tmp_path, ran, text):
    path = tmp_path / "own.yaml"
    path.write_text(text.format(ran=ran))
    for read in (read_yaml, load_prompt_set):
        with pytest.raises(InputError, match=r"own\.yaml"):
            read(path)
    assert not ran.exists()


FILES = sorted(path for path in PACKAGE_ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE_ROOT).as_posix())
def test_nothing_in_the_kit_loads_code(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & {
                name.split(".")[0] for name in names
            }
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("trust_remote_code", "False") == "False"
            assert name != "torch.load" or given.get("weights_only") == "True"
            assert name not in ("yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec")
