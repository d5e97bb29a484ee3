"""
How to measure: a clock that a busy machine disturbs little, ways to do the same in turn, and the machine's name.

CPU time of the process; on a GPU the time between two events in its own queue. Nothing here says what is measured:
speed.py, bench.py and claims/ do.
"""
import os
import platform
import statistics
import subprocess
import sys
import time

import torch

from data import BadInput


def processor():
    """What this processor calls itself, or nothing."""
    if os.path.exists("/proc/cpuinfo"):
        lines = [line.partition(":") for line in open("/proc/cpuinfo")]
        says = {key.strip(): value.strip() for key, _, value in lines}
        arm = "ARM, implementer {CPU implementer}, part {CPU part}".format_map(says) if "CPU part" in says else ""
        return says.get("model name", arm)
    if sys.platform == "darwin":
        words = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(words, capture_output=True, text=True).stdout.strip()
    name = platform.processor()
    return "" if name == platform.machine() else name


def hardware(device=torch.device("cpu"), name=""):
    """The name without which a time means nothing; BadInput where there is none. name: what the user calls it"""
    name = name or (torch.cuda.get_device_name(device) if device.type == "cuda" else processor())
    if not name:
        raise BadInput("this machine does not say what it is, and a time without that means nothing: "
                       "name it, --hardware 'maker, model'")
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def cost(do, device):
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


def paired(ways, rounds, device):
    """Each way once in every round, after one to warm up. ways {name: (do, times)} -> {name: [seconds x times]}"""
    for do, _ in ways.values():
        do()
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (do, times) in ways.items():
            seconds[name].append(cost(do, device) * times)
    return seconds


def ratio(slow, fast):
    """Within rounds. -> median, least, most"""
    pairs = sorted(a / b for a, b in zip(slow, fast))
    return statistics.median(pairs), pairs[0], pairs[-1]


def high_water():
    """The most memory that this process has held, bytes. (Linux's ru_maxrss counts the parent's as well.)"""
    if os.path.exists("/proc/self/status"):
        return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    import resource                                      # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def numbers(name, text):
    """The flag --name as whole numbers, or BadInput."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise BadInput(f"--{name} {text!r} must be whole numbers with commas between, such as 256,1024")
    return found
