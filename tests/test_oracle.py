"""
The toy language as the judge of all methods at once: with the exact denoiser, losses equal the entropy and samplers
speak the language. Nothing is trained, so whatever were missing would be the fault of the loss or of the sampler.
"""
import functools
import os

import pytest
import torch

from bounds import estimate
from data.toy import ToyCorpus
from diffusion import corrupt, likelihood, posterior_x0
from methods import METHODS, SAMPLERS, make_method
from oracle import oracle
from sample import generate

CORPUS = ToyCorpus(block_size=16)
LANGUAGE = CORPUS.language
BOUNDS = [name for name in METHODS if name not in ("md4", "radd", "duo")]       # theirs are mdlm's and udlm's
SLOW = pytest.mark.skipif("PALIMPSEST_SLOW" not in os.environ, reason="200 steps take 13 s: set PALIMPSEST_SLOW=1")
DRAWS = {"ar": 1, "bd3lm": 2, "mdlm": 4, "pgm": 4, "d3pm": 5, "genmd4": 12}     # for an error of half a percent


@functools.cache
def texts(n):
    """n held-out texts and the mean of their exact -log p, nats/token: what the bound must be on just these."""
    x = CORPUS.windows("val", n)
    return x, float(-LANGUAGE.log_prob(x).mean() / x.shape[1])


def denoiser_of(name):
    method = make_method(name, CORPUS.encoding.n_vocab, diffusion_steps=1024)    # d3pm: 128 cost 0.01 nats (README)
    if name == "genmd4":                                     # a schedule of its own for each word
        method.w_raw = torch.linspace(0.2, 2.0, LANGUAGE.V)[torch.randperm(LANGUAGE.V)]
    return method, oracle(LANGUAGE, method)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_bound_of_the_oracle_is_the_entropy_within_four_standard_errors_of_half_a_percent(name):
    method, exact = denoiser_of(name)
    x, nats = texts(6000)
    entropy, entropy_error = LANGUAGE.entropy(16)
    found, error = estimate(method, exact, x, draws=DRAWS.get(name, 7), batch_size=1000)
    assert error < 0.005 * entropy
    assert abs(found - entropy) < 4 * (error ** 2 + entropy_error ** 2) ** 0.5
    assert abs(found - nats) < (1e-6 if name == "ar" else 4 * error)


@pytest.mark.parametrize("name", BOUNDS)
def test_any_other_denoiser_gives_more(name):
    """Sharper, flatter, a tenth forgotten: on the same noise each costs 0.02 nats/token, and five standard errors."""
    method, exact = denoiser_of(name)
    x, _ = texts(1000)

    def draw(denoiser):
        torch.manual_seed(0)
        return method.nelbo(denoiser, x).mean(-1)                                                       # (n,)

    for wrong in (lambda p: 1.7 * p, lambda p: 0.6 * p, lambda p: (0.9 * p.exp() + 0.1 / LANGUAGE.V).log()):
        other = lambda *call, **layout: wrong(exact(*call, **layout)).log_softmax(-1)
        more = draw(other) - draw(exact)                                                                # (n,) nats
        assert more.mean() > max(5 * more.std() / len(x) ** 0.5, 0.02)


@pytest.mark.parametrize("name, sampler, steps", [
    ("ar", "ancestral", 1), ("mdlm", "first-hitting", 16), ("udlm", "ancestral", 48), ("gidd", "ancestral", 48),
    ("duo", "psi", 48), pytest.param("mdlm", "ancestral", 200, marks=SLOW)])
def test_many_steps_through_the_oracle_speak_the_language(name, sampler, steps):
    """Likelihood, words, pairs of words and topics of the samples are the language's, within four standard errors."""
    method, exact = denoiser_of(name)
    torch.manual_seed(0)
    n = 400
    x = generate(method, exact, n, 16, steps, SAMPLERS[sampler])
    nats = -LANGUAGE.log_prob(x) / 16
    entropy, _ = LANGUAGE.entropy(16)
    bias = 0 if sampler == "first-hitting" or name == "ar" else 0.02     # the cost of so few steps, nats or relative
    assert -4 * nats.std() / n ** 0.5 < nats.mean() - entropy < 4 * nats.std() / n ** 0.5 + bias
    reference = CORPUS.windows("train", 20_000)
    the, dog, stop = (LANGUAGE.words.index(word) for word in ("the", "dog", "."))
    for statistic in (lambda x: (x == the).double().mean(-1), lambda x: (x == stop).double().mean(-1),
                      lambda x: ((x[:, :-1] == the) & (x[:, 1:] == dog)).double().mean(-1),
                      lambda x: LANGUAGE.topic_posterior(x)[:, 0], lambda x: LANGUAGE.topic_posterior(x)[:, 3]):
        ours, theirs = statistic(x), statistic(reference)
        error = (ours.var() / n + theirs.var() / len(reference)) ** 0.5
        assert abs(ours.mean() - theirs.mean()) < 4 * error + bias * theirs.mean()


def test_few_steps_cost_likelihood_and_more_steps_cost_less():
    """The sampler's own error, free of any training: the curve in README."""
    for name in ("mdlm", "udlm", "gidd"):
        method, exact = denoiser_of(name)
        torch.manual_seed(0)
        nats = [-LANGUAGE.log_prob(generate(method, exact, 200, 16, steps)).mean() / 16 for steps in (1, 4, 32)]
        assert nats[0] > nats[1] + 0.1 > nats[2] + 0.2


@pytest.mark.parametrize("name", ["udlm", "gidd"])
def test_the_networks_law_times_the_own_evidence_is_the_posterior(name):
    """posterior_x0 against the recursion that never left the token's own evidence out."""
    method, exact = denoiser_of(name)
    torch.manual_seed(0)
    x, t = CORPUS.windows("val", 20), torch.linspace(0.1, 0.9, 20, dtype=torch.float64)[:, None]
    z = corrupt(method.process, x, t)
    full = LANGUAGE.posterior(likelihood(method.process, z, t), leave_one_out=False)
    torch.testing.assert_close(posterior_x0(method.process, exact(z, t).exp(), z, t), full, atol=1e-9, rtol=1e-9)


def test_with_masks_given_words_steer_the_rest_exactly():
    """Infilling: how often each word is drawn, through the oracle, against Bayes on the exact log-probabilities."""
    method, exact = denoiser_of("mdlm")
    text = "the dog that chases two cats sleeps .".split()
    x = torch.tensor([[LANGUAGE.words.index(word) for word in text]])                                   # (1, 8)
    gap, n = text.index("sleeps"), 4000                  # the verb agrees with the dog, not with the cats
    frozen = torch.ones(n, len(text), dtype=torch.bool)
    frozen[:, gap] = False
    torch.manual_seed(0)
    *_, z = method.sample(exact, torch.where(frozen, x, method.process.mask), frozen, 4)
    every = x.repeat(LANGUAGE.V, 1)
    every[:, gap] = torch.arange(LANGUAGE.V)
    law = LANGUAGE.log_prob(every).softmax(0)
    seen = torch.bincount(z[:, gap], minlength=LANGUAGE.V) / n
    assert ((seen - law).abs() < 5 * (law * (1 - law) / n).sqrt() + 4 / n).all()     # rare words: four draws are luck
    singular, plural = (law[LANGUAGE.words.index(word)] for word in ("sleeps", "sleep"))
    assert singular > 100 * plural
