"""Attention by sides: who sees whom, a source that depends on nothing, and the same logits and
texts with a cache for it."""
import pytest
import torch
from networks import random_net

import checkpoints.build
import train
from data import load_data
from flags import UserError, configure
from methods import make_method
from model import Transformer
from samplers import SamplingFlags, make_sampler
from samplers.generate import CallCounter, generate, writer_of
from samplers.sides import CachedSource, by_sides, cache_source, divide

S, L, B, WORDS = 5, 9, 6, 12


def sided(name="mdlm", **options):
    """A method, and a network of random weights by sides."""
    method = make_method(name, WORDS)
    cond_dim = 8 if method.uses_time else 0
    network = random_net(vocab_size=method.vocab_size, cond_dim=cond_dim, qk_norm=True, **options)
    return method, divide(network.double(), method, S)


def noisy(method, seed=0):
    """z (B, L), whose source is clean, t (B, 1), and where to score (B, L): in one text nowhere."""
    torch.manual_seed(seed)
    z, t = torch.randint(WORDS, (B, L)), torch.rand(B, 1).double()  # (B, L), (B, 1)
    z[:, S:] = torch.where(torch.rand(B, L - S) < 0.5, method.vocab_size - 1, z[:, S:])  # (B, T)
    at = torch.rand(B, L) < 0.6  # (B, L)
    at[:, :S], at[2] = False, False
    return z, t, at


def test_a_source_sees_itself_and_a_target_sees_both():
    query, key = torch.arange(L)[:, None], torch.arange(L)  # (L, 1), (L,)
    seen = by_sides(S)(0, 0, query, key)  # (L, L)
    assert seen[:S, :S].all() and not seen[:S, S:].any() and seen[S:].all()
    assert by_sides(S) is by_sides(S)  # a block mask can be kept


@pytest.mark.parametrize("name", ["mdlm", "udlm", "sedd", "d3pm"])
def test_logits_are_the_same_with_a_cache_at_any_time_and_in_any_batch(name):
    method, network = sided(name)
    counter = CallCounter(network)
    cached = CachedSource(counter, S)
    for seed in (0, 0, 1):
        z, t, at = noisy(method, seed)
        for time in (t, 0.5 * t, t.expand(B, L)):
            torch.testing.assert_close(cached(z, time, at=at), network(z, time, at=at),
                                       atol=1e-12, rtol=1e-12)
    assert counter.calls == 9 + 2  # the sources of a batch are read once, and anew in another one
    torch.testing.assert_close(cached(z[:2], t[:2], at=at[:2]), network(z[:2], t[:2], at=at[:2]))
    torch.testing.assert_close(cached(z, t), network(z, t))  # of all positions: without the cache


def test_a_source_does_not_depend_on_the_target_or_the_time_and_joined_it_does():
    for name in ("mdlm", "udlm"):
        method, network = sided(name)
        z, t, _ = noisy(method)
        other = z.clone()  # (B, L)
        other[:, S:] = 3
        first = network(z, t)[:, :S]  # (B, S, V)
        assert torch.equal(network(other, 0.1 * t)[:, :S], first)
        network.source, network.mask_mod = 0, None
        assert not torch.allclose(network(other, t)[:, :S], network(z, t)[:, :S])


def test_the_target_reads_its_time_and_its_source():
    method, network = sided("udlm")
    z, t, _ = noisy(method)
    turned = torch.cat([z[:, :S].flip(1), z[:, S:]], 1)  # (B, L)
    first = network(z, t)[:, S:]  # (B, T, V)
    assert not torch.allclose(network(z, 0.5 * t)[:, S:], first)
    assert not torch.allclose(network(turned, t)[:, S:], first)


@pytest.mark.parametrize("name, sampler", [("mdlm", "entropy"), ("mdlm", "top-k"),
                                           ("udlm", "ancestral"), ("mdlm", "semi-ar")])
def test_the_texts_are_the_same_with_a_cache(name, sampler):
    method, network = sided(name)
    given, frozen = noisy(method)[0], (torch.arange(L) < S).expand(B, L)  # (B, L) each
    texts = []
    for denoiser in (network, CachedSource(network, S)):
        torch.manual_seed(1)
        texts.append(generate(method, denoiser, B, L, 4, make_sampler(sampler, method),
                              given=given, frozen=frozen))
    assert torch.equal(*texts) and torch.equal(texts[0][:, :S], given[:, :S])


def test_n_calls_read_the_source_once():
    """(19.6), counted in the rows that go through the network."""
    method, network = sided()
    rows, embed = [], network.embedding
    network.embedding = lambda z: rows.append(z.shape[1]) or embed(z)
    z, t, at = noisy(method)
    cached = CachedSource(network, S)
    for _ in range(3):
        cached(z, t, at=at)
    assert rows == [S, L - S, L - S, L - S]


def test_there_is_a_cache_where_the_source_is_given_and_nobody_guides():
    method, network = sided()
    frozen = torch.arange(L) < S  # (L,)
    assert isinstance(cache_source(CallCounter(network), frozen, False), CachedSource)
    assert cache_source(network, frozen, True) is network
    assert cache_source(network, torch.arange(L) < S - 1, False) is network
    for plain in (random_net(), lambda z, t, at=None: None):
        assert cache_source(plain, frozen, False) is plain


def test_a_run_by_sides_is_built_and_others_are_refused():
    task = load_data("reverse", 0)

    def build(name="mdlm", data="reverse", sides="encoder"):
        config = configure(train.Config, method=name, data=data, sides=sides)
        method = make_method(name, task.encoding.n_vocab)
        return config, method, checkpoints.build.build_network(config, method)
    config, method, network = build()
    assert type(network) is Transformer and network.source == task.source == 9
    assert network.mask_mod is by_sides(9)
    assert build(sides="joined")[2].source == 0
    settings = configure(SamplingFlags, steps=3)
    model = type("Model", (), dict(method=method, config=config, denoiser=network, beside=None,
                                   encoding=task.encoding, classes=[]))
    frozen = torch.arange(task.length) < task.source  # (L,)
    writer = writer_of(settings, model, CallCounter(network), frozen)
    assert isinstance(writer.denoiser, CachedSource)
    for name in ("ar", "bd3lm", "pgm", "sigma_gpt", "diffusion_forcing", "audm"):
        with pytest.raises(UserError, match=f"{name} has a pattern of its own"):
            build(name)
    with pytest.raises(UserError, match="needs texts with a source, such as --data reverse"):
        build(data="toy")
