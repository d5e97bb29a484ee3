"""Probabilities of Gaussians by Gauss-Legendre panels, apart from the code."""
import math

import numpy


def panels(low, high, width=0.5, nodes=16):
    """Gauss-Legendre on short intervals. -> nodes u (n,), weights times phi's constant (n,)"""
    x, w = numpy.polynomial.legendre.leggauss(nodes)
    left = numpy.arange(low, high, width)[:, None]
    weights = numpy.tile(w * width / 2, len(left)) / math.sqrt(2 * math.pi)
    return (left + (x + 1) * width / 2).ravel(), weights


def log_ndtr(u):
    """log Phi(u) from the complementary error function of Python's math."""
    return numpy.array([math.log1p(-math.erfc(a / 2 ** 0.5) / 2) if a > 0 else
                        math.log(math.erfc(-a / 2 ** 0.5) / 2) for a in u])


def probability_of_the_largest(V, k, mu):
    """P(the clean coordinate is one of the k largest): (7.2) for the k-th of the others. -> (n,)"""
    u, weight = panels(-10, max(mu) + 10)
    below, above, n = log_ndtr(u), log_ndtr(-u), V - 1
    ways = [math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) for j in range(k)]
    kth = sum(numpy.exp(ways[j] + j * above + (n - j) * below) for j in range(k))  # (n,) its CDF
    return numpy.array([(numpy.exp(-0.5 * (u - m) ** 2) * weight * kth).sum() for m in mu])
