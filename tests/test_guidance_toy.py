"""The oracle of the toy language takes labels: bounds, samples and classifiers of a topic, against the exact ones."""
import pytest
import torch

import claims.guidance as claim
from bounds import estimate
from data.toy import ToyCorpus
from diffusion import corrupt
from evaluate import by_noise, entropy_of
from guidance import by_classifier, by_label
from masked import Absorbing
from methods import METHODS, SAMPLERS, make_method
from oracle import classifier, exact, oracle
from quality import quality
from sample import generate
from uniform import Hybrid, Uniform

CORPUS = ToyCorpus(block_size=16)
LANGUAGE = CORPUS.language
V, K = LANGUAGE.V, LANGUAGE.n_topics


def denoiser_of(name):
    method = make_method(name, V)
    return method, oracle(LANGUAGE, method)


@pytest.mark.parametrize("name", METHODS)
def test_told_the_topic_the_oracles_bound_is_the_exact_conditional_entropy(name):
    """and told none, it is the oracle that knows no labels, to the bit."""
    method, exact = denoiser_of(name)
    x, _, label = CORPUS.example_windows("val", 150)
    target = -LANGUAGE.log_prob(x, label).mean() / 16
    nats, error = estimate(method, exact, x, draws=1 if name == "ar" else 3, batch_size=150, label=label)
    assert abs(nats - target) < (1e-6 if name == "ar" else 4 * error)
    none, plain, known = (estimate(method, exact, x[:80], label=y) for y in (torch.full((80,), K), None, label[:80]))
    assert none == plain and known[0] < plain[0] - 0.02                 # on the same noise


def test_the_entropy_given_the_topic_is_that_of_texts_of_known_topics():
    told, error = entropy_of(CORPUS, told=True)
    x, topic = LANGUAGE.sample(20_000, 16, torch.Generator().manual_seed(0), return_topic=True)
    exact = -LANGUAGE.log_prob(x, topic) / 16                                                           # (n,)
    assert abs(told - exact.mean()) < 4 * exact.std() / 20_000 ** 0.5 and error < 0.001
    assert told < entropy_of(CORPUS)[0] - 0.05


@pytest.mark.parametrize("name, sampler, steps", [
    ("ar", "ancestral", 1), ("mdlm", "first-hitting", 16), ("bd3lm", "first-hitting", 4), ("pgm", "first-hitting", 16),
    ("udlm", "ancestral", 24), ("gidd", "ancestral", 24)])
def test_at_strength_one_the_samples_of_a_topic_are_the_topics(name, sampler, steps):
    """-log p(x | topic) of samples of all four topics is that of texts of the language, and p(topic | x) too."""
    method, exact = denoiser_of(name)
    torch.manual_seed(0)
    n = 200
    label = torch.arange(n) % K
    denoiser, walk = by_label(method, exact, SAMPLERS[sampler], label, K, 1.0)
    x = generate(method, denoiser, n, 16, steps, walk)
    real = LANGUAGE.sample(8000, 16, topic=torch.arange(8000) % K)
    bias = 0.02 if sampler == "ancestral" and name != "ar" else 0.0      # the cost of so few steps
    for value in (lambda x, y: -LANGUAGE.log_prob(x, y) / 16,
                  lambda x, y: LANGUAGE.topic_posterior(x).gather(1, y[:, None])[:, 0]):
        ours, theirs = value(x, label), value(real, torch.arange(8000) % K)
        error = (ours.var() / n + theirs.var() / 8000) ** 0.5
        assert abs(ours.mean() - theirs.mean()) < 4 * error + bias


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("md4", "radd", "duo")])    # noise as others
def test_every_method_is_guided_by_its_labels_and_more_strength_gives_more(name):
    """p(topic | text) of samples at strength 0, 1 and 4; with few texts, of a rare topic."""
    method, exact = denoiser_of(name)
    school, means = torch.tensor([3]), []
    for gamma in (0.0, 1.0, 4.0):
        torch.manual_seed(0)
        denoiser, walk = by_label(method, exact, SAMPLERS["ancestral"], school, K, gamma)
        x = generate(method, denoiser, 40, 12, 6, walk)
        means.append(float(LANGUAGE.topic_posterior(x)[:, 3].mean()))
    assert means[0] < 0.25 and means[1] > 0.5 and means[2] > max(0.9, means[1])


@pytest.mark.parametrize("name, order", [("mdlm", "first"), ("mdlm", "exact"), ("udlm", "first"), ("gidd", "first"),
                                         ("pgm", "first"), ("ar", "first")])
def test_every_method_is_guided_by_a_classifier_without_labels(name, order):
    """Under masks (39) is timid with the exact classifier: for a rare word, a change of p(v | y) / p(v) is one of
    p(v | y) - p(v) to it. (A trained one is closer to linear.)"""
    method, exact = denoiser_of(name)
    judge = classifier(LANGUAGE, getattr(method, "process", Absorbing(V)))
    n, L = (4, 6) if order == "exact" or name == "ar" else (40, 16)
    torch.manual_seed(0)
    denoiser, walk = by_classifier(method, exact, SAMPLERS["ancestral"], torch.tensor([3]), 3.0, judge, order, L)
    x = generate(method, denoiser, n, L, 8, walk)
    least = 0.3 if order == "first" and name in ("mdlm", "pgm") else 0.5
    assert LANGUAGE.topic_posterior(x)[:, 3].mean() > least             # of all texts a tenth are of this topic


@pytest.mark.parametrize("process", [Absorbing(V), Uniform(V), Hybrid(V, 0.3)], ids=["mask", "uniform", "hybrid"])
def test_the_exact_classifier_is_bayes_rule_over_all_texts(process):
    """Two words: 12,769 texts with their exact probabilities, times what each noisy token says of it."""
    texts = torch.cartesian_prod(torch.arange(V), torch.arange(V))                                      # (V^2, 2)
    log_p = torch.stack([LANGUAGE.log_prob(texts, k) for k in range(K)]) + LANGUAGE.prior.log()[:, None]  # (K, V^2)
    torch.manual_seed(0)
    t = torch.tensor([[0.3, 0.8], [0.5, 0.5], [0.9, 0.2]], dtype=torch.float64)
    z = corrupt(process, texts[[5, 700, 9000]], t)
    evidence = (process.alpha(t)[..., None] * (texts.T == z[..., None]) + process.b(t, z)[..., None]).prod(1)
    joint = (log_p.exp() * evidence[:, None]).sum(-1)                                                   # (3, K)
    ours = classifier(LANGUAGE, process)(z, t)
    torch.testing.assert_close(ours.exp(), joint / joint.sum(-1, keepdim=True), atol=1e-7, rtol=1e-7)
    same = t[:, :1].expand(3, 1)
    soft = torch.nn.functional.one_hot(z, process.V).double().requires_grad_()
    torch.testing.assert_close(classifier(LANGUAGE, process)(soft, same), classifier(LANGUAGE, process)(z, same))
    assert torch.autograd.grad(classifier(LANGUAGE, process)(soft, same)[:, 0].sum(), soft)[0].abs().sum() > 0


def test_agreement_is_told_of_samples_and_of_held_out_text_alike():
    x, _, label = CORPUS.example_windows("val", 500)
    rows = {what: mean for what, mean, _ in quality(x[label == 1], CORPUS, None, 64, torch.tensor([1]))}
    exact = LANGUAGE.topic_posterior(x[label == 1])[:, 1].mean()
    assert rows["exact p(class | text)"] == pytest.approx(float(exact)) and len(rows) == 4
    assert rows["exact -log p given the class, nats/token"] < rows["exact -log p, nats/token"]


def test_the_exact_classifier_beats_any_other_at_every_level_of_noise():
    method = make_method("classifier", V, noise_of="udlm")
    exact = classifier(LANGUAGE, method.process)
    for other in (lambda z, t: 0.5 * exact(z, t), lambda z, t: 3 * exact(z, t), lambda z, t: exact(z, 0.7 * t)):
        rows = by_noise(method, other, CORPUS, 400, torch.device("cpu"), batch_size=400)
        assert all(row["exact_nats"] < row["nats"] + 0.02 for row in rows)
        assert all(row["exact_accuracy"] > row["accuracy"] - 0.03 for row in rows)
        assert sum(row["nats"] - row["exact_nats"] for row in rows) > 0.02


def test_the_claim_runs_to_its_table_and_its_picture(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claim, "trained", lambda config, name, **flags: exact(flags["method"]))
    claim.toy(claim.Config(strengths="0,3", steps="2", num_samples=24, out_dir="claims", figure="docs/guidance.png"))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "strength" in line]
    assert len(rows) == 8 and (tmp_path / "docs/guidance.png").stat().st_size > 10_000
    assert all(float(strong[4]) > float(none[4]) + 0.3 for none, strong in zip(rows[::2], rows[1::2]))
