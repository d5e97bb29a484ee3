"""
Latent diffusion beside masks, for the same CPU time, on sentences whose probabilities are known
(chapter 15).

    python -m experiments.latents                           mdlm and ld4lg, 2 CPU minutes each
    python -m experiments.latents --methods ld4lg,latent_planner --minutes 10 --seeds 3

Printed are nats per text, not per token, since most tokens of a text are its ends: the bound above
the exact entropy, and the exact -log p of samples, of those that some sentence can be. Beside them
is how many samples differ from each other. Samples that read well have a low -log p, and so have
samples that say little: compare with the entropy and with the number that differ.
"""
import time
from dataclasses import dataclass

import torch

from data import load_data
from evaluation.errors import mean_error, mean_over_seeds, with_error
from evaluation.likelihood import nats_of
from experiments.command import run_experiment
from experiments.timing import hardware
from experiments.training import RATES, language_models, make_trainer, method_names, train_model
from flags import configure, flag
from runtime.device import keep_memory
from samplers.generate import generate
from train import Config as TrainConfig
from train import train_step

SIZE = dict(data="sentences", block_size=20, batch_size=64, n_layer=2, n_embd=96, ema=0.995,
            **RATES)
IMPOSSIBLE = -1e6  # log p of what no sentence can be, at least
PLACES = 10  # of a run, at which the cost of a step is measured: a method may train in stages


@dataclass
class Config:
    methods: str = flag("mdlm,ld4lg", "with commas between", each=language_models())
    minutes: float = flag(2.0, "CPU minutes of training of each run", least=0.001)
    seeds: int = flag(1, "runs of each method, with seeds 1, 2, ...", least=1)
    steps: int = flag(50, "of a sample", least=1)
    num_samples: int = flag(500, "samples of each run", least=2)
    max_texts: int = flag(1000, "held-out texts", least=2)
    out_dir: str = flag("out/latents", "where the checkpoints go")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def steps_in(seconds, **flags):
    """How many steps of a run take so many CPU seconds here, in the mean over its course."""
    whole = configure(TrainConfig, **flags).recipe_iters
    trainer = make_trainer(load_data(flags["data"], flags["block_size"]), max_iters=whole, **flags)
    train_step(trainer, 0)  # touches fresh memory
    spent = 0.0
    for i in range(PLACES):
        step = 1 + whole * (2 * i + 1) // (2 * PLACES)
        train_step(trainer, step)  # where a stage begins, it measures
        began = time.process_time()
        train_step(trainer, step + 1)
        spent += (time.process_time() - began) / PLACES
    return max(2, round(seconds / spent))


def measure(config, method, seed):
    """-> {what: (value, standard error)} of one run"""
    keep_memory()
    flags = dict(SIZE, method=method, seed=seed)
    steps = steps_in(60 * config.minutes, **flags)
    model, _, _ = train_model(f"{config.out_dir}/{method}-{seed}", max_iters=steps, **flags)
    data = load_data(SIZE["data"], SIZE["block_size"])
    x, language = data.windows("val", config.max_texts), data.language  # (n, L)
    nats, _ = nats_of(model.method, model.denoiser, x, 4)  # (n,)
    torch.manual_seed(seed)
    made = generate(model.method, model.denoiser, config.num_samples, x.shape[1], config.steps)
    log_p = language.log_prob(made)  # (m,)
    possible, words = log_p > IMPOSSIBLE, language.lengths(made).double()  # (m,) each
    distinct = len(made.unique(dim=0)) / len(made)
    found = {"steps": (model.step, 0.0),
             "bound above -log p": mean_error(nats + language.log_prob(x), True),
             "possible samples": mean_error(possible.double(), True),
             "their -log p": mean_error(-log_p[possible], True) if possible.any() else (0.0, 0.0),
             "words of a sample": mean_error(words, True),
             "samples that differ": (distinct, (distinct * (1 - distinct) / len(made)) ** 0.5)}
    measures = model.method.measures(model.denoiser, x, None, language.lengths(x))
    return found | {what: mean_error(values, True) for what, values in measures}


def main(config, given=()):
    where = hardware(name=config.hardware)  # UserError before an hour of work, not after
    lines = {}
    for seed in range(1, config.seeds + 1):
        for method in method_names(config, []):
            lines.setdefault(method, []).append(measure(config, method, seed))
    data = load_data(SIZE["data"], SIZE["block_size"])
    nats, error = data.language.entropy(data.block_size)
    print(f"\n{where}; {config.minutes:g} CPU minutes of training each, {config.seeds} seeds\n"
          f"exact entropy {with_error(data.block_size * nats, data.block_size * error)} nats/text")
    for method, runs in lines.items():
        print(method)
        for what in runs[0]:
            mean = mean_over_seeds(*zip(*(run[what] for run in runs)))
            print(f"    {what:<44}{with_error(*mean)}")


if __name__ == "__main__":
    run_experiment(Config, main)
