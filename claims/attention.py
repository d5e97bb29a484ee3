"""
Claim: a flash attention that can be read is nearly as fast as one that cannot. How nearly?

    python -m claims.attention                  needs a GPU; about two minutes on one
    python -m claims.attention --batch 8 --length 4096 --head_size 128 --heads 8

flash.py against the best of PyTorch, at 12 heads of 64, 1,024 tokens, bfloat16, in three patterns: full, causal, and
block diffusion (17), where [z ; x] are the 1,024 tokens. The rivals are FlashAttention and cuDNN, where they have the
pattern, FlexAttention, compiled, and PyTorch with a mask in memory. Forward and backward are timed apart, by CUDA
events; one round times all in turn, several calls each, and the median of the rounds is printed with the smallest and
the largest. The error is that of o, dq, dk and dv against the formula in float64, the largest of the four.
"""
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    batch: int = flag(16, "texts", least=1)
    heads: int = flag(12, "attention heads", least=1)
    head_size: int = flag(64, "features of a head", least=16, most=128)
    length: int = flag(1024, "tokens", least=16)
    block: int = flag(16, "tokens per block of the block-diffusion pattern", least=1)
    dtype: str = flag("bfloat16", "of queries, keys and values", choices=["bfloat16", "float16"])
    rounds: int = flag(9, "rounds", least=7)
    calls: int = flag(10, "calls of each in a round", least=1)


if __name__ == "__main__":
    CONFIG, GIVEN = parse(Config)

import statistics  # noqa: E402

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from block import doubled
from data import BadInput
from model import causal, dense, rotary_angles, rotate


def hardware():
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def milliseconds(run, calls):
    """CUDA time of one of several calls."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


# ---- attention

def by_library(backend, mask_mod):
    """PyTorch's attention by one of its backends."""
    def run(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=mask_mod is causal)
    return run


def rivals(mask_mod, q, rotary):
    """name -> a function of q, k, v. The last two do more: they turn queries and keys by their positions."""
    flash, mask = kernels.flash.flash, None if mask_mod in (None, causal) else dense(mask_mod, q, q)
    fast = {"flash.py": lambda q, k, v: flash(q, k, v, mask_mod)}
    if mask is None:
        fast["FlashAttention"] = by_library(SDPBackend.FLASH_ATTENTION, mask_mod)
        fast["cuDNN"] = by_library(SDPBackend.CUDNN_ATTENTION, mask_mod)
    else:
        fast["mask in memory"] = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask)
    if mask_mod:
        fast["FlexAttention"] = lambda q, k, v: kernels.flex(q, k, v, mask_mod)
    fast["flash.py, turning inside"] = lambda q, k, v: flash(q, k, v, mask_mod, rotary=(*rotary, *rotary))
    fast["flash.py, turned before"] = lambda q, k, v: flash(rotate(q, *rotary), rotate(k, *rotary), v, mask_mod)
    return fast


def error(run, q, k, v, do, mask_mod, rotary=None):
    """The largest relative error of o, dq, dk, dv on the first text, against the formula in float64."""
    first = [a[:1].detach().requires_grad_() for a in (q, k, v)]
    exact = [a.detach().double().requires_grad_() for a in first]
    o = run(*first)
    turned = [rotate(a, *rotary) for a in exact[:2]] if rotary else exact[:2]
    s = turned[0] @ turned[1].mT * q.shape[-1] ** -0.5                                              # (1, H, L, L)
    s = s if mask_mod is None else s.masked_fill(~dense(mask_mod, s, s), -float("inf"))             # (1, H, L, L)
    wanted = s.softmax(-1) @ exact[2]                                                               # (1, H, L, d)
    ours = o, *torch.autograd.grad(o, first, do[:1], retain_graph=True)          # as `race`, which compiles no other
    theirs = wanted, *torch.autograd.grad(wanted, exact, do[:1].double())
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, theirs))


def race(runs, q, k, v, do, rounds, calls, clock=milliseconds):
    """-> name -> forward, backward times, a list of rounds each"""
    times = {name: ([], []) for name in runs}
    outputs = {name: run(q, k, v) for name, run in runs.items()}         # and whatever has to be compiled is
    backward = lambda o: torch.autograd.grad(o, (q, k, v), do, retain_graph=True)
    for o in outputs.values():
        backward(o)
    for _ in range(rounds):
        for name, run in runs.items():
            times[name][0].append(clock(lambda: run(q, k, v), calls))
            times[name][1].append(clock(lambda: backward(outputs[name]), calls))
    return times


def spread(times):
    return f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


def table(name, mask_mod, pairs, q, k, v, do, rounds, calls, clock=milliseconds):
    """One pattern. pairs: so many pairs of a query and a key are allowed, in one head"""
    rotary = rotary_angles(torch.arange(q.shape[2], device=q.device), q.shape[3])                   # 2 x (L, d/2)
    runs = rivals(mask_mod, q, rotary)
    errors = {}
    for who, run in list(runs.items()):
        try:
            errors[who] = error(run, q, k, v, do, mask_mod, rotary if "turn" in who else None)
        except RuntimeError:                                 # a library kernel that this chip, or shape, does not have
            if "flash.py" in who:
                raise
            print(f"{who} is not to be had here")
            del runs[who]
    times, flops = race(runs, q, k, v, do, rounds, calls, clock), 4 * q.shape[0] * q.shape[1] * q.shape[3] * pairs
    print(f"\n{name + ', ms':<28}{'forward':<26}{'TFLOP/s':<9}{'backward':<26}{'TFLOP/s':<9}error")
    for who, (forward, backward) in times.items():
        rate = [work / statistics.median(t) / 1e9 for work, t in ((flops, forward), (2.5 * flops, backward))]
        print(f"{who:<28}{spread(forward):<26}{rate[0]:<9.1f}{spread(backward):<26}{rate[1]:<9.1f}{errors[who]:.1e}")
    library = [who for who in runs if "flash.py" not in who]
    for i, what in enumerate(("forward", "backward")):
        best = min(library, key=lambda who: statistics.median(times[who][i]))
        shares = [theirs / ours for ours, theirs in zip(times["flash.py"][i], times[best][i])]
        print(f"{what}: flash.py has {100 * statistics.median(shares):.0f} % ({100 * min(shares):.0f} to "
              f"{100 * max(shares):.0f}) of the speed of {best}, the best of the library")


def compare_attention(config):
    if not torch.cuda.is_available() or kernels.flash is None:
        raise BadInput("claims.attention needs a GPU, and Triton: it times what only runs there")
    if config.length % (2 * config.block):
        raise BadInput(f"--length {config.length} must be a multiple of twice --block {config.block}")
    torch.manual_seed(0)
    shape = config.batch, config.length, config.heads, config.head_size
    q, k, v, do = (torch.randn(shape, device="cuda", dtype=getattr(torch, config.dtype)).transpose(1, 2)
                   for _ in range(4))                                                               # (B, H, L, d) each
    q, k, v = (a.requires_grad_() for a in (q, k, v))
    print(f"{hardware()}, Triton {kernels.flash.triton.__version__}\n{config.batch} texts of {config.length} tokens, "
          f"{config.heads} heads of {config.head_size}, {config.dtype}; medians of {config.rounds} rounds")
    patterns = {"full": None, "causal": causal, "block diffusion": doubled(config.length // 2, config.block)}
    for name, mask_mod in patterns.items():
        pairs = config.length ** 2 if mask_mod is None else int(dense(mask_mod, q[:1, :1], k[:1, :1]).sum())
        table(name, mask_mod, pairs, q, k, v, do, config.rounds, config.calls)


if __name__ == "__main__":
    with one_line_errors():
        compare_attention(CONFIG)
