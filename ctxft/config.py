"""A profile or YAML file flows in; an experiment with every value checked flows out."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from ctxft.data.documents import CorpusConfig
from ctxft.data.instructions import PRACTICE
from ctxft.evaluation.benchmarks import FORMS, benchmark_names
from ctxft.evaluation.outcomes import RULES
from ctxft.extras.writer import WriterConfig
from ctxft.prompts import PROMPT_SETS, add_plugins, get_arm
from ctxft.run.profiles import path_of, values_of
from ctxft.storage import InputError, check_known, from_mapping, is_there, nearest, runs_root
from ctxft.training.config import TrainConfig
from ctxft.world.exams import EXAMS
from ctxft.world.facts import BASES
from ctxft.world.texts import SOURCES

LONGEST_NAME = 200  # bytes: a file system takes 255, and files beside the folder have longer names


@dataclass
class PromptConfig:
    """Prompt sets: "strategies" and "negative" inside the package, or paths of your own YAML files.

    `ctxft prompts list` names the others of the package, `ctxft prompts write FILE` starts one of your own.
    "strategies-reworded" and "negative-reworded" say the same in sentences that the practice models never read.

    Attributes:
        strategies, negative: the prompt sets.
        writer: the model that writes the prompts of arm adaptive, one for each passage (``ctxft prompts adapt``); None lets
            an oracle choose from the two prompt sets by the passage's truth label.
        exercise_tokens: room that every passage leaves for the exercises of arm reading, where it should be more than the
            longest prompt takes anyway.
    """

    strategies: str = "strategies"
    negative: str = "negative"
    writer: WriterConfig | None = None
    exercise_tokens: int = 0

    def __post_init__(self) -> None:
        if self.exercise_tokens < 0:
            raise InputError(f"prompts.exercise_tokens must be 0 tokens or more, found {self.exercise_tokens}.")


@dataclass
class InstructionConfig:
    """The second stage of arms such as ``cft-ift``: instructions with answers, the same for every arm.

    Attributes:
        source: "practice", a jsonl file (prompt and response, or instruction, input and output, or messages), or a hub id.
        split, revision: of a hub data set.
        limit: at most this many instructions.
        held_out: share of instructions that are kept for the probe of what the answers look like.
        epochs, steps, learning_rate, batch_passages: replace those of ``train`` in this stage; where neither epochs nor steps
            are given it takes one epoch.
    """

    source: str = "practice"
    split: str = "train"
    revision: str | None = None
    limit: int | None = None
    held_out: float = 0.05
    epochs: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    batch_passages: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise InputError(f"ift.held_out must be a share from 0 to below 1, found {self.held_out}.")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"ift.limit must be at least 1 instruction, found {self.limit}.")

    def recipe(self, train: TrainConfig) -> TrainConfig:
        """Return the recipe of this stage: that of the text stage, with what is set here instead."""
        own = {
            name: getattr(self, name) for name in ("learning_rate", "batch_passages") if getattr(self, name) is not None
        }
        own |= {"epochs": 1 if self.epochs is None else self.epochs, "steps": self.steps}
        return dataclasses.replace(train, **own, **({"batch_tokens": None} if self.batch_passages else {}))


@dataclass
class GeneralConfig(CorpusConfig):
    """General text, unlike the domain's: to measure what is forgotten, and to mix in against it.

    Attributes:
        source: "practice-old", or as for the corpus.
        share: of general text among the passages of an epoch; it stands without a prompt in every arm.
    """

    source: str = "practice-old"
    share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share < 1:
            raise InputError(f"general.share must be a share from 0 to below 1, found {self.share}.")


@dataclass
class EvaluationConfig:
    """What every arm is examined on.

    Attributes:
        benchmarks: exams of the practice world (practice-mmlu, practice-medqa, practice-fiqa, practice-causal20,
            practice-multifin, practice-old, ...: see ``ctxft.world.exams``), mmlu-medical (six subjects), one of them
            (mmlu-anatomy, ...), medqa, medmcqa, pubmedqa, fiqa, causal20, multifin, phrasebank-50agree, ... (all:
            ``ctxft.evaluation.benchmarks.benchmark_names``), or paths of your own jsonl files.
        form: "lettered" (options A-D shown), "options" (options not shown, their texts scored) or "labels" (the labels
            named first); pubmedqa and the financial sets are always asked in the last.
        shots: solved questions shown before each: MMLU has five a subject, your own x.jsonl those of x.dev.jsonl.
        chat_template: write each question as a turn of the user in the tokenizer's chat template.
        rule: "likelihood" (the choice whose log-likelihood is highest) or "generate" (the model writes its answer; for
            models made to follow instructions).
        limit: at most this many items of each benchmark.
        data: folder with local benchmark files; None loads from the hub.
        revisions: commits or tags of hub sets, such as "medqa@1a2b3c4"; the others take their main branch. Files of
            ``data`` have none. What was loaded stands in metrics.json.
        token_budget: tokens in one forward pass, padding included; None takes what suits the device; changes speed and
            memory only.
    """

    benchmarks: list[str] = field(default_factory=lambda: ["practice-mmlu"])
    form: str = "options"
    shots: int = 0
    chat_template: bool = False
    rule: str = "likelihood"
    limit: int | None = None
    data: str | None = None
    revisions: list[str] = field(default_factory=list)
    token_budget: int | None = None

    def __post_init__(self) -> None:
        check_known(self.form, FORMS, "evaluation.form")
        check_known(self.rule, RULES, "evaluation.rule")
        for name in ("limit", "token_budget"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"evaluation.{name} must be at least 1, found {getattr(self, name)}.")
        if self.shots < 0:
            raise InputError(f"evaluation.shots must be at least 0, found {self.shots}.")
        if self.data is not None and not os.path.isdir(self.data):
            raise InputError(f"evaluation.data (--data) must be a folder with benchmark files, found '{self.data}'.")
        known = benchmark_names()
        for name in self.benchmarks:
            if name not in known and Path(name).suffix not in (".jsonl", ".yaml"):
                raise InputError(
                    f"unknown benchmark '{name}'{nearest(name, known)}; known: {', '.join(known)}, or the path of a .jsonl or"
                    " .yaml file."
                )
        for pair in self.revisions:
            name, _, revision = pair.partition("@")
            if name not in self.benchmarks or name not in known or name in EXAMS or not revision:
                raise InputError(
                    f"evaluation.revisions: '{pair}' must be NAME@COMMIT, where NAME is one of evaluation.benchmarks that "
                    "the hub has, such as medqa@1a2b3c4."
                )
        stems = [name if name in known else Path(name).stem for name in self.benchmarks]
        if twice := [stem for stem in stems if stems.count(stem) > 1]:
            raise InputError(f"evaluation.benchmarks: two benchmarks are called '{twice[0]}': rename a file.")

    def revision_of(self, name: str) -> str | None:
        """Return the hub revision that is asked for of a benchmark; None takes the main branch."""
        return dict(pair.split("@", 1) for pair in self.revisions).get(name)


@dataclass
class ExperimentConfig:
    """An experiment: a model, a corpus, arms and seeds.

    Its YAML file may hold parameters of the course under ``notebooks``, which are no part of it.

    Attributes:
        name: of the run folder below the run root.
        model: "practice-aware" or "practice-blind", a folder or a hub id.
        revision: the model's hub revision.
        arms: of ``base cpt cft neg control adaptive``, and those that take a prompt apart: see ``ctxft.prompts.arms``. base
            is examined, not trained; adaptive needs a model that writes prompts (prompts.writer), or a corpus that says which
            documents are reliable. ``cft-ift`` trains the model of ``cft`` further on instructions (so do the others'
            ``-ift``), ``ift`` the base model.
        seeds: each seed draws its own order and prompts.
        general: general text to mix in, and to measure forgetting on; None for neither.
        corpus, prompts, train, ift, evaluation: see their classes.
        plugins: folders with your own arms (Python files, which are run; see ``ctxft.prompts.arms``) and prompt sets (YAML
            files, named without .yaml under ``prompts``).
    """

    name: str
    model: str = "practice-blind"
    revision: str | None = None
    arms: list[str] = field(default_factory=lambda: ["base", "cpt", "cft", "neg"])
    seeds: list[int] = field(default_factory=lambda: [0])
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ift: InstructionConfig = field(default_factory=InstructionConfig)
    general: GeneralConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    plugins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._resolve_paths()
        if not _is_folder_name(self.name):
            raise InputError(
                f"name must be a plain folder name, found '{self.name}' (no path, no hidden characters, {LONGEST_NAME} bytes)."
            )
        for what, values in (
            ("arms", self.arms),
            ("seeds", self.seeds),
            ("evaluation.benchmarks", self.evaluation.benchmarks),
        ):
            if not values or len(set(values)) != len(values):
                raise InputError(f"{what} must be a list of different values with at least one, found {values}.")
        add_plugins(self.plugins)
        for arm in self.arms:
            get_arm(arm)
        try:
            self.ift.recipe(self.train)
        except InputError as error:
            raise InputError(f"ift: {error}") from None
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise InputError(f"seeds must be whole numbers from 0 to 2**32 - 1, found {seed}.")

    def _resolve_paths(self) -> None:
        """Make relative paths absolute, since tasks and notebooks may run in another folder."""

        def resolved(name: str | None, known: tuple[str, ...]) -> str | None:
            return str(Path(name).resolve()) if name and name not in known and is_there(name) else name

        self.plugins = [str(Path(folder).expanduser().resolve()) for folder in self.plugins]
        self.model = resolved(self.model, tuple(BASES))
        for corpus in (self.corpus, *([self.general] if self.general else [])):
            corpus.source = resolved(corpus.source, tuple(SOURCES))
        self.ift.source = resolved(self.ift.source, (PRACTICE,))
        for name in ("strategies", "negative"):
            source = getattr(self.prompts, name)
            found = next((p for f in self.plugins if (p := Path(f) / f"{source}.yaml").exists()), source)
            setattr(self.prompts, name, resolved(str(found), PROMPT_SETS))
        if self.prompts.writer and self.prompts.writer.server is None:
            self.prompts.writer.model = resolved(self.prompts.writer.model, tuple(BASES))
        self.evaluation.data = resolved(self.evaluation.data, ())
        self.evaluation.benchmarks = [resolved(name, benchmark_names()) for name in self.evaluation.benchmarks]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return runs_root() / self.name

    def identity(self) -> dict:
        """Return the part of the config that every result of the run folder depends on (not arms, seeds, evaluation)."""
        values = dataclasses.asdict(self)
        return {key: values[key] for key in ("model", "revision", "corpus", "prompts", "train", "ift", "general")}


def _is_folder_name(name: str) -> bool:
    """Return whether a name stays in its folder, on any system, and can be read: no path, no control characters."""
    plain = bool(name) and name.isprintable() and not set(name) & set('/\\:*?"<>|')
    return plain and name[0] not in ". " and name[-1] not in ". " and len(name.encode()) <= LONGEST_NAME


def load_experiment(source: str | Path, overrides: dict | None = None) -> ExperimentConfig:
    """Read an experiment from a profile of the kit or a YAML file, and set single values.

    Args:
        source: a profile's name ("mini") or the path of a YAML file.
        overrides: dotted keys and values, such as {"train.learning_rate": 1e-3, "seeds": [0, 1]}.

    Raises:
        InputError: unknown profile or key (the nearest is named), a value of the wrong type, a value out of range.

    Example:
        >>> load_experiment("mini", {"seeds": [7]}).seeds
        [7]
    """
    path = path_of(source)
    values = values_of(path)
    values.pop("notebooks", None)
    for dotted, value in (overrides or {}).items():
        *parents, key = dotted.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(f"{dotted}: '{parent}' is a single value and has no keys below it.")
        place[key] = value
    return from_mapping(ExperimentConfig, values, path.name)


def to_mapping(config: ExperimentConfig) -> dict:
    """Return an experiment as plain values, ready for YAML or JSON."""
    return dataclasses.asdict(config)
