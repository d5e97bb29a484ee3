"""
Chapter 23. What each change gains alone: the table of docs/speed.md. One CPU thread, no training.

    python -m experiments.levers             6 layers x 384, V = 50,258, L = 256: a CPU minute
    python -m experiments.levers --compile   the default step through torch.compile as well: a
                                             minute more
    python -m experiments.levers --rounds 1 --tiny

Each row is one thing computed in two ways that have the same result, or the same distribution,
timed in turns. What share of a training step or of a sample it is:
python -m experiments.speed cpu.
"""
import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion import categorical, probabilities, reverse_step
from experiments import dense_reference
from experiments.speed import Report
from experiments.workloads import DEFAULT, DEFAULT_RUN, SMALL, TINY, our_step, untrained
from flags import flag
from model import attention, rotary_angles
from runtime.device import device_of, keep_memory
from script import run_script


@dataclass
class Config:
    command: str = flag("levers", "the name of the table", ["levers"])
    rounds: int = flag(7, "rounds; fewer than 7 give an impression, no measurement", least=1)
    compile: bool = flag(False, "the default training step through torch.compile as well")
    tiny: bool = flag(False, "a tiny network, to see whether it runs")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)
    out_dir: str = flag("out/experiments", "where the figures go")


def losses(size):
    """Head and loss, forward and backward, of a batch of which half is masked."""
    method, net = untrained("mdlm", replace(size, batch=4))
    h = torch.randn(4, size.length, size.n_embd, requires_grad=True)  # (B, L, D)
    x = torch.randint(size.n_tokens, (4, size.length))  # (B, L)
    z = torch.where(torch.rand(x.shape) < 0.5, method.process.mask, x)  # (B, L)

    def dense():
        everywhere = lambda z, t: net.head(h)  # (B, L, V)
        log_x_theta = dense_reference.log_x_theta_by_substitution(everywhere, method.process, z,
                                                                  None)  # (B, L, V)
        log_x_theta.gather(-1, x[..., None]).sum().backward()

    def at_masks():
        selected = lambda z, t, at: net.head(h[at])  # (N, V)
        method.cross_entropy(selected, x, z, None).sum().backward()
    return {"loss, dense": dense, "loss, at the masks": at_masks}


def optimizers(size):
    """One update of all weights, and of their average."""
    _, net = untrained("mdlm", size)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    default, fused = (torch.optim.AdamW(net.parameters(), lr=1e-6, fused=fused)
                      for fused in (None, True))
    ema = [p.detach().clone() for p in net.parameters()]
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    @torch.no_grad()
    def tensor_by_tensor():
        for a, p in zip(ema, net.parameters()):
            a -= (1 - 0.999) * (a - p)

    return {"AdamW, default": default.step, "AdamW, fused": fused.step,
            "average, ema -= (1 - d) (ema - p)": tensor_by_tensor,
            "average, lerp": lambda: average.update_parameters(net)}


@torch.no_grad()
def steps(size):
    """One of 32 steps at t = 1/2: network and head everywhere, or where something changes."""
    mdlm, masked_net = untrained("mdlm", size)
    udlm, uniform_net = untrained("udlm", size)
    words = torch.randint(size.n_tokens, (1, size.length))  # (1, L)
    z = torch.where(torch.rand(words.shape) < 0.5, mdlm.process.mask, words)  # (1, L)
    s, t = (torch.full((1, 1), u, dtype=torch.float64) for u in (0.5 - 1 / 32, 0.5))  # (1, 1)
    frozen, ref = torch.zeros_like(z, dtype=torch.bool), dense_reference  # (1, L)
    here = 0.5 - 1 / 32, 0.5
    return {"masked step, everywhere":
                lambda: ref.lean_masked_step(mdlm.process, masked_net, z, *here),
            "masked step, where masks open":
                lambda: reverse_step(mdlm.process, masked_net, z, frozen, s, t),
            "uniform step, everywhere":
                lambda: ref.lean_uniform_step(udlm.process, uniform_net, words, *here),
            "uniform step, at candidates":
                lambda: reverse_step(udlm.process, uniform_net, words, frozen, s, t)}


def draws(size, rows=32):
    """The distribution of some rows of logits, and a draw."""
    logits = torch.randn(rows, size.n_tokens)  # (N, V)
    return {"32 draws, float64 Gumbel race":
                lambda: dense_reference.gumbel_argmax(logits.double().softmax(-1)),
            "32 draws, inverse CDF": lambda: categorical(probabilities(logits))}


def blocks(size):
    """The network at 8 positions: the last block whole, or its second half at these alone."""
    _, net = untrained("mdlm", size)
    z, at = torch.randint(size.n_tokens, (1, size.length)), torch.arange(size.length)[None] < 8
    rotary = rotary_angles(torch.arange(size.length), net.head_size)  # 2 x (L, hd/2)

    @torch.no_grad()
    def whole():
        h = net.embedding(z)  # (1, L, D)
        for block in net.blocks:
            h = block(h, None, rotary, None)  # (1, L, D)
        return net.head(net.norm(h[at]))  # (N, V)

    @torch.no_grad()
    def selected():
        return net(z, None, at=at)  # (N, V)

    with torch.no_grad():
        low = copy.deepcopy(net).bfloat16()
    return {"last block, whole": whole, "last block, at 8 of L": selected,
            "network at 8 of L, in float32": selected,
            "network at 8 of L, in bfloat16": torch.no_grad()(lambda: low(z, None, at=at))}


def default_run(size):
    """The size of the default run of train.py, unless `size` is tiny."""
    return size if size.n_embd == TINY["n_embd"] else DEFAULT_RUN


def with_precision(precision, do):
    """do with float32 products in this precision."""
    def run():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        do()
        torch.set_float32_matmul_precision(before)
    return run


def products(size):
    """Products in other precisions: a default step, 32 x 64 tokens, and small attention."""
    step = lambda dtype: our_step(replace(default_run(size), dtype=dtype), **DEFAULT)
    qkv = [torch.randn(24, 4, 64, 32, requires_grad=True) for _ in range(3)]  # (B, H, L, hd)
    run = lambda form: lambda: form(*qkv).sum().backward()
    sdpa = F.scaled_dot_product_attention
    return {"default step, float32": step("float32"),
            "default step, medium precision": with_precision("medium", step("float32")),
            "default step, bfloat16": step("bfloat16"),
            "attention, library, float32": run(sdpa),
            "attention, library, medium precision": with_precision("medium", run(sdpa)),
            "attention, ours, medium precision": with_precision("medium", run(attention))}


def compiled(size):
    """A default step, compiled: in bfloat16."""
    size = replace(default_run(size), dtype="bfloat16")
    return {"default step, as it is": our_step(size, **DEFAULT),
            "default step, compiled": our_step(size, **DEFAULT, compile="default")}


def main(config, given=()):
    keep_memory()
    torch.set_num_threads(1)
    report = Report(config, device_of("cpu"))
    size = replace(replace(SMALL, **TINY) if config.tiny else SMALL, batch=1)
    for make in (losses, optimizers, steps, draws, blocks, products, *[compiled] * config.compile):
        ways = {name: (do, 1) for name, do in make(size).items()}
        what = lambda name: name.partition(",")[0]  # names equal up to a comma compute the same
        firsts = {what(name): name for name in reversed(ways)}
        against = {name: [firsts[what(name)]] for name in ways if name != firsts[what(name)]}
        its = default_run(size) if make in (products, compiled) else size
        title = make.__doc__.partition(":")[0].partition(".")[0]
        report.add_table(title, its, ways, against)


if __name__ == "__main__":
    run_script(Config, main)
