"""Mine a passage for exercises: questions whose answers are in that very text, for arm reading.

    before | text | after -> paragraphs of whole sentences; half of one, left by a cut, is never used
         -> Exercise(kind, question, answer), a few of each kind, in an order that seed and passage decide
         -> "\\n\\nQuestion: ...\\nAnswer: ..." after the text, as many as fit

To train on a text followed by exercises about it is the method of AdaptLLM (Cheng et al., *Adapting Large Language Models
via Reading Comprehension*, ICLR 2024, arXiv 2309.09530), a baseline of contextual fine-tuning. Patterns and wording are ours.
No model takes part and nothing is invented: an answer is a piece of the passage, word for word (a line break is a space). The
rules would rather find nothing than ask nonsense: each states what it leaves alone.

    cloze        a sentence with its rarest word blanked             -> the word
    definition   "X is a ...", "X are the ..."                       -> what X is
    cause        "E because C", "C leads to E", "Therefore, E" ...   -> the cause, or the effect
    order        the beginnings of two or three sentences, shuffled  -> the one that comes first
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ctxft.storage import read_yaml, seeded

if TYPE_CHECKING:
    from ctxft.data.passages import Passage

GAP = "____"
SENTENCE_WORDS = range(4, 61)  # words of a sentence that a question may be about
BEGINNING = 8  # words by which an order exercise identifies a sentence
WORD = re.compile(r"[^\W_]+(?:-[^\W_]+|[\u2019'](?!s\b)[^\W_]+)*")

LISTS = read_yaml(Path(__file__).with_name("reading.yaml"))
WORDS = {name: frozenset(words.split()) for name, words in LISTS["words"].items()}
STOP_WORDS = WORDS["stop"]


# --- whole sentences --------------------------------------------------------------------------------------------------

CONTEXT = 300  # characters around a passage that are looked at

SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]\u201d\u2019]*(?=\s|$)")
PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*|\n(?=[ \t]*(?:[-*\u2022#|]|\d{1,3}[.)])\s)")
LIST_MARK = re.compile(r"\s*(?:(?:[-*\u2022#|]+|\d{1,3}[.)])\s+)?")
OPENING = "\"'([\u201c\u2018"
INITIALS = re.compile(r"[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]")
SENTENCE = re.compile(rf"[{re.escape(OPENING)}]*[^\W_].*\S\.[\"')\]\u201d\u2019]*")
# A full stop without a space after it: two sentences that run together, or an address.
RUN_ON = re.compile(r"[^\W\d_]{2}[.!?][A-Z][^\W\d_]|https?://")
# A short line without a stop before a line that begins with a capital may be a heading, or the middle of a sentence.
HEADING = re.compile(r"^.{0,40}[^\s.!?,;:](?=[ \t]*\n[ \t]*[A-Z])", re.MULTILINE)


def ends_sentence(text: str, start: int, end: re.Match, stop: int) -> bool:
    """Return whether a match of ``SENTENCE_END`` ends a sentence.

    It does not after "e.g.", "Fig." and the like, nor before a lower-case letter, nor where only a number precedes it
    ("2. The heart"). After an initial ("J.", "U.S.") and after what may come last ("Inc.", "etc.", "al.") it does only
    before a word that opens sentences and is no name ("The"), or at the paragraph's end.

    Args:
        text: the text.
        start: where the sentence begins.
        end: the match.
        stop: where the paragraph ends.
    """
    before = text[max(start, end.start() - 40) : end.start()].split()
    after = text[end.end() : min(stop, end.end() + 40)].split()
    if after and after[0].lstrip(OPENING)[:1].islower():
        return False
    if end.group()[0] != "." or not before:
        return True
    last = before[-1].lstrip(OPENING)
    if last.lower() in WORDS["never_last"] or (len(before) == 1 and last.isdecimal()):
        return False
    doubtful = last.lower() in WORDS["may_be_last"] or INITIALS.fullmatch(last)
    return not doubtful or not after or after[0] in WORDS["openers"]


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for end in PARAGRAPH_END.finditer(text):
        yield start, end.start()
        start = end.end()
    yield start, len(text)


def _pieces(text: str, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (begin, end, whether a sentence ends there) for a paragraph's sentences, and for what is left after them."""
    if mark := LIST_MARK.match(text, start, stop):
        start = mark.end()
    for end in SENTENCE_END.finditer(text, start, stop):
        if ends_sentence(text, start, end, stop):
            yield start, end.end(), True
            start = end.end()
            while start < stop and text[start].isspace():
                start += 1
    if start < stop:
        yield start, stop, False


def in_pairs(line: str) -> bool:
    """Return whether a piece of text closes every bracket and quotation that it opens."""
    pairs = ("()", "[]", "\u201c\u201d")
    return line.count('"') % 2 == 0 and all(line.count(one) == line.count(other) for one, other in pairs)


def _is_sentence(line: str) -> bool:
    begins_inside = line.lstrip(OPENING)[:1].islower()
    return bool(SENTENCE.fullmatch(line)) and not begins_inside and in_pairs(line) and not RUN_ON.search(line)


def sentences(text: str, before: str = "", after: str = "") -> list[list[str]]:
    """Split a passage into paragraphs of whole sentences; what is not a whole sentence becomes an empty string.

    A sentence is whole if it begins with an upper-case letter or a digit, ends with a full stop, and leaves no bracket or
    quotation open. Headings, questions, addresses and half sentences at the passage's ends are not. A line that begins with
    a list mark begins a paragraph; the mark is no part of the sentence.

    Args:
        text: the passage.
        before: what precedes it in its document; "" if the document begins here.
        after: what follows it; "" if the document ends here.

    Returns:
        For each paragraph its sentences in order, each on one line; "" keeps the place of what is not whole.

    Example:
        >>> sentences("of it. See Fig. 3 for J. Smith's data, e.g. 2.5 mg. Why? It en", after="ds.")
        [['', "See Fig. 3 for J. Smith's data, e.g. 2.5 mg.", '', '']]
    """
    full = before[-CONTEXT:] + text + after[:CONTEXT]
    first = min(len(before), CONTEXT)
    last = first + len(text)
    headings = [match.end() for match in HEADING.finditer(full)]
    paragraphs = []
    for begin, stop in _paragraphs(full):
        lines = []
        for start, end, ended in _pieces(full, begin, stop):
            if end <= first or start >= last:
                continue
            line = " ".join(full[start:end].split())
            inside = ended and first <= start and end <= last and not any(start < place < end for place in headings)
            lines.append(line if inside and _is_sentence(line) else "")
        paragraphs += [lines] if lines else []
    return paragraphs


# --- a passage as the rules read it -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exercise:
    """A question about a passage whose answer is in it.

    Args:
        kind: "cloze", "definition", "cause" or "order".
        question: on one line; a cloze is the sentence with ``GAP`` in it.
        answer: words of the passage, on one line.
    """

    kind: str
    question: str
    answer: str


class Reading:
    """A passage as the rules read it.

    Args:
        text: all of it.
        paragraphs: its whole sentences, as from ``sentences``.

    Attributes:
        text: on one line.
        spellings: its words as they are written.
        counts: how often it has each word, in lower case.
        sentences: those that a question may be about, each once.
    """

    def __init__(self, text: str, paragraphs: list[list[str]]) -> None:
        self.text, self.paragraphs = " ".join(text.split()), paragraphs
        words = WORD.findall(self.text)
        self.spellings, self.counts = set(words), Counter(map(str.lower, words))
        lines = (line for paragraph in paragraphs for line in paragraph)
        self.sentences = list(dict.fromkeys(x for x in lines if len(x.split()) in SENTENCE_WORDS and GAP[:2] not in x))

    def inside(self, phrase: str) -> str:
        """Return a sentence's first words as they are written inside a sentence, as far as the passage shows it."""
        first = WORD.match(phrase)
        if first and first.group()[1:] == first.group()[1:].lower():
            lower, name = first.group().lower(), phrase[first.end() : first.end() + 2].strip()[:1].isupper()
            if (lower in self.spellings and not name) or lower in STOP_WORDS - {"i"}:
                return phrase[0].lower() + phrase[1:]
        return phrase


# --- rules ------------------------------------------------------------------------------------------------------------


def clozes(reading: Reading, rng: Random) -> Iterator[Exercise]:
    """Blank in each sentence its rarest content word, by the passage's own counts.

    A content word has three letters in a row, is no stop word, and occurs in the sentence once. Among equally rare words the
    longest is taken, then the first.
    """
    for sentence in reading.sentences:
        matches = list(WORD.finditer(sentence))
        once = Counter(match.group().lower() for match in matches)
        terms = [
            match
            for match in matches
            if (word := match.group().lower()) not in STOP_WORDS and once[word] == 1 and re.search(r"[^\W\d_]{3}", word)
        ]
        if terms:
            term = min(terms, key=lambda match: (reading.counts[match.group().lower()], -len(match.group())))
            yield Exercise("cloze", f"{sentence[: term.start()]}{GAP}{sentence[term.end() :]}", term.group())


TERM = r"(?P<term>(?:(?:The|An?) )?[^\W_][^\s,;:()]*(?: [^\s,;:()]+){0,4}?(?: \([^()]{1,20}\))?)"
IS_A = re.compile(rf"{TERM} (?P<be>is|are) (?P<answer>(?:an? (?!bit|few|little|lot)|the |one of ).+)\.")


def _is_term(term: str) -> bool:
    """Return whether words can be the name of something: no pronoun, adverb or verb of being among them."""
    words = [word.lower() for word in re.sub(r"^(?:The|An?) | \(.*", "", term).split()]
    inner = [word for word in words[1:-1] if word not in ("of", "and", "the")]
    ends = {words[0], words[-1], *inner} if words else STOP_WORDS
    return not ends & STOP_WORDS and not set(words) & WORDS["no_terms"] and not words[0].endswith("ly")


def definitions(reading: Reading, rng: Random) -> Iterator[Exercise]:
    """Ask what a sentence's subject is: "X is a ...", "X are the ...".

    X is at the sentence's beginning and has at most five words, none of them a stop word but for "of", "and", "the" inside.
    What something *was* does not define it.
    """
    for sentence in reading.sentences:
        match = IS_A.fullmatch(sentence)
        if match and _is_term(match["term"]):
            question = f"What {match['be']} {reading.inside(match['term'])}?"
            yield Exercise("definition", question, _phrase(match["answer"]))


Both = tuple[tuple[str, str], tuple[str, str]]  # question and answer that ask for the cause, and for the effect
BECAUSE = re.compile(r"(?P<effect>[^;:]+?),? because (?P<of>of )?(?P<cause>[^;:]+)\.")
DUE = re.compile(
    r"(?P<effect>[^,;:]+?) (?P<be>is|are|was|were)(?: (?:also|largely|mainly|mostly|often|partly|primarily|probably|usually))?"
    r" due to (?P<cause>[^;:]+)\."
)
LEADS = re.compile(
    r"(?P<cause>[^,;:]+?) (?P<verb>(?:(?P<modal>can|could|may|might|will|would)(?: (?:also|eventually|often|sometimes))? )?"
    r"(?:causes?|caused|leads? to|led to|results? in|resulted in|gives? rise to|gave rise to)) (?P<effect>[^;:]+)\."
)
BECAUSE_FIRST = re.compile(r"Because (?P<of>of )?(?P<cause>[^,;:]+), (?P<effect>[^,;:]+)\.")
THEREFORE = re.compile(
    r"(?:Accordingly|As a consequence|As a result|Consequently|For this reason|Hence|Therefore|Thus), (?P<effect>.+)\."
)
# Where a phrase gives way to another statement.
NEXT = re.compile(r";|,? (?:although|but|whereas|while)\b|, (?:and|so) (?:he|it|she|there|they|this|we)\b")
NEGATED = re.compile(r"\bnot?\b|n[\u2019']t\b", re.IGNORECASE)


def _phrase(text: str) -> str:
    return NEXT.split(text)[0]


def _have_content(both: Both) -> bool:
    """Return whether cause and effect have a content word each: "this" or "because of it" leaves open what is meant."""
    return all(set(WORD.findall(answer.lower())) - STOP_WORDS for _, answer in both)


def _because(sentence: str) -> Both | None:
    """Read "E because C", "E because of C" and "Because C, E".

    Left alone are "E is not so because C", in which C may be no cause, "This is because C", "E, partly because C", "If E,
    because C" and "E because C, he said".
    """
    match = BECAUSE_FIRST.fullmatch(sentence) or BECAUSE.fullmatch(sentence)
    if not match or " because " in match["cause"] or len(match["effect"].split()) < 3:
        return None
    effect, cause = match["effect"], _phrase(match["cause"])
    if WORDS["reported"] & set(cause.split()) or cause.split()[0] in WORDS["open"] or not _is_statement(effect):
        return None
    asks_effect = f"What does the text say is so because {match['of'] or ''}{cause}?"
    return (f'What reason does the text give for this: "{effect}"?', cause), (asks_effect, effect)


def _is_statement(phrase: str) -> bool:
    words = phrase.lower().split()
    ends = words[-1] not in STOP_WORDS and not words[-1].endswith("ly")
    return words[0] not in WORDS["open"] and ends and not NEGATED.search(phrase)


def _due(sentence: str) -> Both | None:
    """Read "E is due to C". Without "is", "deaths due to C rose" would be taken for a cause with its verb."""
    match = DUE.fullmatch(sentence)
    if not match or not _is_subject(match["effect"]):
        return None
    effect, cause = match["effect"], _phrase(match["cause"])
    return (f"{effect} {match['be']} due to what?", cause), (f"What {match['be']} due to {cause}?", effect)


def _leads(sentence: str) -> Both | None:
    """Read "C causes E", "C leads to E", "C results in E", "C gives rise to E", in any tense and with "may", "can" ...

    "cause" and "result in" may be nouns, and count as verbs behind "may", "can" ... alone; so may "results in", where another
    verb follows ("The test results in mice were good").
    """
    match = LEADS.fullmatch(sentence)
    if not match or not _is_subject(match["cause"]):
        return None
    verb, effect = match["verb"], _phrase(match["effect"])
    if not match["modal"] and verb in ("cause", "result in"):
        return None
    if verb == "results in" and (WORDS["verbs"] | WORDS["reported"]) & set(effect.split()):
        return None
    if verb.startswith("cause") and effect.split()[0] in WORDS["no_object"]:
        return None
    singular = {"lead to": "leads to", "give rise to": "gives rise to"}.get(verb, verb)
    return (f"What {singular} {effect}?", match["cause"]), (f"{match['cause']} {verb} what?", effect)


def _is_subject(phrase: str) -> bool:
    """Return whether words can be a sentence's subject: no pronoun alone, no clause, no preposition first."""
    words = phrase.lower().split()
    first = words[0] in WORDS["starts"] or words[0] not in STOP_WORDS
    return (
        first
        and words[-1] not in STOP_WORDS
        and not (WORDS["reported"] | {"that", "which", "who", "not", "no"}) & set(words)
    )


def _therefore(previous: str, sentence: str) -> Both | None:
    """Read "Therefore, E" with the sentence before it in the paragraph as the cause; also "Thus,", "As a result," ..."""
    match = THEREFORE.fullmatch(sentence)
    if not match or not previous.endswith("."):
        return None
    asks_cause = f"What does the text take for the reason that {match['effect']}?"
    return (asks_cause, previous[:-1]), (f'What follows, by the text, from this: "{previous}"', match["effect"])


def causes(reading: Reading, rng: Random) -> Iterator[Exercise]:
    """Ask one thing about each causal sentence, at random: the cause from the effect, or the effect from the cause."""
    for lines in reading.paragraphs:
        for previous, sentence in zip(["", *lines], lines, strict=False):
            if sentence not in reading.sentences:
                continue
            direction = 0 if rng.random() < 0.5 else 1
            mined = [_because(sentence), _due(sentence), _leads(sentence), _therefore(previous, sentence)]
            yield from (Exercise("cause", *both[direction]) for both in mined if both and _have_content(both))


def orders(reading: Reading, rng: Random) -> Iterator[Exercise]:
    """Ask which of two or three sentences comes first, identified by their beginnings, which occur in the passage once each."""
    heads = [" ".join(sentence.split()[:BEGINNING]).rstrip(".") for sentence in reading.sentences]
    heads = [head for head in heads if reading.text.count(head) == 1]
    if len(heads) > 1:
        places = sorted(rng.sample(range(len(heads)), min(len(heads), rng.choice((2, 3)))))
        shuffled = [f'"{heads[place]}"' for place in rng.sample(places, len(places))]
        choices = f"{', '.join(shuffled[:-1])} or {shuffled[-1]}"
        yield Exercise("order", f"Which sentence comes first, the one that begins {choices}?", heads[places[0]])


# --- a passage --------------------------------------------------------------------------------------------------------

RULES = {"cloze": clozes, "definition": definitions, "cause": causes, "order": orders}
MOST = {"cloze": 2, "definition": 2, "cause": 2, "order": 1}  # exercises of each kind about one passage
ANSWER_WORDS = range(1, 41)


def mine_exercises(text: str, seed: int, passage_id: str, before: str = "", after: str = "") -> list[Exercise]:
    """Mine a passage for exercises, at most ``MOST`` of a kind.

    The result depends on the arguments alone: the seed and the passage id decide which exercises are taken where a rule finds
    many, which way a causal sentence is asked, and the order. So a cut from the end favors no kind.

    Args:
        text: the passage.
        seed: of the run.
        passage_id: the passage's id.
        before: what precedes the passage in its document; "" if the document begins here.
        after: what follows it; "" if the document ends here.

    Returns:
        The exercises; none where the passage has no sentence to ask about.

    Example:
        >>> text = "Renin is an enzyme of the kidney. Low pressure leads to its release."
        >>> [exercise.answer for exercise in mine_exercises(text, 0, "p#0") if exercise.kind == "definition"]
        ['an enzyme of the kidney']
    """
    reading = Reading(text, sentences(text, before, after))
    random = seeded("exercises", seed, passage_id)
    exercises = []
    for kind, rule in RULES.items():
        mined = [one for one in dict.fromkeys(rule(reading, random)) if len(one.answer.split()) in ANSWER_WORDS]
        mined = [one for one in mined if in_pairs(one.answer)]
        exercises += random.sample(mined, min(MOST[kind], len(mined)))
    random.shuffle(exercises)
    return exercises


def exercises_of(passages: Sequence[Passage], number: int, seed: int) -> list[Exercise]:
    """Return the exercises of a passage, whose neighbors show which sentences a cut has left half.

    Args:
        passages: of whole documents, in order.
        number: of the passage, from 0.
        seed: of the run.
    """
    passage = passages[number]
    around = [passages[place] if 0 <= place < len(passages) else None for place in (number - 1, number + 1)]
    near = [other and other.document == passage.document and abs(other.index - passage.index) == 1 for other in around]
    before, after = (other.text if other and touches else "" for other, touches in zip(around, near, strict=True))
    return mine_exercises(passage.text, seed, passage.id, before, after)


def exercise_text(exercise: Exercise) -> str:
    """Format an exercise as it follows its passage.

    Example:
        >>> exercise_text(Exercise("definition", "What is renin?", "an enzyme"))[-18:]
        '\\nAnswer: an enzyme'
    """
    layout = seeded("layout", exercise.question).choice(LISTS["layouts"][exercise.kind])
    return f"\n\nQuestion: {layout.format(exercise.question)}\nAnswer: {exercise.answer}"
