"""The graders of exercises.md, 1 to 10: the same tests that guard the solutions. A failure says what came out, what is
exact, and which slip gives what came out."""
import math

import pytest
import torch
import torch.nn.functional as F
from graders import DOUBLE, fails_without, graded, near

import answers
import diffusion
from diffusion import ancestral, categorical, corrupt, posterior_x0, reverse, stratified
from masked import Absorbing, any_order, masked_bound
from uniform import Hybrid, Uniform


def law_of(logits):
    """A denoiser whose guess is the same everywhere. logits (V,)"""
    return lambda z, t, at=None: logits.expand(*z.shape, -1) if at is None else logits.expand(int(at.sum()), -1)


# ---- 1: noise

def test_exercise_01_each_token_is_kept_with_probability_alpha():
    torch.manual_seed(1)
    x, t = torch.zeros(200, 300, dtype=torch.long), torch.tensor([[0.2]]).expand(200, 1)
    z = corrupt(Absorbing(5), x, t)                                                                     # (200, 300)
    near("the share of tokens kept at t = 0.2", (z == x).double().mean(), 0.8, 0.008,
         {"you keep with probability 1 - alpha": 0.2})
    rows = (z == x).double().mean(-1)                                                                   # (200,)
    near("the spread of that share over texts", rows.std(), (0.8 * 0.2 / 300) ** 0.5, 0.006,
         {"there is one coin for a whole text, not one for each token": 0.4})
    assert set(z.unique().tolist()) == {0, 5}, f"under masks a token is kept or becomes 5, not {z.unique().tolist()}"


def test_exercise_01_noise_comes_from_the_process_and_may_hit_the_right_word():
    torch.manual_seed(2)
    z = corrupt(Uniform(4), torch.zeros(300, 300, dtype=torch.long), torch.full((300, 1), 0.8))         # (300, 300)
    near("the share of right words under uniform noise over 4 symbols at t = 0.8", (z == 0).double().mean(),
         0.2 + 0.8 / 4, 0.008, {"noise never draws the clean word": 0.2, "you keep with probability t": 0.85})


def test_exercise_01_each_token_has_its_own_time_and_what_is_frozen_stays():
    torch.manual_seed(3)
    x, t = torch.zeros(400, 4, dtype=torch.long), torch.tensor([[1e-9, 0.25, 0.75, 1.0]]).expand(400, 4)
    near("the shares of masks at times 0, 1/4, 3/4 and 1", (corrupt(Absorbing(3), x, t) == 3).double().mean(0),
         torch.tensor([0, 0.25, 0.75, 1.0]), 0.1)
    frozen = torch.tensor([[True, False] * 2]).expand(400, 4)
    z = corrupt(Absorbing(3), x, torch.ones(400, 1), frozen)                                            # (400, 4)
    assert (z[frozen] == 0).all(), "a frozen token was noised: what is given must stay as it is"
    assert (z[~frozen] == 3).all(), "at t = 1 every token that is not frozen is noise"


# ---- 2: a draw from a law

def test_exercise_02_draws_have_the_probabilities_of_their_row():
    torch.manual_seed(4)
    p = 5 * torch.tensor([[0.1, 0.0, 0.6, 0.3]], dtype=DOUBLE).expand(40_000, -1)    # need not be normalised
    seen = torch.bincount(categorical(p), minlength=4) / 40_000                                         # (4,)
    near("frequencies of four symbols", seen, p[0] / 5, 0.012,
         {"you take the likeliest": torch.tensor([0, 0, 1.0, 0]), "all are equally likely": torch.full((4,), 0.25)})


def test_exercise_02_one_double_precision_number_a_row_and_no_symbol_without_mass(monkeypatch):
    asked, numbers = [], iter([0.0, 1 - 2.0 ** -53, 0.1, 0.0999])

    def rand(*size, dtype=None, device=None, **more):
        asked.append(dtype)
        return torch.full(size[0] if isinstance(size[0], (tuple, list, torch.Size)) else size, next(numbers),
                          dtype=dtype)
    monkeypatch.setattr(torch, "rand", rand)
    p = torch.tensor([[0.0, 0.1, 0.9, 0.0]], dtype=DOUBLE)
    drawn = [categorical(p).item() for _ in range(4)]
    assert asked[0] == DOUBLE, (f"the uniform number is {asked[0]}: in float32 it has 24 bits, and what is rarer than "
                                "6e-8 never happens; ask for float64")
    assert drawn[0] == 1, f"u = 0 drew symbol {drawn[0]}, of probability 0: search from the right (u < cdf, not <=)"
    assert drawn[1] == 2, f"u next to 1 drew symbol {drawn[1]}, which has no mass: stay on the last one that has some"
    assert drawn[2:] == [2, 1], f"u = 0.1 and just below drew {drawn[2:]}: cumulated probabilities are 0, 0.1, 1, 1"


# ---- 3, 4, 5, 6: the bound of masks

def test_exercise_03_the_guess_is_what_is_measured():
    torch.manual_seed(5)
    for n_tokens in (5, 27):
        process, t = Absorbing(n_tokens), stratified(20_000)                                            # (n, 1)
        x = torch.randint(n_tokens, (20_000, 8))                                                        # (n, 8)
        z = corrupt(process, x, t)                                                                      # (n, 8)
        weight = torch.where(z == process.mask, 1 / t, 0.0)                                             # (n, 8)
        measured = (weight * math.log(n_tokens)).mean()
        near(f"your guess for {n_tokens} symbols, in nats per token", answers.bound_of_a_uniform_guess(n_tokens),
             measured, 0.1, {"you count the mask as a symbol that could be guessed": math.log(n_tokens + 1),
                             "you sum over the text": 8 * math.log(n_tokens), "you count bits": math.log2(n_tokens),
                             "you forget the weight 1/t: only half of the tokens are masks": math.log(n_tokens) / 2})


def test_exercise_04_the_weight_is_one_over_t_at_the_masks_and_nothing_counts_elsewhere():
    z = torch.tensor([[0, 3, 3, 1], [3, 3, 3, 3]])
    ce = torch.tensor([[0.5, 1.0, 2.0, 9.0], [0.1, 0.2, 0.3, 0.4]], dtype=DOUBLE)                       # (2, 4)
    t, at = torch.tensor([[0.25], [0.8]], dtype=DOUBLE), z == 3                                         # (2, 1)
    exact = torch.where(at, ce / t, 0.0)                                                                # (2, 4)
    graded("the bound at each token", masked_bound(Absorbing(3), ce, z, t), exact, {
        "the weight is missing: that is the cross-entropy, no bound": torch.where(at, ce, 0.0),
        "you divide by the number of masks of each text, not by t": torch.where(at, ce / at.sum(-1, keepdim=True), 0),
        "the weight is 1/(1 - t), that of the share which was kept": torch.where(at, ce / (1 - t), 0.0),
        "tokens that are no masks count too": ce / t, "the sign is wrong: a bound is positive": -exact})


def test_exercise_04_the_weight_follows_the_schedule():
    """-alpha' / (1 - alpha), with alpha that ends at eps."""
    z, t, ce = torch.full((3, 2), 2), torch.tensor([[0.1], [0.5], [0.9]], dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE)

    class Squared(Absorbing):
        alpha, dalpha = staticmethod(lambda t: 1 - t ** 2), staticmethod(lambda t: -2 * t)

        def b(self, t, v):
            return t ** 2 * (v == self.mask)
    graded("the bound under masks whose share is t^2", masked_bound(Squared(2), ce, z, t), (2 / t).expand(3, 2), {
        "you wrote 1/t, which holds for alpha = 1 - t alone": (1 / t).expand(3, 2)})


def test_exercise_05_exactly_k_masks_of_1_to_n_anywhere_but_on_given_tokens():
    torch.manual_seed(6)
    x, frozen = torch.zeros(400, 5, dtype=torch.long), torch.tensor([[True] + [False] * 4]).expand(400, 5)
    u = (torch.arange(400)[:, None] + 0.5) / 400                                                        # (400, 1)
    z, k, n = any_order(Absorbing(3), x, u, frozen)
    masks = (z == 3).sum(-1)                                                                            # (400,)
    assert (n == 4).all(), f"n is {n.unique().tolist()}: one of five tokens is given, so four can become masks"
    assert not (z[frozen] == 3).any(), "a given token became a mask"
    off = masks != k[:, 0]                                                                              # (400,)
    assert not off.any(), f"a text has {masks[off][0]} masks where k says {k[off][0].item()}"
    near("how often k is 1, 2, 3, 4", torch.bincount(masks, minlength=5)[1:5] / 400, torch.full((4,), 0.25), 0.01, {
        "you round down: k runs from 0 to n - 1, and k = 0 has no weight n / k": torch.tensor([0.25, 0.25, 0.25, 0.0]),
        "you round to the nearest": torch.tensor([0.25, 0.25, 0.25, 0.125])})
    near("how often each place is masked", (z == 3).double().mean(0)[1:], torch.full((4,), 0.625), 0.1,
         {"the first ones are always taken": torch.tensor([1.0, 0.75, 0.5, 0.25])})


def test_exercise_06_your_test_fails_without_the_weight():
    fails_without(answers.what_sees_the_missing_weight(), "masked.py", "masked_weight(process, t) * cross_entropy",
                  "cross_entropy")


# ---- 7, 8: backwards

def by_hand(process, x_theta, z, s, t):
    """Eq. (3) for one token, in plain numbers. x_theta (V,) -> (V,)"""
    a_t, a_s = process.alpha(t).item(), process.alpha(s).item()
    b = lambda time, v: process.b(time, torch.tensor(v)).item()
    joint = []
    for v in range(process.V):
        into = a_t / a_s * (v == z) + b(t, z) - a_t / a_s * b(s, z)          # q(z_t = z | z_s = v)
        joint.append(into * (a_s * x_theta[v].item() + b(s, v)))
    return torch.tensor(joint, dtype=DOUBLE) / sum(joint)


CASES = {"masks": (Absorbing(3), 3), "uniform noise": (Uniform(3), 1), "both, at a mask": (Hybrid(3, 0.3), 3),
         "both, at a word": (Hybrid(3, 0.3), 0)}


@pytest.mark.parametrize("name", CASES)
def test_exercise_07_one_step_back_is_bayes_rule(name):
    process, z = CASES[name]
    s, t = (torch.tensor([[time]], dtype=DOUBLE) for time in (0.3, 0.7))
    x_theta = F.pad(torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE), (0, process.V - 3))                    # (V,)
    ours = reverse(process, x_theta.expand(1, 1, -1), torch.tensor([[z]]), s, t)[0, 0]                  # (V,)
    exact = by_hand(process, x_theta, z, s, t)
    a_t, a_s, v = process.alpha(t)[0], process.alpha(s)[0], torch.arange(process.V)                     # (1,), (V,)
    own, b_s = F.one_hot(torch.tensor(z), process.V), process.b(s[0], v)                                # (V,) each
    b_tz, b_sz = process.b(t, torch.tensor(z))[0], process.b(s, torch.tensor(z))[0]                     # (1,) each
    law = lambda into, there: (into * there) / (into * there).sum()
    graded(f"p(z_s | z_t) under {name}", ours, exact, {
        "noise since s is b_t - (alpha_t / alpha_s) b_s, not b_t": law(a_t / a_s * own + b_tz, a_s * x_theta + b_s),
        "a token survives from s to t with alpha_t / alpha_s, not with alpha_t":
            law(a_t * own + b_tz - a_t / a_s * b_sz, a_s * x_theta + b_s),
        "s and t are exchanged in the second factor": law(a_t / a_s * own + b_tz - a_t / a_s * b_sz,
                                                          a_t * x_theta + process.b(t[0], v)),
        "that is the guess itself, not a step": x_theta})


def test_exercise_08_the_posterior_multiplies_the_evidence_in():
    process, t = Uniform(3), torch.tensor([[0.4]], dtype=DOUBLE)
    x_theta = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=DOUBLE)                                           # (1, 1, 3)
    evidence = torch.tensor([0.4 / 3, 0.4 / 3, 0.6 + 0.4 / 3], dtype=DOUBLE)    # of z = 2
    exact = x_theta[0, 0] * evidence / (x_theta[0, 0] * evidence).sum()                                 # (3,)
    graded("p(x | z) at a word that is probably right", posterior_x0(process, x_theta, torch.tensor([[2]]), t)[0, 0],
           exact, {"that is x_theta, the leave-one-out law": x_theta[0, 0], "that is the evidence alone": evidence,
                   "it does not sum to 1": x_theta[0, 0] * evidence})
    hybrid = Hybrid(3, 0.3)
    padded = F.pad(x_theta, (0, 1))                                                                     # (1, 1, 4)
    graded("p(x | z) at a mask, which tells nothing", posterior_x0(hybrid, padded, torch.tensor([[3]]), t),
           x_theta, {})


# ---- 9, 10: the lazy step

@pytest.mark.parametrize("name", ["uniform noise", "both, at a word"])
def test_exercise_09_the_lazy_step_draws_the_reverse_law(name):
    torch.manual_seed(7)
    (process, z), n = CASES[name], 60_000
    guess = torch.tensor([0.1, 0.7, 0.2] if z == 1 else [0.7, 0.1, 0.2], dtype=DOUBLE)                  # (3,)
    s, t = (torch.full((n, 1), time, dtype=DOUBLE) for time in (0.2, 0.6))
    start, frozen = torch.full((n, 1), z), torch.zeros(n, 1, dtype=torch.bool)
    drawn = diffusion.step(process, law_of(guess.log()), start, frozen, s, t)[:, 0]                     # (n,)
    x_theta = F.pad(guess, (0, process.V - 3))                                                          # (V,)
    exact = by_hand(process, x_theta, z, s[:1], t[:1])
    b_t, b_s, a_t, a_s = (f.item() for f in (process.b(t[:1], start[:1]), process.b(s[:1], start[:1]),
                                             process.alpha(t[:1]), process.alpha(s[:1])))
    beta, other = b_t - a_t / a_s * b_s, a_s * x_theta + process.b(s[0], torch.arange(process.V))       # (), (V,)
    own = F.one_hot(torch.tensor(z), process.V).double()                                                # (V,)
    always = beta / b_t * other + (1 - beta / b_t) * own                                                # (V,)
    near("frequencies of z_s", torch.bincount(drawn, minlength=process.V) / n, exact, 0.009, {
        "whoever was asked moves: the second coin is missing": always,
        "nobody who was asked moves": own})


def test_exercise_10_the_guess_is_what_is_counted():
    torch.manual_seed(8)
    for length, steps in ((8, 8), (16, 6)):
        calls, walks, process = 0, 150, Absorbing(2)

        def counted(z, t, at=None):
            nonlocal calls
            calls += 1
            return torch.zeros(int(at.sum()), 2)
        for _ in range(walks):
            z = torch.full((1, length), 2)
            for z in ancestral(process, counted, z, torch.zeros_like(z, dtype=torch.bool), steps):
                pass
        near(f"your guess of the calls for {length} masks in {steps} steps",
             answers.calls_of_the_masked_sampler(length, steps), calls / walks, 0.4,
             {"you ask at every step": steps, "you ask once for each token": length})
