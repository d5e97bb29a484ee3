"""A world small enough to enumerate: 3 symbols, texts of length 3, 27 known probabilities. An expectation is a sum."""
from itertools import product

import torch
import torch.nn.functional as F

from diffusion import likelihood, posterior_x0, reverse
from masked import Absorbing
from uniform import Hybrid, Uniform

N, L = 3, 3
TEXTS = torch.tensor(list(product(range(N), repeat=L)))                                                 # (27, 3)
P = torch.rand(len(TEXTS), generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 2        # (27,)
P = P / P.sum()
CLASS = torch.rand(len(TEXTS), 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 2   # (27, K)
JOINT = torch.cat([P * (CLASS / CLASS.sum(-1, keepdim=True)).T, P[None]])      # (K + 1, 27) p(x, y); last: no class
PROCESSES = {"mask": Absorbing(N), "uniform": Uniform(N), "hybrid .1": Hybrid(N, 0.1), "hybrid .7": Hybrid(N, 0.7)}


def states(process):
    """Every noisy text. -> (V^3, 3)"""
    return torch.tensor(list(product(range(process.V), repeat=L)))


def evidence(process, z, t):
    """q(z_l | x_l) for every text x of the world. -> (B, 27, L)"""
    return torch.stack([likelihood(process, z, t)[:, l, TEXTS[:, l]] for l in range(L)], -1)


def q(process, z, t):
    """q(z | x) for every text x. -> (B, 27)"""
    return evidence(process, z, t).prod(-1)


def oracle(process, leave_one_out=True):
    """The exact denoiser of this world: the leave-one-out law, or p(x_l | z), for a test that shows the difference."""
    def denoiser(z, t, at=None, label=None):
        weight = P if label is None else JOINT[label]                                                   # (27,)|(B, 27)
        e = evidence(process, z, t.double())                                                            # (B, 27, L)
        rows = []
        for l in range(L):
            others = e[:, :, [k for k in range(L) if k != l or not leave_one_out]].prod(-1) * weight    # (B, 27)
            rows.append(torch.stack([others[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1))       # (B, N)
        law = torch.stack(rows, 1)                                                                      # (B, L, N)
        log_p = (law / law.sum(-1, keepdim=True).clamp(min=1e-300)).clamp(min=1e-300).log()             # (B, L, N)
        return log_p if at is None else log_p[at]
    return denoiser


def classifier(process):
    """The exact p(y | z), from ids, or from weights over symbols at one time for a text."""
    def log_posterior(z, t):
        if z.is_floating_point():
            table = likelihood(process, torch.arange(process.V).expand(len(z), -1), t.double())         # (B, V, N)
            e = torch.stack([(z @ table)[:, l, TEXTS[:, l]] for l in range(L)], -1)                     # (B, 27, L)
        else:
            e = evidence(process, z, t.double())                                                        # (B, 27, L)
        joint = e.prod(-1) @ JOINT[:-1].T                                                               # (B, K)
        return (joint / joint.sum(-1, keepdim=True).clamp(min=1e-300)).clamp(min=1e-300).log()          # (B, K)
    return log_posterior


def left_to_right(z, t, at, label=None):
    """The exact next-token law, as ar asks for it: of the last token of z = [start, x_0, ..]."""
    x, l = z[:, 1:], z.shape[1] - 1
    match = (TEXTS[None, :, :l] == x[:, None]).all(-1) * (P if label is None else JOINT[label])         # (B, 27)
    law = torch.stack([match[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1)                       # (B, N)
    return law[at[:, -1]].log()


def vandal(z, t, at=None):
    """A wrong denoiser that depends on all it is given: position, neighbours and the time."""
    left, right = z.roll(1, -1), z.roll(-1, -1)                                                         # (B, L)
    scores = torch.stack([0.7 * left + 0.2 * z, 0.3 * right + t * z, 1.1 * t + 0 * z], -1)              # (B, L, N)
    log_p = scores.double().log_softmax(-1)                                                             # (B, L, N)
    return log_p if at is None else log_p[at]


def numbers(z, V):
    """Each text of three as one number. (n, 3) -> (n,)"""
    return (z * V ** torch.arange(L).flip(0)).sum(-1)


def surprise(draws, law):
    """Chi-square of draws (ids) against a law, in standard deviations above its mean: about normal for many cells."""
    expected, seen = law * len(draws), torch.bincount(draws, minlength=len(law))
    assert (seen[law == 0] == 0).all(), "drew what has probability zero"
    cells = expected > 5
    rest_expected, rest_seen = expected[~cells].sum(), seen[~cells].sum()       # the rare ones, as one cell
    chi, freedom = ((seen - expected)[cells] ** 2 / expected[cells]).sum(), int(cells.sum()) - 1
    if rest_expected > 5:
        chi, freedom = chi + (rest_seen - rest_expected) ** 2 / rest_expected, freedom + 1
    freedom = max(1, freedom)
    return float((chi - freedom) / (2 * freedom) ** 0.5)


def carried_over(process, x_theta, z):
    """x_theta over all V symbols. Where noise is masks alone, text is known to be right, whatever the network says."""
    x_theta = F.pad(x_theta, (0, process.V - x_theta.shape[-1]))                                        # (B, L, V)
    known = (z < process.n_tokens)[..., None] & isinstance(process, Absorbing)                          # (B, L, 1)
    return torch.where(known, F.one_hot(z, process.V).to(x_theta.dtype), x_theta)                       # (B, L, V)


def psi_law(process, x_theta, z, s, t, kappa):
    """Eq. (10) of psi.py, written out. s, t (B, 1) -> (B, L, V) probabilities of z_s given z_t"""
    symbols = torch.arange(process.V)                                                                   # (V,)
    guess = F.pad(posterior_x0(process, x_theta, z, t), (0, process.V - process.n_tokens))              # (B, L, V)
    again = process.alpha(s)[..., None] * guess + process.b(s[..., None], symbols)                      # (B, L, V)
    return kappa * reverse(process, carried_over(process, x_theta, z), z, s, t) + (1 - kappa) * again   # (B, L, V)
