"""
BlockGen: at every size its bound is the entropy of a world of 27 texts, and its ends are ar and
mdlm; what a token sees, with a cache and without; training draws the sizes that it says.
"""
from collections import Counter
from itertools import combinations
from math import comb

import pytest
import torch
import world
from bounds import close
from networks import random_net
from test_cache import Recomputes
from world import TEXTS, L, N, P

from data.toy import ToyCorpus
from flags import UserError
from methods import blockgen, make_method
from methods.blockgen import mixed_block_mask
from model import dense_mask
from samplers import make_sampler
from samplers.unmasking import Confidence

ENTROPY = -(P * P.log()).sum()


def made(n_tokens=N, block=L, **flags):
    return make_method("blockgen", n_tokens, diffusion_block=block, **flags)


def wrong(z, t, at, positions=None, **layout):
    """A denoiser that knows nothing of the texts, and whose answer depends on all that it reads."""
    seen = 1.3 * z + 0.7 * z.roll(1, -1) + z.sum(-1, keepdim=True)  # (B, 2L - L')
    p = torch.sin(seen[..., None].double() + 1.7 * torch.arange(N))  # (B, 2L - L', N)
    return p.log_softmax(-1)[at]


def enumerated(size, denoiser):
    """(8.2) of all texts at this size, summed over every set of masks of every block. -> (27,)"""
    method, total = made(block=size), 0.0
    for lo in range(0, L, size):
        for k in range(1, size + 1):
            for masks in combinations(range(lo, lo + size), k):
                z = TEXTS.clone()
                z[:, list(masks)] = N
                given = method.given_before(denoiser, TEXTS)
                total += method.cross_entropy(given, TEXTS, z, None).sum(-1) / k / comb(size, k)
    return total


@pytest.mark.parametrize("size", [1, 3])
def test_one_oracle_gives_the_entropy_at_every_size_and_no_denoiser_gives_less(size):
    """The oracle of a method that was made for another size: the pass shows the size."""
    exact = made(block=L + 1 - size).oracle(world.LANGUAGE)
    close(enumerated(size, exact), -P.log())
    assert P @ enumerated(size, wrong) > ENTROPY + 0.1


@pytest.mark.parametrize("size", [1, 4, 16])
def test_on_the_toy_language_every_size_has_the_same_bound(size):
    """Within four standard errors of 8 batches, of at most 1.5 %; text by text for size 1."""
    data = ToyCorpus(block_size=16)
    method, x = made(data.language.V, size), data.windows("val", 400)  # (n, 16)
    exact = -data.language.log_prob(x) / 16  # (n,)
    denoiser = made(data.language.V, 4).oracle(data.language)
    torch.manual_seed(0)
    more = torch.stack([(method.nelbo(denoiser, part).mean(-1) - nats).mean()
                        for part, nats in zip(x.split(50), exact.split(50))])  # (8,)
    error = more.std() / len(more) ** 0.5
    assert error < 0.015 * exact.mean() and abs(more.mean()) < 4 * error + 1e-9


# ---- the sizes of training

def test_sizes_are_powers_of_two_and_the_text_or_those_of_the_flag():
    assert made().sizes(32) == [1, 2, 4, 8, 16, 32] and made().sizes(12) == [1, 2, 4, 12]
    assert made(block_sizes="1,6").sizes(12) == [1, 6]
    assert made(block_sizes="1,6", size_weights="1,3").weights(12).tolist() == [0.25, 0.75]


def test_training_draws_one_size_for_a_batch_as_often_as_its_weight_says(monkeypatch):
    """And its loss is that of bd3lm at this size: 4.5 standard deviations of 400 draws."""
    drawn, method = Counter(), made(block_sizes="1,3", size_weights="1,3")
    count = lambda self, *a: drawn.update([self.block_length])
    monkeypatch.setattr(blockgen.BD3LM, "loss", count)
    torch.manual_seed(0)
    for _ in range(400):
        method.loss(None, TEXTS)
    assert drawn.keys() == {1, 3} and abs(drawn[3] - 300) < 4.5 * 75 ** 0.5
    assert method.block_length == 3  # that of the bound stays


@pytest.mark.parametrize("flags, says", [
    (dict(block_sizes="1,4", size_weights="1"), "has 1 numbers and --block_sizes 2: give one for"),
    (dict(size_weights="0,0"), "are all 0: let one be more"),
    (dict(size_weights="1,2"), "has 2 numbers, and there are 4 sizes, 1, 2, 4, 12: give one for"),
    (dict(block_sizes="1,5"), "12 must be a multiple of all --block_sizes, and 5 does")])
def test_sizes_that_do_not_fit_are_refused_in_one_line(flags, says):
    with pytest.raises(UserError, match=says):
        made(block=4, **flags).check(type("Config", (), dict(block_size=12)))


# ---- both ends, and what a token sees

@pytest.mark.parametrize("size, other", [(1, "bd3lm"), (12, "mdlm")])
def test_blocks_of_one_are_those_of_bd3lm_and_a_block_of_all_is_mdlm(size, other):
    net, x = random_net(cond_dim=0), torch.randint(10, (6, 12))
    losses = []
    for method in (made(10, size), make_method(other, 10, diffusion_block=size)):
        torch.manual_seed(7)
        losses.append(method.nelbo(net, x))
    close(*losses, 1e-5)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_clean_token_sees_clean_ones_up_to_itself_and_a_noisy_block_those_before_it(size):
    L = 12
    half = torch.zeros(1, 1, 2 * L, 1)
    sees = dense_mask(mixed_block_mask(L, size), half, half)[0, 0]  # (2L, 2L)
    place = torch.arange(L)
    block = place // size
    same, before = block[:, None] == block, block[:, None] > block  # (L, L) each
    assert torch.equal(sees[:L, :L], same) and torch.equal(sees[:L, L:], before)
    assert torch.equal(sees[L:, L:], place[:, None] >= place) and not sees[L:, :L].any()


def written(net, size, frozen, window=None, sampler="arpc", corrector="metropolis"):
    """A text through `net`, and what its cache has room for: with every view there is."""
    method = made(10, size)
    z = torch.where(frozen, torch.arange(24) % 10, method.prior(frozen.shape))  # (3, 24)
    torch.manual_seed(3)
    made_sampler = make_sampler(sampler, method, corrector, rounds=2)
    *_, z = method.sample(net, z, frozen, 3, made_sampler, window=window)
    return z


@pytest.mark.parametrize("size, window", [(2, None), (4, None), (12, None), (24, None), (4, 8),
                                          (4, 12), (6, 6)])
def test_a_seed_writes_and_checks_the_same_text_with_a_cache_and_without(size, window):
    """From nothing and after a prompt, with gaps, also in a window: both views, and all keys."""
    net = random_net(cond_dim=0)
    frozen = torch.zeros(3, 24, dtype=torch.bool)
    frozen[:, :13], frozen[1, 17], frozen[2, :20] = True, True, True
    for given in (torch.zeros_like(frozen), frozen):
        cached = written(net, size, given, window)
        assert torch.equal(cached, written(Recomputes(net), size, given, window))
        assert (cached < 10).all()


def test_both_views_of_a_block_are_those_of_training():
    """With the cache: logits to 1e-5 of one pass over [z ; x], at its size and at size 1."""
    net, x, n = random_net(cond_dim=0), torch.randint(10, (2, 12)), 4
    method, every = made(10, n), torch.ones(2, n, dtype=torch.bool)
    z, all_masks = torch.where(torch.rand(x.shape) < 0.5, 10, x), torch.full_like(x, 10)
    whole = torch.ones_like(x, dtype=torch.bool)
    noisy = method.given_before(net, x)(z, None, whole).view(2, 12, -1)  # (2, 12, V)
    one = method.at_size(1).given_before(net, x)(all_masks, None, whole).view(2, 12, -1)
    cache = blockgen.BD3LM.new_cache(method, net, 12)
    for lo in range(0, 12, n):
        inner, here = method.next_block(net, x[:, :lo], cache), slice(lo, lo + n)
        for _ in range(2):
            close(inner(z[:, here], None, every).view(2, n, -1), noisy[:, here], 1e-5)
            close(inner.in_order(x[:, here], every).view(2, n, -1), one[:, here], 1e-5)


def test_confidence_and_other_samplers_of_masks_work_inside_a_block():
    net = random_net(cond_dim=0)
    method, nothing = made(10, 4), torch.zeros(2, 12, dtype=torch.bool)
    *_, z = method.sample(net, method.prior((2, 12)), nothing, 2, Confidence())
    assert (z < 10).all()
