"""
Claim: a flash attention written to be read is nearly as fast as the library's. How nearly?

    python -m experiments.attention                  needs a GPU; about two minutes
    python -m experiments.attention --batch 8 --length 4096 --head_size 128 --heads 8

flash_attention.py against the best of PyTorch, at 12 heads of 64, 1,024 tokens, bfloat16, in three
patterns: full, causal, and block diffusion (8.3), where [z ; x] are the 1,024 tokens. The others
are FlashAttention and cuDNN, where they have the pattern, FlexAttention, compiled, and SDPA with a
dense mask in memory. Forward and backward are timed separately, by CUDA events. Each round times
all in turns, several calls each, and the median of the rounds is printed with the least and the
most. The error is the largest of o, dq, dk and dv against the formula in float64.
"""
import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from experiments.timing import hardware
from flags import UserError, flag
from methods.bd3lm import block_diffusion_mask
from model import causal, dense_mask, rotary_angles, rotate
from script import run_script

OURS = "flash_attention.py"


@dataclass
class Config:
    batch: int = flag(16, "texts", least=1)
    heads: int = flag(12, "attention heads", least=1)
    head_size: int = flag(64, "features of a head", least=16, most=128)
    length: int = flag(1024, "tokens", least=16)
    block: int = flag(16, "tokens per block of the block-diffusion pattern", least=1)
    dtype: str = flag("bfloat16", "of queries, keys and values", ["bfloat16", "float16"])
    rounds: int = flag(9, "rounds", least=7)
    calls: int = flag(10, "calls of each in a round", least=1)


def milliseconds(run, calls):
    """CUDA time of one of several calls."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def library_attention(backend, mask_mod):
    """SDPA by one of its backends."""
    def run(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=mask_mod is causal)
    return run


def implementations(mask_mod, q, rotary):
    """{name: function of q, k, v}. The last two also rotate queries and keys by their positions."""
    flash = kernels.flash_attention.flash_attention
    ways = {OURS: lambda q, k, v: flash(q, k, v, mask_mod)}
    if mask_mod in (None, causal):
        ways["FlashAttention"] = library_attention(SDPBackend.FLASH_ATTENTION, mask_mod)
        ways["cuDNN"] = library_attention(SDPBackend.CUDNN_ATTENTION, mask_mod)
    else:
        mask = dense_mask(mask_mod, q, q)  # (B, H, L, L)
        ways["dense mask"] = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask)
    if mask_mod:
        ways["FlexAttention"] = lambda q, k, v: kernels.attend_by_flex(q, k, v, mask_mod)
    both = *rotary, *rotary
    ways[f"{OURS}, rotary inside"] = lambda q, k, v: flash(q, k, v, mask_mod, rotary=both)
    ways[f"{OURS}, rotary before"] = lambda q, k, v: flash(
        rotate(q, *rotary), rotate(k, *rotary), v, mask_mod)
    return ways


def largest_error(run, q, k, v, do, mask_mod, rotary=None):
    """The largest relative error of o, dq, dk, dv on the first text, against float64."""
    first = [a[:1].detach().requires_grad_() for a in (q, k, v)]  # (1, H, L, d) each
    exact = [a.detach().double().requires_grad_() for a in first]  # (1, H, L, d) each
    o = run(*first)
    rotated = [rotate(a, *rotary) for a in exact[:2]] if rotary else exact[:2]
    s = rotated[0] @ rotated[1].mT * q.shape[-1] ** -0.5  # (1, H, L, L)
    if mask_mod:
        s = s.masked_fill(~dense_mask(mask_mod, s, s), -float("inf"))  # (1, H, L, L)
    wanted = s.softmax(-1) @ exact[2]  # (1, H, L, d)
    ours = o, *torch.autograd.grad(o, first, do[:1], retain_graph=True)  # as in time_passes, which
    # then compiles nothing new
    theirs = wanted, *torch.autograd.grad(wanted, exact, do[:1].double())
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, theirs))


def time_passes(runs, q, k, v, do, rounds, calls, clock=milliseconds):
    """-> {name: (forward, backward)}, a list of times each"""
    times = {name: ([], []) for name in runs}
    outputs = {name: run(q, k, v) for name, run in runs.items()}  # compiles what must be compiled
    backward = lambda o: torch.autograd.grad(o, (q, k, v), do, retain_graph=True)
    for o in outputs.values():
        backward(o)
    for _ in range(rounds):
        for name, run in runs.items():
            times[name][0].append(clock(lambda: run(q, k, v), calls))
            times[name][1].append(clock(lambda: backward(outputs[name]), calls))
    return times


def median_and_range(times):
    return f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


def print_table(name, mask_mod, pairs, q, k, v, do, rounds, calls, clock=milliseconds):
    """One pattern. pairs: allowed pairs of a query and a key in one head"""
    rotary = rotary_angles(torch.arange(q.shape[2], device=q.device), q.shape[3])  # 2 x (L, d/2)
    runs, errors = implementations(mask_mod, q, rotary), {}
    for way, run in list(runs.items()):
        try:
            errors[way] = largest_error(run, q, k, v, do, mask_mod,
                                        rotary if "rotary" in way else None)
        except RuntimeError:  # this chip, or shape, has no such library kernel
            if OURS in way:
                raise
            print(f"{way} is not available here")
            del runs[way]
    times = time_passes(runs, q, k, v, do, rounds, calls, clock)
    flops = 4 * q.shape[0] * q.shape[1] * q.shape[3] * pairs
    print(f"\n{name + ', ms':<36}{'forward':<26}{'TFLOP/s':<9}{'backward':<26}{'TFLOP/s':<9}error")
    for way, (forward, backward) in times.items():
        rates = [work / statistics.median(t) / 1e9
                 for work, t in ((flops, forward), (2.5 * flops, backward))]
        print(f"{way:<36}{median_and_range(forward):<26}{rates[0]:<9.1f}"
              f"{median_and_range(backward):<26}{rates[1]:<9.1f}{errors[way]:.1e}")
    library = [way for way in runs if OURS not in way]
    for i, what in enumerate(("forward", "backward")):
        best = min(library, key=lambda way: statistics.median(times[way][i]))
        shares = [100 * theirs / ours for ours, theirs in zip(times[OURS][i], times[best][i])]
        print(f"{what}: {OURS} has {statistics.median(shares):.0f} % ({min(shares):.0f} to "
              f"{max(shares):.0f}) of the speed of {best}, the fastest of the library")


def main(config, given=()):
    if not torch.cuda.is_available() or kernels.flash_attention is None:
        raise UserError("experiments.attention needs a GPU and Triton: its kernels run only there")
    if config.length % (2 * config.block):
        raise UserError(f"--length {config.length} must be a multiple of twice --block "
                        f"{config.block}")
    torch.manual_seed(0)
    shape, dtype = (config.batch, config.length, config.heads, config.head_size), config.dtype
    q, k, v, do = (torch.randn(shape, device="cuda", dtype=getattr(torch, dtype)).transpose(1, 2)
                   for _ in range(4))  # (B, H, L, d) each
    q, k, v = (a.requires_grad_() for a in (q, k, v))
    print(f"{hardware(q.device)}, Triton {kernels.flash_attention.triton.__version__}\n"
          f"{config.batch} texts of {config.length} tokens, {config.heads} heads of "
          f"{config.head_size}, {dtype}; medians of {config.rounds} rounds")
    patterns = {"full": None, "causal": causal,
                "block diffusion": block_diffusion_mask(config.length // 2, config.block)}
    for name, mask_mod in patterns.items():
        pairs = config.length ** 2
        if mask_mod:
            pairs = int(dense_mask(mask_mod, q[:1, :1], k[:1, :1]).sum())
        print_table(name, mask_mod, pairs, q, k, v, do, config.rounds, config.calls)


if __name__ == "__main__":
    run_script(Config, main)
