"""The theory, one sentence a test, on the enumerated world (tests/world.py) where no draw is needed, or with its standard error."""
import math

import pytest
import torch
import world
from world import L, N, P, TEXTS

from diffusion import ancestral, bound, categorical, corrupt, posterior_x0, probabilities, reverse, stratified
from masked import Absorbing, MDLM, masked_bound
from methods import METHODS, make_method
from uniform import GIDD, Hybrid, Uniform, jump_weight, mixture_bound

PROCESSES = {"mask": Absorbing(N), "mask, eps": Absorbing(N, eps=1e-3), "uniform": Uniform(N), "hybrid .1": Hybrid(N, 0.1),
             "hybrid .7": Hybrid(N, 0.7)}
DIFFUSIONS = ["mdlm", "udlm", "gidd"]
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def times(n, low=0.02, high=0.98):
    return torch.linspace(low, high, n, dtype=torch.float64)[:, None]                                   # (n, 1)


def close(ours, exact, tolerance=1e-10):
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=tolerance)


@each_process
def test_noise_and_signal_share_all_probability(process):
    t, v = times(9), torch.arange(process.V)
    close(process.alpha(t)[:, 0] + process.b(t, v).sum(-1), torch.ones(9, dtype=torch.float64))


@each_process
def test_dalpha_and_db_are_the_derivatives_that_autograd_finds(process):
    t = times(9).requires_grad_()
    close(process.dalpha(t.detach()), torch.autograd.grad(process.alpha(t).sum(), t, retain_graph=True)[0])
    for v in range(process.V):
        b = process.b(t, torch.full((9, 1), v))
        close(process.db(t.detach(), torch.full((9, 1), v)), torch.autograd.grad(b.sum(), t)[0] if b.requires_grad else 0 * b)


@each_process
def test_corrupt_draws_from_the_forward_marginal(process):
    """Frequencies of every symbol within 5 standard errors of alpha x + b, at three times and two clean symbols."""
    torch.manual_seed(0)
    for t in (0.1, 0.5, 0.95):
        for x in (0, 2):
            t_, n = torch.full((40_000, 1), t), 40_000
            z = corrupt(process, torch.full((n, 1), x), t_)[:, 0]
            exact = process.b(t_[:1], torch.arange(process.V))[0].double()
            exact[x] += float(process.alpha(t_[0]))
            seen = torch.bincount(z, minlength=process.V) / n
            assert ((seen - exact).abs() <= 5 * (exact * (1 - exact) / n).sqrt() + 1e-12).all()


def test_frozen_tokens_are_never_noised():
    x, frozen = torch.arange(6).expand(50, -1) % N, torch.tensor([True, False] * 3).expand(50, -1)
    for process in PROCESSES.values():
        z = corrupt(process, x, torch.full((50, 1), 0.999), frozen)
        assert (z[frozen] == x[frozen]).all() and (z[~frozen] != x[~frozen]).any()


def random_case(process, n=64, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(N, (n, L), generator=g)
    t = times(n)
    z = torch.randint(process.V, (n, L), generator=g)
    if isinstance(process, Absorbing):
        z = torch.where(z < N, x, z)                                    # text under masking is right text
    logits = torch.randn(n, L, N, generator=g, dtype=torch.float64)
    return x, z, t, logits.log_softmax(-1)


def padded(log_p, process):
    return torch.nn.functional.pad(log_p.exp(), (0, process.V - N))


@each_process
def test_the_closed_forms_are_the_one_bound(process):
    x, z, t, log_p = random_case(process)
    if isinstance(process, Absorbing):
        x_theta = torch.where((z < N)[..., None], torch.nn.functional.one_hot(z, N + 1).double(), padded(log_p, process))
        ours = masked_bound(process, -log_p.gather(-1, x[..., None])[..., 0], z, t)
    else:
        x_theta, ours = padded(log_p, process), mixture_bound(process, log_p, x, z, t)
    close(ours, bound(process, x_theta, x, z, t))


@pytest.mark.parametrize("process", [Uniform(50), Hybrid(50, 0.1)], ids=["uniform", "hybrid"])
def test_the_closed_form_is_stable_in_float32_at_both_ends_of_time(process):
    """Against float64, over times from 1e-6 to 1 - 1e-6: the naive form is off by percents there, and the bound by 0.1 nats."""
    torch.manual_seed(0)
    ends = torch.logspace(-6, -0.5, 40, dtype=torch.float64)
    t = torch.cat([ends, 1 - ends])[:, None].float()
    x, z = torch.randint(50, (80, 40)), torch.randint(process.V, (80, 40))
    z = torch.where(torch.rand(80, 40) < 0.5, x, z)
    log_p = torch.randn(80, 40, 50).log_softmax(-1)
    exact = mixture_bound(process, log_p.double(), x, z, t.double())
    error = (mixture_bound(process, log_p, x, z, t).double() - exact).abs()
    assert (error <= 1e-3 * exact.abs() + 1e-4).all()


@each_process
def test_the_reverse_step_is_bayes_rule(process):
    """With x known, (3) is q(z_t | z_s) q(z_s | x) / q(z_t | x), the step written out as a matrix."""
    x, z, t, _ = random_case(process)
    s, V = t * 0.6, process.V
    marginal = lambda u: process.alpha(u)[..., None] * torch.eye(V, dtype=torch.float64)[:N] + process.b(u[..., None], torch.arange(V))
    ts = process.alpha(t) / process.alpha(s)
    step = ts[..., None] * torch.eye(V, dtype=torch.float64) + (process.b(t[..., None], torch.arange(V)) -
                                                                 ts[..., None] * process.b(s[..., None], torch.arange(V)))
    joint = marginal(s)[torch.arange(len(x))[:, None], x] * step.transpose(1, 2)[torch.arange(len(x))[:, None], z]   # (n, L, V)
    p = reverse(process, padded(torch.nn.functional.one_hot(x, N).double().log(), process), z, s, t)
    close(p.sum(-1), torch.ones(len(x), L, dtype=torch.float64))
    possible = joint.sum(-1, keepdim=True) > 0
    close(torch.where(possible, p, 0.), torch.where(possible, joint / joint.sum(-1, keepdim=True), 0.))


def exact_bound(process, denoiser, closed=True, nodes=1200):
    """E over t and z of (2) summed over the text, for each of the 27 texts: a sum over states, Gauss-Legendre in t. -> (27,)

    t = sin^2(pi v / 2) takes the square roots out of the hybrid's ends.
    """
    import numpy
    v, w = (torch.tensor(a) for a in numpy.polynomial.legendre.leggauss(nodes))
    v, w, z = (v + 1) / 2, w / 2, world.states(process)
    total = torch.zeros(len(TEXTS), dtype=torch.float64)
    for v_i, w_i in zip(v, w):
        t = torch.sin(math.pi / 2 * v_i).square().expand(len(z), 1)                                     # (S, 1)
        prob = world.q(process, z, t)                                                                   # (S, 27)
        log_p = denoiser(z, t)                                                                          # (S, L, N)
        speed = math.pi / 2 * torch.sin(math.pi * v_i)                                                  # dt / dv
        for i, x in enumerate(TEXTS):
            at = prob[:, i] > 0
            x_i = x.expand(int(at.sum()), -1)
            if isinstance(process, Absorbing):
                term = masked_bound(process, -log_p[at].gather(-1, x_i[..., None])[..., 0], z[at], t[at])
            else:
                term = mixture_bound(process, log_p[at], x_i, z[at], t[at])
            total[i] += w_i * speed * (prob[at, i] * term.sum(-1)).sum()
    return total


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_bound_of_the_oracle_is_the_entropy(name):
    """Tight: averaged over texts, the bound is the entropy when the denoiser is exact; for masks it is -log p(x) text by text."""
    process = make_method(name, N).process
    found = exact_bound(process, world.oracle(process), nodes=200)
    assert abs((P * found).sum() - -(P * P.log()).sum()) < 2e-4


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_any_other_denoiser_gives_more(name):
    process = make_method(name, N).process
    exact = world.oracle(process)
    for wrong in (world.vandal, lambda z, t: 0.9 * exact(z, t), lambda z, t: exact(z, t).exp().add(0.05).log()):
        found = exact_bound(process, lambda z, t: wrong(z, t).log_softmax(-1), nodes=60)
        assert (P * found).sum() > -(P * P.log()).sum() + 1e-3


def test_the_posterior_in_place_of_the_leave_one_out_law_is_not_tight():
    """Under uniform noise p(x | z) is the wrong thing to plug into the bound, though it knows more."""
    process = Uniform(N)
    wrong, right = (exact_bound(process, world.oracle(process, loo), nodes=60) for loo in (False, True))
    assert (P * (wrong - right)).sum() > 0.1


@each_process
def test_posterior_x0_puts_the_own_evidence_back(process):
    z, t = world.states(process), torch.full((process.V ** L, 1), 0.37, dtype=torch.float64)
    possible = (world.q(process, z, t) @ P) > 0
    law = posterior_x0(process, world.oracle(process)(z, t).exp(), z, t)
    close(law[possible], world.oracle(process, leave_one_out=False)(z, t).exp()[possible])


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_nelbo_is_an_unbiased_draw_of_the_bound(name):
    """With a denoiser that is wrong and watches the clock: within 4.5 standard errors of the enumerated bound, each under 1 %."""
    method, texts = make_method(name, N), torch.tensor([1, 14, 25])
    exact = exact_bound(method.process, world.vandal, nodes=200)[texts]
    torch.manual_seed(0)
    for i, target in zip(texts, exact):
        draws = torch.cat([method.nelbo(world.vandal, TEXTS[i].expand(20_000, -1)).sum(-1) for _ in range(20)])
        error = draws.std() / len(draws) ** 0.5
        assert error < 0.01 * target and abs(draws.mean() - target) < 4.5 * error, (name, draws.mean(), target, error)


def test_the_bound_weighting_of_a_loss_is_the_bound_too():
    torch.manual_seed(0)
    for cls in (MDLM, GIDD):
        method = cls(N, weighting="bound")
        target = exact_bound(method.process, world.vandal, nodes=200)[14]
        draws = torch.cat([method.loss(world.vandal, TEXTS[14].expand(20_000, -1)).sum(-1) for _ in range(20)])
        assert abs(draws.mean() - target) < 0.03 * target


@pytest.mark.parametrize("name", DIFFUSIONS + ["ar"])
def test_frozen_tokens_are_never_scored_and_the_rest_bounds_the_conditional(name):
    """Frozen tokens have loss 0; through the oracle of the masked model the others give -log p(x | given)."""
    method = make_method(name, N)
    frozen = torch.tensor([True, False, False]).expand(4_000, -1)
    torch.manual_seed(0)
    for score in (method.loss, method.nelbo):
        nats = score(world.vandal if name != "ar" else lambda z, t, at: torch.zeros(int(at.sum()), N), TEXTS[5].expand(4_000, -1), frozen)
        assert (nats[:, 0] == 0).all() and (nats[:, 1:].abs().sum() > 0)
    if name == "mdlm":
        draws = torch.cat([method.nelbo(world.oracle(method.process), x.expand(400, -1), frozen[:400]).sum(-1)[None] for x in TEXTS])
        first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(N)])[TEXTS[:, 0]]
        error = (P ** 2 * draws.var(-1) / 400).sum() ** 0.5
        assert abs((P * draws.mean(-1)).sum() - -(P * (P / first).log()).sum()) < 4.5 * error
