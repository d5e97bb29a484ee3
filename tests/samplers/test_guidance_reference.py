"""
Guidance against figures of the public code of D-CFG and D-CBG (arXiv:2412.10193, commit edb0f8c).

reference/guidance_reference.npz was made by running it in float64: 4 texts of 8 tokens, 12 symbols,
of which the mask is 11; two conditions; a made-up classifier.
"""
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from test_guidance import ONE, close, probs_of

import world
from diffusion import Absorbing, Uniform, reverse
from samplers.guidance import (
    CFG,
    classifier_free_step,
    classifier_step,
    exact_scores,
    first_order_scores,
)

FIGURES = numpy.load(Path(__file__).parents[1] / "reference/guidance_reference.npz")


def figure(name):
    return torch.from_numpy(FIGURES[name])


def setting(noise):
    """The process, z, s, t, a denoiser with two conditions, the classifier.

    All keep 0.001 of signal at t = 1.
    """
    z, share = figure(f"{noise}/z"), 1 - 1e-3  # (B, L)
    t = figure("t")[:, None]  # (B, 1)
    s = t - 0.0625  # (B, 1)
    conditions = [figure(f"{noise}/{name}") for name in ("conditional", "unconditional")]
    weight = figure(f"{noise}/weight").double()  # (L, V, 3)
    process = Absorbing(11, eps=1e-3) if noise == "abs" else Uniform(12)
    clock = 1 if noise == "abs" else share  # as a time of ours that has their alpha

    def denoiser(z, t, at, label=None):
        return conditions[1][at] if label is None else torch.cat(conditions)[at]  # (N, V)

    def judge(z, t):
        """The public code passes sigma to the classifier, one for a text.

        (It repeats these in the wrong order, so that a text gets another one's: the figures were
        made with that mended. Its own sampler has one time in a batch.)
        """
        sigma = -torch.log1p(-share / clock * t.amax(-1))  # (B,)
        soft = z if z.is_floating_point() else F.one_hot(z, 12).double()  # (B, L, V)
        h = torch.einsum("blv,lvk->bk", soft, weight)  # (B, 3)
        return h + 0.3 * h ** 2 - 0.1 * sigma[:, None] * torch.arange(3)  # (B, 3)
    return process, z, s * clock, t * clock, denoiser, judge


@pytest.mark.parametrize("gamma", ["0.0", "1.0", "2.5"])
@pytest.mark.parametrize("noise", ["uni", "abs"])
def test_classifier_free_figures(noise, gamma, monkeypatch):
    """Under masks the public code mixes x_theta, and so does ours."""
    process, z, s, t, denoiser, _ = setting(noise)
    if noise == "uni":
        step = partial(classifier_free_step, label=ONE, none=3, gamma=float(gamma))
        ours = probs_of(step, process, denoiser, z, s, t, monkeypatch)  # (B, L, V)
    else:
        every = torch.ones_like(z, dtype=torch.bool)  # (B, L)
        words = lambda z, t, at, label: denoiser(z, t, at, label)[:, :11]
        x_theta = CFG(words, ONE, 3, float(gamma))(z, t, every).exp()  # (B L, 11)
        x_theta = world.carried_over(process, x_theta.view(*z.shape, 11), z)  # (B, L, V)
        ours = reverse(process, x_theta, z, s, t)  # (B, L, V)
    close(ours, figure(f"{noise}/free_{gamma}"), 1e-6)


@pytest.mark.parametrize("order, theirs", [("exact", "exact"), ("first", "approx")])
@pytest.mark.parametrize("noise", ["uni", "abs"])
def test_classifier_figures(noise, order, theirs, monkeypatch):
    """The scores of every change, and the steps at strength 1 and 3. Their gradients are
    float32."""
    process, z, s, t, denoiser, judge = setting(noise)
    label, every = torch.ones(len(z), dtype=torch.long), torch.ones_like(z, dtype=torch.bool)
    if order == "exact":
        scores = exact_scores(judge, z, t, t, every, label, 12).view(*z.shape, 12)  # (B, L, V)
    else:
        scores = first_order_scores(judge, z, t, label, 12)  # (B, L, V)
    close(scores, figure(f"{noise}/{theirs}_scores"), 1e-9 if order == "exact" else 1e-6)
    for gamma in (1.0, 3.0):
        step = partial(classifier_step, classifier=judge, label=label, gamma=gamma, order=order)
        ours = probs_of(step, process, denoiser, z, s, t, monkeypatch)  # (B, L, V)
        close(ours, figure(f"{noise}/{theirs}_{gamma}"), 1e-6)
