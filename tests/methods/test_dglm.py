"""DGLM and the decoders from left to right: weights, prefixes, and whether latents are used."""
import pytest
import torch
from bounds import above_entropy, close
from references import Figures
from test_ld4lg import L, V, built, texts, train

import world
from methods import make_method
from methods.dglm import SCALE, density_of_gamma
from methods.gammas import PlainCosine

figure = Figures("latent")


def test_the_schedule_and_the_weights_are_those_of_star_ldm():
    """Their weights are on eps', h' and v', divided by their largest value."""
    method = make_method("dglm", V)
    ours = method.gamma(figure("sched/t").double())
    inside = ours.abs() < 19
    close(torch.sigmoid(-ours)[inside], figure("star/cosine_scale3_alpha2").double()[inside], 1e-6)
    gamma = -figure("star/log_snr").double()
    of_h = method.loss_weight(gamma) * density_of_gamma(gamma)
    close(of_h, figure("star/x_weight").double(), 2e-3)  # divided by a maximum on their grid
    of_eps, of_v = of_h / torch.exp(-gamma), of_h / (1 + torch.exp(-gamma))  # (15.4)
    close(of_eps, figure("star/eps_weight").double(), 2e-3)
    close(4 * of_v, figure("star/v_weight").double(), 2e-3)


def test_the_density_is_that_of_gamma_at_uniform_times():
    """The derivative of t by gamma; at their shift of 1 in place of 2 log 3 it is the file's."""
    gamma = torch.linspace(-6, 6, 50, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(PlainCosine(SCALE, 20.0).time(gamma).sum(), gamma)
    close(slope, density_of_gamma(gamma).detach(), 1e-8)
    shifted = -figure("star/log_snr").double() + 1 - 2 * torch.tensor(SCALE).double().log()
    low, high = figure("star/t_range_shift1").double()  # they cut times off at both ends
    close(density_of_gamma(shifted) / (high - low), figure("star/density_shift1").double(), 1e-5)


def test_a_share_of_the_texts_has_a_prefix_and_each_text_counts_by_its_free_words():
    method, net = built("dglm", prefix=0.5)
    torch.manual_seed(0)
    nats = method.loss(net, texts(4000))
    free = (nats != 0).sum(-1)
    assert abs((free < L).double().mean() - 0.5 * (L - 1) / L) < 0.04
    beginning = (nats == 0).long().cumprod(-1).sum(-1)
    assert torch.equal(beginning, L - free)
    scale = nats.sum(-1) / L  # log V per free word, whatever is given
    close(scale, torch.full_like(scale, torch.tensor(V).log().item()), 1e-4)


@pytest.mark.parametrize("name", ["dglm", "latent_planner"])
def test_in_the_world_the_bound_is_exact(name):
    """(15.12) with nothing given."""
    method = world.make_world_method(name, 3, dim=4, self_condition=0.0)
    more, error = above_entropy(method)
    assert error < 0.06 and abs(more) < 4.5 * error


def test_the_decoder_uses_its_latents_after_a_short_training():
    """Random words, of which each is hidden from the decoder as often as not: with the vectors of
    another text it has more than 4 of 11.7 nats to pay."""
    method, net = built("dglm", latents=6, dim=6, decode_at=0.2, autoencoder=1.0, prefix=0.0)
    for trainer in train(method, net, 120, last=1000):
        pass
    found = dict(method.measures(trainer.average, texts(200, 3)))
    assert found["nats/text that the vectors save the decoder"].mean() > 4
    assert found["reconstruction: words"].mean() > 0.5


def test_words_are_written_one_after_the_other_and_given_ones_stay():
    """A call for each place where any text wants a word."""
    method, net = built("dglm")
    calls, x = [], texts(5)
    frozen = torch.arange(L).expand(5, -1) < 2

    def spy(z, gamma, at=None, words=None, **layout):
        if gamma is None:
            calls.append(at)
            assert at.any(0).sum() == 1
        return net(z, gamma, at=at, words=words)
    torch.manual_seed(0)
    *_, made = method.sample(spy, x, frozen, 3)
    assert len(calls) == L - 2 and torch.equal(made[:, :2], x[:, :2]) and (made < V).all()
