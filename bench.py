"""
Benchmarks: how much is learnt in a fixed time, and how fast.

    python bench.py train --data input.txt       the yardstick: nanoGPT's CPU size (4 layers, 128 wide, texts of 64 characters)
    python bench.py train --data names --seeds 3
    python bench.py toy                          distance of every method to the exact entropy of the toy language

The yardstick is scored on the whole held-out text, by the bound (exact for ar), in nats per character. Autoregression is given twice:
with nothing before the text, as the diffusion methods are, and as nanoGPT counts, where the first character is read and not scored.
Times are those of this machine, which is named; everything is trained here, one after the other, by train.py.
"""
import sys
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("", "what to measure; the first word of the command line, too", choices=["train", "toy"])
    data: str = flag("names", "of `train`: names, python, or a text file")
    methods: str = flag("", "with commas between; empty means ar,mdlm for train and all for toy")
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of steps, for a quick look", least=0.0001, most=100)
    out_dir: str = flag("out/bench", "where the checkpoints go")


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import math  # noqa: E402
import os
import platform
import statistics
import time

import torch

import train
from checkpoint import restore
from data import BadInput
from data.ngram import witten_bell
from data.text import load
from evaluate import estimate
from methods import METHODS

SIZE = dict(tokenizer="chars", block_size=64, n_layer=4, n_head=4, n_embd=128)      # nanoGPT's model for CPUs


def hardware():
    """The name without which a time means nothing."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        name = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def trained(config, method, seed, **flags):
    """Train one model. -> the restored model, wall minutes, CPU minutes"""
    out_dir = f"{config.out_dir}/{config.command}-{method}-{seed}"
    flags = {"method": method, "seed": seed, "out_dir": out_dir, "eval_interval": 10**6, **flags}
    default = train.Config(**flags)
    flags["max_iters"] = max(1, round(default.max_iters * config.share))
    wall, cpu = time.time(), time.process_time()
    train.main(train.Config(**flags))
    return restore(out_dir), (time.time() - wall) / 60, (time.process_time() - cpu) / 60


def names_of(config, default):
    names = [name for name in config.methods.split(",") if name] or default
    for name in names:
        if name not in METHODS:
            raise BadInput(f"--methods {name} is none of {', '.join(METHODS)}")
    return names


def table(rows):
    """Mean over seeds, and their spread, which is larger than a single run's standard error."""
    print(f"\n{hardware()}")
    for what in dict.fromkeys(row[0] for row in rows):
        values = [row[1] for row in rows if row[0] == what]
        error, wall, cpu = (statistics.mean(row[k] for row in rows if row[0] == what) for k in (2, 3, 4))
        seeds = f", {len(values)} seeds, spread {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        print(f"{what:<44}{statistics.mean(values):.3f} +- {error:.3f}{seeds}   {wall:.1f} min, {cpu:.1f} CPU min")


def yardstick(config):
    corpus = load(config.data, 64, "chars")
    x = corpus.windows("val")                                                                       # (n, 64)
    longer = load(config.data, 65, "chars").windows("val")                                          # (n, 65)
    first = torch.arange(65).expand(len(longer), -1) == 0                                           # (n, 65)
    rows = []
    for seed in range(1, config.seeds + 1):
        for name in names_of(config, ["ar", "mdlm"]):
            model, *minutes = trained(config, name, seed, data=config.data, **SIZE, **YARDSTICK)
            kind = "exact" if name == "ar" else "bound"
            rows.append((f"{name}, {kind}, nats/char", *estimate(model.method, model.denoiser, x, 1 if name == "ar" else 8),
                         *minutes))
            if name == "ar":
                rows.append(("ar as nanoGPT counts, nats/char", *estimate(model.method, model.denoiser, longer, frozen=first),
                             *minutes))
    table(rows)
    for n, nats in witten_bell(corpus.train, corpus.val, corpus.encoding.n_vocab).items():
        print(f"{f'{n}-gram':<44}{nats:.3f}")
    print(f"{'uniform':<44}{math.log(corpus.encoding.n_vocab):.3f}\n{corpus.about}")


def toy(config):
    corpus, rows = load("toy", 32), []
    x = corpus.windows("val", 4000)                                                                 # (n, 32)
    entropy, error = corpus.language.entropy(32)
    for seed in range(1, config.seeds + 1):
        for name in names_of(config, list(METHODS)):
            model, *minutes = trained(config, name, seed, data="toy", block_size=32, **TOY)
            nats, se = estimate(model.method, model.denoiser, x, 1 if name == "ar" else 8, 256)
            rows.append((f"{name}, above the entropy, nats/token", nats - entropy, math.hypot(se, error), *minutes))
    table(rows)
    print(f"{'exact entropy, nats/token':<44}{entropy:.4f} +- {error:.4f}")


if __name__ == "__main__":
    with one_line_errors():
        if not CONFIG.command:
            raise BadInput("say what to measure: python bench.py train, or python bench.py toy; --help tells more")
        {"train": yardstick, "toy": toy}[CONFIG.command](CONFIG)
