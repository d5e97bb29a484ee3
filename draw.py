"""
Head, posterior and draw in one pass: hidden states go in, ids come out, and no (N, V) in between.

To draw from softmax(h W' / temperature) over V symbols, split them into tiles of C. A tile's logits are made, summed
up as m = max, s = sum exp(logit - m), and forgotten; then

    which tile       p(tile) ~ s e^m                     V / C numbers a row
    which symbol     p(v | tile) ~ exp(logit_v)          the logits of that one tile, once more: C / V of the work

One draw, two uniforms, and the exact law p(tile) p(v | tile). Tails: a uniform in float32 has 24 bits, so that a race
of V of them never sees what is rarer than 6e-8, and at V = 128,000 most words are rarer. Here each uniform has 53
bits, and both sums that it is compared with are in float64. (FlashSampling, arXiv:2603.15854, races with one number
for each of the V symbols.) Triton, for GPUs; TRITON_INTERPRET=1 runs it anywhere, slowly. `kernels.draw_plain` is the
plain form.
"""
import torch
import triton
import triton.language as tl

TILE = 128                                                   # C, and the rows that share one reading of a tile of W
ROWS = 64


@triton.jit
def tile_sums(h, w, bias, top, total, plain, N, V, tiles, invtemp, D: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
              K: tl.constexpr, EXACT: tl.constexpr):
    """m and s of one tile, for R rows of h (N, D), and s at temperature 1; w (V, D), bias (V,) -> top, total, plain
    (N, tiles). m is that of logits before they are divided."""
    tile, row = tl.program_id(0), tl.program_id(1) * R + tl.arange(0, R)                            # (), (R,)
    symbol, k = tile * C + tl.arange(0, C), tl.arange(0, K)                                         # (C,), (K,)
    logits = tl.zeros((R, C), tl.float32)                                                           # (R, C)
    for start in range(0, D, K):
        inside = start + k < D                                                                      # (K,)
        a = tl.load(h + row[:, None] * D + start + k, mask=(row < N)[:, None] & inside, other=0.0)  # (R, K)
        b = tl.load(w + symbol[:, None] * D + start + k, mask=(symbol < V)[:, None] & inside, other=0.0)    # (C, K)
        logits = tl.dot(a, tl.trans(b), logits, input_precision="ieee" if EXACT else "tf32")        # (R, C)
    logits += tl.load(bias + symbol, mask=symbol < V, other=0.0).to(tl.float32)                     # (R, C)
    logits = tl.where(symbol < V, logits, float("-inf"))                                            # (R, C)
    m = tl.max(logits, 1)                                                                           # (R,)
    tl.store(top + row * tiles + tile, m, mask=row < N)
    tl.store(total + row * tiles + tile, tl.sum(tl.exp((logits - m[:, None]) * invtemp), 1), mask=row < N)
    tl.store(plain + row * tiles + tile, tl.sum(tl.exp(logits - m[:, None]), 1), mask=row < N)


@triton.jit
def symbol_of(h, w, bias, tile_of, uniform, ids, V, invtemp, D: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    """The symbol of one row within its tile, by inverse CDF in float64. -> ids (N,)"""
    row = tl.program_id(0)
    tile = tl.load(tile_of + row)                                                                   # ()
    symbol, k = tile * C + tl.arange(0, C), tl.arange(0, K)                                         # (C,), (K,)
    logits = tl.zeros((C,), tl.float32)                                                             # (C,)
    for start in range(0, D, K):
        inside = start + k < D                                                                      # (K,)
        a = tl.load(h + row * D + start + k, mask=inside, other=0.0).to(tl.float32)                 # (K,)
        b = tl.load(w + symbol[:, None] * D + start + k, mask=(symbol < V)[:, None] & inside, other=0.0)    # (C, K)
        logits += tl.sum(a[None] * b.to(tl.float32), 1)                                             # (C,)
    logits = (logits + tl.load(bias + symbol, mask=symbol < V, other=0.0).to(tl.float32)) * invtemp     # (C,)
    logits = tl.where(symbol < V, logits, float("-inf"))                                            # (C,)
    p = tl.exp((logits - tl.max(logits, 0)).to(tl.float64))                                         # (C,)
    cdf = tl.cumsum(p, 0)                                                                           # (C,)
    u = tl.load(uniform + row) * tl.sum(p, 0)                                                       # () not above all
    last = tl.max(tl.where(p > 0, tl.arange(0, C), 0), 0)                # rounding may reach the total: stay on mass
    tl.store(ids + row, tile * C + tl.minimum(tl.sum((cdf <= u).to(tl.int64), 0), last))


def draw(h, weight, bias, temperature=1.0, of=None):
    """One draw from softmax((h W' + bias) / temperature) per row, and its probability of the ids `of` (N,), or, for
    None, that of the draw at temperature 1. h (N, D), weight (V, D), bias (V,) -> ids (N,), p (N,) float64"""
    (N, D), V, tiles = h.shape, len(weight), triton.cdiv(len(weight), TILE)
    h, weight, bias = h.contiguous(), weight.to(h.dtype).contiguous(), bias.contiguous()
    top, total, plain = (torch.empty(N, tiles, device=h.device) for _ in range(3))                  # (N, tiles) each
    ids, K = torch.empty(N, dtype=torch.long, device=h.device), min(64, triton.next_power_of_2(D))
    if not N:
        return ids, ids.double()
    with torch.cuda.device_of(h):                            # the GPU of the tensors may not be the current one
        tile_sums[(tiles, triton.cdiv(N, ROWS))](h, weight, bias, top, total, plain, N, V, tiles, 1 / temperature, D,
                                                ROWS, TILE, max(16, K), EXACT=h.dtype == torch.float32)
    top = (top - (highest := top.amax(-1, keepdim=True))).double()                                  # (N, tiles)
    mass = (top / temperature).exp() * total                                                        # (N, tiles)
    cdf, u = mass.cumsum(-1), torch.rand(2, N, 1, dtype=torch.float64, device=h.device)             # (N, tiles)
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())                                        # (N, 1)
    tile = torch.searchsorted(cdf, u[0] * cdf[:, -1:], right=True).minimum(last)[:, 0]              # (N,)
    with torch.cuda.device_of(h):
        symbol_of[(N,)](h, weight, bias, tile, u[1, :, 0].contiguous(), ids, V, 1 / temperature, D, TILE, max(16, K))
    sums = cdf[:, -1]                                                                               # (N,)
    if of is None:
        of, temperature, sums = ids, 1.0, (top.exp() * plain).sum(-1)                               # (N,), (), (N,)
    logit = (h.float() * weight[of].float()).sum(-1) + bias[of].float()                             # (N,)
    return ids, ((logit - highest[:, 0]).double() / temperature).exp() / sums                       # (N,), (N,)
