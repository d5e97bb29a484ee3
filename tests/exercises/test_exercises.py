"""
The graders of exercises 1 to 10 (exercises/README.md), which also guard the solutions.

A failure says what came out, what is exact, and which mistake gives that result.
"""
import math

import pytest
import torch
import torch.nn.functional as F

import diffusion
from diffusion import (
    Absorbing,
    Hybrid,
    Uniform,
    ancestral,
    categorical,
    corrupt,
    posterior_x0,
    reverse,
    stratified,
)
from exercises import predictions
from graders import DOUBLE, check_close, check_detects, check_equal
from methods.mdlm import any_order, masked_bound


def constant_denoiser(logits):
    """A denoiser that predicts the same everywhere. logits (V,)"""
    def denoiser(z, t, at=None):
        return logits.expand(*z.shape, -1) if at is None else logits.expand(int(at.sum()), -1)
    return denoiser


# ---- 1: noise

def test_exercise_01_each_token_is_kept_with_probability_alpha():
    torch.manual_seed(1)
    x, t = torch.zeros(200, 300).long(), torch.tensor([[0.2]]).expand(200, 1)  # (B, L), (B, 1)
    z = corrupt(Absorbing(5), x, t)  # (200, 300)
    check_close("the share of tokens kept at t = 0.2", (z == x).double().mean(), 0.8, 0.008,
                {"you keep with probability 1 - alpha": 0.2})
    rows = (z == x).double().mean(-1)  # (200,)
    check_close("the spread of that share over texts", rows.std(), (0.8 * 0.2 / 300) ** 0.5, 0.006,
                {"there is one coin for a whole text, not one for each token": 0.4})
    found = z.unique().tolist()
    assert set(found) == {0, 5}, f"under masks a token is kept or becomes 5, got {found}"


def test_exercise_01_noise_comes_from_the_process_and_may_be_the_right_word():
    torch.manual_seed(2)
    t = torch.full((300, 1), 0.8)  # (B, 1)
    z = corrupt(Uniform(4), torch.zeros(300, 300).long(), t)  # (300, 300)
    check_close("the share of right words under uniform noise over 4 symbols at t = 0.8",
                (z == 0).double().mean(), 0.2 + 0.8 / 4, 0.008,
                {"noise never draws the clean word": 0.2, "you keep with probability t": 0.85})


def test_exercise_01_each_token_has_its_own_time_and_frozen_tokens_stay():
    torch.manual_seed(3)
    t = torch.tensor([[1e-9, 0.25, 0.75, 1.0]]).expand(400, 4)  # (B, L)
    x = torch.zeros(400, 4).long()  # (B, L)
    check_close("the shares of masks at times 0, 1/4, 3/4 and 1",
                (corrupt(Absorbing(3), x, t) == 3).double().mean(0),
                torch.tensor([0, 0.25, 0.75, 1.0]), 0.1)
    frozen = torch.tensor([[True, False] * 2]).expand(400, 4)  # (B, L)
    z = corrupt(Absorbing(3), x, torch.ones(400, 1), frozen)  # (B, L)
    assert (z[frozen] == 0).all(), "a frozen token was noised: given tokens must stay as they are"
    assert (z[~frozen] == 3).all(), "at t = 1 every token that is not frozen is noise"


# ---- 2: a draw from a distribution

def test_exercise_02_draws_have_the_probabilities_of_their_row():
    torch.manual_seed(4)
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]], dtype=DOUBLE)  # (1, 4)
    drawn = categorical(5 * p.expand(40_000, -1))  # (n,) rows need not be normalized
    seen = torch.bincount(drawn, minlength=4) / 40_000  # (4,)
    check_close("frequencies of four symbols", seen, p[0], 0.012,
                {"you take the likeliest": torch.tensor([0, 0, 1.0, 0]),
                 "all are equally likely": torch.full((4,), 0.25)})


def test_exercise_02_one_float64_number_per_row_and_no_impossible_symbol(monkeypatch):
    asked, numbers = [], iter([0.0, 1 - 2.0 ** -53, 0.1, 0.0999])

    def rand(*size, dtype=None, device=None, **options):
        asked.append(dtype)
        size = size[0] if isinstance(size[0], (tuple, list, torch.Size)) else size
        return torch.full(size, next(numbers), dtype=dtype)
    monkeypatch.setattr(torch, "rand", rand)
    p = torch.tensor([[0.0, 0.1, 0.9, 0.0]], dtype=DOUBLE)  # (1, 4)
    drawn = [categorical(p).item() for _ in range(4)]
    assert asked[0] == DOUBLE, (
        f"the uniform number is {asked[0]}: a float32 number has 24 bits, and what is rarer than "
        "6e-8 never happens; ask for float64")
    assert drawn[0] == 1, (f"u = 0 drew symbol {drawn[0]}, of probability 0: search from the right "
                           "(u < cdf, not <=)")
    assert drawn[1] == 2, (f"u next to 1 drew symbol {drawn[1]}, of probability 0: take the last "
                           "symbol that has some")
    assert drawn[2:] == [2, 1], (f"u = 0.1 and just below drew {drawn[2:]}: cumulated "
                                 "probabilities are 0, 0.1, 1, 1")


# ---- 3, 4, 5, 6: the bound of masks

def test_exercise_03_the_prediction_is_what_is_measured():
    torch.manual_seed(5)
    for N in (5, 27):
        process, t = Absorbing(N), stratified(20_000)  # (n, 1)
        x = torch.randint(N, (20_000, 8))  # (n, 8)
        z = corrupt(process, x, t)  # (n, 8)
        weight = torch.where(z == process.mask, 1 / t, 0.0)  # (n, 8)
        measured = (weight * math.log(N)).mean()  # ()
        check_close(f"your prediction for {N} symbols, in nats per token",
                    predictions.bound_of_a_uniform_guess(N), measured, 0.1, {
                        "you count the mask as a symbol of the text": math.log(N + 1),
                        "you sum over the text": 8 * math.log(N), "you count bits": math.log2(N),
                        "you forget the weight 1/t: only half of the tokens are masks":
                            math.log(N) / 2})


def test_exercise_04_the_weight_is_one_over_t_at_masks_and_nothing_else_counts():
    z = torch.tensor([[0, 3, 3, 1], [3, 3, 3, 3]])  # (2, 4)
    ce = torch.tensor([[0.5, 1.0, 2.0, 9.0], [0.1, 0.2, 0.3, 0.4]], dtype=DOUBLE)  # (2, 4)
    t, at = torch.tensor([[0.25], [0.8]], dtype=DOUBLE), z == 3  # (2, 1), (2, 4)
    exact, n = torch.where(at, ce / t, 0.0), at.sum(-1, keepdim=True)  # (2, 4), (2, 1)
    check_equal("the bound at each token", masked_bound(Absorbing(3), ce, z, t), exact, {
        "the weight is missing: a cross-entropy is no bound": torch.where(at, ce, 0.0),
        "you divide by the number of masks of each text, not by t": torch.where(at, ce / n, 0),
        "the weight is 1/(1 - t), of the share that was kept": torch.where(at, ce / (1 - t), 0.0),
        "tokens that are not masks count as well": ce / t,
        "the sign is wrong: a bound is positive": -exact})


def test_exercise_04_the_weight_follows_the_schedule():
    """-alpha' / (1 - alpha), for another alpha."""
    class Squared(Absorbing):
        alpha, dalpha = staticmethod(lambda t: 1 - t ** 2), staticmethod(lambda t: -2 * t)

        def b(self, t, v):
            return t ** 2 * (v == self.mask)
    z, ce = torch.full((3, 2), 2), torch.ones(3, 2, dtype=DOUBLE)  # (3, 2) each
    t = torch.tensor([[0.1], [0.5], [0.9]], dtype=DOUBLE)  # (3, 1)
    check_equal("the bound under masks whose share is t^2", masked_bound(Squared(2), ce, z, t),
                (2 / t).expand(3, 2),
                {"you wrote 1/t, which holds for alpha = 1 - t only": (1 / t).expand(3, 2)})


def test_exercise_05_k_masks_of_1_to_n_anywhere_but_on_given_tokens():
    torch.manual_seed(6)
    x = torch.zeros(400, 5).long()  # (B, L)
    frozen = torch.tensor([[True] + [False] * 4]).expand(400, 5)  # (B, L)
    u = (torch.arange(400)[:, None] + 0.5) / 400  # (B, 1)
    z, k, n = any_order(Absorbing(3), x, u, frozen)  # (B, L), (B, 1), (B, 1)
    masks = (z == 3).sum(-1)  # (B,)
    assert (n == 4).all(), (f"n is {n.unique().tolist()}: one of five tokens is given, so four can "
                            "become masks")
    assert not (z[frozen] == 3).any(), "a given token became a mask"
    off = masks != k[:, 0]  # (B,)
    assert not off.any(), f"a text has {masks[off][0]} masks where k is {k[off][0].item()}"
    counts = torch.bincount(masks, minlength=5)[1:5] / 400  # (4,)
    check_close("how often k is 1, 2, 3, 4", counts, torch.full((4,), 0.25), 0.01, {
        "you round down: k runs from 0 to n - 1, and k = 0 has no weight n / k":
            torch.tensor([0.25, 0.25, 0.25, 0.0]),
        "you round to the nearest": torch.tensor([0.25, 0.25, 0.25, 0.125])})
    check_close("how often each position is masked", (z == 3).double().mean(0)[1:],
                torch.full((4,), 0.625), 0.1,
                {"the first positions are always taken": torch.tensor([1.0, 0.75, 0.5, 0.25])})


def test_exercise_06_your_test_fails_without_the_weight():
    check_detects(predictions.detector_of_missing_weight(), "methods/mdlm.py",
                  "masked_weight(process, t) * cross_entropy", "cross_entropy")


# ---- 7, 8: backwards

def reverse_by_hand(process, x_theta, z, s, t):
    """(0.3) for one token, in plain numbers. x_theta (V,) -> (V,)"""
    a_t, a_s = process.alpha(t).item(), process.alpha(s).item()
    b = lambda time, v: process.b(time, torch.tensor(v)).item()
    joint = []
    for v in range(process.V):
        into = a_t / a_s * (v == z) + b(t, z) - a_t / a_s * b(s, z)  # q(z_t = z | z_s = v)
        joint.append(into * (a_s * x_theta[v].item() + b(s, v)))
    return torch.tensor(joint, dtype=DOUBLE) / sum(joint)


CASES = {"masks": (Absorbing(3), 3), "uniform noise": (Uniform(3), 1),
         "both, at a mask": (Hybrid(3, 0.3), 3), "both, at a word": (Hybrid(3, 0.3), 0)}


@pytest.mark.parametrize("name", CASES)
def test_exercise_07_one_step_back_is_bayes_rule(name):
    process, z = CASES[name]
    s, t = (torch.tensor([[time]], dtype=DOUBLE) for time in (0.3, 0.7))  # (1, 1) each
    x_theta = F.pad(torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE), (0, process.V - 3))  # (V,)
    ours = reverse(process, x_theta.expand(1, 1, -1), torch.tensor([[z]]), s, t)[0, 0]  # (V,)
    exact = reverse_by_hand(process, x_theta, z, s, t)  # (V,)
    v = torch.arange(process.V)  # (V,)
    a_t, a_s = process.alpha(t)[0], process.alpha(s)[0]  # (1,) each
    own, b_s = F.one_hot(torch.tensor(z), process.V), process.b(s[0], v)  # (V,) each
    b_tz, b_sz = (process.b(time, torch.tensor(z))[0] for time in (t, s))  # (1,) each
    keep = a_t / a_s  # (1,)
    normalize = lambda into, before: (into * before) / (into * before).sum()
    check_equal(f"p(z_s | z_t) under {name}", ours, exact, {
        "noise since s is b_t - (alpha_t / alpha_s) b_s, not b_t":
            normalize(keep * own + b_tz, a_s * x_theta + b_s),
        "a token survives from s to t with alpha_t / alpha_s, not with alpha_t":
            normalize(a_t * own + b_tz - keep * b_sz, a_s * x_theta + b_s),
        "s and t are exchanged in the second factor":
            normalize(keep * own + b_tz - keep * b_sz, a_t * x_theta + process.b(t[0], v)),
        "you return the prediction itself, not a step": x_theta})


def test_exercise_08_the_posterior_multiplies_the_evidence_in():
    process, t = Uniform(3), torch.tensor([[0.4]], dtype=DOUBLE)  # (1, 1)
    x_theta = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=DOUBLE)  # (1, 1, 3)
    evidence = torch.tensor([0.4 / 3, 0.4 / 3, 0.6 + 0.4 / 3], dtype=DOUBLE)  # (3,) of z = 2
    joint = x_theta[0, 0] * evidence  # (3,)
    ours = posterior_x0(process, x_theta, torch.tensor([[2]]), t)[0, 0]  # (3,)
    check_equal("p(x | z) at a word that is probably right", ours, joint / joint.sum(), {
        "you return x_theta, the leave-one-out distribution": x_theta[0, 0],
        "you return the evidence alone": evidence, "it does not sum to 1": joint})
    padded = F.pad(x_theta, (0, 1))  # (1, 1, 4)
    check_equal("p(x | z) at a mask, which says nothing",
                posterior_x0(Hybrid(3, 0.3), padded, torch.tensor([[3]]), t), x_theta)


# ---- 9, 10: the lazy step

@pytest.mark.parametrize("name", ["uniform noise", "both, at a word"])
def test_exercise_09_the_lazy_step_draws_from_the_reverse_step(name):
    torch.manual_seed(7)
    (process, z), n = CASES[name], 60_000
    guess = torch.tensor([0.1, 0.7, 0.2] if z == 1 else [0.7, 0.1, 0.2], dtype=DOUBLE)  # (3,)
    s, t = (torch.full((n, 1), time, dtype=DOUBLE) for time in (0.2, 0.6))  # (n, 1) each
    start, frozen = torch.full((n, 1), z), torch.zeros(n, 1, dtype=torch.bool)  # (n, 1) each
    denoiser = constant_denoiser(guess.log())
    drawn = diffusion.reverse_step(process, denoiser, start, frozen, s, t)[:, 0]  # (n,)
    x_theta = F.pad(guess, (0, process.V - 3))  # (V,)
    exact = reverse_by_hand(process, x_theta, z, s[:1], t[:1])  # (V,)
    b_t, b_s = (process.b(time[:1], start[:1]).item() for time in (t, s))
    a_t, a_s = (process.alpha(time[:1]).item() for time in (t, s))
    beta = b_t - a_t / a_s * b_s
    other = a_s * x_theta + process.b(s[0], torch.arange(process.V))  # (V,)
    own = F.one_hot(torch.tensor(z), process.V).double()  # (V,)
    seen = torch.bincount(drawn, minlength=process.V) / n  # (V,)
    check_close("frequencies of z_s", seen, exact, 0.009, {
        "all tokens that the network is called for move: the second coin is missing":
            beta / b_t * other + (1 - beta / b_t) * own,
        "no token that the network is called for moves": own})


def test_exercise_10_the_prediction_is_what_is_counted():
    torch.manual_seed(8)
    for length, steps in ((8, 8), (16, 6)):
        calls, texts, process = 0, 150, Absorbing(2)

        def counted(z, t, at=None):
            nonlocal calls
            calls += 1
            return torch.zeros(int(at.sum()), 2)  # (N, 2)
        for _ in range(texts):
            z = torch.full((1, length), 2)  # (1, L)
            list(ancestral(process, counted, z, torch.zeros_like(z, dtype=torch.bool), steps))
        check_close(f"your prediction of the calls for {length} masks in {steps} steps",
                    predictions.calls_of_the_masked_sampler(length, steps), calls / texts, 0.4,
                    {"there is a call at every step": steps,
                     "there is a call for each token": length})
