"""
Fast forms, each beside its plain one. Optional: without this file everything works, slower or in more memory.
"""
import functools
import os
from contextlib import suppress

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from data import BadInput
from tiles import once, values

flash = None
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    with suppress(ModuleNotFoundError):                      # Triton comes with PyTorch for GPUs; elsewhere by pip
        import flash

# ---- attention
#
# Who computes attention:
#     sdpa     the plain form, model.attention: PyTorch's fused kernels, a mask written out where the pattern needs one
#     flex     FlexAttention, compiled: visits no empty tile. On CPUs it has no gradient, and is not used
#     triton   flash.py: visits no empty tile either, and turns queries and keys while it loads them
#     auto     on a GPU, flex where gradients are wanted through a pattern that is neither full nor causal; else sdpa
# flex compiles anew for each shape. Training has one; sampling, where texts grow, has many: there auto takes sdpa. And
# looking at a pattern costs as much as using it once: auto skips tiles only for predicates that last (`lasts`), being
# the same object in each call; PGM's groups are new in each batch.

chosen = "auto"


def attend_by(way, device):
    """From now on attention goes this way. BadInput where it cannot, on this device."""
    global chosen
    if way == "flex" and device.type != "cuda":
        raise BadInput("--attention flex needs a GPU: elsewhere FlexAttention has no gradient. Take auto")
    if way == "triton" and not (flash and (flash.INTERPRET or device.type == "cuda")):
        raise BadInput("--attention triton needs a GPU, and Triton (pip install triton). Take auto")
    chosen = way


def way(q, v, mask_mod, dropout, first, causal):
    """Who computes this call, sdpa, flex or triton. q (B, H, Lq, hd), v (B, H, Lk, hd)"""
    if dropout or q.shape[2] < 16 or chosen == "sdpa":       # only sdpa drops; a few new tokens have nothing to skip
        return "sdpa"
    lasts = mask_mod is None or getattr(mask_mod, "lasts", False)
    if not lasts and torch.compiler.is_compiling():          # a graph cannot hold what each batch makes anew
        return "sdpa"
    if chosen == "triton":
        here = v.is_cuda or flash.INTERPRET
        return "triton" if here and v.dtype in flash.DTYPES and v.shape[3] in flash.HEADS else "sdpa"
    if mask_mod is None or chosen == "flex":
        return "sdpa" if mask_mod is None else "flex"
    square = mask_mod is causal and first == 0 and q.shape[2] == v.shape[2]      # a library kernel knows this one
    pays = v.is_cuda and lasts and q.shape[2] >= 128 and torch.is_grad_enabled()
    return "flex" if pays and not square else "sdpa"


def attention(causal, rotate):
    """Decorates the plain form, whose signature stays: each call then goes the way that suits it."""
    def decorate(plain):
        @functools.wraps(plain)
        def faster(q, k, v, mask_mod=None, dropout=0.0, first=0, rotary=None):
            by = way(q, v, mask_mod, dropout, first, causal)
            if by == "triton":
                return flash.flash(q, k, v, mask_mod, first, rotary)                                # (B, H, Lq, hd)
            if by == "flex":
                q, k = (rotate(q, *rotary[:2]), rotate(k, *rotary[2:])) if rotary else (q, k)       # (B, H, ., hd)
                return flex(q.to(v.dtype), k.to(v.dtype), v, mask_mod, first)                       # (B, H, Lq, hd)
            return plain(q, k, v, mask_mod, dropout, first, rotary)                                 # (B, H, Lq, hd)
        return faster
    return decorate


@functools.lru_cache
def compiled_flex():
    return torch.compile(flex_attention)                     # without compiling, it writes all scores out


@once
def flex_tiles(mask_mod, B, H, Lq, Lk, device):
    """The tensors of FlexAttention's BlockMask; one for all texts, or heads, where the predicate has one for all."""
    of_b, of_h = values(mask_mod, B, H, 1, 1, 0, device).shape[:2]
    tiles = create_block_mask(mask_mod, B if of_b > 1 else None, H if of_h > 1 else None, Lq, Lk, device=device)
    return (tiles.kv_num_blocks, tiles.kv_indices, tiles.full_kv_num_blocks, tiles.full_kv_indices,
            tiles.q_num_blocks, tiles.q_indices, tiles.full_q_num_blocks, tiles.full_q_indices)


@functools.lru_cache(maxsize=8)
def moved(mask_mod, first):
    """The predicate for queries that start at place `first`."""
    return lambda b, h, query, key: mask_mod(b, h, first + query, key)


def flex(q, k, v, mask_mod, first=0):
    """FlexAttention where mask_mod allows it. (B, H, Lq, hd), twice (B, H, Lk, hd) -> (B, H, Lq, hd)"""
    mask_mod, (B, H, Lq, _), Lk = moved(mask_mod, first) if first else mask_mod, q.shape, k.shape[2]
    tiles = BlockMask((Lq, Lk), *flex_tiles(mask_mod, B, H, Lq, Lk, q.device), mask_mod=mask_mod)
    call = flex_attention if torch.compiler.is_compiling() else compiled_flex()
    return call(q, k, v, block_mask=tiles)                                                          # (B, H, Lq, hd)
