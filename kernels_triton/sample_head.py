"""
Chapter 23. Head, softmax and draw in one pass: from hidden states to ids without (N, V) logits.

To sample from softmax(h W' / temperature) over V symbols, split the symbols into tiles of C. The
logits of a tile are computed, reduced to m = max and s = sum exp(logit - m), and discarded. Then

    draw the tile     p(tile) ~ s e^m               V / C numbers per row
    draw the symbol   p(v | tile) ~ exp(logit_v)    the logits of that tile again, C / V of the work

That is one draw, by two uniforms, from exactly p(tile) p(v | tile). In the tails: a float32 uniform
has 24 bits, so a Gumbel race of V of them never sees what is rarer than 6e-8, and at V = 128,000
most words are rarer. Here each uniform has 53 bits, and is compared with float64 sums.
(FlashSampling, arXiv:2603.15854, races with one random number for each of the V symbols.)

Triton, for GPUs; TRITON_INTERPRET=1 runs it anywhere, slowly. kernels.sample_head_plain is the
plain form.
"""
import torch
import triton
import triton.language as tl

TILE = 128  # C
ROWS = 64  # rows of h that share one reading of a tile of W


@triton.jit
def tile_sums(h, w, bias, top, total, plain, N, V, tiles, invtemp, D: tl.constexpr, R: tl.constexpr,
              C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr):
    """m and s of one tile for R rows of h (N, D), and s at temperature 1. w (V, D), bias (V,)

    -> top, total, plain (N, tiles); m is the maximum before the division by the temperature
    """
    tile, row = tl.program_id(0), tl.program_id(1) * R + tl.arange(0, R)  # (), (R,)
    symbol, k = tile * C + tl.arange(0, C), tl.arange(0, K)  # (C,), (K,)
    logits = tl.zeros((R, C), tl.float32)  # (R, C)
    for start in range(0, D, K):
        in_row = (row < N)[:, None] & (start + k < D)  # (R, K)
        in_symbol = (symbol < V)[:, None] & (start + k < D)  # (C, K)
        a = tl.load(h + row[:, None] * D + start + k, mask=in_row, other=0.0)  # (R, K)
        b = tl.load(w + symbol[:, None] * D + start + k, mask=in_symbol, other=0.0)  # (C, K)
        logits = tl.dot(a, tl.trans(b), logits, input_precision="ieee" if EXACT else "tf32")
    logits += tl.load(bias + symbol, mask=symbol < V, other=0.0).to(tl.float32)  # (R, C)
    logits = tl.where(symbol < V, logits, float("-inf"))  # (R, C)
    m = tl.max(logits, 1)  # (R,)
    e = logits - m[:, None]  # (R, C)
    tl.store(top + row * tiles + tile, m, mask=row < N)
    tl.store(total + row * tiles + tile, tl.sum(tl.exp(e * invtemp), 1), mask=row < N)
    tl.store(plain + row * tiles + tile, tl.sum(tl.exp(e), 1), mask=row < N)


@triton.jit
def sample_symbol(h, w, bias, tile_of, uniform, ids, V, invtemp, D: tl.constexpr, C: tl.constexpr,
                  K: tl.constexpr):
    """The symbol of one row within its tile, by inverse CDF in float64. -> ids (N,)"""
    row = tl.program_id(0)
    tile = tl.load(tile_of + row)  # ()
    symbol, k = tile * C + tl.arange(0, C), tl.arange(0, K)  # (C,), (K,)
    logits = tl.zeros((C,), tl.float32)  # (C,)
    for start in range(0, D, K):
        in_symbol = (symbol < V)[:, None] & (start + k < D)  # (C, K)
        a = tl.load(h + row * D + start + k, mask=start + k < D, other=0.0).to(tl.float32)  # (K,)
        b = tl.load(w + symbol[:, None] * D + start + k, mask=in_symbol, other=0.0)  # (C, K)
        logits += tl.sum(a[None] * b.to(tl.float32), 1)  # (C,)
    logits += tl.load(bias + symbol, mask=symbol < V, other=0.0).to(tl.float32)  # (C,)
    logits = tl.where(symbol < V, logits * invtemp, float("-inf"))  # (C,)
    p = tl.exp((logits - tl.max(logits, 0)).to(tl.float64))  # (C,)
    cdf = tl.cumsum(p, 0)  # (C,)
    u = tl.load(uniform + row) * tl.sum(p, 0)  # ()
    # rounding may lift u to the total: then take the last symbol with p > 0
    last = tl.max(tl.where(p > 0, tl.arange(0, C), 0), 0)  # ()
    tl.store(ids + row, tile * C + tl.minimum(tl.sum((cdf <= u).to(tl.int64), 0), last))


def sample_head_triton(h, weight, bias, temperature=1.0, of=None):
    """One draw from softmax((h W' + bias) / temperature) per row, and the probability of `of` (N,).

    of None: the probability of the draw at temperature 1 instead
    h (N, D), weight (V, D), bias (V,) -> ids (N,), p (N,) float64
    """
    (N, D), V, tiles = h.shape, len(weight), triton.cdiv(len(weight), TILE)
    h, weight, bias = h.contiguous(), weight.to(h.dtype).contiguous(), bias.contiguous()
    top, total, plain = (torch.empty(N, tiles, device=h.device) for _ in range(3))  # (N, tiles)
    ids = torch.empty(N, dtype=torch.long, device=h.device)  # (N,)
    K = max(16, min(64, triton.next_power_of_2(D)))
    if not N:
        return ids, ids.double()
    with torch.cuda.device_of(h):  # the GPU of the tensors may not be the current one
        tile_sums[(tiles, triton.cdiv(N, ROWS))](
            h, weight, bias, top, total, plain, N, V, tiles, 1 / temperature, D, ROWS, TILE, K,
            EXACT=h.dtype == torch.float32)
    top = (top - (highest := top.amax(-1, keepdim=True))).double()  # (N, tiles)
    cdf = ((top / temperature).exp() * total).cumsum(-1)  # (N, tiles)
    u = torch.rand(2, N, 1, dtype=torch.float64, device=h.device)  # (2, N, 1)
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())  # (N, 1)
    tile = torch.searchsorted(cdf, u[0] * cdf[:, -1:], right=True).minimum(last)[:, 0]  # (N,)
    with torch.cuda.device_of(h):
        sample_symbol[(N,)](h, weight, bias, tile, u[1, :, 0].contiguous(), ids, V, 1 / temperature,
                            D, TILE, K)
    sums = cdf[:, -1]  # (N,)
    if of is None:
        of, temperature, sums = ids, 1.0, (top.exp() * plain).sum(-1)  # (N,), (), (N,)
    logit = (h.float() * weight[of].float()).sum(-1) + bias[of].float()  # (N,)
    return ids, ((logit - highest[:, 0]).double() / temperature).exp() / sums  # (N,), (N,)
