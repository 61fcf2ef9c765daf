"""A training row and its tokenizer go in; its tokens as text and as HTML come out, and what it costs and breaks in words.

    input_ids + labels -> Part("prompt", learned=False, tokens), Part("text", learned=True, tokens), ... -> text, HTML

Neither needs a browser. What is learned is told by a word and a line beside the colour, so that nobody has to tell colours
apart, and every piece of a text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxft.leakage import NGRAM, grams_of, words_of
from ctxft.prompts.sets import LONGEST

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ctxft.data.passages import Passage

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a token decodes to that holds a part of a character only
INK = "#1a1a1a"  # on the light colours below, whatever the theme of the page
# Tints of Okabe and Ito's palette, and for each the bar at the side that says the same without colour.
COLORS = {"read": "#dedede", "learned": "#b5e2d4", "end": "#f9dfa5"}
BARS = {"read": "6px dotted #777777", "learned": "6px solid #007a58", "end": "6px double #8f6700"}
HATCH = "repeating-linear-gradient(45deg,#ffffff,#ffffff 4px,#999999 4px,#999999 5px)"
STYLE = (
    "<style>.ctxft-tokens{font-family:monospace;line-height:1.8;overflow-wrap:anywhere;margin:.15em 0 .6em;padding:2px 6px;"
    "width:fit-content;max-width:100%;box-sizing:border-box}"
    ".ctxft-tokens span{border:1px solid #00000030;border-radius:3px;padding:0 1px;margin-right:1px}</style>"
)


@dataclass(frozen=True)
class Part:
    """Tokens of a row that stand together and are treated alike.

    Attributes:
        name: "start", "prompt", "text", "exercises", "end" (EOS, where the document ends) or "padding".
        learned: whether they are targets.
        tokens: each token as text, spaces and line ends included.
    """

    name: str
    learned: bool
    tokens: tuple[str, ...]

    @property
    def look(self) -> str:
        """The key of ``COLORS`` and ``BARS``."""
        return "end" if self.name == "end" else "learned" if self.learned else "read"


def pieces_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return what each token adds to the text before it; a token with a part of a character keeps the tokenizer's name.

    Example:
        >>> from ctxft.models import load_tokenizer
        >>> tokenizer = load_tokenizer("practice-blind")
        >>> "".join(pieces_of(tokenizer("Tea is hot.")["input_ids"], tokenizer)).endswith("Tea is hot.")
        True
    """

    def decode(*some: int) -> str:
        return tokenizer.decode(list(some), clean_up_tokenization_spaces=False)

    found = []
    for place, token in enumerate(ids):
        before = decode(ids[place - 1]) if place else ""
        both = decode(ids[place - 1], token) if place else decode(token)  # alone, some tokens lose their space
        cut = BROKEN in before or BROKEN in both or not both.startswith(before)
        found.append(str(tokenizer.convert_ids_to_tokens(token)) if cut else both[len(before) :])
    return tuple(found)


def row_parts(
    row: Mapping[str, Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    eos: int,
    prompt: int | None = None,
    after: int = 0,
) -> list[Part]:
    """Take a training row apart.

    Args:
        row: ``input_ids`` and ``labels`` as ``examples.build_row`` returns them: a learned token is its own label.
        tokenizer: of the model.
        eos: token id of the end of a document.
        prompt: tokens of the prompt, where it is learned too (arm cft-learned); None counts those that are not learned.
        after: tokens of exercises behind the text.

    Returns:
        The parts that are not empty, in order.

    Example:
        >>> [part.name for part in row_parts(row, tokenizer, eos=2)]  # doctest: +SKIP
        ['start', 'prompt', 'text', 'end']
    """
    ids, labels = row["input_ids"], row["labels"]
    learned = [token == label for token, label in zip(ids, labels, strict=True)]
    size = len(ids) - (ids[-1] == eos and learned[-1])
    begin = 1 + (learned[1:].index(True) if prompt is None else prompt)
    ends = {"start": 1, "prompt": begin, "text": size - after, "exercises": size, "end": len(ids)}
    pieces, parts, place = pieces_of(ids, tokenizer), [], 0
    for name, end in ends.items():
        if end > place:
            parts.append(Part(name, learned[place], pieces[place:end]))
        place = end
    return parts


def count_parts(parts: Iterable[Part]) -> dict[str, int]:
    """Return how many tokens of a row are read, learned and prompt; padding is none of them.

    Example:
        >>> count_parts([Part("start", False, ("<s>",)), Part("text", True, ("Tea", " is"))])
        {'read': 3, 'learned': 2, 'prompt': 0}
    """
    counts = {"read": 0, "learned": 0, "prompt": 0}
    for part in parts:
        if part.name != "padding":
            counts["read"] += len(part.tokens)
            counts["learned"] += len(part.tokens) * part.learned
            counts["prompt"] += len(part.tokens) * (part.name == "prompt")
    return counts


def cost_text(parts: Iterable[Part]) -> str:
    """Return in a sentence how many tokens of a row are read and learned, and what share of it the prompt is."""
    counts = count_parts(parts)
    said = f"{counts['read']} tokens are read, {counts['learned']} of them learned; "
    if not counts["prompt"]:
        return said + "there is no prompt."
    return said + f"the prompt takes {counts['prompt']}, {counts['prompt'] / counts['read']:.0%} of what is read."


def row_text(parts: Iterable[Part]) -> str:
    """Return a row as text, a line for each part: its name, its tokens, whether they are learned, and the tokens apart.

    Example:
        >>> print(row_text([Part("text", True, ("Tea", " is"))]))
        text            2 learned  Tea|·is
    """
    lines = []
    for part in parts:
        shown = "|".join(map(_visible, part.tokens)) if part.name != "padding" else ""
        lines.append(f"{part.name:<12}{len(part.tokens):>5} {_fate(part):<8} {shown}".rstrip())
    return "\n".join(lines)


def row_html(parts: Iterable[Part]) -> str:
    """Return a row as HTML: for each part a caption in words and its tokens, each in a box of its own."""
    return STYLE + parts_html(parts)


def parts_html(parts: Iterable[Part]) -> str:
    """Return what ``row_html`` does without its style, for a page that holds many rows."""
    return "".join(map(_part_html, parts))


def _part_html(part: Part) -> str:
    caption = f"<b>{part.name}</b>: {len(part.tokens)} token{'s' * (len(part.tokens) != 1)}, {_fate(part)}"
    if part.name == "padding":
        return f'<div>{caption}<div class="ctxft-tokens" style="background:{HATCH};width:auto">\N{NO-BREAK SPACE}</div></div>'
    look = f"background:{COLORS[part.look]};color:{INK};border-left:{BARS[part.look]}"
    boxes = "<wbr>".join(f"<span>{html.escape(_visible(token))}</span>" for token in part.tokens)
    return f'<div>{caption}<div class="ctxft-tokens" style="{look}">{boxes}</div></div>'


def _fate(part: Part) -> str:
    return "not read" if part.name == "padding" else "learned" if part.learned else "read"


def _visible(piece: str) -> str:
    return "∅" if not piece else piece.replace(" ", "·").replace("\t", "→").replace("\n", "↵")


# --- a prompt of one's own --------------------------------------------------------------------------------------------


def can_be_read(text: str) -> bool:
    """Return whether a tokenizer can take a prompt: it holds something, and no half of a surrogate pair."""
    return bool(text.strip()) and not any("\ud800" <= character <= "\udfff" for character in text)


def check_prompt(text: str, passage: Passage, count: Callable[[str], int], window: int, least: int) -> list[str]:
    """Return what is wrong with a prompt before a passage, a sentence each; none where all is well.

    Args:
        text: the prompt.
        passage: the passage behind it.
        count: returns the tokens that a prompt takes, what stands around it included.
        window: tokens that a row may have.
        least: text tokens that the window must leave (``train.min_text_tokens``).

    Example:
        >>> check_prompt("  ", passage, len, window=96, least=32)  # doctest: +SKIP
        ['The prompt is empty: write what the model should do with the text.']
    """
    if not text.strip():
        return ["The prompt is empty: write what the model should do with the text."]
    if not can_be_read(text):
        return ["The prompt holds a lone surrogate, which is no character: type it again."]
    said, words = [], len(text.split())
    if words > LONGEST:
        said.append(f"The prompt has {words} words, but at most {LONGEST} are read in a prompt set: shorten it.")
    tokens = count(text)
    room = max(0, window - 2 - tokens)
    whole = 1 + tokens + passage.targets
    if room < least:
        said.append(
            f"The prompt takes {tokens} of {window} tokens and leaves {room} for text, but train.min_text_tokens is "
            f"{least}: shorten it, or raise train.max_length."
        )
    elif whole > window:
        said.append(
            f"Behind this prompt the passage takes {whole} tokens, more than the window of {window}: with it, all passages "
            "would be cut shorter."
        )
    if copied := set(grams_of(words_of(text))) & set(grams_of(words_of(passage.text))):
        found = " ".join(min(copied))
        said.append(f'The prompt copies {NGRAM} words of the passage ("{found}"): what it tells need not be learned.')
    return said
