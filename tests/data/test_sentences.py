"""Sentences that end: exact probabilities and lengths, and what is missing in a noisy one."""
from pathlib import Path

import numpy as np
import pytest
import torch

from data.sentences import SentenceCorpus, Sentences
from flags import UserError

DATA = SentenceCorpus()
LANGUAGE = DATA.language
REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "any_length.npz")


def array(name):
    return torch.from_numpy(REFERENCE[name])


def test_the_law_of_lengths_is_that_of_samples_and_sums_to_one():
    law = LANGUAGE.length_law  # (20,)
    n = LANGUAGE.lengths(DATA.batch("train", 20_000, torch.Generator().manual_seed(0)))  # (20,000,)
    q = torch.bincount(n, minlength=len(law)) / 20_000
    assert abs(law.sum() - 1) < 1e-12 and (law > 0).nonzero().min() == 3 and len(law) == 20
    assert ((q - law).abs() < 4.5 * (law * (1 - law) / 20_000).sqrt() + 1e-4).all()


def test_log_prob_is_exact_where_a_sentence_ends_by_its_place_and_not_by_its_word():
    """p(x) of all sentences of 3 words sums to the law of lengths; a typo for "." is a sentence."""
    V = LANGUAGE.V - 1
    x = torch.cartesian_prod(*[torch.arange(V)] * 2)  # (V^2, 2) the first two words
    stop = LANGUAGE.words.index(".")
    x = torch.cat([x, torch.full((len(x), 1), stop), torch.full((len(x), 1), V)], 1)  # (V^2, 4)
    share = LANGUAGE.log_prob(x).exp().sum()  # p(3 words, the last one ".")
    typo = 1e-4 * (1 - 1 / V)
    torch.testing.assert_close(share, LANGUAGE.length_law[3] * (1 - typo), rtol=1e-9, atol=0)
    row = torch.nn.functional.pad(x[V * 5 + 7], (0, 16), value=V)  # (20,)
    row[2] = 4  # another word in the place of the stop
    assert LANGUAGE.log_prob(row[None]).isfinite()
    row[2] = V  # two words, which no sentence has
    assert LANGUAGE.log_prob(row[None]) == -torch.inf
    assert LANGUAGE.log_prob(row.masked_fill(row == V, 3)[None]) == -torch.inf  # nor one of 20


def test_the_mean_of_log_prob_is_the_entropy():
    nats, error = LANGUAGE.entropy(20)
    found = -LANGUAGE.log_prob(DATA.windows("val", 4000))  # (n,)
    assert abs(found.mean() - 20 * nats) < 4 * found.std() / 4000 ** 0.5 and 20 * error < 0.05


def hidden_markov():
    """A language with an end of 3 places and 4 words, from the reference."""
    small = Sentences.__new__(Sentences)
    small.inner, small.first = array("hmm/transition"), array("hmm/first")
    small.ends, small.spoken = 1 - small.inner.sum(-1), array("hmm/emission")[None]  # (1, Q, 4)
    small.V, small.n_topics, small.prior = 5, 1, torch.ones(1, dtype=torch.double)
    small.by_word = torch.nn.functional.pad(small.spoken.permute(2, 0, 1), (0, 1, 0, 0, 0, 1))
    return small


def test_what_is_missing_is_that_of_a_dynamic_program():
    """(21.9) against sums over all texts, which know nothing of the closed form; in a batch of
    several times, and alone."""
    language, z, m = hidden_markov(), array("hmm/z"), array("hmm/length")  # (7, 5), (7,)
    z = torch.nn.functional.pad(z + (z >= 4), (0, 1), value=6)  # (7, 6) words, the mask 5, fill 6
    d = array("hmm/p_deleted")  # (7,)
    for rows in (torch.arange(7), *torch.arange(7)[:, None]):
        words, gaps = language.fill_in(z[rows], m[rows], d[rows])  # (n, 6, 5), (n, 6)
        there = torch.arange(6) <= m[rows, None]
        torch.testing.assert_close(gaps[there], array("hmm/REF_gap")[rows][there], rtol=0,
                                   atol=1e-8)
        masks = z[rows] == 5
        torch.testing.assert_close(words[masks][:, :4], array("hmm/REF_token")[rows][masks[:, :5]],
                                   rtol=0, atol=1e-8)


def test_nothing_is_missing_in_closed_gaps_and_that_changes_the_others():
    x = DATA.windows("val", 1)
    z = torch.nn.functional.pad(x[:, [0, 3]], (0, 3), value=LANGUAGE.V + 1)  # (1, 5) two words
    m, d = torch.tensor([2]), torch.tensor([0.5])
    closed = torch.tensor([[True, False, True, False, False]])
    free, told = LANGUAGE.fill_in(z, m, d)[1], LANGUAGE.fill_in(z, m, d, closed)[1]  # (1, 5) each
    assert (free[0, :3] > 1e-3).all() and abs(told[0, 1] - free[0, 1]) > 1e-3
    masked = x.masked_fill(torch.arange(20) == 1, LANGUAGE.V)  # (1, 20)
    masked = torch.nn.functional.pad(masked, (0, 1), value=LANGUAGE.V + 1)  # (1, 21)
    whole = torch.ones(1, 21).bool()  # nothing is missing: a mask is what the language says
    words, _ = LANGUAGE.fill_in(masked, LANGUAGE.lengths(x), d, whole)  # (1, 21, V)
    likelihood = torch.nn.functional.one_hot(x, LANGUAGE.V).double()  # (1, 20, V)
    likelihood[:, 1] = 1.0
    exact = LANGUAGE.posterior(likelihood)[0, 1]  # (V,)
    torch.testing.assert_close(words[0, 1], exact, rtol=0, atol=1e-10)


def test_a_topic_that_is_known_counts_alone():
    x = DATA.windows("val", 4)
    z, m = torch.full((4, 21), LANGUAGE.V + 1), torch.full((4,), 3)
    z[:, 0], z[:, 1:3] = x[:, 0], LANGUAGE.V
    d = torch.full((4,), 0.3)
    of_topic = torch.stack([LANGUAGE.fill_in(z, m, d, topic=k)[1] for k in range(4)])  # (4, 4, 21)
    mixed = LANGUAGE.fill_in(z, m, d)[1]  # (4, 21)
    assert (mixed <= of_topic.amax(0) + 1e-12).all() and (mixed >= of_topic.amin(0) - 1e-12).all()
    assert ((of_topic[0] - of_topic[1])[:, :4] != 0).any()


def test_sentences_parse_and_others_do_not():
    x = DATA.windows("val", 500)
    assert LANGUAGE.is_grammatical(x).double().mean() > 0.99
    n, last = LANGUAGE.lengths(x), LANGUAGE.V - 1
    cut = torch.where(torch.arange(20) < n[:, None] - 1, x, last)  # without the stop
    longer = torch.where(torch.arange(20) <= n[:, None], x.masked_fill(x == last, 0), last)
    assert not LANGUAGE.is_grammatical(cut).any() and not LANGUAGE.is_grammatical(longer).any()


def test_scores_count_words_and_the_distance_of_lengths():
    x = DATA.windows("val", 2000)
    assert (DATA.score(x)[0][1] == DATA.lengths(x)).all()
    (_, far, error), = DATA.score_set(x)
    assert far < 0.03 and 0 < error < 0.02
    assert DATA.score_set(x[DATA.lengths(x) > 8])[0][1] > 0.4
    assert DATA.unequal(x) is not None and abs(DATA.mean_length - 8.35) < 0.01


def test_a_block_that_is_too_short_for_a_sentence_is_refused():
    with pytest.raises(UserError, match="the longest sentence has 19 words: give --block_size 19"):
        SentenceCorpus(18)
