"""
Speed and memory, as ratios: several ways to do the same, in turn, on the machine that is named.

    python bench.py speed                                training and sampling on one thread of this CPU, 25 minutes
    python bench.py speed --only sampling --batches 1,8 --steps 8,32
    python bench.py speed --dtype bfloat16               matrix products in bfloat16, on all sides
    python bench.py speed --only training --compile      our step through torch.compile, too: a minute each to compile
    python bench.py gpu                                  one GPU of the size of an H200; about ten minutes, in parts
                                                         by --only training, sampling, kernels
    python bench.py gpu --tiny --device cpu              does it run? tiny networks, and no word on speed

A round times each way once, one after the other, so that what else the machine does meets all of them; ratios are
taken within a round, and their median is printed with the least and the most. On a CPU the time is that of the process
on one thread, which other programs disturb least; on a GPU it is that between two CUDA events. What costs the same at
each step is timed on a few and multiplied (~). Networks have random weights: speed does not depend on what they say.

    plain     plain.py, what research code does, pass for pass: the same loss and law, dense
    lean      as dense, but in no more passes than the formula needs
    ours      train.py's step, sample.py's samplers

Peak memory is that of a process which does nothing else (CPU), or of torch's allocator (GPU), weights, gradients,
optimizer and average included. FLOPs are those of matrix products that the way needs: for ours, the head at masked
positions alone. The peak that they are a share of is measured, not read from a data sheet.
"""
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch

import plain
import train
from checkpoint import device_of, keep_memory
from data import BadInput
from diffusion import corrupt
from learner import Learner
from measure import cost, hardware, high_water, numbers, paired, ratio
from methods import make_method
from model import Transformer
from sample import generate

try:
    from claims.kernels import cases
except ModuleNotFoundError:                              # kernels.py is optional
    cases = None

FEW = 2                                                  # steps of the plain samplers that are timed


@dataclass(frozen=True)
class Size:
    """A network, its texts, and how it multiplies."""
    n_layer: int
    n_head: int
    n_embd: int
    n_tokens: int = 50_257
    length: int = 256
    batch: int = 4
    dtype: str = "float32"
    compile: bool = False
    device: str = "cpu"

    def __str__(self):
        return (f"{self.n_layer} x {self.n_embd}, V = {self.n_tokens + 1:,}, L = {self.length:,}, batch {self.batch}, "
                f"{self.dtype}" + ", compiled" * self.compile)


SMALL, SMALLER = Size(6, 6, 384), Size(4, 4, 128)
LARGE = Size(12, 12, 768, length=1024, batch=32, dtype="bfloat16", compile=True, device="cuda")
GPU_TABLES = ((16, 1024, "mdlm,udlm"), (16, 128, "ar,pgm,bd3lm"), (1, 128, ""))          # batch, steps, methods
TINY = dict(n_layer=2, n_head=2, n_embd=16, n_tokens=50, length=16, batch=2, compile=False)


# ---- what is measured

class Words:
    """Random ids in place of a corpus, as Learner takes one."""

    def __init__(self, size):
        self.size, self.encoding, self.classes = size, SimpleNamespace(n_vocab=size.n_tokens), []

    def examples(self, split, n, generator=None):
        x = torch.randint(self.size.n_tokens, (n, self.size.length), generator=generator)               # (n, L)
        return x, None, None


def our_trainer(size, **flags):
    """train.py's step on the bound, the loss of plain.py; or on what else the flags say. -> do"""
    config = train.Config(**{**dict(
        method="mdlm", weighting="bound", optimizer="adamw", qk_norm=False, ema=0.9999, learning_rate=3e-4,
        batch_size=size.batch, block_size=size.length, n_layer=size.n_layer, n_head=size.n_head, n_embd=size.n_embd,
        dtype=size.dtype, compile=size.compile), **flags})
    learner = Learner(config, Words(size), torch.device(size.device))
    return partial(learner.step, 0)


def plain_trainer(size):
    """plain.py's step of the same network. -> do"""
    torch.manual_seed(1337)
    method = make_method("mdlm", size.n_tokens)
    network = Transformer(size.n_tokens + 1, size.n_layer, size.n_head, size.n_embd, cond_dim=0).to(size.device)
    forward = torch.compile(network) if size.compile else network
    trainer = plain.Trainer(network, method.process, forward=forward, half=size.dtype == "bfloat16")
    x = torch.randint(size.n_tokens, (size.batch, size.length), device=size.device)                     # (B, L)
    return lambda: trainer.step(x)


DEFAULT = dict(weighting="simple", optimizer="muon", qk_norm=True)
TRAINERS = {"plain": plain_trainer, "ours": our_trainer, "ours by default": partial(our_trainer, **DEFAULT),
            "ours by default, compiled": partial(our_trainer, **DEFAULT, compile="default")}


def flops(size, head=1.0):
    """Of the matrix products of a training step; head: the share of positions that it scores."""
    D, L = size.n_embd, size.length
    per_token = size.n_layer * (24 * D * D + 4 * L * D) + head * 2 * D * (size.n_tokens + 1)
    return 3 * per_token * size.batch * L


def matmul_peak(device, size, n):
    """The best of twelve products of n x n matrices, FLOP/s."""
    a, b = (torch.randn(n, n, device=size.device, dtype=getattr(torch, size.dtype)) for _ in range(2))  # (n, n) each
    return 2 * n ** 3 / min(cost(lambda: a @ b, device) for _ in range(12))


def untrained(name, size, **options):
    """A method, and a network of random weights for it. -> method, network"""
    torch.manual_seed(1337)
    method = make_method(name, size.n_tokens, **options)
    build = getattr(method, "network", Transformer)
    network = build(method.vocab_size, size.n_layer, size.n_head, size.n_embd, mask_mod=method.mask_mod,
                    cond_dim=128 if method.uses_time else 0)
    torch.nn.init.normal_(network.head.weight, std=0.02)                 # at zero it would say nothing
    return method, network.to(size.device).eval()


def samplers(size, steps):
    """Ways to write a batch of texts. -> {name: (do, times)}; plain ones first, then ours of the same method"""
    def ours(method, network, steps):
        return lambda: generate(method, network, size.batch, size.length, steps, device=size.device)

    def dense(step, method, network):
        x = torch.randint(size.n_tokens, (size.batch, size.length), device=size.device)                 # (B, L)
        half = torch.full((size.batch, 1), 0.5, device=size.device)                                     # (B, 1)
        z = corrupt(method.process, x, half)   # (B, L) half way, where a step costs its mean
        def do():
            for k in range(FEW):
                step(method.process, network, z, 0.5 - 0.5 / steps, 0.5)
        return do

    def uncached(method, network):
        x = torch.randint(size.n_tokens, (size.batch, size.length), device=size.device)                 # (B, L)
        places = [size.length * k // 8 for k in (1, 3, 5, 7)]            # their mean cost is that of all places
        def do():
            for n in places:
                plain.next_token(network, x[:, :n], size.n_tokens)
        return do

    mdlm, udlm, ar, pgm = (untrained(name, size) for name in ("mdlm", "udlm", "ar", "pgm"))
    block = min(16, size.length)
    bd3lm = untrained("bd3lm", size, diffusion_block=block)
    return {f"mdlm, {steps} steps, plain": (dense(plain.masked_step, *mdlm), steps / FEW),
            f"mdlm, {steps} steps, lean": (dense(plain.lean_masked_step, *mdlm), steps / FEW),
            f"mdlm, {steps} steps": (ours(*mdlm, steps), 1),
            f"udlm, {steps} steps, plain": (dense(plain.uniform_step, *udlm), steps / FEW),
            f"udlm, {steps} steps, lean": (dense(plain.lean_uniform_step, *udlm), steps / FEW),
            f"udlm, {steps} steps": (ours(*udlm, steps), 1),
            "ar, plain": (uncached(*ar), size.length / 4),
            "ar": (ours(*ar, 1), 1),
            f"pgm, {steps} steps": (ours(*pgm, steps), 1),
            f"bd3lm, blocks of {block} in 4 steps": (ours(*bd3lm, 4), 1)}


def memory(way, size):
    """Peak bytes of two training steps, above those of torch itself, in a process of its own."""
    words = [sys.executable, __file__, json.dumps({"way": way, **asdict(size)})]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise BadInput(f"{way} at {size} did not finish: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


# ---- the tables

class Report:
    """Prints tables and keeps all figures, each round of them, in a JSON file: after every table, so that a run that
    is cut short has its first ones."""

    def __init__(self, config, device):
        self.config, self.device, self.path = config, device, Path(config.out_dir) / f"{config.command}.json"
        self.hardware, self.rows = hardware(device, config.hardware), []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.save()
        few = " -- fewer than 7 rounds: a look, no measurement" if config.rounds < 7 else ""
        print(f"{self.hardware}; {config.rounds} rounds{few}" + "; TINY: says nothing of speed" * config.tiny)

    def table(self, title, size, ways, against, tokens=0, more=lambda name, seconds: ("", {})):
        """ways as in paired; against {name: ways that it is compared with}; more(name, seconds) -> text, figures"""
        seconds = paired(ways, self.config.rounds, self.device)
        print(f"\n{title}: {size}\n{'':<36}{'seconds':>9}{'tokens/s':>10}   times as fast (least to most)")
        for name, runs in seconds.items():
            middle, (text, figures) = statistics.median(runs), more(name, runs)
            row = {"table": title, "size": asdict(size), "way": name, "seconds": runs, "tokens": tokens,
                   "extrapolated": ways[name][1] != 1, **figures}
            gains = {other: ratio(seconds[other], runs) for other in against.get(name, ())}
            if gains:
                row["ratios"] = gains
            gain = "; ".join("{:.2f} ({:.2f} to {:.2f}) as {}".format(*gain, other) for other, gain in gains.items())
            mark, rate = "~" * row["extrapolated"], f"{tokens / middle:.0f}" * bool(tokens)
            print(f"{name:<36}{mark + f'{middle:.3g}':>9}{rate:>10}   {gain}{text}", flush=True)
            self.rows.append(row)
        self.save()

    def save(self):
        said = {"hardware": self.hardware, "rounds": self.config.rounds, "tiny": self.config.tiny, "rows": self.rows}
        self.path.write_text(json.dumps(said, indent=1))


def training(report, size, names):
    """One training step, and its peak memory."""
    gpu, peaks, ways = report.device.type == "cuda", {}, {}
    for name in names:
        if gpu:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        ways[name] = TRAINERS[name](size), 1
        if gpu:                                              # what the ways before it still hold is not its own
            for _ in range(2):
                ways[name][0]()
            peaks[name] = torch.cuda.max_memory_allocated() - before
        else:
            peaks[name] = memory(name, size)
    peak = matmul_peak(report.device, size, 64 if report.config.tiny else 8192 if gpu else 2048)
    heads = {"plain": 1.0, "ours": 0.5}                      # the mean share of masked positions; by default a third

    def more(name, runs):
        done = flops(size, heads.get(name, 1 / 3)) / statistics.median(runs)
        text = f"\n{'':<36}{done / 1e9:,.0f} GFLOP/s, {done / peak:.0%} of the peak; {peaks[name] / 1e9:.2f} GB"
        return text + f", {peaks[name] / peaks['plain']:.2f} of plain's", dict(
            flops=done, matmul_peak=peak, peak_bytes=peaks[name])
    report.table("training step", size, ways, {name: ["plain"] for name in names[1:]}, size.batch * size.length, more)


def sampling(report, size, steps, methods):
    """Whole texts from nothing, by these methods or by all."""
    wanted = [name for name in methods.split(",") if name] or [""]
    ways = {name: way for name, way in samplers(size, steps).items() if name.startswith(tuple(wanted))}
    if not ways:
        raise BadInput(f"--methods {methods}: of mdlm, udlm, ar, pgm and bd3lm, with commas between")
    against = {name: [other for other in (f"{name}, plain", f"{name}, lean") if other in ways] for name in ways}
    against |= {name: ["ar"] for name in ways if name.startswith(("pgm", "bd3lm")) and "ar" in ways}
    with torch.autocast(size.device, torch.bfloat16, enabled=size.dtype == "bfloat16"):    # rounds all weights once
        report.table("sampling", size, ways, against, size.batch * size.length)


def kernels(report):
    """Each fast form against its plain one and the library's, as claims/kernels.py sets them up."""
    if cases is None:
        return print("\nno fast forms: the file kernels.py is not here")
    for title, size, ways in cases(report.device, report.config.tiny):
        seconds = paired({name: (do, 1) for name, do in ways.items()}, report.config.rounds, report.device)
        print(f"\n{title}")
        ours = next(iter(seconds))
        for name, runs in seconds.items():
            gain = "" if name == ours else "{:.2f} ({:.2f} to {:.2f}) times that of the kernel".format(
                *ratio(runs, seconds[ours]))
            print(f"{name:<36}{statistics.median(runs):>9.3g} s   {gain}", flush=True)
            report.rows.append({"table": title, "size": size, "way": name, "seconds": runs})
        report.save()


# ---- the commands

def lists(config):
    """--lengths, --batches and --steps as every combination. -> [(length, batch, steps)]"""
    return list(product(*(numbers(name, getattr(config, name)) for name in ("lengths", "batches", "steps"))))


def cpu(config):
    """python bench.py speed"""
    device, threads, precision = device_of("cpu"), torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    keep_memory()
    torch.set_float32_matmul_precision(config.matmul_precision)
    report = Report(config, device)
    shrink, ways = TINY if config.tiny else {}, [*TRAINERS] if config.compile else [*TRAINERS][:3]
    if config.only in ("", "training"):
        for size in (SMALL, SMALLER, replace(SMALL, batch=8), replace(SMALL, n_tokens=256),
                     replace(SMALLER, n_tokens=256, batch=16)):
            training(report, replace(size, dtype=config.dtype, **shrink), ways)
    if config.only in ("", "sampling"):
        for length, batch, steps in [(16, 2, 4)] if config.tiny else lists(config):
            size = replace(SMALL, dtype=config.dtype, **shrink)
            sampling(report, replace(size, length=length, batch=batch), steps, config.methods)
    if config.only in ("", "kernels"):
        kernels(report)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    print(f"\nevery round: {report.path}")


def gpu(config):
    """python bench.py gpu"""
    device = device_of("cuda" if config.device == "auto" else config.device)         # or one clear line
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)         # events and peaks are those of the current one
    report, shrink = Report(config, device), TINY if config.tiny else {}
    size = replace(LARGE, device=device.type, **shrink)
    if config.only in ("", "training"):
        training(report, size, ("plain", "ours"))
    if config.only in ("", "sampling"):
        for batch, steps, methods in GPU_TABLES:
            batch, steps = (2, 4) if config.tiny else (batch, steps)
            sampling(report, replace(size, batch=batch, compile=False), steps, config.methods or methods)
    if config.only in ("", "kernels"):
        kernels(report)
    print(f"\nevery round: {report.path}")


if __name__ == "__main__":                               # the process of its own that `memory` starts
    said = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    keep_memory()
    way, size = TRAINERS[said.pop("way")], Size(**said)
    way(replace(size, **TINY))()                             # loads what torch loads late
    at_first, do = high_water(), way(size)
    for _ in range(2):
        do()
    print(high_water() - at_first)
