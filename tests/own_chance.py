"""Random numbers that belong to a text, not to its batch: is a text the same alone as in a batch?

A sampler draws for all texts at once, so a seed gives a text other numbers in another batch. Here
each number depends on the seed, the step, the line of code that draws, and the place of the text
and of the token. What a sampler makes of them then depends on the text alone, bit for bit, or it
depends on the rest of the batch.
"""
import functools
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch


@functools.cache
def number(*key):
    """A number in [0, 1) that belongs to the key."""
    return zlib.crc32(repr(key).encode()) / 2**32


class OwnChance:
    """torch.rand and the like, for texts that are number `first`, `first` + 1, .. of a whole batch.

    Numbers for some of the tokens, (N,) or (N, 1), are the same for all of them, since nobody knows
    whose they are. steps=False, where texts leave the batch: and so are all numbers of one line.
    """

    def __init__(self, seed, first=0, steps=True):
        self.seed, self.first, self.steps = seed, first, steps
        self.step, self.drawn = 0, Counter()

    def last(self, states):
        """The last of the states, which are steps. -> (B, L)"""
        for z in states:
            self.step, self.drawn = self.step + 1, Counter()
        return z

    def line(self):
        """The line of code that draws, and the one that has called it."""
        frame = sys._getframe(2)
        while frame.f_code.co_filename == __file__:
            frame = frame.f_back
        return Path(frame.f_code.co_filename).name, frame.f_lineno, frame.f_back.f_lineno

    def uniform(self, shape, dtype=None, device=None):
        """In place of torch.rand. -> shape"""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        line, dtype = self.line(), dtype or torch.get_default_dtype()
        if len(shape) < 2 or shape[1] == 1 or not self.steps:
            L = shape[-1] if len(shape) > 1 else 1
            row = [number(self.seed, line, l) for l in range(L)]  # (L,)
            return torch.tensor(row, dtype=torch.float64).expand(shape).to(dtype)  # shape
        self.drawn[line] += 1
        time = self.step, self.drawn[line]
        rows = [[number(self.seed, line, time, self.first + b, l) for l in range(shape[1])]
                for b in range(shape[0])]
        return torch.tensor(rows, dtype=torch.float64).to(dtype)  # (B, L)

    def integers(self, like, low, high=None):
        """In place of torch.randint_like. -> shape of `like`"""
        low, high = (0, low) if high is None else (low, high)
        u = self.uniform(like.shape, torch.float64)  # (B, L)
        return (low + u * (high - low)).long()  # (B, L)

    def normal(self, shape, device=None):
        """In place of torch.randn. -> shape (B, L, D)"""
        u = torch.stack([self.uniform(shape[:2], torch.float64) for _ in range(shape[2])], -1)
        return torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)).float()  # (B, L, D)

    def exponential(self, a):
        """In place of Tensor.exponential_."""
        return a.copy_(-torch.log1p(-self.uniform(a.shape, torch.float64)))  # (B, L)

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(torch, "rand", self.uniform)
        self.patch.setattr(torch, "randn", self.normal)
        self.patch.setattr(torch, "rand_like", lambda a: self.uniform(a.shape, a.dtype))
        self.patch.setattr(torch, "randint_like", self.integers)
        self.patch.setattr(torch.Tensor, "exponential_", lambda a: self.exponential(a))
        self.patch.setattr(torch, "randint", lambda high, shape, device=None: self.integers(
            torch.empty(shape), high))
        self.patch.setattr(torch.distributions.Beta, "sample", lambda beta: beta.mean)
        self.before = torch.get_rng_state()
        return self

    def __exit__(self, *error):
        self.patch.undo()
        assert error[0] or torch.equal(self.before, torch.get_rng_state()), (
            "somebody draws by a function that OwnChance does not replace")


def knows_its_own_text(z, t, at=None, words=None, **layout):
    """A denoiser of 5 symbols, of the network's shape for any method, that depends on all it is
    given for a text, and on no other text."""
    if words is not None:  # of latents (B, K, D): words of their decoder, or latents at time t
        known = words.masked_fill(at, 0)  # (B, L)
        z = z.sum((1, 2))[:, None] + known if t is None else z.sum(-1) + known.sum(-1)[:, None]
        at = at if t is None else None
    elif z.is_floating_point():
        z = z.sum(-1)  # (B, L) of rows of embeddings
    place = torch.arange(z.shape[1])  # (L,)
    time = 0 if t is None else 3 * t.double()
    seen = 1.3 * z + 0.7 * z.roll(1, -1) + 2 * place + time  # (B, L)
    logits = 3 * torch.sin(seen[..., None].double() + 1.7 * torch.arange(6))  # (B, L, 6)
    return logits if at is None else logits[at]
