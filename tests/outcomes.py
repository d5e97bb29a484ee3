"""
All outcomes of the draws of a sampler, as rows of a batch, and steps as a chain over the 64 states
of the world of 27 texts.
"""
from itertools import product

import torch

from world import L, N, TEXTS, numbers

STATES = torch.tensor(list(product(range(N + 1), repeat=L)))  # (64, 3)


class AllOutcomes:
    """In place of categorical and toss: row i of a batch gets the i-th of all outcomes, whose
    probability is in `weight` (B,)."""

    def __init__(self, B):
        self.left = torch.arange(B)  # (B,)
        self.weight = torch.ones(B, dtype=torch.float64) / B  # (B,)

    def digit(self, chance):
        """chance (B, C), of C outcomes"""
        C = chance.shape[1]
        digit, self.left = self.left % C, self.left // C  # (B,) each
        self.weight = self.weight * C * chance.gather(1, digit[:, None])[:, 0]  # (B,)
        return digit

    def categorical(self, p):
        p = p.view(len(self.left), -1, p.shape[1])  # (B, m, C)
        p = p / p.sum(-1, keepdim=True)  # (B, m, C)
        return torch.stack([self.digit(p[:, m]) for m in range(p.shape[1])], 1).flatten()  # (B m,)

    def toss(self, chance):
        chance = chance.clamp(max=1).nan_to_num(0.0)  # (B,)
        return self.digit(torch.stack([chance, 1 - chance], 1)) == 0  # (B,)


def fits(z):
    """Which texts agree with the visible tokens of states z (.., 3). -> (.., 27)"""
    return ((z[..., None, :] == N) | (z[..., None, :] == TEXTS)).all(-1)



def opened(z, R):
    """The state z (3,) with the positions R (3,) bool from all texts. -> (27,) numbers of states"""
    return numbers(torch.where(R, TEXTS, z), N + 1)  # (27,)


def patterns(z):
    """All subsets of the masks of z, (3,) bool each."""
    return [torch.tensor(R).bool() & (z == N) for R in product((0, 1), repeat=L)
            if not any(r and v != N for r, v in zip(R, z.tolist()))]


def law_of_texts(choice, steps):
    """Of a sampler whose choice has the law choice (64, 27), in T steps. -> (27,)"""
    p = torch.zeros(64, dtype=torch.float64)  # (64,)
    p[63] = 1.0
    for left in range(steps, 0, -1):
        new, rho = p * (STATES != N).all(-1), 1 / left  # (64,)
        for i in ((p > 0) & (STATES == N).any(-1)).nonzero()[:, 0].tolist():
            for R in patterns(STATES[i]):
                coins = rho ** int(R.sum()) * (1 - rho) ** int(((STATES[i] == N) & ~R).sum())
                new = new.index_add(0, opened(STATES[i], R), p[i] * coins * choice[i])
        p = new
    return p[numbers(TEXTS, N + 1)]  # (27,)
