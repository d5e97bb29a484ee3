"""Guidance by gradients: (11.6) to (11.9) to rounding, and the law of guided texts in the world.

gradients.npz: `lang/*` is a hidden Markov model of two topics by another program; `tess2/*` and
`ssd/ctr_*` were computed with public code, or with it put right (REF_); `control/*` is Adagrad.
"""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import world
from bounds import close
from references import Figures
from world import CLASS, JOINT, LANGUAGE, TEXTS, L, N, P

from data.toy import Toy, toy_language
from diffusion import ancestral
from flags import UserError
from gaussian import EmbeddingSpace, signal
from methods import METHODS, make_method
from methods.evidence import Evidence
from oracle import exact_classifier
from samplers import make_sampler
from samplers.generate import generate
from samplers.gradients import (
    GuidedProcess,
    climb,
    descend,
    evidence_gradient,
    gradient_of,
    guide_by_gradients,
)

figure = Figures("gradients")
SOFT = [name for name in METHODS if make_method(name, 8).draw_evidence]
ROWS = [name for name in SOFT if isinstance(make_method(name, 8).process, EmbeddingSpace)]
ONE = torch.tensor([1])  # the label of class 1
OF_ONE = JOINT[1] / JOINT[1].sum()  # (27,) p(x | y = 1)
JUDGE = exact_classifier(LANGUAGE, None)


def guided(method, sampler=ancestral, label=ONE, judge=JUDGE, **flags):
    flags = {"guidance": 1.0, "gradient": "noisy", "gradient_steps": 1, **flags}
    return guide_by_gradients(SimpleNamespace(**flags), method, sampler, label, judge)


def parts(name, n=40):
    """A method in float64, and noisy texts of the world, of which every third has its first token
    given. -> method, its exact denoiser, z (n, L, D), t (n, L), at (n, L)"""
    method = make_method(name, N, dim=4, self_condition=0.0)
    method.process.double()
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, n, replacement=True)]  # (n, L)
    frozen = (torch.arange(n)[:, None] % 3 == 0) & (torch.arange(L) == 0)  # (n, L)
    e = method.process.rows()[x]  # (n, L, D)
    z, t = method.process.noisy(e, torch.rand(n, 1).double(), frozen)  # (n, L, D), (n, L)
    z = torch.where(frozen[..., None], e, z.double())  # (n, L, D)
    return method, method.oracle(LANGUAGE), z, t, ~frozen


# ---- (11.6) and (11.7)

def test_the_gradient_in_evidence_is_what_the_topic_says_of_each_word():
    """A hidden Markov model of 256 texts: as another program has it, and by its own posterior."""
    hmm = Toy.__new__(Toy)
    for name in ("prior", "transition", "emission", "initial"):
        setattr(hmm, name, figure(f"lang/{name}"))
    hmm.n_topics, hmm.V = len(hmm.prior), hmm.emission.shape[-1]
    hmm.by_word = hmm.emission.permute(2, 0, 1).contiguous()  # (V, K, Q)
    y = figure("lang/y")  # (6, 4, 4)
    weights = (y - y.amax(-1, keepdim=True)).exp()  # (6, 4, 4)
    close(hmm.topic_posterior(weights).log(), figure("lang/REF_log_topic"))
    for k in range(2):
        log_p = lambda a: hmm.topic_posterior(a)[:, k].log()
        found = evidence_gradient(log_p, weights)  # (6, 4, 4)
        close(found, figure("lang/REF_grad_log_topic")[k])
        close(figure("lang/REF_posterior") + found, figure("lang/REF_posterior_topic")[k])
        close(found, evidence_gradient(log_p, 7.0 * weights))  # a factor of a token is void


def test_on_the_toy_language_the_shift_is_the_posterior_given_the_topic():
    language = toy_language()
    torch.manual_seed(0)
    weights = torch.rand(3, 6, language.V).double() ** 20  # (n, L, V)
    weights[0, 2] = F.one_hot(torch.tensor(5), language.V)  # a given word
    log_p = lambda a: exact_classifier(language, None)(a, None)[:, 3]
    shift = evidence_gradient(log_p, weights)  # (n, L, V)
    of = lambda topic: language.posterior(weights, leave_one_out=False, topic=topic)  # (n, L, V)
    close(of(None) + shift, of(3))
    assert shift.abs().max() > 0.01 and (shift[0, 2] == 0).all()


@pytest.mark.parametrize("name", ROWS)
def test_a_guided_prediction_is_that_of_a_network_that_knows_the_class(name):
    """In words and in rows, with tokens given and without."""
    method, exact, z, t, at = parts(name)
    told = lambda z, t, at: exact(z, t, at=at, label=ONE.expand(len(z)))
    right = method.process.predict(told, z, t, at)
    found = GuidedProcess(method, JUDGE, ONE, 1.0).predict(exact, z, t, at)
    plain = method.process.predict(exact, z, t, at)
    close(found.x_hat, right.x_hat)
    assert (plain.x_hat - right.x_hat).abs().max() > 0.01
    if found.log_p is not None:
        close(found.log_p.exp(), right.log_p.exp())
    alpha, sigma = (a.expand_as(at)[at][:, None] for a in signal(method.process.gamma(t)))
    process = GuidedProcess(method, JUDGE, ONE, 1.0)
    slope = gradient_of(lambda z: process.log_class(method.likelihood(z, t), t), z)[at]  # (N, D)
    close(plain.x_hat + sigma ** 2 / alpha * slope, right.x_hat)  # (11.7)


@pytest.mark.parametrize("name", [name for name in SOFT
                                  if isinstance(make_method(name, 8).process, Evidence)])
def test_guided_evidence_is_that_of_a_network_that_knows_the_class(name):
    """Methods of log-evidence: their walks ask for log e_hat."""
    method, n = make_method(name, N), 20
    exact, torch_y = method.oracle(LANGUAGE), 3 * torch.randn(n, L, N).double()  # (n, L, N)
    frozen = (torch.arange(n)[:, None] % 3 == 0) & (torch.arange(L) == 0)  # (n, L)
    y = torch.where(frozen[..., None], method.process.given(TEXTS[:n]).double(), torch_y)
    t = torch.rand(n, 1).double().expand(n, L).masked_fill(frozen, 0)  # (n, L)
    told = lambda z, t, at: exact(z, t, at=at, label=ONE.expand(len(z)))
    right = method.process.log_words(told, y, t, ~frozen)  # (N, V)
    found = GuidedProcess(method, JUDGE, ONE, 1.0).log_words(exact, y, t, ~frozen)  # (N, V)
    close(found.exp(), right.exp())
    assert (found - method.process.log_words(exact, y, t, ~frozen)).abs().max() > 0.01
    with pytest.raises(UserError, match=f"noisy rows, which {name} does not have"):
        guided(method, gradient="control")


def law(method, sampler, n=700, steps=24, **options):
    """Texts of the exact denoiser. -> (n, L)"""
    torch.manual_seed(0)
    exact = method.oracle(LANGUAGE)
    return generate(method, exact, n, L, steps, sampler, **options)  # (n, L)


@pytest.mark.parametrize("name, sampler", [("plaid", "ancestral"), ("sed", "ddim"),
                                           ("plaid", "word-steps"), ("diffusion_lm", "ddpm"),
                                           ("bfn", "ancestral"), ("tess", "ode")])
def test_guided_texts_have_the_law_of_their_class(name, sampler):
    """At strength 1, and p(y | x) as in texts of the class: no admiring, a proof."""
    method = make_method(name, N, dim=4, self_condition=0.0)
    x = law(method, guided(method, make_sampler(sampler, method)))  # (n, L)
    far, error = world.distance(world.numbers(x, N), OF_ONE)
    assert far < 4 * error + 0.02
    share = CLASS[world.numbers(x, N), 1]  # (n,)
    assert abs(share.mean() - OF_ONE @ CLASS[:, 1]) < 4 * share.std() / len(x) ** 0.5 + 0.01
    assert world.distance(world.numbers(x, N), P)[0] > 0.1


@pytest.mark.parametrize("name, gradient, strengths", [
    ("plaid", "noisy", (0, 1, 4)), ("diffusion_lm", "noisy", (0, 1, 4)),
    ("sed", "clean", (0, 1, 20)), ("bfn", "clean", (0, 1, 20)),
    ("diffusion_lm", "control", (0, 1, 5))])
def test_more_strength_gives_more_of_the_class_and_none_gives_the_sampler_back(name, gradient,
                                                                              strengths):
    method, shares = make_method(name, N, dim=4, self_condition=0.0), []
    for strength in strengths:
        sampler = guided(method, guidance=float(strength), gradient=gradient, gradient_steps=2)
        assert (sampler is ancestral) == (strength == 0)
        x = law(method, sampler, n=400, steps=12)  # (n, L)
        shares.append(CLASS[world.numbers(x, N), 1].mean())
    assert shares[0] + 0.03 < shares[1] < shares[2] - 0.03, shares


# ---- (11.8)

def test_steps_on_logits_are_those_of_tess2_with_its_gradient_cleared():
    """Rows of the context are certain. As published, step k moves by the sum of k gradients."""
    logits, span, ids = (figure(f"tess2/{key}") for key in ("logits", "span", "ids"))
    known, right = F.one_hot(ids, 9).float(), figure("tess2/REF_logits_after_1_to_5_steps")

    def reward(p):
        text = known.masked_scatter(span[..., None], p[span])  # (4, 6, 9)
        return (torch.tanh((text @ figure("tess2/reward_emb")).mean(1))
                @ figure("tess2/reward_w"))[:, 0]  # (4,)
    for k in range(5):
        ours = climb(logits, reward, float(figure("tess2/lr")), k + 1)  # (4, 6, 9)
        close(ours, right[k], 1e-5)
    public = figure("tess2/logits_after_1_to_5_steps_public_accumulates")
    close(ours := climb(logits, reward, 0.5, 1), public[0], 1e-5)
    close(climb(logits, reward, 0.5, 2) - logits + ours - logits, public[1] - logits, 1e-3)
    assert (public[1] - right[1]).abs().max() > 100 * 1e-5
    assert torch.equal(climb(logits, reward, 0.0, 3), logits)


def test_a_step_of_ssd_lm_is_ours_at_its_rate_over_the_size_of_the_batch():
    """It takes the mean loss of a batch: the same flag is half as strong in twice the batch."""
    logits, head = figure("ssd/logits"), figure("ssd/ctr_W")  # (4, 6, 9), (5, 3)

    def reward(p):
        return (torch.tanh((p @ figure("ssd/ctr_emb")).mean(1)) @ head).log_softmax(-1)[:, 2]
    close(climb(logits, reward, float(figure("ssd/ctr_lr")) / 4, 1), figure("ssd/ctr_logits_out"),
          1e-5)
    close(-reward(logits.softmax(-1)).mean(), figure("ssd/ctr_loss").float(), 1e-5)


@pytest.mark.parametrize("clean", [False, True])
def test_half_a_batch_is_guided_as_in_the_whole(clean):
    method, exact, z, t, at = parts("plaid")
    process = GuidedProcess(method, JUDGE, ONE, 3.0, clean, 2)
    whole = process.predict(exact, z, t, at).x_hat
    half = process.predict(exact, z[:20], t[:20], at[:20]).x_hat
    close(half, whole[:len(half)], 1e-12)


def test_soft_text_is_certain_at_given_tokens_and_at_time_0():
    method, exact, z, t, at = parts("plaid")
    told = []

    def judge(p, t):
        told.append((p, t))
        return JUDGE(p, t)
    GuidedProcess(method, judge, ONE, 1.0, True, 2).predict(exact, z, t, at)
    assert len(told) == 2 and all((t == 0).all() for _, t in told)
    close(told[0][0].sum(-1), torch.ones(40, L).double())
    assert ((told[1][0][~at] == 0) | (told[1][0][~at] == 1)).all()
    assert (told[0][0][at] != told[1][0][at]).any()


# ---- (11.9)

def test_one_adagrad_takes_other_steps_than_a_fresh_one_each_time():
    z, w = figure("control/x"), figure("control/w")  # (2, 3, 4), (4,)
    cost = lambda z: torch.tanh(z @ w).square()  # (2, 3)
    one, fresh = figure("control/REF_one_adagrad_trace"), figure("control/fresh_adagrad_trace")
    for k in range(1, 4):
        close(descend(z, cost, torch.zeros_like(z), 0.1, k)[0], one[k], 1e-6)
    found = z
    for k in range(1, 4):
        found, _ = descend(found, cost, torch.zeros_like(z), 0.1, 1)
        close(found, fresh[k], 1e-6)
    steps = fresh.diff(dim=0).abs()  # (3, 2, 3, 4) the rate, but for Adagrad's 1e-10
    close(steps, torch.full_like(steps, 0.1), 1e-4)


def test_control_keeps_what_is_given_and_is_for_steps_that_draw():
    method = make_method("sed", N, dim=4, self_condition=0.0)
    sampler = guided(method, make_sampler("ddpm", method, variance="large"), gradient="control",
                     gradient_steps=3)
    assert sampler.variance == "large"
    given = TEXTS[[5, 20]].repeat(30, 1)  # (60, L)
    frozen = torch.tensor([True, False, True]).expand(60, -1)  # (60, L)
    x = law(method, sampler, 60, 8, given=given, frozen=frozen)  # (60, L)
    assert torch.equal(x[frozen], given[frozen])
    with pytest.raises(UserError, match="take --sampler ddpm"):
        guided(method, make_sampler("ddim", method), gradient="control")
    with pytest.raises(UserError, match="diffusion_lm predicts rows: take --gradient noisy"):
        guided(make_method("diffusion_lm", N, dim=4), gradient="clean")
