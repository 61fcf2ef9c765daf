"""A passage's text flows in, with what stands around it; its whole sentences flow out, paragraph by paragraph.

    before | text | after -> paragraphs -> sentences that lie in the text from their first letter to their full stop

A cut may leave half a sentence at either end of a passage: such a half is never given out as a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CONTEXT = 300  # characters around a passage that are looked at

# After these a full stop does not end a sentence.
NEVER_LAST = frozenset(
    "approx cf ch dr e.g eq eqs fig figs gen gov i.e mr mrs ms p pp prof ref refs rep sec sen st tab vol vs".split()
)
# After these it may; so it may after an initial, or after letters with stops between them ("U.S.").
MAY_BE_LAST = frozenset(
    "al apr aug ave bros ca co corp cos dec dept etc feb inc jan jr ltd mt no nos nov oct sept sr univ".split()
)
# Words that open a sentence and are no names.
OPENERS = frozenset(
    """A After Although An And As At Because But By Each For From He Here However If In It Its Many Most No On Our She Since
    Some Such That The Their There These They This Those Thus To Two We What When Where While With You""".split()
)

SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]\u201d\u2019]*(?=\s|$)")
PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*|\n(?=[ \t]*(?:[-*\u2022#|]|\d{1,3}[.)])\s)")
LIST_MARK = re.compile(r"\s*(?:(?:[-*\u2022#|]+|\d{1,3}[.)])\s+)?")
OPENING = "\"'([\u201c\u2018"
INITIALS = re.compile(r"[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]")
WHOLE = re.compile(rf"[{re.escape(OPENING)}]*[^\W_].*\S\.[\"')\]\u201d\u2019]*")
# A full stop without a space behind it: two sentences that run together, or an address.
RUN_ON = re.compile(r"[^\W\d_]{2}[.!?][A-Z][^\W\d_]|https?://")
# A short line without a stop before a line that begins with a capital may be a heading, or the middle of a sentence.
HEADING = re.compile(r"^.{0,40}[^\s.!?,;:](?=[ \t]*\n[ \t]*[A-Z])", re.MULTILINE)


def ends_sentence(text: str, start: int, end: re.Match, stop: int) -> bool:
    """Return whether a match of ``SENTENCE_END`` ends a sentence.

    It does not after "e.g.", "Fig." and the like, nor before a lower-case letter, nor where only a number stands before it
    ("2. The heart"). After an initial ("J.", "U.S.") and after what may stand last ("Inc.", "etc.", "al.") it does only
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
    if last.lower() in NEVER_LAST or (len(before) == 1 and last.isdecimal()):
        return False
    doubtful = last.lower() in MAY_BE_LAST or INITIALS.fullmatch(last)
    return not doubtful or not after or after[0] in OPENERS


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for end in PARAGRAPH_END.finditer(text):
        yield start, end.start()
        start = end.end()
    yield start, len(text)


def _pieces(text: str, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (begin, end, whether a sentence ends there) for a paragraph's sentences, and for what is left behind them."""
    start = LIST_MARK.match(text, start, stop).end()
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


def _is_whole(line: str) -> bool:
    begins_inside = line.lstrip(OPENING)[:1].islower()
    return bool(WHOLE.fullmatch(line)) and not begins_inside and in_pairs(line) and not RUN_ON.search(line)


def sentences(text: str, before: str = "", after: str = "") -> list[list[str]]:
    """Split a passage into paragraphs of whole sentences; what is not a whole sentence becomes an empty string.

    A sentence is whole if it begins with an upper-case letter or a digit, ends with a full stop, and leaves no bracket or
    quotation open. Headings, questions, addresses and half sentences at the passage's ends are not. A line that begins with
    a list mark begins a paragraph; the mark is no part of the sentence.

    Args:
        text: the passage.
        before: what stands before it in its document; "" if the document begins here.
        after: what stands behind it; "" if the document ends here.

    Returns:
        For each paragraph its sentences in order, each on one line; "" keeps the place of what is not whole.

    Example:
        >>> sentences("of it. See Fig. 3 for J. Smith's data, e.g. 2.5 mg. Why? It en", after="ds.")
        [['', "See Fig. 3 for J. Smith's data, e.g. 2.5 mg.", '', '']]
    """
    tail = before[-CONTEXT:]
    full = tail + text + after[:CONTEXT]
    first, last = len(tail), len(tail) + len(text)
    headings = [match.end() for match in HEADING.finditer(full)]
    found = []
    for begin, stop in _paragraphs(full):
        lines = []
        for start, end, ended in _pieces(full, begin, stop):
            if end <= first or start >= last:
                continue
            line = " ".join(full[start:end].split())
            inside = ended and first <= start and end <= last and not any(start < place < end for place in headings)
            lines.append(line if inside and _is_whole(line) else "")
        found += [lines] if lines else []
    return found
