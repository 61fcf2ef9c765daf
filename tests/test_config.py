"""Every mistake of a YAML file is reported at once, with its line; values are checked whenever they are set."""

from __future__ import annotations

import inspect
import math

import pytest
from pydantic import ValidationError

from ctxft import config as declared
from ctxft.config import (
    RENAMED,
    Config,
    EvaluationConfig,
    ExperimentConfig,
    ServerConfig,
    TrainConfig,
    WriterConfig,
    from_mapping,
    load_experiment,
)
from ctxft.storage import InputError
from ctxft.synthetic.config import SyntheticConfig

KEY = "sk-" + "a1" * 20
SERVER = {"url": "http://host/v1", "model": "m"}


def mistakes_of(call) -> list[str]:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value).split("\n")


def test_every_mistake_of_a_file_is_reported_with_its_line(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        "name: mine\narms:\n  - base\n  - ctf\ntrain:\n  learning_rat: 1e-4\n  max_steps: 0  # none\n"
        "  lora: {r: 1.5}\nevaluation:\n  form: clozed\ngeneral: 3\n"
    )
    arm, key, steps, rank, form, general = mistakes_of(lambda: load_experiment(path))
    assert arm.startswith("my.yaml, line 4: arms[1]: unknown arm 'ctf' (did you mean 'cpt'?); known: ")
    assert key.startswith("my.yaml, line 6: unknown key 'train.learning_rat' (did you mean 'learning_rate'?); known: ")
    assert steps == "my.yaml, line 7: train.max_steps must be greater than or equal to 1, found 0."
    assert rank == "my.yaml, line 8: train.lora.r must be a valid integer, found 1.5."
    assert (
        form
        == "my.yaml, line 10: evaluation.form must be 'mcf', 'cloze' or 'labels', found 'clozed' (did you mean 'cloze'?)."
    )
    assert general == "my.yaml, line 11: general must be a mapping of keys to values, found 3."
    (mistake,) = mistakes_of(
        lambda: load_experiment(path, {"arms": ["ctf"], "train": {}, "evaluation": {}, "general": None})
    )
    assert mistake.startswith("my.yaml: arms[0]: unknown arm 'ctf'")  # not a line of the file
    path.write_text("name: mine\n" + "".join(f"k{number}: 1\n" for number in range(99)))
    many = mistakes_of(lambda: load_experiment(path))
    assert len(many) == 21 and many[19].startswith("my.yaml, line 21:") and many[20] == "my.yaml: and 79 more."
    path.write_text("model: practice-blind\n\ncorpus: {held_out: 0.1}\n")
    assert mistakes_of(lambda: load_experiment(path)) == ["my.yaml, line 1: the key 'name' is missing."]


def test_a_key_of_an_older_version_is_told_its_new_name(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        "name: mine\ntrain: {epochs: 3, betas: [0.9, 0.95], lora: {rank: 4}}\nevaluation:\n  rule: generate\n  form: options\n"
    )
    assert mistakes_of(lambda: load_experiment(path)) == [
        "my.yaml, line 2: the key 'train.lora.rank' was renamed to 'train.lora.r'.",
        "my.yaml, line 2: the key 'train.epochs' was renamed to 'train.num_train_epochs'.",
        "my.yaml, line 2: the key 'train.betas' was renamed to 'train.adam_beta1' and 'train.adam_beta2'.",
        "my.yaml, line 4: the key 'evaluation.rule' was renamed to 'evaluation.output_type' (likelihood is now loglikelihood, "
        "generate is now generate_until).",
        "my.yaml, line 5: evaluation.form: 'options' was renamed to 'cloze'.",
    ]
    known = [f"{name}.{field}" for name in ("train", "ift", "evaluation") for field in section(name).model_fields]
    known += [f"train.lora.{field}" for field in declared.LoraConfig.model_fields]
    for old, new in RENAMED.items():
        names = [new] if isinstance(new, str) else new
        assert old not in known and all(f"{old.rpartition('.')[0]}.{name}" in known for name in names)


def section(name: str) -> type[Config]:
    return type(getattr(ExperimentConfig(name="x"), name))


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E4", 1e4), ("+2.5e-3", 2.5e-3), ("1.0e-4", 1e-4)])
def test_exponents_are_numbers(tmp_path, text, value):
    path = tmp_path / "my.yaml"
    path.write_text(f"name: mine\ntrain: {{learning_rate: {text}}}\n")
    assert load_experiment(path).train.learning_rate == value
    assert path.read_text().endswith(f"{text}}}\n")


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("name: mine\ntrain:\n  max_steps: 3\n  pack: true\n  max_steps: 4\n")
    with pytest.raises(InputError, match=r"my\.yaml, line 5: the key 'max_steps' is there twice: remove one\."):
        load_experiment(path)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainConfig, {"num_train_epochs": True}, "num_train_epochs must be a valid integer, found True"),
        (TrainConfig, {"gradient_checkpointing": 1}, "gradient_checkpointing must be a valid boolean, found 1"),
        (TrainConfig, {"learning_rate": math.nan}, "learning_rate must be a finite number, found nan"),
        (TrainConfig, {"learning_rate": "1e-4"}, "learning_rate must be a valid number, found '1e-4'"),
        (TrainConfig, {"warmup_steps": 2.5}, "warmup_steps must be a fraction below 1 or a whole number, found 2.5"),
        (
            TrainConfig,
            {"max_length": 64, "micro_batch_tokens": 63},
            r"micro_batch_tokens \(63\) must hold at least one row",
        ),
        (TrainConfig, {"report_to": ["wanb"]}, r"report_to\[0\] must be .*found 'wanb' \(did you mean 'wandb'\?\)"),
        (TrainConfig, {"lora": {"target_modules": []}}, "lora.target_modules .*at least 1 item"),
        (
            EvaluationConfig,
            {"benchmarks": ["medqua"]},
            r"benchmarks\[0\]: unknown benchmark 'medqua' \(did you mean 'medqa'",
        ),
        (EvaluationConfig, {"benchmarks": []}, "benchmarks: must be a list of different values with at least one"),
        (EvaluationConfig, {"benchmarks": ["a/own.jsonl", "b/own.jsonl"]}, "two benchmarks are called 'own'"),
        (
            EvaluationConfig,
            {"revisions": ["medqa@a1"]},
            "'medqa@a1' must be NAME@COMMIT, where NAME is one of evaluation",
        ),
        (EvaluationConfig, {"benchmarks": ["medqa"], "revisions": ["medqa@"]}, "'medqa@' must be NAME@COMMIT"),
        (EvaluationConfig, {"revisions": ["practice-mmlu@a1"]}, "'practice-mmlu@a1' must be NAME@COMMIT"),
        (EvaluationConfig, {"data": "no/such/folder"}, r"data: \(--data\) must be a folder .* 'no/such/folder'"),
        (ExperimentConfig, {"name": "../up"}, "name: must be a plain folder name, found '../up'"),
        (ExperimentConfig, {"name": "x", "seeds": [0, 0]}, "seeds: must be a list of different values"),
        (
            ExperimentConfig,
            {"name": "x", "seeds": [-1, 2**32]},
            r"seeds\[0\] must be greater .*\n.*seeds\[1\] must be less",
        ),
        (ExperimentConfig, {"name": "x", "ift": {"max_steps": -3}}, "ift.max_steps must be greater than or equal to 1"),
        (ExperimentConfig, None, "here: must be a mapping of keys to values, found None"),
        (ExperimentConfig, ["name"], r"must be a mapping of keys to values, found \['name'\]"),
        (ServerConfig, {"url": "ftp://host/v1"}, "url: must be a base URL"),
        (ServerConfig, {"url": "http://host:port/v1"}, "url: must be a base URL"),
        (
            ServerConfig,
            {"url": "http://host:65536/v1"},
            "url: names the port 65536, but ports end at 65535: correct it",
        ),
        (WriterConfig, {"server": "http://[::1]:99999"}, "server: names the port 99999, but ports end at 65535"),
        (ServerConfig, {"url": "http://user:secret@host/v1"}, "without user, password"),
        (ServerConfig, {"url": "https://host/v1?api_key=secret"}, "without user, password"),
        (ServerConfig, SERVER | {"model": " "}, "model: is empty"),
        (ServerConfig, SERVER | {"key_variable": KEY}, "never the key itself"),
        (ServerConfig, SERVER | {"key_variable": "hf_secretABC"}, "never the key itself"),
        (ServerConfig, SERVER | {"key_variable": "AKIAIOSFODNN7EXAMPLE"}, "never the key itself"),
        (ServerConfig, SERVER | {"timeout": 0.0, "price_in": math.inf}, "timeout must be .*\n.*price_in must be"),
        (WriterConfig, {"model": "m", "key_variable": "A_KEY"}, "key_variable is for a server"),
        (WriterConfig, {"model": "m", "server": "http://host/v1", "limit_cost": 1.0}, "needs price_in and price_out"),
    ],
)
def test_a_bad_value_is_refused(kind, values, message):
    with pytest.raises(InputError, match=message) as caught:
        from_mapping(kind, values, "here")
    assert "secret" not in str(caught.value) and KEY not in str(caught.value)


def test_a_value_is_checked_when_it_is_assigned_and_a_copy_is_checked_too():
    train = TrainConfig()
    with pytest.raises(ValidationError, match="greater than 0"):
        train.learning_rate = -1.0
    with pytest.raises(ValidationError, match="max_steps"):
        train.replace(max_steps=0)
    assert train.replace(max_steps=3).max_steps == 3 and train == TrainConfig()
    with pytest.raises(ValidationError) as caught:
        ServerConfig(**SERVER, key_variable=KEY)
    assert KEY not in str(caught.value)


def test_every_field_has_a_description():
    kinds = [kind for kind in vars(declared).values() if inspect.isclass(kind) and issubclass(kind, Config)]
    kinds.append(SyntheticConfig)
    assert len(kinds) == 13
    assert not [
        f"{kind.__name__}.{name}" for kind in kinds for name, f in kind.model_fields.items() if not f.description
    ]
