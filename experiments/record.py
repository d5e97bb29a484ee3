"""
The record: how soon is a network within 0.05 nats of the exact entropy of the toy language?

    python -m experiments.record                            the recipe of every method, one seed
    python -m experiments.record --methods mdlm --seeds 3   what a record must show
    python -m experiments.record --methods ar --share 0.1   a quick look, a tenth of the steps

A recipe is a row of RECIPES: flags of train.py, the number of steps among them. Time is the CPU
time of the training steps, drawing the texts included. The gap of a network is

    gap = mean over texts x of  -log p_network(x) + log p(x),

the first by the bound (exact for ar) with 8 draws of noise, the second exact: nats per word over
4,000 held-out texts of 32 words. Its mean is the bound less the entropy, and the texts' own
likelihoods drop out of its error. docs/records.md has the rules and the holders.
"""
import time
from dataclasses import dataclass

import torch

from data import load_data
from evaluation.errors import mean_error, mean_over_seeds, with_error
from evaluation.likelihood import nats_of
from experiments.command import run_experiment
from experiments.timing import hardware
from experiments.training import make_trainer, method_names
from flags import UserError, flag
from runtime.device import keep_memory
from train import train_step

GOAL, WORDS = 0.05, 32  # nats per word, words per text
COMMON = dict(data="toy", block_size=WORDS, device="cpu", dtype="float32")
RECIPES = {
    "mdlm": dict(recurrent=1, learning_rate=0.02, muon_lr=0.03, warmup_iters=50,
                 lr_schedule="linear", max_iters=1350),
    "udlm": dict(recurrent=1, batch_size=64, learning_rate=0.01, muon_lr=0.02, warmup_iters=50,
                 lr_schedule="linear", max_iters=7000),
    "ar": dict(n_head=2, n_embd=64, batch_size=32, learning_rate=0.02, muon_lr=0.02,
               warmup_iters=20, lr_schedule="linear", max_iters=220),
}


@dataclass
class Config:
    methods: str = flag("", "rows of RECIPES, with commas between; empty means all",
                        each=list(RECIPES))
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...; a record needs 3", least=1)
    share: float = flag(1.0, "share of the steps, for a quick look", least=0.0001, most=1)
    texts: int = flag(4000, "held-out texts", least=2)
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def train_recipe(recipe, method, data, share=1.0, seed=1):
    """Train by a recipe. -> the trainer, CPU minutes"""
    steps = max(1, round(recipe["max_iters"] * share))
    flags = {**COMMON, **recipe, "method": method, "max_iters": steps, "seed": seed}
    trainer, began = make_trainer(data, **flags), time.process_time()
    for step in range(steps):
        train_step(trainer, step)
    return trainer, (time.process_time() - began) / 60


def gap_of(method, denoiser, x, language):
    """The gap above on each of the texts x (n, L). -> (n,) nats per word"""
    nats, scored = nats_of(method, denoiser, x, 1 if method.exact else 8, 256)  # (n,) each
    return nats / scored + language.log_prob(x) / x.shape[1]  # (n,)


def main(config, given=()):
    keep_memory()
    data = load_data("toy", WORDS)
    x = data.windows("val", config.texts)  # (n, L)
    print(f"{hardware(name=config.hardware)}; goal: {GOAL} nats above the entropy", flush=True)
    for name in method_names(config, list(RECIPES)):
        gaps, minutes = [], []
        for seed in range(1, config.seeds + 1):
            trainer, cpu = train_recipe(RECIPES[name], name, data, config.share, seed)
            gap = gap_of(trainer.averaged_method, trainer.average, x, data.language)  # (n,)
            gaps, minutes = [*gaps, mean_error(gap, True)], [*minutes, cpu]
            print(f"{name}, seed {seed}: {with_error(*gaps[-1])} nats above, {cpu:.2f} CPU min, "
                  f"{trainer.config.max_iters} steps", flush=True)
        mean, error = mean_over_seeds(*zip(*gaps))
        says = "reached" if mean <= GOAL else "missed"
        print(f"{name}: {with_error(mean, error)} nats above the entropy after "
              f"{sum(minutes) / len(minutes):.2f} CPU min: {says}", flush=True)


if __name__ == "__main__":
    run_experiment(Config, main, first="methods")
