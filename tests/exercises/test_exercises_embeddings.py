"""Graders of exercises 28 to 30: what a noisy row says, what a bit costs, and which answer is
chosen."""
import math
from functools import lru_cache

import torch

from evaluation.chosen_answers import choose
from exercises import predictions
from gaussian import log_evidence
from graders import DOUBLE, check, check_close, check_shape, hint

ROWS = torch.tensor([[1.0, 0.0], [0.5, -2.0], [-1.0, 1.5]], dtype=DOUBLE)  # (V, D)
Z = torch.tensor([[0.3, -0.8], [1.2, 0.4]], dtype=DOUBLE)  # (2, D)
GAMMA = torch.tensor([-1.0, 0.7], dtype=DOUBLE)  # (2,)


def test_exercise_28_evidence_is_the_density_of_the_noisy_row_up_to_a_constant():
    with hint("z is (..., D), gamma (...), the table (V, D): return a number for each word"):
        ours = log_evidence(Z, GAMMA, ROWS)  # (2, 3)
    check_shape("log q(z | x = v) of 2 tokens and 3 words", ours, (2, 3))
    alpha, sigma = torch.sigmoid(-GAMMA).sqrt()[:, None], torch.sigmoid(GAMMA).sqrt()[:, None]
    dot, norm = Z @ ROWS.T, ROWS.square().sum(-1)  # (2, 3), (3,)
    above = lambda a: a - a[:, :1]  # (2, 3) a constant for each token is of no account
    check_close("the evidence of words 0, 1, 2, less that of word 0", above(ours), above(
        -(Z[:, None] - alpha[..., None] * ROWS).square().sum(-1) / sigma ** 2 / 2), 1e-9, {
        "the norm of the rows is left out, which is right for rows of one norm only":
            above(alpha / sigma ** 2 * dot),
        "you divide by sigma, where the density of a Gaussian has its variance":
            above(alpha / sigma * (dot - alpha / 2 * norm)),
        "z is compared with e_v itself: it was alpha e_v that noise was added to":
            above((dot - norm / 2) / sigma ** 2),
        "the norm has alpha where the square of alpha e_v has alpha^2":
            above(alpha / sigma ** 2 * (dot - norm / 2)),
        "the factor 1/2 of the norm is missing": above(alpha / sigma ** 2 * (dot - alpha * norm)),
        "the sign is wrong: this is how unlikely z is": -above(alpha / sigma ** 2 * (
            dot - alpha / 2 * norm)),
        "you return a probability: (13.2) is its logarithm": above(
            (alpha / sigma ** 2 * (dot - alpha / 2 * norm)).softmax(-1))})
    nobody = log_evidence(torch.randn(0, 2).double(), torch.randn(0).double(), ROWS)
    check_shape("the same of no token", nobody, (0, 3))


@lru_cache
def measured(gamma_0, gamma_1=12.0, n=1000):
    """The first term and the integral of (13.7) of a fair bit, by quadrature: sums over z and over
    gamma."""
    eps = torch.arange(-9, 9.01, 1 / 32, dtype=DOUBLE)  # (m,)
    weight = torch.exp(-eps ** 2 / 2)  # (m,)
    gamma = torch.linspace(gamma_0, gamma_1, n + 1, dtype=DOUBLE)[:, None]  # (n + 1, 1)
    # z of the bit +1, and the log-odds of +1
    odds = 2 * (torch.exp(-gamma) + torch.exp(-gamma / 2) * eps)  # (n + 1, m)
    mean = lambda a: (a * weight).sum(-1) / weight.sum()  # (n + 1,)
    error = mean((2 * torch.sigmoid(-odds)).square())  # (n + 1,) E |e - x_hat|^2
    decoder = mean(torch.nn.functional.softplus(-odds))[0]  # ()
    return float(decoder), float(torch.trapezoid(torch.exp(-gamma[:, 0]) / 2 * error, gamma[:, 0]))


def test_exercise_29_a_bit_costs_log_two_wherever_the_integral_begins():
    for gamma_0 in (-2.0, 0.0, 1.5):
        decoder, integral = measured(gamma_0)
        with hint("decoder_nats is a number: return another one"):
            ours = predictions.integral_of_a_bit(decoder)
        case = f"gamma_0 = {gamma_0:g}, where the decoder costs {decoder:.4f} nats: the integral"
        check_close(case, ours, integral, 1e-4, {
            "the decoder had nothing left to do: the sum of the two is known": math.log(2),
            "the two had nothing to share: what one pays the other does not":
                math.log(2) + decoder,
            "you counted in bits: log 2 nats are one": 1 - decoder,
            "the factor 1/2 of (13.7) were missing": 2 * integral,
            "the sign were the other one": -integral})


TABLE = {  # utility(answer, reference)
    "right": {"right": 0.2, "short": 0.6, "long": 0.7},
    "short": {"right": 0.1, "short": 3.0, "long": 0.3},
    "long": {"right": 0.9, "short": 0.9, "long": 0.1}}
AGREED = {"a": {"a": 1.0, "b": 0.0, "c": 0.0}, "b": {"a": 0.0, "b": 1.0, "c": 0.0},
          "c": {"a": 0.0, "b": 0.0, "c": 1.0}}


def chosen(words, table):
    """The candidate that `choose` names, of these words."""
    ask = lambda answer, reference: table[answer[0]][reference[0]]
    return choose([(word,) for word in words], ask)


def test_exercise_30_the_answer_that_the_others_agree_with_is_chosen():
    with hint("candidates are tuples, and utility(answer, reference) is a number"):
        ours = chosen(("short", "right"), {"short": {"right": 0.1, "short": 1.0},
                                           "right": {"right": 1.0, "short": 0.6}})
    check(not isinstance(ours, tuple), "you return the candidate: return its number in the list")
    check_close("the number of the candidate that is the better answer", ours, 1, 0, {
        "the candidates are the references of the others: u(answer = y_i, reference = y_j)": 0})
    asked = "of three candidates of which each has another utility of itself, the number"
    other = {key: {**row, key: 9.0 * (key == "short")} for key, row in TABLE.items()}
    check_close(asked, chosen(("short", "right", "long"), other), 2, 0, {
        "an answer also agrees with itself: j != i": 0,
        "the one that is worst is chosen": 0})
    check_close("three that say a, after one that says b: the number", chosen("baaac", AGREED), 1,
                0, {"answers that say the same are no others, but they are: j is a number": 0,
                    "the last of equals is chosen, not the first": 3})
    check_close("of two that nobody agrees with, the number", chosen("ab", AGREED), 0, 0, {
        "the last of equals is chosen, not the first": 1})
