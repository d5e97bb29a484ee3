"""UDLM: the numbers of its public code, and the times at which it draws its bound."""
import itertools
import math

import pytest
import torch
from references import LOG_P_U, X_U, Z_U, T, V, figure, same

import world
from diffusion import Uniform, bound
from methods import make_method
from methods.udlm import UDLM, jump_weight, mixture_bound
from world import TEXTS, L, N, P


def test_the_bound_is_that_of_the_public_code():
    process = Uniform(V)
    same(LOG_P_U, figure("udlm/log_x"))
    same(mixture_bound(process, LOG_P_U, X_U, Z_U, T), figure("udlm/nelbo_ct"))
    same(bound(process, LOG_P_U.exp(), X_U, Z_U, T), figure("udlm/nelbo_ct"))


@pytest.mark.parametrize("name, grows", [("udlm", 0), ("gidd", 1)])
def test_draws_have_a_variance_under_words_and_under_hybrid_noise_only_by_the_clamp(name, grows):
    """The second moment at v, summed over z, grows as log(v)^2 for words, and for the hybrid as
    log(v)^2 / v, whose integral over v diverges at 0."""
    process = make_method(name, N).process
    x_theta = torch.tensor([0.5, 0.3, 0.2]).double().log()  # (N,)
    v = torch.tensor([1e-4, 1e-6]).double()[:, None]  # (2, 1)
    t = (math.pi / 2 * v).sin().square()  # (2, 1)
    moment = 0.0
    for symbol in range(process.V):
        x, z = torch.zeros(2, 1, dtype=torch.long), torch.full((2, 1), symbol)  # (2, 1) each
        weight = math.pi * (t * (1 - t)).sqrt() * jump_weight(process, x, z, t)  # (2, 1)
        nats = mixture_bound(process, x_theta.expand(2, 1, N), x, z, t, weight)  # (2, 1)
        q = process.b(t, z) + process.alpha(t) * (z == x)  # (2, 1)
        moment = moment + q * nats.square()  # (2, 1)
    ratio = (moment * v**grows / v.log().square()).flatten()  # (2,)
    assert 0.6 < ratio[1] / ratio[0] < 1.2


def test_a_network_that_knows_nothing_pays_log_n_for_every_token():
    """As each does at first: the mean of 80,000 draws, within 4.5 standard errors below 1 %."""
    torch.manual_seed(0)
    flat = lambda z, t, at: torch.zeros(int(at.sum()), N)
    nats = UDLM(N).nelbo(flat, TEXTS[7].expand(80_000, -1)).double().mean(-1)  # (n,)
    target, error = torch.tensor(N).log(), nats.std() / len(nats) ** 0.5
    assert error < 0.01 * target and abs(nats.mean() - target) < 4.5 * error


def test_the_network_gets_the_noisy_text_and_its_time_and_every_token_is_scored():
    torch.manual_seed(0)
    seen, x = [], torch.zeros(400, 50, dtype=torch.long)

    def denoiser(z, t, at):
        seen.append((z, t, at))
        return torch.zeros(int(at.sum()), 5)
    UDLM(5).nelbo(denoiser, x)
    z, t, at = seen[0]
    assert t.shape == (400, 1) and at.all()
    right, alpha = (z == 0).double().mean(-1), 1 - t[:, 0]  # (400,) each
    error = 5 * (0.25 / 50) ** 0.5
    assert ((right - (alpha + (1 - alpha) / 5)).abs() < error).all()


def test_times_are_drawn_more_often_at_both_ends_and_weighted():
    """t = sin^2(pi v / 2), one v in each stratum, and dt/dv in the weight of the loss."""
    seen, x = [], torch.zeros(1000, 1, dtype=torch.long)
    torch.manual_seed(0)
    method = UDLM(4)
    nats = method.nelbo(lambda z, t, at: seen.append((z, t)) or torch.zeros(len(z), 4), x)
    (z, t), = seen
    v = 2 / torch.pi * t.sqrt().asin()  # (1000, 1)
    assert torch.equal((v * 1000).floor().long()[:, 0], torch.arange(1000))
    weight = torch.pi * (t * (1 - t)).sqrt()  # (1000, 1) dt/dv
    flat = torch.zeros(1000, 1, 4).log_softmax(-1)
    exact = weight * mixture_bound(method.process, flat, x, z, t)
    torch.testing.assert_close(nats, exact, rtol=1e-4, atol=1e-5)
    assert (jump_weight(method.process, x, z, t) >= 0).all()


def test_of_texts_that_are_known_in_part_the_rest_is_scored_and_what_is_known_is_at_time_0():
    torch.manual_seed(0)
    seen, x = [], torch.full((400, 50), 4)

    def denoiser(z, t, at):
        seen.append((z, t, at))
        return torch.zeros(int(at.sum()), 5)
    given = torch.arange(50).expand(400, -1) < 3  # (400, 50)
    nats = make_method("udlm", 5, known=0.75).loss(denoiser, x, given)  # (400, 50)
    (z, t, at), (_, t_rest, at_rest) = seen
    known = t == 0  # (300, 50)
    assert t.shape == z.shape == (300, 50) and ((t == 1) | known).all() and torch.equal(at, ~known)
    assert known[:, :3].all() and (z[known] == 4).all() and (nats[:300][known] == 0).all()
    assert abs((z[at] == 4).double().mean() - 0.2) < 5 * (0.16 / at.sum()) ** 0.5  # random words
    assert nats[:300][at].sub(3 * math.log(5)).abs().max() < 1e-4
    share = at[:, 3:].double().mean(-1)  # (300,) of density 2 (1 - t)
    assert abs(share.mean() - 1 / 3) < 0.02 and abs(share.square().mean() - 1 / 6) < 0.02
    assert t_rest.shape == (100, 1) and torch.equal(at_rest, ~given[300:])


def test_the_loss_of_what_is_not_known_is_its_entropy_at_the_exact_denoiser():
    """3 times the mean of sum_l H(x_l | known) over which words are known: k certain ones of L have
    the probability 2 B(k + 2, L - k + 1), the integral of 2 (1 - t)^(k + 1) t^(L - k)."""
    target = 0.0
    for known in itertools.product([False, True], repeat=L):
        k, known = sum(known), torch.tensor(known)
        same = ((TEXTS[:, None] == TEXTS[None]) | ~known).all(-1)  # (27, 27)
        weight = 2 * math.factorial(k + 1) * math.factorial(L - k) / math.factorial(L + 2)
        for l in range(L):
            equal = same & (TEXTS[:, None, l] == TEXTS[None, :, l])  # (27, 27)
            p = (equal * P).sum(-1) / (same * P).sum(-1)  # (27,) of word l of each text
            target -= 0 if known[l] else 3 * weight * (P * p.log()).sum()
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, 40_000, replacement=True)]  # (n, L)
    method = make_method("udlm", N, known=1.0)
    nats = method.loss(world.oracle(method.process), x).double().sum(-1)  # (n,)
    error = nats.std() / len(nats) ** 0.5
    assert error < 0.01 * target and abs(nats.mean() - target) < 4.5 * error


def test_duo_learns_the_same_after_its_curriculum():
    losses = []
    for name in ("udlm", "duo"):
        method = make_method(name, N, known=1.0)
        method.progress = 1.0
        torch.manual_seed(0)
        losses.append(method.loss(world.oracle(method.process), TEXTS))
    assert torch.equal(*losses)


def test_of_few_texts_as_many_are_known_in_the_mean_as_are_asked_for():
    torch.manual_seed(0)
    times, method = [], make_method("udlm", 5, known=0.3)

    def denoiser(z, t, at):
        times.append(t.shape)
        return torch.zeros(int(at.sum()), 5)
    for _ in range(400):
        method.loss(denoiser, torch.zeros(1, 6, dtype=torch.long))
    share = sum(shape == (1, 6) for shape in times) / 400
    assert len(times) == 400 and abs(share - 0.3) < 4 * (0.21 / 400) ** 0.5


def test_without_known_tokens_the_loss_is_the_bound():
    method, denoiser = UDLM(N), world.oracle(Uniform(N))
    losses = []
    for loss in (method.loss, method.nelbo):
        torch.manual_seed(0)
        losses.append(loss(denoiser, TEXTS))
    assert torch.equal(*losses)
