"""Replies of a server flow into a file as they arrive; a later process finds them there and asks for none of them twice.

A line is one reply: the id of what was asked, a key of the whole request, the text, the tokens, a checksum. A last line that
a kill cut in half is cut off. Failed requests are not kept, so they are asked again.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from ctxft.runtime import InputError, parse_json
from ctxft.seals import holds, sealed
from ctxft.server.client import Reply

FIELDS = {"id": str, "key": str, "text": str, "tokens_in": int | None, "tokens_out": int | None, "cut": bool}


class Answers:
    """The replies that one server gave, by id and key. May be shared by threads.

    Args:
        path: the file; its folder is made, and the file with the first reply.

    Raises:
        InputError: a line is none of this file's; file and line are named.

    Example:
        >>> answers = Answers(folder / "answers.jsonl")  # doctest: +SKIP
        >>> answers.add("medqa/12", key, server.chat(messages, 9))  # doctest: +SKIP
        >>> answers.get("medqa/12", key).text  # doctest: +SKIP
        'B'
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._replies: dict[tuple[str, str], Reply] = {}
        self._whole = 0  # bytes of whole lines
        for number, line in enumerate(self._lines(), start=1):
            row = parse_json(line, f"{self.path}, line {number}", halves=True)
            good = isinstance(row, dict) and all(isinstance(row.get(k), kind) for k, kind in FIELDS.items())
            if not good or not holds(row):
                raise InputError(
                    f"{self.path}, line {number}: not a reply of a server, or changed since: mend or remove the line."
                )
            reply = Reply(row["text"], row["tokens_in"], row["tokens_out"], row["cut"])
            self._replies[row["id"], row["key"]] = reply

    def __len__(self) -> int:
        """Return how many replies there are."""
        return len(self._replies)

    def _lines(self) -> list[str]:
        content = self.path.read_bytes() if self.path.exists() else b""
        self._whole = content.rfind(b"\n") + 1
        return content[: self._whole].decode("utf-8", "replace").split("\n")[:-1]

    def get(self, id: str, key: str) -> Reply | None:
        """Return the reply to a request, or None if it was not asked, or asked otherwise (another key)."""
        return self._replies.get((id, key))

    def add(self, id: str, key: str, reply: Reply) -> None:
        """Keep a reply; when this returns it is on the disk."""
        row = {"id": id, "key": key, **vars(reply)}
        line = (json.dumps(sealed(row), ensure_ascii=True) + "\n").encode()  # a server may send half a character
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.truncate(self._whole)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._whole += len(line)
            self._replies[id, key] = reply
