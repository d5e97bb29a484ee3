"""Duo: both ways to draw a relaxed input, and the curriculum. Draws are judged by standard errors.
The operator T is in tests/methods/test_uniform_gaussian.py."""
import math
import signal

import numpy
import pytest
import torch
import torch.nn.functional as F
from integrals import probability_of_the_largest
from networks import random_net
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import world
from diffusion import Uniform
from methods.duo import Duo, dense_relaxation, distinct, sparse_relaxation
from methods.udlm import mixture_bound, text_logits
from methods.uniform_gaussian import GaussianUniform
from runs import assert_same, cache, elsewhere, fit, interrupt  # noqa: F401
from world import surprise

# ---- relaxed inputs

def relax(V, k, t, tau, n):
    """n texts of 50 tokens at time t. k = 0: dense. -> x, z (n, 50), and the relaxed input"""
    torch.manual_seed(0)
    x, t = torch.randint(V, (n, 50)), torch.full((n, 1), t, dtype=torch.float64)
    process = GaussianUniform(V)
    if k:
        return x, *sparse_relaxation(process, x, t, tau, k)
    return x, *dense_relaxation(process, x, t, tau)


def uniform_words(words, V):
    """How surprising `words`, ids below V, are as draws of uniform noise."""
    return surprise(words, torch.full((V,), 1 / V, dtype=torch.float64))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("V, k", [
    (28, 0), (28, 1), (28, 2), (28, 5), (50257, 2)])
def test_a_word_is_kept_as_often_as_the_operator_says_and_no_wrong_one_is_preferred(V, k, t):
    """100,000 draws, 4.5 standard errors. If x won as soon as it is among the k largest, it would
    be 20 off."""
    x, z, _ = relax(V, k, t, 1e-3, 2_000)
    alpha = GaussianUniform(V).alpha(torch.tensor(t, dtype=torch.float64)).item()
    p, n = alpha + (1 - alpha) / V, x.numel()
    error = (p * (1 - p) / n) ** 0.5
    assert abs((z == x).double().mean() - p) < 4.5 * error
    if V == 28:
        assert uniform_words(((z - x) % V)[z != x] - 1, V - 1) < 4.5
    if k > 1:
        mu = [math.exp(-GaussianUniform(V).gamma(t) / 2)]
        assert probability_of_the_largest(V, k, mu) - p > 20 * error


def ledger(weights, of_x, of_z, dropped):
    """Statistics of k weights (n, k), largest first, whose distribution does not depend on how the
    others enter Z; and the others in units of the largest, whose mean does not. -> (n, 3 + k + k^2)
    """
    total = weights.sum(-1, keepdim=True)  # (n, 1)
    share = weights / total  # (n, k)
    joint = (share[..., None] * share[:, None]).flatten(1)  # (n, k^2)
    others = torch.stack([of_x / total[:, 0], of_z / total[:, 0], dropped / weights[:, 0]], -1)
    return torch.cat([others, share, joint], -1)


@pytest.mark.parametrize("tau", [0.001, 0.3])
@pytest.mark.parametrize("V, k, n", [
    (28, 1, 2_000), (28, 2, 2_000), (28, 5, 2_000), (3, 2, 2_000), (1000, 2, 80)])
def test_both_relaxations_have_the_same_distribution(V, k, n, tau):
    """Shares of the k largest, in pairs, and of x and z, within 4.5 standard errors; and the mass
    of all others over the largest, since its expectation stands in for it (but for float32, 1e-6).

    So the sparse Z is right in the mean, and its weights are a little low, 1/Z being convex.
    """
    x, z, (ids, weights) = relax(V, k, 0.5, tau, n)
    ids, weights = ids.flatten(0, 1), weights.double().flatten(0, 1)  # (n, k) each
    of_x, of_z = ((weights * (ids == word.flatten()[:, None])).sum(-1) for word in (x, z))
    ranked = weights.sort(-1, descending=True).values
    sparse = ledger(ranked, of_x, of_z, 1 - weights.sum(-1))
    x, z, soft = (a.flatten(0, 1) for a in relax(V, 0, 0.5, tau, n))  # (n,), (n,), (n, V)
    ranked, order = soft.double().sort(-1, descending=True)  # (n, V) each
    of_x = (ranked[:, :k] * (order[:, :k] == x[:, None])).sum(-1)  # (n,)
    of_z = soft.double().gather(-1, z[:, None])[:, 0]  # (n,)
    dense = ledger(ranked[:, :k], of_x, of_z, ranked[:, k:].sum(-1))
    error = ((sparse.var(0) + dense.var(0)) / len(dense)).sqrt()
    assert ((sparse.mean(0) - dense.mean(0)).abs() < 4.5 * error + 1e-6).all()
    less = ranked[:, :k].sum(-1) - weights.sum(-1)  # (n,) dropped
    assert less.mean() > -4.5 * less.std() / len(less) ** 0.5 - 1e-6


def test_the_ids_are_distinct_in_random_order_and_x_is_in_the_last_place_alone():
    torch.manual_seed(0)
    drawn = distinct(5, 3, (120_000,), "cpu")  # (n, 3)
    ordered = torch.zeros(125, dtype=torch.float64)
    for a, b, c in torch.cartesian_prod(*[torch.arange(5)] * 3).tolist():
        ordered[25 * a + 5 * b + c] = len({a, b, c}) == 3
    assert ordered.sum() == 60
    assert surprise((drawn * torch.tensor([25, 5, 1])).sum(-1), ordered / 60) < 4.5
    x, z, (ids, weights) = relax(28, 5, 0.3, 0.3, 2_000)
    ranked = ids.sort(-1).values  # (n, 50, 5)
    assert (ranked.diff() > 0).all() and ids.min() == 0 and ids.max() == 27
    assert (ids[..., :-1] != x[..., None]).all() and (ids == z[..., None]).any(-1).all()
    assert 0.5 < (ids[..., -1] == x).double().mean() < 1  # else the line above says little
    for place in range(4):
        assert uniform_words(((ids[..., place] - x) % 28).flatten() - 1, 27) < 4.5
    assert (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("tau", [0.001, 0.1])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_largest_coordinate_has_the_largest_weight_and_something_is_always_shown(k, tau):
    """At tau = 0.001 nearly all of it, also for k = 1."""
    _, z, (ids, weights) = relax(1000, k, 0.5, tau, 400)
    assert torch.equal(ids.gather(-1, weights.argmax(-1, keepdim=True))[..., 0], z)
    if tau == 0.001:
        assert weights.sum(-1).mean() > 0.98 and (weights.sum(-1) > 0.1).all()


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made."""
    size = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        sizes = [a.numel() for a in tree_leaves(result) if isinstance(a, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return result


def test_the_sparse_relaxation_never_makes_a_tensor_of_the_size_of_the_vocabulary():
    """At V = 128,256 none exceeds (B, L, k + 2); a relaxed text has 2 million weights."""
    process, t = GaussianUniform(128256), torch.full((4, 1), 0.5)
    x = torch.randint(128256, (4, 16))
    for k, tau in ((1, 1e-3), (2, 1e-3), (5, 1e-3), (2, 0)):
        with Largest() as largest:
            sparse_relaxation(process, x, t, tau, k)
        assert largest.size <= 4 * 16 * (k + 2)
    with Largest() as largest:
        dense_relaxation(GaussianUniform(1000), x % 1000, t, 1e-3)
    assert largest.size == 4 * 16 * 1000


# ---- the loss

class Spy:
    """A denoiser that remembers what it was shown, and knows nothing."""

    def __init__(self, V):
        self.V = V

    def __call__(self, z, noise, at=None):
        self.z, self.noise = z, noise
        shape = z[0].shape[:2] if isinstance(z, tuple) else z.shape[:2]
        logits = torch.randn(*shape, self.V, generator=torch.Generator().manual_seed(0))
        return logits if at is None else logits[at]


@pytest.mark.parametrize("top_k", [0, 1, 2, 5])
@torch.no_grad()
def test_at_tau_zero_the_loss_is_the_bound_on_ids_to_the_last_bit(top_k):
    """Of the same z, in float32. It is udlm's at equal alpha, times dalpha/dt, to 1e-5."""
    method, V = Duo(28, tau=0, top_k=top_k), 28
    model = random_net(vocab_size=V)
    x, t, model.supports_fused_head = torch.randint(V, (8, 12)), torch.rand(8, 1), False
    z, soft = method.relax(x, t)
    ours = method.relaxed_bound(model, x, z, soft, t)  # (B, L)
    noise = 1 - method.gaussian.alpha(t)  # (B, 1)
    log_p = text_logits(model, z, noise, V)  # (B, L, V)
    assert 0.1 < (z == x).double().mean() < 0.9
    assert torch.equal(ours, mixture_bound(method.gaussian, log_p, x, z, t))
    udlm = -method.gaussian.dalpha(t) * mixture_bound(Uniform(V), log_p, x, z, noise)
    torch.testing.assert_close(ours, udlm, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [0, 2])
def test_at_tau_zero_the_mean_loss_is_the_bound_between_the_ends(top_k):
    """A sum over 27 z and an integral over alpha from .95 to .05; 4.5 errors of at most 2 %."""
    method, process, i = Duo(world.N, tau=0, top_k=top_k), Uniform(world.N), 14
    z, exact = world.states(process), 0.0
    x = world.TEXTS[i].expand(len(z), -1)
    for t, w in zip(*(torch.tensor(a) for a in numpy.polynomial.legendre.leggauss(40))):
        t = (0.5 + 0.45 * t).expand(len(z), 1)  # .05 to .95
        term = mixture_bound(process, world.vandal(z, t), x, z, t).sum(-1)  # (27,)
        exact += 0.45 * w * (world.q(process, z, t)[:, i] * term).sum()

    def hard(soft, t, at=None):
        return world.vandal(soft[0][..., 0] if top_k else soft.argmax(-1), t.double(), at)
    torch.manual_seed(0)
    draws = torch.cat([method.loss(hard, world.TEXTS[i].expand(500, -1)).sum(-1)
                       for _ in range(40)])  # (n,)
    error = draws.std() / len(draws) ** 0.5
    assert error < 0.02 * exact and abs(draws.mean() - exact) < 4.5 * error


@pytest.mark.parametrize("top_k", [0, 1, 3])
@pytest.mark.parametrize("tau", [0, 0.3])
def test_given_tokens_are_shown_clean_and_are_not_scored(top_k, tau):
    """And the network gets 1 - alpha as its time, one number per text, of T(gamma)."""
    torch.manual_seed(0)
    method, spy = Duo(9, tau=tau, top_k=top_k), Spy(9)
    x, frozen = torch.randint(9, (40, 12)), torch.rand(40, 12) < 0.4
    frozen[0], frozen[1] = True, False
    nats = method.loss(spy, x, frozen)
    assert (nats[frozen] == 0).all() and (nats[~frozen] > 0).all()
    shown = spy.z
    if top_k:
        ids, weights = spy.z
        assert ids.shape == weights.shape == (40, 12, 1 if tau == 0 else top_k)
        shown = torch.zeros(40, 12, 9).scatter_add(-1, ids, weights.float())  # (B, L, V)
    assert torch.equal(shown[frozen], F.one_hot(x[frozen], 9).float())
    assert (shown[~frozen].max(-1).values < 1).any() == (tau > 0)
    assert spy.noise.shape == (40, 1) and 0.05 <= spy.noise.min() and spy.noise.max() <= 0.95
    assert spy.noise.max() - spy.noise.min() > 0.8


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("V, top_k", [(3, 0), (3, 2), (28, 0), (28, 5), (8192, 0), (8192, 1),
                                      (8192, 2)])
def test_gradients_are_finite_at_any_vocabulary_and_precision(V, top_k, half):
    method, model, x = Duo(V, top_k=top_k), random_net(vocab_size=V), torch.randint(V, (8, 6))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        method.loss(model, x).mean().backward()
    for name, weights in model.named_parameters():
        assert weights.grad.isfinite().all() and (weights.grad != 0).any(), name


def test_after_the_curriculum_the_loss_is_the_bound_of_udlm():
    method, spy = Duo(9, curriculum=0.25), Spy(9)
    x, frozen = torch.randint(9, (8, 6)), torch.rand(8, 6) < 0.3
    for progress in (0.25, 0.7, 1.0):
        method.progress = progress
        torch.manual_seed(0)
        loss = method.loss(spy, x, frozen)
        assert spy.z.dtype == torch.long
        torch.manual_seed(0)
        assert torch.equal(loss, method.nelbo(spy, x, frozen)) and (loss[frozen] == 0).all()
    method.progress = 0.249
    method.loss(spy, x)
    assert isinstance(spy.z, tuple)


# ---- training

def test_without_a_curriculum_a_run_is_that_of_udlm_bit_by_bit():
    flags = dict(learning_rate=0.01, max_iters=4)
    ours = fit("duo", method="duo", curriculum=0.0, **flags)
    assert_same(ours, fit("udlm", method="udlm", **flags))


def test_training_leaves_relaxed_inputs_at_the_step_of_the_curriculum_also_if_resumed(monkeypatch):
    """Of 10 steps the first 4; stopped after the second."""
    relaxed, relax = [], Duo.relax
    monkeypatch.setattr(Duo, "relax", lambda self, *a: (
        relaxed.append(self.progress), relax(self, *a))[1])
    flags = dict(method="duo", curriculum=0.4, max_iters=10, learning_rate=0.01)
    whole = fit("whole", **flags)
    assert relaxed == [0.0, 0.1, 0.2, 0.3]
    with monkeypatch.context() as patch:
        interrupt(patch, 1, signal.SIGTERM)
        assert fit("parts", **flags)["step"] == 2
    assert_same(whole, fit("parts", init_from="resume"))
    assert relaxed == [0.0, 0.1, 0.2, 0.3] * 2
