"""
Flash attention, forward and backward, as three Triton kernels (arXiv:2205.14135, 2307.08691). Optional, to be read.

Attention weighs the values v_j by how well the keys k_j meet the query q_i, d features each, among the keys that i may
look at:

    o_i = sum_j p_ij v_j,   p_ij = exp(s_ij - lse_i),   s_ij = q_i . k_j / sqrt(d),   lse_i = log sum_j exp s_ij   (47)

Written out, s and p are L x L numbers that go to memory and back. A tile of 64 x 128 of them stays on the chip: keys
come by tile after tile, and m, l and a hold what was seen so far, relative to the largest score m. When a tile S has
a larger one, the old sums shrink to it:

    m' = max(m, max_j S_ij),  c = exp(m - m'),  l' = c l + sum_j exp(S_ij - m'),  a' = c a + sum_j exp(S_ij - m') v_j
    at the end   o = a / l,   lse = m + log l                                                                      (48)

Only o and lse are kept: from lse, one number a query, every p_ij comes back where the gradient needs it. With do the
gradient of the loss in o,

    dv_j = sum_i p_ij do_i                                                                                         (49)
    ds_ij = p_ij (do_i . v_j - delta_i),   delta_i = do_i . o_i       the softmax: sum_j p_ij (do_i . v_j) = do_i . o_i
    dq_i = sum_j ds_ij k_j / sqrt(d),   dk_j = sum_i ds_ij q_i / sqrt(d)                                           (50)

One kernel owns queries and sums dq over keys, another owns keys and sums dk and dv over queries. Each number has one
owner: no two programs add to the same place, and the result is the same in every run.

Rotary positions are taken in: q_i = R_i q^_i and k_j = R_j k^_j turn when they are loaded, and since a turn keeps
lengths, what comes out turns back:                    dq^_i = R_i' dq_i,   dk^_j = R_j' dk_j                      (51)

A pattern is any predicate mask_mod(batch, head, query, key). `plan` looks at it once, tile by tile: *empty* tiles are
never visited, *whole* ones need no mask, only in the others each pair is asked. If it lets all look at all, or at what
is not behind them, the kernel knows by itself, and no mask stays in memory. A query that may look at nothing gets
zeros, and gives no gradient (the formula says 0/0).

exp2 is what the chip has: scores and lse are in units of log 2 inside. Products are summed in float32. Plain pointers,
no autotuning: Triton 3.4 to 3.9. TRITON_INTERPRET=1 runs it without a GPU, slowly, and not in bfloat16: there the
interpreter multiplies the bits, and says nothing.
"""
import math
import os

import torch
import triton
import triton.language as tl

from tiles import plan

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"        # read when the kernels below are made
DTYPES = (torch.float16, torch.float32) if INTERPRET else (torch.float16, torch.float32, torch.bfloat16)
HEADS = range(16, 129, 2)
LOWEST = tl.constexpr(-1e30)                                 # below every score, and yet LOWEST - LOWEST is 0


# ---- tiles: rows of a matrix (n, HEAD) whose features lie side by side; two halves, each filled up to a power of two

@triton.jit
def pointers(base, row, stride, n, HEAD: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr):
    """Where rows row .. row + ROWS - 1 lie, and which of them there are. -> (ROWS, 2 HALF) twice"""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, 2 * HALF)[None, :]
    feature = columns // HALF * (HEAD // 2) + columns % HALF                                  # (1, 2 HALF)
    start = base + tl.cast(row, tl.int64) * stride                   # beyond 2^31 numbers an int32 would be too small
    return start + rows * stride + feature, (row + rows < n) & (columns % HALF < HEAD // 2)


@triton.jit
def turn(x, cos, sin, ROWS: tl.constexpr, HALF: tl.constexpr):
    """R of (51): the pairs (x1, x2) of x = [x1 ; x2] turn by an angle. (ROWS, 2 HALF), (ROWS, HALF) twice -> as x"""
    x1, x2 = tl.split(tl.permute(tl.reshape(x, (ROWS, 2, HALF)), (0, 2, 1)))                  # (ROWS, HALF) each
    y = tl.join(x1 * cos - x2 * sin, x2 * cos + x1 * sin)                                     # (ROWS, HALF, 2)
    return tl.reshape(tl.permute(y, (0, 2, 1)), (ROWS, 2 * HALF))


@triton.jit
def turned(x, angles, row, n, sign, HEAD: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr):
    """The rows of x, of any dtype, turned by their angles, or back. angles: (n, HEAD), [cos ; sin] of each row"""
    rows, pair = row + tl.arange(0, ROWS)[:, None], tl.arange(0, HALF)[None, :]
    there = (rows < n) & (pair < HEAD // 2)                                                   # (ROWS, HALF)
    cos = tl.load(angles + rows * HEAD + pair, mask=there, other=0.0)                         # (ROWS, HALF)
    sin = tl.load(angles + rows * HEAD + HEAD // 2 + pair, mask=there, other=0.0) * sign      # (ROWS, HALF)
    return turn(x.to(tl.float32), cos, sin, ROWS, HALF).to(x.dtype)


@triton.jit
def load(base, angles, row, stride, n, ROTARY: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr,
         ROWS: tl.constexpr):
    """ROWS rows, turned if ROTARY; zeros where there are none. -> (ROWS, 2 HALF)"""
    at, there = pointers(base, row, stride, n, HEAD, HALF, ROWS)
    x = tl.load(at, mask=there, other=0.0)                                                    # (ROWS, 2 HALF)
    if ROTARY:
        x = turned(x, angles, row, n, 1.0, HEAD, HALF, ROWS)
    return x


@triton.jit
def store(base, angles, x, row, stride, n, ROTARY: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr,
          ROWS: tl.constexpr):
    """The rows of a gradient, turned back if ROTARY."""
    if ROTARY:
        x = turned(x, angles, row, n, -1.0, HEAD, HALF, ROWS)
    at, there = pointers(base, row, stride, n, HEAD, HALF, ROWS)
    tl.store(at, x, mask=there)


@triton.jit
def allowed(mask, query, key, first, Lq, Lk, PATTERN: tl.constexpr):
    """May these queries look at these keys? Both broadcast: (BM, 1) and (1, BN), or (1, BM) and (BN, 1)."""
    there = (query < Lq) & (key < Lk)
    if PATTERN == 1:                                         # CAUSAL
        there = there & (first + query >= key)
    if PATTERN == 2:                                         # LISTED
        there = tl.load(mask + tl.cast(query, tl.int64) * Lk + key, mask=there, other=0) != 0
    return there


@triton.jit
def whose(span, order, pattern_b, pattern_h, tiles, width, H):
    """This program's tile, text and head, and its line of the plan. Later tiles first: under CAUSAL these are long."""
    pid = tl.program_id(0)
    tile, bh = tiles - 1 - pid % tiles, pid // tiles
    b, h = bh // H, bh % H
    which = b * pattern_b + h * pattern_h
    line = tl.cast(which, tl.int64) * tiles + tile
    return tile, b, h, which, span + line * 4, order + line * width


# ---- the kernels. Scores are (queries, keys) = (BM, BN), but in backward_kv, which owns keys: there (BN, BM).

@triton.jit
def forward(Q, K, V, O, LSE, ANGLES_Q, ANGLES_K, SPAN, ORDER, MASK, qb, qh, ql, kb, kh, kl, vb, vh, vl,
            pattern_b, pattern_h, angles_b, width, first, H, Lq, Lk, scale,
            PATTERN: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr,
            HALF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """(48) for BM queries. scale is log2(e) / sqrt(d)"""
    tile, b, h, which, span, order = whose(SPAN, ORDER, pattern_b, pattern_h, tl.cdiv(Lq, BM), width, H)
    b, which, row = tl.cast(b, tl.int64), tl.cast(which, tl.int64), tile * BM
    K, V, MASK = K + b * kb + h * kh, V + b * vb + h * vh, MASK + which * Lq * Lk
    ANGLES_Q, ANGLES_K = ANGLES_Q + b * angles_b * Lq * HEAD, ANGLES_K + b * angles_b * Lk * HEAD
    q = load(Q + b * qb + h * qh, ANGLES_Q, row, ql, Lq, ROTARY, HEAD, HALF, BM)              # (BM, 2 HALF)
    query = row + tl.arange(0, BM)                                                            # (BM,)
    m, l = tl.full((BM,), LOWEST, tl.float32), tl.zeros((BM,), tl.float32)                    # (BM,) each
    a = tl.zeros((BM, 2 * HALF), tl.float32)                                                  # (BM, 2 HALF)
    whole, whole_end = tl.load(span + 2), tl.load(span + 3)
    for j in range(tl.load(span), tl.load(span + 1)):
        col = (tl.load(order + j) if PATTERN == 2 else j) * BN
        k = load(K, ANGLES_K, col, kl, Lk, ROTARY, HEAD, HALF, BN)                            # (BN, 2 HALF)
        v = load(V, ANGLES_K, col, vl, Lk, False, HEAD, HALF, BN)                             # (BN, 2 HALF)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale                         # (BM, BN)
        if (j < whole) | (j >= whole_end):
            key = col + tl.arange(0, BN)                                                      # (BN,)
            s = tl.where(allowed(MASK, query[:, None], key[None, :], first, Lq, Lk, PATTERN), s, -float("inf"))
        larger = tl.maximum(m, tl.max(s, 1))                                                  # (BM,)
        p, c = tl.exp2(s - larger[:, None]), tl.exp2(m - larger)                              # (BM, BN), (BM,)
        m, l = larger, l * c + tl.sum(p, 1)                                                   # (BM,) each
        a = tl.dot(p.to(v.dtype), v, a * c[:, None], input_precision=PRECISION)               # (BM, 2 HALF)
    l = tl.where(l > 0, l, 1.0)                              # 0 where there was nothing to look at: o becomes 0
    o, lse = a / l[:, None], m + tl.log2(l)                                                   # (BM, 2 HALF), (BM,)
    tl.store(LSE + (b * H + h) * Lq + query, lse, mask=query < Lq)
    store(O + (b * Lq * H + h) * HEAD, ANGLES_Q, o.to(q.dtype), row, H * HEAD, Lq, False, HEAD, HALF, BM)


@triton.jit
def backward_q(Q, K, V, O, DO, LSE, DELTA, DQ, ANGLES_Q, ANGLES_K, SPAN, ORDER, MASK, qb, qh, ql, kb, kh, kl,
               vb, vh, vl, pattern_b, pattern_h, angles_b, width, first, H, Lq, Lk, scale,
               PATTERN: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr,
               HALF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """delta and dq of (50) for BM queries."""
    tile, b, h, which, span, order = whose(SPAN, ORDER, pattern_b, pattern_h, tl.cdiv(Lq, BM), width, H)
    b, which, row = tl.cast(b, tl.int64), tl.cast(which, tl.int64), tile * BM
    K, V, MASK = K + b * kb + h * kh, V + b * vb + h * vh, MASK + which * Lq * Lk
    ANGLES_Q, ANGLES_K = ANGLES_Q + b * angles_b * Lq * HEAD, ANGLES_K + b * angles_b * Lk * HEAD
    here = (b * Lq * H + h) * HEAD                           # o, do and dq lie as (B, Lq, H, HEAD)
    q = load(Q + b * qb + h * qh, ANGLES_Q, row, ql, Lq, ROTARY, HEAD, HALF, BM)              # (BM, 2 HALF)
    o = load(O + here, ANGLES_Q, row, H * HEAD, Lq, False, HEAD, HALF, BM)                    # (BM, 2 HALF)
    do = load(DO + here, ANGLES_Q, row, H * HEAD, Lq, False, HEAD, HALF, BM)                  # (BM, 2 HALF)
    query = row + tl.arange(0, BM)                                                            # (BM,)
    at = (b * H + h) * Lq + query                                                             # (BM,)
    lse = tl.load(LSE + at, mask=query < Lq, other=float("inf"))                              # (BM,)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)                                   # (BM,)
    tl.store(DELTA + at, delta, mask=query < Lq)
    dq = tl.zeros((BM, 2 * HALF), tl.float32)                                                 # (BM, 2 HALF)
    whole, whole_end = tl.load(span + 2), tl.load(span + 3)
    for j in range(tl.load(span), tl.load(span + 1)):
        col = (tl.load(order + j) if PATTERN == 2 else j) * BN
        k = load(K, ANGLES_K, col, kl, Lk, ROTARY, HEAD, HALF, BN)                            # (BN, 2 HALF)
        v = load(V, ANGLES_K, col, vl, Lk, False, HEAD, HALF, BN)                             # (BN, 2 HALF)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale                         # (BM, BN)
        if (j < whole) | (j >= whole_end):
            key = col + tl.arange(0, BN)                                                      # (BN,)
            s = tl.where(allowed(MASK, query[:, None], key[None, :], first, Lq, Lk, PATTERN), s, -float("inf"))
        p = tl.exp2(s - lse[:, None])                                                         # (BM, BN)
        ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])        # (BM, BN)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)                         # (BM, 2 HALF)
    dq = (dq * (scale * 0.6931471805599453)).to(q.dtype)     # scale log 2 is 1 / sqrt(d)
    store(DQ + here, ANGLES_Q, dq, row, H * HEAD, Lq, ROTARY, HEAD, HALF, BM)


@triton.jit
def backward_kv(Q, K, V, DO, LSE, DELTA, DK, DV, ANGLES_Q, ANGLES_K, SPAN, ORDER, MASK, qb, qh, ql, kb, kh, kl,
                vb, vh, vl, pattern_b, pattern_h, angles_b, width, first, H, Lq, Lk, scale,
                PATTERN: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr,
                HALF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """dk and dv of (49) and (50) for BN keys. Queries that are not there have lse = inf, and so p = 0."""
    tile, b, h, which, span, order = whose(SPAN, ORDER, pattern_b, pattern_h, tl.cdiv(Lk, BN), width, H)
    b, which, col = tl.cast(b, tl.int64), tl.cast(which, tl.int64), tile * BN
    Q, DO, MASK = Q + b * qb + h * qh, DO + (b * Lq * H + h) * HEAD, MASK + which * Lq * Lk
    ANGLES_Q, ANGLES_K = ANGLES_Q + b * angles_b * Lq * HEAD, ANGLES_K + b * angles_b * Lk * HEAD
    k = load(K + b * kb + h * kh, ANGLES_K, col, kl, Lk, ROTARY, HEAD, HALF, BN)              # (BN, 2 HALF)
    v = load(V + b * vb + h * vh, ANGLES_K, col, vl, Lk, False, HEAD, HALF, BN)               # (BN, 2 HALF)
    key = col + tl.arange(0, BN)                                                              # (BN,)
    dk = tl.zeros((BN, 2 * HALF), tl.float32)                                                 # (BN, 2 HALF)
    dv = tl.zeros((BN, 2 * HALF), tl.float32)                                                 # (BN, 2 HALF)
    whole, whole_end = tl.load(span + 2), tl.load(span + 3)
    for j in range(tl.load(span), tl.load(span + 1)):
        row = (tl.load(order + j) if PATTERN == 2 else j) * BM
        q = load(Q, ANGLES_Q, row, ql, Lq, ROTARY, HEAD, HALF, BM)                            # (BM, 2 HALF)
        do = load(DO, ANGLES_Q, row, H * HEAD, Lq, False, HEAD, HALF, BM)                     # (BM, 2 HALF)
        query = row + tl.arange(0, BM)                                                        # (BM,)
        at = (b * H + h) * Lq + query                                                         # (BM,)
        lse = tl.load(LSE + at, mask=query < Lq, other=float("inf"))                          # (BM,)
        delta = tl.load(DELTA + at, mask=query < Lq, other=0.0)                               # (BM,)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale                         # (BN, BM)
        if (j < whole) | (j >= whole_end):
            s = tl.where(allowed(MASK, query[None, :], key[:, None], first, Lq, Lk, PATTERN), s, -float("inf"))
        p = tl.exp2(s - lse[None, :])                                                         # (BN, BM)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)                        # (BN, 2 HALF)
        ds = p * (tl.dot(v, tl.trans(do), input_precision=PRECISION) - delta[None, :])        # (BN, BM)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)                         # (BN, 2 HALF)
    dk = (dk * (scale * 0.6931471805599453)).to(k.dtype)
    here = (b * Lk * H + h) * HEAD                           # dk and dv lie as (B, Lk, H, HEAD)
    store(DK + here, ANGLES_K, dk, col, H * HEAD, Lk, ROTARY, HEAD, HALF, BN)
    store(DV + here, ANGLES_K, dv.to(v.dtype), col, H * HEAD, Lk, False, HEAD, HALF, BN)


# ---- the operator

def blocks(head_size, dtype, device):
    """Tiles whose numbers fit in a Hopper chip's registers and shared memory (fewer in float32, whose products in full
    precision take other units), or in those of a smaller one. -> (BM, BN, warps, stages) of the three kernels. The
    first two follow one plan, and so have the same tiles.
    """
    if INTERPRET:                                            # it pays for each tile
        return ((128, 64, 4, 1),) * 3
    small = torch.cuda.get_device_properties(device).shared_memory_per_block_optin < 200_000
    if dtype == torch.float32:
        wide = (32, 32, 8, 2) if head_size <= 64 else (32, 16, 4, 2)         # larger ones spill
        return ((32, 32, 4, 1),) * 3 if small else (wide, wide, (32, 32, 8, 2))
    if small:
        return ((64, 32, 4, 2),) * 3
    if head_size <= 64:
        return (128, 64, 4, 3), (128, 64, 8, 3), (64, 128, 8, 3)
    return (128, 64, 8, 3), (128, 64, 8, 2), (32, 128, 8, 2)


def launch(kernel, size, tensors, angles, tables, mask, q, k, v, numbers):
    """One program for each tile of what the kernel owns, in each head of each text."""
    (B, H, Lq, d), Lk, (BM, BN, warps, stages) = q.shape, k.shape[2], size
    (pattern, step_b, step_h, first), (span, order) = numbers, tables
    programs = B * H * (triton.cdiv(Lk, BN) if kernel is backward_kv else triton.cdiv(Lq, BM))
    of_q, of_k = angles or (tensors[0], tensors[0])          # no angles: any pointer, never followed
    exact = q.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    with torch.cuda.device_of(q):                            # the GPU of the tensors may not be the current one
        kernel[(programs,)](
            q, k, v, *tensors, of_q, of_k, span, order, mask, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            step_b, step_h, int(bool(angles) and len(of_q) > 1), order.shape[-1], first, H, Lq, Lk,
            math.log2(math.e) / math.sqrt(d), PATTERN=pattern, ROTARY=bool(angles),
            PRECISION="ieee" if exact else "tf32", HEAD=d, HALF=max(8, triton.next_power_of_2(d // 2)),
            BM=BM, BN=BN, num_warps=warps, num_stages=stages)


def rows_first(x):
    """Memory for a tensor like x (B, H, L, d) that lies as (B, L, H, d), as the next layer wants it."""
    B, H, L, d = x.shape
    return x.new_empty(B, L, H, d).transpose(1, 2)                                                  # (B, H, L, d)


@torch.library.custom_op("palimpsest::flash", mutates_args=())
def operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, angles: list[torch.Tensor],
             tables: list[torch.Tensor], numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(47), one opaque operator for torch.compile. -> o, and lse in units of log 2"""
    o, lse = rows_first(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    mask, span, order, *_ = tables
    by_queries, *_ = blocks(q.shape[-1], q.dtype, q.device)
    launch(forward, by_queries, (o, lse), angles, (span, order), mask, q, k, v, numbers)
    return o, lse


@operator.register_fake
def _(q, k, v, angles, tables, numbers):
    return rows_first(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("palimpsest::flash_backward", mutates_args=())
def gradient(do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor,
             lse: torch.Tensor, angles: list[torch.Tensor], tables: list[torch.Tensor],
             numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(49)-(51)"""
    dq, dk, dv, delta = rows_first(q), rows_first(k), rows_first(v), torch.empty_like(lse)
    do = do.transpose(1, 2).contiguous().transpose(1, 2)                                            # (B, H, Lq, d)
    mask, *of_queries, span, order = tables
    _, by_queries, by_keys = blocks(q.shape[-1], q.dtype, q.device)
    launch(backward_q, by_queries, (o, do, lse, delta, dq), angles, of_queries, mask, q, k, v, numbers)
    launch(backward_kv, by_keys, (do, lse, delta, dk, dv), angles, (span, order), mask, q, k, v, numbers)
    return dq, dk, dv


@gradient.register_fake
def _(do, q, k, v, o, lse, angles, tables, numbers):
    return rows_first(q), rows_first(k), rows_first(v)


def keep(ctx, inputs, output):
    q, k, v, angles, tables, ctx.numbers = inputs
    ctx.n_angles = len(angles)
    ctx.save_for_backward(q, k, v, *output, *angles, *tables)


def differentiate(ctx, do, _):
    q, k, v, o, lse, *rest = ctx.saved_tensors
    angles, tables = rest[:ctx.n_angles], rest[ctx.n_angles:]
    none = [None] * len(angles), [None] * len(tables), None
    return *gradient(do, q, k, v, o, lse, angles, tables, ctx.numbers), *none


operator.register_autograd(differentiate, setup_context=keep)


def side_by_side(cos, sin):
    """(L, d/2) or (1|B, 1, L, d/2) each -> (1|B, L, d), as the kernels read them"""
    return torch.cat([cos, sin], -1).float().view(-1, cos.shape[-2], 2 * cos.shape[-1])


def flash(q, k, v, mask_mod=None, first=0, rotary=None):
    """softmax(q k' / sqrt(d)) v where mask_mod allows it. (B, H, Lq, d), twice (B, H, Lk, d) -> (B, H, Lq, d)

    first: the place of the first query among the keys, as in model.attention
    rotary: cos, sin of the queries, cos, sin of the keys, (L, d/2) or (1|B, 1, L, d/2) each: q and k come unturned
    """
    (B, H, Lq, d), Lk = q.shape, k.shape[2]
    if d not in HEADS or v.dtype not in DTYPES:
        raise ValueError(f"flash attention takes even heads of 16 to 128 in {DTYPES}, not {d} in {v.dtype}")
    q, k, v = (a if a.stride(-1) == 1 else a.contiguous() for a in (q.to(v.dtype), k.to(v.dtype), v))
    angles = [side_by_side(*pair) for pair in (rotary[:2], rotary[2:])] if rotary else []           # (1|B, L, d) each
    angles = [a.expand(max(map(len, angles)), -1, -1).contiguous() for a in angles]
    _, by_queries, by_keys = blocks(d, v.dtype, q.device)
    pattern = plan(mask_mod, B, H, Lq, Lk, first, q.device, by_queries[:2], by_keys[:2])
    return operator(q, k, v, angles, [pattern.mask, *pattern.of_queries, *pattern.of_keys],
                    [*pattern[:3], first])[0]                                                       # (B, H, Lq, d)
