"""The graders of exercises 10 to 20 (exercises/README.md)."""
import functools
import math

import pytest
import torch
import torch.nn.functional as F

from diffusion import Absorbing, Hybrid, Uniform, ancestral, bound, probabilities
from distill import coupled, divergence
from exercises import predictions
from graders import DOUBLE, check, check_close, check_detects, check_equal, check_shape, hint
from methods.bd3lm import block_diffusion_mask
from methods.md4 import Scheduled
from methods.pgm import group_weights
from methods.udlm import mixture_bound
from methods.uniform_gaussian import GaussianUniform
from samplers.guidance import mix_logits
from samplers.unmasking import Confidence

# ---- 10: how often the network is called

@functools.cache
def mean_calls(length, steps, texts=150):
    """Calls of the network for a text, counted."""
    calls, process = 0, Absorbing(2)

    def counted(z, t, at=None):
        nonlocal calls
        calls += 1
        return torch.zeros(int(at.sum()), 2)  # (N, 2)
    torch.manual_seed(8)
    for _ in range(texts):
        z = torch.full((1, length), 2)  # (1, L)
        list(ancestral(process, counted, z, torch.zeros_like(z, dtype=torch.bool), steps))
    return calls / texts


def test_exercise_10_the_prediction_is_what_is_counted():
    for length, steps in ((12, 5), (16, 6)):
        check_close(f"your prediction of the calls for {length} masks in {steps} steps",
                    predictions.calls_of_the_masked_sampler(length, steps),
                    mean_calls(length, steps), 0.25,
                    {"there is a call at every step": steps,
                     "there is a call for each token": length,
                     "you count the steps without a call": steps * (1 - 1 / steps) ** length,
                     "steps and tokens are exchanged":
                         length * (1 - (1 - 1 / length) ** steps)})


# ---- 11, 12: the bound where words may be wrong

@pytest.mark.parametrize("process", [Uniform(3), Hybrid(3, 0.4)], ids=["uniform", "both"])
def test_exercise_11_the_closed_form_is_the_one_bound(process):
    g = torch.Generator().manual_seed(9)
    x, z = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 2, 2, process.V - 1]])  # (1, 4) each
    t = torch.tensor([[0.35]], dtype=DOUBLE)  # (1, 1)
    log_p = torch.randn(1, 4, 3, generator=g, dtype=DOUBLE).log_softmax(-1)  # (1, 4, 3)
    u, text = process.b(t, torch.zeros_like(x)), z < 3  # (1, 4) each
    kappa, at_z = process.alpha(t) / u, torch.where(text, z, 0)  # (1, 4) each
    log_one = lambda a: torch.log1p(kappa * a)  # (1, 4)
    p_of = lambda v: log_p.gather(-1, v[..., None])[..., 0].exp()  # (1, 4)
    d = torch.where(z == x, log_one(1), 0.0) - log_one(p_of(at_z))  # (1, 4)
    IS = torch.where(text, torch.expm1(d) - d, 0.0)  # (1, 4)
    others = log_one(1) - torch.log1p(kappa[..., None] * log_p.exp()).sum(-1)  # (1, 4)
    own = kappa * (log_one(1) - log_one(p_of(x)))  # (1, 4)
    K = own + others  # (1, 4)
    with hint("kappa, u, at_x, at_z, x and z have one number for each token; log_p has V"):
        ours = mixture_bound(process, log_p, x, z, t, weight=torch.ones_like(u))  # (1, 4)
    check_equal("u K + IS at four tokens (right, wrong, right, noise)", ours, u * K + IS, {
        "IS is missing": u * K, "K is missing": IS, "K is not multiplied by u": K + IS,
        "d forgets log(1 + kappa), which stands where z = x":
            u * K + torch.where(text, torch.expm1(-log_one(p_of(at_z))) + log_one(p_of(at_z)), 0),
        "the sign of d is wrong": u * K + torch.where(text, torch.expm1(-d) + d, 0.0),
        "K lacks log(1 + kappa) - sum log(1 + kappa x_theta), the other symbols": u * own + IS,
        "IS counts at masks as well, which are no words": u * K + torch.expm1(d) - d,
        "IS is e^d - 1: the - d is missing": u * K + torch.where(text, torch.expm1(d), 0.0)})
    exact = bound(process, F.pad(log_p.exp(), (0, process.V - 3)), x, z, t)  # (1, 4)
    check_equal("the whole bound", mixture_bound(process, log_p, x, z, t), exact)


def test_exercise_11_a_small_difference_keeps_its_digits():
    """Near t = 1 all is noise, and float32 would lose the bound."""
    x = z = torch.zeros(1, 1).long()  # (1, 1)
    t, p = torch.tensor([[0.9999]]), torch.tensor([[[0.6, 0.3, 0.1]]])  # (1, 1), (1, 1, 3)
    exact = bound(Uniform(3), p.double(), x, z, t.double()).item()
    ours = mixture_bound(Uniform(3), p.log(), x, z, t).item()
    check(abs(ours - exact) < 0.02 * exact,
          f"the bound at t = 0.9999 in float32: got {ours:.3g}, exact is {exact:.3g}. Use log1p "
          "and expm1: log(1 + a) and e^a - 1 of a small a have no digits")


def test_exercise_12_your_test_fails_without_the_term():
    check_detects(predictions.detector_of_missing_term(), "methods/udlm.py", 11, [
        "K = kappa * (torch.log1p(kappa) - at_x) + torch.log1p(kappa) - log_p.sum(-1)  # (...)",
        "return u * K  # (...)"])


# ---- 13: schedules

@pytest.mark.parametrize("schedule", ["linear", "polynomial", "cosine"])
def test_exercise_13_masks_run_from_none_to_all_and_slopes_are_derivatives(schedule):
    process = Scheduled(3, schedule, power=3.0)
    share = {"linear": lambda t: t * 1, "polynomial": lambda t: t ** 3,
             "cosine": lambda t: (math.pi / 2 * t).sin()}[schedule]
    alpha = {"linear": lambda t: 1 - t, "polynomial": lambda t: 1 - t ** 3,
             "cosine": lambda t: (math.pi / 2 * t).cos()}[schedule]
    t = torch.linspace(0, 1, 9, dtype=DOUBLE)[:, None]  # (9, 1)
    check_equal(f"the share of masks, {schedule}", process.masks(t), share(t), {
        "the schedule runs backwards: you return alpha, the share of text": alpha(t),
        "you wrote 1 - cos(pi t / 2), slow where (3.2) is fast": 1 - (math.pi / 2 * t).cos(),
        "pi / 2 is missing, so masks do not run from none to all": t.sin(),
        "the power is fixed at 2: take self.power": t ** 2, "all three are linear": t})
    t = t[1:-1].requires_grad_()  # (7, 1)
    slope, = torch.autograd.grad(share(t).sum(), t)  # (7, 1)
    check_equal(f"its slope, {schedule}", process.dmasks(t.detach()), slope, {
        "the sign is wrong: masks grow": -slope, "it is the share of masks itself": share(t),
        "the factor self.power is missing": slope / 3,
        "the inner derivative pi / 2 is missing": slope / (math.pi / 2)})


# ---- 14, 15: orders of opening

def first_step(z, p, to_probs=probabilities):
    """z (B, L) after the first of two steps of `confidence`. p (B|1, L): of symbol 0 of two"""
    denoiser = lambda z, t, at: torch.stack([p, 1 - p], -1).expand(*z.shape, 2)[at].log()  # (N, 2)
    frozen = torch.zeros_like(z, dtype=torch.bool)  # (B, L)
    return next(Confidence()(Absorbing(2), denoiser, z, frozen, 2, to_probs))


def test_exercise_14_the_most_confident_draws_stay_and_the_others_are_masks_again():
    torch.manual_seed(11)
    p = torch.tensor([[0.6, 0.1, 0.5, 0.8]])  # (1, 4)
    likeliest = lambda logits: F.one_hot(logits.argmax(-1), 2).double()  # (N, 2)
    with hint("drawn and confidence have the shape (N,), one for each mask, in reading order"):
        z = [first_step(torch.tensor([start]), p, likeliest)
             for start in ([2, 2, 2, 2], [2, 0, 2, 2])]  # (1, 4) each
    for one in z:
        check_shape("z after a step", one, (1, 4))
    opened = [(one != 2).tolist()[0] for one in z]
    slips = {(True, False) * 2: "You keep the least confident", (True,) * 4: "You keep all draws",
             (False,) * 4: "No draw is kept", (True, True, False, False): "You keep the first"}
    check(opened[0] == [False, True, False, True],
          "two of four masks open, those of confidence 0.9 and 0.8 at positions 1 and 3; yours: "
          f"{opened[0]}. {slips.get(tuple(opened[0]), '')}")
    check(opened[1] == [True, True, False, True],
          f"of three masks two open, 0.6 and 0.8, and text stays text; yours: {opened[1]}. Text "
          "must not take the place of a mask in the ranking: it has no score")
    check(z[0].tolist() == [[2, 1, 2, 0]],
          f"each draw belongs to its own position: [2, 1, 2, 0] is due, yours: {z[0].tolist()[0]}. "
          "Put all draws in their places first, then select")
    check(z[1].tolist() == [[0, 0, 2, 0]], f"text stays as it is: [0, 0, 2, 0] is due, yours: "
                                           f"{z[1].tolist()[0]}")


def test_exercise_14_every_text_opens_the_same_number():
    """The ranking is within a text: a batch must not share one."""
    torch.manual_seed(12)
    z = first_step(torch.full((2, 4), 2), torch.tensor([[0.99] * 4, [0.6] * 4]))  # (2, 4)
    counts = (z != 2).sum(-1).tolist()
    check(counts == [2, 2], f"each text opens two of its four masks; yours: {counts}. Is there one "
                            "ranking for all?")


def test_exercise_15_the_prediction_is_what_is_measured():
    """A language of two texts, 0 0 and 1 1, and its exact denoiser."""
    torch.manual_seed(13)

    def exact(z, t, at):
        known = z.min(-1).values.clamp(max=2)  # (B,) the word that is there, or 2
        p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])[known]  # (B, 2)
        return p[:, None].expand(-1, 2, -1)[at].log()  # (N, 2)
    for steps in (1, 2, 5):
        z = torch.full((4000, 2), 2)  # (n, 2)
        frozen = torch.zeros_like(z, dtype=torch.bool)  # (n, 2)
        *_, z = ancestral(Absorbing(2), exact, z, frozen, steps)  # (n, 2)
        check_close(f"your prediction of the share of matching texts after {steps} steps",
                    predictions.share_of_matching_pairs(steps),
                    (z[:, 0] == z[:, 1]).double().mean(), 0.035, {
                        "you forget that half of those that open together match by chance":
                            1 - 1 / steps,
                        "you return the share of texts that are not in the language":
                            1 / (2 * steps),
                        "you assume infinitely many steps": 1.0})


# ---- 16: guidance

def test_exercise_16_guidance_moves_away_from_the_prediction_without_a_class():
    c = torch.tensor([[0.7, 0.2, 0.1]], dtype=DOUBLE)  # (1, 3) with the class
    u = torch.tensor([[0.3, 0.3, 0.4]], dtype=DOUBLE)  # (1, 3) without
    mix = lambda a, b, k: (a ** k * b ** (1 - k)) / (a ** k * b ** (1 - k)).sum()
    for gamma in (0.5, 2, 4):
        with hint("both are logits (..., V), and `mixed` has this shape too"):
            ours = mix_logits(c.log(), u.log(), gamma).exp()  # (1, 3)
        check_equal(f"the distribution at strength {gamma}", ours, mix(c, u, gamma), {
            "you mix probabilities, not their logarithms": gamma * c + (1 - gamma) * u,
            "the weights do not sum to 1: the second is 1 - gamma":
                c ** gamma * u ** gamma / (c ** gamma * u ** gamma).sum(),
            "the second distribution is left out": c ** gamma / (c ** gamma).sum(),
            "your strength is the other convention: 0 ignores the class, 1 is as in the data":
                mix(c, u, 1 + gamma),
            "the two distributions are exchanged": mix(u, c, gamma)})


def test_exercise_16_a_symbol_that_either_distribution_excludes_stays_excluded():
    never = -math.inf
    for c, u in (([0.0, never, -1.0], [-1.0, 0.0, -1.0]), ([0.0, -1.0, -1.0], [-1.0, never, 0.0])):
        c, u = torch.tensor([c], dtype=DOUBLE), torch.tensor([u], dtype=DOUBLE)  # (1, 3) each
        p = mix_logits(c, u, 3.0).exp()  # (1, 3)
        rest = (3.0 * c[:, ::2] - 2.0 * u[:, ::2]).softmax(-1)  # (1, 2)
        exact = torch.stack([rest[:, 0], 0 * rest[:, 0], rest[:, 1]], -1)  # (1, 3)
        check_equal("the distribution where one of the two is 0", p, exact,
                    not_finite="a logit of -inf times 1 - gamma is +inf, and inf - inf is nan: "
                               "exclude what either distribution excludes")


# ---- 17, 18: blocks and partitions

def test_exercise_17_noisy_blocks_see_themselves_and_earlier_clean_blocks():
    L, block, index = 6, 2, torch.arange(12)  # (2L,)
    with hint("query and key are tensors: combine conditions by & and |, in brackets"):
        ours = block_diffusion_mask(L, block)(0, 0, index[:, None], index)  # (2L, 2L)
    check_shape("the pattern", ours, (2 * L, 2 * L))
    number, noisy = index % L // block, index < L  # (2L,) each
    same, before = number[:, None] == number, number < number[:, None]  # (2L, 2L) each
    own = same & (noisy[:, None] == noisy)  # (2L, 2L)
    check_equal("which token sees which in [z ; x], six tokens in blocks of two", ours.int(),
                (own | before & ~noisy).int(), {
                    "a noisy block sees its own clean tokens: the answer is given away, and the "
                    "loss falls to 0": (own | (before | same) & ~noisy).int(),
                    "a block sees the noisy tokens of earlier blocks, not the clean ones":
                        (own | before & noisy).int(),
                    "a block does not see itself": (before & ~noisy).int(),
                    "blocks see later blocks, not earlier ones": (own | before.T & ~noisy).int(),
                    "blocks see earlier blocks only within their own half": (
                        (same | before) & (noisy[:, None] == noisy)).int(),
                    "the clean half does not see its earlier blocks":
                        (own | before & ~noisy & noisy[:, None]).int()})


def test_exercise_17_reach_limits_how_far_back_a_token_sees():
    L, block, index = 8, 2, torch.arange(16)  # (2L,)
    ours = block_diffusion_mask(L, block, reach=2)(0, 0, index[:, None], index)  # (2L, 2L)
    back = index[:, None] % L // block - index % L // block  # (2L, 2L)
    own = (back == 0) & ((index[:, None] < L) == (index < L))  # (2L, 2L)
    exact = own | (back == 1) & (index >= L)  # (2L, 2L)
    check_equal("the same with a reach of one block", ours.int(), exact.int(), {
        "`reach` has no effect": (own | (back > 0) & (index >= L)).int(),
        "a token sees no earlier block: reach counts tokens before its block": own.int()})


def test_exercise_18_each_group_is_weighted_by_its_own_share_of_noise():
    group, t = torch.tensor([[True, False]]), torch.tensor([[0.2]], dtype=DOUBLE)  # (1, 2), (1, 1)
    with hint("group has the shape (B, L), t has (B, 1)"):
        bound_weights, simple = (group_weights(group, t, name) for name in ("bound", "simple"))
    check_equal("w of a token in group 1 and in group 0 at t = 0.2",
                bound_weights, torch.tensor([[5.0, 1.25]], dtype=DOUBLE), {
                    "you return the shares of noise: a weight is 1 over it":
                        torch.tensor([[0.2, 0.8]]),
                    "the groups are exchanged: group 1 is hidden with probability t":
                        torch.tensor([[1.25, 5.0]]),
                    "both have the weight of group 1": torch.tensor([[5.0, 5.0]])})
    check_equal("the bounded weights of `simple`", simple,
                torch.tensor([[4.8, 1.2]], dtype=DOUBLE),
                {"the factor 6 is missing": torch.tensor([[0.8, 0.2]]),
                 "`simple` has the weights of the bound": bound_weights,
                 "you wrote 6 n: texts that keep most of their words teach most, 6 (1 - n)":
                     torch.tensor([[1.2, 4.8]])})


# ---- 19, 20: distillation

def test_exercise_19_the_two_points_lie_on_one_path():
    torch.manual_seed(14)
    process, x = GaussianUniform(4), torch.zeros(400, 100).long()  # (n, L)
    s, t = torch.full((400, 1), 0.3), torch.full((400, 1), 0.6)  # (n, 1) each
    with hint("return two values, z_s (B, L) and z_t (B, L)"):
        z_s, z_t = coupled(process, x, s, t)  # (n, L) each
    for name, z in (("z_s", z_s), ("z_t", z_t)):
        check_shape(name, z, x.shape)
    right = torch.tensor([(process.alpha(time) + process.b(time, x[:1])).mean().item()
                          for time in (s, t)])  # (2,)
    seen = torch.stack([(z == x).double().mean() for z in (z_s, z_t)])  # (2,)
    check_close("the share of right words at s and t", seen, right, 0.012, {
        "s and t are exchanged": right.flip(0),
        "a word is right with probability alpha alone, but noise may draw it as well: + b":
            torch.stack([process.alpha(time).mean() for time in (s, t)]),
        "both points are at s": right[0].expand(2), "both points are at t": right[1].expand(2),
        "the noise draws the clean word as well, which alpha + (1 - alpha) / V counts already":
            right + (1 - right) / 4})
    returned = ((z_s != x) & (z_t == x)).double().mean()  # ()
    check(returned == 0, f"{returned:.1%} of the words are wrong at s and right at t, later, where "
          "none may be: u is drawn again for each time, and the two points must share it")
    wrong = (z_s != x) & (z_t != x)  # (n, L)
    check((z_s[wrong] == z_t[wrong]).all(), "the wrong word must be the same at s and t: draw once")
    found = torch.bincount(z_s[z_s != x], minlength=4)[1:] / (z_s != x).sum()  # (3,)
    check_close("the shares of the wrong words 1, 2 and 3", found, torch.full((3,), 1 / 3), 0.02)


def test_exercise_20_both_directions_each_over_all_symbols():
    a, b = (torch.tensor([p], dtype=DOUBLE) for p in ([0.7, 0.2, 0.1], [0.2, 0.2, 0.6]))  # (1, 3)
    kl = lambda p, q: (p * (p / q).log()).sum(-1)  # (1,)
    for name, exact, other in (("kl-bwd", kl(a, b), kl(b, a)), ("kl-fwd", kl(b, a), kl(a, b))):
        with hint("student and teacher are log-probabilities (N, V)"):
            ours = divergence(name, a.log(), b.log())  # (1,)
        check_equal(f"{name} of a student from its teacher", ours, exact, {
            "the directions are exchanged: kl-bwd averages over the student's distribution": other,
            "the sign is wrong": -exact, "it is a mean over symbols, not a sum": exact / 3,
            "the logarithms are not weighted by a probability":
                (a.log() - b.log()).sum(-1) * (1 if name == "kl-bwd" else -1)})
