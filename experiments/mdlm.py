"""
Chapter 3. Masks: what caching saves, and what it costs or gains to mask words again.

    python -m experiments.mdlm calls     network calls of the ancestral steps under masks, counted;
                                         no network is needed
    python -m experiments.mdlm samplers  all samplers on one mdlm and one gidd of the toy language:
                                         exact -log p of their samples, and the entropy of the words
                                         within a text

calls: RADD (arXiv:2406.03736) keeps the network's output while no mask opens, and counts
N (1 - (1 - 1/N)^(B L)) calls for B texts of L tokens in N equal steps. diffusion.reverse_step calls
the network only where something moves, so it makes as many calls. A text of the batch in which
nothing moves is not read (model.py), so that each text costs what it would cost alone.
"""
from dataclasses import dataclass

import torch

from data import load_data
from evaluation.sample_quality import unigram_entropy
from experiments.command import choose_command, run_experiment
from experiments.timing import hardware, parse_numbers
from experiments.training import TOY, train_model
from flags import flag
from methods import make_method
from samplers import make_sampler
from samplers.generate import CallCounter, generate


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["calls", "samplers"])
    length: int = flag(64, "calls: tokens per text", least=1)
    steps: str = flag("", "with commas between; empty means 16,64,256,1024,4096 for calls, "
                      "8,16,32,128 for samplers", each=int, least=1)
    num_samples: int = flag(256, "samplers: texts", least=2)
    share: float = flag(1.0, "samplers: share of the full number of training steps", least=0.0001,
                        most=100)
    out_dir: str = flag("out/experiments-mdlm", "where the checkpoints go")


def count_calls(config):
    """With constant logits: what the network outputs does not change how often it is called."""
    method, L = make_method("radd", 5), config.length
    flat = lambda z, t, at: torch.zeros(int(at.sum()), 6)
    columns = "".join(f"{f'batch {B}: calls':>18}{'formula':>10}{'read':>8}" for B in (1, 16))
    print(f"texts of {L} tokens: network calls, their expected number, and texts read per text of "
          f"the batch\n{'steps':>6}{columns}")
    for N in parse_numbers(config.steps or "16,64,256,1024,4096"):
        cells = []
        for B in (1, 16):
            torch.manual_seed(0)
            spy, runs = CallCounter(flat), 8
            for _ in range(runs):
                generate(method, spy, B, L, N)
            expected = N * (1 - (1 - 1 / N) ** (B * L))
            cells.append(f"{spy.calls / runs:>18.1f}{expected:>10.1f}{spy.texts / runs / B:>8.1f}")
        print(f"{N:>6}" + "".join(cells), flush=True)


SAMPLERS = {  # method -> name -> options of make_sampler
    "mdlm": {"ancestral": {}, "ancestral, cosine grid": dict(grid="cosine"),
             "first-hitting": dict(name="first-hitting"), "confidence": dict(name="confidence"),
             "top-k": dict(name="top-k"),
             "semi-ar, blocks of 8": dict(name="semi-ar", decode_block=8),
             "ReMDM cap": dict(name="psi"),
             "ReMDM rescale": dict(name="psi", kappa="rescale", eta=0.015),
             "ReMDM conf": dict(name="remdm-conf"), "ReMDM loop": dict(name="psi", kappa="loop"),
             "ancestral, then gibbs": dict(corrector="gibbs")},
    "gidd": {"ancestral": {}, "psi cap": dict(name="psi"),
             "ancestral, then self-correct": dict(corrector="self-correct"),
             "ancestral, then greedy": dict(corrector="greedy"),
             "ancestral, then gibbs": dict(corrector="gibbs")},
}


def compare_samplers(config):
    data = load_data("toy", 32)
    entropy, _ = data.language.entropy(32)
    varied = unigram_entropy(data.windows("val", 4000)).mean()  # ()
    print(f"{hardware()}\n-log p of {config.num_samples} texts above the entropy of "
          f"{entropy:.3f}, nats/token (errors .02 to .06); entropy of the words within a text "
          f"(held-out text: {varied:.3f}); network calls")
    all_steps = parse_numbers(config.steps or "8,16,32,128")
    for name, rows in SAMPLERS.items():
        model, *_ = train_model(f"{config.out_dir}/{name}", config.share, method=name, **TOY)
        print(f"{name:<30}" + "".join(f"{f'{steps} steps':>24}" for steps in all_steps))
        for what, options in rows.items():
            sampler = make_sampler(**{"name": "ancestral", "method": model.method, **options})
            cells = []
            for steps in all_steps:
                torch.manual_seed(1)
                spy = CallCounter(model.denoiser)
                x = generate(model.method, spy, config.num_samples, 32, steps, sampler)  # (n, 32)
                above = (-data.language.log_prob(x) / 32).mean() - entropy
                figures = f"{above:.2f}  {unigram_entropy(x).mean():.2f}  {spy.calls:>4}"
                cells.append(f"{figures:>24}")
            print(f"  {what:<28}" + "".join(cells), flush=True)


def main(config, given=()):
    choose_command(config, {"calls": count_calls, "samplers": compare_samplers})(config)


if __name__ == "__main__":
    run_experiment(Config, main)
