"""SEDD: the score of a mean has the bound and the steps of the other chapters.

A score whose ratios fit no distribution gives a bound all the same. Sampling is in
test_sedd_samples.py.
"""
import math

import pytest
import torch
import torch.nn.functional as F
from bounds import close, close_in_the_mean, quadrature
from chains import lawless

import world
from diffusion import Absorbing, Uniform, bound, changeable, reverse
from methods.mdlm import masked_bound
from methods.sedd import SEDD, SEDDSchedule, score_entropy, score_of_mean
from methods.udlm import mixture_bound
from samplers.euler import analytic_probs, euler_probs
from world import LANGUAGE, TEXTS, L, N, P

ENTROPY = -(P * P.log()).sum()
PROCESSES = {f"{base.__name__}, {schedule}": SEDDSchedule(base(N), schedule)
             for base in (Absorbing, Uniform) for schedule in ("loglinear", "geometric")}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
WAYS = [(transition, schedule) for transition in ("absorbing", "uniform")
        for schedule in ("loglinear", "geometric")]
each_way = pytest.mark.parametrize("transition, schedule", WAYS)


def random_rows(process, n=400, seed=1):
    """x_theta (n, N), x, z, t (n,); under masks z is a mask everywhere."""
    g = torch.Generator().manual_seed(seed)
    x_theta = torch.randn(n, N, generator=g, dtype=torch.float64).softmax(-1)  # (n, N)
    x, z = (torch.randint(N, (n,), generator=g) for _ in range(2))  # (n,) each
    z = torch.full_like(z, N) if process.text_stays else z  # (n,)
    return x_theta, x, z, torch.linspace(0.01, 0.99, n, dtype=torch.float64)


# ---- the score of a mean

@each_process
def test_the_score_of_a_mean_has_the_bound_of_that_mean(process):
    """Pointwise: (6.2) with (6.3) is (0.2), and the closed forms of mdlm and udlm."""
    x_theta, x, z, t = random_rows(process)
    found = score_entropy(process, score_of_mean(process, x_theta, z, t).log(), x, z, t)  # (n,)
    padded = F.pad(x_theta, (0, process.V - N))[:, None]  # (n, 1, V)
    row = x[:, None], z[:, None], t[:, None]  # (n, 1) each
    close(found, bound(process, padded, *row)[:, 0])
    if process.text_stays:
        ce = -x_theta.gather(-1, x[:, None]).log()[:, 0]  # (n,)
        close(found, masked_bound(process, ce, z, t))
    else:
        close(found, mixture_bound(process, x_theta.log()[:, None], *row)[:, 0])


def steps_of_mean(process, s, t):
    """-> the score of random means (n, V), z (n,), times s and t (), and (0.3) of them (n, V)"""
    x_theta, _, z, _ = random_rows(process)
    s, t = torch.tensor([s, t], dtype=torch.float64)  # () each
    score = score_of_mean(process, x_theta, z, t.expand(len(z)))  # (n, V)
    padded = F.pad(x_theta, (0, process.V - N))  # (n, V)
    return score, z, s, t, reverse(process, padded, z, s.expand(len(z)), t.expand(len(z)))


@each_process
def test_the_analytic_step_of_a_mean_is_the_reverse_step(process):
    for times in ((0.0, 0.5), (0.3, 0.35), (0.6, 0.99)):
        *row, exact = steps_of_mean(process, *times)
        tolerance = 1e-8 if process.schedule == "geometric" else 1e-10
        close(analytic_probs(process, *row), exact, tolerance)


@each_process
def test_the_euler_step_is_the_reverse_step_but_for_the_square_of_its_length(process):
    gaps = []
    for length in (0.01, 0.005):
        *row, exact = steps_of_mean(process, 0.6 - length, 0.6)
        found = euler_probs(process, *row)  # (n, V)
        close(found.sum(-1), torch.ones(len(found)).double())
        gaps.append((found - exact).abs().max())
    if process is PROCESSES["Absorbing, loglinear"]:
        assert gaps[0] < 1e-12
    else:
        assert gaps[0] < 0.1 and 3.5 < gaps[0] / gaps[1] < 4.6


def test_both_steps_are_the_same_under_masks_whose_share_grows_linearly():
    """For any score, also one whose ratios fit no distribution."""
    process, z = SEDDSchedule(Absorbing(N), "loglinear"), torch.full((50,), N)  # (n,)
    score = torch.rand(50, N + 1, dtype=torch.float64)  # (n, V)
    score[:, N] = 1
    s, t = torch.tensor([0.4, 0.55], dtype=torch.float64)  # () each
    close(analytic_probs(process, score, z, s, t), euler_probs(process, score, z, s, t))


@each_process
def test_rows_of_the_analytic_step_sum_to_one_for_any_score(process):
    _, _, z, _ = random_rows(process)
    score = 3 * torch.rand(len(z), process.V, dtype=torch.float64)  # (n, V)
    score = score.scatter(-1, z[:, None], 1.0)  # (n, V)
    s, t = torch.tensor([0.4, 0.55], dtype=torch.float64)  # () each
    p = analytic_probs(process, score, z, s, t)  # (n, V)
    close(p.sum(-1), torch.ones(len(z)).double())


def test_a_free_score_under_masks_pays_for_every_sum_but_one():
    """The identity of the docstring: mdlm's bound of m / S, and S - 1 - log S more."""
    process = Absorbing(N)
    _, x, z, t = random_rows(process)
    g = torch.Generator().manual_seed(2)
    m = 2 * torch.rand(len(z), N, generator=g, dtype=torch.float64)  # (n, N)
    S, alpha = m.sum(-1), process.alpha(t)  # (n,) each
    log_s = F.pad((m * (alpha / (1 - alpha))[:, None]).log(), (0, 1))  # (n, V)
    ce = -(m / S[:, None]).gather(-1, x[:, None]).log()[:, 0]  # (n,)
    more = -process.dalpha(t) / (1 - alpha) * (S - 1 - S.log())  # (n,)
    close(score_entropy(process, log_s, x, z, t), masked_bound(process, ce, z, t) + more)
    assert (more > 0).all()


# ---- schedules

@each_process
def test_a_schedule_runs_from_text_to_noise_with_the_derivatives_that_autograd_finds(process):
    v = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)[:, None].requires_grad_()  # (25, 1)
    slope, = torch.autograd.grad(process.times(v)[0].sum(), v)  # (25, 1)
    close(process.times(v)[1].detach(), slope)
    last = {"loglinear": 1e-3, "geometric": math.exp(1e-4 - 20)}[process.schedule]
    last = 0.0 if process.text_stays else last
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)  # (2, 1)
    close(process.alpha(ends), 1 - ends * (1 - last), 1e-14)
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None].requires_grad_()  # (25, 1)
    close(process.dalpha(t.detach()), torch.autograd.grad(process.alpha(t).sum(), t)[0], 1e-9)
    for v in range(process.V):
        v = torch.full((25, 1), v)  # (25, 1)
        slope = torch.autograd.grad(process.b(t, v).sum(), t, allow_unused=True)[0]  # (25, 1)
        close(process.db(t.detach(), v), slope, 1e-9)
    noise = process.b(t, torch.arange(process.V))  # (25, V)
    total = process.alpha(t) + noise.sum(-1, keepdim=True)  # (25, 1)
    close(total, torch.ones_like(total))
    assert (process.draw_noise(0.5, torch.zeros(50, 3).long()) < process.V).all()


# ---- the bound

def exact_bound(method, denoiser, nodes=60):
    """(6.2) of each of the 27 texts: summed over z, integrated over t. -> (27,) nats"""
    z, process = world.states(method.process), method.process  # (S, L)
    at = changeable(process, z, None)  # (S, L)
    row, place = at.nonzero().T  # (n,) each
    of = torch.arange(len(row)).repeat_interleave(N)  # (n N,)
    x = torch.arange(N).repeat(len(row))  # (n N,) a term depends on one symbol of the text
    total = torch.full((len(TEXTS),), L * process.prior_kl(), dtype=torch.float64)  # (27,)
    for t, weight in zip(*quadrature(nodes)):
        t = t.expand(len(z), 1)  # (S, 1)
        log_s = method.log_score(lambda z, _, at: denoiser(z, t, at), z, t, at)  # (n, V)
        times = t[0].expand(len(x))  # (n N,)
        terms = score_entropy(process, log_s[of], x, z[at][of], times).view(-1, N)  # (n, N)
        q = world.q(process, z, t)[row]  # (n, 27)
        total += weight * (q * terms.gather(1, TEXTS[:, place].T)).sum(0)
    return total


@each_way
def test_the_bound_of_the_exact_score_is_the_exact_log_probability(transition, schedule):
    """Text by text, within the error of the quadrature."""
    method = SEDD(N, transition, schedule)
    nodes = 60 if schedule == "loglinear" else 150
    close(exact_bound(method, method.oracle(LANGUAGE), nodes), -P.log(), 2e-5)


@each_way
def test_a_network_that_outputs_zeros_knows_nothing_and_pays_log_N(transition, schedule):
    """As every network does at first."""
    method = SEDD(N, transition, schedule)
    flat = lambda z, t, at=None: torch.zeros(*z.shape, method.vocab_size).double()[at]
    exact = torch.full((27,), L * math.log(N), dtype=torch.float64)  # (27,)
    close(exact_bound(method, flat, 100), exact, 1e-5)


@each_way
def test_any_other_score_gives_more_also_one_that_fits_no_distribution(transition, schedule):
    method = SEDD(N, transition, schedule)
    exact = method.oracle(LANGUAGE)
    for wrong in (lawless(method), lambda z, t, at: exact(z, t, at) + 0.3,
                  lambda z, t, at: 0.7 * exact(z, t, at)):
        assert (P * exact_bound(method, wrong, 40)).sum() > ENTROPY + 5e-3


@each_way
def test_nelbo_is_an_unbiased_draw_of_the_bound(transition, schedule):
    method = SEDD(N, transition, schedule)
    target = exact_bound(method, lawless(method), 150)[14]  # ()
    torch.manual_seed(0)
    x = TEXTS[14].expand(3000, -1)  # (n, L)
    close_in_the_mean(lambda: method.nelbo(lawless(method), x).sum(-1), target)


@each_way
def test_loss_and_gradient_in_float32_are_near_those_of_float64_at_both_ends(transition, schedule):
    """t from 1e-6 to 1 - 1e-6, for scores so near the true ones that the loss is a small difference
    of large numbers."""
    process = SEDD(20, transition, schedule).process
    torch.manual_seed(0)
    ends = torch.logspace(-6, -0.5, 200, dtype=torch.float64)  # (200,)
    t, x = torch.cat([ends, 1 - ends]), torch.randint(20, (400,))  # (400,) each
    z = torch.where(torch.rand(400) < 0.5, x, torch.randint(20, (400,)))  # (400,)
    z = torch.full_like(x, 20) if transition == "absorbing" else z  # (400,)
    mean, clean = torch.randn(400, 20).double().softmax(-1), F.one_hot(x, 20) + 1e-9  # (400, 20)
    known = torch.where((t > 1 / 2)[:, None], mean, clean.double())  # (400, 20)
    log_s = score_of_mean(process, known, z, t).log()  # (400, V)
    log_s = log_s + 0.03 * torch.randn(400, process.V)  # (400, V)
    short = log_s.scatter(-1, z[:, None], 0.0).float().requires_grad_()  # (400, V)
    found = score_entropy(process, short, x, z, t)  # (400,)
    exact = score_entropy(process, short.double(), x, z, t)  # (400,)
    found.sum().backward()
    assert short.grad.isfinite().all()
    assert ((found - exact).abs() <= 2e-2 * exact.abs() + 1e-5).all()


@each_way
def test_the_network_is_called_at_masks_alone_and_frozen_tokens_are_not_scored(
        transition, schedule):
    torch.manual_seed(0)
    method = SEDD(N, transition, schedule)
    frozen = torch.tensor([True, False, False]).expand(400, -1)  # (400, L)

    def denoiser(z, t, at):
        free = z == N if transition == "absorbing" else torch.ones_like(at)  # (400, L)
        assert torch.equal(at, free & ~frozen)
        assert t.dtype == torch.float32 and t.shape == (400, 1)
        return lawless(method)(z, t, at)  # (n, V)
    for score in (method.loss, method.nelbo):
        nats = score(denoiser, TEXTS[5].expand(400, -1), frozen)  # (400, L)
        assert (nats[:, 0] == 0).all() and (nats[:, 1:].sum(0) > 0).all()


def test_what_is_left_at_the_end_counts_for_every_token_that_is_scored(monkeypatch):
    """KL( alpha x + noise || noise ), written out for 5 symbols and for 50,000; masks leave
    nothing."""
    for n in (5, 50_000):
        p = torch.full((n,), (1 - 1e-3) / n, dtype=torch.float64)  # (n,)
        p[3] += 1e-3
        left = float((p * (p * n).log()).sum())
        found = SEDDSchedule(Uniform(n), "loglinear").prior_kl()
        assert found == pytest.approx(left, rel=1e-6)
    assert 0.0025 < found < 0.0035
    assert SEDDSchedule(Absorbing(n), "loglinear").prior_kl() == 0
    assert SEDDSchedule(Uniform(n), "geometric").prior_kl() < 1e-8
    method, nats = SEDD(N, "uniform"), []
    frozen = torch.tensor([True, False, False]).expand(5, -1)  # (5, L)
    for _ in range(2):
        torch.manual_seed(0)
        nats.append(method.nelbo(lawless(method), TEXTS[:5], frozen))  # (5, L)
        monkeypatch.setattr(SEDDSchedule, "prior_kl", lambda self: 7.0)
    close(nats[1] - nats[0], torch.tensor([0.0, 7, 7]).double().expand(5, -1), 1e-5)
