"""Where a server is, its model, its prices and the name of its key's variable flow in; they flow out checked, never the key."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ctxft.storage import InputError


@dataclass
class ServerConfig:
    """Where a language model is asked, and how patiently.

    Attributes:
        url: base URL, such as "http://localhost:8000/v1".
        model: the model's name on that server.
        key_variable: NAME of the environment variable that holds the key; None for a server that needs none.
        timeout: seconds that a server may stay silent.
        retries: tries after the first.
        requests_per_minute: at most so many; None sets no limit.
        price_in, price_out: per million tokens read and written, in any one currency; None where unknown.

    Raises:
        InputError: a value out of range, a URL that is none or holds a password, or a key in place of a variable's name.

    Example:
        >>> ServerConfig("http://localhost:8000/v1", "my-model").retries
        5
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 60.0
    retries: int = 5
    requests_per_minute: int | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not self.model.strip():
            raise InputError("the model on the server has no name: give the one that the server lists.")
        if self.key_variable is not None:
            _check_variable(self.key_variable)
        if not 0 < self.timeout < math.inf:  # no comparison holds for NaN
            raise InputError(f"timeout must be a number of seconds above 0, found {self.timeout}.")
        if self.retries < 0:
            raise InputError(f"retries must be at least 0, found {self.retries}.")
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise InputError(f"requests_per_minute must be at least 1, found {self.requests_per_minute}.")
        for name in ("price_in", "price_out"):
            if (price := getattr(self, name)) is not None and not 0 <= price < math.inf:
                raise InputError(f"{name} must be a number per million tokens, at least 0, found {price}.")

    def key(self) -> str | None:
        """Return the key from the environment, or None where the server needs none.

        Raises:
            InputError: the variable is not set, or its value cannot be a key.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise InputError(f"the environment variable {self.key_variable} is not set: put the server's key there.")
        if not re.fullmatch(r"[!-~]+", key):
            raise InputError(f"the value of {self.key_variable} holds a space or a character that no key has: mend it.")
        return key

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Return what so many tokens cost, in the currency of the prices; None where a price is unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, a bracket too few
        good = False
    if not good:
        raise InputError("the server must be a base URL such as http://localhost:8000/v1: check it.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"the URL of the server at {parts.hostname} holds more than an address: leave out user, password and what "
            "follows ? or #, and name the key's environment variable in key_variable."
        )


def _check_variable(name: str) -> None:
    """Refuse what is no variable's name; the value is not told, since it may be a key."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or (len(name) >= 20 and "_" not in name):
        raise InputError(
            "key_variable must be the name of an environment variable in capital letters, such as OPENAI_API_KEY, never "
            "the key itself."
        )
