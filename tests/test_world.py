"""The practice world: the same in every run, sound as a test, and a model that knows the old drugs but not the new."""

from __future__ import annotations

import collections
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ctxft import world_build
from ctxft.prompts import SEPARATOR
from ctxft.runtime import InputError, seeded, sha256
from ctxft.scoring import score_choices
from ctxft.world import (
    NEW,
    OLD,
    PRACTICE,
    article,
    article_text,
    entities,
    load_domain,
    model_folder,
    practice_documents,
    practice_questions,
)

HASHES = {
    "new": "1e62fe9f7081540c4a7b433a328fb0d4de9ef010b4a0cc9b9a61c8abccaff873",
    "old": "48c924026fa3d5101b5376d4b588814c4e00d1616d5bc9068a3f694d611881d1",
    "questions new": "5f1f8b0fef77bd19ccf82cba756cd0d9dc3fc68822dffc0f4a4b2f10b0b60bae",
    "questions old": "74a9b1c05742a8c42a5980506ccc9917748343ca8822955bb8e54fd4096b745a",
}
SIZE_LIMIT = 3_000_000


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)


# --- texts and questions ----------------------------------------------------------------------------------------------


def test_texts_and_questions_are_those_the_model_was_trained_for():
    found = {split: sha256(practice_documents(split)) for split in ("new", "old")}
    found |= {f"questions {split}": sha256(practice_questions(split)) for split in ("new", "old")}
    assert found == HASHES


def test_new_drugs_are_unknown_to_the_old_texts():
    old, new = ({entity.name for entity in entities(split)} for split in ("old", "new"))
    assert (len(old), len(new), old & new) == (OLD, NEW, set())
    old_text = " ".join(document["text"] for document in practice_documents("old"))
    assert not [name for name in new if name in old_text]


def test_articles_state_every_fact_in_every_paragraph():
    entity = entities("new")[0]
    document = practice_documents("new")[0]
    paragraphs = document["text"].split("\n\n")
    assert document["title"] == entity.name and len(paragraphs) == 8
    assert all(value in paragraph for paragraph in paragraphs for value in entity.facts.values())
    assert len(set(document["text"].replace("\n\n", " ").split(". "))) == 32  # no wording twice


def test_a_drug_has_three_articles_that_differ():
    """So a drug is still read about when an article about it is held out."""
    documents = practice_documents("new")
    assert len({d["id"] for d in documents}) == len({d["text"] for d in documents}) == len(documents) == 3 * NEW
    assert set(collections.Counter(d["title"] for d in documents).values()) == {3}


@pytest.mark.parametrize("split", ["new", "old"])
def test_questions_are_balanced_and_their_answers_are_the_facts(split):
    questions = practice_questions(split)
    facts = {entity.name: entity.facts for entity in entities(split)}
    assert len(questions) == 160 and len({item["id"] for item in questions}) == 160
    assert set(collections.Counter(item["answer"] for item in questions).values()) == {40}
    for item in questions:
        name = next(name for name in facts if name in item["question"])
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["answer"]] == facts[name][item["subject"]]
        assert set(item["choices"]) <= set(
            next(a.values for a in load_domain().attributes if a.name == item["subject"])
        )


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match=r"unknown split of the practice world 'nwe'.*did you mean 'new'"):
        practice_documents("nwe")
    with pytest.raises(InputError, match="split of the practice questions 'held out'"):
        practice_questions("held out")


# --- tokenizer --------------------------------------------------------------------------------------------------------


def test_tokenizer_has_its_special_tokens_and_puts_one_bos(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    ids = tokenizer("Velmor is given for gout.")["input_ids"]
    assert (
        ids[0] == tokenizer.bos_token_id
        and ids.count(tokenizer.bos_token_id) == 1
        and tokenizer.eos_token_id not in ids
    )


def test_offsets_cover_every_character(tokenizer):
    text = "Velmor is given for gout.\n\nÜber 1,234 “odd” things — naïve 🙂\tend"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.decode(encoded["input_ids"]) == text
    covered = {i for start, end in encoded["offset_mapping"] for i in range(start, end)}
    assert covered == set(range(len(text)))


def test_names_are_two_tokens_and_values_one(tokenizer):
    length = lambda text: len(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
    names = [entity.name for split in ("old", "new") for entity in entities(split)]
    assert {length(start + name) for name in names for start in ("", " ")} == {2}
    assert {length(" " + value) for attribute in load_domain().attributes for value in attribute.values} == {1}


def test_prompts_leave_room_for_text_and_the_separator_is_one_token(tokenizer):
    kinds = world_build.prompt_ids(tokenizer, seed=0)
    assert max(len(ids) for kind in kinds for ids in kind) <= world_build.LONGEST_PROMPT
    assert {ids[-1] for kind in kinds for ids in kind} == set(tokenizer.encode(SEPARATOR, add_special_tokens=False))


def test_tokens_of_sentence_pieces_are_the_articles_tokens(tokenizer):
    paragraphs = article(entities("new")[0], seeded("test"))
    pieces = world_build.sentence_pieces(paragraphs)
    assert "".join(pieces) == article_text(paragraphs)
    joined = [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]
    assert joined == tokenizer.encode(article_text(paragraphs), add_special_tokens=False)


# --- the shipped model, and its making --------------------------------------------------------------------------------


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in PRACTICE.rglob("*") if path.is_file()) < SIZE_LIMIT


def test_model_fits_its_tokenizer_and_is_stored_in_bfloat16(model, tokenizer):
    config = json.loads((model_folder() / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["max_position_embeddings"] == 512
    assert config["vocab_size"] == len(tokenizer)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [config[key] for key in special] == [getattr(tokenizer, key) for key in special]
    assert 400_000 < sum(p.numel() for p in model.parameters()) < 700_000


@pytest.mark.parametrize(("split", "least", "most"), [("old", 0.9, 1.0), ("new", 0.15, 0.35)])
def test_model_knows_the_old_drugs_and_guesses_about_the_new(model, tokenizer, split, least, most):
    questions = practice_questions(split)
    requests = [(f"Question: {q['question']}\nAnswer:", [f" {choice}" for choice in q["choices"]]) for q in questions]
    found = [score.log_likelihoods for score in score_choices(model, tokenizer, requests)]
    right = [scores.index(max(scores)) == q["answer"] for scores, q in zip(found, questions, strict=True)]
    share = sum(right) / len(right)
    assert least <= share <= most
    assert share == world_build.accuracy(model, tokenizer, questions)


def test_prompts_have_no_consequence_for_the_untrained_arm(model, tokenizer):
    """The planted null: the loss of true text about old drugs is nearly the same behind any kind of prompt."""
    rng = seeded("test")
    texts = [
        tokenizer.encode(article_text(article(entity, rng, 1)), add_special_tokens=False)
        for entity in entities("old")[:40]
    ]

    @torch.no_grad()
    def loss(prompts: list[list[int]]) -> float:
        rows = [
            ([1, *prompts[i % len(prompts)], *text], 1 + len(prompts[i % len(prompts)])) for i, text in enumerate(texts)
        ]
        return float(world_build.token_losses(model, rows).sum()) / sum(map(len, texts))

    plain, *prompted = loss([[]]), *(loss(kind) for kind in world_build.prompt_ids(tokenizer, seed=0))
    assert prompted == pytest.approx([plain] * 3, abs=0.05)


def test_rows_repeat_and_mask_prompts(tokenizer):
    first, second = (world_build.Rows(tokenizer, seed=3) for _ in range(2))
    rows = [next(first) for _ in range(200)]
    assert rows == [next(second) for _ in range(200)]
    assert max(len(ids) for ids, _ in rows) <= 128
    masked = [ids[1:count] for ids, count in rows if count > 1]
    prompts = [ids for kind in first.prompts for ids in kind]
    assert masked and all(ids in prompts for ids in masked)
    questions = [tokenizer.decode(ids) for ids, _ in rows if "Question:" in tokenizer.decode(ids)]
    assert questions and all(text.startswith("<s>Question: ") and "\nAnswer: " in text for text in questions)
    asked = {entity.name for entity in entities("old")[: world_build.OLD_ASKED]}
    unasked = {entity.name for entity in entities("old")} - asked
    assert not [text for text in questions if any(name in text for name in unasked)]


def test_a_build_repeats_and_writes_what_the_kit_loads(tmp_path):
    records = [world_build.build(tmp_path / name, steps=2, seed=1) for name in ("a", "b")]
    assert records[0] == records[1] and records[0]["steps"] == 2
    weights, tokenizers = (
        [(tmp_path / run / name).read_bytes() for run in "ab"] for name in ("model.safetensors", "tokenizer.json")
    )
    assert weights[0] == weights[1] and tokenizers[0] == tokenizers[1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a").dtype == torch.bfloat16
