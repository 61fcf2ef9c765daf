"""Pre-train, fine-tune and evaluate networks: every arm and seed of a study, as one JSON value of results.

    pretrain: in-context linear regression with a curriculum of points -> pretrain/seed-<n>/
    finetune: one arm from there on one target -> <target>/<arm>/seed-<n>/ {network.safetensors, log.jsonl, done.json}

One loop serves both. Tasks are sampled on the device, losses stay there until a line is logged, and every checkpoint is
atomic, so a killed training resumes with the same results: bit for bit on a CPU. Each worker walks the whole list of
trainings and takes those that are neither done nor locked by another. On a GPU there is one worker.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from ctxft.config import SyntheticConfig
from ctxft.run.processes import count_workers, die_with_parent, run_parallel
from ctxft.storage import (
    DONE,
    BusyError,
    InputError,
    Step,
    atomic_file,
    code_revision,
    hash_file,
    quarantine,
    read_checked,
    read_done,
    read_json,
    read_jsonl,
    step,
    versions,
    write_json,
    write_jsonl,
    write_text,
)
from ctxft.synthetic.config import check_study
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
)

WEIGHTS, LOG, CHECKPOINT, MANIFEST = "network.safetensors", "log.jsonl", "checkpoint.pt", "manifest.json"
FINETUNING = (
    10_000_000  # first step in the seeds of fine-tuning's tasks, so that they differ from those of pre-training
)
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
        yield tasks.to(device), draws.to(device)


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


def evaluate_network(network: nn.Module, arm: str, config: SyntheticConfig, target: str, device: str = "cpu") -> dict:
    """Return how a trained network does on the test tasks.

    Args:
        network: trained.
        arm: what it was trained with.
        config: sizes.
        target: name of the target function.
        device: where the network is.

    Returns:
        ``errors``: for its own context, a fresh one and none, mean and band by number of target pairs read before;
        ``alignment``: partial and total, on the test tasks with its own context.
    """
    batches = list(evaluation_batches(config, target, device))
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


def device_of(config: SyntheticConfig) -> str:
    """Return "cpu" or "cuda"; raises InputError where the requested device is missing."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError(f"device is '{config.device}', but torch sees none: use cpu or auto.")
    return "cuda" if config.device == "auto" else config.device


def rate_at(config: SyntheticConfig, step: int, steps: int) -> float:
    """Return the rate of an optimizer step, counted from 0: linear warm-up, constant, linear decay to a twentieth."""
    factor = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if decay := config.decay_share * steps:
        factor *= min(1.0, max(0.05, (steps - step) / decay))
    return config.learning_rate * factor


def points_at(config: SyntheticConfig, step: int) -> int:
    """Return how many points a pre-training sequence has at a step: two more each ``points_every`` steps."""
    return min(config.points, config.start_points + 2 * (step // config.points_every))


def _load_checkpoint(path: Path) -> dict | None:
    """Return a checkpoint, or None; one that cannot be read, or would run code, is quarantined."""
    if not path.exists():
        return None
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch raises whatever its readers raise for a damaged file
        quarantine(path, f"{path} is no checkpoint that can be read ({type(error).__name__})")
        return None


def train_network(
    network: Regressor,
    config: SyntheticConfig,
    steps: int,
    folder: Path,
    loss_at: Callable[[nn.Module, int], Tensor],
    measure_at: Callable[[int], dict[str, Tensor]] = lambda step: {},
) -> list[dict]:
    """Train a network by Adam, from the folder's checkpoint if there is one.

    Args:
        network: changed in place.
        config: rates and intervals.
        steps: optimizer steps in all.
        folder: where checkpoint and log go.
        loss_at: the loss of (network, step), a scalar.
        measure_at: further values of a logged step, scalars on the device.

    Returns:
        The log: a row per ``log_every`` steps, with the mean loss since the row before.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
    # CUDA graphs take the launch of some hundred small kernels a step off the host; on a CPU there is nothing to win
    fast = (
        cast(nn.Module, torch.compile(network, mode="reduce-overhead")) if network.read_in.weight.is_cuda else network
    )
    rows, first, recent = [], 0, []
    if state := _load_checkpoint(folder / CHECKPOINT):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        rows, first = state["rows"], state["step"]
    for number in range(first, steps):
        optimizer.param_groups[0]["lr"] = rate_at(config, number, steps)
        loss = loss_at(fast, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(loss.detach())
        if (number + 1) % config.log_every == 0 or number + 1 == steps:
            measured = {"loss": torch.stack(recent).mean(), **measure_at(number)}
            rows.append({"step": number + 1} | {name: value.item() for name, value in measured.items()})
            recent.clear()
        if (number + 1) % config.save_every == 0 and number + 1 < steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
            with atomic_file(folder / CHECKPOINT, binary=True) as file:
                torch.save(state | {"step": number + 1}, file)
            write_jsonl(folder / LOG, rows)
    write_jsonl(folder / LOG, rows)
    return rows


def pretrain_folder(config: SyntheticConfig, seed: int) -> Path:
    """Return the folder of a seed's pre-trained network."""
    return config.folder / "pretrain" / f"seed-{seed}"


def finetune_folder(config: SyntheticConfig, target: str, arm: str, seed: int) -> Path:
    """Return the folder of an arm's network and results."""
    return config.folder / target / arm / f"seed-{seed}"


def is_done(folder: Path) -> bool:
    """Return whether a training is finished and its files are those that it wrote."""
    files = (read_done(folder) or {}).get("files", {})
    return bool(files) and all((folder / name).exists() and hash_file(folder / name) == files[name] for name in files)


def load_network(folder: Path, config: SyntheticConfig, device: str = "cpu") -> Regressor:
    """Return the network of a finished training; raises InputError if the folder has none."""
    if not (folder / WEIGHTS).exists():
        raise InputError(f"{folder} has no trained network: run `ctxft synthetic` with this arm and seed first.")
    network = make_network(config, 0)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.to(device)


@contextlib.contextmanager
def _stage(config: SyntheticConfig, folder: Path, wait: bool) -> Iterator[Step]:
    """Run a training once, and time it; the block trains in the stage's folder, unless that is done."""
    name, started = folder.relative_to(config.folder).as_posix(), time.perf_counter()
    options = {"resume": True, "doing": f"trains {name} in {config.folder}", "wait": wait}
    with step(folder, {"config": config.what(), "training": name}, **options) as stage:
        yield stage
        if not stage.done:
            (folder / CHECKPOINT).unlink(missing_ok=True)
            stage.result |= {"device": device_of(config), "seconds": round(time.perf_counter() - started, 1)}


def _save_network(folder: Path, network: Regressor) -> None:
    save_file({name: value.cpu() for name, value in network.state_dict().items()}, folder / WEIGHTS)


def pretrain(config: SyntheticConfig, seed: int, wait: bool = False) -> dict:
    """Pre-train a seed's network on in-context linear regression, once; returns its last loss, device and seconds.

    Args:
        config: the study.
        seed: of the weights and the tasks.
        wait: wait for another process that trains it, instead of refusing.

    Raises:
        BusyError: another process trains it.
        InputError: the device is missing.
    """
    device = device_of(config)

    def loss_at(network: nn.Module, step: int) -> Tensor:
        generator = make_generator(device, seed, "tasks", step)
        tasks = draw_tasks(generator, "linear", config.batch, points_at(config, step), config.dims)
        y = tasks.values(tasks.x)
        return (network(tasks.x, y) - y).square().mean()

    with _stage(config, pretrain_folder(config, seed), wait) as stage:
        if not stage.done:
            network = make_network(config, seed).to(device)
            rows = train_network(network, config, config.pretrain_steps, stage.folder, loss_at)
            _save_network(stage.folder, network)
            stage.result = {"loss": rows[-1]["loss"]}
    return stage.result


def finetune(config: SyntheticConfig, target: str, arm: str, seed: int) -> dict:
    """Fine-tune a seed's pre-trained network on a target with an arm's context, and evaluate it, once.

    Args:
        config: the study.
        target: name of the target function.
        arm: one of ARMS.
        seed: of the pre-training and of the tasks, which are the same in every arm.

    Returns:
        Errors by context, alignment, seconds, device.

    Raises:
        BusyError: another process trains it.
        InputError: the seed's network is not pre-trained, or the device is missing.
    """
    device = device_of(config)
    network = load_network(pretrain_folder(config, seed), config, device)

    def batch_at(step: int) -> tuple[Tasks, Draws]:
        generator = make_generator(device, seed, "tasks", FINETUNING + step)
        tasks = draw_tasks(generator, target, config.batch, config.points, config.dims)
        return tasks, draw_chance(make_generator(device, seed, "context", step), tasks)

    def loss_at(network: nn.Module, step: int) -> Tensor:
        return squared_errors(network, arm, *batch_at(step)).mean()

    def measure_at(step: int) -> dict[str, Tensor]:
        return alignment(network, arm, *batch_at(step))

    with _stage(config, finetune_folder(config, target, arm, seed), wait=False) as stage:
        if not stage.done:
            train_network(network, config, config.finetune_steps, stage.folder, loss_at, measure_at)
            _save_network(stage.folder, network)
            stage.result = evaluate_network(network, arm, config, target, device)
    return stage.result


# --- all of them ------------------------------------------------------------------------------------------------------


def prepare_study(config: SyntheticConfig) -> Path:
    """Make the study's folder and write its manifest, or check that the one there holds the same config.

    Raises:
        InputError: the folder holds another config; the first value that differs is named.
    """
    path = config.folder / MANIFEST
    if not path.exists():
        return write_json(path, {"config": config.what(), "versions": versions(), "code": code_revision()}).parent
    there = read_json(path)["config"]
    for name, value in config.what().items():
        if there.get(name) != value:
            raise InputError(
                f"{config.folder} holds a study with {name} {there.get(name)}, not {value}: "
                "choose another name (--name), or remove the folder."
            )
    return config.folder


def run_tasks(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> None:
    """Train in this process what is neither done nor being trained by another process.

    Args:
        config: the study.
        target: name of the target function.
        arms: names of ARMS.
        seeds: each pre-trained once, for all arms.
    """
    for wait in (False, True):  # first the seeds that nobody has begun, then wait for those that others work on
        for seed in seeds:
            with contextlib.suppress(BusyError):
                pretrain(config, seed, wait)
    for seed in seeds:
        for arm in reversed(arms):  # the slowest arms are last in ARMS; begun first, they do not keep a core waiting
            with contextlib.suppress(BusyError):
                finetune(config, target, arm, seed)


def _steps_of(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> dict[Path, int]:
    """Return the folders of all trainings, and the optimizer steps of each."""
    before = {pretrain_folder(config, seed): config.pretrain_steps for seed in seeds}
    after = {finetune_folder(config, target, arm, seed): config.finetune_steps for seed in seeds for arm in arms}
    return before | after


def run_study(
    config: SyntheticConfig,
    target: str,
    arms: list[str],
    seeds: list[int],
    workers: int | None = None,
    watch: Callable[[dict], object] | None = None,
    every: float = 5.0,
) -> dict:
    """Pre-train, fine-tune and evaluate what is not done yet, and return all results.

    Args:
        config: sizes, steps and rates.
        target: name of the target function.
        arms: names of ARMS.
        seeds: whole numbers from 0.
        workers: processes at a time; None takes one a core on a CPU, and one on a GPU.
        watch: called with ``read_progress`` while trainings run, for curves that grow.
        every: seconds between two calls of ``watch``, at least.

    Returns:
        As ``read_study``.

    Raises:
        InputError: unknown names, another study in the folder, or a task that another command works on.
        FailedError: a worker stopped; the end of its output is shown.

    Example:
        >>> run_study(load_config("mini"), "polynomial", ["cft", "cpt"], [0])  # doctest: +SKIP
    """
    check_study(target, arms, seeds)
    workers = count_workers(workers, config.threads, device_of(config))
    prepare_study(config)
    steps = _steps_of(config, target, arms, seeds)
    missing = [folder for folder in steps if not is_done(folder)]
    shown = time.monotonic()

    def tick() -> None:
        nonlocal shown
        bar.update(max(0, sum(_steps_done(folder, count) for folder, count in steps.items()) - bar.n))
        if watch and time.monotonic() > shown + every:
            shown = time.monotonic()
            watch(read_progress(config, target, arms, seeds))

    if missing:
        task = json.dumps({"config": vars(config), "target": target, "arms": list(arms), "seeds": list(seeds)})
        commands = [[sys.executable, "-m", "ctxft.synthetic", task]] * min(workers, len(missing))
        variables = {"OMP_NUM_THREADS": str(config.threads), "CTXFT_RUNS": str(config.folder.parent)}
        with tqdm(total=sum(steps.values()), desc=f"synthetic {target}", unit="step", leave=False) as bar:
            run_parallel("synthetic", commands, variables, tick, every=0.5)
    if busy := [folder for folder in steps if not is_done(folder)]:
        raise InputError(f"another process works in {busy[0]}: wait for it, then give the command again.")
    return read_study(config, target, arms, seeds)


def work(task: str) -> None:
    """Be a worker of ``run_study``: ``python -m ctxft.synthetic '{"config": ..., "target": ..., ...}'``."""
    die_with_parent()
    values = json.loads(task)
    config = SyntheticConfig(**values.pop("config"))
    torch.set_num_threads(config.threads)
    try:
        run_tasks(config, **values)
    except InputError as error:
        sys.exit(print(f"ctxft: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(130)


def _steps_done(folder: Path, steps: int) -> int:
    if (folder / DONE).exists():
        return steps
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines() if (folder / LOG).exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def read_study(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> dict:
    """Return the results of finished trainings as one JSON value, numbers rounded to six digits.

    Returns:
        ``target``, ``config``, ``arms``, ``seeds``, ``versions``, ``code``, ``baselines``, ``pretrain`` (seed -> loss
        ...) and ``runs`` (arm -> seed -> errors, alignment, seconds, device, log as a list for each column).

    Raises:
        InputError: a training is not finished.
    """
    manifest = read_json(config.folder / MANIFEST)
    for folder in _steps_of(config, target, arms, seeds):
        if not is_done(folder):
            raise InputError(f"{folder} is not finished: give the same `ctxft synthetic` command again.")
    pretrained = {str(seed): _result(pretrain_folder(config, seed)) for seed in seeds}
    study = {"target": target, "arms": list(arms), "seeds": list(seeds), **manifest}
    study |= {"baselines": baselines(config, target), "pretrain": pretrained, "runs": {}}
    for arm in arms:
        folders = {str(seed): finetune_folder(config, target, arm, seed) for seed in seeds}
        study["runs"][arm] = {seed: _result(path) | {"log": _read_log(path)} for seed, path in folders.items()}
    return json.loads(json.dumps(study), parse_float=lambda number: float(f"{float(number):.6g}"))


def _result(folder: Path) -> dict:
    return read_checked(folder / DONE)["result"]


def read_progress(config: SyntheticConfig, target: str, arms: list[str], seeds: list[int]) -> dict:
    """Return the logs so far in the form of ``read_study``, for a figure of curves; arms without a log are left out."""
    runs = {}
    for arm in arms:
        folders = {str(seed): finetune_folder(config, target, arm, seed) for seed in seeds}
        logs = {seed: {"log": _read_log(folder)} for seed, folder in folders.items() if (folder / LOG).exists()}
        runs |= {arm: logs} if logs else {}
    return {"target": target, "seeds": list(seeds), "baselines": baselines(config, target), "runs": runs}


def _read_log(folder: Path) -> dict[str, list]:
    rows = [row for _, row in read_jsonl(folder / LOG)]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {"step": [], "loss": []}


def write_study(path: Path, study: dict, command: str) -> Path:
    """Write results as a small JSON file, a line for each arm and seed, with the command that made them."""
    runs = [
        f"{json.dumps(arm)}: {{\n" + ",\n".join(f'"{seed}": {json.dumps(run)}' for seed, run in seeds.items()) + "\n}"
        for arm, seeds in study["runs"].items()
    ]
    rest = json.dumps({"command": command, **{key: value for key, value in study.items() if key != "runs"}}, indent=1)
    return write_text(path, rest[:-2] + ',\n "runs": {\n' + ",\n".join(runs) + "\n}\n}\n")
