"""Arm adaptive reads what a model wrote for each passage, control-adaptive what it wrote for another one."""

from __future__ import annotations

import shutil
from collections import Counter

import nbformat
import pytest
import yaml

from ctxft.cli import main
from ctxft.config import to_mapping
from ctxft.course import execute
from ctxft.extras.adaptive import adapt, require_untrained
from ctxft.extras.arms import exchanged, written_prompts
from ctxft.models import load_tokenizer
from ctxft.prompts import ContextualPrompt
from ctxft.run.estimate import count_tokens_and_steps
from ctxft.run.run import Run
from ctxft.storage import InputError, read_json, read_jsonl
from ctxft.world.facts import model_folder
from tests.runs import prepare, read_passages, rows_of, train_all, train_task
from tests.stub_server import StubServer, good_text

ARMS = ["cpt", "cft", "adaptive", "control-adaptive"]


@pytest.fixture
def adaptive(experiment):
    """The function (stub server, **writer's values) -> an experiment with a writer."""

    def make(stub: StubServer, **values):
        writer = {"model": "stub", "server": stub.url, "retries": 0, "max_tokens": 40} | values
        return experiment(arms=ARMS, prompts={"writer": writer}, train={"max_steps": 2})

    return make


def mostly_good(number: int, body: dict) -> str:
    return "text:" if number == 3 else f"text:{good_text(body)}"  # one reply is empty


def test_arms_read_what_was_written_and_share_the_rest(adaptive):
    with StubServer(mostly_good) as stub:
        config = adaptive(stub)
        folder = prepare(config)
        assert "adaptive: rows" not in read_json(folder / "ledger.json")
        with pytest.raises(InputError, match="no written prompts yet: run `ctxft prompts adapt CONFIG` first"):
            train_all(config, 1)
        assert not (folder / "arms").exists()  # told before any arm was trained
        record = adapt(Run(config))
    written, passages = written_prompts(config), read_passages(folder)
    assert set(written) == {p.id for p in passages} and sum(prompt is None for prompt in written.values()) == 1
    assert sum(record["rejected"].values()) == 1

    train_all(config, 1)
    drawn = {arm: {r["passage"]: r for r in Run(config).rows(arm, 0)[1].records()} for arm in ARMS}
    for arm, records in drawn.items():  # those of the passages that the steps read are on disk
        assert all(records[r["passage"]] == r for _, r in read_jsonl(Run(config).arm_folder(arm) / "prompts.jsonl"))
    for passage, prompt in written.items():
        read = drawn["adaptive"][passage]
        assert read["text"] == (prompt.text if prompt else drawn["cft"][passage]["text"])
        other = drawn["control-adaptive"][passage]
        assert (
            (other["prompt"] == drawn["cft"][passage]["prompt"]) if prompt is None else (other["prompt"] != prompt.id)
        )
    ids = [Counter(r["prompt"] for r in drawn[arm].values()) for arm in ("adaptive", "control-adaptive")]
    assert ids[0] == ids[1]  # the same prompts, each before another passage
    ledger = read_json(folder / "ledger.json")
    assert ledger["adaptive: passages without a written prompt"] == 1
    assert ledger["adaptive: target tokens"] == ledger["cpt: target tokens"]
    assert ledger["adaptive: prompt tokens"] == sum(r["tokens"] for r in drawn["adaptive"].values())
    logs = [[r["passages"] for _, r in read_jsonl(folder / "arms" / arm / "seed-0" / "log.jsonl")] for arm in ARMS]
    assert all(log == logs[0] for log in logs)


def test_passages_leave_room_for_the_longest_prompt_that_may_be_written(adaptive):
    with StubServer(mostly_good) as stub:
        config = adaptive(stub, max_tokens=50)
        tokenizer = load_tokenizer(config.model)
        assert Run(config).longest_prompt == 50
        folder = prepare(config)
        adapt(Run(config))
        rows, _ = rows_of(config, "adaptive", 0, read_passages(folder), tokenizer)
    budget = read_json(folder / "ledger.json")["text budget (tokens)"]
    assert budget == config.train.max_length - 2 - 50 and max(rows.lengths) <= config.train.max_length


def test_how_a_server_is_asked_may_change_in_a_run_but_not_who_writes(adaptive):
    with StubServer(mostly_good) as stub:
        config = adaptive(stub)
        folder = prepare(config)
        prepare(adaptive(stub, timeout=7.0, retries=2, batch=2, price_in=1.0, price_out=2.0))
        for values in ({"max_tokens": 41}, {"instruction": "Write a prompt."}, {"model": "other"}):
            with pytest.raises(InputError, match=rf"holds another run \(prompts\.writer\.{next(iter(values))} was"):
                prepare(adaptive(stub, **values))
        config.prompts.writer = None
        config.arms = ["cpt"]
        with pytest.raises(InputError, match=r"prompts\.writer\.model was 'stub', is None"):
            prepare(config)
    assert read_json(folder / "manifest.json")["config"]["prompts"]["writer"]["key_variable"] is None


def test_prompts_do_not_change_once_an_arm_was_trained_with_them(adaptive):
    with StubServer(mostly_good) as stub:
        config = adaptive(stub, batch=1)
        folder = prepare(config)
        adapt(Run(config))
        first = written_prompts(config)
        train_task(config, "control-adaptive", 0)
    rows = [{"passage": passage, "prompt": "adaptive-other"} for passage in first]
    with pytest.raises(InputError, match="control-adaptive/seed-0 was trained with other written prompts"):
        require_untrained(folder, rows)
    shutil.rmtree(folder / "arms")
    require_untrained(folder, rows)


def test_a_writer_that_fails_is_told_and_nothing_is_trained_with_what_is_missing(adaptive, tmp_path, capsys):
    path = tmp_path / "e.yaml"
    with StubServer(lambda number, body: "broken" if number == 0 else mostly_good(number, body)) as stub:
        config = adaptive(stub, batch=1)
        path.write_text(yaml.safe_dump(to_mapping(config)), encoding="utf-8")
        assert main(["prompts", "adapt", str(path), "--yes"]) == 1
        assert "1 of" in (said := capsys.readouterr()).err and "only what is missing is requested" in said.err
        with pytest.raises(InputError, match=r"lacks prompts that the writer failed to give .*HTTP 500"):
            train_all(config, 1)
        asked = len(stub.requests)
        assert main(["prompts", "adapt", str(path), "--yes"]) == 0 and len(stub.requests) == asked + 1
    with pytest.raises(
        InputError,
        match=r"leaves 6 for text after the longest prompt \(120 tokens\).* or lower prompts\.writer\.max_tokens",
    ):
        config.name, config.prompts.writer.max_tokens = "tiny-3", 120
        prepare(config)


def test_the_oracle_needs_no_writer_and_its_control_does(experiment, runs):
    with pytest.raises(InputError, match="arm 'control-adaptive' reads prompts that a model wrote: name one"):
        prepare(experiment(arms=["cpt", "control-adaptive"]))
    assert not (runs / "tiny" / "corpus").exists()


def test_what_is_told_of_an_adaptive_arm(adaptive, capsys):
    """A leak is looked for in all items, an estimate needs no prompt, and the ledger follows what is written."""
    with StubServer(lambda number, body: "text:What stands at place 5? the water, water") as stub:
        config = adaptive(stub)
        config.evaluation.limit, config.arms = 1, ["cpt", "cft", "adaptive"]
        assert "adaptive" not in count_tokens_and_steps(Run(config))["reads"]
        folder = prepare(config)
        record = adapt(Run(config))
        assert record["prompts"] == 0 and record["rejected"] == {"gives away an item": record["passages"]}
        prepare(config)
    ledger = read_json(folder / "ledger.json")
    assert ledger["adaptive: passages without a written prompt"] == ledger["passages"]
    before = ledger["adaptive: prompts of"]
    with StubServer(mostly_good) as stub:
        config = adaptive(stub, model="another")
        config.name = "tiny-2"
        prepare(config)
        adapt(Run(config))
        prepare(config)
    assert read_json(config.folder / "ledger.json")["adaptive: prompts of"] != before


def test_exchanged_prompts_go_round_once():
    prompts = {f"p{n}": ContextualPrompt(f"a{n}", "context", f"text {n}", "strategy") for n in range(30)}
    found = exchanged({**prompts, "none": None}, seed=4)
    assert found["none"] is None and {p.id for p in found.values() if p} == {p.id for p in prompts.values()}
    assert all(found[passage] != prompt for passage, prompt in prompts.items())
    with pytest.raises(InputError, match="only 1 passages have one"):
        exchanged({"p": prompts["p0"], "none": None}, seed=0)
    assert found != exchanged({**prompts, "none": None}, seed=5)


def test_adapt_tells_the_cost_first_and_asks_a_server_only_when_told_to(adaptive, tmp_path, capsys):
    with StubServer(mostly_good) as stub:
        path = tmp_path / "e.yaml"
        path.write_text(yaml.safe_dump(to_mapping(adaptive(stub, price_in=1.0, price_out=2.0))), encoding="utf-8")
        assert main(["prompts", "adapt", str(path), "--estimate"]) == 0
        assert not stub.requests and "cost" in capsys.readouterr().out
        assert main(["prompts", "adapt", str(path)]) == 2 and not stub.requests
        assert "nothing was requested: this may cost money, so add --yes" in capsys.readouterr().err
        assert main(["prompts", "adapt", str(path), "--yes"]) == 0
        assert stub.requests and "adaptive.json" in capsys.readouterr().out


def test_adapt_asks_no_question_for_a_model_here(experiment, tmp_path, capsys):
    folder = shutil.copytree(model_folder("practice-aware"), tmp_path / "writer")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    writer = {"model": str(folder), "max_tokens": 4, "instruction": "Read."}
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(to_mapping(experiment(arms=ARMS, prompts={"writer": writer}))), encoding="utf-8")
    assert main(["prompts", "adapt", str(path)]) == 0 and "adaptive.json" in capsys.readouterr().out


CELLS = [
    "from ctxft.extras.adaptive import adapt\n"
    "from ctxft.config import load_experiment\n"
    "from ctxft.run.run import Run\n"
    "config = load_experiment({path!r})",
    "run = Run(config).prepare()\nprint(adapt(run))",
    "print(config.prompts.writer, config.prompts.writer.server_config())",
]


def test_no_key_reaches_a_notebook_or_the_run_root(adaptive, tmp_path, runs, monkeypatch):
    key = "sk-never-written-anywhere-0123456789"
    monkeypatch.setenv("STUB_KEY", key)
    path = tmp_path / "e.yaml"
    with StubServer(lambda number, body: "rate" if number == 1 else mostly_good(number, body)) as stub:
        config = adaptive(stub, key_variable="STUB_KEY", retries=2)
        path.write_text(yaml.safe_dump(to_mapping(config)), encoding="utf-8")
        cells = [nbformat.v4.new_code_cell(source.format(path=str(path))) for source in CELLS]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "99_adapt.ipynb")
        executed = execute(tmp_path / "99_adapt.ipynb", runs / "99_adapt.ipynb", {})
        assert all(key in headers["authorization"] for _, headers, _ in stub.requests)
    assert "STUB_KEY" in executed.cells[2].outputs[0]["text"]
    files = [file for file in runs.rglob("*") if file.is_file()]
    assert {"99_adapt.ipynb", "99_adapt.html", "adaptive.json", "manifest.json"} <= {file.name for file in files}
    assert not [file for file in files if key.encode() in file.read_bytes()]
