"""
Chapter 3. A learned masking schedule for each symbol: GenMD4 (arXiv:2406.04329).

Symbol v is masked at time t with probability 1 - alpha_t(v) = t^w(v), w = softplus(w_raw) > 0.
Masks are evidence, see methods/symbol_schedules.py, of which this is a case: at a mask,

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

from diffusion import stratified
from methods.symbol_schedules import SymbolSchedules
from methods.udlm import zero_frozen
from model import Transformer


@dataclass(eq=False)
class GenMD4(SymbolSchedules):
    """--method genmd4: the schedules are trained with the network, and are saved in it."""
    counts_padding, shardable = True, False

    def __post_init__(self):
        super().__post_init__()
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

    def masked(self, t, v, known):
        return t ** self.w(t.device).to(t.dtype)[v]

    def rate(self, t, v, known):
        return self.w(t.device)[v] / t

    def time_of(self, u, x, known):
        return u ** (1 / self.w(x.device)[x].double())  # (B, L)

    def log_q(self, z, x, t):
        """log q(z_t | x) of each token, with a gradient in w. -> (B, L) nats"""
        log_masked = self.w(x.device)[x] * t.log()  # (B, L)
        log_kept = torch.log(-torch.expm1(log_masked))  # (B, L)
        return torch.where(z == self.mask, log_masked, log_kept)  # (B, L)

    def times(self, x):
        """t = u^2 for uniform u, and dt/du, (B, 1) each.

        The weight w/t of a mask has infinite variance for w <= 1 at uniform times, and only for
        w <= 1/2 at these. (Times must not depend on w here, or (3.5) had a third term.)
        """
        u = stratified(len(x), x.device)  # (B, 1)
        return u ** 2, 2 * u  # (B, 1) each

    def loss(self, denoiser, x, frozen=None):
        """(3.3), with the gradient (3.5) from a term whose value is 0. -> (B, L) nats"""
        t, dt = self.times(x)  # (B, 1) each
        with torch.no_grad():
            z1, z2 = self.corrupt(x, t, frozen), self.corrupt(x, t, frozen)  # (B, L) each
        l1, l2 = (dt * self.bound(denoiser, x, z, t, frozen) for z in (z1, z2))  # (B, L) each
        log_q = zero_frozen(self.log_q(z1, x, t) - self.log_q(z2, x, t), frozen)  # (B, L)
        total = lambda a: a.sum(-1, keepdim=True)
        push = total(l1 - l2).detach() * total(log_q) / 2 / x.shape[1]  # (B, 1)
        return (l1 + l2) / 2 + push - push.detach()  # (B, L)
