"""
Speed and memory, as ratios: several ways to compute the same, timed in turns on one machine.

    python -m experiments.speed cpu                   training and sampling, one thread, 25 minutes
    python -m experiments.speed cpu --only sampling --batches 1,8 --steps 8,32
    python -m experiments.speed cpu --dtype bfloat16  matrix products in bfloat16, in all ways
    python -m experiments.speed cpu --only training --compile    our step through torch.compile as
                                                      well, which takes a minute each to compile
    python -m experiments.speed law                   KL of samplers, so that --only law can compare
                                                      them at equal law (equal_law.py)
    python -m experiments.speed peers --nanogpt PATH --nanodiff PATH    public code, trained beside
                                                      ours (peers.py)
    python -m experiments.speed gpu                   a GPU as large as an H200, --minutes 9
    python -m experiments.speed gpu --tiny --device cpu    does it run? tiny networks

Each round times every way once, so that other work on the machine affects all of them; ratios are
taken within a round, and their median is printed with the least and the most. On a CPU, time is
process time on one thread, which other programs disturb least; on a GPU it is the time between two
CUDA events. What costs the same at each step is timed for a few steps and multiplied (~). The ways
(plain, lean, ours) are those of experiments/workloads.py.

Peak memory is that of another process which does nothing else (CPU), or of torch's allocator (GPU),
with weights, gradients, optimizer and average. FLOPs are those of the matrix products that a way
needs: for ours, the head at masked positions only. The peak FLOP/s are measured, not quoted, and
Muon's own products are told beside it: they are work, but not that of the network.
"""
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch

from data.files import check_writable, write_file
from experiments import workloads
from experiments.command import choose_command, run_experiment
from experiments.equal_law import (
    REFERENCE,
    SENTENCE,
    measure_laws,
    measure_sentences,
    print_laws,
    print_sentences,
    samplers_at_equal_law,
    sentences_at_equal_law,
)
from experiments.peers import compare_peers
from experiments.timing import (
    format_ratio,
    hardware,
    paired_ratio,
    parse_numbers,
    time_in_turns,
)
from experiments.workloads import LARGE, SMALL, SMALLER, STEPS, TINY
from flags import UserError, flag
from runtime.device import device_of, keep_memory

try:
    from experiments.kernels import fast_forms
except ModuleNotFoundError:  # kernels.py is optional
    fast_forms = None

GPU_TABLES = (16, 1024, "mdlm,udlm"), (16, 128, "ar,pgm,bd3lm"), (1, 128, "")  # batch, steps, ...


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["cpu", "gpu", "law", "peers"])
    methods: str = flag("", "sampling: with commas between; empty means all",
                        each=("mdlm", "udlm", "ar", "pgm", "bd3lm"))
    out_dir: str = flag("out/speed", "where the figures go")
    only: str = flag("", "one kind of table", ["", "training", "sampling", "law", "kernels"])
    rounds: int = flag(7, "rounds; fewer than 7 give an impression, no measurement", least=1)
    lengths: str = flag("256", "cpu: tokens of the samples, with commas between",
                        each=int, least=1)
    batches: str = flag("1", "cpu: samples at once, with commas between", each=int,
                        least=1)
    steps: str = flag("32", "cpu: from noise to text, with commas between", each=int,
                      least=1)
    dtype: str = flag("float32", "cpu: of matrix products, in all ways", ["float32", "bfloat16"])
    matmul_precision: str = flag("highest", "cpu: of float32 products, in all ways",
                                 ["highest", "high", "medium"])
    compile: bool = flag(False, "cpu: training through torch.compile as well")
    device: str = flag("auto", "gpu: auto, cuda, cuda:1; or cpu with --tiny")
    minutes: float = flag(9.0, "gpu: later than this no table begins, and no round but a table's "
                          "first", least=0)
    nanogpt: str = flag("", "peers: a folder with nanoGPT")
    nanodiff: str = flag("", "peers: a folder with masked code laid out as peers.py says")
    data: str = flag("python", "peers: names, python, or a text file, read as characters")
    seconds: int = flag(120, "peers: CPU seconds of training for each", least=1)
    seeds: int = flag(1, "peers: runs of each, with seeds 1, 2, ...", least=1)
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)
    tiny: bool = flag(False, "tiny networks, to see whether it runs")


class Report:
    """Prints tables, and saves every round of them as JSON after each table."""

    def __init__(self, config, device):
        self.config, self.device = config, device
        self.path = Path(config.out_dir) / f"{config.command}.json"
        self.hardware, self.rows = hardware(device, config.hardware), []
        self.until = time.monotonic() + 60 * config.minutes if device.type == "cuda" else math.inf
        self.path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(self.path)
        few = ", fewer than 7: an impression, no measurement" if config.rounds < 7 else ""
        tiny = "; TINY: says nothing about speed" * config.tiny
        print(f"{self.hardware}; {config.rounds} rounds{few}{tiny}")

    def add_table(self, title, size, ways, against, tokens=0, more=lambda name, runs: ("", {})):
        """Time {name: (do, times)} in turns, and print and keep a row for each.

        against {name: ways to compare it with}; more(name, seconds) -> text, figures
        """
        if not self.has_time(f"{title}: {size}"):
            return
        seconds = time_in_turns(ways, self.config.rounds, self.device, self.until)
        print(f"\n{title}: {size}\n{'':<36}{'seconds':>9}{'tokens/s':>10}   "
              f"times as fast (least to most)")
        for name, runs in seconds.items():
            middle, (text, figures) = statistics.median(runs), more(name, runs)
            row = {"table": title, "size": asdict(size), "way": name, "seconds": runs,
                   "tokens": tokens, "extrapolated": ways[name][1] != 1, **figures}
            others = against.get(name, ())
            if others:
                row["ratios"] = {other: paired_ratio(seconds[other], runs) for other in others}
            gain = "; ".join(f"{format_ratio(seconds[other], runs)} as {other}" for other in others)
            mark, rate = "~" * row["extrapolated"], f"{tokens / middle:.0f}" * bool(tokens)
            print(f"{name:<36}{mark + f'{middle:.3g}':>9}{rate:>10}   {gain}{text}", flush=True)
            self.rows.append(row)
        self.save()

    def has_time(self, title):
        """Whether a table may begin; if not, says which one is left out."""
        if late := time.monotonic() > self.until:
            print(f"\n{title}: left out, since {self.config.minutes:g} minutes are over: --minutes "
                  "or --only", flush=True)
        return not late

    def save(self):
        said = {"hardware": self.hardware, "rounds": self.config.rounds,
                "tiny": self.config.tiny, "rows": self.rows}
        write_file(self.path, json.dumps(said, indent=1))


def time_training(report, size, names):
    """One training step, and its peak memory."""
    gpu, peaks, ways = report.device.type == "cuda", {}, {}
    if not report.has_time(f"training step: {size}"):
        return
    for name in names:
        if gpu:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        ways[name] = STEPS[name](size), 1
        if gpu:  # without what the ways before it still hold
            for _ in range(2):
                ways[name][0]()
            peaks[name] = torch.cuda.max_memory_allocated() - before
        else:
            peaks[name] = workloads.measure_memory(name, size)
    n = 64 if report.config.tiny else 8192 if gpu else 2048
    peak = workloads.matmul_peak(report.device, size, n)

    def more(name, runs):
        flops = workloads.count_flops(size, workloads.HEAD_SHARE.get(name, 1 / 3))
        rate = flops / statistics.median(runs)
        muon = workloads.count_muon_flops(size) if name.startswith("ours by default") else 0
        both = f" ({(1 + muon / flops) * rate / peak:.0%} with Muon's products)" * bool(muon)
        text = (f"\n{'':<36}{rate / 1e9:,.0f} GFLOP/s, {rate / peak:.0%} of the peak{both}; "
                f"{peaks[name] / 1e9:.2f} GB, {peaks[name] / peaks['plain']:.2f} of plain's")
        return text, dict(flops=rate, matmul_peak=peak, peak_bytes=peaks[name])
    against = {name: ["plain"] for name in names[1:]}
    report.add_table("training step", size, ways, against, size.batch * size.length, more)


def time_sampling(report, size, steps, methods):
    """Whole texts from noise, by these methods, or by all."""
    wanted = [name for name in methods.split(",") if name] or [""]
    ways = {name: way for name, way in workloads.samplers(size, steps).items()
            if name.startswith(tuple(wanted))}
    if not ways:
        raise UserError(f"--methods {methods} must be of mdlm, udlm, ar, pgm and bd3lm, with "
                        f"commas between")
    against = {name: [other for other in (f"{name}, plain", f"{name}, lean") if other in ways]
               for name in ways}
    against |= {name: ["ar"] for name in ways if name.startswith(("pgm", "bd3lm")) and "ar" in ways}
    half = size.dtype == "bfloat16"  # one autocast, which rounds all weights once
    with torch.autocast(size.device, torch.bfloat16, enabled=half):
        report.add_table("sampling", size, ways, against, size.batch * size.length)


def time_at_equal_law(report, size, steps=REFERENCE):
    """Whole texts, all as far from the language as plain sampling's, or less: equal_law.py."""
    plain = {name: way for name, way in workloads.samplers(size, steps).items()
             if name.startswith(("mdlm", "udlm", "ar")) and not name.endswith("lean")}
    ways = samplers_at_equal_law(size, plain)
    first = next(iter(ways))
    against = {name: [f"{kind}, plain" if kind == "ar" else f"{kind}, {steps} steps, plain"]
               for name in ways if (kind := name.partition(",")[0]) in ("mdlm", "udlm", "ar")
               and not name.endswith("plain")}
    against |= {name: [first, "ar"] for name in ways if name not in against
                and not name.endswith("plain")}
    report.add_table("sampling at equal law", size, ways, against, size.batch * size.length)
    size = replace(size, length=min(size.length, SENTENCE))
    plain = {name: way for name, way in workloads.samplers(size, steps).items()
             if name.startswith("mdlm") and not name.endswith("lean")}
    ways, first = sentences_at_equal_law(size, plain), next(iter(plain))
    against = {name: [first] for name in ways if name != first}
    report.add_table("sentences at equal law", size, ways, against, size.batch * size.length)


def time_kernels(report):
    """Each fast form beside its plain one and the library's, as in experiments/kernels.py."""
    if fast_forms is None:
        return print("\nno fast forms: the file kernels.py is missing")
    for title, size, ways in fast_forms(report.device, report.config.tiny):
        if not report.has_time(title):
            continue
        ways = {name: (do, 1) for name, do in ways.items()}
        seconds = time_in_turns(ways, report.config.rounds, report.device, report.until)
        print(f"\n{title}")
        ours = next(iter(seconds))
        for name, runs in seconds.items():
            ratio = "" if name == ours else format_ratio(runs, seconds[ours])
            text = f"{ratio} times that of the kernel" * bool(ratio)
            print(f"{name:<36}{statistics.median(runs):>9.3g} s   {text}", flush=True)
            report.rows.append({"table": title, "size": size, "way": name, "seconds": runs})
        report.save()


# ---- the commands

def combinations(config):
    """--lengths, --batches and --steps in every combination. -> [(length, batch, steps)]"""
    return list(product(*map(parse_numbers, (config.lengths, config.batches, config.steps))))


def cpu(config):
    device, threads = device_of("cpu"), torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    keep_memory()
    torch.set_float32_matmul_precision(config.matmul_precision)
    report, shrink = Report(config, device), TINY if config.tiny else {}
    if config.only in ("", "training"):
        names = [*STEPS] if config.compile else [*STEPS][:3]
        for size in (SMALL, SMALLER, replace(SMALL, batch=8), replace(SMALL, n_tokens=256),
                     replace(SMALLER, n_tokens=256, batch=16)):
            time_training(report, replace(size, dtype=config.dtype, **shrink), names)
    if config.only in ("", "sampling"):
        for length, batch, steps in [(16, 2, 4)] if config.tiny else combinations(config):
            size = replace(SMALL, dtype=config.dtype, **shrink)
            size = replace(size, length=length, batch=batch)
            time_sampling(report, size, steps, config.methods)
    if config.only in ("", "law"):
        size = replace(SMALL, dtype=config.dtype, **{"batch": 1, **shrink})
        time_at_equal_law(report, size, 4 if config.tiny else REFERENCE)
    if config.only in ("", "kernels"):
        time_kernels(report)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    print(f"\nevery round: {report.path}")


def gpu(config):
    device = device_of("cuda" if config.device == "auto" else config.device)  # or one clear line
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # events and peaks are those of the current GPU
    report, shrink = Report(config, device), TINY if config.tiny else {}
    size = replace(LARGE, device=device.type, **shrink)
    if config.only in ("", "training"):
        time_training(report, size, ("plain", "ours"))
    if config.only in ("", "sampling"):
        for batch, steps, methods in GPU_TABLES:
            batch, steps = (2, 4) if config.tiny else (batch, steps)
            time_sampling(report, replace(size, batch=batch, compile=False), steps,
                          config.methods or methods)
    if config.only in ("", "kernels"):
        time_kernels(report)
    print(f"\nevery round: {report.path}")


def law(config):
    torch.set_num_threads(1)
    report = Report(config, device_of("cpu"))
    size, few = (dict(texts=4, length=32), dict(texts=4, paths=2)) if config.tiny else ({}, {})
    report.rows = print_laws(measure_laws(**size))
    print()
    report.rows += print_sentences(measure_sentences(**few))
    report.save()


def main(config, given=()):
    commands = {"cpu": cpu, "gpu": gpu, "law": law, "peers": compare_peers}
    choose_command(config, commands)(config)


if __name__ == "__main__":
    run_experiment(Config, main)
