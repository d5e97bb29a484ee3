"""
Numbers of the public research code of D3PM and SEDD, in float64 (1e-9, with two exceptions).

reference/d3pm_sedd_reference.npz was made with the code of MDLM (commit c112c52) and UDLM
(edb0f8c), which both hold D3PM as a baseline, and of SEDD (0605786), on the inputs of
tests/references.py.
"""
import math

import pytest
import torch
from references import LOG_P, LOG_P_U, X_THETA, X_U, Z_U, Figures, T, V, X, Z, same
from references import figure as shared

from diffusion import Absorbing, Uniform
from methods.d3pm import ClosedChain, kl_term
from methods.sedd import SEDD, SEDDSchedule, score_entropy
from samplers.euler import analytic_probs, euler_probs

figure = Figures("d3pm_sedd_reference")


def terms(chain, x_theta, x, z, steps):
    """T times the term of each token's bound, at the times of the figures. -> (B, L)"""
    t = figure(f"mdlm/nelbo_T{steps}_t").double()  # (B,)
    t = t.clamp(max=1 - 1e-4)[:, None].expand(z.shape)  # (B, L) as in that code
    rows = (a.flatten() for a in (x, z, t - 1 / steps, t))
    return steps * kl_term(chain, x_theta.flatten(0, 1), *rows).view(z.shape)  # (B, L)


class WideChain(ClosedChain):
    """A chain whose predictions may contain the mask, as in the public code without its flag
    `subs_masking`. They are (B, L, V)."""

    def __init__(self, process, T):
        super().__init__(process, T)
        self.n_tokens = self.V


@pytest.mark.parametrize("steps", [8, 1000])
def test_d3pm_with_masks(steps):
    """With and without probability on the mask. At tokens that are text the term is 0 by (2.2)."""
    wide, p = WideChain(Absorbing(11), steps), shared("in/logits").softmax(-1)  # (B, L, V)
    same(terms(wide, p, X, Z, steps), figure(f"d3pm/abs_T{steps}_submask0_diff"))
    same(terms(wide, X_THETA, X, Z, steps), figure(f"d3pm/abs_T{steps}_submask1_diff"))
    ours = terms(ClosedChain(Absorbing(11), steps), LOG_P.exp(), X, Z, steps)  # (B, L)
    same(ours, figure(f"d3pm/abs_T{steps}_submask1_diff"))
    tolerance = 1e-4 if steps == 8 else 1e-9  # the largest t is 1 there, and not 1 - 1e-4
    same(ours, figure(f"mdlm/nelbo_T{steps}_subs"), tolerance)


@pytest.mark.parametrize("steps", [8, 1000])
def test_d3pm_with_uniform_noise(steps):
    """The public code adds 1e-12 inside one of two logarithms, which T = 1,000 makes 1e-8."""
    ours = terms(ClosedChain(Uniform(V), steps), LOG_P_U.exp(), X_U, Z_U, steps)  # (B, L)
    same(ours, figure(f"d3pm/uni_T{steps}_diff"), 1e-10 * steps)


@pytest.mark.parametrize("steps", [8, 1000])
def test_the_public_total_counts_the_text_once_more_than_the_bound_does(steps):
    """It is our term of (2.3) and -log x_theta(x) of clean text, as if z_0 were not x. Ours end
    with k = 1, whose term is -log p(x | z_1) with the evidence of z_1 in it."""
    cases = ((f"abs_T{steps}_submask1", Absorbing(11), LOG_P, X, Z),
             (f"uni_T{steps}", Uniform(V), LOG_P_U, X_U, Z_U))
    for name, process, log_p, x, z in cases:
        chain, recon = ClosedChain(process, steps), -log_p.gather(-1, x[..., None])[..., 0]
        ours = terms(chain, log_p.exp(), x, z, steps)  # (B, L)
        same(ours + recon, figure(f"d3pm/{name}_total"), 1e-10 * steps)
        first = torch.full(z.shape, 1 / steps, dtype=torch.float64).flatten()  # (B L,)
        at = z.flatten() == (11 if process.mask else x.flatten())  # (B L,) possible at k = 1
        p = log_p.exp().flatten(0, 1)[at]  # (N, n_tokens)
        last = kl_term(chain, p, *(a.flatten()[at] for a in (x, z, first * 0, first)))  # (N,)
        p = p * chain.likelihood(z.flatten()[at], first[at])  # (N, n_tokens)
        same(last, p.sum(-1).log() - p.gather(-1, x.flatten()[at, None])[:, 0].log())


# ---- SEDD

class Published:
    """The processes of the public code: -log alpha runs from sigma(0), which may be above 0, to
    sigma(1), which is finite."""

    def __init__(self, process, sigma, dsigma):
        self.process, self.sigma, self.dsigma = process, sigma, dsigma
        self.V, self.n_tokens = process.V, process.n_tokens
        self.mask, self.text_stays = process.mask, process.text_stays

    def alpha(self, t):
        return torch.exp(-self.sigma(t))

    def dalpha(self, t):
        return -self.dsigma(t) * self.alpha(t)

    def b(self, t, v):
        return self.process.b(-torch.expm1(-self.sigma(t)), v)

    def db(self, t, v):
        return self.process.db(-torch.expm1(-self.sigma(t)), v) * -self.dalpha(t)


def geometric(t):
    return 1e-4 ** (1 - t) * 20 ** t


LOGLINEAR = Published(Absorbing(11), lambda t: -torch.log1p(-0.999 * t),
                      lambda t: 0.999 / (1 - 0.999 * t))
GEOMETRIC = Published(Uniform(V), geometric, lambda t: geometric(t) * math.log(20 / 1e-4))
GRAPHS = {"abs": (LOGLINEAR, X, Z, Z == 11),
          "uni": (GEOMETRIC, X_U, Z_U, torch.ones_like(Z_U, dtype=torch.bool))}
each_graph = pytest.mark.parametrize("graph", GRAPHS)


@each_graph
def test_score_entropy(graph):
    process, x, z, at = GRAPHS[graph]
    t, log_s = T.expand(z.shape), figure(f"sedd/{graph}_log_score")  # (B, L), (B, L, V)
    same(process.sigma(T)[:, 0], figure(f"sedd/{graph}_sigma"))
    same(process.dsigma(T)[:, 0], figure(f"sedd/{graph}_dsigma"))
    ours = score_entropy(process, log_s[at], x[at], z[at], t[at])  # (N,)
    ours = torch.zeros(z.shape, dtype=torch.float64).masked_scatter(at, ours)  # (B, L)
    same(ours / process.dsigma(T), figure(f"sedd/{graph}_score_entropy"))
    same(ours.sum(-1), figure(f"sedd/{graph}_loss_seq"))


def test_the_network_under_masks_is_scaled_as_published():
    method, at, t = SEDD(11), Z == 11, T.expand(Z.shape)  # (B, L) each
    method.process = LOGLINEAR
    log_s = method.log_score(lambda z, t, at: shared("in/logits")[at], Z, T, at)  # (N, V)
    same(log_s, figure("mdlm/sedd_log_score")[at])
    ours = score_entropy(LOGLINEAR, log_s, X[at], Z[at], t[at])  # (N,)
    same(ours, figure("mdlm/sedd_loss")[at])


@each_graph
def test_analytic_and_euler_steps(graph):
    """And the last step to text: analytic, to where alpha is 1. The public code drops the mask
    there, without giving its probability to the other symbols."""
    process, _, z, at = GRAPHS[graph]
    dt = figure("sedd/dt")
    score = figure(f"sedd/{graph}_log_score").exp()  # (B, L, V)
    for i, t in enumerate(T[:, 0]):
        rows = lambda name: figure(f"sedd/{graph}_{name}")[i][at[i]]
        s, z_i = score[i][at[i]], z[i][at[i]]  # (N, V), (N,)
        same(analytic_probs(process, s, z_i, t - dt, t), rows("analytic_q"))
        same(euler_probs(process, s, z_i, t - dt, t), rows("euler_q"))
        clean = torch.tensor(0.0 if graph == "abs" else -1e3).double()  # () where sigma is 0
        last, theirs = analytic_probs(process, s, z_i, clean, t), rows("denoiser_q")
        same(last[:, :theirs.shape[1]], theirs)


def test_the_schedules_are_the_published_ones_counted_from_zero():
    t = figure("sched/t").double()  # (n,)
    process = SEDDSchedule(Uniform(V), "geometric")
    sigma, rate = -process.alpha(t).log(), -process.dalpha(t) / process.alpha(t)  # (n,) each
    same(sigma, figure("sched/geometric_sigma") - 1e-4, 1e-6)  # 1 - tau lost digits
    same(rate, figure("sched/geometric_dsigma"), 1e-6)
    loglinear = SEDDSchedule(Uniform(V), "loglinear")
    same(-loglinear.alpha(t).log(), figure("sched/loglinear_sigma"), 1e-6)
