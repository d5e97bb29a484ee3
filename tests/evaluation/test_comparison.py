"""Models compared on the same texts, and what is said about a difference."""
import math
from types import SimpleNamespace

import pytest
import torch

from data.toy import ToyCorpus
from evaluation.comparison import NgramRival, describe_difference
from evaluation.errors import mean_error
from evaluation.ngram import text_nats


@pytest.mark.parametrize("mean, error, says", [
    (0.26, 0.01, "0.2600 +- 0.0100 above it"), (-0.26, 0.01, "0.2600 +- 0.0100 below it"),
    (-0.0533, 0.0498, "0.0533 +- 0.0498 below it, not distinguishable from it"),
    (0.0, 0.0, "0.0000 +- 0.0000 above it, not distinguishable from it"),
    (0.5, math.nan, "0.5000 (no error: one text) above it")])
def test_a_difference_is_above_or_below_and_within_two_errors_not_distinguishable(mean, error,
                                                                                  says):
    assert describe_difference(mean, error, "it") == says


def test_the_best_ngram_is_compared_text_by_text():
    data = ToyCorpus(16)
    x = data.windows("val", 40)
    rival, held = NgramRival(data), SimpleNamespace(x=x)
    found = text_nats(data.ids("train"), x.numpy(), data.encoding.n_vocab)
    best = min(found, key=lambda n: found[n].mean())
    ours = -data.language.log_prob(x)  # (n,) exact, so less
    row = rival.figures(ours, torch.full((40,), 16), held, None, None, True)["against"]
    expected = mean_error((ours - torch.from_numpy(found[best]) * 16) / 16, True)
    assert (row["difference"], row["difference_error"]) == pytest.approx(expected)
    assert row["name"] == f"the {best}-gram of tokens" and row["difference"] < 0 and row["exact"]
