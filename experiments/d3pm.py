"""
Chapter 2. The cost of finitely many steps: D3PM's bound in T steps, above the continuous one.

    python -m experiments.d3pm steps                 by the toy language's exact denoiser, without
                                                     training; a minute
    python -m experiments.d3pm steps --texts 64000   half the standard errors

The denoiser is exact, so whatever the bound has above the entropy is the cost of T
(arXiv:2107.03006): tokens that change in one step are drawn independently. It must fall as 1/T, to
the bounds of mdlm and udlm, which are the entropy itself.

Every T uses the same texts and the same random numbers: v decides on the time, u on whether a token
is kept, w on what replaces it. So the differences between bounds have smaller errors than the
bounds. Times are t = sin^2(pi v / 2), as in methods/udlm.py, and k is the step that t falls in,
weighted by how often it does.
"""
import math
import time
from dataclasses import dataclass

import torch

from data.toy import ToyCorpus
from diffusion import Absorbing, Uniform, likelihood, stratified
from evaluation.errors import mean_error, with_error
from experiments.command import run_experiment
from experiments.timing import hardware
from flags import flag
from methods.d3pm import D3PM, kl_term
from methods.mdlm import masked_bound
from methods.udlm import mixture_bound

TRANSITIONS = {"absorbing": Absorbing, "uniform": Uniform}
ROWS = 500  # texts at once: faster if they fit the processor's cache


@dataclass
class Config:
    command: str = flag("steps", "what to measure; also the first word", ["steps"])
    texts: int = flag(16_000, "texts of the toy language", least=2)
    length: int = flag(16, "words of each", least=1)
    most: int = flag(1024, "T doubles from 4 up to this", least=4)
    seed: int = flag(1337, "of all random draws", least=0, most=10**9)


def corrupt_with(process, x, t, u, w):
    """z ~ q(z_t | x) with the same random numbers u, w (B, L) at every t. -> (B, L)"""
    return torch.where(u < process.alpha(t), x, w if process.mask is None else process.mask)


def bound_in_steps(language, method, x, v, u, w):
    """One draw of the bound of a chain of T steps for each text. -> (B,) nats per token"""
    T, share = method.diffusion_steps, lambda t: 2 / math.pi * t.sqrt().asin()  # the v of t
    k = (torch.sin(math.pi / 2 * v).square() * T).ceil().clamp(1, T)  # (B, 1)
    s, t = (k - 1) / T, k / T  # (B, 1) each
    z = corrupt_with(method.process, x, t, u, w)  # (B, L)
    x_theta = language.posterior(method.likelihood(z, t))  # (B, L, N)
    at = method.chain.changeable(z)  # (B, L)
    terms = kl_term(method.chain, x_theta[at], x[at], z[at], s.expand_as(z)[at],
                    t.expand_as(z)[at])  # (n,)
    nats = torch.zeros(x.shape, dtype=torch.float64).masked_scatter(at, terms)  # (B, L)
    return (nats / (share(t) - share(s))).mean(-1)  # (B,)


def bound_in_continuous_time(language, process, x, v, u, w):
    """The same for mdlm or udlm. -> (B,) nats per token"""
    t = torch.sin(math.pi / 2 * v).square().clamp(1e-9, 1 - 1e-9)  # (B, 1)
    z = corrupt_with(process, x, t, u, w)  # (B, L)
    log_p = language.posterior(likelihood(process, z, t)).log()  # (B, L, N)
    if process.mask is None:
        nats = mixture_bound(process, log_p, x, z, t)  # (B, L)
    else:
        nll = -log_p.gather(-1, x[..., None])[..., 0]  # (B, L)
        nats = masked_bound(process, nll, z, t)  # (B, L)
    return (math.pi * (t * (1 - t)).sqrt() * nats).mean(-1)  # (B,)


def main(config, given=()):
    data, began = ToyCorpus(config.length), time.process_time()
    language, n = data.language, config.texts
    x = data.windows("val", n)  # (n, L)
    torch.manual_seed(config.seed)
    v = stratified(n).double()[torch.randperm(n)]  # (n, 1)
    u, w = torch.rand(x.shape, dtype=torch.float64), torch.randint_like(x, language.V)  # (n, L)
    exact = -language.log_prob(x) / config.length  # (n,)

    def bound(function, what):
        chunks = zip(*(a.split(ROWS) for a in (x, v, u, w)))
        return torch.cat([function(language, what, *chunk) for chunk in chunks])  # (n,)
    limits = {name: bound(bound_in_continuous_time, process(language.V))
              for name, process in TRANSITIONS.items()}
    cell = lambda values: with_error(*mean_error(values, independent=True), ".4f")
    print(f"{hardware()}\n{n:,} texts of {config.length} words, exact denoiser; exact -log p "
          f"{cell(exact)} nats/word\nbound in T steps, above the continuous one, nats/word\n"
          "    T" + "".join(f"{name:>20}" for name in TRANSITIONS))
    T = 4
    while T <= config.most:
        gaps = [bound(bound_in_steps, D3PM(language.V, name, T)) - limits[name]
                for name in TRANSITIONS]
        print(f"{T:>5}" + "".join(f"{cell(gap):>20}" for gap in gaps), flush=True)
        T *= 2
    print("continuous, above the exact -log p: " + ", ".join(
        f"{name} {cell(limit - exact)}" for name, limit in limits.items()))
    print(f"{(time.process_time() - began) / 60:.1f} CPU minutes")


if __name__ == "__main__":
    run_experiment(Config, main)
