"""The synthetic experiment is right: the network is GPT-2's, the dropped prefix exact, derivatives and baselines true."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from ctxft.storage import InputError
from ctxft.synthetic.config import ARMS, TARGETS, SyntheticConfig, load_config
from ctxft.synthetic.regression import (
    context_of,
    draw_chance,
    draw_tasks,
    make_generator,
    make_network,
    predict,
    squared_errors,
)
from ctxft.synthetic.study import (
    FINETUNING,
    SyntheticTraining,
    alignment,
    baselines,
    bootstrap_band,
    derivatives,
    least_squares_errors,
    points_at,
    rate_at,
)

SMALL = {"dims": 3, "points": 6, "layers": 2, "width": 16, "heads": 4, "start_points": 2}


def lively(config: SyntheticConfig, dtype: torch.dtype = torch.float32):
    """A network with weights so large that attention and every layer matter."""
    network = make_network(config, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.to(dtype)


def batch(target: str, config: SyntheticConfig, size: int = 5, dtype: torch.dtype = torch.float32):
    tasks = draw_tasks(make_generator("cpu", "test", target), target, size, config.points, config.dims)
    draws = draw_chance(make_generator("cpu", "chance"), tasks)
    for value in (tasks, draws):
        for field in dataclasses.fields(value):
            tensor = getattr(value, field.name)
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                setattr(value, field.name, tensor.to(dtype))
    return tasks, draws


def as_gpt2(network, config: SyntheticConfig) -> GPT2Model:
    """transformers' GPT2Model, eager attention, with the weights of our trunk."""
    settings = {"n_positions": 4 * config.points, "n_embd": config.width, "n_layer": config.layers}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2Model(
        GPT2Config(
            **settings,
            **dropout,
            n_head=config.heads,
            vocab_size=2,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        model.wpe.weight.copy_(network.positions.weight)
        model.ln_f.load_state_dict(network.norm.state_dict())
        for theirs, ours in zip(model.h, network.blocks, strict=True):
            theirs.ln_1.load_state_dict(ours.norm_1.state_dict())
            theirs.ln_2.load_state_dict(ours.norm_2.state_dict())
            pairs = [(theirs.attn.c_attn, ours.attend), (theirs.attn.c_proj, ours.mix)]
            pairs += [(theirs.mlp.c_fc, ours.widen), (theirs.mlp.c_proj, ours.narrow)]
            for layer, linear in pairs:  # transformers keeps the weights of GPT-2 transposed
                layer.weight.copy_(linear.weight.T)
                layer.bias.copy_(linear.bias)
    return model


@pytest.mark.parametrize("size", ["small", "full"])
def test_network_is_that_of_transformers(size: str) -> None:
    config = SyntheticConfig(**SMALL) if size == "small" else load_config("full", {"layers": 3})
    network = lively(config) if size == "small" else make_network(config, 0)
    tasks, draws = batch("polynomial", config, size=2)
    x, y = torch.cat((draws.x, tasks.x), 1), torch.cat((draws.noise, tasks.values(tasks.x)), 1)
    with torch.no_grad():
        tokens = network.embed(x, y)
        ours, theirs = network.trunk(tokens), as_gpt2(network, config)(inputs_embeds=tokens).last_hidden_state
    assert ours.std() > 0.1 and (ours - theirs).abs().max() < 1e-5


def test_a_dropped_context_is_a_masked_one() -> None:
    config = SyntheticConfig(**SMALL)
    network, (tasks, _) = lively(config), batch("relu", config)
    zeros, before = torch.zeros_like(tasks.x), 2 * config.points
    tokens = torch.cat((network.embed(zeros, zeros[..., 0]), network.embed(tasks.x, tasks.values(tasks.x))), 1)
    mask = torch.cat((torch.zeros(len(tokens), before), torch.ones(len(tokens), before)), 1)
    with torch.no_grad():
        places = torch.arange(2 * before)[None]
        hidden = as_gpt2(network, config)(inputs_embeds=tokens, attention_mask=mask, position_ids=places)
        theirs = network.read_out(hidden.last_hidden_state[:, before::2]).squeeze(-1)
        ours = predict(network, tasks, context_of("cpt", tasks, None))
    # 1e-6 of the size of a prediction: other kernels sum in another order
    assert (ours - theirs).abs().max() < 1e-6 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("arm", ARMS)
def test_derivatives_of_one_pass_are_those_of_single_sequences(arm: str) -> None:
    config = SyntheticConfig(**SMALL)
    network, (tasks, draws) = lively(config, torch.float64), batch("sumdot", config, dtype=torch.float64)
    partial, total, _ = derivatives(network, arm, tasks, draws)
    held = context_of(arm, tasks, draws)

    def last(number: int, x: torch.Tensor, moves: bool) -> torch.Tensor:
        points = torch.cat((tasks.x[number, :-1], x[None]))
        all_x = torch.cat((tasks.x[:number], points[None], tasks.x[number + 1 :]))
        context = context_of(arm, tasks.at(all_x), draws)
        if not moves and context is not None:
            context = (context[0], held[1])
        return predict(network, tasks.at(all_x), context)[number, -1]

    for number in range(len(tasks.x)):
        x = tasks.x[number, -1]
        for found, moves in ((partial, False), (total, True)):
            alone = torch.autograd.functional.jacobian(lambda x, n=number, m=moves: last(n, x, m), x)
            assert (found[number] - alone).abs().max() < 1e-6
    same = torch.equal(partial, total)
    assert same == (arm not in ("cft", "shuffled")), "only there does a context value hang on the last x"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("arm", ["cft", "cpt", "shuffled"])
def test_total_derivative_is_the_finite_difference(target: str, arm: str) -> None:
    config, step = SyntheticConfig(**SMALL), 1e-5
    network, (tasks, draws) = lively(config, torch.float64), batch(target, config, dtype=torch.float64)
    _, total, true = derivatives(network, arm, tasks, draws)
    for dim in range(config.dims):
        ends, values = [], []
        for sign in (1, -1):
            x = tasks.x.clone()
            x[:, -1, dim] += sign * step
            moved = tasks.at(x)
            ends.append(predict(network, moved, context_of(arm, moved, draws))[:, -1].detach())
            values.append(moved.values(x)[:, -1])
        for exact, (above, below) in ((total, ends), (true, values)):
            numeric = (above - below) / (2 * step)
            assert torch.allclose(exact[:, dim], numeric, rtol=1e-3, atol=1e-6)


def test_alignment_is_one_for_the_true_function_and_leaves_out_flat_places() -> None:
    config = SyntheticConfig(**SMALL)
    tasks, draws = batch("relu", config, size=64)

    class Knows(nn.Module):
        """Predicts relu(w.x) up to a factor."""

        def forward(self, x, y, start=0):
            return 3 * tasks.at(x).values(x)

    found = alignment(Knows(), "cpt", tasks, draws)
    flat = (tasks.linear(tasks.x)[:, -1] <= 0).float().mean()
    assert 0.2 < flat < 0.8 and found["partial"] == pytest.approx(1) and found["total"] == pytest.approx(1)


def test_contexts_are_what_they_are_called() -> None:
    config = SyntheticConfig(**SMALL)
    tasks, draws = batch("product", config, size=200)
    found = {arm: context_of(arm, tasks, draws) for arm in ARMS}
    true = tasks.linear(tasks.x)
    assert found["cpt"] is None
    assert torch.equal(found["cft"][0], tasks.x) and torch.equal(found["cft"][1], true)
    assert torch.equal(found["neg-scaled"][1], found["neg"][1] * math.sqrt(3))
    assert found["neg"][1].std() == pytest.approx(1, rel=0.1) and true.std() == pytest.approx(math.sqrt(3), rel=0.15)
    for arm, function in (("fresh", tasks.linear), ("cpt-long", tasks.values)):
        assert torch.equal(found[arm][1], function(found[arm][0])) and not torch.isin(found[arm][0], tasks.x).any()
    shuffled = found["shuffled"][1]
    assert torch.equal(shuffled.sort(1).values, true.sort(1).values) and (shuffled != true).all()


def test_no_query_answers_each_query_where_its_pair_is_not() -> None:
    config = SyntheticConfig(**SMALL)
    tasks, draws = batch("polynomial", config)
    x, y = context_of("no-query", tasks, draws)
    assert torch.allclose(y, torch.cat((tasks.linear(x[: len(x) // 2]), tasks.linear(x[len(x) // 2 :]))))

    class SeenBefore(nn.Module):
        """Tells for every x whether it stood in the sequence before."""

        def forward(self, x, y, start=0):
            same = (x[:, :, None] == x[:, None, :]).all(-1)
            return same.tril(-1).any(-1).float()

    assert predict(SeenBefore(), tasks, (x, y)).sum() == 0
    assert predict(SeenBefore(), tasks, context_of("fresh", tasks, draws)).sum() == 0
    assert predict(SeenBefore(), tasks, context_of("cft", tasks, draws)).min() == 1
    others = (x[:, :, None] == torch.cat((tasks.x, tasks.x))[:, None]).all(-1).any(-1).sum(1)
    assert (others == config.points // 2).all(), "the pairs of the other queries stay"


def test_all_arms_of_a_seed_train_on_the_same_tasks(runs) -> None:
    """The first loss of an arm is that of the seed's network on the tasks of the first step, whatever else was trained."""
    config = SyntheticConfig(**SMALL, name="t", pretrain_steps=2, finetune_steps=1, test_prompts=8)
    SyntheticTraining(config, 0).run()
    network = SyntheticTraining(config, 0).network()
    first = make_generator("cpu", 0, "tasks", FINETUNING)
    tasks = draw_tasks(first, "sumdot", config.batch, config.points, config.dims)
    draws = draw_chance(make_generator("cpu", 0, "context", 0), tasks)
    for arm in ARMS:
        training = SyntheticTraining(config, 0, "sumdot", arm)
        training.run()
        expected = squared_errors(network, arm, tasks, draws).mean().item()
        assert training.log["loss"] == [pytest.approx(expected, rel=1e-6)]


def test_counting_predicts_the_least_squares_errors_of_sumdot() -> None:
    """At the paper's size: unknown numbers left after j pairs, (dims - j) for each weight vector, over the 41 points."""
    tasks = draw_tasks(make_generator("cpu", "count"), "sumdot", 400, 41, 20)
    unit = sum(range(1, 21)) / 41
    assert unit == pytest.approx(5.122, abs=1e-3)  # the error that the authors divide by
    y = tasks.values(tasks.x)
    for values, excess in ((y, 2.0), (y - tasks.linear(tasks.x), 1.0)):
        errors = least_squares_errors(tasks.x, values)
        assert errors.mean().item() / unit == pytest.approx(excess, rel=0.05)
        assert errors[:, 20:].max() < 1e-3


@pytest.mark.parametrize("target", TARGETS)
def test_baselines_are_best_among_their_kind(target: str) -> None:
    config = SyntheticConfig(**SMALL, test_prompts=2000)
    found = {name: sum(values) / len(values) for name, values in baselines(config, target).items()}
    exact = {"linear": 3.0, "sumdot": 6.0, "product": 15.0, "polynomial": 3 + 3 * 3 * 5 - 9}
    if target in exact:  # the variance of the target, from the moments of the normal distribution
        assert found["constant"] == pytest.approx(
            exact[target], rel=0.3 if target in ("polynomial", "product") else 0.15
        )
    assert found["scale"] <= found["constant"] * 1.02
    if target in ("polynomial", "relu"):
        assert found["scale"] < 0.95 * found["constant"], (
            "the length of w tells something of a function that is not odd"
        )
    assert ("least_squares" in found) == (target in ("linear", "sumdot"))


def test_band_is_that_of_the_mean() -> None:
    errors = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 5.0, 10.0])
    band = bootstrap_band(errors)
    for point, mean in enumerate(errors.double().mean(0)):
        half = (band["high"][point] - band["low"][point]) / 2
        assert band["low"][point] < mean < band["high"][point]
        assert half == pytest.approx(1.96 * errors[:, point].std().item() / math.sqrt(2000), rel=0.1)


def test_schedules_are_the_recipe() -> None:
    full, mini = load_config("full"), load_config("mini")
    assert [points_at(full, step) for step in (0, 1999, 2000, 29_999, 30_000, 50_000)] == [
        11,
        11,
        13,
        39,
        41,
        41,
    ]
    assert {rate_at(full, step, 50_001) for step in (0, 100, 50_000)} == {1e-4}
    rates = [rate_at(mini, step, 800) for step in range(800)]
    assert rates[0] == pytest.approx(2e-5) and max(rates) == 2e-3 and rates[-1] == pytest.approx(1e-4)
    assert rates[99] == rates[500] == 2e-3 > rates[600]


def test_bad_values_are_refused_in_one_sentence() -> None:
    for settings, sentence in (
        ({"widht": 3}, r"unknown key 'widht' \(did you mean 'width'\?\)"),
        ({"width": 50}, r"width \(50\) must be a multiple of heads \(4\)"),
        ({"points": 1}, "points must be greater than or equal to 2, found 1"),
        ({"dims": 0}, "dims must be greater than or equal to 1, found 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"start_points": 9}, r"start_points \(9\) must not exceed points \(8\)"),
        ({"finetune_steps": "many"}, "finetune_steps must be a valid integer, found 'many'"),
    ):
        with pytest.raises(InputError, match=sentence):
            load_config("mini", settings)
    with pytest.raises(InputError, match=r"unknown size 'mimi' \(did you mean 'mini'\?\)"):
        load_config("mimi")
