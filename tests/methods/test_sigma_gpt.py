"""sigma-GPT in the world of 27 texts, where all orders can be enumerated, and its cache."""
import pytest
import torch
import world
from bounds import close, close_in_the_mean
from chance_orders import (
    ORDERS,
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
from methods.sigma_gpt import log_mean_exp
from model import causal

LAW = random_law(1)
NATS = torch.stack([chain(LAW, order) for order in ORDERS])  # (6, 27)
FREE = torch.zeros(27, L, dtype=torch.bool)


def made(n=N, **flags):
    return make_method("sigma_gpt", n, **flags)


def in_order(method, order):
    """The method with this order of places for all texts."""
    method.draw_order = lambda frozen, how: torch.tensor(order).expand(len(frozen), -1)
    return method


# ---- (18.16) and (18.17)

@pytest.mark.parametrize("order", ORDERS)
def test_one_pass_is_the_chain_rule_in_that_order(order):
    """For any denoiser; at the exact law it is -log p(x), whatever the order is."""
    method = in_order(made(), order)
    close(method.nelbo(Table(LAW).denoiser(), TEXTS).sum(-1), chain(LAW, order))
    close(method.nelbo(method.oracle(world.LANGUAGE), TEXTS).sum(-1), -P.log())


def test_the_log_of_a_mean_lies_between_the_mixture_and_the_mean_of_logs():
    """The figures of the page: with two orders all 36 draws are enumerated."""
    nats = torch.stack([chain(confused_law(), order) for order in ORDERS])  # (6, 27)
    close((-nats).exp().sum(-1), torch.ones(6, dtype=torch.float64))
    mixture = -(-nats).exp().mean(0).log()  # (27,)
    two = torch.stack([log_mean_exp(nats[[i, j]][..., None], torch.ones(27, 1)).sum(-1)
                       for i in range(6) for j in range(6)]).mean(0)  # (27,)
    figures = [mixture, two, nats.mean(0), nats[0]]  # (27,) each
    assert all((a < b).all() for a, b in zip(figures[:3], figures[1:3]))
    assert [round((P @ nats).item(), 3) for nats in figures] == [2.895, 2.899, 2.903, 2.866]


@pytest.mark.parametrize("n_orders", [1, 3])
def test_draws_have_the_mean_of_the_bound(n_orders):
    triples = torch.cartesian_prod(*[torch.arange(6)] * n_orders).view(-1, n_orders)  # (6^n, n)
    exact = -(-NATS[triples]).exp().mean(1).log().mean(0) @ P  # ()
    method = made(n_orders=n_orders)

    def draw():
        x = TEXTS[torch.multinomial(P, 2000, replacement=True)]  # (n, L)
        return method.nelbo(Table(LAW).denoiser(), x).sum(-1)  # (n,)
    torch.manual_seed(0)
    close_in_the_mean(draw, exact, 5)


def test_no_denoiser_gives_less_than_the_exact_law():
    """The mean over orders is convex in the logits, and its slope there is 0."""
    score = lambda log_p: P @ torch.stack([chain(log_p, order) for order in ORDERS]).mean(0)
    assert stationary(score, exact_law()) < 1e-10
    close(score(exact_law()), torch.special.entr(P).sum())
    assert stationary(score, LAW) > 0.01


def test_nats_of_many_orders_stand_at_free_tokens_and_sum_to_the_log_of_the_mean():
    nats, free = torch.rand(5, 7, 9).double(), torch.rand(7, 9) < 0.6  # (n, B, L), (B, L)
    free[0] = False
    nats = nats * free
    found = log_mean_exp(nats, free)  # (B, L)
    close(found.sum(-1), -(-nats.sum(-1)).exp().mean(0).log())
    assert (found[~free] == 0).all()


def test_from_left_to_right_the_likelihood_is_exact_and_tokens_predict_their_neighbor():
    method = made(token_order="left")
    assert method.exact and not made().exact
    nats = method.nelbo(Table(LAW).denoiser(), TEXTS).sum(-1)  # (27,)
    close(nats, chain(LAW, range(L)))
    tokens, places = method.shift(TEXTS, method.draw_order(FREE, "left"))  # (27, L), (27, 2, L)
    assert (places[:, 0] - places[:, 1] == 1).all() and (tokens[:, 1:] == TEXTS[:, :-1]).all()


# ---- the network

def test_a_token_never_sees_what_comes_later_in_the_order():
    """Through all layers: another token changes the nats of later ones, and its own."""
    method, x = made(10), torch.randint(10, (6, 8))
    net, other = random_net(cond_dim=0, mask_mod=causal), x.clone()
    order = torch.rand(6, 8).argsort(-1)  # (6, 8)
    method.draw_order = lambda frozen, how: order
    place = order[:, 4, None]  # (6, 1) the fifth to be read
    other.scatter_(1, place, (x.gather(1, place) + 1) % 10)
    changed = (method.nelbo(net, x) != method.nelbo(net, other)).gather(1, order)  # (6, 8)
    assert not changed[:, :4].any() and changed[:, 4:].all()


def test_a_query_turns_by_the_place_that_it_predicts_and_a_key_by_its_own():
    net, z = random_net(cond_dim=0, mask_mod=causal), torch.randint(10, (2, 6))
    place = torch.arange(6).expand(2, 1, 6)  # (2, 1, 6)
    plain = net(z)  # (2, 6, V)
    for positions in (place, place.expand(2, 2, 6), place + 5):
        close(net(z, positions=positions), plain, 1e-5)
    for side in (0, 1):
        moved = torch.cat([place, place], 1).clone()  # (2, 2, 6)
        moved[1, side, 3] += 2
        rows = (net(z, positions=moved) - plain).abs().amax(-1) > 1e-5  # (2, 6)
        late = [False] * 3 + [True] * 3  # two layers: later tokens see token 3, which has changed
        assert rows.tolist() == [[False] * 6, late]


# ---- samples

@pytest.mark.parametrize("given", [[False] * L, [True, False, False], [False, True, False]])
def test_samples_have_the_law_of_the_mixture_given_what_is_given(given):
    """Given tokens come first in the order: any gaps. Chi-square within 4.5 standard deviations."""
    frozen, x, n = torch.tensor(given).expand(6000, -1), torch.tensor([[1, 2, 0]]), 6000
    method, k = made(), sum(given)
    z = torch.where(frozen, x, method.prior((n, L)))  # (n, L)
    torch.manual_seed(2)
    *_, z = method.sample(Table(LAW).denoiser(), z, frozen, 1)
    first = [i for i, order in enumerate(ORDERS) if all(given[l] for l in order[:k])]
    fits = ((TEXTS == x) | ~frozen[0]).all(-1)  # (27,)
    p = [(-NATS[i]).exp() / (-chain_of(ORDERS[i][:k])).exp() for i in first]  # (27,) each
    assert abs(world.surprise(world.numbers(z, N), torch.stack(p).mean(0) * fits)) < 4.5


def chain_of(order):
    return chain(LAW, order)


def test_with_a_cache_it_writes_the_same_and_reads_each_token_once():
    """From nothing and around given tokens: as many calls as tokens are free in any text."""
    method, net = made(10), random_net(cond_dim=0, mask_mod=causal)
    some = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.4  # (3, 12)
    for frozen in (torch.zeros_like(some), some):
        z, texts, spies = torch.where(frozen, 7, method.prior(some.shape)), [], []
        for supports_cache in (True, False):
            spies.append(Recomputes(net, supports_cache))
            torch.manual_seed(4)
            *_, end = method.sample(spies[-1], z, frozen, 1)
            texts.append(end)
        assert torch.equal(*texts) and sum(spies[0].read) == 12
        assert len(spies[0].read) == (~frozen).sum(-1).max()
