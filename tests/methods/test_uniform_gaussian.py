"""The Gaussian behind uniform noise: the operator T of (7.2), and the process that it makes."""
import math

import numpy
import pytest
import torch
from integrals import probability_of_the_largest
from methods.uniform_gaussian import GaussianUniform, Operator


VOCABULARIES = [3, 28, 1000, 50257, 128256]


def close(ours, exact, tolerance):
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=0)


@pytest.mark.parametrize("V", VOCABULARIES)
def test_the_operator_is_the_integral_of_its_definition(V):
    """With another rule of integration and another Phi, to 1e-12."""
    gamma = numpy.arange(-6, 20.5, 0.5)
    exact = (V * probability_of_the_largest(V, 1, numpy.exp(-gamma / 2)) - 1) / (V - 1)
    close(Operator(V).alpha(torch.from_numpy(gamma)), torch.from_numpy(exact), 1e-12)


def test_with_two_words_the_operator_is_an_error_function():
    gamma = torch.linspace(-7, 80, 200, dtype=torch.float64)
    # 2 p - 1 for p = P(one is larger) = Phi(mu / 2^.5)
    exact = torch.special.erf((-gamma / 2).exp() / 2)
    close(Operator(2).alpha(gamma), exact, 1e-14)


@pytest.mark.parametrize("V", VOCABULARIES)
def test_the_derivative_is_that_of_the_operator_which_falls_from_one_to_zero(V):
    """By differences of fourth order, to 1e-10. Where T is clamped, it is 1 or 0 to all digits."""
    operator, h = Operator(V), 2e-3
    gamma = torch.linspace(-5.9, 20, 100, dtype=torch.float64)
    by = lambda d: operator.alpha(gamma + d) - operator.alpha(gamma - d)
    close(operator.dalpha(gamma), (8 * by(h) - by(2 * h)) / (12 * h), 1e-10)
    assert (operator.dalpha(gamma)[operator.alpha(gamma) < 1 - 1e-12] < 0).all()
    ends = operator.alpha(torch.tensor([operator.LEAST, operator.MOST]))
    close(ends, torch.tensor([1.0, 0.0], dtype=torch.float64), 1e-14)


@pytest.mark.parametrize("V", VOCABULARIES)
def test_the_inverse_undoes_the_operator(V):
    middle = torch.linspace(0.001, 0.999, 99)
    alpha = torch.cat([middle, torch.tensor([1e-6, 1 - 1e-6])]).double()  # (101,)
    close(Operator(V).alpha(Operator(V).gamma(alpha)), alpha, 1e-13)


@pytest.mark.parametrize("V, first, last", [
    (28, -2.709, 1.537), (65, -2.855, 0.742), (256, -3.054, -0.202), (1000, -3.216, -0.832),
    (4096, -3.358, -1.292), (8192, -3.420, -1.473), (32000, -3.531, -1.770),
    (50257, -3.565, -1.855), (128256, -3.632, -2.016)])
def test_the_range_of_gamma_depends_on_the_vocabulary(V, first, last):
    """To all digits of the table. The released range for 50,257 words is -3.55 to -1.85."""
    assert GaussianUniform(V).ends == pytest.approx([first, last], abs=6e-4)


@pytest.mark.parametrize("V", [2, 3, 5, 100, *VOCABULARIES])
def test_alpha_falls_from_95_to_5_percent_and_has_its_slope(V):
    process, t = GaussianUniform(V), torch.linspace(0, 1, 21, dtype=torch.float64)
    alpha, h, zero = process.alpha(t), 1e-4, torch.tensor(0)
    assert alpha[0].item() == pytest.approx(0.95, abs=1e-12)
    assert alpha[-1].item() == pytest.approx(0.05, abs=1e-12)
    close(alpha + V * process.b(t, zero), torch.ones_like(t), 1e-12)
    close(process.dalpha(t), (process.alpha(t + h) - process.alpha(t - h)) / (2 * h), 1e-6)
    close(process.db(t, zero), -process.dalpha(t) / V, 1e-12)
    short = t.float()
    assert process.alpha(short).dtype == process.dalpha(short).dtype == torch.float32


def test_the_argmax_of_a_noisy_one_hot_vector_is_kept_as_often_as_the_operator_says():
    """(7.1) by 100,000 draws: p of (7.2) within 4.5 standard errors, at three gammas."""
    torch.manual_seed(0)
    V, n = 7, 100_000
    for gamma in (-2.0, 0.0, 2.0):
        a, s = (1 / (1 + math.exp(sign * gamma)) for sign in (1, -1))  # a^2, s^2
        w = s ** 0.5 * torch.randn(n, V)
        w[:, 3] += a ** 0.5
        p = (1 + (V - 1) * Operator(V).alpha(torch.tensor(gamma)).item()) / V
        kept = (w.argmax(-1) == 3).double().mean()
        assert abs(kept - p) < 4.5 * (p * (1 - p) / n) ** 0.5
