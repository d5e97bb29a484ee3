"""SEDD's sampling on the world of tests/world.py: one step, three, and many through the oracle."""
import math

import pytest
import torch
import torch.nn.functional as F
from chains import lawless

import world
from diffusion import changeable
from flags import UserError
from methods.sedd import SEDD
from samplers import make_sampler
from samplers.euler import Analytic, Euler, analytic_probs
from world import LANGUAGE, L, N, from_texts, numbers, surprise

each_way = pytest.mark.parametrize("transition, schedule", [
    (transition, schedule) for transition in ("absorbing", "uniform")
    for schedule in ("loglinear", "geometric")])
each_sampler = pytest.mark.parametrize("sampler", [Analytic(), Euler()], ids=["analytic", "euler"])


@each_sampler
@pytest.mark.parametrize("transition", ["absorbing", "uniform"])
def test_a_step_draws_its_distribution_where_entries_below_zero_count_for_nothing(
        transition, sampler):
    """The first of two steps, 100,000 draws by chi-square. The score is five times too large, so
    that both steps take more from a token than there is."""
    method, n, masks = SEDD(N, transition), 100_000, transition == "absorbing"
    V, process = method.vocab_size, method.process
    denoiser = lambda z, t, at: lawless(method)(z, t, at) + math.log(5)
    torch.manual_seed(0)
    z = torch.tensor([[N, 1, N]] if masks else [[0, 1, 2]])  # (1, L)
    start = 0.999 if masks else 1.0
    t, s = torch.linspace(start, 0, 3, dtype=torch.float64)[:2]  # () each
    at = changeable(process, z, None)  # (1, L)
    score = method.log_score(denoiser, z, t.expand(1, 1), at).double().exp()  # (k, V)
    assert (score.gather(-1, z[at][:, None]) == 1).all()  # whatever the network outputs there
    p = F.one_hot(z[0], V).double()  # (L, V)
    p[at[0]] = sampler.step_probs(process, score, z[at], s, t)
    assert p.min() < -0.05
    p = p.clamp(min=0) / p.clamp(min=0).sum(-1, keepdim=True)  # (L, V)
    exact = torch.einsum("i,j,k->ijk", *p).flatten()  # (V^3,)
    texts = method.sample(denoiser, z.expand(n, -1), torch.zeros(n, L).bool(), 2, sampler)
    assert surprise(numbers(next(texts), V), exact) < 4.5


def end_of_steps(method, denoiser, sampler, steps):
    """The distribution of the last text, as a product of matrices. -> (S,)"""
    process, V = method.process, method.vocab_size
    z = world.states(process)  # (S, L)
    at, masks = changeable(process, z, None), process.text_stays  # (S, L)
    p = (z == N).all(-1).double() if masks else torch.full((len(z),), 1 / len(z)).double()  # (S,)
    times = torch.linspace(0.999 if masks else 1.0, 0, steps + 1, dtype=torch.float64)
    for t, s in zip(times[:-1], times[1:]):
        score = method.log_score(denoiser, z, t.expand(len(z), 1), at).double().exp()  # (n, V)
        probs = sampler.step_probs if s > 0 else analytic_probs
        step = probs(process, score, z[at], s, t).clamp(min=0)  # (n, V)
        step[:, N if s == 0 else V:] = 0
        rows = F.one_hot(z, V).double()  # (S, L, V)
        rows[at] = step / step.sum(-1, keepdim=True)  # (n, V)
        p = p @ torch.einsum("ai,aj,ak->aijk", *rows.unbind(1)).flatten(1)  # (S,)
    return p


@each_way
@each_sampler
def test_samples_are_draws_from_the_product_of_all_steps(transition, schedule, sampler):
    """Three steps by a score that fits no distribution, 20,000 texts by chi-square."""
    method, n = SEDD(N, transition, schedule), 20_000
    p = end_of_steps(method, lawless(method), sampler, 3)  # (S,)
    torch.manual_seed(0)
    z, nothing = method.prior((n, L)), torch.zeros(n, L, dtype=torch.bool)  # (n, L) each
    *_, z = method.sample(lawless(method), z, nothing, 3, sampler)
    assert surprise(numbers(z, method.vocab_size), p) < 4.5


@each_way
@each_sampler
def test_many_steps_through_the_oracle_give_the_data_and_one_does_not(
        transition, schedule, sampler):
    """The exact total variation distance to the 27 probabilities, which is halved by twice as many
    steps."""
    method = SEDD(N, transition, schedule)
    one, few, many = (from_texts(end_of_steps(method, method.oracle(LANGUAGE), sampler, steps),
                                 method.vocab_size) for steps in (1, 64, 128))
    assert one > 0.05 and many < 0.015 and 0.45 < many / few < 0.55, (one, few, many)


@each_way
@each_sampler
def test_given_tokens_survive_and_the_end_is_text_for_any_score(transition, schedule, sampler):
    torch.manual_seed(0)
    method, given = SEDD(5, transition, schedule), torch.randint(5, (20, 12))  # (20, 12)
    frozen = torch.rand(20, 12) < 0.4  # (20, 12)
    frozen[0], frozen[1] = True, False
    wild = lambda z, t, at: 6 * torch.randn(*z.shape, method.vocab_size)[at]
    for steps in (1, 3, 20):
        z = torch.where(frozen, given, method.prior(given.shape))  # (20, 12)
        for z in method.sample(wild, z, frozen, steps, sampler):
            assert (z[frozen] == given[frozen]).all()
        assert (z < 5).all()


def test_the_ancestral_step_is_the_analytic_one_and_has_no_grid():
    draws, method = [], SEDD(N, "uniform")
    z, nothing = method.prior((100, L)), torch.zeros(100, L, dtype=torch.bool)  # (100, L) each
    for name in ("ancestral", "analytic"):
        torch.manual_seed(0)
        sampler = make_sampler(name, method)
        draws.append(list(method.sample(lawless(method), z, nothing, 3, sampler))[-1])  # (100, L)
    assert torch.equal(*draws)
    with pytest.raises(UserError, match="leave out --grid"):
        make_sampler("ancestral", method, grid="cosine")
