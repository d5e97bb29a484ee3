"""CDCD: the warp of times is the published one, and is fitted to cross-entropies.

embedding.npz, `cdcd/*`: the code of igul222/plaid (commit e7d5cf8), 8 pieces.
"""
import math

import pytest
import torch
from bounds import close
from references import Figures

from diffusion import stratified
from methods import make_method
from methods.cdcd import HIGH, LOW, LogTime, Warp

figure = Figures("embedding")


def published_warp():
    warp = Warp(8)
    warp.l_t.data, warp.l_u.data = figure("cdcd/l_t"), figure("cdcd/l_u")
    return warp


def test_times_and_noise_of_the_warp_are_the_published_ones():
    warp, u = published_warp(), figure("cdcd/u")  # (12,)
    t, slope = warp(u)
    close(LOW + (HIGH - LOW) * t, figure("cdcd/t_of_u"), 1e-5)
    close(LogTime()(t), figure("cdcd/gamma"), 1e-5)
    close(slope * 2 * (HIGH - LOW) / figure("cdcd/t_of_u"), figure("cdcd/dgamma_du"), 1e-5)
    close(warp.rise(t)[0], figure("cdcd/F_unnormalised"), 1e-5)
    close(LogTime().time(LogTime()(t)), t)


def test_the_fit_and_its_gradient_are_the_published_ones():
    warp, u = published_warp(), figure("cdcd/u")
    with torch.no_grad():
        t, _ = warp(u)
    misfit = warp.misfit(t, figure("cdcd/xent")).mean()
    close(misfit, figure("cdcd/cdf_loss"), 1e-5)
    misfit.backward()
    close(warp.l_t.grad, figure("cdcd/grad_l_t"), 1e-5)
    close(warp.l_u.grad, figure("cdcd/grad_l_u"), 1e-5)


def test_fitted_to_a_step_the_warp_draws_times_at_the_step():
    """Where the cross-entropy rises, training spends its times."""
    torch.manual_seed(0)
    warp = Warp(10)
    for step in range(120):
        t = (torch.arange(64) + torch.rand(64)).double() / 64  # (64,)
        ce = 3.0 * torch.sigmoid((t - 0.3) / 0.02)  # (64,)
        gradients = torch.autograd.grad(warp.misfit(t, ce).mean(), [*warp.parameters()])
        for p, gradient in zip(warp.parameters(), gradients):
            p.data -= 0.1 * (1 - step / 120) * gradient.sign()
    drawn, _ = warp(torch.linspace(0.05, 0.95, 50).double())
    assert ((drawn - 0.3).abs() < 0.1).double().mean() > 0.7


def test_the_fit_adds_a_gradient_and_no_nats():
    method = make_method("cdcd", 7, dim=4, bins=5)
    network = method.network(7, 1, 2, 16, cond_dim=8)
    x, frozen = torch.randint(7, (8, 6)), torch.zeros(8, 6, dtype=torch.bool)
    frozen[:, :2] = True
    torch.manual_seed(0)
    nats = method.loss(network, x, frozen)
    assert nats[:, 2:].mean().item() == pytest.approx(math.log(7), abs=0.5)
    nats.mean().backward()
    assert (network.space.warp.l_u.grad != 0).any()
    torch.manual_seed(0)
    t, _ = method.process.warp(stratified(8))  # (8, 1)
    fed_back = method.choose_fed_back(8, "cpu")
    close(nats, method.cross_entropies(network, x, t.float(), frozen, fed_back), 1e-6)
