"""TREC's options of difformer: noise that grows with the time, and the policy gradient of the
second call. (No public code was found, so no figures.)"""
import pytest
import torch
from bounds import close

import train
from flags import UserError, configure
from methods import make_method
from methods.difformer import share_right
from methods.gammas import Alpha2, Growing


def test_noise_that_grows_is_a_monotone_schedule_with_a_slope_and_an_inverse():
    plain, t = Alpha2("sqrt", -4.21, 9.2), torch.linspace(0, 1, 101, dtype=torch.float64)
    grown = Growing(plain, 0.5)
    assert (grown(t).diff() > 0).all()
    close((grown(t) - plain(t)).exp(), (1 + 0.5 * t) ** 2)  # of the variances
    close(grown.time(grown(t)), t, 1e-9)
    inside, h = t[1:-1], 1e-5
    close(grown.slope(inside), (grown(inside + h) - grown(inside - h)) / (2 * h), 1e-4)
    method = make_method("difformer", 7, dim=4, noise_factor=3.0, noise_growth=0.5)
    half = make_method("difformer", 7, dim=4, noise_factor=3.0)
    more = method.process.gamma(t) - half.process.gamma(t)  # (101,)
    close(more, 2 * torch.log1p(0.5 * t))  # lambda = 3 + 1.5 t


def parts():
    """A method, texts (6, 3) of which half have a first call, and what the two calls said."""
    torch.manual_seed(0)
    method = make_method("difformer", 4, dim=3, reinforce=2.0)
    x, at = torch.randint(4, (6, 3)), torch.ones(6, 3, dtype=torch.bool)  # (6, 3) each
    at[0, 0] = False
    first = at & (torch.arange(6) < 3)[:, None]  # (6, 3)
    seen = torch.randn(int(first.sum()), 3)  # (N', D)
    x_hat = torch.randn(int(at.sum()), 3, requires_grad=True)  # (N, D)
    return method, x, at, first, seen, x_hat


def test_the_policy_gradient_is_that_of_the_share_of_right_words():
    """(19.9): its mean over 4,000 draws, within 5 standard errors at every number."""
    method, x, at, first, seen, x_hat = parts()
    p = (x_hat @ method.process.rows().T).softmax(-1)  # (N, V)
    right = p.gather(1, x[at][:, None])[:, 0] * first[at]  # (N,) of R, with the share of its text
    share = right / at.sum(-1, keepdim=True).expand(at.shape)[at]  # (N,)
    exact, = torch.autograd.grad(-share.sum(), x_hat, retain_graph=True)  # (N, D)
    many = lambda a: a.detach().repeat(4000, 1)  # (4000 .., ..)
    found = type("Found", (), {"x_hat": many(x_hat).requires_grad_()})
    nats = method.policy_nats(many(x), many(first), many(seen), found, many(at))  # (4000 N,)
    draws, = torch.autograd.grad(nats.sum(), found.x_hat)  # (4000 N, D)
    draws, nats = draws.view(4000, *x_hat.shape), nats.view(4000, -1)  # (n, N, D), (n, N)
    assert (nats[:, ~first[at]] == 0).all()
    error = draws.std(0) / len(draws) ** 0.5  # (N, D)
    assert ((draws.mean(0) - exact).abs() <= 5 * error + 1e-9).all()
    assert (exact.abs() > 5 * error).any() and (exact[~first[at]] == 0).all()


def test_the_share_of_right_words_is_of_each_text():
    at = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    x = torch.tensor([[1, 2, 0], [0, 0, 0], [3, 0, 0]])
    assert share_right(torch.tensor([1, 0, 3]), x, at).flatten().tolist() == [0.5, 0, 1]


def test_training_has_the_term_only_where_two_calls_are_compared():
    """Two weights differ by the term alone, at texts with a first call."""
    method, x, *_ = parts()
    network = method.network(4, 1, 2, 16, cond_dim=8)
    torch.nn.init.normal_(network.head.weight)
    losses = []
    for weight in (0.0, 2.0, 4.0):
        method.reinforce = weight
        method.choose_fed_back = lambda n, device: torch.arange(n) < 3
        torch.manual_seed(1)
        losses.append(method.loss(network, x))
    close(losses[2] - losses[1], losses[1] - losses[0], 1e-5)
    more = losses[1] - losses[0]  # (6, 3)
    assert (more[3:] == 0).all() and (more[:3] != 0).any()
    more.mean().backward()
    assert (network.head.weight.grad != 0).any()


def test_one_call_has_nothing_to_compare():
    config = configure(train.Config, method="difformer")
    with pytest.raises(UserError, match="--reinforce compares two calls: give --self_condition"):
        make_method("difformer", 7, reinforce=1.0, self_condition=0.0).check(config)
