"""Bounds of the enumerated world as sums and integrals; draws against what they estimate."""
import math

import numpy
import torch

import world
from diffusion import changeable
from methods.mdlm import masked_bound
from methods.udlm import mixture_bound
from world import TEXTS


def close(ours, exact, tolerance=1e-10):
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=tolerance)


def mean_of_batches(draw, batches=20, enough=0.0):
    """draw() -> (B,), of one batch, which may be stratified. -> mean of all, standard error

    12 batches may do, if the error is below `enough`.
    """
    means, error = [], math.inf
    while error > enough and len(means) < batches or len(means) < min(12, batches):
        means.append(draw().double().mean())  # ()
        all_means = torch.stack(means)  # (n,)
        error = all_means.std() / len(means) ** 0.5 if len(means) > 1 else math.inf
    return all_means.mean(), error


def above_entropy(method, texts=1000, **options):
    """The mean of nelbo above -log p(x) over texts of the world, and its standard error, with the
    exact denoiser."""
    exact = method.oracle(world.LANGUAGE)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(world.P, texts, replacement=True)  # (n,)
        return method.nelbo(exact, TEXTS[of]).sum(-1) + world.P[of].log()  # (n,) nats
    return mean_of_batches(draw, **options)


def close_in_the_mean(draw, exact, batches=20):
    """The mean of draw() (B,) is within 4.5 standard errors, each of less than 1 %.

    It draws until the error is small enough, and at most `batches` times.
    """
    draws, error = [], math.inf
    while error > 0.008 * exact and len(draws) < batches:
        draws.append(draw())  # (B,)
        all_draws = torch.cat(draws)  # (n,)
        mean, error = all_draws.mean(), all_draws.std() / len(all_draws) ** 0.5
    assert error < 0.01 * exact and abs(mean - exact) < 4.5 * error, (mean, exact, error)


def quadrature(nodes):
    """Times t = sin^2(pi v / 2) of Gauss-Legendre nodes v, and weights, dt/dv included. (nodes,)

    It takes the square roots out of the ends of the hybrid process.
    """
    v, w = (torch.tensor(a) for a in numpy.polynomial.legendre.leggauss(nodes))  # (nodes,) each
    v, w = (v + 1) / 2, w / 2  # (nodes,) each
    return torch.sin(math.pi / 2 * v).square(), w * math.pi / 2 * torch.sin(math.pi * v)


def exact_bound(process, denoiser, nodes, term=None):
    """The bound of each of the 27 texts: term(log_p, x, z, t), by default (0.2), summed over z and
    integrated over t. -> (27,) nats

    log_p (n, 27, N), x (n, 27), z (n, 1), t (n, 1) of all tokens with something to score
    """
    states, (times, weights) = world.states(process), quadrature(nodes)
    z = states.repeat(nodes, 1)  # (nodes S, L)
    t = times.repeat_interleave(len(states))[:, None]  # (nodes S, 1)
    q = world.q(process, z, t) * weights.repeat_interleave(len(states))[:, None]  # (nodes S, 27)
    log_p = denoiser(z, t)  # (nodes S, L, N)
    total = torch.zeros(len(TEXTS), dtype=torch.float64)  # (27,)
    for l in range(z.shape[1]):
        rows = changeable(process, z, None)[:, l]  # (nodes S,)
        n = int(rows.sum())
        part = log_p[rows, l, None].expand(-1, 27, -1), TEXTS[:, l].expand(n, -1)
        here = z[rows, l, None].expand(-1, 27), t[rows].expand(-1, 27)  # (n, 27) each
        nats = (term or mean_term(process))(*part, *here)  # (n, 27)
        total += torch.where(q[rows] > 0, q[rows] * nats, 0.0).sum(0)
    return total


def mean_term(process):
    """(0.2) in the closed form of masks or of words."""
    def term(log_p, x, z, t):
        if not process.text_stays:
            return mixture_bound(process, log_p, x, z, t)  # (n, 27)
        ce = -log_p.gather(-1, x[..., None])[..., 0]  # (n, 27)
        return masked_bound(process, ce, z, t)  # (n, 27)
    return term
