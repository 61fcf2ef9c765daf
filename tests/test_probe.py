"""What a model may have forgotten: measured before and after, and moved where it should move."""

from __future__ import annotations

import pytest
import torch

from ctxft.data.rows import special_tokens
from ctxft.evaluation.probe import is_in_form
from ctxft.evaluation.scoring import generate_greedily
from ctxft.models import load_model, load_tokenizer
from ctxft.report import loss_table
from tests.runs import evaluate_task, is_examined, load_benchmarks, prepare, train_task


@pytest.fixture(scope="module")
def practice():
    return load_model("practice-blind"), load_tokenizer("practice-blind")


def test_what_is_written_is_the_likeliest_and_does_not_depend_on_its_neighbours(practice):
    model, tokenizer = practice
    special = special_tokens(tokenizer)
    texts = ["Question: Which disease", "Question: What", "The"]
    prompts = [[special.start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    together = generate_greedily(model, prompts, [special.eos], 12, special.pad)
    for number, prompt in enumerate(prompts):
        assert generate_greedily(model, [prompt], [special.eos], 12) == [together[number]]
    ids = list(prompts[0])
    for token in together[0]:
        with torch.inference_mode():
            assert model(torch.tensor([ids])).logits[0, -1].argmax() == token
        ids.append(token)
    assert all(special.eos not in row[:-1] for row in together)


def test_the_form_of_an_answer():
    assert is_in_form([5, 6, 2], [2, 3], [1, 2, 3]) and is_in_form([5, 3], [2, 3], [1, 2, 3])
    assert not is_in_form([5, 6], [2], [1, 2]) and not is_in_form([5, 1, 2], [2], [1, 2])


def test_base_and_arms_are_probed_and_instructions_teach_the_form(runs):
    from ctxft.config import load_experiment

    values = {"name": "probed", "model": "practice-blind", "arms": ["base", "cpt", "cpt-ift"], "seeds": [0]}
    values |= {
        "train.max_steps": 8,
        "corpus.limit": 60,
        "general.share": 0.0,
        "general.held_out": 0.05,
        "ift.max_steps": 30,
    }
    values |= {"evaluation.benchmarks": ["practice-old"], "evaluation.limit": 8, "corpus.unreliable": 0.0}
    config = load_experiment("mini", values)
    prepare(config)
    for arm in ("cpt", "cpt-ift"):
        train_task(config, arm, 0)
    found = {arm: evaluate_task(config, arm, 0)["held_out"] for arm in config.arms}
    assert all(0 <= values["eos_rate"] <= 1 and values["eos_documents"] > 5 for values in found.values())
    assert len({values["general_tokens"] for values in found.values()}) == 1
    assert found["base"]["general_loss"] != found["cpt"]["general_loss"]
    assert found["cpt-ift"]["answers_in_form"] > found["base"]["answers_in_form"]
    assert all(is_examined(config, arm, 0, load_benchmarks(config)) for arm in config.arms)
    table = loss_table(config.folder)
    assert list(table.columns) == [
        "arm",
        "seeds",
        "held-out loss",
        "with a prompt",
        "general loss",
        "ends %",
        "in form %",
    ]
    assert list(table["arm"]) == ["base", "cpt", "cpt-ift"] and all(table["in form %"])
    print(table.to_string())
