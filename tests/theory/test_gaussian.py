"""
Gaussian noise on embeddings: the equations to rounding, then (13.8) as an equality, with the exact
denoiser of a world of 27 texts whose rows have different norms. No network.

embedding.npz: `bit/*` is one token of two values by quadrature; `world/*` another world of 4 words,
computed apart from this code; the rest was computed with public code, see the tests of the methods.
"""
import math

import numpy
import pytest
import torch
import world
from bounds import close
from references import Figures
from world import TEXTS, L, N, P

import gaussian
from gaussian import (
    EmbeddingSpace,
    add_noise,
    ddim,
    large_variance,
    log_evidence,
    noise_nats,
    prior_nats,
    sharpen,
    signal,
    step_law,
    step_nats,
)
from methods.gammas import Alpha2, Linear, Logistic
from methods.plaid import Plaid
from samplers import make_sampler
from samplers.generate import generate

figure = Figures("embedding")
ENTROPY = -(P * P.log()).sum()
TABLE = torch.tensor([[1.0, 0.2], [-0.6, 1.3], [-0.4, -0.7]], dtype=torch.float64)  # (3, 2)


# ---- the equations, to rounding

def test_evidence_posterior_and_the_terms_of_the_bound_are_those_of_another_program():
    """Four words whose rows differ in norm, a gamma for each token."""
    z, gamma, E, x = (figure(f"world/{key}") for key in ("z", "gamma", "E", "x"))
    evidence = log_evidence(z, gamma, E)  # (5, 3, 4)
    sigma2 = torch.sigmoid(gamma)[..., None]  # (5, 3, 1)
    density = -(2 * math.pi * sigma2).log() - z.square().sum(-1, keepdim=True) / (2 * sigma2)
    close(evidence + density, figure("world/REF_log_evidence"))
    log_p = (figure("world/REF_leave_one_out").log() + evidence).log_softmax(-1)
    close(log_p.exp(), figure("world/REF_posterior"))
    x_hat, e = log_p.exp() @ E, E[x]  # (5, 3, 2) each
    close(x_hat, figure("world/REF_x_hat"))
    close(noise_nats(e, x_hat, gamma), figure("world/REF_integrand_dgamma"))
    close(-log_p.gather(-1, x[..., None])[..., 0], figure("world/REF_reconstruction"))
    close(prior_nats(e, torch.tensor(6.0).double()), figure("world/REF_prior_g1_6"))
    space = EmbeddingSpace(E, "free", Linear(-3.0, 6.0))
    assert torch.equal(space.nearest(z.flatten(0, 1)), figure("world/REF_nearest").flatten())


def test_reverse_steps_are_those_of_another_program():
    z, gamma, E, x = (figure(f"world/{key}") for key in ("z", "gamma", "E", "x"))
    x_hat, gamma_s = figure("world/REF_x_hat"), figure("world/gamma_s")
    mean, variance = step_law(z, x_hat, gamma_s, gamma)
    close(mean, figure("world/REF_step_mean"))
    close(variance, figure("world/REF_step_var"))
    close(step_nats(E[x], x_hat, gamma_s, gamma), figure("world/REF_step_kl"))
    close(ddim(z, x_hat, gamma_s, gamma), figure("world/REF_ddim"))


def test_steps_are_those_of_the_published_tables_of_fifty_steps():
    """Diffusion-LM's coefficients, its variance "fixed large", and x_hat at score temperature 1."""
    abar = figure("sched/sqrt_T50_alphas_cumprod")  # (50,)
    gamma = -torch.logit(abar)  # (50,)
    one, zero = torch.ones(49, 1).double(), torch.zeros(49, 1).double()
    of_x, variance = step_law(zero, one, gamma[:-1], gamma[1:])  # (49, 1), (49,)
    of_z, _ = step_law(one, zero, gamma[:-1], gamma[1:])  # (49, 1)
    close(of_x[:, 0], figure("sched/sqrt_T50_posterior_mean_coef1")[1:])
    close(of_z[:, 0], figure("sched/sqrt_T50_posterior_mean_coef2")[1:])
    close(variance, figure("sched/sqrt_T50_posterior_variance")[1:])
    close(large_variance(gamma[:-1], gamma[1:]), figure("sched/sqrt_T50_fixed_large_variance")[1:])
    z, x_hat = torch.randn(2, 5, 3, dtype=torch.float64)
    gamma = torch.linspace(-2, 2, 5, dtype=torch.float64)
    close(sharpen(x_hat, z, gamma, 1.0), x_hat)
    alpha, sigma = (a[:, None] for a in signal(gamma))
    close((z - alpha * sharpen(x_hat, z, gamma, 0.8)) / sigma, (z - alpha * x_hat) / sigma / 0.8)


# ---- one token of two values, by quadrature

NODES = torch.arange(-12, 12.001, 1 / 32, dtype=torch.float64)  # (nodes,) the trapezoid rule
WEIGHTS = torch.exp(-NODES ** 2 / 2)  # (nodes,)
BIT = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)  # (V, D)


def bit(gamma):
    """E |e - x_hat|^2, and the cross-entropy of p, of a fair bit. gamma (n,) -> (n,) each"""
    gamma = gamma[:, None].expand(-1, len(NODES))  # (n, nodes)
    z = add_noise(BIT[0], gamma, NODES[:, None])  # (n, nodes, 1), of the bit +1
    log_p = log_evidence(z, gamma, BIT).log_softmax(-1)  # (n, nodes, 2)
    mean = lambda a: a @ WEIGHTS / WEIGHTS.sum()  # (n,)
    return mean((BIT[0] - log_p.exp() @ BIT).square().sum(-1)), mean(-log_p[..., 0])


def test_the_bound_of_a_bit_is_log_two():
    """To 1e-7, without noise. Where gamma_1 is low it is more by KL_1."""
    gamma = figure("bit/gamma")
    close(bit(gamma)[0], figure("bit/REF_mmse"), 1e-7)
    close(bit(gamma)[1], figure("bit/REF_cross_entropy"), 1e-7)
    node, weight = (torch.tensor(a) for a in numpy.polynomial.legendre.leggauss(400))
    for low, high, kl in ((-3.0, 6.0, 0.0), (0.0, 3.0, 4.25e-7)):
        gamma = low + (high - low) * (node + 1) / 2  # (400,)
        integral = (weight * (high - low) / 2 * torch.exp(-gamma) / 2 * bit(gamma)[0]).sum()
        prior = prior_nats(BIT[:1], torch.tensor([high]).double())[0]  # ()
        rec = bit(torch.tensor([low]).double())[1][0]  # ()
        assert integral + rec + prior - math.log(2) == pytest.approx(kl, abs=1e-8)


def test_sums_of_t_steps_fall_to_the_bound_like_one_over_t():
    def steps(T):
        gamma = torch.linspace(-3, 6, T + 1, dtype=torch.float64)  # (T + 1,)
        gap = torch.expm1(gamma[1:] - gamma[:-1])  # (T,)
        rec = bit(gamma[:1])[1][0] + prior_nats(BIT[:1], gamma[-1:])[0]  # ()
        return rec + (gap * torch.exp(-gamma[1:]) / 2 * bit(gamma[1:])[0]).sum() - math.log(2)
    more = [steps(T).item() for T in (32, 64, 128, 256)]
    assert more[0] > 0.05 and all(1.9 < a / b < 2.1 for a, b in zip(more, more[1:]))


# ---- (13.8) in the world of 27 texts

def log_ratios(x, gamma, given=None):
    """log N(z; alpha e_v, sigma) - log N(z; 0, 1) of a draw of z at gamma (n, L). -> (n, L, N)"""
    z = add_noise(TABLE[x], gamma, torch.randn(*x.shape, 2, dtype=torch.float64))  # (n, L, D)
    rest = torch.exp(-gamma) * z.square().sum(-1) / 2 + torch.nn.functional.logsigmoid(gamma)
    ratio = log_evidence(z, gamma, TABLE) - rest[..., None]  # (n, L, N)
    if given is not None:
        clean = torch.nn.functional.one_hot(x[:, given], N)  # (n, N)
        ratio[:, given] = (1e-300 + clean).double().log()
    return ratio


def posterior(ratio):
    """p(x_l | z). -> (n, L, N)"""
    return world.posterior_of_all((ratio - ratio.amax(-1, keepdim=True)).exp(), False)


def log_mean(ratio):
    """log of sum_x p(x) prod_l of the ratios. -> (n,)"""
    top = ratio.amax(-1)  # (n, L)
    first, second, third = (ratio - top[..., None]).exp().unbind(1)  # (n, N) each
    cube = torch.einsum("na,nb,abc->nc", first, second, P.view(N, N, N))  # (n, N)
    return (cube * third).sum(-1).log() + top.sum(-1)  # (n,)


def integrand(x, gamma, given=None):
    """That of (13.7), one draw at gamma (n, L). -> (n, L)"""
    return noise_nats(TABLE[x], posterior(log_ratios(x, gamma, given)) @ TABLE, gamma)


@pytest.mark.parametrize("ends, given", [((-4.0, 6.0), None), ((-1.0, 2.0), None),
                                         ((-1.0, 6.0), 0)])
def test_the_bound_exceeds_the_entropy_by_what_the_ends_leave(ends, given):
    """(13.8) as an equality, within 4 standard errors: also where TC and KL_1 are large, and with a
    token given, for the entropy of the others."""
    torch.manual_seed(0)
    n, free = 40_000, [l for l in range(L) if l != given]
    x = TEXTS[torch.multinomial(P, n, replacement=True)]  # (n, L)
    gamma, weight = Logistic(ends, -1.0, 1.0).draw(n)  # (n, 1) each
    full = lambda a: torch.full((n, L), a, dtype=torch.float64)  # (n, L)
    start, end = (log_ratios(x, full(a), given) for a in ends)  # (n, L, N) each
    at_x = lambda a: a.gather(-1, x[..., None])[..., 0]  # (n, L)
    given_p = 1 if given is None else P.view(N, -1).sum(-1)[x[:, 0]]  # (n,) p of the given token
    log_p = (P[world.numbers(x, N)] / given_p).log()  # (n,)
    rec = -at_x(posterior(start)).log()[:, free].sum(-1)  # (n,)
    rec_all = log_mean(start) - at_x(start).sum(-1) - P[world.numbers(x, N)].log()  # (n,)
    kl_1 = log_mean(end) - torch.as_tensor(given_p).log()  # (n,)
    terms = weight * integrand(x, gamma.expand(-1, L), given) + prior_nats(TABLE[x], full(ends[1]))
    left = rec - rec_all + kl_1  # (n,) draws of TC + KL_1
    more = terms[:, free].sum(-1) + rec + log_p - left  # (n,) the entropy is the mean of -log p
    error = more.std() / n ** 0.5
    assert error < 0.025 and abs(more.mean()) < 4 * error
    assert (left.mean() > 10 * left.std() / n ** 0.5) == (ends[0] == -1.0)


def test_the_path_of_clocks_that_do_not_depend_on_the_words_does_not_matter():
    """(13.10): tokens one after the other cost what all at once cost."""
    torch.manual_seed(0)
    n, rank, w = 60_000, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 1.5  # (L,)
    x = TEXTS[torch.multinomial(P, n, replacement=True)]  # (n, L)
    u = ((torch.arange(n) + torch.rand(n)) / n).double()[torch.randperm(n), None]  # (n, 1)
    t = (1 + w) * u - w * (1 - rank)  # (n, L)
    gamma, moving = -4 + 10 * t.clamp(0, 1), (t > 0) & (t < 1)  # (n, L) each
    start = log_ratios(x, torch.full((n, L), -4.0).double())  # (n, L, N)
    at_x = start.gather(-1, x[..., None])[..., 0].sum(-1)  # (n,)
    more = (integrand(x, gamma) * moving * 10 * (1 + w)).sum(-1) + log_mean(start) - at_x
    more = more + prior_nats(TABLE[x], torch.tensor(6.0)).sum(-1)  # (n,) without TC
    error = more.std() / n ** 0.5
    assert error < 0.05 and abs(more.mean()) < 4 * error


# ---- samplers

def written(gamma_0, steps, n=2000, sampler="ddpm", **flags):
    """Texts of the exact denoiser in the world. -> -log p and its error; distance and its error"""
    method = Plaid(N, dim=4, self_condition=0.0)
    method.process.schedule = Linear(gamma_0, 6.0)
    torch.manual_seed(0)
    x = generate(method, method.oracle(world.LANGUAGE), n, L, steps,
                 make_sampler(sampler, method, **flags))  # (n, L)
    nats = -P[world.numbers(x, N)].log()  # (n,)
    return nats.mean(), nats.std() / n ** 0.5, *world.distance(world.numbers(x, N), P)


@pytest.mark.parametrize("sampler, flags", [
    ("ddpm", {}), ("ddpm", dict(variance="large")), ("ddim", {}), ("word-steps", {})])
def test_walks_draw_from_the_language(sampler, flags):
    mean, error, far, far_error = written(-4.0, 32, sampler=sampler, **flags)
    slow = 0.1 if flags else 0.02  # a large variance needs more steps
    assert abs(mean - ENTROPY) < 4 * error + slow and far < 4 * far_error + slow / 2


@pytest.mark.parametrize("gamma_0, flags", [
    (-4.0, dict(clamp=True)), (0.5, dict(last="argmax")), (-4.0, dict(score_temperature=0.7))])
def test_clamping_argmax_and_score_temperature_flatter_texts(gamma_0, flags):
    """They are biased: -log p falls below the entropy, in many steps, too."""
    mean, error, far, far_error = written(gamma_0, 32, **flags)
    assert mean < ENTROPY - 3 * error and far > 20 * far_error


def test_more_steps_cost_less():
    nats = [written(-4.0, steps)[0] for steps in (2, 8, 32)]
    assert nats[0] > nats[1] + 0.01 > nats[2]


# ---- times

@pytest.mark.parametrize("schedule", [
    Linear(-4.0, 6.0), Alpha2("sqrt", -4.21, 9.2), Alpha2("cosine", -5.0, 9.0),
    Alpha2("sqrt", -4.21, 6.0, 2 * math.log(4))])
def test_schedules_rise_and_their_times_undo_them(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)  # (101,)
    gamma = schedule(t)  # (101,)
    assert (gamma.diff() > 0).all()
    close(schedule.time(gamma), t, 1e-8)
    inside, h = t[1:-1], 1e-5
    close(schedule.slope(inside), (schedule(inside + h) - schedule(inside - h)) / (2 * h), 1e-4)


def test_the_schedule_of_diffusion_lm_is_that_of_its_code():
    """At its 2,000 levels, of which the first is noisy: gamma = -4.21."""
    abar = figure("sched/sqrt_T2000_abar")  # (2000,)
    t = (torch.arange(2000, dtype=torch.float64) + 1) / 2000  # (2000,)
    close(Alpha2("sqrt", -4.0, 9.0).alpha2(t)[:-1], abar[:-1], 1e-9)
    assert -torch.logit(abar[0]).item() == pytest.approx(-4.21, abs=0.005)


def test_gammas_of_a_logistic_density_integrate_any_function():
    gamma, weight = Logistic((-4.0, 6.0), -2.0, 1.3).draw(20_000)  # (n, 1) each
    assert gamma.min() >= -4 and gamma.max() <= 6
    f = torch.exp(-((gamma - 1) ** 2))  # (n, 1)
    assert (f * weight).mean().item() == pytest.approx(math.pi ** 0.5, abs=0.01)


def test_a_given_token_is_its_row_bit_for_bit_and_its_time_is_zero():
    space = EmbeddingSpace(torch.randn(5, 4), "unit", Linear(-4.0, 6.0))
    x, frozen = torch.randint(5, (3, 6)), torch.rand(3, 6) < 0.5  # (3, 6) each
    e = space.rows()[x]  # (3, 6, 4)
    z, t = space.noisy(e, torch.rand(3, 1), frozen)  # (3, 6, 4), (3, 6)
    assert torch.equal(z[frozen], e[frozen]) and (t[frozen] == 0).all() and (t[~frozen] > 0).all()
    assert (z[~frozen] != e[~frozen]).any()
    _, clock = space.scaled(z, t)  # (3, 6)
    assert (clock[frozen] == -4 + gaussian.GIVEN).all() and (clock[~frozen] >= -4).all()
