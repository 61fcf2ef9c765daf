"""Read instructions with answers, and build training rows whose targets are the answers alone.

{"prompt", "response"} or {"instruction", "input", "output"} or {"messages": [{"role", "content"}, ...]}
    -> the tokenizer's chat template where there is one, else "Question: ...\nAnswer: ..." -> ids, labels
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ctxft.data.chat import encode_rendered, rendered
from ctxft.data.rows import IGNORE_INDEX, special_tokens
from ctxft.data.tables import check_id, hub_table, read_table
from ctxft.models import encode_text, resolve_revision
from ctxft.storage import InputError
from ctxft.world.exams import practice_instructions

PRACTICE = "practice"
WHERE_TO_PUT = "download it elsewhere and give a jsonl file as ift.source"
SHAPES = "prompt and response, or instruction (input) and output, or messages"


@dataclass(frozen=True)
class Instruction:
    """A conversation: (role, content) of each message; the assistant's are the answers. ``where`` is for messages to users."""

    id: str
    messages: tuple[tuple[str, str], ...]
    where: str


def read_instructions(
    source: str, split: str = "train", revision: str | None = None, limit: int | None = None
) -> Iterator[Instruction]:
    """Yield the instructions of a source, checked one by one.

    Args:
        source: "practice", the path of a jsonl file, or a hub data set id.
        split: of a hub data set.
        revision: branch, tag or commit on the hub.
        limit: at most this many.

    Raises:
        InputError: the source is not there, a record has none of the known shapes, or an id comes twice.
    """
    seen: set[str] = set()
    for number, (where, row) in enumerate(_records(source, split, revision)):
        if number == limit:
            return
        yield _instruction(row, where, check_id(row.get("id", number + 1), where, seen))


def _records(source: str, split: str, revision: str | None) -> Iterator[tuple[str, dict]]:
    if source == PRACTICE:
        return ((f"practice world, {row['id']}", row) for row in practice_instructions())
    if Path(source).suffix == ".jsonl":
        rows = read_table(Path(source))
    else:
        rows = hub_table(source, None, split, resolve_revision(source, "dataset", revision, WHERE_TO_PUT), WHERE_TO_PUT)
    return ((where, row) for _, where, row in rows)


def _instruction(row: dict, where: str, identity: str) -> Instruction:
    messages: list[tuple[Any, Any]]
    if isinstance(row.get("messages"), list):
        parts = [message if isinstance(message, dict) else {} for message in row["messages"]]
        messages = [(message.get("role"), message.get("content")) for message in parts]
    elif "prompt" in row and "response" in row:
        messages = [("user", row["prompt"]), ("assistant", row["response"])]
    elif "instruction" in row and "output" in row:
        parts = [row["instruction"], *([row["input"]] if row.get("input") else [])]
        question = "\n\n".join(parts) if all(isinstance(part, str) for part in parts) else None
        messages = [("user", question), ("assistant", row["output"])]
    else:
        raise InputError(f"{where}: an instruction needs {SHAPES}; found the keys {', '.join(map(str, row))}.")
    good = all(isinstance(text, str) and text.strip() for pair in messages for text in pair)
    if not good or not messages or messages[-1][0] != "assistant" or messages[0][0] == "assistant":
        raise InputError(
            f"{where} (id '{identity}'): messages need a role and a text that is not empty, and the last is the assistant's."
        )
    return Instruction(identity, tuple(messages), where)


def _rendered(instruction: Instruction, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """Return the conversation as one text and where its answers are (characters)."""
    if not tokenizer.chat_template:
        if len(instruction.messages) != 2:
            raise InputError(
                f"{instruction.where}: the tokenizer has no chat template, so an instruction is one question with one "
                f"answer; found {len(instruction.messages)} messages."
            )
        (_, question), (_, answer) = instruction.messages
        before = f"Question: {question.strip()}\nAnswer:"
        return f"{before} {answer.strip()}", [(len(before), len(before) + 1 + len(answer.strip()))]
    turns = [{"role": role, "content": content} for role, content in instruction.messages]
    spans, text = [], ""
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = rendered(tokenizer, turns[:number], answer=True)
        after = rendered(tokenizer, turns[: number + 1], answer=False)
        if not before.startswith(text) or not after.startswith(before):
            raise InputError(
                f"{instruction.where}: the chat template changes what is before an answer, so answers cannot be told from "
                "questions: give another template, or single questions."
            )
        spans.append((len(before), len(after)))
        text = after
    return text, spans


def instruction_row(instruction: Instruction, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Build the training row of an instruction: only the assistant's answers are targets.

    Without a chat template the row is BOS, "Question: ...\\nAnswer: ..." as benchmarks are formatted, EOS. With one it
    is what the template writes; control tokens come from the template alone, and a text that spells one stays text.

    Args:
        instruction: the conversation.
        tokenizer: of the model.

    Returns:
        ``input_ids`` and ``labels``, lists of equal length.

    Raises:
        InputError: the template cannot be used; file and line are named.

    Example:
        >>> from ctxft.models import load_tokenizer
        >>> why = Instruction("1", (("user", "Why?"), ("assistant", "so")), "here")
        >>> row = instruction_row(why, load_tokenizer("practice-blind"))
        >>> len(row["input_ids"]) == len(row["labels"])
        True
    """
    text, spans = _rendered(instruction, tokenizer)
    special = special_tokens(tokenizer)
    if not tokenizer.chat_template:
        ids, starts = encode_text(tokenizer, text)
        ids, starts = [special.start, *ids, special.eos], [0, *starts, spans[-1][1] - 1]
    else:
        ids, starts = encode_rendered(tokenizer, [text])[0]
    answers = [any(begin <= start < end for begin, end in spans) for start in starts]
    return {"input_ids": ids, "labels": [i if answer else IGNORE_INDEX for i, answer in zip(ids, answers, strict=True)]}


def instruction_rows(
    instructions: Iterator[Instruction], tokenizer: PreTrainedTokenizerBase, max_length: int, counts: Counter
) -> Iterator[dict]:
    """Yield a row with its ``id`` and ``text`` for each instruction that fits the window; the others are counted.

    Args:
        instructions: the instructions.
        tokenizer: of the model.
        max_length: tokens a row may have.
        counts: counts "instructions read", "instructions kept", "instructions longer than the window" and their tokens.
    """
    for instruction in instructions:
        row = instruction_row(instruction, tokenizer)
        fate = "kept" if len(row["input_ids"]) <= max_length else "longer than the window"
        for name in ("read", fate):
            counts[f"instructions {name}"] += 1
            counts[f"instruction tokens {name}"] += len(row["input_ids"])
        if fate == "kept":
            yield {"id": instruction.id, **row, "text": "\n".join(content for _, content in instruction.messages)}
