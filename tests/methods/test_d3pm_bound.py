"""D3PM's bound (2.3), summed exactly on the world of tests/world.py, and its losses.

As T grows it must give the bounds of the other chapters.
"""
import math

import pytest
import torch
import torch.nn.functional as F
from bounds import close, close_in_the_mean, exact_bound
from chains import (
    TRANSITIONS,
    each_transition,
    enumerated,
    evidence,
    exact,
    made,
    random_rows,
    states,
)

import world
from diffusion import posterior_x0
from methods.d3pm import kl_term
from world import LANGUAGE, TEXTS, L, N, P

ENTROPY = -(P * P.log()).sum()


# ---- the bound, enumerated

@each_transition
def test_with_the_exact_denoiser_the_bound_falls_to_the_entropy_as_one_over_T(transition):
    """In the mean over the 27 texts it is above the entropy, by an excess that halves with each
    doubling of T. (Text by text it is above -log p of the chain of T steps, which is not quite
    P.)"""
    excess = []
    for T in (2, 4, 8):
        method = made(transition, T)
        found = enumerated(method, method.oracle(LANGUAGE))  # (27,)
        excess.append(float((P * found).sum() - ENTROPY))
        assert excess[-1] > 0
    if transition == "gaussian":
        assert excess[-1] < excess[0] / 2
    else:
        assert 0.4 < excess[2] / excess[1] < 0.6


@each_transition
def test_a_network_that_knows_nothing_pays_log_N_for_every_text_in_any_number_of_steps(transition):
    """Its chain is the exact reverse of noise on uniform text, and the bound is -log p of it."""
    flat = lambda z, t, at=None: torch.zeros(*z.shape, N).double().log_softmax(-1)
    for T in (1, 5):
        known = torch.full((27,), L * math.log(N), dtype=torch.float64)  # (27,)
        close(enumerated(made(transition, T), flat), known)


@pytest.mark.parametrize("transition", ["absorbing", "uniform"])
def test_the_continuous_bounds_are_what_the_bound_tends_to(transition):
    """Also for a wrong denoiser that reads the time: T = 16 and 32, continued to 1/T = 0."""
    few, more = made(transition, 16), made(transition, 32)
    limit = exact_bound(few.process, world.vandal, nodes=40)  # (27,)
    few, more = (enumerated(method, world.vandal) for method in (few, more))  # (27,) each
    assert ((more - limit).abs() < (few - limit).abs()).all()
    close(2 * more - few, limit, 3e-3)


def test_for_a_wrong_denoiser_few_steps_may_be_above_the_limit_or_below_it():
    """T = 1 and 4 under uniform noise; with the exact one they are above it."""
    limit = (P * exact_bound(made("uniform", 1).process, world.vandal, nodes=60)).sum()  # ()
    one, four = ((P * enumerated(made("uniform", T), world.vandal)).sum() for T in (1, 4))
    assert one > limit + 0.1 and four < limit - 0.003


@pytest.mark.parametrize("transition", ["uniform", "nearest"])
def test_the_posterior_in_place_of_the_leave_one_out_distribution_is_not_tight(transition):
    method = made(transition, 16)
    right, wrong = (enumerated(method, exact(method, loo)) for loo in (True, False))  # (27,) each
    assert (P * right).sum() < ENTROPY + 0.05 and (P * wrong).sum() > ENTROPY + 1


@each_transition
def test_any_other_denoiser_gives_more(transition):
    method = made(transition, 6)
    oracle = method.oracle(LANGUAGE)
    best = (P * enumerated(method, oracle)).sum()  # ()
    for wrong in (world.vandal, lambda z, t: 0.9 * oracle(z, t),
                  lambda z, t: oracle(z, t).exp().add(0.05).log()):
        found = enumerated(method, lambda z, t: wrong(z, t).log_softmax(-1))  # (27,)
        assert (P * found).sum() > best + 1e-3


@each_transition
def test_nelbo_is_an_unbiased_draw_of_the_bound(transition):
    """With a wrong denoiser. The last term is in every draw, in full: 0.6 nats where bells are too
    narrow."""
    method = made(transition, 64 if transition == "gaussian" else 5)
    target = enumerated(method, world.vandal)  # (27,)
    torch.manual_seed(0)
    for i in (1, 14):
        x = TEXTS[i].expand(3000, -1)  # (n, L)
        close_in_the_mean(lambda: method.nelbo(world.vandal, x).sum(-1), target[i])


# ---- its first term

@each_transition
@pytest.mark.parametrize("T", [1, 3])
def test_at_the_first_step_the_loss_and_its_gradient_are_finite(transition, T):
    """k = 1, where p and q are zero together, is drawn in a third of the texts, or in all."""
    torch.manual_seed(0)
    method, weights = made(transition, T), torch.zeros(N + 1, requires_grad=True)  # (N + 1,)

    def denoiser(z, t, at):
        return (weights + 0.1 * torch.randn(*z.shape, N + 1))[at][:, :method.vocab_size]  # (n, V)
    nats = method.loss(denoiser, torch.randint(N, (60, 5)))  # (60, 5)
    nats.sum().backward()
    assert nats.isfinite().all() and (nats >= -1e-12).all() and nats.sum() > 0
    assert weights.grad.isfinite().all()


@each_transition
def test_at_the_first_step_the_term_is_minus_log_p_of_the_text(transition):
    method = made(transition, 4)
    x_theta, x, z, _ = random_rows(method.chain, 4)
    at = method.chain.changeable(z)  # (n,)
    t = torch.full(z.shape, 0.25, dtype=torch.float64)  # (n,)
    p = method.chain.reverse(x_theta, z, t - 0.25, t).gather(-1, x[:, None])[:, 0]  # (n,)
    close(kl_term(method.chain, x_theta, x, z, t - 0.25, t)[at], -p.log()[at])


# ---- the auxiliary loss

@each_transition
def test_the_auxiliary_loss_has_the_minimizer_of_the_bound(transition):
    """Its mean gradient at the exact denoiser is zero. That of the cross-entropy of x_theta itself,
    as published, is zero under masks alone."""
    method = made(transition, 4)
    z, slope, published = states(method), 0.0, 0.0  # (S, L)
    for k in range(1, 5):
        t = torch.full((len(z), 1), k / 4, dtype=torch.float64)  # (S, 1)
        at = method.chain.changeable(z)[..., None]  # (S, L, 1)
        joint = evidence(method, z, t).prod(-1) * P  # (S, 27)
        x_theta = exact(method)(z, t).exp()  # (S, L, N)
        ours = x_theta * method.likelihood(z, t)  # (S, L, N)
        ours = ours / ours.sum(-1, keepdim=True).clamp(min=1e-300)  # (S, L, N)
        truth = torch.einsum("si,ilv->slv", joint, F.one_hot(TEXTS, N).double())  # (S, L, N)
        mass = joint.sum(-1)[:, None, None] * at  # (S, L, 1)
        slope += (mass * ours - truth * at).abs().sum()
        published += (mass * x_theta - truth * at).abs().sum()
    assert slope < 1e-10
    assert published < 1e-10 if transition == "absorbing" else published > 0.5


@each_transition
def test_the_loss_is_the_bound_and_aux_times_a_cross_entropy(transition):
    torch.manual_seed(0)
    x = torch.randint(N, (40, L))  # (40, L)

    def draw(aux, name):
        torch.manual_seed(1)
        return getattr(made(transition, 4, aux=aux), name)(world.vandal, x)  # (40, L)
    bound, more = draw(0.0, "loss"), draw(3.0, "loss")
    close(bound, draw(3.0, "nelbo"))
    torch.manual_seed(1)
    _, ce = made(transition, 4).draw(world.vandal, x, None)  # (40, L)
    close(more, bound + 3 * ce)
    assert ce.sum() > 0


def test_that_cross_entropy_is_of_the_posterior():
    """(0.4) of the noisy text that the loss draws, at the times of `stratified`."""
    torch.manual_seed(0)
    x, z = torch.randint(N, (40, L)), torch.randint(N, (40, L))  # (40, L) each
    method = made("uniform", 4)
    method.chain.corrupt = lambda *a: z
    torch.manual_seed(1)
    k = ((torch.arange(40) + torch.rand(40)) / 40 * 4).ceil()[:, None]  # (40, 1)
    torch.manual_seed(1)
    _, ce = method.draw(world.vandal, x, None)  # (40, L)
    p = posterior_x0(method.process, world.vandal(z, k / 4).exp(), z, k.double() / 4)  # (40, L, N)
    close(ce, -p.gather(-1, x[..., None])[..., 0].log(), 1e-6)


# ---- calls

def test_frozen_tokens_are_not_scored_not_even_in_the_last_term():
    torch.manual_seed(0)
    frozen = torch.tensor([True, False, False]).expand(500, -1)  # (500, L)
    for transition in TRANSITIONS:
        method = made(transition, 3)
        for score in (method.loss, method.nelbo):
            nats = score(world.vandal, TEXTS[5].expand(500, -1), frozen)  # (500, L)
            assert (nats[:, 0] == 0).all() and (nats[:, 1:].sum(0) > 0).all()


def test_the_network_is_called_at_masks_alone_and_its_time_is_k_over_T():
    """Every k from 1 to T comes up, in equal shares."""
    times = []

    def denoiser(z, t, at):
        times.append(t)
        assert torch.equal(at, z == N)
        return torch.zeros(int(at.sum()), N + 1)  # (n, V)
    made("absorbing", 5).loss(denoiser, torch.randint(N, (50, 8)))
    k = (torch.cat(times) * 5).round().long().flatten()  # (50,)
    assert k.bincount().tolist() == [0, 10, 10, 10, 10, 10]
