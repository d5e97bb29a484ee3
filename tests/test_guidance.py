"""Guidance: every law of guidance.py against sums over the world of 27 texts in two classes."""
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import world
from world import JOINT, L, N, PROCESSES, TEXTS, numbers, surprise

import guidance
from d3pm import D3PM, gaussian
from diffusion import ancestral, probabilities, reverse
from guidance import (ClassifierFree, Fudge, by_classifier, by_label, classifier_free_step, classifier_step,
                      exact_scores, first_order_scores, mix)
from masked import Absorbing
from methods import SAMPLERS, make_method
from model import Told
from score import jump_rate, score_of_mean

NOTHING = lambda n: torch.zeros(n, L, dtype=torch.bool)
K = len(JOINT) - 1                                       # classes; as a label, none
GIVEN = JOINT / JOINT.sum(-1, keepdim=True)              # (K + 1, 27) p(x | y)
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def close(ours, exact, tolerance=1e-10):                 # a step tells the denoiser its time in float32: 1e-6
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=tolerance)


def law_of(take, process, denoiser, z, s, t, monkeypatch):
    """The probabilities that a step draws from: what it hands to `categorical`. -> (B, L, V), one-hot where it asks
    for none"""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(guidance, "categorical", lambda p: seen.append(p) or p.argmax(-1))
        take(process, denoiser, z, torch.zeros_like(z, dtype=torch.bool), s, t)
    at = guidance.changeable(process, z, torch.zeros_like(z, dtype=torch.bool))                         # (B, L)
    stays = F.one_hot(z, process.V).double()                                                            # (B, L, V)
    return stays.index_put((at,), seen[0])                                                              # (B, L, V)


def bayes(process, z, s, t, y):
    """p(z_s^l = v | z_t, y) by its definition: a sum over the 27 texts, without any denoiser. -> (B, L, V)"""
    weight = world.q(process, z, t) * JOINT[y]                                                          # (B, 27)
    weight = weight / weight.sum(-1, keepdim=True)                                                      # (B, 27)
    law = torch.zeros(*z.shape, process.V, dtype=torch.float64)
    for x, w in zip(TEXTS, weight.T):                                                                   # (3,), (B,)
        clean = F.one_hot(x, process.V).double().expand(len(z), -1, -1)                                 # (B, L, V)
        law += w[:, None, None] * reverse(process, clean, z, s, t).nan_to_num()                       # never w 0 / 0
    return law


def everywhere(process, s, t):
    """Every noisy text of the world at one pair of times. -> z (S, L), s (S, 1), t (S, 1)"""
    z = world.states(process)
    z = z[world.q(process, z, torch.full((len(z), 1), t, dtype=torch.float64)).sum(-1) > 0]             # (S, L)
    return z, *(torch.full((len(z), 1), time, dtype=torch.float64) for time in (s, t))


TIMES = pytest.mark.parametrize("s, t", [(0.2, 0.5), (0.6, 0.65), (0.0, 0.3)])


# ---- (36) and (37)

def test_mixing_at_strength_0_and_1_gives_the_two_laws_back_and_rules_out_what_either_does():
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    a[0, 1], b[1, 2] = -torch.inf, -torch.inf
    a[2, 3] = b[2, 3] = -torch.inf
    assert torch.equal(mix(a, b, 1), a.log_softmax(-1)) and torch.equal(mix(a, b, 0), b.log_softmax(-1))
    for gamma in (0.3, 2.5):
        p = mix(a, b, gamma).exp()
        close(p.sum(-1), torch.ones(5, dtype=torch.float64))
        assert p[0, 1] == p[1, 2] == p[2, 3] == 0 and (p > 0).sum() == 17
    plain = a[3].softmax(-1) ** 2.5 * b[3].softmax(-1) ** -1.5
    close(mix(a[3], b[3], 2.5).exp(), plain / plain.sum())


def test_where_two_laws_rule_out_everything_the_first_one_holds():
    """As at temperature 0, where either is sure of one symbol: no number of a row is nan."""
    sure = torch.eye(4, dtype=torch.float64).log()                                                      # (4, 4)
    assert torch.equal(mix(sure[[0, 1]], sure[[2, 1]], 2.5), sure[[0, 1]])
    process, n = PROCESSES["uniform"], 50
    told = lambda z, t, at, label: 5.0 * F.one_hot(label[:, None].expand(z.shape) % 2, N)[at]       # 1, and none: 0
    z, s, t = torch.randint(N, (n, L)), *(torch.full((n, 1), time).double() for time in (0.0, 0.5))
    greedy = partial(probabilities, temperature=0)
    new = classifier_free_step(process, told, z, NOTHING(n), s, t, greedy, label=torch.tensor([1]), none=2, gamma=2.5)
    assert (new == 1).all()


@each_process
@TIMES
def test_the_classifier_free_step_draws_from_the_two_reverse_laws_mixed(process, s, t, monkeypatch):
    z, s, t = everywhere(process, s, t)
    for gamma in (0, 0.5, 1, 2.5):
        take = partial(classifier_free_step, label=torch.tensor([1]), none=K, gamma=gamma)
        ours = law_of(take, process, world.oracle(process), z, s, t, monkeypatch)
        conditional, plain = bayes(process, z, s, t, 1), bayes(process, z, s, t, K)
        mixed = torch.where((conditional > 0) & (plain > 0), conditional ** gamma * plain ** (1 - gamma), 0.0)
        close(ours, mixed / mixed.sum(-1, keepdim=True), 1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_guided_steps_draw_exactly_the_law_that_they_compute(name, monkeypatch):
    """12,000 draws of each against its law, by chi-square; labels differ from text to text."""
    process, n = PROCESSES[name], 12_000
    torch.manual_seed(2)
    s, t = torch.tensor([[0.3]]).double(), torch.tensor([[0.6]]).double()
    z, label = torch.tensor([[process.V - 1, 1, process.V - 1]]), torch.arange(2 * n) % 2
    for make in (lambda y: partial(classifier_free_step, label=y, none=K, gamma=2.0),
                 lambda y: partial(classifier_step, classifier=world.classifier(process), label=y, gamma=2.0)):
        new = make(label)(process, world.oracle(process), z.expand(2 * n, -1), torch.zeros(2 * n, L).bool(),
                          s.expand(2 * n, 1), t.expand(2 * n, 1))
        for y in (0, 1):
            p = law_of(make(torch.tensor([y])), process, world.oracle(process), z, s, t, monkeypatch)[0]
            assert surprise(numbers(new[y::2], process.V), torch.einsum("i,j,k->ijk", *p).flatten()) < 4.5


@each_process
def test_frozen_tokens_are_never_guided(process):
    z = torch.full((50, L), process.V - 1)
    frozen = torch.tensor([True, False, False]).expand(50, -1)
    s, t = (torch.full((50, 1), time, dtype=torch.float64) for time in (0.1, 0.9))
    for take in (partial(classifier_free_step, label=torch.tensor([1]), none=K, gamma=3.0),
                 partial(classifier_step, classifier=world.classifier(process), label=torch.tensor([1]), gamma=3.0)):
        new = take(process, world.oracle(process), z, frozen, s, t)
        assert (new[:, 0] == process.V - 1).all() and (new[:, 1:] != process.V - 1).any()


@each_process
def test_in_the_last_step_to_mix_x_theta_and_to_mix_the_step_are_one(process, monkeypatch):
    """And only there: under masks the chance to open differs by a factor, under other noise the words differ too."""
    mixed_x = lambda z, t: ClassifierFree(world.oracle(process), torch.tensor([1]), K, 2.5)(z, t)
    take = partial(classifier_free_step, label=torch.tensor([1]), none=K, gamma=2.5)
    for s, t in ((0.0, 0.4), (0.3, 0.6)):
        z, s_, t_ = everywhere(process, s, t)
        ours = law_of(take, process, world.oracle(process), z, s_, t_, monkeypatch)
        x_theta = world.carried_over(process, mixed_x(z, t_).exp(), z)
        other = reverse(process, x_theta, z, s_, t_)
        if s == 0:
            close(ours, other, 1e-6)
        elif isinstance(process, Absorbing):
            open_ = z == process.mask
            text = lambda p: p[open_][:, :N] / p[open_][:, :N].sum(-1, keepdim=True)
            close(text(ours), text(other), 1e-6)
            odds = lambda p: p[open_][:, :N].sum(-1) / p[open_][:, N]
            c, u = (world.oracle(process)(z, t_, label=torch.tensor([y])).exp()[open_] for y in (1, K))
            close(odds(ours), odds(other) * (c ** 2.5 * u ** -1.5).nan_to_num().sum(-1), 1e-6)
        else:
            assert (ours - other).abs().sum(-1).max() > 0.02


def test_ratios_that_are_mixed_jump_at_the_rates_of_the_mixed_step(monkeypatch):
    """sedd: s_c^gamma s_u^(1 - gamma), unnormalised, is what (37) comes to in a short step."""
    process, t, short = PROCESSES["uniform"], 0.5, 1e-6
    z, s, t = everywhere(process, t - short, t)
    take = partial(classifier_free_step, label=torch.tensor([1]), none=K, gamma=2.5)
    step = law_of(take, process, world.oracle(process), z, s, t, monkeypatch)
    x_theta = world.oracle(process)
    score = lambda z, t, label: score_of_mean(process, x_theta(z, t, label=label).exp(), z, t.expand(z.shape))
    log_score = lambda z, t, at, label: score(z, t, label).log()                                        # (2S, L, V)
    log_s = ClassifierFree(log_score, torch.tensor([1]), K, 2.5, ratios=True)(z, t)                     # (S, L, V)
    jumps = short * jump_rate(process, z, t)[..., None] * log_s.exp()                                  # (S, L, V) (35)
    moved = F.one_hot(z, process.V) == 0
    torch.testing.assert_close(step[moved], jumps[moved], rtol=1e-4, atol=0)
    plain = ClassifierFree(log_score, torch.tensor([1]), K, 2.5)(z, t).exp()
    close(plain.sum(-1), torch.ones(z.shape, dtype=torch.float64))       # and this is no score


@pytest.mark.parametrize("gamma", [0, 1, 2.5])
def test_d3pms_matrices_are_guided_by_their_own_reverse_step(gamma, monkeypatch):
    """In its walk, a step of which is (27) of the two oracles, mixed; from 6 / 8 of the noise to 3 / 8."""
    method = D3PM(N, 8, gaussian(N, 8))
    chain = method.process
    monkeypatch.setattr(world, "likelihood", lambda process, z, t: chain.likelihood(z, t.expand(z.shape)))
    z = world.states(chain)
    s, t = (torch.full((len(z), 1), time, dtype=torch.float64) for time in (3 / 8, 6 / 8))
    every = torch.ones_like(z, dtype=torch.bool)
    c, u = (guidance.reverse_at(chain, world.oracle(chain)(z, t, every, torch.tensor([y])), z, s, t, every)
            for y in (1, K))                                                                            # (3S, V) each
    mixed = c ** gamma * u ** (1 - gamma)
    denoiser, walk = by_label(method, world.oracle(chain), ancestral, torch.tensor([1]), K, gamma)
    if gamma == 2.5:                                     # a walk takes the guided step in place of its own
        monkeypatch.setattr(chain, "step", None)
        *_, end = method.sample(denoiser, z, torch.zeros_like(every), 4, walk)
        assert (end < N).all()
    take = partial(classifier_free_step, label=torch.tensor([1]), none=K, gamma=gamma)
    law = law_of(take, chain, world.oracle(chain), z, s, t, monkeypatch)
    close(law.flatten(0, 1), mixed / mixed.sum(-1, keepdim=True), 1e-6)


# ---- (38) and (39)

@each_process
@TIMES
def test_an_exact_classifier_at_strength_one_turns_the_unconditional_step_into_the_conditional_one(process, s, t,
                                                                                                    monkeypatch):
    z, s, t = everywhere(process, s, t)
    for y in (0, 1):
        take = partial(classifier_step, classifier=world.classifier(process), label=torch.tensor([y]), gamma=1,
                       order="exact")
        close(law_of(take, process, world.oracle(process), z, s, t, monkeypatch), bayes(process, z, s, t, y), 1e-6)


def test_a_classifier_that_is_told_one_time_for_all_tokens_is_exact_under_masks_alone(monkeypatch):
    """As the public code tells it: under uniform noise a step of .3 is then off by several percent."""
    off = {}
    for name, process in PROCESSES.items():
        z, s, t = everywhere(process, 0.3, 0.6)
        late = lambda z, t: world.classifier(process)(z, t.amax(-1, keepdim=True))
        take = partial(classifier_step, classifier=late, label=torch.tensor([1]), gamma=1, order="exact")
        law = law_of(take, process, world.oracle(process), z, s, t, monkeypatch)
        off[name] = (law - bayes(process, z, s, t, 1)).abs().sum(-1).max() / 2           # total variation
    assert off["mask"] < 1e-8 and off["uniform"] > 0.02 and off["hybrid .7"] > 0.01, off


@each_process
def test_first_order_is_exact_for_a_classifier_that_adds_up_its_tokens(process):
    """log p(0 | z) is linear in the tokens where class 0 is next to impossible."""
    weight = torch.randn(L, process.V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, s, t = everywhere(process, 0.3, 0.6)
    rare, at = torch.zeros(len(z), dtype=torch.long), torch.ones_like(z, dtype=torch.bool)

    def additive(z, t):
        soft = z if z.is_floating_point() else F.one_hot(z, process.V).double()                         # (B, L, V)
        h = torch.einsum("blv,lv->b", soft, weight) - 60                                                # (B,)
        return torch.stack([h, torch.zeros_like(h)], -1)                                                # (B, 2)
    close(first_order_scores(additive, z, t, rare, process.V)[at],
          exact_scores(additive, z, t, t, at, rare, process.V), 1e-8)


@pytest.mark.parametrize("name, first, none", [("mask", 0.028, 0.035), ("uniform", 0.017, 0.046),
                                               ("hybrid .1", 0.038, 0.035), ("hybrid .7", 0.004, 0.011)])
def test_what_first_order_costs_with_the_exact_classifier(name, first, none, monkeypatch):
    """A step from .6 to .3: mean distance to the exact step in total variation, beside that of no guidance at all. The
    exact p(y | z) is no linear affair: (39) repairs most under uniform noise, little under masks, and worse than
    nothing where both are mixed and a wrong word is a rare surprise."""
    process = PROCESSES[name]
    z, s, t = everywhere(process, 0.3, 0.6)
    often = world.q(process, z, t) @ JOINT[1] / JOINT[1].sum()                                          # (S,) q(z | y)
    take = partial(classifier_step, classifier=world.classifier(process), label=torch.tensor([1]))
    exact, *others = (law_of(partial(take, gamma=gamma, order=order), process, world.oracle(process), z, s, t,
                             monkeypatch) for gamma, order in ((1, "exact"), (1, "first"), (0, "first")))
    found = [float((often * (law - exact).abs().sum(-1).mean(-1) / 2).sum()) for law in others]
    assert found == pytest.approx([first, none], abs=0.0006)


# ---- walks

@pytest.mark.parametrize("name, sampler, steps, most", [
    ("mdlm", "first-hitting", 3, 0.0), ("mdlm", "ancestral", 48, 0.012), ("udlm", "ancestral", 48, 0.012),
    ("gidd", "ancestral", 48, 0.012)])
def test_many_steps_at_strength_one_draw_the_class(name, sampler, steps, most):
    """Total variation distance to p(x | y), against that of as many exact draws; at 0 it is p(x), to the bit."""
    m, n = make_method(name, N), 5_000
    exact, none, start = world.oracle(m.process), K, SAMPLERS[sampler]
    torch.manual_seed(0)
    distance = lambda draws, law: (torch.bincount(draws, minlength=27) / n - law).abs().sum() / 2
    chance = torch.stack([distance(torch.multinomial(GIVEN[1], n, replacement=True), GIVEN[1]) for _ in range(30)])
    denoiser, walk = by_label(m, exact, start, torch.tensor([1]), none, 1.0)
    *_, z = m.sample(denoiser, m.prior((n, L)), NOTHING(n), steps, walk)
    assert distance(numbers(z, N), GIVEN[1]) < chance.mean() + 4 * chance.std() + most
    assert distance(numbers(z, N), GIVEN[0]) > 0.1
    ends = []
    for denoiser, walk in (by_label(m, exact, start, torch.tensor([1]), none, 0.0), (exact, start)):
        torch.manual_seed(1)
        *_, z = m.sample(denoiser, m.prior((500, L)), NOTHING(500), 5, walk)
        ends.append(z)
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["mdlm", "udlm", "gidd"])
def test_many_steps_with_the_exact_classifier_draw_the_class(name):
    """The same without labels, against a model that is told the class, in as many steps; at 0 unguided to the bit."""
    m, n = make_method(name, N), 2_000
    exact, judge = world.oracle(m.process), world.classifier(m.process)
    torch.manual_seed(0)
    denoiser, walk = by_classifier(m, exact, ancestral, torch.tensor([1]), 1.0, judge, "exact", L)
    *_, z = m.sample(denoiser, m.prior((n, L)), NOTHING(n), 16, walk)
    *_, told = m.sample(Told(exact, torch.tensor([1])), m.prior((n, L)), NOTHING(n), 16)
    a, b = (torch.bincount(numbers(draws, N), minlength=27).double() for draws in (z, told))
    some = a + b > 10
    chi = ((a - b) ** 2 / (a + b))[some].sum()           # two samples of one law
    assert (chi - some.sum()) / (2 * some.sum()) ** 0.5 < 4.5
    assert by_classifier(m, exact, ancestral, torch.tensor([1]), 0.0, None, "exact", L) == (exact, ancestral)


def test_left_to_right_with_the_exact_classifier_draws_the_class():
    """FUDGE at strength 1, with all words as candidates; with one candidate nothing is left to choose."""
    m, n = make_method("ar", N), 15_000
    judge = world.classifier(Absorbing(N))
    torch.manual_seed(0)
    for gamma, law in ((1.0, GIVEN[1]), (0.0, GIVEN[K])):
        denoiser, _ = by_classifier(m, world.left_to_right, ancestral, torch.tensor([1]), gamma, judge, "first", L)
        *_, z = m.sample(denoiser, m.prior((n, L)), NOTHING(n), 1)
        assert surprise(numbers(z, N), law) < 4.5
    one = Fudge(world.left_to_right, Absorbing(N), judge, torch.tensor([1]), 1.0, L, candidates=1)
    *_, z = m.sample(one, m.prior((50, L)), NOTHING(50), 1)
    assert len(z.unique(dim=0)) == 1
    free = ClassifierFree(world.left_to_right, torch.tensor([1]), K, 1.0)
    *_, z = m.sample(free, m.prior((n, L)), NOTHING(n), 1)
    assert surprise(numbers(z, N), GIVEN[1]) < 4.5


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_beginning_is_read_as_a_text_whose_rest_is_masked_and_of_a_long_one_the_end(length):
    read = []

    def judge(z, t):
        assert ((z == N).double().mean(-1, keepdim=True) - t).abs().max() < 1e-6        # its share of masks
        read.append(z)
        return torch.zeros(len(z), K)
    past = torch.tensor([[N, 2, 0, 1]])                  # start, and three words
    at = torch.tensor([[False, False, False, True]])
    flat = lambda z, t, at: torch.zeros(int(at.sum()), N)
    logits = Fudge(flat, Absorbing(N), judge, torch.tensor([1]), 2.0, length)(past, None, at)
    assert logits.shape == (1, N) and read[0][:, -1].sort().values.tolist() == [0, 1, 2]
    assert read[0][:, :-1].tolist() == [[2, 0, 1][4 - length:]] * N
    Fudge(flat, Absorbing(N), judge, torch.tensor([1]), 2.0, 4)(past[:, :2], None, at[:, 2:])
    assert read[1][:, 0].tolist() == [2] * 3 and (read[1][:, 2:] == N).all()


@pytest.mark.parametrize("window, read", [(None, [N, 2, 0, 1]), (2, [0, 1]), (9, [N, 2, 0, 1])])
def test_guided_ar_reads_its_window_and_no_more(window, read):
    seen = []
    flat = lambda z, t, at: seen.append((z, at)) or torch.zeros(int(at.sum()), N)
    at = torch.tensor([[False, False, False, True]])
    guided = Fudge(flat, Absorbing(N), lambda z, t: torch.zeros(len(z), K), torch.tensor([1]), 2.0, 4, window=window)
    assert guided(torch.tensor([[N, 2, 0, 1]]), None, at).shape == (1, N)
    assert seen[0][0].tolist() == [read] and seen[0][1].tolist() == [[False] * (len(read) - 1) + [True]]


def test_more_than_one_asks_for_more_but_is_not_the_law_of_whole_texts():
    """At strength 3 p(y | x) of the samples rises, and their law is off from (36) over whole texts, by any number of
    steps: no token knows how the rest will weigh."""
    m, n = make_method("mdlm", N), 20_000
    torch.manual_seed(0)
    whole = GIVEN[1] ** 3 * GIVEN[K] ** -2
    whole, agreement = whole / whole.sum(), JOINT[1] / JOINT[K]
    means = []
    for gamma in (0.0, 1.0, 3.0):
        denoiser, walk = by_label(m, world.oracle(m.process), SAMPLERS["first-hitting"], torch.tensor([1]), K, gamma)
        *_, z = m.sample(denoiser, m.prior((n, L)), NOTHING(n), L, walk)
        means.append(agreement[numbers(z, N)].mean())
    assert means[0] + 0.05 < means[1] and means[1] + 0.05 < means[2]
    assert surprise(numbers(z, N), whole) > 20
