"""Texts of the world in every order: denoisers by the set of visible tokens, and chain rules."""
from itertools import permutations, product

import torch

from methods.in_order import oracle_in_order
from world import LANGUAGE, TEXTS, L, N, numbers

STATES = torch.tensor(list(product(range(N + 1), repeat=L)))  # (64, L) N: not visible
ORDERS = list(permutations(range(L)))


class Table:
    """Any p(x_l | visible tokens), in the place of a language. log_p (64, L, N)"""

    def __init__(self, log_p):
        self.log_p, self.V = log_p, N

    def posterior(self, likelihood, topic=None):
        """likelihood (B, n, N): one-hot where a token is visible. -> (B, n, N)"""
        flat, n = (likelihood == 1).all(-1), likelihood.shape[1]  # (B, n)
        z = torch.full((len(likelihood), L), N)  # (B, L)
        z[:, :n] = torch.where(flat, N, likelihood.argmax(-1))  # (B, n)
        return self.log_p[numbers(z, N + 1), :n].exp()  # (B, n, N)

    def denoiser(self):
        return oracle_in_order(self, N)


def random_law(seed):
    """Probabilities that agree with no law of texts. -> (64, L, N)"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(64, L, N, generator=generator, dtype=torch.float64).log_softmax(-1)


def exact_law():
    """log p(x_l | visible tokens) of the world. -> (64, L, N)"""
    seen = torch.nn.functional.one_hot(STATES.clamp(max=N - 1), N).double()  # (64, L, N)
    e = torch.where((STATES == N)[..., None], 1.0, seen)  # (64, L, N)
    return LANGUAGE.posterior(e).clamp(min=1e-300).log()  # (64, L, N)


def confused_law():
    """A third of the exact law is that of the place before it: orders disagree. -> (64, L, N)"""
    p = exact_law().exp()  # (64, L, N)
    return (2 / 3 * p + p.roll(1, 1) / 3).log()


def chain(log_p, order):
    """-log p of every text, token by token in an order of places, from a table. -> (27,) nats"""
    z, nats = torch.full_like(TEXTS, N), torch.zeros(len(TEXTS), dtype=torch.float64)
    for l in order:
        nats = nats - log_p[numbers(z, N + 1), l, TEXTS[:, l]]  # (27,)
        z = z.index_copy(1, torch.tensor([l]), TEXTS[:, l, None])  # (27, L)
    return nats


def stationary(score, logits):
    """The largest slope of score(log_p) at these logits (64, L, N): 0 where nothing is less."""
    logits = logits.clamp(min=-30).requires_grad_()  # (64, L, N)
    return torch.autograd.grad(score(logits.log_softmax(-1)), logits)[0].abs().max()
