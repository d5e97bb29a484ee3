"""GIDD: the numbers of its public code."""
import numpy
import pytest
import torch
from references import LOG_P, X_THETA, S, T, V, X, figure, same

from diffusion import Hybrid, bound, reverse
from methods.gidd import GIDD
from methods.udlm import jump_weight, mixture_bound


@pytest.mark.parametrize("p_uniform", ["0.0", "0.1", "0.2"])
def test_process_bound_and_reverse_step_are_those_of_the_public_code(p_uniform):
    """The public code keeps the uniform share above exp(-20), and so does the test."""
    z, theirs = figure("in/zt_hyb"), lambda what: figure(f"gidd/pu{p_uniform}_{what}")
    process = Hybrid(11, max(float(p_uniform), numpy.exp(-20)))
    same(process.alpha(T), theirs("alpha"))
    same(process.b(T, torch.arange(V)), theirs("beta_pi"))
    same(jump_weight(process, X, z, T), theirs("elbo_weight"))
    same(mixture_bound(process, LOG_P, X, z, T), theirs("elbo"))
    same(bound(process, X_THETA, X, z, T), theirs("elbo"))
    same(reverse(process, X_THETA, z, S, T), theirs("reverse_q"))


@pytest.mark.parametrize("p_uniform", [0.1, 0.2])
def test_the_dynamic_weights_are_those_of_the_paper(p_uniform):
    """2 at masks, 1 at wrong text. At clean tokens paper and public code differ, in nothing else.

    The paper has B/N exp(-lambda/2), lambda = log((1-t)/t), as ours. The code has
    B/V exp(sigmoid(-t)/2) with V = N + 1. Either is about 0.
    """
    z, theirs = figure("in/zt_hyb"), figure(f"gidd/pu{p_uniform}_lossweight_dynamic")
    ours = GIDD(11, p_uniform=p_uniform).dynamic_weight(X, z, T)
    slip = 11 / 12 * torch.exp(torch.sigmoid(-T) / 2) / (T / (1 - T)).sqrt()  # (B, 1)
    same(torch.where(z == X, ours * slip, ours), theirs)


def test_sampling_begins_with_masks_and_the_noise_is_half_words_where_p_uniform_says():
    method = GIDD(6, p_uniform=0.3)
    assert (method.prior((3, 4)) == 6).all()
    t = torch.tensor([[0.5]], dtype=torch.float64)
    words = 6 * method.process.b(t, torch.tensor([[0]]))
    assert float(words) == pytest.approx(0.3, abs=1e-12)
