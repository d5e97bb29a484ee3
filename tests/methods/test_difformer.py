"""Difformer: the published loss, the noise factor as a shift of gamma.

embedding.npz, `difformer/*`: the code of zhjgao/difformer (commit c1ec0e3) with a linear network,
F = 4, 50 levels of the sqrt schedule.
"""
import math

import pytest
import torch
from bounds import close
from references import Figures

from gaussian import add_noise
from methods import make_method
from methods.difformer import anchor_nats
from methods.gammas import Alpha2, Linear

figure = Figures("embedding")
ABAR = figure("sched/sqrt_T50_alphas_cumprod").float()  # (50,)
TABLE, IDS = figure("difformer/table"), figure("difformer/ids")  # (11, 8), (4, 6)


def published_parts(fed_back):
    """-> z_0 (4, 6, 8), z (4, 6, 8), x_hat (4, 6, 8) of the stub"""
    t, factor = figure("difformer/t"), figure("difformer/F").float()  # (4,), ()
    e = 8 ** 0.5 * TABLE[IDS]  # (4, 6, 8)
    alpha, sigma = ABAR[t].sqrt()[:, None, None], (1 - ABAR[t]).sqrt()[:, None, None]
    z = alpha * e + sigma * factor * figure(f"difformer/noise_selfcond{fed_back}")
    scale = (1 + t / 50)[:, None, None]  # (4, 1, 1)
    network = lambda prev: (z @ figure("difformer/W") + figure("difformer/P") * scale
                            + prev @ figure("difformer/C"))
    x_hat = network(torch.zeros_like(z))  # (4, 6, 8)
    return e, z, network(x_hat) if fed_back else x_hat


@pytest.mark.parametrize("fed_back", [0, 1])
def test_loss_and_anchor_are_the_published_ones(fed_back):
    e, _, x_hat = published_parts(fed_back)
    use = (IDS != 0)  # padding has the id 0
    close((e - x_hat).square().mean(-1)[use].mean(), figure(f"difformer/mse_selfcond{fed_back}"),
          1e-5)
    close(x_hat @ TABLE.T, figure(f"difformer/logits_selfcond{fed_back}"), 1e-5)
    for name, smoothing in (("nll", 0.0), ("ls0.1", 0.1)):
        nats = anchor_nats(x_hat.flatten(0, 1), TABLE, IDS.flatten(), smoothing).view(4, 6)
        close(nats[use].mean(), figure(f"difformer/REF_anchor_{name}_selfcond{fed_back}"), 1e-5)


def test_the_noise_factor_is_a_shift_of_gamma_and_the_size_of_z():
    """On the public z, which has F times the noise and is not rescaled."""
    e, z, _ = published_parts(0)
    t, schedule = figure("difformer/t"), Alpha2("sqrt", -4.21, 6.0, 2 * math.log(4))
    assert schedule.shift == pytest.approx(2.7726, abs=1e-4)
    gamma = (schedule.shift - torch.logit(ABAR[t]))[:, None].expand(-1, 6)  # (4, 6)
    size = (ABAR[t] + 16 * (1 - ABAR[t])).sqrt()[:, None, None]  # (4, 1, 1)
    close(add_noise(e, gamma, figure("difformer/noise_selfcond0")), z / size, 1e-5)


@pytest.mark.parametrize("factor", [1, 4])
def test_the_published_levels_are_shifted_before_they_are_divided(factor):
    """They have unit variance, abar / (F^2 - (F^2 - 1) abar), over its value at t = 0."""
    betas = figure(f"sched/difformer_sqrt_F{factor}_T50_betas")[:-1]  # (49,)
    abar = 0.99 * torch.cat([torch.ones(1), figure("sched/sqrt_T50_alphas_cumprod")])  # (51,)
    shifted = torch.sigmoid(torch.logit(abar) - 2 * math.log(factor))  # (51,)
    close((1 - betas).cumprod(0), shifted[1:-1] / shifted[0], 1e-6)


def test_a_bound_over_shifted_times_is_the_same_bound():
    """Its ends are in gamma: for F = 4 the same gammas stand at other times."""
    nats, x = [], torch.randint(7, (50, 6))
    for schedule in (Linear(-4.0, 6.0), Alpha2("sqrt", -4.0 - 2.0, 6.0 - 2.0, 2.0)):
        method = make_method("difformer", 7, dim=5, self_condition=0.0)
        method.process.schedule = schedule
        torch.manual_seed(0)
        shrink = lambda z, t, at: (z * torch.sigmoid(-method.process.gamma(t))[..., None])[at]
        nats.append(method.nelbo(shrink, x))
    close(*nats, 1e-3)


def test_more_noise_is_the_same_times_at_a_higher_gamma():
    """At t = 0; the last gamma is that of no noise factor."""
    for factor, first in ((1.0, -4.21), (4.0, -4.21 + 2.7726)):
        process = make_method("difformer", 7, dim=5, noise_factor=factor).process
        close(process.gamma(torch.tensor([0.0, 1.0])), torch.tensor([first, 9.2]), 1e-3)


def test_rows_are_normalized_so_that_no_norm_can_collapse():
    method = make_method("difformer", 7, dim=5)
    method.process.table.data *= 0.3
    close(method.process.rows().norm(dim=-1), torch.full((7,), 5 ** 0.5), 5e-3)
