"""Eso-LM in the world of 27 texts: both losses as sums, its limits, its samples, its cache."""
from itertools import combinations, permutations

import numpy
import pytest
import torch
import world
from bounds import close, close_in_the_mean
from chance_orders import (
    STATES,
    Table,
    chain,
    confused_law,
    exact_law,
    random_law,
    stationary,
)
from networks import random_net
from test_cache import Recomputes
from world import TEXTS, L, N, P

from methods import make_method
from methods.mdlm import MDLM
from samplers.guidance import CFG

LAW = random_law(2)
each_alpha = pytest.mark.parametrize("alpha_0", [0.0, 0.3, 1.0])


def made(n=N, **flags):
    return make_method("eso_lm", n, **flags)


def orders(alpha_0):
    """Orders of the places, and their probabilities: some at random, the rest from the left."""
    for k in range(L + 1):
        for some in combinations(range(L), k):
            rest = [l for l in range(L) if l not in some]
            ways = list(permutations(some))
            for first in ways:
                yield (*first, *rest), alpha_0 ** k * (1 - alpha_0) ** (L - k) / len(ways)


def whole_orders(log_p, alpha_0):
    """(18.18) of each text. -> (27,) nats"""
    return sum(p * chain(log_p, order) for order, p in orders(alpha_0))


def published(log_p, alpha_0):
    """The paper's bound, an integral over t and a sum over z_0, as it is written. -> (27,) nats"""
    mask, fits = (STATES == N)[:, None], STATES[:, None] == TEXTS  # (64, 1, L), (64, 27, L)
    ce = lambda z: -log_p[world.numbers(z, N + 1)].gather(-1, TEXTS[..., None])[..., 0]  # (27, L)
    at_states = torch.stack([ce(z.expand(27, -1)) for z in STATES]) * mask  # (64, 27, L)
    reach = lambda alpha: torch.where(mask, 1 - alpha, alpha * fits).prod(-1)  # (64, 27)
    total = torch.zeros(27, dtype=torch.float64)  # (27,)
    for node, weight in zip(*numpy.polynomial.legendre.leggauss(4)):
        alpha = torch.tensor(alpha_0 * (1 - (node + 1) / 2), dtype=torch.float64)  # ()
        total += weight / 2 * alpha_0 / (1 - alpha) * (reach(alpha) * at_states.sum(-1)).sum(0)
    for z, q in zip(STATES, reach(torch.tensor(alpha_0, dtype=torch.float64))):
        z = z.repeat(27, 1)  # (27, L)
        for l in (z[0] == N).nonzero()[:, 0]:
            total += q * ce(z)[:, l]
            z[:, l] = TEXTS[:, l]
    return total


# ---- the bound

@each_alpha
def test_the_published_bound_is_the_mean_over_orders_for_any_denoiser(alpha_0):
    close(published(LAW, alpha_0), whole_orders(LAW, alpha_0))
    close(published(exact_law(), alpha_0), -P.log())


@each_alpha
def test_no_denoiser_gives_less_than_the_exact_law(alpha_0):
    """(18.18) is convex in the logits, and its slope there is 0."""
    score = lambda log_p: P @ whole_orders(log_p, alpha_0)
    assert stationary(score, exact_law()) < 1e-10 < 0.01 < stationary(score, LAW)


@pytest.mark.parametrize("parts", ["together", "apart"])
def test_draws_of_both_losses_have_the_mean_of_the_bound(parts):
    method, exact = made(alpha_0=0.3, parts=parts), P @ whole_orders(LAW, 0.3)
    torch.manual_seed(0)

    def draw():
        x = TEXTS[torch.multinomial(P, 4000, replacement=True)]  # (n, L)
        return method.loss(Table(LAW).denoiser(), x).double().sum(-1)  # (n,)
    close_in_the_mean(draw, exact, 5)


def test_the_bound_runs_from_that_of_ar_to_that_of_mdlm():
    """The figures of the page, for a denoiser that is wrong."""
    law = confused_law()
    assert [round((P @ whole_orders(law, a)).item(), 3) for a in (0.0, 0.25, 0.5, 1.0)] == [
        2.866, 2.881, 2.893, 2.903]


# ---- the limits

def test_alpha_0_of_0_is_autoregression_and_exact():
    method = made(alpha_0=0.0)
    assert method.exact and not made().exact
    ours = method.nelbo(method.oracle(world.LANGUAGE), TEXTS)  # (27, L)
    ar = make_method("ar", N)
    close(ours, ar.nelbo(ar.oracle(world.LANGUAGE), TEXTS))
    close(method.loss(Table(LAW).denoiser(), TEXTS).sum(-1), chain(LAW, range(L)))


def test_alpha_0_of_1_is_masked_diffusion_bit_by_bit():
    """The published loss of a network that sees all: that of mdlm, draw by draw."""
    net, x = random_net(cond_dim=0), torch.randint(10, (40, 9))
    frozen = torch.rand(x.shape) < 0.3
    sees_all = lambda z, t, at, **layout: net(z, None, at=at)
    for given in (None, frozen):
        losses = []
        for score in (made(10, alpha_0=1.0, parts="apart").loss, MDLM(10).nelbo):
            torch.manual_seed(3)
            losses.append(score(sees_all, x, given))  # (B, L)
        assert torch.equal(*losses)
    bound = torch.stack([chain(LAW, order) for order in permutations(range(L))]).mean(0)  # (27,)
    close(whole_orders(LAW, 1.0), bound)  # every order alike: (3.1)


# ---- the network

def test_a_token_sees_those_that_come_before_it_in_the_order_and_no_others():
    """Through all layers: another token changes the nats of later ones, and its own."""
    method, net, x = made(10), random_net(cond_dim=0), torch.randint(10, (6, 8))
    torch.manual_seed(5)
    drawn = method.draw(torch.zeros_like(x).bool())
    method.draw, (_, _, rank), other = lambda frozen: drawn, drawn, x.clone()
    other[rank == 4] = (x[rank == 4] + 1) % 10
    changed = method.nelbo(net, x) != method.nelbo(net, other)  # (6, 8)
    assert torch.equal(changed, rank >= 4)


def test_diffusion_comes_before_the_rest_and_given_tokens_before_both():
    method, frozen = made(10, alpha_0=0.4), torch.rand(400, 12) < 0.2
    tau, diffused, rank = method.draw(frozen)  # (B, L) each
    for steps in (1, 3, 1000):
        group = method.group(tau, diffused, rank, frozen, steps)  # (B, L)
        assert ((group == -1) == frozen).all()
        for row in range(40):
            calls, d, r = group[row], diffused[row], ~diffused[row] & ~frozen[row]
            assert sorted(set(calls.tolist()) - {-1}) == list(range(int(calls.max()) + 1))
            assert len(set(calls[d].tolist())) <= steps and calls[r].diff().eq(1).all()
            if d.any() and r.any():
                assert calls[d].max() < calls[r].min() and rank[row][d].max() < rank[row][r].min()
    share = diffused.sum() / (~frozen).sum()
    assert abs(share - 0.4) < 4 * (0.24 / (~frozen).sum()) ** 0.5


# ---- samples

@pytest.mark.parametrize("alpha_0", [0.0, 0.6])
def test_samples_one_by_one_have_the_law_of_the_mixture(alpha_0):
    """Each order has its law; (18.18) is the mean of their logs. Chi-square within 4.5 errors."""
    method, n = made(alpha_0=alpha_0), 6000
    torch.manual_seed(1)
    z = method.prior((n, L))  # (n, L)
    *_, z = method.sample(Table(LAW).denoiser(), z, z < 0, 10**6)
    p = sum(share * (-chain(LAW, order)).exp() for order, share in orders(alpha_0))  # (27,)
    assert abs(world.surprise(world.numbers(z, N), p)) < 4.5


def test_samples_in_few_steps_have_the_law_of_mdlm_in_as_many():
    """Steps are equally long in alpha."""
    method, steps, n = made(alpha_0=1.0), 2, 6000
    table = lambda z, t: LAW[world.numbers(z, N + 1)]  # (B, L, N)
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)  # (steps + 1,)
    law = world.end_of_steps(method.process, table, t[:-1], t[1:], torch.ones(steps))  # (64,)
    torch.manual_seed(1)
    z = method.prior((n, L))  # (n, L)
    *_, z = method.sample(Table(LAW).denoiser(), z, z < 0, steps)
    assert abs(world.surprise(world.numbers(z, N + 1), law)) < 4.5


@pytest.mark.parametrize("alpha_0", [0.0, 0.5, 1.0])
def test_with_a_cache_it_writes_the_same_and_reads_each_token_twice(alpha_0):
    """Once as a mask and once as text, in both phases, from nothing and around given tokens."""
    method, net = made(10, alpha_0=alpha_0), random_net(cond_dim=0)
    some = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.4  # (3, 12)
    for frozen in (torch.zeros_like(some), some):
        for rows, steps in ((slice(0, 1), 100), (slice(0, 3), 3)):
            given, texts, reads = frozen[rows], [], []
            z = torch.where(given, 7, method.prior(given.shape))  # (B, 12)
            for supports_cache in (True, False):
                spy = Recomputes(net, supports_cache)
                torch.manual_seed(4)
                *_, end = method.sample(spy, z, given, steps)
                texts.append(end)
                reads.append(spy.read)
            assert torch.equal(*texts) and len(reads[0]) == len(reads[1])
            if len(given) == 1:  # no padding, but for a first call without text
                assert sum(reads[0]) == 2 * 12 - int(given.sum()) - 1 + (not given.any())
            assert reads[1] == [24] * len(reads[1])


def test_tokens_of_one_call_do_not_see_each_other():
    """Several at a time: the logits are the same with a cache and without."""
    method, net, z = made(10, alpha_0=0.8), random_net(cond_dim=0), made(10).prior((3, 12))
    frozen = torch.zeros_like(z).bool()  # (3, 12)
    tau, diffused, rank = method.draw(frozen)  # (3, 12) each
    group = method.group(tau, diffused, rank, frozen, 2)  # (3, 12)
    readers = [method.reader(each, rank, group) for each in (net, Recomputes(net))]
    for g in range(int(group.max()) + 1):
        cached, whole = (read(z, g) for read in readers)  # (N, V) each
        close(cached, whole, 1e-5)
        z = z.masked_scatter(group == g, whole[:, :10].argmax(-1))  # (3, 12)


def test_the_cache_gives_the_logits_of_the_pass_that_trains():
    method, net, x = made(10), random_net(cond_dim=0), torch.randint(10, (2, 8))
    frozen = torch.zeros_like(x).bool()  # (2, 8)
    tau, diffused, rank = method.draw(frozen)  # (2, 8) each
    masks, every = method.prior(x.shape), ~frozen  # (2, 8) each
    trained = method.given_before(net, x, rank)(masks, None, every).view(2, 8, -1)
    read = method.reader(net, rank, rank)
    for g in range(8):
        torch.testing.assert_close(read(x, g), trained[rank == g], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["eso_lm", "sigma_gpt"])
def test_guided_texts_have_two_rows_with_a_cache_and_without(name):
    """Each text keeps its order and its positions in both rows."""
    method = make_method(name, 10)
    net, texts = random_net(n_classes=2, mask_mod=method.mask_mod), []
    z = method.prior((3, 8))  # (3, 8)
    for supports_cache in (True, False):
        spy = Recomputes(net, supports_cache)
        guided = CFG(spy, torch.tensor([1]), 2, 1.5)
        torch.manual_seed(4)
        *_, end = method.sample(guided, z, z < 0, 3)
        texts.append(end)
    assert torch.equal(*texts) and spy.rows[0] == 6
