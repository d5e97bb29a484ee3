"""The theory on the world of tests/world.py, one sentence a test: exact sums, or draws with their
standard errors. What must hold for every method is in test_methods.py."""
import pytest
import torch
import torch.nn.functional as F
from bounds import close, close_in_the_mean, exact_bound

import world
from diffusion import Absorbing, Hybrid, Uniform, bound, corrupt, posterior_x0, reverse
from methods import METHODS, make_method
from methods.mdlm import MDLM, masked_bound
from methods.udlm import mixture_bound
from world import TEXTS, L, N, P

PROCESSES = {"mask": Absorbing(N), "mask, eps": Absorbing(N, eps=1e-3), "uniform": Uniform(N),
             "hybrid .1": Hybrid(N, 0.1), "hybrid .7": Hybrid(N, 0.7)}
for _name in METHODS:  # the processes of the table that are not yet here
    _process = make_method(_name, N).process
    if getattr(_process, "continuous", False) and hasattr(_process, "b"):  # not of vectors
        if not any(type(_process) is type(other) for other in PROCESSES.values()):
            PROCESSES[_name] = _process
DIFFUSIONS = ["mdlm", "udlm", "gidd"]
DRAWS = {"mdlm": 1000, "udlm": 8000, "gidd": 40_000}  # in a batch, for an error below 1 %
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def times(n, low=0.02, high=0.98):
    return torch.linspace(low, high, n, dtype=torch.float64)[:, None]  # (n, 1)


@each_process
def test_noise_and_signal_share_all_probability(process):
    t, v = times(9), torch.arange(process.V)
    close(process.alpha(t)[:, 0] + process.b(t, v).sum(-1), torch.ones(9).double())


@each_process
def test_dalpha_and_db_are_the_derivatives_that_autograd_finds(process):
    t = times(9).requires_grad_()
    slope, = torch.autograd.grad(process.alpha(t).sum(), t, retain_graph=True)
    close(process.dalpha(t.detach()), slope)
    for v in range(process.V):
        v = torch.full((9, 1), v)
        slope, = torch.autograd.grad(process.b(t, v).sum(), t, allow_unused=True)
        close(process.db(t.detach(), v), torch.zeros_like(v) if slope is None else slope)


@each_process
def test_corrupt_draws_from_the_forward_marginal(process):
    """Frequencies within 5 standard errors of alpha x + b, at three times, of two clean symbols."""
    torch.manual_seed(0)
    n = 40_000
    for t in torch.tensor([0.1, 0.5, 0.95]).double():
        for x in (0, 2):
            z = corrupt(process, torch.full((n, 1), x), t.expand(n, 1))[:, 0]  # (n,)
            exact = process.b(t, torch.arange(process.V)).clone()  # (V,)
            exact[x] += process.alpha(t)
            seen = torch.bincount(z, minlength=process.V) / n  # (V,)
            assert ((seen - exact).abs() <= 5 * (exact * (1 - exact) / n).sqrt()).all()


@each_process
def test_frozen_tokens_are_never_noised(process):
    x = torch.arange(6).expand(50, -1) % N
    frozen = torch.tensor([True, False] * 3).expand(50, -1)
    z = corrupt(process, x, torch.full((50, 1), 0.999), frozen)
    assert (z[frozen] == x[frozen]).all() and (z[~frozen] != x[~frozen]).any()


def random_case(process, n=64, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(N, (n, L), generator=g)
    z = torch.randint(process.V, (n, L), generator=g)
    if process.text_stays:
        z = torch.where(z < N, x, z)
    logits = torch.randn(n, L, N, generator=g, dtype=torch.float64)
    return x, z, times(n), logits.log_softmax(-1)


@each_process
def test_the_closed_forms_are_the_one_bound(process):
    x, z, t, log_p = random_case(process)
    x_theta = world.carried_over(process, log_p.exp(), z)  # (n, L, V)
    if process.text_stays:
        ours = masked_bound(process, -log_p.gather(-1, x[..., None])[..., 0], z, t)
    else:
        ours = mixture_bound(process, log_p, x, z, t)
    close(ours, bound(process, x_theta, x, z, t))


@pytest.mark.parametrize("process", [Uniform(50), Hybrid(50, 0.1)], ids=["uniform", "hybrid"])
def test_the_closed_form_is_stable_in_float32_at_both_ends_of_time(process):
    """Against float64, for t from 1e-6 to 1 - 1e-6. (0.2) itself is off by 100 times as much."""
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
    """With x known, (0.3) is q(z_t | z_s) q(z_s | x) / q(z_t | x), the step written as a matrix."""
    x, z, t, _ = random_case(process)
    s, v, row = t * 0.6, torch.arange(process.V), torch.arange(len(x))[:, None]
    keep = torch.eye(process.V, dtype=torch.float64)  # (V, V)
    alpha_s, b_s, b_t = process.alpha(s)[..., None], process.b(s[..., None], v), process.b(
        t[..., None], v)
    alpha_ts = process.alpha(t)[..., None] / alpha_s  # (n, 1, 1)
    marginal = alpha_s * keep[:N] + b_s  # (n, N, V)
    step = alpha_ts * keep + b_t - alpha_ts * b_s  # (n, V, V)
    joint = marginal[row, x] * step.transpose(1, 2)[row, z]  # (n, L, V)
    p = reverse(process, F.one_hot(x, process.V).double(), z, s, t)  # (n, L, V)
    close(p.sum(-1), torch.ones(len(x), L, dtype=torch.float64))
    close(p, joint / joint.sum(-1, keepdim=True))


# ---- the bound, enumerated

@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_bound_of_the_oracle_is_the_exact_log_probability(name):
    """Tight, text by text. What is left is the error of the quadrature, 1e-5 for the hybrid."""
    process = make_method(name, N).process
    close(exact_bound(process, world.oracle(process), nodes=200), -P.log(), 2e-5)


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_any_other_denoiser_gives_more(name):
    process = make_method(name, N).process
    exact, entropy = world.oracle(process), -(P * P.log()).sum()
    for wrong in (world.vandal, lambda z, t: 0.9 * exact(z, t),
                  lambda z, t: exact(z, t).exp().add(0.05).log()):
        found = exact_bound(process, lambda z, t: wrong(z, t).log_softmax(-1), nodes=60)
        assert (P * found).sum() > entropy + 1e-3  # with so few nodes the quadrature is off by 1e-4


def test_the_posterior_in_place_of_the_leave_one_out_distribution_is_not_tight():
    """Under uniform noise p(x | z) is wrong in the bound, though it conditions on more."""
    process = Uniform(N)
    wrong, right = (exact_bound(process, world.oracle(process, loo), nodes=60)
                    for loo in (False, True))
    assert (P * (wrong - right)).sum() > 0.1


@pytest.mark.parametrize("process", [PROCESSES[name] for name in world.PROCESSES],
                         ids=list(world.PROCESSES))
def test_posterior_x0_puts_the_own_evidence_back(process):
    z, t = world.states(process), torch.full((process.V ** L, 1), 0.37, dtype=torch.float64)
    found = posterior_x0(process, world.oracle(process)(z, t).exp(), z, t)  # (S, L, N)
    close(found, world.oracle(process, leave_one_out=False)(z, t).exp())


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_nelbo_is_an_unbiased_draw_of_the_bound(name):
    """With a denoiser that is wrong and depends on the time, against the enumerated bound."""
    method = make_method(name, N)
    exact = exact_bound(method.process, world.vandal, nodes=200)  # (27,)
    torch.manual_seed(0)
    for i in (1, 14, 25):
        x = TEXTS[i].expand(DRAWS[name], -1)
        close_in_the_mean(lambda: method.nelbo(world.vandal, x).sum(-1), exact[i])


def test_the_bound_weighting_of_a_loss_is_the_bound_too():
    """That of mdlm in the mean, with a variance without limit; that of gidd draw by draw."""
    torch.manual_seed(0)
    method, x = MDLM(N, weighting="bound"), TEXTS[14].expand(20_000, -1)
    target = exact_bound(method.process, world.vandal, nodes=200)[14]
    close_in_the_mean(lambda: method.loss(world.vandal, x).sum(-1), target)
    method, draws = make_method("gidd", N, weighting="bound"), []
    for score in (method.loss, method.nelbo):
        torch.manual_seed(0)
        draws.append(score(world.vandal, x))
    assert torch.equal(*draws)
