"""
One run shared by several processes, on one machine or on many: who they are, what they agree on, how they share.

torchrun starts WORLD processes and gives each its number, RANK. The micro-batches of a step are numbered over all of
them; each takes every WORLD-th, and all follow the mean of their gradients.

    copies (DDP)       every process has the whole network; gradients are averaged during the backward pass
    shards (FSDP2)     every process has 1/WORLD of each weight, of its average and of what the optimizers remember; a
                       block is put together when it is needed, and taken apart after it

A checkpoint is the same in all cases: what is spread is gathered for it, tensor by tensor, in the first process. What
shards need is imported where it is used: it takes a second.
"""
import contextlib
import os
import warnings

import torch
import torch.distributed as dist

from model import Block

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))      # set by torchrun


def device_name(name):
    """auto or cuda, where several processes share a machine with GPUs: to each its own."""
    several = WORLD > 1 and torch.cuda.is_available() and name in ("auto", "cuda")
    return f"cuda:{os.environ['LOCAL_RANK']}" if several else name


def start(device):
    """Meet the other processes. What lies on the CPU they exchange there, and no GPU waits for it."""
    if WORLD > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def stop():
    """Leave together: who hangs up early cuts off what others are still told."""
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()


def agree(value):
    """One choice for all: that of the first process."""
    values = [value]
    if WORLD > 1:
        dist.broadcast_object_list(values)
    return values[0]


def total(tensor):
    """The sum over processes, in place."""
    if WORLD > 1:
        dist.all_reduce(tensor)
    return tensor


# ---- the network

def share(network):
    """A copy in every process. -> what to call in place of the network"""
    return torch.nn.parallel.DistributedDataParallel(network) if WORLD > 1 else network


def shard(network, device):
    """A part of every weight in each process, in place: parameters become DTensors, on the device."""
    from torch.distributed.fsdp import fully_shard
    mesh = dist.init_device_mesh(device.type, (WORLD,))
    for module in reversed([*network.modules()]):            # the blocks one by one, and what is left with the root
        if isinstance(module, Block) or module is network:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")      # nobody writes into it


def last(shared, yes):
    """A context. Gradients are exchanged once in a step: in the backward pass of the last micro-batch."""
    if hasattr(shared, "set_requires_gradient_sync"):        # FSDP2's
        shared.set_requires_gradient_sync(yes)
    return contextlib.nullcontext() if yes or not hasattr(shared, "no_sync") else shared.no_sync()


def spread(tensor):
    return hasattr(tensor, "full_tensor")                    # a DTensor's


def whole(a):
    """A tensor, gathered if it is spread."""
    return a.full_tensor() if spread(a) else a


def part(a, like):
    """This process's part of a tensor that all of them have whole, spread as `like` is."""
    if not spread(like):
        return a
    from torch.distributed.tensor import DTensor
    return DTensor.from_local(a, like.device_mesh, run_check=False).redistribute(placements=like.placements)


# ---- the checkpoint: weights by name and optimizers by number, whatever the number of processes

def gatherer(network):
    """torch.distributed.checkpoint for a network that is spread, and the option to make states whole; or None."""
    if not any(map(spread, network.parameters())):
        return None, {}
    from torch.distributed.checkpoint import state_dict
    return state_dict, {"options": state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)}


def weights(network):
    """-> its state dict, whole. If it was spread: on the CPU, in the first process; {} in the others"""
    dcp, options = gatherer(network)
    return dcp.get_model_state_dict(network, **options) if dcp else network.state_dict()


def load_weights(network, state):
    dcp, options = gatherer(network)
    dcp.set_model_state_dict(network, state, **options) if dcp else network.load_state_dict(state)


def memory(network, optimizer):
    """-> the optimizer's state dict, as `weights`"""
    dcp, options = gatherer(network)
    state = dcp.get_optimizer_state_dict(network, optimizer, **options) if dcp else optimizer.state_dict()
    if not dcp or not state:
        return state
    number = {name: i for i, name in enumerate(name for group in state["param_groups"] for name in group["params"])}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[name]: values for name, values in state["state"].items()}, "param_groups": groups}


def load_memory(network, optimizer, state):
    """But rates and the like are those of the flags."""
    dcp, options = gatherer(network)
    if not dcp:
        return optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})
    name_of = {id(p): name for name, p in network.named_parameters()}
    groups = [{**group, "params": [name_of[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    names = [name for group in groups for name in group["params"]]
    state = {"state": {names[i]: values for i, values in state["state"].items()}, "param_groups": groups}
    dcp.set_optimizer_state_dict(network, optimizer, state, **options)
