"""
Figures of the public research code, matched number by number in float64 (1e-5 asked, 1e-9 kept with two exceptions).

tests/d3pm_sedd_reference.npz was made by running the repositories of MDLM (commit c112c52), UDLM (edb0f8c), which both
hold D3PM as a baseline, and SEDD (0605786) on the inputs of tests/reference.npz: B = 4 texts of L = 8 tokens, V = 12
symbols, of which the mask is 11.
"""
import math
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from test_reference import LOG_P, LOG_P_U, T, V, X, X_U, Z, Z_U
from test_reference import figure as shared

from d3pm import Closed, kl
from masked import Absorbing
from score import SEDD, Clock, analytic_law, euler_law, score_entropy
from uniform import Uniform

FIGURES = numpy.load(Path(__file__).parent / "d3pm_sedd_reference.npz")


def figure(name):
    return torch.from_numpy(FIGURES[name])


def same(ours, name, tolerance=1e-9):
    torch.testing.assert_close(ours, figure(name), atol=tolerance, rtol=tolerance)


def terms(chain, x_theta, x, z, steps):
    """T times the term of each token's bound, at the times of the figures. -> (B, L)"""
    t = figure(f"mdlm/nelbo_T{steps}_t").double().clamp(max=1 - 1e-4)[:, None].expand(z.shape)       # as in that code
    rows = (a.flatten() for a in (x, z, t - 1 / steps, t))
    return steps * kl(chain, x_theta.flatten(0, 1), *rows).view(z.shape)


class Wide(Closed):
    """A guess that may also say "mask": the public code lets it, unless `subs_masking` forbids. Then as many as V."""

    def __init__(self, process):
        super().__init__(process)
        self.n_tokens = self.V


@pytest.mark.parametrize("steps", [8, 1000])
def test_d3pm_with_masks(steps):
    """With and without probability on the mask. At tokens that are text it is 0, by (27) and not by decree."""
    wide = Wide(Absorbing(11))
    same(terms(wide, shared("in/logits").softmax(-1), X, Z, steps), f"d3pm/abs_T{steps}_submask0_diff")
    same(terms(wide, F.pad(LOG_P.exp(), (0, 1)), X, Z, steps), f"d3pm/abs_T{steps}_submask1_diff")
    ours = terms(Closed(Absorbing(11)), LOG_P.exp(), X, Z, steps)
    same(ours, f"d3pm/abs_T{steps}_submask1_diff")
    same(ours, f"mdlm/nelbo_T{steps}_subs", 1e-4 if steps == 8 else 1e-9)        # t = 1 there, and not 1 - 1e-4


@pytest.mark.parametrize("steps", [8, 1000])
def test_d3pm_with_uniform_noise(steps):
    """The public code adds 1e-12 within one of the two logarithms, which T = 1,000 makes 1e-8."""
    same(terms(Closed(Uniform(V)), LOG_P_U.exp(), X_U, Z_U, steps), f"d3pm/uni_T{steps}_diff", 1e-10 * steps)


def test_the_public_total_charges_for_the_text_once_more_than_the_bound_does():
    """To the terms k = 1 .. T it adds -log x_theta(x) on clean text, as if z_0 were not x. Ours end with k = 1."""
    for steps in (8, 1000):
        for name, log_p, x in ((f"abs_T{steps}_submask1", LOG_P, X), (f"uni_T{steps}", LOG_P_U, X_U)):
            same(-log_p.gather(-1, x[..., None])[..., 0], f"d3pm/{name}_recon")
            same(figure(f"d3pm/{name}_diff") + figure(f"d3pm/{name}_recon"), f"d3pm/{name}_total")


# ---- SEDD

class Published:
    """The processes of the public code: -log alpha runs from sigma(0), not always 0, to sigma(1), never infinite."""

    def __init__(self, process, sigma, dsigma):
        self.process, self.sigma, self.dsigma = process, sigma, dsigma
        self.V, self.n_tokens, self.mask = process.V, process.n_tokens, getattr(process, "mask", None)

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


LOGLINEAR = Published(Absorbing(11), lambda t: -torch.log1p(-0.999 * t), lambda t: 0.999 / (1 - 0.999 * t))
GEOMETRIC = Published(Uniform(V), geometric, lambda t: geometric(t) * math.log(20 / 1e-4))
GRAPHS = {"abs": (LOGLINEAR, X, Z, Z == 11), "uni": (GEOMETRIC, X_U, Z_U, torch.ones_like(Z_U, dtype=torch.bool))}
each_graph = pytest.mark.parametrize("graph", GRAPHS)


@each_graph
def test_score_entropy(graph):
    process, x, z, at = GRAPHS[graph]
    t, log_s = T.expand(z.shape), figure(f"sedd/{graph}_log_score")
    same(process.sigma(T)[:, 0], f"sedd/{graph}_sigma")
    same(process.dsigma(T)[:, 0], f"sedd/{graph}_dsigma")
    ours = torch.zeros(z.shape, dtype=torch.float64).masked_scatter(
        at, score_entropy(process, log_s[at], x[at], z[at], t[at]))
    same(ours / process.dsigma(T), f"sedd/{graph}_score_entropy")
    same(ours.sum(-1), f"sedd/{graph}_loss_seq")


def test_the_network_under_masks_is_scaled_as_published():
    method, at = SEDD(11), Z == 11
    method.process = LOGLINEAR
    log_s = method.log_score(lambda z, t, at: shared("in/logits")[at], Z, T, at)
    torch.testing.assert_close(log_s, figure("mdlm/sedd_log_score")[at], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(score_entropy(LOGLINEAR, log_s, X[at], Z[at], T.expand(Z.shape)[at]),
                               figure("mdlm/sedd_loss")[at], atol=1e-9, rtol=1e-9)


@each_graph
def test_analytic_and_euler_steps(graph):
    """And the last step to text: analytic, to where alpha is 1. The public code drops the mask there, and leaves what
    it had to nobody."""
    process, _, z, at = GRAPHS[graph]
    dt = figure("sedd/dt")
    score = figure(f"sedd/{graph}_log_score").exp()
    for i, t in enumerate(T[:, 0]):
        rows = lambda name: figure(f"sedd/{graph}_{name}")[i][at[i]]
        s, z_i = score[i][at[i]], z[i][at[i]]
        close = lambda ours, theirs: torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
        close(analytic_law(process, s, z_i, t - dt, t), rows("analytic_q"))
        close(euler_law(process, s, z_i, t - dt, t), rows("euler_q"))
        never = torch.tensor(0.0 if graph == "abs" else -1e3).double()                   # sigma is 0 there
        close(analytic_law(process, s, z_i, never, t)[:, :rows("denoiser_q").shape[1]], rows("denoiser_q"))


def test_the_geometric_clock_is_the_published_one_counted_from_zero():
    t = figure("sched/t").double()
    sigma = figure("sched/geometric_sigma")
    process = Clock(Uniform(V), "geometric")
    close = lambda ours, theirs: torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)   # 1 - tau lost digits
    close(-process.alpha(t).log(), sigma - 1e-4)
    close(-process.dalpha(t) / process.alpha(t), figure("sched/geometric_dsigma"))
    close(-Clock(Uniform(V), "loglinear").alpha(t).log(), figure("sched/loglinear_sigma"))
