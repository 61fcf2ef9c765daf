"""Run by torchrun in two processes: a model sharded by ``fully_shard`` against the whole one (see test_distributed.py).

Packed rows with masked prompts of different lengths, loss weighted by target tokens over both processes; then an optimizer
step, a checkpoint, and the checkpoint read by the whole model.
"""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path

import torch
import torch.distributed
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ctxft.config import LoraConfig
from ctxft.training import loss
from ctxft.training.checkpoint import load_checkpoint, save_checkpoint, trainable_parameters
from ctxft.training.loss import patch_loss_forward
from ctxft.training.model import add_adapters
from ctxft.training.packing import micro_batches, set_attention, shard_batches
from tests.test_packing import WINDOW, llama, make_rows


def gather_full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def accumulate(model, batches, targets: int, processes: int) -> float:
    total = 0.0
    for batch in batches:
        found = model(**batch.inputs("cpu")).loss * (batch.weight / targets)
        (found * processes).backward()
        total += found.item()
    return total


def shard_as_accelerate_does(model, rank: int):
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    state = types.SimpleNamespace(fsdp_plugin=plugin)
    device = torch.device("cpu")
    return fsdp2_prepare_model(
        types.SimpleNamespace(state=state, mixed_precision="no", device=device, is_main_process=rank == 0), model
    )


def main(mode: str, folder: Path) -> None:
    loss.LOGITS_AT_ONCE = 7 * 61  # several chunks
    torch.distributed.init_process_group("gloo")
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = patch_loss_forward(llama())
    set_attention(model, "segments")
    if mode == "lora":
        torch.manual_seed(1)
        model = add_adapters(model, LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0))
    alone = copy.deepcopy(model)
    inner = model.get_base_model() if mode == "lora" else model
    if mode == "accelerate":  # as accelerate shards: the norm with the output layer, hooks on both
        model = shard_as_accelerate_does(model, rank)
    else:
        mesh = init_device_mesh("cpu", (processes,))
        for layer in inner.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    batches = micro_batches(make_rows(3, 9), "segments", WINDOW, 0)
    targets = sum(len(batch.targets) for batch in batches)
    mine = shard_batches(batches, rank, processes)
    assert len(batches) % processes, "one process should have had a batch less"
    part = torch.tensor(accumulate(model, mine, targets, processes))
    torch.distributed.all_reduce(part)
    expected = accumulate(alone, batches, targets, 1)
    assert abs(part.item() - expected) <= 1e-5 * expected, (part.item(), expected)
    theirs = {name: p.grad for name, p in trainable_parameters(alone).items()}
    for name, parameter in trainable_parameters(model).items():
        ours = gather_full_tensor(parameter.grad)
        off = (ours - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-12)
        assert off <= 1e-5 or theirs[name].norm() < 1e-12, (name, off)
    optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2) for m in (model, alone)]
    for optimizer in optimizers:
        optimizer.step()
    save_checkpoint(folder, model, optimizers[0], {"step": 1}, rank == 0)
    torch.distributed.barrier()
    fresh = torch.optim.AdamW([p for p in alone.parameters() if p.requires_grad], lr=1e-2)
    stepped = {name: p.detach().clone() for name, p in trainable_parameters(alone).items()}
    load_checkpoint(folder / "checkpoint-1", alone, fresh)  # the whole model reads what the sharded one wrote
    for name, parameter in trainable_parameters(alone).items():
        assert (parameter - stepped[name]).abs().max() < 1e-5, name
        moment = fresh.state[parameter]["exp_avg"] - optimizers[1].state[parameter]["exp_avg"]
        assert moment.abs().max() < 1e-5, name
    again = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.zero_()
    load_checkpoint(folder / "checkpoint-1", model, again)  # and the sharded one its own
    for name, parameter in trainable_parameters(model).items():
        assert torch.equal(gather_full_tensor(parameter), trainable_parameters(alone)[name].detach()), name
        assert torch.equal(
            gather_full_tensor(again.state[parameter]["exp_avg"]),
            fresh.state[trainable_parameters(alone)[name]]["exp_avg"],
        )
    torch.distributed.barrier()
    if rank == 0:
        print("sharded equals whole")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
