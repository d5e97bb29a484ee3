"""
Chapter 19. Attention by sides: the source of a text sees itself only, so it is read once.

    query l may see key k    iff  l >= S or k < S,     for a source of S tokens               (19.5)
    n calls of the network read    S + n T  tokens in place of  n (S + T)                     (19.6)

With (19.5) the keys and values of the source depend on nothing that changes while a target of T
tokens is written: not on the target, and not on the time, since a network by sides reads t = 0 at
the source. A cache holds them, and the logits are the same. It is an encoder and a decoder with one
set of weights (`--sides encoder`); under `--sides joined` all tokens see all.
"""
from functools import lru_cache

import torch

from diffusion import Wrapper, supports
from flags import UserError
from model import Cache, Transformer


@lru_cache
def by_sides(source):
    """(19.5) as an attention pattern."""
    def mask_mod(batch, head, query, key):
        return (query >= source) | (key < source)
    mask_mod.cacheable = True
    return mask_mod


def divide(network, method, source):
    """Make a network one by sides, for texts with `source` given tokens in front; or UserError."""
    if not source:
        raise UserError("--sides encoder needs texts with a source, such as --data reverse: leave "
                        "it out")
    if not method.bidirectional or method.mask_mod or method.network is not Transformer:
        raise UserError(f"--sides encoder is for methods whose tokens all see each other, and "
                        f"{method.name} has a pattern of its own: leave it out")
    network.source, network.mask_mod = source, by_sides(source)
    return network


class CachedSource(Wrapper):
    """A denoiser by sides that reads the source of a batch once, at its first call."""

    def __init__(self, denoiser, source):
        super().__init__(denoiser)
        self.source, self.seen, self.cache = source, None, None

    def read(self, source):
        """Keep keys and values of the source tokens (B, S)."""
        self.seen, self.cache = source.clone(), Cache(capacity=self.length)
        nowhere = torch.zeros_like(source, dtype=torch.bool)  # (B, S)
        self.denoiser(source, None, at=nowhere, cache=self.cache)
        self.cache.keep(self.source)

    def __call__(self, z, t, at=None, **layout):
        if at is None or at.dtype != torch.bool or layout.keys() - {"head"}:
            return self.denoiser(z, t, at=at, **layout)  # (B, L, V) or (N, V)
        S, self.length = self.source, z.shape[1]
        if self.seen is None or not torch.equal(self.seen, z[:, :S]):
            self.read(z[:, :S])
        t = t if t is None or t.shape[1] == 1 else t[:, S:]  # (B, 1) or (B, T)
        return self.denoiser(z[:, S:], t, at=at[:, S:], cache=self.cache, **layout)  # (N, V)


def cache_source(denoiser, frozen, guided):
    """The denoiser, with a cache if its network is one by sides and the source is given.

    frozen (L,): given tokens; guided: the network is called with labels, or without the source
    """
    source = supports(denoiser, "source")
    if source and not guided and supports(denoiser, "supports_cache") and frozen[:source].all():
        return CachedSource(denoiser, source)
    return denoiser
