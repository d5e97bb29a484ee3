"""Guidance by gradients on the sphere: (11.6) for the evidence of a path, (11.10), and the law."""
from types import SimpleNamespace

import pytest
import torch
import world
from bounds import close
from world import CLASS, JOINT, LANGUAGE, TEXTS, L, N, P

from diffusion import ancestral
from methods import make_method
from methods.sphere import log_mean, path_evidence, tangent
from oracle import exact_classifier
from samplers.generate import generate
from samplers.gradients import GuidedProcess, evidence_gradient, gradient_of, guide_by_gradients

ONE = torch.tensor([1])  # the label of class 1
OF_ONE = JOINT[1] / JOINT[1].sum()  # (27,) p(x | y = 1)
JUDGE = exact_classifier(LANGUAGE, None)


def walked(noise, n=30):
    """Points on their way to texts of the world, of which every third has its first token given.
    -> method, z (n, L, D|D + V), t (n, L), at (n, L)"""
    method = make_method("rdlm", N, noise=noise)
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, n, replacement=True)]  # (n, L)
    t = (0.3 + 0.6 * torch.rand(n, 1)).double()  # (n, 1) which float32 holds
    frozen = (torch.arange(n)[:, None] % 3 == 0) & (torch.arange(L) == 0)  # (n, L)
    if noise:
        z = torch.nn.functional.pad(method.process.begin(x), (0, N)).double()  # (n, L, D + V)
        now = 1 / method.process.remaining(t)  # (n, 1)
        z = method.walk(x, z, torch.full_like(now, method.process.first), now)
    else:
        z = method.straight(x, t).double()  # (n, L, D)
    return method, *method.show_given(z, x, t, frozen)


@pytest.mark.parametrize("noise", [0.2, 0.0])
def test_a_guided_point_is_predicted_as_by_a_network_that_knows_the_class(noise):
    method, z, t, at = walked(noise)
    exact, process = method.oracle(LANGUAGE), method.process
    told = lambda z, t, at: exact(z, t, at=at, label=ONE.expand(len(z)))
    right = process.log_words(told, z, t, at)  # (N, V)
    found = GuidedProcess(method, JUDGE, ONE, 1.0).log_words(exact, z, t, at)  # (N, V)
    close(found.exp(), right.exp())
    assert (found.exp() - process.log_words(exact, z, t, at).exp()).abs().max() > 0.01


def test_the_shift_of_a_pull_is_the_gradient_in_the_tangent_plane():
    """(11.10): that of log p(y) in one more move xi, times the variance b of what is to come."""
    method, z, t, at = walked(0.2)
    z, t = z[at.all(-1)], t[at.all(-1)]  # (n, L, D + V), (n, L) texts without given tokens
    X, a, b = z[..., :N + 1], z[..., N + 1:], method.process.remaining(t)[..., None]
    log_p = lambda a: JUDGE((a - a.amax(-1, keepdim=True)).exp(), None)[:, 1]  # (B,)
    p = (a - a.amax(-1, keepdim=True)).exp()  # (B, L, V)
    shift = evidence_gradient(lambda w: JUDGE(w, None)[:, 1], p)  # (B, L, V)
    th = X[..., :N].clamp(-1 + 1e-7, 1 - 1e-7).acos()  # (B, L, V)

    def after(xi):
        c = 1e-9  # a move so short that its c th^2 is nothing, and c / variance is 1 / b
        return log_p(a + path_evidence(th, th / th.sin(), xi, c, c * b))
    slope = b * tangent(X, gradient_of(after, torch.zeros_like(X)))  # (B, L, D)
    pull = log_mean(X, shift)  # (B, L, D)
    close(slope, pull, 1e-6)
    assert pull.abs().max() > 0.01


def guided(method, **flags):
    flags = {"guidance": 1.0, "gradient": "noisy", "gradient_steps": 1, **flags}
    return guide_by_gradients(SimpleNamespace(**flags), method, ancestral, ONE, JUDGE)


@pytest.mark.parametrize("noise, steps", [(0.2, 24), (0.0, 48)])
def test_guided_walks_on_the_sphere_have_the_law_of_their_class(noise, steps):
    method = make_method("rdlm", N, noise=noise)
    torch.manual_seed(0)
    x = generate(method, method.oracle(LANGUAGE), 700, L, steps, guided(method))  # (n, L)
    far, error = world.distance(world.numbers(x, N), OF_ONE)
    assert far < 4 * error + 0.02, (far, error)
    assert world.distance(world.numbers(x, N), P)[0] > 0.1
    assert CLASS[world.numbers(x, N), 1].mean() > 0.6


def test_a_classifier_reads_the_evidence_of_walks_and_words_that_are_given():
    method = make_method("rdlm", N)
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, 2000, replacement=True)]  # (n, L)
    frozen = (torch.arange(L) == 1).expand(len(x), -1)  # (n, L)
    sure = []
    for at in (0.999, 0.5, 0.1):
        p = method.draw_evidence(x, torch.full((len(x), 1), at), frozen)  # (n, L, V)
        assert torch.equal(p[:, 1], torch.nn.functional.one_hot(x[:, 1], N).to(p))
        law = p / p.sum(-1, keepdim=True)  # (n, L, V) of equally likely words
        sure.append(law.gather(-1, x[..., None])[:, [0, 2], 0].mean().item())
    assert abs(sure[0] - 1 / N) < 0.02 and 0.75 < sure[1] < 0.9 and sure[2] > 0.99, sure
