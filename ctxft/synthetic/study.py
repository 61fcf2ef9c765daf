"""Pre-train, fine-tune and evaluate networks: every arm and seed of a study, as one JSON value of results.

    pretrain: in-context linear regression with a curriculum of points -> pretrain/seed-<n>/
    finetune: one arm from there on one target -> <target>/<arm>/seed-<n>/ {network.safetensors, log.jsonl, done.json}

One loop serves both. Tasks are sampled on the device, and losses stay there until a line is logged. Each worker walks the
whole list of trainings and takes those that are neither done nor locked by another; what was killed starts from scratch, to
the same bits.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from ctxft.run.processes import count_workers, run_parallel
from ctxft.storage import (
    DONE,
    BusyError,
    InputError,
    code_revision,
    is_whole,
    read_checked,
    read_json,
    read_jsonl,
    step,
    versions,
    write_json,
    write_jsonl,
)
from ctxft.synthetic.config import SyntheticConfig, check_study
from ctxft.synthetic.regression import (
    TARGET_FUNCTIONS,
    Draws,
    Regressor,
    Tasks,
    context_of,
    draw_chance,
    draw_tasks,
    make_generator,
    make_network,
    predict,
    squared_errors,
    to_device,
)

WEIGHTS, LOG, MANIFEST = "network.safetensors", "log.jsonl", "manifest.json"
FINETUNING = 10_000_000  # first step in the seeds of fine-tuning's tasks, which are not those of pre-training
TEST_BATCH = 160  # test sequences at a time
TRIALS = 1000  # resamplings of a bootstrap band
QUADRATURE = 64  # nodes of the normal distribution
CONTEXTS = {"own": None, "fresh": "fresh", "none": "cpt"}  # what the trained network reads at the test


# --- errors, baselines, alignment -------------------------------------------------------------------------------------


def evaluation_batches(config: SyntheticConfig, target: str, device: str = "cpu") -> Iterator[tuple[Tasks, Draws]]:
    """Yield the test tasks, the same for all arms and seeds of a study, drawn on the CPU whatever the device."""
    for number, start in enumerate(range(0, config.test_prompts, TEST_BATCH)):
        size = min(TEST_BATCH, config.test_prompts - start)
        tasks = draw_tasks(make_generator("cpu", "test", number), target, size, config.points, config.dims)
        draws = draw_chance(make_generator("cpu", "test context", number), tasks)
        yield to_device(tasks, device), to_device(draws, device)


def derivatives(network: nn.Module, arm: str, tasks: Tasks, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Return how the last prediction and the true function change with the last x; one backward pass.

    Args:
        network: as in ``predict``.
        arm: whose context is read.
        tasks: the batch.
        draws: what the contexts of this batch need.

    Returns:
        Three times (batch, dims). *partial*: every copy of x moves and the context's y stay, as the authors measured.
        *total*: the context's y move with x, as they do in the experiment. *true*: the gradient of the target function.
    """
    x = tasks.x.detach().requires_grad_()
    moved = tasks.at(x)
    true = torch.autograd.grad(moved.values(x).sum(), x)[0][:, -1]
    context = context_of(arm, moved, draws)
    if context is None or not context[1].requires_grad:
        partial = torch.autograd.grad(predict(network, moved, context)[:, -1].sum(), x)[0][:, -1]
        return partial, partial, true
    held = context[1].detach().requires_grad_()
    last = predict(network, moved, (context[0], held))[:, -1].sum()
    by_x, by_y = torch.autograd.grad(last, (x, held), retain_graph=True)
    through_y = torch.autograd.grad(context[1], x, by_y)[0]
    return by_x[:, -1], (by_x + through_y)[:, -1], true


def alignment(network: nn.Module, arm: str, tasks: Tasks, draws: Draws) -> dict[str, Tensor]:
    """Return the mean cosine of the partial and of the total derivative with the true gradient, as two numbers.

    Sequences whose true gradient is zero (relu left of its kink) have no direction and are left out.
    """
    *ours, true = derivatives(network, arm, tasks, draws)
    cosines = (nn.functional.cosine_similarity(gradient, true, dim=1) for gradient in ours)
    means = [torch.where(true.norm(dim=1) > 0, cosine, math.nan).nanmean() for cosine in cosines]
    return {"partial": means[0], "total": means[1]}


def bootstrap_band(errors: Tensor, seed: int = 0) -> dict[str, list[float]]:
    """Return mean and 95 % bootstrap band of errors (prompts, points), resampled by prompt, as lists over points."""
    errors = errors.double().cpu()
    count = len(errors)
    drawn = torch.randint(count, (TRIALS, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(TRIALS, count, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones(1).double().expand_as(drawn))
    low, high = (weights @ errors / count).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return {"mean": errors.mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}


def evaluate_network(network: nn.Module, arm: str, config: SyntheticConfig, target: str) -> dict:
    """Return how a trained network does on the test tasks.

    Args:
        network: trained, on the config's device.
        arm: what it was trained with.
        config: sizes.
        target: name of the target function.

    Returns:
        ``errors``: for its own context, a fresh one and none, mean and band by number of target pairs read before;
        ``alignment``: partial and total, on the test tasks with its own context.
    """
    batches = list(evaluation_batches(config, target, config.device))
    with torch.no_grad():
        errors = {
            name: bootstrap_band(torch.cat([squared_errors(network, other or arm, *batch) for batch in batches]))
            for name, other in CONTEXTS.items()
        }
    cosines = [alignment(network, arm, *batch) for batch in batches]
    means = {name: torch.stack([row[name] for row in cosines]).nanmean().item() for name in ("partial", "total")}
    return {"errors": errors, "alignment": means}


def least_squares_errors(x: Tensor, y: Tensor) -> Tensor:
    """Return squared errors of the least-squares line of smallest norm through the pairs before each point.

    Args:
        x: (batch, points, dims).
        y: (batch, points).

    Returns:
        (batch, points). For noiseless linear functions with normal weights no predictor has a smaller expected error.

    Example:
        >>> least_squares_errors(torch.ones(1, 2, 1), torch.tensor([[3.0, 3.0]])).round().tolist()
        [[9.0, 0.0]]
    """
    errors = [y[:, 0].square().double()]
    for seen in range(1, x.shape[1]):
        weights = torch.linalg.pinv(x[:, :seen].double()) @ y[:, :seen, None].double()
        guess = (x[:, seen, None].double() @ weights)[:, 0, 0]
        errors.append((guess - y[:, seen].double()).square())
    return torch.stack(errors, 1)


def _mean_given_scale(target: str, scale: Tensor, scale2: Tensor) -> Tensor:
    """Return E[f(scale z, scale2 z2)] over standard normal z, z2, for scales of shape (batch,)."""
    nodes, weights = (torch.from_numpy(part) for part in numpy.polynomial.hermite_e.hermegauss(QUADRATURE))
    s, s2 = (size.double().view(-1, 1, 1) * nodes.view(shape) for size, shape in ((scale, (-1, 1)), (scale2, (1, -1))))
    values = TARGET_FUNCTIONS[target](*torch.broadcast_tensors(s, s2))
    return torch.einsum("bij,i,j->b", values, weights, weights) / weights.sum() ** 2


def baselines(config: SyntheticConfig, target: str) -> dict[str, list[float]]:
    """Return the mean squared errors, by number of pairs seen, of predictors that no network should lose to.

    Returns:
        ``constant``: the best constant; ``scale``: the best guess from the lengths of w and w2 alone. For linear
        functions also ``least_squares``: the line through the pairs before, the optimum without a context; and for
        sumdot ``given_w``: the same for what is left when w is known. Lists over points, measured on the test tasks.
    """
    errors: dict[str, list[Tensor]] = defaultdict(list)
    large = draw_tasks(make_generator("cpu", "constant"), target, 100_000, 1, config.dims)
    constant = large.values(large.x).double().mean()
    for tasks, _ in evaluation_batches(config, target):
        y = tasks.values(tasks.x)
        by_scale = _mean_given_scale(target, tasks.w.norm(dim=1), tasks.w2.norm(dim=1))
        errors["constant"].append((y - constant).square())
        errors["scale"].append((y - by_scale[:, None]).square())
        if target in ("linear", "sumdot"):  # of a bent function a line is no bound, and at points == dims it is wild
            errors["least_squares"].append(least_squares_errors(tasks.x, y))
        if target == "sumdot":
            errors["given_w"].append(least_squares_errors(tasks.x, y - tasks.linear(tasks.x)))
    return {name: torch.cat(parts).mean(0).tolist() for name, parts in errors.items()}


# --- one training -----------------------------------------------------------------------------------------------------


def rate_at(config: SyntheticConfig, step: int, steps: int) -> float:
    """Return the rate of an optimizer step, counted from 0: linear warm-up, constant, linear decay to a twentieth."""
    factor = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if decay := config.decay_share * steps:
        factor *= min(1.0, max(0.05, (steps - step) / decay))
    return config.learning_rate * factor


def points_at(config: SyntheticConfig, step: int) -> int:
    """Return how many points a pre-training sequence has at a step: two more each ``points_every`` steps."""
    return min(config.points, config.start_points + 2 * (step // config.points_every))


@dataclass(frozen=True)
class SyntheticTraining:
    """The pre-training of a seed on in-context linear regression, or an arm's fine-tuning from there on a target.

    Args:
        config: the study.
        seed: of the weights and of the tasks, which are the same in every arm.
        target: name of the target function.
        arm: one of ARMS, or "" to pre-train.
    """

    config: SyntheticConfig
    seed: int
    target: str = "linear"
    arm: str = ""

    @property
    def name(self) -> str:
        """The training's folder below that of the study."""
        return f"{f'{self.target}/{self.arm}' if self.arm else 'pretrain'}/seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where network, log and results go."""
        return self.config.folder / self.name

    @property
    def steps(self) -> int:
        """All optimizer steps."""
        return self.config.finetune_steps if self.arm else self.config.pretrain_steps

    @property
    def log(self) -> dict[str, list]:
        """The log so far, a list for each column: a row per ``log_every`` steps, with the mean loss since the row before."""
        rows = [row for _, row in read_jsonl(self.folder / LOG)] if (self.folder / LOG).exists() else []
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {"step": [], "loss": []}

    @property
    def result(self) -> dict:
        """Device and seconds of a finished training; for an arm errors by context and alignment, else the last loss."""
        return read_checked(self.folder / DONE)["result"]

    def network(self) -> Regressor:
        """Return the trained network, on the CPU."""
        network = make_network(self.config, 0)
        network.load_state_dict(load_file(self.folder / WEIGHTS))
        return network

    def batch_at(self, step: int) -> tuple[Tasks, Draws]:
        """Return what an optimizer step reads, drawn on the device."""
        config, first = self.config, FINETUNING if self.arm else 0
        points = config.points if self.arm else points_at(config, step)
        tasks_from = make_generator(config.device, self.seed, "tasks", first + step)
        tasks = draw_tasks(tasks_from, self.target, config.batch, points, config.dims)
        return tasks, draw_chance(make_generator(config.device, self.seed, "context", step), tasks)

    def run(self, wait: bool = False) -> None:
        """Train and evaluate the network, once.

        Args:
            wait: wait for another process that trains it, instead of refusing.

        Raises:
            BusyError: another process trains it.
        """
        config, inputs = self.config, {"config": self.config.what(), "training": self.name}
        doing = f"trains {self.name} in {config.folder}"
        with step(self.folder, inputs, doing=doing, wait=wait) as stage:
            if stage.done:
                return
            started = time.perf_counter()
            network = SyntheticTraining(config, self.seed).network() if self.arm else make_network(config, self.seed)
            losses = self._train(network.to(config.device))
            save_file({name: value.cpu() for name, value in network.state_dict().items()}, self.folder / WEIGHTS)
            stage.result = (
                evaluate_network(network, self.arm, config, self.target) if self.arm else {"loss": losses[-1]}
            )
            stage.result |= {"device": config.device, "seconds": round(time.perf_counter() - started, 1)}

    def _train(self, network: Regressor) -> list[float]:
        """Train by Adam, write the log as it grows, and return its losses."""
        optimizer = torch.optim.Adam(network.parameters(), lr=self.config.learning_rate, fused=True)
        rows, recent = [], []
        for number in range(self.steps):
            optimizer.param_groups[0]["lr"] = rate_at(self.config, number, self.steps)
            tasks, draws = self.batch_at(number)
            if self.arm:
                loss = squared_errors(network, self.arm, tasks, draws).mean()
            else:
                y = tasks.values(tasks.x)
                loss = (network(tasks.x, y) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recent.append(loss.detach())
            if (number + 1) % self.config.log_every == 0 or number + 1 == self.steps:
                measured = alignment(network, self.arm, tasks, draws) if self.arm else {}
                row = {"loss": torch.stack(recent).mean(), **measured}
                rows.append({"step": number + 1} | {name: value.item() for name, value in row.items()})
                write_jsonl(self.folder / LOG, rows)
                recent.clear()
        return [row["loss"] for row in rows]


# --- all of them ------------------------------------------------------------------------------------------------------


def trainings(
    config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]
) -> tuple[list[SyntheticTraining], list[SyntheticTraining]]:
    """Return the pre-trainings of a study, one a seed, and the fine-tunings of its arms."""
    arm_by_arm = [SyntheticTraining(config, seed, target, arm) for arm in arms for seed in seeds]
    return [SyntheticTraining(config, seed) for seed in seeds], arm_by_arm


def run_study_tasks(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> None:
    """Train in this process what is neither done nor being trained by another process, and wait for the rest.

    Args:
        config: the study.
        target: name of the target function.
        arms: names of ARMS.
        seeds: each pre-trained once, for all arms.
    """
    before, after = trainings(config, target, arms, seeds)
    after.reverse()  # the slowest arms are last in ARMS; begun first, they do not keep a core waiting
    for wanted in (before, after):
        for wait in (False, True):
            for training in wanted:
                with contextlib.suppress(BusyError):
                    training.run(wait)


def prepare_study(config: SyntheticConfig) -> dict:
    """Return the manifest of the study's folder, written by the first call: config, versions and code.

    Raises:
        InputError: the folder holds another config; the first value that differs is named.
    """
    path, wanted = config.folder / MANIFEST, config.what()
    if not path.exists():
        write_json(path, {"config": wanted, "versions": versions(), "code": code_revision()})
    manifest = read_json(path)
    for name, value in wanted.items():
        if (there := manifest["config"].get(name)) != value:
            raise InputError(
                f"{config.folder} holds a study with {name} {there}, not {value}: "
                "choose another name (--name), or remove the folder."
            )
    return manifest


def run_study(
    config: SyntheticConfig,
    target: str,
    arms: list[str],
    seeds: list[int],
    workers: int | None = None,
    watch: Callable[[dict], object] | None = None,
    every: float = 3.0,
) -> dict:
    """Pre-train, fine-tune and evaluate what is not done yet, and return all results.

    Args:
        config: sizes, steps and rates.
        target: name of the target function.
        arms: names of ARMS.
        seeds: whole numbers from 0.
        workers: processes at a time; None takes one a core on a CPU, and one on a GPU.
        watch: called with ``read_progress`` while trainings run, for curves that grow.
        every: seconds between two calls of ``watch``, and two states of the progress bar.

    Returns:
        One JSON value, numbers rounded to six digits: ``target``, ``config``, ``arms``, ``seeds``, ``versions``, ``code``,
        ``baselines``, ``pretrain`` (seed -> loss ...) and ``runs`` (arm -> seed -> errors, alignment, seconds, device, log
        as a list for each column).

    Raises:
        InputError: unknown names, or another study in the folder.
        FailedError: a worker stopped; the end of its output is shown.

    Example:
        >>> run_study(load_config("mini"), "polynomial", ["cft", "cpt"], [0])  # doctest: +SKIP
    """
    from ctxft.models import pick_device  # brings transformers, which workers do not need

    check_study(target, arms, seeds)
    config = config.model_copy(update={"device": pick_device(config.device)})
    workers = count_workers(workers, config.threads, config.device)
    manifest = prepare_study(config)
    before, after = trainings(config, target, arms, seeds)
    missing = [training for training in before + after if not is_whole(training.folder)]

    def tick() -> None:
        bar.update(max(0, sum(sum(training.log["step"][-1:]) for training in missing) - bar.n))
        if watch:
            watch(read_progress(config, target, arms, seeds))

    if missing:
        task = json.dumps({"config": vars(config), "target": target, "arms": list(arms), "seeds": list(seeds)})
        commands = [[sys.executable, "-m", "ctxft.synthetic", task]] * min(workers, len(missing))
        variables = {"OMP_NUM_THREADS": str(config.threads), "CTXFT_RUNS": str(config.folder.parent)}
        steps = sum(training.steps for training in missing)
        with tqdm(total=steps, desc=f"synthetic {target}", unit="step", leave=False) as bar:
            run_parallel("synthetic", commands, variables, tick, every)
    run_study_tasks(config, target, arms, seeds)  # what is done and whole stays, what was damaged is trained again
    study = {"arms": list(arms), **manifest, **read_progress(config, target, arms, seeds)}
    study["pretrain"] = {str(training.seed): training.result for training in before}
    for training in after:
        study["runs"][training.arm][str(training.seed)] |= training.result
    return json.loads(json.dumps(study), parse_float=lambda number: float(f"{float(number):.6g}"))


def read_progress(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> dict:
    """Return the logs so far in the form of ``run_study``, for a figure of curves; arms without a log are left out."""
    runs: dict[str, dict] = {}
    for training in trainings(config, target, arms, seeds)[1]:
        if (log := training.log)["step"]:
            runs.setdefault(training.arm, {})[str(training.seed)] = {"log": log}
    return {"target": target, "seeds": list(seeds), "baselines": baselines(config, target), "runs": runs}
