"""Declare every setting once: its key, type, range, default and meaning; load YAML files and report all their mistakes.

The keys are those of transformers, TRL, peft and lm-evaluation-harness wherever one of them means the same. A config is
checked when it is made and whenever a value is assigned; nothing is converted silently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ctxft.storage import (
    PACKAGE_ROOT,
    InputError,
    YamlLoader,
    check_known,
    is_there,
    nearest,
    parse_yaml,
    read_text,
    read_yaml,
    runs_root,
    shown,
)
from ctxft.world.exams import EXAMS
from ctxft.world.facts import BASES
from ctxft.world.texts import SOURCES, unreliable_articles

PROFILES = PACKAGE_ROOT / "profiles"
MOST = 20  # mistakes that are reported
LONGEST_NAME = 200  # bytes: a file system takes 255, and files next to the folder have longer names
HIGHEST_PORT = 65535
URL = r"https?://(\[[\da-fA-F:.]+\]|[\w.-]+)(:[1-9]\d{0,4})?(/[\w.~%/:@+,=-]*)?"  # a host, its port, a path
TEXT_FILES = "ywchoi/OpenMedText"  # a hub data set of separate text files in folders, not one table
# What may change between a stop and a resume: speed and memory, and no result but by rounding (and, with dropout, by other
# random numbers, where micro-batches change).
FREE = ("micro_batch_tokens", "save_steps", "gradient_checkpointing", "report_to", "threads", "attn_implementation")

OLDER = read_yaml(PACKAGE_ROOT / "renamed.yaml")
RENAMED: dict[str, str | list[str]] = OLDER["keys"]  # key of an older version -> its name, or the keys, now
RENAMED_VALUES: dict[str, dict[str, str]] = OLDER["values"]  # key as it was -> old value -> new value

INSTRUCTION = read_text(PACKAGE_ROOT / "prompts" / "writer.txt").strip()

# --- types of values --------------------------------------------------------------------------------------------------


def _resolved(name: str, known: Sequence[str] = ()) -> str:
    """Make the path of something that is there absolute, since tasks and notebooks may run in another folder."""
    return str(Path(name).resolve()) if name and name not in known and is_there(name) else name


def _prompt_set(name: str) -> str:
    from ctxft.prompts.sets import PROMPT_SETS  # the modules of prompts, arms and benchmarks import this one

    return _resolved(name, PROMPT_SETS)


def _arm(name: str) -> str:
    from ctxft.prompts.arms import get_arm

    return get_arm(name).name


def _plugins(folders: list[str]) -> list[str]:
    from ctxft.prompts import add_plugins

    folders = [str(Path(folder).expanduser().resolve()) for folder in folders]
    add_plugins(folders)
    return folders


def _benchmark(name: str) -> str:
    from ctxft.evaluation.benchmarks import benchmark_names, is_own

    known = benchmark_names()
    if name not in known and not is_own(name) and Path(name).suffix != ".yaml":
        where = "or the path of a file of questions (jsonl, json, csv, tsv, parquet, ...) or of a .yaml file"
        raise InputError(f"unknown benchmark '{name}'{nearest(name, known)}; known: {', '.join(known)}, {where}.")
    return _resolved(name, known)


def _distinct(values: list) -> list:
    if not values or len(set(values)) != len(values):
        raise InputError(f"must be a list of different values with at least one, found {shown(values)}.")
    return values


def _folder_name(name: str) -> str:
    """Accept a name that stays in its folder, on any system, and can be read: no path, no control characters."""
    plain = name.isprintable() and not set(name) & set('/\\:*?"<>|') and name == name.strip(". ")
    if not plain or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise InputError(
            f"must be a plain folder name, found {shown(name)} (no path, no hidden characters, {LONGEST_NAME} bytes)."
        )
    return name


def _data_folder(name: str) -> str:
    if not os.path.isdir(name):
        raise InputError(f"(--data) must be a folder with benchmark files, found {shown(name)}.")
    return _resolved(name)


def _filled(text: str) -> str:
    if not text.strip():
        raise InputError("is empty: write it.")
    return text


def _url(url: str) -> str:
    parts = re.fullmatch(URL, url)
    if not parts:
        raise InputError(
            "must be a base URL such as http://localhost:8000/v1, without user, password, ? or #: a key goes into the "
            "environment variable that key_variable names."
        )
    if parts[2] and int(parts[2][1:]) > HIGHEST_PORT:
        raise InputError(f"names the port {parts[2][1:]}, but ports end at {HIGHEST_PORT}: correct it.")
    return url


def _variable(name: str) -> str:
    """Refuse what is no variable's name; the message does not quote it, since it may be a key."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or (len(name) >= 20 and "_" not in name):
        raise InputError(
            "must be the name of an environment variable in capital letters, such as OPENAI_API_KEY, never the key itself."
        )
    return name


Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Device = Literal["auto", "cpu", "cuda"]
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Text = Annotated[str, AfterValidator(_filled)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
Model = Annotated[str, AfterValidator(lambda name: _resolved(name, tuple(BASES)))]
Source = Annotated[str, AfterValidator(lambda name: _resolved(name, tuple(SOURCES)))]
PromptSetName = Annotated[str, AfterValidator(_prompt_set)]
Arm = Annotated[str, AfterValidator(_arm)]
Benchmark = Annotated[str, AfterValidator(_benchmark)]
Url = Annotated[str, AfterValidator(_url)]
Variable = Annotated[str, AfterValidator(_variable)]
Distinct = AfterValidator(_distinct)


class Config(BaseModel):
    """A mapping from YAML with every value checked; ``Attributes`` in the docstring are the descriptions of its fields."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_assignment=True,
        hide_input_in_errors=True,  # a value may be a key that somebody put in the wrong place
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Give each field its description, for the reference and the JSON schema."""
        for names, text in re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", cls.__doc__ or "", re.MULTILINE):
            for name in names.split(", "):
                cls.model_fields[name].description = " ".join(text.split())

    def replace(self, **values: Any) -> Self:
        """Return a checked copy with some values replaced."""
        return type(self).model_validate(dict(self) | values)


# --- the sections of an experiment ------------------------------------------------------------------------------------


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """Return a template's words, each with the field that follows; a field's name alone is a template too.

    Raises:
        InputError: it names no field, or braces do not match.

    Example:
        >>> template_parts("{title}: {doc.text}"), template_parts("text")
        ([('', 'title'), (': ', 'doc.text')], [('', 'text')])
    """
    if "{" not in template:
        return [("", template)]
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"text_field {template!r} is no template of fields ({error}): write {{name}}.") from None
    if not any(part[1] for part in parts) or any(name == "" or form or kind for _, name, form, kind in parts):
        raise InputError(
            f"text_field {template!r} is no template of fields: write {{name}}, and nothing else in braces."
        )
    return [(words, name) for words, name, _, _ in parts]


class CorpusConfig(Config):
    """Where the training texts come from.

    Attributes:
        source: "practice" (or "practice-tuning", "practice-old"), a file (jsonl, json, csv, tsv, txt, md, each also .gz or
            .zst, or parquet, arrow), a folder of such files, a data set in a folder, or a hub data set id.
        text_field: Field of the text in records; inside another one ("doc.text"), or a template of several
            ("{title}\\n\\n{abstract}").
        id_field: Field of the document's id; where it is missing, used twice, or null here, file and line number serve.
        folders: Folders of a hub data set made of text files (OpenMedText), e.g. ["diseases", "vaccines"].
        split: Split of a data set.
        subset: Name of a data set's part, where it has several.
        revision: Branch, tag or commit on the hub.
        limit: At most this many documents.
        held_out: Fraction of the tokens that no arm trains on, for the held-out text loss: whole documents, and of one that
            is a large part of the corpus, passages that are evenly spaced.
        skip_empty: Count and skip records without text instead of refusing them.
        unreliable: Practice world only: fraction of the articles about each entity that state random facts (in quarters).
        wordings: Practice world only: sentences that the practice models met in pre-training ("seen"), or not
            ("held-out").
    """

    source: Source = "practice"
    text_field: str = "text"
    id_field: str | None = "id"
    folders: list[str] | None = None
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    limit: Count | None = None
    held_out: Fraction = 0.1
    skip_empty: bool = False
    unreliable: float = 0.0
    wordings: Literal["seen", "held-out"] = "seen"

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        template_parts(self.text_field)
        if self.folders is not None and (self.source != TEXT_FILES or not self.folders):
            raise InputError(f"folders names folders of {TEXT_FILES}: leave it out for '{self.source}', or name one.")
        if self.source in SOURCES:
            unreliable_articles(self.unreliable)
        elif (self.unreliable, self.wordings) != (0.0, "seen"):
            raise InputError(
                f"corpus.unreliable and corpus.wordings are for the practice world, not for '{self.source}': set "
                "corpus.unreliable=0.0, and leave arm adaptive out unless the documents say whether they are reliable."
            )
        return self


class GeneralConfig(CorpusConfig):
    """General text, unlike the domain's: to measure forgetting on, and to mix in against it.

    Attributes:
        source: "practice-old", or as for the corpus.
        share: Fraction of general text among the passages of an epoch; it has no prompt in any arm.
    """

    source: Source = "practice-old"
    share: Fraction = 0.0


class RequestConfig(Config):
    """How a language model behind a server is asked: by which key, how patiently, at what price.

    Attributes:
        key_variable: NAME of the environment variable that holds the server's key, never the key; None for a server that
            needs none.
        timeout: Seconds that a server may be silent.
        retries: Tries after the first.
        requests_per_minute: At most this many; None sets no limit.
        price_in: Per million tokens read, in any one currency; None where unknown.
        price_out: Per million tokens written.
    """

    key_variable: Variable | None = None
    timeout: Positive = 60.0
    retries: Natural = 5
    requests_per_minute: Count | None = None
    price_in: NonNegative | None = None
    price_out: NonNegative | None = None

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Return what these tokens cost, in the currency of the prices; None where a price is unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


class ServerConfig(RequestConfig):
    """Where a language model is queried.

    Attributes:
        url: Base URL, such as "http://localhost:8000/v1".
        model: The model's name on that server.
    """

    url: Url
    model: Text

    def key(self) -> str | None:
        """Return the key from the environment, or None where the server needs none.

        Raises:
            InputError: the variable is not set, or its value cannot be a key.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not re.fullmatch(r"[!-~]+", key):
            raise InputError(
                f"the environment variable {self.key_variable} is not set, or holds a space or a character that no key "
                "has: put the server's key there."
            )
        return key


class WriterConfig(RequestConfig):
    """A language model that writes prompts: on this machine, or behind an OpenAI-compatible server.

    Attributes:
        model: A folder or a hub id; with ``server``, the model's name there. It must have a chat template.
        server: Base URL, such as "http://localhost:8000/v1"; None runs the model here.
        max_tokens: Tokens of a prompt at most, in the tokens of the model that is trained, with the separator.
        instruction: What the writer reads before the strategy and the passage.
        batch: Passages at a time: in one forward pass, or in requests to a server.
        limit_cost: Stop before the prompts of these passages cost more, in the currency of the prices.
    """

    model: Text
    server: Url | None = None
    max_tokens: Count = 64
    instruction: Text = INSTRUCTION
    batch: Count = 4
    limit_cost: Positive | None = None

    @model_validator(mode="after")
    def _check_server(self) -> Self:
        for name in ("key_variable", "requests_per_minute", "price_in", "price_out", "limit_cost"):
            if self.server is None and getattr(self, name) is not None:
                raise InputError(f"the writer's {name} is for a server, but none is named: name one, or leave it out.")
        if self.limit_cost is not None and (self.price_in is None or self.price_out is None):
            raise InputError("the writer's limit_cost needs price_in and price_out (per million tokens): add them.")
        if self.server is None and self.model != (resolved := _resolved(self.model, tuple(BASES))):
            self.model = resolved
        return self

    @property
    def room(self) -> int:
        """The tokens that the writer may write, in its own: those of the trained model are others; a longer text is cut off."""
        return 2 * self.max_tokens

    def describe(self) -> dict:
        """Return who writes and by which instruction, without what changes no prompt."""
        return self.model_dump(include={"model", "server", "max_tokens", "instruction"})

    def server_config(self) -> ServerConfig:
        """Return what the client of the server takes."""
        same = self.model_dump(include={"model", *RequestConfig.model_fields})
        return ServerConfig(url=self.server or "", **same)


class PromptConfig(Config):
    """Prompt sets: names of the package (`ctxft prompts list`), or paths of your YAML files (`ctxft prompts write FILE`).

    Attributes:
        strategies: The contextual prompts. "strategies-reworded" has the same in sentences that the practice models never
            read.
        negative: The prompts of arm neg.
        writer: The model that writes the prompts of arm adaptive, one for each passage (``ctxft prompts adapt``); None
            lets an oracle choose from the two prompt sets by the passage's truth label.
        exercise_tokens: Tokens that every passage leaves for the exercises of arm reading, where that is more than the
            longest prompt takes.
    """

    strategies: PromptSetName = "strategies"
    negative: PromptSetName = "negative"
    writer: WriterConfig | None = None
    exercise_tokens: Natural = 0


class LoraConfig(Config):
    """Low-rank adapters (peft). The paper's code offers r 8, lora_alpha 32, lora_dropout 0.1.

    Attributes:
        r: Rank of the two factors.
        lora_alpha: Scale; the update is multiplied by lora_alpha / r.
        lora_dropout: On the adapter's input, during training.
        target_modules: Names of the layers, or ["all-linear"].
    """

    r: Count = 8
    lora_alpha: Count = 32
    lora_dropout: Fraction = 0.1
    target_modules: list[str] = Field(default=["all-linear"], min_length=1)


class TrainConfig(Config):
    """How every arm of an experiment is trained; the arms differ in the prompt and in nothing else.

    Attributes:
        method: "full" or "lora".
        max_length: Tokens that a row may have, prompt and special tokens included.
        min_text_tokens: Text tokens that max_length must leave after the longest prompt.
        num_train_epochs: Passes over the passages; the last optimizer step is filled from a further pass.
        max_steps: Optimizer steps; where given, it replaces num_train_epochs.
        train_batch_size: Passages in an optimizer step, over all devices and micro-batches (no key of transformers means
            this).
        train_batch_tokens: Target tokens that an optimizer step may have, over all devices; where given, it replaces
            train_batch_size.
        micro_batch_tokens: Tokens in one forward pass on one device, prompts and padding included; changes speed and
            memory only.
        pack: Lay the rows of a step out side by side, none seeing another; false pads each to the longest of its
            micro-batch.
        attn_implementation: "auto" (segments on a CPU, varlen on a GPU, sdpa without packing), or one of them, or
            "eager".
        loss: "chunked" (logits of some targets at a time) or "full", for a model that changes its logits after the output
            layer.
        learning_rate: Peak, after warm-up.
        lr_scheduler_type: "linear" or "cosine" decay to zero, or "constant".
        warmup_steps: Optimizer steps of linear warm-up; below 1, a fraction of all.
        weight_decay, adam_beta1, adam_beta2, adam_epsilon: Of AdamW.
        max_grad_norm: Largest norm of the gradient; 0 turns clipping off.
        gradient_checkpointing: Recompute activations instead of storing them.
        save_steps: Optimizer steps between checkpoints; 0 writes none.
        report_to: Trackers that get what log.jsonl gets; each needs its package.
        device: "auto" (a GPU where there is one), "cpu" or "cuda". A GPU computes in bfloat16 over float32 weights.
        threads: CPU threads of a training or evaluation process; results are bit-identical for the same number only.
        lora: The adapters, with method "lora".
    """

    method: Literal["full", "lora"] = "full"
    max_length: Count = 128
    min_text_tokens: Count = 32
    num_train_epochs: Count = 5
    max_steps: Count | None = None
    train_batch_size: Count = 16
    train_batch_tokens: Count | None = None
    micro_batch_tokens: Count = 4096
    pack: bool = True
    attn_implementation: Literal["auto", "segments", "varlen", "sdpa", "eager"] = "auto"
    loss: Literal["chunked", "full"] = "chunked"
    learning_rate: Positive = 5e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: NonNegative = 0.05
    weight_decay: NonNegative = 0.0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NonNegative = 1.0
    gradient_checkpointing: bool = False
    save_steps: Natural = 0
    report_to: list[Tracker] = []
    device: Device = "auto"
    threads: Count = 1
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.micro_batch_tokens < self.max_length:
            raise InputError(
                f"micro_batch_tokens ({self.micro_batch_tokens}) must hold at least one row: max_length is "
                f"{self.max_length} tokens."
            )
        if self.warmup_steps >= 1 and not self.warmup_steps.is_integer():
            raise InputError(f"warmup_steps must be a fraction below 1 or a whole number, found {self.warmup_steps}.")
        return self


class InstructionConfig(Config):
    """The second stage of arms such as ``cft-ift``: supervised fine-tuning on instructions, the same for every arm.

    Attributes:
        source: "practice", a file or folder (jsonl, json, csv, tsv, parquet or arrow; the shapes of records are in the
            guide), or a hub id.
        split: Of a data set.
        subset: Of a data set.
        revision: Of a hub data set.
        limit: At most this many instructions.
        held_out: Fraction of instructions that are kept for the probe of what the answers look like.
        num_train_epochs, max_steps, learning_rate, train_batch_size: Replace those of ``train``; without num_train_epochs
            and max_steps it is one epoch.
    """

    source: Source = "practice"
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    limit: Count | None = None
    held_out: Fraction = 0.05
    num_train_epochs: Count | None = None
    max_steps: Count | None = None
    learning_rate: Positive | None = None
    train_batch_size: Count | None = None

    def recipe(self, train: TrainConfig) -> TrainConfig:
        """Return the recipe of this stage: that of the text stage, with what is set here instead."""
        values = self.model_dump(include={"learning_rate", "train_batch_size"}, exclude_none=True)
        values |= {"num_train_epochs": self.num_train_epochs or 1, "max_steps": self.max_steps}
        return train.replace(**values, **({"train_batch_tokens": None} if self.train_batch_size else {}))


class EvaluationConfig(Config):
    """What every arm is evaluated on.

    Attributes:
        benchmarks: Benchmarks of the practice world (practice-mmlu, practice-medqa, practice-fiqa, practice-causal20,
            practice-multifin, practice-old, ...: see ``ctxft.world.exams``), mmlu-medical (six subjects), one of them
            (mmlu-anatomy, ...), medqa, medmcqa, pubmedqa, fiqa, causal20, multifin, phrasebank-50agree, ... (all:
            ``ctxft.evaluation.benchmarks.NAMES``), or paths of your files (jsonl, json, csv, tsv, parquet).
        form: "mcf" (multiple-choice form: choices A-D shown, their letters scored), "cloze" (choices not shown, their
            texts scored) or "labels" (the labels named first); pubmedqa and the financial sets are always formatted as
            labels.
        num_fewshot: Solved questions shown before each: MMLU has five a subject, your x.csv those of x.dev.csv.
        apply_chat_template: Write each question as a turn of the user in the tokenizer's chat template.
        output_type: "loglikelihood" (the choice whose log-likelihood is highest) or "generate_until" (the model writes
            its answer; for models made to follow instructions).
        limit: At most this many items of each benchmark.
        data: Folder with local benchmark files; None loads from the hub.
        revisions: Commits or tags of hub sets, such as "medqa@1a2b3c4"; the others take their main branch. Files of
            ``data`` have none. What was loaded is recorded in metrics.json.
        max_batch_tokens: Tokens in one forward pass, padding included; None takes what suits the device; changes speed
            and memory only.
    """

    benchmarks: Annotated[list[Benchmark], Distinct] = ["practice-mmlu"]
    form: Literal["mcf", "cloze", "labels"] = "cloze"
    num_fewshot: Natural = 0
    apply_chat_template: bool = False
    output_type: Literal["loglikelihood", "generate_until"] = "loglikelihood"
    limit: Count | None = None
    data: Annotated[str, AfterValidator(_data_folder)] | None = None
    revisions: list[str] = []
    max_batch_tokens: Count | None = None

    @model_validator(mode="after")
    def _check_benchmarks(self) -> Self:
        from ctxft.evaluation.benchmarks import benchmark_name, benchmark_names

        known = benchmark_names()
        for pair in self.revisions:
            name, _, revision = pair.partition("@")
            if name not in self.benchmarks or name not in known or name in EXAMS or not revision:
                raise InputError(
                    f"evaluation.revisions: '{pair}' must be NAME@COMMIT, where NAME is one of evaluation.benchmarks that "
                    "the hub has, such as medqa@1a2b3c4."
                )
        stems = [benchmark_name(name) for name in self.benchmarks]
        if twice := [stem for stem in stems if stems.count(stem) > 1]:
            raise InputError(f"evaluation.benchmarks: two benchmarks are called '{twice[0]}': rename a file.")
        return self

    def revision_of(self, name: str) -> str | None:
        """Return the hub revision that the config names for a benchmark; None takes the main branch."""
        return dict(pair.split("@", 1) for pair in self.revisions).get(name)


class ExperimentConfig(Config):
    """An experiment: a model, a corpus, arms and seeds.

    Its YAML file may have parameters of the course under ``notebooks``, which are no part of it.

    Attributes:
        plugins: Folders with your arms (Python files, which are run; see ``ctxft.prompts.arms``), prompt sets and benchmarks
            (YAML files, named without .yaml under ``prompts`` and ``evaluation.benchmarks``).
        name: Of the run folder below the run root.
        model: "practice-aware" or "practice-blind", a folder or a hub id.
        revision: The model's hub revision.
        arms: Of ``base cpt cft neg control adaptive``, and those that take a prompt apart: see ``ctxft.prompts.arms``.
            base is evaluated, not trained; adaptive needs a model that writes prompts (prompts.writer), or a corpus that
            says which documents are reliable. ``cft-ift`` trains the model of ``cft`` further on instructions (so do the
            others' ``-ift``), ``ift`` the base model.
        seeds: Each seed draws its own order and prompts.
        corpus: The training texts.
        prompts: The prompt sets.
        train: The training of every arm.
        ift: The second stage of some arms.
        general: General text to mix in, and to measure forgetting on; None for neither.
        evaluation: The benchmarks.
    """

    plugins: Annotated[list[str], AfterValidator(_plugins)] = []  # the first, since the arms may be theirs
    name: FolderName
    model: Model = "practice-blind"
    revision: str | None = None
    arms: Annotated[list[Arm], Distinct] = ["base", "cpt", "cft", "neg"]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Distinct] = [0]
    corpus: CorpusConfig = CorpusConfig()
    prompts: PromptConfig = PromptConfig()
    train: TrainConfig = TrainConfig()
    ift: InstructionConfig = InstructionConfig()
    general: GeneralConfig | None = None
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)  # its checks import the benchmarks

    @model_validator(mode="before")
    @classmethod
    def _find_in_plugins(cls, values: Any) -> Any:
        """Replace names of prompt sets and benchmarks by their files where a plugin folder has them."""
        folders = values.get("plugins") if isinstance(values, dict) else None
        if not isinstance(folders, list):
            return values

        def find(name: Any) -> Any:
            if isinstance(name, list):
                return [find(item) for item in name]
            paths = [Path(str(folder)).expanduser() / f"{name}.yaml" for folder in folders]
            return next((str(path.resolve()) for path in paths if path.is_file()), name)

        for section, keys in (("prompts", ("strategies", "negative")), ("evaluation", ("benchmarks",))):
            if isinstance(chosen := values.get(section), dict):
                values = values | {section: chosen | {key: find(chosen[key]) for key in keys if key in chosen}}
        return values

    @property
    def folder(self) -> Path:
        """The run folder."""
        return runs_root() / self.name

    def identity(self) -> dict:
        """Return the part of the config that every result of the run folder depends on (not arms, seeds, evaluation)."""
        return self.model_dump(include={"model", "revision", "corpus", "prompts", "train", "ift", "general"})


# --- loading ----------------------------------------------------------------------------------------------------------

C = TypeVar("C", bound=BaseModel)


def from_mapping(kind: type[C], values: object, where: str, text: str = "", overrides: Sequence[str] = ()) -> C:
    """Check a mapping, and report all its mistakes at once.

    Args:
        kind: the config to make.
        values: the mapping, as read from YAML; missing keys take the field's default.
        where: the start of each message, e.g. "config.yaml".
        text: the YAML text that the values were read from, for the line of each mistake.
        overrides: dotted keys whose values are not those of the text.

    Raises:
        InputError: an unknown key (with the nearest right one, or its name now), a missing one, a wrong type or value.

    Example:
        >>> from_mapping(TrainConfig, {"max_steps": 3}, "my.yaml").max_steps
        3
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        mistakes = [(mistake["loc"], _message(kind, mistake)) for mistake in error.errors(include_url=False)]
    raise input_error(mistakes, where, text, overrides)


Loc = tuple[int | str, ...]


def input_error(
    mistakes: Iterable[tuple[Loc, str]], where: str, text: str, overrides: Sequence[str] = ()
) -> InputError:
    """Return an error with a sentence for each mistake, in the order of their lines.

    Args:
        mistakes: for each, the keys and indices that lead to its value, and a sentence.
        where, text, overrides: as for ``from_mapping``.
    """
    tree = yaml.compose(text, YamlLoader) if text else None
    lines = []
    for loc, message in mistakes:
        overridden = any(re.match(rf"{re.escape(key)}(?!\w)", _dotted(loc)) for key in overrides)
        line = 0 if tree is None or overridden else _line(tree, loc)
        lines.append((line, f"{where}{f', line {line}' if line else ''}: {message}"))
    messages = [message for _, message in sorted(lines, key=lambda pair: pair[0])]
    more = [f"{where}: and {len(messages) - MOST} more."] if len(messages) > MOST else []
    return InputError(*messages[:MOST], *more)


def _dotted(loc: Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _line(node: yaml.Node, loc: Loc) -> int:
    """Return the line of a value, or of the mapping that lacks it."""
    line = node.start_mark.line
    for part in loc:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        pair = next((pair for pair in pairs if pair[0].value == str(part)), None)
        if pair is None:
            break
        line, node = pair[0].start_mark.line, pair[1]
    return line + 1


def _message(kind: type[BaseModel], mistake: ErrorDetails) -> str:
    dotted = _dotted(mistake["loc"])
    value, message = mistake["input"], mistake["msg"].replace("Input should", "must").removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        return _unknown_key(kind, mistake["loc"], dotted)
    if mistake["type"] == "missing":
        return f"the key '{dotted}' is missing."
    if mistake["type"] == "value_error":
        return f"{dotted}: {message}".removeprefix(": ")
    if mistake["type"] == "model_type":
        message = "must be a mapping of keys to values"
    if new := RENAMED_VALUES.get(dotted, {}).get(str(value)):
        return f"{dotted}: '{value}' was renamed to '{new}'."
    hint = nearest(str(value), re.findall(r"'(\w+)'", message)) if mistake["type"] == "literal_error" else ""
    return f"{dotted} {message}, found {shown(value)}{hint}.".lstrip()


def _unknown_key(kind: type[BaseModel], loc: Loc, dotted: str) -> str:
    *parents, key = loc
    if dotted in RENAMED:
        new = RENAMED[dotted]
        names = " and ".join(f"'{_dotted((*parents, name))}'" for name in ([new] if isinstance(new, str) else new))
        values = ", ".join(f"{old} is now {new}" for old, new in RENAMED_VALUES.get(dotted, {}).items())
        return f"the key '{dotted}' was renamed to {names}{values and f' ({values})'}."
    for part in parents:
        kind = (part in kind.model_fields and _section(kind.model_fields[part].annotation)) or kind
    return f"unknown key '{dotted}'{nearest(str(key), kind.model_fields)}; known: {', '.join(kind.model_fields)}."


def _section(annotation: Any) -> Any:
    """Return the model in a type such as ``LoraConfig``, ``WriterConfig | None`` or ``dict[str, Family]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section(part))), None)


def load_yaml(kind: type[C], path: str | Path, text: str | None = None) -> C:
    """Read a YAML file; raises InputError with file and line for each of its mistakes."""
    text = read_text(Path(path)) if text is None else text
    return from_mapping(kind, parse_yaml(text, str(path)), str(path), text)


def override(values: dict, overrides: dict) -> dict:
    """Set values by dotted keys, in place, such as {"train.learning_rate": 1e-3}; returns the mapping."""
    for dotted, value in overrides.items():
        *parents, key = dotted.split(".")
        place = values
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise InputError(f"{dotted}: '{parent}' is a single value and has no keys below it.")
        place[key] = value
    return values


def _read_profile(source: str | Path) -> tuple[Path, str, dict]:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        name = check_known(str(source), sorted(p.stem for p in PROFILES.glob("*.yaml")), "profile")
        path = PROFILES / f"{name}.yaml"
    text = read_text(path)
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a mapping of keys to values, such as `name: my-run`.")
    return path, text, values


def load_experiment(source: str | Path, overrides: dict | None = None) -> ExperimentConfig:
    """Read an experiment from a profile of the kit or a YAML file, and set single values.

    Args:
        source: a profile's name ("mini") or the path of a YAML file.
        overrides: dotted keys and values, such as {"train.learning_rate": 1e-3, "seeds": [0, 1]}.

    Raises:
        InputError: an unknown profile; or all mistakes of the file, each with its line.

    Example:
        >>> load_experiment("mini", {"seeds": [7]}).seeds
        [7]
    """
    path, text, values = _read_profile(source)
    values.pop("notebooks", None)
    override(values, overrides or {})
    return from_mapping(ExperimentConfig, values, path.name, text, tuple(overrides or ()))


def notebook_parameters(source: str | Path) -> dict:
    """Return what a profile or YAML file has under ``notebooks``: parameters of the course, no part of the experiment."""
    path, _, values = _read_profile(source)
    parameters = values.get("notebooks", {})
    if not isinstance(parameters, dict):
        raise InputError(f"{path.name}: notebooks must be a mapping of parameters to values, such as `seed_number: 1`.")
    return parameters


def to_mapping(config: Config) -> dict:
    """Return a config as plain values, ready for YAML or JSON."""
    return config.model_dump()
