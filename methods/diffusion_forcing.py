"""
Chapter 16. A time for each token: Diffusion Forcing (arXiv:2407.01392), with masks for noise.

Token l is a mask with probability t_l, its own time. One network serves all combinations of times,
so one may decide after training how far the left runs ahead of the right, from all tokens at once
to one after the other:

    training  sum_l [z_l = m] (1/t_l) CE_l,   t_l ~ U(0, 1) for each token by itself          (16.1)
    path      t_l(tau) = clip( (tau - a_l)/w, 0, 1 ),  tau from 1 to 0,                       (16.2)
              a_l = slope w (D - d_l),   w = 1/(1 + slope D),   D = max d
    bound     -log p(x) <= int_0^1 sum_l [0 < t_l < 1] [z_l = m] 1/(w t_l) CE_l dtau          (16.3)
    draw      l ~ U{1..n}, t_l ~ U(0, 1): tau = a_l + w t_l. Token l is a mask, any other k with
              probability t_k(tau). Of all masks k with 0 < t_k < 1                           (16.4)
                  n sum_k CE_k (1/t_k) / sum_j (1/t_j)
    levels    after m of S steps token l is at level K of T (a mask), 0 is text:              (16.5)
              K = clip( T + floor(u d_l) - m, 0, T ),   T = max(1, floor(S w)),
              u = max( (S - T)/D, (S - T + 1)/(D + 1) )

with CE = -log x_theta(x). d_l is the place of l among the n free tokens (`pyramid`), or its
distance to the nearer end (`trapezoid`). Each token is noisy for a share w of the path. slope 0 is
masked diffusion. At slope 1 of a pyramid the intervals of two tokens do not overlap: that is
autoregression.

(16.1) is the published loss. It is no bound: each other token is masked with probability 1/2, not
by one rate for all. Since the network reads no time (z shows which tokens are masked), the weight
1/t_l may be averaged: at a mask its mean is 2. So (16.1) is masked language modeling at a rate of
1/2. (16.3) is tight for every path if the network sees all of z. A causal network sees z_<=l only,
and loses what the masks before l leave open: nothing at slope 1, most at slope 0.

(16.4) is an unbiased draw of (16.3): the density of (z, tau) under it is that of (16.3) times the
sum of 1/t_j over n. Its weights sum to n, while 1/t has infinite variance. At slope 0 it is (3.1).

(16.5) is the published matrix; there, trapezoids have two faults (tests/methods). A token whose
level stays equal is copied: drawing it again is what samplers/psi.py does.
"""
from dataclasses import dataclass

import torch

from diffusion import Absorbing, ancestral, corrupt, probabilities, reverse_step, stratified
from flags import flag
from methods.base import Method, copy_capabilities, cross_entropy, loss_at, skip_texts
from methods.left_to_right import new_cache, read_with_cache
from model import block_causal, causal, select_rows


def count_from_start(free, path):
    """d of (16.2) for each free token, 0 for given ones, and n. free (B, L) -> (B, L), (B, 1)"""
    place, n = free.cumsum(-1) - 1, free.sum(-1, keepdim=True)  # (B, L), (B, 1)
    d = torch.minimum(place, n - 1 - place) if path == "trapezoid" else place  # (B, L)
    return d.masked_fill(~free, 0).double(), n  # (B, L), (B, 1)


def times_at(tau, start, w):
    """(16.2), start a (B, L); tau, w (B, 1). -> (B, L)"""
    return ((tau - start) / w).clamp(0, 1)  # (B, L)


def schedule_of(steps, D, w):
    """T and u of (16.5): the last token is written in the last step. D, w (B, 1) -> (B, 1) each"""
    T = (steps * w + 1e-9).floor().clamp(min=1)  # (B, 1)
    return T, torch.maximum((steps - T) / D.clamp(min=1), (steps - T + 1) / (D + 1))  # (B, 1) each


def level_after(m, d, T, u):
    """(16.5): T is a mask, 0 is text. d (B, L); m, T, u numbers or (B, 1) -> (B, L) float64"""
    return (T + (d * u + 1e-9).floor() - m).clamp(min=0).clamp(max=T)  # (B, L)


@dataclass(eq=False)
class DiffusionForcing(Method):
    """--method diffusion_forcing. `slope` and `path` are those of the bound and of samples, and
    training does not depend on them, unless `times` is `path`."""
    context: str = flag("causal", "what a token sees: the text up to itself, or the whole text",
                        ["causal", "full"], fixed=True)
    slope: float = flag(1.0, "how far a token runs ahead of the next one: 0 all together, 1 one "
                        "after the other", least=0, most=1000, later=True)
    path: str = flag("pyramid", "from left to right, or from both ends to the middle",
                     ["pyramid", "trapezoid"], later=True)
    times: str = flag("independent", "of training: a random one for each token (no bound), or "
                      "those of the path (the bound)", ["independent", "path"])
    samplers, classifier_process = ("ancestral",), None

    def __post_init__(self):
        self.process, self.vocab_size = Absorbing(self.n_tokens), self.n_tokens + 1
        self.bidirectional = self.context == "full"
        self.mask_mod = None if self.bidirectional else causal

    # ---- the path

    def plan(self, free):
        """What (16.2) depends on: d, a (B, L); n, D, w (B, 1). free (B, L) bool"""
        d, n = count_from_start(free, self.path)  # (B, L), (B, 1)
        D = d.amax(-1, keepdim=True)  # (B, 1)
        w = 1 / (1 + self.slope * D)  # (B, 1)
        return d, self.slope * w * (D - d), n, D, w  # (B, L) twice, (B, 1) each

    def draw(self, x, frozen=None):
        """The draw of (16.4). -> z, which masks count, their weights, (B, L) each"""
        free = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
        _, start, n, _, w = self.plan(free)  # (B, L), (B, 1) each
        t, u = (stratified(len(x), x.device)[torch.randperm(len(x), device=x.device)].double()
                for _ in range(2))  # (B, 1) each
        chosen = free & (free.cumsum(-1) - 1 == (u * n).floor())  # (B, L)
        tau = (start * chosen).sum(-1, keepdim=True) + w * t  # (B, 1)
        times = torch.where(chosen, t, times_at(tau, start, w))  # (B, L) exactly t at l
        z = torch.where(chosen, self.process.mask, corrupt(self.process, x, times, frozen))
        at = (z == self.process.mask) & (times > 0) & (times < 1)  # (B, L)
        rate = torch.where(at, 1 / times, 0)  # (B, L)
        return z, at, n * rate / rate.sum(-1, keepdim=True).clamp(min=1e-300)  # (B, L) each

    # ---- losses

    def loss(self, denoiser, x, frozen=None):
        """(16.1), which is no bound; with --times path (16.3). -> (B, L) nats"""
        if self.times == "path":
            return self.nelbo(denoiser, x, frozen)  # (B, L)
        t = torch.rand(x.shape, device=x.device)  # (B, L)
        z = corrupt(self.process, x, t, frozen)  # (B, L)
        at = z == self.process.mask  # (B, L)
        return loss_at(denoiser, z, None, at, cross_entropy, (x,), self.n_tokens, 2.0, frozen, 0.5)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (16.3) by (16.4). -> (B, L) nats"""
        z, at, weight = self.draw(x, frozen)  # (B, L) each
        weight = weight.float()  # (B, L)
        return loss_at(denoiser, z, None, at, cross_entropy, (x,), self.n_tokens, weight, frozen)

    # ---- samples

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text in steps of (16.5); yields z (B, L) after each."""
        d, _, _, D, w = self.plan(~frozen)  # (B, L), (B, 1) each
        T, u = schedule_of(steps, D, w)  # (B, 1) each
        read = self.reader(denoiser, z.shape[1])
        for m in range(steps):
            t, s = (level_after(k, d, T, u) / T for k in (m, m + 1))  # (B, L) each
            z = reverse_step(self.process, read, z, frozen, s, t, to_probs)  # (B, L)
            yield z

    def reader(self, denoiser, length):
        """The denoiser of `sample`. With a cache, a causal network reads from the first mask, since
        what stands before it is final, to the last token that opens."""
        cache = None if self.bidirectional else new_cache(denoiser, length, 1)

        def read(z, t, at):
            lo = int((z == self.process.mask).any(0).nonzero()[0])
            hi = int(at.any(0).nonzero()[-1]) + 1
            pattern = block_causal(1, cache.reach)
            return read_with_cache(denoiser, cache, z[:, :hi], at[:, lo:hi], lo, pattern)  # (N, V)

        def read_all(z, t, **layout):
            return denoiser(z, None, **layout)  # (N, V)
        return read if cache else copy_capabilities(denoiser, read_all)

    # ---- the exact denoiser

    def oracle(self, language):
        """p(x_l | z), or p(x_l | z_<l) for a causal network. -> (B, L, n_tokens)"""
        def denoiser(z, t, at=None, label=None, **layout):
            half = torch.full((1, 1), 0.5, dtype=torch.float64, device=z.device)  # (1, 1) any time
            e = self.likelihood(z, half)  # (B, L, n_tokens)
            if self.bidirectional:
                p = language.posterior(e, topic=label)  # (B, L, n_tokens)
                return select_rows(p.log().to(z.device), at)
            p = torch.ones_like(e, device="cpu")  # (B, L, n_tokens)
            for l in range(z.shape[1]):
                rows = z[:, l].cpu() >= 0 if at is None else at[:, l].cpu()  # (B,)
                if rows.any():
                    topic = None if label is None else label.cpu()[rows]  # (b,)
                    p[rows, l] = language.posterior(e.cpu()[rows, :l + 1], topic=topic)[:, l]
            return select_rows(p.log().to(z.device), at)
        return skip_texts(denoiser)
