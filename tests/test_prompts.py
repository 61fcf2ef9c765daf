"""Books are well formed, the draw is uniform and repeatable, control prompts are exact, bad books are refused."""

from __future__ import annotations

import collections
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ctxft.data.ngrams import grams_of, words_of
from ctxft.data.rows import prompt_ids
from ctxft.models import load_tokenizer
from ctxft.prompts import (
    COMMON_WORDS,
    PROMPT_SETS,
    SEPARATOR,
    ContextualPrompt,
    PromptSet,
    check_subsets,
    control_prompt,
    count_tokens,
    get_arm,
    load_prompt_set,
)
from ctxft.prompts.controls import POOL, shuffled_prompt
from ctxft.storage import InputError
from ctxft.world.facts import DOMAINS, SPLITS, entities
from tests.sampling import TEXT_ARMS, prompt_for

TEN = [name for name in PROMPT_SETS if name != "neutral"]  # the books of the ten families
STRATEGIES = load_prompt_set("strategies")
NEGATIVE = load_prompt_set("negative")
FAMILIES = (
    "application exploration reflection creative synthesis key-concepts context critical questions comparison".split()
)
SENTENCES = [prompt.text for prompt in STRATEGIES.prompts + NEGATIVE.prompts] + [" ".join(COMMON_WORDS)]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like: unigram pieces may span words, and special tokens are added unless one asks not to."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "\n"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def stories_tokenizer() -> PreTrainedTokenizerFast:
    if not os.environ.get("CTXFT_REAL_DATA"):
        pytest.skip("CTXFT_REAL_DATA is not set: no real SentencePiece tokenizer to test with")
    return AutoTokenizer.from_pretrained(Path(os.environ["CTXFT_REAL_DATA"]) / "models" / "stories260K")


@pytest.fixture(scope="module", params=[byte_level_tokenizer, metaspace_tokenizer, stories_tokenizer])
def tokenizer(request):
    return request.param()


# --- the books --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("book", "kind", "each"), [(STRATEGIES, "strategy", 2), (NEGATIVE, "negative", 2)])
def test_books_of_the_package(book: PromptSet, kind: str, each: int):
    assert list(book.families) == FAMILIES == list(book.ideas)
    assert collections.Counter(prompt.family for prompt in book.prompts) == dict.fromkeys(FAMILIES, each)
    assert {prompt.kind for prompt in book.prompts} == {book.kind} == {kind}
    assert len({prompt.text for prompt in book.prompts}) == len(book.prompts)
    for prompt in book.prompts:
        assert 10 <= len(prompt.text.split()) <= 22, prompt.id
        assert prompt.id.startswith(prompt.family + "-")


def test_common_words_are_distinct_and_neutral():
    assert len(set(COMMON_WORDS)) == len(COMMON_WORDS) >= 150
    assert not set(COMMON_WORDS) & set("no not never read learn think know text question money drug disease".split())


def test_hash_follows_the_content(tmp_path: Path):
    saved = tmp_path / "book.json"
    saved.write_text(json.dumps(STRATEGIES.to_dict(), sort_keys=True), encoding="utf-8")
    again = load_prompt_set(saved)
    assert again == STRATEGIES and again.hash == STRATEGIES.hash
    assert [again.sample(0, str(i)) for i in range(50)] == [STRATEGIES.sample(0, str(i)) for i in range(50)]
    saved.write_text(json.dumps(STRATEGIES.to_dict()).replace("first case", "next case"), encoding="utf-8")
    assert load_prompt_set(saved).hash != STRATEGIES.hash


# --- the draw ---------------------------------------------------------------------------------------------------------


def test_draw_is_uniform_over_families_then_prompts(tmp_path: Path):
    path = tmp_path / "uneven.yaml"
    prompts = [f"  - {{id: many-{i}, family: critical, text: 'text {i}'}}" for i in range(4)]
    prompts.append("  - {id: one-1, family: context, text: alone}")
    path.write_text("name: uneven\nkind: strategy\nprompts:\n" + "\n".join(prompts), encoding="utf-8")
    for book in (STRATEGIES, load_prompt_set(path)):
        n = 10_000
        counts = collections.Counter(book.sample(3, f"passage-{i}").id for i in range(n))
        for family in book.families:
            members = [prompt.id for prompt in book.prompts if prompt.family == family]
            for expected, count in [
                (1 / len(book.families), sum(counts[member] for member in members)),
                *((1 / len(book.families) / len(members), counts[member]) for member in members),
            ]:
                sigma = math.sqrt(n * expected * (1 - expected))
                # 30 counts are looked at: 3 sigma for the fixed seed of this test, which no chance can break later.
                assert abs(count - n * expected) <= 3 * sigma, (family, count, n * expected, sigma)


def test_draw_follows_weights_and_keeps_what_is_allowed(tmp_path: Path):
    path = tmp_path / "weighted.yaml"
    path.write_text("families: {context: {weight: 3}}\nextends: strategies\n" + HEAD + ONE, encoding="utf-8")
    book, n = load_prompt_set(path), 10_000
    counts = collections.Counter(book.sample(0, f"passage-{i}").family for i in range(n))
    for family in book.families:
        expected = (3 if family == "context" else 1) / 12
        assert abs(counts[family] - n * expected) <= 3 * math.sqrt(n * expected * (1 - expected)), (family, counts)
    assert load_prompt_set(path).hash != STRATEGIES.hash and book.to_dict()["families"]["context"]["weight"] == 3

    few = frozenset(prompt for prompt in STRATEGIES.prompts if prompt.family in ("critical", "creative"))
    for i in range(300):
        free, kept = STRATEGIES.sample(0, f"p{i}"), STRATEGIES.sample(0, f"p{i}", few)
        assert kept in few and (free not in few or kept == free)
    with pytest.raises(ValueError, match="no prompt of the prompt set is allowed"):
        STRATEGIES.sample(0, "p", NEGATIVE.prompts)


def test_draw_depends_on_seed_passage_and_book_alone():
    ids = [f"passage-{i}" for i in range(300)]
    forward = {i: STRATEGIES.sample(0, i).id for i in ids}
    backward = {i: STRATEGIES.sample(0, i).id for i in reversed(ids)}
    assert forward == backward
    assert sum(forward[i] != STRATEGIES.sample(1, i).id for i in ids) > 250
    code = (
        "import json; from ctxft.prompts import load_prompt_set; b = load_prompt_set('strategies');"
        "print(json.dumps({f'passage-{i}': b.sample(0, f'passage-{i}').id for i in range(300)}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == forward


# --- control prompts and arms -----------------------------------------------------------------------------------------


def test_control_is_exact_to_the_token(tokenizer):
    separator = count_tokens(tokenizer, SEPARATOR)
    for passage in range(60):
        for tokens in (separator + 4, separator + 17, separator + 40):
            prompt = control_prompt(tokenizer, tokens, 0, f"p{passage}")
            ids = tokenizer(prompt.text + SEPARATOR, add_special_tokens=False)["input_ids"]
            assert len(ids) == tokens
            assert set(prompt.text.split()) <= set(COMMON_WORDS)
            assert prompt == control_prompt(tokenizer, tokens, 0, f"p{passage}")
    texts = {control_prompt(tokenizer, separator + 17, seed, f"p{i}").text for seed in (0, 1) for i in range(20)}
    assert len(texts) == 40


def test_control_matches_the_prompt_of_cft(tokenizer):
    for i in range(40):
        drawn, control = (prompt_for(arm, f"p{i}", 5, STRATEGIES, NEGATIVE, tokenizer) for arm in ("cft", "control"))
        assert count_tokens(tokenizer, control.text + SEPARATOR) == count_tokens(tokenizer, drawn.text + SEPARATOR)
        assert (drawn.kind, control.kind) == ("strategy", "control")


@pytest.mark.parametrize("arm", ["control", "control-shuffled"])
def test_many_passages_share_a_pool_that_is_made_as_it_is_used(arm: str):
    class Counting:
        calls, inner = 0, byte_level_tokenizer()

        def __call__(self, text: str, **options: bool) -> dict:
            self.calls += 1
            return self.inner(text, **options)

    tokenizer, one = Counting(), PromptSet("one", "strategy", STRATEGIES.prompts[:1])

    def read(ids: list[str], seed: int) -> dict[str, str]:
        return {i: prompt_for(arm, i, seed, one, NEGATIVE, tokenizer).text for i in ids}

    ids = [f"p{i}" for i in range(10 * POOL)]
    first = read(ids[:2], 0)
    assert tokenizer.calls < 3 * len(COMMON_WORDS)
    texts = read(ids, 0)
    assert 0.95 * POOL < len(set(texts.values())) <= POOL
    calls = tokenizer.calls
    assert read(ids[::-1], 0) == texts and first.items() < texts.items() and tokenizer.calls == calls
    assert sum(text == texts[i] for i, text in read(ids[:POOL], 1).items()) < 3  # another seed has a pool of its own


def test_control_longer_than_the_word_list():
    tokenizer = byte_level_tokenizer()
    prompt = control_prompt(tokenizer, 900, 0, "p", separator="\n")
    assert count_tokens(tokenizer, prompt.text + "\n") == 900


@pytest.mark.parametrize("tokens", [-1, 0, 1])
def test_impossible_control_is_refused(tokens: int):
    with pytest.raises(InputError, match=rf"exactly {tokens} tokens before passage 'p9' .*separator alone takes \d"):
        control_prompt(byte_level_tokenizer(), tokens, 0, "p9")


def test_prompt_for_each_arm():
    tokenizer = byte_level_tokenizer()
    drawn = {arm: prompt_for(arm, "p1", 0, STRATEGIES, NEGATIVE, tokenizer, True) for arm in ("base", *TEXT_ARMS)}
    assert drawn["base"] is None and drawn["cpt"] is None
    assert drawn["cft"] == STRATEGIES.sample(0, "p1") and drawn["neg"] == NEGATIVE.sample(0, "p1")
    with pytest.raises(InputError, match=r"unknown arm 'contrl' .did you mean 'control'"):
        prompt_for("contrl", "p1", 0, STRATEGIES, NEGATIVE, tokenizer)


def test_arms_that_take_a_prompt_apart(tokenizer):
    def drawn(arm: str, i: int, seed: int = 0) -> ContextualPrompt:
        return prompt_for(arm, f"p{i}", seed, STRATEGIES, NEGATIVE, tokenizer)

    for i in range(60):
        cft = drawn("cft", i)
        assert drawn("cft-learned", i) == cft
        assert drawn("only-critical", i).family == "critical"
        without = drawn("without-critical", i)
        assert without.family != "critical" and (without == cft or cft.family == "critical")
        assert drawn("control-family", i).family != cft.family
        shuffled = drawn("control-shuffled", i)
        assert sorted(shuffled.text.lower().split()) == sorted(cft.text.lower().split()) and shuffled.text != cft.text
        assert (shuffled.kind, shuffled.family) == ("control", cft.family)
        assert drawn("control-neutral", i).kind == "neutral"
        assert prompt_for("reading", f"p{i}", 0, STRATEGIES, NEGATIVE, tokenizer) is None
    of = {arm: {drawn(arm, i).id for i in range(400)} for arm in ("count-1", "count-2", "count-5", "count-20")}
    assert [len(ids) for ids in of.values()] == [1, 2, 5, 20]
    assert of["count-1"] < of["count-2"] < of["count-5"] < of["count-20"]
    assert len({drawn("count-1", 0, seed).id for seed in range(20)}) > 5


@pytest.mark.parametrize("made", [byte_level_tokenizer, stories_tokenizer, lambda: load_tokenizer("practice-aware")])
def test_shuffled_prompts_are_as_long_as_the_prompt_where_pieces_end_with_words(made):
    tokenizer = made()
    differences = collections.Counter()
    for i in range(100):
        cft, shuffled = (
            prompt_for(arm, f"p{i}", 0, STRATEGIES, NEGATIVE, tokenizer) for arm in ("cft", "control-shuffled")
        )
        differences[len(prompt_ids(tokenizer, shuffled)) - len(prompt_ids(tokenizer, cft))] += 1
    assert differences == {0: 100}


def test_adaptive_reads_what_was_written_for_the_passage():
    mine, tokenizer = (
        ContextualPrompt("adaptive-1", "context", "Look at the second sentence.", "strategy"),
        byte_level_tokenizer(),
    )
    written = {"p1": mine, "p2": None}
    given = (0, STRATEGIES, NEGATIVE, tokenizer, None, written)
    assert prompt_for("adaptive", "p1", *given) == mine
    assert prompt_for("adaptive", "p2", *given) == STRATEGIES.sample(0, "p2")  # what was written for it was rejected
    with pytest.raises(KeyError):
        prompt_for("adaptive", "p3", *given)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            "only-critcal",
            "unknown family in arm 'only-critcal' .prompt set 'strategies'.: 'critcal' .did you mean 'critical'",
        ),
        ("without-me-ift", "family in arm 'without-me-ift'"),
        ("count-21", "'count-21' asks for more prompts than the 20 of prompt set 'strategies'"),
    ],
)
def test_arms_that_the_book_cannot_give_are_refused(arm: str, message: str):
    check_subsets(["base", "cft", "only-critical", "without-context-ift", "count-20"], STRATEGIES)
    with pytest.raises(InputError, match=message):
        check_subsets([arm], STRATEGIES)


@pytest.mark.parametrize("arm", ["only-", "count-0", "count-x", "cft-", "only-a/b", "", "-ift", "without-..-x/.."])
def test_names_that_are_no_arm_are_refused(arm: str):
    with pytest.raises(InputError, match="here: unknown arm"):
        get_arm(arm, "here: ")


def test_rare_families_and_single_families_are_drawn_or_refused_at_once(tmp_path: Path):
    path = tmp_path / "rare.yaml"
    path.write_text("families: {critical: {weight: 1.0e-9}}\nextends: strategies\n" + HEAD + ONE, encoding="utf-8")
    book = load_prompt_set(path)
    drawn = [prompt_for("only-critical", f"p{i}", 0, book, NEGATIVE, byte_level_tokenizer()).id for i in range(60)]
    assert set(drawn) == {"critical-1", "critical-2"}  # by their odds, after many draws that none of them won
    path.write_text(HEAD + ONE, encoding="utf-8")
    for arm in ("control-family", "control-family-ift", "without-context"):
        with pytest.raises(InputError, match=f"arm '{arm}' has no other prompt to read: .* one family alone"):
            check_subsets([arm], load_prompt_set(path))


def test_lower_case_prompts_are_shuffled_too():
    tokenizer, prompt = byte_level_tokenizer(), ContextualPrompt("low", "context", "look at this", "strategy")
    for i in range(60):
        assert shuffled_prompt(tokenizer, prompt, 0, f"p{i}").text.lower() != "look at this"


# --- a user's own book ------------------------------------------------------------------------------------------------

HEAD = "name: mine\nkind: strategy\nprompts:\n"
ONE = "  - {id: a-1, family: context, text: hello}\n"
OWN = "  - {id: a-1, family: a, text: hello}\n"  # a family beyond the ten, which a book has to declare


def test_extending_a_book_adds_and_replaces(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nkind: strategy\nextends: strategies\nversion: 3\nfamilies: {drawing: {idea: sketch}}\nprompts:\n"
        "  - {id: drawing-1, family: drawing, text: ' Sketch it. '}\n"
        "  - {id: context-2, family: context, text: Other words.}\n",
        encoding="utf-8",
    )
    book = load_prompt_set(path)
    texts = {prompt.id: prompt.text for prompt in book.prompts}
    assert (book.name, book.version, len(texts)) == ("mine", 3, 21)
    assert texts["drawing-1"] == "Sketch it." and texts["context-2"] == "Other words."
    assert book.families == (*FAMILIES, "drawing") and book.ideas["drawing"] == "sketch"
    assert book.hash != STRATEGIES.hash


def test_a_family_names_a_publication_without_another_draw(tmp_path: Path):
    plain, told, anew = tmp_path / "plain.yaml", tmp_path / "told.yaml", tmp_path / "anew.yaml"
    plain.write_text("families: {a: {idea: sketch}}\n" + HEAD + OWN, encoding="utf-8")
    told.write_text("families: {a: {idea: sketch, reference: 'One (1999), A Book'}}\n" + HEAD + OWN, encoding="utf-8")
    assert load_prompt_set(told).references == {"a": "One (1999), A Book"} and load_prompt_set(plain).references == {}
    assert (
        load_prompt_set(told).hash == load_prompt_set(plain).hash
        and load_prompt_set(told).to_dict() == load_prompt_set(plain).to_dict()
    )
    anew.write_text("families: {context: {idea: another}}\nextends: strategies\n" + HEAD + ONE, encoding="utf-8")
    assert set(load_prompt_set(anew).references) == set(STRATEGIES.references) - {"context"}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("families:\n  a: {reference: x}\n" + HEAD + OWN, 2, "the key 'families.a.idea' is missing"),
        ("families:\n  a: {idea: x, reference: ''}\n" + HEAD + OWN, 2, "families.a.reference: is empty"),
        (
            "families:\n  a: {idea: x, refrence: y}\n" + HEAD + OWN,
            2,
            "unknown key 'families.a.refrence' .did you mean 'reference'",
        ),
        (HEAD + ONE + ONE, 5, "'a-1' is used twice"),
        (HEAD + "  - id: a-1\n    family: context\n    text: '  '\n", 6, r"prompts\[0\].text: is empty"),
        (
            HEAD + "  - id: a-1\n    family: context\n    text:\n",
            6,
            r"prompts\[0\].text must be a valid string, found None",
        ),
        (
            HEAD + "  - id: a-1\n    family: context\n    text: 12\n",
            6,
            r"prompts\[0\].text must be a valid string, found 12",
        ),
        (HEAD + ONE + "  - {id: a-2, family: context}\n", 5, r"the key 'prompts\[1\].text' is missing"),
        (
            HEAD + "  - id: a-1\n    famly: context\n    text: x\n",
            5,
            r"unknown key 'prompts\[0\].famly' .did you mean 'family'",
        ),
        (HEAD + ONE + "author: me\n", 5, "unknown key 'author'"),
        (HEAD + "  - hello\n", 4, r"prompts\[0\] must be a mapping of keys to values, found 'hello'"),
        (HEAD + "  []\n", 3, "prompts List should have at least 1 item"),
        (
            "name: mine\nkind: strategic\nprompts:\n" + ONE,
            2,
            "kind must be 'strategy', .*found 'strategic' .did you mean 'strategy'",
        ),
        ("name: mine\nprompts:\n" + ONE, 1, "the key 'kind' is missing"),
        ("name: mine\nname: yours\nkind: strategy\nprompts:\n" + ONE, 2, "the key 'name' is there twice"),
        ("version: one\n" + HEAD + ONE, 1, "version must be a valid integer, found 'one'"),
        ("families:\n  b: {idea: x}\n" + HEAD + ONE, 2, "family 'b' has no prompt"),
        ("extends: strategie\n" + HEAD + ONE, 1, "unknown prompt set to extend 'strategie' .did you mean 'strategies'"),
        ("extends: negative\n" + HEAD + ONE, 3, "kind 'strategy' cannot extend one of kind 'negative'"),
        (HEAD + "  - {id: [\n", 5, "invalid YAML"),
        (HEAD + OWN, 4, "unknown family 'a': name it under 'families'"),
        (HEAD + "  - {id: a-1, family: contxt, text: x}\n", 4, "unknown family 'contxt' .did you mean 'context'"),
        (
            HEAD + "  - id: a-1\n    family: context\n    text: " + "far " * 121 + "\n",
            6,
            "a prompt has 121 words, at most 120",
        ),
        (
            "families: {a b: {idea: x}}\n" + HEAD + OWN.replace("family: a", "family: a b"),
            5,
            "'a b' needs a name of letters",
        ),
        (
            "families: {a-ift: {idea: x}}\n" + HEAD + OWN.replace("family: a", "family: a-ift"),
            5,
            "'a-ift' needs a name",
        ),
        ("placement: behind\n" + HEAD + ONE, 1, "placement must be 'before', 'user' or 'system', found 'behind'"),
        ("separator: ' '\n" + HEAD + ONE, 1, "separator: must be white space that ends in a newline"),
        ("families:\n  context: {weight: 0}\n" + HEAD + ONE, 2, "context.weight must be greater than 0"),
        ("families:\n  context: {weight: .nan}\n" + HEAD + ONE, 2, "context.weight must be a finite number"),
    ],
)
def test_broken_books_are_refused_with_file_and_line(tmp_path: Path, text: str, line: int, message: str):
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"broken\.yaml, line {line}: .*{message}"):
        load_prompt_set(path)


def test_unknown_books_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"unknown prompt set 'strategy' .did you mean 'strategies'"):
        load_prompt_set("strategy")
    with pytest.raises(InputError, match=r"none.yaml does not exist"):
        load_prompt_set(tmp_path / "none.yaml")


def test_control_matches_a_prompt_that_spells_special_tokens() -> None:
    tokenizer = load_tokenizer("practice-blind")
    text = "Read what stands between <s> and </s> in the lines below with care, please."
    book = PromptSet("own", "strategy", (ContextualPrompt("own-1", "own", text, "strategy"),))
    control = prompt_for("control", "p#0", 0, book, load_prompt_set("negative"), tokenizer)
    assert len(prompt_ids(tokenizer, control)) == len(prompt_ids(tokenizer, book.prompts[0]))


def test_the_adaptive_prompt_follows_the_truth_label(tokenizers) -> None:
    tokenizer = tokenizers["byte"]
    for passage in ("p#0", "p#1", "q#7"):
        of = {arm: prompt_for(arm, passage, 0, STRATEGIES, NEGATIVE, tokenizer) for arm in ("cft", "neg")}
        for reliable, arm in ((True, "cft"), (False, "neg")):
            assert prompt_for("adaptive", passage, 0, STRATEGIES, NEGATIVE, tokenizer, reliable) == of[arm]
    with pytest.raises(InputError, match=r"'p#0' has none: give every document .* a field 'reliable'"):
        prompt_for("adaptive", "p#0", 0, STRATEGIES, NEGATIVE, tokenizer)


# --- every book of the package ----------------------------------------------------------------------------------------

EACH = {"wide": {"strategy": 5, "negative": 3}, "reworded": {"strategy": 1, "negative": 1}}  # prompts of a family


@pytest.mark.parametrize("name", TEN)
def test_every_book_has_the_ten_families_and_prompts_of_one_short_sentence(name: str):
    book = load_prompt_set(name)
    assert book.name == name and book.kind == ("negative" if name.startswith("negative") else "strategy")
    each = EACH.get(name.partition("-")[2], {}).get(book.kind, 2)
    assert list(book.families) == FAMILIES
    assert collections.Counter(prompt.family for prompt in book.prompts) == dict.fromkeys(FAMILIES, each)
    assert (
        len({prompt.text for prompt in book.prompts})
        == len({prompt.id for prompt in book.prompts})
        == len(book.prompts)
    )
    for prompt in book.prompts:
        assert prompt.id.startswith(f"{prompt.family}-")
        assert len(prompt.text.split()) <= 40 and prompt.text[-1] in ".?" and "\n" not in prompt.text


@pytest.mark.parametrize("name", [name for name in TEN if not name.endswith("reworded")])
def test_every_family_tells_its_idea_and_a_publication(name: str):
    book = load_prompt_set(name)
    assert set(book.ideas) == set(book.references) == set(FAMILIES)
    for family, reference in book.references.items():
        assert re.fullmatch(r"[A-Z][^()]+ \((19|20)\d\d\), [A-Z][^()]+", reference), family
        # a book of another subject or sign words the idea anew; what it rests on stays the same
        assert reference == STRATEGIES.references[family]


def test_prompts_of_all_books_are_different_sentences():
    owners: dict[tuple[str, ...], str] = {}
    for prompt in {prompt.text: prompt for name in PROMPT_SETS for prompt in load_prompt_set(name).prompts}.values():
        for gram in grams_of(words_of(prompt.text)):
            assert owners.setdefault(gram, prompt.text) == prompt.text, gram
    assert len(owners) > 1000


def test_books_added_since_speak_of_the_text_and_name_no_being_of_the_practice_world():
    names = {entity.name.lower() for domain in DOMAINS for split in SPLITS for entity in entities(split, domain)}
    first = {prompt.text for name in PROMPT_SETS[:4] for prompt in load_prompt_set(name).prompts}
    for name in TEN:
        for prompt in load_prompt_set(name).prompts:
            assert not names & set(words_of(prompt.text)), prompt.id
            if prompt.text not in first:
                assert 12 <= len(prompt.text.split()) <= 24, prompt.id
                assert "the text below" in prompt.text.lower() or "what follows" in prompt.text.lower(), prompt.id
                assert "answer" not in prompt.text.lower(), prompt.id


def test_the_first_books_are_drawn_from_as_ever():
    """Runs recorded these hashes: a reference, or a book added beside them, must not change a draw."""
    assert STRATEGIES.hash[:16] == "6a093fa5e8a1523b" and NEGATIVE.hash[:16] == "147f314397c6410f"
