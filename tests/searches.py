"""
The world of 27 texts with a reward: what tests of searches share (smc/ of search_reference.npz).
"""
import torch

import world
from methods import make_method
from outcomes import STATES, fits
from references import Figures
from samplers import make_sampler
from world import L, N, TEXTS, numbers

FIGURES = Figures("search_reference")
P, REWARD, TILTED = (FIGURES(f"smc/{name}") for name in ("p", "reward", "tilted"))  # (27,) each
LAM = float(FIGURES("smc/lam"))
MASKS = make_method("mdlm", N)


def normalized(p):
    return p / p.sum(-1, keepdim=True).clamp(min=1e-300)


def marginals(p):
    """The exact denoiser of a law p (27,), in all states. -> (64, L, N)

    Where no text fits, all words are equally likely."""
    joint = fits(STATES) * p  # (64, 27)
    joint = torch.where(joint.sum(-1, keepdim=True) > 0, joint, 1 / 27)  # (64, 27)
    rows = [[(joint * (TEXTS[:, l] == v)).sum(-1) for v in range(N)] for l in range(L)]
    return normalized(torch.stack([torch.stack(row, -1) for row in rows], 1))  # (64, L, N)


def factorised(x_theta):
    """The law of words that are drawn one by one, around what is visible. -> (64, 27)"""
    masked = STATES == N  # (64, L)
    rows = [torch.where(masked, x_theta[:, torch.arange(L), x], 1.0).prod(-1) for x in TEXTS]
    return torch.stack(rows, 1) * fits(STATES)  # (64, 27)


def exact_denoiser(p):
    table = marginals(p).clamp(min=1e-300).log()  # (64, L, N)

    def denoiser(z, t, at=None):
        logits = table[numbers(z, N + 1)]  # (B, L, N)
        return logits if at is None else logits[at]
    return denoiser


DENOISER = exact_denoiser(P)


def reward_of(x):
    return REWARD[numbers(x, N)]  # (n,)


def searcher(name, score=reward_of, **flags):
    """A search in the world, with its reward."""
    made = make_sampler(name, MASKS, **flags)
    made.score = score
    return made


def drawn(made, steps, n=10_000, denoiser=DENOISER, z=None):
    """n texts of a sampler. -> (n, L)"""
    torch.manual_seed(0)
    z = MASKS.prior((n, L)) if z is None else z  # (n, L)
    *_, z = made(MASKS.process, denoiser, z, z != N, steps)
    return z


def off(a, b=TILTED):
    """Total variation."""
    return float((a - b).abs().sum() / 2)


def surprise(z, p):
    return world.surprise(numbers(z, N), p)
