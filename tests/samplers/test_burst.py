"""Burst sampling: lossless, at least a token per call, and the public rule, which is not."""
import pytest
import torch
import world
from bounds import close
from chance_orders import ORDERS, Table, chain, random_law
from networks import random_net
from world import TEXTS, L, N, P

from diffusion import Wrapper
from flags import UserError
from methods import make_method
from model import causal
from samplers import make_sampler
from samplers.burst import Burst
from samplers.generate import CallCounter

LAW = random_law(1)


def law_of(p, q, redrawn):
    """Of a token that is drafted from q, kept by (18.1), and else drawn from `redrawn`. (27, N)"""
    kept = torch.minimum(p, q)  # (27, N)
    return kept + (1 - kept.sum(-1, keepdim=True)) * redrawn


def rows(*seen):
    """The world's law of each next token, for all texts, if these places are seen. -> (27, L, N)"""
    e = torch.ones(27, L, N, dtype=torch.float64)  # (27, L, N)
    for l in seen:
        e[:, l] = torch.nn.functional.one_hot(TEXTS[:, l], N)
    return world.LANGUAGE.posterior(e)  # (27, L, N)


def own(p, l):
    return p.gather(-1, TEXTS[:, l, None])[:, 0]  # (27,)


def test_drafting_a_refused_place_again_is_not_lossless():
    """From left to right: what is written if a refused token is drawn from all of its law p, as in
    the public code, and from (p - q)+, as here. The figure of the page."""
    none, one, two = rows(), rows(0), rows(0, 1)  # (27, L, N) each
    first, kept = own(none[:, 0], 0), torch.minimum(one[:, 1], none[:, 1])  # (27,), (27, N)
    refused = 1 - kept.sum(-1)  # (27,)
    public = first * (own(kept, 1) * own(law_of(two[:, 2], none[:, 2], two[:, 2]), 2)
                      + refused * own(one[:, 1], 1)
                      * own(law_of(two[:, 2], one[:, 2], two[:, 2]), 2))  # (27,)
    close(public.sum(), torch.ones(()).double())
    assert round(float((public - P).abs().sum() / 2), 3) == 0.097
    rest = (one[:, 1] - none[:, 1]).clamp(min=0)  # (27, N)
    ours = law_of(one[:, 1], none[:, 1], rest / rest.sum(-1, keepdim=True))  # (27, N)
    close(ours, one[:, 1])


@pytest.mark.parametrize("given", [[False] * L, [False, True, False]])
@pytest.mark.parametrize("gamma", [1, 2, 8])
def test_texts_have_the_law_of_one_token_at_a_time(gamma, given):
    """Of the mixture over orders, for any denoiser. Chi-square within 4.5 standard deviations."""
    method, n, k = make_method("sigma_gpt", N), 6000, sum(given)
    frozen, x = torch.tensor(given).expand(n, -1), torch.tensor([[1, 2, 0]])
    torch.manual_seed(5)
    z = torch.where(frozen, x, method.prior((n, L)))  # (n, L)
    *_, z = method.sample(Table(LAW).denoiser(), z, frozen, 1, Burst(gamma=gamma))
    first = [order for order in ORDERS if all(given[l] for l in order[:k])]
    p = sum((chain(LAW, order[:k]) - chain(LAW, order)).exp() for order in first) / len(first)
    fits = ((TEXTS == x) | ~frozen[0]).all(-1)  # (27,)
    assert abs(world.surprise(world.numbers(z, N), p * fits)) < 4.5


def test_two_calls_write_at_least_two_tokens_and_all_if_they_are_independent():
    method, z = make_method("sigma_gpt", N), torch.full((50, L), N)
    for law, most in ((LAW, 4), (LAW[-1:].expand(64, -1, -1), 2)):
        spy, sampler = CallCounter(Table(law).denoiser()), Burst(gamma=2)
        states = list(method.sample(spy, z, z < 0, 1, sampler))
        assert spy.calls == 2 * len(states) <= most
        assert sampler.costs()["tokens_per_call"] >= L / most


class Reads(Wrapper):
    """Counts the tokens that a network reads, with its cache or without."""

    def __init__(self, net, supports_cache):
        super().__init__(net)
        self.supports_cache, self.read = supports_cache, 0

    def __call__(self, z, t, at=None, **layout):
        self.read += z.shape[1]
        return super().__call__(z, t, at, **layout)


@pytest.mark.parametrize("gamma", [1, 3, 20])
def test_with_a_cache_it_writes_the_same_and_reads_less(gamma):
    method, net = make_method("sigma_gpt", 10), random_net(cond_dim=0, mask_mod=causal)
    some = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.4  # (3, 12)
    for frozen in (torch.zeros_like(some), some):
        z, texts, read = torch.where(frozen, 7, method.prior(some.shape)), [], []
        for supports_cache in (True, False):
            spy = Reads(net, supports_cache)
            torch.manual_seed(4)
            *_, end = method.sample(spy, z, frozen, 1, Burst(gamma=gamma))
            texts.append(end)
            read.append(spy.read)
        assert torch.equal(*texts) and read[0] < 0.7 * read[1]


def test_it_is_refused_where_no_order_is_written():
    with pytest.raises(UserError, match="burst drafts the next tokens of an order, in which mdlm"):
        make_sampler("burst", make_method("mdlm", N))
