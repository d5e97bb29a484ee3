"""
Fast forms, each beside its plain one. Optional: without this file everything works, slower or in more memory.
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

from data import BadInput
from tiles import once, values

flash = None
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    with suppress(ModuleNotFoundError):                      # Triton comes with PyTorch for GPUs; elsewhere by pip
        import flash

# ---- attention
#
# Who computes attention:
#     sdpa     the plain form, model.attention: PyTorch's fused kernels, a mask written out where the pattern needs one
#     flex     FlexAttention, compiled: visits no empty tile. On CPUs it has no gradient, and is not used
#     triton   flash.py: visits no empty tile either, and turns queries and keys while it loads them
#     auto     on a GPU, flex where gradients are wanted through a pattern that is neither full nor causal; else sdpa
# flex compiles anew for each shape. Training has one; sampling, where texts grow, has many: there auto takes sdpa. And
# looking at a pattern costs as much as using it once: auto skips tiles only for predicates that last (`lasts`), being
# the same object in each call; PGM's groups are new in each batch.

chosen = "auto"


def attend_by(way, device):
    """From now on attention goes this way. BadInput where it cannot, on this device."""
    global chosen
    if way == "flex" and device.type != "cuda":
        raise BadInput("--attention flex needs a GPU: elsewhere FlexAttention has no gradient. Take auto")
    if way == "triton" and not (flash and (flash.INTERPRET or device.type == "cuda")):
        raise BadInput("--attention triton needs a GPU, and Triton (pip install triton). Take auto")
    chosen = way


def way(q, v, mask_mod, dropout, first, causal):
    """Who computes this call, sdpa, flex or triton. q (B, H, Lq, hd), v (B, H, Lk, hd)"""
    if dropout or q.shape[2] < 16 or chosen == "sdpa":       # only sdpa drops; a few new tokens have nothing to skip
        return "sdpa"
    lasts = mask_mod is None or getattr(mask_mod, "lasts", False)
    if not lasts and torch.compiler.is_compiling():          # a graph cannot hold what each batch makes anew
        return "sdpa"
    if chosen == "triton":
        here = v.is_cuda or flash.INTERPRET
        return "triton" if here and v.dtype in flash.DTYPES and v.shape[3] in flash.HEADS else "sdpa"
    if mask_mod is None or v.shape[3] < 16:                  # flex takes no smaller heads
        return "sdpa"
    if chosen == "flex":
        return "flex"
    square = mask_mod is causal and first == 0 and q.shape[2] == v.shape[2]      # a library kernel knows this one
    pays = v.is_cuda and lasts and q.shape[2] >= 128 and torch.is_grad_enabled()
    return "flex" if pays and not square else "sdpa"


def attention(causal, rotate):
    """Decorates the plain form, whose signature stays: each call then goes the way that suits it."""
    def decorate(plain):
        @functools.wraps(plain)
        def faster(q, k, v, mask_mod=None, dropout=0.0, first=0, rotary=None):
            by = way(q, v, mask_mod, dropout, first, causal)
            if by == "triton":
                return flash.flash(q, k, v, mask_mod, first, rotary)                                # (B, H, Lq, hd)
            if by == "flex":
                q, k = (rotate(q, *rotary[:2]), rotate(k, *rotary[2:])) if rotary else (q, k)       # (B, H, ., hd)
                return flex(q.to(v.dtype), k.to(v.dtype), v, mask_mod, first)                       # (B, H, Lq, hd)
            return plain(q, k, v, mask_mod, dropout, first, rotary)                                 # (B, H, Lq, hd)
        return faster
    return decorate


@functools.lru_cache
def compiled_flex():
    return torch.compile(flex_attention)                     # without compiling, it writes all scores out


@once
def flex_tiles(mask_mod, B, H, Lq, Lk, device):
    """The tensors of FlexAttention's BlockMask; one for all texts, or heads, where the predicate has one for all."""
    of_b, of_h = values(mask_mod, B, H, 1, 1, 0, device).shape[:2]
    tiles = create_block_mask(mask_mod, B if of_b > 1 else None, H if of_h > 1 else None, Lq, Lk, device=device)
    return (tiles.kv_num_blocks, tiles.kv_indices, tiles.full_kv_num_blocks, tiles.full_kv_indices,
            tiles.q_num_blocks, tiles.q_indices, tiles.full_q_num_blocks, tiles.full_q_indices)


@functools.lru_cache(maxsize=8)
def moved(mask_mod, first):
    """The predicate for queries that start at place `first`."""
    return lambda b, h, query, key: mask_mod(b, h, first + query, key)


def flex(q, k, v, mask_mod, first=0):
    """FlexAttention where mask_mod allows it. (B, H, Lq, hd), twice (B, H, Lk, hd) -> (B, H, Lq, hd)"""
    mask_mod, (B, H, Lq, _), Lk = moved(mask_mod, first) if first else mask_mod, q.shape, k.shape[2]
    tiles = BlockMask((Lq, Lk), *flex_tiles(mask_mod, B, H, Lq, Lk, q.device), mask_mod=mask_mod)
    call = flex_attention if torch.compiler.is_compiling() else compiled_flex()
    return call(q, k, v, block_mask=tiles)                                                          # (B, H, Lq, hd)


# ---- head and loss
#
# The loss of one position needs its V logits, and so does the gradient: dlogits = softmax - onehot, for a
# cross-entropy. So a chunk of rows is scored, its gradients to hidden states and head are taken on the spot, and its
# logits are forgotten: 3 matrix products, as in the plain form, and never more than a chunk in memory.


def cross_entropy(logits, pull, x):
    """-log softmax(logits)[x], (n,) nats, and pull times its gradient, which takes the place of the logits (n, V)."""
    own, top = logits.gather(-1, x[:, None]), logits.amax(-1, keepdim=True)                         # (n, 1) each
    e = logits.sub_(top).exp_()                                                                     # (n, V)
    total = e.sum(-1, keepdim=True)                                                                 # (n, 1)
    nats = (total.log() + top - own)[:, 0]                                                          # (n,)
    if pull is None:
        return nats, None
    return nats, e.mul_(pull[:, None] / total).scatter_add_(-1, x[:, None], -pull[:, None])         # (n,), (n, V)


def mixture_nats(logits, pull, x, z, kappa, u):
    """u K + [z is text] IS of uniform.py, (n,) nats, and pull times its gradient (n, V).

    With p = softmax(logits) and r_v = kappa / (1 + kappa p_v), the derivative of log(1 + kappa p_v), and d as there:
        K  = const - kappa log(1 + kappa p_x) - sum_v log(1 + kappa p_v)    dK/dp_v  = -r_v (1 + kappa [v = x])
        IS = e^d - 1 - d,  d = const - log(1 + kappa p_z)                   dIS/dp_v = [v = z] r_v (1 - e^d)
    and through the softmax, for G_v = u dK/dp_v + dIS/dp_v:  dlogits_v = p_v (G_v - sum_w p_w G_w).
    """
    text, p = (z < logits.shape[-1])[:, None], logits.softmax(-1)                                   # (n, 1), (n, V)
    x, z, kappa, u = x[:, None], torch.where(text, z[:, None], 0), kappa[:, None], u[:, None]       # (n, 1) each
    log_p = torch.mul(p, kappa, out=logits).log1p_()                                                # (n, V)
    at_x, at_z = log_p.gather(-1, x), log_p.gather(-1, z)                                           # (n, 1) each
    K = kappa * (kappa.log1p() - at_x) + kappa.log1p() - log_p.sum(-1, keepdim=True)                # (n, 1)
    d = torch.where(x == z, kappa.log1p(), 0.0) - at_z                                              # (n, 1)
    nats = (u * K + torch.where(text, torch.expm1(d) - d, 0.0))[:, 0]                               # (n,)
    if pull is None:
        return nats, None
    G = log_p.neg_().exp_().mul_(-u * kappa)                                                        # (n, V) -u r_v
    G.scatter_add_(-1, x, -u * kappa ** 2 * (-at_x).exp())                                          # (n, V)
    G.scatter_add_(-1, z, torch.where(text, -torch.expm1(d) * kappa * (-at_z).exp(), 0.0))          # (n, V)
    mean = torch.linalg.vecdot(p, G)[:, None]                                                       # (n, 1)
    return nats, G.sub_(mean).mul_(p).mul_(pull[:, None])                                           # (n,), (n, V)


class HeadLoss(torch.autograd.Function):
    """scale * rule(head(h)), with the gradients of sum(free * that), made along with it."""

    @staticmethod
    def forward(ctx, rule, n_tokens, grad, low, scale, free, h, weight, bias, *facts):
        w, b, nats, dh = weight[:n_tokens].to(low), bias[:n_tokens].to(low), [], []                 # (n, D), (n,)
        dw, db = (torch.zeros_like(a) if grad else None for a in (weight, bias))                    # (V, D), (V,)
        pull = scale * free if grad else None                                                       # (N,)
        for rows in parts(len(h), n_tokens, h.device):
            part = h[rows].to(low)                                                                  # (m, D)
            logits = F.linear(part, w, b)                                                           # (m, n)
            logits = logits if logits.dtype == torch.float64 else logits.float()                    # (m, n)
            own = (a[rows].to(logits.dtype) if a.is_floating_point() else a[rows] for a in facts)   # (m,) each
            value, dlogits = rule(logits, pull[rows].to(logits.dtype) if grad else None, *own)      # (m,), (m, n)
            nats.append(value * scale[rows].to(value.dtype))                                        # (m,)
            if grad:
                db[:n_tokens] += dlogits.sum(0)
                dlogits = dlogits.to(low)                                                           # (m, n)
                dh.append((dlogits @ w).to(h.dtype))                                                # (m, D)
                if low == weight.dtype:
                    dw[:n_tokens].addmm_(dlogits.T, part)
                else:
                    dw[:n_tokens] += dlogits.T @ part
            logits = dlogits = None                          # or two chunks would be held at once
        if grad:
            ctx.save_for_backward(free, torch.cat(dh), dw, db)
        return torch.cat(nats)                                                                      # (N,)

    @staticmethod
    def backward(ctx, g):
        """g (N,) should be free times one number; where it is not, that number is nan, and so is every gradient."""
        free, dh, dw, db = ctx.saved_tensors
        c = g / free if len(g) else torch.zeros_like(db[:1])                                        # (N,)
        low, high = c.amin(), c.amax()                                                              # () each
        c = torch.where(high - low <= 1e-4 * high.abs(), high, torch.nan).to(dw.dtype)              # ()
        dw = dw * c if torch.compiler.is_compiling() else dw.mul_(c)         # in place: it is the largest of all
        facts = len(ctx.needs_input_grad) - 9
        return *[None] * 6, dh * c.to(dh.dtype), dw, db * c, *[None] * facts


def parts(n, V, device, on_cpu=6_000_000):
    """Slices of n rows of V numbers, as many rows as stay in the cache of a CPU, or keep a GPU busy."""
    rows = max(1, (on_cpu if device.type == "cpu" else 2 ** 27) // V)
    return [slice(i, min(i + rows, n)) for i in range(0, max(1, n), rows)]


def head_loss(h, weight, bias, rule, n_tokens, scale=None, free=None, facts=()):
    """scale * rule(logits of the first n_tokens symbols, *facts), of hidden states h (N, D). -> (N,) nats

    scale, free (N,), None for ones; facts (N,) each. What the caller does with the result must be a sum weighted by
    `free` times any one number, or the gradients are nan.
    """
    grad = torch.is_grad_enabled() and (h.requires_grad or weight.requires_grad)
    kind = h.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype
    ones = torch.ones(len(h), device=h.device)                                                      # (N,)
    scale, free = (ones if a is None else a for a in (scale, free))                                 # (N,) each
    with torch.autocast(kind, enabled=False):                # what is done in which precision is said above
        return HeadLoss.apply(rule, n_tokens, grad, low, scale, free, h, weight, bias, *facts)      # (N,)


def head_loss_plain(h, weight, bias, rule, n_tokens, scale=None, free=None, facts=()):
    """The same by autograd, which holds (N, V) several times over, with the plain rule, rule(logits, *facts). Any use
    may be made of the result: `free` is of none here."""
    nats = rule(F.linear(h, weight, bias)[:, :n_tokens], *facts)                                    # (N,)
    return nats if scale is None else nats * scale.to(nats.dtype)                                   # (N,)


FAST = {rule.__name__: partial(head_loss, rule=rule) for rule in (cross_entropy, mixture_nats)}


# ---- draw

def draw(h, weight, bias, law, draw_from, n_tokens, of=None):
    """draw_from(law, logits of h (N, D), of), see diffusion.py. -> ids (N,), p (N,) float64. In chunks of rows; on a
    GPU, where the law is a softmax at some temperature, by the kernels of draw.py."""
    temperature = temperature_of(law)
    if h.is_cuda and temperature and (in_tiles := draw_in_tiles(h.device)):
        h = h.to(torch.get_autocast_dtype("cuda")) if torch.is_autocast_enabled("cuda") else h      # as the head would
        return in_tiles(h, weight[:n_tokens], bias[:n_tokens], temperature, of)                     # (N,), (N,)
    drawn = [draw_plain(h[rows], weight, bias, law, draw_from, n_tokens, None if of is None else of[rows])
             for rows in parts(len(h), n_tokens, h.device)]
    return tuple(torch.cat(part) for part in zip(*drawn))


@functools.lru_cache
def draw_in_tiles(device):
    """draw.py's draw, or None, said once, where Triton cannot build it: it asks for a C compiler and Python.h."""
    if not importlib.util.find_spec("triton"):
        return None
    from draw import draw as in_tiles
    nothing = torch.zeros(1, 16, device=device)                                                     # (1, 16)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):   # what follows draws as if it were not
            in_tiles(nothing, nothing, nothing[0, :1])
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"draws go without Triton, which is not able to build its kernels here: {error}", file=sys.stderr)
        return None
    return in_tiles


def draw_plain(h, weight, bias, law, draw_from, n_tokens, of=None):
    """The same with (N, V) logits. The law and its sums, float64, are those of a few rows at a time."""
    logits = F.linear(h, weight, bias)[:, :n_tokens]                                                # (N, n_tokens)
    drawn = [draw_from(law, logits[rows], None if of is None else of[rows])
             for rows in parts(len(h), n_tokens, h.device, 2 ** 19)]                                # (n,), (n,) each
    return tuple(torch.cat(part) for part in zip(*drawn))                                           # (N,), (N,)


def temperature_of(law):
    """The temperature, if softmax(logits / temperature) is all that the law is, else None."""
    options = {"temperature": 1.0, "top_p": 1.0, **getattr(law, "keywords", {})}
    plain = getattr(law, "func", law).__name__ == "probabilities" and not getattr(law, "args", ())
    return options["temperature"] if plain and options["top_p"] == 1 and options["temperature"] > 0 else None
