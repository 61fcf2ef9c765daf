"""Instructions become rows whose targets are the answers alone, in both formats; bad records are told with file and line."""

from __future__ import annotations

from collections import Counter

import pytest
from safetensors.torch import load_file, save_file

from ctxft.data.instructions import Instruction, instruction_row, instruction_rows, read_instructions
from ctxft.data.rows import IGNORE_INDEX
from ctxft.evaluation.scoring import encode_pair
from ctxft.models import load_model, load_tokenizer, model_hash
from ctxft.run import prepare as preparation
from ctxft.run.run import Run
from ctxft.storage import InputError, read_json, read_jsonl, with_checksum, write_json, write_jsonl
from tests.runs import arm_folder, prepare, read_instruction_rows, read_passages, train_task, train_tasks

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def learned(row: dict, tokenizer) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX])


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_without_a_template_the_row_is_an_exams_question_with_its_answer(tokenizers, kind):
    tokenizer = tokenizers[kind]
    row = instruction_row(Instruction("1", (("user", "the hill?"), ("assistant", "a river")), "here"), tokenizer)
    context, answer = encode_pair(tokenizer, "Question: the hill?\nAnswer:", " a river")
    start = [] if context[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id]
    assert row["input_ids"] == [*start, *context, *answer, tokenizer.eos_token_id]
    assert row["labels"] == [IGNORE_INDEX] * len([*start, *context]) + [*answer, tokenizer.eos_token_id]


def test_with_a_template_every_answer_is_learned_and_nothing_else(save_tokenizer, tmp_path):
    tokenizer = load_tokenizer(str(save_tokenizer("byte", tmp_path / "chat")))
    tokenizer.chat_template = CHAT
    messages = (("system", "a lake"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))
    row = instruction_row(Instruction("1", messages, "here"), tokenizer)
    assert tokenizer.decode(row["input_ids"]).startswith("<|system|>\na lake</s>\n<|user|>\none</s>")
    assert learned(row, tokenizer) == "two</s>\nfour</s>\n"
    row = instruction_row(Instruction("1", (("user", "a </s> b"), ("assistant", "c </s> d")), "here"), tokenizer)
    assert row["input_ids"].count(tokenizer.eos_token_id) == 2 and learned(row, tokenizer) == "c </s> d</s>\n"
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="changes what is before an answer"):
        instruction_row(Instruction("1", messages, "here"), tokenizer)


def test_the_shapes_of_records(tmp_path):
    rows = [
        {"prompt": "p", "response": "r"},
        {"id": "x", "instruction": "i", "input": "n", "output": "o"},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    ]
    found = list(read_instructions(str(write_jsonl(tmp_path / "i.jsonl", rows))))
    assert [i.id for i in found] == ["1", "x", "3"]
    assert [i.messages[0][1] for i in found] == ["p", "i\n\nn", "u"] and found[2].messages[-1] == ("assistant", "a")
    assert len(list(read_instructions("practice", limit=5))) == 5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "t"}, r"line 2: an instruction needs prompt and response.*found the keys text"),
        ({"prompt": "p", "response": " "}, r"line 2 \(id '2'\): messages need a role and a text that is not empty"),
        ({"messages": [{"role": "user", "content": "u"}]}, "the last is the assistant's"),
        ({"id": "1", "prompt": "p", "response": "r"}, "line 2: the id '1' is used twice"),
    ],
)
def test_bad_records_are_told_with_their_line(tmp_path, row, said):
    path = write_jsonl(tmp_path / "i.jsonl", [{"prompt": "p", "response": "r"}, row])
    with pytest.raises(InputError, match=said):
        list(read_instructions(str(path)))


def test_what_is_longer_than_the_window_is_counted(tokenizers):
    rows, counts = list(read_instructions("practice", limit=20)), Counter()
    lengths = sorted(len(instruction_row(row, tokenizers["byte"])["input_ids"]) for row in rows)
    median = lengths[10]
    kept = list(instruction_rows(iter(rows), tokenizers["byte"], median, counts))
    assert 0 < len(kept) < 20 and counts["instructions kept"] == len(kept)
    assert counts["instructions read"] == 20 == len(kept) + counts["instructions longer than the window"]


# --- in an experiment -------------------------------------------------------------------------------------------------


def test_arms_of_two_stages_share_instructions_order_and_steps(experiment):
    ift = {"max_steps": 3, "learning_rate": 1e-3, "limit": 40}
    config = experiment(arms=["base", "cft-ift", "cpt", "cpt-ift", "ift"], ift=ift)
    assert train_tasks(config)[0][0] == "cpt"  # arms of one stage come first
    prepare(config)
    for arm in ("cpt-ift", "cft-ift", "ift"):
        train_task(config, arm, 0)
    logs = {
        arm: [row for _, row in read_jsonl(arm_folder(config, arm, 0) / "log.jsonl")]
        for arm in ("cpt", "cft", "cpt-ift", "cft-ift", "ift")
    }
    steps = {arm: [(row["passages"], row["target_tokens"]) for row in log] for arm, log in logs.items()}
    assert steps["cpt"] == steps["cft"] and steps["cpt-ift"] == steps["cft-ift"] == steps["ift"]
    assert len({log[0]["loss"] for log in logs.values()}) == 5  # each starts from its own model
    assert (arm_folder(config, "cft", 0) / "done.json").exists()  # though it is no arm of its own
    ledger = read_json(config.folder / "ledger.json")
    held = len(read_instruction_rows(config.folder, "instructions_held_out"))
    assert ledger["instructions kept"] == len(read_instruction_rows(config.folder)) + held <= 40
    assert "cft: rows" in ledger and "cft-ift: rows" not in ledger
    model = load_model(str(arm_folder(config, "cft-ift", 0) / "model"))
    assert model.config.vocab_size


def test_a_second_stage_may_be_added_later_and_then_not_be_changed(experiment):
    config = experiment(arms=["cpt"])
    prepare(config)
    assert not preparation.has_instructions(Run(config))
    later = {"arms": ["cpt", "cpt-ift"], "ift": {"max_steps": 2, "limit": 20}}
    prepare(experiment(**later))
    train_task(experiment(**later), "cpt-ift", 0)
    with pytest.raises(InputError, match=r"holds another run \(ift.max_steps was 2, is 5\)"):
        prepare(experiment(**later | {"ift": {"max_steps": 5, "limit": 20}}))


def test_a_second_stage_does_not_go_on_from_another_first_one(experiment):
    config = experiment({"save_steps": 1}, arms=["cpt", "cpt-ift"], ift={"max_steps": 3, "limit": 40})
    prepare(config)
    train_task(config, "cpt-ift", 0)
    first = arm_folder(config, "cpt", 0)
    done = read_json(first / "done.json")
    write_json(first / "done.json", with_checksum(done | {"model_hash": "of another training"}))
    with pytest.raises(InputError, match=r"cpt/seed-0 was trained again since .*cpt-ift/seed-0 resumed from it"):
        train_task(config, "cpt-ift", 0)
    (arm_folder(config, "cpt-ift", 0) / "done.json").unlink()  # as if it had been killed before its end
    with pytest.raises(InputError, match=r"cpt/seed-0/model was changed after training"):
        train_task(config, "cpt-ift", 0)
    weights = first / "model" / "model.safetensors"
    save_file({name: value + 1e-3 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    write_json(first / "done.json", with_checksum(done | {"model_hash": model_hash(str(first / "model"))}))
    with pytest.raises(InputError, match=r"is of another training \(start was"):  # the checkpoint is of the old lineage
        train_task(config, "cpt-ift", 0)


def test_instructions_of_a_preparation_that_failed_are_made_again(experiment, monkeypatch):
    config = experiment(arms=["cpt-ift"], ift={"limit": 40})
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(preparation, "write_json", lambda *_: (_ for _ in ()).throw(InterruptedError))
        prepare(config)
    assert (config.folder / "instructions.jsonl").exists() and not (config.folder / "manifest.json").exists()
    prepare(experiment(arms=["cpt-ift"], ift={"limit": 5}))
    assert len(read_instruction_rows(config.folder)) <= 5


def test_changed_instructions_are_refused(experiment, tmp_path):
    path = write_jsonl(tmp_path / "own.jsonl", [{"prompt": f"the hill {n}", "response": "a lake"} for n in range(30)])
    config = experiment(arms=["cpt-ift"], ift={"source": str(path), "max_steps": 1})
    prepare(config)
    write_jsonl(path, [{"prompt": "the hill", "response": "a river"}])
    with pytest.raises(InputError, match=r"holds another run \(the instructions changed\)"):
        prepare(config)


def test_general_text_is_mixed_in_without_a_prompt_the_same_in_every_arm(experiment, corpus_file):
    config = experiment(
        {"max_steps": None, "num_train_epochs": 1},
        arms=["cpt", "cft"],
        general={"source": str(corpus_file), "share": 0.4},
    )
    prepare(config)
    for arm in config.arms:
        train_task(config, arm, 0)
    logs = [[row for _, row in read_jsonl(arm_folder(config, arm, 0) / "log.jsonl")] for arm in config.arms]
    assert [row["passages"] for row in logs[0]] == [row["passages"] for row in logs[1]]
    assert [row["target_tokens"] for row in logs[0]] == [row["target_tokens"] for row in logs[1]]
    count = len(read_passages(config.folder))
    drawn = [i for row in logs[0] for i in row["passages"] if i >= count]
    assert len(drawn) == round(0.4 / 0.6 * count)
    prompts = [row["passage"] for _, row in read_jsonl(arm_folder(config, "cft", 0) / "prompts.jsonl")]
    assert prompts == [passage.id for passage in read_passages(config.folder)]
