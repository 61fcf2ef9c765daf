"""Hold one experiment with everything its stages share, so that nothing is looked up twice.

A ``Run`` is a config and a folder. What its stages read (tokenizer, prompt sets, passages, benchmarks, an arm's rows) is
built at first use and kept; ``prepare``, ``train`` and ``evaluate`` do what is not done yet.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ctxft.config import ExperimentConfig, load_experiment, to_mapping
from ctxft.run.profiles import PROFILES
from ctxft.storage import InputError, from_mapping, is_there, nearest, runs_root

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ctxft.data.passages import Passage
    from ctxft.data.rows import PromptTemplate
    from ctxft.evaluation.benchmarks import Benchmark
    from ctxft.prompts import PromptSet
    from ctxft.run.tasks import Lesson

Task = tuple[str, int]  # (arm, seed)


class PromptSets(NamedTuple):
    """The two prompt sets of an experiment: the one of its contextual prompts, and the one of arm neg."""

    strategies: PromptSet
    negative: PromptSet


class Run:
    """One experiment: matched arms of one model on one corpus, in one run folder.

    Args:
        source: a profile ("mini"), a YAML file, a run folder or the name of one below the run root, or an ExperimentConfig.
        seeds, arms, name: replace those of the config.
        data: folder with local benchmark files, in place of the hub.
        overrides: further config keys, dotted, and their values, such as {"train.learning_rate": 1e-3}.

    Raises:
        InputError: there is no such profile, file or run, or a value is wrong.

    Example:
        >>> run = Run("mini", seeds=[0], name="example")
        >>> run.config.seeds, run.folder.name
        ([0], 'example')
    """

    def __init__(
        self,
        source: str | Path | ExperimentConfig = "mini",
        seeds: Sequence[int] | None = None,
        arms: Sequence[str] | None = None,
        name: str | None = None,
        data: str | Path | None = None,
        overrides: dict | None = None,
    ) -> None:
        settings = dict(overrides or {})
        named = {"seeds": seeds and list(seeds), "arms": arms and list(arms), "name": name}
        named["evaluation.data"] = data and str(data)
        settings |= {key: value for key, value in named.items() if value is not None}
        self.wanted = _config_of(source, settings)
        self._data: dict[Task, Lesson] = {}

    def __fspath__(self) -> str:
        """Return the run folder, so that whatever reads one takes a Run too."""
        return str(self.folder)

    # --- what is on disk ----------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.wanted.folder

    @property
    def manifest(self) -> dict | None:
        """The content of manifest.json; None before the run is prepared."""
        from ctxft.run.prepare import manifest_of

        return manifest_of(self.wanted)

    @property
    def config(self) -> ExperimentConfig:
        """The config, with hub revisions pinned to the commits that the run recorded."""
        from ctxft.run.prepare import pinned

        return pinned(self.wanted, self.manifest)

    def arm_folder(self, arm: str, seed: int = 0) -> Path:
        """Return where an arm's training of one seed is."""
        return self.folder / "arms" / arm / f"seed-{seed}"

    def eval_folder(self, arm: str, seed: int = 0) -> Path:
        """Return where an arm's outcomes of one seed are."""
        return self.folder / "evals" / arm / f"seed-{seed}"

    # --- what the stages share ----------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        from ctxft.models import shared_tokenizer

        return shared_tokenizer(self.config.model, self.config.revision)

    @cached_property
    def prompt_sets(self) -> PromptSets:
        """The experiment's prompt sets: ``strategies`` and ``negative``."""
        from ctxft.run.rows import prompt_sets_of

        return PromptSets(*prompt_sets_of(self.wanted))

    @cached_property
    def template(self) -> PromptTemplate:
        """What surrounds every prompt: a separator, or the turns of the chat template."""
        from ctxft.data.rows import prompt_template

        return prompt_template(self.tokenizer, self.prompt_sets.strategies)

    @cached_property
    def longest_prompt(self) -> int:
        """The tokens that every passage leaves for a prompt: those of the longest of all arms."""
        from ctxft.run.rows import longest_of

        return longest_of(self.config, self.tokenizer)

    @cached_property
    def budget(self) -> int:
        """The text tokens that a passage may have."""
        from ctxft.data.rows import text_budget

        train = self.config.train
        return text_budget(train.window, self.longest_prompt, train.min_text_tokens)

    @property
    def passages(self) -> list[Passage]:
        """The passages that every arm trains on."""
        return self._passages("passages")

    @property
    def held_out(self) -> list[Passage]:
        """The passages held out from every arm."""
        return self._passages("held_out")

    @property
    def general(self) -> list[Passage]:
        """The passages of general text; empty where the experiment names none."""
        return self._passages("general") if self.config.general else []

    @property
    def general_held_out(self) -> list[Passage]:
        """The held-out passages of general text; empty where the experiment names none."""
        return self._passages("general_held_out") if self.config.general else []

    def _passages(self, which: str) -> list[Passage]:
        from ctxft.run.rows import read_passages

        return read_passages(self.folder, which)

    @property
    def has_instructions(self) -> bool:
        """Whether an arm has the stage ift."""
        from ctxft.run.instruct import has_instructions

        return has_instructions(self.wanted.arms)

    def instructions(self, held_out: bool = False) -> list[dict]:
        """Return the rows of the stage ift (or those held out), each with id, input_ids, labels and text."""
        from ctxft.run.instruct import read_instruction_rows

        which = "instructions_held_out" if held_out else "instructions"
        return read_instruction_rows(self.folder, which) if self.has_instructions else []

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        """The benchmarks that every arm is evaluated on."""
        from ctxft.run.examine import load_benchmarks

        return load_benchmarks(self.wanted)

    # --- tasks --------------------------------------------------------------------------------------------------------

    @property
    def train_tasks(self) -> list[Task]:
        """The (arm, seed) pairs that are trained, those of one stage first."""
        from ctxft.run.tasks import train_tasks

        return train_tasks(self.wanted)

    @property
    def evaluate_tasks(self) -> list[Task]:
        """The (arm, seed) pairs that are evaluated: those trained, and base once."""
        from ctxft.run.tasks import evaluate_tasks

        return evaluate_tasks(self.wanted)

    def is_trained(self, arm: str, seed: int = 0) -> bool:
        """Return whether a task's training is finished."""
        return (self.arm_folder(arm, seed) / "done.json").exists()

    def is_evaluated(self, arm: str, seed: int = 0) -> bool:
        """Return whether all results of a task are there, of this model and these benchmarks."""
        from ctxft.run.examine import is_examined

        return is_examined(self.config, arm, seed, self.benchmarks)

    # --- stages -------------------------------------------------------------------------------------------------------

    def prepare(self) -> Run:
        """Cut the corpus and write what all arms share; a run that is prepared already is checked; returns the run.

        Raises:
            InputError: bad input, a folder that is not a run, or a run with another config (what differs is named).
        """
        from ctxft.run.prepare import prepare

        prepare(self.wanted)
        return self

    def training_data(self, arm: str, seed: int = 0) -> Lesson:
        """Return what an arm's last stage trains on: rows, the prompts sampled for them, recipe, rows of each step."""
        from ctxft.run.tasks import lesson_of

        if (arm, seed) not in self._data:
            self._data[arm, seed] = lesson_of(self.config, arm, seed, self.passages, self.tokenizer)
        return self._data[arm, seed]

    def train_task(self, arm: str, seed: int = 0, quiet: bool = True) -> dict:
        """Train one arm with one seed, or resume it; returns the content of done.json.

        Raises:
            InputError: the run is not prepared, its files changed, or another process trains this task now.
        """
        from ctxft.run.tasks import train_task

        return train_task(self.wanted, arm, seed, quiet)

    def evaluate_task(self, arm: str, seed: int = 0) -> dict:
        """Evaluate one trained arm (or base) on every benchmark and on held-out text; valid results are kept.

        Returns:
            The content of metrics.json.

        Raises:
            InputError: the run is of another config, the arm is not trained, or another process evaluates it now.
        """
        from ctxft.run.examine import evaluate_task

        return evaluate_task(self.wanted, arm, seed)

    def train(self, workers: int | None = None, tick: Callable[[], object] | None = None) -> Run:
        """Prepare the run and train what is not trained yet; returns the run.

        Args:
            workers: processes at a time; None takes one a core on a CPU, and one on a GPU.
            tick: called again and again while arms are trained, in place of a progress bar; what it raises stops them as
                Ctrl-C does, and checkpoints stay.

        Raises:
            InputError: bad input, with the message of the task that met it.
            FailedError: a task stopped for another reason; the end of its output is shown.
        """
        from ctxft.run.workers import train_all

        train_all(self.wanted, workers, tick)
        return self

    def evaluate(self, workers: int | None = None) -> Run:
        """Evaluate every trained arm that is not evaluated yet; arguments and errors as for ``train``."""
        from ctxft.run.workers import evaluate_all

        evaluate_all(self.wanted, workers)
        return self

    # --- results ------------------------------------------------------------------------------------------------------

    def model(self, arm: str = "base", seed: int = 0) -> PreTrainedModel:
        """Load a trained arm's model, or the base model, onto the device of the recipe.

        Raises:
            InputError: it is not trained yet, or was changed after its training.
        """
        from ctxft.run.examine import trained_model
        from ctxft.run.tasks import require_trained

        require_trained(self.wanted, arm, seed)
        return trained_model(self.config, arm, seed)

    def outcomes(self, benchmark: str, arm: str, seed: int = 0) -> list[dict]:
        """Return one arm's outcome for each item of a benchmark."""
        from ctxft.evaluation.outcomes import read_outcomes

        return read_outcomes(self.eval_folder(arm, seed) / f"{benchmark}.jsonl")


def _config_of(source: str | Path | ExperimentConfig, settings: dict) -> ExperimentConfig:
    if isinstance(source, ExperimentConfig):
        return _with_settings(to_mapping(source), settings) if settings else source
    profiles = {path.stem for path in PROFILES.glob("*.yaml")}
    if Path(source).suffix in (".yaml", ".yml") or str(source) in profiles:
        return load_experiment(source, settings)
    from ctxft.run.leaks import config_of_run

    folder = next((place for place in (Path(source), runs_root() / source) if is_there(place / "manifest.json")), None)
    if folder is None:
        raise InputError(
            f"unknown profile '{source}'{nearest(str(source), profiles)}, and no run of that name: neither {Path(source)} nor "
            f"{runs_root() / source} holds a manifest.json; the profiles are: {', '.join(sorted(profiles))}."
        )
    config = config_of_run(folder)
    return _with_settings(to_mapping(config), settings) if settings else config


def _with_settings(values: dict, settings: dict) -> ExperimentConfig:
    for dotted, value in settings.items():
        *parents, key = dotted.split(".")
        place = values
        for parent in parents:
            place = place[parent] = place.get(parent) or {}
        place[key] = value
    return from_mapping(ExperimentConfig, values, "Run")
