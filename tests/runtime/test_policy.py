"""Policy gradients of masked samplers, (22.1)-(22.7): by sums in a world of 27 texts, and what is
drawn for them."""
from itertools import product

import pytest
import torch

from diffusion import probabilities
from experiments import policy_gradients as sums
from experiments.policy_gradients import (
    ONE_BY_ONE,
    PROCESS,
    STEPS,
    TEXTS,
    any_mask,
    chances,
    estimators,
    every_mask,
    exact_gradient,
    random_world,
    tabular,
    text_law,
    trajectories,
)
from methods import METHODS, make_method
from networks import random_net
from references import Figures
from runtime import policy
from runtime.policy import (
    ELBO,
    ESTIMATORS,
    SPG,
    Coupled,
    CoupledEven,
    MeanField,
    Trajectory,
    advantages,
    clipped_loss,
    kl_along,
    action_log_probs,
    make_estimator,
    watch,
    writes_masks,
)
from samplers import make_sampler, samplers_for
from world import surprise

N = L = 3
MDLM = make_method("mdlm", N)
NOTHING = torch.zeros_like(TEXTS, dtype=torch.bool)  # (27, L) is given


def same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# ---- expected gradients

def test_gradients_are_those_of_the_reference():
    figures = Figures("policy_reference")
    world = figures("rl/theta").requires_grad_(), figures("rl/reward")
    for steps in (1, 2, 3):
        same(text_law(world[0], steps).detach(), figures(f"rl/law_T{steps}"))
        same(exact_gradient(*world, steps), figures(f"rl/grad_T{steps}"))
    same(estimators()["ddpo"](*world, 2), figures("rl/ddpo_expected_T2"))
    for name in ("d1", "coupled", "elbo"):
        same(estimators()[name](*world, 3), figures(f"rl/{name}_expected_T3"))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["ddpo", "ddpo, 1 step", "agrpo, 1 step"])
def test_the_policy_gradient_is_the_gradient(name, steps):
    """Along trajectories, against autograd through the law of the sampler."""
    for consistent in (False, True):
        world = random_world(5, consistent=consistent)
        same(estimators()[name](*world, steps), exact_gradient(*world, steps), 1e-15)


COSINES = {  # means of three random worlds, T = 1, 2, 3 and one by one: docs/22-rewards.md
    "d1": (1.00, 0.85, 0.73, 0.38),
    "coupled": (0.79, 0.85, 0.83, 0.63),
    "coupled-even": (0.93, 0.89, 0.82, 0.54),
    "elbo": (0.50, 0.68, 0.73, 0.70),
    "spg, mix 1": (0.55, 0.57, 0.59, 0.59),
    "spg, mix .5": (0.55, 0.66, 0.71, 0.69),
    "spg, mix .5, 2 draws": (0.56, 0.72, 0.77, 0.71),
}


def test_what_needs_no_trajectory_is_not_the_gradient():
    found = sums.measure([random_world(seed) for seed in range(3)], COSINES)
    for name, cosines in COSINES.items():
        for steps, cosine in zip(STEPS, cosines):
            assert abs(found[name, steps][:, 0].mean() - cosine) <= 0.005 + 1e-9, (name, steps)


EXACT = {"d1": 0.65, "coupled": 0.92, "coupled-even": 0.83, "spg, mix .5": 0.99}


def test_one_by_one_the_elbo_is_exact_for_an_exact_denoiser():
    """All orders lead to a text with the same probability then, so the mean of the logarithms has
    the gradient of the logarithm of the mean."""
    worlds = [random_world(seed, consistent=True) for seed in range(3)]
    for world in worlds:
        same(estimators()["elbo"](*world, ONE_BY_ONE), exact_gradient(*world, ONE_BY_ONE), 1e-14)
    found = sums.measure(worlds, EXACT, [ONE_BY_ONE])
    for name, cosine in EXACT.items():
        assert abs(found[name, ONE_BY_ONE][:, 0].mean() - cosine) <= 0.005 + 1e-9


@pytest.mark.parametrize("name", ["mean", "leave-one-out"])
def test_a_group_that_is_its_own_baseline_has_a_gradient_that_is_too_short(name):
    """By a sum over both texts of a group: by 1 - 1/G, or not at all."""
    logits, reward = random_world(1)
    x, path = trajectories(1)
    q = text_law(logits, 1)  # (27,)
    log_q, pairs = q.log(), list(product(range(27), repeat=2))
    group = reward[torch.tensor(pairs)]  # (729, 2)
    a = advantages(group.flatten(), 2, name).view(-1, 2)  # (729, 2)
    i, j = torch.tensor(pairs).T  # (729,) each
    weight = (q[i] * q[j]).detach()  # (729,)
    value = weight @ (a * log_q[torch.tensor(pairs)]).mean(-1)  # ()
    exact = exact_gradient(logits, reward, 1)
    same(torch.autograd.grad(value, logits)[0], exact * (0.5 if name == "mean" else 1.0))


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5, 4.0])
def test_the_upper_bound_is_above_and_the_lower_below_for_an_exact_denoiser(beta):
    for consistent in (True, False):
        logits, _ = random_world(2, consistent=consistent)
        calls = every_mask(SPG(beta=beta), TEXTS, NOTHING)
        log_p = action_log_probs(tabular(logits), calls, N)  # (7, 27, L)
        share = chances(any_mask())[:, None, None]  # (7, 1, 1)
        upper = SPG(beta=beta).upper(log_p, calls, share)  # (27,)
        lower = (share * calls.weight * log_p).sum((0, 2))  # (27,)
        log_q = text_law(logits, ONE_BY_ONE).log()  # (27,)
        assert (upper > lower).all() and (lower < log_q + 1e-9).all()
        if consistent:
            same(lower.detach(), log_q.detach(), 1e-6)  # k/n in float32
        else:  # no bound, unless beta is large
            assert ((upper < log_q).any() == (beta < 2)).all()


# ---- ratios and advantages

def test_a_ratio_counts_up_to_its_clip_and_only_where_that_lowers_the_gain():
    old = torch.zeros(2, 2)  # (B, U)
    new = torch.tensor([[1.5, 1.1], [0.5, 0.9]]).log().requires_grad_()  # (2, 2)
    loss = clipped_loss(new, old, torch.tensor([1.0, -1.0]), 0.2)  # (2,)
    torch.testing.assert_close(loss, torch.tensor([-2.3, 1.7]))
    gradient, = torch.autograd.grad(loss.sum(), new)  # (2, 2)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -1.1], [0.0, 0.9]]))


def test_advantages_of_a_group():
    r = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    same(advantages(r, 4, "mean")[:4], torch.tensor([0.75, -0.25, -0.25, -0.25]))
    same(advantages(r, 4)[:4], torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]), 1e-6)
    same(advantages(r, 4, "std")[:4], torch.tensor([0.75, -0.25, -0.25, -0.25]) / 0.5001)
    for kind in ("mean", "std", "leave-one-out"):
        assert (advantages(r, 4, kind)[4:] == 0).all()  # all alike: nothing to learn, and no nan


# ---- what is drawn

def test_masks_are_drawn_with_the_weights_of_the_equations():
    """E[weight of a token] and of the shares, within 4 standard errors."""
    torch.manual_seed(0)
    x, frozen = torch.zeros(4000, 5, dtype=torch.long), torch.tensor([True] + 4 * [False])
    frozen = frozen.expand_as(x)  # (B, L)
    for made, total in ((Coupled(), 1.5), (CoupledEven(), 1.0), (ELBO(draws=3), 3.0)):
        calls = made.calls(PROCESS, x, frozen, None)
        w = (calls.weight * calls.at).sum(0)[:, 1:]  # (B, 4)
        assert abs(w.mean() - total) <= 4 * w.mean(-1).std() / len(x) ** 0.5 + 1e-6
        assert not calls.at[..., 0].any() and (calls.z[..., 0] == 0).all()
        assert ((calls.z == PROCESS.mask) == calls.at).all()
    assert (calls.at.sum(-1).unique() == torch.arange(1, 5)).all()
    pair = Coupled().calls(PROCESS, x, frozen, None).at  # (3, B, L)
    assert (pair[1] ^ pair[2])[:, 1:].all() and pair[0, :, 1:].all()
    calls = MeanField().calls(PROCESS, x, frozen, None)
    hidden = (calls.z[0, :, 0] == PROCESS.mask).double()  # (B,) of the question
    assert abs(hidden.mean() - 0.15) < 4 * (0.15 * 0.85 / len(x)) ** 0.5
    assert calls.at[0, :, 1:].all() and not calls.at[0, :, 0].any()


def test_a_step_is_one_ratio_a_token_another():
    x, path = trajectories(2)
    torch.manual_seed(0)
    for name, rows in (("ddpo", 1), ("agrpo", 2)):
        made = make_estimator(name, subset=1)
        calls = made.calls(PROCESS, x, None, path)
        steps = [int((calls.z[0, b] != path.z[:, b]).any(-1).logical_not().nonzero()[0])
                 for b in range(20, 60) if (path.z[0, b] != path.z[1, b]).any()]
        assert calls.scale == 2 and len(set(steps)) == rows
        assert made.units(torch.ones(1, len(x), L), calls, None).shape[1] == (1, L)[rows - 1]
    assert Trajectory().units(torch.ones(2, 4, L), path, None).tolist() == 4 * [[3.0, 3.0]]


def test_every_estimator_is_finite_at_tokens_of_probability_zero():
    logits = torch.full((4 ** L, L, N), 0.0, dtype=torch.float64)
    logits[..., 2] = -2000.0
    logits.requires_grad_()
    x, path = trajectories(2)
    x, path.z, path.at, path.words = (a[..., :40, :] for a in (x, path.z, path.at, path.words))
    path.t, frozen = path.t[:, :40], torch.zeros_like(x, dtype=torch.bool)
    for name in ESTIMATORS:
        made = make_estimator(name)
        calls = made.calls(PROCESS, x, frozen, path)
        log_p = action_log_probs(tabular(logits), calls, N)  # (P, B, L)
        units = made.units(log_p, calls, -torch.ones(len(x)))  # (B, U)
        gradient, = torch.autograd.grad(units.sum(), logits)
        assert gradient.isfinite().all(), name


# ---- trajectories of samplers

def prescribed(sampler, steps, logits, monkeypatch, draws=2):
    """Every path of a sampler that draws all its chance from words. -> x (B, L), Calls, their
    probabilities (B,), with a gradient"""
    numbers = torch.tensor(list(product(range(N), repeat=L)))  # (27, L)
    words = iter([numbers.repeat_interleave(len(numbers), 0), numbers.repeat(len(numbers), 1)])
    asked = []

    def draw(p):
        asked.append(p)
        row = next(words)  # (729, L)
        n = len(p) // len(row)
        return row[:, :n].reshape(-1)  # (N,)
    monkeypatch.setattr(policy, "categorical", draw)
    z = torch.zeros(729, L, dtype=torch.long)  # (B, L)
    x, calls = watch(MDLM, tabular(logits), z, z.bool(), steps, sampler)
    return x, calls, 3.0 ** -(2 * L - sum(len(p) for p in asked) // 729) * 1.0


@pytest.mark.parametrize("sampler", ["confidence", "entropy", "margin", "spread", "semi-ar"])
def test_all_draws_of_a_step_are_its_actions(sampler, monkeypatch):
    """Every path of the sampler itself, by its draws. With confidence, the draws that are not kept
    decide which ones are: without them the gradient is another one."""
    logits, reward = random_world(3)
    x, calls, share = prescribed(make_sampler(sampler, MDLM), 2, logits, monkeypatch)
    log_p = action_log_probs(tabular(logits), calls, N)  # (P, 729, L)
    q = share * log_p.sum((0, 2)).exp()  # (729,) of a path, by all that it drew
    assert abs(q.sum() - 1) < 1e-12
    r = reward[(x * torch.tensor([9, 3, 1])).sum(-1)]  # (729,)
    exact, = torch.autograd.grad(q @ r, logits, retain_graph=True)  # (64, L, N)
    a, w = r - (q @ r).detach(), q.detach()  # (729,) each
    units = Trajectory().units(log_p, calls, a)  # (729, P)
    ours = -torch.autograd.grad(w @ clipped_loss(units, units.detach(), a, 0.2), logits,
                                retain_graph=True)[0]
    same(ours, exact, 1e-14)
    later = torch.cat([calls.z[1:], x[None]])  # (P, 729, L)
    kept = log_p * (calls.at & (later != PROCESS.mask))  # (P, 729, L)
    kept = torch.autograd.grad((w * a) @ kept.sum((0, 2)), logits)[0]
    cosine, _ = sums.compare(kept, exact)
    assert cosine < 0.99 if sampler in ("confidence", "semi-ar") else cosine > 1 - 1e-12


PAIRS = [(name, sampler) for name in METHODS for method in [make_method(name, 9)]
         if method.opens_masks and not method.left_to_right for sampler in samplers_for(method)
         if not writes_masks(method, make_sampler(sampler, method))]


def test_masked_methods_and_samplers_that_fit():
    assert {name for name, _ in PAIRS} >= {"mdlm", "md4", "radd", "mgdm", "rdm", "diffugpt"}
    assert {sampler for _, sampler in PAIRS} >= {
        "ancestral", "first-hitting", "spread", "entropy", "margin", "entropy-budget", "klass",
        "confidence", "semi-ar"}
    assert "more than the words" in writes_masks(MDLM, make_sampler("remdm-conf", MDLM))
    assert "does not open masks" in writes_masks(make_method("udlm", 9), make_sampler(
        "ancestral", make_method("udlm", 9)))


@pytest.mark.parametrize("sampler", sorted({sampler for _, sampler in PAIRS}))
def test_actions_are_what_the_sampler_drew(sampler):
    """Each token that is not given is an action where it opens, with the word that stays, and its
    probability is that of the network, sharpened by the temperature."""
    name = next(name for name, other in PAIRS if other == sampler)
    method, net = make_method(name, 9), random_net(vocab_size=10)
    given = torch.randint(9, (6, 8), generator=torch.Generator().manual_seed(1))  # (B, L)
    frozen = torch.arange(8).expand_as(given) % 4 == 1  # (B, L)
    torch.manual_seed(2)
    x, calls = watch(method, net, given, frozen, 3, make_sampler(sampler, method), 0.5)
    assert (x < 9).all() and (x == given)[frozen].all() and not (calls.at & frozen).any()
    opens = (calls.z == 9) & (torch.cat([calls.z[1:], x[None]]) != 9)  # (P, B, L)
    assert (opens.sum(0) == ~frozen).all() and (calls.at | ~opens).all()
    assert (calls.words == x)[opens].all()
    log_p = action_log_probs(net, calls, 9, 0.5)  # (P, B, L)
    p = probabilities(net(calls.z[0], calls.t[0])[..., :9], 0.5)  # (B, L, 9)
    due = p.gather(-1, calls.words[0].clamp(max=8)[..., None])[..., 0].log().float()  # (B, L)
    torch.testing.assert_close(log_p[0][calls.at[0]], due[calls.at[0]])
    assert (log_p[~calls.at] == 0).all()


@pytest.mark.parametrize("sampler", ["confidence", "spread"])
def test_a_sampler_that_is_watched_writes_the_same_law(sampler, monkeypatch):
    logits, _ = random_world(3)
    number = lambda x: (x * torch.tensor([9, 3, 1])).sum(-1)  # (B,)
    made = make_sampler(sampler, MDLM)
    with monkeypatch.context() as patch:
        x, calls, share = prescribed(made, 2, logits, patch)
    q = share * action_log_probs(tabular(logits.detach()), calls, N).sum((0, 2)).exp()  # (729,)
    law = torch.zeros(27, dtype=torch.float64).index_add(0, number(x), q)  # (27,)
    torch.manual_seed(0)
    z = torch.zeros(6000, L, dtype=torch.long)  # (B, L)
    x, _ = watch(MDLM, tabular(logits.detach()), z, z.bool(), 2, made)
    assert surprise(number(x), law) < 4


def test_the_actions_of_ar_are_its_tokens():
    ar = make_method("ar", 9)
    net = random_net(vocab_size=10, mask_mod=ar.mask_mod)
    given = torch.ones(4, 6, dtype=torch.long)  # (B, L)
    frozen = torch.arange(6).expand_as(given) < 2  # (B, L)
    x, calls = watch(ar, net, given, frozen, 6, None)
    assert (x[:, :2] == 1).all() and (x < 9).all()
    with torch.no_grad():
        torch.testing.assert_close(action_log_probs(net, calls, 9)[0], -ar.nelbo(net, x, frozen))


def test_kl_along_a_trajectory_is_that_of_trajectories():
    """In the mean over all of them, written out."""
    for steps in (2, ONE_BY_ONE):
        (ours, _), (theirs, _) = random_world(1), random_world(2)
        x, calls = trajectories(steps)
        q, p = (sums.law(logits, steps).detach() for logits in (ours, theirs))  # (B,) each
        along = kl_along(tabular(ours.detach()), tabular(theirs.detach()), calls, N)  # (B,)
        assert abs(q @ along - q @ (q / p).log()) < 1e-12 and (along >= 0).all()
        assert q @ along >= sums.text_law(ours, steps) @ (
            sums.text_law(ours, steps) / sums.text_law(theirs, steps)).log()
        same(kl_along(tabular(ours), tabular(ours), calls, N), torch.zeros(len(x)).double())


def test_a_trajectory_at_another_temperature_has_another_probability():
    logits, _ = random_world(4)
    x, calls = trajectories(2)
    sharp = action_log_probs(tabular(logits), calls, N, temperature=0.5)  # (2, B, L)
    same(sharp, action_log_probs(tabular(2 * logits), calls, N))
