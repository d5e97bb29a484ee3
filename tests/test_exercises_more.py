"""The graders of exercises.md, 11 to 20."""
import math

import pytest
import torch
import torch.nn.functional as F
from graders import DOUBLE, fails_without, graded, near

import answers
from block import doubled
from diffusion import ancestral, bound
from distill import coupled, divergence
from duo import GaussianUniform
from guidance import mix
from masked import Absorbing, confidence
from md4 import Scheduled
from partition import weights
from uniform import Hybrid, Uniform, mixture_bound


# ---- 11, 12: the bound where words may be wrong

@pytest.mark.parametrize("process", [Uniform(3), Hybrid(3, 0.4)], ids=["uniform", "both"])
def test_exercise_11_the_closed_form_is_the_one_bound(process):
    g = torch.Generator().manual_seed(9)
    x, z = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 2, 2, process.V - 1]])
    t, log_p = torch.tensor([[0.35]], dtype=DOUBLE), torch.randn(1, 4, 3, generator=g, dtype=DOUBLE).log_softmax(-1)
    exact = bound(process, F.pad(log_p.exp(), (0, process.V - 3)), x, z, t)                             # (1, 4)
    u = process.b(t, torch.zeros_like(x))                                                               # (1, 4)
    kappa, text, at_z = process.alpha(t) / u, z < 3, torch.where(z < 3, z, 0)                           # (1, 4) each
    log_one = lambda a: torch.log1p(kappa * a)
    at = lambda v: log_p.gather(-1, v[..., None])[..., 0].exp()                                         # (1, 4)
    d = torch.where(z == x, log_one(1), 0.0) - log_one(at(at_z))                                        # (1, 4)
    IS = torch.where(text, torch.expm1(d) - d, 0.0)                                                     # (1, 4)
    every = torch.log1p(kappa[..., None] * log_p.exp()).sum(-1)                                         # (1, 4)
    K = kappa * (log_one(1) - log_one(at(x))) + log_one(1) - every                                      # (1, 4)
    ours = mixture_bound(process, log_p, x, z, t, weight=torch.ones_like(u))                            # (1, 4)
    graded("u K + IS at four tokens (right, wrong, right, noise)", ours, u * K + IS, {
        "IS is missing": u * K, "K is missing": IS,
        "K lacks log(1 + kappa) - sum log(1 + kappa x_theta), the other symbols": u * kappa * (
            log_one(1) - log_one(at(x))) + IS,
        "IS counts at masks too, where there is no word to be wrong": u * K + torch.expm1(d) - d,
        "IS is e^d - 1: the - d is missing": u * K + torch.where(text, torch.expm1(d), 0.0)})
    graded("the whole bound", mixture_bound(process, log_p, x, z, t), exact)


def test_exercise_11_a_small_difference_keeps_its_digits():
    """Near t = 1 everything is noise, and the bound is what float32 would lose."""
    x = z = torch.zeros(1, 1, dtype=torch.long)
    t, p = torch.tensor([[0.9999]]), torch.tensor([[[0.6, 0.3, 0.1]]])
    exact = bound(Uniform(3), p.double(), x, z, t.double()).item()
    near("the bound at t = 0.9999 in float32, over the exact one", mixture_bound(Uniform(3), p.log(), x, z, t) / exact,
         1, 0.02, {"use log1p and expm1: log(1 + a) of a small a has no digits": 0})


def test_exercise_12_your_test_fails_without_the_term():
    fails_without(answers.what_sees_the_missing_term(), "uniform.py",
                  "u * K + torch.where(text, torch.expm1(d) - d, 0.0)", "u * K")


# ---- 13: schedules

@pytest.mark.parametrize("schedule", ["linear", "polynomial", "cosine"])
def test_exercise_13_masks_run_from_none_to_all_and_slopes_are_derivatives(schedule):
    process, t = Scheduled(3, schedule, power=3.0), torch.linspace(0, 1, 9, dtype=DOUBLE)[:, None]      # (9, 1)
    exact = {"linear": t, "polynomial": t ** 3, "cosine": (math.pi / 2 * t).sin()}[schedule]            # (9, 1)
    backwards = {"linear": 1 - t, "polynomial": 1 - t ** 3, "cosine": (math.pi / 2 * t).cos()}[schedule]
    graded(f"the share of masks, {schedule}", process.masks(t), exact, {
        "the schedule runs backwards: that is alpha, the share of text": backwards,
        "that is 1 - cos(pi t / 2), slow where (41) is fast": 1 - (math.pi / 2 * t).cos()})
    t = t[1:-1].requires_grad_()                                                                        # (7, 1)
    slope = torch.autograd.grad({"linear": t * 1, "polynomial": t ** 3, "cosine": (math.pi / 2 * t).sin()}
                                [schedule].sum(), t)[0]
    graded(f"its slope, {schedule}", process.dmasks(t.detach()), slope, {
        "the sign is wrong: masks grow": -slope,
        "the inner derivative pi / 2 is missing": slope / (math.pi / 2)})


# ---- 14, 15: orders of opening

def test_exercise_14_the_surest_draws_stay_and_the_others_are_masks_again():
    belief = torch.tensor([0.6, 0.9, 0.5, 0.8])                          # of symbol 0 at four places
    law = torch.stack([belief, 1 - belief], -1)                                                         # (4, 2)

    def sure(z, t, at):
        return law.expand(len(z), 4, 2)[at].clamp(1e-9).log()
    torch.manual_seed(11)
    take = lambda logits: F.one_hot(logits.argmax(-1), 2).double() * logits.softmax(-1)[..., :1].double()
    opened = []
    for start in ([2, 2, 2, 2], [2, 0, 2, 2]):
        z = torch.tensor([start, start])
        for after in confidence(Absorbing(2), sure, z, torch.zeros_like(z, dtype=torch.bool), 2, lambda p: take(p)):
            opened.append((after != 2).tolist()[0])
            break
    assert opened[0] == [False, True, False, True], (
        f"two of four masks open, those of belief 0.9 and 0.8 at places 1 and 3; yours: {opened[0]}" +
        ". You keep those that are believed least" * (opened[0] == [True, False, True, False]))
    assert opened[1] == [True, True, False, True], (
        f"of three masks two open, 0.6 and 0.8, and text stays text; yours: {opened[1]}. Text must not take the place "
        "of a mask in the ranking: it has no score")


def test_exercise_14_every_text_keeps_as_many():
    """The ranking is within a text: a batch must not share one."""
    torch.manual_seed(12)
    belief = torch.tensor([[0.99] * 4, [0.6] * 4])                                                      # (2, 4)
    sure = lambda z, t, at: torch.stack([belief, 1 - belief], -1)[at].log()
    z = torch.full((2, 4), 2)
    z = next(confidence(Absorbing(2), sure, z, torch.zeros_like(z, dtype=torch.bool), 2))
    counts = (z != 2).sum(-1).tolist()
    assert counts == [2, 2], f"each text opens two of its four masks; yours {counts}: is there one ranking for all?"


def test_exercise_15_the_guess_is_what_is_measured():
    """A language of two texts, 0 0 and 1 1, through its exact denoiser."""
    torch.manual_seed(13)

    def exact(z, t, at):
        known = torch.where(z.min(-1).values < 2, z.min(-1).values, 2)                                  # (B,)
        law = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])[known]                                 # (B, 2)
        return law[:, None].expand(-1, 2, -1)[at].log()
    for steps in (1, 2, 5):
        nothing = torch.zeros(4000, 2, dtype=torch.bool)                                                # (n, 2)
        *_, z = ancestral(Absorbing(2), exact, torch.full((4000, 2), 2), nothing, steps)                # (n, 2)
        near(f"your guess of the share of texts that fit after {steps} steps", answers.share_of_pairs_that_fit(steps),
             (z[:, 0] == z[:, 1]).double().mean(), 0.035,
             {"that is the chance that both open together, and then half of them fit by luck": 1 - 1 / steps,
              "that is exact only in infinitely many steps": 1.0})


# ---- 16: guidance

def test_exercise_16_strength_leans_away_from_no_class():
    c, u = torch.tensor([[0.7, 0.2, 0.1]], dtype=DOUBLE), torch.tensor([[0.3, 0.3, 0.4]], dtype=DOUBLE)
    law = lambda a, b, k: (a ** k * b ** (1 - k)) / (a ** k * b ** (1 - k)).sum()
    for gamma in (0.5, 2, 4):
        graded(f"the law at strength {gamma}", mix(c.log(), u.log(), gamma).exp(), law(c, u, gamma), {
            "your strength is the other convention: 0 forgets the class, 1 is as in the data": law(c, u, 1 + gamma),
            "the two laws are exchanged": law(u, c, gamma)})


def test_exercise_16_what_either_law_rules_out_stays_out():
    never = -math.inf
    for c, u in (([0.0, never, -1.0], [-1.0, 0.0, -1.0]), ([0.0, -1.0, -1.0], [-1.0, never, 0.0])):
        c, u = torch.tensor([c], dtype=DOUBLE), torch.tensor([u], dtype=DOUBLE)
        p = mix(c, u, 3.0).exp()                                                                        # (1, 3)
        exact = (3.0 * c[:, ::2] - 2.0 * u[:, ::2]).softmax(-1)                                         # (1, 2)
        graded("the law where one of the two is 0", p, torch.stack([exact[:, 0], 0 * exact[:, 0], exact[:, 1]], -1))


# ---- 17, 18: blocks and partitions

def test_exercise_17_noisy_blocks_look_at_themselves_and_at_clean_blocks_before_them():
    L, block = 6, 2

    def table(rule):
        return torch.tensor([[rule(i % L // block, i < L, j % L // block, j < L) for j in range(2 * L)]
                             for i in range(2 * L)])                                                    # (2L, 2L)
    index = torch.arange(2 * L)                                                                         # (2L,)
    ours = doubled(L, block)(0, 0, index[:, None], index)                                               # (2L, 2L)
    own = lambda a, noisy, b, other: a == b and noisy == other
    exact = table(lambda a, noisy, b, other: own(a, noisy, b, other) or (b < a and not other))
    graded("who may look at whom in [z ; x], six tokens in blocks of two", ours.int(), exact.int(), {
        "a noisy block sees its own clean tokens: the answer is given away, and the loss falls to 0":
            table(lambda a, noisy, b, other: own(a, noisy, b, other) or (b <= a and not other)).int(),
        "a block sees the noisy tokens of earlier blocks; it must see the clean ones":
            table(lambda a, noisy, b, other: own(a, noisy, b, other) or (b < a and other)).int(),
        "a block does not see itself": table(lambda a, noisy, b, other: b < a and not other).int(),
        "the clean half does not see its earlier blocks":
            table(lambda a, noisy, b, other: own(a, noisy, b, other) or (b < a and not other and noisy)).int()})


def test_exercise_17_reach_limits_how_far_back():
    L, block, index = 8, 2, torch.arange(16)
    ours = doubled(L, block, reach=2)(0, 0, index[:, None], index)                                      # (2L, 2L)
    back = index[:, None] % L // block - index % L // block                                             # (2L, 2L)
    exact = (back == 0) & ((index[:, None] < L) == (index < L)) | (back == 1) & (index >= L)            # (2L, 2L)
    graded("the same through a reach of one block", ours.int(), exact.int())


def test_exercise_18_each_group_is_weighted_by_its_own_share_of_noise():
    group, t = torch.tensor([[True, False]]), torch.tensor([[0.2]], dtype=DOUBLE)
    graded("w of a token in group 1 and in group 0 at t = 0.2", weights(group, t, "bound"),
           torch.tensor([[5.0, 1.25]], dtype=DOUBLE), {
               "the groups are exchanged: group 1 is hidden with probability t": torch.tensor([[1.25, 5.0]]),
               "both have the weight of group 1": torch.tensor([[5.0, 5.0]])})
    graded("the bounded weights of `simple`", weights(group, t, "simple"), torch.tensor([[4.8, 1.2]], dtype=DOUBLE),
           {"that is 6 n: most is learnt where much can be seen, 6 (1 - n)": torch.tensor([[1.2, 4.8]])})


# ---- 19, 20: distillation

def test_exercise_19_the_two_points_lie_on_one_path():
    torch.manual_seed(14)
    process, x = GaussianUniform(4), torch.zeros(400, 100, dtype=torch.long)                            # (n, L)
    s, t = torch.full((400, 1), 0.3), torch.full((400, 1), 0.6)                                         # (n, 1) each
    z_s, z_t = coupled(process, x, s, t)
    right = lambda time: (process.alpha(time) + process.b(time, torch.zeros(1, dtype=torch.long))).mean().item()
    near("the share of right words at s and t", torch.stack([(z == x).double().mean() for z in (z_s, z_t)]),
         torch.tensor([right(s), right(t)]), 0.012, {
             "s and t are exchanged": torch.tensor([right(t), right(s)]),
             "the noise may draw the clean word again: alpha + (1 - alpha) / V counts that already": torch.tensor(
                 [right(s) + (1 - right(s)) / 4, right(t) + (1 - right(t)) / 4])})
    back = ((z_s != x) & (z_t == x)).double().mean()
    near("the share of words that are wrong at s and right at t, later", back, 0.0, 1e-9, {
        "u is drawn anew for each time: the two points must share it": (1 - right(s)) * right(t)})
    wrong = (z_s != x) & (z_t != x)
    assert (z_s[wrong] == z_t[wrong]).all(), "the wrong word must be the same at s and at t: draw it once"


def test_exercise_20_both_directions_and_each_over_all_symbols():
    a, b = (torch.tensor([p], dtype=DOUBLE) for p in ([0.7, 0.2, 0.1], [0.2, 0.2, 0.6]))
    kl = lambda p, q: (p * (p / q).log()).sum(-1)
    for name, exact, other in (("kl-bwd", kl(a, b), kl(b, a)), ("kl-fwd", kl(b, a), kl(a, b))):
        graded(f"{name} of a student from its teacher", divergence(name, a.log(), b.log()), exact, {
            "the directions are exchanged: kl-bwd is the mean over the student's law": other,
            "the sign is wrong": -exact, "it is a mean over symbols, not a sum": exact / 3})
