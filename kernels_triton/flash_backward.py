"""
Chapter 23. The backward pass of flash attention (arXiv:2205.14135, 2307.08691).

The forward pass keeps o and lse only. From lse, one number per query, (23.1) gives every p_ij again
where the gradient needs it. With do the gradient of the loss with respect to o,

    dv_j = sum_i p_ij do_i                                                                    (23.3)
    ds_ij = p_ij (do_i . v_j - delta_i),   delta_i = do_i . o_i = sum_j p_ij (do_i . v_j),
    dq_i = sum_j ds_ij k_j / sqrt(d),   dk_j = sum_i ds_ij q_i / sqrt(d)                      (23.4)

One kernel owns queries and sums dq over keys. Another owns keys and sums dk and dv over queries. So
no two programs add to the same number, and the result is the same in every run.
"""
import triton
import triton.language as tl

from kernels_triton.flash_tiles import is_allowed, load_rows, locate_program, store_rows

LOG_2 = tl.constexpr(0.6931471805599453)  # scale log 2 is 1 / sqrt(d)


@triton.jit
def backward_q_kernel(
        Q, K, V, O, DO, LSE, DELTA, DQ, ANGLES_Q, ANGLES_K, SPAN, ORDER, MASK, qb, qh, ql,
        kb, kh, kl, vb, vh, vl, pattern_b, pattern_h, angles_b, width, first, H, Lq, Lk, scale,
        PATTERN: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr,
        HALF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """delta and dq of (23.4) for BM queries."""
    tile, b, h, pattern, span, order = locate_program(
        SPAN, ORDER, pattern_b, pattern_h, tl.cdiv(Lq, BM), width, H)
    b, pattern, row = tl.cast(b, tl.int64), tl.cast(pattern, tl.int64), tile * BM
    K, V, MASK = K + b * kb + h * kh, V + b * vb + h * vh, MASK + pattern * Lq * Lk
    ANGLES_Q, ANGLES_K = ANGLES_Q + b * angles_b * Lq * HEAD, ANGLES_K + b * angles_b * Lk * HEAD
    start = (b * Lq * H + h) * HEAD  # o, do and dq are stored as (B, Lq, H, HEAD)
    q = load_rows(Q + b * qb + h * qh, ANGLES_Q, row, ql, Lq, ROTARY, HEAD, HALF, BM)
    o = load_rows(O + start, ANGLES_Q, row, H * HEAD, Lq, False, HEAD, HALF, BM)  # (BM, 2 HALF)
    do = load_rows(DO + start, ANGLES_Q, row, H * HEAD, Lq, False, HEAD, HALF, BM)  # (BM, 2 HALF)
    query = row + tl.arange(0, BM)  # (BM,)
    at = (b * H + h) * Lq + query  # (BM,)
    lse = tl.load(LSE + at, mask=query < Lq, other=float("inf"))  # (BM,)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)  # (BM,)
    tl.store(DELTA + at, delta, mask=query < Lq)
    dq = tl.zeros((BM, 2 * HALF), tl.float32)  # (BM, 2 HALF)
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
        p = tl.exp2(s - lse[:, None])  # (BM, BN)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)  # (BM, BN)
        ds = p * (dp - delta[:, None])  # (BM, BN)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)  # (BM, 2 HALF)
    dq = (dq * (scale * LOG_2)).to(q.dtype)  # (BM, 2 HALF)
    store_rows(DQ + start, ANGLES_Q, dq, row, H * HEAD, Lq, ROTARY, HEAD, HALF, BM)


@triton.jit
def backward_kv_kernel(
        Q, K, V, DO, LSE, DELTA, DK, DV, ANGLES_Q, ANGLES_K, SPAN, ORDER, MASK, qb, qh, ql,
        kb, kh, kl, vb, vh, vl, pattern_b, pattern_h, angles_b, width, first, H, Lq, Lk, scale,
        PATTERN: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr,
        HALF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """dk and dv of (23.3) and (23.4) for BN keys. Queries beyond the last have lse = inf, so p = 0.

    Scores are (BN, BM) here, keys by queries.
    """
    tile, b, h, pattern, span, order = locate_program(
        SPAN, ORDER, pattern_b, pattern_h, tl.cdiv(Lk, BN), width, H)
    b, pattern, col = tl.cast(b, tl.int64), tl.cast(pattern, tl.int64), tile * BN
    start = (b * Lq * H + h) * HEAD  # do is stored as (B, Lq, H, HEAD)
    Q, DO, MASK = Q + b * qb + h * qh, DO + start, MASK + pattern * Lq * Lk
    ANGLES_Q, ANGLES_K = ANGLES_Q + b * angles_b * Lq * HEAD, ANGLES_K + b * angles_b * Lk * HEAD
    k = load_rows(K + b * kb + h * kh, ANGLES_K, col, kl, Lk, ROTARY, HEAD, HALF, BN)
    v = load_rows(V + b * vb + h * vh, ANGLES_K, col, vl, Lk, False, HEAD, HALF, BN)
    key = col + tl.arange(0, BN)  # (BN,)
    dk = tl.zeros((BN, 2 * HALF), tl.float32)  # (BN, 2 HALF)
    dv = tl.zeros((BN, 2 * HALF), tl.float32)  # (BN, 2 HALF)
    full, full_end = tl.load(span + 2), tl.load(span + 3)
    for j in range(tl.load(span), tl.load(span + 1)):
        row = (tl.load(order + j) if PATTERN == 2 else j) * BM
        q = load_rows(Q, ANGLES_Q, row, ql, Lq, ROTARY, HEAD, HALF, BM)  # (BM, 2 HALF)
        do = load_rows(DO, ANGLES_Q, row, H * HEAD, Lq, False, HEAD, HALF, BM)  # (BM, 2 HALF)
        query = row + tl.arange(0, BM)  # (BM,)
        at = (b * H + h) * Lq + query  # (BM,)
        lse = tl.load(LSE + at, mask=query < Lq, other=float("inf"))  # (BM,)
        delta = tl.load(DELTA + at, mask=query < Lq, other=0.0)  # (BM,)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale  # (BN, BM)
        if (j < full) | (j >= full_end):
            allowed = is_allowed(MASK, query[None, :], key[:, None], first, Lq, Lk, PATTERN)
            s = tl.where(allowed, s, -float("inf"))  # (BN, BM)
        p = tl.exp2(s - lse[None, :])  # (BN, BM)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)  # (BN, 2 HALF)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # (BN, BM)
        ds = p * (dp - delta[None, :])  # (BN, BM)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)  # (BN, 2 HALF)
    dk = (dk * (scale * LOG_2)).to(k.dtype)  # (BN, 2 HALF)
    start = (b * Lk * H + h) * HEAD  # dk and dv are stored as (B, Lk, H, HEAD)
    store_rows(DK + start, ANGLES_K, dk, col, H * HEAD, Lk, ROTARY, HEAD, HALF, BN)
    store_rows(DV + start, ANGLES_K, dv.to(v.dtype), col, H * HEAD, Lk, False, HEAD, HALF, BN)
