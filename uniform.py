"""
Uniform and hybrid noise: UDLM (arXiv:2412.10193; Duo's bound is the same) and GIDD (arXiv:2503.04482).

Noise replaces a token by a random text symbol, so any token may be wrong, and any may be revised. Let each of N text
symbols carry noise u, the mask (hybrid only) the rest, and kappa = alpha / u. Then (2) of diffusion.py becomes

    l  = r_t(z)/q_z [ u K + [z is text] IS ],   q = alpha x + b,   p = alpha x_theta + b                         (2)
    K  = KL(q || p) / u = kappa [log(1 + kappa) - log(1 + kappa x_theta(x))] + log(1 + kappa)
         - sum_v log(1 + kappa x_theta(v))
    IS = e^d - 1 - d,   d = log(1 + kappa [z = x]) - log(1 + kappa x_theta(z))

all written with log1p and expm1: near t = 1, where kappa -> 0, the bound is a small difference of large logarithms,
which float32 would lose otherwise.

    uniform    alpha = 1 - t,  u = t/N                                                                           (7)
    hybrid     C alpha = 1 - t,  C b(mask) = t,  C u = c/N,  c = 2 p/(1 - p) sqrt(t (1 - t)),  C = 1 + c         (8)

where p is the share of uniform noise at t = 1/2. At t = 1 the hybrid is all masks, so sampling starts as in masked.py,
but text can still be wrong and be mended. The network learns the leave-one-out law (diffusion.py) and needs a clock.
"""
import math

import torch

from diffusion import ancestral, corrupt, probabilities, stratified
from positions import nats_at, widened


class Uniform:
    """Eq. (7): every symbol is text, none is special."""

    def __init__(self, n_tokens):
        self.n_tokens = self.V = n_tokens

    def alpha(self, t):
        return 1 - t

    def dalpha(self, t):
        return -torch.ones_like(t)

    def b(self, t, v):
        return t / self.V * torch.ones_like(v)           # 1 - alpha, without the digits that 1 - (1 - t) would lose

    def db(self, t, v):
        return -self.dalpha(t) / self.V * torch.ones_like(v)

    def draw_noise(self, t, z):
        return torch.randint_like(z, self.V)                                                        # (B, L)


class Hybrid:
    """Eq. (8): masks at both ends of a mixture whose middle holds up to p_uniform wrong text (GIDD, gamma = 1)."""

    def __init__(self, n_tokens, p_uniform):
        self.n_tokens, self.mask, self.V = n_tokens, n_tokens, n_tokens + 1
        self.scale = 2 * p_uniform / (1 - p_uniform)

    def c(self, t):
        return self.scale * (t * (1 - t)).sqrt()

    def dc(self, t):
        return self.scale * (1 - 2 * t) / (2 * (t * (1 - t)).sqrt())

    def alpha(self, t):
        return (1 - t) / (1 + self.c(t))

    def dalpha(self, t):
        return -(1 + self.c(t) + (1 - t) * self.dc(t)) / (1 + self.c(t)) ** 2

    def b(self, t, v):
        return torch.where(v == self.mask, t, self.c(t) / self.n_tokens) / (1 + self.c(t))

    def db(self, t, v):
        C = 1 + self.c(t)
        return torch.where(v == self.mask, C - t * self.dc(t), self.dc(t) / self.n_tokens) / C ** 2

    def draw_noise(self, t, z):
        to_mask = torch.rand(z.shape, device=z.device) * (t + self.c(t)) < t                        # (B, L)
        return torch.where(to_mask, self.mask, torch.randint_like(z, self.n_tokens))                # (B, L)


def mixture_bound(process, log_x_theta, x, z, t, weight=None):
    """Eq. (2) of this file. log_x_theta (B, L, N) -> (B, L) nats. weight (B, L) stands in for r/q_z to train on."""
    u, kappa = noise_of(process, x, t)                                                              # (B, L) each
    terms = mixture_terms(log_x_theta, x, z, kappa, u)                                              # (B, L)
    return (jump_weight(process, x, z, t) if weight is None else weight) * terms                    # (B, L)


def noise_of(process, x, t):
    """u and kappa at every token. -> (B, L) each"""
    u = process.b(t, torch.zeros_like(x))                                                           # (B, L)
    return u, process.alpha(t) / u


def mixture_terms(log_x_theta, x, z, kappa, u):
    """u K + [z is text] IS, before its weight. log_x_theta (..., N), the others (...) -> (...)"""
    log_p = torch.log1p(kappa[..., None] * log_x_theta.exp())                                       # (..., N)
    at_x = log_p.gather(-1, x[..., None])[..., 0]                                                   # (...)
    text = z < log_p.shape[-1]                                                                      # (...)
    at_z = log_p.gather(-1, torch.where(text, z, 0)[..., None])[..., 0]                             # (...)
    # exercise 11: the two terms of the bound, eq. (2), 3 lines
    K = kappa * (torch.log1p(kappa) - at_x) + torch.log1p(kappa) - log_p.sum(-1)                    # (...)
    d = torch.where(z == x, torch.log1p(kappa), 0.0) - at_z                                         # (...)
    return u * K + torch.where(text, torch.expm1(d) - d, 0.0)                                       # (...)
    # end


def mixture_nats(logits, x, z, kappa, u):
    """mixture_terms of logits (N, n_tokens). -> (N,)"""
    return mixture_terms(widened(logits).log_softmax(-1), x, z, kappa, u)                           # (N,)


def jump_weight(process, x, z, t):
    """r_t(z) / q_z, the weight of the bound: how fast tokens jump into z, over how often they are there. -> (B, L)"""
    alpha, b = process.alpha(t), process.b(t, z)                                                    # (B, L)
    rate = process.db(t, z) - process.dalpha(t) / alpha * b                                         # (B, L)
    return rate / (b + alpha * (z == x))                                                            # (B, L)


def text_logits(denoiser, z, t, n_tokens):
    """log x_theta at every position: each token may be wrong here, so each counts. -> (B, L, N)"""
    return widened(denoiser(z, t)[..., :n_tokens]).log_softmax(-1)                                  # (B, L, N)


def unfrozen(term, frozen):
    """Given tokens are never scored."""
    return term if frozen is None else term.masked_fill(frozen, 0.0)                                # (B, L)


def weighted_bound(process, denoiser, seen, noise, x, z, t, weight, frozen=None):
    """weight * (u K + IS) of a network that sees `seen` at the noise level `noise`: z and t, or what stands for them.
    Each token may be wrong here, so each is scored that is not given. -> (B, L) nats"""
    at = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen                        # (B, L)
    u, kappa = noise_of(process, x, t)                                                              # (B, L) each
    return nats_at(denoiser, seen, noise, at, mixture_nats, (x, z, kappa, u), process.n_tokens, weight, frozen)


def draw_bound(process, denoiser, x, frozen=None):
    """One unbiased draw of the bound at every token. -> (B, L) nats

    Times are drawn as t = sin^2(pi v / 2), v uniform, and weighted by dt/dv. Near t = 0 wrong text is as rare as t (in
    the hybrid as sqrt(t)) but weighs 1/t: under uniform times a few draws carry the mean, with infinite variance.
    """
    v = stratified(len(x), x.device)                                                                # (B, 1)
    t = torch.sin(math.pi / 2 * v).square().clamp(1e-6, 1 - 1e-6)                                   # (B, 1)
    z = corrupt(process, x, t, frozen)                                                              # (B, L)
    weight = math.pi * (t * (1 - t)).sqrt() * jump_weight(process, x, z, t)                         # (B, L)
    return weighted_bound(process, denoiser, z, t, x, z, t, weight, frozen)                         # (B, L)


class UDLM:
    """--method udlm. Trains on the bound itself."""

    uses_time = True
    mask_mod = None

    def __init__(self, n_tokens):
        self.process = Uniform(n_tokens)
        self.n_tokens = self.vocab_size = n_tokens

    def nelbo(self, denoiser, x, frozen=None):
        """-> (B, L) nats, an upper bound in the mean."""
        return draw_bound(self.process, denoiser, x, frozen)

    loss = nelbo

    def prior(self, shape, device="cpu"):
        return torch.randint(self.n_tokens, shape, device=device)                                   # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, law=probabilities):
        """From random text to text; yields z after each step. Any token may change at any step, unless frozen."""
        return sampler(self.process, denoiser, z, frozen, steps, law)


class GIDD:
    """--method gidd. `simple` trains with the paper's "dynamic" weights, a surrogate; `bound` on the bound itself."""

    uses_time = True
    mask_mod = None

    def __init__(self, n_tokens, weighting="simple", p_uniform=0.1):
        self.process, self.weighting = Hybrid(n_tokens, p_uniform), weighting
        self.n_tokens, self.vocab_size = n_tokens, n_tokens + 1

    def dynamic_weight(self, x, z, t):
        """2 at masks, 1 at wrong text, next to nothing at right text (arXiv:2503.04482, section 4.4). -> (B, L)"""
        right = self.process.scale / self.n_tokens * (t / (1 - t)).sqrt()                           # (B, 1)
        return torch.where(z == self.process.mask, 2.0, torch.where(z == x, right, 1.0))            # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """What training minimises, (B, L) nats under `bound`, else of the size of nats."""
        if self.weighting == "bound":
            return self.nelbo(denoiser, x, frozen)
        t = stratified(len(x), x.device)                                                            # (B, 1)
        z = corrupt(self.process, x, t, frozen)                                                     # (B, L)
        weight = self.dynamic_weight(x, z, t)                                                       # (B, L)
        return weighted_bound(self.process, denoiser, z, t, x, z, t, weight, frozen)                # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """-> (B, L) nats, an upper bound in the mean."""
        return draw_bound(self.process, denoiser, x, frozen)

    def prior(self, shape, device="cpu"):
        return torch.full(shape, self.process.mask, device=device)                                  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, law=probabilities):
        """From masks to text; yields z after each step. Text that looks wrong later may be revised on the way."""
        return sampler(self.process, denoiser, z, frozen, steps, law)
