"""
How to measure time and memory on a machine that also does other work, and how to name the machine.

Time is the CPU time of this process, or on a GPU the time between two events in its queue. Ways to
compute the same are timed in turns, and their ratios are taken within a round.
"""
import math
import os
import platform
import statistics
import subprocess
import sys
import time

import torch

from flags import UserError


def processor_name():
    """What this processor calls itself, or ""."""
    if os.path.exists("/proc/cpuinfo"):
        lines = [line.partition(":") for line in open("/proc/cpuinfo")]
        says = {key.strip(): value.strip() for key, _, value in lines}
        arm = "ARM, implementer {CPU implementer}, part {CPU part}"
        return says.get("model name", arm.format_map(says) if "CPU part" in says else "")
    if sys.platform == "darwin":
        words = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(words, capture_output=True, text=True).stdout.strip()
    name = platform.processor()
    return "" if name == platform.machine() else name


def hardware(device=torch.device("cpu"), name=""):
    """The machine and the versions that a time belongs to. name: what the user calls the machine"""
    if not name:
        gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if gpu else processor_name()
    if not name:
        raise UserError("cannot detect the processor, without which a time means nothing: "
                        "pass --hardware 'maker, model'")
    n = torch.get_num_threads()
    return (f"{name}, {n} thread{'s' * (n > 1)}, torch {torch.__version__}, "
            f"Python {platform.python_version()}")


def seconds_of(do, device):
    """Seconds of do(): process CPU time, or on a GPU the time between two events."""
    if device.type != "cuda":
        began = time.process_time()
        do()
        return time.process_time() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    do()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def time_in_turns(ways, rounds, device, until=math.inf):
    """Each way once per round, after one round to warm up. No round begins after `until`, a time
    of time.monotonic, but the first.

    ways {name: (do, times)} -> {name: [seconds x times, one per round]}
    """
    for do, _ in ways.values():
        do()
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (do, times) in ways.items():
            seconds[name].append(seconds_of(do, device) * times)
        if time.monotonic() > until:
            break
    return seconds


def paired_ratio(slow, fast):
    """slow / fast within each round. -> median, least, most"""
    pairs = sorted(a / b for a, b in zip(slow, fast))
    return statistics.median(pairs), pairs[0], pairs[-1]


def format_ratio(slow, fast):
    """'median (least to most)' of slow / fast within each round."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*paired_ratio(slow, fast))


def peak_memory():
    """The most memory that this process has held, in bytes.

    Linux's ru_maxrss also counts the parent, so /proc comes first.
    """
    if os.path.exists("/proc/self/status"):
        lines = open("/proc/self/status")
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    import resource  # not on Windows
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used << (0 if sys.platform == "darwin" else 10)


def parse_numbers(text, kind=int):
    """The numbers in a flag that has `each=kind`, which has checked them. -> list"""
    return [kind(word) for word in text.split(",")]
