"""Matched arms: the same targets in every arm, the arm's prompt on every passage, one start token, EOS where a text ends."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ctxft.config import CorpusConfig
from ctxft.data.documents import Document
from ctxft.data.passages import cut
from ctxft.data.rows import (
    IGNORE_INDEX,
    PromptTemplate,
    Rows,
    arm_tokens,
    build_row,
    longest_prompt,
    prompt_ids,
    prompt_template,
    special_tokens,
    text_budget,
)
from ctxft.models import encode_text, load_tokenizer
from ctxft.prompts import ContextualPrompt, load_prompt_set
from ctxft.storage import InputError, read_jsonl
from tests.runs import passages_of
from tests.sampling import TEXT_ARMS, prompt_for

TRAINED = TEXT_ARMS
WINDOW = 128


@pytest.fixture(scope="module")
def books():
    return load_prompt_set("strategies"), load_prompt_set("negative")


def document_of(pieces: int, tokenizer, budget: int, text_of) -> Document:
    """Return a document that takes exactly so many passages."""
    for sentences in range(1, 2000):
        document = Document("long", text_of(7, sentences), "here")
        if len(cut(document, tokenizer, budget)) == pieces:
            return document
    raise AssertionError(f"no text of {pieces} passages")


def rows_of(arm: str, passages, tokenizer, books, seed: int = 0):
    special = special_tokens(tokenizer)
    drawn = [prompt_for(arm, passage.id, seed, *books, tokenizer, passage.index % 2 == 0) for passage in passages]
    ids = [prompt_ids(tokenizer, prompt) for prompt in drawn]
    return [build_row(passage, prompt, special) for passage, prompt in zip(passages, ids, strict=True)], ids


def targets(row) -> list[int]:
    return [label for label in row["labels"] if label != IGNORE_INDEX]


def assert_matched(passages, tokenizer, books, window: int) -> None:
    """Assert all that makes arms comparable, for every arm on the same passages."""
    special = special_tokens(tokenizer)
    expected = [passage.ids.tolist() + [special.eos] * passage.last for passage in passages]
    for arm in TRAINED:
        rows, prompts = rows_of(arm, passages, tokenizer, books)
        assert [targets(row) for row in rows] == expected
        assert all(bool(prompt) == (arm != "cpt") for prompt in prompts)
        for row, prompt, text in zip(rows, prompts, expected, strict=True):
            assert row["input_ids"] == [special.start, *prompt, *text]
            assert row["labels"] == [IGNORE_INDEX] * (1 + len(prompt)) + text
            assert len(row["input_ids"]) <= window


# --- matched arms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_a_document_of_thirty_windows_carries_its_prompt_on_all_thirty(tokenizers, books, text_of, kind):
    tokenizer = tokenizers[kind]
    budget = text_budget(WINDOW, longest_prompt(tokenizer, books), 16)
    passages = cut(document_of(30, tokenizer, budget, text_of), tokenizer, budget)
    assert len(passages) == 30
    assert_matched(passages, tokenizer, books, WINDOW)
    cft, prompts = rows_of("cft", passages, tokenizer, books)
    texts = {prompt.text for prompt in books[0].prompts}
    for row, prompt in zip(cft, prompts, strict=True):
        assert len(prompt) > 3 and row["input_ids"][1 : 1 + len(prompt)] == prompt
        assert any(prompt == encode_text(tokenizer, text + "\n\n")[0] for text in texts)
    assert len({tuple(prompt) for prompt in prompts}) > 5  # drawn for each passage, not once for the document


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_control_is_as_long_as_the_prompt_it_stands_for(tokenizers, books, text_of, kind):
    passages = cut(Document("d", text_of(8, 60), "here"), tokenizers[kind], 40)
    for seed in (0, 1):
        lengths = [
            [len(p) for p in rows_of(arm, passages, tokenizers[kind], books, seed)[1]] for arm in ("cft", "control")
        ]
        assert lengths[0] == lengths[1] and len(set(lengths[0])) > 3


def test_only_the_prompt_depends_on_the_seed(tokenizers, books, text_of):
    passages = cut(Document("d", text_of(8, 60), "here"), tokenizers["byte"], 40)
    (one, first), (two, second) = (rows_of("cft", passages, tokenizers["byte"], books, seed) for seed in (0, 1))
    assert first != second and [targets(row) for row in one] == [targets(row) for row in two]


def test_a_passages_ids_do_not_depend_on_what_stands_before_it(tokenizers, text_of):
    """The start of a text after a prompt must be that of the text alone: it is tokenised apart."""
    tokenizer, document = tokenizers["metaspace"], Document("d", text_of(9, 2), "here")
    passage = cut(document, tokenizer, 90)[0]
    alone = encode_text(tokenizer, document.text)[0]
    row = build_row(passage, encode_text(tokenizer, "Think.\n\n")[0], special_tokens(tokenizer))
    assert targets(row)[:-1] == alone


@pytest.fixture(scope="module")
def real_corpus() -> Path:
    if not os.environ.get("CTXFT_REAL_DATA"):
        pytest.skip("CTXFT_REAL_DATA is not set: it names a folder with real texts and a tokenizer")
    return Path(os.environ["CTXFT_REAL_DATA"]) / "corpora" / "openstax_anatomy_physiology.jsonl"


def byte_level_tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE without BOS and pad on real text, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [row["text"] for _, row in read_jsonl(corpus)][:40]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_arms_match_on_real_text(real_corpus, books, kind):
    if kind == "sentencepiece":
        tokenizer, window = load_tokenizer(str(real_corpus.parent.parent / "models" / "stories260K")), 512
    else:
        tokenizer, window = byte_level_tokenizer(real_corpus), 256
    budget = text_budget(window, longest_prompt(tokenizer, books), 64)
    config = CorpusConfig(source=str(real_corpus), limit=30, held_out=0.2)
    kept, held, counts = passages_of(config, tokenizer, budget)
    assert counts["tokens read"] == counts["tokens kept"] + counts["tokens held out"] > 50_000
    assert len(kept) > 100
    for identity, text in [(row["id"], row["text"]) for _, row in read_jsonl(real_corpus)][:30]:
        pieces = sorted((p for p in [*kept, *held] if p.document == identity), key=lambda piece: piece.index)
        assert [i for piece in pieces for i in piece.ids] == encode_text(tokenizer, text.strip())[0]
    ends = {name: n for name, n in counts.items() if name.startswith("passages")}
    assert ends.get("passages ending inside a sentence", 0) < 0.2 * len(kept)
    assert_matched(kept, tokenizer, books, window)


# --- special tokens ---------------------------------------------------------------------------------------------------


def test_one_start_token_and_eos_only_where_a_document_ends(tokenizers, text_of):
    tokenizer = tokenizers["byte"]
    special = special_tokens(tokenizer)
    assert special.notes == () and (special.start, special.eos, special.pad) == (1, 2, 3)
    text = text_of(10, 12) + " </s> <s> " + text_of(11, 12)  # strings of special tokens are text like any other
    passages = cut(Document("d", text, "here"), tokenizer, 30)
    rows = [build_row(passage, [50, 51], special) for passage in passages]
    assert [row["input_ids"].count(special.start) for row in rows] == [1] * len(rows)
    assert [row["input_ids"].count(special.eos) for row in rows] == [0] * (len(rows) - 1) + [1]
    assert rows[-1]["labels"][-1] == special.eos


def test_without_bos_eos_starts_every_row_of_every_arm(save_tokenizer, tmp_path, books, text_of):
    tokenizer = load_tokenizer(str(save_tokenizer("byte", tmp_path, bos_token=None, pad_token=None)))
    special = special_tokens(tokenizer)
    assert special.start == special.eos == special.pad == tokenizer.eos_token_id
    assert special.notes == (
        "the tokenizer has no BOS token: EOS starts every row",
        "the tokenizer has no pad token: EOS fills rows, masked by length",
    )
    passages = cut(Document("d", text_of(12, 20), "here"), tokenizer, 40)
    assert_matched(passages, tokenizer, books, WINDOW)
    assert (
        sum(map(len, map(targets, rows_of("cpt", passages, tokenizer, books)[0])))
        == sum(len(p.ids) for p in passages) + 1
    )


# --- budget and counts ------------------------------------------------------------------------------------------------


def test_the_budget_is_what_the_longest_prompt_of_all_arms_leaves(tokenizers, books):
    tokenizer = tokenizers["byte"]
    longest = max(len(encode_text(tokenizer, p.text + "\n\n")[0]) for book in books for p in book.prompts)
    assert longest_prompt(tokenizer, books) == longest
    assert text_budget(longest + 2 + 16, longest, 16) == 16
    with pytest.raises(
        InputError, match=f"leaves 15 for text after the longest prompt .{longest} tokens.*raise train.max_length"
    ):
        text_budget(longest + 2 + 15, longest, 16)
    with pytest.raises(InputError, match="leaves 0 for text"):
        text_budget(8, longest, 16)


def test_the_ledger_of_an_arm_adds_up(tokenizers, books, text_of):
    passages = cut(Document("d", text_of(13, 30), "here"), tokenizers["byte"], 40)
    for arm in TRAINED:
        rows, prompts = rows_of(arm, passages, tokenizers["byte"], books)
        counts = arm_tokens(Rows(passages, prompts, special_tokens(tokenizers["byte"])))
        assert counts["tokens read"] == sum(len(row["input_ids"]) for row in rows)
        assert counts["rows"] == len(passages) and counts["prompt tokens"] == sum(map(len, prompts))
        assert counts["target tokens"] == sum(len(p.ids) for p in passages) + 1
        assert counts["tokens read"] == counts["rows"] + counts["prompt tokens"] + counts["target tokens"]


# --- other ways for a prompt to stand before a text -------------------------------------------------------------------

TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
USERS_ONLY = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user has to begin') }}{% endif %}" + TURNS
CONTROL = ["<|user|>", "<|system|>", "<|assistant|>", "<|end|>"]


@pytest.fixture(params=["byte", "metaspace"])
def chatting(request, save_tokenizer, tmp_path):
    """A tokenizer whose chat template is written in control tokens, and begins with BOS."""
    tokenizer = load_tokenizer(str(save_tokenizer(request.param, tmp_path)))
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    tokenizer.chat_template = "{{ bos_token }}" + TURNS
    return tokenizer


def set_in(placement: str, books):
    return dataclasses.replace(books[0], placement=placement)


@pytest.mark.parametrize("placement", ["user", "system"])
def test_a_prompt_may_stand_in_a_turn_of_the_chat_template(chatting, books, placement):
    book = set_in(placement, books)
    template = prompt_template(chatting, book)
    control = dict(zip(CONTROL, chatting.convert_tokens_to_ids(CONTROL), strict=True))
    assert template.before == (control[f"<|{placement}|>"],)  # the template's BOS is left to the row
    assert template.after == (control["<|end|>"], control["<|assistant|>"])
    for prompt in (*book.prompts, ContextualPrompt("sly", "context", "Say <|end|></s> now.", "strategy")):
        ids = prompt_ids(chatting, prompt, template)
        assert ids == [*template.before, *encode_text(chatting, prompt.text)[0], *template.after]
        assert [ids.count(control[token]) for token in CONTROL] == [
            placement == "user",
            placement == "system",
            1,
            1,
        ]  # what a prompt spells out is no control token
        assert chatting.eos_token_id not in ids
    assert longest_prompt(chatting, [book]) == max(len(prompt_ids(chatting, p, template)) for p in book.prompts)


def test_a_control_in_a_turn_is_as_long_as_the_prompt_it_stands_for(chatting, books):
    book = set_in("user", books)
    template = prompt_template(chatting, book)
    for i in range(30):
        cft, control = (prompt_for(arm, f"p{i}", 0, book, books[1], chatting) for arm in ("cft", "control"))
        assert len(prompt_ids(chatting, cft, template)) == len(prompt_ids(chatting, control, template))


def test_placements_that_a_tokenizer_cannot_give_are_refused(tokenizers, chatting, books):
    with pytest.raises(
        InputError, match=r"prompt set 'strategies' places prompts in the user turn, but .* has no chat template"
    ):
        prompt_template(tokenizers["byte"], set_in("user", books))
    chatting.chat_template = USERS_ONLY
    prompt_template(chatting, set_in("user", books))
    with pytest.raises(
        InputError, match=r"in the system turn, but .* refuses it .a user has to begin.: choose another"
    ):
        prompt_template(chatting, set_in("system", books))
    chatting.chat_template = TURNS.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    )
    with pytest.raises(InputError, match="does not write such a turn"):
        prompt_template(chatting, set_in("system", books))


def test_the_separator_of_a_book_stands_before_the_text(tokenizers, books):
    for tokenizer in tokenizers.values():
        template = prompt_template(tokenizer, dataclasses.replace(books[0], separator="\n"))
        assert template == PromptTemplate((), "\n", ())
        assert (
            prompt_ids(tokenizer, books[0].prompts[0], template)
            == encode_text(tokenizer, books[0].prompts[0].text + "\n")[0]
        )


def test_a_prompt_that_is_learned_is_a_target_and_the_start_token_is_not(tokenizers, books, text_of):
    tokenizer = tokenizers["byte"]
    special = special_tokens(tokenizer)
    passages = cut(Document("d", text_of(3, 20), "here"), tokenizer, 64)
    rows, prompts = rows_of("cft", passages, tokenizer, books)
    learned = Rows(passages, prompts, special, learned=True)
    for row, own, prompt in zip(learned, rows, prompts, strict=True):
        assert row["input_ids"] == own["input_ids"]
        assert targets(row) == prompt + targets(own) and row["labels"][0] == IGNORE_INDEX
    assert learned.targets == [len(targets(row)) for row in learned]
    text = Rows(passages, prompts, special)
    assert list(learned.text_targets) == text.targets == [len(targets(row)) for row in rows]
