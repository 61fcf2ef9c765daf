"""The recipe is strict, the order the same in every arm, and a training that was killed ends as one that was not."""

from __future__ import annotations

import math
import shutil
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from peft import PeftModel
from peft.utils import save_and_load
from safetensors.torch import load_file
from transformers import get_scheduler

from ctxft.config import TrainConfig, from_mapping
from ctxft.data.documents import Document
from ctxft.data.passages import cut
from ctxft.data.rows import IGNORE_INDEX, build_row, prompt_ids, special_tokens
from ctxft.evaluation.scoring import text_losses
from ctxft.models import load_model, load_tokenizer, model_hash
from ctxft.prompts import load_prompt_set
from ctxft.storage import InputError, read_json, read_jsonl
from ctxft.training.checkpoint import checkpoints
from ctxft.training.distributed import _check_strategy, training_device
from ctxft.training.loop import save_model, targets_of, train_arm
from ctxft.training.schedule import learning_rate, passage_order
from ctxft.world.facts import model_folder
from tests.sampling import prompt_for

LORA = {"method": "lora", "lora": from_mapping(TrainConfig, {"lora": {"r": 2, "lora_alpha": 4}}, "test").lora}


@pytest.fixture(scope="module")
def rows(tokenizers, text_of):
    """The rows of arms cpt and cft on the same 18 passages or so, of very different lengths."""
    tokenizer = tokenizers["byte"]
    passages = []
    for number in range(6):
        passages += cut(Document(f"d{number}", text_of(20 + number, 2 + 4 * number), "here"), tokenizer, 60)
    books = load_prompt_set("strategies"), load_prompt_set("negative")

    def of(arm: str):
        prompts = [prompt_ids(tokenizer, prompt_for(arm, passage.id, 0, *books, tokenizer)) for passage in passages]
        return [build_row(p, ids, special_tokens(tokenizer)) for p, ids in zip(passages, prompts, strict=True)]

    return {arm: of(arm) for arm in ("cpt", "cft")}


@pytest.fixture
def train(rows, model_folders, tokenizers, tmp_path):
    """The function that trains arm cft into tmp_path/<name>; returns done.json and the log."""

    def run(name: str, config: TrainConfig, arm: str = "cft", seed: int = 0):
        folder = tmp_path / name
        done = train_arm(rows[arm], str(model_folders["byte"]), tokenizers["byte"], config, seed, folder)
        return done, [row for _, row in read_jsonl(folder / "log.jsonl")]

    return run


@contextmanager
def crash_after(step: int, monkeypatch):
    """Stop the training inside after an optimizer step."""
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="CTXFT_CRASH_AFTER"):
        patch.setenv("CTXFT_CRASH_AFTER", f"step:{step}")
        yield


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


# --- order ------------------------------------------------------------------------------------------------------------


def test_order_depends_on_the_seed_alone_and_takes_every_passage_once_an_epoch():
    config = TrainConfig(num_train_epochs=3, train_batch_size=4)
    order = passage_order([1] * 10, config, seed=3)
    stream = [index for step in order for index in step]
    assert len(order) == 8 and {len(step) for step in order} == {4}
    epochs = [stream[0:10], stream[10:20], stream[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1]
    assert order == passage_order([1] * 10, config, seed=3) != passage_order([1] * 10, config, seed=4)
    assert len(passage_order([1] * 10, TrainConfig(max_steps=5, num_train_epochs=9), 0)) == 5


def test_a_step_takes_passages_while_their_targets_fit():
    targets = [30, 5, 70, 20, 45, 10, 200]
    order = passage_order(targets, TrainConfig(num_train_epochs=2, train_batch_tokens=100), seed=1)
    stream = [index for step in order for index in step]
    assert sorted(stream[:7]) == sorted(stream[7:14]) == list(range(7))
    for step, after in zip(order, [*order[1:], None], strict=True):
        held = sum(targets[index] for index in step)
        assert held <= 100 or len(step) == 1
        assert after is None or held + targets[after[0]] > 100
    assert len(passage_order(targets, TrainConfig(max_steps=3, train_batch_tokens=100), 1)) == 3


def test_general_text_is_mixed_in_by_its_share_and_the_seed():
    config = TrainConfig(num_train_epochs=2, train_batch_size=5)
    order = passage_order([1] * 40, config, 0, general=[1] * 100, fraction=0.2)
    stream = [index for step in order for index in step]
    first, second = stream[:50], stream[50:100]
    for epoch in (first, second):
        assert sorted(i for i in epoch if i < 40) == list(range(40)) and len({i for i in epoch if i >= 40}) == 10
    assert {i for i in first if i >= 40} != {i for i in second if i >= 40}
    assert [i for i in stream if i < 40] == [i for s in passage_order([1] * 40, config, 0) for i in s]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_the_learning_rate_is_that_of_transformers(schedule, warmup):
    config = TrainConfig(lr_scheduler_type=schedule, warmup_steps=warmup, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=round(warmup * 20), num_training_steps=20)
    for step in range(1, 21):
        assert learning_rate(config, step, 20) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_log_has_a_line_for_every_step_with_its_passages_the_same_in_all_arms(train, rows, recipe):
    config = recipe(max_steps=5)
    (done, cft), (_, cpt) = train("cft", config, "cft"), train("cpt", config, "cpt")
    order = passage_order(targets_of(rows["cft"]), config, 0)
    assert [line["step"] for line in cft] == [1, 2, 3, 4, 5]
    assert [line["passages"] for line in cft] == [line["passages"] for line in cpt] == order
    assert [line["target_tokens"] for line in cft] == [line["target_tokens"] for line in cpt]
    assert done["optimizer_steps"] == 5 and done["target_tokens"] == sum(line["target_tokens"] for line in cft)
    told = {"step", "loss", "learning_rate", "grad_norm", "target_tokens", "tokens", "fill", "passages"}
    assert set(cft[0]) == told and cft[0]["fill"] == 1.0 and cft[0]["tokens"] > cpt[0]["tokens"]
    assert [line["passages"] for line in train("other", config, "cft", seed=1)[1]] != order


@pytest.mark.parametrize("layout", [{}, {"pack": False}], ids=["packed", "padded"])
def test_every_token_of_a_step_is_read(train, rows, recipe, layout):
    _, log = train("read", recipe(max_steps=5, **layout))
    for line in log:
        assert line["tokens"] == sum(len(rows["cft"][index]["input_ids"]) for index in line["passages"])
        assert line["target_tokens"] == sum(targets_of([rows["cft"][index] for index in line["passages"]]))


# --- the loss of a step -----------------------------------------------------------------------------------------------


def test_accumulation_is_weighted_by_target_tokens(train, rows, recipe, model_folders, tmp_path):
    """With an epsilon of 1, AdamW's first step is to first order a plain gradient step: sizes are compared, not signs."""
    plain = {
        "adam_epsilon": 1.0,
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0.0,
    }
    lines, found = [], []
    for micro in (128, 512, 2048):
        config = recipe(max_steps=1, train_batch_size=16, micro_batch_tokens=micro, **plain)
        lines += train(f"micro-{micro}", config)[1]
        found.append(weights(tmp_path / f"micro-{micro}"))
    model = load_model(str(model_folders["byte"]))
    order = passage_order(targets_of(rows["cft"]), config, 0)[0]
    nll = text_losses(model, [(rows["cft"][i]["input_ids"], rows["cft"][i]["labels"]) for i in order])
    by_token = sum(loss for loss, _ in nll) / sum(count for _, count in nll)
    by_row = sum(loss / count for loss, count in nll) / len(nll)
    assert abs(by_token - by_row) > 1e-3  # so that the wrong weighting would be seen
    assert [line["loss"] for line in lines] == pytest.approx([by_token] * 3, abs=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx([lines[0]["grad_norm"]] * 3, abs=1e-5)
    before = model.state_dict()
    assert max((found[0][name] - before[name]).abs().max().item() for name in before) > 1e-3
    for other in found[1:]:
        assert max((found[0][name] - other[name]).abs().max().item() for name in before) < 1e-6


def test_gradient_checkpointing_changes_no_loss(train, recipe):
    for method in ({}, LORA):
        settings = {"max_steps": 2, **method}
        logs = [train(f"{len(method)}-{on}", recipe(gradient_checkpointing=on, **settings))[1] for on in (False, True)]
        assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], abs=1e-6)
        assert all(line["grad_norm"] > 0 for line in logs[1])


def test_a_loss_that_is_not_a_number_stands_in_the_log(train, recipe):
    _, log = train(
        "broken",
        recipe(max_steps=3, learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0.0, lr_scheduler_type="constant"),
    )
    assert math.isfinite(log[0]["loss"]) and not math.isfinite(log[-1]["loss"])


def test_a_row_above_the_window_is_refused(train, recipe):
    with pytest.raises(InputError, match=r"a row has \d+ tokens, but train.max_length is 32 and the model's limit 256"):
        train("long", recipe(max_length=32))


def test_a_quiet_training_prints_nothing(train, recipe, capfd):
    train("quiet", recipe(max_steps=2))
    told = capfd.readouterr()
    assert told.out == "" and "step" not in told.err


# --- what is saved ----------------------------------------------------------------------------------------------------


def test_full_fine_tuning_moves_every_parameter_in_float32(train, recipe, tmp_path, model_folders):
    done, _ = train("full", recipe())
    folder = tmp_path / "full" / "model"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    before, after = load_file(model_folders["byte"] / "model.safetensors"), weights(tmp_path / "full")
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert before.keys() == after.keys()
    assert [name for name in after if torch.equal(before[name].float(), after[name])] == []
    model = load_model(str(folder))
    assert all(torch.equal(model.state_dict()[name], after[name]) for name in after)
    assert done["model_hash"] == model_hash(str(folder)) and read_json(tmp_path / "full" / "done.json") == done


def test_buffers_that_belong_to_the_weights_are_saved_too(tmp_path, model_folders):
    model = load_model(str(model_folders["byte"])).requires_grad_(True)
    model.model.register_buffer("kept", torch.arange(3.0))
    model.model.register_buffer("not_kept", torch.arange(3.0), persistent=False)
    save_model(model, Accelerator(cpu=True), tmp_path, "byte")
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["model.kept"], torch.arange(3.0)) and "model.not_kept" not in saved


def test_ways_of_spreading_that_are_not_known_are_refused():
    for kind, plugin in ((DistributedType.DEEPSPEED, None), (DistributedType.FSDP, SimpleNamespace(fsdp_version=1))):
        accelerator = SimpleNamespace(
            distributed_type=kind, state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="bf16"
        )
        with pytest.raises(InputError, match=r"training cannot be distributed by .*--fsdp_version 2"):
            _check_strategy(accelerator)
    plugin = SimpleNamespace(fsdp_version=2)
    state = SimpleNamespace(fsdp_plugin=plugin)
    _check_strategy(SimpleNamespace(distributed_type=DistributedType.FSDP, state=state, mixed_precision="bf16"))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )


def test_a_launch_on_the_cpu_stays_there(recipe, monkeypatch):
    monkeypatch.setattr("ctxft.training.distributed.pick_device", lambda wanted: "cuda")
    assert training_device(recipe(device="auto")) == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert training_device(recipe(device="auto")) == "cpu"


def test_what_a_kill_left_half_written_is_removed(train, recipe, tmp_path):
    left = tmp_path / "left" / ".checkpoint-4.abc.part"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    train("left", recipe(max_steps=1))
    assert not left.exists()


def test_lora_moves_the_adapter_and_leaves_the_base(train, recipe, tmp_path, model_folders, monkeypatch):
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *_, **__: pytest.fail("asked the hub"))
    train("lora", recipe(**LORA))
    folder = tmp_path / "lora" / "model"
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()
    adapter = load_file(folder / "adapter_model.safetensors")
    assert adapter and all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == str(model_folders["byte"])
    base, loaded = load_model(str(model_folders["byte"])), load_model(str(folder))
    assert isinstance(loaded, PeftModel)
    kept = {name.replace(".base_layer", ""): value for name, value in loaded.get_base_model().state_dict().items()}
    assert all(torch.equal(kept[name], value) for name, value in base.state_dict().items())
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        assert (loaded(ids).logits - base(ids).logits).abs().max() > 1e-3


def test_an_adapter_names_the_practice_model_and_no_folder_of_this_machine(rows, recipe, tmp_path):
    train_arm(rows["cft"], "practice-blind", load_tokenizer("practice-blind"), recipe(max_steps=1, **LORA), 0, tmp_path)
    assert read_json(tmp_path / "model" / "adapter_config.json")["base_model_name_or_path"] == "practice-blind"
    assert str(model_folder("practice-blind")) not in "".join(
        path.read_text() for path in (tmp_path / "model").glob("*.json")
    )
    assert isinstance(load_model(str(tmp_path / "model")), PeftModel)


def test_lora_targets_that_are_not_there_are_refused(train, recipe):
    config = from_mapping(
        TrainConfig, {"method": "lora", "max_steps": 1, "device": "cpu", "lora": {"target_modules": ["nose"]}}, "test"
    )
    with pytest.raises(InputError, match=r"train.lora.target_modules: .*nose"):
        train("none", config)


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_resumed_equals_straight_bit_for_bit(train, recipe, monkeypatch, tmp_path, method):
    config = recipe(save_steps=2, **method)
    straight, straight_log = train("straight", config)
    with crash_after(5, monkeypatch):
        train("killed", config)
    assert len((tmp_path / "killed" / "log.jsonl").read_text().splitlines()) == 5
    assert not (tmp_path / "killed" / "model").exists() and not (tmp_path / "killed" / "done.json").exists()
    before = (tmp_path / "killed" / "checkpoint-2").stat().st_mtime_ns
    resumed, resumed_log = train("killed", config)
    assert (tmp_path / "killed" / "checkpoint-2").stat().st_mtime_ns == before  # resumed, and did not start again
    assert resumed_log == straight_log and resumed["model_hash"] == straight["model_hash"]


def test_a_half_written_checkpoint_is_never_read(train, recipe, monkeypatch, tmp_path):
    config = recipe(save_steps=2)
    straight, _ = train("straight", config)
    with crash_after(5, monkeypatch):
        train("killed", config)
    folder = tmp_path / "killed"
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
    shutil.move(folder / "checkpoint-4", folder / ".checkpoint-4.abc.part")  # its name while it is being written
    (folder / ".checkpoint-4.abc.part" / "weights.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"] and checkpoints(tmp_path) == []
    assert train("killed", config)[0]["model_hash"] == straight["model_hash"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rate": 2e-2}, "learning_rate was 0.01, is 0.02"),
        ({"train_batch_size": 8}, "train_batch_size was 4, is 8"),
        ({"max_steps": 7}, "max_steps was 6, is 7"),
    ],
)
def test_a_training_of_another_recipe_is_not_gone_on_with(train, recipe, monkeypatch, values, said):
    with crash_after(3, monkeypatch):
        train("killed", recipe(save_steps=2))
    with pytest.raises(InputError, match=f"is of another training \\({said}\\): remove"):
        train("killed", recipe(save_steps=2, **values))


def test_what_changes_speed_only_may_change_between_stop_and_resume(train, recipe, monkeypatch):
    _, log = train("straight", recipe(save_steps=2))
    with crash_after(3, monkeypatch):
        train("killed", recipe(save_steps=2))
    _, resumed = train("killed", recipe(save_steps=3, micro_batch_tokens=128, gradient_checkpointing=True))
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in log], rel=1e-4)


def test_dropout_is_drawn_anew_in_each_step_and_the_same_after_a_resume(train, recipe, monkeypatch):
    config = recipe(save_steps=2, **LORA)  # its adapters have dropout
    assert config.lora.lora_dropout > 0
    straight, _ = train("straight", config)
    with crash_after(3, monkeypatch):
        train("killed", config)
    assert train("killed", config)[0]["model_hash"] == straight["model_hash"]


def test_steps_draw_different_dropout(train, recipe, rows):
    """With a learning rate of almost 0 only dropout can change the loss of the same rows."""
    settings = {"learning_rate": 1e-30, "max_grad_norm": 0.0, "warmup_steps": 0.0, "lr_scheduler_type": "constant"}
    config = recipe(max_steps=4, train_batch_size=len(rows["cft"]), method="lora", **settings)
    config.lora.lora_dropout = 0.5
    _, log = train("still", config)
    assert len({line["target_tokens"] for line in log}) == 1 and all(line["grad_norm"] > 0 for line in log)
    assert (
        len({line["grad_norm"] for line in log}) == 4
    )  # an adapter's output starts at 0: dropout shows in its gradient


def test_a_later_stage_goes_on_from_an_earlier_one(rows, recipe, tokenizers, model_folders, tmp_path):
    for method in ({}, LORA):
        config, folder = recipe(max_steps=2, **method), tmp_path / str(len(method))
        given = (str(model_folders["byte"]), tokenizers["byte"], config, 0)
        train_arm(rows["cpt"], *given, folder / "one")
        train_arm(rows["cft"], *given, folder / "two", start=folder / "one" / "model")
        first, second, base = (
            load_model(str(place)) for place in (folder / "one" / "model", folder / "two" / "model", given[0])
        )
        pair = [(rows["cft"][0]["input_ids"], rows["cft"][0]["labels"])]
        losses = [text_losses(model, pair)[0][0] for model in (base, first, second)]
        assert len(set(losses)) == 3
        before = next(line["loss"] for _, line in read_jsonl(folder / "two" / "log.jsonl"))
        order = passage_order(targets_of(rows["cft"]), config, 0)[0]
        found = text_losses(first, [(rows["cft"][i]["input_ids"], rows["cft"][i]["labels"]) for i in order])
        if not method:  # with LoRA the step has dropout
            assert before == pytest.approx(sum(v for v, _ in found) / sum(n for _, n in found), rel=1e-5)


def test_an_adapter_merges_within_float_tolerance(train, recipe, tmp_path):
    train("lora", recipe(**LORA))
    model = load_model(str(tmp_path / "lora" / "model"))
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        apart = model(ids).logits
        merged = model.merge_and_unload()(ids).logits
    assert (apart - merged).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_tracker_without_its_package_is_reported(train, recipe, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"train.report_to: {name} needs the package {name}: pip install {name}"):
        train("events", recipe(report_to=[name]))


def test_tensorboard_gets_what_the_log_holds_and_a_resumed_training_continues_there(
    train, recipe, tmp_path, monkeypatch
):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = recipe(save_steps=2, report_to=["tensorboard"])
    with crash_after(5, monkeypatch):
        train("events", config)
    _, log = train("events", config)
    (folder,) = {path.parent for path in (tmp_path / "events").rglob("events.out.*")}
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    for name in ("loss", "learning_rate", "grad_norm"):
        scalars = {event.step: event.value for event in events.Scalars(name)}
        assert [scalars[line["step"]] for line in log] == pytest.approx([line[name] for line in log], rel=1e-6)
        assert len(events.Scalars(name)) == len(log)


def test_the_library_computes_the_losses_of_a_loop_by_hand(train, rows, recipe, model_folders):
    """One passage at a time: no packing, no padding, no chunks; the losses of log.jsonl to 2e-6."""
    config = recipe(max_steps=5)
    order = passage_order(targets_of(rows["cft"]), config, seed=0)
    model = load_model(str(model_folders["byte"])).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon, weight_decay=0.0
    )
    losses = []
    for step, batch in enumerate(order, start=1):
        optimizer.param_groups[0]["lr"] = learning_rate(config, step, len(order))
        targets, total = sum(targets_of([rows["cft"][i] for i in batch])), 0.0
        for i in batch:
            ids, labels = (torch.tensor([rows["cft"][i][key]]) for key in ("input_ids", "labels"))
            loss = model(input_ids=ids, labels=labels, num_items_in_batch=targets).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    _, log = train("library", config)
    assert [line["loss"] for line in log] == pytest.approx(losses, abs=2e-6)


def test_labels_decide_what_is_learned(rows):
    """Prompts differ, targets do not: what the two arms of these tests have in common."""
    for cpt, cft in zip(rows["cpt"], rows["cft"], strict=True):
        assert [i for i in cpt["labels"] if i != IGNORE_INDEX] == [i for i in cft["labels"] if i != IGNORE_INDEX]
        assert len(cft["input_ids"]) > len(cpt["input_ids"])
