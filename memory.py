"""
How many texts fit into memory at once while they are sampled: what one needs, and what is free.

    a token that is read      h, its norm, q, k, v and their turned copies, the four-fold width twice: 24 D floats
    a position that is scored   V logits, their softmax, and in float64 the law and its sum: 28 bytes a symbol
    a token that is kept      k and v of every layer: 2 layers D floats

From above: as if all positions were scored at once, which is so in a single step, and where all masks are drawn to
choose among them. Only ar (one) and bd3lm (a block) never do.
"""
import os
from pathlib import Path

import torch

SHARE, UNKNOWN = 0.5, 4 << 30                            # of free memory to use; bytes where nobody tells what is free
MOST = {"cpu": 64, "cuda": 512}                          # texts: more hardly go faster, and the first ones come later
CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def per_text(network, length, scored=None):
    """Bytes to sample one text of `length` tokens; scored: positions at once, if not all."""
    layers, D = len(network.blocks) + len(getattr(network, "decoder", ())), network.embed.shape[1]
    return 4 * length * (24 * D + 2 * layers * D) + 28 * (scored or length) * network.vocab_size


def free(device, root="/"):
    """Bytes that can be had: on a GPU of its memory, else of the machine's, or of what this process is allowed."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    rooms, root = [], Path(root)
    if (about := root / "proc/meminfo").exists():
        rooms += [int(line.split()[1]) << 10 for line in about.read_text().splitlines() if "MemAvailable" in line]
    for limit, used in CGROUPS:                              # what a container is allowed
        limit, used = (root / "sys/fs/cgroup" / name for name in (limit, used))
        if limit.exists() and limit.read_text().strip() != "max":
            rooms.append(int(limit.read_text()) - int(used.read_text()))
    if not rooms and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        rooms.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(rooms, default=UNKNOWN)


def fitting(need, device):
    """How many texts of `need` bytes each to sample at once: a power of two, so that a little more or less of free
    memory changes nothing; one at least."""
    n = min(MOST.get(device.type, MOST["cpu"]), int(SHARE * free(device) / need))
    return 1 << max(0, n.bit_length() - 1)
