"""The graders of exercises 31 and 32: texts of any length, and what their losses count."""
import math
from itertools import permutations

import torch

from exercises import predictions
from graders import check, check_close, check_equal, hint
from methods.flexmdm import slack


def comes_first(order):
    """In an order of all tokens of a gap: log of how many could have come, for each that comes."""
    if not order:
        return 0.0
    left = [i for i in order if i < order[0]]
    right = [i for i in order if i > order[0]]
    return math.log(len(order)) + comes_first(left) + comes_first(right)


def test_exercise_31_the_slack_is_the_mean_over_orders():
    """Of which of the missing tokens comes first, then in each of the two gaps that it leaves."""
    for n in range(7):
        orders = [*permutations(range(n))]
        exact = sum(map(comes_first, orders)) / len(orders)
        with hint("S(n) needs all S(k) with k < n: keep them in a list that begins with two zeros"):
            ours = slack(n)
            check(ours is not None, "it returns None: return S(n)")
        check_close(f"S({n}) in nats", ours, exact, 1e-9, {
            "both gaps that a token leaves have a slack: 2/n, not 1/n": once(n),
            "it is log n!, as if all orders were told apart; those in two gaps are not":
                math.lgamma(n + 1), "it is log n: the gaps on both sides go on": math.log(n or 1),
            "it is S(n + 1)": above(n)})


def once(n):
    S = [0.0, 0.0]
    for k in range(2, n + 1):
        S.append(math.log(k) + sum(S) / k)
    return S[n]


def above(n):
    S = [0.0, 0.0]
    for k in range(2, n + 2):
        S.append(math.log(k) + 2 * sum(S) / k)
    return S[n + 1]


def chain(law):
    """The lengths that the perfect network draws: of all texts that have k words left, it stops
    with the share of those that have no more."""
    met = [sum(p / (n + 1) for n, p in enumerate(law) if n >= k) for k in range(len(law))]
    found, going = [], 1.0
    for k, p in enumerate(law):
        stop = p / (k + 1) / met[k] if met[k] else 1.0
        found.append(going * stop)
        going *= 1 - stop
    return found


def test_exercise_32_each_text_counts_once_whatever_its_length():
    for law in ([0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.0, 0.0, 0.5], [0.25] * 4):
        with hint("law is a list of shares; return a list of as many"):
            ours = predictions.lengths_of_published_ilm(law)
            check(ours is not None, "it returns None: return a list")
            ours = torch.as_tensor(ours, dtype=torch.double)
        wrong = lambda weights: torch.tensor([p * w for p, w in zip(law, weights)]).double()
        share = lambda a: a / a.sum()
        check_equal(f"the lengths of samples where texts have {law}", ours,
                    torch.tensor(chain(law)).double(), {
            "it is the law of the texts: but a long text is asked as often as a short one, in "
            "n + 1 states": wrong([1.0] * len(law)),
            "the shares do not sum to 1": wrong([1 / (n + 1) for n in range(len(law))]),
            "the weight is upside down": share(wrong([n + 1 for n in range(len(law))])),
            "k is uniform on n + 1 numbers, 0 to n": share(wrong([1 / max(n, 1) for n in
                                                                  range(len(law))]))})
