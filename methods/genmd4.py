"""
Chapter 3. A learned masking schedule for each symbol: GenMD4 (arXiv:2406.04329).

Symbol v is masked at time t with probability 1 - alpha_t(v) = t^w(v), w = softplus(w_raw) > 0. A
token that is masked early is likely a symbol of small w, so masks are evidence here: x_theta reads
the time, and is p(x | z), not the leave-one-out distribution. At a mask,

    bound      l = (1/t) [ w(x) (-log x_theta(x) - 1) + sum_v w(v) x_theta(v) ]                (3.3)
    reverse    a draw x ~ x_theta opens the mask with probability 1 - (s/t)^w(x)               (3.4)
    gradient   dE[l]/dw = E[dl/dw]                                                             (3.5)
               + E[ (l1 - l2) d(log q(z1) - log q(z2))/dw ] / 2,  two draws z1, z2 at one t

(3.5) has its second term because w also decides which z are drawn. Each draw is the baseline of the
other (leave-one-out REINFORCE). If all w are 1, (3.3) is the bound of mdlm.
"""
import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import categorical, probabilities, stratified
from methods.base import Method, inside, skip_texts, to_float32
from methods.udlm import zero_frozen
from model import Transformer, select_rows


@dataclass(eq=False)
class GenMD4(Method):
    """--method genmd4: the schedules are trained with the network, and are saved in it."""
    uses_time, counts_padding = True, True
    shardable, fixed_positions = False, False
    samplers = ("ancestral",)
    text_stays, classifier_process = True, None

    def __post_init__(self):
        self.process, self.mask, self.vocab_size = self, self.n_tokens, self.n_tokens + 1
        self.w_raw = torch.full((self.n_tokens,), math.log(math.e - 1))  # (N,) w = 1

    def network(self, *shape, **options):
        """A Transformer that carries w_raw, so that it is saved, averaged and trained with it."""
        net = Transformer(*shape, **options)
        net.w_raw = self.w_raw = torch.nn.Parameter(self.w_raw.clone())  # (N,)
        return net

    def with_network(self, network):
        """This method with the schedules that another network carries."""
        other = copy.copy(self)
        other.process, other.w_raw = other, network.w_raw
        return other

    def w(self, device):
        return F.softplus(self.w_raw.to(device))  # (N,)

    def corrupt(self, x, t, frozen=None):
        """Mask each token by its own schedule. x (B, L), t (B, 1) -> (B, L)"""
        masked = torch.rand(x.shape, device=x.device) < t ** self.w(x.device)[x]  # (B, L)
        return torch.where(masked if frozen is None else masked & ~frozen, self.mask, x)  # (B, L)

    def log_q(self, z, x, t):
        """log q(z_t | x) of each token, with a gradient in w. -> (B, L) nats"""
        log_masked = self.w(x.device)[x] * t.log()  # (B, L)
        log_kept = torch.log(-torch.expm1(log_masked))  # (B, L)
        return torch.where(z == self.mask, log_masked, log_kept)  # (B, L)

    def likelihood(self, z, t):
        """q(z_t | x = v) for each symbol: a mask is evidence too. -> (B, L, N)"""
        masked = t[..., None] ** self.w(z.device).to(t.dtype)  # (B, 1|L, N)
        kept = F.one_hot(z, self.n_tokens + 1)[..., :-1] * (1 - masked)  # (B, L, N)
        return torch.where((z == self.mask)[..., None], masked, kept)  # (B, L, N)

    def bound(self, denoiser, x, z, t):
        """(3.3) -> (B, L) nats"""
        at, w = z == self.mask, self.w(x.device)  # (B, L), (N,)
        log_p = to_float32(denoiser(z, t, at=at)[:, :self.n_tokens]).log_softmax(-1)  # (M, N)
        ce = -log_p.gather(-1, x[at][:, None])[:, 0]  # (M,)
        nats = (w[x[at]] * (ce - 1) + (w * log_p.exp()).sum(-1)) / t.expand_as(x)[at]  # (M,)
        zeros = torch.zeros(x.shape, dtype=nats.dtype, device=x.device)  # (B, L)
        return zeros.masked_scatter(at, nats)  # (B, L)

    def times(self, x):
        """t = v^2 for uniform v, and dt/dv, (B, 1) each.

        The weight w/t of a mask has infinite variance for w <= 1 at uniform times, and only for
        w <= 1/2 at these.
        """
        v = stratified(len(x), x.device)  # (B, 1)
        return v ** 2, 2 * v  # (B, 1) each

    def loss(self, denoiser, x, frozen=None):
        """(3.3), with the gradient (3.5) from a term whose value is 0. -> (B, L) nats"""
        t, dt = self.times(x)  # (B, 1) each
        with torch.no_grad():
            z1, z2 = self.corrupt(x, t, frozen), self.corrupt(x, t, frozen)  # (B, L) each
        l1, l2 = (dt * self.bound(denoiser, x, z, t) for z in (z1, z2))  # (B, L) each
        log_q = zero_frozen(self.log_q(z1, x, t) - self.log_q(z2, x, t), frozen)  # (B, L)
        total = lambda a: a.sum(-1, keepdim=True)
        push = total(l1 - l2).detach() * total(log_q) / 2 / x.shape[1]  # (B, 1)
        return (l1 + l2) / 2 + push - push.detach()  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (3.3). -> (B, L) nats"""
        t, dt = self.times(x)  # (B, 1) each
        return dt * self.bound(denoiser, x, self.corrupt(x, t, frozen), t)  # (B, L)

    def prior(self, shape, device="cpu"):
        return torch.full(shape, self.mask, device=device)  # (B, L)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=None, to_probs=probabilities,
               window=None, end=None):
        """From t = 1 to 0 in equal steps of (3.4); yields z after each.

        As lazy as reverse_step. The symbol of the largest w opens with the largest probability, and
        that coin is tossed first. Only where it comes up is a word drawn, and it opens with what is
        left of its own probability.
        """
        w = self.w(z.device).double()  # (N,)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)  # (n + 1,)
        coin = lambda n: torch.rand(n, dtype=torch.float64, device=z.device)
        for t, s in zip(times[:-1], times[1:]):
            opens = 1 - (s / t) ** w  # (N,)
            at = (z == self.mask) & (coin(z.shape) < opens.max())  # (B, L)
            if at.any():
                logits = denoiser(z, t.float().expand(len(z), 1), at=at)  # (M, V)
                new = categorical(to_probs(logits[:, :self.n_tokens]))  # (M,)
                stays = coin(len(new)) * opens.max() >= opens[new]  # (M,)
                z = z.masked_scatter(at, new.masked_fill(stays, self.mask))  # (B, L)
            yield z

    def oracle(self, language):
        """log p(x_l | z), the evidence of l's own mask included. -> (B, L, N)"""
        def denoiser(z, t, at=None, label=None, **layout):
            e = self.likelihood(z, inside(t))  # (B, L, N)
            p = language.posterior(e, leave_one_out=False, topic=label)  # (B, L, N)
            return select_rows(p.log().to(z.device), at)
        return skip_texts(denoiser)
