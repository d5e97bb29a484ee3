"""
Latent diffusion: the network, the two stages, the walk, guidance. What all four methods share is
tested here; the equations are in test_latent_space.py.
"""
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from bounds import close
from networks import randomize

from checkpoints.build import build_network
from diffusion import Labeled
from evaluation.report import print_results
from flags import UserError
from gaussian import prior_nats, signal
from methods import make_method
from methods.gammas import PlainCosine
from methods.latent_network import FARTHEST, KNOTS, windows
from methods.latent_space import to_velocity
from runtime.optim import make_optimizers
from runtime.trainer import EMA, Trainer
from samplers import make_sampler
from samplers.guidance import guide_by_label

V, L = 7, 6
NETWORK = SimpleNamespace(n_layer=1, n_head=2, n_embd=16, cond_dim=8, dropout=0.0, qk_norm=True,
                          norm_bias=False, time_input="auto")
OPTIMIZER = SimpleNamespace(optimizer="muon", muon_lr=0.05, learning_rate=0.02, weight_decay=0.1,
                            beta1=0.9, beta2=0.99, muon_dtype="float32")


def built(name="ld4lg", seed=0, n_classes=0, **flags):
    """A small method, and its network."""
    method = make_method(name, V, **dict(latents=2, dim=4) | flags)
    torch.manual_seed(seed)
    return method, build_network(NETWORK, method, n_classes)


def texts(n=64, seed=1):
    return torch.randint(V, (n, L), generator=torch.Generator().manual_seed(seed))


# ---- the network

def test_wanted_words_are_not_read_and_given_ones_are():
    """By the denoiser and by a decoder of all words at once; one in order reads to its left."""
    x, other = texts(8), texts(8, seed=2)
    at = torch.arange(L).expand(8, -1) >= 3  # the last three are wanted
    for name in ("ld4lg", "latent_planner", "dglm"):
        method, net = built(name)
        randomize(net)
        z, gamma = torch.randn(8, 2, 8), torch.zeros(8, 1)
        tail, head = torch.where(at, other, x), torch.where(at, x, other)
        call = lambda words: net(z, gamma, at=at, words=words)
        assert torch.equal(call(x), call(tail)) and not torch.allclose(call(x), call(head))
        read = lambda words: net(z[..., :4], None, at=at, words=words).view(8, 3, V)
        assert not torch.allclose(read(x), read(head))
        assert torch.allclose(read(x)[:, 0], read(tail)[:, 0], atol=1e-5)  # of the first one
        same = torch.allclose(read(x), read(tail), atol=1e-5)
        assert same != method.ordered
        encode = lambda words: net(words, None, at=at)
        assert torch.allclose(encode(x), encode(head), atol=1e-5) == method.hides_given


def test_a_text_with_nothing_given_is_denoised_the_same_beside_one_that_has_words():
    _, net = built()
    randomize(net)
    z, gamma, x = torch.randn(2, 2, 8), torch.zeros(2, 1), texts(2)
    at = torch.tensor([[True] * L, [False] * L])
    close(net(z, gamma, at=at, words=x)[:1],
          net(z[:1], gamma[:1], at=at[:1], words=x[:1]), 1e-5)


def test_latents_have_mean_0_and_variance_1_for_each_coordinate():
    """Of the batch in training, and of the data, once the statistics are measured."""
    _, net = built()
    h = net(texts(200))
    close(h.mean(0), torch.zeros(2, 4), 1e-4)
    close(h.var(0, unbiased=False), torch.ones(2, 4), 1e-2)
    net.eval().set_statistics(net.encode(texts(500), torch.ones(500, L, dtype=torch.bool)))
    h = net(texts(500))
    close(h.mean(0), torch.zeros(2, 4), 1e-4)
    close(h.var(0, unbiased=False), torch.ones(2, 4), 1e-2)


@pytest.mark.parametrize("K, n", [(3, 7), (8, 20), (10, 20), (4, 4), (5, 3)])
def test_each_word_belongs_to_one_window_and_differs_from_its_neighbors_there(K, n):
    """Weights of the matrices of its window, which sum to 1; windows are in order, and equal but
    for one word."""
    near = windows(K, n)
    assert near.shape == (K, KNOTS, n)
    close(near.sum((0, 1)), torch.ones(n), 1e-6)
    owned = near.sum(1) > 0
    assert (owned.sum(0) == 1).all() and (owned.int().argmax(0).diff() >= 0).all()
    assert owned.sum(1).max() - owned.sum(1).min() <= 1
    for own in near:
        rows = own[:, own.sum(0) > 0].T
        assert len(rows.unique(dim=0)) == len(rows)


def test_before_attention_mixes_them_a_vector_is_of_the_words_of_its_window():
    """In a fresh network, whose blocks do nothing; and so is what a word is read from."""
    _, net = built()
    x, other = texts(50), texts(50, seed=2)
    mixed = torch.where(torch.arange(L) < 3, x, other)
    every = torch.ones_like(x, dtype=torch.bool)
    h, changed = (net.encode(words, every) for words in (x, mixed))
    assert torch.equal(h[:, 0], changed[:, 0]) and not torch.allclose(h[:, 1], changed[:, 1])
    moved = h.clone()
    moved[:, 1] += 1
    same = (net.beside_words(h, L) == net.beside_words(moved, L)).all(-1).all(0)
    assert same.tolist() == [True] * 3 + [False] * 3


def test_no_latent_is_far_from_the_mean_however_rare_it_is():
    """A word that one of 500 texts has: 22 deviations, which no denoiser would expect."""
    _, net = built()
    net.eval()
    x = texts(500)
    x[:, -3:] = 0
    every = torch.ones_like(x, dtype=torch.bool)
    net.set_statistics(net.encode(x, every))
    x[0, -1] = 1
    h = net(x)
    assert h.abs().max() == FARTHEST and h[1:, 0].abs().max() < FARTHEST


# ---- two stages

def test_the_learning_rate_falls_to_0_in_each_stage_and_begins_anew():
    """A tenth of a stage is warm-up, at most. Without stages it is as it was."""
    config = SimpleNamespace(max_iters=100, warmup_iters=20, lr_schedule="linear", min_lr=0.0)
    method = make_method("ld4lg", V, autoencoder=0.4)
    rate = partial(Trainer.learning_rate,
                   SimpleNamespace(method=method, objective=method, config=config))
    assert [rate(step) for step in (0, 3, 4, 22)] == pytest.approx([1 / 4, 1, 1, 0.5])
    assert rate(39) == pytest.approx(1 / 36) and rate(40) == pytest.approx(1 / 6)
    assert [rate(step) for step in (45, 46, 73, 99)] == pytest.approx([1, 1, 0.5, 1 / 54])
    mdlm = make_method("mdlm", V)
    plain = SimpleNamespace(method=mdlm, objective=mdlm, config=config)
    assert Trainer.learning_rate(plain, 9) == 0.5 and Trainer.learning_rate(plain, 60) == 0.5
    other = SimpleNamespace(method=method, objective=None, config=config)
    assert Trainer.learning_rate(other, 60) == 0.5  # stages are those of its own loss


def train(method, net, steps, first=0, last=None, batch=32):
    """Steps of a run of `last` steps, as train.py takes them. -> the running average"""
    last = last or steps
    data = SimpleNamespace(windows=lambda split, n: texts(n, 5))
    trainer = SimpleNamespace(model=net, config=SimpleNamespace(max_iters=last), data=data,
                              device="cpu", ema=EMA(net, 0.9))
    trainer.average, optimizers = trainer.ema.average, make_optimizers(net, OPTIMIZER)
    for step in range(first, first + steps):
        method.on_step(step, trainer)
        torch.manual_seed(step)
        method.loss(net, texts(batch, 10 + step)).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        trainer.ema.update(net, step)
        yield trainer


@pytest.mark.parametrize("name", ["ld4lg", "dglm", "lcm"])
def test_stage_two_leaves_encoder_and_decoder_bit_identical(name):
    """Weight decay, momentum and the running average included; stage one leaves the denoiser."""
    method, net = built(name, autoencoder=0.5)
    fresh, kept = {key: p.clone() for key, p in net.named_parameters()}, None
    mine = ("denoiser", "places", "read_noisy", "past", "read_past")  # of stage two
    for step, trainer in enumerate(train(method, net, 8)):
        if step == 3:
            assert all(torch.equal(fresh[key], p) for key, p in net.named_parameters()
                       if key.startswith(mine))
            assert not torch.equal(fresh["embed"], net.embed)
        if step == 4:
            kept = {key: p.clone() for key, p in net.named_parameters()}
            assert method.settled and torch.equal(net.embed, trainer.average.embed)
    for network in (net, trainer.average):
        for key, p in network.named_parameters():
            assert key.startswith(mine) or torch.equal(kept[key], p), key
    assert not torch.equal(kept["denoiser.head.weight"], net.denoiser.head.weight)


def test_a_resumed_run_is_in_the_stage_that_it_was_in():
    method, net = built(autoencoder=0.5)
    list(train(method, net, 8))
    other, _ = built(autoencoder=0.5)
    other.load_extra_state(method.extra_state())
    other.on_step(7, SimpleNamespace(config=SimpleNamespace(max_iters=8)))  # it measures nothing
    assert other.settled and other.progress == 7 / 8


def test_the_decoder_finds_the_words_again_after_a_short_training():
    """Random words, so nothing but the vectors can tell: more than nine in ten, after chance."""
    method, net = built(latents=6, dim=6, decode_at=0.1, autoencoder=1.0)
    x = texts(100, 3)
    before = dict(method.measures(net, x))["reconstruction: words"].mean()
    for trainer in train(method, net, 40, last=1000):
        pass
    found = dict(method.measures(trainer.average, x))
    assert before < 0.4 and found["reconstruction: words"].mean() > 0.9


# ---- the walk ends where the decoder was trained

def one_text(h):
    """The exact denoiser of a world of one text, whose latents are h (K, d)."""
    seen = []

    def denoiser(z, gamma, at=None, label=None, words=None):
        if gamma is None:
            seen.append(z)
            return torch.zeros(int(at.sum()), V)
        return to_velocity(z[..., :4].double(), h.double(), gamma.double())
    denoiser.seen = seen
    return denoiser


@pytest.mark.parametrize("name", ["ancestral", "ddpm", "ddim", "2m"])
def test_the_decoder_reads_in_samples_what_it_read_in_training(name):
    """With one text each sampler ends at alpha_0 h + sigma_0 eps, mean and deviation: no stale and
    no clean estimate."""
    method, h = make_method("ld4lg", V, latents=2, dim=4), torch.randn(2, 4)
    denoiser, n = one_text(h), 4000
    z, nothing = method.prior((n, 2)), torch.zeros(n, 2, dtype=torch.bool)
    torch.manual_seed(0)
    assert len(list(method.sample(denoiser, z, nothing, 12, make_sampler(name, method)))) == 12
    read, (alpha, sigma) = denoiser.seen[-1], signal(method.ends()[0])
    assert (read.mean(0) - alpha * h).abs().max() < 5 * sigma / n ** 0.5
    assert (read.std(0) / sigma - 1).abs().max() < 5 / (2 * n) ** 0.5
    trained = method.for_decoder(h.expand(n, -1, -1))
    assert (trained.std(0) / sigma - 1).abs().max() < 5 / (2 * n) ** 0.5


def test_a_walk_of_second_order_begins_anew():
    """With one sampler for two walks: the first step has no past."""
    method, net = built()
    randomize(net)
    sampler, nothing = make_sampler("2m", method), torch.zeros(5, L, dtype=torch.bool)

    def write():
        torch.manual_seed(3)
        return list(method.sample(net, texts(5), nothing, 4, sampler))[-1]
    assert torch.equal(write(), write())


def test_where_h_is_known_only_the_noise_that_is_left_costs():
    """The last term of (15.5), with gamma_1 = 1; and an error of the estimate costs by its weight.
    """
    method, h = make_method("ld4lg", V, latents=2, dim=4, self_condition=0.0), torch.randn(2, 4)
    method.process.schedule, x = PlainCosine(most=1.0), texts(3)
    at, many = torch.ones_like(x, dtype=torch.bool), h.expand(3, -1, -1)
    nats = method.latent_nats(one_text(h), many, x, at)
    close(nats, prior_nats(many, torch.tensor(1.0)).sum(-1).double(), 1e-4)
    assert (method.latent_nats(one_text(h + 0.5), many, x, at) > nats + 0.01).all()


def test_guidance_of_1_is_none_and_of_0_ignores_the_class():
    """Bit by bit, and of 2 is linear in h'."""
    method, net = built(n_classes=3)
    randomize(net)
    label, x, at = torch.tensor([1]), texts(4), torch.ones(4, L, dtype=torch.bool)
    y, t = torch.randn(4, 2, 4), torch.full((4, 1), 0.5)
    ancestral = make_sampler("ancestral", method)
    h = {w: method.estimate(guide_by_label(method, net, ancestral, label, 3, w)[0], y, t, at, x)
         for w in (0, 1, 2)}
    assert torch.equal(h[1], method.estimate(Labeled(net, label), y, t, at, x))
    assert torch.equal(h[0], method.estimate(net, y, t, at, x))
    close(h[2], h[0] + 2 * (h[1] - h[0]), 1e-4)


def test_self_conditioning_has_no_gradient_and_is_tossed_for_each_text():
    method, net = built(self_condition=0.3)
    randomize(net)
    x, at = texts(400), torch.ones(400, L, dtype=torch.bool)
    torch.manual_seed(0)
    fed = method.fed_back(net, torch.randn(400, 2, 4), torch.full((400, 1), 0.5), at, x)
    some = (fed != 0).any(-1).any(-1)
    assert not fed.requires_grad and abs(some.double().mean() - 0.3) < 0.1
    assert built(self_condition=0.0)[0].fed_back(net, None, None, None, None) is None


def test_without_noise_at_the_decoder_there_is_no_bound():
    """And the reason is one line; with noise it is a bound of the network, far above at first."""
    method, net = built(decode_at=0.0)
    assert not method.bounded and "\n" not in method.unbounded_reason
    x = texts(50)
    assert method.nelbo(net, x).isfinite().all()
    h = torch.randn(3, 2, 4)
    assert torch.equal(method.for_decoder(h), h) and built()[0].bounded
    nats = built()[0].nelbo(built()[1], x).sum(-1).mean()
    assert nats > L * math.log(V)


def test_what_has_no_meaning_for_latents_is_refused_in_one_line():
    method, _ = built()
    for flags in (dict(clamp=True), dict(last="argmax")):
        with pytest.raises(UserError, match="leave out --"):
            make_sampler("ddpm", method, **flags)
    usual = dict(time_input="auto", learned_places=False, sides="joined")
    method.check(SimpleNamespace(**usual))
    with pytest.raises(UserError, match="leave it out"):
        method.check(SimpleNamespace(**usual | dict(learned_places=True)))


def test_ends_are_no_words_that_are_found_again():
    """Of a text that ends after two words, the rest does not count, but belongs to the whole."""
    method, net = built()
    x, lengths = texts(4), torch.tensor([2, 2, 6, 6])
    method.write = lambda network, z, *rest: torch.cat([x[:, :3], (x[:, 3:] + 1) % V], 1)
    found = dict(method.measures(net, x, None, lengths))
    assert found["reconstruction: words"].tolist() == [1, 1, 0.5, 0.5]
    assert found["reconstruction: whole texts"].tolist() == [0, 0, 0, 0]


def test_evaluation_prints_what_the_decoder_finds_again(capsys):
    print_results({"measures": [("reconstruction: words", 0.99, 0.01)]}, None, None, exact=False)
    assert capsys.readouterr().out == "reconstruction: words: 0.990 +- 0.010\n"
