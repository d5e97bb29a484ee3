"""
Chapter 13. Schedules: gamma at time t, its inverse and its slope; and which gammas to draw.
"""
import math

import torch
import torch.nn as nn


class Linear(nn.Module):
    """gamma grows linearly with t."""

    def __init__(self, gamma_0, gamma_1):
        super().__init__()
        self.ends = gamma_0, gamma_1

    def forward(self, t):
        return self.ends[0] + (self.ends[1] - self.ends[0]) * t

    def time(self, gamma):
        return (gamma - self.ends[0]) / (self.ends[1] - self.ends[0])

    def slope(self, t):
        """dgamma/dt. -> shape of t"""
        return (self.ends[1] - self.ends[0]) * torch.ones_like(t)


class Alpha2(nn.Module):
    """alpha^2 is a function of t, divided by its value at 0; `shift` is added to gamma.

    sqrt     1 - sqrt(t + 1e-4)                       Diffusion-LM
    cosine   cos^2( (t + .008) / 1.008 pi / 2 )       arXiv:2102.09672
    t runs over the part of (0, 1) whose gamma, without the shift, lies between the ends.
    """

    def __init__(self, kind, gamma_0, gamma_1, shift=0.0):
        super().__init__()
        self.kind, self.shift, self.span = kind, shift, (0.0, 1.0)
        ends = torch.tensor([gamma_0, gamma_1], dtype=torch.float64)  # (2,)
        self.span = self.time(ends + shift).tolist()

    def alpha2(self, t):
        if self.kind == "sqrt":
            return (1 - (t + 1e-4).sqrt()) / (1 - 1e-2)
        return torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / self.top

    top = math.cos(0.008 / 1.008 * math.pi / 2) ** 2

    def forward(self, t):
        low, high = self.span
        gamma = self.shift - torch.logit(self.alpha2(low + (high - low) * t.double()))
        return gamma.to(t.dtype)

    def time(self, gamma):
        """The inverse of `forward`."""
        alpha2, (low, high) = torch.sigmoid(self.shift - gamma.double()), self.span
        if self.kind == "sqrt":
            t = (1 - (1 - 1e-2) * alpha2) ** 2 - 1e-4
        else:
            t = torch.acos((alpha2 * self.top).sqrt()) * 2 / math.pi * 1.008 - 0.008
        return ((t - low) / (high - low)).to(gamma.dtype)

    def slope(self, t):
        """dgamma/dt. -> shape of t"""
        low, high = self.span
        inner = low + (high - low) * t.double()  # (...)
        a = self.alpha2(inner)  # (...)
        if self.kind == "sqrt":
            fall = 0.5 / (inner + 1e-4).sqrt() / (1 - 1e-2)  # (...) -da/dt
        else:
            fall = torch.sin((inner + 0.008) / 1.008 * math.pi) * math.pi / 2.016 / self.top
        return ((high - low) * fall / (a * (1 - a))).to(t.dtype)


class PlainCosine(nn.Module):
    """alpha = cos(pi t / 2), with `scale` times as much signal for its noise; |gamma| <= most."""

    def __init__(self, scale=1.0, most=15.0):
        super().__init__()
        self.shift, self.most = 2 * math.log(scale), most

    def forward(self, t):
        gamma = 2 * torch.tan(math.pi / 2 * t.double()).clamp(min=1e-30).log() - self.shift
        gamma = torch.where(t >= 1, self.most, gamma).clamp(-self.most, self.most)
        return gamma.to(t.dtype)

    def time(self, gamma):
        """The inverse of `forward`."""
        return (2 / math.pi * torch.atan(((gamma.double() + self.shift) / 2).exp())).to(gamma.dtype)


class Growing(nn.Module):
    """Another schedule, whose noise is multiplied by 1 + growth t: (19.8)."""

    def __init__(self, schedule, growth):
        super().__init__()
        self.schedule, self.growth = schedule, growth

    def forward(self, t):
        return self.schedule(t) + 2 * torch.log1p(self.growth * t)

    def time(self, gamma):
        """The inverse of `forward`, by bisection."""
        low, high = torch.zeros_like(gamma, dtype=torch.float64), torch.ones_like(gamma).double()
        for _ in range(50):
            t = (low + high) / 2
            below = self(t) < gamma
            low, high = torch.where(below, t, low), torch.where(below, high, t)
        return t.to(gamma.dtype)

    def slope(self, t):
        """dgamma/dt. -> shape of t"""
        return self.schedule.slope(t) + 2 * self.growth / (1 + self.growth * t)


class Logistic:
    """gammas of a logistic density between two ends.

    The integrand of (13.7) peaks where neighbors become distinguishable, about -2 for rows of norm
    1. With this density (13.7) varies half as much as with a uniform one (measured).
    """

    def __init__(self, ends, center, scale):
        self.center, self.scale = center, scale
        self.low, self.high = (self.rank(torch.as_tensor(a, dtype=torch.float64)) for a in ends)

    def rank(self, gamma):
        return torch.sigmoid((gamma - self.center) / self.scale)

    def density(self, gamma):
        """-> shape of gamma, float64"""
        q = self.rank(gamma.double())  # (...)
        return q * (1 - q) / self.scale / (self.high - self.low)

    def draw(self, n, device="cpu"):
        """gamma, one in each n-th of the density, and 1 / density. -> (n, 1) each, float64"""
        u = (torch.arange(n, device=device) + torch.rand(n, device=device).double()) / n  # (n,)
        q = (self.low + (self.high - self.low) * u)[:, None].clamp(1e-12, 1 - 1e-12)  # (n, 1)
        gamma = self.center + self.scale * torch.logit(q)  # (n, 1)
        return gamma, 1 / self.density(gamma)
