"""The grader of exercise 27: what an exact network pays for a flow from random words."""
import math

import torch

from exercises import predictions
from graders import check_close, hint
from methods import make_method


def measured(n_words, n=50_000):
    """The mean of (14.22) of dfm with the exact posterior, less log n_words. -> nats, its error"""
    method = make_method("dfm", n_words, source="uniform")

    def exact(z, t, at):
        kappa, here = 1 - t.double(), torch.nn.functional.one_hot(z[:, 0], n_words)  # (B, 1|V)
        return (kappa * here + (1 - kappa) / n_words).log()  # (B, V)
    torch.manual_seed(n_words)
    nats = method.nelbo(exact, torch.randint(n_words, (n, 1)))  # (n, 1)
    return float(nats.mean() - math.log(n_words)), float(nats.std() / n ** 0.5)


def test_exercise_27_the_path_knows_whether_it_has_jumped():
    for n in (2, 5, 30):
        exact, error = measured(n)
        with hint("return a number"):
            ours = predictions.excess_of_the_flow_bound(n)
        log_n, wrong = math.log(n), (n - 1) / n  # the share of words that are not x
        check_close(f"{n} words: nats above the entropy", ours, exact, 6 * error, {
            "it were that of masks, or of udlm: there an exact network pays nothing": 0.0,
            "it were the whole bound: take off the entropy": wrong * (log_n + 1),
            "a token that is x cost nothing: p(z) < 1, and it costs the rate times 1 - p(z)":
                wrong * (log_n + 1) - log_n - wrong * (1 - wrong / 2),
            "noise never drew the clean word: one of n times it does": 1.0})
