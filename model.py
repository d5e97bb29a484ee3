"""
The denoiser: one transformer for every method, the DiT of SEDD, MDLM, UDLM, Duo and GIDD.

    h   = embed(z)                                     ids, or weights over symbols ("soft" inputs)
    c   = silu(mlp(features(t)) [+ embed(label)])      the condition; cond_dim=0 has none
    h  += gate1 * out(attention(norm(h) * (1 + scale1) + shift1))
    h  += gate2 * mlp(norm(h) * (1 + scale2) + shift2)
    logits = head(norm(h) * (1 + scale) + shift)       only at the positions that `at` selects

where shift, scale, gate = linear(c), all zero at first (arXiv:2310.16834, 2212.09748).

Shapes: B texts, L positions, V symbols, D = n_embd, H heads of size hd = D / H, C = cond_dim.
An attention pattern is a predicate: mask_mod(batch, head, query, key) -> query may look at key.
"""
import math
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange

from flags import UserError, flag

try:
    import kernels
except ModuleNotFoundError:  # optional: without it all is plain PyTorch
    kernels = None


def causal(batch, head, query, key):
    """Each token looks at itself and to the left: autoregression."""
    return query >= key


causal.cacheable = True  # same object on every call, so kernels.py can cache its block mask


@lru_cache
def block_causal(block, reach):
    """Each token looks at its block and at `reach` tokens before it, a multiple of the block."""
    def mask_mod(batch, head, query, key):
        back = query // block - key // block
        return (back >= 0) & (back * block <= reach)
    mask_mod.cacheable = True
    return mask_mod


def rotary_angles(positions, head_size):
    """Pair i turns by position / 10000^(2i/hd) (2104.09864). (.., L) -> cos, sin (.., L, hd/2)"""
    exponent = torch.arange(0, head_size, 2, device=positions.device) / head_size  # (hd/2,)
    angle = positions.float()[..., None] * 10000.0 ** -exponent  # (.., L, hd/2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turn the pairs (x1, x2) of x = [x1 ; x2], in halves, not interleaved. -> (B, H, L, hd)"""
    swapped = torch.cat([*x.transpose(1, 2).chunk(2, -1)][::-1], -1).transpose(1, 2)  # as in memory
    cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)  # (.., L, hd) each
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)  # (B, H, L, hd)


def vectors_at(table, positions):
    """Rows of a table (n, D); the sum for queries and keys of their own. -> (L, D) or (B, L, D)"""
    if not positions.is_cuda and positions.max() >= len(table):  # a GPU would wait
        raise UserError(f"--learned_places has learned {len(table) - 1}, and this text is longer")
    return table[positions] if positions.dim() == 1 else table[positions].sum(1)


def uses_medium_precision():
    return torch.get_float32_matmul_precision() == "medium"


# as torch.compiler.assume_constant_result does, which would import dynamo: two seconds
uses_medium_precision._dynamo_marked_constant = True


@kernels.dispatch_attention(causal, rotate) if kernels else lambda plain: plain
def attention(q, k, v, mask_mod=None, dropout=0.0, first=0, rotary=None):
    """softmax(q k' / sqrt(hd)) v where mask_mod allows it. (B, H, Lq, hd) -> (B, H, Lq, hd)
    first: the place of the first query among the keys, after what a cache holds
    rotary: cos, sin of the queries, and cos, sin of the keys, if these are not rotated yet
    """
    if rotary:
        q, k = rotate(q, *rotary[:2]), rotate(k, *rotary[2:])  # (B, H, L, hd) each
    if mask_mod is causal and q.shape[2] == 1:
        mask_mod = None  # the newest token sees all that there is
    if v.is_cpu and k.shape[2] <= 1024 and (v.dtype == torch.bfloat16 or uses_medium_precision()):
        # the formula itself: the library's CPU kernel does not use oneDNN's faster products
        score = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)  # (B, H, Lq, Lk)
        if mask_mod is not None:
            score.masked_fill_(~dense_mask(mask_mod, q, k, first), -math.inf)
        return F.dropout(score.softmax(-1), dropout) @ v  # (B, H, Lq, hd)
    if mask_mod is None or mask_mod is causal and q.shape == k.shape:  # no mask in memory: faster
        return F.scaled_dot_product_attention(q, k, v, None, dropout, mask_mod is causal)
    return F.scaled_dot_product_attention(q, k, v, dense_mask(mask_mod, q, k, first), dropout)


def dense_mask(mask_mod, q, k, first=0):
    """The predicate as a tensor: may query (row) look at key (column)? -> (B, H, Lq, Lk) bool"""
    (B, H, Lq, _), Lk, index = q.shape, k.shape[2], lambda n: torch.arange(n, device=q.device)
    batch, head, query = index(B)[:, None, None, None], index(H)[:, None, None], index(Lq)[:, None]
    mask = mask_mod(batch, head, first + query, index(Lk))
    return torch.as_tensor(mask, device=q.device).expand(B, H, Lq, Lk)  # (B, H, Lq, Lk)


def noise_features(noise):
    """cos(n f_k) and sin(n f_k) of the noise n, f_k = 10000^(-k/128). (B, 1|L) -> (B, 1|L, 256)"""
    f = torch.exp(-math.log(10000) * torch.arange(128, device=noise.device) / 128)  # (128,)
    angle = noise.float()[..., None] * f  # (B, 1|L, 128)
    return torch.cat([angle.cos(), angle.sin()], -1)  # (B, 1|L, 256)


def modulate(h, shift, scale):
    """Adaptive layer norm (arXiv:2212.09748): the condition shifts and scales the norm's output."""
    return h if shift is None else h * (1 + scale) + shift


def select_rows(h, at):
    """Rows of h (B, L, D) at a boolean (B, L), or at indices (N,) of all B L rows. -> (N, D)"""
    if h is None or at is None:
        return h
    return h[at] if at.dtype == torch.bool else h.flatten(0, 1)[at]  # (N, D)


def texts_with(at, *parts):
    """The texts with selected positions; parts (B, ..), None, or (1, ..) for all texts. -> parts"""
    some = at.any(-1)  # (B,)
    return parts if some.all() else [a if a is None or len(a) == 1 else a[some] for a in parts]


class Cache:
    """Keys and values of earlier tokens in all layers. Each call writes its own at `start`.

    The next call overwrites them, unless the caller says keep(n), which moves `start` behind them.
    A call sees the last `reach` tokens before `start` and its own. If `length` is further on, it
    also sees what an earlier call wrote from there up to `length` (the dual cache of semi-ar).
    Memory is `capacity` tokens. When it is full, the last `reach` move to the front, and their keys
    rotate back by that distance: rotary positions are relative.
    """

    def __init__(self, capacity, reach=None):
        self.capacity, self.reach = capacity, capacity if reach is None else reach
        self.chunk = capacity if reach is None else capacity - reach  # room that can always be made
        self.start = self.length = self.read = 0  # read: tokens kept since the start of the text
        self.k, self.v, self.copies = {}, {}, 1  # layer -> (B, H, capacity, hd); two rows if guided

    def write(self, layer, k, v):
        """Keys and values of this call (B, H, L, hd) -> all that it sees (B, H, Lk, hd)"""
        if layer not in self.k:
            empty = lambda a: a.new_empty(*a.shape[:2], self.capacity, a.shape[3])
            self.k[layer], self.v[layer] = empty(k), empty(v)  # (B, H, capacity, hd) each
        end, first = self.start + k.shape[2], max(0, self.start - self.reach)
        for stored, new in ((self.k[layer], k), (self.v[layer], v)):
            stored[:, :, self.start:end] = new  # (B, H, L, hd)
        return tuple(a[layer][:, :, first:max(end, self.length)] for a in (self.k, self.v))

    def keep(self, n):
        self.start, self.read = self.start + n, self.read + n

    def make_room(self, n):
        """Make sure that n more tokens fit, at most `chunk`."""
        if self.start + n <= self.capacity:
            return
        moved = self.start - self.reach
        for layer, k in self.k.items():
            distance, v = torch.tensor([-moved], device=k.device), self.v[layer]  # (1,), as k
            back = rotary_angles(distance, k.shape[3])  # 2 x (1, hd/2)
            k[:, :, :self.reach] = rotate(k[:, :, moved:self.start], *back)  # (B, H, reach, hd)
            v[:, :, :self.reach] = v[:, :, moved:self.start].clone()  # (B, H, reach, hd)
        self.start = self.reach

    def select(self, rows):
        """Keep these texts of the batch only, (n,) indices."""
        for part in (self.k, self.v):
            for layer, a in part.items():
                part[layer] = torch.cat([copy[rows] for copy in a.chunk(self.copies)])


TIME_INPUTS = {  # what a network with a condition reads of the time t
    "auto": lambda t: t,
    "sigma": lambda t: -torch.log((1 - t).clamp(min=1e-3)),  # -log alpha, which ends at 0.001 there
    "none": torch.zeros_like,
}


@dataclass
class NetworkFlags:
    """Network (model.py)."""
    n_layer: int = flag(2, "blocks", least=1, most=10_000, fixed=True)
    n_head: int = flag(4, "attention heads", least=1, fixed=True)
    n_embd: int = flag(128, "width", least=2, fixed=True)
    cond_dim: int = flag(128, "width of the condition, if there is one", least=1, fixed=True)
    qk_norm: bool = flag(True, "normalize queries and keys; published ones are not", fixed=True)
    norm_bias: bool = flag(False, "biases in the layer norms, as published in radd", fixed=True)
    sides: str = flag("joined", "a given source sees: encoder, itself; joined, the target, too; "
                      "spiral, with its own weights", ["joined", "encoder", "spiral"], fixed=True)
    learned_places: bool = flag(False, "learned vectors of places, beside rotary ones", fixed=True)
    recurrent: int = flag(0, "last blocks with a GRU in place of attention", least=0, fixed=True)
    time_input: str = flag("auto", "what is read of the time: auto t itself where a method needs "
                           "it; published networks -log alpha, or 0", [*TIME_INPUTS], fixed=True)
    dropout: float = flag(0.0, "dropout", least=0, most=0.99)


class Block(nn.Module):
    def __init__(self, n_embd, n_head, cond_dim, dropout, qk_norm, norm_bias=False):
        super().__init__()
        self.n_head, self.dropout, self.qk_norm = n_head, dropout, qk_norm
        self.norm1 = nn.LayerNorm(n_embd, bias=norm_bias)
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.out = nn.Linear(n_embd, n_embd, bias=False)
        self.norm2 = nn.LayerNorm(n_embd, bias=norm_bias)
        wide, narrow = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)
        self.mlp = (kernels.MLP if kernels else nn.Sequential)(wide, nn.GELU("tanh"), narrow)
        self.adaln = nn.Linear(cond_dim, 6 * n_embd) if cond_dim else None
        for p in nn.ModuleList([self.adaln] if cond_dim else [self.out, narrow]).parameters():
            nn.init.zeros_(p)  # every block starts as the identity

    def drop(self, y):
        return F.dropout(y, self.dropout, self.training)

    def attend(self, h, rotary, mask_mod, remember):
        q, k, v = rearrange(self.qkv(h), "b l (n h d)->n b h l d", n=3, h=self.n_head)  # (B,H,L,hd)
        if self.qk_norm:  # scores are bounded, which makes large learning rates safe
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])  # (B, H, L, hd) each
        v = v if self.qk_norm else v.clone()  # (B, H, L, hd) or it would keep q and k in memory
        angles = (*rotary, *rotary)[:4]  # of queries and of keys
        if remember:  # a cache holds rotated keys
            q, k = rotate(q, *angles[:2]), rotate(k, *angles[2:])  # (B, H, L, hd) each
            (k, v), angles = remember(k, v), None  # (B, H, Lk, hd) each
        dropout, first = self.dropout if self.training else 0.0, k.shape[2] - q.shape[2]
        y = attention(q, k, v, mask_mod, dropout, first, angles)  # (B, H, L, hd)
        return self.out(rearrange(y, "b h l d -> b l (h d)"))  # (B, L, D)

    def forward(self, h, c, rotary, mask_mod, remember=None, at=None):
        """(B, L, D) -> (B, L, D), or (N, D): after attention only the rows that `at` selects."""
        if self.adaln is None:  # no condition: a plain pre-norm block
            h = h + self.drop(self.attend(self.norm1(h), rotary, mask_mod, remember))  # (B, L, D)
            h = select_rows(h, at)  # (B, L, D) or (N, D)
            return h + self.drop(self.mlp(self.norm2(h)))
        shift1, scale1, gate1, *rest = self.adaln(c).chunk(6, -1)  # (B, 1|L, D) each
        normed = modulate(self.norm1(h), shift1, scale1)  # (B, L, D)
        h = h + gate1 * self.drop(self.attend(normed, rotary, mask_mod, remember))  # (B, L, D)
        if at is not None:
            h, *rest = (select_rows(a.expand_as(h), at) for a in (h, *rest))  # (N, D) each
        shift2, scale2, gate2 = rest
        return h + gate2 * self.drop(self.mlp(modulate(self.norm2(h), shift2, scale2)))


class Transformer(nn.Module):
    """model(z, t, at) -> logits: the denoiser that every method calls. The toy oracle is another.
    vocab_size   symbols that can go in and come out, special ones included
    cond_dim     width of the condition; 0 removes it and the adaptive norms (RADD: masks need no t)
    n_classes    > 0 adds class labels; the label n_classes stands for "no class"
    qk_norm      divides queries and keys by their size (arXiv:2302.05442), unlike the published DiT
    mask_mod     the attention pattern; None: all tokens see all
    time_input   what a network with a condition reads of the time: a row of TIME_INPUTS
    norm_bias    adds biases to the layer norms; the published networks of RADD have them
    places       so many places have a learned vector, besides rotary positions
    """
    supports_cache = supports_fused_head = True
    fixed_shapes, source = False, 0  # see diffusion.Wrapper, samplers/sides.py
    sparse_gradient = False  # of `embed`: see runtime/optim.py

    def __init__(self, vocab_size, n_layer=4, n_head=4, n_embd=128, cond_dim=128, n_classes=0,
                 dropout=0.0, mask_mod=None, qk_norm=False, time_input="auto", norm_bias=False,
                 places=0):
        super().__init__()
        if n_embd % n_head or (n_embd // n_head) % 2:
            raise ValueError(f"n_embd={n_embd} must be n_head={n_head} times an even number")
        if n_classes and not cond_dim:
            raise ValueError("labels are part of the condition: n_classes > 0 needs cond_dim > 0")
        self.vocab_size, self.head_size, self.mask_mod = vocab_size, n_embd // n_head, mask_mod
        self.time_input = TIME_INPUTS[time_input]
        self.embed = nn.Parameter(
            nn.init.kaiming_uniform_(torch.empty(vocab_size, n_embd), a=math.sqrt(5)))
        self.noise_mlp = self.label_embed = self.adaln = None
        self.place_embed = nn.Parameter(0.02 * torch.randn(places, n_embd)) if places else None
        if cond_dim:
            layers = nn.Linear(256, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
            self.noise_mlp = nn.Sequential(*layers)
            self.adaln = nn.Linear(cond_dim, 2 * n_embd)
        if n_classes:
            self.label_embed = nn.Embedding(n_classes + 1, cond_dim)
        shape = n_embd, n_head, cond_dim, dropout, qk_norm, norm_bias
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd, bias=norm_bias)
        self.head = nn.Linear(n_embd, vocab_size)
        for p in nn.ModuleList([self.head, self.adaln] if cond_dim else [self.head]).parameters():
            nn.init.zeros_(p)  # uniform at first, so the first loss is log V

    def embedding(self, z):
        """ids (B, L), weights (B, L, V), or a sparse pair (ids, weights) (B, L, k). -> (B, L, D)"""
        if isinstance(z, tuple):
            ids, weights = z
            return torch.einsum("blk,blkd->bld", weights.to(self.embed.dtype), self.embed[ids])
        if z.is_floating_point():
            return z.to(self.embed.dtype) @ self.embed  # (B, L, D)
        return F.embedding(z, self.embed, sparse=self.sparse_gradient)  # (B, L, D)

    def condition(self, h, noise, label):
        """What the network conditions on besides z: (B, 1, C), or (B, L, C) for times per token"""
        if self.noise_mlp is None:
            return None
        noise = torch.zeros(len(h), 1, device=h.device) if noise is None else noise  # (B, 1|L)
        c = F.silu(self.noise_mlp(noise_features(self.time_input(noise)).to(h)))  # (B, 1|L, C)
        if self.label_embed is None:
            return c
        if label is None:  # the last row is "no class"
            label = torch.full((len(h),), len(self.label_embed.weight) - 1, device=h.device)  # (B,)
        return c + F.silu(self.label_embed(label))[:, None]  # (B, 1|L, C)

    def forward(self, z, noise=None, at=None, label=None, positions=None, mask_mod=None, cache=None,
                head=None):
        """Logits (B, L, V), or (N, V) at the positions `at`: a boolean (B, L), in reading order, or
        indices (N,) of all B L positions. noise (B, 1) or (B, L): the time

        positions (L,), or for each text (B, 1, L), if not consecutive from 0, or from the cache's
        start; (B, 2, L): of queries and of keys. mask_mod: of this call, if not the network's own
        head: called as head(h, weight, bias) with the last hidden states (N, D), in place of logits
        """
        if at is not None and at.dtype == torch.bool and cache is None and torch.is_tensor(z):
            z, noise, at, label = texts_with(at, z, noise, at, label)
        h = self.embedding(z)  # (B, L, D)
        if cache:
            cache.make_room(h.shape[1])
        if positions is None:
            positions = torch.arange(h.shape[1], device=h.device) + (cache.start if cache else 0)
        if self.source and noise is not None:  # the source is given, so its time is 0
            noise = noise * (positions >= self.source)  # (B, L)
        if self.place_embed is not None:
            gone = cache.read - cache.start if cache else 0  # tokens that have left the cache
            h = h + vectors_at(self.place_embed, positions + gone)  # (B, L, D)
        c = self.condition(h, noise, label)  # (B, 1|L, C)
        sides = (positions[:, :1], positions[:, -1:]) if positions.dim() > 1 else [positions]
        rotary = sum((rotary_angles(a, self.head_size) for a in sides), ())  # 2 x (L, hd/2), or 4
        mask_mod = mask_mod or self.mask_mod
        shift = scale = None
        if c is not None:
            shift, scale = self.adaln(c).expand(*h.shape[:2], -1).chunk(2, -1)  # (B, L, D) each
        for layer, block in enumerate(self.blocks):  # the last one goes on with selected rows only
            rows = at if layer + 1 == len(self.blocks) else None
            h = block(h, c, rotary, mask_mod, cache and partial(cache.write, layer), rows)
        shift, scale = select_rows(shift, at), select_rows(scale, at)  # (N, D) or (B, L, D) each
        return self.apply_head(modulate(self.norm(h), shift, scale), head)  # (N, V) or (B, L, V)

    def apply_head(self, h, head=None):
        """Logits of hidden states (..., D), or what `head` makes of them."""
        return self.head(h) if head is None else head(h, self.head.weight, self.head.bias)
