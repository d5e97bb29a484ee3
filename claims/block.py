"""
What block diffusion (arXiv:2503.09573) and Fast-dLLM (2505.22618) claim, measured again in the small.

    python -m claims.block shrink    the bound falls from mdlm's to ar's as blocks shrink: the toy language's exact
                                     gaps, or with --data names (or python) the bound on real text
    python -m claims.block clip      what clipped schedules gain at blocks of four, in variance and in the bound
    python -m claims.block speed     tokens per second of ar, bd3lm, mdlm and pgm, with caches, at equal network size
    python -m claims.block cache     what the approximate caches of decoding.py get wrong, and what they save

shrink, clip and cache train, --share of the steps of `python bench.py toy` (text: `bench.py train`); speed needs no
training, random weights serve. All runs come one after the other, on the machine that is named.
"""
import sys
from dataclasses import dataclass, replace

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["shrink", "clip", "speed", "cache"])
    data: str = flag("toy", "shrink: toy, names, python, or a text file")
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of training steps", least=0.0001, most=100)
    out_dir: str = flag("out/claims-block", "where the checkpoints go")
    texts: int = flag(4000, "shrink, clip: held-out texts; cache: 1 in 16 of them are sampled", least=32)
    length: int = flag(256, "speed: tokens per text", least=64)
    vocab_size: int = flag(8192, "speed: symbols", least=2)
    n_layer: int = flag(4, "speed: blocks of the network", least=1)
    n_embd: int = flag(128, "speed: width", least=8)
    n_head: int = flag(4, "speed: attention heads", least=1)
    seconds: float = flag(10.0, "speed: at least so long per line", least=0.01)


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import math  # noqa: E402
import statistics
import time
from functools import partial

import torch

import bench
from bounds import estimate, mean_error
from data import BadInput
from data.text import load
from decoding import semi_ar
from diffusion import ancestral
from masked import first_hitting
from methods import make_method
from model import Transformer
from quality import unigram_entropy
from sample import Counted, generate


def run(config, name, method, seed, **flags):
    """A model of the toy language, or of text, trained as bench.py does. -> model, CPU minutes"""
    size = bench.TWO_MINUTES if config.data == "toy" else {**bench.SIZE, **bench.FIVE_MINUTES}
    flags = {**size, "data": config.data, **flags}
    model, _, cpu = bench.trained(replace(config, command=name), method, seed, **flags)
    return model, cpu


def sizes(config):
    return dict(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)


def spread(values):
    return f", {len(values)} seeds, spread {statistics.stdev(values):.4f}" if len(values) > 1 else ""


def shrink(config):
    """Nats/token of mdlm, blocks of 16, 8, 4 and 1, and ar; on the toy language above its entropy."""
    toy = config.data == "toy"
    corpus = load(config.data, 32 if toy else 64, "auto" if toy else "chars")
    x = corpus.windows("val", config.texts)                                                         # (n, L)
    entropy, entropy_error = corpus.language.entropy(32) if toy else (0.0, 0.0)
    what = f"above the entropy of {entropy:.4f} +- {entropy_error:.4f}, nats/token" if toy else "nats/char"
    print(f"{bench.hardware()}\n{corpus.about}\n{what}; {len(x)} texts, seeds 1 to {config.seeds}")
    blocks = [(f"bd3lm, blocks of {n}", "bd3lm", dict(diffusion_block=n)) for n in (16, 8, 4, 1)]
    for name, method, flags in [("mdlm", "mdlm", {}), *blocks, ("ar", "ar", {})]:
        rows = []
        for seed in range(1, config.seeds + 1):
            model, cpu = run(config, f"shrink{flags.get('diffusion_block', '')}-{corpus.name}", method, seed, **flags)
            nats, error = estimate(model.method, model.denoiser, x, 1 if method == "ar" else 8, 256)
            rows.append((nats - entropy, math.hypot(error, entropy_error), model.step, cpu))
        gap, error, steps, cpu = map(statistics.mean, zip(*rows))
        gaps = spread([row[0] for row in rows])
        print(f"{name:<24}{gap:>8.4f} +- {error:.4f}{gaps}   {steps:.0f} steps, {cpu:.1f} CPU min", flush=True)


def clip(config):
    """The loss of training at blocks of four: how it varies from block to block, and the bound that it ends at."""
    corpus = load("toy", 32)
    x = corpus.windows("val", config.texts)                                                         # (n, 32)
    entropy, _ = corpus.language.entropy(32)             # known to 0.0002
    print(f"{bench.hardware()}\nblocks of 4, seeds 1 to {config.seeds}; variance of the training loss of a block, "
          f"nats/token squared, at the end\n{'':<44}{'variance':>10}   above the entropy, nats/token")
    schedules = {"t ~ U(0, 1), 1/t": dict(clip="0,1", weighting="bound"),
                 "t ~ U(.3, .8), 1/t": dict(clip="0.3,0.8", weighting="bound"),
                 "t ~ U(.45, .95), 1/t": dict(clip="0.45,0.95", weighting="bound"),
                 "searched, 1/t": dict(clip_search=True, weighting="bound"),
                 "number of masks drawn first, L'/k": dict(weighting="bound"),
                 "number of masks drawn first, equal weights": dict(weighting="simple")}
    for i, (name, flags) in enumerate(schedules.items()):
        rows = []
        for seed in range(1, config.seeds + 1):
            model, cpu = run(config, f"clip{i}", "bd3lm", seed, diffusion_block=4,
                                 **{"eval_interval": 300 if "clip_search" in flags else 10**6, **flags})
            torch.manual_seed(0)
            with torch.no_grad():
                nats = torch.cat([model.method.loss(model.denoiser, part) for part in x.split(256)])   # (n, 32)
            bound, error = estimate(model.method, model.denoiser, x, 8, 256)
            rows.append((nats.view(-1, 4).mean(-1).var().item(), bound - entropy, error, cpu))
        variance, gap, error, cpu = map(statistics.mean, zip(*rows))
        found = f" ({model.config.clip})" if "clip_search" in flags else ""
        print(f"{name + found:<44}{variance:>10.3f}{gap:>10.4f} +- {error:.4f}{spread([row[1] for row in rows])}   "
              f"{cpu:.1f} CPU min", flush=True)


def speed(config):
    """Tokens per second, of networks of equal size with random weights."""
    V, L = config.vocab_size, config.length
    plain = lambda net: lambda z, t, at=None, **layout: net(z, t, at, **layout)      # a network that takes no cache
    rows = [("ar, cache", "ar", 1, 1, None), ("ar, no cache", "ar", 1, 1, None)]
    for n in (4, 16):
        rows += [(f"bd3lm, blocks of {n}, cache, {k} token{'s' * (k > 1)} a call", "bd3lm", n, n // k, first_hitting)
                 for k in (1, 4) if k < n]
    rows += [("bd3lm, blocks of 16, no cache, 4 tokens a call", "bd3lm", 16, 4, first_hitting)]
    rows += [(f"{name}, {steps} steps", name, 1, steps, ancestral)
             for name in ("mdlm", "pgm") for steps in (L, L // 4, L // 8)]
    print(f"{bench.hardware()}\ntokens per second, texts of {L} tokens of {V} symbols, {config.n_layer} layers of "
          f"{config.n_embd}, float32\n{'':<52}{'batch 1':>18}{'batch 16':>18}{'calls':>8}")
    for name, method, block, steps, sampler in rows:
        torch.manual_seed(0)
        m = make_method(method, V, diffusion_block=block)
        build = getattr(m, "network", Transformer)
        net = build(m.vocab_size, **sizes(config), cond_dim=0, qk_norm=True, mask_mod=m.mask_mod).eval()
        cells = []
        for batch in (1, 16):
            spy = Counted(plain(net) if "no cache" in name else net)
            rates = rate(partial(generate, m, spy, batch, L, steps, *[sampler] * (sampler is not None)), batch * L,
                         config.seconds)
            cells.append(f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})")
        print(f"{name:<52}{cells[0]:>18}{cells[1]:>18}{spy.calls // len(rates):>8}", flush=True)


def rate(draw, tokens, seconds):
    """Tokens per second of at least three draws, and of as many as fit into the time."""
    rates, began = [], time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        with torch.no_grad():
            draw()
        rates.append(tokens / (time.perf_counter() - start))
    return rates


class Compared:
    """A network that is asked with a cache, and once more without, at the same state: how far apart are the laws?"""
    caches = True

    def __init__(self, net):
        self.net, self.whole, self.calls, self.read, self.far = net, None, 0, 0, []

    def __call__(self, z, t, at, cache=None):
        self.calls, self.read = self.calls + 1, self.read + z.numel()
        lo, hi = (cache.start, cache.start + z.shape[1]) if cache else (0, z.shape[1])
        before = z if self.whole is None or z.shape == self.whole.shape else self.whole             # (B, L)
        self.whole = torch.cat([before[:, :lo], z, before[:, hi:]], 1)                              # (B, L)
        logits = self.net(z, t, at, cache=cache)                                                    # (N, V)
        everywhere = torch.nn.functional.pad(at, (lo, self.whole.shape[1] - hi))                    # (B, L)
        exact = self.net(self.whole, t, everywhere)                                                 # (N, V)
        self.far.append(((logits.softmax(-1) - exact.softmax(-1)).abs().sum(-1) / 2,
                         logits.argmax(-1) != exact.argmax(-1)))                                    # (N,) each
        return logits


def cache(config):
    """Fast-dLLM's caches on mdlm: total variation from the uncached law, what it saves, and the samples."""
    corpus, n = load("toy", 32), max(2, config.texts // 16)
    entropy, _ = corpus.language.entropy(32)
    model, cpu = run(config, "cache", "mdlm", 1)
    print(f"{bench.hardware()}\nmdlm, {model.step} steps of training, {cpu:.1f} CPU min; {n} texts of 32 tokens, "
          f"blocks of 8\nTV: total variation of a law from the uncached one, mean of all that were asked; top: share "
          f"with another likeliest word\nread: tokens through the network per text; -log p: above the entropy of "
          f"{entropy:.3f}; entropy: of the words within a text; nats\n"
          f"{'rule':<16}{'cache':<8}{'TV':>18}{'top':>8}{'calls':>7}{'read':>7}{'-log p':>18}{'entropy':>18}")
    for rule, steps, options in (("1 a step", 32, {}), ("2 a step", 16, {}), ("belief > .9", 32, dict(threshold=0.9)),
                                 ("factor 1", 32, dict(factor=1.0))):
        for kind in ("none", "prefix", "dual"):
            torch.manual_seed(1)
            spy = Compared(model.denoiser)
            x = generate(model.method, spy, n, 32, steps, partial(semi_ar, block=8, cache=kind, **options))
            far, top = (torch.cat(parts) for parts in zip(*spy.far))
            cells = [mean_error(far.double()), mean_error(-corpus.language.log_prob(x) / 32 - entropy),
                     mean_error(unigram_entropy(x))]
            tv, nats, varied = (f"{mean:.3f} +- {error:.3f}" for mean, error in cells)
            print(f"{rule:<16}{kind:<8}{tv:>18}{top.double().mean():>8.3f}{spy.calls:>7}{spy.read / n:>7.0f}{nats:>18}"
                  f"{varied:>18}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        if not CONFIG.command:
            raise BadInput("say what to measure: python -m claims.block shrink, clip, speed or cache")
        {"shrink": shrink, "clip": clip, "speed": speed, "cache": cache}[CONFIG.command](CONFIG)
