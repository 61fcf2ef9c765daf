"""What the libraries raise when the Hugging Face hub says no goes in; one sentence that says what to do comes out.

Models, corpora and benchmarks are all loaded from the hub, and ``transformers``, ``datasets`` and ``huggingface_hub``
each wrap the same few troubles in other classes: no network, offline mode, a gated or a missing repository. This
module is the one place that knows these classes. It loads nothing itself.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ctxft.storage import InputError

# HTTPError is the base class of the HTTP library that huggingface_hub itself uses (httpx or its successor).
HUB_ERRORS = (OSError, HTTPError, HFValidationError)
KINDS = {
    "model": ("the model", "https://huggingface.co/"),
    "dataset": ("the data set", "https://huggingface.co/datasets/"),
}


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error and all that it was raised from or while handling."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _status(errors: list[BaseException]) -> int | None:
    """Return the HTTP status of the hub's answer, if it gave one."""
    return next((e.response.status_code for e in errors if isinstance(e, HfHubHTTPError)), None)


def _trouble(errors: list[BaseException]) -> str:
    """Return which trouble a chain of errors tells of; the most telling class decides, not the outermost."""
    text = str(errors[0])

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in errors)

    # datasets raises its own classes "from None", so for these only the text tells a gated set from a missing one.
    own = type(errors[0]).__name__ == "DatasetNotFoundError"
    if has(GatedRepoError) or (own and "gated" in text):
        return "gated"
    if has(RevisionNotFoundError) or (own and text.startswith("Revision")):
        return "revision"
    if has(RepositoryNotFoundError) or own:
        return "missing"
    if has(HFValidationError):
        return "name"
    if _status(errors) in (401, 403):
        return "refused"
    if _status(errors) == 429:
        return "limited"
    if _status(errors) is not None:
        return "answer"
    if has(OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and has(LocalEntryNotFoundError, ConnectionError)):
        return "offline"
    return "unreachable" if has(LocalEntryNotFoundError, ConnectionError, TimeoutError, HTTPError) else "other"


def hub_error(error: BaseException, repo_id: str, kind: str, instead: str) -> InputError:
    """Translate what a loader raised about a hub repository into one sentence for the user.

    Args:
        error: the exception as caught; its causes and contexts are read too.
        repo_id: the repository, such as "cais/mmlu".
        kind: "model" or "dataset".
        instead: what the user can do without the hub, a clause without a full stop ("pass a folder with --model").

    Returns:
        The error to raise; nothing is raised here.

    Example:
        >>> print(hub_error(ConnectionError("no route"), "gpt2", "model", "pass a local folder"))
        the Hugging Face hub cannot be reached for the model 'gpt2': check the connection, or pass a local folder.
    """
    what, address = KINDS[kind]
    errors = _chain(error)
    page, hub, status = f"{address}{repo_id}", "the Hugging Face hub", _status(errors)
    login = f"accept its terms at {page} and log in with `hf auth login`"
    lines = str(error).strip().splitlines() or ["no message"]
    sentences = {
        "gated": f"{what} '{repo_id}' is gated on {hub}: {login}",
        "refused": f"{hub} refuses {what} '{repo_id}' (HTTP {status}): check its name, {login}",
        "revision": f"{what} '{repo_id}' has no such revision on {hub}: see {page}/tree/main for its revisions",
        "missing": f"{what} '{repo_id}' was not found on {hub}: check the name at {page}"
        " (a private one needs `hf auth login`)",
        "name": f"'{repo_id}' is neither a local path nor a name that {hub} can hold: mend it",
        "limited": f"{hub} takes no more requests now (HTTP 429) for {what} '{repo_id}': wait some minutes, log in with"
        " `hf auth login` for a higher limit",
        "answer": f"{hub} answered HTTP {status} for {what} '{repo_id}': try again later",
        "offline": f"{what} '{repo_id}' is not in the local cache and HF_HUB_OFFLINE is set: unset it",
        "unreachable": f"{hub} cannot be reached for {what} '{repo_id}': check the connection",
        "other": f"{what} '{repo_id}' could not be loaded ({type(error).__name__}: {lines[0]}): mend that",
    }
    return InputError(f"{sentences[_trouble(errors)]}, or {instead}.")


@contextlib.contextmanager
def hub_errors(repo_id: str, kind: str, instead: str) -> Iterator[None]:
    """Run a block that loads from the hub; what it raises about files or the network becomes an ``InputError``.

    Args:
        repo_id, kind, instead: as in ``hub_error``.

    Raises:
        InputError: the block raised one of ``HUB_ERRORS``; other exceptions pass through unchanged.

    Example:
        >>> with hub_errors("org/name", "model", "give a local folder"):  # doctest: +SKIP
        ...     tokenizer = AutoTokenizer.from_pretrained("org/name")
    """
    try:
        yield
    except HUB_ERRORS as error:
        raise hub_error(error, repo_id, kind, instead) from error


def is_hub_id(name: str) -> bool:
    """Return whether a name has the shape "org/name" of a hub repository.

    Example:
        >>> is_hub_id("cais/mmlu"), is_hub_id("texts/prompt_set.jsonl/x")
        (True, False)
    """
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def resolve_revision(repo_id: str, kind: str, revision: str | None, instead: str) -> str | None:
    """Return the commit that a revision of a hub repository points to now, so that a run can record it.

    Args:
        repo_id: the repository.
        kind: "model" or "dataset".
        revision: branch, tag or commit; None is the default branch.
        instead: as in ``hub_error``.

    Returns:
        The commit; with HF_HUB_OFFLINE set, the revision as given (the local cache decides).

    Raises:
        InputError: the hub cannot be reached, or refuses.
    """
    if constants.HF_HUB_OFFLINE:
        return revision
    limit = constants.HF_HUB_ETAG_TIMEOUT  # seconds; without one a silent hub is waited for without end
    try:
        with hub_errors(repo_id, kind, instead):
            return HfApi().repo_info(repo_id, repo_type=kind, revision=revision, timeout=limit).sha
    except json.JSONDecodeError as error:  # a proxy's page, say
        raise hub_error(error, repo_id, kind, instead) from error
