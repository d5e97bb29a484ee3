"""
Tree diffusion against autoregression on expressions that must have a value (chapter 17).

    python -m experiments.tree_edits                   one seed, a CPU minute for each network
    python -m experiments.tree_edits --minutes 2 --seeds 3

Both networks learn from the same data in equal CPU time. For held-out targets it counts which are
solved after 1, 5, 10 and 20 edits, from a random tree on:

    mutations     random ones, (17.7): the checker alone
    edits         the network's
    .. x 8        the same for eight random trees side by side: solved, if one of them is
    value         eight trees, and for each two edits: those with the fewest edits left stay
    ar            texts from left to right instead: solved, if one of 1, 5, 10, 20 draws is

A chain of edits, one of mutations and the draws of ar ask the checker equally often, the others 8
and 16 times as often. `+-` covers the choice of questions and the seeds (12.4); a fifth of the 199
targets is held out, so questions repeat.
"""
from dataclasses import dataclass
from functools import partial

import torch

from data import load_data
from evaluation.errors import mean_error, mean_over_seeds, with_error
from experiments.command import run_experiment
from experiments.reasoning import steps_in, trainer_of
from experiments.timing import hardware
from experiments.training import save_results
from flags import flag
from runtime.device import keep_memory
from samplers import make_sampler
from samplers.generate import generate, trajectory
from train import train_step

EDITS = 1, 5, 10, 20
WAYS = {"mutations": dict(edits="random"), "edits": {},
        "mutations x 8": dict(edits="random", beam=8), "edits x 8": dict(beam=8),
        "value": dict(beam=8, tries=2, rank="value")}


@dataclass
class Config:
    data: str = flag("arithmetic", "data whose texts are trees")
    minutes: float = flag(1.0, "CPU minutes of each network", least=0.001)
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...", least=1)
    questions: int = flag(300, "held-out targets, with repetitions", least=2, most=500)
    out_dir: str = flag("out/tree_edits", "where the results are kept")


def trained(config, data, name, seed):
    """The Trainer of a method after --minutes of CPU time."""
    make = partial(trainer_of, config.data, data, name, "", seed)
    trainer = make(steps_in(60 * config.minutes, make))
    for step in range(trainer.config.max_iters):
        train_step(trainer, step)
    return trainer


@torch.no_grad()
def solved_after(trainer, x, frozen, **flags):
    """Which texts are solved after each number of EDITS. -> (n, 4) 0 or 1"""
    sampler = make_sampler("tree-edits", trainer.method, **flags)
    states = trajectory(trainer.method, trainer.average, x, frozen, max(EDITS), sampler)
    right = [trainer.data.solved(z) for z in states]  # (n,) each; the first before any edit
    right += right[-1:] * (max(EDITS) + 1 - len(right))  # all were solved early
    return torch.stack([right[n] for n in EDITS], 1).double()  # (n, 4)


@torch.no_grad()
def solved_by_draws(trainer, x, frozen):
    """Which questions one of the first draws of ar solves. -> (n, 4) 0 or 1"""
    k, n = max(EDITS), len(x)
    parts = zip(x.repeat_interleave(k, 0).split(1000), frozen.repeat_interleave(k, 0).split(1000))
    texts = [generate(trainer.method, trainer.average, len(given), given.shape[1], 1,
                      make_sampler("ancestral", trainer.method), given=given, frozen=still)
             for given, still in parts]
    right = torch.cat([trainer.data.solved(z) for z in texts]).view(n, k)  # (n, k)
    return torch.stack([right[:, :m].any(-1) for m in EDITS], 1).double()  # (n, 4)


def run_of(config, data, seed):
    """Train and solve once. -> {way: (n, 4)}, steps of each network"""
    x, frozen, _ = data.example_windows("val", config.questions)  # (n, L) each
    trees, ar = (trained(config, data, name, seed) for name in ("tree_diffusion", "ar"))
    torch.manual_seed(seed)
    found = {way: solved_after(trees, x, frozen, **flags) for way, flags in WAYS.items()}
    found["ar"] = solved_by_draws(ar, x, frozen)  # (n, 4)
    return found, [trainer.config.max_iters for trainer in (trees, ar)]


def main(config, given=()):
    data = load_data(config.data, 0)
    print(f"{hardware()}; {config.minutes:g} CPU minutes for each network, {config.seeds} seeds, "
          f"{config.questions} held-out questions", flush=True)
    runs, results = [], []
    for seed in range(1, config.seeds + 1):
        keep_memory()
        found, steps = run_of(config, data, seed)
        runs.append(found)
        print(f"seed {seed}: tree_diffusion {steps[0]} steps, ar {steps[1]} steps", flush=True)
    print(f"{'solved after':<16}" + "".join(f"{n:>10} edits" for n in EDITS))
    for way in runs[0]:
        pairs = [[mean_error(column, True) for column in found[way].unbind(1)] for found in runs]
        cells = [mean_over_seeds(*zip(*of_edits)) for of_edits in zip(*pairs)]
        print(f"{way:<16}" + "".join(f"{with_error(*cell):>16}" for cell in cells), flush=True)
        results += [dict(way=way, edits=n, solved=mean, error=error)
                    for n, (mean, error) in zip(EDITS, cells)]
    save_results(config, "tree_edits", results)


if __name__ == "__main__":
    run_experiment(Config, main, first="data")
