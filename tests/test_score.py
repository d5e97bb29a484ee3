"""SEDD: a score made of a mean has the bounds and the steps of the other chapters; a free one bounds all the same."""
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
import world
from test_theory import close, close_in_the_mean
from world import L, N, P, TEXTS, numbers, surprise

from data import BadInput
from diffusion import bound, reverse
from masked import Absorbing, masked_bound
from methods import make_method, make_sampler
from score import SEDD, Clock, analytic, analytic_law, draw, euler, euler_law, score_entropy, score_of_mean
from uniform import Uniform, mixture_bound

ENTROPY = -(P * P.log()).sum()
PROCESSES = {f"{base.__name__}, {schedule}": Clock(base(N), schedule)
             for base in (Absorbing, Uniform) for schedule in ("loglinear", "geometric")}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
WAYS = [(transition, schedule) for transition in ("absorbing", "uniform") for schedule in ("loglinear", "geometric")]
each_way = pytest.mark.parametrize("transition, schedule", WAYS)


def masks(process):
    return process.V > process.n_tokens


def random_rows(process, n=400, seed=1):
    """x_theta (n, N), x, z, t (n,); under masks z is a mask everywhere."""
    g = torch.Generator().manual_seed(seed)
    x_theta = torch.randn(n, N, generator=g, dtype=torch.float64).softmax(-1)
    x, z = torch.randint(N, (n,), generator=g), torch.randint(N, (n,), generator=g)
    return x_theta, x, torch.full_like(z, N) if masks(process) else z, torch.linspace(0.01, 0.99, n).double()


# ---- a score made of a mean

@each_process
def test_the_score_of_a_mean_has_the_bound_of_that_mean(process):
    """Pointwise: (32) with (33) is (2), and the closed forms of mdlm and udlm."""
    x_theta, x, z, t = random_rows(process)
    found = score_entropy(process, score_of_mean(process, x_theta, z, t).log(), x, z, t)
    padded = F.pad(x_theta, (0, process.V - N))
    close(found, bound(process, padded[:, None], x[:, None], z[:, None], t[:, None])[:, 0])
    if masks(process):
        close(found, masked_bound(process, -x_theta.gather(-1, x[:, None]).log()[:, 0], z, t))
    else:
        close(found, mixture_bound(process, x_theta.log()[:, None], x[:, None], z[:, None], t[:, None])[:, 0])


@each_process
def test_the_analytic_step_of_a_mean_is_the_reverse_step(process):
    x_theta, _, z, _ = random_rows(process)
    for s, t in ((0.0, 0.5), (0.3, 0.35), (0.6, 0.99)):
        s, t = torch.tensor([s, t], dtype=torch.float64)
        score = score_of_mean(process, x_theta, z, t.expand(len(z)))
        theirs = reverse(process, F.pad(x_theta, (0, process.V - N)), z, s.expand(len(z)), t.expand(len(z)))
        close(analytic_law(process, score, z, s, t), theirs, 1e-8 if process.schedule == "geometric" else 1e-10)


@each_process
def test_the_euler_step_is_the_reverse_step_but_for_the_square_of_its_length(process):
    x_theta, _, z, _ = random_rows(process)
    gaps = []
    for step in (0.01, 0.005):
        s, t = torch.tensor([0.6 - step, 0.6], dtype=torch.float64)
        score = score_of_mean(process, x_theta, z, t.expand(len(z)))
        exact = reverse(process, F.pad(x_theta, (0, process.V - N)), z, s.expand(len(z)), t.expand(len(z)))
        found = euler_law(process, score, z, s, t)
        close(found.sum(-1), torch.ones(len(z)).double())
        gaps.append((found - exact).abs().max())
    same = process is PROCESSES["Absorbing, loglinear"]
    assert gaps[0] < 1e-12 if same else gaps[0] < 0.1 and 3.5 < gaps[0] / gaps[1] < 4.6


def test_under_masks_whose_share_grows_evenly_both_steps_are_the_same():
    """For any score, also one whose ratios fit no law."""
    process, z = Clock(Absorbing(N), "loglinear"), torch.full((50,), N)
    score = torch.rand(50, N + 1, dtype=torch.float64)
    score[:, N] = 1
    s, t = torch.tensor([0.4, 0.55], dtype=torch.float64)
    close(analytic_law(process, score, z, s, t), euler_law(process, score, z, s, t))


@each_process
def test_rows_of_the_analytic_step_sum_to_one_for_any_score(process):
    _, _, z, _ = random_rows(process)
    score = torch.rand(len(z), process.V, dtype=torch.float64).scatter_(-1, z[:, None], 1.0) * 3
    score = score.scatter(-1, z[:, None], 1.0)
    s, t = torch.tensor([0.4, 0.55], dtype=torch.float64)
    law = analytic_law(process, score, z, s, t)
    close(law.sum(-1), torch.ones(len(z)).double())


def test_a_free_score_under_masks_pays_for_every_sum_but_one():
    """The identity of the docstring: mdlm's bound of m / S, and S - 1 - log S more."""
    process = Absorbing(N)
    _, x, z, t = random_rows(process)
    m = torch.rand(len(z), N, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2
    S, alpha = m.sum(-1), process.alpha(t)
    log_s = F.pad((m * (alpha / (1 - alpha))[:, None]).log(), (0, 1))
    mean = masked_bound(process, -(m / S[:, None]).gather(-1, x[:, None]).log()[:, 0], z, t)
    more = -process.dalpha(t) / (1 - alpha) * (S - 1 - S.log())
    close(score_entropy(process, log_s, x, z, t), mean + more)
    assert (more > 0).all()


# ---- the clocks

@each_process
def test_a_clock_runs_from_text_to_noise_and_its_derivatives_are_those_that_autograd_finds(process):
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    last = 0 if process.mask else {"loglinear": 1e-3, "geometric": math.exp(1e-4 - 20)}[process.schedule]
    v = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)[:, None].requires_grad_()
    close(process.times(v)[1].detach(), torch.autograd.grad(process.times(v)[0].sum(), v)[0])
    close(process.alpha(ends), torch.tensor([[1.0], [last]], dtype=torch.float64), 1e-14)
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None].requires_grad_()
    close(process.dalpha(t.detach()), torch.autograd.grad(process.alpha(t).sum(), t)[0], 1e-9)
    for v in range(process.V):
        v = torch.full((25, 1), v)
        slope = torch.autograd.grad(process.b(t, v).sum(), t, allow_unused=True)[0]
        close(process.db(t.detach(), v), slope, 1e-9)
    total = process.alpha(t) + process.b(t, torch.arange(process.V)).sum(-1, keepdim=True)
    close(total, torch.ones_like(total))
    assert (process.draw_noise(0.5, torch.zeros(50, 3).long()) < process.V).all()


# ---- the bound

def exact_denoiser(method):
    """The oracle of the enumerated world, in the words of sedd."""
    mean = world.oracle(method.process)
    def denoiser(z, t, at=None):
        logits = method.logits_of(mean(z, t).exp(), z, t.double())
        return logits if at is None else logits[at]
    return denoiser


def lawless(method):
    """Log-scores that depend on all there is and belong to no law."""
    def denoiser(z, t, at=None):
        place = torch.arange(z.shape[1])
        seen = 1.3 * z + 0.7 * z.roll(1, -1) + 2 * place + 3 * t.double()
        logits = torch.sin(seen[..., None] + torch.arange(method.vocab_size))
        return logits if at is None else logits[at]
    return denoiser


def exact_bound(method, denoiser, nodes=60):
    """(32) of each of the 27 texts: summed over z, integrated over t = sin^2(pi v / 2) by Gauss-Legendre. -> (27,)"""
    v, w = (torch.tensor(a) for a in numpy.polynomial.legendre.leggauss(nodes))
    z, total, process = world.states(method.process), torch.zeros(len(TEXTS)).double(), method.process
    for v_i, w_i in zip((v + 1) / 2, w / 2):
        t = torch.sin(math.pi / 2 * v_i).square().expand(len(z), 1)                                     # (S, 1)
        q, at = world.q(process, z, t), z == N if masks(process) else torch.ones_like(z).bool()         # (S, 27)
        log_s = method.log_score(lambda z, _, at: denoiser(z, t, at), z, t, at)                         # (n, V)
        row, place = at.nonzero().T                                                                     # (n,) each
        x = TEXTS[:, place].T                                                                           # (n, 27)
        terms = score_entropy(process, log_s.repeat_interleave(27, 0), x.flatten(), z[at].repeat_interleave(27),
                              t.expand(z.shape)[at].repeat_interleave(27)).view(-1, 27)                 # (n, 27)
        total += w_i * math.pi / 2 * torch.sin(math.pi * v_i) * (q[row] * terms).sum(0)
    return total + L * method.process.prior_kl()


@each_way
def test_the_bound_of_the_exact_score_is_the_exact_log_probability(transition, schedule):
    method = SEDD(N, transition, schedule)
    nodes = 60 if schedule == "loglinear" else 150
    close(exact_bound(method, exact_denoiser(method), nodes), -P.log(), 2e-5)


@each_way
def test_a_network_that_says_zero_knows_nothing_and_pays_log_N(transition, schedule):
    """As every network does at first. Within the quadrature's error."""
    method = SEDD(N, transition, schedule)
    flat = lambda z, t, at=None: torch.zeros(*z.shape, method.vocab_size).double()[at]
    close(exact_bound(method, flat, 100), torch.full((27,), L * math.log(N), dtype=torch.float64), 1e-5)


@each_way
def test_any_other_score_gives_more_also_one_that_fits_no_law(transition, schedule):
    method = SEDD(N, transition, schedule)
    exact = exact_denoiser(method)
    for wrong in (lawless(method), lambda z, t, at: exact(z, t, at) + 0.3, lambda z, t, at: 0.7 * exact(z, t, at)):
        assert (P * exact_bound(method, wrong, 40)).sum() > ENTROPY + 5e-3


@each_way
def test_nelbo_is_an_unbiased_draw_of_the_bound(transition, schedule):
    method = SEDD(N, transition, schedule)
    target = exact_bound(method, lawless(method), 150)
    torch.manual_seed(0)
    x = TEXTS[14].expand(20_000, -1)
    close_in_the_mean(torch.cat([method.nelbo(lawless(method), x).sum(-1) for _ in range(3)]), target[14])


@each_way
def test_loss_and_gradient_are_finite_in_float32_and_near_those_of_float64_at_both_ends_of_time(transition, schedule):
    """t from 1e-6 to 1 - 1e-6, for scores so near the truth that the loss is a small difference of large numbers."""
    process = SEDD(20, transition, schedule).process
    torch.manual_seed(0)
    ends = torch.logspace(-6, -0.5, 200, dtype=torch.float64)
    t = torch.cat([ends, 1 - ends])
    x = torch.randint(20, (400,))
    z = torch.where(torch.rand(400) < 0.5, x, torch.randint(20, (400,)))
    z = torch.full_like(x, 20) if transition == "absorbing" else z
    mean = torch.randn(400, 20).double().softmax(-1)
    known = torch.where((t > 1 / 2)[:, None], mean, F.one_hot(x, 20).double() + 1e-9)
    log_s = score_of_mean(process, known, z, t).log() + 0.03 * torch.randn(400, process.V)
    log_s = log_s.scatter(-1, z[:, None], 0.0)
    short = log_s.float().requires_grad_()
    found, exact = score_entropy(process, short, x, z, t), score_entropy(process, short.double(), x, z, t)
    found.sum().backward()
    assert short.grad.isfinite().all()
    assert ((found - exact).abs() <= 2e-2 * exact.abs() + 1e-5).all()


def test_the_network_is_asked_at_the_masks_alone_and_frozen_tokens_are_not_scored():
    torch.manual_seed(0)
    for transition, schedule in WAYS:
        method = SEDD(N, transition, schedule)
        frozen = torch.tensor([True, False, False]).expand(400, -1)
        def denoiser(z, t, at):
            assert torch.equal(at, (z == N if transition == "absorbing" else torch.ones_like(at)) & ~frozen)
            assert t.dtype == torch.float32 and t.shape == (400, 1)
            return lawless(method)(z, t, at)
        for draw in (method.loss, method.nelbo):
            nats = draw(denoiser, TEXTS[5].expand(400, -1), frozen)
            assert (nats[:, 0] == 0).all() and (nats[:, 1:].sum(0) > 0).all()


def test_what_is_left_at_the_end_is_charged_to_every_token_that_is_scored(monkeypatch):
    """KL( alpha x + noise || noise ), written out for 5 symbols and for 50,000; masks leave nothing."""
    for n in (5, 50_000):
        law = torch.full((n,), (1 - 1e-3) / n, dtype=torch.float64)
        law[3] += 1e-3
        left = float((law * (law * n).log()).sum())
        assert Clock(Uniform(n), "loglinear").prior_kl() == pytest.approx(left, rel=1e-6)
    assert 0.0025 < Clock(Uniform(50_000), "loglinear").prior_kl() < 0.0035
    assert Clock(Absorbing(n), "loglinear").prior_kl() == 0 and Clock(Uniform(n), "geometric").prior_kl() < 1e-8
    method, frozen = SEDD(N, "uniform"), torch.tensor([True, False, False]).expand(5, -1)
    torch.manual_seed(0)
    before = method.nelbo(lawless(method), TEXTS[:5], frozen)
    monkeypatch.setattr(Clock, "prior_kl", lambda self: 7.0)
    torch.manual_seed(0)
    more = method.nelbo(lawless(method), TEXTS[:5], frozen) - before
    close(more, torch.tensor([0.0, 7, 7]).double().expand(5, -1), 1e-5)


# ---- the samplers

@pytest.mark.parametrize("sampler, step_law", [(analytic, analytic_law), (euler, euler_law)])
@pytest.mark.parametrize("transition", ["absorbing", "uniform"])
def test_a_step_draws_its_law_where_entries_below_zero_count_for_nothing(transition, sampler, step_law):
    """The first of two steps, 100,000 draws by chi-square. The score is five times too large, so that both laws take
    more from a token than there is."""
    method, n = SEDD(N, transition), 100_000
    process = method.process
    denoiser = lambda z, t, at: lawless(method)(z, t, at) + math.log(5)
    torch.manual_seed(0)
    V, z = process.V, torch.tensor([[0, 1, 2]]) if transition == "uniform" else torch.tensor([[N, 1, N]])
    t, s = torch.linspace(1.0 if transition == "uniform" else 0.999, 0, 3, dtype=torch.float64)[:2]
    at = z == N if transition == "absorbing" else torch.ones_like(z).bool()
    score = method.log_score(denoiser, z, t.expand(1, 1), at).double().exp()
    p = F.one_hot(z[0], V).double()
    p[at[0]] = step_law(process, score, z[at], s, t)
    assert p.min() < -0.05
    p = p.clamp(min=0) / p.clamp(min=0).sum(-1, keepdim=True)
    law = torch.einsum("i,j,k->ijk", *p).flatten()
    walk = method.sample(denoiser, z.expand(n, -1), torch.zeros(n, L).bool(), 2, sampler)
    assert surprise(numbers(next(walk), V), law) < 4.5


def test_whether_a_token_jumps_and_where_to_have_the_law_asked_for_and_temperature_changes_where_to_alone():
    """The share that stays is 0.4 at any temperature; at 0 all that jump go to the likeliest."""
    p = torch.tensor([[0.4, 0.1, -0.2, 0.5]], dtype=torch.float64).expand(50_000, -1)
    z = torch.zeros(50_000, dtype=torch.long)
    torch.manual_seed(0)
    from diffusion import probabilities
    assert surprise(draw(p, z, probabilities), torch.tensor([0.4, 0.1, 0.0, 0.5]).double()) < 4.5
    cold = draw(p, z, lambda logits: probabilities(logits, 0))
    assert surprise(cold, torch.tensor([0.4, 0.0, 0.0, 0.6]).double()) < 4.5


def looked_up(method, denoiser):
    """The same denoiser on many texts at one time, where each of the few there are is computed once."""
    states, V = world.states(method.process), method.vocab_size
    return lambda z, t, at: denoiser(states, t[:1].expand(len(states), 1).double())[numbers(z, V)][at]


@pytest.mark.parametrize("transition, schedule, sampler, steps", [
    ("absorbing", "loglinear", analytic, 64), ("uniform", "loglinear", analytic, 64),
    ("uniform", "loglinear", euler, 128), ("absorbing", "geometric", euler, 96)])
def test_many_steps_through_the_oracle_draw_the_data(transition, schedule, sampler, steps):
    """Total variation distance to the 27 probabilities, against that of as many exact draws; steps cost 0.015."""
    torch.manual_seed(0)
    method, n = SEDD(N, transition, schedule), 10_000
    distance = lambda draws: (torch.bincount(draws, minlength=27) / n - P).abs().sum() / 2
    chance = torch.stack([distance(torch.multinomial(P, n, replacement=True)) for _ in range(30)])
    exact, nothing = looked_up(method, exact_denoiser(method)), torch.zeros(n, L, dtype=torch.bool)
    far, near = (distance(numbers([*method.sample(exact, method.prior((n, L)), nothing, k, sampler)][-1], N))
                 for k in (1, steps))
    assert far > 0.05 and near < chance.mean() + 4 * chance.std() + 0.015, (far, near, chance.mean(), chance.std())


@each_way
@pytest.mark.parametrize("sampler", [analytic, euler], ids=["analytic", "euler"])
def test_given_tokens_survive_and_the_end_is_text_whatever_the_score(transition, schedule, sampler):
    torch.manual_seed(0)
    method, given = SEDD(5, transition, schedule), torch.randint(5, (20, 12))
    frozen = torch.rand(20, 12) < 0.4
    frozen[0], frozen[1] = True, False
    wild = lambda z, t, at: 6 * torch.randn(*z.shape, method.vocab_size)[at]
    for steps in (1, 3, 20):
        z = torch.where(frozen, given, method.prior(given.shape))
        for z in method.sample(wild, z, frozen, steps, sampler):
            assert (z[frozen] == given[frozen]).all()
        assert (z < 5).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="--transition gaussian is for d3pm"):
        SEDD(5, "gaussian")
    for sampler, method, says in (("psi", "sedd", "sedd has a walk of its own: --sampler ancestral or analytic"),
                                  ("euler", "mdlm", "which sedd has: mdlm predicts a mean"),
                                  ("psi", "d3pm", "d3pm has a walk of its own: --sampler ancestral, no"),
                                  ("analytic", "d3pm", "d3pm has a walk of its own: --sampler ancestral, no")):
        with pytest.raises(BadInput, match=says):
            make_sampler(sampler, method)
    for method in ("sedd", "d3pm"):
        for flags in (dict(tail="greedy"), dict(tail="gibbs"), dict(grid="cosine")):
            with pytest.raises(BadInput, match="no --tail or --grid"):
                make_sampler("ancestral", method, **flags)
    for name, walk in (("euler", euler), ("analytic", analytic), ("ancestral", analytic)):
        assert make_sampler(name, "sedd").args == walk.args
    assert make_method("sedd", 5).vocab_size == 6
