"""Distillation: the coupling is the Gaussian's, targets are what the teacher predicted."""


import numpy
import pytest
import torch

import distill
import world
from diffusion import Absorbing, corrupt, stratified
from distill import DCD, SDTT, coupled, divergence, sdtt_targets
from flags import configure
from gaussian import GaussianUniform
from methods import make_method
from runs import ROOT
from world import N

FIGURES = numpy.load(ROOT / "tests" / "reference" / "distill_reference.npz")


def figure(name):
    return torch.from_numpy(FIGURES[name])


def same(ours, name, tolerance=1e-5):
    torch.testing.assert_close(ours.double(), figure(name).double(), atol=tolerance, rtol=tolerance)


WIDE = dict(first=0.9987, last=0.0062)  # the ends of DCD's path


def settings(**flags):
    return configure(distill.Config, **flags)


# ---- discrete consistency: the path


@pytest.mark.parametrize("times", [(0.1, 0.3), (0.4, 0.9), (0.5, 0.5)])
def test_the_shared_uniform_is_the_gaussian_path_in_law(times):
    """All 25 pairs (z_s, z_t) of five words: argmax(a x + s eps) with one eps, against (14), each
    drawn 400,000 times.

    The largest of 25 differences is within 4.5 standard errors; noise drawn anew for z_s would be
    hundreds away.
    """
    torch.manual_seed(0)
    process, n = GaussianUniform(5, **WIDE), 400_000
    s, t = (torch.full((1, 1), time, dtype=torch.float64) for time in times)
    x = torch.full((n, 1), 2)
    eps, one_hot = (
        torch.randn(n, 5, dtype=torch.float64),
        torch.nn.functional.one_hot(x[:, 0], 5),
    )  # (n, 5)
    path = [
        (
            (-process.gamma(time)).sigmoid().sqrt() * one_hot
            + process.gamma(time).sigmoid().sqrt() * eps
        ).argmax(-1)
        for time in (s, t)
    ]
    pair = lambda z_s, z_t: torch.bincount(5 * z_s + z_t, minlength=25) / n  # (25,)
    ours, gaussian = pair(*(z[:, 0] for z in coupled(process, x, s, t))), pair(*path)
    error = ((ours + gaussian) / n).sqrt().clamp(min=1 / n)  # (25,)
    assert ((ours - gaussian).abs() <= 4.5 * error).all()
    fresh = torch.outer(gaussian.view(5, 5).sum(1), gaussian.view(5, 5).sum(0)).flatten()  # (25,)
    assert ((fresh - gaussian).abs() > 20 * error).any()


def test_a_path_leaves_the_clean_word_once_and_for_good():
    torch.manual_seed(0)
    process, x = GaussianUniform(50, **WIDE), torch.randint(50, (200, 40))
    s, t = torch.full((200, 1), 0.3), torch.full((200, 1), 0.6)
    z_s, z_t = coupled(process, x, s, t)
    assert (z_s[z_t == x] == x[z_t == x]).all() and (z_t[z_s != x] == z_s[z_s != x]).all()
    assert ((z_s == x) & (z_t != x)).any()


def test_at_no_distance_student_and_teacher_see_the_same_and_the_loss_is_zero():
    torch.manual_seed(0)
    method, table = make_method("duo", 7), torch.randn(7, 7)
    network = lambda z, t: table[z] + 0.3 * t[..., None]
    objective = DCD(method, network, settings(method="dcd"))
    objective.dt, x = 0.0, torch.randint(7, (20, 8))
    assert objective.loss(network, x).abs().max() < 1e-6
    objective.dt = 0.25
    assert objective.loss(network, x).mean() > 1e-3


def test_the_losses_of_consistency_distillation_are_the_reference_figures():
    """Given log-probabilities; and the public code's whole loss from its inputs, its networks being
    tables."""
    student, teacher = figure("dcd/student_logp").double(), figure("dcd/teacher_logp").double()
    for name in ("kl-bwd", "kl-fwd"):
        same(divergence(name, student, teacher), f"dcd/REF_loss_{name.replace('-', '_')}")
        laws = []
        for side in ("student", "teacher"):
            P, sigma = figure(f"dcd/nll_{side}_table_P").double(), figure(f"dcd/nll_{side}_sigma")
            logits = figure(f"dcd/nll_{side}_table_W").double()[
                figure(f"dcd/nll_{side}_in")
            ]  # (B, L, V)
            laws.append((logits + P * (1 + 0.1 * sigma[..., None])).log_softmax(-1))
        same(divergence(name, *laws), f"dcd/nll_{name}")


def test_the_argmax_of_the_gaussian_is_the_reference_path():
    eps, x = figure("dcd/eps").double(), torch.nn.functional.one_hot(figure("dcd/x0"), 20)
    for point in "ts":
        gamma = figure(f"dcd/gamma_{point}").double()[:, None, None]
        w = (-gamma).sigmoid().sqrt() * x + gamma.sigmoid().sqrt() * eps  # (B, L, V)
        assert torch.equal(w.argmax(-1), figure(f"dcd/z_{point}"))


# ---- through time: the targets


def test_divergences_vanish_only_between_equal_laws_and_total_variation_is_at_most_one():
    torch.manual_seed(0)
    a, b = (torch.randn(50, 9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    for name in ("kl-bwd", "kl-fwd", "mse", "tvd"):
        assert divergence(name, a, a).abs().max() < 1e-12 and (divergence(name, a, b) > 1e-3).all()
    torch.testing.assert_close(divergence("kl-bwd", a, b), divergence("kl-fwd", b, a))
    assert divergence("tvd", a, b).max() < 1


@pytest.mark.parametrize("name", ["k1_dt0.05", "k2_dt0.05", "k4_dt0.05", "k2_dt0.25"])
def test_the_targets_are_the_reference_figures(name, monkeypatch):
    """On the states that the public code walked through: its times are not its paper's, but targets
    have no time."""
    base, E = figure("sdtt_teacher/base"), figure("sdtt_teacher/E")
    teacher = lambda z, t, at: (base + E[z].mean(1, keepdim=True))[at]
    k, dt = int(name[1]), float(name.split("dt")[1])
    walk = iter(figure(f"sdtt_targets/{name}/x_before_each_step")[1:])
    monkeypatch.setattr(distill, "reverse_step", lambda *args: next(walk))
    z = figure("sdtt_targets/xt")
    targets = sdtt_targets(Absorbing(9), teacher, z, figure("sdtt_targets/t")[:, None], dt, k)
    due = figure(f"sdtt_targets/{name}/log_targets")[z == 9][:, :9]  # (N, 9)
    torch.testing.assert_close(targets, due, atol=1e-5, rtol=1e-5)


def test_the_losses_through_time_are_the_reference_figures():
    """In the mean over masks. `mse` and `tvd` of the public code count the mask's column, or
    logarithms: not ours."""
    masked = figure("sdtt_targets/xt") == 9
    target = figure("sdtt_targets/k2_dt0.05/log_targets")[masked][:, :9]  # (N, 9)
    student = figure("sdtt_loss/student_log_probs")[masked][:, :9]  # (N, 9)
    for name in ("kl-bwd", "kl-fwd", "tvd"):
        key = {"tvd": "tvd_true_unused_helper"}.get(name, name.replace("-", "_"))
        same(divergence(name, student, target).mean(), f"sdtt_loss/{key}", 2e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_targets_of_an_exact_teacher_are_its_own_law_in_the_mean(k):
    """What a walk of exact steps will believe is on average what is believed now, within 4.5
    standard errors.

    A mask that opens to the wrong law, or a target that is taken too late, would move it.
    """
    torch.manual_seed(0)
    process, n = Absorbing(N), 40_000
    teacher = world.oracle(process)
    z, t = torch.tensor([[N, 1, N]]).expand(n, -1), torch.full((n, 1), 0.8, dtype=torch.float64)
    targets = sdtt_targets(process, teacher, z, t, 0.3, k).exp().view(n, 2, N)  # (n, 2, N)
    now = teacher(z[:1], t[:1], at=z[:1] == N).exp()  # (2, N)
    error = targets.std(0) / n**0.5  # (2, N)
    assert ((targets.mean(0) - now).abs() <= 4.5 * error + 1e-9).all()
    assert (error.max() > 1e-6) == (
        k > 1
    )  # one step shows the teacher as it is; more, what it will know


def test_a_mask_that_opens_keeps_the_belief_of_then_and_others_that_of_the_end():
    """Steps of 0.4 from t = 0.8: the first opens half of the masks, whose targets are then fixed.
    """
    torch.manual_seed(0)
    beliefs = iter([0.0, 5.0])

    def teacher(z, t, at):
        logits = torch.zeros(int(at.sum()), 4)
        logits[:, 0] = next(beliefs)
        return logits

    z, t = torch.full((400, 10), 4), torch.full((400, 1), 0.8)
    late = (sdtt_targets(Absorbing(4), teacher, z, t, 0.4, 2)[:, 0] > -0.1).double().mean()
    assert abs(late - 0.5) < 4.5 * (0.25 / 4000) ** 0.5


def test_the_loss_is_a_mean_over_masks_and_only_over_them():
    method, x, sure = (
        make_method("mdlm", 5),
        torch.randint(5, (30, 8)),
        torch.tensor([9.0, 0, 0, 0, 0, 0]),
    )
    objective = SDTT(
        method,
        lambda z, t, at: torch.zeros(int(at.sum()), 6),
        settings(substeps=1, divergence="kl-fwd"),
    )
    torch.manual_seed(0)
    loss = objective.loss(lambda z, t, at: sure.expand(int(at.sum()), 6), x)
    one = divergence("kl-fwd", sure[None, :5].log_softmax(-1), torch.full((1, 5), 0.2).log())
    torch.testing.assert_close(loss.mean(), one[0])
    torch.manual_seed(0)
    assert torch.equal(loss == 0, corrupt(method.process, x, stratified(len(x))) != 5)
