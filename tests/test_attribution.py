"""What prompts do to loss and gradient: against plain torch row by row, and on a prompt that was planted."""

from __future__ import annotations

import dataclasses
import json
import math

import pandas
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from ctxft.cli import main
from ctxft.data.rows import PromptTemplate, build_row, prompt_ids, special_tokens
from ctxft.extras.attribution import (
    attribute,
    attribution_file,
    cosines,
    enable_grad,
    gradient_similarity,
    mean_gradient,
    open_reader,
    prompt_changes,
    prompt_losses,
    read_in_training,
    require_memory,
    spread_out,
    text_stage,
    training_losses,
)
from ctxft.models import load_model, load_tokenizer
from ctxft.prompts import ContextualPrompt, control_prompt
from ctxft.run.run import Run
from ctxft.storage import InputError, read_jsonl, write_jsonl
from tests.runs import arm_folder, prepare, prompt_sets_of, read_passages, train_task

PROMPT = ["kind", "prompt", "family", "tokens"]


def reader_of(config, arm: str):
    return open_reader(Run(config), arm, 0)


@pytest.fixture
def trained(experiment, corpus_file):
    """A tiny run whose arms cpt and cft are trained, with several documents held out."""
    config = experiment(corpus={"source": str(corpus_file), "held_out": 0.5})
    prepare(config)
    for arm in ("cpt", "cft"):
        train_task(config, arm, 0)
    return config


def loss_of(model, row: dict) -> torch.Tensor:
    """The summed loss of one row, by the plainest torch there is."""
    logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
    return cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum")


def model_of(config, arm: str):
    return load_model(str(arm_folder(config, arm, 0) / "model") if arm != "base" else config.model)


# --- losses after prompts ---------------------------------------------------------------------------------------------


def test_losses_after_prompts_are_those_of_plain_torch(trained):
    losses = prompt_losses(reader_of(trained, "cft"))
    model, tokenizer = model_of(trained, "cft"), load_tokenizer(trained.model)
    special, passages = special_tokens(tokenizer), read_passages(trained.folder, "held_out")
    targets = sum(passage.targets for passage in passages)
    strategies, negative = prompt_sets_of(trained)

    def plain(prompts: list) -> float:
        rows = [build_row(one, prompt_ids(tokenizer, p), special) for one, p in zip(passages, prompts, strict=True)]
        with torch.no_grad():
            return sum(loss_of(model, row).item() for row in rows) / targets

    none = plain([None] * len(passages))
    texts = losses.drop_duplicates("passage")
    assert list(texts["document"]) == [p.document for p in passages] and list(texts["targets"]) == [
        p.targets for p in passages
    ]
    assert texts["none"].sum() / targets == pytest.approx(none, abs=1e-5)
    records = prompt_changes(losses, PROMPT)
    assert len(records) * len(passages) == len(losses) and len(records) > len(strategies.prompts) + len(
        negative.prompts
    )
    by = records.set_index(["kind", "prompt"]).to_dict("index")
    for prompt in (strategies.prompts[3], negative.prompts[7]):
        record, own = by[prompt.kind, prompt.id], plain([prompt] * len(passages))
        tokens = len(prompt_ids(tokenizer, prompt))
        control = plain([control_prompt(tokenizer, tokens, 0, passage.id) for passage in passages])
        assert record["tokens"] == tokens and record["prompts"] == 1
        assert record["loss"] == pytest.approx(own, abs=1e-5)
        assert record["to_none"][0] == pytest.approx(own - none, abs=1e-5)
        assert record["to_control"][0] == pytest.approx(own - control, abs=1e-5)
        assert by["control", f"control-{tokens}"]["loss"] == pytest.approx(control, abs=1e-5)
        assert record["to_none"][1] < record["to_none"][0] < record["to_none"][2]
    for keys in (["family", "kind"], ["kind"]):
        for group in prompt_changes(losses, keys).to_dict("records"):
            members = [one for one in records.to_dict("records") if all(one[key] == group[key] for key in keys)]
            assert group["prompts"] == len(members) > 0
            for change in ("to_none", "to_control"):
                if group["kind"] == "control" and change == "to_control":
                    assert all(math.isnan(one[change][0]) for one in (group, *members))
                    continue
                mean = sum(one[change][0] for one in members) / len(members)
                assert group[change][0] == pytest.approx(mean, abs=1e-9)


def test_the_interval_is_that_of_the_documents_by_hand(trained):
    prompt, reader = prompt_sets_of(trained)[0].prompts[0], reader_of(trained, "base")
    record = prompt_changes(prompt_losses(reader, [prompt]), PROMPT).to_dict("records")[0]
    passages = read_passages(trained.folder, "held_out")
    ids = prompt_ids(reader.run.tokenizer, prompt)
    none, own = reader.losses(passages, [[[]] * len(passages), [ids] * len(passages)])
    documents = sorted({passage.document for passage in passages})
    assert len(documents) == 2 < len(passages)
    sums, sizes = [], []
    for name in documents:
        places = [n for n, passage in enumerate(passages) if passage.document == name]
        sums.append(sum(own[n] - none[n] for n in places))
        sizes.append(sum(passages[n].targets for n in places))
    mean = sum(sums) / sum(sizes)
    error = math.sqrt(2 * sum((s - mean * n) ** 2 for s, n in zip(sums, sizes, strict=True))) / sum(sizes)
    half = 12.7062 * error  # t at 97.5 %, one degree of freedom
    assert record["to_none"] == pytest.approx((mean, mean - half, mean + half), rel=1e-4)


def test_passages_of_training_general_text_and_limits(experiment, corpus_file):
    config = experiment(general={"source": "practice-old", "limit": 30, "held_out": 0.3})
    prepare(config)
    prompts, reader = prompt_sets_of(config)[0].prompts[:1], reader_of(config, "base")
    every, few = (prompt_losses(reader, prompts, "passages", limit) for limit in (None, 2))
    assert every["passage"].nunique() == len(read_passages(config.folder))
    assert few["passage"].nunique() == few["document"].nunique() == 2
    assert len(prompt_losses(reader, prompts, "general_held_out"))
    with pytest.raises(InputError, match=r"unknown kind of passages .heldout. \(did you mean .held_out.\?\)"):
        prompt_losses(reader, prompts, "heldout")
    with pytest.raises(InputError, match="at least 1 passage is needed, found 0"):
        prompt_losses(reader, prompts, limit=0)
    assert spread_out(list(range(10)), 3) == [0, 3, 6] and spread_out([1, 2], 5) == [1, 2]


def test_one_document_has_no_interval_and_none_is_refused(experiment, corpus_file):
    config = experiment()
    prepare(config)
    losses = prompt_losses(reader_of(config, "base"), prompt_sets_of(config)[0].prompts[:1])
    assert losses["document"].nunique() == 1
    value, low, high = prompt_changes(losses, PROMPT)["to_none"][0]
    assert not math.isnan(value) and math.isnan(low) and math.isnan(high)
    none = experiment(name="none", corpus={"source": str(corpus_file), "held_out": 0.0})
    prepare(none)
    with pytest.raises(InputError, match=r"held_out\.jsonl holds no passage: raise corpus\.held_out"):
        prompt_losses(reader_of(none, "base"))


def test_a_prompt_that_the_model_cannot_read_is_refused(trained):
    long = ContextualPrompt("long", "own", "the house by the road " * 80, "strategy")
    with pytest.raises(InputError, match="tokens after its prompt, but the model reads at most 256"):
        prompt_losses(reader_of(trained, "base"), [long])


def test_unknown_and_untrained_tasks_are_refused(experiment):
    config = experiment()
    prepare(config)
    for arm, seed in (("cft", 1), ("neg", 0), ("base", 1)):
        with pytest.raises(InputError, match=f"unknown task '{arm}:{seed}'"):
            open_reader(Run(config), arm, seed)
    with pytest.raises(InputError, match=r"arm .cft., seed 0 of .* is not trained yet"):
        attribute(Run(config), "cft", 0)


def test_a_planted_prompt_lowers_the_loss_of_the_model_that_learned_it(experiment, tmp_path):
    """After the one prompt of a set a text is learned almost by heart; after other words it is less known."""
    text = "The lake by the old bridge is near the garden. Seven horses run along the fence in the morning."
    corpus = write_jsonl(tmp_path / "one.jsonl", [{"id": f"d{n}", "text": f"{n} {text}"} for n in range(12)])
    book = tmp_path / "book.yaml"
    prompt = "Read what follows as if a friend had asked for it."
    book.write_text(
        f"name: one\nkind: strategy\nprompts:\n  - {{id: one-1, family: context, text: '{prompt}'}}\n", encoding="utf-8"
    )
    recipe = {"max_steps": 40, "learning_rate": 1e-2, "train_batch_size": 8}
    config = experiment(
        recipe,
        corpus={"source": str(corpus), "held_out": 0.3},
        prompts={"strategies": str(book), "negative": "negative"},
    )
    prepare(config)
    train_task(config, "cft", 0)
    prompts = prompt_sets_of(config)[0].prompts
    found, base = (prompt_changes(prompt_losses(reader_of(config, arm), prompts), PROMPT) for arm in ("cft", "base"))
    planted, control = found.to_dict("records")
    assert planted["prompt"] == "one-1" and control["kind"] == "control" and planted["tokens"] == control["tokens"]
    assert planted["to_none"][2] < 0 and planted["to_control"][2] < 0
    assert base["to_control"][0][0] > planted["to_control"][0]


def test_prompts_are_in_the_template_of_their_set(experiment, tmp_path):
    books = {}
    for kind, base in (("strategy", "strategies"), ("negative", "negative")):
        text = f'{{name: own, kind: {kind}, extends: {base}, separator: "\\n", prompts: [{{id: x, family: context, text: See}}]}}'
        (tmp_path / f"{kind}.yaml").write_text(text, encoding="utf-8")
        books["strategies" if kind == "strategy" else "negative"] = str(tmp_path / f"{kind}.yaml")
    config = experiment(prompts=books)
    prepare(config)
    reader, prompt = reader_of(config, "base"), prompt_sets_of(config)[0].prompts[0]
    assert reader.run.tokenizer.decode(reader.ids(prompt)) == prompt.text + "\n"
    passages = read_passages(config.folder)[:3]
    turn = dataclasses.replace(reader, run=Run(config))
    turn.run.template = PromptTemplate(before=(5,), separator="", after=(6, 7))
    for one, ids in ((reader, (len(reader.ids(prompt)),) * 3), (turn, (20, 21, 22))):
        rows = one.random_words(passages, ids)
        assert [len(row) for row in rows] == list(ids)
    assert all(row[0] == 5 and row[-2:] == [6, 7] for row in rows)


# --- passages of training ---------------------------------------------------------------------------------------------


def test_training_losses_are_after_the_recorded_prompts(trained):
    losses = training_losses(reader_of(trained, "cft"))
    folder, passages = arm_folder(trained, "cft", 0), read_passages(trained.folder)
    model, tokenizer = model_of(trained, "cft"), load_tokenizer(trained.model)
    sampled = {row["passage"]: row for _, row in read_jsonl(folder / "prompts.jsonl")}
    read = sorted({place for _, step in read_jsonl(folder / "log.jsonl") for place in step["passages"]})
    assert len(losses) == len(read)
    for place, found in zip(read, losses.to_dict("records"), strict=True):
        row = sampled[passages[place].id]
        prompt = ContextualPrompt(row["prompt"], row["family"], row["text"], "strategy")
        with torch.no_grad():
            laid = build_row(passages[place], prompt_ids(tokenizer, prompt), special_tokens(tokenizer))
            assert found["loss"] == pytest.approx(loss_of(model, laid).item(), rel=1e-5)
        assert (found["prompt"], found["family"], found["kind"]) == (row["prompt"], row["family"], "strategy")
        assert (found["document"], found["targets"]) == (passages[place].document, passages[place].targets)


def test_passages_that_few_steps_never_came_to_are_left_out(experiment):
    config = experiment({"max_steps": 1, "train_batch_size": 3}, arms=["cpt", "ift", "cpt-ift"])
    prepare(config)
    train_task(config, "cpt", 0)
    losses = training_losses(reader_of(config, "cpt"))
    assert len(losses) == 3 < len(read_passages(config.folder)) and set(losses["prompt"]) == {"none"} == set(
        losses["kind"]
    )
    assert [text_stage(arm) for arm in ("base", "ift", "cpt", "cpt-ift")] == [None, None, "cpt", "cpt"]
    assert read_in_training(Run(config), "cpt-ift", 0) == read_in_training(Run(config), "cpt", 0)
    with pytest.raises(InputError, match="arm 'ift' reads no text in training"):
        read_in_training(Run(config), "ift", 0)


def test_shuffled_words_are_controls_and_exercises_are_no_prompts(experiment):
    config = experiment(arms=["control-shuffled", "reading"])
    prepare(config)
    for arm in config.arms:
        train_task(config, arm, 0)
    shuffled, reading = (training_losses(reader_of(config, arm)) for arm in config.arms)
    assert set(shuffled["kind"]) == {"control"}
    assert set(shuffled["family"]) <= set(prompt_sets_of(config)[0].families)
    assert set(reading["family"]) == {"none"} == set(reading["kind"])
    assert reading["targets"].sum() == shuffled["targets"].sum(), "of the text alone"


# --- gradients --------------------------------------------------------------------------------------------------------


def plain_gradient(model, rows: list[dict]) -> torch.Tensor:
    model.zero_grad()
    targets = sum(label != -100 for row in rows for label in row["labels"][1:])
    for row in rows:
        (loss_of(model, row) / targets).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_gradients_are_those_of_plain_autograd(trained, loss):
    tokenizer, passages = load_tokenizer(trained.model), read_passages(trained.folder)[:5]
    ids = prompt_ids(tokenizer, prompt_sets_of(trained)[0].prompts[0])
    rows = [build_row(passage, ids, special_tokens(tokenizer)) for passage in passages]
    expected = plain_gradient(model_of(trained, "cft"), rows)
    model = model_of(trained, "cft")
    assert enable_grad(model, loss) == len(expected)
    found = mean_gradient(model, rows, max_batch_tokens=150)
    assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-5 < expected.abs().max()
    assert torch.equal(found, mean_gradient(model, rows[::-1], max_batch_tokens=150))
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_of_an_adapter_its_own_weights_alone_are_compared(experiment):
    config = experiment({"method": "lora", "lora": {"r": 2, "lora_dropout": 0.5}})
    prepare(config)
    train_task(config, "cft", 0)
    found = gradient_similarity(reader_of(config, "cft"), passages=4)
    model = model_of(config, "cft")
    own = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert found["weights"] == own < sum(p.numel() for p in model.parameters()) - own
    assert found == gradient_similarity(reader_of(config, "cft"), passages=4), (
        "no dropout, and the same from run to run"
    )


def test_cosines_between_families_none_negative_and_control(trained):
    found = gradient_similarity(reader_of(trained, "cft"), passages=6)
    strategies, negative = prompt_sets_of(trained)
    names = [one["family"] for one in found["conditions"]]
    assert names == ["none", *strategies.families, "negative", "control"] and found["passages"] == 6
    matrix = torch.tensor(found["cosine"])
    assert matrix.shape == (len(names), len(names)) and torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(len(names))) and (matrix.abs() <= 1).all()
    tokenizer, model = load_tokenizer(trained.model), model_of(trained, "cft")
    passages = spread_out(read_passages(trained.folder), 6)
    own = [prompt for prompt in strategies.prompts if prompt.family == names[2]]

    def gradient(prompts: list) -> torch.Tensor:
        pairs = zip(passages, prompts, strict=True)
        return plain_gradient(
            model, [build_row(p, prompt_ids(tokenizer, c), special_tokens(tokenizer)) for p, c in pairs]
        )

    vectors = [gradient([None] * 6), gradient([own[n % 2] for n in range(6)]), gradient(list(negative.prompts[:6]))]
    places = [0, 2, names.index("negative")]
    for a, first in zip(places, vectors, strict=True):
        assert found["norms"][a] == pytest.approx(first.norm().item(), rel=1e-4)
        for b, second in zip(places, vectors, strict=True):
            assert found["cosine"][a][b] == pytest.approx(cosine_similarity(first, second, dim=0).item(), abs=1e-5)


def test_too_many_weights_and_vectors_without_direction_are_refused(trained):
    with pytest.raises(InputError, match=r"13 gradients of 1,000,000,000 weights take 48.4 GiB, more than the 4 GiB"):
        require_memory(13, 10**9, 4.0)
    with pytest.raises(InputError, match=r"more than the 0\.0001 GiB allowed"):
        gradient_similarity(reader_of(trained, "cft"), memory=1e-4)
    with pytest.raises(InputError, match="gradient 1 is 0 everywhere"):
        cosines([torch.ones(3), torch.zeros(3)])


# --- the file and the command -----------------------------------------------------------------------------------------


def test_an_attribution_is_written_once_and_again_where_something_changed(trained):
    found = attribute(Run(trained), "cft", 0, limit=4, passages=3)
    path = attribution_file(Run(trained), "cft", 0)
    assert json.loads(path.read_text(encoding="utf-8")) == found
    assert found["prompt_sets"]["strategies"] == prompt_sets_of(trained)[0].hash and found["gradients"]["passages"] == 3
    losses = pandas.DataFrame(**found["losses"])
    pandas.testing.assert_frame_equal(losses, prompt_losses(reader_of(trained, "cft"), limit=4))
    written = path.stat().st_mtime_ns
    assert attribute(Run(trained), "cft", 0, limit=4, passages=3) == found and path.stat().st_mtime_ns == written
    other = attribute(Run(trained), "cft", 0, limit=2, passages=0)
    assert other["gradients"] is None and other["key"] != found["key"]
    assert len(other["losses"]["data"]) * 2 == len(found["losses"]["data"])
    assert attribute(Run(trained), "base", 0, limit=2, passages=0)["training"] is None


def test_the_command_prints_the_tables_and_names_the_file(trained, capsys):
    command = ["attribute", "tiny", "--arm", "cft", "--limit", "3", "--passages", "2"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert str(attribution_file(Run(trained), "cft", 0)) in shown
    assert all(word in shown for word in ("key-concepts-1", "control", "minus no prompt", "cosine"))
    assert main(["attribute", "tiny", "--arm", "neg"]) == 2
    assert "unknown task 'neg:0'" in capsys.readouterr().err
