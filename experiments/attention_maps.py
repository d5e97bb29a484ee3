"""
Who looks at whom: the attention weights of a network, read while it runs.

    from experiments.attention_maps import attention_maps

    with attention_maps() as maps:
        denoiser(z, t)
    maps[0]                                   # (B, H, Lq, Lk), of the first block

One map for each call of attention, in order: a block of mdlm makes one, one of pgm up to two. Rows
are queries and sum to 1; 0 where the pattern of the method forbids to look. The weights are
computed a second time, by the formula and in float32, so what the network outputs does not change.
"""
import contextlib

import torch

import model
from methods import pgm


def attention_weights(q, k, mask_mod=None, first=0, rotary=None):
    """softmax(q k' / sqrt(hd)) where mask_mod allows it. (B, H, L, hd) each -> (B, H, Lq, Lk)"""
    if rotary:
        q, k = model.rotate(q, *rotary[:2]), model.rotate(k, *rotary[2:])  # (B, H, L, hd) each
    score = q.float() @ k.float().mT * q.shape[-1] ** -0.5  # (B, H, Lq, Lk)
    if mask_mod is not None:
        score = score.masked_fill(~model.dense_mask(mask_mod, q, k, first), -float("inf"))
    return score.softmax(-1)  # (B, H, Lq, Lk)


@contextlib.contextmanager
def attention_maps():
    """A list that every call of attention inside adds its weights to."""
    maps, plain = [], model.attention

    def attention(q, k, v, mask_mod=None, dropout=0.0, first=0, rotary=None):
        with torch.no_grad():
            maps.append(attention_weights(q, k, mask_mod, first, rotary))
        return plain(q, k, v, mask_mod, dropout, first, rotary)
    model.attention = pgm.attention = attention
    try:
        yield maps
    finally:
        model.attention = pgm.attention = plain
