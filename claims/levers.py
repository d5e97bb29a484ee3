"""
What each lever gains by itself: the table of docs/speed.md. On a CPU, one thread; random weights, nothing is trained.

    python -m claims.levers                  6 layers x 384, V = 50,258, L = 256: a CPU minute
    python -m claims.levers --compile        the default step through torch.compile, too: a minute more
    python -m claims.levers --rounds 1 --tiny

Each row is one thing done in two ways that give the same result, or the same law, in turn (measure.py). How much of a
training step or of a walk it is: python bench.py speed.
"""
from dataclasses import dataclass, replace

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("levers", "the name of the table", ["levers"])
    rounds: int = flag(7, "rounds; fewer than 7 are a look, no measurement", least=1)
    compile: bool = flag(False, "the default training step through torch.compile, too")
    tiny: bool = flag(False, "a tiny network, to see whether it runs")
    hardware: str = flag("", "what the machine is, where it does not say so itself")
    out_dir: str = flag("out/claims", "where the figures go")


CONFIG, GIVEN = parse(Config) if __name__ == "__main__" else (None, ())

import copy  # noqa: E402

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import plain
import speed
from checkpoint import device_of, keep_memory
from diffusion import categorical, probabilities, step
from model import attention, rotary_angles


def losses(size):
    """Head and loss, there and back, of a batch of which half is masked."""
    method, net = speed.untrained("mdlm", replace(size, batch=4))
    h = torch.randn(4, size.length, size.n_embd, requires_grad=True)                                    # (B, L, D)
    x = torch.randint(size.n_tokens, (4, size.length))                                                  # (B, L)
    z = torch.where(torch.rand(x.shape) < 0.5, method.process.mask, x)                                  # (B, L)
    dense = lambda: plain.substituted(lambda z, t: net.head(h), method.process, z, None).gather(-1, x[..., None])
    masks = lambda: method.cross_entropy(lambda z, t, at: net.head(h[at]), x, z, None)
    return {"loss, dense": lambda: dense().sum().backward(), "loss, at the masks": lambda: masks().sum().backward()}


def optimizers(size):
    """One update of all weights, and of their average."""
    _, net = speed.untrained("mdlm", size)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    default, fused = (torch.optim.AdamW(net.parameters(), lr=1e-6, fused=fused) for fused in (None, True))
    ema = [p.detach().clone() for p in net.parameters()]
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    @torch.no_grad()
    def by_hand():
        for a, p in zip(ema, net.parameters()):
            a -= (1 - 0.999) * (a - p)

    return {"AdamW, default": default.step, "AdamW, fused": fused.step, "average, ema -= (1 - d) (ema - p)": by_hand,
            "average, lerp": lambda: average.update_parameters(net)}


@torch.no_grad()
def steps(size):
    """One of 32 steps at t = 1/2: the network and its head everywhere, or where something changes."""
    mdlm, net = speed.untrained("mdlm", size)
    words = torch.randint(size.n_tokens, (1, size.length))                                              # (1, L)
    z = torch.where(torch.rand(words.shape) < 0.5, mdlm.process.mask, words)                            # (1, L)
    s, t = (torch.full((1, 1), u, dtype=torch.float64) for u in (0.5 - 1 / 32, 0.5))                    # (1, 1) each
    udlm, told = speed.untrained("udlm", size)
    nothing = torch.zeros_like(z, dtype=torch.bool)                                                     # (1, L)
    return {"masked step, everywhere": lambda: plain.lean_masked_step(mdlm.process, net, z, 0.5 - 1 / 32, 0.5),
            "masked step, where masks open": lambda: step(mdlm.process, net, z, nothing, s, t),
            "uniform step, everywhere": lambda: plain.lean_uniform_step(udlm.process, told, words, 0.5 - 1 / 32, 0.5),
            "uniform step, at candidates": lambda: step(udlm.process, told, words, nothing, s, t)}


def draws(size, rows=32):
    """The law of some rows of logits, and a draw."""
    logits = torch.randn(rows, size.n_tokens)                                                           # (N, V)
    return {"32 draws, float64 Gumbel race": lambda: plain.race(logits.double().softmax(-1)),
            "32 draws, inverse CDF": lambda: categorical(probabilities(logits))}


def blocks(size):
    """The network asked at 8 positions: all of the last block, or its second half at these alone; in bfloat16."""
    _, net = speed.untrained("mdlm", size)
    z, at = torch.randint(size.n_tokens, (1, size.length)), torch.arange(size.length)[None] < 8         # (1, L) each
    rotary = rotary_angles(torch.arange(size.length), net.head_size)

    @torch.no_grad()
    def whole():
        h = net.embedding(z)                                                                            # (1, L, D)
        for block in net.blocks:
            h = block(h, None, rotary, None)                                                            # (1, L, D)
        return net.head(net.norm(h[at]))                                                                # (N, V)

    @torch.no_grad()
    def selected():
        return net(z, None, at=at)                                                                      # (N, V)

    with torch.no_grad():
        small = copy.deepcopy(net).bfloat16()
    return {"last block, whole": whole, "last block, at 8 of L": selected,
            "network at 8 of L, in float32": selected,
            "network at 8 of L, in bfloat16": torch.no_grad()(lambda: small(z, None, at=at))}


def default_of(size):
    """The default run of train.py, or what is tiny."""
    return size if size.n_embd == speed.TINY["n_embd"] else speed.Size(4, 4, 128, n_tokens=8192, length=64, batch=32)


def precisely(precision, do):
    """do() with float32 products in this precision."""
    def done():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        do()
        torch.set_float32_matmul_precision(before)
    return done


def products(size):
    """Products in other arithmetic: a default step, 32 texts of 64 tokens, 4 x 128, V = 8,193; and small attention."""
    step = lambda dtype: speed.our_trainer(replace(default_of(size), dtype=dtype), **speed.DEFAULT)
    qkv = [torch.randn(24, 4, 64, 32, requires_grad=True) for _ in range(3)]                            # (B, H, L, hd)
    back = lambda attend: lambda: attend(*qkv).sum().backward()
    return {"default step, float32": step("float32"),
            "default step, medium precision": precisely("medium", step("float32")),
            "default step, bfloat16": step("bfloat16"),
            "attention, library, float32": back(F.scaled_dot_product_attention),
            "attention, library, medium precision": precisely("medium", back(F.scaled_dot_product_attention)),
            "attention, ours, medium precision": precisely("medium", back(attention))}


def compiled(size):
    """Compiling a default step: in bfloat16."""
    made = lambda **flags: speed.our_trainer(replace(default_of(size), dtype="bfloat16"), **speed.DEFAULT, **flags)
    return {"default step, as it is": made(), "default step, compiled": made(compile="default")}


def levers(config):
    keep_memory()
    torch.set_num_threads(1)
    report = speed.Report(config, device_of("cpu"))
    size = replace(replace(speed.SMALL, **speed.TINY) if config.tiny else speed.SMALL, batch=1)
    for made in (losses, optimizers, steps, draws, blocks, products, *[compiled] * config.compile):
        ways = {name: (do, 1) for name, do in made(size).items()}
        what = lambda name: name.partition(",")[0]           # names up to their comma: the same thing, the first way
        firsts = {what(name): name for name in reversed(ways)}
        against = {name: [firsts[what(name)]] for name in ways if name != firsts[what(name)]}
        its = default_of(size) if made in (products, compiled) else size
        report.table(made.__doc__.partition(":")[0].partition(".")[0], its, ways, against)


if __name__ == "__main__":
    with one_line_errors():
        levers(CONFIG)
