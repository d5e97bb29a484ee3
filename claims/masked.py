"""
Masks: what caching saves, and what it costs or gains to take words back.

    python -m claims.masked calls       network calls of the walk (3) under masks, counted; no network is needed
    python -m claims.masked samplers    all samplers on one mdlm and one gidd of the toy language, with the exact
                                        -log p of their samples and the entropy of the words within a text

calls: RADD (arXiv:2406.03736) keeps the network's answer while no mask opens, and counts N (1 - (1 - 1/N)^(B L)) calls
for B texts of L tokens in N equal steps. diffusion.step asks where something moves, so it makes as many; and a text of
the batch in which nothing moves is not read (model.py), so that each text costs what it would cost alone.
"""
import sys
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["calls", "samplers"])
    length: int = flag(64, "calls: tokens per text", least=1)
    steps: str = flag("", "with commas between; empty: calls 16,64,256,1024,4096, samplers 8,16,32,128")
    num_samples: int = flag(256, "samplers: texts", least=2)
    share: float = flag(1.0, "samplers: share of the full number of training steps", least=0.0001, most=100)
    out_dir: str = flag("out/claims-masked", "where the checkpoints go")


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import torch  # noqa: E402

import bench
from bounds import mean_error
from claims.partition import numbers
from data import BadInput
from data.text import load
from methods import make_method, make_sampler
from quality import unigram_entropy
from sample import Counted, generate


def calls(config):
    """Of a network that knows nothing: what it says does not change how often it is asked."""
    method, L = make_method("radd", 5), config.length
    flat = lambda z, t, at: torch.zeros(int(at.sum()), 6)
    print(f"texts of {L} tokens: network calls, their mean by the formula, and texts read, per text of the batch"
          f"\n{'steps':>6}" + "".join(f"{f'batch {B}: calls':>18}{'formula':>10}{'read':>8}" for B in (1, 16)))
    for N in numbers("steps", config.steps or "16,64,256,1024,4096"):
        cells = []
        for B in (1, 16):
            torch.manual_seed(0)
            spy, runs = Counted(flat), 8
            for _ in range(runs):
                generate(method, spy, B, L, N)
            cells.append(f"{spy.calls / runs:>18.1f}{N * (1 - (1 - 1 / N) ** (B * L)):>10.1f}"
                         f"{spy.texts / runs / B:>8.1f}")
        print(f"{N:>6}" + "".join(cells), flush=True)


SAMPLERS = {
    "mdlm": {"ancestral": {}, "ancestral, cosine grid": dict(grid="cosine"),
             "first-hitting": dict(name="first-hitting"), "confidence": dict(name="confidence"),
             "top-k": dict(name="top-k"), "semi-ar, blocks of 8": dict(name="semi-ar", decode_block=8),
             "ReMDM cap": dict(name="psi"),
             "ReMDM rescale": dict(name="psi", kappa="rescale", eta=0.015), "ReMDM conf": dict(name="remdm-conf"),
             "ReMDM loop": dict(name="psi", kappa="loop"), "ancestral, then gibbs": dict(tail="gibbs")},
    "gidd": {"ancestral": {}, "psi cap": dict(name="psi"), "ancestral, then self-correct": dict(tail="self-correct"),
             "ancestral, then greedy": dict(tail="greedy"), "ancestral, then gibbs": dict(tail="gibbs")},
}


def samplers(config):
    corpus = load("toy", 32)
    entropy, _ = corpus.language.entropy(32)
    varied, _ = mean_error(unigram_entropy(corpus.windows("val", 4000)))
    print(f"{bench.hardware()}\n-log p of {config.num_samples} texts above the entropy of {entropy:.3f}, nats/token "
          f"(errors .02 to .06); entropy of the words within a text (held-out text: {varied:.3f}); network calls")
    all_steps = numbers("steps", config.steps or "8,16,32,128")
    for name, rows in SAMPLERS.items():
        model, *_ = bench.trained(config, name, 1, data="toy", **bench.TWO_MINUTES)
        print(f"{name:<30}" + "".join(f"{f'{steps} steps':>24}" for steps in all_steps))
        for what, options in rows.items():
            cells = []
            for steps in all_steps:
                torch.manual_seed(1)
                spy = Counted(model.denoiser)
                x = generate(model.method, spy, config.num_samples, 32, steps,
                             make_sampler(**{"name": "ancestral", "method": name, **options}))          # (n, 32)
                above = (-corpus.language.log_prob(x) / 32).mean() - entropy
                cells.append(f"{f'{above:.2f}  {unigram_entropy(x).mean():.2f}  {spy.calls:>4}':>24}")
            print(f"  {what:<28}" + "".join(cells), flush=True)


if __name__ == "__main__":
    with one_line_errors():
        if not CONFIG.command:
            raise BadInput("say what to measure: python -m claims.masked calls or samplers")
        {"calls": calls, "samplers": samplers}[CONFIG.command](CONFIG)
