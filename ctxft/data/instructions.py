"""Read instructions with answers, and build training rows whose targets are the answers alone.

{"prompt", "response"} or {"instruction", "input", "output"} or {"messages": [{"role", "content"}, ...]}
    -> the tokenizer's chat template where there is one, else "Question: ...\nAnswer: ..." -> ids, labels
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ctxft.data.chat import encode_rendered, rendered_answers
from ctxft.data.rows import IGNORE_INDEX, special_tokens
from ctxft.data.tables import id_of, records_of
from ctxft.models import encode_text
from ctxft.storage import InputError, shown
from ctxft.world.exams import practice_instructions

PRACTICE = "practice"
WHERE_TO_PUT = "download it elsewhere and give the folder or file as ift.source"
# Where a record has what: a conversation, or a question (the first of its names that is there, then what belongs to it) and
# its answer. The names are those of TRL, OpenAI, ShareGPT, Alpaca, Dolly, OpenOrca and LLaMA-Factory.
CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "input")
CONTEXTS = ("input", "context")
ANSWERS = ("output", "response", "completion", "answer")
SYSTEMS = ("system", "system_prompt")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "bard", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
SHAPES = (
    "messages or conversations, or a question (instruction, prompt, question, query or input) with its answer (output, "
    "response, completion or answer)"
)
TOOLS = "tool calls are not trained on: leave such conversations out"
PAIR = (
    "preference pairs are not trained on: keep what was chosen, as 'completion' (a whole conversation: as 'messages')"
)
REASONING = "reasoning apart from the content is not read: write it into the content as the model's template does"
REFUSED = {
    **dict.fromkeys(("tools", "tool_calls", "function_call", "functions"), TOOLS),
    **dict.fromkeys(("chosen", "rejected"), PAIR),
    **dict.fromkeys(("reasoning_content", "thinking"), REASONING),
}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")


@dataclass(frozen=True)
class Instruction:
    """A conversation: (role, content) of each message. ``where`` is for messages to users.

    ``targets`` are the numbers (from 0) of the answers that are learned; None stands for all messages of the assistant.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    where: str
    targets: tuple[int, ...] | None = None

    def answers(self) -> tuple[int, ...]:
        """Return the numbers of the messages that are learned."""
        if self.targets is not None:
            return self.targets
        return tuple(number for number, (role, _) in enumerate(self.messages) if role == "assistant")


Message = tuple[str, str, bool]  # (role, content, whether it is learned)


def read_instructions(
    source: str,
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
    subset: str | None = None,
) -> Iterator[Instruction]:
    """Yield the instructions of a source, checked one by one; the reference lists the shapes of records.

    An id that was there already gives way to file and line.

    Args:
        source: "practice", a file, a folder of files, or a hub data set.
        split, subset: of a data set.
        revision: branch, tag or commit on the hub.
        limit: at most this many.

    Raises:
        InputError: the source is not there, or a record has none of the known shapes; file and line are named.
    """
    seen: set[str] = set()
    for number, where, row in islice(_records(source, split, subset, revision), limit):
        yield _instruction(row, where, _identity(row, number, where, seen))


def _records(
    source: str, split: str, subset: str | None, revision: str | None
) -> Iterator[tuple[int | str, str, dict]]:
    if source == PRACTICE:
        return ((row["id"], f"practice world, {row['id']}", row) for row in practice_instructions())
    return records_of(source, split, subset, revision, WHERE_TO_PUT)


def _identity(row: dict, number: int | str, where: str, seen: set[str]) -> str:
    wanted = str(number) if row.get("id") is None else id_of(row["id"], where)
    place = Path(where).name  # "answers.jsonl, line 7"
    identity = next(i for i in chain([wanted, place], (f"{place}~{n}" for n in count(2))) if i not in seen)
    seen.add(identity)
    return identity


def _refuse(record: dict, where: str) -> None:
    """Raise InputError if a record or message holds what is not trained on."""
    if name := next((name for name in REFUSED if record.get(name)), None):
        raise InputError(f"{where}: '{name}': {REFUSED[name]}.")


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise InputError(f"{where}: a message is an object with role and content, found {shown(message)}.")
    _refuse(message, where)
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if role in TOOL_ROLES:
        raise InputError(f"{where}: role '{role}': {TOOLS}.")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise InputError(f"{where}: the role {shown(role)} is none of {', '.join(ROLES)}: rename it.")
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise InputError(f"{where}: the weight of a message is 0 or 1, found {shown(weight)}.")
    return ROLES[role.lower()], _text(content, where), weight != 0


def _text(content: Any, where: str) -> str:
    """Return a message's text, which may be in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"{where}: a message's content is text, found {shown(content)}.")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InputError(f"{where}: only content of type text is trained on, found {shown(part)}: leave it out.")
    return "".join(part["text"] for part in content)


def _only(row: dict, names: Sequence[str], what: str, where: str) -> str:
    """Return the one name of a record that is among names."""
    there = [name for name in names if name in row]
    if not there:
        raise InputError(f"{where}: an instruction needs {SHAPES}; found {', '.join(map(str, row)) or 'nothing'}.")
    if len(there) > 1:
        raise InputError(f"{where}: more than one {what} ({', '.join(there)}): leave all but one out.")
    return there[0]


def _messages(row: dict, where: str) -> Iterator[Message]:
    """Yield the messages of a record of any shape."""
    row = {name: value for name, value in row.items() if value is not None}  # as tables fill columns
    _refuse(row, where)
    if system := next((row[name] for name in SYSTEMS if row.get(name)), None):
        yield "system", _text(system, where), False
    if talk := next((name for name in CONVERSATIONS if isinstance(row.get(name), list)), None):
        yield from (_message(message, where) for message in row[talk])
        return
    questions = [name for name in QUESTIONS if name in row]
    if questions[-1:] == ["input"] and len(questions) > 1:
        questions.pop()  # what the question is about
    question, answer = _only(row, questions, "question", where), _only(row, ANSWERS, "answer", where)
    for pair in row.get("history") or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(f"{where}: history is a list of pairs of question and answer, found {shown(pair)}.")
        yield from ((role, _text(text, where), True) for role, text in zip(("user", "assistant"), pair, strict=True))
    if isinstance(row[question], list):  # TRL's prompt and completion as messages
        yield from ((role, text, False) for role, text, _ in (_message(message, where) for message in row[question]))
    else:
        parts = [row[question], *(row[name] for name in CONTEXTS if name != question and row.get(name))]
        yield "user", "\n\n".join(_text(part, where) for part in parts), False
    if isinstance(row[answer], list):
        yield from (_message(message, where) for message in row[answer])
    else:
        yield "assistant", _text(row[answer], where), True


def _instruction(row: dict, where: str, identity: str) -> Instruction:
    messages = list(_messages(row, where))
    roles = [role for role, _, _ in messages]
    talk = [role for role in roles if role != "system"]
    if talk[:1] != ["user"] or talk[-1:] != ["assistant"] or roles[-1] != "assistant":
        raise InputError(
            f"{where} (id '{identity}'): a conversation begins with a question and ends with an answer, found the roles "
            f"{', '.join(roles) or '(none)'}: leave out what comes before or after."
        )
    alone = roles.count("assistant") == 1  # then a record without an answer is counted; elsewhere it would break a talk
    for role, text, _ in messages:
        if not text.strip() and not (role == "system" or (role == "assistant" and alone)):
            raise InputError(f"{where} (id '{identity}'): a message of role {role} is empty: leave the record out.")
    targets = (
        n for n, (role, text, learned) in enumerate(messages) if role == "assistant" and learned and text.strip()
    )
    return Instruction(identity, tuple((role, text) for role, text, _ in messages), where, tuple(targets))


def _plain(instruction: Instruction) -> tuple[str, list[tuple[int, int]]]:
    """Return a question and its answer as benchmarks are formatted, and where the answer is (characters)."""
    if len(instruction.messages) != 2:
        raise InputError(
            f"the tokenizer has no chat template, so an instruction is one question with one answer; found the roles "
            f"{', '.join(role for role, _ in instruction.messages)}: take a model with a template, or single questions."
        )
    (_, question), (_, answer) = instruction.messages
    before = f"Question: {question.strip()}\nAnswer:"
    text = f"{before} {answer.strip()}"
    return text, [(len(before), len(text))] if instruction.answers() else []


def _encoded(instruction: Instruction, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list]:
    """Return token ids, the character at which each token starts, and where the answers are."""
    if tokenizer.chat_template:
        turns = [{"role": role, "content": content} for role, content in instruction.messages]
        text, spans = rendered_answers(tokenizer, turns, instruction.answers())
        return *encode_rendered(tokenizer, [text])[0], spans
    text, spans = _plain(instruction)
    special = special_tokens(tokenizer)
    ids, starts = encode_text(tokenizer, text)
    return [special.start, *ids, special.eos], [0, *starts, len(text) - 1], spans


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
    try:
        ids, starts, spans = _encoded(instruction, tokenizer)
    except InputError as error:
        raise InputError(f"{instruction.where}: {error}") from None
    edges = [edge for span in spans for edge in span]
    answers = [bisect_right(edges, start) % 2 for start in starts]
    return {"input_ids": ids, "labels": [i if answer else IGNORE_INDEX for i, answer in zip(ids, answers, strict=True)]}


def instruction_rows(
    instructions: Iterator[Instruction], tokenizer: PreTrainedTokenizerBase, max_length: int, counts: Counter
) -> Iterator[dict]:
    """Yield a row with its ``id`` and ``text`` for each instruction that fits the window and has a target; others are counted.

    Args:
        instructions: the instructions.
        tokenizer: of the model.
        max_length: tokens a row may have.
        counts: counts "instructions read", "instructions kept", "instructions longer than the window", "instructions without
            an answer to learn" and their tokens.
    """
    for instruction in instructions:
        row = instruction_row(instruction, tokenizer)
        fate = "kept" if len(row["input_ids"]) <= max_length else "longer than the window"
        if all(label == IGNORE_INDEX for label in row["labels"]):
            fate = "without an answer to learn"
        for name in ("read", fate):
            counts[f"instructions {name}"] += 1
            counts[f"instruction tokens {name}"] += len(row["input_ids"])
        if fate == "kept":
            yield {"id": instruction.id, **row, "text": "\n".join(content for _, content in instruction.messages)}
