"""A world small enough to enumerate: 3 symbols, texts of length 3, 27 known probabilities. An expectation is a sum."""
from itertools import product

import torch

from diffusion import likelihood

N, L = 3, 3
TEXTS = torch.tensor(list(product(range(N), repeat=L)))                                                 # (27, 3)
P = torch.rand(len(TEXTS), generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 2        # (27,)
P = P / P.sum()


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
    def denoiser(z, t, at=None):
        e = evidence(process, z, t.double())                                                            # (B, 27, L)
        rows = []
        for l in range(L):
            others = e[:, :, [k for k in range(L) if k != l or not leave_one_out]].prod(-1) * P         # (B, 27)
            rows.append(torch.stack([others[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1))       # (B, N)
        law = torch.stack(rows, 1)                                                                      # (B, L, N)
        log_p = (law / law.sum(-1, keepdim=True).clamp(min=1e-300)).clamp(min=1e-300).log()             # (B, L, N)
        return log_p if at is None else log_p[at]
    return denoiser


def vandal(z, t, at=None):
    """A wrong denoiser that depends on all it is given: position, neighbours and the time."""
    left, right = z.roll(1, -1), z.roll(-1, -1)                                                         # (B, L)
    scores = torch.stack([0.7 * left + 0.2 * z, 0.3 * right + t * z, 1.1 * t + 0 * z], -1)              # (B, L, N)
    log_p = scores.double().log_softmax(-1)                                                             # (B, L, N)
    return log_p if at is None else log_p[at]
