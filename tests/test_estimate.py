"""What a training takes is said from the config alone, and the numbers are those of the real thing."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import PeftModel

from ctxft.cli import main
from ctxft.config import TrainConfig
from ctxft.models import load_model, model_config
from ctxft.run import estimate
from ctxft.run.estimate import count_tokens_and_steps
from ctxft.run.run import Run
from ctxft.storage import InputError, read_json, write_jsonl
from ctxft.training.estimate import empty_model, estimate_memory, kept_bytes
from ctxft.training.model import trainable_model
from ctxft.world.facts import model_folder
from tests.runs import prepare, train_task

RECIPE = TrainConfig(max_length=96, micro_batch_tokens=1024)


def test_parameters_are_those_of_the_real_model_full_and_lora():
    config = model_config("practice-blind")
    for method in ("full", "lora"):
        recipe = RECIPE.replace(method=method, device="cpu")
        network = trainable_model("practice-blind", None, recipe, "segments")
        assert isinstance(network, PeftModel) == (method == "lora")
        found = estimate_memory(config, recipe)
        assert found["parameters"] == sum(p.numel() for p in network.parameters())
        assert found["trained"] == sum(p.numel() for p in network.parameters() if p.requires_grad)
        assert (found["gradients"], found["optimizer"]) == (4 * found["trained"], 8 * found["trained"])


def test_what_is_kept_is_what_autograd_keeps_in_the_real_model():
    """The same sum over a real model with a kernel that keeps query, key, value, output and log-sums: within 5 %."""
    config, tokens = model_config("practice-blind"), 256
    said = kept_bytes(empty_model(config, RECIPE), tokens)
    model, seen = load_model("practice-blind").train().requires_grad_(True), {}
    own = {p.data_ptr() for p in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(1, tokens, dtype=torch.long)
        output = model.get_decoder()(input_ids=ids, position_ids=torch.arange(tokens)[None], use_cache=False)
    assert output is not None and abs(said - sum(seen.values())) < 0.05 * said


def test_each_choice_moves_its_own_part():
    config = model_config("practice-blind")
    base = estimate_memory(config, RECIPE)
    twice = estimate_memory(config, RECIPE.replace(micro_batch_tokens=2048))
    assert twice["activations"] == pytest.approx(2 * base["activations"], rel=0.05)
    assert (twice["weights"], twice["gradients"], twice["optimizer"]) == (
        base["weights"],
        base["gradients"],
        base["optimizer"],
    )
    again = estimate_memory(config, RECIPE.replace(gradient_checkpointing=True))
    assert (
        again["activations"] < base["activations"]
        and again["total"] - again["activations"] == base["total"] - base["activations"]
    )
    lora = estimate_memory(config, RECIPE.replace(method="lora"))
    assert lora["optimizer"] < base["optimizer"] / 5
    shared = estimate_memory(config, RECIPE, "cuda", 4)
    assert shared["optimizer"] == base["optimizer"] // 4 and shared["activations"] < base["activations"]
    assert base["total"] == sum(
        (base["weights"], base["gradients"], base["optimizer"], base["activations"], base["logits"])
    )


def test_no_weights_are_needed(tmp_path):
    shutil.copy(model_folder("practice-blind") / "config.json", tmp_path)
    assert estimate_memory(model_config(str(tmp_path)), RECIPE) == estimate_memory(
        model_config("practice-blind"), RECIPE
    )
    with pytest.raises(InputError, match="neither a practice model"):
        model_config("nowhere")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_tokens_and_steps_are_those_of_the_training(experiment, tmp_path, text_of, share):
    general = write_jsonl(tmp_path / "general.jsonl", [{"id": f"g{n}", "text": text_of(n, 9)} for n in range(6)])
    mixed = {"general": {"source": str(general), "share": share}} if share else {}
    config = experiment({"max_steps": None, "num_train_epochs": 2}, arms=["cpt", "cft"], **mixed)
    said = count_tokens_and_steps(Run(config))
    assert not config.folder.exists()  # nothing is written
    prepare(config)
    assert count_tokens_and_steps(Run(config)) == said
    for arm in config.arms:
        done = train_task(config, arm, 0)
        assert (done["optimizer_steps"], done["target_tokens"]) == (said["steps"], said["targets"])
    assert said["reads"]["cft"] > said["reads"]["cpt"] > said["targets"]
    ledger = read_json(config.folder / "ledger.json")
    assert said["reads"]["cpt"] >= 2 * ledger["cpt: tokens read"]
    assert (said["targets"] > 2 * 1.5 * ledger["cpt: target tokens"]) == bool(share)


def test_of_a_large_corpus_a_sample_is_counted(experiment, monkeypatch, tmp_path, text_of):
    source = write_jsonl(tmp_path / "many.jsonl", [{"id": f"m{n}", "text": text_of(n, 3)} for n in range(240)])
    config = experiment({"max_steps": None}, arms=["cpt", "cft"], corpus={"source": str(source), "held_out": 0.1})
    exact = count_tokens_and_steps(Run(config))
    monkeypatch.setattr(estimate, "SAMPLED", sum(Run(config).measured("corpus").sizes) // 3)
    counted = count_tokens_and_steps(Run(config))
    assert counted["times"] == pytest.approx(3, rel=0.3) and exact["times"] == 1
    assert counted["targets"] == pytest.approx(exact["targets"], rel=0.2) and counted["steps"] == pytest.approx(
        exact["steps"], rel=0.2
    )
    assert any("on a sample of 1 / 3 of the corpus" in line for line in estimate.estimate_lines(Run(config)))
    assert not config.folder.exists()
    prepare(config)
    assert count_tokens_and_steps(Run(config)) == exact


def test_the_command(runs, capsys):
    assert main(["estimate", "mini", "--rate", "1000", "--set", "train.device=cpu"]) == 0
    out = capsys.readouterr().out
    steps = count_tokens_and_steps(Run("mini"))["steps"]
    assert "parameters: 600,672, trained: 600,672" in out and f"{steps} optimizer steps" in out
    assert "hours for all 15 tasks" in out and not runs.exists()
    assert main(["estimate", "mini", "--processes", "0"]) == 2
    assert main(["estimate", "mini", "--device", "cuda", "--processes", "4"]) == 0
    assert "each of 4, FSDP" in capsys.readouterr().out
