"""
What the fast forms of kernels.py are worth, each against its plain form, in one run, in turns.

    python -m claims.kernels head       head and loss alone, and the whole training step: CPU time and peak memory
    python -m claims.kernels draw       a draw at every position: head, law and inverse CDF

Medians over `rounds`, in which the variants take turns, with the spread of the ratio to the first variant (its
quartiles). Memory is the peak of a process of its own (Linux): with the weights for the step, above them for the head.
"""
import sys
from dataclasses import dataclass, replace

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["head", "draw"])
    n_embd: int = flag(384, "width", least=8)
    n_layer: int = flag(6, "blocks of the whole step", least=1)
    vocab_size: int = flag(50258, "symbols, the mask included", least=3)
    block_size: int = flag(256, "tokens per text", least=1)
    batch_size: int = flag(4, "texts", least=1)
    rounds: int = flag(7, "turns of each variant", least=1)
    dtype: str = flag("float32", "of matrix products", ["float32", "bfloat16"])
    method: str = flag("mdlm", "mdlm or udlm", ["mdlm", "udlm"])


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import multiprocessing  # noqa: E402
import statistics
import time

import torch
import torch.nn.functional as F

import kernels
import positions
from block import doubled
from data import BadInput
from diffusion import corrupt, draw_from, probabilities, stratified
from masked import masked_weight
from measure import hardware
from methods import make_method
from model import Transformer, attention, causal, dense
from uniform import jump_weight, mixture_bound, mixture_nats, noise_of


# ---- what is compared

def everywhere(method, denoiser, x):
    """The plain loss of research code: logits and loss at all positions, and then most of them multiplied by 0."""
    t = stratified(len(x), x.device)                                                                # (B, 1)
    z = corrupt(method.process, x, t)                                                               # (B, L)
    log_p = denoiser(z, t)[..., :method.n_tokens].float().log_softmax(-1)                           # (B, L, V)
    if not hasattr(method.process, "mask"):
        return mixture_bound(method.process, log_p, x, z, t)                                        # (B, L)
    ce = -log_p.gather(-1, x[..., None])[..., 0]                                                    # (B, L)
    return masked_weight(method.process, t) * ce * (z == method.process.mask)                       # (B, L)


def selected(method, denoiser, x, fuses):
    """The same loss where it counts."""
    t = stratified(len(x), x.device)                                                                # (B, 1)
    z = corrupt(method.process, x, t)                                                               # (B, L)
    denoiser.fuses = fuses
    if hasattr(method.process, "mask"):
        return method.cross_entropy(denoiser, x, z, t, masked_weight(method.process, t), share=0.5)  # (B, L)
    (u, kappa), at = noise_of(method.process, x, t), torch.ones_like(x, dtype=torch.bool)           # (B, L) each
    weight = jump_weight(method.process, x, z, t)                                                   # (B, L)
    return positions.nats_at(denoiser, z, t, at, mixture_nats, (x, z, kappa, u), method.n_tokens, weight)


LOSSES = {"everywhere": everywhere, "selected, plain": lambda *a: selected(*a, fuses=False),
          "selected, in chunks": lambda *a: selected(*a, fuses=True)}


class HeadAlone(torch.nn.Module):
    """A network whose body is nothing: hidden states that do not depend on the text, and the head."""

    static = False

    def __init__(self, config):
        super().__init__()
        self.h = torch.nn.Parameter(torch.randn(config.batch_size, config.block_size, config.n_embd))
        self.head = torch.nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, z, t, at=None, head=None):
        h = self.h if at is None else self.h[at]                                                    # (N, D)
        return self.head(h) if head is None else head(h, self.head.weight, self.head.bias)          # (N, V)


def whole(config, method):
    torch.manual_seed(0)
    cond = 128 if method.uses_time else 0
    return Transformer(config.vocab_size, config.n_layer, max(1, config.n_embd // 64), config.n_embd, cond)


def stepper(config, alone, loss):
    """-> a function that takes one step: loss, gradients, and for the whole network the optimizer."""
    method = make_method(config.method, config.vocab_size - (config.method == "mdlm"))
    torch.manual_seed(0)
    net = HeadAlone(config) if alone else whole(config, method)
    adam = None if alone else torch.optim.AdamW(net.parameters(), fused=True)
    x = torch.randint(method.n_tokens, (config.batch_size, config.block_size))                      # (B, L)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
            nats = LOSSES[loss](method, net, x).mean()                                              # ()
        nats.backward()
        if adam:
            adam.step()
        net.zero_grad(set_to_none=True)
        return nats.item()
    return step


DRAWS = {"all rows at once": kernels.draw_plain, "in chunks": kernels.draw}


def drawer(config, alone, name):
    torch.manual_seed(0)
    h = torch.randn(config.batch_size * config.block_size, config.n_embd)                           # (N, D)
    weight, bias = torch.randn(config.vocab_size, config.n_embd) / 8, torch.zeros(config.vocab_size)
    return lambda: DRAWS[name](h, weight, bias, probabilities, draw_from, config.vocab_size)


def looks(device, tiny):
    """Attention there and back, as kernels.py has it done. Plain is PyTorch with the pattern written out, the library
    its fused form, which knows the full and the causal pattern. Yields (name, {way: do})."""
    B, H, L, d = (1, 2, 32, 16) if tiny else (2, 6, 512, 64)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (torch.randn(B, H, L, d, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    both = lambda o: torch.autograd.grad(o.sum(), (q, k, v))
    for name, mask_mod in (("full", None), ("causal", causal), ("block diffusion", doubled(L // 2, 16))):
        mask = None if mask_mod is None else dense(mask_mod, q, k)                                  # (B, H, L, L)
        ways = {"kernels.py": lambda m=mask_mod: both(attention(q, k, v, m)),
                "plain, a mask in memory": lambda m=mask: both(F.scaled_dot_product_attention(q, k, v, m))}
        if device.type == "cuda" and kernels.flash:
            ways["flash.py, Triton"] = lambda m=mask_mod: both(kernels.flash.flash(q, k, v, m))
        if name == "causal":
            ways["library"] = lambda: both(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        yield name, ways


def cases(device, tiny=False):
    """What `bench.py speed` puts beside the rest: (title, its size, {way: do}), the fast form first."""
    config = replace(Config(), **(dict(vocab_size=65, n_embd=16, block_size=8, batch_size=2) if tiny else {}))
    size = {name: getattr(config, name) for name in ("vocab_size", "n_embd", "block_size", "batch_size")}
    with torch.device(device):
        yield "head and loss, there and back", size, {name: stepper(config, True, name) for name in reversed(LOSSES)}
        yield "head, law and draw", size, {name: drawer(config, True, name) for name in reversed(DRAWS)}
    for name, ways in looks(device, tiny):
        yield f"attention, {name}", {"tokens": 32 if tiny else 512}, ways


# ---- how

def memory(*what):
    """MB at the peak of a step, of a process of its own: with the weights for the whole step, else above them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, what)


def peak(make, config, alone, name):
    torch.set_num_threads(1)
    before = held("VmRSS")
    step = make(config, alone, name)
    before = held("VmRSS") if alone else before
    step(), step()
    return held("VmHWM") - before


def held(what):
    """MB of this process: VmRSS now, VmHWM at most so far. (getrusage would count the parent's, too.)"""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what)) / 1024


def in_turns(variants, rounds):
    """name -> CPU seconds of each round; the first round, which touches fresh memory, is left out."""
    seconds = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, run in variants.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return {name: values[1:] for name, values in seconds.items()}


def head(config):
    print(f"{hardware()}\n{config.method}, V = {config.vocab_size:,}, d = {config.n_embd}, {config.batch_size} "
          f"texts of {config.block_size} tokens, {config.dtype}, {config.rounds} rounds")
    table(config, "head and loss alone", LOSSES, stepper, True)
    table(config, f"whole step, {config.n_layer} layers", LOSSES, stepper, False)


def draw(config):
    print(f"{hardware()}\nV = {config.vocab_size:,}, d = {config.n_embd}, "
          f"{config.batch_size * config.block_size} rows, {config.rounds} rounds")
    table(config, "head, law and draw", DRAWS, drawer, True)


def table(config, what, names, make, alone):
    """A row for each of the names: time, how much less than the first one's, memory. make(config, alone, name) -> step
    """
    print(f"{what:<30}{'CPU ms':>9}{'times faster (quartiles)':>28}{'peak MB':>10}{'share':>7}")
    seconds = in_turns({name: make(config, alone, name) for name in names}, config.rounds)
    first, full = next(iter(seconds.values())), None
    for name, values in seconds.items():
        ratios = sorted(a / b for a, b in zip(first, values))
        low, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.25, 0.75))
        mb = memory(make, config, alone, name)
        full = full or max(1, mb)
        spread, ms = f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})", 1000 * statistics.median(values)
        print(f"  {name:<28}{ms:>9.0f}{spread:>28}{mb:>10.0f}{mb / full:>7.2f}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        torch.set_num_threads(1)
        if not CONFIG.command:
            raise BadInput("say what to measure: python -m claims.kernels head or draw")
        {"head": head, "draw": draw}[CONFIG.command](CONFIG)
