"""
Chapter 8. Claims about block diffusion (arXiv:2503.09573) and Fast-dLLM (2505.22618), in small.

    python -m experiments.bd3lm shrink  the bound falls from mdlm's to ar's as blocks shrink: the
                                        toy language's exact gaps, or with --data names (or python)
                                        the bound on real text
    python -m experiments.bd3lm clip    what clipped schedules gain at blocks of four, in variance
                                        and in the bound
    python -m experiments.bd3lm speed   tokens per second of ar, bd3lm, mdlm and pgm, with caches,
                                        at the same network size
    python -m experiments.bd3lm cache   the error of the approximate caches of samplers/semi_ar.py,
                                        and what they save

shrink, clip and cache train for a --share of the steps of python -m experiments.learning toy (or
train, for text). speed uses random weights. All runs come one after the other, on the machine that
is printed.
"""
import math
import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from data import load_data
from diffusion import ancestral
from evaluation.errors import mean_error, mean_over_seeds, with_error
from evaluation.likelihood import estimate_bound
from evaluation.sample_quality import unigram_entropy
from experiments import training
from experiments.command import choose_command, run_experiment
from experiments.timing import hardware
from experiments.training import train_model
from flags import flag
from methods import make_method
from runtime.start import check_heads
from samplers.generate import CallCounter, generate
from samplers.semi_ar import SemiAR
from samplers.unmasking import FirstHitting


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word",
                        ["shrink", "clip", "speed", "cache"])
    data: str = flag("toy", "shrink: toy, names, python, or a text file")
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of training steps", least=0.0001, most=100)
    out_dir: str = flag("out/experiments-bd3lm", "where the checkpoints go")
    texts: int = flag(4000, "shrink, clip: held-out texts; cache: 1 in 16 of them are sampled",
                      least=32)
    length: int = flag(256, "speed: tokens per text", least=64)
    vocab_size: int = flag(8192, "speed: symbols", least=2)
    n_layer: int = flag(4, "speed: blocks of the network", least=1)
    n_embd: int = flag(128, "speed: width", least=8)
    n_head: int = flag(4, "speed: attention heads", least=1)
    seconds: float = flag(10.0, "speed: at least so long per line", least=0.01)


def train_here(config, name, method, seed, data="toy", **flags):
    """A model of the toy language, or of text, trained as in learning.py. -> model, CPU minutes"""
    text = {**training.NANOGPT, **training.FIVE_MINUTES}
    size = training.TWO_MINUTES if data == "toy" else text
    out_dir = f"{config.out_dir}/{name}-{method}-{seed}"
    flags = {**size, "data": data, "method": method, "seed": seed, **flags}
    model, _, cpu = train_model(out_dir, config.share, **flags)
    return model, cpu


def spread_over_seeds(values):
    if len(values) == 1:
        return ""
    return f", {len(values)} seeds, spread {statistics.stdev(values):.4f}"


def shrink(config):
    """Nats/token of mdlm, blocks of 16, 8, 4 and 1, and ar; on toy, above its entropy."""
    toy = config.data == "toy"
    data = load_data(config.data, 32 if toy else 64, "auto" if toy else "chars")
    x = data.windows("val", config.texts)  # (n, L)
    entropy, entropy_error = data.language.entropy(32) if toy else (0.0, 0.0)
    what = f"above the entropy of {entropy:.4f} +- {entropy_error:.4f}, nats/token"
    print(f"{hardware()}\n{data.about}\n{what if toy else 'nats/char'}; {len(x)} texts, seeds 1 "
          f"to {config.seeds}")
    blocks = [(f"bd3lm, blocks of {n}", "bd3lm", dict(diffusion_block=n)) for n in (16, 8, 4, 1)]
    for name, method, flags in [("mdlm", "mdlm", {}), *blocks, ("ar", "ar", {})]:
        rows = []
        for seed in range(1, config.seeds + 1):
            folder = f"shrink{flags.get('diffusion_block', '')}-{data.name}"
            model, cpu = train_here(config, folder, method, seed, config.data, **flags)
            draws = 1 if model.method.exact else 8
            nats, error = estimate_bound(model.method, model.denoiser, x, draws, 256,
                                         independent=data.independent_texts)
            rows.append((nats - entropy, math.hypot(error, entropy_error), model.step, cpu))
        gap, error, steps, cpu = zip(*rows)
        figure = with_error(*mean_over_seeds(gap, error), ".4f")
        steps, cpu = statistics.mean(steps), statistics.mean(cpu)
        print(f"{name:<24}{figure:>18}{spread_over_seeds(gap)}   {steps:.0f} steps, "
              f"{cpu:.1f} CPU min", flush=True)


SCHEDULES = {  # name -> flags of bd3lm
    "t ~ U(0, 1), 1/t": dict(clip="0,1", weighting="bound"),
    "t ~ U(.3, .8), 1/t": dict(clip="0.3,0.8", weighting="bound"),
    "t ~ U(.45, .95), 1/t": dict(clip="0.45,0.95", weighting="bound"),
    "searched, 1/t": dict(clip_search=True, weighting="bound", eval_interval=300),
    "number of masks drawn first, L'/k": dict(weighting="bound"),
    "number of masks drawn first, equal weights": dict(weighting="simple"),
}


def clip(config):
    """Blocks of four: the variance of the training loss between blocks, and the final bound."""
    data = load_data("toy", 32)
    x = data.windows("val", config.texts)  # (n, 32)
    entropy, _ = data.language.entropy(32)  # known to 0.0002
    print(f"{hardware()}\nblocks of 4, seeds 1 to {config.seeds}; variance of the training loss of "
          f"a block at the end, nats/token squared\n{'':<44}{'variance':>10}   above the entropy, "
          f"nats/token")
    for i, (name, flags) in enumerate(SCHEDULES.items()):
        rows = []
        for seed in range(1, config.seeds + 1):
            model, cpu = train_here(config, f"clip{i}", "bd3lm", seed, diffusion_block=4, **flags)
            torch.manual_seed(0)
            with torch.no_grad():
                nats = torch.cat([model.method.loss(model.denoiser, part)
                                  for part in x.split(256)])  # (n, 32)
            bound, error = estimate_bound(model.method, model.denoiser, x, 8, 256,
                                          independent=True)
            rows.append((nats.view(-1, 4).mean(-1).var().item(), bound - entropy, error, cpu))
        variance, gap, error, cpu = zip(*rows)
        found = f" ({model.config.clip})" if "clip_search" in flags else ""
        figure = with_error(*mean_over_seeds(gap, error), ".4f")
        print(f"{name + found:<44}{statistics.mean(variance):>10.3f}{figure:>20}"
              f"{spread_over_seeds(gap)}   {statistics.mean(cpu):.1f} CPU min", flush=True)


def speed_rows(L):
    """(what, method, block, steps, sampler) of each line of the table."""
    rows = [("ar, cache", "ar", 1, 1, ancestral), ("ar, no cache", "ar", 1, 1, ancestral)]
    for n in (4, 16):
        rows += [(f"bd3lm, blocks of {n}, cache, {k} token{'s' * (k > 1)} a call", "bd3lm", n,
                  n // k, FirstHitting()) for k in (1, 4) if k < n]
    rows += [("bd3lm, blocks of 16, no cache, 4 tokens a call", "bd3lm", 16, 4, FirstHitting())]
    return rows + [(f"{name}, {steps} steps", name, 1, steps, ancestral)
                   for name in ("mdlm", "pgm") for steps in (L, L // 4, L // 8)]


def speed(config):
    """Tokens per second of networks of the same size with random weights."""
    check_heads(config.n_embd, config.n_head)
    V, L = config.vocab_size, config.length
    uncached = lambda net: lambda z, t, at=None, **layout: net(z, t, at, **layout)
    print(f"{hardware()}\ntokens per second, texts of {L} tokens of {V} symbols, {config.n_layer} "
          f"layers of {config.n_embd}, float32\n{'':<52}{'batch 1':>18}{'batch 16':>18}"
          f"{'calls':>8}")
    for what, name, block, steps, sampler in speed_rows(L):
        torch.manual_seed(0)
        method = make_method(name, V, diffusion_block=block)
        net = method.network(method.vocab_size, n_layer=config.n_layer, n_head=config.n_head,
                             n_embd=config.n_embd, cond_dim=0, qk_norm=True,
                             mask_mod=method.mask_mod).eval()
        cells = []
        for batch in (1, 16):
            spy = CallCounter(uncached(net) if "no cache" in what else net)
            draw = partial(generate, method, spy, batch, L, steps, sampler)
            rates = tokens_per_second(draw, batch * L, config.seconds)
            cells.append(f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})")
        print(f"{what:<52}{cells[0]:>18}{cells[1]:>18}{spy.calls // len(rates):>8}", flush=True)


def tokens_per_second(draw, tokens, seconds):
    """Of at least three draws, and of as many as fit into the time."""
    rates, began = [], time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        with torch.no_grad():
            draw()
        rates.append(tokens / (time.perf_counter() - start))
    return rates


class CacheComparison:
    """Calls a network with a cache, and again without, at the same state, and compares outputs."""
    supports_cache, supports_fused_head, fixed_shapes = True, False, False

    def __init__(self, net):
        self.net, self.whole, self.calls, self.read, self.differences = net, None, 0, 0, []

    def __call__(self, z, t, at, cache=None):
        self.calls, self.read = self.calls + 1, self.read + z.numel()
        lo, hi = (cache.start, cache.start + z.shape[1]) if cache else (0, z.shape[1])
        known = self.whole is not None and z.shape != self.whole.shape
        before = self.whole if known else z  # (B, L)
        self.whole = torch.cat([before[:, :lo], z, before[:, hi:]], 1)  # (B, L)
        logits = self.net(z, t, at, cache=cache)  # (N, V)
        everywhere = F.pad(at, (lo, self.whole.shape[1] - hi))  # (B, L)
        exact = self.net(self.whole, t, everywhere)  # (N, V)
        distance = (logits.softmax(-1) - exact.softmax(-1)).abs().sum(-1) / 2  # (N,)
        self.differences.append((distance, logits.argmax(-1) != exact.argmax(-1)))  # (N,) each
        return logits


RULES = {"1 a step": (32, {}), "2 a step": (16, {}), "confidence > .9": (32, dict(threshold=0.9)),
         "factor 1": (32, dict(factor=1.0))}  # name -> steps, flags of semi-ar


def cache(config):
    """Fast-dLLM's caches on mdlm: total variation, network calls, and the samples."""
    data, n = load_data("toy", 32), max(2, config.texts // 16)
    entropy, _ = data.language.entropy(32)
    model, cpu = train_here(config, "cache", "mdlm", 1)
    print(f"{hardware()}\nmdlm, {model.step} steps of training, {cpu:.1f} CPU min; {n} texts of 32 "
          f"tokens, blocks of 8\nTV: mean total variation distance to the uncached prediction; "
          f"top: share with another likeliest word\nread: tokens through the network per text; "
          f"-log p: above the entropy of {entropy:.3f}; entropy: of the words within a text; nats\n"
          f"{'rule':<16}{'cache':<8}{'TV':>18}{'top':>8}{'calls':>7}{'read':>7}{'-log p':>18}"
          f"{'entropy':>18}")
    for rule, (steps, options) in RULES.items():
        for kind in ("none", "prefix", "dual"):
            torch.manual_seed(1)
            spy, sampler = CacheComparison(model.denoiser), SemiAR(8, kind, **options)
            x = generate(model.method, spy, n, 32, steps, sampler)  # (n, 32)
            distance, top = (torch.cat(parts) for parts in zip(*spy.differences))  # (N,) each
            figures = (distance.double(), -data.language.log_prob(x) / 32 - entropy,
                       unigram_entropy(x))
            tv, nats, varied = (with_error(*mean_error(a, independent=True)) for a in figures)
            print(f"{rule:<16}{kind:<8}{tv:>18}{top.double().mean():>8.3f}{spy.calls:>7}"
                  f"{spy.read / n:>7.0f}{nats:>18}{varied:>18}", flush=True)


def main(config, given=()):
    commands = {"shrink": shrink, "clip": clip, "speed": speed, "cache": cache}
    choose_command(config, commands)(config)


if __name__ == "__main__":
    run_experiment(Config, main)
