"""
What finitely many steps cost: the bound of D3PM in T steps, above that of infinitely many (arXiv:2107.03006).

    python -m claims.d3pm steps                 the toy language's exact denoiser, nothing is trained; a minute
    python -m claims.d3pm steps --texts 64000   half the standard errors

The denoiser knows the language, so whatever the bound has above the entropy is the price of T: tokens that change in
one step are drawn apart. It must fall as 1/T, to the bounds of mdlm and udlm, which are the entropy itself.

Every T meets the same texts and the same chance: v says when, u whether a token was kept, w what else it became. So
the differences between bounds are known better than the bounds. Times are t = sin^2(pi v / 2), as in uniform.py, and k
the step that t falls in, weighted by how often it does.
"""
import sys
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("steps", "what to measure; also the first word of the command line", ["steps"])
    texts: int = flag(16_000, "texts of the toy language", least=2)
    length: int = flag(16, "words of each", least=1)
    most: int = flag(1024, "T doubles from 4 up to this", least=4)
    seed: int = flag(1337, "of all draws", least=0, most=10**9)


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import math  # noqa: E402
import time

import torch

from bench import hardware
from bounds import mean_error
from d3pm import D3PM, kl
from data.toy import ToyCorpus
from diffusion import likelihood, stratified
from masked import Absorbing, masked_bound
from uniform import Uniform, mixture_bound

TRANSITIONS = {"absorbing": Absorbing, "uniform": Uniform}
ROWS = 500                                               # texts at once: what fits the processor's cache is faster


def noisy(process, x, t, u, w):
    """z ~ q(z_t | x), the same chance u, w (B, L) at every t. -> (B, L)"""
    return torch.where(u < process.alpha(t), x, process.mask if process.V > process.n_tokens else w)    # (B, L)


def in_steps(language, method, x, v, u, w):
    """One draw of the bound of a chain for each text. -> (B,) nats per token"""
    T, share = method.T, lambda t: 2 / math.pi * t.sqrt().asin()                                    # v of t
    k = (torch.sin(math.pi / 2 * v).square() * T).ceil().clamp(1, T)                                # (B, 1)
    s, t = (k - 1) / T, k / T                                                                       # (B, 1)
    z = noisy(method.process, x, t, u, w)                                                           # (B, L)
    x_theta, at = language.posterior(method.likelihood(z, t)), method.chain.open(z)                 # (B, L, N), (B, L)
    terms = kl(method.chain, x_theta[at], x[at], z[at], s.expand_as(z)[at], t.expand_as(z)[at])     # (n,)
    nats = torch.zeros(x.shape, dtype=torch.float64).masked_scatter(at, terms)                      # (B, L)
    return (nats / (share(t) - share(s))).mean(-1)                                                  # (B,)


def in_continuous_time(language, process, x, v, u, w):
    """The same of mdlm or udlm. -> (B,) nats per token"""
    t = torch.sin(math.pi / 2 * v).square().clamp(1e-9, 1 - 1e-9)                                   # (B, 1)
    z = noisy(process, x, t, u, w)                                                                  # (B, L)
    log_p = language.posterior(likelihood(process, z, t)).log()                                     # (B, L, N)
    if process.V > process.n_tokens:
        nats = masked_bound(process, -log_p.gather(-1, x[..., None])[..., 0], z, t)                 # (B, L)
    else:
        nats = mixture_bound(process, log_p, x, z, t)                                               # (B, L)
    return (math.pi * (t * (1 - t)).sqrt() * nats).mean(-1)                                         # (B,)


def steps(config):
    corpus, began = ToyCorpus(config.length), time.process_time()
    language, n = corpus.language, config.texts
    x = corpus.windows("val", n)                                                                    # (n, L)
    torch.manual_seed(config.seed)
    v = stratified(n).double()[torch.randperm(n)]                                                   # (n, 1)
    u, w = torch.rand(x.shape, dtype=torch.float64), torch.randint_like(x, language.V)              # (n, L) each
    exact = -language.log_prob(x) / config.length                                                   # (n,)
    run = lambda bound, what: torch.cat([bound(language, what, *part) for part in
                                         zip(*(a.split(ROWS) for a in (x, v, u, w)))])              # (n,)
    limit = {name: run(in_continuous_time, process(language.V)) for name, process in TRANSITIONS.items()}
    cell = lambda values: "{:.4f} +- {:.4f}".format(*mean_error(values))
    print(f"{hardware()}\n{n:,} texts of {config.length} words, exact denoiser; exact -log p {cell(exact)} nats/word\n"
          f"bound in T steps, above the continuous one, nats/word\n"
          "    T" + "".join(f"{name:>20}" for name in TRANSITIONS))
    T = 4
    while T <= config.most:
        print(f"{T:>5}" + "".join(f"{cell(run(in_steps, D3PM(language.V, T, name)) - limit[name]):>20}"
                                  for name in TRANSITIONS), flush=True)
        T *= 2
    print("continuous, above the exact -log p: " + ", ".join(
        f"{name} {cell(bound - exact)}" for name, bound in limit.items()))
    print(f"{(time.process_time() - began) / 60:.1f} CPU minutes")


def main(config):
    {"steps": steps}[config.command](config)


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
