"""
Chapter 25. Power laws of the loss, where its floor H is known, and the errors of what is fitted.

    E(N, D) = L - H = A / N^a + B / D^b                                                      (25.1)

with N parameters and D tokens of training. For a fixed C = 6 N D, the operations of training, the
best size and its excess are power laws as well:

    N*(C) ~ C^(b / (a + b)),   E*(C) ~ C^(-a b / (a + b))                                    (25.2)

since at the minimum a A / N^a = b B / D^b. Solved for N and D, that is the least compute C(E) for
an excess E. Two methods are compared by the ratio C_2(E) / C_1(E), the horizontal gap:

    C(E) = 6 (A (a + b) / (b E))^(1/a) (B (a + b) / (a E))^(1/b)                             (25.3)

A free floor trades with the exponents, since all data lie at finite N and D. Here H is the exact
entropy, and A, a, B, b are all that is fitted: least squares of log E, each point with the weight
1 / (SCATTER^2 + (error / E)^2), by Levenberg and Marquardt's method.

Errors are those of other runs. The runs of each size are drawn again, with replacement, and all is
fitted again (bootstrap); where a size has one run only, all runs are drawn from all sizes. The
spread is multiplied by sqrt(n / (n - 1)), since n runs spread less about their own mean than about
the true one. Runs of other seeds say nothing of points that follow no power law: so the fit is also
repeated without each size in turn.
"""
import math
from typing import NamedTuple

import torch

from flags import UserError

SCATTER = 0.03  # a law of two terms is no better than this, relative
STARTS = [(a, b) for a in (0.3, 0.7, 1.5) for b in (0.3, 0.7, 1.5)]  # exponents to start from
LIMITS = 0.01, 5.0  # of exponents
DRAWS = 200  # resamplings


class Point(NamedTuple):
    """A network of one size after one number of tokens."""
    size: int  # N
    tokens: int  # D
    compute: float  # the C of the isoFLOP curve it belongs to
    seed: int
    excess: float  # L - H, nats/token
    error: float  # its standard error, by the choice of texts and noise


class Law(NamedTuple):
    """(25.1); A and B as logarithms at the geometric means of N and D, where they vary least."""
    log_A: float
    a: float
    log_B: float
    b: float
    size: float  # the geometric mean of N
    tokens: float  # that of D
    residual: float = math.nan  # root mean square of log E

    def excess(self, N, D):
        """E(N, D) in nats/token."""
        return (math.exp(self.log_A - self.a * math.log(N / self.size))
                + math.exp(self.log_B - self.b * math.log(D / self.tokens)))

    def compute_for(self, E):
        """C(E) of (25.3), the least compute that reaches an excess E."""
        a, b = self.a, self.b
        log_N = (self.log_A + math.log((a + b) / (b * E))) / a + math.log(self.size)
        log_D = (self.log_B + math.log((a + b) / (a * E))) / b + math.log(self.tokens)
        return 6 * math.exp(log_N + log_D)

    @property
    def A(self):
        return math.exp(self.log_A) * self.size ** self.a

    @property
    def B(self):
        return math.exp(self.log_B) * self.tokens ** self.b

    @property
    def compute_exponents(self):
        """(25.2): the exponents of N* and of E*."""
        return self.b / (self.a + self.b), -self.a * self.b / (self.a + self.b)


def columns(points):
    """log N, log D, log E and the weights of points. -> (4, n)"""
    if any(p.excess <= 0 for p in points):
        raise UserError("a loss at or below the entropy has no logarithm: score more texts")
    rows = [(math.log(p.size), math.log(p.tokens), math.log(p.excess),
             1 / (SCATTER ** 2 + (p.error / p.excess) ** 2)) for p in points]
    return torch.tensor(rows, dtype=torch.float64).T  # (4, n)


def fit_law(points, start=None):
    """(25.1) by weighted least squares of log E. start: a Law to begin from. -> Law"""
    if len({p.size for p in points}) < 2 or len({p.tokens for p in points}) < 2 or len(points) < 6:
        raise UserError("a law of N and D needs six points, of two sizes and two numbers of tokens "
                        f"at least: there are {len(points)}")
    n, d, e, w = columns(points)  # (n,) each
    middle = (start.size, start.tokens) if start else (n.mean().exp().item(), d.mean().exp().item())
    n, d, half = n - math.log(middle[0]), d - math.log(middle[1]), e.mean().item() - math.log(2)
    starts = [start[:4]] if start else [(half, a, half, b) for a, b in STARTS]
    fits = [least_squares(torch.tensor(s, dtype=torch.float64), n, d, e, w) for s in starts]
    theta, loss = min(fits, key=lambda fit: fit[1])
    return Law(*theta.tolist(), *middle, math.sqrt(loss / w.sum().item()))


def least_squares(theta, n, d, e, w, steps=100):
    """Levenberg and Marquardt's method for log E. theta (4,) -> theta (4,), weighted squares"""
    def model(theta):
        terms = torch.stack([theta[0] - theta[1] * n, theta[2] - theta[3] * d])  # (2, n)
        return terms.logsumexp(0), terms.softmax(0)  # (n,), (2, n)

    def squares(theta):
        return (w * (model(theta)[0] - e).square()).sum().item()
    loss, damping = squares(theta), 1e-3
    for _ in range(steps):
        value, share = model(theta)  # (n,), (2, n) each term's share of E
        J = torch.stack([share[0], -share[0] * n, share[1], -share[1] * d], 1)  # (n, 4)
        normal, gradient = J.T @ (w[:, None] * J), J.T @ (w * (value - e))  # (4, 4), (4,)
        move = torch.linalg.solve(normal + damping * torch.diag(normal.diagonal() + 1e-9), gradient)
        tried = theta - move.clamp(-1, 1)  # (4,)
        tried[1::2] = tried[1::2].clamp(*LIMITS)
        if (new := squares(tried)) <= loss:
            done = loss - new < 1e-9 * loss
            theta, loss, damping = tried, new, max(damping / 5, 1e-9)
            if done:
                break
        else:
            damping *= 5
            if damping > 1e9:
                break
    return theta, loss


# ---- isoFLOP curves

def parabola_minimum(x, y):
    """The least point of the parabola through points (x, y), by least squares. -> x, y; None where
    it has no minimum between the outermost x"""
    x, y = (torch.as_tensor(a, dtype=torch.float64) for a in (x, y))  # (n,) each
    if len(x.unique()) < 3:
        return None
    u = x - x.mean()  # (n,)
    powers = torch.stack([u ** 0, u, u ** 2], 1)  # (n, 3)
    c, slope, curve = torch.linalg.lstsq(powers, y[:, None]).solution[:, 0].tolist()
    if curve <= 0 or not u.min() <= -slope / (2 * curve) <= u.max():
        return None
    return x.mean().item() - slope / (2 * curve), c - slope ** 2 / (4 * curve)


def isoflop_minima(points):
    """{C: (N*, E*)}, each from the parabola of log E in log N at that compute."""
    minima = {}
    for C in sorted({p.compute for p in points}):
        n, _, e, _ = columns([p for p in points if p.compute == C])  # (n,) each
        if found := parabola_minimum(n, e):
            minima[C] = math.exp(found[0]), math.exp(found[1])
    return minima


class Frontier(NamedTuple):
    """(25.2) as fitted to isoFLOP minima: log N* and log E* are lines in log C."""
    compute: float  # where both lines have their level: the geometric mean of C
    log_N: float
    size_exponent: float
    log_E: float
    excess_exponent: float

    def size(self, C):
        return math.exp(self.log_N + self.size_exponent * math.log(C / self.compute))

    def excess(self, C):
        return math.exp(self.log_E + self.excess_exponent * math.log(C / self.compute))

    def compute_for(self, E):
        """C(E) of (25.3) by the lines."""
        return self.compute * math.exp((math.log(E) - self.log_E) / self.excess_exponent)


def fit_frontier(minima):
    """Lines through {C: (N*, E*)}. -> Frontier, or None where there are fewer than two."""
    if len(minima) < 2:
        return None
    c = torch.tensor([*minima], dtype=torch.float64).log()  # (n,)
    n, e = torch.tensor([*minima.values()], dtype=torch.float64).log().T  # (n,) each
    u = c - c.mean()  # (n,)
    slopes = [(u @ y / (u @ u)).item() for y in (n, e)]
    return Frontier(c.mean().exp().item(), n.mean().item(), slopes[0], e.mean().item(), slopes[1])


def compute_ratio(first, second, E):
    """(25.3): how many times the compute of the first, a Law or a Frontier, the second needs."""
    return second.compute_for(E) / first.compute_for(E)


def least_ratio(first, second):
    """A lower bound of the gap that needs no fit: at the lower compute some size of the first has
    an excess of E, at the higher one none of the second has. -> E, the ratio; None if there is none

    It holds for the sizes of the points, and is no larger than the span of their curves.
    """
    best = [{C: min(p.excess for p in points if p.compute == C)
             for C in sorted({p.compute for p in points})} for points in (first, second)]
    found = [(high / low, E) for low, E in best[0].items() for high, other in best[1].items()
             if high > low and other > E]
    return max(found)[::-1] if found else None


# ---- errors

def groups_of_runs(points):
    """The runs among which one may stand for another: of each size, or all where a size has one.

    -> lists of runs, which are lists of points
    """
    runs = {}
    for p in points:
        runs.setdefault(p.size, {}).setdefault(p.seed, []).append(p)
    sizes = [[*seeds.values()] for seeds in runs.values()]
    return sizes if min(map(len, sizes)) > 1 else [[run for size in sizes for run in size]]


def resampled(points, generator):
    """The runs drawn again, with replacement: a list of points, of three sizes or all there are."""
    groups, needed = groups_of_runs(points), min(3, len({p.size for p in points}))
    drawn = []
    while len({p.size for p in drawn}) < needed:
        drawn = [p for runs in groups for i in torch.randint(len(runs), (len(runs),),
                                                             generator=generator).tolist()
                 for p in runs[i]]
    return drawn


def bootstrap(estimate, *samples, draws=None):
    """The errors of estimate(*samples), which gives k numbers or None for lists of points.

    -> standard errors (k,), nan where there is one run; the estimates (m, k) of `draws`
    resamplings, or DRAWS
    """
    generator = torch.Generator().manual_seed(1)
    found = [estimate(*(resampled(points, generator) for points in samples))
             for _ in range(draws or DRAWS)]
    found = torch.tensor([values for values in found if values is not None], dtype=torch.float64)
    n = min(len(runs) for points in samples for runs in groups_of_runs(points))
    if n < 2 or len(found) < 2:
        return torch.full(found.shape[1:] or (9,), math.nan), found  # (k,), (m, k)
    return found.std(0) * math.sqrt(n / (n - 1)), found  # (k,), (m, k)


# ---- crossings

def crossing(x, first, second):
    """Where the second line falls below the first one for good: straight lines between the points,
    in log x. -> x, or None if it does not; the first x if it is below at all points"""
    gaps = [b - a for a, b in zip(first, second)]
    if len(gaps) != len(x) or min(x, default=0) <= 0 or sorted(set(x)) != list(x):
        raise UserError("a crossing needs two values at each x, and x > 0 in rising order")
    if gaps[-1] >= 0:
        return None
    above = [i for i, gap in enumerate(gaps) if gap >= 0]
    if not above:
        return x[0]
    i = above[-1]
    share = gaps[i] / (gaps[i] - gaps[i + 1])
    return math.exp(math.log(x[i]) + share * math.log(x[i + 1] / x[i]))
