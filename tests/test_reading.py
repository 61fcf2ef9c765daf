"""Exercises are mined from whole sentences, answers stand in the passage word for word, and nothing depends on chance."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ctxft.data.documents import Document
from ctxft.data.passages import cut
from ctxft.data.rows import IGNORE_INDEX, Rows, arm_tokens, build_row, fitting_pieces, special_tokens
from ctxft.extras.reading import (
    GAP,
    MOST,
    Exercise,
    Reading,
    causes,
    exercise_text,
    exercises_of,
    mine_exercises,
    sentences,
)
from ctxft.models import encode_text
from ctxft.storage import read_jsonl
from ctxft.world.texts import practice_documents

FILLER = "Grey stones lay about near the water."


def one_line(text: str) -> str:
    return " ".join(text.split())


def mined(text: str, kind: str, seeds: int = 8) -> set[tuple[str, str]]:
    """Return (question, answer) of a kind under several seeds: the seed decides which way a causal sentence is asked."""
    found = [exercise for seed in range(seeds) for exercise in mine_exercises(text, seed, "p#0")]
    return {(exercise.question, exercise.answer) for exercise in found if exercise.kind == kind}


def assert_sound(text: str, exercises: list[Exercise]) -> None:
    """Assert what holds for the exercises of any text whatever."""
    for exercise in exercises:
        assert exercise.answer.strip() == exercise.answer != "" and exercise.answer in one_line(text), exercise
        assert exercise.question == one_line(exercise.question), exercise
        if exercise.kind == "cloze":
            assert exercise.question.count(GAP) == 1
            assert exercise.question.replace(GAP, exercise.answer) in one_line(text), exercise
    kinds = [exercise.kind for exercise in exercises]
    assert all(kinds.count(kind) <= most for kind, most in MOST.items()) and set(kinds) <= set(MOST)
    assert len(set(exercises)) == len(exercises)


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentence",
    [
        "It is measured in units, e.g. milligrams per litre.",
        "The curve in Fig. 3 falls after the first hour.",
        "The paper by J. R. Smith and A. Jones was read.",
        "The dose rose from 2.5 mg to 3.75 mg a day.",
        "Dr. Hill saw it in No. 7 (cf. Table 2) at once.",
        "He works for Ford Motor Co. Chairman Smith does too.",
        "The U.S. Treasury sold bonds to others, i.e. to banks.",
        "The results of Hill et al. 2009 were the same.",
        "The price rose at approx. 3 p.m. on that day.",
    ],
)
def test_a_sentence_is_not_broken_inside(sentence: str):
    assert sentences(f"{FILLER} {sentence} {FILLER}") == [[FILLER, sentence, FILLER]]


def test_after_what_may_stand_last_an_opener_tells_that_a_sentence_begins():
    assert sentences("She works for Hill Inc. The others left the U.S. He stayed.") == [
        ["She works for Hill Inc.", "The others left the U.S.", "He stayed."]
    ]
    assert sentences("It held bonds, shares, etc.\n\nIt sold them.") == [
        ["It held bonds, shares, etc."],
        ["It sold them."],
    ]


def test_paragraphs_lists_headings_questions_and_open_brackets():
    text = (
        "1. The first thing stands here.\n2. The second one stands there.\n\nOn Stones\n\nWhy is it so? It is (so. It is) so."
        ' He said "yes. They go." It went to St.\nJames in a line break.'
    )
    assert sentences(text) == [
        ["The first thing stands here."],
        ["The second one stands there."],
        [""],
        ["", "", "", "", "", "It went to St. James in a line break."],
    ]
    assert sentences('The man (an old one) said "yes." The rest was done.') == [
        ['The man (an old one) said "yes."', "The rest was done."]
    ]


def test_lines_are_joined_but_not_with_a_heading():
    assert sentences("The old bank lent\nmuch money.") == [["The old bank lent much money."]]
    assert sentences("Old Banks\nThe old bank lent much money. It failed.") == [["", "It failed."]]


def test_a_half_sentence_is_not_whole():
    text = "Stones lie there. Water runs over the grey st"
    assert sentences(text, after="ones. It is cold.") == [["Stones lie there.", ""]]
    assert sentences(text, before="On the hill no ")[0][0] == ""
    assert sentences(text, before="It was seen by Dr. ")[0][0] == ""
    assert sentences(text, before="It was seen by all. ")[0][0] == "Stones lie there."
    assert sentences(text, before="A heading\n\n")[0][0] == "Stones lie there."
    assert sentences("The dose was 3.", after="5 mg a day. It is cold.") == [[""]]
    assert sentences("The dose was 3.", after=" It is cold.") == [["The dose was 3."]]
    assert sentences("and ends here. Stones lie there.") == [["", "Stones lie there."]]
    assert sentences("\u00fcber und aus. Stones lie there.") == [["", "Stones lie there."]]


# --- rules ------------------------------------------------------------------------------------------------------------


def test_cloze_blanks_the_rarest_content_word():
    text = "Stones and water meet below the bridge. Stones and water freeze."
    assert mined(text, "cloze") == {
        (f"Stones and water meet below the {GAP}.", "bridge"),
        (f"Stones and water {GAP}.", "freeze"),
    }
    # "granite" stands twice in the sentence, numbers are no terms, "of" and "above" are stop words
    assert mined("The granite above the granite of 1990 was grey.", "cloze") == {
        (f"The granite above the granite of 1990 was {GAP}.", "grey")
    }
    assert mined("It was 12 of 30 and above it.", "cloze") == set()


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Renin is an enzyme of the kidney.", "What is Renin?", "an enzyme of the kidney"),
        ("A neuron is a cell that carries signals.", "What is a neuron?", "a cell that carries signals"),
        ("Stem cells are the source of blood.", "What are Stem cells?", "the source of blood"),
        ("The cost of capital is the rate a firm pays.", "What is the cost of capital?", "the rate a firm pays"),
        ("Net asset value (NAV) is a sum.", "What is Net asset value (NAV)?", "a sum"),
        ("Milk is a drink; it is white.", "What is Milk?", "a drink"),
    ],
)
def test_definitions(sentence: str, question: str, answer: str):
    assert mined(f"{FILLER} {sentence}", "definition") == {(question, answer)}


@pytest.mark.parametrize(
    "sentence",
    [
        "It is a pump of muscle.",
        "This enzyme is a protein.",
        "The aim is a better result.",
        "Milan is a bit puzzled by it.",
        "Is renin an enzyme of the kidney?",
    ],
)
def test_no_definition(sentence: str):
    assert mined(f"{FILLER} {sentence}", "definition") == set()


def test_a_term_is_written_as_the_passage_writes_it_inside_a_sentence():
    assert mined("Renin is an enzyme. Much renin is bad.", "definition") == {("What is renin?", "an enzyme")}
    assert mined("Metal Traders is a firm. It sells metal.", "definition") == {("What is Metal Traders?", "a firm")}


@pytest.mark.parametrize(
    ("sentence", "pairs"),
    [
        (
            "The price rose because demand was high.",
            {
                ('What reason does the text give for this: "The price rose"?', "demand was high"),
                ("What does the text say is so because demand was high?", "The price rose"),
            },
        ),
        (
            "Because of floods, the harvest was late.",
            {
                ('What reason does the text give for this: "the harvest was late"?', "floods"),
                ("What does the text say is so because of floods?", "the harvest was late"),
            },
        ),
        (
            "The change was mainly due to mergers.",
            {("The change was due to what?", "mergers"), ("What was due to mergers?", "The change")},
        ),
        (
            "High doses lead to tremor, but low ones do good.",
            {("What leads to tremor?", "High doses"), ("High doses lead to what?", "tremor")},
        ),
        (
            "Old age may also cause loss of sight.",
            {("What may also cause loss of sight?", "Old age"), ("Old age may also cause what?", "loss of sight")},
        ),
        (
            "The infusion resulted in a fall of pressure.",
            {
                ("What resulted in a fall of pressure?", "The infusion"),
                ("The infusion resulted in what?", "a fall of pressure"),
            },
        ),
        (
            "The bank had lent too much. Therefore, it failed at last.",
            {
                ("What does the text take for the reason that it failed at last?", "The bank had lent too much"),
                ('What follows, by the text, from this: "The bank had lent too much."', "it failed at last"),
            },
        ),
    ],
)
def test_causes_are_asked_both_ways(sentence: str, pairs: set):
    assert mined(f"{FILLER} {sentence}", "cause") == pairs


@pytest.mark.parametrize(
    "sentence",
    [
        "The price did not rise because demand was high.",
        "The price was not high because of demand.",
        "This is because demand was high.",
        "The price rose partly because demand was high.",
        "The price rose because of demand, the bank said.",
        "Deaths due to cancer rose in that year.",
        "This leads to tremor in the hands.",
        "The drug that causes tremor was seen.",
        "Trials show the drug causes tremor.",
        "The main causes of tremor are known.",
        "The damage caused by floods was great.",
        "The drug does not cause tremor in mice.",
        "The test results in mice were very good.",
        "If the price rose because demand was high, it fell.",
        "Which drug leads to tremor in mice?",
    ],
)
def test_no_cause(sentence: str):
    assert mined(f"{FILLER} {sentence}", "cause") == set()


def test_therefore_needs_the_sentence_before_it():
    for before in ("", "Did it lend too much? ", f"{FILLER}\n\n"):
        assert mined(f"{before}Therefore, it failed at last.", "cause") == set()


def test_order_asks_for_the_first_of_two_or_three_unrepeated_beginnings():
    text = (
        "Stones lie there. Water runs over the grey stones of the hill all day. Stones lie there. Birds sing near it."
    )
    first, second = "Water runs over the grey stones of the", "Birds sing near it"
    found = mined(text, "order")
    assert found == {
        (f'Which sentence comes first, the one that begins "{first}" or "{second}"?', first),
        (f'Which sentence comes first, the one that begins "{second}" or "{first}"?', first),
    }
    assert mined("Stones lie over there.", "order") == set()
    many = " ".join(f"Number {word} lies here." for word in "one two three four five six".split())
    for question, answer in mined(many, "order", seeds=40):
        told = [part for part in question.split('"') if part.startswith("Number")]
        assert len(told) in (2, 3) and answer == min(told, key=many.index)


# --- any text ---------------------------------------------------------------------------------------------------------


def test_odd_input_gives_sound_exercises_or_none():
    none = [
        "",
        " \n\n ",
        "Word",
        "Word.",
        "12 34 56 78.",
        "1.",
        "...",
        "?!",
        "\u00a0.",
        "()[]",
        '"""."',
        "____ ____ ____ __.",
    ]
    for text in none:
        assert mine_exercises(text, 0, "p#0") == []
    long = "The " + "stone " * 5000 + "is a stone because stones lead to stones."
    run = "." * 20_000 + "a" + "e.g. " * 5000 + "\n" * 5000 + " " * 5000
    for text in (long, run, "Renin is an " * 2000, "A, a b, c. " * 500):
        assert_sound(text, mine_exercises(text, 0, "p#0"))
    signs = 'A b The is a, because . . ? ! " ( ) \n\n \n e.g. U.S. 3.5 – “ ” ’ Therefore, leads to due ____ \u00df \u0301'.split(
        " "
    )
    for seed in range(300):
        rng = random.Random(seed)
        text = rng.choice(("", " ")).join(rng.choices(signs, k=rng.randint(1, 120)))
        if rng.random() < 0.5:
            text = " ".join(rng.choices(signs, k=200)) + "."
        assert_sound(text, mine_exercises(text, seed, "p#0", before=text[::-1], after=text))


def test_exercises_depend_on_seed_and_passage_alone():
    text = practice_documents()[5]["text"]
    first = mine_exercises(text, 0, "p#0")
    assert first == mine_exercises(text, 0, "p#0")
    others = [mine_exercises(text, seed, name) for seed in range(5) for name in ("p#0", "p#1")]
    assert len({tuple(other) for other in others}) == 10
    code = "import sys; from ctxft.extras.reading import *; print(mine_exercises(sys.stdin.read(), 0, 'p#0'))"
    environment = {**os.environ, "PYTHONHASHSEED": "4321"}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == str(first)


def test_every_practice_document_has_exercises_of_its_own_words():
    kinds = set()
    for row in practice_documents():
        found = mine_exercises(row["text"], 0, row["id"])
        assert len(found) >= 3
        assert_sound(row["text"], found)
        kinds |= {exercise.kind for exercise in found}
    assert kinds == {"cloze", "cause", "order"}  # its sentences define nothing


@pytest.mark.parametrize(
    "source",
    ["openstax_anatomy_physiology", "openstax_principles_of_finance", "pubmed_abstracts_bc5cdr", "reuters21578_part"],
)
def test_most_passages_of_real_text_have_exercises(source: str, tokenizers):
    if not os.environ.get("CTXFT_REAL_DATA"):
        pytest.skip("CTXFT_REAL_DATA is not set: it names a folder with real texts")
    path = Path(os.environ["CTXFT_REAL_DATA"]) / "corpora" / f"{source}.jsonl"
    rows = [row for _, row in read_jsonl(path)]
    passages = []
    for row in random.Random(0).sample(rows, min(60, len(rows))):
        passages += cut(Document(row["id"], row["text"].strip()[:20_000], "here"), tokenizers["byte"], 500)
    found = [exercises_of(passages, number, 0) for number in range(len(passages))]
    for passage, exercises in zip(passages, found, strict=True):
        assert_sound(passage.text, exercises)
    kinds = {exercise.kind for exercises in found for exercise in exercises}
    covered = sum(map(bool, found)) / len(found)
    print(
        f"{source}: {covered:.1%} of {len(found)} passages have exercises, {sum(map(len, found)) / len(found):.1f} each"
    )
    assert covered > 0.8 and kinds == set(MOST)


# --- behind the text --------------------------------------------------------------------------------------------------

ASKED = [
    Exercise("cloze", f"Stones {GAP} there.", "lie"),
    Exercise("definition", "What is renin?", "an enzyme"),
    Exercise("cause", "What leads to tremor?", "high doses"),
    Exercise("order", 'Which sentence comes first, the one that begins "A" or "B"?', "A"),
]


def test_an_exercise_has_its_question_and_its_answer_on_a_line_each():
    for exercise in ASKED:
        empty, block = exercise_text(exercise).split("\n\n")
        question, answer = block.split("\n")
        assert empty == "" and question.startswith("Question: ") and question.endswith(exercise.question)
        assert answer == f"Answer: {exercise.answer}"
    leads = {exercise_text(Exercise("cause", f"What is {n}?", "a")).partition("What")[0] for n in range(30)}
    assert len(leads) > 1


@pytest.mark.parametrize("kind", ["byte", "metaspace"])
def test_rows_learn_text_and_exercises_and_end_where_the_document_ends(tokenizers, text_of, kind: str):
    tokenizer = tokenizers[kind]
    special = special_tokens(tokenizer)
    passages = cut(Document("d", text_of(3, 40), "here"), tokenizer, 60) + cut(
        Document("e", text_of(4, 9), "here"), tokenizer, 60
    )
    window, after, dropped = 160, [], 0
    for number, passage in enumerate(passages):
        exercises = exercises_of(passages, number, 0)
        pieces = [exercise_text(exercise) for exercise in exercises]
        kept, ids = fitting_pieces(tokenizer, pieces, window - 1 - len(passage.ids) - passage.last)
        left = len(exercises) - len(kept)
        assert list(kept) == pieces[: len(kept)] and ids == encode_text(tokenizer, "".join(kept))[0]
        after.append(ids)
        dropped += left
    assert dropped > 0 and any(after)
    rows = Rows(passages, [()] * len(passages), special, after=after)
    for row, passage, ids in zip(rows, passages, after, strict=True):
        text = [*passage.ids, *ids, *([special.eos] if passage.last else [])]
        assert row == {"input_ids": [special.start, *text], "labels": [IGNORE_INDEX, *text]}
        assert row == build_row(passage, (), special, after=ids) and len(text) < window
    assert list(rows.text_targets) == [len(passage.ids) + passage.last for passage in passages]
    assert rows.targets == [sum(label != IGNORE_INDEX for label in row["labels"]) for row in rows]
    assert rows.lengths == [len(row["input_ids"]) for row in rows] and max(rows.lengths) <= window
    counts = arm_tokens(rows)
    assert counts["prompt tokens"] == 0 and counts["target tokens"] == sum(rows.targets)
    plain = Rows(passages, [()] * len(passages), special)
    assert [a - b for a, b in zip(rows.targets, plain.targets, strict=True)] == [len(ids) for ids in after]


def test_without_room_a_row_has_no_exercises(tokenizers):
    assert fitting_pieces(tokenizers["byte"], [exercise_text(one) for one in ASKED], 3) == ([], [])
    assert fitting_pieces(tokenizers["byte"], [], 100) == ([], [])


def test_neighbours_of_the_same_document_tell_what_is_half(tokenizers):
    tokenizer = tokenizers["byte"]
    text = "Grey stones lay about near the cold water and Peter saw them there. They were wet."
    pieces = cut(Document("d", text, "here"), tokenizer, len(encode_text(tokenizer, text[:45])[0]))
    assert [piece.text.strip()[:5] for piece in pieces] == ["Grey ", "Peter", "They "]
    assert mine_exercises(pieces[1].text, 0, "d#1") != []  # it looks like a whole sentence
    other = cut(Document("other", "and it was so", "here"), tokenizer, 100)
    assert [exercises_of([*other, *pieces], number, 0) for number in range(4)] == [[], [], [], []]
    assert exercises_of([other[0], pieces[0], other[0], pieces[1]], 3, 0) != []  # another document tells nothing


@pytest.mark.parametrize(
    "sentence",
    [
        "The rise in pressure is due to this.",
        "Because of it, the pressure in the artery rises.",
        "The pressure in the artery rises because of it.",
        "The rise in blood pressure may lead to this.",
        "No artery carries air into the lungs because air is light.",
    ],
)
def test_a_cause_or_effect_that_says_nothing_is_not_asked_about(sentence):
    reading = Reading(sentence, [[sentence]])
    assert not [exercise for seed in range(8) for exercise in causes(reading, random.Random(seed))]
    whole = (
        sentence.replace(" this.", " a blocked valve.").replace("of it", "of a blocked valve").replace("No ", "The ")
    )
    assert {e.kind for seed in range(8) for e in causes(Reading(whole, [[whole]]), random.Random(seed))} == {"cause"}
