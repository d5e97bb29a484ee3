"""
What was read is not read again: with a cache of keys and values the logits are those without, to 1e-5, and a seed
draws the same tokens; for ar and bd3lm, beyond the length of training too, in bounded memory.
"""
from pathlib import Path

import numpy
import pytest
import torch
from test_model import RENAME, random_net

from block import doubled
from diffusion import ancestral, probabilities
from masked import confidence, first_hitting
from methods import make_method
from model import Cache, Transformer, block_causal, causal, new_cache, read

FIGURES = numpy.load(Path(__file__).parent / "block_reference.npz")
LENGTH = 24


def figure(name):
    return torch.from_numpy(FIGURES[name])


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


class Recomputes:
    """A network without a cache, and a record of what it was asked."""

    def __init__(self, net, caches=False):
        self.net, self.caches, self.read, self.rows = net, caches, [], []

    def __call__(self, z, t, at=None, **layout):
        self.read.append(z.shape[1])
        self.rows.append(len(z))
        return self.net(z, t, at, **layout)


def texts(n=3, length=LENGTH, seed=0):
    return torch.randint(10, (n, length), generator=torch.Generator().manual_seed(seed))


def some_masks(x, seed=1):
    return torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5, 10, x)


def sampled(method, net, seed=3, steps=3, length=LENGTH, frozen=None, given=None, **options):
    frozen = torch.zeros(3, length, dtype=torch.bool) if frozen is None else frozen
    z = torch.where(frozen, texts(length=length) if given is None else given, method.prior(frozen.shape))
    torch.manual_seed(seed)
    *_, z = method.sample(net, z, frozen, steps, **options)
    return z


def test_the_published_block_diffusion_network_gives_these_logits_in_training_and_sampling_with_and_without_a_cache():
    weights = {}
    for key in FIGURES:
        if key.startswith("bd3_dit/w/"):
            ours = key.removeprefix("bd3_dit/w/")
            for theirs, new in RENAME.items():
                ours = ours.replace(theirs, new)
            weights[ours] = figure(key)
    net, twice = Transformer(12, n_layer=2, n_head=4, n_embd=32, cond_dim=8).eval(), torch.arange(8).repeat(2)
    net.load_state_dict(weights)
    x, z = figure("bd3_dit/x0"), figure("bd3_dit/xt")
    trained = net(torch.cat([z, x], 1), positions=twice, mask_mod=doubled(8, 4))[:, :8]
    close(trained, figure("bd3_dit/train_logits"))
    past = torch.cat([x[:, :4], z[:, 4:]], 1)
    close(net(past, mask_mod=block_causal(4, 8)), figure("bd3_dit/sample_logits_block2_full"))
    close(net(z[:, :4]), figure("bd3_dit/sample_logits_block1"))
    cache = Cache(8)
    net(x[:, :4], cache=cache)
    cache.keep(4)
    close(net(z[:, 4:], cache=cache), figure("bd3_dit/kvcache_logits_block2"))


@pytest.mark.parametrize("block, window", [(1, None), (2, None), (4, None), (12, None), (1, 6), (2, 6), (4, 8),
                                           (4, 4)])
@pytest.mark.parametrize("cond_dim", [0, 8])
def test_training_sampling_without_a_cache_and_with_one_give_the_same_logits(block, window, cond_dim):
    """Three ways to see a noisy block behind clean text: both halves at once, the prefix and it, it and the cache."""
    net, x = random_net(cond_dim=cond_dim), texts()
    z, reach = some_masks(x), LENGTH if window is None else window - block
    twice = torch.arange(LENGTH).repeat(2)
    trained = net(torch.cat([z, x], 1), positions=twice, mask_mod=doubled(LENGTH, block, reach))        # (B, 2L, V)
    cache = new_cache(net, LENGTH, block, window)
    for lo in range(0, LENGTH, block):
        here, every = slice(lo, lo + block), torch.ones(3, block, dtype=torch.bool)
        text = torch.cat([x[:, :lo], z[:, here]], 1)
        uncached = net(text, mask_mod=block_causal(block, reach))[:, here]
        cached = read(net, cache, text, every, lo, block_causal(block, cache.reach)).view(3, block, -1)
        close(uncached, trained[:, here])
        close(cached, trained[:, here])
    assert cache.capacity == (LENGTH if window is None else 2 * window) and cache.read == LENGTH - block


@pytest.mark.parametrize("method, block, sampler", [
    ("ar", 1, None), *[("bd3lm", block, sampler) for block in (1, 4, 12, 24)
                       for sampler in (ancestral, first_hitting, confidence)]])
@pytest.mark.parametrize("window", [None, 12])
def test_a_seed_draws_the_same_tokens_with_a_cache_and_without(method, block, sampler, window):
    """With prompts, gaps and rows of different kinds; a window for ar is written out as the pattern it stands for."""
    if window and window < block:
        pytest.skip("the window is smaller than the block")
    window = 3 if window and method == "ar" else window      # so small that one token more would show
    m, net = make_method(method, 10, diffusion_block=block), random_net(cond_dim=0)
    net.mask_mod, m.window = causal if method == "ar" else None, window
    frozen = torch.zeros(3, LENGTH, dtype=torch.bool)
    frozen[0, :13], frozen[1, 5], frozen[2, 14:20] = True, True, True
    cached = sampled(m, net, frozen=frozen, sampler=sampler)
    if method == "ar" and window:
        net.mask_mod = block_causal(1, window - 1)
    assert torch.equal(cached, sampled(m, Recomputes(net), frozen=frozen, sampler=sampler))
    assert (cached < 10).all() and (cached[frozen] == texts()[frozen]).all()


def test_each_token_is_read_once_by_ar_and_twice_by_bd3lm():
    """In one step a block is read noisy, and clean together with the next; a prompt is read at once."""
    net, frozen = random_net(cond_dim=0), torch.zeros(3, LENGTH, dtype=torch.bool)
    spy = Recomputes(net, caches=True)
    sampled(make_method("bd3lm", 10, diffusion_block=4), spy, steps=1)
    assert spy.read == [4, 8, 8, 8, 8, 8]
    frozen[:, :18], spy = True, Recomputes(net, caches=True)
    sampled(make_method("bd3lm", 10, diffusion_block=4), spy, steps=1, frozen=frozen)
    assert spy.read == [20, 8]
    net.mask_mod, spy = causal, Recomputes(net, caches=True)
    sampled(make_method("ar", 10), spy, frozen=frozen)
    assert spy.read == [19, 1, 1, 1, 1, 1]


def test_what_stays_in_the_cache_is_the_clean_block_and_not_its_last_noisy_pass():
    net, x = random_net(cond_dim=0), texts()
    z, cache, clean, every = some_masks(x), Cache(LENGTH), Cache(LENGTH), torch.ones(3, 4, dtype=torch.bool)
    read(net, cache, z[:, :4], every, 0, block_causal(4, LENGTH))
    noisy = cache.k[1][:, :, :4].clone()
    read(net, cache, torch.cat([x[:, :4], z[:, 4:8]], 1), every, 4, block_causal(4, LENGTH))
    net(x[:, :4], cache=clean)
    close(cache.k[1][:, :, :4], clean.k[1][:, :, :4])
    assert (noisy - clean.k[1][:, :, :4]).abs().max() > 0.1


@pytest.mark.parametrize("method, block, window", [("ar", 1, 8), ("bd3lm", 4, 8)])
def test_far_beyond_the_window_the_cache_is_exact_for_attention_that_looks_back_so_far(method, block, window):
    """200 tokens through a window of 8: the logits are those of the whole text under a sliding pattern, and memory
    stays at two windows. They are not those of the last window alone: its first tokens had seen older ones."""
    net, x = random_net(cond_dim=0), texts(2, 200)
    whole = net(x, mask_mod=block_causal(block, window - block))                                        # (B, 200, V)
    cache, every = new_cache(net, 200, block, window), torch.ones(2, block, dtype=torch.bool)
    for lo in range(0, 200, block):
        hi = lo + block
        cached = read(net, cache, x[:, :hi], every, hi, block_causal(block, cache.reach)).view(2, block, -1)
        close(cached, whole[:, lo:hi])
        assert cache.k[0].shape[2] == 2 * window
    anew = net(x[:, -window:], mask_mod=block_causal(block, window))[:, -block:]
    assert (anew - cached).abs().max() > 0.01


def test_a_prompt_longer_than_the_window_is_read_in_pieces_and_exactly():
    net, x, window = random_net(cond_dim=0), texts(2, 96), 8
    cache, spy = new_cache(net, 96, 4, window), Recomputes(net, caches=True)
    got = read(spy, cache, x, torch.ones(2, 4, dtype=torch.bool), 92, block_causal(4, cache.reach)).view(2, 4, -1)
    close(got, net(x, mask_mod=block_causal(4, window - 4))[:, -4:])
    assert max(spy.read) <= 2 * window and sum(spy.read) == 96


@pytest.mark.parametrize("method", ["ar", "bd3lm"])
def test_rows_end_at_different_times_and_leave_the_batch(method):
    """Greedy, so that chance plays no part: each row is the unstopped one up to its first end of text, and only that
    from there on, with a cache or without."""
    m, net = make_method(method, 10, diffusion_block=4), random_net(seed=4, cond_dim=0)
    net.mask_mod = causal if method == "ar" else None
    greedy = dict(law=lambda logits: probabilities(logits, 0), steps=1)
    frozen = (torch.arange(LENGTH) < 4).expand(3, -1)        # prompts that differ
    whole = sampled(m, net, frozen=frozen, **greedy)
    first = [next((l for l in range(4, LENGTH) if row[l] == stop), None) for stop in range(10) for row in whole]
    m.stop = max(range(10), key=lambda stop: len({l for l in first[3 * stop:3 * stop + 3] if l}))
    ends = first[3 * m.stop:3 * m.stop + 3]
    assert len({l for l in ends if l}) > 1                   # two rows end, apart from each other
    spy = Recomputes(net, caches=True)
    for denoiser in (spy, Recomputes(net)):
        z = sampled(m, denoiser, frozen=frozen, **greedy)
        for row, before, end in zip(z, whole, ends):
            end = LENGTH if end is None else end
            assert torch.equal(row[:end], before[:end]) and (row[end:] == m.stop).all()
    assert spy.rows == sorted(spy.rows, reverse=True) and spy.rows[-1] < 3


@pytest.mark.parametrize("method", ["ar", "bd3lm"])
def test_an_end_of_text_that_was_given_or_stands_before_given_text_ends_nothing(method):
    m, net = make_method(method, 10, diffusion_block=4), random_net(cond_dim=0)
    net.mask_mod, m.stop = causal if method == "ar" else None, 7
    always = lambda logits: torch.nn.functional.one_hot(torch.full(logits.shape[:-1], 7), 10).double()
    frozen, given = torch.zeros(3, LENGTH, dtype=torch.bool), texts()
    frozen[0, 20], frozen[1, 2], given[1, 2], given[0, 20] = True, True, 7, 3
    z = sampled(m, net, frozen=frozen, given=given, law=always, steps=1)
    assert z[0, 20] == 3 and (z == 7).sum() == 3 * LENGTH - 1
    sixes = lambda logits: torch.nn.functional.one_hot(torch.full(logits.shape[:-1], 6), 10).double()
    assert (sampled(m, net, frozen=frozen, given=given, law=sixes, steps=1)[1] == 6).sum() == LENGTH - 1


def test_a_cache_of_fewer_texts_goes_on_with_theirs():
    net, x = random_net(cond_dim=0, mask_mod=causal), texts()
    cache, one = Cache(LENGTH), torch.ones(2, 1, dtype=torch.bool)
    read(net, cache, x[:, :10], torch.ones(3, 1, dtype=torch.bool), 10, block_causal(1, LENGTH))
    cache.select(torch.tensor([0, 2]))
    close(read(net, cache, x[[0, 2], :11], one, 11, block_causal(1, LENGTH)), net(x[[0, 2], :11])[:, -1])


def test_a_noisy_block_is_blind_to_the_clean_copy_of_itself_and_of_later_blocks():
    """Gradient exactly zero there, and not zero for each earlier clean token and each token of its own."""
    net, block = random_net(cond_dim=0), 4
    both = torch.nn.functional.one_hot(torch.cat([some_masks(texts(1, 12)), texts(1, 12)], 1), 11).float()
    for b in range(3):
        both.requires_grad_()
        own, earlier = slice(b * block, (b + 1) * block), slice(12, 12 + b * block)
        logits = net(both, positions=torch.arange(12).repeat(2), mask_mod=doubled(12, block))[:, own]
        felt = torch.autograd.grad(logits.square().sum(), both)[0].abs().sum((0, 2))                    # (24,)
        sees = torch.zeros(24, dtype=torch.bool)
        sees[own] = sees[earlier] = True
        assert (felt[sees] > 0).all() and (felt[~sees] == 0).all()
