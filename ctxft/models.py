"""A name goes in (a practice model, a folder, a hub id); a tokenizer and a causal language model in the wanted dtype come out.

Weights are read from safetensors only, and no code of a model repository is ever run.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)

from ctxft.hub import hub_errors, is_hub_id, resolve_revision
from ctxft.storage import InputError, hash_file, is_there, read_json, sha256
from ctxft.world.facts import BASES, model_folder

logging.disable_progress_bar()  # what a cell or a log shows must not depend on how fast weights are read

MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "*token*",
    "*.safetensors",
    "vocab*",
    "merges.txt",
    "chat_template*",
)
WHERE_TO_PUT = (
    "put its files (config.json, *.safetensors, tokenizer files) in a folder and give that folder as the model"
)


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


def model_hash(source: str, revision: str | None = None) -> str:
    """Return a hash that changes when what decides a model's behaviour does: config, tokenizer, weights; or hub id and commit.

    Other files of a folder (model card, optimizer state) do not count.
    """
    place, commit = resolve_model(source, revision)
    if not Path(place).is_dir():
        return sha256([place, commit])
    files = sorted(path for pattern in MODEL_FILES for path in Path(place).glob(pattern))
    return sha256([[path.name, hash_file(path)] for path in files])


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer that stands beside a model.

    Raises:
        InputError: no tokenizer is there, it has no EOS token, or it cannot give character offsets (a "slow" tokenizer).
    """
    place, commit = resolve_model(source, revision)
    if Path(place).is_dir() and not (Path(place) / "tokenizer_config.json").exists():
        raise InputError(f"{place} has no tokenizer: add tokenizer.json and tokenizer_config.json.")
    try:
        with hub_errors(place, "model", WHERE_TO_PUT):
            tokenizer = AutoTokenizer.from_pretrained(place, revision=commit, trust_remote_code=False)
    except InputError:
        raise
    except ValueError as error:  # a tokenizer of an unknown kind, or one that wants to run code of its own
        raise InputError(f"the tokenizer of '{source}' cannot be used: {str(error).splitlines()[0]}") from None
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
    """Return the tokenizer of a model, read once in a process while its files stay the same: for code that changes nothing in it.

    What ``load_tokenizer`` returns belongs to its caller. But tokenizers (0.23) keeps a cache of words for each tokenizer and
    thread and does not free it, so that a process that loads one for every task grows without end.

    Raises:
        InputError: as ``load_tokenizer``.

    Example:
        >>> shared_tokenizer("practice-blind") is shared_tokenizer("practice-blind")
        True
    """
    place, commit = resolve_model(source, revision)
    files = sorted(
        path for pattern in MODEL_FILES for path in Path(place).glob(pattern) if path.suffix != ".safetensors"
    )
    return _shared_tokenizer(source, commit, tuple((str(path), hash_file(path)) for path in files))


@functools.lru_cache(maxsize=4)
def _shared_tokenizer(source: str, commit: str | None, _files: tuple[tuple[str, str], ...]) -> PreTrainedTokenizerBase:
    return load_tokenizer(source, commit)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Tokenise text without special tokens; "<s>" and the like inside the text stay ordinary characters.

    Returns:
        (token ids, character position at which each token starts).
    """
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]


def _check_weights(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} is not a model folder: config.json is missing.")
    if not list(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} holds no weights: a *.safetensors file is needed (other formats can run code and are not read)."
        )


def check_model(source: str, revision: str | None, window: int) -> None:
    """Check, without reading any weights, that a model can be trained on rows of ``window`` tokens.

    Raises:
        InputError: the folder has no config or no weights, holds an adapter only, or the model reads fewer tokens.

    Example:
        >>> check_model("practice-blind", None, window=128)
    """
    place, commit = resolve_model(source, revision)
    folder = Path(place)
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{place} holds a LoRA adapter, which cannot be trained further: give its base model as model."
        )
    if folder.is_dir():
        _check_weights(folder)
    try:
        with hub_errors(place, "model", WHERE_TO_PUT):
            config = AutoConfig.from_pretrained(place, revision=commit, trust_remote_code=False)
    except InputError:
        raise
    except ValueError as error:  # a kind of model that transformers does not know
        raise InputError(f"{place}: the model's config.json cannot be used: {str(error).splitlines()[0]}") from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"the model '{source}' is of the kind '{config.model_type}', which is no causal language model: choose another."
        )
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and window > limit:
        raise InputError(
            f"train.window is {window} tokens, but the model '{source}' reads at most {limit}: lower train.window."
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
        if not (folder / "adapter_model.safetensors").exists():
            raise InputError(
                f"{folder} holds no adapter weights: adapter_model.safetensors is needed (other formats can run code and are "
                "not read)."
            )
        adapter = read_json(folder / "adapter_config.json")
        base = load_model(adapter["base_model_name_or_path"], adapter.get("revision"), device, dtype)
        with warnings.catch_warnings():  # peft still asks transformers by a name that version 6 will drop
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return PeftModel.from_pretrained(base, place).eval()
    if folder.is_dir():
        _check_weights(folder)
    options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        with hub_errors(place, "model", WHERE_TO_PUT):
            model, info = AutoModelForCausalLM.from_pretrained(place, revision=commit, dtype=dtype, **options)
    except InputError:
        raise
    except ValueError as error:  # a kind of model that transformers does not know, or one that brings code of its own
        raise InputError(f"the model '{source}' cannot be used: {str(error).splitlines()[0]}") from None
    except SafetensorError as error:
        raise InputError(f"the weights of {place} cannot be read ({error}): fetch them again.") from None
    if info["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"the weights of {place} are not complete: {missing} and maybe more are missing.")
    return model.to(device).eval()


def window_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model can read (``max_position_embeddings``); None if its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def pick_device(wanted: str = "auto") -> str:
    """Return the device to compute on: "auto" takes CUDA where there is one, else the CPU.

    Raises:
        InputError: the device that was asked for is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device '{wanted}' was asked for, but torch sees no CUDA device: use device: cpu or auto.")
    return wanted
