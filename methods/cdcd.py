"""
Chapter 13. CDCD (arXiv:2211.15089), as in Plaid's repository: cross-entropies at warped times.

    noise      gamma = 2 log(tau / 16),   tau from 2 to 300
    loss       -log p(x | z) of (13.3) at tau = F^-1(u), u uniform
    warp       F is piecewise linear, with learned widths and heights of its pieces. It is
               fitted to the cross-entropy that is found: minimize  (F(tau) - CE)^2 / F'(tau)

So all times in which the cross-entropy rises by the same amount are trained on equally often. F as
fitted rises to the largest CE; divided by that, it is the distribution of tau. The likelihood is
(13.7), on which the network is not trained.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusion import stratified
from flags import flag
from gaussian import EmbeddingSpace
from methods.base import free_tokens
from methods.embedding import Embedding

LOW, HIGH, UNIT = 2.0, 300.0, 16.0  # of tau


class LogTime(nn.Module):
    """gamma = 2 log(tau / 16), where tau is linear in t."""

    def forward(self, t):
        return 2 * ((LOW + (HIGH - LOW) * t) / UNIT).log()

    def time(self, gamma):
        return (UNIT * (gamma / 2).exp() - LOW) / (HIGH - LOW)

    def slope(self, t):
        """dgamma/dt. -> shape of t"""
        return 2 * (HIGH - LOW) / (LOW + (HIGH - LOW) * t)


class Warp(nn.Module):
    """The warp: widths softmax(l_t) of its pieces, heights exp(l_u), each 0.001 at least."""

    def __init__(self, bins):
        super().__init__()
        self.l_t, self.l_u = nn.Parameter(torch.zeros(bins)), nn.Parameter(torch.zeros(bins) - 3)

    def corners(self):
        """t and F, float64, at the corners. -> (bins + 1,) each"""
        width = self.l_t.double().softmax(0) + 1e-3  # (bins,)
        height = self.l_u.double().exp() + 1e-3  # (bins,)
        return (F.pad(a.cumsum(0), (1, 0)) for a in (width / width.sum(), height))

    @staticmethod
    def interpolate(a, xs, ys):
        """ys(a) on the line through corners (xs, ys), and its slope. -> shape of a, each"""
        i = torch.searchsorted(xs.detach(), a.detach().contiguous()).clamp(1, len(xs) - 1)  # (...)
        slope = (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])  # (...)
        return ys[i - 1] + slope * (a - xs[i - 1]), slope

    def forward(self, u):
        """F^-1 of u in [0, 1]: t, and dt/du. -> shape of u, each"""
        t, height = self.corners()
        return self.interpolate(u.double(), height / height[-1], t)

    def rise(self, t):
        """F(t) and F'(t) as fitted, not normalized. -> shape of t, each"""
        return self.interpolate(t.double(), *self.corners())

    def misfit(self, t, ce):
        """How badly F fits, with the weight of the public code. t, ce (n,) -> (n,)"""
        rise, slope = self.rise(t)  # (n,) each
        return 1e-5 * (rise - ce) ** 2 * (HIGH - LOW) / slope.detach()  # (n,) dF/dtau is smaller


@dataclass(eq=False)
class CDCD(Embedding):
    """--method cdcd: trained on cross-entropies; the warp is fitted beside."""
    bins: int = flag(100, "pieces of F", least=2, most=10_000, fixed=True)

    def space(self):
        return EmbeddingSpace(self.random_table(), "unit", LogTime(), Warp(self.bins),
                              feeds_back=self.self_condition > 0)

    def loss(self, denoiser, x, frozen=None):
        """Cross-entropies; the misfit of F has a gradient, and adds nothing. -> (B, L) nats"""
        warp = self.process.warp
        with torch.no_grad():
            t, _ = warp(stratified(len(x), x.device))  # (B, 1)
        fed_back = self.choose_fed_back(len(x), x.device)  # (B,)
        times = self.at_clock(t.float(), free_tokens(x, frozen))  # (B, 1|L)
        nats = self.cross_entropies(denoiser, x, times, frozen, fed_back)  # (B, L)
        free = 1 if frozen is None else (~frozen).double().mean(-1)  # (B,)
        some = nats.detach().mean(-1) / torch.as_tensor(free).clamp(min=1 / x.shape[1])  # (B,)
        fit = warp.misfit(t[:, 0], some.double())[:, None].to(nats.dtype)  # (B, 1)
        fit = fit if frozen is None else (fit * ~frozen)  # (B, L)
        return nats + fit - fit.detach()  # (B, L)
