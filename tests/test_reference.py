"""
Figures computed with the public research code, matched number by number in float64 (1e-5 asked, 1e-9 kept).

tests/reference.npz was made by running the repositories of MDLM (commit c112c52), UDLM (edb0f8c) and GIDD (f67acc9) on
random inputs: B = 4 texts of L = 8 tokens, V = 12 symbols, of which the mask is 11; net/* holds two tiny networks and
what they answer.
"""
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F

from diffusion import bound, reverse
from masked import Absorbing, masked_bound
from uniform import GIDD, Hybrid, Uniform, jump_weight, mixture_bound

FIGURES = numpy.load(Path(__file__).parent / "reference.npz")
V = 12                                                   # 11 text symbols and the mask, 11; in uniform noise all text


def figure(name):
    return torch.from_numpy(FIGURES[name])


def same(ours, name, tolerance=1e-9):
    torch.testing.assert_close(ours, figure(name), atol=tolerance, rtol=tolerance)


T = figure("in/t")[:, None]
S = T - 0.0625
LOG_P = figure("in/logits")[..., :11].log_softmax(-1)                                                   # (B, L, 11)
X_THETA = F.pad(LOG_P.exp(), (0, 1))                                                                    # (B, L, 12)
X, Z = figure("in/x0"), figure("in/zt_abs")
LOG_P_U, X_U, Z_U = figure("in/logits_u").log_softmax(-1), figure("in/x0_u"), figure("in/zt_u")


def carried_over(z):
    return torch.where((z < 11)[..., None], F.one_hot(z, V).double(), X_THETA)                          # (B, L, 12)


def test_mdlm():
    process, ce = Absorbing(11), -LOG_P.gather(-1, X[..., None])[..., 0]
    same(masked_bound(process, ce, Z, T), "mdlm/nelbo_ct")
    same(bound(process, carried_over(Z), X, Z, T), "mdlm/nelbo_ct")


def test_mdlm_reverse():
    """The public code hands unnormalised rows to its race, and lets eps = 0.001 of the signal remain at t = 1."""
    rows = figure("mdlm/ddpm_q_unnorm")
    ours = reverse(Absorbing(11, eps=1e-3), X_THETA, Z, S, T)
    masked = Z == 11
    torch.testing.assert_close(ours[masked], (rows / rows.sum(-1, keepdim=True))[masked], atol=1e-9, rtol=1e-9)


def test_udlm():
    process = Uniform(V)
    same(LOG_P_U, "udlm/log_x")
    same(mixture_bound(process, LOG_P_U, X_U, Z_U, T), "udlm/nelbo_ct")
    same(bound(process, LOG_P_U.exp(), X_U, Z_U, T), "udlm/nelbo_ct")


@pytest.mark.parametrize("p_uniform", ["0.0", "0.1", "0.2"])
def test_gidd(p_uniform):
    """The public code floors the uniform share at exp(-20), and so do we here."""
    z, name = figure("in/zt_hyb"), f"gidd/pu{p_uniform}_"
    process = Hybrid(11, max(float(p_uniform), numpy.exp(-20)))
    same(process.alpha(T), name + "alpha")
    same(process.b(T, torch.arange(V)), name + "beta_pi")
    same(jump_weight(process, X, z, T), name + "elbo_weight")
    same(mixture_bound(process, LOG_P, X, z, T), name + "elbo")
    same(bound(process, X_THETA, X, z, T), name + "elbo")
    same(reverse(process, X_THETA, z, S, T), name + "reverse_q")


@pytest.mark.parametrize("p_uniform", [0.1, 0.2])
def test_gidd_dynamic_weights(p_uniform):
    """2 at masks, 1 at wrong text. At right text paper and public code differ, the only figure that does.

    The paper has B/N exp(-lambda/2), lambda = log((1-t)/t), and so have we; the code has B/V exp(sigmoid(-t)/2) with
    V = N + 1: next to nothing either way.
    """
    z, theirs = figure("in/zt_hyb"), figure(f"gidd/pu{p_uniform}_lossweight_dynamic")
    ours = GIDD(11, p_uniform=p_uniform).dynamic_weight(X, z, T)
    slip = 11 / 12 * torch.exp(torch.sigmoid(-T) / 2) / (T / (1 - T)).sqrt()                             # (B, 1)
    torch.testing.assert_close(torch.where(z == X, ours * slip, ours), theirs, atol=1e-9, rtol=1e-9)
