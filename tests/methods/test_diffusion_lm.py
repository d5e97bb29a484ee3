"""Diffusion-LM: the published terms of its loss, its steps, and how a table collapses.

embedding.npz, `dlm/*`: the code of XiangLi1999/Diffusion-LM (commit 759889d) with a linear network,
50 levels of the sqrt schedule; REF_vlb_*: its bound with the right first term, in nats per token.
"""
import math

import pytest
import torch
from bounds import close
from references import Figures

from gaussian import VectorSpace, ddim, large_variance, prior_nats, step_law, step_nats
from methods import make_method
from methods.diffusion_lm import rounding_nats
from methods.gammas import Linear

figure = Figures("embedding")
GAMMA = -torch.logit(figure("sched/sqrt_T50_alphas_cumprod"))  # (50,)
TABLE, IDS = figure("dlm/table"), figure("dlm/ids")  # (11, 8), (4, 6)


def level(i):
    """gamma of levels i (4,), as (4, 6) float32."""
    return GAMMA[i][:, None].expand(-1, 6).float()


def network(z, i):
    """The stub: x_hat = z W + P (1 + tau / 1000), tau = 1000 i / 50."""
    scale = (1 + i.float() * 1000 / 50 / 1000)[:, None, None]  # (4, 1, 1)
    return z @ figure("dlm/W") + figure("dlm/P") * scale  # (4, 6, 8)


def test_the_terms_of_the_loss_are_the_published_ones():
    t, x_0 = figure("dlm/t"), figure("dlm/x_start")  # (4,), (4, 6, 8)
    e, first = TABLE[IDS], GAMMA[:1].float()  # (4, 6, 8), (1,)
    close(x_0, e + torch.sigmoid(first).sqrt() * figure("dlm/noise_x0"), 1e-5)
    alpha, sigma = (torch.sigmoid(sign * level(t)).sqrt()[..., None] for sign in (-1, 1))
    z = alpha * x_0 + sigma * figure("dlm/noise")  # (4, 6, 8)
    close(z, figure("dlm/x_t"), 1e-5)
    nats = rounding_nats(x_0.flatten(0, 1), TABLE, figure("dlm/bias"), IDS.flatten())  # (24,)
    close(nats.view(4, 6).mean(-1), figure("dlm/decoder_nll"), 1e-5)
    close((torch.sigmoid(-GAMMA[-1]) * x_0.square()).mean((1, 2)).float(), figure("dlm/tT_loss"),
          1e-5)
    target = torch.where((t == 0)[:, None, None], e, x_0)
    close((target - network(z, t)).square().mean((1, 2)), figure("dlm/mse"), 1e-5)


def test_steps_are_the_published_ones_also_clamped_and_by_ddim():
    """At i = 7, 30 and 49 to the level before; index 0 draws no noise and is left out."""
    t, z = figure("dlm/t")[1:], figure("dlm/x_t")[1:]  # (3,), (3, 6, 8)
    x_hat, (s, t) = network(z, t), ((t - 1), t)
    gammas = [GAMMA[a][:, None].expand(-1, 6).float() for a in (s, t)]  # (3, 6) each
    close(x_hat, figure("dlm/pred_xstart")[1:], 1e-5)
    space = VectorSpace(TABLE, "free", Linear(-4.0, 9.0))
    nearest = TABLE[space.nearest(x_hat.flatten(0, 1))].view(3, 6, 8)
    close(nearest, figure("dlm/pred_xstart_clamp")[1:], 1e-5)
    for name, x_hat in (("", x_hat), ("_clamp", nearest)):
        mean, _ = step_law(z, x_hat, *gammas)
        noise = figure(f"dlm/p_sample{name}_noise")[1:]
        step = mean + large_variance(*gammas).sqrt()[..., None] * noise
        close(step, figure(f"dlm/p_sample{name}")[1:], 2e-5)
    mean, variance = step_law(z, network(z, t), *gammas)
    close(ddim(z, network(z, t), *gammas), figure("dlm/ddim_eta0")[1:], 2e-5)
    close(mean + variance.sqrt()[..., None] * figure("dlm/ddim_eta1_noise")[1:],
          figure("dlm/ddim_eta1")[1:], 2e-5)


def test_the_bound_in_steps_is_the_published_one_with_its_first_term_put_right():
    """In nats per token: as published it is in bits per dimension, D log 2 = 5.5 times less."""
    ours, found = figure("dlm/REF_vlb_nats_per_token"), []  # (4, 52): prior, t = 49 .. 0, decoder
    e = TABLE[IDS].double()  # (4, 6, 8)
    x_0 = e + torch.sigmoid(GAMMA[0]).sqrt() * figure("dlm/vlb_noise_x0")  # (4, 6, 8)
    alpha, sigma = torch.sigmoid(-GAMMA).sqrt(), torch.sigmoid(GAMMA).sqrt()  # (50,) each
    for k, i in enumerate(range(49, 0, -1)):
        z = alpha[i] * x_0 + sigma[i] * figure("dlm/vlb_noise")[k]  # (4, 6, 8)
        x_hat = network(z.float(), torch.full((4,), i)).double()  # (4, 6, 8)
        gammas = GAMMA[i - 1].expand(4, 6), GAMMA[i].expand(4, 6)  # (4, 6) each
        (right, small), (mean, _) = (step_law(z, a, *gammas) for a in (x_0, x_hat))
        large = large_variance(*gammas)  # (4, 6) of the model: another KL than (13.9)
        kl = 8 * ((large / small).log() + small / large - 1) / 2  # (4, 6) 8 dimensions
        found.append((kl + (right - mean).square().sum(-1) / large / 2).mean(-1))  # (4,)
        least = step_nats(x_0, x_hat, *gammas)  # (4, 6) the same with the variance of (13.4)
        close((right - mean).square().sum(-1) / small / 2, least)
    close(torch.stack(found, -1), ours[:, 1:50], 1e-5)
    close(prior_nats(x_0, GAMMA[-1]).mean(-1), ours[:, 0], 1e-5)
    assert ours.sum(-1).mean() / figure("dlm/vlb_total_bits_per_dim").mean() > 5


def test_without_rounding_the_loss_has_no_term_that_keeps_rows_apart():
    """All rows 0, and a network that says so, is a perfect score; with rounding it costs log V."""
    for rounding, least in ((False, 0.0), (True, math.log(7))):
        method, network, x = trained_parts_of(rounding)
        method.process.table.data.zero_()
        silent = lambda z, t, at: torch.zeros(int(at.sum()), method.dim)
        assert method.loss(silent, x).mean().item() == pytest.approx(least, abs=1e-6)


def trained_parts_of(rounding):
    method = make_method("diffusion_lm", 7, dim=4, rounding=rounding)
    return method, method.network(7, 1, 2, 16, cond_dim=8), torch.randint(7, (24, 12))


def test_a_network_of_vectors_learns_the_table_too():
    method, network, x = trained_parts_of(True)
    method.loss(network, x).mean().backward()
    assert (network.space.table.grad != 0).any() and (network.space.bias.grad != 0).any()
