"""
Chapter 13. Plaid (arXiv:2305.18619): Gaussian noise on embeddings, trained on the likelihood.

The table is learned, and its rows have norm 1. The head learns log c (Plaid's "output prior" is the
evidence that (13.3) adds to it), and x_hat is the mean of the rows under p. The noise is

    schedule   gamma(t) = gamma_0 + (gamma_1 - gamma_0) t,   t = g(u),   u uniform in (0, 1)
               g(u) = (f(u) - f(0)) / (f(1) - f(0)),   f(u) = w2 tanh( w1 (u - 1/2) + b ),   (13.11)
               1024 positive w1 and w2

with gamma_0, gamma_1 and g learned. The mean of (13.7) does not depend on g, only its variance, so
g descends the mean of its square: what reaches g from a text is multiplied by twice the nats of the
text. Of a batch, one text in eight is for the decoder's term, and the others are for the integral.

`simple` trains on -log p(x | z) instead, at gamma drawn from a logistic density about the gamma
where exp(-gamma) = log V, and leaves the schedule as it is at first, linear. A narrow density
matters: with a wide one most of the times teach little (docs/results.md). Evaluation is the same
for both.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusion import stratified
from flags import UserError, flag
from gaussian import EmbeddingSpace
from methods.base import free_tokens, scatter_nats
from methods.embedding import TRAINED, Embedding
from methods.gammas import Linear

SHARE = 8  # one text in so many is for the decoder's term


class LearnedLine(Linear):
    """gamma is linear in t, between two ends that are learned."""

    def __init__(self, gamma_0, gamma_1):
        nn.Module.__init__(self)
        self.ends = nn.Parameter(torch.tensor([gamma_0, gamma_1]))  # (2,)


class Monotone(nn.Module):
    """g of (13.11): u in [0, 1] -> t in [0, 1], and dt/du. About linear at first."""

    def __init__(self, width=1024):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator)
        self.w1, self.bias = nn.Parameter(draw(width)), nn.Parameter(draw(width))  # (n,) each
        self.w2 = nn.Parameter(draw(width))  # (n,)

    def rise(self, u):
        """f(u) - f(0), and f'(u). u (...) -> (...) each, float64"""
        w1, w2 = F.softplus(self.w1.double()), 0.01 * F.softplus(self.w2.double())  # (n,) each
        at = lambda u: torch.tanh(w1 * (u.double()[..., None] - 0.5) + self.bias.double())
        here = at(u)  # (..., n)
        return (here - at(torch.zeros_like(u))) @ w2, (1 - here ** 2) @ (w1 * w2)

    def forward(self, u):
        (rise, slope), (whole, _) = self.rise(u), self.rise(torch.ones_like(u))  # (...) each
        return rise / whole, slope / whole


@dataclass(eq=False)
class Plaid(Embedding):
    """--method plaid. `bound` trains on (13.7), table and schedule included."""
    weighting: str = flag("simple", "train on cross-entropies, or on the bound itself",
                          ["simple", "bound"], fixed=True)
    gamma_0: float = flag(-4.0, "the least noise, where words are decoded; Plaid's is -3",
                          least=-10, most=0, fixed=True)
    trained_at: float = flag(TRAINED[0], "simple: center of the gammas that are trained on, from "
                             "that where a row tells log V nats", least=-10, most=10)
    trained_scale: float = flag(TRAINED[1], "simple: scale of their logistic density",
                                least=0.01, most=10)

    def __post_init__(self):
        super().__post_init__()
        if self.weighting == "bound" and not self.bounded:
            raise UserError(f"--weighting bound: --token_clock {self.token_clock} has none, since "
                            f"{self.unbounded_reason}")

    def space(self):
        learned = self.weighting == "bound"
        schedule = (LearnedLine if learned else Linear)(self.gamma_0, 6.0)
        return EmbeddingSpace(self.random_table(), "unit", schedule,
                              Monotone() if learned else None, self.self_condition > 0)

    def loss(self, denoiser, x, frozen=None):
        """-> (B, L) nats"""
        fed_back = self.choose_fed_back(len(x), x.device)  # (B,)
        if self.weighting == "bound":
            return self.split_bound(denoiser, x, frozen, fed_back)  # (B, L)
        center, scale = self.trained_at, self.trained_scale
        t = self.useful_times(free_tokens(x, frozen), center, scale)  # (B, 1|L)
        return self.cross_entropies(denoiser, x, t, frozen, fed_back)  # (B, L)

    def split_bound(self, denoiser, x, frozen, fed_back):
        """(13.7), where each text is for one of two terms and counts for those that are not. -> (B,
        L) nats"""
        n, at = len(x), free_tokens(x, frozen)  # (B, L)
        k = max(1, n // SHARE) if n > 1 else int(torch.rand(()) < 1 / SHARE)  # for the decoder
        chance = k / n if n > 1 else 1 / SHARE
        decoded = torch.randperm(n, device=x.device)[:, None] < k  # (B, 1)
        nats = scatter_nats(self.noise_left(x, at), at)  # (B, L)
        if k:
            here = at & decoded  # (B, L)
            rec = self.decoder_nats(denoiser, x, here, frozen, fed_back)  # (N,)
            nats = nats + scatter_nats(rec / chance, here)  # (B, L)
        if k < n:
            rest = self.integral(denoiser, x, at & ~decoded, frozen, fed_back)  # (B, L)
            nats = nats + rest / (1 - chance)  # (B, L)
        return nats

    def integral(self, denoiser, x, at, frozen, fed_back):
        """The integral at `at` (B, L), with the gradient of (13.11). -> (B, L) nats"""
        some, clock = at.any(-1, keepdim=True), self.process.clock  # (B, 1)
        u = torch.ones(some.shape, device=x.device)  # (B, 1)
        u = u.masked_scatter(some, stratified(int(some.sum()), x.device))  # (B, 1)
        t, speed = clock.times(u, *clock.plan(free_tokens(x, frozen)))  # (B, 1|L) each
        times = self.process.warp(t)  # (B, 1|L) each
        push = {}  # twice the nats of each text, known after the call
        for a in times:  # the gradient of g passes here, and that of gamma_0 and gamma_1 does not
            if a.requires_grad:
                a.register_hook(lambda gradient: gradient * push["nats"])
        t, slope = (a.float() for a in times)  # (B, 1|L) each
        low, high = self.process.schedule.ends  # () each
        weight = slope * speed.float() * (high - low)  # (B, 1|L) dgamma/du
        nats = scatter_nats(self.integrand(denoiser, x, t, weight, at, frozen, fed_back), at)
        push["nats"] = 2 * nats.detach().mean(-1, keepdim=True)  # (B, 1)
        return nats  # (B, L)
