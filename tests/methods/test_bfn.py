"""
Noise as evidence: the equations of chapter 14 to rounding, then the bounds as equalities, with the
exact denoiser of a world of 27 texts. No network but for what it reads.

simplex.npz, `bfn/*`: the code of nnaisense/bayesian-flow-networks (commit b62568e); `channel/*`,
`lang/*` and `steps/*`: another program of ours, `lang` a world of 4 words and 256 texts.
"""
import itertools
import math
from types import SimpleNamespace

import numpy
import pytest
import torch
import torch.nn.functional as F
import world
from bounds import close, mean_of_batches
from references import Figures
from world import TEXTS, L, N, P

from checkpoints.build import build_network
from gaussian import ddim, log_evidence, noise_nats, signal, step_law
from methods import make_method
from methods.evidence import (
    Evidence,
    Squared,
    draw_evidence,
    receiver_nats,
    square_error,
    word_nats,
)
from methods.simplex import EvidenceNetwork
from samplers.evidence import MeanEvidence, StraightEvidence, WordEvidence

figure = Figures("simplex")
ENTROPY = -(P * P.log()).sum()
NETWORK = SimpleNamespace(n_layer=1, n_head=2, n_embd=16, cond_dim=8, dropout=0.0, qk_norm=True,
                          norm_bias=False, time_input="auto")
double = lambda *shape: torch.randn(*shape, dtype=torch.float64)


# ---- figures of other programs

def test_belief_loss_and_reconstruction_are_the_published_ones():
    """BFN's beta and V, as lam: theta, V beta(1) u |e - e_hat|^2, the last cross-entropy."""
    x, u, beta = figure("bfn/x"), figure("bfn/t"), figure("bfn/max_sqrt_beta") ** 2
    lam1, log_p = float(9 * beta), figure("bfn/logits").log_softmax(-1)
    y = draw_evidence(x, (lam1 * u ** 2).expand(x.shape), figure("bfn/eps"))  # (4, 6, 9)
    channel = Evidence(9, Squared(lam1))
    close(channel.shown(y, u), figure("bfn/theta"), 1e-6)
    close(y.log_softmax(-1), figure("bfn/y").log_softmax(-1), 1e-5)
    close(channel.lam(1 - u), lam1 * u ** 2, 1e-6)  # time runs the other way
    close(lam1 * u * square_error(log_p, x), figure("bfn/loss_inf"), 1e-5)
    close(word_nats(log_p, x), figure("bfn/recon"), 1e-5)


def test_beliefs_along_a_published_walk():
    lam1 = float(9 * figure("bfn/max_sqrt_beta") ** 2)
    updated = (figure("bfn/update_in").log() + figure("bfn/update_y")).softmax(-1)
    close(updated, figure("bfn/update_out"), 1e-6)
    y, lam = torch.zeros(4, 6, 9), lam1 * (torch.arange(6) / 5) ** 2
    for i in range(5):
        hats = F.one_hot(figure("bfn/walk_hats")[i], 9)
        y = WordEvidence().move(y, hats, lam[i + 1], lam[i], figure("bfn/walk_eps")[i])
        close(y.softmax(-1), figure("bfn/walk_theta")[i], 1e-6)


def test_the_receiver_mixes_words_not_coordinates():
    """(14.5) with one word for all coordinates of y; the published code has one for each."""
    x, lam1 = figure("bfn/x"), 9 * figure("bfn/max_sqrt_beta") ** 2
    log_p, i = figure("bfn/logits").double().log_softmax(-1), figure("bfn/n3/i")
    d = (lam1 * (2 * i - 1) / 9)[:, None].expand(x.shape)  # (4, 6)
    close(d[:, 0] / 9, figure("bfn/n3/alpha").double(), 1e-6)
    dy = draw_evidence(x, d, figure("bfn/n3/eps").double())  # (64, 4, 6, 9)
    ours = 3 * receiver_nats(log_p, dy, x.expand(64, 4, 6)).mean(0)  # (4, 6)
    close(ours, figure("bfn/n3/REF_loss_mixture"), 1e-5)
    theirs = published_receiver(log_p, dy, x, d)  # (4, 6)
    close(3 * theirs, figure("bfn/n3/loss_public_coordinatewise").double(), 1e-4)
    assert (3 * theirs / ours - 1).abs().max() > 0.05


def published_receiver(log_p, dy, x, d):
    """log p_S - log p_R of BFN's y, with a mixture in each coordinate. -> (4, 6)"""
    beta, V = d[..., None] / 9, 9  # (4, 6, 1)
    seen = (beta * V).sqrt() * (dy - beta * V * F.one_hot(x, V)) / (beta * V).sqrt()
    y = seen + beta * (V * F.one_hot(x, V) - 1)  # (64, 4, 6, 9)
    normal = lambda mean: -(y[..., None, :] - mean).square() / (2 * beta * V)[..., None]
    sender = normal(beta[..., None] * (V * F.one_hot(x, V)[..., None, :] - 1))[..., 0, :]
    each = normal(beta[..., None] * (V * torch.eye(V) - 1))  # (64, 4, 6, V, V) word, coordinate
    receiver = (log_p[..., None] + each).logsumexp(-2)  # (64, 4, 6, V)
    return (sender - receiver).sum(-1).mean(0)


def test_three_coordinates_hold_the_same_evidence():
    """BFN's, TESS's and Duo's, and gaussian.py with the unit table, (13.2)."""
    lam, k = figure("channel/lam"), figure("channel/k")
    exact = figure("channel/REF_log_evidence_bfn")
    lam = lam[:, None, None]
    tess = figure("channel/w_tess") * (lam * (4 + lam)).sqrt() / (2 * k)
    duo = figure("channel/w_duo")
    unit = log_evidence(duo, -lam[..., 0].log().expand(4, 6), torch.eye(9).double())
    for y in (tess, unit):
        close(y.log_softmax(-1), exact, 1e-9)
    channel = Evidence(9, Squared(30.0), k=float(k))
    shown = channel.shown(tess, channel.time(lam[..., 0]))  # (4, 6, 9)
    close(shown, figure("channel/w_tess").softmax(-1), 1e-9)


def test_steps_are_those_of_the_gaussian_core_in_other_coordinates():
    """(14.8)-(14.11) to figures; (14.9) is (13.4) and (14.10) is (13.5) of z = y sigma^2 / alpha,
    and the integrand of (14.4) is that of (13.7) per unit of lam."""
    y, (lam_t, lam_s) = figure("steps/y"), figure("steps/lam")
    hats, eps = figure("steps/hats"), figure("steps/eps")
    log_p, hot = other_world().log_words(y), F.one_hot(hats, 4)  # (6, 4, 4) each
    close(WordEvidence().move(y, hot, lam_s, lam_t, eps), figure("steps/REF_bfn"))
    found = [walk.move(y, walk.endpoint(log_p, None), lam_s, lam_t, eps)
             for walk in (MeanEvidence(), StraightEvidence())]
    close(found[0], figure("steps/REF_mean_sde"))
    close(found[1], figure("steps/REF_ode"))
    gamma_s, gamma_t = (-lam.log().expand(6, 4) for lam in (lam_s, lam_t))
    scale = lambda gamma: (signal(gamma)[1] ** 2 / signal(gamma)[0])[..., None]
    mean, variance = step_law(y * scale(gamma_t), log_p.exp(), gamma_s, gamma_t)
    z_s = mean + variance.sqrt()[..., None] * eps
    close(z_s / scale(gamma_s), found[0], 1e-9)
    close(ddim(y * scale(gamma_t), log_p.exp(), gamma_s, gamma_t) / scale(gamma_s), found[1], 1e-9)
    x = figure("lang/x")
    log_p = figure("lang/REF_posterior").log()
    error = noise_nats(F.one_hot(x, 4), log_p.exp(), torch.zeros(6, 4).double())
    close(square_error(log_p, x) / 2, error)
    close(error, figure("lang/REF_half_square_error"))


# ---- worlds

class Enumerated:
    """All texts x (K, L) and their probabilities p (K,): the exact denoiser of evidence."""

    def __init__(self, x, p):
        self.x, self.p, self.V, self.L = x, p, int(x.max()) + 1, x.shape[1]
        self.hot = F.one_hot(x, self.V).double().flatten(1)  # (K, L V)

    def of_texts(self, y):
        """(14.3). y (n, L, V) -> p(x | y) (n, K)"""
        return (self.p.log() + y.flatten(1) @ self.hot.T).softmax(-1)  # (n, K)

    def log_words(self, y):
        """-> log p(x_l = v | y) (n, L, V)"""
        return (self.of_texts(y) @ self.hot).view(y.shape).clamp(min=1e-300).log()  # (n, L, V)

    def draw(self, n):
        return torch.multinomial(self.p, n, replacement=True)  # (n,)

    def path(self, of, n, lam1, eps=None):
        """All terms of (14.5) along a path of n steps for the texts `of` (m,). -> (m,) nats"""
        x, nats = self.x[of], 0.0  # (m, L)
        y = torch.zeros(*x.shape, self.V, dtype=torch.float64)  # (m, L, V)
        for i in range(n):
            noise = double(*y.shape) if eps is None else eps[i]  # (m, L, V)
            dy = draw_evidence(x, lam1 * (2 * i + 1) / n ** 2, noise)  # (m, L, V)
            nats, y = nats + receiver_nats(self.log_words(y), dy, x).sum(-1), y + dy
        return nats + word_nats(self.log_words(y), x).sum(-1)  # (m,)

    def excess_constant(self, lam1, n=300, nodes=24):
        """c of (14.6), and its standard error."""
        u, w = (torch.tensor(a) for a in numpy.polynomial.legendre.leggauss(nodes))
        total = torch.zeros(n, dtype=torch.float64)  # (n,)
        for u, w in zip((u + 1) / 2, w / 2):
            x = self.x[self.draw(n)]  # (n, L)
            y = draw_evidence(x, lam1 * u ** 2, double(n, self.L, self.V))  # (n, L, V)
            p = self.of_texts(y)  # (n, K)
            both = torch.einsum("nk,ki,kj->nij", p, self.hot, self.hot)  # (n, L V, L V)
            mean = p @ self.hot  # (n, L V)
            covariance = both - mean[:, :, None] * mean[:, None]  # (n, L V, L V)
            square = covariance.view(n, self.L, self.V, self.L, self.V).square().sum((2, 4))
            pairs = square.triu(1).sum((1, 2))  # (n,) of l < m
            total += w * (2 * lam1 * u) ** 2 * pairs / 2
        return total.mean(), total.std() / n ** 0.5


WORLD = Enumerated(TEXTS, P)


def other_world():
    """256 texts of 4 words."""
    texts = torch.tensor(list(itertools.product(range(4), repeat=4)))  # (256, 4)
    return Enumerated(texts, figure("lang/p"))


def test_paths_in_another_world_are_those_of_another_program():
    """Posterior, and each path of (14.5) in 8 steps, to 1e-9."""
    other, x = other_world(), figure("lang/x")
    close(other.log_words(figure("lang/y")).exp(), figure("lang/REF_posterior"))
    lone = (figure("lang/REF_leave_one_out").log() + figure("lang/y")).softmax(-1)  # (14.7)
    close(lone, figure("lang/REF_posterior"))
    of = (x * torch.tensor([64, 16, 4, 1])).sum(-1)  # (6,)
    nats = other.path(of, 8, float(figure("lang/path_lam1")), figure("lang/path_eps"))
    close(nats, figure("lang/REF_path_terms").sum((0, -1)) + figure("lang/REF_path_recon").sum(-1))


def test_with_one_token_the_steps_telescope():
    """(14.5) is -log p(x) on every path, however many steps, whatever lam1 is, to 1e-10."""
    one, of = Enumerated(torch.arange(5)[:, None], world.weights(1, 5)), torch.arange(5)
    for n, lam1 in ((1, 0.5), (3, 9.0), (20, 25.0)):
        close(one.path(of, n, lam1), -one.p.log(), 1e-10)


def test_the_bound_is_log_v_for_one_uniform_token():
    """A factor of 1/2 or of V would show: (14.4) is log V for any lam1, within 4 errors of 1 %."""
    one, V = Enumerated(torch.arange(9)[:, None], torch.full((9,), 1 / 9).double()), 9
    method = make_method("bfn", V, lam1=6.0, skip=False)
    torch.manual_seed(0)
    denoiser = lambda z, t, at: one.log_words(z.double())[at]
    mean, error = mean_of_batches(lambda: method.nelbo(denoiser, one.x[one.draw(3000)]).sum(-1))
    assert error < 0.01 * math.log(V) and abs(mean - math.log(V)) < 4 * error
    assert method.nelbo(denoiser, one.x).max() > 0.1


@pytest.mark.parametrize("n", [4, 16])
def test_n_steps_cost_c_over_n(n):
    """(14.6), path by path: the bound less -log p(x), within 3.5 errors."""
    torch.manual_seed(n)
    of = WORLD.draw(12_000)
    more = WORLD.path(of, n, 25.0) + P[of].log()  # (m,) nats above -log p(x)
    c, c_error = WORLD.excess_constant(25.0, 1500)
    mean, error = more.mean(), more.std() / len(of) ** 0.5
    late = 0.15 * c / n if n == 4 else 0  # of second order
    assert error < 0.2 * c / n and abs(mean - c / n) < 3.5 * math.hypot(error, c_error / n) + late
    assert mean > 3.5 * error


@pytest.mark.parametrize("lam1, steps", [(2.0, 0), (25.0, 0), (25.0, 4)])
def test_what_lam1_leaves_in_doubt_is_paid_at_the_end(lam1, steps):
    """(14.4) = H + TC at lam1, and (14.5) c/n more: within 4.5 errors of 1 %. TC is .07 nats at
    lam1 = 2 and nothing at 25."""
    method = world.make_world_method("bfn", N, lam1=lam1, bound_steps=steps)
    exact = method.oracle(world.LANGUAGE)
    torch.manual_seed(0)

    def draw():
        of = WORLD.draw(2000)  # (n,)
        y = draw_evidence(TEXTS[of], lam1, double(2000, L, N))  # (n, L, N)
        total = word_nats(WORLD.log_words(y), TEXTS[of]).sum(-1)  # (n,) sum_l H(x_l | y)
        total = total + WORLD.of_texts(y).gather(-1, of[:, None])[:, 0].log()  # (n,) less H(x | y)
        return method.nelbo(exact, TEXTS[of]).sum(-1) + P[of].log() - total  # (n,)
    mean, error = mean_of_batches(draw)
    more = 0.0 if not steps else 0.141  # the excess of 4 steps
    assert error < 0.01 * ENTROPY and abs(mean - more) < 4.5 * error


def test_the_perfect_denoiser_needs_no_clock():
    """Its output does not change when it is told another time, (14.3)."""
    for skip in (True, False):
        method = make_method("bfn", N, skip=skip)
        exact, (y, t) = method.oracle(world.LANGUAGE), method.process.noisy(
            TEXTS, torch.full((27, 1), 3.0))
        assert torch.equal(exact(y, t), exact(y, 1 - t))


def test_the_evidence_of_a_token_counts_once():
    """Twice, or never, costs more than the truth: with (14.7) the oracle leaves it out."""
    torch.manual_seed(0)
    x, nats = TEXTS[WORLD.draw(3000)], []
    for skip, leave_out in ((True, True), (True, False), (False, True)):
        method = make_method("bfn", N, skip=skip)
        oracle = make_method("bfn", N, skip=leave_out).oracle(world.LANGUAGE)
        torch.manual_seed(0)
        nats.append(method.nelbo(oracle, x).sum(-1).mean() - ENTROPY)
    assert abs(nats[0]) < 0.3 and nats[1] > nats[0] + 0.2 and nats[2] > 3


# ---- what a network reads

def test_a_network_reads_beliefs_and_a_given_token_as_itself():
    method, seen = make_method("bfn", 7), []
    x, frozen = torch.randint(7, (6, 5)), torch.rand(6, 5) < 0.5

    def denoiser(z, t, at):
        seen.append((method.process.shown(z, t), t.expand(6, 5)))
        return torch.zeros(int(at.sum()), 7)
    method.loss(denoiser, x, frozen)
    method.nelbo(denoiser, x, frozen)
    list(method.sample(denoiser, torch.where(frozen, x, 0), frozen, 3))
    assert len(seen) == 6
    for theta, t in seen:
        close(theta.sum(-1), torch.ones(6, 5), 1e-6)
        assert torch.equal(theta[frozen], F.one_hot(x, 7).float()[frozen])
        assert (t[frozen] == 0).all() and (t[~frozen] > 0).all()


def test_any_amount_of_evidence_is_a_finite_belief():
    """exp(y) without its maximum would overflow at lam = 100."""
    channel = Evidence(5, Squared(1e6))
    y, t = channel.noisy(torch.arange(5)[None], torch.tensor([[1e6]]))
    theta = channel.shown(y, t)
    assert theta.isfinite().all() and (theta[0].diagonal() == 1).all()
    likelihood = make_method("bfn", 5, lam1=1e6).likelihood(y, t)
    assert torch.equal(likelihood[0], torch.eye(5).double())


def test_a_network_of_evidence_has_a_clock_unless_told_otherwise():
    method, noises = make_method("bfn", 7), []
    for time_input in ("auto", "none"):
        torch.manual_seed(0)
        network = build_network(SimpleNamespace(**{**vars(NETWORK), "time_input": time_input}),
                                method)
        assert isinstance(network, EvidenceNetwork)
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.3)
        y = torch.randn(2, 5, 7)
        early, late = (network(y, torch.full((2, 1), t)) for t in (0.2, 0.8))
        noises.append(torch.equal(early, late))
    assert noises == [False, True]


def test_squared_errors_are_the_bound_and_cross_entropies_are_not():
    """`squared` trains on a draw of (14.4) without its end."""
    squared, ce = (make_method("bfn", N, weighting=a) for a in ("squared", "ce"))
    exact, x = squared.oracle(world.LANGUAGE), TEXTS.repeat(100, 1)
    torch.manual_seed(0)
    loss = squared.loss(exact, x)
    torch.manual_seed(0)
    bound = squared.nelbo(exact, x)
    assert 0 <= (bound - loss).min() and (bound - loss).mean() < 0.01
    assert (ce.loss(exact, x).mean() - loss.mean()).abs() > 0.1
