"""Load tokenizers and causal language models: practice models, folders, and repositories of the Hugging Face hub.

Weights are read from safetensors only, and no code of a model repository is ever run. Data sets and benchmarks come from the same
hub, so what its libraries raise is put into one sentence here, for all of them.
"""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi, constants, errors
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)

from ctxft.storage import InputError, hash_file, is_there, read_json, sha256
from ctxft.world.facts import BASES, model_folder

logging.disable_progress_bar()  # what a cell or a log shows must not depend on how fast weights are read

TOKENIZER_FILES = ("config.json", "adapter_config.json", "*token*", "vocab*", "merges.txt", "chat_template*")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")
WHERE_TO_PUT = (
    "put its files (config.json, *.safetensors, tokenizer files) in a folder and give that folder as the model"
)
OFFLINE = ("it is not in the local cache and HF_HUB_OFFLINE is set", "unset it")
NOUNS = {"model": "model", "dataset": "data set"}
# What a hub's error means and what to do; the first that is anywhere in the chain of causes decides.
NO_CONNECTION = (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError, errors.HTTPError)  # pyright: ignore[reportPrivateImportUsage]  # of httpx, or of requests
TROUBLES = (
    (errors.GatedRepoError, "it is gated", "accept its terms at {page} and log in with `hf auth login`"),
    (errors.RevisionNotFoundError, "it has no such revision", "choose one of {page}/tree/main"),
    (
        errors.RepositoryNotFoundError,
        "it was not found",
        "check the name at {page}, and `hf auth login` if it is private",
    ),
    (errors.HFValidationError, "the hub can hold no such name", "correct it"),
    (errors.HfHubHTTPError, "HTTP {status}", "try again later, or log in with `hf auth login`"),
    (errors.OfflineModeIsEnabled, *OFFLINE),
    (NO_CONNECTION, "no connection", "check the connection"),
)


# --- the hub ----------------------------------------------------------------------------------------------------------


def _trouble(chain: list[BaseException]) -> tuple[str, str]:
    """Return what a chain of errors means, and what to do about it."""
    if type(chain[0]).__name__ == "DatasetNotFoundError":  # datasets hides its cause, so the text has to tell
        text = str(chain[0])
        gated, revision = "gated" in text, text.startswith("Revision")
        return TROUBLES[0 if gated else 1 if revision else 2][1:]
    for classes, reason, advice in TROUBLES:
        if link := next((link for link in chain if isinstance(link, classes)), None):
            if classes is NO_CONNECTION and constants.HF_HUB_OFFLINE:
                return OFFLINE
            status = link.response.status_code if isinstance(link, errors.HfHubHTTPError) else ""
            return reason.format(status=status), advice
    line = next(iter(str(chain[0]).strip().splitlines()), "no message")
    return f"{type(chain[0]).__name__}: {line}", "correct that"


@contextlib.contextmanager
def hub_errors(source: str, kind: str, instead: str) -> Iterator[None]:
    """Run a block that loads a model or data set; what it raises about files, network or content becomes one sentence.

    Args:
        source: the repository, such as "cais/mmlu", or a folder in its place.
        kind: "model" or "dataset".
        instead: what works without the hub, a clause without a full stop ("pass a folder with --model").

    Raises:
        InputError: the block raised such an error, whose causes are read too; others pass through unchanged.

    Example:
        >>> with hub_errors("org/name", "model", "give a local folder"):  # doctest: +SKIP
        ...     tokenizer = AutoTokenizer.from_pretrained("org/name")
    """
    try:
        yield
    except InputError:
        raise
    except (*NO_CONNECTION, OSError, errors.HFValidationError) as error:
        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None and link not in chain:
            chain.append(link)
            link = link.__cause__ or link.__context__
        reason, advice = _trouble(chain)
        page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{source}"
        where = "" if is_there(source) else " from the Hugging Face hub"
        raise InputError(
            f"the {NOUNS[kind]} '{source}' cannot be loaded{where} ({reason}): {advice.format(page=page)}, or {instead}."
        ) from error
    except ValueError as error:
        # A kind that the libraries do not know, an unknown split, or code that would have to run.
        raise InputError(f"the {NOUNS[kind]} '{source}' cannot be used: {str(error).splitlines()[0]}") from None


def is_hub_id(name: str) -> bool:
    """Return whether a name has the shape "org/name" of a hub repository.

    Example:
        >>> is_hub_id("cais/mmlu"), is_hub_id("texts/part/x")
        (True, False)
    """
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def resolve_revision(repo_id: str, kind: str, revision: str | None, instead: str) -> str | None:
    """Return the commit that a revision of a hub repository points to now, so that a run can record it.

    Args:
        repo_id, kind, instead: as for ``hub_errors``.
        revision: branch, tag or commit; None is the default branch.

    Returns:
        The commit; with HF_HUB_OFFLINE set, the revision as given (the local cache decides).

    Raises:
        InputError: the hub cannot be reached, or refuses.
    """
    if constants.HF_HUB_OFFLINE:
        return revision
    limit = constants.HF_HUB_ETAG_TIMEOUT  # seconds; without one a silent hub is waited for without end
    with hub_errors(repo_id, kind, instead):
        return HfApi().repo_info(repo_id, repo_type=kind, revision=revision, timeout=limit).sha


def resolve_model(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """Turn a model name into what transformers loads: a folder, or a hub id with the revision it points to now.

    Args:
        source: "practice-aware" or "practice-blind" (inside the package), a folder, or a hub id such as "org/name".
        revision: a branch, tag or commit on the hub; None is the default branch.

    Returns:
        (folder or hub id, commit or None for a folder).

    Raises:
        InputError: the name is none of these, or the hub cannot be reached or refuses.

    Example:
        >>> resolve_model("practice-blind")[1] is None
        True
    """
    if source in BASES:
        return str(model_folder(source)), None
    if is_there(source) and Path(source).is_dir():
        return source, None
    if not is_hub_id(source):
        raise InputError(
            f"model '{source}' is neither a practice model ({', '.join(BASES)}), nor an existing folder, nor a hub id like "
            "org/name."
        )
    return source, resolve_revision(source, "model", revision, WHERE_TO_PUT)


def _files(place: str, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in Path(place).glob(pattern)})


def model_hash(source: str, revision: str | None = None) -> str:
    """Return a hash that changes when what decides a model's behavior does: config, tokenizer, weights; or hub id and commit.

    Other files of a folder (model card, optimizer state) do not count.
    """
    place, commit = resolve_model(source, revision)
    if not Path(place).is_dir():
        return sha256([place, commit])
    return sha256([[path.name, hash_file(path)] for path in _files(place, MODEL_FILES)])


# --- tokenizers -------------------------------------------------------------------------------------------------------


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        InputError: there is none, it has no EOS token, or it gives no character offsets (a "slow" tokenizer).
    """
    place, commit = resolve_model(source, revision)
    if Path(place).is_dir() and not (Path(place) / "tokenizer_config.json").exists():
        raise InputError(f"{place} has no tokenizer: add tokenizer.json and tokenizer_config.json.")
    with hub_errors(place, "model", WHERE_TO_PUT):
        tokenizer = AutoTokenizer.from_pretrained(place, revision=commit, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of '{source}' has no EOS token, so the end of a document cannot be learned: "
            "set eos_token in its tokenizer_config.json."
        )
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of '{source}' gives no character offsets: a tokenizer.json (fast tokenizer) is needed."
        )
    return tokenizer


def shared_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer, read once in a process while its files stay the same: for code that changes nothing in it.

    What ``load_tokenizer`` returns belongs to its caller. But tokenizers (0.23) keeps a cache of words for each tokenizer and
    thread and does not free it, so that a process that loads one for every task grows without end.

    Raises:
        InputError: as ``load_tokenizer``.

    Example:
        >>> shared_tokenizer("practice-blind") is shared_tokenizer("practice-blind")
        True
    """
    place, commit = resolve_model(source, revision)
    files = tuple((str(path), hash_file(path)) for path in _files(place, TOKENIZER_FILES))
    return _shared_tokenizer(source, commit, files)


@functools.lru_cache(maxsize=4)
def _shared_tokenizer(source: str, commit: str | None, _files: tuple[tuple[str, str], ...]) -> PreTrainedTokenizerBase:
    return load_tokenizer(source, commit)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Tokenize text without special tokens; "<s>" and the like inside the text stay ordinary characters.

    Returns:
        (token ids, character position at which each token starts).
    """
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]


# --- models -----------------------------------------------------------------------------------------------------------


def model_config(source: str, revision: str | None = None) -> PretrainedConfig:
    """Read a model's config, and nothing of its weights.

    Args:
        source: a practice model, a folder with a config.json, or a hub id.
        revision: its hub revision.

    Raises:
        InputError: there is none, or it is of a kind that transformers does not know.
    """
    place, commit = resolve_model(source, revision)
    with hub_errors(place, "model", WHERE_TO_PUT):
        return AutoConfig.from_pretrained(place, revision=commit, trust_remote_code=False)


def _check_weights(folder: Path, name: str = "*.safetensors") -> None:
    if not list(folder.glob(name)):
        raise InputError(
            f"{folder} holds no weights: a {name} file is needed (other formats can run code and are not read)."
        )


def check_model(source: str, revision: str | None, max_length: int) -> None:
    """Check, without reading any weights, that a model can be trained on rows of ``max_length`` tokens.

    Raises:
        InputError: the folder has no config or no weights, holds an adapter only, or the model reads fewer tokens.

    Example:
        >>> check_model("practice-blind", None, max_length=128)
    """
    place, _ = resolve_model(source, revision)
    if (Path(place) / "adapter_config.json").exists():
        raise InputError(
            f"{place} holds a LoRA adapter, which cannot be trained further: give its base model as model."
        )
    if Path(place).is_dir():
        _check_weights(Path(place))
    config = model_config(source, revision)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"the model '{source}' is of the kind '{config.model_type}', which is no causal language model: choose another."
        )
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max_length > limit:
        raise InputError(
            f"train.max_length is {max_length} tokens, but the model '{source}' reads at most {limit}: lower train.max_length."
        )


def load_model(
    source: str, revision: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a causal language model, or a LoRA adapter on its base model.

    Args:
        source: a practice model, a folder (full weights, or an adapter with adapter_config.json), or a hub id.
        revision: hub revision.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: of the weights in memory, whatever the file holds (training wants float32 master weights).

    Returns:
        The model in evaluation mode; an adapter stays unmerged.

    Raises:
        InputError: the folder has no weights, the model is unknown, gated, or the hub cannot be reached.

    Example:
        >>> load_model("practice-blind").config.model_type
        'llama'
    """
    place, commit = resolve_model(source, revision)
    folder = Path(place)
    if (folder / "adapter_config.json").exists():
        _check_weights(folder, "adapter_model.safetensors")
        adapter = read_json(folder / "adapter_config.json")
        base = load_model(adapter["base_model_name_or_path"], adapter.get("revision"), device, dtype)
        with warnings.catch_warnings():  # peft still asks transformers by a name that version 6 will drop
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return cast(PreTrainedModel, PeftModel.from_pretrained(base, place).eval())  # which it wraps
    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        with hub_errors(place, "model", WHERE_TO_PUT):
            loaded: Any = AutoModelForCausalLM.from_pretrained(place, revision=commit, dtype=dtype, **options)
    except SafetensorError as error:
        raise InputError(f"the weights of {place} cannot be read ({error}): fetch them again.") from None
    model, info = loaded
    if info["missing_keys"]:  # transformers would put random numbers in their place
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"the weights of {place} are not complete: {missing} and maybe more are missing.")
    return model.to(device).eval()


def window_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model can read (``max_position_embeddings``); None if its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def pick_device(wanted: str = "auto") -> str:
    """Return the device to compute on: "auto" takes CUDA where there is one, else the CPU.

    Raises:
        InputError: the device is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"torch sees no CUDA device, but the device is '{wanted}': use device: cpu or auto.")
    return wanted
