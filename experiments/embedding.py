"""
Chapter 13. DiffuSeq's fast sampler as published, and put right, with the exact denoiser.

    python -m experiments.embedding

DiffuSeq (arXiv:2210.08933) samples in n of its T = 2,000 levels by steps of DDIM, (13.5). In its
public code a call at time t moves z to the level just below, t - 1/T, and the next call is told
t - 1/n. So z stays where it was, and the network is told that there is less noise in it from call
to call. Here the same steps are taken, and those that go where the next call is. The denoiser of
the toy language is exact, so only the sampler can err: -log p of samples less the entropy.
"""
from dataclasses import dataclass

import torch

from data import load_data
from evaluation.errors import mean_error, with_error
from experiments.command import run_experiment
from experiments.timing import hardware, parse_numbers
from flags import flag
from methods import make_method
from samplers.ddim import DDIM
from samplers.generate import generate

T = 2000  # levels, as published


@dataclass
class Config:
    steps: str = flag("2,5,20,50", "of the samplers, with commas between", each=int, least=1)
    num_samples: int = flag(64, "texts at each point", least=10)
    length: int = flag(16, "words of a text", least=2)


@dataclass(eq=False)
class Published(DDIM):
    """DDIM to the level just below t, wherever the next call is told to be."""

    def move(self, process, z, found, s, t, eps):
        return super().move(process, z, found, torch.maximum(s, t - 1 / T), t, eps)  # (N, D)


def main(config, given=()):
    data = load_data("toy", config.length)
    entropy, _ = data.language.entropy(config.length)
    method = make_method("diffusion_lm", data.encoding.n_vocab, self_condition=0.0)
    exact = method.oracle(data.language)
    print(f"{hardware()}\n-log p of {config.num_samples} samples above the entropy of "
          f"{entropy:.3f} nats/word\nsteps{'as published':>20}{'put right':>20}")
    for steps in parse_numbers(config.steps):
        cells = []
        for sampler in (Published(), DDIM()):
            torch.manual_seed(1)
            x = generate(method, exact, config.num_samples, config.length, steps, sampler)  # (n, L)
            nats = -data.language.log_prob(x) / config.length  # (n,)
            cells.append(with_error(*mean_error(nats - entropy, True)))
        print(f"{steps:>5}{cells[0]:>20}{cells[1]:>20}", flush=True)


if __name__ == "__main__":
    run_experiment(Config, main, "steps")
