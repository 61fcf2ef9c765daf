"""What prompts do to loss and gradient: against plain torch row by row, and on a prompt that was planted."""

from __future__ import annotations

import math
import shutil

import pandas
import pytest
import scipy.stats
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from ctxft.cli import main
from ctxft.data.rows import build_row, prompt_ids, special_tokens
from ctxft.extras.attribution import attribute, family_gradients, mean_gradient, prompt_changes, prompt_losses
from ctxft.models import load_model, load_tokenizer
from ctxft.prompts import control_prompt
from ctxft.run.run import Run
from ctxft.storage import InputError, write_jsonl
from tests.runs import arm_folder, prepare, prompt_sets_of, read_passages, train_task

PROMPT = ["kind", "prompt", "family", "tokens"]


def losses_of(config, arm: str, limit: int | None = None) -> pandas.DataFrame:
    run = Run(config)
    return prompt_losses(run, run.model(arm), limit)


def gradients_of(config, passages: int) -> dict:
    run = Run(config)
    return family_gradients(run, run.model("cft"), passages)


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
    losses = losses_of(trained, "cft")
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
    assert list(texts["document"]) == [passage.document for passage in passages]
    assert list(texts["targets"]) == [passage.targets for passage in passages]
    assert texts["none"].sum() / targets == pytest.approx(none, abs=1e-5)
    records = prompt_changes(losses, PROMPT)
    assert len(records) * len(passages) == len(losses)
    assert len(records) > len(strategies.prompts) + len(negative.prompts)
    by = records.set_index(["kind", "prompt"]).to_dict("index")
    for prompt in (strategies.prompts[3], negative.prompts[7]):
        record, own = by[prompt.kind, prompt.id], plain([prompt] * len(passages))
        tokens = len(prompt_ids(tokenizer, prompt))
        control = plain([control_prompt(tokenizer, tokens, 0, passage.id) for passage in passages])
        assert record["tokens"] == tokens and record["prompts"] == 1
        assert record["to_none"][0] == pytest.approx(own - none, abs=1e-5)
        assert record["to_control"][0] == pytest.approx(own - control, abs=1e-5)
        assert by["control", f"control-{tokens}"]["to_none"][0] == pytest.approx(control - none, abs=1e-5)
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
    losses = losses_of(trained, "base")
    part = losses[(losses["prompt"] == losses["prompt"][0]) & (losses["kind"] == "strategy")]
    record = prompt_changes(part, PROMPT).to_dict("records")[0]
    documents = [group for _, group in part.groupby("document")]
    number = len(documents)
    assert 2 <= number < len(part)
    sums = [(group["loss"] - group["none"]).sum() for group in documents]
    sizes = [group["targets"].sum() for group in documents]
    mean = sum(sums) / sum(sizes)
    squares = sum((s - mean * n) ** 2 for s, n in zip(sums, sizes, strict=True))
    half = scipy.stats.t.ppf(0.975, number - 1) * math.sqrt(number / (number - 1) * squares) / sum(sizes)
    assert record["to_none"] == pytest.approx((mean, mean - half, mean + half), rel=1e-4)


def test_one_document_has_no_interval_and_none_is_refused(experiment, corpus_file):
    config = experiment()
    prepare(config)
    losses = losses_of(config, "base", limit=1)
    assert losses["document"].nunique() == 1
    value, low, high = prompt_changes(losses, PROMPT)["to_none"][0]
    assert not math.isnan(value) and math.isnan(low) and math.isnan(high)
    none = experiment(name="none", corpus={"source": str(corpus_file), "held_out": 0.0})
    prepare(none)
    with pytest.raises(InputError, match=r"none holds no passage out: raise corpus\.held_out"):
        losses_of(none, "base")


def test_a_planted_prompt_lowers_the_loss_of_the_model_that_learned_it(experiment, tmp_path):
    """After the one prompt of a set a text is learned almost by heart; after other words it is less known."""
    text = "The lake by the old bridge is near the garden. Seven horses run along the fence in the morning."
    corpus = write_jsonl(tmp_path / "one.jsonl", [{"id": f"d{n}", "text": f"{n} {text}"} for n in range(20)])
    book = tmp_path / "book.yaml"
    prompt = "Read what follows as if a friend had asked for it."
    book.write_text(
        f"name: one\nkind: strategy\nprompts:\n  - {{id: one-1, family: context, text: '{prompt}'}}\n", encoding="utf-8"
    )
    recipe = {"max_steps": 40, "learning_rate": 1e-2, "train_batch_size": 8}
    config = experiment(
        recipe,
        corpus={"source": str(corpus), "held_out": 0.4},
        prompts={"strategies": str(book), "negative": "negative"},
    )
    prepare(config)
    train_task(config, "cft", 0)
    found, base = (prompt_changes(losses_of(config, arm), PROMPT) for arm in ("cft", "base"))
    planted = found.to_dict("records")[0]
    assert planted["prompt"] == "one-1" and planted["tokens"] in list(found.query("kind == 'control'")["tokens"])
    assert planted["to_none"][2] < 0 and planted["to_control"][2] < 0
    assert base["to_control"][0][0] > planted["to_control"][0]


def test_prompts_and_random_words_are_in_the_turn_that_their_set_names(experiment, model_folders, tmp_path):
    books = {}
    for key, kind in (("strategies", "strategy"), ("negative", "negative")):
        text = f"{{name: own, kind: {kind}, placement: user, prompts: [{{id: x, family: context, text: See this}}]}}"
        (tmp_path / f"{kind}.yaml").write_text(text, encoding="utf-8")
        books[key] = str(tmp_path / f"{kind}.yaml")
    model = shutil.copytree(model_folders["byte"], tmp_path / "chat")
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = experiment(model=str(model), prompts=books)
    prepare(config)
    run, losses = Run(config), losses_of(config, "base")
    sizes = {len(prompt_ids(run.tokenizer, one.prompts[0], run.template)) for one in run.prompt_sets}
    assert set(losses["tokens"]) == sizes and min(sizes) > len(run.template.before) + len(run.template.after) > 0
    assert not losses.query("kind != 'control'")["control"].isna().any()


# --- gradients --------------------------------------------------------------------------------------------------------


def plain_gradient(model, rows: list[dict]) -> torch.Tensor:
    model.zero_grad()
    targets = sum(label != -100 for row in rows for label in row["labels"][1:])
    for row in rows:
        (loss_of(model, row) / targets).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_of_an_adapter_its_own_weights_alone_are_compared(experiment):
    config = experiment({"method": "lora", "lora": {"r": 2, "lora_dropout": 0.5}})
    prepare(config)
    train_task(config, "cft", 0)
    found, model = gradients_of(config, 4), model_of(config, "cft")
    own = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert found["weights"] == own < sum(p.numel() for p in model.parameters()) - own
    assert found == gradients_of(config, 4), "no dropout, and the same from run to run"


def test_gradients_and_cosines_are_those_of_plain_autograd(trained):
    found = gradients_of(trained, 6)
    strategies, negative = prompt_sets_of(trained)
    names = [one["family"] for one in found["conditions"]]
    assert names == ["none", *strategies.families, "negative", "control"] and found["passages"] == 6
    matrix = torch.tensor(found["cosine"])
    assert torch.allclose(matrix, matrix.T) and (matrix.abs() <= 1).all()
    assert torch.allclose(matrix.diagonal(), torch.ones(len(names)))
    tokenizer, model = load_tokenizer(trained.model), model_of(trained, "cft")
    every = read_passages(trained.folder)
    passages = [every[place * len(every) // 6] for place in range(6)]
    own = [prompt for prompt in strategies.prompts if prompt.family == names[2]]

    def gradient(prompts: list) -> torch.Tensor:
        ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
        rows = [build_row(*pair, special_tokens(tokenizer)) for pair in zip(passages, ids, strict=True)]
        expected, gradient = plain_gradient(model, rows), mean_gradient(model, rows)
        assert gradient.dtype == torch.float32 and (gradient - expected).abs().max() < 1e-5 < expected.abs().max()
        assert all(p.grad is None for p in model.parameters())
        return expected

    vectors = [gradient([None] * 6), gradient([own[n % 2] for n in range(6)]), gradient(list(negative.prompts[:6]))]
    places = [0, 2, names.index("negative")]
    for a, first in zip(places, vectors, strict=True):
        assert found["norms"][a] == pytest.approx(first.norm().item(), rel=1e-4)
        for b, second in zip(places, vectors, strict=True):
            assert found["cosine"][a][b] == pytest.approx(cosine_similarity(first, second, dim=0).item(), abs=1e-5)


def test_gradients_that_take_too_much_memory_are_refused(trained, monkeypatch):
    monkeypatch.setattr("ctxft.extras.attribution.MEMORY", 1e-4)
    with pytest.raises(InputError, match=r"13 gradients of [\d,]+ weights take .* more than 0\.0001: take an arm"):
        gradients_of(trained, 2)


# --- the command ------------------------------------------------------------------------------------------------------


def test_an_attribution_is_kept_until_something_changes(trained):
    found = attribute(Run(trained), "cft", 0, limit=4, passages=3)
    path = trained.folder / "attribution" / "cft-seed-0" / "done.json"
    losses = pandas.DataFrame(**found["losses"])
    pandas.testing.assert_frame_equal(losses, losses_of(trained, "cft", 4))
    written = path.stat().st_mtime_ns
    assert attribute(Run(trained), "cft", 0, limit=4, passages=3) == found and path.stat().st_mtime_ns == written
    path.write_text(path.read_text().replace('"limit": 4', '"limit": 5'))
    assert attribute(Run(trained), "cft", 0, limit=4, passages=3) == found, "a damaged one is measured again"
    other = attribute(Run(trained), "cft", 0, limit=2, passages=0)
    assert other["gradients"] is None and len(other["losses"]["data"]) * 2 == len(found["losses"]["data"])


def test_the_command_prints_the_tables_and_names_the_folder(trained, capsys):
    assert main(["attribute", "tiny", "--arm", "cft", "--limit", "3", "--passages", "2"]) == 0
    shown = capsys.readouterr().out
    assert str(trained.folder / "attribution") in shown
    assert all(word in shown for word in ("key-concepts-1", "control", "minus no prompt", "cosine"))
    assert main(["attribute", "tiny", "--arm", "neg"]) == 2
    assert "unknown task 'neg:0'" in capsys.readouterr().err
    config = trained.folder / "arms" / "cft" / "seed-0"
    config.rename(config.with_name("away"))
    with pytest.raises(InputError, match=r"arm .cft., seed 0 of .* is not trained yet"):
        attribute(Run(trained), "cft", 0)
