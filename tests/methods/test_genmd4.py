"""GenMD4: a schedule for each symbol, against the public code (b9fbf29), and on 27 texts.

Its tightness on the toy language, with uneven schedules, is in tests/theory/test_oracle.py.
"""
import torch
from bounds import quadrature
from references import LOG_P, Figures, T, X, Z, same

import world
from diffusion import Absorbing
from methods.genmd4 import GenMD4
from world import LANGUAGE, TEXTS, L, N, P, by_state, distance, numbers, surprise

figure = Figures("masked_reference")
CE = -LOG_P.gather(-1, X[..., None])[..., 0]  # (B, L)


def uneven(w_raw=(0.5, 1.25, 2.0)):
    """The method for the world, with another schedule for each symbol."""
    method = GenMD4(N)
    method.w_raw = torch.as_tensor(w_raw, dtype=torch.float64)  # (N,)
    return method


# ---- the public code

def test_the_bound_and_its_gradient_are_those_of_the_public_code():
    method = GenMD4(11)
    method.w_raw = figure("genmd4/w_raw").requires_grad_()  # (11,)
    same(method.w("cpu").detach(), figure("genmd4/power"))
    nats = method.bound(lambda z, t, at: LOG_P[at], X, Z, T).sum(-1).detach()  # (B,)
    same(nats, figure("genmd4/loss_seq"))
    other = torch.where(Z == 11, X, 11)  # (B, L) the figure's second draw masks the other tokens

    def log_ratio(eps):
        """log q(z1) - log q(z2). -> (B,)"""
        share = (1 - eps) * T ** method.w("cpu")[X].detach()  # (B, L)
        odds = share.log() - (1 - share).log()  # (B, L)
        return torch.where(Z == 11, odds, -odds).sum(-1)  # (B,)
    same(nats / 4 * log_ratio(1e-4), figure("genmd4/rloo_seq"))  # that code keeps eps in the draw
    ours = (method.log_q(Z, X, T) - method.log_q(other, X, T)).sum(-1)  # (B,)
    same(ours.detach(), log_ratio(0.0))


def test_with_equal_exponents_it_is_masked_diffusion():
    method = GenMD4(11)
    method.w_raw = method.w_raw.double()  # (11,)
    nats = method.bound(lambda z, t, at: LOG_P[at], X, Z, T)  # (B, L)
    same(nats.sum(-1), (CE / T * (Z == 11)).sum(-1), 1e-6)


# ---- the bound, enumerated

def mean_bound(method, denoiser, x, nodes):
    """E_t E_z of (3.3) for texts x (n, L): quadrature over t, sums over z. -> (n,) nats"""
    states, n = world.states(Absorbing(N)), len(x)  # (64, L)
    z, x = states.repeat(n, 1), x.repeat_interleave(len(states), 0)  # (64 n, L) each
    total = torch.zeros(n, dtype=torch.float64)  # (n,)
    for t, weight in zip(*quadrature(nodes)):
        t = t.expand(len(z), 1)  # (64 n, 1)
        q = method.likelihood(z, t).gather(-1, x[..., None])[..., 0].prod(-1)  # (64 n,)
        at = q > 0  # (64 n,)
        nats = method.bound(by_state(denoiser), x[at], z[at], t[at]).sum(-1)  # (.,)
        nats = torch.zeros_like(q).masked_scatter(at, q[at] * nats)  # (64 n,)
        total = total + weight * nats.view(n, -1).sum(-1)  # (n,)
    return total


def test_the_bound_of_the_exact_denoiser_is_tight_and_of_others_is_not():
    """The others do not know the time, or what masks say about their symbols."""
    method, entropy = uneven(), -(P * P.log()).sum()
    exact = method.oracle(LANGUAGE)
    mean = lambda denoiser, nodes: (P * mean_bound(method, denoiser, TEXTS, nodes)).sum()
    assert abs(mean(exact, 40) - entropy) < 1e-4
    for wrong in (lambda z, t, at=None: exact(z, torch.full_like(t, 0.5), at),
                  world.oracle(Absorbing(N))):
        assert mean(wrong, 12) > entropy + 2e-3


def test_the_two_draws_give_the_gradient_of_the_mean():
    """(3.5) against differences of exact means: how the bound of a wrong denoiser changes with each
    exponent."""
    x, wrong = TEXTS[5], lambda z, t, at=None: world.vandal(z, t.double(), at)
    method = uneven()
    method.w_raw.requires_grad_()
    torch.manual_seed(0)

    def draw():
        loss = method.loss(wrong, x.expand(4000, -1)).sum(-1).mean()  # ()
        return torch.autograd.grad(loss, method.w_raw)[0]  # (N,)
    draws = torch.stack([draw() for _ in range(60)])  # (60, N)
    ours, error = draws.mean(0), draws.std(0) / len(draws) ** 0.5  # (N,) each
    at = lambda d: mean_bound(uneven(uneven().w_raw + d), wrong, x[None], 60)  # (1,)
    exact = torch.cat([at(d) - at(-d) for d in 1e-4 * torch.eye(N).double()]) / 2e-4  # (N,)
    assert ((ours - exact).abs() < 4.5 * error).all() and (exact.abs() > 10 * error).all()


# ---- samples

def test_samples_are_the_data():
    """10,000 texts in 64 steps, which cost 0.003 of sum (q - p)^2 / p, within 4 standard errors."""
    method, n = uneven(), 10_000
    torch.manual_seed(0)
    z, nothing = method.prior((n, L)), torch.zeros(n, L, dtype=torch.bool)  # (n, L) each
    *_, z = method.sample(by_state(method.oracle(LANGUAGE)), z, nothing, 64)
    far, error = distance(numbers(z, N), P)
    assert far < 0.003 + 4 * error


def test_one_lazy_step_is_the_reverse_distribution():
    """From t = 1 to 2/3, 100,000 draws, by (3.4)."""
    method, n = uneven(), 100_000
    torch.manual_seed(1)
    z = torch.full((n, 1), N)  # (n, 1)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)  # (N,)
    one = lambda z, t, at: p.log().expand(int(at.sum()), -1)
    z = next(method.sample(one, z, z < N, 3))  # (n, 1)
    opens = 1 - (2 / 3) ** method.w("cpu")  # (N,)
    exact = torch.cat([p * opens, (p * (1 - opens)).sum(0, keepdim=True)])  # (N + 1,)
    assert surprise(z[:, 0], exact) < 4.5
