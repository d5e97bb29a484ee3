"""
Chapter 14. Walks on a sphere: from one starting point to a word (RDLM, arXiv:2502.11564), or
without noise from a random one (Fisher-Flow, 2405.14664).

    X      (B, L, D)  points of norm 1, D = V + 1: a coordinate for each word, and the last one for
                      the mask. The word v is the point e_v
    b      the variance of the noise that is still to come: b_t = noise (1 - 200^-t) / log 200.
           Papers count u = 1 - t: their beta is -db/du, their gamma is beta / b
    th_v   the angle between X and e_v, arccos X_v

    bridge     dX = gamma Log_X(e_x) du + sqrt(beta) dB,  X_1 = the mask, or (1, .., 1)/sqrt(D)
                                                                                            (14.30)
    maps       Log_X(e_v) = (th_v / sin th_v) (e_v - X_v X),                                (14.31)
               exp_X(xi) = cos|xi| X + (sin|xi| / |xi|) xi
    step       X_s = exp_X(xi),  xi = c Log_X(e_x) + sqrt(b_s c) eps,  c = 1 - b_s / b_t    (14.32)
    evidence   log q(path | x = v) += ( (th_v / sin th_v) xi_v - c th_v^2 / 2 ) / b_s       (14.33)
    model      (14.32) with sum_v p(v) Log_X(e_v) in place of Log_X(e_x)                    (14.34)
    bound      -log p(x) <= E 1/2 int | sum_v ([v = x] - p(v)) Log_X(e_v) |^2 d(1/b)        (14.35)
               - log p(x | path to t_0),  1/b from 1/b_1 to 1/b_t0
    draw       X_t ~ exp_mu(rho g), about: g ~ N(0, 1) in the plane at mu, and              (14.36)
               E X_t = mu E cos(rho |g|),  E cos(rho |g|) = 1F1(d/2; 1/2; -rho^2/2), d = D - 1
    no noise   X_t = exp_X1( (1 - t) Log_X1(e_x) ),  c = 1 - s / t in (14.32) and (14.34)   (14.37)
    evidence   (V - 2) log( sin(th_v / t) / sin th_v ) where th_v <= t pi / 2, else -inf    (14.38)

eps is N(0, 1) in the tangent plane. In a plane (14.32) would be the bridge itself, in steps of any
length. (14.35) is Girsanov's formula for (14.30) with one starting point; the integrand of (14.35)
is gamma^2/(2 beta) |..|^2 per unit of u. What minimizes it is p(v) = p(x_l = v | path), the
token's own evidence included; with it (14.35) is the entropy. A network sees X_t alone: of the
words, the way to X_t tells hardly more.
"""
import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from diffusion import Sampler, draw_from, probabilities
from flags import flag

RATIO = 200.0  # of the noise at the end and at the start, as published
MEDIAN = 2.0  # of 1/b - 1/b_1 among the times of training and of the bound
NODES = 32  # of the table of (14.36)
CHAINS = 512
CLOSE = 1e-7  # cosines stay so far from 1, where an angle would lose its digits


def angles(cos):
    """th, and th / sin th, which is 1 at th = 0. -> shape of cos, each"""
    cos = cos.clamp(-1 + CLOSE, 1 - CLOSE)  # (...)
    th = torch.acos(cos)  # (...)
    return th, th * (1 - cos.square()).rsqrt()  # (...) each


def log_mean(X, weights, f=None):
    """sum_v weights_v Log_X(e_v), (14.31). X (..., D), weights (..., V) -> (..., D)

    f (..., V): th / sin th, if it is known
    """
    g = weights * (angles(X[..., :weights.shape[-1]])[1] if f is None else f)  # (..., V)
    along = (g * X[..., :g.shape[-1]]).sum(-1, keepdim=True)  # (..., 1)
    return F.pad(g, (0, X.shape[-1] - g.shape[-1])) - along * X  # (..., D)


def exp_map(X, xi):
    """(14.31). -> (..., D), of norm 1"""
    size = xi.norm(dim=-1, keepdim=True)  # (..., 1)
    return F.normalize(torch.cos(size) * X + torch.sinc(size / math.pi) * xi, dim=-1)  # (..., D)


def tangent(X, eps):
    """What of eps (..., D) lies in the tangent plane at X. -> (..., D)"""
    return eps - (eps * X).sum(-1, keepdim=True) * X  # (..., D)


def path_evidence(th, f, xi, c, variance):
    """(14.33), of a step xi with c and a variance (..., 1); th, f of `angles` -> (..., V) nats"""
    return (f * xi[..., :th.shape[-1]] - c * th.square() / 2) * (c / variance)  # (..., V)


def mean_cosine(rho, d):
    """E cos(rho |g|), g ~ N(0, 1) in d dimensions: 1F1(d/2; 1/2; -rho^2/2). rho (n,) -> (n,)"""
    low, high = max(0.0, d ** 0.5 - 9), d ** 0.5 + 9
    r = torch.linspace(low, high, 2001, dtype=torch.float64)[1:]  # (m,) of |g|
    p = ((d - 1) * r.log() - r.square() / 2).softmax(0)  # (m,)
    return torch.cos(rho[:, None] * r) @ p  # (n,)


def spread_of(cos, d):
    """rho of (14.36) by bisection: E cos(rho |g|) = cos. cos (n,) -> (n,)"""
    low, high = torch.zeros_like(cos), torch.full_like(cos, math.pi / (d + 1) ** 0.5)  # (n,) each
    for _ in range(40):
        middle = (low + high) / 2  # (n,)
        above = mean_cosine(middle, d) > cos  # (n,)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)  # (n,) each
    return low


class Sphere:
    """The process. z (B, L, D + V) is X, and the evidence (14.33) of the way so far, which oracles
    need; networks see X, and where no oracle is meant z is (B, L, D)."""
    text_stays, continuous, mask = True, True, None  # given text is right

    def __init__(self, n_tokens, noise, start, end):
        self.n_tokens = self.V = n_tokens
        self.D, self.noise, self.start, self.end = n_tokens + 1, noise, start, end
        if noise:
            self.first = 1 / float(self.remaining(torch.ones((), dtype=torch.float64)))  # 1/b_1
            last = 1 / float(self.remaining(torch.tensor(end, dtype=torch.float64)))  # 1/b_t0
            self.known = last - self.first  # what 1/b grows by in all

    # ---- noise and time

    def remaining(self, t):
        """b_t. -> shape of t"""
        return -self.noise * torch.expm1(-t * math.log(RATIO)) / math.log(RATIO)

    def time(self, b):
        """The inverse of `remaining`. -> shape of b"""
        return -torch.log1p(-b * math.log(RATIO) / self.noise) / math.log(RATIO)

    def grown(self, v):
        """1/b and its slope, where v in (0, 1) is spread as 1/b - 1/b_1 is in training: about even
        up to MEDIAN, and rare far beyond. -> shape of v, each"""
        rest = 1 - v * (1 - MEDIAN / (self.known + MEDIAN))
        slope = (self.known * MEDIAN / (self.known + MEDIAN)) / rest.square()
        return self.first + v * slope * rest, slope

    def move(self, s, t):
        """c and the variance of a step (14.32) from t to s; s, t (...) -> (...) each"""
        if not self.noise:
            return 1 - s / t, torch.zeros_like(t)
        b_s, b_t = self.remaining(s), self.remaining(t)  # (...) each
        return 1 - b_s / b_t, b_s * (1 - b_s / b_t)

    def times(self, n, device):
        """n times of a walk, 1 to `end`: even steps of 1/b, or of t. -> (n,) float64"""
        way = torch.linspace(0, 1, n, dtype=torch.float64, device=device)  # (n,)
        if not self.noise:
            return 1 - way * (1 - self.end)  # (n,)
        return self.time(1 / (self.first + way * self.known)).clamp(max=1.0)  # (n,)

    # ---- points

    def words(self, x):
        """e_x. x (B, L) -> (B, L, D)"""
        return F.one_hot(x, self.D).float()  # (B, L, D)

    def begin(self, x):
        """X_1. x (B, L) -> (B, L, D)"""
        if not self.noise:
            at = torch.randn(*x.shape, self.V, device=x.device).abs()  # (B, L, V)
            return F.normalize(F.pad(at, (0, 1)), dim=-1)  # (B, L, D)
        if self.start == "uniform":
            return torch.full((*x.shape, self.D), self.D ** -0.5, device=x.device)  # (B, L, D)
        return self.words(torch.full_like(x, self.V))  # (B, L, D)

    def advance(self, z, weights, s, t):
        """A step (14.32) of z (B, L, D), or (B, L, D + V) with its evidence. weights (B, L, V): of
        the words, one-hot or p; s, t (B, 1) -> as z"""
        X = z[..., :self.D]  # (B, L, D)
        c, variance = (a[..., None].to(z.dtype) for a in self.move(s, t))  # (B, 1, 1) each
        th, f = angles(X[..., :self.V])  # (B, L, V) each
        xi = c * log_mean(X, weights.to(z.dtype), f)  # (B, L, D)
        if not self.noise:
            return exp_map(X, xi)  # (B, L, D)
        xi = xi + variance.sqrt() * tangent(X, torch.randn(X.shape, device=z.device))  # (B, L, D)
        new = exp_map(X, xi)  # (B, L, D)
        if z.shape[-1] == self.D:
            return new
        evidence = z[..., self.D:] + path_evidence(th, f, xi, c, variance)  # (B, L, V)
        return torch.cat([new, evidence], -1)  # (B, L, D + V)

    def evidence(self, z, t):
        """log q(z_t | x = v) + const, of (14.33), or (14.38). t (B, 1|L) -> (B, L, V) nats"""
        if self.noise:
            return z[..., self.D:]  # (B, L, V)
        th, t = angles(z[..., :self.V])[0], t[..., None].expand(*z.shape[:-1], 1)  # (B, L, V|1)
        most = t * math.pi / 2 * (1 + 1e-6)  # (B, L, 1) of float32
        near = th.clamp(max=th.amin(-1, keepdim=True).maximum(most))  # (B, L, V) at least one word
        ratio = torch.sin((near / t).clamp(max=math.pi / 2)) / torch.sin(th)  # (B, L, V)
        return torch.where(th <= near, (self.V - 2) * ratio.log(), -math.inf)  # (B, L, V)

    def log_words(self, denoiser, z, t, at):
        """log p(v) of the network at `at` (B, L), which guidance by gradients shifts. -> (N, V)"""
        return denoiser(z, t.float(), at=at)[:, :self.V].log_softmax(-1)  # (N, V)

    # ---- draws without a walk, (14.36)

    def plane(self):
        """X_1 and e_x in coordinates: along e_x, and along what of X_1 is at right angles to it.
        -> the cosine and the sine between them"""
        cos = self.D ** -0.5 if self.start == "uniform" else 0.0
        return cos, (1 - cos ** 2) ** 0.5

    @cached_property
    def table(self):
        """The direction of E X_t at NODES + 1 values of v, as in `plane`, and rho. From CHAINS
        walks, of which three coordinates say all: other directions are alike. -> (3, n)"""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rest = torch.distributions.Chi2(max(self.D - 3, 1)).sample((NODES, CHAINS)).double()
            eps = torch.randn(NODES, CHAINS, 3, dtype=torch.float64)  # (n, m, 3)
        rest = rest * (self.D > 3)  # (n, m) |eps|^2 in all other directions
        X = torch.tensor([*self.plane(), 0.0], dtype=torch.float64).repeat(CHAINS, 1)  # (m, 3)
        b = 1 / self.grown(torch.linspace(0, 1, NODES + 1, dtype=torch.float64))[0]  # (n + 1,)
        means, word = [X[0, :2]], torch.ones(CHAINS, 1, dtype=torch.float64)  # (m, 1)
        for i in range(NODES):
            c = 1 - b[i + 1] / b[i]  # ()
            xi = c * log_mean(X, word) + (b[i + 1] * c).sqrt() * tangent(X, eps[i])  # (m, 3)
            more = b[i + 1] * c * rest[i]  # (m,) of |xi|^2
            size = (xi.square().sum(-1) + more).sqrt()[:, None]  # (m, 1)
            sinc = torch.sinc(size / math.pi)  # (m, 1)
            X = torch.cos(size) * X + sinc * xi  # (m, 3)
            far = (X[:, 2].square() + sinc[:, 0].square() * more).sqrt()  # (m,)
            X = torch.stack([X[:, 0], X[:, 1], far], -1)  # (m, 3)
            means.append(X[:, :2].mean(0))
        means = torch.stack(means)  # (n + 1, 2)
        size = means.norm(dim=-1)  # (n + 1,)
        return torch.stack([*(means / size[:, None]).T, spread_of(size.clamp(max=1), self.D - 1)])

    def draw(self, x, v):
        """X_t by (14.36), at v (B, 1) of `grown`. -> (B, L, D)"""
        place = (v.double() * NODES).clamp(max=NODES - 1e-6)  # (B, 1)
        i, part = place.long(), place % 1  # (B, 1) each
        along, across, rho = ((a[i] * (1 - part) + a[i + 1] * part).to(v)
                              for a in self.table.to(x.device))  # (B, 1) each
        word, first, (cos, sine) = self.words(x), self.begin(x), self.plane()
        mean = along[..., None] * word + across[..., None] * (first - cos * word) / sine
        mean = F.normalize(mean, dim=-1)  # (B, L, D)
        g = tangent(mean, torch.randn(mean.shape, device=x.device))  # (B, L, D)
        return exp_map(mean, rho[..., None] * g)  # (B, L, D)


@dataclass(eq=False)
class Geodesic(Sampler):
    """--sampler geodesic: steps of (14.34) on a sphere, with noise or without.

    It yields the likeliest words after each step; the last ones are drawn.
    """
    last: str = flag("draw", "the words: drawn, or the likeliest, as published (biased)",
                     ["draw", "argmax"])

    def fits(self, method):
        if not isinstance(method.process, Sphere):
            return f"walks on a sphere, where {method.name} has no words"

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        ids, free = z, ~frozen  # (B, L) each
        z = torch.where(free[..., None], process.begin(ids), process.words(ids))  # (B, L, D)
        if process.noise:
            z = F.pad(z, (0, process.V))  # (B, L, D + V)
        times = process.times(steps, ids.device)  # (n,)
        for i, t in enumerate(times):
            if not free.any():  # nothing to write
                yield ids
                continue
            told = t.expand(ids.shape).masked_fill(frozen, 0.0)  # (B, L)
            log_p = process.log_words(denoiser, z, told, free)  # (N, V)
            if i + 1 < steps:
                p = torch.zeros(*ids.shape, process.V, dtype=z.dtype, device=z.device)  # (B, L, V)
                p[free] = log_p.exp().to(z.dtype)  # (N, V)
                moved = process.advance(z, p, *(a.expand(len(ids), 1) for a in (times[i + 1], t)))
                z = torch.where(free[..., None], moved, z)  # (B, L, D|D + V)
            drawn = i + 1 == steps and self.last == "draw"
            words = draw_from(to_probs, log_p)[0] if drawn else log_p.argmax(-1)  # (N,)
            ids = ids.masked_scatter(free, words)  # (B, L)
            yield ids
