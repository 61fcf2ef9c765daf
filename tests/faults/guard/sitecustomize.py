"""Loaded by every Python process below a guarded command: what would leave the machine is refused, and written down.

Python's audit hooks see every look-up and connection that goes through its socket module, whatever library asks, and
cannot be taken off again; a refused one is written down first, so that a library that swallows the error is seen too.
"""

import os
import socket
import sys

LOG = os.environ.get("CTXFT_GUARD_LOG")
HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", None, socket.gethostname()}


def is_here(host: object) -> bool:
    """Return whether a host is this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    return name in HERE or (isinstance(name, str) and name.startswith("127."))


def guard(event: str, arguments: tuple) -> None:
    """Refuse and write down what is meant for another machine."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) and address else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    if not is_here(host):
        with open(LOG, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {sys.argv[:2]} {event} {host}\n")
        raise OSError(101, f"the guard refuses {event} to {host}")


if LOG:
    sys.addaudithook(guard)
