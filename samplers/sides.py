"""
Chapter 19. Attention by sides: the source of a text sees itself only, so it is read once.

    query l may see key k    iff  l >= S or k < S,     for a source of S tokens               (19.5)
    n calls of the network read    S + n T  tokens in place of  n (S + T)                     (19.6)

With (19.5) the keys and values of the source depend on nothing that changes while a target of T
tokens is written: not on the target, and not on the time, since a network by sides reads t = 0 at
the source. A cache holds them, and the logits are the same. It is an encoder and a decoder with one
set of weights (`--sides encoder`); under `--sides joined` all tokens see all.

`--sides spiral` is DiffuSIA (arXiv:2305.11517) after its abstract, since no code was found: there
layers of the source read the target and layers of the target the source, in turn. Here all tokens
see all in each layer, with two sets of weights:

    h_l = W h_l of the blocks,  W = W_source if l < S, else W_target                         (19.10)

Its source depends on the target, so it is read again in each step: n (S + T) tokens.

Methods with noise on embeddings tell a given token by its time, 0, so their networks need not be
told where the source ends; they feed the last prediction back beside it, so nothing is cached.
"""
import copy
from functools import lru_cache

import torch
import torch.nn as nn

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


class TwoSets(nn.Module):
    """(19.10): a layer, and a copy of it for the source.

    Rows that were selected are of the target, and so is a condition that all tokens share.
    """

    def __init__(self, layer, source):
        super().__init__()
        self.of_source, self.of_target, self.source = copy.deepcopy(layer), layer, source

    def forward(self, h):
        """(B, L, D) or (N, D) -> the same, of another width"""
        if h.dim() < 3 or h.shape[1] == 1:
            return self.of_target(h)  # (N, D')
        sides = self.of_source(h[:, :self.source]), self.of_target(h[:, self.source:])
        return torch.cat(sides, 1)  # (B, L, D')


def divide(network, method, source, kind="encoder"):
    """Make a network one by sides, for texts with `source` given tokens in front; or UserError."""
    if not source:
        raise UserError(f"--sides {kind} needs texts with a source, such as --data reverse: leave "
                        "it out")
    ours = method.network is Transformer or method.draw_evidence
    if not method.bidirectional or method.mask_mod or not ours:
        raise UserError(f"--sides {kind} is for methods whose tokens all see each other, and "
                        f"{method.name} has a pattern of its own: leave it out")
    if not method.draw_evidence:
        network.source = source
    if kind == "encoder":
        network.mask_mod = by_sides(source)
        return network
    network.supports_cache, last = False, network.blocks[-1]
    for block in network.blocks:
        for name, layer in [*block.named_children()]:
            if block is not last or name not in ("norm2", "mlp"):  # which sees the target alone
                setattr(block, name, TwoSets(layer, source))
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
