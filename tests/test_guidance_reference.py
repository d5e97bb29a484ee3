"""
Guidance against figures of the public code of D-CFG and D-CBG (arXiv:2412.10193, commit edb0f8c), number by number.

tests/guidance_reference.npz was made by running it in float64: 4 texts of 8 tokens, 12 symbols, of which the mask is
11; two conditions; a made-up classifier.
"""
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
import world
from test_guidance import close, law_of

from diffusion import reverse
from guidance import ClassifierFree, classifier_free_step, classifier_step, exact_scores, first_order_scores
from masked import Absorbing
from uniform import Uniform

FIGURES = numpy.load(Path(__file__).parent / "guidance_reference.npz")


def figure(name):
    return torch.from_numpy(FIGURES[name])


def setting(noise):
    """-> the process, z, s, t, a denoiser with two conditions, the classifier. All keep 0.001 of signal at t = 1."""
    z, share = figure(f"{noise}/z"), 1 - 1e-3
    t = figure("t")[:, None]
    s = t - 0.0625
    logits = torch.stack([figure(f"{noise}/conditional"), figure(f"{noise}/unconditional")])            # (2, B, L, V)
    weight = figure(f"{noise}/weight").double()                                                         # (L, V, 3)
    process = Absorbing(11, eps=1e-3) if noise == "abs" else Uniform(12)
    clock = 1 if noise == "abs" else share               # as a time of ours that has their alpha

    def denoiser(z, t, at, label=None):
        return logits[1][at] if label is None else torch.cat([logits[0], logits[1]])[at]

    def judge(z, t):
        """The public code has the classifier told sigma, one for a text. (It repeats these in the wrong order, so that
        a text is told another one's: the figures were made with that mended. Its own sampler has one time in a batch.)
        """
        sigma = -torch.log1p(-share / clock * t.amax(-1))                                               # (B,)
        soft = z if z.is_floating_point() else F.one_hot(z, 12).double()                                # (B, L, V)
        h = torch.einsum("blv,lvk->bk", soft, weight)                                                   # (B, 3)
        return h + 0.3 * h ** 2 - 0.1 * sigma[:, None] * torch.arange(3)
    return process, z, s * clock, t * clock, denoiser, judge


@pytest.mark.parametrize("gamma", ["0.0", "1.0", "2.5"])
@pytest.mark.parametrize("noise", ["uni", "abs"])
def test_classifier_free_figures(noise, gamma, monkeypatch):
    """Under masks the public code mixes x_theta, and so does ours."""
    process, z, s, t, denoiser, _ = setting(noise)
    label = torch.tensor([1])
    if noise == "uni":
        take = partial(classifier_free_step, label=label, none=3, gamma=float(gamma))
        ours = law_of(take, process, denoiser, z, s, t, monkeypatch)
    else:
        every = torch.ones_like(z, dtype=torch.bool)
        free = lambda z, t, at, label: denoiser(z, t, at, label)[:, :11]
        x_theta = ClassifierFree(free, label, 3, float(gamma))(z, t, every).exp().view(*z.shape, 11)    # (B, L, 11)
        ours = reverse(process, world.carried_over(process, x_theta, z), z, s, t)
    close(ours, figure(f"{noise}/free_{gamma}"), 1e-6)


@pytest.mark.parametrize("order, theirs", [("exact", "exact"), ("first", "approx")])
@pytest.mark.parametrize("noise", ["uni", "abs"])
def test_classifier_figures(noise, order, theirs, monkeypatch):
    """The scores of every change, and the steps at strength 1 and 3. Their gradients are float32."""
    process, z, s, t, denoiser, judge = setting(noise)
    label, every = torch.ones(len(z), dtype=torch.long), torch.ones_like(z, dtype=torch.bool)
    scores = (exact_scores(judge, z, t, t, every, label, 12).view(*z.shape, 12) if order == "exact" else
              first_order_scores(judge, z, t, label, 12))
    close(scores, figure(f"{noise}/{theirs}_scores"), 1e-9 if order == "exact" else 1e-6)
    for gamma in (1.0, 3.0):
        take = partial(classifier_step, classifier=judge, label=label, gamma=gamma, order=order)
        close(law_of(take, process, denoiser, z, s, t, monkeypatch), figure(f"{noise}/{theirs}_{gamma}"), 1e-6)
