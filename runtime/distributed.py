"""
One run in several processes, on one machine or on many: what they exchange, and how they share the
network.

torchrun starts WORLD processes and gives each its number, RANK. The micro-batches of a step are
numbered over all processes; each takes every WORLD-th, and all follow the mean of their gradients.

    copies (DDP)     every process has the whole network; gradients are averaged during the
                     backward pass
    shards (FSDP2)   every process has 1/WORLD of each weight, of its average and of the
                     optimizers' state; a block is gathered when it is needed, and freed after it

A checkpoint is the same in all cases: sharded tensors are gathered for it, one by one, in the first
process. The imports inside functions take a second, and only shards need them.
"""
import contextlib
import os
import warnings

import torch
import torch.distributed as dist

from flags import UserError
from model import Block

NUMBERS = "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"  # torchrun sets them, and MASTER_ADDR


def rank_and_world(environ):
    """The number of this process, and how many there are: as torchrun says, whose variables count
    if they are complete. Job scripts and pods leave single ones behind: these mean one process.
    """
    numbers = [environ.get(name, "") for name in NUMBERS]
    if not all(n.isascii() and n.isdecimal() for n in numbers) or not environ.get("MASTER_ADDR"):
        return 0, 1
    rank, world, local, port = map(int, numbers)
    plausible = rank < world and local < world and 0 < port < 1 << 16
    return (rank, world) if plausible else (0, 1)


RANK, WORLD = rank_and_world(os.environ)


def device_name(name):
    """--device; if several processes share a machine with GPUs, auto and cuda give each its own."""
    several = WORLD > 1 and torch.cuda.is_available() and name in ("auto", "cuda")
    return f"cuda:{os.environ['LOCAL_RANK']}" if several else name


def init_processes(device):
    """Connect the processes. CPU tensors are exchanged by gloo, so no GPU has to wait for them."""
    if WORLD > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(f"process {RANK} of {WORLD} does not reach the others at {where} "
                            f"({str(error).splitlines()[0]}): start all with torchrun, or unset "
                            "RANK and WORLD_SIZE to train in one process") from None


def end_processes():
    """Disconnect after a barrier, so that pending collectives finish."""
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()


def broadcast(value):
    """The value of the first process, in all of them."""
    values = [value]
    if WORLD > 1:
        dist.broadcast_object_list(values)
    return values[0]


def max_over_processes(tensor):
    """The largest over processes, in place."""
    if WORLD > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def sum_over_processes(tensor):
    """The sum over processes, in place."""
    if WORLD > 1:
        dist.all_reduce(tensor)
    return tensor


# ---- the network

def wrap_ddp(network):
    """DDP: a copy of the network in every process. -> what to call in place of the network"""
    if WORLD == 1:
        return network
    some = any("in_stages" in vars(kind) for kind in type(network).mro())  # trained in parts
    return torch.nn.parallel.DistributedDataParallel(network, find_unused_parameters=some)


def wrap_fsdp(network, device):
    """FSDP2: shard every weight over the processes. In place: parameters become DTensors."""
    from torch.distributed.fsdp import fully_shard
    mesh = dist.init_device_mesh(device.type, (WORLD,))
    for module in reversed([*network.modules()]):  # each block, then the root with the rest
        if isinstance(module, Block) or module is network:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # harmless: no code writes into these views
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")


def sync_gradients_on(shared, yes):
    """A context in which a backward pass exchanges gradients, or does not.

    Gradients are exchanged once per step, in the last backward pass.
    """
    if hasattr(shared, "set_requires_gradient_sync"):  # FSDP2's
        shared.set_requires_gradient_sync(yes)
    return contextlib.nullcontext() if yes or not hasattr(shared, "no_sync") else shared.no_sync()


def is_sharded(tensor):
    return hasattr(tensor, "full_tensor")  # a DTensor's


def gather_full(a):
    """The whole of a tensor, gathered if it is sharded."""
    return a.full_tensor() if is_sharded(a) else a


def local_shard(a, like):
    """This process's part of a tensor that every process has whole, sharded as `like` is."""
    if not is_sharded(like):
        return a
    from torch.distributed.tensor import DTensor
    whole = DTensor.from_local(a, like.device_mesh, run_check=False)
    return whole.redistribute(placements=like.placements)


# ---- the checkpoint: weights by name, optimizer state by number, for any number of processes

def state_dict_tools(network):
    """For a sharded network: torch's module for its state dicts, and the option to gather them.

    -> module, {"options": ...}; or None, {}
    """
    if not any(map(is_sharded, network.parameters())):
        return None, {}
    from torch.distributed.checkpoint import state_dict
    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return state_dict, {"options": options}


def full_weights(network):
    """The whole state dict. A sharded one is gathered in the first process, on the CPU; else {}"""
    dcp, options = state_dict_tools(network)
    return dcp.get_model_state_dict(network, **options) if dcp else network.state_dict()


def load_full_weights(network, state):
    dcp, options = state_dict_tools(network)
    if dcp:
        dcp.set_model_state_dict(network, state, **options)
    else:
        network.load_state_dict(state)


def optimizer_state(network, optimizer):
    """The whole state dict of an optimizer, gathered as in full_weights."""
    dcp, options = state_dict_tools(network)
    if not dcp:
        return optimizer.state_dict()
    state = dcp.get_optimizer_state_dict(network, optimizer, **options)
    if not state:
        return state
    groups = state["param_groups"]
    names = [name for group in groups for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in groups]
    numbered = {number[name]: values for name, values in state["state"].items()}
    return {"state": numbered, "param_groups": groups}


def load_optimizer_state(network, optimizer, state):
    """Restore an optimizer, except for learning rates and the like, which the flags decide."""
    dcp, options = state_dict_tools(network)
    if not dcp:
        groups = optimizer.state_dict()["param_groups"]
        return optimizer.load_state_dict({**state, "param_groups": groups})
    name_of = {id(p): name for name, p in network.named_parameters()}
    groups = [{**group, "params": [name_of[id(p)] for p in group["params"]]}
              for group in optimizer.param_groups]
    names = [name for group in groups for name in group["params"]]
    named = {names[i]: values for i, values in state["state"].items()}
    state = {"state": named, "param_groups": groups}
    dcp.set_optimizer_state_dict(network, optimizer, state, **options)
