"""Packed rows are the rows: every token once, nothing seen across, the same loss and gradients in every layout."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.cohere import CohereConfig, CohereForCausalLM

from ctxft.data.rows import IGNORE_INDEX
from ctxft.storage import InputError
from ctxft.training import loss as losses
from ctxft.training.loss import chunked_loss, patch_loss_forward
from ctxft.training.model import check_packed_loss
from ctxft.training.packing import (
    batch_by_length,
    best_fit,
    choose_attention,
    micro_batches,
    set_attention,
    shard_batches,
)

VOCABULARY, WINDOW = 61, 40
LAYOUTS = ["segments", "sdpa", "eager"]


def make_rows(seed: int, number: int, longest: int = WINDOW) -> list[dict]:
    """Rows of random ids with a masked prompt of a random length before the text."""
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        length = rng.randint(6, longest)
        ids, before = [rng.randrange(4, VOCABULARY) for _ in range(length)], rng.randint(1, length - 3)
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * before + ids[before:]})
    return rows


def llama(**values) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    defaults = sizes | {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**defaults | values))


def network(model, attention: str, loss: str = "chunked"):
    model = copy.deepcopy(model)
    set_attention(model, attention)
    return patch_loss_forward(model, loss)


def one_by_one(model, rows) -> tuple[float, list[torch.Tensor]]:
    model = copy.deepcopy(model)
    total = 0.0
    for row in rows:
        loss = model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]]), num_items_in_batch=1).loss
        loss.backward()
        total += loss.item()
    return total, [p.grad for p in model.parameters()]


def laid_out(model, batches) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch.inputs("cpu")).loss
        loss.backward()
        total += loss.item()
    return total, [p.grad for p in model.parameters()]


def distance(ours, theirs) -> float:
    size = sum(g.square().sum() for g in theirs).sqrt()
    return (sum((a - b).square().sum() for a, b in zip(ours, theirs, strict=True)).sqrt() / size).item()


# --- bins -------------------------------------------------------------------------------------------------------------


def test_bins_hold_every_item_once_within_the_capacity():
    rng = random.Random(1)
    lengths = [rng.randint(1, 100) for _ in range(2000)]
    bins = best_fit(lengths, 100)
    assert sorted(i for items in bins for i in items) == list(range(2000))
    assert all(sum(lengths[i] for i in items) <= 100 for items in bins)
    assert sum(lengths) / (100 * len(bins)) > 0.98
    assert best_fit(lengths, 100) == bins and best_fit([], 5) == []


def test_best_fit_takes_the_fullest_bin_that_has_room():
    assert best_fit([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert best_fit([7, 8, 2, 3], 10) == [[1, 2], [0, 3]]


def test_groups_for_padding_keep_the_order():
    groups = batch_by_length([5, 9, 2, 2, 2, 10], 20)
    assert groups == [[0, 1], [2, 3, 4], [5]]


# --- layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", LAYOUTS)
def test_every_token_is_laid_out_once_with_its_own_position_and_target(attention):
    rows = make_rows(2, 12)
    batches = micro_batches(rows, attention, 90, pad=0)
    assert sorted(n for batch in batches for n in batch.rows) == list(range(12))
    for batch in batches:
        assert batch.input_ids.numel() <= 90
        ids, places = batch.input_ids.flatten(), batch.position_ids.flatten()
        wanted = [(i, t) for n in batch.rows for t, i in enumerate(rows[n]["input_ids"])]
        assert [(int(i), int(p)) for i, p in zip(ids, places, strict=True) if i] == wanted
        labels = [label for n in batch.rows for label in rows[n]["labels"] if label != IGNORE_INDEX]
        assert batch.targets.tolist() == labels == [int(ids[at + 1]) for at in batch.target_positions]
        assert batch.tokens == len(wanted)


def test_the_first_label_of_a_row_is_nobodys_target():
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    (batch,) = micro_batches([row, row], "segments", 8, pad=0)
    assert batch.targets.tolist() == [6, 7, 6, 7] and batch.target_positions.tolist() == [0, 1, 3, 4]


def test_padding_is_told_by_length_even_where_pad_is_eos():
    rows = [{"input_ids": [2, 7, 8, 2], "labels": [-100, 7, 8, 2]}, {"input_ids": [2, 9], "labels": [-100, 9]}]
    (batch,) = micro_batches(rows, "sdpa", 8, pad=2)
    assert batch.input_ids.tolist() == [[2, 7, 8, 2], [2, 9, 2, 2]]
    assert batch.targets.tolist() == [7, 8, 2, 9] and batch.target_positions.tolist() == [0, 1, 2, 4]
    assert batch.attention["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_processes_share_a_step_and_keep_in_step():
    batches = micro_batches(make_rows(3, 9), "segments", WINDOW, 0)
    for processes in (1, 2, 3, 4):
        parts = [shard_batches(batches, rank, processes) for rank in range(processes)]
        assert len({len(part) for part in parts}) == 1
        assert sorted(n for part in parts for batch in part for n in batch.rows) == list(range(9))
        assert all(batch.weight == bool(batch.rows) for part in parts for batch in part)


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("seed", range(5))
def test_packed_loss_and_gradients_are_those_of_the_rows_one_at_a_time(attention, seed):
    rows, model = make_rows(seed, 10), llama()
    loss, gradients = one_by_one(model, rows)
    found, others = laid_out(network(model, attention), micro_batches(rows, attention, 100, 0))
    assert found == pytest.approx(loss, rel=1e-5) and distance(others, gradients) < 1e-5


@pytest.mark.parametrize("attention", LAYOUTS)
def test_the_gradient_to_another_rows_embeddings_is_exactly_zero(attention):
    rows = make_rows(7, 3, longest=13)
    for row in rows[:2]:
        row["labels"] = [IGNORE_INDEX] * len(row["labels"])
    (batch,) = micro_batches(rows, attention, 3 * WINDOW, 0)
    model, seen = network(llama(), attention), []
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.append(out))
    (gradient,) = torch.autograd.grad(model(**batch.inputs("cpu")).loss, seen[0])
    size, own = gradient.abs().sum(-1).flatten(), len(rows[2]["input_ids"])
    begin = (
        int((batch.position_ids.flatten() == 0).nonzero()[batch.rows.index(2)])
        if attention == "segments"
        else 2 * (batch.input_ids.shape[1])
    )
    assert size[begin : begin + own - 1].min() > 0
    assert size[:begin].sum() == 0 and size[begin + own - 1 :].sum() == 0


def test_batch_times_accumulation_changes_nothing():
    rows, model = make_rows(11, 16), network(llama(), "segments")
    found = {}
    for size in (16, 4, 8, 2, 1):
        parts = [rows[i : i + size] for i in range(0, 16, size)]
        batches = [batch for part in parts for batch in micro_batches(part, "segments", 16 * WINDOW, 0)]
        assert len(batches) == 16 // size
        loss, gradients = laid_out(model, batches)
        found[size] = loss, [g.clone() for g in gradients]
    for loss, gradients in found.values():
        assert loss == pytest.approx(found[1][0], rel=1e-6) and distance(gradients, found[1][1]) < 1e-6


def kinds() -> dict:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = small | {"vocab_size": VOCABULARY, "initializer_range": 0.3}
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64, initializer_range=0.3)
    gpt2.attn_pdrop = gpt2.resid_pdrop = gpt2.embd_pdrop = 0.0
    return {
        "tied": llama(tie_word_embeddings=True),
        "gpt2": GPT2LMHeadModel(gpt2),
        "sliding": MistralForCausalLM(MistralConfig(**common, num_key_value_heads=2, sliding_window=9)),
        "cohere": CohereForCausalLM(CohereConfig(**common, num_key_value_heads=4, logit_scale=0.5)),
    }


@pytest.mark.parametrize("attention", ["segments", "sdpa"])
@pytest.mark.parametrize("kind", ["tied", "gpt2", "sliding"])
def test_other_kinds_of_models_are_exact_too(kind, attention):
    rows, model = make_rows(5, 8), kinds()[kind]
    loss, gradients = one_by_one(model, rows)
    result, others = laid_out(network(model, attention), micro_batches(rows, attention, 100, 0))
    assert result == pytest.approx(loss, rel=1e-5) and distance(others, gradients) < 1e-5


def test_a_model_that_changes_its_logits_is_refused_until_all_logits_are_asked_for():
    rows, model = make_rows(5, 8), kinds()["cohere"]
    with pytest.raises(InputError, match=r"changes its logits after the output layer \(set train.loss to full\)"):
        check_packed_loss(network(model, "segments"), rows[0], "segments", 0, "cpu")
    whole = network(model, "segments", "full")
    check_packed_loss(whole, rows[0], "segments", 0, "cpu")
    loss, gradients = one_by_one(model, rows)
    found, others = laid_out(whole, micro_batches(rows, "segments", 100, 0))
    assert found == pytest.approx(loss, rel=1e-5) and distance(others, gradients) < 1e-5


def test_the_probe_finds_a_leak():
    model = network(llama(), "segments")
    inner = model.forward

    def leaky(**inputs):  # one segment instead of two
        return inner(**inputs | {"segments": [sum(inputs["segments"])]})

    model.forward = leaky
    with pytest.raises(InputError, match="lets one passage see another"):
        check_packed_loss(model, make_rows(1, 1)[0], "segments", 0, "cpu")


def test_attention_that_is_not_told_the_rows_refuses():
    model = network(llama(), "segments")
    with pytest.raises(InputError, match="does not pass on to its attention where rows begin"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ("wanted", "pack", "device", "said"),
    [
        ("segments", False, "cpu", "packs rows: set train.pack to true"),
        ("sdpa", True, "cpu", "pads rows: set train.pack to false"),
        ("varlen", True, "cpu", "needs a GPU"),
    ],
)
def test_attention_that_cannot_be_had_is_refused(wanted, pack, device, said, monkeypatch):
    with pytest.raises(InputError, match=said):
        choose_attention(wanted, pack, device)
    for capability, name in (((8, 0), "varlen"), ((7, 5), "segments")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert choose_attention("auto", True, "cuda") == name and choose_attention("auto", False, "cuda") == "sdpa"


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_give_the_loss_and_gradients_of_all_logits(chunk, frozen):
    torch.manual_seed(0)
    head, hidden, targets = torch.nn.Linear(8, 50), torch.randn(20, 8, requires_grad=True), torch.randint(50, (20,))
    head.requires_grad_(not frozen)
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    whole = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    ours = chunked_loss(head, hidden, targets, chunk)
    assert ours.item() == pytest.approx(whole.item(), rel=1e-6)
    theirs = torch.autograd.grad(whole * 0.3, inputs)
    for a, b in zip(torch.autograd.grad(ours * 0.3, inputs), theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with torch.inference_mode():
        assert chunked_loss(head, hidden, targets, chunk).item() == pytest.approx(whole.item(), rel=1e-6)


def test_prompts_and_padding_cost_no_logits(monkeypatch):
    model, seen, plain = network(llama(), "segments"), [], losses.linear_cross_entropy
    monkeypatch.setattr(losses, "linear_cross_entropy", lambda h, *a, **k: seen.append(len(h)) or plain(h, *a, **k))
    rows = make_rows(4, 6)
    for batch in micro_batches(rows, "segments", 80, 0):
        model(**batch.inputs("cpu")).loss.backward()
    assert sum(seen) == sum(label != IGNORE_INDEX for row in rows for label in row["labels"])


def test_half_precision_adds_the_loss_up_in_float32():
    """As on a GPU: hidden states in bfloat16, the head in float32 under autocast, or in bfloat16 as FSDP lends it."""
    torch.manual_seed(0)
    head, hidden, targets = torch.nn.Linear(8, 50), torch.randn(400, 8).bfloat16(), torch.randint(50, (400,))
    exact = torch.nn.functional.cross_entropy(head(hidden.float()), targets, reduction="sum").item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(head, hidden.requires_grad_(), targets, 7)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=1e-6)
    assert hidden.grad.dtype == torch.bfloat16 and head.weight.grad.dtype == torch.float32
    assert chunked_loss(head.bfloat16(), hidden, targets, 7).item() == pytest.approx(exact, rel=1e-3)
