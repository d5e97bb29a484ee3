"""
Which tiles of an attention pattern have to be looked at: what flash.py visits. No Triton here.

A pattern is any predicate mask_mod(batch, head, query, key). Cut into tiles of some queries by some keys, it is often
*empty* in many, which are never visited, and *whole* in most others, where no mask is needed; only in the rest each
pair has to be asked. So a pattern is looked at once, in full (L x L numbers for a moment), and a plan is kept: the
tiles to visit, and the mask, unless the pattern lets all look at all, or at what is not behind them, which the kernel
knows by itself. What a predicate is shows in its values, not in its name: block_causal(1, L) is causal.

The last few plans are kept. A predicate that is the same in each call should be the same object (model.py and block.py
see to that); one made anew for each batch, as for two groups of tokens, is looked at anew.
"""
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

FULL, CAUSAL, LISTED = 0, 1, 2                               # what a plan says of its pattern


class Plan(NamedTuple):
    """Z = 1, or as many patterns as texts, heads or both have of their own."""
    pattern: int                                             # FULL, CAUSAL or LISTED
    step_b: int                                              # the pattern of text b and head h is step_b b + step_h h
    step_h: int
    mask: torch.Tensor                                       # (Z, Lq, Lk) uint8; (1,) if the pattern is not LISTED
    of_queries: tuple                                        # span (Z, n, 4), order (Z, n, m): see `visits`
    of_keys: tuple                                           # the same for those who own keys, and visit queries


def once(look):
    """Keep the last few answers. To a compiled graph, which then is for these lengths alone, they are constants."""
    kept = functools.lru_cache(maxsize=8)(look)

    def constant(*args):
        return kept(*args)
    constant._dynamo_marked_constant = True                  # torch.compiler.assume_constant_result takes 2 s to load

    def answer(*args):                                       # len(range(n)) is a number where the graph left n open
        return constant(*[len(range(a)) if isinstance(a, int) else a for a in args])
    return answer


def everything(batch, head, query, key):
    return query + key >= 0


def values(mask_mod, B, H, Lq, Lk, first, device):
    """The predicate written out, as far as texts and heads differ. -> (1|B, 1|H, Lq, Lk) bool"""
    index = lambda n: torch.arange(n, device=device)
    query, key = first + index(Lq)[:, None], index(Lk)                                              # (Lq, 1), (Lk,)
    mask = torch.as_tensor(mask_mod(index(B)[:, None, None, None], index(H)[:, None, None], query, key), device=device)
    return mask.expand(torch.broadcast_shapes(mask.shape, (1, 1, Lq, Lk)))                         # (1|B, 1|H, Lq, Lk)


def visits(mask, rows, cols, pattern):
    """What each tile of `rows` rows has to visit, tiles of `cols` columns. mask (Z, R, C) bool

    -> span (Z, n, 4): visits lo .. hi - 1, of which lo' .. hi' - 1 are to whole tiles; order (Z, n, m): the tile of
    each visit, where the pattern is LISTED. Elsewhere visit j is to tile j. A tile that reaches over the last column
    is never whole: what lies beyond must be masked.
    """
    padded = F.pad(mask, (0, -mask.shape[2] % cols, 0, -mask.shape[1] % rows))                      # (Z, n r, m c)
    pairs = padded.unflatten(2, (-1, cols)).unflatten(1, (-1, rows)).sum((2, 4))                    # (Z, n, m)
    tile_of_row = torch.arange(mask.shape[1], device=mask.device) // rows                           # (R,)
    seen, whole = pairs > 0, pairs == tile_of_row.bincount()[:, None] * cols                        # (Z, n, m) each
    order = (2 - seen.int() - whole.int()).argsort(dim=-1, stable=True)                             # (Z, n, m)
    if pattern == LISTED:                                    # whole ones first, then the others
        lo = lo_whole = torch.zeros_like(pairs[..., 0])                                             # (Z, n)
    else:                                                    # one run of tiles, and a run of whole ones in it
        lo, lo_whole = seen.int().argmax(-1), whole.int().argmax(-1)                                # (Z, n) each
    span = torch.stack([lo, lo + seen.sum(-1), lo_whole, lo_whole + whole.sum(-1)], -1)             # (Z, n, 4)
    return span.int().contiguous(), order.int().contiguous()


@once
def plan(mask_mod, B, H, Lq, Lk, first, device, queries_by, keys_by):
    """queries_by, keys_by: (queries, keys) in a tile of the kernels that own queries, and of those that own keys."""
    mask = values(mask_mod or everything, B, H, Lq, Lk, first, device)                             # (1|B, 1|H, Lq, Lk)
    (Zb, Zh), mask = mask.shape[:2], mask.flatten(0, 1)                                             # (Z, Lq, Lk)
    square = torch.ones_like(mask[0])                                                               # (Lq, Lk)
    pattern = FULL if mask.all() else CAUSAL if (mask == square.tril(first)).all() else LISTED
    if pattern != LISTED:
        Zb, Zh, mask = 1, 1, mask[:1]                                                               # (1, Lq, Lk)
    of_queries, of_keys = visits(mask, *queries_by, pattern), visits(mask.mT, *keys_by[::-1], pattern)
    kept = mask.to(torch.uint8).contiguous() if pattern == LISTED else mask.new_zeros(1, dtype=torch.uint8)
    return Plan(pattern, Zh if Zb > 1 else 0, int(Zh > 1), kept, of_queries, of_keys)
