"""Autoregression: the shift, the exact likelihood, and what a sampler reads."""
import torch
from bounds import close
from networks import random_net

import world
from methods.ar import AR
from model import causal
from world import TEXTS, L, N, P

NOTHING = torch.zeros(5, L, dtype=torch.bool)


def test_row_l_predicts_token_l_from_those_before_it():
    method, seen = AR(5), []
    x = torch.tensor([[3, 1, 4]])

    def denoiser(z, t, at):
        seen.append(z)
        return torch.arange(18.0).view(1, 3, 6)[at]
    nats = method.nelbo(denoiser, x)
    assert seen[0].tolist() == [[5, 3, 1]]
    exact = torch.arange(18.0).view(3, 6)[:, :5].log_softmax(-1).gather(-1, x.T)[:, 0]
    torch.testing.assert_close(nats[0], -exact)


def test_the_oracle_gives_the_exact_log_probability_of_every_text_in_one_pass():
    """By the chain rule, and next to it the language's own sum."""
    nats = AR(N).nelbo(AR(N).oracle(world.LANGUAGE), TEXTS)  # (27, L)
    close(nats.sum(-1), -P.log())
    first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(N)])[TEXTS[:, 0]]
    close(nats[:, 0], -first.log())


def test_what_is_given_is_read_and_not_scored():
    given = torch.tensor([True, False, False]).expand(27, -1)
    exact = AR(N).oracle(world.LANGUAGE)
    nats, all_of_it = AR(N).nelbo(exact, TEXTS, given), AR(N).nelbo(exact, TEXTS)
    assert (nats[:, 0] == 0).all() and torch.equal(nats[:, 1:], all_of_it[:, 1:])


def test_a_text_is_written_in_order_and_shows_the_start_symbol_where_it_is_not_written_yet():
    method, net = AR(10), random_net(cond_dim=0, mask_mod=causal)
    z = method.prior((5, L))
    assert (z == 10).all()
    for written, z in enumerate(method.sample(net, z, NOTHING, 1), 1):
        assert (z[:, :written] < 10).all() and (z[:, written:] == 10).all()
    assert written == L == method.count_states(L, 99)


def test_what_stands_further_right_is_not_read_before_it_is_reached():
    method, net = AR(10), random_net(cond_dim=0, mask_mod=causal)
    ends = []
    for last in (2, 7):
        z = method.prior((5, L)).index_fill(1, torch.tensor([L - 1]), last)
        frozen = NOTHING.index_fill(1, torch.tensor([L - 1]), True)
        torch.manual_seed(0)
        *_, z = method.sample(net, z, frozen, 1)
        assert (z[:, -1] == last).all()
        ends.append(z[:, :-1])
    assert torch.equal(*ends)
