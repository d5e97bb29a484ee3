"""
Block diffusion, BD3-LM (arXiv:2503.09573): autoregression across blocks of L' tokens, masked diffusion inside each.

    likelihood   -log p(x) = sum_b -log p(x^b | x^<b)                                                             (15)
    bound        -log p(x^b | x^<b) <= E_k E_z sum_l [z_l = m] (L'/k) (-log x_theta(x_l | z^b, x^<b)),            (16)
                 eq. (6) in each block, k ~ Uniform{1..L'} of its own
    attention    one pass for all blocks, over [z ; x], 2L tokens that stand at 0 .. L-1 twice:                   (17)
                 a token may look at its own block in its own half, and at the *clean* tokens of earlier blocks
    clipped      (1/t) cross-entropy at the masks, t ~ U(low, high) for each block                                (18)

L' = 1 is autoregression: the one token is always masked, k = 1, and (16) is exact. L' = L is masked diffusion: nothing
stands before the only block, the clean half is empty, and bound and samples are those of masked.py to the bit.

Training draws the number of masks as (16) does, since a rate t of (0, 1) leaves many small blocks without any mask and
gives weights without limit. The paper's remedy is (18), a rate from an interval that suits the block, or whose loss is
found to vary least; it is no bound unless low, high = 0, 1, and `nelbo` never uses it. Its code also redraws blocks
whose share of masks lies outside of the interval, and so never trains on a block that is all masks, from which every
sampling starts. Here nothing is redrawn: at rates of .45 to .95, three in ten blocks of four are all masks.
"""
from functools import lru_cache

import torch
import torch.nn.functional as F

from autoregressive import end_texts
from data import BadInput
from diffusion import ancestral, corrupt, probabilities, stratified
from masked import MDLM, any_order, masked_weight
from model import block_causal, new_cache, read
from positions import like, moved


@lru_cache
def doubled(L, block, reach=None):
    """Eq. (17) as a pattern of attention on [z ; x], L tokens each; None for a single block, which sees all of itself.

    reach: how many tokens before its block a token may see, a multiple of the block; None for all.
    """
    def mask_mod(batch, head, query, key):
        # exercise 17: who may look at whom, eq. (17), 3 lines
        back = query % L // block - key % L // block         # blocks from the query back to the key
        own = (back == 0) & (query // L == key // L)         # of which half: inductor stumbles over bool == bool
        return own | (back > 0) & (back * block <= (L if reach is None else reach)) & (key >= L)
        # end
    mask_mod.lasts = True
    return None if block == L else mask_mod


def strata(B, K, device="cpu"):
    """A time for each of K blocks in B texts, one in each (B K)-th of (0, 1), dealt out at random. -> (B, K)

    Dealt in order, the k-th block would get times from a few intervals only, and its bound would be wrong. (A single
    block needs no dealing: texts are drawn anew for each batch.)
    """
    u = stratified(B * K, device)[:, 0]                                                             # (B K,)
    return (u[torch.randperm(B * K, device=device)] if K > 1 else u).view(B, K)                     # (B, K)


def clip_grid():
    """The paper's intervals (low, high): all of (0, 1), and every one of width .5 to .9 on a grid of .05."""
    widths = (0.5, 0.6, 0.7, 0.8, 0.9)
    return [(0.0, 1.0)] + [(round(i * 0.05, 2), round(i * 0.05 + w, 2))
                           for w in widths for i in range(round((1 - w) / 0.05) + 1)]


def least_variance(t, nats, grid):
    """The interval with the least variance of (18). t, nats (n,): times of (0, 1), and the loss of a block at each.

    Those of the times that fall into an interval are uniform there: one set of draws serves all intervals.
    """
    inside = [(t >= low) & (t <= high) for low, high in grid]                                       # (n,) each
    spread = [nats[rows].var().item() if rows.sum() > 1 else float("inf") for rows in inside]
    return grid[min(range(len(grid)), key=spread.__getitem__)]


def interval(clip):
    """--clip as numbers low, high; None where it is empty."""
    try:
        low, high = map(float, clip.split(",")) if clip else (0, 1)
    except ValueError:
        low = high = -1
    if not 0 <= low <= high <= 1 or not high:
        raise BadInput(f"--clip {clip} must be two rates between 0 and 1, the lower first, as in 0.45,0.95")
    return (low, high) if clip else None


class BD3LM(MDLM):
    """--method bd3lm: mdlm in blocks of --diffusion_block tokens. (--block_size is the length of a text in training,
    as in nanoGPT; and LLaDA's blocks, decoding.py, are a way to sample from mdlm, not another network.)
    """

    window = stop = None                                     # of samples, set by sample.py: memory, end-of-text id

    def __init__(self, n_tokens, weighting="simple", diffusion_block=4, clip=""):
        super().__init__(n_tokens, weighting)
        self.block, self.clip = diffusion_block, interval(clip)

    def given_before(self, denoiser, x, reach=None):
        """A denoiser of z (B, L) that shows each block the clean tokens of x (B, L) before it: one pass of (17).

        The clean half goes without its last block, which nothing could look at. -> logits in the rows `at` (B, L)
        """
        L = self.whole_blocks(x.shape[1])
        place = torch.arange(L, device=x.device)                                                    # (L,)
        layout = {} if self.block == L else dict(positions=torch.cat([place, place[:-self.block]]),
                                                 mask_mod=doubled(L, self.block, reach))            # (2L - L',)

        def given(z, t, at, **head):
            both = torch.cat([z, x[:, :-self.block]], 1)                                            # (B, 2L - L')
            at = moved(at, L, both.shape[1])                                                        # (B, 2L - L')
            return denoiser(both, None, at=at, **layout, **head)                         # (N, V) t: masks tell it
        return like(denoiser, given)

    def whole_blocks(self, L):
        if L % self.block:
            whole = -(-L // self.block) * self.block
            raise BadInput(f"{L} tokens are no whole number of blocks of {self.block}: make it {whole} with --length")
        return L

    def loss(self, denoiser, x, frozen=None):
        """What training minimises, (B, L): (16), or without its weights if `simple`, or (18) as masked.py has it."""
        if self.clip:
            return self.clipped(denoiser, x, frozen)[0]                                             # (B, L)
        z, k, n = self.any_order(x, frozen)                                                         # (B, L) each
        weight = 2 * n / (n + 1) if self.weighting == "simple" else n / k        # in a block of one, either is 1
        share = (self.block + 1) / (2 * self.block)          # k is 1 .. L', evenly
        return self.cross_entropy(self.given_before(denoiser, x), x, z, None, weight, frozen, share)    # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (16), whatever training does. -> (B, L) nats"""
        z, k, n = self.any_order(x, frozen)                                                         # (B, L) each
        return n / k * self.cross_entropy(self.given_before(denoiser, x), x, z, None)               # (B, L)

    def any_order(self, x, frozen=None):
        """The draw of (16): k of the n free tokens of each block become masks. -> z, k, n (B, L) each"""
        parts = lambda a: None if a is None else a.reshape(-1, self.block)                          # (B K, L')
        u = strata(len(x), x.shape[1] // self.block, x.device).reshape(-1, 1)                       # (B K, 1)
        z, k, n = any_order(self.process, parts(x), u, parts(frozen))                               # (B K, L'|1)
        return (a.expand(-1, self.block).reshape(x.shape) for a in (z, k, n))

    def clipped(self, denoiser, x, frozen=None, low_high=None):
        """(18) for self.clip, or the given interval; `simple` as in masked.py. -> (B, L) nats, t (B, L)"""
        (low, high), simple = low_high or self.clip, self.weighting == "simple" and not low_high
        u = strata(len(x), x.shape[1] // self.block, x.device)                                      # (B, K)
        u = 1 - (1 - u).sqrt() if simple else u                                                     # (B, K)
        t = (low + (high - low) * u).repeat_interleave(self.block, 1)                               # (B, L)
        z = corrupt(self.process, x, t, frozen)                                                     # (B, L)
        weight = 3 / (2 * low + high) if simple else masked_weight(self.process, t)                 # (B, L)
        share = (2 * low + high) / 3 if simple else (low + high) / 2         # the mean of t
        return self.cross_entropy(self.given_before(denoiser, x), x, z, t, weight, frozen, share), t

    @torch.no_grad()
    def search_clip(self, denoiser, x, batch_size):
        """The interval of the paper's grid in which (18) varies least from block to block, on texts x (n, L)."""
        if self.block == 1:
            return 1.0, 1.0                                  # always a mask: then no noise is left
        draws = [self.clipped(denoiser, part, low_high=(0.0, 1.0)) for part in x.split(batch_size)]
        nats, t = (torch.cat(parts).reshape(-1, self.block).mean(-1) for parts in zip(*draws))      # (n K,) each
        return least_variance(t, nats, clip_grid())

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, law=probabilities):
        """Block after block; yields z after each step. `steps` are those of one block, `sampler` is one of masks.

        What is given to the right of a block is kept, but not looked at. A text longer than `window` is read through
        a window of so many tokens.
        """
        L, cache = self.whole_blocks(z.shape[1]), new_cache(denoiser, z.shape[1], self.block, self.window)
        going = torch.arange(len(z), device=z.device)
        for lo in range(0, L, self.block):
            place = torch.arange(lo, lo + self.block, device=z.device)                              # (L',)
            if frozen[going][:, place].all():
                continue
            inside = self.next_block(denoiser, z[going, :lo], cache)
            for block in sampler(self.process, inside, z[going][:, place], frozen[going][:, place], steps, law):
                z = z.index_put((going[:, None], place), block)                                     # (B, L)
                yield z
            texts = len(going)
            z, going = end_texts(z, frozen, lo, lo + self.block, self.stop, going, cache)
            if len(going) < texts:
                yield z

    def next_block(self, denoiser, past, cache):
        """A denoiser of the block after `past` (B, lo), which is clean text. -> logits in the rows `at` (B, L')"""
        lo = past.shape[1]

        def cached(z, t, at):
            return read(denoiser, cache, torch.cat([past, z], 1), at, lo, block_causal(self.block, cache.reach))

        def uncached(z, t, at):
            text = torch.cat([past, z], 1)                                                          # (B, lo + L')
            reach = None if self.window is None else self.window - self.block
            return self.given_before(denoiser, text, reach)(text, t, F.pad(at, (lo, 0)))
        return cached if cache else uncached
