"""
Text that is written in order: the cache of what has been read, and texts that end before others.
"""
import torch
import torch.nn.functional as F

from diffusion import supports
from model import Cache


def new_cache(denoiser, length, block, window=None):
    """A cache for texts of `length` tokens that are read block by block, or None if not supported.

    A block sees at most `window` tokens, itself included.
    """
    if not supports(denoiser, "supports_cache"):
        return None
    fits = window is None or window >= length
    cache = Cache(length) if fits else Cache(2 * window, window - block)
    cache.copies = int(denoiser.supports_cache)
    return cache


def read_with_cache(denoiser, cache, ids, at, final, mask_mod):
    """Logits at some of the last tokens of a text whose beginning is in the cache. -> (N, V)

    ids (B, n): the text so far; at (B, m): which of its last m tokens
    final: how many of the n tokens cannot change any more. These stay in the cache: it holds clean
    text only, so a block is read again, along with the next one, once it is complete
    mask_mod: the pattern where more than m tokens are new
    """
    *pieces, new = ids[:, cache.read:].split(cache.chunk, 1)  # (B, chunk) each, (B, rest)
    for piece in pieces:
        nowhere = torch.zeros_like(piece, dtype=torch.bool)  # (B, chunk)
        denoiser(piece, None, at=nowhere, mask_mod=mask_mod, cache=cache)
        cache.keep(piece.shape[1])
    before = new.shape[1] - at.shape[1]
    at, pattern = F.pad(at, (before, 0)), mask_mod if before > 0 else None  # (B, rest)
    logits = denoiser(new, None, at=at, mask_mod=pattern, cache=cache)  # (N, V)
    cache.keep(final - cache.read)
    return logits


def end_texts(z, frozen, lo, hi, end, going, cache):
    """Texts that drew `end` at lo .. hi - 1, with nothing given after it, leave batch and cache.

    Their other tokens become `end`. z, frozen (B, L); going (b,): those that go on -> z, going"""
    more = frozen.flip(-1).cumsum(-1).flip(-1) > 0  # (B, L) given here or further right
    hit = (z == end) & ~more if end is not None else torch.zeros_like(frozen)  # (B, L)
    if not hit[going, lo:hi].any():
        return z, going
    place = torch.arange(z.shape[1], device=z.device)  # (L,)
    hit = hit & (lo <= place) & (place < hi)  # (B, L)
    after = place > hit.int().argmax(-1, keepdim=True)  # (B, L)
    over = hit.any(-1)  # (B,)
    stay = (~over[going]).nonzero()[:, 0]  # (b',)
    if cache:
        cache.select(stay)
    return torch.where(over[:, None] & after, end, z), going[stay]  # (B, L), (b',)
