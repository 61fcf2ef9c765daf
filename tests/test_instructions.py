"""Instructions become rows whose targets are the answers alone, in both formats; bad records are told with file and line."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load_file, save_file

from ctxft.data.instructions import Instruction, instruction_row, instruction_rows, read_instructions
from ctxft.data.rows import IGNORE_INDEX
from ctxft.evaluation.scoring import encode_pair
from ctxft.models import load_model, load_tokenizer, model_hash
from ctxft.options import print_left_out
from ctxft.run import prepare as preparation
from ctxft.run.run import Run
from ctxft.storage import InputError, read_json, read_jsonl, with_checksum, write_json, write_jsonl
from tests.runs import arm_folder, prepare, read_instruction_rows, read_passages, train_task, train_tasks

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As models of some family have them: earlier answers change, turns are refused or moved, the last one ends otherwise.
DROPS_REASONING = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n"
    "{% if '</think>' in m['content'] %}{{ m['content'].split('</think>')[0].split('<think>')[-1].strip() }}{% endif %}"
    "\n</think>\n\n{% endif %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
OPENS_REASONING = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}[A]{{ m['content'].split('</think>')[-1] }}</s>"
    "{% else %}[U]{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]<think>\n{% endif %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
)
ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'].strip() }} [/INST]{% else %} {{ m['content'].strip() }}</s>{% endif %}"
    "{% endfor %}"
)
SYSTEM_LAST = (  # in the last question
    "{% set told = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% set talk = messages[1:] if told else messages %}"
    "{% for m in talk %}{% if m['role'] == 'user' %}[INST] "
    "{% if m == (talk | selectattr('role', 'equalto', 'user') | list)[-1] %}{{ told }}{% endif %}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
ENDS_ONCE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}"
)
BARE = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
REWRITES = "{% for m in messages %}{% if not loop.first or loop.last %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
TALK = (
    ("system", "a lake"),
    ("user", "one "),
    ("assistant", "<think>x</think>\n\ntwo"),
    ("user", "three"),
    ("assistant", "four"),
)


def learned(row: dict, tokenizer) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX])


@pytest.fixture
def chat_tokenizer(save_tokenizer, tmp_path):
    """A tokenizer that is the test's alone, so that it may get a chat template."""
    return load_tokenizer(str(save_tokenizer("byte", tmp_path / "chat")))


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_without_a_template_the_row_is_an_exams_question_with_its_answer(tokenizers, kind):
    tokenizer = tokenizers[kind]
    row = instruction_row(Instruction("1", (("user", "the hill?"), ("assistant", "a river")), "here"), tokenizer)
    context, answer = encode_pair(tokenizer, "Question: the hill?\nAnswer:", " a river")
    start = [] if context[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id]
    assert row["input_ids"] == [*start, *context, *answer, tokenizer.eos_token_id]
    assert row["labels"] == [IGNORE_INDEX] * len([*start, *context]) + [*answer, tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("template", "messages", "targets"),
    [
        (CHAT, TALK, "<think>x</think>\n\ntwo</s>\nfour</s>\n"),
        (DROPS_REASONING, TALK, "two</s>\n<think>\n</think>\n\nfour</s>\n"),
        (DROPS_REASONING, TALK[:3], "<think>\nx</think>\n\ntwo</s>\n"),
        (OPENS_REASONING, TALK[1:], "\n\ntwo</s>four</s>"),
        (ALTERNATES, TALK[1:], " <think>x</think>\n\ntwo</s> four</s>"),
        (SYSTEM_LAST, TALK, " <think>x</think>\n\ntwo</s> four</s>"),
        (ENDS_ONCE, TALK, "<think>x</think>\n\ntwo<pad>\nfour<pad>\n</s>"),
        (
            ENDS_ONCE,
            (("user", "one\n"), ("assistant", "two \n"), ("user", "one"), ("assistant", "2")),
            "two<pad>\n2<pad>\n</s>",
        ),
        (
            CHAT,
            (("user", "one\n"), ("assistant", "two \n"), ("user", "one"), ("assistant", "2\n")),
            "two \n</s>\n2\n</s>\n",
        ),
        (BARE, TALK[3:], "four"),
    ],
)
def test_answers_are_found_in_what_any_template_writes(chat_tokenizer, template, messages, targets):
    chat_tokenizer.chat_template = template
    row = instruction_row(Instruction("1", messages, "here"), chat_tokenizer)
    assert learned(row, chat_tokenizer) == targets
    turns = [{"role": role, "content": content} for role, content in messages]
    assert row["input_ids"] == chat_tokenizer.apply_chat_template(turns, return_dict=False)  # nothing is added or lost


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (
            REFUSES_SYSTEM,
            TALK,
            r"here: .* the turns system, user, .*System role not supported.*put a system text into the first",
        ),
        (
            ALTERNATES,
            (*TALK[1:2], *TALK[1:3]),
            r"here: .* user, user, assistant .*must alternate.*let user and assistant take",
        ),
        (REWRITES, TALK[1:], "here: the answers cannot be found .* each question with its answer a record"),
        ("{{ messages[-1]['content'] }}", TALK, "here: the answers cannot be found"),
        (None, TALK, "here: the tokenizer has no chat template"),
    ],
)
def test_what_a_template_does_not_write_is_told(chat_tokenizer, template, messages, said):
    chat_tokenizer.chat_template = template
    with pytest.raises(InputError, match=said):
        instruction_row(Instruction("1", messages, "here"), chat_tokenizer)
    (_, system), (_, question) = TALK[:2]
    for way_out in ((("user", f"{system}\n\n{question}"), ("assistant", "two")),):  # as the messages say
        if template in (REFUSES_SYSTEM, ALTERNATES, None):
            assert (
                learned(instruction_row(Instruction("1", way_out, "here"), chat_tokenizer), chat_tokenizer).strip(" \n")
                == "two</s>"
            )


def test_a_text_that_poses_as_a_turn_stays_a_text(chat_tokenizer):
    chat_tokenizer.chat_template = CHAT
    messages = (("user", "a </s>\n<|assistant|>\nb"), ("assistant", "c </s> d"), ("user", "e"), ("assistant", "f"))
    row = instruction_row(Instruction("1", messages, "here"), chat_tokenizer)
    assert row["input_ids"].count(chat_tokenizer.eos_token_id) == 4
    assert learned(row, chat_tokenizer) == "c </s> d</s>\nf</s>\n"


Q, A = ("user", "q"), ("assistant", "a")


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"prompt": "q", "response": "a"}, [Q, A]),
        ({"prompt": "q", "completion": "a", "source": "web"}, [Q, A]),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}, [Q, A]),
        ({"instruction": "q", "input": "", "output": "a", "text": "q a"}, [Q, A]),
        ({"instruction": "q", "input": "os", "output": "a"}, [("user", "q\n\nos"), A]),
        ({"instruction": "q", "context": "c", "response": "a", "category": "open"}, [("user", "q\n\nc"), A]),
        ({"question": "q", "context": "c", "answer": "a"}, [("user", "q\n\nc"), A]),
        ({"question": "q", "answer": "a", "messages": None}, [Q, A]),
        ({"input": "q", "output": "a"}, [Q, A]),
        ({"system_prompt": "s", "question": "q", "response": "a"}, [("system", "s"), Q, A]),
        ({"instruction": "q", "output": "a", "system": "s", "history": [["p", "r"]]},
         [("system", "s"), ("user", "p"), ("assistant", "r"), Q, A]),
        ({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"},
                       {"role": "assistant", "content": "a", "tool_calls": None}], "prompt": "q"}, [("system", "s"), Q, A]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                       {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
         [Q, ("assistant", "ab")]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
         [("system", "s"), Q, A]),
        ({"conversations": [{"from": "system", "value": ""}, {"from": "User", "value": "q"}, {"from": "chatgpt", "value": "a"}]},
         [("system", ""), Q, A]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".JSONL"])
def test_the_shapes_of_records(tmp_path, record, messages, suffix):
    path = tmp_path / f"i{suffix}"
    path.write_text(json.dumps([record]) if suffix == ".json" else json.dumps(record))
    (found,) = read_instructions(str(path))
    assert list(found.messages) == messages and found.id == "1"
    assert found.targets == tuple(n for n, (role, _) in enumerate(messages) if role == "assistant")


def test_formats_and_folders(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": "q", "response": "a"}] * 2), tmp_path / "a.parquet"
    )
    (tmp_path / "b.CSV").write_text("instruction,input,output\nname,os,bone\n")
    found = list(read_instructions(str(tmp_path)))
    assert [i.id for i in found] == ["1", "2", "b.CSV, line 2"] and found[2].messages[0] == ("user", "name\n\nos")
    assert len(list(read_instructions("practice", limit=5))) == 5
    for name in ("none.json", "none.jsonl"):
        with pytest.raises(InputError, match="neither an existing file or folder"):
            list(read_instructions(str(tmp_path / name)))


def test_ids_of_mixed_kinds_and_ids_that_come_twice(tmp_path):
    rows = [{"id": identity, "prompt": "q", "response": "a"} for identity in ("a", None, 3, "3", 4.0, "a")]
    found = read_instructions(str(write_jsonl(tmp_path / "i.jsonl", rows)))
    assert [i.id for i in found] == ["a", "2", "3", "i.jsonl, line 4", "4", "i.jsonl, line 6"]


def test_answers_that_are_shown_are_no_targets(chat_tokenizer, tmp_path):
    chat_tokenizer.chat_template = CHAT

    def said(role, content, **more):
        return {"role": role, "content": content, **more}

    rows = [
        {"messages": [said(*Q), said(*A, weight=0), said("user", "x"), said("assistant", "y", weight=1)]},
        {"messages": [said(*Q), said(*A), said("user", "x"), said("assistant", "y", weight=0)]},
        {"prompt": [said(*Q), said(*A), said("user", "x")], "completion": [said("assistant", "y")]},
        {"messages": [said(*Q), said(*A, weight=0)]},
        {"instruction": "q", "output": " "},
    ]
    found, counts = list(read_instructions(str(write_jsonl(tmp_path / "i.jsonl", rows)))), Counter()
    kept = list(instruction_rows(iter(found), chat_tokenizer, 999, counts))
    assert [learned(row, chat_tokenizer) for row in kept] == ["y</s>\n", "a</s>\n", "y</s>\n"]
    assert chat_tokenizer.decode(kept[1]["input_ids"]).endswith("<|assistant|>\ny</s>\n")
    assert (counts["instructions read"], counts["instructions without an answer to learn"]) == (5, 2)
    chat_tokenizer.chat_template = None
    counts.clear()
    assert not list(instruction_rows(iter(found[3:]), chat_tokenizer, 999, counts))
    assert counts["instructions without an answer to learn"] == 2


def message(**parts) -> dict:
    return {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", **parts}]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "t"}, "line 2: an instruction needs messages .*; found text"),
        ({"prompt": " ", "response": "a"}, r"line 2 \(id '2'\): a message of role user is empty: leave"),
        ({"prompt": "p", "response": 7}, "line 2: a message's content is text, found 7"),
        (
            {"messages": [{"role": "user", "content": "u"}]},
            "begins with a question and ends with an answer, found the roles user:",
        ),
        ({"messages": []}, r"found the roles \(none\)"),
        ({"messages": ["u", "a"]}, "a message is an object with role and content, found 'u'"),
        ({"prompt": "p", "query": "q", "response": "r"}, r"more than one question \(prompt, query\)"),
        ({"prompt": "p", "output": "q", "answer": "r"}, r"more than one answer \(output, answer\)"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            "'chosen': preference pairs .*keep what was chosen, as 'completion'",
        ),
        (message(tool_calls=[{"id": "1"}]), "'tool_calls': tool calls are not trained on: leave such"),
        (message(role="tool"), "role 'tool': tool calls"),
        (message(role="critic"), "the role 'critic' is none of user, human"),
        (message(content=[{"type": "image_url", "image_url": {}}]), "only content of type text is trained on"),
        (message(content=None), "a message's content is text, found None"),
        (message(weight=0.5), "weight of a message is 0 or 1"),
        (message(reasoning_content="so"), "'reasoning_content': reasoning apart"),
        ({"instruction": "q", "output": "a", "history": ["p"]}, "history is a list of pairs"),
    ],
)
def test_bad_records_are_told_with_their_line(tmp_path, row, said):
    path = write_jsonl(tmp_path / "i.jsonl", [{"prompt": "p", "response": "r"}, row])
    with pytest.raises(InputError, match=f"line 2.*{said}" if "line 2" not in said else said):
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


def test_a_folder_of_instructions_is_accounted_for_and_may_not_change(experiment, tmp_path, capsys):
    folder = tmp_path / "talks"
    folder.mkdir()
    rows = [{"question": f"the hill {n}?", "answer": "a river"} for n in range(6)]
    (folder / "a.json").write_text(json.dumps(rows[:3]))
    write_jsonl(folder / "b.ndjson", [*rows[3:], {"question": "the house?", "answer": ""}])
    (folder / "c.pdf").write_bytes(b"%PDF")
    config = experiment(arms=["cpt", "cpt-ift"], ift={"source": str(folder), "held_out": 0.0})
    print_left_out(Run(config).prepare())
    said = "instruction files read: 2; instruction files not read (.pdf): 1; instructions without an answer to learn: 1"
    assert sorted(said.split("; ")) == sorted(
        p for p in capsys.readouterr().out.strip().split("; ") if "instruction" in p
    )
    ledger = read_json(config.folder / "ledger.json")
    assert (ledger["instruction files read"], ledger["instruction files not read (.pdf)"]) == (2, 1)
    assert (ledger["instructions kept"], ledger["instructions without an answer to learn"]) == (6, 1)
    assert len({row["id"] for row in read_instruction_rows(config.folder)}) == 6
    write_jsonl(folder / "b.ndjson", rows[3:])
    with pytest.raises(InputError, match="the instructions changed"):
        prepare(config)
    with pytest.raises(InputError, match=r"none.json' is neither an existing file or folder nor a hub id"):
        prepare(experiment(name="other", arms=["cpt-ift"], ift={"source": str(folder / "none.json")}))


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
