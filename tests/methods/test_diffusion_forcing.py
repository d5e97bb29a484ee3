"""Diffusion Forcing in the world of 27 texts: the bound, the published loss and the distribution of
samples as sums, and the public code's schedules.

forcing_reference.npz: the matrices of diffusion-forcing (commit 475e0bc) as they are, PUB_*, the
trapezoids without its two faults, OURS_*, and sums over another world, p, computed apart from this
code: 64 noisy texts, of which state 16 z0 + 4 z1 + z2 has masks where z is 3.
"""
import math
import re

import numpy
import pytest
import torch
import world
from bounds import close, close_in_the_mean
from networks import random_net
from references import Figures
from test_cache import Recomputes
from world import TEXTS, L, N

from methods import make_method
from methods.diffusion_forcing import count_from_start, level_after, schedule_of, times_at

figure = Figures("forcing_reference")
SLOPES = figure("slopes").tolist()
STATES = torch.cartesian_prod(*[torch.arange(N + 1)] * L)  # (64, L)
ALL = torch.ones(1, L, dtype=torch.bool)
each_slope = pytest.mark.parametrize("slope", SLOPES)
each_context = pytest.mark.parametrize("context", ["causal", "full"])


@pytest.fixture(autouse=True)
def reference_world(monkeypatch):
    monkeypatch.setattr(world, "P", figure("p"))


def made(**flags):
    return make_method("diffusion_forcing", N, **flags)


def entropy():
    return torch.special.entr(figure("p")).sum()


def exact_law(method):
    """log x_theta of the oracle at every state. -> (64, L, N)"""
    return method.oracle(world.LANGUAGE)(STATES, None)


def probability(times):
    """q(z | x) of every state and text, where token l is a mask with probability times[l]. -> (64,
    27)"""
    z, mask = STATES[:, None], (STATES == N)[:, None]  # (64, 1, L) each
    return torch.where(mask, times, (1 - times) * (z == TEXTS)).prod(-1)  # (64, 27)


def cross_entropy(log_p):
    """-log x_theta(x_l) at masks, 0 at text. log_p (64, L, N) -> (64, 27, L)"""
    ce = torch.stack([-log_p[:, l, TEXTS[:, l]] for l in range(L)], -1)  # (64, 27, L)
    return torch.where((STATES == N)[:, None], ce, 0.0)  # (64, 27, L)


def enumerated(method, log_p):
    """(16.3) of each text: between two kinks of the path it is a polynomial in tau, which Gauss's
    rule integrates exactly. -> (27,) nats"""
    _, start, _, _, w = method.plan(ALL)  # (1, L), (1, 1)
    kinks = torch.cat([start, start + w]).flatten().sort().values  # (2 L,)
    nodes, weights = numpy.polynomial.legendre.leggauss(4)
    total = torch.zeros(len(TEXTS), dtype=torch.float64)  # (27,)
    for low, high in zip(kinks[:-1], kinks[1:]):
        for node, weight in zip(nodes, weights):
            times = times_at((low + high) / 2 + (high - low) / 2 * node, start, w)[0]  # (L,)
            moves = (times > 0) & (times < 1)  # (L,)
            rate = torch.where(moves, 1 / (w[0] * times), 0.0)  # (L,)
            nats = (cross_entropy(log_p) * rate).sum(-1)  # (64, 27)
            total += weight * (high - low) / 2 * (probability(times) * nats).sum(0)
    return total


def independent(log_p):
    """The mean of (16.1), where any set of the other tokens is masked alike. -> ()"""
    return figure("p") @ (probability(torch.full((L,), 0.5)) * 2
                          * cross_entropy(log_p).sum(-1)).sum(0)


# ---- the bound

@each_slope
@pytest.mark.parametrize("path", ["pyramid", "trapezoid"])
def test_with_the_exact_law_of_a_full_network_every_path_gives_the_entropy(slope, path):
    method = made(context="full", slope=slope, path=path)
    close(figure("p") @ enumerated(method, exact_law(method)), entropy())


def test_what_parallelism_costs_a_causal_network():
    """The column of the table, and to rounding what was computed apart from this code."""
    bounds = []
    for slope in SLOPES:
        method = made(slope=slope)
        bounds.append((figure("p") @ enumerated(method, exact_law(method))).item())
    close(torch.tensor(bounds, dtype=torch.float64), figure("bound_causal"))
    assert [round(b, 4) for b in bounds] == [3.0565, 2.9370, 2.8811, 2.8646, 2.8590]


@each_context
@each_slope
def test_no_denoiser_gives_less_than_the_exact_law(slope, context):
    """(16.3) is convex in the logits, and at the exact law its gradient is 0: for a causal network
    summed over the states that it cannot tell apart."""
    method = made(context=context, slope=slope)
    logits = exact_law(method).clamp(min=-30).requires_grad_()  # (64, L, N)
    nats = figure("p") @ enumerated(method, logits.log_softmax(-1))
    slopes = torch.autograd.grad(nats, logits)[0]  # (64, L, N)
    if context == "causal":
        seen = [(STATES[:, :l + 1] * 4 ** torch.arange(l + 1)).sum(-1) for l in range(L)]
        slopes = torch.cat([torch.zeros(64, N, dtype=torch.float64).index_add(0, s, slopes[:, l])
                            for l, s in enumerate(seen)])  # (64 L, N)
    assert slopes.abs().max() < 1e-10 and nats > entropy() - 1e-10


def test_the_oracle_of_a_causal_network_sees_what_is_to_its_left():
    masks = STATES == N  # (64, L)
    close(exact_law(made()).exp()[masks], figure("causal_law")[masks])


@each_context
@pytest.mark.parametrize("flags", [dict(slope=0.0), dict(slope=0.4), dict(slope=1.0),
                                   dict(slope=2.5, path="trapezoid"), dict(slope=0.7)])
def test_draws_of_the_bound_have_its_mean_for_any_denoiser(flags, context):
    method = made(context=context, **flags)
    torch.manual_seed(0)
    log_p = torch.randn(64, L, N, dtype=torch.float64).log_softmax(-1)  # (64, L, N)
    wrong = lambda z, t, at: log_p[(z * 4 ** torch.arange(L).flip(0)).sum(-1)][at]
    exact = figure("p") @ enumerated(method, log_p)

    def draw():
        x = TEXTS[torch.multinomial(figure("p"), 3000, replacement=True)]  # (n, L)
        return method.nelbo(wrong, x).sum(-1)  # (n,)
    close_in_the_mean(draw, exact)


def test_weights_of_a_draw_sum_to_the_number_of_free_tokens():
    """So they are bounded. At slope 0 all are n/k for k masks, those of (3.1)."""
    x = torch.randint(N, (500, 9))
    frozen = torch.rand(x.shape) < 0.3
    frozen[0] = True
    for slope in (0.0, 0.3, 1.0):
        z, at, weight = made(slope=slope).draw(x, frozen)  # (B, L) each
        n = (~frozen).sum(-1)  # (B,)
        close(weight.sum(-1), n.double())
        assert not (at & frozen).any() and (weight[~at] == 0).all() and (z == x)[frozen].all()
        if slope == 0:
            close(weight[at], (n / at.sum(-1).clamp(min=1))[:, None].expand(at.shape)[at].double(),
                  1e-6)
        if slope == 1:
            assert (at.sum(-1) == (n > 0)).all()  # one after the other


# ---- the published loss

def test_the_loss_of_independent_times_is_no_bound():
    """Right for neither network: above the entropy here, below it for copies of one symbol."""
    for context in ("full", "causal"):
        found = independent(exact_law(made(context=context)))
        close(found, figure(f"iid_{context}"))
    assert found.item() == pytest.approx(3.064, abs=5e-4)
    assert figure("iid_full").item() == pytest.approx(2.883, abs=5e-4) and found > entropy()


def test_copies_of_one_symbol_cost_less_than_their_entropy(monkeypatch):
    copies = (TEXTS == TEXTS[:, :1]).all(-1).double() / 3  # (27,)
    monkeypatch.setattr(world, "P", copies)
    method, x = made(context="full"), TEXTS[copies > 0].repeat(5000, 1)  # (n, L)
    torch.manual_seed(0)
    nats = method.loss(method.oracle(world.LANGUAGE), x).double().sum(-1)  # (n,)
    assert abs(nats.mean() - figure("copy_iid")) < 4 * nats.std() / len(x) ** 0.5
    assert nats.mean() < math.log(3) - 0.2


@each_context
def test_training_on_independent_times_draws_the_published_loss(context):
    """With the weight 1/t averaged: the same mean."""
    method = made(context=context)
    exact = method.oracle(world.LANGUAGE)
    torch.manual_seed(1)

    def draw():
        x = TEXTS[torch.multinomial(figure("p"), 3000, replacement=True)]  # (n, L)
        return method.loss(exact, x).double().sum(-1)  # (n,)
    close_in_the_mean(draw, figure(f"iid_{context}"))


def test_training_on_the_path_is_the_bound():
    x, losses = TEXTS.repeat(20, 1), []
    for method in (made(times="path", slope=0.5), made(slope=0.5)):
        torch.manual_seed(2)
        score = method.loss if method.times == "path" else method.nelbo
        losses.append(score(method.oracle(world.LANGUAGE), x))
    assert torch.equal(*losses)


# ---- schedules

def matrix(path, length, T, u):
    """Levels of all tokens, a row per step, from (16.5)."""
    d, _ = count_from_start(torch.ones(1, length, dtype=torch.bool), path)  # (1, L)
    rows = T + math.floor(u * d.max().item()) + 1
    return torch.cat([level_after(m, d, T, u) for m in range(rows)]).long()  # (rows, L)


@pytest.mark.parametrize("key", [key for key in figure.keys() if "_h" in key and
                                 not key.startswith("PUB_trapezoid")])
def test_levels_are_those_of_the_public_schedules(key):
    """Full sequences have u = 0, autoregression u = T. Trapezoids: those of the public code never
    write a column in the middle, or end a row late."""
    name, length, T, u = re.match(r"[A-Z]+_(\w+)_h(\d+)_T(\d+)_u([\d.]+)", key).groups()
    u = {"full_sequence": 0.0, "autoregressive": float(T)}.get(name, float(u))
    path = name if name == "trapezoid" else "pyramid"
    assert torch.equal(matrix(path, int(length), int(T), u), figure(key))
    if name == "trapezoid":
        public = figure(key.replace("OURS", "PUB"))  # (rows, L)
        assert public.shape != figure(key).shape or (public != figure(key)).any()


@pytest.mark.parametrize("slope, steps, together", [(0.0, 7, 10), (1.0, 10, 1), (1.0, 33, 1),
                                                    (1.0, 5, 2), (1.0, 4, 3), (0.3, 3, 4),
                                                    (1.0, 1, 10), (9.0, 40, 1)])
def test_as_many_steps_as_asked_and_as_many_tokens_at_once_as_the_slope_says(slope, steps,
                                                                             together):
    """Given tokens take no part of the path, so a prompt costs no steps."""
    method, calls = made(slope=slope), []
    x, frozen = torch.zeros(1, 14, dtype=torch.long), torch.zeros(1, 14, dtype=torch.bool)
    frozen[:, [0, 1, 5, 13]] = True

    def spy(z, t, at):
        calls.append(int(at.sum()))
        return torch.zeros(calls[-1], N + 1)
    z = torch.where(frozen, x, method.prior(x.shape))  # (1, 14)
    states = list(method.sample(spy, z, frozen, steps))
    assert len(states) == steps == method.count_states(14, steps) and sum(calls) == 10
    assert (states[-1] < N).all() and max(calls) <= together
    assert steps > 10 or slope == 0 or len(calls) == steps  # one level: no step is left empty


# ---- samples

def law_of_samples(method, steps):
    """The distribution after `steps` steps of (16.5), as a product of matrices. -> (64,)"""
    d, _, _, D, w = method.plan(ALL)
    T, u = schedule_of(steps, D, w)  # (1, 1) each
    x_theta, p = exact_law(method).exp(), (STATES == N).all(-1).double()  # (64, L, N), (64,)
    for m in range(steps):
        t, s = (level_after(k, d, T, u) / T for k in (m, m + 1))  # (1, L) each
        opens = torch.where(t > 0, (t - s) / t, 0.0) * (STATES == N)  # (64, L)
        rows = torch.nn.functional.one_hot(STATES, N + 1) * (1 - opens)[..., None]  # (64, L, V)
        rows[..., :N] += (opens[..., None] * x_theta).nan_to_num()  # (64, L, N)
        p = p @ torch.einsum("ai,aj,ak->aijk", *rows.unbind(1)).flatten(1)  # (64,)
    return p


def from_texts(p):
    exact = torch.zeros(64, dtype=torch.float64).index_put(
        ((TEXTS * 4 ** torch.arange(L).flip(0)).sum(-1),), figure("p"))  # (64,)
    return ((p - exact).abs().sum() / 2).item()


def test_samples_at_slope_1_follow_the_model_in_as_many_steps_as_tokens():
    for context in ("causal", "full"):
        for steps in (3, 4, 9):
            assert from_texts(law_of_samples(made(context=context), steps)) < 1e-12
    for path in ("pyramid", "trapezoid"):  # a full network: few steps cost, many do not
        far = [from_texts(law_of_samples(made(context="full", slope=0.5, path=path), n))
               for n in (1, 8, 64)]
        assert far[0] > 0.05 and far[1] < far[0] / 2 and far[2] < far[1] / 4


def test_in_any_number_of_steps_a_causal_network_pays_for_parallel_writing():
    far = [from_texts(law_of_samples(made(slope=slope), 150)) for slope in SLOPES]
    assert all(a > b for a, b in zip(far, far[1:])) and far[0] > 0.1 and far[-1] < 1e-12


@pytest.mark.parametrize("flags, steps", [(dict(slope=0.4), 5), (dict(slope=1.0), 4),
                                          (dict(context="full", slope=0.5), 6)])
def test_samples_have_the_distribution_of_the_schedule(flags, steps):
    """Their number per text: chi-square within 4.5 standard deviations."""
    method, n = made(**flags), 20_000
    torch.manual_seed(3)
    nothing = torch.zeros(n, L, dtype=torch.bool)  # (n, L)
    exact = world.by_state(method.oracle(world.LANGUAGE))
    *_, z = method.sample(exact, method.prior((n, L)), nothing, steps)
    p = law_of_samples(method, steps)  # (64,)
    assert abs(world.surprise(world.numbers(z, N + 1), p)) < 4.5


@pytest.mark.parametrize("slope, steps", [(0.0, 6), (0.5, 20), (1.0, 24)])
def test_with_a_cache_a_causal_network_writes_the_same_and_reads_less(slope, steps):
    """From nothing, and around given tokens, in a batch of three texts."""
    method = make_method("diffusion_forcing", 10, slope=slope)
    net = random_net(cond_dim=0, mask_mod=method.mask_mod)
    frozen = torch.rand(3, 24, generator=torch.Generator().manual_seed(1)) < 0.3
    for given in (torch.zeros_like(frozen), frozen):
        texts, read = [], []
        z = torch.where(given, torch.arange(24) % 10, method.prior(given.shape))  # (3, 24)
        for supports_cache in (True, False):
            spy = Recomputes(net, supports_cache)
            torch.manual_seed(4)
            *_, end = method.sample(spy, z, given, steps)
            texts.append(end)
            read.append(sum(spy.read))
        assert torch.equal(*texts) and read[0] < (0.2 if slope == 1 else 1) * read[1] + 1


def test_what_a_token_sees_is_the_pattern_of_the_network():
    """Causal: another token to the right changes nothing; full: it does."""
    z = torch.randint(10, (1, 8))
    for context in ("causal", "full"):
        method = make_method("diffusion_forcing", 10, context=context)
        net = random_net(cond_dim=0, mask_mod=method.mask_mod)
        other = torch.cat([z[:, :-1], (z[:, -1:] + 1) % 10], 1)  # (1, 8) another last token
        a, b = (net(text, None)[:, :-1] for text in (z, other))  # (1, 7, V) each
        assert torch.equal(a, b) == (context == "causal") == (not method.bidirectional)
