"""
The exact answers of the toy language, each against a slow one that shares no code with it.

The slow answers are sums over all hidden paths or over all texts of two or three words, and Bayes'
rule written out. Where only samples are available, the tolerance is a number of standard errors,
and the seed is fixed. n texts, L words, V vocabulary, K topics, Q places in the grammar.
"""
import pytest
import torch

from data import tokenizer
from data.toy import SEEDS, Toy, ToyCorpus

TOY = Toy()
K, Q, V = TOY.emission.shape


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def all_texts_of_two_words():
    return torch.cartesian_prod(torch.arange(V), torch.arange(V))  # (V * V, 2)


def all_texts_of_three_words(k):
    """p(x | topic k) of every text of three words, summed over paths. -> (V, V, V)"""
    a = TOY.initial[:, None] * TOY.emission[k]  # (Q, V)
    ab = torch.einsum("hv,hi,iw->ivw", a, TOY.transition, TOY.emission[k])  # (Q, V, V)
    return torch.einsum("ivw,ij,ju->vwu", ab, TOY.transition, TOY.emission[k])  # (V, V, V)


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


# ---- exact answers, by enumeration

def test_log_prob_is_the_sum_over_all_hidden_paths():
    """Q^3 paths and K topics, multiplied out one by one, for grammatical texts and for nonsense."""
    nonsense = torch.randint(V, (5, 3), generator=seeded())  # (5, 3)
    x = torch.cat([TOY.sample(5, 3, seeded()), nonsense])  # (10, 3)
    T = TOY.transition
    for text, log_p in zip(x, TOY.log_prob(x)):
        total = 0.
        for k in range(K):
            a, b, c = (TOY.emission[k, :, v] for v in text)  # (Q,) each
            first = (TOY.initial * a)[:, None, None]  # (Q, 1, 1)
            paths = first * (T * b)[:, :, None] * (T * c)[None]  # (Q, Q, Q)
            total += TOY.prior[k] * paths.sum()
        close(log_p, total.log())


def test_the_probabilities_of_all_texts_sum_to_one():
    x = all_texts_of_two_words()
    for topic in (None, 0, K - 1):
        close(TOY.log_prob(x, topic).exp().sum(), torch.tensor(1., dtype=torch.double))


def test_the_chain_rule_holds():
    """log p(x) = sum_l log p(x_l | x_<l), with and without a given topic."""
    x = TOY.sample(50, 40, seeded())  # (50, 40)
    for topic in (None, 2, torch.arange(50) % K):
        steps = TOY.predict(x, topic).gather(-1, x[..., None]).squeeze(-1).log()  # (50, 40)
        close(steps.sum(-1), TOY.log_prob(x, topic))


def test_a_prediction_is_a_law_that_has_not_seen_its_own_word_or_any_later_one():
    x, l = TOY.sample(20, 12, seeded()), 7
    tail = torch.randint(V, (20, 12 - l), generator=seeded())  # (20, 12 - l)
    y = torch.cat([x[:, :l], tail], 1)  # (20, 12)
    close(TOY.predict(x)[:, :l + 1], TOY.predict(y)[:, :l + 1])
    close(TOY.predict(x).sum(-1), torch.ones(20, 12, dtype=torch.double))


def test_the_posterior_of_one_masked_word_is_bayes_rule_over_the_vocabulary():
    x, l = TOY.sample(6, 9, seeded()), 4
    likelihood = torch.eye(V)[x]  # (6, 9, V) all known
    likelihood[:, l] = 1  # but this one
    filled = x[:, None].repeat(1, V, 1)  # (6, V, 9)
    filled[:, :, l] = torch.arange(V)
    for topic in (None, 1):
        bayes = TOY.log_prob(filled.flatten(0, 1), topic).view(6, V).softmax(-1)  # (6, V)
        close(TOY.posterior(likelihood, topic=topic)[:, l], bayes)


def test_the_posterior_under_soft_evidence_is_the_sum_over_all_texts():
    """All V^3 texts of three words: soft evidence with zeros in it, a mask, another soft row."""
    likelihood = torch.rand(1, 3, V, dtype=torch.double, generator=seeded()) ** 8  # (1, 3, V)
    likelihood *= torch.rand(1, 3, V, generator=seeded(1)) < .7
    likelihood[:, 1] = 1
    by_topic = torch.stack([all_texts_of_three_words(k) for k in range(K)])  # (K, V, V, V)
    mixture = torch.tensordot(TOY.prior, by_topic, 1)  # (V, V, V)
    e1, e2, e3 = likelihood[0]  # (V,) each
    for topic, p in ((None, mixture), (3, by_topic[3])):
        joint = torch.einsum("abc,a,b,c->abc", p, e1, e2, e3)  # (V, V, V)
        everything = torch.stack([joint.sum(dim) for dim in ((1, 2), (0, 2), (0, 1))])  # (3, V)
        others = torch.stack([torch.einsum("abc,b,c->a", p, e2, e3),
                              torch.einsum("abc,a,c->b", p, e1, e3),
                              torch.einsum("abc,a,b->c", p, e1, e2)])  # (3, V)
        close(TOY.posterior(likelihood, topic=topic)[0], others / others.sum(-1, keepdim=True))
        close(TOY.posterior(likelihood, leave_one_out=False, topic=topic)[0],
              everything / everything.sum(-1, keepdim=True))


def test_leaving_one_out_means_that_a_words_own_evidence_does_not_matter():
    likelihood = torch.rand(8, 10, V, dtype=torch.double, generator=seeded()) ** 20  # (8, 10, V)
    changed, l = likelihood.clone(), 5
    changed[:, l] = torch.eye(V)[3]
    close(TOY.posterior(changed)[:, l], TOY.posterior(likelihood)[:, l])
    assert not torch.allclose(TOY.posterior(changed)[:, l + 1], TOY.posterior(likelihood)[:, l + 1])


def test_the_leave_one_out_law_times_the_own_likelihood_is_the_full_posterior():
    likelihood = torch.rand(8, 10, V, dtype=torch.double, generator=seeded()) ** 20  # (8, 10, V)
    product = TOY.posterior(likelihood) * likelihood  # (8, 10, V)
    close(product / product.sum(-1, keepdim=True), TOY.posterior(likelihood, leave_one_out=False))


def test_only_the_ratios_within_a_row_of_evidence_count():
    likelihood = torch.rand(4, 10, V, dtype=torch.double, generator=seeded())  # (4, 10, V)
    factor = 10. ** torch.linspace(-250, 250, 40, dtype=torch.double).view(4, 10, 1)  # (4, 10, 1)
    for leave_one_out in (True, False):
        scaled = TOY.posterior(likelihood * factor, leave_one_out)  # (4, 10, V)
        close(scaled, TOY.posterior(likelihood, leave_one_out))


def test_evidence_after_a_word_that_is_flat_leaves_the_prediction():
    """Words before, masks from l on: the posterior at l is the autoregressive law. Block diffusion
    is built on it."""
    x, l = TOY.sample(6, 9, seeded()), 5
    likelihood = torch.eye(V)[x]  # (6, 9, V)
    likelihood[:, l:] = 1
    close(TOY.posterior(likelihood)[:, l], TOY.predict(x)[:, l])


def test_the_topic_posterior_is_bayes_rule():
    x = TOY.sample(20, 10, seeded())  # (20, 10)
    joint = torch.stack([TOY.log_prob(x, k) for k in range(K)], 1).exp() * TOY.prior  # (20, K)
    close(joint.sum(-1).log(), TOY.log_prob(x))
    close(TOY.topic_posterior(x), joint / joint.sum(-1, keepdim=True))
    close(TOY.log_prob(x, torch.full((20,), 2)), TOY.log_prob(x, 2))


# ---- samples

def test_samples_have_the_exact_word_frequencies_at_every_place_in_the_text():
    """Flat evidence gives p(x_l = v) exactly. 5 standard errors, for 12 positions x V words, the
    rarest left out."""
    n = 20_000
    for topic in (None, 3):
        x = TOY.sample(n, 12, seeded(), topic)  # (n, 12)
        p = TOY.posterior(torch.ones(1, 12, V), topic=topic)[0]  # (12, V)
        seen = torch.stack([row.bincount(minlength=V) for row in x.T]) / n  # (12, V)
        z = (seen - p) / (p * (1 - p) / n).sqrt()  # (12, V)
        assert z[n * p > 10].abs().max() < 5


def test_samples_have_the_exact_frequencies_of_pairs():
    """Chi-square over all texts of two words, those expected fewer than 5 times in one cell."""
    n = 50_000
    x = TOY.sample(n, 2, seeded())  # (n, 2)
    expected = n * TOY.log_prob(all_texts_of_two_words()).exp()  # (V * V,)
    seen = (x[:, 0] * V + x[:, 1]).bincount(minlength=V * V).double()  # (V * V,)
    rare = expected < 5
    expected, seen = (torch.cat([c[~rare], c[rare].sum()[None]]) for c in (expected, seen))
    chi2, freedom = ((seen - expected) ** 2 / expected).sum(), len(expected) - 1
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** .5


def test_topics_are_drawn_from_the_prior_and_the_posterior_is_calibrated():
    """E[p(k | x)] = p(k) and E[1[k] - p(k | x)] = 0 within 5 standard errors."""
    n = 10_000
    x, k = TOY.sample(n, 16, seeded(), return_topic=True)  # (n, 16), (n,)
    guess = TOY.topic_posterior(x)  # (n, K)
    error = torch.eye(K)[k] - guess  # (n, K)
    for deviation in (error, guess - TOY.prior):
        assert (deviation.mean(0).abs() < 5 * deviation.std(0) / n ** .5).all()


def test_the_topic_is_hidden_in_one_word_and_plain_after_a_few_sentences():
    x, k = TOY.sample(2_000, 64, seeded(), return_topic=True)  # (n, 64), (n,)
    sure = [TOY.topic_posterior(x[:, :l]).gather(1, k[:, None]).mean() for l in (1, 64)]
    assert sure[0] < .45 and sure[1] > .99


def test_the_same_generator_gives_the_same_text_and_a_given_topic_is_kept():
    assert torch.equal(TOY.sample(5, 30, seeded(4)), TOY.sample(5, 30, seeded(4)))
    assert not torch.equal(TOY.sample(5, 30, seeded(4)), TOY.sample(5, 30, seeded(5)))
    wanted = torch.arange(40) % K
    x, k = TOY.sample(40, 100, seeded(), wanted, return_topic=True)
    assert torch.equal(k, wanted) and torch.equal(TOY.topic_posterior(x).argmax(-1), wanted)


# ---- entropy

def test_the_entropy_of_two_words_is_the_sum_over_all_texts():
    p = TOY.log_prob(all_texts_of_two_words()).exp()  # (V * V,)
    nats, error = TOY.entropy(2, n=40_000)
    assert abs(nats - torch.special.entr(p).sum() / 2) < 4 * error and error < .005


def test_the_entropy_is_the_mean_of_minus_log_p_and_far_less_noisy():
    L, n = 32, 8000
    nats, error = TOY.entropy(L)
    surprise = -TOY.log_prob(TOY.sample(n, L, seeded())) / L  # (n,) nats per token
    assert abs(surprise.mean() - nats) < 4 * (surprise.var() / n + error ** 2) ** .5
    assert error < .0005 and error * 4096 ** .5 < surprise.std() / 5


# ---- no text is impossible

def test_nothing_underflows_whatever_the_text():
    """Two hundred random words; then the farm for long and the sea for long: a topic all but dies,
    and returns."""
    noise = torch.randint(V, (2, 200), generator=seeded())  # (2, 200)
    farm, sea = TOY.sample(1, 2000, seeded(), 0), TOY.sample(1, 2000, seeded(), 1)
    for x in (noise, torch.cat([farm, sea], 1)):
        steps = TOY.predict(x).gather(-1, x[..., None]).squeeze(-1).log()  # (n, L)
        torch.testing.assert_close(steps.sum(-1), TOY.log_prob(x), rtol=1e-9, atol=0)
        for leave_one_out in (True, False):
            p = TOY.posterior(torch.eye(V)[x], leave_one_out)  # (n, L, V)
            close(p.sum(-1), torch.ones_like(p[..., 0]))
        close(p, torch.eye(V, dtype=torch.double)[x])  # what is known is known


def test_evidence_that_means_nothing_is_refused_with_a_reason():
    good = torch.ones(1, 3, V)
    for bad in (good * 0, -good, good / 0, good * float("nan")):
        with pytest.raises(ValueError, match="likelihood"):
            TOY.posterior(bad)
    with pytest.raises(ValueError, match="a mask is a flat row"):
        TOY.posterior(torch.ones(1, 3, V + 1))
    for bad_id in (V, -1):
        with pytest.raises(ValueError, match="masks"):
            TOY.log_prob(torch.tensor([[0, bad_id]]))


# ---- the corpus

def test_text_and_ids_are_the_same_thing():
    corpus = ToyCorpus(block_size=24)
    for row in corpus.windows()[:20]:
        text = corpus.text(row)
        assert text == " ".join(TOY.words[i] for i in row)
        assert tokenizer.encode(corpus.encoding, text).tolist() == row.tolist()
    assert corpus.encoding.n_vocab == V and corpus.text([0, V, 1]).count("_") == 1


def test_batches_are_fresh_and_held_out_windows_are_fixed():
    corpus = ToyCorpus(block_size=16)
    assert corpus.batch("train", 4).shape == (4, 16) and corpus.batch("val", 4).dtype == torch.long
    assert not torch.equal(corpus.batch("train", 4), corpus.batch("train", 4))
    assert torch.equal(corpus.batch("train", 4, seeded(3)), corpus.batch("val", 4, seeded(3)))
    assert torch.equal(corpus.windows(), corpus.windows()) and corpus.windows().shape == (1000, 16)
    assert not torch.equal(corpus.windows("train"), corpus.windows("val"))
    assert len(corpus.train) == 200_000 and len(corpus.val) == 20_000
    assert len(set(SEEDS.values())) == len(SEEDS)


def test_bytes_per_token_is_the_mean_of_the_written_text():
    corpus = ToyCorpus(block_size=20)
    texts = [corpus.text(row) for row in corpus.windows()]
    sizes = torch.tensor([len(text.encode()) / 20 for text in texts])  # (1000,)
    assert abs(sizes.mean() - corpus.bytes_per_token) < 5 * sizes.std() / 1000 ** .5
