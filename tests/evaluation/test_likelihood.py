"""Bounds, perplexity and bits, as papers count them."""
import math
from types import SimpleNamespace

import pytest
import torch

from data.chat import encoding_for
from data.tokenizer import bpe, byte_level, chars, encode
from data.toy import ToyCorpus
from evaluation.errors import pooled_rate
from evaluation.likelihood import (
    bytes_per_scored,
    bytes_per_character,
    estimate_bound,
    format_nats,
    likelihood_figures,
    nats_of,
    perplexity_of,
    scored_positions,
)
from oracle import exact

LANGUAGE = ToyCorpus(32).language
AR = exact("ar")


def text_in(encoding, bytes_per_token=1.0):
    return SimpleNamespace(encoding=encoding, bytes_per_token=bytes_per_token, is_text=True,
                           language=None, answers=False, independent_texts=True)


# ---- perplexity and bits

def test_perplexity_counts_tokens_not_texts_and_its_error_is_that_of_a_ratio():
    nats, scored = torch.tensor([10.0, 1.0, 4.0]), torch.tensor([4, 1, 3])
    rate, error = pooled_rate(nats, scored, True)
    assert rate == 15 / 8
    left = [n - 15 / 8 * k for n, k in zip(nats.tolist(), scored.tolist())]  # sums to 0
    expected = math.sqrt(sum(a * a for a in left) / 2 / 3) / (8 / 3)
    assert error == pytest.approx(expected)
    value = math.exp(15 / 8)
    assert perplexity_of(rate, error) == pytest.approx((value, value * error))
    assert perplexity_of(1e6, 1.0)[0] < math.inf


def test_the_error_of_a_perplexity_is_the_spread_of_perplexities_of_other_texts():
    draw = torch.Generator().manual_seed(1)
    values = []
    for _ in range(400):
        scored = torch.randint(5, 60, (200,), generator=draw)
        nats = scored * (2 + 0.3 * torch.randn(200, generator=draw))
        values.append(perplexity_of(*pooled_rate(nats, scored, True)))
    values = torch.tensor(values)
    spread = values[:, 0].std().item()
    assert values[:, 1].mean().item() == pytest.approx(spread, rel=0.15)


def test_bits_per_byte_are_left_out_where_the_scored_tokens_are_no_text_of_known_size():
    assert format_nats(math.log(2), 0.1, 0.5) == "0.693 +- 0.100 nats/token = 2.000 bits/byte"
    assert format_nats(1.0, math.nan, None) == "1.000 (no error: one text) nats/token"
    data = text_in(None, 2.5)
    assert bytes_per_scored(data) == 2.5
    data.bytes_per_token = math.nan  # of a corpus whose last documents are not known
    assert bytes_per_scored(data) is None
    data.bytes_per_token = None  # puzzles, which are no text
    assert bytes_per_scored(data) is None
    data.bytes_per_token, data.answers = 2.5, True  # scored with the ends that fill them up
    assert bytes_per_scored(data) is None
    assert not [key for key in likelihood_figures(torch.ones(2), torch.ones(2), torch.ones(2, 3),
                                                  data) if "bits" in key]


def test_bits_per_character_differ_from_bits_per_byte_by_the_bytes_of_a_character():
    word = "Ä東🙂a"  # 2, 3, 4 and 1 bytes
    for encoding in (chars(word), byte_level(), bpe(word * 9, 300, alphabet=word)):
        ids = torch.tensor(encode(encoding, word).astype(int))
        assert bytes_per_character(encoding, ids) == 10 / 4
    encoding = encoding_for("chars", 0, word, "")  # with marks, which spell nothing
    end = encoding.eot_token
    ids = torch.tensor([*encode(encoding, word).astype(int), end, end])
    assert bytes_per_character(encoding, ids) == 10 / 4
    nats, scored = torch.tensor([8.0, 6.0]), torch.tensor([4, 4])
    result = likelihood_figures(nats, scored, ids[None, :4].expand(2, -1), text_in(encoding, 2.5))
    assert result["perplexity"] == pytest.approx(math.exp(14 / 8)) and result["tokens"] == 8
    assert result["bits_per_byte"] == pytest.approx(14 / 8 / math.log(2) / 2.5)
    assert result["bits_per_character"] == pytest.approx(14 / 8 / math.log(2))
    toy = likelihood_figures(torch.ones(2), torch.ones(2), ids[None], ToyCorpus(8))
    assert "bits_per_byte" not in toy


# ---- what is scored, through the exact next-word distribution

def test_texts_of_many_tokens_count_more_in_a_perplexity():
    x = LANGUAGE.sample(6, 8, torch.Generator().manual_seed(0))
    frozen = torch.arange(8) < torch.tensor([[0], [2], [4], [6], [7], [7]])
    nats, scored = nats_of(AR.method, AR.denoiser, x, frozen=frozen)
    assert scored.tolist() == [8, 6, 4, 2, 1, 1]
    assert pooled_rate(nats, scored)[0] == pytest.approx(nats.sum().item() / 22)
    mean, _ = estimate_bound(AR.method, AR.denoiser, x, frozen=frozen)
    assert mean == pytest.approx((nats / scored).mean().item())


def test_padding_is_noised_and_not_scored_and_all_other_tokens_count_alike():
    """Five words of a text of eight cost what they cost alone."""
    x = LANGUAGE.sample(6, 8, torch.Generator().manual_seed(0))
    padding = torch.arange(8) >= torch.tensor([[5], [5], [5], [8], [8], [1]])
    nats, scored = nats_of(AR.method, AR.denoiser, x, padding=padding)
    lengths = scored.tolist()
    exactly = [-LANGUAGE.log_prob(row[None, :n]).item() for row, n in zip(x, lengths)]
    assert nats.tolist() == pytest.approx(exactly) and lengths == [5, 5, 5, 8, 8, 1]
    mean, error = estimate_bound(AR.method, AR.denoiser, x, padding=padding)
    assert mean == pytest.approx(sum(exactly) / 32)
    assert error == pytest.approx(pooled_rate(nats, scored)[1])
    figures = likelihood_figures(nats, scored, x, ToyCorpus(8), padding=padding)
    assert figures["perplexity"] == pytest.approx(math.exp(mean))
    given = torch.arange(8).expand(6, -1) == 0  # nothing of a given first token is scored either
    assert scored_positions(x, given, padding).sum(-1).tolist() == [4, 4, 4, 7, 7, 0]


def test_a_seed_fixes_the_noise_and_draws_are_averaged():
    model, x = exact("mdlm"), LANGUAGE.sample(5, 8, torch.Generator().manual_seed(0))
    once, twice = (nats_of(model.method, model.denoiser, x, draws, seed=3)[0] for draws in (1, 2))
    assert torch.equal(once, nats_of(model.method, model.denoiser, x, 1, seed=3)[0])
    assert not torch.equal(once, nats_of(model.method, model.denoiser, x, 1, seed=4)[0])
    assert not torch.equal(once, twice)


def test_a_text_may_meet_any_noise_in_any_draw():
    """Times are spread over the rows of a batch, so the rows are in another order in each draw."""
    rows = lambda denoiser, x, frozen: torch.arange(len(x))[:, None] + 0 * x  # (n, 1)
    method = SimpleNamespace(nelbo=rows)
    nats, _ = nats_of(method, None, torch.zeros(8, 1), draws=400)  # (8,) the mean row of each text
    assert nats.tolist() == pytest.approx([3.5] * 8, abs=0.5)
