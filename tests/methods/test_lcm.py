"""LCM: the past and nothing but the past, its guidance, its schedule."""
import pytest
import torch
from bounds import above_entropy, close
from networks import randomize
from references import Figures
from test_ld4lg import built, texts

import world
from gaussian import signal
from methods import make_method
from methods.lcm import rescaled
from samplers import make_sampler
from world import P, distance, numbers

figure = Figures("latent")


def test_the_schedule_is_that_of_the_public_code_before_it_is_rescaled():
    """T = 100 steps; the last betas are clipped, and gamma ends at 15 here."""
    schedule = make_method("lcm", 7).process.schedule
    t = torch.arange(1, 99, dtype=torch.float64) / 100
    close(schedule.alpha2(t), figure("lcm/squaredcos_no_rescale_alpha2").double()[:98], 1e-4)


def test_guidance_is_that_of_the_public_code():
    """(15.14) at w = 3."""
    eps, eps_0 = figure("lcm/cfg_in").double().chunk(2)
    close(rescaled(eps, eps_0, 3.0), figure("lcm/cfg_w3_rescale.7").double(), 1e-5)


def network(sentence=2, **flags):
    method, net = built("lcm", latents=2, dim=4, sentence=sentence, **flags)
    randomize(net)
    return method, net


def test_a_sentence_sees_those_before_it_and_neither_itself_nor_what_follows():
    """Six tokens are three sentences: whose h' changes if one of them does?"""
    method, net = network()
    x, z, gamma = texts(4), torch.randn(4, 6, 8), torch.zeros(4, 1)
    at = torch.ones_like(x, dtype=torch.bool)
    plain = net(z, gamma, at=at, words=x).view(4, 3, -1)
    for changed in range(3):
        y = x.clone()
        y[:, 2 * changed] = (y[:, 2 * changed] + 1) % 7
        other = net(z, gamma, at=at, words=y).view(4, 3, -1)
        moved = (plain - other).abs().amax(-1) > 1e-6  # (4, 3)
        assert torch.equal(moved, torch.arange(3).expand(4, -1) > changed)
    noise = z.clone()
    noise[:, 2:4] += 1  # the noisy latents of the second one are its own
    moved = (plain - net(noise, gamma, at=at, words=x).view(4, 3, -1)).abs().amax(-1) > 1e-6
    assert torch.equal(moved, torch.arange(3).expand(4, -1) == 1)
    alone = net(z, gamma, at=at, words=x, alone=torch.ones(4, 1, dtype=torch.bool)).view(4, 3, -1)
    close(alone[:, 0], plain[:, 0], 1e-5)
    assert ((alone - plain).abs().amax(-1) > 1e-6)[:, 1:].all()


def test_given_words_of_a_sentence_are_read():
    method, net = network()
    x, z, gamma = texts(4), torch.randn(4, 6, 8), torch.zeros(4, 1)
    at = torch.ones_like(x, dtype=torch.bool)
    at[:, 2] = False
    y = x.clone()
    y[:, 2] = (y[:, 2] + 1) % 7
    plain, other = (net(z, gamma, at=at, words=a).view(4, 3, -1) for a in (x, y))
    moved = (plain - other).abs().amax(-1) > 1e-6
    assert torch.equal(moved, torch.arange(3).expand(4, -1) >= 1)


def test_a_text_that_is_no_multiple_of_a_sentence_has_a_shorter_last_one():
    method, net = network(sentence=4)
    x = texts(5)
    h = method.encode(net, x, torch.ones_like(x, dtype=torch.bool))
    assert h.shape == (5, 4, 4) and method.count_sentences(6) == 2
    assert method.nelbo(net, x).shape == x.shape


@pytest.mark.parametrize("sentence", [1, 2])
def test_in_the_world_the_bound_is_exact_and_samples_have_its_law(sentence):
    """(15.13): each sentence given those before it."""
    method = world.make_world_method("lcm", 3, dim=4, self_condition=0.0, sentence=sentence)
    exact, (more, error) = method.oracle(world.LANGUAGE), above_entropy(method)
    assert error < 0.06 and abs(more) < 4.5 * error
    z, nothing = method.prior((1000, 3)), torch.zeros(1000, 3, dtype=torch.bool)
    states = list(method.sample(exact, z, nothing, 16, make_sampler("ddim", method)))
    assert len(states) == method.count_states(3, 16) == 16 * -(-3 // sentence)
    far, error = distance(numbers(states[-1], 3), P)
    assert far < 0.003 + 4 * error


def test_guidance_of_the_past_is_none_at_1_and_ignores_it_at_0():
    """And leaves pure noise as it is: eps' is z there."""
    method, net = network(self_condition=0.0)
    x, z = texts(4), torch.randn(4, 6, 4)
    at, t = torch.ones_like(x, dtype=torch.bool), torch.full((4, 1), 0.5)
    guess = lambda w, t: setattr(method, "context_guidance", w) or method.guess(net, z, t, at, x)
    with torch.no_grad():
        plain = method.estimate(net, z, t, at, x)
        assert torch.equal(guess(1.0, t), plain)
        start = torch.ones(4, 1)
        assert torch.equal(guess(3.0, start), method.estimate(net, z, start, at, x))
        alone = method.output(net, z, t, at, x, alone=torch.ones(4, 1, dtype=torch.bool))
        alpha, sigma = (a[..., None] for a in signal(method.gamma(t)))
        eps = lambda h: ((z - alpha * h) / sigma).view(4, 3, -1)
        size = eps(plain).std(-1, keepdim=True) / eps(alone).std(-1, keepdim=True)
        close(eps(guess(0.0, t)), eps(alone) * (0.7 * size + 0.3), 1e-4)


def test_in_training_a_share_of_the_texts_has_no_past_each_by_itself():
    method, net = network(context_dropout=0.25)
    method.progress, seen = 1.0, []

    def spy(z, gamma, at=None, words=None, alone=None):
        seen.append(alone)
        return net(z, gamma, at=at, words=words)
    torch.manual_seed(0)
    method.loss(spy, texts(2000))
    assert abs(seen[-1].double().mean() - 0.25) < 0.05 and seen[-1].shape == (2000, 1)
    with torch.no_grad():
        method.nelbo(spy, texts(10))
    assert seen[-1] is None
