"""
Benchmarks: how much is learnt in a fixed time, and how fast everything is.

    python bench.py train --data input.txt   the yardstick: nanoGPT's size for CPUs on your text, 7 minutes each
    python bench.py train --data names --seeds 3
    python bench.py toy                      distance of each method to the toy language's entropy, 3 to 9 minutes each
    python bench.py text --minutes 10        all methods on the default text for the same CPU time, bits per byte
    python bench.py oracle                   no training: what few steps cost when the denoiser is exact
    python bench.py speed                    speed and memory of training and sampling, see speed.py
    python bench.py gpu                      the same on a GPU, in one call

The yardstick is scored on the whole held-out text, by the bound (exact for ar), in nats per character. ar is given
twice: with nothing before the text, as the diffusion methods are, and as nanoGPT counts, where the first character is
read but not scored. Everything is trained here, one after the other, by train.py, on the machine that is named.
"""
import sys
from dataclasses import dataclass, replace

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", [
        "train", "toy", "text", "oracle", "speed", "gpu"])
    data: str = flag("names", "of `train`: names, python, shakespeare, text8, or a text file")
    methods: str = flag("", "with commas between; empty means ar,mdlm for train, otherwise all")
    minutes: float = flag(10.0, "text: CPU minutes of training for each method", least=0.001)
    seeds: int = flag(1, "train, toy: runs of each, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of steps, for a quick look", least=0.0001, most=100)
    out_dir: str = flag("out/bench", "where checkpoints and figures go")
    only: str = flag("", "speed, gpu: one kind of table", ["", "training", "sampling", "kernels"])
    rounds: int = flag(7, "speed, gpu: rounds; fewer than 7 are a look, no measurement", least=1)
    lengths: str = flag("256", "speed: tokens of the samples, with commas between")
    batches: str = flag("1", "speed: samples at once, with commas between")
    steps: str = flag("32", "speed: from noise to text, with commas between")
    dtype: str = flag("float32", "speed: of matrix products, on all sides", ["float32", "bfloat16"])
    matmul_precision: str = flag("highest", "speed: of float32 products, on all sides", ["highest", "high", "medium"])
    compile: bool = flag(False, "speed: training through torch.compile, too")
    device: str = flag("auto", "gpu: auto, cuda, cuda:1; or cpu with --tiny")
    hardware: str = flag("", "what the machine is, where it does not say so itself")
    tiny: bool = flag(False, "speed, gpu: tiny networks, to see whether it runs")


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import math  # noqa: E402
import statistics
import time

import torch

import speed
import train
from bounds import beginnings, estimate, mean_error
from checkpoint import device_of, dtype_of, keep_memory, restore
from data import BadInput
from data.ngram import witten_bell
from data.text import load
from measure import hardware
from methods import METHODS, make_method
from oracle import oracle
from sample import Counted, generate

SIZE = dict(tokenizer="chars", block_size=64, n_layer=4, n_head=4, n_embd=128)          # nanoGPT's model for CPUs
FIVE_MINUTES = dict(batch_size=24, max_iters=5000)                                      # on two cores of 2024
TWO_MINUTES = dict(batch_size=64, block_size=32, max_iters=1800)


def trained(config, method, seed, **flags):
    """Train one model. -> the restored model, wall minutes, CPU minutes"""
    out_dir = f"{config.out_dir}/{config.command}-{method}-{seed}"
    flags = {"method": method, "seed": seed, "out_dir": out_dir, "eval_interval": 10**6, **flags}
    default = train.Config(**flags)
    flags["max_iters"] = max(1, round(default.max_iters * config.share))
    wall, cpu = time.time(), time.process_time()
    train.main(train.Config(**flags))
    model = restore(out_dir)
    if model.step < flags["max_iters"]:                  # train.py ends well when it is asked to stop
        raise KeyboardInterrupt
    return model, (time.time() - wall) / 60, (time.process_time() - cpu) / 60


def names_of(config, default):
    names = [name for name in config.methods.split(",") if name] or default
    for name in names:
        if name not in METHODS:
            raise BadInput(f"--methods {name} is none of {', '.join(METHODS)}")
    return names


def table(rows, name):
    """Mean over seeds, and their spread, which is larger than a single run's standard error."""
    print(f"\n{hardware(name=name)}")
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
            model, *minutes = trained(config, name, seed, data=config.data, **SIZE, **FIVE_MINUTES)
            kind = "exact" if name == "ar" else "bound"
            draws = 1 if name == "ar" else 8
            rows.append((f"{name}, {kind}, nats/char", *estimate(model.method, model.denoiser, x, draws), *minutes))
            if name == "ar":
                given_first = estimate(model.method, model.denoiser, longer, frozen=first)
                rows.append(("ar as nanoGPT counts, nats/char", *given_first, *minutes))
    table(rows, config.hardware)
    for n, nats in witten_bell(*beginnings(corpus), corpus.encoding.n_vocab).items():
        print(f"{f'{n}-gram':<44}{nats:.3f}")
    print(f"{'uniform':<44}{math.log(corpus.encoding.n_vocab):.3f}\n{corpus.about}")


def toy(config):
    corpus, rows = load("toy", 32), []
    x = corpus.windows("val", 4000)                                                                 # (n, 32)
    entropy, error = corpus.language.entropy(32)
    for seed in range(1, config.seeds + 1):
        for name in names_of(config, list(METHODS)):
            model, *minutes = trained(config, name, seed, data="toy", **TWO_MINUTES)
            nats, se = estimate(model.method, model.denoiser, x, 1 if name == "ar" else 8, 256)
            rows.append((f"{name}, above the entropy, nats/token", nats - entropy, math.hypot(se, error), *minutes))
    table(rows, config.hardware)
    print(f"{'exact entropy, nats/token':<44}{entropy:.4f} +- {error:.4f}")


def steps_in(seconds, method, **flags):
    """How many training steps of this method, of the default size, take so many seconds of CPU time here."""
    config = train.Config(method=method, **flags)
    device = device_of(config.device)
    config = replace(config, dtype=dtype_of(config.dtype, device))
    learner = train.Learner(config, load(config.data, config.block_size, config.tokenizer, config.vocab_size), device)
    for step in range(5):                                # the first ones touch fresh memory
        learner.step(step)
    began = time.process_time()
    for step in range(5, 25):
        learner.step(step)
    return max(1, round(seconds / (time.process_time() - began) * 20))


def text(config):
    """The default run for the same time: the bound on held-out text, and what a sample of 64 tokens costs."""
    print(f"{hardware(name=config.hardware)}; {config.minutes:g} CPU minutes of training each\n{'':<10}{'steps':>7}"
          f"{'held-out bound, bits/byte':>28}{'network calls for 64 tokens':>30}", flush=True)
    for name in names_of(config, list(METHODS)):
        keep_memory()
        steps = steps_in(60 * config.minutes, name)
        model, _, cpu = trained(config, name, 1, max_iters=steps)
        corpus = load("python", 64, "bpe", model.config.vocab_size)
        nats, error = estimate(model.method, model.denoiser, corpus.windows("val", 2000), 1 if name == "ar" else 4)
        spy, bits = Counted(model.denoiser), 1 / math.log(2) / corpus.bytes_per_token
        for _ in range(8):
            generate(model.method, spy, 1, 64, 128)
        calls = f"{spy.calls / 8:.0f} in 128 steps" if name != "ar" else f"{spy.calls / 8:.0f}"
        print(f"{name:<10}{model.step:>7}{f'{nats * bits:.3f} +- {error * bits:.3f}':>28}{calls:>30}"
              f"   {cpu:.1f} CPU min with the reports", flush=True)


def sampler_error(config, n=256):
    """What a sampler in few steps loses against the language, in nats/token, when the denoiser is exact."""
    corpus = load("toy", 32)
    entropy, _ = corpus.language.entropy(32)
    names, powers = names_of(config, [name for name in METHODS if name != "ar"]), range(0, 8)
    print(f"-log p of {n} samples above the entropy of {entropy:.3f}, nats/token\nsteps  " +
          "".join(f"{name:>18}" for name in names))
    for steps in (2 ** k for k in powers):
        cells = []
        for name in names:
            method = make_method(name, corpus.encoding.n_vocab)
            torch.manual_seed(1)
            x = generate(method, oracle(corpus.language, method), n, 32, steps)                         # (n, 32)
            mean, error = mean_error(-corpus.language.log_prob(x) / 32)
            cells.append(f"{mean - entropy:.3f} +- {error:.3f}")
        print(f"{steps:>5}  " + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    with one_line_errors():
        if not CONFIG.command:
            raise BadInput("say what to measure: train, toy, text, oracle, speed or gpu; --help tells more")
        if CONFIG.command != "gpu":
            hardware(name=CONFIG.hardware)               # before hours of work, not after
        {"train": yardstick, "toy": toy, "text": text, "oracle": sampler_error, "speed": speed.cpu,
         "gpu": speed.gpu}[CONFIG.command](CONFIG)
