"""
Chapter 23. Which tiles of an attention pattern have to be visited: the plan of flash_attention.py.

A pattern is any predicate mask_mod(batch, head, query, key). Cut into tiles of some queries by some
keys, many of its tiles are *empty*, and are never visited. Most others are *full*, and need no
mask. Only in the rest must each pair be checked. So a pattern is evaluated once, as L x L numbers,
and its plan is kept: the tiles to visit, and the mask. A full or causal pattern needs no mask,
since the kernel can compute it. It is recognized by its values, not by its name: block_causal(1, L)
is causal.

The last few plans are cached. So a predicate that is the same in each call should be the same
object, as in model.py and methods/bd3lm.py. A predicate created for each batch, such as the two
groups of PGM, is evaluated each time. No Triton here.
"""
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

FULL, CAUSAL, LISTED = 0, 1, 2  # the kinds of pattern


class Plan(NamedTuple):
    """Z different patterns: 1 if all texts and heads share one, else one per text, head or both."""
    pattern: int  # FULL, CAUSAL or LISTED
    step_b: int  # text b and head h have pattern number step_b b + step_h h
    step_h: int
    mask: torch.Tensor  # (Z, Lq, Lk) uint8; (1,) unless the pattern is LISTED
    of_queries: tuple  # span (Z, n, 4), order (Z, n, m) of tile_visits: kernels that own queries
    of_keys: tuple  # the same for the kernel that owns keys and visits queries


def cache_constant(function):
    """Cache the last few results. In a compiled graph, which holds for these lengths only, they are
    constants."""
    cached = functools.lru_cache(maxsize=8)(function)

    def constant(*args):
        return cached(*args)
    constant._dynamo_marked_constant = True  # as torch.compiler.assume_constant_result, which
    # imports torch._dynamo: 2 seconds

    def call(*args):  # len(range(n)) turns a symbolic length into a number
        return constant(*[len(range(a)) if isinstance(a, int) else a for a in args])
    return call


def full_mask(batch, head, query, key):
    return query + key >= 0


def mask_values(mask_mod, B, H, Lq, Lk, first, device):
    """The predicate as a tensor; one text or head stands for all that share a pattern.

    -> (1|B, 1|H, Lq, Lk) bool
    """
    index = lambda n: torch.arange(n, device=device)
    query, key = first + index(Lq)[:, None], index(Lk)  # (Lq, 1), (Lk,)
    mask = mask_mod(index(B)[:, None, None, None], index(H)[:, None, None], query, key)
    mask = torch.as_tensor(mask, device=device)  # anything that can be expanded to (B, H, Lq, Lk)
    return mask.expand(torch.broadcast_shapes(mask.shape, (1, 1, Lq, Lk)))  # (1|B, 1|H, Lq, Lk)


def tile_visits(mask, rows, cols, pattern):
    """The visits of each tile of `rows` rows to tiles of `cols` columns. mask (Z, R, C) bool

    -> span (Z, n, 4): visits lo .. hi - 1, of which lo' .. hi' - 1 are to full tiles
       order (Z, n, m): the tile of each visit if the pattern is LISTED; else visit j is to tile j

    A tile that extends over the last column is never full, since the columns beyond must be masked.
    """
    padded = F.pad(mask, (0, -mask.shape[2] % cols, 0, -mask.shape[1] % rows))  # (Z, n r, m c)
    pairs = padded.unflatten(2, (-1, cols)).unflatten(1, (-1, rows)).sum((2, 4))  # (Z, n, m)
    tile_of_row = torch.arange(mask.shape[1], device=mask.device) // rows  # (R,)
    visited, full = pairs > 0, pairs == tile_of_row.bincount()[:, None] * cols  # (Z, n, m) each
    order = (2 - visited.int() - full.int()).argsort(dim=-1, stable=True)  # (Z, n, m)
    if pattern == LISTED:  # full tiles first, then the others
        lo = lo_full = torch.zeros_like(pairs[..., 0])  # (Z, n)
    else:  # one run of tiles, and within it one run of full tiles
        lo, lo_full = visited.int().argmax(-1), full.int().argmax(-1)  # (Z, n) each
    span = [lo, lo + visited.sum(-1), lo_full, lo_full + full.sum(-1)]  # (Z, n) each
    return torch.stack(span, -1).int().contiguous(), order.int().contiguous()


@cache_constant
def plan_tiles(mask_mod, B, H, Lq, Lk, first, device, query_tiles, key_tiles):
    """The plan of a pattern. query_tiles, key_tiles: (queries, keys) per tile of the kernels that
    own queries, and of the kernel that owns keys."""
    mask = mask_values(mask_mod or full_mask, B, H, Lq, Lk, first, device)  # (1|B, 1|H, Lq, Lk)
    (Zb, Zh), mask = mask.shape[:2], mask.flatten(0, 1)  # (Z, Lq, Lk)
    causal = torch.ones_like(mask[0]).tril(first)  # (Lq, Lk)
    pattern = FULL if mask.all() else CAUSAL if (mask == causal).all() else LISTED
    if pattern != LISTED:
        Zb, Zh, mask = 1, 1, mask[:1]  # (1, Lq, Lk)
    of_queries = tile_visits(mask, *query_tiles, pattern)
    of_keys = tile_visits(mask.mT, *key_tiles[::-1], pattern)
    kept = mask.to(torch.uint8).contiguous()  # (Z, Lq, Lk)
    kept = kept if pattern == LISTED else kept.new_zeros(1)  # (Z, Lq, Lk) or (1,)
    return Plan(pattern, Zh if Zb > 1 else 0, int(Zh > 1), kept, of_queries, of_keys)
