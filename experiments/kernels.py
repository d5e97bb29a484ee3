"""
Chapter 23. The fast forms of kernels.py, each against its plain form, timed in turns.

    python -m experiments.kernels head    head and loss alone, and a whole training step: CPU time
                                          and peak memory
    python -m experiments.kernels sample  a draw at every position: head, softmax and inverse CDF

Prints the median over the rounds, and the ratio to the first way with its least and its most.
Memory is the peak of another process (Linux): with the weights for the whole step, above them for
the head alone.
"""
import multiprocessing
import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import kernels
from diffusion import corrupt, draw_from, probabilities, stratified
from experiments.command import choose_command, run_experiment
from experiments.timing import format_ratio, hardware, time_in_turns
from flags import UserError, configure, flag
from methods import make_method
from methods.base import loss_at
from methods.bd3lm import block_diffusion_mask
from methods.mdlm import masked_weight
from methods.udlm import jump_weight, mixture_bound, mixture_nats, noise_and_kappa
from model import Transformer, attention, causal, dense_mask

CPU = torch.device("cpu")


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["head", "sample"])
    n_embd: int = flag(384, "width", least=8)
    n_layer: int = flag(6, "blocks of the whole step", least=1)
    vocab_size: int = flag(50258, "symbols, the mask included", least=3)
    block_size: int = flag(256, "tokens per text", least=1)
    batch_size: int = flag(4, "texts", least=1)
    rounds: int = flag(7, "rounds, in which the ways take turns", least=1)
    dtype: str = flag("float32", "of matrix products", ["float32", "bfloat16"])
    method: str = flag("mdlm", "whose loss", ["mdlm", "udlm"])


# ---- what is compared

def loss_everywhere(method, denoiser, x):
    """The plain loss of research code: logits and loss at all positions, then times 0 at most."""
    t = stratified(len(x), x.device)  # (B, 1)
    z = corrupt(method.process, x, t)  # (B, L)
    log_p = denoiser(z, t)[..., :method.n_tokens].float().log_softmax(-1)  # (B, L, V)
    if method.process.mask is None:
        return mixture_bound(method.process, log_p, x, z, t)  # (B, L)
    ce = -log_p.gather(-1, x[..., None])[..., 0]  # (B, L)
    return masked_weight(method.process, t) * ce * (z == method.process.mask)  # (B, L)


def loss_selected(method, denoiser, x, fused):
    """The same loss at the positions that count."""
    t = stratified(len(x), x.device)  # (B, 1)
    z = corrupt(method.process, x, t)  # (B, L)
    denoiser.supports_fused_head = fused
    if method.process.mask is not None:
        weight = masked_weight(method.process, t)  # (B, 1)
        return method.cross_entropy(denoiser, x, z, t, weight, share=0.5)  # (B, L)
    u, kappa = noise_and_kappa(method.process, x, t)  # (B, L) each
    at, weight = torch.ones_like(x, dtype=torch.bool), jump_weight(method.process, x, z, t)
    return loss_at(denoiser, z, t, at, mixture_nats, (x, z, kappa, u), method.n_tokens, weight)


LOSSES = {"everywhere": loss_everywhere,
          "selected, plain": lambda *args: loss_selected(*args, fused=False),
          "selected, in chunks": lambda *args: loss_selected(*args, fused=True)}
DRAWS = {"all rows at once": kernels.sample_head_plain, "in chunks": kernels.sample_head}


class HeadAlone(torch.nn.Module):
    """A network of a head only: hidden states that do not depend on the text."""

    supports_cache = fixed_shapes = False

    def __init__(self, config):
        super().__init__()
        shape = config.batch_size, config.block_size, config.n_embd
        self.h = torch.nn.Parameter(torch.randn(shape))  # (B, L, D)
        self.head = torch.nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, z, t, at=None, head=None):
        h = self.h if at is None else self.h[at]  # (N, D)
        return self.head(h) if head is None else head(h, self.head.weight, self.head.bias)  # (N, V)


def whole_network(config, method):
    torch.manual_seed(0)
    return Transformer(config.vocab_size, config.n_layer, max(1, config.n_embd // 64),
                       config.n_embd, cond_dim=128 if method.uses_time else 0)


def make_step(config, alone, loss):
    """-> do(): loss, gradients, and for the whole network the optimizer"""
    method = make_method(config.method, config.vocab_size - (config.method == "mdlm"))
    torch.manual_seed(0)
    net = HeadAlone(config) if alone else whole_network(config, method)
    adam = None if alone else torch.optim.AdamW(net.parameters(), fused=True)
    x = torch.randint(method.n_tokens, (config.batch_size, config.block_size))  # (B, L)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
            nats = LOSSES[loss](method, net, x).mean()  # ()
        nats.backward()
        if adam:
            adam.step()
        net.zero_grad(set_to_none=True)
        return nats.item()
    return step


def make_draw(config, alone, name):
    """-> do(): one token per row"""
    torch.manual_seed(0)
    h = torch.randn(config.batch_size * config.block_size, config.n_embd)  # (N, D)
    weight = torch.randn(config.vocab_size, config.n_embd) / 8  # (V, D)
    bias = torch.zeros(config.vocab_size)  # (V,)
    return lambda: DRAWS[name](h, weight, bias, probabilities, draw_from, config.vocab_size)


def attention_forms(device, tiny):
    """Attention, forward and backward. Yields (name of the pattern, {way: do}).

    Plain is SDPA with a dense mask. The library is SDPA's own form of the causal pattern.
    """
    B, H, L, d = (1, 2, 32, 16) if tiny else (2, 6, 512, 64)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (torch.randn(B, H, L, d, device=device, dtype=dtype, requires_grad=True)
               for _ in range(3))  # (B, H, L, d) each
    run = lambda form, *args: torch.autograd.grad(form(q, k, v, *args).sum(), (q, k, v))
    patterns = {"full": None, "causal": causal,
                "block diffusion": block_diffusion_mask(L // 2, 16)}
    for name, mask_mod in patterns.items():
        mask = None if mask_mod is None else dense_mask(mask_mod, q, k)  # (B, H, L, L)
        sdpa = F.scaled_dot_product_attention
        ways = {"kernels.py": lambda m=mask_mod: run(attention, m),
                "plain, a dense mask": lambda m=mask: run(sdpa, m)}
        if device.type == "cuda" and kernels.flash_attention:
            flash = kernels.flash_attention.flash_attention
            ways["flash_attention.py, Triton"] = lambda m=mask_mod: run(flash, m)
        if name == "causal":
            ways["library"] = lambda: run(lambda q, k, v: sdpa(q, k, v, is_causal=True))
        yield name, ways


def fast_forms(device, tiny=False):
    """What speed.py times: (title, its size, {way: do}), the fast form first."""
    sizes = dict(vocab_size=65, n_embd=16, block_size=8, batch_size=2) if tiny else {}
    config = configure(Config, **sizes)
    size = {name: getattr(config, name)
            for name in ("vocab_size", "n_embd", "block_size", "batch_size")}
    with torch.device(device):
        yield "head and loss, forward and backward", size, {
            name: make_step(config, True, name) for name in reversed(LOSSES)}
        yield "head, softmax and draw", size, {
            name: make_draw(config, True, name) for name in reversed(DRAWS)}
    for name, ways in attention_forms(device, tiny):
        yield f"attention, {name}", {"tokens": 32 if tiny else 512}, ways


# ---- the tables

def memory_of_process(*what):
    """MB at the peak of two steps in another process; for the head alone above its weights."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_peak, what)


def measure_peak(make, config, alone, name):
    torch.set_num_threads(1)
    before = memory_now("VmRSS")
    step = make(config, alone, name)
    before = memory_now("VmRSS") if alone else before
    step(), step()
    return memory_now("VmHWM") - before


def memory_now(what):
    """MB of this process: VmRSS now, VmHWM at most so far. (getrusage also counts the parent's.)"""
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def print_table(config, title, names, make, alone):
    """A row per name: time, its ratio to that of the first name, memory.

    make(config, alone, name) -> do
    """
    print(f"{title:<30}{'CPU ms':>9}{'times faster (range)':>28}{'peak MB':>10}{'share':>7}")
    ways = {name: (make(config, alone, name), 1) for name in names}
    seconds = time_in_turns(ways, config.rounds, CPU)
    first, full = next(iter(seconds.values())), None
    for name, values in seconds.items():
        mb = memory_of_process(make, config, alone, name)
        full, ms = full or max(1, mb), 1000 * statistics.median(values)
        print(f"  {name:<28}{ms:>9.0f}{format_ratio(first, values):>28}{mb:>10.0f}"
              f"{mb / full:>7.2f}", flush=True)


def head(config):
    print(f"{hardware()}\n{config.method}, V = {config.vocab_size:,}, d = {config.n_embd}, "
          f"{config.batch_size} texts of {config.block_size} tokens, {config.dtype}, "
          f"{config.rounds} rounds")
    print_table(config, "head and loss alone", LOSSES, make_step, True)
    print_table(config, f"whole step, {config.n_layer} layers", LOSSES, make_step, False)


def sample(config):
    print(f"{hardware()}\nV = {config.vocab_size:,}, d = {config.n_embd}, "
          f"{config.batch_size * config.block_size} rows, {config.rounds} rounds")
    print_table(config, "head, softmax and draw", DRAWS, make_draw, True)


def main(config, given=()):
    torch.set_num_threads(1)
    heads = max(1, config.n_embd // 64)
    if config.n_embd % (2 * heads):
        raise UserError(f"--n_embd {config.n_embd} must be a multiple of {2 * heads}: a head has "
                        "about 64 features, an even number")
    choose_command(config, {"head": head, "sample": sample})(config)


if __name__ == "__main__":
    run_experiment(Config, main)
