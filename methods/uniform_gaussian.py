"""
Chapter 7. The Gaussian behind uniform noise: Duo's operator T (arXiv:2506.10892).

Write a token as a one-hot vector, add Gaussian noise, and take the largest coordinate:

    noise      w = a onehot(x) + s eps,   z = argmax(w),                                       (7.1)
               a^2 = sigmoid(-gamma),   s^2 = sigmoid(gamma)
    operator   alpha = T(gamma) = (V p - 1) / (V - 1),                                         (7.2)
               p = P(z = x) = int phi(u - mu) Phi(u)^(V-1) du,   mu = a / s

Wrong words are equally likely, so z has the distribution of uniform noise, (4.1), at that alpha.
-gamma is the log of the signal-to-noise ratio. methods/duo.py draws w, and trains on it.
"""
import math

import torch


class Operator:
    """T of (7.2), its derivative and its inverse for V words, in float64, to within 1e-12.

    The integrand is smooth and vanishes at both ends. Then the trapezoid rule converges faster than
    any power of the spacing: about 850 nodes, with Phi(u)^(V-1) computed once, do for all gamma.
    """
    LEAST, MOST = -7.0, 80.0  # outside T is 1 or 0 to within 1e-16, for V from 3 to 128,256

    def __init__(self, V):
        self.V, self.nodes = V, torch.arange(-10, 43, 1 / 16, dtype=torch.float64)  # (n,)
        log_rest = (V - 1) * torch.special.log_ndtr(self.nodes)  # (n,) log Phi^(V-1)
        self.rest = log_rest.exp() / 16 / math.sqrt(2 * math.pi)  # (n,) with phi's constant
        self.on = {}  # device -> nodes and rest there; each copy would wait for the GPU

    def alpha(self, gamma):
        """T(gamma), in float64. -> same shape"""
        return self.integrals(gamma)[0]

    def dalpha(self, gamma):
        """dT / dgamma, in float64. -> same shape"""
        return self.integrals(gamma)[1]

    def integrals(self, gamma):
        """T and dT / dgamma. -> same shape each"""
        mu = (-gamma.double().clamp(self.LEAST, self.MOST) / 2).exp()[..., None]  # (..., 1)
        if mu.device not in self.on:
            self.on[mu.device] = self.nodes.to(mu.device), self.rest.to(mu.device)
        nodes, rest = self.on[mu.device]  # (n,) each
        density = (-0.5 * (nodes - mu) ** 2).exp() * rest  # (..., n)
        p, dp = density.sum(-1), ((nodes - mu) * density).sum(-1)  # (...) each
        slope = self.V / (self.V - 1) * dp * -mu[..., 0] / 2  # (...)
        return (self.V * p - 1) / (self.V - 1), slope

    def gamma(self, alpha):
        """The inverse of T by bisection, 60 times. alpha (...) in (0, 1) -> same shape, float64"""
        alpha = torch.as_tensor(alpha, dtype=torch.float64)  # (...)
        low, high = torch.full_like(alpha, self.LEAST), torch.full_like(alpha, self.MOST)  # (...)
        for _ in range(60):
            middle = (low + high) / 2  # (...)
            above = self.alpha(middle) > alpha  # (...) T falls, so gamma is to the right
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)  # (...)
        return (low + high) / 2


class GaussianUniform:
    """Uniform noise whose alpha is T of a gamma that is linear in time, from T = first to T = last.

    The ends in gamma depend on V. With 28 letters alpha falls from .95 to .05 between -2.7 and 1.5,
    with 50,257 words between -3.6 and -1.9. A network gets 1 - alpha as its time.
    """
    text_stays, continuous, mask = False, True, None

    def __init__(self, n_tokens, first=0.95, last=0.05):
        self.n_tokens = self.V = n_tokens
        self.operator = Operator(n_tokens)
        self.ends = self.operator.gamma([first, last]).tolist()
        self.last = None, None  # a tensor of times, and `integrals` there

    def gamma(self, t):
        return self.ends[0] + t * (self.ends[1] - self.ends[0])

    def integrals(self, t):
        """alpha and its slope in gamma. A loss asks for both several times, at the same t."""
        if self.last[0] is not t:
            self.last = t, self.operator.integrals(self.gamma(t))
        return self.last[1]

    def alpha(self, t):
        return self.integrals(t)[0].to(t.dtype)

    def dalpha(self, t):
        return (self.integrals(t)[1] * (self.ends[1] - self.ends[0])).to(t.dtype)

    def b(self, t, v):
        return (1 - self.alpha(t)) / self.V * torch.ones_like(v)

    def db(self, t, v):
        return -self.dalpha(t) / self.V * torch.ones_like(v)

    def draw_noise(self, t, z):
        return torch.randint_like(z, self.V)  # (B, L)
