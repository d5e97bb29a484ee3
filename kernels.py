"""
Chapter 23. Optional fast forms of attention, of head and loss, and of sampling from the head.

Each fast form stands beside its plain one, has the same result, and is tested against it. Without
this file everything works, more slowly or in more memory.

    attention     FlexAttention, or kernels_triton/flash_attention.py, in place of SDPA
    MLP           computes GELU again for the gradient, in place of keeping it
    head_loss     computes loss and gradient of the head in chunks of rows
    sample_head   samples tokens without storing all probabilities; on GPUs by Triton
"""
import functools
import importlib.util
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from flags import UserError
from kernels_triton.block_mask import cache_constant, mask_values

flash_attention = None
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    with suppress(ModuleNotFoundError):  # PyTorch for GPUs brings Triton; elsewhere pip installs it
        from kernels_triton import flash_attention

# ---- attention
#
# The backends:
#     sdpa     the plain form, model.attention: PyTorch's fused kernels, with a dense mask in memory
#              where the pattern needs one
#     flex     FlexAttention, compiled. It skips empty tiles. It has no gradient on CPUs, so it is
#              not used there
#     triton   kernels_triton/flash_attention.py. It skips empty tiles and applies rotary positions
#              while it loads queries and keys
#     auto     flex for training on a GPU with a pattern that is neither full nor causal; else sdpa
#
# flex compiles again for each new shape. Training has one shape, but sampling has many, so auto
# samples with sdpa. To find the empty tiles of a pattern costs as much as one call of attention, so
# auto does it only for predicates marked `cacheable`, which are the same object in every call. The
# groups of PGM, for example, are new in each batch.

attention_backend = "auto"


def set_attention(backend, device):
    """Use this backend from now on. UserError if this device does not support it."""
    global attention_backend
    if backend == "flex" and device.type != "cuda":
        raise UserError("--attention flex needs a GPU: FlexAttention has no gradient on a CPU. "
                        "Use --attention auto")
    on_gpu = device.type == "cuda"
    if backend == "triton" and not (flash_attention and (flash_attention.INTERPRET or on_gpu)):
        raise UserError("--attention triton needs a GPU and Triton (pip install triton). "
                        "Use --attention auto")
    attention_backend = backend


def choose_attention(q, v, mask_mod, dropout, first, causal):
    """The backend of one call: sdpa, flex or triton. q (B, H, Lq, hd), v (B, H, Lk, hd)"""
    if dropout or q.shape[2] < 16 or attention_backend == "sdpa":
        return "sdpa"  # only sdpa has dropout, and a few new tokens have no tiles to skip
    cacheable = mask_mod is None or getattr(mask_mod, "cacheable", False)
    if not cacheable and torch.compiler.is_compiling():
        return "sdpa"  # a compiled graph cannot hold a predicate that each batch creates anew
    if attention_backend == "triton":
        runs_here = v.is_cuda or flash_attention.INTERPRET
        fits = v.dtype in flash_attention.DTYPES and v.shape[3] in flash_attention.HEAD_SIZES
        return "triton" if runs_here and fits else "sdpa"
    if mask_mod is None or v.shape[3] < 16:  # flex does not support smaller heads
        return "sdpa"
    if attention_backend == "flex":
        return "flex"
    plain_causal = mask_mod is causal and first == 0 and q.shape[2] == v.shape[2]  # SDPA has it
    saves_time = v.is_cuda and cacheable and q.shape[2] >= 128 and torch.is_grad_enabled()
    return "flex" if saves_time and not plain_causal else "sdpa"


def dispatch_attention(causal, rotate):
    """Decorator of the plain form: each call goes to the backend that suits it."""
    def decorate(plain):
        @functools.wraps(plain)
        def dispatch(q, k, v, mask_mod=None, dropout=0.0, first=0, rotary=None):
            backend = choose_attention(q, v, mask_mod, dropout, first, causal)
            if backend == "triton":
                return flash_attention.flash_attention(q, k, v, mask_mod, first, rotary)
            if backend == "flex":
                if rotary:
                    q, k = rotate(q, *rotary[:2]), rotate(k, *rotary[2:])  # (B, H, L, hd) each
                return attend_by_flex(q.to(v.dtype), k.to(v.dtype), v, mask_mod, first)
            return plain(q, k, v, mask_mod, dropout, first, rotary)  # (B, H, Lq, hd)
        return dispatch
    return decorate


@functools.lru_cache
def compiled_flex():
    return torch.compile(flex_attention)  # uncompiled, it stores all scores


@cache_constant
def flex_tiles(mask_mod, B, H, Lq, Lk, device):
    """The tensors of FlexAttention's BlockMask: one for all texts or heads that share a pattern."""
    patterns_b, patterns_h = mask_values(mask_mod, B, H, 1, 1, 0, device).shape[:2]
    tiles = create_block_mask(mask_mod, B if patterns_b > 1 else None,
                              H if patterns_h > 1 else None, Lq, Lk, device=device)
    return (tiles.kv_num_blocks, tiles.kv_indices, tiles.full_kv_num_blocks, tiles.full_kv_indices,
            tiles.q_num_blocks, tiles.q_indices, tiles.full_q_num_blocks, tiles.full_q_indices)


@functools.lru_cache(maxsize=8)
def shift_mask_mod(mask_mod, first):
    """The predicate for queries that start at position `first`."""
    return lambda b, h, query, key: mask_mod(b, h, first + query, key)


def attend_by_flex(q, k, v, mask_mod, first=0):
    """FlexAttention where mask_mod allows it. (B, H, Lq|Lk, hd) each -> (B, H, Lq, hd)"""
    (B, H, Lq, _), Lk = q.shape, k.shape[2]
    mask_mod = shift_mask_mod(mask_mod, first) if first else mask_mod
    tiles = flex_tiles(mask_mod, B, H, Lq, Lk, q.device)
    call = flex_attention if torch.compiler.is_compiling() else compiled_flex()
    return call(q, k, v, block_mask=BlockMask((Lq, Lk), *tiles, mask_mod=mask_mod))


# ---- the MLP

K, C = 1.5957691216057308, 0.07135481627260025  # 2 sqrt(2 / pi), 0.044715 K
ROWS = 128  # of which all that is computed at once fits a cache


class NarrowGelu(torch.autograd.Function):
    """linear(gelu(a)) (N, D) of a (N, 4D), which is all that is kept. In the tanh form

        gelu(a) = a s,   s = sigmoid(K a + C a^3),   gelu'(a) = s + a s (1 - s) (K + 3 C a^2) (23.6)

    and on CPUs a sigmoid takes a third of the time of a tanh.
    """

    @staticmethod
    def forward(ctx, a, weight, bias):
        ctx.save_for_backward(a, weight)
        return F.linear(gelu(a), weight, bias)  # (N, D)

    @staticmethod
    def backward(ctx, grad):
        a, weight = ctx.saved_tensors  # (N, 4D), (D, 4D)
        da = grad @ weight  # (N, 4D)
        y = gelu(a, da)  # (N, 4D)
        return da, grad.mT @ y, grad.sum(0)


def gelu(a, grad=None):
    """GELU, and grad becomes grad gelu'(a). (N, 4D) -> (N, 4D)"""
    y = torch.empty_like(a)  # (N, 4D)
    for rows in (slice(i, i + ROWS) for i in range(0, len(a), ROWS)):
        square = a[rows] * a[rows]  # (n, 4D)
        s = torch.mul(square, C).add_(K).mul_(a[rows]).sigmoid_()  # (n, 4D)
        torch.mul(a[rows], s, out=y[rows])
        if grad is not None:
            slope = square.mul_(3 * C).add_(K).mul_(y[rows])  # (n, 4D)
            grad[rows].mul_(slope.addcmul_(slope, s, value=-1).add_(s))
    return y


class MLP(torch.nn.Sequential):
    """wide, gelu, narrow: (.., D) -> (.., D). For the gradient GELU is computed again, a hundredth
    of a step: to keep what it makes takes a quarter of the memory of all activations."""

    def forward(self, h):
        wide, activation, narrow = self
        a = wide(h)  # (.., 4D)
        if torch.compiler.is_compiling() or not (a.requires_grad and torch.is_grad_enabled()):
            return narrow(activation(a))  # (.., D)
        if a.device.type == "cpu" and a.dtype.itemsize > 2:  # float32: a sigmoid needs its digits
            return NarrowGelu.apply(a.flatten(0, -2), narrow.weight, narrow.bias).view_as(h)
        return checkpoint(lambda a: narrow(activation(a)), a, use_reentrant=False,
                          preserve_rng_state=False)  # it ends before the product


# ---- head and loss
#
# The loss at one position needs its V logits, and so does the gradient: dlogits = softmax - onehot
# for a cross-entropy. So the head is applied to a chunk of rows, the gradients of hidden states and
# head are computed at once, and the logits of the chunk are freed. That takes 3 matrix products, as
# in the plain form, and never more memory than one chunk.


def cross_entropy(logits, grad, x):
    """-log softmax(logits)[x] (n,), and grad (n,) times its gradient (n, V), which overwrites the
    logits. grad None: no gradient."""
    own, top = logits.gather(-1, x[:, None]), logits.amax(-1, keepdim=True)  # (n, 1) each
    e = logits.sub_(top).exp_()  # (n, V)
    total = e.sum(-1, keepdim=True)  # (n, 1)
    nats = (total.log() + top - own)[:, 0]  # (n,)
    if grad is None:
        return nats, None
    return nats, e.mul_(grad[:, None] / total).scatter_add_(-1, x[:, None], -grad[:, None])


def mixture_nats(logits, grad, x, z, kappa, u):
    """u K + [z is text] IS of methods/udlm.py (n,), and grad times its gradient (n, V).

    With p = softmax(logits), r_v = kappa / (1 + kappa p_v), the derivative of log(1 + kappa p_v),
    and d as in methods/udlm.py:
        K  = const - kappa log(1 + kappa p_x) - sum_v log(1 + kappa p_v)
        IS = e^d - 1 - d,  d = const - log(1 + kappa p_z)
        dK/dp_v  = -r_v (1 + kappa [v = x])
        dIS/dp_v = [v = z] r_v (1 - e^d)
    and through the softmax, for G_v = u dK/dp_v + dIS/dp_v:
        dlogits_v = p_v (G_v - sum_w p_w G_w)
    """
    is_text, p = (z < logits.shape[-1])[:, None], logits.softmax(-1)  # (n, 1), (n, V)
    x, z = x[:, None], torch.where(is_text, z[:, None], 0)  # (n, 1) each
    kappa, u = kappa[:, None], u[:, None]  # (n, 1) each
    log_p = torch.mul(p, kappa, out=logits).log1p_()  # (n, V)
    at_x, at_z = log_p.gather(-1, x), log_p.gather(-1, z)  # (n, 1) each
    K = kappa * (kappa.log1p() - at_x) + kappa.log1p() - log_p.sum(-1, keepdim=True)  # (n, 1)
    d = torch.where(x == z, kappa.log1p(), 0.0) - at_z  # (n, 1)
    nats = (u * K + torch.where(is_text, torch.expm1(d) - d, 0.0))[:, 0]  # (n,)
    if grad is None:
        return nats, None
    at_z = torch.where(is_text, -torch.expm1(d) * kappa * (-at_z).exp(), 0.0)  # (n, 1) dIS/dp_z
    G = log_p.neg_().exp_().mul_(-u * kappa)  # (n, V) -u r_v
    G.scatter_add_(-1, x, -u * kappa ** 2 * (-at_x).exp())  # (n, V)
    G.scatter_add_(-1, z, at_z)  # (n, V)
    mean = torch.linalg.vecdot(p, G)[:, None]  # (n, 1)
    return nats, G.sub_(mean).mul_(p).mul_(grad[:, None])  # (n,), (n, V)


class HeadLoss(torch.autograd.Function):
    """scale * rule(head(h)). The forward pass also computes the gradients of sum(free * that)."""

    @staticmethod
    def forward(ctx, rule, n_tokens, needs_grad, low, scale, free, h, weight, bias, *facts):
        w, b, nats, dh = weight[:n_tokens].to(low), bias[:n_tokens].to(low), [], []  # (V, D), (V,)
        dw, db = (torch.zeros_like(a) if needs_grad else None for a in (weight, bias))
        grad, room = scale * free if needs_grad else None, None  # (N,)
        for rows in row_chunks(len(h), n_tokens, h.device):
            part = h[rows].to(low)  # (n, D)
            room = part.new_empty(len(part), n_tokens) if room is None else room  # of all chunks
            logits = torch.addmm(b, part, w.T, out=room[:len(part)])  # (n, V)
            logits = logits if logits.dtype == torch.float64 else logits.float()  # (n, V)
            own = (a[rows].to(logits.dtype) if a.is_floating_point() else a[rows] for a in facts)
            value, dlogits = rule(logits, grad[rows].to(logits.dtype) if needs_grad else None, *own)
            nats.append(value * scale[rows].to(value.dtype))  # (n,)
            if needs_grad:
                db[:n_tokens] += dlogits.sum(0)
                dlogits = dlogits.to(low)  # (n, V)
                dh.append((dlogits @ w).to(h.dtype))  # (n, D)
                if low == weight.dtype:
                    dw[:n_tokens].addmm_(dlogits.T, part)
                else:
                    dw[:n_tokens] += dlogits.T @ part
            logits = dlogits = None  # free copies now, or the next chunk doubles the memory
        if needs_grad:
            ctx.save_for_backward(free, torch.cat(dh), dw, db)
        return torch.cat(nats)  # (N,)

    @staticmethod
    def backward(ctx, g):
        """g (N,) must be a number c times free; if it is not, c and all gradients become nan."""
        free, dh, dw, db = ctx.saved_tensors
        c = g / free if len(g) else torch.zeros_like(db[:1])  # (N,)
        low, high = c.amin(), c.amax()  # () each
        c = torch.where(high - low <= 1e-4 * high.abs(), high, torch.nan).to(dw.dtype)  # ()
        dw = dw * c if torch.compiler.is_compiling() else dw.mul_(c)  # in place: it is the largest
        n_facts = len(ctx.needs_input_grad) - 9
        return *[None] * 6, dh * c.to(dh.dtype), dw, db * c, *[None] * n_facts


def row_chunks(n, V, device, on_cpu=6_000_000):
    """Slices of n rows of V numbers, each as large as fits the cache of a CPU or fills a GPU."""
    rows = max(1, (on_cpu if device.type == "cpu" else 2 ** 27) // V)
    return [slice(i, min(i + rows, n)) for i in range(0, max(1, n), rows)]


def head_loss(h, weight, bias, rule, n_tokens, scale=None, free=None, facts=()):
    """scale * rule(logits of the first n_tokens symbols, *facts), for hidden states h (N, D).

    scale, free (N,), None for ones; facts (N,) each. The caller may only use the result in a sum
    weighted by `free` times any one number; otherwise the gradients are nan. -> (N,) nats
    """
    needs_grad = torch.is_grad_enabled() and (h.requires_grad or weight.requires_grad)
    kind = h.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype
    ones = torch.ones(len(h), device=h.device)  # (N,)
    scale, free = (ones if a is None else a for a in (scale, free))  # (N,) each
    with torch.autocast(kind, enabled=False):  # HeadLoss picks the precision of each product itself
        return HeadLoss.apply(rule, n_tokens, needs_grad, low, scale, free, h, weight, bias, *facts)


def head_loss_plain(h, weight, bias, rule, n_tokens, scale=None, free=None, facts=()):
    """The same by autograd, with the plain rule(logits, *facts). It stores several (N, V) tensors,
    and the caller may use the result in any way: `free` is ignored. -> (N,) nats"""
    nats = rule(F.linear(h, weight, bias)[:, :n_tokens], *facts)  # (N,)
    return nats if scale is None else nats * scale.to(nats.dtype)  # (N,)


FAST = {rule.__name__: partial(head_loss, rule=rule) for rule in (cross_entropy, mixture_nats)}


# ---- sampling from the head

def sample_head(h, weight, bias, to_probs, draw_from, n_tokens, of=None, temperature=None):
    """draw_from(to_probs, logits of h (N, D), of) of diffusion.py, in chunks of rows.

    temperature: given if to_probs is softmax(logits / temperature) and nothing else. Then a GPU
    samples by the kernels of kernels_triton/sample_head.py. -> ids (N,), p (N,) float64
    """
    if h.is_cuda and temperature and (sample := triton_sampler(h.device)):
        if torch.is_autocast_enabled("cuda"):
            h = h.to(torch.get_autocast_dtype("cuda"))  # (N, D) in the precision of the plain head
        return sample(h, weight[:n_tokens], bias[:n_tokens], temperature, of)  # (N,), (N,)
    chunks = row_chunks(len(h), n_tokens, h.device)
    parts = [sample_head_plain(h[rows], weight, bias, to_probs, draw_from, n_tokens,
                               None if of is None else of[rows]) for rows in chunks]
    return tuple(torch.cat(part) for part in zip(*parts))  # (N,), (N,)


@functools.lru_cache
def triton_sampler(device):
    """The function sample_head_triton, or None, with one message, if Triton cannot build kernels:
    it needs a C compiler and Python.h."""
    if not importlib.util.find_spec("triton"):
        return None
    from kernels_triton.sample_head import sample_head_triton
    zeros = torch.zeros(1, 16, device=device)  # (1, 16)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a trial, no draw
            sample_head_triton(zeros, zeros, zeros[0, :1])
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"sampling goes on without Triton, which cannot build its kernels here: {error}",
              file=sys.stderr)
        return None
    return sample_head_triton


def sample_head_plain(h, weight, bias, to_probs, draw_from, n_tokens, of=None):
    """The same with all (N, V) logits. Few rows of probabilities, in float64, exist at a time."""
    logits = F.linear(h, weight, bias)[:, :n_tokens]  # (N, n_tokens)
    parts = [draw_from(to_probs, logits[rows], None if of is None else of[rows])
             for rows in row_chunks(len(h), n_tokens, h.device, 2 ** 19)]  # (n,), (n,) each
    return tuple(torch.cat(part) for part in zip(*parts))  # (N,), (N,)
