"""
When does a token become a mask? MD4 and GenMD4 (arXiv:2406.04329): schedules, and one that is learnt for each symbol.

    share of masks at time t      linear  t       polynomial  t^K       cosine  sin(pi t / 2)                   (41)
    GenMD4: symbol v              1 - alpha_t(v) = t^w(v),   w = softplus(w_raw) > 0

With one schedule for all symbols the bound (2) does not depend on it: substitute 1 - alpha for the time. What depends
is the variance of its draws, the noise that training sees most of, and what a step of a sampler does: under the cosine
the first steps, which know least, open the fewest masks (`--grid cosine` does that to any masked model).

With a schedule for each symbol the masks themselves tell something: what is masked early is likely a symbol with a
small w, so x_theta needs the clock, and stands for p(x | z), masks included. At a mask,

    bound      l = (1/t) [ w(x) (-log x_theta(x) - 1) + sum_v w(v) x_theta(v) ]                                    (42)
    reverse    x ~ x_theta opens with probability 1 - (s/t)^w(x)                                                   (43)
    gradient   dE[l]/dw = E[dl/dw] + E[ (l1 - l2) d(log q(z1) - log q(z2))/dw ] / 2,  two draws z1, z2 at one t    (44)

(44) since w also decides which z are drawn: each draw is the other's baseline (leave-one-out REINFORCE). With all w
equal to 1, (42) is the cross-entropy over t of masked.py.
"""
import copy
import math

import torch
import torch.nn.functional as F

from diffusion import categorical, probabilities, stratified
from masked import MDLM, Absorbing
from model import Transformer
from uniform import unfrozen


class Scheduled(Absorbing):
    """Masks by one of the schedules (41). eps > 0 keeps away from both ends, as the public code does."""

    def __init__(self, n_tokens, schedule="cosine", power=2.0, eps=0.0):
        super().__init__(n_tokens)
        self.schedule, self.power, self.eps = schedule, power, eps

    def masks(self, t):
        """(41)"""
        # exercise 13: three schedules, eq. (41)
        return {"linear": lambda: t, "polynomial": lambda: t ** self.power,
                "cosine": lambda: torch.sin(math.pi / 2 * t)}[self.schedule]()
        # end

    def dmasks(self, t):
        # exercise 13: their slopes
        return {"linear": lambda: torch.ones_like(t), "polynomial": lambda: self.power * t ** (self.power - 1),
                "cosine": lambda: math.pi / 2 * torch.cos(math.pi / 2 * t)}[self.schedule]()
        # end

    def alpha(self, t):
        return 1 - self.eps - (1 - 2 * self.eps) * self.masks(t)

    def dalpha(self, t):
        return -(1 - 2 * self.eps) * self.dmasks(t)

    def b(self, t, v):
        return (self.eps + (1 - 2 * self.eps) * self.masks(t)) * (v == self.mask)


class MD4(MDLM):
    """--method md4: mdlm with a schedule (--mask_schedule, --power), trained on the bound at uniform times.

    `nelbo` is that of mdlm, any schedule's bound with the least variance: the number of masks is drawn first. The
    paper's network is told the time; it needs no clock (radd.py), and has none here.
    """

    def __init__(self, n_tokens, mask_schedule="cosine", power=2.0):
        super().__init__(n_tokens, "bound")
        self.process = Scheduled(n_tokens, mask_schedule, power)


class GenMD4:
    """--method genmd4: every symbol has its own schedule, which is learnt with the network, and kept in it."""

    uses_time = True
    mask_mod = None

    def __init__(self, n_tokens):
        self.n_tokens, self.mask, self.vocab_size, self.process = n_tokens, n_tokens, n_tokens + 1, self
        self.w_raw = torch.full((n_tokens,), math.log(math.e - 1))                                      # (N,) w = 1

    def network(self, *shape, **options):
        """A Transformer that carries w_raw besides: saved, averaged, and trained with it."""
        net = Transformer(*shape, **options)
        net.w_raw = self.w_raw = torch.nn.Parameter(self.w_raw.clone())
        return net

    def of(self, network):
        """This method with the schedule that another network carries, such as the average."""
        other = copy.copy(self)
        other.process, other.w_raw = other, network.w_raw
        return other

    def w(self, device):
        return F.softplus(self.w_raw.to(device))                                                        # (N,)

    def corrupt(self, x, t, frozen=None):
        """Masks by each token's own schedule. x (B, L), t (B, 1) -> (B, L)"""
        masked = torch.rand(x.shape, device=x.device) < t ** self.w(x.device)[x]                        # (B, L)
        return torch.where(masked if frozen is None else masked & ~frozen, self.mask, x)                # (B, L)

    def log_q(self, z, x, t):
        """log q(z_t | x) of each token, whose gradient in w is that of the draw. -> (B, L) nats"""
        log_masked = self.w(x.device)[x] * t.log()                                                      # (B, L)
        return torch.where(z == self.mask, log_masked, torch.log(-torch.expm1(log_masked)))             # (B, L)

    def likelihood(self, z, t):
        """q(z_t | x = v) for each symbol: a mask is evidence too. -> (B, L, N)"""
        masked = t[..., None] ** self.w(z.device).to(t.dtype)                                           # (B, 1|L, N)
        kept = F.one_hot(z, self.n_tokens + 1)[..., :-1] * (1 - masked)                                 # (B, L, N)
        return torch.where((z == self.mask)[..., None], masked, kept)                                   # (B, L, N)

    def bound(self, denoiser, x, z, t):
        """(42) -> (B, L) nats"""
        at, w = z == self.mask, self.w(x.device)                                                        # (B, L), (N,)
        logits = denoiser(z, t, at=at)[:, :self.n_tokens]                                               # (M, N)
        log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)           # (M, N)
        ce = -log_p.gather(-1, x[at][:, None])[:, 0]                                                    # (M,)
        nats = (w[x[at]] * (ce - 1) + (w * log_p.exp()).sum(-1)) / t.expand_as(x)[at]                   # (M,)
        return torch.zeros(x.shape, dtype=nats.dtype, device=x.device).masked_scatter(at, nats)         # (B, L)

    def times(self, x):
        """t = v^2 with v uniform, and dt/dv, (B, 1) each. The weight at a mask is w/t, whose second moment is infinite
        for w <= 1 at uniform times, as that of (2); at these for w <= 1/2 alone."""
        v = stratified(len(x), x.device)                                                                # (B, 1)
        return v ** 2, 2 * v

    def loss(self, denoiser, x, frozen=None):
        """(42) with the gradient of (44): what has no value but a gradient is added. -> (B, L) nats"""
        t, dt = self.times(x)                                                                           # (B, 1) each
        with torch.no_grad():
            z1, z2 = self.corrupt(x, t, frozen), self.corrupt(x, t, frozen)                             # (B, L) each
        l1, l2 = (dt * self.bound(denoiser, x, z, t) for z in (z1, z2))                                 # (B, L) each
        log_q = unfrozen(self.log_q(z1, x, t) - self.log_q(z2, x, t), frozen)                           # (B, L)
        total = lambda a: a.sum(-1, keepdim=True)
        push = total(l1 - l2).detach() * total(log_q) / 2 / x.shape[1]                                  # (B, 1)
        return (l1 + l2) / 2 + push - push.detach()                                                     # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (42). -> (B, L) nats"""
        t, dt = self.times(x)                                                                           # (B, 1) each
        return dt * self.bound(denoiser, x, self.corrupt(x, t, frozen), t)                              # (B, L)

    prior = MDLM.prior

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=None, law=probabilities):
        """Walk in equal steps of (43); yields z after each.

        As lazy as (3): no mask opens with a larger probability than a symbol of the largest w would, so that coin is
        tossed first, and only the masks that pass it are drawn, and open with what is left of their own probability.
        """
        w = self.w(z.device).double()                                                                   # (N,)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)                   # (steps + 1,)
        coin = lambda n: torch.rand(n, dtype=torch.float64, device=z.device)
        for t, s in zip(times[:-1], times[1:]):
            opens = 1 - (s / t) ** w                                                                    # (N,) (43)
            ask = (z == self.mask) & (coin(z.shape) < opens.max())                                      # (B, L)
            if ask.any():
                new = categorical(law(denoiser(z, t.float().expand(len(z), 1), at=ask)[:, :self.n_tokens]))  # (M,)
                stays = coin(len(new)) * opens.max() >= opens[new]                                      # (M,)
                z = z.masked_scatter(ask, new.masked_fill(stays, self.mask))                            # (B, L)
            yield z
