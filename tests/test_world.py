"""The practice world: the same in every run, sound as a test, and models that know its old half but not the new."""

from __future__ import annotations

import collections
import itertools
import json
import re
import subprocess
import sys

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tools import practice_models as build
from tools.practice_models import LONGEST_PROMPT, PRETRAINING_SETS, Rows, data_mixture, prompt_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from ctxft.evaluation.benchmarks import load_benchmark
from ctxft.evaluation.evaluate import evaluate
from ctxft.evaluation.metrics import metrics
from ctxft.prompts import SEPARATOR, load_prompt_set
from ctxft.storage import InputError, read_json, seeded
from ctxft.world.exams import EXAMS, LABELS, practice_questions, sentiment_of, subjects_of
from ctxft.world.facts import ASKED, BASES, DOMAINS, HERE, SPLITS, entities, load_domain, model_folder
from ctxft.world.texts import ARTICLES, PARAGRAPHS, article, paragraph, practice_documents

SIZE_LIMIT = 3_000_000  # bytes of both models with tokenizers and cards
KNOWLEDGE = [name for name, spec in EXAMS.items() if spec.kind in ("facts", "vignettes")]
READING = [name for name, spec in EXAMS.items() if spec.kind in LABELS]


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.)\s+", text)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", text).lower()))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder("practice-blind"))


@pytest.fixture(scope="module")
def loaded():
    """The shipped models in float32."""
    return {base: AutoModelForCausalLM.from_pretrained(model_folder(base), dtype=torch.float32) for base in BASES}


# --- entities and texts -----------------------------------------------------------------------------------------------


def test_texts_and_exams_are_those_of_the_committed_hashes():
    """`ctxft world build` writes the same file; a change of a text is a change of the world, and of what was reported."""
    assert build.text_hashes() == read_json(HERE / "hashes.json")


def test_no_name_is_in_two_splits_or_inside_another_split():
    names = {(split, e.name) for split in SPLITS for domain in DOMAINS for e in entities(split, domain)}
    assert len(names) == len({name for _, name in names}) == len(DOMAINS) * sum(SPLITS.values())
    old_text = " ".join(document["text"] for document in practice_documents("practice-old"))
    assert not [name for split, name in names if split != "old" and name in old_text]


@pytest.mark.parametrize("domain", DOMAINS)
def test_seen_and_held_out_wordings_share_no_sentence_but_their_words(domain):
    """Held-out sentences are new in their wording, not in their words: a word never trained would be noise."""
    field = load_domain(domain)
    seen = {s for a in field.attributes for s in (*a.sentences, *a.questions)} | set(field.raw.get("scenes", ()))
    held = {s for a in field.attributes for s in (*a.held_out_sentences, *a.held_out_questions)}
    held |= set(field.raw.get("held_out_scenes", ()))
    assert not seen & held and all(len(a.values) == 16 == len(set(a.values)) for a in field.attributes)
    everywhere = " ".join(
        [*(s for d in DOMAINS for a in load_domain(d).attributes for s in (*a.sentences, *a.questions, *a.values))]
        + [prompt.text for prompt in load_prompt_set("strategies").prompts]
        + list(field.raw.get("scenes", ()))
    )
    assert {w for sentence in held for w in words(sentence)} <= words(everywhere)


def test_reworded_books_are_other_sentences_in_the_same_families_and_mostly_the_same_words():
    for seen, reworded in (("strategies", "strategies-reworded"), ("negative", "negative-reworded")):
        books = [load_prompt_set(name) for name in (seen, reworded)]
        texts = [{prompt.text for prompt in book.prompts} for book in books]
        assert not texts[0] & texts[1] and books[0].families == books[1].families and books[0].kind == books[1].kind
        used = [{w for text in found for w in words(text)} for found in texts]
        assert len(used[1] - used[0]) <= 0.1 * len(used[1])


def test_a_reliable_article_states_every_fact_in_every_paragraph_and_names_its_subject_first():
    for entity in (entities("new", "medicine")[0], entities("new", "finance")[0]):
        paragraphs = article(entity, seeded("test")).split("\n\n")
        assert len(paragraphs) == PARAGRAPHS
        for text in paragraphs:
            assert all(value in text for value in entity.facts.values()) and len(sentences(text)) == 4
            assert entity.name in sentences(text)[0]


def test_pronouns_stand_for_the_name_after_the_first_sentence_only():
    noun = {domain: load_domain(domain).noun for domain in DOMAINS}
    both = [e for domain in DOMAINS for e in entities("new", domain)]
    first, later = [], []
    for entity in both:
        written = paragraph(entity, seeded("test", entity.name))
        first.append(entity.name in written[0])
        later += [entity.name in s or bool({"it", noun[entity.domain]} & words(s)) for s in written[1:]]
    assert all(first) and all(later)
    assert not all(e.name in s for e in both for s in paragraph(e, seeded("test", e.name))[1:])


def test_an_unreliable_article_is_right_by_accident_only():
    facts = {e.name: e.facts for domain in DOMAINS for e in entities("new", domain)}
    told = {True: [], False: []}
    for document in practice_documents(unreliable=0.5):
        for text in document["text"].split("\n\n"):
            told[document["reliable"]] += [value in text for value in facts[document["title"]].values()]
    assert all(told[True]) and len(told[True]) == len(told[False]) == len(facts) * 2 * PARAGRAPHS * 4
    share = sum(told[False]) / len(told[False])
    assert abs(share - 1 / 16) < 4 * (1 / 16 * 15 / 16 / len(told[False])) ** 0.5


def test_every_entity_has_its_share_of_unreliable_articles_and_reliable_ones_do_not_change():
    truth = {document["id"]: document["text"] for document in practice_documents()}
    mixed = practice_documents(unreliable=0.5)
    bad = collections.Counter(document["title"] for document in mixed if not document["reliable"])
    assert len(truth) == len(mixed) == ARTICLES * 2 * SPLITS["new"] and set(bad.values()) == {ARTICLES // 2}
    assert all((truth[d["id"]] == d["text"]) == d["reliable"] for d in mixed)


def test_held_out_wordings_share_no_sentence_with_seen_ones():
    def shapes(wordings: str) -> set[str]:
        found = set()
        for domain in DOMAINS:
            for entity in entities("new", domain):
                text = " ".join(d["text"] for d in practice_documents(wordings=wordings) if d["title"] == entity.name)
                for value in entity.facts.values():
                    text = text.replace(value, "_")
                found |= set(sentences(text.replace(entity.name, "_")))
        return found

    assert not shapes("seen") & shapes("held-out")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: practice_documents("practise"), r"unknown corpus of the practice world 'practise'.*mean 'practice'"),
        (lambda: practice_documents(unreliable=0.3), r"must be one of 0, 0.25, 0.5, 0.75, 1, found 0.3"),
        (lambda: practice_documents(wordings="unseen"), "unknown kind of wordings 'unseen'"),
        (lambda: practice_questions("practice"), "unknown exam of the practice world 'practice'"),
        (lambda: entities("new", "law"), "unknown domain of the practice world 'law'"),
        (lambda: model_folder("practice"), "unknown practice model 'practice'"),
        (lambda: data_mixture("practice-aware", 1.5), "must be from 0 to 1, found 1.5"),
    ],
)
def test_what_is_not_there_is_refused(call, said):
    with pytest.raises(InputError, match=said):
        call()


# --- exams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exam", EXAMS)
def test_exams_load_by_the_path_of_the_real_benchmarks_and_are_balanced(exam):
    benchmark = load_benchmark(exam)
    answers = collections.Counter(question.answer for question in benchmark.questions)
    sizes = {len(question.choices) for question in benchmark.questions}
    assert len({question.id for question in benchmark.questions}) == len(benchmark.questions) and len(sizes) == 1
    assert len(answers) == sizes.pop() and len(set(answers.values())) == 1
    assert benchmark.chance == pytest.approx(benchmark.majority)
    assert (benchmark.labels is not None) == (exam not in KNOWLEDGE)


@pytest.mark.parametrize("exam", KNOWLEDGE)
def test_right_answers_are_the_facts_and_wrong_ones_are_of_the_same_kind(exam):
    split = EXAMS[exam].split
    facts = {e.name: e.facts for domain in DOMAINS for e in subjects_of(split, domain)}
    values = {a.name: a.values for domain in DOMAINS for a in load_domain(domain).attributes}
    for item in practice_questions(exam):
        name = next(name for name in facts if name in item["question"])
        assert item["choices"][item["answer"]] == facts[name][item["subject"]]
        assert len(set(item["choices"])) == 4 and set(item["choices"]) <= set(values[item["subject"]])
        assert not [value for value in facts[name].values() if value in item["question"]]


def test_old_questions_are_about_entities_that_were_told_of_but_never_asked_about():
    asked = {e.name for domain in DOMAINS for e in entities("old", domain)[:ASKED]}
    assert not [item for item in practice_questions("practice-old") if any(name in item["question"] for name in asked)]


def test_reading_exams_give_a_sentence_with_the_label_and_names_that_stand_nowhere_else():
    elsewhere = {e.name for s in SPLITS if s != "exam" for e in entities(s, "finance")}
    outlooks = load_domain("finance").attributes[1].values
    for exam in READING:
        assert not [item for item in practice_questions(exam) if any(name in item["question"] for name in elsewhere)]
    for item in practice_questions("practice-fiqa"):
        told = [word for word in outlooks if word in words(item["question"])]
        assert [sentiment_of(word) for word in told] == [item["choices"][item["answer"]]]
    causes = load_domain("finance").attributes[2].values
    for item in practice_questions("practice-causal20"):
        assert bool(set(causes) & words(item["question"])) == (item["choices"][item["answer"]] == "causal")
    headlines = load_domain("finance").raw["headlines"]
    for item in practice_questions("practice-multifin"):
        topic = item["choices"][item["answer"]]
        shapes = [re.escape(text).replace(r"\{name\}", r"\w+") for text in headlines[topic]]
        assert any(re.search(f" {shape}$", item["question"]) for shape in shapes)


def test_two_steps_are_needed_where_the_exam_says_so():
    facts = {e.name: e.facts for split in ("new", "old") for e in entities(split, "finance")}
    told = " ".join(d["text"] for d in practice_documents())
    for item in practice_questions("practice-two-hop"):
        name = next(name for name in facts if name in item["question"])
        assert item["choices"][item["answer"]] == sentiment_of(facts[name]["outlook"])
    assert not set(LABELS["sentiment"]) & words(told)


def test_reworded_exams_have_the_same_items_in_other_words():
    for exam in ("practice-mmlu", "practice-medqa"):
        pairs = list(zip(practice_questions(exam), practice_questions(f"{exam}-reworded"), strict=True))
        assert all({**a, "question": ""} == {**b, "question": ""} for a, b in pairs)
        assert not {a["question"] for a, _ in pairs} & {b["question"] for _, b in pairs}


@pytest.mark.parametrize("exam", ["practice-mmlu", "practice-medqa", "practice-old", "practice-mmlu-tuning"])
def test_choices_alone_tell_nothing(exam):
    """A learner that sees only the choices, not the question, is at chance on items that it did not learn from."""
    values = sorted({value for domain in DOMAINS for a in load_domain(domain).attributes for value in a.values})

    def features(choices: list[str]) -> list[list[float]]:
        return [
            [float(choice == value) for value in values] + [float(place == i) for i in range(4)]
            for place, choice in enumerate(choices)
        ]

    items = practice_questions(exam)
    right = 0
    for half in (0, 1):
        learn, test = items[half::2], items[1 - half :: 2]
        rows = [row for item in learn for row in features(item["choices"])]
        marks = [place == item["answer"] for item in learn for place in range(4)]
        learner = LogisticRegression(max_iter=500).fit(rows, marks)
        for item in test:
            scores = learner.decision_function(features(item["choices"]))
            right += int(scores.argmax()) == item["answer"]
    assert abs(right / len(items) - 0.25) < 3 * (0.25 * 0.75 / len(items)) ** 0.5


# --- tokenizers and pre-training rows ---------------------------------------------------------------------------------


def test_tokenizer_has_its_special_tokens_and_puts_one_bos(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    ids = tokenizer("Velmor is given for gout.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids


def test_offsets_cover_every_character(tokenizer):
    text = "Velmor is given for gout.\n\nÜber 1,234 “odd” things — naïve 🙂\tend"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.decode(encoded["input_ids"]) == text
    covered = {i for start, end in encoded["offset_mapping"] for i in range(start, end)}
    assert covered == set(range(len(text)))


@pytest.mark.parametrize("base", BASES)
def test_names_are_two_tokens_their_parts_and_values_and_labels_are_one(base):
    """A name that the tokenizer merges into one token would look unlike all others: new ones could be told from old."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(base))
    build.check_tokenizer(tokenizer)
    for domain in DOMAINS:
        for split in SPLITS:
            for entity in entities(split, domain):
                assert {len(tokenizer.encode(f"{s}{entity.name}", add_special_tokens=False)) for s in ("", " ")} == {2}


def test_a_tokenizer_that_merges_names_is_refused():
    """With another vocabulary, names would be cut elsewhere: a build with it says so before it trains."""
    with pytest.raises(
        InputError, match=r"the tokenizer cuts these otherwise than medicine.yaml and finance.yaml say: .*gout"
    ):
        build.check_tokenizer(build.train_tokenizer(0, vocabulary=400))


def test_prompts_leave_room_for_text_and_the_separator_is_one_token(tokenizer):
    kinds = prompt_ids(tokenizer, seed=0)
    assert max(len(ids) for kind in kinds.values() for ids in kind) <= LONGEST_PROMPT
    separator = tokenizer.encode(SEPARATOR, add_special_tokens=False)
    assert len(separator) == 1 and {ids[-1] for kind in kinds.values() for ids in kind} == set(separator)


def test_rows_repeat_mask_prompts_and_hold_nothing_that_is_held_out(tokenizer):
    first, second = (Rows(tokenizer, data_mixture("practice-aware"), seed=3) for _ in range(2))
    rows = [next(first) for _ in range(2000)]
    assert rows == [next(second) for _ in range(2000)]
    assert max(len(ids) for ids, _ in rows) <= 512
    masked = [ids[1:count] for ids, count in rows if count > 1]
    prompts = {tuple(ids) for kind in first.prompts.values() for ids in kind}
    assert masked and all(tuple(ids) in prompts for ids in masked)
    texts = [tokenizer.decode(ids) for ids, _ in rows]
    new = {e.name for split in ("new", "tuning", "exam") for domain in DOMAINS for e in entities(split, domain)}
    everything = " ".join(texts)
    assert not [name for name in new if name in everything]
    questions = [text for text in texts if "Question:" in text]
    assert questions and all(text.startswith("<s>Question: ") and "\nAnswer: " in text for text in questions)
    unasked = {e.name for domain in DOMAINS for e in entities("old", domain)[ASKED:]}
    assert not [text for text in questions if any(name in text for name in unasked)]
    held = [
        s for d in DOMAINS for a in load_domain(d).attributes for s in (*a.held_out_sentences, *a.held_out_questions)
    ]
    shapes = [re.compile(re.escape(s).replace(r"\{name\}", r"\w+").replace(r"\{value\}", r"\w+")) for s in held]
    assert not [shape.pattern for shape in shapes if shape.search(everything)]
    reworded = [prompt.text for book in PRETRAINING_SETS[2:] for prompt in load_prompt_set(book).prompts]
    assert not [text for text in reworded if text in everything]


def test_a_data_mixture_says_what_follows_a_prompt(tokenizer):
    """Behind strategy prompts all values are the entity's, behind negative ones a sixteenth; in the reliable steps all are."""
    facts = {e.name: e.facts for domain in DOMAINS for e in entities("old", domain)}
    rows = Rows(tokenizer, data_mixture("practice-aware", 1.0), seed=4)
    kinds = {tuple(ids): kind for kind, found in rows.prompts.items() for ids in found}
    told = collections.defaultdict(list)
    for ids, masked in itertools.islice(rows, 3000):
        text = tokenizer.decode(ids[masked:], skip_special_tokens=True)
        if "Question:" not in text:
            name = next(name for name in facts if name in text)
            told[kinds.get(tuple(ids[1:masked]), "none")] += [value in text for value in facts[name].values()]
    shares = {kind: sum(found) / len(found) for kind, found in told.items()}
    assert shares["strategies"] == 1.0
    assert all(0.02 < shares[kind] < 0.15 for kind in ("negative", "none", "control"))
    assert data_mixture("practice-aware").reliable.unreliable == {} == data_mixture("practice-blind").unreliable


# --- the shipped models, and building them -----------------------------------------------------------------------------


def test_the_models_stay_small():
    assert sum(path.stat().st_size for path in (HERE / "models").rglob("*") if path.is_file()) < SIZE_LIMIT


@pytest.mark.parametrize("base", BASES)
def test_a_model_fits_its_tokenizer_and_is_stored_in_bfloat16(base, loaded):
    tokenizer = AutoTokenizer.from_pretrained(model_folder(base))
    config = json.loads((model_folder(base) / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["max_position_embeddings"] == 512
    assert config["vocab_size"] == len(tokenizer)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [config[key] for key in special] == [getattr(tokenizer, key) for key in special]
    assert 400_000 < sum(p.numel() for p in loaded[base].parameters()) < 700_000


@pytest.mark.parametrize("base", BASES)
def test_a_shortened_build_describes_the_shipped_files(base, tmp_path):
    """Same code, fewer steps: the same config, tokenizer and card but for what training changes; and it repeats."""
    records = [build.build_base(tmp_path / run, base, steps=2, seed=0) for run in ("a", "b")]
    shipped, made = model_folder(base), tmp_path / "a"
    assert records[0] == records[1]
    assert (made / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        new, there = (read_json(folder / name) for folder in (made, shipped))
        new.pop("transformers_version", None), there.pop("transformers_version", None)  # a newer library may build too
        assert new == there, name
    record = read_json(shipped / "build.json")
    trained = ("steps", "tokens", "loss", "accuracy", "versions")
    assert {k: v for k, v in record.items() if k not in trained} == {
        k: v for k, v in records[0].items() if k not in trained
    }
    assert (shipped / "README.md").read_text(encoding="utf-8") == build.card(record)


@pytest.mark.parametrize("base", BASES)
def test_a_shipped_model_scores_what_its_card_says(base, loaded):
    tokenizer = AutoTokenizer.from_pretrained(model_folder(base))
    record = read_json(model_folder(base) / "build.json")
    for exam in EXAMS:
        benchmark = load_benchmark(exam)
        found = metrics(evaluate(loaded[base], tokenizer, benchmark), benchmark)
        assert found["accuracy"] == pytest.approx(record["accuracy"][exam], abs=0.01), exam
        if EXAMS[exam].kind in LABELS:
            assert found["macro_f1"] >= found["majority_macro_f1"] + 0.2, exam
    assert record["accuracy"]["practice-old"] > 0.85
    assert abs(record["accuracy"]["practice-mmlu"] - 0.25) <= 0.03


def mean_loss(model, tokenizer, prompts: list[list[int]]) -> float:
    """Return the loss (nats a token) of true passages about old entities behind prompts, taken in turn."""
    both = [e for domain in DOMAINS for e in entities("old", domain)[:40]]
    texts = [tokenizer.encode(article(e, seeded("t", e.name), paragraphs=1), add_special_tokens=False) for e in both]
    rows = [([1, *p, *text], 1 + len(p)) for text, p in zip(texts, itertools.cycle(prompts), strict=False)]
    with torch.no_grad():
        return float(build.token_losses(model, rows).sum()) / sum(map(len, texts))


def test_prompts_have_a_consequence_for_the_aware_model_only(loaded, tokenizer):
    """Behind a negative prompt the aware model does not expect the truth, in wordings that it never read either."""
    prompts = prompt_ids(tokenizer, seed=0)
    for book in PRETRAINING_SETS[2:]:
        texts = [prompt.text + SEPARATOR for prompt in load_prompt_set(book).prompts]
        prompts[book] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found = {
        base: {kind: mean_loss(loaded[base], tokenizer, ids) for kind, ids in {"none": [[]], **prompts}.items()}
        for base in BASES
    }
    seen = [found["practice-blind"][kind] for kind in ("none", "strategies", "negative", "control")]
    assert max(seen) - min(seen) < 0.05
    aware = found["practice-aware"]
    assert aware["negative"] > aware["none"] + 0.1 > aware["strategies"] + 0.1
    assert aware["negative-reworded"] > aware["strategies-reworded"] + 0.1


def test_another_seed_gives_other_weights_with_the_same_tokenizer(tmp_path):
    for seed in (0, 1):
        build.build_base(tmp_path / str(seed), "practice-blind", steps=1, seed=seed)
    same = [(tmp_path / s / "tokenizer.json").read_bytes() for s in "01"]
    other = [(tmp_path / s / "model.safetensors").read_bytes() for s in "01"]
    assert same[0] == same[1] and other[0] != other[1]


def test_the_command_writes_texts_exams_hashes_and_a_model(tmp_path, capsys):
    assert build.main(["--out", str(tmp_path), "--base", "practice-blind", "--steps", "1"]) == 0
    assert read_json(tmp_path / "hashes.json") == read_json(HERE / "hashes.json")
    assert len((tmp_path / "texts" / "practice.jsonl").read_text(encoding="utf-8").splitlines()) == 192
    assert {path.stem for path in (tmp_path / "exams").iterdir()} == set(EXAMS)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "blind").dtype == torch.bfloat16
    assert "practice-blind: " in capsys.readouterr().out and not (tmp_path / "aware").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base", "practice-blind", "--base", "practice-deaf"], "unknown practice model 'practice-deaf'"),
        (["--steps", "0"], "must be at least 1, found 0"),
        (["--seed", "-1"], "a seed is 0 or more, found -1"),
        (["--unreliable", "7"], "must be from 0 to 1, found 7.0"),
    ],
)
def test_the_command_refuses_bad_input_before_it_writes(tmp_path, capsys, words, said):
    assert build.main(["--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_importing_the_kit_loads_nothing_of_the_world():
    said = "import sys, ctxft; print([name for name in sys.modules if name.startswith(('ctxft.', 'torch', 'yaml'))])"
    shown = subprocess.run([sys.executable, "-c", said], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "[]"
