"""
Chapter 23. The forward pass of flash attention (arXiv:2205.14135, 2307.08691).

Attention is a mean of the values v_j, weighted by how well the keys k_j match the query q_i, d
features each, over the keys that i may see:

    o_i = sum_j p_ij v_j,   p_ij = exp(s_ij - lse_i),
    s_ij = q_i . k_j / sqrt(d),   lse_i = log sum_j exp s_ij                                  (23.1)

The L x L numbers s and p would go to memory and back. But a tile of them, 64 x 128, fits on the
chip. So keys come tile by tile, and m, l and a hold the sums so far, relative to the largest score
m. When a tile S has a larger score, the old sums are scaled down to it:

    m' = max(m, max_j S_ij),  c = exp(m - m'),
    l' = c l + sum_j exp(S_ij - m'),  a' = c a + sum_j exp(S_ij - m') v_j,
    at the end   o = a / l,   lse = m + log l                                                 (23.2)

The chip computes exp2 only: inside the kernel, scores and lse are in units of log 2.
"""
import triton
import triton.language as tl

from kernels_triton.flash_tiles import is_allowed, load_rows, locate_program, store_rows

LOWEST = tl.constexpr(-1e30)  # below every score; not -inf, since LOWEST - LOWEST must be 0


@triton.jit
def forward_kernel(
        Q, K, V, O, LSE, ANGLES_Q, ANGLES_K, SPAN, ORDER, MASK, qb, qh, ql, kb, kh, kl, vb, vh, vl,
        pattern_b, pattern_h, angles_b, width, first, H, Lq, Lk, scale, PATTERN: tl.constexpr,
        ROTARY: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr):
    """(23.2) for BM queries. scale is log2(e) / sqrt(d)"""
    tile, b, h, pattern, span, order = locate_program(
        SPAN, ORDER, pattern_b, pattern_h, tl.cdiv(Lq, BM), width, H)
    b, pattern, row = tl.cast(b, tl.int64), tl.cast(pattern, tl.int64), tile * BM
    K, V, MASK = K + b * kb + h * kh, V + b * vb + h * vh, MASK + pattern * Lq * Lk
    ANGLES_Q, ANGLES_K = ANGLES_Q + b * angles_b * Lq * HEAD, ANGLES_K + b * angles_b * Lk * HEAD
    q = load_rows(Q + b * qb + h * qh, ANGLES_Q, row, ql, Lq, ROTARY, HEAD, HALF, BM)
    query = row + tl.arange(0, BM)  # (BM,)
    m, l = tl.full((BM,), LOWEST, tl.float32), tl.zeros((BM,), tl.float32)  # (BM,) each
    a = tl.zeros((BM, 2 * HALF), tl.float32)  # (BM, 2 HALF)
    full, full_end = tl.load(span + 2), tl.load(span + 3)
    for j in range(tl.load(span), tl.load(span + 1)):
        col = (tl.load(order + j) if PATTERN == 2 else j) * BN
        k = load_rows(K, ANGLES_K, col, kl, Lk, ROTARY, HEAD, HALF, BN)  # (BN, 2 HALF)
        v = load_rows(V, ANGLES_K, col, vl, Lk, False, HEAD, HALF, BN)  # (BN, 2 HALF)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # (BM, BN)
        if (j < full) | (j >= full_end):
            key = col + tl.arange(0, BN)  # (BN,)
            allowed = is_allowed(MASK, query[:, None], key[None, :], first, Lq, Lk, PATTERN)
            s = tl.where(allowed, s, -float("inf"))  # (BM, BN)
        larger = tl.maximum(m, tl.max(s, 1))  # (BM,)
        p, c = tl.exp2(s - larger[:, None]), tl.exp2(m - larger)  # (BM, BN), (BM,)
        m, l = larger, l * c + tl.sum(p, 1)  # (BM,) each
        a = tl.dot(p.to(v.dtype), v, a * c[:, None], input_precision=PRECISION)  # (BM, 2 HALF)
    l = tl.where(l > 0, l, 1.0)  # (BM,) 0 where no key is allowed: there o becomes 0
    o, lse = a / l[:, None], m + tl.log2(l)  # (BM, 2 HALF), (BM,)
    tl.store(LSE + (b * H + h) * Lq + query, lse, mask=query < Lq)
    O += (b * Lq * H + h) * HEAD  # o is stored as (B, Lq, H, HEAD)
    store_rows(O, ANGLES_Q, o.to(q.dtype), row, H * HEAD, Lq, False, HEAD, HALF, BM)
