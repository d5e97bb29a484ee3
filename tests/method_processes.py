"""
A step of every method on copies and on shards of a network, in processes that are forks of one
that has loaded torch.

    python tests/method_processes.py GROUPS

GROUPS is JSON, a list of [name, processes, shards or not, methods, micro-batches]. Writes
NAME.json, {method: [loss, norm of the gradient]}: the mean of the losses over processes.
"""

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch
import torch._dynamo
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp

import train
from checkpoints.build import build_network
from data import load_data
from experiments.training import make_trainer
from processes import free_port
from runtime import distributed, trainer
from runs import TINY


def with_open_gates(config, method, n_classes=0):
    """The network with random weights: fresh ones have no gradient behind a head of zeros."""
    network = build_network(config, method, n_classes)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return network


class NoAverage(torch.nn.Module):
    """In the place of the average, which is tested in tests/runtime/test_distributed.py, as what
    the optimizers do with the gradients is: here they stop at their norm."""

    def __init__(self, *args):
        super().__init__()
        self.average, self.update = torch.nn.Module(), lambda *args: None


def step_of(method, world, shard, data, micro_batches):
    """-> [loss, norm of the gradient]"""
    flags = {**TINY, "method": method, "optimizer": "adamw", "ema": 0.0}
    made = make_trainer(data, **flags, shard=shard, gradient_accumulation_steps=micro_batches)
    loss, norm = train.train_step(made, 0)  # () each
    return [distributed.sum_over_processes(loss.clone()).item() / world, norm.item()]


def work(rank, name, world, shard, methods, micro_batches, data):
    distributed.RANK, distributed.WORLD = rank, world
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    distributed.init_processes(torch.device("cpu"))
    found = {}
    for method in methods:
        try:
            found[method] = step_of(method, world, shard, data, micro_batches)
        except Exception as error:
            print(f"{method}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    if rank == 0:
        Path(f"{name}.json").write_text(json.dumps(found))
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.build_network, trainer.EMA = with_open_gates, NoAverage
    trainer.Trainer.step_optimizers = lambda *args: None
    torch.nn.utils.clip_grads_with_norm_ = lambda *args: None
    data = load_data("toy", TINY["block_size"])
    for group in json.loads(sys.argv[1]):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        children = []
        for rank in range(group[1]):
            children.append(os.fork())
            if children[-1] == 0:
                work(rank, *group, data)
        for child in children:
            os.waitpid(child, 0)
