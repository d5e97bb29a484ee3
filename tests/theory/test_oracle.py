"""
The toy language as the judge of all methods: with the exact denoiser, losses equal the entropy and
samples follow the language. Nothing is trained, so any gap is an error of the loss or the sampler.
"""
import functools
import os

import pytest
import torch

from data.toy import ToyCorpus
from diffusion import corrupt, likelihood, posterior_x0
from flags import UserError, load_row
from kinds import in_place, noises_differ
from methods import METHODS, make_method
from oracle import exact
from samplers import make_sampler
from samplers.generate import generate

DATA = ToyCorpus(block_size=16)
LANGUAGE = DATA.language
MODELS = in_place(name for name in METHODS if not load_row(METHODS, name).classifies)
BOUNDED = [name for name in MODELS if load_row(METHODS, name).bounded
           and name != "rdlm"]  # its walks take seconds: test_rdlm.py has fewer
FLAGS = dict(self_condition=0.0, gamma_0=-3.0)
# batches of 200 texts for an error of half a percent; 16 if not said
BATCHES = {"ar": 2, "genmd4": 24, "sedd": 58, "gidd": 80, "udlm": 80, "plaid": 44, "bfn": 60}
SLOW = pytest.mark.skipif("PALIMPSEST_SLOW" not in os.environ,
                          reason="200 steps take 13 s: set PALIMPSEST_SLOW=1")


def model_of(name):
    """-> a method for the toy language, its oracle"""
    method = make_method(name, DATA.encoding.n_vocab, **FLAGS)
    method.on_data(DATA)
    if name == "genmd4":  # another schedule for each word
        method.w_raw = torch.linspace(0.2, 2.0, LANGUAGE.V)[torch.randperm(LANGUAGE.V)]
    return method, method.oracle(LANGUAGE)


@functools.cache
def batches():
    """Held-out texts, and the exact -log p of each in nats/token, in batches of 200."""
    x = DATA.windows("val", 200 * max(BATCHES.values()))
    return [(part, -LANGUAGE.log_prob(part) / 16) for part in x.split(200)]


@functools.cache
def excess(name):
    """Mean of nelbo beyond the exact -log p of each text, nats/token, and its standard error.

    In a batch there is one time in each stratum, so its mean varies less than that of its texts.
    """
    method, denoiser = model_of(name)
    torch.manual_seed(0)
    means = torch.stack([(method.nelbo(denoiser, x).double().mean(-1) - exact).mean()
                         for x, exact in batches()[:BATCHES.get(name, 16)]])  # (n,)
    return means.mean().item(), (means.std() / len(means) ** 0.5).item()


@pytest.mark.parametrize("name", noises_differ(BOUNDED))
def test_the_bound_of_the_oracle_is_the_entropy_within_four_standard_errors(name):
    """Each of at most half a percent of the entropy. Methods whose noise is of one kind ask one
    posterior of the language; what they make of it is tested in the world: test_methods.py."""
    more, error = excess(name)
    assert error < 0.005 * LANGUAGE.entropy(16)[0] and abs(more) < 4 * error + 1e-9


def remembered(denoiser):
    """The same denoiser, which keeps its outputs for the last two inputs."""
    last = {}

    def call(z, t, at=None, **layout):
        key = z.numpy().tobytes()
        if key not in last:
            if len(last) == 2:
                last.pop(next(iter(last)))
            last[key] = denoiser(z, t, at, **layout)
        return last[key]
    return call


@pytest.mark.parametrize("name", noises_differ(BOUNDED))
def test_any_other_denoiser_gives_more(name):
    """Sharper, flatter, a tenth forgotten: each costs 0.02 nats/token, and five standard errors.

    The noise is the same for all, so the exact output is computed once.
    """
    method, denoiser = model_of(name)
    denoiser, x = remembered(denoiser), DATA.windows("val", 1000)

    def draw(change):
        torch.manual_seed(0)
        return method.nelbo(lambda *a, **layout: change(denoiser(*a, **layout)), x).mean(-1)  # (n,)

    def forget(p):
        return (0.9 * p.softmax(-1) + 0.1 / p.shape[-1]).log()
    least = draw(lambda p: p)
    for change in (lambda p: 1.7 * p, lambda p: 0.6 * p, forget):
        more = draw(lambda p: change(p).log_softmax(-1)) - least  # (n,) nats
        assert more.mean() > max(5 * more.std() / len(x) ** 0.5, 0.02)


@pytest.mark.parametrize("name, sampler, steps", [
    ("ar", "ancestral", 1), ("mdlm", "first-hitting", 16), ("udlm", "ancestral", 48),
    ("gidd", "ancestral", 48),  # psi: test_psi.py
    pytest.param("mdlm", "ancestral", 200, marks=SLOW)])
def test_many_steps_through_the_oracle_speak_the_language(name, sampler, steps):
    """Likelihood, words, pairs and topics of samples are the language's, within four errors."""
    method, denoiser = model_of(name)
    torch.manual_seed(0)
    n = 400
    x = generate(method, denoiser, n, 16, steps, make_sampler(sampler, method))
    nats = -LANGUAGE.log_prob(x) / 16
    # the cost of so few steps, in nats or relative
    bias = 0 if sampler == "first-hitting" or method.exact else 0.02
    more, error = nats.mean() - LANGUAGE.entropy(16)[0], nats.std() / n ** 0.5
    assert -4 * error < more < 4 * error + bias
    mean, variance = statistics(x)
    error = (variance / n + reference()[1] / 20_000) ** 0.5  # (5,)
    assert ((mean - reference()[0]).abs() < 4 * error + bias * reference()[0]).all()


THE, DOG, STOP = (LANGUAGE.words.index(word) for word in ("the", "dog", "."))


def statistics(x):
    """Shares of two words and a pair of words, and two topics. -> means, variances (5,) each"""
    pair = (x[:, :-1] == THE) & (x[:, 1:] == DOG)  # (n, L - 1)
    words = [a.double().mean(-1) for a in (x == THE, x == STOP, pair)]  # (n,) each
    topics = LANGUAGE.topic_posterior(x)[:, [0, 3]].unbind(-1)  # (n,) each
    rows = torch.stack([*words, *topics])  # (5, n)
    return rows.mean(-1), rows.var(-1)


@functools.cache
def reference():
    return statistics(DATA.windows("train", 20_000))


def test_few_steps_cost_likelihood_and_more_steps_cost_less():
    """The sampler's own error, without any training."""
    for name in ("mdlm", "udlm", "gidd"):
        method, denoiser = model_of(name)
        torch.manual_seed(0)
        nats = [-LANGUAGE.log_prob(generate(method, denoiser, 100, 16, steps)).mean() / 16
                for steps in (1, 4, 32)]
        assert nats[0] > nats[1] + 0.1 > nats[2] + 0.2


@pytest.mark.parametrize("name", ["udlm", "gidd"])
def test_the_leave_one_out_distribution_times_the_own_evidence_is_the_posterior(name):
    """posterior_x0 against the recursion that never left the token's own evidence out."""
    method, denoiser = model_of(name)
    torch.manual_seed(0)
    x = DATA.windows("val", 20)
    t = torch.linspace(0.1, 0.9, 20, dtype=torch.float64)[:, None]
    z = corrupt(method.process, x, t)
    full = LANGUAGE.posterior(likelihood(method.process, z, t), leave_one_out=False)
    found = posterior_x0(method.process, denoiser(z, t).exp(), z, t)
    torch.testing.assert_close(found, full, atol=1e-9, rtol=1e-9)


def test_with_masks_given_words_steer_the_rest_exactly():
    """Infilling: how often each word is drawn, against Bayes on exact log-probabilities."""
    method, denoiser = model_of("mdlm")
    text = "the dog that chases two cats sleeps .".split()
    x = torch.tensor([[LANGUAGE.words.index(word) for word in text]])  # (1, 8)
    gap, n = text.index("sleeps"), 4000  # the verb agrees with the dog, not with the cats
    frozen = torch.ones(n, len(text), dtype=torch.bool)
    frozen[:, gap] = False
    torch.manual_seed(0)
    *_, z = method.sample(denoiser, torch.where(frozen, x, method.process.mask), frozen, 4)
    every = x.repeat(LANGUAGE.V, 1)
    every[:, gap] = torch.arange(LANGUAGE.V)
    p = LANGUAGE.log_prob(every).softmax(0)
    seen = torch.bincount(z[:, gap], minlength=LANGUAGE.V) / n
    # four draws of a rare word are chance
    assert ((seen - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 4 / n).all()
    singular, plural = (p[LANGUAGE.words.index(word)] for word in ("sleeps", "sleep"))
    assert singular > 100 * plural


@pytest.mark.parametrize("name", MODELS)
def test_the_oracle_is_called_at_any_positions_with_any_text_given(name):
    """At t = 1 too, where a given word has no evidence under some schedules; and at no position."""
    method, denoiser = model_of(name)
    x, frozen = DATA.windows("val", 3), torch.arange(16).expand(3, -1) < 5
    torch.manual_seed(0)
    z = torch.where(frozen, x, method.prior(x.shape))
    for z in method.sample(denoiser, z, frozen, 2):
        assert (z == x)[frozen].all()
    assert (z < LANGUAGE.V).all()


@pytest.mark.parametrize("name", METHODS)
def test_an_oracle_comes_in_the_form_of_a_checkpoint(name):
    if load_row(METHODS, name).classifies:
        with pytest.raises(UserError, match="writes no text: name a language model"):
            exact(name)
        return
    model = exact(name)
    assert model.method.name == model.config.method == name and model.step == 0
    ends = model.method.any_length  # the end is a symbol more
    assert model.classes == list(DATA.classes) and model.encoding.n_vocab == LANGUAGE.V + ends
