"""Standard errors: measured against the spread that they claim to know."""
import math

import pytest
import torch

from evaluation.errors import mean_error, mean_over_seeds, pooled_rate, with_error


def stream(runs, n, mix, seed=0):
    """Sums of AR(1) sequences of variance 1: [(share, correlation of neighbors)]. -> (runs, n)"""
    draw, x = torch.Generator().manual_seed(seed), torch.zeros(runs, n, dtype=torch.float64)
    for share, rho in mix:
        noise = torch.randn(n, runs, generator=draw, dtype=torch.float64)
        row, rows = noise[0], []
        for step in noise:
            row = rho * row + math.sqrt(1 - rho ** 2) * step if rows else row
            rows.append(row)
        x += math.sqrt(share) * torch.stack(rows, 1)
    return x


def coverage(x, **how):
    """How often the mean +- two errors holds the truth, 0; the mean error over the true spread."""
    means, errors = torch.tensor([mean_error(row, **how) for row in x]).unbind(-1)  # (runs,) each
    held = (means.abs() < 2 * errors).double().mean().item()
    return held, (errors.mean() / means.square().mean().sqrt()).item()


# ---- texts in order

TEXT = [(0.5, 0.0), (0.3, 0.5), (0.2, 0.9)]  # .33, .24, .18 between neighbors, as on docstrings


@pytest.mark.parametrize("mix, n", [([(1.0, 0.5)], 400), ([(1.0, 0.8)], 1000), (TEXT, 1000)])
def test_two_errors_of_texts_in_order_hold_the_truth_nine_times_in_ten_and_naive_ones_do_not(mix,
                                                                                           n):
    x = stream(300, n, mix)
    held, ratio = coverage(x)
    assert held > 0.9 and 0.88 < ratio < 1.15
    naive, too_small = coverage(x, independent=True)
    assert naive < 0.8 and too_small < 0.65


@pytest.mark.parametrize("n, most", [(30, 1.15), (100, 1.12), (1000, 1.07)])
def test_of_independent_texts_the_two_errors_agree(n, most):
    """Within the few percent that are the price of looking at the neighbors."""
    x = stream(400, n, [(1.0, 0.0)])
    ratio = torch.tensor([mean_error(row)[1] / mean_error(row, True)[1] for row in x])
    assert ratio.min() >= 1 - 1e-12 and 1.0 < ratio.mean() < most
    assert coverage(x)[0] > 0.92


def test_texts_that_are_spread_out_depend_less_on_each_other():
    x = stream(200, 3200, [(1.0, 0.8)])[:, ::32]  # (200, 100) neighbors correlate by .8 ^ 32
    held, ratio = coverage(x)
    assert held > 0.92 and 0.95 < ratio < 1.2


def test_the_error_of_texts_in_order_is_the_sum_of_covariances_up_to_the_first_pair_of_noise():
    x = stream(1, 60, [(1.0, 0.7)])[0]
    d = x - x.mean()
    c = [(d[:60 - k] * d[k:]).sum().item() / 60 for k in range(60)]
    total, k = -c[0], 0
    while c[2 * k] + c[2 * k + 1] > 0:
        total, k = total + 2 * (c[2 * k] + c[2 * k + 1]), k + 1
    mean, error = mean_error(x)
    assert (mean, error) == pytest.approx((x.mean().item(), math.sqrt(total / 59))) and k > 1
    assert mean_error(x, True)[1] == pytest.approx((x.std() / 60 ** 0.5).item())
    turns = torch.tensor([1.0, -1.0]).repeat(20)
    assert mean_error(turns)[1] == pytest.approx(mean_error(turns, True)[1])  # never below it


@pytest.mark.parametrize("independent", [True, False])
def test_a_single_text_has_a_mean_and_no_error_and_equal_texts_have_an_error_of_zero(independent):
    mean, error = mean_error(torch.tensor([2.0]), independent)
    assert mean == 2 and math.isnan(error)
    assert mean_error(torch.full((5,), 3.0), independent) == (3, 0)
    assert mean_error(torch.tensor([1.0, 2.0]), independent) == (1.5, 0.5)
    assert mean_error(torch.tensor([True, False, True]), independent)[0] == pytest.approx(2 / 3)


# ---- ratios, seeds, differences

def test_words_cluster_in_texts_so_a_share_of_words_has_the_error_of_texts():
    """Against the bootstrap of texts; a binomial error is less than half of it."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(5, 40, (200,), generator=draw)
    bad = torch.rand(200, generator=draw) < 0.1  # texts in which nothing is known
    known = torch.where(bad, 0, words)
    share, error = pooled_rate(known, words, True)
    rows = torch.randint(200, (2000, 200), generator=draw)
    resampled = known[rows].sum(-1) / words[rows].sum(-1)  # (2000,)
    assert share == pytest.approx(known.sum().item() / words.sum().item())
    assert error == pytest.approx(resampled.std().item(), rel=0.06)
    assert error > 2 * math.sqrt(share * (1 - share) / words.sum().item())


def test_the_error_over_seeds_holds_the_choice_of_texts_and_the_luck_of_training():
    """Texts that all seeds share, of spread .5, and seeds of spread .1."""
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(400):
        texts = 0.5 * torch.randn(100, generator=draw)
        luck = 0.1 * torch.randn(4, 1, generator=draw)
        runs = [mean_error(row, True) for row in luck + texts]
        found.append(mean_over_seeds(*zip(*runs)))
    means, errors = torch.tensor(found).unbind(-1)
    truth = math.sqrt(0.5 ** 2 / 100 + 0.1 ** 2 / 4)
    assert means.std().item() == pytest.approx(truth, rel=0.08)
    assert errors.mean().item() == pytest.approx(truth, rel=0.05)
    assert mean_over_seeds([2.0], [0.5]) == (2.0, 0.5)
    assert mean_over_seeds([1.0, 3.0], [0.0, 0.0]) == (2.0, 1.0)


def test_a_difference_on_the_same_texts_has_a_far_smaller_error():
    texts = stream(1, 500, TEXT)[0]
    other = texts + 0.05 + 0.02 * stream(1, 500, [(1.0, 0.0)], seed=1)[0]
    mean, error = mean_error(other - texts)
    assert mean == pytest.approx(0.05, abs=3 * error)
    assert 20 * error < math.hypot(mean_error(texts)[1], mean_error(other)[1])


# ---- how they are printed

@pytest.mark.parametrize("figures, form, shown", [
    ((1.2345, 0.0049), ".3f", "1.234 +- 0.005"), ((0.5, 0.25), ".1%", "50.0% +- 25.0%"),
    ((0.5, 0.25), "+.2f", "+0.50 +- 0.25"), ((1.5, math.nan), ".1f", "1.5 (no error: one text)"),
    ((1.5, None), ".1f", "1.5 (no error: one text)"), ((math.nan, math.nan), ".1f", "none"),
    ((None, 0.1), ".1f", "none")])
def test_what_has_no_error_says_so_instead_of_nan(figures, form, shown):
    assert with_error(*figures, form) == shown
