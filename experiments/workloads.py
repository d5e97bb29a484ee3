"""
What speed.py times: training steps and samplers, ours and those of the dense reference.

Networks have random weights and texts are random ids, since speed does not depend on them.

    plain   dense_reference.py: the passes of research code, the same loss and distribution, dense
    lean    dense as well, in no more passes than the formula needs
    ours    the step of train.py, the samplers of sample.py
"""
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from data.base import Dataset
from diffusion import ancestral, corrupt
from experiments import dense_reference
from experiments.timing import peak_memory, seconds_of
from experiments.training import make_trainer
from flags import UserError
from methods import make_method
from model import Transformer
from runtime.device import keep_memory
from runtime.optim import orthogonalize
from samplers.generate import generate
from train import train_step

FEW = 2  # steps of the dense samplers that are timed
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Size:
    """A network, its texts, and its matrix products."""
    n_layer: int
    n_head: int
    n_embd: int
    n_tokens: int = 50_257
    length: int = 256
    batch: int = 4
    dtype: str = "float32"
    compile: bool = False
    device: str = "cpu"

    def __str__(self):
        return (f"{self.n_layer} x {self.n_embd}, V = {self.n_tokens + 1:,}, L = {self.length:,}, "
                f"batch {self.batch}, {self.dtype}" + ", compiled" * self.compile)


SMALL, SMALLER = Size(6, 6, 384), Size(4, 4, 128)
LARGE = Size(12, 12, 768, length=1024, batch=32, dtype="bfloat16", compile=True, device="cuda")
DEFAULT_RUN = Size(4, 4, 128, n_tokens=8192, length=64, batch=32)
TINY = dict(n_layer=2, n_head=2, n_embd=16, n_tokens=50, length=16, batch=2, compile=False)


class RandomTokens(Dataset):
    """Random ids in place of a corpus."""
    name = "random"

    def __init__(self, size):
        self.size, self.encoding = size, SimpleNamespace(n_vocab=size.n_tokens)

    def examples(self, split, n, generator=None):
        x = torch.randint(self.size.n_tokens, (n, self.size.length), generator=generator)  # (n, L)
        return x, None, None


# ---- training

def our_step(size, **flags):
    """The step of train.py on the bound, the loss of dense_reference.py, or as flags say. -> do"""
    plain = dict(method="mdlm", weighting="bound", optimizer="adamw", qk_norm=False, ema=0.9999,
                 learning_rate=3e-4, batch_size=size.batch, block_size=size.length,
                 n_layer=size.n_layer, n_head=size.n_head, n_embd=size.n_embd, dtype=size.dtype,
                 compile="default" * size.compile, device=size.device)
    trainer = make_trainer(RandomTokens(size), **{**plain, **flags})
    return partial(train_step, trainer, 0)


def plain_step(size):
    """The step of dense_reference.py for the same network. -> do"""
    torch.manual_seed(1337)
    method = make_method("mdlm", size.n_tokens)
    network = Transformer(size.n_tokens + 1, size.n_layer, size.n_head, size.n_embd, cond_dim=0)
    network = network.to(size.device)
    forward = torch.compile(network) if size.compile else network
    trainer = dense_reference.DenseTrainer(network, method.process, forward=forward,
                                           half=size.dtype == "bfloat16")
    x = torch.randint(size.n_tokens, (size.batch, size.length), device=size.device)  # (B, L)
    return lambda: trainer.step(x)


DEFAULT = dict(weighting="simple", optimizer="muon", qk_norm=True)
STEPS = {"plain": plain_step, "ours": our_step, "ours by default": partial(our_step, **DEFAULT),
         "ours by default, compiled": partial(our_step, **DEFAULT, compile="default")}
HEAD_SHARE = {"plain": 1.0, "ours": 0.5}  # mean share of positions that the head scores; else 1/3


def count_flops(size, head=1.0):
    """FLOPs of the matrix products of a training step. head: the share of positions it scores"""
    D, L = size.n_embd, size.length
    per_token = size.n_layer * (24 * D * D + 4 * L * D) + head * 2 * D * (size.n_tokens + 1)
    return 3 * per_token * size.batch * L


def count_muon_flops(size):
    """FLOPs of Muon's products in a step: the four matrices of each block."""
    with FlopCounterMode(display=False) as counter:
        for width in (1, 3, 4, 4):
            orthogonalize(torch.empty(1, size.n_embd, width * size.n_embd, device="meta"),
                          getattr(torch, size.dtype))
    return size.n_layer * counter.get_total_flops()


def matmul_peak(device, size, n):
    """The best of twelve products of n x n matrices, FLOP/s."""
    a, b = (torch.randn(n, n, device=size.device, dtype=getattr(torch, size.dtype))
            for _ in range(2))  # (n, n) each
    return 2 * n ** 3 / min(seconds_of(lambda: a @ b, device) for _ in range(12))


def measure_memory(way, size):
    """Peak bytes of two training steps in another process, above those of torch itself."""
    words = [sys.executable, "-m", __name__, json.dumps({"way": way, **asdict(size)})]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise UserError(f"{way} at {size} did not finish: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def peak_of_two_steps(way, **size):
    torch.set_num_threads(1)
    keep_memory()
    make, size = STEPS[way], Size(**size)
    make(replace(size, **TINY))()  # a first step loads the modules that torch loads late
    at_first, do = peak_memory(), make(size)
    for _ in range(2):
        do()
    return peak_memory() - at_first


# ---- sampling

def untrained(name, size, **options):
    """A method, and a network of random weights for it. -> method, network"""
    torch.manual_seed(1337)
    method = make_method(name, size.n_tokens, **options)
    network = method.network(method.vocab_size, size.n_layer, size.n_head, size.n_embd,
                             mask_mod=method.mask_mod, cond_dim=128 if method.uses_time else 0)
    torch.nn.init.normal_(network.head.weight, std=0.02)  # at zero, all predictions would be equal
    return method, network.to(size.device).eval()


def random_texts(size):
    return torch.randint(size.n_tokens, (size.batch, size.length), device=size.device)  # (B, L)


def our_sampler(size, method, network, steps, sampler=ancestral):
    """-> do"""
    return lambda: generate(method, network, size.batch, size.length, steps, sampler,
                            device=size.device)


def dense_sampler(size, step, steps, method, network):
    """FEW steps at t = 1/2, where a step has its mean cost. -> do"""
    half = torch.full((size.batch, 1), 0.5, device=size.device)  # (B, 1)
    z = corrupt(method.process, random_texts(size), half)  # (B, L)

    def do():
        for _ in range(FEW):
            step(method.process, network, z, 0.5 - 0.5 / steps, 0.5)
    return do


def uncached_sampler(size, network):
    """Four next tokens, at positions whose mean cost is that of all positions. -> do"""
    x, positions = random_texts(size), [size.length * k // 8 for k in (1, 3, 5, 7)]  # (B, L)

    def do():
        for n in positions:
            dense_reference.next_token(network, x[:, :n], size.n_tokens)
    return do


def samplers(size, steps):
    """Ways to sample a batch of texts: {name: (do, times)}, the dense ones before ours."""
    mdlm, udlm, ar, pgm = (untrained(name, size) for name in ("mdlm", "udlm", "ar", "pgm"))
    block, ref = min(16, size.length), dense_reference
    bd3lm = untrained("bd3lm", size, diffusion_block=block)
    dense = lambda step, model: (dense_sampler(size, step, steps, *model), steps / FEW)
    ours = lambda model, steps=steps: (our_sampler(size, *model, steps), 1)
    return {f"mdlm, {steps} steps, plain": dense(ref.masked_step, mdlm),
            f"mdlm, {steps} steps, lean": dense(ref.lean_masked_step, mdlm),
            f"mdlm, {steps} steps": ours(mdlm),
            f"udlm, {steps} steps, plain": dense(ref.uniform_step, udlm),
            f"udlm, {steps} steps, lean": dense(ref.lean_uniform_step, udlm),
            f"udlm, {steps} steps": ours(udlm),
            "ar, plain": (uncached_sampler(size, ar[1]), size.length / 4),
            "ar": ours(ar, 1),
            f"pgm, {steps} steps": ours(pgm),
            f"bd3lm, blocks of {block} in 4 steps": ours(bd3lm, 4)}


if __name__ == "__main__":  # the process of measure_memory
    print(peak_of_two_steps(**json.loads(sys.argv[1])))
