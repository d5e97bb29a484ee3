"""
Chapter 23. Flash attention for any pattern, as one operator with a gradient. Optional.

    flash_forward.py    o and lse: (23.1), (23.2)
    flash_backward.py   dq, dk and dv: (23.3), (23.4)
    flash_tiles.py      loads and stores tiles, and applies rotary positions: (23.5)
    block_mask.py       which tiles of a pattern have to be visited

A pattern is any predicate mask_mod(batch, head, query, key). Its plan says which tiles are empty,
and skipped, and which are full, and need no mask. A full or causal pattern keeps no mask in memory.
A query that may see no key yields zeros and no gradient, where the formula says 0/0.

Products are summed in float32. The kernels use plain pointers and no autotuning, for Triton 3.4 to
3.9. TRITON_INTERPRET=1 runs them without a GPU, slowly, and not in bfloat16: there the interpreter
silently multiplies the bits as integers.
"""
import math
import os

import torch
import triton

from kernels_triton.block_mask import plan_tiles
from kernels_triton.flash_backward import backward_kv_kernel, backward_q_kernel
from kernels_triton.flash_forward import forward_kernel

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # read when the kernels are imported
DTYPES = (torch.float16, torch.float32) + (() if INTERPRET else (torch.bfloat16,))
HEAD_SIZES = range(16, 129, 2)


def tile_sizes(head_size, dtype, device):
    """(BM, BN, warps, stages) of the forward, backward_q and backward_kv kernels.

    The tiles fit the registers and shared memory of a Hopper chip, or of a smaller one. float32 has
    smaller tiles, since its products in full precision run on other units. The forward and
    backward_q kernels follow one plan, so they have the same tiles.
    """
    if INTERPRET:  # few large tiles: the interpreter is slow per tile
        return ((128, 64, 4, 1),) * 3
    memory = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    small = memory < 200_000
    if dtype == torch.float32:
        wide = (32, 32, 8, 2) if head_size <= 64 else (32, 16, 4, 2)  # larger ones spill
        return ((32, 32, 4, 1),) * 3 if small else (wide, wide, (32, 32, 8, 2))
    if small:
        return ((64, 32, 4, 2),) * 3
    if head_size <= 64:
        return (128, 64, 4, 3), (128, 64, 8, 3), (64, 128, 8, 3)
    return (128, 64, 8, 3), (128, 64, 8, 2), (32, 128, 8, 2)


def launch(kernel, size, tensors, angles, tables, mask, q, k, v, numbers):
    """Run one program per tile that the kernel owns, in each head of each text."""
    (B, H, Lq, d), Lk, (BM, BN, warps, stages) = q.shape, k.shape[2], size
    (pattern, step_b, step_h, first), (span, order) = numbers, tables
    owned = triton.cdiv(Lk, BN) if kernel is backward_kv_kernel else triton.cdiv(Lq, BM)
    of_q, of_k = angles or (tensors[0], tensors[0])  # without angles: any pointer, never read
    exact = q.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    with torch.cuda.device_of(q):  # the GPU of the tensors may not be the current one
        kernel[(B * H * owned,)](
            q, k, v, *tensors, of_q, of_k, span, order, mask, *q.stride()[:3], *k.stride()[:3],
            *v.stride()[:3], step_b, step_h, int(bool(angles) and len(of_q) > 1), order.shape[-1],
            first, H, Lq, Lk, math.log2(math.e) / math.sqrt(d), PATTERN=pattern,
            ROTARY=bool(angles), PRECISION="ieee" if exact else "tf32", HEAD=d,
            HALF=max(8, triton.next_power_of_2(d // 2)), BM=BM, BN=BN, num_warps=warps,
            num_stages=stages)


def empty_by_token(x):
    """An empty tensor like x (B, H, L, d), stored as (B, L, H, d): what the next layer reads."""
    B, H, L, d = x.shape
    return x.new_empty(B, L, H, d).transpose(1, 2)  # (B, H, L, d)


# ---- operators: opaque to torch.compile

@torch.library.custom_op("palimpsest::flash", mutates_args=())
def flash_op(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, angles: list[torch.Tensor],
        tables: list[torch.Tensor], numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(23.1). -> o (B, H, Lq, d), lse (B, H, Lq) in units of log 2"""
    o, lse = empty_by_token(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    mask, span, order, *_ = tables
    size, *_ = tile_sizes(q.shape[-1], q.dtype, q.device)
    launch(forward_kernel, size, (o, lse), angles, (span, order), mask, q, k, v, numbers)
    return o, lse


@flash_op.register_fake
def fake_flash_op(q, k, v, angles, tables, numbers):
    return empty_by_token(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("palimpsest::flash_backward", mutates_args=())
def flash_op_backward(
        do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor,
        lse: torch.Tensor, angles: list[torch.Tensor], tables: list[torch.Tensor],
        numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(23.3) to (23.5). -> dq, dk, dv"""
    dq, dk, dv = empty_by_token(q), empty_by_token(k), empty_by_token(v)
    delta = torch.empty_like(lse)  # (B, H, Lq)
    do = do.transpose(1, 2).contiguous().transpose(1, 2)  # (B, H, Lq, d)
    mask, *of_queries, span, order = tables
    _, size_q, size_kv = tile_sizes(q.shape[-1], q.dtype, q.device)
    launch(backward_q_kernel, size_q, (o, do, lse, delta, dq), angles, of_queries, mask,
           q, k, v, numbers)
    launch(backward_kv_kernel, size_kv, (do, lse, delta, dk, dv), angles, (span, order), mask,
           q, k, v, numbers)
    return dq, dk, dv


@flash_op_backward.register_fake
def fake_flash_op_backward(do, q, k, v, o, lse, angles, tables, numbers):
    return empty_by_token(q), empty_by_token(k), empty_by_token(v)


def save_for_backward(ctx, inputs, output):
    q, k, v, angles, tables, ctx.numbers = inputs
    ctx.n_angles = len(angles)
    ctx.save_for_backward(q, k, v, *output, *angles, *tables)


def run_backward(ctx, do, _):
    q, k, v, o, lse, *rest = ctx.saved_tensors
    angles, tables = rest[:ctx.n_angles], rest[ctx.n_angles:]
    no_gradient = [None] * len(angles), [None] * len(tables), None
    return *flash_op_backward(do, q, k, v, o, lse, angles, tables, ctx.numbers), *no_gradient


flash_op.register_autograd(run_backward, setup_context=save_for_backward)


# ---- the entry

def pack_angles(cos, sin):
    """(L, d/2) or (1|B, 1, L, d/2) each -> (1|B, L, d), as the kernels read them"""
    return torch.cat([cos, sin], -1).float().view(-1, cos.shape[-2], 2 * cos.shape[-1])


def flash_attention(q, k, v, mask_mod=None, first=0, rotary=None):
    """softmax(q k' / sqrt(d)) v where mask_mod allows it.

    q (B, H, Lq, d), k and v (B, H, Lk, d) -> (B, H, Lq, d)
    first: the position of the first query among the keys, as in model.attention
    rotary: cos, sin of the queries, cos, sin of the keys, (L, d/2) or (1|B, 1, L, d/2) each, if q
    and k come without their rotation
    """
    (B, H, Lq, d), Lk = q.shape, k.shape[2]
    if d not in HEAD_SIZES or v.dtype not in DTYPES:
        raise ValueError(f"flash attention supports even head sizes from 16 to 128 in {DTYPES}, "
                         f"got {d} in {v.dtype}")
    q, k, v = (a if a.stride(-1) == 1 else a.contiguous()
               for a in (q.to(v.dtype), k.to(v.dtype), v))  # (B, H, L, d) each
    angles = [pack_angles(*rotary[:2]), pack_angles(*rotary[2:])] if rotary else []  # (1|B, L, d)
    angles = [a.expand(max(map(len, angles)), -1, -1).contiguous() for a in angles]  # (1|B, L, d)
    _, size_q, size_kv = tile_sizes(d, v.dtype, q.device)
    plan = plan_tiles(mask_mod, B, H, Lq, Lk, first, q.device, size_q[:2], size_kv[:2])
    tables = [plan.mask, *plan.of_queries, *plan.of_keys]
    return flash_op(q, k, v, angles, tables, [*plan[:3], first])[0]  # (B, H, Lq, d)
