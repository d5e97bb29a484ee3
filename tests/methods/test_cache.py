"""
Caches of keys and values, for ar and bd3lm: logits are those without a cache, to 1e-5, and a seed
draws the same tokens; in bounded memory, also beyond the length of training.
"""
import pytest
import torch
from networks import random_net
from references import Figures

from diffusion import ancestral, probabilities
from methods import make_method
from methods.bd3lm import block_diffusion_mask
from methods.left_to_right import new_cache, read_with_cache
from model import Cache, Transformer, block_causal, causal
from samplers.unmasking import Confidence, FirstHitting

figure = Figures("block_reference")
LENGTH = 24


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


class Recomputes:
    """A network without a cache, and a record of its calls."""

    def __init__(self, net, supports_cache=False):
        self.net, self.supports_cache, self.read, self.rows = net, supports_cache, [], []

    def __call__(self, z, t, at=None, **layout):
        self.read.append(z.shape[1])
        self.rows.append(len(z))
        return self.net(z, t, at, **layout)


def texts(n=3, length=LENGTH, seed=0):
    return torch.randint(10, (n, length), generator=torch.Generator().manual_seed(seed))


def some_masks(x, seed=1):
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(u < 0.5, 10, x)


def sampled(method, net, seed=3, steps=3, length=LENGTH, frozen=None, given=None, **options):
    frozen = torch.zeros(3, length, dtype=torch.bool) if frozen is None else frozen
    given = texts(length=length) if given is None else given
    z = torch.where(frozen, given, method.prior(frozen.shape))
    torch.manual_seed(seed)
    *_, z = method.sample(net, z, frozen, steps, **options)
    return z


def test_the_published_block_diffusion_network_gives_these_logits_with_and_without_a_cache():
    """In training, and in sampling, where the first block is clean."""
    net = Transformer(12, n_layer=2, n_head=4, n_embd=32, cond_dim=8).eval()
    net.load_state_dict(figure.weights("bd3_dit/w/"))
    x, z, twice = figure("bd3_dit/x0"), figure("bd3_dit/xt"), torch.arange(8).repeat(2)
    pattern = block_diffusion_mask(8, 4)
    trained = net(torch.cat([z, x], 1), positions=twice, mask_mod=pattern)[:, :8]
    close(trained, figure("bd3_dit/train_logits"))
    past = torch.cat([x[:, :4], z[:, 4:]], 1)
    close(net(past, mask_mod=block_causal(4, 8)), figure("bd3_dit/sample_logits_block2_full"))
    close(net(z[:, :4]), figure("bd3_dit/sample_logits_block1"))
    cache = Cache(8)
    net(x[:, :4], cache=cache)
    cache.keep(4)
    close(net(z[:, 4:], cache=cache), figure("bd3_dit/kvcache_logits_block2"))


@pytest.mark.parametrize("block, window", [
    (1, None), (2, None), (4, None), (12, None), (1, 6), (2, 6), (4, 8), (4, 4)])
@pytest.mark.parametrize("cond_dim", [0, 8])
def test_training_and_sampling_with_a_cache_and_without_agree(block, window, cond_dim):
    """A noisy block behind clean text: both halves at once, the prefix and it, it and the cache."""
    net, x = random_net(cond_dim=cond_dim), texts()
    z, reach = some_masks(x), LENGTH if window is None else window - block
    pattern = block_diffusion_mask(LENGTH, block, reach)
    twice = torch.arange(LENGTH).repeat(2)
    trained = net(torch.cat([z, x], 1), positions=twice, mask_mod=pattern)  # (B, 2L, V)
    cache, every = new_cache(net, LENGTH, block, window), torch.ones(3, block, dtype=torch.bool)
    for lo in range(0, LENGTH, block):
        here = slice(lo, lo + block)
        text = torch.cat([x[:, :lo], z[:, here]], 1)
        uncached = net(text, mask_mod=block_causal(block, reach))[:, here]
        cached = read_with_cache(net, cache, text, every, lo, block_causal(block, cache.reach))
        close(uncached, trained[:, here])
        close(cached.view(3, block, -1), trained[:, here])
    assert cache.capacity == (LENGTH if window is None else 2 * window)
    assert cache.read == LENGTH - block


def pair(method, seed=0):
    """A method, in blocks of four if it has any, and a network for it."""
    method = make_method(method, 10, diffusion_block=4)
    return method, random_net(seed, cond_dim=0, mask_mod=method.mask_mod)


@pytest.mark.parametrize("name, block, sampler", [
    ("ar", 1, ancestral), *[("bd3lm", block, sampler) for block in (1, 4, 12, 24)
                            for sampler in (ancestral, FirstHitting(), Confidence())]])
@pytest.mark.parametrize("window", [None, 12])
def test_a_seed_draws_the_same_tokens_with_a_cache_and_without(name, block, sampler, window):
    """With prompts, gaps and rows of different kinds. For ar without a cache, the window is
    written out as a pattern."""
    if window and window < block:
        pytest.skip("the window is smaller than the block")
    window = 3 if window and name == "ar" else window  # so small that one token more would show
    method = make_method(name, 10, diffusion_block=block)
    net = random_net(cond_dim=0, mask_mod=method.mask_mod)
    frozen = torch.zeros(3, LENGTH, dtype=torch.bool)
    frozen[0, :13], frozen[1, 5], frozen[2, 14:20] = True, True, True
    options = dict(frozen=frozen, sampler=sampler, window=window)
    cached = sampled(method, net, **options)
    if name == "ar" and window:
        net.mask_mod = block_causal(1, window - 1)
    assert torch.equal(cached, sampled(method, Recomputes(net), **options))
    assert (cached < 10).all() and (cached[frozen] == texts()[frozen]).all()


def test_each_token_is_read_once_by_ar_and_twice_by_bd3lm():
    """In one step a block is read noisy, and clean together with the next; a prompt at once."""
    (method, net), frozen = pair("bd3lm"), torch.zeros(3, LENGTH, dtype=torch.bool)
    spy = Recomputes(net, supports_cache=True)
    sampled(method, spy, steps=1)
    assert spy.read == [4, 8, 8, 8, 8, 8]
    frozen[:, :18], spy = True, Recomputes(net, supports_cache=True)
    sampled(method, spy, steps=1, frozen=frozen)
    assert spy.read == [20, 8]
    method, net = pair("ar")
    spy = Recomputes(net, supports_cache=True)
    sampled(method, spy, frozen=frozen)
    assert spy.read == [19, 1, 1, 1, 1, 1]


def test_what_stays_in_the_cache_is_the_clean_block_and_not_its_last_noisy_pass():
    net, x, every = random_net(cond_dim=0), texts(), torch.ones(3, 4, dtype=torch.bool)
    z, cache, clean, pattern = some_masks(x), Cache(LENGTH), Cache(LENGTH), block_causal(4, LENGTH)
    read_with_cache(net, cache, z[:, :4], every, 0, pattern)
    noisy = cache.k[1][:, :, :4].clone()
    read_with_cache(net, cache, torch.cat([x[:, :4], z[:, 4:8]], 1), every, 4, pattern)
    net(x[:, :4], cache=clean)
    close(cache.k[1][:, :, :4], clean.k[1][:, :, :4])
    assert (noisy - clean.k[1][:, :, :4]).abs().max() > 0.1


@pytest.mark.parametrize("block, window", [(1, 8), (4, 8)])
def test_far_beyond_the_window_the_cache_is_exact_for_a_sliding_pattern(block, window):
    """200 tokens through a window of 8, in memory for two windows. The last window alone has other
    logits: its first tokens had seen older ones."""
    net, x = random_net(cond_dim=0), texts(2, 200)
    whole = net(x, mask_mod=block_causal(block, window - block))  # (B, 200, V)
    cache, every = new_cache(net, 200, block, window), torch.ones(2, block, dtype=torch.bool)
    for lo in range(0, 200, block):
        hi, pattern = lo + block, block_causal(block, cache.reach)
        cached = read_with_cache(net, cache, x[:, :hi], every, hi, pattern).view(2, block, -1)
        close(cached, whole[:, lo:hi])
        assert cache.k[0].shape[2] == 2 * window
    anew = net(x[:, -window:], mask_mod=block_causal(block, window))[:, -block:]
    assert (anew - cached).abs().max() > 0.01


def test_a_prompt_longer_than_the_window_is_read_in_pieces_and_exactly():
    net, x, window = random_net(cond_dim=0), texts(2, 96), 8
    cache, spy = new_cache(net, 96, 4, window), Recomputes(net, supports_cache=True)
    every, pattern = torch.ones(2, 4, dtype=torch.bool), block_causal(4, cache.reach)
    got = read_with_cache(spy, cache, x, every, 92, pattern).view(2, 4, -1)
    close(got, net(x, mask_mod=block_causal(4, window - 4))[:, -4:])
    assert max(spy.read) <= 2 * window and sum(spy.read) == 96


GREEDY = dict(to_probs=lambda logits: probabilities(logits, 0), steps=1)  # chance plays no part


@pytest.mark.parametrize("name", ["ar", "bd3lm"])
def test_rows_end_at_different_times_and_leave_the_batch(name):
    """Each row is the unstopped one up to its first end of text, and only that from there on."""
    method, net = pair(name, seed=4)
    frozen = (torch.arange(LENGTH) < 4).expand(3, -1)  # prompts that differ
    whole = sampled(method, net, frozen=frozen, **GREEDY)
    ends_at = {end: [next((l for l in range(4, LENGTH) if row[l] == end), LENGTH) for row in whole]
               for end in range(10)}
    end = max(ends_at, key=lambda end: len({l for l in ends_at[end] if l < LENGTH}))
    assert len({l for l in ends_at[end] if l < LENGTH}) > 1  # two rows end, apart from each other
    spy = Recomputes(net, supports_cache=True)
    for denoiser in (spy, Recomputes(net)):
        z = sampled(method, denoiser, frozen=frozen, end=end, **GREEDY)
        for row, before, l in zip(z, whole, ends_at[end]):
            assert torch.equal(row[:l], before[:l]) and (row[l:] == end).all()
    assert spy.rows == sorted(spy.rows, reverse=True) and spy.rows[-1] < 3


@pytest.mark.parametrize("name", ["ar", "bd3lm"])
def test_an_end_of_text_that_was_given_or_stands_before_given_text_ends_nothing(name):
    (method, net), given = pair(name), texts()
    only = lambda word: lambda logits: torch.nn.functional.one_hot(
        torch.full(logits.shape[:-1], word), 10).double()
    frozen = torch.zeros(3, LENGTH, dtype=torch.bool)
    frozen[0, 20], frozen[1, 2], given[1, 2], given[0, 20] = True, True, 7, 3
    options = dict(frozen=frozen, given=given, steps=1, end=7)
    z = sampled(method, net, to_probs=only(7), **options)
    assert z[0, 20] == 3 and (z == 7).sum() == 3 * LENGTH - 1
    assert (sampled(method, net, to_probs=only(6), **options)[1] == 6).sum() == LENGTH - 1


def test_a_cache_of_fewer_texts_goes_on_with_theirs():
    net, x, pattern = random_net(cond_dim=0, mask_mod=causal), texts(), block_causal(1, LENGTH)
    cache, one = Cache(LENGTH), torch.ones(2, 1, dtype=torch.bool)
    read_with_cache(net, cache, x[:, :10], torch.ones(3, 1, dtype=torch.bool), 10, pattern)
    cache.select(torch.tensor([0, 2]))
    logits = read_with_cache(net, cache, x[[0, 2], :11], one, 11, pattern)
    close(logits, net(x[[0, 2], :11])[:, -1])


def test_a_cache_with_two_rows_for_each_text_drops_both():
    """As guidance has, which calls the network with and without the class."""
    cache = Cache(2)
    cache.copies = 2
    cache.write(0, *torch.arange(6.0).view(1, 6, 1, 1, 1).expand(2, -1, 1, 1, 2))
    cache.select(torch.tensor([0, 2]))
    assert cache.k[0][:, 0, 0, 0].tolist() == [0, 2, 3, 5]


def test_a_noisy_block_does_not_depend_on_the_clean_copy_of_itself_and_of_later_blocks():
    """Gradients are exactly zero there, and not at clean tokens before it and at its own."""
    net, block, x = random_net(cond_dim=0), 4, texts(1, 12)
    both = torch.nn.functional.one_hot(torch.cat([some_masks(x), x], 1), 11).float()
    pattern, twice = block_diffusion_mask(12, block), torch.arange(12).repeat(2)
    for b in range(3):
        both.requires_grad_()
        own, earlier = slice(b * block, (b + 1) * block), slice(12, 12 + b * block)
        logits = net(both, positions=twice, mask_mod=pattern)[:, own]
        slope, = torch.autograd.grad(logits.square().sum(), both)
        slope, sees = slope.abs().sum((0, 2)), torch.zeros(24, dtype=torch.bool)  # (24,) each
        sees[own] = sees[earlier] = True
        assert (slope[sees] > 0).all() and (slope[~sees] == 0).all()
