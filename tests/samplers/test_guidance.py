"""Guidance: every step of guidance.py against sums over the world of 27 texts in two classes."""
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import world
from diffusion import Absorbing, ancestral, changeable, jump_rate, probabilities, reverse
from methods.d3pm import D3PM, gaussian_matrices
from methods.sedd import score_of_mean
from samplers import guidance
from samplers.guidance import (
    CFG,
    classifier_free_step,
    classifier_step,
    exact_scores,
    first_order_scores,
    guide_by_label,
    mix_logits,
    reverse_at,
)
from world import JOINT, PROCESSES, TEXTS, L, N, numbers, surprise

K = len(JOINT) - 1  # classes; as a label: no class
ONE = torch.tensor([1])  # the label of class 1
NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
each_step = pytest.mark.parametrize("s, t", [(0.2, 0.5), (0.6, 0.65), (0.0, 0.3)])


def close(ours, exact, tolerance=1e-10):
    """Where a step passes a time to a denoiser, in float32, the tolerance is 1e-6."""
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=tolerance)


def probs_of(step, process, denoiser, z, s, t, monkeypatch, to_probs=probabilities):
    """What a step draws from, as it hands it to `categorical`; one-hot elsewhere. -> (B, L, V)"""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(guidance, "categorical", lambda p: seen.append(p) or p.argmax(-1))
        step(process, denoiser, z, NOTHING(z), s, t, to_probs)
    at = changeable(process, z, NOTHING(z))  # (B, L)
    stays = F.one_hot(z, process.V).double()  # (B, L, V)
    return stays.index_put((at,), seen[0])  # (B, L, V)


def bayes(process, z, s, t, y):
    """p(z_s^l = v | z_t, y), by definition a sum over texts, without a denoiser. -> (B, L, V)"""
    weight = world.q(process, z, t) * JOINT[y]  # (B, 27)
    weight = weight / weight.sum(-1, keepdim=True)  # (B, 27)
    p = torch.zeros(*z.shape, process.V, dtype=torch.float64)  # (B, L, V)
    for x, w in zip(TEXTS, weight.T):  # (L,), (B,)
        clean = F.one_hot(x, process.V).double().expand(len(z), -1, -1)  # (B, L, V)
        step = reverse(process, clean, z, s, t).nan_to_num()  # (B, L, V) nan where w is 0
        p += w[:, None, None] * step  # (B, L, V)
    return p


def everywhere(process, s, t):
    """Every noisy text of the world at one pair of times. -> z (S, L), s (S, 1), t (S, 1)"""
    z = world.states(process)  # (V^3, L)
    t = torch.full((len(z), 1), t, dtype=torch.float64)  # (V^3, 1)
    possible = world.q(process, z, t).sum(-1) > 0  # (V^3,)
    return z[possible], torch.full_like(t, s)[possible], t[possible]


# ---- (11.1) and (11.2)

def test_mixing_at_strength_0_and_1_gives_the_two_laws_back_and_rules_out_what_either_does():
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)  # (5, 4) each
    a[0, 1], b[1, 2] = -torch.inf, -torch.inf
    a[2, 3] = b[2, 3] = -torch.inf
    assert torch.equal(mix_logits(a, b, 1), a.log_softmax(-1))
    assert torch.equal(mix_logits(a, b, 0), b.log_softmax(-1))
    for gamma in (0.3, 2.5):
        p = mix_logits(a, b, gamma).exp()  # (5, 4)
        close(p.sum(-1), torch.ones(5, dtype=torch.float64))
        assert p[0, 1] == p[1, 2] == p[2, 3] == 0 and (p > 0).sum() == 17
    plain = a[3].softmax(-1) ** 2.5 * b[3].softmax(-1) ** -1.5  # (4,)
    close(mix_logits(a[3], b[3], 2.5).exp(), plain / plain.sum())


def test_where_two_laws_rule_out_everything_the_first_one_holds():
    """As at temperature 0, where each has one symbol: no row is nan."""
    sure = torch.eye(4, dtype=torch.float64).log()  # (4, 4)
    assert torch.equal(mix_logits(sure[[0, 1]], sure[[2, 1]], 2.5), sure[[0, 1]])

    def denoiser(z, t, at, label):
        return 5.0 * F.one_hot(label[:, None].expand(z.shape) % 2, N)[at]  # (n, N) no class: 0
    z = torch.randint(N, (50, L))  # (50, L)
    s, t = (torch.full((50, 1), time).double() for time in (0.0, 0.5))  # (50, 1) each
    new = classifier_free_step(PROCESSES["uniform"], denoiser, z, NOTHING(z), s, t,
                               partial(probabilities, temperature=0), label=ONE, none=2, gamma=2.5)
    assert (new == 1).all()


@each_process
@each_step
def test_the_classifier_free_step_draws_from_the_two_reverse_laws_mixed(process, s, t, monkeypatch):
    z, s, t = everywhere(process, s, t)
    for gamma in (0, 0.5, 1, 2.5):
        step = partial(classifier_free_step, label=ONE, none=K, gamma=gamma)
        ours = probs_of(step, process, world.oracle(process), z, s, t, monkeypatch)
        c, u = bayes(process, z, s, t, 1), bayes(process, z, s, t, K)  # (S, L, V) each
        mixed = torch.where((c > 0) & (u > 0), c ** gamma * u ** (1 - gamma), 0.0)  # (S, L, V)
        close(ours, mixed / mixed.sum(-1, keepdim=True), 1e-6)


@each_process
def test_temperature_and_top_p_change_x_theta_inside_of_a_guided_step(process, monkeypatch):
    """Both of its terms, before they are mixed, and nothing else of the step."""
    z, s, t = everywhere(process, 0.3, 0.6)
    to_probs = partial(probabilities, temperature=0.5, top_p=0.8)
    exact, judge = world.oracle(process), world.classifier(process)
    at = changeable(process, z, None)  # (S, L)

    def stepped(y, to_probs):
        x_theta = to_probs(exact(z, t.float(), label=torch.tensor([y])))  # (S, L, N)
        return reverse(process, world.carried_over(process, x_theta, z), z, s, t)[at]  # (n, V)
    free = partial(classifier_free_step, label=ONE, none=K, gamma=2.5)
    by_classifier = partial(classifier_step, classifier=judge, label=ONE, gamma=2.5)
    c, u, plain = stepped(1, to_probs), stepped(K, to_probs), stepped(K, probabilities)  # (n, V)
    assert (u - plain).abs().max() > 0.05
    mixed = torch.where((c > 0) & (u > 0), c ** 2.5 * u ** -1.5, 0.0)  # (n, V)
    mixed = torch.where(mixed.sum(-1, keepdim=True) > 0, mixed, c)  # (n, V)
    ours = probs_of(free, process, exact, z, s, t, monkeypatch, to_probs)[at]  # (n, V)
    close(ours, mixed / mixed.sum(-1, keepdim=True), 1e-6)
    first = first_order_scores(judge, z, t, ONE.expand(len(z)), process.V)[at]  # (n, V)
    weighed = u * (2.5 * (first - first.amax(-1, keepdim=True))).exp()  # (n, V)
    ours = probs_of(by_classifier, process, exact, z, s, t, monkeypatch, to_probs)[at]  # (n, V)
    close(ours, weighed / weighed.sum(-1, keepdim=True), 1e-6)


@each_process
def test_a_classifier_rates_each_text_for_its_own_class(process):
    """Exact and first-order scores of a batch in which labels differ are those of single texts."""
    z, s, t = (a[:12] for a in everywhere(process, 0.3, 0.6))
    judge, label, at = world.classifier(process), torch.arange(12) % 2, ~NOTHING(z)
    every = exact_scores(judge, z, s, t, at, label, process.V).view(12, L, -1)  # (12, L, V)
    slopes = first_order_scores(judge, z, t, label, process.V)  # (12, L, V)
    for i in range(12):
        one = slice(i, i + 1)
        alone = exact_scores(judge, z[one], s[one], t[one], at[one], label[one], process.V)
        close(every[i], alone)
        close(slopes[i], first_order_scores(judge, z[one], t[one], label[one], process.V)[0])
    assert (every[0] - exact_scores(judge, z, s, t, at, 1 - label, process.V).view(12, L, -1)[
        0]).abs().max() > 0.1


@pytest.mark.parametrize("name", PROCESSES)
def test_the_guided_steps_draw_exactly_the_law_that_they_compute(name, monkeypatch):
    """12,000 draws of each against its probabilities, by chi-square; labels differ between
    texts."""
    process, n = PROCESSES[name], 12_000
    exact, judge = world.oracle(process), world.classifier(process)
    torch.manual_seed(2)
    s, t = torch.tensor([[0.3]]).double(), torch.tensor([[0.6]]).double()  # (1, 1) each
    z, label = torch.tensor([[process.V - 1, 1, process.V - 1]]), torch.arange(2 * n) % 2
    for step in (partial(classifier_free_step, none=K, gamma=2.0),
                 partial(classifier_step, classifier=judge, gamma=2.0)):
        many, s_, t_ = (a.expand(2 * n, -1) for a in (z, s, t))  # (2n, L|1)
        new = step(process, exact, many, NOTHING(many), s_, t_, label=label)  # (2n, L)
        for y in (0, 1):
            one = partial(step, label=torch.tensor([y]))
            rows = probs_of(one, process, exact, z, s, t, monkeypatch)[0]  # (L, V)
            p = torch.einsum("i,j,k->ijk", *rows).flatten()  # (V^3,)
            assert surprise(numbers(new[y::2], process.V), p) < 4.5


@each_process
def test_frozen_tokens_are_never_guided(process):
    z = torch.full((50, L), process.V - 1)  # (50, L)
    frozen = torch.tensor([True, False, False]).expand(50, -1)  # (50, L)
    s, t = (torch.full((50, 1), time, dtype=torch.float64) for time in (0.1, 0.9))  # (50, 1) each
    for step in (partial(classifier_free_step, none=K),
                 partial(classifier_step, classifier=world.classifier(process))):
        new = step(process, world.oracle(process), z, frozen, s, t, label=ONE, gamma=3.0)
        assert (new[:, 0] == process.V - 1).all() and (new[:, 1:] != process.V - 1).any()


@each_process
def test_in_the_last_step_to_mix_x_theta_and_to_mix_the_step_are_one(process, monkeypatch):
    """And only there: under masks the probability to open differs by a factor, under other noise
    the words differ too."""
    exact = world.oracle(process)
    step = partial(classifier_free_step, label=ONE, none=K, gamma=2.5)
    for s, t in ((0.0, 0.4), (0.3, 0.6)):
        z, s_, t_ = everywhere(process, s, t)
        ours = probs_of(step, process, exact, z, s_, t_, monkeypatch)  # (S, L, V)
        x_theta = CFG(exact, ONE, K, 2.5)(z, t_).exp()  # (S, L, N)
        x_theta = world.carried_over(process, x_theta, z)  # (S, L, V)
        other = reverse(process, x_theta, z, s_, t_)  # (S, L, V)
        if s == 0:
            close(ours, other, 1e-6)
        elif isinstance(process, Absorbing):
            masked = z == process.mask  # (S, L)
            words = lambda p: p[masked][:, :N] / p[masked][:, :N].sum(-1, keepdim=True)
            close(words(ours), words(other), 1e-6)
            odds = lambda p: p[masked][:, :N].sum(-1) / p[masked][:, N]
            c, u = (exact(z, t_, label=torch.tensor([y])).exp()[masked] for y in (1, K))
            factor = (c ** 2.5 * u ** -1.5).nan_to_num().sum(-1)  # (n,)
            close(odds(ours), odds(other) * factor, 1e-6)
        else:
            assert (ours - other).abs().sum(-1).max() > 0.02


def test_ratios_that_are_mixed_jump_at_the_rates_of_the_mixed_step(monkeypatch):
    """s_c^gamma s_u^(1 - gamma), not normalized, is what (11.2) comes to in a short step."""
    process, t, short = PROCESSES["uniform"], 0.5, 1e-6
    z, s, t = everywhere(process, t - short, t)
    step = partial(classifier_free_step, label=ONE, none=K, gamma=2.5)
    exact = world.oracle(process)
    p = probs_of(step, process, exact, z, s, t, monkeypatch)  # (S, L, V)

    def log_score(z, t, at, label):
        x_theta = exact(z, t, label=label).exp()  # (2S, L, N)
        return score_of_mean(process, x_theta, z, t.expand(z.shape)).log()  # (2S, L, V)
    log_s = CFG(log_score, ONE, K, 2.5, ratios=True)(z, t)  # (S, L, V)
    jumps = short * jump_rate(process, z, t)[..., None] * log_s.exp()  # (S, L, V) (6.5)
    moved = F.one_hot(z, process.V) == 0  # (S, L, V)
    torch.testing.assert_close(p[moved], jumps[moved], rtol=1e-4, atol=0)
    plain = CFG(log_score, ONE, K, 2.5)(z, t).exp()  # (S, L, V)
    close(plain.sum(-1), torch.ones(z.shape, dtype=torch.float64))  # and this is no score


@pytest.mark.parametrize("gamma", [0, 1, 2.5])
def test_d3pms_matrices_are_guided_by_their_own_reverse_step(gamma, monkeypatch):
    """A step is (2.2) of the two oracles, mixed; here from 6/8 of the noise to 3/8."""
    method = D3PM(N, matrices=gaussian_matrices(N, 8))
    chain = method.process
    likelihood = lambda process, z, t: chain.likelihood(z, t.expand(z.shape))
    monkeypatch.setattr(world, "likelihood", likelihood)
    z = world.states(chain)  # (V^3, L)
    s, t = (torch.full((len(z), 1), time, dtype=torch.float64) for time in (3 / 8, 6 / 8))
    exact, every = world.oracle(chain), ~NOTHING(z)  # (V^3, L)
    c, u = (reverse_at(chain, exact(z, t, every, torch.tensor([y])), z, s, t, every)
            for y in (1, K))  # (3 V^3, V) each
    mixed = c ** gamma * u ** (1 - gamma)  # (3 V^3, V)
    denoiser, sampler = guide_by_label(method, exact, ancestral, ONE, K, gamma)
    if gamma == 2.5:  # sampling takes the guided step in place of its own
        monkeypatch.setattr(chain, "step", None)
        *_, end = method.sample(denoiser, z, NOTHING(z), 4, sampler)
        assert (end < N).all()
    step = partial(classifier_free_step, label=ONE, none=K, gamma=gamma)
    p = probs_of(step, chain, exact, z, s, t, monkeypatch)  # (V^3, L, V)
    close(p.flatten(0, 1), mixed / mixed.sum(-1, keepdim=True), 1e-6)


# ---- (11.3) and (11.4)

@each_process
@each_step
def test_an_exact_classifier_at_strength_one_turns_the_unconditional_step_into_the_conditional_one(
        process, s, t, monkeypatch):
    z, s, t = everywhere(process, s, t)
    for y in (0, 1):
        step = partial(classifier_step, classifier=world.classifier(process),
                       label=torch.tensor([y]), gamma=1, order="exact")
        ours = probs_of(step, process, world.oracle(process), z, s, t, monkeypatch)
        close(ours, bayes(process, z, s, t, y), 1e-6)


def test_a_classifier_with_one_time_for_all_tokens_is_exact_under_masks_alone(monkeypatch):
    """As in the public code: under uniform noise a step of .3 is then off by several percent."""
    off = {}
    for name, process in PROCESSES.items():
        z, s, t = everywhere(process, 0.3, 0.6)
        judge = world.classifier(process)
        late = lambda z, t: judge(z, t.amax(-1, keepdim=True))
        step = partial(classifier_step, classifier=late, label=ONE, gamma=1, order="exact")
        p = probs_of(step, process, world.oracle(process), z, s, t, monkeypatch)  # (S, L, V)
        exact = bayes(process, z, s, t, 1)  # (S, L, V)
        off[name] = (p - exact).abs().sum(-1).max() / 2  # () total variation
    assert off["mask"] < 1e-8 and off["uniform"] > 0.02 and off["hybrid .7"] > 0.01, off


@each_process
def test_first_order_is_exact_for_a_classifier_that_adds_up_its_tokens(process):
    """log p(0 | z) is linear in the tokens where class 0 is next to impossible."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(L, process.V, generator=generator, dtype=torch.float64)  # (L, V)
    z, s, t = everywhere(process, 0.3, 0.6)
    rare, at = torch.zeros(len(z), dtype=torch.long), ~NOTHING(z)  # (S,), (S, L)

    def additive(z, t):
        soft = z if z.is_floating_point() else F.one_hot(z, process.V).double()  # (B, L, V)
        h = torch.einsum("blv,lv->b", soft, weight) - 60  # (B,)
        return torch.stack([h, torch.zeros_like(h)], -1)  # (B, 2)
    first = first_order_scores(additive, z, t, rare, process.V)[at]  # (n, V)
    close(first, exact_scores(additive, z, t, t, at, rare, process.V), 1e-8)


@pytest.mark.parametrize("name, first, none", [
    ("mask", 0.028, 0.035), ("uniform", 0.017, 0.046), ("hybrid .1", 0.038, 0.035),
    ("hybrid .7", 0.004, 0.011)])
def test_what_first_order_costs_with_the_exact_classifier(name, first, none, monkeypatch):
    """A step from .6 to .3: mean distance to the exact step in total variation, beside that of no
    guidance at all.

    The exact log p(y | z) is not linear: (11.4) repairs most under uniform noise, little under
    masks, and does harm where both are mixed and a wrong word is a rare surprise.
    """
    process = PROCESSES[name]
    z, s, t = everywhere(process, 0.3, 0.6)
    often = world.q(process, z, t) @ JOINT[1] / JOINT[1].sum()  # (S,) q(z | y)
    step = partial(classifier_step, classifier=world.classifier(process), label=ONE)
    exact, *others = (probs_of(partial(step, gamma=gamma, order=order), process,
                               world.oracle(process), z, s, t, monkeypatch)
                      for gamma, order in ((1, "exact"), (1, "first"), (0, "first")))
    far = [(p - exact).abs().sum(-1).mean(-1) / 2 for p in others]  # (S,) each
    assert [float(often @ a) for a in far] == pytest.approx([first, none], abs=0.0006)
