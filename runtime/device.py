"""
What this machine is good at: its device, its faster precision, its memory, its threads.

Threads that wait for each other should soon sleep. PyTorch's OpenMP lets them spin for long; if
other programs use the cores, a waiting thread then takes the core from the one it waits for, and a
step takes ten times as long. Sleeping at once costs half as much again on idle cores. So flags.py
sets GOMP_SPINCOUNT, some microseconds, and OMP_WAIT_POLICY=PASSIVE for other OpenMP libraries,
before torch loads and reads them.
"""
import contextlib
import ctypes
import functools
import time

import torch

from flags import UserError

GAIN = 0.7  # bfloat16 is chosen if it takes at most this share of float32's time


def device_of(name):
    """The device of --device; auto is a GPU if there is one. -> torch.device

    Exact draws need float64, which Apple's mps does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=name).item()  # (1,)
    except TypeError:
        raise UserError(f"{name} has no float64, which exact draws need: --device cpu always "
                        "works") from None
    except (RuntimeError, AssertionError, ImportError):
        raise UserError(f"there is no device {name!r} here: --device cpu always works") from None
    return torch.device(name)


def start_device(config):
    """Set up memory and the precision of products; every script calls this. -> torch.device"""
    torch.set_float32_matmul_precision(config.matmul_precision)
    keep_memory()
    return device_of(config.device)


def seconds_per_product(dtype, device, shape=(4, 128, 512), rounds=5):
    """The least time of a batch of matrix products x x', as large as those of a small step."""
    x, best = torch.ones(shape, dtype=dtype, device=device), float("inf")  # (4, 128, 512)
    for _ in range(rounds):
        began = time.perf_counter()
        x @ x.mT  # (4, 128, 128)
        best = min(best, time.perf_counter() - began)
    return best


@functools.lru_cache
def fastest_dtype(device):
    """The precision that this device multiplies faster in. -> float32 or bfloat16

    CPUs are timed, in a few milliseconds: many emulate bfloat16 and are ten times slower in it.
    GPUs have had it since 2020.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    if device.type != "cpu":
        return "float32"
    low, full = (seconds_per_product(dtype, device) for dtype in (torch.bfloat16, torch.float32))
    return "bfloat16" if low < GAIN * full else "float32"


def dtype_of(name, device):
    """The faster precision for auto, else `name` itself. -> float32 or bfloat16"""
    return fastest_dtype(device) if name == "auto" else name


def keep_memory():
    """Make glibc keep freed memory; on other systems than Linux nothing happens.

    By default glibc returns large blocks after every step and fetches them again page by page,
    which takes a fifth of a training step on a CPU.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of <malloc.h>
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 2**31 - 1)
