"""`ctxft check`: every promise holds on this machine, and a check fails where the thing that it guards is broken."""

from __future__ import annotations

import dataclasses

import pytest

from ctxft import selftest
from ctxft.cli import main


def test_all_promises_hold_and_the_table_says_so(capfd):
    assert main(["check"]) == 0
    out, err = capfd.readouterr()
    lines = out.split("\n\n")[1].splitlines()
    assert [line.split("  ")[0] for line in lines] == ["holds"] * len(selftest.CHECKS)
    assert all(name in line for name, line in zip(selftest.CHECKS, lines, strict=True))
    assert "torch " in out and "device " in out and err == ""


def only_the_first(passage, prompt, special, build=selftest.build_row):
    """Build rows as the authors' release does: the prompt on a document's first window only."""
    return build(passage, prompt if passage.index == 0 else [], special)


def eos_everywhere(passage, prompt, special, build=selftest.build_row):
    return build(dataclasses.replace(passage, last=passage.last or bool(prompt)), prompt, special)


def one_word_less(arm, *given, draw=selftest.prompt_for):
    prompt = draw(arm, *given)
    return dataclasses.replace(prompt, text=prompt.text.rpartition(" ")[0]) if arm == "control" else prompt


def without_the_end(document, tokenizer, budget, cut=selftest.cut):
    return cut(document, tokenizer, budget)[:-1]


def one_segment(rows, config, attention, pad, lay=selftest.micro_batches):
    """Lay rows out as if they were one."""
    batches = lay(rows, config, attention, pad)
    for batch in batches:
        if "segments" in batch.attention:
            batch.attention["segments"] = [sum(batch.attention["segments"])]
    return batches


def running_positions(rows, config, attention, pad, lay=selftest.micro_batches):
    """Lay rows out without starting their positions anew."""
    batches = lay(rows, config, attention, pad)
    for batch in batches:
        batch.position_ids = batch.position_ids.flatten().cumsum(0).view(batch.position_ids.shape)
    return batches


@pytest.mark.parametrize(
    ("check", "name", "broken"),
    [
        ("no text is lost", "cut", without_the_end),
        ("all arms learn the same targets", "build_row", eos_everywhere),
        ("the prompt is on every passage", "build_row", only_the_first),
        ("control prompts match in length", "prompt_for", one_word_less),
        ("packed equals one at a time", "micro_batches", one_segment),
        ("packed equals one at a time", "micro_batches", running_positions),
        ("no passage sees another", "micro_batches", one_segment),
    ],
)
def test_a_check_fails_where_its_promise_is_broken(monkeypatch, check, name, broken):
    monkeypatch.setattr(selftest, name, broken)
    with pytest.raises(selftest.CheckFailed):
        selftest.CHECKS[check]()


def test_the_check_of_resuming_fails_where_state_is_lost(monkeypatch):
    """A checkpoint without the optimizer's moments goes on, but to other weights."""
    from ctxft.training import loop as arm

    def forgetful(path, model, optimizer, load=arm.load_checkpoint):
        load(path, model, optimizer)
        optimizer.state.clear()

    monkeypatch.setattr(arm, "load_checkpoint", forgetful)
    with pytest.raises(selftest.CheckFailed):
        selftest.CHECKS["resumed equals straight"]()


def test_a_failed_check_fails_the_command(monkeypatch, capsys):
    def fails():
        raise selftest.CheckFailed("3 tokens are gone")

    monkeypatch.setattr(selftest, "CHECKS", {"no text is lost": fails})
    assert main(["check"]) == 1
    assert "FAILS  no text is lost" in (out := capsys.readouterr().out) and "3 tokens are gone" in out
