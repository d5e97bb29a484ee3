"""
Chapter 8. BlockGen (arXiv:2606.02241): one network for blocks of several sizes.

    training    (8.2) with L' = n, n drawn for each batch from a set of sizes                  (8.5)

The bound is (8.2) at the size --diffusion_block, which may change after training, since the network
does not depend on it. At the exact denoiser it is the entropy for every size. Blocks of 1 are
autoregression: a network that was trained on them, too, gives p(x_l | x_<l) of a text that is
written, in one pass. `in_order` of the denoiser of a block is that view, and
samplers/ar_informed.py uses it to check what the diffusion of the block has written.

In the clean half of (8.3) a token sees no clean token to its right, not even in its own block, as
in the public code. So clean keys and values are the same for all sizes, and a cache that diffusion
has filled serves the view from left to right. Blocks of 1 are those of methods/bd3lm.py, and
L' = L has no clean half and is methods/mdlm.py; sizes between are other networks than there.
"""
import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from flags import UserError, flag
from methods.bd3lm import BD3LM, block_diffusion_mask
from methods.left_to_right import read_with_cache
from model import block_causal


@lru_cache
def mixed_block_mask(L, block, reach=None, near=None):
    """(8.3) on [z ; x], L tokens each, where a clean token sees the clean ones up to itself; None
    for one block, which sees all.

    reach, near: a token sees `reach` tokens before its block of `near`, a multiple of it; None: all
    """
    if block == L:
        return None
    pattern, reach, near = block_diffusion_mask(L, block), L if reach is None else reach, near or 1

    def mask_mod(batch, head, query, key):
        back = query % L // near - key % L // near  # blocks from the query back to the key
        in_order = (query < L) | (key <= query)
        return pattern(batch, head, query, key) & in_order & (back * near <= reach)
    mask_mod.cacheable = True
    return mask_mod


@lru_cache
def clean_text(block, reach):
    """The pattern of clean text: up to itself, and `reach` tokens before its block."""
    near = block_causal(block, reach)

    def mask_mod(batch, head, query, key):
        return (key <= query) & near(batch, head, query, key)
    mask_mod.cacheable = True
    return mask_mod


@lru_cache
def noisy_end(block, reach, noisy):
    """The same, where all from place `noisy` on is a noisy block, which sees itself."""
    near = block_causal(block, reach)

    def mask_mod(batch, head, query, key):
        return ((key <= query) | (query >= noisy)) & near(batch, head, query, key)
    mask_mod.cacheable = True
    return mask_mod


@lru_cache
def masks_beside(block, reach, start):
    """The pattern of text with a block at `start`, and behind it a mask for each token of that
    block. A mask sees itself and the text before its token."""
    def mask_mod(batch, head, query, key):
        place = query - block * (query >= start + block)
        back = place // block - key // block
        return (key == query) | (key < place) & (back * block <= reach)
    mask_mod.cacheable = True
    return mask_mod


def parse_list(words, kind):
    """The numbers of a flag. -> list"""
    return [kind(word) for word in words.split(",")] if words else []


@dataclass(eq=False)
class BlockGen(BD3LM):
    """--method blockgen: bd3lm in blocks of several sizes, and from left to right."""
    diffusion_block: int = flag(4, "tokens per block of the bound and of samples; any, also after "
                                "training", least=1, later=True)
    block_sizes: str = flag("", "tokens per block in training, with commas between; empty: 1, 2, "
                            "4, .. and the whole text", each=int, least=1, fixed=True)
    size_weights: str = flag("", "how often each of these is drawn, with commas between; empty: "
                             "all equally", each=float, least=0)
    clip: str = ""  # no flags here: an interval suits one size
    clip_search: bool = False
    reads_in_order, public_layout = True, None

    def __post_init__(self):
        super().__post_init__()
        self.near = self.spare_tokens = self.block_length
        sizes = parse_list(self.block_sizes, int)
        weights = parse_list(self.size_weights, float)
        if weights and not sum(weights):
            raise UserError("--size_weights are all 0: let one be more")
        if sizes and weights and len(sizes) != len(weights):
            raise UserError(f"--size_weights has {len(weights)} numbers and --block_sizes "
                            f"{len(sizes)}: give one for each size")

    def check(self, config):
        super().check(config)
        for n in self.sizes(config.block_size):
            if config.block_size % n:
                raise UserError(f"--block_size {config.block_size} must be a multiple of all "
                                f"--block_sizes, and {n} does not divide it")
        self.weights(config.block_size)

    # ---- sizes

    def sizes(self, L):
        """The sizes of training for texts of L tokens. -> list"""
        if self.block_sizes:
            return parse_list(self.block_sizes, int)
        powers = [2 ** i for i in range(L.bit_length()) if L % 2 ** i == 0]
        return powers + [L] * (L not in powers)

    def weights(self, L):
        """The probability of each of them. -> (n,)"""
        n = len(self.sizes(L))
        weights = parse_list(self.size_weights, float) or [1.0] * n
        if len(weights) != n:
            raise UserError(f"--size_weights has {len(weights)} numbers, and there are {n} sizes, "
                            f"{', '.join(map(str, self.sizes(L)))}: give one for each")
        w = torch.tensor(weights, dtype=torch.float64)  # (n,)
        return w / w.sum()

    def at_size(self, n):
        """The same method with blocks of n tokens."""
        other = copy.copy(self)
        other.diffusion_block = other.block_length = n
        return other

    def most_masked(self, L):
        """The largest share of masks over all sizes, which is that of the smallest one."""
        n = min([self.block_length, *self.sizes(L)])
        return (n + 1) / (2 * n)

    def loss(self, denoiser, x, frozen=None):
        """(8.5): the loss of blocks of one size, drawn for the batch. -> (B, L) nats"""
        L = x.shape[1]
        n = self.sizes(L)[int(torch.multinomial(self.weights(L), 1))]
        return BD3LM.loss(self.at_size(n), denoiser, x, frozen)  # (B, L)

    # ---- who sees whom

    def pattern(self, L, reach=None):
        return mixed_block_mask(L, self.block_length, reach, self.near)

    def next_block(self, denoiser, past, cache, window=None):
        """As in bd3lm; `in_order` of it gives log p(x_l | x_<l) of a block that is written."""
        n, lo = self.block_length, past.shape[1]
        reach = None if window is None else window - n

        def cached(x, at):
            self.read_past(denoiser, cache, past)
            cache.make_room(2 * n)
            places = torch.arange(n, device=x.device).repeat(2) + cache.start  # (2 L',)
            pattern = masks_beside(n, cache.reach, min(cache.read, cache.reach))
            both = torch.cat([x, torch.full_like(x, self.process.mask)], 1)  # (B, 2 L')
            return denoiser(both, None, at=F.pad(at, (n, 0)), positions=places, mask_mod=pattern,
                            cache=cache)  # (N, V)

        def uncached(x, at):
            text = torch.cat([past, x], 1)  # (B, lo + L')
            masks = torch.full_like(text, self.process.mask)  # (B, lo + L')
            view = self.at_size(1).given_before(denoiser, text, reach)
            return view(masks, None, F.pad(at, (lo, 0)))  # (N, V)
        inner = super().next_block(denoiser, past, cache, window)
        inner.in_order = cached if cache else uncached
        return inner

    def read_past(self, denoiser, cache, past):
        """Read what the cache does not hold yet of clean text."""
        if cache.read < past.shape[1]:
            nowhere = torch.zeros_like(past[:, :0], dtype=torch.bool)  # (B, 0)
            pattern = clean_text(self.block_length, cache.reach)
            read_with_cache(denoiser, cache, past, nowhere, past.shape[1], pattern)

    def read_block(self, denoiser, cache, text, at):
        n, lo = self.block_length, text.shape[1] - self.block_length
        self.read_past(denoiser, cache, text[:, :max(0, lo - n)])  # a prompt
        noisy = min(cache.read, cache.reach) + lo - cache.read
        pattern = noisy_end(n, cache.reach, noisy)
        return read_with_cache(denoiser, cache, text, at, lo, pattern)  # (N, V)
