"""Hold one experiment with everything its stages share, so that nothing is looked up twice.

A ``Run`` is a config and a folder. What its stages read (tokenizer, prompt sets, passages, benchmarks, an arm's rows) is
built at first use and kept; ``prepare``, ``train`` and ``evaluate`` do what is not done yet.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctxft.config import PROFILES, ExperimentConfig, TrainConfig, from_mapping, load_experiment, override, to_mapping
from ctxft.data.corpus import Measured, targets_of_passages
from ctxft.data.passages import Passage
from ctxft.data.rows import PromptTemplate, Rows, longest_prompt, prompt_template, text_budget
from ctxft.evaluation.benchmarks import Benchmark, is_own, load_benchmark
from ctxft.evaluation.outcomes import Outcome, read_outcomes
from ctxft.models import load_model, model_hash, pick_device, shared_tokenizer
from ctxft.prompts import get_arm
from ctxft.run import prepare as preparation
from ctxft.run import tasks
from ctxft.run.prepare import TEXTS, Manifest
from ctxft.run.processes import count_workers, run_tasks
from ctxft.run.rows import ArmTexts, PromptSets, build_rows, load_prompt_sets
from ctxft.run.tasks import Task
from ctxft.storage import InputError, is_there, nearest, parse_json, read_checked, runs_root
from ctxft.training.loop import targets_of
from ctxft.training.schedule import passage_order
from ctxft.world.exams import EXAMS


class TrainingData(NamedTuple):
    """What one training reads: its rows, the prompts of the passages that it reads, the recipe, the rows of each step."""

    rows: Sequence[dict]
    sampled: Iterable[dict]
    recipe: TrainConfig
    order: list[list[int]]


class Run:
    """One experiment: matched arms of one model on one corpus, in one run folder.

    Args:
        source: a profile ("mini"), a YAML file, a run folder or the name of one below the run root, an ExperimentConfig, its
            values as a mapping, or these as text in braces, which is how a worker gets them.
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
        source: str | Path | Mapping | ExperimentConfig = "mini",
        seeds: Sequence[int] | None = None,
        arms: Sequence[str] | None = None,
        name: str | None = None,
        data: str | Path | None = None,
        overrides: dict | None = None,
    ) -> None:
        named = {"seeds": seeds and list(seeds), "arms": arms and list(arms), "name": name}
        named["evaluation.data"] = data and str(data)
        settings = (overrides or {}) | {key: value for key, value in named.items() if value is not None}
        self.wanted = _config_of(source, settings)
        self._cuts: dict[str, preparation.Cut] = {}
        self._measured: dict[str, Measured] = {}
        self._workshop: Path | None = None
        self._rows: dict[Task, tuple[Rows, ArmTexts]] = {}
        self._benchmarks: dict[tuple[str, str | None], Benchmark] = {}
        self._orders: dict[tuple[bool, int], list[list[int]]] = {}
        self._checked: Manifest | None = None
        self.adopt(Manifest.read(self.folder))

    def __fspath__(self) -> str:
        """Return the run folder, so that whatever reads one takes a Run too."""
        return str(self.folder)

    # --- what is on disk ----------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.wanted.folder

    def adopt(self, manifest: Manifest) -> None:
        """Take what the run was prepared with (an empty manifest before that), and its commits of inputs from the hub."""
        self.manifest, self.config = manifest, preparation.pinned(self.wanted, manifest.commits)

    def arm_folder(self, arm: str, seed: int = 0) -> Path:
        """Return where an arm's training of one seed is."""
        return self.folder / "arms" / arm / f"seed-{seed}"

    def eval_folder(self, arm: str, seed: int = 0) -> Path:
        """Return where an arm's outcomes of one seed are."""
        return self.folder / "evals" / arm / f"seed-{seed}"

    @property
    def is_prepared(self) -> bool:
        """Whether the run folder holds a run, perhaps one that another process has prepared since."""
        if not self.manifest.files:
            self.adopt(Manifest.read(self.folder))
        return bool(self.manifest.files)

    def recorded(self) -> Manifest:
        """Return the manifest; raises InputError where the run is not prepared."""
        if not self.is_prepared:
            raise InputError(f"{self.folder} is not a run yet: run `ctxft train` first.")
        return self.manifest

    def require_prepared(self) -> Manifest:
        """Return the manifest; raises InputError where the run is not prepared, or holds another experiment."""
        if self.recorded() is not self._checked:
            preparation.check_same(self)
            self._checked = self.manifest
        return self.manifest

    # --- what the stages share ----------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return shared_tokenizer(self.config.model, self.config.revision)

    @cached_property
    def prompt_sets(self) -> PromptSets:
        """The experiment's prompt sets: ``strategies`` and ``negative``."""
        return load_prompt_sets(self.wanted)

    @cached_property
    def template(self) -> PromptTemplate:
        """What surrounds every prompt: a separator, or the turns of the chat template."""
        return prompt_template(self.tokenizer, self.prompt_sets.strategies)

    @cached_property
    def longest_prompt(self) -> int:
        """The tokens that every passage leaves for what any arm adds to it."""
        prompts = self.config.prompts
        written = (
            prompts.writer.max_tokens + len(self.template.before) + len(self.template.after) if prompts.writer else 0
        )
        return max(longest_prompt(self.tokenizer, self.prompt_sets), prompts.exercise_tokens, written)

    @cached_property
    def budget(self) -> int:
        """The text tokens that a passage may have."""
        train = self.config.train
        return text_budget(train.max_length, self.longest_prompt, train.min_text_tokens)

    @property
    def workshop(self) -> Path:
        """Where passages are cut before the run is prepared: a temporary folder, or what ``use_workshop`` was given."""
        if self._workshop is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="ctxft-")
            self._workshop = Path(self._temporary.name)
        return self._workshop

    def use_workshop(self, place: Path | None) -> None:
        """Cut passages in a folder from now on, and forget what was cut before; None takes a temporary one."""
        self._workshop = place
        if place:
            for known in (self._cuts, self._rows, self._orders):
                known.clear()

    def measured(self, source: str) -> Measured:
        """Return what one look through the corpus or the general text shows; bad records are found then."""
        if source not in self._measured:
            self._measured[source] = preparation.measure_text(self, source)
        return self._measured[source]

    def cut(self, source: str) -> preparation.Cut:
        """Return a source of ``TEXTS`` as rows, cut once: those to train on, those held out, counts."""
        if source not in self._cuts:
            self._cuts[source] = preparation.cut_text(self, source)
        return self._cuts[source]

    def text(self, name: str) -> Sequence:
        """Return a text of ``TEXTS``, and before the run is prepared what it will be; empty where there is none."""
        source, held_out = TEXTS[name]
        kept, left_out, _ = self.cut(source)
        return left_out if held_out else kept

    @property
    def passages(self) -> Sequence[Passage]:
        """The passages that every arm trains on, each read when it is asked for."""
        return self.text("passages")

    @property
    def benchmarks(self) -> list[Benchmark]:
        """The benchmarks that every arm is evaluated on."""
        return [self.benchmark(source) for source in self.wanted.evaluation.benchmarks]

    def benchmark(self, source: str, revision: str | None = None) -> Benchmark:
        """Load a benchmark, once: from the ``data`` folder, the practice world, a file, or the hub at a revision."""
        options = self.wanted.evaluation
        revision = revision or options.revision_of(source)
        if (source, revision) not in self._benchmarks:
            data = Path(options.data) if options.data else None
            more = {"limit": options.limit, "num_fewshot": options.num_fewshot}
            self._benchmarks[source, revision] = load_benchmark(source, data=data, revision=revision, **more)
        return self._benchmarks[source, revision]

    @cached_property
    def held_out_rows(self) -> dict[str, Rows]:
        """The rows on which every arm's losses are measured: held-out text without and with prompts, general text."""
        held, general = self.text("held_out"), self.text("general_held_out")
        rows = {"": ("cpt", held), "prompted_": ("cft", held), "general_": ("cpt", general)}
        return {name: build_rows(self, arm, 0, passages)[0] for name, (arm, passages) in rows.items() if passages}

    # --- what an arm reads --------------------------------------------------------------------------------------------

    def rows(self, stage: str, seed: int = 0) -> tuple[Rows, ArmTexts]:
        """Return the rows of one stage of text, those of mixed-in general text last, and what the arm adds to them."""
        if (stage, seed) not in self._rows:
            self._rows[stage, seed] = build_rows(self, stage, seed, self.passages, self.mixed)
        return self._rows[stage, seed]

    @property
    def mixed(self) -> Sequence[Passage]:
        """The passages of general text that every arm reads too."""
        general = self.config.general
        return self.text("general") if general and general.share else []

    def order(self, arm: str, seed: int = 0) -> list[list[int]]:
        """Return the rows of each optimizer step of an arm's last stage: the same for all arms, whatever their prompts."""
        second, train, general = get_arm(arm).instructed, self.config.train, self.config.general
        if (second, seed) in self._orders:
            return self._orders[second, seed]
        if second:
            order = passage_order(targets_of(self.text("instructions")), self.config.ift.recipe(train), seed)
        else:  # counted by the text alone, not by prompts or exercises that are learned too
            own, mixed = map(targets_of_passages, (self.passages, self.mixed))
            order = passage_order(own, train, seed, mixed, general.share if general else 0.0)
        self._orders[second, seed] = order
        return order

    def training_data(self, arm: str, seed: int = 0) -> TrainingData:
        """Return what an arm's last stage trains on."""
        train, order = self.config.train, self.order(arm, seed)
        if get_arm(arm).instructed:
            return TrainingData(self.text("instructions"), [], self.config.ift.recipe(train), order)
        rows, texts = self.rows(arm, seed)
        read = sorted({place for step in order for place in step if place < len(texts)})
        return TrainingData(rows, texts.records(read), train, order)

    # --- stages -------------------------------------------------------------------------------------------------------

    @property
    def train_tasks(self) -> list[Task]:
        """The (arm, seed) pairs that are trained, those of one stage first."""
        trained = [arm for arm in self.wanted.arms if get_arm(arm).stages]
        arms = sorted(trained, key=lambda arm: len(get_arm(arm).stages))
        return [(arm, seed) for arm in arms for seed in self.wanted.seeds]

    @property
    def evaluate_tasks(self) -> list[Task]:
        """The (arm, seed) pairs that are evaluated: those trained, and base once, as seed 0."""
        return [(arm, 0) for arm in self.wanted.arms if not get_arm(arm).stages] + self.train_tasks

    def is_trained(self, arm: str, seed: int = 0) -> bool:
        """Return whether a task's training is finished; base needs none."""
        return not get_arm(arm).stages or (self.arm_folder(arm, seed) / "done.json").exists()

    def is_evaluated(self, arm: str, seed: int = 0) -> bool:
        """Return whether all results of a task are there, of this model and these benchmarks."""
        results, due = tasks.results_and_due(self, arm, seed)
        return bool(results["held_out"]) and not due

    def prepare(self, workers: int | None = None) -> Run:
        """Cut the corpus and write what all arms share; a run that is prepared already is checked; returns the run.

        Processes that prepare the same run at the same time do so one after another. One that was killed resumes where it was.

        Args:
            workers: processes that cut a large corpus; None takes one a core. The files are the same for any number.

        Raises:
            InputError: bad input, a folder that is not a run, or a run with another config (what differs is named).
        """
        preparation.prepare(self, workers)
        return self

    def train_task(self, arm: str, seed: int = 0, quiet: bool = True) -> dict:
        """Train one arm with one seed, or resume it; what is done already is not done again.

        Returns:
            The content of done.json: optimizer steps, passages, target tokens, seconds, model hash.

        Raises:
            InputError: the run is not prepared, its files changed, or another process trains this task now.
        """
        return tasks.train_task(self, arm, seed, quiet)

    def evaluate_task(self, arm: str, seed: int = 0) -> dict:
        """Evaluate one trained arm (or base) on every benchmark and on held-out text; valid results are kept.

        Returns:
            The content of metrics.json: held-out loss, and the metrics of each benchmark.

        Raises:
            InputError: the run is of another config, the arm is not trained, its model was changed since, or another process
                evaluates it now.
        """
        return tasks.evaluate_task(self, arm, seed)

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
        processes, workers = workers, self._count_workers(workers)
        for source in self.config.evaluation.benchmarks:  # bad questions are reported before hours of training
            if self.config.evaluation.data or source in EXAMS or is_own(source):  # the hub may be out of reach
                self.benchmark(source)
        self.prepare(processes)
        tasks.require_written(self)
        waiting = [task for task in self.train_tasks if not self.is_trained(*task)]
        run_tasks("train", self, waiting, workers, lambda task: self.is_trained(*task), tick)
        return self

    def evaluate(self, workers: int | None = None) -> Run:
        """Evaluate every trained arm that is not evaluated yet; arguments and errors as for ``train``."""
        workers = self._count_workers(workers)
        self.benchmarks  # noqa: B018  bad questions are reported before anything is written
        for task in self.train_tasks:
            tasks.require_trained(self, *task)
        self.prepare()
        waiting, started = [task for task in self.evaluate_tasks if not self.is_evaluated(*task)], time.time()

        def written(task: Task) -> bool:  # cheap, since it is asked many times a second
            path = self.eval_folder(*task) / "metrics.json"
            return path.exists() and path.stat().st_mtime >= started

        run_tasks("evaluate", self, waiting, workers, written)
        return self

    def _count_workers(self, wanted: int | None) -> int:
        return count_workers(wanted, self.config.train.threads, pick_device(self.config.train.device))

    # --- results ------------------------------------------------------------------------------------------------------

    def done(self, arm: str, seed: int = 0) -> dict:
        """Return the record of a finished training: the content of done.json."""
        return read_checked(self.arm_folder(arm, seed) / "done.json")

    def model_hash(self, arm: str, seed: int = 0) -> str:
        """Return the hash of a task's model; raises InputError if it is not trained yet."""
        tasks.require_trained(self, arm, seed)
        if not get_arm(arm).stages:
            return self.recorded().hashes["model"]
        return self.done(arm, seed)["model_hash"]

    def model(self, arm: str = "base", seed: int = 0) -> PreTrainedModel:
        """Load a trained arm's model, or the base model, onto the device of the recipe.

        Raises:
            InputError: it is not trained yet, or was changed after its training.
        """
        wanted, device = self.model_hash(arm, seed), pick_device(self.config.train.device)
        if not get_arm(arm).stages:
            return load_model(self.config.model, self.config.revision, device)
        folder = self.arm_folder(arm, seed)
        if model_hash(str(folder / "model")) != wanted:
            raise InputError(f"{folder / 'model'} was changed after training: remove {folder} and train it again.")
        return load_model(str(folder / "model"), device=device)

    def outcomes(self, benchmark: str, arm: str, seed: int = 0) -> list[Outcome]:
        """Return one arm's outcome for each item of a benchmark."""
        return read_outcomes(self.eval_folder(arm, seed) / f"{benchmark}.jsonl")


def _config_of(source: str | Path | Mapping | ExperimentConfig, settings: dict) -> ExperimentConfig:
    profiles = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if isinstance(source, ExperimentConfig):
        values = to_mapping(source)
    elif isinstance(source, Mapping):
        values = copy.deepcopy(dict(source))
    elif str(source).startswith("{"):
        values = parse_json(str(source), "config")
    elif Path(source).suffix in (".yaml", ".yml") or str(source) in profiles:
        return load_experiment(source, settings)
    else:
        folder = next(
            (place for place in (Path(source), runs_root() / source) if is_there(place / "manifest.json")), None
        )
        if folder is None:
            raise InputError(
                f"unknown profile '{source}'{nearest(str(source), profiles)}; known: {', '.join(profiles)}, a YAML file, or a "
                f"run (neither {Path(source)} nor {runs_root() / source} holds a manifest.json)."
            )
        values = to_mapping(Manifest.read(folder).experiment(folder))
    return from_mapping(ExperimentConfig, override(values, settings), "config")
