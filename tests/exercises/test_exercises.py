"""
The graders of exercises 1 to 9 (exercises/README.md), which also guard the solutions.

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
    categorical,
    corrupt,
    posterior_x0,
    reverse,
    stratified,
)
from exercises import predictions
from graders import (
    DOUBLE,
    Draws,
    check,
    check_close,
    check_detects,
    check_equal,
    check_shape,
    hint,
)
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
    with hint("`frozen` may be None, and t (B, 1) has one time for each text"):
        z = corrupt(Absorbing(5), x, t)  # (200, 300)
    check_shape("a noisy text", z, x.shape)
    found = z.unique().tolist()
    check(set(found) <= {0, 5}, f"under masks a token is kept or becomes 5, got {found}")
    check(len(found) == 2, "all tokens are kept, or none: toss a coin for each, at probability "
                           "process.alpha(t)")
    check((z != z[:, :1]).any(), "there is one coin for a whole text, not one for each token")
    check((z != z[:1]).any(), "all texts share their coins: draw random numbers of the shape of x")
    check_close("the share of tokens kept at t = 0.2", (z == x).double().mean(), 0.8, 0.008,
                {"you keep with probability 1 - alpha": 0.2})


def test_exercise_01_noise_comes_from_the_process_and_may_be_the_right_word():
    torch.manual_seed(2)
    t = torch.full((300, 1), 0.8)  # (B, 1)
    z = corrupt(Uniform(4), torch.zeros(300, 300).long(), t)  # (300, 300)
    check(set(z.unique().tolist()) <= set(range(4)),
          f"uniform noise over 4 symbols made {z.unique().tolist()}: noise is what "
          "process.draw_noise draws")
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
    check((z[frozen] == 0).all(), "a frozen token was noised: given tokens must stay as they are")
    check((z[~frozen] == 3).all(), "at t = 1 every token that is not frozen is noise")
    z = corrupt(Absorbing(3), x, torch.full((400, 1), 1e-9), frozen)  # (B, L)
    check((z == 0).all(), "at t = 0 every token is kept, frozen or not")


# ---- 2: a draw from a distribution

def test_exercise_02_draws_have_the_probabilities_of_their_row():
    torch.manual_seed(4)
    p, n = torch.tensor([[0.1, 0.0, 0.6, 0.3]], dtype=DOUBLE), 8000  # (1, 4)
    with hint("p has the shape (..., V): one row of probabilities for each draw"):
        draws = [categorical(5 * p.expand(n, -1)) for _ in range(5)]  # rows need not be normalized
    for drawn in draws:
        check_shape("ids, one for each row of p", drawn, (n,))
        check(not drawn.is_floating_point(), f"ids must be whole numbers, got {drawn.dtype}")
        check((0 <= drawn).all() and (drawn < 4).all(), f"got the ids {drawn.unique().tolist()}: "
              "four symbols are 0 to 3")
    each = {tuple(drawn.unique().tolist()) for drawn in draws}
    check(len(each) == 1 or max(map(len, each)) > 1,
          "all rows share one random number: draw one for each row")
    seen = torch.bincount(torch.cat(draws), minlength=4) / (5 * n)  # (4,)
    check_close("frequencies of four symbols", seen, p[0], 0.012,
                {"you take the likeliest": torch.tensor([0, 0, 1.0, 0]),
                 "all are equally likely": torch.full((4,), 0.25),
                 "you do not normalize: rows sum to 5 here, so multiply the uniform number by the "
                 "sum of its row": torch.tensor([0.5, 0, 0.5, 0])})


def test_exercise_02_float64_numbers_and_no_impossible_symbol():
    """From any source: torch.rand, uniform_, multinomial, a race, numpy."""
    p = torch.tensor([[0.0] + [0.1] * 10 + [0.0]], dtype=DOUBLE)  # (1, 12) sums to 1 - 1.1e-16
    with Draws() as watched:
        drawn = categorical(p.expand(64, -1).contiguous())  # (64,)
    check_shape("ids, one for each row of p", drawn, (64,))
    check(not watched.coarse, "the draw uses float32: such a number has 24 bits, and what is rarer "
                              "than 6e-8 never happens; ask for float64")
    if watched.uniform != [64]:  # not one number per row from torch: nothing to set
        return
    for scale in (1.0, 3.0):
        for u, what in ((0.0, "u = 0"), (1 - 2.0 ** -53, "u just below 1")):
            with Draws(forced=u):
                drawn = categorical(scale * p)[0].item()
            advice = "take the last symbol that has some" if drawn > 10 else \
                "search from the right (u < cdf, not <=)"
            check(1 <= drawn <= 10, f"{what} drew symbol {drawn}, of probability 0: {advice}")


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
                            math.log(N) / 2,
                        "the bound of a likely guess is not negative": -math.log(N)})


def test_exercise_04_the_weight_is_one_over_t_at_masks_and_nothing_else_counts():
    z = torch.tensor([[0, 3, 3, 1], [3, 3, 3, 3]])  # (2, 4)
    ce = torch.tensor([[0.5, 1.0, 2.0, 9.0], [0.1, 0.2, 0.3, 0.4]], dtype=DOUBLE)  # (2, 4)
    t, at = torch.tensor([[0.25], [0.8]], dtype=DOUBLE), z == 3  # (2, 1), (2, 4)
    exact, n = torch.where(at, ce / t, 0.0), at.sum(-1, keepdim=True)  # (2, 4), (2, 1)
    with hint("cross_entropy and z have the shape (B, L), t has (B, 1)"):
        ours = masked_bound(Absorbing(3), ce, z, t)  # (2, 4)
    check_equal("the bound at each token", ours, exact, {
        "the weight is missing: a cross-entropy is no bound": torch.where(at, ce, 0.0),
        "you divide by the number of masks of each text, not by t": torch.where(at, ce / n, 0),
        "the weight is 1/(1 - t), of the share that was kept": torch.where(at, ce / (1 - t), 0.0),
        "tokens that are not masks count as well": ce / t,
        "you count the tokens that are not masks": torch.where(at, 0.0, ce / t),
        "the sign is wrong: a bound is positive": -exact})


def test_exercise_04_nothing_off_the_masks_can_spoil_the_bound():
    """At text the cross-entropy may be anything, and at t = 0 the weight is infinite."""
    z = torch.tensor([[0, 3, 3, 1], [0, 1, 2, 0]])  # (2, 4)
    ce = torch.tensor([[math.inf, 1.0, 2.0, math.nan], [1.0, math.inf, 0.0, math.nan]])  # (2, 4)
    t = torch.tensor([[0.25], [0.0]], dtype=DOUBLE)  # (2, 1)
    check_equal("the bound where text has a cross-entropy of inf and nan, and a text at t = 0 has "
                "no masks", masked_bound(Absorbing(3), ce.double(), z, t),
                torch.tensor([[0.0, 4.0, 8.0, 0.0], [0.0] * 4], dtype=DOUBLE),
                not_finite="0 times inf is nan, so select the masks with torch.where at the end, "
                           "in place of multiplying by 0")


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
    with hint("return three values: z (B, L), k (B, 1) and n (B, 1)"):
        z, k, n = any_order(Absorbing(3), x, u, frozen)  # (B, L), (B, 1), (B, 1)
        again = any_order(Absorbing(3), x, u)[1]  # (B, 1)
    for name, value, shape in (("z", z, (400, 5)), ("k", k, (400, 1)), ("n", n, (400, 1))):
        check_shape(name, value, shape)
    check((n == 4).all(), f"n is {n.unique().tolist()}: one of five tokens is given, so four can "
                          "become masks")
    check((again == (5 * u).ceil()).all() or (k == 0).any(),
          "k must be that of u, which is spread evenly over the batch: k = ceil(u n)")
    check(not (z[frozen] == 3).any(), "a given token became a mask")
    masks = (z == 3).sum(-1)  # (B,)
    off = masks != k[:, 0]  # (B,)
    check(not off.any(), f"a text has {masks[off][:1].tolist()} masks where k is "
          f"{k[off][:1, 0].tolist()}: not a coin for each token, but the k lowest ranks of random "
          "numbers, and a rank is the argsort of the argsort")
    counts = torch.bincount(masks, minlength=5)[1:5] / 400  # (4,)
    check_close("how often k is 1, 2, 3, 4", counts, torch.full((4,), 0.25), 0.01, {
        "you round down: k runs from 0 to n - 1, and k = 0 has no weight n / k":
            torch.tensor([0.25, 0.25, 0.25, 0.0]),
        "you round to the nearest": torch.tensor([0.25, 0.25, 0.25, 0.125])})
    orders, slope = len((z[k[:, 0] == 2] == 3).unique(dim=0)), (z[:, 1:] == 3).int().diff()
    check(orders == 6 or (slope <= 0).all() or (slope >= 0).all(),  # all first, all last: below
          "all texts share one order: draw a random number for each token of each text")
    check_close("how often each position is masked", (z == 3).double().mean(0)[1:],
                torch.full((4,), 0.625), 0.1,
                {"the first positions are always taken": torch.tensor([1.0, 0.75, 0.5, 0.25]),
                 "the last positions are always taken": torch.tensor([0.25, 0.5, 0.75, 1.0])})


def test_exercise_06_your_test_fails_without_the_weight():
    check_detects(predictions.detector_of_missing_weight(), "methods/mdlm.py", 4,
                  ["return torch.where(z == process.mask, cross_entropy, 0.0)  # (B, L)"])


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


CASES = {"uniform noise": (Uniform(3), 1), "masks": (Absorbing(3), 3),
         "both, at a mask": (Hybrid(3, 0.3), 3), "both, at a word": (Hybrid(3, 0.3), 0)}


@pytest.mark.parametrize("name", CASES)
def test_exercise_07_one_step_back_is_bayes_rule(name):
    process, z = CASES[name]
    s, t = (torch.tensor([[time]], dtype=DOUBLE) for time in (0.3, 0.7))  # (1, 1) each
    x_theta = F.pad(torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE), (0, process.V - 3))  # (V,)
    with hint("z has the shape (B, L), s and t have (B, 1), and x_theta has (B, L, V)"):
        ours = reverse(process, x_theta.expand(1, 1, -1), torch.tensor([[z]]), s, t)  # (1, 1, V)
    check_shape("the result", ours, (1, 1, process.V))
    ours, rest = ours[0, 0], torch.ones(process.V)  # (V,) each
    exact = reverse_by_hand(process, x_theta, z, s, t)  # (V,)
    v = torch.arange(process.V)  # (V,)
    a_t, a_s = process.alpha(t)[0], process.alpha(s)[0]  # (1,) each
    own, b_s = F.one_hot(torch.tensor(z), process.V), process.b(s[0], v)  # (V,) each
    b_tz, b_sz = (process.b(time, torch.tensor(z))[0] for time in (t, s))  # (1,) each
    b_tv, keep = process.b(t[0], v), a_t / a_s  # (V,), (1,)
    into, guess = keep * own + b_tz - keep * b_sz, a_s * x_theta + b_s  # (V,) each
    normalize = lambda into, before: (into * before) / (into * before).sum()
    check_equal(f"p(z_s | z_t) under {name}", ours, exact, {
        "you return the prediction itself, not a step": x_theta,
        "noise since s is b_t - (alpha_t / alpha_s) b_s, not b_t":
            normalize(keep * own + b_tz, guess),
        "noise put z there, whatever z_s was: that is b_t(z) - (alpha_t / alpha_s) b_s(z), one "
        "number, not b(v) at each symbol v of z_s":
            normalize(keep * own + b_tv - keep * b_s, guess),
        "you forget the first factor, q(z_t | z_s)": normalize(rest, guess),
        "you forget the second factor, alpha_s x_theta + b_s": normalize(into, rest),
        "the two factors are added: Bayes' rule multiplies them": normalize(rest, into + guess),
        "a token survives from s to t with alpha_t / alpha_s, not with alpha_t":
            normalize(a_t * own + b_tz - keep * b_sz, guess),
        "s and t are exchanged in the second factor":
            normalize(into, a_t * x_theta + b_tv),
        "noise is missing in the second factor, alpha_s x_theta + b_s":
            normalize(into, a_s * x_theta)})


def test_exercise_08_the_posterior_multiplies_the_evidence_in():
    process, t = Uniform(3), torch.tensor([[0.4]], dtype=DOUBLE)  # (1, 1)
    x_theta = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=DOUBLE)  # (1, 1, 3)
    evidence = torch.tensor([0.4 / 3, 0.4 / 3, 0.6 + 0.4 / 3], dtype=DOUBLE)  # (3,) of z = 2
    joint = x_theta[0, 0] * evidence  # (3,)
    normalize = lambda p: p / p.sum()
    with hint("x_theta has the shape (B, L, V), likelihood(process, z, t) has (B, L, n_tokens)"):
        ours = posterior_x0(process, x_theta, torch.tensor([[2]]), t)  # (1, 1, 3)
    check_equal("p(x | z) at a word that is probably right", ours, normalize(joint)[None, None], {
        "you return x_theta, the leave-one-out distribution": x_theta,
        "you return the evidence alone": evidence,
        "you return the evidence alone, normalized": normalize(evidence),
        "the two are added: Bayes' rule multiplies them": normalize(x_theta + evidence),
        "the two are added, and do not sum to 1": x_theta + evidence,
        "you divide by the evidence: (0.4) multiplies": normalize(x_theta / evidence),
        "you take the softmax of probabilities: divide by their sum": joint.softmax(-1),
        "it does not sum to 1": joint})
    padded = F.pad(x_theta, (0, 1))  # (1, 1, 4)
    with hint("Under masks x_theta has one more symbol than the text: x_theta[..., :n_tokens]"):
        ours = posterior_x0(Hybrid(3, 0.3), padded, torch.tensor([[3]]), t)  # (1, 1, 3)
    check_equal("p(x | z) at a mask, which says nothing", ours, x_theta)


# ---- 9: the lazy step

@pytest.mark.parametrize("name", CASES)
def test_exercise_09_the_lazy_step_draws_from_the_reverse_step(name):
    torch.manual_seed(7)
    (process, z), n = CASES[name], 60_000
    guess = torch.tensor([0.1, 0.7, 0.2] if z == 1 else [0.7, 0.1, 0.2], dtype=DOUBLE)  # (3,)
    s, t = (torch.full((n, 1), time, dtype=DOUBLE) for time in (0.2, 0.6))  # (n, 1) each
    start, frozen = torch.full((n, 1), z), torch.zeros(n, 1, dtype=torch.bool)  # (n, 1) each
    denoiser = constant_denoiser(guess.log())
    with hint("`own` has the shape (N,), one number for each token at `at` (B, L): moves[at]"):
        few, none = torch.full((7, 5), z), torch.zeros(7, 5, dtype=torch.bool)  # (7, 5) each
        diffusion.reverse_step(process, denoiser, few, none, s[:7], t[:7])  # (7, 5)
        drawn = diffusion.reverse_step(process, denoiser, start, frozen, s, t)[:, 0]  # (n,)
    x_theta = F.pad(guess, (0, process.V - 3))  # (V,)
    exact = reverse_by_hand(process, x_theta, z, s[:1], t[:1])  # (V,)
    b_t, b_s = (process.b(time[:1], start[:1]).item() for time in (t, s))
    a_t, a_s = (process.alpha(time[:1]).item() for time in (t, s))
    beta = b_t - a_t / a_s * b_s
    noise = process.b(s[0], torch.arange(process.V))  # (V,)
    own, is_mask = F.one_hot(torch.tensor(z), process.V).double(), z == process.mask  # (V,)
    uncalled = noise if is_mask else 0 * noise  # (V,) masks that stay noise need no network
    called = a_s * x_theta + noise - uncalled  # (V,)

    def with_coin(q):
        """z_s if a token that the network is called for moves with probability q."""
        moved = beta / b_t * (q * called + uncalled)  # (V,)
        return moved + (1 - moved.sum()) * own  # (V,)
    p_z = guess[2 if is_mask else z].item()
    seen = torch.bincount(drawn, minlength=process.V) / n  # (V,)
    check_close("frequencies of z_s", seen, exact, 0.009, {
        "all tokens that the network is called for move: the second coin is missing":
            with_coin(1),
        "no token that the network is called for moves": with_coin(0),
        "a mask has an own word: under masks own is 0": with_coin(b_t / (a_t * p_z + b_t)),
        "own is x_theta(z), without alpha_t": with_coin(b_t / (p_z + b_t)),
        "the coin is turned over: it moves with probability own / (own + b)":
            with_coin(a_t * p_z * (not is_mask) / (a_t * p_z + b_t))})
