"""Votes: which answer wins, by enumeration, and what evaluate.py says about them."""
import contextlib
from itertools import product
from math import factorial
from types import SimpleNamespace

import pytest
import torch
from evaluations import results, run
from runs import complaint, elsewhere, cache, fit  # noqa: F401

import evaluate
from data import load_data
from evaluation.votes import vote, vote_figures


def chance_of(p, k):
    """The probability that answer 0 wins among k answers from p, by enumeration."""
    tuples = torch.tensor(list(product(range(len(p)), repeat=k)))  # (m, k)
    numbers = torch.arange(k).expand_as(tuples)  # (m, k)
    texts = torch.stack([numbers, tuples], -1).transpose(0, 1)  # (k, m, 2)
    answer = lambda x: torch.stack([x[:, 1] // 2, x[:, 1] % 2], 1)  # (m, 2) two digits
    won = vote(texts, answer)  # (m, 2) the first token is a thought
    for row, (number, answer) in zip(tuples.tolist(), won.tolist()):
        most = max(map(row.count, row))
        assert row.count(answer) == most  # and of the most frequent the one that came first
        assert number == next(i for i, other in enumerate(row) if row.count(other) == most)
    weight = torch.tensor(p, dtype=torch.float64)[tuples].prod(-1)  # (m,)
    return float(weight[won[:, 1] == 0].sum())


def test_a_vote_is_for_the_mode():
    """With three answers: better than one draw where the right answer is the likeliest, worse where
    it is not. By counts: each of m that are equally frequent came first as often, 1/m."""
    def by_counts(p, k):
        total = 0.0
        for a, b in product(range(k + 1), repeat=2):
            if (c := k - a - b) >= 0 and a == max(a, b, c):
                ways = factorial(k) / factorial(a) / factorial(b) / factorial(c)
                total += ways * p[0]**a * p[1]**b * p[2]**c / [a, b, c].count(a)
        return total
    for p, table in (([0.5, 0.3, 0.2], (0.5, 0.5, 0.56, 0.6125, 0.6785)),
                     ([0.3, 0.5, 0.2], (0.3, 0.3, 0.276, 0.2576, 0.2289))):
        for k, right in zip((1, 2, 3, 5, 8), table):
            assert abs(by_counts(p, k) - right) < 6e-4, (k, by_counts(p, k))
            assert k > 5 or abs(chance_of(p, k) - by_counts(p, k)) < 1e-12


def test_the_figures_are_means_over_questions():
    """Right is 1. Of the first question two of three answers are right, of the second none."""
    data = SimpleNamespace(answer_of=lambda x: x,
                           score=lambda x: [("solved", (x[:, 0] == 1).double())])
    texts = torch.tensor([[1, 1, 2], [2, 2, 2]])[..., None]  # (n, k, 1)
    found = vote_figures(texts, data)
    assert found["what"] == "solved"
    assert found["rows"][0] == (1, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found["rows"][1] == (3, pytest.approx(1 / 2), pytest.approx(1 / 2))


@pytest.mark.parametrize("name, n", [("multiplication-thoughts", 4), ("boolean-thoughts", 1),
                                     ("sat5", 68), ("multiplication", 10)])
def test_votes_are_for_answers_whatever_the_thoughts(name, n):
    data = load_data(name, 0)
    x = data.windows("val", 3)  # (3, L)
    assert torch.equal(data.answer_of(x), x[:, -n:])


def test_evaluate_says_how_often_one_answer_and_the_most_frequent_are_right(capsys):
    data, few = "multiplication-thoughts", ["--max_texts", 9, "--draws", 1, "--num_samples", 6]
    with contextlib.redirect_stdout(None):
        fit("run", data=data, block_size=20, method="dot")
        fit("toy", method="mdlm", max_iters=1)
    words = ["--out_dir", "run", *few, "--answers", 3, "--device", "cpu"]
    r = results(capsys, *words)
    assert r["sampler"] == "thoughts" and r["votes"]["what"] == "solved"
    (one, single, error), (three, voted, _) = r["votes"]["rows"]
    assert (one, three) == (1, 3) and r["calls_per_text"] == 14  # a call for each token
    assert 0 <= single <= 1 and 0 <= voted <= 1 and error >= 0
    run(*words)
    said = capsys.readouterr().out
    assert "the most frequent of n answers" in said and f"{3 * 14:>21}\n" in said
    assert "votes" not in results(capsys, "--out_dir", "run", *few)
    for more, says in ((["--temperature", 0], "at temperature 0 they are the same: give"),
                       (["--num_samples", 0], "give --num_samples for some"),
                       (["--out_dir", "toy"], "leave it out, or give --data for some")):
        assert says in complaint(evaluate, *words, *more, capsys=capsys)
