"""RADD: four forms of one bound, with the numbers of its public code (60b772d)."""
import pytest
import torch
from references import X_THETA, Figures, T, X, Z, same

import world
from diffusion import Absorbing, reverse
from methods.mdlm import MDLM
from methods.radd import OBJECTIVES, RADD, objective_nats
from world import TEXTS, N

figure = Figures("masked_reference")


def timeless(z, t, at):
    """A wrong denoiser that does not depend on the time."""
    return world.vandal(z, torch.full_like(t, 0.3, dtype=torch.float64), at)


@pytest.mark.parametrize("objective", OBJECTIVES[:3])
def test_the_objectives_are_those_of_the_public_code(objective):
    """With eps = 1e-3 of the signal left at t = 1, as there. The network's row holds the mask's
    logit, unused."""
    output = figure("radd/model_out")  # (B, L, 12)
    ce = -output.gather(-1, X[..., None])[..., 0]  # (B, L)
    name = {"t-dse": "t_DSE", "t-dce": "t_DCE", "lambda-dce": "lambda_DCE"}[objective]
    ours = objective_nats(objective, Absorbing(11, eps=1e-3), ce, Z, T)  # (B, L)
    same(ours.sum(-1), figure(f"radd/{name}"), 1e-6)


def test_the_any_order_objective_is_that_of_the_public_code():
    k = (Z == 11).sum(-1)  # (B,)
    ce = -figure("radd/model_out").gather(-1, X[..., None])[..., 0] * (Z == 11)  # (B, L)
    same(8 / k * ce.sum(-1), figure("radd/k_DCE"), 1e-6)


def test_the_rate_at_which_masks_open_is_that_of_the_public_code():
    s = T - 1 / 16 * (1 - 1e-5)  # (B, 1)
    p = reverse(Absorbing(11, eps=1e-3), X_THETA, Z, s, T)  # (B, L, 12)
    opens = torch.stack([1 - p[i][Z[i] == 11][0, 11] for i in range(4)])  # (B,)
    same(opens, figure("radd/update_rate_tweedie_16steps"), 1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_four_have_one_mean(objective):
    """Of a wrong denoiser without the time, on one text: mdlm's bound."""
    torch.manual_seed(0)
    x = TEXTS[14].expand(200_000, -1)  # (n, L)
    ours, theirs = RADD(N, radd_objective=objective).loss(timeless, x), MDLM(N).nelbo(timeless, x)
    difference = (ours - theirs).sum(-1)  # (n,)
    difference = difference[difference.abs() < 1e4]  # 1/t has no variance: without a few near t = 0
    error = difference.std() / len(difference) ** 0.5
    assert abs(difference.mean()) < 5 * error + 1e-3


def test_any_order_varies_least():
    torch.manual_seed(0)
    x = TEXTS[14].expand(50_000, -1)  # (n, L)
    spread = {name: RADD(N, radd_objective=name).loss(timeless, x).sum(-1).std()
              for name in OBJECTIVES}
    assert min(spread, key=spread.get) == "k-dce" and max(spread, key=spread.get) == "t-dce"
