"""The oracle of the toy language takes labels: bounds, samples and classifiers of a topic."""
import functools

import pytest
import torch
import torch.nn.functional as F

from data.toy import ToyCorpus
from diffusion import Absorbing, Hybrid, Uniform, ancestral, corrupt
from evaluation.held_out import classifier_rows, entropy_of
from evaluation.likelihood import estimate_bound
from evaluation.sample_quality import rate_samples
from flags import load_row
from kinds import bounds_differ, in_place
from methods import METHODS, make_method
from oracle import exact_classifier
from samplers import make_sampler
from samplers.generate import generate
from samplers.guidance import guide_by_classifier, guide_by_label

DATA = ToyCorpus(block_size=16)
LANGUAGE = DATA.language
V, K = LANGUAGE.V, LANGUAGE.n_topics
WRITERS = in_place(name for name in METHODS if not load_row(METHODS, name).classifies)


def with_oracle(name):
    method = make_method(name, V)
    return method, method.oracle(LANGUAGE)


def alike(name):
    """What guidance depends on: methods that share it differ in training, not here."""
    method = make_method(name, V)
    return type(method.process), method.samplers, method.block_length, type(method.network)


DIFFERENT = list({alike(name): name for name in reversed(WRITERS)}.values())


# ---- by the topic

@pytest.mark.parametrize("name", bounds_differ(WRITERS))
def test_told_the_topic_the_oracles_bound_is_the_exact_conditional_entropy(name):
    """And told none, it is the oracle that knows no labels, to the bit; so is one whose loss is no
    bound."""
    method, denoiser = with_oracle(name)
    x, _, label = DATA.example_windows("val", 60)  # (n, L), (n,)
    few = x[:3]
    none = torch.full((len(few),), K)  # (n,)
    none, plain = (estimate_bound(method, denoiser, few, label=y) for y in (none, None))
    assert none == plain
    if not method.bounded:
        assert plain != estimate_bound(method, denoiser, few, label=label[:3])
        return
    target = -LANGUAGE.log_prob(x, label).mean() / 16  # ()
    draws = 1 if method.exact else 3
    nats, error = estimate_bound(method, denoiser, x, draws, 60, label=label)
    assert abs(nats - target) < (1e-6 if method.exact else 4 * error)
    assert nats < estimate_bound(method, denoiser, x, draws, 60)[0] - 0.02  # on the same noise


def test_the_entropy_given_the_topic_is_that_of_texts_of_known_topics():
    told, error = entropy_of(DATA, given_class=True)
    x, topic = LANGUAGE.sample(20_000, 16, torch.Generator().manual_seed(0), return_topic=True)
    exactly = -LANGUAGE.log_prob(x, topic) / 16  # (n,)
    assert abs(told - exactly.mean()) < 4 * exactly.std() / 20_000 ** 0.5 and error < 0.001
    assert told < entropy_of(DATA)[0] - 0.05


VALUES = (lambda x, y: -LANGUAGE.log_prob(x, y) / 16,
          lambda x, y: LANGUAGE.topic_posterior(x).gather(1, y[:, None])[:, 0])


@functools.cache
def real_values():
    """VALUES of 8,000 texts of all topics. -> (8000,) each"""
    topics = torch.arange(8000) % K  # (8000,)
    x = LANGUAGE.sample(8000, 16, torch.Generator().manual_seed(1), topics)  # (8000, 16)
    return [value(x, topics) for value in VALUES]


@pytest.mark.parametrize("name, sampler, steps", [
    ("ar", "ancestral", 1), ("mdlm", "first-hitting", 16), ("bd3lm", "first-hitting", 4),
    ("udlm", "ancestral", 24)])
def test_at_strength_one_the_samples_of_a_topic_are_the_topics(name, sampler, steps):
    """-log p(x | topic) of samples of all four topics is that of texts of the language, and
    p(topic | x) too."""
    method, denoiser = with_oracle(name)
    torch.manual_seed(0)
    n = 200
    label = torch.arange(n) % K  # (n,)
    guided = guide_by_label(method, denoiser, make_sampler(sampler, method), label, K, 1.0)
    x = generate(method, guided[0], n, 16, steps, guided[1])  # (n, 16)
    bias = 0.02 if sampler == "ancestral" and not method.exact else 0.0  # the cost of so few steps
    for value, theirs in zip(VALUES, real_values()):  # theirs (8000,)
        ours = value(x, label)  # (n,)
        error = (ours.var() / n + theirs.var() / 8000) ** 0.5
        assert abs(ours.mean() - theirs.mean()) < 4 * error + bias


@pytest.mark.parametrize("name", [n for n in DIFFERENT if load_row(METHODS, n).takes_steps])
def test_every_method_is_guided_by_its_labels_and_more_strength_gives_more(name):
    """p(topic | text) of samples at strength 0, 1 and 4; with few texts, of a rare topic."""
    method, denoiser = with_oracle(name)
    school, means = torch.tensor([3]), []
    for gamma in (0.0, 1.0, 4.0):
        torch.manual_seed(0)
        guided = guide_by_label(method, denoiser, ancestral, school, K, gamma)
        x = generate(method, guided[0], 40, 12, 6, guided[1])  # (40, 12)
        means.append(float(LANGUAGE.topic_posterior(x)[:, 3].mean()))
    assert means[0] < 0.25 and means[1] > 0.5 and means[2] > max(0.9, means[1])


# ---- by a classifier

@pytest.mark.parametrize("name, order", [
    ("mdlm", "first"), ("mdlm", "exact"), ("udlm", "first"), ("gidd", "first"), ("pgm", "first"),
    ("ar", "first")])
def test_every_method_is_guided_by_a_classifier_without_labels(name, order):
    """Under masks (11.4) is timid with the exact classifier: for a rare word, a change of
    p(v | y) / p(v) is one of p(v | y) - p(v) to it. (A trained one is closer to linear.)"""
    method, denoiser = with_oracle(name)
    judge = exact_classifier(LANGUAGE, method.classifier_process)
    n, L = (4, 6) if order == "exact" or method.exact else (40, 16)
    torch.manual_seed(0)
    guided = guide_by_classifier(method, denoiser, ancestral, torch.tensor([3]), 3.0, judge, order,
                                 L)
    x = generate(method, guided[0], n, L, 8, guided[1])  # (n, L)
    least = 0.3 if order == "first" and method.opens_masks else 0.5
    # of all texts a tenth are of this topic
    assert LANGUAGE.topic_posterior(x)[:, 3].mean() > least


@pytest.mark.parametrize("process", [Absorbing(V), Uniform(V), Hybrid(V, 0.3)],
                         ids=["mask", "uniform", "hybrid"])
def test_the_exact_classifier_is_bayes_rule_over_all_texts(process):
    """Two words: 12,769 texts with their exact probabilities, times what each noisy token says of
    it."""
    texts = torch.cartesian_prod(torch.arange(V), torch.arange(V))  # (V^2, 2)
    log_p = torch.stack([LANGUAGE.log_prob(texts, k) for k in range(K)])  # (K, V^2)
    log_p = log_p + LANGUAGE.prior.log()[:, None]  # (K, V^2)
    torch.manual_seed(0)
    t = torch.tensor([[0.3, 0.8], [0.5, 0.5], [0.9, 0.2]], dtype=torch.float64)  # (3, 2)
    z = corrupt(process, texts[[5, 700, 9000]], t)[..., None]  # (3, 2, 1)
    evidence = process.alpha(t)[..., None] * (texts.T == z) + process.b(t[..., None], z)
    joint = (log_p.exp() * evidence.prod(1)[:, None]).sum(-1)  # (3, K)
    judge, z = exact_classifier(LANGUAGE, process), z[..., 0]  # (3, 2)
    torch.testing.assert_close(judge(z, t).exp(), joint / joint.sum(-1, keepdim=True),
                               atol=1e-7, rtol=1e-7)
    same = t[:, :1]  # (3, 1)
    soft = F.one_hot(z, process.V).double().requires_grad_()  # (3, 2, V)
    torch.testing.assert_close(judge(soft, same), judge(z, same))
    slope, = torch.autograd.grad(judge(soft, same)[:, 0].sum(), soft)  # (3, 2, V)
    assert slope.abs().sum() > 0


def test_agreement_is_told_of_samples_and_of_held_out_text_alike():
    x, _, label = DATA.example_windows("val", 500)  # (n, L), (n,)
    x = x[label == 1]  # (n', L)
    rows = {what: mean for what, mean, _ in rate_samples(x, DATA, None, 64, torch.tensor([1]))}
    exactly = LANGUAGE.topic_posterior(x)[:, 1].mean()
    assert rows["exact p(class | text)"] == pytest.approx(float(exactly)) and len(rows) == 4
    assert rows["exact -log p given the class, nats/token"] < rows["exact -log p, nats/token"]


def test_the_exact_classifier_beats_any_other_at_every_level_of_noise():
    method = make_method("classifier", V, noise_of="udlm")
    judge = exact_classifier(LANGUAGE, method.process)
    for other in (lambda z, t: 0.5 * judge(z, t), lambda z, t: 3 * judge(z, t),
                  lambda z, t: judge(z, 0.7 * t)):
        rows = classifier_rows(method, other, DATA, 400, torch.device("cpu"), batch_size=400)
        assert all(row["exact_nats"] < row["nats"] + 0.02 for row in rows)
        assert all(row["exact_accuracy"] > row["accuracy"] - 0.03 for row in rows)
        assert sum(row["nats"] - row["exact_nats"] for row in rows) > 0.02
