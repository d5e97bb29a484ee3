"""
Chapter 4. Uniform noise, random words: UDLM (arXiv:2412.10193); Duo's bound is the same.

    alpha_t = 1 - t,   b_t(v) = t/N for each of the N text symbols v                           (4.1)

Any token may be wrong, so a sampler may revise any token. The network learns the leave-one-out
distribution (see diffusion.py) and reads the time. Let each text symbol have noise u, a mask the
rest (methods/gidd.py), and kappa = alpha / u. Then (0.2) is

    (0.2) for words    l  = r_t(z)/q_z [ u K + [z is text] IS ]
                       K  = kappa [log(1 + kappa) - log(1 + kappa x_theta(x))]
                            + log(1 + kappa) - sum_v log(1 + kappa x_theta(v))  =  KL(q || p) / u
                       IS = e^d - 1 - d,   d = log(1 + kappa [z = x]) - log(1 + kappa x_theta(z))

in log1p and expm1. Evaluated literally, (0.2) is a small difference of large logarithms near t = 1,
where kappa -> 0, and in float32 it cancels catastrophically.
"""
import math
from dataclasses import dataclass

import torch

from diffusion import Uniform, corrupt, jump_rate, stratified
from flags import flag
from methods.base import Method, cross_entropy, loss_at, to_float32


def mixture_bound(process, log_x_theta, x, z, t, weight=None):
    """(0.2) for words. log_x_theta (B, L, N), weight (B, L): in place of r/q_z. -> (B, L) nats"""
    u, kappa = noise_and_kappa(process, x, t)  # (B, L) each
    terms = mixture_terms(log_x_theta, x, z, kappa, u)  # (B, L)
    return (jump_weight(process, x, z, t) if weight is None else weight) * terms  # (B, L)


def noise_and_kappa(process, x, t):
    """u and kappa at every token. -> (B, L) each"""
    u = process.b(t, torch.zeros_like(x))  # (B, L)
    return u, process.alpha(t) / u


def mixture_terms(log_x_theta, x, z, kappa, u):
    """u K + [z is text] IS. log_x_theta (..., N), the others (...) -> (...)"""
    log_p = torch.log1p(kappa[..., None] * log_x_theta.exp())  # (..., N)
    at_x = log_p.gather(-1, x[..., None])[..., 0]  # (...)
    text = z < log_p.shape[-1]  # (...)
    at_z = log_p.gather(-1, torch.where(text, z, 0)[..., None])[..., 0]  # (...)
    # exercise 11: the two terms of the bound, (0.2), 3 lines
    K = kappa * (torch.log1p(kappa) - at_x) + torch.log1p(kappa) - log_p.sum(-1)  # (...)
    d = torch.where(z == x, torch.log1p(kappa), 0.0) - at_z  # (...)
    return u * K + torch.where(text, torch.expm1(d) - d, 0.0)  # (...)
    # end


def mixture_nats(logits, x, z, kappa, u):
    """mixture_terms of logits (N, n_tokens). -> (N,) nats"""
    return mixture_terms(to_float32(logits).log_softmax(-1), x, z, kappa, u)  # (N,)


def jump_weight(process, x, z, t):
    """r_t(z) / q_z: the rate of jumps into z over the probability of z. -> (B, L)"""
    q_z = process.b(t, z) + process.alpha(t) * (z == x)  # (B, L)
    return jump_rate(process, z, t) / q_z  # (B, L)


def text_logits(denoiser, z, t, n_tokens):
    """log x_theta at every position. -> (B, L, N)"""
    return to_float32(denoiser(z, t)[..., :n_tokens]).log_softmax(-1)  # (B, L, N)


def zero_frozen(term, frozen):
    """Given tokens are never scored. -> (B, L)"""
    return term if frozen is None else term.masked_fill(frozen, 0.0)  # (B, L)


def weighted_bound(process, denoiser, seen, noise, x, z, t, weight, frozen=None):
    """weight * (u K + IS) at all tokens that are not given, since each may be wrong. -> (B, L) nats

    seen, noise: what the network gets, z and t, or what stands for them
    """
    at = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
    u, kappa = noise_and_kappa(process, x, t)  # (B, L) each
    facts, n = (x, z, kappa, u), process.n_tokens
    return loss_at(denoiser, seen, noise, at, mixture_nats, facts, n, weight, frozen)  # (B, L)


def draw_bound(process, denoiser, x, frozen=None):
    """One unbiased draw of (0.2) at every token. -> (B, L) nats

    Times are t = sin^2(pi v / 2) for uniform v, weighted by dt/dv. Near t = 0 a wrong token is as
    rare as t and weighs 1/t: at uniform times a few draws would make up the mean, with infinite
    variance. In the hybrid a wrong token is as rare as sqrt(t), and the variance stays infinite:
    the second moment at v is about log(v)^2 / v, which only the clamp at t = 1e-6 cuts off.
    """
    v = stratified(len(x), x.device)  # (B, 1)
    t = torch.sin(math.pi / 2 * v).square().clamp(1e-6, 1 - 1e-6)  # (B, 1)
    z = corrupt(process, x, t, frozen)  # (B, L)
    weight = math.pi * (t * (1 - t)).sqrt() * jump_weight(process, x, z, t)  # (B, L)
    return weighted_bound(process, denoiser, z, t, x, z, t, weight, frozen)  # (B, L)


def two_times_loss(process, denoiser, x, frozen=None):
    """(24.11): some words are known, at time 0, and the others, at time 1, are scored. -> (B, L)"""
    t = 1 - (1 - stratified(len(x), x.device)).sqrt()  # (B, 1) of density 2 (1 - t), as mdlm
    known = torch.rand(x.shape, device=x.device) >= t  # (B, L)
    known = known if frozen is None else known | frozen  # (B, L)
    z = torch.where(known, x, process.draw_noise(t, x))  # (B, L)
    return loss_at(denoiser, z, (~known).float(), ~known, cross_entropy, (x,), process.n_tokens,
                   3.0, frozen, 1 / 3)  # (B, L)


@dataclass(eq=False)
class UDLM(Method):
    """--method udlm: trained on the bound itself, and where some texts of a batch are known in
    part, on (24.11)."""
    known: float = flag(0.0, "share of a batch in training of which some words are known, at time "
                             "0, and the others not, at time 1: for --sampler turns", least=0,
                        most=1)
    also_called = ("uniform",)
    uses_time = True
    distilled_by, public_layout = ("dcd",), "udlm"
    public_flags = {"time_input": "sigma"}

    def __post_init__(self):
        self.process, self.vocab_size = Uniform(self.n_tokens), self.n_tokens

    @property
    def token_times(self):
        return self.known > 0

    def nelbo(self, denoiser, x, frozen=None):
        """-> (B, L) nats, an upper bound in the mean"""
        return draw_bound(self.process, denoiser, x, frozen)  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """The same, and (24.11) for the first texts of the batch. -> (B, L) nats"""
        if self.known == 0:
            return self.nelbo(denoiser, x, frozen)  # (B, L)
        n, losses = int(self.known * len(x) + torch.rand(()).item()), []  # that share in the mean
        for part, loss in ((slice(0, n), two_times_loss), (slice(n, None), draw_bound)):
            if len(x[part]):
                given = None if frozen is None else frozen[part]  # (b, L)
                losses.append(loss(self.process, denoiser, x[part], given))  # (b, L)
        return torch.cat(losses)  # (B, L)
