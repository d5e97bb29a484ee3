"""
How many texts fit into memory while they are sampled: what one text needs, and what is free.

    a token that is read        h, its norm, q, k, v, rotated copies, the MLP twice: 24 D floats
    a position that is scored   V logits, their softmax, the distribution and its sum in float64:
                                28 bytes per symbol
    a token in the cache        k and v of every layer: 2 layers D floats

This is an upper bound: it counts all positions as scored at once, which is so in a single step, and
in samplers that draw all masks to choose among them. Methods that write from left to right score
one block at a time.
"""
import contextlib
import os
from pathlib import Path

import torch

from flags import UserError
from model import Block

SHARE, UNKNOWN = 0.5, 4 << 30  # the share of free memory to use; free bytes, if unknown
HELD = 64  # bytes per token of a text, as lists and tensors of ids
MOST = {"cpu": 64, "cuda": 512}  # texts at once: more are hardly faster, and delay the first
CGROUPS = (("memory.max", "memory.current"),
           ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def bytes_per_text(network, length, scored=None):
    """Bytes to sample one text of `length` tokens; scored: positions at once, None for all."""
    layers, D = sum(isinstance(part, Block) for part in network.modules()), network.embed.shape[1]
    return 4 * length * (24 * D + 2 * layers * D) + 28 * (scored or length) * network.vocab_size


def free_memory(device, root="/"):
    """Free bytes: of a GPU's memory, else of the machine's or the container's."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    rooms, root = [], Path(root)
    if (about := root / "proc/meminfo").exists():
        lines = about.read_text("utf-8").splitlines()
        rooms += [int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line]
    for limit, used in CGROUPS:  # the limits of a container
        limit, used = (root / "sys/fs/cgroup" / name for name in (limit, used))
        if limit.exists() and limit.read_text("utf-8").strip() != "max":
            rooms.append(int(limit.read_text("utf-8")) - int(used.read_text("utf-8")))
    if not rooms:  # Windows has no sysconf, macOS lacks this name
        with contextlib.suppress(AttributeError, ValueError):
            rooms.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(rooms, default=UNKNOWN)


def batch_size_that_fits(need, device):
    """How many texts of `need` bytes each to sample at once, at least one.

    A power of two, so that small changes of the free memory do not change it.
    """
    n = min(MOST.get(device.type, MOST["cpu"]), int(SHARE * free_memory(device) / need))
    return 1 << max(0, n.bit_length() - 1)


def check_length(length):
    """The length; UserError if the memory cannot hold one text of it, whatever the network.

    Without it, a system that promises more memory than it has ends the process without a word.
    """
    need, free = HELD * length, free_memory(torch.device("cpu"))
    if need > free:
        raise UserError(f"--length {length} takes {need / 1e9:.0f} GB of memory at least, and "
                        f"{free / 1e9:.0f} GB are free: lower it")
    return length


def texts_at_once(config, model, length, device):
    """--batch_size; 0: as many texts of `length` tokens as fit, at most --num_samples."""
    if config.batch_size or config.oracle:
        return min(config.num_samples, config.batch_size or MOST["cpu"])
    rated = 2 if model.method.draw_evidence else config.candidates  # by a classifier, at once
    copies = 1 + (config.guidance != 1) + bool(config.classifier) * rated
    need = copies * bytes_per_text(model.denoiser, length, model.method.block_length)
    return min(config.num_samples, batch_size_that_fits(need, device))
