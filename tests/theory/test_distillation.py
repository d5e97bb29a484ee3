"""Distillation: the coupling is the Gaussian's, targets are what the teacher predicted."""


import numpy
import pytest
import torch

import distill
import world
from diffusion import Absorbing, corrupt, stratified
from distill import DCD, SDTT, coupled, divergence, sdtt_targets
from flags import configure
from methods import make_method
from methods.duo import dense_relaxation
from methods.uniform_gaussian import GaussianUniform
from runs import ROOT
from train import loss_per_token
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


def test_the_argmax_of_the_gaussian_is_the_reference_path(monkeypatch):
    """(7.1) of both points, with the eps of the public code; and what networks are told there."""
    process, eps = GaussianUniform(20), figure("dcd/eps")  # (B, L, V)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: eps)
    for point in "ts":
        gamma = figure(f"dcd/gamma_{point}")[:, None]  # (B, 1)
        monkeypatch.setattr(process, "gamma", lambda t: gamma)
        z, _ = dense_relaxation(process, figure("dcd/x0"), None, 0)  # (B, L)
        assert torch.equal(z, figure(f"dcd/z_{point}"))


def times_of(process, noise):
    """The times at which a network is told this noise, 1 - alpha. (B, 1) -> (B,)"""
    first, last = process.ends
    return (process.operator.gamma(1 - noise[:, 0].double()) - first) / (last - first)


@pytest.mark.parametrize("dt", [1 / 64, 0.25])
def test_the_teacher_is_told_its_own_noise_one_step_before_that_of_the_student(dt):
    """t is spread evenly over (dt, 1 + dt), and cut off at 1; s = t - dt, in all texts. At s = 0
    one word in 800 is wrong, at t = 1 nearly all: the ends of the path."""
    torch.manual_seed(0)
    n, length, V = 64, 2000, 7
    x, calls = torch.randint(V, (n, length)), []

    def network(z, noise):
        calls.append((z, noise))
        return torch.zeros(*z.shape, V)
    objective = DCD(make_method("duo", V), network, settings(method="dcd"))
    objective.dt = dt
    objective.loss(network, x)
    (z_t, noise_t), (z_s, noise_s) = calls
    t, s = (times_of(objective.process, noise) for noise in (noise_t, noise_s))  # (n,) each
    torch.testing.assert_close(t - s, torch.full((n,), dt).double(), atol=2e-3, rtol=0)
    strata = ((s + 1e-4) * n).long()[t < 0.999]  # (m,) one text in each
    assert strata.tolist() == list(range(len(strata))) and len(strata) >= (1 - dt) * n - 2
    for z, noise in ((z_t, noise_t), (z_s, noise_s)):
        wrong, due = (z != x).double().mean(-1), noise[:, 0] * (V - 1) / V  # (n,) each
        assert ((wrong - due).abs() < 4.5 * (due * (1 - due) / length).sqrt() + 1e-4).all()
    ends = objective.process.alpha(torch.tensor([0.0, 1.0]).double())  # (2,)
    torch.testing.assert_close(ends, torch.tensor([0.9987, 0.0062]).double(), atol=1e-6, rtol=0)


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
    """What exact steps will predict is on average what is predicted now, within 4.5 standard
    errors, whatever their times are. A mask that opens to the wrong word would move it.
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


@pytest.mark.parametrize("name", ["k1_dt0.05", "k2_dt0.05", "k4_dt0.05", "k2_dt0.25"])
def test_each_step_of_the_teacher_starts_where_the_last_one_ended(name, monkeypatch):
    """At t, t - dt, t - 2 dt, .., not below 0: the times of the paper, which its code misses."""
    told, taken, k, dt = [], [], int(name[1]), float(name.split("dt")[1])

    def teacher(z, t, at):
        told.append(t[:, 0])
        return torch.zeros(int(at.sum()), 9)

    def step(process, known, z, frozen, s, t, to_probs):
        taken.append(torch.cat([t, s], -1))
        return z
    monkeypatch.setattr(distill, "reverse_step", step)
    z, t = figure("sdtt_targets/xt"), figure("sdtt_targets/t")[:, None]  # (B, L), (B, 1)
    sdtt_targets(Absorbing(9), teacher, z, t, dt, k)
    due = figure(f"sdtt_targets/{name}/times_intended").clamp(min=0)  # (k, B)
    torch.testing.assert_close(torch.stack(told), due, atol=1e-6, rtol=0)
    for j, times in enumerate(taken):
        both = torch.stack([due[j], due[j + 1]], -1).double()  # (B, 2)
        torch.testing.assert_close(times, both, atol=1e-6, rtol=0)
    assert len(taken) == k - 1


def test_the_teacher_sees_as_many_masks_as_there_are_at_its_times():
    """t - j dt of all tokens, in the mean of 40,000: within 4.5 standard errors."""
    torch.manual_seed(0)
    shares, z, t = [], torch.full((400, 100), 4), torch.full((400, 1), 1.0)

    def teacher(z, t, at):
        shares.append(at.double().mean())
        return torch.zeros(int(at.sum()), 4)
    sdtt_targets(Absorbing(4), teacher, z, t, 0.25, 4)
    due = torch.tensor([1.0, 0.75, 0.5, 0.25]).double()
    assert ((torch.stack(shares) - due).abs() <= 4.5 * (due * (1 - due) / 40_000).sqrt()).all()


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


@pytest.mark.parametrize("method", ["sdtt", "dcd"])
def test_with_prompts_the_loss_is_a_mean_over_the_tokens_of_the_batch_not_over_texts(method):
    """Half of the answers have 32 tokens, half 4, and the student is wrong in the short ones alone:
    by d there, so by 4/36 d in the mean over tokens, and not by d/2."""
    torch.manual_seed(0)
    V, B, scored = 5, 400, []
    x, short = torch.randint(V, (B, 36)), torch.arange(B)[:, None] % 2 == 1  # (B, 36), (B, 1)
    frozen = torch.arange(36) < torch.where(short, 32, 4)  # (B, 36)
    flat, other = torch.zeros(V), torch.tensor([3.0, 0, 0, 0, 0])  # (V,) each
    d = divergence("kl-fwd", other.log_softmax(-1), flat.log_softmax(-1))  # ()

    def student(z, t, at=None):
        scored.append(~frozen if at is None else at)  # (B, 36)
        logits = torch.where(short[..., None], other, flat).expand(B, 36, V)  # (B, 36, V)
        return logits if at is None else logits[at]  # (N, V)

    def teacher(z, t, at=None):
        return flat.expand(*z.shape, V) if at is None else flat.expand(int(at.sum()), V)  # (N, V)
    made = {"sdtt": (SDTT, "mdlm"), "dcd": (DCD, "duo")}[method]
    objective = made[0](make_method(made[1], V), teacher,
                        settings(method=method, divergence="kl-fwd", substeps=1))
    nats = objective.loss(student, x, frozen)  # (B, 36)
    due = (scored[0] & short).sum() / scored[0].sum()  # () .11
    torch.testing.assert_close(loss_per_token(nats, frozen), d * due, atol=1e-4, rtol=0)
    assert (nats[frozen] == 0).all() and abs(due - 4 / 36) < 0.01
