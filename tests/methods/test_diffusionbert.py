"""Schedules by word frequency on 27 texts: the bound, what looks like one, and samples, as sums.

schedules_reference.npz, spindle/: a world p whose words have frequencies as in Zipf's law, its
counts, schedules, laws and figures, computed apart from this code. PUB_*: the public code of
DiffusionBERT (commit 19d7f49): the chances of T = 8 steps to keep a token, and its bound, whose
sampler is enumerated. A state is 16 z0 + 4 z1 + z2, with 3 for a mask.
"""
import math
from functools import cache
from types import SimpleNamespace

import numpy
import pytest
import torch
import world
from bounds import close, close_in_the_mean
from references import Figures
from world import TEXTS, L, N

from flags import UserError
from methods import make_method
from methods.base import inside

figure = Figures("schedules_reference")
STATES = torch.cartesian_prod(*[torch.arange(N + 1)] * L)  # (64, L)
MASKS = STATES == N  # (64, L)
WORDS = torch.arange(N)
FITS = MASKS[:, None] | (STATES[:, None] == TEXTS)  # (64, 27, L) the text may be behind it
ENTROPY = torch.special.entr(figure("spindle/p")).sum()
NODES, WEIGHTS = ((torch.from_numpy(a) + shift) / 2 for a, shift in
                  zip(numpy.polynomial.legendre.leggauss(32), (1, 0)))  # (32,) each
each_order = pytest.mark.parametrize("flags", [
    dict(spindle=0.3), dict(spindle=-0.3), dict(spindle=0.75), dict(rank_by="place"),
    dict(rank_by="place", spindle=-0.6)], ids=str)


@pytest.fixture(autouse=True)
def reference_world(monkeypatch):
    monkeypatch.setattr(world, "P", figure("spindle/p"))


def made(**flags):
    method = make_method("diffusionbert", N, **flags)
    method.use_counts(figure("spindle/counts"))
    return method


# ---- sums over texts and states

def places():
    return (torch.arange(L) + 0.5) / L  # (L,)


def shares(method, t):
    """m(t) of each token of each text. -> (27, L)"""
    return method.masked(t, TEXTS, places()).expand(27, L)


def joint(masked):
    """p(x) q(z | x), where masked (27, L) is the chance of each mask. -> (64, 27)"""
    return (torch.where(MASKS[:, None], masked, 1 - masked) * FITS).prod(-1) * figure("spindle/p")


def sum_by_word(weight):
    """The sum over texts with the word v at place l. weight (64, 27, L) -> (64, L, N)"""
    return torch.stack([(weight * (TEXTS == v)).sum(1) for v in range(N)], -1)


def law(masked):
    """p(x_l = v | z) with the pattern of masks as evidence. -> (64, L, N)"""
    p = sum_by_word(joint(masked)[..., None].expand(-1, -1, L))  # (64, L, N)
    return p / p.sum(-1, keepdim=True).clamp(min=1e-300)


def of_text(x_theta):
    """x_theta (64, L, N) at the words of each text. -> (64, 27, L)"""
    return torch.stack([x_theta[:, l, TEXTS[:, l]] for l in range(L)], -1)


def integral(masked, nats):
    """The mean of nats(t) (64, 27, L) at masks, over texts, noise and time. -> ()"""
    total = 0.0
    for t, weight in zip(NODES, WEIGHTS):
        score = torch.where(MASKS[:, None] & FITS.all(-1, keepdim=True), nats(t), 0.0)
        total = total + weight * (joint(masked(t))[..., None] * score).sum()
    return total


def mean_bound(method, x_theta):
    """(16.7) for x_theta(t) (64, L, N). -> () nats"""
    def nats(t):
        w_x = method.rate(t, TEXTS, places())  # (27, L)
        w = method.rate(t, WORDS, places()[:, None])  # (N,)|(L, 1)
        of_all = (w * x_theta(t)).sum(-1)[:, None]  # (64, 1, L)
        return of_all - w_x * of_text(x_theta(t)).clamp(min=1e-300).log() - w_x  # (64, 27, L)
    return integral(lambda t: shares(method, t), nats)


def mean_weighted(rate, masked, x_theta):
    """(16.9) for x_theta(t), and at its own least: x_theta(v) ~ the mean of w given v and z."""
    def least(t):
        p = sum_by_word(joint(masked(t))[..., None] * rate(t))  # (64, L, N)
        return p / p.sum(-1, keepdim=True).clamp(min=1e-300)  # (64, L, N)
    return [integral(masked, lambda t: -rate(t) * of_text(guess(t)).clamp(min=1e-300).log()).item()
            for guess in (x_theta, least)]


# ---- the schedule

def test_schedules_and_rates_are_those_of_the_reference():
    method, t = made(), figure("spindle/u")[:, None]  # (25, 1)
    close(method.c, figure("spindle/g"))
    close(1 - method.masked(t, WORDS, None), figure("spindle/alpha"))
    close(method.rate(t, WORDS, None), figure("spindle/weight"))


@each_order
def test_a_schedule_rises_from_0_to_1_at_its_rate(flags):
    method = made(**flags)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None, None].requires_grad_()
    m = method.masked(t, WORDS, places()[:, None]).expand(101, L, N)  # (101, L, N)
    assert (m[0] == 0).all() and (m.diff(dim=0) > 0).all()
    close(m[-1], torch.ones(L, N, dtype=torch.float64))
    for l, v in ((0, 0), (2, 2), (1, 1)):
        slope = torch.autograd.grad(m[1:, l, v].log().sum(), t, retain_graph=True)[0]
        w = method.rate(t, WORDS, places()[:, None]).expand(101, L, N)  # (101, L, N)
        close(w[1:, l, v].detach(), slope[1:, 0, 0])


def test_the_sign_of_lambda_decides_whether_rare_words_come_last_or_first():
    """Rare words are masked first where they are written last."""
    half = torch.tensor(0.5, dtype=torch.float64)
    masked = [made(spindle=s).masked(half, WORDS, None) for s in (0.3, 0.0, -0.3)]
    assert masked[0][2] > 0.5 > masked[0][0] and masked[2][2] < 0.5 < masked[2][0]
    close(masked[1], half.expand(N))
    left = made(rank_by="place").masked(half, WORDS, places())  # (L,)
    assert left[0] < 0.5 < left[2]


def test_only_the_schedule_by_text_changes_with_another_token():
    t = torch.tensor([[0.4]], dtype=torch.float64)
    for rank_by in ("word", "place", "text"):
        method = made(rank_by=rank_by)
        a, b = (method.masked(t, x, places()[:2]).expand(1, 2)[0, 0]
                for x in (torch.tensor([[1, 0]]), torch.tensor([[1, 2]])))
        assert (a == b) == (rank_by != "text") == method.bounded


@pytest.mark.parametrize("flags, says", [
    (dict(spindle=0.81), "is 0.321 (of words 2): -0.802 to 0.802 are possible here"),
    (dict(spindle=-2.8), "is 1.110 (of words 0, 1, 2): -0.802"),
    (dict(rank_by="place", spindle=0.64), "is 0.320: -0.636 to 0.636"),
    (dict(rank_by="text", spindle=0.6), "is 0.319: -0.598 to 0.598")], ids=str)
def test_a_lambda_beyond_1_over_pi_is_refused(flags, says):
    with pytest.raises(UserError) as refused:
        made(**flags).check_schedule()
    assert f"|lambda c| must stay below 1/pi = 0.318, and {says}" in str(refused.value)
    data = SimpleNamespace(ids=lambda split: numpy.array([0, 0, 0, 1]))  # 2 was never seen
    made(**{**flags, "spindle": 0.3}).on_data(data)
    with pytest.raises(UserError):
        made(**{**flags, "spindle": 3.0}).on_data(data)


# ---- the bound

@each_order
def test_it_is_tight_when_the_pattern_counts_as_evidence(flags):
    """Through the oracle of the method, whose law is the one of the sums."""
    method = made(**flags)
    exact = lambda t: method.oracle(world.LANGUAGE)(STATES, t.expand(64, 1)).exp()
    close(mean_bound(method, exact), ENTROPY, 1e-8)
    t = torch.tensor(0.3, dtype=torch.float64)
    close(exact(t)[MASKS], law(shares(method, inside(t)))[MASKS])


def test_the_oracle_is_the_law_of_the_reference():
    found = made().oracle(world.LANGUAGE)(STATES, torch.full((64, 1), 0.5)).exp()
    close(found[MASKS], figure("spindle/posterior_u0.5")[MASKS])


@each_order
def test_no_denoiser_gives_less_than_the_exact_law(flags):
    """At the exact law the gradient is 0, and a tilt by the weights, which lowers (16.9), costs."""
    method = made(**flags)
    exact = [law(shares(method, t)).clamp(min=1e-12).log() for t in NODES]  # (64, L, N) each
    logits = torch.stack(exact).requires_grad_()  # (32, 64, L, N)
    at = lambda x: (lambda t: x[(NODES == t).nonzero()[0, 0]].softmax(-1))
    slopes = torch.autograd.grad(mean_bound(method, at(logits)), logits)[0]  # (32, 64, L, N)
    assert slopes.abs().max() < 1e-9
    w = torch.stack([method.rate(t, WORDS, places()[:, None]).expand(L, N) for t in NODES])
    changes = [0.1 * torch.randn_like(logits)]
    changes += [w.log()[:, None]] * (method.rank_by == "word")
    for change in changes:
        assert mean_bound(method, at(logits.detach() + change)) > ENTROPY + 1e-4


@each_order
def test_draws_have_the_mean_of_the_sum_for_any_denoiser(flags):
    method = made(**flags)
    torch.manual_seed(0)
    x_theta = torch.randn(64, L, N, dtype=torch.float64).softmax(-1)  # (64, L, N)
    wrong = lambda z, t, at: x_theta.log()[(z * 4 ** torch.arange(L).flip(0)).sum(-1)][at]
    exact = mean_bound(method, lambda t: x_theta)

    def draw():
        x = TEXTS[torch.multinomial(figure("spindle/p"), 3000, replacement=True)]  # (n, L)
        return method.nelbo(wrong, x).sum(-1)  # (n,)
    close_in_the_mean(draw, exact, 30)


def test_a_network_that_ignores_the_pattern_pays():
    close(mean_bound(made(), lambda t: figure("spindle/visible_only")),
          figure("spindle/identity_blind_exact"), 1e-7)


@pytest.mark.parametrize("T", [4, 8, 32])
def test_finitely_many_steps_cost_what_the_table_says(T):
    """The bound of T steps of (16.8): KL of whether a mask opens, and to what."""
    method, total = made(), 0.0
    for i in range(T):
        t, s = (torch.tensor((T - j) / T, dtype=torch.float64) for j in (i, i + 1))
        opens = 1 - method.masked(s, WORDS, None) / method.masked(t, WORDS, None)  # (N,)
        x_theta, u = law(shares(method, t)), opens[TEXTS]  # (64, L, N), (27, L)
        stay = 1 - (opens * x_theta).sum(-1)[:, None]  # (64, 1, L)
        nats = torch.special.xlogy(1 - u, (1 - u) / stay.clamp(min=1e-300))  # (64, 27, L)
        nats = nats - u * of_text(x_theta).clamp(min=1e-300).log()  # (64, 27, L)
        nats = torch.where(MASKS[:, None] & FITS.all(-1, keepdim=True), nats, 0.0)
        total += (joint(shares(method, t))[..., None] * nats).sum()
    close(total, figure(f"spindle/identity_finite_T{T}"), 1e-8)


# ---- what is no bound

def test_its_weighted_cross_entropy_has_a_minimum_below_the_entropy():
    method = made()
    masked, rate = lambda t: shares(method, t), lambda t: method.rate(t, TEXTS, None)
    exact = mean_weighted(rate, masked, lambda t: law(masked(t)))
    blind = mean_weighted(rate, masked, lambda t: figure("spindle/visible_only"))
    expected = [figure(f"spindle/identity_{key}").item() for key in ("naive", "naive_min")]
    assert exact == pytest.approx(expected, abs=1e-7) and exact[1] < ENTROPY - 0.018
    assert blind[0] == pytest.approx(ENTROPY.item(), abs=1e-7)  # any order, one consistent law


def test_centered_by_the_text_a_schedule_has_no_tight_bound():
    """Not with the exact rates r_v = the mean of w given v and z, and the loss (16.9) has its
    least below the entropy."""
    method = made(rank_by="text")
    masked, rate = lambda t: shares(method, t), lambda t: method.rate(t, TEXTS, None)

    def nats(t):
        p = joint(masked(t))[..., None]  # (64, 27, 1)
        r = sum_by_word(p * rate(t)) / p.sum(1, keepdim=True).clamp(min=1e-300)  # (64, L, N)
        return r.sum(-1)[:, None] - rate(t) * (of_text(r) / rate(t)).clamp(min=1e-300).log() \
            - rate(t)  # (64, 27, L)
    close(integral(masked, nats), figure("spindle/per_text_exact"), 1e-7)
    found = mean_weighted(rate, masked, lambda t: law(masked(t)))
    expected = [figure(f"spindle/per_text_{key}").item() for key in ("naive", "naive_min")]
    assert found == pytest.approx(expected, abs=1e-7)
    assert figure("spindle/per_text_exact") > ENTROPY + 8e-4 and max(found) < ENTROPY


def published_bound(spindle, T, law_at):
    """The bound that the public code computes: marginals of the schedule by text, one step of the
    plain schedule, and true words in the probability that a mask opens. law_at(masked (27, L)) ->
    x_theta (64, L, N)"""
    method, total = made(rank_by="text", spindle=spindle), 0.0
    for t in range(1, T + 1):
        masked, before = (shares(method, torch.tensor(i / T, dtype=torch.float64))
                          for i in (t, t - 1))  # (27, L) each
        jump = 1 / (T - t + 1)  # of a token that is still there, if all schedules were equal
        opens = (1 - before) * jump / ((1 - before) * jump + before)  # (27, L)
        nats = -opens * of_text(law_at(masked)).clamp(min=1e-300).log()  # (64, 27, L)
        nats = torch.where(MASKS[:, None] & FITS.all(-1, keepdim=True), nats, 0.0)
        total += (joint(masked)[..., None] * nats).sum()
    return total


def test_the_published_bound_falls_below_the_entropy():
    visible = lambda masked: figure("spindle/visible_only")
    method = made(rank_by="text")
    kept = [1 - shares(method, t) for t in torch.arange(1, 9, dtype=torch.float64) / 8]
    close(torch.stack(kept), figure("spindle/PUB_keep_T8"), 1e-7)
    for key, lam, law_at in (("lambda0", 0.0, law), ("posterior", 0.3, law),
                             ("visible_only", 0.3, visible)):
        close(published_bound(lam, 8, law_at), figure(f"spindle/PUB_elbo_T8_{key}"), 1e-6)
    assert published_bound(0.0, 8, law) > ENTROPY > published_bound(0.3, 8, law) + 0.01
    assert [round(published_bound(0.3, 16, f).item(), 4) for f in (law, visible)] == [
        2.1507, 2.1463]


# ---- samples

@cache
def law_of_samples(spindle, steps):
    """The distribution after `steps` steps of (16.8) as a product of matrices. -> (64,)"""
    method, p = made(spindle=spindle), MASKS.all(-1).double()  # (64,)
    for i in range(steps):
        t, s = (torch.tensor((steps - j) / steps, dtype=torch.float64) for j in (i, i + 1))
        opens = 1 - method.masked(s, WORDS, None) / method.masked(t, WORDS, None)  # (N,)
        rows = torch.nn.functional.one_hot(STATES, N + 1).double()  # (64, L, V)
        new = opens * law(shares(method, t))  # (64, L, N)
        moved = torch.cat([new, 1 - new.sum(-1, keepdim=True)], -1)  # (64, L, V)
        rows = torch.where(MASKS[..., None], moved, rows)  # (64, L, V)
        p = p @ torch.einsum("ai,aj,ak->aijk", *rows.unbind(1)).flatten(1)  # (64,)
    return p


@pytest.mark.parametrize("spindle", [0.3, -0.75])
def test_samples_have_the_distribution_of_the_steps_which_tends_to_the_texts(spindle):
    method, n = made(spindle=spindle), 20_000
    torch.manual_seed(3)
    z, nothing = method.prior((n, L)), torch.zeros(n, L, dtype=torch.bool)  # (n, L) each
    *_, z = method.sample(world.by_state(method.oracle(world.LANGUAGE)), z, nothing, 5)
    assert abs(world.surprise(world.numbers(z, N + 1), law_of_samples(spindle, 5))) < 4.5
    exact = torch.zeros(64, dtype=torch.float64).index_put(
        (world.numbers(TEXTS, N + 1),), figure("spindle/p"))  # (64,)
    far = [(law_of_samples(spindle, T) - exact).abs().sum() / 2 for T in (5, 20, 80)]
    assert far[1] < far[0] / 2 and far[2] < far[1] / 2


def test_centered_by_the_text_a_mask_opens_by_the_words_that_are_drawn_for_the_text():
    method, n = made(rank_by="text"), 40_000
    text = torch.tensor([0, 2, 1])  # (L,)
    sure = lambda z, t, at: (1e9 * torch.nn.functional.one_hot(text, N + 1)).expand(
        *z.shape, N + 1)[at].double()
    z = torch.full((n, L), N)  # (n, L)
    torch.manual_seed(4)
    first, _, last = method.sample(sure, z, z < N, 3)
    s = torch.tensor(2 / 3, dtype=torch.float64)
    due = 1 - method.masked(s, text[None], None)[0]  # (L,)
    opened = (first != N).double()  # (n, L)
    assert ((opened.mean(0) - due).abs() < 4 * opened.std(0) / n ** 0.5).all()
    assert torch.equal(last, text.expand(n, L)) and due[1] < due[2] < due[0]
