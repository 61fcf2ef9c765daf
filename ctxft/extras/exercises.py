"""A passage's text flows in; exercises mined from it flow out: questions whose answers stand in that very text.

    text -> whole sentences -> Exercise(kind, question, answer), a few of each kind, in an order drawn by seed and passage
         -> "\\n\\nQuestion: ...\\nAnswer: ..." behind the text, as many as fit

To train on a text followed by exercises about it is the method of AdaptLLM (Cheng et al., *Adapting Large Language Models
via Reading Comprehension*, ICLR 2024, arXiv 2309.09530), a baseline of contextual fine-tuning. Patterns and wording are ours.
No model takes part and nothing is invented: an answer is a piece of the passage, word for word (a line break is a space).

    cloze        a sentence with its rarest word blanked             -> the word
    definition   "X is a ...", "X, a ..., does", "X refers to ..."   -> what X is
    cause        "E because C", "C leads to E", "Therefore, E" ...   -> the cause, or the effect
    order        the beginnings of two or three sentences, shuffled  -> the one that comes first
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ctxft.data.passages import Passage
from ctxft.extras.mining import Exercise, Reading, causes, clozes, definitions, orders
from ctxft.extras.sentences import in_pairs, sentences
from ctxft.storage import seeded

RULES = {"cloze": clozes, "definition": definitions, "cause": causes, "order": orders}
MOST = {"cloze": 2, "definition": 2, "cause": 2, "order": 1}  # exercises of each kind about one passage
ANSWER_WORDS = range(1, 41)

LAYOUTS = {
    "cloze": ("Which word is missing? {}", "Fill the gap with a word of the text: {}", "Complete this statement: {}"),
    "definition": ("{}", "Say it as the text does. {}", "Go back to the text. {}"),
    "cause": ("{}", "Think of cause and effect. {}", "Go by the text. {}"),
    "order": ("{}", "Recall the course of the text. {}", "Mind the order. {}"),
}


def mine_exercises(text: str, seed: int, passage_id: str, before: str = "", after: str = "") -> list[Exercise]:
    """Mine a passage for exercises, at most ``MOST`` of a kind.

    What is found depends on the arguments alone: the seed and the passage id decide which exercises are taken where a rule finds
    many, which way a causal sentence is asked, and the order. So a cut from the end leaves out no kind more than another.

    Args:
        text: the passage.
        seed: of the run.
        passage_id: the passage's id.
        before: what stands before the passage in its document; "" if the document begins here.
        after: what stands behind it; "" if the document ends here.

    Returns:
        The exercises; none where the passage has no sentence to ask about.

    Example:
        >>> text = "Renin is an enzyme of the kidney. Low pressure leads to its release."
        >>> [exercise.answer for exercise in mine_exercises(text, 0, "p#0") if exercise.kind == "definition"]
        ['an enzyme of the kidney']
    """
    reading = Reading(" ".join(text.split()), sentences(text, before, after))
    random = seeded("exercises", seed, passage_id)
    found = []
    for kind, rule in RULES.items():
        mined = [each for each in dict.fromkeys(rule(reading, random)) if _is_sound(each.answer)]
        found += random.sample(mined, min(MOST[kind], len(mined)))
    random.shuffle(found)
    return found


def _is_sound(answer: str) -> bool:
    return len(answer.split()) in ANSWER_WORDS and in_pairs(answer)


def exercises_of(passages: Sequence[Passage], seed: int) -> Iterator[list[Exercise]]:
    """Yield the exercises of each passage, whose neighbours tell which sentences a cut has left half.

    Args:
        passages: of whole documents, in order, as ``passages_of`` returns them.
        seed: of the run.

    Example:
        >>> rows = list(exercises_of(passages, seed=0))  # doctest: +SKIP
        >>> len(rows) == len(passages)  # doctest: +SKIP
        True
    """
    for number, passage in enumerate(passages):
        around = [passages[place] if 0 <= place < len(passages) else None for place in (number - 1, number + 1)]
        before, after = (other.text if other and other.document == passage.document else "" for other in around)
        yield mine_exercises(passage.text, seed, passage.id, before, after)


def exercises_text(exercises: Sequence[Exercise], fits: Callable[[str], bool] | None = None) -> tuple[str, int]:
    """Lay exercises out as they stand behind their passage, dropping from the end what does not fit.

    Args:
        exercises: from ``mine_exercises``.
        fits: tells whether a text as a whole is short enough; None takes all.

    Returns:
        (text, which begins with an empty line, or "" if nothing is left; how many exercises were dropped).

    Example:
        >>> exercises_text([Exercise("definition", "What is renin?", "an enzyme")], lambda text: len(text) < 10)
        ('', 1)
    """
    laid = []
    for exercise in exercises:
        layout = seeded("layout", exercise.question).choice(LAYOUTS[exercise.kind])
        laid.append(f"\n\nQuestion: {layout.format(exercise.question)}\nAnswer: {exercise.answer}")
    while laid and fits is not None and not fits("".join(laid)):
        laid.pop()
    return "".join(laid), len(exercises) - len(laid)
