"""
Chapter 23. What the kernels of flash attention share: loading and storing tiles, and positions.

A tile is ROWS rows of a matrix (n, HEAD), one row per token. Each row is loaded as two halves of
HEAD / 2 features, each padded to HALF, a power of two.

Rotary positions are applied while tiles are loaded. A rotation R_i by the position i keeps lengths,
so the gradient of the rotated row is rotated back:

    q_i = R_i q^_i,   k_j = R_j k^_j,   dq^_i = R_i' dq_i,   dk^_j = R_j' dk_j                (23.5)
"""
import triton
import triton.language as tl


@triton.jit
def row_pointers(base, row, stride, n, HEAD: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr):
    """Addresses of the rows row .. row + ROWS - 1, and which exist. -> (ROWS, 2 HALF) twice"""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, 2 * HALF)[None, :]
    feature = columns // HALF * (HEAD // 2) + columns % HALF  # (1, 2 HALF)
    start = base + tl.cast(row, tl.int64) * stride  # int32 would overflow beyond 2^31 numbers
    exists = (row + rows < n) & (columns % HALF < HEAD // 2)  # (ROWS, 2 HALF)
    return start + rows * stride + feature, exists


@triton.jit
def rotate_pairs(x, cos, sin, ROWS: tl.constexpr, HALF: tl.constexpr):
    """R of (23.5): rotates the pairs (x1, x2) of x = [x1 ; x2]. (ROWS, 2 HALF), 2 x (ROWS, HALF)"""
    x1, x2 = tl.split(tl.permute(tl.reshape(x, (ROWS, 2, HALF)), (0, 2, 1)))  # (ROWS, HALF) each
    y = tl.join(x1 * cos - x2 * sin, x2 * cos + x1 * sin)  # (ROWS, HALF, 2)
    return tl.reshape(tl.permute(y, (0, 2, 1)), (ROWS, 2 * HALF))  # (ROWS, 2 HALF)


@triton.jit
def rotate_rows(x, angles, row, n, sign, HEAD: tl.constexpr, HALF: tl.constexpr,
                ROWS: tl.constexpr):
    """Rows rotated by their angles, or back for sign -1. angles (n, HEAD): [cos ; sin] per row"""
    rows, pair = row + tl.arange(0, ROWS)[:, None], tl.arange(0, HALF)[None, :]
    exists = (rows < n) & (pair < HEAD // 2)  # (ROWS, HALF)
    cos = tl.load(angles + rows * HEAD + pair, mask=exists, other=0.0)  # (ROWS, HALF)
    sin = tl.load(angles + rows * HEAD + HEAD // 2 + pair, mask=exists, other=0.0)  # (ROWS, HALF)
    return rotate_pairs(x.to(tl.float32), cos, sin * sign, ROWS, HALF).to(x.dtype)


@triton.jit
def load_rows(base, angles, row, stride, n, ROTARY: tl.constexpr, HEAD: tl.constexpr,
              HALF: tl.constexpr, ROWS: tl.constexpr):
    """ROWS rows, rotated if ROTARY, and zeros beyond the last. -> (ROWS, 2 HALF)"""
    at, exists = row_pointers(base, row, stride, n, HEAD, HALF, ROWS)
    x = tl.load(at, mask=exists, other=0.0)  # (ROWS, 2 HALF)
    if ROTARY:
        x = rotate_rows(x, angles, row, n, 1.0, HEAD, HALF, ROWS)  # (ROWS, 2 HALF)
    return x


@triton.jit
def store_rows(base, angles, x, row, stride, n, ROTARY: tl.constexpr, HEAD: tl.constexpr,
               HALF: tl.constexpr, ROWS: tl.constexpr):
    """Store rows (ROWS, 2 HALF) of a gradient, rotated back if ROTARY."""
    if ROTARY:
        x = rotate_rows(x, angles, row, n, -1.0, HEAD, HALF, ROWS)  # (ROWS, 2 HALF)
    at, exists = row_pointers(base, row, stride, n, HEAD, HALF, ROWS)
    tl.store(at, x, mask=exists)


@triton.jit
def is_allowed(mask, query, key, first, Lq, Lk, PATTERN: tl.constexpr):
    """Whether queries may see keys. Both broadcast: (BM, 1) and (1, BN), or (1, BM) and (BN, 1)."""
    allowed = (query < Lq) & (key < Lk)
    if PATTERN == 1:  # CAUSAL
        allowed = allowed & (first + query >= key)
    if PATTERN == 2:  # LISTED
        at = mask + tl.cast(query, tl.int64) * Lk + key
        allowed = tl.load(at, mask=allowed, other=0) != 0
    return allowed


@triton.jit
def locate_program(span, order, pattern_b, pattern_h, tiles, width, H):
    """Tile, text, head and pattern of this program, and the addresses of its visits in the plan.

    Later tiles come first: under CAUSAL they take longest.
    """
    pid = tl.program_id(0)
    tile, bh = tiles - 1 - pid % tiles, pid // tiles
    b, h = bh // H, bh % H
    pattern = b * pattern_b + h * pattern_h
    line = tl.cast(pattern, tl.int64) * tiles + tile
    return tile, b, h, pattern, span + line * 4, order + line * width
