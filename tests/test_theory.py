"""The theory, one sentence a test, on the world of tests/world.py: exact sums, or draws with their standard errors."""
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
import world
from world import L, N, P, TEXTS

from diffusion import bound, corrupt, posterior_x0, reverse
from masked import Absorbing, MDLM, masked_bound
from methods import make_method
from uniform import GIDD, Hybrid, Uniform, mixture_bound

PROCESSES = {"mask": Absorbing(N), "mask, eps": Absorbing(N, eps=1e-3), "uniform": Uniform(N),
             "hybrid .1": Hybrid(N, 0.1), "hybrid .7": Hybrid(N, 0.7)}
DIFFUSIONS = ["mdlm", "udlm", "gidd"]
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def times(n, low=0.02, high=0.98):
    return torch.linspace(low, high, n, dtype=torch.float64)[:, None]                                   # (n, 1)


def close(ours, exact, tolerance=1e-10):
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=tolerance)


def close_in_the_mean(draws, exact):
    """Within 4.5 standard errors, and one of these is less than 1 %."""
    error = draws.std() / len(draws) ** 0.5
    assert error < 0.01 * exact and abs(draws.mean() - exact) < 4.5 * error, (draws.mean(), exact, error)


@each_process
def test_noise_and_signal_share_all_probability(process):
    t, v = times(9), torch.arange(process.V)
    close(process.alpha(t)[:, 0] + process.b(t, v).sum(-1), torch.ones(9, dtype=torch.float64))


@each_process
def test_dalpha_and_db_are_the_derivatives_that_autograd_finds(process):
    t = times(9).requires_grad_()
    close(process.dalpha(t.detach()), torch.autograd.grad(process.alpha(t).sum(), t, retain_graph=True)[0])
    for v in range(process.V):
        v = torch.full((9, 1), v)
        close(process.db(t.detach(), v), torch.autograd.grad(process.b(t, v).sum(), t)[0])


@each_process
def test_corrupt_draws_from_the_forward_marginal(process):
    """Frequencies of every symbol within 5 standard errors of alpha x + b, at three times and two clean symbols."""
    torch.manual_seed(0)
    n = 40_000
    for t in torch.tensor([0.1, 0.5, 0.95]).double():
        for x in (0, 2):
            z = corrupt(process, torch.full((n, 1), x), t.expand(n, 1))[:, 0]                           # (n,)
            exact = process.b(t, torch.arange(process.V))                                               # (V,)
            exact[x] += process.alpha(t)
            seen = torch.bincount(z, minlength=process.V) / n                                           # (V,)
            assert ((seen - exact).abs() <= 5 * (exact * (1 - exact) / n).sqrt()).all()


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
    return F.pad(log_p.exp(), (0, process.V - N))                                                       # (n, L, V)


@each_process
def test_the_closed_forms_are_the_one_bound(process):
    x, z, t, log_p = random_case(process)
    if isinstance(process, Absorbing):
        carried_over = F.one_hot(z, N + 1).double()                                                     # (n, L, V)
        x_theta = torch.where((z < N)[..., None], carried_over, padded(log_p, process))                 # (n, L, V)
        ours = masked_bound(process, -log_p.gather(-1, x[..., None])[..., 0], z, t)
    else:
        x_theta, ours = padded(log_p, process), mixture_bound(process, log_p, x, z, t)
    close(ours, bound(process, x_theta, x, z, t))


@pytest.mark.parametrize("process", [Uniform(50), Hybrid(50, 0.1)], ids=["uniform", "hybrid"])
def test_the_closed_form_is_stable_in_float32_at_both_ends_of_time(process):
    """Against float64, for t from 1e-6 to 1 - 1e-6, where (2) as it stands is off by 100 times what is allowed."""
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
    s, v, row = t * 0.6, torch.arange(process.V), torch.arange(len(x))[:, None]
    keep = torch.eye(process.V, dtype=torch.float64)                                                    # (V, V)
    alpha_s, b_s, b_t = process.alpha(s)[..., None], process.b(s[..., None], v), process.b(t[..., None], v)
    alpha_ts = process.alpha(t)[..., None] / alpha_s                                                    # (n, 1, 1)
    marginal = alpha_s * keep[:N] + b_s                                                                 # (n, N, V)
    step = alpha_ts * keep + b_t - alpha_ts * b_s                                                       # (n, V, V)
    joint = marginal[row, x] * step.transpose(1, 2)[row, z]                                             # (n, L, V)
    p = reverse(process, F.one_hot(x, process.V).double(), z, s, t)                                     # (n, L, V)
    close(p.sum(-1), torch.ones(len(x), L, dtype=torch.float64))
    close(p, joint / joint.sum(-1, keepdim=True))


def exact_bound(process, denoiser, nodes):
    """The bound of each of the 27 texts: (2) summed over z, and integrated over t by Gauss-Legendre. -> (27,) nats

    t = sin^2(pi v / 2) takes the square roots out of the hybrid's ends.
    """
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
def test_the_bound_of_the_oracle_is_the_exact_log_probability(name):
    """Tight, and text by text; what is left is the quadrature's own error, 1e-5 for the hybrid."""
    process = make_method(name, N).process
    close(exact_bound(process, world.oracle(process), nodes=200), -P.log(), 2e-5)


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_any_other_denoiser_gives_more(name):
    process = make_method(name, N).process
    exact, entropy = world.oracle(process), -(P * P.log()).sum()
    for wrong in (world.vandal, lambda z, t: 0.9 * exact(z, t), lambda z, t: exact(z, t).exp().add(0.05).log()):
        found = exact_bound(process, lambda z, t: wrong(z, t).log_softmax(-1), nodes=60)
        assert (P * found).sum() > entropy + 1e-3        # with so few nodes the quadrature is off by 1e-4


def test_the_posterior_in_place_of_the_leave_one_out_law_is_not_tight():
    """Under uniform noise p(x | z) is the wrong thing to plug into the bound, though it knows more."""
    process = Uniform(N)
    wrong, right = (exact_bound(process, world.oracle(process, loo), nodes=60) for loo in (False, True))
    assert (P * (wrong - right)).sum() > 0.1


@each_process
def test_posterior_x0_puts_the_own_evidence_back(process):
    z, t = world.states(process), torch.full((process.V ** L, 1), 0.37, dtype=torch.float64)
    law = posterior_x0(process, world.oracle(process)(z, t).exp(), z, t)                                # (S, L, N)
    close(law, world.oracle(process, leave_one_out=False)(z, t).exp())


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_nelbo_is_an_unbiased_draw_of_the_bound(name):
    """With a denoiser that is wrong and watches the clock, against the enumerated bound."""
    method, texts = make_method(name, N), torch.tensor([1, 14, 25])
    exact = exact_bound(method.process, world.vandal, nodes=200)[texts]
    torch.manual_seed(0)
    for i, target in zip(texts, exact):
        x = TEXTS[i].expand(20_000, -1)
        close_in_the_mean(torch.cat([method.nelbo(world.vandal, x).sum(-1) for _ in range(20)]), target)


def test_the_bound_weighting_of_a_loss_is_the_bound_too():
    torch.manual_seed(0)
    for cls in (MDLM, GIDD):
        method = cls(N, weighting="bound")
        target = exact_bound(method.process, world.vandal, nodes=200)[14]
        x = TEXTS[14].expand(20_000, -1)
        close_in_the_mean(torch.cat([method.loss(world.vandal, x).sum(-1) for _ in range(20)]), target)


@pytest.mark.parametrize("name", DIFFUSIONS + ["ar"])
def test_frozen_tokens_are_never_scored_and_the_rest_bounds_the_conditional(name):
    """Frozen tokens have loss 0; through the oracle of the masked model the others give -log p(x | given)."""
    method = make_method(name, N)
    frozen = torch.tensor([True, False, False]).expand(4_000, -1)
    flat = lambda z, t, at: torch.zeros(int(at.sum()), N)
    torch.manual_seed(0)
    for score in (method.loss, method.nelbo):
        nats = score(flat if name == "ar" else world.vandal, TEXTS[5].expand(4_000, -1), frozen)
        assert (nats[:, 0] == 0).all() and (nats[:, 1:].sum(0) > 0).all()
    if name == "mdlm":
        exact, given = world.oracle(method.process), frozen[:400]
        draws = torch.stack([method.nelbo(exact, x.expand(400, -1), given).sum(-1) for x in TEXTS])     # (27, 400)
        first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(N)])[TEXTS[:, 0]]                 # (27,)
        error = (P ** 2 * draws.var(-1) / 400).sum() ** 0.5
        assert abs((P * draws.mean(-1)).sum() + (P * (P / first).log()).sum()) < 4.5 * error
