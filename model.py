"""
The denoiser: one transformer for every method, the DiT of SEDD (arXiv:2310.16834) that MDLM, UDLM, Duo and GIDD share.

    h   = embed(z)                                     ids, or weights over symbols ("soft" inputs)
    c   = silu(mlp(features(noise)) [+ embed(label)])  what the network is told besides z; cond_dim=0 tells nothing
    h  += gate1 * out(attention(norm(h) * (1 + scale1) + shift1))
    h  += gate2 * mlp(norm(h) * (1 + scale2) + shift2)               shift, scale, gate = linear(c), at first all zero
    logits = head(norm(h) * (1 + scale) + shift)       only at the positions that `at` selects

Shapes: B sequences, L positions, V symbols, D = n_embd, H heads of size D / H, C = cond_dim.
A pattern of attention is a predicate, mask_mod(batch, head, query, key) -> may this query look at this key?
A Cache holds the keys and values of what was read before: only new tokens go through the network then.
No loss here (see the method files) and no sampling (diffusion.py).
"""
import math
from functools import lru_cache, partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange

try:
    import kernels
except ModuleNotFoundError:                              # an optional file: without it, all is plain
    kernels = None


def causal(batch, head, query, key):
    """Look at yourself and to the left: autoregression."""
    return query >= key


causal.lasts = True                                      # the same object in each call: worth knowing (kernels.py)


@lru_cache
def block_causal(block, reach):
    """Look at your own block of tokens, and at `reach` tokens before it, a multiple of the block."""
    def mask_mod(batch, head, query, key):
        back = query // block - key // block
        return (back >= 0) & (back * block <= reach)
    mask_mod.lasts = True
    return mask_mod


def rotary_angles(positions, head_size):
    """Rotary positions (arXiv:2104.09864): pair i of a head turns by position / 10000^(2i / hd). -> 2 x (L, hd/2)"""
    speed = 10000.0 ** (-torch.arange(0, head_size, 2, device=positions.device) / head_size)        # (hd/2,)
    angle = positions.float()[:, None] * speed                                                      # (L, hd/2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turn the pairs (x1, x2) of x = [x1 ; x2], split in halves, not interleaved. (B, H, L, hd) -> same"""
    x1, x2 = x.chunk(2, -1)                                                                   # (B, H, L, hd/2) each
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).to(x.dtype)


@torch.compiler.assume_constant_result
def medium_precision():
    return torch.get_float32_matmul_precision() == "medium"


@kernels.attention(causal, rotate) if kernels else lambda plain: plain
def attention(q, k, v, mask_mod=None, dropout=0.0, first=0, rotary=None):
    """softmax(q k' / sqrt(hd)) v where mask_mod allows it, everywhere for None. (B, H, Lq, hd) -> (B, H, Lq, hd)

    first: the place of the first query among the keys; after a cache, behind all that it holds
    rotary: cos, sin of the queries and cos, sin of the keys, if these come unturned
    """
    if rotary:
        q, k = rotate(q, *rotary[:2]), rotate(k, *rotary[2:])                                       # (B, H, L, hd)
    if mask_mod is causal and q.shape[2] == 1:
        mask_mod = None                                  # the newest token looks at all that is there
    if v.is_cpu and k.shape[2] <= 1024 and (v.dtype == torch.bfloat16 or medium_precision()):
        # the formula itself: the library's kernel for CPUs knows nothing of oneDNN's faster products
        score = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)                                       # (B, H, Lq, Lk)
        score = score if mask_mod is None else score.masked_fill(~dense(mask_mod, q, k, first), -math.inf)
        return F.dropout(score.softmax(-1), dropout) @ v                                            # (B, H, Lq, hd)
    if mask_mod is None or mask_mod is causal and q.shape == k.shape:    # no mask in memory: twice as fast
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=mask_mod is causal)
    return F.scaled_dot_product_attention(q, k, v, dense(mask_mod, q, k, first), dropout)


def dense(mask_mod, q, k, first=0):
    """The predicate written out: True where query (row) may look at key (column). -> (B, H, Lq, Lk) bool"""
    (B, H, Lq, _), Lk, index = q.shape, k.shape[2], lambda n: torch.arange(n, device=q.device)
    mask = mask_mod(index(B)[:, None, None, None], index(H)[:, None, None], first + index(Lq)[:, None], index(Lk))
    return torch.as_tensor(mask, device=q.device).expand(B, H, Lq, Lk)                              # (B, H, Lq, Lk)


def noise_features(noise):
    """cos(n f_k), sin(n f_k), f_k = 10000^(-k/128), of the noise level n as it is. (B, 1|L) -> (B, 1|L, 256)"""
    f = torch.exp(-math.log(10000) * torch.arange(128, device=noise.device) / 128)                  # (128,)
    angle = noise.float()[..., None] * f                                                            # (B, 1|L, 128)
    return torch.cat([angle.cos(), angle.sin()], -1)


def modulate(h, shift, scale):
    """Adaptive layer norm (arXiv:2212.09748): the condition moves and stretches what the norm made plain."""
    return h if shift is None else h * (1 + scale) + shift


def rows(h, at):
    """The rows of h (B, L, D) at positions: a boolean (B, L), or numbers (N,) of the flattened text. -> (N, D)"""
    return h if h is None or at is None else h[at] if at.dtype == torch.bool else h.flatten(0, 1)[at]


class Cache:
    """Keys and values of the tokens that were read, of all layers. What a call reads goes in at `start`.

    Whether it stays is the caller's choice: `keep` moves `start` behind it, and without that the next call writes over
    it. A call looks at the last `reach` tokens before `start`, at its own, and, if `length` lies further on, at what
    an earlier call left behind them up to there (the dual cache of decoding.py).

    Memory is `capacity` tokens, however long the text: when it is full, the last `reach` move to the front, and their
    keys turn back by the way they moved, since rotary positions count by their distance alone.
    """

    def __init__(self, capacity, reach=None):
        self.capacity, self.reach = capacity, capacity if reach is None else reach
        self.chunk = capacity if reach is None else capacity - reach             # what there always is room for
        self.start = self.length = self.read = 0             # read: tokens kept since the beginning of the text
        self.k, self.v = {}, {}                              # layer -> (B, H, capacity, hd)
        self.copies = 1                                      # so many rows for each text: two if it is guided

    def write(self, layer, k, v):
        """This call's keys, turned, and values (B, H, L, hd) -> those that it looks at, (B, H, Lk, hd) each"""
        if layer not in self.k:
            self.k[layer], self.v[layer] = (a.new_empty(*a.shape[:2], self.capacity, a.shape[3]) for a in (k, v))
        end, first = self.start + k.shape[2], max(0, self.start - self.reach)
        for stored, new in ((self.k[layer], k), (self.v[layer], v)):
            stored[:, :, self.start:end] = new
        return tuple(a[layer][:, :, first:max(end, self.length)] for a in (self.k, self.v))

    def keep(self, n):
        self.start, self.read = self.start + n, self.read + n

    def make_room(self, n):
        """See to it that n more tokens fit in, at most `chunk`."""
        if self.start + n <= self.capacity:
            return
        moved = self.start - self.reach
        for layer, k in self.k.items():
            back = rotary_angles(torch.tensor([-moved], device=k.device), k.shape[3])               # 2 x (1, hd/2)
            k[:, :, :self.reach] = rotate(k[:, :, moved:self.start], *back)                         # (B, H, reach, hd)
            self.v[layer][:, :, :self.reach] = self.v[layer][:, :, moved:self.start].clone()        # (B, H, reach, hd)
        self.start = self.reach

    def select(self, rows):
        """Go on with these texts of the batch alone, (n,) indices."""
        for part in (self.k, self.v):
            part.update({layer: torch.cat([copy[rows] for copy in a.chunk(self.copies)])
                         for layer, a in part.items()})                                             # (n, H, ., hd)


def new_cache(denoiser, length, block, window=None):
    """A cache for a text of `length` tokens that is read block by block, where a block sees at most `window` tokens,
    itself included. None if the denoiser takes none, as an oracle."""
    if not getattr(denoiser, "caches", False):
        return None
    cache = Cache(length) if window is None or window >= length else Cache(2 * window, window - block)
    cache.copies = int(denoiser.caches)
    return cache


def read(denoiser, cache, ids, at, final, mask_mod):
    """Logits at some of the last tokens of a text, of which the cache holds the beginning. -> (N, V)

    ids (B, n): the text so far; at (B, m): which of its last m tokens
    final: so many of the n tokens will not change any more, and stay in the cache. It grows by clean text alone: the
    last pass over a block still saw masks in it. What became final since the last call is read along with this one.
    mask_mod: the pattern where more than m tokens are new
    """
    *pieces, new = ids[:, cache.read:].split(cache.chunk, 1)                                        # (B, chunk), last
    for piece in pieces:
        denoiser(piece, None, at=torch.zeros_like(piece, dtype=torch.bool), mask_mod=mask_mod, cache=cache)
        cache.keep(piece.shape[1])
    several, before = new.shape[1] > at.shape[1], new.shape[1] - at.shape[1]
    logits = denoiser(new, None, at=F.pad(at, (before, 0)), mask_mod=mask_mod if several else None, cache=cache)
    cache.keep(final - cache.read)
    return logits                                                                                   # (N, V)


class Told:
    """A denoiser that is told the class of each text of the batch besides. label (B,) ids of classes, or (1,)"""

    def __init__(self, denoiser, label):
        self.denoiser, self.label = denoiser, label
        for can in ("caches", "fuses", "static"):
            setattr(self, can, getattr(denoiser, can, False))

    def __call__(self, z, t, at=None, **layout):
        return self.denoiser(z, t, at=at, label=self.label.expand(len(z)), **layout)


CLOCKS = {                                               # what a network with a condition is told of the time t
    "auto": lambda t: t,
    "sigma": lambda t: -torch.log((1 - t).clamp(min=1e-3)),  # -log alpha, as published; there alpha ends at 0.001
    "none": torch.zeros_like,                                # always 0: a published network that needs no time
}


class Block(nn.Module):
    def __init__(self, n_embd, n_head, cond_dim, dropout, qk_norm, norm_bias=False):
        super().__init__()
        self.n_head, self.dropout, self.qk_norm = n_head, dropout, qk_norm
        self.norm1 = nn.LayerNorm(n_embd, bias=norm_bias)
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.out = nn.Linear(n_embd, n_embd, bias=False)
        self.norm2 = nn.LayerNorm(n_embd, bias=norm_bias)
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.GELU("tanh"), nn.Linear(4 * n_embd, n_embd))
        self.adaln = nn.Linear(cond_dim, 6 * n_embd) if cond_dim else None
        for layer in [self.adaln] if cond_dim else [self.out, self.mlp[2]]:
            nn.init.zeros_(layer.weight)                 # gates closed at first: every block starts as the identity
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def drop(self, y):
        return F.dropout(y, self.dropout, self.training)

    def attend(self, h, rotary, mask_mod, remember):
        q, k, v = rearrange(self.qkv(h), "b l (three h d) -> three b h l d", three=3, h=self.n_head)  # (B, H, L, hd)
        if self.qk_norm:                                 # scores of a bounded size: larger learning rates are safe
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])                         # (B, H, L, hd)
        turns = (*rotary, *rotary)
        if remember:                                     # a cache holds its keys as they are turned
            q, k, turns = rotate(q, *rotary), rotate(k, *rotary), None                              # (B, H, L, hd)
            k, v = remember(k, v)                                                                   # (B, H, Lk, hd)
        dropout, first = self.dropout if self.training else 0.0, k.shape[2] - q.shape[2]
        y = attention(q, k, v, mask_mod, dropout, first, turns)                                     # (B, H, L, hd)
        return self.out(rearrange(y, "b h l d -> b l (h d)"))                                       # (B, L, D)

    def forward(self, h, c, rotary, mask_mod, remember=None, at=None):
        """(B, L, D) -> (B, L, D), or the (N, D) rows that `at` (B, L) selects: the others end where all were read."""
        if self.adaln is None:                           # tell nothing: a plain pre-norm transformer block
            h = h + self.drop(self.attend(self.norm1(h), rotary, mask_mod, remember))               # (B, L, D)
            h = rows(h, at)                                                                         # (B, L, D)
            return h + self.drop(self.mlp(self.norm2(h)))                                           # (B, L, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(c).chunk(6, -1)                   # (B, 1|L, D)
        h = h + gate1 * self.drop(self.attend(modulate(self.norm1(h), shift1, scale1), rotary, mask_mod, remember))
        if at is not None:
            h, shift2, scale2, gate2 = (rows(a.expand_as(h), at) for a in (h, shift2, scale2, gate2))    # (N, D) each
        return h + gate2 * self.drop(self.mlp(modulate(self.norm2(h), shift2, scale2)))             # (B, L, D)


class Transformer(nn.Module):
    """model(z, noise, at) -> logits. One instance of the call that every method makes; the toy oracle is another.

    vocab_size   symbols that can go in and come out, special ones included
    cond_dim     width of the condition; 0 removes it and the adaptive norms (masked models need no clock: RADD)
    n_classes    > 0 adds class labels; the label n_classes stands for "no class"
    qk_norm      divides queries and keys by their size (arXiv:2302.05442); the published DiT of this layout does not
    mask_mod     the attention pattern; None lets everything look at everything
    clock        what a network with a condition is told of the time, of CLOCKS
    norm_bias    adds biases to the layer norms; the published networks of RADD have them
    """

    caches = fuses = True                                    # it takes a Cache, and a head; an oracle does not
    static = False                                           # asked at numbers of positions, always as many

    def __init__(self, vocab_size, n_layer=4, n_head=4, n_embd=128, cond_dim=128, n_classes=0, dropout=0.0,
                 mask_mod=None, qk_norm=False, clock="auto", norm_bias=False):
        super().__init__()
        if n_embd % n_head or (n_embd // n_head) % 2:
            raise ValueError(f"n_embd={n_embd} must be n_head={n_head} times an even number")
        if n_classes and not cond_dim:
            raise ValueError("class labels go in through the condition: n_classes > 0 needs cond_dim > 0")
        self.vocab_size, self.head_size, self.mask_mod = vocab_size, n_embd // n_head, mask_mod
        self.clock = CLOCKS[clock]
        self.embed = nn.Parameter(torch.empty(vocab_size, n_embd))
        nn.init.kaiming_uniform_(self.embed, a=math.sqrt(5))
        self.noise_mlp = self.label_embed = self.adaln = None
        if cond_dim:
            self.noise_mlp = nn.Sequential(nn.Linear(256, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))
            self.adaln = nn.Linear(cond_dim, 2 * n_embd)
            nn.init.zeros_(self.adaln.weight)
            nn.init.zeros_(self.adaln.bias)
        if n_classes:
            self.label_embed = nn.Embedding(n_classes + 1, cond_dim)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, cond_dim, dropout, qk_norm, norm_bias)
                                    for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd, bias=norm_bias)
        self.head = nn.Linear(n_embd, vocab_size)
        nn.init.zeros_(self.head.weight)                 # the first prediction is uniform: the first loss is log V
        nn.init.zeros_(self.head.bias)

    def embedding(self, z):
        """z: ids (B, L), weights over symbols (B, L, V), or a sparse pair (ids, weights) (B, L, k). -> (B, L, D)"""
        if isinstance(z, tuple):
            ids, weights = z
            return torch.einsum("blk,blkd->bld", weights.to(self.embed.dtype), self.embed[ids])     # (B, L, D)
        return z.to(self.embed.dtype) @ self.embed if z.is_floating_point() else F.embedding(z, self.embed)

    def condition(self, h, noise, label):
        """What the network is told besides z, (B, 1, C), or (B, L, C) when every token has its own noise."""
        if self.noise_mlp is None:
            return None
        if noise is None:                                # a time-free model of the published layout is told "0" always
            noise = torch.zeros(len(h), 1, device=h.device)                                         # (B, 1)
        c = F.silu(self.noise_mlp(noise_features(self.clock(noise)).to(h.dtype)))                   # (B, 1|L, C)
        if self.label_embed is None:
            return c
        if label is None:                                # the last row stands for "no class"
            label = torch.full((len(h),), self.label_embed.num_embeddings - 1, device=h.device)     # (B,)
        return c + F.silu(self.label_embed(label))[:, None]                                         # (B, 1|L, C)

    def forward(self, z, noise=None, at=None, label=None, positions=None, mask_mod=None, cache=None, head=None):
        """Logits (B, L, V); with a boolean `at` (B, L), the (N, V) rows of the positions it selects, in reading order;
        with numbers (N,) of positions in the flattened text, their rows.

        noise (B, 1) or (B, L): the time; what the network is told of it is its clock's to say
        positions (L,): where the tokens stand, if not one behind the other from 0, or from the cache's start, on
        mask_mod: the pattern of this call, if not the network's own
        head: what to do with the last hidden states (N, D) in place of logits: head(h, weight, bias) (positions.py)
        """
        # A text that nobody asks about is not read: for models without a clock as good as a cache of its own.
        exact = at is not None and at.dtype == torch.bool
        if exact and cache is None and torch.is_tensor(z) and not (asked := at.any(-1)).all():
            z, noise, at, label = (a if a is None or len(a) == 1 else a[asked] for a in (z, noise, at, label))
        h = self.embedding(z)                                                                       # (B, L, D)
        c = self.condition(h, noise, label)                                                         # (B, 1|L, C)
        if cache:
            cache.make_room(h.shape[1])
        if positions is None:
            positions = torch.arange(h.shape[1], device=h.device) + (cache.start if cache else 0)   # (L,)
        rotary, mask_mod = rotary_angles(positions, self.head_size), mask_mod or self.mask_mod      # 2 x (L, hd/2)
        shift, scale = (None, None) if c is None else self.adaln(c).expand(*h.shape[:2], -1).chunk(2, -1)  # (B, L, D)
        for layer, block in enumerate(self.blocks):      # select, then score: the head is most of the cost at large V
            last = at if layer + 1 == len(self.blocks) else None
            h = block(h, c, rotary, mask_mod, cache and partial(cache.write, layer), last)    # (B, L, D) or (N, D)
        return self.scored(modulate(self.norm(h), rows(shift, at), rows(scale, at)), head)          # (N|B L, V)

    def scored(self, h, head=None):
        """Logits of hidden states (..., D), or what `head` makes of them."""
        return self.head(h) if head is None else head(h, self.head.weight, self.head.bias)          # (..., V)
