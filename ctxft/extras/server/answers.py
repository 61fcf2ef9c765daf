"""Replies of a server flow into a file as they arrive; a later process finds them there and asks for none of them twice.

A line is one reply: the id of what was asked, a key of the whole request, the text, the tokens, a checksum. A last line that
a kill cut in half does not count, and is cut off by whoever writes next. Failed requests are not kept, so they are asked again.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from ctxft.extras.server.client import Reply
from ctxft.storage import InputError, checksum_holds, parse_json, with_checksum

FIELDS = {"id": str, "key": str, "text": str, "tokens_in": int | None, "tokens_out": int | None, "cut": bool}


class Answers:
    """The replies that one server gave, by id and key. May be shared by threads.

    Replies are kept inside a ``with`` block only, which no two processes may enter at a time for one file: a thread that
    outlives the block, as after Ctrl-C in a notebook, writes nothing any more.

    Args:
        path: the file; its folder is made, and the file with the first reply.

    Attributes:
        late: replies that came outside the block, and were not kept.

    Raises:
        InputError: a line is none of this file's; file and line are named.

    Example:
        >>> with Answers(folder / "answers.jsonl") as answers:  # doctest: +SKIP
        ...     answers.add("medqa/12", key, server.chat(messages, 9))
        >>> answers.get("medqa/12", key).text  # doctest: +SKIP
        'B'
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._replies: dict[tuple[str, str], Reply] = {}
        self._open, self.late = False, 0
        for number, line in enumerate(self._lines(), start=1):
            row = parse_json(line, f"{self.path}, line {number}", halves=True)
            good = isinstance(row, dict) and all(isinstance(row.get(k), kind) for k, kind in FIELDS.items())
            if not good or not checksum_holds(row):
                raise InputError(
                    f"{self.path}, line {number}: not a reply of a server, or changed since: mend or remove the line."
                )
            reply = Reply(row["text"], row["tokens_in"], row["tokens_out"], row["cut"])
            self._replies[row["id"], row["key"]] = reply

    def __len__(self) -> int:
        """Return how many replies there are."""
        return len(self._replies)

    def _lines(self) -> list[str]:
        return _whole_part(self.path).decode("utf-8", "replace").split("\n")[:-1]

    def __enter__(self) -> Answers:
        """Open the file for replies; half a line at its end is cut off."""
        if self.path.exists():
            os.truncate(self.path, len(_whole_part(self.path)))
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        """Keep nothing from here on, once the reply that is being written is on the disk."""
        with self._lock:
            self._open = False

    def get(self, id: str, key: str) -> Reply | None:
        """Return the reply to a request, or None if it was not asked, or asked otherwise (another key)."""
        return self._replies.get((id, key))

    def add(self, id: str, key: str, reply: Reply) -> None:
        """Keep a reply; when this returns it is on the disk. Outside the block it is counted in ``late`` and not kept."""
        row = {"id": id, "key": key, **vars(reply)}
        line = (json.dumps(with_checksum(row), ensure_ascii=True) + "\n").encode()  # a server may send half a character
        with self._lock:
            if not self._open:
                self.late += 1
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._replies[id, key] = reply


def _whole_part(path: Path) -> bytes:
    """Return a file's bytes up to its last line end."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]
